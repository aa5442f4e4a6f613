#include "engine/convert/converter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/safetensors.h"
#include "engine/kernels/kernels.h"
#include "engine/text/vocabulary.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::GgufTensor;
using storage::TensorType;
using ::testing::HasSubstr;

std::string Golden(const std::string& name) { return std::string(EMBERGATE_GOLDEN_DIR "/") + name; }

std::vector<float> Values(const GgufFile& file, const GgufTensor& tensor) {
  std::vector<uint8_t> bytes(tensor.bytes);
  EXPECT_TRUE(file.ReadTensor(tensor, 0, absl::MakeSpan(bytes)).ok());
  std::vector<float> values(tensor.elements());
  DequantizeRow(tensor.type, bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

class ConverterTest : public ::testing::Test {
 protected:
  std::unique_ptr<GgufFile> Convert(const std::string& folder, const ConvertOptions& options) {
    const std::string out = dir_.File("out.gguf");
    absl::StatusOr<ConvertSummary> summary = ConvertCheckpoint(folder, out, options);
    EXPECT_TRUE(summary.ok()) << summary.status();
    if (!summary.ok()) {
      return nullptr;
    }
    summary_ = *summary;
    auto file = GgufFile::Open(out);
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(std::filesystem::file_size(out), summary_.file_bytes);
    return file.ok() ? std::move(*file) : nullptr;
  }
  static ConvertOptions Types(TensorType weights) {
    ConvertOptions options;
    options.weights = weights;
    return options;
  }
  // The tensor of a fixture's checkpoint, up-cast.
  std::vector<float> Source(const std::string& folder, const std::string& name) {
    auto source = SafetensorsFolder::Open(folder);
    EXPECT_TRUE(source.ok()) << source.status();
    const SafetensorsFolder::Entry entry = (*source)->Find("model.language_model." + name);
    EXPECT_NE(entry.file, nullptr) << name;
    std::vector<float> values(entry.tensor->elements);
    EXPECT_TRUE(entry.file->ReadFloats(*entry.tensor, 0, absl::MakeSpan(values)).ok());
    return values;
  }

  TempDir dir_;
  ConvertSummary summary_;
};

// All five fixtures, exactly: the types that lose nothing give the checkpoint's values back, tensor by tensor.
class FixtureTest : public ConverterTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(FixtureTest, ConvertsWithoutLoss) {
  const std::string folder = Golden(GetParam());
  const bool gemma4 = absl::StrContains(folder, "gemma4");
  for (const TensorType type : {TensorType::kF32, TensorType::kBF16}) {
    const auto file = Convert(folder, Types(type));
    ASSERT_NE(file, nullptr);
    const auto expect = [&](const std::string& gguf, const std::string& hf) {
      const GgufTensor* tensor = file->FindTensor(gguf);
      ASSERT_NE(tensor, nullptr) << gguf;
      const std::vector<float> stored = Values(*file, *tensor);
      const std::vector<float> source = Source(folder, hf);
      ASSERT_EQ(stored.size(), source.size()) << gguf;
      for (size_t i = 0; i < stored.size(); ++i) {
        // bf16 keeps 8 bits: half a unit in the last place is 2^-8 relative.
        ASSERT_NEAR(stored[i], source[i], type == TensorType::kBF16 ? std::abs(source[i]) * 0x1p-8f : 0.0f) << gguf;
      }
    };
    expect("token_embd.weight", "embed_tokens.weight");
    expect("output_norm.weight", "norm.weight");
    expect("per_layer_model_proj.weight", "per_layer_model_projection.weight");
    for (int i : {0, 1}) {
      const std::string blk = absl::StrCat("blk.", i, ".");
      const std::string layer = absl::StrCat("layers.", i, ".");
      expect(blk + "attn_q.weight", layer + "self_attn.q_proj.weight");
      expect(blk + "attn_v.weight", layer + "self_attn.v_proj.weight");
      expect(blk + "attn_output.weight", layer + "self_attn.o_proj.weight");
      expect(blk + "attn_k_norm.weight", layer + "self_attn.k_norm.weight");
      expect(blk + "ffn_norm.weight", layer + "pre_feedforward_layernorm.weight");
      expect(blk + "ffn_down.weight", layer + "mlp.down_proj.weight");
      expect(blk + "inp_gate.weight", layer + "per_layer_input_gate.weight");
      expect(blk + "proj.weight", layer + "per_layer_projection.weight");
      expect(blk + "post_norm.weight", layer + "post_per_layer_input_norm.weight");
      if (gemma4) {
        expect(blk + "layer_output_scale.weight", layer + "layer_scalar");
      } else {
        expect(blk + "altup_predict_coef.weight", layer + "altup.prediction_coefs.weight");
        expect(blk + "altup_correct_scale.weight", layer + "altup.correct_output_scale");
        expect(blk + "laurel_r.weight", layer + "laurel.linear_right.weight");
      }
    }
    EXPECT_EQ(file->GetString("general.architecture").value(), gemma4 ? "gemma4" : "gemma3n");
    EXPECT_EQ(file->GetString("general.name").value(), GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTest,
                         ::testing::Values("gemma4-tiny-e2b", "gemma4-tiny-e4b", "gemma4-tiny-keqv", "gemma3n-tiny-e2b",
                                           "gemma3n-tiny-e4b"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_F(ConverterTest, Gemma4KeysSayWhatConfigSays) {
  const auto file = Convert(Golden("gemma4-tiny-e2b"), Types(TensorType::kF32));
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->GetUint("gemma4.block_count").value(), 15u);
  EXPECT_EQ(file->GetUint("gemma4.embedding_length").value(), 64u);
  EXPECT_EQ(file->GetUint("gemma4.context_length").value(), 131072u);
  const std::vector<int64_t> widths = file->GetInts("gemma4.feed_forward_length").value();
  ASSERT_EQ(widths.size(), 15u);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(widths[i], i < 7 ? 128 : 256) << i;  // double-wide in the sharing layers
  }
  EXPECT_EQ(file->GetUint("gemma4.attention.head_count").value(), 4u);
  EXPECT_EQ(file->GetUint("gemma4.attention.head_count_kv").value(), 1u);
  EXPECT_EQ(file->GetUint("gemma4.attention.key_length").value(), 64u);
  EXPECT_EQ(file->GetUint("gemma4.attention.key_length_swa").value(), 32u);
  EXPECT_EQ(file->GetUint("gemma4.attention.sliding_window").value(), 24u);
  EXPECT_EQ(file->GetUint("gemma4.attention.shared_kv_layers").value(), 8u);
  const std::vector<int64_t> sliding = file->GetInts("gemma4.attention.sliding_window_pattern").value();
  ASSERT_EQ(sliding.size(), 15u);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(sliding[i], i % 5 != 4) << i;
  }
  EXPECT_EQ(file->GetUint("gemma4.embedding_length_per_layer_input").value(), 32u);
  EXPECT_EQ(file->GetFloat("gemma4.rope.freq_base").value(), 1e6);
  EXPECT_EQ(file->GetFloat("gemma4.rope.freq_base_swa").value(), 1e4);
  EXPECT_EQ(file->GetFloat("gemma4.final_logit_softcapping").value(), 30.0);
  EXPECT_NEAR(file->GetFloat("gemma4.attention.layer_norm_rms_epsilon").value(), 1e-6, 1e-12);
  EXPECT_EQ(file->GetInts("embergate.eos_token_ids").value(), (std::vector<int64_t>{1, 106, 50}));
  EXPECT_EQ(file->GetFloat("general.sampling.temp").value(), 1.0);
  EXPECT_EQ(file->GetInt("general.sampling.top_k").value(), 64);
  EXPECT_NEAR(file->GetFloat("general.sampling.top_p").value(), 0.95, 1e-6);
  EXPECT_FALSE(file->Has("general.sampling.penalty_repeat"));

  // A quarter of the 32 pairs of the full layers' heads turns.
  std::vector<float> divisors(32, 1e30f);
  std::fill_n(divisors.begin(), 8, 1.0f);
  EXPECT_EQ(Values(*file, *file->FindTensor("rope_freqs.weight")), divisors);

  EXPECT_NE(file->FindTensor("blk.6.attn_k.weight"), nullptr);
  EXPECT_EQ(file->FindTensor("blk.7.attn_k.weight"), nullptr);  // reads layer 6's
  EXPECT_EQ(file->FindTensor("blk.7.attn_k_norm.weight"), nullptr);
  const GgufTensor* table = file->FindTensor("per_layer_token_embd.weight");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->file_offset % 4096, 0u);
  EXPECT_EQ(table->dims, (std::vector<uint64_t>{15 * 32, 512}));
  EXPECT_EQ(&file->tensors().back(), table);
}

TEST_F(ConverterTest, UnusedKeysAndValuesCanBeKept) {
  ConvertOptions options = Types(TensorType::kF32);
  options.keep_unused_kv = true;
  const auto file = Convert(Golden("gemma4-tiny-e2b"), options);
  ASSERT_NE(file, nullptr);
  EXPECT_NE(file->FindTensor("blk.7.attn_k.weight"), nullptr);
  EXPECT_NE(file->FindTensor("blk.14.attn_v.weight"), nullptr);
}

TEST_F(ConverterTest, FullLayersWithoutValuesGetNone) {
  const auto file = Convert(Golden("gemma4-tiny-keqv"), Types(TensorType::kF32));
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->GetInts("gemma4.attention.head_count_kv").value(), (std::vector<int64_t>{2, 2, 2, 1, 2, 2, 2, 1}));
  EXPECT_EQ(file->FindTensor("blk.3.attn_v.weight"), nullptr);
  EXPECT_NE(file->FindTensor("blk.2.attn_v.weight"), nullptr);
  EXPECT_EQ(file->FindTensor("blk.3.attn_k.weight")->dims, (std::vector<uint64_t>{64, 64}));
}

TEST_F(ConverterTest, Gemma3nIsWrittenAsLlamaCppWantsIt) {
  const std::string folder = Golden("gemma3n-tiny-e2b");
  const auto file = Convert(folder, Types(TensorType::kF32));
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->GetUint("gemma3n.attention.shared_kv_layers").value(), 5u);
  EXPECT_EQ(file->GetUint("gemma3n.altup.num_inputs").value(), 4u);
  EXPECT_FALSE(file->Has("gemma3n.attention.key_length_swa"));
  const std::vector<float> scale = file->GetFloats("gemma3n.activation_sparsity_scale").value();
  ASSERT_EQ(scale.size(), 15u);
  EXPECT_FLOAT_EQ(scale[4], 1.6448536f);
  EXPECT_EQ(scale[5], -std::numeric_limits<float>::infinity());
  EXPECT_NE(file->FindTensor("blk.14.attn_k.weight"), nullptr);  // never used, but the loader asks for it

  // Three square matrices on top of one another.
  const GgufTensor* stacked = file->FindTensor("altup_proj.weight");
  ASSERT_NE(stacked, nullptr);
  EXPECT_EQ(stacked->dims, (std::vector<uint64_t>{64, 64, 3}));
  const std::vector<float> values = Values(*file, *stacked);
  for (int i = 0; i < 3; ++i) {
    const std::vector<float> one = Source(folder, absl::StrCat("altup_projections.", i, ".weight"));
    EXPECT_EQ(std::vector<float>(values.begin() + i * 4096, values.begin() + (i + 1) * 4096), one) << i;
  }

  // 512 rows in the checkpoint, 544 ids: the rows behind them are copies of row 0.
  const GgufTensor* table = file->FindTensor("per_layer_token_embd.weight");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->dims, (std::vector<uint64_t>{480, 544}));
  EXPECT_EQ(file->GetUint("embergate.ple_rows").value(), 512u);
  const std::vector<float> rows = Values(*file, *table);
  EXPECT_EQ(std::vector<float>(rows.begin(), rows.begin() + 512 * 480),
            Source(folder, "embed_tokens_per_layer.weight"));
  for (int row = 512; row < 544; ++row) {
    ASSERT_TRUE(std::equal(rows.begin(), rows.begin() + 480, rows.begin() + row * 480)) << row;
  }
}

