// Prefill and decode speed and memory of llama.cpp on a GGUF file, in one of its ways to hold the weights. Not part of
// the build: llama_bench.sh compiles it against the prebuilt library and runs it.
//
//   llama_bench MODEL.gguf BACKENDS_FOLDER {none|mmap|lazy} {repack|as-stored} [threads] [prompt] [repeat]
//   [sequences...]
//
// none reads the file into memory, mmap maps it, lazy maps it and reads the per-layer table's rows on demand. One JSON
// line; medians, and of all decode steps the 99th percentile; random distinct tokens, greedy, every context new.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

constexpr int kDecodeSteps = 48;
constexpr int kMaxSequences = 8;

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// In bytes; `key` as in /proc/self/status.
double ProcessMemory(const char* key) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(key, 0) == 0) {
      return std::strtod(line.c_str() + std::strlen(key) + 1, nullptr) * 1024;
    }
  }
  return 0;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(llama_model* model, int threads, int prompt) : prompt_(prompt) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(kMaxSequences * (prompt + 2 * kDecodeSteps));
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = kMaxSequences;
    params.n_threads = params.n_threads_batch = threads;
    context_ = llama_init_from_model(model, params);
    tokens_ = llama_vocab_n_tokens(llama_model_get_vocab(model));
    batch_ = llama_batch_init(512, 0, 1);
  }
  bool ok() const { return context_ != nullptr; }

  // Tokens per second; the head is computed for the last one only.
  double Prefill() {
    Clear();
    const double start = Seconds();
    for (int at = 0; at < prompt_; at += 512) {
      batch_.n_tokens = 0;
      for (int i = at; i < std::min(prompt_, at + 512); ++i) {
        Add(Random(), i, 0, i + 1 == prompt_);
      }
      Run();
    }
    return prompt_ / (Seconds() - start);
  }

  // Tokens per second of all sequences together.
  double Decode(int sequences) {
    Clear();
    double start = 0;
    double last = 0;
    for (int step = -2; step < kDecodeSteps; ++step) {
      if (step == 0) {
        start = last = Seconds();
      }
      batch_.n_tokens = 0;
      for (int s = 0; s < sequences; ++s) {
        Add(Random(), step + 2, s, true);
      }
      Run();
      for (int s = 0; s < sequences; ++s) {  // as a server would: the likeliest token of each
        const float* logits = llama_get_logits_ith(context_, s);
        best_ = static_cast<int>(std::max_element(logits, logits + tokens_) - logits);
      }
      const double now = Seconds();
      if (step >= 0) {
        gaps_.push_back(now - last);
      }
      last = now;
    }
    return sequences * kDecodeSteps / (Seconds() - start);
  }

  // Of the steps since the last call.
  double P99Gap() {
    std::vector<double> gaps;
    gaps.swap(gaps_);
    std::sort(gaps.begin(), gaps.end());
    return gaps[gaps.size() * 99 / 100];
  }

 private:
  void Clear() { llama_memory_clear(llama_get_memory(context_), true); }
  llama_token Random() {
    const int special = std::min(1000, tokens_ / 4);  // these come first, a vocabulary's odds and ends last
    return std::uniform_int_distribution<llama_token>(special, tokens_ - special)(random_);
  }
  void Add(llama_token token, int position, int sequence, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = logits;
  }
  void Run() {
    if (llama_decode(context_, batch_) != 0) {
      std::fprintf(stderr, "llama_decode failed\n");
      std::exit(1);
    }
    llama_synchronize(context_);
  }

  const int prompt_;
  llama_context* context_ = nullptr;
  llama_batch batch_{};
  int tokens_ = 0;
  std::vector<double> gaps_;
  volatile int best_ = 0;
  std::mt19937 random_{7};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr,
                 "usage: %s MODEL.gguf BACKENDS_FOLDER {none|mmap|lazy} {repack|as-stored} [threads] [prompt] [repeat] "
                 "[sequences...]\n",
                 argv[0]);
    return 2;
  }
  const std::string load = argv[3];
  const std::string form = argv[4];
  const int threads = argc > 5 ? std::atoi(argv[5]) : 2;
  const int prompt = argc > 6 ? std::atoi(argv[6]) : 512;
  const int repeat = argc > 7 ? std::atoi(argv[7]) : 3;
  std::vector<int> batches;
  for (int i = 8; i < argc; ++i) {
    batches.push_back(std::clamp(std::atoi(argv[i]), 1, kMaxSequences));
  }
  if (batches.empty()) {
    batches = {1, 2, 4, 8};
  }
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
          std::fputs(text, stderr);
        }
      },
      nullptr);
  ggml_backend_load_all_from_path(argv[2]);
  llama_model_params params = llama_model_default_params();
  params.load_mode = load == "none" ? LLAMA_LOAD_MODE_NONE : LLAMA_LOAD_MODE_MMAP;
  params.lazy_mode = load == "lazy" ? LLAMA_LAZY_MODE_ON : LLAMA_LAZY_MODE_OFF;
  params.use_extra_bufts = form == "repack";
  params.n_gpu_layers = 0;
  params.progress_callback = [](float, void*) { return true; };  // instead of dots
  const double start = Seconds();
  llama_model* model = llama_model_load_from_file(argv[1], params);
  const double load_seconds = Seconds() - start;
  if (model == nullptr) {
    return 1;
  }
  Bench bench(model, threads, prompt);
  if (!bench.ok()) {
    return 1;
  }
  std::printf("{\"load_mode\": \"%s\", \"weights\": \"%s\", \"load_s\": %.1f", load.c_str(), form.c_str(),
              load_seconds);
  const auto measure = [&](const auto& once) {
    std::vector<double> values;
    for (int i = 0; i < repeat; ++i) {
      values.push_back(once());
    }
    return Median(values);
  };
  if (prompt > 0) {
    std::printf(", \"prefill_tok_s\": %.1f", measure([&] { return bench.Prefill(); }));
  }
  for (const int sequences : batches) {
    std::printf(", \"decode_%d_tok_s\": %.1f", sequences, measure([&] { return bench.Decode(sequences); }));
    std::printf(", \"decode_%d_p99_gap_ms\": %.0f", sequences, 1000 * bench.P99Gap());
  }
  std::printf(", \"anonymous_bytes\": %.0f, \"mapped_file_bytes\": %.0f}\n", ProcessMemory("RssAnon"),
              ProcessMemory("RssFile"));
  return 0;
}
