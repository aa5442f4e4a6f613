#include "engine/convert/random_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "engine/kernels/float16.h"

namespace embergate::engine {

using storage::TensorType;

namespace {

uint64_t SplitMix64(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// How the random bits of a block become weights of mean 0.
struct BlockRecipe {
  TensorType type;
  // Of a value with d = 1, codes being equally likely and sub-scales as FixBlock draws them.
  double unit_deviation;
  // Whether d takes both signs. Codes of these types reach one step further down than up (Q4_0: -8 to 7). With one
  // sign for all blocks that bias would be common to all outputs of a product and grow from layer to layer.
  bool signed_d;
  // m (or d_min) is this times d: what centres codes that start at 0. 0 = the type has none.
  double min_per_d;
};

double UniformDeviation(int levels) { return std::sqrt((levels * levels - 1.0) / 12.0); }

// Root mean square of the integers low..high.
double Rms(int low, int high) {
  double sum = 0;
  for (int i = low; i <= high; ++i) {
    sum += double{1} * i * i;
  }
  return std::sqrt(sum / (high - low + 1));
}

// Root mean square of code - bias for all codes equally likely.
double RmsAround(int levels, double bias) {
  const double mean = (levels - 1) / 2.0 - bias;
  return std::hypot(UniformDeviation(levels), mean);
}

// Of the 16 levels of IQ4_NL and IQ4_XS.
double CodeBookRms() {
  constexpr int kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  double sum = 0;
  for (const int level : kLevels) {
    sum += double{1} * level * level;
  }
  return std::sqrt(sum / 16);
}

// Sub-scales are drawn from 16 neighbouring integers; FixBlock uses the same constants.
constexpr int kScale4Low = 8;    // Q2_K: 8..15, four bits
constexpr int kScale6Low = 40;   // Q4_K, Q5_K: 40..55, six bits
constexpr int kSigned6Low = 16;  // Q3_K, IQ4_XS: 16..31 of either sign, stored plus 32
constexpr int kSigned8Low = 80;  // Q6_K: 80..95 of either sign

const BlockRecipe* FindRecipe(TensorType type) {
  static const BlockRecipe kRecipes[] = {
      {TensorType::kQ8_0, UniformDeviation(255) /* -128 is left out, as quantisers do */, true, 0},
      {TensorType::kQ4_0, RmsAround(16, 8), true, 0},
      {TensorType::kQ4_1, UniformDeviation(16), false, -7.5},
      {TensorType::kQ5_0, RmsAround(32, 16), true, 0},
      {TensorType::kQ5_1, UniformDeviation(32), false, -15.5},
      {TensorType::kQ2_K, UniformDeviation(4) * Rms(kScale4Low, kScale4Low + 7), false, 1.5},
      {TensorType::kQ3_K, RmsAround(8, 4) * Rms(kSigned6Low, kSigned6Low + 15), false, 0},
      {TensorType::kQ4_K, UniformDeviation(16) * Rms(kScale6Low, kScale6Low + 15), false, 7.5},
      {TensorType::kQ5_K, UniformDeviation(32) * Rms(kScale6Low, kScale6Low + 15), false, 15.5},
      {TensorType::kQ6_K, RmsAround(64, 32) * Rms(kSigned8Low, kSigned8Low + 15), false, 0},
      {TensorType::kIQ4_NL, CodeBookRms(), true, 0},
      {TensorType::kIQ4_XS, CodeBookRms() * Rms(kSigned6Low, kSigned6Low + 15), false, 0},
  };
  for (const BlockRecipe& recipe : kRecipes) {
    if (recipe.type == type) {
      return &recipe;
    }
  }
  return nullptr;
}

bool IsFloatType(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 || type == TensorType::kBF16;
}

void StoreU16(uint16_t value, uint8_t* to) { std::memcpy(to, &value, sizeof(value)); }

// Quantile of the standard normal distribution, 0 < p < 1, to about 5e-4: good enough to draw weights from.
// Source: Abramowitz and Stegun 26.2.23.
double NormalQuantileApproximate(double p) {
  const bool lower = p < 0.5;
  const double t = std::sqrt(-2 * std::log(lower ? p : 1 - p));
  const double z =
      t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return lower ? -z : z;
}

// Eight 6-bit scales and eight equal mins in 12 bytes, as Q4_K and Q5_K store them (engine/kernels/dequantize.cc draws
// the layout). `p` holds random bits.
void PackSixBitScales(uint8_t* p) {
  uint8_t scale[8];
  for (int i = 0; i < 8; ++i) {
    scale[i] = static_cast<uint8_t>(kScale6Low + (p[i] & 15));
  }
  for (int i = 0; i < 4; ++i) {
    const uint8_t high = static_cast<uint8_t>(scale[i + 4] >> 4 << 6);
    p[i] = p[i + 4] = static_cast<uint8_t>(scale[i] | high);
    p[i + 8] = static_cast<uint8_t>((scale[i + 4] & 15) | (scale[i + 4] & 15) << 4);
  }
}

// A signed sub-scale plus 32, in six bits: 16 neighbours on either side of 0.
uint8_t Signed6(uint8_t random) {
  const int magnitude = kSigned6Low + (random & 15);
  return static_cast<uint8_t>(32 + ((random & 16) != 0 ? -magnitude : magnitude));
}

void PackQ3KScales(uint8_t* p) {
  uint8_t scale[16];
  for (int i = 0; i < 16; ++i) {
    scale[i] = Signed6(static_cast<uint8_t>(p[i % 12] >> (i / 12 * 3)));
  }
  for (int i = 0; i < 8; ++i) {
    p[i] = static_cast<uint8_t>((scale[i] & 15) | (scale[i + 8] & 15) << 4);
  }
  for (int i = 0; i < 4; ++i) {
    p[8 + i] =
        static_cast<uint8_t>(scale[i] >> 4 | scale[i + 4] >> 4 << 2 | scale[i + 8] >> 4 << 4 | scale[i + 12] >> 4 << 6);
  }
}

void PackIq4XsScales(uint8_t* p) {  // upper bits (2 bytes), then lower nibbles (4)
  uint8_t scale[8];
  for (int i = 0; i < 8; ++i) {
    scale[i] = Signed6(static_cast<uint8_t>(p[i % 6] >> (i / 6 * 3)));
  }
  uint16_t high = 0;
  for (int i = 0; i < 8; ++i) {
    high = static_cast<uint16_t>(high | (scale[i] >> 4) << (2 * i));
  }
  StoreU16(high, p);
  for (int i = 0; i < 4; ++i) {
    p[2 + i] = static_cast<uint8_t>((scale[2 * i] & 15) | (scale[2 * i + 1] & 15) << 4);
  }
}

// The mins that centre a block, for a d of this value.
uint16_t MinFor(uint16_t d, const BlockRecipe& recipe) {
  return FloatToHalf(static_cast<float>(HalfToFloat(d) * recipe.min_per_d));
}

// Turns a block of random bits into a valid one. `scales` holds the 32 possible d.
void FixBlock(const BlockRecipe& recipe, const std::array<uint16_t, 32>& scales, uint8_t* p) {
  const auto draw = [&scales](const uint8_t* random) { return scales[*random & 31]; };
  switch (recipe.type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1: {
      const uint16_t d = draw(p);
      StoreU16(d, p);
      StoreU16(MinFor(d, recipe), p + 2);
      return;
    }
    case TensorType::kQ2_K: {
      for (int i = 0; i < 16; ++i) {
        const int scale = kScale4Low + (p[i] & 7);
        p[i] = static_cast<uint8_t>(scale | scale << 4);
      }
      const uint16_t d = draw(p + 80);
      StoreU16(d, p + 80);
      StoreU16(MinFor(d, recipe), p + 82);
      return;
    }
    case TensorType::kQ3_K:
      PackQ3KScales(p + 96);
      StoreU16(draw(p + 108), p + 108);
      return;
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: {
      const uint16_t d = draw(p);
      StoreU16(d, p);
      StoreU16(MinFor(d, recipe), p + 2);
      PackSixBitScales(p + 4);
      return;
    }
    case TensorType::kQ6_K:
      for (int i = 192; i < 208; ++i) {
        const int magnitude = kSigned8Low + (p[i] & 15);
        p[i] = static_cast<uint8_t>((p[i] & 16) != 0 ? -magnitude : magnitude);
      }
      StoreU16(draw(p + 208), p + 208);
      return;
    case TensorType::kIQ4_XS:
      StoreU16(draw(p), p);
      PackIq4XsScales(p + 2);
      return;
    default:  // Q4_0, Q5_0, Q8_0, IQ4_NL: d, then codes
      StoreU16(draw(p), p);
      return;
  }
}

}  // namespace

RandomWords::RandomWords(uint64_t seed) {
  for (size_t i = 0; i < kLanes; ++i) {
    a_[i] = SplitMix64(&seed);
    b_[i] = SplitMix64(&seed);
  }
}

void RandomWords::Fill(absl::Span<uint64_t> out) {
  std::array<uint64_t, kLanes> a = a_;
  std::array<uint64_t, kLanes> b = b_;
  for (size_t at = 0; at + kLanes <= out.size(); at += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      uint64_t s1 = a[i];
      const uint64_t s0 = b[i];
      out[at + i] = s0 + s1;
      a[i] = s0;
      s1 ^= s1 << 23;
      b[i] = s1 ^ s0 ^ (s1 >> 18) ^ (s0 >> 5);
    }
  }
  a_ = a;
  b_ = b;
}

bool RandomBlocks::Supports(TensorType type) { return IsFloatType(type) || FindRecipe(type) != nullptr; }

std::string RandomBlocks::SupportedNames() {
  std::string names;
  for (uint32_t id = 0; id < 64; ++id) {
    const storage::TensorTypeTraits* const traits = storage::FindTensorType(id);
    if (traits != nullptr && Supports(traits->type)) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", traits->name);
    }
  }
  return names;
}

