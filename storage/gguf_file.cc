#include "storage/gguf_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "storage/base/direct_file.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_header.h"

namespace embergate::storage {
namespace {

constexpr absl::string_view kSplitNo = "split.no";
constexpr absl::string_view kSplitCount = "split.count";
constexpr absl::string_view kSplitTensorsCount = "split.tensors.count";

struct ShardName {
  std::string stem;    // before "-00001-of-00003.gguf"
  uint32_t index = 0;  // counts from 0
  uint32_t count = 0;
};

// Takes "STEM-00002-of-00003.gguf" apart; nullopt for any other name.
std::optional<ShardName> ParseShardName(absl::string_view path) {
  constexpr absl::string_view kForm = "-00001-of-00003.gguf";
  if (path.size() < kForm.size()) {
    return std::nullopt;
  }
  const absl::string_view tail = path.substr(path.size() - kForm.size());
  ShardName name;
  uint32_t number = 0;
  const auto is_number = [](absl::string_view digits, uint32_t* value) {
    return std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
           absl::SimpleAtoi(digits, value);
  };
  if (tail[0] != '-' || !is_number(tail.substr(1, 5), &number) || tail.substr(6, 4) != "-of-" ||
      !is_number(tail.substr(10, 5), &name.count) || tail.substr(15) != ".gguf" || number < 1 || number > name.count) {
    return std::nullopt;
  }
  name.stem = std::string(path.substr(0, path.size() - kForm.size()));
  name.index = number - 1;
  return name;
}

template <typename T>
T LoadAs(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

bool IsInteger(GgufValueType type) {
  switch (type) {
    case GgufValueType::kU8:
    case GgufValueType::kI8:
    case GgufValueType::kU16:
    case GgufValueType::kI16:
    case GgufValueType::kU32:
    case GgufValueType::kI32:
    case GgufValueType::kU64:
    case GgufValueType::kI64:
      return true;
    default:
      return false;
  }
}

bool IsFloat(GgufValueType type) { return type == GgufValueType::kF32 || type == GgufValueType::kF64; }

// An integer of any stored width: sign and magnitude cover both u64 and i64.
struct Integer {
  bool negative = false;
  uint64_t bits = 0;  // two's complement
};

Integer Signed(int64_t value) { return {value < 0, static_cast<uint64_t>(value)}; }

Integer LoadInteger(GgufValueType type, const uint8_t* bytes) {
  switch (type) {
    case GgufValueType::kU8:
    case GgufValueType::kBool:
      return {false, *bytes};
    case GgufValueType::kI8:
      return Signed(LoadAs<int8_t>(bytes));
    case GgufValueType::kU16:
      return {false, LoadAs<uint16_t>(bytes)};
    case GgufValueType::kI16:
      return Signed(LoadAs<int16_t>(bytes));
    case GgufValueType::kU32:
      return {false, LoadAs<uint32_t>(bytes)};
    case GgufValueType::kI32:
      return Signed(LoadAs<int32_t>(bytes));
    case GgufValueType::kI64:
      return Signed(LoadAs<int64_t>(bytes));
    default:
      return {false, LoadAs<uint64_t>(bytes)};
  }
}

double LoadDouble(GgufValueType type, const uint8_t* bytes) {
  if (type == GgufValueType::kF32) {
    return double{LoadAs<float>(bytes)};
  }
  if (type == GgufValueType::kF64) {
    return LoadAs<double>(bytes);
  }
  const Integer value = LoadInteger(type, bytes);
  return value.negative ? static_cast<double>(static_cast<int64_t>(value.bits)) : static_cast<double>(value.bits);
}

}  // namespace

uint64_t GgufTensor::elements() const {
  uint64_t product = 1;
  for (const uint64_t dim : dims) {
    product *= dim;
  }
  return product;
}

struct GgufFile::Impl {
  std::vector<std::unique_ptr<DirectFile>> shards;
  GgufHeader header;  // of the first shard, its tensors moved to `tensors`
  std::vector<GgufTensor> tensors;
  absl::flat_hash_map<absl::string_view, uint32_t> tensor_index;  // views into `tensors`
  uint64_t array_elements_max = 0;

  absl::Status Open(const std::string& path, const Limits& limits);
  void AddShard(GgufHeader&& shard_header);
  absl::Status IndexTensors();

