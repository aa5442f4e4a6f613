// From absl::Status, which everything below the server speaks, to what a gRPC client gets to see. One table.
//
// Details travel as payloads of the absl::Status whose type URL is that of a google.rpc message; ToGrpc packs them
// into the google.rpc.Status of `grpc-status-details-bin`.
#ifndef EMBERGATE_SERVER_STATUS_MAPPING_H_
#define EMBERGATE_SERVER_STATUS_MAPPING_H_

#include <grpcpp/grpcpp.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace embergate::server {

struct FieldViolation {
  std::string field;  // "sampling.temperature"
  std::string description;
};

// INVALID_ARGUMENT whose message lists the violations (>= 1), with BadRequest and ErrorInfo (INVALID_REQUEST).
absl::Status BadRequestError(const std::vector<FieldViolation>& violations);

// The same status with an ErrorInfo; `reason` is UPPER_SNAKE_CASE. The message is then shown to clients as it is.
absl::Status WithReason(absl::Status status, absl::string_view reason);
// The same status with RetryInfo: another try after `delay` may succeed.
absl::Status WithRetry(absl::Status status, absl::Duration delay);

// What a client sees. Codes that no client can act on become INTERNAL; messages that may name files or offsets of
// the server are replaced by a general one. Every status but OK has an ErrorInfo.
grpc::Status ToGrpc(const absl::Status& status);

// Adds the `grpc-retry-pushback-ms` trailer if `status` has RetryInfo. Call before Finish.
void AddRetryTrailer(const absl::Status& status, grpc::ServerContextBase& context);

// The ErrorInfo reason and the retry delay of a status that a server sent; empty and zero where there is none.
struct ErrorDetails {
  std::string reason;
  absl::Duration retry_delay;
  std::vector<FieldViolation> violations;
};
ErrorDetails DetailsOf(const grpc::Status& status);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_STATUS_MAPPING_H_
