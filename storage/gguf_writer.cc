#include "storage/gguf_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "storage/base/errno_status.h"
#include "storage/base/status_macros.h"
#include "storage/crc32c.h"
#include "storage/gguf_file.h"

namespace embergate::storage {
namespace {

constexpr uint64_t kTensorNameBytesMax = 63;  // what other readers take
constexpr uint64_t kTensorAlignMax = 1u << 30;
// The device is told to start writing every so many bytes, and waited for one such window later: it stays busy while
// the caller makes the next bytes, and at most two windows are dirty.
constexpr uint64_t kWritebackBytes = 16u << 20;
constexpr size_t kPaddingStep = 64 << 10;
constexpr absl::string_view kPaddingKey = "embergate.padding";

constexpr uint64_t RoundUp(uint64_t value, uint64_t multiple) { return (value + multiple - 1) & ~(multiple - 1); }

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void PutString(std::string& out, absl::string_view text) {
  Put(out, uint64_t{text.size()});
  out.append(text.data(), text.size());
}

// Checksums of a tensor's rows in the making.
struct RowSums {
  std::vector<uint64_t> segment_ends;
  uint64_t row_bytes = 0;
  uint64_t keys_offset = 0;    // of the values, from the start of the keys
  std::vector<uint32_t> crcs;  // complete ones
  uint64_t row_done = 0;       // bytes of the current row
  size_t segment = 0;          // the current one, and its value so far
  uint32_t crc = 0;

  void Add(absl::Span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const size_t step = std::min<size_t>(bytes.size(), segment_ends[segment] - row_done);
      crc = Crc32c(bytes.first(step), crc);
      bytes.remove_prefix(step);
      row_done += step;
      if (row_done == segment_ends[segment]) {
        crcs.push_back(crc);
        crc = 0;
        if (++segment == segment_ends.size()) {
          segment = 0;
          row_done = 0;
        }
      }
    }
  }
};

struct PlannedTensor {
  std::string name;
  TensorType type;
  std::vector<uint64_t> dims;
  uint64_t bytes = 0;
  uint64_t align = 0;
  uint64_t offset = 0;  // from the start of the data section
  std::optional<RowSums> sums;
};

constexpr uint64_t kKeysStart = 4 + 4 + 8 + 8;  // magic, version, tensor count, key count

}  // namespace

struct GgufWriter::Impl {
  std::string path;
  std::string partial_path;
  int fd = -1;
  uint32_t alignment = 32;
  absl::Status error;  // the first mistake of an Add... call or failed write; every later call returns it
  std::string keys;    // serialised
  uint64_t key_count = 0;
  absl::flat_hash_set<std::string> key_names;
  std::vector<PlannedTensor> tensors;
  absl::flat_hash_set<std::string> tensor_names;
  bool data_begun = false;
  bool finished = false;
  uint64_t data_start = 0;
  uint64_t total_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t writeback_begun = 0;  // bytes whose writing has been started, and
  uint64_t writeback_done = 0;   // finished, pages dropped
  size_t current = 0;            // tensor being appended to
  uint64_t current_bytes = 0;    // of it, so far

  ~Impl() {
    if (fd >= 0) {
      if (!finished) {
        ::unlink(partial_path.c_str());
      }
      ::close(fd);
    }
  }