RandomBlocks::RandomBlocks(TensorType type, float deviation, uint64_t seed) : type_(type), words_(seed) {
  if (IsFloatType(type)) {
    constexpr int kValues = 4096;
    values_.resize(kValues);
    for (int i = 0; i < kValues; ++i) {
      const float value = deviation * static_cast<float>(NormalQuantileApproximate((i + 0.5) / kValues));
      values_[static_cast<size_t>(i)] = type == TensorType::kF32   ? BitsOfFloat(value)
                                        : type == TensorType::kF16 ? FloatToHalf(value)
                                                                   : FloatToBfloat16(value);
    }
    return;
  }
  const BlockRecipe& recipe = *FindRecipe(type);
  // 16 scales from 3/4 to 5/4 of what is asked for; their root mean square exceeds 1 by this much.
  const double mean_d = deviation / recipe.unit_deviation / std::sqrt(1 + 0.25 / 12);
  for (size_t i = 0; i < scales_.size(); ++i) {
    const double d = mean_d * (0.75 + (static_cast<double>(i % 16) + 0.5) / 32);
    scales_[i] = FloatToHalf(static_cast<float>(recipe.signed_d && i >= 16 ? -d : d));
  }
}

size_t RandomBlocks::PieceBytes() const {
  const size_t block_bytes = storage::TraitsOf(type_).block_bytes;
  return std::max<size_t>(1, 8192 / block_bytes) * block_bytes;
}

