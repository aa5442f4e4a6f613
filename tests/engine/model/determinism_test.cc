// A token's logits are the same bits whoever shares the step, however its prompt was cut, on any number of threads,
// with the table on flash or in memory, and whether or not the logits of its neighbours were computed. Checked on the
// golden checkpoints in the types that have kernels of their own.
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

class DeterminismTest : public testing::TestWithParam<std::tuple<std::string, TensorType>> {
 protected:
  DeterminismTest()
      : golden_(std::get<0>(GetParam())), path_(GoldenGguf(std::get<0>(GetParam()), std::get<1>(GetParam()))) {
    for (int j = 0; j < 4; ++j) {
      ids_.push_back(golden_.Ids(absl::StrCat("seq", j, ".input_ids")));
    }
  }

  // Logits of each sequence, computed alone and at once.
  std::vector<std::vector<float>> Solo(DecoderModel& model) {
    std::vector<std::vector<float>> all;
    for (const std::vector<int32_t>& ids : ids_) {
      all.push_back(AllLogits(model, ids));
    }
    return all;
  }

  Golden golden_;
  std::string path_;
  std::vector<std::vector<int32_t>> ids_;
};

// All sequences step together, each with its own chunk length, so that every step mixes lengths and positions.
TEST_P(DeterminismTest, BatchesAndChunksChangeNothing) {
  LoadedModel model = LoadModel(path_);
  ASSERT_NE(model.model, nullptr);
  const std::vector<std::vector<float>> solo = Solo(*model.model);
  const size_t vocab = static_cast<size_t>(model.vocab());
  for (const std::vector<size_t>& lengths :
       {std::vector<size_t>{1, 1, 1, 1}, std::vector<size_t>{1, 7, 32, 5}, std::vector<size_t>{1, 3, 40, 90}}) {
    std::vector<size_t> done(ids_.size(), 0);
    std::vector<std::vector<float>> got(ids_.size());
    for (size_t s = 0; s < ids_.size(); ++s) {
      ASSERT_TRUE(model->OpenSlot(static_cast<int>(s), static_cast<int>(ids_[s].size())).ok());
    }
    for (;;) {
      std::vector<Chunk> chunks;
      std::vector<size_t> who;
      size_t tokens = 0;
      for (size_t s = 0; s < ids_.size(); ++s) {
        const size_t count = std::min(lengths[s], ids_[s].size() - done[s]);
        if (count > 0) {
          Chunk chunk;
          chunk.slot = static_cast<int>(s);
          chunk.tokens = absl::MakeConstSpan(ids_[s]).subspan(done[s], count);
          chunk.start = static_cast<int>(done[s]);
          chunk.logits = LogitsWanted::kAll;
          chunks.push_back(chunk);
          who.push_back(s);
          tokens += count;
        }
      }
      if (chunks.empty()) {
        break;
      }
      std::vector<float> logits(tokens * vocab);
      ASSERT_TRUE(model->Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr).ok());
      const float* row = logits.data();
      for (size_t c = 0; c < chunks.size(); ++c) {
        ASSERT_TRUE(chunks[c].status.ok()) << chunks[c].status;
        const size_t count = chunks[c].tokens.size();
        got[who[c]].insert(got[who[c]].end(), row, row + count * vocab);
        row += count * vocab;
        done[who[c]] += count;
      }
    }
    for (size_t s = 0; s < ids_.size(); ++s) {
      EXPECT_EQ(got[s], solo[s]) << "sequence " << s << " in chunks of " << lengths[s];
      model->CloseSlot(static_cast<int>(s));
    }
  }
}

// Tokens whose logits nobody wants stop early; that must not be seen by the others.
TEST_P(DeterminismTest, UnwantedLogitsAreNotMissed) {
  LoadedModel model = LoadModel(path_);
  ASSERT_NE(model.model, nullptr);
  const std::vector<std::vector<float>> solo = Solo(*model.model);
  const size_t vocab = static_cast<size_t>(model.vocab());
  for (size_t s = 0; s < ids_.size(); ++s) {
    const size_t length = ids_[s].size();
    for (const size_t cut : {size_t{0}, length / 2, length - 1}) {
      ASSERT_TRUE(model->OpenSlot(0, static_cast<int>(length)).ok());
      std::vector<float> last(vocab);
      for (const auto& [begin, end] : {std::make_pair(size_t{0}, cut), std::make_pair(cut, length)}) {
        if (begin == end) {
          continue;
        }
        Chunk chunk;
        chunk.tokens = absl::MakeConstSpan(ids_[s]).subspan(begin, end - begin);
        chunk.start = static_cast<int>(begin);
        chunk.logits = end == length ? LogitsWanted::kLast : LogitsWanted::kNone;
        ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(last), nullptr).ok());
        ASSERT_TRUE(chunk.status.ok()) << chunk.status;
      }
      EXPECT_EQ(last, std::vector<float>(solo[s].end() - static_cast<int64_t>(vocab), solo[s].end()))
          << "sequence " << s << " cut at " << cut;
      model->CloseSlot(0);
    }
  }
}

