#include "server/model_host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "engine/convert/gguf_keys.h"
#include "engine/cpus.h"
#include "engine/kernels/kernels.h"
#include "engine/text/chat.h"
#include "engine/text/vocabulary.h"
#include "server/device_state.h"
#include "server/dram_plan.h"
#include "server/hot_list.h"
#include "storage/base/status_macros.h"
#include "storage/device_profile.h"

namespace embergate::server {
namespace {

absl::Status InFile(const std::string& path, const absl::Status& status) {
  // Errors of the reader name the file already.
  if (status.ok() || status.message().find(path) != absl::string_view::npos) {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

std::optional<engine::ChatFormat> ChatFormatOf(const std::string& architecture, const engine::Tokenizer* tokenizer) {
  if (tokenizer == nullptr) {
    return std::nullopt;
  }
  // The markers of the format have to be tokens: without them it would be plain text that means nothing.
  if (architecture == engine::gguf::kGemma4 && tokenizer->FindPiece("<|turn>") >= 0) {
    return engine::ChatFormat::kGemma4;
  }
  if (architecture == engine::gguf::kGemma3n && tokenizer->FindPiece("<start_of_turn>") >= 0) {
    return engine::ChatFormat::kGemma3n;
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<engine::Tokenizer>> LoadTokenizer(const storage::GgufFile& file) {
  absl::StatusOr<engine::Vocabulary> vocabulary = engine::VocabularyFromGguf(file);
  if (absl::IsNotFound(vocabulary.status())) {
    return nullptr;
  }
  EMBERGATE_RETURN_IF_ERROR(vocabulary.status());
  return engine::Tokenizer::Create(*std::move(vocabulary));
}

std::vector<int32_t> EosIds(const storage::GgufFile& file, const engine::Tokenizer* tokenizer) {
  if (tokenizer != nullptr) {
    return tokenizer->vocabulary().eos_ids;
  }
  std::vector<int32_t> ids;
  for (const int64_t id : file.GetInts(engine::gguf::kEosTokenIds).value_or(std::vector<int64_t>())) {
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// The device under the table is not known yet: some reads tell how many it wants at once. They take less than a second,
// and 0.15 s on a disk whose weights are read in one.
void MeasureDeviceOnce(const storage::GgufFile& file, const std::string& state_path, storage::RowStoreOptions* rows) {
  const storage::GgufTensor* table = file.FindTensor(engine::gguf::kPerLayerTokenEmbd);
  if (table == nullptr) {
    return;
  }
  const std::string& path = file.shard_path(table->shard);
  storage::DeviceTestOptions test;
  test.reader = rows->reader;
  test.read_bytes = static_cast<uint32_t>(std::min<uint64_t>(table->row_bytes() + 512, 1u << 20));
  test.seconds_per_depth = 0.1;
  test.reads_per_depth_max = 500;
  const absl::StatusOr<storage::DeviceProfile> profile =
      storage::MeasureDevice(path, table->file_offset, table->bytes, test);
  if (!profile.ok()) {  // a table too small to measure, or a device that the row store will complain about
    spdlog::debug("device not measured: {}", std::string(profile.status().message()));
    return;
  }
  rows->queue_depth = profile->queue_depth;
  rows->merge_gap_bytes = profile->merge_gap_bytes;
  spdlog::info(
      "flash measured (embergate storage-test does so at length): {:.0f} us for one read, best with {} at once",
      profile->depths.front().latency_us_mean, profile->queue_depth);
  if (state_path.empty()) {
    return;
  }
  if (const absl::Status saved = SaveDeviceProfile(state_path, path, *profile); !saved.ok()) {
    spdlog::info("not kept for the next start: {}", std::string(saved.message()));
  }
}

}  // namespace

absl::StatusOr<uint64_t> TokenizerBytes(const storage::GgufFile& file) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Tokenizer> tokenizer, LoadTokenizer(file));
  return tokenizer != nullptr ? tokenizer->resident_bytes() : 0;
}

engine::SamplingParams SamplingDefaults(const storage::GgufFile& file) {
  engine::SamplingParams params;
  params.temperature = 1.0f;
  params.top_k = 64;
  params.top_p = 0.95f;
  // A value that no request could ask for is not taken from a file either.
  const auto take_float = [&file](const char* key, double low, double high, float& out) {
    if (const auto value = file.GetFloat(key); value.ok() && *value >= low && *value <= high) {
      out = static_cast<float>(*value);
    }
  };
  const auto take_int = [&file](const char* key, int64_t low, int64_t high, int& out) {
    if (const auto value = file.GetInt(key); value.ok() && *value >= low && *value <= high) {
      out = static_cast<int>(*value);
    }
  };
  take_float(engine::gguf::kSamplingTemperature, 0, 100, params.temperature);
  take_int(engine::gguf::kSamplingTopK, 0, 1 << 20, params.top_k);
  take_float(engine::gguf::kSamplingTopP, 1e-6, 1, params.top_p);
  take_float(engine::gguf::kSamplingMinP, 0, 1, params.min_p);
  take_float(engine::gguf::kSamplingPenaltyRepeat, 1e-3, 10, params.repetition_penalty);
  take_int(engine::gguf::kSamplingPenaltyWindow, -1, 1 << 20, params.penalty_window);
  return params;
}

absl::StatusOr<engine::ModelInfo> ModelHost::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<storage::GgufFile>> file = storage::GgufFile::Open(path);
  EMBERGATE_RETURN_IF_ERROR(InFile(path, file.status()));
  file_ = *std::move(file);
  // Before the tokenizer: a file of another architecture has to be refused by that name, not for its vocabulary.
  absl::StatusOr<engine::ModelInfo> info = engine::DecoderModel::Describe(*file_);
  EMBERGATE_RETURN_IF_ERROR(InFile(path, info.status()));
  absl::StatusOr<std::unique_ptr<engine::Tokenizer>> tokenizer = LoadTokenizer(*file_);
  EMBERGATE_RETURN_IF_ERROR(InFile(path, tokenizer.status()));
  tokenizer_ = *std::move(tokenizer);
  return info;
}

absl::StatusOr<uint64_t> ModelHost::Check(const ModelHostOptions& options) {
  ModelHost host;
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ModelInfo info, host.Open(options.path));
  EMBERGATE_RETURN_IF_ERROR(InFile(options.path, CheckDramBudget(*host.file_, info, options, host.tokenizer_bytes())));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<engine::MemoryPart> parts,
                             PlanDram(*host.file_, info, options, host.tokenizer_bytes()));
  return TotalBytes(parts);
}

absl::StatusOr<std::unique_ptr<ModelHost>> ModelHost::Load(const ModelHostOptions& options,
                                                           const engine::DecoderModel::Progress& progress) {
  std::unique_ptr<ModelHost> host(new ModelHost());
  const std::string& path = options.path;
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ModelInfo info, host->Open(path));
  const uint64_t tokenizer_bytes = host->tokenizer_bytes();
  if (host->tokenizer_ == nullptr) {
    spdlog::warn("{} has no tokenizer: requests must give token ids, and answers have no text", path);
  }

