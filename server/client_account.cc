#include "server/client_account.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

constexpr double kMinuteNs = 60e9;

absl::Status Refused(std::string message, absl::string_view reason) {
  return WithReason(absl::ResourceExhaustedError(std::move(message)), reason);
}

}  // namespace

void RateBucket::SetRate(int64_t per_minute, int64_t now_ns) {
  Refill(now_ns);
  const double rate = static_cast<double>(per_minute);
  level_ = rate_ > 0 ? std::min(level_, rate) : rate;  // a new limit begins with a full bucket
  rate_ = rate;
}

absl::Duration RateBucket::Take(double amount, int64_t now_ns) {
  if (rate_ <= 0) {
    return absl::ZeroDuration();
  }
  Refill(now_ns);
  const double missing = std::min(amount, rate_) - level_;
  // What rounding leaves of a refill must not turn a delay that was kept into another one.
  if (missing > 1e-6) {
    return absl::Milliseconds(std::ceil(missing / rate_ * kMinuteNs * 1e-6));
  }
  level_ -= amount;
  return absl::ZeroDuration();
}

void RateBucket::Refill(int64_t now_ns) {
  const double elapsed = static_cast<double>(now_ns - filled_ns_) / kMinuteNs;
  level_ = std::min(rate_, level_ + elapsed * rate_);
  filled_ns_ = now_ns;
}

void ClientAccount::SetLimits(const ClientLimits& limits) {
  absl::MutexLock lock(&mutex_);
  limits_ = limits;
  requests_.SetRate(limits.requests_per_minute, clock_.NowNs());
  tokens_.SetRate(limits.tokens_per_minute, clock_.NowNs());
}

ClientLimits ClientAccount::limits() const {
  absl::MutexLock lock(&mutex_);
  return limits_;
}

absl::Status ClientAccount::TakeRequest() {
  absl::MutexLock lock(&mutex_);
  const absl::Duration delay = requests_.Take(1, clock_.NowNs());
  if (delay > absl::ZeroDuration()) {
    ++usage_.refused_requests;
    return WithRetry(Refused(absl::StrCat("this API key may make ", limits_.requests_per_minute, " calls per minute"),
                             "REQUEST_RATE_EXCEEDED"),
                     delay);
  }
  ++usage_.requests;
  return absl::OkStatus();
}

absl::Status ClientAccount::TakeStream() {
  absl::MutexLock lock(&mutex_);
  if (limits_.streams > 0 && usage_.streams >= limits_.streams) {
    ++usage_.refused_streams;
    // No delay: when one of its own calls ends, the client knows better than we.
    return Refused(absl::StrCat("this API key may have ", limits_.streams, " calls at once"), "TOO_MANY_STREAMS");
  }
  ++usage_.streams;
  return absl::OkStatus();
}

void ClientAccount::ReturnStream() {
  absl::MutexLock lock(&mutex_);
  --usage_.streams;
}

absl::Status ClientAccount::TakeTokens(int64_t tokens) {
  absl::MutexLock lock(&mutex_);
  const absl::Duration delay = tokens_.Take(static_cast<double>(tokens), clock_.NowNs());
  if (delay > absl::ZeroDuration()) {
    ++usage_.refused_tokens;
    return WithRetry(Refused(absl::StrCat("this API key may use ", limits_.tokens_per_minute,
                                          " tokens per minute, and the request may need ", tokens),
                             "TOKEN_RATE_EXCEEDED"),
                     delay);
  }
  return absl::OkStatus();
}

void ClientAccount::ReturnTokens(int64_t reserved, int64_t used) {
  absl::MutexLock lock(&mutex_);
  tokens_.Return(static_cast<double>(reserved - std::min(reserved, used)));
  usage_.tokens += static_cast<uint64_t>(used);
}

ClientAccount::Usage ClientAccount::usage() const {
  absl::MutexLock lock(&mutex_);
  return usage_;
}

}  // namespace embergate::server
