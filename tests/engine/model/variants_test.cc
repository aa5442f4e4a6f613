// Configurations that published checkpoints may have and the golden fixtures do not: each is written as a Hugging Face
// folder with random weights, converted, and its logits compared with a plain decoder that shares no code with ours.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/safetensors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/model_fixture.h"
#include "tests/engine/model/plain_decoder.h"

namespace embergate::engine {
namespace {

using nlohmann::json;

json Gemma4Base() {
  return json::parse(R"({"model_type":"gemma4_text","num_hidden_layers":6,"hidden_size":64,"vocab_size":96,
      "vocab_size_per_layer_input":96,"hidden_size_per_layer_input":32,"num_attention_heads":4,"num_key_value_heads":2,
      "head_dim":16,"global_head_dim":32,"intermediate_size":96,"num_kv_shared_layers":2,"sliding_window":5,
      "final_logit_softcapping":30.0,"use_double_wide_mlp":true,"max_position_embeddings":512,
      "layer_types":["sliding_attention","sliding_attention","sliding_attention","full_attention","sliding_attention",
        "full_attention"]})");
}

json Gemma3nBase() {
  return json::parse(R"({"model_type":"gemma3n_text","num_hidden_layers":6,"hidden_size":64,"vocab_size":96,
      "vocab_size_per_layer_input":80,"hidden_size_per_layer_input":32,"num_attention_heads":4,"num_key_value_heads":2,
      "head_dim":16,"intermediate_size":[96,96,64,64,96,96],"num_kv_shared_layers":2,"sliding_window":5,
      "laurel_rank":8,"max_position_embeddings":512,"activation_sparsity_pattern":[0.95,0.5,0,0,0.95,0],
      "layer_types":["sliding_attention","full_attention","sliding_attention","full_attention","sliding_attention",
        "full_attention"]})");
}

