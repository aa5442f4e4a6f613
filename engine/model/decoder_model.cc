#include "engine/model/decoder_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/table_checksums.h"
#include "engine/cpus.h"
#include "engine/kernels/sparse_matmul.h"
#include "engine/model/activations.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/layers.h"
#include "engine/model/per_layer_inputs.h"
#include "engine/model/rope.h"
#include "engine/model/weights.h"
#include "storage/base/status_macros.h"
#include "storage/row_cache.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be ", low, " to ", high));
  }
  return absl::OkStatus();
}

// The limits that the options ask for, within what the model can do.
absl::StatusOr<ModelLimits> LimitsFor(const ModelConfig& config, const DecoderOptions& options) {
  EMBERGATE_RETURN_IF_ERROR(CheckRange("context_max", options.context_max, 0, ConfigBounds::kContextMax));
  EMBERGATE_RETURN_IF_ERROR(CheckRange("slots_max", options.slots_max, 1, 1024));
  EMBERGATE_RETURN_IF_ERROR(CheckRange("step_tokens_max", options.step_tokens_max, 1, 1 << 16));
  EMBERGATE_RETURN_IF_ERROR(CheckRange("logit_rows_max", options.logit_rows_max, 0, 1 << 16));
  EMBERGATE_RETURN_IF_ERROR(CheckRange("kv_tokens_max", options.kv_tokens_max, 0, int64_t{1} << 32));
  ModelLimits limits;
  limits.vocab_size = config.vocab;
  limits.context_max =
      options.context_max > 0 ? std::min(options.context_max, config.context_trained) : config.context_trained;
  limits.slots_max = options.slots_max;
  limits.step_tokens_max = options.step_tokens_max;
  limits.logit_rows_max =
      std::min(options.logit_rows_max > 0 ? options.logit_rows_max : options.slots_max, options.step_tokens_max);
  return limits;
}

// The type of the KV cache for kAuto follows the attention weights' precision.
TensorType KvTensorType(const storage::GgufFile& file, const ModelConfig& config, KvType type) {
  switch (type) {
    case KvType::kF32:
      return TensorType::kF32;
    case KvType::kF16:
      return TensorType::kF16;
    case KvType::kQ8_0:
      return TensorType::kQ8_0;
    case KvType::kQ4_0:
      return TensorType::kQ4_0;
    case KvType::kAuto:
      break;
  }
  for (int i = 0; i < config.layer_count(); ++i) {
    for (const char* name : {gguf::kAttnQ, gguf::kAttnK, gguf::kAttnV, "attn_qkv"}) {
      const storage::GgufTensor* tensor = file.FindTensor(gguf::LayerTensor(i, name));
      if (tensor != nullptr && tensor->type != TensorType::kF32 && tensor->type != TensorType::kF16 &&
          tensor->type != TensorType::kBF16) {
        return TensorType::kF16;
      }
    }
  }
  return TensorType::kF32;
}

KvLimits KvLimitsFor(const storage::GgufFile& file, const ModelConfig& config, const DecoderOptions& options,
                     const ModelLimits& limits) {
  KvLimits kv;
  kv.slots = limits.slots_max;
  kv.context_max = limits.context_max;
  kv.tokens_max = options.kv_tokens_max;
  kv.step_tokens_max = limits.step_tokens_max;
  kv.type = KvTensorType(file, config, options.kv_type);
  kv.keep_prefixes = options.prefix_cache;
  kv.prefix_bytes = options.prefix_cache_bytes;
  return kv;
}

// A cache that could hold the whole table grows no further.
uint64_t RowCacheBytes(const storage::GgufTensor& table, const storage::RowStoreOptions& rows) {
  const uint64_t each = storage::RowCache::BytesPerCachedRow(static_cast<uint32_t>(table.row_bytes()));
  return std::min(rows.cache_bytes, table.rows() * each);
}

