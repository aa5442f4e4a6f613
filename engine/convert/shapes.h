// The shapes of the models that we serve, as data: the four published ones and two tiny ones for tests. Used by the
// synthesiser and by tests that need a real size without real weights; reading a model never looks here.
// Source: ARCHITECTURE.md section 5; the tiny ones are those of tests/golden/gemma4-tiny-e2b and gemma3n-tiny-e2b.
#ifndef EMBERGATE_ENGINE_CONVERT_SHAPES_H_
#define EMBERGATE_ENGINE_CONVERT_SHAPES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/convert/hf_config.h"

namespace embergate::engine {

struct ModelShape {
  const char* name;          // "gemma4-e2b": the name on the command line
  const char* architecture;  // "gemma4" or "gemma3n"
  uint32_t hidden;
  uint32_t layers;
  uint32_t full_period;  // every so many-th layer is full attention, the others slide
  uint32_t shared_kv_layers;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim_sliding;
  uint32_t head_dim_full;
  uint32_t feed_forward;         // width; twice that in the sharing layers of
  bool double_wide_when_shared;  // such models
  uint32_t window;
  uint32_t vocab;
  uint32_t ple_rows;  // of the checkpoint; the file has `vocab` rows, those beyond are copies of row 0
  uint32_t ple_width;
  uint32_t context_length;
  // Gemma 3n; 0 elsewhere.
  uint32_t altup_inputs;
  uint32_t laurel_rank;
  uint32_t sparse_layers;  // the first so many layers cut their gate at the 95 % quantile

  bool is_3n() const { return altup_inputs > 0; }
  bool sliding(uint32_t layer) const { return (layer + 1) % full_period != 0; }
  bool shares_kv(uint32_t layer) const { return layer >= layers - shared_kv_layers; }
  uint32_t head_dim(uint32_t layer) const { return sliding(layer) ? head_dim_sliding : head_dim_full; }
  uint32_t feed_forward_of(uint32_t layer) const {
    return double_wide_when_shared && shares_kv(layer) ? 2 * feed_forward : feed_forward;
  }
  // Pairs of dimensions that rotate in full layers: a quarter of a Gemma 4 head, all of a 3n one.
  uint32_t rotated_pairs_full() const { return is_3n() ? head_dim_full / 2 : head_dim_full / 8; }
};

absl::Span<const ModelShape> ModelShapes();
const ModelShape* FindModelShape(absl::string_view name);  // null if there is none of that name

// What config.json of a model of this shape would say.
HfConfig ConfigOf(const ModelShape& shape);

// What a tensor is for: decides its type and the distribution of its random values.
enum class TensorRole {
  kEmbedding,    // token_embd
  kPleTable,     // per_layer_token_embd
  kMatrix,       // quantised with the others: attention, feed-forward, PLE gate and projection
  kSmallMatrix,  // never quantised: LAuReL projections, per_layer_model_proj
  kStack,        // never quantised nor F16: AltUp projections, three-dimensional
  kNorm,         // F32, about 1
  kQkNorm,       // F32, sets the sharpness of attention
  kOutputNorm,   // F32, sets the spread of the logits
  kLayerScale,   // F32 [1]
  kRopeFactors,  // F32
  kAltupCoef,    // F32, small
  kAltupRouter,  // F32
};

struct ShapeTensor {
  std::string name;
  std::vector<uint64_t> dims;  // GGUF order
  TensorRole role;
};

// Every tensor of a model of this shape, in file order: the PLE table last, so that what stays in memory lies together.
// Gemma 4's sharing layers have no keys and values of their own; 3n's have, as its files do.
std::vector<ShapeTensor> ShapeTensors(const ModelShape& shape);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_SHAPES_H_
