#include "engine/request_check.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/sampler.h"
#include "engine/text/utf8.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// A stop string cut inside a character could never be given out in whole characters.
bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.status != Utf8Status::kValid) {
      return false;
    }
    text.remove_prefix(step.bytes);
  }
  return true;
}

absl::Status CheckStops(const GenerateRequest& request, const RequestLimits& limits) {
  const StopParams& stop = request.stop;
  if (stop.tokens_max < -1) {
    return Invalid("stop.tokens_max is ", stop.tokens_max, "; it must be -1 or more");
  }
  if (stop.tokens_min < 0) {
    return Invalid("stop.tokens_min is ", stop.tokens_min, "; it must be 0 or more");
  }
  if (stop.stop_ids.size() > kStopIdsMax) {
    return Invalid("stop.stop_ids has ", stop.stop_ids.size(), " entries; at most ", kStopIdsMax, " are allowed");
  }
  for (int32_t id : stop.stop_ids) {
    if (id < 0 || id >= limits.model.vocab_size) {
      return Invalid("stop.stop_ids holds ", id, "; ids are 0 to ", limits.model.vocab_size - 1);
    }
  }
  if (stop.stop_strings.size() > kStopStringsMax) {
    return Invalid("stop.stop_strings has ", stop.stop_strings.size(), " entries; at most ", kStopStringsMax,
                   " are allowed");
  }
  if (!stop.stop_strings.empty() && !limits.has_tokenizer) {
    return Invalid("stop.stop_strings: this model has no tokenizer; use stop_ids");
  }
  for (const std::string& text : stop.stop_strings) {
    if (text.empty() || text.size() > kStopStringBytesMax) {
      return Invalid("stop.stop_strings holds one of ", text.size(), " bytes; 1 to ", kStopStringBytesMax,
                     " are allowed");
    }
    if (!IsUtf8(text)) {
      return Invalid("stop.stop_strings holds one that is not UTF-8");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SequenceShape> CheckRequest(const GenerateRequest& request, const RequestLimits& limits) {
  // The prompt's length first: it bounds the work of the other checks.
  const int64_t room = std::min<int64_t>(limits.model.context_max, limits.kv_tokens);
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0) {
    return Invalid("prompt is empty; at least one token is needed");
  }
  if (prompt > room) {
    return Invalid("prompt has ", prompt, " tokens; at most ", room, " positions fit (context ",
                   limits.model.context_max, ", KV pool ", limits.kv_tokens, ")");
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= limits.model.vocab_size) {
      return Invalid("prompt token ", i, " is ", request.prompt[i], "; ids are 0 to ", limits.model.vocab_size - 1);
    }
  }
  EMBERGATE_RETURN_IF_ERROR(ValidateSampling(request.sampling, limits.model.vocab_size));
  EMBERGATE_RETURN_IF_ERROR(CheckStops(request, limits));
  if (!(request.client_weight >= 0.01 && request.client_weight <= 100)) {
    return Invalid("client_weight is ", request.client_weight, "; it must be 0.01 to 100");
  }
  for (const auto& [name, value] : {std::pair<const char*, int>{"top_logprobs", request.top_logprobs},
                                    {"prompt_top_logprobs", request.prompt_top_logprobs}}) {
    if (value < 0 || value > limits.top_logprobs_max) {
      return Invalid(name, " is ", value, "; it must be 0 to ", limits.top_logprobs_max);
    }
  }

  if (request.time_limit <= absl::ZeroDuration()) {
    return Invalid("time_limit is ", absl::FormatDuration(request.time_limit), "; it must be more than 0");
  }
  if (request.completions < 1 || request.completions > kCompletionsMax) {
    return Invalid("completions is ", request.completions, "; it must be 1 to ", kCompletionsMax);
  }
  if (request.completions > 1 && request.prompt_logprobs && request.stop.tokens_max == 0) {
    return Invalid("completions is ", request.completions, ", but with stop.tokens_max 0 nothing is generated");
  }

  SequenceShape shape;
  shape.prompt_tokens = static_cast<int>(prompt);
  const int wanted = request.stop.tokens_max;
  if (wanted == 0 && request.prompt_logprobs) {
    // The last token's logits would predict what nobody asks for, so it is not computed.
    shape.prefill_tokens = shape.prompt_tokens - 1;
    shape.kv_tokens = std::max(shape.prefill_tokens, 1);
    return shape;
  }
  shape.prefill_tokens = shape.prompt_tokens;
  shape.fills_context = wanted <= 0;
  shape.tokens_max = wanted > 0 ? wanted : static_cast<int>(room - prompt);
  if (shape.tokens_max == 0 || prompt + shape.tokens_max > room) {
    return Invalid("prompt has ", prompt, " tokens and stop.tokens_max asks for ", wanted > 0 ? wanted : 1,
                   wanted > 0 ? "" : " or more", ", but ", room, " positions fit (context ", limits.model.context_max,
                   ", KV pool ", limits.kv_tokens, "); ", room - prompt, " are left");
  }
  if (request.stop.tokens_min > shape.tokens_max) {
    return Invalid("stop.tokens_min is ", request.stop.tokens_min, "; at most ", shape.tokens_max,
                   " tokens are generated");
  }
  shape.kv_tokens = shape.prompt_tokens + shape.tokens_max;
  return shape;
}

}  // namespace embergate::engine
