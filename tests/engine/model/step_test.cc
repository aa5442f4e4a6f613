// The contract of LanguageModel::Step: what is refused, what a failed flash read does, what receipts are told, and the
// types of the KV cache.
#include <cmath>
#include <string>
#include <vector>

#include "engine/convert/table_checksums.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/recording_sink.h"

namespace embergate::engine {
namespace {

constexpr char kModel[] = "gemma4-tiny-e2b";

Chunk MakeChunk(int slot, const std::vector<int32_t>& ids, int start, LogitsWanted logits) {
  Chunk chunk;
  chunk.slot = slot;
  chunk.tokens = ids;
  chunk.start = start;
  chunk.logits = logits;
  return chunk;
}

// One block of flash is unreadable: the sequence whose row lies there ends with the error, its neighbour in the same
// step gets the very logits that it gets alone.
TEST(StepTest, FailedRowEndsItsOwnSequenceOnly) {
  const std::string path = GoldenGguf(kModel);
  auto file = storage::GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const storage::GgufTensor* table = (*file)->FindTensor("per_layer_token_embd.weight");
  ASSERT_NE(table, nullptr);
  constexpr int32_t kBadId = 400;
  storage::FaultOptions faults;
  faults.bad_begin = table->file_offset + kBadId * table->row_bytes();
  faults.bad_end = faults.bad_begin + table->row_bytes();
  DecoderOptions options = TestOptions();
  options.rows.test_hooks.faults = faults;
  options.rows.cache_bytes = 0;
  options.rows.merge_gap_bytes = 0;
  LoadedModel model = LoadModel(path, options);
  ASSERT_NE(model.model, nullptr);

  const std::vector<int32_t> good = {2, 17, 100, 17, 250};
  const std::vector<int32_t> bad = {2, kBadId, 5};
  const std::vector<float> solo = AllLogits(*model.model, good);
  ASSERT_TRUE(model->OpenSlot(0, 8).ok());
  ASSERT_TRUE(model->OpenSlot(1, 8).ok());
  std::vector<Chunk> chunks = {MakeChunk(0, bad, 0, LogitsWanted::kAll), MakeChunk(1, good, 0, LogitsWanted::kAll)};
  std::vector<float> logits((bad.size() + good.size()) * static_cast<size_t>(model.vocab()));
  ASSERT_TRUE(model->Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr).ok());
  EXPECT_EQ(chunks[0].status.code(), absl::StatusCode::kUnavailable) << chunks[0].status;
  EXPECT_NE(std::string(chunks[0].status.message()).find("400"), std::string::npos) << chunks[0].status;
  ASSERT_TRUE(chunks[1].status.ok()) << chunks[1].status;
  EXPECT_EQ(std::vector<float>(logits.begin() + static_cast<int64_t>(bad.size()) * model.vocab(), logits.end()), solo);

  // What the failed sequence has stored is not to be used; its slot can be closed and used again.
  Chunk more = MakeChunk(0, good, static_cast<int>(bad.size()), LogitsWanted::kLast);
  EXPECT_EQ(model->Step(absl::MakeSpan(&more, 1), absl::MakeSpan(logits), nullptr).code(),
            absl::StatusCode::kFailedPrecondition);
  model->CloseSlot(0);
  EXPECT_EQ(AllLogits(*model.model, good, 0, 0), solo);
}

TEST(StepTest, RowUseCountsDistinctRowsAndHits) {
  DecoderOptions options = TestOptions();
  options.rows.cache_bytes = 1 << 20;
  LoadedModel model = LoadModel(GoldenGguf(kModel), options);
  ASSERT_NE(model.model, nullptr);
  const std::vector<int32_t> ids = {2, 17, 100, 17, 250, 2};
  std::vector<float> logits(static_cast<size_t>(model.vocab()));
  for (const bool cached : {false, true}) {
    ASSERT_TRUE(model->OpenSlot(0, 8).ok());
    EXPECT_EQ(model->KvBytes({0}), 0u);  // pages are taken when positions are computed
    Chunk chunk = MakeChunk(0, ids, 0, LogitsWanted::kLast);
    StepTimes times;
    ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), &times).ok());
    EXPECT_EQ(chunk.rows_used.requested, 4u);
    EXPECT_EQ(chunk.rows_used.cache_hits, cached ? 4u : 0u);
    EXPECT_EQ(chunk.rows_used.read, cached ? 0u : 4u);
    EXPECT_EQ(chunk.rows_used.bytes > 0, !cached);
    EXPECT_GT(times.total_ns, 0u);
    EXPECT_LE(times.row_wait_ns, times.total_ns);
    EXPECT_GT(model->KvBytes({0}), 0u);
    model->CloseSlot(0);
  }
  EXPECT_EQ(model->KvBytes({0}), 0u);
}

