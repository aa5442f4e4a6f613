#include "server/model_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/config.h"
#include "engine/model/decoder_model.h"
#include "engine/model/file_report.h"
#include "server/dram_plan.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

constexpr double kReadShare = 0.9;
constexpr double kMultiplyAddShare = 0.4;

// The layer of "blk.12.attn_k.weight"; -1 for a tensor of the whole model.
int LayerOf(absl::string_view name) {
  int layer = -1;
  if (absl::StartsWith(name, "blk.")) {
    name.remove_prefix(4);
    if (!absl::SimpleAtoi(name.substr(0, name.find('.')), &layer)) {
      return -1;
    }
  }
  return layer;
}

uint64_t Sum(const std::vector<engine::MemoryPart>& parts) {
  uint64_t total = 0;
  for (const engine::MemoryPart& part : parts) {
    total += part.bytes;
  }
  return total;
}

}  // namespace

MachineRates Board::Rates() const {
  MachineRates rates;
  rates.read_bytes_per_second = bus_bytes_per_second * read_share;
  rates.multiply_adds_per_second = multiply_adds_per_second;
  return rates;
}

// Cores per cycle: Cortex-A76, A78: two 128-bit pipes, each one SDOT = 16 multiply-adds. Cortex-A72 has no SDOT: one
// SMLAL of 8 each cycle and the sums between them, about 6.
const std::vector<Board>& Boards() {
  static const auto* boards = new std::vector<Board>{
      {"pi5", "Raspberry Pi 5", 17.1e9, 0.6, 4 * 2.4e9 * 32,
       "LPDDR4X-4267, 32 bits; 4 Cortex-A76 at 2.4 GHz (product brief)"},
      {"pi4", "Raspberry Pi 4", 12.8e9, 0.43, 4 * 1.8e9 * 6,
       "LPDDR4-3200, 32 bits, of which STREAM copies 5.5 GB/s; 4 Cortex-A72 at 1.8 GHz (product brief)"},
      {"rk3588", "RK3588 (Rock 5, Orange Pi 5)", 34.1e9, 0.6, 4 * 2.4e9 * 32,
       "LPDDR4X-4267, 64 bits; 4 Cortex-A76 at 2.4 GHz, the 4 small cores not counted (data sheet)"},
      {"orin-nano", "Jetson Orin Nano 8 GB", 68e9, 0.6, 6 * 1.5e9 * 32,
       "LPDDR5, 128 bits; 6 Cortex-A78AE at 1.5 GHz, the GPU not used (data sheet)"},
  };
  return *boards;
}

absl::StatusOr<Board> FindBoard(absl::string_view name) {
  for (const Board& board : Boards()) {
    if (name == board.name) {
      return board;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no board \"", name, "\" is known; there are ",
                   absl::StrJoin(Boards(), ", ", [](std::string* out, const Board& board) { *out += board.name; })));
}

absl::StatusOr<TokenCost> CostOf(const storage::GgufFile& file) {
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ModelConfig config, engine::ReadModelConfig(file));
  TokenCost cost;
  for (const storage::GgufTensor& tensor : file.tensors()) {
    const engine::TensorPlacement placement = engine::PlaceTensor(tensor, &config);
    if (placement.place == engine::FilePlace::kFlash) {
      cost.flash_bytes += tensor.row_bytes();
    }
    if (placement.place != engine::FilePlace::kDram) {
      continue;
    }
    // The tied embedding is looked up by row and then read whole as the output head.
    cost.step_weight_bytes += tensor.bytes;
    if (tensor.dims.size() < 2) {
      continue;  // scales
    }
    cost.decode_multiply_adds += tensor.elements();
    const int layer = LayerOf(tensor.name);
    if (placement.part != engine::FilePart::kEmbedding && layer < config.own_layers) {
      cost.prompt_multiply_adds += tensor.elements();
    }
  }
  return cost;
}

double DecodeTokensPerSecond(const TokenCost& cost, const MachineRates& rates, int sequences) {
  const double read = static_cast<double>(cost.step_weight_bytes) / (rates.read_bytes_per_second * kReadShare);
  const double compute =
      static_cast<double>(cost.decode_multiply_adds) * sequences / (rates.multiply_adds_per_second * kMultiplyAddShare);
  return sequences / (read + compute);
}

double PromptTokensPerSecond(const TokenCost& cost, const MachineRates& rates) {
  return rates.multiply_adds_per_second * kMultiplyAddShare / static_cast<double>(cost.prompt_multiply_adds);
}

absl::StatusOr<std::vector<Fit>> FitModel(const storage::GgufFile& file, const ModelHostOptions& options,
                                          uint64_t dram_bytes) {
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ModelInfo info, engine::DecoderModel::Describe(file));
  EMBERGATE_ASSIGN_OR_RETURN(const uint64_t tokenizer_bytes, TokenizerBytes(file));
  std::vector<int> contexts;
  for (int context = 512; context < info.context_trained; context *= 2) {
    contexts.push_back(context);
  }
  contexts.push_back(info.context_trained);
  std::vector<Fit> fits;
  for (const int slots : {1, 2, 4, 8}) {
    Fit fit;
    fit.slots = slots;
    for (const int context : contexts) {
      ModelHostOptions tried = options;
      tried.decoder.slots_max = slots;
      tried.decoder.context_max = context;
      EMBERGATE_ASSIGN_OR_RETURN(const std::vector<engine::MemoryPart> parts,
                                 PlanDram(file, info, tried, tokenizer_bytes));
      const uint64_t bytes = Sum(parts);
      if (context == contexts.front()) {
        fit.bytes = bytes;  // what it would need at least
      }
      if (bytes > dram_bytes) {
        break;
      }
      fit.context = context;
      fit.bytes = bytes;
    }
    fits.push_back(fit);
  }
  return fits;
}

}  // namespace embergate::server
