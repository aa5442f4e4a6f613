#include "engine/thread_pool.h"

#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/cpus.h"
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

// One worker per CPU, the fastest first; the caller, who works too, is left to whoever owns it.
TEST(ThreadPoolTest, PinnedWorkersStayOnTheirCpus) {
  const std::vector<int> cpus = UsableCpus().cpus;
  const int threads = static_cast<int>(cpus.size());
  ThreadPool pool(threads, /*pin=*/true);
  std::vector<std::vector<int>> allowed(cpus.size());
  std::atomic<int> started{0};
  pool.ParallelFor(threads, 1, [&](int64_t, int64_t, int worker) {
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) {
        allowed[static_cast<size_t>(worker)].push_back(cpu);
      }
    }
    ++started;
    while (started < threads) {  // every worker takes one
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(allowed[0].size(), cpus.size());
  for (size_t worker = 1; worker < cpus.size(); ++worker) {
    EXPECT_EQ(allowed[worker], std::vector<int>{cpus[worker]}) << "worker " << worker;
  }
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
