// What the device consumes, where it has a meter that Linux shows: RAPL counters (x86), or an INA sensor on the
// supply (many Arm boards).
#ifndef EMBERGATE_ENGINE_ENERGY_METER_H_
#define EMBERGATE_ENGINE_ENERGY_METER_H_

#include <cstdint>
#include <memory>
#include <string>

namespace embergate::engine {

// Threads: any.
class EnergyMeter {
 public:
  virtual ~EnergyMeter() = default;
  // Joules since the meter was made; never falls.
  virtual double Joules() const = 0;
  // Which one: "RAPL package-0, package-1", "ina3221 VDD_IN".
  virtual const std::string& name() const = 0;
};

// A meter that is read ten times a second by a thread of its own (sensors behind a slow bus must not hold up a step);
// null where there is none that may be read.
//  - class/powercap: energy_uj of the zone "psys" (the whole board) if there is one, else of all packages and their
//    DRAM; counters wrap at max_energy_range_uj.
//  - class/hwmon: chips "ina*", power1_input in microwatts, or in*_input (mV) times curr*_input (mA) for each channel.
//    Of several channels the one whose label says that it is the supply (VDD_IN, 5V_IN), else their sum.
// Source: Documentation/power/powercap and Documentation/hwmon/sysfs-interface of Linux.
std::unique_ptr<EnergyMeter> FindEnergyMeter(const std::string& sysfs = "/sys");

// The same without the thread, for tests: each Sample reads the meter as of `now_ns`.
class SampledEnergyMeter : public EnergyMeter {
 public:
  virtual void Sample(int64_t now_ns) = 0;
};
std::unique_ptr<SampledEnergyMeter> FindSampledEnergyMeter(const std::string& sysfs, int64_t now_ns);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_ENERGY_METER_H_
