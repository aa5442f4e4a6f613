// TLS of the gRPC server: certificate, key and client CA out of PEM files, checked before they are used, and exchanged
// while the server runs.
#ifndef EMBERGATE_SERVER_TLS_H_
#define EMBERGATE_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace embergate::server {

struct TlsFiles {
  std::string certificate;  // the server's, followed by its intermediates
  std::string key;
  std::string client_ca;  // whose client certificates are accepted, and then demanded; empty = none is asked for
};

// What they hold.
struct TlsMaterial {
  std::string certificate;
  std::string key;
  std::string client_ca;
  absl::Time expires;  // the server's own certificate

  bool operator==(const TlsMaterial& other) const = default;
};

// Reads and checks. Errors name the file: NOT_FOUND, UNAVAILABLE (cannot be read), INVALID_ARGUMENT (no PEM, encrypted,
// key of another certificate, expired, refused by this machine's TLS policy).
absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files);

// What handshakes use from now on. Connections that are there stay. Threads: any.
class TlsStore {
 public:
  explicit TlsStore(TlsMaterial material) : material_(std::move(material)) {}

  // Material without a client CA where there was one, or the reverse, is not for this: it needs a new listener.
  void Set(TlsMaterial material);
  TlsMaterial Get(uint64_t* generation) const;
  uint64_t generation() const;

 private:
  mutable absl::Mutex mutex_;
  TlsMaterial material_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 1;
};

// For one port. Borrows `store`; both outlive the gRPC server.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsStore& store);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_TLS_H_
