#include "server/cli/interrupter.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace embergate::server {

Interrupter::Interrupter(const std::string& prompt) : poller_({SIGINT}), prompt_(prompt) {
  if (termios found{}; tcgetattr(STDIN_FILENO, &found) == 0) {
    terminal_ = found;
  }
  thread_ = std::thread([this] { Loop(); });
}

Interrupter::~Interrupter() {
  stop_ = true;
  poller_.Wake();
  thread_.join();
}

void Interrupter::Begin(grpc::ClientContext* context) {
  std::lock_guard<std::mutex> lock(mutex_);
  context_ = context;
  interrupted_ = false;
  idle_interrupts_ = 0;
}

bool Interrupter::End() {
  std::lock_guard<std::mutex> lock(mutex_);
  context_ = nullptr;
  return interrupted_;
}

void Interrupter::Loop() {
  while (!stop_) {
    if (poller_.Wait() == 0) {
      continue;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (context_ != nullptr) {
      interrupted_ = true;
      context_->TryCancel();
    } else if (++idle_interrupts_ == 1) {
      std::printf("\n(Ctrl-C again or /quit to leave)\n%s", prompt_.c_str());
      std::fflush(stdout);
    } else {
      std::printf("\n");
      std::fflush(stdout);
      if (terminal_.has_value()) {
        tcsetattr(STDIN_FILENO, TCSANOW, &*terminal_);
      }
      std::_Exit(130);  // the main thread sits in a read that nothing else ends
    }
  }
}

}  // namespace embergate::server
