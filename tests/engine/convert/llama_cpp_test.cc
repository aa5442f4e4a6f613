// The same GGUF in llama.cpp (npm's node-llama-cpp, prebuilt v0.5.0) and here: next-token probabilities at every
// position agree. Runs where npm is reachable (or the package is already in the build folder), says so and skips
// elsewhere. The golden fixtures but one cannot be loaded there: llama.cpp takes the layer just below the sharing ones
// for a full-attention one and fixes 3n's sizes, so checkpoints of shapes that it accepts are made here.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/convert/converter.h"
#include "engine/convert/evaluate.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "storage/gguf_file.h"
#include "tests/engine/convert/random_checkpoint.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

using storage::TensorType;
using Rows = std::vector<std::vector<double>>;  // probabilities, per position

const std::string kFolder = std::string(EMBERGATE_BINARY_DIR) + "/npm";

// Longer than the window of 16; ids that no special meaning could change.
std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens = {2};
  for (int i = 1; i < 40; ++i) {
    tokens.push_back(110 + (i * 97) % 380);
  }
  return tokens;
}

Rows OurProbabilities(const std::string& path) {
  Rows rows;
  auto file = storage::GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  ThreadPool pool(2);
  auto model = LoadForEvaluation(**file, 256, pool, {});
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) {
    return rows;
  }
  const std::vector<int32_t> tokens = Tokens();
  const int vocab = (*model)->limits().vocab_size;
  EXPECT_TRUE((*model)->OpenSlot(0, 256).ok());
  std::vector<float> logits(vocab);
  for (size_t i = 0; i < tokens.size(); ++i) {
    Chunk chunk;
    chunk.tokens = absl::MakeConstSpan(&tokens[i], 1);
    chunk.start = static_cast<int>(i);
    chunk.logits = LogitsWanted::kAll;
    EXPECT_TRUE((*model)->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
    EXPECT_TRUE(chunk.status.ok()) << chunk.status;
    const float max = *std::max_element(logits.begin(), logits.end());
    std::vector<double>& row = rows.emplace_back();
    double sum = 0;
    for (const float logit : logits) {
      row.push_back(std::exp(static_cast<double>(logit) - max));
      sum += row.back();
    }
    for (double& p : row) {
      p /= sum;
    }
  }
  (*model)->CloseSlot(0);
  return rows;
}

// Mean over the positions of sum p log(p / q). Probabilities that were printed as 0 count as 1e-12.
double MeanKl(const Rows& p, const Rows& q) {
  EXPECT_EQ(p.size(), q.size());
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    for (size_t k = 0; k < p[i].size(); ++k) {
      const double other = k < q[i].size() ? q[i][k] : 0;
      sum += p[i][k] * std::log(std::max(p[i][k], 1e-12) / std::max(other, 1e-12));
    }
  }
  return sum / static_cast<double>(p.size());
}

class LlamaCppTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const std::string command =
        "bash " EMBERGATE_SOURCE_DIR "/tests/integration/npm_fixtures.sh '" + kFolder + "' node-llama-cpp@3.22.1";
    if (std::system(command.c_str()) != 0) {
      GTEST_SKIP() << "npm or its registry is not reachable, and node-llama-cpp is not in " << kFolder;
    }
  }

  std::vector<Rows> TheirProbabilities(const std::vector<std::string>& paths) {
    nlohmann::json input = nlohmann::json::array();
    for (const std::string& path : paths) {
      input.push_back({{"model", path}, {"tokens", Tokens()}});
    }
    WriteFile(dir_.File("in.json"), input.dump());
    const std::string command = "node " EMBERGATE_SOURCE_DIR "/tests/engine/convert/llama_cpp_probabilities.mjs '" +
                                kFolder + "' '" + dir_.File("in.json") + "' '" + dir_.File("out.json") + "'";
    EXPECT_EQ(std::system(command.c_str()), 0);
    std::vector<Rows> results;
    const nlohmann::json output = nlohmann::json::parse(ReadFile(dir_.File("out.json")), nullptr, false);
    EXPECT_EQ(output.size(), paths.size());
    for (const nlohmann::json& result : output) {
      EXPECT_FALSE(result.contains("error")) << result.value("error", "");
      results.push_back(result.contains("error") ? Rows() : result["probabilities"].get<Rows>());
    }
    return results;
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
  const std::vector<Rows> theirs = TheirProbabilities(paths);
  ASSERT_EQ(theirs.size(), paths.size());
  const Rows exact = OurProbabilities(paths[0]);
  for (size_t i = 0; i < paths.size(); ++i) {
    ASSERT_EQ(theirs[i].size(), Tokens().size()) << paths[i];
    const Rows ours = OurProbabilities(paths[i]);
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
  const std::vector<Rows> theirs = TheirProbabilities({path});
  ASSERT_EQ(theirs.size(), 1u);
  const double kl = MeanKl(theirs[0], OurProbabilities(path));
  std::printf("gemma4-tiny-keqv F32: KL %.2e\n", kl);
  EXPECT_LT(kl, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Families, LlamaCppTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Gemma4" : "Gemma3n"; });

}  // namespace
}  // namespace embergate::engine