  std::string& Key(absl::string_view key, GgufValueType type);
  template <typename T>
  void Array(absl::string_view key, GgufValueType type, absl::Span<const T> values) {
    std::string& out = ArrayHead(key, type, values.size());
    out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  std::string& ArrayHead(absl::string_view key, GgufValueType type, uint64_t count) {
    std::string& out = Key(key, GgufValueType::kArray);
    Put(out, static_cast<uint32_t>(type));
    Put(out, count);
    return out;
  }
  void PlaceTensors(uint64_t data_start_in_file);
  std::string Infos() const;
  absl::StatusOr<std::string> LayOut();
  absl::Status ReserveSpace();
  absl::Status Write(absl::Span<const uint8_t> bytes);
  absl::Status WriteZeros(uint64_t bytes);
  absl::Status WriteFailed(int errno_value);
  absl::Status FinishTensors();
  absl::Status FillInChecksums();
  uint64_t free_bytes() const;
};

std::string& GgufWriter::Impl::Key(absl::string_view key, GgufValueType type) {
  if (error.ok()) {
    if (data_begun) {
      error = absl::FailedPreconditionError(absl::StrCat("key '", key, "' added after BeginData"));
    } else if (key.empty() || key.size() > 65535) {
      error = absl::InvalidArgumentError(absl::StrCat("a key of ", key.size(), " bytes; 1 to 65535 are possible"));
    } else if (!key_names.insert(std::string(key)).second) {
      error = absl::InvalidArgumentError(absl::StrCat("key '", key, "' added twice"));
    }
  }
  ++key_count;
  PutString(keys, key);
  Put(keys, static_cast<uint32_t>(type));
  return keys;
}

// Gives every tensor its offset, for a data section that starts at `data_start_in_file`.
void GgufWriter::Impl::PlaceTensors(uint64_t data_start_in_file) {
  uint64_t next = 0;
  for (PlannedTensor& tensor : tensors) {
    next = RoundUp(next, alignment);
    if (tensor.align > alignment) {
      next = RoundUp(data_start_in_file + next, tensor.align) - data_start_in_file;
    }
    tensor.offset = next;
    next += tensor.bytes;
  }
}

std::string GgufWriter::Impl::Infos() const {
  std::string infos;
  for (const PlannedTensor& tensor : tensors) {
    PutString(infos, tensor.name);
    Put(infos, static_cast<uint32_t>(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) {
      Put(infos, dim);
    }
    Put(infos, static_cast<uint32_t>(tensor.type));
    Put(infos, tensor.offset);
  }
  return infos;
}

// The whole header, up to the data section.
absl::StatusOr<std::string> GgufWriter::Impl::LayOut() {
  uint64_t header_bytes = kKeysStart + keys.size() + Infos().size();
  // Where does the first aligned tensor lie if nothing is done? Pad the header by what is missing.
  const auto aligned = std::find_if(tensors.begin(), tensors.end(),
                                    [this](const PlannedTensor& tensor) { return tensor.align > alignment; });
  if (aligned != tensors.end()) {
    uint64_t before = 0;
    for (auto it = tensors.begin(); it != aligned; ++it) {
      before = RoundUp(before, alignment) + it->bytes;
    }
    before = RoundUp(before, alignment);
    const uint64_t entry_bytes = 8 + kPaddingKey.size() + 4 + 8;
    const uint64_t start = RoundUp(header_bytes + entry_bytes, alignment);
    const uint64_t missing = RoundUp(start + before, aligned->align) - (start + before);
    if (RoundUp(RoundUp(header_bytes, alignment) + before, aligned->align) !=
        RoundUp(header_bytes, alignment) + before) {
      // Fill to the border exactly, so that what follows is no accident of rounding.
      const uint64_t fill = start + missing - (header_bytes + entry_bytes);
      PutString(Key(kPaddingKey, GgufValueType::kString), std::string(fill, ' '));
      EMBERGATE_RETURN_IF_ERROR(error);
      header_bytes += entry_bytes + fill;
    }
  }
  data_start = RoundUp(header_bytes, alignment);
  PlaceTensors(data_start);
  std::string header = "GGUF";
  Put(header, uint32_t{3});
  Put(header, uint64_t{tensors.size()});
  Put(header, key_count);
  header.append(keys);
  header.append(Infos());
  header.append(data_start - header.size(), '\0');
  total_bytes =
      tensors.empty() ? data_start : data_start + RoundUp(tensors.back().offset + tensors.back().bytes, alignment);
  return header;
}

uint64_t GgufWriter::Impl::free_bytes() const {
  struct statvfs info {};
  return ::fstatvfs(fd, &info) == 0 ? uint64_t{info.f_bavail} * info.f_frsize : 0;
}

absl::Status GgufWriter::Impl::WriteFailed(int errno_value) {
  absl::Status status = ErrnoStatus(errno_value, absl::StrCat("writing '", partial_path, "' at byte ", written_bytes));
  if (absl::IsResourceExhausted(status)) {
    status = absl::ResourceExhaustedError(absl::StrCat(std::string(status.message()), ": ", total_bytes,
                                                       " bytes are needed, ", total_bytes - written_bytes,
                                                       " of them still, and ", free_bytes(), " are free"));
  }
  error = status;
  return status;
}

absl::Status GgufWriter::Impl::ReserveSpace() {
  const uint64_t free = free_bytes();
  const std::string needed =
      absl::StrCat("'", path, "' needs ", total_bytes, " bytes, but only ", free, " are free there");
  if (total_bytes > free) {
    return absl::ResourceExhaustedError(needed);
  }
  // Taken now rather than found missing after minutes of writing. Some file systems cannot; the check above stands.
  if (::fallocate(fd, 0, 0, static_cast<off_t>(total_bytes)) != 0 &&
      (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
    return absl::ResourceExhaustedError(absl::StrCat(needed, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Impl::Write(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), std::min<size_t>(bytes.size(), kWritebackBytes));
    if (put < 0) {
      if (errno == EINTR) {
        continue;
      }
      return WriteFailed(errno);
    }
    bytes.remove_prefix(static_cast<size_t>(put));
    written_bytes += static_cast<uint64_t>(put);
    if (written_bytes - writeback_begun >= kWritebackBytes) {
      // Errors are not looked at here: fsync in Finish reports every lost write.
      ::sync_file_range(fd, static_cast<off_t>(writeback_begun), static_cast<off_t>(written_bytes - writeback_begun),
                        SYNC_FILE_RANGE_WRITE);
      if (writeback_begun > writeback_done) {
        const auto begin = static_cast<off_t>(writeback_done);
        const auto length = static_cast<off_t>(writeback_begun - writeback_done);
        ::sync_file_range(fd, begin, length,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        ::posix_fadvise(fd, begin, length, POSIX_FADV_DONTNEED);
      }
      writeback_done = writeback_begun;
      writeback_begun = written_bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Impl::WriteZeros(uint64_t bytes) {
  const std::vector<uint8_t> zeros(std::min<uint64_t>(bytes, kPaddingStep));
  while (bytes > 0) {
    const uint64_t step = std::min<uint64_t>(bytes, zeros.size());
    EMBERGATE_RETURN_IF_ERROR(Write(absl::MakeConstSpan(zeros.data(), step)));
    bytes -= step;
  }
  return absl::OkStatus();
}

// Steps to the next tensor when the current one is complete, with the padding between them.
absl::Status GgufWriter::Impl::FinishTensors() {
  while (current < tensors.size() && current_bytes == tensors[current].bytes) {
    ++current;
    current_bytes = 0;
    const uint64_t next = current < tensors.size() ? data_start + tensors[current].offset : total_bytes;
    EMBERGATE_RETURN_IF_ERROR(WriteZeros(next - written_bytes));
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Impl::FillInChecksums() {
  for (const PlannedTensor& tensor : tensors) {
    if (!tensor.sums.has_value()) {
      continue;
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.sums->crcs.data());
    uint64_t left = tensor.sums->crcs.size() * sizeof(uint32_t);
    auto offset = static_cast<off_t>(kKeysStart + tensor.sums->keys_offset);
    while (left > 0) {
      const ssize_t put = ::pwrite(fd, bytes, left, offset);
      if (put < 0 && errno == EINTR) {
        continue;
      }
      if (put <= 0) {
        return WriteFailed(put < 0 ? errno : EIO);
      }
      bytes += put;
      left -= static_cast<uint64_t>(put);
      offset += put;
    }
  }
  return absl::OkStatus();
}

GgufWriter::GgufWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GgufWriter::~GgufWriter() = default;

absl::StatusOr<std::unique_ptr<GgufWriter>> GgufWriter::Create(const std::string& path, uint32_t alignment) {
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kTensorAlignMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("an alignment of ", alignment, " is no power of two from 8 to 2^30"));
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write '", path, "': it exists and is not a regular file"));
  }
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->partial_path = path + ".partial";
  impl->alignment = alignment;
  const int fd = ::open(impl->partial_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot create '", impl->partial_path, "'"));
  }
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd);
    return absl::FailedPreconditionError(
        absl::StrCat("another process is writing '", impl->partial_path, "'; wait for it, or end it"));
  }
  impl->fd = fd;
  if (::ftruncate(fd, 0) != 0) {  // what an interrupted run has left
    return ErrnoStatus(errno, absl::StrCat("cannot empty '", impl->partial_path, "'"));
  }
  auto writer = std::unique_ptr<GgufWriter>(new GgufWriter(std::move(impl)));
  if (alignment != 32) {
    writer->AddUint32("general.alignment", alignment);
  } else {
    writer->impl_->key_names.insert("general.alignment");
  }
  return writer;
}

void GgufWriter::AddUint32(absl::string_view key, uint32_t value) { Put(impl_->Key(key, GgufValueType::kU32), value); }
void GgufWriter::AddInt32(absl::string_view key, int32_t value) { Put(impl_->Key(key, GgufValueType::kI32), value); }
void GgufWriter::AddUint64(absl::string_view key, uint64_t value) { Put(impl_->Key(key, GgufValueType::kU64), value); }
void GgufWriter::AddFloat(absl::string_view key, float value) { Put(impl_->Key(key, GgufValueType::kF32), value); }

void GgufWriter::AddBool(absl::string_view key, bool value) {
  Put(impl_->Key(key, GgufValueType::kBool), static_cast<uint8_t>(value));
}

void GgufWriter::AddString(absl::string_view key, absl::string_view value) {
  PutString(impl_->Key(key, GgufValueType::kString), value);
}

void GgufWriter::AddUint32s(absl::string_view key, absl::Span<const uint32_t> values) {
  impl_->Array(key, GgufValueType::kU32, values);
}

void GgufWriter::AddInt32s(absl::string_view key, absl::Span<const int32_t> values) {
  impl_->Array(key, GgufValueType::kI32, values);
}

void GgufWriter::AddFloats(absl::string_view key, absl::Span<const float> values) {
  impl_->Array(key, GgufValueType::kF32, values);
}

void GgufWriter::AddBools(absl::string_view key, const std::vector<bool>& values) {
  std::string& out = impl_->ArrayHead(key, GgufValueType::kBool, values.size());
  for (const bool value : values) {
    out.push_back(value ? 1 : 0);
  }
}

void GgufWriter::AddStrings(absl::string_view key, const std::vector<std::string>& values) {
  std::string& out = impl_->ArrayHead(key, GgufValueType::kString, values.size());
  for (const std::string& value : values) {
    PutString(out, value);
  }
}

absl::Status GgufWriter::AddTensor(absl::string_view name, TensorType type, absl::Span<const uint64_t> dims,
                                   uint64_t align) {
  const std::string what = absl::StrCat("tensor '", absl::CHexEscape(name), "'");
  if (impl_->data_begun) {
    return absl::FailedPreconditionError(absl::StrCat(what, " added after BeginData"));
  }
  if (name.empty() || name.size() > kTensorNameBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": a name of ", name.size(), " bytes; 1 to ", kTensorNameBytesMax, " are possible"));
  }
  if (dims.empty() || dims.size() > 4) {
    return absl::InvalidArgumentError(absl::StrCat(what, " has ", dims.size(), " dimensions; 1 to 4 are possible"));
  }
  if (align > kTensorAlignMax || (align != 0 && !std::has_single_bit(align))) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": align ", align, " is no power of two up to 2^30"));
  }
  uint64_t elements = 1;
  for (const uint64_t dim : dims) {
    if (dim == 0 || __builtin_mul_overflow(elements, dim, &elements)) {
      return absl::InvalidArgumentError(absl::StrCat(what, " has impossible dimensions: ", absl::StrJoin(dims, " x ")));
    }
  }
  const std::optional<uint64_t> bytes = BytesOf(type, elements);
  if (!bytes.has_value() || *bytes > uint64_t{1} << 50 || dims[0] % TraitsOf(type).block_elements != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", absl::StrJoin(dims, " x "), " elements cannot be stored as ", TraitsOf(type).name,
                     " (rows must be whole blocks of ", TraitsOf(type).block_elements, ")"));
  }
  if (!impl_->tensor_names.insert(std::string(name)).second) {
    return absl::InvalidArgumentError(absl::StrCat(what, " added twice"));
  }
  impl_->tensors.push_back({std::string(name), type, {dims.begin(), dims.end()}, *bytes, align, 0, std::nullopt});
  return absl::OkStatus();
}

