#include "engine/convert/safetensors.h"

#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

using ::testing::HasSubstr;

std::string FileBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  return bytes + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::Status OpenBytes(const std::string& bytes) {
    WriteFile(path_, bytes);
    return SafetensorsFile::Open(path_).status();
  }
  absl::Status OpenHeader(const std::string& header, size_t data_bytes = 16) {
    return OpenBytes(FileBytes(header, std::string(data_bytes, 'x')));
  }

  TempDir dir_;
  const std::string path_ = dir_.File("t.safetensors");
};

TEST_F(SafetensorsTest, ReadsWhatTheReferenceWrote) {
  auto file = SafetensorsFile::Open(EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b/golden.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("fixture"), "gemma4-tiny-e2b");
  const SafetensorsTensor* logits = (*file)->Find("seq1.logits");
  ASSERT_NE(logits, nullptr);
  EXPECT_EQ(logits->type, SafetensorsType::kF32);
  EXPECT_EQ(logits->shape, (std::vector<uint64_t>{7, 512}));
  std::vector<float> row(512);
  ASSERT_TRUE((*file)->ReadFloats(*logits, 6 * 512, absl::MakeSpan(row)).ok());
  for (float value : row) {
    EXPECT_LE(std::abs(value), 30.0f);  // the softcap
  }
  auto ids = (*file)->ReadInts(*(*file)->Find("seq1.input_ids"));
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->size(), 7u);
  EXPECT_EQ((*file)->Find("seq1"), nullptr);
}

TEST_F(SafetensorsTest, ReadsScalarsAndSkipsOddTypesUntilTheyAreNeeded) {
  ASSERT_TRUE(OpenHeader(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
      "q":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[4,8]},
      "e":{"dtype":"I32","shape":[0,7],"data_offsets":[8,8]},
      "d":{"dtype":"F64","shape":[1],"data_offsets":[8,16]}})")
                  .ok());
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->Find("s")->elements, 1u);
  float value = 0;
  EXPECT_TRUE((*file)->ReadFloats(*(*file)->Find("s"), 0, absl::MakeSpan(&value, 1)).ok());
  EXPECT_EQ((*file)->Find("q")->type, SafetensorsType::kOther);
  const absl::Status odd = (*file)->ReadFloats(*(*file)->Find("q"), 0, absl::MakeSpan(&value, 1));
  EXPECT_EQ(odd.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(odd.message()), HasSubstr("tensor \"q\" is F8_E4M3"));
  EXPECT_TRUE((*file)->ReadInts(*(*file)->Find("e"))->empty());
}

TEST_F(SafetensorsTest, WidensHalvesInPlace) {
  // 1.0, -2.0, 0.5 as BF16, then the same as F16.
  const uint16_t halves[] = {0x3f80, 0xc000, 0x3f00, 0x3c00, 0xc000, 0x3800};
  const std::string data(reinterpret_cast<const char*>(halves), sizeof(halves));
  ASSERT_TRUE(OpenBytes(FileBytes(R"({"b":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},
      "h":{"dtype":"F16","shape":[3],"data_offsets":[6,12]}})",
                                  data))
                  .ok());
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  for (const char* name : {"b", "h"}) {
    std::vector<float> values(3);
    ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find(name), 0, absl::MakeSpan(values)).ok());
    EXPECT_EQ(values, (std::vector<float>{1.0f, -2.0f, 0.5f})) << name;
    std::vector<float> last(1);
    ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find(name), 2, absl::MakeSpan(last)).ok());
    EXPECT_EQ(last[0], 0.5f);
    EXPECT_EQ((*file)->ReadFloats(*(*file)->Find(name), 1, absl::MakeSpan(values)).code(),
              absl::StatusCode::kOutOfRange);
  }
}

struct BadHeader {
  const char* name;
  const char* header;
  const char* message;
};

