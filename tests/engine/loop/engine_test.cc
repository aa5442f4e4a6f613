// The engine as a whole over a scripted model, mostly stepped by hand: what clients get, and what the model is owed.
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/retry_after.h"
#include "engine/sequence.h"
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
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

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
    engine_.reset();  // before its model
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

TEST_F(EngineTest, StopIdsAndTokensMinAreObeyed) {
  Make({}, {}, {9});
  const std::vector<int32_t> free_run = model_->Greedy(Prompt(4), 10);
  {
    RecordingSink sink;
    GenerateRequest request = Greedy(Prompt(4), 10);
    request.stop.stop_ids = {free_run[3]};
    request.stop.include_stop = true;
    Submit(std::move(request), &sink);
    RunAll();
    const auto first = std::find(free_run.begin(), free_run.end(), free_run[3]);
    EXPECT_EQ(sink.ids, std::vector<int32_t>(free_run.begin(), first + 1));
    EXPECT_EQ(sink.finish->stop_id, free_run[3]);
  }
  {
    RecordingSink sink;
    GenerateRequest request = Greedy(Prompt(4), 150);
    request.stop.tokens_min = 100;
    Submit(std::move(request), &sink);
    RunAll();
    EXPECT_GE(sink.ids.size(), 100u);
    EXPECT_THAT(sink.ids, Not(Contains(9)));
  }
  {
    RecordingSink sink;
    GenerateRequest request = Greedy(Prompt(4), 150);
    request.stop.ignore_eos = true;
    Submit(std::move(request), &sink);
    RunAll();
    EXPECT_EQ(sink.ids, model_->Greedy(Prompt(4), 150));
    EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
  }
}

TEST_F(EngineTest, WithoutAMaximumTheContextIsFilled) {
  Make();
  for (int tokens_max : {0, -1}) {
    RecordingSink sink;
    Submit(Greedy(Prompt(250), tokens_max), &sink);
    RunAll();
    EXPECT_EQ(sink.ids.size(), 6u);
    EXPECT_EQ(sink.finish->reason, FinishReason::kContextFull);
    EXPECT_TRUE(sink.finish->status.ok());
  }
}

TEST_F(EngineTest, RequestsThatCannotBeServedAreRefusedWithTheReason) {
  Make();
  RecordingSink sink;
  const auto message = [&](GenerateRequest request) {
    const auto id = engine_->Submit(std::move(request), &sink);
    EXPECT_EQ(id.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(id.status().message());
  };
  EXPECT_THAT(message(Greedy({}, 1)), HasSubstr("prompt is empty"));
  EXPECT_THAT(message(Greedy({1, 64}, 1)), HasSubstr("prompt token 1 is 64; ids are 0 to 63"));
  EXPECT_THAT(message(Greedy({-1}, 1)), HasSubstr("prompt token 0 is -1"));
  EXPECT_THAT(message(Greedy(Prompt(257), 1)), HasSubstr("prompt has 257 tokens; at most 256"));
  EXPECT_THAT(message(Greedy(Prompt(200), 57)), HasSubstr("56 are left"));
  EXPECT_THAT(message(Greedy(Prompt(256), 0)), HasSubstr("0 are left"));
  EXPECT_THAT(message(Greedy(Prompt(3), -2)), HasSubstr("stop.tokens_max is -2"));
  GenerateRequest request = Greedy(Prompt(3), 5);
  request.stop.tokens_min = 6;
  EXPECT_THAT(message(request), HasSubstr("stop.tokens_min is 6"));
  request = Greedy(Prompt(3), 5);
  request.stop.stop_ids = {64};
  EXPECT_THAT(message(request), HasSubstr("stop.stop_ids holds 64"));
  request = Greedy(Prompt(3), 5);
  request.stop.stop_strings = {"x"};
  EXPECT_THAT(message(request), HasSubstr("no tokenizer"));
  request = Greedy(Prompt(3), 5);
  request.top_logprobs = 5000;
  EXPECT_THAT(message(request), HasSubstr("top_logprobs is 5000"));
  request = Greedy(Prompt(3), 5);
  request.sampling.top_p = 0;
  EXPECT_THAT(message(request), HasSubstr("sampling.top_p"));
  EXPECT_FALSE(engine_->StepOnce());
  EXPECT_EQ(engine_->Snapshot().requests_refused, 12u);
  EXPECT_EQ(sink.starts, 0);
  EXPECT_FALSE(sink.finish.has_value());
}

TEST_F(EngineTest, APromptThatThePoolCouldNeverHoldIsRefused) {
  ScriptedModelOptions model_options;
  model_options.kv_tokens = 100;
  Make(model_options);
  RecordingSink sink;
  const auto id = engine_->Submit(Greedy(Prompt(90), 11), &sink);
  EXPECT_EQ(id.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(id.status().message()), HasSubstr("KV pool 100"));
  Submit(Greedy(Prompt(90), 10), &sink);
  RunAll();
  EXPECT_EQ(sink.ids.size(), 10u);
}

// ---- Scoring and log-probabilities ----------------------------------------------------------------
// log p of every id after `context`, in doubles.
std::vector<double> PlainLogprobs(const std::vector<int32_t>& context) {
  std::vector<float> logits(64);
  testing::HashScript()(context, absl::MakeSpan(logits));
  double sum = 0;
  for (float l : logits) {
    sum += std::exp(static_cast<double>(l));
  }
  std::vector<double> result;
  for (float l : logits) {
    result.push_back(l - std::log(sum));
  }
  return result;
}

void ExpectPosition(const PositionLogprobs& position, const std::vector<int32_t>& context, int32_t id, size_t top) {
  const std::vector<double> plain = PlainLogprobs(context);
  EXPECT_EQ(position.chosen.id, id);
  EXPECT_NEAR(position.chosen.logprob, plain[static_cast<size_t>(id)], 1e-5);
  ASSERT_EQ(position.top.size(), top);
  std::vector<double> sorted = plain;
  std::sort(sorted.begin(), sorted.end(), std::greater<double>());
  for (size_t i = 0; i < top; ++i) {
    EXPECT_NEAR(position.top[i].logprob, sorted[i], 1e-5);
    EXPECT_NEAR(position.top[i].logprob, plain[static_cast<size_t>(position.top[i].id)], 1e-5);
  }
}

TEST_F(EngineTest, ScoringGivesThePromptsLogprobsInPiecesAndGeneratesNothing) {
  for (int rows : {1, 5, 16}) {
    ScriptedModelOptions model_options;
    model_options.limits.logit_rows_max = rows;
    Make(model_options);
    const std::vector<int32_t> prompt = Prompt(50);
    RecordingSink sink;
    GenerateRequest request = Greedy(prompt, 0);
    request.prompt_logprobs = true;
    request.prompt_top_logprobs = 3;
    Submit(std::move(request), &sink);
    RunAll();
    ASSERT_TRUE(sink.finish.has_value());
    EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
    EXPECT_THAT(sink.ids, IsEmpty());
    ASSERT_EQ(sink.prompt.size(), 49u);
    EXPECT_GE(sink.prompt_pieces, 49 / rows);
    for (size_t i = 1; i < prompt.size(); ++i) {
      ExpectPosition(sink.prompt[i - 1], {prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(i)}, prompt[i],
                     3);
    }
    EXPECT_THAT(sink.violations, IsEmpty());
    TearDown();
  }
}

TEST_F(EngineTest, ScoringOneTokenHasNothingToSay) {
  Make();
  RecordingSink sink;
  GenerateRequest request = Greedy({5}, 0);
  request.prompt_logprobs = true;
  Submit(std::move(request), &sink);
  RunAll();
  EXPECT_EQ(sink.starts, 1);
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
  EXPECT_THAT(sink.prompt, IsEmpty());
  EXPECT_EQ(model_->steps(), 0u);
}

TEST_F(EngineTest, GeneratedTokensCarryRawLogprobsWhateverTheSamplingSays) {
  Make();
  RecordingSink sink;
  GenerateRequest request = Greedy(Prompt(6), 10);
  request.prompt_logprobs = true;
  request.want_logprobs = true;
  request.top_logprobs = 4;
  request.sampling.temperature = 0.3f;
  request.sampling.top_k = 5;
  request.sampling.repetition_penalty = 1.5f;
  request.sampling.logit_bias = {{7, 3.0f}};
  Submit(std::move(request), &sink);
  RunAll();
  ASSERT_EQ(sink.logprobs.size(), 10u);
  ASSERT_EQ(sink.prompt.size(), 5u);
  std::vector<int32_t> context = Prompt(6);
  for (size_t i = 0; i < 10; ++i) {
    ExpectPosition(sink.logprobs[i], context, sink.ids[i], 4);
    context.push_back(sink.ids[i]);
  }
}

// ---- Ends -----------------------------------------------------------------------------------------
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
  engine_->Cancel(id + 1000);
  engine_->StepOnce();
  ASSERT_TRUE(sink.finish.has_value());
  EXPECT_EQ(sink.ids.size(), before);
  EXPECT_EQ(sink.finish->reason, FinishReason::kCancelled);
  EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kCancelled);
  engine_->Cancel(id);  // after its end: ignored
  EXPECT_FALSE(engine_->StepOnce());
}

