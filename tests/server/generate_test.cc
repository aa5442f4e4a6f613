// Generate through gRPC over the real engine and a scripted model: order, cancelling, deadlines, slow readers,
// refusals.
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

TEST(GenerateTest, StreamsStartedThenTokensThenFinishedOnce) {
  ScriptedServer server;
  v1::GenerateRequest request = IdsRequest({2, 17, 4}, 12);
  request.mutable_sampling()->set_seed(77);
  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.started, 1);
  EXPECT_EQ(result.first.input_tokens(), 3);
  EXPECT_EQ(result.first.seed(), 77u);
  EXPECT_EQ(result.first.max_tokens(), 12);
  EXPECT_EQ(result.ids, server.model().Greedy({2, 17, 4}, 12));
  EXPECT_EQ(result.last.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(result.last.usage().input_tokens(), 3);
  EXPECT_EQ(result.last.usage().output_tokens(), 12);
  EXPECT_GE(result.last.receipt().prefill_seconds(), 0);
  EXPECT_FALSE(result.last.has_stop_id());
}

TEST(GenerateTest, StartedNamesTheRequest) {
  ScriptedServer server;
  const auto id = [&](const std::string& field, const std::vector<std::string>& metadata) {
    const auto context = BoundedContext();
    for (const std::string& value : metadata) {
      context->AddMetadata("x-request-id", value);
    }
    v1::GenerateRequest request = IdsRequest({2, 3}, 1);
    request.set_request_id(field);
    const auto reader = server.stub().Generate(context.get(), request);
    const StreamResult result = ReadAll(*reader);
    EXPECT_TRUE(result.status.ok()) << result.status.error_message();
    return result.first.request_id();
  };
  EXPECT_EQ(id("", {}), "");
  EXPECT_EQ(id("order 7", {}), "order 7");
  EXPECT_EQ(id("", {"from-a-proxy"}), "from-a-proxy");
  EXPECT_EQ(id("order 7", {"from-a-proxy"}), "order 7");
  EXPECT_EQ(id("", {"one", "two"}), "") << "which of them?";
  EXPECT_EQ(id("", {std::string(129, 'x')}), "") << "too long, and no reason to refuse the call";
}

TEST(GenerateTest, SeveralAnswersComeInOneStream) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  options.model.reuses_prefixes = true;
  ScriptedServer server(options);
  v1::GenerateRequest request = IdsRequest({2, 17, 4, 9, 30}, 12);
  request.mutable_sampling()->set_seed(77);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_stopping()->set_ignore_eos(true);
  const StreamResult one = Generate(server.stub(), request);
  request.set_n(3);
  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(one.ids_of.size(), 1u);
  EXPECT_TRUE(one.ends.empty());
  ASSERT_EQ(result.ids_of.size(), 3u);
  EXPECT_EQ(result.ids_of.at(0), one.ids);
  EXPECT_NE(result.ids_of.at(1), one.ids);
  EXPECT_NE(result.ids_of.at(2), result.ids_of.at(1));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(result.text_of.at(i), server.tokenizer().Decode(result.ids_of.at(i)));
    ASSERT_EQ(result.ends.count(i), 1u);
    EXPECT_EQ(result.ends.at(i).reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(result.ends.at(i).output_tokens(), 12);
    EXPECT_LT(result.ends.at(i).cumulative_logprob(), 0);
  }
  EXPECT_EQ(result.last.usage().input_tokens(), 5);
  EXPECT_EQ(result.last.usage().output_tokens(), 36);
  EXPECT_EQ(result.last.reason(), v1::FINISH_REASON_LENGTH);
}

TEST(GenerateTest, TextOfTheDeltasIsTheTextOfTheIds) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  ScriptedServer server(options);
  v1::GenerateRequest request;
  request.mutable_text()->set_text("Hello there, world");
  request.mutable_stopping()->set_max_tokens(60);
  request.mutable_stopping()->set_ignore_eos(true);
  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.ids.size(), 60u);
  EXPECT_EQ(result.text, server.tokenizer().Decode(result.ids));
  engine::EncodeOptions encode;
  encode.add_bos = true;
  EXPECT_EQ(static_cast<size_t>(result.first.input_tokens()),
            server.tokenizer().Encode("Hello there, world", encode).size());
}

