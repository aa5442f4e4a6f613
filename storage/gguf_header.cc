#include "storage/gguf_header.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "storage/base/status_macros.h"

namespace embergate::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read in place, as little endian");

constexpr uint64_t kReadStep = 1u << 20;
constexpr int kArrayDepthMax = 4;
constexpr uint64_t kKeyBytesMax = 65535;       // the format's own limit
constexpr uint64_t kTensorNameBytesMax = 255;  // published files stay below 64
constexpr uint64_t kAlignmentMax = 1u << 30;
// Smallest possible sizes: empty string, type, one-byte value; empty string, count, no dims, type, offset.
constexpr uint64_t kEntryBytesMin = 8 + 4 + 1;
constexpr uint64_t kTensorBytesMin = 8 + 4 + 4 + 8;

uint64_t PageRoundUp(uint64_t value) {
  return (value + DirectFile::kAlignment - 1) & ~uint64_t{DirectFile::kAlignment - 1};
}

// Reads values one after another. Every error names the file, the offset and what was being read.
class Parser {
 public:
  Parser(const DirectFile& file, const GgufFile::Limits& limits, GgufHeader& header)
      : file_(file), limits_(limits), header_(header) {}

  absl::Status Parse();

 private:
  template <typename T>
  absl::StatusOr<T> Fixed(absl::string_view what) {
    EMBERGATE_RETURN_IF_ERROR(Need(sizeof(T), what));
    T value;
    std::memcpy(&value, header_.bytes.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return value;
  }

  absl::Status Malformed(uint64_t offset, absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat("'", file_.path(), "': at byte ", offset, ": ", message));
  }
  // Makes `bytes` more bytes readable.
  absl::Status Need(uint64_t bytes, absl::string_view what);
  // That `count` items of at least `bytes_min` each can follow, before anything is done `count` times.
  absl::Status CheckCount(uint64_t count, uint64_t bytes_min, absl::string_view what) const;
  absl::StatusOr<absl::string_view> String(uint64_t bytes_max, absl::string_view what);
  absl::Status CheckMagic();
  absl::Status Preamble(uint64_t* tensor_count, uint64_t* key_count);
  absl::StatusOr<GgufValueType> ValueType(absl::string_view what);
  // Steps over `count` values of `type`, checking them.
  absl::Status Values(GgufValueType type, uint64_t count, int depth, absl::string_view what);
  absl::Status Entry(uint64_t index);
  absl::Status Alignment();
  absl::Status Tensor(uint64_t index);
  absl::Status PlaceTensors();

  const DirectFile& file_;
  const GgufFile::Limits& limits_;
  GgufHeader& header_;
  uint64_t pos_ = 0;
};

absl::Status Parser::Need(uint64_t bytes, absl::string_view what) {
  if (bytes > file_.bytes() - pos_) {
    return Malformed(pos_, absl::StrCat(what, " needs ", bytes, " bytes, but the file ends after ",
                                        file_.bytes() - pos_, " more: it is truncated or malformed"));
  }
  if (pos_ + bytes <= header_.bytes.loaded()) {
    return absl::OkStatus();
  }
  absl::Status status = header_.bytes.Load(file_, pos_ + bytes);
  if (absl::IsResourceExhausted(status)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("'", file_.path(), "': at byte ", pos_, ": ", what, ": ", std::string(status.message())));
  }
  return status;
}

