// The trained demo model (tests/demo_model) through the real binary: what it answers to questions that training never
// saw is right, whichever way the server is told to compute it.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using nlohmann::json;
using test::RunBinary;
using test::RunResult;
using test::ServerProcess;
using ::testing::HasSubstr;

// Shares of the questions that have to be answered exactly.
constexpr double kBar = 0.98;
constexpr double kBarQ4 = 0.97;  // with weights of four bits

const std::string kFolder = EMBERGATE_SOURCE_DIR "/tests/demo_model";
const std::string kModel = kFolder + "/demo.gguf";

struct Question {
  std::string category;
  v1::ChatInput chat;
  json answer;  // {"text": ..} or {"call": name, "arguments": {..}}
};

v1::ChatMessage Message(const json& from) {
  static const std::map<std::string, v1::ChatMessage::Role> kRoles = {{"system", v1::ChatMessage::ROLE_SYSTEM},
                                                                      {"user", v1::ChatMessage::ROLE_USER},
                                                                      {"assistant", v1::ChatMessage::ROLE_ASSISTANT},
                                                                      {"tool", v1::ChatMessage::ROLE_TOOL}};
  v1::ChatMessage message;
  message.set_role(kRoles.at(from["role"]));
  message.set_content(from.value("content", ""));
  for (const json& call : from.value("calls", json::array())) {
    v1::ToolCall& to = *message.add_tool_calls();
    to.set_id(call["id"]);
    to.set_name(call["name"]);
    to.set_arguments_json(call["arguments"].dump());
  }
  if (from.contains("result")) {
    message.set_tool_call_id(from["tool_call_id"]);
    message.set_tool_result_json(from["result"].dump());
  }
  return message;
}

std::vector<Question> ReadQuestions() {
  std::vector<Question> questions;
  std::ifstream file(kFolder + "/held_out.jsonl");
  for (std::string line; std::getline(file, line);) {
    const json from = json::parse(line);
    Question question{from["category"], {}, from["answer"]};
    for (const json& message : from["messages"]) {
      *question.chat.add_messages() = Message(message);
    }
    for (const json& tool : from["tools"]) {
      v1::Tool& to = *question.chat.add_tools();
      to.set_name(tool["name"]);
      to.set_description(tool["description"]);
      to.set_parameters_json(tool["parameters"].dump());
    }
    questions.push_back(std::move(question));
  }
  return questions;
}

struct Answer {
  grpc::Status status;
  std::string text;
  std::vector<v1::ToolCall> calls;
  v1::Finished finished;
};

Answer Ask(v1::Inference::Stub& stub, const Question& question) {
  v1::GenerateRequest request;
  *request.mutable_chat() = question.chat;
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(64);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(600));
  const auto reader = stub.Generate(&context, request);
  Answer answer;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    answer.text += response.delta().text();
    answer.calls.insert(answer.calls.end(), response.delta().tool_calls().begin(), response.delta().tool_calls().end());
    if (response.has_finished()) {
      answer.finished = response.finished();
    }
  }
  answer.status = reader->Finish();
  return answer;
}

// What came, in the form of Question::answer.
json AsJson(const Answer& answer) {
  if (answer.calls.size() == 1 && answer.text.empty()) {
    return {{"call", answer.calls[0].name()},
            {"arguments", json::parse(answer.calls[0].arguments_json(), nullptr, false)}};
  }
  return {{"text", answer.text}};
}

std::vector<Answer> AskAll(const ServerProcess& server, const std::vector<Question>& questions, int clients) {
  std::vector<Answer> answers(questions.size());
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < clients; ++i) {
    threads.emplace_back([&] {
      const auto stub =
          v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
      for (size_t at = next++; at < questions.size(); at = next++) {
        answers[at] = Ask(*stub, questions[at]);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return answers;
}

void ExpectRight(const std::vector<Question>& questions, const std::vector<Answer>& answers, double bar,
                 const std::string& how) {
  std::map<std::string, std::pair<int, int>> by_category;  // right, all
  size_t right = 0;
  std::string wrong;
  for (size_t i = 0; i < questions.size(); ++i) {
    ASSERT_TRUE(answers[i].status.ok()) << how << ": " << answers[i].status.error_message();
    const json got = AsJson(answers[i]);
    const bool good = got == questions[i].answer;
    right += good;
    by_category[questions[i].category].first += good;
    by_category[questions[i].category].second += 1;
    if (!good) {
      absl::StrAppend(&wrong, "  line ", i + 1, ": ", got.dump(), ", not ", questions[i].answer.dump(), "\n");
    }
  }
  std::string table;
  for (const auto& [category, count] : by_category) {
    absl::StrAppend(&table, ", ", category, " ", count.first, "/", count.second);
  }
  std::printf("%s: %zu of %zu right%s\n%s", how.c_str(), right, questions.size(), table.c_str(), wrong.c_str());
  EXPECT_GE(static_cast<double>(right), bar * static_cast<double>(questions.size())) << how;
}

std::vector<std::string> ServeArgs(std::vector<std::string> more, const std::string& model = kModel) {
  more.insert(more.end(), {"--model", model, "--context", "1024", "--dram-budget", "0", "--threads", "2"});
  return more;
}

class DemoModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    questions_ = ReadQuestions();
    ASSERT_EQ(questions_.size(), 200u);
  }

  std::vector<Question> questions_;
};

// A weaker model, or an answer that is only nearly right, must not pass.
TEST_F(DemoModelTest, TheQuestionsTellModelsApart) {
  std::map<std::string, int> answers;
  for (const Question& question : questions_) {
    ++answers[question.answer.dump()];
  }
  for (const auto& [answer, count] : answers) {
    EXPECT_LE(count, 10) << answer << " would be right too often";
  }
}

TEST_F(DemoModelTest, OneByOneTogetherAndAgain) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--slots", "8"}));
  ASSERT_TRUE(server.WaitReady());
  const std::vector<Answer> alone = AskAll(server, questions_, 1);
  ExpectRight(questions_, alone, kBar, "one by one");
  const std::vector<Answer> together = AskAll(server, questions_, 8);
  ExpectRight(questions_, together, kBar, "8 together, prefixes cached");
  int cached = 0;
  for (size_t i = 0; i < questions_.size(); ++i) {
    EXPECT_EQ(AsJson(together[i]), AsJson(alone[i])) << "line " << i + 1;
    cached += together[i].finished.usage().cached_tokens() > 0;
  }
  EXPECT_GE(cached, 150) << "asked a second time, hardly a prompt went on from its first time";
}

