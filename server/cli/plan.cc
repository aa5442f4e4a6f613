// `embergate plan`: what fits a board and how fast it will be, from the model file and the board's rates alone.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "server/cli/local_model.h"
#include "server/config.h"
#include "server/machine_state.h"
#include "server/model_plan.h"
#include "server/process_memory.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

constexpr char kCommand[] = "plan";

struct Flags {
  std::string path;
  std::string board;
  std::string ram;
  std::string system = "300MiB";
  std::string kv_type = "auto";
  std::string row_cache = "16MiB";
  std::string state = DefaultMachineStatePath();
  bool json = false;
};

uint64_t Size(const char* flag, const std::string& text) {
  const absl::StatusOr<uint64_t> bytes = ParseByteSize(text);
  if (!bytes.ok()) {
    FailCommand(kCommand, absl::StrCat(flag, ": ", bytes.status().message()), 2);
  }
  return *bytes;
}

// Memory for the server, and where that number is from.
struct Memory {
  uint64_t ram_bytes = 0;  // 0: this machine's own, as --dram-budget auto finds it
  uint64_t server_bytes = 0;
};

Memory MemoryFor(const Flags& flags) {
  Memory memory;
  if (flags.ram.empty()) {
    const absl::StatusOr<uint64_t> budget = DetectDramBudget();
    if (!budget.ok()) {
      FailCommand(kCommand, "cannot tell how much memory this machine has; give --board-ram", 2);
    }
    memory.server_bytes = *budget;
    return memory;
  }
  const uint64_t system = Size("--system", flags.system);
  memory.ram_bytes = Size("--board-ram", flags.ram);
  if (memory.ram_bytes <= system) {
    FailCommand(kCommand, absl::StrCat("--board-ram ", flags.ram, " leaves nothing beside --system ", flags.system), 2);
  }
  memory.server_bytes = memory.ram_bytes - system;
  return memory;
}

struct Speed {
  MachineRates rates;  // zeros: not known
  std::string source;
};

Speed SpeedFor(const Flags& flags) {
  Speed speed;
  if (!flags.board.empty()) {
    const absl::StatusOr<Board> board = FindBoard(flags.board);
    if (!board.ok()) {
      FailCommand(kCommand, std::string(board.status().message()), 2);
    }
    speed.rates = board->Rates();
    speed.source = absl::StrFormat("%s by its data sheet, not measured: %s", board->title, board->source);
    return speed;
  }
  const absl::StatusOr<MachineRates> measured = LoadMachineRates(flags.state);
  if (measured.ok()) {
    speed.rates = *measured;
    speed.source =
        absl::StrFormat("measured here by bench --machine: %d threads, %s", measured->threads, measured->isa);
  } else if (!absl::IsNotFound(measured.status())) {
    FailCommand(kCommand, std::string(measured.status().message()), 2);
  }
  return speed;
}

// The one to begin with: a few requests at once and a useful context, else what there is.
const Fit* Suggested(const std::vector<Fit>& fits) {
  const Fit* best = nullptr;
  for (const Fit& fit : fits) {
    if (fit.context >= 4096 && fit.slots <= 4) {
      best = &fit;
    }
  }
  for (const Fit& fit : fits) {
    if (best == nullptr && fit.context > 0) {
      best = &fit;
    }
  }
  return best;
}

std::string PerSecond(double tokens) { return absl::StrFormat(tokens < 9.95 ? "%.1f" : "%.0f", tokens); }

nlohmann::ordered_json Json(const Memory& memory, const Speed& speed, const TokenCost& cost,
                            const std::vector<Fit>& fits) {
  nlohmann::ordered_json json = {{"ram_bytes", memory.ram_bytes},
                                 {"server_bytes", memory.server_bytes},
                                 {"step_weight_bytes", cost.step_weight_bytes},
                                 {"decode_multiply_adds_per_token", cost.decode_multiply_adds},
                                 {"prompt_multiply_adds_per_token", cost.prompt_multiply_adds},
                                 {"flash_bytes_per_token", cost.flash_bytes},
                                 {"rates_from", speed.source},
                                 {"read_bytes_per_second", speed.rates.read_bytes_per_second},
                                 {"multiply_adds_per_second", speed.rates.multiply_adds_per_second},
                                 {"fits", nlohmann::json::array()}};
  for (const Fit& fit : fits) {
    nlohmann::ordered_json entry = {{"slots", fit.slots}, {"context", fit.context}, {"dram_bytes", fit.bytes}};
    if (!speed.source.empty()) {
      entry["decode_tokens_per_second"] = DecodeTokensPerSecond(cost, speed.rates, fit.slots);
      entry["prompt_tokens_per_second"] = PromptTokensPerSecond(cost, speed.rates);
    }
    json["fits"].push_back(std::move(entry));
  }
  return json;
}

