// One request inside the engine, from Submit to its last event: tokens, position, slot, text, receipt.
#ifndef EMBERGATE_ENGINE_SEQUENCE_H_
#define EMBERGATE_ENGINE_SEQUENCE_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model/language_model.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/text/stream_decoder.h"
#include "engine/text_output.h"
#include "engine/token_sink.h"
#include "storage/row_store.h"

namespace embergate::engine {

// What a request asks for, in terms of the model's limits.
struct SequenceShape {
  int prompt_tokens = 0;
  int prefill_tokens = 0;      // of the prompt, those that are computed: all, or all but the last if nothing is sampled
  int tokens_max = 0;          // generated at most
  int kv_tokens = 0;           // positions to reserve
  bool fills_context = false;  // tokens_max was left open: reaching it means that the context is full
};

// Rows asked for ahead of the step that uses them: those of tokens [start, start + count).
struct AheadRows {
  storage::RowTicket ticket;
  int start = 0;
  int count = 0;  // 0 = none; a model without a table on flash gives an invalid ticket with a count
  LogitsWanted logits = LogitsWanted::kNone;  // kNone: perhaps only the part of each row that such a chunk needs

  bool Serves(int chunk_start, int chunk_count, LogitsWanted chunk_logits) const {
    return start == chunk_start && count == chunk_count &&
           (logits != LogitsWanted::kNone || chunk_logits == LogitsWanted::kNone);
  }
};

// What a waiting request holds in DRAM, roughly: itself, and its prompt twice.
int64_t RequestBytes(const GenerateRequest& request);

// Threads: made by the submitting thread, then owned by the engine thread; `cancelled` alone is set by others.
struct Sequence {
  // `tokenizer` may be null: then there is no text.
  Sequence(RequestId request_id, GenerateRequest r, const SequenceShape& s, TokenSink* k, const Tokenizer* tokenizer);

  // What the scheduler sees of it.
  RunningSequence AsRunning(int64_t now_ns) const;
  WaitingRequest AsWaiting() const;
  // Its slot was taken from it: what it has to compute again, and what not to give out again.
  void SetAside(int64_t now_ns);
  // Its first tokens, whose keys and values may come from elsewhere: all but the last, which has to be computed for its
  // logits; none if the logits of all are wanted.
  absl::Span<const int32_t> Reusable() const {
    const size_t count = request.prompt_logprobs || tokens.empty() ? 0 : tokens.size() - 1;
    return absl::MakeConstSpan(tokens).first(count);
  }
  bool samples() const { return shape.tokens_max > 0; }
  bool prefilling() const { return computed < prefill_end; }
  int generated() const { return static_cast<int>(tokens.size()) - shape.prompt_tokens; }

  const RequestId id;
  const GenerateRequest request;
  const SequenceShape shape;
  const int64_t bytes;  // DRAM that it holds while it waits, roughly
  TokenSink* const sink;
  std::atomic<bool> cancelled{false};

  std::vector<int32_t> tokens;  // prompt, then generated; capacity for all of them once it has a slot
  int computed = 0;             // positions in the KV cache
  // Known tokens to compute before one is sampled: those of the prompt; once it was set aside, the generated ones too.
  int prefill_end = 0;
  int progress_told = 0;  // positions that OnPromptProgress has reported
  int logprobs_done = 0;  // positions below it have given their prompt log-probabilities already
  int slot = -1;
  uint64_t prefix_scope = 0;  // sequences of one scope share prefixes
  uint64_t group = 0;         // id of answer 0 of its request
  int reused = 0;             // positions that were in the KV cache when it got its slot
  bool held = false;          // waits for another's prompt to be computed, to reuse it
  double logprob_sum = 0;     // of its generated tokens; kept where there are several answers
  uint64_t served_step = 0;
  AheadRows ahead;
  double order_tag = 0;  // of FairOrder
  std::optional<StreamDecoder> decoder;
  TextOutput text;
  Receipt receipt;

  // Steady clock, ns; 0 = not yet.
  int64_t deadline_ns = INT64_MAX;
  int64_t time_limit_ns = INT64_MAX;  // it ends well then
  int64_t submitted_ns = 0;
  int64_t started_ns = 0;
  int64_t first_token_ns = 0;
  int64_t last_token_ns = 0;
  int64_t set_aside_ns = 0;       // when it last lost its slot
  int64_t resumed_ns = 0;         // when it last got one again
  int64_t preemptible_ns = 0;     // not to be set aside again before
  int64_t paused_prefill_ns = 0;  // time without a slot between start and first token
  int64_t paused_decode_ns = 0;   // and after it
  bool finished = false;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_SEQUENCE_H_
