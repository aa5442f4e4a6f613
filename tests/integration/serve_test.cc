// The real binary over loopback, on the golden checkpoints: what people type gives the reference's numbers, and a
// server lives and ends as its operator expects.
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "storage/gguf_writer.h"
#include "tests/engine/model/gguf_edit.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/eventually.h"
#include "tests/support/server_process.h"

namespace embergate {
namespace {

using engine::Golden;
using engine::GoldenGguf;
using test::RunBinary;
using test::RunResult;
using test::ServerProcess;
using ::testing::HasSubstr;

const std::vector<std::string> kSmall = {"--context", "160", "--slots", "4", "--threads", "2", "--dram-budget", "0"};

std::vector<std::string> ServeArgs(const std::string& model, const std::vector<std::string>& more = {}) {
  std::vector<std::string> args = kSmall;
  args.insert(args.end(), {"--model", model});
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

std::unique_ptr<v1::Inference::Stub> Stub(const ServerProcess& server) {
  return v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
}

std::unique_ptr<grpc::ClientContext> BoundedContext() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  return context;
}

v1::GenerateRequest GreedyRequest(const std::vector<int32_t>& prompt, int tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

struct Answer {
  grpc::Status status;
  std::vector<int32_t> ids;
  v1::Finished finished;
};

Answer Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  Answer answer;
  const auto context = BoundedContext();
  const auto reader = stub.Generate(context.get(), request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    answer.ids.insert(answer.ids.end(), response.delta().ids().begin(), response.delta().ids().end());
    if (response.has_finished()) {
      answer.finished = response.finished();
    }
  }
  answer.status = reader->Finish();
  return answer;
}

// Largest difference between Score's log-probabilities and log-softmax of the golden logits, over a whole sequence.
double WorstScoreDifference(v1::Inference::Stub& stub, const Golden& golden, const std::string& sequence) {
  const std::vector<int32_t> ids = golden.Ids(sequence + ".input_ids");
  const std::vector<float> logits = golden.Floats(sequence + ".logits");
  const size_t vocab = logits.size() / ids.size();
  v1::ScoreRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_top(static_cast<int>(vocab));
  v1::ScoreResponse response;
  const grpc::Status status = stub.Score(BoundedContext().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(static_cast<size_t>(response.positions_size()) + 1, ids.size());
  double worst = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const float* row = logits.data() + i * vocab;
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) {
      sum += std::exp(static_cast<double>(row[v]));
    }
    const auto compare = [&](const v1::TokenLogprob& token) {
      worst = std::max(worst, std::abs(token.logprob() - (row[token.id()] - std::log(sum))));
    };
    if (i + 1 == ids.size()) {
      EXPECT_EQ(static_cast<size_t>(response.next_size()), vocab);
      for (const v1::TokenLogprob& token : response.next()) compare(token);
      continue;
    }
    const v1::PositionLogprobs& position = response.positions(static_cast<int>(i));
    EXPECT_EQ(position.chosen().id(), ids[i + 1]);
    compare(position.chosen());
    EXPECT_EQ(static_cast<size_t>(position.top_size()), vocab);
    for (const v1::TokenLogprob& token : position.top()) compare(token);
  }
  return worst;
}

class GoldenServeTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenServeTest, ScoreAndGenerateEqualTheReference) {
  const Golden golden(GetParam());
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf(GetParam())));
  ASSERT_TRUE(server.WaitReady());
  const auto stub = Stub(server);
  for (const char* sequence : {"seq0", "seq1", "seq2", "seq3"}) {
    EXPECT_LT(WorstScoreDifference(*stub, golden, sequence), 1e-3) << sequence;
  }
  for (const char* number : {"1", "2", "3"}) {
    const Answer answer = Generate(*stub, GreedyRequest(golden.Ids(absl::StrCat("seq", number, ".input_ids")), 24));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.ids, golden.Ids(absl::StrCat("greedy", number, ".tokens")));
    EXPECT_GT(answer.finished.receipt().kv_bytes_peak(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenServeTest, ::testing::Values("gemma4-tiny-e2b", "gemma3n-tiny-e2b"),
                         [](const auto& test_info) {
                           std::string name = test_info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ServeTest, GenerateCommandPrintsOneJsonLine) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const Golden golden("gemma4-tiny-e2b");
  const std::string ids = absl::StrJoin(golden.Ids("seq1.input_ids"), ",");
  const std::vector<std::string> generate = {"generate", "--prompt-ids", ids,     "--max-tokens", "24", "--temperature",
                                             "0",        "--ignore-eos", "--json"};
  std::vector<std::string> remote = generate;
  remote.insert(remote.end(), {"--address", server.address()});
  const RunResult result = RunBinary(EMBERGATE_BINARY, remote);
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json line = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_FALSE(line.is_discarded()) << result.out;
  EXPECT_EQ(line["ids"].get<std::vector<int32_t>>(), golden.Ids("greedy1.tokens"));
  EXPECT_EQ(line["finish_reason"], "length");
  EXPECT_EQ(line["usage"]["output_tokens"], 24);
  EXPECT_GT(line["receipt"]["rows_requested"], 0);
  EXPECT_TRUE(line["text"].is_string());

  // The same without a server.
  std::vector<std::string> local = generate;
  local.insert(local.end(), {"--model", GoldenGguf("gemma4-tiny-e2b"), "--context", "160", "--dram-budget", "0"});
  const RunResult alone = RunBinary(EMBERGATE_BINARY, local);
  ASSERT_EQ(alone.code, 0) << alone.err;
  EXPECT_EQ(nlohmann::json::parse(alone.out, nullptr, false)["ids"], line["ids"]);
}

nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file, nullptr, false);
}

