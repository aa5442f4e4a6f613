// Synthesised models: every tensor and key that a decoder needs, the sizes of the published models, and logits of a
// sane spread; the same bytes for the same seed.
#include "engine/convert/synth.h"

#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "engine/convert/gguf_keys.h"
#include "engine/convert/shapes.h"
#include "engine/kernels/kernels.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "engine/text/vocabulary.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::GgufTensor;
using storage::TensorType;
using ::testing::Each;
using ::testing::HasSubstr;

uint64_t Elements(const ShapeTensor& tensor) {
  uint64_t count = 1;
  for (const uint64_t dim : tensor.dims) {
    count *= dim;
  }
  return count;
}

// ---- Shapes -------------------------------------------------------------------------------------

// Parameters in use, from the model descriptions: total, and of those the per-layer table of the checkpoint.
TEST(ShapesTest, ParametersAreThoseOfThePublishedModels) {
  struct Case {
    const char* name;
    uint64_t total;
    uint64_t table;
  };
  for (const Case& expected :
       {Case{"gemma4-e2b", 4628569379, 2348810240}, Case{"gemma4-e4b", 7463013418, 2818572288},
        Case{"gemma3n-e2b", 4435182688, 2013265920}, Case{"gemma3n-e4b", 6835235568, 2348810240}}) {
    const ModelShape* const shape = FindModelShape(expected.name);
    ASSERT_NE(shape, nullptr);
    uint64_t total = 0;
    uint64_t table = 0;
    for (const ShapeTensor& tensor : ShapeTensors(*shape)) {
      const bool unused_kv = shape->is_3n() && [&] {
        for (uint32_t i = shape->layers - shape->shared_kv_layers; i < shape->layers; ++i) {
          for (const char* name : {gguf::kAttnK, gguf::kAttnV, gguf::kAttnKNorm}) {
            if (tensor.name == gguf::LayerTensor(static_cast<int>(i), name)) {
              return true;
            }
          }
        }
        return false;
      }();
      if (tensor.role == TensorRole::kPleTable) {
        table = tensor.dims[0] * shape->ple_rows;  // without the rows that only fill it up to the vocabulary
        total += table;
      } else if (tensor.role != TensorRole::kRopeFactors && !unused_kv) {
        total += Elements(tensor);
      }
    }
    EXPECT_EQ(table, expected.table) << expected.name;
    EXPECT_EQ(total, expected.total) << expected.name;
  }
}

TEST(ShapesTest, NamesAreUnique) {
  for (const ModelShape& shape : ModelShapes()) {
    std::set<std::string> names;
    for (const ShapeTensor& tensor : ShapeTensors(shape)) {
      EXPECT_TRUE(names.insert(tensor.name).second) << shape.name << " " << tensor.name;
    }
    EXPECT_EQ(FindModelShape(shape.name), &shape);
  }
  EXPECT_EQ(FindModelShape("gemma5"), nullptr);
}

// ---- Files --------------------------------------------------------------------------------------

class SynthTest : public ::testing::Test {
 protected:
  absl::StatusOr<SynthSummary> Synthesise(const std::string& shape, const SynthOptions& options = SynthOptions()) {
    return SynthesiseModel(*FindModelShape(shape), path_, options);
  }
  std::unique_ptr<GgufFile> Open() {
    auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : nullptr;
  }
  std::vector<float> Values(const GgufFile& file, const std::string& name) {
    const GgufTensor* const tensor = file.FindTensor(name);
    EXPECT_NE(tensor, nullptr) << name;
    std::vector<uint8_t> bytes(tensor->bytes);
    EXPECT_TRUE(file.ReadTensor(*tensor, 0, absl::MakeSpan(bytes)).ok());
    std::vector<float> values(tensor->elements());
    DequantizeRow(tensor->type, bytes.data(), static_cast<int64_t>(values.size()), values.data());
    return values;
  }

  test::TempFolder folder_;
  std::string path_ = folder_.File("model.gguf");
};

