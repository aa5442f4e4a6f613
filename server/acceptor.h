// Listens in gRPC's place, and hands it no more connections than there is room for. gRPC 1.51 has no bound of its own,
// and stops to listen for good when it runs out of file descriptors.
#ifndef EMBERGATE_SERVER_ACCEPTOR_H_
#define EMBERGATE_SERVER_ACCEPTOR_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace embergate::server {

// An address, as `--listen` writes it, that is bound: no other program can have it. A host name may stand for several
// sockets.
class ListeningAddress {
 public:
  // HOST:PORT (port 0 = any free one), [V6]:PORT, unix:PATH or unix-abstract:NAME; a socket that lies at PATH is
  // replaced. Connections are refused until Listen. Errors: INVALID_ARGUMENT, UNAVAILABLE (cannot be had).
  static absl::StatusOr<ListeningAddress> Bind(const std::string& address);
  ~ListeningAddress();
  ListeningAddress(ListeningAddress&& other) noexcept;
  ListeningAddress& operator=(ListeningAddress&&) = delete;

  // Connections can be made from now on. Errors: UNAVAILABLE, NOT_FOUND (this machine no longer has the address); they
  // are refused then.
  absl::Status Listen();
  // They are refused from now on, those included that nobody has accepted yet; the address stays bound.
  void Refuse();

  const std::string& name() const { return name_; }  // with the port that was chosen
  bool listening() const { return listening_; }
  std::vector<int> listeners() const;  // the sockets that connections come to; none while they are refused

 private:
  struct Socket {
    sockaddr_storage address = {};
    socklen_t bytes = 0;
    bool v6_only = false;  // leave IPv4 to another socket
    int fd = -1;           // -1: not bound
  };

  ListeningAddress() = default;
  absl::Status BindUnix(const std::string& path, bool abstract);
  absl::Status BindTcp(const std::string& host, const std::string& port);
  // NOT_FOUND: this machine has no such address.
  absl::Status BindSocket(Socket* socket) const;
  absl::Status ListenOn(Socket* socket) const;

  std::string name_;
  std::string path_;  // of a socket in the file system
  bool listening_ = false;
  std::vector<Socket> sockets_;
};

// Threads: any; it has one of its own.
class Acceptor {
 public:
  // What gRPC does with a connection; it owns the descriptor from then on.
  using Handler = std::function<void(int listener, int connection)>;
  struct Port {
    ListeningAddress address;
    Handler handler;
  };
  // The ports listen, all or none. `silence_max`: how long a TCP peer may leave what was sent to it unacknowledged.
  // gRPC's keepalive alone does not end a connection whose send buffer is full, as its ping waits behind what is in
  // there.
  Acceptor(std::vector<Port> ports, int connections_max, absl::Duration silence_max);
  ~Acceptor();

  // Whether connections are taken or refused from now on; those that there are stay. It is so when this returns, but
  // for a port on which the kernel does not let us listen: that is logged, and tried again until it does.
  void SetListening(bool listening);

  // Stops listening for good; connections stay. Returns when no handler is running any more.
  void Stop();

  // Ends all connections, whatever is under way on them.
  void CutOffAll();

  // From now on, while the heap holds `bytes` more than it does now, connections that have just sent much are cut off,
  // and new ones have to wait. gRPC 1.51 keeps a header block that never ends, whatever its size (CVE-2023-33953), and
  // 17 KB for each call that is opened and reset at once (CVE-2023-44487), until it gets round to them.
  void WatchMemory(uint64_t bytes);

  struct Stats {
    int open = 0;
    int open_max = 0;
    uint64_t accepted = 0;
    uint64_t refused = 0;  // closed at once, as there was no room
    uint64_t cut_off = 0;  // for what they sent while memory was short
  };
  Stats stats();

 private:
  void Run();
  void Wake() const;
  // Does what was asked for; false: it is to end.
  bool Obey();
  void Accept(int listener, const Handler& handler);
  struct WatchState {
    int waits = 0;  // looks for which nobody is let in
    // When the connections were last asked what they have received; nullopt = the heap was small then.
    std::optional<std::chrono::steady_clock::time_point> looked_at;
    uint64_t flood_bytes_per_ms = 0;  // of the worst that was cut off, while there are waits
    bool trim = false;                // the heap has been too large, and is to be given back
  };
  // Cuts off who floods us, if memory asks for it. Milliseconds until the next look.
  int Watch(WatchState* state);
  // Forgets those that gRPC has closed.
  void Sweep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // A descriptor that has another inode now has been closed, and its number used again.
  struct Connection {
    int fd;
    ino_t inode;
    bool seen;               // by a look at what they send; nobody is judged by the first
    uint64_t received;       // bytes, when last looked at
    uint64_t just_received;  // of these, since the look before
  };

  std::vector<Port> ports_;  // the thread's, until it has ended
  const size_t connections_max_;
  const unsigned int silence_max_ms_;
  const int wake_fd_;
  bool cannot_listen_ = false;  // the thread's; has been logged
  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool listen_ ABSL_GUARDED_BY(mutex_);          // what was asked for last
  uint64_t orders_ ABSL_GUARDED_BY(mutex_) = 0;  // how often
  uint64_t obeyed_ ABSL_GUARDED_BY(mutex_) = 0;  // how many of these the thread has seen to
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mutex_);
  uint64_t accepted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t refused_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t cut_off_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t heap_watched_ ABSL_GUARDED_BY(mutex_) = 0;  // from here on, connections are looked at
  std::atomic<uint64_t> heap_max_{0};                  // 0 = no watch
  std::thread thread_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_ACCEPTOR_H_
