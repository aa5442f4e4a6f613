// The table of status codes, row by row.
#include "server/status_mapping.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(StatusMappingTest, EveryCodeHasItsRow) {
  struct Row {
    absl::StatusCode code;
    grpc::StatusCode grpc;
    bool message_shown;
  };
  const Row rows[] = {
      {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED, true},
      {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT, true},
      {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED, true},
      {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION, true},
      {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED, true},
      {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED, true},
      {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE, false},
      {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS, false},
      {absl::StatusCode::kUnknown, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kNotFound, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kAlreadyExists, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kPermissionDenied, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kAborted, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kOutOfRange, grpc::StatusCode::INTERNAL, false},
      {absl::StatusCode::kUnauthenticated, grpc::StatusCode::INTERNAL, false},
  };
  for (const Row& row : rows) {
    const grpc::Status status = ToGrpc(absl::Status(row.code, "/data/model.gguf: offset 4096"));
    EXPECT_EQ(status.error_code(), row.grpc) << absl::StatusCodeToString(row.code);
    EXPECT_EQ(status.error_message().find("offset 4096") != std::string::npos, row.message_shown)
        << absl::StatusCodeToString(row.code);
    EXPECT_FALSE(DetailsOf(status).reason.empty()) << absl::StatusCodeToString(row.code);
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
}

TEST(StatusMappingTest, RefusedAccessIsToldWhereItIsMeantForTheClient) {
  const grpc::Status key = ToGrpc(WithReason(absl::UnauthenticatedError("which key?"), "API_KEY_MISSING"));
  EXPECT_EQ(key.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(key.error_message(), "which key?");
  const grpc::Status denied = ToGrpc(WithReason(absl::PermissionDeniedError("no"), "PRIORITY_NOT_ALLOWED"));
  EXPECT_EQ(denied.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(denied).reason, "PRIORITY_NOT_ALLOWED");
}

TEST(StatusMappingTest, MessagesWrittenForClientsAreShown) {
  const grpc::Status status = ToGrpc(WithReason(absl::UnavailableError("loading, 3 %"), "LOADING"));
  EXPECT_EQ(status.error_message(), "loading, 3 %");
  EXPECT_EQ(DetailsOf(status).reason, "LOADING");
}

TEST(StatusMappingTest, RetryDelayArrives) {
  const grpc::Status status = ToGrpc(WithRetry(absl::ResourceExhaustedError("full"), absl::Milliseconds(2350)));
  EXPECT_EQ(DetailsOf(status).retry_delay, absl::Milliseconds(2350));
}

TEST(StatusMappingTest, ViolationsArriveAndAreBounded) {
  std::vector<FieldViolation> many;
  for (int i = 0; i < 100; ++i) {
    many.push_back({"field" + std::to_string(i), std::string(5000, 'x')});
  }
  const grpc::Status status = ToGrpc(BadRequestError(many));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).violations.size(), 16u);
  EXPECT_LT(status.error_message().size() + status.error_details().size() * 4 / 3, 6000u)
      << "more than a client's header limit leaves";
}

TEST(StatusMappingTest, LongMessagesAreCutBetweenCharacters) {
  std::string text(1023, 'a');
  text += "\xc3\xa4\xc3\xa4";
  const std::string message = ToGrpc(absl::InvalidArgumentError(text)).error_message();
  EXPECT_THAT(message, Not(HasSubstr("\xc3...")));
  EXPECT_LE(message.size(), 1027u);
}

TEST(StatusMappingTest, DetailsThatAreNoneGiveNothing) {
  EXPECT_TRUE(DetailsOf(grpc::Status(grpc::StatusCode::INTERNAL, "x", "not a protobuf \xff")).reason.empty());
}

}  // namespace
}  // namespace embergate::server
