// A copy of a GGUF file whose per-layer table holds finished rows: what the model makes of a token's row and embedding
// together (projection, norm and sum; ARCHITECTURE section 2) depends on the token's id alone, so it can be computed
// once for every id and stored in the row's place. It spares each token the projection (13.8 million multiply-adds and
// 28 MB of memory in Gemma 4 E2B). The rows keep their layout, type and place; the projection and its norm are left
// out, so that a program that does not know of finished rows refuses the file instead of computing nonsense.
// The key embergate.per_layer_rows_finished says what the rows are. Text only: an image's inputs have no id.
#ifndef EMBERGATE_ENGINE_CONVERT_FINISH_ROWS_H_
#define EMBERGATE_ENGINE_CONVERT_FINISH_ROWS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

struct FinishRowsOptions {
  std::optional<storage::TensorType> ple;  // type of the new rows; nullopt = that of the old
  int threads = 1;
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes written; from the calling thread
};

struct FinishRowsSummary {
  std::string architecture;
  uint64_t file_bytes = 0;
  uint64_t rows = 0;
  storage::TensorType type = storage::TensorType::kF32;
  double rms_error = 0;  // of the stored rows, relative to their RMS
};

// Memory: the projection, and some hundred rows. Errors: those of GgufFile::Open, ReadModelConfig and GgufWriter;
// FAILED_PRECONDITION (no per-layer table, or finished already; names the file), INVALID_ARGUMENT (a type that cannot
// be written), UNIMPLEMENTED (a metadata value that the writer cannot copy; names the key).
absl::StatusOr<FinishRowsSummary> FinishRows(const std::string& in, const std::string& out,
                                             const FinishRowsOptions& options);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_FINISH_ROWS_H_
