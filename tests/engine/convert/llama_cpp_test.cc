// The same GGUF in llama.cpp (npm's node-llama-cpp, prebuilt v0.5.0) and here: next-token probabilities at every
// position agree. Runs where npm is reachable (or the package is already in the build folder), says so and skips
// elsewhere. The golden fixtures but one cannot be loaded there: llama.cpp takes the layer just below the sharing ones
// for a full-attention one and fixes 3n's sizes, so checkpoints of shapes that it accepts are made here.
#include "tests/engine/convert/llama_cpp.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/converter.h"
#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/convert/random_checkpoint.h"
#include "tests/engine/convert/temp_dir.h"
#include "tests/engine/model/gguf_edit.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

// Longer than the window of 16; ids that no special meaning could change.
std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens = {2};
  for (int i = 1; i < 40; ++i) {
    tokens.push_back(110 + (i * 97) % 380);
  }
  return tokens;
}

class LlamaCppTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (!HaveLlamaCpp()) {
      GTEST_SKIP() << NoLlamaCpp();
    }
  }

  TempDir dir_;
};

TEST_P(LlamaCppTest, NextTokenProbabilitiesAgree) {
  const bool gemma4 = GetParam();
  WriteRandomCheckpoint({.gemma4 = gemma4}, dir_.path());
  const TensorType types[] = {TensorType::kF32,  TensorType::kF16,  TensorType::kBF16, TensorType::kQ8_0,
                              TensorType::kQ6_K, TensorType::kQ4_K, TensorType::kQ4_0};
  std::vector<std::string> paths;
  for (const TensorType type : types) {
    ConvertOptions options;
    options.weights = type;
    options.threads = 2;
    paths.push_back(dir_.File(std::string(storage::TraitsOf(type).name) + ".gguf"));
    const auto summary = ConvertCheckpoint(dir_.path(), paths.back(), options);
    ASSERT_TRUE(summary.ok()) << summary.status();
  }
  const std::vector<Probabilities> theirs = LlamaCppProbabilities(paths, Tokens());
  ASSERT_EQ(theirs.size(), paths.size());
  const Probabilities exact = OurProbabilities(paths[0], Tokens());
  for (size_t i = 0; i < paths.size(); ++i) {
    ASSERT_EQ(theirs[i].size(), Tokens().size()) << paths[i];
    const Probabilities ours = OurProbabilities(paths[i], Tokens());
    const double between = MeanKl(theirs[i], ours);
    const double their_loss = MeanKl(exact, theirs[i]);
    const double our_loss = MeanKl(exact, ours);
    std::printf("%-7s %-5s KL llama.cpp to ours %.2e; from ours in F32 to llama.cpp %.2e, to ours %.2e\n",
                gemma4 ? "gemma4" : "gemma3n", std::string(storage::TraitsOf(types[i]).name).c_str(), between,
                their_loss, our_loss);
    if (types[i] == TensorType::kF32 || types[i] == TensorType::kF16) {
      EXPECT_LT(between, 1e-3);
    } else {
      // llama.cpp rounds activations to BF16 beside BF16 weights, and both quantise them in their own way beside
      // quantised weights: the two may differ by no more than that costs llama.cpp itself.
      EXPECT_LT(between, std::max(1e-3, their_loss));
      EXPECT_LT(our_loss, 1.2 * their_loss + 1e-4);
    }
  }
}

TEST_P(LlamaCppTest, LoadsTheGoldenFixtureThatItsRulesAllow) {
  if (!GetParam()) {
    GTEST_SKIP() << "its 3n loader fixes sizes that no fixture has";
  }
  const std::string path = dir_.File("keqv.gguf");
  ConvertOptions options;
  options.weights = TensorType::kF32;
  ASSERT_TRUE(ConvertCheckpoint(EMBERGATE_GOLDEN_DIR "/gemma4-tiny-keqv", path, options).ok());
  const std::vector<Probabilities> theirs = LlamaCppProbabilities({path}, Tokens());
  ASSERT_EQ(theirs.size(), 1u);
  const double kl = MeanKl(theirs[0], OurProbabilities(path, Tokens()));
  std::printf("gemma4-tiny-keqv F32: KL %.2e\n", kl);
  EXPECT_LT(kl, 1e-3);
}

