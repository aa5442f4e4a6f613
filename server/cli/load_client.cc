#include "server/cli/load_client.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "server/status_mapping.h"

namespace embergate::server {

CallResult RunCall(v1::Inference::Stub& stub, const v1::GenerateRequest& request, const CallOptions& options) {
  CallResult result;
  grpc::ClientContext context;
  if (options.timeout_seconds > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(options.timeout_seconds * 1e6)));
  }
  result.sent = LoadClock::now();
  const auto reader = stub.Generate(&context, request);
  if (options.cancel_after_tokens == 0) {
    context.TryCancel();
  }
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.has_finished()) {
      result.finished = true;
      result.last = response.finished();
    }
    const int tokens = response.delta().ids_size();
    if (tokens == 0) {
      continue;
    }
    result.arrivals.push_back({LoadClock::now(), tokens});
    result.tokens += tokens;
    result.ids.insert(result.ids.end(), response.delta().ids().begin(), response.delta().ids().end());
    if (options.on_tokens) {
      options.on_tokens(static_cast<int>(result.ids.size()));
    }
    if (options.cancel_after_tokens > 0 && static_cast<int>(result.ids.size()) >= options.cancel_after_tokens) {
      context.TryCancel();
    }
  }
  result.status = reader->Finish();
  result.ended = LoadClock::now();
  const ErrorDetails details = DetailsOf(result.status);
  result.reason = details.reason;
  result.retry_delay = details.retry_delay;
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto it = trailers.find("grpc-retry-pushback-ms"); it != trailers.end()) {
    (void)absl::SimpleAtoi(absl::string_view(it->second.data(), it->second.size()), &result.pushback_ms);
  }
  return result;
}

void AppendGaps(const CallResult& call, LoadClock::time_point from, LoadClock::time_point to,
                std::vector<double>* gaps) {
  for (size_t i = 1; i < call.arrivals.size(); ++i) {
    const LoadClock::time_point end = call.arrivals[i].at;
    if (end >= from && end <= to) {
      gaps->push_back(std::chrono::duration<double>(end - call.arrivals[i - 1].at).count());
    }
  }
}

double Quantile(std::vector<double>& values, double share) {
  if (values.empty()) {
    return 0;
  }
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(share * static_cast<double>(values.size()));
  return values[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

}  // namespace embergate::server
