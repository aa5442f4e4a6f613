#include "engine/convert/synth.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/convert/converter.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/model_keys.h"
#include "engine/convert/random_blocks.h"
#include "engine/convert/table_checksums.h"
#include "engine/text/vocabulary.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {

using storage::GgufWriter;
using storage::TensorType;

namespace {

constexpr uint64_t kTableAlign = 4096;
constexpr size_t kBufferBytes = 4u << 20;

// The distributions. A matrix of deviation 1/sqrt(in) keeps the RMS of what passes through it.
constexpr float kNormDeviation = 0.1f;
// Scores are dot products of two normed heads, not divided by sqrt(D): with weights of 1 their deviation would be
// sqrt(D) = 16 and every token would look at one other. Weights of 1.4 D^(-1/4) on both sides make it 2.
constexpr float kQkNormFactor = 1.4f;
constexpr float kLogitDeviation = 3.0f;
// A layer adds three normed updates to the stream x and multiplies by s: RMS(x)^2 settles at 3 s^2 / (1 - s^2), about
// 13, and the input embedding's own share decays by s a layer, so the model does not just repeat its input.
constexpr float kLayerScaleMean = 0.9f;
constexpr float kLayerScaleDeviation = 0.02f;
constexpr float kAltupCoefDeviation = 0.05f;
// The router sees norm(x) / d: weights of sqrt(d) / 2 bring the argument of its tanh to 1/2.
constexpr float kAltupRouterFactor = 0.5f;
constexpr float kNoRotation = 1e30f;  // divides a frequency down to nothing

// The type itself, or the best of its blocks that fit rows of `cols` elements.
TensorType FitToWidth(TensorType wanted, uint64_t cols) {
  TensorType type = wanted;
  while (cols % storage::TraitsOf(type).block_elements != 0) {
    switch (type) {
      case TensorType::kQ5_K:
        type = TensorType::kQ5_0;
        break;
      case TensorType::kQ6_K:
        type = TensorType::kQ8_0;
        break;
      case TensorType::kIQ4_XS:
        type = TensorType::kIQ4_NL;
        break;
      case TensorType::kQ2_K:
      case TensorType::kQ3_K:
      case TensorType::kQ4_K:
        type = TensorType::kQ4_0;
        break;
      default:
        type = TensorType::kF16;
    }
  }
  return type;
}

bool IsMatrix(TensorRole role) {
  return role == TensorRole::kEmbedding || role == TensorRole::kPleTable || role == TensorRole::kMatrix ||
         role == TensorRole::kSmallMatrix || role == TensorRole::kStack;
}

// What no quantiser touches: as wide as the weights if those are floats, F16 beside quantised ones.
TensorType SmallType(TensorType weights) {
  return weights == TensorType::kF32 || weights == TensorType::kBF16 ? weights : TensorType::kF16;
}

// llama.cpp v0.5.0 computes NaN from three-dimensional F16 weights, so AltUp's stacks are never F16.
TensorType StackType(TensorType weights) {
  const TensorType type = SmallType(weights);
  return type != TensorType::kF16 ? type : weights == TensorType::kF16 ? TensorType::kF32 : TensorType::kBF16;
}

struct Plan {
  ShapeTensor tensor;
  TensorType type;
};

absl::StatusOr<std::vector<Plan>> PlanTypes(const ModelShape& shape, const SynthOptions& options) {
  for (const TensorType type : {options.weights, options.ple}) {
    if (!RandomBlocks::Supports(type)) {
      return absl::InvalidArgumentError(absl::StrCat("cannot synthesise ", storage::TraitsOf(type).name,
                                                     "; possible types: ", RandomBlocks::SupportedNames()));
    }
  }
  std::vector<int> matches(options.overrides.size(), 0);
  std::map<std::pair<TensorType, TensorType>, int> refitted;
  std::vector<Plan> plans;
  for (ShapeTensor& tensor : ShapeTensors(shape)) {
    if (!IsMatrix(tensor.role)) {
      plans.push_back({std::move(tensor), TensorType::kF32});
      continue;
    }
    const TensorType wanted = tensor.role == TensorRole::kPleTable      ? options.ple
                              : tensor.role == TensorRole::kSmallMatrix ? SmallType(options.weights)
                              : tensor.role == TensorRole::kStack       ? StackType(options.weights)
                                                                        : options.weights;
    TensorType type = FitToWidth(wanted, tensor.dims[0]);
    bool overridden = false;
    for (size_t i = 0; i < options.overrides.size(); ++i) {
      const SynthOptions::Override& change = options.overrides[i];
      if (::fnmatch(change.pattern.c_str(), tensor.name.c_str(), 0) != 0) {
        continue;
      }
      const storage::TensorTypeTraits& traits = storage::TraitsOf(change.type);
      if (!RandomBlocks::Supports(change.type) || tensor.dims[0] % traits.block_elements != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tensor ", tensor.name, " with rows of ", tensor.dims[0], " elements cannot be ", traits.name, " (",
            RandomBlocks::Supports(change.type) ? absl::StrCat("blocks of ", traits.block_elements)
                                                : absl::StrCat("possible types: ", RandomBlocks::SupportedNames()),
            "), as '", change.pattern, "' asks for"));
      }
      ++matches[i];
      type = change.type;
      overridden = true;
    }
    if (type != wanted && !overridden) {
      ++refitted[{wanted, type}];
    }
    plans.push_back({std::move(tensor), type});
  }
  for (size_t i = 0; i < matches.size(); ++i) {
    if (matches[i] == 0) {
      return absl::InvalidArgumentError(absl::StrCat("'", options.overrides[i].pattern, "' matches no matrix of ",
                                                     shape.name, "; names look like blk.0.ffn_down.weight"));
    }
  }
  for (const auto& [types, count] : refitted) {
    if (options.note) {
      options.note(absl::StrCat(count, " tensors are ", storage::TraitsOf(types.second).name, " instead of ",
                                storage::TraitsOf(types.first).name, ", whose blocks of ",
                                storage::TraitsOf(types.first).block_elements, " do not fit their width"));
    }
  }
  return plans;
}

