#include "engine/convert/converter.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/json_file.h"
#include "engine/convert/model_keys.h"
#include "engine/convert/quantize.h"
#include "engine/convert/table_checksums.h"
#include "engine/kernels/kernels.h"
#include "engine/text/vocabulary.h"
#include "engine/thread_pool.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {

using storage::GgufWriter;
using storage::TensorType;

namespace {

// Elements converted between two writes (at most 16 MiB of output), and read at once by a thread (256 KiB as f32).
constexpr uint64_t kPieceElements = 4u << 20;
constexpr uint64_t kRunElements = 64u << 10;
constexpr uint64_t kConfigBytesMax = 16u << 20;

bool IsQuantized(TensorType type) {
  return type != TensorType::kF32 && type != TensorType::kF16 && type != TensorType::kBF16;
}

TensorTypes ResolveTypes(const ConvertOptions& options) {
  const bool four_bit = options.weights == TensorType::kQ4_0 || options.weights == TensorType::kQ4_K;
  TensorTypes types;
  types.weights = options.weights;
  types.embeddings = options.embeddings.value_or(four_bit ? TensorType::kQ6_K : options.weights);
  types.ple = options.ple.value_or(IsQuantized(options.weights) ? TensorType::kQ8_0 : options.weights);
  return types;
}

void AddGeneralKeys(const char* architecture, const ConvertOptions& options, const std::string& name,
                    GgufWriter& writer) {
  writer.AddString(gguf::kArchitecture, architecture);
  writer.AddString(gguf::kType, "model");
  writer.AddString(gguf::kName, name);
  writer.AddUint32(gguf::kFileType, FileTypeOf(options.weights));
  writer.AddUint32(gguf::kQuantizationVersion, 2);
}

void AddGenerationKeys(const GenerationDefaults& generation, GgufWriter& writer) {
  const auto add = [&writer](const char* key, const std::optional<double>& value) {
    if (value.has_value()) {
      writer.AddFloat(key, static_cast<float>(*value));
    }
  };
  add(gguf::kSamplingTemperature, generation.temperature);
  if (generation.top_k.has_value()) {
    writer.AddInt32(gguf::kSamplingTopK, static_cast<int32_t>(*generation.top_k));
  }
  add(gguf::kSamplingTopP, generation.top_p);
  add(gguf::kSamplingMinP, generation.min_p);
  add(gguf::kSamplingPenaltyRepeat, generation.repetition_penalty);
  if (generation.repetition_penalty.has_value()) {
    writer.AddInt32(gguf::kSamplingPenaltyWindow, -1);  // the reference penalises all tokens so far
  }
}

// What a group of tensors lost, summed over its elements.
struct ErrorSums {
  double error = 0;   // of (stored - source)^2
  double source = 0;  // of source^2
};

// Reads, converts and appends tensors, a piece of rows at a time; the rows of a piece are shared out to the pool.
class TensorStream {
 public:
  TensorStream(GgufWriter& writer, ThreadPool& pool, const std::function<void(uint64_t, uint64_t)>& progress)
      : writer_(writer), pool_(pool), progress_(progress), scratch_(pool.threads()) {}

