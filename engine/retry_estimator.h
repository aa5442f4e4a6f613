// When a full queue will have room again, told to those that it refuses.
#ifndef EMBERGATE_ENGINE_RETRY_ESTIMATOR_H_
#define EMBERGATE_ENGINE_RETRY_ESTIMATOR_H_

#include <cstdint>

#include "absl/time/time.h"

namespace embergate::engine {

// Learns the mean interval at which requests leave the queue while it is not empty. Everybody refused since the last
// departure is given a later place: were all told the same moment, all but one of them would be refused again.
// A pure state machine on the caller's clock. Threads: one at a time.
class RetryEstimator {
 public:
  // `count` requests left the waiting list (each got a slot, or ended); `waiting` are still there.
  void OnDepartures(int count, int waiting, int64_t now_ns);
  // What to go by until an interval was measured: when the first running request must have ended.
  void set_first_guess_ns(int64_t ns) { first_guess_ns_ = ns; }
  // How long the client that is refused now should stay away: 50 ms to 60 s.
  absl::Duration OnRefusal(int64_t now_ns);
  double interval_ns() const { return interval_ns_; }  // 0 = not measured yet
  int64_t last_departure_ns() const { return last_ns_; }

 private:
  int64_t first_guess_ns_ = 0;
  double interval_ns_ = 0;  // 0 = not measured yet
  int64_t last_ns_ = 0;
  bool was_waiting_ = false;  // somebody has been waiting since last_ns_
  int refused_ = 0;           // since then
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_RETRY_ESTIMATOR_H_