  const std::string& path() const { return shards[0]->path(); }
  const uint8_t* value(const GgufEntry& entry) const { return header.bytes.data() + entry.value_offset; }
  absl::StatusOr<const GgufEntry*> Find(absl::string_view key) const;
  absl::StatusOr<const GgufEntry*> FindScalar(absl::string_view key, absl::string_view wanted) const;
  absl::StatusOr<const GgufEntry*> FindArray(absl::string_view key) const;
  absl::Status WrongType(absl::string_view key, const GgufEntry& entry, absl::string_view wanted) const;
};

namespace {

// An unsigned key of a shard's own header; nullopt if it is absent or no such number.
std::optional<uint64_t> ShardKey(const GgufHeader& header, absl::string_view key) {
  const auto it = header.entry_index.find(key);
  if (it == header.entry_index.end()) {
    return std::nullopt;
  }
  const GgufEntry& entry = header.entries[it->second].second;
  if (entry.is_array || !IsInteger(entry.type)) {
    return std::nullopt;
  }
  const Integer value = LoadInteger(entry.type, header.bytes.data() + entry.value_offset);
  return value.negative ? std::nullopt : std::make_optional(value.bits);
}

absl::Status CheckSplitKey(const std::string& path, const GgufHeader& header, absl::string_view key, uint64_t wanted) {
  const std::optional<uint64_t> value = ShardKey(header, key);
  if (value == wanted) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("'", path, "': key '", key, "' should be ", wanted, " and ",
                                                 value.has_value() ? absl::StrCat("is ", *value) : "is absent",
                                                 ": the parts of the model do not belong together"));
}

}  // namespace

void GgufFile::Impl::AddShard(GgufHeader&& shard_header) {
  const int shard = static_cast<int>(shards.size()) - 1;
  for (GgufTensor& tensor : shard_header.tensors) {
    tensor.shard = shard;
  }
  if (shard == 0) {
    tensors = std::exchange(shard_header.tensors, {});
    header = std::move(shard_header);
  } else {
    tensors.insert(tensors.end(), std::make_move_iterator(shard_header.tensors.begin()),
                   std::make_move_iterator(shard_header.tensors.end()));
  }
}

absl::Status GgufFile::Impl::IndexTensors() {
  tensor_index.reserve(tensors.size());
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const auto [it, inserted] = tensor_index.emplace(tensors[i].name, i);
    if (!inserted) {
      const GgufTensor& first = tensors[it->second];
      return absl::InvalidArgumentError(
          absl::StrCat("'", shards[static_cast<size_t>(tensors[i].shard)]->path(), "': tensor '",
                       PrintableName(first.name), "' occurs twice: data at byte ", first.file_offset,
                       first.shard == tensors[i].shard
                           ? ""
                           : absl::StrCat(" of '", shards[static_cast<size_t>(first.shard)]->path(), "'"),
                       " and at byte ", tensors[i].file_offset));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Impl::Open(const std::string& path, const Limits& limits) {
  array_elements_max = limits.array_elements_max;
  const std::optional<ShardName> name = ParseShardName(path);
  const bool split = name.has_value() && name->count > 1;
  const uint32_t count = split ? name->count : 1;
  if (count > limits.shards_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("'", path, "': ", count, " parts are past the limit of ", limits.shards_max));
  }
  uint64_t header_bytes_left = limits.header_bytes_max;
  Limits shard_limits = limits;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string shard_path = split ? absl::StrFormat("%s-%05d-of-%05d.gguf", name->stem, i + 1, count) : path;
    EMBERGATE_ASSIGN_OR_RETURN(std::unique_ptr<DirectFile> file, DirectFile::Open(shard_path));
    EMBERGATE_ASSIGN_OR_RETURN(GgufHeader shard_header, ReadGgufHeader(*file, shard_limits, header_bytes_left));
    if (split) {
      EMBERGATE_RETURN_IF_ERROR(CheckSplitKey(shard_path, shard_header, kSplitNo, i));
      EMBERGATE_RETURN_IF_ERROR(CheckSplitKey(shard_path, shard_header, kSplitCount, count));
    } else if (const std::optional<uint64_t> parts = ShardKey(shard_header, kSplitCount); parts.value_or(1) > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", path, "': key 'split.count' says that this is one of ", *parts,
                       " parts; a part is found by its name, which must end like -00001-of-",
                       absl::StrFormat("%05d", *parts), ".gguf"));
    }
    shard_limits.tensors_max -= shard_header.tensors.size();
    if (i == 0) {
      header_bytes_left -= std::min(header_bytes_left, shard_header.header_bytes);
    }
    shards.push_back(std::move(file));
    AddShard(std::move(shard_header));
  }
  if (split) {
    EMBERGATE_RETURN_IF_ERROR(CheckSplitKey(shards[0]->path(), header, kSplitTensorsCount, tensors.size()));
  }
  return IndexTensors();
}