TEST_F(SynthTest, TinyModelsHaveEverythingThatADecoderNeeds) {
  for (const char* name : {"gemma4-tiny", "gemma3n-tiny"}) {
    const auto summary = Synthesise(name);
    ASSERT_TRUE(summary.ok()) << summary.status();
    const auto file = Open();
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(summary->file_bytes, std::filesystem::file_size(path_));
    EXPECT_EQ(static_cast<size_t>(summary->tensors), file->tensors().size());
    const auto config = ReadModelConfig(*file);
    ASSERT_TRUE(config.ok()) << config.status();
    const auto weights = CheckWeights(*file, *config);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->table_bytes, summary->table_bytes);
    const GgufTensor* const table = file->FindTensor(gguf::kPerLayerTokenEmbd);
    ASSERT_NE(table, nullptr);
    EXPECT_EQ(table->file_offset % 4096, 0u);
    EXPECT_EQ(table->type, TensorType::kQ8_0);
    EXPECT_EQ(table->rows(), static_cast<uint64_t>(config->vocab));
    EXPECT_EQ(file->FindTensor(gguf::kTokenEmbd)->type, TensorType::kQ4_0);
    EXPECT_EQ(file->FindTensor(gguf::kPerLayerModelProj)->type, TensorType::kF16);
    EXPECT_EQ(file->FindTensor(gguf::kOutputNorm)->type, TensorType::kF32);
  }
}

