#include "engine/model/weights.h"

#include <algorithm>
#include <initializer_list>
#include <set>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/convert/gguf_keys.h"
#include "engine/model/weight_reader.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::GgufTensor;

// Matrices are repacked by many rows at a time: whole panels, and whole runs of rows for every thread.
constexpr uint64_t kRowsTogether = 128;

// Where rows go; null = they are of no use.
using MatrixSlot = std::variant<Matrix*, RowMatrix*, ColumnMatrix*>;

bool InUse(const MatrixSlot& slot) {
  return std::visit([](const auto* matrix) { return matrix != nullptr; }, slot);
}

// Consecutive rows of a stored tensor and where they go.
struct RowRange {
  MatrixSlot destination;
  int64_t rows;
};

// What is done with each tensor, in the order of DescribeWeights.
class TensorAction {
 public:
  virtual ~TensorAction() = default;
  virtual absl::Status OnMatrix(const GgufTensor& tensor, const std::vector<RowRange>& ranges) = 0;
  virtual absl::Status OnVector(const GgufTensor& tensor, Vector* out) = 0;
};

// Finds tensors and checks them against the shape that the configuration implies.
class TensorChecker {
 public:
  TensorChecker(const GgufFile& file, TensorAction& action) : file_(file), action_(action) {}

  bool Has(const std::string& name) const { return file_.FindTensor(name) != nullptr; }

  absl::Status Matrix(const std::string& name, const std::vector<RowRange>& ranges, int64_t cols) {
    int64_t rows = 0;
    for (const RowRange& range : ranges) {
      rows += range.rows;
    }
    EMBERGATE_ASSIGN_OR_RETURN(const GgufTensor* tensor, Find(name, rows, cols));
    return action_.OnMatrix(*tensor, ranges);
  }
  absl::Status Matrix(const std::string& name, int64_t rows, int64_t cols, MatrixSlot out) {
    return Matrix(name, {{out, rows}}, cols);
  }
  // `sparse` where its kind takes the tensor's type, otherwise `whole`.
  template <class Sparse>
  absl::Status SparseMatrix(const std::string& name, int64_t rows, int64_t cols, Sparse* sparse,
                            engine::Matrix* whole) {
    const GgufTensor* tensor = file_.FindTensor(name);
    const bool taken = tensor != nullptr && Sparse::Takes(tensor->type);
    return Matrix(name, rows, cols, taken ? MatrixSlot(sparse) : MatrixSlot(whole));
  }
  absl::Status Vector(const std::string& name, int64_t rows, int64_t cols, engine::Vector* out) {
    EMBERGATE_ASSIGN_OR_RETURN(const GgufTensor* tensor, Find(name, rows, cols));
    return action_.OnVector(*tensor, out);
  }
  absl::Status Vector(const std::string& name, int64_t n, engine::Vector* out) { return Vector(name, 1, n, out); }

  const std::set<std::string>& used() const { return used_; }

 private:
  absl::StatusOr<const GgufTensor*> Find(const std::string& name, int64_t rows, int64_t cols) {
    const GgufTensor* tensor = file_.FindTensor(name);
    if (tensor == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat(file_.shard_path(0), ": tensor '", name, "' is missing; [", cols, ", ", rows, "] is expected"));
    }
    if (tensor->cols() != static_cast<uint64_t>(cols) || tensor->rows() != static_cast<uint64_t>(rows)) {
      return absl::FailedPreconditionError(absl::StrCat(file_.shard_path(0), ": tensor '", name, "' has shape [",
                                                        absl::StrJoin(tensor->dims, ", "),
                                                        "], but the metadata implies [", cols, ", ", rows, "]"));
    }
    if (!IsSupportedWeightType(tensor->type)) {
      return absl::UnimplementedError(absl::StrCat(file_.shard_path(0), ": tensor '", name, "' is stored as ",
                                                   std::string(storage::TraitsOf(tensor->type).name),
                                                   ", a type that is not served"));
    }
    used_.insert(name);
    return tensor;
  }

  const GgufFile& file_;
  TensorAction& action_;
  std::set<std::string> used_;
};

