// What comes out is the same bits whether a prompt's beginning was computed, cached or shared: the golden checkpoints
// (both families, layers that share keys and values, sliding windows) behind a real engine, against one without a
// prefix cache.
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/completion_group.h"
#include "engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/recording_sink.h"

namespace embergate::engine {
namespace {

using ::embergate::testing::RecordingSink;
using ::testing::IsEmpty;

constexpr int kVocabUsed = 200;

struct Served {
  LoadedModel loaded;
  std::unique_ptr<Engine> engine;

  Served(const std::string& path, bool prefix_cache, KvType kv_type, uint64_t prefix_bytes = 1 << 20,
         int64_t kv_tokens = 0) {
    DecoderOptions options = TestOptions();
    options.step_tokens_max = 48;
    options.kv_type = kv_type;
    options.kv_tokens_max = kv_tokens;
    options.prefix_cache = prefix_cache;
    options.prefix_cache_bytes = prefix_bytes;
    loaded = LoadModel(path, options);
    EngineOptions engine_options;
    engine_options.own_thread = false;
    engine_options.share_prefixes = prefix_cache;
    engine_options.prefill_chunk_max = 40;
    engine = *Engine::Create(*loaded.model, nullptr, {}, engine_options);
  }
  void RunAll() {
    while (engine->StepOnce()) {
    }
  }
};

GenerateRequest Request(std::vector<int32_t> prompt, int tokens, uint64_t seed) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = seed % 2 == 0 ? 0.0f : 1.0f;
  request.sampling.seed = seed;
  request.stop.tokens_max = tokens;
  request.want_logprobs = true;
  request.top_logprobs = 3;
  return request;
}

std::vector<int32_t> RandomPrompt(int tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> prompt;
  for (int i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<int32_t>(3 + random() % kVocabUsed));
  }
  return prompt;
}

std::vector<int32_t> With(std::vector<int32_t> prefix, const std::vector<int32_t>& rest) {
  prefix.insert(prefix.end(), rest.begin(), rest.end());
  return prefix;
}

void ExpectSame(const std::vector<PositionLogprobs>& got, const std::vector<PositionLogprobs>& expected,
                const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].chosen.logprob, expected[i].chosen.logprob) << what << " position " << i;
    ASSERT_EQ(got[i].top.size(), expected[i].top.size());
    for (size_t k = 0; k < got[i].top.size(); ++k) {
      EXPECT_EQ(got[i].top[k].id, expected[i].top[k].id) << what;
      EXPECT_EQ(got[i].top[k].logprob, expected[i].top[k].logprob) << what;
    }
  }
}

void ExpectSame(const RecordingSink& got, const RecordingSink& expected, const std::string& what) {
  ASSERT_TRUE(got.finish.has_value() && expected.finish.has_value()) << what;
  EXPECT_EQ(got.finish->reason, expected.finish->reason) << what << got.finish->status;
  EXPECT_EQ(got.ids, expected.ids) << what;
  ExpectSame(got.logprobs, expected.logprobs, what);
  ExpectSame(got.prompt, expected.prompt, what + ", prompt");
  EXPECT_THAT(got.violations, IsEmpty());
}

class PrefixCacheTest : public ::testing::TestWithParam<std::string> {
 protected:
  // The same request in both; the cold one computes everything.
  int Compare(Served& warm, Served& cold, const GenerateRequest& request, const std::string& what) {
    RecordingSink got, expected;
    EXPECT_TRUE(warm.engine->Submit(request, &got).ok());
    warm.RunAll();
    EXPECT_TRUE(cold.engine->Submit(request, &expected).ok());
    cold.RunAll();
    ExpectSame(got, expected, what);
    EXPECT_EQ(expected.finish->receipt.cached_tokens, 0);
    return got.finish->receipt.cached_tokens;
  }
};

