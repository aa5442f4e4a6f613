// The promises of DecoderModel at the real widths, head sizes and window of the E2B models, in Q4_0 (few layers and a
// small vocabulary keep it quick): a token's logits are the same bits alone and in company, however its prompt was cut,
// on one thread or two, with all layers computed for every token or only what is needed; and memory is what is
// itemised.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/sanitized.h"

namespace embergate::engine {
namespace {

// A sliding and a full layer that own keys and values, and one of each that shares them. 3n: the owning ones are
// sparse.
ModelShape FewLayers(const char* name) {
  ModelShape shape = *FindModelShape(name);
  shape.layers = 4;
  shape.full_period = 2;
  shape.shared_kv_layers = 2;
  shape.sparse_layers = shape.is_3n() ? 2 : 0;
  shape.vocab = 2048;
  shape.ple_rows = 2000;
  if (!shape.is_3n()) {
    shape.ple_rows = shape.vocab;
  }
  return shape;
}

std::string ModelPath(const char* name) {
  static TempDir* folder = new TempDir();
  static const int registered = std::atexit([] { delete folder; });
  (void)registered;
  const std::string path = folder->File(absl::StrCat(name, ".gguf"));
  if (!std::filesystem::exists(path)) {
    const auto summary = SynthesiseModel(FewLayers(name), path, SynthOptions());
    EXPECT_TRUE(summary.ok()) << summary.status();
  }
  return path;
}

constexpr int kStepTokens = 512;
constexpr int kSlots = 16;

DecoderOptions Options() {
  DecoderOptions options;
  options.context_max = 640;
  options.slots_max = kSlots;
  options.kv_tokens_max = 2048;
  options.step_tokens_max = kStepTokens;
  options.logit_rows_max = kStepTokens;
  options.rows.cache_bytes = 1 << 20;
  return options;
}

std::vector<int32_t> Ids(int count, int seed) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    ids[static_cast<size_t>(i)] = (seed * 7919 + i * 613 + i * i * 31) % 2048;
  }
  return ids;
}

class RealWidthsTest : public testing::TestWithParam<const char*> {
 protected:
  // Computes `ids` in a slot from position `start`, in chunks; the last token's logits. `wanted` is what the chunks
  // before the last, and the tokens before the last, are asked for.
  static std::vector<float> Run(DecoderModel& model, int slot, absl::Span<const int32_t> ids, size_t chunk_tokens,
                                bool all_logits = false) {
    const size_t vocab = static_cast<size_t>(model.limits().vocab_size);
    std::vector<float> logits(vocab * (all_logits ? chunk_tokens : 1));
    size_t rows = 0;
    EXPECT_TRUE(model.OpenSlot(slot, static_cast<int>(ids.size())).ok());
    for (size_t start = 0; start < ids.size(); start += chunk_tokens) {
      Chunk chunk;
      chunk.slot = slot;
      chunk.tokens = ids.subspan(start, chunk_tokens);
      chunk.start = static_cast<int>(start);
      const bool last = start + chunk_tokens >= ids.size();
      chunk.logits = all_logits ? LogitsWanted::kAll : last ? LogitsWanted::kLast : LogitsWanted::kNone;
      rows = all_logits ? chunk.tokens.size() : 1;
      const absl::Status status = model.Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(chunk.status.ok()) << chunk.status;
    }
    model.CloseSlot(slot);
    return {logits.begin() + static_cast<int64_t>((rows - 1) * vocab),
            logits.begin() + static_cast<int64_t>(rows * vocab)};
  }

  // `batch` sequences, of 3, 4, 5, ... tokens first and then one token a step, all in the same steps; every step's
  // logits of every sequence.
  static std::vector<std::vector<float>> Together(DecoderModel& model, int first, int batch, int steps) {
    const size_t vocab = static_cast<size_t>(model.limits().vocab_size);
    std::vector<std::vector<float>> got(static_cast<size_t>(batch));
    std::vector<std::vector<int32_t>> ids;
    for (int s = 0; s < batch; ++s) {
      ids.push_back(Ids(3 + first + s + steps, first + s));
      EXPECT_TRUE(model.OpenSlot(s, static_cast<int>(ids.back().size())).ok());
    }
    std::vector<float> logits(vocab * static_cast<size_t>(batch));
    for (int step = 0; step <= steps; ++step) {
      std::vector<Chunk> chunks(static_cast<size_t>(batch));
      for (int s = 0; s < batch; ++s) {
        Chunk& chunk = chunks[static_cast<size_t>(s)];
        const size_t prompt = static_cast<size_t>(3 + first + s);
        chunk.slot = s;
        chunk.start = step == 0 ? 0 : static_cast<int>(prompt) + step - 1;
        chunk.tokens = absl::MakeConstSpan(ids[static_cast<size_t>(s)])
                           .subspan(static_cast<size_t>(chunk.start), step == 0 ? prompt : 1);
        chunk.logits = LogitsWanted::kLast;
      }
      const absl::Status status = model.Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr);
      EXPECT_TRUE(status.ok()) << status;
      for (int s = 0; s < batch; ++s) {
        EXPECT_TRUE(chunks[static_cast<size_t>(s)].status.ok());
        const auto row = logits.begin() + static_cast<int64_t>(vocab) * s;
        got[static_cast<size_t>(s)].insert(got[static_cast<size_t>(s)].end(), row, row + static_cast<int64_t>(vocab));
      }
    }
    for (int s = 0; s < batch; ++s) {
      model.CloseSlot(s);
    }
    return got;
  }
};

