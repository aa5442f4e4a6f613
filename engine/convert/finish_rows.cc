#include "engine/convert/finish_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/quantize.h"
#include "engine/convert/table_checksums.h"
#include "engine/kernels/kernels.h"
#include "engine/model/config.h"
#include "engine/model/per_layer_inputs.h"
#include "engine/thread_pool.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::GgufTensor;
using storage::GgufValueType;
using storage::GgufWriter;

constexpr uint64_t kTableAlign = 4096;
constexpr uint64_t kPieceBytes = 4u << 20;
constexpr int64_t kRowsTogether = 128;

// Copies integers in the narrowest type that the writer has and that holds them; readers take any.
absl::Status CopyIntegers(const GgufFile& in, const std::string& key, bool is_array, GgufWriter& out) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int64_t> values, in.GetInts(key));
  const auto within = [&](int64_t low, int64_t high) {
    return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v >= low && v <= high; });
  };
  const bool fits_u32 = within(0, std::numeric_limits<uint32_t>::max());
  const bool fits_i32 = within(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
  if (is_array && fits_i32) {
    out.AddInt32s(key, std::vector<int32_t>(values.begin(), values.end()));
  } else if (is_array && fits_u32) {
    out.AddUint32s(key, std::vector<uint32_t>(values.begin(), values.end()));
  } else if (!is_array && fits_u32) {
    out.AddUint32(key, static_cast<uint32_t>(values[0]));
  } else if (!is_array && fits_i32) {
    out.AddInt32(key, static_cast<int32_t>(values[0]));
  } else if (!is_array && values[0] >= 0) {
    out.AddUint64(key, static_cast<uint64_t>(values[0]));
  } else {
    return absl::UnimplementedError(
        absl::StrCat(in.shard_path(0), ": metadata key '", key, "' holds integers that cannot be copied"));
  }
  return absl::OkStatus();
}

absl::Status CopyKey(const GgufFile& in, const std::string& key, GgufWriter& out) {
  bool is_array = false;
  uint64_t count = 0;
  EMBERGATE_ASSIGN_OR_RETURN(const GgufValueType type, in.TypeOf(key, &is_array, &count));
  switch (type) {
    case GgufValueType::kString: {
      if (!is_array) {
        EMBERGATE_ASSIGN_OR_RETURN(const absl::string_view value, in.GetString(key));
        out.AddString(key, value);
        return absl::OkStatus();
      }
      EMBERGATE_ASSIGN_OR_RETURN(const std::vector<absl::string_view> values, in.GetStrings(key));
      out.AddStrings(key, std::vector<std::string>(values.begin(), values.end()));
      return absl::OkStatus();
    }
    case GgufValueType::kF32:
    case GgufValueType::kF64: {
      EMBERGATE_ASSIGN_OR_RETURN(const std::vector<float> values, in.GetFloats(key));
      is_array ? out.AddFloats(key, values) : out.AddFloat(key, values[0]);
      return absl::OkStatus();
    }
    case GgufValueType::kBool: {
      EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int64_t> values, in.GetInts(key));
      is_array ? out.AddBools(key, std::vector<bool>(values.begin(), values.end())) : out.AddBool(key, values[0] != 0);
      return absl::OkStatus();
    }
    case GgufValueType::kArray:
      return absl::UnimplementedError(
          absl::StrCat(in.shard_path(0), ": metadata key '", key, "' is an array of arrays, which cannot be copied"));
    default:
      return CopyIntegers(in, key, is_array, out);
  }
}

// Reads `count` rows from `row` on, as f32.
absl::Status ReadRows(const GgufFile& in, const GgufTensor& tensor, int64_t row, int64_t count,
                      std::vector<uint8_t>& bytes, float* out) {
  const uint64_t row_bytes = tensor.row_bytes();
  bytes.resize(static_cast<size_t>(count) * row_bytes);
  EMBERGATE_RETURN_IF_ERROR(in.ReadTensor(tensor, static_cast<uint64_t>(row) * row_bytes, absl::MakeSpan(bytes)));
  const int64_t cols = static_cast<int64_t>(tensor.cols());
  for (int64_t i = 0; i < count; ++i) {
    DequantizeRow(tensor.type, bytes.data() + static_cast<uint64_t>(i) * row_bytes, cols, out + i * cols);
  }
  return absl::OkStatus();
}

// How finished rows are stored.
struct TensorTypeOut {
  storage::TensorType type;
  uint64_t row_bytes;
};

// Makes the finished rows, some at a time.
class RowFinisher {
 public:
  RowFinisher(const GgufFile& in, const ModelConfig& config, ThreadPool& pool, TensorTypeOut out)
      : in_(in),
        config_(config),
        pool_(pool),
        out_(out),
        embeddings_(*in.FindTensor(gguf::kTokenEmbd)),
        table_(*in.FindTensor(gguf::kPerLayerTokenEmbd)),
        width_(int64_t{config.ple_width} * config.layer_count()),
        input_(kRowsTogether, config.hidden),
        x_(static_cast<size_t>(kRowsTogether * config.hidden)),
        rows_(static_cast<size_t>(kRowsTogether * width_)),
        finished_(static_cast<size_t>(kRowsTogether * width_)),
        errors_(static_cast<size_t>(kRowsTogether)) {}

