// `embergate inspect`: what a model file is, and where its bytes are.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/model/file_report.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

using engine::ByteCount;
using engine::FilePlace;
using engine::FileReport;
using nlohmann::ordered_json;
using storage::GgufFile;
using storage::GgufTensor;
using storage::GgufValueType;

// Of an array, and of a string, on one line.
constexpr size_t kElementsShown = 6;
constexpr size_t kStringBytesShown = 60;

// ---- Tables -------------------------------------------------------------------------------------

// Columns as wide as their widest cell; a '>' in `align` sets a column to the right.
class Table {
 public:
  Table(std::string align, std::vector<std::string> head) : align_(std::move(align)) { Row(std::move(head)); }
  void Row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  void Print() const {
    std::vector<size_t> widths(align_.size(), 0);
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) {
        widths[i] = std::max(widths[i], row[i].size());
      }
    }
    for (const auto& row : rows_) {
      std::string line;
      for (size_t i = 0; i < row.size(); ++i) {
        const std::string space(widths[i] - row[i].size(), ' ');
        absl::StrAppend(&line, "  ", align_[i] == '>' ? space : "", row[i], align_[i] == '>' ? "" : space);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      std::printf("%s\n", line.c_str());
    }
  }

 private:
  const std::string align_;
  std::vector<std::vector<std::string>> rows_;
};

