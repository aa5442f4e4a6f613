// The model of a running server: loaded, put in service, and exchanged for another while streams go on.
#ifndef EMBERGATE_SERVER_MODEL_KEEPER_H_
#define EMBERGATE_SERVER_MODEL_KEEPER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/flash_monitor.h"
#include "server/grpc_server.h"
#include "server/model_host.h"
#include "server/systemd_notifier.h"

namespace embergate::server {

// Two ways lead from one model to another. Where the DRAM budget holds both, the new one is loaded beside the old one,
// gets the requests that come from then on, and the old one is released when its last request has ended. Where it does
// not, the old one is drained and released first, and health says NOT_SERVING until the new one is there. A file that
// cannot be served changes nothing, or has the old one loaded again.
//
// Threads: its functions by one; a change runs in a thread of its own.
class ModelKeeper {
 public:
  // Borrows both. `hot_list_path`: empty = none. `on_end` is called by the change's thread as its last action.
  ModelKeeper(GrpcServer& server, SystemdNotifier& systemd, std::string hot_list_path, std::function<void()> on_end);
  // Waits for a change under way, and for the calls that use its models.
  ~ModelKeeper();

  // Begins to load the first model, or one that is to replace it. Not while busy. `drain_timeout`: how long requests
  // may go on where they have to end before the new model is loaded.
  void Change(ModelHostOptions options, absl::Duration drain_timeout);
  // From Change until TakeResult.
  bool busy() const { return thread_.joinable(); }
  // The change has come to its end.
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // How it ended; OK: the new model is served, and the old one gone. Waits for the end.
  absl::Status TakeResult();

  // While not busy: whether there is a model in service.
  bool serving() const { return service_ != nullptr; }
  // While not busy, and when no call uses it any more: keeps its hot list, and releases it.
  void Release();

 private:
  // A model in service, with what looks after it.
  struct Service {
    ModelHostOptions options;
    std::unique_ptr<ModelHost> host;
    std::unique_ptr<FlashMonitor> monitor;  // null: it reads nothing while serving
  };

  absl::Status Run(const ModelHostOptions& options, absl::Duration drain_timeout);
  absl::Status Replace(ModelHostOptions options, absl::Duration drain_timeout);
  absl::Status ReplaceBeside(const ModelHostOptions& options);
  absl::Status ReplaceDrained(const ModelHostOptions& options, absl::Duration drain_timeout);
  absl::StatusOr<std::unique_ptr<ModelHost>> Load(const ModelHostOptions& options);
  // Puts a loaded model in service. UNAVAILABLE when the server has begun to drain.
  absl::Status Serve(const ModelHostOptions& options, std::unique_ptr<ModelHost> host);
  // The heap may grow by what calls need, and by `more`.
  void WatchMemory(const ModelHostOptions& options, uint64_t more);

  GrpcServer& server_;
  SystemdNotifier& systemd_;
  const std::string hot_list_path_;
  const std::function<void()> on_end_;
  std::unique_ptr<Service> service_;  // the change's thread's, while there is one
  absl::Status result_;               // likewise
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_MODEL_KEEPER_H_
