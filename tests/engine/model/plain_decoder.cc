#include "tests/engine/model/plain_decoder.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"

namespace embergate::engine {
namespace {

using nlohmann::json;
using Vec = std::vector<double>;

// The configuration with the reference's defaults, a layer at a time.
struct Plain {
  explicit Plain(const json& text) : text_(text), gemma4(text.at("model_type") == "gemma4_text") {
    layers = Int("num_hidden_layers", gemma4 ? 30 : 35);
    hidden = Int("hidden_size", gemma4 ? 2304 : 2048);
    vocab = Int("vocab_size", gemma4 ? 262144 : 262400);
    table_rows = Int("vocab_size_per_layer_input", 262144);
    ple = text.contains("hidden_size_per_layer_input") && text["hidden_size_per_layer_input"].is_null()
              ? 0
              : Int("hidden_size_per_layer_input", 256);
    heads = Int("num_attention_heads", 8);
    window = Int("sliding_window", 512);
    shared = Int("num_kv_shared_layers", gemma4 ? 0 : 15);
    eps = Number("rms_norm_eps", 1e-6);
    const bool says_cap = text.contains("final_logit_softcapping");
    cap =
        says_cap && text["final_logit_softcapping"].is_null() ? 0 : Number("final_logit_softcapping", gemma4 ? 0 : 30);
    k_eq_v = gemma4 && text.value("attention_k_eq_v", false);
    streams = Int("altup_num_inputs", 4);
    active = Int("altup_active_idx", 0);
    rank = Int("laurel_rank", 64);
    correct_scale = text.value("altup_correct_scale", true);
  }

  int Int(const char* key, int fallback) const {
    return text_.contains(key) && text_[key].is_number() ? text_[key].get<int>() : fallback;
  }
  double Number(const char* key, double fallback) const {
    return text_.contains(key) && text_[key].is_number() ? text_[key].get<double>() : fallback;
  }
  bool Full(int layer) const {
    if (gemma4 && layer == layers - 1) {
      return true;
    }
    return text_.contains("layer_types") ? text_["layer_types"][layer] == "full_attention"
                                         : (layer + 1) % (gemma4 ? 6 : 5) == 0;
  }
  int PerLayer(int layer, const char* key, int fallback) const {
    const std::string index = absl::StrCat(layer);
    const json* const overrides = text_.contains("per_layer_config") ? &text_["per_layer_config"] : nullptr;
    return overrides != nullptr && overrides->contains(index) ? (*overrides)[index].value(key, fallback) : fallback;
  }
  int HeadDim(int layer) const {
    const bool per_layer = text_.contains("per_layer_config");
    const int common = Int("head_dim", 256);
    return per_layer               ? PerLayer(layer, "head_dim", common)
           : gemma4 && Full(layer) ? Int("global_head_dim", 512)
                                   : common;
  }
  int KvHeads(int layer) const {
    const int common = Int("num_key_value_heads", gemma4 ? 4 : 2);
    return text_.contains("per_layer_config") ? PerLayer(layer, "num_key_value_heads", common)
           : k_eq_v && Full(layer)            ? Int("num_global_key_value_heads", common)
                                              : common;
  }
  int Width(int layer) const {
    const json& value = text_.at("intermediate_size");
    const int width = value.is_array() ? value[layer].get<int>() : value.get<int>();
    return gemma4 && text_.value("use_double_wide_mlp", false) && layer >= Own() ? 2 * width : width;
  }
  double Sparsity(int layer) const {
    if (!text_.contains("activation_sparsity_pattern") || text_["activation_sparsity_pattern"].is_null()) {
      return layers > 10 && layer < 10 ? 0.95 : 0;
    }
    const json& value = text_["activation_sparsity_pattern"];
    return value.is_array() ? value[layer].get<double>() : value.get<double>();
  }
  int Own() const { return layers - shared; }
  int Source(int layer) const {  // whose keys and values
    int source = layer;
    for (; layer >= Own() && (source >= Own() || Full(source) != Full(layer)); --source) {
    }
    return source;
  }
  // Angle per position of pair i in a layer.
  double Frequency(int layer, int i) const {
    const int d = HeadDim(layer);
    double theta = Full(layer) ? Number("rope_theta", 1e6) : Number("rope_local_base_freq", 1e4);
    double share = gemma4 && Full(layer) ? 0.25 : 1.0;
    double factor = 1;
    const char* const type = Full(layer) ? "full_attention" : "sliding_attention";
    if (text_.contains("rope_parameters") && text_["rope_parameters"].contains(type)) {
      const json& rope = text_["rope_parameters"][type];
      theta = rope.value("rope_theta", theta);
      share = rope.value("rope_type", "default") == "proportional" ? rope.value("partial_rotary_factor", 1.0) : 1.0;
      factor = rope.value("factor", 1.0);
    }
    return i < std::floor(share * d / 2) ? std::pow(theta, -2.0 * i / d) / factor : 0;
  }