// The model answers with given tokens, whatever the prompt: what it writes comes out as thinking, text and calls.
TEST(GenerateTest, ChatAnswersAreTakenApart) {
  auto tokenizer = GoldenTokenizer();
  engine::EncodeOptions special;
  special.parse_special = true;
  std::vector<int32_t> script = tokenizer->Encode(
      "<|channel>thought\nhmm, well\n<channel|>Sure.<|tool_call>call:switch_on{lamp:3}<tool_call|>"
      "<|tool_call>nonsense<tool_call|>",
      special);
  script.push_back(106);
  auto prompt_tokens = std::make_shared<size_t>(0);
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  options.model.script = testing::TableScript([=](absl::Span<const int32_t> context) {
    const size_t step = context.size() - std::min(context.size(), *prompt_tokens);
    return step < script.size() ? script[step] : 106;
  });
  ScriptedServer server(options);
  v1::GenerateRequest request;
  v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role(v1::ChatMessage::ROLE_USER);
  message.set_content("Light, please");
  v1::Tool& tool = *request.mutable_chat()->add_tools();
  tool.set_name("switch_on");
  tool.set_parameters_json(R"({"type":"object","properties":{"lamp":{"type":"integer"}}})");
  request.mutable_chat()->set_enable_thinking(true);
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = request.chat();
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(server.stub().Tokenize(BoundedContext().get(), tokenize, &tokens).ok());
  *prompt_tokens = static_cast<size_t>(tokens.ids_size());

  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.thinking, "hmm, well");
  EXPECT_THAT(result.text, ::testing::StartsWith("Sure."));
  EXPECT_THAT(result.text, HasSubstr("nonsense")) << "a call that is none is not lost";
  EXPECT_TRUE(result.malformed_tool_call);
  ASSERT_EQ(result.tool_calls.size(), 1u);
  EXPECT_EQ(result.tool_calls[0].id(), "call_0");
  EXPECT_EQ(result.tool_calls[0].name(), "switch_on");
  EXPECT_EQ(result.tool_calls[0].arguments_json(), R"({"lamp":3})");
  EXPECT_EQ(result.last.reason(), v1::FINISH_REASON_STOP);

  v1::GenerateOnceResponse once;
  ASSERT_TRUE(server.stub().GenerateOnce(BoundedContext().get(), request, &once).ok());
  ASSERT_EQ(once.answers_size(), 1);
  const v1::Answer& answer = once.answers(0);
  EXPECT_EQ(answer.thinking(), result.thinking);
  EXPECT_EQ(answer.text(), result.text);
  EXPECT_TRUE(answer.malformed_tool_call());
  ASSERT_EQ(answer.tool_calls_size(), 1);
  EXPECT_EQ(answer.tool_calls(0).SerializeAsString(), result.tool_calls[0].SerializeAsString());
  EXPECT_EQ(answer.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.stop_id(), 106);

  // With the markers wanted, everything is text.
  request.set_special_in_text(true);
  const StreamResult raw = Generate(server.stub(), request);
  ASSERT_TRUE(raw.status.ok());
  EXPECT_THAT(raw.text, HasSubstr("<|tool_call>call:switch_on"));
  EXPECT_TRUE(raw.tool_calls.empty());
}

TEST(GenerateTest, StopTokenIsNamed) {
  ScriptedServerOptions options = SmallServer();
  options.model.script = testing::TableScript([](absl::Span<const int32_t> context) {
    return context.size() < 6 ? static_cast<int32_t>(context.size() + 10) : 106;
  });
  ScriptedServer server(options);
  v1::GenerateRequest request = IdsRequest({5, 6}, 50);
  request.mutable_stopping()->set_ignore_eos(false);
  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok());
  EXPECT_EQ(result.last.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(result.last.stop_id(), 106);
}

