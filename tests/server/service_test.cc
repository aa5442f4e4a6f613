// Score, Tokenize, Detokenize and GetModelInfo through gRPC, and what reflection tells of the services.
#include <grpcpp/generic/generic_stub.h>

#include <cmath>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

TEST(ScoreTest, GivesEachTokensLogprobAndWhatComesNext) {
  ScriptedServer server;
  v1::ScoreRequest request;
  const std::vector<int32_t> ids = {2, 40, 7, 300};
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_top(512);
  v1::ScoreResponse response;
  const auto context = BoundedContext();
  const grpc::Status status = server.stub().Score(context.get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response.ids(), ::testing::ElementsAreArray(ids));
  ASSERT_EQ(response.positions_size(), 3);
  for (int i = 0; i < 3; ++i) {
    const v1::PositionLogprobs& position = response.positions(i);
    EXPECT_EQ(position.chosen().id(), ids[i + 1]);
    // The script's logits, turned into log-probabilities here.
    std::vector<float> logits(512);
    testing::HashScript()(absl::MakeConstSpan(ids).first(i + 1), absl::MakeSpan(logits));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    ASSERT_EQ(position.top_size(), 512);
    for (const v1::TokenLogprob& token : position.top()) {
      EXPECT_NEAR(token.logprob(), logits[token.id()] - std::log(sum), 1e-4);
    }
    EXPECT_NEAR(position.chosen().logprob(), logits[ids[i + 1]] - std::log(sum), 1e-4);
  }
  ASSERT_EQ(response.next_size(), 512);
  EXPECT_EQ(response.next(0).id(), server.model().Greedy(ids, 1)[0]);
}

TEST(ScoreTest, OneTokenHasNoPositions) {
  ScriptedServer server;
  v1::ScoreRequest request;
  request.mutable_token_ids()->add_ids(2);
  v1::ScoreResponse response;
  const auto context = BoundedContext();
  ASSERT_TRUE(server.stub().Score(context.get(), request, &response).ok());
  EXPECT_EQ(response.positions_size(), 0);
  EXPECT_EQ(response.next_size(), 1);
}

TEST(ScoreTest, CancelStopsIt) {
  ScriptedServer server;
  server.gate().Close();
  v1::ScoreRequest request;
  for (int i = 0; i < 250; ++i) request.mutable_token_ids()->add_ids(i);
  v1::ScoreResponse response;
  const auto context = BoundedContext(100);
  EXPECT_EQ(server.stub().Score(context.get(), request, &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  server.gate().Permit(1);
  EXPECT_TRUE(Eventually([&] { return server.engine().Snapshot().running == 0; }));
}

TEST(TokenizeTest, RoundTrip) {
  ScriptedServerOptions options = SmallServer();
  options.tokenizer = true;
  ScriptedServer server(options);
  v1::TokenizeRequest request;
  const std::string text = "Grüße, 世界! two  spaces";
  request.mutable_text()->set_text(text);
  request.set_with_pieces(true);
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(server.stub().Tokenize(BoundedContext().get(), request, &tokens).ok());
  EXPECT_EQ(tokens.pieces_size(), tokens.ids_size());
  EXPECT_EQ(tokens.ids(0), server.tokenizer().vocabulary().bos_id);
  v1::DetokenizeRequest back;
  *back.mutable_ids() = tokens.ids();
  v1::DetokenizeResponse detokenized;
  ASSERT_TRUE(server.stub().Detokenize(BoundedContext().get(), back, &detokenized).ok());
  EXPECT_EQ(detokenized.text(), text);

  back.add_ids(512);
  const grpc::Status status = server.stub().Detokenize(BoundedContext().get(), back, &detokenized);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(GetModelInfoTest, TellsLimitsAndDefaults) {
  ScriptedServer server;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(server.stub().GetModelInfo(BoundedContext().get(), v1::GetModelInfoRequest(), &info).ok());
  EXPECT_EQ(info.name(), "scripted");
  EXPECT_EQ(info.vocab_size(), 512);
  EXPECT_EQ(info.limits().context_tokens(), 256);
  EXPECT_EQ(info.limits().concurrent_requests(), 4);
  EXPECT_TRUE(info.default_sampling().has_temperature());
  EXPECT_FALSE(info.has_tokenizer());
  EXPECT_TRUE(info.chat_format().empty());
  EXPECT_EQ(info.flash().reader(), "pread");
  EXPECT_EQ(info.flash().reader_reason(), "scripted");
  EXPECT_THAT(info.eos_ids(), ::testing::ElementsAre(1, 106));
}

TEST(ServiceTest, CompressedRequestsAreRefusedNotUnfolded) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.addresses = {"127.0.0.1:0"};  // the in-process transport compresses nothing
  ScriptedServer server(options);
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(server.server().addresses().front(), grpc::InsecureChannelCredentials()));
  EXPECT_TRUE(Generate(*stub, IdsRequest(std::vector<int32_t>(200, 7), 1)).status.ok());
  const auto context = BoundedContext();
  context->set_compression_algorithm(GRPC_COMPRESS_GZIP);
  const auto reader = stub->Generate(context.get(), IdsRequest(std::vector<int32_t>(200, 7), 1));
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST(ServiceTest, RequestsLargerThanTheLimitAreRefused) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.message_bytes_max = 1000;
  ScriptedServer server(options);
  v1::GenerateRequest request;
  request.mutable_text()->set_text(std::string(5000, 'x'));
  EXPECT_EQ(Generate(server.stub(), request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

// One message to, and one from, grpc.reflection.v1alpha; its protos are no part of gRPC's installation, so the bytes
// are written by hand: field number << 3 | 2, length, text.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, char tag, const std::string& text) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  const auto context = BoundedContext();
  const auto call =
      stub.PrepareCall(context.get(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&] {
    void* tag_done = nullptr;
    bool ok = false;
    return queue.Next(&tag_done, &ok) && ok;
  };
  call->StartCall(nullptr);
  EXPECT_TRUE(wait());
  const grpc::Slice slice(std::string(1, tag) + static_cast<char>(text.size()) + text);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  EXPECT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  EXPECT_TRUE(wait());
  call->WritesDone(nullptr);
  wait();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<grpc::Slice> slices;
  answer.Dump(&slices);
  std::string bytes;
  for (const grpc::Slice& piece : slices) {
    bytes.append(reinterpret_cast<const char*>(piece.begin()), piece.size());
  }
  return bytes;
}

TEST(ReflectionTest, ListsAndDescribesTheServices) {
  ScriptedServer server;
  constexpr char kListServices = (7 << 3) | 2;
  constexpr char kFileContainingSymbol = (4 << 3) | 2;
  const std::string list = Reflect(server.channel(), kListServices, "*");
  EXPECT_THAT(list, HasSubstr("embergate.v1.Inference"));
  EXPECT_THAT(list, HasSubstr("grpc.health.v1.Health"));
  EXPECT_THAT(Reflect(server.channel(), kFileContainingSymbol, "embergate.v1.Inference"), HasSubstr("GenerateRequest"));
  EXPECT_THAT(Reflect(server.channel(), kFileContainingSymbol, "grpc.health.v1.Health"),
              HasSubstr("HealthCheckRequest"));
}

}  // namespace
}  // namespace embergate::server
