#include "server/serve.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
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
#include "server/reloader.h"
#include "server/response_builder.h"
#include "server/signal_poller.h"
#include "server/systemd_notifier.h"
#include "server/version.h"

namespace embergate::server {
namespace {

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

// Who can reach the server, and who may call it.
void LogAccess(const ServeConfig& config) {
  bool beyond = false;
  for (const std::string& address : config.grpc.addresses) {
    beyond = beyond || !IsLocalAddress(address);
  }
  if (config.grpc.tls.has_value()) {
    spdlog::info("TLS: certificate valid until {}; client certificates are {}",
                 absl::FormatTime(config.grpc.tls->expires, absl::UTCTimeZone()),
                 config.tls_files.client_ca.empty() ? "not asked for" : "demanded");
  }
  if (!config.grpc.clients.empty()) {
    spdlog::info("API keys: {} clients; reflection is off, as it could not ask for one", config.grpc.clients.size());
    if (beyond && !config.grpc.tls.has_value()) {
      spdlog::warn("API keys cross the network in clear text: --tls-cert and --tls-key hide them");
    }
  } else if (beyond && config.tls_files.client_ca.empty()) {
    spdlog::warn("whoever reaches the port may use the model (--allow-unauthenticated)");
  }
  if (config.grpc.service.log_prompts) {
    spdlog::warn("requests are logged with their text at level debug (--log-prompts)");
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
          done_.store(true, std::memory_order_release);
          poller.Wake();
        }) {}
  ~Loader() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  bool done() const { return done_.load(std::memory_order_acquire); }

  absl::StatusOr<std::unique_ptr<ModelHost>> Take() {
    thread_.join();
    return std::move(host_);
  }

 private:
  std::atomic<bool> done_{false};
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

// A shell's usual limit is 1024 descriptors for everything; a process may raise its own up to the hard one.
void RaiseFileLimit(int connections_max) {
  constexpr rlim_t kOwn = 256;  // model, flash, threads
  const rlim_t wanted = static_cast<rlim_t>(connections_max) + kOwn;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) {
    return;
  }
  limit.rlim_cur = std::min(limit.rlim_max, wanted);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < wanted) {
    spdlog::warn("{} connections want {} file descriptors, and the limit is {}; the last ones will have to wait",
                 connections_max, wanted, limit.rlim_cur);
  }
}

// Everything big is allocated before requests come. What they add is gRPC's buffers and the queue, which have their
// limits, and answers under way; what grows past that is a flood.
constexpr uint64_t kHeapGrowthMax = 64 << 20;

// Certificates and keys are exchanged by programs that do not know our process id.
constexpr int kFileCheckMs = 30'000;

// Until a signal that ends the process (which is returned) or `done` (0); reloads meanwhile.
template <typename Done>
int WaitForEnd(SignalPoller& poller, Reloader& reloader, const Done& done) {
  while (!done()) {
    const int signal = poller.Wait(kFileCheckMs);
    if (signal == SIGHUP) {
      reloader.Reload();
    } else if (signal != 0) {
      return signal;
    } else {
      reloader.CheckFiles();
    }
  }
  return 0;
}

void Drain(absl::Duration timeout, ModelHost& host, GrpcServer& server, SignalPoller& poller) {
  const absl::Time deadline = absl::Now() + timeout;
  server.lifecycle().SetDraining();
  std::thread drainer([&] {
    host.engine().Drain(deadline);
    // The engine has ended everything; what is left are last messages on their way to slow clients.
    server.Shutdown(absl::Now() + absl::Seconds(2));
    poller.Wake();
  });
  int signal = SIGHUP;  // which changes nothing any more
  while (signal == SIGHUP) {
    signal = poller.Wait();
  }
  if (signal != 0) {
    spdlog::warn("second signal: ending at once");
    ExitNow(128 + signal);
  }
  drainer.join();
}

}  // namespace

int Serve(const ServeConfig& config, const SettingsSource& source) {
  SignalPoller poller({SIGTERM, SIGINT, SIGHUP});
  InitLogging(config.log_level, config.log_json);
  BoundAllocator();
  std::signal(SIGPIPE, SIG_IGN);
  SystemdNotifier systemd = SystemdNotifier::FromEnvironment();
  spdlog::info("embergate {} starting", kVersion);

  RaiseFileLimit(config.grpc.connections_max);
  std::unique_ptr<ModelHost> host;  // outlives the server, whose calls use it
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(config.grpc);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return 1;
  }
  spdlog::info("listening on {}", absl::StrJoin((*server)->addresses(), ", "));
  LogAccess(config);
  Reloader reloader(config, source, **server);
  Lifecycle& lifecycle = (*server)->lifecycle();
  std::unique_ptr<MetricsEndpoint> metrics;
  if (!config.metrics_address.empty()) {
    auto endpoint = MetricsEndpoint::Create(config.metrics_address, std::make_shared<Metrics>(**server, config.sysfs));
    if (!endpoint.ok()) {
      spdlog::error("{}", std::string(endpoint.status().message()));
      return 1;
    }
    metrics = *std::move(endpoint);
    spdlog::info("metrics on port {} (/metrics)", metrics->port());
  }

  Loader loader(config.model, lifecycle, poller, systemd);
  if (const int signal = WaitForEnd(poller, reloader, [&] { return loader.done(); }); signal != 0) {
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
  if (Acceptor* const acceptor = (*server)->acceptor(); acceptor != nullptr) {
    acceptor->WatchMemory(kHeapGrowthMax + config.model.transport_bytes_max +
                          static_cast<uint64_t>(config.model.engine.waiting_bytes_max) +
                          static_cast<uint64_t>(host->served().limits.slots_max) * config.model.pending_bytes_max);
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

  const int signal = WaitForEnd(poller, reloader, [] { return false; });
  spdlog::info("signal {}: draining, for at most {}", signal, absl::FormatDuration(reloader.drain_timeout()));
  systemd.Stopping("draining");
  Drain(reloader.drain_timeout(), *host, **server, poller);
  monitor.reset();
  if (!config.hot_list_path.empty()) {
    SaveHotList(config, *host);
  }
  systemd.StopWatchdog();  // it asks the engine
  metrics.reset();
  server->reset();
  host.reset();
  FinishLogging();
  spdlog::info("ended");
  return 0;
}

}  // namespace embergate::server
