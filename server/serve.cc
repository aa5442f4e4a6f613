#include "server/serve.h"

#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "server/cli/human.h"
#include "server/dram_plan.h"
#include "server/flash_monitor.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/model_host.h"
#include "server/response_builder.h"
#include "server/signal_poller.h"
#include "server/systemd_notifier.h"
#include "server/version.h"

namespace embergate::server {
namespace {

void LogModel(const ServedModel& model) {
  const engine::ModelInfo& info = model.info;
  spdlog::info("model: {} ({}), {:.2f} billion parameters, {} layers, weights {}", info.name, info.architecture,
               static_cast<double>(info.parameters) * 1e-9, info.layers, info.weight_types);
  if (info.tensors_skipped > 0) {
    spdlog::info("stepped over: {} tensors, {}, that generating text has no use for (vision, audio, unused keys)",
                 info.tensors_skipped, HumanBytes(info.bytes_skipped));
  }
  spdlog::info("limits: context {} tokens, {} requests at once, {} waiting", model.limits.context_max,
               model.limits.slots_max, model.waiting_max);
  spdlog::info("text: {}, chat format {}", model.tokenizer != nullptr ? "tokenizer in the file" : "no tokenizer",
               model.chat_format.has_value() ? ChatFormatName(*model.chat_format) : "none");
  uint64_t total = 0;
  spdlog::info("DRAM by part:");
  for (const engine::MemoryPart& part : model.memory()) {
    spdlog::info("  {:<24} {:>12}", part.name, HumanBytes(part.bytes));
    total += part.bytes;
  }
  if (model.dram_budget_bytes > 0) {
    spdlog::info("  {:<24} {:>12} of the budget's {}", "total", HumanBytes(total), HumanBytes(model.dram_budget_bytes));
  } else {
    spdlog::info("  {:<24} {:>12} (no budget set)", "total", HumanBytes(total));
  }
  if (model.row_stats) {
    const storage::RowStoreStats stats = model.row_stats();
    spdlog::info("on flash: per-layer embedding table, {} of the file's {}", HumanBytes(info.table_bytes),
                 HumanBytes(info.file_bytes));
    spdlog::info("row reader: {}{}{}{}", stats.backend, stats.direct_io ? " with O_DIRECT" : ", buffered",
                 stats.backend_reason.empty() ? "" : "; io_uring is not in use: ", stats.backend_reason);
    spdlog::info("rows are {}", stats.checksum_bytes > 0
                                    ? "checked by CRC32C as they are read"
                                    : "not checked: the file has no checksums (embergate checksum adds them)");
  } else {
    spdlog::info("on flash: nothing is read while serving");
  }
}

constexpr absl::Duration kLoadLogInterval = absl::Seconds(2);
// What systemd is to grant a load that gets on, from its last sign of life.
constexpr absl::Duration kLoadStallMax = absl::Minutes(2);

// Loads in a thread of its own, so that signals and calls are answered meanwhile.
class Loader {
 public:
  Loader(const ModelHostOptions& options, Lifecycle& lifecycle, SignalPoller& poller, SystemdNotifier& systemd)
      : thread_([this, &options, &lifecycle, &poller, &systemd] {
          absl::Time next_log = absl::Now() + kLoadLogInterval;
          host_ = ModelHost::Load(options, [&](uint64_t done, uint64_t total) {
            lifecycle.SetLoadProgress(done, total);
            if (absl::Now() >= next_log) {
              next_log = absl::Now() + kLoadLogInterval;
              spdlog::info("loading: {:.0f} % of {}", lifecycle.load_progress() * 100, HumanBytes(total));
              systemd.Starting(
                  fmt::format("loading: {:.0f} % of {}", lifecycle.load_progress() * 100, HumanBytes(total)),
                  kLoadStallMax);
            }
          });
          poller.Wake();
        }) {}
  ~Loader() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  absl::StatusOr<std::unique_ptr<ModelHost>> Take() {
    thread_.join();
    return std::move(host_);
  }

