#include "storage/read_planner.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace embergate::storage {
namespace {

RowRange Range(uint64_t begin, uint32_t bytes, uint32_t file = 0) {
  RowRange range;
  range.file = file;
  range.begin = begin;
  range.bytes = bytes;
  return range;
}

std::vector<PlannedRead> Plan(std::vector<RowRange> ranges, uint32_t gap = 0, uint32_t max = 1 << 20) {
  std::vector<PlannedRead> reads;
  const std::vector<uint32_t> alignment = {512, 4096};
  PlanReads(absl::MakeSpan(ranges), alignment, gap, max, &reads);
  return reads;
}

TEST(ReadPlannerTest, ALoneRangeIsRoundedToBlocks) {
  const std::vector<PlannedRead> reads = Plan({Range(1000, 100)});
  ASSERT_EQ(reads.size(), 1u);
  EXPECT_EQ(reads[0].begin, 512u);
  EXPECT_EQ(reads[0].bytes, 1024u);
  EXPECT_EQ(reads[0].needed, 1100u - 512);
}

TEST(ReadPlannerTest, RangesThatShareABlockShareARead) {
  EXPECT_EQ(Plan({Range(0, 600), Range(600, 600)}).size(), 1u);
  EXPECT_EQ(Plan({Range(0, 512), Range(512, 512)}).size(), 1u);   // touching
  EXPECT_EQ(Plan({Range(0, 512), Range(1024, 512)}).size(), 2u);  // a block apart
  EXPECT_EQ(Plan({Range(0, 512), Range(1024, 512)}, 512).size(), 1u);
}

TEST(ReadPlannerTest, FilesAndLengthSeparate) {
  EXPECT_EQ(Plan({Range(0, 100, 0), Range(100, 100, 1)}).size(), 2u);
  EXPECT_EQ(Plan({Range(0, 512), Range(512, 512), Range(1024, 512)}, 0, 1024).size(), 2u);
  EXPECT_EQ(Plan({Range(0, 5000)}, 0, 1024).size(), 1u);  // a range is never cut
  EXPECT_EQ(Plan({Range(1, 1, 1)})[0].bytes, 4096u);
}

// Every range lies in exactly one read, in order, within its needed bytes; reads are whole blocks, sorted, bounded.
TEST(ReadPlannerTest, RandomRangesAreCovered) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<RowRange> ranges;
    const size_t count = random() % 60;
    for (size_t i = 0; i < count; ++i) {
      ranges.push_back(Range(random() % 100000, static_cast<uint32_t>(1 + random() % 3000), random() % 2));
      ranges.back().row = static_cast<uint32_t>(i);
    }
    const std::vector<uint32_t> alignment = {512, 4096};
    const uint32_t gap = static_cast<uint32_t>(random() % 5000);
    const uint32_t max = 8192 + static_cast<uint32_t>(random() % 20000);
    std::vector<PlannedRead> reads;
    PlanReads(absl::MakeSpan(ranges), alignment, gap, max, &reads);
    uint32_t next = 0;
    for (const PlannedRead& read : reads) {
      ASSERT_EQ(read.first, next);
      ASSERT_GE(read.count, 1u);
      ASSERT_EQ(read.begin % alignment[read.file], 0u);
      ASSERT_EQ(read.bytes % alignment[read.file], 0u);
      ASSERT_LE(read.bytes, max);
      ASSERT_LE(read.needed, read.bytes);
      uint64_t last_end = 0;
      for (uint32_t i = read.first; i < read.first + read.count; ++i) {
        ASSERT_EQ(ranges[i].file, read.file);
        ASSERT_GE(ranges[i].begin, read.begin);
        last_end = std::max(last_end, ranges[i].begin + ranges[i].bytes);
      }
      ASSERT_EQ(last_end, read.begin + read.needed);
      next += read.count;
    }
    ASSERT_EQ(next, ranges.size());
  }
}

}  // namespace
}  // namespace embergate::storage
