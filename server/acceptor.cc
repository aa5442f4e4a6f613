#include "server/acceptor.h"

#include <linux/tcp.h>
#include <malloc.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/cli/human.h"
#include "server/process_memory.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

// Connections that the kernel completes while we are busy.
constexpr int kBacklog = 512;
// Out of descriptors or memory: those who call have to wait until somebody has left.
constexpr int kExhaustedPauseMs = 50;

// Between two looks at the heap: without connections, while it is small, and while it is large.
constexpr int kUnwatchedMs = 1000;
constexpr int kCalmMs = 50;
constexpr int kFloodMs = 10;
constexpr int kFloodWaitMs = 2000;
// As much as a call under way may well send: acknowledgements, window updates.
constexpr uint64_t kCallBytesPerMs = 400;
// Whoever sends this fraction of what the worst does is cut off with it.
constexpr uint64_t kFloodShare = 4;
// What the kernel keeps of a connection that we do not keep up with, and gRPC still reads when it has been cut off: 130
// bytes of a reset call cost 17 KB. A client 100 ms away can send ten times this in a second.
constexpr int kReceiveBytes = 64 << 10;

uint64_t BytesReceived(int fd) {
  tcp_info info = {};
  socklen_t bytes = sizeof(info);
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 ? info.tcpi_bytes_received : 0;
}

absl::Status CannotListen(const std::string& where, const char* what) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", where, ": ", what));
}

uint16_t PortOf(int fd) {
  sockaddr_storage address = {};
  socklen_t bytes = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
    return 0;
  }
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

void SetPort(sockaddr_storage* address, uint16_t port) {
  if (address->ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = htons(port);
  }
}

ino_t InodeOf(int fd) {
  struct stat info = {};
  return fstat(fd, &info) == 0 ? info.st_ino : 0;
}

}  // namespace

absl::StatusOr<ListeningAddress> ListeningAddress::Bind(const std::string& address) {
  ListeningAddress listening;
  listening.name_ = address;
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    absl::ConsumePrefix(&rest, "//");  // unix:///path
    EMBERGATE_RETURN_IF_ERROR(listening.BindUnix(std::string(rest), /*abstract=*/false));
    return listening;
  }
  if (absl::ConsumePrefix(&rest, "unix-abstract:")) {
    EMBERGATE_RETURN_IF_ERROR(listening.BindUnix(std::string(rest), /*abstract=*/true));
    return listening;
  }
  absl::ConsumePrefix(&rest, "ipv4:") || absl::ConsumePrefix(&rest, "ipv6:") || absl::ConsumePrefix(&rest, "dns:///");
  const size_t colon = rest.rfind(':');
  absl::string_view host = rest.substr(0, colon);
  const bool bracketed = absl::ConsumePrefix(&host, "[") && absl::ConsumeSuffix(&host, "]");
  int port = -1;
  const bool numeric = colon != absl::string_view::npos && absl::SimpleAtoi(rest.substr(colon + 1), &port);
  if (!numeric || port < 0 || port > 65535 || (!bracketed && absl::StrContains(host, ':'))) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", address, ": an address is HOST:PORT, [V6]:PORT or unix:PATH"));
  }
  EMBERGATE_RETURN_IF_ERROR(listening.BindTcp(std::string(host), std::to_string(port)));
  listening.name_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", PortOf(listening.sockets_.front().fd));
  return listening;
}

absl::Status ListeningAddress::BindUnix(const std::string& path, bool abstract) {
  Socket socket;
  auto* const address = reinterpret_cast<sockaddr_un*>(&socket.address);
  address->sun_family = AF_UNIX;
  if (path.empty() || path.size() + 1 >= sizeof(address->sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen on ", name_, ": a socket's path has 1 to ",
                                                   sizeof(address->sun_path) - 2, " bytes"));
  }
  std::memcpy(address->sun_path + (abstract ? 1 : 0), path.data(), path.size());
  socket.bytes = sizeof(*address);
  if (abstract) {
    socket.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  } else {
    path_ = path;
  }
  EMBERGATE_RETURN_IF_ERROR(BindSocket(&socket));
  sockets_.push_back(socket);
  return absl::OkStatus();
}

