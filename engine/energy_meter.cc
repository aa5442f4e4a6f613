#include "engine/energy_meter.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace embergate::engine {
namespace {

constexpr int kChannelsMax = 8;

std::optional<std::string> ReadWord(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) {
    return std::nullopt;
  }
  return word;
}

std::optional<double> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (!(file >> value)) {
    return std::nullopt;
  }
  return value;
}

std::vector<std::string> FoldersIn(const std::string& path) {
  std::vector<std::string> folders;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    folders.push_back(it->path().string());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

// A counter of microjoules that wraps.
struct Counter {
  std::string path;
  double range_uj = 0;
  double last_uj = 0;
};
// Microwatts, or millivolts times milliamperes.
struct Rail {
  std::string power_path;
  std::string voltage_path;
  std::string current_path;
};

std::optional<double> Watts(const Rail& rail) {
  if (!rail.power_path.empty()) {
    const std::optional<double> microwatts = ReadNumber(rail.power_path);
    return microwatts.has_value() ? std::optional<double>(*microwatts * 1e-6) : std::nullopt;
  }
  const std::optional<double> millivolts = ReadNumber(rail.voltage_path);
  const std::optional<double> milliamperes = ReadNumber(rail.current_path);
  if (!millivolts.has_value() || !milliamperes.has_value()) {
    return std::nullopt;
  }
  return *millivolts * *milliamperes * 1e-6;
}

class SysfsMeter : public SampledEnergyMeter {
 public:
  SysfsMeter(std::string name, std::vector<Counter> counters, std::vector<Rail> rails, int64_t now_ns)
      : name_(std::move(name)), counters_(std::move(counters)), rails_(std::move(rails)), last_ns_(now_ns) {}

  double Joules() const override { return joules_.load(std::memory_order_relaxed); }
  const std::string& name() const override { return name_; }

  void Sample(int64_t now_ns) override {
    double joules = 0;
    for (Counter& counter : counters_) {
      const std::optional<double> now_uj = ReadNumber(counter.path);
      if (!now_uj.has_value()) {
        continue;
      }
      const double step = *now_uj - counter.last_uj;
      joules += (step >= 0 ? step : std::max(0.0, step + counter.range_uj)) * 1e-6;
      counter.last_uj = *now_uj;
    }
    const double seconds = static_cast<double>(now_ns - last_ns_) * 1e-9;
    for (const Rail& rail : rails_) {
      joules += std::max(0.0, Watts(rail).value_or(0)) * seconds;
    }
    last_ns_ = now_ns;
    joules_.store(joules_.load(std::memory_order_relaxed) + joules, std::memory_order_relaxed);
  }

 private:
  const std::string name_;
  std::vector<Counter> counters_;
  std::vector<Rail> rails_;
  int64_t last_ns_;
  std::atomic<double> joules_{0};
};

std::unique_ptr<SampledEnergyMeter> FindRapl(const std::string& sysfs, int64_t now_ns) {
  std::vector<Counter> psys;
  std::vector<Counter> parts;
  std::vector<std::string> names;
  for (const std::string& zone : FoldersIn(absl::StrCat(sysfs, "/class/powercap"))) {
    const std::optional<std::string> name = ReadWord(absl::StrCat(zone, "/name"));
    const std::optional<double> now_uj = ReadNumber(absl::StrCat(zone, "/energy_uj"));
    // The memory-mapped interface shows the same counters again.
    if (!name.has_value() || !now_uj.has_value() || absl::StrContains(zone, "intel-rapl-mmio")) {
      continue;
    }
    const Counter counter = {absl::StrCat(zone, "/energy_uj"),
                             ReadNumber(absl::StrCat(zone, "/max_energy_range_uj")).value_or(0), *now_uj};
    if (*name == "psys") {
      psys.push_back(counter);
    } else if (absl::StartsWith(*name, "package") || *name == "dram") {
      parts.push_back(counter);
      names.push_back(*name);
    }
  }
  if (psys.empty() && parts.empty()) {
    return nullptr;
  }
  if (!psys.empty()) {
    return std::make_unique<SysfsMeter>("RAPL psys", std::move(psys), std::vector<Rail>(), now_ns);
  }
  return std::make_unique<SysfsMeter>(absl::StrCat("RAPL ", absl::StrJoin(names, ", ")), std::move(parts),
                                      std::vector<Rail>(), now_ns);
}

bool IsSupply(const std::string& label) {
  return absl::EndsWith(label, "_IN") || absl::StartsWith(label, "VIN") || label == "IN";
}

std::unique_ptr<SampledEnergyMeter> FindIna(const std::string& sysfs, int64_t now_ns) {
  for (const std::string& chip : FoldersIn(absl::StrCat(sysfs, "/class/hwmon"))) {
    const std::optional<std::string> name = ReadWord(absl::StrCat(chip, "/name"));
    if (!name.has_value() || !absl::StartsWith(*name, "ina")) {
      continue;
    }
    std::vector<Rail> rails;
    std::vector<std::string> labels;
    if (ReadNumber(absl::StrCat(chip, "/power1_input")).has_value()) {
      rails.push_back({absl::StrCat(chip, "/power1_input"), "", ""});
      labels.push_back("power1");
    }
    for (int i = 1; rails.empty() || rails.front().power_path.empty(); ++i) {
      if (i > kChannelsMax) {
        break;
      }
      const Rail rail = {"", absl::StrCat(chip, "/in", i, "_input"), absl::StrCat(chip, "/curr", i, "_input")};
      if (!Watts(rail).has_value()) {
        continue;
      }
      const std::string label = ReadWord(absl::StrCat(chip, "/in", i, "_label")).value_or(absl::StrCat("channel", i));
      if (IsSupply(label)) {
        rails = {rail};
        labels = {label};
        break;
      }
      rails.push_back(rail);
      labels.push_back(label);
    }
    if (!rails.empty()) {
      return std::make_unique<SysfsMeter>(absl::StrCat(*name, " ", absl::StrJoin(labels, ", ")), std::vector<Counter>(),
                                          std::move(rails), now_ns);
    }
  }
  return nullptr;
}

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class PolledMeter : public EnergyMeter {
 public:
  explicit PolledMeter(std::unique_ptr<SampledEnergyMeter> meter)
      : meter_(std::move(meter)), thread_([this] { Run(); }) {}
  ~PolledMeter() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  double Joules() const override { return meter_->Joules(); }
  const std::string& name() const override { return meter_->name(); }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::milliseconds(100), [&] { return stop_; })) {
      meter_->Sample(NowNs());
    }
  }

  std::unique_ptr<SampledEnergyMeter> meter_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<SampledEnergyMeter> FindSampledEnergyMeter(const std::string& sysfs, int64_t now_ns) {
  std::unique_ptr<SampledEnergyMeter> meter = FindRapl(sysfs, now_ns);
  return meter != nullptr ? std::move(meter) : FindIna(sysfs, now_ns);
}

std::unique_ptr<EnergyMeter> FindEnergyMeter(const std::string& sysfs) {
  std::unique_ptr<SampledEnergyMeter> meter = FindSampledEnergyMeter(sysfs, NowNs());
  return meter != nullptr ? std::make_unique<PolledMeter>(std::move(meter)) : nullptr;
}

}  // namespace embergate::engine
