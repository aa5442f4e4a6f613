// Counts what a real model allocates, on any thread, once it is warm: nothing, whatever comes and goes. What the loop
// around it allocates, loop_allocations_test counts.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"

namespace {
std::atomic<uint64_t> g_allocations{0};

void* Allocate(size_t size, size_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = std::aligned_alloc(alignment, (size + alignment) / alignment * alignment);
  if (p == nullptr) {
    std::abort();
  }
  return p;
}
}  // namespace

void* operator new(size_t size) { return Allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(size_t size, std::align_val_t alignment) { return Allocate(size, static_cast<size_t>(alignment)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return Allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace embergate::engine {
namespace {

// Passes everything on, and counts what is allocated meanwhile.
class CountedModel : public LanguageModel {
 public:
  enum Call { kOpen, kClose, kLook, kPrefetch, kSend, kRelease, kStep, kCalls };
  static constexpr const char* kNames[kCalls] = {"OpenSlotWithPrefix", "CloseSlot",   "CachedPrefix", "PrefetchRows",
                                                 "SendRows",           "ReleaseRows", "Step"};

  explicit CountedModel(LanguageModel& inner) : inner_(inner) {}

  const ModelLimits& limits() const override { return inner_.limits(); }
  std::vector<MemoryPart> Memory() const override { return inner_.Memory(); }
  absl::Status OpenSlot(int slot, int tokens_max) override { return inner_.OpenSlot(slot, tokens_max); }
  absl::StatusOr<int> OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens,
                                         uint64_t scope) override {
    const Count count(this, kOpen);
    return inner_.OpenSlotWithPrefix(slot, tokens_max, tokens, scope);
  }
  bool reuses_prefixes() const override { return inner_.reuses_prefixes(); }
  int CachedPrefix(absl::Span<const int32_t> tokens, uint64_t scope) const override {
    const Count count(this, kLook);
    return inner_.CachedPrefix(tokens, scope);
  }
  PrefixCacheStats PrefixStats() const override { return inner_.PrefixStats(); }
  void CloseSlot(int slot) override {
    const Count count(this, kClose);
    inner_.CloseSlot(slot);
  }
  int64_t FreeKvTokens() const override { return inner_.FreeKvTokens(); }
  uint64_t KvBytes(absl::Span<const int> slots) const override { return inner_.KvBytes(slots); }
  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t> tokens) override {
    Count count(this, kPrefetch);
    return inner_.PrefetchRows(tokens);
  }
  absl::StatusOr<storage::RowTicket> PrefetchChunkRows(absl::Span<const int32_t> tokens, LogitsWanted logits) override {
    Count count(this, kPrefetch);
    auto ticket = inner_.PrefetchChunkRows(tokens, logits);
    refused += ticket.ok() ? 0 : 1;
    return ticket;
  }
  void SendRows() override {
    const Count count(this, kSend);
    inner_.SendRows();
  }
  void ReleaseRows(storage::RowTicket ticket) override {
    const Count count(this, kRelease);
    inner_.ReleaseRows(ticket);
  }
  absl::Status Step(absl::Span<Chunk> chunks, absl::Span<float> logits, StepTimes* times) override {
    const Count count(this, kStep);
    return inner_.Step(chunks, logits, times);
  }

  mutable uint64_t calls[kCalls] = {};
  mutable uint64_t allocations[kCalls] = {};
  uint64_t refused = 0;  // to read ahead, for want of room

 private:
  struct Count {
    Count(const CountedModel* counted, Call what) : model(counted), call(what), before(g_allocations.load()) {}
    ~Count() {
      ++model->calls[call];
      model->allocations[call] += g_allocations.load() - before;
    }
    const CountedModel* model;
    Call call;
    uint64_t before;
  };
  LanguageModel& inner_;
};

class DiscardingSink : public TokenSink {
 public:
  void OnStart(int) override {}
  void OnPrompt(std::vector<PositionLogprobs>) override {}
  void OnTokens(TokenEvent event) override { tokens += event.ids.size(); }
  void OnFinish(FinishEvent finish) override { ended_well = finish.status.ok(); }
  size_t tokens = 0;
  bool ended_well = false;
};

// Prompts that begin alike and otherwise, longer than a chunk, more than there are slots, batch work among them.
void RunAll(Engine& engine, std::mt19937& random, std::vector<DiscardingSink>& sinks) {
  for (DiscardingSink& sink : sinks) {
    GenerateRequest request;
    for (int i = 0, common = static_cast<int>(random() % 90); i < 90; ++i) {
      request.prompt.push_back(static_cast<int32_t>(i < common ? 3 + i : 3 + random() % 200));
    }
    // Whole blocks of the KV cache, so that it never refuses what it said it had room for, with words that it
    // allocates.
    request.stop.tokens_max = random() % 2 == 0 ? 6 : 38;
    request.priority = random() % 3 == 0 ? Priority::kBatch : Priority::kInteractive;
    ASSERT_TRUE(engine.Submit(std::move(request), &sink).ok());
    engine.StepOnce();
  }
  while (engine.StepOnce()) {
  }
}

DecoderOptions SmallOptions() {
  DecoderOptions options = TestOptions();
  options.step_tokens_max = 48;
  options.prefix_cache_bytes = 1 << 16;
  options.kv_tokens_max = 320;
  return options;
}

class StepAllocationsTest : public ::testing::TestWithParam<std::string> {};

TEST_P(StepAllocationsTest, AWarmModelAllocatesNothing) {
  const LoadedModel loaded = LoadModel(GoldenGguf(GetParam()), SmallOptions(), /*threads=*/2);
  ASSERT_NE(loaded.model, nullptr);
  CountedModel model(*loaded.model);
  EngineOptions engine_options;
  engine_options.own_thread = false;
  engine_options.prefill_chunk_max = 24;
  auto engine = *Engine::Create(model, nullptr, {}, engine_options);
  std::mt19937 random(3);
  std::vector<DiscardingSink> warm(10);
  RunAll(*engine, random, warm);
  for (int call = 0; call < CountedModel::kCalls; ++call) {
    model.calls[call] = 0;
    model.allocations[call] = 0;
  }
  model.refused = 0;
  std::vector<DiscardingSink> sinks(30);
  RunAll(*engine, random, sinks);
  for (int call = 0; call < CountedModel::kCalls; ++call) {
    EXPECT_GT(model.calls[call], 0u) << CountedModel::kNames[call];
    EXPECT_EQ(model.allocations[call], 0u) << CountedModel::kNames[call] << ", " << model.calls[call] << " calls";
  }
  for (const DiscardingSink& sink : sinks) {
    EXPECT_TRUE(sink.ended_well);
  }
  EXPECT_GT(model.refused, 0u);
  EXPECT_GT(engine->Snapshot().preemptions, 0u);
  EXPECT_GT(engine->Snapshot().prefix_cache.hits, 0u);
  EXPECT_GT(engine->Snapshot().prefix_cache.blocks_evicted, 0u);
}

// Chunks nearly as long as a step: what is read ahead for two that wait leaves the row store no room for a whole step.
TEST_P(StepAllocationsTest, RowsForThoseThatWaitFailNobody) {
  const LoadedModel loaded = LoadModel(GoldenGguf(GetParam()), SmallOptions());
  ASSERT_NE(loaded.model, nullptr);
  EngineOptions engine_options;
  engine_options.own_thread = false;
  engine_options.prefill_chunk_max = 40;
  auto engine = *Engine::Create(*loaded.model, nullptr, {}, engine_options);
  std::mt19937 random(3);
  std::vector<DiscardingSink> sinks(60);
  RunAll(*engine, random, sinks);
  for (const DiscardingSink& sink : sinks) {
    EXPECT_TRUE(sink.ended_well);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, StepAllocationsTest, ::testing::Values("gemma4-tiny-e2b", "gemma3n-tiny-e2b"),
                         [](const auto& golden) {
                           return golden.param == "gemma4-tiny-e2b" ? std::string("Gemma4") : std::string("Gemma3n");
                         });

}  // namespace
}  // namespace embergate::engine