TEST(ServeTest, ChatGoesOnWithItsSession) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const test::TempFolder folder;
  const std::string session = folder.path() + "/session.json";
  const std::vector<std::string> chat = {"chat",          "--address", server.address(), "--max-tokens", "3",
                                         "--temperature", "0",         "--ignore-eos",   "--session",    session,
                                         "--no-history",  "--system",  "Be brief."};
  const RunResult first = RunBinary(EMBERGATE_BINARY, chat, "One\n\"\"\"\nTwo\nlines\n\"\"\"\n");
  ASSERT_EQ(first.code, 0) << first.err;
  nlohmann::json messages = ReadJson(session)["messages"];
  ASSERT_EQ(messages.size(), 5u) << messages;
  EXPECT_EQ(messages[0]["content"], "Be brief.");
  EXPECT_EQ(messages[3]["content"], "Two\nlines");
  const nlohmann::json two = messages;

  // The next run goes on; what is undone is gone, and a repeated question has the same (greedy) answer.
  const RunResult second = RunBinary(EMBERGATE_BINARY, chat, "Three\n/undo\nFour\n/retry\n/quit\n");
  ASSERT_EQ(second.code, 0) << second.err;
  messages = ReadJson(session)["messages"];
  ASSERT_EQ(messages.size(), 7u) << messages;
  for (size_t i = 0; i < two.size(); ++i) {
    EXPECT_EQ(messages[i], two[i]) << i;
  }
  EXPECT_EQ(messages[5]["content"], "Four");

  // Another system turn would contradict it.
  std::vector<std::string> other = chat;
  other.back() = "Be long.";
  const RunResult refused = RunBinary(EMBERGATE_BINARY, other, "Five\n");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr("system turn"));
}

TEST(ServeTest, TopShowsTheServer) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const RunResult top = RunBinary(EMBERGATE_BINARY, {"top", "--once", "--interval", "0.1", "--metrics",
                                                     absl::StrCat("127.0.0.1:", server.metrics_port())});
  EXPECT_EQ(top.code, 0) << top.err;
  EXPECT_THAT(top.out, HasSubstr("ready"));
  EXPECT_THAT(top.out, HasSubstr("0 of 4 running"));
  EXPECT_THAT(top.out, ::testing::Not(HasSubstr("\033["))) << "escape sequences without a terminal";
  const RunResult none = RunBinary(EMBERGATE_BINARY, {"top", "--once", "--metrics", "127.0.0.1:1"});
  EXPECT_EQ(none.code, 1);
  EXPECT_THAT(none.err, HasSubstr("is the server running"));
}

