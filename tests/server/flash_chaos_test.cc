// A device that fails now and then, in every way, under many streams: each ends with the right answer or with the
// reason why it has none, and nothing is lost.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/scripted_server.h"
#include "tests/server/tiny_model.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

constexpr int kClients = 8;
constexpr int kRounds = 6;

v1::GenerateRequest RequestOf(int client, int round) {
  v1::GenerateRequest request = IdsRequest({2, 10 + client, 50 + round, 90 + client * round}, 24);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

TEST(FlashChaosTest, EachStreamEndsRightOrWithTheReason) {
  const test::TempFolder folder;
  const std::string model = TinyModel(folder);
  ModelHostOptions options = TinyOptions(model);
  options.decoder.slots_max = 4;
  // Hardly a row is there already: every step reads.
  options.decoder.rows.cache_bytes = 0;
  std::vector<std::vector<int32_t>> expected;
  {
    TinyServer sound(options);
    for (int i = 0; i < kClients * kRounds; ++i) {
      expected.push_back(Generate(sound.stub(), RequestOf(i / kRounds, i % kRounds)).ids);
      ASSERT_EQ(expected.back().size(), 24u);
    }
  }
  storage::FaultOptions& faults = options.decoder.rows.test_hooks.faults.emplace();
  faults.io_error = 0.2;
  faults.short_read = 0.1;
  faults.faults_max = 4000;
  TinyServer server(options);
  const int64_t kv_free = server.host().engine().Snapshot().kv_tokens_free;
  std::atomic<int> good{0};
  std::atomic<int> explained{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (int round = 0; round < kRounds; ++round) {
        const StreamResult result = Generate(server.stub(), RequestOf(client, round));
        const std::vector<int32_t>& whole = expected[static_cast<size_t>(client * kRounds + round)];
        if (result.status.ok()) {
          EXPECT_EQ(result.ids, whole);
          good.fetch_add(1);
        } else {
          EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE) << result.status.error_message();
          EXPECT_THAT(result.status.error_details(), ::testing::HasSubstr("FLASH_UNAVAILABLE"));
          ASSERT_LE(result.ids.size(), whole.size());
          EXPECT_TRUE(std::equal(result.ids.begin(), result.ids.end(), whole.begin())) << "what came before is right";
          explained.fetch_add(1);
        }
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  EXPECT_EQ(good + explained, kClients * kRounds);
  EXPECT_GT(good, 0);
  EXPECT_GT(explained, 0) << "no fault was bad enough";
  EXPECT_TRUE(Eventually([&] {
    const engine::EngineStats stats = server.host().engine().Snapshot();
    return stats.running == 0 && stats.kv_tokens_free == kv_free;
  }));
  std::fprintf(stderr, "[ FAULTS   ] %d streams right, %d ended with the reason\n", good.load(), explained.load());
}

}  // namespace
}  // namespace embergate::server
