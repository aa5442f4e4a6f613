// deploy/errors.md, row by row: each is provoked in a real server and has to carry what the page promises; and the page
// has all reasons that the code knows.
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

// ---- The page ---------------------------------------------------------------------------------------

struct PageRow {
  std::string when;
  std::string code;
  std::string reason;
  bool retry_info = false;
  bool bad_request = false;
};

std::vector<PageRow> ReadPage() {
  std::vector<PageRow> rows;
  const std::string page = test::ReadFile(EMBERGATE_SOURCE_DIR "/deploy/errors.md");
  for (const absl::string_view line : absl::StrSplit(page, '\n')) {
    std::vector<std::string> cells = absl::StrSplit(line, '|');
    if (cells.size() != 7 || !absl::StrContains(cells[3], '`')) {
      continue;  // another table, or a heading
    }
    for (std::string& cell : cells) {
      absl::StripAsciiWhitespace(&cell);
    }
    rows.push_back({cells[1], cells[2], absl::StrReplaceAll(cells[3], {{"`", ""}}),
                    absl::StrContains(cells[4], "RetryInfo"), absl::StrContains(cells[4], "BadRequest")});
  }
  return rows;
}

// ---- What happens -------------------------------------------------------------------------------------

struct Outcome {
  grpc::Status status;
  bool pushback = false;  // the trailer
};

Outcome GenerateWith(v1::Inference::Stub& stub, const v1::GenerateRequest& request, const std::string& key = "",
                     int deadline_ms = 20000) {
  const auto context = BoundedContext(deadline_ms);
  if (!key.empty()) {
    context->AddMetadata("x-api-key", key);
  }
  const auto reader = stub.Generate(context.get(), request);
  Outcome outcome;
  outcome.status = ReadAll(*reader).status;
  outcome.pushback = context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms") > 0;
  return outcome;
}

Outcome WithKey(const ClientLimits& limits, const std::string& key, v1::Priority priority = v1::PRIORITY_UNSPECIFIED,
                int calls = 1) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.clients = {{"alice", {DigestOf("right")}, limits}};
  ScriptedServer server(options);
  v1::GenerateRequest request = IdsRequest({2, 3}, 40);
  request.set_priority(priority);
  Outcome outcome;
  for (int i = 0; i < calls; ++i) {
    outcome = GenerateWith(server.stub(), request, key);
  }
  return outcome;
}

Outcome TooManyStreams() {
  ScriptedServerOptions options = SmallServer();
  options.grpc.clients = {{"alice", {DigestOf("right")}, {.streams = 1}}};
  ScriptedServer server(options);
  server.gate().Close();
  const auto context = BoundedContext();
  context->AddMetadata("x-api-key", "right");
  const auto first = server.stub().Generate(context.get(), IdsRequest({2, 3}, 4));
  server.gate().AwaitWaiting();
  const Outcome outcome = GenerateWith(server.stub(), IdsRequest({2, 3}, 4), "right");
  server.gate().Open();
  EXPECT_TRUE(ReadAll(*first).status.ok());
  return outcome;
}

// One slot that is taken, and `waiting_max` places.
Outcome BehindOthers(int waiting_max, int deadline_ms) {
  ScriptedServerOptions options = SmallServer();
  options.model.limits.slots_max = 1;
  options.engine.waiting_max = waiting_max;
  ScriptedServer server(options);
  server.model().set_on_step([&](uint64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    server.gate().Pass();
  });
  // The times of a step, and between two departures from a queue, are known after this.
  std::vector<std::thread> first;
  for (int i = 0; i <= std::min(waiting_max, 3); ++i) {
    first.emplace_back([&] { EXPECT_TRUE(Generate(server.stub(), IdsRequest({2, 3}, 30)).status.ok()); });
  }
  for (std::thread& client : first) {
    client.join();
  }
  // A client hears of its end a little before its slot is free.
  EXPECT_TRUE(Eventually([&] { return server.engine().Snapshot().running + server.engine().Snapshot().waiting == 0; }));
  server.gate().Close();
  const uint64_t accepted_before = server.engine().Snapshot().requests_accepted;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i <= waiting_max && i < 3; ++i) {
    contexts.push_back(BoundedContext());
    readers.push_back(server.stub().Generate(contexts.back().get(), IdsRequest({2, 3}, 100)));
    const uint64_t accepted = accepted_before + static_cast<uint64_t>(i) + 1;
    EXPECT_TRUE(Eventually([&] { return server.engine().Snapshot().requests_accepted == accepted; }));
  }
  server.gate().AwaitWaiting();
  const Outcome outcome = GenerateWith(server.stub(), IdsRequest({2, 5}, 20), "", deadline_ms);
  server.gate().Open();
  for (auto& reader : readers) {
    EXPECT_TRUE(ReadAll(*reader).status.ok());
  }
  return outcome;
}

