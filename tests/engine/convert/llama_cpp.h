// llama.cpp beside us, as npm's node-llama-cpp carries it (prebuilt v0.5.0): next-token probabilities of the same
// file, and its library of block formats. For tests that run where npm is reachable, or the package is already in the
// build folder, and skip elsewhere.
#ifndef EMBERGATE_TESTS_ENGINE_CONVERT_LLAMA_CPP_H_
#define EMBERGATE_TESTS_ENGINE_CONVERT_LLAMA_CPP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace embergate::engine {

using Probabilities = std::vector<std::vector<double>>;  // [position][id]

// Installs the package unless it is there; false (with npm's words on stderr) where that is not possible.
bool HaveLlamaCpp();
// What a test that skips says.
std::string NoLlamaCpp();

// llama.cpp's probabilities after each of `tokens`, for each file. An entry stays empty, and the running test fails,
// where llama.cpp refuses the file.
std::vector<Probabilities> LlamaCppProbabilities(const std::vector<std::string>& paths,
                                                 const std::vector<int32_t>& tokens);
// Ours of one file, a token at a time.
Probabilities OurProbabilities(const std::string& path, const std::vector<int32_t>& tokens);

// Mean over the positions of sum p log(p / q). Probabilities that were printed as 0 count as 1e-12.
double MeanKl(const Probabilities& p, const Probabilities& q);

// A function of its libggml-base by name; null where the platform's package has none.
void* LlamaCppSymbol(const char* name);

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_CONVERT_LLAMA_CPP_H_
