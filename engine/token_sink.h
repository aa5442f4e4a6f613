// The one interface through which the engine answers; the server implements it.
#ifndef EMBERGATE_ENGINE_TOKEN_SINK_H_
#define EMBERGATE_ENGINE_TOKEN_SINK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/request.h"

namespace embergate::engine {

struct TokenEvent {
  int completion = 0;                      // which answer it belongs to
  std::vector<int32_t> ids;                // tokens of this event, in order
  std::string text;                        // whole UTF-8 characters that they complete
  std::vector<PositionLogprobs> logprobs;  // one per id when asked for
};

struct FinishEvent {
  FinishReason reason = FinishReason::kStop;
  absl::Status status;      // not OK only for kError, kDeadline and kCancelled
  std::string stop_string;  // for kStopString
  int32_t stop_id = -1;     // for kStop
  int completion = 0;
  double cumulative_logprob = 0;  // of all generated tokens, where there are several answers; else 0
  Receipt receipt;
};

// Threads: the engine thread calls all of these and must not be blocked: implementations record and return.
// Lifetime: the sink lives until OnFinish returned, which is called exactly once and last.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnStart(int prompt_tokens) = 0;                        // computing has begun
  virtual void OnPrompt(std::vector<PositionLogprobs> logprobs) = 0;  // only when prompt_logprobs; in pieces, in order
  // Only when prompt_progress, and only before the first token: `done` of the prompt's tokens are computed, `cached` of
  // them by others; some are left. Never less than the last time, even where it begins again after a preemption.
  virtual void OnPromptProgress(int /*done*/, int /*cached*/) {}
  virtual void OnTokens(TokenEvent event) = 0;
  // One of several answers has ended; not called where there is one only. OnFinish follows the last: its receipt is
  // that of all together (the prompt counts once), its reason answer 0's, or the first error, which ends the others
  // too.
  virtual void OnCompletion(FinishEvent /*event*/) {}
  virtual void OnFinish(FinishEvent event) = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TOKEN_SINK_H_
