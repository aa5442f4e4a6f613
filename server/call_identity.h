// What a caller says a call is: a request id of its choice, and its place in a distributed trace. For logs and for the
// caller itself, never a key to anything.
#ifndef EMBERGATE_SERVER_CALL_IDENTITY_H_
#define EMBERGATE_SERVER_CALL_IDENTITY_H_

#include <grpcpp/grpcpp.h>

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace embergate::server {

// Each may be empty: not given, or not fit to be written down.
struct CallIdentity {
  std::string request_id;
  std::string trace_id;  // 32 hexadecimal digits
  std::string span_id;   // 16: the span that made the call
};

// Whether text of a client may stand in a log: at most 128 characters of printable ASCII.
inline constexpr size_t kLabelBytesMax = 128;
bool IsLabel(absl::string_view text);

// The ids in a W3C Trace Context `traceparent` header, of version 00 or a later one; nullopt if it is not valid.
struct TraceParent {
  std::string trace_id;
  std::string span_id;
};
std::optional<TraceParent> ParseTraceparent(absl::string_view header);

// `request_id` is the request's own field; where that is empty, `x-request-id` of the metadata counts. What of the
// metadata is not valid is passed over: proxies add it, and no client should fail for it.
CallIdentity IdentityOf(const grpc::ServerContextBase& context, absl::string_view request_id);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CALL_IDENTITY_H_