absl::StatusOr<const GgufEntry*> GgufFile::Impl::Find(absl::string_view key) const {
  const auto it = header.entry_index.find(key);
  if (it == header.entry_index.end()) {
    return absl::NotFoundError(absl::StrCat("'", path(), "' has no key '", key, "'"));
  }
  return &header.entries[it->second].second;
}

absl::Status GgufFile::Impl::WrongType(absl::string_view key, const GgufEntry& entry, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat("'", path(), "': key '", key, "' is ",
                                                 entry.is_array ? "an array of " : "", NameOf(entry.type), ", not ",
                                                 wanted));
}

absl::StatusOr<const GgufEntry*> GgufFile::Impl::FindScalar(absl::string_view key, absl::string_view wanted) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, Find(key));
  if (entry->is_array) {
    return WrongType(key, *entry, wanted);
  }
  return entry;
}

absl::StatusOr<const GgufEntry*> GgufFile::Impl::FindArray(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, Find(key));
  if (entry->count > array_elements_max) {
    return absl::ResourceExhaustedError(absl::StrCat("'", path(), "': key '", key, "' has ", entry->count,
                                                     " elements, past the limit of ", array_elements_max));
  }
  return entry;
}

GgufFile::GgufFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path, const Limits& limits) {
  auto impl = std::make_unique<Impl>();
  EMBERGATE_RETURN_IF_ERROR(impl->Open(path, limits));
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(impl)));
}

uint32_t GgufFile::version() const { return impl_->header.version; }
uint32_t GgufFile::alignment() const { return impl_->header.alignment; }
int GgufFile::shard_count() const { return static_cast<int>(impl_->shards.size()); }
const std::string& GgufFile::shard_path(int shard) const {
  return impl_->shards.at(static_cast<size_t>(shard))->path();
}
uint64_t GgufFile::shard_bytes(int shard) const { return impl_->shards.at(static_cast<size_t>(shard))->bytes(); }

absl::Span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }

const GgufTensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto it = impl_->tensor_index.find(name);
  return it == impl_->tensor_index.end() ? nullptr : &impl_->tensors[it->second];
}

absl::Status GgufFile::ReadTensor(const GgufTensor& tensor, uint64_t offset, absl::Span<uint8_t> out) const {
  if (offset > tensor.bytes || out.size() > tensor.bytes - offset) {
    return absl::OutOfRangeError(absl::StrCat("tensor '", PrintableName(tensor.name), "' has ", tensor.bytes,
                                              " bytes; ", out.size(), " from byte ", offset, " were asked for"));
  }
  if (tensor.shard < 0 || static_cast<size_t>(tensor.shard) >= impl_->shards.size()) {
    return absl::OutOfRangeError(absl::StrCat("tensor '", PrintableName(tensor.name), "' is not of this file"));
  }
  const absl::Status status = impl_->shards[static_cast<size_t>(tensor.shard)]->Read(tensor.file_offset + offset, out);
  if (status.ok()) {
    return status;
  }
  return absl::Status(status.code(),
                      absl::StrCat("tensor '", PrintableName(tensor.name), "': ", std::string(status.message())));
}

absl::Status GgufFile::ReadBytes(int shard, uint64_t file_offset, absl::Span<uint8_t> out) const {
  if (shard < 0 || static_cast<size_t>(shard) >= impl_->shards.size()) {
    return absl::OutOfRangeError(absl::StrCat("there is no shard ", shard, " of ", impl_->shards.size()));
  }
  return impl_->shards[static_cast<size_t>(shard)]->Read(file_offset, out);
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> keys;
  keys.reserve(impl_->header.entries.size());
  for (const auto& [key, entry] : impl_->header.entries) {
    keys.emplace_back(key);
  }
  return keys;
}

