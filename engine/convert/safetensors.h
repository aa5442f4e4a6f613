// Reads safetensors files and the (single or sharded) checkpoints that they make up, and writes small or large ones
// in one pass. Knows names, types, shapes and bytes; not what a tensor means. A file is untrusted: the header is
// bounded before it is read, and every type, shape, offset, overlap and hole is checked before use.
//
// Format: u64 little-endian header length n; n bytes of JSON {"name": {"dtype": "F32", "shape": [..],
// "data_offsets": [begin, end]}, ..., "__metadata__": {string: string}}; then the data, which the tensors cover
// without overlap or hole. Row-major; a shape [] is a scalar.
#ifndef EMBERGATE_ENGINE_CONVERT_SAFETENSORS_H_
#define EMBERGATE_ENGINE_CONVERT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace embergate::engine {

enum class SafetensorsType { kF32, kF16, kBF16, kF64, kI8, kI16, kI32, kI64, kU8, kU16, kU32, kU64, kBool, kOther };

// "F32"; "other" for kOther.
const char* SafetensorsTypeName(SafetensorsType type);
// Bytes of one element; 0 for kOther.
uint64_t SafetensorsTypeBytes(SafetensorsType type);

struct SafetensorsTensor {
  std::string name;
  SafetensorsType type = SafetensorsType::kOther;
  std::string type_name;  // as in the file: an 8-bit float, say, is kOther but can still be named
  std::vector<uint64_t> shape;
  uint64_t elements = 1;     // product of the shape
  uint64_t file_offset = 0;  // of the first byte, from the start of the file
  uint64_t bytes = 0;
};

// "[3, 4]", for messages.
std::string ShapeString(absl::Span<const uint64_t> shape);

// One file. Threads: immutable after Open; reads use pread, so any thread may read.
class SafetensorsFile {
 public:
  static constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the format's own bound
  static constexpr int kDimsMax = 8;

  // Errors: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (malformed), DATA_LOSS (shorter than its tensors).
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  absl::Span<const SafetensorsTensor> tensors() const { return tensors_; }  // in order of their bytes
  const SafetensorsTensor* Find(absl::string_view name) const;              // null if absent
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Reads `out.size()` bytes that start `offset` bytes into the tensor. OUT_OF_RANGE, DATA_LOSS, UNAVAILABLE.
  absl::Status Read(const SafetensorsTensor& tensor, uint64_t offset, absl::Span<uint8_t> out) const;
  // The elements [first, first + out.size()) of an F32, F16 or BF16 tensor as f32; UNIMPLEMENTED for other types.
  absl::Status ReadFloats(const SafetensorsTensor& tensor, uint64_t first, absl::Span<float> out) const;
  // All elements of an integer tensor. INVALID_ARGUMENT for other types, RESOURCE_EXHAUSTED above `elements_max`.
  absl::StatusOr<std::vector<int64_t>> ReadInts(const SafetensorsTensor& tensor,
                                                uint64_t elements_max = 1u << 24) const;

 private:
  SafetensorsFile(std::string path, int fd);
  absl::Status ReadHeader();

  std::string path_;
  int fd_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

// The checkpoint of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json lists.
class SafetensorsFolder {
 public:
  struct Entry {
    const SafetensorsFile* file;
    const SafetensorsTensor* tensor;
  };
  static constexpr int kShardsMax = 1000;

  // Errors: as SafetensorsFile::Open; NOT_FOUND if the folder holds no such checkpoint; FAILED_PRECONDITION when
  // index and shards disagree (both named).
  static absl::StatusOr<std::unique_ptr<SafetensorsFolder>> Open(const std::string& folder);

  // Null file if absent.
  Entry Find(absl::string_view name) const;
  const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  uint64_t bytes() const { return bytes_; }  // of all tensors
  int shard_count() const { return static_cast<int>(files_.size()); }

 private:
  SafetensorsFolder() = default;
  absl::Status AddFile(const std::string& path);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> tensors_;
  uint64_t bytes_ = 0;
};

// Writes a file in one pass: Add all tensors, then Append their bytes in that order, then Finish. The data go to
// "`path`.partial", which becomes `path` when Finish succeeds and vanishes otherwise. Threads: one.
class SafetensorsWriter {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // INVALID_ARGUMENT for a repeated name, kOther or a size that overflows; FAILED_PRECONDITION after Append.
  absl::Status Add(absl::string_view name, SafetensorsType type, absl::Span<const uint64_t> shape);
  void AddMetadata(absl::string_view key, absl::string_view value);
  // Any number of bytes at a time, little endian. OUT_OF_RANGE past the declared tensors.
  absl::Status Append(absl::Span<const uint8_t> bytes);
  absl::Status AppendFloats(absl::Span<const float> values);  // for F32 tensors
  // Fails (FAILED_PRECONDITION) if bytes are missing.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, int fd);
  absl::Status WriteHeader();
  absl::Status WriteAll(const void* data, size_t bytes);

  std::string path_;
  int fd_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, std::string> metadata_;
  uint64_t data_bytes_ = 0;  // declared
  uint64_t written_bytes_ = 0;
  bool header_written_ = false;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_SAFETENSORS_H_
