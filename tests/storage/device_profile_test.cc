#include "storage/device_profile.h"

#include <algorithm>
#include <cstdint>

#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

TEST(DeviceProfileTest, TheDepthIsTheSmallestThatComesNearTheBest) {
  DeviceProfile profile;
  profile.alignment = 512;
  profile.read_bytes = 10240;
  profile.depths = {{1, 11000, 90, 120}, {8, 60000, 130, 200}, {32, 85000, 370, 500}, {64, 86000, 740, 900}};
  Recommend(profile);
  EXPECT_EQ(profile.queue_depth, 32);
  EXPECT_EQ(profile.merge_gap_bytes, 4096u);  // unknown without the rate of small reads
  profile.small_reads_per_second = 136000;
  Recommend(profile);
  // 7.35 us per read and 0.45 us per KiB: 16 KiB, less the block.
  EXPECT_NEAR(profile.merge_gap_bytes, 15600, 500);
  profile.small_reads_per_second = 80000;  // slower than the long ones: noise
  Recommend(profile);
  EXPECT_EQ(profile.merge_gap_bytes, 4096u);
}

TEST(DeviceProfileTest, AmplificationCountsWholeBlocks) {
  EXPECT_DOUBLE_EQ(ReadAmplification(0, 4096, 4096), 1.0);
  EXPECT_DOUBLE_EQ(ReadAmplification(512, 4096, 4096), 2.0);
  EXPECT_NEAR(ReadAmplification(1344, 9520, 512), 1.052, 0.005);
  EXPECT_NEAR(ReadAmplification(1344, 9520, 4096), 1.43, 0.02);
}

class DeviceMeasureTest : public RowStoreReaderTest {};
INSTANTIATE_TEST_SUITE_P(Readers, DeviceMeasureTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(DeviceMeasureTest, MeasuresEveryDepth) {
  DeviceTestOptions options;
  options.reader = GetParam();
  options.seconds_per_depth = 0.01;
  int seen = 0;
  options.on_depth = [&](const DeviceDepth&) { ++seen; };
  const auto profile = MeasureDevice(path_, 1344, 9520 * kRows, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(seen, 7);
  ASSERT_EQ(profile->depths.size(), 7u);
  for (const DeviceDepth& depth : profile->depths) {
    EXPECT_GT(depth.reads_per_second, 0);
    EXPECT_GT(depth.latency_us_mean, 0);
  }
  EXPECT_GE(profile->queue_depth, 1);
  EXPECT_LE(profile->queue_depth, 64);
  EXPECT_GT(profile->small_reads_per_second, 0);
  EXPECT_EQ(MeasureDevice(path_, 0, 1000, options).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MeasureDevice(path_ + ".absent", 0, 0, options).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(DeviceMeasureTest, EndsAfterAsManyReadsAsItMayMake) {
  DeviceTestOptions options;
  options.reader = GetParam();
  options.seconds_per_depth = 3600;
  options.reads_per_depth_max = 20;
  const auto profile = MeasureDevice(path_, 1344, 9520 * kRows, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  for (const DeviceDepth& depth : profile->depths) {
    EXPECT_EQ(depth.reads, static_cast<uint64_t>(std::max(depth.depth, 20)));
  }
}

}  // namespace
}  // namespace embergate::storage
