#include "storage/checksum_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/direct_file.h"
#include "storage/base/status_macros.h"
#include "storage/buffer_pool.h"
#include "storage/crc32c.h"

namespace embergate::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is written as it lies in memory");

constexpr char kMagic[8] = {'E', 'M', 'B', 'G', 'C', 'R', 'C', '1'};
constexpr uint32_t kEntriesMax = 65536;
constexpr uint32_t kNameBytesMax = 256;
constexpr uint32_t kSegmentsMax = 64;
constexpr uint64_t kReadBytes = 4u << 20;

absl::Status CheckGeometry(const ChecksumEntry& entry, uint64_t file_bytes) {
  const auto error = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("checksums of '", entry.name, "': ", what));
  };
  if (entry.bytes == 0 || entry.piece_bytes == 0) {
    return error("no bytes");
  }
  if (entry.file_offset > file_bytes || entry.bytes > file_bytes - entry.file_offset) {
    return error("its bytes lie beyond the end of the file");
  }
  if (entry.segment_ends.empty() || entry.segment_ends.size() > kSegmentsMax) {
    return error("a piece has 1 to 64 segments");
  }
  uint64_t previous = 0;
  for (uint64_t end : entry.segment_ends) {
    if (end <= previous) {
      return error("segments must ascend");
    }
    previous = end;
  }
  if (previous != entry.piece_bytes) {
    return error("the last segment must end with the piece");
  }
  if (entry.segment_ends.size() > 1 && entry.bytes % entry.piece_bytes != 0) {
    return error("segments need whole pieces");
  }
  return absl::OkStatus();
}

// Calls `on_crc(i, crc)` for the i-th segment of the entry, in order.
template <typename OnCrc>
absl::Status WalkEntry(const DirectFile& file, const ChecksumEntry& entry, uint8_t* buffer, uint64_t done_before,
                       uint64_t total, const ChecksumProgress& progress, OnCrc on_crc) {
  uint64_t done = 0;       // of the entry
  uint64_t crc_index = 0;  // of the segment that `crc` is of
  uint64_t piece_begin = 0;
  size_t segment = 0;
  uint32_t crc = 0;
  while (done < entry.bytes) {
    // Up to a boundary of the file's blocks, so that all reads but the first go straight to the buffer.
    const uint64_t position = entry.file_offset + done;
    const uint64_t lead = position % DirectFile::kAlignment;
    const uint64_t bytes = std::min(entry.bytes - done, kReadBytes - lead);
    EMBERGATE_RETURN_IF_ERROR(file.Read(position, absl::MakeSpan(buffer + lead, bytes)));
    uint64_t used = 0;
    while (used < bytes) {
      const uint64_t end = std::min(piece_begin + entry.segment_ends[segment], entry.bytes);
      const uint64_t step = std::min(end - done, bytes - used);
      crc = Crc32c(absl::MakeConstSpan(buffer + lead + used, step), crc);
      used += step;
      done += step;
      if (done == end) {
        on_crc(crc_index++, crc);
        crc = 0;
        if (++segment == entry.segment_ends.size()) {
          segment = 0;
          piece_begin += entry.piece_bytes;
        }
      }
    }
    if (progress) {
      progress(done_before + done, total);
    }
  }
  return absl::OkStatus();
}

template <typename OnCrc>
absl::Status Walk(const std::string& path, const ChecksumFile& sums, const ChecksumProgress& progress, OnCrc on_crc) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<DirectFile> file, DirectFile::Open(path));
  EMBERGATE_ASSIGN_OR_RETURN(const MappedMemory buffer, MappedMemory::Create(kReadBytes));
  uint64_t total = 0;
  for (const ChecksumEntry& entry : sums.entries) {
    EMBERGATE_RETURN_IF_ERROR(CheckGeometry(entry, file->bytes()));
    total += entry.bytes;
  }
  uint64_t done = 0;
  for (size_t i = 0; i < sums.entries.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(WalkEntry(*file, sums.entries[i], buffer.data(), done, total, progress,
                                        [&](uint64_t index, uint32_t crc) { on_crc(i, index, crc); }));
    done += sums.entries[i].bytes;
  }
  return absl::OkStatus();
}

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Reads values off the front of a buffer.
class Cursor {
 public:
  explicit Cursor(absl::string_view data) : data_(data) {}
  uint64_t left() const { return data_.size(); }
  template <typename T>
  bool Get(T* value) {
    return GetBytes(value, sizeof(*value));
  }
  bool GetBytes(void* out, uint64_t bytes) {
    if (bytes > data_.size()) {
      return false;
    }
    if (bytes > 0) {
      std::memcpy(out, data_.data(), bytes);
    }
    data_.remove_prefix(bytes);
    return true;
  }

