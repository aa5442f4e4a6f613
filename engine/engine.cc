#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/admission.h"
#include "engine/completion_group.h"
#include "engine/cpus.h"
#include "engine/request_check.h"
#include "engine/retry_after.h"
#include "engine/retry_estimator.h"
#include "engine/sequence.h"
#include "engine/step_loop.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr int kPrefillTokensToLearn = 16;  // a step of fewer costs as one without: no measure of a prompt's speed

// Delivering a step's tokens to 8 streams takes about 1 ms of processor time. Short pauses would be mostly the kernel's
// slack of a timer (50 us).
constexpr int64_t kPauseShare = 64;
constexpr int64_t kPauseMaxNs = 1'000'000;
constexpr int64_t kPauseFromNs = 10'000'000;

absl::Status CheckOptions(const ModelLimits& limits, const EngineOptions& options) {
  const auto positive = [](absl::string_view name, int64_t value) {
    return value >= 1 ? absl::OkStatus()
                      : absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be 1 or more"));
  };
  EMBERGATE_RETURN_IF_ERROR(positive("the model's vocab_size", limits.vocab_size));
  EMBERGATE_RETURN_IF_ERROR(positive("the model's context_max", limits.context_max));
  EMBERGATE_RETURN_IF_ERROR(positive("the model's slots_max", limits.slots_max));
  EMBERGATE_RETURN_IF_ERROR(positive("the model's logit_rows_max", limits.logit_rows_max));
  EMBERGATE_RETURN_IF_ERROR(positive("the model's step_tokens_max", limits.step_tokens_max));
  EMBERGATE_RETURN_IF_ERROR(positive("prefill_chunk_max", options.prefill_chunk_max));
  EMBERGATE_RETURN_IF_ERROR(positive("prefill_chunk_min", options.prefill_chunk_min));
  if (limits.step_tokens_max < limits.slots_max) {
    return absl::InvalidArgumentError(absl::StrCat("the model's step_tokens_max is ", limits.step_tokens_max,
                                                   "; its slots_max (", limits.slots_max, ") must fit in one step"));
  }
  if (options.waiting_max < 0 || options.waiting_tokens_max < 0 || options.waiting_bytes_max < 0 ||
      options.waiting_read_ahead < 0 || options.top_logprobs_max < 0 || options.itl_target < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("an engine option is negative");
  }
  return absl::OkStatus();
}

// What crosses threads is behind `mutex_`: the inbox, the requests by id, and copies of the loop's figures. The loop
// itself belongs to the thread that makes the passes, and sinks are called without the lock.
class EngineImpl : public Engine {
 public:
  EngineImpl(LanguageModel& model, const Tokenizer* tokenizer, std::vector<int32_t> eos_ids,
             const EngineOptions& options)
      : tokenizer_(tokenizer),
        options_(options),
        clock_(options.clock != nullptr ? *options.clock : Clock::Real()),
        limits_{model.limits(), model.FreeKvTokens(), options.top_logprobs_max, tokenizer != nullptr},
        loop_(model, std::move(eos_ids), options, clock_),
        decode_steps_(limits_.model.slots_max) {
    Publish();
    if (options.own_thread) {
      thread_ = std::thread([this] { Run(); });
    }
  }

