// What storage-test and a first start leave behind, and that later starts use it.
#include "server/device_state.h"

#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/config.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

storage::DeviceProfile Profile(int queue_depth, uint32_t merge_gap_bytes) {
  storage::DeviceProfile profile;
  profile.backend = "io_uring";
  profile.alignment = 512;
  profile.read_bytes = 10240;
  profile.depths = {{1, 7000, 140, 200}, {8, 40000, 200, 300}};
  profile.small_reads_per_second = 60000;
  profile.queue_depth = queue_depth;
  profile.merge_gap_bytes = merge_gap_bytes;
  return profile;
}

class DeviceStateTest : public ::testing::Test {
 protected:
  const test::TempFolder folder_;
  const std::string model_ = folder_.Write("model.gguf", "a file on the device");
  const std::string state_ = folder_.File("some/folder/storage.json");
};

TEST_F(DeviceStateTest, ComesBackAsItWasSaved) {
  EXPECT_EQ(LoadDeviceProfile(state_, model_).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(SaveDeviceProfile(state_, model_, Profile(8, 5000)).ok());
  ASSERT_TRUE(SaveDeviceProfile(state_, model_, Profile(16, 6000)).ok()) << "the later one replaces it";
  const auto loaded = LoadDeviceProfile(state_, model_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->queue_depth, 16);
  EXPECT_EQ(loaded->merge_gap_bytes, 6000u);
  EXPECT_EQ(loaded->alignment, 512u);
  EXPECT_EQ(loaded->read_bytes, 10240u);
}

TEST_F(DeviceStateTest, EachDeviceHasItsOwn) {
  if (!std::filesystem::exists("/proc/version")) {
    GTEST_SKIP() << "no second file system";
  }
  ASSERT_TRUE(SaveDeviceProfile(state_, model_, Profile(8, 5000)).ok());
  EXPECT_EQ(LoadDeviceProfile(state_, "/proc/version").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(SaveDeviceProfile(state_, "/proc/version", Profile(64, 7000)).ok());
  EXPECT_EQ(LoadDeviceProfile(state_, model_)->queue_depth, 8);
  EXPECT_EQ(LoadDeviceProfile(state_, "/proc/version")->queue_depth, 64);
}

TEST_F(DeviceStateTest, WhatItCannotUnderstandIsNeitherUsedNorOverwritten) {
  ASSERT_TRUE(SaveDeviceProfile(state_, model_, Profile(8, 5000)).ok());
  const std::string good = test::ReadFile(state_);
  std::string out_of_range = good;
  out_of_range.replace(out_of_range.find("\"queue_depth\": 8"), 16, "\"queue_depth\": 0");
  for (const std::string& text :
       {std::string("{"), std::string("[]"), good.substr(0, good.size() / 2), std::string(2u << 20, ' ')}) {
    const std::string path = folder_.Write("bad.json", text);
    EXPECT_EQ(LoadDeviceProfile(path, model_).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(SaveDeviceProfile(path, model_, Profile(8, 5000)).ok());
    EXPECT_EQ(test::ReadFile(path), text);
  }
  const auto loaded = LoadDeviceProfile(folder_.Write("range.json", out_of_range), model_);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("storage-test"));
}

TEST_F(DeviceStateTest, AStartUsesWhatIsKnownAndMeasuresWhatIsNot) {
  setenv("XDG_STATE_HOME", folder_.path().c_str(), 1);
  ModelFlags flags;
  flags.model = model_;
  auto options = Resolve(flags);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_TRUE(options->measure_device);
  EXPECT_EQ(options->device_state_path, absl::StrCat(folder_.path(), "/embergate/storage.json"));
  ASSERT_TRUE(SaveDeviceProfile(options->device_state_path, model_, Profile(24, 9000)).ok());
  options = Resolve(flags);
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->measure_device);
  EXPECT_EQ(options->decoder.rows.queue_depth, 24);
  EXPECT_EQ(options->decoder.rows.merge_gap_bytes, 9000u);
  flags.queue_depth = 3;  // what is asked for goes before what was found
  options = Resolve(flags);
  unsetenv("XDG_STATE_HOME");
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->measure_device);
  EXPECT_EQ(options->decoder.rows.queue_depth, 3);
}

}  // namespace
}  // namespace embergate::server
