// Ctrl-C in a program that talks with people: stops the answer under way; at the prompt, the second one in a row
// leaves, and the terminal is as it was found.
#ifndef EMBERGATE_SERVER_CLI_INTERRUPTER_H_
#define EMBERGATE_SERVER_CLI_INTERRUPTER_H_

#include <grpcpp/grpcpp.h>
#include <termios.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "server/signal_poller.h"

namespace embergate::server {

// Make it before other threads, as SignalPoller asks. Threads: Begin and End by one.
class Interrupter {
 public:
  // `prompt` is shown again after the hint that the first Ctrl-C at the prompt gives.
  explicit Interrupter(const std::string& prompt);
  ~Interrupter();
  Interrupter(const Interrupter&) = delete;
  Interrupter& operator=(const Interrupter&) = delete;

  // Between Begin and End, `context` is the call that Ctrl-C cancels.
  void Begin(grpc::ClientContext* context);
  // Whether the call was interrupted.
  bool End();

 private:
  void Loop();

  SignalPoller poller_;
  const std::string prompt_;
  std::optional<termios> terminal_;  // as it was found, before a line editor changed it
  std::mutex mutex_;
  grpc::ClientContext* context_ = nullptr;
  bool interrupted_ = false;
  int idle_interrupts_ = 0;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_INTERRUPTER_H_
