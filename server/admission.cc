#include "server/admission.h"

#include <algorithm>

namespace embergate::server {

absl::Duration QueueRetryDelay(double mean_service_seconds, int slots) {
  if (!(mean_service_seconds > 0)) {
    return absl::Seconds(1);
  }
  const double seconds = mean_service_seconds / std::max(slots, 1);
  return absl::Seconds(std::clamp(seconds, 0.1, 60.0));
}

}  // namespace embergate::server
