// Random requests of all RPCs through a real server: each ends with a status that the contract knows, and the server is
// as good as before.
//
// Longer: EMBERGATE_RANDOM_REQUESTS=100000 (per thread; 1500 otherwise)
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/server_stats.h"
#include "tests/server/random_message.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

using ::testing::Contains;
using ::testing::Key;
using ::testing::Not;

int Requests() {
  const char* const text = std::getenv("EMBERGATE_RANDOM_REQUESTS");
  int requests = 1500;
  EXPECT_TRUE(text == nullptr || absl::SimpleAtoi(text, &requests));
  return requests;
}

class Outcomes {
 public:
  void Count(const char* method, const grpc::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    const std::string outcome = absl::StrCat(method, " ", GrpcCodeName(status.error_code()));
    ++counts_[outcome];
    examples_.emplace(outcome, status.error_message());
  }
  const std::map<std::string, int>& counts() const { return counts_; }
  const std::string& example(const std::string& outcome) const { return examples_.at(outcome); }

 private:
  std::mutex mutex_;
  std::map<std::string, int> counts_;
  std::map<std::string, std::string> examples_;
};

void Ask(ScriptedServer& server, RandomMessages& random, Outcomes& outcomes) {
  const auto context = BoundedContext(60'000);
  const double share = random.Chance(0.5) ? 0.15 : 0.5;
  // Half of the generations have a prompt that is fine, so that the rest of the request is looked at.
  const auto fill_generate = [&](v1::GenerateRequest& request) {
    random.Fill(request, share);
    if (random.Chance(0.5)) {
      request.mutable_token_ids()->mutable_ids()->Add(2);
    }
    if (random.Chance(0.5)) {
      request.mutable_stopping()->set_max_tokens(static_cast<int>(random.Below(30)) + 1);
    }
  };
  switch (random.Below(6)) {
    case 0:
    case 1: {
      v1::GenerateRequest request;
      fill_generate(request);
      const auto reader = server.stub().Generate(context.get(), request);
      if (random.Chance(0.1)) {
        context->TryCancel();
      }
      v1::GenerateResponse response;
      bool finished = false;
      while (reader->Read(&response)) {
        EXPECT_FALSE(finished) << "a message after finished";
        finished = response.has_finished();
      }
      const grpc::Status status = reader->Finish();
      EXPECT_TRUE(finished || !status.ok());
      outcomes.Count("Generate", status);
      return;
    }
    case 2: {
      v1::GenerateRequest request;
      fill_generate(request);
      v1::GenerateOnceResponse response;
      outcomes.Count("GenerateOnce", server.stub().GenerateOnce(context.get(), request, &response));
      return;
    }
    case 3: {
      v1::ScoreRequest request;
      random.Fill(request, share);
      v1::ScoreResponse response;
      outcomes.Count("Score", server.stub().Score(context.get(), request, &response));
      return;
    }
    case 4: {
      v1::TokenizeRequest request;
      random.Fill(request, share);
      v1::TokenizeResponse response;
      outcomes.Count("Tokenize", server.stub().Tokenize(context.get(), request, &response));
      return;
    }
    default: {
      v1::DetokenizeRequest request;
      random.Fill(request, share);
      v1::DetokenizeResponse response;
      outcomes.Count("Detokenize", server.stub().Detokenize(context.get(), request, &response));
      v1::GetModelInfoResponse info;
      outcomes.Count("GetModelInfo", server.stub().GetModelInfo(BoundedContext().get(), {}, &info));
    }
  }
}

TEST(RandomRequestsTest, EachEndsWithAStatusOfTheContract) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  options.engine.waiting_max = 16;
  ScriptedServer server(options);
  const std::vector<int32_t> before = Generate(server.stub(), IdsRequest({2, 7}, 20)).ids;
  const int64_t kv_free = server.engine().Snapshot().kv_tokens_free;
  Outcomes outcomes;
  std::vector<std::thread> clients;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    clients.emplace_back([&, seed] {
      RandomMessages random(seed);
      for (int i = Requests(); i > 0; --i) {
        Ask(server, random, outcomes);
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  for (const auto& [outcome, count] : outcomes.counts()) {
    std::fprintf(stderr, "[ OUTCOME  ] %-32s %6d  %.80s\n", outcome.c_str(), count, outcomes.example(outcome).c_str());
    const std::string code = outcome.substr(outcome.find(' ') + 1);
    EXPECT_THAT((std::vector<std::string>{"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "CANCELLED"}), Contains(code))
        << outcome << ": " << outcomes.example(outcome);
  }
  for (const char* method : {"Generate", "GenerateOnce", "Score", "Tokenize", "Detokenize"}) {
    EXPECT_THAT(outcomes.counts(), Contains(Key(absl::StrCat(method, " OK")))) << "nothing got past the parser";
    EXPECT_THAT(outcomes.counts(), Contains(Key(absl::StrCat(method, " INVALID_ARGUMENT"))));
  }
  EXPECT_TRUE(Eventually([&] {
    const engine::EngineStats stats = server.engine().Snapshot();
    return stats.running == 0 && stats.waiting == 0 && stats.kv_tokens_free == kv_free;
  }));
  EXPECT_EQ(Generate(server.stub(), IdsRequest({2, 7}, 20)).ids, before);
}

}  // namespace
}  // namespace embergate::server