TEST_F(EngineTest, CancelDuringAStepKeepsItsTokenBack) {
  Make();
  RecordingSink sink;
  const RequestId id = Submit(Greedy(Prompt(4), 100), &sink);
  engine_->StepOnce();
  const size_t before = sink.ids.size();
  model_->set_on_step([&](uint64_t) { engine_->Cancel(id); });
  engine_->StepOnce();
  EXPECT_EQ(sink.ids.size(), before);
  engine_->StepOnce();
  EXPECT_EQ(sink.finish->reason, FinishReason::kCancelled);
}

TEST_F(EngineTest, AWaitingRequestCanBeCancelledAndItsRowsAreGivenBack) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink first;
  RecordingSink second;
  Submit(Greedy(Prompt(4), 50), &first);
  const RequestId id = Submit(Greedy(Prompt(9), 50), &second);
  engine_->StepOnce();
  engine_->StepOnce();
  EXPECT_EQ(engine_->Snapshot().waiting, 1);
  engine_->Cancel(id);
  engine_->StepOnce();
  EXPECT_EQ(second.starts, 0);
  EXPECT_EQ(second.finish->reason, FinishReason::kCancelled);
  EXPECT_GT(second.finish->receipt.queue_seconds, 0);
  EXPECT_EQ(engine_->Snapshot().waiting, 0);
  RunAll();
  EXPECT_EQ(first.ids.size(), 50u);
}

TEST_F(EngineTest, DeadlinesEndRunningAndWaitingRequests) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink running;
  RecordingSink waiting;
  GenerateRequest request = Greedy(Prompt(4), 100);
  request.deadline = clock_.WallNow() + absl::Milliseconds(100);
  Submit(request, &running);
  request.deadline = clock_.WallNow() + absl::Milliseconds(50);
  Submit(request, &waiting);
  clock_.JumpWall(-absl::Hours(5));  // a deadline counts from Submit, whatever happens to the wall clock
  RunAll();
  EXPECT_EQ(running.finish->reason, FinishReason::kDeadline);
  EXPECT_EQ(running.finish->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(running.ids.size(), 9u);  // 14 ms for the prompt and its token, 11 ms for each of the others
  EXPECT_EQ(waiting.starts, 0);
  EXPECT_EQ(waiting.finish->reason, FinishReason::kDeadline);
  EXPECT_NEAR(waiting.finish->receipt.queue_seconds, 0.05, 0.011);
}

// ---- The progress of a prompt -------------------------------------------------------------------------
TEST_F(EngineTest, TellsHowFarAPromptOfSeveralStepsIs) {
  EngineOptions options;
  options.prefill_chunk_max = 16;
  Make({}, options);
  GenerateRequest request = Greedy(Prompt(50), 3);
  RecordingSink silent;
  Submit(request, &silent);
  RunAll();
  EXPECT_THAT(silent.progress, IsEmpty()) << "nobody asked";
  request.prompt_progress = true;
  RecordingSink sink;
  Submit(request, &sink);
  RunAll();
  EXPECT_EQ(sink.progress, (std::vector<std::pair<int, int>>{{16, 0}, {32, 0}, {48, 0}}));
  EXPECT_EQ(sink.ids, silent.ids);
  EXPECT_THAT(sink.violations, IsEmpty());
  RecordingSink once;
  request.prompt.resize(16);
  Submit(request, &once);
  RunAll();
  EXPECT_THAT(once.progress, IsEmpty()) << "one step computes all of it";
}

TEST_F(EngineTest, ThePromptOfARequestThatWasSetAsideDoesNotGoBack) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  EngineOptions options;
  options.prefill_chunk_max = 8;
  for (int steps = 1; steps < 9; ++steps) {
    Make(model_options, options);
    RecordingSink batch;
    RecordingSink interactive;
    GenerateRequest request = Greedy(Prompt(40), 5);
    request.priority = Priority::kBatch;
    request.prompt_progress = true;
    Submit(std::move(request), &batch);
    for (int i = 0; i < steps; ++i) {
      engine_->StepOnce();
    }
    Submit(Greedy(Prompt(9, 1), 5), &interactive);
    RunAll();
    EXPECT_EQ(batch.finish->receipt.preemptions, 1);
    EXPECT_EQ(batch.progress, (std::vector<std::pair<int, int>>{{8, 0}, {16, 0}, {24, 0}, {32, 0}})) << steps;
    EXPECT_THAT(batch.violations, IsEmpty());
  }
}

