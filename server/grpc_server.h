// The gRPC server with its services, limits and reflection; used by `serve` and by tests.
#ifndef EMBERGATE_SERVER_GRPC_SERVER_H_
#define EMBERGATE_SERVER_GRPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/acceptor.h"
#include "server/api_keys.h"
#include "server/gatekeeper.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/lifecycle.h"
#include "server/server_stats.h"
#include "server/tls.h"

namespace embergate::server {

struct GrpcServerOptions {
  std::vector<std::string> addresses;  // HOST:PORT (port 0 = any free one) or unix:PATH; none: in-process only
  bool listen_when_ready = false;      // refuse new connections while health says NOT_SERVING
  ServiceOptions service;
  int message_bytes_max = 4 << 20;         // of a request
  int streams_per_connection_max = 64;     // calls at once on one connection
  int connections_max = 1024;              // at once; more are closed as they come
  int64_t transport_bytes_max = 16 << 20;  // gRPC's own buffers, all connections together
  bool reflection = true;                  // never with `clients`: it could not ask for a key
  bool channelz = false;                   // gRPC's own view of connections and calls; asks for no key either
  std::optional<TlsMaterial> tls;          // of all addresses but Unix sockets; nullopt = plain
  std::vector<ApiClient> clients;          // whose API keys are accepted; none: no key is asked for
  // A connection that has not become an HTTP/2 one by then is closed.
  absl::Duration handshake_timeout = absl::Seconds(10);
  // A silent peer is pinged after the first, and taken for dead when it has not answered within the second; one that
  // acknowledges nothing of what it is sent, after both.
  absl::Duration keepalive_time = absl::Seconds(60);
  absl::Duration keepalive_timeout = absl::Seconds(20);
  // A connection without calls, and one with, is asked to end (GOAWAY) after this long; calls under way finish. Zero =
  // never.
  absl::Duration connection_idle_max = absl::Minutes(30);
  absl::Duration connection_age_max = absl::ZeroDuration();
};

// Owns the services. Threads: any.
class GrpcServer {
 public:
  // Has its addresses from now on, and listens at once unless it is to wait until it is ready; every call that the
  // gatekeeper lets in answers UNAVAILABLE until lifecycle().SetReady. Errors: UNAVAILABLE (cannot listen).
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options);
  // Shuts down at once if Shutdown was not called.
  ~GrpcServer();

  Lifecycle& lifecycle() { return lifecycle_; }
  ServerStats& stats() { return stats_; }
  HealthService& health() { return health_; }
  Gatekeeper& gatekeeper() { return gatekeeper_; }
  // Null when in-process only.
  Acceptor* acceptor() { return acceptor_.get(); }
  // Null without TLS.
  TlsStore* tls() { return tls_.has_value() ? &*tls_ : nullptr; }
  grpc::Server& grpc_server() { return *server_; }
  // As bound: with the port that was chosen for port 0.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Takes no more calls, waits for those under way until `deadline`, then cancels them, and soon after that ends the
  // connections; returns when all calls are gone.
  // Their engine must still be alive.
  void Shutdown(absl::Time deadline);

 private:
  explicit GrpcServer(const GrpcServerOptions& options);

  HealthService health_;
  Lifecycle lifecycle_;
  ServerStats stats_;
  Gatekeeper gatekeeper_;
  std::optional<TlsStore> tls_;
  std::vector<std::shared_ptr<grpc::ServerCredentials>> credentials_;  // of each address; gRPC calls into them
  InferenceService service_;
  std::vector<std::string> addresses_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;  // hands connections to server_
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_GRPC_SERVER_H_
