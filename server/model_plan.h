// What a model file asks of a board, computed from the file alone: which limits fit its memory, and how fast it can be
// at best. For `embergate plan`.
#ifndef EMBERGATE_SERVER_MODEL_PLAN_H_
#define EMBERGATE_SERVER_MODEL_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/machine_state.h"
#include "server/model_host.h"
#include "storage/gguf_file.h"

namespace embergate::server {

// A board by its data sheet. `read_share` is the part of the bus's peak that programs have been measured to read.
struct Board {
  const char* name;   // as on the command line
  const char* title;  // for people
  double bus_bytes_per_second;
  double read_share;
  double multiply_adds_per_second;  // peak of all big cores: cores x clock x 8-bit multiply-adds per cycle
  const char* source;               // where the three numbers are from

  MachineRates Rates() const;
};
const std::vector<Board>& Boards();
// INVALID_ARGUMENT lists the names.
absl::StatusOr<Board> FindBoard(absl::string_view name);

// Per token, from the tensors' sizes. A step reads the weights once, however many sequences decode in it.
struct TokenCost {
  uint64_t step_weight_bytes = 0;     // read by every decode step
  uint64_t decode_multiply_adds = 0;  // per sequence and step
  uint64_t prompt_multiply_adds = 0;  // per prompt token but the last: layers below the first that shares keys
  uint64_t flash_bytes = 0;           // of one row
};
absl::StatusOr<TokenCost> CostOf(const storage::GgufFile& file);

// An estimate: bytes at 90 % of the read rate, then multiply-adds at 40 % of their rate, nothing overlapped; the shares
// are those of tests/bench/README.md, which decode of one sequence and prefill reach on the machine measured there.
double DecodeTokensPerSecond(const TokenCost& cost, const MachineRates& rates, int sequences);
double PromptTokensPerSecond(const TokenCost& cost, const MachineRates& rates);

struct Fit {
  int slots = 0;
  int context = 0;     // the longest of the powers of two from 512 on, and the model's own limit; 0 = not even 512
  uint64_t bytes = 0;  // of the server, all parts
};
// For 1, 2, 4 and 8 requests at once, the longest context with which PlanDram stays within `dram_bytes`. `options`: the
// other settings, as `serve` would have them.
absl::StatusOr<std::vector<Fit>> FitModel(const storage::GgufFile& file, const ModelHostOptions& options,
                                          uint64_t dram_bytes);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_MODEL_PLAN_H_
