#include "engine/convert/shapes.h"

#include <iterator>
#include <limits>

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

// Quantile of 0.95 of the standard normal distribution.
constexpr float kSparsityScale = 1.6448536f;

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

void AddShapeKeys(const ModelShape& s, storage::GgufWriter& writer) {
  const auto key = [&s](const char* suffix) { return gguf::ArchKey(s.architecture, suffix); };
  writer.AddUint32(key(gguf::kContextLength), s.context_length);
  writer.AddUint32(key(gguf::kEmbeddingLength), s.hidden);
  writer.AddUint32(key(gguf::kBlockCount), s.layers);
  writer.AddUint32(key(gguf::kVocabSize), s.vocab);
  if (s.double_wide_when_shared) {
    std::vector<int32_t> widths;
    for (uint32_t i = 0; i < s.layers; ++i) {
      widths.push_back(static_cast<int32_t>(s.feed_forward_of(i)));
    }
    writer.AddInt32s(key(gguf::kFeedForwardLength), widths);
  } else {
    writer.AddUint32(key(gguf::kFeedForwardLength), s.feed_forward);
  }
  writer.AddUint32(key(gguf::kHeadCount), s.heads);
  writer.AddUint32(key(gguf::kHeadCountKv), s.kv_heads);
  writer.AddUint32(key(gguf::kKeyLength), s.head_dim_full);
  writer.AddUint32(key(gguf::kValueLength), s.head_dim_full);
  writer.AddFloat(key(gguf::kRmsEpsilon), 1e-6f);
  writer.AddUint32(key(gguf::kSlidingWindow), s.window);
  std::vector<bool> pattern;
  for (uint32_t i = 0; i < s.layers; ++i) {
    pattern.push_back(s.sliding(i));
  }
  writer.AddBools(key(gguf::kSlidingWindowPattern), pattern);
  writer.AddUint32(key(gguf::kSharedKvLayers), s.shared_kv_layers);
  writer.AddUint32(key(gguf::kPleLength), s.ple_width);
  writer.AddFloat(key(gguf::kRopeFreqBase), 1e6f);
  writer.AddFloat(key(gguf::kRopeFreqBaseSwa), 1e4f);
  writer.AddFloat(key(gguf::kFinalLogitSoftcapping), 30.0f);
  if (s.is_3n()) {
    writer.AddUint32(key(gguf::kAltupActiveIndex), 0);
    writer.AddUint32(key(gguf::kAltupInputs), s.altup_inputs);
    std::vector<float> scales(s.layers, -std::numeric_limits<float>::infinity());
    std::fill_n(scales.begin(), s.sparse_layers, kSparsityScale);
    writer.AddFloats(key(gguf::kActivationSparsityScale), scales);
  } else {
    writer.AddUint32(key(gguf::kKeyLengthSwa), s.head_dim_sliding);
    writer.AddUint32(key(gguf::kValueLengthSwa), s.head_dim_sliding);
    writer.AddUint32(key(gguf::kRopeDimensionCount), s.head_dim_full);
    writer.AddUint32(key(gguf::kRopeDimensionCountSwa), s.head_dim_sliding);
  }
  writer.AddUint32(gguf::kPleRows, s.ple_rows);
}

std::vector<ShapeTensor> ShapeTensors(const ModelShape& s) {
  const uint64_t h = s.hidden;
  const uint64_t width = uint64_t{s.ple_width} * s.layers;
  std::vector<ShapeTensor> out;
  out.push_back({gguf::kTokenEmbd, {h, s.vocab}, TensorRole::kEmbedding});
  out.push_back({gguf::kOutputNorm, {h}, TensorRole::kOutputNorm});
  if (s.is_3n()) {
    const uint64_t projections = s.altup_inputs - 1;
    out.push_back({gguf::kAltupProj, {h, h, projections}, TensorRole::kSmallMatrix});
    out.push_back({gguf::kAltupUnembdProj, {h, h, projections}, TensorRole::kSmallMatrix});
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
