#include "engine/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace embergate::engine {

struct ThreadPool::Impl {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  uint64_t generation = 0;
  int running = 0;
  bool stop = false;
  int64_t count = 0;
  int64_t grain = 1;
  std::atomic<int64_t> next{0};
  const absl::FunctionRef<void(int64_t, int64_t, int)>* fn = nullptr;
  std::vector<std::thread> workers;

  void Work(int worker) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) {
        return;
      }
      (*fn)(begin, std::min(count, begin + grain), worker);
    }
  }

  void Run(int worker) {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return stop || generation != seen; });
        if (stop) {
          return;
        }
        seen = generation;
      }
      Work(worker);
      std::lock_guard<std::mutex> lock(mutex);
      if (--running == 0) {
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(std::max(threads, 1)), impl_(std::make_unique<Impl>()) {
  for (int worker = 1; worker < threads_; ++worker) {
    impl_->workers.emplace_back([this, worker] { impl_->Run(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->wake.notify_all();
  for (std::thread& thread : impl_->workers) {
    thread.join();
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t, int)> fn) {
  if (count <= 0) {
    return;
  }
  grain = std::max<int64_t>(grain, 1);
  if (threads_ == 1 || count <= grain) {
    fn(0, count, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->count = count;
    impl_->grain = grain;
    impl_->next.store(0, std::memory_order_relaxed);
    impl_->fn = &fn;
    impl_->running = threads_ - 1;
    ++impl_->generation;
  }
  impl_->wake.notify_all();
  impl_->Work(0);
  std::unique_lock<std::mutex> lock(impl_->mutex);
  impl_->done.wait(lock, [&] { return impl_->running == 0; });
}

}  // namespace embergate::engine