void RandomBlocks::Fill(absl::Span<uint8_t> blocks) {
  const size_t piece_bytes = PieceBytes();
  for (size_t at = 0; at < blocks.size(); at += piece_bytes) {
    FillPiece(blocks.subspan(at, piece_bytes));
  }
}

void RandomBlocks::FillPiece(absl::Span<uint8_t> blocks) {
  const auto round_up = [](size_t words) { return (words + RandomWords::kLanes - 1) & ~(RandomWords::kLanes - 1); };
  if (IsFloatType(type_)) {
    // Five draws of 12 bits per word.
    const size_t width = storage::TraitsOf(type_).block_bytes;
    const size_t count = blocks.size() / width;
    buffer_.resize(round_up((count + 4) / 5));
    words_.Fill(absl::MakeSpan(buffer_));
    size_t i = 0;
    for (size_t word = 0; i < count; ++word) {
      uint64_t bits = buffer_[word];
      for (int draw = 0; draw < 5 && i < count; ++draw, ++i, bits >>= 12) {
        const uint32_t value = values_[bits & 4095];
        if (width == 4) {
          std::memcpy(blocks.data() + i * 4, &value, 4);
        } else {
          StoreU16(static_cast<uint16_t>(value), blocks.data() + i * 2);
        }
      }
    }
    return;
  }
  buffer_.resize(round_up((blocks.size() + 7) / 8));
  words_.Fill(absl::MakeSpan(buffer_));
  std::memcpy(blocks.data(), buffer_.data(), blocks.size());
  if (type_ == TensorType::kQ8_0) {
    for (uint8_t& byte : blocks) {
      byte = byte == 0x80 ? 0x81 : byte;
    }
  }
  const BlockRecipe& recipe = *FindRecipe(type_);
  const size_t block_bytes = storage::TraitsOf(type_).block_bytes;
  if (type_ == TensorType::kQ4_0 || type_ == TensorType::kQ8_0) {
    // The two that gigabytes are made of, without the switch.
    for (size_t at = 0; at < blocks.size(); at += block_bytes) {
      StoreU16(scales_[blocks[at] & 31], blocks.data() + at);
    }
    return;
  }
  for (size_t at = 0; at < blocks.size(); at += block_bytes) {
    FixBlock(recipe, scales_, blocks.data() + at);
  }
}

}  // namespace embergate::engine