TEST(ServeTest, TextComesInAndGoesOutThroughTheCommands) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const RunResult text = RunBinary(
      EMBERGATE_BINARY,
      {"generate", "--address", server.address(), "--max-tokens", "8", "--temperature", "0", "--ignore-eos", "--stats"},
      "Hello from standard input");
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.err, HasSubstr("8 out"));
  const RunResult chat = RunBinary(EMBERGATE_BINARY,
                                   {"chat", "--address", server.address(), "--max-tokens", "6", "--temperature", "0",
                                    "--ignore-eos", "--system", "Be brief."},
                                   "Hi there\n/stats\nAgain, \\\nplease\n/reset\n/quit\n");
  EXPECT_EQ(chat.code, 0) << chat.err;
  EXPECT_THAT(chat.out, HasSubstr("6 out"));
  EXPECT_THAT(chat.out, HasSubstr("forgotten"));
  EXPECT_THAT(chat.out, ::testing::Not(HasSubstr("\033["))) << "colours without a terminal";
  const RunResult score =
      RunBinary(EMBERGATE_BINARY, {"score", "--address", server.address(), "--prompt-ids", "2,17,4", "--top", "2"});
  EXPECT_EQ(score.code, 0) << score.err;
  EXPECT_THAT(score.out, HasSubstr("perplexity"));
  const RunResult info = RunBinary(EMBERGATE_BINARY, {"info", "--address", server.address()});
  EXPECT_EQ(info.code, 0) << info.err;
  EXPECT_THAT(info.out, HasSubstr("gemma4"));
  const RunResult health = RunBinary(EMBERGATE_BINARY, {"health", "--address", server.address()});
  EXPECT_EQ(health.code, 0) << health.err;
  EXPECT_EQ(health.out, "SERVING\n");
  EXPECT_THAT(server.log(), ::testing::Not(HasSubstr("Hello"))) << "a prompt in the log";
}

TEST(ServeTest, BothReadersGiveTheSameAnswersAndSayWhoTheyAre) {
  const std::string model = GoldenGguf("gemma3n-tiny-e2b", storage::TensorType::kQ8_0);
  ServerProcess automatic(EMBERGATE_BINARY, ServeArgs(model, {"--row-cache", "0"}));
  ServerProcess pread(EMBERGATE_BINARY, ServeArgs(model, {"--row-cache", "0", "--reader", "pread"}));
  ASSERT_TRUE(automatic.WaitReady());
  ASSERT_TRUE(pread.WaitReady());
  const auto first = Stub(automatic);
  const auto second = Stub(pread);
  for (int i = 0; i < 4; ++i) {
    const v1::GenerateRequest request = GreedyRequest({2, 30 + i, 77, 9, 200 - i}, 20);
    const Answer a = Generate(*first, request);
    const Answer b = Generate(*second, request);
    ASSERT_TRUE(a.status.ok() && b.status.ok());
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_GT(a.finished.receipt().flash_bytes(), 0u);
  }
  EXPECT_THAT(test::HttpGet(pread.metrics_port(), "/metrics"), HasSubstr("backend=\"pread\""));
  // Where io_uring is refused (a container, a sysctl), the fallback has to give its reason.
  const std::string page = test::HttpGet(automatic.metrics_port(), "/metrics");
  EXPECT_THAT(page, ::testing::AnyOf(HasSubstr("backend=\"io_uring\""),
                                     ::testing::ContainsRegex("backend=\"pread\",reason=\"[^\"]+\"")));
  EXPECT_THAT(page, ::testing::ContainsRegex("embergate_flash_reads_total [1-9]"));
}