 private:
  absl::string_view data_;
};

absl::Status ParseEntry(Cursor& cursor, uint64_t file_bytes, ChecksumEntry& entry) {
  const absl::Status cut = absl::InvalidArgumentError("it ends in the middle of an entry");
  uint32_t name_bytes = 0;
  uint32_t segments = 0;
  if (!cursor.Get(&name_bytes) || name_bytes > kNameBytesMax) {
    return cut;
  }
  entry.name.resize(name_bytes);
  if (!cursor.GetBytes(entry.name.data(), name_bytes) || !cursor.Get(&entry.file_offset) || !cursor.Get(&entry.bytes) ||
      !cursor.Get(&entry.piece_bytes) || !cursor.Get(&segments) || segments == 0 || segments > kSegmentsMax) {
    return cut;
  }
  entry.segment_ends.resize(segments);
  if (!cursor.GetBytes(entry.segment_ends.data(), segments * sizeof(uint64_t))) {
    return cut;
  }
  EMBERGATE_RETURN_IF_ERROR(CheckGeometry(entry, file_bytes));
  // pieces() cannot overflow: bytes and piece_bytes are within the file's size.
  const uint64_t count = entry.pieces();
  if (entry.piece_bytes > file_bytes + kReadBytes || count > cursor.left() / sizeof(uint32_t) / segments) {
    return cut;
  }
  entry.crcs.resize(count * segments);
  return cursor.GetBytes(entry.crcs.data(), entry.crcs.size() * sizeof(uint32_t)) ? absl::OkStatus() : cut;
}

absl::Status ReadWhole(const std::string& path, std::string& data) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const std::string message = absl::StrCat("cannot open ", path, ": ", strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
  }
  const off_t size = lseek(fd, 0, SEEK_END);
  constexpr off_t kBytesMax = off_t{1} << 32;
  if (size < 0 || size > kBytesMax) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is no checksum file"));
  }
  data.resize(static_cast<size_t>(size));
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = pread(fd, data.data() + done, data.size() - done, static_cast<off_t>(done));
    if (n <= 0) {
      close(fd);
      return absl::UnavailableError(absl::StrCat("cannot read ", path, ": ", n < 0 ? strerror(errno) : "it shrank"));
    }
    done += static_cast<size_t>(n);
  }
  close(fd);
  return absl::OkStatus();
}

}  // namespace

std::string ChecksumPathFor(const std::string& path) { return path + ".crc32c"; }

