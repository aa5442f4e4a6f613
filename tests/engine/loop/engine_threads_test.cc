// The engine on its own thread, with clients that submit, cancel, look and drain at the same time. Run under tsan.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/recording_sink.h"
#include "tests/support/scripted_model.h"

namespace embergate::engine {
namespace {

using ::embergate::testing::RecordingSink;
using ::embergate::testing::ScriptedModel;
using ::embergate::testing::ScriptedModelOptions;
using ::testing::IsEmpty;

GenerateRequest Request(unsigned salt, int prompt_tokens, int tokens_max) {
  GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>((static_cast<unsigned>(i) * 7 + salt) % 64));
  }
  request.sampling.temperature = 0;
  request.stop.tokens_max = tokens_max;
  return request;
}

TEST(EngineThreadsTest, ManyClientsGetTheirTextOrARefusalAndNothingIsLost) {
  ScriptedModel model(ScriptedModelOptions{});
  EngineOptions options;
  options.waiting_max = 6;
  auto engine = *Engine::Create(model, nullptr, {}, options);
  std::atomic<int> complete{0};
  std::atomic<int> cancelled{0};
  std::atomic<int> refused{0};
  constexpr int kClients = 6;
  constexpr int kRequests = 25;
  std::vector<std::thread> clients;
  for (unsigned client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      for (int i = 0; i < kRequests; ++i) {
        const unsigned salt = random();
        const GenerateRequest request =
            Request(salt, 1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 12));
        RecordingSink sink;
        const auto id = engine->Submit(request, &sink);
        if (!id.ok()) {
          EXPECT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted);
          ++refused;
          std::this_thread::yield();
          continue;
        }
        if (random() % 3 == 0) {
          sink.WaitForTokens(random() % 4);
          engine->Cancel(*id);
        }
        sink.WaitForFinish();
        const std::vector<int32_t> expected = model.Greedy(request.prompt, request.stop.tokens_max);
        ASSERT_LE(sink.ids.size(), expected.size());
        EXPECT_TRUE(std::equal(sink.ids.begin(), sink.ids.end(), expected.begin()));
        if (sink.finish->reason == FinishReason::kCancelled) {
          ++cancelled;
        } else {
          EXPECT_EQ(sink.finish->reason, FinishReason::kLength);
          EXPECT_EQ(sink.ids.size(), expected.size());
          ++complete;
        }
        EXPECT_THAT(sink.violations, IsEmpty());
      }
    });
  }
  std::atomic<bool> stop{false};
  std::thread watcher([&] {
    while (!stop) {
      const EngineStats stats = engine->Snapshot();
      EXPECT_LE(stats.running, 4);
      EXPECT_LE(stats.waiting, 6 + 4);
      std::this_thread::yield();
    }
  });
  for (std::thread& client : clients) {
    client.join();
  }
  stop = true;
  watcher.join();
  EXPECT_EQ(complete + cancelled + refused, kClients * kRequests);
  EXPECT_GT(complete, 0);
  engine->Drain(absl::Now() + absl::Seconds(5));
  const EngineStats stats = engine->Snapshot();
  EXPECT_EQ(stats.requests_accepted, static_cast<uint64_t>(complete + cancelled));
  EXPECT_EQ(stats.requests_refused, static_cast<uint64_t>(refused));
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_EQ(stats.kv_tokens_free, 1024);
  EXPECT_THAT(model.violations(), IsEmpty());
}

TEST(EngineThreadsTest, DrainEndsSlowStreamsAtItsDeadline) {
  ScriptedModel model(ScriptedModelOptions{});
  model.set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  auto engine = *Engine::Create(model, nullptr, {}, {});
  std::vector<RecordingSink> sinks(6);
  for (unsigned i = 0; i < 6; ++i) {
    ASSERT_TRUE(engine->Submit(Request(i, 5, 200), &sinks[i]).ok());
  }
  sinks[0].WaitForTokens(2);
  engine->Drain(absl::Now() + absl::Milliseconds(30));
  for (RecordingSink& sink : sinks) {
    ASSERT_TRUE(sink.finished());
    EXPECT_EQ(sink.finish->status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(engine->Submit(Request(1, 5, 5), &sinks[0]).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(model.violations(), IsEmpty());
}

TEST(EngineThreadsTest, TwoMayDrainAtOnceAndTheDestructorToo) {
  ScriptedModel model(ScriptedModelOptions{});
  auto engine = *Engine::Create(model, nullptr, {}, {});
  RecordingSink sink;
  ASSERT_TRUE(engine->Submit(Request(1, 5, 50), &sink).ok());
  std::thread other([&] { engine->Drain(absl::InfinitePast()); });
  engine->Drain(absl::InfinitePast());
  other.join();
  EXPECT_TRUE(sink.finished());
  engine.reset();
  EXPECT_THAT(model.violations(), IsEmpty());
}

TEST(EngineThreadsTest, AnIdleEngineMakesNoPasses) {
  ScriptedModel model(ScriptedModelOptions{});
  auto engine = *Engine::Create(model, nullptr, {}, {});
  RecordingSink sink;
  ASSERT_TRUE(engine->Submit(Request(1, 5, 5), &sink).ok());
  sink.WaitForFinish();
  const uint64_t steps = model.steps();
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(model.steps(), steps);
  EXPECT_LT(std::clock() - before, CLOCKS_PER_SEC / 50) << "CPU time of the whole process while idle";
}

}  // namespace
}  // namespace embergate::engine