// ---- Time limits: as deadlines, but what ends by one has ended well -----------------------------------
TEST_F(EngineTest, TimeLimitsEndRunningAndWaitingRequestsWell) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink running;
  RecordingSink waiting;
  GenerateRequest request = Greedy(Prompt(4), 100);
  request.time_limit = absl::Milliseconds(100);
  request.stop.tokens_min = 100;  // the limit goes before it
  Submit(request, &running);
  request.time_limit = absl::Milliseconds(50);
  Submit(request, &waiting);
  clock_.JumpWall(-absl::Hours(5));
  RunAll();
  for (const RecordingSink* sink : {&running, &waiting}) {
    ASSERT_TRUE(sink->finish.has_value());
    EXPECT_EQ(sink->finish->reason, FinishReason::kTimeLimit);
    EXPECT_TRUE(sink->finish->status.ok()) << sink->finish->status;
    EXPECT_THAT(sink->violations, IsEmpty());
  }
  const std::vector<int32_t> whole = model_->Greedy(Prompt(4), 100);
  EXPECT_EQ(running.ids, std::vector<int32_t>(whole.begin(), whole.begin() + 9));  // as many as before a deadline
  EXPECT_EQ(waiting.starts, 0);
  EXPECT_THAT(waiting.ids, IsEmpty());
  EXPECT_EQ(waiting.finish->receipt.generated_tokens, 0);
  EXPECT_NEAR(waiting.finish->receipt.queue_seconds, 0.05, 0.011);
  EXPECT_EQ(engine_->Snapshot().requests_finished[static_cast<size_t>(FinishReason::kTimeLimit)], 2u);
}

TEST_F(EngineTest, PausesAfterTokensInProportionToTheStep) {
  EngineOptions options;
  options.prefill_chunk_max = 56;
  options.itl_target = absl::ZeroDuration();
  const auto slept = [&](ScriptedModelOptions model_options, int prompt_tokens) {
    Make(model_options, options);
    const absl::Duration before = clock_.slept();
    RecordingSink sink;
    Submit(Greedy(Prompt(prompt_tokens), 3), &sink);
    RunAll();
    EXPECT_EQ(sink.ids.size(), 3u);
    return clock_.slept() - before;
  };
  EXPECT_EQ(slept({}, 40), absl::ZeroDuration());
  options.pause_after_tokens = true;
  // Steps of 50, 11 and 11 ms.
  EXPECT_EQ(slept({}, 40), absl::Milliseconds(50 + 11 + 11) / 64);
  // Steps of 122, 122, 12 and 12 ms. The first gives no token, the second has the longest pause.
  ScriptedModelOptions slow;
  slow.step_base = absl::Milliseconds(10);
  slow.step_per_token = absl::Milliseconds(2);
  EXPECT_EQ(slept(slow, 112), absl::Milliseconds(1) + absl::Milliseconds(12 + 12) / 64);
  ScriptedModelOptions fast;
  fast.step_base = absl::Milliseconds(5);
  EXPECT_EQ(slept(fast, 40), absl::ZeroDuration());
}

TEST_F(EngineTest, ATimeLimitInTheMiddleOfAPromptEndsItWithoutText) {
  EngineOptions options;
  options.prefill_chunk_max = 8;
  Make({}, options);
  RecordingSink sink;
  GenerateRequest request = Greedy(Prompt(64), 5);
  request.prompt_logprobs = true;
  request.time_limit = absl::Milliseconds(40);  // a chunk takes 18 ms
  Submit(request, &sink);
  RunAll();
  EXPECT_EQ(sink.finish->reason, FinishReason::kTimeLimit);
  EXPECT_TRUE(sink.finish->status.ok());
  EXPECT_THAT(sink.ids, IsEmpty());
  EXPECT_EQ(sink.prompt.size(), 24u);
}

TEST_F(EngineTest, OfTimeLimitAndDeadlineTheFirstOneEndsARequest) {
  Make();
  RecordingSink limit;
  RecordingSink deadline;
  GenerateRequest request = Greedy(Prompt(4), 200);
  request.time_limit = absl::Milliseconds(100);
  request.deadline = clock_.WallNow() + absl::Milliseconds(200);
  Submit(request, &limit);
  request.time_limit = absl::Milliseconds(200);
  request.deadline = clock_.WallNow() + absl::Milliseconds(100);
  Submit(request, &deadline);
  RunAll();
  EXPECT_EQ(limit.finish->reason, FinishReason::kTimeLimit);
  EXPECT_EQ(deadline.finish->reason, FinishReason::kDeadline);
  RecordingSink early;
  request = Greedy(Prompt(4), 3);
  request.time_limit = absl::Hours(1);
  Submit(request, &early);
  RunAll();
  EXPECT_EQ(early.finish->reason, FinishReason::kLength);
  request.time_limit = absl::ZeroDuration();
  EXPECT_EQ(engine_->Submit(request, &early).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, AnErrorOfOneChunkEndsOnlyThatSequence) {
  Make();
  std::vector<RecordingSink> sinks(3);
  for (int i = 0; i < 3; ++i) {
    Submit(Greedy(Prompt(5, i), 12), &sinks[static_cast<size_t>(i)]);
  }
  model_->set_chunk_fault([&](uint64_t, const Chunk& chunk) {
    return chunk.start == 9 && chunk.tokens[0] == model_->Greedy(Prompt(5, 1), 5)[4] && chunk.slot == 1
               ? absl::DataLossError("row 17 at offset 4096")
               : absl::OkStatus();
  });
  // The fault asks the model for its own continuation, which takes no lock: Greedy is a pure function.
  RunAll();
  EXPECT_EQ(sinks[0].ids, model_->Greedy(Prompt(5, 0), 12));
  EXPECT_EQ(sinks[2].ids, model_->Greedy(Prompt(5, 2), 12));
  EXPECT_EQ(sinks[1].finish->reason, FinishReason::kError);
  EXPECT_EQ(sinks[1].finish->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(sinks[1].ids.size(), 5u);
}

TEST_F(EngineTest, AFailingStepEndsItsSequencesAndTheEngineLives) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 2;
  Make(model_options);
  std::vector<RecordingSink> sinks(4);
  model_->set_step_fault(
      [](uint64_t step) { return step == 3 ? absl::UnavailableError("device gone") : absl::OkStatus(); });
  for (int i = 0; i < 4; ++i) {
    Submit(Greedy(Prompt(5, i), 6), &sinks[static_cast<size_t>(i)]);
  }
  RunAll();
  for (size_t i : {0, 1}) {
    EXPECT_EQ(sinks[i].finish->reason, FinishReason::kError);
    EXPECT_EQ(sinks[i].finish->status.message(), "device gone");
  }
  for (size_t i : {2, 3}) {
    EXPECT_EQ(sinks[i].ids, model_->Greedy(Prompt(5, static_cast<int>(i)), 6));
  }
}

TEST_F(EngineTest, ALogitThatIsNotFiniteEndsOnlyItsSequence) {
  ScriptedModelOptions model_options;
  model_options.script = [hash = testing::HashScript()](absl::Span<const int32_t> context, absl::Span<float> logits) {
    hash(context, logits);
    if (context.size() == 8 && context[0] == Prompt(5, 1)[0]) {
      logits[3] = std::numeric_limits<float>::quiet_NaN();
    }
  };
  Make(model_options);
  std::vector<RecordingSink> sinks(2);
  Submit(Greedy(Prompt(5, 0), 10), &sinks[0]);
  Submit(Greedy(Prompt(5, 1), 10), &sinks[1]);
  RunAll();
  EXPECT_EQ(sinks[0].ids.size(), 10u);
  EXPECT_EQ(sinks[1].finish->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(sinks[1].ids.size(), 3u);
}

TEST_F(EngineTest, ASlotThatTheModelRefusesIsTriedAgainWhenOthersEnd) {
  Make();
  std::vector<RecordingSink> sinks(3);
  Submit(Greedy(Prompt(5, 0), 6), &sinks[0]);
  engine_->StepOnce();
  model_->FailOpenSlot(absl::ResourceExhaustedError("pages"), 1);
  Submit(Greedy(Prompt(5, 1), 6), &sinks[1]);
  Submit(Greedy(Prompt(5, 2), 6), &sinks[2]);
  engine_->StepOnce();
  EXPECT_EQ(sinks[1].starts, 0);
  EXPECT_EQ(sinks[2].starts, 0) << "nobody overtakes";
  RunAll();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)].ids, model_->Greedy(Prompt(5, i), 6));
  }
}