  const json& text_;
  bool gemma4;
  int layers, hidden, vocab, table_rows, ple, heads, window, shared, streams, active, rank;
  double eps, cap;
  bool k_eq_v, correct_scale;
};

struct Spec {
  std::vector<uint64_t> shape;
  double mean;
  double deviation;
};

std::map<std::string, Spec> Specs(const Plain& c) {
  std::map<std::string, Spec> specs;
  const auto matrix = [&specs](const std::string& name, int out, int in, double gain = 1) {
    specs[name + ".weight"] = {{static_cast<uint64_t>(out), static_cast<uint64_t>(in)}, 0, gain / std::sqrt(in)};
  };
  const auto norm = [&specs](const std::string& name, int n, double mean = 1) {
    specs[name + ".weight"] = {{static_cast<uint64_t>(n)}, mean, mean / 10};
  };
  matrix("embed_tokens", c.vocab, c.hidden, 2);
  norm("norm", c.hidden);
  if (c.ple > 0) {
    matrix("embed_tokens_per_layer", c.table_rows, c.layers * c.ple, std::sqrt(c.layers));
    matrix("per_layer_model_projection", c.layers * c.ple, c.hidden);
    norm("per_layer_projection_norm", c.ple);
  }
  for (int i = 0; !c.gemma4 && i + 1 < c.streams; ++i) {
    matrix(absl::StrCat("altup_projections.", i), c.hidden, c.hidden);
    matrix(absl::StrCat("altup_unembed_projections.", i), c.hidden, c.hidden);
  }
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = absl::StrCat("layers.", i, ".");
    const int d = c.HeadDim(i);
    matrix(layer + "self_attn.q_proj", c.heads * d, c.hidden);
    matrix(layer + "self_attn.k_proj", c.KvHeads(i) * d, c.hidden);
    if (!c.k_eq_v || !c.Full(i)) {
      matrix(layer + "self_attn.v_proj", c.KvHeads(i) * d, c.hidden);
    }
    matrix(layer + "self_attn.o_proj", c.hidden, c.heads * d);
    norm(layer + "self_attn.q_norm", d, std::pow(d, -0.25));
    norm(layer + "self_attn.k_norm", d, std::pow(d, -0.25));
    matrix(layer + "mlp.gate_proj", c.Width(i), c.hidden);
    matrix(layer + "mlp.up_proj", c.Width(i), c.hidden);
    matrix(layer + "mlp.down_proj", c.hidden, c.Width(i));
    for (const char* name :
         {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
      norm(layer + name, c.hidden);
    }
    if (c.ple > 0) {
      matrix(layer + "per_layer_input_gate", c.ple, c.hidden);
      matrix(layer + "per_layer_projection", c.hidden, c.ple);
      norm(layer + "post_per_layer_input_norm", c.hidden);
    }
    if (c.gemma4) {
      specs[layer + "layer_scalar"] = {{1}, 0.9, 0.05};
      continue;
    }
    specs[layer + "altup.correct_output_scale"] = {{static_cast<uint64_t>(c.hidden)}, 1, 0.1};
    matrix(layer + "altup.correction_coefs", c.streams, c.streams, 0.2);
    matrix(layer + "altup.prediction_coefs", c.streams * c.streams, c.streams, 0.2);
    matrix(layer + "altup.modality_router", c.streams, c.hidden, c.hidden);
    norm(layer + "altup.router_norm", c.hidden);
    matrix(layer + "laurel.linear_left", c.rank, c.hidden);
    matrix(layer + "laurel.linear_right", c.hidden, c.rank);
    norm(layer + "laurel.post_laurel_norm", c.hidden);
  }
  return specs;
}

double Gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

double MeanSquare(const Vec& x) {
  double sum = 0;
  for (const double value : x) {
    sum += value * value;
  }
  return sum / static_cast<double>(x.size());
}

Vec Plus(Vec a, const Vec& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] += b[i];
  }
  return a;
}

