#include "server/request_parser.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/call_identity.h"
#include "server/chat_input.h"
#include "server/status_mapping.h"
#include "server/violations.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

constexpr int kDefaultTokensMax = 256;
constexpr int kStopStringsMax = 16;
constexpr size_t kStopStringBytesMax = 256;
constexpr int kStopIdsMax = 64;
constexpr int kLogitBiasMax = 1024;
constexpr int kGenerateTopMax = 20;
constexpr int kScoreTopMax = 1000;
// Tokens and alternatives to them in an answer that comes in one message: about 2 MB, of the 4 that clients take.
constexpr int64_t kMessageCellsMax = 100'000;
constexpr int kDetokenizeIdsMax = 1 << 20;
constexpr absl::Duration kTimeLimitMax = absl::Hours(24);

absl::Status NotSupported(absl::string_view message) {
  return WithReason(absl::FailedPreconditionError(message), "NOT_SUPPORTED_BY_MODEL");
}

absl::StatusOr<std::vector<int32_t>> TextToIds(const v1::TextInput& input, const std::string& field,
                                               const ServedModel& model, const RequestLimits& limits,
                                               Violations& violations) {
  if (model.tokenizer == nullptr) {
    return NotSupported("the loaded file has no tokenizer: send token_ids");
  }
  const int64_t bytes = static_cast<int64_t>(input.text().size());
  if (bytes > limits.prompt_bytes_max) {
    violations.Add(absl::StrCat(field, ".text"),
                   absl::StrCat("must be at most ", limits.prompt_bytes_max, " bytes, is ", bytes));
    return std::vector<int32_t>();
  }
  engine::EncodeOptions options;
  options.add_bos = input.has_add_bos() ? input.add_bos() : model.tokenizer->vocabulary().add_bos;
  options.parse_special = input.parse_special();
  return model.tokenizer->Encode(input.text(), options);
}

void CheckIds(const google::protobuf::RepeatedField<int32_t>& ids, const std::string& field, const ServedModel& model,
              Violations& violations) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.limits.vocab_size) {
      violations.Add(absl::StrCat(field, "[", i, "]"),
                     absl::StrCat("must be in [0, ", model.limits.vocab_size, "), is ", ids[i]));
      return;  // one is enough
    }
  }
}

std::vector<int32_t> CopyIds(const v1::TokenIds& input, const std::string& field, const ServedModel& model,
                             Violations& violations) {
  // Longer than any context: not even looked at.
  if (input.ids_size() > model.limits.context_max) {
    violations.Add(absl::StrCat(field, ".ids"), absl::StrCat("must be at most ", model.limits.context_max,
                                                             " tokens (the context), are ", input.ids_size()));
    return {};
  }
  CheckIds(input.ids(), absl::StrCat(field, ".ids"), model, violations);
  return std::vector<int32_t>(input.ids().begin(), input.ids().end());
}