// What the row store takes besides its cache: the rows that tickets hold, a landing buffer for each read in flight, and
// the tickets themselves.
uint64_t RowBufferBytes(const storage::GgufTensor& table, const storage::RowStoreOptions& rows) {
  constexpr uint64_t kDeviceBlock = 4096;
  constexpr uint64_t kReadBytesMin = 16384;
  constexpr uint64_t kEntryBytes = 128;  // of a held row's bookkeeping, rounding to 64 bytes included
  const uint64_t read_bytes = std::max((table.row_bytes() / kDeviceBlock + 2) * kDeviceBlock, kReadBytesMin);
  return static_cast<uint64_t>(rows.rows_pinned_max) * (table.row_bytes() + kEntryBytes) +
         static_cast<uint64_t>(rows.queue_depth) * (read_bytes + 2 * kDeviceBlock) +
         static_cast<uint64_t>(rows.tickets_max) * (static_cast<uint64_t>(rows.rows_per_ticket_max) * 8 + kEntryBytes);
}

// The widest input of a sparse product: `up` has d columns, `down` the feed-forward's width.
int64_t SparseColumnsMax(const ModelConfig& config) { return std::max(config.hidden, config.feed_forward_max()); }

uint64_t SparseScratchBytesFor(const ModelConfig& config, const ModelLimits& limits, int workers) {
  return config.has_sparse_layers() ? SparseScratch::BytesFor(limits.step_tokens_max, SparseColumnsMax(config), workers)
                                    : 0;
}

absl::StatusOr<std::vector<MemoryPart>> PlanParts(const storage::GgufFile& file, const ModelConfig& config,
                                                  const WeightsSummary& summary, const DecoderOptions& options,
                                                  int workers) {
  EMBERGATE_ASSIGN_OR_RETURN(const ModelLimits limits, LimitsFor(config, options));
  std::vector<MemoryPart> parts;
  parts.push_back({"weights", summary.resident_bytes});
  EMBERGATE_ASSIGN_OR_RETURN(const KvCache::Bytes kv_bytes,
                             KvCache::BytesFor(config, KvLimitsFor(file, config, options, limits)));
  parts.push_back({"kv_cache", kv_bytes.slots});
  if (kv_bytes.prefixes > 0) {
    parts.push_back({"prefix_cache", kv_bytes.prefixes});
  }
  uint64_t scratch = Activations::BytesFor(config, limits.step_tokens_max, limits.context_max, workers);
  scratch += Activations::InputBytesFor(config, limits.step_tokens_max, workers);
  scratch += SparseScratchBytesFor(config, limits, workers);
  if (config.ple_width > 0) {
    scratch += PerLayerInputs::ScratchBytesFor(config, limits, workers);
    const storage::GgufTensor& table = *file.FindTensor(gguf::kPerLayerTokenEmbd);
    if (options.table_resident) {
      parts.push_back({"table", table.bytes});
    } else {
      parts.push_back({"row_cache", RowCacheBytes(table, options.rows)});
      parts.push_back({"row_buffers", RowBufferBytes(table, PerLayerInputs::RowOptions(options, limits)) +
                                          TableChecksumBytes(file, table)});
    }
  }
  parts.push_back({"scratch", scratch});
  return parts;
}

uint64_t Total(const std::vector<MemoryPart>& parts) {
  uint64_t total = 0;
  for (const MemoryPart& part : parts) {
    total += part.bytes;
  }
  return total;
}

std::string Mebibytes(uint64_t bytes) { return absl::StrCat((bytes + (1u << 20) - 1) >> 20, " MiB"); }

