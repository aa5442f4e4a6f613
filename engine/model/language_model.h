// What the step loop needs of a model. Two implementations: DecoderModel (the real one) and, in tests, a scripted
// one that needs no weights.
#ifndef EMBERGATE_ENGINE_MODEL_LANGUAGE_MODEL_H_
#define EMBERGATE_ENGINE_MODEL_LANGUAGE_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/row_store.h"

namespace embergate::engine {

enum class LogitsWanted { kNone, kLast, kAll };

// What a chunk's tokens cost in table rows. Rows are distinct rows; bytes are those read from the device for them,
// alignment included.
struct RowUse {
  uint64_t requested = 0;
  uint64_t cache_hits = 0;  // in DRAM already, or on their way for another sequence
  uint64_t read = 0;        // from flash
  uint64_t bytes = 0;
};

// One sequence's share of a step.
struct Chunk {
  int slot = 0;                      // opened with OpenSlot
  absl::Span<const int32_t> tokens;  // ids; >= 1 of them, each < limits().vocab_size
  int start = 0;                     // position of tokens[0]; the slot's KV holds positions < start
  LogitsWanted logits = LogitsWanted::kNone;
  storage::RowTicket rows;  // from PrefetchRows(tokens); invalid = the model reads them itself
  // Out: OK, or why this sequence must end (a flash read failed). The other chunks are unaffected.
  absl::Status status;
  RowUse rows_used;  // Out: for receipts; zeros from a model without a table on flash
};

struct ModelLimits {
  int vocab_size = 0;
  int context_max = 0;  // positions per slot
  int slots_max = 0;
  int step_tokens_max = 0;  // tokens of all chunks of one step together
  int logit_rows_max = 0;   // positions with logits per step
};

// Bytes held, by part; the start-up table, GetModelInfo and the metrics print them.
struct MemoryPart {
  std::string name;  // "weights", "kv_cache", "row_cache", ...
  uint64_t bytes = 0;
};

// Where a step's time went, in ns, for receipts and metrics.
struct StepTimes {
  uint64_t total_ns = 0;
  uint64_t row_wait_ns = 0;  // computing waited for flash
};

// Reuse of the keys and values of token prefixes. Counters since start, then gauges.
struct PrefixCacheStats {
  uint64_t lookups = 0;        // sequences that asked
  uint64_t hits = 0;           // of these, those that had to compute less than all
  uint64_t tokens_reused = 0;  // not computed again
  uint64_t blocks_evicted = 0;
  int64_t tokens_cached = 0;  // held for sequences to come; what running ones hold is not counted
  uint64_t bytes_cached = 0;
};

// Threads: everything is called by the engine thread, but limits() and Memory() by any.
class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  virtual const ModelLimits& limits() const = 0;
  virtual std::vector<MemoryPart> Memory() const = 0;

  // Reserves KV for `tokens_max` positions. RESOURCE_EXHAUSTED when the pool cannot hold them now,
  // INVALID_ARGUMENT when it never could.
  virtual absl::Status OpenSlot(int slot, int tokens_max) = 0;
  // OpenSlot for a sequence that begins with `tokens` and may share keys and values with others of its `scope`, running
  // or gone, token for token the same. Returns how many of the tokens, from the front, are in the slot already: the
  // first chunk starts there. It may be all of them; a caller that wants logits of the last one leaves that one out.
  // Logits do not depend on it.
  virtual absl::StatusOr<int> OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> /*tokens*/,
                                                 uint64_t /*scope*/) {
    const absl::Status status = OpenSlot(slot, tokens_max);
    return status.ok() ? absl::StatusOr<int>(0) : status;
  }
  // Whether that can ever be more than 0.
  virtual bool reuses_prefixes() const { return false; }
  // What OpenSlotWithPrefix would return now.
  virtual int CachedPrefix(absl::Span<const int32_t> /*tokens*/, uint64_t /*scope*/) const { return 0; }
  virtual PrefixCacheStats PrefixStats() const { return {}; }
  virtual void CloseSlot(int slot) = 0;
  // Positions that could be reserved now, for admission.
  virtual int64_t FreeKvTokens() const = 0;
  // KV memory of these open slots together, at the most that each has held; what they share counts once, what others
  // share with them in full. For receipts; 0 where a model does not count it.
  virtual uint64_t KvBytes(absl::Span<const int> /*slots*/) const { return 0; }

  // Asks for the table rows of a coming Step's tokens and returns at once. The flash reads start with SendRows, or with
  // Step for those asked for before it: all together, in one batch. A model without a table on flash returns an invalid
  // ticket. ReleaseRows is for a ticket that no Step will consume (Step releases the others).
  virtual absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t> tokens) = 0;
  // For a chunk without logits a model may read less of each row: say so with PrefetchChunkRows, whose ticket then
  // serves no chunk that wants more.
  virtual absl::StatusOr<storage::RowTicket> PrefetchChunkRows(absl::Span<const int32_t> tokens,
                                                               LogitsWanted /*logits*/) {
    return PrefetchRows(tokens);
  }
  virtual void SendRows() {}
  virtual void ReleaseRows(storage::RowTicket ticket) = 0;

  // Computes all chunks together. `logits` gets one row of vocab_size floats (after the softcap) for each position
  // that wants them, in the order of chunks and positions; its rows for a chunk whose status is not OK are
  // unspecified. A token's logits do not depend on the other chunks or on how its prompt was cut.
  // Whatever it returns, it has released the chunks' tickets. After an error of the whole step (not of one chunk) the
  // KV of the chunks' slots is unspecified: the caller closes them. Slots outside the step are unharmed.
  virtual absl::Status Step(absl::Span<Chunk> chunks, absl::Span<float> logits, StepTimes* times) = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_LANGUAGE_MODEL_H_
