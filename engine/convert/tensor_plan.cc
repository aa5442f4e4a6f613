#include "engine/convert/tensor_plan.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/quantize.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {

using storage::TensorType;

namespace {

constexpr uint64_t kPleAlign = 4096;  // a row then begins inside the fewest flash pages and O_DIRECT blocks

class Planner {
 public:
  Planner(const HfConfig& config, const SafetensorsFolder& source, const TensorTypes& types, bool keep_unused_kv)
      : config_(config), source_(source), types_(types), keep_unused_kv_(keep_unused_kv) {}

  absl::StatusOr<TensorPlan> Run() {
    EMBERGATE_RETURN_IF_ERROR(FindPrefix());
    PlanGlobal();
    for (int64_t i = 0; i < config_.layers; ++i) {
      PlanAttention(i);
      PlanFeedForward(i);
      PlanInjection(i);
      if (config_.family == ModelFamily::kGemma3n) {
        PlanAltup(i);
      }
    }
    PlanPleTable();
    EMBERGATE_RETURN_IF_ERROR(status_);
    AddNotes();
    return std::move(plan_);
  }

 private:
  // Shapes as PyTorch writes them: [out, in], or [n].
  using Shape = std::vector<uint64_t>;

  absl::Status FindPrefix() {
    for (const char* prefix : {"model.language_model.", "language_model.model.", "model.", ""}) {
      if (source_.Find(absl::StrCat(prefix, "embed_tokens.weight")).file != nullptr) {
        prefix_ = prefix;
        return absl::OkStatus();
      }
    }
    return absl::FailedPreconditionError(
        "the checkpoint has no embed_tokens.weight under model.language_model., language_model.model. or model.");
  }

  // The source tensor, checked; a null file (and status_ set) if something is wrong.
  SafetensorsFolder::Entry Take(const std::string& name, const Shape& shape) {
    const SafetensorsFolder::Entry entry = source_.Find(name);
    if (!status_.ok()) {
      return {nullptr, nullptr};
    }
    if (entry.file == nullptr) {
      status_ = absl::FailedPreconditionError(
          absl::StrCat("tensor \"", name, "\" is missing; config.json asks for it with shape ", ShapeString(shape)));
      return entry;
    }
    const bool one = shape == Shape{1} && entry.tensor->shape.empty();  // a scalar
    if (entry.tensor->shape != shape && !one) {
      status_ = absl::FailedPreconditionError(absl::StrCat(entry.file->path(), ": tensor \"", name, "\" has shape ",
                                                           ShapeString(entry.tensor->shape),
                                                           ", but config.json makes it ", ShapeString(shape)));
      return {nullptr, nullptr};
    }
    if (entry.tensor->type != SafetensorsType::kF32 && entry.tensor->type != SafetensorsType::kF16 &&
        entry.tensor->type != SafetensorsType::kBF16) {
      status_ = absl::UnimplementedError(absl::StrCat(entry.file->path(), ": tensor \"", name, "\" is ",
                                                      entry.tensor->type_name, "; weights may be F32, F16 or BF16"));
      return {nullptr, nullptr};
    }
    used_.insert(name);
    return entry;
  }

  PlannedTensor& Push(const std::string& name, std::vector<uint64_t> dims, TensorType type, TensorGroup group) {
    PlannedTensor tensor;
    tensor.name = name;
    tensor.dims = std::move(dims);
    tensor.type = type;
    tensor.group = group;
    plan_.tensors.push_back(std::move(tensor));
    return plan_.tensors.back();
  }

  void Vector(const std::string& name, const std::string& source, uint64_t n, TensorGroup group = TensorGroup::kNorm) {
    const SafetensorsFolder::Entry entry = Take(prefix_ + source, {n});
    Push(name, {n}, TensorType::kF32, group).parts = {entry};
  }

  void Matrix(const std::string& name, const std::string& source, uint64_t out, uint64_t in, TensorType type,
              TensorGroup group) {
    const SafetensorsFolder::Entry entry = Take(prefix_ + source, {out, in});
    Push(name, {in, out}, Fit(type, in), group).parts = {entry};
  }

  TensorType Fit(TensorType wanted, uint64_t cols) {
    const TensorType fitting = FittingType(wanted, cols);
    if (fitting != wanted) {
      Refit& refit = refitted_[{wanted, fitting}];
      ++refit.tensors;
      refit.widths.insert(cols);
    }
    return fitting;
  }

  // Small projections that quantisers leave alone. Beside quantised weights they keep 16 bits: BF16 where the
  // checkpoint has it (nothing is lost then), else F16.
  TensorType SmallType(const SafetensorsFolder::Entry& source) const {
    const TensorType w = types_.weights;
    if (w == TensorType::kF32 || w == TensorType::kBF16) {
      return w;
    }
    const bool bf16 = source.file != nullptr && source.tensor->type == SafetensorsType::kBF16;
    return bf16 && w != TensorType::kF16 ? TensorType::kBF16 : TensorType::kF16;
  }

