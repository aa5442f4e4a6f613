#include "server/call_record.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace embergate::server {

void CallRecord::Finish(const absl::Status& status, grpc::StatusCode sent, const engine::FinishEvent* finish) {
  stats_->CountRequest(method_, sent);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  engine::Receipt receipt;
  if (finish != nullptr) {
    receipt = finish->receipt;
  }
  std::string trace;
  if (!identity_.trace_id.empty()) {
    trace = absl::StrCat(" trace_id=", identity_.trace_id, " span_id=", identity_.span_id);
  }
  // A client's mistakes and changes of mind are counted, not reported; the server's own troubles are.
  const bool trouble = sent == grpc::StatusCode::INTERNAL || sent == grpc::StatusCode::DATA_LOSS ||
                       (sent == grpc::StatusCode::UNAVAILABLE && finish != nullptr);
  spdlog::log(trouble ? spdlog::level::warn : spdlog::level::debug,
              "call method={} id=\"{}\"{} code={} seconds={:.3f} queue={:.3f} input_tokens={} output_tokens={} {}",
              kMethodNames[static_cast<size_t>(method_)], absl::CEscape(identity_.request_id), trace,
              GrpcCodeName(sent), seconds, receipt.queue_seconds, receipt.prompt_tokens, receipt.generated_tokens,
              trouble ? std::string(status.message()) : std::string());
}

}  // namespace embergate::server
