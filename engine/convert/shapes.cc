#include "engine/convert/shapes.h"

#include <algorithm>

#include "engine/convert/gguf_keys.h"

namespace embergate::engine {
namespace {

constexpr ModelShape kShapes[] = {
    {.name = "gemma4-e2b",
     .architecture = gguf::kGemma4,
     .hidden = 1536,
     .layers = 35,
     .full_period = 5,
     .shared_kv_layers = 20,
     .heads = 8,
     .kv_heads = 1,
     .head_dim_sliding = 256,
     .head_dim_full = 512,
     .feed_forward = 6144,
     .double_wide_when_shared = true,
     .window = 512,
     .vocab = 262144,
     .ple_rows = 262144,
     .ple_width = 256,
     .context_length = 131072,
     .altup_inputs = 0,
     .laurel_rank = 0,
     .sparse_layers = 0},
    {.name = "gemma4-e4b",
     .architecture = gguf::kGemma4,
     .hidden = 2560,
     .layers = 42,
     .full_period = 6,
     .shared_kv_layers = 18,
     .heads = 8,
     .kv_heads = 2,
     .head_dim_sliding = 256,
     .head_dim_full = 512,
     .feed_forward = 10240,
     .double_wide_when_shared = false,
     .window = 512,
     .vocab = 262144,
     .ple_rows = 262144,
     .ple_width = 256,
     .context_length = 131072,
     .altup_inputs = 0,
     .laurel_rank = 0,
     .sparse_layers = 0},
    {.name = "gemma3n-e2b",
     .architecture = gguf::kGemma3n,
     .hidden = 2048,
     .layers = 30,
     .full_period = 5,
     .shared_kv_layers = 10,
     .heads = 8,
     .kv_heads = 2,
     .head_dim_sliding = 256,
     .head_dim_full = 256,
     .feed_forward = 8192,
     .double_wide_when_shared = false,
     .window = 512,
     .vocab = 262400,
     .ple_rows = 262144,
     .ple_width = 256,
     .context_length = 32768,
     .altup_inputs = 4,
     .laurel_rank = 64,
     .sparse_layers = 10},
    {.name = "gemma3n-e4b",
     .architecture = gguf::kGemma3n,
     .hidden = 2048,
     .layers = 35,
     .full_period = 5,
     .shared_kv_layers = 15,
     .heads = 8,
     .kv_heads = 2,
     .head_dim_sliding = 256,
     .head_dim_full = 256,
     .feed_forward = 16384,
     .double_wide_when_shared = false,
     .window = 512,
     .vocab = 262400,
     .ple_rows = 262144,
     .ple_width = 256,
     .context_length = 32768,
     .altup_inputs = 4,
     .laurel_rank = 64,
     .sparse_layers = 10},
    {.name = "gemma4-tiny",
     .architecture = gguf::kGemma4,
     .hidden = 64,
     .layers = 15,
     .full_period = 5,
     .shared_kv_layers = 8,
     .heads = 4,
     .kv_heads = 1,
     .head_dim_sliding = 32,
     .head_dim_full = 64,
     .feed_forward = 128,
     .double_wide_when_shared = true,
     .window = 24,
     .vocab = 512,
     .ple_rows = 512,
     .ple_width = 32,
     .context_length = 131072,
     .altup_inputs = 0,
     .laurel_rank = 0,
     .sparse_layers = 0},
    {.name = "gemma3n-tiny",
     .architecture = gguf::kGemma3n,
     .hidden = 64,
     .layers = 15,
     .full_period = 5,
     .shared_kv_layers = 5,
     .heads = 4,
     .kv_heads = 1,
     .head_dim_sliding = 32,
     .head_dim_full = 32,
     .feed_forward = 256,
     .double_wide_when_shared = false,
     .window = 24,
     .vocab = 544,
     .ple_rows = 512,
     .ple_width = 32,
     .context_length = 32768,
     .altup_inputs = 4,
     .laurel_rank = 16,
     .sparse_layers = 5},
};

constexpr double kSparsity = 0.95;  // of the first layers' gates in 3n

void AddAttention(const ModelShape& s, uint32_t layer, std::vector<ShapeTensor>& out) {
  const auto name = [layer](const char* tensor) { return gguf::LayerTensor(static_cast<int>(layer), tensor); };
  const uint64_t h = s.hidden;
  const uint64_t d = s.head_dim(layer);
  out.push_back({name(gguf::kAttnNorm), {h}, TensorRole::kNorm});
  out.push_back({name(gguf::kAttnQ), {h, d * s.heads}, TensorRole::kMatrix});
  out.push_back({name(gguf::kAttnQNorm), {d}, TensorRole::kQkNorm});
  if (s.is_3n() || !s.shares_kv(layer)) {
    out.push_back({name(gguf::kAttnK), {h, d * s.kv_heads}, TensorRole::kMatrix});
    out.push_back({name(gguf::kAttnKNorm), {d}, TensorRole::kQkNorm});
    out.push_back({name(gguf::kAttnV), {h, d * s.kv_heads}, TensorRole::kMatrix});
  }
  out.push_back({name(gguf::kAttnOutput), {d * s.heads, h}, TensorRole::kMatrix});
  out.push_back({name(gguf::kPostAttentionNorm), {h}, TensorRole::kNorm});
}

void AddLayer(const ModelShape& s, uint32_t layer, std::vector<ShapeTensor>& out) {
  const auto name = [layer](const char* tensor) { return gguf::LayerTensor(static_cast<int>(layer), tensor); };
  const uint64_t h = s.hidden;
  const uint64_t f = s.feed_forward_of(layer);
  const uint64_t p = s.ple_width;
  AddAttention(s, layer, out);
  out.push_back({name(gguf::kFfnNorm), {h}, TensorRole::kNorm});
  out.push_back({name(gguf::kFfnGate), {h, f}, TensorRole::kMatrix});
  out.push_back({name(gguf::kFfnUp), {h, f}, TensorRole::kMatrix});
  out.push_back({name(gguf::kFfnDown), {f, h}, TensorRole::kMatrix});
  out.push_back({name(gguf::kPostFfwNorm), {h}, TensorRole::kNorm});
  out.push_back({name(gguf::kPleGate), {h, p}, TensorRole::kMatrix});
  out.push_back({name(gguf::kPleProj), {p, h}, TensorRole::kMatrix});
  out.push_back({name(gguf::kPlePostNorm), {h}, TensorRole::kNorm});
  if (!s.is_3n()) {
    out.push_back({name(gguf::kLayerOutputScale), {1}, TensorRole::kLayerScale});
    return;
  }
  const uint64_t n = s.altup_inputs;
  const uint64_t r = s.laurel_rank;
  out.push_back({name(gguf::kAltupCorrectCoef), {n, n}, TensorRole::kAltupCoef});
  out.push_back({name(gguf::kAltupCorrectScale), {h}, TensorRole::kNorm});
  out.push_back({name(gguf::kAltupPredictCoef), {n, n * n}, TensorRole::kAltupCoef});
  out.push_back({name(gguf::kAltupRouter), {h, n}, TensorRole::kAltupRouter});
  out.push_back({name(gguf::kAltupRouterNorm), {h}, TensorRole::kNorm});
  out.push_back({name(gguf::kLaurelL), {h, r}, TensorRole::kSmallMatrix});
  out.push_back({name(gguf::kLaurelR), {r, h}, TensorRole::kSmallMatrix});
  out.push_back({name(gguf::kLaurelPostNorm), {h}, TensorRole::kNorm});
}

}  // namespace

absl::Span<const ModelShape> ModelShapes() { return kShapes; }

const ModelShape* FindModelShape(absl::string_view name) {
  for (const ModelShape& shape : kShapes) {
    if (name == shape.name) {
      return &shape;
    }
  }
  return nullptr;
}

HfConfig ConfigOf(const ModelShape& s) {
  HfConfig config;
  config.family = s.is_3n() ? ModelFamily::kGemma3n : ModelFamily::kGemma4;
  config.layers = s.layers;
  config.hidden_size = s.hidden;
  config.vocab_size = s.vocab;
  config.context_length = s.context_length;
  config.heads = s.heads;
  config.head_dim_sliding = s.head_dim_sliding;
  config.head_dim_full = s.head_dim_full;
  config.kv_heads.assign(s.layers, s.kv_heads);
  for (uint32_t i = 0; i < s.layers; ++i) {
    config.sliding.push_back(s.sliding(i));
    config.ffn_length.push_back(s.feed_forward_of(i));
  }
  config.sliding_window = s.window;
  config.shared_kv_layers = s.shared_kv_layers;
  config.rms_epsilon = 1e-6;
  config.softcap = 30;
  config.rope_theta_sliding = 1e4;
  config.rope_theta_full = 1e6;
  config.rope_pairs_full = s.rotated_pairs_full();
  config.ple_width = s.ple_width;
  config.ple_rows = s.ple_rows;
  if (s.is_3n()) {
    config.altup_inputs = s.altup_inputs;
    config.laurel_rank = s.laurel_rank;
    config.activation_sparsity.assign(s.layers, 0.0);
    std::fill_n(config.activation_sparsity.begin(), s.sparse_layers, kSparsity);
  }
  return config;
}

std::vector<ShapeTensor> ShapeTensors(const ModelShape& s) {
  const uint64_t h = s.hidden;
  const uint64_t width = uint64_t{s.ple_width} * s.layers;
  std::vector<ShapeTensor> out;
  out.push_back({gguf::kTokenEmbd, {h, s.vocab}, TensorRole::kEmbedding});
  out.push_back({gguf::kOutputNorm, {h}, TensorRole::kOutputNorm});
  if (s.is_3n()) {
    const uint64_t projections = s.altup_inputs - 1;
    out.push_back({gguf::kAltupProj, {h, h, projections}, TensorRole::kStack});
    out.push_back({gguf::kAltupUnembdProj, {h, h, projections}, TensorRole::kStack});
  } else {
    out.push_back({gguf::kRopeFreqs, {s.head_dim_full / 2}, TensorRole::kRopeFactors});
  }
  out.push_back({gguf::kPerLayerModelProj, {h, width}, TensorRole::kSmallMatrix});
  out.push_back({gguf::kPerLayerProjNorm, {s.ple_width}, TensorRole::kNorm});
  for (uint32_t i = 0; i < s.layers; ++i) {
    AddLayer(s, i, out);
  }
  out.push_back({gguf::kPerLayerTokenEmbd, {width, s.vocab}, TensorRole::kPleTable});
  return out;
}

}  // namespace embergate::engine