TEST_P(PrefixCacheTest, CachedPrefixesChangeNothing) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0, KvType::kQ4_0}) {
    const std::string path = GoldenGguf(GetParam());
    Served warm(path, true, type), cold(path, false, type);
    const std::vector<int32_t> system = RandomPrompt(70, 1);
    EXPECT_EQ(Compare(warm, cold, Request(With(system, RandomPrompt(20, 2)), 10, 0), "first"), 0);
    EXPECT_EQ(Compare(warm, cold, Request(With(system, RandomPrompt(25, 3)), 10, 1), "same system prompt"), 70);
    EXPECT_EQ(Compare(warm, cold, Request(With(system, RandomPrompt(25, 3)), 10, 2), "same prompt"), 94);
    EXPECT_EQ(Compare(warm, cold, Request(With(system, RandomPrompt(25, 4)), 10, 3), "again"), 70);
    EXPECT_EQ(Compare(warm, cold, Request(RandomPrompt(40, 1), 10, 4), "shorter than the cached"), 39);
    EXPECT_EQ(Compare(warm, cold, Request(RandomPrompt(50, 9), 10, 5), "another"), 0);
    const EngineStats stats = warm.engine->Snapshot();
    EXPECT_EQ(stats.prefix_cache.lookups, 6u);
    EXPECT_EQ(stats.prefix_cache.hits, 4u);
    EXPECT_EQ(stats.prefix_cache.tokens_reused, 70u + 94 + 70 + 39);
  }
}

TEST_P(PrefixCacheTest, ConversationGoesOnWhereItEnded) {
  const std::string path = GoldenGguf(GetParam());
  Served warm(path, true, KvType::kF32), cold(path, false, KvType::kF32);
  std::vector<int32_t> conversation;
  for (int turn = 0; turn < 4; ++turn) {
    const size_t before = conversation.size();
    conversation = With(conversation, RandomPrompt(13 + turn, 20 + turn));
    RecordingSink sink;
    ASSERT_TRUE(warm.engine->Submit(Request(conversation, 12, 0), &sink).ok());
    warm.RunAll();
    // Of the last answer, its last token was sampled but not computed.
    EXPECT_EQ(sink.finish->receipt.cached_tokens, before == 0 ? 0 : static_cast<int>(before) - 1) << "turn " << turn;
    RecordingSink expected;
    ASSERT_TRUE(cold.engine->Submit(Request(conversation, 12, 0), &expected).ok());
    cold.RunAll();
    ExpectSame(sink, expected, "turn");
    conversation = With(conversation, sink.ids);
  }
}

TEST_P(PrefixCacheTest, ScoringComputesEveryPosition) {
  const std::string path = GoldenGguf(GetParam());
  Served warm(path, true, KvType::kF32), cold(path, false, KvType::kF32);
  GenerateRequest request = Request(RandomPrompt(60, 1), 4, 0);
  Compare(warm, cold, request, "fills the cache");
  request.prompt_logprobs = true;
  EXPECT_EQ(Compare(warm, cold, request, "prompt log-probabilities"), 0);
  request.stop.tokens_max = 0;
  EXPECT_EQ(Compare(warm, cold, request, "score"), 0);
}

