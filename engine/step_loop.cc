#include "engine/step_loop.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/histogram.h"

namespace embergate::engine {
namespace {

constexpr double kBatchCost = 16;
// A prompt waits for another one to compute at least so many tokens that they share. Less is done sooner than waited
// for; answers of one request have nothing else to share.
constexpr int kSharedMin = 64;
constexpr int kSharedMinOfGroup = 4;

double Seconds(int64_t from_ns, int64_t to_ns) { return static_cast<double>(to_ns - from_ns) * 1e-9; }

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

struct StepLoop::Pending {
  Sequence* sequence = nullptr;
  int logits_row = -1;  // of the sampled token; -1 = none was sampled
  bool finish = false;
  FinishReason reason = FinishReason::kStop;
  absl::Status status;
  int32_t stop_id = -1;

  void Finish(FinishReason finish_reason, absl::Status finish_status) {
    finish = true;
    reason = finish_reason;
    status = std::move(finish_status);
  }
};

StepLoop::StepLoop(LanguageModel& model, std::vector<int32_t> eos_ids, const EngineOptions& options, const Clock& clock)
    : model_(model),
      eos_ids_(std::move(eos_ids)),
      options_(options),
      clock_(clock),
      limits_(model.limits()),
      logits_(static_cast<size_t>(limits_.logit_rows_max) * static_cast<size_t>(limits_.vocab_size)),
      sampler_(limits_.vocab_size),
      pace_(absl::ToInt64Nanoseconds(options.itl_target), options.prefill_chunk_min, limits_.step_tokens_max) {
  for (int slot = limits_.slots_max - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
  top_.Reserve(limits_.vocab_size);
  const size_t slots = static_cast<size_t>(limits_.slots_max);
  running_.reserve(slots);
  chunks_.reserve(slots);
  pending_.reserve(slots);
  slots_of_request_.reserve(slots);
  running_view_.reserve(slots);
  waiting_.reserve(static_cast<size_t>(options.waiting_max) + slots);
  waiting_view_.reserve(static_cast<size_t>(options.waiting_max) + slots);
  preemption_.victims.reserve(slots);
  preemption_.order.reserve(slots);
  retired_.reserve(static_cast<size_t>(options.waiting_max) + slots);
  stats_.queue_seconds = MakeHistogram(WaitBounds());
  stats_.ttft_seconds = MakeHistogram(WaitBounds());
  stats_.itl_seconds = MakeHistogram(StepBounds());
  stats_.step_seconds = MakeHistogram(StepBounds());
  stats_.kv_tokens_free = model_.FreeKvTokens();
  stats_.prefill_budget = pace_.budget();
}

StepLoop::~StepLoop() = default;

size_t StepLoop::BytesFor(const ModelLimits& limits) {
  const size_t vocab = static_cast<size_t>(limits.vocab_size);
  return static_cast<size_t>(limits.logit_rows_max) * vocab * sizeof(float) + Sampler::BytesFor(limits.vocab_size) +
         vocab * (sizeof(float) + sizeof(ScoredId));
}

int64_t StepLoop::FirstEndNs() const {
  if (running_.empty() || stats_.steps == 0) {
    return 0;
  }
  int64_t steps = INT64_MAX;
  for (const auto& sequence : running_) {
    const int64_t prompt = std::max(0, sequence->prefill_end - sequence->computed);
    steps = std::min(steps, (prompt + options_.prefill_chunk_max - 1) / options_.prefill_chunk_max +
                                sequence->shape.tokens_max - sequence->generated());
  }
  return steps * static_cast<int64_t>(stats_.step_ns / stats_.steps);
}

absl::Span<float> StepLoop::LogitsRow(int row) {
  const size_t width = static_cast<size_t>(limits_.vocab_size);
  return absl::MakeSpan(logits_).subspan(static_cast<size_t>(row) * width, width);
}

// ---- Admission -----------------------------------------------------------------------------------

void StepLoop::Add(std::unique_ptr<Sequence> sequence) {
  const GenerateRequest& request = sequence->request;
  const bool batch = request.priority == Priority::kBatch;
  sequence->order_tag = order_.Arrive(
      batch ? absl::StrCat("batch ", request.client_key) : absl::StrCat("interactive ", request.client_key),
      sequence->shape.kv_tokens, batch ? request.client_weight / kBatchCost : request.client_weight);
  Enqueue(std::move(sequence));
}

void StepLoop::Enqueue(std::unique_ptr<Sequence> sequence) {
  waiting_tokens_ += sequence->shape.prompt_tokens;
  waiting_bytes_ += sequence->bytes;
  const auto behind = std::upper_bound(waiting_.begin(), waiting_.end(), sequence->order_tag,
                                       [](double tag, const auto& other) { return tag < other->order_tag; });
  waiting_.insert(behind, std::move(sequence));
}

// The one for which another was set aside leaves it its place, so that a place is free only when somebody else leaves.
void StepLoop::CountDeparture() {
  if (places_taken_back_ > 0) {
    --places_taken_back_;
  } else {
    ++departures_;
  }
}

bool StepLoop::Admit() {
  EndDue();
  Preempt();
  HoldFollowers();
  Plan(&plan_);
  while (!OpenSlots()) {
    HoldFollowers();
    Plan(&plan_);  // the model had less room than it said, or a prompt's beginning already
  }
  stats_.waiting = waiting();
  stats_.waiting_tokens = waiting_tokens_;
  stats_.running = static_cast<int>(running_.size());
  stats_.kv_tokens_free = model_.FreeKvTokens();
  stats_.prefix_cache = model_.PrefixStats();
  return !plan_.chunks.empty() || !retired_.empty();
}

int StepLoop::waiting_interactive() const {
  return static_cast<int>(std::count_if(waiting_.begin(), waiting_.end(), [](const auto& sequence) {
    return sequence->request.priority == Priority::kInteractive;
  }));
}

int StepLoop::running_batch() const {
  return static_cast<int>(std::count_if(running_.begin(), running_.end(), [](const auto& sequence) {
    return sequence->request.priority == Priority::kBatch;
  }));
}

void StepLoop::Preempt() {
  const int64_t now = clock_.NowNs();
  running_view_.clear();
  bool any = false;
  for (const auto& sequence : running_) {
    running_view_.push_back(sequence->AsRunning(now));
    any = any || running_view_.back().preemptible;
  }
  if (!any || waiting_.empty() || admission_closed_) {
    return;
  }
  waiting_view_.clear();
  for (const auto& sequence : waiting_) {
    waiting_view_.push_back(sequence->AsWaiting());
  }
  SchedulerInput input;
  input.running = running_view_;
  input.waiting = waiting_view_;
  input.slots_free = static_cast<int>(free_slots_.size());
  input.kv_tokens_free = model_.FreeKvTokens();
  PlanPreemption(input, &preemption_);
  if (preemption_.waiting < 0) {
    return;
  }
  // The one that they make room for goes first, with the tag of the first: the list stays in order.
  const auto wanting = waiting_.begin() + preemption_.waiting;
  (*wanting)->order_tag = waiting_.front()->order_tag;
  std::rotate(waiting_.begin(), wanting, wanting + 1);
  for (const int victim : preemption_.victims) {
    SetAside(victim, now);
  }
  running_.erase(std::remove(running_.begin(), running_.end(), nullptr), running_.end());
}

void StepLoop::SetAside(int running_index, int64_t now) {
  NoteKvBytes(*running_[static_cast<size_t>(running_index)]);
  std::unique_ptr<Sequence> sequence = std::move(running_[static_cast<size_t>(running_index)]);
  DropRows(*sequence);
  model_.CloseSlot(sequence->slot);
  free_slots_.push_back(sequence->slot);
  sequence->SetAside(now);
  ++places_taken_back_;
  ++stats_.preemptions;
  const int64_t left = sequence->shape.kv_tokens - static_cast<int64_t>(sequence->tokens.size()) + 1;
  sequence->order_tag = order_.Return(static_cast<double>(left), sequence->request.client_weight / kBatchCost);
  Enqueue(std::move(sequence));
}

void StepLoop::Plan(StepPlan* plan) {
  const int64_t now = clock_.NowNs();
  running_view_.clear();
  for (const auto& sequence : running_) {
    running_view_.push_back(sequence->AsRunning(now));
  }
  waiting_view_.clear();
  for (const auto& sequence : waiting_) {
    if (waiting_view_.size() >= free_slots_.size() || admission_closed_) {
      break;
    }
    waiting_view_.push_back(sequence->AsWaiting());
  }
  SchedulerInput input;
  input.limits = {limits_.step_tokens_max, limits_.logit_rows_max, options_.prefill_chunk_max};
  input.running = running_view_;
  input.waiting = waiting_view_;
  input.slots_free = static_cast<int>(free_slots_.size());
  input.kv_tokens_free = model_.FreeKvTokens();
  input.prefill_budget = pace_.budget();
  PlanStep(input, plan);
}

void StepLoop::EndDue() {
  const int64_t now = clock_.NowNs();
  const auto sweep = [&](std::vector<std::unique_ptr<Sequence>>& list) {
    for (auto& sequence : list) {
      if (sequence->cancelled.load(std::memory_order_relaxed)) {
        Finish(*sequence, FinishReason::kCancelled, absl::CancelledError("the request was cancelled"));
      } else if (now >= sequence->deadline_ns) {
        Finish(*sequence, FinishReason::kDeadline,
               absl::DeadlineExceededError(
                   absl::StrCat("the deadline passed after ", sequence->generated(), " generated tokens")));
      } else if (now >= sequence->time_limit_ns) {
        Finish(*sequence, FinishReason::kTimeLimit, absl::OkStatus());
      } else if (sequence->shape.prefill_tokens == 0) {  // one token to score: there is nothing to predict it from
        Start(*sequence, now);
        Finish(*sequence, FinishReason::kLength, absl::OkStatus());
      }
    }
    Retire(list);
  };
  sweep(waiting_);
  sweep(running_);
}

bool StepLoop::OpenSlots() {
  const int64_t now = clock_.NowNs();
  bool all = true;
  for (int i = 0; i < plan_.admitted; ++i) {
    Sequence& sequence = *waiting_[static_cast<size_t>(i)];
    const int slot = free_slots_.back();
    const absl::StatusOr<int> reused =
        model_.OpenSlotWithPrefix(slot, sequence.shape.kv_tokens, sequence.Reusable(), sequence.prefix_scope);
    const absl::Status& status = reused.status();
    if (absl::IsResourceExhausted(status) && free_slots_.size() < static_cast<size_t>(limits_.slots_max)) {
      all = false;  // it goes on waiting until a running sequence has given its KV back
      plan_.admitted = i;
      admission_closed_ = true;
      break;
    }
    if (!status.ok()) {
      Finish(sequence, FinishReason::kError, status);
      all = false;
      continue;
    }
    free_slots_.pop_back();
    sequence.slot = slot;
    sequence.served_step = step_ + 1;
    TakeReused(sequence, *reused);
    all = all && !model_.reuses_prefixes();  // the plan counted on all of it to be computed, and at once
    sequence.tokens.reserve(static_cast<size_t>(sequence.shape.prompt_tokens) +
                            static_cast<size_t>(sequence.shape.tokens_max));
    if (sequence.receipt.preemptions == 0) {
      Start(sequence, now);
    } else {
      Resume(sequence, now);
    }
  }
  for (int i = 0; i < plan_.admitted; ++i) {
    auto& sequence = waiting_[static_cast<size_t>(i)];
    if (sequence->slot >= 0) {
      CountDeparture();
      order_.OnServed(sequence->order_tag);
      waiting_tokens_ -= sequence->shape.prompt_tokens;
      waiting_bytes_ -= sequence->bytes;
      running_.push_back(std::move(sequence));
    }
  }
  Retire(waiting_);
  return all;
}

void StepLoop::TakeReused(Sequence& sequence, int positions) {
  sequence.computed = positions;
  sequence.reused = positions;
  if (sequence.receipt.preemptions == 0) {  // else what it finds is its own
    sequence.receipt.cached_tokens = positions;
  }
}

bool StepLoop::WorthWaiting(const Sequence& follower, const Sequence& leader) {
  if (leader.slot < 0 || !leader.prefilling() || leader.prefix_scope != follower.prefix_scope) {
    return false;
  }
  const absl::Span<const int32_t> mine = follower.Reusable();
  const size_t limit = std::min(mine.size(), leader.tokens.size());
  size_t common = 0;
  while (common < limit && mine[common] == leader.tokens[common]) {
    ++common;
  }
  const int shared = static_cast<int>(common);
  const int least = follower.group == leader.group ? kSharedMinOfGroup : kSharedMin;
  return leader.computed < shared && shared >= follower.computed + least;
}

// A prompt that has computed nothing itself waits for an older one. Once that one is past what they share, the slot is
// opened again and finds it. Its reservation was larger, so it gets it back.
void StepLoop::HoldFollowers() {
  if (!model_.reuses_prefixes()) {
    return;
  }
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    const bool was_held = sequence.held;
    sequence.held = false;
    if (!sequence.prefilling() || sequence.computed > sequence.reused || sequence.Reusable().empty()) {
      continue;
    }
    for (size_t leader = 0; leader < i && !sequence.held; ++leader) {
      sequence.held = WorthWaiting(sequence, *running_[leader]);
    }
    if (!was_held || sequence.held) {
      continue;
    }
    model_.CloseSlot(sequence.slot);
    const absl::StatusOr<int> reused =
        model_.OpenSlotWithPrefix(sequence.slot, sequence.shape.kv_tokens, sequence.Reusable(), sequence.prefix_scope);
    if (!reused.ok()) {
      free_slots_.push_back(sequence.slot);
      sequence.slot = -1;
      Finish(sequence, FinishReason::kError, reused.status());
      continue;
    }
    TakeReused(sequence, *reused);
  }
  Retire(running_);
}

void StepLoop::Start(Sequence& sequence, int64_t now) {
  sequence.started_ns = now;
  sequence.receipt.queue_seconds = Seconds(sequence.submitted_ns, now);
  Observe(sequence.receipt.queue_seconds, &stats_.queue_seconds);
  sequence.sink->OnStart(sequence.shape.prompt_tokens);
}

void StepLoop::Resume(Sequence& sequence, int64_t now) {
  const int64_t paused = now - sequence.set_aside_ns;
  (sequence.first_token_ns == 0 ? sequence.paused_prefill_ns : sequence.paused_decode_ns) += paused;
  sequence.resumed_ns = now;
  sequence.preemptible_ns = INT64_MAX;  // until its KV is computed again, and as long after that: see AfterChunk
}

// ---- Rows ----------------------------------------------------------------------------------------

void StepLoop::AskForRows(Sequence& sequence, int start, int count, LogitsWanted logits) {
  AheadRows& ahead = sequence.ahead;
  if (ahead.Serves(start, count, logits)) {
    return;
  }
  // The new rows are asked for before the old ones are given back, so those in both are not read twice.
  const auto ticket = model_.PrefetchChunkRows(
      absl::MakeConstSpan(sequence.tokens).subspan(static_cast<size_t>(start), static_cast<size_t>(count)), logits);
  DropRows(sequence);
  if (ticket.ok()) {  // otherwise the step reads them itself and meets the error, if there is one
    ahead = {*ticket, start, count, logits};
  }
}

void StepLoop::DropRows(Sequence& sequence) {
  if (sequence.ahead.count > 0 && sequence.ahead.ticket.valid()) {
    model_.ReleaseRows(sequence.ahead.ticket);
  }
  sequence.ahead = {};
}

// Predicts the next step by planning it as if this one had ended well and nobody came or left.
void StepLoop::ReadAhead() {
  running_view_.clear();
  for (const auto& sequence : running_) {
    running_view_.push_back(sequence->AsRunning(0));
  }
  for (const PlannedChunk& chunk : plan_.chunks) {
    RunningSequence& view = running_view_[static_cast<size_t>(chunk.sequence)];
    view.prefill_tokens = std::max(0, view.prefill_tokens - chunk.tokens);
    view.served_step = step_;
  }
  SchedulerInput input;
  input.limits = {limits_.step_tokens_max, limits_.logit_rows_max, options_.prefill_chunk_max};
  input.running = running_view_;
  input.prefill_budget = pace_.budget();
  PlanStep(input, &next_plan_);
  for (const PlannedChunk& next : next_plan_.chunks) {
    Sequence& sequence = *running_[static_cast<size_t>(next.sequence)];
    if (running_view_[static_cast<size_t>(next.sequence)].prefill_tokens == 0) {
      continue;  // decodes: its token does not exist yet
    }
    int start = sequence.computed;
    for (const PlannedChunk& chunk : plan_.chunks) {
      start += chunk.sequence == next.sequence ? chunk.tokens : 0;
    }
    AskForRows(sequence, start, next.tokens, next.logits);
  }
  const size_t ahead = std::min(waiting_.size(), static_cast<size_t>(options_.waiting_read_ahead));
  for (size_t i = 0; i < ahead; ++i) {
    const WaitingRequest shape = waiting_[i]->AsWaiting();
    const int cached = model_.CachedPrefix(waiting_[i]->Reusable(), waiting_[i]->prefix_scope);
    const int count = std::min(shape.prefill_tokens - cached, options_.prefill_chunk_max);
    const bool last = shape.last_logits && cached + count == shape.prefill_tokens;
    AskForRows(*waiting_[i], cached, count,
               shape.all_logits ? LogitsWanted::kAll
               : last           ? LogitsWanted::kLast
                                : LogitsWanted::kNone);
  }
}

// ---- One step ------------------------------------------------------------------------------------

void StepLoop::Compute() {
  if (plan_.chunks.empty()) {
    measures_ = false;  // what an idle device consumes is nobody's
    return;
  }
  if (options_.energy != nullptr && !measures_) {
    joules_ = options_.energy->Joules();
    measures_ = true;
  }
  const int64_t begin = clock_.NowNs();
  ++step_;
  chunks_.clear();
  int rows = 0;
  int decodes = 0;
  int prompt_tokens = 0;
  for (const PlannedChunk& planned : plan_.chunks) {
    Sequence& sequence = *running_[static_cast<size_t>(planned.sequence)];
    (sequence.prefilling() ? prompt_tokens : decodes) += planned.tokens;
    AskForRows(sequence, sequence.computed, planned.tokens, planned.logits);
    if (sequence.ahead.count == 0) {
      // There is no room beside what was read ahead for those that wait: this step needs it, they do not yet.
      for (const auto& waiting : waiting_) {
        DropRows(*waiting);
      }
      AskForRows(sequence, sequence.computed, planned.tokens, planned.logits);
    }
    Chunk chunk;
    chunk.slot = sequence.slot;
    chunk.tokens = absl::MakeConstSpan(sequence.tokens)
                       .subspan(static_cast<size_t>(sequence.computed), static_cast<size_t>(planned.tokens));
    chunk.start = sequence.computed;
    chunk.logits = planned.logits;
    chunk.rows = sequence.ahead.ticket;
    sequence.ahead = {};  // the step consumes it
    sequence.served_step = step_;
    chunks_.push_back(chunk);
    rows += RowsOf(chunk);
  }
  model_.SendRows();  // what this step needs is not sorted among what the next one will
  ReadAhead();

  StepTimes times;
  const size_t width = static_cast<size_t>(limits_.vocab_size);
  const absl::Status status = model_.Step(
      absl::MakeSpan(chunks_), absl::MakeSpan(logits_).subspan(0, static_cast<size_t>(rows) * width), &times);
  stats_.row_wait_ns += times.row_wait_ns;
  BookEnergy(decodes + prompt_tokens);

  // First everything that the next step waits for, then what clients wait for.
  pending_.clear();
  int row = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Sequence& sequence = *running_[static_cast<size_t>(plan_.chunks[i].sequence)];
    sequence.receipt.row_wait_seconds += static_cast<double>(times.row_wait_ns) * 1e-9;
    Pending pending;
    pending.sequence = &sequence;
    AfterChunk(status.ok() ? chunks_[i].status : status, chunks_[i], row, &pending);
    pending_.push_back(std::move(pending));
    row += RowsOf(chunks_[i]);
  }
  model_.SendRows();  // of all sampled tokens, in one batch
  const int64_t now = clock_.NowNs();
  row = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Emit(chunks_[i], row, now, &pending_[i]);
    row += RowsOf(chunks_[i]);
  }
  Retire(running_);