TEST_F(EngineTest, ASlotThatTheModelRefusesOnAnIdleEngineEndsTheRequest) {
  Make();
  RecordingSink sink;
  RecordingSink next;
  model_->FailOpenSlot(absl::ResourceExhaustedError("pages"), 1);
  Submit(Greedy(Prompt(5), 6), &sink);
  Submit(Greedy(Prompt(5), 6), &next);
  RunAll();
  EXPECT_EQ(sink.finish->reason, FinishReason::kError);
  EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(next.ids.size(), 6u);
}

// ---- Queue and drain ------------------------------------------------------------------------------
TEST_F(EngineTest, AFullQueueRefusesWithADelayAndTakesAgainLater) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 2;
  EngineOptions options;
  options.waiting_max = 3;
  Make(model_options, options);
  std::vector<RecordingSink> sinks(6);
  for (int i = 0; i < 5; ++i) {  // two slots are free, three may wait
    Submit(Greedy(Prompt(5, i), 6), &sinks[static_cast<size_t>(i)]);
  }
  const auto refused = engine_->Submit(Greedy(Prompt(5), 6), &sinks[5]);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no more than 3 may"));
  ASSERT_TRUE(RetryAfter(refused.status()).has_value());
  EXPECT_GT(*RetryAfter(refused.status()), absl::ZeroDuration());
  engine_->StepOnce();
  EXPECT_EQ(engine_->Snapshot().waiting, 3);
  EXPECT_EQ(engine_->Snapshot().running, 2);
  EXPECT_FALSE(engine_->Submit(Greedy(Prompt(5), 6), &sinks[5]).ok());
  for (int i = 0; i < 6; ++i) {
    engine_->StepOnce();
  }
  Submit(Greedy(Prompt(5, 5), 6), &sinks[5]);
  RunAll();
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)].ids, model_->Greedy(Prompt(5, i), 6));
  }
  EXPECT_EQ(engine_->Snapshot().requests_accepted, 6u);
  EXPECT_EQ(engine_->Snapshot().requests_refused, 2u);
}

TEST_F(EngineTest, WaitingPromptTokensAreBounded) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  EngineOptions options;
  options.waiting_tokens_max = 100;
  Make(model_options, options);
  std::vector<RecordingSink> sinks(4);
  Submit(Greedy(Prompt(200), 6), &sinks[0]);  // alone it may exceed the bound
  engine_->StepOnce();
  Submit(Greedy(Prompt(60), 6), &sinks[1]);
  EXPECT_EQ(engine_->Submit(Greedy(Prompt(41), 6), &sinks[2]).status().code(), absl::StatusCode::kResourceExhausted);
  Submit(Greedy(Prompt(40), 6), &sinks[3]);
  EXPECT_EQ(engine_->Snapshot().waiting_tokens, 100);
  RunAll();
  EXPECT_EQ(engine_->Snapshot().waiting_tokens, 0);
}

TEST_F(EngineTest, WaitingBytesAreBounded) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  EngineOptions options;
  options.waiting_bytes_max = 2 * RequestBytes(Greedy(Prompt(100), 6));
  Make(model_options, options);
  std::vector<RecordingSink> sinks(4);
  Submit(Greedy(Prompt(100), 6), &sinks[0]);
  engine_->StepOnce();
  Submit(Greedy(Prompt(100), 6), &sinks[1]);
  Submit(Greedy(Prompt(100), 6), &sinks[2]);
  EXPECT_EQ(engine_->Snapshot().waiting_bytes, options.waiting_bytes_max);
  const absl::Status refused = engine_->Submit(Greedy(Prompt(1), 6), &sinks[3]).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("bytes"));
  RunAll();
  EXPECT_EQ(engine_->Snapshot().waiting_bytes, 0);
}

TEST_F(EngineTest, SlotsGoToClientsByTheirWeights) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  std::vector<RecordingSink> sinks(25);
  const auto submit = [&](size_t i, const std::string& client, double weight) {
    GenerateRequest request = Greedy(Prompt(5, static_cast<int>(i)), 6);
    request.client_key = client;
    request.client_weight = weight;
    Submit(std::move(request), &sinks[i]);
  };
  submit(0, "somebody", 1);
  engine_->StepOnce();  // runs, while the others come
  for (size_t i = 1; i <= 12; ++i) {
    submit(i, "light", 1);
    submit(12 + i, "heavy", 3);
  }
  const auto ended = [&](size_t first) {
    return std::count_if(sinks.begin() + static_cast<std::ptrdiff_t>(first),
                         sinks.begin() + static_cast<std::ptrdiff_t>(first) + 12,
                         [](const RecordingSink& sink) { return sink.finish.has_value(); });
  };
  while (ended(1) + ended(13) < 12) {
    engine_->StepOnce();
  }
  EXPECT_EQ(ended(1), 3);
  EXPECT_EQ(ended(13), 9);
  RunAll();
}

