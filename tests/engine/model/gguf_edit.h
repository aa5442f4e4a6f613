// Copies a GGUF file with changes, to make models that are wrong in one place.
#ifndef EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_
#define EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {

struct GgufEdit {
  std::set<std::string> drop_keys;
  std::map<std::string, std::vector<int32_t>> ints;  // one value = a scalar; replaces or adds
  std::map<std::string, std::vector<float>> floats;
  std::map<std::string, std::string> strings;
  std::set<std::string> drop_tensors;
  std::map<std::string, std::vector<uint64_t>> shapes;             // data zero-filled
  std::map<std::string, storage::TensorType> types;                // data zero-filled
  std::vector<std::pair<std::string, std::vector<uint64_t>>> add;  // F32 zeros
  std::map<std::string, std::string> rename;
};

inline void CopyKey(const storage::GgufFile& in, const std::string& key, storage::GgufWriter& out) {
  bool is_array = false;
  uint64_t count = 0;
  const storage::GgufValueType type = *in.TypeOf(key, &is_array, &count);
  switch (type) {
    case storage::GgufValueType::kString:
      if (is_array) {
        std::vector<std::string> values;
        const auto strings = in.GetStrings(key);
        for (const absl::string_view value : *strings) {
          values.emplace_back(value);
        }
        out.AddStrings(key, values);
      } else {
        out.AddString(key, *in.GetString(key));
      }
      return;
    case storage::GgufValueType::kF32:
    case storage::GgufValueType::kF64:
      is_array ? out.AddFloats(key, *in.GetFloats(key)) : out.AddFloat(key, static_cast<float>(*in.GetFloat(key)));
      return;
    case storage::GgufValueType::kBool: {
      const auto ints = in.GetInts(key);
      if (is_array) {
        out.AddBools(key, std::vector<bool>(ints->begin(), ints->end()));
      } else {
        out.AddBool(key, (*ints)[0] != 0);
      }
      return;
    }
    default: {
      const auto ints = in.GetInts(key);
      if (is_array) {
        out.AddInt32s(key, std::vector<int32_t>(ints->begin(), ints->end()));
      } else {
        out.AddInt32(key, static_cast<int32_t>((*ints)[0]));
      }
    }
  }
}

inline void EditGguf(const std::string& from, const std::string& to, const GgufEdit& edit) {
  auto in = storage::GgufFile::Open(from);
  ASSERT_TRUE(in.ok()) << in.status();
  auto out = storage::GgufWriter::Create(to);
  ASSERT_TRUE(out.ok()) << out.status();
  for (const std::string& key : (*in)->keys()) {
    if (key != "general.alignment" && edit.drop_keys.count(key) == 0 && edit.ints.count(key) == 0 &&
        edit.floats.count(key) == 0 && edit.strings.count(key) == 0) {
      CopyKey(**in, key, **out);
    }
  }
  for (const auto& [key, values] : edit.ints) {
    values.size() == 1 ? (*out)->AddInt32(key, values[0]) : (*out)->AddInt32s(key, values);
  }
  for (const auto& [key, values] : edit.floats) {
    values.size() == 1 ? (*out)->AddFloat(key, values[0]) : (*out)->AddFloats(key, values);
  }
  for (const auto& [key, value] : edit.strings) {
    (*out)->AddString(key, value);
  }
  struct Part {
    const storage::GgufTensor* source;  // null = zeros
    uint64_t bytes;
  };
  std::vector<Part> parts;
  for (const storage::GgufTensor& tensor : (*in)->tensors()) {
    if (edit.drop_tensors.count(tensor.name) > 0) {
      continue;
    }
    const auto shape = edit.shapes.find(tensor.name);
    const auto type = edit.types.find(tensor.name);
    const auto name = edit.rename.find(tensor.name);
    const std::vector<uint64_t>& dims = shape == edit.shapes.end() ? tensor.dims : shape->second;
    const storage::TensorType stored = type == edit.types.end() ? tensor.type : type->second;
    uint64_t elements = 1;
    for (const uint64_t dim : dims) {
      elements *= dim;
    }
    ASSERT_TRUE((*out)->AddTensor(name == edit.rename.end() ? tensor.name : name->second, stored, dims).ok());
    const bool changed = shape != edit.shapes.end() || type != edit.types.end();
    parts.push_back({changed ? nullptr : &tensor, *storage::BytesOf(stored, elements)});
  }
  for (const auto& [name, dims] : edit.add) {
    uint64_t elements = 1;
    for (const uint64_t dim : dims) {
      elements *= dim;
    }
    ASSERT_TRUE((*out)->AddTensor(name, storage::TensorType::kF32, dims).ok());
    parts.push_back({nullptr, elements * sizeof(float)});
  }
  ASSERT_TRUE((*out)->BeginData().ok());
  for (const Part& part : parts) {
    std::vector<uint8_t> bytes(part.bytes);
    if (part.source != nullptr) {
      ASSERT_TRUE((*in)->ReadTensor(*part.source, 0, absl::MakeSpan(bytes)).ok());
    }
    ASSERT_TRUE((*out)->AppendData(bytes).ok());
  }
  ASSERT_TRUE((*out)->Finish().ok());
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_