  const int64_t step_ns = clock_.NowNs() - begin;
  pace_.OnStep(decodes, prompt_tokens, step_ns);
  const auto sampled = [](const Pending& pending) { return pending.logits_row >= 0; };
  const int tokens = static_cast<int>(std::count_if(pending_.begin(), pending_.end(), sampled));
  last_step_ = {step_, decodes, prompt_tokens, tokens, step_ns};
  ++stats_.steps;
  stats_.step_ns += static_cast<uint64_t>(step_ns);
  Observe(static_cast<double>(step_ns) * 1e-9, &stats_.step_seconds);
  stats_.running = static_cast<int>(running_.size());
  stats_.kv_tokens_free = model_.FreeKvTokens();
  stats_.prefix_cache = model_.PrefixStats();
  stats_.prefill_budget = pace_.budget();
}

void StepLoop::BookEnergy(int tokens) {
  if (options_.energy == nullptr) {
    return;
  }
  const double now = options_.energy->Joules();
  const double per_token = (now - joules_) / tokens;
  joules_ = now;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Receipt& receipt = running_[static_cast<size_t>(plan_.chunks[i].sequence)]->receipt;
    receipt.energy_joules =
        receipt.energy_joules.value_or(0) + per_token * static_cast<double>(chunks_[i].tokens.size());
  }
  stats_.energy_joules += per_token * tokens;
}

