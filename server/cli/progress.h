// A progress bar for work that takes seconds to minutes: converting, synthesising, loading. On a terminal one line,
// redrawn ten times a second at most, with share, bytes, rate and time left; elsewhere (a log, a pipe) a plain line
// every five seconds, and nothing for work that is done sooner.
#ifndef EMBERGATE_SERVER_CLI_PROGRESS_H_
#define EMBERGATE_SERVER_CLI_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace embergate::server {

// Threads: one at a time. Writes to `out` (stderr by default), which stays the caller's.
//
//   ProgressBar bar("writing");
//   options.progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); };
//   ...
//   bar.Finish();   // leaves the line with the time taken; without it, the destructor just ends the line
class ProgressBar {
 public:
  enum class Unit { kBytes, kItems };

  explicit ProgressBar(std::string label, Unit unit = Unit::kBytes, std::FILE* out = stderr);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Cheap: looks at the clock and mostly returns. `total` may grow; 0 = not known yet.
  void Update(uint64_t done, uint64_t total);
  void Finish();

  // The text of a line for these values, `width` columns at most; for tests.
  static std::string Line(const std::string& label, Unit unit, uint64_t done, uint64_t total, double seconds,
                          double rate_per_second, bool with_bar, int width);

 private:
  using Clock = std::chrono::steady_clock;
  void Draw(Clock::time_point now);

  const std::string label_;
  const Unit unit_;
  std::FILE* const out_;
  const bool terminal_;
  const Clock::time_point start_;
  Clock::time_point drawn_;  // when last
  Clock::time_point rate_time_;
  uint64_t rate_done_ = 0;
  double rate_ = 0;  // per second, smoothed over a few seconds
  uint64_t done_ = 0;
  uint64_t total_ = 0;
  bool line_open_ = false;  // the cursor stands at the end of an unfinished line
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_PROGRESS_H_
