#include "engine/convert/hf_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

// Far above any real model of these families, low enough that no product of a few of them overflows 63 bits.
constexpr int64_t kLayersMax = 1024;
constexpr int64_t kWidthMax = 1 << 20;
constexpr int64_t kVocabMax = 1 << 24;
constexpr int64_t kHeadsMax = 1024;

// Typed access to one JSON object. The first error sticks, so that a reader of many keys checks once.
class Reader {
 public:
  Reader(const nlohmann::json& json, std::string path) : json_(json), path_(std::move(path)) {}

  const absl::Status& status() const { return status_; }
  bool Has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  bool Contains(const char* key) const { return json_.contains(key); }
  const nlohmann::json& Raw(const char* key) const { return json_.at(key); }

  int64_t Int(const char* key, int64_t fallback, int64_t min, int64_t max) {
    return Has(key) ? AsInt(json_.at(key), key, min, max) : fallback;
  }

  int64_t AsInt(const nlohmann::json& value, const std::string& key, int64_t min, int64_t max) {
    if (!value.is_number_integer()) {
      Fail(key, "is no integer");
      return min;
    }
    // An unsigned value beyond int64 would wrap below.
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    const int64_t number = huge ? INT64_MAX : value.get<int64_t>();
    if (huge || number < min || number > max) {
      Fail(key, absl::StrCat("is ", value.dump(), ", outside ", min, "..", max));
      return min;
    }
    return number;
  }

  double Number(const char* key, double fallback, double min, double max) {
    return Has(key) ? AsNumber(json_.at(key), key, min, max) : fallback;
  }

  double AsNumber(const nlohmann::json& value, const std::string& key, double min, double max) {
    if (!value.is_number()) {
      Fail(key, "is no number");
      return min;
    }
    const double number = value.get<double>();
    if (!(number >= min && number <= max)) {
      Fail(key, absl::StrCat("is ", number, ", outside ", min, "..", max));
      return min;
    }
    return number;
  }

  bool Bool(const char* key, bool fallback) {
    if (!Has(key)) {
      return fallback;
    }
    if (!json_.at(key).is_boolean()) {
      Fail(key, "is neither true nor false");
      return fallback;
    }
    return json_.at(key).get<bool>();
  }

  std::string String(const char* key, const std::string& fallback) {
    if (!Has(key)) {
      return fallback;
    }
    if (!json_.at(key).is_string()) {
      Fail(key, "is no string");
      return fallback;
    }
    return json_.at(key).get<std::string>();
  }

  void Fail(const std::string& key, const std::string& what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(path_, key, " ", what));
    }
  }
  // Takes over the error of a reader of an object inside this one.
  void Adopt(const absl::Status& inner) {
    if (status_.ok() && !inner.ok()) {
      status_ = absl::Status(inner.code(), absl::StrCat(path_, inner.message()));
    }
  }
  void Unserved(const std::string& key, const std::string& what) {
    if (status_.ok()) {
      status_ = absl::UnimplementedError(absl::StrCat(path_, key, " ", what));
    }
  }

 private:
  const nlohmann::json& json_;
  const std::string path_;
  absl::Status status_;
};

// A number for all layers or a list with one per layer.
template <typename T, typename Convert>
std::vector<T> PerLayer(Reader& reader, const char* key, int64_t layers, T fallback, Convert convert) {
  if (!reader.Has(key)) {
    return std::vector<T>(layers, fallback);
  }
  const nlohmann::json& value = reader.Raw(key);
  if (!value.is_array()) {
    return std::vector<T>(layers, convert(value, std::string(key)));
  }
  if (value.size() != static_cast<size_t>(layers)) {
    reader.Fail(key, absl::StrCat("has ", value.size(), " entries for ", layers, " layers"));
    return std::vector<T>(layers, fallback);
  }
  std::vector<T> values;
  for (const nlohmann::json& item : value) {
    values.push_back(convert(item, absl::StrCat(key, "[", values.size(), "]")));
  }
  return values;
}

