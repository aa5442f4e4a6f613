#include "engine/cpus.h"

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

// An RK3588 as its kernel describes it: four small cores, then four big ones, two of which clock a little lower.
class CpusTest : public testing::Test {
 protected:
  CpusTest() {
    const int capacities[] = {530, 530, 530, 530, 1024, 1024, 1018, 1018};
    for (int cpu = 0; cpu < 8; ++cpu) {
      const std::string folder = folder_.File(absl::StrCat("devices/system/cpu/cpu", cpu));
      std::filesystem::create_directories(folder);
      std::ofstream(folder + "/cpu_capacity") << capacities[cpu] << "\n";
    }
  }
  test::TempFolder folder_;
};

TEST_F(CpusTest, BigCoresComeFirst) {
  const CpuOrder order = OrderCpus({0, 1, 2, 3, 4, 5, 6, 7}, folder_.path());
  EXPECT_EQ(order.cpus, (std::vector<int>{4, 5, 6, 7, 0, 1, 2, 3}));
  EXPECT_TRUE(order.unequal);
}

TEST_F(CpusTest, OnlyThoseGivenAreOrdered) {
  const CpuOrder mixed = OrderCpus({1, 2, 6}, folder_.path());
  EXPECT_EQ(mixed.cpus, (std::vector<int>{6, 1, 2}));
  EXPECT_TRUE(mixed.unequal);
  const CpuOrder small = OrderCpus({3, 0}, folder_.path());
  EXPECT_EQ(small.cpus, (std::vector<int>{0, 3}));
  EXPECT_FALSE(small.unequal);
}

TEST_F(CpusTest, WhereNothingIsPublishedAllAreEqual) {
  const CpuOrder order = OrderCpus({2, 0, 1}, folder_.File("nothing"));
  EXPECT_EQ(order.cpus, (std::vector<int>{0, 1, 2}));
  EXPECT_FALSE(order.unequal);
}

// As taskset or a container's cpuset would leave it: of the whole process, whatever the calling thread is tied to.
TEST(UsableCpusTest, AreThoseThatTheProcessMayUse) {
  const std::vector<int> all = UsableCpus().cpus;
  ASSERT_FALSE(all.empty());
  std::thread pinned([&] {
    PinThisThread(all.back());
    EXPECT_EQ(UsableCpus().cpus, all);
  });
  pinned.join();
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  PinThisThread(all.back());
  EXPECT_EQ(UsableCpus().cpus, std::vector<int>{all.back()});
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace embergate::engine
