// Sensors as boards have them, in a folder made up like sysfs.
#include "server/board_sensors.h"

#include <filesystem>

#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

class FakeSysfs {
 public:
  void Put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(folder_.File(path)).parent_path());
    folder_.Write(path, text);
  }
  std::string path() const { return folder_.path(); }

 private:
  test::TempFolder folder_;
};

TEST(BoardSensorsTest, ZonesAndClocksInOrder) {
  FakeSysfs sysfs;
  for (const char* zone : {"10", "2"}) {
    sysfs.Put(std::string("class/thermal/thermal_zone") + zone + "/type", "cpu-thermal\n");
    sysfs.Put(std::string("class/thermal/thermal_zone") + zone + "/temp", zone[0] == '2' ? "54321\n" : "-5000\n");
  }
  sysfs.Put("class/thermal/cooling_device0/type", "Processor\n");
  sysfs.Put("devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1500000\n");
  sysfs.Put("devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1800000\n");
  sysfs.Put("devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2400000\n");
  const BoardSensors sensors = ReadBoardSensors(sysfs.path());
  ASSERT_EQ(sensors.temperatures.size(), 2u);
  EXPECT_EQ(sensors.temperatures[0].zone, "cpu-thermal");
  EXPECT_DOUBLE_EQ(sensors.temperatures[0].celsius, 54.321);
  EXPECT_EQ(sensors.temperatures[1].zone, "cpu-thermal-thermal_zone10");
  EXPECT_DOUBLE_EQ(sensors.temperatures[1].celsius, -5);
  ASSERT_EQ(sensors.clocks.size(), 1u);
  EXPECT_EQ(sensors.clocks[0].policy, "policy0");
  EXPECT_DOUBLE_EQ(sensors.clocks[0].current_hz, 1.5e9);
  EXPECT_DOUBLE_EQ(sensors.clocks[0].limit_hz, 1.8e9);
  EXPECT_DOUBLE_EQ(sensors.clocks[0].max_hz, 2.4e9);
}

TEST(BoardSensorsTest, WhatIsMissingIsLeftOut) {
  FakeSysfs sysfs;
  EXPECT_TRUE(ReadBoardSensors(sysfs.path()).temperatures.empty());
  EXPECT_TRUE(ReadBoardSensors("/nowhere").clocks.empty());
  sysfs.Put("class/thermal/thermal_zone0/type", "gpu\n");  // no temp
  sysfs.Put("class/thermal/thermal_zone1/type", "npu\n");
  sysfs.Put("class/thermal/thermal_zone1/temp", "hot\n");
  sysfs.Put("devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "1\n");
  const BoardSensors sensors = ReadBoardSensors(sysfs.path());
  EXPECT_TRUE(sensors.temperatures.empty());
  EXPECT_TRUE(sensors.clocks.empty());
}

}  // namespace
}  // namespace embergate::server
