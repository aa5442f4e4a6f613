// What of a file is in the page cache.
#ifndef EMBERGATE_TESTS_STORAGE_PAGE_CACHE_H_
#define EMBERGATE_TESTS_STORAGE_PAGE_CACHE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

namespace embergate::storage {

inline size_t PageBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// By page, whether it is there.
inline std::vector<bool> ResidentPages(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  fstat(fd, &info);
  const size_t bytes = static_cast<size_t>(info.st_size);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  std::vector<unsigned char> in_core((bytes + PageBytes() - 1) / PageBytes());
  mincore(map, bytes, in_core.data());
  munmap(map, bytes);
  close(fd);
  std::vector<bool> resident;
  for (const unsigned char page : in_core) {
    resident.push_back((page & 1) != 0);
  }
  return resident;
}

inline size_t CachedPages(const std::string& path) {
  const std::vector<bool> resident = ResidentPages(path);
  return static_cast<size_t>(std::count(resident.begin(), resident.end(), true));
}

inline void DropCache(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  fsync(fd);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
}

// Brings one page, and no more, into the cache.
inline void ReadPage(const std::string& path, size_t page) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  char byte = 0;
  (void)!pread(fd, &byte, 1, static_cast<off_t>(page * PageBytes()));
  close(fd);
}

}  // namespace embergate::storage

#endif  // EMBERGATE_TESTS_STORAGE_PAGE_CACHE_H_
