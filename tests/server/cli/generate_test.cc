// `embergate generate` without a server: that each flag reaches the sampler, the stop conditions and the output.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
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
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

using Ids = std::vector<int>;

class GenerateCommandTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TempFolder();
    const RunResult made =
        RunBinary(EMBERGATE_BINARY, {"convert", EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b", Model(), "--weights", "f32"});
    ASSERT_EQ(made.code, 0) << made.err;
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static std::string Model() { return folder_->File("model.gguf"); }

  static RunResult Generate(std::vector<std::string> flags, const std::string& input = "") {
    std::vector<std::string> args = {"generate", "--model", Model(), "--context", "256"};
    args.insert(args.end(), flags.begin(), flags.end());
    return RunBinary(EMBERGATE_BINARY, args, input);
  }
  // With --json, the answer; greedy unless the flags say otherwise.
  static json Answer(std::vector<std::string> flags, const std::string& input = "") {
    flags.push_back("--json");
    const RunResult result = Generate(flags, input);
    EXPECT_EQ(result.code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }
  static Ids IdsOf(const std::vector<std::string>& flags) { return Answer(flags)["ids"].get<Ids>(); }
  static std::vector<std::string> Greedy(std::vector<std::string> more) {
    std::vector<std::string> flags = {
        "--prompt-ids", "2,110,207,304,401", "--temperature", "0", "--ignore-eos", "--max-tokens", "12"};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }
  // The completions that were printed, "[1] ..." and so on. A stream prints each when it ends, and of several that
  // share a batch any may be first.
  static std::vector<std::string> Completions(const std::string& out) {
    std::vector<std::string> completions = absl::StrSplit("\n" + std::string(absl::StripSuffix(out, "\n")), "\n[");
    std::sort(completions.begin(), completions.end());
    return completions;
  }
  static std::vector<std::string> Sampled(std::vector<std::string> more, const char* seed = "7") {
    std::vector<std::string> flags = {"--prompt-ids", "2,110,207,304,401", "--seed",
                                      seed,           "--ignore-eos",      "--max-tokens",
                                      "24",           "--temperature",     "2"};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }

 private:
  static test::TempFolder* folder_;
};
test::TempFolder* GenerateCommandTest::folder_ = nullptr;

TEST_F(GenerateCommandTest, WithoutAStreamTheAnswerIsTheSame) {
  for (const std::vector<std::string>& more : std::vector<std::vector<std::string>>{
           {}, {"--logprobs", "2", "--prompt-logprobs", "1"}, {"--n", "3"}, {"--best-of", "3"}}) {
    std::vector<std::string> flags = Sampled(more);
    json streamed = Answer(flags);
    flags.push_back("--no-stream");
    json whole = Answer(flags);
    streamed.erase("receipt");  // times differ
    whole.erase("receipt");
    EXPECT_EQ(whole, streamed);
    EXPECT_EQ(Completions(Generate(flags).out), Completions(Generate(Sampled(more)).out));
  }
  EXPECT_EQ(Generate(Sampled({"--progress"})).out, Generate(Sampled({})).out);
}

TEST_F(GenerateCommandTest, ATimeLimitGoesBeforeTheNumberOfTokens) {
  const json answer = Answer(Greedy({"--time-limit", "0.000001"}));
  EXPECT_EQ(answer["finish_reason"], "time_limit");
  EXPECT_LT(answer["ids"].size(), 12u);
  EXPECT_EQ(Answer(Greedy({"--time-limit", "600"}))["finish_reason"], "length");
}

TEST_F(GenerateCommandTest, BiasForcesAndForbidsTokens) {
  EXPECT_THAT(IdsOf(Greedy({"--logit-bias", "77=1000"})), AllOf(SizeIs(12), Each(77)));
  const Ids plain = IdsOf(Greedy({}));
  ASSERT_EQ(plain.size(), 12u);
  const Ids other = IdsOf(Greedy({"--logit-bias", absl::StrCat(plain[0], "=-1000")}));
  EXPECT_EQ(std::count(other.begin(), other.end(), plain[0]), 0);
  const RunResult refused = Generate(Greedy({"--logit-bias", "77"}));
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr("--logit-bias 77 is not ID=VALUE"));
}

TEST_F(GenerateCommandTest, FiltersThatLeaveOneTokenMakeItGreedy) {
  const Ids greedy = IdsOf(Sampled({"--top-k", "1"}));
  EXPECT_EQ(Ids(greedy.begin(), greedy.begin() + 12), IdsOf(Greedy({})));
  const Ids sampled = IdsOf(Sampled({"--top-k", "0"}));
  EXPECT_NE(sampled, greedy);
  EXPECT_EQ(IdsOf(Sampled({"--top-k", "0"})), sampled) << "the same seed";
  EXPECT_NE(IdsOf(Sampled({"--top-k", "0"}, "8")), sampled);
  EXPECT_EQ(IdsOf(Sampled({"--top-k", "0", "--top-p", "0.00001"})), greedy);
  EXPECT_EQ(IdsOf(Sampled({"--top-k", "0", "--min-p", "1"})), greedy);
  EXPECT_NE(IdsOf(Sampled({"--top-k", "0", "--typical-p", "0.01"})), sampled);
}

TEST_F(GenerateCommandTest, PenaltiesLookBackAsFarAsTheirWindow) {
  // A token that is forced but for the penalty comes back as soon as it has left the window.
  const auto count = [](const Ids& ids) { return std::count(ids.begin(), ids.end(), 77); };
  const std::vector<std::string> bias = {"--logit-bias", "77=9", "--logit-bias", "78=8"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), bias.begin(), bias.end());
    return IdsOf(Greedy(more));
  };
  const auto plain = count(with({}));
  EXPECT_LT(count(with({"--presence-penalty", "10", "--penalty-window", "-1"})), plain);
  EXPECT_LT(count(with({"--frequency-penalty", "10", "--penalty-window", "-1"})), plain);
  EXPECT_EQ(count(with({"--presence-penalty", "10", "--penalty-window", "0"})), plain);
  EXPECT_GE(count(with({"--presence-penalty", "10", "--penalty-window", "1"})),
            count(with({"--presence-penalty", "10", "--penalty-window", "-1"})));
  EXPECT_NE(IdsOf(Greedy({"--repetition-penalty", "5"})), IdsOf(Greedy({})));
}

