#include "server/generate_reactor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/response_builder.h"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

// Keeps a message of 20 alternatives per position under half of gRPC's default 4 MiB limit for clients.
constexpr size_t kPromptPositionsPerMessage = 4096;

}  // namespace

GenerateReactor::~GenerateReactor() {
  // The engine thread may still be inside the unlock that let OnWriteDone call Finish.
  absl::MutexLock lock(&mutex_);
}

void GenerateReactor::Start(ModelUse model, engine::GenerateRequest request,
                            std::vector<std::unique_ptr<engine::AnswerParser>> parsers,
                            absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  {
    absl::MutexLock lock(&mutex_);
    model_ = model;
    parsers.resize(static_cast<size_t>(request.completions));
    for (size_t i = 0; i < parsers.size(); ++i) {
      answers_.push_back({AnswerBuilder(static_cast<int>(i), std::move(parsers[i])), std::nullopt});
    }
    prompt_tokens_ = static_cast<int>(request.prompt.size());
    FillStarted(request, record_.request_id(), started_.emplace());
  }
  absl::StatusOr<engine::RequestId> id = model->engine->Submit(std::move(request), this);
  if (!id.ok()) {
    {
      absl::MutexLock lock(&mutex_);
      model_.reset();
    }
    Refuse(refusal(id.status()));
    return;
  }
  bool cancel = false;
  Operation operation = Operation::kNone;
  {
    absl::MutexLock lock(&mutex_);
    id_ = *id;
    cancel = cancel_wanted_ && !finish_event_.has_value();
    busy_ = false;
    operation = NextOperation();
  }
  if (cancel) {
    // The sink is alive: it has not got its OnFinish when the mutex was held, and ids are never used again.
    model->engine->Cancel(*id);
  }
  Run(operation);
}

void GenerateReactor::Refuse(const absl::Status& status) {
  AddRetryTrailer(status, *context_);
  final_status_ = ToGrpc(status);
  record_.Finish(status, final_status_, nullptr);
  Run(Operation::kFinish);
}

void GenerateReactor::OnStart(int /*prompt_tokens*/) {}

void GenerateReactor::OnPrompt(std::vector<engine::PositionLogprobs> logprobs) {
  Operation operation = Operation::kNone;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) {
      return;
    }
    // Not counted as pending: their number is bounded by the prompt.
    std::move(logprobs.begin(), logprobs.end(), std::back_inserter(prompt_logprobs_));
    operation = NextOperation();
  }
  Run(operation);
}

void GenerateReactor::OnPromptProgress(int done, int cached) {
  Operation operation = Operation::kNone;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) {
      return;
    }
    v1::PromptProgress& progress = progress_.emplace();  // an older one that was not sent is of no use any more
    progress.set_tokens_done(done);
    progress.set_tokens_total(prompt_tokens_);
    progress.set_cached_tokens(cached);
    operation = NextOperation();
  }
  Run(operation);
}

void GenerateReactor::OnTokens(engine::TokenEvent event) {
  Operation operation = Operation::kNone;
  Cancellation cancellation;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_ || overflow_) {
      return;
    }
    progress_.reset();
    answers_[static_cast<size_t>(event.completion)].builder.Push(event);
    if (PendingBytes() > pending_bytes_max_) {
      overflow_ = true;
      DropPending();
      cancellation = WantCancel();
    } else {
      operation = NextOperation();
    }
  }
  cancellation.Run();
  Run(operation);
}

void GenerateReactor::OnCompletion(engine::FinishEvent event) {
  Operation operation = Operation::kNone;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_ || overflow_ || !event.status.ok()) {
      return;
    }
    Answer& answer = answers_[static_cast<size_t>(event.completion)];
    answer.builder.Finish();
    FillCompletion(event, answer.ended.emplace());
    operation = NextOperation();
  }
  Run(operation);
}

void GenerateReactor::OnFinish(engine::FinishEvent event) {
  Operation operation = Operation::kNone;
  {
    absl::MutexLock lock(&mutex_);
    finish_event_ = std::move(event);
    progress_.reset();
    if (answers_.size() == 1 && !broken_ && !overflow_) {
      answers_.front().builder.Finish();
    }
    model_.reset();  // nothing asks for it any more; the client may take its time
    operation = NextOperation();
  }
  // With a write under way, its end finishes the call and with it this object, perhaps by now.
  if (operation != Operation::kNone) {
    Run(operation);
  }
}