// ---- Files of mixed types -------------------------------------------------------------------------

// 256 wide, so that every block type fits every matrix; shapes that llama.cpp's loaders accept, as in
// random_checkpoint.h.
ModelShape MixedShape(bool gemma4) {
  ModelShape shape = *FindModelShape(gemma4 ? "gemma4-tiny" : "gemma3n-tiny");
  shape.hidden = 256;
  shape.layers = gemma4 ? 10 : 25;
  shape.shared_kv_layers = 5;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim_sliding = 64;
  shape.head_dim_full = gemma4 ? 128 : 64;
  shape.feed_forward = 512;
  shape.window = 16;
  shape.ple_width = 256;
  shape.context_length = 2048;
  shape.laurel_rank = gemma4 ? 0 : 64;
  shape.sparse_layers = gemma4 ? 0 : 10;
  return shape;
}

constexpr TensorType kAllTypes[] = {TensorType::kF32,    TensorType::kF16,  TensorType::kBF16,   TensorType::kQ8_0,
                                    TensorType::kQ6_K,   TensorType::kQ5_K, TensorType::kQ5_1,   TensorType::kQ5_0,
                                    TensorType::kQ4_K,   TensorType::kQ4_1, TensorType::kIQ4_NL, TensorType::kQ4_0,
                                    TensorType::kIQ4_XS, TensorType::kQ3_K, TensorType::kQ2_K};
constexpr size_t kTypeCount = std::size(kAllTypes);

struct Mix {
  std::string name;
  SynthOptions options;
};

// Twenty per family: each type as the weights' and (in the other family, shifted) as the table's, the stock recipes
// that mix types, and types drawn at random for every tensor.
std::vector<Mix> Mixes(bool gemma4) {
  std::vector<Mix> mixes;
  for (size_t i = 0; i < kTypeCount; ++i) {
    Mix mix;
    mix.options.weights = kAllTypes[i];
    mix.options.ple = kAllTypes[gemma4 ? i : (i + 7) % kTypeCount];
    if (kAllTypes[i] != TensorType::kF32 && kAllTypes[i] != TensorType::kF16) {
      mix.options.overrides = {{"token_embd.weight", i % 2 == 0 ? TensorType::kQ6_K : kAllTypes[i]}};
    }
    mix.name = absl::StrCat(std::string(storage::TraitsOf(mix.options.weights).name), "+",
                            std::string(storage::TraitsOf(mix.options.ple).name));
    mixes.push_back(std::move(mix));
  }
  const auto recipe = [&mixes](const char* name, TensorType weights, TensorType better, TensorType table) {
    Mix mix;
    mix.name = name;
    mix.options.weights = weights;
    mix.options.ple = table;
    mix.options.overrides = {{"token_embd.weight", TensorType::kQ6_K},
                             {"blk.*.attn_v.weight", better},
                             {"blk.[0-4].ffn_down.weight", better},
                             {"blk.1*.ffn_down.weight", better}};
    mixes.push_back(std::move(mix));
  };
  recipe("q4_k_m", TensorType::kQ4_K, TensorType::kQ6_K, TensorType::kQ5_K);
  recipe("q5_k_m", TensorType::kQ5_K, TensorType::kQ6_K, TensorType::kQ5_0);
  recipe("q3_k_m", TensorType::kQ3_K, TensorType::kQ5_K, TensorType::kQ4_1);
  std::mt19937 random(gemma4 ? 4 : 3);
  for (int i = 0; i < 2; ++i) {
    Mix mix;
    mix.name = absl::StrCat("random ", i);
    for (const ShapeTensor& tensor : ShapeTensors(MixedShape(gemma4))) {
      if (tensor.role == TensorRole::kMatrix || tensor.role == TensorRole::kEmbedding ||
          tensor.role == TensorRole::kPleTable) {
        mix.options.overrides.push_back({tensor.name, kAllTypes[random() % kTypeCount]});
      }
    }
    mixes.push_back(std::move(mix));
  }
  for (size_t i = 0; i < mixes.size(); ++i) {
    mixes[i].options.seed = i + 1;
    mixes[i].options.tokenizer_folder =
        std::string(EMBERGATE_GOLDEN_DIR) + (gemma4 ? "/gemma4-tiny-e2b" : "/gemma3n-tiny-e2b");
  }
  return mixes;
}

