#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace embergate::engine {

Sequence::Sequence(RequestId request_id, GenerateRequest r, const SequenceShape& s, TokenSink* k,
                   const Tokenizer* tokenizer)
    : id(request_id),
      request(std::move(r)),
      shape(s),
      bytes(RequestBytes(request)),
      sink(k),
      tokens(request.prompt),
      prefill_end(s.prefill_tokens),
      text(request.stop) {
  if (tokenizer != nullptr) {
    decoder.emplace(*tokenizer, request.special_in_text);
  }
}

int64_t RequestBytes(const GenerateRequest& request) {
  size_t bytes = sizeof(Sequence) + 2 * request.prompt.size() * sizeof(int32_t) + request.client_key.size() +
                 request.sampling.logit_bias.size() * sizeof(request.sampling.logit_bias[0]) +
                 request.stop.stop_ids.size() * sizeof(int32_t);
  for (const std::string& stop : request.stop.stop_strings) {
    bytes += 3 * (stop.size() + sizeof(std::string));  // the request's, the detector's, its table
  }
  return static_cast<int64_t>(bytes);
}

WaitingRequest Sequence::AsWaiting() const {
  WaitingRequest waiting;
  waiting.prefill_tokens = prefilling() ? prefill_end - computed : 0;
  waiting.all_logits = request.prompt_logprobs && computed >= logprobs_done && computed < shape.prefill_tokens;
  waiting.last_logits = samples();
  if (waiting.prefill_tokens > 0 && request.prompt_logprobs && computed < logprobs_done &&
      logprobs_done < shape.prefill_tokens) {
    // It was set aside in the middle of a scored prompt. Up to there nobody wants logits again.
    waiting.prefill_tokens = logprobs_done - computed;
    waiting.last_logits = false;
  }
  waiting.kv_tokens = shape.kv_tokens;
  waiting.preempts = request.priority == Priority::kInteractive;
  return waiting;
}

RunningSequence Sequence::AsRunning(int64_t now_ns) const {
  const WaitingRequest next = AsWaiting();
  RunningSequence running;
  running.prefill_tokens = next.prefill_tokens;
  running.all_logits = next.all_logits;
  running.last_logits = next.last_logits;
  running.held = held;
  running.served_step = served_step;
  running.preemptible = request.priority == Priority::kBatch && now_ns >= preemptible_ns;
  running.computed = computed;
  running.kv_tokens = shape.kv_tokens;
  return running;
}

void Sequence::SetAside(int64_t now_ns) {
  slot = -1;
  held = false;
  logprobs_done = std::min(std::max(logprobs_done, computed), shape.prefill_tokens);
  computed = 0;
  // The last token sampled was not computed yet; with it, the next one is sampled.
  prefill_end = generated() > 0 ? static_cast<int>(tokens.size()) : shape.prefill_tokens;
  set_aside_ns = now_ns;
  ++receipt.preemptions;
}

}  // namespace embergate::engine
