// Whether an arriving request is taken into the queue: room, and a deadline that can be met. A pure function of what
// was measured, so that a test can ask it anything.
#ifndef EMBERGATE_ENGINE_ADMISSION_H_
#define EMBERGATE_ENGINE_ADMISSION_H_

#include <cstdint>
#include <deque>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace embergate::engine {

// What waits for a slot, and how much of it may.
struct QueueState {
  int waiting = 0;
  int64_t tokens = 0;  // of their prompts
  int64_t bytes = 0;   // DRAM that they hold
};
struct QueueLimits {
  int waiting_max = 0;  // besides those for which a slot is free
  int64_t tokens_max = 0;
  int64_t bytes_max = 0;
  int slots_max = 0;  // for the message
  int slots_free = 0;
};

// Measured; 0 = not yet, and then counted as no time.
struct Speed {
  double prefill_token_ns = 0;
  double decode_step_ns = 0;        // in the company that it would have now
  double decode_step_alone_ns = 0;  // on an idle machine
  double departure_ns = 0;          // mean interval at which requests leave a queue that is not empty
};

struct Arrival {
  int sequences = 1;  // a request for several answers takes a place for each, or is refused as a whole
  int prompt_tokens = 0;
  int64_t bytes = 0;  // of one sequence
  // Tokens that it generates in any case: 1, or more where it asked not to stop before.
  int tokens_certain = 0;
  int compute_tokens = 0;  // of the prompt, those that have to be computed in any case
  int ahead = 0;           // departures that it has to wait for
  int64_t left_ns = 0;     // until its deadline
  int64_t since_departure_ns = 0;
};

enum class Refusal { kNone, kQueueFull, kLate, kNeverInTime };
struct Admission {
  Refusal refusal = Refusal::kNone;
  absl::Status status;     // says what was exceeded, in numbers; OK when admitted
  int64_t wait_ns = 0;     // for a slot, as estimated
  int64_t work_ns = 0;     // from then on, as estimated
  int64_t alone_ns = 0;    // that it would take on an idle machine, as estimated
  int64_t surplus_ns = 0;  // kLate: how much sooner it would have to end
};

// A request waits for a slot, computes its prompt, then one step per token. It is refused as kLate when that does not
// end before its deadline; as kNeverInTime when it would not even on an idle machine. One request alone, all its
// answers together, may exceed tokens_max and bytes_max: it has to go in some time.
Admission Admit(const QueueState& queue, const QueueLimits& limits, const Speed& speed, const Arrival& arrival);

// The estimate of a speed, for deadlines: the mean of recent steps, of which none counts as more than twice the mean so
// far, so that one stall (of a card, or of the whole machine) refuses nobody, while a lasting slowdown is followed
// within some steps. A little more hopeful after each refusal that went by it: a server that refuses everything
// measures nothing. A pure state machine. Threads: one at a time.
class SpeedEstimate {
 public:
  void OnMeasured(double ns);
  void OnRefusal() { hope_ *= 0.9; }
  double ns() const { return mean_ns_ * hope_; }

 private:
  double mean_ns_ = 0;
  double hope_ = 1;
};

// How long a decode step takes, by the number of sequences that it serves: a machine that has served many at once is
// not as slow for one that comes when they are gone. A pure state machine. Threads: one at a time.
class DecodeSpeeds {
 public:
  explicit DecodeSpeeds(int sequences_max) : by_sequences_(static_cast<size_t>(sequences_max)) {}
  void OnMeasured(int sequences, double ns) { by_sequences_[static_cast<size_t>(sequences) - 1].OnMeasured(ns); }
  void OnRefusal();
  // Where that number was not measured, of the nearest smaller one: rather too short than too long. 0 = no measurement.
  double ns(int sequences) const;

 private:
  std::vector<SpeedEstimate> by_sequences_;  // of 1, 2, ...
};

// Whether a prompt's keys and values may be cached: whether another one began with the same tokens, lately. It may say
// so of one that is not cached any more; a prompt of which it does not say so has fewer than kTokens of them cached.
// Threads: one at a time.
class SeenBeginnings {
 public:
  static constexpr size_t kTokens = 32;
  static constexpr size_t kBeginningsMax = 4096;

  bool Seen(absl::Span<const int32_t> prompt) const { return seen_.count(Hash(prompt)) > 0; }
  void Add(absl::Span<const int32_t> prompt);

 private:
  static uint64_t Hash(absl::Span<const int32_t> prompt);

  std::unordered_set<uint64_t> seen_;
  std::deque<uint64_t> order_;  // oldest first
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_ADMISSION_H_
