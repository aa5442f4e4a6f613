// One Generate call: the engine's events become messages of the stream.
#ifndef EMBERGATE_SERVER_GENERATE_REACTOR_H_
#define EMBERGATE_SERVER_GENERATE_REACTOR_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "embergate/v1/generate.pb.h"
#include "engine/engine.h"
#include "engine/text/answer_parser.h"
#include "engine/token_sink.h"
#include "server/answer_builder.h"
#include "server/call_record.h"
#include "server/lifecycle.h"

namespace embergate::server {

// Between the engine thread, which must never wait, and gRPC, which takes one message at a time. While a write is in
// flight, further events are merged into one pending delta; its size is bounded by `pending_bytes_max`, past which
// the generation is cancelled and the stream ends with RESOURCE_EXHAUSTED as soon as the client reads again.
//
// States: the engine holds this object as its sink from a successful Submit until OnFinish. Finish is called once,
// by whoever comes last: the engine's terminal event or the completion of the write in flight. OnCancel and a failed
// write only ask the engine to stop. OnDone, which gRPC calls after Finish, deletes the object.
//
// Threads: the sink's methods come from the engine thread, OnWriteDone and OnCancel from gRPC's. After a function has
// released the mutex it touches no member, but for starting the one operation that it was told to start: the object
// may be gone.
class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse>, public engine::TokenSink {
 public:
  // Borrows `context` and `lifecycle`.
  GenerateReactor(grpc::CallbackServerContext* context, const Lifecycle& lifecycle, CallRecord record,
                  size_t pending_bytes_max)
      : context_(context), lifecycle_(lifecycle), record_(std::move(record)), pending_bytes_max_(pending_bytes_max) {}
  ~GenerateReactor() override;

  // Either of these once, from the RPC's handler. Start submits the request to the model's engine; if that refuses it,
  // the stream ends with `refusal(status)`. The model is held until the engine has ended the request. `parsers`, one
  // per completion or none at all, take the text apart into thinking, answer and tool calls.
  void Start(ModelUse model, engine::GenerateRequest request,
             std::vector<std::unique_ptr<engine::AnswerParser>> parsers,
             absl::FunctionRef<absl::Status(absl::Status)> refusal);
  void Refuse(const absl::Status& status);

  // engine::TokenSink
  void OnStart(int prompt_tokens) override;
  void OnPrompt(std::vector<engine::PositionLogprobs> logprobs) override;
  void OnPromptProgress(int done, int cached) override;
  void OnTokens(engine::TokenEvent event) override;
  void OnCompletion(engine::FinishEvent event) override;
  void OnFinish(engine::FinishEvent event) override;

  // grpc::ServerWriteReactor
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What to do after the mutex is released.
  enum class Operation { kNone, kWrite, kWriteAndFinish, kFinish };
  Operation NextOperation() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(Operation operation);
  bool TakePending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A request that is to be cancelled when the mutex has been released. It holds the model: by then the request may
  // have ended, this object be gone, and the model have nobody else who uses it.
  struct Cancellation {
    ModelUse model;
    std::optional<engine::RequestId> id;  // nullopt: there is nothing to cancel
    void Run() const {
      if (id.has_value()) {
        model->engine->Cancel(*id);
      }
    }
  };
  // Empty if somebody has done so before, or Start will.
  Cancellation WantCancel() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t PendingBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One of the request's completions.
  struct Answer {
    AnswerBuilder builder;
    std::optional<v1::CompletionFinished> ended;  // pending; sent after the delta
  };

  grpc::CallbackServerContext* const context_;
  const Lifecycle& lifecycle_;
  CallRecord record_;
  const size_t pending_bytes_max_;

  absl::Mutex mutex_;
  ModelUse model_ ABSL_GUARDED_BY(mutex_);  // from Start until the engine has ended the request
  // True while an operation is in flight; from the beginning until Submit has returned, so that nothing starts before.
  bool busy_ ABSL_GUARDED_BY(mutex_) = true;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // the client is gone: nothing can be written
  bool overflow_ ABSL_GUARDED_BY(mutex_) = false;  // the client reads too slowly
  std::optional<engine::RequestId> id_ ABSL_GUARDED_BY(mutex_);
  bool cancel_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<engine::FinishEvent> finish_event_ ABSL_GUARDED_BY(mutex_);
  int prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  // Pending events, in the order in which they are sent.
  std::optional<v1::Started> started_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::PromptProgress> progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<engine::PositionLogprobs> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  size_t prompt_logprobs_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Answer> answers_ ABSL_GUARDED_BY(mutex_);
  size_t next_answer_ ABSL_GUARDED_BY(mutex_) = 0;  // whose turn it is to be sent

  // Owned by the operation in flight.
  v1::GenerateResponse message_;
  grpc::Status final_status_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_GENERATE_REACTOR_H_
