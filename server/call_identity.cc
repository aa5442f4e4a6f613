#include "server/call_identity.h"

#include <algorithm>
#include <utility>

namespace embergate::server {
namespace {

constexpr size_t kVersionDigits = 2;
constexpr size_t kTraceDigits = 32;
constexpr size_t kSpanDigits = 16;
constexpr size_t kTraceparentBytes = kVersionDigits + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;

// Upper case is not valid there.
bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) { return text.find_first_not_of('0') == absl::string_view::npos; }

// The value of a key that is there once; empty otherwise.
absl::string_view Metadata(const grpc::ServerContextBase& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(key);
  if (it == metadata.end() || metadata.count(key) != 1) {
    return {};
  }
  return {it->second.data(), it->second.size()};
}

}  // namespace

bool IsLabel(absl::string_view text) {
  return text.size() <= kLabelBytesMax &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

std::optional<TraceParent> ParseTraceparent(absl::string_view header) {
  if (header.size() < kTraceparentBytes) {
    return std::nullopt;
  }
  const absl::string_view version = header.substr(0, kVersionDigits);
  const absl::string_view trace = header.substr(kVersionDigits + 1, kTraceDigits);
  const absl::string_view span = header.substr(kVersionDigits + 1 + kTraceDigits + 1, kSpanDigits);
  const absl::string_view flags = header.substr(kTraceparentBytes - 2, 2);
  const bool dashes = header[kVersionDigits] == '-' && header[kVersionDigits + 1 + kTraceDigits] == '-' &&
                      header[kTraceparentBytes - 3] == '-';
  if (!dashes || !IsHex(version) || !IsHex(trace) || !IsHex(span) || !IsHex(flags) || version == "ff" ||
      IsZero(trace) || IsZero(span)) {
    return std::nullopt;
  }
  // A later version may add fields at the end; this one has none.
  if (header.size() > kTraceparentBytes && (version == "00" || header[kTraceparentBytes] != '-')) {
    return std::nullopt;
  }
  return TraceParent{std::string(trace), std::string(span)};
}

CallIdentity IdentityOf(const grpc::ServerContextBase& context, absl::string_view request_id) {
  CallIdentity identity;
  const absl::string_view id = request_id.empty() ? Metadata(context, "x-request-id") : request_id;
  if (IsLabel(id)) {
    identity.request_id = std::string(id);
  }
  if (std::optional<TraceParent> trace = ParseTraceparent(Metadata(context, "traceparent")); trace.has_value()) {
    identity.trace_id = std::move(trace->trace_id);
    identity.span_id = std::move(trace->span_id);
  }
  return identity;
}

}  // namespace embergate::server
