#include "server/signal_poller.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace embergate::server {

SignalPoller::SignalPoller(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) {
    sigaddset(&set, signal);
  }
  pthread_sigmask(SIG_BLOCK, &set, &previous_);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (signal_fd_ < 0 || wake_fd_ < 0) {
    // Only when the process has no file descriptors left, before it has opened any of its own.
    std::perror("embergate: signalfd");
    std::exit(1);
  }
}

SignalPoller::~SignalPoller() {
  close(signal_fd_);
  close(wake_fd_);
  pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
}

int SignalPoller::Wait(int timeout_ms) {
  while (true) {
    pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    const int ready = poll(fds, 2, timeout_ms);
    if (ready == 0 || (ready < 0 && errno != EINTR)) {
      return 0;
    }
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      return static_cast<int>(info.ssi_signo);
    }
    uint64_t count = 0;
    if (read(wake_fd_, &count, sizeof(count)) == static_cast<ssize_t>(sizeof(count))) {
      return 0;
    }
  }
}

void SignalPoller::Wake() {
  const uint64_t one = 1;
  // Fails only when 2^64 - 2 wake-ups are pending.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

}  // namespace embergate::server
