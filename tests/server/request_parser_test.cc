// Every bound of a request, row by row: which field is named, and that good values pass unchanged.
#include "server/request_parser.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

ServedModel IdsModel() {
  ServedModel model;
  model.limits = {512, 100, 4, 64, 16};
  model.sampling.temperature = 0.7f;
  model.sampling.top_k = 40;
  return model;
}

std::vector<std::string> ViolatedFields(const absl::Status& status) {
  std::vector<std::string> fields;
  for (const FieldViolation& violation : DetailsOf(ToGrpc(status)).violations) {
    fields.push_back(violation.field);
  }
  return fields;
}

v1::GenerateRequest Valid() { return IdsRequest({2, 3, 4}, 10); }

struct Row {
  const char* field;
  std::function<void(v1::GenerateRequest&)> spoil;
};

TEST(RequestParserTest, EachBadFieldIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Row> rows = {
      {"input", [](auto& r) { r.clear_input(); }},
      {"input", [](auto& r) { r.mutable_token_ids()->clear_ids(); }},
      {"input", [](auto& r) { r.mutable_token_ids()->mutable_ids()->Resize(100, 5); }},
      {"token_ids.ids", [](auto& r) { r.mutable_token_ids()->mutable_ids()->Resize(101, 5); }},
      {"token_ids.ids[1]", [](auto& r) { r.mutable_token_ids()->set_ids(1, 512); }},
      {"token_ids.ids[0]", [](auto& r) { r.mutable_token_ids()->set_ids(0, -1); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-0.1f); }},
      {"sampling.temperature", [=](auto& r) { r.mutable_sampling()->set_temperature(nan); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(INFINITY); }},
      {"sampling.top_k", [](auto& r) { r.mutable_sampling()->set_top_k(-1); }},
      {"sampling.top_k", [](auto& r) { r.mutable_sampling()->set_top_k(513); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", [=](auto& r) { r.mutable_sampling()->set_top_p(nan); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(1.5f); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1.1f); }},
      {"sampling.typical_p", [](auto& r) { r.mutable_sampling()->set_typical_p(0); }},
      {"sampling.repetition_penalty", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.repetition_penalty", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(11); }},
      {"sampling.presence_penalty", [](auto& r) { r.mutable_sampling()->set_presence_penalty(-11); }},
      {"sampling.frequency_penalty", [](auto& r) { r.mutable_sampling()->set_frequency_penalty(11); }},
      {"sampling.penalty_window", [](auto& r) { r.mutable_sampling()->set_penalty_window(-2); }},
      {"sampling.penalty_window", [](auto& r) { r.mutable_sampling()->set_penalty_window(101); }},
      {"sampling.logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[512] = 1; }},
      {"sampling.logit_bias", [=](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = nan; }},
      {"sampling.logit_bias",
       [](auto& r) {
         for (int i = 0; i < 1025; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
       }},
      {"stopping.max_tokens", [](auto& r) { r.mutable_stopping()->set_max_tokens(0); }},
      {"stopping.max_tokens", [](auto& r) { r.mutable_stopping()->set_max_tokens(98); }},
      {"stopping.max_tokens", [](auto& r) { r.mutable_stopping()->set_max_tokens(-5); }},
      {"stopping.min_tokens", [](auto& r) { r.mutable_stopping()->set_min_tokens(11); }},
      {"stopping.min_tokens", [](auto& r) { r.mutable_stopping()->set_min_tokens(-1); }},
      {"stopping.stop[0]", [](auto& r) { r.mutable_stopping()->add_stop(""); }},
      {"stopping.stop[0]", [](auto& r) { r.mutable_stopping()->add_stop(std::string(257, 'x')); }},
      {"stopping.stop",
       [](auto& r) {
         for (int i = 0; i < 17; ++i) r.mutable_stopping()->add_stop("x");
       }},
      {"stopping.stop", [](auto& r) { r.mutable_stopping()->add_stop("no tokenizer"); }},
      {"stopping.stop_ids[0]", [](auto& r) { r.mutable_stopping()->add_stop_ids(512); }},
      {"stopping.stop_ids", [](auto& r) { r.mutable_stopping()->mutable_stop_ids()->Resize(65, 1); }},
      {"logprobs.output_top", [](auto& r) { r.mutable_logprobs()->set_output_top(21); }},
      {"logprobs.prompt_top", [](auto& r) { r.mutable_logprobs()->set_prompt_top(-1); }},
      {"n", [](auto& r) { r.set_n(17); }},
      {"n", [](auto& r) { r.set_n(-1); }},
      {"request_id", [](auto& r) { r.set_request_id(std::string(129, 'a')); }},
      {"request_id", [](auto& r) { r.set_request_id("line\nbreak"); }},
      {"client_key", [](auto& r) { r.set_client_key(std::string(129, 'a')); }},
      {"time_limit", [](auto& r) { r.mutable_time_limit(); }},  // zero
      {"time_limit", [](auto& r) { r.mutable_time_limit()->set_seconds(-1); }},
      {"time_limit", [](auto& r) { r.mutable_time_limit()->set_seconds(INT64_MAX); }},
      {"time_limit", [](auto& r) { r.mutable_time_limit()->set_nanos(1'000'000'000); }},
      {"time_limit", [](auto& r) { r.mutable_time_limit()->set_nanos(-1); }},
      {"time_limit",
       [](auto& r) {
         r.mutable_time_limit()->set_seconds(86'400);
         r.mutable_time_limit()->set_nanos(1);
       }},
      {"priority", [](auto& r) { r.set_priority(static_cast<v1::Priority>(77)); }},
  };
  const ServedModel model = IdsModel();
  for (size_t i = 0; i < rows.size(); ++i) {
    v1::GenerateRequest request = Valid();
    rows[i].spoil(request);
    const auto parsed = ParseGenerateRequest(request, model, RequestLimits(), 1);
    ASSERT_FALSE(parsed.ok()) << "row " << i << ", " << rows[i].field;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(ViolatedFields(parsed.status()), ::testing::Contains(rows[i].field)) << "row " << i;
  }
}

TEST(RequestParserTest, AllViolationsAreReportedTogether) {
  v1::GenerateRequest request = Valid();
  request.mutable_sampling()->set_temperature(-1);
  request.mutable_sampling()->set_top_p(2);
  request.mutable_stopping()->set_max_tokens(-1);
  const auto parsed = ParseGenerateRequest(request, IdsModel(), RequestLimits(), 1);
  EXPECT_THAT(ViolatedFields(parsed.status()),
              ::testing::ElementsAre("sampling.temperature", "sampling.top_p", "stopping.max_tokens"));
}

TEST(RequestParserTest, DefaultsComeFromTheModel) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  const auto parsed = ParseGenerateRequest(request, IdsModel(), RequestLimits(), 99);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FLOAT_EQ(parsed->sampling.temperature, 0.7f);
  EXPECT_EQ(parsed->sampling.top_k, 40);
  EXPECT_EQ(parsed->sampling.seed, 99u);
  EXPECT_EQ(parsed->stop.tokens_max, 99) << "256 cut to what the context leaves";
  EXPECT_FALSE(parsed->want_logprobs);
  EXPECT_EQ(parsed->time_limit, absl::InfiniteDuration());
}

TEST(RequestParserTest, ZeroIsAValueOfItsOwn) {
  v1::GenerateRequest request = Valid();
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  request.mutable_sampling()->set_seed(0);
  const auto parsed = ParseGenerateRequest(request, IdsModel(), RequestLimits(), 99);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->sampling.temperature, 0);
  EXPECT_EQ(parsed->sampling.top_k, 0);
  EXPECT_EQ(parsed->sampling.seed, 0u);
}

TEST(RequestParserTest, AllFieldsArrive) {
  v1::GenerateRequest request = Valid();
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(3);
  sampling.set_top_p(0.25f);
  sampling.set_min_p(0.125f);
  sampling.set_typical_p(0.75f);
  sampling.set_repetition_penalty(1.5f);
  sampling.set_presence_penalty(-2);
  sampling.set_frequency_penalty(3);
  sampling.set_penalty_window(-1);
  (*sampling.mutable_logit_bias())[9] = -1000;
  (*sampling.mutable_logit_bias())[4] = 2;
  sampling.set_seed(5);
  request.mutable_stopping()->set_min_tokens(2);
  request.mutable_stopping()->add_stop_ids(8);
  request.mutable_stopping()->set_include_stop(true);
  request.set_special_in_text(true);
  request.mutable_logprobs()->set_output(true);
  request.mutable_logprobs()->set_prompt_top(4);
  request.mutable_time_limit()->set_seconds(86'399);
  request.mutable_time_limit()->set_nanos(999'999'999);
  const auto parsed = ParseGenerateRequest(request, IdsModel(), RequestLimits(), 1);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->time_limit, absl::Hours(24) - absl::Nanoseconds(1));
  const engine::SamplingParams& s = parsed->sampling;
  EXPECT_FLOAT_EQ(s.temperature, 0.5f);
  EXPECT_EQ(s.top_k, 3);
  EXPECT_FLOAT_EQ(s.top_p, 0.25f);
  EXPECT_FLOAT_EQ(s.min_p, 0.125f);
  EXPECT_FLOAT_EQ(s.typical_p, 0.75f);
  EXPECT_FLOAT_EQ(s.repetition_penalty, 1.5f);
  EXPECT_FLOAT_EQ(s.presence_penalty, -2);
  EXPECT_FLOAT_EQ(s.frequency_penalty, 3);
  EXPECT_EQ(s.penalty_window, -1);
  EXPECT_THAT(s.logit_bias,
              ::testing::ElementsAre(std::pair<int32_t, float>(4, 2), std::pair<int32_t, float>(9, -1000)));
  EXPECT_EQ(parsed->prompt, (std::vector<int32_t>{2, 3, 4}));
  EXPECT_EQ(parsed->stop.tokens_max, 10);
  EXPECT_EQ(parsed->stop.tokens_min, 2);
  EXPECT_THAT(parsed->stop.stop_ids, ::testing::ElementsAre(8));
  EXPECT_TRUE(parsed->stop.ignore_eos);
  EXPECT_TRUE(parsed->stop.include_stop);
  EXPECT_TRUE(parsed->special_in_text);
  EXPECT_TRUE(parsed->want_logprobs);
  EXPECT_TRUE(parsed->prompt_logprobs);
  EXPECT_EQ(parsed->prompt_top_logprobs, 4);
}

TEST(RequestParserTest, AWholeAnswerIsBounded) {
  ServedModel model = IdsModel();
  model.limits.context_max = 20'000;
  v1::GenerateRequest request = IdsRequest(std::vector<int32_t>(1000, 7), 6250);
  request.set_n(16);  // 100,000 tokens
  const auto parse = [&] { return ParseGenerateOnceRequest(request, model, RequestLimits(), 1).status(); };
  EXPECT_TRUE(parse().ok()) << parse();
  request.mutable_logprobs()->set_prompt(true);
  EXPECT_THAT(ViolatedFields(parse()), ::testing::ElementsAre("stopping.max_tokens"));
  request.set_n(1);
  request.mutable_logprobs()->set_output_top(14);
  EXPECT_TRUE(parse().ok()) << parse();  // 15 * 6250 + 1000
  request.mutable_logprobs()->set_prompt_top(6);
  EXPECT_EQ(parse().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(ParseGenerateRequest(request, model, RequestLimits(), 1).ok()) << "a stream has no such bound";
}

TEST(RequestParserTest, TextNeedsATokenizer) {
  v1::GenerateRequest request;
  request.mutable_text()->set_text("hello");
  EXPECT_EQ(ParseGenerateRequest(request, IdsModel(), RequestLimits(), 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
  request.mutable_chat()->add_messages()->set_role(v1::ChatMessage::ROLE_USER);
  EXPECT_EQ(ParseGenerateRequest(request, IdsModel(), RequestLimits(), 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

class TextRequestTest : public ::testing::Test {
 protected:
  TextRequestTest() {
    model_ = IdsModel();
    tokenizer_ = GoldenTokenizer();
    model_.tokenizer = tokenizer_.get();
    model_.chat_format = engine::ChatFormat::kGemma4;
  }
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  ServedModel model_;
};

TEST_F(TextRequestTest, BosIsTheFilesChoiceUnlessTheRequestSays) {
  v1::GenerateRequest request;
  request.mutable_text()->set_text("a b");
  auto parsed = ParseGenerateRequest(request, model_, RequestLimits(), 1);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const std::vector<int32_t> with_bos = parsed->prompt;
  EXPECT_EQ(with_bos.front(), tokenizer_->vocabulary().bos_id);
  request.mutable_text()->set_add_bos(false);
  parsed = ParseGenerateRequest(request, model_, RequestLimits(), 1);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->prompt, std::vector<int32_t>(with_bos.begin() + 1, with_bos.end()));
}

TEST_F(TextRequestTest, ControlTokensInTextAreTextUnlessAskedFor) {
  v1::TokenizeRequest request;
  request.mutable_text()->set_text("<|turn>");
  request.mutable_text()->set_add_bos(false);
  auto ids = ParseTokenizeRequest(request, model_, RequestLimits());
  ASSERT_TRUE(ids.ok());
  const int32_t turn = tokenizer_->FindPiece("<|turn>");
  ASSERT_GE(turn, 0);
  EXPECT_THAT(*ids, ::testing::Not(::testing::Contains(turn)));
  request.mutable_text()->set_parse_special(true);
  ids = ParseTokenizeRequest(request, model_, RequestLimits());
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ::testing::ElementsAre(turn));
}

TEST_F(TextRequestTest, LongTextIsRefusedBeforeItIsTokenized) {
  v1::GenerateRequest request;
  request.mutable_text()->set_text(std::string(2048, 'x'));
  RequestLimits limits;
  limits.prompt_bytes_max = 2000;
  const auto parsed = ParseGenerateRequest(request, model_, limits, 1);
  EXPECT_THAT(ViolatedFields(parsed.status()), ::testing::ElementsAre("text.text"));
  EXPECT_FALSE(absl::StrContains(parsed.status().message(), "xxx")) << "the prompt is quoted";
}

struct ChatRow {
  const char* field;
  std::function<void(v1::ChatInput&)> spoil;
};

TEST_F(TextRequestTest, EachBadChatFieldIsNamed) {
  const std::string deep = std::string(40, '[') + std::string(40, ']');
  const std::vector<ChatRow> rows = {
      {"chat.messages", [](auto& c) { c.clear_messages(); }},
      {"chat.messages",
       [](auto& c) {
         for (int i = 0; i < 1025; ++i) c.add_messages()->set_role(v1::ChatMessage::ROLE_USER);
       }},
      {"chat.messages[0].role", [](auto& c) { c.mutable_messages(0)->set_role(v1::ChatMessage::ROLE_UNSPECIFIED); }},
      {"chat.messages[0].role",
       [](auto& c) { c.mutable_messages(0)->set_role(static_cast<v1::ChatMessage::Role>(99)); }},
      {"chat.messages[0].tool_calls", [](auto& c) { c.mutable_messages(0)->add_tool_calls()->set_name("f"); }},
      {"chat.messages[0].tool_result_json", [](auto& c) { c.mutable_messages(0)->set_tool_result_json("{"); }},
      {"chat.messages[0].tool_result_json", [](auto& c) { c.mutable_messages(0)->set_tool_result_json("[1]"); }},
      {"chat.messages[0].tool_result_json",
       [&](auto& c) { c.mutable_messages(0)->set_tool_result_json("{\"a\":" + deep + "}"); }},
      {"chat.tools[0].name", [](auto& c) { c.add_tools()->set_name("bad name"); }},
      {"chat.tools[0].name", [](auto& c) { c.add_tools(); }},
      {"chat.tools[0].parameters_json",
       [](auto& c) {
         c.add_tools()->set_name("f");
         c.mutable_tools(0)->set_parameters_json("nonsense");
       }},
      {"chat.tools",
       [](auto& c) {
         for (int i = 0; i < 129; ++i) c.add_tools()->set_name("f");
       }},
      {"chat", [](auto& c) { c.mutable_messages(0)->set_content(std::string((1 << 20) + 1, 'x')); }},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    v1::GenerateRequest request;
    v1::ChatMessage& message = *request.mutable_chat()->add_messages();
    message.set_role(v1::ChatMessage::ROLE_USER);
    message.set_content("hello");
    rows[i].spoil(*request.mutable_chat());
    const auto parsed = ParseGenerateRequest(request, model_, RequestLimits(), 1);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << "row " << i;
    EXPECT_THAT(ViolatedFields(parsed.status()), ::testing::Contains(rows[i].field)) << "row " << i;
  }
}

TEST(ScoreRequestTest, BoundsTheAnswer) {
  ServedModel model = IdsModel();
  model.limits.vocab_size = 5000;
  model.limits.context_max = 4096;
  v1::ScoreRequest request;
  request.mutable_token_ids()->mutable_ids()->Resize(200, 5);
  request.set_top(499);
  ASSERT_TRUE(ParseScoreRequest(request, model, RequestLimits()).ok());
  request.set_top(500);
  EXPECT_THAT(ViolatedFields(ParseScoreRequest(request, model, RequestLimits()).status()),
              ::testing::ElementsAre("top"));
  request.set_top(1001);
  EXPECT_THAT(ViolatedFields(ParseScoreRequest(request, model, RequestLimits()).status()), ::testing::Contains("top"));
  request.clear_input();
  request.set_top(0);
  EXPECT_THAT(ViolatedFields(ParseScoreRequest(request, model, RequestLimits()).status()),
              ::testing::ElementsAre("input"));
}

}  // namespace
}  // namespace embergate::server