  // The projection and its norm.
  absl::Status Load() {
    const GgufTensor* projection = in_.FindTensor(gguf::kPerLayerModelProj);
    const GgufTensor* norm = in_.FindTensor(gguf::kPerLayerProjNorm);
    if (projection == nullptr || norm == nullptr || static_cast<int64_t>(projection->cols()) != config_.hidden ||
        static_cast<int64_t>(projection->rows()) != width_ ||
        static_cast<int64_t>(norm->elements()) != config_.ple_width || !IsSupportedWeightType(projection->type) ||
        !IsSupportedWeightType(norm->type) || !IsSupportedWeightType(table_.type) ||
        !IsSupportedWeightType(embeddings_.type) || static_cast<int64_t>(embeddings_.cols()) != config_.hidden) {
      return absl::FailedPreconditionError(
          absl::StrCat(in_.shard_path(0), ": '", gguf::kPerLayerModelProj, "', '", gguf::kPerLayerProjNorm, "' or '",
                       gguf::kTokenEmbd, "' is missing, or of another shape or type than rows can be finished with"));
    }
    EMBERGATE_ASSIGN_OR_RETURN(projection_, Matrix::Create(projection->type, width_, config_.hidden));
    const uint64_t piece_rows = std::max<uint64_t>(1, kPieceBytes / projection->row_bytes());
    for (uint64_t row = 0; row < projection->rows(); row += piece_rows) {
      bytes_.resize(std::min(piece_rows, projection->rows() - row) * projection->row_bytes());
      EMBERGATE_RETURN_IF_ERROR(in_.ReadTensor(*projection, row * projection->row_bytes(), absl::MakeSpan(bytes_)));
      EMBERGATE_RETURN_IF_ERROR(projection_.AppendRows(bytes_, &pool_));
    }
    norm_.resize(norm->elements());
    bytes_.resize(norm->bytes);
    EMBERGATE_RETURN_IF_ERROR(in_.ReadTensor(*norm, 0, absl::MakeSpan(bytes_)));
    DequantizeRow(norm->type, bytes_.data(), config_.ple_width, norm_.data());
    return absl::OkStatus();
  }

  // Rows [row, row + count), count <= kRowsTogether, as stored. Sums up the squares of the rows and of their errors.
  absl::Status Finish(int64_t row, int64_t count, std::vector<uint8_t>& stored, double* squares, double* errors) {
    const int64_t hidden = config_.hidden;
    EMBERGATE_RETURN_IF_ERROR(ReadRows(in_, embeddings_, row, count, bytes_, x_.data()));
    Scale(x_.data(), std::sqrt(static_cast<float>(hidden)), count * hidden, x_.data());
    input_.Set(x_.data(), static_cast<int>(count), hidden, hidden);
    MatMul(projection_, input_, finished_.data(), width_, pool_);
    EMBERGATE_RETURN_IF_ERROR(ReadTable(row, count));
    stored.resize(static_cast<size_t>(count) * out_.row_bytes);
    pool_.ParallelFor(count, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        float* finished = finished_.data() + i * width_;
        float* back = rows_.data() + i * width_;
        SumPerLayerInputs(config_, norm_, back, config_.layer_count(), finished);
        uint8_t* to = stored.data() + static_cast<uint64_t>(i) * out_.row_bytes;
        errors_[static_cast<size_t>(i)] = QuantizeRow(out_.type, finished, width_, to);
        DequantizeRow(out_.type, to, width_, back);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      EMBERGATE_RETURN_IF_ERROR(errors_[static_cast<size_t>(i)]);
    }
    for (int64_t i = 0; i < count * width_; ++i) {
      const double value = finished_[static_cast<size_t>(i)];
      const double error = rows_[static_cast<size_t>(i)] - value;
      *squares += value * value;
      *errors += error * error;
    }
    if (!std::isfinite(*squares) || !std::isfinite(*errors)) {
      return absl::DataLossError(
          absl::StrCat(in_.shard_path(0), ": a row of ", row, " to ", row + count - 1, " is not finite"));
    }
    return absl::OkStatus();
  }

 private:
  // Ids beyond the table take row 0.
  absl::Status ReadTable(int64_t row, int64_t count) {
    const int64_t own = std::clamp<int64_t>(config_.ple_rows - row, 0, count);
    if (own > 0) {
      EMBERGATE_RETURN_IF_ERROR(ReadRows(in_, table_, row, own, bytes_, rows_.data()));
    }
    for (int64_t i = own; i < count; ++i) {
      EMBERGATE_RETURN_IF_ERROR(ReadRows(in_, table_, 0, 1, bytes_, rows_.data() + i * width_));
    }
    return absl::OkStatus();
  }

