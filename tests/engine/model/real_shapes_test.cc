// The four published shapes, synthesised and run for one step. With EMBERGATE_FULL_SHAPES=1 as they are (up to 8 GB on
// disk and 5 GB in memory); otherwise at their real widths, with two periods of layers and a short vocabulary.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

class RealShapesTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RealShapesTest, OneStepGivesSaneLogits) {
  ModelShape shape = *FindModelShape(GetParam());
  if (std::getenv("EMBERGATE_FULL_SHAPES") == nullptr) {
    // The first period owns keys and values, the second shares them; the sparse layers are among the first.
    shape.layers = 2 * shape.full_period;
    shape.shared_kv_layers = shape.full_period;
    shape.sparse_layers = shape.is_3n() ? 3 : 0;
    shape.vocab = shape.is_3n() ? 1024 + 256 : 1024;
    shape.ple_rows = 1024;
  }
  const TempDir folder;
  const std::string path = folder.File("model.gguf");
  const auto summary = SynthesiseModel(shape, path, SynthOptions());
  ASSERT_TRUE(summary.ok()) << summary.status();
  DecoderOptions options;
  options.context_max = 64;
  options.slots_max = 1;
  options.step_tokens_max = 16;
  options.logit_rows_max = 16;
  LoadedModel model = LoadModel(path, options, /*threads=*/2);
  ASSERT_NE(model.model, nullptr);
  EXPECT_EQ(model->info().layers, static_cast<int>(shape.layers));
  const std::vector<int32_t> ids = {2, 5, 700, static_cast<int32_t>(shape.vocab) - 1};
  const std::vector<float> logits = AllLogits(*model.model, ids);
  ASSERT_EQ(logits.size(), ids.size() * shape.vocab);
  double squares = 0;
  for (const float logit : logits) {
    ASSERT_TRUE(std::isfinite(logit));
    ASSERT_LE(std::abs(logit), 30.0f);
    squares += static_cast<double>(logit) * logit;
  }
  const double spread = std::sqrt(squares / static_cast<double>(logits.size()));
  EXPECT_GT(spread, 1.0);
  EXPECT_LT(spread, 8.0);
  EXPECT_EQ(AllLogits(*model.model, ids, /*chunk=*/1), logits) << "token by token";
}

INSTANTIATE_TEST_SUITE_P(Published, RealShapesTest,
                         ::testing::Values("gemma4-e2b", "gemma4-e4b", "gemma3n-e2b", "gemma3n-e4b"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace embergate::engine