int StepLoop::RowsOf(const Chunk& chunk) {
  switch (chunk.logits) {
    case LogitsWanted::kNone:
      return 0;
    case LogitsWanted::kLast:
      return 1;
    case LogitsWanted::kAll:
      return static_cast<int>(chunk.tokens.size());
  }
  return 0;
}

void StepLoop::AfterChunk(const absl::Status& status, const Chunk& chunk, int row, Pending* pending) {
  Sequence& sequence = *pending->sequence;
  if (!status.ok()) {
    pending->Finish(FinishReason::kError, status);
    return;
  }
  const bool prefilling = sequence.prefilling();
  const int tokens = static_cast<int>(chunk.tokens.size());
  sequence.computed += tokens;
  sequence.receipt.rows_requested += chunk.rows_used.requested;
  sequence.receipt.rows_from_cache += chunk.rows_used.cache_hits;
  sequence.receipt.rows_read += chunk.rows_used.read;
  sequence.receipt.flash_bytes += chunk.rows_used.bytes;
  stats_.prompt_tokens += prefilling ? static_cast<uint64_t>(tokens) : 0;
  if (sequence.prefilling()) {
    return;
  }
  if (prefilling && sequence.resumed_ns > 0) {
    // As much time for new tokens as it took to compute the old ones again: at least half of what it gets is progress.
    const int64_t now = clock_.NowNs();
    sequence.preemptible_ns = now + (now - sequence.resumed_ns);
  }
  if (!sequence.samples()) {
    pending->Finish(FinishReason::kLength, absl::OkStatus());
    return;
  }
  if (sequence.cancelled.load(std::memory_order_relaxed)) {
    return;  // ended at the beginning of the next pass, without another token
  }
  SampleToken(sequence, row + RowsOf(chunk) - 1, pending);
}