  absl::Status Write(const PlannedTensor& tensor, ErrorSums* sums) {
    const uint64_t cols = tensor.cols();
    const uint64_t rows = tensor.rows();
    const std::optional<uint64_t> row_bytes = storage::BytesOf(tensor.type, cols);
    if (!row_bytes.has_value()) {
      return absl::InternalError(absl::StrCat("tensor ", tensor.name, ": type does not fit its width"));
    }
    const uint64_t piece_rows = std::max<uint64_t>(1, std::min(rows, kPieceElements / cols));
    out_.resize(piece_rows * *row_bytes);
    row_sums_.resize(piece_rows);
    for (uint64_t first = 0; first < rows; first += piece_rows) {
      const uint64_t count = std::min(piece_rows, rows - first);
      EMBERGATE_RETURN_IF_ERROR(ConvertRows(tensor, first, count, *row_bytes));
      for (uint64_t i = 0; i < count; ++i) {  // in order: the sum does not depend on the threads
        sums->error += row_sums_[i].error;
        sums->source += row_sums_[i].source;
      }
      EMBERGATE_RETURN_IF_ERROR(writer_.AppendData(absl::MakeConstSpan(out_.data(), count * *row_bytes)));
      if (progress_) {
        progress_(writer_.written_bytes(), writer_.total_bytes());
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Scratch {
    std::vector<float> source;  // a run of rows
    std::vector<float> stored;  // one row
  };

  // Rows [first, first + count) of the tensor into out_ and row_sums_. A worker takes a run of rows at a time, so that
  // one read serves many of them.
  absl::Status ConvertRows(const PlannedTensor& tensor, uint64_t first, uint64_t count, uint64_t row_bytes) {
    const uint64_t cols = tensor.cols();
    const uint64_t run_rows = std::max<uint64_t>(1, kRunElements / cols);
    absl::Status status;
    std::mutex mutex;
    const auto convert_run = [&](uint64_t begin, uint64_t end, Scratch& scratch) -> absl::Status {
      scratch.source.resize((end - begin) * cols);
      scratch.stored.resize(cols);
      EMBERGATE_RETURN_IF_ERROR(ReadRows(tensor, first + begin, absl::MakeSpan(scratch.source)));
      for (uint64_t i = begin; i < end; ++i) {
        EMBERGATE_RETURN_IF_ERROR(ConvertRow(tensor, first + i, scratch.source.data() + (i - begin) * cols,
                                             scratch.stored.data(), out_.data() + i * row_bytes, &row_sums_[i]));
      }
      return absl::OkStatus();
    };
    pool_.ParallelFor(static_cast<int64_t>(count), static_cast<int64_t>(run_rows),
                      [&](int64_t begin, int64_t end, int worker) {
                        for (int64_t run = begin; run < end; run += static_cast<int64_t>(run_rows)) {
                          const int64_t run_end = std::min<int64_t>(end, run + static_cast<int64_t>(run_rows));
                          absl::Status run_status = convert_run(run, run_end, scratch_[worker]);
                          if (!run_status.ok()) {
                            const std::lock_guard<std::mutex> lock(mutex);
                            status.Update(run_status);
                            return;
                          }
                        }
                      });
    return status;
  }

  // Whole rows from `row` on, as many as `out` holds.
  static absl::Status ReadRows(const PlannedTensor& tensor, uint64_t row, absl::Span<float> out) {
    const uint64_t cols = tensor.cols();
    if (tensor.parts.empty()) {
      std::copy_n(tensor.constant.begin() + row * cols, out.size(), out.begin());
      return absl::OkStatus();
    }
    const uint64_t source_rows = tensor.rows() - tensor.padding_rows;
    while (!out.empty()) {
      const bool padding = row >= source_rows;
      uint64_t at = padding ? 0 : row;
      size_t part = 0;
      while (at >= tensor.parts[part].tensor->elements / cols) {
        at -= tensor.parts[part].tensor->elements / cols;
        ++part;
      }
      const SafetensorsFolder::Entry& entry = tensor.parts[part];
      const uint64_t rows =
          padding ? 1 : std::min({out.size() / cols, entry.tensor->elements / cols - at, source_rows - row});
      EMBERGATE_RETURN_IF_ERROR(entry.file->ReadFloats(*entry.tensor, at * cols, out.first(rows * cols)));
      out.remove_prefix(rows * cols);
      row += rows;
    }
    return absl::OkStatus();
  }

  // `stored` is scratch for one row.
  static absl::Status ConvertRow(const PlannedTensor& tensor, uint64_t row, const float* source, float* stored,
                                 uint8_t* out, ErrorSums* sums) {
    const int64_t cols = static_cast<int64_t>(tensor.cols());
    EMBERGATE_RETURN_IF_ERROR(QuantizeRow(tensor.type, source, cols, out));
    DequantizeRow(tensor.type, out, cols, stored);
    *sums = ErrorSums();
    for (int64_t i = 0; i < cols; ++i) {
      const double value = source[i];
      const double error = stored[i] - value;
      sums->source += value * value;
      sums->error += error * error;
    }
    if (!std::isfinite(sums->source) || !std::isfinite(sums->error)) {
      return absl::DataLossError(absl::StrCat(
          "tensor ", tensor.name, ", row ", row, ": ",
          std::isfinite(sums->source)
              ? absl::StrCat("a value is beyond ", storage::TraitsOf(tensor.type).name, "; convert to bf16")
              : std::string("the checkpoint holds a value that is not finite; fetch it again")));
    }
    return absl::OkStatus();
  }

  GgufWriter& writer_;
  ThreadPool& pool_;
  const std::function<void(uint64_t, uint64_t)>& progress_;
  std::vector<Scratch> scratch_;  // one per worker
  std::vector<uint8_t> out_;
  std::vector<ErrorSums> row_sums_;
};

std::string FolderName(const std::string& folder) {
  std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  if (path.filename().empty()) {
    path = path.parent_path();
  }
  const std::string name = path.filename().string();
  return name.empty() || name == "." || name == ".." ? "model" : name;
}

// generation_config.json is optional.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::string& folder) {
  const absl::StatusOr<nlohmann::json> json =
      ReadJsonFile(absl::StrCat(folder, "/generation_config.json"), kConfigBytesMax);
  if (absl::IsNotFound(json.status())) {
    return GenerationDefaults();
  }
  EMBERGATE_RETURN_IF_ERROR(json.status());
  return ParseGenerationConfig(*json);
}

}  // namespace

uint32_t FileTypeOf(TensorType weights) {
  switch (weights) {
    case TensorType::kF32:
      return 0;
    case TensorType::kF16:
      return 1;
    case TensorType::kQ4_0:
      return 2;
    case TensorType::kQ8_0:
      return 7;
    case TensorType::kQ4_K:
      return 14;
    case TensorType::kQ6_K:
      return 18;
    case TensorType::kBF16:
      return 32;
    default:
      return 1024;  // "guessed": readers then look at the tensors
  }
}

namespace {

// The folder's tokenizer, padded to one piece per row of token_embd as other readers want it; nullopt if it has none.
absl::StatusOr<std::optional<Vocabulary>> ReadVocabulary(const std::string& folder, const HfConfig& config) {
  absl::StatusOr<Vocabulary> vocabulary = VocabularyFromFolder(folder, ArchitectureName(config.family));
  if (absl::IsNotFound(vocabulary.status())) {
    return std::nullopt;
  }
  EMBERGATE_RETURN_IF_ERROR(vocabulary.status());
  const size_t rows = static_cast<size_t>(config.vocab_size);
  if (vocabulary->tokens.size() > rows) {
    return absl::FailedPreconditionError(absl::StrCat("the tokenizer in ", folder, " has ", vocabulary->tokens.size(),
                                                      " pieces, config.json's vocab_size is ", rows));
  }
  for (size_t id = vocabulary->tokens.size(); id < rows; ++id) {
    vocabulary->tokens.push_back(absl::StrCat("[PAD", id, "]"));
    vocabulary->types.push_back(TokenType::kUnused);
    if (!vocabulary->scores.empty()) {
      vocabulary->scores.push_back(-10000.0f);
    }
  }
  return std::optional<Vocabulary>(std::move(*vocabulary));
}

}  // namespace

absl::StatusOr<ConvertSummary> ConvertCheckpoint(const std::string& folder, const std::string& out,
                                                 const ConvertOptions& options) {
  const TensorTypes types = ResolveTypes(options);
  for (TensorType type : {types.weights, types.embeddings, types.ple}) {
    if (!IsWritableType(type)) {
      return absl::InvalidArgumentError(absl::StrCat("weights cannot be written as ", storage::TraitsOf(type).name));
    }
  }
  const auto note = [&](const std::string& line) {
    if (options.note) {
      options.note(line);
    }
  };
  EMBERGATE_ASSIGN_OR_RETURN(const nlohmann::json config_json,
                             ReadJsonFile(absl::StrCat(folder, "/config.json"), kConfigBytesMax));
  EMBERGATE_ASSIGN_OR_RETURN(const HfConfig config, ParseHfConfig(config_json));
  EMBERGATE_ASSIGN_OR_RETURN(const GenerationDefaults generation, ReadGenerationDefaults(folder));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFolder> source, SafetensorsFolder::Open(folder));
  EMBERGATE_ASSIGN_OR_RETURN(const TensorPlan plan, PlanTensors(config, *source, types, options.keep_unused_kv));
  for (const std::string& line : plan.notes) {
    note(line);
  }