TEST_F(SynthTest, KeysAreThoseOfTheTinyFixtures) {
  ASSERT_TRUE(Synthesise("gemma4-tiny").ok());
  auto file = Open();
  ASSERT_NE(file, nullptr);
  const auto gemma4 = ReadModelConfig(*file);
  ASSERT_TRUE(gemma4.ok()) << gemma4.status();
  EXPECT_EQ(gemma4->own_layers, 7);
  EXPECT_EQ(gemma4->layers[4].head_dim, 64);
  EXPECT_EQ(gemma4->layers[5].head_dim, 32);
  EXPECT_EQ(gemma4->layers[6].feed_forward, 128);
  EXPECT_EQ(gemma4->layers[7].feed_forward, 256);
  EXPECT_EQ(gemma4->window, 24);
  EXPECT_EQ(gemma4->softcap, 30);
  const std::vector<float> factors = Values(*file, gguf::kRopeFreqs);
  EXPECT_EQ(factors.size(), 32u);
  EXPECT_EQ(std::count(factors.begin(), factors.end(), 1.0f), 8);

  ASSERT_TRUE(Synthesise("gemma3n-tiny").ok());
  file = Open();
  ASSERT_NE(file, nullptr);
  const auto gemma3n = ReadModelConfig(*file);
  ASSERT_TRUE(gemma3n.ok()) << gemma3n.status();
  EXPECT_EQ(gemma3n->own_layers, 10);
  EXPECT_EQ(gemma3n->altup_inputs, 4);
  EXPECT_EQ(gemma3n->laurel_rank, 16);
  EXPECT_NEAR(gemma3n->layers[4].sparsity_scale, 1.6448536, 1e-6);
  EXPECT_EQ(gemma3n->layers[5].sparsity_scale, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(*file->GetUint(gguf::kPleRows), 512u);
}

TEST_F(SynthTest, KeysAreThoseOfAConvertedCheckpoint) {
  for (const auto& [shape, golden] :
       {std::pair("gemma4-tiny", "gemma4-tiny-e2b"), std::pair("gemma3n-tiny", "gemma3n-tiny-e2b")}) {
    ASSERT_TRUE(Synthesise(shape).ok());
    const auto made = Open();
    ASSERT_NE(made, nullptr);
    const auto converted = GgufFile::Open(GoldenGguf(golden));
    ASSERT_TRUE(converted.ok()) << converted.status();
    const std::string prefix = std::string(*made->GetString(gguf::kArchitecture)) + ".";
    int keys = 0;
    for (const std::string& key : (*converted)->keys()) {
      if (key.rfind(prefix, 0) != 0) {
        continue;
      }
      ++keys;
      ASSERT_TRUE(made->Has(key)) << key;
      const auto floats = (*converted)->GetFloats(key);
      if (floats.ok()) {
        EXPECT_EQ(*made->GetFloats(key), *floats) << key;
      } else {
        EXPECT_EQ(*made->GetInts(key), *(*converted)->GetInts(key)) << key;
      }
    }
    EXPECT_GT(keys, 15);
  }
}

// llama.cpp v0.5.0 computes NaN from a stack of F16 matrices.
TEST_F(SynthTest, AltupStacksAreNeverF16) {
  for (const auto& [weights, stored] :
       {std::pair(TensorType::kQ4_0, TensorType::kBF16), std::pair(TensorType::kF16, TensorType::kF32),
        std::pair(TensorType::kBF16, TensorType::kBF16)}) {
    SynthOptions options;
    options.weights = weights;
    ASSERT_TRUE(Synthesise("gemma3n-tiny", options).ok());
    const auto file = Open();
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(file->FindTensor(gguf::kAltupProj)->type, stored);
    EXPECT_EQ(file->FindTensor(gguf::kAltupUnembdProj)->type, stored);
  }
}

TEST_F(SynthTest, TableRowsBeyondTheCheckpointsAreCopiesOfRowZero) {
  ASSERT_TRUE(Synthesise("gemma3n-tiny").ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const std::vector<float> table = Values(*file, gguf::kPerLayerTokenEmbd);
  const size_t cols = 32 * 15;
  ASSERT_EQ(table.size(), cols * 544);
  const std::vector<float> first(table.begin(), table.begin() + cols);
  for (size_t row : {size_t{512}, size_t{543}}) {
    EXPECT_EQ(std::vector<float>(table.begin() + row * cols, table.begin() + (row + 1) * cols), first) << row;
  }
  EXPECT_NE(std::vector<float>(table.begin() + 511 * cols, table.begin() + 512 * cols), first);
}

TEST_F(SynthTest, SameSeedSameFileAndAnotherSeedAnother) {
  ASSERT_TRUE(Synthesise("gemma4-tiny").ok());
  const std::string first = test::ReadFile(path_);
  ASSERT_TRUE(Synthesise("gemma4-tiny").ok());
  EXPECT_EQ(test::ReadFile(path_), first);
  SynthOptions options;
  options.seed = 2;
  ASSERT_TRUE(Synthesise("gemma4-tiny", options).ok());
  EXPECT_NE(test::ReadFile(path_), first);
}

TEST_F(SynthTest, LogitsSpreadByAFewUnitsAndFollowTheInput) {
  for (const char* name : {"gemma4-tiny", "gemma3n-tiny"}) {
    ASSERT_TRUE(Synthesise(name).ok());
    LoadedModel model = LoadModel(path_);
    ASSERT_NE(model.model, nullptr);
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; ++i) {
      ids.push_back(3 + i * 37 % 500);
    }
    const std::vector<float> logits = AllLogits(*model.model, ids);
    const size_t vocab = static_cast<size_t>(model.vocab());
    int repeats = 0;
    std::set<size_t> best_ids;
    for (size_t t = 0; t < ids.size(); ++t) {
      const auto row = absl::MakeConstSpan(logits).subspan(t * vocab, vocab);
      double squares = 0;
      for (const float logit : row) {
        ASSERT_TRUE(std::isfinite(logit));
        squares += double{logit} * logit;
      }
      const double spread = std::sqrt(squares / static_cast<double>(vocab));
      EXPECT_GT(spread, 1.5) << name << " " << t;
      EXPECT_LT(spread, 6) << name << " " << t;
      const size_t best = static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
      repeats += best == static_cast<size_t>(ids[t]) ? 1 : 0;
      best_ids.insert(best);
    }
    EXPECT_LT(repeats, 10) << name << ": a net that only repeats its input computes too little";
    EXPECT_GT(best_ids.size(), 10u) << name;
  }
}

TEST_F(SynthTest, EveryWeightTypeOpens) {
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_1,
        TensorType::kQ5_0, TensorType::kQ5_1, TensorType::kQ2_K, TensorType::kQ3_K, TensorType::kQ4_K,
        TensorType::kQ5_K, TensorType::kQ6_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS}) {
    SynthOptions options;
    options.weights = type;
    options.ple = type;
    std::vector<std::string> notes;
    options.note = [&notes](const std::string& line) { notes.push_back(line); };
    ASSERT_TRUE(Synthesise("gemma4-tiny", options).ok());
    const auto file = Open();
    ASSERT_NE(file, nullptr);
    const auto config = ReadModelConfig(*file);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_TRUE(CheckWeights(*file, *config).ok());
    // Rows of 64 elements hold no block of 256: said, and stored in a type that fits.
    EXPECT_EQ(notes.empty(), storage::TraitsOf(type).block_elements <= 32) << storage::TraitsOf(type).name;
    const TensorType stored = file->FindTensor(gguf::LayerTensor(0, gguf::kFfnUp))->type;
    EXPECT_EQ(stored == type, notes.empty());
  }
}

