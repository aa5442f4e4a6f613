#include "server/device_state.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace embergate::server {
namespace {

constexpr size_t kStateBytesMax = 1u << 20;

// "major:minor" of the device under a path.
absl::StatusOr<std::string> DeviceOf(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat("cannot stat ", path));
  }
  return absl::StrCat(major(info.st_dev), ":", minor(info.st_dev));
}

absl::StatusOr<nlohmann::json> ReadState(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("there is no ", path));
  }
  std::string text(kStateBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  // Depth: the writer nests four deep; a parser callback refuses more before it is built.
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth <= 6; };
  nlohmann::json state = nlohmann::json::parse(text, shallow, /*allow_exceptions=*/false);
  if (text.size() > kStateBytesMax || !state.is_object() || !state.contains("devices") ||
      !state["devices"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a state file of embergate storage-test; delete it and run that again"));
  }
  return state;
}

}  // namespace

std::string DefaultDeviceStatePath() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && state[0] == '/') {
    return absl::StrCat(state, "/embergate/storage.json");
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/') {
    return absl::StrCat(home, "/.local/state/embergate/storage.json");
  }
  return "";
}

absl::Status SaveDeviceProfile(const std::string& state_path, const std::string& model_path,
                               const storage::DeviceProfile& profile) {
  const absl::StatusOr<std::string> device = DeviceOf(model_path);
  if (!device.ok()) {
    return device.status();
  }
  absl::StatusOr<nlohmann::json> state = ReadState(state_path);
  if (!state.ok()) {
    if (!absl::IsNotFound(state.status())) {
      return state.status();
    }
    state = nlohmann::json{{"version", 1}, {"devices", nlohmann::json::object()}};
  }
  nlohmann::json entry = {{"backend", profile.backend},
                          {"direct_io", profile.direct_io},
                          {"alignment", profile.alignment},
                          {"read_bytes", profile.read_bytes},
                          {"small_reads_per_second", profile.small_reads_per_second},
                          {"queue_depth", profile.queue_depth},
                          {"merge_gap_bytes", profile.merge_gap_bytes},
                          {"depths", nlohmann::json::array()}};
  for (const storage::DeviceDepth& depth : profile.depths) {
    entry["depths"].push_back({{"depth", depth.depth},
                               {"reads_per_second", depth.reads_per_second},
                               {"latency_us_mean", depth.latency_us_mean},
                               {"latency_us_p99", depth.latency_us_p99}});
  }
  (*state)["devices"][*device] = entry;
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(state_path).parent_path(), error);
  const std::string partial = state_path + ".partial";
  {
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    file << state->dump(2) << '\n';
    file.flush();
    if (!file) {
      return absl::UnavailableError(absl::StrCat("cannot write ", partial));
    }
  }
  std::filesystem::rename(partial, state_path, error);
  return error ? absl::UnavailableError(absl::StrCat("cannot write ", state_path, ": ", error.message()))
               : absl::OkStatus();
}

absl::StatusOr<storage::DeviceProfile> LoadDeviceProfile(const std::string& state_path, const std::string& model_path) {
  const absl::StatusOr<std::string> device = DeviceOf(model_path);
  if (!device.ok()) {
    return device.status();
  }
  absl::StatusOr<nlohmann::json> state = ReadState(state_path);
  if (!state.ok()) {
    return state.status();
  }
  const nlohmann::json& devices = (*state)["devices"];
  if (!devices.contains(*device)) {
    return absl::NotFoundError(absl::StrCat(state_path, " knows nothing of device ", *device));
  }
  const nlohmann::json& entry = devices[*device];
  const auto number = [&](const char* key, int64_t low, int64_t high) -> std::optional<int64_t> {
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_number_integer()) {
      return std::nullopt;
    }
    const int64_t value = entry[key].get<int64_t>();
    return value >= low && value <= high ? std::optional<int64_t>(value) : std::nullopt;
  };
  const std::optional<int64_t> depth = number("queue_depth", 1, 4096);
  const std::optional<int64_t> gap = number("merge_gap_bytes", 0, 1 << 20);
  if (!depth.has_value() || !gap.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(state_path, ": the entry of device ", *device, " is malformed; run embergate storage-test again"));
  }
  storage::DeviceProfile profile;
  profile.queue_depth = static_cast<int>(*depth);
  profile.merge_gap_bytes = static_cast<uint32_t>(*gap);
  profile.alignment = static_cast<uint32_t>(number("alignment", 1, 1 << 20).value_or(0));
  profile.read_bytes = static_cast<uint32_t>(number("read_bytes", 1, 1 << 30).value_or(0));
  return profile;
}

}  // namespace embergate::server
