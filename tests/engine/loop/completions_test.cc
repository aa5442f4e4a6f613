// Several answers to one request, and prompts that wait for another one's beginning, over a scripted model that reuses
// prefixes.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/retry_after.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/manual_clock.h"
#include "tests/support/recording_sink.h"
#include "tests/support/scripted_model.h"

namespace embergate::engine {
namespace {

using ::embergate::testing::ManualClock;
using ::embergate::testing::RecordingSink;
using ::embergate::testing::ScriptedModel;
using ::embergate::testing::ScriptedModelOptions;
using ::embergate::testing::SeenChunk;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<int32_t> Prompt(int size, int salt = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < size; ++i) {
    prompt.push_back((i * 7 + salt * 13 + 3) % 64);
  }
  return prompt;
}

GenerateRequest Request(std::vector<int32_t> prompt, int tokens_max, int completions = 1) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.completions = completions;
  request.sampling.temperature = 1;
  request.sampling.seed = 77;
  request.stop.tokens_max = tokens_max;
  return request;
}

class CompletionsTest : public ::testing::Test {
 protected:
  void Make(ScriptedModelOptions model_options = {}, EngineOptions options = {}) {
    engine_.reset();
    model_options.clock = &clock_;
    model_options.reuses_prefixes = true;
    model_options.step_base = absl::Milliseconds(10);
    model_ = std::make_unique<ScriptedModel>(model_options);
    options.own_thread = false;
    options.clock = &clock_;
    auto engine = Engine::Create(*model_, nullptr, {}, options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void TearDown() override {
    engine_.reset();
    if (model_ != nullptr) {
      EXPECT_THAT(model_->violations(), IsEmpty());
      EXPECT_EQ(model_->FreeKvTokens(), 4 * 256);
    }
  }
  void RunAll() {
    for (int i = 0; i < 100000 && engine_->StepOnce(); ++i) {
    }
  }
  // Tokens computed as chunks of more than one, and single ones that are not decoded.
  int ComputedAt(int below) const {
    int tokens = 0;
    for (const std::vector<SeenChunk>& step : model_->seen()) {
      for (const SeenChunk& chunk : step) {
        tokens += std::max(0, std::min(below, chunk.start + chunk.tokens) - chunk.start);
      }
    }
    return tokens;
  }

  ManualClock clock_;
  std::unique_ptr<ScriptedModel> model_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(CompletionsTest, ShareThePromptAndDifferInTheirDraws) {
  Make();
  RecordingSink alone;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(50, 1), 12), &alone).ok());
  RunAll();
  Make();
  RecordingSink sink;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(50, 1), 12, 3), &sink).ok());
  RunAll();
  EXPECT_EQ(sink.ids_of[0], alone.ids);
  EXPECT_NE(sink.ids_of[1], sink.ids_of[0]);
  EXPECT_NE(sink.ids_of[2], sink.ids_of[0]);
  EXPECT_NE(sink.ids_of[2], sink.ids_of[1]);
  EXPECT_EQ(ComputedAt(50), 50 + 2) << "each further answer computes the last prompt token for its logits";
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_THAT(sink.violations, IsEmpty());
  EXPECT_EQ(sink.starts, 1);
  ASSERT_EQ(sink.completions.size(), 3u);
  EXPECT_EQ(sink.finish->receipt.prompt_tokens, 50);
  EXPECT_EQ(sink.finish->receipt.cached_tokens, 0);
  EXPECT_EQ(sink.finish->receipt.generated_tokens, 36);
  // The prompt's memory is there once. The answers began a step or two after one another.
  EXPECT_GE(sink.finish->receipt.kv_bytes_peak, 100u * (50 + 3 * 9));
  EXPECT_LE(sink.finish->receipt.kv_bytes_peak, 100u * (50 + 3 * 11));
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
  // The same request again gives the same answers, in whatever company.
  RecordingSink again, other;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(20, 2), 30), &other).ok());
  ASSERT_TRUE(engine_->Submit(Request(Prompt(50, 1), 12, 3), &again).ok());
  RunAll();
  EXPECT_EQ(again.ids_of, sink.ids_of);
  EXPECT_EQ(again.finish->receipt.cached_tokens, 49);
}