// Layers of a synthesised net change the stream by as much as it holds, so that rounding grows with depth until the
// nets of two roundings have nothing in common. Trained ones are tamer; so are these with smaller updates.
float Tamed(const std::string& name) {
  for (const char* part : {"post_attention_norm", "post_ffw_norm", ".post_norm", "laurel_post_norm"}) {
    if (name.find(part) != std::string::npos) {
      return 0.2f;
    }
  }
  return name.find("attn_q_norm") != std::string::npos ? 0.5f : 1.0f;
}

// Every fifth of them, or all forty with EMBERGATE_ALL_MIXES=1.
TEST_P(LlamaCppTest, FilesOfMixedTypesAgree) {
  const bool gemma4 = GetParam();
  const ModelShape shape = MixedShape(gemma4);
  std::vector<Mix> mixes = Mixes(gemma4);
  ASSERT_EQ(mixes.size(), 20u);
  if (std::getenv("EMBERGATE_ALL_MIXES") == nullptr) {
    for (size_t i = 0; i < 4; ++i) {
      mixes[i] = mixes[5 * i + 4];
    }
    mixes.resize(4);
  }
  const auto path = [&](size_t i) { return dir_.File(absl::StrCat("mixed-", i, ".gguf")); };
  const auto plain_path = [&](size_t i) { return dir_.File(absl::StrCat("plain-", i, ".gguf")); };
  std::vector<std::string> paths;
  for (size_t i = 0; i < mixes.size(); ++i) {
    const std::string wild_path = dir_.File("wild.gguf");
    const auto summary = SynthesiseModel(shape, wild_path, mixes[i].options);
    ASSERT_TRUE(summary.ok()) << mixes[i].name << ": " << summary.status();
    GgufEdit tame;
    tame.scale = Tamed;
    EditGguf(wild_path, path(i), tame);
    GgufEdit plain;
    plain.dequantize = [](const std::string&) { return true; };
    EditGguf(path(i), plain_path(i), plain);
    paths.push_back(path(i));
    paths.push_back(plain_path(i));
  }
  const std::vector<Probabilities> theirs = LlamaCppProbabilities(paths, Tokens());
  ASSERT_EQ(theirs.size(), paths.size());
  for (size_t i = 0; i < mixes.size(); ++i) {
    const std::string& name = mixes[i].name;
    ASSERT_EQ(theirs[2 * i].size(), Tokens().size()) << name;
    ASSERT_EQ(theirs[2 * i + 1].size(), Tokens().size()) << name;
    const Probabilities ours = OurProbabilities(path(i), Tokens());
    const double between = MeanKl(theirs[2 * i], ours);
    const double their_loss = MeanKl(theirs[2 * i + 1], theirs[2 * i]);
    const double our_loss = MeanKl(theirs[2 * i + 1], ours);
    std::printf("%-7s %-14s KL llama.cpp to ours %.2e; from llama.cpp in F32 to llama.cpp %.2e, to ours %.2e\n",
                gemma4 ? "gemma4" : "gemma3n", name.c_str(), between, their_loss, our_loss);
    EXPECT_LT(between, 1e-3) << name;
    // In F32 the values are as we dequantise them: were that wrong, llama.cpp would disagree with itself.
    EXPECT_LT(their_loss, 1e-3) << name;
    EXPECT_LT(our_loss, 2 * their_loss + 1e-5) << name;
  }
  // The nets are not so tame that nothing would show: one matrix of zeros is more than is allowed above.
  GgufEdit zeros;
  zeros.types["blk.4.ffn_down.weight"] = TensorType::kF32;
  EditGguf(path(0), dir_.File("zeros.gguf"), zeros);
  const double seen = MeanKl(OurProbabilities(path(0), Tokens()), OurProbabilities(dir_.File("zeros.gguf"), Tokens()));
  std::printf("one matrix of zeros: KL %.2e\n", seen);
  EXPECT_GT(seen, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Families, LlamaCppTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Gemma4" : "Gemma3n"; });

}  // namespace
}  // namespace embergate::engine
