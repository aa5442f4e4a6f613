// One call of `embergate load`: sends a request, times what comes back.
#ifndef EMBERGATE_SERVER_CLI_LOAD_CLIENT_H_
#define EMBERGATE_SERVER_CLI_LOAD_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "embergate/v1/inference.grpc.pb.h"

namespace embergate::server {

using LoadClock = std::chrono::steady_clock;

// A message of a stream that carried tokens.
struct TokenArrival {
  LoadClock::time_point at;
  int tokens = 0;
};

struct CallResult {
  grpc::Status status;
  std::string reason;          // of its ErrorInfo
  absl::Duration retry_delay;  // of its RetryInfo; zero = none
  int64_t pushback_ms = -1;    // of the grpc-retry-pushback-ms trailer; -1 = none
  bool finished = false;       // the `finished` message came
  v1::Finished last;
  std::vector<int32_t> ids;
  int tokens = 0;  // their number
  std::vector<TokenArrival> arrivals;
  LoadClock::time_point sent;
  LoadClock::time_point ended;

  bool ok() const { return status.ok() && finished; }
  bool refused() const { return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && arrivals.empty(); }
  double seconds() const { return std::chrono::duration<double>(ended - sent).count(); }
};

struct CallOptions {
  double timeout_seconds = 0;                 // the gRPC deadline; 0 = none
  int cancel_after_tokens = -1;               // cancels the call after so many tokens; 0 = at once; -1 = never
  std::function<void(int tokens)> on_tokens;  // so far; may be empty
};

// Threads: any. Blocks until the stream ends.
CallResult RunCall(v1::Inference::Stub& stub, const v1::GenerateRequest& request, const CallOptions& options);

// Gaps in seconds between the token messages of a stream, of those that end in [from, to].
void AppendGaps(const CallResult& call, LoadClock::time_point from, LoadClock::time_point to,
                std::vector<double>* gaps);

// The value that `share` of the values do not exceed; sorts them. 0 for none.
double Quantile(std::vector<double>& values, double share);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_LOAD_CLIENT_H_
