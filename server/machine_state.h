// What `embergate bench --machine` found out about this machine, kept beside the device state and used by
// `embergate plan`.
#ifndef EMBERGATE_SERVER_MACHINE_STATE_H_
#define EMBERGATE_SERVER_MACHINE_STATE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace embergate::server {

struct MachineRates {
  double read_bytes_per_second = 0;     // DRAM, all threads
  double multiply_adds_per_second = 0;  // of 8-bit numbers, all threads
  int threads = 0;
  std::string isa;  // the kernel set that they were measured with
};

// machine.json in the folder of DefaultDeviceStatePath; empty if there is no home.
std::string DefaultMachineStatePath();

// Makes the folder if need be. UNAVAILABLE names the path that cannot be written.
absl::Status SaveMachineRates(const std::string& path, const MachineRates& rates);

// NOT_FOUND without the file; INVALID_ARGUMENT for one that is not what SaveMachineRates writes.
absl::StatusOr<MachineRates> LoadMachineRates(const std::string& path);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_MACHINE_STATE_H_
