#include "engine/model/config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr char kExpertCount[] = "expert_count";
constexpr char kProjector[] = "clip";  // general.architecture of mmproj files

// Reads keys of one architecture, each within bounds; every error names file and key.
class KeyReader {
 public:
  KeyReader(const storage::GgufFile& file, const std::string& architecture)
      : file_(file), architecture_(architecture) {}

  bool Has(const char* key) const { return file_.Has(Name(key)); }
  std::string Name(const char* key) const { return gguf::ArchKey(architecture_, key); }

  absl::Status Error(const std::string& message) const {
    return absl::FailedPreconditionError(absl::StrCat(file_.shard_path(0), ": ", message));
  }

  absl::StatusOr<int> Int(const char* key, int64_t low, int64_t high) const {
    absl::StatusOr<int64_t> value = file_.GetInt(Name(key));
    if (!value.ok()) {
      return Error(absl::StrCat("metadata key '", Name(key), "' cannot be read: ", value.status().message()));
    }
    if (*value < low || *value > high) {
      return OutOfRange(key, absl::StrCat(*value), low, high);
    }
    return static_cast<int>(*value);
  }
  absl::StatusOr<int> Int(const char* key, int64_t low, int64_t high, int fallback) const {
    return Has(key) ? Int(key, low, high) : absl::StatusOr<int>(fallback);
  }

  // One value for all `count` layers, or one each.
  absl::StatusOr<std::vector<int>> PerLayer(const char* key, int count, int64_t low, int64_t high) const {
    absl::StatusOr<std::vector<int64_t>> values = file_.GetInts(Name(key));
    if (!values.ok()) {
      return Error(absl::StrCat("metadata key '", Name(key), "' cannot be read: ", values.status().message()));
    }
    if (values->size() != 1 && values->size() != static_cast<size_t>(count)) {
      return Error(
          absl::StrCat("metadata key '", Name(key), "' has ", values->size(), " values for ", count, " layers"));
    }
    std::vector<int> out(count);
    for (int i = 0; i < count; ++i) {
      const int64_t value = (*values)[values->size() == 1 ? 0 : i];
      if (value < low || value > high) {
        return OutOfRange(key, absl::StrCat(value), low, high);
      }
      out[i] = static_cast<int>(value);
    }
    return out;
  }

  absl::StatusOr<float> Float(const char* key, double low, double high) const {
    absl::StatusOr<double> value = file_.GetFloat(Name(key));
    if (!value.ok()) {
      return Error(absl::StrCat("metadata key '", Name(key), "' cannot be read: ", value.status().message()));
    }
    if (!(*value >= low && *value <= high)) {  // also NaN
      return OutOfRange(key, absl::StrCat(*value), low, high);
    }
    return static_cast<float>(*value);
  }
  absl::StatusOr<float> Float(const char* key, double low, double high, double fallback) const {
    return Has(key) ? Float(key, low, high) : absl::StatusOr<float>(static_cast<float>(fallback));
  }

  // Two dimensions' sizes of a tensor: {contiguous, the others together}.
  absl::StatusOr<const storage::GgufTensor*> Tensor(const std::string& name) const {
    const storage::GgufTensor* tensor = file_.FindTensor(name);
    if (tensor == nullptr) {
      return Error(absl::StrCat("tensor '", name, "' is missing"));
    }
    return tensor;
  }

 private:
  template <typename T>
  absl::Status OutOfRange(const char* key, const std::string& value, T low, T high) const {
    return Error(
        absl::StrCat("metadata key '", Name(key), "' is ", value, ", outside of what is served: ", low, " to ", high));
  }

  const storage::GgufFile& file_;
  const std::string architecture_;
};

