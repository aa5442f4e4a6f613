// Loading a model in this process, for the subcommands that compute without a server: logits, bench, eval.
#ifndef EMBERGATE_SERVER_CLI_LOCAL_MODEL_H_
#define EMBERGATE_SERVER_CLI_LOCAL_MODEL_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/model/decoder_model.h"
#include "engine/thread_pool.h"

namespace embergate::server {

struct LocalModelFlags {
  std::string path;
  int threads = 0;  // 0 = all cores
  std::string isa;  // empty = the best that this CPU has
  std::string kv_type = "auto";
  std::string reader = "auto";
  uint64_t row_cache_bytes = 16u << 20;
  bool table_resident = false;
};

struct LocalModel {
  std::unique_ptr<engine::ThreadPool> pool;
  std::unique_ptr<engine::DecoderModel> model;
  double load_seconds = 0;
};

// Declares MODEL.gguf, --threads, --isa, --kv-type, --reader, --row-cache and --table-resident.
void AddLocalModelOptions(CLI::App& app, LocalModelFlags& flags);

// Loads with a progress line on stderr. `options` gives the limits; what the flags say is filled in. Throws
// CLI::RuntimeError(2), as AddSubcommands' callbacks do, after printing what was wrong.
LocalModel LoadLocalModel(const char* command, const LocalModelFlags& flags, engine::DecoderOptions options);

// Prints "embergate COMMAND: message" and throws CLI::RuntimeError(code).
[[noreturn]] void FailCommand(const char* command, const std::string& message, int code);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_LOCAL_MODEL_H_
