// A clock that moves only when told to.
#ifndef EMBERGATE_TESTS_SUPPORT_MANUAL_CLOCK_H_
#define EMBERGATE_TESTS_SUPPORT_MANUAL_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "engine/clock.h"

namespace embergate::testing {

// Threads: any.
class ManualClock : public engine::Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(); }
  absl::Time WallNow() const override {
    return absl::FromUnixSeconds(1'700'000'000) + absl::Nanoseconds(now_ns_.load() + wall_jump_ns_.load());
  }
  // Returns at once, that much later.
  void Sleep(absl::Duration duration) const override {
    now_ns_ += absl::ToInt64Nanoseconds(duration);
    slept_ns_ += absl::ToInt64Nanoseconds(duration);
  }
  absl::Duration slept() const { return absl::Nanoseconds(slept_ns_.load()); }
  void Advance(absl::Duration by) { now_ns_ += absl::ToInt64Nanoseconds(by); }
  // The wall clock alone is set forward or back.
  void JumpWall(absl::Duration by) { wall_jump_ns_ += absl::ToInt64Nanoseconds(by); }

 private:
  mutable std::atomic<int64_t> now_ns_{1'000'000'000};
  std::atomic<int64_t> wall_jump_ns_{0};
  mutable std::atomic<int64_t> slept_ns_{0};
};

}  // namespace embergate::testing

#endif  // EMBERGATE_TESTS_SUPPORT_MANUAL_CLOCK_H_