// Beyond the window of 512; a sanitizer's build would take minutes.
constexpr int kPromptTokens = test::kSanitized ? 24 : 540;

// A long prompt: in chunks of 1 to 512, alone on one thread and on two, and with every layer computed
// for every token.
TEST_P(RealWidthsTest, ChunksThreadsAndEarlyStopsChangeNothing) {
  LoadedModel one = LoadModel(ModelPath(GetParam()), Options(), 1);
  LoadedModel two = LoadModel(ModelPath(GetParam()), Options(), 2);
  ASSERT_NE(one.model, nullptr);
  ASSERT_NE(two.model, nullptr);
  const std::vector<int32_t> ids = Ids(kPromptTokens, 1);
  const std::vector<float> expected = Run(*one.model, 0, ids, 512, /*all_logits=*/true);
  for (const float logit : expected) {
    ASSERT_TRUE(std::isfinite(logit));
  }
  ASSERT_NE(*std::max_element(expected.begin(), expected.end()), *std::min_element(expected.begin(), expected.end()));
  EXPECT_EQ(Run(*one.model, 1, ids, 512), expected);
  for (const size_t chunk : {size_t{1}, size_t{2}, size_t{9}, size_t{17}, size_t{60}, size_t{256}, size_t{512}}) {
    EXPECT_EQ(Run(*two.model, 0, ids, chunk), expected) << "chunks of " << chunk;
  }
}

TEST_P(RealWidthsTest, CompanyChangesNothing) {
  LoadedModel model = LoadModel(ModelPath(GetParam()), Options(), 2);
  ASSERT_NE(model.model, nullptr);
  constexpr int kSteps = 3;
  std::vector<std::vector<float>> solo;
  for (int s = 0; s < kSlots; ++s) {
    solo.push_back(Together(*model.model, s, 1, kSteps)[0]);
  }
  EXPECT_NE(solo[0], solo[1]);
  for (const int batch : {2, 3, 4, 5, 8, 11, 16}) {
    const std::vector<std::vector<float>> got = Together(*model.model, 0, batch, kSteps);
    for (int s = 0; s < batch; ++s) {
      EXPECT_EQ(got[static_cast<size_t>(s)], solo[static_cast<size_t>(s)]) << "sequence " << s << " of " << batch;
    }
  }
}

uint64_t ResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) {
      return std::stoull(line.substr(6)) * 1024;
    }
  }
  return 0;
}

// The process grows by what Memory lists, within 3 % (and what Plan foretold), and by little while it loads.
TEST_P(RealWidthsTest, MemoryIsWhatIsItemised) {
  if (test::kSanitized) {
    GTEST_SKIP() << "the sanitizer's own memory would be counted";
  }
  const std::string path = ModelPath(GetParam());
  const uint64_t before = ResidentBytes();
  // As many threads as Plan reckons with.
  LoadedModel model = LoadModel(path, Options(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  ASSERT_NE(model.model, nullptr);
  Run(*model.model, 0, Ids(540, 1), 512, true);
  const double grown = static_cast<double>(ResidentBytes() - before);
  uint64_t itemised = 0;
  for (const MemoryPart& part : model->Memory()) {
    itemised += part.bytes;
  }
  auto file = storage::GgufFile::Open(path);
  ASSERT_TRUE(file.ok());
  const auto plan = DecoderModel::Plan(**file, Options());
  ASSERT_TRUE(plan.ok());
  uint64_t planned = 0;
  for (const MemoryPart& part : *plan) {
    planned += part.bytes;
  }
  // Beside the model the test holds the logits of a chunk and the file's header.
  const double logits = 512.0 * 2048 * sizeof(float);
  EXPECT_NEAR(grown - logits, static_cast<double>(itemised), 0.03 * static_cast<double>(itemised));
  EXPECT_NEAR(static_cast<double>(planned), static_cast<double>(itemised), 0.03 * static_cast<double>(itemised));
}

INSTANTIATE_TEST_SUITE_P(Families, RealWidthsTest, testing::Values("gemma4-e2b", "gemma3n-e2b"), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace embergate::engine