// Refuses a plan that the budget cannot hold, with what would do and what to lower.
absl::Status CheckBudget(const std::vector<MemoryPart>& parts, const DecoderOptions& options) {
  const uint64_t needed = Total(parts) + options.dram_reserved_bytes;
  if (options.dram_budget_bytes == 0 || needed <= options.dram_budget_bytes) {
    return absl::OkStatus();
  }
  std::vector<std::string> lines;
  for (const MemoryPart& part : parts) {
    lines.push_back(absl::StrCat(part.name, " ", Mebibytes(part.bytes)));
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the DRAM budget of ", Mebibytes(options.dram_budget_bytes), " cannot hold this model: ",
      absl::StrJoin(lines, ", "), ", the process itself ", Mebibytes(options.dram_reserved_bytes),
      "; the smallest budget that would do with these settings is ", Mebibytes(needed), " (", needed,
      " bytes); a smaller context, fewer slots, fewer tokens per step, a smaller row cache or prefix cache lower it"));
}

absl::Status CheckRopeFactors(const storage::GgufFile& file, const Weights& weights) {
  for (const float factor : weights.rope_factors) {
    if (!(factor > 0) || std::isinf(factor)) {
      return absl::FailedPreconditionError(absl::StrCat(file.shard_path(0), ": tensor '", gguf::kRopeFreqs, "' holds ",
                                                        factor, "; frequencies are divided by it"));
    }
  }
  return absl::OkStatus();
}

class GgufDecoderModel : public DecoderModel {
 public:
  GgufDecoderModel(ModelConfig config, ModelInfo info, ModelLimits limits, ThreadPool& pool)
      : config_(std::move(config)), info_(std::move(info)), limits_(limits), pool_(pool), slots_(limits.slots_max) {
    batch_.Reserve(limits_.step_tokens_max, limits_.logit_rows_max);
  }

  absl::Status Init(const storage::GgufFile& file, const DecoderOptions& options, const Progress& progress) {
    // What depends on no weight is made while they are read, for the kernel to clear its pages meanwhile.
    absl::Status made;
    std::thread maker([&] { made = MakeState(file, options); });
    absl::StatusOr<Weights> weights = LoadWeights(file, config_, pool_, progress);
    maker.join();
    EMBERGATE_RETURN_IF_ERROR(weights.status());
    EMBERGATE_RETURN_IF_ERROR(made);
    weights_ = *std::move(weights);
    EMBERGATE_RETURN_IF_ERROR(CheckRopeFactors(file, weights_));
    for (const LayerConfig& layer : config_.layers) {
      std::vector<float>& frequencies = layer.sliding ? frequencies_sliding_ : frequencies_full_;
      if (frequencies.empty()) {
        frequencies = layer.sliding ? InverseFrequencies(config_.rope_base_sliding, layer.head_dim, {})
                                    : InverseFrequencies(config_.rope_base_full, layer.head_dim, weights_.rope_factors);
      }
    }
    EMBERGATE_ASSIGN_OR_RETURN(ple_, PerLayerInputs::Create(file, config_, options, limits_, pool_));
    weight_bytes_ = ResidentBytes(weights_);
    return absl::OkStatus();
  }