  ModelHostOptions planned = options;  // with what the device wants, which costs DRAM as well
  if (options.measure_device && !options.decoder.table_resident) {
    MeasureDeviceOnce(*host->file_, options.device_state_path, &planned.decoder.rows);
  }
  EMBERGATE_RETURN_IF_ERROR(InFile(path, CheckDramBudget(*host->file_, info, planned, tokenizer_bytes)));
  // Where cores are unequal, the kernel would give a step's threads small ones as well as big ones.
  const engine::CpuOrder cpus = engine::UsableCpus();
  const bool pin = cpus.unequal && options.threads <= static_cast<int>(cpus.cpus.size());
  const std::string where =
      pin ? absl::StrCat("the fastest of ", cpus.cpus.size(), " CPUs (",
                         absl::StrJoin(cpus.cpus.begin(), cpus.cpus.begin() + options.threads, " "), ")")
          : absl::StrCat(cpus.cpus.size(), cpus.cpus.size() == 1 ? " CPU" : " CPUs");
  spdlog::info("computing: {} {} on {}, {} kernels for all products", options.threads,
               options.threads == 1 ? "thread" : "threads", where, engine::KernelIsa());
  host->pool_ = std::make_unique<engine::ThreadPool>(options.threads, pin);
  engine::DecoderOptions decoder = planned.decoder;
  decoder.dram_budget_bytes = 0;  // it was checked as a whole
  absl::StatusOr<std::unique_ptr<engine::DecoderModel>> model =
      engine::DecoderModel::Load(*host->file_, decoder, *host->pool_, progress);
  EMBERGATE_RETURN_IF_ERROR(InFile(path, model.status()));
  host->model_ = *std::move(model);

