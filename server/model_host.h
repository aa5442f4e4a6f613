// A GGUF file made ready to serve: opened, checked, loaded, with its tokenizer and its engine.
#ifndef EMBERGATE_SERVER_MODEL_HOST_H_
#define EMBERGATE_SERVER_MODEL_HOST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/decoder_model.h"
#include "engine/text/tokenizer.h"
#include "engine/thread_pool.h"
#include "server/served_model.h"
#include "storage/gguf_file.h"

namespace embergate::server {

struct ModelHostOptions {
  std::string path;
  int threads = 1;
  engine::DecoderOptions decoder;
  engine::EngineOptions engine;
  // Of decoder.dram_budget_bytes, what another model holds that is served meanwhile.
  uint64_t dram_taken_bytes = 0;
  // The server's own bounds, for the DRAM budget.
  uint64_t transport_bytes_max = 0;  // gRPC's buffers
  uint64_t pending_bytes_max = 0;    // answer that waits for a slow client, per stream
  // Unless a depth was asked for or is known: measures the device for about a second before loading, and keeps the
  // result for later starts.
  bool measure_device = false;
  std::string device_state_path;  // where that is kept; empty = nowhere
};

// Owns all of it; destroyed in reverse order. Threads: Load and Check by one each; served() by any.
class ModelHost {
 public:
  // `progress` as in DecoderModel::Load. Errors say which file and what to do; see also DecoderModel::Load.
  static absl::StatusOr<std::unique_ptr<ModelHost>> Load(const ModelHostOptions& options,
                                                         const engine::DecoderModel::Progress& progress);

  // DRAM that a server of this model would hold, from the file alone. Errors: Load's, as far as they can be told before
  // weights are read; RESOURCE_EXHAUSTED when the budget does not hold it.
  static absl::StatusOr<uint64_t> Check(const ModelHostOptions& options);

  const ServedModel& served() const { return served_; }
  engine::Engine& engine() { return *engine_; }

  // The row cache's hot list (server/hot_list.h). Save asks the engine thread, and gives up when that is busy for
  // seconds. Warm blocks until the rows are there, or a few seconds have passed; returns how many are.
  absl::Status SaveHotRows(const std::string& path);
  absl::StatusOr<int> WarmHotRows(const std::string& path);
  // Has a few rows read soon, cached or not.
  void ProbeFlash();

 private:
  ModelHost() = default;
  // Opens the file: file_, tokenizer_ and what Describe says.
  absl::StatusOr<engine::ModelInfo> Open(const std::string& path);
  uint64_t tokenizer_bytes() const { return tokenizer_ != nullptr ? tokenizer_->resident_bytes() : 0; }

  std::unique_ptr<storage::GgufFile> file_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  std::unique_ptr<engine::ThreadPool> pool_;
  std::unique_ptr<engine::DecoderModel> model_;
  std::unique_ptr<engine::EnergyMeter> energy_;  // null: the device has none
  std::unique_ptr<engine::Engine> engine_;
  ServedModel served_;
};

// DRAM that the tokenizer in `file` takes; 0 without one.
absl::StatusOr<uint64_t> TokenizerBytes(const storage::GgufFile& file);

// The file's own generation settings (general.sampling.*), else temperature 1, top_k 64, top_p 0.95. Values out of
// range are ignored.
engine::SamplingParams SamplingDefaults(const storage::GgufFile& file);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_MODEL_HOST_H_
