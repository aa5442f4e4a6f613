// Plans for the golden checkpoints, whose sizes are known, and estimates checked by hand.
#include "server/model_plan.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "server/dram_plan.h"
#include "server/machine_state.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

std::unique_ptr<storage::GgufFile> OpenGolden(const std::string& name) {
  auto file = storage::GgufFile::Open(engine::GoldenGguf(name));
  EXPECT_TRUE(file.ok()) << file.status();
  return *std::move(file);
}

uint64_t PlanBytes(const storage::GgufFile& file, int slots, int context) {
  ModelHostOptions options;
  options.decoder.slots_max = slots;
  options.decoder.context_max = context;
  const auto info = engine::DecoderModel::Describe(file);
  EXPECT_TRUE(info.ok()) << info.status();
  const auto parts = PlanDram(file, *info, options, 0);
  EXPECT_TRUE(parts.ok()) << parts.status();
  uint64_t bytes = 0;
  for (const engine::MemoryPart& part : *parts) {
    bytes += part.bytes;
  }
  return bytes;
}

TEST(ModelPlanTest, CostCountsWhatAStepReads) {
  const auto file = OpenGolden("gemma4-tiny-e2b");
  const auto cost = CostOf(*file);
  ASSERT_TRUE(cost.ok()) << cost.status();
  const auto info = engine::DecoderModel::Describe(*file);
  const storage::GgufTensor* table = file->FindTensor("per_layer_token_embd.weight");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(cost->flash_bytes, table->row_bytes());
  EXPECT_GT(cost->step_weight_bytes, 0u);
  EXPECT_LT(cost->step_weight_bytes, info->file_bytes - info->table_bytes);
  // Without the output head and the layers that share keys and values.
  EXPECT_LT(cost->prompt_multiply_adds, cost->decode_multiply_adds);
  EXPECT_GT(cost->prompt_multiply_adds, 0u);
}

TEST(ModelPlanTest, EstimateByHand) {
  TokenCost cost;
  cost.step_weight_bytes = 900;
  cost.decode_multiply_adds = 40;
  cost.prompt_multiply_adds = 20;
  MachineRates rates;
  rates.read_bytes_per_second = 1000;
  rates.multiply_adds_per_second = 100;
  EXPECT_DOUBLE_EQ(DecodeTokensPerSecond(cost, rates, 1), 1 / (1.0 + 1.0));
  EXPECT_DOUBLE_EQ(DecodeTokensPerSecond(cost, rates, 4), 4 / (1.0 + 4.0));
  EXPECT_DOUBLE_EQ(PromptTokensPerSecond(cost, rates), 2);
}

TEST(ModelPlanTest, WhatIsSaidToFitFitsAndNoMoreDoes) {
  const auto file = OpenGolden("gemma4-tiny-e2b");
  const uint64_t dram = PlanBytes(*file, 2, 1024) + (4u << 20);
  const auto fits = FitModel(*file, ModelHostOptions(), dram);
  ASSERT_TRUE(fits.ok()) << fits.status();
  ASSERT_EQ(fits->size(), 4u);
  int previous = fits->front().context;
  for (const Fit& fit : *fits) {
    EXPECT_LE(fit.context, previous) << "more requests, less context";
    previous = fit.context;
    if (fit.context > 0) {
      EXPECT_LE(fit.bytes, dram);
      EXPECT_GE(fit.bytes, PlanBytes(*file, fit.slots, fit.context));  // and the tokenizer
    }
  }
  const auto none = FitModel(*file, ModelHostOptions(), 1000);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->front().context, 0);
  EXPECT_GT(none->front().bytes, 1000u) << "says what it would need";
}

TEST(BoardTest, NamesAreFoundAndListed) {
  ASSERT_TRUE(FindBoard("pi5").ok());
  EXPECT_LT(FindBoard("pi4")->Rates().read_bytes_per_second, FindBoard("pi5")->Rates().read_bytes_per_second);
  const auto unknown = FindBoard("pi3");
  EXPECT_TRUE(absl::StrContains(unknown.status().message(), "rk3588")) << unknown.status();
}

TEST(MachineStateTest, SavedAndLoaded) {
  const test::TempFolder folder;
  const std::string path = folder.File("new/machine.json");
  MachineRates rates;
  rates.read_bytes_per_second = 1.5e10;
  rates.multiply_adds_per_second = 3e11;
  rates.threads = 4;
  rates.isa = "neon+dotprod";
  ASSERT_TRUE(SaveMachineRates(path, rates).ok());
  const auto loaded = LoadMachineRates(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_DOUBLE_EQ(loaded->read_bytes_per_second, 1.5e10);
  EXPECT_DOUBLE_EQ(loaded->multiply_adds_per_second, 3e11);
  EXPECT_EQ(loaded->threads, 4);
  EXPECT_EQ(loaded->isa, "neon+dotprod");
}

TEST(MachineStateTest, BadFilesAreRefused) {
  const test::TempFolder folder;
  EXPECT_EQ(LoadMachineRates(folder.File("missing")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadMachineRates("").status().code(), absl::StatusCode::kNotFound);
  int number = 0;
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{}"),
        std::string(R"({"read_bytes_per_second": -1, "multiply_adds_per_second": 1e9, "threads": 1})"),
        std::string(R"({"read_bytes_per_second": 1e9, "multiply_adds_per_second": 1e9, "threads": 1e9})"),
        std::string(R"({"read_bytes_per_second": "fast", "multiply_adds_per_second": 1e9, "threads": 1})"),
        std::string(100000, '[')}) {
    const std::string path = folder.Write("bad" + std::to_string(number++), text);
    EXPECT_EQ(LoadMachineRates(path).status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 80);
  }
  EXPECT_FALSE(SaveMachineRates("/proc/nowhere/machine.json", MachineRates()).ok());
}

}  // namespace
}  // namespace embergate::server
