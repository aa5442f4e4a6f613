// Who may call, through gRPC: API keys on every method, limits of a key, and what each refusal carries.
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"
#include "tests/support/manual_clock.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

ApiClient Client(const std::string& name, const ClientLimits& limits = {}) {
  return {name, {DigestOf("key of " + name)}, limits};
}

ScriptedServerOptions ServerWith(const std::vector<ApiClient>& clients) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.clients = clients;
  return options;
}

std::unique_ptr<grpc::ClientContext> ContextOf(const std::string& name) {
  auto context = BoundedContext();
  context->AddMetadata("authorization", "Bearer key of " + name);
  return context;
}

StreamResult GenerateAs(ScriptedServer& server, const std::string& name, const v1::GenerateRequest& request) {
  const auto context = ContextOf(name);
  const auto reader = server.stub().Generate(context.get(), request);
  return ReadAll(*reader);
}

grpc::Status InfoWith(ScriptedServer& server, const std::string& metadata, const std::string& value) {
  const auto context = BoundedContext();
  context->AddMetadata(metadata, value);
  v1::GetModelInfoResponse info;
  return server.stub().GetModelInfo(context.get(), v1::GetModelInfoRequest(), &info);
}

// An empty request to any method, by name.
grpc::Status CallEmpty(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                       int deadline_ms = 20000) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  const auto context = BoundedContext(deadline_ms);
  const auto call = stub.PrepareCall(context.get(), method, &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  const grpc::Slice empty("");
  call->WriteLast(grpc::ByteBuffer(&empty, 1), grpc::WriteOptions(), nullptr);
  queue.Next(&tag, &ok);
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return status;
}

TEST(AccessTest, NoMethodOfTheServiceGoesWithoutAKey) {
  ScriptedServer server(ServerWith({Client("alice")}));
  const google::protobuf::ServiceDescriptor* const service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(v1::Inference::service_full_name());
  ASSERT_NE(service, nullptr);
  ASSERT_GE(service->method_count(), 5);
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string method = absl::StrCat("/", service->full_name(), "/", service->method(i)->name());
    const grpc::Status status = CallEmpty(server.channel(), method);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << method << ": " << status.error_message();
    EXPECT_EQ(DetailsOf(status).reason, "API_KEY_MISSING") << method;
  }
  EXPECT_EQ(server.server().gatekeeper().keys_missing(), static_cast<uint64_t>(service->method_count()));
}

