// The engine's facade: requests in, tokens out. Owns the engine thread, which alone touches the model.
#ifndef EMBERGATE_ENGINE_ENGINE_H_
#define EMBERGATE_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "engine/energy_meter.h"
#include "engine/model/language_model.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "engine/token_sink.h"
#include "storage/stats.h"

namespace embergate::engine {

struct EngineOptions {
  int waiting_max = 64;                  // requests that wait for a slot
  int64_t waiting_tokens_max = 262144;   // prompt tokens of those together (a single one may exceed it)
  int64_t waiting_bytes_max = 16 << 20;  // DRAM that they hold together (a single one may exceed it)
  int prefill_chunk_max = 128;           // prompt tokens of one sequence per step
  int prefill_chunk_min = 8;             // that all prompts together may take per step, whatever itl_target says
  // Aim for the time between two tokens of a stream while prompts are computed beside it; zero = no aim, prompts take
  // what the step holds. Smaller chunks keep streams smooth and make prompts slower. The default is about two plain
  // decode steps of the smallest model on a small board.
  absl::Duration itl_target = absl::Milliseconds(200);
  int waiting_read_ahead = 2;   // waiting requests whose first chunk's rows are read already
  int top_logprobs_max = 1024;  // alternatives per position
  bool share_prefixes = true;   // requests share keys and values of equal token prefixes; false: none but their own
  // After a step that gave tokens, leave the CPUs to the threads that carry them to clients: 1/64 of the step's
  // time, at most 1 ms, nothing after steps below 10 ms. For threads that compute on every CPU: whoever has to wake
  // beside them otherwise waits for the scheduler's next tick.
  bool pause_after_tokens = false;
  bool own_thread = true;               // false: tests call StepOnce
  const Clock* clock = nullptr;         // borrowed; null = the real one
  const EnergyMeter* energy = nullptr;  // borrowed; null = receipts say nothing of energy
};

// Fixed-bucket histogram in seconds, in the style of Prometheus (cumulative on export).
struct SecondsHistogram {
  std::vector<double> bounds;
  std::vector<uint64_t> counts;  // bounds.size() + 1
  double sum = 0;
};

struct EngineStats {
  uint64_t requests_accepted = 0;
  uint64_t requests_refused = 0;
  uint64_t requests_finished[kFinishReasons] = {};  // by FinishReason
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t steps = 0;
  uint64_t step_ns = 0;
  uint64_t row_wait_ns = 0;
  uint64_t preemptions = 0;   // batch requests set aside for interactive ones
  uint64_t refused_late = 0;  // of the refused, those whose deadline could not be met
  double energy_joules = 0;   // of all steps; 0 without a meter
  int waiting = 0;            // accepted, without a slot
  int running = 0;
  int64_t waiting_tokens = 0;  // prompt tokens of the waiting
  int64_t waiting_bytes = 0;   // DRAM that the waiting hold
  int64_t kv_tokens_free = 0;
  PrefixCacheStats prefix_cache;
  int prefill_budget = 0;  // prompt tokens that a step may compute beside streams at the moment
  SecondsHistogram queue_seconds;
  SecondsHistogram ttft_seconds;  // accepted to first token
  SecondsHistogram itl_seconds;   // between tokens of one stream
  SecondsHistogram step_seconds;  // one pass of the loop that computed something
};

// Threads: Submit, Cancel, RunBetweenSteps, Snapshot and Drain from any thread.
class Engine {
 public:
  // `model` and `tokenizer` (may be null: ids only) are borrowed and outlive the engine. The destructor ends what is
  // left with UNAVAILABLE. INVALID_ARGUMENT for options or limits that cannot work, naming them.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(LanguageModel& model, const Tokenizer* tokenizer,
                                                        std::vector<int32_t> eos_ids, const EngineOptions& options);
  virtual ~Engine() = default;

  // Queues the request; `sink` hears of it from the engine thread, perhaps before Submit has returned. INVALID_ARGUMENT
  // (names field and limit; it never fits), RESOURCE_EXHAUSTED (the queue is full, or the deadline cannot be met at the
  // speed measured), UNAVAILABLE (draining); then the sink is never called. engine/retry_after.h reads from the status
  // which of these it was, and when to come again; nothing of that for a deadline too short for an idle engine.
  virtual absl::StatusOr<RequestId> Submit(GenerateRequest request, TokenSink* sink) = 0;
  // Asks for an end within one step; the sink still gets its OnFinish. Unknown ids are ignored.
  virtual void Cancel(RequestId id) = 0;
  // Refuses new requests, lets the others finish until `deadline`, then ends them with UNAVAILABLE. Blocks.
  virtual void Drain(absl::Time deadline) = 0;
  // Has `job` called by the engine thread before its next pass, which an idle engine makes at once: for what touches
  // the model outside of a step. Never called if the engine ends first. Keep it short: streams wait meanwhile.
  virtual void RunBetweenSteps(std::function<void()> job) = 0;
  virtual EngineStats Snapshot() const = 0;
  // DRAM held besides the model's, by part: logits and scratch. Fixed at Create.
  virtual std::vector<MemoryPart> Memory() const = 0;
  // The same before Create; of the limits it looks at vocab_size and logit_rows_max.
  static std::vector<MemoryPart> PlanMemory(const ModelLimits& limits);
  // One pass of the loop, for tests with own_thread = false; false when there was nothing to do.
  virtual bool StepOnce() = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_ENGINE_H_
