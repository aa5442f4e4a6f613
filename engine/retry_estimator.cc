#include "engine/retry_estimator.h"

#include <algorithm>

namespace embergate::engine {
namespace {

constexpr double kWeight = 0.25;  // of a new interval in the mean
constexpr double kUnknownNs = 1e9;
constexpr double kShortestNs = 50e6;
constexpr double kLongestNs = 60e9;

}  // namespace

void RetryEstimator::OnDepartures(int count, int waiting, int64_t now_ns) {
  if (count <= 0) {
    return;
  }
  if (was_waiting_) {
    const double interval = static_cast<double>(now_ns - last_ns_) / count;
    interval_ns_ = interval_ns_ == 0 ? interval : interval_ns_ + kWeight * (interval - interval_ns_);
  }
  last_ns_ = now_ns;
  was_waiting_ = waiting > 0;
  refused_ = std::max(0, refused_ - count);
}

absl::Duration RetryEstimator::OnRefusal(int64_t now_ns) {
  ++refused_;
  double delay = 0;
  if (interval_ns_ > 0) {
    const double elapsed = std::clamp(static_cast<double>(now_ns - last_ns_), 0.0, interval_ns_);
    delay = interval_ns_ * refused_ - elapsed;
  } else {
    delay = (first_guess_ns_ > 0 ? static_cast<double>(first_guess_ns_) : kUnknownNs) * refused_;
  }
  return absl::Nanoseconds(static_cast<int64_t>(std::clamp(delay, kShortestNs, kLongestNs)));
}

}  // namespace embergate::engine
