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

// About what the pending event holds in memory.
size_t BytesOf(const engine::PositionLogprobs& logprobs) {
  return sizeof(engine::PositionLogprobs) + logprobs.top.size() * sizeof(engine::TokenLogprob);
}

size_t BytesOf(const engine::TokenEvent& event) {
  size_t bytes = event.text.size() + event.ids.size() * sizeof(int32_t);
  for (const engine::PositionLogprobs& logprobs : event.logprobs) {
    bytes += BytesOf(logprobs);
  }
  return bytes;
}

}  // namespace

GenerateReactor::~GenerateReactor() {
  // The engine thread may still be inside the unlock that let OnWriteDone call Finish.
  absl::MutexLock lock(&mutex_);
}

void GenerateReactor::Start(engine::Engine& engine, engine::GenerateRequest request,
                            std::vector<std::unique_ptr<engine::AnswerParser>> parsers,
                            absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  engine_ = &engine;
  {
    absl::MutexLock lock(&mutex_);
    answers_.resize(static_cast<size_t>(request.completions));
    for (size_t i = 0; i < answers_.size(); ++i) {
      answers_[i].delta.set_completion(static_cast<int>(i));
      if (i < parsers.size()) {
        answers_[i].parser = std::move(parsers[i]);
      }
    }
    started_.emplace();
    started_->set_input_tokens(static_cast<int32_t>(request.prompt.size()));
    started_->set_seed(request.sampling.seed);
    started_->set_max_tokens(request.stop.tokens_max);
  }
  absl::StatusOr<engine::RequestId> id = engine.Submit(std::move(request), this);
  if (!id.ok()) {
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
    engine.Cancel(*id);
  }
  Run(operation);
}

void GenerateReactor::Refuse(const absl::Status& status) {
  AddRetryTrailer(status, *context_);
  final_status_ = ToGrpc(status);
  record_.Finish(status, final_status_.error_code(), nullptr);
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

void GenerateReactor::OnTokens(engine::TokenEvent event) {
  Operation operation = Operation::kNone;
  engine::Engine* engine = engine_;
  std::optional<engine::RequestId> cancel;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_ || overflow_) {
      return;
    }
    Answer& answer = answers_[static_cast<size_t>(event.completion)];
    pending_bytes_ += BytesOf(event);
    answer.pending_bytes += BytesOf(event);
    if (pending_bytes_ > pending_bytes_max_) {
      overflow_ = true;
      DropPending();
      if (WantCancel()) {
        cancel = id_;
      }
    } else {
      if (answer.parser != nullptr) {
        std::vector<engine::AnswerEvent> events;
        answer.parser->Push(event.ids, event.text.size(), events);
        AddEvents(events, answer);
      } else {
        answer.delta.mutable_text()->append(event.text);
      }
      answer.delta.mutable_ids()->Add(event.ids.begin(), event.ids.end());
      for (const engine::PositionLogprobs& logprobs : event.logprobs) {
        FillLogprobs(logprobs, *answer.delta.add_logprobs());
      }
      operation = NextOperation();
    }
  }
  if (cancel.has_value()) {
    engine->Cancel(*cancel);
  }
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
    FinishParser(answer);
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
    if (answers_.size() == 1 && !broken_ && !overflow_) {
      FinishParser(answers_.front());
    }
    operation = NextOperation();
  }
  Run(operation);
}

void GenerateReactor::OnWriteDone(bool ok) {
  Operation operation = Operation::kNone;
  engine::Engine* engine = engine_;
  std::optional<engine::RequestId> cancel;
  {
    absl::MutexLock lock(&mutex_);
    busy_ = false;
    if (!ok) {
      broken_ = true;
      DropPending();
      if (WantCancel()) {
        cancel = id_;
      }
    }
    operation = NextOperation();
  }
  if (cancel.has_value()) {
    engine->Cancel(*cancel);
  }
  Run(operation);
}

void GenerateReactor::OnCancel() {
  engine::Engine* engine = engine_;
  std::optional<engine::RequestId> cancel;
  {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    DropPending();
    if (WantCancel()) {
      cancel = id_;
    }
  }
  if (cancel.has_value()) {
    engine->Cancel(*cancel);
  }
}

void GenerateReactor::OnDone() { delete this; }

bool GenerateReactor::WantCancel() {
  if (cancel_wanted_ || finish_event_.has_value()) {
    return false;
  }
  cancel_wanted_ = true;
  return id_.has_value();  // else Start does it
}

void GenerateReactor::DropPending() {
  started_.reset();
  prompt_logprobs_.clear();
  prompt_logprobs_sent_ = 0;
  for (Answer& answer : answers_) {
    answer.delta.Clear();
    answer.pending_bytes = 0;
    answer.ended.reset();
  }
}

void GenerateReactor::FinishParser(Answer& answer) {
  if (answer.parser != nullptr) {
    std::vector<engine::AnswerEvent> events;
    answer.parser->Finish(events);
    AddEvents(events, answer);
  }
}

void GenerateReactor::AddEvents(const std::vector<engine::AnswerEvent>& events, Answer& answer) {
  for (const engine::AnswerEvent& event : events) {
    switch (event.kind) {
      case engine::AnswerEvent::Kind::kAnswer:
        answer.delta.mutable_text()->append(event.text);
        break;
      case engine::AnswerEvent::Kind::kThinking:
        answer.delta.mutable_thinking()->append(event.text);
        break;
      case engine::AnswerEvent::Kind::kToolCall: {
        v1::ToolCall& call = *answer.delta.add_tool_calls();
        call.set_id(absl::StrCat("call_", answer.tool_calls++));
        call.set_name(event.name);
        call.set_arguments_json(event.arguments);
        break;
      }
      case engine::AnswerEvent::Kind::kMalformedToolCall:
        answer.delta.mutable_text()->append(event.text);
        answer.delta.set_malformed_tool_call(true);
        break;
    }
    // What Finish releases was held back before: it has to be seen as pending.
    answer.pending_bytes = std::max<size_t>(answer.pending_bytes, 1);
  }
}

// Moves the next pending event into message_; false if there is none.
bool GenerateReactor::TakePending() {
  message_.Clear();
  if (started_.has_value()) {
    *message_.mutable_started() = *std::move(started_);
    started_.reset();
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
    const int index = static_cast<int>(next_answer_);
    next_answer_ = (next_answer_ + 1) % answers_.size();
    if (answer.pending_bytes > 0) {
      message_.mutable_delta()->Swap(&answer.delta);
      answer.delta.Clear();
      answer.delta.set_completion(index);
      pending_bytes_ -= std::min(pending_bytes_, answer.pending_bytes);
      answer.pending_bytes = 0;
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
  record_.Finish(status, final_status_.error_code(), &*finish_event_);
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
