// The sampler against a plain one that sorts everything in doubles, against exact distributions, and against the
// rules of its header one by one.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "engine/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomRow(int size, uint32_t seed, float spread = 4) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(static_cast<size_t>(size));
  for (float& v : row) {
    v = normal(random);
  }
  return row;
}

SampleInput Input(std::vector<float>& logits, const std::vector<int32_t>& tokens) {
  SampleInput input;
  input.logits = absl::MakeSpan(logits);
  input.tokens = tokens;
  input.prompt_tokens = static_cast<int>(tokens.size());
  return input;
}

// ---- The plain one --------------------------------------------------------------------------------
struct Entry {
  int32_t id;
  double p;
};

void Normalise(std::vector<Entry>& entries) {
  double sum = 0;
  for (const Entry& e : entries) {
    sum += e.p;
  }
  for (Entry& e : entries) {
    e.p /= sum;
  }
}

void KeepMass(std::vector<Entry>& entries, double mass) {
  double sum = 0;
  size_t kept = 0;
  while (kept < entries.size() && (kept == 0 || sum < mass)) {
    sum += entries[kept++].p;
  }
  entries.resize(kept);
}

// What is left of a row after all filters, by id, with probabilities.
std::vector<Entry> PlainDistribution(const SamplingParams& params, const SampleInput& input) {
  std::vector<double> l(input.logits.begin(), input.logits.end());
  const size_t n = input.tokens.size();
  const size_t window = params.penalty_window < 0 ? n : std::min<size_t>(n, static_cast<size_t>(params.penalty_window));
  std::set<int32_t> seen;
  std::vector<int> count(l.size());
  for (size_t i = n - window; i < n; ++i) {
    seen.insert(input.tokens[i]);
    count[static_cast<size_t>(input.tokens[i])] += i >= static_cast<size_t>(input.prompt_tokens) ? 1 : 0;
  }
  for (int32_t id : seen) {
    double& v = l[static_cast<size_t>(id)];
    v = v > 0 ? v / params.repetition_penalty : v * params.repetition_penalty;
  }
  for (size_t id = 0; id < l.size(); ++id) {
    l[id] -= count[id] > 0 ? params.presence_penalty + params.frequency_penalty * count[id] : 0;
  }
  for (const auto& [id, bias] : params.logit_bias) {
    l[static_cast<size_t>(id)] += bias;
  }
  for (int32_t id : input.suppressed) {
    l[static_cast<size_t>(id)] = -kInfinity;
  }
  std::vector<Entry> entries;
  const double max = *std::max_element(l.begin(), l.end());
  for (size_t id = 0; id < l.size(); ++id) {
    entries.push_back({static_cast<int32_t>(id), std::exp((l[id] - max) / params.temperature)});
  }
  const auto by_p = [](const Entry& a, const Entry& b) { return a.p != b.p ? a.p > b.p : a.id < b.id; };
  std::sort(entries.begin(), entries.end(), by_p);
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < entries.size()) {
    entries.resize(static_cast<size_t>(params.top_k));
  }
  Normalise(entries);
  if (params.typical_p < 1) {
    double entropy = 0;
    for (const Entry& e : entries) {
      entropy -= e.p > 0 ? e.p * std::log(e.p) : 0;
    }
    std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
      const double x = std::fabs(-std::log(a.p) - entropy);
      const double y = std::fabs(-std::log(b.p) - entropy);
      return x != y ? x < y : a.id < b.id;
    });
    KeepMass(entries, params.typical_p);
    Normalise(entries);
    std::sort(entries.begin(), entries.end(), by_p);
  }
  if (params.top_p < 1) {
    KeepMass(entries, params.top_p);
    Normalise(entries);
  }
  const double floor = entries.front().p * params.min_p;
  entries.erase(std::remove_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.p < floor; }),
                entries.end());
  Normalise(entries);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });
  return entries;
}

int32_t PlainSample(const SamplingParams& params, const SampleInput& input, double* distance) {
  const std::vector<Entry> entries = PlainDistribution(params, input);
  const double u = UniformAt(params.seed, input.stream, input.tokens.size());
  double sum = 0;
  *distance = 1;
  for (const Entry& e : entries) {
    sum += e.p;
    *distance = std::min(*distance, std::fabs(sum - u));
    if (sum > u) {
      return e.id;
    }
  }
  return entries.back().id;
}