absl::StatusOr<std::vector<int32_t>> PromptOf(const v1::GenerateRequest& proto, const ServedModel& model,
                                              const RequestLimits& limits, Violations& violations) {
  switch (proto.input_case()) {
    case v1::GenerateRequest::kText:
      return TextToIds(proto.text(), "text", model, limits, violations);
    case v1::GenerateRequest::kTokenIds:
      return CopyIds(proto.token_ids(), "token_ids", model, violations);
    case v1::GenerateRequest::kChat:
      return ChatToIds(proto.chat(), model, limits, violations);
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  violations.Add("input", "one of text, token_ids and chat is required");
  return std::vector<int32_t>();
}

// Checks a prompt that has no violation of its own yet: not empty, and room for `tokens_min` more in the context.
void CheckPromptLength(size_t tokens, int tokens_min, const ServedModel& model, Violations& violations) {
  if (!violations.empty()) {
    return;
  }
  if (tokens == 0) {
    violations.Add("input", "must give at least one token");
  } else if (tokens + tokens_min > static_cast<size_t>(model.limits.context_max)) {
    violations.Add("input", absl::StrCat("is ", tokens, " tokens; the context holds ", model.limits.context_max,
                                         ", of which at least ", tokens_min, " for the output"));
  }
}

float Bounded(float value, const char* field, float low, float high, bool low_excluded, Violations& violations) {
  // Written so that NaN fails.
  const bool good = (low_excluded ? value > low : value >= low) && value <= high;
  if (!good) {
    violations.Add(field, absl::StrCat("must be in ", low_excluded ? "(" : "[", low, ", ", high, "], is ", value));
  }
  return value;
}

int Bounded(int64_t value, const char* field, int64_t low, int64_t high, Violations& violations) {
  if (value < low || value > high) {
    violations.Add(field, absl::StrCat("must be in [", low, ", ", high, "], is ", value));
    return static_cast<int>(low);
  }
  return static_cast<int>(value);
}

engine::SamplingParams ParseSampling(const v1::Sampling& proto, const ServedModel& model, uint64_t random_seed,
                                     Violations& violations) {
  engine::SamplingParams params = model.sampling;
  if (proto.has_temperature()) {
    params.temperature = Bounded(proto.temperature(), "sampling.temperature", 0, 100, false, violations);
  }
  if (proto.has_top_k()) {
    params.top_k = Bounded(int64_t{proto.top_k()}, "sampling.top_k", 0, model.limits.vocab_size, violations);
  }
  if (proto.has_top_p()) {
    params.top_p = Bounded(proto.top_p(), "sampling.top_p", 0, 1, true, violations);
  }
  if (proto.has_min_p()) {
    params.min_p = Bounded(proto.min_p(), "sampling.min_p", 0, 1, false, violations);
  }
  if (proto.has_typical_p()) {
    params.typical_p = Bounded(proto.typical_p(), "sampling.typical_p", 0, 1, true, violations);
  }
  if (proto.has_repetition_penalty()) {
    params.repetition_penalty =
        Bounded(proto.repetition_penalty(), "sampling.repetition_penalty", 0, 10, true, violations);
  }
  if (proto.has_presence_penalty()) {
    params.presence_penalty =
        Bounded(proto.presence_penalty(), "sampling.presence_penalty", -10, 10, false, violations);
  }
  if (proto.has_frequency_penalty()) {
    params.frequency_penalty =
        Bounded(proto.frequency_penalty(), "sampling.frequency_penalty", -10, 10, false, violations);
  }
  if (proto.has_penalty_window()) {
    params.penalty_window =
        Bounded(int64_t{proto.penalty_window()}, "sampling.penalty_window", -1, model.limits.context_max, violations);
  }
  if (proto.logit_bias_size() > kLogitBiasMax) {
    violations.Add("sampling.logit_bias",
                   absl::StrCat("must have at most ", kLogitBiasMax, " entries, has ", proto.logit_bias_size()));
  } else {
    for (const auto& [id, bias] : proto.logit_bias()) {
      if (id < 0 || id >= model.limits.vocab_size) {
        violations.Add("sampling.logit_bias",
                       absl::StrCat("ids must be in [0, ", model.limits.vocab_size, "), one is ", id));
        break;
      }
      params.logit_bias.emplace_back(id, Bounded(bias, "sampling.logit_bias", -1000, 1000, false, violations));
    }
    // A protobuf map has no order of its own; the engine's arithmetic gets one.
    std::sort(params.logit_bias.begin(), params.logit_bias.end());
  }
  params.seed = proto.has_seed() ? proto.seed() : random_seed;
  return params;
}

engine::StopParams ParseStopping(const v1::Stopping& proto, size_t prompt_tokens, const ServedModel& model,
                                 Violations& violations) {
  engine::StopParams params;
  const int64_t room = std::max<int64_t>(1, model.limits.context_max - static_cast<int64_t>(prompt_tokens));
  if (proto.has_max_tokens()) {
    if (proto.max_tokens() > room && proto.max_tokens() >= 1) {
      violations.Add("stopping.max_tokens",
                     absl::StrCat("must be at most ", room, " (the context of ", model.limits.context_max,
                                  " less the prompt of ", prompt_tokens, "), is ", proto.max_tokens()));
    } else {
      params.tokens_max = Bounded(int64_t{proto.max_tokens()}, "stopping.max_tokens", 1, room, violations);
    }
  } else {
    params.tokens_max = static_cast<int>(std::min<int64_t>(kDefaultTokensMax, room));
  }
  params.tokens_min = Bounded(int64_t{proto.min_tokens()}, "stopping.min_tokens", 0, params.tokens_max, violations);
  if (proto.stop_size() > kStopStringsMax) {
    violations.Add("stopping.stop", absl::StrCat("must be at most ", kStopStringsMax, ", are ", proto.stop_size()));
  } else {
    for (int i = 0; i < proto.stop_size(); ++i) {
      const std::string& stop = proto.stop(i);
      if (stop.empty() || stop.size() > kStopStringBytesMax) {
        violations.Add(absl::StrCat("stopping.stop[", i, "]"),
                       absl::StrCat("must be 1 to ", kStopStringBytesMax, " bytes, is ", stop.size()));
      }
      params.stop_strings.push_back(stop);
    }
  }
  if (!params.stop_strings.empty() && model.tokenizer == nullptr) {
    violations.Add("stopping.stop", "the loaded file has no tokenizer, so there is no text to stop at");
  }
  if (proto.stop_ids_size() > kStopIdsMax) {
    violations.Add("stopping.stop_ids", absl::StrCat("must be at most ", kStopIdsMax, ", are ", proto.stop_ids_size()));
  } else {
    CheckIds(proto.stop_ids(), "stopping.stop_ids", model, violations);
    params.stop_ids.assign(proto.stop_ids().begin(), proto.stop_ids().end());
  }
  params.ignore_eos = proto.ignore_eos();
  params.include_stop = proto.include_stop();
  return params;
}

absl::Duration ParseTimeLimit(const google::protobuf::Duration& proto, Violations& violations) {
  // Within these bounds of its parts a Duration is valid, and the sum exact.
  const bool valid = proto.seconds() >= 0 && proto.seconds() <= absl::ToInt64Seconds(kTimeLimitMax) &&
                     proto.nanos() >= 0 && proto.nanos() < 1'000'000'000;
  const absl::Duration limit = absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
  if (!valid || limit <= absl::ZeroDuration() || limit > kTimeLimitMax) {
    violations.Add("time_limit", "must be more than 0 and at most 24 hours");
  }
  return limit;
}

void CheckLabel(const std::string& text, const char* field, Violations& violations) {
  if (!IsLabel(text)) {
    violations.Add(field, absl::StrCat("must be at most ", kLabelBytesMax, " printable ASCII characters"));
  }
}

// What GenerateRequest and ScoreRequest have in common.
template <typename Proto>
void ParseScheduling(const Proto& proto, engine::GenerateRequest& request, Violations& violations) {
  CheckLabel(proto.request_id(), "request_id", violations);
  CheckLabel(proto.client_key(), "client_key", violations);
  if (!proto.client_key().empty()) {
    request.client_key = absl::StrCat("key ", proto.client_key());
  }
  switch (proto.priority()) {
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_INTERACTIVE:
      request.priority = engine::Priority::kInteractive;
      return;
    case v1::PRIORITY_BATCH:
      request.priority = engine::Priority::kBatch;
      return;
    default:
      violations.Add("priority",
                     absl::StrCat("is no value that this server knows: ", static_cast<int>(proto.priority())));
  }
}

}  // namespace

