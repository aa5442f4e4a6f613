#include "storage/table_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/errno_status.h"

namespace embergate::storage {
namespace {

// The kernel's statx buffer, spelled out as far as direct I/O goes: libc headers of Debian 12 lack those fields, and
// kernels older than 6.1 leave them and their bit in the mask at zero.
constexpr uint32_t kStatxDioAlign = 0x2000;
struct KernelStatx {
  uint32_t mask;
  uint8_t before_dio_align[148];
  uint32_t dio_mem_align;
  uint32_t dio_offset_align;
  uint8_t rest[96];
};
static_assert(sizeof(KernelStatx) == 256, "the kernel writes 256 bytes");
static_assert(offsetof(KernelStatx, dio_mem_align) == 0x98, "as in linux/stat.h");

bool PowerOfTwo(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

// Block size of the device under a regular file, from sysfs; 0 if unknown. A partition's directory lies inside its
// disk's, which has the queue.
uint32_t LogicalBlockBytes(dev_t device) {
  const std::string base = absl::StrCat("/sys/dev/block/", major(device), ":", minor(device));
  for (const char* tail : {"/queue/logical_block_size", "/../queue/logical_block_size"}) {
    std::ifstream file(base + tail);
    uint32_t bytes = 0;
    if (file >> bytes && PowerOfTwo(bytes)) {
      return bytes;
    }
  }
  return 0;
}

absl::Status OpenError(const std::string& path, int error) {
  const bool files = error == EMFILE || error == ENFILE;
  const absl::Status status = ErrnoStatus(error, absl::StrCat("cannot open ", path));
  return files ? absl::Status(status.code(), absl::StrCat(status.message(), " (raise ulimit -n)")) : status;
}

}  // namespace

absl::StatusOr<TableFile> TableFile::Open(const std::string& path, bool direct_io) {
  TableFile file;
  file.path_ = path;
  // O_NONBLOCK so that a pipe at this path is refused below instead of being waited for.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  if (direct_io) {
    file.fd_ = open(path.c_str(), kFlags | O_DIRECT);
    file.direct_ = file.fd_ >= 0;
    if (file.fd_ < 0 && errno == EINVAL) {
      file.direct_reason_ = "the file system refuses O_DIRECT";
    } else if (file.fd_ < 0) {
      return OpenError(path, errno);
    }
  }
  if (file.fd_ < 0) {
    file.fd_ = open(path.c_str(), kFlags);
    if (file.fd_ < 0) {
      return OpenError(path, errno);
    }
  }
  struct stat info = {};
  if (fstat(file.fd_, &info) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot stat ", path, ": ", strerror(errno)));
  }
  file.is_block_device_ = S_ISBLK(info.st_mode);
  if (!S_ISREG(info.st_mode) && !file.is_block_device_) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is neither a regular file nor a block device"));
  }
  file.bytes_ = static_cast<uint64_t>(info.st_size);
  if (file.is_block_device_) {
    if (ioctl(file.fd_, BLKGETSIZE64, &file.bytes_) != 0) {
      return absl::UnavailableError(absl::StrCat("cannot find the size of ", path, ": ", strerror(errno)));
    }
  }
  file.modified_s_ = info.st_mtim.tv_sec;
  file.modified_ns_ = info.st_mtim.tv_nsec;
  file.FindAlignment();
  if (!file.direct_) {
    posix_fadvise(file.fd_, 0, 0, POSIX_FADV_RANDOM);
  }
  return file;
}

void TableFile::FindAlignment() {
  const uint32_t page = static_cast<uint32_t>(sysconf(_SC_PAGESIZE));
  if (direct_) {
    KernelStatx statx = {};
    if (syscall(SYS_statx, fd_, "", AT_EMPTY_PATH, kStatxDioAlign, &statx) == 0 && (statx.mask & kStatxDioAlign) != 0) {
      if (PowerOfTwo(statx.dio_offset_align) && statx.dio_offset_align <= (1u << 20) &&
          PowerOfTwo(statx.dio_mem_align) && statx.dio_mem_align <= page) {
        alignment_ = statx.dio_offset_align;
        memory_alignment_ = statx.dio_mem_align;
        return;
      }
      // A zero here means: takes the flag, then goes through the page cache all the same (some network and
      // encrypted file systems, ext4 with data=journal).
      direct_reason_ = "the file system does no direct I/O on this file";
      (void)StopDirect();
    }
  }
  struct stat info = {};
  if (direct_) {
    // Kernels before 6.1.
    uint32_t bytes = 0;
    if (fstat(fd_, &info) == 0) {
      int block_bytes = 0;
      if (is_block_device_ && ioctl(fd_, BLKSSZGET, &block_bytes) == 0 && block_bytes > 0) {
        bytes = static_cast<uint32_t>(block_bytes);
      } else {
        bytes = LogicalBlockBytes(info.st_dev);
      }
    }
    alignment_ = PowerOfTwo(bytes) && bytes <= (1u << 20) ? bytes : 4096;
    memory_alignment_ = alignment_;
    return;
  }
  // Buffered: the page cache reads whole pages, so count and drop whole pages.
  alignment_ = page;
  memory_alignment_ = 1;
}

TableFile::TableFile(TableFile&& other) noexcept { *this = std::move(other); }

TableFile& TableFile::operator=(TableFile&& other) noexcept {
  path_.swap(other.path_);
  direct_reason_.swap(other.direct_reason_);
  std::swap(fd_, other.fd_);
  direct_ = other.direct_;
  changed_ = other.changed_;
  is_block_device_ = other.is_block_device_;
  alignment_ = other.alignment_;
  memory_alignment_ = other.memory_alignment_;
  bytes_ = other.bytes_;
  modified_s_ = other.modified_s_;
  modified_ns_ = other.modified_ns_;
  return *this;
}

TableFile::~TableFile() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

absl::Status TableFile::StopDirect() {
  const int flags = fcntl(fd_, F_GETFL);
  if (flags < 0 || fcntl(fd_, F_SETFL, flags & ~O_DIRECT) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot leave O_DIRECT for ", path_, ": ", strerror(errno)));
  }
  direct_ = false;
  if (direct_reason_.empty()) {
    direct_reason_ = "the file system refuses O_DIRECT reads";
  }
  posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
  return absl::OkStatus();
}

void TableFile::DropPages(uint64_t offset, uint64_t bytes) const {
  // The kernel drops only pages that lie in the range as a whole; the read brought all that it touched.
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  const uint64_t end = (offset + bytes + page - 1) / page * page;
  posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
}

absl::Status TableFile::CheckUnchanged() {
  struct stat info = {};
  if (!changed_ && fstat(fd_, &info) == 0) {
    changed_ = !is_block_device_ && (static_cast<uint64_t>(info.st_size) != bytes_ ||
                                     info.st_mtim.tv_sec != modified_s_ || info.st_mtim.tv_nsec != modified_ns_);
  }
  if (changed_) {
    return absl::DataLossError(absl::StrCat(path_, " was written to or truncated while open; restart to load it anew"));
  }
  return absl::OkStatus();
}

}  // namespace embergate::storage