// sliding_window_pattern: bool[L], true = sliding; or one period p, every p-th layer being full; or absent, with the
// family's own period.
absl::StatusOr<std::vector<bool>> ReadPattern(const KeyReader& keys, const storage::GgufFile& file, int layers,
                                              int default_period) {
  int period = default_period;
  if (keys.Has(gguf::kSlidingWindowPattern)) {
    const std::string name = keys.Name(gguf::kSlidingWindowPattern);
    bool is_array = false;
    uint64_t count = 0;
    EMBERGATE_RETURN_IF_ERROR(file.TypeOf(name, &is_array, &count).status());
    if (is_array) {
      EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int64_t> values, file.GetInts(name));
      if (values.size() != static_cast<size_t>(layers)) {
        return keys.Error(
            absl::StrCat("metadata key '", name, "' has ", values.size(), " values for ", layers, " layers"));
      }
      std::vector<bool> sliding(layers);
      for (int i = 0; i < layers; ++i) {
        sliding[i] = values[i] != 0;
      }
      return sliding;
    }
    EMBERGATE_ASSIGN_OR_RETURN(period, keys.Int(gguf::kSlidingWindowPattern, 1, ConfigBounds::kLayersMax));
  }
  std::vector<bool> sliding(layers);
  for (int i = 0; i < layers; ++i) {
    sliding[i] = (i + 1) % period != 0;
  }
  if (!keys.Has(gguf::kSlidingWindowPattern)) {
    sliding[layers - 1] = false;  // the reference's rule for a pattern that it makes up
  }
  return sliding;
}

// F, and for each layer at or above it the last layer below F of its own type.
absl::Status AssignKvSources(const KeyReader& keys, ModelConfig& config) {
  int last[2] = {-1, -1};  // by sliding
  for (int i = 0; i < config.layer_count(); ++i) {
    LayerConfig& layer = config.layers[i];
    layer.owns_kv = i < config.own_layers;
    layer.kv_source = i;
    if (layer.owns_kv) {
      last[layer.sliding] = i;
      continue;
    }
    const int source = last[layer.sliding];
    if (source < 0) {
      return keys.Error(absl::StrCat("layer ", i, " shares the keys and values of an earlier ",
                                     layer.sliding ? "sliding" : "full-attention", " layer, but none of the first ",
                                     config.own_layers, " is one (", keys.Name(gguf::kSharedKvLayers), ")"));
    }
    layer.kv_source = source;
    layer.kv_heads = config.layers[source].kv_heads;
  }
  return absl::OkStatus();
}

absl::Status ReadGemma3n(const KeyReader& keys, const storage::GgufFile& file, ModelConfig& config) {
  EMBERGATE_ASSIGN_OR_RETURN(config.altup_inputs, keys.Int(gguf::kAltupInputs, 1, ConfigBounds::kAltupInputsMax, 4));
  EMBERGATE_ASSIGN_OR_RETURN(config.altup_active, keys.Int(gguf::kAltupActiveIndex, 0, config.altup_inputs - 1, 0));
  EMBERGATE_ASSIGN_OR_RETURN(const storage::GgufTensor* laurel, keys.Tensor(gguf::LayerTensor(0, gguf::kLaurelL)));
  if (laurel->rows() > ConfigBounds::kLaurelRankMax) {
    return keys.Error(absl::StrCat("tensor '", laurel->name, "' has rank ", laurel->rows(), ", above ",
                                   ConfigBounds::kLaurelRankMax));
  }
  config.laurel_rank = static_cast<int>(laurel->rows());

  const int layers = config.layer_count();
  if (!keys.Has(gguf::kActivationSparsityScale)) {
    // The reference's default pattern: 0.95 in the first ten layers of a deeper model.
    constexpr float kQuantile95 = 1.6448536f;
    for (int i = 0; i < layers && i < 10 && layers > 10; ++i) {
      config.layers[i].sparsity_scale = kQuantile95;
    }
    return absl::OkStatus();
  }
  const std::string name = keys.Name(gguf::kActivationSparsityScale);
  absl::StatusOr<std::vector<float>> scales = file.GetFloats(name);
  if (!scales.ok()) {
    return keys.Error(absl::StrCat("metadata key '", name, "' cannot be read: ", scales.status().message()));
  }
  if (scales->size() != static_cast<size_t>(layers)) {
    return keys.Error(
        absl::StrCat("metadata key '", name, "' has ", scales->size(), " values for ", layers, " layers"));
  }
  for (int i = 0; i < layers; ++i) {
    const float scale = (*scales)[i];
    if (std::isnan(scale) || scale == std::numeric_limits<float>::infinity()) {
      return keys.Error(absl::StrCat("metadata key '", name, "' has the value ", scale, " for layer ", i));
    }
    config.layers[i].sparsity_scale = scale;
  }
  return absl::OkStatus();
}

}  // namespace

