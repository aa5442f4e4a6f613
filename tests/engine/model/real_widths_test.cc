// The promises of DecoderModel at the real widths, head sizes and window of the E2B models, in Q4_0 (few layers and a
// small vocabulary keep it quick): a token's logits are the same bits alone and in company, however its prompt was cut,
// on one thread or two, with all layers computed for every token or only what is needed, whether its prompt's beginning
// was computed or cached; memory is what is itemised, also while loading; the page cache stays as it was; and the
// profile accounts for the whole step.
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "engine/cpus.h"
#include "engine/kernels/kernels.h"
#include "engine/model/weight_reader.h"
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
  // Large blocks go back to the system at once, whatever tests came before: left to itself, malloc learns to keep them.
  static void SetUpTestSuite() { mallopt(M_MMAP_THRESHOLD, 128 << 10); }

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

  // A sequence whose slot is open and holds the positions before `start`.
  struct Part {
    int slot = 0;
    absl::Span<const int32_t> ids;
    int start = 0;
  };
  // All parts in the same steps: what is missing but for the last `steps` tokens, then one token a step; every step's
  // logits of every part. Closes the slots.
  static std::vector<std::vector<float>> Lockstep(DecoderModel& model, const std::vector<Part>& parts, int steps) {
    const size_t vocab = static_cast<size_t>(model.limits().vocab_size);
    std::vector<std::vector<float>> got(parts.size());
    std::vector<float> logits(vocab * parts.size());
    for (int step = 0; step <= steps; ++step) {
      std::vector<Chunk> chunks(parts.size());
      for (size_t p = 0; p < parts.size(); ++p) {
        const Part& part = parts[p];
        const int first_end = static_cast<int>(part.ids.size()) - steps;
        chunks[p].slot = part.slot;
        chunks[p].start = step == 0 ? part.start : first_end + step - 1;
        chunks[p].tokens = part.ids.subspan(static_cast<size_t>(chunks[p].start),
                                            step == 0 ? static_cast<size_t>(first_end - part.start) : size_t{1});
        chunks[p].logits = LogitsWanted::kLast;
      }
      const absl::Status status = model.Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr);
      EXPECT_TRUE(status.ok()) << status;
      for (size_t p = 0; p < parts.size(); ++p) {
        EXPECT_TRUE(chunks[p].status.ok()) << chunks[p].status;
        const auto row = logits.begin() + static_cast<int64_t>(vocab * p);
        got[p].insert(got[p].end(), row, row + static_cast<int64_t>(vocab));
      }
    }
    for (const Part& part : parts) {
      model.CloseSlot(part.slot);
    }
    return got;
  }

  // `batch` sequences, of 3, 4, 5, ... tokens first and then one token a step.
  static std::vector<std::vector<float>> Together(DecoderModel& model, int first, int batch, int steps) {
    std::vector<std::vector<int32_t>> ids;
    std::vector<Part> parts;
    for (int s = 0; s < batch; ++s) {
      ids.push_back(Ids(3 + first + s + steps, first + s));
      EXPECT_TRUE(model.OpenSlot(s, static_cast<int>(ids.back().size())).ok());
    }
    for (int s = 0; s < batch; ++s) {
      parts.push_back({s, ids[static_cast<size_t>(s)], 0});
    }
    return Lockstep(model, parts, steps);
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

// Sequences that begin alike: computed alone, each from its first token, and from the cached prefix in one step with
// the others.
TEST_P(RealWidthsTest, CachedPrefixesChangeNothing) {
  LoadedModel model = LoadModel(ModelPath(GetParam()), Options(), 2);
  ASSERT_NE(model.model, nullptr);
  constexpr int kSteps = 2;
  constexpr size_t kSequences = 5;
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> cold;
  for (size_t s = 0; s < kSequences; ++s) {
    const int own = 1 + 7 * static_cast<int>(s);
    ids.push_back(Ids(kPromptTokens, 1));
    const std::vector<int32_t> rest = Ids(own + kSteps, 100 + static_cast<int>(s));
    ids.back().insert(ids.back().end(), rest.begin(), rest.end());
    ASSERT_TRUE(model->OpenSlot(0, static_cast<int>(ids.back().size())).ok());
    constexpr int kHead = kPromptTokens / 2;  // the whole is more than a step takes
    Chunk head;
    head.tokens = absl::MakeConstSpan(ids.back()).subspan(0, kHead);
    ASSERT_TRUE(model->Step(absl::MakeSpan(&head, 1), {}, nullptr).ok());
    cold.push_back(Lockstep(*model.model, {{0, ids.back(), kHead}}, kSteps)[0]);
  }
  EXPECT_NE(cold[0], cold[1]);
  for (const size_t batch : {size_t{1}, size_t{2}, kSequences}) {
    std::vector<Part> parts;
    for (size_t s = 0; s < batch; ++s) {
      const int slot = static_cast<int>(s);
      const absl::Span<const int32_t> all = ids[s];
      const absl::StatusOr<int> reused = model->OpenSlotWithPrefix(
          slot, static_cast<int>(all.size()), all.subspan(0, all.size() - kSteps - 1), /*scope=*/0);
      ASSERT_TRUE(reused.ok()) << reused.status();
      if (batch > 1) {
        EXPECT_GE(*reused, kPromptTokens) << "sequence " << s << " of " << batch;
      }
      parts.push_back({slot, all, *reused});
      if (*reused == 0) {  // the very first fills the cache
        Chunk head;
        head.slot = slot;
        head.start = *reused;
        head.tokens = all.subspan(static_cast<size_t>(*reused), kPromptTokens / 2);
        ASSERT_TRUE(model->Step(absl::MakeSpan(&head, 1), {}, nullptr).ok());
        parts.back().start += kPromptTokens / 2;
      }
    }
    const std::vector<std::vector<float>> got = Lockstep(*model.model, parts, kSteps);
    for (size_t s = 0; s < batch; ++s) {
      EXPECT_EQ(got[s], cold[s]) << "sequence " << s << " of " << batch;
    }
  }
}

// The tests above on each of the other instruction sets that this machine has.
TEST_P(RealWidthsTest, EveryInstructionSetKeepsThePromise) {
  for (const std::string& isa : AvailableKernelIsas()) {
    if (isa == AvailableKernelIsas().front() || isa == "reference") {
      continue;
    }
    ASSERT_TRUE(ForceKernelIsa(isa).ok());
    {
      LoadedModel model = LoadModel(ModelPath(GetParam()), Options(), 2);
      ASSERT_NE(model.model, nullptr);
      const std::vector<std::vector<float>> together = Together(*model.model, 0, kSlots, 1);
      for (const int s : {0, 6, kSlots - 1}) {
        EXPECT_EQ(Together(*model.model, s, 1, 1)[0], together[static_cast<size_t>(s)]) << isa << " sequence " << s;
      }
      const std::vector<int32_t> ids = Ids(130, 1);
      const std::vector<float> whole = Run(*model.model, 0, ids, ids.size());
      for (const size_t chunk : {size_t{1}, size_t{7}, size_t{50}}) {
        EXPECT_EQ(Run(*model.model, 0, ids, chunk), whole) << isa << " chunks of " << chunk;
      }
    }
    ASSERT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok());
  }
}