absl::Status ListeningAddress::BindTcp(const std::string& host, const std::string& port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.empty() || host == "*" ? nullptr : host.c_str(), port.c_str(), &hints, &found);
      error != 0) {
    return CannotListen(name_, gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> all(found, freeaddrinfo);
  absl::Status missing;
  for (addrinfo* one = found; one != nullptr; one = one->ai_next) {
    Socket socket;
    std::memcpy(&socket.address, one->ai_addr, one->ai_addrlen);
    socket.bytes = one->ai_addrlen;
    // [::] alone is everybody; beside an IPv4 address of the same name it is not.
    socket.v6_only = found->ai_next != nullptr;
    if (!sockets_.empty()) {
      SetPort(&socket.address, PortOf(sockets_.front().fd));  // what was chosen for port 0
    }
    const absl::Status bound = BindSocket(&socket);
    if (bound.ok()) {
      SetPort(&socket.address, PortOf(socket.fd));  // if it is bound again
      sockets_.push_back(socket);
    } else if (absl::IsNotFound(bound)) {
      missing = absl::UnavailableError(bound.message());  // a machine without IPv6 has half of localhost
    } else {
      return bound;
    }
  }
  return sockets_.empty() ? missing : absl::OkStatus();
}

absl::Status ListeningAddress::BindSocket(Socket* socket) const {
  const auto* const address = reinterpret_cast<const sockaddr*>(&socket->address);
  const int fd = ::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    const absl::Status status = CannotListen(name_, std::strerror(errno));
    return errno == EAFNOSUPPORT ? absl::NotFoundError(status.message()) : status;
  }
  if (address->sa_family != AF_UNIX) {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kReceiveBytes, sizeof(kReceiveBytes));  // connections inherit it
  }
  if (address->sa_family == AF_INET6) {
    const int only = socket->v6_only ? 1 : 0;
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only));
  }
  struct stat info = {};
  if (!path_.empty() && lstat(path_.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    unlink(path_.c_str());
  }
  int error = 0;
  // SO_REUSEADDR gives us a port whose last server has just ended, but also one that another has bound with it too and
  // does not listen on yet: of the two, the second to listen would fail, a model's load later. So only where it has to
  // be, and never for longer than it takes to bind.
  for (const int reuse : {0, 1, 0}) {
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
    if (socket->fd < 0) {
      error = bind(fd, address, socket->bytes) == 0 ? 0 : errno;
      socket->fd = error == 0 ? fd : -1;
    }
  }
  if (error != 0) {
    close(fd);
    const absl::Status status = CannotListen(name_, std::strerror(error));
    return error == EADDRNOTAVAIL ? absl::NotFoundError(status.message()) : status;
  }
  return absl::OkStatus();
}

absl::Status ListeningAddress::Listen() {
  for (Socket& socket : sockets_) {
    if (const absl::Status status = ListenOn(&socket); !status.ok()) {
      Refuse();
      return status;
    }
  }
  listening_ = true;
  return absl::OkStatus();
}

