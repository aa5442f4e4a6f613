// The datagrams that a service manager gets, over a socket of the test's own.
#include "server/systemd_notifier.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

// What systemd's end does. `name` as in $NOTIFY_SOCKET.
class Manager {
 public:
  explicit Manager(const std::string& name) : fd_(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name[0] == '@') {
      address.sun_path[0] = '\0';
    }
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), length), 0);
  }
  ~Manager() { close(fd_); }
  // The next message; empty when none comes within `timeout_ms`.
  std::string Next(int timeout_ms = 5000) {
    pollfd entry = {fd_, POLLIN, 0};
    char text[512];
    if (poll(&entry, 1, timeout_ms) != 1) {
      return "";
    }
    const ssize_t bytes = recv(fd_, text, sizeof(text), 0);
    return bytes > 0 ? std::string(text, static_cast<size_t>(bytes)) : "";
  }

 private:
  int fd_;
};

TEST(SystemdNotifierTest, LifeOfAService) {
  const test::TempFolder folder;
  Manager manager(folder.File("notify"));
  SystemdNotifier notifier(folder.File("notify"), absl::ZeroDuration());
  ASSERT_TRUE(notifier.enabled());
  notifier.Starting("loading: 3 %", absl::Seconds(90));
  EXPECT_EQ(manager.Next(), "STATUS=loading: 3 %\nEXTEND_TIMEOUT_USEC=90000000");
  notifier.Ready("serving a\nmodel");
  EXPECT_EQ(manager.Next(), "READY=1\nSTATUS=serving a model");
  notifier.Stopping("draining");
  EXPECT_EQ(manager.Next(), "STOPPING=1\nSTATUS=draining");
}

TEST(SystemdNotifierTest, AbstractAddress) {
  const std::string name = "@embergate-notify-test-" + std::to_string(getpid());
  Manager manager(name);
  SystemdNotifier notifier(name, absl::ZeroDuration());
  notifier.Ready("x");
  EXPECT_EQ(manager.Next(), "READY=1\nSTATUS=x");
}

TEST(SystemdNotifierTest, WatchdogSpeaksOnlyWhileAlive) {
  const test::TempFolder folder;
  Manager manager(folder.File("notify"));
  SystemdNotifier notifier(folder.File("notify"), absl::Milliseconds(40));
  std::atomic<bool> alive{true};
  std::atomic<int> asked{0};
  notifier.StartWatchdog([&] {
    ++asked;
    return alive.load();
  });
  EXPECT_EQ(manager.Next(), "WATCHDOG=1");
  EXPECT_EQ(manager.Next(), "WATCHDOG=1");
  alive = false;
  const int before = asked;
  while (asked < before + 3) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  while (!manager.Next(0).empty()) {
  }
  const int quiet_from = asked;
  while (asked < quiet_from + 3) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(manager.Next(0), "");
  notifier.StopWatchdog();
}

TEST(SystemdNotifierTest, NobodyListens) {
  SystemdNotifier none("", absl::Seconds(1));
  EXPECT_FALSE(none.enabled());
  none.Ready("x");
  none.StartWatchdog([] { return true; });
  SystemdNotifier gone("/nowhere/at/all", absl::ZeroDuration());
  gone.Ready("x");  // dropped
  EXPECT_FALSE(SystemdNotifier(std::string(200, '/'), absl::ZeroDuration()).enabled());
  EXPECT_FALSE(SystemdNotifier("vsock:2:1", absl::ZeroDuration()).enabled());
}

TEST(SystemdNotifierTest, TakesItsVariables) {
  setenv("NOTIFY_SOCKET", "/run/x", 1);
  setenv("WATCHDOG_USEC", "2000000", 1);
  setenv("WATCHDOG_PID", std::to_string(getpid()).c_str(), 1);
  {
    const SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
    EXPECT_TRUE(notifier.enabled());
    EXPECT_EQ(notifier.watchdog(), absl::Seconds(2));
  }
  EXPECT_EQ(std::getenv("NOTIFY_SOCKET"), nullptr);
  EXPECT_EQ(std::getenv("WATCHDOG_USEC"), nullptr);
  setenv("NOTIFY_SOCKET", "/run/x", 1);
  setenv("WATCHDOG_USEC", "2000000", 1);
  setenv("WATCHDOG_PID", "1", 1);  // meant for another process
  EXPECT_EQ(SystemdNotifier::FromEnvironment().watchdog(), absl::ZeroDuration());
}

TEST(ProgressCheckTest, StuckIsBusyWithoutSteps) {
  ProgressCheck check;
  EXPECT_TRUE(check.Alive(false, 7));
  EXPECT_TRUE(check.Alive(true, 7)) << "has only just got work";
  EXPECT_FALSE(check.Alive(true, 7));
  EXPECT_FALSE(check.Alive(true, 7));
  EXPECT_TRUE(check.Alive(true, 8));
  EXPECT_FALSE(check.Alive(true, 8));
  EXPECT_TRUE(check.Alive(false, 8)) << "the work has gone away";
}

}  // namespace
}  // namespace embergate::server