  // The stacked AltUp projections are never F16: llama.cpp v0.5.0 computes NaN from three-dimensional F16 weights
  // (llama_cpp_test shows it if this is changed); BF16 and F32 are right.
  TensorType StackType(const SafetensorsFolder::Entry& source) const {
    const TensorType type = SmallType(source);
    if (type != TensorType::kF16) {
      return type;
    }
    const bool bf16 = source.file != nullptr && source.tensor->type == SafetensorsType::kBF16;
    return bf16 || types_.weights != TensorType::kF16 ? TensorType::kBF16 : TensorType::kF32;
  }

  void SmallMatrix(const std::string& name, const std::string& source, uint64_t out, uint64_t in, TensorGroup group) {
    const SafetensorsFolder::Entry entry = Take(prefix_ + source, {out, in});
    Push(name, {in, out}, SmallType(entry), group).parts = {entry};
  }

  void PlanGlobal() {
    const uint64_t h = config_.hidden_size;
    Matrix(gguf::kTokenEmbd, "embed_tokens.weight", config_.vocab_size, h, types_.embeddings, TensorGroup::kEmbedding);
    if (!config_.tied_embeddings) {
      const bool inside = source_.Find(absl::StrCat(prefix_, "lm_head.weight")).file != nullptr;
      const std::string head = inside ? absl::StrCat(prefix_, "lm_head.weight") : "lm_head.weight";
      const SafetensorsFolder::Entry entry = Take(head, {static_cast<uint64_t>(config_.vocab_size), h});
      Push(gguf::kOutput, {h, static_cast<uint64_t>(config_.vocab_size)}, Fit(types_.embeddings, h),
           TensorGroup::kEmbedding)
          .parts = {entry};
    }
    Vector(gguf::kOutputNorm, "norm.weight", h);
    if (config_.family == ModelFamily::kGemma4) {
      // Divisors of the full layers' frequencies; 1e30 stops a pair for all practical positions.
      PlannedTensor& freqs = Push(gguf::kRopeFreqs, {static_cast<uint64_t>(config_.head_dim_full / 2)},
                                  TensorType::kF32, TensorGroup::kNorm);
      freqs.constant.assign(config_.head_dim_full / 2, 1e30f);
      std::fill_n(freqs.constant.begin(), config_.rope_pairs_full, static_cast<float>(config_.rope_factor_full));
    } else {
      Stack(gguf::kAltupProj, "altup_projections");
      Stack(gguf::kAltupUnembdProj, "altup_unembed_projections");
    }
    if (config_.ple_width > 0) {
      const uint64_t width = config_.ple_width * config_.layers;
      SmallMatrix(gguf::kPerLayerModelProj, "per_layer_model_projection.weight", width, h, TensorGroup::kPleProjection);
      Vector(gguf::kPerLayerProjNorm, "per_layer_projection_norm.weight", config_.ple_width);
    }
  }

  // N - 1 square matrices on top of one another.
  void Stack(const std::string& name, const std::string& source) {
    const uint64_t h = config_.hidden_size;
    const uint64_t count = config_.altup_inputs - 1;
    if (count == 0) {
      return;
    }
    std::vector<SafetensorsFolder::Entry> parts;
    for (uint64_t i = 0; i < count; ++i) {
      parts.push_back(Take(absl::StrCat(prefix_, source, ".", i, ".weight"), {h, h}));
    }
    const TensorType type = StackType(parts[0]);
    Push(name, {h, h, count}, type, TensorGroup::kAltupLaurel).parts = std::move(parts);
  }

  static std::string Source(int64_t layer, absl::string_view name) {
    return absl::StrCat("layers.", layer, ".", name, ".weight");
  }

