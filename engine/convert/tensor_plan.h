// Which tensors a checkpoint's GGUF gets, and where each comes from. Pure planning: names, shapes and types are
// checked here, before a byte is written.
#ifndef EMBERGATE_ENGINE_CONVERT_TENSOR_PLAN_H_
#define EMBERGATE_ENGINE_CONVERT_TENSOR_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/convert/hf_config.h"
#include "engine/convert/safetensors.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// For the summary: where a tensor belongs.
enum class TensorGroup { kEmbedding, kAttention, kFeedForward, kPleTable, kPleProjection, kAltupLaurel, kNorm };
const char* TensorGroupName(TensorGroup group);

struct PlannedTensor {
  std::string name;            // in the GGUF
  std::vector<uint64_t> dims;  // GGUF order
  storage::TensorType type;
  uint64_t align = 0;
  TensorGroup group;
  // Rows come from `parts` one after the other, then `padding_rows` copies of the first row. If there are no parts,
  // the whole content is `constant`.
  std::vector<SafetensorsFolder::Entry> parts;
  uint64_t padding_rows = 0;
  std::vector<float> constant;

  uint64_t cols() const { return dims[0]; }
  uint64_t rows() const;
};

struct TensorTypes {
  storage::TensorType weights;
  storage::TensorType embeddings;  // token_embd, and output if there is one
  storage::TensorType ple;         // the per-layer table
};

struct TensorPlan {
  std::vector<PlannedTensor> tensors;  // in file order; the per-layer table last, on a multiple of 4096
  std::vector<std::string> notes;      // one line each, for the user: what was skipped or stored otherwise than asked
};

// Errors: FAILED_PRECONDITION when a tensor is missing or its shape contradicts the configuration (names both),
// UNIMPLEMENTED for a tensor that is needed but not F32, F16 or BF16.
absl::StatusOr<TensorPlan> PlanTensors(const HfConfig& config, const SafetensorsFolder& source,
                                       const TensorTypes& types, bool keep_unused_kv);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_TENSOR_PLAN_H_
