#include "server/cli/local_model.h"

#include <chrono>
#include <cstdio>
#include <utility>

#include "engine/cpus.h"
#include "engine/kernels/kernels.h"
#include "server/cli/progress.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

engine::KvType ParseKvType(const std::string& name) {
  return name == "f32"    ? engine::KvType::kF32
         : name == "f16"  ? engine::KvType::kF16
         : name == "q8_0" ? engine::KvType::kQ8_0
         : name == "q4_0" ? engine::KvType::kQ4_0
                          : engine::KvType::kAuto;
}

storage::ReaderKind ParseReader(const std::string& name) {
  return name == "uring"   ? storage::ReaderKind::kUring
         : name == "pread" ? storage::ReaderKind::kPread
                           : storage::ReaderKind::kAuto;
}

}  // namespace

void AddLocalModelOptions(CLI::App& app, LocalModelFlags& flags) {
  app.add_option("model", flags.path, "GGUF file of a Gemma 3n or Gemma 4 model")->required()->type_name("MODEL.gguf");
  app.add_option("--threads", flags.threads, "Threads that compute; 0 = one per core")->check(CLI::Range(0, 1024));
  app.add_option(
      "--isa", flags.isa, "Kernels to use instead of the best: " + [] {
        std::string names;
        for (const std::string& name : engine::AvailableKernelIsas()) {
          names += (names.empty() ? "" : ", ") + name;
        }
        return names;
      }());
  app.add_option("--kv-type", flags.kv_type, "Type of the KV cache")
      ->check(CLI::IsMember({"auto", "f32", "f16", "q8_0", "q4_0"}))
      ->capture_default_str();
  app.add_option("--reader", flags.reader, "How rows are read from flash")
      ->check(CLI::IsMember({"auto", "uring", "pread"}))
      ->capture_default_str();
  app.add_option("--row-cache", flags.row_cache_bytes, "Bytes of the row cache, such as 16MiB; 0 = none")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_flag("--table-resident", flags.table_resident, "Keep the per-layer table in DRAM, to compare with flash");
}

void FailCommand(const char* command, const std::string& message, int code) {
  std::fprintf(stderr, "embergate %s: %s\n", command, message.c_str());
  throw CLI::RuntimeError(code);
}

LocalModel LoadLocalModel(const char* command, const LocalModelFlags& flags, engine::DecoderOptions options) {
  if (!flags.isa.empty()) {
    const absl::Status forced = engine::ForceKernelIsa(flags.isa);
    if (!forced.ok()) {
      FailCommand(command, std::string(forced.message()), 2);
    }
  }
  const absl::StatusOr<std::unique_ptr<storage::GgufFile>> file = storage::GgufFile::Open(flags.path);
  if (!file.ok()) {
    FailCommand(command, std::string(file.status().message()), 2);
  }
  options.kv_type = ParseKvType(flags.kv_type);
  options.table_resident = flags.table_resident;
  options.rows.reader = ParseReader(flags.reader);
  options.rows.cache_bytes = flags.row_cache_bytes;
  LocalModel local;
  const engine::CpuOrder cpus = engine::UsableCpus();
  local.pool = std::make_unique<engine::ThreadPool>(engine::ThreadsOrAll(flags.threads), cpus.unequal);
  ProgressBar bar("loading");
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<std::unique_ptr<engine::DecoderModel>> model = engine::DecoderModel::Load(
      **file, options, *local.pool, [&bar](uint64_t done, uint64_t total) { bar.Update(done, total); });
  if (!model.ok()) {
    FailCommand(command, std::string(model.status().message()), 2);
  }
  local.model = *std::move(model);
  local.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (cpus.unequal && local.pool->threads() <= static_cast<int>(cpus.cpus.size())) {
    engine::PinThisThread(cpus.cpus.front());  // the caller works, too
  }
  return local;
}

}  // namespace embergate::server
