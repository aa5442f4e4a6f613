// Listening addresses, and the bound on connections.
#include "server/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

int PortIn(const std::string& name) { return std::atoi(name.substr(name.rfind(':') + 1).c_str()); }

// A connected socket, or -1.
int ConnectTo(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

// What connecting to a Unix socket gives: 0, or the error. An abstract address begins with a zero byte.
int ConnectToUnix(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path));
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  const int error = connect(fd, reinterpret_cast<const sockaddr*>(&address), bytes) == 0 ? 0 : errno;
  close(fd);
  return error;
}

absl::StatusOr<ListeningAddress> Listening(const std::string& address) {
  absl::StatusOr<ListeningAddress> bound = ListeningAddress::Bind(address);
  if (bound.ok()) {
    const absl::Status status = bound->Listen();
    EXPECT_TRUE(status.ok()) << status;
  }
  return bound;
}

// Whether the other side has closed; waits for it to do or say something.
bool IsClosed(int fd) {
  char byte = 0;
  return recv(fd, &byte, 1, 0) <= 0;
}

TEST(ListeningAddressTest, NamesThePortThatWasChosen) {
  for (const char* address : {"127.0.0.1:0", "localhost:0", "ipv4:127.0.0.1:0", "0.0.0.0:0", "*:0", ":0"}) {
    auto listening = Listening(address);
    ASSERT_TRUE(listening.ok()) << address << ": " << listening.status();
    const int port = PortIn(listening->name());
    EXPECT_GT(port, 0) << listening->name();
    EXPECT_THAT(listening->name(), StartsWith(std::string(address).substr(0, std::string(address).size() - 1)));
    const int fd = ConnectTo(port);
    EXPECT_GE(fd, 0) << address;
    close(fd);
  }
}

TEST(ListeningAddressTest, ATakenPortIsRefusedAndAFreedOneIsNot) {
  auto first = Listening("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const std::string name = first->name();
  const auto second = Listening(name);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr("cannot listen on " + name));
  { const ListeningAddress ended = *std::move(first); }
  EXPECT_TRUE(Listening(name).ok());
}

TEST(ListeningAddressTest, WhatIsBoundRefusesConnectionsUnlessItListens) {
  auto address = ListeningAddress::Bind("127.0.0.1:0");
  ASSERT_TRUE(address.ok()) << address.status();
  const std::string name = address->name();
  const int port = PortIn(name);
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(ConnectTo(port), -1);
    EXPECT_EQ(errno, ECONNREFUSED);
    EXPECT_FALSE(address->listening());
    EXPECT_TRUE(address->listeners().empty());
    EXPECT_EQ(ListeningAddress::Bind(name).status().code(), absl::StatusCode::kUnavailable) << "round " << round;
    ASSERT_TRUE(address->Listen().ok());
    const int fd = ConnectTo(port);
    EXPECT_GE(fd, 0);
    ASSERT_EQ(address->listeners().size(), 1u);
    const int taken = accept4(address->listeners()[0], nullptr, nullptr, SOCK_CLOEXEC);
    const int waiting = ConnectTo(port);
    address->Refuse();
    EXPECT_TRUE(IsClosed(waiting)) << "nobody will accept it";
    EXPECT_EQ(send(taken, "h", 1, MSG_NOSIGNAL), 1);
    EXPECT_FALSE(IsClosed(fd));
    close(waiting);
    close(taken);  // the first to close: this side remembers the connection for a minute
    close(fd);
  }
}

