// A Hugging Face folder of a Gemma 3n or Gemma 4 checkpoint to one GGUF file, with the names and keys of
// engine/convert/gguf_keys.h. Streams a few million elements at a time: memory does not grow with the model.
//
// The default recipe (weights Q4_0) is that of the published "Q4_0" files: matrices Q4_0; the token embedding, which
// is the output head too, Q6_K; the per-layer table Q8_0; projections that steer the rest (per_layer_model_proj,
// altup, laurel) BF16 or F16; norms, scales and AltUp's coefficients F32.
#ifndef EMBERGATE_ENGINE_CONVERT_CONVERTER_H_
#define EMBERGATE_ENGINE_CONVERT_CONVERTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/convert/tensor_plan.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

struct ConvertOptions {
  storage::TensorType weights = storage::TensorType::kQ4_0;
  std::optional<storage::TensorType> embeddings;  // Q6_K with 4-bit weights, otherwise as the weights
  std::optional<storage::TensorType> ple;         // Q8_0 with quantised weights, otherwise as the weights
  bool keep_unused_kv = false;                    // Gemma 4: keys and values of layers that read another layer's
  std::string name;                               // general.name; empty = the folder's name
  int threads = 1;
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes written; from the calling thread
  std::function<void(const std::string& line)> note;            // one line for the user; from the calling thread
};

struct GroupSummary {
  std::string name;
  uint64_t elements = 0;
  uint64_t bytes = 0;
  std::map<std::string, int> types;  // "Q4_0" -> tensors
  double rms_error = 0;              // of the stored values, relative to the RMS of the source's
};

struct ConvertSummary {
  std::string architecture;
  uint64_t file_bytes = 0;
  uint64_t parameters = 0;
  bool has_tokenizer = false;
  std::vector<GroupSummary> groups;
};

// The value of general.file_type for a file whose matrices are mostly of this type.
uint32_t FileTypeOf(storage::TensorType weights);

// Writes `out` under a temporary name and renames it at the end: never half a file under the final name.
// Errors: those of ParseHfConfig, SafetensorsFolder::Open, PlanTensors and GgufWriter; INVALID_ARGUMENT for a type
// that cannot be written; DATA_LOSS for weights that are not finite (names the tensor).
absl::StatusOr<ConvertSummary> ConvertCheckpoint(const std::string& folder, const std::string& out,
                                                 const ConvertOptions& options);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_CONVERTER_H_
