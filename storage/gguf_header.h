// Parses the header of one GGUF file: key index and tensor infos. The bytes are kept once, in their own mapping, and
// everything else is views and offsets into them. Used by GgufFile alone; its header is the public face.
//
// Layout (little endian): "GGUF", u32 version, u64 tensor count, u64 key count; the keys (string, u32 type, value);
// the tensor infos (string, u32 n, n x u64 dims, u32 type, u64 offset); padding to the alignment; the data section.
#ifndef EMBERGATE_STORAGE_GGUF_HEADER_H_
#define EMBERGATE_STORAGE_GGUF_HEADER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/base/direct_file.h"
#include "storage/gguf_file.h"

namespace embergate::storage {

// Header bytes, read from the file as the parser asks for them. Address space for all that may be needed is taken
// at once, so views stay put while it grows; memory is used only for what was read.
class HeaderBytes {
 public:
  HeaderBytes() = default;
  ~HeaderBytes();
  HeaderBytes(HeaderBytes&& other) noexcept { *this = std::move(other); }
  HeaderBytes& operator=(HeaderBytes&& other) noexcept;

  absl::Status Reserve(const DirectFile& file, uint64_t bytes_max);
  // Makes bytes [0, end) readable. RESOURCE_EXHAUSTED past `bytes_max`.
  absl::Status Load(const DirectFile& file, uint64_t end);
  void Trim(uint64_t bytes);  // gives the rest back
  const uint8_t* data() const { return data_; }
  uint64_t loaded() const { return loaded_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t reserved_ = 0;
  uint64_t loaded_ = 0;
  uint64_t bytes_max_ = 0;
};

struct GgufEntry {
  GgufValueType type;  // of the elements, for an array
  bool is_array = false;
  uint64_t count = 1;         // elements
  uint64_t value_offset = 0;  // of the value, or of the first element
};

struct GgufHeader {
  uint32_t version = 0;
  uint32_t alignment = 32;
  uint64_t header_bytes = 0;
  HeaderBytes bytes;
  std::vector<std::pair<absl::string_view, GgufEntry>> entries;  // in file order
  absl::flat_hash_map<absl::string_view, uint32_t> entry_index;
  std::vector<GgufTensor> tensors;  // in file order, shard = 0
};

// `header_bytes_max` replaces limits.header_bytes_max. Every tensor of the result lies inside the file and overlaps
// no other. Duplicate tensor names are the caller's to find (it sees all shards).
absl::StatusOr<GgufHeader> ReadGgufHeader(const DirectFile& file, const GgufFile::Limits& limits,
                                          uint64_t header_bytes_max);

// A name from a file, fit for an error message: escaped, and shortened past 80 bytes.
std::string PrintableName(absl::string_view name);
absl::string_view NameOf(GgufValueType type);

// Bytes of a value of fixed size; 0 for strings and arrays.
uint32_t FixedBytesOf(GgufValueType type);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_GGUF_HEADER_H_
