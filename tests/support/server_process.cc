#include "tests/support/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "gtest/gtest.h"

namespace embergate::test {
namespace {

using Clock = std::chrono::steady_clock;

// Standard streams are files: nothing can fill up and block.
pid_t Spawn(const std::string& binary, const std::vector<std::string>& args, const std::string& in,
            const std::string& out, const std::string& err, const std::string& cgroup_procs = "") {
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& arg : args) {
    argv.push_back(const_cast<char*>(arg.c_str()));
  }
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
      _exit(127);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    const int files[3] = {open(in.c_str(), O_RDONLY), open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600),
                          open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600)};
    for (int i = 0; i < 3; ++i) {
      if (files[i] < 0 || dup2(files[i], i) < 0) {
        _exit(127);
      }
    }
    if (!cgroup_procs.empty()) {
      const int procs = open(cgroup_procs.c_str(), O_WRONLY);
      if (procs < 0 || write(procs, "0", 1) != 1) {
        _exit(127);
      }
      close(procs);
    }
    execv(binary.c_str(), argv.data());
    _exit(127);
  }
  EXPECT_GT(pid, 0) << "fork failed";
  return pid;
}

int ExitCode(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

std::optional<int> WaitFor(pid_t pid, std::chrono::milliseconds timeout) {
  const Clock::time_point end = Clock::now() + timeout;
  while (true) {
    int status = 0;
    const pid_t waited = waitpid(pid, &status, WNOHANG);
    if (waited == pid) {
      return ExitCode(status);
    }
    if (waited < 0 && errno != EINTR) {
      return std::nullopt;
    }
    if (Clock::now() > end) {
      return std::nullopt;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void Kill(pid_t pid) {
  kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
}

// The word after `before` in `text`; empty if `before` or the end of its line is not there.
std::string WordAfter(const std::string& text, const std::string& before) {
  const size_t at = text.find(before);
  const size_t end = at == std::string::npos ? at : text.find_first_of(" ,\n", at + before.size());
  return end == std::string::npos ? "" : text.substr(at + before.size(), end - at - before.size());
}

}  // namespace

RunResult RunBinary(const std::string& binary, const std::vector<std::string>& args, const std::string& input,
                    std::chrono::milliseconds timeout) {
  const TempFolder folder;
  const std::string in = folder.Write("in", input);
  const std::string out = folder.File("out");
  const std::string err = folder.File("err");
  const pid_t pid = Spawn(binary, args, in, out, err);
  RunResult result;
  if (const std::optional<int> code = WaitFor(pid, timeout); code.has_value()) {
    result.code = *code;
  } else {
    Kill(pid);
    ADD_FAILURE() << binary << " " << (args.empty() ? "" : args[0]) << " did not end in time";
  }
  result.out = ReadFile(out);
  result.err = ReadFile(err);
  return result;
}

ServerProcess::ServerProcess(const std::string& binary, std::vector<std::string> args,
                             const std::string& cgroup_procs) {
  args.insert(args.begin(), {"serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"});
  pid_ = Spawn(binary, args, "/dev/null", folder_.File("out"), folder_.File("err"), cgroup_procs);
}

ServerProcess::~ServerProcess() {
  if (!exit_.has_value()) {
    Kill(pid_);
  }
  if (::testing::Test::HasFailure()) {
    std::fprintf(stderr, "---- log of the server ----\n%s---- end ----\n", log().c_str());
  }
}

bool ServerProcess::WaitReady(std::chrono::milliseconds timeout) {
  const Clock::time_point end = Clock::now() + timeout;
  while (Clock::now() < end) {
    const std::string text = log();
    if (text.find(" ready\n") != std::string::npos) {
      address_ = WordAfter(text, "listening on ");
      metrics_port_ = std::atoi(WordAfter(text, "metrics on port ").c_str());
      return true;
    }
    if ((exit_ = WaitFor(pid_, std::chrono::milliseconds(0))).has_value()) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

std::optional<int> ServerProcess::WaitExit(std::chrono::milliseconds timeout) {
  if (!exit_.has_value()) {
    exit_ = WaitFor(pid_, timeout);
    EXPECT_TRUE(exit_.has_value()) << "the server did not end in time";
  }
  return exit_;
}

void ServerProcess::Signal(int signal) { kill(pid_, signal); }

std::string ServerProcess::log() const {
  std::ifstream in(folder_.File("err"), std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string response;
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n = 0; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
      response.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  const size_t body = response.find("\r\n\r\n");
  return response.rfind("HTTP/1.1 200", 0) == 0 && body != std::string::npos ? response.substr(body + 4) : "";
}

}  // namespace embergate::test