class Decoder {
 public:
  Decoder(const Plain& config, const std::map<std::string, PlainTensor>& weights) : c_(config), weights_(weights) {}

  // Logits of the next position.
  Vec Push(int32_t id) {
    const Vec e = Row("embed_tokens", id, std::sqrt(c_.hidden));
    const std::vector<Vec> q = PerLayerInputs(id, e);
    Vec h = c_.gemma4 ? Gemma4(e, q) : Gemma3n(e, q);
    h = Norm(h, "norm");
    Vec logits = Apply("embed_tokens", h);
    for (double& logit : logits) {
      logit = c_.cap > 0 ? c_.cap * std::tanh(logit / c_.cap) : logit;
    }
    ++position_;
    return logits;
  }

 private:
  const std::vector<float>& Values(const std::string& name) const { return weights_.at(name).values; }

  Vec Row(const std::string& name, int32_t row, double scale) const {
    const PlainTensor& tensor = weights_.at(name + ".weight");
    Vec out(tensor.shape[1]);
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = scale * tensor.values[static_cast<size_t>(row) * out.size() + i];
    }
    return out;
  }
  Vec Apply(const std::string& name, const Vec& x) const {
    const PlainTensor& tensor = weights_.at(name + ".weight");
    Vec out(tensor.shape[0]);
    for (size_t row = 0; row < out.size(); ++row) {
      for (size_t i = 0; i < x.size(); ++i) {
        out[row] += x[i] * tensor.values[row * x.size() + i];
      }
    }
    return out;
  }
  Vec BareNorm(Vec x) const {
    const double scale = 1 / std::sqrt(MeanSquare(x) + c_.eps);
    for (double& value : x) {
      value *= scale;
    }
    return x;
  }
  Vec Norm(Vec x, const std::string& name) const {
    x = BareNorm(std::move(x));
    const std::vector<float>& w = Values(name + ".weight");
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] *= w[i];
    }
    return x;
  }

  // Section 2.
  std::vector<Vec> PerLayerInputs(int32_t id, const Vec& e) const {
    std::vector<Vec> q(static_cast<size_t>(c_.layers));
    if (c_.ple == 0) {
      return q;
    }
    const Vec t = Row("embed_tokens_per_layer", id < c_.table_rows ? id : 0, std::sqrt(c_.ple));
    const Vec all = Apply("per_layer_model_projection", e);
    for (int l = 0; l < c_.layers; ++l) {
      Vec c(all.begin() + l * c_.ple, all.begin() + (l + 1) * c_.ple);
      for (double& value : c) {
        value /= std::sqrt(c_.hidden);
      }
      c = Norm(std::move(c), "per_layer_projection_norm");
      for (int i = 0; i < c_.ple; ++i) {
        c[i] = (c[i] + t[l * c_.ple + i]) / std::sqrt(2.0);
      }
      q[l] = std::move(c);
    }
    return q;
  }

  std::vector<Vec> Heads(const Vec& x, int d) const {
    std::vector<Vec> heads;
    for (size_t at = 0; at < x.size(); at += d) {
      heads.emplace_back(x.begin() + at, x.begin() + at + d);
    }
    return heads;
  }
  Vec Rotate(const Vec& x, int layer) const {
    const size_t half = x.size() / 2;
    Vec out(x.size());
    for (size_t i = 0; i < half; ++i) {
      const double angle = position_ * c_.Frequency(layer, static_cast<int>(i));
      out[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
      out[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
    }
    return out;
  }

  Vec Attention(int l, const Vec& n) {
    const std::string name = absl::StrCat("layers.", l, ".self_attn.");
    const int d = c_.HeadDim(l);
    if (l < c_.Own()) {
      const Vec k = Apply(name + "k_proj", n);
      const Vec v = c_.k_eq_v && c_.Full(l) ? k : Apply(name + "v_proj", n);
      std::vector<Vec> keys, values;
      for (const Vec& head : Heads(k, d)) {
        keys.push_back(Rotate(Norm(head, name + "k_norm"), l));
      }
      for (const Vec& head : Heads(v, d)) {
        values.push_back(BareNorm(head));
      }
      keys_[l].push_back(std::move(keys));
      values_[l].push_back(std::move(values));
    }
    const int source = c_.Source(l);
    const auto& keys = keys_[source];
    const auto& values = values_[source];
    const int group = c_.heads / static_cast<int>(keys[0].size());
    Vec out;
    int head = 0;
    for (const Vec& raw : Heads(Apply(name + "q_proj", n), d)) {
      const Vec q = Rotate(Norm(raw, name + "q_norm"), l);
      const int kv = head++ / group;
      const int first = c_.Full(l) ? 0 : std::max(0, position_ - c_.window + 1);
      Vec weights;
      double sum = 0;
      for (int j = first; j <= position_; ++j) {
        double score = 0;
        for (int i = 0; i < d; ++i) {
          score += q[i] * keys[j][kv][i];
        }
        weights.push_back(std::exp(score));
        sum += weights.back();
      }
      Vec mixed(d);
      for (int j = first; j <= position_; ++j) {
        for (int i = 0; i < d; ++i) {
          mixed[i] += weights[j - first] / sum * values[j][kv][i];
        }
      }
      out.insert(out.end(), mixed.begin(), mixed.end());
    }
    return Apply(name + "o_proj", out);
  }

  Vec FeedForward(int l, const Vec& n) const {
    const std::string name = absl::StrCat("layers.", l, ".mlp.");
    Vec gate = Apply(name + "gate_proj", n);
    const Vec up = Apply(name + "up_proj", n);
    if (const double share = c_.gemma4 ? 0 : c_.Sparsity(l); share > 0) {
      double mean = 0;
      for (const double value : gate) {
        mean += value / static_cast<double>(gate.size());
      }
      double variance = 0;
      for (const double value : gate) {
        variance += (value - mean) * (value - mean) / static_cast<double>(gate.size());
      }
      const double cut = mean + Quantile(share) * std::sqrt(variance);
      for (double& value : gate) {
        value = std::max(0.0, value - cut);
      }
    }
    for (size_t i = 0; i < gate.size(); ++i) {
      gate[i] = Gelu(gate[i]) * up[i];
    }
    return Apply(name + "down_proj", gate);
  }

  static double Quantile(double p) {  // Newton's method on the distribution function
    double z = 0;
    for (int i = 0; i < 60; ++i) {
      z -= (0.5 * std::erfc(-z / std::sqrt(2.0)) - p) / (std::exp(-z * z / 2) / std::sqrt(2 * M_PI));
    }
    return z;
  }

  Vec Injection(int l, const Vec& x, const Vec& q) const {
    const std::string name = absl::StrCat("layers.", l, ".");
    Vec gate = Apply(name + "per_layer_input_gate", x);
    for (size_t i = 0; i < gate.size(); ++i) {
      gate[i] = Gelu(gate[i]) * q[i];
    }
    return Norm(Apply(name + "per_layer_projection", gate), name + "post_per_layer_input_norm");
  }

  // Section 3.
  Vec Gemma4(Vec x, const std::vector<Vec>& q) {
    for (int l = 0; l < c_.layers; ++l) {
      const std::string name = absl::StrCat("layers.", l, ".");
      x = Plus(x, Norm(Attention(l, Norm(x, name + "input_layernorm")), name + "post_attention_layernorm"));
      x = Plus(x,
               Norm(FeedForward(l, Norm(x, name + "pre_feedforward_layernorm")), name + "post_feedforward_layernorm"));
      if (c_.ple > 0) {
        x = Plus(x, Injection(l, x, q[l]));
      }
      for (double& value : x) {
        value *= Values(name + "layer_scalar")[0];
      }
    }
    return x;
  }

  // Section 4.
  Vec Router(int l, const Vec& x) const {
    const std::string name = absl::StrCat("layers.", l, ".altup.");
    Vec n = Norm(x, name + "router_norm");
    for (double& value : n) {
      value /= c_.hidden;
    }
    Vec r = Apply(name + "modality_router", n);
    for (double& value : r) {
      value = std::tanh(value);
    }
    return r;
  }
  Vec Magnitude(Vec z, const Vec& like) const {
    const double scale = std::sqrt(MeanSquare(like)) / std::sqrt(std::max(MeanSquare(z), 1e-5));
    for (double& value : z) {
      value *= scale;
    }
    return z;
  }

  Vec Gemma3n(const Vec& e, const std::vector<Vec>& q) {
    const int n = c_.streams;
    std::vector<Vec> s = {e};
    for (int k = 1; k < n; ++k) {
      s.push_back(Magnitude(Apply(absl::StrCat("altup_projections.", k - 1), e), e));
    }
    for (int l = 0; l < c_.layers; ++l) {
      const std::string name = absl::StrCat("layers.", l, ".");
      const Vec c = Apply(name + "altup.prediction_coefs", Router(l, s[c_.active]));
      std::vector<Vec> p = s;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) {
          for (int k = 0; k < c_.hidden; ++k) {
            p[i][k] += c[i * n + j] * s[j][k];
          }
        }
      }
      const Vec& x = p[c_.active];
      const Vec normed = Norm(x, name + "input_layernorm");
      const Vec laurel =
          Plus(normed, Norm(Apply(name + "laurel.linear_right", Apply(name + "laurel.linear_left", normed)),
                            name + "laurel.post_laurel_norm"));
      Vec y = Plus(Plus(x, Norm(Attention(l, normed), name + "post_attention_layernorm")), laurel);
      for (double& value : y) {
        value /= std::sqrt(2.0);
      }
      y = Plus(y,
               Norm(FeedForward(l, Norm(y, name + "pre_feedforward_layernorm")), name + "post_feedforward_layernorm"));
      const Vec k = Apply(name + "altup.correction_coefs", Router(l, y));
      const Vec predicted = x;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < c_.hidden; ++j) {
          s[i][j] = p[i][j] + (k[i] + 1) * (y[j] - predicted[j]);
        }
      }
      Vec g = s[c_.active];
      for (int j = 0; c_.correct_scale && j < c_.hidden; ++j) {
        g[j] *= Values(name + "altup.correct_output_scale")[j];
      }
      const Vec u = Injection(l, g, q[l]);
      for (int i = 1; i < n; ++i) {
        s[i] = Plus(s[i], u);
      }
    }
    Vec h = s[0];
    for (int k = 1; k < n; ++k) {
      h = Plus(h, Magnitude(Apply(absl::StrCat("altup_unembed_projections.", k - 1), s[k]), s[0]));
    }
    for (double& value : h) {
      value /= n;
    }
    return h;
  }

  const Plain& c_;
  const std::map<std::string, PlainTensor>& weights_;
  int position_ = 0;
  std::map<int, std::vector<std::vector<Vec>>> keys_;  // by layer, position, KV head
  std::map<int, std::vector<std::vector<Vec>>> values_;
};

}  // namespace

std::map<std::string, PlainTensor> RandomPlainWeights(const json& text, uint32_t seed) {
  const Plain config(text);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::map<std::string, PlainTensor> weights;
  for (const auto& [name, spec] : Specs(config)) {
    PlainTensor& tensor = weights[name];
    tensor.shape = spec.shape;
    tensor.values.resize(spec.shape.size() == 2 ? spec.shape[0] * spec.shape[1] : spec.shape[0]);
    for (float& value : tensor.values) {
      value = static_cast<float>(spec.mean + spec.deviation * normal(random));
    }
  }
  return weights;
}

std::vector<float> PlainLogits(const json& text, const std::map<std::string, PlainTensor>& weights,
                               const std::vector<int32_t>& ids) {
  const Plain config(text);
  Decoder decoder(config, weights);
  std::vector<float> logits;
  for (const int32_t id : ids) {
    const Vec row = decoder.Push(id);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

}  // namespace embergate::engine
