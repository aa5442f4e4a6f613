#include "storage/buffer_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "storage/base/status_macros.h"

namespace embergate::storage {

absl::StatusOr<MappedMemory> MappedMemory::Create(uint64_t bytes) {
  MappedMemory memory;
  if (bytes == 0) {
    return memory;
  }
  if (bytes > PTRDIFF_MAX) {
    return absl::ResourceExhaustedError(absl::StrCat("row store: cannot map ", bytes, " bytes of memory"));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("row store: cannot map ", bytes, " bytes of memory (", strerror(errno), "); lower its limits"));
  }
  memory.data_ = static_cast<uint8_t*>(data);
  memory.bytes_ = bytes;
  // Huge pages spare TLB misses on random rows; refused where the kernel has none.
  if (bytes >= (2u << 20)) {
    madvise(data, bytes, MADV_HUGEPAGE);
  }
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (uint64_t offset = 0; offset < bytes; offset += page) {
    static_cast<volatile uint8_t*>(memory.data_)[offset] = 0;
  }
  return memory;
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) {
    munmap(data_, bytes_);
  }
}

void MappedMemory::Leak() {
  data_ = nullptr;
  bytes_ = 0;
}

absl::StatusOr<BufferPool> BufferPool::Create(uint32_t reads_in_flight_max, uint32_t buffer_bytes) {
  BufferPool pool;
  pool.count_ = reads_in_flight_max + kSpares;
  pool.buffer_bytes_ = buffer_bytes;
  EMBERGATE_ASSIGN_OR_RETURN(pool.memory_,
                             MappedMemory::Create(static_cast<uint64_t>(pool.count_) * pool.buffer_bytes_));
  pool.free_.reserve(pool.count_);
  for (uint32_t i = pool.count_; i > 0; --i) {
    pool.free_.push_back(i - 1);
  }
  return pool;
}

uint32_t BufferPool::Take() {
  if (free_.empty()) {
    return kNone;
  }
  const uint32_t buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void BufferPool::Return(uint32_t buffer) { free_.push_back(buffer); }

}  // namespace embergate::storage
