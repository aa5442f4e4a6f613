#include "engine/convert/hf_config.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/convert/json_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<HfConfig> Parse(const std::string& text) {
  const absl::StatusOr<nlohmann::json> json = ParseJson(text, "test");
  return json.ok() ? ParseHfConfig(*json) : json.status();
}

HfConfig MustParse(const std::string& text) {
  const absl::StatusOr<HfConfig> config = Parse(text);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : HfConfig();
}

TEST(HfConfigTest, AbsentKeysOfGemma4TakeTheReferencesDefaults) {
  const HfConfig config = MustParse(R"({"model_type":"gemma4_text"})");
  EXPECT_EQ(config.family, ModelFamily::kGemma4);
  EXPECT_EQ(config.layers, 30);
  EXPECT_EQ(config.hidden_size, 2304);
  EXPECT_EQ(config.vocab_size, 262144);
  EXPECT_EQ(config.ple_rows, 262144);
  EXPECT_EQ(config.ple_width, 256);
  EXPECT_EQ(config.head_dim_sliding, 256);
  EXPECT_EQ(config.head_dim_full, 512);
  EXPECT_EQ(config.kv_heads, std::vector<int64_t>(30, 4));
  EXPECT_EQ(config.ffn_length, std::vector<int64_t>(30, 9216));
  EXPECT_EQ(config.sliding_window, 512);
  EXPECT_EQ(config.shared_kv_layers, 0);
  EXPECT_EQ(config.softcap, 0.0);
  EXPECT_EQ(config.rope_theta_full, 1e6);
  EXPECT_EQ(config.rope_theta_sliding, 1e4);
  EXPECT_EQ(config.rope_pairs_full, 64);  // a quarter of 512 / 2
  EXPECT_TRUE(config.tied_embeddings);
  for (int64_t i = 0; i < 30; ++i) {
    EXPECT_EQ(config.sliding[i], i % 6 != 5);
  }
}

TEST(HfConfigTest, AbsentKeysOfGemma3nTakeTheReferencesDefaults) {
  const HfConfig config = MustParse(R"({"model_type":"gemma3n_text"})");
  EXPECT_EQ(config.family, ModelFamily::kGemma3n);
  EXPECT_EQ(config.layers, 35);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.vocab_size, 262400);
  EXPECT_EQ(config.ple_rows, 262144);
  EXPECT_EQ(config.shared_kv_layers, 15);
  EXPECT_EQ(config.softcap, 30.0);
  EXPECT_EQ(config.laurel_rank, 64);
  EXPECT_EQ(config.altup_inputs, 4);
  EXPECT_EQ(config.altup_active, 0);
  EXPECT_TRUE(config.altup_correct_scale);
  EXPECT_EQ(config.head_dim_full, 256);
  EXPECT_EQ(config.head_dim_sliding, 256);
  EXPECT_EQ(config.rope_pairs_full, 128);
  EXPECT_EQ(config.ffn_length, std::vector<int64_t>(35, 16384));
  std::vector<double> sparsity(35, 0.0);
  std::fill_n(sparsity.begin(), 10, 0.95);
  EXPECT_EQ(config.activation_sparsity, sparsity);
  for (int64_t i = 0; i < 35; ++i) {
    EXPECT_EQ(config.sliding[i], i % 5 != 4);
  }
  // Ten layers or fewer: no sparsity by default; one width for all layers may be a number.
  const HfConfig small = MustParse(
      R"({"model_type":"gemma3n_text","num_hidden_layers":10,"num_kv_shared_layers":2,"intermediate_size":64})");
  EXPECT_EQ(small.activation_sparsity, std::vector<double>(10, 0.0));
  EXPECT_EQ(small.ffn_length, std::vector<int64_t>(10, 64));
}