  void PlanAttention(int64_t i) {
    const uint64_t h = config_.hidden_size;
    const uint64_t d = config_.head_dim(i);
    const uint64_t q_rows = d * config_.heads;
    const uint64_t kv_rows = d * config_.kv_heads[i];
    const auto name = [&](const char* tensor) { return gguf::LayerTensor(static_cast<int>(i), tensor); };
    const TensorType w = types_.weights;
    Vector(name(gguf::kAttnNorm), Source(i, "input_layernorm"), h);
    Matrix(name(gguf::kAttnQ), Source(i, "self_attn.q_proj"), q_rows, h, w, TensorGroup::kAttention);
    Vector(name(gguf::kAttnQNorm), Source(i, "self_attn.q_norm"), d);
    // llama.cpp's 3n loader wants keys and values in every layer, its Gemma 4 loader only where they are used.
    const bool shares = config_.shares_kv(i);
    const bool wanted = !shares || config_.family == ModelFamily::kGemma3n || keep_unused_kv_;
    const bool present = source_.Find(absl::StrCat(prefix_, Source(i, "self_attn.k_proj"))).file != nullptr;
    if (wanted && (present || !shares)) {
      Matrix(name(gguf::kAttnK), Source(i, "self_attn.k_proj"), kv_rows, h, w, TensorGroup::kAttention);
      Vector(name(gguf::kAttnKNorm), Source(i, "self_attn.k_norm"), d);
      if (config_.has_v(i)) {
        Matrix(name(gguf::kAttnV), Source(i, "self_attn.v_proj"), kv_rows, h, w, TensorGroup::kAttention);
      }
    } else if (present) {
      ++unused_kv_layers_;
    }
    Matrix(name(gguf::kAttnOutput), Source(i, "self_attn.o_proj"), h, q_rows, w, TensorGroup::kAttention);
    Vector(name(gguf::kPostAttentionNorm), Source(i, "post_attention_layernorm"), h);
  }

  void PlanFeedForward(int64_t i) {
    const uint64_t h = config_.hidden_size;
    const uint64_t f = config_.ffn_length[i];
    const auto name = [&](const char* tensor) { return gguf::LayerTensor(static_cast<int>(i), tensor); };
    Vector(name(gguf::kFfnNorm), Source(i, "pre_feedforward_layernorm"), h);
    Matrix(name(gguf::kFfnGate), Source(i, "mlp.gate_proj"), f, h, types_.weights, TensorGroup::kFeedForward);
    Matrix(name(gguf::kFfnUp), Source(i, "mlp.up_proj"), f, h, types_.weights, TensorGroup::kFeedForward);
    Matrix(name(gguf::kFfnDown), Source(i, "mlp.down_proj"), h, f, types_.weights, TensorGroup::kFeedForward);
    Vector(name(gguf::kPostFfwNorm), Source(i, "post_feedforward_layernorm"), h);
  }

  void PlanInjection(int64_t i) {
    const uint64_t h = config_.hidden_size;
    const auto name = [&](const char* tensor) { return gguf::LayerTensor(static_cast<int>(i), tensor); };
    if (config_.ple_width > 0) {
      const uint64_t p = config_.ple_width;
      Matrix(name(gguf::kPleGate), Source(i, "per_layer_input_gate"), p, h, types_.weights,
             TensorGroup::kPleProjection);
      Matrix(name(gguf::kPleProj), Source(i, "per_layer_projection"), h, p, types_.weights,
             TensorGroup::kPleProjection);
      Vector(name(gguf::kPlePostNorm), Source(i, "post_per_layer_input_norm"), h);
    }
    if (config_.family == ModelFamily::kGemma4) {
      Vector(name(gguf::kLayerOutputScale), absl::StrCat("layers.", i, ".layer_scalar"), 1);
    }
  }

  void PlanAltup(int64_t i) {
    const uint64_t h = config_.hidden_size;
    const uint64_t n = config_.altup_inputs;
    const uint64_t r = config_.laurel_rank;
    const auto name = [&](const char* tensor) { return gguf::LayerTensor(static_cast<int>(i), tensor); };
    constexpr TensorGroup kGroup = TensorGroup::kAltupLaurel;
    // A few thousand values that steer all four streams: kept in f32 whatever the weights are.
    Matrix(name(gguf::kAltupCorrectCoef), Source(i, "altup.correction_coefs"), n, n, TensorType::kF32, kGroup);
    Matrix(name(gguf::kAltupPredictCoef), Source(i, "altup.prediction_coefs"), n * n, n, TensorType::kF32, kGroup);
    Matrix(name(gguf::kAltupRouter), Source(i, "altup.modality_router"), n, h, TensorType::kF32, kGroup);
    Vector(name(gguf::kAltupRouterNorm), Source(i, "altup.router_norm"), h, kGroup);
    if (config_.altup_correct_scale) {
      Vector(name(gguf::kAltupCorrectScale), absl::StrCat("layers.", i, ".altup.correct_output_scale"), h, kGroup);
    } else {
      Push(name(gguf::kAltupCorrectScale), {h}, TensorType::kF32, kGroup).constant.assign(h, 1.0f);
    }
    SmallMatrix(name(gguf::kLaurelL), Source(i, "laurel.linear_left"), r, h, kGroup);
    SmallMatrix(name(gguf::kLaurelR), Source(i, "laurel.linear_right"), h, r, kGroup);
    Vector(name(gguf::kLaurelPostNorm), Source(i, "laurel.post_laurel_norm"), h, kGroup);
  }

