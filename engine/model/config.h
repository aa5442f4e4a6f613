// The hyper-parameters of a decoder, read from a GGUF file's metadata and from its tensors' shapes. Everything that
// follows from other values is computed here, once; nothing about any particular model is typed in.
#ifndef EMBERGATE_ENGINE_MODEL_CONFIG_H_
#define EMBERGATE_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/gguf_file.h"

namespace embergate::engine {

enum class ModelFamily { kGemma4, kGemma3n };

// Bounds on what a file may ask for: far above every published model, and low enough that no product of two or three
// of them overflows and no small file can ask for absurd memory.
struct ConfigBounds {
  static constexpr int kLayersMax = 256;
  static constexpr int kHiddenMax = 1 << 16;
  static constexpr int kHeadsMax = 256;
  static constexpr int kHeadDimMax = 4096;
  static constexpr int kFeedForwardMax = 1 << 20;
  static constexpr int kVocabMax = 1 << 22;
  static constexpr int kContextMax = 1 << 22;
  static constexpr int kPleWidthMax = 1 << 14;
  static constexpr int kAltupInputsMax = 16;
  static constexpr int kLaurelRankMax = 1 << 14;
};

struct LayerConfig {
  bool sliding = false;
  bool owns_kv = true;
  int kv_source = 0;  // the layer whose keys and values it attends to; itself when it owns them
  int kv_heads = 0;   // K of that layer
  int head_dim = 0;   // D
  int feed_forward = 0;
  // Gemma 3n: gate values are cut at mean + this * std; -infinity = no cut.
  float sparsity_scale = -std::numeric_limits<float>::infinity();

  bool is_sparse() const { return sparsity_scale > -std::numeric_limits<float>::infinity(); }
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kGemma4;
  std::string architecture;  // "gemma4", "gemma3n": prefix of the file's keys
  int hidden = 0;            // d
  int vocab = 0;             // V
  int heads = 0;             // H
  int context_trained = 0;
  int window = 0;                  // W: positions that a sliding layer sees, the current one included
  int own_layers = 0;              // F: layers below it own K and V, the others share
  int ple_width = 0;               // p; 0 = no per-layer embeddings
  int64_t ple_rows = 0;            // rows of the table; an id beyond them takes row 0
  bool ple_rows_finished = false;  // they are finished per-layer inputs: projection, norm and sum are done
  float rms_eps = 0;
  float softcap = 0;  // of the logits; 0 = none
  float rope_base_full = 0;
  float rope_base_sliding = 0;
  int altup_inputs = 0;  // N, Gemma 3n
  int altup_active = 0;  // A
  int laurel_rank = 0;   // R
  std::vector<LayerConfig> layers;

  int layer_count() const { return static_cast<int>(layers.size()); }
  // Layers that every token passes whole. A token whose logits nobody wants stops after the keys and values of the
  // layer above them, the last that owns any: nothing further up reads it.
  int common_layers() const { return own_layers - 1; }
  // The largest over the layers, for scratch.
  int q_width_max() const;   // H * D
  int kv_width_max() const;  // K * D
  int head_dim_max() const;
  int feed_forward_max() const;
  bool has_sparse_layers() const;
};

// Errors: UNIMPLEMENTED (another architecture; names those that are served), FAILED_PRECONDITION (a key is missing,
// out of range or contradicts another or a tensor's shape; names both).
absl::StatusOr<ModelConfig> ReadModelConfig(const storage::GgufFile& file);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_CONFIG_H_
