#include "server/call_record.h"

#include <spdlog/spdlog.h>

#include <cmath>

#include "server/logging.h"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

double Milliseconds(double seconds) { return std::round(seconds * 1000) / 1000; }

}  // namespace

void CallRecord::Finish(const absl::Status& status, const grpc::Status& sent, const engine::FinishEvent* finish) {
  stats_->CountRequest(method_, sent.error_code());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  engine::Receipt receipt;
  if (finish != nullptr) {
    receipt = finish->receipt;
    ticket_->Settle(int64_t{receipt.prompt_tokens} + receipt.generated_tokens);
  }
  const std::string client = ticket_->identity();
  ticket_.reset();
  // A client's mistakes and changes of mind are no trouble; and what strangers do must not be able to fill a disk.
  const grpc::StatusCode code = sent.error_code();
  const bool trouble = code == grpc::StatusCode::INTERNAL || code == grpc::StatusCode::DATA_LOSS ||
                       (code == grpc::StatusCode::UNAVAILABLE && finish != nullptr);
  const auto level = trouble                                     ? spdlog::level::warn
                     : code == grpc::StatusCode::UNAUTHENTICATED ? spdlog::level::debug
                                                                 : spdlog::level::info;
  if (!spdlog::should_log(level)) {
    return;
  }
  nlohmann::ordered_json fields = {{"method", kMethodNames[static_cast<size_t>(method_)]},
                                   {"id", identity_.request_id},
                                   {"client", client},
                                   {"code", GrpcCodeName(code)},
                                   {"reason", DetailsOf(sent).reason},
                                   {"seconds", Milliseconds(seconds)},
                                   {"queue_seconds", Milliseconds(receipt.queue_seconds)},
                                   {"prefill_seconds", Milliseconds(receipt.prefill_seconds)},
                                   {"decode_seconds", Milliseconds(receipt.decode_seconds)},
                                   {"input_tokens", receipt.prompt_tokens},
                                   {"cached_tokens", receipt.cached_tokens},
                                   {"output_tokens", receipt.generated_tokens}};
  if (!identity_.trace_id.empty()) {
    fields["trace_id"] = identity_.trace_id;
    fields["span_id"] = identity_.span_id;
  }
  if (trouble) {
    fields["trouble"] = std::string(status.message());
  }
  LogEvent(level, "call", fields);
}

}  // namespace embergate::server
