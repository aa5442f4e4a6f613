#include "engine/convert/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "storage/base/errno_status.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr int kDepthMax = 64;
// A parsed value costs at least 16 bytes, one in the text can be 2: without a bound, 100 MB of "0," would take 800 MB.
constexpr uint64_t kValuesMax = 4'000'000;

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view what) {
  uint64_t values = 0;
  bool too_big = false;
  // The callback sees each value before it is stored; the parser itself does not recurse.
  const nlohmann::json::parser_callback_t bound = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_big = too_big || depth > kDepthMax || ++values > kValuesMax;
    return !too_big;
  };
  nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), bound, /*allow_exceptions=*/false);
  if (too_big) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is nested deeper than ", kDepthMax, " or holds more than ", kValuesMax, " values"));
  }
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not valid JSON"));
  }
  return json;
}

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, uint64_t bytes_max) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return storage::ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  }
  struct stat info {};
  std::string text;
  absl::Status status;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  } else if (static_cast<uint64_t>(info.st_size) > bytes_max) {
    status = absl::InvalidArgumentError(
        absl::StrCat(path, " has ", info.st_size, " bytes, more than the ", bytes_max, " expected of such a file"));
  } else {
    text.resize(static_cast<size_t>(info.st_size));
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t got = ::read(fd, text.data() + done, text.size() - done);
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got <= 0) {
        status = absl::DataLossError(absl::StrCat("cannot read ", path, ": ", got < 0 ? std::strerror(errno) : "cut"));
        break;
      }
      done += static_cast<size_t>(got);
    }
  }
  ::close(fd);
  if (!status.ok()) {
    return status;
  }
  return ParseJson(text, path);
}

}  // namespace embergate::engine