TEST_F(ConverterTest, TheTokenizerIsPaddedToTheEmbeddingsRows) {
  for (const char* name : {"gemma4-tiny-e2b", "gemma3n-tiny-e2b"}) {
    const auto file = Convert(Golden(name), Types(TensorType::kBF16));
    ASSERT_NE(file, nullptr);
    EXPECT_TRUE(summary_.has_tokenizer);
    auto vocabulary = VocabularyFromGguf(*file);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    EXPECT_EQ(vocabulary->tokens.size(), file->FindTensor("token_embd.weight")->rows());
    EXPECT_EQ(vocabulary->types.back(), TokenType::kUnused);
    EXPECT_EQ(vocabulary->bos_id, 2);
  }
}

TEST_F(ConverterTest, AFolderWithoutTokenizerConvertsWithAWarning) {
  const std::string folder = dir_.File("bare");
  std::filesystem::create_directory(folder);
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors"}) {
    std::filesystem::copy(Golden("gemma3n-tiny-e4b") + "/" + name, folder);
  }
  ConvertOptions options = Types(TensorType::kBF16);
  std::vector<std::string> notes;
  options.note = [&](const std::string& line) { notes.push_back(line); };
  const auto file = Convert(folder, options);
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(summary_.has_tokenizer);
  EXPECT_FALSE(file->Has("tokenizer.ggml.tokens"));
  EXPECT_THAT(notes, ::testing::Contains(HasSubstr("token ids only")));
  EXPECT_EQ(file->GetInts("embergate.eos_token_ids").value(), (std::vector<int64_t>{1, 106}));
}

