#include "server/model_host.h"

#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

engine::SamplingParams Defaults(const std::function<void(storage::GgufWriter&)>& add) {
  const test::TempFolder folder;
  auto writer = storage::GgufWriter::Create(folder.File("keys.gguf"));
  EXPECT_TRUE(writer.ok()) << writer.status();
  add(**writer);
  EXPECT_TRUE((*writer)->BeginData().ok());
  EXPECT_TRUE((*writer)->Finish().ok());
  const auto file = storage::GgufFile::Open(folder.File("keys.gguf"));
  EXPECT_TRUE(file.ok()) << file.status();
  return SamplingDefaults(**file);
}

TEST(SamplingDefaultsTest, TheFilesOwnSettingsAreTaken) {
  const engine::SamplingParams params = Defaults([](storage::GgufWriter& writer) {
    writer.AddFloat("general.sampling.temp", 0.7f);
    writer.AddInt32("general.sampling.top_k", 20);
    writer.AddFloat("general.sampling.top_p", 0.8f);
    writer.AddFloat("general.sampling.min_p", 0.05f);
    writer.AddFloat("general.sampling.penalty_repeat", 1.1f);
    writer.AddInt32("general.sampling.penalty_last_n", -1);
  });
  EXPECT_EQ(params.temperature, 0.7f);
  EXPECT_EQ(params.top_k, 20);
  EXPECT_EQ(params.top_p, 0.8f);
  EXPECT_EQ(params.min_p, 0.05f);
  EXPECT_EQ(params.repetition_penalty, 1.1f);
  EXPECT_EQ(params.penalty_window, -1);
}

TEST(SamplingDefaultsTest, WithoutAnyTheyAreThoseOfTheReleasedModels) {
  const engine::SamplingParams params = Defaults([](storage::GgufWriter&) {});
  EXPECT_EQ(params.temperature, 1.0f);
  EXPECT_EQ(params.top_k, 64);
  EXPECT_EQ(params.top_p, 0.95f);
  EXPECT_EQ(params.min_p, 0.0f);
  EXPECT_EQ(params.repetition_penalty, 1.0f);
}

TEST(SamplingDefaultsTest, ValuesThatNoRequestCouldAskForAreNotTaken) {
  const engine::SamplingParams params = Defaults([](storage::GgufWriter& writer) {
    writer.AddFloat("general.sampling.temp", -1.0f);
    writer.AddInt32("general.sampling.top_k", -5);
    writer.AddFloat("general.sampling.top_p", 0.0f);
    writer.AddString("general.sampling.min_p", "much");
    writer.AddFloat("general.sampling.penalty_repeat", 0.0f);
    writer.AddInt32("general.sampling.penalty_last_n", -7);
  });
  EXPECT_EQ(params.temperature, 1.0f);
  EXPECT_EQ(params.top_k, 64);
  EXPECT_EQ(params.top_p, 0.95f);
  EXPECT_EQ(params.min_p, 0.0f);
  EXPECT_EQ(params.repetition_penalty, 1.0f);
  EXPECT_EQ(params.penalty_window, engine::SamplingParams().penalty_window);
}

}  // namespace
}  // namespace embergate::server
