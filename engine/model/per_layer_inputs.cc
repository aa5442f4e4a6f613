#include "engine/model/per_layer_inputs.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/table_checksums.h"
#include "engine/kernels/kernels.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr int kProbeRows = 4;

// Whether a chunk reads any row: one that wants no logits uses the common layers' part only.
bool NeedsRows(const Chunk& chunk, int common_layers) {
  return chunk.logits != LogitsWanted::kNone || common_layers > 0;
}

}  // namespace

storage::RowStoreOptions PerLayerInputs::RowOptions(const DecoderOptions& options, const ModelLimits& limits) {
  storage::RowStoreOptions rows = options.rows;
  // A slot has at most the rows of the step being computed and those of its next one; two requests wait with theirs
  // read ahead; a probe has a few.
  rows.tickets_max = 2 * limits.slots_max + 3;
  rows.rows_per_ticket_max = limits.step_tokens_max;
  rows.rows_pinned_max = 2 * limits.step_tokens_max + kProbeRows;
  return rows;
}

uint64_t PerLayerInputs::ScratchBytesFor(const ModelConfig& config, const ModelLimits& limits, int workers) {
  const uint64_t width = config.ple_width;
  const uint64_t rest_layers = config.layer_count() - config.common_layers();
  return sizeof(float) * width *
         (uint64_t{1} * limits.step_tokens_max * config.common_layers() + limits.logit_rows_max * rest_layers +
          uint64_t{1} * workers * config.layer_count());
}

absl::StatusOr<std::unique_ptr<PerLayerInputs>> PerLayerInputs::Create(const storage::GgufFile& file,
                                                                       const ModelConfig& config,
                                                                       const DecoderOptions& options,
                                                                       const ModelLimits& limits, ThreadPool& pool) {
  auto inputs = std::unique_ptr<PerLayerInputs>(new PerLayerInputs(config, pool));
  if (config.ple_width == 0) {
    return inputs;
  }
  const storage::GgufTensor& table = *file.FindTensor(gguf::kPerLayerTokenEmbd);  // ReadModelConfig found it
  inputs->type_ = table.type;
  inputs->width_ = config.ple_width;
  inputs->common_layers_ = config.common_layers();
  inputs->rest_layers_ = config.layer_count() - config.common_layers();
  inputs->row_bytes_ = table.row_bytes();
  const uint64_t prefix_elements =
      static_cast<uint64_t>(config.common_layers()) * static_cast<uint64_t>(config.ple_width);
  inputs->prefix_bytes_ = PrefixBytes(table.type, prefix_elements);
  const int64_t block_elements = storage::TraitsOf(table.type).block_elements;
  inputs->prefix_elements_ =
      (static_cast<int64_t>(prefix_elements) + block_elements - 1) / block_elements * block_elements;
  inputs->common_ =
      AlignedBuffer<float>(size_t{1} * limits.step_tokens_max * config.common_layers() * config.ple_width);
  inputs->rest_ = AlignedBuffer<float>(size_t{1} * limits.logit_rows_max * inputs->rest_layers_ * config.ple_width);
  inputs->row_scratch_ = AlignedBuffer<float>(size_t{1} * pool.threads() * config.layer_count() * config.ple_width);
  if (inputs->common_.refused() || inputs->rest_.refused() || inputs->row_scratch_.refused()) {
    return absl::ResourceExhaustedError("no memory for the per-layer inputs; lower the tokens of a step");
  }
  inputs->row_ids_.reserve(limits.step_tokens_max);
  if (options.table_resident) {
    inputs->resident_ = AlignedBuffer<uint8_t>(table.bytes);
    if (inputs->resident_.refused()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory to keep the table of ", table.bytes, " bytes resident; leave it on flash"));
    }
    constexpr uint64_t kPieceBytes = 16u << 20;
    for (uint64_t offset = 0; offset < table.bytes; offset += kPieceBytes) {
      const uint64_t bytes = std::min(kPieceBytes, table.bytes - offset);
      EMBERGATE_RETURN_IF_ERROR(
          file.ReadTensor(table, offset, absl::MakeSpan(inputs->resident_.data() + offset, bytes)));
    }
    return inputs;
  }
  storage::TableSpec spec;
  spec.path = file.shard_path(table.shard);
  spec.file_offset = table.file_offset;
  spec.row_bytes = table.row_bytes();
  spec.row_count = table.rows();
  EMBERGATE_ASSIGN_OR_RETURN(spec.checksums, LoadTableChecksums(file, table, spec));
  const storage::RowStoreOptions rows = RowOptions(options, limits);
  EMBERGATE_ASSIGN_OR_RETURN(inputs->store_, storage::RowStore::Create({spec}, rows));
  return inputs;
}

