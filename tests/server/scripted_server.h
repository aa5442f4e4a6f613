// The gRPC server over the real engine and a scripted model, reached through an in-process channel.
#ifndef EMBERGATE_TESTS_SERVER_SCRIPTED_SERVER_H_
#define EMBERGATE_TESTS_SERVER_SCRIPTED_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "embergate/v1/inference.grpc.pb.h"
#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/grpc_server.h"
#include "tests/support/eventually.h"
#include "tests/support/gate.h"
#include "tests/support/scripted_model.h"

namespace embergate::server {

struct ScriptedServerOptions {
  testing::ScriptedModelOptions model;
  engine::EngineOptions engine;
  GrpcServerOptions grpc;
  bool ready = true;       // SetReady at once
  bool tokenizer = false;  // that of the golden fixture gemma4-tiny-e2b
};

inline ScriptedServerOptions SmallServer() {
  ScriptedServerOptions options;
  options.model.limits = {512, 256, 4, 64, 16};
  return options;
}

inline std::unique_ptr<engine::Tokenizer> GoldenTokenizer() {
  auto vocabulary = engine::VocabularyFromFolder(EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b", "gemma4");
  EXPECT_TRUE(vocabulary.ok()) << vocabulary.status();
  auto tokenizer = engine::Tokenizer::Create(*std::move(vocabulary));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// Ends with a check that nothing of the model was left behind.
class ScriptedServer {
 public:
  explicit ScriptedServer(ScriptedServerOptions options = SmallServer()) : model_(options.model) {
    model_.set_on_step([this](uint64_t) { gate_.Pass(); });
    if (options.tokenizer) {
      tokenizer_ = GoldenTokenizer();
    }
    served_.eos_ids = {1, 106};
    auto engine = engine::Engine::Create(model_, tokenizer_.get(), served_.eos_ids, options.engine);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    served_.engine = engine_.get();
    served_.tokenizer = tokenizer_.get();
    served_.limits = model_.limits();
    served_.info.name = "scripted";
    served_.info.architecture = "gemma4";
    if (options.tokenizer) {
      served_.chat_format = engine::ChatFormat::kGemma4;
    }
    served_.sampling.temperature = 0;
    served_.waiting_max = options.engine.waiting_max;
    served_.memory = [this] { return model_.Memory(); };
    served_.row_stats = [] {
      storage::RowStoreStats stats;
      stats.backend = "pread";
      stats.backend_reason = "scripted";
      return stats;
    };
    auto server = GrpcServer::Start(options.grpc);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (options.ready) {
      server_->lifecycle().SetReady(&served_);
    }
    channel_ = server_->grpc_server().InProcessChannel(grpc::ChannelArguments());
    stub_ = v1::Inference::NewStub(channel_);
  }
  ~ScriptedServer() {
    gate_.Open();
    server_.reset();
    engine_.reset();
    EXPECT_THAT(model_.violations(), ::testing::IsEmpty());
  }

  v1::Inference::Stub& stub() { return *stub_; }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }
  GrpcServer& server() { return *server_; }
  engine::Engine& engine() { return *engine_; }
  testing::ScriptedModel& model() { return model_; }
  testing::Gate& gate() { return gate_; }
  const engine::Tokenizer& tokenizer() { return *tokenizer_; }
  ServedModel& served() { return served_; }

 private:
  testing::Gate gate_;
  testing::ScriptedModel model_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  std::unique_ptr<engine::Engine> engine_;
  ServedModel served_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

using test::Eventually;

// A context that fails a test, rather than hang it, after 20 seconds.
inline std::unique_ptr<grpc::ClientContext> BoundedContext(int milliseconds = 20000) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(milliseconds));
  return context;
}

inline v1::GenerateRequest IdsRequest(const std::vector<int32_t>& ids, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

// What a stream gave, with a check of the order of its messages.
struct StreamResult {
  grpc::Status status;
  int started = 0;
  int finished = 0;
  int deltas = 0;
  std::string text;
  std::string thinking;
  std::vector<v1::ToolCall> tool_calls;
  bool malformed_tool_call = false;
  std::vector<int32_t> ids;
  std::vector<v1::PositionLogprobs> logprobs;
  std::vector<v1::PositionLogprobs> prompt_logprobs;
  std::vector<v1::PromptProgress> progress;
  std::map<int, std::vector<int32_t>> ids_of;  // of each of several answers
  std::map<int, std::string> text_of;          // likewise
  std::map<int, v1::CompletionFinished> ends;  // likewise
  v1::Started first;
  v1::Finished last;

  void Take(const v1::GenerateResponse& response) {
    EXPECT_EQ(finished, 0) << "a message after finished";
    switch (response.event_case()) {
      case v1::GenerateResponse::kStarted:
        EXPECT_EQ(deltas, 0);
        ++started;
        first = response.started();
        break;
      case v1::GenerateResponse::kPromptLogprobs:
        EXPECT_EQ(started, 1);
        EXPECT_EQ(deltas, 0) << "prompt log-probabilities after a delta";
        prompt_logprobs.insert(prompt_logprobs.end(), response.prompt_logprobs().positions().begin(),
                               response.prompt_logprobs().positions().end());
        break;
      case v1::GenerateResponse::kPromptProgress:
        EXPECT_EQ(started, 1);
        EXPECT_EQ(deltas, 0) << "the prompt's progress after a delta";
        progress.push_back(response.prompt_progress());
        break;
      case v1::GenerateResponse::kDelta:
        EXPECT_EQ(started, 1) << "a delta before started";
        ++deltas;
        EXPECT_EQ(ends.count(response.delta().completion()), 0u) << "a delta after the answer's end";
        ids_of[response.delta().completion()].insert(ids_of[response.delta().completion()].end(),
                                                     response.delta().ids().begin(), response.delta().ids().end());
        text_of[response.delta().completion()] += response.delta().text();
        text += response.delta().text();
        thinking += response.delta().thinking();
        tool_calls.insert(tool_calls.end(), response.delta().tool_calls().begin(), response.delta().tool_calls().end());
        malformed_tool_call = malformed_tool_call || response.delta().malformed_tool_call();
        ids.insert(ids.end(), response.delta().ids().begin(), response.delta().ids().end());
        logprobs.insert(logprobs.end(), response.delta().logprobs().begin(), response.delta().logprobs().end());
        break;
      case v1::GenerateResponse::kCompletionFinished:
        EXPECT_TRUE(ends.emplace(response.completion_finished().completion(), response.completion_finished()).second);
        break;
      case v1::GenerateResponse::kFinished:
        EXPECT_EQ(started, 1);
        ++finished;
        last = response.finished();
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        ADD_FAILURE() << "an empty message";
    }
  }
};

inline StreamResult ReadAll(grpc::ClientReader<v1::GenerateResponse>& reader) {
  StreamResult result;
  v1::GenerateResponse response;
  while (reader.Read(&response)) {
    result.Take(response);
  }
  result.status = reader.Finish();
  EXPECT_EQ(result.finished, result.status.ok() ? 1 : 0) << "finished comes exactly with status OK";
  return result;
}

inline StreamResult Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  const auto context = BoundedContext();
  const auto reader = stub.Generate(context.get(), request);
  return ReadAll(*reader);
}

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_SCRIPTED_SERVER_H_
