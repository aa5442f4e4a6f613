// GenerateOnce: the same answers as the stream's, and the same ends.
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

v1::GenerateOnceResponse Once(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  v1::GenerateOnceResponse response;
  const grpc::Status status = stub.GenerateOnce(BoundedContext().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

std::vector<int32_t> Ids(const v1::Answer& answer) { return {answer.ids().begin(), answer.ids().end()}; }

std::vector<std::string> Bytes(const google::protobuf::RepeatedPtrField<v1::PositionLogprobs>& positions) {
  std::vector<std::string> bytes;
  for (const v1::PositionLogprobs& position : positions) {
    bytes.push_back(position.SerializeAsString());
  }
  return bytes;
}

std::vector<std::string> Bytes(const std::vector<v1::PositionLogprobs>& positions) {
  return Bytes(google::protobuf::RepeatedPtrField<v1::PositionLogprobs>(positions.begin(), positions.end()));
}

TEST(GenerateOnceTest, GivesWhatTheStreamGives) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  ScriptedServer server(options);
  v1::GenerateRequest request;
  request.mutable_text()->set_text("Hello there, world");
  request.mutable_stopping()->set_max_tokens(40);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(77);
  request.mutable_logprobs()->set_output_top(3);
  request.mutable_logprobs()->set_prompt_top(2);
  request.set_request_id("order 7");
  const StreamResult stream = Generate(server.stub(), request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  const v1::GenerateOnceResponse once = Once(server.stub(), request);
  EXPECT_EQ(once.started().SerializeAsString(), stream.first.SerializeAsString());
  EXPECT_EQ(once.started().request_id(), "order 7");
  EXPECT_EQ(Bytes(once.prompt_logprobs()), Bytes(stream.prompt_logprobs));
  ASSERT_EQ(once.answers_size(), 1);
  const v1::Answer& answer = once.answers(0);
  EXPECT_EQ(answer.completion(), 0);
  EXPECT_EQ(answer.text(), stream.text);
  EXPECT_FALSE(answer.text().empty());
  EXPECT_EQ(Ids(answer), stream.ids);
  EXPECT_EQ(Bytes(answer.logprobs()), Bytes(stream.logprobs));
  EXPECT_EQ(answer.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.output_tokens(), 40);
  EXPECT_FALSE(answer.has_cumulative_logprob());
  EXPECT_FALSE(answer.has_stop_id());
  EXPECT_EQ(once.usage().SerializeAsString(), stream.last.usage().SerializeAsString());
  EXPECT_TRUE(once.has_receipt());
  EXPECT_EQ(server.server().stats().requests(Method::kGenerateOnce, grpc::StatusCode::OK), 1u);
}

TEST(GenerateOnceTest, SeveralAnswersKeepTheirPlaces) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  options.model.reuses_prefixes = true;
  options.model.limits.slots_max = 2;
  ScriptedServer server(options);
  v1::GenerateRequest request = IdsRequest({2, 17, 4, 9, 30}, 60);
  request.mutable_stopping()->set_ignore_eos(false);
  for (int id = 0; id < 40; ++id) {
    request.mutable_stopping()->add_stop_ids(id * 12);  // they end at different lengths
  }
  request.mutable_sampling()->set_seed(77);
  request.mutable_sampling()->set_temperature(1);
  request.set_n(4);
  const StreamResult stream = Generate(server.stub(), request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  const v1::GenerateOnceResponse once = Once(server.stub(), request);
  ASSERT_EQ(once.answers_size(), 4);
  for (int i = 0; i < 4; ++i) {
    const v1::Answer& answer = once.answers(i);
    const v1::CompletionFinished& end = stream.ends.at(i);
    EXPECT_EQ(answer.completion(), i);
    const auto ids = stream.ids_of.find(i);
    EXPECT_EQ(Ids(answer), ids == stream.ids_of.end() ? std::vector<int32_t>() : ids->second);
    EXPECT_EQ(answer.reason(), end.reason());
    EXPECT_EQ(answer.has_stop_id(), end.has_stop_id());
    EXPECT_EQ(answer.stop_id(), end.stop_id());
    EXPECT_EQ(answer.output_tokens(), end.output_tokens());
    EXPECT_TRUE(answer.has_cumulative_logprob());
    EXPECT_EQ(answer.cumulative_logprob(), end.cumulative_logprob());
  }
  EXPECT_EQ(once.usage().output_tokens(), stream.last.usage().output_tokens());
}

TEST(GenerateOnceTest, ATimeLimitEndsItWell) {
  ScriptedServer server;
  server.model().set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  v1::GenerateRequest request = IdsRequest({2, 3}, 200);
  request.mutable_time_limit()->set_nanos(200'000'000);
  const v1::GenerateOnceResponse once = Once(server.stub(), request);
  ASSERT_EQ(once.answers_size(), 1);
  EXPECT_EQ(once.answers(0).reason(), v1::FINISH_REASON_TIME_LIMIT);
  EXPECT_GT(once.answers(0).ids_size(), 0);
  EXPECT_LT(once.answers(0).ids_size(), 200);
}

TEST(GenerateOnceTest, CancelAndDeadlineStopComputing) {
  for (const bool cancel : {true, false}) {
    ScriptedServer server;  // which knows no step's time yet, and so refuses no deadline
    v1::GenerateOnceResponse response;
    server.gate().Close();
    const auto context = BoundedContext(cancel ? 20000 : 1000);
    grpc::Status status;
    std::thread call([&] { status = server.stub().GenerateOnce(context.get(), IdsRequest({2, 3}, 200), &response); });
    server.gate().AwaitWaiting();
    if (cancel) {
      context->TryCancel();
    }
    call.join();
    EXPECT_EQ(status.error_code(), cancel ? grpc::StatusCode::CANCELLED : grpc::StatusCode::DEADLINE_EXCEEDED);
    // One step after another, until the server has heard of it; far fewer than the answer has.
    for (int i = 0; i < 100 && server.engine().Snapshot().running > 0; ++i) {
      server.gate().Permit(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(server.engine().Snapshot().running, 0);
    server.gate().Open();
    // Whether the server hears of a deadline from its own clock or from the client's is a matter of chance.
    const ServerStats& stats = server.server().stats();
    EXPECT_TRUE(Eventually([&] {
      return stats.requests(Method::kGenerateOnce, grpc::StatusCode::CANCELLED) +
                 stats.requests(Method::kGenerateOnce, grpc::StatusCode::DEADLINE_EXCEEDED) ==
             1;
    }));
  }
}

TEST(GenerateOnceTest, IsRefusedAsTheStreamIs) {
  ScriptedServerOptions options = SmallServer();
  options.model.limits.slots_max = 1;
  options.engine.waiting_max = 0;
  options.ready = false;
  ScriptedServer server(options);
  v1::GenerateOnceResponse response;
  EXPECT_EQ(server.stub().GenerateOnce(BoundedContext().get(), IdsRequest({2}, 1), &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  server.server().lifecycle().SetReady(&server.served());
  EXPECT_EQ(server.stub().GenerateOnce(BoundedContext().get(), IdsRequest({600}, 1), &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  server.gate().Close();
  const auto first_context = BoundedContext();
  const auto first = server.stub().Generate(first_context.get(), IdsRequest({2, 3}, 4));
  server.gate().AwaitWaiting();
  const auto context = BoundedContext();
  const grpc::Status refused = server.stub().GenerateOnce(context.get(), IdsRequest({2, 4}, 4), &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "QUEUE_FULL");
  EXPECT_EQ(context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  server.gate().Open();
  EXPECT_TRUE(ReadAll(*first).status.ok());
}

}  // namespace
}  // namespace embergate::server
