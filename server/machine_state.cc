#include "server/machine_state.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "server/device_state.h"

namespace embergate::server {
namespace {

constexpr size_t kStateBytesMax = 64 << 10;

}  // namespace

std::string DefaultMachineStatePath() {
  const std::string device = DefaultDeviceStatePath();
  return device.empty() ? "" : (std::filesystem::path(device).parent_path() / "machine.json").string();
}

absl::Status SaveMachineRates(const std::string& path, const MachineRates& rates) {
  const nlohmann::json state = {{"version", 1},
                                {"read_bytes_per_second", rates.read_bytes_per_second},
                                {"multiply_adds_per_second", rates.multiply_adds_per_second},
                                {"threads", rates.threads},
                                {"isa", rates.isa}};
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string partial = path + ".partial";
  {
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    file << state.dump(2) << '\n';
    file.flush();
    if (!file) {
      return absl::UnavailableError(absl::StrCat("cannot write ", partial));
    }
  }
  std::filesystem::rename(partial, path, error);
  return error ? absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", error.message())) : absl::OkStatus();
}

absl::StatusOr<MachineRates> LoadMachineRates(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (path.empty() || !file) {
    return absl::NotFoundError(absl::StrCat("there is no ", path));
  }
  std::string text(kStateBytesMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  // Depth: the writer does not nest; a parser callback refuses more before it is built.
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth <= 2; };
  const nlohmann::json state = nlohmann::json::parse(text, shallow, /*allow_exceptions=*/false);
  const auto number = [&](const char* key) {
    return state.is_object() && state.contains(key) && state[key].is_number() ? state[key].get<double>() : 0.0;
  };
  MachineRates rates;
  rates.read_bytes_per_second = number("read_bytes_per_second");
  rates.multiply_adds_per_second = number("multiply_adds_per_second");
  const double threads = number("threads");
  const auto plausible = [](double value) { return std::isfinite(value) && value >= 1 && value < 1e18; };
  if (!plausible(rates.read_bytes_per_second) || !plausible(rates.multiply_adds_per_second) || threads < 1 ||
      threads > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a state file of embergate bench --machine; delete it and run that again"));
  }
  rates.threads = static_cast<int>(threads);
  if (state.contains("isa") && state["isa"].is_string()) {
    rates.isa = state["isa"].get<std::string>();
  }
  return rates;
}

}  // namespace embergate::server
