// What `inspect` says of a file must agree with what the loader does with it.
#include "engine/model/file_report.h"

#include <string>

#include "engine/convert/model_keys.h"
#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "engine/model/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_writer.h"
#include "tests/support/gguf_bytes.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::GgufTensor;
using storage::TensorType;
using ::testing::HasSubstr;

class FileReportTest : public ::testing::Test {
 protected:
  std::unique_ptr<GgufFile> Open() {
    auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : nullptr;
  }
  std::unique_ptr<GgufFile> Synthesise(const char* shape) {
    EXPECT_TRUE(SynthesiseModel(*FindModelShape(shape), path_, SynthOptions()).ok());
    return Open();
  }
  // The same file with more tensors of 64 floats at its end.
  std::unique_ptr<GgufFile> WithTensors(const GgufFile& source, const std::vector<std::string>& names) {
    const std::string other = folder_.File("other.gguf");
    auto writer = *storage::GgufWriter::Create(other);
    writer->AddString("general.architecture", "gemma4");
    AddModelKeys(ConfigOf(*FindModelShape("gemma4-tiny")), *writer);
    for (const GgufTensor& tensor : source.tensors()) {
      EXPECT_TRUE(writer->AddTensor(tensor.name, tensor.type, tensor.dims).ok());
    }
    for (const std::string& name : names) {
      EXPECT_TRUE(writer->AddTensor(name, TensorType::kF32, {64}).ok());
    }
    EXPECT_TRUE(writer->BeginData().ok());
    for (const GgufTensor& tensor : source.tensors()) {
      std::vector<uint8_t> bytes(tensor.bytes);
      EXPECT_TRUE(source.ReadTensor(tensor, 0, absl::MakeSpan(bytes)).ok());
      EXPECT_TRUE(writer->AppendData(bytes).ok());
    }
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_TRUE(writer->AppendData(std::vector<uint8_t>(256)).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    return *GgufFile::Open(other);
  }

  test::TempFolder folder_;
  std::string path_ = folder_.File("model.gguf");
};

TEST_F(FileReportTest, PlacesAgreeWithTheLoader) {
  for (const char* shape : {"gemma4-tiny", "gemma3n-tiny"}) {
    const auto file = Synthesise(shape);
    ASSERT_NE(file, nullptr);
    const FileReport report = ReportFile(*file);
    ASSERT_TRUE(report.config.has_value()) << report.refusal;
    const auto weights = CheckWeights(*file, *report.config);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(report.at(FilePlace::kDram).bytes, weights->weight_bytes) << shape;
    EXPECT_EQ(report.at(FilePlace::kFlash).bytes, weights->table_bytes) << shape;
    EXPECT_EQ(report.at(FilePlace::kUnused).bytes, weights->bytes_skipped) << shape;
    EXPECT_EQ(report.at(FilePlace::kUnused).tensors, weights->tensors_skipped) << shape;
    EXPECT_EQ(report.at(FilePlace::kDram).elements + report.at(FilePlace::kFlash).elements, weights->parameters);
  }
}

TEST_F(FileReportTest, SumsAddUpToTheFile) {
  const auto file = Synthesise("gemma3n-tiny");
  ASSERT_NE(file, nullptr);
  const FileReport report = ReportFile(*file);
  uint64_t parts = 0;
  for (const auto& part : report.parts) {
    parts += part.bytes;
  }
  uint64_t types = 0;
  for (const auto& type : report.types) {
    types += type.bytes;
  }
  uint64_t places = 0;
  for (const auto& place : report.places) {
    places += place.bytes;
  }
  EXPECT_EQ(parts, report.total.bytes);
  EXPECT_EQ(types, report.total.bytes);
  EXPECT_EQ(places, report.total.bytes);
  EXPECT_EQ(report.total.bytes + report.other_bytes, report.file_bytes);
  EXPECT_EQ(report.file_bytes, file->shard_bytes(0));
  EXPECT_EQ(report.table_row_bytes, 32u * 15 / 32 * 34);
}

TEST_F(FileReportTest, NoTensorOfOursIsUnknown) {
  for (const ModelShape& shape : ModelShapes()) {
    for (const ShapeTensor& tensor : ShapeTensors(shape)) {
      GgufTensor stored;
      stored.name = tensor.name;
      const FilePart part = PlaceTensor(stored, nullptr).part;
      EXPECT_NE(part, FilePart::kOther) << tensor.name;
      const bool vector = tensor.role == TensorRole::kNorm || tensor.role == TensorRole::kQkNorm ||
                          tensor.role == TensorRole::kOutputNorm || tensor.role == TensorRole::kLayerScale ||
                          tensor.role == TensorRole::kRopeFactors;
      if (part != FilePart::kAltupLaurel) {  // which has norms of its own
        EXPECT_EQ(part == FilePart::kNorms, vector) << tensor.name;
      }
    }
  }
}

TEST_F(FileReportTest, TowersAndKeysOfSharingLayersAreUnused) {
  const auto plain = Synthesise("gemma4-tiny");
  ASSERT_NE(plain, nullptr);
  const auto file = WithTensors(
      *plain, {"v.blk.0.attn_q.weight", "a.conv.weight", "mm.proj.weight", "blk.14.attn_k.weight", "mystery.weight"});
  const FileReport report = ReportFile(*file);
  ASSERT_TRUE(report.config.has_value()) << report.refusal;
  EXPECT_EQ(report.at(FilePlace::kUnused).tensors, 5);
  EXPECT_EQ(report.at(FilePlace::kUnused).bytes, 5u * 256);
  EXPECT_EQ(report.at(FilePlace::kUnused).bytes, CheckWeights(*file, *report.config)->bytes_skipped);
  const auto part_of = [&](const char* name) { return PlaceTensor(*file->FindTensor(name), &*report.config).part; };
  EXPECT_EQ(part_of("v.blk.0.attn_q.weight"), FilePart::kOtherMode);
  EXPECT_EQ(part_of("blk.14.attn_k.weight"), FilePart::kUnusedKv);
  EXPECT_EQ(part_of("blk.0.attn_k.weight"), FilePart::kAttention);
  EXPECT_EQ(part_of("mystery.weight"), FilePart::kOther);
}

TEST_F(FileReportTest, ForeignArchitectureIsReportedWithoutPlaces) {
  test::GgufBytes bytes = test::RichGguf();
  bytes.entries[0] = test::Entry("general.architecture", storage::GgufValueType::kString, test::Str("llama"));
  folder_.Write("model.gguf", bytes.Build());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const FileReport report = ReportFile(*file);
  EXPECT_FALSE(report.config.has_value());
  EXPECT_THAT(report.refusal, HasSubstr("architecture 'llama' is not served"));
  EXPECT_EQ(report.at(FilePlace::kUnknown).tensors, 4);
  EXPECT_EQ(report.total.bytes, 288u + 256 + 48 + 4);
}

TEST_F(FileReportTest, FileWithoutAnythingIsReported) {
  folder_.Write("model.gguf", test::GgufBytes().Build());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const FileReport report = ReportFile(*file);
  EXPECT_EQ(report.architecture, "");
  EXPECT_FALSE(report.refusal.empty());
  EXPECT_EQ(report.total.tensors, 0);
}

}  // namespace
}  // namespace embergate::engine
