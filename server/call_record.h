// What is counted and logged about one call, exactly once, when its outcome is known.
#ifndef EMBERGATE_SERVER_CALL_RECORD_H_
#define EMBERGATE_SERVER_CALL_RECORD_H_

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/token_sink.h"
#include "server/call_identity.h"
#include "server/gatekeeper.h"
#include "server/server_stats.h"

namespace embergate::server {

// Threads: one at a time. Never sees prompt or answer. It takes the call's ticket, so that there is no call that the
// gatekeeper has not seen, and what the ticket holds is given back when the call ends.
class CallRecord {
 public:
  CallRecord(Method method, CallIdentity identity, std::unique_ptr<CallTicket> ticket, ServerStats* stats)
      : method_(method),
        identity_(std::move(identity)),
        ticket_(std::move(ticket)),
        stats_(stats),
        start_(std::chrono::steady_clock::now()) {}

  const std::string& request_id() const { return identity_.request_id; }
  // Until Finish.
  CallTicket& ticket() { return *ticket_; }

  // `finish` is null for calls that never reached the engine. `status` is what the server knows; `sent` what the client
  // gets.
  void Finish(const absl::Status& status, const grpc::Status& sent, const engine::FinishEvent* finish);
  void CountSlowReader() { stats_->slow_readers.fetch_add(1, std::memory_order_relaxed); }

 private:
  Method method_;
  CallIdentity identity_;
  std::unique_ptr<CallTicket> ticket_;
  ServerStats* stats_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CALL_RECORD_H_