// What stays 16 bit beside quantised weights, and what never is F16 (see StackType).
TEST_F(ConverterTest, SteeringProjectionsKeepTheirPrecision) {
  const auto type_of = [](const GgufFile& file, const char* name) { return file.FindTensor(name)->type; };
  const auto from_bf16 = Convert(Golden("gemma3n-tiny-e4b"), Types(TensorType::kQ4_0));
  ASSERT_NE(from_bf16, nullptr);
  for (const char* name : {"altup_proj.weight", "altup_unembd_proj.weight", "per_layer_model_proj.weight",
                           "blk.0.laurel_l.weight", "blk.9.laurel_r.weight"}) {
    EXPECT_EQ(type_of(*from_bf16, name), TensorType::kBF16) << name;
  }
  EXPECT_EQ(type_of(*from_bf16, "blk.0.altup_router.weight"), TensorType::kF32);
  EXPECT_EQ(type_of(*from_bf16, "blk.0.attn_norm.weight"), TensorType::kF32);
  EXPECT_EQ(type_of(*from_bf16, "blk.0.ffn_up.weight"), TensorType::kQ4_0);
  EXPECT_EQ(type_of(*from_bf16, "per_layer_token_embd.weight"), TensorType::kQ8_0);
  const auto from_f32 = Convert(Golden("gemma3n-tiny-e2b"), Types(TensorType::kQ4_0));
  ASSERT_NE(from_f32, nullptr);
  EXPECT_EQ(type_of(*from_f32, "per_layer_model_proj.weight"), TensorType::kF16);
  EXPECT_EQ(type_of(*from_f32, "altup_proj.weight"), TensorType::kBF16);
  const auto f16 = Convert(Golden("gemma3n-tiny-e2b"), Types(TensorType::kF16));
  ASSERT_NE(f16, nullptr);
  EXPECT_EQ(type_of(*f16, "altup_unembd_proj.weight"), TensorType::kF32);
  EXPECT_EQ(type_of(*f16, "blk.0.laurel_l.weight"), TensorType::kF16);
}

