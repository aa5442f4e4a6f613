// Energy meters over folders that look like the kernel's.
#include "engine/energy_meter.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

class EnergyMeterTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = std::filesystem::path(folder_.File("sys")) / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }
  std::unique_ptr<SampledEnergyMeter> Find() { return FindSampledEnergyMeter(folder_.File("sys"), 0); }

  test::TempFolder folder_;
};

TEST_F(EnergyMeterTest, ThereMayBeNone) {
  EXPECT_EQ(Find(), nullptr);
  Write("class/hwmon/hwmon0/name", "coretemp");
  Write("class/hwmon/hwmon0/power1_input", "5000000");
  EXPECT_EQ(Find(), nullptr) << "not every sensor measures the board";
  EXPECT_EQ(FindEnergyMeter(folder_.File("sys")), nullptr);
}

TEST_F(EnergyMeterTest, RaplCountersAreAddedAndWrap) {
  for (const char* zone : {"intel-rapl:0", "intel-rapl:1", "intel-rapl-mmio:0"}) {
    Write(std::string("class/powercap/") + zone + "/name",
          zone[std::string(zone).size() - 1] == '1' ? "package-1" : "package-0");
    Write(std::string("class/powercap/") + zone + "/max_energy_range_uj", "10000000");
    Write(std::string("class/powercap/") + zone + "/energy_uj", "9000000");
  }
  Write("class/powercap/intel-rapl:0:0/name", "core");
  Write("class/powercap/intel-rapl:0:0/energy_uj", "1");
  const auto meter = Find();
  ASSERT_NE(meter, nullptr);
  EXPECT_EQ(meter->name(), "RAPL package-0, package-1");
  Write("class/powercap/intel-rapl:0/energy_uj", "9500000");
  Write("class/powercap/intel-rapl:1/energy_uj", "1000000");  // past its range
  meter->Sample(kSecond);
  EXPECT_NEAR(meter->Joules(), 0.5 + 2.0, 1e-9);
  meter->Sample(2 * kSecond);
  EXPECT_NEAR(meter->Joules(), 2.5, 1e-9);
}

TEST_F(EnergyMeterTest, TheWholeBoardIsPreferredToItsPackages) {
  Write("class/powercap/intel-rapl:0/name", "package-0");
  Write("class/powercap/intel-rapl:0/energy_uj", "5");
  Write("class/powercap/intel-rapl:1/name", "psys");
  Write("class/powercap/intel-rapl:1/energy_uj", "1000000");
  const auto meter = Find();
  ASSERT_NE(meter, nullptr);
  Write("class/powercap/intel-rapl:1/energy_uj", "4000000");
  meter->Sample(kSecond);
  EXPECT_NEAR(meter->Joules(), 3, 1e-9);
}

TEST_F(EnergyMeterTest, AnInaSensorsPowerIsIntegrated) {
  Write("class/hwmon/hwmon3/name", "ina226");
  Write("class/hwmon/hwmon3/power1_input", "5000000");
  const auto meter = Find();
  ASSERT_NE(meter, nullptr);
  meter->Sample(2 * kSecond);
  EXPECT_NEAR(meter->Joules(), 10, 1e-9);
  std::filesystem::remove(folder_.File("sys/class/hwmon/hwmon3/power1_input"));
  meter->Sample(3 * kSecond);
  EXPECT_NEAR(meter->Joules(), 10, 1e-9) << "a sensor that cannot be read adds nothing";
}

TEST_F(EnergyMeterTest, OfSeveralChannelsTheSupplyCounts) {
  Write("class/hwmon/hwmon0/name", "ina3221");
  const char* labels[] = {"VDD_GPU", "VDD_IN", "VDD_CPU"};
  for (int i = 1; i <= 3; ++i) {
    const std::string channel = std::to_string(i);
    Write("class/hwmon/hwmon0/in" + channel + "_label", labels[i - 1]);
    Write("class/hwmon/hwmon0/in" + channel + "_input", "5000");
    Write("class/hwmon/hwmon0/curr" + channel + "_input", std::to_string(i * 1000));
  }
  auto meter = Find();
  ASSERT_NE(meter, nullptr);
  EXPECT_EQ(meter->name(), "ina3221 VDD_IN");
  meter->Sample(kSecond);
  EXPECT_NEAR(meter->Joules(), 10, 1e-9);
  std::filesystem::remove(folder_.File("sys/class/hwmon/hwmon0/in2_label"));
  meter = Find();
  meter->Sample(kSecond);
  EXPECT_NEAR(meter->Joules(), 5 + 10 + 15, 1e-9) << "without a supply's label, all together";
}

}  // namespace
}  // namespace embergate::engine
