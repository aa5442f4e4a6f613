// Pure decisions about load: no clock, no state.
#ifndef EMBERGATE_SERVER_ADMISSION_H_
#define EMBERGATE_SERVER_ADMISSION_H_

#include "absl/time/time.h"

namespace embergate::server {

// When a place in a full queue may be free again. Places are freed at the rate at which requests finish: one per
// (mean service time / slots). Between 100 ms and 60 s; 1 s while nothing has finished yet.
absl::Duration QueueRetryDelay(double mean_service_seconds, int slots);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_ADMISSION_H_
