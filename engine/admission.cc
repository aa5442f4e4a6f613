#include "engine/admission.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace embergate::engine {
namespace {

constexpr double kWeight = 0.2;   // of a new measurement in the mean
constexpr double kSlowest = 2.0;  // times the mean, as far as a measurement counts

std::string Seconds(int64_t ns) { return absl::FormatDuration(absl::Milliseconds((ns + 999'999) / 1'000'000)); }

Admission Full(absl::Status status) { return {Refusal::kQueueFull, std::move(status)}; }

}  // namespace

Admission Admit(const QueueState& queue, const QueueLimits& limits, const Speed& speed, const Arrival& arrival) {
  if (queue.waiting + arrival.sequences > limits.waiting_max + limits.slots_free) {
    return Full(absl::ResourceExhaustedError(absl::StrCat(
        "the queue is full: ", queue.waiting, " requests wait for one of ", limits.slots_max,
        " slots, and no more than ", limits.waiting_max, " may",
        arrival.sequences > 1 ? absl::StrCat("; this one counts as ", arrival.sequences, ", one for each answer")
                              : "")));
  }
  const int64_t tokens = int64_t{arrival.sequences} * arrival.prompt_tokens;
  if (queue.tokens > 0 && queue.tokens + tokens > limits.tokens_max) {
    return Full(absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", queue.tokens, " prompt tokens wait, ",
                                                          tokens, " more would exceed ", limits.tokens_max)));
  }
  const int64_t bytes = arrival.sequences * arrival.bytes;
  if (queue.bytes > 0 && queue.bytes + bytes > limits.bytes_max) {
    return Full(absl::ResourceExhaustedError(absl::StrCat("the queue is full: its requests hold ", queue.bytes,
                                                          " bytes, ", bytes, " more would exceed ", limits.bytes_max)));
  }
  Admission admission;
  const auto takes = [&](double step_ns) {
    return static_cast<int64_t>(speed.prefill_token_ns * arrival.compute_tokens +
                                step_ns * std::max(0, arrival.tokens_certain - 1));
  };
  admission.work_ns = takes(speed.decode_step_ns);
  admission.alone_ns = std::min(admission.work_ns, takes(speed.decode_step_alone_ns));
  admission.wait_ns = std::max<int64_t>(0, static_cast<int64_t>(speed.departure_ns * arrival.ahead) -
                                               (arrival.ahead > 0 ? arrival.since_departure_ns : 0));
  const int64_t surplus = admission.wait_ns + admission.work_ns - arrival.left_ns;
  if (surplus <= 0 || arrival.left_ns <= 0) {  // one that is over already ends as that, not as refused
    return admission;
  }
  admission.surplus_ns = surplus;
  const auto needs = [&](int64_t ns) {
    return absl::StrCat("a prompt of ", arrival.prompt_tokens, " tokens and ", arrival.tokens_certain,
                        arrival.tokens_certain == 1 ? " token" : " tokens", " of output take about ", Seconds(ns),
                        " at the speed measured");
  };
  if (admission.alone_ns > arrival.left_ns) {
    admission.refusal = Refusal::kNeverInTime;
    admission.status = absl::ResourceExhaustedError(absl::StrCat(
        "the deadline cannot be met: ", needs(admission.alone_ns), ", and it leaves ", Seconds(arrival.left_ns)));
  } else {
    admission.refusal = Refusal::kLate;
    const std::string before =
        arrival.ahead == 0 ? "beside what runs "
                           : absl::StrCat("a slot is free in about ", Seconds(admission.wait_ns), " (", arrival.ahead,
                                          arrival.ahead == 1 ? " request has" : " requests have", " to end before), ");
    admission.status =
        absl::ResourceExhaustedError(absl::StrCat("the deadline cannot be met: ", before, needs(admission.work_ns),
                                                  ", and the deadline leaves ", Seconds(arrival.left_ns)));
  }
  return admission;
}

void DecodeSpeeds::OnRefusal() {
  for (SpeedEstimate& estimate : by_sequences_) {
    estimate.OnRefusal();
  }
}

double DecodeSpeeds::ns(int sequences) const {
  for (size_t i = static_cast<size_t>(sequences); i > 0; --i) {
    if (by_sequences_[i - 1].ns() > 0) {
      return by_sequences_[i - 1].ns();
    }
  }
  return 0;
}

uint64_t SeenBeginnings::Hash(absl::Span<const int32_t> prompt) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const int32_t id : prompt.subspan(0, kTokens)) {
    hash = (hash ^ static_cast<uint32_t>(id)) * 1099511628211u;
  }
  return hash;
}

void SeenBeginnings::Add(absl::Span<const int32_t> prompt) {
  const uint64_t hash = Hash(prompt);
  if (!seen_.insert(hash).second) {
    return;
  }
  order_.push_back(hash);
  if (order_.size() > kBeginningsMax) {
    seen_.erase(order_.front());
    order_.pop_front();
  }
}

void SpeedEstimate::OnMeasured(double ns) {
  mean_ns_ = mean_ns_ == 0 ? ns : mean_ns_ + kWeight * (std::min(ns, kSlowest * mean_ns_) - mean_ns_);
  hope_ = 1;
}

}  // namespace embergate::engine