TEST_F(DemoModelTest, TogetherWithoutPrefixCache) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--slots", "8", "--prefix-cache", "off"}));
  ASSERT_TRUE(server.WaitReady());
  const std::vector<Answer> answers = AskAll(server, questions_, 8);
  ExpectRight(questions_, answers, kBar, "8 together, every prompt computed");
  for (const Answer& answer : answers) {
    EXPECT_EQ(answer.finished.usage().cached_tokens(), 0);
  }
}

TEST_F(DemoModelTest, PromptsInChunksOfSeven) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--prefill-chunk", "7", "--prefix-cache", "off"}));
  ASSERT_TRUE(server.WaitReady());
  ExpectRight(questions_, AskAll(server, questions_, 4), kBar, "chunks of 7");
}

TEST_F(DemoModelTest, EveryRowFromFlash) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--row-cache", "0", "--prefix-cache", "off"}));
  ASSERT_TRUE(server.WaitReady());
  const std::vector<Answer> answers = AskAll(server, questions_, 4);
  ExpectRight(questions_, answers, kBar, "no row cache");
  for (const Answer& answer : answers) {
    EXPECT_GT(answer.finished.receipt().flash_bytes(), 0u);
  }
  EXPECT_THAT(test::HttpGet(server.metrics_port(), "/metrics"),
              HasSubstr("\nembergate_dram_bytes{part=\"row_cache\"} 0\n"));
}

TEST_F(DemoModelTest, EveryRowWithPread) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--row-cache", "0", "--prefix-cache", "off", "--reader", "pread"}));
  ASSERT_TRUE(server.WaitReady());
  ExpectRight(questions_, AskAll(server, questions_, 4), kBar, "pread");
  EXPECT_THAT(test::HttpGet(server.metrics_port(), "/metrics"), HasSubstr("backend=\"pread\""));
}

TEST_F(DemoModelTest, AttentionCacheOfEightBits) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--kv-type", "q8_0"}));
  ASSERT_TRUE(server.WaitReady());
  ExpectRight(questions_, AskAll(server, questions_, 4), kBar, "KV q8_0");
}

// The checkpoint as `embergate convert` makes it: without loss, and with weights of four bits.
TEST_F(DemoModelTest, OtherTypesOfWeights) {
  const test::TempFolder folder;
  const std::vector<std::pair<std::string, double>> types = {{"f32", kBar}, {"q4_0", kBarQ4}};
  for (const auto& [type, bar] : types) {
    const std::string model = absl::StrCat(folder.path(), "/", type, ".gguf");
    const RunResult convert =
        RunBinary(EMBERGATE_BINARY, {"convert", kFolder + "/checkpoint", model, "--weights", type});
    ASSERT_EQ(convert.code, 0) << convert.err;
    ServerProcess server(EMBERGATE_BINARY, ServeArgs({}, model));
    ASSERT_TRUE(server.WaitReady());
    ExpectRight(questions_, AskAll(server, questions_, 4), bar, type);
  }
}

TEST_F(DemoModelTest, TableInDramAnswersAlike) {
  ServerProcess resident(EMBERGATE_BINARY, ServeArgs({"--table-resident"}));
  ServerProcess flash(EMBERGATE_BINARY, ServeArgs({}));
  ASSERT_TRUE(resident.WaitReady());
  ASSERT_TRUE(flash.WaitReady());
  const std::vector<Answer> from_dram = AskAll(resident, questions_, 4);
  const std::vector<Answer> from_flash = AskAll(flash, questions_, 4);
  ExpectRight(questions_, from_dram, kBar, "table in DRAM");
  for (size_t i = 0; i < questions_.size(); ++i) {
    EXPECT_EQ(AsJson(from_dram[i]), AsJson(from_flash[i])) << "line " << i + 1;
  }
}

}  // namespace
}  // namespace embergate
