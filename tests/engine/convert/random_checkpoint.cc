#include "tests/engine/convert/random_checkpoint.h"

#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/safetensors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

constexpr uint64_t kHidden = 256;
constexpr uint64_t kPle = 256;
constexpr uint64_t kHeads = 4;
constexpr uint64_t kKvHeads = 2;
constexpr uint64_t kFeedForward = 512;
constexpr uint64_t kTable = 512;  // rows of the per-layer table
constexpr uint64_t kRank = 64;
constexpr uint64_t kStreams = 4;

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
  float mean;
  float deviation;
};

class Builder {
 public:
  explicit Builder(bool gemma4) : gemma4_(gemma4), layers_(gemma4 ? 10 : 25), vocab_(gemma4 ? 512 : 544) {}

  std::vector<Tensor> Tensors() {
    Matrix("embed_tokens.weight", vocab_, kHidden, 2.0f);
    Matrix("embed_tokens_per_layer.weight", kTable, layers_ * kPle, std::sqrt(static_cast<float>(layers_)));
    Matrix("per_layer_model_projection.weight", layers_ * kPle, kHidden);
    Norm("per_layer_projection_norm.weight", kPle);
    Norm("norm.weight", kHidden);
    if (!gemma4_) {
      for (uint64_t i = 0; i + 1 < kStreams; ++i) {
        Matrix(absl::StrCat("altup_projections.", i, ".weight"), kHidden, kHidden);
        Matrix(absl::StrCat("altup_unembed_projections.", i, ".weight"), kHidden, kHidden);
      }
    }
    for (uint64_t i = 0; i < layers_; ++i) {
      Layer(i);
    }
    return std::move(tensors_);
  }

  nlohmann::json Config() const {
    nlohmann::json config = {{"model_type", gemma4_ ? "gemma4_text" : "gemma3n_text"},
                             {"num_hidden_layers", layers_},
                             {"hidden_size", kHidden},
                             {"hidden_size_per_layer_input", kPle},
                             {"vocab_size", vocab_},
                             {"vocab_size_per_layer_input", kTable},
                             {"num_attention_heads", kHeads},
                             {"num_key_value_heads", kKvHeads},
                             {"head_dim", 64},
                             {"intermediate_size", kFeedForward},
                             {"num_kv_shared_layers", 5},
                             {"sliding_window", 16},
                             {"final_logit_softcapping", 30.0},
                             {"max_position_embeddings", 2048}};
    for (uint64_t i = 0; i < layers_; ++i) {
      config["layer_types"].push_back(Full(i) ? "full_attention" : "sliding_attention");
    }
    if (gemma4_) {
      config["global_head_dim"] = 128;
      config["use_double_wide_mlp"] = true;
    } else {
      config["laurel_rank"] = kRank;  // and the defaults: 4 streams, sparsity 0.95 in layers 0..9
    }
    return config;
  }

 private:
  static bool Full(uint64_t layer) { return layer % 5 == 4; }

  void Matrix(const std::string& name, uint64_t rows, uint64_t cols, float gain = 1.0f) {
    tensors_.push_back({"model." + name, {rows, cols}, 0.0f, gain / std::sqrt(static_cast<float>(cols))});
  }
  void Norm(const std::string& name, uint64_t n) { tensors_.push_back({"model." + name, {n}, 1.0f, 0.1f}); }

  void Layer(uint64_t i) {
    const std::string layer = absl::StrCat("layers.", i, ".");
    const uint64_t d = gemma4_ && Full(i) ? 128 : 64;
    const uint64_t f = gemma4_ && i >= layers_ - 5 ? 2 * kFeedForward : kFeedForward;
    Matrix(layer + "self_attn.q_proj.weight", kHeads * d, kHidden);
    Matrix(layer + "self_attn.k_proj.weight", kKvHeads * d, kHidden);
    Matrix(layer + "self_attn.v_proj.weight", kKvHeads * d, kHidden);
    Matrix(layer + "self_attn.o_proj.weight", kHidden, kHeads * d);
    // Attention has no other scale: weights near d^(-1/4) keep the scores near one.
    for (const char* norm : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
      tensors_.push_back({"model." + layer + norm, {d}, 1.0f / std::sqrt(std::sqrt(static_cast<float>(d))), 0.02f});
    }
    Matrix(layer + "mlp.gate_proj.weight", f, kHidden);
    Matrix(layer + "mlp.up_proj.weight", f, kHidden);
    Matrix(layer + "mlp.down_proj.weight", kHidden, f);
    Matrix(layer + "per_layer_input_gate.weight", kPle, kHidden);
    Matrix(layer + "per_layer_projection.weight", kHidden, kPle);
    for (const char* norm : {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                             "post_feedforward_layernorm", "post_per_layer_input_norm"}) {
      Norm(layer + norm + ".weight", kHidden);
    }
    if (gemma4_) {
      tensors_.push_back({"model." + layer + "layer_scalar", {1}, 0.9f, 0.05f});
      return;
    }
    tensors_.push_back({"model." + layer + "altup.correct_output_scale", {kHidden}, 1.0f, 0.1f});
    tensors_.push_back({"model." + layer + "altup.correction_coefs.weight", {kStreams, kStreams}, 0.0f, 0.1f});
    tensors_.push_back(
        {"model." + layer + "altup.prediction_coefs.weight", {kStreams * kStreams, kStreams}, 0.0f, 0.1f});
    Matrix(layer + "altup.modality_router.weight", kStreams, kHidden, 256.0f);
    Norm(layer + "altup.router_norm.weight", kHidden);
    Matrix(layer + "laurel.linear_left.weight", kRank, kHidden);
    Matrix(layer + "laurel.linear_right.weight", kHidden, kRank);
    Norm(layer + "laurel.post_laurel_norm.weight", kHidden);
  }

  const bool gemma4_;
  const uint64_t layers_;
  const uint64_t vocab_;
  std::vector<Tensor> tensors_;
};

}  // namespace

void WriteRandomCheckpoint(const RandomCheckpoint& checkpoint, const std::string& folder) {
  Builder builder(checkpoint.gemma4);
  WriteFile(folder + "/config.json", builder.Config().dump());
  const std::string golden =
      absl::StrCat(EMBERGATE_GOLDEN_DIR, checkpoint.gemma4 ? "/gemma4-tiny-e2b" : "/gemma3n-tiny-e2b");
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"}) {
    std::filesystem::copy(golden + "/" + name, folder);
  }
  auto writer = SafetensorsWriter::Create(folder + "/model.safetensors");
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<Tensor> tensors = builder.Tensors();
  for (const Tensor& tensor : tensors) {
    ASSERT_TRUE((*writer)->Add(tensor.name, SafetensorsType::kF32, tensor.shape).ok());
  }
  std::mt19937 random(checkpoint.seed);
  std::normal_distribution<float> normal;
  for (const Tensor& tensor : tensors) {
    uint64_t elements = 1;
    for (const uint64_t dim : tensor.shape) {
      elements *= dim;
    }
    std::vector<float> values(elements);
    for (float& value : values) {
      value = tensor.mean + tensor.deviation * normal(random);
    }
    ASSERT_TRUE((*writer)->AppendFloats(values).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
}

}  // namespace embergate::engine
