#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/philox.h"

namespace embergate::engine {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-4f;
constexpr size_t kBiasMax = 4096;
constexpr int kBuckets = 4096;
constexpr size_t kRankedSmall = 2048;  // below this, halving beats another pass over buckets

absl::Status OutOfRange(absl::string_view field, double value, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat("sampling.", field, " is ", value, "; it must be ", range));
}

}  // namespace

absl::Status ValidateSampling(const SamplingParams& params, int vocab_size) {
  // Each comparison is written so that NaN fails it.
  if (!(params.temperature >= 0 && params.temperature <= 100)) {
    return OutOfRange("temperature", params.temperature, "0 to 100 (0 = greedy)");
  }
  if (params.top_k < 0) {
    return OutOfRange("top_k", params.top_k, "0 or more (0 = off)");
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return OutOfRange("top_p", params.top_p, "above 0 and at most 1 (1 = off)");
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return OutOfRange("min_p", params.min_p, "0 to 1 (0 = off)");
  }
  if (!(params.typical_p > 0 && params.typical_p <= 1)) {
    return OutOfRange("typical_p", params.typical_p, "above 0 and at most 1 (1 = off)");
  }
  if (!(params.repetition_penalty >= 0.01f && params.repetition_penalty <= 100)) {
    return OutOfRange("repetition_penalty", params.repetition_penalty, "0.01 to 100 (1 = off)");
  }
  if (!(std::fabs(params.presence_penalty) <= 100)) {
    return OutOfRange("presence_penalty", params.presence_penalty, "-100 to 100 (0 = off)");
  }
  if (!(std::fabs(params.frequency_penalty) <= 100)) {
    return OutOfRange("frequency_penalty", params.frequency_penalty, "-100 to 100 (0 = off)");
  }
  if (params.penalty_window < -1) {
    return OutOfRange("penalty_window", params.penalty_window, "-1 (all tokens) or more");
  }
  if (params.logit_bias.size() > kBiasMax) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias has ", params.logit_bias.size(),
                                                   " entries; at most ", kBiasMax, " are allowed"));
  }
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias names token ", id, "; ids are 0 to ", vocab_size - 1));
    }
    // -inf is a ban; anything else must leave the logit finite.
    if (bias != kNegativeInfinity && !(std::fabs(bias) <= 1e4f)) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias of token ", id, " is ", bias, "; it must be -10000 to 10000, or -inf"));
    }
  }
  return absl::OkStatus();
}

Sampler::Sampler(int vocab_size) {
  top_.Reserve(vocab_size);
  candidates_.reserve(vocab_size);
  ranked_.reserve(vocab_size);
  changed_.reserve(vocab_size);
  seen_.resize(vocab_size);
  weights_.resize(vocab_size);
  buckets_.resize(kBuckets);
}

size_t Sampler::BytesFor(int vocab_size) {
  return static_cast<size_t>(vocab_size) * (sizeof(float) + sizeof(ScoredId) + sizeof(Candidate) + sizeof(Ranked) +
                                            sizeof(std::pair<int32_t, float>) + sizeof(uint16_t) + sizeof(float));
}

absl::StatusOr<int32_t> Sampler::Sample(const SamplingParams& params, const SampleInput& input) {
  if (!AllFinite(input.logits)) {
    const auto bad =
        std::find_if_not(input.logits.begin(), input.logits.end(), [](float v) { return std::isfinite(v); });
    return absl::InternalError(absl::StrCat("the model gave a logit that is not finite (token ",
                                            bad - input.logits.begin(), " at position ", input.tokens.size() - 1, ")"));
  }
  changed_.clear();
  Adjust(params, input);
  const int32_t id = Choose(params, input);
  for (auto it = changed_.rbegin(); it != changed_.rend(); ++it) {
    input.logits[it->first] = it->second;
  }
  if (id < 0) {
    return absl::InvalidArgumentError("sampling.logit_bias excludes every token");
  }
  return id;
}

void Sampler::Change(absl::Span<float> logits, int32_t id, float value) {
  changed_.emplace_back(id, logits[id]);
  logits[id] = value;
}

