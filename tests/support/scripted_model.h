// A LanguageModel without weights: its logits are a given function of the tokens before, its time is a given function
// of the step, and it keeps account of everything that the step loop owes a model.
#ifndef EMBERGATE_TESTS_SUPPORT_SCRIPTED_MODEL_H_
#define EMBERGATE_TESTS_SUPPORT_SCRIPTED_MODEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/language_model.h"
#include "tests/support/manual_clock.h"

namespace embergate::testing {

// Fills logits [vocab_size] of the token that follows `context` (>= 1 tokens, from position 0).
using Script = std::function<void(absl::Span<const int32_t> context, absl::Span<float> logits)>;

// Logits in [-4, 4) that depend on every token of the context, by hash: a wrong, missing or doubled token anywhere
// changes everything after it.
Script HashScript();
// One certain token: next(context) gets 10, all others 0.
Script TableScript(std::function<int32_t(absl::Span<const int32_t> context)> next);

struct ScriptedModelOptions {
  engine::ModelLimits limits{64, 256, 4, 64, 16};
  int64_t kv_tokens = 0;  // pool; 0 = context_max * slots_max
  Script script = HashScript();
  bool reuses_prefixes = false;  // OpenSlotWithPrefix finds what running and ended sequences of the scope have computed
  bool has_rows = true;          // a table on flash: tickets are real
  int tickets_max = 1 << 20;     // PrefetchRows fails beyond
  // With a clock, a step advances it by this much.
  ManualClock* clock = nullptr;
  absl::Duration step_base;
  absl::Duration step_per_token;
};

// What one chunk of a step was, for tests that look at the schedule.
struct SeenChunk {
  int slot = 0;
  int start = 0;
  int tokens = 0;
  bool had_rows = false;               // its rows had been asked for
  bool rows_before_last_step = false;  // ... before the step before it began
  engine::LogitsWanted logits = engine::LogitsWanted::kNone;
};

// Breaches of the model's contract (a slot opened twice, a position skipped, a ticket lost, ...) are collected in
// violations(); a test expects none at its end, after every sequence has ended.
// Threads: as LanguageModel; what tests call in between is safe from any thread.
class ScriptedModel : public engine::LanguageModel {
 public:
  explicit ScriptedModel(ScriptedModelOptions options);

  const engine::ModelLimits& limits() const override { return options_.limits; }
  std::vector<engine::MemoryPart> Memory() const override { return {{"kv_cache", 0}}; }
  absl::Status OpenSlot(int slot, int tokens_max) override;
  absl::StatusOr<int> OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens,
                                         uint64_t scope) override;
  bool reuses_prefixes() const override { return options_.reuses_prefixes; }
  void CloseSlot(int slot) override;
  int64_t FreeKvTokens() const override;
  uint64_t KvBytes(absl::Span<const int> slots) const override;
  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t> tokens) override;
  void ReleaseRows(storage::RowTicket ticket) override;
  absl::Status Step(absl::Span<engine::Chunk> chunks, absl::Span<float> logits, engine::StepTimes* times) override;

  // Faults. Asked before each step and each chunk; an error is given back as the step's or the chunk's.
  void set_step_fault(std::function<absl::Status(uint64_t step)> fault);
  void set_chunk_fault(std::function<absl::Status(uint64_t step, const engine::Chunk& chunk)> fault);
  // Called at the beginning of each step, on the engine thread, without locks.
  void set_on_step(std::function<void(uint64_t step)> on_step);
  // The next OpenSlot calls fail thus.
  void FailOpenSlot(absl::Status status, int times);

  uint64_t steps() const;
  std::vector<std::vector<SeenChunk>> seen() const;
  // Besides what was collected: slots and tickets still held.
  std::vector<std::string> violations() const;

  // The greedy continuation of a prompt, computed without any engine.
  std::vector<int32_t> Greedy(std::vector<int32_t> prompt, int tokens) const;

 private:
  struct Slot {
    bool open = false;
    int reserved = 0;
    std::vector<int32_t> tokens;  // the "KV cache"
    uint64_t scope = 0;
  };
  struct Ticket {
    std::vector<int32_t> tokens;
    uint64_t step = 0;  // steps begun when it was asked for
  };
  void Violation(std::string what) { violations_.push_back(std::move(what)); }
  void TakeRows(const engine::Chunk& chunk, SeenChunk* seen);

  const ScriptedModelOptions options_;
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<Slot> past_;  // closed, if prefixes are reused
  int64_t kv_free_ = 0;
  std::map<uint32_t, Ticket> tickets_;
  uint32_t next_ticket_ = 0;
  uint64_t steps_ = 0;
  std::vector<std::vector<SeenChunk>> seen_;
  std::vector<std::string> violations_;
  std::function<absl::Status(uint64_t)> step_fault_;
  std::function<absl::Status(uint64_t, const engine::Chunk&)> chunk_fault_;
  std::function<void(uint64_t)> on_step_;
  absl::Status open_fault_;
  int open_faults_ = 0;
};

}  // namespace embergate::testing

#endif  // EMBERGATE_TESTS_SUPPORT_SCRIPTED_MODEL_H_