TEST(HfConfigTest, AWrapperAndItsTextConfigSayTheSame) {
  const std::string text = ReadFile(EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b/config.json");
  const HfConfig wrapped = MustParse(text);
  EXPECT_EQ(wrapped.eos_ids, (std::vector<int32_t>{1, 106}));
  nlohmann::json inner = nlohmann::json::parse(text)["text_config"];
  const HfConfig bare = MustParse(inner.dump());
  EXPECT_EQ(wrapped.layers, bare.layers);
  EXPECT_EQ(wrapped.ffn_length, bare.ffn_length);
  EXPECT_EQ(wrapped.sliding, bare.sliding);
  EXPECT_EQ(wrapped.head_dim_full, bare.head_dim_full);
  EXPECT_EQ(bare.eos_ids, std::vector<int32_t>{1});
}

TEST(HfConfigTest, HeadSizesMayComePerLayer) {
  // The two spellings of one model.
  const std::string head = R"({"model_type":"gemma4_text","num_hidden_layers":4,"head_dim":32,"num_attention_heads":4,
      "num_key_value_heads":2,"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"],
      "attention_k_eq_v":true,)";
  const HfConfig global = MustParse(head + R"("global_head_dim":64,"num_global_key_value_heads":1})");
  const HfConfig per_layer = MustParse(head + R"("per_layer_config":{"1":{"head_dim":64,"num_key_value_heads":1},
      "3":{"head_dim":64,"num_key_value_heads":1}}})");
  for (const HfConfig* config : {&global, &per_layer}) {
    EXPECT_EQ(config->head_dim_sliding, 32);
    EXPECT_EQ(config->head_dim_full, 64);
    EXPECT_EQ(config->kv_heads, (std::vector<int64_t>{2, 1, 2, 1}));
    EXPECT_EQ(config->rope_pairs_full, 8);
    EXPECT_TRUE(config->has_v(0));
    EXPECT_FALSE(config->has_v(1));
  }
  // Without k == v the global number of KV heads is not used.
  EXPECT_EQ(MustParse(R"({"model_type":"gemma4_text","num_global_key_value_heads":1})").kv_heads,
            std::vector<int64_t>(30, 4));
  EXPECT_EQ(Parse(head + R"("per_layer_config":{"1":{"head_dim":64},"3":{"head_dim":128}}})").status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Parse(head + R"("per_layer_config":{"4":{"head_dim":64}}})").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Parse(head + R"("per_layer_config":{"1":{"sliding_window":64}}})").status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(HfConfigTest, RopeComesNestedOrFlat) {
  const HfConfig flat =
      MustParse(R"({"model_type":"gemma3n_text","rope_theta":5e5,"rope_local_base_freq":2e4,"rope_scaling":null})");
  EXPECT_EQ(flat.rope_theta_full, 5e5);
  EXPECT_EQ(flat.rope_theta_sliding, 2e4);
  const HfConfig nested = MustParse(R"({"model_type":"gemma3n_text","rope_parameters":{
      "full_attention":{"rope_type":"default","rope_theta":5e5},"sliding_attention":{"rope_theta":2e4}}})");
  EXPECT_EQ(nested.rope_theta_full, 5e5);
  EXPECT_EQ(nested.rope_theta_sliding, 2e4);
  const HfConfig factor = MustParse(R"({"model_type":"gemma4_text","rope_parameters":{"full_attention":
      {"rope_type":"proportional","partial_rotary_factor":0.5,"factor":8,"rope_theta":1e7}}})");
  EXPECT_EQ(factor.rope_pairs_full, 128);
  EXPECT_EQ(factor.rope_factor_full, 8.0);
  EXPECT_EQ(factor.rope_theta_sliding, 1e4);
  const HfConfig plain =
      MustParse(R"({"model_type":"gemma4_text","rope_parameters":{"full_attention":{"rope_type":"default"}}})");
  EXPECT_EQ(plain.rope_pairs_full, 256);
}

TEST(HfConfigTest, TheLastLayerOfGemma4IsFull) {
  const HfConfig config = MustParse(R"({"model_type":"gemma4_text","num_hidden_layers":3})");
  EXPECT_EQ(config.sliding, (std::vector<bool>{true, true, false}));
}

TEST(HfConfigTest, ANullSoftcapIsNone) {
  EXPECT_EQ(MustParse(R"({"model_type":"gemma3n_text","final_logit_softcapping":null})").softcap, 0.0);
  EXPECT_EQ(MustParse(R"({"model_type":"gemma4_text","final_logit_softcapping":25})").softcap, 25.0);
}

