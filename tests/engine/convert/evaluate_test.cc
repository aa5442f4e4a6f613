#include "engine/convert/evaluate.h"

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/convert/check.h"
#include "engine/convert/converter.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

// Gives the token `id` at any position logits that depend on id alone: `gain` * ((id * 7 + i * 3) mod vocab).
class ToyModel final : public LanguageModel {
 public:
  ToyModel(int vocab, float gain) : gain_(gain) {
    limits_.vocab_size = vocab;
    limits_.context_max = 100;
    limits_.slots_max = 1;
    limits_.step_tokens_max = 8;
    limits_.logit_rows_max = 4;
  }
  const ModelLimits& limits() const override { return limits_; }
  std::vector<MemoryPart> Memory() const override { return {}; }
  absl::Status OpenSlot(int, int) override {
    EXPECT_FALSE(open_);
    open_ = true;
    position_ = 0;
    return absl::OkStatus();
  }
  void CloseSlot(int) override { open_ = false; }
  int64_t FreeKvTokens() const override { return 0; }
  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t>) override { return storage::RowTicket(); }
  void ReleaseRows(storage::RowTicket) override {}
  absl::Status Step(absl::Span<Chunk> chunks, absl::Span<float> logits, StepTimes*) override {
    EXPECT_EQ(chunks[0].start, position_);
    EXPECT_LE(chunks[0].tokens.size(), 4u);
    size_t at = 0;
    for (int32_t id : chunks[0].tokens) {
      for (int i = 0; i < limits_.vocab_size; ++i) {
        logits[at++] = Logit(id, i);
      }
    }
    position_ += static_cast<int>(chunks[0].tokens.size());
    return absl::OkStatus();
  }
  float Logit(int32_t id, int i) const {
    return gain_ * static_cast<float>((id * 7 + i * 3) % limits_.vocab_size) + offset_;
  }
  std::vector<double> Probabilities(int32_t id) const {
    std::vector<double> p;
    double sum = 0;
    for (int i = 0; i < limits_.vocab_size; ++i) {
      p.push_back(std::exp(static_cast<double>(Logit(id, i))));
      sum += p.back();
    }
    for (double& value : p) {
      value /= sum;
    }
    return p;
  }
  void set_offset(float offset) { offset_ = offset; }

 private:
  ModelLimits limits_;
  float gain_;
  float offset_ = 0;
  bool open_ = false;
  int position_ = 0;
};

TEST(EvaluateTest, ComputesPerplexityAndDivergenceFromTheirDefinitions) {
  ToyModel model(11, 0.3f);
  ToyModel reference(11, 0.4f);
  const std::vector<std::vector<int32_t>> sequences = {{1, 5, 3, 2, 2, 10, 0, 4, 7, 8}, {3}, {}, {9, 1}};
  ThreadPool pool(2);
  uint64_t last = 0;
  const auto result = Evaluate(model, &reference, sequences, pool, [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, 10u);
    EXPECT_GT(done, last);
    last = done;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(last, 10u);
  ASSERT_EQ(result->nll.size(), 10u);
  size_t at = 0;
  double sum = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    for (size_t i = 0; i + 1 < sequence.size(); ++i, ++at) {
      const std::vector<double> q = model.Probabilities(sequence[i]);
      const std::vector<double> p = reference.Probabilities(sequence[i]);
      double kl = 0;
      for (size_t k = 0; k < p.size(); ++k) {
        kl += p[k] * std::log(p[k] / q[k]);
      }
      EXPECT_NEAR(result->divergence.kl[at], kl, 1e-6);
      EXPECT_NEAR(result->nll[at], -std::log(q[sequence[i + 1]]), 1e-6);
      EXPECT_NEAR(result->reference_nll[at], -std::log(p[sequence[i + 1]]), 1e-6);
      sum += result->nll[at];
    }
  }
  EXPECT_NEAR(result->perplexity(), std::exp(sum / 10), 1e-6);
  EXPECT_EQ(result->divergence.top1_equal, 10u);  // a gain does not change the order
  EXPECT_GT(result->divergence.max_kl(), 0.0);
  EXPECT_GE(result->divergence.quantile_kl(0.99), result->divergence.quantile_kl(0.5));
}

