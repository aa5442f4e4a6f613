#include "server/board_sensors.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace embergate::server {
namespace {

namespace fs = std::filesystem;

constexpr size_t kEntriesMax = 64;  // of a folder; a board has a handful

std::string ReadLine(const fs::path& path) {
  std::ifstream file(path);
  char text[128] = {};
  file.getline(text, sizeof(text));
  return std::string(absl::StripAsciiWhitespace(text));
}

std::optional<double> ReadNumber(const fs::path& path) {
  double value = 0;
  return absl::SimpleAtod(ReadLine(path), &value) ? std::optional<double>(value) : std::nullopt;
}

// The entries of `folder` whose names begin with `prefix`, in order of their numbers.
std::vector<fs::path> Numbered(const fs::path& folder, const std::string& prefix) {
  std::map<int, fs::path> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end && found.size() < kEntriesMax;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    int number = 0;
    if (name.rfind(prefix, 0) == 0 && absl::SimpleAtoi(name.substr(prefix.size()), &number)) {
      found[number] = at->path();
    }
  }
  std::vector<fs::path> paths;
  for (auto& [number, path] : found) {
    paths.push_back(std::move(path));
  }
  return paths;
}

}  // namespace

BoardSensors ReadBoardSensors(const std::string& sysfs) {
  BoardSensors sensors;
  for (const fs::path& zone : Numbered(fs::path(sysfs) / "class/thermal", "thermal_zone")) {
    const std::optional<double> millidegrees = ReadNumber(zone / "temp");
    std::string name = ReadLine(zone / "type");
    if (!millidegrees.has_value() || name.empty()) {
      continue;
    }
    const auto same = [&](const BoardSensors::Temperature& other) { return other.zone == name; };
    if (std::any_of(sensors.temperatures.begin(), sensors.temperatures.end(), same)) {
      absl::StrAppend(&name, "-", zone.filename().string());
    }
    sensors.temperatures.push_back({name, *millidegrees / 1000});
  }
  for (const fs::path& policy : Numbered(fs::path(sysfs) / "devices/system/cpu/cpufreq", "policy")) {
    const std::optional<double> current = ReadNumber(policy / "scaling_cur_freq");  // all in kHz
    const std::optional<double> limit = ReadNumber(policy / "scaling_max_freq");
    const std::optional<double> max = ReadNumber(policy / "cpuinfo_max_freq");
    if (current.has_value() && limit.has_value() && max.has_value()) {
      sensors.clocks.push_back({policy.filename().string(), *current * 1000, *limit * 1000, *max * 1000});
    }
  }
  return sensors;
}

}  // namespace embergate::server
