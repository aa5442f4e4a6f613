#include "engine/convert/model_keys.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "engine/convert/gguf_keys.h"

namespace embergate::engine {

using storage::GgufWriter;

namespace {

// One value if all are equal, else one per layer.
void AddPerLayer(GgufWriter& writer, const std::string& key, const std::vector<int64_t>& values) {
  if (std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == values[0]; })) {
    writer.AddUint32(key, static_cast<uint32_t>(values[0]));
    return;
  }
  const std::vector<int32_t> ints(values.begin(), values.end());
  writer.AddInt32s(key, ints);
}

}  // namespace

const char* ArchitectureName(ModelFamily family) {
  return family == ModelFamily::kGemma4 ? gguf::kGemma4 : gguf::kGemma3n;
}

void AddModelKeys(const HfConfig& config, GgufWriter& writer) {
  const bool gemma4 = config.family == ModelFamily::kGemma4;
  const char* arch = ArchitectureName(config.family);
  const auto key = [&](const char* suffix) { return gguf::ArchKey(arch, suffix); };
  const auto add = [&](const char* suffix, int64_t value) {
    writer.AddUint32(key(suffix), static_cast<uint32_t>(value));
  };
  add(gguf::kContextLength, config.context_length);
  add(gguf::kEmbeddingLength, config.hidden_size);
  add(gguf::kBlockCount, config.layers);
  add(gguf::kVocabSize, config.vocab_size);
  AddPerLayer(writer, key(gguf::kFeedForwardLength), config.ffn_length);
  add(gguf::kHeadCount, config.heads);
  AddPerLayer(writer, key(gguf::kHeadCountKv), config.kv_heads);
  add(gguf::kKeyLength, config.head_dim_full);
  add(gguf::kValueLength, config.head_dim_full);
  writer.AddFloat(key(gguf::kRmsEpsilon), static_cast<float>(config.rms_epsilon));
  add(gguf::kSlidingWindow, config.sliding_window);
  writer.AddBools(key(gguf::kSlidingWindowPattern), config.sliding);
  add(gguf::kSharedKvLayers, config.shared_kv_layers);
  add(gguf::kPleLength, config.ple_width);
  writer.AddFloat(key(gguf::kRopeFreqBase), static_cast<float>(config.rope_theta_full));
  writer.AddFloat(key(gguf::kRopeFreqBaseSwa), static_cast<float>(config.rope_theta_sliding));
  writer.AddFloat(key(gguf::kFinalLogitSoftcapping), static_cast<float>(config.softcap));
  if (gemma4) {
    add(gguf::kKeyLengthSwa, config.head_dim_sliding);
    add(gguf::kValueLengthSwa, config.head_dim_sliding);
    add(gguf::kRopeDimensionCount, config.head_dim_full);
    add(gguf::kRopeDimensionCountSwa, config.head_dim_sliding);
  } else {
    add(gguf::kAltupActiveIndex, config.altup_active);
    add(gguf::kAltupInputs, config.altup_inputs);
    std::vector<float> scale;
    for (double sparsity : config.activation_sparsity) {
      scale.push_back(sparsity > 0 ? static_cast<float>(NormalQuantile(sparsity))
                                   : -std::numeric_limits<float>::infinity());
    }
    writer.AddFloats(key(gguf::kActivationSparsityScale), scale);
  }
  if (config.ple_width > 0) {
    writer.AddUint32(gguf::kPleRows, static_cast<uint32_t>(std::min(config.ple_rows, config.vocab_size)));
  }
}

}  // namespace embergate::engine
