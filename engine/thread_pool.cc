#include "engine/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/cpus.h"

namespace embergate::engine {
namespace {

// Longer than the gaps between the parallel loops of a step, nothing beside the milliseconds between steps.
constexpr std::chrono::microseconds kSpinTime{50};

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Returns when done(value): spins briefly, then sleeps in the kernel until notified.
template <typename T, typename Done>
T WaitUntil(const std::atomic<T>& value, bool spin, Done done) {
  T now = value.load(std::memory_order_acquire);
  if (spin && !done(now)) {
    const auto limit = std::chrono::steady_clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 16 && !done(now); ++i) {
        Pause();
        now = value.load(std::memory_order_acquire);
      }
    } while (!done(now) && std::chrono::steady_clock::now() < limit);
  }
  while (!done(now)) {
    value.wait(now, std::memory_order_acquire);
    now = value.load(std::memory_order_acquire);
  }
  return now;
}

// Grains [begin, end) of a job that nobody has taken yet, in one word.
struct Range {
  uint32_t begin;
  uint32_t end;

  static Range From(uint64_t word) { return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)}; }
  uint64_t word() const { return uint64_t{end} << 32 | begin; }
  uint32_t size() const { return end - begin; }
};

// On a cache line of its own: written by its worker for every range.
struct alignas(64) Share {
  std::atomic<uint64_t> range{0};
};

// Of what is left of its share a worker takes this part at a time: long runs first, single grains at the end, so that
// all finish together.
constexpr uint32_t kShareParts = 4;

}  // namespace

// A job is open from its announcement until its caller finds no more work. Only workers that join while it is open take
// part, and the caller waits for those alone: one that the system schedules late is not waited for. A job's fields are
// written while none is open and nobody has joined (release by `state`) and read after joining (acquire), so they need
// no lock.
//
// Every worker has a share of the job, one contiguous range: cores of equal speed read weights in long streams. One
// that has done its share steals the second half of the largest that is left. No range exists twice during a job, so an
// exchange that compares whole ranges cannot mistake a new one for an old one.
struct ThreadPool::Impl {
  static constexpr int32_t kOpen = 1 << 30;

  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int32_t> state{0};  // kOpen while open, plus the number of workers that joined
  alignas(64) int64_t count = 0;
  int64_t grain = 1;
  const absl::FunctionRef<void(int64_t, int64_t, int)>* fn = nullptr;
  std::atomic<bool> stop{false};
  bool spin = true;
  std::vector<Share> shares;
  std::vector<std::thread> workers;

  // Takes from the front of the worker's own share. An empty range when there is nothing left.
  Range TakeOwn(int worker) {
    std::atomic<uint64_t>& share = shares[static_cast<size_t>(worker)].range;
    uint64_t word = share.load(std::memory_order_relaxed);
    for (;;) {
      const Range left = Range::From(word);
      if (left.size() == 0) {
        return left;
      }
      const Range taken{left.begin, left.begin + std::max(1u, left.size() / kShareParts)};
      if (share.compare_exchange_weak(word, Range{taken.end, left.end}.word(), std::memory_order_relaxed)) {
        return taken;
      }
    }
  }

  // Makes the second half of the largest share left the worker's own. False when all are empty.
  bool Steal(int worker) {
    for (;;) {
      size_t victim = 0;
      uint64_t word = 0;
      for (size_t i = 0; i < shares.size(); ++i) {
        const uint64_t candidate = shares[i].range.load(std::memory_order_relaxed);
        if (Range::From(candidate).size() > Range::From(word).size()) {
          victim = i;
          word = candidate;
        }
      }
      const Range left = Range::From(word);
      if (left.size() == 0) {
        return false;
      }
      const uint32_t middle = left.begin + left.size() / 2;
      if (shares[victim].range.compare_exchange_strong(word, Range{left.begin, middle}.word(),
                                                       std::memory_order_relaxed)) {
        shares[static_cast<size_t>(worker)].range.store(Range{middle, left.end}.word(), std::memory_order_relaxed);
        return true;
      }
    }
  }

  void Work(int worker) {
    do {
      for (Range range = TakeOwn(worker); range.size() > 0; range = TakeOwn(worker)) {
        (*fn)(range.begin * grain, std::min(count, range.end * grain), worker);
      }
    } while (Steal(worker));
  }

  bool Join() {
    int32_t now = state.load(std::memory_order_acquire);
    while ((now & kOpen) != 0) {
      if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        return true;
      }
    }
    return false;
  }

  void Run(int worker) {
    uint32_t seen = 0;
    for (;;) {
      seen = WaitUntil(generation, spin, [seen](uint32_t now) { return now != seen; });
      if (stop.load(std::memory_order_relaxed)) {
        return;
      }
      if (Join()) {
        Work(worker);
        if (state.fetch_sub(1, std::memory_order_acq_rel) == 1) {
          state.notify_one();
        }
      }
    }
  }

  void Wake() {
    generation.fetch_add(1, std::memory_order_release);
    generation.notify_all();
  }
};

ThreadPool::ThreadPool(int threads, bool pin) : threads_(std::max(threads, 1)), impl_(std::make_unique<Impl>()) {
  const std::vector<int> cpus = UsableCpus().cpus;
  // With more threads than CPUs, who spins keeps the one that works waiting.
  impl_->spin = threads_ <= static_cast<int>(cpus.size());
  impl_->shares = std::vector<Share>(static_cast<size_t>(threads_));
  pin = pin && impl_->spin;
  for (int worker = 1; worker < threads_; ++worker) {
    const int cpu = pin ? cpus[static_cast<size_t>(worker)] : -1;
    impl_->workers.emplace_back([this, worker, cpu] {
      NameThisThread("step worker");
      if (cpu >= 0) {
        PinThisThread(cpu);
      }
      impl_->Run(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->Wake();
  for (std::thread& thread : impl_->workers) {
    thread.join();
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t, int)> fn) {
  if (count <= 0) {
    return;
  }
  constexpr int64_t kGrainsMax = int64_t{1} << 31;
  grain = std::max<int64_t>({grain, 1, count / kGrainsMax + 1});
  if (threads_ == 1 || count <= grain) {
    fn(0, count, 0);
    return;
  }
  Impl& impl = *impl_;
  impl.count = count;
  impl.grain = grain;
  impl.fn = &fn;
  const int64_t grains = (count + grain - 1) / grain;
  for (int worker = 0; worker < threads_; ++worker) {
    const Range share{static_cast<uint32_t>(grains * worker / threads_),
                      static_cast<uint32_t>(grains * (worker + 1) / threads_)};
    impl.shares[static_cast<size_t>(worker)].range.store(share.word(), std::memory_order_relaxed);
  }
  impl.state.store(Impl::kOpen, std::memory_order_release);
  impl.Wake();
  impl.Work(0);
  impl.state.fetch_and(~Impl::kOpen, std::memory_order_acq_rel);
  WaitUntil(impl.state, impl.spin, [](int32_t now) { return now == 0; });
}

}  // namespace embergate::engine