TEST_F(ConverterTest, ProgressIsMonotonicAndEndsAtTheWhole) {
  ConvertOptions options = Types(TensorType::kF32);
  uint64_t last = 0;
  uint64_t whole = 0;
  std::vector<std::string> notes;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    last = done;
    whole = total;
  };
  options.note = [&](const std::string& line) { notes.push_back(line); };
  ASSERT_NE(Convert(Golden("gemma4-tiny-e2b"), options), nullptr);
  EXPECT_EQ(last, whole);
  EXPECT_THAT(notes, ::testing::Contains(HasSubstr("audio_tower (5)")));
  EXPECT_THAT(notes, ::testing::Contains(HasSubstr("of 8 layers")));
}

TEST_F(ConverterTest, TheResultDoesNotDependOnTheThreads) {
  ConvertOptions options = Types(TensorType::kBF16);
  ASSERT_NE(Convert(Golden("gemma3n-tiny-e4b"), options), nullptr);
  const std::string one = ReadFile(dir_.File("out.gguf"));
  options.threads = 3;
  ASSERT_NE(Convert(Golden("gemma3n-tiny-e4b"), options), nullptr);
  EXPECT_TRUE(one == ReadFile(dir_.File("out.gguf")));
}

// Folders that are wrong in one way each; made from a fixture by links and one changed file.
class BadFolderTest : public ConverterTest {
 protected:
  void SetUp() override {
    std::filesystem::copy(Golden("gemma4-tiny-e4b"), folder_, std::filesystem::copy_options::recursive);
  }
  absl::Status Status() {
    const absl::Status status = ConvertCheckpoint(folder_, dir_.File("out.gguf"), Types(TensorType::kF32)).status();
    EXPECT_FALSE(std::filesystem::exists(dir_.File("out.gguf")));
    EXPECT_FALSE(std::filesystem::exists(dir_.File("out.gguf.partial")));
    return status;
  }
  void ReplaceInConfig(const std::string& from, const std::string& to) {
    std::string config = ReadFile(folder_ + "/config.json");
    const size_t at = config.find(from);
    ASSERT_NE(at, std::string::npos);
    WriteFile(folder_ + "/config.json", config.replace(at, from.size(), to));
  }