// ---- Tests ----------------------------------------------------------------------------------------
TEST(PhiloxTest, GivesThePublishedNumbers) {
  // Known answers of the reference implementation (Random123, kat_vectors, philox4x32-10).
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformNumbersFillTheUnitInterval) {
  std::vector<int> buckets(20);
  for (uint64_t i = 0; i < 20000; ++i) {
    const double u = UniformAt(7, 0, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++buckets[static_cast<size_t>(u * 20)];
  }
  for (int count : buckets) {
    EXPECT_NEAR(count, 1000, 5 * std::sqrt(1000));  // five standard deviations
  }
  EXPECT_NE(UniformAt(7, 0, 0), UniformAt(8, 0, 0));
  EXPECT_NE(UniformAt(7, 0, 0), UniformAt(7, 1, 0));
}

TEST(LogitsMathTest, ExpIsAccurateToSinglePrecision) {
  double worst = 0;
  for (int i = 0; i <= 870000; i += 7) {
    const float x = -static_cast<float>(i) * 1e-4f;
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::fabs(ExpNonPositive(x) - exact) / exact);
  }
  EXPECT_LT(worst, 2e-7);
  EXPECT_EQ(ExpNonPositive(0), 1.0f);
  EXPECT_EQ(ExpNonPositive(-kInfinity), 0.0f);
  EXPECT_EQ(ExpNonPositive(-100), 0.0f);
}

TEST(LogitsMathTest, SumsAndMaximaOfOddLengthsEqualThePlainOnes) {
  for (int size : {1, 2, 7, 8, 9, 31, 33, 1023, 1024, 1025, 4099}) {
    std::vector<float> row = RandomRow(size, static_cast<uint32_t>(size));
    const auto best = std::max_element(row.begin(), row.end());
    const float max = *best;
    EXPECT_TRUE(AllFinite(row));
    EXPECT_EQ(ArgMax(row), best - row.begin());
    double sum = 0;
    for (float v : row) {
      sum += std::exp(static_cast<double>(v));
    }
    EXPECT_NEAR(LogSumExp(row), std::log(sum), 1e-6) << size;
    std::vector<float> terms(row.size());
    EXPECT_DOUBLE_EQ(ExpRow(row, max, 0.5f, terms.data()), SumExp(row, max, 0.5f));
    for (size_t i = 0; i < row.size(); ++i) {
      EXPECT_EQ(terms[i], ExpNonPositive((row[i] - max) * 0.5f));
    }
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
      std::vector<float> poisoned = row;
      poisoned[row.size() / 2] = bad;
      EXPECT_FALSE(AllFinite(poisoned)) << size << " " << bad;
    }
  }
}

TEST(TopSelectorTest, EqualsASortForAllLengthsAndCounts) {
  TopSelector top;
  top.Reserve(70000);
  for (int size : {1, 5, 31, 32, 33, 1000, 20011, 70000}) {
    for (int ties : {0, 1}) {
      std::vector<float> row = RandomRow(size, static_cast<uint32_t>(size));
      if (ties == 1) {
        for (float& v : row) {
          v = std::round(v);  // a few dozen distinct values: mostly ties
        }
      }
      std::vector<ScoredId> all;
      for (size_t i = 0; i < row.size(); ++i) {
        all.push_back({row[i], static_cast<int32_t>(i)});
      }
      std::sort(all.begin(), all.end(), Better);
      for (int k : {1, 2, 10, 64, 1000, 70000}) {
        const auto best = top.Best(row, k);
        ASSERT_EQ(best.size(), std::min<size_t>(static_cast<size_t>(k), row.size()));
        for (size_t i = 0; i < best.size(); ++i) {
          ASSERT_EQ(best[i].id, all[i].id) << size << " " << k << " " << ties << " at " << i;
          ASSERT_EQ(best[i].score, all[i].score);
        }
      }
    }
  }
}

TEST(TopSelectorTest, OrderedRowsAreNoWorseThanRandomOnes) {
  // A row that rises makes every entry a new best; the result must be right all the same.
  std::vector<float> row(50000);
  std::iota(row.begin(), row.end(), 0.0f);
  TopSelector top;
  top.Reserve(50000);
  const auto best = top.Best(row, 3);
  EXPECT_EQ(best[0].id, 49999);
  EXPECT_EQ(best[2].id, 49997);
}