TEST_P(DeterminismTest, ThreadsChangeNothing) {
  LoadedModel one = LoadModel(path_);
  LoadedModel three = LoadModel(path_, TestOptions(), 3);
  ASSERT_NE(one.model, nullptr);
  ASSERT_NE(three.model, nullptr);
  EXPECT_EQ(Solo(*one.model), Solo(*three.model));
}

TEST_P(DeterminismTest, TableOnFlashEqualsTableInMemory) {
  DecoderOptions resident = TestOptions();
  resident.table_resident = true;
  LoadedModel memory = LoadModel(path_, resident);
  DecoderOptions uncached = TestOptions();
  uncached.rows.cache_bytes = 0;
  uncached.rows.reader = storage::ReaderKind::kPread;
  LoadedModel flash = LoadModel(path_);
  LoadedModel plain = LoadModel(path_, uncached);
  ASSERT_NE(memory.model, nullptr);
  ASSERT_NE(flash.model, nullptr);
  ASSERT_NE(plain.model, nullptr);
  const std::vector<std::vector<float>> expected = Solo(*memory.model);
  EXPECT_EQ(Solo(*flash.model), expected);
  EXPECT_EQ(Solo(*plain.model), expected);
  EXPECT_EQ(memory->RowStats().rows_requested, 0u);
  EXPECT_GT(plain->RowStats().rows_read, 0u);
}

// Rows asked for ahead of the step, whole or only what a chunk without logits needs.
TEST_P(DeterminismTest, PrefetchedRowsEqualThoseReadInTheStep) {
  LoadedModel model = LoadModel(path_);
  ASSERT_NE(model.model, nullptr);
  const std::vector<int32_t>& ids = ids_[3];
  const std::vector<float> solo = AllLogits(*model.model, ids);
  const size_t vocab = static_cast<size_t>(model.vocab());
  const size_t cut = ids.size() - 5;
  const absl::Span<const int32_t> head = absl::MakeConstSpan(ids).subspan(0, cut);
  const absl::Span<const int32_t> tail = absl::MakeConstSpan(ids).subspan(cut);
  auto head_rows = model->PrefetchChunkRows(head, LogitsWanted::kNone);
  auto tail_rows = model->PrefetchRows(tail);
  ASSERT_TRUE(head_rows.ok()) << head_rows.status();
  ASSERT_TRUE(tail_rows.ok()) << tail_rows.status();
  ASSERT_TRUE(model->OpenSlot(0, static_cast<int>(ids.size())).ok());
  Chunk chunk;
  chunk.tokens = head;
  chunk.rows = *head_rows;
  ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), {}, nullptr).ok());
  ASSERT_TRUE(chunk.status.ok()) << chunk.status;
  std::vector<float> logits(tail.size() * vocab);
  chunk = Chunk();
  chunk.tokens = tail;
  chunk.start = static_cast<int>(cut);
  chunk.logits = LogitsWanted::kAll;
  chunk.rows = *tail_rows;
  ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
  ASSERT_TRUE(chunk.status.ok()) << chunk.status;
  EXPECT_EQ(logits, std::vector<float>(solo.begin() + static_cast<int64_t>(cut * vocab), solo.end()));
}

INSTANTIATE_TEST_SUITE_P(All, DeterminismTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()),
                                          testing::Values(TensorType::kF32, TensorType::kBF16, TensorType::kQ8_0,
                                                          TensorType::kQ4_0)),
                         [](const auto& test) {
                           std::string name = std::get<0>(test.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return absl::StrCat(name, "_", std::string(storage::TraitsOf(std::get<1>(test.param)).name));
                         });

}  // namespace
}  // namespace embergate::engine