TEST(AccessTest, StrangersLearnNothingWhileLoadingEither) {
  ScriptedServerOptions options = ServerWith({Client("alice")});
  options.ready = false;
  ScriptedServer server(options);
  EXPECT_EQ(InfoWith(server, "x-api-key", "guess").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(InfoWith(server, "x-api-key", "key of alice").error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(AccessTest, HealthNeedsNoKeyAndReflectionIsNotThere) {
  ScriptedServer server(ServerWith({Client("alice")}));
  const auto health = grpc::health::v1::Health::NewStub(server.channel());
  grpc::health::v1::HealthCheckResponse response;
  EXPECT_TRUE(health->Check(BoundedContext().get(), grpc::health::v1::HealthCheckRequest(), &response).ok());
  EXPECT_EQ(CallEmpty(server.channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(AccessTest, ReflectionAndChannelzAreThereWhenAskedFor) {
  for (const bool on : {false, true}) {
    ScriptedServerOptions options = SmallServer();
    options.grpc.reflection = on;
    options.grpc.channelz = on;
    options.grpc.addresses = {"127.0.0.1:0"};
    ScriptedServer server(options);
    const auto channel = grpc::CreateChannel(server.server().addresses().front(), grpc::InsecureChannelCredentials());
    // A stream that nobody reads ends by its deadline.
    const auto there = [&](const char* method) {
      return CallEmpty(channel, method, 2000).error_code() != grpc::StatusCode::UNIMPLEMENTED;
    };
    EXPECT_EQ(there("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), on);
    EXPECT_EQ(there("/grpc.channelz.v1.Channelz/GetServers"), on);
  }
}

TEST(AccessTest, AKeyComesInEitherForm) {
  ScriptedServer server(ServerWith({Client("alice"), Client("bob")}));
  EXPECT_TRUE(InfoWith(server, "authorization", "Bearer key of alice").ok());
  EXPECT_TRUE(InfoWith(server, "authorization", "bearer key of bob").ok());
  EXPECT_TRUE(InfoWith(server, "x-api-key", "key of bob").ok());
  for (const auto& [metadata, value] : std::vector<std::pair<std::string, std::string>>{
           {"authorization", "Bearer key of carol"},
           {"authorization", "Bearer key of alice "},
           {"x-api-key", "KEY OF BOB"},
           {"x-api-key", std::string(4000, 'x')},
       }) {
    const grpc::Status status = InfoWith(server, metadata, value);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(DetailsOf(status).reason, "API_KEY_UNKNOWN");
  }
  EXPECT_EQ(DetailsOf(InfoWith(server, "authorization", "Basic key of alice")).reason, "API_KEY_MISSING");
  EXPECT_EQ(server.server().gatekeeper().keys_unknown(), 4u);
}

TEST(AccessTest, RequestRateIsBoundedWithATruthfulDelay) {
  ScriptedServer server(ServerWith({Client("alice", {.requests_per_minute = 600}), Client("bob")}));
  grpc::Status status;
  int calls = 0;
  while ((status = InfoWith(server, "x-api-key", "key of alice")).ok() && calls < 5000) {
    ++calls;
  }
  EXPECT_GE(calls, 600);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "REQUEST_RATE_EXCEEDED");
  EXPECT_GT(details.retry_delay, absl::ZeroDuration());
  EXPECT_LE(details.retry_delay, absl::Milliseconds(100)) << "one of 600 a minute";
  EXPECT_TRUE(InfoWith(server, "x-api-key", "key of bob").ok()) << "somebody else's limit";
  absl::SleepFor(details.retry_delay);  // the delay itself is what is tested
  EXPECT_TRUE(InfoWith(server, "x-api-key", "key of alice").ok());
}

TEST(AccessTest, TokensAreReservedAndWhatWasNotUsedComesBack) {
  ScriptedServer server(ServerWith({Client("alice", {.tokens_per_minute = 100})}));
  v1::GenerateRequest request = IdsRequest({2, 3, 4}, 60);
  ASSERT_TRUE(GenerateAs(server, "alice", request).status.ok());
  const auto context = ContextOf("alice");
  const auto reader = server.stub().Generate(context.get(), request);
  const StreamResult refused = ReadAll(*reader);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused.status).reason, "TOKEN_RATE_EXCEEDED");
  // 63 wanted, about 37 left, 100 a minute.
  EXPECT_GT(DetailsOf(refused.status).retry_delay, absl::Seconds(10));
  EXPECT_LE(DetailsOf(refused.status).retry_delay, absl::Seconds(16));
  const auto& trailers = context->GetServerTrailingMetadata();
  const auto pushback = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, trailers.end());
  int64_t ms = 0;
  ASSERT_TRUE(absl::SimpleAtoi(std::string(pushback->second.data(), pushback->second.size()), &ms));
  EXPECT_EQ(absl::Milliseconds(ms), DetailsOf(refused.status).retry_delay);
  const auto usage = server.server().gatekeeper().Usage();
  ASSERT_EQ(usage.size(), 1u);
  EXPECT_EQ(usage[0].second.tokens, 63u);
  // A smaller request still fits: the refused one took nothing.
  EXPECT_TRUE(GenerateAs(server, "alice", IdsRequest({2, 3}, 20)).status.ok());
}

TEST(AccessTest, ACancelledStreamPaysForWhatWasComputedOnly) {
  ScriptedServer server(ServerWith({Client("alice", {.tokens_per_minute = 200, .streams = 1})}));
  server.gate().Close();
  server.gate().Permit(3);
  const auto context = ContextOf("alice");
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 150));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(DetailsOf(GenerateAs(server, "alice", IdsRequest({2, 3}, 1)).status).reason, "TOO_MANY_STREAMS");
  context->TryCancel();
  reader->Finish();
  // Step by step: the server hears of it some time later, and at full speed might have finished by then.
  ASSERT_TRUE(Eventually([&] {
    server.gate().Permit(1);
    return server.server().gatekeeper().Usage()[0].second.streams == 0;
  }));
  server.gate().Open();
  EXPECT_LT(server.server().gatekeeper().Usage()[0].second.tokens, 152u);
  EXPECT_TRUE(GenerateAs(server, "alice", IdsRequest({2, 3}, 100)).status.ok()) << "a reservation was not given back";
}

TEST(AccessTest, StreamsAtOnceAreBounded) {
  ScriptedServer server(ServerWith({Client("alice", {.streams = 1}), Client("bob")}));
  server.gate().Close();
  const auto context = ContextOf("alice");
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 4));
  server.gate().AwaitWaiting();
  const StreamResult refused = GenerateAs(server, "alice", IdsRequest({2, 3}, 4));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused.status).reason, "TOO_MANY_STREAMS");
  EXPECT_TRUE(InfoWith(server, "x-api-key", "key of alice").ok()) << "no stream";
  server.gate().Open();
  EXPECT_TRUE(ReadAll(*reader).status.ok());
  EXPECT_TRUE(GenerateAs(server, "bob", IdsRequest({2, 3}, 4)).status.ok());
  EXPECT_TRUE(GenerateAs(server, "alice", IdsRequest({2, 3}, 4)).status.ok()) << "its place is free again";
}

