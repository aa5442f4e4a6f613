// How well a model predicts given texts, and how far its predictions are from those of a reference model: what
// `embergate eval` and `embergate convert --check` print.
#ifndef EMBERGATE_ENGINE_CONVERT_EVALUATE_H_
#define EMBERGATE_ENGINE_CONVERT_EVALUATE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/model/decoder_model.h"
#include "engine/text/tokenizer.h"
#include "engine/thread_pool.h"

namespace embergate::engine {

// A model as evaluation needs it: one slot, logits at every position of a step.
absl::StatusOr<std::unique_ptr<DecoderModel>> LoadForEvaluation(const storage::GgufFile& file, int context,
                                                                ThreadPool& pool,
                                                                const DecoderModel::Progress& progress);

// Per scored position: the model saw the tokens before it and is asked for this one. Logarithms are natural.
struct Divergence {
  std::vector<float> kl;    // KL divergence of the model from the reference: sum p_ref log(p_ref / p)
  uint64_t top1_equal = 0;  // positions where both think the same token likeliest
  double mean_kl() const;
  double max_kl() const;
  double quantile_kl(double q) const;  // 0 <= q <= 1
};

struct Evaluation {
  std::vector<float> nll;            // negative log-likelihood of the token that came, per position
  std::vector<float> reference_nll;  // the reference's; empty without one
  Divergence divergence;             // empty without a reference
  double perplexity() const;
  double perplexity_error() const;  // standard error of the above, taking positions as independent
  double reference_perplexity() const;
};

// Each sequence starts afresh; its tokens but the first are scored. `reference` may be null; it must have the same
// vocabulary size. `progress` (may be empty) gets tokens done and in all.
// Errors: INVALID_ARGUMENT (a token beyond the vocabulary, a sequence beyond the context, vocabularies that differ),
// DATA_LOSS (logits that are not finite), or what Step returns.
absl::StatusOr<Evaluation> Evaluate(LanguageModel& model, LanguageModel* reference,
                                    absl::Span<const std::vector<int32_t>> sequences, ThreadPool& pool,
                                    const std::function<void(uint64_t done, uint64_t total)>& progress);

// Cuts a text into windows of `context` tokens, each with <bos> in front, the last perhaps shorter (but >= 2 tokens);
// at most `tokens_max` tokens in all (0 = no bound).
std::vector<std::vector<int32_t>> CutIntoWindows(const Tokenizer& tokenizer, absl::string_view text, int context,
                                                 uint64_t tokens_max);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_EVALUATE_H_