TEST_F(EngineTest, ClientsTakeTurnsAndBatchWorkComesLater) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  std::vector<RecordingSink> sinks(8);
  std::vector<size_t> order;
  const auto submit = [&](size_t i, const std::string& client, Priority priority) {
    GenerateRequest request = Greedy(Prompt(5, static_cast<int>(i)), 6);
    request.client_key = client;
    request.priority = priority;
    Submit(std::move(request), &sinks[i]);
  };
  submit(0, "greedy", Priority::kBatch);
  engine_->StepOnce();  // runs
  for (size_t i = 1; i < 4; ++i) {
    submit(i, "greedy", Priority::kBatch);
  }
  for (size_t i = 4; i < 7; ++i) {
    submit(i, "greedy", Priority::kInteractive);
  }
  submit(7, "modest", Priority::kInteractive);
  std::vector<bool> done(8);
  while (engine_->StepOnce()) {
    for (size_t i = 0; i < 8; ++i) {
      if (!done[i] && sinks[i].finish.has_value()) {
        done[i] = true;
        order.push_back(i);
      }
    }
  }
  EXPECT_EQ(order, (std::vector<size_t>{4, 7, 5, 6, 0, 1, 2, 3})) << "the running batch request was set aside, too";
}

// ---- Pre-emption -----------------------------------------------------------------------------------
GenerateRequest Batch(GenerateRequest request) {
  request.priority = Priority::kBatch;
  return request;
}

TEST_F(EngineTest, ABatchRequestSetAsideAtAnyPointGoesOnWithTheSameTokens) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  EngineOptions options;
  options.prefill_chunk_max = 8;
  GenerateRequest request = Greedy(Prompt(30), 25);
  request.sampling.temperature = 0.9f;
  request.sampling.repetition_penalty = 1.2f;
  request.sampling.seed = 7;
  Make(model_options, options);
  RecordingSink alone;
  Submit(request, &alone);
  RunAll();
  ASSERT_EQ(alone.ids.size(), 25u);
  for (int steps = 1; steps < 28; ++steps) {  // in the prompt, at its end, at each token
    Make(model_options, options);
    RecordingSink batch;
    RecordingSink interactive;
    const int64_t begin = clock_.NowNs();
    Submit(Batch(request), &batch);
    for (int i = 0; i < steps; ++i) {
      engine_->StepOnce();
    }
    const size_t before = batch.ids.size();
    Submit(Greedy(Prompt(9, 1), 5), &interactive);
    engine_->StepOnce();
    EXPECT_EQ(batch.ids.size(), before) << "it has no slot now";
    RunAll();
    EXPECT_EQ(interactive.ids, model_->Greedy(Prompt(9, 1), 5));
    EXPECT_EQ(batch.ids, alone.ids) << "set aside after step " << steps;
    EXPECT_EQ(batch.finish->reason, FinishReason::kLength);
    EXPECT_EQ(batch.finish->receipt.preemptions, 1);
    EXPECT_EQ(batch.finish->receipt.generated_tokens, 25);
    EXPECT_EQ(engine_->Snapshot().preemptions, 1u);
    EXPECT_THAT(batch.violations, IsEmpty());
    EXPECT_LT(interactive.finish->receipt.queue_seconds, 0.05) << "at most the step that was under way";
    // The time without a slot is waiting, and every second is counted once.
    const Receipt& receipt = batch.finish->receipt;
    EXPECT_GE(receipt.queue_seconds, interactive.finish->receipt.prefill_seconds);
    EXPECT_NEAR(receipt.queue_seconds + receipt.prefill_seconds + receipt.decode_seconds,
                absl::ToDoubleSeconds(absl::Nanoseconds(clock_.NowNs() - begin)), 1e-9);
  }
}

TEST_F(EngineTest, AScoredPromptSetAsideIsScoredOnce) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  GenerateRequest request = Greedy(Prompt(60), 3);
  request.prompt_logprobs = true;
  Make(model_options);
  RecordingSink alone;
  Submit(request, &alone);
  RunAll();
  ASSERT_EQ(alone.prompt.size(), 59u);
  for (int steps = 1; steps < 6; ++steps) {
    Make(model_options);
    RecordingSink batch;
    RecordingSink interactive;
    Submit(Batch(request), &batch);
    for (int i = 0; i < steps; ++i) {
      engine_->StepOnce();
    }
    Submit(Greedy(Prompt(9, 1), 5), &interactive);
    RunAll();
    ASSERT_EQ(batch.prompt.size(), alone.prompt.size()) << steps;
    for (size_t i = 0; i < alone.prompt.size(); ++i) {
      EXPECT_EQ(batch.prompt[i].chosen.id, alone.prompt[i].chosen.id);
      EXPECT_EQ(batch.prompt[i].chosen.logprob, alone.prompt[i].chosen.logprob);
    }
    EXPECT_EQ(batch.ids, alone.ids);
    EXPECT_EQ(batch.finish->receipt.preemptions, 1);
    EXPECT_THAT(batch.violations, IsEmpty());
  }
}

TEST_F(EngineTest, KvIsTakenFromAsManyBatchRequestsAsItNeeds) {
  ScriptedModelOptions model_options;
  model_options.kv_tokens = 300;
  Make(model_options);
  std::vector<RecordingSink> batch(3);
  RecordingSink interactive;
  for (size_t i = 0; i < batch.size(); ++i) {
    Submit(Batch(Greedy(Prompt(10, static_cast<int>(i)), 80)), &batch[i]);  // 90 positions each
    engine_->StepOnce();
  }
  Submit(Greedy(Prompt(90, 5), 20), &interactive);  // 110; 30 are free: one of 90 will do
  engine_->StepOnce();
  EXPECT_EQ(engine_->Snapshot().preemptions, 1u);
  RunAll();
  EXPECT_EQ(interactive.ids, model_->Greedy(Prompt(90, 5), 20));
  for (size_t i = 0; i < batch.size(); ++i) {
    EXPECT_EQ(batch[i].ids, model_->Greedy(Prompt(10, static_cast<int>(i)), 80)) << i;
    EXPECT_EQ(batch[i].finish->reason, FinishReason::kLength);
  }
  EXPECT_EQ(batch[2].finish->receipt.preemptions, 1) << "the youngest has the least to compute again";
}

TEST_F(EngineTest, InteractiveRequestsWithoutAnEndStillLeaveBatchWorkItsShare) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink batch;
  Submit(Batch(Greedy(Prompt(40), 40)), &batch);
  std::deque<RecordingSink> interactive;
  int submitted = 0;
  for (int step = 0; step < 20000 && !batch.finish.has_value(); ++step) {
    while (engine_->Snapshot().waiting < 2) {
      interactive.emplace_back();
      Submit(Greedy(Prompt(5, submitted++), 5), &interactive.back());
    }
    engine_->StepOnce();
  }
  ASSERT_TRUE(batch.finish.has_value()) << "it starved";
  EXPECT_EQ(batch.ids, model_->Greedy(Prompt(40), 40));
  EXPECT_GT(batch.finish->receipt.preemptions, 1);
  RunAll();
}