  const int vocabulary = host->tokenizer_ != nullptr ? host->tokenizer_->size() : 0;
  if (vocabulary > host->model_->limits().vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": the tokenizer has ", vocabulary, " tokens but the embedding table only ",
                     host->model_->limits().vocab_size, "; the file was put together from two models"));
  }
  host->served_.kv_tokens_max = host->model_->FreeKvTokens();  // of an empty one
  std::vector<int32_t> eos_ids = EosIds(*host->file_, host->tokenizer_.get());
  host->energy_ = engine::FindEnergyMeter();
  engine::EngineOptions engine_options = options.engine;
  engine_options.energy = host->energy_.get();
  spdlog::info("energy meter: {}", host->energy_ != nullptr ? host->energy_->name() : "none on this device");
  absl::StatusOr<std::unique_ptr<engine::Engine>> engine =
      engine::Engine::Create(*host->model_, host->tokenizer_.get(), eos_ids, engine_options);
  EMBERGATE_RETURN_IF_ERROR(engine.status());
  host->engine_ = *std::move(engine);
  if (pin) {
    host->engine_->RunBetweenSteps([cpu = cpus.cpus.front()] { engine::PinThisThread(cpu); });
  }

  ServedModel& served = host->served_;
  served.engine = host->engine_.get();
  served.tokenizer = host->tokenizer_.get();
  served.info = host->model_->info();
  served.limits = host->model_->limits();
  served.chat_format = ChatFormatOf(served.info.architecture, served.tokenizer);
  served.sampling = SamplingDefaults(*host->file_);
  served.eos_ids = std::move(eos_ids);
  served.waiting_max = options.engine.waiting_max;
  served.dram_budget_bytes = options.decoder.dram_budget_bytes;
  served.memory = [host = host.get(), tokenizer_bytes, process = ProcessParts(options, host->model_->limits())] {
    std::vector<engine::MemoryPart> parts = host->model_->Memory();
    for (engine::MemoryPart& part : host->engine_->Memory()) {
      parts.push_back(std::move(part));
    }
    parts.push_back({"tokenizer", tokenizer_bytes});
    parts.insert(parts.end(), process.begin(), process.end());
    return parts;
  };
  if (served.info.table_bytes > 0 && !decoder.table_resident) {
    served.row_stats = [model = host->model_.get()] { return model->RowStats(); };
  }
  return host;
}

absl::Status ModelHost::SaveHotRows(const std::string& path) {
  // Shared with the job, which may come to it after this has given up.
  struct Answer {
    std::vector<int32_t> tokens;
    absl::Notification done;
  };
  constexpr size_t kTokensMax = 1u << 17;
  const auto answer = std::make_shared<Answer>();
  engine_->RunBetweenSteps([answer, model = model_.get()] {
    answer->tokens = model->HotTokens(kTokensMax);
    answer->done.Notify();
  });
  if (!answer->done.WaitForNotificationWithTimeout(absl::Seconds(5))) {
    return absl::DeadlineExceededError("the engine is busy");
  }
  return SaveHotList(path, served_.info, answer->tokens);
}

absl::StatusOr<int> ModelHost::WarmHotRows(const std::string& path) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, LoadHotList(path, served_.info));
  int warm = 0;
  absl::Notification done;
  engine_->RunBetweenSteps([&] {
    warm = model_->WarmRows(tokens, absl::Seconds(5));
    done.Notify();
  });
  done.WaitForNotification();
  return warm;
}

void ModelHost::ProbeFlash() {
  engine_->RunBetweenSteps([model = model_.get()] { model->ProbeFlash(); });
}

}  // namespace embergate::server
