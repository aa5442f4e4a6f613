// Rotary positions: inverse frequencies per layer type, and the cosines and sines of a step's positions.
#ifndef EMBERGATE_ENGINE_MODEL_ROPE_H_
#define EMBERGATE_ENGINE_MODEL_ROPE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace embergate::engine {

// f_i = base^(-2i/dim) for i < dim/2, divided by factors[i] where there are any ([dim/2] or empty). A factor of 1e30
// or more means that the pair does not rotate (frequency 0). In float32, as the reference computes them.
std::vector<float> InverseFrequencies(float base, int dim, absl::Span<const float> factors);

// cos and sin [dim/2] of position * f_i; the angle in float32, as the reference.
void RopeAngles(absl::Span<const float> inverse_frequencies, int position, float* cos, float* sin);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_ROPE_H_