absl::Status ListeningAddress::ListenOn(Socket* socket) const {
  if (socket->fd < 0) {
    EMBERGATE_RETURN_IF_ERROR(BindSocket(socket));
  }
  // Connections inherit it: what is left of them must not keep the next server from the port.
  const int reuse = 1;
  setsockopt(socket->fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
  return listen(socket->fd, kBacklog) == 0 ? absl::OkStatus() : CannotListen(name_, std::strerror(errno));
}

void ListeningAddress::Refuse() {
  listening_ = false;
  for (Socket& socket : sockets_) {
    close(socket.fd);  // nothing else ends listening for every kind of socket
    socket.fd = -1;
    BindSocket(&socket).IgnoreError();  // Listen tries again, and says why not
  }
}

std::vector<int> ListeningAddress::listeners() const {
  std::vector<int> fds;
  for (size_t i = 0; listening_ && i < sockets_.size(); ++i) {
    fds.push_back(sockets_[i].fd);
  }
  return fds;
}

ListeningAddress::ListeningAddress(ListeningAddress&& other) noexcept
    : name_(std::move(other.name_)),
      path_(std::move(other.path_)),
      listening_(other.listening_),
      sockets_(std::move(other.sockets_)) {
  other.path_.clear();
  other.sockets_.clear();
}

ListeningAddress::~ListeningAddress() {
  for (const Socket& socket : sockets_) {
    close(socket.fd);
  }
  if (!sockets_.empty() && !path_.empty()) {
    unlink(path_.c_str());
  }
}

Acceptor::Acceptor(std::vector<Port> ports, int connections_max, absl::Duration silence_max)
    : ports_(std::move(ports)),
      connections_max_(static_cast<size_t>(connections_max)),
      silence_max_ms_(static_cast<unsigned int>(absl::ToInt64Milliseconds(silence_max))),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      listen_(!ports_.empty() && ports_.front().address.listening()),
      thread_([this] { Run(); }) {}

Acceptor::~Acceptor() {
  Stop();
  close(wake_fd_);
}

void Acceptor::Wake() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

void Acceptor::SetListening(bool listening) {
  absl::MutexLock lock(&mutex_);
  listen_ = listening;
  const uint64_t order = ++orders_;
  Wake();
  const auto done = [this, order]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopped_ || obeyed_ >= order; };
  mutex_.Await(absl::Condition(&done));
}

void Acceptor::Stop() {
  if (!thread_.joinable()) {
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  Wake();
  thread_.join();
  ports_.clear();
}

void Acceptor::CutOffAll() {
  absl::MutexLock lock(&mutex_);
  Sweep();
  for (const Connection& connection : connections_) {
    shutdown(connection.fd, SHUT_RDWR);  // gRPC sees its end, and closes it
  }
}

void Acceptor::WatchMemory(uint64_t bytes) {
  const uint64_t heap = HeapBytes();
  absl::MutexLock lock(&mutex_);
  heap_watched_ = heap + bytes / 2;
  heap_max_.store(heap + bytes, std::memory_order_relaxed);
}

Acceptor::Stats Acceptor::stats() {
  absl::MutexLock lock(&mutex_);
  Sweep();
  return {static_cast<int>(connections_.size()), static_cast<int>(connections_max_), accepted_, refused_, cut_off_};
}

bool Acceptor::Obey() {
  bool listen = false;
  uint64_t orders = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) {
      return false;
    }
    listen = listen_;
    orders = orders_;
  }
  for (Port& port : ports_) {
    ListeningAddress& address = port.address;
    if (address.listening() == listen) {
      continue;
    }
    if (!listen) {
      address.Refuse();
      spdlog::info("{}: connections are refused", address.name());
    } else if (const absl::Status status = address.Listen(); status.ok()) {
      spdlog::info("listening on {}", address.name());
      cannot_listen_ = false;
    } else if (!cannot_listen_) {
      spdlog::error("{}; this is tried again", std::string(status.message()));
      cannot_listen_ = true;
    }
  }
  absl::MutexLock lock(&mutex_);
  obeyed_ = orders;
  return true;
}

void Acceptor::Run() {
  std::vector<pollfd> fds;
  std::vector<const Handler*> handlers;
  WatchState watch;
  while (Obey()) {
    fds = {{wake_fd_, POLLIN, 0}};
    handlers = {nullptr};
    for (const Port& port : ports_) {
      for (const int fd : port.address.listeners()) {
        fds.push_back({fd, POLLIN, 0});
        handlers.push_back(&port.handler);
      }
    }
    const int pause_ms = Watch(&watch);
    // While there is too much to work off, who comes has to wait.
    if (poll(fds.data(), watch.waits > 0 ? 1 : fds.size(), pause_ms) < 0 && errno != EINTR) {
      poll(nullptr, 0, kExhaustedPauseMs);  // ENOMEM: it will pass
      continue;
    }
    if (fds[0].revents != 0) {
      uint64_t woken = 0;
      [[maybe_unused]] const ssize_t read_bytes = read(wake_fd_, &woken, sizeof(woken));
      continue;
    }
    for (size_t i = 1; i < fds.size() && watch.waits == 0; ++i) {
      if (fds[i].revents != 0) {
        Accept(fds[i].fd, *handlers[i]);
      }
    }
  }
}

