#include "engine/convert/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/convert/json_file.h"
#include "engine/kernels/float16.h"
#include "nlohmann/json.hpp"
#include "storage/base/errno_status.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "file formats here are little endian and read as they are");

struct TypeRow {
  SafetensorsType type;
  const char* name;
  uint64_t bytes;
};

constexpr TypeRow kTypes[] = {
    {SafetensorsType::kF32, "F32", 4},   {SafetensorsType::kF16, "F16", 2}, {SafetensorsType::kBF16, "BF16", 2},
    {SafetensorsType::kF64, "F64", 8},   {SafetensorsType::kI8, "I8", 1},   {SafetensorsType::kI16, "I16", 2},
    {SafetensorsType::kI32, "I32", 4},   {SafetensorsType::kI64, "I64", 8}, {SafetensorsType::kU8, "U8", 1},
    {SafetensorsType::kU16, "U16", 2},   {SafetensorsType::kU32, "U32", 4}, {SafetensorsType::kU64, "U64", 8},
    {SafetensorsType::kBool, "BOOL", 1},
};

SafetensorsType TypeByName(absl::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (name == row.name) {
      return row.type;
    }
  }
  return SafetensorsType::kOther;
}

// Product of the shape; false on overflow.
bool CountElements(absl::Span<const uint64_t> shape, uint64_t* elements) {
  *elements = 1;
  for (uint64_t dim : shape) {
    if (__builtin_mul_overflow(*elements, dim, elements)) {
      return false;
    }
  }
  return true;
}

// Header entry while it is parsed: offsets are relative to the data section.
struct RawEntry {
  SafetensorsTensor tensor;
  bool has_type = false;
  bool has_shape = false;
  std::vector<uint64_t> offsets;
  bool has_offsets = false;
};

// Takes the header as a stream of events, so that a hostile header costs no more memory than its own length times
// a small factor, and no recursion. The only shape accepted is {name: {dtype, shape, data_offsets}, __metadata__: {}}.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<RawEntry>& entries() { return entries_; }
  std::map<std::string, std::string>& metadata() { return metadata_; }
  const std::string& error() const { return error_; }

  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return Scalar("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Scalar("a fraction"); }
  bool binary(binary_t&) override { return Scalar("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (entries_.back().tensor.shape.size() >= SafetensorsFile::kDimsMax) {
        return Fail(absl::StrCat("has more than ", SafetensorsFile::kDimsMax, " dimensions"));
      }
      entries_.back().tensor.shape.push_back(value);
      return true;
    }
    if (state_ == State::kOffsets) {
      if (entries_.back().offsets.size() >= 2) {
        return Fail("has more than two data_offsets");
      }
      entries_.back().offsets.push_back(value);
      return true;
    }
    return Scalar("a number");
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      metadata_[key_] = std::move(value);
      return true;
    }
    if (state_ == State::kEntry && key_ == "dtype") {
      entries_.back().tensor.type = TypeByName(value);
      entries_.back().tensor.type_name = value.substr(0, 32);
      entries_.back().has_type = true;
      return true;
    }
    return Scalar("a string");
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTop:
        if (key_ == "__metadata__") {
          state_ = State::kMetadata;
          return true;
        }
        entries_.emplace_back();
        entries_.back().tensor.name = key_;
        state_ = State::kEntry;
        return true;
      default:
        return Scalar("an object");
    }
  }

  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }

  bool end_object() override {
    state_ = state_ == State::kTop ? State::kDone : State::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::kEntry && key_ == "shape" && !entries_.back().has_shape) {
      entries_.back().has_shape = true;
      state_ = State::kShape;
      return true;
    }
    if (state_ == State::kEntry && key_ == "data_offsets" && !entries_.back().has_offsets) {
      entries_.back().has_offsets = true;
      state_ = State::kOffsets;
      return true;
    }
    return Scalar("an array");
  }

  bool end_array() override {
    state_ = State::kEntry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    error_ = absl::StrCat("header is not valid JSON at byte ", position + 8, " of the file");
    return false;
  }

 private:
  enum class State { kStart, kTop, kMetadata, kEntry, kShape, kOffsets, kDone };

  bool Fail(const std::string& what) {
    error_ = entries_.empty() || state_ == State::kTop || state_ == State::kMetadata
                 ? absl::StrCat("header ", what)
                 : absl::StrCat("tensor \"", entries_.back().tensor.name.substr(0, 200), "\" ", what);
    return false;
  }
  bool Scalar(absl::string_view what) {
    // The format may grow keys inside an entry; a plain value there is stepped over, a nested one is not.
    const bool plain = what != "an object" && what != "an array";
    if (state_ == State::kEntry && plain && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      return true;
    }
    return Fail(absl::StrCat("holds ", what, " where it may not (key \"", key_.substr(0, 200), "\")"));
  }

  State state_ = State::kStart;
  std::string key_;
  std::vector<RawEntry> entries_;
  std::map<std::string, std::string> metadata_;
  std::string error_;
};

}  // namespace

