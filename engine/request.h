// One generation, as the server hands it to the engine.
#ifndef EMBERGATE_ENGINE_REQUEST_H_
#define EMBERGATE_ENGINE_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace embergate::engine {

using RequestId = uint64_t;

inline constexpr int kCompletionsMax = 16;

// Applied in this order: penalties and bias, then temperature, then top_k, typical_p, top_p, min_p.
struct SamplingParams {
  float temperature = 1.0f;         // 0 = greedy
  int top_k = 0;                    // 0 = off
  float top_p = 1.0f;               // 1 = off
  float min_p = 0.0f;               // 0 = off; relative to the best token's probability
  float typical_p = 1.0f;           // 1 = off
  float repetition_penalty = 1.0f;  // 1 = off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  // Last tokens that the penalties look at; -1 = all. The repetition penalty sees prompt and generated tokens, the
  // other two generated ones only.
  int penalty_window = 64;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;  // the same seed, request and model give the same text whoever shares the batch
};

struct StopParams {
  // Tokens to generate at most. 0 = as many as the context holds (the end is then kContextFull, not kLength), but with
  // prompt_logprobs none at all: the prompt is scored and that is it. -1 = as many as the context holds in any case.
  // A number that prompt and context leave no room for is refused, not trimmed.
  int tokens_max = 256;
  int tokens_min = 0;  // no end-of-sequence or stop string before
  bool ignore_eos = false;
  // Besides the model's own. A stop id is counted as generated, but given out only with include_stop.
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop_strings;  // found across token borders; not emitted unless include_stop
  bool include_stop = false;
};

// A batch request waits as if it cost 16 times as much: interactive ones go first, but not for ever. A running one
// gives its slot and its KV to an interactive one that would have to wait otherwise; it then waits again, computes its
// KV anew and goes on where it was, with the same tokens.
enum class Priority { kInteractive, kBatch };

struct GenerateRequest {
  std::vector<int32_t> prompt;  // ids, >= 1
  int completions = 1;          // answers, 1 to kCompletionsMax, each with a random stream of its own
  SamplingParams sampling;
  StopParams stop;
  int top_logprobs = 0;  // alternatives per generated token, 0 = chosen token's log-probability only
  bool want_logprobs = false;
  bool prompt_logprobs = false;  // log-probabilities of the prompt's tokens 1.. (Score)
  int prompt_top_logprobs = 0;   // alternatives per prompt position
  // Who asks, for fair sharing of slots: waiting requests of different clients take turns in proportion to the weights
  // (0.01 to 100) and to what they reserve; those of one client go in order.
  std::string client_key;
  double client_weight = 1;
  Priority priority = Priority::kInteractive;
  bool prompt_progress = false;  // the sink hears how far a prompt of several steps is
  bool special_in_text = false;  // control tokens' pieces appear in the text
  absl::Time deadline = absl::InfiniteFuture();
  // From Submit on, waiting included. Then it ends well, with what it has (kTimeLimit); that may be nothing.
  absl::Duration time_limit = absl::InfiniteDuration();
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // best first
};

enum class FinishReason { kStop, kStopString, kLength, kContextFull, kTimeLimit, kCancelled, kDeadline, kError };
inline constexpr int kFinishReasons = 8;

// What the request cost. Seconds are wall time; rows and bytes are this request's own share.
struct Receipt {
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int generated_tokens = 0;  // sampled, whether or not they were given out
  double queue_seconds = 0;  // without a slot, the times that it was set aside included
  double prefill_seconds = 0;
  double decode_seconds = 0;
  double row_wait_seconds = 0;
  uint64_t rows_requested = 0;
  uint64_t rows_from_cache = 0;
  uint64_t rows_read = 0;
  uint64_t flash_bytes = 0;
  uint64_t kv_bytes_peak = 0;
  std::optional<double> energy_joules;  // its steps' energy, divided by tokens; nullopt = the device has no meter
  int preemptions = 0;                  // how often it gave its slot to an interactive request
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_REQUEST_H_