TEST(HfConfigTest, Gemma4WithoutPerLayerEmbeddings) {
  EXPECT_EQ(MustParse(R"({"model_type":"gemma4_text","hidden_size_per_layer_input":0})").ple_width, 0);
  EXPECT_EQ(MustParse(R"({"model_type":"gemma4_text","hidden_size_per_layer_input":null})").ple_width, 0);
}

struct BadConfig {
  const char* name;
  const char* json;
  absl::StatusCode code;
  const char* message;
};

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefusedNamingTheKey) {
  const absl::Status status = Parse(GetParam().json).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnserved = absl::StatusCode::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfigTest,
    ::testing::Values(
        BadConfig{"NotAnObject", "[1]", kInvalid, "no JSON object"},
        BadConfig{"NoType", "{}", kUnserved, "model_type is \"\""},
        BadConfig{"OtherModel", R"({"model_type":"llama"})", kUnserved, "\"llama\"; served are gemma4"},
        BadConfig{"OtherText", R"({"model_type":"gemma4","text_config":{"model_type":"llama"}})", kUnserved, "llama"},
        BadConfig{"NoTextConfig", R"({"model_type":"gemma4"})", kInvalid, "text_config is missing"},
        BadConfig{"TextConfigIsAList", R"({"model_type":"gemma4","text_config":[]})", kInvalid, "text_config"},
        BadConfig{"Moe", R"({"model_type":"gemma4_text","enable_moe_block":true})", kUnserved, "mixture-of-experts"},
        BadConfig{"Bias", R"({"model_type":"gemma4_text","attention_bias":true})", kUnserved, "attention_bias"},
        BadConfig{"Activation", R"({"model_type":"gemma4_text","hidden_activation":"silu"})", kUnserved, "silu"},
        BadConfig{"Bidirectional", R"({"model_type":"gemma4_text","use_bidirectional_attention":"all"})", kUnserved,
                  "use_bidirectional_attention"},
        BadConfig{"Quantised", R"({"model_type":"gemma4_text","quantization_config":{}})", kUnserved,
                  "quantization_config"},
        BadConfig{"ZeroLayers", R"({"model_type":"gemma4_text","num_hidden_layers":0})", kInvalid,
                  "num_hidden_layers is 0, outside 1..1024"},
        BadConfig{"HugeLayers", R"({"model_type":"gemma4_text","num_hidden_layers":18446744073709551615})", kInvalid,
                  "num_hidden_layers"},
        BadConfig{"NegativeHidden", R"({"model_type":"gemma4_text","hidden_size":-5})", kInvalid, "hidden_size is -5"},
        BadConfig{"StringHidden", R"({"model_type":"gemma4_text","hidden_size":"5"})", kInvalid, "hidden_size"},
        BadConfig{"AllShared", R"({"model_type":"gemma4_text","num_kv_shared_layers":30})", kInvalid,
                  "num_kv_shared_layers is 30 of 30"},
        BadConfig{"NoDonor", R"({"model_type":"gemma4_text","num_kv_shared_layers":27})", kUnserved,
                  "no layer of its type below 3"},
        BadConfig{"ShortLayerTypes", R"({"model_type":"gemma4_text","layer_types":["full_attention"]})", kInvalid,
                  "layer_types is no list of 30"},
        BadConfig{"UnknownLayerType", R"({"model_type":"gemma4_text","num_hidden_layers":1,"layer_types":["chunked"]})",
                  kUnserved, "layer_types[0] is \"chunked\""},
        BadConfig{"HeadsNotDivided", R"({"model_type":"gemma4_text","num_key_value_heads":3})", kInvalid,
                  "does not divide 8 heads"},
        BadConfig{"OddHead", R"({"model_type":"gemma4_text","head_dim":33})", kInvalid, "odd"},
        BadConfig{"ShortWidths", R"({"model_type":"gemma3n_text","intermediate_size":[1,2]})", kInvalid,
                  "intermediate_size has 2 entries for 35 layers"},
        BadConfig{
            "WidthInList",
            R"({"model_type":"gemma3n_text","num_hidden_layers":2,"num_kv_shared_layers":0,"intermediate_size":[1,0]})",
            kInvalid, "intermediate_size[1] is 0"},
        BadConfig{"SparsityOne", R"({"model_type":"gemma3n_text","activation_sparsity_pattern":1.0})", kInvalid,
                  "activation_sparsity_pattern"},
        BadConfig{"NoPle3n", R"({"model_type":"gemma3n_text","hidden_size_per_layer_input":0})", kInvalid,
                  "hidden_size_per_layer_input"},
        BadConfig{"SmallTable", R"({"model_type":"gemma4_text","vocab_size_per_layer_input":7})", kInvalid,
                  "less than vocab_size"},
        BadConfig{"ActiveIndex", R"({"model_type":"gemma3n_text","altup_active_idx":4})", kInvalid,
                  "altup_active_idx is 4, outside 0..3"},
        BadConfig{"Yarn", R"({"model_type":"gemma4_text","rope_parameters":{"full_attention":{"rope_type":"yarn"}}})",
                  kUnserved, "yarn"},
        BadConfig{
            "ScaledSliding",
            R"({"model_type":"gemma4_text","rope_parameters":{"sliding_attention":{"rope_type":"linear","factor":2}}})",
            kUnserved, "sliding_attention"},
        BadConfig{"Rope3n", R"({"model_type":"gemma3n_text","rope_scaling":{"rope_type":"linear","factor":8}})",
                  kUnserved, "linear"},
        BadConfig{"RopeTheta",
                  R"({"model_type":"gemma4_text","rope_parameters":{"full_attention":{"rope_theta":"big"}}})", kInvalid,
                  "full_attention.rope_theta is no number"},
        BadConfig{"Eos", R"({"model_type":"gemma4_text","eos_token_id":[1,"x"]})", kInvalid, "eos_token_id"}),
    [](const auto& param) { return param.param.name; });