absl::Status DescribeAttention(const ModelConfig& config, int index, TensorChecker& check, LayerWeights& w) {
  const LayerConfig& layer = config.layers[index];
  const auto name = [index](const char* tensor) { return gguf::LayerTensor(index, tensor); };
  const int64_t d = config.hidden;
  const int64_t q_rows = int64_t{config.heads} * layer.head_dim;
  const int64_t kv_rows = int64_t{layer.kv_heads} * layer.head_dim;
  Matrix* const k = layer.owns_kv ? &w.k : nullptr;
  Matrix* const v = layer.owns_kv ? &w.v : nullptr;
  const std::string fused = name("attn_qkv");
  if (check.Has(fused)) {
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(fused, {{&w.q, q_rows}, {k, kv_rows}, {v, kv_rows}}, d));
  } else {
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kAttnQ), q_rows, d, &w.q));
    if (layer.owns_kv) {  // a sharing layer's own, where a file has them, are dead weight
      EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kAttnK), kv_rows, d, k));
      w.value_is_key = config.family == ModelFamily::kGemma4 && !check.Has(name(gguf::kAttnV));
      if (!w.value_is_key) {
        EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kAttnV), kv_rows, d, v));
      }
    }
  }
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAttnQNorm), layer.head_dim, &w.q_norm));
  if (layer.owns_kv) {
    EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAttnKNorm), layer.head_dim, &w.k_norm));
  }
  return check.Matrix(name(gguf::kAttnOutput), d, q_rows, &w.o);
}

absl::Status DescribeLayer(const ModelConfig& config, int index, TensorChecker& check, LayerWeights& w) {
  const auto name = [index](const char* tensor) { return gguf::LayerTensor(index, tensor); };
  const int64_t d = config.hidden;
  const int64_t width = config.layers[index].feed_forward;
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAttnNorm), d, &w.attn_norm));
  EMBERGATE_RETURN_IF_ERROR(DescribeAttention(config, index, check, w));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kPostAttentionNorm), d, &w.post_attention_norm));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kFfnNorm), d, &w.ffn_norm));
  EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kFfnGate), width, d, &w.gate));
  if (config.layers[index].is_sparse()) {
    EMBERGATE_RETURN_IF_ERROR(check.SparseMatrix(name(gguf::kFfnUp), width, d, &w.up_rows, &w.up));
    EMBERGATE_RETURN_IF_ERROR(check.SparseMatrix(name(gguf::kFfnDown), d, width, &w.down_columns, &w.down));
  } else {
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kFfnUp), width, d, &w.up));
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kFfnDown), d, width, &w.down));
  }
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kPostFfwNorm), d, &w.post_ffn_norm));
  if (config.ple_width > 0) {
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kPleGate), config.ple_width, d, &w.ple_gate));
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kPleProj), d, config.ple_width, &w.ple_projection));
    EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kPlePostNorm), d, &w.ple_post_norm));
  }
  if (config.family == ModelFamily::kGemma4) {
    if (check.Has(name(gguf::kLayerOutputScale))) {
      EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kLayerOutputScale), 1, &w.output_scale));
    }
    return absl::OkStatus();
  }
  const int64_t n = config.altup_inputs;
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAltupRouter), n, d, &w.altup_router));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAltupRouterNorm), d, &w.altup_router_norm));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAltupPredictCoef), n * n, n, &w.altup_predict));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAltupCorrectCoef), n, n, &w.altup_correct));
  EMBERGATE_RETURN_IF_ERROR(check.Vector(name(gguf::kAltupCorrectScale), d, &w.altup_correct_scale));
  EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kLaurelL), config.laurel_rank, d, &w.laurel_left));
  EMBERGATE_RETURN_IF_ERROR(check.Matrix(name(gguf::kLaurelR), d, config.laurel_rank, &w.laurel_right));
  return check.Vector(name(gguf::kLaurelPostNorm), d, &w.laurel_norm);
}