TEST(AccessTest, KeysAreExchangedUnderCallsThatGoOn) {
  ScriptedServer server(ServerWith({Client("alice"), Client("bob")}));
  server.gate().Close();
  const auto context = ContextOf("alice");
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 4));
  server.gate().AwaitWaiting();
  server.server().gatekeeper().SetClients({Client("bob"), Client("carol")});
  EXPECT_EQ(InfoWith(server, "x-api-key", "key of alice").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(InfoWith(server, "x-api-key", "key of carol").ok());
  server.gate().Open();
  EXPECT_TRUE(ReadAll(*reader).status.ok()) << "a call under way";
}

// The priority of a key, and whose share a request takes.
class TicketTest : public ::testing::Test {
 protected:
  std::unique_ptr<CallTicket> Ticket(const ClientLimits& limits) {
    account_ = std::make_shared<ClientAccount>("alice", clock_);
    account_->SetLimits(limits);
    return std::make_unique<CallTicket>(absl::OkStatus(), "alice", account_, false);
  }
  testing::ManualClock clock_;
  std::shared_ptr<ClientAccount> account_;
};

TEST_F(TicketTest, TheKeysNameAndWeightDecideTheShare) {
  engine::GenerateRequest request;
  request.client_key = "key somebody-else";
  ASSERT_TRUE(Ticket({.weight = 3})->Admit(v1::PRIORITY_UNSPECIFIED, 100, request).ok());
  EXPECT_EQ(request.client_key, "client alice");
  EXPECT_EQ(request.client_weight, 3);
  engine::GenerateRequest anonymous;
  anonymous.client_key = "key chosen";
  CallTicket nobody(absl::OkStatus(), "", nullptr, false);
  ASSERT_TRUE(nobody.Admit(v1::PRIORITY_UNSPECIFIED, 100, anonymous).ok());
  EXPECT_EQ(anonymous.client_key, "key chosen");
}

TEST_F(TicketTest, ABatchKeyMayNotAskForMore) {
  engine::GenerateRequest request;
  const auto ticket = Ticket({.batch_only = true});
  EXPECT_TRUE(ticket->Admit(v1::PRIORITY_UNSPECIFIED, 100, request).ok());
  EXPECT_EQ(request.priority, engine::Priority::kBatch);
  const grpc::Status refused = ToGrpc(ticket->Admit(v1::PRIORITY_INTERACTIVE, 100, request));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(refused).reason, "PRIORITY_NOT_ALLOWED");
  EXPECT_THAT(refused.error_message(), HasSubstr("PRIORITY_BATCH"));
}

TEST_F(TicketTest, WhatARequestMayNeedIsReserved) {
  const auto left = [&] {
    // What can still be had at once, found by trying.
    int64_t tokens = 0;
    while (account_->TakeTokens(1).ok()) ++tokens;
    return tokens;
  };
  const struct {
    int tokens_max;
    bool scored;
    int completions;
    int64_t needs;
  } rows[] = {{10, false, 1, 13}, {10, false, 4, 43}, {0, false, 1, 100}, {-1, true, 1, 100}, {0, true, 1, 3}};
  for (const auto& row : rows) {
    engine::GenerateRequest request;
    request.prompt = {1, 2, 3};
    request.stop.tokens_max = row.tokens_max;
    request.prompt_logprobs = row.scored;
    request.completions = row.completions;
    auto ticket = Ticket({.tokens_per_minute = 1000});
    ASSERT_TRUE(ticket->Admit(v1::PRIORITY_UNSPECIFIED, 100, request).ok());
    EXPECT_EQ(left(), 1000 - row.needs) << row.tokens_max;
    ticket->Settle(2);
    ticket.reset();
    EXPECT_EQ(left(), row.needs - 2) << "given back at the end";
    EXPECT_EQ(account_->usage().tokens, 2u);
  }
}

}  // namespace
}  // namespace embergate::server
