#include "engine/logits_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace embergate::engine {
namespace {

// Four floats in one register, by the vector types that gcc and clang share: SSE2 and NEON both have them, and each
// operation rounds as the scalar one does, so results do not depend on the machine.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
using Uint4 = uint32_t __attribute__((vector_size(16)));

constexpr size_t kStripe = 16;  // floats per iteration: four registers
// Terms are added in float within a block and in double between blocks: 1024 / 8 = 128 additions per lane lose at
// most 128 * 2^-24 of the lane's sum, and in practice 1e-6.
constexpr size_t kBlock = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Float4 Load(const float* p) {
  Float4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Float4 Broadcast(float x) { return Float4{x, x, x, x}; }
inline Float4 Max(Float4 a, Float4 b) { return a > b ? a : b; }
inline float Largest(Float4 v) { return std::max(std::max(v[0], v[1]), std::max(v[2], v[3])); }

// e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln(2) / 2; e^r by its Taylor series to r^7 (r^8/8! < 6e-9).
inline Float4 Exp(Float4 x) {
  const Int4 in_range = x > Broadcast(-87.0f);
  const Float4 clamped = in_range ? x : Broadcast(-87.0f);
  const Float4 shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits now hold n
  const Float4 n = shifted - 12582912.0f;
  const Float4 r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Float4 p = Broadcast(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Uint4 exponent = (std::bit_cast<Uint4>(shifted) << 23) + 0x3F800000u;
  return in_range ? p * std::bit_cast<Float4>(exponent) : Broadcast(0.0f);
}

template <bool kStore>
double SumExpImpl(absl::Span<const float> x, float max, float inverse_temperature, float* out) {
  double sum = 0;
  size_t i = 0;
  while (i < x.size()) {
    const size_t end = std::min(i + kBlock, x.size());
    Float4 low = Broadcast(0.0f);
    Float4 high = Broadcast(0.0f);
    for (; i + 8 <= end; i += 8) {
      const Float4 a = Exp((Load(x.data() + i) - max) * inverse_temperature);
      const Float4 b = Exp((Load(x.data() + i + 4) - max) * inverse_temperature);
      if constexpr (kStore) {
        std::memcpy(out + i, &a, sizeof a);
        std::memcpy(out + i + 4, &b, sizeof b);
      }
      low += a;
      high += b;
    }
    for (; i < end; ++i) {
      const float e = ExpNonPositive((x[i] - max) * inverse_temperature);
      if constexpr (kStore) {
        out[i] = e;
      }
      low[0] += e;
    }
    for (int lane = 0; lane < 4; ++lane) {
      sum += low[lane];
      sum += high[lane];
    }
  }
  return sum;
}

}  // namespace

float ExpNonPositive(float x) { return Exp(Broadcast(x))[0]; }

double ExpRow(absl::Span<const float> x, float max, float inverse_temperature, float* out) {
  return SumExpImpl<true>(x, max, inverse_temperature, out);
}

double SumExp(absl::Span<const float> x, float max, float inverse_temperature) {
  return SumExpImpl<false>(x, max, inverse_temperature, nullptr);
}

bool AllFinite(absl::Span<const float> x) {
  Float4 poison = Broadcast(0.0f);  // stays 0 while every value is finite, becomes NaN otherwise
  Float4 more = Broadcast(0.0f);
  size_t i = 0;
  for (; i + 8 <= x.size(); i += 8) {
    poison += Load(x.data() + i) * 0.0f;
    more += Load(x.data() + i + 4) * 0.0f;
  }
  for (; i < x.size(); ++i) {
    poison[0] += x[i] * 0.0f;
  }
  poison += more;
  return poison[0] + poison[1] + poison[2] + poison[3] == 0.0f;
}

int32_t ArgMax(absl::Span<const float> x) {
  float best = -kInfinity;
  size_t best_block = 0;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    Float4 a = Broadcast(-kInfinity);
    Float4 b = a;
    Float4 c = a;
    Float4 d = a;
    size_t i = begin;
    for (; i + kStripe <= end; i += kStripe) {
      a = Max(Load(x.data() + i), a);
      b = Max(Load(x.data() + i + 4), b);
      c = Max(Load(x.data() + i + 8), c);
      d = Max(Load(x.data() + i + 12), d);
    }
    float block = Largest(Max(Max(a, b), Max(c, d)));
    for (; i < end; ++i) {
      block = std::max(block, x[i]);
    }
    if (block > best) {
      best = block;
      best_block = begin;
    }
  }
  if (best == -kInfinity) {
    return -1;
  }
  return static_cast<int32_t>(std::find(x.begin() + static_cast<std::ptrdiff_t>(best_block), x.end(), best) -
                              x.begin());
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
  const Float4 bounds = Broadcast(bound);
  for (; i + kStripe <= n; i += kStripe) {
    const float* p = x.data() + i;
    const Int4 reached =
        (Load(p) >= bounds) | (Load(p + 4) >= bounds) | (Load(p + 8) >= bounds) | (Load(p + 12) >= bounds);
    if ((reached[0] | reached[1] | reached[2] | reached[3]) == 0) {
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
