// What is counted and logged about one call, exactly once, when its outcome is known.
#ifndef EMBERGATE_SERVER_CALL_RECORD_H_
#define EMBERGATE_SERVER_CALL_RECORD_H_

#include <chrono>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/token_sink.h"
#include "server/call_identity.h"
#include "server/server_stats.h"

namespace embergate::server {

// Threads: one at a time. Never sees prompt or answer.
class CallRecord {
 public:
  CallRecord(Method method, CallIdentity identity, ServerStats* stats)
      : method_(method), identity_(std::move(identity)), stats_(stats), start_(std::chrono::steady_clock::now()) {}

  const std::string& request_id() const { return identity_.request_id; }

  // `finish` is null for calls that never reached the engine. `status` is what the server knows; `sent` the code that
  // the client gets.
  void Finish(const absl::Status& status, grpc::StatusCode sent, const engine::FinishEvent* finish);
  void CountSlowReader() { stats_->slow_readers.fetch_add(1, std::memory_order_relaxed); }

 private:
  Method method_;
  CallIdentity identity_;
  ServerStats* stats_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CALL_RECORD_H_
