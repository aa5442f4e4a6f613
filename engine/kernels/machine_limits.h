// What this machine can do at most, measured: the two numbers that bound decode and prefill.
#ifndef EMBERGATE_ENGINE_KERNELS_MACHINE_LIMITS_H_
#define EMBERGATE_ENGINE_KERNELS_MACHINE_LIMITS_H_

#include <cstddef>
#include <string>

#include "engine/thread_pool.h"

namespace embergate::engine {

struct MachineLimits {
  double read_bytes_per_second = 0;   // all threads reading distinct parts of memory that no cache holds
  double integer_ops_per_second = 0;  // 8-bit multiplications and additions, all threads, registers only
  std::string integer_loop;           // the instructions of that loop: "vpdpbusd", "maddubs+madd+add", "sdot", ...
};

// Runs for about `seconds`, on the pool's threads, with the instruction set in use (KernelIsa). Reads a buffer of
// `buffer_bytes` (default: 1 GiB, or an eighth of the memory where that is less); the best of several passes each,
// because other work on the machine only ever lowers them. Zeros when the buffer is refused.
MachineLimits MeasureMachine(ThreadPool& pool, double seconds = 1.0, size_t buffer_bytes = 0);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_MACHINE_LIMITS_H_
