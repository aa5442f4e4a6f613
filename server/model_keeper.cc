#include "server/model_keeper.h"

#include <spdlog/spdlog.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/clock.h"
#include "server/cli/human.h"
#include "server/dram_plan.h"
#include "server/response_builder.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

constexpr absl::Duration kLoadLogInterval = absl::Seconds(2);
// What systemd is to grant a load that gets on, from its last sign of life.
constexpr absl::Duration kLoadStallMax = absl::Minutes(2);
// How much of what was learnt a crash may cost.
constexpr absl::Duration kHotListPeriod = absl::Minutes(5);
// Everything big is allocated before requests come. What they add is gRPC's buffers and the queue, which have their
// limits, and answers under way; what grows past that is a flood.
constexpr uint64_t kHeapGrowthMax = 64 << 20;

void LogModel(const ServedModel& model) {
  const engine::ModelInfo& info = model.info;
  spdlog::info("model: {} ({}), {} parameters, {} layers, weights {}", info.name, info.architecture,
               HumanCount(info.parameters), info.layers, info.weight_types);
  if (info.tensors_skipped > 0) {
    spdlog::info("stepped over: {} tensors, {}, that generating text has no use for (vision, audio, unused keys)",
                 info.tensors_skipped, HumanBytes(info.bytes_skipped));
  }
  spdlog::info("limits: context {} tokens, {} requests at once, {} waiting", model.limits.context_max,
               model.limits.slots_max, model.waiting_max);
  spdlog::info("text: {}, chat format {}", model.tokenizer != nullptr ? "tokenizer in the file" : "no tokenizer",
               model.chat_format.has_value() ? ChatFormatName(*model.chat_format) : "none");
  const std::vector<engine::MemoryPart> parts = model.memory();
  spdlog::info("DRAM by part:");
  for (const engine::MemoryPart& part : parts) {
    spdlog::info("  {:<24} {:>12}", part.name, HumanBytes(part.bytes));
  }
  if (model.dram_budget_bytes > 0) {
    spdlog::info("  {:<24} {:>12} of the budget's {}", "total", HumanBytes(TotalBytes(parts)),
                 HumanBytes(model.dram_budget_bytes));
  } else {
    spdlog::info("  {:<24} {:>12} (no budget set)", "total", HumanBytes(TotalBytes(parts)));
  }
  if (model.row_stats) {
    const storage::RowStoreStats stats = model.row_stats();
    spdlog::info("on flash: per-layer embedding table, {} of the file's {}", HumanBytes(info.table_bytes),
                 HumanBytes(info.file_bytes));
    spdlog::info("row reader: {}", DescribeReader(stats));
    spdlog::info("rows are {}", stats.checksum_bytes > 0
                                    ? "checked by CRC32C as they are read"
                                    : "not checked: the file has no checksums (embergate checksum adds them)");
  } else {
    spdlog::info("on flash: nothing is read while serving");
  }
}

void SaveHotList(ModelHost& host, const std::string& path) {
  if (const absl::Status saved = host.SaveHotRows(path); !saved.ok()) {
    spdlog::warn("hot list not saved: {}", std::string(saved.message()));
  }
}

}  // namespace

ModelKeeper::ModelKeeper(GrpcServer& server, SystemdNotifier& systemd, std::string hot_list_path,
                         std::function<void()> on_end)
    : server_(server), systemd_(systemd), hot_list_path_(std::move(hot_list_path)), on_end_(std::move(on_end)) {}

ModelKeeper::~ModelKeeper() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

void ModelKeeper::Change(ModelHostOptions options, absl::Duration drain_timeout) {
  ended_.store(false, std::memory_order_relaxed);
  thread_ = std::thread([this, options = std::move(options), drain_timeout] {
    result_ = Run(options, drain_timeout);
    ended_.store(true, std::memory_order_release);
    on_end_();
  });
}

absl::Status ModelKeeper::TakeResult() {
  thread_.join();
  ended_.store(false, std::memory_order_relaxed);
  return std::move(result_);
}

void ModelKeeper::Release() {
  service_->monitor.reset();
  if (!hot_list_path_.empty()) {
    SaveHotList(*service_->host, hot_list_path_);
  }
  service_.reset();
}

absl::Status ModelKeeper::Run(const ModelHostOptions& options, absl::Duration drain_timeout) {
  if (service_ == nullptr) {
    EMBERGATE_ASSIGN_OR_RETURN(std::unique_ptr<ModelHost> host, Load(options));
    return Serve(options, std::move(host));
  }
  const absl::Status replaced = Replace(options, drain_timeout);
  if (!replaced.ok()) {
    server_.stats().model_changes_failed.fetch_add(1, std::memory_order_relaxed);
    if (service_ != nullptr) {
      spdlog::error("the model stays as it is: {}", std::string(replaced.message()));
    }
  }
  return replaced;
}

absl::Status ModelKeeper::Replace(ModelHostOptions options, absl::Duration drain_timeout) {
  EMBERGATE_ASSIGN_OR_RETURN(const uint64_t bytes, ModelHost::Check(options));  // that it fits alone
  const std::vector<engine::MemoryPart> parts = service_->host->served().memory();
  const uint64_t taken = TotalBytes(parts) - SharedBytes(parts);
  const uint64_t budget = options.decoder.dram_budget_bytes;
  const bool beside = budget == 0 || bytes + taken <= budget;
  options.dram_taken_bytes = beside ? taken : 0;
  spdlog::info("model change: {} needs {}, {}", options.path, HumanBytes(bytes),
               beside ? "which the DRAM budget holds beside the present model"
                      : "and the DRAM budget does not hold both: the present one is drained first");
  WatchMemory(options, bytes);
  const absl::Status replaced = beside ? ReplaceBeside(options) : ReplaceDrained(options, drain_timeout);
  if (service_ != nullptr) {
    WatchMemory(service_->options, 0);
  }
  return replaced;
}

