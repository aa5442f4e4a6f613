// The DRAM plan of a whole server: what a budget is held against, and what a refusal says.
#include "server/dram_plan.h"

#include <algorithm>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

uint64_t Total(const std::vector<engine::MemoryPart>& parts) {
  uint64_t total = 0;
  for (const engine::MemoryPart& part : parts) {
    total += part.bytes;
  }
  return total;
}

class DramPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto file = storage::GgufFile::Open(engine::GoldenGguf("gemma4-tiny-e2b"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    auto info = engine::DecoderModel::Describe(*file_);
    ASSERT_TRUE(info.ok()) << info.status();
    info_ = *info;
    options_.decoder.context_max = 160;
    options_.decoder.rows.cache_bytes = 16 << 20;
    options_.transport_bytes_max = 16 << 20;
    options_.pending_bytes_max = 1 << 20;
  }
  uint64_t Needed(const ModelHostOptions& options) {
    const auto parts = PlanDram(*file_, info_, options, 1000);
    EXPECT_TRUE(parts.ok()) << parts.status();
    return Total(*parts);
  }

  std::unique_ptr<storage::GgufFile> file_;
  engine::ModelInfo info_;
  ModelHostOptions options_;
};

TEST_F(DramPlanTest, NamesEveryPart) {
  const auto parts = PlanDram(*file_, info_, options_, 1000);
  ASSERT_TRUE(parts.ok()) << parts.status();
  for (const char* name : {"weights", "kv_cache", "row_cache", "row_buffers", "scratch", "logits_and_sampler",
                           "tokenizer", "binary", "grpc_buffers", "requests", "allocator_slack"}) {
    EXPECT_TRUE(std::any_of(parts->begin(), parts->end(), [&](const auto& part) {
      return part.name == name && part.bytes > 0;
    })) << name;
  }
}

TEST_F(DramPlanTest, TheSmallestBudgetItNamesIsTheSmallestThatWillDo) {
  const uint64_t needed = Needed(options_);
  options_.decoder.dram_budget_bytes = needed - 1;
  const absl::Status refused = CheckDramBudget(*file_, info_, options_, 1000);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr(absl::StrCat("(", needed, " bytes)")));
  options_.decoder.dram_budget_bytes = needed;
  EXPECT_TRUE(CheckDramBudget(*file_, info_, options_, 1000).ok());
  options_.decoder.dram_budget_bytes = 0;
  EXPECT_TRUE(CheckDramBudget(*file_, info_, options_, 1000).ok()) << "none was set";
}

TEST_F(DramPlanTest, WhatIsHeldDoesNotExceedThePlan) {
  options_.path = engine::GoldenGguf("gemma4-tiny-e2b");
  // The plan is made for as many workers as the machine has processors.
  options_.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const auto host = ModelHost::Load(options_, nullptr);
  ASSERT_TRUE(host.ok()) << host.status();
  const auto plan = PlanDram(*file_, info_, options_, (*host)->served().tokenizer->resident_bytes());
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const engine::MemoryPart& held : (*host)->served().memory()) {
    const auto planned =
        std::find_if(plan->begin(), plan->end(), [&](const auto& part) { return part.name == held.name; });
    ASSERT_NE(planned, plan->end()) << held.name;
    EXPECT_LE(held.bytes, planned->bytes) << held.name;
  }
  EXPECT_EQ((*host)->served().memory().size(), plan->size());
}

TEST_F(DramPlanTest, ARowCacheNeedsNoMoreThanTheTable) {
  const uint64_t needed = Needed(options_);
  options_.decoder.rows.cache_bytes = uint64_t{1} << 40;
  EXPECT_EQ(Needed(options_), needed) << "16 MiB hold all of this table";
  options_.decoder.rows.cache_bytes = 16 << 10;
  EXPECT_LT(Needed(options_), needed);
}

TEST_F(DramPlanTest, ASmallerRowCacheSavesWhereTheTableIsLarge) {
  engine::ModelShape shape = *engine::FindModelShape("gemma4-tiny");
  shape.vocab = shape.ple_rows = 65536;
  const test::TempFolder folder;
  const std::string path = folder.File("model.gguf");
  ASSERT_TRUE(engine::SynthesiseModel(shape, path, engine::SynthOptions()).ok());
  file_ = *storage::GgufFile::Open(path);
  info_ = *engine::DecoderModel::Describe(*file_);
  options_.decoder.dram_budget_bytes = 1 << 20;
  EXPECT_THAT(std::string(CheckDramBudget(*file_, info_, options_, 1000).message()),
              HasSubstr("--row-cache 4MiB saves 12 MiB"));
}

TEST_F(DramPlanTest, SaysWhatEachSettingWouldSave) {
  options_.decoder.dram_budget_bytes = 1 << 20;
  const std::string message(CheckDramBudget(*file_, info_, options_, 1000).message());
  EXPECT_THAT(message, AllOf(HasSubstr("--slots 4 saves "), HasSubstr("--queue-bytes 4MiB saves 12 MiB"),
                             HasSubstr("--grpc-buffers 8MiB saves 8 MiB")));
  EXPECT_THAT(message, Not(AnyOf(HasSubstr("--context"), HasSubstr("--row-cache"))))
      << "160 tokens are few already, and 4 MiB hold this table, too";
  ModelHostOptions lower = options_;
  lower.decoder.slots_max = 4;
  const size_t at = message.find("--slots 4 saves ") + 16;
  uint64_t saves = 0;
  ASSERT_TRUE(absl::SimpleAtoi(message.substr(at, message.find(' ', at) - at), &saves)) << message;
  EXPECT_EQ((Needed(options_) - Needed(lower) + (1 << 20) - 1) >> 20, saves);
}

}  // namespace
}  // namespace embergate::server
