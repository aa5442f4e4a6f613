#include "engine/thread_pool.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

TEST(ThreadPoolTest, EveryIndexIsVisitedOnceInRangesOfTheGrain) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads, /*pin=*/threads == 2);
    for (const int64_t count : {0, 1, 2, 7, 64, 1001}) {
      for (const int64_t grain : {0, 1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        std::atomic<bool> ok{true};
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int worker) {
          const int64_t step = std::max<int64_t>(grain, 1);
          if (begin % step != 0 || begin >= end || end > count || worker < 0 || worker >= pool.threads()) {
            ok = false;
          }
          for (int64_t i = begin; i < end; ++i) {
            ++visits[static_cast<size_t>(i)];
          }
        });
        EXPECT_TRUE(ok);
        for (const std::atomic<int>& n : visits) {
          ASSERT_EQ(n, 1) << "threads " << threads << " count " << count << " grain " << grain;
        }
      }
    }
  }
}

// What the workers wrote is visible to the caller, and what the caller wrote before a job to the workers, through many
// short jobs in a row (a lost wake-up or a worker left in an old job shows here, and a data race under tsan).
TEST(ThreadPoolTest, ManyShortJobsSeeEachOthersWrites) {
  ThreadPool pool(3);
  std::vector<int> values(64, 0);
  for (int round = 1; round <= 5000; ++round) {
    const int expected = round - 1;
    std::atomic<int> wrong{0};
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        wrong += values[static_cast<size_t>(i)] != expected;
        values[static_cast<size_t>(i)] = round;
      }
    });
    ASSERT_EQ(wrong, 0) << round;
  }
}

TEST(ThreadPoolTest, WorkersTakeShares) {
  ThreadPool pool(2);
  std::atomic<int> started{0};
  // Each range waits until the other has begun: with one thread at work this would not end.
  pool.ParallelFor(2, 1, [&](int64_t, int64_t, int) {
    ++started;
    while (started < 2) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(started, 2);
}

TEST(ThreadPoolTest, AnIdlePoolUsesNoCpu) {
  ThreadPool pool(4);
  pool.ParallelFor(100, 1, [](int64_t, int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  timespec before;
  timespec after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const int64_t used_ns = (after.tv_sec - before.tv_sec) * 1000000000 + (after.tv_nsec - before.tv_nsec);
  EXPECT_LT(used_ns, 2000000) << "of 100 ms";
}

}  // namespace
}  // namespace embergate::engine