  // The last tensor: what stays resident then lies in one piece before it.
  void PlanPleTable() {
    if (config_.ple_width == 0) {
      return;
    }
    const uint64_t cols = config_.ple_width * config_.layers;
    const uint64_t rows = config_.ple_rows;
    const uint64_t vocab = config_.vocab_size;
    const SafetensorsFolder::Entry entry = Take(absl::StrCat(prefix_, "embed_tokens_per_layer.weight"), {rows, cols});
    PlannedTensor& table = Push(gguf::kPerLayerTokenEmbd, {cols, vocab}, Fit(types_.ple, cols), TensorGroup::kPleTable);
    table.parts = {entry};
    table.padding_rows = vocab > rows ? vocab - rows : 0;
    table.align = kPleAlign;
  }

  void AddNotes() {
    std::map<std::string, int> other_parts;  // towers and the like: by the part of the name behind "model."
    std::vector<std::string> unknown;
    for (const auto& [name, entry] : source_.tensors()) {
      const bool unused_kv = absl::StrContains(name, ".self_attn.k_") || absl::StrContains(name, ".self_attn.v_");
      if (used_.count(name) > 0 || (config_.tied_embeddings && absl::EndsWith(name, "lm_head.weight"))) {
        continue;
      }
      if (!prefix_.empty() && prefix_ != "model." && !absl::StartsWith(name, prefix_)) {
        absl::string_view rest = name;
        if (absl::StartsWith(rest, "model.")) {
          rest.remove_prefix(6);
        }
        ++other_parts[std::string(rest.substr(0, rest.find('.')))];
      } else if (!unused_kv || !absl::StartsWith(name, prefix_)) {
        unknown.push_back(name);
      }
    }
    std::vector<std::string> skipped;
    for (const auto& [part, count] : other_parts) {
      skipped.push_back(absl::StrCat(part, " (", count, ")"));
    }
    if (!skipped.empty()) {
      plan_.notes.push_back(absl::StrCat("tensors of other parts are left out: ", absl::StrJoin(skipped, ", ")));
    }
    if (!unknown.empty()) {
      const size_t shown = std::min<size_t>(unknown.size(), 3);
      plan_.notes.push_back(absl::StrCat(
          "warning: ", unknown.size(), " tensors of the text model are not known and left out: ",
          absl::StrJoin(unknown.begin(), unknown.begin() + shown, ", "), shown < unknown.size() ? ", ..." : ""));
    }
    if (unused_kv_layers_ > 0) {
      plan_.notes.push_back(absl::StrCat("keys and values of ", unused_kv_layers_,
                                         " layers that read another layer's are left out (never used)"));
    }
    for (const auto& [types, refit] : refitted_) {
      const storage::TensorTypeTraits& wanted = storage::TraitsOf(types.first);
      plan_.notes.push_back(absl::StrCat(refit.tensors, refit.tensors == 1 ? " tensor is" : " tensors are",
                                         " stored as ", storage::TraitsOf(types.second).name, ", not ", wanted.name,
                                         ": blocks of ", wanted.block_elements, " do not divide rows of ",
                                         absl::StrJoin(refit.widths, ", ")));
    }
  }

  const HfConfig& config_;
  const SafetensorsFolder& source_;
  const TensorTypes types_;
  const bool keep_unused_kv_;
  std::string prefix_;
  absl::Status status_;  // the first error
  TensorPlan plan_;
  std::set<std::string> used_;
  int unused_kv_layers_ = 0;
  struct Refit {
    int tensors = 0;
    std::set<uint64_t> widths;
  };
  std::map<std::pair<TensorType, TensorType>, Refit> refitted_;  // by (wanted, stored)
};

}  // namespace

const char* TensorGroupName(TensorGroup group) {
  switch (group) {
    case TensorGroup::kEmbedding:
      return "token embedding";
    case TensorGroup::kAttention:
      return "attention";
    case TensorGroup::kFeedForward:
      return "feed-forward";
    case TensorGroup::kPleTable:
      return "per-layer table (flash)";
    case TensorGroup::kPleProjection:
      return "per-layer projections";
    case TensorGroup::kAltupLaurel:
      return "altup, laurel";
    case TensorGroup::kNorm:
      return "norms, scales";
  }
  return "";
}

uint64_t PlannedTensor::rows() const {
  uint64_t rows = 1;
  for (size_t i = 1; i < dims.size(); ++i) {
    rows *= dims[i];
  }
  return rows;
}

absl::StatusOr<TensorPlan> PlanTensors(const HfConfig& config, const SafetensorsFolder& source,
                                       const TensorTypes& types, bool keep_unused_kv) {
  return Planner(config, source, types, keep_unused_kv).Run();
}

}  // namespace embergate::engine
