#include "server/bounded_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace embergate::server {

absl::StatusOr<std::string> ReadBoundedFile(const std::string& path, size_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  return ReadBounded(file, path, bytes_max);
}

absl::StatusOr<std::string> ReadBounded(std::istream& in, const std::string& name, size_t bytes_max) {
  std::string text;
  char buffer[1 << 14];
  while (in.read(buffer, sizeof(buffer)), in.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat(name, " has more than ", bytes_max, " bytes"));
    }
  }
  if (in.bad()) {
    return absl::UnavailableError(absl::StrCat("cannot read ", name));
  }
  return text;
}

}  // namespace embergate::server
