// The CPUs that steps may run on, and the threads that do.
#ifndef EMBERGATE_ENGINE_CPUS_H_
#define EMBERGATE_ENGINE_CPUS_H_

#include <string>
#include <vector>

namespace embergate::engine {

struct CpuOrder {
  std::vector<int> cpus;  // the kernel's numbers: those of highest capacity first, else in order
  bool unequal = false;   // some have a higher capacity than others (big.LITTLE)
};

// Orders `cpus` by the capacity that `sysfs` ("/sys" but for tests) publishes for each; where it publishes none, all
// are equal.
CpuOrder OrderCpus(std::vector<int> cpus, const std::string& sysfs);

// Those that this process may use: by taskset, a container's cpuset or systemd's AllowedCPUs perhaps fewer than the
// machine has. Never empty.
CpuOrder UsableCpus();
// `threads`, or one for each of them where that is 0: what the setting of that name means.
int ThreadsOrAll(int threads);

// What `top -H` and /proc call the calling thread; of at most 15 characters.
void NameThisThread(const char* name);
// Ties the calling thread to one CPU. Some containers refuse that: merely slower.
void PinThisThread(int cpu);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CPUS_H_