TEST(SamplerTest, EqualsThePlainSamplerForRandomParameters) {
  std::mt19937 random(5);
  Sampler small(512);
  Sampler large(12000);  // enough for the linear-time cut
  int compared = 0;
  for (int trial = 0; trial < 2100; ++trial) {
    const bool is_large = trial >= 2000;
    Sampler& sampler = is_large ? large : small;
    std::vector<float> logits =
        RandomRow(is_large ? 12000 : 512, static_cast<uint32_t>(trial), trial % 3 == 0 ? 0.5f : 4.0f);
    const std::vector<float> before = logits;
    std::vector<int32_t> tokens(random() % 50 + 1);
    for (int32_t& id : tokens) {
      id = static_cast<int32_t>(random() % 512);
    }
    const auto chance = [&](int percent) { return static_cast<int>(random() % 100) < percent; };
    const auto uniform = [&] { return static_cast<float>(random() % 1000 + 1) / 1001.0f; };
    SamplingParams params;
    params.temperature = 0.2f + 2 * uniform();
    params.top_k = chance(is_large ? 10 : 40) ? static_cast<int>(random() % 600) : 0;
    params.top_p = chance(40) ? uniform() : 1.0f;
    params.min_p = chance(40) ? uniform() * 0.3f : 0.0f;
    params.typical_p = chance(40) ? uniform() : 1.0f;
    params.repetition_penalty = chance(40) ? 0.5f + uniform() : 1.0f;
    params.presence_penalty = chance(40) ? 2 * uniform() - 1 : 0.0f;
    params.frequency_penalty = chance(40) ? 2 * uniform() - 1 : 0.0f;
    params.penalty_window = static_cast<int>(random() % 60) - 1;
    if (chance(40)) {
      params.logit_bias = {{3, 2.5f}, {8, -kInfinity}, {3, 1.0f}};
    }
    params.seed = random();
    const std::vector<int32_t> suppressed = chance(40) ? std::vector<int32_t>{1, 2} : std::vector<int32_t>{};
    SampleInput input = Input(logits, tokens);
    input.prompt_tokens = static_cast<int>(random() % (tokens.size() + 1));
    input.suppressed = suppressed;
    double distance = 0;
    const int32_t expected = PlainSample(params, input, &distance);
    const auto id = sampler.Sample(params, input);
    ASSERT_TRUE(id.ok()) << id.status();
    EXPECT_EQ(logits, before) << "the row must come back as it was";
    // Float against double may differ where the random number falls on a border. (A border of a filter may fall
    // between two equal-looking masses as well; with these seeds it does not.)
    if (distance > 1e-5) {
      ++compared;
      EXPECT_EQ(*id, expected) << "trial " << trial << " temperature " << params.temperature << " top_k "
                               << params.top_k << " top_p " << params.top_p << " min_p " << params.min_p
                               << " typical_p " << params.typical_p << " penalties " << params.repetition_penalty << " "
                               << params.presence_penalty << " " << params.frequency_penalty;
    }
  }
  EXPECT_GT(compared, 2000);
}

TEST(SamplerTest, FrequenciesFollowTheDistribution) {
  // A chi-squared test over 50,000 draws, for an unfiltered row and for a filtered one.
  std::vector<float> logits = RandomRow(40, 11, 1.0f);
  Sampler sampler(40);
  for (float top_p : {1.0f, 0.8f}) {
    SamplingParams params;
    params.temperature = 0.8f;
    params.top_p = top_p;
    std::vector<int32_t> tokens = {0};
    const SampleInput plain = Input(logits, tokens);
    std::vector<double> p(40);
    const std::vector<Entry> left = PlainDistribution(params, plain);
    for (const Entry& e : left) {
      p[static_cast<size_t>(e.id)] = e.p;
    }
    constexpr int kDraws = 50000;
    std::vector<int> count(40);
    for (int i = 0; i < kDraws; ++i) {
      params.seed = static_cast<uint64_t>(i);
      ++count[static_cast<size_t>(*sampler.Sample(params, Input(logits, tokens)))];
    }
    double chi = 0;
    for (size_t i = 0; i < 40; ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(count[i], 0);
      } else {
        chi += std::pow(count[i] - p[i] * kDraws, 2) / (p[i] * kDraws);
      }
    }
    const double freedom = static_cast<double>(left.size()) - 1;
    EXPECT_LT(chi, freedom + 4 * std::sqrt(2 * freedom));
  }
}

TEST(SamplerTest, GreedyTakesTheLowerIdAmongEquals) {
  std::vector<float> logits = {1, 5, 2, 5, 5};
  std::vector<int32_t> tokens = {0};
  Sampler sampler(5);
  SamplingParams params;
  params.temperature = 0;
  EXPECT_EQ(*sampler.Sample(params, Input(logits, tokens)), 1);
  params.temperature = 1;
  params.top_k = 1;
  EXPECT_EQ(*sampler.Sample(params, Input(logits, tokens)), 1);
}

