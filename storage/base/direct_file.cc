#include "storage/base/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/errno_status.h"
#include "storage/base/status_macros.h"

namespace embergate::storage {
namespace {

// Big enough that one request keeps an NVMe device busy for about a millisecond, small enough for any budget.
constexpr size_t kBounceBytes = 1u << 20;

constexpr uint64_t RoundDown(uint64_t value) { return value & ~uint64_t{DirectFile::kAlignment - 1}; }
constexpr uint64_t RoundUp(uint64_t value) { return RoundDown(value + DirectFile::kAlignment - 1); }

struct FreeDeleter {
  void operator()(uint8_t* bytes) const { std::free(bytes); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<DirectFile>> DirectFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe by mistake must fail below, not wait for a writer.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  bool direct = true;
  int fd = ::open(path.c_str(), kFlags | O_DIRECT);
  if (fd < 0 && errno == EINVAL) {
    direct = false;
    fd = ::open(path.c_str(), kFlags);
  }
  if (fd < 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot open '", path, "'"));
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a regular file"));
  }
  return std::unique_ptr<DirectFile>(new DirectFile(path, fd, static_cast<uint64_t>(info.st_size), direct));
}

DirectFile::~DirectFile() { ::close(fd_); }

absl::Status DirectFile::ShortFile(uint64_t offset) const {
  struct stat info {};
  const bool known = ::fstat(fd_, &info) == 0;
  return absl::DataLossError(absl::StrCat(
      "'", path_, "' ends before byte ", offset + 1, known ? ": it has " : "",
      known ? absl::StrCat(info.st_size, " bytes now and had ", bytes_, " when it was opened") : std::string()));
}

// Reads `bytes` (a multiple of kAlignment, as `offset` and `out` are), of which only the first `needed_bytes` must
// exist: the last block of a file is rarely whole.
absl::Status DirectFile::ReadAligned(uint64_t offset, uint8_t* out, size_t bytes, size_t needed_bytes) const {
  size_t done = 0;
  while (done < needed_bytes) {
    const ssize_t got = ::pread(fd_, out + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      if (errno == EINVAL && direct()) {
        // The file system wants a larger alignment, or takes O_DIRECT at open only. Clearing the flag is safe
        // while other threads read: their aligned reads are valid buffered ones.
        ::fcntl(fd_, F_SETFL, 0);
        direct_.store(false, std::memory_order_relaxed);
        continue;
      }
      return absl::UnavailableError(
          absl::StrCat("reading '", path_, "' at byte ", offset + done, ": ", std::strerror(errno)));
    }
    if (got == 0) {
      return ShortFile(offset + done);
    }
    const size_t reached = done + static_cast<size_t>(got);
    if (reached >= needed_bytes) {
      break;
    }
    // A short read in mid-file: go on from a block border. Less than one new block means the end of the file.
    if (RoundDown(reached) <= done) {
      return ShortFile(offset + reached);
    }
    done = RoundDown(reached);
  }
  if (!direct()) {
    ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
  }
  return absl::OkStatus();
}

absl::Status DirectFile::ReadBuffered(uint64_t offset, absl::Span<uint8_t> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const size_t want = std::min<size_t>(out.size() - done, 8u << 20);  // bounds what the page cache holds at once
    const ssize_t got = ::pread(fd_, out.data() + done, want, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      return absl::UnavailableError(
          absl::StrCat("reading '", path_, "' at byte ", offset + done, ": ", std::strerror(errno)));
    }
    if (got == 0) {
      return ShortFile(offset + done);
    }
    const uint64_t begin = RoundDown(offset + done);
    const uint64_t end = RoundUp(offset + done + static_cast<uint64_t>(got));
    ::posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status DirectFile::Read(uint64_t offset, absl::Span<uint8_t> out) const {
  if (out.empty()) {
    return absl::OkStatus();
  }
  uint64_t end = 0;
  if (__builtin_add_overflow(offset, uint64_t{out.size()}, &end) || end > bytes_) {
    return absl::DataLossError(absl::StrCat("'", path_, "' has ", bytes_, " bytes; bytes ", offset, " to ",
                                            offset + out.size(), " were asked for"));
  }
  if (!direct()) {
    return ReadBuffered(offset, out);
  }
  std::unique_ptr<uint8_t, FreeDeleter> bounce;
  size_t bounce_bytes = 0;
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t at = offset + done;
    const size_t left = out.size() - done;
    uint8_t* const to = out.data() + done;
    if (at % kAlignment == 0 && reinterpret_cast<uintptr_t>(to) % kAlignment == 0 && left >= kAlignment) {
      const size_t whole = RoundDown(left);
      EMBERGATE_RETURN_IF_ERROR(ReadAligned(at, to, whole, whole));
      done += whole;
      continue;
    }
    const uint64_t block_begin = RoundDown(at);
    const size_t head = static_cast<size_t>(at - block_begin);
    if (bounce == nullptr) {
      bounce_bytes = std::min<size_t>(kBounceBytes, RoundUp(head + left));
      bounce.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, bounce_bytes)));
      if (bounce == nullptr) {
        return absl::ResourceExhaustedError(absl::StrCat("no memory for a read buffer of ", bounce_bytes, " bytes"));
      }
    }
    // With equal remainders only the bytes up to the next border need the bounce buffer.
    const bool congruent = reinterpret_cast<uintptr_t>(to) % kAlignment == head;
    size_t span_bytes = std::min<size_t>(bounce_bytes, RoundUp(head + left));
    if (congruent && head > 0) {
      span_bytes = kAlignment;
    }
    const size_t useful = std::min(span_bytes - head, left);
    EMBERGATE_RETURN_IF_ERROR(ReadAligned(block_begin, bounce.get(), span_bytes, head + useful));
    std::memcpy(to, bounce.get() + head, useful);
    done += useful;
  }
  return absl::OkStatus();
}

}  // namespace embergate::storage
