// `embergate checksum`: CRC32C of a model's tensors in a file beside it, which protects every row that is read from
// flash; and the check of a whole model against it.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
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
storage::ChecksumEntry EntryFor(const storage::GgufTensor& tensor, uint64_t prefix_bytes) {
  storage::ChecksumEntry entry;
  entry.name = tensor.name;
  entry.file_offset = tensor.file_offset;
  entry.bytes = tensor.bytes;
  entry.piece_bytes = kPieceBytes;
  if (tensor.name == engine::gguf::kPerLayerTokenEmbd) {
    entry.piece_bytes = tensor.row_bytes();
    if (prefix_bytes > 0 && prefix_bytes < entry.piece_bytes) {
      entry.segment_ends.push_back(prefix_bytes);
    }
  }
  entry.segment_ends.push_back(entry.piece_bytes);
  return entry;
}

// What the layers that own keys and values need of a row; 0 if the model is not one that we serve.
uint64_t PrefixBytes(const storage::GgufFile& file) {
  const absl::StatusOr<engine::ModelConfig> config = engine::ReadModelConfig(file);
  const storage::GgufTensor* table = file.FindTensor(engine::gguf::kPerLayerTokenEmbd);
  if (!config.ok() || table == nullptr) {
    return 0;
  }
  const storage::TensorTypeTraits& traits = storage::TraitsOf(table->type);
  const uint64_t elements = static_cast<uint64_t>(config->common_layers()) * static_cast<uint64_t>(config->ple_width);
  return (elements + traits.block_elements - 1) / traits.block_elements * traits.block_bytes;
}

void Make(const storage::GgufFile& file) {
  const uint64_t prefix_bytes = PrefixBytes(file);
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    storage::ChecksumFile sums;
    sums.file_bytes = file.shard_bytes(shard);
    for (const storage::GgufTensor& tensor : file.tensors()) {
      if (tensor.shard == shard) {
        sums.entries.push_back(EntryFor(tensor, prefix_bytes));
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

void Verify(const storage::GgufFile& file) {
  uint64_t bad = 0;
  for (int shard = 0; shard < file.shard_count(); ++shard) {
    const std::string& path = file.shard_path(shard);
    const absl::StatusOr<storage::ChecksumFile> sums = storage::ReadChecksumFile(storage::ChecksumPathFor(path));
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
  CLI::App* command = app.add_subcommand(
      kCommand,
      "Write MODEL.gguf.crc32c, by which every row read from flash is checked; or check the model against it");
  auto flags = std::make_shared<Flags>();
  command->add_option("model", flags->model, "GGUF file (of a split one, any part)")
      ->required()
      ->type_name("MODEL.gguf");
  command->add_flag("--verify", flags->verify, "Read the whole model and compare it with its checksums");
  command->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