TEST(EvaluateTest, AConstantAddedToTheLogitsChangesNothing) {
  ToyModel model(11, 0.3f);
  ToyModel reference(11, 0.3f);
  reference.set_offset(5.0f);
  ThreadPool pool(1);
  const std::vector<std::vector<int32_t>> sequences = {{1, 2, 3, 4, 5, 6}};
  const auto result = Evaluate(model, &reference, sequences, pool, {});
  ASSERT_TRUE(result.ok());
  EXPECT_LT(result->divergence.max_kl(), 1e-6);
  EXPECT_NEAR(result->perplexity(), result->reference_perplexity(), 1e-4);
}

TEST(EvaluateTest, RefusesWhatItCannotCompare) {
  ToyModel model(11, 0.3f);
  ToyModel other(12, 0.3f);
  ThreadPool pool(1);
  const std::vector<std::vector<int32_t>> good = {{1, 2}};
  const std::vector<std::vector<int32_t>> beyond = {{1, 11}};
  const std::vector<std::vector<int32_t>> lengthy = {std::vector<int32_t>(101, 1)};
  EXPECT_EQ(Evaluate(model, &other, good, pool, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Evaluate(model, nullptr, beyond, pool, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Evaluate(model, nullptr, lengthy, pool, {}).status().code(), absl::StatusCode::kInvalidArgument);
  model.set_offset(INFINITY);
  EXPECT_EQ(Evaluate(model, nullptr, good, pool, {}).status().code(), absl::StatusCode::kDataLoss);
}

TEST(EvaluateTest, WindowsCoverTheText) {
  auto vocabulary = VocabularyFromFolder(EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b", "gemma4");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  auto tokenizer = Tokenizer::Create(*std::move(vocabulary));
  ASSERT_TRUE(tokenizer.ok());
  std::string text;
  for (int i = 0; i < 200; ++i) {
    text += "some words ";
  }
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text, {});
  const auto windows = CutIntoWindows(**tokenizer, text, 64, 0);
  std::vector<int32_t> joined;
  for (const std::vector<int32_t>& window : windows) {
    EXPECT_LE(window.size(), 64u);
    EXPECT_EQ(window[0], 2);  // <bos>
    joined.insert(joined.end(), window.begin() + 1, window.end());
  }
  EXPECT_EQ(joined, ids);
  EXPECT_TRUE(CutIntoWindows(**tokenizer, "", 64, 0).empty());
  size_t bounded = 0;
  for (const auto& window : CutIntoWindows(**tokenizer, text, 64, 100)) {
    bounded += window.size() - 1;
  }
  EXPECT_EQ(bounded, 100u);
}

// The check of the command line: exact types diverge by nothing, coarser ones by more.
TEST(CheckConversionTest, OrdersTheTypesByTheirLoss) {
  TempDir dir;
  for (const char* name : {"gemma4-tiny-e2b"}) {
    const std::string folder = std::string(EMBERGATE_GOLDEN_DIR "/") + name;
    const std::string gguf = dir.File("m.gguf");
    double last = -1;
    for (const TensorType type : {TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0}) {
      ConvertOptions options;
      options.weights = type;
      ASSERT_TRUE(ConvertCheckpoint(folder, gguf, options).ok());
      const auto check = CheckConversion(folder, gguf, 2, {});
      ASSERT_TRUE(check.ok()) << check.status();
      EXPECT_EQ(check->reference_type, "BF16");
      EXPECT_TRUE(check->real_text);
      EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);  // nothing but m.gguf
      const Divergence& divergence = check->evaluation.divergence;
      ASSERT_GT(divergence.kl.size(), 500u);
      if (type == TensorType::kBF16) {
        EXPECT_EQ(divergence.mean_kl(), 0.0);
        EXPECT_EQ(divergence.top1_equal, divergence.kl.size());
      } else {
        EXPECT_GT(divergence.mean_kl(), 3 * last);
        EXPECT_LT(divergence.mean_kl(), type == TensorType::kQ8_0 ? 0.1 : 2.0);
      }
      last = divergence.mean_kl();
    }
  }
}

}  // namespace
}  // namespace embergate::engine
