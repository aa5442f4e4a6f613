// `embergate convert --check`: a converted file against the checkpoint it was made of.
#ifndef EMBERGATE_ENGINE_CONVERT_CHECK_H_
#define EMBERGATE_ENGINE_CONVERT_CHECK_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/convert/evaluate.h"

namespace embergate::engine {

struct CheckResult {
  Evaluation evaluation;
  int prompts = 0;
  bool real_text = false;      // false: no tokenizer, so the prompts are random ids
  std::string reference_type;  // "BF16": how the checkpoint's matrices were kept, without loss
};

// Converts `folder` without loss to a temporary file beside `gguf` (removed again; it takes as much disk as the
// checkpoint), loads both and runs a fixed set of prompts through them, in f32 arithmetic where the weights are not
// quantised. Needs memory for both models' weights but not for their per-layer tables.
// `stage` names what `done` of `total` counts: "converting", "loading", "comparing".
using CheckProgress = std::function<void(const char* stage, uint64_t done, uint64_t total)>;
absl::StatusOr<CheckResult> CheckConversion(const std::string& folder, const std::string& gguf, int threads,
                                            const CheckProgress& progress);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_CHECK_H_
