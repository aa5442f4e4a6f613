// Products at E2B shapes beside the machine's limits: bytes of weights per second against read bandwidth for few
// tokens, multiply-adds against the register-only integer loop for many.
//
//   kernels_bench [--smoke] [--isa NAME] [--type Q4_0] [--threads N] [--shape ROWSxCOLS] [--tokens N] [--runs K]
//   [--best] [--cpu-time] [--warm]
//                [--onednn] [--attention]
//
// Each figure is the median of K timed runs; with --best the fastest, which on a machine that others share says more
// of the kernel and less of them. --cpu-time (one thread) counts the process's CPU time instead of the clock's, for the
// same reason: it leaves out the time that others had the CPU. Few-token runs walk through copies of the matrix that
// together exceed every cache, as the layers of a model do; with --warm there is one copy only. --attention measures
// attention instead, one thread: keys and values per second for the 8 heads of one token over a long context, and
// multiply-adds per second for 4 tokens of a prompt.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/kernels/attention.h"
#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/machine_limits.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

struct Options {
  bool smoke = false;
  bool best = false;
  bool cpu_time = false;
  bool warm = false;
  bool attention = false;
  std::string isa;
  std::string type = "Q4_0";
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  int64_t rows = 0;
  int64_t cols = 0;
  int tokens = 0;
  int runs = 5;
};

struct Shape {
  int64_t rows;
  int64_t cols;
};

constexpr int kTokens[] = {1, 2, 4, 8, 16, 64, 256, 512};