// The one list of the tensors that a decoder needs, with shapes and destinations.
absl::Status DescribeWeights(const ModelConfig& config, TensorChecker& check, Weights& w) {
  const int64_t d = config.hidden;
  EMBERGATE_RETURN_IF_ERROR(check.Matrix(gguf::kTokenEmbd, config.vocab, d, &w.embedding));
  if (check.Has(gguf::kOutput)) {
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(gguf::kOutput, config.vocab, d, &w.output));
  }
  EMBERGATE_RETURN_IF_ERROR(check.Vector(gguf::kOutputNorm, d, &w.output_norm));
  if (config.ple_width > 0 && !config.ple_rows_finished) {
    const int64_t common = int64_t{config.common_layers()} * config.ple_width;
    std::vector<RowRange> ranges;
    if (common > 0) {
      ranges.push_back({&w.ple_model_projection_common, common});
    }
    ranges.push_back({&w.ple_model_projection_rest, int64_t{config.layer_count()} * config.ple_width - common});
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(gguf::kPerLayerModelProj, ranges, d));
    EMBERGATE_RETURN_IF_ERROR(check.Vector(gguf::kPerLayerProjNorm, config.ple_width, &w.ple_projection_norm));
  }
  if (config.family == ModelFamily::kGemma4 && check.Has(gguf::kRopeFreqs)) {
    int dim = 0;
    for (const LayerConfig& layer : config.layers) {
      dim = layer.sliding ? dim : layer.head_dim;
    }
    if (dim > 0) {
      EMBERGATE_RETURN_IF_ERROR(check.Vector(gguf::kRopeFreqs, dim / 2, &w.rope_factors));
    }
  }
  if (config.family == ModelFamily::kGemma3n && config.altup_inputs > 1) {
    w.altup_projection.resize(config.altup_inputs - 1);
    w.altup_unprojection.resize(config.altup_inputs - 1);
    std::vector<RowRange> in, out;
    for (int i = 0; i + 1 < config.altup_inputs; ++i) {
      in.push_back({&w.altup_projection[i], d});
      out.push_back({&w.altup_unprojection[i], d});
    }
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(gguf::kAltupProj, in, d));
    EMBERGATE_RETURN_IF_ERROR(check.Matrix(gguf::kAltupUnembdProj, out, d));
  }
  w.layers.resize(config.layer_count());
  for (int i = 0; i < config.layer_count(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(DescribeLayer(config, i, check, w.layers[i]));
  }
  return absl::OkStatus();
}

// Counts instead of loading.
class Summarise : public TensorAction {
 public:
  explicit Summarise(WeightsSummary& out) : out_(out) {}

  absl::Status OnMatrix(const GgufTensor& tensor, const std::vector<RowRange>& ranges) override {
    for (const RowRange& range : ranges) {
      if (InUse(range.destination)) {
        out_.parameters += range.rows * tensor.cols();
        out_.weight_bytes += range.rows * tensor.row_bytes();
        out_.resident_bytes += range.rows * tensor.row_bytes();
      }
    }
    ++out_.types[std::string(storage::TraitsOf(tensor.type).name)];
    return absl::OkStatus();
  }

  absl::Status OnVector(const GgufTensor& tensor, Vector*) override {
    out_.parameters += tensor.elements();
    out_.weight_bytes += tensor.bytes;
    out_.resident_bytes += tensor.elements() * sizeof(float);
    ++out_.types[std::string(storage::TraitsOf(tensor.type).name)];
    return absl::OkStatus();
  }

 private:
  WeightsSummary& out_;
};