const char* SafetensorsTypeName(SafetensorsType type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) {
      return row.name;
    }
  }
  return "other";
}

uint64_t SafetensorsTypeBytes(SafetensorsType type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) {
      return row.bytes;
    }
  }
  return 0;
}

std::string ShapeString(absl::Span<const uint64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

// ---- SafetensorsFile -------------------------------------------------------------------------------

SafetensorsFile::SafetensorsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
SafetensorsFile::~SafetensorsFile() { ::close(fd_); }

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return storage::ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, fd));
  EMBERGATE_RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

absl::Status SafetensorsFile::ReadHeader() {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) {
    return storage::ErrnoStatus(errno, absl::StrCat("cannot stat ", path_));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " is not a regular file"));
  }
  const uint64_t file_bytes = static_cast<uint64_t>(info.st_size);
  SafetensorsTensor whole;  // the file itself, to read through one function
  whole.bytes = file_bytes;
  uint64_t header_bytes = 0;
  if (file_bytes < sizeof(header_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " is no safetensors file: it has ", file_bytes, " bytes"));
  }
  EMBERGATE_RETURN_IF_ERROR(
      Read(whole, 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(&header_bytes), sizeof(header_bytes))));
  if (header_bytes > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " is no safetensors file: its header would take ",
                                                   header_bytes, " bytes, more than ", kHeaderBytesMax));
  }
  if (header_bytes > file_bytes - sizeof(header_bytes)) {
    return absl::DataLossError(
        absl::StrCat(path_, " ends inside its header: ", header_bytes, " header bytes, ", file_bytes, " in the file"));
  }
  std::string json(header_bytes, '\0');
  EMBERGATE_RETURN_IF_ERROR(
      Read(whole, sizeof(header_bytes), absl::MakeSpan(reinterpret_cast<uint8_t*>(json.data()), json.size())));
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(json, &handler)) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", handler.error()));
  }
  metadata_ = std::move(handler.metadata());

  const uint64_t data_start = sizeof(header_bytes) + header_bytes;
  const uint64_t data_bytes = file_bytes - data_start;
  for (RawEntry& entry : handler.entries()) {
    SafetensorsTensor& tensor = entry.tensor;
    const std::string who = absl::StrCat(path_, ": tensor \"", tensor.name.substr(0, 200), "\"");
    if (!entry.has_type || !entry.has_shape || entry.offsets.size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat(who, " lacks dtype, shape or two data_offsets"));
    }
    const uint64_t begin = entry.offsets[0];
    const uint64_t end = entry.offsets[1];
    if (begin > end) {
      return absl::InvalidArgumentError(absl::StrCat(who, " ends before it begins (", begin, ", ", end, ")"));
    }
    if (end > data_bytes) {
      return absl::DataLossError(absl::StrCat(who, " ends at byte ", end, " of the data, which has ", data_bytes,
                                              ": the file is cut short or damaged; fetch it again"));
    }
    uint64_t expected = 0;
    if (!CountElements(tensor.shape, &tensor.elements) ||
        __builtin_mul_overflow(tensor.elements, SafetensorsTypeBytes(tensor.type), &expected)) {
      return absl::InvalidArgumentError(absl::StrCat(who, " has an impossible shape ", ShapeString(tensor.shape)));
    }
    if (tensor.type != SafetensorsType::kOther && expected != end - begin) {
      return absl::InvalidArgumentError(absl::StrCat(who, " takes ", end - begin, " bytes, but ", tensor.type_name, " ",
                                                     ShapeString(tensor.shape), " needs ", expected));
    }
    tensor.bytes = end - begin;
    tensor.file_offset = data_start + begin;
    tensors_.push_back(std::move(tensor));
  }
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return a.file_offset != b.file_offset ? a.file_offset < b.file_offset : a.bytes < b.bytes;
  });
  uint64_t next = data_start;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const SafetensorsTensor& tensor = tensors_[i];
    const std::string name = tensor.name.substr(0, 200);
    if (!by_name_.emplace(tensor.name, i).second) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", name, "\" appears twice"));
    }
    if (tensor.file_offset < next) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", name, "\" overlaps \"", tensors_[i - 1].name.substr(0, 200), "\""));
    }
    if (tensor.file_offset > next) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": ", tensor.file_offset - next, " bytes before tensor \"",
                                                     name, "\" belong to no tensor"));
    }
    next = tensor.file_offset + tensor.bytes;
  }
  if (next != file_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", file_bytes - next, " bytes at the end belong to no tensor"));
  }
  return absl::OkStatus();
}