TEST_F(CompletionsTest, CumulativeLogprobIsTheSumOfTheTokens) {
  Make();
  RecordingSink sink;
  GenerateRequest request = Request(Prompt(30), 9, 2);
  request.want_logprobs = true;
  request.prompt_logprobs = true;
  ASSERT_TRUE(engine_->Submit(request, &sink).ok());
  RunAll();
  EXPECT_EQ(sink.prompt.size(), 29u) << "of one answer only";
  double sums[2] = {0, 0};
  for (const TokenEvent& event : sink.pieces) {
    for (const PositionLogprobs& position : event.logprobs) {
      sums[event.completion] += position.chosen.logprob;
    }
  }
  ASSERT_EQ(sink.completions.size(), 2u);
  for (const FinishEvent& event : sink.completions) {
    EXPECT_NEAR(event.cumulative_logprob, sums[event.completion], 1e-4);
    EXPECT_LT(event.cumulative_logprob, 0);
    EXPECT_EQ(event.receipt.generated_tokens, 9);
  }
}

TEST_F(CompletionsTest, MoreThanSlotsTakeTurns) {
  Make();
  RecordingSink sink;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(40), 5, 16), &sink).ok());
  RunAll();
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_EQ(sink.completions.size(), 16u);
  EXPECT_EQ(sink.finish->receipt.generated_tokens, 80);
  EXPECT_EQ(ComputedAt(40), 40 + 15);
}

TEST_F(CompletionsTest, CancelEndsAllOfThem) {
  for (const int steps : {0, 1, 2, 5}) {
    Make();
    RecordingSink sink, other;
    const auto id = engine_->Submit(Request(Prompt(100), 50, 6), &sink);
    ASSERT_TRUE(id.ok());
    ASSERT_TRUE(engine_->Submit(Request(Prompt(10, 3), 5), &other).ok());
    for (int i = 0; i < steps; ++i) {
      engine_->StepOnce();
    }
    engine_->Cancel(*id);
    RunAll();
    ASSERT_TRUE(sink.finish.has_value());
    EXPECT_EQ(sink.finish->reason, FinishReason::kCancelled);
    EXPECT_EQ(sink.completions.size(), 6u);
    EXPECT_EQ(other.finish->reason, FinishReason::kLength) << "others go on";
  }
}

TEST_F(CompletionsTest, TellThePromptsProgressOnceAndWhatOfItWasCached) {
  EngineOptions options;
  options.prefill_chunk_max = 32;
  Make({}, options);
  RecordingSink first;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(40), 3), &first).ok());
  RunAll();
  RecordingSink sink;
  GenerateRequest request = Request(Prompt(120), 3, 3);  // begins as the first
  request.prompt_progress = true;
  ASSERT_TRUE(engine_->Submit(request, &sink).ok());
  RunAll();
  EXPECT_THAT(sink.violations, IsEmpty());
  const int cached = sink.finish->receipt.cached_tokens;
  EXPECT_GE(cached, 32);
  EXPECT_EQ(sink.progress, (std::vector<std::pair<int, int>>{{cached + 32, cached}, {cached + 64, cached}}));
}

TEST_F(CompletionsTest, ATimeLimitEndsWhatHasNotEnded) {
  Make();
  RecordingSink whole;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(40), 20, 6), &whole).ok());
  RunAll();
  Make();
  RecordingSink sink;
  GenerateRequest request = Request(Prompt(40), 20, 6);  // four of them have slots, for about 200 ms
  request.time_limit = absl::Milliseconds(300);
  ASSERT_TRUE(engine_->Submit(request, &sink).ok());
  RunAll();
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_TRUE(sink.finish->status.ok());
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength) << "that of answer 0";
  ASSERT_EQ(sink.completions.size(), 6u);
  for (const FinishEvent& event : sink.completions) {
    const bool late = event.completion >= 4;
    EXPECT_EQ(event.reason, late ? FinishReason::kTimeLimit : FinishReason::kLength) << event.completion;
    const std::vector<int32_t>& ids = sink.ids_of[event.completion];
    const std::vector<int32_t>& all = whole.ids_of[event.completion];
    ASSERT_LE(ids.size(), all.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), all.begin()));
    EXPECT_EQ(ids.size() == all.size(), !late);
    EXPECT_FALSE(ids.empty());
  }
  // So early that no answer has begun: an end without text for each.
  Make();
  RecordingSink nothing;
  request.time_limit = absl::Nanoseconds(1);
  ASSERT_TRUE(engine_->Submit(request, &nothing).ok());
  clock_.Advance(absl::Milliseconds(1));
  RunAll();
  ASSERT_TRUE(nothing.finish.has_value());
  EXPECT_TRUE(nothing.finish->status.ok());
  EXPECT_EQ(nothing.finish->reason, FinishReason::kTimeLimit);
  EXPECT_EQ(nothing.completions.size(), 6u);
  EXPECT_THAT(nothing.ids, IsEmpty());
  EXPECT_EQ(nothing.starts, 0);
}

