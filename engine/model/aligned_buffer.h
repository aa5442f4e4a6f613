// Memory allocated once, zeroed (and so really there) and 64-byte aligned; in huge pages where it is large and the
// system gives them (rows of activations and of the KV cache are a page or more apart).
#ifndef EMBERGATE_ENGINE_MODEL_ALIGNED_BUFFER_H_
#define EMBERGATE_ENGINE_MODEL_ALIGNED_BUFFER_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace embergate::engine {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // data() is null if memory is refused and count > 0.
  explicit AlignedBuffer(size_t count) : count_(count) {
    if (count > 0) {
      const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
      constexpr size_t kHugePageBytes = size_t{2} << 20;
      const bool huge = bytes >= kHugePageBytes;
      // Not aligned_alloc, which wants the size to be a multiple of the alignment: the last huge page need not be
      // whole.
      void* memory = nullptr;
      if (posix_memalign(&memory, huge ? kHugePageBytes : 64, bytes) == 0) {
        data_.reset(static_cast<T*>(memory));
        if (huge) {
          madvise(static_cast<void*>(data_.get()), bytes / kHugePageBytes * kHugePageBytes, MADV_HUGEPAGE);
        }
        std::memset(static_cast<void*>(data_.get()), 0, bytes);
      }
    }
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  bool refused() const { return count_ > 0 && data_ == nullptr; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  size_t count_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_ALIGNED_BUFFER_H_