// Whether a tensor that DescribeWeights did not ask for belongs to one of the layers and would change the result:
// biases, experts and whatever else a sibling of these models may have. What of a layer may be left alone: keys and
// values of layers that read another's, and a table's gate where there is no table.
bool ChangesALayer(const ModelConfig& config, absl::string_view name) {
  if (!absl::ConsumePrefix(&name, "blk.")) {
    return false;
  }
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(name, absl::MaxSplits('.', 1));
  int layer = 0;
  if (!absl::SimpleAtoi(parts.first, &layer) || layer < 0 || layer >= config.layer_count()) {
    return false;
  }
  const absl::string_view stem = absl::StripSuffix(parts.second, ".weight");
  const auto is_one_of = [stem](std::initializer_list<const char*> stems) {
    return std::find(stems.begin(), stems.end(), stem) != stems.end();
  };
  if (!config.layers[layer].owns_kv && is_one_of({gguf::kAttnK, gguf::kAttnV, gguf::kAttnKNorm})) {
    return false;
  }
  return config.ple_width > 0 || !is_one_of({gguf::kPleGate, gguf::kPleProj, gguf::kPlePostNorm});
}

// Makes the matrices, empty, and notes which parts of the file they are filled from.
class CollectParts : public TensorAction {
 public:
  using Destination = std::variant<Matrix*, RowMatrix*, ColumnMatrix*, Vector*>;

  absl::Status OnMatrix(const GgufTensor& tensor, const std::vector<RowRange>& ranges) override {
    uint64_t offset = 0;
    for (const RowRange& range : ranges) {
      const uint64_t bytes = range.rows * tensor.row_bytes();
      if (InUse(range.destination)) {
        EMBERGATE_RETURN_IF_ERROR(std::visit(
            [&](auto* matrix) {
              parts_.push_back({&tensor, offset, bytes, tensor.row_bytes(), destinations_.size()});
              destinations_.emplace_back(matrix);
              return Make(tensor, range.rows, *matrix);
            },
            range.destination));
      }
      offset += bytes;
    }
    return absl::OkStatus();
  }

  absl::Status OnVector(const GgufTensor& tensor, Vector* out) override {
    parts_.push_back({&tensor, 0, tensor.bytes, tensor.bytes, destinations_.size()});
    destinations_.emplace_back(out);
    return absl::OkStatus();
  }

  const std::vector<WeightPart>& parts() const { return parts_; }

  absl::Status Fill(const WeightPart& part, absl::Span<const uint8_t> rows, ThreadPool& pool) const {
    if (Vector* const* vector = std::get_if<Vector*>(&destinations_[part.destination])) {
      (*vector)->resize(part.tensor->elements());
      DequantizeRow(part.tensor->type, rows.data(), static_cast<int64_t>(part.tensor->elements()), (*vector)->data());
      return absl::OkStatus();
    }
    return std::visit(
        [&](auto* destination) {
          using T = std::remove_pointer_t<decltype(destination)>;
          absl::Status status;
          if constexpr (std::is_same_v<T, Matrix>) {
            status = destination->AppendRows(rows, &pool);
          } else if constexpr (!std::is_same_v<T, Vector>) {
            status = destination->AppendRows(rows);
          }
          return Named(*part.tensor, status);
        },
        destinations_[part.destination]);
  }

 private:
  static absl::Status Named(const GgufTensor& tensor, const absl::Status& status) {
    return status.ok() ? status
                       : absl::Status(status.code(), absl::StrCat("tensor '", tensor.name, "': ", status.message()));
  }

  template <class M>
  static absl::Status Make(const GgufTensor& tensor, int64_t rows, M& out) {
    absl::StatusOr<M> matrix = M::Create(tensor.type, rows, static_cast<int64_t>(tensor.cols()));
    if (!matrix.ok()) {
      return Named(tensor, matrix.status());
    }
    out = *std::move(matrix);
    return absl::OkStatus();
  }

  std::vector<WeightPart> parts_;
  std::vector<Destination> destinations_;
};

}  // namespace

