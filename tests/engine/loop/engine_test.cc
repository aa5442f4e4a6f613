// The engine as a whole over a scripted model, mostly stepped by hand: what clients get, and what the model is owed.
#include "engine/engine.h"

#include <memory>
#include <string>
#include <vector>

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
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

GenerateRequest Greedy(std::vector<int32_t> prompt, int tokens_max) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stop.tokens_max = tokens_max;
  return request;
}

std::vector<int32_t> Prompt(int size, int salt = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < size; ++i) {
    prompt.push_back((i * 7 + salt * 13 + 3) % 64);
  }
  return prompt;
}

class EngineTest : public ::testing::Test {
 protected:
  void Make(ScriptedModelOptions model_options = {}, EngineOptions options = {}, std::vector<int32_t> eos_ids = {}) {
    model_options.clock = &clock_;
    if (model_options.step_base == absl::ZeroDuration()) {
      model_options.step_base = absl::Milliseconds(10);
      model_options.step_per_token = absl::Milliseconds(1);
    }
    model_ = std::make_unique<ScriptedModel>(model_options);
    options.own_thread = false;
    options.clock = &clock_;
    auto engine = Engine::Create(*model_, nullptr, std::move(eos_ids), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void TearDown() override {
    engine_.reset();
    if (model_ != nullptr) {
      EXPECT_THAT(model_->violations(), IsEmpty());
    }
  }
  RequestId Submit(GenerateRequest request, RecordingSink* sink) {
    const auto id = engine_->Submit(std::move(request), sink);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.ok() ? *id : 0;
  }
  void RunAll(int steps_max = 100000) {
    for (int i = 0; i < steps_max && engine_->StepOnce(); ++i) {
    }
  }

  ManualClock clock_;
  std::unique_ptr<ScriptedModel> model_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, GreedyTokensAreTheModelsOwn) {
  Make();
  RecordingSink sink;
  Submit(Greedy(Prompt(5), 12), &sink);
  RunAll();
  EXPECT_EQ(sink.ids, model_->Greedy(Prompt(5), 12));
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
  EXPECT_TRUE(sink.finish->status.ok());
  EXPECT_EQ(sink.started_with, 5);
  EXPECT_EQ(sink.finish->receipt.prompt_tokens, 5);
  EXPECT_EQ(sink.finish->receipt.generated_tokens, 12);
  EXPECT_THAT(sink.violations, IsEmpty());
}

TEST_F(EngineTest, AStreamIsTheSameAloneInABatchAndForAnyChunking) {
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 8; ++i) {
    Make();
    RecordingSink sink;
    GenerateRequest request = Greedy(Prompt(3 + 11 * i, i), 20);
    request.sampling.temperature = 0.9f;
    request.sampling.seed = static_cast<uint64_t>(i);
    Submit(std::move(request), &sink);
    RunAll();
    ASSERT_EQ(sink.ids.size(), 20u);
    alone.push_back(sink.ids);
    TearDown();
  }
  for (int chunk : {1, 2, 7, 32, 64}) {
    for (int rows : {1, 3, 16}) {
      ScriptedModelOptions model_options;
      model_options.limits.slots_max = 8;
      model_options.limits.logit_rows_max = rows;
      EngineOptions options;
      options.prefill_chunk_max = chunk;
      Make(model_options, options);
      std::vector<RecordingSink> sinks(8);
      for (int i = 0; i < 8; ++i) {
        GenerateRequest request = Greedy(Prompt(3 + 11 * i, i), 20);
        request.sampling.temperature = 0.9f;
        request.sampling.seed = static_cast<uint64_t>(i);
        Submit(std::move(request), &sinks[static_cast<size_t>(i)]);
        engine_->StepOnce();  // they join at different times
      }
      RunAll();
      for (size_t i = 0; i < 8; ++i) {
        EXPECT_EQ(sinks[i].ids, alone[i]) << "sequence " << i << " chunk " << chunk << " rows " << rows;
        EXPECT_THAT(sinks[i].violations, IsEmpty());
      }
      TearDown();
    }
  }
}

TEST_F(EngineTest, AnEndOfSequenceIdEndsTheStreamWithoutBeingGivenOut) {
  Make({}, {}, {9});
  const std::vector<int32_t> expected = model_->Greedy(Prompt(4), 200);
  const auto eos = std::find(expected.begin(), expected.end(), 9);
  ASSERT_NE(eos, expected.end());
  RecordingSink sink;
  Submit(Greedy(Prompt(4), 200), &sink);
  RunAll();
  EXPECT_EQ(sink.ids, std::vector<int32_t>(expected.begin(), eos));
  EXPECT_EQ(sink.finish->reason, FinishReason::kStop);
  EXPECT_EQ(sink.finish->stop_id, 9);
  EXPECT_EQ(sink.finish->receipt.generated_tokens, eos - expected.begin() + 1);
}

TEST_F(EngineTest, CancelEndsWithinOneStep) {
  Make();
  RecordingSink sink;
  const RequestId id = Submit(Greedy(Prompt(4), 100), &sink);
  for (int i = 0; i < 5; ++i) {
    engine_->StepOnce();
  }
  const size_t before = sink.ids.size();
  EXPECT_GT(before, 0u);
  engine_->Cancel(id);
  engine_->StepOnce();
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_EQ(sink.ids.size(), before);
  EXPECT_EQ(sink.finish->reason, FinishReason::kCancelled);
  EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, OwnThreadServesManyAtOnce) {
  ScriptedModel model(ScriptedModelOptions{});
  auto engine = Engine::Create(model, nullptr, {}, {});
  ASSERT_TRUE(engine.ok());
  std::vector<RecordingSink> sinks(40);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE((*engine)->Submit(Greedy(Prompt(3 + i, i), 10), &sinks[static_cast<size_t>(i)]).ok());
  }
  for (int i = 0; i < 40; ++i) {
    sinks[static_cast<size_t>(i)].WaitForFinish();
    EXPECT_EQ(sinks[static_cast<size_t>(i)].ids, model.Greedy(Prompt(3 + i, i), 10));
  }
  (*engine)->Drain(absl::InfiniteFuture());
  EXPECT_THAT(model.violations(), IsEmpty());
}

}  // namespace
}  // namespace embergate::engine
