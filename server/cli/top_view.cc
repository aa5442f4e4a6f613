#include "server/cli/top_view.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "server/cli/human.h"

namespace embergate::server {
namespace {

constexpr int kNameWidth = 12;

double Rate(const TopFrame& frame, const std::string& counter) {
  const double difference = frame.now->Sum(counter) - frame.before->Sum(counter);
  return frame.seconds > 0 ? std::max(0.0, difference) / frame.seconds : 0;
}

// part / whole in percent; nothing of nothing is 0.
double Percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

std::string Bar(double share, int cells) {
  const int full = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * cells));
  return absl::StrCat("[", std::string(full, '#'), std::string(cells - full, '.'), "]");
}

std::string Spark(const std::deque<double>& values, size_t cells) {
  static constexpr const char* kLevels[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const size_t begin = values.size() > cells ? values.size() - cells : 0;
  double top = 0;
  for (size_t i = begin; i < values.size(); ++i) {
    top = std::max(top, values[i]);
  }
  std::string out;
  for (size_t i = begin; i < values.size(); ++i) {
    out += kLevels[top > 0 ? static_cast<size_t>(std::lround(values[i] / top * 7)) : 0];
  }
  return out;
}

// "12 ms", "1.4 s", "85 us"; "-" for nothing.
std::string Latency(double seconds) {
  if (seconds < 0) {
    return "-";
  }
  if (seconds < 1e-3) {
    return absl::StrFormat("%.0f us", seconds * 1e6);
  }
  return seconds < 1 ? absl::StrFormat("%.3g ms", seconds * 1e3) : absl::StrFormat("%.3g s", seconds);
}

std::string Bytes(double bytes) { return HumanBytes(static_cast<uint64_t>(std::max(0.0, bytes))); }

std::string Named(absl::string_view name, const std::string& rest) {
  return absl::StrFormat("%-*s %s", kNameWidth, name, rest);
}

std::string Quantiles(const TopFrame& frame, const std::string& histogram) {
  return absl::StrCat(Latency(QuantileBetween(*frame.before, *frame.now, histogram, 0.5)), " median, ",
                      Latency(QuantileBetween(*frame.before, *frame.now, histogram, 0.95)), " p95");
}

using Parts = std::vector<std::pair<std::string, double>>;

// What is not nothing; the smallest together if there are more than `most`.
Parts PartsOfDram(const MetricsPage& page, size_t most) {
  Parts parts = page.By("embergate_dram_bytes", "part");
  std::erase_if(parts, [](const auto& part) { return part.second <= 0; });
  if (parts.size() <= most) {
    return parts;
  }
  std::pair<std::string, double> rest = {"", 0};
  size_t merged = 0;
  while (!parts.empty() && parts.size() + 1 > most) {
    const auto smallest =
        std::min_element(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    rest.second += smallest->second;
    parts.erase(smallest);
    ++merged;
  }
  rest.first = absl::StrCat(merged, " smaller parts");
  parts.push_back(rest);
  return parts;
}

void AddMemory(const TopFrame& frame, int bar, size_t most_parts, std::vector<std::string>& lines) {
  const double total = frame.now->Sum("embergate_dram_bytes");
  const double budget = frame.now->Value("embergate_dram_budget_bytes");
  const double resident = frame.now->Value("process_resident_memory_bytes");
  lines.push_back(Named(
      "DRAM", budget > 0 ? absl::StrCat(Bytes(total), " of a budget of ", Bytes(budget), "  ", Bar(total / budget, bar))
                         : absl::StrCat(Bytes(total), ", no budget set")));
  for (const auto& [part, bytes] : PartsOfDram(*frame.now, most_parts)) {
    lines.push_back(absl::StrFormat("  %-24s %10s  %s", part, Bytes(bytes), Bar(total > 0 ? bytes / total : 0, bar)));
  }
  lines.push_back(absl::StrFormat("  %-24s %10s", "resident, as Linux sees it", Bytes(resident)));
}

void AddFlash(const TopFrame& frame, int bar, std::vector<std::string>& lines) {
  if (!frame.now->Has("embergate_rows_requested_total")) {
    lines.push_back(Named("flash", "not used: no table, or it is held in DRAM"));
    return;
  }
  const double read = Rate(frame, "embergate_flash_read_bytes_total");
  lines.push_back(Named("flash", absl::StrFormat("%.0f reads/s, %s/s, %.0f %% of it asked for; %s",
                                                 Rate(frame, "embergate_flash_reads_total"), Bytes(read),
                                                 Percent(Rate(frame, "embergate_flash_useful_bytes_total"), read),
                                                 frame.now->Label("embergate_flash_reader_info", "backend"))));
  lines.push_back(Named("  a read", Quantiles(frame, "embergate_flash_read_latency_seconds")));
  const double hits = Rate(frame, "embergate_row_cache_hits_total");
  const double looked = hits + Rate(frame, "embergate_row_cache_misses_total");
  lines.push_back(Named("row cache", absl::StrFormat("%5.1f %% hits of %.0f rows/s  %s", Percent(hits, looked), looked,
                                                     Bar(looked > 0 ? hits / looked : 0, bar))));
  const double waited = Rate(frame, "embergate_step_flash_wait_seconds_total");
  lines.push_back(Named("  waiting", absl::StrFormat("%.1f %% of the time, computing waited for flash", 100 * waited)));
  const double errors = frame.now->Sum("embergate_flash_errors_total");
  if (errors > 0) {
    lines.push_back(Named("  errors", absl::StrFormat("%.0f since the start", errors)));
  }
}

std::string Cut(const std::string& line, size_t columns) {
  size_t seen = 0;
  for (size_t i = 0; i < line.size(); ++i) {
    if ((static_cast<unsigned char>(line[i]) & 0xC0) != 0x80 && seen++ == columns) {
      return line.substr(0, i);
    }
  }
  return line;
}

}  // namespace

size_t Columns(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0) != 0x80; }));
}