  const ModelLimits& limits() const override { return limits_; }
  const ModelInfo& info() const override { return info_; }
  storage::RowStoreStats RowStats() const override { return ple_->Stats(); }
  void ProbeFlash() override { ple_->ProbeFlash(); }
  std::vector<int32_t> HotTokens(size_t tokens_max) const override { return ple_->HotTokens(tokens_max); }
  int WarmRows(absl::Span<const int32_t> tokens, absl::Duration time_max) override {
    return ple_->Warm(tokens, time_max);
  }
  const StepProfile& profile() const override { return profile_; }
  void ResetProfile() override { profile_ = StepProfile(); }
  absl::Status SkipPositions(int slot, int count) override {
    if (slot < 0 || slot >= limits_.slots_max || !kv_->is_open(slot) || count < 0 ||
        count > kv_->reserved(slot) - slots_[slot].length) {
      return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " has no room for ", count, " more positions"));
    }
    EMBERGATE_RETURN_IF_ERROR(kv_->Skip(slot, slots_[slot].length, count));
    slots_[slot].length += count;
    return absl::OkStatus();
  }
  void SetProbe(const Probe* probe) override { probe_ = probe; }

  std::vector<MemoryPart> Memory() const override {
    std::vector<MemoryPart> parts = {{"weights", weight_bytes_}, {"kv_cache", kv_->bytes().slots}};
    if (kv_->bytes().prefixes > 0) {
      parts.push_back({"prefix_cache", kv_->bytes().prefixes});
    }
    if (ple_->resident_table_bytes() > 0) {
      parts.push_back({"table", ple_->resident_table_bytes()});
    } else if (config_.ple_width > 0) {
      const storage::RowStoreStats rows = ple_->Stats();
      parts.push_back({"row_cache", rows.cache_bytes});
      parts.push_back({"row_buffers", rows.held_bytes + rows.buffer_bytes + rows.checksum_bytes + rows.other_bytes});
    }
    parts.push_back({"scratch", activations_->bytes() + sparse_.bytes() + ple_->scratch_bytes()});
    return parts;
  }

  absl::Status OpenSlot(int slot, int tokens_max) override {
    EMBERGATE_RETURN_IF_ERROR(kv_->OpenSlot(slot, tokens_max));
    slots_[slot] = SlotState();
    return absl::OkStatus();
  }
  absl::StatusOr<int> OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens,
                                         uint64_t scope) override {
    EMBERGATE_ASSIGN_OR_RETURN(const int reused, kv_->OpenSlotWithPrefix(slot, tokens_max, tokens, scope));
    slots_[slot] = SlotState();
    slots_[slot].length = reused;
    return reused;
  }
  bool reuses_prefixes() const override { return true; }
  int CachedPrefix(absl::Span<const int32_t> tokens, uint64_t scope) const override {
    return kv_->CachedPrefix(tokens, scope);
  }
  PrefixCacheStats PrefixStats() const override { return kv_->prefix_stats(); }
  void CloseSlot(int slot) override { kv_->CloseSlot(slot); }
  int64_t FreeKvTokens() const override { return kv_->FreeTokens(); }
  uint64_t KvBytes(absl::Span<const int> slots) const override { return kv_->BytesOf(slots); }

  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t> tokens) override {
    return ple_->Prefetch(tokens, LogitsWanted::kAll);
  }
  absl::StatusOr<storage::RowTicket> PrefetchChunkRows(absl::Span<const int32_t> tokens, LogitsWanted logits) override {
    return ple_->Prefetch(tokens, logits);
  }
  void SendRows() override { ple_->Send(); }
  void ReleaseRows(storage::RowTicket ticket) override { ple_->Release(ticket); }

  absl::Status Step(absl::Span<Chunk> chunks, absl::Span<float> logits, StepTimes* times) override {
    const auto start = std::chrono::steady_clock::now();
    const uint64_t wait_before = profile_.ns[static_cast<int>(StepOp::kRowWait)];
    profile_.Start();
    absl::Status status = BuildBatch(chunks, logits.size());
    for (size_t i = 0; status.ok() && i < chunks.size(); ++i) {
      status = kv_->Extend(chunks[i].slot, chunks[i].start, static_cast<int>(chunks[i].tokens.size()));
    }
    if (status.ok()) {
      Compute(chunks, logits.data());
    }
    ple_->Abandon(chunks);
    if (times != nullptr) {
      times->total_ns = static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
      times->row_wait_ns = profile_.ns[static_cast<int>(StepOp::kRowWait)] - wait_before;
    }
    return status;
  }

 private:
  // The sequences' state and a step's scratch.
  absl::Status MakeState(const storage::GgufFile& file, const DecoderOptions& options) {
    EMBERGATE_ASSIGN_OR_RETURN(kv_, KvCache::Create(config_, KvLimitsFor(file, config_, options, limits_)));
    activations_ =
        std::make_unique<Activations>(config_, limits_.step_tokens_max, limits_.context_max, pool_.threads());
    if (activations_->refused()) {
      return absl::ResourceExhaustedError("no memory for the scratch of a step; lower the tokens of a step");
    }
    if (config_.has_sparse_layers()) {
      EMBERGATE_ASSIGN_OR_RETURN(
          sparse_, SparseScratch::Create(limits_.step_tokens_max, SparseColumnsMax(config_), pool_.threads()));
    }
    return absl::OkStatus();
  }

  struct SlotState {
    int length = 0;       // positions stored
    bool failed = false;  // its keys and values are not to be trusted
    bool in_step = false;
  };

  // Checks the chunks against the limits and lists their tokens. Changes no slot.
  absl::Status BuildBatch(absl::Span<Chunk> chunks, size_t logits_size) {
    batch_.Clear();
    for (SlotState& slot : slots_) {
      slot.in_step = false;
    }
    for (size_t c = 0; c < chunks.size(); ++c) {
      EMBERGATE_RETURN_IF_ERROR(AddChunk(chunks[c], static_cast<int>(c)));
    }
    const uint64_t needed = static_cast<uint64_t>(batch_.wanted_size()) * limits_.vocab_size;
    if (logits_size < needed) {
      return absl::InvalidArgumentError(
          absl::StrCat("room for ", logits_size, " logits, but the step yields ", needed));
    }
    return absl::OkStatus();
  }

  absl::Status AddChunk(Chunk& chunk, int index) {
    chunk.status = absl::OkStatus();
    chunk.rows_used = RowUse();
    const int count = static_cast<int>(chunk.tokens.size());
    if (chunk.slot < 0 || chunk.slot >= limits_.slots_max || !kv_->is_open(chunk.slot)) {
      return absl::InvalidArgumentError(absl::StrCat("slot ", chunk.slot, " is not open"));
    }
    SlotState& slot = slots_[chunk.slot];
    if (slot.failed || slot.in_step) {
      return absl::FailedPreconditionError(
          absl::StrCat("slot ", chunk.slot, slot.failed ? " failed before; close it" : " is in this step twice"));
    }
    if (count < 1 || batch_.size() + count > limits_.step_tokens_max) {
      return absl::InvalidArgumentError(absl::StrCat("a chunk of ", count, " tokens after ", batch_.size(),
                                                     " others; a step has at most ", limits_.step_tokens_max));
    }
    if (chunk.start != slot.length || count > kv_->reserved(chunk.slot) - chunk.start) {
      return absl::InvalidArgumentError(absl::StrCat("slot ", chunk.slot, " holds ", slot.length, " of ",
                                                     kv_->reserved(chunk.slot), " positions; the chunk has ", count,
                                                     " from ", chunk.start));
    }
    slot.in_step = true;
    for (int i = 0; i < count; ++i) {
      StepToken token = {chunk.tokens[i], chunk.slot, chunk.start + i, index};
      if (token.id < 0 || token.id >= limits_.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", token.id, " is outside of the vocabulary of ", limits_.vocab_size));
      }
      if (chunk.logits == LogitsWanted::kAll || (chunk.logits == LogitsWanted::kLast && i + 1 == count)) {
        if (batch_.wanted_size() == limits_.logit_rows_max) {
          return absl::InvalidArgumentError(
              absl::StrCat("more than ", limits_.logit_rows_max, " positions with logits in a step"));
        }
        token.wanted = batch_.wanted_size();
        batch_.wanted.push_back(batch_.size());
        batch_.wanted_tokens.push_back(token);
      }
      batch_.tokens.push_back(token);
    }
    return absl::OkStatus();
  }

  void Compute(absl::Span<Chunk> chunks, float* logits) {
    ple_->Submit(chunks);
    profile_.Mark(StepOp::kPrepare);
    const ForwardContext context = {config_, weights_, *kv_,     *activations_,     sparse_,
                                    *ple_,   pool_,    profile_, frequencies_full_, frequencies_sliding_,
                                    probe_};
    if (batch_.size() > 0) {
      if (config_.family == ModelFamily::kGemma4) {
        ForwardGemma4(context, batch_, chunks, logits);
      } else {
        ForwardGemma3n(context, batch_, chunks, logits);
      }
    }
    ++profile_.steps;
    for (const Chunk& chunk : chunks) {
      SlotState& slot = slots_[chunk.slot];
      slot.length = chunk.start + static_cast<int>(chunk.tokens.size());
      slot.failed = !chunk.status.ok();
      if (slot.failed) {
        kv_->Spoil(chunk.slot);
      } else {
        kv_->Commit(chunk.slot, chunk.tokens);
      }
    }
  }

  const ModelConfig config_;
  const ModelInfo info_;
  const ModelLimits limits_;
  ThreadPool& pool_;
  Weights weights_;
  uint64_t weight_bytes_ = 0;
  std::vector<float> frequencies_full_;
  std::vector<float> frequencies_sliding_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Activations> activations_;
  SparseScratch sparse_;
  std::unique_ptr<PerLayerInputs> ple_;
  std::vector<SlotState> slots_;
  StepBatch batch_;
  StepProfile profile_;
  const Probe* probe_ = nullptr;
};