void GenerateReactor::OnWriteDone(bool ok) {
  Operation operation = Operation::kNone;
  Cancellation cancellation;
  {
    absl::MutexLock lock(&mutex_);
    busy_ = false;
    if (!ok) {
      broken_ = true;
      DropPending();
      cancellation = WantCancel();
    }
    operation = NextOperation();
  }
  cancellation.Run();
  Run(operation);
}

void GenerateReactor::OnCancel() {
  Cancellation cancellation;
  {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    DropPending();
    cancellation = WantCancel();
  }
  cancellation.Run();
}

void GenerateReactor::OnDone() { delete this; }

GenerateReactor::Cancellation GenerateReactor::WantCancel() {
  if (cancel_wanted_ || finish_event_.has_value()) {
    return {};
  }
  cancel_wanted_ = true;
  return {model_, id_};  // without an id yet, Start does it
}

void GenerateReactor::DropPending() {
  started_.reset();
  progress_.reset();
  prompt_logprobs_.clear();
  prompt_logprobs_sent_ = 0;
  for (Answer& answer : answers_) {
    answer.builder.Take();
    answer.ended.reset();
  }
}

size_t GenerateReactor::PendingBytes() const {
  size_t bytes = 0;
  for (const Answer& answer : answers_) {
    bytes += answer.builder.pending_bytes();
  }
  return bytes;
}

// Moves the next pending event into message_; false if there is none.
bool GenerateReactor::TakePending() {
  message_.Clear();
  if (started_.has_value()) {
    *message_.mutable_started() = *std::move(started_);
    started_.reset();
    return true;
  }
  if (progress_.has_value()) {
    *message_.mutable_prompt_progress() = *std::move(progress_);
    progress_.reset();
    return true;
  }
  if (prompt_logprobs_sent_ < prompt_logprobs_.size()) {
    const size_t end = std::min(prompt_logprobs_.size(), prompt_logprobs_sent_ + kPromptPositionsPerMessage);
    for (; prompt_logprobs_sent_ < end; ++prompt_logprobs_sent_) {
      FillLogprobs(prompt_logprobs_[prompt_logprobs_sent_], *message_.mutable_prompt_logprobs()->add_positions());
    }
    if (end == prompt_logprobs_.size()) {
      prompt_logprobs_ = {};
      prompt_logprobs_sent_ = 0;
    }
    return true;
  }
  // In turns, so that every answer gets on.
  for (size_t i = 0; i < answers_.size(); ++i) {
    Answer& answer = answers_[next_answer_];
    next_answer_ = (next_answer_ + 1) % answers_.size();
    if (answer.builder.pending_bytes() > 0) {
      *message_.mutable_delta() = answer.builder.Take();
      return true;
    }
    if (answer.ended.has_value()) {
      *message_.mutable_completion_finished() = *std::move(answer.ended);
      answer.ended.reset();
      return true;
    }
  }
  return false;
}

GenerateReactor::Operation GenerateReactor::NextOperation() {
  if (busy_) {
    return Operation::kNone;
  }
  if (!broken_ && !overflow_ && TakePending()) {
    busy_ = true;
    return Operation::kWrite;
  }
  if (!finish_event_.has_value()) {
    return Operation::kNone;
  }
  busy_ = true;
  absl::Status status = lifecycle_.Explain(finish_event_->status);
  if (overflow_ && !broken_) {
    record_.CountSlowReader();
    status = WithReason(absl::ResourceExhaustedError(absl::StrCat("the stream is read too slowly: more than ",
                                                                  pending_bytes_max_, " bytes were waiting")),
                        "SLOW_READER");
  } else if (status.ok() && (broken_ || finish_event_->reason == engine::FinishReason::kCancelled)) {
    status = absl::CancelledError("the call was cancelled");
  }
  AddRetryTrailer(status, *context_);
  final_status_ = ToGrpc(status);
  record_.Finish(status, final_status_, &*finish_event_);
  if (!status.ok()) {
    return Operation::kFinish;
  }
  FillFinished(*finish_event_, *message_.mutable_finished());
  return Operation::kWriteAndFinish;
}

void GenerateReactor::Run(Operation operation) {
  switch (operation) {
    case Operation::kNone:
      return;
    case Operation::kWrite:
      StartWrite(&message_);
      return;
    case Operation::kWriteAndFinish:
      StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    case Operation::kFinish:
      Finish(std::move(final_status_));
      return;
  }
}

}  // namespace embergate::server