TEST(SamplerTest, EachPositionHasItsOwnNumberWhateverCameBefore) {
  std::vector<float> logits = RandomRow(100, 3, 1.0f);
  SamplingParams params;
  params.seed = 42;
  Sampler one(100);
  std::vector<int32_t> forward;
  std::vector<int32_t> tokens;
  for (int i = 0; i < 50; ++i) {
    tokens.push_back(0);
    forward.push_back(*one.Sample(params, Input(logits, tokens)));
  }
  Sampler other(100);
  for (int i = 49; i >= 0; --i) {
    EXPECT_EQ(*other.Sample(params, Input(logits, tokens)), forward[static_cast<size_t>(i)]);
    tokens.pop_back();
  }
  EXPECT_GT(std::set<int32_t>(forward.begin(), forward.end()).size(), 10u);
}

TEST(SamplerTest, SuppressedIdsAreNeverChosen) {
  std::vector<float> logits(10, 0.0f);
  logits[4] = 50;
  const std::vector<int32_t> tokens = {0};
  const std::vector<int32_t> suppressed = {4};
  Sampler sampler(10);
  SamplingParams params;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    params.seed = seed;
    SampleInput input = Input(logits, tokens);
    input.suppressed = suppressed;
    EXPECT_NE(*sampler.Sample(params, input), 4);
  }
}

TEST(SamplerTest, ALogitThatIsNotFiniteIsAnErrorThatNamesIt) {
  std::vector<float> logits(10, 0.0f);
  logits[6] = std::numeric_limits<float>::quiet_NaN();
  Sampler sampler(10);
  const auto id = sampler.Sample({}, Input(logits, {1, 2, 3}));
  EXPECT_EQ(id.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(id.status().message()), HasSubstr("token 6 at position 2"));
}

TEST(SamplerTest, ExcludingEveryTokenIsAnError) {
  std::vector<float> logits(3, 0.0f);
  SamplingParams params;
  params.logit_bias = {{0, -kInfinity}, {1, -kInfinity}, {2, -kInfinity}};
  Sampler sampler(3);
  EXPECT_EQ(sampler.Sample(params, Input(logits, {0})).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(logits, std::vector<float>(3, 0.0f));
}

TEST(ValidateSamplingTest, NamesTheFieldThatIsOutOfRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto message = [](const SamplingParams& params) {
    return std::string(ValidateSampling(params, 100).message());
  };
  EXPECT_TRUE(ValidateSampling({}, 100).ok());
  SamplingParams p;
  for (float bad : {-0.1f, nan, kInfinity, 101.0f}) {
    p = {};
    p.temperature = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.temperature")) << bad;
  }
  for (float bad : {0.0f, -1.0f, 1.01f, nan}) {
    p = {};
    p.top_p = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.top_p")) << bad;
    p = {};
    p.typical_p = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.typical_p")) << bad;
  }
  for (float bad : {-0.1f, 1.1f, nan}) {
    p = {};
    p.min_p = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.min_p")) << bad;
  }
  for (float bad : {0.0f, -1.0f, nan, kInfinity}) {
    p = {};
    p.repetition_penalty = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.repetition_penalty")) << bad;
  }
  for (float bad : {nan, kInfinity, -101.0f}) {
    p = {};
    p.presence_penalty = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.presence_penalty")) << bad;
    p = {};
    p.frequency_penalty = bad;
    EXPECT_THAT(message(p), HasSubstr("sampling.frequency_penalty")) << bad;
  }
  p = {};
  p.top_k = -1;
  EXPECT_THAT(message(p), HasSubstr("sampling.top_k"));
  p = {};
  p.penalty_window = -2;
  EXPECT_THAT(message(p), HasSubstr("sampling.penalty_window"));
  for (int id : {-1, 100}) {
    p = {};
    p.logit_bias = {{id, 1.0f}};
    EXPECT_THAT(message(p), HasSubstr("ids are 0 to 99"));
  }
  for (float bad : {nan, kInfinity, 1e5f}) {
    p = {};
    p.logit_bias = {{5, bad}};
    EXPECT_THAT(message(p), HasSubstr("token 5")) << bad;
  }
  p = {};
  p.logit_bias.assign(5000, {1, 0.0f});
  EXPECT_THAT(message(p), HasSubstr("5000 entries"));
}

}  // namespace
}  // namespace embergate::engine
