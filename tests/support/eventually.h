// Waiting for what another process or thread does.
#ifndef EMBERGATE_TESTS_SUPPORT_EVENTUALLY_H_
#define EMBERGATE_TESTS_SUPPORT_EVENTUALLY_H_

#include <chrono>
#include <functional>
#include <thread>

namespace embergate::test {

// Polls; false if it does not come true within half a minute and what 6000 looks take.
inline bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 6000; ++i) {
    if (condition()) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_EVENTUALLY_H_
