// Waits for signals and wake-ups in an ordinary thread, so that no code runs inside a signal handler.
#ifndef EMBERGATE_SERVER_SIGNAL_POLLER_H_
#define EMBERGATE_SERVER_SIGNAL_POLLER_H_

#include <csignal>
#include <initializer_list>

namespace embergate::server {

// Make it before any other thread exists: it blocks the signals in this thread, and threads inherit that.
// Threads: Wait by one, Wake by any.
class SignalPoller {
 public:
  explicit SignalPoller(std::initializer_list<int> signals);
  ~SignalPoller();
  SignalPoller(const SignalPoller&) = delete;
  SignalPoller& operator=(const SignalPoller&) = delete;

  // Blocks, at most `timeout_ms` unless that is negative. The signal that came, or 0 after a Wake (several may count as
  // one) or the timeout.
  int Wait(int timeout_ms = -1);
  void Wake();

  // Readable while one of the signals waits, for a caller that polls other things beside.
  int fd() const { return signal_fd_; }

 private:
  sigset_t previous_;
  int signal_fd_;
  int wake_fd_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SIGNAL_POLLER_H_
