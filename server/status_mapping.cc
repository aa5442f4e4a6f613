#include "server/status_mapping.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace embergate::server {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";

// Trailers share HTTP/2's header limit, 8 KiB by default in many clients, and binary ones grow by a third: message
// (once as text, once in the details) and violations stay under 6 KiB together.
constexpr size_t kMessageBytesMax = 1024;
constexpr size_t kViolationBytesMax = 120;  // of a description
constexpr size_t kViolationsMax = 16;

// What happens to a status of each code on its way to a client.
struct CodeRule {
  absl::StatusCode code;
  grpc::StatusCode grpc;
  const char* reason;  // of the ErrorInfo, unless the status has its own
  // Shown instead of the status's own message, unless it was written for clients (has an ErrorInfo); null = shown.
  const char* message;
};

constexpr char kInternalMessage[] = "internal error; the server's log has the particulars";
constexpr CodeRule kRules[] = {
    {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED, "CANCELLED", nullptr},
    {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT, "INVALID_REQUEST", nullptr},
    {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", nullptr},
    {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION, "NOT_SUPPORTED_BY_MODEL", nullptr},
    {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", nullptr},
    {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED, "UNIMPLEMENTED", nullptr},
    {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE, "FLASH_UNAVAILABLE",
     "the model file could not be read; the server's log has the particulars"},
    {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS, "FLASH_DATA_LOSS",
     "data read from the model file was damaged; the server's log has the particulars"},
};
// Of these, only what was written for clients: an operating system's EACCES is none of their business.
constexpr CodeRule kRulesForClients[] = {
    {absl::StatusCode::kUnauthenticated, grpc::StatusCode::UNAUTHENTICATED, "", nullptr},
    {absl::StatusCode::kPermissionDenied, grpc::StatusCode::PERMISSION_DENIED, "", nullptr},
};
constexpr CodeRule kOtherwise = {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL, "INTERNAL", kInternalMessage};

const CodeRule& RuleFor(absl::StatusCode code, bool for_clients) {
  for (const CodeRule& rule : kRules) {
    if (rule.code == code) {
      return rule;
    }
  }
  for (const CodeRule& rule : kRulesForClients) {
    if (rule.code == code && for_clients) {
      return rule;
    }
  }
  return kOtherwise;
}

template <typename Message>
std::optional<Message> GetPayload(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  Message message;
  if (!payload.has_value() || !message.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return message;
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  const int64_t ms = absl::ToInt64Milliseconds(duration);
  proto.set_seconds(ms / 1000);
  proto.set_nanos(static_cast<int32_t>(ms % 1000 * 1'000'000));
  return proto;
}

// Cuts at a character's border.
std::string Shortened(absl::string_view message, size_t bytes_max = kMessageBytesMax) {
  if (message.size() <= bytes_max) {
    return std::string(message);
  }
  size_t end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) {
    --end;
  }
  return absl::StrCat(message.substr(0, end), "...");
}

void AddDetail(const char* url, const std::string& bytes, google::rpc::Status& proto) {
  google::protobuf::Any& detail = *proto.add_details();
  detail.set_type_url(url);
  detail.set_value(bytes);
}

}  // namespace

absl::Status BadRequestError(const std::vector<FieldViolation>& violations) {
  google::rpc::BadRequest bad_request;
  std::string message;
  for (const FieldViolation& violation : violations) {
    if (static_cast<size_t>(bad_request.field_violations_size()) == kViolationsMax) {
      absl::StrAppend(&message, "; and ", violations.size() - kViolationsMax, " more");
      break;
    }
    absl::StrAppend(&message, message.empty() ? "" : "; ", violation.field, ": ", violation.description);
    auto& proto = *bad_request.add_field_violations();
    proto.set_field(violation.field);
    proto.set_description(Shortened(violation.description, kViolationBytesMax));
  }
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kBadRequestUrl, absl::Cord(bad_request.SerializeAsString()));
  return WithReason(std::move(status), "INVALID_REQUEST");
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain("embergate");
  status.SetPayload(kErrorInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Status WithRetry(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  *info.mutable_retry_delay() = ToProto(delay);
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) {
    return grpc::Status::OK;
  }
  const bool for_clients = status.GetPayload(kErrorInfoUrl).has_value();
  const CodeRule& rule = RuleFor(status.code(), for_clients);
  const bool hidden = rule.message != nullptr && (!for_clients || rule.grpc == grpc::StatusCode::INTERNAL);
  const std::string message = hidden ? rule.message : Shortened(status.message());

  const absl::Status with_info = for_clients ? status : WithReason(status, rule.reason);
  google::rpc::Status proto;
  proto.set_code(rule.grpc);
  proto.set_message(message);
  for (const char* url : {kErrorInfoUrl, kBadRequestUrl, kRetryInfoUrl}) {
    if (const auto payload = with_info.GetPayload(url); payload.has_value()) {
      AddDetail(url, std::string(*payload), proto);
    }
  }
  return grpc::Status(rule.grpc, message, proto.SerializeAsString());
}

void AddRetryTrailer(const absl::Status& status, grpc::ServerContextBase& context) {
  const auto info = GetPayload<google::rpc::RetryInfo>(status, kRetryInfoUrl);
  if (info.has_value()) {
    const int64_t ms = info->retry_delay().seconds() * 1000 + info->retry_delay().nanos() / 1'000'000;
    context.AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(ms));
  }
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status proto;
  if (status.ok() || !proto.ParseFromString(status.error_details())) {
    return details;
  }
  for (const google::protobuf::Any& any : proto.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    google::rpc::BadRequest bad_request;
    if (any.type_url() == kErrorInfoUrl && info.ParseFromString(any.value())) {
      details.reason = info.reason();
    } else if (any.type_url() == kRetryInfoUrl && retry.ParseFromString(any.value())) {
      details.retry_delay =
          absl::Seconds(retry.retry_delay().seconds()) + absl::Nanoseconds(retry.retry_delay().nanos());
    } else if (any.type_url() == kBadRequestUrl && bad_request.ParseFromString(any.value())) {
      for (const auto& violation : bad_request.field_violations()) {
        details.violations.push_back({violation.field(), violation.description()});
      }
    }
  }
  return details;
}

}  // namespace embergate::server