// Who is set aside takes the place of the one that it makes room for: no place is free then, but when it goes on.
TEST_F(EngineTest, BesideWorkThatWasSetAsideARefusalTellsWhenAPlaceIsFree) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  EngineOptions options;
  options.waiting_max = 2;
  Make(model_options, options);
  std::deque<RecordingSink> sinks;
  const auto submit = [&](Priority priority) {
    sinks.emplace_back();
    GenerateRequest request = Greedy(Prompt(5, static_cast<int>(sinks.size())), 20);
    request.priority = priority;
    return engine_->Submit(std::move(request), &sinks.back()).status();
  };
  const auto step_while_waiting = [&](int waiting) {
    while (engine_->Snapshot().waiting == waiting) {
      engine_->StepOnce();
    }
  };
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(submit(Priority::kBatch).ok());
  }
  engine_->StepOnce();
  for (int i = 0; i < 5; ++i) {  // a departure every 225 ms
    step_while_waiting(2);
    ASSERT_TRUE(submit(Priority::kBatch).ok());
  }
  step_while_waiting(2);
  ASSERT_TRUE(submit(Priority::kInteractive).ok());
  engine_->StepOnce();
  ASSERT_EQ(engine_->Snapshot().preemptions, 1u);
  ASSERT_EQ(engine_->Snapshot().waiting, 2) << "the one that was set aside, and one more";
  step_while_waiting(2);  // now it goes on
  ASSERT_EQ(engine_->Snapshot().running, 1);
  ASSERT_TRUE(submit(Priority::kBatch).ok());
  const absl::Status refused = submit(Priority::kBatch);
  ASSERT_TRUE(RetryAfter(refused).has_value()) << refused;
  const int64_t told = clock_.NowNs() + absl::ToInt64Nanoseconds(*RetryAfter(refused));
  while (clock_.NowNs() < told) {
    engine_->StepOnce();
  }
  EXPECT_TRUE(submit(Priority::kBatch).ok()) << "it came back when told, after " << *RetryAfter(refused);
  EXPECT_LT(*RetryAfter(refused), absl::Milliseconds(450)) << "and not much later than it could have";
  RunAll();
}

TEST_F(EngineTest, ABatchRequestThatIsCancelledOrHasHadItsTimeWhileSetAsideEndsAsThat) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  for (const FinishReason reason : {FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kTimeLimit}) {
    Make(model_options);
    RecordingSink batch;
    RecordingSink interactive;
    GenerateRequest request = Batch(Greedy(Prompt(5), 50));
    if (reason == FinishReason::kDeadline) {
      request.deadline = clock_.WallNow() + absl::Milliseconds(120);
    } else if (reason == FinishReason::kTimeLimit) {
      request.time_limit = absl::Milliseconds(120);
    }
    const RequestId id = Submit(std::move(request), &batch);
    engine_->StepOnce();
    engine_->StepOnce();
    Submit(Greedy(Prompt(9, 1), 30), &interactive);
    engine_->StepOnce();
    if (reason == FinishReason::kCancelled) {
      engine_->Cancel(id);
    }
    RunAll();
    EXPECT_EQ(batch.finish->reason, reason);
    EXPECT_EQ(batch.finish->status.ok(), reason == FinishReason::kTimeLimit);
    EXPECT_EQ(batch.ids.size(), 2u);
    EXPECT_EQ(interactive.ids, model_->Greedy(Prompt(9, 1), 30));
    EXPECT_EQ(engine_->Snapshot().waiting_tokens, 0);
    EXPECT_EQ(engine_->Snapshot().waiting_bytes, 0);
  }
}

// ---- Deadlines at admission --------------------------------------------------------------------------
TEST_F(EngineTest, ADeadlineThatCannotBeMetIsRefusedAtOnce) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink first;
  Submit(Greedy(Prompt(40), 20), &first);
  RunAll();  // 10 ms and 1 ms per token: a step of one takes 11 ms, a prompt's token a little over 1 ms
  RecordingSink sink;
  GenerateRequest request = Greedy(Prompt(40, 1), 20);
  request.stop.ignore_eos = true;
  request.deadline = clock_.WallNow() + absl::Milliseconds(100);
  const absl::Status never = engine_->Submit(request, &sink).status();
  EXPECT_EQ(never.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RefusalReason(never), "DEADLINE_UNREACHABLE");
  EXPECT_FALSE(RetryAfter(never).has_value()) << "no later try would do";
  EXPECT_EQ(engine_->Snapshot().refused_late, 1u);
  request.deadline = clock_.WallNow() + absl::Milliseconds(400);
  Submit(request, &sink);
  // Who may stop early is not refused for tokens that it may never generate.
  RecordingSink early;
  request.stop.ignore_eos = false;
  request.deadline = clock_.WallNow() + absl::Milliseconds(100);
  Submit(request, &early);
  RunAll();
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength) << "it was in time, as estimated";
  // With a time limit before its deadline a request ends well in any case.
  RecordingSink limited;
  request.stop.ignore_eos = true;
  request.deadline = clock_.WallNow() + absl::Milliseconds(100);
  EXPECT_FALSE(engine_->Submit(request, &limited).ok());
  request.time_limit = absl::Milliseconds(50);
  Submit(request, &limited);
  RunAll();
  EXPECT_EQ(limited.finish->reason, FinishReason::kTimeLimit);
}

TEST_F(EngineTest, ADeadlineThatCompanyMakesTooShortMayBeTriedAgainAndIsMetAlone) {
  ScriptedModelOptions model_options;
  model_options.step_base = absl::Milliseconds(10);
  model_options.step_per_token = absl::Milliseconds(5);  // steps of 15 to 30 ms
  Make(model_options);
  const auto request = [&](int salt, absl::Time deadline) {
    GenerateRequest r = Greedy(Prompt(5, salt), 41);
    r.stop.ignore_eos = true;
    r.deadline = deadline;
    return r;
  };
  RecordingSink alone;
  Submit(request(0, absl::InfiniteFuture()), &alone);
  RunAll();
  std::vector<RecordingSink> others(3);
  for (size_t i = 0; i < 3; ++i) {
    Submit(request(1 + static_cast<int>(i), absl::InfiniteFuture()), &others[i]);
  }
  for (int i = 0; i < 10; ++i) {
    engine_->StepOnce();
  }
  // 40 steps: 600 ms alone, 1000 and more beside three others.
  RecordingSink sink;
  const absl::Status late = engine_->Submit(request(5, clock_.WallNow() + absl::Milliseconds(800)), &sink).status();
  EXPECT_EQ(RefusalReason(late), "DEADLINE_UNREACHABLE");
  EXPECT_TRUE(RetryAfter(late).has_value()) << late;
  RunAll();
  ASSERT_TRUE(engine_->Submit(request(5, clock_.WallNow() + absl::Milliseconds(800)), &sink).ok());
  RunAll();
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
}

