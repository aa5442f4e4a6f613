// `embergate checksum`: CRC32C of a model's tensors in a file beside it, which protects every row that is read from
// flash; and the check of a whole model against it.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/table_checksums.h"
#include "engine/model/config.h"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "server/cli/local_model.h"
#include "server/cli/progress.h"
#include "storage/checksum_file.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

constexpr char kCommand[] = "checksum";
constexpr uint64_t kPieceBytes = 1u << 20;

struct Flags {
  std::string model;
  bool verify = false;
};

// The table gets a checksum per row, in two segments where prompts read only the front part of a row.
storage::ChecksumEntry EntryFor(const storage::GgufTensor& tensor, uint64_t prefix_elements) {
  storage::ChecksumEntry entry;
  entry.name = tensor.name;
  entry.file_offset = tensor.file_offset;
  entry.bytes = tensor.bytes;
  entry.piece_bytes = kPieceBytes;
  if (tensor.name == engine::gguf::kPerLayerTokenEmbd) {
    entry.piece_bytes = tensor.row_bytes();
    entry.segment_ends = engine::ChecksumSegments(tensor.type, tensor.cols(), prefix_elements);
  } else {
    entry.segment_ends = {entry.piece_bytes};
  }
  return entry;
}

// Of a row's elements, those of the layers that own keys and values; 0 if the model is not one that we serve.
uint64_t PrefixElements(const storage::GgufFile& file) {
  const absl::StatusOr<engine::ModelConfig> config = engine::ReadModelConfig(file);
  return config.ok() ? static_cast<uint64_t>(config->common_layers()) * static_cast<uint64_t>(config->ple_width) : 0;
}

void Make(const storage::GgufFile& file) {
  const uint64_t prefix_elements = PrefixElements(file);
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    storage::ChecksumFile sums;
    sums.file_bytes = file.shard_bytes(shard);
    for (const storage::GgufTensor& tensor : file.tensors()) {
      if (tensor.shard == shard) {
        sums.entries.push_back(EntryFor(tensor, prefix_elements));
      }
    }
    const std::string path = storage::ChecksumPathFor(file.shard_path(shard));
    ProgressBar bar("summing");
    absl::Status status = storage::ComputeChecksums(file.shard_path(shard), sums,
                                                    [&](uint64_t done, uint64_t total) { bar.Update(done, total); });
    if (status.ok()) {
      status = storage::WriteChecksumFile(path, sums);
    }
    if (!status.ok()) {
      FailCommand(kCommand, std::string(status.message()), 1);
    }
    bar.Finish();
    std::printf("%s: %zu tensors\n", path.c_str(), sums.entries.size());
  }
}

// Those of the table's rows that the file itself brings, if its table is in this part.
absl::StatusOr<storage::ChecksumFile> OwnChecksums(const storage::GgufFile& file, int shard) {
  const storage::GgufTensor* table = file.FindTensor(engine::gguf::kPerLayerTokenEmbd);
  storage::ChecksumFile sums;
  sums.file_bytes = file.shard_bytes(shard);
  if (table != nullptr && table->shard != shard) {
    return sums;
  }
  absl::StatusOr<storage::RowChecksums> rows = storage::RowChecksums();
  if (table != nullptr) {
    storage::TableSpec spec;
    spec.path = file.shard_path(shard);
    rows = engine::LoadTableChecksums(file, *table, spec);
  }
  if (!rows.ok()) {
    return rows.status();
  }
  if (rows->crcs.empty()) {
    return absl::NotFoundError(absl::StrCat(file.shard_path(shard), " has no checksums, neither beside it nor in it; ",
                                            "embergate checksum makes them"));
  }
  storage::ChecksumEntry entry;
  entry.name = table->name;
  entry.file_offset = table->file_offset;
  entry.bytes = table->bytes;
  entry.piece_bytes = table->row_bytes();
  entry.segment_ends = std::move(rows->segment_ends);
  entry.crcs = std::move(rows->crcs);
  sums.entries.push_back(std::move(entry));
  return sums;
}

void Verify(const storage::GgufFile& file) {
  uint64_t bad = 0;
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    const std::string& path = file.shard_path(shard);
    absl::StatusOr<storage::ChecksumFile> sums = storage::ReadChecksumFile(storage::ChecksumPathFor(path));
    if (absl::IsNotFound(sums.status())) {
      sums = OwnChecksums(file, shard);
      if (sums.ok() && sums->entries.empty()) {
        std::printf("%s: no table here, and nothing else has checksums of its own\n", path.c_str());
        continue;
      }
    }
    if (!sums.ok()) {
      FailCommand(kCommand, std::string(sums.status().message()), 2);
    }
    if (sums->file_bytes != file.shard_bytes(shard)) {
      FailCommand(kCommand,
                  absl::StrCat(path, " has ", file.shard_bytes(shard), " bytes, but its checksums are of a file of ",
                               sums->file_bytes),
                  1);
    }
    ProgressBar bar("checking");
    constexpr uint64_t kShownMax = 20;
    const absl::StatusOr<uint64_t> found = storage::VerifyChecksums(
        path, *sums,
        [&](const storage::ChecksumEntry& entry, uint64_t piece) {
          if (++bad <= kShownMax) {
            std::printf("%s: damaged: %s, piece %llu (%s), at byte %llu\n", path.c_str(), entry.name.c_str(),
                        static_cast<unsigned long long>(piece), HumanBytes(entry.piece_bytes).c_str(),
                        static_cast<unsigned long long>(entry.file_offset + piece * entry.piece_bytes));
          }
        },
        [&](uint64_t done, uint64_t total) { bar.Update(done, total); });
    if (!found.ok()) {
      FailCommand(kCommand, std::string(found.status().message()), 1);
    }
    bar.Finish();
  }
  if (bad > 0) {
    FailCommand(kCommand, absl::StrCat(bad, " damaged pieces; fetch the model again"), 1);
  }
  std::printf("every piece is as it was\n");
}

void Run(const Flags& flags) {
  const absl::StatusOr<std::unique_ptr<storage::GgufFile>> file = storage::GgufFile::Open(flags.model);
  if (!file.ok()) {
    FailCommand(kCommand, std::string(file.status().message()), 2);
  }
  if (flags.verify) {
    Verify(**file);
  } else {
    Make(**file);
  }
}

}  // namespace

void AddChecksum(CLI::App& app) {
  CLI::App* command = app.add_subcommand(kCommand,
                                         "Write MODEL.gguf.crc32c, by which every row read from flash is checked; or "
                                         "check the model against it, or against "
                                         "the checksums of the table that convert and synth put into the file itself");
  auto flags = std::make_shared<Flags>();
  command->add_option("model", flags->model, "GGUF file (of a split one, any part)")
      ->required()
      ->type_name("MODEL.gguf");
  command->add_flag("--verify", flags->verify, "Read the whole model and compare it with its checksums");
  command->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