void StepLoop::SampleToken(Sequence& sequence, int row, Pending* pending) {
  const StopParams& stop = sequence.request.stop;
  suppressed_.clear();
  if (sequence.generated() < stop.tokens_min) {
    if (!stop.ignore_eos) {
      suppressed_.insert(suppressed_.end(), eos_ids_.begin(), eos_ids_.end());
    }
    suppressed_.insert(suppressed_.end(), stop.stop_ids.begin(), stop.stop_ids.end());
  }
  SampleInput input;
  input.logits = LogitsRow(row);
  input.tokens = sequence.tokens;
  input.prompt_tokens = sequence.shape.prompt_tokens;
  input.suppressed = suppressed_;
  const absl::StatusOr<int32_t> id = sampler_.Sample(sequence.request.sampling, input);
  if (!id.ok()) {
    pending->Finish(FinishReason::kError, id.status());
    return;
  }
  pending->logits_row = row;
  sequence.tokens.push_back(*id);
  ++stats_.generated_tokens;
  if ((!stop.ignore_eos && Contains(eos_ids_, *id)) || Contains(stop.stop_ids, *id)) {
    pending->Finish(FinishReason::kStop, absl::OkStatus());
    pending->stop_id = *id;
  } else if (sequence.generated() >= sequence.shape.tokens_max) {
    pending->Finish(sequence.shape.fills_context ? FinishReason::kContextFull : FinishReason::kLength,
                    absl::OkStatus());
  } else {
    AskForRows(sequence, sequence.computed, 1, LogitsWanted::kLast);
  }
}