TEST_F(GenerateCommandTest, StopsAtIdsAndTextsAndShowsThemIfAsked) {
  const json plain = Answer(Greedy({"--special"}));
  const Ids ids = plain["ids"];
  const Ids before(ids.begin(), std::find(ids.begin(), ids.end(), ids[5]));
  const json stopped = Answer(Greedy({"--stop-ids", absl::StrCat(ids[5])}));
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["ids"].get<Ids>(), before);
  const json shown = Answer(Greedy({"--stop-ids", absl::StrCat("1,", ids[5]), "--include-stop"}));
  EXPECT_EQ(shown["ids"].size(), before.size() + 1);
  EXPECT_EQ(Answer(Greedy({"--stop-ids", absl::StrCat(ids[5]), "--min-tokens", "12"}))["ids"].size(), 12u);

  // A text over the border between two tokens.
  const std::string text = plain["text"];
  ASSERT_GT(text.size(), 6u);
  const std::string stop = text.substr(text.size() / 2, 2);
  const size_t at = text.find(stop);
  const json cut = Answer(Greedy({"--special", "--stop", stop}));
  EXPECT_EQ(cut["finish_reason"], "stop_string");
  EXPECT_EQ(cut["text"], text.substr(0, at));
  EXPECT_EQ(Answer(Greedy({"--special", "--stop", stop, "--include-stop"}))["text"], text.substr(0, at + stop.size()));
}

TEST_F(GenerateCommandTest, LogprobsOfOutputAndPrompt) {
  const json answer = Answer(Greedy({"--logprobs", "3", "--prompt-logprobs", "2"}));
  const Ids ids = answer["ids"];
  ASSERT_EQ(answer["logprobs"].size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const json& position = answer["logprobs"][i];
    EXPECT_EQ(position["id"], ids[i]);
    ASSERT_EQ(position["top"].size(), 3u);
    EXPECT_EQ(position["top"][0], json::array({ids[i], position["logprob"]})) << "greedy takes the likeliest";
    EXPECT_GE(position["top"][0][1].get<double>(), position["top"][1][1].get<double>());
  }
  ASSERT_EQ(answer["prompt_logprobs"].size(), 4u) << "the first token has none";
  EXPECT_EQ(answer["prompt_logprobs"][0]["id"], 110);
  EXPECT_EQ(answer["prompt_logprobs"][3]["id"], 401);
  EXPECT_EQ(answer["prompt_logprobs"][3]["top"].size(), 2u);
  EXPECT_LT(answer["prompt_logprobs"][3]["logprob"].get<double>(), 0);
  EXPECT_EQ(Answer(Greedy({}))["logprobs"], json());
}

TEST_F(GenerateCommandTest, TakesAConversationWithToolsAsRenderDoes) {
  const std::string conversation = R"({"messages":[{"role":"system","content":"Be brief."},
      {"role":"user","content":"Weather in Oslo?"},
      {"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function",
        "function":{"name":"get_weather","arguments":"{\"city\":\"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"c1","content":"{\"t\":3}"}],
    "tools":[{"type":"function","function":{"name":"get_weather","description":"Now",
      "parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]})";
  const json answer =
      Answer({"--messages", "-", "--temperature", "0", "--max-tokens", "3", "--ignore-eos"}, conversation);
  EXPECT_EQ(answer["usage"]["output_tokens"], 3);
  // As many tokens as the rendered prompt has.
  json with_object = json::parse(conversation);
  with_object["messages"][2]["tool_calls"][0]["function"]["arguments"] = {{"city", "Oslo"}};
  const RunResult rendered = RunBinary(EMBERGATE_BINARY, {"render", Model()}, with_object.dump());
  ASSERT_EQ(rendered.code, 0) << rendered.err;
  const RunResult ids =
      RunBinary(EMBERGATE_BINARY, {"tokenize", Model(), "--parse-special"}, json::array({rendered.out}).dump());
  EXPECT_EQ(answer["usage"]["input_tokens"], json::parse(ids.out)[0].size());

  const RunResult refused = Generate({"--messages", "-"}, R"({"messages":[{"role":"user"}],"tools":[7]})");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr("tools[0]"));
}

TEST_F(GenerateCommandTest, DefaultsAreThoseOfTheFile) {
  // generation_config.json of the fixture: top_k 64, top_p 0.95. With a seed, leaving them out or saying them is one.
  const std::vector<std::string> prompt = {"--prompt-ids", "2,110,207", "--seed",      "3",
                                           "--max-tokens", "16",        "--ignore-eos"};
  std::vector<std::string> spelled = prompt;
  spelled.insert(spelled.end(), {"--temperature", "1", "--top-k", "64", "--top-p", "0.95"});
  EXPECT_EQ(IdsOf(prompt), IdsOf(spelled));
}

}  // namespace
}  // namespace embergate
