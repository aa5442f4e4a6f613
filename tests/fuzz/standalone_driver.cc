// Runs a fuzz target without libFuzzer, so that every compiler and every test run exercises it: the seeds first, then
// mutations of them. Input number n depends on the seed and on n alone; a crash prints the command that repeats it.
//
//   PROGRAM [--runs N] [--first N] [--seed S] [--seconds T]
//   PROGRAM --write-seeds FOLDER      writes the seeds, as a corpus for libFuzzer
//   PROGRAM FILE_OR_FOLDER...         runs these inputs instead
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

volatile uint64_t g_current_run = 0;
volatile uint64_t g_seed = 1;
const char* g_program = "";

// Called with the process about to die: no allocation, no stdio.
void SayHowToRepeat() {
  char text[512];
  const int length =
      std::snprintf(text, sizeof(text), "\nTo repeat: %s --seed %llu --first %llu --runs 1\n", g_program,
                    static_cast<unsigned long long>(g_seed), static_cast<unsigned long long>(g_current_run));
  if (length > 0) {
    [[maybe_unused]] const ssize_t put = ::write(STDERR_FILENO, text, static_cast<size_t>(length));
  }
}

void OnSignal(int signal) {
  SayHowToRepeat();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

constexpr uint64_t kInteresting[] = {0,          1,
                                     2,          4,
                                     16,         32,
                                     64,         127,
                                     128,        255,
                                     256,        32767,
                                     32768,      65535,
                                     65536,      0x7fffffff,
                                     0x80000000, 0xffffffff,
                                     1ull << 32, 1ull << 47,
                                     1ull << 62, (1ull << 63) - 1,
                                     1ull << 63, ~0ull};

class Mutator {
 public:
  Mutator(const std::vector<std::string>& seeds, uint64_t seed) : seeds_(seeds), random_(seed) {}

  std::string Next() {
    std::string input = seeds_[Below(seeds_.size())];
    for (size_t i = 1 + Below(4); i > 0; --i) {
      Mutate(input);
    }
    return input;
  }

 private:
  size_t Below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(random_() % bound); }

  void Mutate(std::string& input) {
    // Most formats decide everything in their first bytes: half of the mutations go there.
    const size_t reach = Below(2) == 0 ? std::min<size_t>(input.size(), 256) : input.size();
    const size_t at = Below(reach);
    switch (Below(8)) {
      case 0:
        if (!input.empty()) {
          input[at] = static_cast<char>(input[at] ^ (1 << Below(8)));
        }
        return;
      case 1:
        if (!input.empty()) {
          input[at] = static_cast<char>(random_());
        }
        return;
      case 2:
      case 3: {  // a number of any width
        const uint64_t value = Below(3) == 0 ? input.size() : kInteresting[Below(std::size(kInteresting))];
        const size_t width = std::min<size_t>(size_t{1} << Below(4), input.size() - std::min(at, input.size()));
        std::memcpy(input.data() + at, &value, width);
        return;
      }
      case 4:
        input.resize(Below(input.size() + 1));
        return;
      case 5:
        input.erase(at, 1 + Below(16));
        return;
      case 6:
        input.insert(at, input.substr(Below(input.size()), 1 + Below(64)));
        return;
      default: {  // the head of this, the tail of another
        const std::string& other = seeds_[Below(seeds_.size())];
        input = input.substr(0, at) + other.substr(Below(other.size() + 1));
      }
    }
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_;
};

void RunInput(const std::string& input) {
  // An exact copy on the heap, so that a sanitizer sees one byte too many.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

int RunFiles(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::vector<std::filesystem::path> files;
    if (std::filesystem::is_directory(path)) {
      files.assign(std::filesystem::directory_iterator(path), {});
    } else if (std::filesystem::is_regular_file(path)) {
      files.push_back(path);
    } else {
      std::fprintf(stderr, "no such file or folder: %s\n", path.c_str());
      return 2;
    }
    for (const std::filesystem::path& file : files) {
      std::fprintf(stderr, "%s\n", file.c_str());
      RunInput(ReadFile(file));
    }
  }
  return 0;
}

int WriteSeeds(const std::string& folder) {
  std::filesystem::create_directories(folder);
  size_t index = 0;
  for (const std::string& seed : FuzzSeeds()) {
    std::ofstream out(folder + "/seed" + std::to_string(index++), std::ios::binary);
    out.write(seed.data(), static_cast<std::streamsize>(seed.size()));
    if (!out.flush()) {
      std::fprintf(stderr, "cannot write seeds to %s\n", folder.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  g_program = argv[0];
  uint64_t runs = 3000;
  uint64_t first = 0;
  uint64_t seconds = 120;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option.rfind("--", 0) != 0) {
      paths.push_back(option);
      continue;
    }
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", option.c_str());
      return 2;
    }
    const char* const value = argv[++i];
    if (option == "--runs") {
      runs = std::strtoull(value, nullptr, 10);
    } else if (option == "--first") {
      first = std::strtoull(value, nullptr, 10);
    } else if (option == "--seed") {
      g_seed = std::strtoull(value, nullptr, 10);
    } else if (option == "--seconds") {
      seconds = std::strtoull(value, nullptr, 10);
    } else if (option == "--write-seeds") {
      return WriteSeeds(value);
    } else {
      std::fprintf(stderr, "unknown option %s\n", option.c_str());
      return 2;
    }
  }
  if (!paths.empty()) {
    return RunFiles(paths);
  }
  const std::vector<std::string> seeds = FuzzSeeds();
  if (seeds.empty()) {
    std::fprintf(stderr, "the target has no seeds\n");
    return 2;
  }
  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(SayHowToRepeat);
  } else {
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
      std::signal(signal, OnSignal);
    }
  }
  // Runs below seeds.size() are the seeds themselves.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  uint64_t done = 0;
  for (uint64_t run = first; done < runs && std::chrono::steady_clock::now() < deadline; ++run, ++done) {
    g_current_run = run;
    if (run < seeds.size()) {
      RunInput(seeds[run]);
    } else {
      RunInput(Mutator(seeds, g_seed * 0x9e3779b97f4a7c15ull + run).Next());
    }
  }
  std::fprintf(stderr, "%llu inputs from %zu seeds, none crashed\n", static_cast<unsigned long long>(done),
               seeds.size());
  return 0;
}
