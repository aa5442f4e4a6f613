// The engine's only loop: admit, plan, ask for rows, compute, sample, emit. Owned and called by the engine thread.
#ifndef EMBERGATE_ENGINE_STEP_LOOP_H_
#define EMBERGATE_ENGINE_STEP_LOOP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/fair_order.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_pace.h"

namespace embergate::engine {

// One pass:
//   Admit    ends what was cancelled or has had its time; plans; gives slots and KV to waiting requests
//   Compute  reads ahead for the step after this one, computes the plan, samples, sends for the rows of all sampled
//            tokens, then hands out tokens and ends sequences
// Row reads: the next rows of all decoding sequences go out as one batch, before any client hears of the tokens; a
// prompt's chunk k + 1 before chunk k computes; the first chunk of the first waiting requests while they wait.
// Threads: one. Allocates only what events need, once the largest batch has been seen.
class StepLoop {
 public:
  StepLoop(LanguageModel& model, std::vector<int32_t> eos_ids, const EngineOptions& options, const Clock& clock);
  ~StepLoop();

  // Takes a request into the waiting list.
  void Add(std::unique_ptr<Sequence> sequence);
  // False when there is nothing to do.
  bool Admit();
  void Compute();
  // Ends everything with kError and this status.
  void Abort(const absl::Status& status);

  // Sequences that have ended since the last call; their sinks know. The caller destroys them.
  std::vector<std::unique_ptr<Sequence>>& retired() { return retired_; }
  bool idle() const { return waiting_.empty() && running_.empty(); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t waiting_tokens() const { return waiting_tokens_; }
  int64_t waiting_bytes() const { return waiting_bytes_; }
  int waiting_interactive() const;
  int running_batch() const;
  // The last step, to learn speeds from; `number` counts them.
  struct LastStep {
    uint64_t number = 0;
    int decodes = 0;
    int prompt_tokens = 0;
    int tokens = 0;  // sampled
    int64_t ns = 0;
  };
  const LastStep& last_step() const { return last_step_; }
  // Places in the waiting list that have become free so far: a request got a slot, or ended, and none that was set
  // aside came instead.
  uint64_t departures() const { return departures_; }
  // After how long, at the latest, the first running sequence ends by its limits; 0 = nothing runs or no step was
  // measured.
  int64_t FirstEndNs() const;
  // Counters, gauges and histograms of this loop; requests_accepted and _refused are the facade's.
  const EngineStats& stats() const { return stats_; }
  size_t resident_bytes() const { return BytesFor(limits_); }
  static size_t BytesFor(const ModelLimits& limits);

 private:
  struct Pending;  // what sampling decided for one chunk, until it is emitted

  void Plan(StepPlan* plan);
  void EndDue();
  // Notes in its receipt what it holds in the KV cache now, before it gives that back: together with the other answers
  // to its request, if there are any, for they share the prompt.
  void NoteKvBytes(Sequence& sequence);
  // Takes slots from batch work for an interactive request that would have to wait.
  void Preempt();
  void SetAside(int running_index, int64_t now);
  void Enqueue(std::unique_ptr<Sequence> sequence);  // where its tag puts it
  // A request has left the waiting list.
  void CountDeparture();
  // Holds prompts back whose beginning another one is about to have computed, and lets those go on that have waited.
  void HoldFollowers();
  // Its slot holds so many of its positions already.
  static void TakeReused(Sequence& sequence, int positions);
  // Whether waiting for `leader` spares `follower` work.
  static bool WorthWaiting(const Sequence& follower, const Sequence& leader);
  // Gives slots to the admitted. False when the plan is not good any more: the model refused one that it counted on,
  // or the beginning of a prompt need not be computed now.
  bool OpenSlots();
  void Start(Sequence& sequence, int64_t now);
  void Resume(Sequence& sequence, int64_t now);

  void ReadAhead();
  // Makes sequence.ahead cover tokens [start, start + count), if the model takes the reads.
  void AskForRows(Sequence& sequence, int start, int count, LogitsWanted logits);
  void DropRows(Sequence& sequence);

  absl::Span<float> LogitsRow(int row);
  static int RowsOf(const Chunk& chunk);
  // Books a computed chunk, whose logits begin at `row`, and samples if its sequence decodes now.
  void AfterChunk(const absl::Status& status, const Chunk& chunk, int row, Pending* pending);
  // Divides what the device consumed since the last step among the chunks.
  void BookEnergy(int tokens);
  void SampleToken(Sequence& sequence, int row, Pending* pending);
  void CountToken(Sequence& sequence, int64_t now);

  // log p of `id` and of the best `top` ids at a row, before any sampling parameter.
  PositionLogprobs LogprobsOf(int row, int32_t id, int top);
  void EmitPromptLogprobs(Sequence& sequence, const Chunk& chunk, int row);
  void EmitPromptProgress(Sequence& sequence);
  void Emit(const Chunk& chunk, int row, int64_t now, Pending* pending);
  // Gives slot, KV and rows back, then sends what is held and the terminal event.
  void Finish(Sequence& sequence, FinishReason reason, absl::Status status, int32_t stop_id = -1);
  // Moves the finished from `list` to retired_.
  void Retire(std::vector<std::unique_ptr<Sequence>>& list);

  LanguageModel& model_;
  const std::vector<int32_t> eos_ids_;
  const EngineOptions options_;
  const Clock& clock_;
  const ModelLimits limits_;

  std::vector<std::unique_ptr<Sequence>> waiting_;  // in the order in which they get slots
  int64_t waiting_tokens_ = 0;
  int64_t waiting_bytes_ = 0;
  std::vector<std::unique_ptr<Sequence>> running_;  // in the order in which they got slots
  std::vector<std::unique_ptr<Sequence>> retired_;
  std::vector<int> free_slots_;
  StepPlan plan_;
  StepPlan next_plan_;
  Preemption preemption_;
  std::vector<RunningSequence> running_view_;
  std::vector<WaitingRequest> waiting_view_;
  std::vector<Chunk> chunks_;
  std::vector<Pending> pending_;
  std::vector<int> slots_of_request_;  // scratch of NoteKvBytes
  std::vector<float> logits_;          // [logit_rows_max, vocab_size]
  std::vector<int32_t> suppressed_;
  Sampler sampler_;
  TopSelector top_;
  StepPace pace_;
  FairOrder order_;
  EngineStats stats_;
  uint64_t departures_ = 0;
  int places_taken_back_ = 0;  // by requests that were set aside: as many departures free no place
  uint64_t step_ = 0;
  LastStep last_step_;
  double joules_ = 0;      // of the meter, at the end of the last step
  bool measures_ = false;  // joules_ is from just before this step
  // The model refused KV that its free count promised: nobody is admitted until a sequence has given some back.
  bool admission_closed_ = false;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_STEP_LOOP_H_
