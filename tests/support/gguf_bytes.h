// GGUF files built byte by byte, for tests of the reader: nothing here is checked, so any malformed file can be made.
#ifndef EMBERGATE_TESTS_SUPPORT_GGUF_BYTES_H_
#define EMBERGATE_TESTS_SUPPORT_GGUF_BYTES_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "storage/gguf_file.h"
#include "storage/tensor_type.h"

namespace embergate::test {

// Little-endian bytes of a number.
template <typename T>
std::string Le(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline std::string Str(absl::string_view text) { return Le(uint64_t{text.size()}) + std::string(text); }

// "key" entry: key string, type id, value bytes.
inline std::string Entry(absl::string_view key, storage::GgufValueType type, const std::string& value) {
  return Str(key) + Le(static_cast<uint32_t>(type)) + value;
}

inline std::string ArrayEntry(absl::string_view key, storage::GgufValueType element, uint64_t count,
                              const std::string& values) {
  return Entry(key, storage::GgufValueType::kArray, Le(static_cast<uint32_t>(element)) + Le(count) + values);
}

inline std::string TensorInfo(absl::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                              uint64_t offset) {
  std::string out = Str(name) + Le(static_cast<uint32_t>(dims.size()));
  for (const uint64_t dim : dims) {
    out += Le(dim);
  }
  return out + Le(type) + Le(offset);
}

struct GgufBytes {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> entries;
  std::vector<std::string> tensors;
  uint64_t alignment = 32;
  std::string data;
  // Added to the true counts.
  int64_t extra_tensor_count = 0;
  int64_t extra_key_count = 0;

  std::string Header() const {
    std::string out = magic + Le(version) + Le(tensors.size() + static_cast<uint64_t>(extra_tensor_count)) +
                      Le(entries.size() + static_cast<uint64_t>(extra_key_count));
    for (const std::string& entry : entries) {
      out += entry;
    }
    for (const std::string& tensor : tensors) {
      out += tensor;
    }
    return out;
  }
  std::string Build() const {
    std::string out = Header();
    if (!data.empty()) {
      out.resize((out.size() + alignment - 1) / alignment * alignment);
    }
    return out + data;
  }
};

// A small valid file with a key of every type, arrays of all of them, and tensors of several types.
inline GgufBytes RichGguf() {
  using enum storage::GgufValueType;
  GgufBytes file;
  file.entries = {
      Entry("general.architecture", kString, Str("gemma4")),
      Entry("general.alignment", kU32, Le(uint32_t{32})),
      Entry("t.u8", kU8, Le(uint8_t{200})),
      Entry("t.i8", kI8, Le(int8_t{-100})),
      Entry("t.u16", kU16, Le(uint16_t{60000})),
      Entry("t.i16", kI16, Le(int16_t{-30000})),
      Entry("t.u32", kU32, Le(uint32_t{4000000000})),
      Entry("t.i32", kI32, Le(int32_t{-2000000000})),
      Entry("t.f32", kF32, Le(1.5f)),
      Entry("t.bool", kBool, Le(uint8_t{1})),
      Entry("t.u64", kU64, Le(~uint64_t{0})),
      Entry("t.i64", kI64, Le(int64_t{-5000000000})),
      Entry("t.f64", kF64, Le(2.25)),
      ArrayEntry("a.u8", kU8, 3, "\x01\x02\xff"),
      ArrayEntry("a.i16", kI16, 2, Le(int16_t{-1}) + Le(int16_t{7})),
      ArrayEntry("a.i32", kI32, 3, Le(int32_t{6144}) + Le(int32_t{-1}) + Le(int32_t{12288})),
      ArrayEntry("a.u64", kU64, 1, Le(uint64_t{1} << 40)),
      ArrayEntry("a.f32", kF32, 2, Le(0.25f) + Le(-4.0f)),
      ArrayEntry("a.f64", kF64, 1, Le(1e300)),
      ArrayEntry("a.bool", kBool, 4, std::string("\x01\x01\x00\x01", 4)),
      ArrayEntry("a.string", kString, 3, Str("") + Str("one") + Str("\xe2\x96\x81two")),
      ArrayEntry("a.empty", kF32, 0, ""),
      ArrayEntry("a.nested", kArray, 2,
                 Le(uint32_t{4}) + Le(uint64_t{2}) + Le(uint32_t{1}) + Le(uint32_t{2}) +  // u32[2]
                     Le(uint32_t{8}) + Le(uint64_t{1}) + Str("deep")),                    // string[1]
  };
  file.tensors = {
      TensorInfo("token_embd.weight", {64, 8}, static_cast<uint32_t>(storage::TensorType::kQ4_0), 0),  // 288 bytes
      TensorInfo("blk.0.attn_norm.weight", {64}, static_cast<uint32_t>(storage::TensorType::kF32), 288),
      TensorInfo("blk.0.cube", {4, 3, 2}, static_cast<uint32_t>(storage::TensorType::kF16), 544),  // 48 bytes
      TensorInfo("scalar", {}, static_cast<uint32_t>(storage::TensorType::kF32), 608),
  };
  file.data.resize(640);
  for (size_t i = 0; i < file.data.size(); ++i) {
    file.data[i] = static_cast<char>(i * 31);
  }
  return file;
}

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_GGUF_BYTES_H_