  const std::string folder_ = dir_.File("model");
};

TEST_F(BadFolderTest, AShapeThatContradictsTheConfigIsNamed) {
  ReplaceInConfig("\"intermediate_size\": 192", "\"intermediate_size\": 193");
  const absl::Status status = Status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("layers.0.mlp.gate_proj.weight\" has shape [192, 96], but config.json makes it [193, 96]"));
}

TEST_F(BadFolderTest, AMissingTensorIsNamed) {
  ReplaceInConfig("\"hidden_size_per_layer_input\": 32",
                  "\"hidden_size_per_layer_input\": 32, \"tie_word_embeddings\": false, \"x\": 1");
  ReplaceInConfig("\"tie_word_embeddings\": true,\n    \"top_k_experts\"", "\"top_k_experts\"");
  const absl::Status status = Status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"lm_head.weight\" is missing"));
}

TEST_F(BadFolderTest, FilesThatAreNotThere) {
  std::filesystem::remove(folder_ + "/model.safetensors");
  EXPECT_EQ(Status().code(), absl::StatusCode::kNotFound);
  std::filesystem::remove(folder_ + "/config.json");
  EXPECT_EQ(Status().code(), absl::StatusCode::kNotFound);
}

TEST_F(BadFolderTest, ATruncatedCheckpointIsRefusedBeforeWriting) {
  std::filesystem::resize_file(folder_ + "/model.safetensors", 100000);
  EXPECT_EQ(Status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(BadFolderTest, AValueThatIsNotFiniteIsRefused) {
  std::string bytes = ReadFile(folder_ + "/model.safetensors");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  auto source = SafetensorsFile::Open(folder_ + "/model.safetensors");
  ASSERT_TRUE(source.ok());
  const SafetensorsTensor* tensor = (*source)->Find("model.language_model.layers.3.mlp.up_proj.weight");
  std::memcpy(bytes.data() + tensor->file_offset + 400, &nan, sizeof(nan));
  WriteFile(folder_ + "/model.safetensors", bytes);
  const absl::Status status = Status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("blk.3.ffn_up.weight, row 1"));
}

TEST_F(BadFolderTest, TypesThatCannotBeWritten) {
  const absl::Status status = ConvertCheckpoint(folder_, dir_.File("out.gguf"), Types(TensorType::kIQ4_XS)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("IQ4_XS"));
}

}  // namespace
}  // namespace embergate::engine
