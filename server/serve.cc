#include "server/serve.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "engine/clock.h"
#include "server/dram_plan.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/model_keeper.h"
#include "server/reloader.h"
#include "server/signal_poller.h"
#include "server/systemd_notifier.h"
#include "server/version.h"

namespace embergate::server {
namespace {

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

// Certificates and keys are exchanged by programs that do not know our process id.
constexpr int kFileCheckMs = 30'000;

// Until a signal that ends the process, which is returned, or 0 when there is no model to serve. Changes the model as
// the reloader asks for.
int ServeUntilSignal(SignalPoller& poller, Reloader& reloader, ModelKeeper& keeper, SystemdNotifier& systemd,
                     const Lifecycle& lifecycle) {
  std::optional<ModelChange> next;       // to begin as soon as no change is under way
  std::optional<ModelChange> under_way;  // nullopt while the first model is loaded
  bool reload_later = false;
  while (true) {
    const int signal = poller.Wait(kFileCheckMs);
    if (keeper.ended()) {
      const absl::Status result = keeper.TakeResult();
      if (!keeper.serving()) {
        spdlog::error("cannot serve the model: {}", std::string(result.message()));
        return 0;
      }
      if (result.ok() && under_way.has_value()) {
        reloader.SetModel(*under_way);
      }
      under_way.reset();
      systemd.StartWatchdog([&lifecycle, check = ProgressCheck()]() mutable {
        const ModelUse model = lifecycle.model();
        const engine::EngineStats stats = model != nullptr ? model->engine->Snapshot() : engine::EngineStats();
        return check.Alive(stats.running + stats.waiting > 0, stats.steps);
      });
    }
    if (signal != 0 && signal != SIGHUP) {
      return signal;
    }
    if (signal == SIGHUP && keeper.busy()) {
      reloader.Reload();
      reload_later = true;  // what it asks for has to be compared with what comes out now
    } else if (signal == SIGHUP || (reload_later && !keeper.busy())) {
      next = reloader.Reload();
      reload_later = false;
    } else {
      reloader.CheckFiles();
    }
    if (next.has_value() && !keeper.busy()) {
      under_way = std::move(next);
      next.reset();
      keeper.Change(under_way->options, reloader.drain_timeout());
    }
  }
}

// For last messages on their way to slow clients when the engine has ended everything.
constexpr absl::Duration kLastMessages = absl::Seconds(2);

void Drain(absl::Duration timeout, GrpcServer& server, SignalPoller& poller) {
  const absl::Time deadline = engine::Clock::Real().WallNow() + timeout;
  absl::Notification drained;
  server.lifecycle().SetDraining();
  // Beside the engine, not after it: a gateway that goes by the number of calls would send a board that still listens,
  // and refuses at once, whatever it gets. A closed port and GOAWAY tell it to go elsewhere.
  std::thread shutdown([&] {
    server.Shutdown(deadline + kLastMessages);
    drained.Notify();
    poller.Wake();
  });
  std::thread drainer([&] {
    std::vector<std::thread> engines;
    for (ModelUse model : {server.lifecycle().model(), server.lifecycle().former()}) {
      if (model != nullptr) {
        engines.emplace_back([model = std::move(model), deadline] { model->engine->Drain(deadline); });
      }
    }
    for (std::thread& engine : engines) {
      engine.join();
    }
    if (!drained.WaitForNotificationWithTimeout(kLastMessages)) {
      server.acceptor()->CutOffAll();
    }
  });
  while (!drained.HasBeenNotified()) {
    const int signal = poller.Wait();
    if (signal != 0 && signal != SIGHUP) {  // which changes nothing any more
      spdlog::warn("second signal: ending at once");
      ExitNow(128 + signal);
    }
  }
  drainer.join();
  shutdown.join();
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
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(config.grpc);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return 1;
  }
  const std::string addresses = absl::StrJoin((*server)->addresses(), ", ");
  if (config.grpc.listen_when_ready) {
    spdlog::info("connections to {} are refused until the model is loaded (--listen-when ready)", addresses);
  } else {
    spdlog::info("listening on {}", addresses);
  }
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

  // Its models outlive the calls that use them: those are gone when the server has shut down.
  auto keeper = std::make_unique<ModelKeeper>(**server, systemd, config.hot_list_path, [&poller] { poller.Wake(); });
  keeper->Change(config.model, absl::ZeroDuration());
  const int signal = ServeUntilSignal(poller, reloader, *keeper, systemd, lifecycle);
  if (signal == 0) {
    return 2;
  }
  if (keeper->busy() && lifecycle.model() == nullptr && lifecycle.former() == nullptr) {
    spdlog::info("signal {} while loading: ending", signal);
    ExitNow(0);
  }
  spdlog::info("signal {}: draining, for at most {}", signal, absl::FormatDuration(reloader.drain_timeout()));
  systemd.Stopping("draining");
  Drain(reloader.drain_timeout(), **server, poller);
  systemd.StopWatchdog();  // it asks the engine
  metrics.reset();
  if (keeper->busy()) {
    spdlog::info("ended, in the middle of a model change");
    ExitNow(0);  // a load cannot be broken off, and would be of no use
  }
  keeper->Release();
  keeper.reset();
  server->reset();
  FinishLogging();
  spdlog::info("ended");
  return 0;
}

}  // namespace embergate::server