const SafetensorsTensor* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

absl::Status SafetensorsFile::Read(const SafetensorsTensor& tensor, uint64_t offset, absl::Span<uint8_t> out) const {
  if (offset > tensor.bytes || out.size() > tensor.bytes - offset) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": tensor \"", tensor.name, "\" has ", tensor.bytes,
                                              " bytes, asked for ", out.size(), " at ", offset));
  }
  // One call moves at most 64 MiB: the kernel's own limit (2 GiB) is then never met.
  constexpr size_t kPieceBytes = 64u << 20;
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t at = tensor.file_offset + offset + done;
    const ssize_t got =
        ::pread(fd_, out.data() + done, std::min(kPieceBytes, out.size() - done), static_cast<off_t>(at));
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      return storage::ErrnoStatus(errno, absl::StrCat("cannot read byte ", at, " of ", path_));
    }
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(path_, " became shorter: no byte ", at));
    }
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ReadFloats(const SafetensorsTensor& tensor, uint64_t first, absl::Span<float> out) const {
  if (tensor.type == SafetensorsType::kF32) {
    uint64_t offset = 0;
    if (__builtin_mul_overflow(first, sizeof(float), &offset)) {
      offset = UINT64_MAX;
    }
    return Read(tensor, offset, absl::MakeSpan(reinterpret_cast<uint8_t*>(out.data()), out.size() * sizeof(float)));
  }
  if (tensor.type != SafetensorsType::kF16 && tensor.type != SafetensorsType::kBF16) {
    return absl::UnimplementedError(absl::StrCat(path_, ": tensor \"", tensor.name, "\" is ", tensor.type_name,
                                                 "; weights may be F32, F16 or BF16"));
  }
  if (first > tensor.elements || out.size() > tensor.elements - first) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": tensor \"", tensor.name, "\" has ", tensor.elements,
                                              " elements, asked for ", out.size(), " at ", first));
  }
  // The halves are read into the upper half of `out` itself and widened from the front, so no second buffer is
  // needed: element i is written at byte 4i and the next one to read lies at 2n + 2i + 2 > 4i + 3 for all i < n - 1.
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(out.data());
  uint8_t* const halves = bytes + out.size() * sizeof(uint16_t);
  EMBERGATE_RETURN_IF_ERROR(
      Read(tensor, first * sizeof(uint16_t), absl::MakeSpan(halves, out.size() * sizeof(uint16_t))));
  const bool bf16 = tensor.type == SafetensorsType::kBF16;
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, halves + i * sizeof(half), sizeof(half));
    const float value = bf16 ? Bfloat16ToFloat(half) : HalfToFloat(half);
    std::memcpy(bytes + i * sizeof(value), &value, sizeof(value));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> SafetensorsFile::ReadInts(const SafetensorsTensor& tensor,
                                                               uint64_t elements_max) const {
  if (tensor.elements > elements_max) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, ": tensor \"", tensor.name, "\" has ", tensor.elements,
                                                     " elements, more than ", elements_max));
  }
  switch (tensor.type) {
    case SafetensorsType::kI8:
    case SafetensorsType::kI16:
    case SafetensorsType::kI32:
    case SafetensorsType::kI64:
    case SafetensorsType::kU8:
    case SafetensorsType::kU16:
    case SafetensorsType::kU32:
    case SafetensorsType::kU64:
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", tensor.name, "\" is ", tensor.type_name, ", not integers"));
  }
  std::vector<uint8_t> bytes(tensor.bytes);
  EMBERGATE_RETURN_IF_ERROR(Read(tensor, 0, absl::MakeSpan(bytes)));
  const size_t width = SafetensorsTypeBytes(tensor.type);
  const bool is_signed = tensor.type == SafetensorsType::kI8 || tensor.type == SafetensorsType::kI16 ||
                         tensor.type == SafetensorsType::kI32;
  std::vector<int64_t> values(tensor.elements);
  for (size_t i = 0; i < values.size(); ++i) {
    uint64_t raw = 0;
    std::memcpy(&raw, bytes.data() + i * width, width);
    if (is_signed && width < 8 && (raw >> (8 * width - 1)) != 0) {
      raw |= ~uint64_t{0} << (8 * width);
    }
    if (tensor.type == SafetensorsType::kU64 && raw > static_cast<uint64_t>(INT64_MAX)) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", tensor.name, "\" holds ", raw,
                                                     " at element ", i, ", too large for a signed integer"));
    }
    values[i] = static_cast<int64_t>(raw);
  }
  return values;
}

