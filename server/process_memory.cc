#include "server/process_memory.h"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace embergate::server {
namespace {

std::optional<std::string> ReadFirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) {
    return std::nullopt;
  }
  return line;
}

std::optional<uint64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> line = ReadFirstLine(path);
  uint64_t value = 0;
  if (!line.has_value() || !absl::SimpleAtoi(*line, &value)) {
    return std::nullopt;  // "max" included
  }
  return value;
}

std::optional<uint64_t> MemAvailable(const std::string& root) {
  std::ifstream file(root + "proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string key;
    uint64_t kib = 0;
    if (fields >> key >> kib && key == "MemAvailable:") {
      return kib * 1024;
    }
  }
  return std::nullopt;
}

// The smallest memory limit of the process's cgroup and its ancestors; nullopt if there is none. Above memory.high the
// kernel kills nobody, but takes pages away and slows the process down until it is below.
std::optional<uint64_t> CgroupLimit(const std::string& root) {
  std::ifstream file(root + "proc/self/cgroup");
  std::optional<uint64_t> smallest;
  std::string line;
  while (std::getline(file, line)) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) {
      continue;
    }
    const bool v2 = fields[0] == "0" && fields[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    const bool v1_memory = std::find(controllers.begin(), controllers.end(), "memory") != controllers.end();
    if (!v2 && !v1_memory) {
      continue;
    }
    const std::string base = absl::StrCat(root, "sys/fs/cgroup", v2 ? "" : "/memory");
    const std::vector<const char*> limit_files = v2 ? std::vector<const char*>{"/memory.max", "/memory.high"}
                                                    : std::vector<const char*>{"/memory.limit_in_bytes"};
    // Inside a container the path in /proc is the host's; its own limit is then at the mount's root, which the walk
    // upwards reaches.
    std::string path = fields[2] == "/" ? "" : fields[2];
    while (true) {
      for (const char* limit_file : limit_files) {
        const std::optional<uint64_t> limit = ReadNumber(absl::StrCat(base, path, limit_file));
        // v1 writes "no limit" as a number near 2^63.
        if (limit.has_value() && *limit < (uint64_t{1} << 60)) {
          smallest = std::min(smallest.value_or(*limit), *limit);
        }
      }
      if (path.empty()) {
        break;
      }
      path.resize(std::max<size_t>(path.rfind('/'), 0));
    }
  }
  return smallest;
}

}  // namespace

ProcessUsage ReadProcessUsage() {
  ProcessUsage usage;
  if (const std::optional<std::string> statm = ReadFirstLine("/proc/self/statm"); statm.has_value()) {
    std::istringstream fields(*statm);
    uint64_t size = 0;
    uint64_t resident = 0;
    if (fields >> size >> resident) {
      usage.resident_bytes = resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    }
  }
  rusage times{};
  if (getrusage(RUSAGE_SELF, &times) == 0) {
    usage.major_faults = static_cast<uint64_t>(times.ru_majflt);
    usage.cpu_seconds = static_cast<double>(times.ru_utime.tv_sec + times.ru_stime.tv_sec) +
                        1e-6 * static_cast<double>(times.ru_utime.tv_usec + times.ru_stime.tv_usec);
  }
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end; it.increment(error)) {
    ++usage.open_fds;
  }
  return usage;
}

StepThreadTimes ReadStepThreadTimes(const std::string& self) {
  StepThreadTimes times;
  std::error_code error;
  for (std::filesystem::directory_iterator it(self + "/task", error), end; !error && it != end; it.increment(error)) {
    const std::string thread = it->path().string();
    if (!absl::StartsWith(ReadFirstLine(thread + "/comm").value_or(""), "step")) {
      continue;
    }
    std::istringstream fields(ReadFirstLine(thread + "/schedstat").value_or(""));
    uint64_t cpu_ns = 0;
    uint64_t delay_ns = 0;
    if (fields >> cpu_ns >> delay_ns) {
      times.cpu_seconds += 1e-9 * static_cast<double>(cpu_ns);
      times.delay_seconds += 1e-9 * static_cast<double>(delay_ns);
    }
  }
  return times;
}

absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text) {
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  size_t digits = 0;
  while (digits < trimmed.size() &&
         (absl::ascii_isdigit(static_cast<unsigned char>(trimmed[digits])) || trimmed[digits] == '.')) {
    ++digits;
  }
  double value = 0;
  double unit = 0;
  const std::string suffix = absl::AsciiStrToLower(absl::StripAsciiWhitespace(trimmed.substr(digits)));
  static constexpr struct {
    const char* suffix;
    double bytes;
  } kUnits[] = {{"", 1},       {"b", 1},        {"k", 0x1p10},   {"kib", 0x1p10}, {"kb", 1e3},
                {"m", 0x1p20}, {"mib", 0x1p20}, {"mb", 1e6},     {"g", 0x1p30},   {"gib", 0x1p30},
                {"gb", 1e9},   {"t", 0x1p40},   {"tib", 0x1p40}, {"tb", 1e12}};
  for (const auto& candidate : kUnits) {
    if (suffix == candidate.suffix) {
      unit = candidate.bytes;
    }
  }
  if (unit == 0 || !absl::SimpleAtod(trimmed.substr(0, digits), &value) || !(value >= 0) || value * unit > 0x1p60) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no size: write bytes (1073741824), or a number with a unit (1500MiB, 1.5GB)"));
  }
  return static_cast<uint64_t>(std::llround(value * unit));
}

absl::StatusOr<uint64_t> DetectDramBudget(const std::string& root) {
  const std::optional<uint64_t> available = MemAvailable(root);
  const std::optional<uint64_t> limit = CgroupLimit(root);
  if (!available.has_value() && !limit.has_value()) {
    return absl::NotFoundError("neither a cgroup memory limit nor MemAvailable can be read; give --dram-budget a size");
  }
  const uint64_t share = available.has_value() ? *available / 10 * 9 : UINT64_MAX;
  return std::min(share, limit.value_or(UINT64_MAX));
}

uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

}  // namespace embergate::server