class BadHeaderTest : public SafetensorsTest, public ::testing::WithParamInterface<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedWithItsReason) {
  const absl::Status status = OpenHeader(GetParam().header);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

INSTANTIATE_TEST_SUITE_P(
    Hostile, BadHeaderTest,
    ::testing::Values(
        BadHeader{"NotJson", "{\"a\":", "not valid JSON"}, BadHeader{"NotAnObject", "[]", "an array"},
        BadHeader{"ANumber", "7", "a number"}, BadHeader{"Trailing", "{}{}", "not valid JSON"},
        BadHeader{"BadUtf8", "{\"\xff\":{}}", "not valid JSON"}, BadHeader{"EntryIsNumber", "{\"a\":1}", "a number"},
        BadHeader{"EntryIsArray", "{\"a\":[1]}", "an array"}, BadHeader{"Empty", "{\"a\":{}}", "\"a\" lacks dtype"},
        BadHeader{"NoShape", R"({"a":{"dtype":"F32","data_offsets":[0,16]}})", "lacks"},
        BadHeader{"OneOffset", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16]}})", "lacks"},
        BadHeader{"ThreeOffsets", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8,16]}})", "two data_offsets"},
        BadHeader{"NegativeOffset", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[-1,16]}})", "negative"},
        BadHeader{"FractionalShape", R"({"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}})", "fraction"},
        BadHeader{"Backwards", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}})", "ends before it begins"},
        BadHeader{"PastTheEnd", R"({"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}})", "cut short"},
        BadHeader{"WrongSize", R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}})", "needs 20"},
        BadHeader{"Overflow", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}})",
                  "impossible"},
        BadHeader{"OverflowInBytes", R"({"a":{"dtype":"F32","shape":[4611686018427387908],"data_offsets":[0,16]}})",
                  "impossible"},
        BadHeader{"TooManyDims", R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16]}})",
                  "more than 8 dimensions"},
        BadHeader{
            "Overlap",
            R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            "\"b\" overlaps \"a\""},
        BadHeader{"Hole", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}})", "belong to no tensor"},
        BadHeader{"Tail", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "at the end belong"},
        BadHeader{
            "Twice",
            R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            "appears twice"},
        BadHeader{"NestedMetadata", R"({"__metadata__":{"a":{}}})", "an object"},
        BadHeader{"Nested", R"({"a":{"dtype":{"dtype":"F32"}}})", "an object"}),
    [](const auto& param) { return param.param.name; });