absl::Status AddTokenizer(const ModelShape& shape, const SynthOptions& options, GgufWriter& writer) {
  if (options.tokenizer_folder.empty()) {
    // Other engines insist on this key; "none" tells them, and ours, that there are token ids only.
    writer.AddString("tokenizer.ggml.model", "none");
    return absl::OkStatus();
  }
  EMBERGATE_ASSIGN_OR_RETURN(Vocabulary vocabulary, VocabularyFromFolder(options.tokenizer_folder, shape.architecture));
  const size_t given = vocabulary.tokens.size();
  if (given > shape.vocab) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer in '", options.tokenizer_folder, "' has ", given,
                                                   " tokens, more than the ", shape.vocab, " of ", shape.name));
  }
  for (size_t id = given; id < shape.vocab; ++id) {
    vocabulary.tokens.push_back(absl::StrCat("<unused_id_", id, ">"));
    vocabulary.types.push_back(TokenType::kUnused);
    if (!vocabulary.scores.empty()) {
      vocabulary.scores.push_back(0.0f);
    }
  }
  if (given < shape.vocab && options.note) {
    options.note(absl::StrCat("the tokenizer has ", given, " tokens; the other ", shape.vocab - given, " of ",
                              shape.name, " are unused ones"));
  }
  AddVocabularyToGguf(vocabulary, writer);
  return absl::OkStatus();
}

// A tensor's own seed: its values do not depend on which others the file has.
uint64_t SeedOf(uint64_t seed, absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u ^ (seed * 0x9e3779b97f4a7c15u);  // FNV-1a
  for (const char c : name) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }
  return hash;
}

// Mean and deviation of an F32 tensor that is no matrix.
std::pair<float, float> VectorDistribution(const ShapeTensor& tensor) {
  switch (tensor.role) {
    case TensorRole::kQkNorm: {
      const float mean = kQkNormFactor * std::pow(static_cast<float>(tensor.dims[0]), -0.25f);
      return {mean, mean * kNormDeviation};
    }
    case TensorRole::kOutputNorm:
      return {kLogitDeviation, kLogitDeviation * kNormDeviation};
    case TensorRole::kLayerScale:
      return {kLayerScaleMean, kLayerScaleDeviation};
    case TensorRole::kAltupCoef:
      return {0.0f, kAltupCoefDeviation};
    case TensorRole::kAltupRouter:
      return {0.0f, kAltupRouterFactor * std::sqrt(static_cast<float>(tensor.dims[0]))};
    default:
      return {1.0f, kNormDeviation};
  }
}

class Synthesiser {
 public:
  Synthesiser(const ModelShape& shape, const SynthOptions& options, GgufWriter& writer)
      : shape_(shape), options_(options), writer_(writer) {}

  absl::Status Write(const Plan& plan) {
    return IsMatrix(plan.tensor.role) ? WriteMatrix(plan) : WriteVector(plan.tensor);
  }

 private:
  absl::Status Append(absl::Span<const uint8_t> bytes) {
    EMBERGATE_RETURN_IF_ERROR(writer_.AppendData(bytes));
    if (options_.progress) {
      options_.progress(writer_.written_bytes(), writer_.total_bytes());
    }
    return absl::OkStatus();
  }