absl::Status GgufWriter::AddRowChecksums(absl::string_view key, absl::string_view tensor,
                                         absl::Span<const uint64_t> segment_ends) {
  const auto planned = std::find_if(impl_->tensors.begin(), impl_->tensors.end(),
                                    [&](const PlannedTensor& candidate) { return candidate.name == tensor; });
  if (planned == impl_->tensors.end() || planned->sums.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("row checksums are for a tensor that was added, once; not for '", absl::CHexEscape(tensor), "'"));
  }
  RowSums sums;
  sums.row_bytes = *BytesOf(planned->type, planned->dims[0]);
  uint64_t previous = 0;
  for (const uint64_t end : segment_ends) {
    if (end <= previous || end > sums.row_bytes) {
      return absl::InvalidArgumentError("checksum segments must ascend and end within the row");
    }
    previous = end;
  }
  if (previous != sums.row_bytes) {
    return absl::InvalidArgumentError("the last checksum segment must end with the row");
  }
  sums.segment_ends.assign(segment_ends.begin(), segment_ends.end());
  const uint64_t count = planned->bytes / sums.row_bytes * segment_ends.size();
  if (count > (1u << 28)) {
    return absl::InvalidArgumentError(absl::StrCat("a header of ", count, " checksums is too large"));
  }
  std::string& out = impl_->ArrayHead(key, GgufValueType::kU32, count);
  sums.keys_offset = out.size();
  out.append(count * sizeof(uint32_t), '\0');
  sums.crcs.reserve(count);
  planned->sums = std::move(sums);
  return impl_->error;
}