// ---- SafetensorsFolder -----------------------------------------------------------------------------

absl::Status SafetensorsFolder::AddFile(const std::string& path) {
  EMBERGATE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const SafetensorsTensor& tensor : file->tensors()) {
    const auto [it, inserted] = tensors_.emplace(tensor.name, Entry{file.get(), &tensor});
    if (!inserted) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor \"", tensor.name, "\" is both in ", it->second.file->path(), " and in ", path));
    }
    bytes_ += tensor.bytes;
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsFolder>> SafetensorsFolder::Open(const std::string& folder) {
  std::unique_ptr<SafetensorsFolder> result(new SafetensorsFolder());
  const std::string single = absl::StrCat(folder, "/model.safetensors");
  if (::access(single.c_str(), F_OK) == 0) {
    EMBERGATE_RETURN_IF_ERROR(result->AddFile(single));
    return result;
  }
  const std::string index_path = absl::StrCat(single, ".index.json");
  if (::access(index_path.c_str(), F_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(folder,
                                            " holds neither model.safetensors nor model.safetensors.index.json; "
                                            "give the folder of a Hugging Face checkpoint"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(index_path, 32u << 20));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, " has no \"weight_map\" object"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": no file name for tensor \"", tensor, "\""));
    }
    const std::string& name = file.get_ref<const std::string&>();
    if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": \"", name, "\" (of tensor \"", tensor, "\") is no file name of this folder"));
    }
    names.insert(name);
    if (names.size() > kShardsMax) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, " names more than ", kShardsMax, " files"));
    }
  }
  for (const std::string& name : names) {
    EMBERGATE_RETURN_IF_ERROR(result->AddFile(absl::StrCat(folder, "/", name)));
  }
  for (const auto& [tensor, file] : weight_map->items()) {
    const Entry entry = result->Find(tensor);
    const std::string path = absl::StrCat(folder, "/", file.get_ref<const std::string&>());
    if (entry.file == nullptr || entry.file->path() != path) {
      return absl::FailedPreconditionError(
          absl::StrCat(index_path, " says that tensor \"", tensor, "\" is in ", path, ", which does not hold it"));
    }
  }
  return result;
}

SafetensorsFolder::Entry SafetensorsFolder::Find(absl::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? Entry{nullptr, nullptr} : it->second;
}

