#include "server/cli/standard_input.h"

#include <cstdio>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace embergate::server {

absl::StatusOr<std::string> ReadStandardInput(size_t bytes_max) {
  std::string text;
  std::string chunk(1u << 16, '\0');
  while (true) {
    const size_t count = std::fread(chunk.data(), 1, chunk.size(), stdin);
    text.append(chunk, 0, count);
    if (text.size() > bytes_max) {
      return absl::ResourceExhaustedError(absl::StrCat("standard input is larger than ", bytes_max, " bytes"));
    }
    if (count == 0) {
      break;
    }
  }
  if (std::ferror(stdin) != 0) {
    return absl::UnavailableError("cannot read standard input");
  }
  return text;
}

}  // namespace embergate::server