// Layers that own no keys and values, the last owning one's queries and what follows, and the head: for those tokens
// alone whose logits are wanted.
TEST_P(RealWidthsTest, TokensWithoutLogitsStopAtTheSharingLayers) {
  LoadedModel model = LoadModel(ModelPath(GetParam()), Options(), 2);
  ASSERT_NE(model.model, nullptr);
  std::map<std::string, int> tokens;
  const DecoderModel::Probe probe = [&](const char* name, int layer, const float*, int n, int64_t) {
    tokens[absl::StrCat(name, ".", layer)] += n;
  };
  model->SetProbe(&probe);
  constexpr int kTokens = 20;
  std::vector<float> logits(static_cast<size_t>(kTokens * model.vocab()));
  const std::vector<int32_t> ids = Ids(kTokens, 2);
  for (const auto& [wanted, count] : {std::make_pair(LogitsWanted::kNone, 0), std::make_pair(LogitsWanted::kLast, 1),
                                      std::make_pair(LogitsWanted::kAll, kTokens)}) {
    tokens.clear();
    model->ResetProfile();
    ASSERT_TRUE(model->OpenSlot(0, kTokens).ok());
    Chunk chunk;
    chunk.tokens = ids;
    chunk.logits = wanted;
    ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
    model->CloseSlot(0);
    EXPECT_EQ(tokens["mlp_out.0"], kTokens);
    EXPECT_EQ(tokens["attn_in.1"], kTokens);  // whose keys and values later tokens see
    EXPECT_EQ(tokens["attn_out.1"], count);
    for (int layer = 1; layer < 4; ++layer) {
      EXPECT_EQ(tokens[absl::StrCat("mlp_out.", layer)], count) << "layer " << layer;
    }
    EXPECT_EQ(tokens["final_norm.0"], count);
    EXPECT_EQ(model->profile().ns[static_cast<size_t>(StepOp::kHead)] > 0, count > 0);
  }
}