int ModelConfig::q_width_max() const { return heads * head_dim_max(); }

int ModelConfig::kv_width_max() const {
  int width = 0;
  for (const LayerConfig& layer : layers) {
    width = std::max(width, layer.kv_heads * layer.head_dim);
  }
  return width;
}

int ModelConfig::head_dim_max() const {
  int dim = 0;
  for (const LayerConfig& layer : layers) {
    dim = std::max(dim, layer.head_dim);
  }
  return dim;
}

int ModelConfig::feed_forward_max() const {
  int width = 0;
  for (const LayerConfig& layer : layers) {
    width = std::max(width, layer.feed_forward);
  }
  return width;
}

bool ModelConfig::has_sparse_layers() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& layer) { return layer.is_sparse(); });
}

absl::StatusOr<ModelConfig> ReadModelConfig(const storage::GgufFile& file) {
  absl::StatusOr<absl::string_view> architecture = file.GetString(gguf::kArchitecture);
  if (!architecture.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(file.shard_path(0), ": metadata key '", gguf::kArchitecture,
                                                      "' cannot be read: ", architecture.status().message(),
                                                      "; is this a model file?"));
  }
  ModelConfig config;
  config.architecture = std::string(*architecture);
  if (config.architecture == gguf::kGemma4) {
    config.family = ModelFamily::kGemma4;
  } else if (config.architecture == gguf::kGemma3n) {
    config.family = ModelFamily::kGemma3n;
  } else {
    return absl::UnimplementedError(absl::StrCat(
        file.shard_path(0), ": architecture '", config.architecture, "' is not served; those that are: ", gguf::kGemma4,
        ", ", gguf::kGemma3n,
        config.architecture == kProjector ? ". This is a vision or audio projector (mmproj) that belongs to "
                                            "a language model: give that model's file"
                                          : ""));
  }
  const bool is_3n = config.family == ModelFamily::kGemma3n;
  const KeyReader keys(file, config.architecture);
  EMBERGATE_ASSIGN_OR_RETURN(const int experts, keys.Int(kExpertCount, 0, ConfigBounds::kLayersMax * 1024, 0));
  if (experts > 0) {
    return absl::UnimplementedError(absl::StrCat(file.shard_path(0), ": metadata key '", keys.Name(kExpertCount),
                                                 "' is ", experts, ": mixture-of-experts models are not served"));
  }

  EMBERGATE_ASSIGN_OR_RETURN(const int layers, keys.Int(gguf::kBlockCount, 1, ConfigBounds::kLayersMax));
  config.layers.resize(layers);
  EMBERGATE_ASSIGN_OR_RETURN(config.hidden, keys.Int(gguf::kEmbeddingLength, 1, ConfigBounds::kHiddenMax));
  EMBERGATE_ASSIGN_OR_RETURN(config.context_trained, keys.Int(gguf::kContextLength, 1, ConfigBounds::kContextMax));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int> heads,
                             keys.PerLayer(gguf::kHeadCount, layers, 1, ConfigBounds::kHeadsMax));
  config.heads = heads[0];
  if (std::any_of(heads.begin(), heads.end(), [&](int count) { return count != heads[0]; })) {
    return keys.Error(absl::StrCat("metadata key '", keys.Name(gguf::kHeadCount),
                                   "' differs between layers; only equal ones are served"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(config.window, keys.Int(gguf::kSlidingWindow, 1, ConfigBounds::kContextMax, 512));
  EMBERGATE_ASSIGN_OR_RETURN(config.rms_eps, keys.Float(gguf::kRmsEpsilon, 0, 1, 1e-6));
  EMBERGATE_ASSIGN_OR_RETURN(config.softcap, keys.Float(gguf::kFinalLogitSoftcapping, 0, 1e6, is_3n ? 30 : 0));
  EMBERGATE_ASSIGN_OR_RETURN(config.rope_base_full, keys.Float(gguf::kRopeFreqBase, 1, 1e12, 1e6));
  EMBERGATE_ASSIGN_OR_RETURN(config.rope_base_sliding, keys.Float(gguf::kRopeFreqBaseSwa, 1, 1e12, 1e4));

  // Heads.
  EMBERGATE_ASSIGN_OR_RETURN(const int dim_full, keys.Int(gguf::kKeyLength, 2, ConfigBounds::kHeadDimMax));
  EMBERGATE_ASSIGN_OR_RETURN(const int dim_sliding,
                             keys.Int(gguf::kKeyLengthSwa, 2, ConfigBounds::kHeadDimMax, dim_full));
  struct MustEqual {
    const char* key;
    const char* other;
    int value;
  };
  for (const MustEqual& pair : {MustEqual{gguf::kValueLength, gguf::kKeyLength, dim_full},
                                MustEqual{gguf::kValueLengthSwa, gguf::kKeyLengthSwa, dim_sliding},
                                MustEqual{gguf::kRopeDimensionCount, gguf::kKeyLength, dim_full},
                                MustEqual{gguf::kRopeDimensionCountSwa, gguf::kKeyLengthSwa, dim_sliding}}) {
    EMBERGATE_ASSIGN_OR_RETURN(const int value, keys.Int(pair.key, 0, ConfigBounds::kHeadDimMax, pair.value));
    if (value != pair.value) {
      return keys.Error(absl::StrCat("metadata key '", keys.Name(pair.key), "' is ", value, " but '",
                                     keys.Name(pair.other), "' is ", pair.value, "; only equal ones are served"));
    }
  }
  if (dim_full % 8 != 0 || dim_sliding % 8 != 0) {  // what the kernels take
    return keys.Error(absl::StrCat("head sizes ", dim_full, " and ", dim_sliding, " (", keys.Name(gguf::kKeyLength),
                                   ") must be multiples of 8"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int> kv_heads,
                             keys.PerLayer(gguf::kHeadCountKv, layers, 1, ConfigBounds::kHeadsMax));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int> feed_forward,
                             keys.PerLayer(gguf::kFeedForwardLength, layers, 1, ConfigBounds::kFeedForwardMax));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<bool> sliding, ReadPattern(keys, file, layers, is_3n ? 5 : 6));
  for (int i = 0; i < layers; ++i) {
    LayerConfig& layer = config.layers[i];
    layer.sliding = sliding[i];
    layer.head_dim = sliding[i] ? dim_sliding : dim_full;
    layer.kv_heads = kv_heads[i];
    layer.feed_forward = feed_forward[i];
    if (config.heads % layer.kv_heads != 0) {
      return keys.Error(absl::StrCat("layer ", i, ": ", config.heads, " heads (", keys.Name(gguf::kHeadCount),
                                     ") are no multiple of ", layer.kv_heads, " KV heads (",
                                     keys.Name(gguf::kHeadCountKv), ")"));
    }
  }

  // KV sharing. Gemma 3n files without the key come from a loader that fixes "layers from 20 on share".
  constexpr int kOwnLayersOf3n = 20;
  EMBERGATE_ASSIGN_OR_RETURN(const int shared, keys.Int(gguf::kSharedKvLayers, 0, layers - 1,
                                                        is_3n ? std::max(0, layers - kOwnLayersOf3n) : 0));
  config.own_layers = layers - shared;
  EMBERGATE_RETURN_IF_ERROR(AssignKvSources(keys, config));

  // Shapes decide the vocabulary and the table.
  EMBERGATE_ASSIGN_OR_RETURN(const storage::GgufTensor* embedding, keys.Tensor(gguf::kTokenEmbd));
  if (embedding->rows() > ConfigBounds::kVocabMax) {
    return keys.Error(absl::StrCat("tensor '", embedding->name, "' has ", embedding->rows(), " rows, above ",
                                   ConfigBounds::kVocabMax));
  }
  config.vocab = static_cast<int>(embedding->rows());
  const storage::GgufTensor* table = file.FindTensor(gguf::kPerLayerTokenEmbd);
  if (is_3n && !keys.Has(gguf::kPleLength)) {
    // llama.cpp's loader fixes 256; the table's shape says it for every size.
    EMBERGATE_ASSIGN_OR_RETURN(table, keys.Tensor(gguf::kPerLayerTokenEmbd));
    const uint64_t width = table->cols() / layers;
    if (table->cols() % layers != 0 || width > ConfigBounds::kPleWidthMax) {
      return keys.Error(
          absl::StrCat("tensor '", table->name, "' has rows of ", table->cols(), " values for ", layers, " layers"));
    }
    config.ple_width = static_cast<int>(width);
  } else {
    EMBERGATE_ASSIGN_OR_RETURN(config.ple_width, keys.Int(gguf::kPleLength, 0, ConfigBounds::kPleWidthMax, 0));
  }
  if (config.ple_width > 0) {
    EMBERGATE_ASSIGN_OR_RETURN(table, keys.Tensor(gguf::kPerLayerTokenEmbd));
    if (table->cols() != static_cast<uint64_t>(config.ple_width) * layers) {
      return keys.Error(absl::StrCat("tensor '", table->name, "' has rows of ", table->cols(), " values, but ", layers,
                                     " layers of ", config.ple_width, " (", keys.Name(gguf::kPleLength), ") need ",
                                     static_cast<int64_t>(config.ple_width) * layers));
    }
    if (table->rows() > ConfigBounds::kVocabMax) {
      return keys.Error(
          absl::StrCat("tensor '", table->name, "' has ", table->rows(), " rows, above ", ConfigBounds::kVocabMax));
    }
    config.ple_rows = static_cast<int64_t>(table->rows());
    if (file.Has(gguf::kRowsFinished)) {
      absl::StatusOr<bool> finished = file.GetBool(gguf::kRowsFinished);
      if (!finished.ok()) {
        return keys.Error(
            absl::StrCat("metadata key '", gguf::kRowsFinished, "' cannot be read: ", finished.status().message()));
      }
      config.ple_rows_finished = *finished;
      if (config.ple_rows_finished && config.ple_rows < config.vocab) {
        return keys.Error(absl::StrCat("tensor '", table->name, "' has ", table->rows(),
                                       " finished rows for a vocabulary of ", config.vocab));
      }
    }
    if (!is_3n && config.ple_rows < config.vocab) {
      return keys.Error(
          absl::StrCat("tensor '", table->name, "' has ", table->rows(), " rows for a vocabulary of ", config.vocab));
    }
  } else if (is_3n) {
    return keys.Error(absl::StrCat("metadata key '", keys.Name(gguf::kPleLength),
                                   "' is 0: a Gemma 3n without per-layer "
                                   "embeddings is not served"));
  }
  if (is_3n) {
    EMBERGATE_RETURN_IF_ERROR(ReadGemma3n(keys, file, config));
  }
  return config;
}

}  // namespace embergate::engine
