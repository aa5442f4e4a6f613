// Both decoders against the reference's logits (tests/golden/README.md): every position of every sequence, however
// the prompt is cut, greedy continuations, and the intermediate values that show where a difference begins.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

constexpr float kLogitTolerance = 1e-3f;  // the reference agrees with itself to 1e-4; smallest greedy margin 5e-2

class GoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, LogitsEqualTheReferenceAtEveryPosition) {
  const Golden golden(GetParam());
  LoadedModel model = LoadModel(GoldenGguf(GetParam()));
  ASSERT_NE(model.model, nullptr);
  for (int j = 0; j < 4; ++j) {
    const std::string name = absl::StrCat("seq", j);
    const std::vector<int32_t> ids = golden.Ids(name + ".input_ids");
    const std::vector<float> expected = golden.Floats(name + ".logits");
    const std::vector<float> whole = AllLogits(*model.model, ids);
    const float difference = MaxDifference(whole, expected);
    EXPECT_LE(difference, kLogitTolerance) << name;
    RecordProperty(absl::StrCat(name, "_max_difference"), absl::StrCat(difference));
    for (const int chunk : {1, 7, 32}) {
      // Within the tolerance, and the very same bits.
      EXPECT_EQ(AllLogits(*model.model, ids, chunk), whole) << name << " in chunks of " << chunk;
    }
  }
}

TEST_P(GoldenTest, GreedyContinuationsAreIdentical) {
  const Golden golden(GetParam());
  LoadedModel model = LoadModel(GoldenGguf(GetParam()));
  ASSERT_NE(model.model, nullptr);
  const size_t vocab = static_cast<size_t>(model.vocab());
  for (int j = 1; j < 4; ++j) {
    const std::vector<int32_t> prompt = golden.Ids(absl::StrCat("seq", j, ".input_ids"));
    const std::vector<int32_t> expected = golden.Ids(absl::StrCat("greedy", j, ".tokens"));
    const std::vector<float> expected_logits = golden.Floats(absl::StrCat("greedy", j, ".logits"));
    ASSERT_TRUE(model->OpenSlot(0, static_cast<int>(prompt.size() + expected.size())).ok());
    std::vector<int32_t> input = prompt;
    int position = 0;
    std::vector<float> logits(vocab);
    for (size_t step = 0; step < expected.size(); ++step) {
      Chunk chunk;
      chunk.tokens = input;
      chunk.start = position;
      chunk.logits = LogitsWanted::kLast;
      ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
      ASSERT_TRUE(chunk.status.ok()) << chunk.status;
      position += static_cast<int>(input.size());
      const std::vector<float> reference(expected_logits.begin() + static_cast<int64_t>(step * vocab),
                                         expected_logits.begin() + static_cast<int64_t>((step + 1) * vocab));
      EXPECT_LE(MaxDifference(logits, reference), kLogitTolerance) << "seq" << j << " step " << step;
      const int32_t best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      ASSERT_EQ(best, expected[step]) << "seq" << j << " step " << step;
      input = {best};
    }
    model->CloseSlot(0);
  }
}

// Where the first difference arises, when there is one.
TEST_P(GoldenTest, IntermediateValuesEqualTheReference) {
  const Golden golden(GetParam());
  LoadedModel model = LoadModel(GoldenGguf(GetParam()));
  ASSERT_NE(model.model, nullptr);
  std::map<std::string, std::vector<float>> seen;
  const DecoderModel::Probe probe = [&](const char* name, int layer, const float* values, int tokens, int64_t width) {
    seen[absl::StrCat(name, ".", layer)].assign(values, values + tokens * width);
  };
  model->SetProbe(&probe);
  AllLogits(*model.model, golden.Ids("seq1.input_ids"));
  EXPECT_LE(MaxDifference(seen["embed.0"], golden.Floats("seq1.embed")), 1e-5f);
  EXPECT_LE(MaxDifference(seen["final_norm.0"], golden.Floats("seq1.final_norm")), 1e-3f);
  int compared = 0;
  for (int layer = 0; layer < model->info().layers; ++layer) {
    for (const char* part : {"attn_in", "attn_out", "mlp_out", "ple_proj"}) {
      const std::string reference = absl::StrCat("seq1.", part, ".", layer);
      if (golden.Has(reference)) {
        EXPECT_LE(MaxDifference(seen[absl::StrCat(part, ".", layer)], golden.Floats(reference)), 1e-3f) << reference;
        ++compared;
      }
    }
  }
  EXPECT_GE(compared, model->info().layers);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(GoldenNames()), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace embergate::engine
