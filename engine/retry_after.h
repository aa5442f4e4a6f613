// A refusal that says why, and when to come again, as absl::Status payloads.
#ifndef EMBERGATE_ENGINE_RETRY_AFTER_H_
#define EMBERGATE_ENGINE_RETRY_AFTER_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace embergate::engine {

// Whole milliseconds in decimal.
inline constexpr char kRetryAfterPayload[] = "embergate.retry_after_ms";

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

// UPPER_SNAKE_CASE, for programs: "QUEUE_FULL", "DEADLINE_UNREACHABLE", "DRAINING".
inline constexpr char kRefusalReasonPayload[] = "embergate.refusal_reason";

absl::Status WithRefusalReason(absl::Status status, absl::string_view reason);
std::optional<std::string> RefusalReason(const absl::Status& status);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_RETRY_AFTER_H_