  absl::Status WriteVector(const ShapeTensor& tensor) {
    uint64_t count = 1;
    for (const uint64_t dim : tensor.dims) {
      count *= dim;
    }
    std::vector<float> values(count);
    const auto bytes = absl::MakeSpan(reinterpret_cast<uint8_t*>(values.data()), count * sizeof(float));
    if (tensor.role == TensorRole::kRopeFactors) {
      std::fill(values.begin(), values.end(), kNoRotation);
      std::fill_n(values.begin(), shape_.rotated_pairs_full(), 1.0f);
    } else {
      const auto [mean, deviation] = VectorDistribution(tensor);
      RandomBlocks(TensorType::kF32, deviation, SeedOf(options_.seed, tensor.name)).Fill(bytes);
      for (float& value : values) {
        value += mean;
      }
    }
    return Append(bytes);
  }

  absl::Status WriteMatrix(const Plan& plan) {
    const std::vector<uint64_t>& dims = plan.tensor.dims;
    uint64_t rows = 1;
    for (size_t i = 1; i < dims.size(); ++i) {
      rows *= dims[i];
    }
    const bool table = plan.tensor.role == TensorRole::kPleTable;
    const uint64_t row_bytes = storage::BytesOf(plan.type, dims[0]).value_or(0);  // PlanTypes checked the width
    const uint64_t random_rows = table ? std::min<uint64_t>(rows, shape_.ple_rows) : rows;
    // The table's rows are P per layer; each slice is scaled by sqrt(P) on reading.
    const auto in = static_cast<float>(table ? shape_.ple_width : dims[0]);
    RandomBlocks random(plan.type, 1.0f / std::sqrt(in), SeedOf(options_.seed, plan.tensor.name));
    buffer_.resize(std::max<size_t>(1, kBufferBytes / random.PieceBytes()) * random.PieceBytes());
    std::vector<uint8_t> first_row;
    for (uint64_t left = random_rows * row_bytes; left > 0;) {
      const auto piece = absl::MakeSpan(buffer_).first(std::min<uint64_t>(left, buffer_.size()));
      random.Fill(piece);
      if (first_row.empty() && random_rows < rows) {
        first_row.assign(piece.begin(), piece.begin() + static_cast<ptrdiff_t>(row_bytes));
      }
      EMBERGATE_RETURN_IF_ERROR(Append(piece));
      left -= piece.size();
    }
    for (uint64_t row = random_rows; row < rows; ++row) {
      EMBERGATE_RETURN_IF_ERROR(Append(first_row));
    }
    return absl::OkStatus();
  }

  const ModelShape& shape_;
  const SynthOptions& options_;
  GgufWriter& writer_;
  std::vector<uint8_t> buffer_;
};

}  // namespace

absl::StatusOr<SynthSummary> SynthesiseModel(const ModelShape& shape, const std::string& out,
                                             const SynthOptions& options) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<Plan> plans, PlanTypes(shape, options));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(out));
  writer->AddString(gguf::kArchitecture, shape.architecture);
  writer->AddString(gguf::kType, "model");
  writer->AddString(gguf::kName, absl::StrCat("Random weights of shape ", shape.name, ", seed ", options.seed));
  writer->AddUint32(gguf::kFileType, FileTypeOf(options.weights));
  writer->AddUint32(gguf::kQuantizationVersion, 2);
  AddModelKeys(ConfigOf(shape), *writer);
  EMBERGATE_RETURN_IF_ERROR(AddTokenizer(shape, options, *writer));
  SynthSummary summary;
  for (const Plan& plan : plans) {
    const bool table = plan.tensor.role == TensorRole::kPleTable;
    EMBERGATE_RETURN_IF_ERROR(
        writer->AddTensor(plan.tensor.name, plan.type, plan.tensor.dims, table ? kTableAlign : 0));
    uint64_t elements = 1;
    for (const uint64_t dim : plan.tensor.dims) {
      elements *= dim;
    }
    if (table) {
      const uint64_t prefix_layers = shape.layers - shape.shared_kv_layers - 1;
      EMBERGATE_RETURN_IF_ERROR(
          AddTableChecksums(plan.type, plan.tensor.dims[0], prefix_layers * shape.ple_width, *writer));
    }
    summary.parameters += elements;
    summary.table_bytes += table ? storage::BytesOf(plan.type, elements).value_or(0) : 0;
    ++summary.tensors;
  }
  EMBERGATE_RETURN_IF_ERROR(writer->BeginData());
  Synthesiser synthesiser(shape, options, *writer);
  for (const Plan& plan : plans) {
    EMBERGATE_RETURN_IF_ERROR(synthesiser.Write(plan));
  }
  EMBERGATE_RETURN_IF_ERROR(writer->Finish());
  summary.file_bytes = writer->total_bytes();
  return summary;
}

}  // namespace embergate::engine