absl::StatusOr<storage::RowTicket> PerLayerInputs::Prefetch(absl::Span<const int32_t> tokens, LogitsWanted logits) {
  if (store_ == nullptr) {
    return storage::RowTicket();
  }
  if (tokens.size() > row_ids_.capacity()) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens asked for; a step has at most ", row_ids_.capacity()));
  }
  row_ids_.clear();
  for (const int32_t id : tokens) {
    if (id < 0 || id >= config_.vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is outside of the vocabulary of ", config_.vocab));
    }
    row_ids_.push_back(id < config_.ple_rows ? id : 0);
  }
  const bool prefix = logits == LogitsWanted::kNone && prefix_bytes_ > 0 && prefix_bytes_ < row_bytes_;
  return store_->Stage(0, row_ids_, prefix ? prefix_bytes_ : 0);
}

RowUse PerLayerInputs::UseOf(storage::RowTicket ticket) const {
  const storage::RowCounts counts = store_->Counts(ticket);
  RowUse use;
  use.cache_hits = counts.found;
  use.read = counts.read;
  use.requested = use.cache_hits + use.read;
  use.bytes = counts.device_bytes;
  return use;
}

void PerLayerInputs::Release(storage::RowTicket ticket) {
  if (store_ != nullptr && ticket.valid()) {
    store_->Release(ticket);
  }
}

void PerLayerInputs::Submit(absl::Span<Chunk> chunks) {
  joined_ = false;
  for (Chunk& chunk : chunks) {
    if (store_ == nullptr || chunk.rows.valid() || !NeedsRows(chunk, common_layers_)) {
      continue;
    }
    absl::StatusOr<storage::RowTicket> ticket = Prefetch(chunk.tokens, chunk.logits);
    if (ticket.ok()) {
      chunk.rows = *ticket;
    } else {
      chunk.status = ticket.status();
    }
  }
  Send();
}

void PerLayerInputs::Project(const StepBatch& batch, const Weights& weights, const float* embedding, float* gathered,
                             MatMulInput& input, StepProfile& profile) {
  if (width_ == 0 || config_.ple_rows_finished) {
    return;
  }
  const int64_t hidden = config_.hidden;
  const auto product = [&](const Matrix& w, int tokens, float* out) {
    Poll();
    MatMul(w, input, out, w.rows(), pool_);
    profile.multiply_adds += static_cast<uint64_t>(w.rows() * w.cols() * tokens);
    profile.weight_bytes += w.resident_bytes();
  };
  input.Set(embedding, batch.size(), hidden, hidden);
  if (common_layers_ > 0) {
    product(weights.ple_model_projection_common, batch.size(), common_.data());
  }
  if (batch.wanted_size() > 0) {
    if (batch.wanted_size() < batch.size()) {
      for (int i = 0; i < batch.wanted_size(); ++i) {
        std::memcpy(gathered + i * hidden, embedding + batch.wanted[i] * hidden, hidden * sizeof(float));
      }
      input.Set(gathered, batch.wanted_size(), hidden, hidden);
    }
    product(weights.ple_model_projection_rest, batch.wanted_size(), rest_.data());
  }
  profile.Mark(StepOp::kPleProjection);
}

void SumPerLayerInputs(const ModelConfig& config, const Vector& norm, const float* row, int layers, float* c) {
  const int64_t width = config.ple_width;
  const float projection_scale = 1.0f / std::sqrt(static_cast<float>(config.hidden));
  const float row_scale = std::sqrt(static_cast<float>(width));
  const float sum_scale = std::sqrt(0.5f);
  for (int l = 0; l < layers; ++l, c += width, row += width) {
    Scale(c, projection_scale, width, c);
    RmsNorm(c, norm.data(), width, config.rms_eps, c);
    AddScaled(c, row, row_scale, width, c);
    Scale(c, sum_scale, width, c);
  }
}

void PerLayerInputs::FinishToken(const StepToken& token, int index, const uint8_t* row, const Vector& norm,
                                 float* scratch) {
  const auto sum = [&](float* c, const float* t, int layers) {
    if (config_.ple_rows_finished) {
      std::copy_n(t, int64_t{layers} * width_, c);
    } else {
      SumPerLayerInputs(config_, norm, t, layers, c);
    }
  };
  const int64_t common_values = int64_t{common_layers_} * width_;
  const int64_t rest_values = int64_t{rest_layers_} * width_;
  DequantizeRow(type_, row, token.wanted >= 0 ? common_values + rest_values : prefix_elements_, scratch);
  sum(common_.data() + index * common_values, scratch, common_layers_);
  if (token.wanted >= 0) {
    sum(rest_.data() + token.wanted * rest_values, scratch + common_values, rest_layers_);
  }
}

