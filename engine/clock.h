// Time as the engine sees it, so that tests can hold it still.
#ifndef EMBERGATE_ENGINE_CLOCK_H_
#define EMBERGATE_ENGINE_CLOCK_H_

#include <cstdint>

#include "absl/time/time.h"

namespace embergate::engine {

// Threads: any.
class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back; only differences mean anything.
  virtual int64_t NowNs() const = 0;
  // The wall clock that request deadlines are given in. It may jump: it is read once per request, at Submit, to turn
  // the deadline into a distance on the steady clock.
  virtual absl::Time WallNow() const = 0;
  // Blocks the calling thread so long.
  virtual void Sleep(absl::Duration duration) const = 0;

  static const Clock& Real();
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CLOCK_H_
