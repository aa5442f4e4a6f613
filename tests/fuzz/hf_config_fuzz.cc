// Any bytes as config.json or generation_config.json: an error, or a configuration that keeps what its header promises.
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/convert/hf_config.h"
#include "engine/convert/json_file.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

void CheckConfig(const embergate::engine::HfConfig& config) {
  const size_t layers = static_cast<size_t>(config.layers);
  Require(layers >= 1 && layers <= 1024 && config.shared_kv_layers >= 0 && config.shared_kv_layers < config.layers);
  Require(config.sliding.size() == layers && config.kv_heads.size() == layers && config.ffn_length.size() == layers);
  Require(config.head_dim_full > 0 && config.head_dim_sliding > 0 && config.hidden_size > 0 && config.vocab_size > 0);
  Require(config.rope_pairs_full >= 0 && config.rope_pairs_full <= config.head_dim_full / 2);
  for (const int64_t kv_heads : config.kv_heads) {
    Require(kv_heads > 0 && config.heads % kv_heads == 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = embergate::engine::ParseJson(text, "input");
  if (json.ok()) {
    if (const auto config = embergate::engine::ParseHfConfig(*json); config.ok()) {
      CheckConfig(*config);
    }
    embergate::engine::ParseGenerationConfig(*json).IgnoreError();
  }
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"model_type":"gemma4_text","num_hidden_layers":6,"num_kv_shared_layers":1,"layer_types":null,)"
      R"("attention_k_eq_v":true,"global_head_dim":64,"head_dim":32,"num_global_key_value_heads":1,)"
      R"("rope_parameters":{"full_attention":{"rope_type":"proportional","partial_rotary_factor":0.25,)"
      R"("rope_theta":1000000.0,"factor":2.0},"sliding_attention":{"rope_type":"default"}}})",
      R"({"model_type":"gemma4","text_config":{"num_hidden_layers":2,"layer_types":["sliding_attention",)"
      R"("full_attention"],"per_layer_config":{"1":{"head_dim":64,"num_key_value_heads":2}},)"
      R"("final_logit_softcapping":30.0,"use_double_wide_mlp":true},"eos_token_id":[1,106]})",
      R"({"model_type":"gemma3n_text","num_hidden_layers":4,"num_kv_shared_layers":0,"intermediate_size":[1,2,3,4],)"
      R"("activation_sparsity_pattern":[0.95,0.5,0,0],"altup_num_inputs":4,"rope_scaling":null,"laurel_rank":8})",
      R"({"do_sample":true,"temperature":0.7,"top_k":64,"top_p":0.95,"eos_token_id":1})"};
}