// Tokens that only feed keys and values need the part of their row that the first layers use, and that is all that is
// read.
TEST(StepTest, APromptWithoutLogitsReadsTheFirstLayersPartOfItsRows) {
  const std::string path = GoldenGguf(kModel);
  auto file = storage::GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const storage::GgufTensor* table = (*file)->FindTensor("per_layer_token_embd.weight");
  const auto config = ReadModelConfig(**file);
  ASSERT_TRUE(table != nullptr && config.ok()) << config.status();
  const uint64_t part = PrefixBytes(
      table->type, static_cast<uint64_t>(config->common_layers()) * static_cast<uint64_t>(config->ple_width));
  ASSERT_GT(part, 0u);
  ASSERT_LT(part, table->row_bytes());
  DecoderOptions options = TestOptions();
  options.rows.cache_bytes = 0;
  LoadedModel model = LoadModel(path, options);
  ASSERT_NE(model.model, nullptr);
  ASSERT_TRUE(model->OpenSlot(0, 16).ok());
  std::vector<float> logits(static_cast<size_t>(model.vocab()));
  const std::vector<int32_t> head = {2, 17, 100, 250, 300};
  const std::vector<int32_t> tail = {30, 40, 50};
  Chunk chunk = MakeChunk(0, head, 0, LogitsWanted::kNone);
  ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), {}, nullptr).ok());
  ASSERT_TRUE(chunk.status.ok()) << chunk.status;
  EXPECT_EQ(model->RowStats().bytes_useful, head.size() * part);
  chunk = MakeChunk(0, tail, static_cast<int>(head.size()), LogitsWanted::kLast);
  ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
  EXPECT_EQ(model->RowStats().bytes_useful, head.size() * part + tail.size() * table->row_bytes());
}