std::vector<bool> LayerTypes(Reader& reader, const HfConfig& config) {
  std::vector<bool> sliding;
  if (reader.Has("layer_types")) {
    const nlohmann::json& types = reader.Raw("layer_types");
    if (!types.is_array() || types.size() != static_cast<size_t>(config.layers)) {
      reader.Fail("layer_types", absl::StrCat("is no list of ", config.layers, " entries"));
      return std::vector<bool>(config.layers, false);
    }
    for (const nlohmann::json& type : types) {
      if (type != "sliding_attention" && type != "full_attention") {
        reader.Unserved(absl::StrCat("layer_types[", sliding.size(), "]"),
                        absl::StrCat("is ", type.dump(), "; known are sliding_attention and full_attention"));
      }
      sliding.push_back(type == "sliding_attention");
    }
  } else {
    const int64_t period = config.family == ModelFamily::kGemma4 ? 6 : 5;
    for (int64_t i = 0; i < config.layers; ++i) {
      sliding.push_back((i + 1) % period != 0);
    }
  }
  if (config.family == ModelFamily::kGemma4) {
    sliding.back() = false;  // the reference forces the last layer to full attention
  }
  return sliding;
}

// Reads one entry of rope_parameters; `entry` may be null (absent).
struct RopeEntry {
  std::string type;
  double theta;
  double partial;
  double factor;
};

RopeEntry ReadRope(Reader& parent, const nlohmann::json* entry, const std::string& path, const RopeEntry& defaults) {
  if (entry == nullptr || entry->is_null()) {
    return defaults;
  }
  if (!entry->is_object()) {
    parent.Fail(path, "is no object");
    return defaults;
  }
  Reader reader(*entry, absl::StrCat(path, "."));
  RopeEntry rope;
  rope.type = reader.String("rope_type", reader.String("type", "default"));
  rope.theta = reader.Number("rope_theta", defaults.theta, 1.0, 1e12);
  rope.partial = reader.Number("partial_rotary_factor", 1.0, 0.0, 1.0);
  rope.factor = reader.Number("factor", 1.0, 1e-3, 1e6);
  parent.Adopt(reader.status());
  return rope;
}

void ReadRopes(Reader& reader, HfConfig& config) {
  const bool gemma4 = config.family == ModelFamily::kGemma4;
  RopeEntry sliding = {"default", reader.Number("rope_local_base_freq", 1e4, 1.0, 1e12), 1.0, 1.0};
  RopeEntry full = {gemma4 ? "proportional" : "default", reader.Number("rope_theta", 1e6, 1.0, 1e12),
                    gemma4 ? 0.25 : 1.0, 1.0};
  if (reader.Has("rope_parameters")) {
    const nlohmann::json& ropes = reader.Raw("rope_parameters");
    if (!ropes.is_object()) {
      reader.Fail("rope_parameters", "is no object");
      return;
    }
    const auto find = [&](const char* key) { return ropes.contains(key) ? &ropes.at(key) : nullptr; };
    sliding = ReadRope(reader, find("sliding_attention"), "rope_parameters.sliding_attention", sliding);
    full = ReadRope(reader, find("full_attention"), "rope_parameters.full_attention", full);
  }
  if (reader.Has("rope_scaling")) {
    full = ReadRope(reader, &reader.Raw("rope_scaling"), "rope_scaling", full);
  }
  if (sliding.type != "default" || sliding.partial != 1.0 || sliding.factor != 1.0) {
    reader.Unserved("rope_parameters.sliding_attention",
                    absl::StrCat("is of type ", sliding.type, "; sliding layers are served with plain RoPE"));
  }
  const int64_t half = config.head_dim_full / 2;
  config.rope_theta_sliding = sliding.theta;
  config.rope_theta_full = full.theta;
  config.rope_pairs_full = half;
  const bool plain = full.type == "default" && full.partial == 1.0;
  const bool linear = full.type == "linear" && full.partial == 1.0;
  if (full.type == "proportional" && gemma4) {
    config.rope_pairs_full = static_cast<int64_t>(full.partial * static_cast<double>(config.head_dim_full) / 2.0);
    config.rope_factor_full = full.factor;
  } else if (linear && gemma4) {
    config.rope_factor_full = full.factor;
  } else if (!plain) {
    reader.Unserved(
        "rope_parameters.full_attention",
        absl::StrCat("is of type ", full.type, ", partial_rotary_factor ", full.partial,
                     gemma4 ? "; served are default, linear and proportional" : "; 3n is served with default"));
  }
}