// ---- Events --------------------------------------------------------------------------------------

PositionLogprobs StepLoop::LogprobsOf(int row, int32_t id, int top) {
  const absl::Span<const float> logits = LogitsRow(row);
  const double denominator = LogSumExp(logits);
  PositionLogprobs result;
  result.chosen = {id, static_cast<float>(logits[static_cast<size_t>(id)] - denominator)};
  if (top > 0) {
    const absl::Span<const ScoredId> best = top_.Best(logits, top);
    result.top.reserve(best.size());
    for (const ScoredId& entry : best) {
      result.top.push_back({entry.id, static_cast<float>(entry.score - denominator)});
    }
  }
  return result;
}

void StepLoop::EmitPromptLogprobs(Sequence& sequence, const Chunk& chunk, int row) {
  std::vector<PositionLogprobs> logprobs;
  logprobs.reserve(chunk.tokens.size());
  for (int i = 0; i < static_cast<int>(chunk.tokens.size()); ++i) {
    const int predicted = chunk.start + i + 1;
    if (predicted < sequence.shape.prompt_tokens) {
      logprobs.push_back(
          LogprobsOf(row + i, sequence.tokens[static_cast<size_t>(predicted)], sequence.request.prompt_top_logprobs));
    }
  }
  if (!logprobs.empty()) {
    sequence.sink->OnPrompt(std::move(logprobs));
  }
}

