// From a row of logits to the next token.
#ifndef EMBERGATE_ENGINE_SAMPLER_H_
#define EMBERGATE_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/logits_math.h"
#include "engine/request.h"

namespace embergate::engine {

// INVALID_ARGUMENT, naming the field and its limits, for parameters that no sampler could use.
absl::Status ValidateSampling(const SamplingParams& params, int vocab_size);

struct SampleInput {
  absl::Span<float> logits;              // [vocab_size] raw; altered during the call, as before afterwards
  absl::Span<const int32_t> tokens;      // prompt and generated so far
  int prompt_tokens = 0;                 // how many of them are the prompt
  absl::Span<const int32_t> suppressed;  // ids that must not be chosen (end-of-sequence before tokens_min)
  uint64_t stream = 0;                   // which of several samples of one prompt
};

// One for all sequences: it holds scratch memory, never a sequence's state. The choice is a function of the
// parameters, the row and the tokens alone; its random number is the tokens.size()-th of stream (seed, stream).
//
// Filters work as if each renormalised what the one before it left. Among equals the lower id is better.
//   penalties    repetition: l > 0 ? l / r : l * r for ids in the window (prompt included);
//                presence and frequency: l -= presence + frequency * count, over generated tokens in the window
//   bias         added; then temperature; below 1e-4 the best token is taken and nothing else applies
//   top_k        the k best
//   typical_p    the smallest set of least |-log p - H| with mass >= typical_p (Meister et al. 2022)
//   top_p        the smallest set of best tokens with mass >= top_p
//   min_p        those with p >= min_p * p of the best
// Threads: one. Allocates only in the constructor (46 bytes per vocabulary entry).
class Sampler {
 public:
  explicit Sampler(int vocab_size);

  // Errors: INTERNAL if a logit is not finite (it names the first id), INVALID_ARGUMENT if every token is excluded.
  absl::StatusOr<int32_t> Sample(const SamplingParams& params, const SampleInput& input);

  size_t resident_bytes() const { return BytesFor(static_cast<int>(seen_.size())); }
  static size_t BytesFor(int vocab_size);

 private:
  struct Candidate {
    int32_t id;
    float scaled;  // (logit - max) / temperature
    float weight;  // e^scaled
  };

  void Change(absl::Span<float> logits, int32_t id, float value);
  void Adjust(const SamplingParams& params, const SampleInput& input);
  int32_t Choose(const SamplingParams& params, const SampleInput& input);
  // Fills candidates_ (in the order of ids) with what top_k leaves or, without top_k, with what the filters after it
  // could keep; total_ is the mass that they refer to.
  void Gather(const SamplingParams& params, absl::Span<const float> logits, float max);
  // The entry of a row of weights that is met when their running sum passes u * total.
  static int32_t Draw(absl::Span<const float> weights, double total, double u);
  void KeepTypical(float typical_p);
  void KeepTopP(float top_p);
  void KeepMinP(float min_p);
  // The last entry, best first, of the smallest set of ranked_ whose mass reaches `mass`.
  struct Ranked {
    float key;  // higher is better
    float weight;
    int32_t id;
  };
  static bool Precedes(const Ranked& a, const Ranked& b) { return a.key != b.key ? a.key > b.key : a.id < b.id; }
  Ranked MassCut(double mass);
  // MassCut's rough part: leaves in ranked_ a small range that holds the cut; returns the mass before that range.
  double NarrowRanked(double mass);

  TopSelector top_;
  std::vector<Candidate> candidates_;
  std::vector<Ranked> ranked_;
  std::vector<double> buckets_;
  std::vector<float> weights_;                      // [vocab_size]
  double total_ = 0;                                // the mass that the next filter's share refers to
  std::vector<std::pair<int32_t, float>> changed_;  // id and raw value, in the order of the changes
  std::vector<uint16_t> seen_;                      // per id: times in the window; zero between calls
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_SAMPLER_H_
