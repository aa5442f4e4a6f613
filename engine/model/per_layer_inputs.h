// The per-layer inputs of a step's tokens (reference, section 2): a row of the table, which lies on flash or, for
// comparisons, in memory, plus a projection of the token's embedding; or the row alone, where a file's rows are
// finished.
//
// Made in three parts so that flash works while the processor does: Submit starts the reads, Project computes the half
// that needs no row, Join, called by the first layer that consumes the result, waits and sums.
#ifndef EMBERGATE_ENGINE_MODEL_PER_LAYER_INPUTS_H_
#define EMBERGATE_ENGINE_MODEL_PER_LAYER_INPUTS_H_

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/config.h"
#include "engine/model/decoder_model.h"
#include "engine/model/language_model.h"
#include "engine/model/step_batch.h"
#include "engine/model/step_profile.h"
#include "engine/model/weights.h"
#include "storage/gguf_file.h"
#include "storage/row_store.h"

namespace embergate::engine {

// c[l] = (norm(c[l] * d^(-1/2); norm) + row[l] * sqrt(p)) * 2^(-1/2) for `layers` slices of p values: c comes in as the
// projection of the token's embedding and goes out as its per-layer inputs.
void SumPerLayerInputs(const ModelConfig& config, const Vector& norm, const float* row, int layers, float* c);

// Threads: the engine thread, but Stats from any. Allocates nothing after Create.
class PerLayerInputs {
 public:
  // `file` is needed only during Create. Errors: those of RowStore::Create; RESOURCE_EXHAUSTED (memory refused).
  static absl::StatusOr<std::unique_ptr<PerLayerInputs>> Create(const storage::GgufFile& file,
                                                                const ModelConfig& config,
                                                                const DecoderOptions& options,
                                                                const ModelLimits& limits, ThreadPool& pool);
  // Of the projections and sums; the row store's own memory is in Stats.
  static uint64_t ScratchBytesFor(const ModelConfig& config, const ModelLimits& limits, int workers);
  // The row store's options that follow from the limits; the others are the caller's.
  static storage::RowStoreOptions RowOptions(const DecoderOptions& options, const ModelLimits& limits);

  // Takes note of the reads for a chunk; Send, Submit or waiting for them starts all that were noted as one batch.
  absl::StatusOr<storage::RowTicket> Prefetch(absl::Span<const int32_t> tokens, LogitsWanted logits);
  void Send() {
    if (store_ != nullptr) {
      store_->Send();
    }
  }
  void Release(storage::RowTicket ticket);

  // Starts the reads of chunks that bring no ticket. A chunk whose submission fails gets the error as its status.
  void Submit(absl::Span<Chunk> chunks);
  // Fills in the projections of `embedding` [tokens, hidden]; `gathered` [wanted, hidden] is scratch.
  void Project(const StepBatch& batch, const Weights& weights, const float* embedding, float* gathered,
               MatMulInput& input, StepProfile& profile);
  // Waits for the rows of all chunks, sums, and releases the tickets. A chunk whose rows failed gets the error as its
  // status and unspecified inputs. Again in the same step: nothing.
  void Join(const StepBatch& batch, absl::Span<Chunk> chunks, const Weights& weights, StepProfile& profile);
  // Lets reads proceed that wait for a place in the device's queue; between products.
  void Poll() {
    if (store_ != nullptr) {
      store_->Poll();
    }
  }
  // Gives back what Submit or the caller started and Join did not get to.
  void Abandon(absl::Span<Chunk> chunks);

  // The input [width] of a layer, after Join. Below config.common_layers(), `index` counts the step's tokens; from
  // there on, those whose logits are wanted.
  const float* At(int layer, int index) const {
    return layer < common_layers_ ? common_.data() + (int64_t{index} * common_layers_ + layer) * width_
                                  : rest_.data() + (int64_t{index} * rest_layers_ + layer - common_layers_) * width_;
  }

  // As in DecoderModel.
  void ProbeFlash();
  std::vector<int32_t> HotTokens(size_t tokens_max) const;
  int Warm(absl::Span<const int32_t> tokens, absl::Duration time_max);

  storage::RowStoreStats Stats() const;
  uint64_t resident_table_bytes() const { return resident_.bytes(); }
  uint64_t scratch_bytes() const { return common_.bytes() + rest_.bytes() + row_scratch_.bytes(); }

 private:
  PerLayerInputs(const ModelConfig& config, ThreadPool& pool) : config_(config), pool_(pool) {}
  RowUse UseOf(storage::RowTicket ticket) const;
  void FinishToken(const StepToken& token, int index, const uint8_t* row, const Vector& norm, float* scratch);

  const ModelConfig& config_;
  ThreadPool& pool_;
  storage::TensorType type_ = storage::TensorType::kF32;
  int width_ = 0;
  int common_layers_ = 0;
  int rest_layers_ = 0;
  uint64_t row_bytes_ = 0;
  uint64_t prefix_bytes_ = 0;                 // what the common layers need of a row
  int64_t prefix_elements_ = 0;               // as whole blocks
  std::unique_ptr<storage::RowStore> store_;  // null when resident
  AlignedBuffer<uint8_t> resident_;           // [rows, row_bytes]
  AlignedBuffer<float> common_;               // [tokens, common layers, width]
  AlignedBuffer<float> rest_;                 // [wanted, the other layers, width]
  AlignedBuffer<float> row_scratch_;          // [workers, layers * width]
  std::vector<uint64_t> row_ids_;
  storage::RowTicket probe_;  // not yet answered
  std::mt19937_64 probe_rows_;
  bool joined_ = true;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_PER_LAYER_INPUTS_H_
