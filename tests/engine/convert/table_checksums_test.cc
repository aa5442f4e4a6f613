// Checksums that a file brings along: written with the table, used for every row, and told from those of another table.
#include "engine/convert/table_checksums.h"

#include <fstream>
#include <utility>
#include <vector>

#include "engine/convert/gguf_keys.h"
#include "engine/convert/synth.h"
#include "engine/model/decoder_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TableChecksumsTest : public ::testing::Test {
 protected:
  TableChecksumsTest() {
    const auto summary = SynthesiseModel(*FindModelShape("gemma4-tiny"), path_, {});
    EXPECT_TRUE(summary.ok()) << summary.status();
    Open();
  }
  void Open() {
    auto file = storage::GgufFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    table_ = file_->FindTensor(gguf::kPerLayerTokenEmbd);
    ASSERT_NE(table_, nullptr);
    spec_.path = path_;
    spec_.file_offset = table_->file_offset;
    spec_.row_bytes = table_->row_bytes();
    spec_.row_count = table_->rows();
  }
  void Flip(uint64_t row) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(table_->file_offset + row * table_->row_bytes() + 7));
    const char flipped = static_cast<char>(file.peek() ^ 4);
    file.seekp(file.tellg());
    file.put(flipped);
    ASSERT_TRUE(file.flush().good());
  }

  const test::TempFolder folder_;
  const std::string path_ = folder_.File("tiny.gguf");
  std::unique_ptr<storage::GgufFile> file_;
  const storage::GgufTensor* table_ = nullptr;
  storage::TableSpec spec_;
};

TEST(ChecksumSegmentsTest, ThePartThatPromptsReadHasItsOwn) {
  using storage::TensorType;
  EXPECT_THAT(ChecksumSegments(TensorType::kQ8_0, 8960, 3584), ElementsAre(3808u, 9520u));
  EXPECT_THAT(ChecksumSegments(TensorType::kQ8_0, 480, 200), ElementsAre(238u, 510u));  // whole blocks
  EXPECT_THAT(ChecksumSegments(TensorType::kQ8_0, 480, 0), ElementsAre(510u));
  EXPECT_THAT(ChecksumSegments(TensorType::kQ8_0, 480, 480), ElementsAre(510u));
}

TEST_F(TableChecksumsTest, TheFilesOwnChecksumsAreThoseOfItsRows) {
  const auto sums = LoadTableChecksums(*file_, *table_, spec_);
  ASSERT_TRUE(sums.ok()) << sums.status();
  // 15 layers of 32, 8 of which share keys and values: prompts read the first 6.
  EXPECT_THAT(sums->segment_ends, ElementsAre(PrefixBytes(table_->type, 6 * 32), table_->row_bytes()));
  EXPECT_EQ(sums->crcs.size(), 2 * table_->rows());
  EXPECT_GE(TableChecksumBytes(*file_, *table_), sums->crcs.size() * sizeof(uint32_t));
}

TEST_F(TableChecksumsTest, ADamagedRowIsFoundWhenItIsRead) {
  Flip(100);
  Open();
  LoadedModel model = LoadModel(path_, TestOptions());
  ASSERT_NE(model.model, nullptr);
  EXPECT_GT(model->RowStats().checksum_bytes, 0u);
  std::vector<float> logits(static_cast<size_t>(model.vocab()));
  const std::vector<std::pair<int32_t, bool>> cases = {{99, true}, {100, false}, {101, true}};
  for (const auto& [id, good] : cases) {
    const std::vector<int32_t> ids = {2, id};
    ASSERT_TRUE(model->OpenSlot(0, 4).ok());
    Chunk chunk;
    chunk.tokens = ids;
    chunk.logits = LogitsWanted::kLast;
    ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
    EXPECT_EQ(chunk.status.code(), good ? absl::StatusCode::kOk : absl::StatusCode::kDataLoss) << chunk.status;
    model->CloseSlot(0);
  }
}

TEST_F(TableChecksumsTest, ATableThatAnotherToolWroteIsRefusedWithAdvice) {
  for (const uint64_t row : {uint64_t{0}, table_->rows() / 2, table_->rows() - 1}) {
    Flip(row);
  }
  Open();
  const auto sums = LoadTableChecksums(*file_, *table_, spec_);
  EXPECT_EQ(sums.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(sums.status().message()), HasSubstr("embergate checksum"));
}

TEST_F(TableChecksumsTest, KeysOfRowsOfAnotherLengthAreIgnored) {
  storage::GgufTensor other = *table_;
  other.dims[0] *= 2;
  other.dims[1] /= 2;
  const auto sums = LoadTableChecksums(*file_, other, spec_);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_TRUE(sums->crcs.empty());
}

}  // namespace
}  // namespace embergate::engine