Outcome NeverInTime() {
  ScriptedServer server;
  server.model().set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  EXPECT_TRUE(Generate(server.stub(), IdsRequest({2, 3}, 30)).status.ok());
  return GenerateWith(server.stub(), IdsRequest({2, 3}, 200), "", 100);
}

Outcome SlowReader() {
  ScriptedServerOptions options = SmallServer();
  options.grpc.service.pending_bytes_max = 64;
  ScriptedServer server(options);
  server.gate().Close();
  const auto context = BoundedContext();
  const auto reader = server.stub().Generate(context.get(), IdsRequest({2, 3}, 200));
  v1::GenerateResponse response;
  EXPECT_TRUE(reader->Read(&response));
  server.gate().Open();
  EXPECT_TRUE(Eventually([&] {
    const engine::EngineStats stats = server.engine().Snapshot();
    return stats.requests_accepted == 1 && stats.running == 0 && stats.waiting == 0;
  }));
  while (reader->Read(&response)) {
  }
  return {reader->Finish(), context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms") > 0};
}

Outcome InPhase(const std::function<void(Lifecycle&)>& set) {
  ScriptedServerOptions options = SmallServer();
  options.ready = false;
  ScriptedServer server(options);
  set(server.server().lifecycle());
  return GenerateWith(server.stub(), IdsRequest({2}, 1));
}

Outcome WithFault(const absl::Status& fault) {
  ScriptedServer server;
  server.model().set_chunk_fault([&](uint64_t, const engine::Chunk&) { return fault; });
  return GenerateWith(server.stub(), IdsRequest({2, 3}, 50));
}

// What the server would have said; the client's library mostly says it first, without details.
Outcome Mapped(absl::StatusCode code) { return {ToGrpc(absl::Status(code, "ended")), false}; }

Outcome InvalidField() {
  ScriptedServer server;
  return GenerateWith(server.stub(), IdsRequest({2, 3, 4}, -7));
}

Outcome TextWithoutTokenizer() {
  ScriptedServer server;
  v1::GenerateRequest request;
  request.mutable_text()->set_text("Hello");
  return GenerateWith(server.stub(), request);
}

// By the page's first column.
const std::map<std::string, std::function<Outcome()>>& Provocations() {
  static const std::map<std::string, std::function<Outcome()>> all = {
      {"a field is out of range, malformed or contradicts another", InvalidField},
      {"the loaded model cannot do it (text without a tokenizer, chat without a chat format)", TextWithoutTokenizer},
      {"the call has no API key", [] { return WithKey({}, ""); }},
      {"its API key is not in the file", [] { return WithKey({}, "wrong"); }},
      {"`PRIORITY_INTERACTIVE` with a key for batch work",
       [] { return WithKey({.batch_only = true}, "right", v1::PRIORITY_INTERACTIVE); }},
      {"more calls per minute than the key may make",
       [] { return WithKey({.requests_per_minute = 1}, "right", v1::PRIORITY_UNSPECIFIED, 2); }},
      {"more tokens per minute than the key may use",
       [] { return WithKey({.tokens_per_minute = 50}, "right", v1::PRIORITY_UNSPECIFIED, 2); }},
      {"more calls at once than the key may have", TooManyStreams},
      {"the queue has no place", [] { return BehindOthers(0, 20000); }},
      {"the deadline would pass while the request waits, or beside those that are computed now",
       [] { return BehindOthers(8, 400); }},
      {"the deadline is too short even on an idle server", NeverInTime},
      {"the stream is read so slowly that `--pending-bytes-max` waits for the client", SlowReader},
      {"the model is being loaded", [] { return InPhase([](Lifecycle&) {}); }},
      {"the server shuts down, and the request is not done in time",
       [] { return InPhase([](Lifecycle& lifecycle) { lifecycle.SetDraining(); }); }},
      {"the device does not give the rows that the request needs",
       [] { return WithFault(absl::UnavailableError("/secret: offset 7")); }},
      {"a row has another checksum than it should", [] { return WithFault(absl::DataLossError("/secret: row 7")); }},
      {"the deadline passes", [] { return Mapped(absl::StatusCode::kDeadlineExceeded); }},
      {"the client cancels", [] { return Mapped(absl::StatusCode::kCancelled); }},
      {"the server is at fault", [] { return WithFault(absl::UnknownError("/secret: a bug")); }},
  };
  return all;
}

class ErrorContractTest : public ::testing::TestWithParam<PageRow> {};

TEST_P(ErrorContractTest, HappensAsThePageSays) {
  const PageRow& row = GetParam();
  const auto provocation = Provocations().find(row.when);
  ASSERT_NE(provocation, Provocations().end()) << "no test provokes: " << row.when;
  const Outcome outcome = provocation->second();
  const ErrorDetails details = DetailsOf(outcome.status);
  EXPECT_EQ(GrpcCodeName(outcome.status.error_code()), row.code) << outcome.status.error_message();
  EXPECT_EQ(details.reason, row.reason) << outcome.status.error_message();
  EXPECT_EQ(details.retry_delay > absl::ZeroDuration(), row.retry_info) << details.retry_delay;
  EXPECT_EQ(outcome.pushback, row.retry_info) << "the trailer goes with RetryInfo";
  EXPECT_EQ(!details.violations.empty(), row.bad_request);
  EXPECT_FALSE(outcome.status.error_message().empty());
  EXPECT_THAT(outcome.status.error_message(), ::testing::Not(::testing::HasSubstr("secret")));
}

std::string RowName(const ::testing::TestParamInfo<PageRow>& test_info) {
  std::string name = absl::StrCat(test_info.index, "_", test_info.param.reason);
  return name;
}

INSTANTIATE_TEST_SUITE_P(Page, ErrorContractTest, ::testing::ValuesIn(ReadPage()), RowName);

TEST(ErrorPageTest, EveryProvocationHasItsRow) {
  std::set<std::string> rows;
  for (const PageRow& row : ReadPage()) {
    EXPECT_TRUE(rows.insert(row.when).second) << "twice: " << row.when;
  }
  for (const auto& [when, provoke] : Provocations()) {
    EXPECT_EQ(rows.count(when), 1u) << "not on the page: " << when;
  }
  EXPECT_GE(rows.size(), Provocations().size());
}

// In the sources, a reason stands where a status gets one, or in the table of codes.
TEST(ErrorPageTest, PageAndCodeKnowTheSameReasons) {
  std::set<std::string> in_code;
  const std::regex given(R"re((?:WithReason|WithRefusalReason|Refused|refuse)\([^;]*?"([A-Z][A-Z_]{3,})"\))re");
  const std::regex table(R"re(grpc::StatusCode::[A-Z_]+,\s*"([A-Z_]+)")re");
  for (const char* folder : {"/server", "/engine"}) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(EMBERGATE_SOURCE_DIR + std::string(folder))) {
      if (entry.path().extension() != ".cc") {
        continue;
      }
      const std::string text = test::ReadFile(entry.path().string());
      for (const std::regex& pattern : {given, table}) {
        for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
          in_code.insert((*it)[1]);
        }
      }
    }
  }
  std::set<std::string> on_page = {"RESOURCE_EXHAUSTED", "UNIMPLEMENTED"};  // named below its table
  for (const PageRow& row : ReadPage()) {
    on_page.insert(row.reason);
  }
  EXPECT_EQ(in_code, on_page);
}