absl::StatusOr<engine::GenerateRequest> ParseGenerateRequest(const v1::GenerateRequest& proto, const ServedModel& model,
                                                             const RequestLimits& limits, uint64_t random_seed) {
  Violations violations;
  engine::GenerateRequest request;
  EMBERGATE_ASSIGN_OR_RETURN(request.prompt, PromptOf(proto, model, limits, violations));
  CheckPromptLength(request.prompt.size(), 1, model, violations);
  request.sampling = ParseSampling(proto.sampling(), model, random_seed, violations);
  // With a prompt that is no good, its length would only give misleading follow-up violations.
  const size_t prompt_tokens = violations.empty() ? request.prompt.size() : 0;
  request.stop = ParseStopping(proto.stopping(), prompt_tokens, model, violations);
  const v1::LogprobOptions& logprobs = proto.logprobs();
  request.top_logprobs = Bounded(int64_t{logprobs.output_top()}, "logprobs.output_top", 0, kGenerateTopMax, violations);
  request.want_logprobs = logprobs.output() || request.top_logprobs > 0;
  request.prompt_top_logprobs =
      Bounded(int64_t{logprobs.prompt_top()}, "logprobs.prompt_top", 0, kGenerateTopMax, violations);
  request.prompt_logprobs = logprobs.prompt() || request.prompt_top_logprobs > 0;
  request.completions =
      Bounded(proto.n() == 0 ? int64_t{1} : int64_t{proto.n()}, "n", 1, engine::kCompletionsMax, violations);
  request.special_in_text = proto.special_in_text();
  request.prompt_progress = proto.prompt_progress();
  if (proto.has_time_limit()) {
    request.time_limit = ParseTimeLimit(proto.time_limit(), violations);
  }
  ParseScheduling(proto, request, violations);
  EMBERGATE_RETURN_IF_ERROR(violations.ToStatus());
  return request;
}

