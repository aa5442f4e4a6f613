// All of standard input, bounded.
#ifndef EMBERGATE_SERVER_CLI_STANDARD_INPUT_H_
#define EMBERGATE_SERVER_CLI_STANDARD_INPUT_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace embergate::server {

inline constexpr size_t kStandardInputBytesMax = 256u << 20;

// RESOURCE_EXHAUSTED past the limit, UNAVAILABLE for a read error.
absl::StatusOr<std::string> ReadStandardInput(size_t bytes_max = kStandardInputBytesMax);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_STANDARD_INPUT_H_
