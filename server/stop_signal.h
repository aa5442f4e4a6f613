// How the thread that does something again and again sleeps in between, and is told to end.
#ifndef EMBERGATE_SERVER_STOP_SIGNAL_H_
#define EMBERGATE_SERVER_STOP_SIGNAL_H_

#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace embergate::server {

// Threads: any. Waits on the steady clock: Abseil 20220623's waits with a timeout end at a time of the wall clock, and
// one that is set back by an hour would make a second an hour longer.
class StopSignal {
 public:
  // Whether Set was called, which ends the wait at once.
  bool WaitFor(absl::Duration time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(time), [this] { return set_; });
  }

  void Set() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      set_ = true;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_STOP_SIGNAL_H_
