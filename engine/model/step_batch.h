// The tokens of one step, in the order of chunks and positions.
#ifndef EMBERGATE_ENGINE_MODEL_STEP_BATCH_H_
#define EMBERGATE_ENGINE_MODEL_STEP_BATCH_H_

#include <cstdint>
#include <vector>

namespace embergate::engine {

struct StepToken {
  int32_t id = 0;
  int slot = 0;
  int position = 0;
  int chunk = 0;
  int wanted = -1;  // its place among the tokens whose logits are wanted
};

// Its vectors are reserved once for the largest step.
struct StepBatch {
  std::vector<StepToken> tokens;
  std::vector<int> wanted;               // indices of the tokens whose logits are wanted, ascending
  std::vector<StepToken> wanted_tokens;  // those tokens

  int size() const { return static_cast<int>(tokens.size()); }
  int wanted_size() const { return static_cast<int>(wanted.size()); }
  void Reserve(int tokens_max, int wanted_max) {
    tokens.reserve(tokens_max);
    wanted.reserve(wanted_max);
    wanted_tokens.reserve(wanted_max);
  }
  void Clear() {
    tokens.clear();
    wanted.clear();
    wanted_tokens.clear();
  }
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_STEP_BATCH_H_
