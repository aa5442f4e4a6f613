#include "engine/convert/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/logits_math.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

// Positions per step: 32 rows of 262144 logits are 32 MiB for each model.
constexpr int kStepTokens = 32;

double Mean(const std::vector<float>& values) {
  return values.empty() ? 0.0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// One sequence through one model, step by step.
class Pass {
 public:
  static absl::StatusOr<Pass> Open(LanguageModel& model, int tokens) {
    EMBERGATE_RETURN_IF_ERROR(model.OpenSlot(0, tokens));
    return Pass(model);
  }
  Pass(Pass&& other) noexcept : model_(std::exchange(other.model_, nullptr)) {}
  Pass& operator=(Pass&&) = delete;
  ~Pass() {
    if (model_ != nullptr) {
      model_->CloseSlot(0);
    }
  }

  absl::Status Step(absl::Span<const int32_t> tokens, int start, absl::Span<float> logits) {
    Chunk chunk;
    chunk.tokens = tokens;
    chunk.start = start;
    chunk.logits = LogitsWanted::kAll;
    EMBERGATE_RETURN_IF_ERROR(model_->Step(absl::MakeSpan(&chunk, 1), logits, nullptr));
    return chunk.status;
  }

 private:
  explicit Pass(LanguageModel& model) : model_(&model) {}
  LanguageModel* model_;
};

// What one position yields.
struct PositionScore {
  float nll = 0;
  float reference_nll = 0;
  float kl = 0;
  bool top1_equal = false;
  bool finite = true;
};

// `reference` may be empty.
PositionScore ScorePosition(absl::Span<const float> logits, absl::Span<const float> reference, int32_t next) {
  PositionScore score;
  if (!AllFinite(logits) || !AllFinite(reference)) {
    score.finite = false;
    return score;
  }
  const double log_sum = LogSumExp(logits);
  score.nll = static_cast<float>(log_sum - logits[next]);
  if (reference.empty()) {
    return score;
  }
  const double reference_log_sum = LogSumExp(reference);
  score.reference_nll = static_cast<float>(reference_log_sum - reference[next]);
  const int32_t best = ArgMax(reference);
  score.top1_equal = ArgMax(logits) == best;
  // sum p (log p - log q) = sum p (l - m) - (log sum e^l - log sum e^m)
  const float max = reference[best];
  double weighted = 0;
  double sum = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double p = ExpNonPositive(reference[i] - max);
    sum += p;
    weighted += p * (static_cast<double>(reference[i]) - logits[i]);
  }
  // Rounding may leave a hair below zero.
  score.kl = static_cast<float>(std::max(0.0, weighted / sum - (reference_log_sum - log_sum)));
  return score;
}

