// A refusal that says when to come again, as an absl::Status payload.
#ifndef EMBERGATE_ENGINE_RETRY_AFTER_H_
#define EMBERGATE_ENGINE_RETRY_AFTER_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace embergate::engine {

// Whole milliseconds in decimal.
inline constexpr char kRetryAfterPayload[] = "embergate.retry_after_ms";

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_RETRY_AFTER_H_
