// What one client of the API key file has used and may use.
#ifndef EMBERGATE_SERVER_CLIENT_ACCOUNT_H_
#define EMBERGATE_SERVER_CLIENT_ACCOUNT_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "server/api_keys.h"

namespace embergate::server {

// A bucket that holds a minute's worth and is refilled evenly: a client that was quiet may use a minute's worth at
// once, and in the long run no more than its rate. A pure state machine. Threads: one at a time.
class RateBucket {
 public:
  // 0 = no limit. What was used stays used.
  void SetRate(int64_t per_minute, int64_t now_ns);
  // Takes `amount` if it is there and returns zero; else takes nothing and returns the time after which it will be
  // there, if nobody else takes it. An amount above a minute's worth needs a full bucket, and leaves it in debt.
  absl::Duration Take(double amount, int64_t now_ns);
  void Return(double amount) { level_ += amount; }  // of what was taken, once it turns out not to be needed

 private:
  void Refill(int64_t now_ns);

  double rate_ = 0;  // per minute, and the capacity
  double level_ = 0;
  int64_t filled_ns_ = 0;
};

// Threads: any.
class ClientAccount {
 public:
  ClientAccount(std::string name, const engine::Clock& clock) : name_(std::move(name)), clock_(clock) {}

  const std::string& name() const { return name_; }
  void SetLimits(const ClientLimits& limits);
  ClientLimits limits() const;

  // One call. RESOURCE_EXHAUSTED (REQUEST_RATE_EXCEEDED, with the delay after which there is room again).
  absl::Status TakeRequest();
  // RESOURCE_EXHAUSTED (TOO_MANY_STREAMS); give it back with ReturnStream.
  absl::Status TakeStream();
  void ReturnStream();
  // What a request may use at most. RESOURCE_EXHAUSTED (TOKEN_RATE_EXCEEDED, with the delay); give back what it did
  // not use with ReturnTokens.
  absl::Status TakeTokens(int64_t tokens);
  void ReturnTokens(int64_t reserved, int64_t used);

  struct Usage {
    uint64_t requests = 0;  // that were let in
    uint64_t refused_requests = 0;
    uint64_t refused_streams = 0;
    uint64_t refused_tokens = 0;
    uint64_t tokens = 0;  // computed for it
    int streams = 0;
  };
  Usage usage() const;

 private:
  const std::string name_;
  const engine::Clock& clock_;
  mutable absl::Mutex mutex_;
  ClientLimits limits_ ABSL_GUARDED_BY(mutex_);
  RateBucket requests_ ABSL_GUARDED_BY(mutex_);
  RateBucket tokens_ ABSL_GUARDED_BY(mutex_);
  Usage usage_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLIENT_ACCOUNT_H_
