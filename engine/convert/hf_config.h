// What a Hugging Face folder's config.json and generation_config.json say of a Gemma 3n or Gemma 4 text decoder, with
// the reference's defaults for absent keys and one value per layer wherever layers may differ.
// Source: ARCHITECTURE sections 3 to 7; transformers' Gemma4TextConfig and Gemma3nTextConfig.
#ifndef EMBERGATE_ENGINE_CONVERT_HF_CONFIG_H_
#define EMBERGATE_ENGINE_CONVERT_HF_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"  // ModelFamily
#include "nlohmann/json.hpp"

namespace embergate::engine {

// Everything is checked: counts are positive and bounded, lists have one entry per layer.
struct HfConfig {
  ModelFamily family = ModelFamily::kGemma4;
  int64_t layers = 0;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t context_length = 0;
  int64_t heads = 0;
  int64_t head_dim_sliding = 0;     // equal to head_dim_full when there is no sliding layer, or in 3n
  int64_t head_dim_full = 0;        // equal to head_dim_sliding when there is no full layer
  std::vector<int64_t> kv_heads;    // per layer
  std::vector<bool> sliding;        // per layer; false = full attention
  std::vector<int64_t> ffn_length;  // per layer
  int64_t sliding_window = 0;       // positions that a query sees, its own included
  int64_t shared_kv_layers = 0;     // the last n layers; each has a donor of its own type below them
  bool k_eq_v = false;              // full layers have no v_proj
  double rms_epsilon = 0;
  double softcap = 0;  // of the final logits; 0 = none
  bool tied_embeddings = true;
  // Rotary embedding. Pair i turns by theta^(-2i/D) / factor; in full layers only the first `rope_pairs_full` pairs do.
  double rope_theta_sliding = 0;
  double rope_theta_full = 0;
  int64_t rope_pairs_full = 0;
  double rope_factor_full = 1;
  // Per-layer embeddings.
  int64_t ple_width = 0;  // 0 = none
  int64_t ple_rows = 0;   // rows of the table; ids from here on take row 0
  // Gemma 3n only.
  int64_t altup_inputs = 0;
  int64_t altup_active = 0;
  bool altup_correct_scale = true;
  int64_t laurel_rank = 0;
  std::vector<double> activation_sparsity;  // per layer: share of gate channels cut off; 0 = no cut

  int64_t head_dim(int64_t layer) const { return sliding[layer] ? head_dim_sliding : head_dim_full; }
  bool shares_kv(int64_t layer) const { return layer >= layers - shared_kv_layers; }
  bool has_v(int64_t layer) const { return !k_eq_v || sliding[layer]; }

  std::vector<int32_t> eos_ids;  // of config.json; empty = none
};

// `json` is config.json: a multimodal wrapper with `text_config`, or a text-only configuration.
// UNIMPLEMENTED: another model type or a variant that is not served (mixture of experts, quantised weights, ...).
// INVALID_ARGUMENT: a key that is malformed, out of range or contradicts another. Both name the key.
absl::StatusOr<HfConfig> ParseHfConfig(const nlohmann::json& json);

struct GenerationDefaults {
  std::vector<int32_t> eos_ids;
  std::optional<double> temperature;  // 0 where do_sample is false
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;  // over prompt and output
};

// `json` is generation_config.json. INVALID_ARGUMENT names a malformed key.
absl::StatusOr<GenerationDefaults> ParseGenerationConfig(const nlohmann::json& json);

// z such that a standard normal variable is below it with probability `p`, 0 < p < 1.
double NormalQuantile(double p);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_HF_CONFIG_H_
