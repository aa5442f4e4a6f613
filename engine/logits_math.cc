#include "engine/logits_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace embergate::engine {
namespace {

constexpr int kLanes = 8;
// Terms are added in float within a block and in double between blocks: 1024 / 8 = 128 additions per lane lose at
// most 128 * 2^-24 of the lane's sum, and in practice 1e-6.
constexpr size_t kBlock = 1024;

// e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln(2) / 2; e^r by its Taylor series to r^7 (r^8/8! < 6e-9).
inline float Exp(float x) {
  const float clamped = x > -87.0f ? x : -87.0f;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits now hold n
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u;
  const float e = p * std::bit_cast<float>(exponent);
  return x > -87.0f ? e : 0.0f;
}

template <bool kStore>
double SumExpImpl(absl::Span<const float> x, float max, float inverse_temperature, float* out) {
  double sum = 0;
  size_t i = 0;
  while (i < x.size()) {
    const size_t end = std::min(i + kBlock, x.size());
    float lanes[kLanes] = {};
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float e = Exp((x[i + lane] - max) * inverse_temperature);
        if constexpr (kStore) {
          out[i + lane] = e;
        }
        lanes[lane] += e;
      }
    }
    for (int lane = 0; i < end; ++i, ++lane) {
      const float e = Exp((x[i] - max) * inverse_temperature);
      if constexpr (kStore) {
        out[i] = e;
      }
      lanes[lane] += e;
    }
    for (float lane : lanes) {
      sum += lane;
    }
  }
  return sum;
}

}  // namespace

float ExpNonPositive(float x) { return Exp(x); }

double ExpRow(absl::Span<const float> x, float max, float inverse_temperature, float* out) {
  return SumExpImpl<true>(x, max, inverse_temperature, out);
}

double SumExp(absl::Span<const float> x, float max, float inverse_temperature) {
  return SumExpImpl<false>(x, max, inverse_temperature, nullptr);
}

bool MaxFinite(absl::Span<const float> x, float* max) {
  float best[kLanes];
  float poison[kLanes] = {};  // stays 0 while every value is finite, becomes NaN otherwise
  std::fill(best, best + kLanes, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float v = x[i + lane];
      best[lane] = v > best[lane] ? v : best[lane];
      poison[lane] += v * 0.0f;
    }
  }
  for (int lane = 0; i < x.size(); ++i, ++lane) {
    best[lane] = x[i] > best[lane] ? x[i] : best[lane];
    poison[lane] += x[i] * 0.0f;
  }
  *max = *std::max_element(best, best + kLanes);
  float all = 0;
  for (float lane : poison) {
    all += lane;
  }
  return all == 0.0f && !x.empty();
}

int32_t ArgMax(absl::Span<const float> x) {
  float best[kLanes];
  std::fill(best, best + kLanes, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
    }
  }
  for (int lane = 0; i < x.size(); ++i, ++lane) {
    best[lane] = x[i] > best[lane] ? x[i] : best[lane];
  }
  const float max = *std::max_element(best, best + kLanes);
  if (max == -std::numeric_limits<float>::infinity()) {
    return -1;
  }
  return static_cast<int32_t>(std::find(x.begin(), x.end(), max) - x.begin());
}

double LogSumExp(absl::Span<const float> x) {
  const int32_t best = ArgMax(x);
  if (best < 0) {
    return -std::numeric_limits<double>::infinity();
  }
  return x[best] + std::log(SumExp(x, x[best], 1.0f));
}

void TopSelector::Reserve(int width) {
  sample_.reserve(width);
  entries_.reserve(width);
}

// The k-th best of a subset is a lower bound of the k-th best of all, so what lies below it can be skipped unseen. A
// subset of sqrt(n k) values, taken at even distances, leaves about sqrt(n k) entries: 4096 of 262144 for k = 64.
void TopSelector::Gather(absl::Span<const float> x, int k) {
  const size_t n = x.size();
  const size_t sample_size = static_cast<size_t>(std::sqrt(static_cast<double>(n) * k));
  float bound = -std::numeric_limits<float>::infinity();
  if (sample_size >= static_cast<size_t>(k) && sample_size * 4 <= n) {
    const size_t stride = n / sample_size;
    sample_.clear();
    for (size_t i = 0; i < n; i += stride) {
      sample_.push_back(x[i]);
    }
    std::nth_element(sample_.begin(), sample_.begin() + (k - 1), sample_.end(), std::greater<float>());
    bound = sample_[k - 1];
  }
  entries_.clear();
  size_t i = 0;
  constexpr size_t kStripe = 32;
  for (; i + kStripe <= n; i += kStripe) {
    float best[kLanes];
    std::copy_n(x.data() + i, kLanes, best);
    for (size_t j = kLanes; j < kStripe; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        best[lane] = x[i + j + lane] > best[lane] ? x[i + j + lane] : best[lane];
      }
    }
    bool any = false;
    for (float v : best) {
      any |= v >= bound;
    }
    if (!any) {
      continue;
    }
    for (size_t j = i; j < i + kStripe; ++j) {
      if (x[j] >= bound) {
        entries_.push_back({x[j], static_cast<int32_t>(j)});
      }
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= bound) {
      entries_.push_back({x[i], static_cast<int32_t>(i)});
    }
  }
}

ScoredId TopSelector::KthBest(absl::Span<const float> x, int k) {
  Gather(x, k);
  std::nth_element(entries_.begin(), entries_.begin() + (k - 1), entries_.end(), Better);
  return entries_[k - 1];
}

absl::Span<const ScoredId> TopSelector::Best(absl::Span<const float> x, int k) {
  k = std::min<int>(k, static_cast<int>(x.size()));
  if (k <= 0) {
    return {};
  }
  Gather(x, k);
  std::partial_sort(entries_.begin(), entries_.begin() + k, entries_.end(), Better);
  return absl::MakeConstSpan(entries_).subspan(0, k);
}

}  // namespace embergate::engine