absl::Status Parser::CheckCount(uint64_t count, uint64_t bytes_min, absl::string_view what) const {
  if (count > (file_.bytes() - pos_) / bytes_min) {
    return Malformed(pos_, absl::StrCat(what, ": a count of ", count, " cannot be right: only ", file_.bytes() - pos_,
                                        " bytes follow"));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::string_view> Parser::String(uint64_t bytes_max, absl::string_view what) {
  const uint64_t start = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(const uint64_t bytes, Fixed<uint64_t>(what));
  if (bytes > bytes_max) {
    return Malformed(start, absl::StrCat(what, ": a length of ", bytes, " bytes is past the limit of ", bytes_max));
  }
  EMBERGATE_RETURN_IF_ERROR(Need(bytes, what));
  absl::string_view text(reinterpret_cast<const char*>(header_.bytes.data()) + pos_, bytes);
  pos_ += bytes;
  return text;
}

absl::Status Parser::CheckMagic() {
  if (file_.bytes() < 4) {
    return Malformed(0, absl::StrCat("not a GGUF file: it has ", file_.bytes(), " bytes"));
  }
  EMBERGATE_RETURN_IF_ERROR(Need(4, "the magic"));
  const char* const magic = reinterpret_cast<const char*>(header_.bytes.data());
  if (std::memcmp(magic, "GGUF", 4) == 0) {
    pos_ = 4;
    return absl::OkStatus();
  }
  absl::string_view hint;
  if (std::memcmp(magic, "vers", 4) == 0) {
    hint = " (it looks like a Git LFS pointer: fetch the file itself, for example with `git lfs pull`)";
  } else if (magic[0] == '<') {
    hint = " (it looks like a web page: the download went wrong)";
  } else if (std::memcmp(magic, "PK\x03\x04", 4) == 0) {
    hint = " (it looks like a zip archive or a PyTorch checkpoint)";
  }
  return Malformed(0, absl::StrCat("not a GGUF file: it starts with \"", absl::CHexEscape(absl::string_view(magic, 4)),
                                   "\", not \"GGUF\"", hint));
}

absl::Status Parser::Preamble(uint64_t* tensor_count, uint64_t* key_count) {
  EMBERGATE_ASSIGN_OR_RETURN(header_.version, Fixed<uint32_t>("the version"));
  if (header_.version == 1) {
    return Malformed(4, "GGUF version 1 is not supported (2 and 3 are); convert the model again");
  }
  if (header_.version != 0 && (header_.version & 0xffff) == 0) {
    return Malformed(4, "a big-endian GGUF file; only little-endian ones are supported");
  }
  if (header_.version != 2 && header_.version != 3) {
    return Malformed(4, absl::StrCat("GGUF version ", header_.version, " is not supported (2 and 3 are)"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(*tensor_count, Fixed<uint64_t>("the tensor count"));
  EMBERGATE_ASSIGN_OR_RETURN(*key_count, Fixed<uint64_t>("the key count"));
  EMBERGATE_RETURN_IF_ERROR(CheckCount(*tensor_count, kTensorBytesMin, "tensor count"));
  EMBERGATE_RETURN_IF_ERROR(CheckCount(*key_count, kEntryBytesMin, "key count"));
  if (*tensor_count > limits_.tensors_max) {
    return absl::ResourceExhaustedError(absl::StrCat("'", file_.path(), "': at byte 8: ", *tensor_count,
                                                     " tensors are past the limit of ", limits_.tensors_max));
  }
  if (*key_count > limits_.keys_max) {
    return absl::ResourceExhaustedError(absl::StrCat("'", file_.path(), "': at byte 16: ", *key_count,
                                                     " keys are past the limit of ", limits_.keys_max));
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufValueType> Parser::ValueType(absl::string_view what) {
  const uint64_t start = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(const uint32_t id, Fixed<uint32_t>(what));
  if (id > static_cast<uint32_t>(GgufValueType::kF64)) {
    return Malformed(start, absl::StrCat(what, ": value type ", id, " does not exist"));
  }
  return static_cast<GgufValueType>(id);
}

absl::Status Parser::Values(GgufValueType type, uint64_t count, int depth, absl::string_view what) {
  if (const uint32_t fixed = FixedBytesOf(type); fixed != 0) {
    EMBERGATE_RETURN_IF_ERROR(CheckCount(count, fixed, what));
    EMBERGATE_RETURN_IF_ERROR(Need(count * fixed, what));
    if (type == GgufValueType::kBool) {
      const uint8_t* const begin = header_.bytes.data() + pos_;
      const uint8_t* const bad = std::find_if(begin, begin + count, [](uint8_t value) { return value > 1; });
      if (bad != begin + count) {
        return Malformed(pos_ + static_cast<uint64_t>(bad - begin),
                         absl::StrCat(what, ": ", int{*bad}, " is no truth value (0 or 1)"));
      }
    }
    pos_ += count * fixed;
    return absl::OkStatus();
  }
  if (type == GgufValueType::kString) {
    EMBERGATE_RETURN_IF_ERROR(CheckCount(count, 8, what));
    for (uint64_t i = 0; i < count; ++i) {
      EMBERGATE_RETURN_IF_ERROR(String(std::numeric_limits<uint64_t>::max(), what).status());
    }
    return absl::OkStatus();
  }
  EMBERGATE_RETURN_IF_ERROR(CheckCount(count, 4 + 8, what));
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = pos_;
    if (depth >= kArrayDepthMax) {
      return Malformed(start, absl::StrCat(what, ": arrays nested deeper than ", kArrayDepthMax));
    }
    EMBERGATE_ASSIGN_OR_RETURN(const GgufValueType inner, ValueType(what));
    EMBERGATE_ASSIGN_OR_RETURN(const uint64_t inner_count, Fixed<uint64_t>(what));
    EMBERGATE_RETURN_IF_ERROR(Values(inner, inner_count, depth + 1, what));
  }
  return absl::OkStatus();
}

absl::Status Parser::Entry(uint64_t index) {
  const uint64_t start = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(absl::string_view key, String(kKeyBytesMax, absl::StrCat("key ", index)));
  if (key.empty()) {
    return Malformed(start, absl::StrCat("key ", index, " is empty"));
  }
  const std::string what = absl::StrCat("key '", PrintableName(key), "'");
  if (!header_.entry_index.emplace(key, static_cast<uint32_t>(header_.entries.size())).second) {
    return Malformed(start, absl::StrCat(what, " occurs twice"));
  }
  GgufEntry entry;
  EMBERGATE_ASSIGN_OR_RETURN(entry.type, ValueType(what));
  if (entry.type == GgufValueType::kArray) {
    entry.is_array = true;
    EMBERGATE_ASSIGN_OR_RETURN(entry.type, ValueType(what));
    EMBERGATE_ASSIGN_OR_RETURN(entry.count, Fixed<uint64_t>(what));
  }
  entry.value_offset = pos_;
  EMBERGATE_RETURN_IF_ERROR(Values(entry.type, entry.count, 1, what));
  header_.entries.emplace_back(key, entry);
  return absl::OkStatus();
}

absl::Status Parser::Alignment() {
  const auto it = header_.entry_index.find("general.alignment");
  if (it == header_.entry_index.end()) {
    return absl::OkStatus();
  }
  const GgufEntry& entry = header_.entries[it->second].second;
  const uint32_t width = FixedBytesOf(entry.type);
  uint64_t value = 0;
  if (!entry.is_array && (entry.type == GgufValueType::kU32 || entry.type == GgufValueType::kU64)) {
    std::memcpy(&value, header_.bytes.data() + entry.value_offset, width);
  } else {
    return Malformed(entry.value_offset,
                     absl::StrCat("key 'general.alignment' is ", entry.is_array ? "an array of " : "",
                                  NameOf(entry.type), ", not u32"));
  }
  if (!std::has_single_bit(value) || value > kAlignmentMax) {
    return Malformed(entry.value_offset,
                     absl::StrCat("key 'general.alignment': ", value, " is no power of two up to ", kAlignmentMax));
  }
  header_.alignment = static_cast<uint32_t>(value);
  return absl::OkStatus();
}

absl::Status Parser::Tensor(uint64_t index) {
  const uint64_t start = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(absl::string_view name, String(kTensorNameBytesMax, absl::StrCat("tensor name ", index)));
  if (name.empty()) {
    return Malformed(start, absl::StrCat("the name of tensor ", index, " is empty"));
  }
  const std::string what = absl::StrCat("tensor '", PrintableName(name), "'");
  GgufTensor tensor;
  tensor.name = std::string(name);
  const uint64_t dims_offset = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(const uint32_t dim_count, Fixed<uint32_t>(what));
  if (dim_count > 4) {
    return Malformed(dims_offset, absl::StrCat(what, " has ", dim_count, " dimensions; at most 4 are possible"));
  }
  uint64_t elements = 1;
  tensor.dims.reserve(std::max<uint32_t>(dim_count, 1));
  for (uint32_t i = 0; i < dim_count; ++i) {
    const uint64_t dim_offset = pos_;
    EMBERGATE_ASSIGN_OR_RETURN(const uint64_t dim, Fixed<uint64_t>(what));
    if (dim == 0) {
      return Malformed(dim_offset, absl::StrCat(what, ": dimension ", i, " is 0"));
    }
    if (__builtin_mul_overflow(elements, dim, &elements)) {
      return Malformed(
          dim_offset, absl::StrCat(what, ": its dimensions overflow: ", absl::StrJoin(tensor.dims, " x "), " x ", dim));
    }
    tensor.dims.push_back(dim);
  }
  if (tensor.dims.empty()) {
    tensor.dims.push_back(1);  // a scalar
  }
  const uint64_t type_offset = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(const uint32_t type_id, Fixed<uint32_t>(what));
  const TensorTypeTraits* const traits = FindTensorType(type_id);
  if (traits == nullptr) {
    return Malformed(type_offset, absl::StrCat(what, " has tensor type ", type_id,
                                               ", which is unknown or retired, so its size cannot be told"));
  }
  tensor.type = traits->type;
  if (tensor.dims[0] % traits->block_elements != 0) {
    return Malformed(dims_offset, absl::StrCat(what, ": rows of ", tensor.dims[0], " elements are no whole number of ",
                                               traits->name, " blocks (", traits->block_elements, ")"));
  }
  const std::optional<uint64_t> bytes = BytesOf(tensor.type, elements);
  if (!bytes.has_value()) {
    return Malformed(dims_offset, absl::StrCat(what, ": the size of ", elements, " elements overflows"));
  }
  tensor.bytes = *bytes;
  const uint64_t offset_offset = pos_;
  EMBERGATE_ASSIGN_OR_RETURN(tensor.file_offset, Fixed<uint64_t>(what));  // from the data section, until placed
  if (tensor.file_offset % header_.alignment != 0) {
    return Malformed(offset_offset, absl::StrCat(what, ": its offset ", tensor.file_offset,
                                                 " is no multiple of the alignment ", header_.alignment));
  }
  header_.tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status Parser::PlaceTensors() {
  // pos_ <= file size < 2^63 and alignment <= 2^30: no overflow.
  const uint64_t data_start = (pos_ + header_.alignment - 1) / header_.alignment * header_.alignment;
  for (GgufTensor& tensor : header_.tensors) {
    const uint64_t offset = tensor.file_offset;
    uint64_t end = 0;
    if (__builtin_add_overflow(offset, data_start, &tensor.file_offset) ||
        __builtin_add_overflow(tensor.file_offset, tensor.bytes, &end)) {
      return absl::InvalidArgumentError(absl::StrCat("'", file_.path(), "': tensor '", PrintableName(tensor.name),
                                                     "': offset ", offset, " plus ", tensor.bytes, " bytes overflows"));
    }
    if (end > file_.bytes()) {
      return absl::DataLossError(absl::StrCat("'", file_.path(), "': tensor '", PrintableName(tensor.name),
                                              "' takes bytes ", tensor.file_offset, " to ", end, ", but the file has ",
                                              file_.bytes(), ": it is truncated or malformed"));
    }
  }
  std::vector<uint32_t> order(header_.tensors.size());
  for (uint32_t i = 0; i < order.size(); ++i) {
    order[i] = i;
  }
  std::sort(order.begin(), order.end(),
            [this](uint32_t a, uint32_t b) { return header_.tensors[a].file_offset < header_.tensors[b].file_offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = header_.tensors[order[i - 1]];
    const GgufTensor& after = header_.tensors[order[i]];
    if (before.file_offset + before.bytes > after.file_offset) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", file_.path(), "': tensors '", PrintableName(before.name), "' and '",
                       PrintableName(after.name), "' overlap: the first takes ", before.bytes, " bytes from byte ",
                       before.file_offset, ", the second starts at byte ", after.file_offset));
    }
  }
  return absl::OkStatus();
}

absl::Status Parser::Parse() {
  EMBERGATE_RETURN_IF_ERROR(CheckMagic());
  uint64_t tensor_count = 0;
  uint64_t key_count = 0;
  EMBERGATE_RETURN_IF_ERROR(Preamble(&tensor_count, &key_count));
  header_.entries.reserve(key_count);
  header_.entry_index.reserve(key_count);
  for (uint64_t i = 0; i < key_count; ++i) {
    EMBERGATE_RETURN_IF_ERROR(Entry(i));
  }
  EMBERGATE_RETURN_IF_ERROR(Alignment());
  EMBERGATE_RETURN_IF_ERROR(CheckCount(tensor_count, kTensorBytesMin, "tensor count"));
  header_.tensors.reserve(tensor_count);
  for (uint64_t i = 0; i < tensor_count; ++i) {
    EMBERGATE_RETURN_IF_ERROR(Tensor(i));
  }
  header_.header_bytes = pos_;
  return PlaceTensors();
}

}  // namespace

HeaderBytes::~HeaderBytes() {
  if (data_ != nullptr) {
    ::munmap(data_, reserved_);
  }
}

HeaderBytes& HeaderBytes::operator=(HeaderBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(reserved_, other.reserved_);
  std::swap(loaded_, other.loaded_);
  std::swap(bytes_max_, other.bytes_max_);
  return *this;
}

absl::Status HeaderBytes::Reserve(const DirectFile& file, uint64_t bytes_max) {
  bytes_max_ = bytes_max;
  reserved_ = PageRoundUp(std::max<uint64_t>(1, std::min(file.bytes(), bytes_max)));
  void* const address =
      ::mmap(nullptr, reserved_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for the header of '", file.path(), "' (", reserved_,
                                                     " bytes): ", std::strerror(errno)));
  }
  data_ = static_cast<uint8_t*>(address);
  return absl::OkStatus();
}

absl::Status HeaderBytes::Load(const DirectFile& file, uint64_t end) {
  if (end > bytes_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("the header is past the limit of ", bytes_max_, " bytes"));
  }
  if (end <= loaded_) {
    return absl::OkStatus();
  }
  // Whole steps from step borders, so that the reads need no bounce buffer.
  const uint64_t goal = std::min({(end + kReadStep - 1) / kReadStep * kReadStep, file.bytes(), bytes_max_});
  const uint64_t begin = loaded_ / DirectFile::kAlignment * DirectFile::kAlignment;
  EMBERGATE_RETURN_IF_ERROR(file.Read(begin, absl::MakeSpan(data_ + begin, goal - begin)));
  loaded_ = goal;
  return absl::OkStatus();
}

void HeaderBytes::Trim(uint64_t bytes) {
  const uint64_t keep = std::max<uint64_t>(DirectFile::kAlignment, PageRoundUp(bytes));
  if (data_ != nullptr && keep < reserved_) {
    ::munmap(data_ + keep, reserved_ - keep);
    reserved_ = keep;
    loaded_ = std::min(loaded_, keep);
  }
}

absl::StatusOr<GgufHeader> ReadGgufHeader(const DirectFile& file, const GgufFile::Limits& limits,
                                          uint64_t header_bytes_max) {
  GgufHeader header;
  EMBERGATE_RETURN_IF_ERROR(header.bytes.Reserve(file, header_bytes_max));
  EMBERGATE_RETURN_IF_ERROR(Parser(file, limits, header).Parse());
  header.bytes.Trim(header.header_bytes);
  return header;
}

std::string PrintableName(absl::string_view name) {
  constexpr size_t kShown = 80;
  return name.size() <= kShown ? absl::CHexEscape(name) : absl::StrCat(absl::CHexEscape(name.substr(0, kShown)), "...");
}

absl::string_view NameOf(GgufValueType type) {
  constexpr absl::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                          "bool", "string", "array", "u64", "i64", "f64"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

uint32_t FixedBytesOf(GgufValueType type) {
  constexpr uint32_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kBytes) ? kBytes[index] : 0;
}

}  // namespace embergate::storage
