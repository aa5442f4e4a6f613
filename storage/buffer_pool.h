// Memory that is mapped, zeroed and touched once, so that its cost is known and paid at start; and the landing
// buffers that device reads go into.
#ifndef EMBERGATE_STORAGE_BUFFER_POOL_H_
#define EMBERGATE_STORAGE_BUFFER_POOL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace embergate::storage {

// An anonymous private mapping: page-aligned, resident from the start (no page faults later), moved but not copied.
class MappedMemory {
 public:
  // RESOURCE_EXHAUSTED if the system has no such memory. `bytes` may be 0.
  static absl::StatusOr<MappedMemory> Create(uint64_t bytes);
  MappedMemory() = default;
  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  ~MappedMemory();

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Gives up ownership without unmapping: for memory that a device may still write into.
  void Leak();

 private:
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// `count` equal buffers in one mapping. Users of a buffer: one read in flight each, plus a few spares that stand in
// for buffers whose completion never came (the device may still write into those, so they must not be used again).
// Threads: one.
class BufferPool {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint32_t kSpares = 4;

  static absl::StatusOr<BufferPool> Create(uint32_t reads_in_flight_max, uint32_t buffer_bytes);

  // kNone if all are taken.
  uint32_t Take();
  void Return(uint32_t buffer);
  uint8_t* data(uint32_t buffer) const { return memory_.data() + static_cast<uint64_t>(buffer) * buffer_bytes_; }
  uint32_t count() const { return count_; }
  uint32_t buffer_bytes() const { return buffer_bytes_; }
  uint32_t taken() const { return count_ - static_cast<uint32_t>(free_.size()); }
  absl::Span<uint8_t> whole() const { return {memory_.data(), memory_.bytes()}; }
  void Leak() { memory_.Leak(); }

 private:
  MappedMemory memory_;
  uint32_t count_ = 0;
  uint32_t buffer_bytes_ = 0;
  std::vector<uint32_t> free_;  // a stack: the buffer used last is the warmest in the processor's cache
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_BUFFER_POOL_H_