double Now(bool cpu_time) {
  if (cpu_time) {
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Quantised types: random bytes, with f16 fields anywhere in a block kept finite by clearing one exponent bit of every
// second byte. Float types: values of a weight's size (random bits would be full of slow subnormal numbers).
Matrix RandomMatrix(TensorType type, const Shape& shape, double* seconds) {
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  const size_t row_bytes = static_cast<size_t>(shape.cols) / traits.block_elements * traits.block_bytes;
  std::mt19937_64 random(1);
  std::vector<uint8_t> rows(row_bytes * 64);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<uint8_t>(random());
    if (i % 2 == 1) {
      rows[i] &= 0xbb;
    }
  }
  const size_t element = traits.block_bytes;
  if (traits.block_elements == 1) {
    for (size_t i = 0; i < rows.size(); i += element) {
      const float value = static_cast<float>(random() % 2001) * 1e-4f - 0.1f;
      const uint16_t half = type == TensorType::kF16 ? FloatToHalf(value) : FloatToBfloat16(value);
      std::memcpy(rows.data() + i, type == TensorType::kF32 ? static_cast<const void*>(&value) : &half, element);
    }
  }
  const double start = Now(/*cpu_time=*/true);
  absl::StatusOr<Matrix> matrix = Matrix::Create(type, shape.rows, shape.cols);
  if (!matrix.ok()) {
    std::fprintf(stderr, "%s\n", std::string(matrix.status().message()).c_str());
    std::exit(1);
  }
  for (int64_t row = 0; row < shape.rows; row += 64) {
    const size_t count = static_cast<size_t>(std::min<int64_t>(64, shape.rows - row));
    if (!matrix->AppendRows(absl::MakeConstSpan(rows).subspan(0, count * row_bytes)).ok()) {
      std::exit(1);
    }
  }
  *seconds += Now(/*cpu_time=*/true) - start;
  return std::move(matrix).value();
}

void BenchShape(const Options& options, TensorType type, const Shape& shape, const MachineLimits& limits,
                ThreadPool& pool) {
  const uint64_t bytes = *storage::BytesOf(type, static_cast<uint64_t>(shape.rows * shape.cols));
  const uint64_t cold_bytes = options.smoke || options.warm ? 0 : uint64_t{700} << 20;
  std::vector<Matrix> copies;
  double load_seconds = 0;
  do {
    copies.push_back(RandomMatrix(type, shape, &load_seconds));
  } while (copies.size() * bytes < cold_bytes);
  std::printf("%-14s %-7s %7lldx%-6lld repacked at %.2f GB/s of CPU time\n", KernelIsa(), options.type.c_str(),
              static_cast<long long>(shape.rows), static_cast<long long>(shape.cols),
              static_cast<double>(bytes) * static_cast<double>(copies.size()) / load_seconds / 1e9);
  for (const int n : kTokens) {
    const bool wanted = options.tokens > 0 ? n == options.tokens : !options.smoke || n <= 8;
    if (!wanted || (n > 16 && shape.rows > 100000)) {
      continue;
    }
    std::vector<float> x(static_cast<size_t>(n) * static_cast<size_t>(shape.cols));
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (float& value : x) {
      value = normal(random);
    }
    std::vector<float> y(static_cast<size_t>(n) * static_cast<size_t>(shape.rows));
    MatMulInput input(n, shape.cols);
    // Few tokens: a run covers all copies once. Many: about 100 ms.
    const double flops = 2.0 * static_cast<double>(shape.rows * shape.cols) * n;
    int products =
        n <= 16 ? static_cast<int>(copies.size()) : std::max(1, static_cast<int>((options.best ? 1e9 : 2e10) / flops));
    products = options.smoke ? 1 : products;
    std::vector<double> seconds;
    for (int run = 0; run < options.runs + 1; ++run) {
      const double start = Now(options.cpu_time);
      for (int i = 0; i < products; ++i) {
        input.Set(x.data(), n, shape.cols, shape.cols);
        MatMul(copies[static_cast<size_t>(i) % copies.size()], input, y.data(), shape.rows, pool);
      }
      if (run > 0 || options.smoke) {  // the first warms up
        seconds.push_back((Now(options.cpu_time) - start) / products);
      }
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = options.best ? seconds.front() : seconds[seconds.size() / 2];
    const double gb = static_cast<double>(bytes) / median / 1e9;
    const double gop = flops / median / 1e9;
    std::printf("%-14s %-7s %7lldx%-6lld n=%-4d %9.3f ms  %7.2f GB/s %5.1f%%  %8.1f GOP/s %5.1f%%\n", KernelIsa(),
                options.type.c_str(), static_cast<long long>(shape.rows), static_cast<long long>(shape.cols), n,
                median * 1e3, gb, 1e11 * gb / limits.read_bytes_per_second, gop,
                1e11 * gop / limits.integer_ops_per_second);
    std::fflush(stdout);
  }
}

// One KV head with `heads` query heads per token; each token sees all positions.
void BenchAttention(const Options& options, TensorType type, int dim, int heads, int tokens, int positions) {
  const int64_t row_bytes = static_cast<int64_t>(*storage::BytesOf(type, static_cast<uint64_t>(dim)));
  const int blocks = positions / kAttentionBlock;
  // Copies, so that a context comes from memory as it does when layers take turns.
  const int copies = tokens == 1 && !options.smoke && !options.warm
                         ? std::max(1, static_cast<int>((int64_t{400} << 20) / (2 * positions * row_bytes)))
                         : 1;
  std::vector<uint8_t> cache(static_cast<size_t>(copies) * static_cast<size_t>(2 * positions * row_bytes));
  for (size_t i = 0; i < cache.size(); ++i) {
    cache[i] = i % 2 == 1 ? 0x30 : static_cast<uint8_t>(i * 37);  // small positive halves; Q8_0: scales too
  }
  std::vector<float> q(static_cast<size_t>(tokens * heads * dim), 0.01f);
  std::vector<float> out(q.size());
  std::vector<float> scratch(static_cast<size_t>(AttentionScratchFloats(dim)));
  std::vector<AttentionQuery> queries;
  for (int i = 0; i < tokens * heads; ++i) {
    queries.push_back({q.data() + int64_t{i} * dim, 0, positions, out.data() + int64_t{i} * dim});
  }
  std::vector<double> seconds;
  for (int run = 0; run < options.runs + 1; ++run) {
    const double start = Now(options.cpu_time);
    for (int copy = 0; copy < copies; ++copy) {
      const uint8_t* base = cache.data() + int64_t{copy} * 2 * positions * row_bytes;
      const auto block_at = [&](int block) {
        const uint8_t* keys = base + int64_t{block % blocks} * 2 * kAttentionBlock * row_bytes;
        return AttentionBlock{keys, keys + kAttentionBlock * row_bytes};
      };
      Attend({type, dim, row_bytes}, queries, block_at, scratch.data());
    }
    if (run > 0 || options.smoke) {
      seconds.push_back((Now(options.cpu_time) - start) / copies);
    }
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = options.best ? seconds.front() : seconds[seconds.size() / 2];
  std::printf("%-14s attention %-5s %d heads of %d, %d tokens, %d positions: %9.3f ms %7.2f GB/s %7.1f GFLOP/s\n",
              KernelIsa(), std::string(storage::TraitsOf(type).name).c_str(), heads, dim, tokens, positions,
              median * 1e3, 2.0 * positions * static_cast<double>(row_bytes) / median / 1e9,
              4.0 * positions * dim * heads * tokens / median / 1e9);
  std::fflush(stdout);
}

void BenchAttentionShapes(const Options& options) {
  const int positions = options.smoke ? 64 : 4096;
  for (const TensorType type : {TensorType::kF16, TensorType::kQ8_0, TensorType::kF32}) {
    for (const int tokens : {1, 4}) {
      BenchAttention(options, type, 512, 8, tokens, positions);  // Gemma 4, full layers
      BenchAttention(options, type, 256, 8, tokens, std::min(positions, 512));
      BenchAttention(options, type, 256, 4, tokens, positions);  // Gemma 3n
    }
  }
}

int Run(const Options& options) {
  const storage::TensorTypeTraits* traits = storage::FindTensorTypeByName(options.type);
  if (traits == nullptr || !IsSupportedWeightType(traits->type)) {
    std::fprintf(stderr, "unknown type %s\n", options.type.c_str());
    return 1;
  }
  std::vector<Shape> shapes = {{6144, 1536}, {1536, 12288}, {8192, 2048}, {262144, 1536}};
  if (options.smoke) {
    shapes = {{96, 512}, {40, 256}};
  }
  if (options.rows > 0) {
    shapes = {{options.rows, options.cols}};
  }
  ThreadPool pool(options.threads);
  for (const std::string& isa : AvailableKernelIsas()) {
    if (options.isa.empty() ? (isa == "reference" && !options.smoke) : isa != options.isa) {
      continue;
    }
    if (!ForceKernelIsa(isa).ok()) {
      return 1;
    }
    const MachineLimits limits = MeasureMachine(pool, options.smoke ? 0.02 : 1.0, options.smoke ? size_t{8} << 20 : 0);
    std::printf("%-14s %d threads: reads %.1f GB/s; %s %.1f GOP/s\n", isa.c_str(), pool.threads(),
                limits.read_bytes_per_second / 1e9, limits.integer_loop.c_str(), limits.integer_ops_per_second / 1e9);
    if (options.attention || options.smoke) {
      BenchAttentionShapes(options);
    }
    for (const Shape& shape : options.attention ? std::vector<Shape>() : shapes) {
      BenchShape(options, traits->type, shape, limits, pool);
    }
  }
  return 0;
}

}  // namespace
}  // namespace embergate::engine

int main(int argc, char** argv) {
  embergate::engine::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--smoke") {
      options.smoke = true;
      options.runs = 1;
      continue;
    }
    if (flag == "--best") {
      options.best = true;
      continue;
    }
    if (flag == "--cpu-time") {
      options.cpu_time = true;
      options.threads = 1;
      continue;
    }
    if (flag == "--attention") {
      options.attention = true;
      continue;
    }
    if (flag == "--warm") {
      options.warm = true;
      continue;
    }
    if (flag == "--onednn") {
      const absl::Status status = embergate::engine::SetMatMulBackend(embergate::engine::MatMulBackend::kOneDnn);
      if (!status.ok()) {
        std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
        return 1;
      }
      continue;
    }
    if (flag == "--isa") {
      options.isa = value;
    } else if (flag == "--type") {
      options.type = value;
    } else if (flag == "--threads") {
      options.threads = std::max(1, std::atoi(value));
    } else if (flag == "--tokens") {
      options.tokens = std::atoi(value);
    } else if (flag == "--runs") {
      options.runs = std::max(1, std::atoi(value));
    } else if (flag == "--shape") {
      long long rows = 0;
      long long cols = 0;
      if (std::sscanf(value, "%lldx%lld", &rows, &cols) != 2 || rows <= 0 || cols <= 0) {
        std::fprintf(stderr, "--shape takes ROWSxCOLS\n");
        return 1;
      }
      options.rows = rows;
      options.cols = cols;
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      return 1;
    }
    ++i;
  }
  return embergate::engine::Run(options);
}