// head_dim, KV heads and feed-forward width may differ by layer: Gemma 4's two spellings of that.
void ReadHeads(Reader& reader, HfConfig& config) {
  const bool gemma4 = config.family == ModelFamily::kGemma4;
  const int64_t head_dim = reader.Int("head_dim", 256, 2, kWidthMax);
  const int64_t kv_heads = reader.Int("num_key_value_heads", gemma4 ? 4 : 2, 1, kHeadsMax);
  std::vector<int64_t> head_dims(config.layers, head_dim);
  config.kv_heads.assign(config.layers, kv_heads);
  if (gemma4 && reader.Has("per_layer_config")) {
    const nlohmann::json& overrides = reader.Raw("per_layer_config");
    if (!overrides.is_object()) {
      reader.Fail("per_layer_config", "is no object");
      return;
    }
    for (const auto& [index, values] : overrides.items()) {
      const std::string path = absl::StrCat("per_layer_config.", index);
      int64_t layer = -1;
      if (!absl::SimpleAtoi(index, &layer) || layer < 0 || layer >= config.layers || !values.is_object()) {
        reader.Fail(path, absl::StrCat("is no object for one of the layers 0..", config.layers - 1));
        return;
      }
      for (const auto& [key, value] : values.items()) {
        const std::string whole = absl::StrCat(path, ".", key);
        if (key == "head_dim") {
          head_dims[layer] = reader.AsInt(value, whole, 2, kWidthMax);
        } else if (key == "num_key_value_heads") {
          config.kv_heads[layer] = reader.AsInt(value, whole, 1, kHeadsMax);
        } else if (key == "intermediate_size") {
          config.ffn_length[layer] = reader.AsInt(value, whole, 1, kWidthMax);
        } else {
          reader.Unserved(whole, "may not differ by layer");
        }
      }
    }
  } else if (gemma4) {
    const int64_t global_head_dim = reader.Int("global_head_dim", 512, 2, kWidthMax);
    const int64_t global_kv_heads =
        config.k_eq_v ? reader.Int("num_global_key_value_heads", kv_heads, 1, kHeadsMax) : kv_heads;
    for (int64_t i = 0; i < config.layers; ++i) {
      if (!config.sliding[i]) {
        head_dims[i] = global_head_dim;
        config.kv_heads[i] = global_kv_heads;
      }
    }
  }
  for (int64_t i = 0; i < config.layers; ++i) {
    int64_t& of_type = config.sliding[i] ? config.head_dim_sliding : config.head_dim_full;
    if (of_type == 0) {
      of_type = head_dims[i];
    }
    if (of_type != head_dims[i]) {
      reader.Unserved(absl::StrCat("per_layer_config.", i, ".head_dim"),
                      "differs from that of other layers of the same attention type");
    }
    if (head_dims[i] % 2 != 0) {
      reader.Fail("head_dim", absl::StrCat("is ", head_dims[i], ", an odd number"));
    }
    if (config.heads % config.kv_heads[i] != 0) {
      reader.Fail("num_key_value_heads", absl::StrCat("is ", config.kv_heads[i], " in layer ", i,
                                                      ", which does not divide ", config.heads, " heads"));
    }
  }
  if (config.head_dim_sliding == 0) {
    config.head_dim_sliding = config.head_dim_full;
  }
  if (config.head_dim_full == 0) {
    config.head_dim_full = config.head_dim_sliding;
  }
}

void CheckSharing(Reader& reader, const HfConfig& config) {
  const int64_t first = config.layers - config.shared_kv_layers;
  for (int64_t i = first; i < config.layers; ++i) {
    int64_t donor = first - 1;
    while (donor >= 0 && config.sliding[donor] != config.sliding[i]) {
      --donor;
    }
    if (donor < 0) {
      reader.Unserved("num_kv_shared_layers",
                      absl::StrCat("is ", config.shared_kv_layers, ": layer ", i, " has no layer of its type below ",
                                   first, " whose keys and values it could read"));
      return;
    }
    if (config.kv_heads[donor] != config.kv_heads[i]) {
      reader.Fail("num_key_value_heads",
                  absl::StrCat("differs between layer ", i, " and layer ", donor, ", whose keys and values it reads"));
      return;
    }
  }
}

void RefuseOtherVariants(Reader& reader) {
  if (reader.Bool("enable_moe_block", false)) {
    reader.Unserved("enable_moe_block", "is true: mixture-of-experts models are not served");
  }
  if (reader.Bool("attention_bias", false)) {
    reader.Unserved("attention_bias", "is true: projections with a bias are not served");
  }
  const std::string activation = reader.String("hidden_activation", "gelu_pytorch_tanh");
  if (activation != "gelu_pytorch_tanh") {
    reader.Unserved("hidden_activation", absl::StrCat("is ", activation, "; served is gelu_pytorch_tanh"));
  }
  // "vision" concerns image tokens only.
  if (reader.Has("use_bidirectional_attention") && reader.Raw("use_bidirectional_attention") != "vision" &&
      reader.Raw("use_bidirectional_attention") != false) {
    reader.Unserved("use_bidirectional_attention", "asks for attention to later text, which is not served");
  }
}

