#include "server/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/cli/human.h"

namespace embergate::server {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kRedraw{100};
constexpr seconds kLogEvery{5};
constexpr int kBarColumnsMax = 32;
constexpr int kBarColumnsMin = 8;

std::string Amount(ProgressBar::Unit unit, uint64_t value) {
  return unit == ProgressBar::Unit::kBytes ? HumanBytes(value) : HumanCount(value);
}

int Columns(std::FILE* out) {
  struct winsize size {};
  return ::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar(std::string label, Unit unit, std::FILE* out)
    : label_(std::move(label)),
      unit_(unit),
      out_(out),
      terminal_(::isatty(::fileno(out)) == 1),
      start_(Clock::now()),
      drawn_(start_),
      rate_time_(start_) {}

ProgressBar::~ProgressBar() {
  if (line_open_) {
    std::fputc('\n', out_);
    std::fflush(out_);
  }
}

std::string ProgressBar::Line(const std::string& label, Unit unit, uint64_t done, uint64_t total, double elapsed_s,
                              double rate_per_second, bool with_bar, int width) {
  std::string text;
  if (total == 0) {
    text = absl::StrCat(Amount(unit, done));
  } else {
    const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    text = absl::StrFormat("%3.0f %%  %s of %s", share * 100, Amount(unit, done), Amount(unit, total));
  }
  if (rate_per_second > 0) {
    absl::StrAppend(&text, "  ", Amount(unit, static_cast<uint64_t>(rate_per_second)), "/s");
  }
  if (total > 0 && done >= total) {
    absl::StrAppend(&text, "  in ", HumanDuration(elapsed_s));
  } else if (total > 0 && rate_per_second > 0) {
    absl::StrAppend(&text, "  ", HumanDuration(static_cast<double>(total - done) / rate_per_second), " left");
  }
  std::string line = absl::StrCat(label, "  ");
  if (with_bar && total > 0) {
    const int room = width - static_cast<int>(line.size() + text.size()) - 4;
    const int columns = std::min(kBarColumnsMax, room);
    if (columns >= kBarColumnsMin) {
      const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
      const int filled = static_cast<int>(share * columns);
      absl::StrAppend(&line, "[", std::string(static_cast<size_t>(filled), '#'),
                      std::string(static_cast<size_t>(columns - filled), '.'), "] ");
    }
  }
  line += text;
  if (line.size() > static_cast<size_t>(std::max(width, 1))) {
    line.resize(static_cast<size_t>(std::max(width, 1)));
  }
  return line;
}

void ProgressBar::Draw(Clock::time_point now) {
  const double elapsed_s = duration<double>(now - start_).count();
  // The rate of the last seconds says more about the time left than the mean since the start does; at the end the
  // mean is what counts.
  const double since = duration<double>(now - rate_time_).count();
  if (since >= 0.5) {
    const double current = static_cast<double>(done_ - std::min(done_, rate_done_)) / since;
    rate_ = rate_ == 0 ? current : 0.7 * rate_ + 0.3 * current;
    rate_time_ = now;
    rate_done_ = done_;
  }
  const bool complete = total_ > 0 && done_ >= total_;
  const double mean = elapsed_s > 0 ? static_cast<double>(done_) / elapsed_s : 0;
  const double rate = complete || rate_ == 0 ? mean : rate_;
  if (terminal_) {
    // "\x1b[K" clears what a longer line has left. One column stays free, or some terminals wrap.
    std::fprintf(out_, "\r%s\x1b[K",
                 Line(label_, unit_, done_, total_, elapsed_s, rate, true, Columns(out_) - 1).c_str());
    line_open_ = true;
  } else {
    std::fprintf(out_, "%s\n", Line(label_, unit_, done_, total_, elapsed_s, rate, false, 200).c_str());
  }
  std::fflush(out_);
  drawn_ = now;
}

void ProgressBar::Update(uint64_t done, uint64_t total) {
  done_ = done;
  total_ = total;
  const Clock::time_point now = Clock::now();
  if (now - drawn_ >= (terminal_ ? Clock::duration(kRedraw) : Clock::duration(kLogEvery))) {
    Draw(now);
  }
}

void ProgressBar::Finish() {
  if (terminal_) {
    Draw(Clock::now());
    std::fputc('\n', out_);
    std::fflush(out_);
    line_open_ = false;
  } else if (drawn_ != start_) {  // lines were written: one more says that it is done
    Draw(Clock::now());
  }
}

}  // namespace embergate::server