// ---- SafetensorsWriter -----------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) {
    ::close(fd_);
    ::unlink(absl::StrCat(path_, ".partial").c_str());
  }
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path) {
  const std::string partial = absl::StrCat(path, ".partial");
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return storage::ErrnoStatus(errno, absl::StrCat("cannot create ", partial));
  }
  return std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(path, fd));
}

absl::Status SafetensorsWriter::Add(absl::string_view name, SafetensorsType type, absl::Span<const uint64_t> shape) {
  if (header_written_) {
    return absl::FailedPreconditionError(absl::StrCat(path_, ": tensor \"", name, "\" comes after data"));
  }
  SafetensorsTensor tensor;
  tensor.name = std::string(name);
  tensor.type = type;
  tensor.shape.assign(shape.begin(), shape.end());
  tensor.file_offset = data_bytes_;
  uint64_t end = 0;
  if (type == SafetensorsType::kOther || name == "__metadata__" || !CountElements(shape, &tensor.elements) ||
      __builtin_mul_overflow(tensor.elements, SafetensorsTypeBytes(type), &tensor.bytes) ||
      __builtin_add_overflow(data_bytes_, tensor.bytes, &end)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor \"", name, "\" ", ShapeString(shape), " cannot be written"));
  }
  for (const SafetensorsTensor& other : tensors_) {
    if (other.name == tensor.name) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", name, "\" is added twice"));
    }
  }
  data_bytes_ = end;
  tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

void SafetensorsWriter::AddMetadata(absl::string_view key, absl::string_view value) {
  metadata_[std::string(key)] = std::string(value);
}

absl::Status SafetensorsWriter::WriteHeader() {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata_.empty()) {
    header["__metadata__"] = metadata_;
  }
  for (const SafetensorsTensor& tensor : tensors_) {
    header[tensor.name] = {{"dtype", SafetensorsTypeName(tensor.type)},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.file_offset, tensor.file_offset + tensor.bytes}}};
  }
  // Invalid UTF-8 in a name becomes U+FFFD rather than an exception.
  std::string json = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  json.resize((json.size() + 7) / 8 * 8, ' ');  // the data start at a multiple of 8
  const uint64_t header_bytes = json.size();
  if (header_bytes > SafetensorsFile::kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": too many tensors, the header takes ", header_bytes,
                                                   " bytes of at most ", SafetensorsFile::kHeaderBytesMax));
  }
  header_written_ = true;
  EMBERGATE_RETURN_IF_ERROR(WriteAll(&header_bytes, sizeof(header_bytes)));
  return WriteAll(json.data(), json.size());
}

absl::Status SafetensorsWriter::WriteAll(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(fd_, from, bytes);
    if (done < 0) {
      if (errno == EINTR) {
        continue;
      }
      return storage::ErrnoStatus(errno, absl::StrCat("cannot write ", path_, ".partial"));
    }
    from += done;
    bytes -= static_cast<size_t>(done);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(absl::Span<const uint8_t> bytes) {
  if (bytes.size() > data_bytes_ - written_bytes_) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": ", bytes.size(), " bytes more than the ",
                                              data_bytes_ - written_bytes_, " that the declared tensors still lack"));
  }
  if (!header_written_) {
    EMBERGATE_RETURN_IF_ERROR(WriteHeader());
  }
  written_bytes_ += bytes.size();
  return WriteAll(bytes.data(), bytes.size());
}

absl::Status SafetensorsWriter::AppendFloats(absl::Span<const float> values) {
  return Append(absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)));
}

absl::Status SafetensorsWriter::Finish() {
  if (written_bytes_ != data_bytes_) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": ", data_bytes_ - written_bytes_, " bytes of the declared tensors are missing"));
  }
  if (!header_written_) {
    EMBERGATE_RETURN_IF_ERROR(WriteHeader());
  }
  const std::string partial = absl::StrCat(path_, ".partial");
  if (::fsync(fd_) != 0) {
    return storage::ErrnoStatus(errno, absl::StrCat("cannot write ", partial));
  }
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(partial.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(partial.c_str());
    return storage::ErrnoStatus(error, absl::StrCat("cannot finish ", path_));
  }
  return absl::OkStatus();
}

}  // namespace embergate::engine