absl::Status CheckSequences(const LanguageModel& model, absl::Span<const std::vector<int32_t>> sequences) {
  const ModelLimits& limits = model.limits();
  for (const std::vector<int32_t>& sequence : sequences) {
    if (sequence.size() > static_cast<size_t>(limits.context_max)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a sequence has ", sequence.size(), " tokens, the context ", limits.context_max));
    }
    for (const int32_t id : sequence) {
      if (id < 0 || id >= limits.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is outside the vocabulary of ", limits.vocab_size));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecoderModel>> LoadForEvaluation(const storage::GgufFile& file, int context,
                                                                ThreadPool& pool,
                                                                const DecoderModel::Progress& progress) {
  DecoderOptions options;
  options.context_max = context;
  options.slots_max = 1;
  options.step_tokens_max = kStepTokens;
  options.logit_rows_max = kStepTokens;
  return DecoderModel::Load(file, options, pool, progress);
}

double Divergence::mean_kl() const { return Mean(kl); }
double Divergence::max_kl() const { return kl.empty() ? 0.0 : *std::max_element(kl.begin(), kl.end()); }
double Divergence::quantile_kl(double q) const {
  if (kl.empty()) {
    return 0.0;
  }
  std::vector<float> sorted = kl;
  const size_t at = std::min(sorted.size() - 1, static_cast<size_t>(q * static_cast<double>(sorted.size())));
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(at), sorted.end());
  return sorted[at];
}

double Evaluation::perplexity() const { return std::exp(Mean(nll)); }
double Evaluation::reference_perplexity() const { return std::exp(Mean(reference_nll)); }
double Evaluation::perplexity_error() const {
  if (nll.size() < 2) {
    return 0.0;
  }
  const double mean = Mean(nll);
  double squares = 0;
  for (const float value : nll) {
    squares += (value - mean) * (value - mean);
  }
  const double n = static_cast<double>(nll.size());
  return std::exp(mean) * std::sqrt(squares / (n - 1) / n);
}

absl::StatusOr<Evaluation> Evaluate(LanguageModel& model, LanguageModel* reference,
                                    absl::Span<const std::vector<int32_t>> sequences, ThreadPool& pool,
                                    const std::function<void(uint64_t done, uint64_t total)>& progress) {
  const int vocab = model.limits().vocab_size;
  EMBERGATE_RETURN_IF_ERROR(CheckSequences(model, sequences));
  int step_tokens = std::min({kStepTokens, model.limits().step_tokens_max, model.limits().logit_rows_max});
  if (reference != nullptr) {
    if (reference->limits().vocab_size != vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("the models' vocabularies differ: ", vocab, " and ", reference->limits().vocab_size, " tokens"));
    }
    EMBERGATE_RETURN_IF_ERROR(CheckSequences(*reference, sequences));
    step_tokens = std::min({step_tokens, reference->limits().step_tokens_max, reference->limits().logit_rows_max});
  }
  uint64_t total = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    total += sequence.size() < 2 ? 0 : sequence.size() - 1;
  }
  std::vector<float> logits(static_cast<size_t>(step_tokens) * vocab);
  std::vector<float> reference_logits(reference != nullptr ? logits.size() : 0);
  std::vector<PositionScore> scores(step_tokens);
  Evaluation result;
  for (const std::vector<int32_t>& sequence : sequences) {
    if (sequence.size() < 2) {
      continue;
    }
    // The last token is only predicted, never fed.
    const int fed = static_cast<int>(sequence.size()) - 1;
    EMBERGATE_ASSIGN_OR_RETURN(Pass pass, Pass::Open(model, fed));
    std::optional<Pass> reference_pass;
    if (reference != nullptr) {
      EMBERGATE_ASSIGN_OR_RETURN(Pass opened, Pass::Open(*reference, fed));
      reference_pass.emplace(std::move(opened));
    }
    for (int start = 0; start < fed; start += step_tokens) {
      const int n = std::min(step_tokens, fed - start);
      const absl::Span<const int32_t> tokens = absl::MakeConstSpan(sequence).subspan(start, n);
      const size_t floats = static_cast<size_t>(n) * vocab;
      EMBERGATE_RETURN_IF_ERROR(pass.Step(tokens, start, absl::MakeSpan(logits.data(), floats)));
      if (reference != nullptr) {
        EMBERGATE_RETURN_IF_ERROR(reference_pass->Step(tokens, start, absl::MakeSpan(reference_logits.data(), floats)));
      }
      pool.ParallelFor(n, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const size_t at = static_cast<size_t>(i) * vocab;
          const auto row = absl::MakeConstSpan(logits).subspan(at, vocab);
          const auto reference_row = reference == nullptr ? absl::Span<const float>()
                                                          : absl::MakeConstSpan(reference_logits).subspan(at, vocab);
          scores[i] = ScorePosition(row, reference_row, sequence[start + i + 1]);
        }
      });
      for (int i = 0; i < n; ++i) {
        const PositionScore& score = scores[i];
        if (!score.finite) {
          return absl::DataLossError(absl::StrCat("logits at position ", start + i, " are not finite"));
        }
        result.nll.push_back(score.nll);
        if (reference != nullptr) {
          result.reference_nll.push_back(score.reference_nll);
          result.divergence.kl.push_back(score.kl);
          result.divergence.top1_equal += score.top1_equal ? 1 : 0;
        }
      }
      if (progress) {
        progress(result.nll.size(), total);
      }
    }
  }
  return result;
}

std::vector<std::vector<int32_t>> CutIntoWindows(const Tokenizer& tokenizer, absl::string_view text, int context,
                                                 uint64_t tokens_max) {
  EncodeOptions options;
  const std::vector<int32_t> ids = tokenizer.Encode(text, options);
  const uint64_t count = tokens_max == 0 ? ids.size() : std::min<uint64_t>(ids.size(), tokens_max);
  const int32_t bos = tokenizer.vocabulary().bos_id;
  std::vector<std::vector<int32_t>> windows;
  for (uint64_t at = 0; at < count;) {
    std::vector<int32_t> window;
    if (bos >= 0) {
      window.push_back(bos);
    }
    const uint64_t n = std::min<uint64_t>(count - at, static_cast<uint64_t>(context) - window.size());
    window.insert(window.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                  ids.begin() + static_cast<std::ptrdiff_t>(at + n));
    at += n;
    if (window.size() >= 2) {
      windows.push_back(std::move(window));
    }
  }
  return windows;
}

}  // namespace embergate::engine
