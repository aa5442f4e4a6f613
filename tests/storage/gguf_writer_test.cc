// What GgufWriter writes, GgufFile reads back; and no half file ever stands under the final name.
#include "storage/gguf_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/crc32c.h"
#include "storage/gguf_file.h"
#include "tests/support/temp_folder.h"

namespace embergate::storage {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<uint8_t> Pattern(size_t bytes, uint8_t seed) {
  std::vector<uint8_t> out(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    out[i] = static_cast<uint8_t>(seed + i * 7 + i / 251);
  }
  return out;
}

class GgufWriterTest : public ::testing::Test {
 protected:
  std::unique_ptr<GgufWriter> Create(uint32_t alignment = 32) {
    auto writer = GgufWriter::Create(path_, alignment);
    EXPECT_TRUE(writer.ok()) << writer.status();
    return writer.ok() ? *std::move(writer) : nullptr;
  }
  std::unique_ptr<GgufFile> Open() {
    auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : nullptr;
  }
  bool PartialExists() { return std::filesystem::exists(path_ + ".partial"); }

  test::TempFolder folder_;
  std::string path_ = folder_.File("model.gguf");
};

TEST_F(GgufWriterTest, EveryKeyTypeRoundTrips) {
  auto writer = Create();
  writer->AddUint32("u32", std::numeric_limits<uint32_t>::max());
  writer->AddInt32("i32", std::numeric_limits<int32_t>::min());
  writer->AddUint64("u64", std::numeric_limits<uint64_t>::max());
  writer->AddFloat("f32", 1e-6f);
  writer->AddBool("yes", true);
  writer->AddBool("no", false);
  writer->AddString("text", absl::string_view("a\0b", 3));
  writer->AddString("empty", "");
  writer->AddUint32s("u32s", {1, 2, 4'000'000'000u});
  writer->AddInt32s("i32s", {-1, 0, 1});
  writer->AddFloats("f32s", {0.5f, -std::numeric_limits<float>::infinity()});
  writer->AddBools("bools", {true, false, true});
  writer->AddStrings("strings", {"", "two", "three three"});
  writer->AddInt32s("none", {});
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->Finish().ok());

  const auto file = Open();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(file->alignment(), 32u);
  EXPECT_EQ(file->keys().size(), 14u);
  EXPECT_EQ(*file->GetUint("u32"), std::numeric_limits<uint32_t>::max());
  EXPECT_EQ(*file->GetInt("i32"), std::numeric_limits<int32_t>::min());
  EXPECT_EQ(*file->GetUint("u64"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(*file->GetFloat("f32"), double{1e-6f});
  EXPECT_TRUE(*file->GetBool("yes"));
  EXPECT_FALSE(*file->GetBool("no"));
  EXPECT_EQ(*file->GetString("text"), absl::string_view("a\0b", 3));
  EXPECT_EQ(*file->GetString("empty"), "");
  EXPECT_THAT(*file->GetInts("u32s"), ElementsAre(1, 2, 4'000'000'000));
  EXPECT_THAT(*file->GetInts("i32s"), ElementsAre(-1, 0, 1));
  EXPECT_THAT(*file->GetFloats("f32s"), ElementsAre(0.5f, -std::numeric_limits<float>::infinity()));
  EXPECT_THAT(*file->GetInts("bools"), ElementsAre(1, 0, 1));
  EXPECT_THAT(*file->GetStrings("strings"), ElementsAre("", "two", "three three"));
  EXPECT_TRUE(file->GetInts("none")->empty());
}

TEST_F(GgufWriterTest, TensorBytesRoundTripWhateverThePieces) {
  const std::vector<uint8_t> q4 = Pattern(64 * 300 / 32 * 18, 1);
  const std::vector<uint8_t> f32 = Pattern(5 * 4, 2);
  const std::vector<uint8_t> q8 = Pattern(32 * 7 * 34 / 32, 3);
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("q4", TensorType::kQ4_0, {64, 300}).ok());
  ASSERT_TRUE(writer->AddTensor("f32", TensorType::kF32, {5}).ok());
  ASSERT_TRUE(writer->AddTensor("q8", TensorType::kQ8_0, {32, 7}).ok());
  ASSERT_TRUE(writer->BeginData().ok());
  for (size_t i = 0; i < q4.size(); i += 1000) {
    ASSERT_TRUE(writer->AppendData(absl::MakeConstSpan(q4).subspan(i, 1000)).ok());
  }
  ASSERT_TRUE(writer->AppendData(f32).ok());
  ASSERT_TRUE(writer->AppendData({}).ok());
  ASSERT_TRUE(writer->AppendData(q8).ok());
  EXPECT_FALSE(std::filesystem::exists(path_)) << "the final name must not appear before Finish";
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_FALSE(PartialExists());
  EXPECT_EQ(std::filesystem::file_size(path_), writer->total_bytes());
  EXPECT_EQ(writer->written_bytes(), writer->total_bytes());

  const auto file = Open();
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "q4");
  const GgufTensor* tensor = file->FindTensor("q4");
  ASSERT_NE(tensor, nullptr);
  EXPECT_THAT(tensor->dims, ElementsAre(64, 300));
  EXPECT_EQ(tensor->rows(), 300u);
  EXPECT_EQ(tensor->row_bytes(), 36u);
  EXPECT_EQ(tensor->file_offset % 32, 0u);
  for (const auto& [name, bytes] : {std::pair("q4", q4), std::pair("f32", f32), std::pair("q8", q8)}) {
    std::vector<uint8_t> read(bytes.size());
    ASSERT_TRUE(file->ReadTensor(*file->FindTensor(name), 0, absl::MakeSpan(read)).ok()) << name;
    EXPECT_EQ(read, bytes) << name;
  }
  std::vector<uint8_t> part(36);
  ASSERT_TRUE(file->ReadTensor(*tensor, 36 * 123, absl::MakeSpan(part)).ok());
  EXPECT_EQ(part, std::vector<uint8_t>(q4.begin() + 36 * 123, q4.begin() + 36 * 124));
}

TEST_F(GgufWriterTest, LargeReadsAreRightForEveryRemainderOfAddressAndOffset) {
  const std::vector<uint8_t> data = Pattern(3'300'000, 9);  // more than one bounce buffer
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("bytes", TensorType::kI8, {data.size()}).ok());
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->AppendData(data).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const GgufTensor& tensor = file->tensors()[0];
  std::vector<uint8_t> room(data.size() + 8192);
  for (const size_t offset : {size_t{0}, size_t{1}, size_t{4095}, size_t{1'048'576}, size_t{3'290'001}}) {
    for (const size_t shift : {size_t{0}, size_t{31}, size_t{4096 - tensor.file_offset % 4096}}) {
      // The third shift makes the address congruent to the place in the file when offset is 0.
      const size_t base = 4096 - reinterpret_cast<uintptr_t>(room.data()) % 4096;
      const auto out = absl::MakeSpan(room).subspan((base + shift) % 4096, data.size() - offset);
      std::fill(room.begin(), room.end(), uint8_t{0xee});
      ASSERT_TRUE(file->ReadTensor(tensor, offset, out).ok());
      ASSERT_EQ(std::memcmp(out.data(), data.data() + offset, out.size()), 0) << offset << " " << shift;
      ASSERT_EQ(*(out.data() + out.size()), 0xee) << "wrote past the end";
    }
  }
}

TEST_F(GgufWriterTest, AlignedTensorMakesNoGapBetweenTensors) {
  // Any header length must come out right: vary a string's.
  for (size_t length = 0; length < 100; length += 9) {
    auto writer = Create();
    writer->AddString("filler", std::string(length * 41, 'x'));
    ASSERT_TRUE(writer->AddTensor("before", TensorType::kF32, {33}).ok());
    ASSERT_TRUE(writer->AddTensor("table", TensorType::kQ8_0, {64, 50}, 4096).ok());
    ASSERT_TRUE(writer->AddTensor("after", TensorType::kF32, {3}).ok());
    ASSERT_TRUE(writer->BeginData().ok());
    ASSERT_TRUE(writer->AppendData(Pattern(33 * 4, 0)).ok());
    ASSERT_TRUE(writer->AppendData(Pattern(64 * 50 / 32 * 34, 1)).ok());
    ASSERT_TRUE(writer->AppendData(Pattern(12, 2)).ok());
    ASSERT_TRUE(writer->Finish().ok());
    const auto file = Open();
    ASSERT_NE(file, nullptr);
    const auto tensors = file->tensors();
    EXPECT_EQ(tensors[1].file_offset % 4096, 0u) << length;
    EXPECT_EQ(tensors[1].file_offset, tensors[0].file_offset + 160) << "33 floats, rounded up to 32 bytes";
    EXPECT_EQ(tensors[2].file_offset, (tensors[1].file_offset + tensors[1].bytes + 31) / 32 * 32);
    std::vector<uint8_t> read(tensors[1].bytes);
    ASSERT_TRUE(file->ReadTensor(tensors[1], 0, absl::MakeSpan(read)).ok());
    EXPECT_EQ(read, Pattern(read.size(), 1));
  }
}

TEST_F(GgufWriterTest, SecondAlignedTensorGetsAGapWhereNeeded) {
  auto writer = Create(64);
  ASSERT_TRUE(writer->AddTensor("a", TensorType::kF32, {10}, 4096).ok());
  ASSERT_TRUE(writer->AddTensor("b", TensorType::kF32, {10}, 4096).ok());
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->AppendData(Pattern(40, 1)).ok());
  ASSERT_TRUE(writer->AppendData(Pattern(40, 2)).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->alignment(), 64u);
  EXPECT_EQ(file->tensors()[0].file_offset % 4096, 0u);
  EXPECT_EQ(file->tensors()[1].file_offset, file->tensors()[0].file_offset + 4096);
  std::vector<uint8_t> read(40);
  ASSERT_TRUE(file->ReadTensor(file->tensors()[1], 0, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, Pattern(40, 2));
}

TEST_F(GgufWriterTest, RowChecksumsAreThoseOfTheRowsWhateverThePieces) {
  constexpr uint64_t kRows = 37;
  const std::vector<uint8_t> before = Pattern(400, 1);
  const std::vector<uint8_t> table = Pattern(kRows * 136, 2);  // rows of 128 in Q8_0
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("before", TensorType::kF32, {100}).ok());
  ASSERT_TRUE(writer->AddTensor("table", TensorType::kQ8_0, {128, kRows}, 4096).ok());
  ASSERT_TRUE(writer->AddRowChecksums("crcs", "table", {34, 136}).ok());
  writer->AddString("after", "the checksums");
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->AppendData(before).ok());
  for (size_t done = 0, step = 1; done < table.size(); done += step, step = step % 301 + 50) {
    step = std::min(step, table.size() - done);
    ASSERT_TRUE(writer->AppendData(absl::MakeConstSpan(table).subspan(done, step)).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());

  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const auto crcs = file->GetInts("crcs");
  ASSERT_TRUE(crcs.ok()) << crcs.status();
  ASSERT_EQ(crcs->size(), 2 * kRows);
  for (uint64_t row = 0; row < kRows; ++row) {
    const auto bytes = absl::MakeConstSpan(table).subspan(row * 136, 136);
    EXPECT_EQ((*crcs)[2 * row], Crc32cPortable(bytes.first(34))) << row;
    EXPECT_EQ((*crcs)[2 * row + 1], Crc32cPortable(bytes.subspan(34))) << row;
  }
  EXPECT_EQ(*file->GetString("after"), "the checksums");
  std::vector<uint8_t> read(table.size());
  ASSERT_TRUE(file->ReadTensor(*file->FindTensor("table"), 0, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, table);
}

TEST_F(GgufWriterTest, RowChecksumsOfNothingAreRefused) {
  auto writer = Create();
  EXPECT_FALSE(writer->AddRowChecksums("crcs", "table", {136}).ok());
  ASSERT_TRUE(writer->AddTensor("table", TensorType::kQ8_0, {128, 3}).ok());
  for (const std::vector<uint64_t>& ends :
       std::vector<std::vector<uint64_t>>{{}, {135}, {137}, {34}, {0, 136}, {40, 34, 136}, {136, 136}}) {
    EXPECT_FALSE(writer->AddRowChecksums("crcs", "table", ends).ok());
  }
  EXPECT_TRUE(writer->AddRowChecksums("crcs", "table", {136}).ok());
  EXPECT_FALSE(writer->AddRowChecksums("again", "table", {136}).ok());
}

TEST_F(GgufWriterTest, UnfinishedWriterLeavesNothingBehind) {
  {
    auto writer = Create();
    ASSERT_TRUE(writer->AddTensor("a", TensorType::kF32, {8}).ok());
    ASSERT_TRUE(writer->BeginData().ok());
    EXPECT_TRUE(PartialExists());
  }
  EXPECT_FALSE(PartialExists());
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(GgufWriterTest, LeftoverOfAnInterruptedRunIsReplaced) {
  folder_.Write("model.gguf.partial", std::string(100'000, 'x'));
  auto writer = Create();
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(std::filesystem::file_size(path_), writer->total_bytes());
  EXPECT_NE(Open(), nullptr);
}

TEST_F(GgufWriterTest, TwoWritersOfOneFileAreRefused) {
  auto writer = Create();
  const auto second = GgufWriter::Create(path_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("model.gguf.partial"));
  EXPECT_TRUE(PartialExists()) << "the first writer's file was taken away";
}

TEST_F(GgufWriterTest, IncompleteTensorFailsFinishAndNamesIt) {
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("short_one", TensorType::kF32, {8}).ok());
  ASSERT_TRUE(writer->BeginData().ok());
  ASSERT_TRUE(writer->AppendData(Pattern(31, 0)).ok());
  const absl::Status status = writer->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'short_one' has 31 of its 32 bytes"));
}

TEST_F(GgufWriterTest, TooManyBytesForATensorAreRefused) {
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("small", TensorType::kF32, {2}).ok());
  ASSERT_TRUE(writer->BeginData().ok());
  EXPECT_EQ(writer->AppendData(Pattern(9, 0)).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(writer->AppendData(Pattern(8, 0)).ok());
  EXPECT_EQ(writer->AppendData(Pattern(1, 0)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GgufWriterTest, BadTensorsAreRefusedByName) {
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("twice", TensorType::kF32, {2}).ok());
  const std::vector<std::pair<absl::Status, std::string>> cases = {
      {writer->AddTensor("twice", TensorType::kF32, {2}), "'twice' added twice"},
      {writer->AddTensor("", TensorType::kF32, {2}), "name of 0 bytes"},
      {writer->AddTensor(std::string(64, 'n'), TensorType::kF32, {2}), "name of 64 bytes"},
      {writer->AddTensor("flat", TensorType::kF32, {}), "'flat' has 0 dimensions"},
      {writer->AddTensor("deep", TensorType::kF32, {1, 1, 1, 1, 1}), "'deep' has 5 dimensions"},
      {writer->AddTensor("void", TensorType::kF32, {4, 0}), "'void' has impossible dimensions: 4 x 0"},
      {writer->AddTensor("huge", TensorType::kF32, {1ull << 40, 1ull << 40}), "'huge' has impossible dimensions"},
      {writer->AddTensor("odd", TensorType::kQ4_0, {33, 32}), "'odd': 33 x 32 elements cannot be stored as Q4_0"},
      {writer->AddTensor("align", TensorType::kF32, {2}, 48), "align 48"},
  };
  for (const auto& [status, text] : cases) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

TEST_F(GgufWriterTest, MistakesInKeysAreReportedByBeginData) {
  auto writer = Create();
  writer->AddUint32("key", 1);
  writer->AddString("key", "again");
  EXPECT_THAT(std::string(writer->BeginData().message()), HasSubstr("key 'key' added twice"));
  writer.reset();
  writer = Create();
  writer->AddUint32("general.alignment", 64);
  EXPECT_FALSE(writer->BeginData().ok());
  writer.reset();
  writer = Create();
  writer->AddBool("", true);
  EXPECT_FALSE(writer->BeginData().ok());
}

TEST_F(GgufWriterTest, BadPathsAndAlignmentsAreRefused) {
  EXPECT_EQ(GgufWriter::Create(folder_.File("none/model.gguf")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufWriter::Create(folder_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  for (const uint32_t alignment : {0u, 4u, 48u, 0x80000000u}) {
    EXPECT_EQ(GgufWriter::Create(path_, alignment).status().code(), absl::StatusCode::kInvalidArgument) << alignment;
  }
}

TEST_F(GgufWriterTest, MoreThanTheDiskHoldsIsRefusedBeforeAnyData) {
  auto writer = Create();
  ASSERT_TRUE(writer->AddTensor("vast", TensorType::kI8, {uint64_t{1} << 50}).ok());
  const absl::Status status = writer->BeginData();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs 11258999"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("are free"));
}

TEST_F(GgufWriterTest, FullDiskNamesWhatIsNeededAndFree) {
  // A limit on the size of files stands in for a full disk: the system refuses to go on in mid-file.
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit tight = before;
  tight.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  auto writer = Create();
  absl::Status status = writer->AddTensor("big", TensorType::kI8, {8u << 20});
  if (status.ok()) {
    status = writer->BeginData();
  }
  for (int i = 0; i < 8 && status.ok(); ++i) {
    status = writer->AppendData(Pattern(1u << 20, 0));
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("free"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("Success")));
  writer.reset();
  EXPECT_FALSE(PartialExists());
}

}  // namespace
}  // namespace embergate::storage