uint64_t ChecksumBytesBeside(const std::string& path) {
  struct stat info = {};
  return stat(ChecksumPathFor(path).c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

absl::Status ComputeChecksums(const std::string& path, ChecksumFile& sums, const ChecksumProgress& progress) {
  for (ChecksumEntry& entry : sums.entries) {
    EMBERGATE_RETURN_IF_ERROR(CheckGeometry(entry, sums.file_bytes));
    entry.crcs.assign(entry.pieces() * entry.segment_ends.size(), 0);
  }
  return Walk(path, sums, progress,
              [&](size_t entry, uint64_t index, uint32_t crc) { sums.entries[entry].crcs[index] = crc; });
}

absl::StatusOr<uint64_t> VerifyChecksums(const std::string& path, const ChecksumFile& sums,
                                         const std::function<void(const ChecksumEntry&, uint64_t piece)>& on_mismatch,
                                         const ChecksumProgress& progress) {
  uint64_t bad = 0;
  const ChecksumEntry* last_entry = nullptr;
  uint64_t last_piece = 0;
  EMBERGATE_RETURN_IF_ERROR(Walk(path, sums, progress, [&](size_t i, uint64_t index, uint32_t crc) {
    const ChecksumEntry& entry = sums.entries[i];
    const uint64_t piece = index / entry.segment_ends.size();
    if (entry.crcs[index] == crc || (last_entry == &entry && last_piece == piece)) {
      return;
    }
    last_entry = &entry;
    last_piece = piece;
    ++bad;
    if (on_mismatch) {
      on_mismatch(entry, piece);
    }
  }));
  return bad;
}

absl::Status WriteChecksumFile(const std::string& path, const ChecksumFile& sums) {
  std::string out(kMagic, sizeof(kMagic));
  Put(out, sums.file_bytes);
  Put(out, static_cast<uint32_t>(sums.entries.size()));
  for (const ChecksumEntry& entry : sums.entries) {
    const std::string name = entry.name.substr(0, kNameBytesMax);
    Put(out, static_cast<uint32_t>(name.size()));
    out += name;
    Put(out, entry.file_offset);
    Put(out, entry.bytes);
    Put(out, entry.piece_bytes);
    Put(out, static_cast<uint32_t>(entry.segment_ends.size()));
    for (uint64_t end : entry.segment_ends) {
      Put(out, end);
    }
    out.append(reinterpret_cast<const char*>(entry.crcs.data()), entry.crcs.size() * sizeof(uint32_t));
  }
  Put(out, Crc32c({reinterpret_cast<const uint8_t*>(out.data()), out.size()}));

  const std::string partial = path + ".partial";
  const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool good = fd >= 0;
  for (size_t done = 0; good && done < out.size();) {
    const ssize_t n = write(fd, out.data() + done, out.size() - done);
    good = n > 0;
    done += good ? static_cast<size_t>(n) : 0;
  }
  good = good && fsync(fd) == 0;
  int error = errno;
  if (fd >= 0 && close(fd) != 0 && good) {
    good = false;
    error = errno;
  }
  if (good && rename(partial.c_str(), path.c_str()) != 0) {
    good = false;
    error = errno;
  }
  if (!good) {
    unlink(partial.c_str());
    return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", strerror(error)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChecksumFile> ReadChecksumFile(const std::string& path) {
  std::string data;
  EMBERGATE_RETURN_IF_ERROR(ReadWhole(path, data));
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", what, "; delete it, or make it anew with embergate checksum"));
  };
  ChecksumFile sums;
  uint32_t entries = 0;
  uint32_t crc = 0;
  if (data.size() < sizeof(kMagic) + 16 || std::memcmp(data.data(), kMagic, sizeof(kMagic)) != 0) {
    return error("this is no checksum file");
  }
  const absl::string_view body(data.data(), data.size() - sizeof(crc));
  std::memcpy(&crc, data.data() + body.size(), sizeof(crc));
  if (Crc32c({reinterpret_cast<const uint8_t*>(body.data()), body.size()}) != crc) {
    return error("the checksum file itself is damaged");
  }
  Cursor cursor(body);
  char magic[sizeof(kMagic)];
  if (!cursor.Get(&magic) || !cursor.Get(&sums.file_bytes) || !cursor.Get(&entries) || entries > kEntriesMax) {
    return error("it has a malformed head");
  }
  for (uint32_t i = 0; i < entries; ++i) {
    ChecksumEntry entry;
    if (const absl::Status status = ParseEntry(cursor, sums.file_bytes, entry); !status.ok()) {
      return error(status.message());
    }
    sums.entries.push_back(std::move(entry));
  }
  if (cursor.left() != 0) {
    return error("there are bytes behind the last entry");
  }
  return sums;
}

absl::StatusOr<RowChecksums> LoadRowChecksums(const TableSpec& table) {
  const std::string path = ChecksumPathFor(table.path);
  absl::StatusOr<ChecksumFile> sums = ReadChecksumFile(path);
  if (absl::IsNotFound(sums.status())) {
    return RowChecksums();
  }
  EMBERGATE_RETURN_IF_ERROR(sums.status());
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<DirectFile> file, DirectFile::Open(table.path));
  if (sums->file_bytes != file->bytes()) {
    return absl::FailedPreconditionError(absl::StrCat(path, " describes a file of ", sums->file_bytes, " bytes, but ",
                                                      table.path, " has ", file->bytes(),
                                                      "; delete it, or make it anew with embergate checksum"));
  }
  const uint64_t stride = table.row_stride == 0 ? table.row_bytes : table.row_stride;
  for (ChecksumEntry& entry : sums->entries) {
    if (entry.file_offset == table.file_offset && entry.piece_bytes == table.row_bytes && stride == table.row_bytes &&
        entry.bytes % entry.piece_bytes == 0 && entry.pieces() == table.row_count) {
      RowChecksums rows;
      rows.segment_ends = std::move(entry.segment_ends);
      rows.crcs = std::move(entry.crcs);
      return rows;
    }
  }
  return absl::FailedPreconditionError(absl::StrCat(path, " has no checksums for the rows of ", table.row_bytes,
                                                    " bytes at byte ", table.file_offset, " of ", table.path,
                                                    "; delete it, or make it anew with embergate checksum"));
}

}  // namespace embergate::storage
