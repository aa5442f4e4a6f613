#include "engine/model/file_report.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/convert/gguf_keys.h"
#include "engine/model/weights.h"

namespace embergate::engine {
namespace {

// "blk.12.attn_k.weight" -> layer 12, "attn_k"; -1 and the stem for a tensor of the whole model.
std::pair<int, absl::string_view> SplitName(absl::string_view name) {
  int layer = -1;
  if (absl::ConsumePrefix(&name, "blk.")) {
    const size_t dot = name.find('.');
    if (dot == absl::string_view::npos || !absl::SimpleAtoi(name.substr(0, dot), &layer) || layer < 0) {
      return {-1, absl::string_view()};
    }
    name.remove_prefix(dot + 1);
  }
  if (!absl::ConsumeSuffix(&name, ".weight")) {
    absl::ConsumeSuffix(&name, ".bias");
  }
  return {layer, name};
}

FilePart PartOf(absl::string_view full_name) {
  for (const absl::string_view prefix : {"v.", "a.", "mm.", "resampler."}) {
    if (absl::StartsWith(full_name, prefix)) {
      return FilePart::kOtherMode;
    }
  }
  const auto [layer, stem] = SplitName(full_name);
  if (layer < 0) {
    if (stem == "token_embd" || stem == "output") {
      return FilePart::kEmbedding;
    }
    if (stem == "per_layer_token_embd") {
      return FilePart::kPleTable;
    }
    if (stem == "per_layer_model_proj") {
      return FilePart::kPleProjections;
    }
  } else if (stem == gguf::kPleGate || stem == gguf::kPleProj) {
    return FilePart::kPleProjections;
  }
  if (absl::StartsWith(stem, "altup_") || absl::StartsWith(stem, "laurel_")) {
    return FilePart::kAltupLaurel;
  }
  if (absl::StrContains(stem, "norm") || stem == gguf::kLayerOutputScale || stem == "rope_freqs") {
    return FilePart::kNorms;
  }
  if (absl::StartsWith(stem, "attn_")) {
    return FilePart::kAttention;
  }
  if (absl::StartsWith(stem, "ffn_")) {
    return FilePart::kFeedForward;
  }
  return FilePart::kOther;
}

// Bytes by type, most first.
template <typename Map>
std::vector<std::string> NamesByBytes(const Map& bytes_by_type) {
  std::vector<std::pair<uint64_t, std::string>> order;
  for (const auto& [type, bytes] : bytes_by_type) {
    order.emplace_back(bytes, type);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::string> names;
  for (auto& [bytes, type] : order) {
    names.push_back(std::move(type));
  }
  return names;
}

void Count(const storage::GgufTensor& tensor, ByteCount& count) {
  ++count.tensors;
  count.elements += tensor.elements();
  count.bytes += tensor.bytes;
}

std::string StringOr(const storage::GgufFile& file, absl::string_view key) {
  const auto value = file.GetString(key);
  return value.ok() ? std::string(*value) : std::string();
}

}  // namespace

const char* NameOf(FilePart part) {
  switch (part) {
    case FilePart::kEmbedding:
      return "token embedding";
    case FilePart::kAttention:
      return "attention";
    case FilePart::kFeedForward:
      return "feed-forward";
    case FilePart::kPleProjections:
      return "per-layer projections";
    case FilePart::kAltupLaurel:
      return "altup, laurel";
    case FilePart::kNorms:
      return "norms, scales";
    case FilePart::kPleTable:
      return "per-layer table";
    case FilePart::kUnusedKv:
      return "k/v of sharing layers";
    case FilePart::kOtherMode:
      return "vision, audio";
    case FilePart::kOther:
      return "other";
  }
  return "";
}

const char* NameOf(FilePlace place) {
  switch (place) {
    case FilePlace::kDram:
      return "DRAM";
    case FilePlace::kFlash:
      return "flash";
    case FilePlace::kUnused:
      return "unused";
    case FilePlace::kUnknown:
      return "-";
  }
  return "";
}

TensorPlacement PlaceTensor(const storage::GgufTensor& tensor, const ModelConfig* config) {
  const FilePart part = PartOf(tensor.name);
  if (config == nullptr) {
    return {part, FilePlace::kUnknown};
  }
  if (part == FilePart::kOtherMode || part == FilePart::kOther) {
    return {part, FilePlace::kUnused};
  }
  if (part == FilePart::kPleTable) {
    return {part, config->ple_width > 0 ? FilePlace::kFlash : FilePlace::kUnused};
  }
  const auto [layer, stem] = SplitName(tensor.name);
  if (layer >= config->layer_count()) {
    return {part, FilePlace::kUnused};
  }
  if (layer >= config->own_layers && (stem == gguf::kAttnK || stem == gguf::kAttnV || stem == gguf::kAttnKNorm)) {
    return {FilePart::kUnusedKv, FilePlace::kUnused};
  }
  return {part, FilePlace::kDram};
}

FileReport ReportFile(const storage::GgufFile& file) {
  FileReport report;
  report.architecture = StringOr(file, gguf::kArchitecture);
  report.name = StringOr(file, gguf::kName);
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    report.file_bytes += file.shard_bytes(shard);
  }
  absl::StatusOr<ModelConfig> config = ReadModelConfig(file);
  absl::Status status = config.status();
  if (config.ok()) {
    status = CheckWeights(file, *config).status();
  }
  if (status.ok()) {
    report.config = *std::move(config);
  } else {
    report.refusal = std::string(status.message());
  }
  report.tokenizer = StringOr(file, "tokenizer.ggml.model");
  file.TypeOf("tokenizer.ggml.tokens", nullptr, &report.tokens).IgnoreError();
  report.has_chat_template = file.Has("tokenizer.chat_template");

  const ModelConfig* const served = report.config.has_value() ? &*report.config : nullptr;
  // By part and place: a tensor of no use may belong to the same part as used ones.
  std::map<std::pair<FilePart, FilePlace>, std::pair<ByteCount, std::map<std::string, uint64_t>>> parts;
  std::map<std::string, ByteCount> types;
  for (const storage::GgufTensor& tensor : file.tensors()) {
    const TensorPlacement placement = PlaceTensor(tensor, served);
    const std::string type(storage::TraitsOf(tensor.type).name);
    auto& [count, part_types] = parts[{placement.part, placement.place}];
    Count(tensor, count);
    part_types[type] += tensor.bytes;
    Count(tensor, types[type]);
    Count(tensor, report.places[static_cast<size_t>(placement.place)]);
    Count(tensor, report.total);
    if (placement.part == FilePart::kPleTable) {
      report.table_row_bytes = tensor.row_bytes();
    }
  }
  for (const auto& [key, value] : parts) {
    FileReport::PartCount part;
    static_cast<ByteCount&>(part) = value.first;
    part.part = key.first;
    part.place = key.second;
    part.types = NamesByBytes(value.second);
    report.parts.push_back(std::move(part));
  }
  for (const auto& [type, count] : types) {
    FileReport::TypeCount entry;
    static_cast<ByteCount&>(entry) = count;
    entry.type = type;
    report.types.push_back(std::move(entry));
  }
  std::stable_sort(report.types.begin(), report.types.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  report.other_bytes = report.file_bytes - report.total.bytes;
  return report;
}

}  // namespace embergate::engine
