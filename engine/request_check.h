// What of a request can be judged before it meets the engine thread.
#ifndef EMBERGATE_ENGINE_REQUEST_CHECK_H_
#define EMBERGATE_ENGINE_REQUEST_CHECK_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/language_model.h"
#include "engine/request.h"
#include "engine/sequence.h"

namespace embergate::engine {

struct RequestLimits {
  ModelLimits model;
  int64_t kv_tokens = 0;  // positions of the whole pool
  int top_logprobs_max = 0;
  bool has_tokenizer = false;
};

inline constexpr size_t kStopStringsMax = 64;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr size_t kStopIdsMax = 1024;

// The request in terms of the model, or INVALID_ARGUMENT naming the field, its value and the limit. A request that
// passes fits: alone on an idle engine, it runs.
absl::StatusOr<SequenceShape> CheckRequest(const GenerateRequest& request, const RequestLimits& limits);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_REQUEST_CHECK_H_
