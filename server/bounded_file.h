// Whole files whose size a limit holds: keys, certificates, prompts.
#ifndef EMBERGATE_SERVER_BOUNDED_FILE_H_
#define EMBERGATE_SERVER_BOUNDED_FILE_H_

#include <cstddef>
#include <istream>
#include <string>

#include "absl/status/statusor.h"

namespace embergate::server {

// Errors name the path: NOT_FOUND (cannot be opened), UNAVAILABLE (cannot be read), INVALID_ARGUMENT (larger than
// `bytes_max`).
absl::StatusOr<std::string> ReadBoundedFile(const std::string& path, size_t bytes_max);
// The same of what is open already; `name` stands in the errors.
absl::StatusOr<std::string> ReadBounded(std::istream& in, const std::string& name, size_t bytes_max);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_BOUNDED_FILE_H_