void Print(const Flags& flags, const engine::ModelInfo& info, const Memory& memory, const Speed& speed,
           const TokenCost& cost, const std::vector<Fit>& fits) {
  const bool rated = !speed.source.empty();
  std::printf("%s (%s): %s read by every step, %s on flash\n", info.name.c_str(), info.architecture.c_str(),
              HumanBytes(cost.step_weight_bytes).c_str(), HumanBytes(info.table_bytes).c_str());
  if (memory.ram_bytes > 0) {
    std::printf("memory: %s, of which %s for the system, %s for the server\n", HumanBytes(memory.ram_bytes).c_str(),
                flags.system.c_str(), HumanBytes(memory.server_bytes).c_str());
  } else {
    std::printf("memory: %s for the server, as this machine has it free\n", HumanBytes(memory.server_bytes).c_str());
  }
  if (rated) {
    std::printf("speed: reads %.1f GB/s, %.0f billion multiply-adds/s; %s\n", speed.rates.read_bytes_per_second * 1e-9,
                speed.rates.multiply_adds_per_second * 1e-9, speed.source.c_str());
  } else {
    std::printf("speed: not known; run `embergate bench --machine` on the board, or give --board\n");
  }
  std::printf("\n  %16s %14s %10s %16s %14s\n", "requests at once", "context each", "DRAM", "decode, each", "together");
  for (const Fit& fit : fits) {
    if (fit.context == 0) {
      std::printf("  %16d %14s %10s  does not fit\n", fit.slots, "-", HumanBytes(fit.bytes).c_str());
      continue;
    }
    std::string each = "-";
    std::string together = "-";
    if (rated) {
      const double tokens = DecodeTokensPerSecond(cost, speed.rates, fit.slots);
      each = PerSecond(tokens / fit.slots) + " tok/s";
      together = PerSecond(tokens) + " tok/s";
    }
    std::printf("  %16d %14d %10s %16s %14s\n", fit.slots, fit.context, HumanBytes(fit.bytes).c_str(), each.c_str(),
                together.c_str());
  }
  if (rated && cost.prompt_multiply_adds > 0) {
    const double prompt = PromptTokensPerSecond(cost, speed.rates);
    std::printf("\nprompts: about %s tok/s", PerSecond(prompt).c_str());
    if (cost.flash_bytes > 0) {
      std::printf(", if flash gives as many random reads of %s each second (`embergate storage-test` tells)",
                  HumanBytes(cost.flash_bytes).c_str());
    }
    std::printf("\n");
  }
}

void Run(const Flags& flags) {
  const auto file = storage::GgufFile::Open(flags.path);
  if (!file.ok()) {
    FailCommand(kCommand, std::string(file.status().message()), 2);
  }
  const absl::StatusOr<engine::ModelInfo> info = engine::DecoderModel::Describe(**file);
  const absl::StatusOr<TokenCost> cost = CostOf(**file);
  for (const absl::Status& status : {info.status(), cost.status()}) {
    if (!status.ok()) {
      FailCommand(kCommand, absl::StrCat(flags.path, ": ", status.message()), 2);
    }
  }
  ServeFlags serve;  // everything else as `serve` has it by default
  serve.model.model = flags.path;
  serve.model.kv_type = flags.kv_type;
  serve.model.row_cache = flags.row_cache;
  serve.model.dram_budget = "0";
  const absl::StatusOr<ServeConfig> config = Resolve(serve);
  if (!config.ok()) {
    FailCommand(kCommand, std::string(config.status().message()), 2);
  }
  const Memory memory = MemoryFor(flags);
  const Speed speed = SpeedFor(flags);
  const absl::StatusOr<std::vector<Fit>> fits = FitModel(**file, config->model, memory.server_bytes);
  if (!fits.ok()) {
    FailCommand(kCommand, absl::StrCat(flags.path, ": ", fits.status().message()), 2);
  }
  const Fit* suggested = Suggested(*fits);
  if (flags.json) {
    std::printf("%s\n", Json(memory, speed, *cost, *fits).dump(2).c_str());
  } else {
    Print(flags, *info, memory, speed, *cost, *fits);
  }
  if (suggested == nullptr) {
    FailCommand(kCommand,
                absl::StrCat("one request with 512 tokens of context needs ", HumanBytes(fits->front().bytes), ", ",
                             HumanBytes(fits->front().bytes - memory.server_bytes), " more than there is"),
                1);
  }
  if (!flags.json) {
    std::printf("\nto begin with:\n  embergate serve --model %s --dram-budget %lluMiB --slots %d --context %d%s\n",
                flags.path.c_str(), static_cast<unsigned long long>(memory.server_bytes >> 20), suggested->slots,
                suggested->context, flags.kv_type == "auto" ? "" : absl::StrCat(" --kv-type ", flags.kv_type).c_str());
  }
}

}  // namespace

void AddPlan(CLI::App& app) {
  CLI::App* plan = app.add_subcommand("plan", "Say what of a model fits a board, and how fast it will be");
  auto flags = std::make_shared<Flags>();
  plan->add_option("model", flags->path, "GGUF file of a Gemma 3n or Gemma 4 model")
      ->required()
      ->type_name("MODEL.gguf");
  std::string names;
  for (const Board& board : Boards()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", board.name);
  }
  plan->add_option("--board", flags->board, absl::StrCat("Estimate the speed of another board: ", names));
  plan->add_option("--board-ram", flags->ram,
                   "Memory of that board, such as 4GB; without it, what this machine has free")
      ->type_name("SIZE");
  plan->add_option("--system", flags->system, "Of --board-ram, what kernel and other programs need")
      ->type_name("SIZE")
      ->capture_default_str();
  plan->add_option("--kv-type", flags->kv_type, "Type of the KV cache")
      ->check(CLI::IsMember({"auto", "f32", "f16", "q8_0", "q4_0"}))
      ->capture_default_str();
  plan->add_option("--row-cache", flags->row_cache, "DRAM for recently used embedding rows")
      ->type_name("SIZE")
      ->capture_default_str();
  plan->add_option("--state", flags->state, "What bench --machine has measured")
      ->type_name("FILE")
      ->capture_default_str();
  plan->add_flag("--json", flags->json, "One JSON object, sizes in bytes");
  plan->footer(
      "Reads the file's header only. Speeds are estimates: bytes over bandwidth plus multiply-adds over their rate.\n"
      "Exit codes: 0 something fits, 1 nothing does, 2 the file or a setting cannot be used.");
  plan->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