std::string Percent(uint64_t part, uint64_t whole) {
  return absl::StrFormat("%.1f %%", whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// Control characters of a file must not reach the terminal; letters of any script may.
std::string Printable(absl::string_view text) { return absl::Utf8SafeCHexEscape(text); }

// ---- Metadata -----------------------------------------------------------------------------------

std::string Shortened(absl::string_view text) {
  if (text.size() <= kStringBytesShown) {
    return absl::StrCat("\"", Printable(text), "\"");
  }
  size_t cut = kStringBytesShown;
  while (cut > 0 && (static_cast<uint8_t>(text[cut]) & 0xc0) == 0x80) {
    --cut;  // not inside a character
  }
  return absl::StrCat("\"", Printable(text.substr(0, cut)), "\"... (", text.size(), " bytes)");
}

bool IsFloat(GgufValueType type) { return type == GgufValueType::kF32 || type == GgufValueType::kF64; }

ordered_json JsonNumber(double value) {
  // JSON has no infinity: 3n's sparsity scales do.
  return std::isfinite(value) ? ordered_json(value) : ordered_json(absl::StrCat(value));
}

// The value of a key, of an array its first elements. `text` gets the same for people.
ordered_json Value(const GgufFile& file, const std::string& key, std::string* text) {
  bool is_array = false;
  uint64_t count = 0;
  const auto type = file.TypeOf(key, &is_array, &count);
  if (!type.ok()) {
    return nullptr;
  }
  ordered_json elements = ordered_json::array();
  std::vector<std::string> words;
  const auto add = [&](ordered_json value, std::string word) {
    if (words.size() < kElementsShown) {
      elements.push_back(std::move(value));
      words.push_back(std::move(word));
    }
  };
  if (*type == GgufValueType::kString) {
    if (const auto values = file.GetStrings(key); values.ok()) {
      for (const absl::string_view value : *values) {
        add(std::string(value), Shortened(value));
      }
    }
  } else if (IsFloat(*type)) {
    if (const auto values = file.GetFloats(key); values.ok()) {
      for (const float value : *values) {
        add(JsonNumber(value), absl::StrCat(value));
      }
    }
  } else if (*type == GgufValueType::kBool) {
    if (const auto values = file.GetInts(key); values.ok()) {
      for (const int64_t value : *values) {
        add(value != 0, value != 0 ? "true" : "false");
      }
    }
  } else if (const auto large = file.GetUint(key); large.ok()) {  // a u64 may not fit an i64
    add(*large, absl::StrCat(*large));
  } else if (const auto values = file.GetInts(key); values.ok()) {
    for (const int64_t value : *values) {
      add(value, absl::StrCat(value));
    }
  }
  if (!is_array && words.size() == 1) {
    *text = words[0];
    return elements[0];
  }
  *text = absl::StrCat("[", absl::StrJoin(words, ", "), words.size() < count ? ", ..." : "", "] (", count, ")");
  if (words.size() == count) {
    return elements;
  }
  return {{"count", count}, {"first", std::move(elements)}};
}

// ---- The report -----------------------------------------------------------------------------------

std::string Dims(const GgufTensor& tensor) { return absl::StrJoin(tensor.dims, " x "); }

void PrintHead(const std::string& path, const GgufFile& file, const FileReport& report) {
  std::printf("%s\n", Printable(path).c_str());
  std::printf("  %s%s%s\n", report.architecture.empty() ? "no architecture" : Printable(report.architecture).c_str(),
              report.name.empty() ? "" : ": ", Printable(report.name).c_str());
  std::printf("  %s in %s, GGUF version %u; %s parameters in %d tensors\n", HumanBytes(report.file_bytes).c_str(),
              file.shard_count() == 1 ? "one file" : absl::StrCat(file.shard_count(), " files").c_str(), file.version(),
              HumanCount(report.total.elements).c_str(), report.total.tensors);
  if (report.config.has_value()) {
    const engine::ModelConfig& config = *report.config;
    const auto full = std::count_if(config.layers.begin(), config.layers.end(),
                                    [](const engine::LayerConfig& layer) { return !layer.sliding; });
    std::printf("  %d layers (%d full attention, %d sharing keys and values), hidden size %d, vocabulary %d\n",
                config.layer_count(), static_cast<int>(full), config.layer_count() - config.own_layers, config.hidden,
                config.vocab);
    std::printf("  trained for %d tokens of context, sliding window %d\n", config.context_trained, config.window);
  } else {
    std::printf("  NOT SERVED: %s\n", Printable(report.refusal).c_str());
  }
  if (report.tokens > 0) {
    std::printf("  tokenizer %s, %s tokens%s\n", Printable(report.tokenizer).c_str(),
                GroupedDigits(report.tokens).c_str(), report.has_chat_template ? ", with a chat template" : "");
  } else {
    std::printf("  no tokenizer: token ids only\n");
  }
}

void PrintParts(const FileReport& report) {
  std::printf("\n");
  Table table("<<>>>><", {"part", "read from", "tensors", "parameters", "bytes", "of file", "types"});
  for (const FileReport::PartCount& part : report.parts) {
    table.Row({NameOf(part.part), NameOf(part.place), absl::StrCat(part.tensors), HumanCount(part.elements),
               HumanBytes(part.bytes), Percent(part.bytes, report.file_bytes), absl::StrJoin(part.types, ", ")});
  }
  table.Row({"metadata, padding", NameOf(FilePlace::kUnknown), "", "", HumanBytes(report.other_bytes),
             Percent(report.other_bytes, report.file_bytes), ""});
  table.Print();

  std::printf("\n");
  Table types("<>>>>", {"type", "tensors", "parameters", "bytes", "bits each"});
  for (const FileReport::TypeCount& type : report.types) {
    types.Row({type.type, absl::StrCat(type.tensors), HumanCount(type.elements), HumanBytes(type.bytes),
               absl::StrFormat("%.2f", 8.0 * static_cast<double>(type.bytes) / static_cast<double>(type.elements))});
  }
  types.Print();

  if (!report.config.has_value()) {
    return;
  }
  std::printf("\n");
  const auto place = [&](FilePlace which, const std::string& remark) {
    std::printf("  %-7s %9s  %7s  %s\n", NameOf(which), HumanBytes(report.at(which).bytes).c_str(),
                Percent(report.at(which).bytes, report.file_bytes).c_str(), remark.c_str());
  };
  place(FilePlace::kDram, "weights that every token reads, held in memory");
  place(FilePlace::kFlash, report.table_row_bytes == 0 ? ""
                                                       : absl::StrCat("stays on flash; a token reads one row of ",
                                                                      GroupedDigits(report.table_row_bytes), " bytes"));
  place(FilePlace::kUnused, "never read");
}

ordered_json JsonCount(const ByteCount& count) {
  return {{"tensors", count.tensors}, {"parameters", count.elements}, {"bytes", count.bytes}};
}

ordered_json JsonReport(const std::string& path, const GgufFile& file, const FileReport& report) {
  ordered_json json = {
      {"file", path},
      {"architecture", report.architecture},
      {"name", report.name},
      {"served", report.config.has_value()},
      {"reason", report.refusal},
      {"gguf_version", file.version()},
      {"alignment", file.alignment()},
      {"shards", file.shard_count()},
      {"file_bytes", report.file_bytes},
      {"metadata_and_padding_bytes", report.other_bytes},
      {"total", JsonCount(report.total)},
      {"tokenizer",
       {{"model", report.tokenizer}, {"tokens", report.tokens}, {"chat_template", report.has_chat_template}}}};
  if (report.config.has_value()) {
    const engine::ModelConfig& config = *report.config;
    json["layers"] = config.layer_count();
    json["layers_sharing_kv"] = config.layer_count() - config.own_layers;
    json["hidden"] = config.hidden;
    json["vocabulary"] = config.vocab;
    json["context_trained"] = config.context_trained;
    json["sliding_window"] = config.window;
    json["table_row_bytes"] = report.table_row_bytes;
    json["dram_bytes"] = report.at(FilePlace::kDram).bytes;
    json["flash_bytes"] = report.at(FilePlace::kFlash).bytes;
    json["unused_bytes"] = report.at(FilePlace::kUnused).bytes;
  }
  for (const FileReport::PartCount& part : report.parts) {
    ordered_json entry = {{"part", NameOf(part.part)}, {"place", NameOf(part.place)}};
    entry.update(JsonCount(part));
    entry["types"] = part.types;
    json["parts"].push_back(std::move(entry));
  }
  for (const FileReport::TypeCount& type : report.types) {
    json["types"][type.type] = JsonCount(type);
  }
  return json;
}

void PrintTensors(const GgufFile& file, const FileReport& report) {
  std::printf("\n");
  Table table("<<>>><<", {"tensor", "type", "shape", "bytes", "at byte", "part", "read from"});
  for (const GgufTensor& tensor : file.tensors()) {
    const auto placement = PlaceTensor(tensor, report.config.has_value() ? &*report.config : nullptr);
    std::string at = GroupedDigits(tensor.file_offset);
    if (file.shard_count() > 1) {
      at = absl::StrCat(tensor.shard + 1, ":", at);
    }
    table.Row({Printable(tensor.name), std::string(storage::TraitsOf(tensor.type).name), Dims(tensor),
               GroupedDigits(tensor.bytes), std::move(at), NameOf(placement.part), NameOf(placement.place)});
  }
  table.Print();
}

ordered_json JsonTensors(const GgufFile& file, const FileReport& report) {
  ordered_json list = ordered_json::array();
  for (const GgufTensor& tensor : file.tensors()) {
    const auto placement = PlaceTensor(tensor, report.config.has_value() ? &*report.config : nullptr);
    list.push_back({{"name", tensor.name},
                    {"type", std::string(storage::TraitsOf(tensor.type).name)},
                    {"dims", tensor.dims},
                    {"bytes", tensor.bytes},
                    {"shard", tensor.shard},
                    {"file_offset", tensor.file_offset},
                    {"part", NameOf(placement.part)},
                    {"place", NameOf(placement.place)}});
  }
  return list;
}

void PrintMetadata(const GgufFile& file) {
  std::printf("\n");
  Table table("<<", {"key", "value"});
  for (const std::string& key : file.keys()) {
    std::string text;
    Value(file, key, &text);
    table.Row({Printable(key), text});
  }
  table.Print();
}

struct InspectFlags {
  std::string path;
  bool json = false;
  bool tensors = false;
  bool metadata = false;
};

void RunInspect(const InspectFlags& flags) {
  const auto file = GgufFile::Open(flags.path);
  if (!file.ok()) {
    std::fprintf(stderr, "embergate inspect: %s\n", std::string(file.status().message()).c_str());
    throw CLI::RuntimeError(2);
  }
  const FileReport report = engine::ReportFile(**file);
  if (flags.json) {
    ordered_json json = JsonReport(flags.path, **file, report);
    if (flags.tensors) {
      json["tensors"] = JsonTensors(**file, report);
    }
    if (flags.metadata) {
      for (const std::string& key : (*file)->keys()) {
        std::string text;
        json["metadata"][key] = Value(**file, key, &text);
      }
    }
    // A file's strings may be anything; what is not UTF-8 is replaced, not thrown at the caller.
    std::printf("%s\n", json.dump(2, ' ', false, ordered_json::error_handler_t::replace).c_str());
    return;
  }
  PrintHead(flags.path, **file, report);
  PrintParts(report);
  if (flags.metadata) {
    PrintMetadata(**file);
  }
  if (flags.tensors) {
    PrintTensors(**file, report);
  }
}

}  // namespace

void AddInspect(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("inspect", "Say what a GGUF file is and where its bytes are: DRAM, flash, or unused");
  const auto flags = std::make_shared<InspectFlags>();
  command->add_option("model", flags->path, "The GGUF file, or any part of a split one")->required();
  command->add_flag("--json", flags->json, "One JSON object, sizes in bytes");
  command->add_flag("--tensors", flags->tensors, "List every tensor too");
  command->add_flag("--metadata", flags->metadata, "List every key too, long values shortened");
  command->callback([flags] { RunInspect(*flags); });
}

}  // namespace embergate::server