absl::StatusOr<engine::GenerateRequest> ParseGenerateOnceRequest(const v1::GenerateRequest& proto,
                                                                 const ServedModel& model, const RequestLimits& limits,
                                                                 uint64_t random_seed) {
  EMBERGATE_ASSIGN_OR_RETURN(engine::GenerateRequest request, ParseGenerateRequest(proto, model, limits, random_seed));
  int64_t cells = int64_t{request.completions} * request.stop.tokens_max * (1 + request.top_logprobs);
  if (request.prompt_logprobs) {
    cells += static_cast<int64_t>(request.prompt.size()) * (1 + request.prompt_top_logprobs);
  }
  Violations violations;
  if (cells > kMessageCellsMax) {
    violations.Add("stopping.max_tokens",
                   absl::StrCat("tokens, and alternatives to them, of the prompt and of all answers must be at most ",
                                kMessageCellsMax, " together, are ", cells, ": use Generate"));
  }
  EMBERGATE_RETURN_IF_ERROR(violations.ToStatus());
  return request;
}

absl::StatusOr<engine::GenerateRequest> ParseScoreRequest(const v1::ScoreRequest& proto, const ServedModel& model,
                                                          const RequestLimits& limits) {
  Violations violations;
  engine::GenerateRequest request;
  switch (proto.input_case()) {
    case v1::ScoreRequest::kText: {
      EMBERGATE_ASSIGN_OR_RETURN(request.prompt, TextToIds(proto.text(), "text", model, limits, violations));
      break;
    }
    case v1::ScoreRequest::kTokenIds:
      request.prompt = CopyIds(proto.token_ids(), "token_ids", model, violations);
      break;
    case v1::ScoreRequest::INPUT_NOT_SET:
      violations.Add("input", "one of text and token_ids is required");
  }
  CheckPromptLength(request.prompt.size(), 1, model, violations);
  const int top_max = std::min(kScoreTopMax, model.limits.vocab_size);
  const int top = Bounded(int64_t{proto.top()}, "top", 0, top_max, violations);
  const int64_t cells = static_cast<int64_t>(request.prompt.size()) * (1 + top);
  if (cells > kMessageCellsMax) {
    violations.Add("top", absl::StrCat("tokens * (1 + top) must be at most ", kMessageCellsMax, ", is ", cells));
  }
  ParseScheduling(proto, request, violations);
  EMBERGATE_RETURN_IF_ERROR(violations.ToStatus());

  request.sampling = engine::SamplingParams();
  request.sampling.temperature = 0;
  request.stop.tokens_max = 1;
  request.stop.ignore_eos = true;
  request.want_logprobs = true;
  request.top_logprobs = std::max(top, 1);
  request.prompt_logprobs = true;
  request.prompt_top_logprobs = top;
  return request;
}

absl::StatusOr<std::vector<int32_t>> ParseTokenizeRequest(const v1::TokenizeRequest& proto, const ServedModel& model,
                                                          const RequestLimits& limits) {
  Violations violations;
  std::vector<int32_t> ids;
  switch (proto.input_case()) {
    case v1::TokenizeRequest::kText: {
      EMBERGATE_ASSIGN_OR_RETURN(ids, TextToIds(proto.text(), "text", model, limits, violations));
      break;
    }
    case v1::TokenizeRequest::kChat: {
      EMBERGATE_ASSIGN_OR_RETURN(ids, ChatToIds(proto.chat(), model, limits, violations));
      break;
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      violations.Add("input", "one of text and chat is required");
  }
  EMBERGATE_RETURN_IF_ERROR(violations.ToStatus());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ParseDetokenizeRequest(const v1::DetokenizeRequest& proto,
                                                            const ServedModel& model) {
  if (model.tokenizer == nullptr) {
    return NotSupported("the loaded file has no tokenizer");
  }
  Violations violations;
  if (proto.ids_size() > kDetokenizeIdsMax) {
    violations.Add("ids", absl::StrCat("must be at most ", kDetokenizeIdsMax, ", are ", proto.ids_size()));
  } else {
    CheckIds(proto.ids(), "ids", model, violations);
  }
  EMBERGATE_RETURN_IF_ERROR(violations.ToStatus());
  return std::vector<int32_t>(proto.ids().begin(), proto.ids().end());
}

}  // namespace embergate::server
