// systemd's notification protocol (sd_notify(3), sd_watchdog_enabled(3)): datagrams to the socket that $NOTIFY_SOCKET
// names. Without that variable nothing is sent, so a server need not know how it was started.
#ifndef EMBERGATE_SERVER_SYSTEMD_NOTIFIER_H_
#define EMBERGATE_SERVER_SYSTEMD_NOTIFIER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/stop_signal.h"

namespace embergate::server {

// Threads: any. Sending never blocks; a message that cannot be delivered is dropped, as sd_notify's is.
class SystemdNotifier {
 public:
  // Takes $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID out of the environment, so that no child answers for this
  // process. Call before other threads exist.
  static SystemdNotifier FromEnvironment();

  // `socket_path` as in $NOTIFY_SOCKET ("@..." is an abstract address); empty = nobody listens. `watchdog` is the
  // interval after which systemd ends a silent service; zero = none.
  SystemdNotifier(std::string socket_path, absl::Duration watchdog);
  ~SystemdNotifier();
  SystemdNotifier(const SystemdNotifier&) = delete;
  SystemdNotifier& operator=(const SystemdNotifier&) = delete;

  bool enabled() const { return fd_ >= 0; }
  absl::Duration watchdog() const { return watchdog_; }

  // Loading goes on: shown by `systemctl status`, and another `more` is granted before the start counts as failed.
  void Starting(absl::string_view status, absl::Duration more);
  void Ready(absl::string_view status);
  void Stopping(absl::string_view status);

  // From now on asks `alive` four times per watchdog interval and tells systemd when it answers true. `alive` is called
  // from a thread of the notifier's own, until StopWatchdog. Does nothing without a watchdog.
  void StartWatchdog(std::function<bool()> alive);
  void StopWatchdog();

 private:
  void Send(absl::string_view message) const;

  const std::string socket_path_;
  const absl::Duration watchdog_;
  const int fd_;
  StopSignal stop_;
  std::thread thread_;
};

// Whether an engine gets on: it does unless it has had requests for longer than it has finished steps. Asked again and
// again by one thread.
class ProgressCheck {
 public:
  // `busy`: requests run or wait; `steps`: how many steps were finished so far. True if idle, at first, or when a step
  // was finished since the last call.
  bool Alive(bool busy, uint64_t steps);

 private:
  bool was_busy_ = false;
  uint64_t steps_ = 0;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SYSTEMD_NOTIFIER_H_