TEST(GenerateTest, GivesLogprobsOfOutputAndPrompt) {
  ScriptedServer server;
  v1::GenerateRequest request = IdsRequest({2, 17, 4, 9}, 5);
  request.mutable_logprobs()->set_output_top(3);
  request.mutable_logprobs()->set_prompt_top(2);
  const StreamResult result = Generate(server.stub(), request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  ASSERT_EQ(result.logprobs.size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(result.logprobs[i].chosen().id(), result.ids[i]);
    ASSERT_EQ(result.logprobs[i].top_size(), 3);
    // Greedy: the chosen token is the likeliest.
    EXPECT_EQ(result.logprobs[i].top(0).id(), result.ids[i]);
    EXPECT_LE(result.logprobs[i].top(1).logprob(), result.logprobs[i].top(0).logprob());
  }
  ASSERT_EQ(result.prompt_logprobs.size(), 3u);
  EXPECT_EQ(result.prompt_logprobs[0].chosen().id(), 17);
  EXPECT_EQ(result.prompt_logprobs[2].chosen().id(), 9);
  EXPECT_EQ(result.prompt_logprobs[2].top_size(), 2);
}

TEST(GenerateTest, CancelStopsComputingWithinOneStep) {
  ScriptedServer server;
  server.gate().Close();
  server.gate().Permit(4);
  const auto context = BoundedContext();
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 200));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));  // started
  ASSERT_TRUE(reader->Read(&response));  // the first tokens
  server.gate().AwaitWaiting();
  context->TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The client's side is done; give the server's OnCancel time to arrive, then let a single step through.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  server.gate().Permit(1);
  EXPECT_TRUE(Eventually([&] { return server.engine().Snapshot().running == 0; }))
      << "more than one step was computed for a cancelled request";
  EXPECT_TRUE(Eventually(
      [&] { return server.server().stats().requests(Method::kGenerate, grpc::StatusCode::CANCELLED) == 1; }));
  EXPECT_LE(server.model().steps(), 6u);
}

TEST(GenerateTest, DeadlineEndsTheCallAndTheComputing) {
  ScriptedServer server;
  server.gate().Close();
  server.gate().Permit(2);
  const auto context = BoundedContext(150);
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 200));
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  server.gate().Permit(2);
  EXPECT_TRUE(Eventually([&] { return server.engine().Snapshot().running == 0; }));
}

TEST(GenerateTest, ATimeLimitEndsTheStreamWellWithWhatThereIs) {
  ScriptedServer server;
  v1::GenerateRequest request = IdsRequest({2, 3}, 200);
  request.mutable_time_limit()->set_nanos(1);
  const StreamResult nothing = Generate(server.stub(), request);
  ASSERT_TRUE(nothing.status.ok()) << nothing.status.error_message();
  EXPECT_EQ(nothing.started, 1);
  EXPECT_EQ(nothing.last.reason(), v1::FINISH_REASON_TIME_LIMIT);
  EXPECT_TRUE(nothing.ids.empty());
  EXPECT_EQ(nothing.last.usage().output_tokens(), 0);

  server.model().set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  request.mutable_time_limit()->set_nanos(200'000'000);
  const StreamResult some = Generate(server.stub(), request);
  ASSERT_TRUE(some.status.ok()) << some.status.error_message();
  EXPECT_EQ(some.last.reason(), v1::FINISH_REASON_TIME_LIMIT);
  std::vector<int32_t> whole = server.model().Greedy({2, 3}, 200);
  ASSERT_GT(some.ids.size(), 0u);
  ASSERT_LT(some.ids.size(), 200u);
  whole.resize(some.ids.size());
  EXPECT_EQ(some.ids, whole);
  EXPECT_EQ(some.last.usage().output_tokens(), static_cast<int>(whole.size()));
}

TEST(GenerateTest, TellsHowFarALongPromptIs) {
  ScriptedServerOptions options = SmallServer();
  options.engine.prefill_chunk_max = 16;
  ScriptedServer server(options);
  v1::GenerateRequest request = IdsRequest(std::vector<int32_t>(100, 7), 4);
  request.mutable_logprobs()->set_prompt(true);
  EXPECT_TRUE(Generate(server.stub(), request).progress.empty());
  request.set_prompt_progress(true);
  server.gate().Close();
  const auto context = BoundedContext();
  const auto reader = server.stub().Generate(context.get(), request);
  v1::GenerateResponse response;
  StreamResult result;
  ASSERT_TRUE(reader->Read(&response));
  result.Take(response);
  for (int step = 1; step <= 6; ++step) {  // 16 tokens in each
    server.gate().AwaitWaiting();
    server.gate().Permit(1);
    const size_t before = result.progress.size();
    while (result.progress.size() == before) {
      ASSERT_TRUE(reader->Read(&response));
      result.Take(response);
    }
    EXPECT_EQ(result.progress.back().tokens_done(), 16 * step);
    EXPECT_EQ(result.progress.back().tokens_total(), 100);
    EXPECT_EQ(result.progress.back().cached_tokens(), 0);
  }
  server.gate().Open();
  while (reader->Read(&response)) {
    result.Take(response);
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(result.progress.size(), 6u);
  EXPECT_EQ(result.prompt_logprobs.size(), 99u);
  EXPECT_EQ(result.ids.size(), 4u);
}

TEST(GenerateTest, SlowReaderGetsEverythingInFewerMessages) {
  ScriptedServer server;
  const auto context = BoundedContext();
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 120));
  // Nothing is read until all is computed.
  ASSERT_TRUE(Eventually([&] { return server.engine().Snapshot().generated_tokens == 120; }));
  const StreamResult result = ReadAll(*reader);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.ids, server.model().Greedy({2, 3}, 120));
  EXPECT_LT(result.deltas, 60) << "pending tokens were not merged";
}