TEST(ServeTest, ConcurrentStreamsEqualTheirSoloRuns) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const auto stub = Stub(server);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> prompt = {2};
    for (int k = 0; k < 5 + 11 * i; ++k) {
      prompt.push_back(20 + (k * 37 + i * 101) % 400);
    }
    requests.push_back(GreedyRequest(prompt, 30));
    if (i % 2 == 1) {
      requests.back().mutable_sampling()->set_temperature(0.9f);
      requests.back().mutable_sampling()->set_seed(1234);
    }
  }
  std::vector<Answer> solo;
  for (const v1::GenerateRequest& request : requests) {
    solo.push_back(Generate(*stub, request));
  }
  std::vector<Answer> together(requests.size());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back([&, i] { together[i] = Generate(*stub, requests[i]); });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(solo[i].status.ok() && together[i].status.ok());
    EXPECT_EQ(solo[i].ids.size(), 30u);
    EXPECT_EQ(together[i].ids, solo[i].ids) << i;
  }
}

TEST(ServeTest, SigtermLetsRunningStreamsFinish) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(server.WaitReady());
  const auto stub = Stub(server);
  const auto context = BoundedContext();
  const auto reader = stub->Generate(context.get(), GreedyRequest({2, 5, 6}, 150));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  server.Signal(SIGTERM);
  int tokens = 0;
  bool finished = false;
  while (reader->Read(&response)) {
    tokens += response.delta().ids_size();
    finished = finished || response.has_finished();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(finished);
  EXPECT_EQ(tokens, 150);
  EXPECT_EQ(server.WaitExit(), 0);
  EXPECT_THAT(server.log(), HasSubstr("draining"));
}

TEST(ServeTest, KilledServerStartsAgainAtOnce) {
  const std::string model = GoldenGguf("gemma4-tiny-e2b");
  std::vector<int32_t> before;
  {
    ServerProcess server(EMBERGATE_BINARY, ServeArgs(model));
    ASSERT_TRUE(server.WaitReady());
    const auto stub = Stub(server);
    before = Generate(*stub, GreedyRequest({2, 5, 6}, 10)).ids;
    const auto context = BoundedContext();
    const auto reader = stub->Generate(context.get(), GreedyRequest({2, 5, 6}, 150));
    v1::GenerateResponse response;
    ASSERT_TRUE(reader->Read(&response));
    server.Signal(SIGKILL);
    while (reader->Read(&response)) {
    }
    // Its 150 tokens may all have been on their way already.
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_EQ(server.WaitExit(), 128 + SIGKILL);
  }
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(model));
  ASSERT_TRUE(server.WaitReady());
  EXPECT_EQ(Generate(*Stub(server), GreedyRequest({2, 5, 6}, 10)).ids, before);
}

TEST(ServeTest, SettingsComeFromFileAndEnvironment) {
  const test::TempFolder folder;
  const std::string config = folder.Write(
      "embergate.toml",
      absl::StrCat("model = \"", GoldenGguf("gemma4-tiny-e2b"), "\"\ncontext = 96\nslots = 3\nlog-json = true\n"));
  setenv("EMBERGATE_SLOTS", "5", 1);
  ServerProcess server(EMBERGATE_BINARY, {"--config", config});
  unsetenv("EMBERGATE_SLOTS");
  // In JSON, the log's "ready" does not end its line.
  std::string log;
  for (int i = 0; i < 2000 && log.find("\"ready\"") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    log = server.log();
  }
  int lines = 0;
  std::istringstream stream(log);
  for (std::string line; std::getline(stream, line); ++lines) {
    EXPECT_FALSE(nlohmann::json::parse(line, nullptr, false).is_discarded()) << line;
  }
  EXPECT_GT(lines, 5);
  EXPECT_THAT(log, HasSubstr("context 96 tokens, 5 requests at once"));
}