std::string BaseName(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

ModelInfo MakeInfo(const storage::GgufFile& file, const ModelConfig& config, const WeightsSummary& summary) {
  ModelInfo info;
  const absl::StatusOr<absl::string_view> name = file.GetString(gguf::kName);
  info.name = name.ok() && !name->empty() ? std::string(*name) : BaseName(file.shard_path(0));
  info.architecture = config.architecture;
  info.layers = config.layer_count();
  info.hidden_size = config.hidden;
  info.vocab_size = config.vocab;
  info.context_trained = config.context_trained;
  info.ple_width = config.ple_width;
  info.parameters = summary.parameters;
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    info.file_bytes += file.shard_bytes(shard);
  }
  info.table_bytes = summary.table_bytes;
  std::vector<std::pair<int, std::string>> types;
  for (const auto& [type, count] : summary.types) {
    types.emplace_back(-count, type);
  }
  std::sort(types.begin(), types.end());
  std::vector<std::string> words;
  for (const auto& [count, type] : types) {
    words.push_back(absl::StrCat(type, " ", -count));
  }
  info.weight_types = absl::StrJoin(words, ", ");
  info.tensors_skipped = summary.tensors_skipped;
  info.bytes_skipped = summary.bytes_skipped;
  return info;
}

}  // namespace

