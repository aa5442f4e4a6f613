// Attention against double precision over odd ranges and windows, for every instruction set and cache type, and the
// promise that a query's result does not depend on the queries beside it or on how segments were shared out.
#include "engine/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

constexpr int kPositions = 1200;  // three segments, a partial block at the end

// A cache of one KV head: blocks of 32 key rows, then 32 value rows. Rows past kPositions are NaN: reading them shows.
class Cache {
 public:
  Cache(TensorType type, int dim) : type_(type), dim_(dim) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    row_bytes_ = static_cast<int64_t>(*storage::BytesOf(type, static_cast<uint64_t>(dim)));
    const int blocks = (kPositions + kAttentionBlock - 1) / kAttentionBlock;
    memory_.resize(static_cast<size_t>(blocks * 2 * kAttentionBlock * row_bytes_));
    for (int position = 0; position < blocks * kAttentionBlock; ++position) {
      for (int kind = 0; kind < 2; ++kind) {
        uint8_t* row = Row(kind, position);
        for (int d = 0; d < dim; ++d) {
          const float value = position < kPositions ? normal(random) : NAN;
          if (type == TensorType::kF32) {
            reinterpret_cast<float*>(row)[d] = value;
          } else if (type == TensorType::kF16) {
            reinterpret_cast<uint16_t*>(row)[d] = FloatToHalf(value);
          } else if (type == TensorType::kQ4_0) {
            const int code = position < kPositions ? std::clamp(static_cast<int>(value * 3) + 8, 0, 15) : 0;
            row[d / 32 * 18 + 2 + d % 16] |= static_cast<uint8_t>(code << (d % 32 < 16 ? 0 : 4));
            *reinterpret_cast<uint16_t*>(row + d / 32 * 18) = FloatToHalf(position < kPositions ? 1.0f / 3 : NAN);
          } else {  // Q8_0
            row[d / 32 * 34 + 2 + d % 32] = static_cast<uint8_t>(static_cast<int>(value * 40) & 0xff);
            *reinterpret_cast<uint16_t*>(row + d / 32 * 34) = FloatToHalf(position < kPositions ? 1.0f / 40 : NAN);
          }
        }
      }
    }
  }

  AttentionShape shape() const { return {type_, dim_, row_bytes_}; }
  AttentionBlock Block(int block) { return {Row(0, block * kAttentionBlock), Row(1, block * kAttentionBlock)}; }
  std::vector<float> Value(int kind, int position) {
    std::vector<float> row(static_cast<size_t>(dim_));
    DequantizeRow(type_, Row(kind, position), dim_, row.data());
    return row;
  }

 private:
  uint8_t* Row(int kind, int position) {
    const int64_t block = position / kAttentionBlock;
    return memory_.data() + ((block * 2 + kind) * kAttentionBlock + position % kAttentionBlock) * row_bytes_;
  }

  TensorType type_;
  int dim_;
  int64_t row_bytes_ = 0;
  std::vector<uint8_t> memory_;
};

const std::vector<std::pair<int, int>> kRanges = {{0, 1},   {0, 33},    {0, 512},    {0, 513},     {0, 1200},
                                                  {5, 517}, {511, 513}, {700, 1200}, {1023, 1025}, {64, 96},
                                                  {31, 32}, {1, 1025},  {512, 1024}, {1199, 1200}};

class AttentionTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(ForceKernelIsa(GetParam()).ok()); }
  void TearDown() override { ASSERT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok()); }
};

std::vector<float> RandomQuery(int dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f / std::sqrt(static_cast<float>(dim)));
  std::vector<float> q(static_cast<size_t>(dim));
  for (float& value : q) {
    value = normal(random);
  }
  return q;
}

std::vector<float> AttendOne(Cache& cache, const std::vector<float>& q, int begin, int end) {
  std::vector<float> out(q.size());
  std::vector<float> scratch(static_cast<size_t>(AttentionScratchFloats(static_cast<int>(q.size()))));
  const AttentionQuery query = {q.data(), begin, end, out.data()};
  Attend(
      cache.shape(), absl::MakeConstSpan(&query, 1), [&](int block) { return cache.Block(block); }, scratch.data());
  return out;
}

