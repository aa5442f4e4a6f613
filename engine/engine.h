// The engine's facade: requests in, tokens out. Owns the engine thread, which alone touches the model.
#ifndef EMBERGATE_ENGINE_ENGINE_H_
#define EMBERGATE_ENGINE_ENGINE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/language_model.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "engine/token_sink.h"
#include "storage/stats.h"

namespace embergate::engine {

struct EngineOptions {
  int waiting_max = 64;         // requests that wait for a slot
  int prefill_chunk_max = 128;  // prompt tokens of one sequence per step
  bool own_thread = true;       // false: tests call StepOnce
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
  uint64_t requests_finished[7] = {};  // by FinishReason
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t steps = 0;
  uint64_t step_ns = 0;
  uint64_t row_wait_ns = 0;
  int waiting = 0;
  int running = 0;
  int64_t kv_tokens_free = 0;
  SecondsHistogram queue_seconds;
  SecondsHistogram ttft_seconds;  // accepted to first token
  SecondsHistogram itl_seconds;   // between tokens of one stream
};

using RequestId = uint64_t;

// Threads: Submit, Cancel, Snapshot and Drain from any thread.
class Engine {
 public:
  // `model` and `tokenizer` (may be null: ids only) are borrowed and outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(LanguageModel& model, const Tokenizer* tokenizer,
                                                        std::vector<int32_t> eos_ids, const EngineOptions& options);
  virtual ~Engine() = default;

  // Queues the request; `sink` hears of it from the engine thread. INVALID_ARGUMENT (names field and limit),
  // RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (draining); then the sink is never called.
  virtual absl::StatusOr<RequestId> Submit(GenerateRequest request, TokenSink* sink) = 0;
  // Asks for an end within one step; the sink still gets its OnFinish. Unknown ids are ignored.
  virtual void Cancel(RequestId id) = 0;
  // Refuses new requests, lets the others finish until `deadline`, then ends them with UNAVAILABLE. Blocks.
  virtual void Drain(absl::Time deadline) = 0;
  virtual EngineStats Snapshot() const = 0;
  // One pass of the loop, for tests with own_thread = false; false when there was nothing to do.
  virtual bool StepOnce() = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_ENGINE_H_