double GenerationRate(const MetricsPage& before, const MetricsPage& now, double seconds) {
  const double count = now.Sum("embergate_generation_tokens_total") - before.Sum("embergate_generation_tokens_total");
  return seconds > 0 ? std::max(0.0, count) / seconds : 0;
}

std::vector<std::string> TopLines(const TopFrame& frame, int width, int height) {
  const MetricsPage& now = *frame.now;
  const int bar = std::clamp(width - 62, 8, 40);
  std::vector<std::string> lines;
  const char* state = now.Value("embergate_draining") > 0 ? "draining"
                      : now.Value("embergate_ready") > 0  ? "ready"
                                                          : "loading";
  lines.push_back(absl::StrCat("embergate ", now.Label("embergate_build_info", "version"), " at ", frame.address, ": ",
                               state, now.Has("embergate_model_info") ? ", " : "",
                               now.Label("embergate_model_info", "name")));
  if (!now.Has("embergate_model_info")) {
    lines.push_back(Named("loading", Bar(now.Value("embergate_load_progress_ratio"), bar)));
  } else {
    lines.push_back(Named(
        "requests",
        absl::StrFormat("%.0f of %.0f running, %.0f of %.0f waiting; %.0f refused",
                        now.Value("embergate_num_requests_running"), now.Value("embergate_num_requests_running_max"),
                        now.Value("embergate_num_requests_waiting"), now.Value("embergate_num_requests_waiting_max"),
                        now.Value("embergate_requests_refused_total"))));
    lines.push_back(Named("tokens", absl::StrFormat("%.1f/s generated, %.1f/s of prompts computed",
                                                    GenerationRate(*frame.before, now, frame.seconds),
                                                    Rate(frame, "embergate_prompt_tokens_total"))));
    lines.push_back(Named("", Spark(frame.generated, static_cast<size_t>(std::max(10, width - kNameWidth - 2)))));
    lines.push_back(Named("first token", Quantiles(frame, "embergate_time_to_first_token_seconds")));
    lines.push_back(Named("next token", Quantiles(frame, "embergate_inter_token_latency_seconds")));
    std::vector<std::string> flash;
    AddFlash(frame, bar, flash);
    const size_t others = lines.size() + flash.size() + 3;  // the two other lines of DRAM, and the processor's
    AddMemory(frame, bar, static_cast<size_t>(std::max<int>(1, height - static_cast<int>(others))), lines);
    lines.insert(lines.end(), flash.begin(), flash.end());
  }
  lines.push_back(Named("processor", absl::StrFormat("%.2f CPUs", Rate(frame, "process_cpu_seconds_total"))));
  for (std::string& line : lines) {
    line = Cut(line, static_cast<size_t>(width));
  }
  return lines;
}

}  // namespace embergate::server