absl::Status ModelKeeper::ReplaceBeside(const ModelHostOptions& options) {
  Lifecycle& lifecycle = server_.lifecycle();
  absl::StatusOr<std::unique_ptr<ModelHost>> host = Load(options);
  if (!host.ok()) {
    lifecycle.SetLoadProgress(1, 1);
    return host.status();
  }
  std::unique_ptr<Service> former = std::move(service_);
  former->monitor.reset();  // it speaks for the one in service
  const absl::Status served = Serve(options, *std::move(host));
  if (served.ok()) {
    spdlog::info("model change: requests go to {} now; the former model finishes its own", options.path);
    server_.stats().model_changes_beside.fetch_add(1, std::memory_order_relaxed);
  } else {
    service_ = std::move(former);
    former = nullptr;
  }
  if (former != nullptr) {
    lifecycle.AwaitUnused(&former->host->served());
    former.reset();
    spdlog::info("model change: the former model is released");
  }
  return served;
}

absl::Status ModelKeeper::ReplaceDrained(const ModelHostOptions& options, absl::Duration drain_timeout) {
  Lifecycle& lifecycle = server_.lifecycle();
  if (!lifecycle.SetLoading()) {
    return absl::UnavailableError("the server shuts down");
  }
  const ModelHostOptions former_options = service_->options;
  service_->monitor.reset();
  service_->host->engine().Drain(engine::Clock::Real().WallNow() + drain_timeout);
  lifecycle.AwaitUnused(&service_->host->served());
  service_.reset();
  spdlog::info("model change: the former model is released");
  absl::StatusOr<std::unique_ptr<ModelHost>> host = Load(options);
  if (host.ok()) {
    EMBERGATE_RETURN_IF_ERROR(Serve(options, *std::move(host)));
    spdlog::info("model change: {} is served", options.path);
    server_.stats().model_changes_drained.fetch_add(1, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<ModelHost>> again = Load(former_options);
  if (!again.ok()) {
    return absl::Status(host.status().code(),
                        absl::StrCat(host.status().message(),
                                     "; and the former model cannot be loaded again: ", again.status().message()));
  }
  EMBERGATE_RETURN_IF_ERROR(Serve(former_options, *std::move(again)));
  return host.status();
}

absl::StatusOr<std::unique_ptr<ModelHost>> ModelKeeper::Load(const ModelHostOptions& options) {
  absl::Time next_log = absl::Now() + kLoadLogInterval;
  Lifecycle& lifecycle = server_.lifecycle();
  return ModelHost::Load(options, [&](uint64_t done, uint64_t total) {
    lifecycle.SetLoadProgress(done, total);
    if (absl::Now() >= next_log) {
      next_log = absl::Now() + kLoadLogInterval;
      const std::string status =
          fmt::format("loading: {:.0f} % of {}", lifecycle.load_progress() * 100, HumanBytes(total));
      spdlog::info("{}", status);
      systemd_.Starting(status, kLoadStallMax);
    }
  });
}

absl::Status ModelKeeper::Serve(const ModelHostOptions& options, std::unique_ptr<ModelHost> host) {
  LogModel(host->served());
  if (!hot_list_path_.empty()) {
    const absl::StatusOr<int> warm = host->WarmHotRows(hot_list_path_);
    if (warm.ok()) {
      spdlog::info("row cache: {} rows read ahead, as {} says", *warm, hot_list_path_);
    } else {
      spdlog::info("row cache starts empty: {}", std::string(warm.status().message()));
    }
  }
  if (service_ == nullptr) {
    WatchMemory(options, 0);
  }
  Lifecycle& lifecycle = server_.lifecycle();
  lifecycle.SetFlashHealthy(true);  // nothing is known of this one's yet
  if (!lifecycle.SetReady(&host->served())) {
    return absl::UnavailableError("the server shuts down");
  }
  spdlog::info("ready");
  service_ = std::make_unique<Service>();
  service_->options = options;
  service_->host = std::move(host);
  ModelHost& served = *service_->host;
  if (served.served().row_stats) {
    service_->monitor =
        std::make_unique<FlashMonitor>(lifecycle, served.served().row_stats, [&served] { served.ProbeFlash(); });
    if (!hot_list_path_.empty()) {
      service_->monitor->Every(kHotListPeriod, [this, &served] { SaveHotList(served, hot_list_path_); });
    }
  }
  systemd_.Ready(fmt::format("serving {}", served.served().info.name));
  return absl::OkStatus();
}

void ModelKeeper::WatchMemory(const ModelHostOptions& options, uint64_t more) {
  if (Acceptor* const acceptor = server_.acceptor(); acceptor != nullptr) {
    acceptor->WatchMemory(kHeapGrowthMax + options.transport_bytes_max +
                          static_cast<uint64_t>(options.engine.waiting_bytes_max) +
                          static_cast<uint64_t>(options.decoder.slots_max) * options.pending_bytes_max + more);
  }
}

}  // namespace embergate::server