TEST(ServeTest, RefusesWhatItCannotServeByName) {
  const test::TempFolder folder;
  // Truncated in the middle of the tensors.
  const std::string whole = test::ReadFile(GoldenGguf("gemma4-tiny-e2b"));
  const std::string truncated = folder.Write("truncated.gguf", whole.substr(0, whole.size() / 2));
  const std::string nonsense = folder.Write("nonsense.gguf", std::string(100000, 'x'));
  const std::string llama = folder.File("llama.gguf");
  {
    auto writer = storage::GgufWriter::Create(llama);
    ASSERT_TRUE(writer.ok()) << writer.status();
    (*writer)->AddString("general.architecture", "llama");
    ASSERT_TRUE((*writer)->AddTensor("token_embd.weight", storage::TensorType::kF32, {32, 4}).ok());
    ASSERT_TRUE((*writer)->BeginData().ok());
    ASSERT_TRUE((*writer)->AppendData(std::vector<uint8_t>(32 * 4 * 4)).ok());
    ASSERT_TRUE((*writer)->Finish().ok());
  }
  struct Row {
    std::string path;
    std::string says;
  };
  const Row rows[] = {{truncated, "truncated.gguf"},
                      {nonsense, "nonsense.gguf"},
                      {llama, "llama"},
                      {folder.File("missing.gguf"), "missing.gguf"}};
  for (const Row& row : rows) {
    ServerProcess server(EMBERGATE_BINARY, ServeArgs(row.path));
    EXPECT_EQ(server.WaitExit(), 2) << row.path;
    EXPECT_THAT(server.log(), HasSubstr("cannot serve the model")) << row.path;
    EXPECT_THAT(server.log(), HasSubstr(row.says)) << row.path;
  }
  ServerProcess refused(EMBERGATE_BINARY, ServeArgs(llama));
  EXPECT_EQ(refused.WaitExit(), 2);
  EXPECT_THAT(refused.log(), ::testing::AllOf(HasSubstr("gemma4"), HasSubstr("gemma3n"))) << "what it does serve";
}

TEST(ServeTest, TowersInTheFileAreSteppedOverInOneLine) {
  const test::TempFolder folder;
  engine::GgufEdit edit;
  edit.add = {{"v.patch_embd.weight", {64, 64}}, {"a.conv1d.weight", {32, 32}}, {"mm.input_projection.weight", {8, 8}}};
  const std::string path = folder.File("towers.gguf");
  engine::EditGguf(GoldenGguf("gemma4-tiny-e2b"), path, edit);
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(path));
  ASSERT_TRUE(server.WaitReady());
  const std::string log = server.log();
  const size_t at = log.find("stepped over: 3 tensors, 20.2 KiB");
  ASSERT_NE(at, std::string::npos) << log;
  EXPECT_EQ(log.find("stepped over", at + 1), std::string::npos);
  EXPECT_TRUE(Generate(*Stub(server), GreedyRequest({2, 5, 6}, 3)).status.ok());
}

TEST(ServeTest, BudgetThatCannotHoldTheModelSaysWhatWould) {
  std::vector<std::string> args = {"--model", GoldenGguf("gemma4-tiny-e2b"), "--dram-budget", "1MiB"};
  ServerProcess server(EMBERGATE_BINARY, args);
  EXPECT_EQ(server.WaitExit(), 2);
  EXPECT_THAT(server.log(), HasSubstr("the DRAM budget of 1 MiB cannot hold this model"));
  EXPECT_THAT(server.log(), HasSubstr("the smallest budget that would do"));
  EXPECT_THAT(server.log(), HasSubstr("to need less: --"));
}

TEST(ServeTest, TheTableOfPartsIsInTheLogAndInTheModelsInfo) {
  const std::vector<std::string> args = {"--context",     "160", "--slots", "4",
                                         "--threads",     "2",   "--model", GoldenGguf("gemma4-tiny-e2b"),
                                         "--dram-budget", "1GiB"};
  ServerProcess server(EMBERGATE_BINARY, args);
  ASSERT_TRUE(server.WaitReady());
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(Stub(server)->GetModelInfo(BoundedContext().get(), v1::GetModelInfoRequest(), &info).ok());
  const v1::Memory& memory = info.memory();
  EXPECT_EQ(memory.budget_bytes(), 1u << 30);
  const std::string log = server.log();
  const std::string table = log.substr(std::min(log.size(), log.find("DRAM by part:")));
  uint64_t total = 0;
  std::vector<std::string> names;
  for (const v1::Memory::Part& part : memory.parts()) {
    EXPECT_THAT(table, HasSubstr(absl::StrCat("  ", part.name(), " ")));
    names.push_back(part.name());
    total += part.bytes();
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("weights", "kv_cache", "prefix_cache", "row_cache", "row_buffers",
                                                     "scratch", "logits_and_sampler", "tokenizer", "binary",
                                                     "grpc_buffers", "requests", "allocator_slack"));
  EXPECT_EQ(memory.total_bytes(), total);
  EXPECT_LE(total, memory.budget_bytes());
}