  EMBERGATE_ASSIGN_OR_RETURN(const std::optional<Vocabulary> vocabulary, ReadVocabulary(folder, config));
  if (!vocabulary.has_value()) {
    note("warning: no tokenizer.json or tokenizer.model in the folder: the file will serve token ids only");
  }

  ConvertSummary summary;
  summary.has_tokenizer = vocabulary.has_value();
  summary.architecture = ArchitectureName(config.family);
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(out));
  AddGeneralKeys(ArchitectureName(config.family), options, options.name.empty() ? FolderName(folder) : options.name,
                 *writer);
  AddModelKeys(config, *writer);
  AddGenerationKeys(generation, *writer);
  if (vocabulary.has_value()) {
    AddVocabularyToGguf(*vocabulary, *writer);
  }
  // The vocabulary's own list, where it has one, is of the same key.
  const std::vector<int32_t>& eos_ids = generation.eos_ids.empty() ? config.eos_ids : generation.eos_ids;
  if (!eos_ids.empty() && (!vocabulary.has_value() || vocabulary->eos_ids.empty())) {
    writer->AddInt32s(gguf::kEosTokenIds, eos_ids);
  }
  for (const PlannedTensor& tensor : plan.tensors) {
    EMBERGATE_RETURN_IF_ERROR(writer->AddTensor(tensor.name, tensor.type, tensor.dims, tensor.align));
    if (tensor.name == gguf::kPerLayerTokenEmbd) {
      const auto prefix_layers = static_cast<uint64_t>(config.layers - config.shared_kv_layers - 1);
      EMBERGATE_RETURN_IF_ERROR(AddTableChecksums(tensor.type, tensor.dims[0],
                                                  prefix_layers * static_cast<uint64_t>(config.ple_width), *writer));
    }
  }
  EMBERGATE_RETURN_IF_ERROR(writer->BeginData());

  ThreadPool pool(options.threads);
  TensorStream stream(*writer, pool, options.progress);
  std::map<TensorGroup, std::pair<GroupSummary, ErrorSums>> groups;
  for (const PlannedTensor& tensor : plan.tensors) {
    auto& [group, sums] = groups[tensor.group];
    EMBERGATE_RETURN_IF_ERROR(stream.Write(tensor, &sums));
    const uint64_t elements = tensor.rows() * tensor.cols();
    group.elements += elements;
    group.bytes += *storage::BytesOf(tensor.type, elements);
    ++group.types[std::string(storage::TraitsOf(tensor.type).name)];
    summary.parameters += tensor.constant.empty() ? elements - tensor.padding_rows * tensor.cols() : 0;
  }
  EMBERGATE_RETURN_IF_ERROR(writer->Finish());
  summary.file_bytes = writer->total_bytes();
  for (auto& [id, entry] : groups) {
    auto& [group, sums] = entry;
    group.name = TensorGroupName(id);
    group.rms_error = sums.source > 0 ? std::sqrt(sums.error / sums.source) : 0.0;
    summary.groups.push_back(std::move(group));
  }
  return summary;
}

}  // namespace embergate::engine
