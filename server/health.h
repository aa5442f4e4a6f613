// grpc.health.v1: NOT_SERVING from the first moment, SERVING once the model is loaded, NOT_SERVING while flash fails
// and while draining.
#ifndef EMBERGATE_SERVER_HEALTH_H_
#define EMBERGATE_SERVER_HEALTH_H_

#include <grpcpp/grpcpp.h>

#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace embergate::server {

// Our own rather than gRPC's default service, which answers SERVING between the start of listening and the first
// SetServingStatus, and which reflection cannot describe.
// Threads: any.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // `services`: full names that share the server's status, besides "" (the server as a whole).
  explicit HealthService(std::vector<std::string> services);
  ~HealthService() override;

  void SetServing(bool serving);
  // Ends all watches (they would keep the gRPC server from shutting down) and those that come later.
  void Shutdown();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context, const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  static constexpr size_t kWatchersMax = 1024;

  bool Knows(const std::string& service) const { return services_.count(service) > 0; }

  const std::set<std::string> services_;
  absl::Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<Watcher*> watchers_ ABSL_GUARDED_BY(mutex_);  // from Watch until OnDone
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_HEALTH_H_