TEST_F(SafetensorsTest, RefusesImpossibleHeaderLengthsWithoutReadingThem) {
  EXPECT_EQ(OpenBytes("").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenBytes("1234567").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenBytes(std::string(8, '\xff')).code(), absl::StatusCode::kInvalidArgument);
  std::string cut = FileBytes("{}      ", "");
  cut.resize(cut.size() - 1);
  EXPECT_EQ(OpenBytes(cut).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(OpenBytes(FileBytes("", "")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SafetensorsFile::Open(dir_.File("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(dir_.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SafetensorsTest, DeepNestingNeitherRecursesNorPasses) {
  std::string deep(1 << 20, '[');
  EXPECT_FALSE(OpenHeader(R"({"a":)" + deep).ok());
  std::string objects;
  for (int i = 0; i < 100000; ++i) {
    objects += R"({"a":)";
  }
  EXPECT_FALSE(OpenHeader(objects).ok());
}

// Random damage to a good header: either an error, or a file whose tensors all lie inside it.
TEST_F(SafetensorsTest, MutatedHeadersNeverReachOutsideTheFile) {
  const std::string good = FileBytes(R"({"__metadata__":{"format":"pt"},
      "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}})",
                                     std::string(24, 'x'));
  std::mt19937 random(1);
  int opened = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good;
    for (int n = random() % 3; n >= 0; --n) {
      bytes[random() % bytes.size()] = static_cast<char>(i % 2 == 0 ? random() : "0123456789[]{},:\""[random() % 17]);
    }
    if (random() % 4 == 0) {
      bytes.resize(random() % bytes.size());
    }
    WriteFile(path_, bytes);
    auto file = SafetensorsFile::Open(path_);
    if (file.ok()) {
      ++opened;
      for (const SafetensorsTensor& tensor : (*file)->tensors()) {
        ASSERT_LE(tensor.file_offset + tensor.bytes, bytes.size());
        std::vector<uint8_t> out(tensor.bytes);
        EXPECT_TRUE((*file)->Read(tensor, 0, absl::MakeSpan(out)).ok());
      }
    }
  }
  EXPECT_GT(opened, 50);  // changes of data and names are no errors
}

TEST_F(SafetensorsTest, ShardsAreJoinedByTheIndex) {
  auto folder = SafetensorsFolder::Open(EMBERGATE_GOLDEN_DIR "/gemma3n-tiny-e2b");
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ((*folder)->shard_count(), 3);
  EXPECT_EQ((*folder)->tensors().size(), 77u + 156u + 149u);
  EXPECT_NE((*folder)->Find("model.language_model.norm.weight").file, nullptr);
  EXPECT_EQ((*folder)->Find("model.language_model.norm").file, nullptr);
  EXPECT_EQ((*folder)->bytes(), 5974912u);  // total_size of the index
}

TEST_F(SafetensorsTest, IndexAndShardsMustAgree) {
  const std::string shard = FileBytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd");
  WriteFile(dir_.File("s1.safetensors"), shard);
  const std::string index = dir_.File("model.safetensors.index.json");
  const auto open = [&](const std::string& json) {
    WriteFile(index, json);
    return SafetensorsFolder::Open(dir_.path()).status();
  };
  EXPECT_TRUE(open(R"({"weight_map":{"a":"s1.safetensors"}})").ok());
  EXPECT_EQ(open(R"({"weight_map":{"b":"s1.safetensors"}})").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(open(R"({"weight_map":{"a":"s2.safetensors"}})").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(open(R"({"weight_map":{"a":"../s1.safetensors"}})").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open(R"({"weight_map":{"a":7}})").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open(R"({"weight_map":[]})").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open("[").code(), absl::StatusCode::kInvalidArgument);
  WriteFile(dir_.File("s2.safetensors"), shard);
  EXPECT_EQ(open(R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})").code(),
            absl::StatusCode::kFailedPrecondition);
  std::filesystem::remove(index);
  EXPECT_EQ(SafetensorsFolder::Open(dir_.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SafetensorsTest, WrittenFilesReadBack) {
  auto writer = SafetensorsWriter::Create(path_);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const uint64_t shape[] = {2, 3};
  ASSERT_TRUE((*writer)->Add("x.logits", SafetensorsType::kF32, shape).ok());
  ASSERT_TRUE((*writer)->Add("ids", SafetensorsType::kI64, {}).ok());
  EXPECT_FALSE((*writer)->Add("ids", SafetensorsType::kI64, {}).ok());
  (*writer)->AddMetadata("made_by", "test");
  const std::vector<float> values = {1, 2, 3, 4, 5, -6};
  ASSERT_TRUE((*writer)->AppendFloats(absl::MakeConstSpan(values).subspan(0, 4)).ok());
  ASSERT_TRUE((*writer)->AppendFloats(absl::MakeConstSpan(values).subspan(4)).ok());
  EXPECT_EQ((*writer)->Finish().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(std::filesystem::exists(path_));
  const int64_t id = -77;
  const auto id_bytes = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(&id), sizeof(id));
  ASSERT_TRUE((*writer)->Append(id_bytes).ok());
  EXPECT_EQ((*writer)->Append(id_bytes).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE((*writer)->Finish().ok());

  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> read(6);
  ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find("x.logits"), 0, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, values);
  EXPECT_EQ((*file)->Find("x.logits")->file_offset % 8, 0u);
  EXPECT_EQ(*(*file)->ReadInts(*(*file)->Find("ids")), std::vector<int64_t>{-77});
  EXPECT_EQ((*file)->metadata().at("made_by"), "test");
}

TEST_F(SafetensorsTest, AnUnfinishedWriterLeavesNothing) {
  {
    auto writer = SafetensorsWriter::Create(path_);
    ASSERT_TRUE(writer.ok());
    const uint64_t shape[] = {2};
    ASSERT_TRUE((*writer)->Add("a", SafetensorsType::kF32, shape).ok());
    const float value = 1;
    ASSERT_TRUE((*writer)->AppendFloats(absl::MakeConstSpan(&value, 1)).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
  EXPECT_EQ(SafetensorsWriter::Create(dir_.File("no/such/folder")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SafetensorsTest, IntegersOfAllWidthsKeepTheirSign) {
  std::string data;
  const int8_t i8 = -1;
  const int16_t i16 = -300;
  const int32_t i32 = -70000;
  const uint32_t u32 = 4000000000u;
  data.append(reinterpret_cast<const char*>(&i32), 4).append(reinterpret_cast<const char*>(&u32), 4);
  data.append(reinterpret_cast<const char*>(&i16), 2).append(reinterpret_cast<const char*>(&i8), 1);
  ASSERT_TRUE(OpenBytes(FileBytes(R"({"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},
    "b":{"dtype":"U32","shape":[1],"data_offsets":[4,8]},"c":{"dtype":"I16","shape":[1],"data_offsets":[8,10]},
    "d":{"dtype":"I8","shape":[1],"data_offsets":[10,11]}})",
                                  data))
                  .ok());
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  const auto read = [&](const char* name) { return (*file)->ReadInts(*(*file)->Find(name))->front(); };
  EXPECT_EQ(read("a"), -70000);
  EXPECT_EQ(read("b"), 4000000000);
  EXPECT_EQ(read("c"), -300);
  EXPECT_EQ(read("d"), -1);
  EXPECT_EQ((*file)->ReadInts(*(*file)->Find("a"), 0).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace embergate::engine
