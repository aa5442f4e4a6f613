// One scrape of a server's metrics, taken apart: for `embergate top`, which has to work where there is no Prometheus.
#ifndef EMBERGATE_SERVER_CLI_METRICS_PAGE_H_
#define EMBERGATE_SERVER_CLI_METRICS_PAGE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace embergate::server {

class MetricsPage {
 public:
  // Prometheus's text format. A line that is none is passed over: a page of a newer server is still worth showing.
  static MetricsPage Parse(absl::string_view text);

  bool Has(const std::string& name) const { return samples_.count(name) > 0; }
  // The first sample of that name; 0 if there is none.
  double Value(const std::string& name) const;
  // Of all samples of that name.
  double Sum(const std::string& name) const;
  // (value of `label`, value) of each sample of that name, in the page's order.
  std::vector<std::pair<std::string, double>> By(const std::string& name, const std::string& label) const;
  // A label of the first sample of that name; "" if there is none.
  std::string Label(const std::string& name, const std::string& label) const;

 private:
  struct Sample {
    std::map<std::string, std::string> labels;
    double value;
  };
  std::map<std::string, std::vector<Sample>> samples_;
};

// The q-quantile of what a histogram counted between two pages, interpolated within its bucket; -1 if nothing. What
// lies beyond the last bound counts as that bound.
double QuantileBetween(const MetricsPage& before, const MetricsPage& now, const std::string& histogram, double q);

// GET http://ADDRESS/metrics; `address` is HOST:PORT. UNAVAILABLE if it cannot be had, DEADLINE_EXCEEDED after `limit`.
absl::StatusOr<std::string> FetchMetrics(const std::string& address, absl::Duration limit);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_METRICS_PAGE_H_