TEST_F(SynthTest, OverridesChangeMatchingMatricesAndLaterOnesWin) {
  SynthOptions options;
  options.overrides = {{"*", TensorType::kQ8_0}, {"blk.1?.ffn_*.weight", TensorType::kQ5_0}};
  ASSERT_TRUE(Synthesise("gemma4-tiny", options).ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->FindTensor("blk.9.ffn_up.weight")->type, TensorType::kQ8_0);
  EXPECT_EQ(file->FindTensor("blk.10.ffn_up.weight")->type, TensorType::kQ5_0);
  EXPECT_EQ(file->FindTensor(gguf::kPerLayerTokenEmbd)->type, TensorType::kQ8_0);
  EXPECT_EQ(file->FindTensor("blk.10.ffn_norm.weight")->type, TensorType::kF32) << "a norm is no matrix";
}

TEST_F(SynthTest, ImpossibleOverridesAndTypesAreExplained) {
  SynthOptions options;
  options.overrides = {{"blk.99.*", TensorType::kQ8_0}};
  EXPECT_THAT(std::string(Synthesise("gemma4-tiny", options).status().message()), HasSubstr("'blk.99.*' matches no"));
  options.overrides = {{"blk.0.ffn_up.weight", TensorType::kQ4_K}};
  EXPECT_THAT(std::string(Synthesise("gemma4-tiny", options).status().message()),
              HasSubstr("blk.0.ffn_up.weight with rows of 64 elements cannot be Q4_K"));
  options.overrides.clear();
  options.weights = TensorType::kIQ1_S;
  const auto refused = Synthesise("gemma4-tiny", options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("possible types: F32, F16, Q4_0"));
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".partial"));
}

TEST_F(SynthTest, TokenizerIsPutInAndFilledUp) {
  SynthOptions options;
  options.tokenizer_folder = std::string(EMBERGATE_GOLDEN_DIR) + "/gemma3n-tiny-e2b";
  std::vector<std::string> notes;
  options.note = [&notes](const std::string& line) { notes.push_back(line); };
  ASSERT_TRUE(Synthesise("gemma3n-tiny", options).ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  const auto vocabulary = VocabularyFromGguf(*file);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  ASSERT_EQ(vocabulary->tokens.size(), 544u);
  if (vocabulary->types[543] == TokenType::kUnused) {
    EXPECT_THAT(notes, Each(HasSubstr("are unused ones")));
  }
  options.tokenizer_folder = std::string(EMBERGATE_GOLDEN_DIR);
  EXPECT_FALSE(Synthesise("gemma3n-tiny", options).ok()) << "a folder without a tokenizer";
}

TEST_F(SynthTest, WithoutATokenizerTheFileSaysSo) {
  ASSERT_TRUE(Synthesise("gemma4-tiny").ok());
  const auto file = Open();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(*file->GetString("tokenizer.ggml.model"), "none");
  EXPECT_EQ(VocabularyFromGguf(*file).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SynthTest, TokenizerLargerThanTheShapeIsRefused) {
  SynthOptions options;
  options.tokenizer_folder = folder_.path();
  std::filesystem::copy_file(std::string(EMBERGATE_GOLDEN_DIR) + "/tokenizer/gemma4-like-16k.tokenizer.json",
                             folder_.File("tokenizer.json"));
  const auto refused = Synthesise("gemma4-tiny", options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("more than the 512 of gemma4-tiny"));
}

TEST_F(SynthTest, ProgressReachesTheTotal) {
  SynthOptions options;
  uint64_t last_done = 0;
  uint64_t last_total = 0;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last_done);
    last_done = done;
    last_total = total;
  };
  const auto summary = Synthesise("gemma3n-tiny", options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(last_total, summary->file_bytes);
  EXPECT_EQ(last_done, last_total);
}

}  // namespace
}  // namespace embergate::engine
