// embergate top: a server at a glance, in the terminal, as it is now.
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/cli/cli.h"
#include "server/cli/metrics_page.h"
#include "server/cli/top_view.h"
#include "server/signal_poller.h"

namespace embergate::server {
namespace {

constexpr int kWidth = 100;  // where the terminal does not tell
constexpr size_t kHistory = 400;

struct TopFlags {
  std::string metrics = "127.0.0.1:9464";
  double interval = 1;
  bool once = false;
};

int TerminalWidth() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : kWidth;
}

// Redraws from the top, line by line, so that nothing flickers.
void Draw(const std::vector<std::string>& lines) {
  std::string out = "\033[H";
  for (const std::string& line : lines) {
    absl::StrAppend(&out, line, "\033[K\n");
  }
  out += "\033[J";
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
}

int Run(const TopFlags& flags) {
  const absl::Duration limit = absl::Seconds(5);
  const bool live = !flags.once && isatty(STDOUT_FILENO) != 0;
  absl::StatusOr<std::string> text = FetchMetrics(flags.metrics, limit);
  if (!text.ok()) {
    std::fprintf(stderr, "embergate top: %s; is the server running there, and not with --metrics off?\n",
                 std::string(text.status().message()).c_str());
    return 1;
  }
  MetricsPage before = MetricsPage::Parse(*text);
  absl::Time before_time = absl::Now();
  std::deque<double> generated;
  std::unique_ptr<SignalPoller> signals;
  if (live) {
    // The default actions would leave the terminal as it is now.
    signals = std::make_unique<SignalPoller>(std::initializer_list<int>{SIGINT, SIGTERM, SIGHUP});
    std::fputs("\033[?1049h\033[?25l", stdout);  // a screen of its own, no cursor
  }
  const int wait_ms = static_cast<int>(flags.interval * 1000);
  std::string failure;
  do {
    if (!live) {
      absl::SleepFor(absl::Milliseconds(wait_ms));
    } else if (signals->Wait(wait_ms) != 0) {
      break;
    }
    text = FetchMetrics(flags.metrics, limit);
    if (!text.ok()) {
      failure = std::string(text.status().message());
      break;
    }
    MetricsPage now = MetricsPage::Parse(*text);
    const absl::Time now_time = absl::Now();
    TopFrame frame;
    frame.address = flags.metrics;
    frame.seconds = absl::ToDoubleSeconds(now_time - before_time);
    frame.before = &before;
    frame.now = &now;
    generated.push_back(GenerationRate(before, now, frame.seconds));
    if (generated.size() > kHistory) {
      generated.pop_front();
    }
    frame.generated = generated;
    const std::vector<std::string> lines = TopLines(frame, TerminalWidth());
    if (live) {
      Draw(lines);
    } else {
      for (const std::string& line : lines) {
        std::printf("%s\n", line.c_str());
      }
      std::printf("%s", flags.once ? "" : "\n");
      std::fflush(stdout);
    }
    before = std::move(now);
    before_time = now_time;
  } while (!flags.once);
  if (live) {
    std::fputs("\033[?25h\033[?1049l", stdout);
    std::fflush(stdout);
  }
  if (!failure.empty()) {
    std::fprintf(stderr, "embergate top: %s\n", failure.c_str());
    return 1;
  }
  return 0;
}

}  // namespace

void AddTop(CLI::App& app) {
  CLI::App* top = app.add_subcommand("top", "Watch a server: requests, tokens, DRAM by part, flash");
  auto flags = std::make_shared<TopFlags>();
  top->add_option("--metrics", flags->metrics, "The server's metrics endpoint: HOST:PORT")
      ->envname("EMBERGATE_METRICS")
      ->capture_default_str();
  top->add_option("--interval", flags->interval, "Seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  top->add_flag("--once", flags->once, "Print one look, over one interval, and end");
  top->footer(
      "Rates and latencies are those of the last interval. Ctrl-C leaves. Into a pipe: one look after another.");
  top->callback([flags] {
    if (const int code = Run(*flags); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