TEST_F(EngineTest, ADeadlineBehindAQueueIsRefusedWithTheTimeAfterWhichItCouldBeMet) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  std::deque<RecordingSink> sinks;
  const auto submit = [&](absl::Time deadline) {
    sinks.emplace_back();
    GenerateRequest request = Greedy(Prompt(5, static_cast<int>(sinks.size())), 20);
    request.stop.ignore_eos = true;
    request.deadline = deadline;
    return engine_->Submit(std::move(request), &sinks.back()).status();
  };
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(submit(absl::InfiniteFuture()).ok());
  }
  while (engine_->Snapshot().waiting > 1) {
    engine_->StepOnce();
  }
  // About 225 ms each: the running one and one more go before.
  const absl::Status late = submit(clock_.WallNow() + absl::Milliseconds(300));
  EXPECT_EQ(late.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RefusalReason(late), "DEADLINE_UNREACHABLE");
  ASSERT_TRUE(RetryAfter(late).has_value());
  EXPECT_GT(*RetryAfter(late), absl::Milliseconds(100));
  EXPECT_LT(*RetryAfter(late), absl::Milliseconds(700));
  clock_.Advance(absl::ZeroDuration());
  EXPECT_TRUE(submit(clock_.WallNow() + absl::Milliseconds(900)).ok());
  RunAll();
  EXPECT_EQ(sinks.back().finish->reason, FinishReason::kLength);
}

TEST_F(EngineTest, EnergyIsDividedByTokensAndIdleTimeIsNobodys) {
  class Meter : public EnergyMeter {
   public:
    explicit Meter(const ManualClock& clock) : clock_(clock) {}
    double Joules() const override { return 4.0 * static_cast<double>(clock_.NowNs()) * 1e-9; }  // 4 W
    const std::string& name() const override { return name_; }

   private:
    const ManualClock& clock_;
    const std::string name_ = "clock";
  } meter(clock_);
  EngineOptions options;
  options.energy = &meter;
  Make({}, options);
  const int64_t begin = clock_.NowNs();
  std::vector<RecordingSink> sinks(2);
  Submit(Greedy(Prompt(30), 10), &sinks[0]);
  Submit(Greedy(Prompt(10, 1), 10), &sinks[1]);
  RunAll();
  const double joules = 4.0 * static_cast<double>(clock_.NowNs() - begin) * 1e-9;
  clock_.Advance(absl::Seconds(100));
  engine_->StepOnce();
  RecordingSink later;
  Submit(Greedy(Prompt(10, 1), 10), &later);
  RunAll();
  EXPECT_NEAR(*sinks[0].finish->receipt.energy_joules + *sinks[1].finish->receipt.energy_joules, joules, 1e-9);
  EXPECT_GT(*sinks[0].finish->receipt.energy_joules, *sinks[1].finish->receipt.energy_joules);
  EXPECT_LT(*later.finish->receipt.energy_joules, 1.0);
  Make();
  RecordingSink without;
  Submit(Greedy(Prompt(10, 1), 10), &without);
  RunAll();
  EXPECT_FALSE(without.finish->receipt.energy_joules.has_value());
}

TEST_F(EngineTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  Make();
  RecordingSink sink;
  Submit(Greedy(Prompt(5), 6), &sink);
  engine_->Drain(absl::InfiniteFuture());
  EXPECT_EQ(sink.ids.size(), 6u);
  EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
  EXPECT_EQ(engine_->Submit(Greedy(Prompt(5), 6), &sink).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, DrainEndsTheRestAtItsDeadline) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink running;
  RecordingSink waiting;
  Submit(Greedy(Prompt(5), 100), &running);
  Submit(Greedy(Prompt(5), 100), &waiting);
  engine_->Drain(clock_.WallNow() + absl::Milliseconds(100));
  for (RecordingSink* sink : {&running, &waiting}) {
    ASSERT_TRUE(sink->finish.has_value());
    EXPECT_EQ(sink->finish->reason, FinishReason::kError);
    EXPECT_EQ(sink->finish->status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(running.ids.size(), 9u);
}

TEST_F(EngineTest, DestroyingTheEngineEndsWhatIsLeft) {
  Make();
  RecordingSink sink;
  Submit(Greedy(Prompt(5), 100), &sink);
  engine_->StepOnce();
  engine_.reset();
  EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kUnavailable);
}

// ---- Rows -----------------------------------------------------------------------------------------
TEST_F(EngineTest, EveryChunksRowsAreAskedForAheadOfItsStep) {
  EngineOptions options;
  options.prefill_chunk_max = 16;
  Make({}, options);
  RecordingSink sink;
  Submit(Greedy(Prompt(100), 20), &sink);
  RunAll();
  const auto steps = model_->seen();
  ASSERT_EQ(steps.size(), 7u + 19u);
  for (size_t i = 0; i < steps.size(); ++i) {
    ASSERT_EQ(steps[i].size(), 1u);
    EXPECT_TRUE(steps[i][0].had_rows) << "step " << i;
    // A prompt's chunk k + 1 was asked for before chunk k was computed; a sampled token's as soon as it existed.
    EXPECT_EQ(steps[i][0].rows_before_last_step, i >= 1 && i < 7) << "step " << i;
  }
}

TEST_F(EngineTest, AWaitingRequestsFirstRowsAreReadWhileItWaits) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink first;
  RecordingSink second;
  Submit(Greedy(Prompt(5), 10), &first);
  Submit(Greedy(Prompt(20), 2), &second);
  RunAll();
  const auto steps = model_->seen();
  ASSERT_EQ(steps.size(), 12u);
  EXPECT_EQ(steps[10][0].tokens, 20);
  EXPECT_TRUE(steps[10][0].rows_before_last_step);
}

TEST_F(EngineTest, WithoutRoomForTicketsTheModelReadsRowsItself) {
  for (int tickets : {0, 1, 3}) {
    ScriptedModelOptions model_options;
    model_options.tickets_max = tickets;
    Make(model_options);
    std::vector<RecordingSink> sinks(6);
    for (int i = 0; i < 6; ++i) {
      Submit(Greedy(Prompt(30, i), 8), &sinks[static_cast<size_t>(i)]);
    }
    RunAll();
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(sinks[static_cast<size_t>(i)].ids, model_->Greedy(Prompt(30, i), 8));
    }
    TearDown();
  }
}

TEST_F(EngineTest, AModelWithoutATableIsServedToo) {
  ScriptedModelOptions model_options;
  model_options.has_rows = false;
  Make(model_options);
  RecordingSink sink;
  Submit(Greedy(Prompt(30), 8), &sink);
  RunAll();
  EXPECT_EQ(sink.ids, model_->Greedy(Prompt(30), 8));
}

