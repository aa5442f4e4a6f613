// What `embergate storage-test` found out about a device, kept in a small JSON file and used by later starts.
#ifndef EMBERGATE_SERVER_DEVICE_STATE_H_
#define EMBERGATE_SERVER_DEVICE_STATE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/device_profile.h"

namespace embergate::server {

// $XDG_STATE_HOME/embergate/storage.json, or ~/.local/state/embergate/storage.json; empty if there is no home.
std::string DefaultDeviceStatePath();

// Adds or replaces the entry for the device that holds `model_path`, making the folder if need be.
absl::Status SaveDeviceProfile(const std::string& state_path, const std::string& model_path,
                               const storage::DeviceProfile& profile);

// The entry for the device that holds `model_path`. NOT_FOUND without one; INVALID_ARGUMENT for a file that is not
// what SaveDeviceProfile writes. Only queue_depth, merge_gap_bytes and what describes the test are filled in.
absl::StatusOr<storage::DeviceProfile> LoadDeviceProfile(const std::string& state_path, const std::string& model_path);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_DEVICE_STATE_H_
