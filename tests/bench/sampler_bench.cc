// What choosing a token costs at the released models' vocabulary: median over rows of two kinds, peaked (a trained
// model's) and flat (random weights). Not a test; prints one line per setting.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "engine/logits_math.h"
#include "engine/sampler.h"

namespace {

using embergate::engine::LogSumExp;
using embergate::engine::SampleInput;
using embergate::engine::Sampler;
using embergate::engine::SamplingParams;
using embergate::engine::TopSelector;

constexpr int kVocab = 262144;
constexpr int kRows = 8;
constexpr int kRounds = 5;

std::vector<std::vector<float>> Rows(bool peaked) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, peaked ? 3.0f : 1.0f);
  std::vector<std::vector<float>> rows(kRows, std::vector<float>(kVocab));
  for (auto& row : rows) {
    for (float& v : row) {
      v = normal(random);
    }
    for (int i = 0; peaked && i < 40; ++i) {
      row[random() % kVocab] = 22.0f - 0.3f * static_cast<float>(i);
    }
  }
  return rows;
}

template <typename Run>
void Measure(const std::string& name, std::vector<std::vector<float>>& rows, Run run) {
  std::vector<double> us;
  for (int i = 0; i < kRows * kRounds; ++i) {
    std::vector<float>& row = rows[static_cast<size_t>(i % kRows)];
    const auto begin = std::chrono::steady_clock::now();
    run(row, i);
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(us.begin(), us.end());
  std::printf("%-34s median %8.0f us  max %8.0f us\n", name.c_str(), us[us.size() / 2], us.back());
}

}  // namespace

int main() {
  Sampler sampler(kVocab);
  TopSelector top;
  top.Reserve(kVocab);
  std::vector<int32_t> tokens(200);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(i * 1237 % kVocab);
  }
  for (bool peaked : {true, false}) {
    std::vector<std::vector<float>> rows = Rows(peaked);
    const std::string kind = peaked ? "peaked " : "flat   ";
    const auto sample = [&](const std::string& name, SamplingParams params) {
      Measure(kind + name, rows, [&](std::vector<float>& row, int i) {
        params.seed = static_cast<uint64_t>(i);
        SampleInput input;
        input.logits = absl::MakeSpan(row);
        input.tokens = tokens;
        input.prompt_tokens = 100;
        if (!sampler.Sample(params, input).ok()) {
          std::abort();
        }
      });
    };
    SamplingParams params;
    params.temperature = 0;
    sample("greedy", params);
    params.temperature = 1;
    sample("temperature", params);
    params.top_k = 64;
    sample("top_k 64", params);
    params.top_p = 0.95f;
    params.repetition_penalty = 1.1f;
    sample("top_k 64, top_p 0.95, penalty", params);
    params.top_k = 0;
    sample("top_p 0.95, penalty", params);
    params.top_p = 1;
    params.min_p = 0.05f;
    sample("min_p 0.05, penalty", params);
    params.min_p = 0;
    params.typical_p = 0.9f;
    sample("typical_p 0.9, penalty", params);
    Measure(kind + "log-sum-exp", rows, [&](std::vector<float>& row, int) {
      if (LogSumExp(row) < 0) {
        std::abort();
      }
    });
    Measure(kind + "best 20", rows, [&](std::vector<float>& row, int) { top.Best(row, 20); });
  }
  return 0;
}