// ---- Pace, receipts, figures ----------------------------------------------------------------------
TEST_F(EngineTest, ALongPromptDoesNotStallARunningStream) {
  ScriptedModelOptions model_options;
  model_options.limits = {64, 3000, 4, 256, 16};
  model_options.step_base = absl::Milliseconds(60);
  model_options.step_per_token = absl::Milliseconds(2);
  EngineOptions options;
  options.itl_target = absl::Milliseconds(150);
  Make(model_options, options);
  RecordingSink stream;
  RecordingSink prompt;
  Submit(Greedy(Prompt(4), 400), &stream);
  for (int i = 0; i < 10; ++i) {
    engine_->StepOnce();
  }
  Submit(Greedy(Prompt(2000, 1), 4), &prompt);
  std::vector<double> gaps;
  size_t seen = stream.ids.size();
  int64_t last = clock_.NowNs();
  while (!prompt.finish.has_value()) {
    engine_->StepOnce();
    ASSERT_EQ(stream.ids.size(), seen + 1) << "the stream gets its token in every step";
    seen = stream.ids.size();
    gaps.push_back(static_cast<double>(clock_.NowNs() - last) * 1e-6);
    last = clock_.NowNs();
  }
  std::sort(gaps.begin(), gaps.end());
  EXPECT_LE(gaps[gaps.size() * 99 / 100], 300) << "p99 at most twice the target";
  EXPECT_LE(gaps.back(), 300);
  EXPECT_LE(gaps[gaps.size() / 2], 150);
  // 44 prompt tokens per step meet the target exactly; 2000 of them need 46 steps.
  EXPECT_LE(gaps.size(), 70u) << "and the prompt gets on";
  RunAll();
}

TEST_F(EngineTest, AStreamThatStartsBesideALongPromptIsNotStalledEither) {
  ScriptedModelOptions model_options;
  model_options.limits = {64, 3000, 4, 256, 16};
  model_options.step_base = absl::Milliseconds(60);
  model_options.step_per_token = absl::Milliseconds(2);
  EngineOptions options;
  options.itl_target = absl::Milliseconds(150);
  Make(model_options, options);
  RecordingSink prompt;
  RecordingSink stream;
  Submit(Greedy(Prompt(2500, 1), 4), &prompt);
  engine_->StepOnce();
  EXPECT_EQ(model_->seen()[0][0].tokens, 128) << "alone it gets full chunks";
  Submit(Greedy(Prompt(4), 60), &stream);
  engine_->StepOnce();
  ASSERT_EQ(stream.ids.size(), 1u) << "a short prompt does not wait for a long one";
  for (int i = 0; i < 40; ++i) {
    const int64_t before = clock_.NowNs();
    engine_->StepOnce();
    EXPECT_LE(clock_.NowNs() - before, 300'000'000) << i;
  }
  RunAll();
}

TEST_F(EngineTest, ReceiptsAddUp) {
  Make();
  RecordingSink first;
  RecordingSink second;
  Submit(Greedy(Prompt(20), 10), &first);
  Submit(Greedy(Prompt(7, 1), 4), &second);
  RunAll();
  const Receipt& receipt = first.finish->receipt;
  EXPECT_EQ(receipt.rows_requested, 29u);  // 20 of the prompt, 9 of generated tokens; the last is never computed
  EXPECT_EQ(receipt.rows_from_cache + receipt.rows_read, receipt.rows_requested);
  EXPECT_EQ(receipt.flash_bytes, receipt.rows_read * 4096);
  EXPECT_EQ(receipt.kv_bytes_peak, 2900u);
  EXPECT_EQ(receipt.queue_seconds, 0);
  EXPECT_NEAR(receipt.prefill_seconds, 0.010 + 0.027, 1e-9);
  EXPECT_NEAR(receipt.decode_seconds, 3 * 0.012 + 6 * 0.011, 1e-9);
  EXPECT_NEAR(receipt.row_wait_seconds, 0.1 * (receipt.prefill_seconds + receipt.decode_seconds), 1e-9);
}

TEST_F(EngineTest, FiguresCountWhatHappened) {
  ScriptedModelOptions model_options;
  model_options.limits.slots_max = 1;
  Make(model_options);
  RecordingSink first;
  RecordingSink second;
  Submit(Greedy(Prompt(20), 10), &first);
  Submit(Greedy(Prompt(7, 1), 4), &second);
  EXPECT_EQ(engine_->Snapshot().waiting, 2);
  RunAll();
  const EngineStats stats = engine_->Snapshot();
  EXPECT_EQ(stats.requests_accepted, 2u);
  EXPECT_EQ(stats.requests_finished[static_cast<size_t>(FinishReason::kLength)], 2u);
  EXPECT_EQ(stats.prompt_tokens, 27u);
  EXPECT_EQ(stats.generated_tokens, 14u);
  EXPECT_EQ(stats.steps, 14u);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.kv_tokens_free, 256);
  const auto total = [](const SecondsHistogram& h) {
    EXPECT_EQ(h.counts.size(), h.bounds.size() + 1);
    return std::accumulate(h.counts.begin(), h.counts.end(), uint64_t{0});
  };
  EXPECT_EQ(total(stats.queue_seconds), 2u);
  EXPECT_EQ(total(stats.ttft_seconds), 2u);
  EXPECT_EQ(total(stats.itl_seconds), 12u);
  EXPECT_EQ(total(stats.step_seconds), 14u);
  EXPECT_NEAR(stats.itl_seconds.sum, 12 * 0.011, 1e-9);
  EXPECT_NEAR(stats.ttft_seconds.sum, 0.030 + 0.030 + 9 * 0.011 + 0.017, 1e-9);
  EXPECT_NEAR(stats.step_seconds.sum, static_cast<double>(stats.step_ns) * 1e-9, 1e-9);
}

TEST(EngineCreateTest, RefusesLimitsAndOptionsThatCannotWork) {
  const auto create = [](ModelLimits limits, EngineOptions options, std::vector<int32_t> eos) {
    ScriptedModelOptions model_options;
    model_options.limits = limits;
    ScriptedModel model(model_options);
    options.own_thread = false;
    return std::string(Engine::Create(model, nullptr, std::move(eos), options).status().message());
  };
  const ModelLimits good{64, 256, 4, 64, 16};
  EXPECT_EQ(create(good, {}, {1}), "");
  EXPECT_THAT(create({64, 256, 4, 3, 16}, {}, {}), HasSubstr("step_tokens_max is 3"));
  EXPECT_THAT(create({64, 256, 4, 64, 0}, {}, {}), HasSubstr("logit_rows_max is 0"));
  EngineOptions options;
  options.prefill_chunk_max = 0;
  EXPECT_THAT(create(good, options, {}), HasSubstr("prefill_chunk_max is 0"));
  options = {};
  options.waiting_max = -1;
  EXPECT_THAT(create(good, options, {}), HasSubstr("negative"));
  EXPECT_THAT(create(good, {}, {64}), HasSubstr("id 64"));
}

}  // namespace
}  // namespace embergate::engine