// Bytes of VmRSS or VmHWM; 0 if the kernel does not tell.
uint64_t ProcessBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) {
      return std::stoull(line.substr(key.size() + 1)) * 1024;
    }
  }
  return 0;
}

// From now on VmHWM is what is resident at most from now on.
bool ResetPeak() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << 5 << std::flush;
  return clear.good();
}

// The process grows by what Memory lists, within 3 % (and what Plan foretold); while it loads, by the buffers that the
// file is read into at most: nothing is there twice.
TEST_P(RealWidthsTest, MemoryIsWhatIsItemised) {
  if (test::kSanitized) {
    GTEST_SKIP() << "the sanitizer's own memory would be counted";
  }
  const std::string path = ModelPath(GetParam());
  const bool peak_known = ResetPeak();
  const uint64_t before = ProcessBytes("VmRSS");
  // As many threads as Plan reckons with.
  LoadedModel model = LoadModel(path, Options(), static_cast<int>(UsableCpus().cpus.size()));
  ASSERT_NE(model.model, nullptr);
  const double peak = static_cast<double>(ProcessBytes("VmHWM") - before);
  Run(*model.model, 0, Ids(540, 1), 512, true);
  const double grown = static_cast<double>(ProcessBytes("VmRSS") - before);
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
  if (peak_known) {
    const double buffers = kWeightReadBuffers * static_cast<double>(kWeightReadBytes);
    EXPECT_LE(peak, 1.03 * static_cast<double>(itemised) + buffers + (1 << 20));
    std::printf("itemised %.1f MB, peak while loading %.1f MB\n", static_cast<double>(itemised) * 1e-6, peak * 1e-6);
  }
}

// Pages of a file that are in the page cache.
int64_t CachedPages(int fd) {
  const size_t bytes = static_cast<size_t>(lseek(fd, 0, SEEK_END));
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* const map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  EXPECT_NE(map, MAP_FAILED);
  std::vector<unsigned char> pages((bytes + page - 1) / page);
  EXPECT_EQ(mincore(map, bytes, pages.data()), 0);
  munmap(map, bytes);
  return std::count_if(pages.begin(), pages.end(), [](unsigned char state) { return (state & 1) != 0; });
}

// Loading, and reading rows, evicts nothing that others keep in the page cache: the file does not pass through it.
TEST_P(RealWidthsTest, NothingStaysInThePageCache) {
  const std::string path = ModelPath(GetParam());
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(fsync(fd), 0);
  ASSERT_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  const int64_t before = CachedPages(fd);
  LoadedModel model = LoadModel(path, Options(), 2);
  ASSERT_NE(model.model, nullptr);
  const bool direct = model->RowStats().direct_io;
  Run(*model.model, 0, Ids(60, 3), 20);
  EXPECT_GT(model->RowStats().rows_read, 0u);
  const int64_t after = CachedPages(fd);
  close(fd);
  if (before != 0 || !direct) {
    GTEST_SKIP() << "the file system has no O_DIRECT, or keeps " << before << " pages whatever it is told (a tmpfs?)";
  }
  EXPECT_LE(after, 16) << "pages, where the header's are expected";
}

// Prompts and tokens, with and without logits: what the profile's operations take adds up to what the steps took.
TEST_P(RealWidthsTest, TheProfileAddsUpToTheStep) {
  LoadedModel model = LoadModel(ModelPath(GetParam()), Options(), 2);
  ASSERT_NE(model.model, nullptr);
  const std::vector<int32_t> ids = Ids(200, 4);
  std::vector<float> logits(static_cast<size_t>(model.vocab()));
  ASSERT_TRUE(model->OpenSlot(0, 200).ok());
  uint64_t steps = 0;
  for (int start = 0, count = 90; start < 200; start += count, count = start == 180 ? 1 : count) {
    model->ResetProfile();
    Chunk chunk;
    chunk.start = start;
    chunk.tokens = absl::MakeConstSpan(ids).subspan(static_cast<size_t>(start), static_cast<size_t>(count));
    chunk.logits = start == 0 ? LogitsWanted::kNone : LogitsWanted::kLast;
    StepTimes times;
    ASSERT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), &times).ok());
    const double total = static_cast<double>(times.total_ns);
    const double profile = static_cast<double>(model->profile().total_ns());
    EXPECT_LE(profile, total);
    // What is outside of the operations: the slots' bookkeeping. A step of which the system takes the CPU away just
    // there is one of a few.
    steps += profile >= 0.98 * total - 20e3 ? 1 : 0;
  }
  EXPECT_GE(steps, 19u) << "of 22";
}

INSTANTIATE_TEST_SUITE_P(Families, RealWidthsTest, testing::Values("gemma4-e2b", "gemma3n-e2b"), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace embergate::engine
