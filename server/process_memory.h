// What the process itself uses, of memory and CPUs, and how much memory the machine would let it use.
#ifndef EMBERGATE_SERVER_PROCESS_MEMORY_H_
#define EMBERGATE_SERVER_PROCESS_MEMORY_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace embergate::server {

struct ProcessUsage {
  uint64_t resident_bytes = 0;
  uint64_t major_faults = 0;
  uint64_t open_fds = 0;
  double cpu_seconds = 0;
};
// From /proc/self and getrusage; zeros where the kernel gives nothing.
ProcessUsage ReadProcessUsage();

// The threads that compute steps (engine/cpus.h names them "step..."), whoever else runs on their CPUs.
struct StepThreadTimes {
  double cpu_seconds = 0;    // they computed, or waited a moment for the next product
  double delay_seconds = 0;  // they could have, but the kernel ran another thread: gRPC's, or another process's
};
// Of those that live, from `self` ("/proc/self" but for tests); zeros where the kernel gives nothing.
StepThreadTimes ReadStepThreadTimes(const std::string& self = "/proc/self");

// What malloc has given out and not got back.
uint64_t HeapBytes();

// "1500MiB", "2GiB", "512M" (= MiB), "4096", "1.5GB" (powers of 1000). INVALID_ARGUMENT names the text.
absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text);

// For --dram-budget auto: what the cgroup (v2 or v1) leaves, or nine tenths of MemAvailable where that is less (the
// rest is for other processes). `root` is "/" but for tests. NOT_FOUND if neither can be read.
absl::StatusOr<uint64_t> DetectDramBudget(const std::string& root = "/");

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_PROCESS_MEMORY_H_