TEST(ServeTest, TakenPortIsRefused) {
  ServerProcess first(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b")));
  ASSERT_TRUE(first.WaitReady());
  const RunResult second = RunBinary(EMBERGATE_BINARY, {"serve", "--model", GoldenGguf("gemma4-tiny-e2b"), "--listen",
                                                        first.address(), "--metrics", "off"});
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.err, HasSubstr("cannot listen"));
}

// Its hot list is a pipe: the load comes to an end when somebody writes there.
TEST(ServeTest, ListensWhenReadyIfToldSo) {
  const test::TempFolder folder;
  const std::string pipe = folder.File("hot-list");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string model = GoldenGguf("gemma4-tiny-e2b");
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(model, {"--listen-when", "ready", "--hot-list", pipe}));
  const auto word_after = [&](const std::string& before) {
    const std::string log = server.log();
    const size_t at = log.find(before);
    const size_t end = at == std::string::npos ? at : log.find_first_of(" \n", at + before.size());
    return end == std::string::npos ? "" : log.substr(at + before.size(), end - at - before.size());
  };
  ASSERT_TRUE(test::Eventually([&] { return !word_after("metrics on port ").empty(); })) << server.log();
  const std::string address = word_after("connections to ");
  const int metrics_port = std::atoi(word_after("metrics on port ").c_str());
  ASSERT_TRUE(test::Eventually([&] {
    return absl::StrContains(test::HttpGet(metrics_port, "/metrics"), "\nembergate_load_progress_ratio 1\n");
  }));
  EXPECT_THAT(test::HttpGet(metrics_port, "/metrics"), HasSubstr("\nembergate_ready 0\n"));
  const RunResult health = RunBinary(EMBERGATE_BINARY, {"health", "--address", address});
  EXPECT_EQ(health.code, 1);
  EXPECT_THAT(health.err, HasSubstr("Connection refused"));
  // Who wants the same address is told at once, and not when its model is loaded.
  ServerProcess second(EMBERGATE_BINARY,
                       ServeArgs(model, {"--listen-when", "ready", "--listen", address, "--hot-list", pipe}));
  EXPECT_EQ(second.WaitExit(), 1);
  EXPECT_THAT(second.log(), HasSubstr("cannot listen on " + address));
  std::ofstream(pipe).close();
  ASSERT_TRUE(server.WaitReady());
  EXPECT_EQ(server.address(), address);
  EXPECT_EQ(RunBinary(EMBERGATE_BINARY, {"health", "--address", address}).out, "SERVING\n");
  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(), 0);
}

TEST(ServeTest, ClientsSayWhenNobodyListens) {
  const RunResult result = RunBinary(
      EMBERGATE_BINARY, {"generate", "--prompt", "x", "--address", "unix:/nowhere/embergate.sock", "--timeout", "5"});
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("UNAVAILABLE"));
  EXPECT_EQ(RunBinary(EMBERGATE_BINARY, {"health", "--address", "unix:/nowhere/embergate.sock"}).code, 1);
}

TEST(ServeTest, UnixSocketServes) {
  const test::TempFolder folder;
  const std::string address = "unix:" + folder.File("embergate.sock");
  ServerProcess server(EMBERGATE_BINARY, ServeArgs(GoldenGguf("gemma4-tiny-e2b"), {"--listen", address}));
  ASSERT_TRUE(server.WaitReady());
  EXPECT_EQ(RunBinary(EMBERGATE_BINARY, {"health", "--address", address}).code, 0);
}

}  // namespace
}  // namespace embergate
