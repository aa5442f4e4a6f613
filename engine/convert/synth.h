// A GGUF file of a real model's shape with random weights: everything about it is right but the values, so that a board
// can be measured, and full-size code tested, without the released weights. Values are scaled so that activations
// neither grow nor vanish through the layers and the logits spread by a few units.
#ifndef EMBERGATE_ENGINE_CONVERT_SYNTH_H_
#define EMBERGATE_ENGINE_CONVERT_SYNTH_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/convert/shapes.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

struct SynthOptions {
  // A type whose blocks do not fit a tensor's width (only tiny shapes have such) gives way to the next that does.
  storage::TensorType weights = storage::TensorType::kQ4_0;  // matrices, the token embedding included
  storage::TensorType ple = storage::TensorType::kQ8_0;      // the per-layer table
  // For a matrix whose name matches `pattern` (as a shell would: * ? [abc]); later ones win.
  struct Override {
    std::string pattern;
    storage::TensorType type;
  };
  std::vector<Override> overrides;
  std::string tokenizer_folder;  // with a tokenizer.json or tokenizer.model; empty = a file without a tokenizer
  uint64_t seed = 1;             // same options, same seed, same version: same bytes
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes written
  std::function<void(const std::string& line)> note;            // one line for the user
};

struct SynthSummary {
  uint64_t file_bytes = 0;
  uint64_t table_bytes = 0;  // of the per-layer table
  uint64_t parameters = 0;
  int tensors = 0;
};

// Errors: INVALID_ARGUMENT (a type that cannot be made, an override that matches nothing or does not fit, a vocabulary
// larger than the shape's), and those of VocabularyFromFolder and GgufWriter.
absl::StatusOr<SynthSummary> SynthesiseModel(const ModelShape& shape, const std::string& out,
                                             const SynthOptions& options);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_SYNTH_H_
