// Reads the GGUF container: metadata, tensor names, shapes, types and byte ranges. It does not know what any
// key or tensor means. Hostile input is normal input: every count, offset, length, shape and overlap is
// checked before use, and an error names file, byte offset, key or tensor.
#ifndef EMBERGATE_STORAGE_GGUF_FILE_H_
#define EMBERGATE_STORAGE_GGUF_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "storage/tensor_type.h"

namespace embergate::storage {

// Ids as stored in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct GgufTensor {
  std::string name;
  TensorType type;
  std::vector<uint64_t> dims;  // dims[0] is the contiguous one; 1 to 4 of them (a scalar: {1}), each >= 1
  int shard = 0;               // index of the file that holds the bytes
  uint64_t file_offset = 0;    // of the first byte, from the start of that file
  uint64_t bytes = 0;

  uint64_t elements() const;
  uint64_t cols() const { return dims[0]; }               // elements of one row
  uint64_t rows() const { return elements() / dims[0]; }  // all other dimensions together
  uint64_t row_bytes() const { return bytes / rows(); }
};

// Threads: immutable after Open, so any thread may call the const methods; ReadTensor uses pread.
// Lifetime: string views and spans point into the object.
class GgufFile {
 public:
  // The defaults keep what any file can make Open and one getter allocate below 64 MB. A vocabulary of 262144
  // tokens with 514906 merges takes about 17 MB of header.
  struct Limits {
    uint64_t header_bytes_max = 40u << 20;  // metadata and tensor infos, of all files that are held at once
    uint64_t tensors_max = 32768;
    uint64_t keys_max = 16384;
    uint64_t array_elements_max = 1u << 20;  // that one of the array getters returns
    uint64_t shards_max = 128;
  };

  // Opens `path`. A name that ends in -00001-of-0000N.gguf (any shard of it) opens all N files; metadata comes
  // from the first. Errors: NOT_FOUND, PERMISSION_DENIED (cannot open), INVALID_ARGUMENT (not a GGUF file or a
  // malformed one), DATA_LOSS (shorter than its own tensors), RESOURCE_EXHAUSTED (past `limits`), UNAVAILABLE
  // (device error).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path, const Limits& limits);
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path) { return Open(path, Limits()); }
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  uint32_t version() const;
  uint32_t alignment() const;
  int shard_count() const;
  const std::string& shard_path(int shard) const;
  uint64_t shard_bytes(int shard) const;

  // ---- Tensors, in file order ----
  absl::Span<const GgufTensor> tensors() const;
  const GgufTensor* FindTensor(absl::string_view name) const;
  // Reads `out.size()` bytes that start `offset` bytes into the tensor. Leaves nothing in the page cache where
  // the file system allows that. Bytes are copied once more (through 1 MiB) unless `out.data()` and the byte's place
  // in the file leave the same remainder modulo 4096. Errors: OUT_OF_RANGE, DATA_LOSS (short file), UNAVAILABLE (device
  // error).
  absl::Status ReadTensor(const GgufTensor& tensor, uint64_t offset, absl::Span<uint8_t> out) const;
  // The same for any bytes of a shard, for who reads several tensors at once. Errors: OUT_OF_RANGE (a shard that is not
  // there), DATA_LOSS, UNAVAILABLE.
  absl::Status ReadBytes(int shard, uint64_t file_offset, absl::Span<uint8_t> out) const;

  // ---- Metadata ----
  std::vector<std::string> keys() const;  // in file order
  bool Has(absl::string_view key) const;
  // NOT_FOUND for an absent key, INVALID_ARGUMENT for another type or a value that does not fit. Integers of any
  // stored width and sign are read as one another when the value fits; F64 as F32 too.
  absl::StatusOr<uint64_t> GetUint(absl::string_view key) const;
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;  // also takes integers
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<absl::string_view> GetString(absl::string_view key) const;
  // The element type, if the key is an array; the value's own type otherwise. `count` (may be null) gets the
  // number of elements, 1 for a scalar.
  absl::StatusOr<GgufValueType> TypeOf(absl::string_view key, bool* is_array, uint64_t* count) const;
  // Arrays; a scalar is read as an array of one where the element type fits. RESOURCE_EXHAUSTED past
  // Limits::array_elements_max.
  absl::StatusOr<std::vector<int64_t>> GetInts(absl::string_view key) const;  // integers and bools
  absl::StatusOr<std::vector<float>> GetFloats(absl::string_view key) const;
  absl::StatusOr<std::vector<absl::string_view>> GetStrings(absl::string_view key) const;

 private:
  struct Impl;
  explicit GgufFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_GGUF_FILE_H_