TEST_F(CompletionsTest, ErrorOfOneEndsTheRequest) {
  Make();
  model_->set_chunk_fault([](uint64_t, const Chunk& chunk) {
    return chunk.slot == 1 && chunk.start == 43 ? absl::DataLossError("a row is damaged") : absl::OkStatus();
  });
  RecordingSink sink;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(40), 50, 3), &sink).ok());
  RunAll();
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_EQ(sink.finish->reason, FinishReason::kError);
  EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(sink.completions.size(), 3u);
  EXPECT_LT(sink.finish->receipt.generated_tokens, 30);
}

TEST_F(CompletionsTest, RefusedAsAWhole) {
  EngineOptions options;
  options.waiting_max = 2;
  Make({}, options);
  RecordingSink sink, first;
  auto refused = engine_->Submit(Request(Prompt(10), 5, 17), &sink);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("completions"));
  refused = engine_->Submit(Request(Prompt(10), 5, 7), &sink);  // 4 slots, 2 places
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(engine_->Submit(Request(Prompt(10), 5, 4), &first).ok());
  refused = engine_->Submit(Request(Prompt(10), 5, 3), &sink);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  RunAll();
  EXPECT_EQ(sink.starts, 0);
  EXPECT_FALSE(sink.finish.has_value());
  EXPECT_EQ(first.completions.size(), 4u);
  ASSERT_TRUE(engine_->Submit(Request(Prompt(10), 5, 3), &sink).ok());
  RunAll();
  EXPECT_EQ(sink.completions.size(), 3u);
}

TEST_F(CompletionsTest, TogetherMoreThanTheQueueHoldsTheyGoInWhenNobodyWaits) {
  EngineOptions options;
  options.waiting_tokens_max = 100;
  Make({}, options);
  RecordingSink first, sink;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(10), 5), &first).ok());
  EXPECT_EQ(engine_->Submit(Request(Prompt(40), 5, 6), &sink).status().code(), absl::StatusCode::kResourceExhausted);
  RunAll();
  ASSERT_TRUE(engine_->Submit(Request(Prompt(40), 5, 6), &sink).ok());
  RunAll();
  EXPECT_EQ(sink.completions.size(), 6u);
}

TEST_F(CompletionsTest, PromptWaitsForOneThatComputesItsBeginning) {
  Make();
  std::vector<int32_t> a = Prompt(150, 1), b = a;
  b.resize(120);
  b.resize(160, 5);
  RecordingSink first, second;
  GenerateRequest greedy_a = Request(a, 4), greedy_b = Request(b, 4);
  greedy_a.sampling.temperature = greedy_b.sampling.temperature = 0;
  ASSERT_TRUE(engine_->Submit(greedy_a, &first).ok());
  ASSERT_TRUE(engine_->Submit(greedy_b, &second).ok());
  RunAll();
  EXPECT_EQ(first.ids, model_->Greedy(a, 4));
  EXPECT_EQ(second.ids, model_->Greedy(b, 4));
  EXPECT_EQ(second.finish->receipt.cached_tokens, 120);
  EXPECT_EQ(ComputedAt(120), 120);
}

TEST_F(CompletionsTest, FollowerGoesOnWhenItsLeaderIsGone) {
  Make();
  RecordingSink first, second;
  GenerateRequest request = Request(Prompt(200, 1), 4);
  request.sampling.temperature = 0;
  const auto id = engine_->Submit(request, &first);
  ASSERT_TRUE(engine_->Submit(request, &second).ok());
  engine_->StepOnce();
  engine_->Cancel(*id);
  RunAll();
  EXPECT_EQ(first.finish->reason, FinishReason::kCancelled);
  EXPECT_EQ(second.ids, model_->Greedy(request.prompt, 4));
  EXPECT_GT(second.finish->receipt.cached_tokens, 0) << "what the first had computed is not lost";
}

TEST_F(CompletionsTest, WithoutSharingOnlyAnswersOfOneRequestShare) {
  EngineOptions options;
  options.share_prefixes = false;
  Make({}, options);
  RecordingSink first, second;
  ASSERT_TRUE(engine_->Submit(Request(Prompt(100), 4, 2), &first).ok());
  ASSERT_TRUE(engine_->Submit(Request(Prompt(100), 4), &second).ok());
  RunAll();
  EXPECT_EQ(second.finish->receipt.cached_tokens, 0);
  EXPECT_EQ(ComputedAt(100), 100 + 1 + 100);
}

}  // namespace
}  // namespace embergate::engine
