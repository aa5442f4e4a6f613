// A fixed set of workers that runs one parallel-for at a time.
#ifndef EMBERGATE_ENGINE_THREAD_POOL_H_
#define EMBERGATE_ENGINE_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace embergate::engine {

// Threads: ParallelFor is called by one thread at a time (the engine thread), which works too; the pool has
// `threads - 1` threads of its own. Workers spin briefly after a job and then sleep: an idle pool uses no CPU.
class ThreadPool {
 public:
  // `threads` >= 1, the caller included; 1 makes a pool that runs everything in the caller.
  // `pin` ties worker i to the i-th CPU that the process may use, those of highest capacity first; the caller stays
  // free. It is ignored when there are more threads than CPUs.
  explicit ThreadPool(int threads, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs fn(begin, end, worker) over disjoint ranges that cover [0, count) and returns when all are done.
  // Ranges are multiples of `grain` long (but for the last). Each worker starts with an equal, contiguous share and
  // takes ever shorter parts of it, then of what others have left, so that unequal cores finish together; `worker` in
  // [0, threads()) names the scratch that the range may use. Which worker gets which range is not deterministic:
  // results must not depend on it. Allocates nothing.
  void ParallelFor(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end, int worker)> fn);

 private:
  struct Impl;
  int threads_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_THREAD_POOL_H_