// Weights are e^score with scores off by about dim * 2^-24 * |q||k| (|q||k| is about 3 sqrt(dim) here), the result is a
// convex combination of values of size 1 to 4: 1e-4 holds with room, a wrong position or mask is off by 1e-3 and more.
TEST_P(AttentionTest, AgreesWithDoublePrecision) {
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kQ8_0, TensorType::kQ4_0}) {
    for (const int dim : {32, 64, 256, 512}) {
      Cache cache(type, dim);
      const std::vector<float> q = RandomQuery(dim, 5);
      for (const auto& [begin, end] : kRanges) {
        std::vector<double> expected(q.size(), 0.0);
        double sum = 0;
        for (int position = begin; position < end; ++position) {
          const std::vector<float> key = cache.Value(0, position);
          const std::vector<float> value = cache.Value(1, position);
          double score = 0;
          for (size_t d = 0; d < q.size(); ++d) {
            score += static_cast<double>(q[d]) * key[d];
          }
          sum += std::exp(score);
          for (size_t d = 0; d < q.size(); ++d) {
            expected[d] += std::exp(score) * value[d];
          }
        }
        const std::vector<float> out = AttendOne(cache, q, begin, end);
        for (size_t d = 0; d < q.size(); ++d) {
          ASSERT_NEAR(out[d], expected[d] / sum, 1e-4) << begin << ".." << end << " dim " << dim;
        }
      }
    }
  }
}

TEST_P(AttentionTest, AQuerysResultDoesNotDependOnItsCompany) {
  for (const int dim : {64, 256, 512}) {
    Cache cache(TensorType::kF16, dim);
    std::vector<std::vector<float>> qs;
    std::vector<std::vector<float>> outs;
    std::vector<AttentionQuery> queries;
    for (size_t i = 0; i < kRanges.size(); ++i) {
      qs.push_back(RandomQuery(dim, static_cast<uint32_t>(i)));
      outs.emplace_back(static_cast<size_t>(dim));
    }
    for (size_t i = 0; i < kRanges.size(); ++i) {
      queries.push_back({qs[i].data(), kRanges[i].first, kRanges[i].second, outs[i].data()});
    }
    std::vector<float> scratch(static_cast<size_t>(AttentionScratchFloats(dim)));
    Attend(
        cache.shape(), queries, [&](int block) { return cache.Block(block); }, scratch.data());
    for (size_t i = 0; i < kRanges.size(); ++i) {
      ASSERT_EQ(outs[i], AttendOne(cache, qs[i], kRanges[i].first, kRanges[i].second)) << i << " dim " << dim;
    }
  }
}

TEST_P(AttentionTest, SegmentsComputedApartGiveTheSameBits) {
  Cache cache(TensorType::kF32, 64);
  const std::vector<float> q = RandomQuery(64, 9);
  for (const auto& [begin, end] : kRanges) {
    std::vector<float> scratch(static_cast<size_t>(AttentionScratchFloats(64)));
    std::vector<float> out;
    AttentionState state{};
    for (int segment = begin / kAttentionSegment; segment <= (end - 1) / kAttentionSegment; ++segment) {
      std::vector<float> part(64);
      AttentionState part_state{};
      const AttentionQuery query = {q.data(), begin, end, part.data()};
      AttendSegment(
          cache.shape(), absl::MakeConstSpan(&query, 1), [&](int block) { return cache.Block(block); }, segment,
          &part_state, scratch.data());
      if (out.empty()) {
        out = part;
        state = part_state;
      } else {
        MergeAttention(64, part.data(), part_state, out.data(), &state);
      }
    }
    FinishAttention(64, state, out.data());
    ASSERT_EQ(out, AttendOne(cache, q, begin, end)) << begin << ".." << end;
  }
}

// Scores far apart: the largest takes all, nothing overflows.
TEST_P(AttentionTest, HugeScoresStayFinite) {
  Cache cache(TensorType::kF32, 32);
  std::vector<float> q = RandomQuery(32, 3);
  for (float& value : q) {
    value *= 1e4f;
  }
  for (const float value : AttendOne(cache, q, 0, kPositions)) {
    EXPECT_TRUE(std::isfinite(value));
  }
}

std::string IsaName(const testing::TestParamInfo<std::string>& info) { return info.param; }

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, testing::ValuesIn(AvailableKernelIsas()), IsaName);

}  // namespace
}  // namespace embergate::engine