// While a chunk is computed, the rows of the next one are read, and those of a waiting request's first one.
TEST(StepTest, RowsAreAskedForBeforeTheStepThatNeedsThem) {
  DecoderOptions options = TestOptions();
  options.rows.cache_bytes = 0;
  options.slots_max = 1;
  LoadedModel model = LoadModel(GoldenGguf(kModel), options);
  ASSERT_NE(model.model, nullptr);
  EngineOptions engine_options;
  engine_options.own_thread = false;
  engine_options.prefill_chunk_max = 4;
  auto engine = Engine::Create(*model.model, nullptr, {}, engine_options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  testing::RecordingSink sinks[2];
  for (int i = 0; i < 2; ++i) {
    GenerateRequest request;
    for (int token = 0; token < 12; ++token) {
      request.prompt.push_back(10 + 200 * i + token);
    }
    request.sampling.temperature = 0;
    request.stop.tokens_max = 2;
    ASSERT_TRUE((*engine)->Submit(std::move(request), &sinks[i]).ok());
  }
  ASSERT_TRUE((*engine)->StepOnce());
  EXPECT_EQ(model->RowStats().rows_requested, 12u) << "its own, the next chunk's, and the waiting request's first";
  ASSERT_TRUE((*engine)->StepOnce());
  EXPECT_EQ(model->RowStats().rows_requested, 16u);
  ASSERT_TRUE((*engine)->StepOnce());
  EXPECT_EQ(model->RowStats().rows_requested, 17u) << "of the token that was sampled";
  while ((*engine)->StepOnce()) {
  }
  EXPECT_EQ(model->RowStats().rows_requested, 2 * 13u) << "none was asked for twice";
  for (const testing::RecordingSink& sink : sinks) {
    EXPECT_EQ(sink.ids.size(), 2u);
  }
}

// However many sequences decode, the rows of a step go out together.
TEST(StepTest, AStepsRowsAreOneBatch) {
  constexpr int kSequences = 4;
  constexpr int kTokens = 12;
  DecoderOptions options = TestOptions();
  options.rows.cache_bytes = 0;
  options.slots_max = kSequences;
  LoadedModel model = LoadModel(GoldenGguf(kModel), options);
  ASSERT_NE(model.model, nullptr);
  EngineOptions engine_options;
  engine_options.own_thread = false;
  auto engine = Engine::Create(*model.model, nullptr, {}, engine_options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  testing::RecordingSink sinks[kSequences];
  for (int i = 0; i < kSequences; ++i) {
    GenerateRequest request;
    request.prompt = {2, 10 + 50 * i, 20 + 60 * i};
    request.sampling.temperature = 0;
    request.stop.tokens_max = kTokens;
    ASSERT_TRUE((*engine)->Submit(std::move(request), &sinks[i]).ok());
  }
  ASSERT_TRUE((*engine)->StepOnce());  // the prompts, and the rows of the first tokens sent for
  storage::RowStoreStats before = model->RowStats();
  EXPECT_EQ(before.batches, 2u);
  uint64_t rows = 0;
  for (int token = 1; token + 1 < kTokens; ++token) {
    ASSERT_TRUE((*engine)->StepOnce());
    const storage::RowStoreStats now = model->RowStats();
    EXPECT_LE(now.batches - before.batches, 1u) << token;
    rows += now.rows_requested - before.rows_requested;
    before = now;
  }
  EXPECT_EQ(rows, kSequences * (kTokens - 2u));
  while ((*engine)->StepOnce()) {
  }
  for (const testing::RecordingSink& sink : sinks) {
    EXPECT_EQ(sink.ids.size(), static_cast<size_t>(kTokens));
  }
}

TEST(StepTest, WhatBreaksTheContractIsRefusedAndReleasesItsRows) {
  DecoderOptions options = TestOptions();
  options.step_tokens_max = 8;
  options.logit_rows_max = 2;
  LoadedModel model = LoadModel(GoldenGguf(kModel), options);
  ASSERT_NE(model.model, nullptr);
  ASSERT_TRUE(model->OpenSlot(0, 6).ok());
  std::vector<float> logits(8 * static_cast<size_t>(model.vocab()));
  const std::vector<int32_t> three = {2, 3, 4};
  const auto refused = [&](std::vector<Chunk> chunks, absl::StatusCode code, size_t room) {
    auto ticket = model->PrefetchRows(three);
    ASSERT_TRUE(ticket.ok()) << ticket.status();  // runs out of tickets if a refused step keeps them
    chunks[0].rows = *ticket;
    const absl::Status status = model->Step(absl::MakeSpan(chunks), absl::MakeSpan(logits).subspan(0, room), nullptr);
    EXPECT_EQ(status.code(), code) << status;
  };
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  const size_t room = logits.size();
  for (int round = 0; round < 10; ++round) {
    refused({MakeChunk(1, three, 0, LogitsWanted::kLast)}, invalid, room);                  // not open
    refused({MakeChunk(-1, three, 0, LogitsWanted::kLast)}, invalid, room);                 // no such slot
    refused({MakeChunk(4, three, 0, LogitsWanted::kLast)}, invalid, room);                  // no such slot
    refused({MakeChunk(0, three, 1, LogitsWanted::kLast)}, invalid, room);                  // leaves a hole
    refused({MakeChunk(0, {}, 0, LogitsWanted::kLast)}, invalid, room);                     // no tokens
    refused({MakeChunk(0, {1, 2, 3, 4, 5, 6, 7}, 0, LogitsWanted::kLast)}, invalid, room);  // past the reservation
    refused({MakeChunk(0, three, 0, LogitsWanted::kAll)}, invalid, room);                   // too many logit rows
    refused({MakeChunk(0, {2, -1, 4}, 0, LogitsWanted::kLast)}, invalid, room);             // no id
    refused({MakeChunk(0, {2, model.vocab(), 4}, 0, LogitsWanted::kLast)}, invalid, room);  // no id
    refused({MakeChunk(0, three, 0, LogitsWanted::kLast)}, invalid, room / 8 - 1);          // no room for logits
    refused({MakeChunk(0, three, 0, LogitsWanted::kNone), MakeChunk(0, three, 3, LogitsWanted::kLast)},
            absl::StatusCode::kFailedPrecondition, room);  // twice in one step
  }
  EXPECT_EQ(model->PrefetchRows({2, model.vocab()}).status().code(), invalid);
  EXPECT_EQ(model->PrefetchRows(std::vector<int32_t>(9, 2)).status().code(), invalid);
  // After all that the slot is as good as new.
  Chunk chunk = MakeChunk(0, three, 0, LogitsWanted::kLast);
  EXPECT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
  EXPECT_TRUE(chunk.status.ok());
}

// Coarser KV types move the logits more, but not by much; none depends on the chunks.
TEST(StepTest, KvTypesTradePrecisionForBytes) {
  const Golden golden(kModel);
  const std::vector<int32_t> ids = golden.Ids("seq3.input_ids");
  std::vector<float> exact;
  double last_error = -1;
  uint64_t last_bytes = UINT64_MAX;
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0, KvType::kQ4_0}) {
    DecoderOptions options = TestOptions();
    options.kv_type = type;
    LoadedModel model = LoadModel(GoldenGguf(kModel), options);
    ASSERT_NE(model.model, nullptr);
    const std::vector<float> logits = AllLogits(*model.model, ids);
    EXPECT_EQ(AllLogits(*model.model, ids, 7), logits);
    if (exact.empty()) {
      exact = logits;
    }
    double error = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      error += std::abs(logits[i] - exact[i]) / static_cast<double>(logits.size());
    }
    EXPECT_GT(error, last_error);
    EXPECT_LT(error, type == KvType::kF16 ? 0.02 : type == KvType::kQ8_0 ? 0.5 : 5.0);
    last_error = error;
    uint64_t bytes = 0;
    for (const MemoryPart& part : model->Memory()) {
      bytes = part.name == "kv_cache" ? part.bytes : bytes;
    }
    EXPECT_LT(bytes, last_bytes);
    last_bytes = bytes;
  }
}

}  // namespace
}  // namespace embergate::engine