bool GgufFile::Has(absl::string_view key) const { return impl_->header.entry_index.contains(key); }

absl::StatusOr<uint64_t> GgufFile::GetUint(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindScalar(key, "an unsigned integer"));
  if (!IsInteger(entry->type)) {
    return impl_->WrongType(key, *entry, "an unsigned integer");
  }
  const Integer value = LoadInteger(entry->type, impl_->value(*entry));
  if (value.negative) {
    return absl::InvalidArgumentError(absl::StrCat("'", impl_->path(), "': key '", key, "' is ",
                                                   static_cast<int64_t>(value.bits), " and must not be negative"));
  }
  return value.bits;
}

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindScalar(key, "an integer"));
  if (!IsInteger(entry->type)) {
    return impl_->WrongType(key, *entry, "an integer");
  }
  const Integer value = LoadInteger(entry->type, impl_->value(*entry));
  if (!value.negative && value.bits > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", impl_->path(), "': key '", key, "' is ", value.bits, ", too large"));
  }
  return static_cast<int64_t>(value.bits);
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindScalar(key, "a number"));
  if (!IsInteger(entry->type) && !IsFloat(entry->type)) {
    return impl_->WrongType(key, *entry, "a number");
  }
  return LoadDouble(entry->type, impl_->value(*entry));
}

absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindScalar(key, "a bool"));
  if (entry->type != GgufValueType::kBool) {
    return impl_->WrongType(key, *entry, "a bool");
  }
  return *impl_->value(*entry) != 0;
}

absl::StatusOr<absl::string_view> GgufFile::GetString(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindScalar(key, "a string"));
  if (entry->type != GgufValueType::kString) {
    return impl_->WrongType(key, *entry, "a string");
  }
  const uint8_t* const value = impl_->value(*entry);
  return absl::string_view(reinterpret_cast<const char*>(value) + 8, LoadAs<uint64_t>(value));
}

absl::StatusOr<GgufValueType> GgufFile::TypeOf(absl::string_view key, bool* is_array, uint64_t* count) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->Find(key));
  if (is_array != nullptr) {
    *is_array = entry->is_array;
  }
  if (count != nullptr) {
    *count = entry->count;
  }
  return entry->type;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindArray(key));
  if (!IsInteger(entry->type) && entry->type != GgufValueType::kBool) {
    return impl_->WrongType(key, *entry, "integers");
  }
  const uint32_t width = FixedBytesOf(entry->type);
  std::vector<int64_t> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    const Integer value = LoadInteger(entry->type, impl_->value(*entry) + i * width);
    if (!value.negative && value.bits > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", impl_->path(), "': key '", key, "': element ", i, " is ", value.bits, ", too large"));
    }
    values[i] = static_cast<int64_t>(value.bits);
  }
  return values;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloats(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindArray(key));
  if (!IsInteger(entry->type) && !IsFloat(entry->type)) {
    return impl_->WrongType(key, *entry, "numbers");
  }
  const uint32_t width = FixedBytesOf(entry->type);
  std::vector<float> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    const double value = LoadDouble(entry->type, impl_->value(*entry) + i * width);
    if (std::isfinite(value) && std::abs(value) > double{std::numeric_limits<float>::max()}) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", impl_->path(), "': key '", key, "': element ", i, " is ", value, ", too large"));
    }
    values[i] = static_cast<float>(value);
  }
  return values;
}

absl::StatusOr<std::vector<absl::string_view>> GgufFile::GetStrings(absl::string_view key) const {
  EMBERGATE_ASSIGN_OR_RETURN(const GgufEntry* entry, impl_->FindArray(key));
  if (entry->type != GgufValueType::kString) {
    return impl_->WrongType(key, *entry, "strings");
  }
  std::vector<absl::string_view> values(entry->count);
  const uint8_t* next = impl_->value(*entry);
  for (absl::string_view& value : values) {
    value = absl::string_view(reinterpret_cast<const char*>(next) + 8, LoadAs<uint64_t>(next));
    next += 8 + value.size();
  }
  return values;
}

}  // namespace embergate::storage
