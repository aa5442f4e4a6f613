// Who may call, and how much: API keys and their limits, and the names that client certificates carry.
#ifndef EMBERGATE_SERVER_GATEKEEPER_H_
#define EMBERGATE_SERVER_GATEKEEPER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "embergate/v1/generate.pb.h"
#include "engine/clock.h"
#include "engine/request.h"
#include "server/api_keys.h"
#include "server/client_account.h"

namespace embergate::server {

// One call's standing with the gatekeeper, from its first moment to its end: destroying it gives back what the call
// has reserved. Threads: one at a time.
class CallTicket {
 public:
  // `identity`: who calls; empty = nobody in particular. `account` may be null; with `streaming`, one of its streams
  // has been taken.
  CallTicket(absl::Status status, std::string identity, std::shared_ptr<ClientAccount> account, bool streaming)
      : status_(std::move(status)),
        identity_(std::move(identity)),
        account_(std::move(account)),
        streaming_(streaming) {}
  ~CallTicket();
  CallTicket(const CallTicket&) = delete;
  CallTicket& operator=(const CallTicket&) = delete;

  // OK, or why the call is refused.
  const absl::Status& status() const { return status_; }
  // Of the API key or the certificate; empty = anonymous.
  const std::string& identity() const { return identity_; }

  // For a request that has been parsed: it takes part as this client and with its weight, and reserves the tokens that
  // it may need, of `context_max` at most. `asked` is the priority as the client wrote it: one that may only do batch
  // work gets that if it asks for nothing, and PERMISSION_DENIED (PRIORITY_NOT_ALLOWED) if it asks for more.
  absl::Status Admit(v1::Priority asked, int context_max, engine::GenerateRequest& request);
  // What it has used of that.
  void Settle(int64_t tokens_used) { tokens_used_ = tokens_used; }

 private:
  const absl::Status status_;
  const std::string identity_;
  const std::shared_ptr<ClientAccount> account_;
  const bool streaming_;
  int64_t tokens_reserved_ = 0;
  int64_t tokens_used_ = 0;
};

// Threads: any.
class Gatekeeper {
 public:
  explicit Gatekeeper(const engine::Clock& clock = engine::Clock::Real()) : clock_(clock) {}

  // From now on calls need the key of one of these (>= 1). Those with a known name keep what they have used; calls
  // under way go on.
  void SetClients(const std::vector<ApiClient>& clients);

  // Never null. Refused tickets: UNAUTHENTICATED (API_KEY_MISSING, API_KEY_UNKNOWN), RESOURCE_EXHAUSTED
  // (REQUEST_RATE_EXCEEDED, TOO_MANY_STREAMS). `streaming`: the call counts as one of the client's streams.
  std::unique_ptr<CallTicket> Enter(const grpc::ServerContextBase& context, bool streaming) const;

  // Calls without a key, and with a wrong one.
  uint64_t keys_missing() const { return keys_missing_.load(std::memory_order_relaxed); }
  uint64_t keys_unknown() const { return keys_unknown_.load(std::memory_order_relaxed); }
  // Of all clients of the file, by name.
  std::vector<std::pair<std::string, ClientAccount::Usage>> Usage() const;

 private:
  struct KeyOwner {
    KeyDigest key;
    std::shared_ptr<ClientAccount> account;
  };
  using Keys = std::vector<KeyOwner>;

  const engine::Clock& clock_;
  mutable std::atomic<uint64_t> keys_missing_{0};
  mutable std::atomic<uint64_t> keys_unknown_{0};
  mutable absl::Mutex mutex_;
  std::shared_ptr<const Keys> keys_ ABSL_GUARDED_BY(mutex_);  // null: no key is asked for
  std::map<std::string, std::shared_ptr<ClientAccount>> accounts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_GATEKEEPER_H_
