// Random weights made straight in the format of the file: whole blocks of any type that we serve, at some gigabytes per
// second, without going through floats. Values have mean 0 and the standard deviation asked for; scales vary from
// block to block by a factor of up to 5/3, so that code which mixes blocks up computes something else.
#ifndef EMBERGATE_ENGINE_CONVERT_RANDOM_BLOCKS_H_
#define EMBERGATE_ENGINE_CONVERT_RANDOM_BLOCKS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// Random 64-bit words, eight independent streams side by side so that the compiler can use vectors. The words depend
// on the seed alone, not on how many are asked for at a time (in multiples of 8) nor on the machine.
// Source: xorshift128+ (S. Vigna, "Further scramblings of Marsaglia's xorshift generators"), shifts 23, 18, 5; seeded
// through splitmix64.
class RandomWords {
 public:
  static constexpr size_t kLanes = 8;

  explicit RandomWords(uint64_t seed);
  void Fill(absl::Span<uint64_t> out);  // out.size() a multiple of kLanes

 private:
  std::array<uint64_t, kLanes> a_;
  std::array<uint64_t, kLanes> b_;
};

class RandomBlocks {
 public:
  static bool Supports(storage::TensorType type);
  // "F32, F16, BF16, Q8_0, ...": for error messages.
  static std::string SupportedNames();

  // `type` is supported; `deviation` > 0.
  RandomBlocks(storage::TensorType type, float deviation, uint64_t seed);

  // Fills whole blocks. A tensor's bytes depend on the constructor's arguments alone if it is filled in multiples of
  // PieceBytes, but for the last part.
  void Fill(absl::Span<uint8_t> blocks);
  // A piece stays in the first-level cache from random bits to finished blocks.
  size_t PieceBytes() const;

 private:
  void FillPiece(absl::Span<uint8_t> blocks);

  const storage::TensorType type_;
  RandomWords words_;
  std::vector<uint64_t> buffer_;
  std::array<uint16_t, 32> scales_{};  // halves that a block's d is drawn from
  std::vector<uint32_t> values_;       // F32, F16, BF16: 4096 equally likely values, as stored
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_RANDOM_BLOCKS_H_