void StepLoop::EmitPromptProgress(Sequence& sequence) {
  if (sequence.request.prompt_progress && sequence.prefilling() && sequence.generated() == 0 &&
      sequence.computed > sequence.progress_told) {
    sequence.progress_told = sequence.computed;
    sequence.sink->OnPromptProgress(sequence.computed, sequence.receipt.cached_tokens);
  }
}

void StepLoop::Emit(const Chunk& chunk, int row, int64_t now, Pending* pending) {
  Sequence& sequence = *pending->sequence;
  const bool failed = pending->finish && pending->reason == FinishReason::kError;
  if (chunk.logits == LogitsWanted::kAll && !failed) {
    EmitPromptLogprobs(sequence, chunk, row);
  }
  if (!failed) {
    EmitPromptProgress(sequence);
  }
  if (pending->logits_row >= 0) {
    CountToken(sequence, now);
    const int32_t id = sequence.tokens.back();
    if (sequence.request.completions > 1) {
      sequence.logprob_sum += LogprobsOf(pending->logits_row, id, 0).chosen.logprob;
    }
    const StopParams& stop = sequence.request.stop;
    if (pending->stop_id < 0 || stop.include_stop) {
      TokenEvent event;
      PositionLogprobs logprobs;
      const bool wanted = sequence.request.want_logprobs || sequence.request.top_logprobs > 0;
      if (wanted) {
        logprobs = LogprobsOf(pending->logits_row, id, sequence.request.top_logprobs);
      }
      const std::string piece = sequence.decoder.has_value() ? sequence.decoder->Push(id) : "";
      if (sequence.text.Push(id, piece, sequence.generated() >= stop.tokens_min, wanted ? &logprobs : nullptr,
                             &event)) {
        pending->Finish(FinishReason::kStopString, absl::OkStatus());
        pending->stop_id = -1;
      }
      if (!event.ids.empty() || !event.text.empty()) {
        sequence.sink->OnTokens(std::move(event));
      }
    }
  }
  if (pending->finish) {
    Finish(sequence, pending->reason, std::move(pending->status), pending->stop_id);
  }
}