TEST(HfConfigTest, DeepOrLongJsonIsRefused) {
  EXPECT_EQ(Parse(std::string(100000, '[')).status().code(), kInvalid);
  std::string wide = R"({"model_type":"gemma4_text","x":[0)";
  for (int i = 0; i < 100; ++i) {
    wide += ",[[]]";
  }
  EXPECT_TRUE(Parse(wide + "]}").ok());
  std::string deep = "1";
  for (int i = 0; i < 100; ++i) {
    deep = "[" + deep + "]";
  }
  EXPECT_THAT(std::string(Parse(R"({"model_type":"gemma4_text","x":)" + deep + "}").status().message()),
              HasSubstr("nested deeper than 64"));
}

TEST(GenerationConfigTest, TakesSamplingAndEos) {
  const auto parse = [](const std::string& text) { return ParseGenerationConfig(*ParseJson(text, "test")); };
  const GenerationDefaults it =
      *parse(R"({"do_sample":true,"eos_token_id":[1,106,50],"temperature":0.7,"top_k":64,"top_p":0.95})");
  EXPECT_EQ(it.eos_ids, (std::vector<int32_t>{1, 106, 50}));
  EXPECT_EQ(it.temperature, 0.7);
  EXPECT_EQ(it.top_k, 64);
  EXPECT_EQ(it.top_p, 0.95);
  const GenerationDefaults base = *parse(R"({"eos_token_id":1})");
  EXPECT_EQ(base.eos_ids, std::vector<int32_t>{1});
  EXPECT_FALSE(base.temperature.has_value());
  EXPECT_EQ(parse(R"({"do_sample":false,"temperature":1.0})")->temperature, 0.0);
  const GenerationDefaults rare = *parse(R"({"min_p":0.05,"repetition_penalty":1.1})");
  EXPECT_EQ(rare.min_p, 0.05);
  EXPECT_EQ(rare.repetition_penalty, 1.1);
  EXPECT_FALSE(parse(R"({"top_p":7})").ok());
  EXPECT_FALSE(parse(R"({"repetition_penalty":0})").ok());
  EXPECT_FALSE(parse("[]").ok());
}

TEST(NormalQuantileTest, InvertsTheDistribution) {
  EXPECT_NEAR(NormalQuantile(0.95), 1.6448536269514722, 1e-12);
  EXPECT_NEAR(NormalQuantile(0.5), 0.0, 1e-12);
  EXPECT_NEAR(NormalQuantile(0.99), 2.3263478740408408, 1e-12);
  EXPECT_NEAR(NormalQuantile(0.05), -1.6448536269514722, 1e-12);
}

}  // namespace
}  // namespace embergate::engine
