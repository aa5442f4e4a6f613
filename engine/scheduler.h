// Decides what the next step computes. A pure function: no clock, no I/O, no memory of its own, so that a simulator
// can run it through any workload.
#ifndef EMBERGATE_ENGINE_SCHEDULER_H_
#define EMBERGATE_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/model/language_model.h"

namespace embergate::engine {

struct SchedulerLimits {
  int step_tokens_max = 0;  // of all chunks together
  int logit_rows_max = 0;   // positions with logits per step
  int chunk_max = 0;        // prompt tokens of one sequence per step
};

// A sequence that has a slot.
struct RunningSequence {
  int prefill_tokens = 0;    // prompt tokens still to compute; 0 = it decodes, one token per step
  bool all_logits = false;   // its prompt wants logits at every position (else only at the last, to sample from)
  bool last_logits = true;   // its last prompt position wants logits
  uint64_t served_step = 0;  // the last step that computed something for it, at first the one that admitted it
  bool held = false;         // its prompt waits for another that computes the same tokens: nothing this step
  bool preemptible = false;  // may be set aside; it then computes its KV anew later
  int computed = 0;          // positions that would have to be computed again
  int64_t kv_tokens = 0;     // positions that setting it aside frees
};

// A request without a slot.
struct WaitingRequest {
  int prefill_tokens = 0;
  bool all_logits = false;
  bool last_logits = true;
  int64_t kv_tokens = 0;  // positions to reserve
  bool preempts = false;  // running sequences may be set aside for it
};

struct SchedulerInput {
  SchedulerLimits limits;
  absl::Span<const RunningSequence> running;  // in the order in which they got their slots
  absl::Span<const WaitingRequest> waiting;   // in the order in which they are to get one
  int slots_free = 0;
  int64_t kv_tokens_free = 0;
  // Prompt tokens that a step may compute while others decode, to keep their inter-token target; >= 1.
  int prefill_budget = 0;
};

struct PlannedChunk {
  int sequence = 0;  // index into running, continued by the admitted ones
  int tokens = 0;
  LogitsWanted logits = LogitsWanted::kNone;
};

// `admitted` waiting requests, from the front, get slots. Chunks hold each sequence at most once.
struct StepPlan {
  int admitted = 0;
  std::vector<PlannedChunk> chunks;

  std::vector<int> order;  // scratch of PlanStep
};

// Rules, in this order, for all that are not held:
//  1. Waiting requests get slots from the front while a slot and their KV are free; nobody overtakes.
//  2. Decoding sequences get their token first, and prompts that cannot advance without a row of logits one token.
//     If the limits are too small to serve everybody, the least recently served go first, all prompts among them.
//  3. Prompts share what is left: step_tokens_max if nothing decodes, else at most prefill_budget. The oldest prompt
//     may take half of it at least (no prompt starves), the shortest ones come next (they are nearest to their first
//     token), and the oldest takes what they leave. Of one prompt at most chunk_max. A piece that does not end its
//     prompt is a multiple of 8 if it can be, which kernels like.
// A non-empty input with slots gives a non-empty plan. Allocates nothing once `plan` has grown.
void PlanStep(const SchedulerInput& input, StepPlan* plan);

struct Preemption {
  int waiting = -1;          // index of the request that is to get a slot before all others; -1 = none
  std::vector<int> victims;  // indices into running, to be set aside for it

  std::vector<int> order;  // scratch
};

// Before PlanStep: whether running sequences should make room. The first waiting request that preempts, but would not
// get a slot by rule 1, gets one if enough can be freed, of those that have the least to compute again. At most one
// request per step, no more victims than it needs, and none at all if they would not do. Allocates nothing once
// `preemption` has grown.
void PlanPreemption(const SchedulerInput& input, Preemption* preemption);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_SCHEDULER_H_
