// Copies a GGUF file with changes, to make models that are wrong in one place.
#ifndef EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_
#define EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/kernels/kernels.h"
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
  std::function<bool(const std::string&)> dequantize;  // by name: the same values as F32
  std::function<float(const std::string&)> scale;      // by name: factor for the values of an F32 tensor
  // A new tensor and those of one type and width whose rows it takes over, one after the other.
  std::map<std::string, std::vector<std::string>> fuse;
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
    case storage::GgufValueType::kU32: {  // others insist on the type
      const auto ints = in.GetInts(key);
      if (is_array) {
        out.AddUint32s(key, std::vector<uint32_t>(ints->begin(), ints->end()));
      } else {
        out.AddUint32(key, static_cast<uint32_t>((*ints)[0]));
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
    std::vector<const storage::GgufTensor*> sources;  // none = zeros
    uint64_t bytes;
    bool dequantized = false;
  };
  std::set<std::string> fused;
  for (const auto& [name, sources] : edit.fuse) {
    fused.insert(sources.begin(), sources.end());
  }
  std::vector<Part> parts;
  for (const storage::GgufTensor& tensor : (*in)->tensors()) {
    if (edit.drop_tensors.count(tensor.name) > 0 || fused.count(tensor.name) > 0) {
      continue;
    }
    const auto shape = edit.shapes.find(tensor.name);
    const auto type = edit.types.find(tensor.name);
    const auto name = edit.rename.find(tensor.name);
    const std::vector<uint64_t>& dims = shape == edit.shapes.end() ? tensor.dims : shape->second;
    const bool dequantized = edit.dequantize && edit.dequantize(tensor.name);
    const storage::TensorType stored = dequantized                ? storage::TensorType::kF32
                                       : type == edit.types.end() ? tensor.type
                                                                  : type->second;
    uint64_t elements = 1;
    for (const uint64_t dim : dims) {
      elements *= dim;
    }
    ASSERT_TRUE((*out)->AddTensor(name == edit.rename.end() ? tensor.name : name->second, stored, dims).ok());
    const bool changed = shape != edit.shapes.end() || type != edit.types.end();
    parts.push_back({changed ? std::vector<const storage::GgufTensor*>() : std::vector{&tensor},
                     *storage::BytesOf(stored, elements), dequantized});
  }
  for (const auto& [name, names] : edit.fuse) {
    Part part = {{}, 0, false};
    uint64_t rows = 0;
    for (const std::string& source : names) {
      const storage::GgufTensor* const tensor = (*in)->FindTensor(source);
      ASSERT_NE(tensor, nullptr) << source;
      part.sources.push_back(tensor);
      part.bytes += tensor->bytes;
      rows += tensor->rows();
    }
    const storage::GgufTensor& first = *part.sources[0];
    ASSERT_TRUE((*out)->AddTensor(name, first.type, std::vector<uint64_t>{first.cols(), rows}).ok());
    parts.push_back(std::move(part));
  }
  for (const auto& [name, dims] : edit.add) {
    uint64_t elements = 1;
    for (const uint64_t dim : dims) {
      elements *= dim;
    }
    ASSERT_TRUE((*out)->AddTensor(name, storage::TensorType::kF32, dims).ok());
    parts.push_back({{}, elements * sizeof(float), false});
  }
  ASSERT_TRUE((*out)->BeginData().ok());
  for (const Part& part : parts) {
    std::vector<uint8_t> bytes(part.bytes);
    if (part.dequantized) {
      const storage::GgufTensor& tensor = *part.sources[0];
      std::vector<uint8_t> blocks(tensor.bytes);
      ASSERT_TRUE((*in)->ReadTensor(tensor, 0, absl::MakeSpan(blocks)).ok());
      std::vector<float> values(tensor.elements());
      DequantizeRow(tensor.type, blocks.data(), static_cast<int64_t>(values.size()), values.data());
      std::memcpy(bytes.data(), values.data(), bytes.size());
      ASSERT_TRUE((*out)->AppendData(bytes).ok());
      continue;
    }
    uint64_t at = 0;
    for (const storage::GgufTensor* const source : part.sources) {
      ASSERT_TRUE((*in)->ReadTensor(*source, 0, absl::MakeSpan(bytes).subspan(at, source->bytes)).ok());
      at += source->bytes;
    }
    if (edit.scale && part.sources.size() == 1 && part.sources[0]->type == storage::TensorType::kF32) {
      const float factor = edit.scale(part.sources[0]->name);
      for (size_t i = 0; i < bytes.size(); i += sizeof(float)) {
        float value = 0;
        std::memcpy(&value, &bytes[i], sizeof(value));
        value *= factor;
        std::memcpy(&bytes[i], &value, sizeof(value));
      }
    }
    ASSERT_TRUE((*out)->AppendData(bytes).ok());
  }
  ASSERT_TRUE((*out)->Finish().ok());
}

// The same model in `count` files as gguf-split writes them: `stem`-00001-of-0000N.gguf and so on; the keys are in the
// first, the tensors are dealt out in turn. Gives the first file's path.
inline std::string SplitGguf(const std::string& from, const std::string& stem, int count) {
  auto in = storage::GgufFile::Open(from);
  EXPECT_TRUE(in.ok()) << in.status();
  const auto path = [&](int i) { return absl::StrFormat("%s-%05d-of-%05d.gguf", stem, i + 1, count); };
  const size_t tensors = (*in)->tensors().size();
  for (int i = 0; i < count; ++i) {
    auto out = storage::GgufWriter::Create(path(i));
    EXPECT_TRUE(out.ok()) << out.status();
    for (const std::string& key : (*in)->keys()) {
      if (i == 0 && key != "general.alignment") {
        CopyKey(**in, key, **out);
      }
    }
    (*out)->AddUint32("split.no", static_cast<uint32_t>(i));
    (*out)->AddUint32("split.count", static_cast<uint32_t>(count));
    (*out)->AddInt32("split.tensors.count", static_cast<int32_t>(tensors));
    const auto mine = [&](size_t index) { return static_cast<int>(index % static_cast<size_t>(count)) == i; };
    for (size_t t = 0; t < tensors; ++t) {
      const storage::GgufTensor& tensor = (*in)->tensors()[t];
      EXPECT_TRUE(!mine(t) || (*out)->AddTensor(tensor.name, tensor.type, tensor.dims).ok());
    }
    EXPECT_TRUE((*out)->BeginData().ok());
    for (size_t t = 0; t < tensors; ++t) {
      const storage::GgufTensor& tensor = (*in)->tensors()[t];
      if (mine(t)) {
        std::vector<uint8_t> bytes(tensor.bytes);
        EXPECT_TRUE((*in)->ReadTensor(tensor, 0, absl::MakeSpan(bytes)).ok());
        EXPECT_TRUE((*out)->AppendData(bytes).ok());
      }
    }
    EXPECT_TRUE((*out)->Finish().ok());
  }
  return path(0);
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_MODEL_GGUF_EDIT_H_
