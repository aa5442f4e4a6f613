#include "engine/kernels/machine_limits.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "engine/kernels/kernel_table.h"
#include "engine/kernels/matrix_impl.h"

namespace embergate::engine {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

size_t DefaultBufferBytes() {
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::min(size_t{1} << 30, memory / 8);
}

uint64_t RefRead(const uint8_t* p, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, p + i, 8);
    sum += word;
  }
  return sum;
}

int64_t RefIntegerLoop(int64_t rounds, int32_t* result) {
  uint32_t sum[8] = {1, 2, 3, 4, 5, 6, 7, 8};  // these may wrap around
  for (int64_t i = 0; i < rounds; ++i) {
    for (int k = 0; k < 8; ++k) {
      sum[k] += sum[(k + 1) % 8] * 3;
    }
  }
  *result = static_cast<int32_t>(sum[0]);
  return rounds * 16;
}

}  // namespace

const MachineTable kRefMachine = {RefRead, RefIntegerLoop, "multiply+add"};

MachineLimits MeasureMachine(ThreadPool& pool, double seconds, size_t buffer_bytes) {
  constexpr size_t kPart = size_t{1} << 20;
  const MachineTable& table = *Kernels().machine;
  MachineLimits limits;
  limits.integer_loop = table.integer_loop_name;
  HugeMemory buffer;
  if (!buffer.Allocate(std::max(buffer_bytes == 0 ? DefaultBufferBytes() : buffer_bytes, kPart))) {
    return limits;
  }
  const int64_t parts = static_cast<int64_t>(buffer.bytes() / kPart);
  // Written first: pages that were never written all map the same page of zeros.
  pool.ParallelFor(parts, 1, [&](int64_t begin, int64_t end, int) {
    std::memset(buffer.data() + static_cast<size_t>(begin) * kPart, 1, static_cast<size_t>(end - begin) * kPart);
  });
  std::atomic<uint64_t> sink{0};  // so that nothing is optimised away
  for (const Clock::time_point start = Clock::now(); SecondsSince(start) < seconds / 2;) {
    const Clock::time_point pass = Clock::now();
    pool.ParallelFor(parts, 4, [&](int64_t begin, int64_t end, int) {
      sink += table.read(buffer.data() + static_cast<size_t>(begin) * kPart, static_cast<size_t>(end - begin) * kPart);
    });
    limits.read_bytes_per_second =
        std::max(limits.read_bytes_per_second, static_cast<double>(parts) * kPart / SecondsSince(pass));
  }
  for (const Clock::time_point start = Clock::now(); SecondsSince(start) < seconds / 2;) {
    std::atomic<int64_t> ops{0};
    const Clock::time_point pass = Clock::now();
    pool.ParallelFor(pool.threads() * 4, 1, [&](int64_t, int64_t, int) {
      int32_t result = 0;
      ops += table.integer_loop(10000, &result);
      sink += static_cast<uint64_t>(result);
    });
    limits.integer_ops_per_second =
        std::max(limits.integer_ops_per_second, static_cast<double>(ops) / SecondsSince(pass));
  }
  return limits;
}

}  // namespace embergate::engine
