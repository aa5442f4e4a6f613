#include "server/server_stats.h"

namespace embergate::server {

const char* GrpcCodeName(grpc::StatusCode code) {
  static constexpr std::array<const char*, kGrpcCodes> kNames = {
      "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED",
  };
  return code >= 0 && code < kGrpcCodes ? kNames[static_cast<size_t>(code)] : "UNKNOWN";
}

}  // namespace embergate::server
