// Every weight of a decoder, by the reference's names. Loaded once from a GGUF file, each tensor's name, shape and
// type checked first; immutable afterwards.
#ifndef EMBERGATE_ENGINE_MODEL_WEIGHTS_H_
#define EMBERGATE_ENGINE_MODEL_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/sparse_matmul.h"
#include "engine/model/config.h"
#include "engine/thread_pool.h"
#include "storage/gguf_file.h"

namespace embergate::engine {

// A vector or small matrix that is read element by element, as f32.
using Vector = std::vector<float>;

// Shapes are [out, in]. d hidden, D head size, H heads, K KV heads, I feed-forward width of the layer, p PLE width.
struct LayerWeights {
  Vector attn_norm;            // [d]
  Matrix q;                    // [H*D, d]
  Matrix k;                    // [K*D, d]; owning layers
  Matrix v;                    // [K*D, d]; owning layers, unless value_is_key
  bool value_is_key = false;   // v = the raw k projection
  Vector q_norm;               // [D]
  Vector k_norm;               // [D]; owning layers
  Matrix o;                    // [d, H*D]
  Vector post_attention_norm;  // [d]
  Vector ffn_norm;             // [d]
  Matrix gate, up;             // [I, d]
  Matrix down;                 // [d, I]
  // Instead of `up` and `down` in layers whose gate is cut, where the types have sparse kernels.
  RowMatrix up_rows;          // [I, d]
  ColumnMatrix down_columns;  // [d, I]
  Vector post_ffn_norm;       // [d]
  Matrix ple_gate;            // [p, d]; with per-layer embeddings
  Matrix ple_projection;      // [d, p]
  Vector ple_post_norm;       // [d]
  Vector output_scale = {1};  // [1]; Gemma 4: layer_scalar
  // Gemma 3n; N AltUp inputs, R LAuReL rank.
  Vector altup_router;         // [N, d]
  Vector altup_router_norm;    // [d]
  Vector altup_predict;        // [N*N, N]
  Vector altup_correct;        // [N, N]
  Vector altup_correct_scale;  // [d]
  Matrix laurel_left;          // [R, d]
  Matrix laurel_right;         // [d, R]
  Vector laurel_norm;          // [d]
};

struct Weights {
  Matrix embedding;    // [V, d]; the output head too unless `output` is there
  Matrix output;       // [V, d]; rows() == 0 when tied
  Vector output_norm;  // [d]
  // The model projection of the per-layer inputs [L*p, d], cut where tokens whose logits nobody wants stop; B =
  // config.common_layers(). Empty, as the norm, when the table's rows are finished.
  Matrix ple_model_projection_common;      // [B*p, d]; empty when B == 0
  Matrix ple_model_projection_rest;        // [(L-B)*p, d]
  Vector ple_projection_norm;              // [p]
  Vector rope_factors;                     // [D/2] of full layers, divides their frequencies; empty = all 1
  std::vector<Matrix> altup_projection;    // N-1 of [d, d]
  std::vector<Matrix> altup_unprojection;  // N-1 of [d, d]
  std::vector<LayerWeights> layers;

  const Matrix& head() const { return output.rows() > 0 ? output : embedding; }
};

// What a file's tensors come to, without loading them.
struct WeightsSummary {
  uint64_t parameters = 0;           // in use, the table included
  uint64_t weight_bytes = 0;         // of the file, to be loaded
  uint64_t resident_bytes = 0;       // what they take in memory, an estimate until they are loaded
  uint64_t table_bytes = 0;          // the per-layer embedding table, as stored
  std::map<std::string, int> types;  // tensors in use, by type name
  int tensors_skipped = 0;           // in the file but of no use to a text decoder, such as vision and audio towers
  uint64_t bytes_skipped = 0;
};

// Checks every tensor that the decoder needs. Errors: FAILED_PRECONDITION (missing, or another shape than the metadata
// implies; names tensor and both shapes), UNIMPLEMENTED (a type without kernels; names tensor and type).
absl::StatusOr<WeightsSummary> CheckWeights(const storage::GgufFile& file, const ModelConfig& config);

// Checks, then loads, repacking with all of `pool` while the disk reads on (weight_reader.h, whose buffers are all the
// memory it takes besides). `progress` (may be empty) gets bytes done and in all. Besides CheckWeights' errors: those
// of ReadTensor, with the tensor's name; RESOURCE_EXHAUSTED when memory is refused.
absl::StatusOr<Weights> LoadWeights(const storage::GgufFile& file, const ModelConfig& config, ThreadPool& pool,
                                    const std::function<void(uint64_t done, uint64_t total)>& progress);

// Bytes held by all of them.
uint64_t ResidentBytes(const Weights& weights);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_WEIGHTS_H_
