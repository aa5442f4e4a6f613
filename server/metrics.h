// Everything that /metrics shows: names, help texts and units in one place, filled from snapshots at scrape time.
#ifndef EMBERGATE_SERVER_METRICS_H_
#define EMBERGATE_SERVER_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/grpc_server.h"

namespace prometheus {
class Exposer;
}

namespace embergate::server {

// Threads: Collect from any; it takes the engine's and the row store's snapshots and never waits for a step.
class Metrics final : public prometheus::Collectable {
 public:
  // Borrows `server`, which outlives the endpoint. `sysfs`: where the board's sensors are read.
  explicit Metrics(GrpcServer& server, std::string sysfs = "/sys");
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  GrpcServer& server_;
  const std::string sysfs_;
  const double start_seconds_;  // since the epoch
};

// The HTTP endpoint, http://ADDRESS/metrics.
class MetricsEndpoint {
 public:
  // `address`: HOST:PORT, port 0 = any free one. Errors: UNAVAILABLE (cannot listen there).
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Create(const std::string& address,
                                                                 std::shared_ptr<Metrics> metrics);
  ~MetricsEndpoint();
  int port() const;

 private:
  MetricsEndpoint(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<Metrics> metrics);
  std::shared_ptr<Metrics> metrics_;  // the exposer holds a weak pointer
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_METRICS_H_