absl::StatusOr<WeightsSummary> CheckWeights(const GgufFile& file, const ModelConfig& config) {
  WeightsSummary summary;
  Summarise action(summary);
  TensorChecker check(file, action);
  Weights unused;
  EMBERGATE_RETURN_IF_ERROR(DescribeWeights(config, check, unused));
  for (const GgufTensor& tensor : file.tensors()) {
    if (config.ple_width > 0 && tensor.name == gguf::kPerLayerTokenEmbd) {
      if (!IsSupportedWeightType(tensor.type)) {
        return absl::UnimplementedError(absl::StrCat(file.shard_path(0), ": tensor '", tensor.name, "' is stored as ",
                                                     std::string(storage::TraitsOf(tensor.type).name),
                                                     ", a type that is not served"));
      }
      summary.parameters += tensor.elements();
      summary.table_bytes = tensor.bytes;
      ++summary.types[std::string(storage::TraitsOf(tensor.type).name)];
    } else if (check.used().count(tensor.name) == 0) {
      if (ChangesALayer(config, tensor.name)) {
        return absl::UnimplementedError(
            absl::StrCat(file.shard_path(0), ": tensor '", tensor.name,
                         "' is no part of the models that are served; without it the answers would be wrong"));
      }
      ++summary.tensors_skipped;
      summary.bytes_skipped += tensor.bytes;
    }
  }
  return summary;
}

absl::StatusOr<Weights> LoadWeights(const GgufFile& file, const ModelConfig& config, ThreadPool& pool,
                                    const std::function<void(uint64_t, uint64_t)>& progress) {
  EMBERGATE_ASSIGN_OR_RETURN(const WeightsSummary summary, CheckWeights(file, config));
  CollectParts action;
  TensorChecker check(file, action);
  Weights weights;
  EMBERGATE_RETURN_IF_ERROR(DescribeWeights(config, check, weights));
  uint64_t done = 0;
  EMBERGATE_RETURN_IF_ERROR(
      ReadWeightParts(file, action.parts(), kRowsTogether, [&](const WeightPart& part, absl::Span<const uint8_t> rows) {
        done += rows.size();
        if (progress) {
          progress(done, summary.weight_bytes);
        }
        return action.Fill(part, rows, pool);
      }));
  return weights;
}

uint64_t ResidentBytes(const Weights& w) {
  uint64_t bytes = 0;
  const auto matrix = [&bytes](const Matrix& m) { bytes += m.resident_bytes(); };
  const auto vector = [&bytes](const Vector& v) { bytes += v.capacity() * sizeof(float); };
  for (const Matrix* m : {&w.embedding, &w.output, &w.ple_model_projection_common, &w.ple_model_projection_rest}) {
    matrix(*m);
  }
  for (const Vector* v : {&w.output_norm, &w.ple_projection_norm, &w.rope_factors}) {
    vector(*v);
  }
  for (size_t i = 0; i < w.altup_projection.size(); ++i) {
    matrix(w.altup_projection[i]);
    matrix(w.altup_unprojection[i]);
  }
  for (const LayerWeights& layer : w.layers) {
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down,
                            &layer.ple_gate, &layer.ple_projection, &layer.laurel_left, &layer.laurel_right}) {
      matrix(*m);
    }
    bytes += layer.up_rows.resident_bytes() + layer.down_columns.resident_bytes();
    for (const Vector* v : {&layer.attn_norm, &layer.q_norm, &layer.k_norm, &layer.post_attention_norm, &layer.ffn_norm,
                            &layer.post_ffn_norm, &layer.ple_post_norm, &layer.altup_router, &layer.altup_router_norm,
                            &layer.altup_predict, &layer.altup_correct, &layer.altup_correct_scale, &layer.laurel_norm,
                            &layer.output_scale}) {
      vector(*v);
    }
  }
  return bytes;
}

}  // namespace embergate::engine
