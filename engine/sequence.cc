#include "engine/sequence.h"

#include <utility>

namespace embergate::engine {

Sequence::Sequence(RequestId request_id, GenerateRequest r, const SequenceShape& s, TokenSink* k,
                   const Tokenizer* tokenizer)
    : id(request_id), request(std::move(r)), shape(s), sink(k), tokens(request.prompt), text(request.stop) {
  if (tokenizer != nullptr) {
    decoder.emplace(*tokenizer, request.special_in_text);
  }
}

RunningSequence Sequence::AsRunning() const {
  RunningSequence running;
  running.prefill_tokens = prefilling() ? shape.prefill_tokens - computed : 0;
  running.all_logits = request.prompt_logprobs;
  running.last_logits = samples();
  running.served_step = served_step;
  return running;
}

WaitingRequest Sequence::AsWaiting() const {
  return WaitingRequest{shape.prefill_tokens, request.prompt_logprobs, samples(), shape.kv_tokens};
}

}  // namespace embergate::engine
