// The golden checkpoints as GGUF files, loaded models, and short ways to run them.
#ifndef EMBERGATE_TESTS_ENGINE_MODEL_MODEL_FIXTURE_H_
#define EMBERGATE_TESTS_ENGINE_MODEL_MODEL_FIXTURE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/convert/converter.h"
#include "engine/convert/safetensors.h"
#include "engine/model/decoder_model.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {

inline const std::vector<std::string>& GoldenNames() {
  static const std::vector<std::string> names = {"gemma4-tiny-e2b", "gemma4-tiny-e4b", "gemma4-tiny-keqv",
                                                 "gemma3n-tiny-e2b", "gemma3n-tiny-e4b"};
  return names;
}

inline std::string GoldenFolder(const std::string& name) { return absl::StrCat(EMBERGATE_GOLDEN_DIR, "/", name); }

// The checkpoint's GGUF in the given weight type, converted on first use and kept until the program ends.
inline std::string GoldenGguf(const std::string& name, storage::TensorType type = storage::TensorType::kF32) {
  static TempDir* folder = new TempDir();
  static const int registered = std::atexit([] { delete folder; });
  (void)registered;
  const std::string path = folder->File(absl::StrCat(name, "-", static_cast<int>(type), ".gguf"));
  if (!std::filesystem::exists(path)) {
    ConvertOptions options;
    options.weights = type;
    const auto summary = ConvertCheckpoint(GoldenFolder(name), path, options);
    EXPECT_TRUE(summary.ok()) << summary.status();
  }
  return path;
}

// Golden values of one checkpoint.
class Golden {
 public:
  explicit Golden(const std::string& name) {
    auto file = SafetensorsFile::Open(GoldenFolder(name) + "/golden.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }
  bool Has(const std::string& name) const { return file_->Find(name) != nullptr; }
  std::vector<float> Floats(const std::string& name) const {
    const SafetensorsTensor* tensor = file_->Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    std::vector<float> values(tensor->elements);
    EXPECT_TRUE(file_->ReadFloats(*tensor, 0, absl::MakeSpan(values)).ok());
    return values;
  }
  std::vector<int32_t> Ids(const std::string& name) const {
    const SafetensorsTensor* tensor = file_->Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    const auto values = file_->ReadInts(*tensor);
    EXPECT_TRUE(values.ok()) << values.status();
    return std::vector<int32_t>(values->begin(), values->end());
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
};

// A loaded model with its thread pool.
struct LoadedModel {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<DecoderModel> model;

  DecoderModel* operator->() const { return model.get(); }
  int vocab() const { return model->limits().vocab_size; }
};

inline DecoderOptions TestOptions() {
  DecoderOptions options;
  options.context_max = 160;
  options.slots_max = 4;
  options.step_tokens_max = 192;
  options.logit_rows_max = 192;
  options.rows.cache_bytes = 1 << 16;
  return options;
}

inline LoadedModel LoadModel(const std::string& path, const DecoderOptions& options = TestOptions(), int threads = 1) {
  LoadedModel loaded;
  loaded.pool = std::make_unique<ThreadPool>(threads);
  auto file = storage::GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (file.ok()) {
    auto model = DecoderModel::Load(**file, options, *loaded.pool, {});
    EXPECT_TRUE(model.ok()) << model.status();
    if (model.ok()) {
      loaded.model = *std::move(model);
    }
  }
  return loaded;
}

// Logits of all positions of `ids`, computed in chunks of `chunk` tokens (0 = all at once) in a slot of its own.
inline std::vector<float> AllLogits(DecoderModel& model, const std::vector<int32_t>& ids, int chunk = 0, int slot = 0) {
  const size_t vocab = static_cast<size_t>(model.limits().vocab_size);
  std::vector<float> logits(ids.size() * vocab);
  const size_t step = chunk > 0 ? static_cast<size_t>(chunk) : ids.size();
  EXPECT_TRUE(model.OpenSlot(slot, static_cast<int>(ids.size())).ok());
  for (size_t start = 0; start < ids.size(); start += step) {
    const size_t count = std::min(step, ids.size() - start);
    Chunk part;
    part.slot = slot;
    part.tokens = absl::MakeConstSpan(ids).subspan(start, count);
    part.start = static_cast<int>(start);
    part.logits = LogitsWanted::kAll;
    const absl::Status status =
        model.Step(absl::MakeSpan(&part, 1), absl::MakeSpan(logits).subspan(start * vocab, count * vocab), nullptr);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(part.status.ok()) << part.status;
  }
  model.CloseSlot(slot);
  return logits;
}

inline float MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    worst = difference <= worst ? worst : difference;  // NaN wins
  }
  return worst;
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_MODEL_MODEL_FIXTURE_H_
