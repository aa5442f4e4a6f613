// The real binary as a child process: run to its end, or started as a server on free ports.
#ifndef EMBERGATE_TESTS_SUPPORT_SERVER_PROCESS_H_
#define EMBERGATE_TESTS_SUPPORT_SERVER_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/temp_folder.h"

namespace embergate::test {

struct RunResult {
  int code = -1;  // exit code, or 128 + signal
  std::string out;
  std::string err;
};

// Runs `binary` with `args`, feeding it `input`; killed (and a test failure) after `timeout`.
RunResult RunBinary(const std::string& binary, const std::vector<std::string>& args, const std::string& input = "",
                    std::chrono::milliseconds timeout = std::chrono::seconds(60));

// `binary serve ARGS` on ephemeral ports of 127.0.0.1, which it finds in the server's own log. Killed when destroyed;
// the kernel kills it too if the test dies.
class ServerProcess {
 public:
  // `cgroup_procs`: a cgroup's cgroup.procs file, which the server enters before anything else; empty = none.
  ServerProcess(const std::string& binary, std::vector<std::string> args, const std::string& cgroup_procs = "");
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Until the log says "ready"; false if it ends, or after `timeout`.
  bool WaitReady(std::chrono::milliseconds timeout = std::chrono::seconds(30));
  // The exit code (128 + signal); nullopt and a test failure after `timeout`.
  std::optional<int> WaitExit(std::chrono::milliseconds timeout = std::chrono::seconds(30));
  void Signal(int signal);

  const std::string& address() const { return address_; }  // valid after WaitReady
  int metrics_port() const { return metrics_port_; }
  pid_t pid() const { return pid_; }
  std::string log() const;

 private:
  TempFolder folder_;
  pid_t pid_ = -1;
  std::optional<int> exit_;
  std::string address_;
  int metrics_port_ = 0;
};

// The body of http://127.0.0.1:port/path; empty if it cannot be had.
std::string HttpGet(int port, const std::string& path);

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_SERVER_PROCESS_H_
