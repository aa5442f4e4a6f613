#include "engine/clock.h"

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace embergate::engine {
namespace {

class RealClock : public Clock {
 public:
  int64_t NowNs() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  // Not absl::Now(), which counts cycles and notices a jump up to two seconds late.
  absl::Time WallNow() const override { return absl::FromChrono(std::chrono::system_clock::now()); }
  void Sleep(absl::Duration duration) const override { absl::SleepFor(duration); }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace embergate::engine
