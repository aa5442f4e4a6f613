#include "server/health.h"

#include <utility>

#include "server/status_mapping.h"

namespace embergate::server {
namespace {

namespace health = grpc::health::v1;

std::set<std::string> WithWholeServer(std::vector<std::string> services) {
  std::set<std::string> names(services.begin(), services.end());
  names.insert("");
  return names;
}

}  // namespace

// One Watch call. One write in flight; what changes meanwhile is sent afterwards, the latest status only. Its own
// mutex is never held while an operation is started.
class HealthService::Watcher final : public grpc::ServerWriteReactor<health::HealthCheckResponse> {
 public:
  using Status = health::HealthCheckResponse::ServingStatus;

  Watcher(HealthService* service, bool known) : service_(service), known_(known) {}
  ~Watcher() override { absl::MutexLock lock(&mutex_); }

  bool known() const { return known_; }

  void Send(Status status) {
    {
      absl::MutexLock lock(&mutex_);
      wanted_ = status;
      if (!TakeNext()) {
        return;
      }
    }
    StartWrite(&message_);
  }

  void End(grpc::Status status) {
    {
      absl::MutexLock lock(&mutex_);
      if (ending_) {
        return;  // the first one counts: its status may be on its way without the lock
      }
      ending_ = true;
      end_status_ = std::move(status);
      if (busy_) {
        return;
      }
      finished_ = true;
    }
    Finish(end_status_);
  }

  void OnWriteDone(bool ok) override {
    bool finish = false;
    {
      absl::MutexLock lock(&mutex_);
      busy_ = false;
      if (!ok && !ending_) {
        ending_ = true;
        end_status_ = grpc::Status(grpc::StatusCode::CANCELLED, "the watch was cancelled");
      }
      finish = ending_ && !finished_;
      finished_ = finished_ || finish;
      if (!finish && !TakeNext()) {
        return;
      }
    }
    if (finish) {
      Finish(end_status_);
    } else {
      StartWrite(&message_);
    }
  }

  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "the watch was cancelled")); }

  void OnDone() override {
    {
      // Send and End are called with the service's mutex held, so none of them is under way after this.
      absl::MutexLock lock(&service_->mutex_);
      service_->watchers_.erase(this);
    }
    delete this;
  }

 private:
  bool TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (busy_ || ending_ || wanted_ == sent_) {
      return false;
    }
    busy_ = true;
    sent_ = wanted_;
    message_.set_status(sent_);
    return true;
  }

  HealthService* const service_;
  const bool known_;  // false: the watched service does not exist here
  absl::Mutex mutex_;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  // UNKNOWN is never sent: it stands for "nothing yet".
  Status wanted_ ABSL_GUARDED_BY(mutex_) = health::HealthCheckResponse::UNKNOWN;
  Status sent_ ABSL_GUARDED_BY(mutex_) = health::HealthCheckResponse::UNKNOWN;
  // Belong to the operation in flight.
  health::HealthCheckResponse message_;
  grpc::Status end_status_;
};

HealthService::HealthService(std::vector<std::string> services) : services_(WithWholeServer(std::move(services))) {}
HealthService::~HealthService() = default;

void HealthService::SetServing(bool serving) {
  absl::MutexLock lock(&mutex_);
  serving_ = serving;
  for (Watcher* watcher : watchers_) {
    if (!watcher->known()) {
      continue;
    }
    watcher->Send(serving ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING);
  }
}

void HealthService::Shutdown() {
  absl::MutexLock lock(&mutex_);
  serving_ = false;
  shut_down_ = true;
  for (Watcher* watcher : watchers_) {
    watcher->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
  }
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const health::HealthCheckRequest* request,
                                               health::HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Knows(request->service())) {
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service"));
    return reactor;
  }
  {
    absl::MutexLock lock(&mutex_);
    response->set_status(serving_ ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING);
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<health::HealthCheckResponse>* HealthService::Watch(grpc::CallbackServerContext* /*context*/,
                                                                            const health::HealthCheckRequest* request) {
  const bool known = Knows(request->service());
  auto* watcher = new Watcher(this, known);
  absl::MutexLock lock(&mutex_);
  if (shut_down_) {
    watcher->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
  } else if (watchers_.size() >= kWatchersMax) {
    watcher->End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watches"));
  } else if (!known) {
    // The protocol keeps such a watch open, in case the service appears later; here it never does.
    watchers_.insert(watcher);
    watcher->Send(health::HealthCheckResponse::SERVICE_UNKNOWN);
  } else {
    watchers_.insert(watcher);
    watcher->Send(serving_ ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING);
  }
  return watcher;
}

}  // namespace embergate::server
