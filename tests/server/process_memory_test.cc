// Sizes as people write them, the budget that cgroups and the machine leave, and what the process uses.
#include "server/process_memory.h"

#include <filesystem>

#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

TEST(ParseByteSizeTest, Units) {
  EXPECT_EQ(*ParseByteSize("4096"), 4096u);
  EXPECT_EQ(*ParseByteSize("0"), 0u);
  EXPECT_EQ(*ParseByteSize("1500MiB"), 1500ull << 20);
  EXPECT_EQ(*ParseByteSize(" 1.5 gib "), 3ull << 29);
  EXPECT_EQ(*ParseByteSize("2G"), 2ull << 30);
  EXPECT_EQ(*ParseByteSize("1.5GB"), 1'500'000'000u);
  EXPECT_EQ(*ParseByteSize("3k"), 3072u);
}

TEST(ParseByteSizeTest, Nonsense) {
  for (const char* text : {"", "MiB", "1.2.3M", "-5", "1e9", "10 parsecs", "99999999999999T", "nan", "0x10"}) {
    EXPECT_FALSE(ParseByteSize(text).ok()) << text;
  }
}

class FakeRoot {
 public:
  void Put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(folder_.File(path)).parent_path());
    folder_.Write(path, text);
  }
  std::string path() const { return folder_.path() + "/"; }

 private:
  test::TempFolder folder_;
};

TEST(DetectDramBudgetTest, MachineAlone) {
  FakeRoot root;
  root.Put("proc/meminfo", "MemTotal: 9999 kB\nMemAvailable:    1000 kB\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 1000u * 1024 / 10 * 9);
}

TEST(DetectDramBudgetTest, SmallestLimitUpTheCgroupTree) {
  FakeRoot root;
  root.Put("proc/meminfo", "MemAvailable: 8000000 kB\n");
  root.Put("proc/self/cgroup", "0::/system.slice/embergate.service\n");
  root.Put("sys/fs/cgroup/system.slice/embergate.service/memory.max", "max\n");
  root.Put("sys/fs/cgroup/system.slice/memory.max", "1572864000\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 1572864000u);
  root.Put("sys/fs/cgroup/system.slice/embergate.service/memory.high", "1363148800\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 1363148800u) << "beyond it the kernel slows it down";
}

TEST(DetectDramBudgetTest, ContainerWithTheHostsPath) {
  FakeRoot root;
  root.Put("proc/meminfo", "MemAvailable: 8000000 kB\n");
  root.Put("proc/self/cgroup", "0::/docker/0123abcd\n");
  root.Put("sys/fs/cgroup/memory.max", "1073741824\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 1073741824u);
}

TEST(DetectDramBudgetTest, VersionOneAndItsNoLimit) {
  FakeRoot root;
  root.Put("proc/meminfo", "MemAvailable: 1000000 kB\n");
  root.Put("proc/self/cgroup", "4:cpu,cpuacct:/x\n7:memory:/box\n");
  root.Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 1000000ull * 1024 / 10 * 9);
  root.Put("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "500000000\n");
  EXPECT_EQ(*DetectDramBudget(root.path()), 500000000u);
}

TEST(DetectDramBudgetTest, NothingToRead) {
  FakeRoot root;
  EXPECT_FALSE(DetectDramBudget(root.path()).ok());
}

TEST(ProcessUsageTest, IsThisProcess) {
  const ProcessUsage usage = ReadProcessUsage();
  EXPECT_GT(usage.resident_bytes, 1u << 20);
  EXPECT_GE(usage.open_fds, 3u);
  EXPECT_GE(usage.cpu_seconds, 0);
}

TEST(StepThreadTimesTest, SumsThreadsOfStepsOnly) {
  FakeRoot root;
  root.Put("task/7/comm", "embergate\n");
  root.Put("task/7/schedstat", "9000000000 9000000000 1\n");
  root.Put("task/8/comm", "step\n");
  root.Put("task/8/schedstat", "1500000000 250000000 12\n");
  root.Put("task/9/comm", "step worker\n");
  root.Put("task/9/schedstat", "1000000000 500000000 3\n");
  root.Put("task/10/comm", "step worker\n");  // ended meanwhile, or a kernel without these figures
  const StepThreadTimes times = ReadStepThreadTimes(root.path());
  EXPECT_DOUBLE_EQ(times.cpu_seconds, 2.5);
  EXPECT_DOUBLE_EQ(times.delay_seconds, 0.75);
  EXPECT_EQ(ReadStepThreadTimes(root.path() + "nothing").cpu_seconds, 0);
}

}  // namespace
}  // namespace embergate::server
