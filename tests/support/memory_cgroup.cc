#include "tests/support/memory_cgroup.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>
#include <utility>

namespace embergate::test {
namespace {

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.flush();
  return file.good();
}

uint64_t ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  file >> value;
  return value;
}

// The value beside `key` in a file of "key value" lines.
uint64_t ReadKey(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string name;
  uint64_t value = 0;
  while (file >> name >> value) {
    if (name == key) {
      return value;
    }
  }
  return 0;
}

}  // namespace

std::unique_ptr<MemoryCgroup> MemoryCgroup::Create(uint64_t limit_bytes, std::string* why) {
  static std::atomic<int> number{0};
  const std::string name = "/embergate_test_" + std::to_string(getpid()) + "_" + std::to_string(number.fetch_add(1));
  const struct {
    const char* root;
    bool v2;
  } kRoots[] = {{"/sys/fs/cgroup", true}, {"/sys/fs/cgroup/memory", false}};
  why->clear();
  for (const auto& [root, v2] : kRoots) {
    const std::string path = root + name;
    if (access((std::string(root) + (v2 ? "/cgroup.controllers" : "/memory.limit_in_bytes")).c_str(), F_OK) != 0) {
      *why += std::string(root) + ": no memory cgroups there; ";
      continue;
    }
    if (mkdir(path.c_str(), 0755) != 0) {
      *why += path + ": " + std::strerror(errno) + "; ";
      continue;
    }
    std::unique_ptr<MemoryCgroup> group(new MemoryCgroup(path, v2));
    if (WriteFile(path + (v2 ? "/memory.max" : "/memory.limit_in_bytes"), std::to_string(limit_bytes))) {
      // No swapping out of what should have been refused.
      (void)WriteFile(path + (v2 ? "/memory.swap.max" : "/memory.swappiness"), "0");
      return group;
    }
    *why += path + ": its limit cannot be set (is the memory controller enabled?); ";
  }
  return nullptr;
}

MemoryCgroup::~MemoryCgroup() {
  // A process that has just ended may still be counted.
  for (int i = 0; i < 200 && rmdir(path_.c_str()) != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

uint64_t MemoryCgroup::usage_bytes() const {
  return ReadNumber(path_ + (v2_ ? "/memory.current" : "/memory.usage_in_bytes"));
}
uint64_t MemoryCgroup::peak_bytes() const {
  return ReadNumber(path_ + (v2_ ? "/memory.peak" : "/memory.max_usage_in_bytes"));
}
uint64_t MemoryCgroup::cache_bytes() const { return ReadKey(path_ + "/memory.stat", v2_ ? "file" : "cache"); }
uint64_t MemoryCgroup::oom_kills() const {
  return ReadKey(path_ + (v2_ ? "/memory.events" : "/memory.oom_control"), "oom_kill");
}
uint64_t MemoryCgroup::limit_hits() const {
  return v2_ ? ReadKey(path_ + "/memory.events", "max") : ReadNumber(path_ + "/memory.failcnt");
}

}  // namespace embergate::test