absl::Status GgufWriter::BeginData() {
  EMBERGATE_RETURN_IF_ERROR(impl_->error);
  if (impl_->data_begun) {
    return absl::FailedPreconditionError("BeginData called twice");
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::string header, impl_->LayOut());
  impl_->data_begun = true;
  EMBERGATE_RETURN_IF_ERROR(impl_->error = impl_->ReserveSpace());
  EMBERGATE_RETURN_IF_ERROR(
      impl_->Write(absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(header.data()), header.size())));
  impl_->keys = std::string();
  impl_->key_names = {};
  // A gap before the first tensor is possible only if the header could not be padded; then it is written here.
  return impl_->tensors.empty() ? absl::OkStatus() : impl_->WriteZeros(impl_->tensors[0].offset);
}

absl::Status GgufWriter::AppendData(absl::Span<const uint8_t> bytes) {
  EMBERGATE_RETURN_IF_ERROR(impl_->error);
  if (!impl_->data_begun || impl_->finished) {
    return absl::FailedPreconditionError("AppendData is for the time between BeginData and Finish");
  }
  if (bytes.empty()) {
    return absl::OkStatus();
  }
  if (impl_->current >= impl_->tensors.size()) {
    return absl::InvalidArgumentError(absl::StrCat(bytes.size(), " bytes appended, but every tensor is complete"));
  }
  const PlannedTensor& tensor = impl_->tensors[impl_->current];
  if (bytes.size() > tensor.bytes - impl_->current_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", absl::CHexEscape(tensor.name), "' takes ", tensor.bytes,
                                                   " bytes and has ", impl_->current_bytes, "; ", bytes.size(),
                                                   " more do not fit"));
  }
  EMBERGATE_RETURN_IF_ERROR(impl_->Write(bytes));
  if (std::optional<RowSums>& sums = impl_->tensors[impl_->current].sums; sums.has_value()) {
    sums->Add(bytes);
  }
  impl_->current_bytes += bytes.size();
  return impl_->FinishTensors();
}