TEST(GenerateTest, TooSlowReaderAloneIsEnded) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.service.pending_bytes_max = 64;  // 16 ids
  ScriptedServer server(options);
  const auto context = BoundedContext();
  // Held until the call is established: the scripted model is faster than the RPC's handler.
  server.gate().Close();
  const auto slow = server.stub().Generate(context.get(), IdsRequest({2, 3}, 200));
  v1::GenerateResponse started;
  ASSERT_TRUE(slow->Read(&started));
  ASSERT_TRUE(started.has_started());
  server.gate().Open();
  ASSERT_TRUE(Eventually([&] {
    const engine::EngineStats stats = server.engine().Snapshot();
    return stats.requests_accepted == 1 && stats.running == 0 && stats.waiting == 0;
  }));
  EXPECT_LT(server.engine().Snapshot().generated_tokens, 200u) << "computing went on for nobody";
  v1::GenerateResponse response;
  while (slow->Read(&response)) {
    EXPECT_FALSE(response.has_finished());
  }
  const grpc::Status status = slow->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "SLOW_READER");
  EXPECT_EQ(server.server().stats().slow_readers.load(), 1u);
}

TEST(GenerateTest, ClientThatLeavesWithoutReadingIsCleanedUp) {
  ScriptedServer server;
  for (int i = 0; i < 8; ++i) {
    const auto context = BoundedContext();
    const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3 + i}, 200));
    if (i % 2 == 0) {
      v1::GenerateResponse response;
      EXPECT_TRUE(reader->Read(&response));
    }
    context->TryCancel();
    reader->Finish();
  }
  EXPECT_TRUE(Eventually([&] {
    const engine::EngineStats stats = server.engine().Snapshot();
    return stats.running == 0 && stats.waiting == 0;
  }));
}

TEST(GenerateTest, FullQueueRefusesWithRetryHint) {
  ScriptedServerOptions options = SmallServer();
  options.model.limits.slots_max = 1;
  options.engine.waiting_max = 1;
  ScriptedServer server(options);
  server.gate().Close();
  const auto first_context = BoundedContext();
  const auto first = server.stub().Generate(first_context.get(), IdsRequest({2, 3}, 4));
  server.gate().AwaitWaiting();  // it has the slot
  const auto second_context = BoundedContext();
  const auto second = server.stub().Generate(second_context.get(), IdsRequest({2, 4}, 4));
  ASSERT_TRUE(Eventually([&] { return server.engine().Snapshot().requests_accepted == 2; }));

  const auto third_context = BoundedContext();
  const auto third = server.stub().Generate(third_context.get(), IdsRequest({2, 5}, 4));
  const StreamResult refused = ReadAll(*third);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.started, 0);
  EXPECT_EQ(DetailsOf(refused.status).reason, "QUEUE_FULL");
  EXPECT_GT(DetailsOf(refused.status).retry_delay, absl::ZeroDuration());
  EXPECT_EQ(third_context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);

  server.gate().Open();
  EXPECT_EQ(ReadAll(*first).ids, server.model().Greedy({2, 3}, 4));
  EXPECT_EQ(ReadAll(*second).ids, server.model().Greedy({2, 4}, 4));
}

TEST(GenerateTest, ADeadlineThatCannotBeMetIsRefusedAtOnceWithoutRetryHint) {
  ScriptedServerOptions options = SmallServer();
  options.model.limits.slots_max = 1;
  ScriptedServer server(options);
  server.model().set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  ASSERT_TRUE(Generate(server.stub(), IdsRequest({2, 3}, 30)).status.ok());  // a step's time is known now
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  const auto begin = std::chrono::steady_clock::now();
  const auto reader = server.stub().Generate(&context, IdsRequest({2, 3}, 200));
  const StreamResult refused = ReadAll(*reader);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(450)) << "before the deadline itself";
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused.status).reason, "DEADLINE_UNREACHABLE");
  EXPECT_EQ(DetailsOf(refused.status).retry_delay, absl::ZeroDuration());
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0u);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("200 tokens"));
}

