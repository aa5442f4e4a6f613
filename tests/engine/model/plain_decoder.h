// Both decoders once more, straight from ARCHITECTURE's formulas: double precision, one loop per formula, weights as
// a Hugging Face folder has them, config.json read on its own. Shares no code with the engine, the converter or the
// GGUF reader, so that any configuration can be checked, not only those that the golden fixtures have.
#ifndef EMBERGATE_TESTS_ENGINE_MODEL_PLAIN_DECODER_H_
#define EMBERGATE_TESTS_ENGINE_MODEL_PLAIN_DECODER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace embergate::engine {

struct PlainTensor {
  std::vector<uint64_t> shape;  // [out, in] or [n]
  std::vector<float> values;
};

// What the checkpoint of such a configuration holds, without a prefix ("layers.0.mlp.up_proj.weight"). `text` is the
// text configuration. Values are random, scaled so that logits are sane.
std::map<std::string, PlainTensor> RandomPlainWeights(const nlohmann::json& text, uint32_t seed);

// Logits [T, V] of all positions.
std::vector<float> PlainLogits(const nlohmann::json& text, const std::map<std::string, PlainTensor>& weights,
                               const std::vector<int32_t>& ids);

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_MODEL_PLAIN_DECODER_H_