struct Variant {
  const char* name;
  json base;
  const char* patch;  // RFC 7386 merge patch; null removes a key
  const char* prefix = "model.";
  const char* set_null = nullptr;  // a key that is there and null
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

class VariantsTest : public ::testing::TestWithParam<Variant> {};

TEST_P(VariantsTest, LogitsAreThoseOfThePlainDecoder) {
  const Variant& variant = GetParam();
  json text = variant.base;
  text.merge_patch(json::parse(variant.patch));
  if (variant.set_null != nullptr) {
    text[variant.set_null] = nullptr;
  }
  const std::map<std::string, PlainTensor> weights = RandomPlainWeights(text, 7);
  const TempDir folder;
  const std::string prefix = variant.prefix;
  const bool wrapped = prefix != "model.";
  const std::string family = text["model_type"] == "gemma4_text" ? "gemma4" : "gemma3n";
  WriteFile(folder.File("config.json"),
            (wrapped ? json({{"model_type", family}, {"text_config", text}, {"vision_config", json::object()}}) : text)
                .dump());
  auto writer = SafetensorsWriter::Create(folder.File("model.safetensors"));
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& [name, tensor] : weights) {
    ASSERT_TRUE((*writer)->Add(prefix + name, SafetensorsType::kF32, tensor.shape).ok());
  }
  for (const auto& [name, tensor] : weights) {
    ASSERT_TRUE((*writer)->AppendFloats(tensor.values).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
  ConvertOptions options;
  options.weights = storage::TensorType::kF32;
  const std::string path = folder.File("model.gguf");
  const auto summary = ConvertCheckpoint(folder.path(), path, options);
  ASSERT_TRUE(summary.ok()) << summary.status();

  const std::vector<int32_t> ids = {2, 5, 61, 17, 33, 8, 79, 44, 3, 70, 21, 9};  // longer than two windows
  const std::vector<float> expected = PlainLogits(text, weights, ids);
  LoadedModel model = LoadModel(path);
  ASSERT_NE(model.model, nullptr);
  EXPECT_LE(MaxDifference(AllLogits(*model.model, ids), expected), 1e-3f);
}

// The judge itself, judged by the reference's own values.
TEST(PlainDecoderTest, LogitsAreTheReferences) {
  for (const std::string& name : GoldenNames()) {
    const json text = json::parse(ReadFile(GoldenFolder(name) + "/config.json"))["text_config"];
    const auto folder = SafetensorsFolder::Open(GoldenFolder(name));
    ASSERT_TRUE(folder.ok()) << folder.status();
    const std::string prefix = "model.language_model.";
    std::map<std::string, PlainTensor> weights;
    for (const auto& [tensor, entry] : (*folder)->tensors()) {
      if (tensor.rfind(prefix, 0) == 0) {
        PlainTensor& plain = weights[tensor.substr(prefix.size())];
        plain.shape = entry.tensor->shape;
        plain.values.resize(entry.tensor->elements);
        ASSERT_TRUE(entry.file->ReadFloats(*entry.tensor, 0, absl::MakeSpan(plain.values)).ok());
      }
    }
    const Golden golden(name);
    for (const char* sequence : {"seq1", "seq2"}) {
      const std::vector<float> logits = PlainLogits(text, weights, golden.Ids(absl::StrCat(sequence, ".input_ids")));
      EXPECT_LE(MaxDifference(logits, golden.Floats(absl::StrCat(sequence, ".logits"))), 3e-4f) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Gemma4, VariantsTest,
    ::testing::Values(
        Variant{"Base", Gemma4Base(), "{}"}, Variant{"Wrapped", Gemma4Base(), "{}", "model.language_model."},
        Variant{"OldPrefix", Gemma4Base(), "{}", "language_model.model."},
        Variant{"NoSoftcap", Gemma4Base(), R"({"final_logit_softcapping":null})"},
        Variant{"NullSoftcap", Gemma4Base(), "{}", "model.", "final_logit_softcapping"},
        Variant{"NoPerLayerEmbeddings", Gemma4Base(), R"({"hidden_size_per_layer_input":0})"},
        Variant{"NullPerLayerEmbeddings", Gemma4Base(), "{}", "model.", "hidden_size_per_layer_input"},
        Variant{"NoSharing", Gemma4Base(), R"({"num_kv_shared_layers":0})"},
        Variant{"SingleWide", Gemma4Base(), R"({"use_double_wide_mlp":false})"},
        Variant{"NoLayerTypes", Gemma4Base(),
                R"({"layer_types":null,"num_hidden_layers":12,"num_kv_shared_layers":5})"},
        Variant{"ValuesAreKeys", Gemma4Base(), R"({"attention_k_eq_v":true,"num_global_key_value_heads":1})"},
        Variant{"ValuesAreKeysOneKind", Gemma4Base(), R"({"attention_k_eq_v":true})"},
        Variant{"PerLayerConfig", Gemma4Base(),
                R"({"global_head_dim":null,"per_layer_config":{"3":{"head_dim":32,"num_key_value_heads":1},
                    "5":{"head_dim":32,"num_key_value_heads":1}}})"},
        Variant{"OneHeadEach", Gemma4Base(), R"({"num_attention_heads":1,"num_key_value_heads":1})"},
        Variant{"ShortWindow", Gemma4Base(), R"({"sliding_window":1})"},
        Variant{"Rope", Gemma4Base(),
                R"({"rope_parameters":{"full_attention":{"rope_type":"proportional","partial_rotary_factor":0.5,
                    "factor":4.0,"rope_theta":500000.0},"sliding_attention":{"rope_type":"default",
                    "rope_theta":20000.0}}})"},
        Variant{"DefaultRope", Gemma4Base(), R"({"rope_parameters":{"full_attention":{"rope_type":"default"}}})"},
        Variant{"LastLayerIsFull", Gemma4Base(),
                R"({"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention",
                    "sliding_attention","sliding_attention"]})"},
        Variant{"DonorsApart", Gemma4Base(),
                R"({"num_hidden_layers":7,"num_kv_shared_layers":3,"layer_types":["full_attention","sliding_attention",
                    "full_attention","full_attention","sliding_attention","full_attention","full_attention"]})"}),
    [](const auto& param) { return std::string(param.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Gemma3n, VariantsTest,
    ::testing::Values(Variant{"Base", Gemma3nBase(), "{}"},
                      Variant{"Wrapped", Gemma3nBase(), "{}", "model.language_model."},
                      Variant{"NoSoftcap", Gemma3nBase(), "{}", "model.", "final_logit_softcapping"},
                      Variant{"AnotherSoftcap", Gemma3nBase(), R"({"final_logit_softcapping":5.0})"},
                      Variant{"OneWidth", Gemma3nBase(), R"({"intermediate_size":96})"},
                      Variant{"OneSparsity", Gemma3nBase(), R"({"activation_sparsity_pattern":0.9})"},
                      Variant{"DefaultSparsityOfFewLayers", Gemma3nBase(), R"({"activation_sparsity_pattern":null})"},
                      Variant{"DefaultSparsityOfManyLayers", Gemma3nBase(),
                              R"({"activation_sparsity_pattern":null,"layer_types":null,"num_hidden_layers":11,
                    "intermediate_size":64})"},
                      Variant{
                          "NoLayerTypes", Gemma3nBase(),
                          R"({"layer_types":null,"num_hidden_layers":10,"num_kv_shared_layers":4,"intermediate_size":64,
                    "activation_sparsity_pattern":null})"},
                      Variant{"AnotherActiveStream", Gemma3nBase(), R"({"altup_active_idx":2})"},
                      Variant{"ThreeStreams", Gemma3nBase(), R"({"altup_num_inputs":3,"altup_active_idx":1})"},
                      Variant{"OneStream", Gemma3nBase(), R"({"altup_num_inputs":1})"},
                      Variant{"NoCorrectScale", Gemma3nBase(), R"({"altup_correct_scale":false})"},
                      Variant{"AnotherRank", Gemma3nBase(), R"({"laurel_rank":24})"},
                      Variant{"NoSharing", Gemma3nBase(), R"({"num_kv_shared_layers":0})"},
                      Variant{"AllButTwoShare", Gemma3nBase(), R"({"num_kv_shared_layers":4})"},
                      Variant{"Rope", Gemma3nBase(), R"({"rope_theta":300000.0,"rope_local_base_freq":5000.0})"}),
    [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace embergate::engine