// More requests than fit, with a small pool and hardly any cache: shared, evicted, cancelled, failing to fit; each
// one's answer is the one that it would have had alone.
TEST_P(PrefixCacheTest, CrowdsChangeNothing) {
  const std::string path = GoldenGguf(GetParam());
  Served warm(path, true, KvType::kF32, /*prefix_bytes=*/0, /*kv_tokens=*/300), cold(path, false, KvType::kF32);
  const int64_t free_tokens = warm.loaded->FreeKvTokens();
  std::mt19937 random(5);
  uint64_t reused = 0;
  for (int round = 0; round < 4; ++round) {
    std::vector<GenerateRequest> requests;
    for (int i = 0; i < 10; ++i) {
      const std::vector<int32_t> system = RandomPrompt(90, random() % 3);
      const int common = static_cast<int>(random() % 91);
      requests.push_back(Request(
          With({system.begin(), system.begin() + common}, RandomPrompt(1 + static_cast<int>(random() % 40), random())),
          1 + static_cast<int>(random() % 20), random() % 1000));
    }
    std::vector<RecordingSink> sinks(requests.size());
    std::vector<RequestId> ids;
    for (size_t i = 0; i < requests.size(); ++i) {
      ids.push_back(*warm.engine->Submit(requests[i], &sinks[i]));
      for (uint32_t steps = random() % 4; steps > 0; --steps) {
        warm.engine->StepOnce();
      }
    }
    const size_t cancelled = random() % requests.size();
    warm.engine->Cancel(ids[cancelled]);
    warm.RunAll();
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(sinks[i].finish.has_value());
      if (sinks[i].finish->reason == FinishReason::kCancelled) {
        continue;
      }
      RecordingSink expected;
      ASSERT_TRUE(cold.engine->Submit(requests[i], &expected).ok());
      cold.RunAll();
      ExpectSame(sinks[i], expected, absl::StrCat("round ", round, " request ", i));
    }
    EXPECT_EQ(warm.loaded->FreeKvTokens(), free_tokens) << "pages were lost";
    reused = warm.engine->Snapshot().prefix_cache.tokens_reused;
  }
  EXPECT_GT(reused, 200u);
  EXPECT_GT(warm.engine->Snapshot().prefix_cache.blocks_evicted, 0u);
}

// Each of several answers is the one that a request of its own would get, with and without a cache.
TEST_P(PrefixCacheTest, SeveralAnswersAreThoseOfSingleRequests) {
  const std::string path = GoldenGguf(GetParam());
  for (const auto& [cache, type] : {std::pair(false, KvType::kF16), std::pair(true, KvType::kF16),
                                    std::pair(true, KvType::kQ8_0), std::pair(true, KvType::kQ4_0)}) {
    Served cold(path, false, type);
    Served served(path, cache, type);
    for (const int prompt_tokens : {3, 45, 90}) {
      GenerateRequest request = Request(RandomPrompt(prompt_tokens, 8), 16, 1);
      request.completions = 6;  // of four slots
      RecordingSink sink;
      ASSERT_TRUE(served.engine->Submit(request, &sink).ok());
      served.RunAll();
      ASSERT_TRUE(sink.finish.has_value());
      EXPECT_EQ(sink.finish->receipt.prompt_tokens, prompt_tokens);
      EXPECT_EQ(sink.finish->receipt.generated_tokens, 6 * 16);
      for (int i = 0; i < 6; ++i) {
        GenerateRequest single = CompletionGroup::Part(request, i);
        single.completions = 1;
        RecordingSink expected;
        ASSERT_TRUE(cold.engine->Submit(single, &expected).ok());
        cold.RunAll();
        EXPECT_EQ(sink.ids_of[i], expected.ids) << "answer " << i << " to " << prompt_tokens << " tokens";
      }
    }
    EXPECT_EQ(served.loaded->FreeKvTokens(), cold.loaded->FreeKvTokens());
  }
}

TEST_P(PrefixCacheTest, OffMeansOff) {
  const std::string path = GoldenGguf(GetParam());
  Served off(path, false, KvType::kF32);
  for (int i = 0; i < 2; ++i) {
    RecordingSink sink;
    ASSERT_TRUE(off.engine->Submit(Request(RandomPrompt(60, 1), 4, 0), &sink).ok());
    off.RunAll();
    EXPECT_EQ(sink.finish->receipt.cached_tokens, 0);
  }
  EXPECT_EQ(off.engine->Snapshot().prefix_cache.tokens_cached, 0);
}

std::string GoldenName(const ::testing::TestParamInfo<std::string>& golden) {
  std::string name = golden.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Golden, PrefixCacheTest, ::testing::ValuesIn(GoldenNames()), GoldenName);

}  // namespace
}  // namespace embergate::engine
