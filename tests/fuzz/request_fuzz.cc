// Any bytes as a request of each RPC: what is a message of its type must become a request that keeps the engine's
// bounds, or be refused with one of the two codes that say so and a reason.
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "embergate/v1/generate.pb.h"
#include "embergate/v1/score.pb.h"
#include "embergate/v1/tokenize.pb.h"
#include "server/chat_input.h"
#include "server/request_parser.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

namespace {

namespace v1 = embergate::v1;
using embergate::engine::FuzzRequire;
using embergate::engine::FuzzTokenizer;
using embergate::engine::GenerateRequest;
using embergate::server::RequestLimits;
using embergate::server::ServedModel;

const ServedModel& Model() {
  static const ServedModel* const model = [] {
    auto* served = new ServedModel();
    served->tokenizer = &FuzzTokenizer();
    served->limits = {FuzzTokenizer().size(), /*context_max=*/512, 4, 64, 16};
    served->chat_format = embergate::engine::ChatFormat::kGemma4;
    served->eos_ids = {1, 106};
    return served;
  }();
  return *model;
}

// False if the request was refused, as requests may be.
template <typename Parsed>
bool Accepted(const Parsed& parsed) {
  if (!parsed.ok()) {
    FuzzRequire(absl::IsInvalidArgument(parsed.status()) || absl::IsFailedPrecondition(parsed.status()));
    FuzzRequire(!parsed.status().message().empty());
  }
  return parsed.ok();
}

void RequireIds(const std::vector<int32_t>& ids) {
  FuzzRequire(
      std::all_of(ids.begin(), ids.end(), [](int32_t id) { return id >= 0 && id < Model().limits.vocab_size; }));
}

void RequireBounds(const GenerateRequest& request) {
  RequireIds(request.prompt);
  RequireIds(request.stop.stop_ids);
  const int context = Model().limits.context_max;
  FuzzRequire(!request.prompt.empty() && request.stop.tokens_max >= 1);
  FuzzRequire(request.prompt.size() + static_cast<size_t>(request.stop.tokens_max) <= static_cast<size_t>(context));
  FuzzRequire(request.stop.tokens_min >= 0 && request.stop.tokens_min <= request.stop.tokens_max);
  FuzzRequire(request.stop.stop_strings.size() <= 16 && request.stop.stop_ids.size() <= 64);
  FuzzRequire(request.completions >= 1 && request.completions <= embergate::engine::kCompletionsMax);
  FuzzRequire(request.top_logprobs >= 0 && request.top_logprobs <= 1000);
  FuzzRequire(request.prompt_top_logprobs >= 0 && request.prompt_top_logprobs <= 1000);
  FuzzRequire(request.time_limit > absl::ZeroDuration());
  const embergate::engine::SamplingParams& sampling = request.sampling;
  // Each written so that NaN fails.
  FuzzRequire(sampling.temperature >= 0 && sampling.temperature <= 100);
  FuzzRequire(sampling.top_k >= 0 && sampling.top_k <= Model().limits.vocab_size);
  FuzzRequire(sampling.top_p > 0 && sampling.top_p <= 1 && sampling.min_p >= 0 && sampling.min_p <= 1);
  FuzzRequire(sampling.typical_p > 0 && sampling.typical_p <= 1);
  FuzzRequire(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 10);
  FuzzRequire(sampling.penalty_window >= -1 && sampling.penalty_window <= context);
  FuzzRequire(sampling.logit_bias.size() <= 1024);
  for (const auto& [id, bias] : sampling.logit_bias) {
    FuzzRequire(id >= 0 && id < Model().limits.vocab_size && bias >= -1000 && bias <= 1000);
  }
}

v1::GenerateRequest ChatSeed() {
  v1::GenerateRequest request;
  v1::ChatInput& chat = *request.mutable_chat();
  v1::ChatMessage& system = *chat.add_messages();
  system.set_role(v1::ChatMessage::ROLE_SYSTEM);
  system.set_content("Be brief.");
  v1::ChatMessage& user = *chat.add_messages();
  user.set_role(v1::ChatMessage::ROLE_USER);
  user.set_content("How warm is it?");
  v1::Tool& tool = *chat.add_tools();
  tool.set_name("read");
  tool.set_description("Reads a sensor");
  tool.set_parameters_json(R"({"type":"object","properties":{"name":{"type":"string"}},"required":["name"]})");
  chat.set_enable_thinking(true);
  request.mutable_stopping()->set_max_tokens(20);
  return request;
}

v1::GenerateRequest SamplingSeed() {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(2);
  request.mutable_token_ids()->add_ids(100);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(10);
  sampling.set_top_p(0.9f);
  sampling.set_min_p(0.1f);
  sampling.set_typical_p(0.8f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(1);
  sampling.set_penalty_window(-1);
  (*sampling.mutable_logit_bias())[5] = -1000;
  sampling.set_seed(7);
  v1::Stopping& stopping = *request.mutable_stopping();
  stopping.set_max_tokens(50);
  stopping.set_min_tokens(2);
  stopping.add_stop("\n\n");
  stopping.add_stop_ids(9);
  request.mutable_logprobs()->set_output_top(3);
  request.mutable_logprobs()->set_prompt_top(2);
  request.set_n(3);
  request.mutable_time_limit()->set_seconds(5);
  request.set_request_id("order 7");
  request.set_client_key("kitchen");
  request.set_priority(v1::PRIORITY_BATCH);
  return request;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // It would report each text that is no UTF-8.
  static const auto silenced = google::protobuf::SetLogHandler(nullptr);
  (void)silenced;
  const int bytes = static_cast<int>(size);
  const RequestLimits limits = {.prompt_bytes_max = 4096};
  if (v1::GenerateRequest proto; proto.ParseFromArray(data, bytes)) {
    const auto streamed = ParseGenerateRequest(proto, Model(), limits, /*random_seed=*/1);
    if (Accepted(streamed)) {
      RequireBounds(*streamed);
      if (proto.has_chat()) {
        (void)embergate::server::MakeAnswerParser(FuzzTokenizer(), streamed->prompt);
      }
    }
    const auto once = ParseGenerateOnceRequest(proto, Model(), limits, /*random_seed=*/1);
    FuzzRequire(!Accepted(once) || streamed.ok());
  }
  if (v1::ScoreRequest proto; proto.ParseFromArray(data, bytes)) {
    if (const auto parsed = ParseScoreRequest(proto, Model(), limits); Accepted(parsed)) {
      RequireBounds(*parsed);
    }
  }
  if (v1::TokenizeRequest proto; proto.ParseFromArray(data, bytes)) {
    if (const auto parsed = ParseTokenizeRequest(proto, Model(), limits); Accepted(parsed)) {
      RequireIds(*parsed);
    }
  }
  if (v1::DetokenizeRequest proto; proto.ParseFromArray(data, bytes)) {
    if (const auto parsed = ParseDetokenizeRequest(proto, Model()); Accepted(parsed)) {
      RequireIds(*parsed);
    }
  }
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  v1::GenerateRequest text;
  text.mutable_text()->set_text("Hello <|turn>");
  text.mutable_text()->set_parse_special(true);
  v1::ScoreRequest score;
  score.mutable_token_ids()->add_ids(4);
  score.set_top(5);
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = ChatSeed().chat();
  v1::DetokenizeRequest detokenize;
  detokenize.add_ids(70);
  detokenize.add_ids(71);
  detokenize.set_special(true);
  return {text.SerializeAsString(),  ChatSeed().SerializeAsString(), SamplingSeed().SerializeAsString(),
          score.SerializeAsString(), tokenize.SerializeAsString(),   detokenize.SerializeAsString()};
}