  const GgufFile& in_;
  const ModelConfig& config_;
  ThreadPool& pool_;
  const TensorTypeOut out_;
  const GgufTensor& embeddings_;
  const GgufTensor& table_;
  const int64_t width_;
  Matrix projection_;
  std::vector<float> norm_;
  MatMulInput input_;
  std::vector<float> x_;
  std::vector<float> rows_;
  std::vector<float> finished_;
  std::vector<absl::Status> errors_;
  std::vector<uint8_t> bytes_;
};

absl::Status CopyTensor(const GgufFile& in, const GgufTensor& tensor, std::vector<uint8_t>& bytes, GgufWriter& writer,
                        const FinishRowsOptions& options) {
  for (uint64_t offset = 0; offset < tensor.bytes; offset += kPieceBytes) {
    bytes.resize(std::min(kPieceBytes, tensor.bytes - offset));
    EMBERGATE_RETURN_IF_ERROR(in.ReadTensor(tensor, offset, absl::MakeSpan(bytes)));
    EMBERGATE_RETURN_IF_ERROR(writer.AppendData(bytes));
    if (options.progress) {
      options.progress(writer.written_bytes(), writer.total_bytes());
    }
  }
  return absl::OkStatus();
}

bool IsLeftOut(const std::string& name) {
  return name == gguf::kPerLayerTokenEmbd || name == gguf::kPerLayerModelProj || name == gguf::kPerLayerProjNorm;
}

}  // namespace

absl::StatusOr<FinishRowsSummary> FinishRows(const std::string& in_path, const std::string& out_path,
                                             const FinishRowsOptions& options) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> in, GgufFile::Open(in_path));
  EMBERGATE_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(*in));
  if (config.ple_width == 0 || config.ple_rows_finished) {
    return absl::FailedPreconditionError(absl::StrCat(
        in_path, config.ple_width == 0 ? ": the model has no per-layer table" : ": its rows are finished already"));
  }
  const storage::TensorType type = options.ple.value_or(in->FindTensor(gguf::kPerLayerTokenEmbd)->type);
  const uint64_t width = static_cast<uint64_t>(config.ple_width) * static_cast<uint64_t>(config.layer_count());
  const std::optional<uint64_t> row_bytes = storage::BytesOf(type, width);
  if (!IsWritableType(type) || !row_bytes.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("rows of ", width, " values cannot be written as ",
                                                   storage::TraitsOf(type).name, "; choose another type"));
  }
  ThreadPool pool(options.threads);
  RowFinisher finisher(*in, config, pool, {type, *row_bytes});
  EMBERGATE_RETURN_IF_ERROR(finisher.Load());

  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(out_path));
  for (const std::string& key : in->keys()) {
    // The writer's own, those that say in how many files the source came, and the checksums of the rows as they were.
    if (key != "general.alignment" && key != "embergate.padding" && key.rfind("split.", 0) != 0 &&
        key != gguf::kRowCrc32c && key != gguf::kRowCrc32cSegments) {
      EMBERGATE_RETURN_IF_ERROR(CopyKey(*in, key, *writer));
    }
  }
  writer->AddBool(gguf::kRowsFinished, true);
  for (const GgufTensor& tensor : in->tensors()) {
    if (!IsLeftOut(tensor.name)) {
      EMBERGATE_RETURN_IF_ERROR(writer->AddTensor(tensor.name, tensor.type, tensor.dims));
    }
  }
  FinishRowsSummary summary;
  summary.architecture = config.architecture;
  summary.type = type;
  summary.rows = static_cast<uint64_t>(config.vocab);
  const uint64_t dims[] = {width, summary.rows};
  EMBERGATE_RETURN_IF_ERROR(writer->AddTensor(gguf::kPerLayerTokenEmbd, type, dims, kTableAlign));
  const uint64_t prefix = static_cast<uint64_t>(config.common_layers()) * static_cast<uint64_t>(config.ple_width);
  EMBERGATE_RETURN_IF_ERROR(AddTableChecksums(type, width, prefix, *writer));
  EMBERGATE_RETURN_IF_ERROR(writer->BeginData());
  std::vector<uint8_t> bytes;
  for (const GgufTensor& tensor : in->tensors()) {
    if (!IsLeftOut(tensor.name)) {
      EMBERGATE_RETURN_IF_ERROR(CopyTensor(*in, tensor, bytes, *writer, options));
    }
  }
  double squares = 0;
  double errors = 0;
  for (int64_t row = 0; row < config.vocab; row += kRowsTogether) {
    const int64_t count = std::min<int64_t>(kRowsTogether, config.vocab - row);
    EMBERGATE_RETURN_IF_ERROR(finisher.Finish(row, count, bytes, &squares, &errors));
    EMBERGATE_RETURN_IF_ERROR(writer->AppendData(bytes));
    if (options.progress) {
      options.progress(writer->written_bytes(), writer->total_bytes());
    }
  }
  EMBERGATE_RETURN_IF_ERROR(writer->Finish());
  summary.file_bytes = writer->total_bytes();
  summary.rms_error = squares > 0 ? std::sqrt(errors / squares) : 0;
  return summary;
}

}  // namespace embergate::engine
