// How warm the board is and whether its clocks are held back, from sysfs: the first things to look at when a board
// without a fan becomes slow.
#ifndef EMBERGATE_SERVER_BOARD_SENSORS_H_
#define EMBERGATE_SERVER_BOARD_SENSORS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace embergate::server {

struct BoardSensors {
  struct Temperature {
    std::string zone;  // the kernel's name for it: "cpu-thermal", "x86_pkg_temp"; with its number if not unique
    double celsius = 0;
  };
  // Of one group of cores that share a clock. `limit_hz` is what the kernel allows at present: below `max_hz` when a
  // governor, a thermal zone or an administrator holds the cores back.
  struct Clock {
    std::string policy;  // "policy0"
    double current_hz = 0;
    double limit_hz = 0;
    double max_hz = 0;
  };
  std::vector<Temperature> temperatures;
  std::vector<Clock> clocks;
};

// Reads class/thermal and devices/system/cpu/cpufreq below `sysfs` ("/sys" but for tests). What a machine does not
// have, as in most virtual ones, is left out; so is what cannot be read.
BoardSensors ReadBoardSensors(const std::string& sysfs);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_BOARD_SENSORS_H_
