#include "engine/cpus.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace embergate::engine {
namespace {

// 1024 is the machine's fastest; 0 if nothing is published, as on machines whose cores are all alike.
int CapacityOf(int cpu, const std::string& sysfs) {
  int capacity = 0;
  const std::string path = sysfs + "/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpu_capacity";
  if (std::FILE* file = std::fopen(path.c_str(), "re"); file != nullptr) {
    if (std::fscanf(file, "%d", &capacity) != 1) {
      capacity = 0;
    }
    std::fclose(file);
  }
  return capacity;
}

}  // namespace

CpuOrder OrderCpus(std::vector<int> cpus, const std::string& sysfs) {
  std::vector<std::pair<int, int>> found;  // -capacity, cpu
  for (const int cpu : cpus) {
    found.emplace_back(-CapacityOf(cpu, sysfs), cpu);
  }
  std::sort(found.begin(), found.end());
  CpuOrder order;
  for (const auto& [capacity, cpu] : found) {
    order.cpus.push_back(cpu);
    order.unequal = order.unequal || capacity != found.front().first;
  }
  return order;
}

CpuOrder UsableCpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  // Of the process's first thread: the calling one may be tied to a CPU.
  if (sched_getaffinity(getpid(), sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) {
        cpus.push_back(cpu);
      }
    }
  }
#endif
  if (cpus.empty()) {  // more CPUs than a set holds
    cpus.resize(std::max(1u, std::thread::hardware_concurrency()));
    std::iota(cpus.begin(), cpus.end(), 0);
  }
  return OrderCpus(std::move(cpus), "/sys");
}

int ThreadsOrAll(int threads) { return threads > 0 ? threads : static_cast<int>(UsableCpus().cpus.size()); }

void NameThisThread([[maybe_unused]] const char* name) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), name);
#endif
}

void PinThisThread([[maybe_unused]] int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
#endif
}

}  // namespace embergate::engine
