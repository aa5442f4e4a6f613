// A memory cgroup for one test: v2 or v1, whatever the machine has and lets us make.
#ifndef EMBERGATE_TESTS_SUPPORT_MEMORY_CGROUP_H_
#define EMBERGATE_TESTS_SUPPORT_MEMORY_CGROUP_H_

#include <cstdint>
#include <memory>
#include <string>

namespace embergate::test {

// Removed when destroyed, by when its processes have to have ended.
class MemoryCgroup {
 public:
  // Null when none can be made (no rights, no controller); `why` says what was tried.
  static std::unique_ptr<MemoryCgroup> Create(uint64_t limit_bytes, std::string* why);
  ~MemoryCgroup();
  MemoryCgroup(const MemoryCgroup&) = delete;
  MemoryCgroup& operator=(const MemoryCgroup&) = delete;

  // A process that writes "0" to this file moves into the group.
  std::string procs_file() const { return path_ + "/cgroup.procs"; }
  uint64_t usage_bytes() const;  // page cache and kernel memory included
  uint64_t peak_bytes() const;   // where the kernel keeps it, else 0
  uint64_t cache_bytes() const;  // of the usage, page cache
  uint64_t oom_kills() const;
  uint64_t limit_hits() const;  // times that the limit made the kernel take pages away

 private:
  MemoryCgroup(std::string path, bool v2) : path_(std::move(path)), v2_(v2) {}

  const std::string path_;
  const bool v2_;
};

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_MEMORY_CGROUP_H_
