// embergate top: a server at a glance, in the terminal, as it is now.
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <deque>
#include <limits>
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

struct Size {
  int width = kWidth;
  int height = std::numeric_limits<int>::max();
};

Size TerminalSize() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col <= 20 || size.ws_row == 0) {
    return Size();
  }
  return Size{size.ws_col, size.ws_row};
}

// Keys of the terminal, one by one and not shown, as long as this lives; nothing where standard input is no terminal.
class Keys {
 public:
  Keys() {
    if (tcgetattr(STDIN_FILENO, &before_) != 0) {
      return;
    }
    termios keys = before_;
    keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    keys.c_cc[VMIN] = 1;
    keys.c_cc[VTIME] = 0;
    if (tcsetattr(STDIN_FILENO, TCSANOW, &keys) == 0) {
      fd_ = STDIN_FILENO;
    }
  }
  ~Keys() {
    if (fd_ >= 0) {
      tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    }
  }
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;

  int fd() const { return fd_; }  // -1: none

 private:
  termios before_{};
  int fd_ = -1;
};

// Until the next look, which any key brings at once; false to leave.
bool WaitForNext(SignalPoller& signals, const Keys& keys, int wait_ms) {
  pollfd fds[2] = {{signals.fd(), POLLIN, 0}, {keys.fd(), POLLIN, 0}};
  if (poll(fds, 2, wait_ms) <= 0) {
    return true;
  }
  if (fds[0].revents != 0) {
    return signals.Wait(0) == 0;  // takes it, or it would end the program when it is no longer held back
  }
  char key = 0;
  return read(keys.fd(), &key, 1) == 1 && key != 'q' && key != 'Q';
}

// Redraws from the top, line by line, so that nothing flickers.
void Draw(const std::vector<std::string>& lines) {
  std::string out = "\033[H";
  for (size_t i = 0; i < lines.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "" : "\n", lines[i], "\033[K");
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
  std::unique_ptr<Keys> keys;
  if (live) {
    // The default actions would leave the terminal as it is now.
    signals = std::make_unique<SignalPoller>(std::initializer_list<int>{SIGINT, SIGTERM, SIGHUP});
    keys = std::make_unique<Keys>();
    std::fputs("\033[?1049h\033[?25l", stdout);  // a screen of its own, no cursor
  }
  const int wait_ms = static_cast<int>(flags.interval * 1000);
  std::string failure;
  do {
    if (!live) {
      absl::SleepFor(absl::Milliseconds(wait_ms));
    } else if (!WaitForNext(*signals, *keys, wait_ms)) {
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
    const Size size = live ? TerminalSize() : Size();
    const std::vector<std::string> lines = TopLines(frame, size.width, size.height);
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
      "Rates and latencies are those of the last interval. q or Ctrl-C leaves. Into a pipe: one look after another.");
  top->callback([flags] {
    if (const int code = Run(*flags); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