// A list of ids, one id, or null.
std::vector<int32_t> TokenIds(Reader& reader, const char* key) {
  std::vector<int32_t> ids;
  if (!reader.Has(key)) {
    return ids;
  }
  const nlohmann::json& value = reader.Raw(key);
  const auto add = [&](const nlohmann::json& id) {
    const int32_t number = static_cast<int32_t>(reader.AsInt(id, key, 0, kVocabMax));
    if (std::find(ids.begin(), ids.end(), number) == ids.end()) {
      ids.push_back(number);
    }
  };
  if (!value.is_array()) {
    add(value);
  } else if (value.size() > 1024) {
    reader.Fail(key, "lists more than 1024 ids");
  } else {
    for (const nlohmann::json& id : value) {
      add(id);
    }
  }
  return ids;
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(const nlohmann::json& json) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError("config.json is no JSON object");
  }
  HfConfig config;
  Reader top(json, "config.json: ");
  const std::string model_type = top.String("model_type", "");
  EMBERGATE_RETURN_IF_ERROR(top.status());
  if (model_type == "gemma4" || model_type == "gemma4_text") {
    config.family = ModelFamily::kGemma4;
  } else if (model_type == "gemma3n" || model_type == "gemma3n_text") {
    config.family = ModelFamily::kGemma3n;
  } else {
    return absl::UnimplementedError(absl::StrCat("config.json: model_type is \"", model_type,
                                                 "\"; served are gemma4, gemma4_text, gemma3n and gemma3n_text"));
  }
  if (top.Has("quantization_config")) {
    return absl::UnimplementedError(
        "config.json: quantization_config is present: convert the unquantised (bf16) checkpoint instead");
  }
  const bool wrapped = top.Has("text_config");
  if (wrapped && !top.Raw("text_config").is_object()) {
    return absl::InvalidArgumentError("config.json: text_config is no object");
  }
  if (!wrapped && (model_type == "gemma4" || model_type == "gemma3n") && !top.Has("num_hidden_layers")) {
    return absl::InvalidArgumentError("config.json: text_config is missing");
  }
  Reader text(wrapped ? top.Raw("text_config") : json, wrapped ? "config.json: text_config." : "config.json: ");
  const bool gemma4 = config.family == ModelFamily::kGemma4;
  const std::string text_type = text.String("model_type", model_type);
  if (text_type != "gemma4" && text_type != "gemma4_text" && text_type != "gemma3n" && text_type != "gemma3n_text") {
    text.Unserved("model_type", absl::StrCat("is ", text_type, "; served are gemma4_text and gemma3n_text"));
  }
  if (text.Has("quantization_config")) {
    text.Unserved("quantization_config", "is present: convert the unquantised (bf16) checkpoint instead");
  }
  RefuseOtherVariants(text);

  config.layers = text.Int("num_hidden_layers", gemma4 ? 30 : 35, 1, kLayersMax);
  config.hidden_size = text.Int("hidden_size", gemma4 ? 2304 : 2048, 1, kWidthMax);
  config.vocab_size = text.Int("vocab_size", gemma4 ? 262144 : 262400, 1, kVocabMax);
  config.context_length = text.Int("max_position_embeddings", gemma4 ? 131072 : 32768, 1, INT32_MAX);
  config.heads = text.Int("num_attention_heads", 8, 1, kHeadsMax);
  config.sliding_window = text.Int("sliding_window", 512, 1, INT32_MAX);
  config.shared_kv_layers = text.Int("num_kv_shared_layers", gemma4 ? 0 : 15, 0, kLayersMax);
  config.rms_epsilon = text.Number("rms_norm_eps", 1e-6, 0.0, 1.0);
  // An explicit null means no softcap; for an absent key 3n's default is 30.
  config.softcap =
      text.Number("final_logit_softcapping", gemma4 || text.Contains("final_logit_softcapping") ? 0.0 : 30.0, 0.0, 1e6);
  config.tied_embeddings = text.Bool("tie_word_embeddings", top.Bool("tie_word_embeddings", true));
  EMBERGATE_RETURN_IF_ERROR(text.status());
  if (config.shared_kv_layers >= config.layers) {
    text.Fail("num_kv_shared_layers", absl::StrCat("is ", config.shared_kv_layers, " of ", config.layers,
                                                   " layers: none is left that owns keys and values"));
  }

  config.sliding = LayerTypes(text, config);
  config.k_eq_v = gemma4 && text.Bool("attention_k_eq_v", false);
  config.ffn_length = PerLayer<int64_t>(
      text, "intermediate_size", config.layers, gemma4 ? 9216 : 16384,
      [&](const nlohmann::json& value, const std::string& key) { return text.AsInt(value, key, 1, kWidthMax); });
  if (gemma4 && text.Bool("use_double_wide_mlp", false)) {
    for (int64_t i = config.layers - config.shared_kv_layers; i < config.layers; ++i) {
      config.ffn_length[i] *= 2;
    }
  }
  EMBERGATE_RETURN_IF_ERROR(text.status());
  ReadHeads(text, config);
  EMBERGATE_RETURN_IF_ERROR(text.status());
  ReadRopes(text, config);
  CheckSharing(text, config);

  // 0 or null: a Gemma 4 without per-layer embeddings.
  config.ple_width = text.Contains("hidden_size_per_layer_input") && !text.Has("hidden_size_per_layer_input")
                         ? 0
                         : text.Int("hidden_size_per_layer_input", 256, 0, kWidthMax);
  if (config.ple_width > 0) {
    config.ple_rows = text.Int("vocab_size_per_layer_input", 262144, 1, kVocabMax);
    if (gemma4 && config.ple_rows < config.vocab_size) {
      text.Fail("vocab_size_per_layer_input",
                absl::StrCat("is ", config.ple_rows, ", less than vocab_size ", config.vocab_size));
    }
  } else if (!gemma4) {
    text.Fail("hidden_size_per_layer_input", "is 0: a Gemma 3n has per-layer embeddings");
  }

  if (!gemma4) {
    config.altup_inputs = text.Int("altup_num_inputs", 4, 1, 16);
    config.altup_active = text.Int("altup_active_idx", 0, 0, config.altup_inputs - 1);
    config.altup_correct_scale = text.Bool("altup_correct_scale", true);
    config.laurel_rank = text.Int("laurel_rank", 64, 1, kWidthMax);
    config.activation_sparsity = PerLayer<double>(
        text, "activation_sparsity_pattern", config.layers, 0.0,
        [&](const nlohmann::json& value, const std::string& key) { return text.AsNumber(value, key, 0.0, 0.999999); });
    if (!text.Has("activation_sparsity_pattern") && config.layers > 10) {
      std::fill_n(config.activation_sparsity.begin(), 10, 0.95);
    }
  }
  config.eos_ids = TokenIds(top, "eos_token_id");
  if (config.eos_ids.empty()) {
    config.eos_ids = TokenIds(text, "eos_token_id");
  }
  EMBERGATE_RETURN_IF_ERROR(top.status());
  EMBERGATE_RETURN_IF_ERROR(text.status());
  return config;
}

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(const nlohmann::json& json) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError("generation_config.json is no JSON object");
  }
  Reader reader(json, "generation_config.json: ");
  GenerationDefaults defaults;
  defaults.eos_ids = TokenIds(reader, "eos_token_id");
  if (reader.Has("temperature")) {
    defaults.temperature = reader.Number("temperature", 1.0, 0.0, 100.0);
  }
  if (reader.Has("do_sample") && !reader.Bool("do_sample", true)) {
    defaults.temperature = 0.0;
  }
  if (reader.Has("top_k")) {
    defaults.top_k = reader.Int("top_k", 0, 0, kVocabMax);
  }
  if (reader.Has("top_p")) {
    defaults.top_p = reader.Number("top_p", 1.0, 0.0, 1.0);
  }
  if (reader.Has("min_p")) {
    defaults.min_p = reader.Number("min_p", 0.0, 0.0, 1.0);
  }
  if (reader.Has("repetition_penalty")) {
    defaults.repetition_penalty = reader.Number("repetition_penalty", 1.0, 1e-3, 10.0);
  }
  EMBERGATE_RETURN_IF_ERROR(reader.status());
  return defaults;
}

double NormalQuantile(double p) {
  // Bisection of the distribution function 0.5 * erfc(-z / sqrt(2)) down to the last bit; called once per layer.
  double low = -40;
  double high = 40;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

}  // namespace embergate::engine
