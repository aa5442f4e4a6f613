// Lets the steps of an engine through one by one, or all.
#ifndef EMBERGATE_TESTS_SUPPORT_GATE_H_
#define EMBERGATE_TESTS_SUPPORT_GATE_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace embergate::testing {

// Threads: any. Starts open.
class Gate {
 public:
  // From the thread that is held back.
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ || permits_ > 0; });
    if (!open_) {
      --permits_;
    }
    --waiting_;
  }
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
    permits_ = 0;
  }
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Permit(int passes) {
    std::lock_guard<std::mutex> lock(mutex_);
    permits_ += passes;
    changed_.notify_all();
  }
  // Until somebody stands at the closed gate.
  void AwaitWaiting() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0 && permits_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int permits_ = 0;
  int waiting_ = 0;
};

}  // namespace embergate::testing

#endif  // EMBERGATE_TESTS_SUPPORT_GATE_H_