  ~EngineImpl() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      draining_ = true;
      abort_ = absl::UnavailableError("the engine shuts down");
      stop_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
    } else {
      while (StepOnce()) {
      }
    }
  }

  absl::StatusOr<RequestId> Submit(GenerateRequest request, TokenSink* sink) override {
    absl::StatusOr<SequenceShape> shape = CheckRequest(request, limits_);
    if (!shape.ok()) {
      std::lock_guard<std::mutex> lock(mutex_);
      ++refused_;
      return shape.status();
    }
    if (request.completions > options_.waiting_max + limits_.model.slots_max) {
      std::lock_guard<std::mutex> lock(mutex_);
      ++refused_;
      return absl::InvalidArgumentError(absl::StrCat("completions is ", request.completions, "; at most ",
                                                     options_.waiting_max + limits_.model.slots_max,
                                                     " fit in the queue and the slots"));
    }
    const int64_t now = clock_.NowNs();
    const auto at = [now](absl::Duration left) {
      const int64_t ns = absl::ToInt64Nanoseconds(left);  // saturates
      return ns > INT64_MAX - now ? INT64_MAX : now + ns;
    };
    const int64_t deadline_ns = at(request.deadline - clock_.WallNow());
    const int64_t time_limit_ns = at(request.time_limit);
    const int completions = request.completions;
    const RequestId id = next_id_.fetch_add(static_cast<RequestId>(completions), std::memory_order_relaxed);
    std::unique_ptr<CompletionGroup> group;
    if (completions > 1) {
      group = std::make_unique<CompletionGroup>(completions, sink);
    }
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (int i = 0; i < completions; ++i) {
      auto sequence = std::make_unique<Sequence>(
          id + static_cast<RequestId>(i), group == nullptr ? std::move(request) : CompletionGroup::Part(request, i),
          *shape, group == nullptr ? sink : group->sink(i), tokenizer_);
      sequence->submitted_ns = now;
      sequence->deadline_ns = deadline_ns;
      sequence->time_limit_ns = time_limit_ns;
      sequence->group = id;
      sequence->prefix_scope = options_.share_prefixes ? 0 : id;
      if (group != nullptr) {
        group->set_cancelled(i, &sequence->cancelled);
      }
      sequences.push_back(std::move(sequence));
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const absl::Status room = Room(*sequences.back(), completions, now);
      if (!room.ok()) {
        ++refused_;
        return room;
      }
      ++accepted_;
      beginnings_.Add(sequences.back()->request.prompt);
      for (auto& sequence : sequences) {
        inbox_tokens_ += shape->prompt_tokens;
        inbox_bytes_ += sequence->bytes;
        by_id_.emplace(sequence->id, sequence.get());
        inbox_.push_back(std::move(sequence));
      }
      (void)group.release();  // its own from now on
    }
    wake_.notify_all();
    return id;
  }

  void Cancel(RequestId id) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (RequestId part = id; part < id + kCompletionsMax; ++part) {
      const auto it = by_id_.find(part);
      if (it != by_id_.end() && it->second->group == id) {
        it->second->cancelled.store(true, std::memory_order_relaxed);
        wake_.notify_all();
      }
    }
  }

  void Drain(absl::Time deadline) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      draining_ = true;
    }
    const auto give_up = [&] {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!by_id_.empty() && abort_.ok()) {
        abort_ = absl::UnavailableError("the server shuts down; the time to finish running requests is over");
      }
    };
    if (!thread_.joinable()) {
      while (!Idle() && clock_.WallNow() < deadline && StepOnce()) {
      }
      give_up();
      while (StepOnce()) {
      }
      return;
    }
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto done = [&] { return by_id_.empty(); };
      const absl::Duration left = deadline - clock_.WallNow();
      if (left == absl::InfiniteDuration()) {
        idle_.wait(lock, done);
      } else {
        idle_.wait_for(lock, absl::ToChronoNanoseconds(std::max(left, absl::ZeroDuration())), done);
      }
    }
    give_up();
    wake_.notify_all();
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [&] { return by_id_.empty(); });
  }

  void RunBetweenSteps(std::function<void()> job) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    wake_.notify_all();
  }

  EngineStats Snapshot() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    EngineStats stats = published_;
    stats.requests_accepted = accepted_;
    stats.requests_refused = refused_;
    stats.waiting += static_cast<int>(inbox_.size());
    stats.waiting_tokens += inbox_tokens_;
    stats.waiting_bytes += inbox_bytes_;
    stats.refused_late = refused_late_;
    return stats;
  }

  std::vector<MemoryPart> Memory() const override { return PlanMemory(limits_.model); }

  bool StepOnce() override {
    absl::Status abort;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      std::swap(inbox_, arrived_);
      std::swap(jobs_, jobs_now_);
      inbox_tokens_ = 0;
      inbox_bytes_ = 0;
      abort = std::exchange(abort_, absl::OkStatus());
      for (auto& sequence : arrived_) {
        loop_.Add(std::move(sequence));
      }
      PublishLocked();
    }
    arrived_.clear();
    for (const std::function<void()>& job : jobs_now_) {
      job();
    }
    jobs_now_.clear();
    if (!abort.ok()) {
      loop_.Abort(abort);
    }
    const bool worked = loop_.Admit();
    Publish();  // before the long part, so that Submit sees the room that admission made
    const uint64_t before = loop_.last_step().number;
    loop_.Compute();
    Publish();
    if (options_.pause_after_tokens && loop_.last_step().number != before) {
      PauseAfter(loop_.last_step());
    }
    return worked || !abort.ok();
  }

 private:
  // Whether the queue takes so many more sequences like this one. Called with the lock.
  absl::Status Room(const Sequence& sequence, int sequences, int64_t now) {
    if (draining_) {
      return WithRefusalReason(absl::UnavailableError("the server shuts down and takes no new requests"), "DRAINING");
    }
    const int slots_free = std::max(0, limits_.model.slots_max - published_.running);
    const int inbox = static_cast<int>(inbox_.size());
    const bool interactive = sequence.request.priority == Priority::kInteractive;
    const QueueState queue = {published_.waiting + inbox, published_.waiting_tokens + inbox_tokens_,
                              published_.waiting_bytes + inbox_bytes_};
    const QueueLimits limits = {options_.waiting_max, options_.waiting_tokens_max, options_.waiting_bytes_max,
                                limits_.model.slots_max, slots_free};
    const StopParams& stop = sequence.request.stop;
    const bool ends_early = !stop.ignore_eos || !stop.stop_ids.empty() || !stop.stop_strings.empty();
    Arrival arrival;
    arrival.sequences = sequences;
    arrival.prompt_tokens = sequence.shape.prompt_tokens;
    arrival.compute_tokens = beginnings_.Seen(sequence.request.prompt) ? 0 : sequence.shape.prompt_tokens;
    arrival.bytes = sequence.bytes;
    arrival.tokens_certain = std::max(1, ends_early ? stop.tokens_min : sequence.shape.tokens_max);
    // An interactive request waits for no batch work, neither waiting nor running.
    arrival.ahead = std::max(0, (interactive ? waiting_interactive_ : published_.waiting) + inbox + sequences -
                                    slots_free - (interactive ? running_batch_ : 0));
    // With a time limit before its deadline it ends well in any case.
    arrival.left_ns = sequence.time_limit_ns < sequence.deadline_ns ? INT64_MAX : sequence.deadline_ns - now;
    arrival.since_departure_ns = std::max<int64_t>(0, now - retry_.last_departure_ns());
    const int together = std::min(limits_.model.slots_max, published_.running + queue.waiting + sequences);
    const Speed speed = {prefill_token_.ns(), decode_steps_.ns(together),
                         decode_steps_.ns(std::min(limits_.model.slots_max, sequences)), retry_.interval_ns()};
    Admission admission = Admit(queue, limits, speed, arrival);
    if (admission.refusal != Refusal::kNone && admission.work_ns > arrival.left_ns) {
      prefill_token_.OnRefusal();
      decode_steps_.OnRefusal();
    }
    switch (admission.refusal) {
      case Refusal::kNone:
        return absl::OkStatus();
      case Refusal::kQueueFull:
        return WithRetryAfter(WithRefusalReason(std::move(admission.status), "QUEUE_FULL"), retry_.OnRefusal(now));
      case Refusal::kLate:
        ++refused_late_;
        return WithRetryAfter(WithRefusalReason(std::move(admission.status), "DEADLINE_UNREACHABLE"),
                              std::max(absl::Nanoseconds(admission.surplus_ns), absl::Milliseconds(50)));
      case Refusal::kNeverInTime:
        ++refused_late_;
        return WithRefusalReason(std::move(admission.status), "DEADLINE_UNREACHABLE");
    }
    return absl::OkStatus();
  }

  void LearnSpeed(const StepLoop::LastStep& step) {
    if (step.number == step_ || step.ns <= 0) {
      return;
    }
    step_ = step.number;
    if (step.prompt_tokens == 0) {
      decode_steps_.OnMeasured(step.decodes, static_cast<double>(step.ns));
    } else if (step.prompt_tokens >= kPrefillTokensToLearn) {
      const double decodes = step.decodes > 0 ? decode_steps_.ns(step.decodes) : 0;
      prefill_token_.OnMeasured(std::max(static_cast<double>(step.ns) - decodes, 0.0) / step.prompt_tokens);
    }
  }

  void PauseAfter(const StepLoop::LastStep& step) {
    if (step.tokens > 0 && step.ns >= kPauseFromNs) {
      clock_.Sleep(absl::Nanoseconds(std::min(step.ns / kPauseShare, kPauseMaxNs)));
    }
  }

  bool Idle() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return by_id_.empty();
  }

  void Run() {
    NameThisThread("step");
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || !inbox_.empty() || !jobs_.empty() || !abort_.ok() || !by_id_.empty(); });
        if (stop_ && by_id_.empty()) {
          return;
        }
      }
      StepOnce();
    }
  }

  void Publish() {
    std::lock_guard<std::mutex> lock(mutex_);
    PublishLocked();
  }

  // Takes the loop's figures, and forgets the requests that have ended.
  void PublishLocked() {
    published_ = loop_.stats();
    published_.waiting = loop_.waiting();
    published_.waiting_tokens = loop_.waiting_tokens();
    published_.waiting_bytes = loop_.waiting_bytes();
    waiting_interactive_ = loop_.waiting_interactive();
    running_batch_ = loop_.running_batch();
    LearnSpeed(loop_.last_step());
    const uint64_t departures = loop_.departures();
    retry_.OnDepartures(static_cast<int>(departures - departures_), published_.waiting, clock_.NowNs());
    retry_.set_first_guess_ns(loop_.FirstEndNs());
    departures_ = departures;
    if (loop_.retired().empty()) {
      return;
    }
    for (const auto& sequence : loop_.retired()) {
      by_id_.erase(sequence->id);
    }
    loop_.retired().clear();
    if (by_id_.empty()) {
      idle_.notify_all();
    }
  }

  const Tokenizer* const tokenizer_;
  const EngineOptions options_;
  const Clock& clock_;
  const RequestLimits limits_;
  std::atomic<RequestId> next_id_{1};

  StepLoop loop_;  // of the thread that makes the passes
  std::vector<std::unique_ptr<Sequence>> arrived_;
  std::vector<std::function<void()>> jobs_now_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // something for the engine thread
  std::condition_variable idle_;  // by_id_ became empty
  std::vector<std::unique_ptr<Sequence>> inbox_;
  int64_t inbox_tokens_ = 0;
  int64_t inbox_bytes_ = 0;
  std::vector<std::function<void()>> jobs_;         // of RunBetweenSteps
  std::unordered_map<RequestId, Sequence*> by_id_;  // accepted, not ended
  EngineStats published_;
  int waiting_interactive_ = 0;  // as of the last pass
  int running_batch_ = 0;
  RetryEstimator retry_;
  SpeedEstimate prefill_token_;
  DecodeSpeeds decode_steps_;
  SeenBeginnings beginnings_;
  uint64_t step_ = 0;        // of the loop's, the last that the estimates know
  uint64_t departures_ = 0;  // of the loop's, those that retry_ knows
  uint64_t accepted_ = 0;
  uint64_t refused_ = 0;
  uint64_t refused_late_ = 0;
  bool draining_ = false;
  absl::Status abort_;  // not OK: end everything with it
  bool stop_ = false;

  std::thread thread_;
};

}  // namespace

std::vector<MemoryPart> Engine::PlanMemory(const ModelLimits& limits) {
  return {{"logits_and_sampler", StepLoop::BytesFor(limits)}};
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(LanguageModel& model, const Tokenizer* tokenizer,
                                                       std::vector<int32_t> eos_ids, const EngineOptions& options) {
  EMBERGATE_RETURN_IF_ERROR(CheckOptions(model.limits(), options));
  for (int32_t id : eos_ids) {
    if (id < 0 || id >= model.limits().vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("end-of-sequence id ", id, " is outside the vocabulary of ", model.limits().vocab_size));
    }
  }
  return std::unique_ptr<Engine>(std::make_unique<EngineImpl>(model, tokenizer, std::move(eos_ids), options));
}

}  // namespace embergate::engine
