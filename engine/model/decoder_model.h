// The real language model: a Gemma 3n or Gemma 4 text decoder whose weights come from a GGUF file and whose
// per-layer embeddings are read from that file's table row by row.
#ifndef EMBERGATE_ENGINE_MODEL_DECODER_MODEL_H_
#define EMBERGATE_ENGINE_MODEL_DECODER_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/language_model.h"
#include "engine/model/step_profile.h"
#include "engine/thread_pool.h"
#include "storage/gguf_file.h"
#include "storage/row_store.h"

namespace embergate::engine {

// kAuto: f32 where the model's attention weights are F32, F16 or BF16 (the cache is then as exact as they are),
// f16 otherwise.
enum class KvType { kAuto, kF32, kF16, kQ8_0, kQ4_0 };

struct DecoderOptions {
  int context_max = 4096;     // positions per sequence, prompt and output together; 0 = the model's own limit
  int slots_max = 8;          // sequences at once
  int64_t kv_tokens_max = 0;  // positions in the pool, all sequences together; 0 = context_max * slots_max
  int step_tokens_max = 256;  // tokens of one step, all sequences together
  int logit_rows_max = 0;     // positions with logits per step; 0 = slots_max
  KvType kv_type = KvType::kAuto;
  // Keep the keys and values of sequences that have ended, to reuse those of equal token prefixes: in the pages that
  // open slots have not reserved, and in `prefix_cache_bytes` besides that are for nothing else.
  bool prefix_cache = true;
  uint64_t prefix_cache_bytes = 0;
  bool table_resident = false;     // keep the per-layer embedding table in DRAM (for comparisons; needs gigabytes)
  storage::RowStoreOptions rows;   // its ticket and row bounds follow from the limits above
  uint64_t dram_budget_bytes = 0;  // 0 = none. Load refuses a model whose Plan, plus `dram_reserved_bytes`, exceeds it
  uint64_t dram_reserved_bytes = 0;  // what the process needs besides the model
};

// What a file is, for GetModelInfo, inspect and the start-up log.
struct ModelInfo {
  std::string name;          // general.name, or the file's name
  std::string architecture;  // "gemma4" or "gemma3n"
  int layers = 0;
  int hidden_size = 0;
  int vocab_size = 0;
  int context_trained = 0;  // the file's own limit
  int ple_width = 0;        // per layer; 0 = no per-layer embeddings
  uint64_t parameters = 0;
  uint64_t file_bytes = 0;
  uint64_t table_bytes = 0;  // the per-layer embedding table, on flash
  std::string weight_types;  // "Q4_0 187, F16 2, F32 210": tensors in use by type
  int tensors_skipped = 0;   // in the file but of no use to a text decoder: vision and audio towers, unused k and v
  uint64_t bytes_skipped = 0;
};

class DecoderModel : public LanguageModel {
 public:
  // Reads and checks everything that the file says of the model, then computes the DRAM that it would take, by part,
  // without loading. Errors: UNIMPLEMENTED (an architecture or tensor type that is not served; lists those that
  // are), FAILED_PRECONDITION (tensors and metadata disagree; names both).
  static absl::StatusOr<std::vector<MemoryPart>> Plan(const storage::GgufFile& file, const DecoderOptions& options);
  static absl::StatusOr<ModelInfo> Describe(const storage::GgufFile& file);

  // Loads the weights. `pool` is borrowed. `progress` (may be empty) gets bytes done and in all, from the calling
  // thread. Besides Plan's errors: RESOURCE_EXHAUSTED when the budget cannot hold it, with the smallest that would do.
  using Progress = std::function<void(uint64_t done, uint64_t total)>;
  static absl::StatusOr<std::unique_ptr<DecoderModel>> Load(const storage::GgufFile& file,
                                                            const DecoderOptions& options, ThreadPool& pool,
                                                            const Progress& progress);

  virtual const ModelInfo& info() const = 0;
  virtual storage::RowStoreStats RowStats() const = 0;  // any thread
  // Reads a few random rows from flash, cached or not, without waiting: whether they arrive shows in RowStats by the
  // time of the next call. What a server does that wants to know whether a device that failed works again. Engine
  // thread.
  virtual void ProbeFlash() = 0;
  // Up to `tokens_max` tokens whose rows are cached, the most valued first; and the reverse at a start, which gives up
  // after `time_max` or at the first failure. Returns how many rows it brought. Engine thread; both allocate.
  virtual std::vector<int32_t> HotTokens(size_t tokens_max) const = 0;
  virtual int WarmRows(absl::Span<const int32_t> tokens, absl::Duration time_max) = 0;
  // Where the time of all steps so far went, and what they read and multiplied; engine thread.
  virtual const StepProfile& profile() const = 0;
  virtual void ResetProfile() = 0;
  // For benchmarks: an open slot's next `count` positions count as stored, with whatever the cache holds. What follows
  // costs the time of that context; its logits mean nothing. INVALID_ARGUMENT past the reservation.
  virtual absl::Status SkipPositions(int slot, int count) = 0;

  // For tests and debugging: `probe` (null = none; borrowed) sees named intermediate values of each step. `layer`
  // counts from 0; values are [tokens, width] of the tokens that the layer computes.
  using Probe = std::function<void(const char* name, int layer, const float* values, int tokens, int64_t width)>;
  virtual void SetProbe(const Probe* probe) = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_DECODER_MODEL_H_