void Acceptor::Accept(int listener, const Handler& handler) {
  const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      pollfd wake = {wake_fd_, POLLIN, 0};
      poll(&wake, 1, kExhaustedPauseMs);
    }
    return;  // anything else is the end of that one connection
  }
  {
    absl::MutexLock lock(&mutex_);
    if (connections_.size() >= connections_max_) {
      Sweep();
    }
    if (connections_.size() >= connections_max_) {
      ++refused_;
      close(fd);
      return;
    }
    ++accepted_;
    connections_.push_back({fd, InodeOf(fd), /*seen=*/false, 0, 0});
  }
  const int on = 1;
  // Both fail on Unix sockets, which have no delay and lose nothing.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence_max_ms_, sizeof(silence_max_ms_));
  handler(listener, fd);
}

int Acceptor::Watch(WatchState* state) {
  const uint64_t heap_max = heap_max_.load(std::memory_order_relaxed);
  if (heap_max == 0) {
    return kUnwatchedMs;
  }
  const uint64_t heap = HeapBytes();
  absl::MutexLock lock(&mutex_);
  // Only for a while after a cut: memory that nobody floods must not make us deaf.
  state->waits = std::max(0, state->waits - 1);
  if (heap <= heap_max) {
    state->waits = 0;
  }
  if (heap <= heap_watched_) {
    state->looked_at.reset();
    if (state->trim) {
      malloc_trim(0);
      state->trim = false;
    }
    return connections_.empty() ? kUnwatchedMs : kCalmMs;
  }
  Sweep();
  // What they have sent since the last look, which may come late in a flood; nobody is judged by a first one.
  const auto now = std::chrono::steady_clock::now();
  const bool looked = state->looked_at.has_value();
  const int64_t since =
      std::chrono::duration_cast<std::chrono::milliseconds>(now - state->looked_at.value_or(now)).count();
  const uint64_t since_ms = static_cast<uint64_t>(std::max<int64_t>(since, kFloodMs));
  state->looked_at = now;
  uint64_t most = 0;
  for (Connection& connection : connections_) {
    const uint64_t received = BytesReceived(connection.fd);
    connection.just_received = looked && connection.seen ? received - std::min(received, connection.received) : 0;
    connection.received = received;
    connection.seen = true;
    most = std::max(most, connection.just_received);
  }
  if (state->waits == 0) {
    state->flood_bytes_per_ms = 0;
  }
  const uint64_t bytes_per_ms = std::max(state->flood_bytes_per_ms, most / since_ms);
  // Others make their calls meanwhile, and while what was cut off is worked off: they send far less than the worst.
  const uint64_t flood_bytes = std::max(kCallBytesPerMs, bytes_per_ms / kFloodShare) * since_ms;
  if (heap <= heap_max || most < flood_bytes) {
    return kFloodMs;
  }
  state->flood_bytes_per_ms = bytes_per_ms;
  state->trim = true;
  state->waits = kFloodWaitMs / kFloodMs;
  for (const Connection& connection : connections_) {
    if (connection.just_received >= flood_bytes) {
      shutdown(connection.fd, SHUT_RDWR);  // gRPC sees its end, and closes it
      if (cut_off_++ % 100 == 0) {
        spdlog::warn(
            "a connection was cut off: it sent {} in {} ms, while the heap was {} too large (one of 100 is logged)",
            HumanBytes(connection.just_received), since_ms, HumanBytes(heap - heap_max));
      }
    }
  }
  return kFloodMs;
}

void Acceptor::Sweep() {
  connections_.erase(std::remove_if(connections_.begin(), connections_.end(),
                                    [](const Connection& one) { return InodeOf(one.fd) != one.inode; }),
                     connections_.end());
}

}  // namespace embergate::server
