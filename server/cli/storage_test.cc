// `embergate storage-test`: what the device under a model gives for random reads, what that means for tokens, and the
// settings that follow, saved for later starts.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "server/cli/local_model.h"
#include "server/device_state.h"
#include "storage/device_profile.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

constexpr char kCommand[] = "storage-test";

struct Flags {
  std::string path;
  std::string state = DefaultDeviceStatePath();
  std::string reader = "auto";
  uint64_t read_bytes = 0;  // 0: the model's rows, or 10240
  double seconds = 0.4;
};

void Run(const Flags& flags) {
  storage::DeviceTestOptions options;
  options.seconds_per_depth = flags.seconds;
  options.reader = flags.reader == "uring"   ? storage::ReaderKind::kUring
                   : flags.reader == "pread" ? storage::ReaderKind::kPread
                                             : storage::ReaderKind::kAuto;
  std::string path = flags.path;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t row_bytes = 0;
  // Of a model, the table is read, since that is what will be; of any other file, all of it.
  if (const auto file = storage::GgufFile::Open(flags.path); file.ok()) {
    if (const storage::GgufTensor* table = (*file)->FindTensor(engine::gguf::kPerLayerTokenEmbd); table != nullptr) {
      path = (*file)->shard_path(table->shard);
      offset = table->file_offset;
      bytes = table->bytes;
      row_bytes = table->row_bytes();
      options.read_bytes = static_cast<uint32_t>(std::min<uint64_t>(row_bytes + 512, 1u << 20));
    }
  }
  if (flags.read_bytes != 0) {
    options.read_bytes = static_cast<uint32_t>(flags.read_bytes);
  }
  std::printf("%s\n", path.c_str());
  std::printf("%6s %12s %12s %12s %12s\n", "depth", "reads/s", "MB/s", "mean us", "p99 us");
  options.on_depth = [&](const storage::DeviceDepth& depth) {
    std::printf("%6d %12.0f %12.1f %12.0f %12.0f\n", depth.depth, depth.reads_per_second,
                depth.reads_per_second * options.read_bytes / 1e6, depth.latency_us_mean, depth.latency_us_p99);
    std::fflush(stdout);
  };
  const absl::StatusOr<storage::DeviceProfile> profile = storage::MeasureDevice(path, offset, bytes, options);
  if (!profile.ok()) {
    FailCommand(kCommand, std::string(profile.status().message()), 2);
  }
  std::printf("read through %s, %s, blocks of %u bytes, reads of %u bytes\n", profile->backend.c_str(),
              profile->direct_io ? "O_DIRECT" : "buffered (the file system refuses O_DIRECT)", profile->alignment,
              profile->read_bytes);
  if (row_bytes > 0) {
    std::printf("a row has %llu bytes and costs %.2f times as many in whole blocks\n",
                static_cast<unsigned long long>(row_bytes),
                storage::ReadAmplification(offset, row_bytes, profile->alignment));
  }
  double rate = 0;
  for (const storage::DeviceDepth& depth : profile->depths) {
    if (depth.depth == profile->queue_depth) {
      rate = depth.reads_per_second;
    }
  }
  // A decode step waits for one read per sequence, all at once; a prompt needs one read per token.
  std::printf("verdict: decode hides its reads behind any layer that takes %.0f us; prompts are read at %.0f tokens/s",
              profile->depths.front().latency_us_p99, rate);
  std::printf("%s\n", rate < 500 ? ". That is slow: keep a large --row-cache, or use a faster device." : "");
  std::printf("recommended: --queue-depth %d, rows within %u bytes read together\n", profile->queue_depth,
              profile->merge_gap_bytes);
  if (flags.state.empty()) {
    return;
  }
  if (const absl::Status saved = SaveDeviceProfile(flags.state, path, *profile); !saved.ok()) {
    FailCommand(kCommand, absl::StrCat("not saved: ", saved.message()), 1);
  }
  std::printf("saved in %s\n", flags.state.c_str());
}

}  // namespace

void AddStorageTest(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      kCommand, "Measure random reads of the device under a model and save the settings that suit it");
  auto flags = std::make_shared<Flags>();
  command->add_option("file", flags->path, "A model, or any file of 100 MB or more on the device")
      ->required()
      ->type_name("FILE");
  command->add_option("--state", flags->state, "Where to save the result; empty = nowhere")->capture_default_str();
  command->add_option("--reader", flags->reader, "How to read")
      ->check(CLI::IsMember({"auto", "uring", "pread"}))
      ->capture_default_str();
  command->add_option("--read-bytes", flags->read_bytes, "Size of a read; 0 = a row of the model, or 10 KiB")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 20));
  command->add_option("--seconds", flags->seconds, "Time for each depth")->check(CLI::Range(0.01, 60.0));
  command->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
