// The gRPC server with its services, limits and reflection; used by `serve` and by tests.
#ifndef EMBERGATE_SERVER_GRPC_SERVER_H_
#define EMBERGATE_SERVER_GRPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/lifecycle.h"
#include "server/server_stats.h"

namespace embergate::server {

struct GrpcServerOptions {
  std::vector<std::string> addresses;  // HOST:PORT (port 0 = any free one) or unix:PATH; none: in-process only
  ServiceOptions service;
  int message_bytes_max = 4 << 20;         // of a request
  int streams_per_connection_max = 64;     // calls at once on one connection
  int64_t transport_bytes_max = 16 << 20;  // gRPC's own buffers, all connections together
  bool reflection = true;
};

// Owns the services. Threads: any.
class GrpcServer {
 public:
  // Listens at once; every call answers UNAVAILABLE until lifecycle().SetReady. Errors: UNAVAILABLE (cannot listen).
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options);
  // Shuts down at once if Shutdown was not called.
  ~GrpcServer();

  Lifecycle& lifecycle() { return lifecycle_; }
  ServerStats& stats() { return stats_; }
  HealthService& health() { return health_; }
  grpc::Server& grpc_server() { return *server_; }
  // As bound: with the port that was chosen for port 0.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Takes no more calls, waits for those under way until `deadline`, then cancels them; returns when all are gone.
  // Their engine must still be alive.
  void Shutdown(absl::Time deadline);

 private:
  explicit GrpcServer(const ServiceOptions& options);

  HealthService health_;
  Lifecycle lifecycle_;
  ServerStats stats_;
  InferenceService service_;
  std::vector<std::string> addresses_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_GRPC_SERVER_H_