TEST(GenerateTest, BatchRequestsGiveWayAndStillAnswerInFull) {
  ScriptedServerOptions options = SmallServer();
  options.model.limits.slots_max = 1;
  ScriptedServer server(options);
  server.gate().Close();
  const auto batch_context = BoundedContext();
  v1::GenerateRequest request = IdsRequest({2, 3}, 40);
  request.set_priority(v1::PRIORITY_BATCH);
  const auto batch = server.stub().Generate(batch_context.get(), request);
  server.gate().AwaitWaiting();
  server.gate().Permit(5);
  server.gate().AwaitWaiting();
  const auto context = BoundedContext();
  const auto interactive = server.stub().Generate(context.get(), IdsRequest({2, 4}, 4));
  ASSERT_TRUE(Eventually([&] { return server.engine().Snapshot().requests_accepted == 2; }));
  server.gate().Open();
  const StreamResult quick = ReadAll(*interactive);
  const StreamResult slow = ReadAll(*batch);
  ASSERT_TRUE(quick.status.ok() && slow.status.ok());
  EXPECT_EQ(quick.ids, server.model().Greedy({2, 4}, 4));
  EXPECT_EQ(slow.ids, server.model().Greedy({2, 3}, 40));
  EXPECT_EQ(slow.last.receipt().preemptions(), 1);
  EXPECT_EQ(quick.last.receipt().preemptions(), 0);
}

TEST(GenerateTest, LoadingAndDrainingAreUnavailable) {
  ScriptedServerOptions options = SmallServer();
  options.ready = false;
  ScriptedServer server(options);
  server.server().lifecycle().SetLoadProgress(42, 100);
  StreamResult result = Generate(server.stub(), IdsRequest({2}, 1));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("42 %"));
  EXPECT_EQ(DetailsOf(result.status).reason, "LOADING");

  server.server().lifecycle().SetReady(&server.served());
  EXPECT_TRUE(Generate(server.stub(), IdsRequest({2}, 1)).status.ok());

  server.server().lifecycle().SetDraining();
  result = Generate(server.stub(), IdsRequest({2}, 1));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(result.status).reason, "DRAINING");
  EXPECT_GT(DetailsOf(result.status).retry_delay, absl::ZeroDuration());
}

TEST(GenerateTest, DrainEndsWhatDoesNotFinishInTime) {
  ScriptedServer server;
  server.gate().Close();
  server.gate().Permit(3);
  const auto context = BoundedContext();
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 200));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  server.gate().AwaitWaiting();
  server.server().lifecycle().SetDraining();
  std::thread drain([&] { server.engine().Drain(absl::Now() + absl::Milliseconds(50)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  server.gate().Open();
  drain.join();
  while (reader->Read(&response)) {
    EXPECT_FALSE(response.has_finished());
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "DRAINING");
}

TEST(GenerateTest, DamagedRowsEndOneStreamAndNameNoFiles) {
  ScriptedServer server;
  server.model().set_chunk_fault([](uint64_t step, const engine::Chunk& chunk) {
    return step > 4 && chunk.slot == 0 ? absl::DataLossError("/secret/model.gguf: row 7 at offset 4096 is damaged")
                                       : absl::OkStatus();
  });
  server.gate().Close();
  const auto bad_context = BoundedContext();
  const auto bad = server.stub().Generate(bad_context.get(), IdsRequest({2, 3}, 50));
  server.gate().AwaitWaiting();
  const auto good_context = BoundedContext();
  const auto good = server.stub().Generate(good_context.get(), IdsRequest({2, 4}, 50));
  ASSERT_TRUE(Eventually([&] { return server.engine().Snapshot().requests_accepted == 2; }));
  server.gate().Open();
  const StreamResult broken = ReadAll(*bad);
  EXPECT_EQ(broken.status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(broken.status.error_message(), ::testing::Not(HasSubstr("secret")));
  EXPECT_EQ(ReadAll(*good).ids, server.model().Greedy({2, 4}, 50));
}

TEST(GenerateTest, ConcurrentStreamsEqualTheirSoloRuns) {
  ScriptedServer server;
  std::vector<StreamResult> results(12);
  std::vector<std::thread> clients;
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back([&, i] { results[i] = Generate(server.stub(), IdsRequest({2, 10 + i, 30}, 20 + i)); });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(results[i].status.ok()) << results[i].status.error_message();
    EXPECT_EQ(results[i].ids, server.model().Greedy({2, 10 + i, 30}, 20 + i));
  }
}

}  // namespace
}  // namespace embergate::server