absl::Status GgufWriter::Finish() {
  EMBERGATE_RETURN_IF_ERROR(impl_->error);
  if (!impl_->data_begun || impl_->finished) {
    return absl::FailedPreconditionError("Finish is for once, after BeginData");
  }
  if (impl_->current < impl_->tensors.size()) {
    const PlannedTensor& tensor = impl_->tensors[impl_->current];
    return absl::FailedPreconditionError(absl::StrCat("tensor '", absl::CHexEscape(tensor.name), "' has ",
                                                      impl_->current_bytes, " of its ", tensor.bytes, " bytes"));
  }
  EMBERGATE_RETURN_IF_ERROR(impl_->FillInChecksums());
  if (::fsync(impl_->fd) != 0) {
    return impl_->WriteFailed(errno);
  }
  ::posix_fadvise(impl_->fd, 0, 0, POSIX_FADV_DONTNEED);
  if (::rename(impl_->partial_path.c_str(), impl_->path.c_str()) != 0) {
    return impl_->error =
               ErrnoStatus(errno, absl::StrCat("cannot rename '", impl_->partial_path, "' to '", impl_->path, "'"));
  }
  impl_->finished = true;
  // The rename itself must survive a power cut too. A folder that cannot be synced is no reason to fail.
  const size_t slash = impl_->path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : impl_->path.substr(0, slash + 1);
  if (const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
  ::close(std::exchange(impl_->fd, -1));
  return absl::OkStatus();
}

uint64_t GgufWriter::total_bytes() const { return impl_->total_bytes; }
uint64_t GgufWriter::written_bytes() const { return impl_->written_bytes; }

}  // namespace embergate::storage