 private:
  absl::StatusOr<std::unique_ptr<ModelHost>> host_ = absl::UnknownError("not loaded");
  std::thread thread_;
};

// How much of what was learnt a crash may cost.
constexpr absl::Duration kHotListPeriod = absl::Minutes(5);

void SaveHotList(const ServeConfig& config, ModelHost& host) {
  if (const absl::Status saved = host.SaveHotRows(config.hot_list_path); !saved.ok()) {
    spdlog::warn("hot list not saved: {}", std::string(saved.message()));
  }
}

// Ends the process without waiting for anybody: there is no state on disk that could be left half written.
[[noreturn]] void ExitNow(int code) {
  spdlog::default_logger()->flush();
  std::_Exit(code);
}

void Drain(const ServeConfig& config, ModelHost& host, GrpcServer& server, SignalPoller& poller) {
  const absl::Time deadline = absl::Now() + config.drain_timeout;
  server.lifecycle().SetDraining();
  std::thread drainer([&] {
    host.engine().Drain(deadline);
    // The engine has ended everything; what is left are last messages on their way to slow clients.
    server.Shutdown(absl::Now() + absl::Seconds(2));
    poller.Wake();
  });
  if (const int signal = poller.Wait(); signal != 0) {
    spdlog::warn("second signal: ending at once");
    ExitNow(128 + signal);
  }
  drainer.join();
}

}  // namespace

int Serve(const ServeConfig& config) {
  InitLogging(config.log_level, config.log_json);
  BoundAllocator();
  std::signal(SIGPIPE, SIG_IGN);
  SignalPoller poller({SIGTERM, SIGINT});
  SystemdNotifier systemd = SystemdNotifier::FromEnvironment();
  spdlog::info("embergate {} starting", kVersion);

  std::unique_ptr<ModelHost> host;  // outlives the server, whose calls use it
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(config.grpc);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return 1;
  }
  spdlog::info("listening on {}", absl::StrJoin((*server)->addresses(), ", "));
  Lifecycle& lifecycle = (*server)->lifecycle();
  std::unique_ptr<MetricsEndpoint> metrics;
  if (!config.metrics_address.empty()) {
    auto endpoint = MetricsEndpoint::Create(config.metrics_address,
                                            std::make_shared<Metrics>(lifecycle, (*server)->stats(), config.sysfs));
    if (!endpoint.ok()) {
      spdlog::error("{}", std::string(endpoint.status().message()));
      return 1;
    }
    metrics = *std::move(endpoint);
    spdlog::info("metrics on port {} (/metrics)", metrics->port());
  }

  Loader loader(config.model, lifecycle, poller, systemd);
  if (const int signal = poller.Wait(); signal != 0) {
    spdlog::info("signal {} while loading: ending", signal);
    ExitNow(0);
  }
  absl::StatusOr<std::unique_ptr<ModelHost>> loaded = loader.Take();
  if (!loaded.ok()) {
    spdlog::error("cannot serve the model: {}", std::string(loaded.status().message()));
    return 2;
  }
  host = *std::move(loaded);
  LogModel(host->served());
  if (!config.hot_list_path.empty()) {
    const absl::StatusOr<int> warm = host->WarmHotRows(config.hot_list_path);
    if (warm.ok()) {
      spdlog::info("row cache: {} rows read ahead, as {} says", *warm, config.hot_list_path);
    } else {
      spdlog::info("row cache starts empty: {}", std::string(warm.status().message()));
    }
  }
  lifecycle.SetReady(&host->served());
  spdlog::info("ready");
  std::unique_ptr<FlashMonitor> monitor;
  if (host->served().row_stats) {
    monitor = std::make_unique<FlashMonitor>(lifecycle, host->served().row_stats, [&host] { host->ProbeFlash(); });
    if (!config.hot_list_path.empty()) {
      monitor->Every(kHotListPeriod, [&] { SaveHotList(config, *host); });
    }
  }
  systemd.Ready(fmt::format("serving {}", host->served().info.name));
  systemd.StartWatchdog([&engine = host->engine(), check = ProgressCheck()]() mutable {
    const engine::EngineStats stats = engine.Snapshot();
    return check.Alive(stats.running + stats.waiting > 0, stats.steps);
  });

  const int signal = poller.Wait();
  spdlog::info("signal {}: draining, for at most {}", signal, absl::FormatDuration(config.drain_timeout));
  systemd.Stopping("draining");
  Drain(config, *host, **server, poller);
  monitor.reset();
  if (!config.hot_list_path.empty()) {
    SaveHotList(config, *host);
  }
  systemd.StopWatchdog();  // it asks the engine
  metrics.reset();
  server->reset();
  host.reset();
  spdlog::info("ended");
  return 0;
}

}  // namespace embergate::server