// Both wait for a model, so neither listens: the second must hear of the first before it loads its own.
TEST(ListeningAddressTest, OfTwoThatDoNotListenYetTheSecondIsRefused) {
  std::string name;
  {
    auto last = Listening("127.0.0.1:0");
    ASSERT_TRUE(last.ok());
    name = last->name();
    const int fd = ConnectTo(PortIn(name));
    close(accept4(last->listeners()[0], nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_TRUE(IsClosed(fd));
    close(fd);
  }
  auto first = ListeningAddress::Bind(name);
  ASSERT_TRUE(first.ok()) << "the last server's connections are in the way: " << first.status();
  EXPECT_EQ(ListeningAddress::Bind(name).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(first->Listen().ok());
}

TEST(ListeningAddressTest, UnixSocketsRefuseToo) {
  const test::TempFolder folder;
  const std::string name = "embergate-acceptor-" + std::to_string(getpid());
  struct Row {
    std::string address;
    std::string path;
  };
  for (const Row& row : {Row{"unix:" + folder.File("socket"), folder.File("socket")},
                         Row{"unix-abstract:" + name, std::string(1, '\0') + name}}) {
    auto address = ListeningAddress::Bind(row.address);
    ASSERT_TRUE(address.ok()) << address.status();
    for (int round = 0; round < 2; ++round) {
      EXPECT_EQ(ConnectToUnix(row.path), ECONNREFUSED) << row.address;
      ASSERT_TRUE(address->Listen().ok()) << row.address;
      EXPECT_EQ(ConnectToUnix(row.path), 0) << row.address;
      address->Refuse();
    }
  }
  EXPECT_FALSE(std::filesystem::exists(folder.File("socket")));
}

TEST(ListeningAddressTest, UnixSocketsReplaceWhatACrashLeftAndAreRemoved) {
  const test::TempFolder folder;
  const std::string path = folder.File("socket");
  const std::string address = "unix:" + path;
  {
    auto crashed = Listening(address);
    ASSERT_TRUE(crashed.ok()) << crashed.status();
    const auto next = Listening(address);
    EXPECT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  // Anything else at that path is somebody's.
  folder.Write("socket", "precious");
  EXPECT_EQ(Listening(address).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(test::ReadFile(path), "precious");
  EXPECT_FALSE(Listening("unix:" + std::string(200, 'x')).ok());
  EXPECT_TRUE(Listening("unix-abstract:embergate-" + std::to_string(getpid())).ok());
}

TEST(ListeningAddressTest, WhatIsNoAddressIsSaid) {
  for (const char* address : {"", "127.0.0.1", "::1:50051", "127.0.0.1:http", "127.0.0.1:99999", "unix:"}) {
    EXPECT_FALSE(Listening(address).ok()) << address;
  }
}

TEST(AcceptorTest, TakesWhatThereIsRoomForAndClosesTheRest) {
  auto listening = Listening("127.0.0.1:0");
  ASSERT_TRUE(listening.ok());
  const int port = PortIn(listening->name());
  std::vector<Acceptor::Port> ports;
  absl::Mutex mutex;
  std::vector<int> taken;
  ports.push_back({*std::move(listening), [&](int, int connection) {
                     absl::MutexLock lock(&mutex);
                     taken.push_back(connection);
                     EXPECT_EQ(send(connection, "h", 1, MSG_NOSIGNAL), 1);
                   }});
  Acceptor acceptor(std::move(ports), 2, absl::Seconds(80));
  const int first = ConnectTo(port);
  const int second = ConnectTo(port);
  EXPECT_FALSE(IsClosed(first));
  EXPECT_FALSE(IsClosed(second));
  const int third = ConnectTo(port);
  EXPECT_TRUE(IsClosed(third));
  EXPECT_EQ(acceptor.stats().open, 2);
  EXPECT_EQ(acceptor.stats().refused, 1u);
  // Once its owner closes one, there is room, also where its number is another file's by then.
  absl::ReleasableMutexLock lock(&mutex);
  ASSERT_EQ(taken.size(), 2u);
  const test::TempFolder folder;
  const std::string path = folder.Write("file", "");
  close(taken[0]);
  lock.Release();
  const int file = ::open(path.c_str(), 0);
  const int fourth = ConnectTo(port);
  EXPECT_FALSE(IsClosed(fourth));
  EXPECT_EQ(acceptor.stats().open, 2);
  EXPECT_EQ(acceptor.stats().accepted, 3u);
  unsigned int silence_ms = 0;
  socklen_t size = sizeof(silence_ms);
  EXPECT_EQ(getsockopt(taken[1], IPPROTO_TCP, TCP_USER_TIMEOUT, &silence_ms, &size), 0);
  EXPECT_EQ(silence_ms, 80'000u);
  acceptor.Stop();
  EXPECT_EQ(ConnectTo(port), -1);
  EXPECT_EQ(acceptor.stats().open, 2) << "connections stay";
  acceptor.CutOffAll();
  EXPECT_TRUE(IsClosed(second));
  EXPECT_TRUE(IsClosed(fourth));
  for (const int fd : {first, second, third, fourth, file, taken[1], taken[2]}) {
    close(fd);
  }
}

TEST(AcceptorTest, RefusesConnectionsAndTakesThemAgain) {
  std::vector<int> listening_ports;
  std::vector<Acceptor::Port> ports;
  for (int i = 0; i < 2; ++i) {
    auto address = ListeningAddress::Bind("127.0.0.1:0");
    ASSERT_TRUE(address.ok());
    listening_ports.push_back(PortIn(address->name()));
    ports.push_back({*std::move(address), [](int, int connection) {
                       EXPECT_EQ(send(connection, "h", 1, MSG_NOSIGNAL), 1);
                       close(connection);
                     }});
  }
  Acceptor acceptor(std::move(ports), 10, absl::Seconds(80));
  for (int round = 0; round < 3; ++round) {
    for (const int port : listening_ports) {
      EXPECT_EQ(ConnectTo(port), -1);
      EXPECT_EQ(errno, ECONNREFUSED);
    }
    acceptor.SetListening(true);
    acceptor.SetListening(true);
    for (const int port : listening_ports) {
      const int fd = ConnectTo(port);
      EXPECT_FALSE(IsClosed(fd));
      close(fd);
    }
    acceptor.SetListening(false);
  }
  EXPECT_EQ(acceptor.stats().accepted, 6u);
  acceptor.Stop();
  acceptor.SetListening(true);
  EXPECT_EQ(ConnectTo(listening_ports[0]), -1) << "it has ended";
}

// Sends what the socket takes of `bytes`; false: the other side has closed.
bool SendSome(int fd, size_t bytes) {
  return send(fd, std::string(bytes, 'x').data(), bytes, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 || errno == EAGAIN;
}

bool IsOpen(int fd) {
  char byte = 0;
  return recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

TEST(AcceptorTest, OfALargeHeapWhoSendsMostIsCutOffAndNobodyElseSuffersForLong) {
  if (test::kSanitized) {
    GTEST_SKIP() << "a sanitizer's allocator is not the one whose heap is watched";
  }
  auto listening = Listening("127.0.0.1:0");
  ASSERT_TRUE(listening.ok());
  const int port = PortIn(listening->name());
  std::vector<Acceptor::Port> ports;
  absl::Mutex mutex;
  std::vector<int> taken;
  ports.push_back({*std::move(listening), [&](int, int connection) {
                     absl::MutexLock lock(&mutex);
                     taken.push_back(connection);
                   }});
  Acceptor acceptor(std::move(ports), 10, absl::Seconds(80));
  const auto taken_count = [&] {
    absl::MutexLock lock(&mutex);
    return taken.size();
  };
  const auto drain = [&] {
    absl::MutexLock lock(&mutex);
    static char buffer[1 << 20];
    for (const int fd : taken) {
      while (recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT) > 0) {
      }
    }
  };
  const int flood = ConnectTo(port);
  const int call = ConnectTo(port);
  // A call under way sends a little now and then, and goes on doing so. Returns whether `event` has come within a
  // minute.
  const auto goes_on_until = [&](int watched, const std::function<bool()>& event) {
    const absl::Time end = absl::Now() + absl::Minutes(1);
    while (!event() && absl::Now() < end) {
      EXPECT_TRUE(SendSome(call, 30));
      drain();
      pollfd closed = {watched, POLLRDHUP, 0};
      poll(&closed, 1, 5);
    }
    return event();
  };
  ASSERT_TRUE(goes_on_until(flood, [&] { return taken_count() == 2; }));
  acceptor.WatchMemory(1 << 20);
  const std::string heap(8 << 20, 'x');
  EXPECT_TRUE(goes_on_until(flood, [&] { return !SendSome(flood, 64 << 10) || acceptor.stats().cut_off > 0; }));
  EXPECT_TRUE(IsClosed(flood));
  // The heap stays as it is, but only that flood was to blame for it.
  const int late = ConnectTo(port);
  EXPECT_TRUE(goes_on_until(late, [&] { return taken_count() == 3; }));
  EXPECT_EQ(acceptor.stats().cut_off, 1u);
  EXPECT_TRUE(IsOpen(call));
  EXPECT_TRUE(IsOpen(late));
  acceptor.Stop();
  for (const int fd : {flood, call, late}) {
    close(fd);
  }
  for (const int fd : taken) {
    close(fd);
  }
}

}  // namespace
}  // namespace embergate::server