void PerLayerInputs::Join(const StepBatch& batch, absl::Span<Chunk> chunks, const Weights& weights,
                          StepProfile& profile) {
  if (joined_ || width_ == 0) {
    return;
  }
  joined_ = true;
  if (store_ != nullptr) {
    for (Chunk& chunk : chunks) {
      if (!chunk.rows.valid() || !chunk.status.ok()) {
        continue;
      }
      const absl::Status status = store_->Wait(chunk.rows);
      chunk.rows_used = UseOf(chunk.rows);
      if (!status.ok()) {
        chunk.status = absl::Status(status.code(),
                                    absl::StrCat("reading the per-layer embeddings of a sequence: ", status.message()));
        continue;
      }
      const uint64_t needed = chunk.logits == LogitsWanted::kNone ? prefix_bytes_ : row_bytes_;
      if (store_->Row(chunk.rows, chunk.tokens.size() - 1).size() < needed) {
        chunk.status =
            absl::InvalidArgumentError("rows were prefetched for a chunk without logits, but logits are wanted");
      }
    }
  }
  profile.Mark(StepOp::kRowWait);
  pool_.ParallelFor(batch.size(), 1, [&](int64_t begin, int64_t end, int worker) {
    float* scratch = row_scratch_.data() + int64_t{worker} * config_.layer_count() * width_;
    for (int64_t i = begin; i < end; ++i) {
      const StepToken& token = batch.tokens[i];
      const Chunk& chunk = chunks[token.chunk];
      if (!chunk.status.ok() || !NeedsRows(chunk, common_layers_)) {
        continue;
      }
      const uint8_t* row = store_ == nullptr
                               ? resident_.data() + (token.id < config_.ple_rows ? token.id : 0) * row_bytes_
                               : store_->Row(chunk.rows, token.position - chunk.start).data();
      FinishToken(token, static_cast<int>(i), row, weights.ple_projection_norm, scratch);
    }
  });
  Abandon(chunks);
  profile.Mark(StepOp::kPleRows);
}

void PerLayerInputs::Abandon(absl::Span<Chunk> chunks) {
  for (Chunk& chunk : chunks) {
    Release(chunk.rows);
    chunk.rows = storage::RowTicket();
  }
}

void PerLayerInputs::ProbeFlash() {
  if (store_ == nullptr) {
    return;
  }
  if (probe_.valid()) {
    if (!store_->Ready(probe_)) {
      return;  // the device still has to answer the last one
    }
    store_->Release(probe_);
    probe_ = storage::RowTicket();
  }
  storage::RowId rows[kProbeRows];
  for (storage::RowId& row : rows) {
    row.row = probe_rows_() % static_cast<uint64_t>(config_.ple_rows);
  }
  if (const auto ticket = store_->SubmitFresh(absl::MakeConstSpan(rows)); ticket.ok()) {
    probe_ = *ticket;
  }
}

std::vector<int32_t> PerLayerInputs::HotTokens(size_t tokens_max) const {
  std::vector<int32_t> tokens;
  if (store_ != nullptr) {
    for (const storage::RowId& row : store_->HotRows(tokens_max)) {
      tokens.push_back(static_cast<int32_t>(row.row));
    }
  }
  return tokens;
}

int PerLayerInputs::Warm(absl::Span<const int32_t> tokens, absl::Duration time_max) {
  if (store_ == nullptr) {
    return 0;
  }
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(time_max);
  int warm = 0;
  // The most valued last, since a row's place in the cache follows from when it came.
  for (size_t end = tokens.size(); end > 0 && std::chrono::steady_clock::now() < deadline;) {
    const size_t begin = end - std::min(end, row_ids_.capacity());
    row_ids_.clear();
    for (size_t i = end; i > begin; --i) {
      if (tokens[i - 1] >= 0 && tokens[i - 1] < config_.ple_rows) {
        row_ids_.push_back(static_cast<uint64_t>(tokens[i - 1]));
      }
    }
    end = begin;
    // Twice: a row that is asked for once might be one of a long prompt's, and would be the first to go.
    for (int use = 0; use < 2; ++use) {
      const auto ticket = store_->Submit(0, row_ids_);
      if (!ticket.ok()) {
        return warm;
      }
      const bool good = store_->Wait(*ticket).ok();
      store_->Release(*ticket);
      if (!good) {
        return warm;
      }
    }
    warm += static_cast<int>(row_ids_.size());
  }
  return warm;
}

storage::RowStoreStats PerLayerInputs::Stats() const {
  return store_ == nullptr ? storage::RowStoreStats() : store_->Snapshot();
}

}  // namespace embergate::engine
