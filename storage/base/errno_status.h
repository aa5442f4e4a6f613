// Failed system calls on files as statuses.
#ifndef EMBERGATE_STORAGE_BASE_ERRNO_STATUS_H_
#define EMBERGATE_STORAGE_BASE_ERRNO_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace embergate::storage {

// "<what>: <the system's words for errno `error`>". NOT_FOUND; PERMISSION_DENIED; INVALID_ARGUMENT for a folder in the
// place of a file; RESOURCE_EXHAUSTED for what runs out (space, quota, file size, descriptors, memory); UNAVAILABLE
// otherwise.
absl::Status ErrnoStatus(int error, absl::string_view what);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_BASE_ERRNO_STATUS_H_