void Sampler::Adjust(const SamplingParams& params, const SampleInput& input) {
  const size_t size = input.tokens.size();
  const size_t window = params.penalty_window < 0 ? size : std::min(size, static_cast<size_t>(params.penalty_window));
  const absl::Span<const int32_t> recent = input.tokens.subspan(size - window);
  constexpr uint16_t kSeenMax = std::numeric_limits<uint16_t>::max();
  if (params.repetition_penalty != 1.0f) {
    for (int32_t id : recent) {
      if (seen_[id] == 0) {
        seen_[id] = 1;
        const float l = input.logits[id];
        Change(input.logits, id, l > 0 ? l / params.repetition_penalty : l * params.repetition_penalty);
      }
    }
    for (int32_t id : recent) {
      seen_[id] = 0;
    }
  }
  if (params.presence_penalty != 0 || params.frequency_penalty != 0) {
    const size_t generated = size - std::min(size, static_cast<size_t>(input.prompt_tokens));
    const absl::Span<const int32_t> own = input.tokens.subspan(size - std::min(window, generated));
    for (int32_t id : own) {
      seen_[id] += seen_[id] < kSeenMax ? 1 : 0;
    }
    for (int32_t id : own) {
      if (seen_[id] > 0) {
        Change(input.logits, id, input.logits[id] - params.presence_penalty - params.frequency_penalty * seen_[id]);
        seen_[id] = 0;
      }
    }
  }
  for (const auto& [id, bias] : params.logit_bias) {
    Change(input.logits, id, input.logits[id] + bias);
  }
  for (int32_t id : input.suppressed) {
    Change(input.logits, id, kNegativeInfinity);
  }
}

int32_t Sampler::Choose(const SamplingParams& params, const SampleInput& input) {
  const int32_t best = ArgMax(input.logits);
  if (best < 0 || params.temperature < kGreedyBelow || params.top_k == 1) {
    return best;
  }
  const double u = UniformAt(params.seed, input.stream, input.tokens.size());
  const bool has_top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < input.logits.size();
  if (!has_top_k && params.typical_p >= 1 && params.top_p >= 1 && params.min_p <= 0) {
    const double total = ExpRow(input.logits, input.logits[best], 1.0f / params.temperature, weights_.data());
    return Draw(weights_, total, u);
  }
  Gather(params, input.logits, input.logits[best]);
  KeepTypical(params.typical_p);
  KeepTopP(params.top_p);
  KeepMinP(params.min_p);
  const double target = u * total_;
  double sum = 0;
  int32_t chosen = best;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight > 0) {
      chosen = candidate.id;
      sum += candidate.weight;
      if (sum > target) {
        break;
      }
    }
  }
  return chosen;
}

int32_t Sampler::Draw(absl::Span<const float> weights, double total, double u) {
  constexpr size_t kBlock = 256;
  const double target = u * total;
  double sum = 0;
  int32_t chosen = -1;  // the block's last possible one, should rounding leave its sum below the target
  for (size_t begin = 0; begin < weights.size(); begin += kBlock) {
    const absl::Span<const float> block = weights.subspan(begin, kBlock);
    float lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= block.size(); i += 8) {
      for (size_t lane = 0; lane < 8; ++lane) {
        lanes[lane] += block[i + lane];
      }
    }
    double mass = 0;
    for (float lane : lanes) {
      mass += lane;
    }
    for (; i < block.size(); ++i) {
      mass += block[i];
    }
    if (sum + mass <= target && begin + kBlock < weights.size()) {
      sum += mass;
      continue;
    }
    for (size_t k = 0; k < block.size(); ++k) {
      if (block[k] > 0) {
        chosen = static_cast<int32_t>(begin + k);
        sum += block[k];
        if (sum > target) {
          return chosen;
        }
      }
    }
    if (chosen >= 0) {
      return chosen;
    }
  }
  return ArgMax(weights);
}

void Sampler::Gather(const SamplingParams& params, absl::Span<const float> logits, float max) {
  const float inverse_temperature = 1.0f / params.temperature;
  candidates_.clear();
  total_ = 0;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    for (const ScoredId& entry : top_.Best(logits, params.top_k)) {
      const float scaled = (entry.score - max) * inverse_temperature;
      candidates_.push_back({entry.id, scaled, ExpNonPositive(scaled)});
    }
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    for (const Candidate& candidate : candidates_) {
      total_ += candidate.weight;
    }
    return;
  }
  total_ = ExpRow(logits, max, inverse_temperature, weights_.data());
  float floor = 0;
  if (params.typical_p >= 1) {
    if (params.top_p < 1) {
      // Entries below (1 - p) * total / n hold less than 1 - p together, so the best ones reach p without them.
      floor = static_cast<float>((1.0 - params.top_p) * total_ / static_cast<double>(logits.size()) * 0.999);
    } else {
      floor = params.min_p;  // the best token's weight is 1
    }
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights_[i] >= floor) {
      candidates_.push_back({static_cast<int32_t>(i), (logits[i] - max) * inverse_temperature, weights_[i]});
    }
  }
}

