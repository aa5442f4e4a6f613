// Counts what the step loop allocates per step once it is warm: only what events carry away.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"

namespace {
uint64_t g_allocations = 0;  // of this program's one thread
}  // namespace

void* operator new(size_t size) {
  ++g_allocations;
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) {
    std::abort();
  }
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace embergate::engine {
namespace {

// Allocates nothing itself.
class FlatModel : public LanguageModel {
 public:
  const ModelLimits& limits() const override { return limits_; }
  std::vector<MemoryPart> Memory() const override { return {}; }
  absl::Status OpenSlot(int, int) override { return absl::OkStatus(); }
  void CloseSlot(int) override {}
  int64_t FreeKvTokens() const override { return 100000; }
  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t>) override {
    return storage::RowTicket{1, 1};
  }
  void ReleaseRows(storage::RowTicket) override {}
  absl::Status Step(absl::Span<Chunk>, absl::Span<float> logits, StepTimes*) override {
    for (size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<float>((i * 7919) % 97) * 0.1f;
    }
    return absl::OkStatus();
  }

 private:
  ModelLimits limits_{500, 4096, 8, 256, 8};
};

class CountingSink : public TokenSink {
 public:
  void OnStart(int) override {}
  void OnPrompt(std::vector<PositionLogprobs>) override {}
  void OnTokens(TokenEvent event) override { tokens += event.ids.size(); }
  void OnFinish(FinishEvent) override {}
  size_t tokens = 0;
};

TEST(AllocationsTest, AWarmStepAllocatesOnlyItsEvents) {
  FlatModel model;
  EngineOptions options;
  options.own_thread = false;
  auto engine = *Engine::Create(model, nullptr, {}, options);
  std::vector<CountingSink> sinks(9);
  for (size_t i = 0; i < 9; ++i) {  // eight streams, and one more that waits with its rows read ahead
    GenerateRequest request;
    request.prompt = {1, 2, 3, 4, 5};
    request.stop.tokens_max = 2000;
    request.sampling.top_k = i % 2 == 0 ? 64 : 0;
    request.sampling.top_p = 0.9f;
    request.sampling.repetition_penalty = 1.1f;
    request.sampling.frequency_penalty = 0.5f;
    ASSERT_TRUE(engine->Submit(std::move(request), &sinks[i]).ok());
  }
  for (int i = 0; i < 200; ++i) {
    engine->StepOnce();
  }
  constexpr int kSteps = 500;
  const uint64_t before = g_allocations;
  for (int i = 0; i < kSteps; ++i) {
    engine->StepOnce();
  }
  const double per_step = static_cast<double>(g_allocations - before) / kSteps;
  EXPECT_EQ(sinks[0].tokens, 700u);
  // One list of ids per stream and step; the queue of held ids takes a new block now and then.
  EXPECT_LE(per_step, 8 * 1.2);
  engine.reset();
}

}  // namespace
}  // namespace embergate::engine
