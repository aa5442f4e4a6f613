// Attention against the definition in float64, and against itself however the tokens are grouped.
#include "engine/model/attention.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/model/tiny_config.h"

namespace embergate::engine {
namespace {

struct Case {
  int heads, kv_heads, dim_sliding, dim_full, window;
  storage::TensorType type;
  double tolerance;
};

class AttentionTest : public testing::TestWithParam<Case> {};

TEST_P(AttentionTest, EqualsTheDefinition) {
  const Case& c = GetParam();
  const ModelConfig config = TinyConfig(c.heads, c.kv_heads, c.dim_sliding, c.dim_full, c.window);
  constexpr int kTokens = 1100;  // more than two segments
  constexpr int kStep = 50;
  KvLimits limits;
  limits.slots = 2;
  limits.context_max = kTokens;
  limits.step_tokens_max = kStep;
  limits.type = c.type;
  auto made = KvCache::Create(config, limits);
  ASSERT_TRUE(made.ok()) << made.status();
  KvCache& kv = **made;
  ASSERT_TRUE(kv.OpenSlot(1, kTokens).ok());
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  ThreadPool pool(2);
  AttentionScratch scratch(config, kStep, kTokens, pool.threads());
  for (const int layer_index : {2, 3}) {  // sharing layers: they read layers 0 and 1
    const LayerConfig& layer = config.layers[layer_index];
    const int dim = layer.head_dim;
    const int width = c.heads * dim;
    const int kv_width = c.kv_heads * dim;
    std::vector<float> k(kTokens * kv_width), v(kTokens * kv_width), q(kTokens * width);
    for (std::vector<float>* values : {&k, &v, &q}) {
      for (float& value : *values) {
        value = normal(random);
      }
    }
    std::vector<float> out(kTokens * width), again(width);
    for (int start = 0; start < kTokens; start += kStep) {
      ASSERT_TRUE(kv.Extend(1, start, kStep).ok());
      std::vector<StepToken> tokens;
      for (int t = start; t < start + kStep; ++t) {
        kv.Store(layer.kv_source, 1, t, k.data() + t * kv_width, v.data() + t * kv_width);
        tokens.push_back({0, 1, t, 0, -1});
      }
      Attention(config, layer, kv, tokens, q.data() + start * width, out.data() + start * width, width, scratch, pool);
      for (int t = 0; t < kStep; t += 17) {
        Attention(config, layer, kv, absl::MakeSpan(&tokens[t], 1), q.data() + (start + t) * width, again.data(), width,
                  scratch, pool);
        EXPECT_EQ(again, std::vector<float>(out.begin() + (start + t) * width, out.begin() + (start + t + 1) * width));
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int head = 0; head < c.heads; ++head) {
        const int kv_head = head / (c.heads / c.kv_heads);
        const int first = layer.sliding ? std::max(0, t - c.window + 1) : 0;
        std::vector<double> expected(dim);
        double sum = 0;
        double maximum = -1e300;
        std::vector<double> scores;
        for (int j = first; j <= t; ++j) {
          double score = 0;
          for (int i = 0; i < dim; ++i) {
            score += double{q[t * width + head * dim + i]} * k[j * kv_width + kv_head * dim + i];
          }
          scores.push_back(score);
          maximum = std::max(maximum, score);
        }
        for (int j = first; j <= t; ++j) {
          const double weight = std::exp(scores[j - first] - maximum);
          sum += weight;
          for (int i = 0; i < dim; ++i) {
            expected[i] += weight * v[j * kv_width + kv_head * dim + i];
          }
        }
        for (int i = 0; i < dim; ++i) {
          ASSERT_NEAR(out[t * width + head * dim + i], expected[i] / sum, c.tolerance)
              << "layer " << layer_index << " token " << t << " head " << head << " dim " << i;
        }
      }
    }
  }
}

// Scores of 64-wide random vectors reach 30: a relative error of 2^-11 in a key moves a weight by some percent.
INSTANTIATE_TEST_SUITE_P(All, AttentionTest,
                         testing::Values(Case{4, 1, 32, 64, 24, storage::TensorType::kF32, 1e-4},
                                         Case{4, 2, 32, 64, 1, storage::TensorType::kF32, 1e-4},
                                         Case{4, 4, 8, 24, 33, storage::TensorType::kF32, 1e-4},
                                         Case{8, 2, 32, 64, 24, storage::TensorType::kF16, 5e-2}));

}  // namespace
}  // namespace embergate::engine