void Sampler::KeepTypical(float typical_p) {
  if (typical_p >= 1.0f) {
    return;
  }
  // -log p = log(total) - scaled, so no candidate needs a logarithm.
  double weighted = 0;
  for (const Candidate& candidate : candidates_) {
    weighted += candidate.weight > 0 ? double{candidate.weight} * candidate.scaled : 0;
  }
  // |-log p - H| = |scaled - mean|, mean = sum(p * scaled): the log(total) in both cancels.
  const double mean = weighted / total_;
  const double total = total_;
  const auto key = [&](const Candidate& candidate) {
    return candidate.weight > 0 ? static_cast<float>(-std::fabs(candidate.scaled - mean)) : kNegativeInfinity;
  };
  ranked_.clear();
  for (const Candidate& candidate : candidates_) {
    ranked_.push_back({key(candidate), candidate.weight, candidate.id});
  }
  const Ranked last = MassCut(typical_p * total);
  total_ = 0;
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    const bool out = Precedes(last, {key(candidate), candidate.weight, candidate.id});
    total_ += out ? 0 : candidate.weight;
    return out;
  });
}

void Sampler::KeepTopP(float top_p) {
  if (top_p >= 1.0f) {
    return;
  }
  ranked_.clear();
  for (const Candidate& candidate : candidates_) {
    ranked_.push_back({candidate.weight, candidate.weight, candidate.id});
  }
  const Ranked last = MassCut(top_p * total_);
  total_ = 0;
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    const bool out = Precedes(last, {candidate.weight, candidate.weight, candidate.id});
    total_ += out ? 0 : candidate.weight;
    return out;
  });
}

void Sampler::KeepMinP(float min_p) {
  if (min_p <= 0.0f) {
    return;
  }
  float best = 0;
  for (const Candidate& candidate : candidates_) {
    best = std::max(best, candidate.weight);
  }
  const float floor = min_p * best;
  total_ = 0;
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    const bool out = candidate.weight < floor;
    total_ += out ? 0 : candidate.weight;
    return out;
  });
}

double Sampler::NarrowRanked(double mass) {
  double before = 0;
  while (ranked_.size() > kRankedSmall) {
    float low = std::numeric_limits<float>::infinity();
    float high = kNegativeInfinity;
    for (const Ranked& entry : ranked_) {
      low = entry.key < low && entry.key != kNegativeInfinity ? entry.key : low;
      high = entry.key > high ? entry.key : high;
    }
    const float scale = (kBuckets - 1) / (high - low);
    if (!(high > low) || !std::isfinite(scale)) {
      break;  // all equal, or too close to tell apart this way
    }
    // Bucket 0 is the best. The map only has to be monotonic, which rounding keeps.
    const auto bucket = [&](float key) {
      return key == kNegativeInfinity ? kBuckets - 1 : static_cast<int>((high - key) * scale);
    };
    std::fill(buckets_.begin(), buckets_.end(), 0.0);
    int last = 0;
    for (const Ranked& entry : ranked_) {
      const int index = bucket(entry.key);
      buckets_[static_cast<size_t>(index)] += entry.weight;
      last = std::max(last, index);
    }
    // Rounding may leave the mass unreached: then the cut is in the last bucket that has anybody.
    int cut = 0;
    while (cut < last && before + buckets_[static_cast<size_t>(cut)] < mass) {
      before += buckets_[static_cast<size_t>(cut)];
      ++cut;
    }
    const size_t size = ranked_.size();
    std::erase_if(ranked_, [&](const Ranked& entry) { return bucket(entry.key) != cut; });
    if (ranked_.size() == size) {
      break;
    }
  }
  return before;
}

// Narrows by buckets, then halves the range that holds the cut: linear in all, where sorting would be n log n.
Sampler::Ranked Sampler::MassCut(double mass) {
  double before = NarrowRanked(mass);
  size_t begin = 0;
  size_t end = ranked_.size();
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(ranked_.begin() + begin, ranked_.begin() + middle, ranked_.begin() + end, Precedes);
    double upper = before;
    for (size_t i = begin; i < middle; ++i) {
      upper += ranked_[i].weight;
    }
    if (upper >= mass) {
      end = middle;
    } else {
      before = upper;
      begin = middle;
    }
  }
  return ranked_[begin];
}

}  // namespace embergate::engine
