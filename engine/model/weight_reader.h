// Reads the parts of model files that become weights, in the order in which they lie on disk and ahead of their use, so
// that the disk works while the processor repacks: loading takes as long as the slower of the two.
#ifndef EMBERGATE_ENGINE_MODEL_WEIGHT_READER_H_
#define EMBERGATE_ENGINE_MODEL_WEIGHT_READER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "storage/gguf_file.h"

namespace embergate::engine {

// Bytes of a tensor that go to one destination.
struct WeightPart {
  const storage::GgufTensor* tensor = nullptr;
  uint64_t offset = 0;     // in the tensor
  uint64_t bytes = 0;      // whole rows
  uint64_t row_bytes = 0;  // a part is handed over in multiples of this
  size_t destination = 0;  // the caller's number for it
};

// What reading takes besides the weights: buffers that are filled, waiting or being used.
inline constexpr uint64_t kWeightReadBytes = 4u << 20;
inline constexpr int kWeightReadBuffers = 3;

// Calls `take` with successive whole rows of every part, on the calling thread: parts of a tensor in order, tensors in
// the order of the file. Rows come at most kWeightReadBytes at a time (or one, if one is longer), in multiples of
// `rows_together` but for a part's last. Reads with O_DIRECT where the file system allows it, on a thread of its own.
// Errors: those of GgufFile::ReadTensor, naming the tensor, and of `take`; RESOURCE_EXHAUSTED.
absl::Status ReadWeightParts(
    const storage::GgufFile& file, std::vector<WeightPart> parts, uint64_t rows_together,
    absl::FunctionRef<absl::Status(const WeightPart& part, absl::Span<const uint8_t> rows)> take);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_WEIGHT_READER_H_
