// Hugging Face folders with random weights, for shapes that the golden fixtures do not have.
#ifndef EMBERGATE_TESTS_ENGINE_CONVERT_RANDOM_CHECKPOINT_H_
#define EMBERGATE_TESTS_ENGINE_CONVERT_RANDOM_CHECKPOINT_H_

#include <cstdint>
#include <string>

namespace embergate::engine {

// Shapes that llama.cpp's loaders accept (they fix much for 3n) and whose widths every block type divides:
// 256 wide, per-layer width 256, layers in the pattern (4 sliding, 1 full), the layers that own keys and values ending
// with a full one. Norms and logits are sane. Written as F32, with the tokenizer of the golden fixture of that family.
struct RandomCheckpoint {
  bool gemma4 = true;  // 10 layers, 5 of them sharing, double-wide; otherwise Gemma 3n: 25 layers, 5 sharing
  uint32_t seed = 1;
};

// Fills `folder`, which must exist. Fails the running test on an error.
void WriteRandomCheckpoint(const RandomCheckpoint& checkpoint, const std::string& folder);

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_CONVERT_RANDOM_CHECKPOINT_H_