// ---- What gRPC refuses by itself ------------------------------------------------------------------------

class TransportContractTest : public ::testing::Test {
 protected:
  TransportContractTest() {
    ScriptedServerOptions options = SmallServer();
    options.grpc.addresses = {"127.0.0.1:0"};
    options.grpc.message_bytes_max = 100'000;
    options.grpc.streams_per_connection_max = 2;
    server_ = std::make_unique<ScriptedServer>(options);
    channel_ = grpc::CreateChannel(server_->server().addresses().front(), grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }
  // Raw bytes as the one message of a call.
  grpc::Status CallRaw(const std::string& method, const std::string& bytes) {
    grpc::GenericStub stub(channel_);
    grpc::CompletionQueue queue;
    const auto context = BoundedContext();
    const auto call = stub.PrepareCall(context.get(), method, &queue);
    void* tag = nullptr;
    bool ok = false;
    call->StartCall(nullptr);
    queue.Next(&tag, &ok);
    const grpc::Slice slice(bytes);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    queue.Next(&tag, &ok);
    grpc::Status status;
    call->Finish(&status, nullptr);
    queue.Next(&tag, &ok);
    return status;
  }
  // With too much metadata, gRPC sometimes closes the connection after its answer: another call may have to connect
  // anew.
  void ExpectServes() {
    EXPECT_TRUE(Eventually([&] { return Generate(*stub_, IdsRequest({2, 3}, 2)).status.ok(); }));
  }

  std::unique_ptr<ScriptedServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(TransportContractTest, TooLargeAMessage) {
  v1::GenerateRequest request;
  request.mutable_text()->set_text(std::string(200'000, 'x'));
  EXPECT_EQ(Generate(*stub_, request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectServes();
}

TEST_F(TransportContractTest, TooMuchMetadata) {
  const auto context = BoundedContext();
  context->AddMetadata("x-filler", std::string(20'000, 'x'));
  v1::GetModelInfoResponse info;
  EXPECT_EQ(stub_->GetModelInfo(context.get(), v1::GetModelInfoRequest(), &info).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectServes();
}

TEST_F(TransportContractTest, UnknownMethodsAndForeignBytes) {
  EXPECT_EQ(CallRaw("/embergate.v1.Inference/Imagine", "").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(CallRaw("/embergate.v1.Inference/GetModelInfo", "\xff\xff\xff").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(CallRaw("/embergate.v1.Inference/Generate", "\x0a\x7f").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  ExpectServes();
}

// The client's library holds a third call back until one of two has ended.
TEST_F(TransportContractTest, CallsBeyondAConnectionsLimitWait) {
  server_->gate().Close();
  std::vector<std::thread> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back([&, i] { EXPECT_TRUE(Generate(*stub_, IdsRequest({2, 3 + i}, 4)).status.ok()); });
  }
  EXPECT_TRUE(Eventually([&] { return server_->engine().Snapshot().requests_accepted == 2; }));
  server_->gate().Open();
  for (std::thread& client : clients) {
    client.join();
  }
  EXPECT_EQ(server_->engine().Snapshot().requests_accepted, 3u);
}

TEST_F(TransportContractTest, AnIdleAndAnOldConnectionAreReplacedUnnoticed) {
  ScriptedServerOptions options = SmallServer();
  options.grpc.addresses = {"127.0.0.1:0"};
  options.grpc.connection_idle_max = absl::Seconds(1);  // no pause before the first call is as long
  options.grpc.connection_age_max = absl::Milliseconds(300);
  ScriptedServer server(options);
  const auto channel = grpc::CreateChannel(server.server().addresses().front(), grpc::InsecureChannelCredentials());
  const auto stub = v1::Inference::NewStub(channel);
  server.model().set_on_step([](uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(10)); });
  // Longer than a connection's age: it is not cut.
  const grpc::Status whole = Generate(*stub, IdsRequest({2, 3}, 80)).status;
  EXPECT_TRUE(whole.ok()) << whole.error_message();
  // The client's end of it goes away once nothing is under way.
  EXPECT_TRUE(Eventually([&] { return channel->GetState(false) == GRPC_CHANNEL_IDLE; }));
  EXPECT_TRUE(Generate(*stub, IdsRequest({2, 3}, 2)).status.ok());
}

}  // namespace
}  // namespace embergate::server