absl::StatusOr<std::vector<MemoryPart>> DecoderModel::Plan(const storage::GgufFile& file,
                                                           const DecoderOptions& options) {
  EMBERGATE_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(file));
  EMBERGATE_ASSIGN_OR_RETURN(const WeightsSummary summary, CheckWeights(file, config));
  return PlanParts(file, config, summary, options, static_cast<int>(UsableCpus().cpus.size()));
}

absl::StatusOr<ModelInfo> DecoderModel::Describe(const storage::GgufFile& file) {
  EMBERGATE_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(file));
  EMBERGATE_ASSIGN_OR_RETURN(const WeightsSummary summary, CheckWeights(file, config));
  return MakeInfo(file, config, summary);
}

absl::StatusOr<std::unique_ptr<DecoderModel>> DecoderModel::Load(const storage::GgufFile& file,
                                                                 const DecoderOptions& options, ThreadPool& pool,
                                                                 const Progress& progress) {
  EMBERGATE_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(file));
  EMBERGATE_ASSIGN_OR_RETURN(const WeightsSummary summary, CheckWeights(file, config));
  EMBERGATE_ASSIGN_OR_RETURN(const ModelLimits limits, LimitsFor(config, options));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<MemoryPart> parts,
                             PlanParts(file, config, summary, options, pool.threads()));
  EMBERGATE_RETURN_IF_ERROR(CheckBudget(parts, options));
  ModelInfo info = MakeInfo(file, config, summary);
  auto model = std::make_unique<GgufDecoderModel>(std::move(config), std::move(info), limits, pool);
  EMBERGATE_RETURN_IF_ERROR(model->Init(file, options, progress));
  return model;
}

}  // namespace embergate::engine
