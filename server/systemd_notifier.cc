#include "server/systemd_notifier.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace embergate::server {
namespace {

std::string TakeVariable(const char* name) {
  const char* value = std::getenv(name);
  const std::string text = value == nullptr ? "" : value;
  unsetenv(name);
  return text;
}

int OpenSocket(const std::string& path) {
  // Longer paths and other kinds of address ("vsock:...") are none that a local manager uses.
  if (path.size() < 2 || path.size() >= sizeof(sockaddr_un::sun_path) || (path[0] != '/' && path[0] != '@')) {
    return -1;
  }
  return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

// A status is one line of the message.
std::string OneLine(absl::string_view text) { return absl::StrReplaceAll(text, {{"\n", " "}}); }

}  // namespace

SystemdNotifier SystemdNotifier::FromEnvironment() {
  const std::string socket_path = TakeVariable("NOTIFY_SOCKET");
  const std::string interval = TakeVariable("WATCHDOG_USEC");
  const std::string pid = TakeVariable("WATCHDOG_PID");
  int64_t microseconds = 0;
  int64_t watched = 0;
  if (!absl::SimpleAtoi(interval, &microseconds) || microseconds <= 0 ||
      (!pid.empty() && (!absl::SimpleAtoi(pid, &watched) || watched != getpid()))) {
    microseconds = 0;
  }
  return SystemdNotifier(socket_path, absl::Microseconds(microseconds));
}

SystemdNotifier::SystemdNotifier(std::string socket_path, absl::Duration watchdog)
    : socket_path_(std::move(socket_path)), watchdog_(watchdog), fd_(OpenSocket(socket_path_)) {}

SystemdNotifier::~SystemdNotifier() {
  StopWatchdog();
  if (fd_ >= 0) {
    close(fd_);
  }
}

void SystemdNotifier::Starting(absl::string_view status, absl::Duration more) {
  Send(absl::StrCat("STATUS=", OneLine(status), "\nEXTEND_TIMEOUT_USEC=", absl::ToInt64Microseconds(more)));
}

void SystemdNotifier::Ready(absl::string_view status) { Send(absl::StrCat("READY=1\nSTATUS=", OneLine(status))); }

void SystemdNotifier::Stopping(absl::string_view status) { Send(absl::StrCat("STOPPING=1\nSTATUS=", OneLine(status))); }

void SystemdNotifier::StartWatchdog(std::function<bool()> alive) {
  if (!enabled() || watchdog_ <= absl::ZeroDuration() || thread_.joinable()) {
    return;
  }
  thread_ = std::thread([this, alive = std::move(alive)] {
    while (true) {
      if (alive()) {
        Send("WATCHDOG=1");
      }
      if (stop_.WaitFor(watchdog_ / 4)) {
        return;
      }
    }
  });
}

void SystemdNotifier::StopWatchdog() {
  stop_.Set();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void SystemdNotifier::Send(absl::string_view message) const {
  if (fd_ < 0) {
    return;
  }
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_path_.data(), socket_path_.size());
  if (address.sun_path[0] == '@') {
    address.sun_path[0] = '\0';
  }
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_path_.size());
  sendto(fd_, message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&address),
         length);
}

bool ProgressCheck::Alive(bool busy, uint64_t steps) {
  const bool alive = !busy || !was_busy_ || steps != steps_;
  was_busy_ = busy;
  steps_ = steps;
  return alive;
}

}  // namespace embergate::server
