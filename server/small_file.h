// Whole files of settings: keys, certificates.
#ifndef EMBERGATE_SERVER_SMALL_FILE_H_
#define EMBERGATE_SERVER_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace embergate::server {

// Errors name the path: NOT_FOUND (cannot be opened), UNAVAILABLE (cannot be read), INVALID_ARGUMENT (larger than
// `bytes_max`).
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SMALL_FILE_H_