void StepLoop::CountToken(Sequence& sequence, int64_t now) {
  if (sequence.first_token_ns == 0) {
    sequence.first_token_ns = now;
    Observe(Seconds(sequence.submitted_ns, now), &stats_.ttft_seconds);
  } else {
    Observe(Seconds(sequence.last_token_ns, now), &stats_.itl_seconds);
  }
  sequence.last_token_ns = now;
}

void StepLoop::NoteKvBytes(Sequence& sequence) {
  slots_of_request_.assign(1, sequence.slot);
  for (const auto& other : running_) {
    if (other != nullptr && other.get() != &sequence && other->group == sequence.group && other->slot >= 0) {
      slots_of_request_.push_back(other->slot);
    }
  }
  sequence.receipt.kv_bytes_peak = std::max(sequence.receipt.kv_bytes_peak, model_.KvBytes(slots_of_request_));
}

void StepLoop::Finish(Sequence& sequence, FinishReason reason, absl::Status status, int32_t stop_id) {
  const int64_t now = clock_.NowNs();
  DropRows(sequence);
  Receipt& receipt = sequence.receipt;
  if (sequence.slot >= 0) {
    NoteKvBytes(sequence);
    model_.CloseSlot(sequence.slot);
    free_slots_.push_back(sequence.slot);
    sequence.slot = -1;
  } else if (sequence.started_ns == 0) {
    receipt.queue_seconds = Seconds(sequence.submitted_ns, now);
  } else {  // it ends while it is set aside
    (sequence.first_token_ns == 0 ? sequence.paused_prefill_ns : sequence.paused_decode_ns) +=
        now - sequence.set_aside_ns;
  }
  receipt.prompt_tokens = sequence.shape.prompt_tokens;
  receipt.generated_tokens = sequence.generated();
  if (sequence.started_ns != 0) {
    const int64_t prefill_end = sequence.first_token_ns != 0 ? sequence.first_token_ns : now;
    receipt.prefill_seconds = Seconds(sequence.started_ns + sequence.paused_prefill_ns, prefill_end);
    receipt.decode_seconds = Seconds(prefill_end + sequence.paused_decode_ns, now);
    receipt.queue_seconds += Seconds(0, sequence.paused_prefill_ns + sequence.paused_decode_ns);
  }
  ++stats_.requests_finished[static_cast<size_t>(reason)];
  sequence.finished = true;

  FinishEvent finish;
  finish.reason = reason;
  finish.status = std::move(status);
  finish.stop_id = stop_id;
  finish.cumulative_logprob = sequence.logprob_sum;
  if (reason == FinishReason::kStopString) {
    finish.stop_string = sequence.text.stop_string();
  } else {
    TokenEvent rest;
    sequence.text.Flush(sequence.decoder.has_value() ? sequence.decoder->Finish() : "", &rest);
    if (!rest.ids.empty() || !rest.text.empty()) {
      sequence.sink->OnTokens(std::move(rest));
    }
  }
  finish.receipt = receipt;
  sequence.sink->OnFinish(std::move(finish));
}

void StepLoop::Retire(std::vector<std::unique_ptr<Sequence>>& list) {
  size_t kept = 0;
  for (auto& sequence : list) {
    if (sequence == nullptr) {
      continue;  // moved to the running
    }
    if (sequence->finished) {
      if (&list == &waiting_) {
        CountDeparture();
        waiting_tokens_ -= sequence->shape.prompt_tokens;
        waiting_bytes_ -= sequence->bytes;
      } else {
        admission_closed_ = false;
      }
      retired_.push_back(std::move(sequence));
    } else {
      std::swap(list[kept++], sequence);
    }
  }
  list.resize(kept);
}

void StepLoop::Abort(const absl::Status& status) {
  for (auto* list : {&waiting_, &running_}) {
    for (auto& sequence : *list) {
      Finish(*sequence, FinishReason::kError, status);
    }
    Retire(*list);
  }
  plan_.chunks.clear();
}

}  // namespace embergate::engine
