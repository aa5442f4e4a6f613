#include "tests/engine/convert/llama_cpp.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "engine/convert/evaluate.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "storage/gguf_file.h"
#include "tests/engine/convert/temp_dir.h"

namespace embergate::engine {
namespace {

const std::string& Folder() {
  static const std::string folder = std::string(EMBERGATE_BINARY_DIR) + "/npm";
  return folder;
}

}  // namespace

bool HaveLlamaCpp() {
  const std::string command =
      "bash " EMBERGATE_SOURCE_DIR "/tests/integration/npm_fixtures.sh '" + Folder() + "' node-llama-cpp@3.22.1";
  return std::system(command.c_str()) == 0;
}

std::string NoLlamaCpp() { return "npm or its registry is not reachable, and node-llama-cpp is not in " + Folder(); }

std::vector<Probabilities> LlamaCppProbabilities(const std::vector<std::string>& paths,
                                                 const std::vector<int32_t>& tokens) {
  const TempDir dir;
  nlohmann::json input = nlohmann::json::array();
  for (const std::string& path : paths) {
    input.push_back({{"model", path}, {"tokens", tokens}});
  }
  WriteFile(dir.File("in.json"), input.dump());
  const std::string command = "node " EMBERGATE_SOURCE_DIR "/tests/engine/convert/llama_cpp_probabilities.mjs '" +
                              Folder() + "' '" + dir.File("in.json") + "' '" + dir.File("out.json") + "'";
  EXPECT_EQ(std::system(command.c_str()), 0);
  std::vector<Probabilities> results(paths.size());
  const nlohmann::json output = nlohmann::json::parse(ReadFile(dir.File("out.json")), nullptr, false);
  EXPECT_EQ(output.size(), paths.size());
  for (size_t i = 0; i < std::min(output.size(), paths.size()); ++i) {
    if (output[i].contains("error")) {
      ADD_FAILURE() << paths[i] << ": " << output[i]["error"];
    } else {
      results[i] = output[i]["probabilities"].get<Probabilities>();
    }
  }
  return results;
}

Probabilities OurProbabilities(const std::string& path, const std::vector<int32_t>& tokens) {
  Probabilities rows;
  auto file = storage::GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) {
    return rows;
  }
  ThreadPool pool(2);
  auto model = LoadForEvaluation(**file, 256, pool, {});
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) {
    return rows;
  }
  std::vector<float> logits(static_cast<size_t>((*model)->limits().vocab_size));
  EXPECT_TRUE((*model)->OpenSlot(0, 256).ok());
  for (size_t i = 0; i < tokens.size(); ++i) {
    Chunk chunk;
    chunk.tokens = absl::MakeConstSpan(&tokens[i], 1);
    chunk.start = static_cast<int>(i);
    chunk.logits = LogitsWanted::kAll;
    EXPECT_TRUE((*model)->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
    EXPECT_TRUE(chunk.status.ok()) << chunk.status;
    const float max = *std::max_element(logits.begin(), logits.end());
    std::vector<double>& row = rows.emplace_back();
    double sum = 0;
    for (const float logit : logits) {
      row.push_back(std::exp(static_cast<double>(logit) - max));
      sum += row.back();
    }
    for (double& p : row) {
      p /= sum;
    }
  }
  (*model)->CloseSlot(0);
  return rows;
}

double MeanKl(const Probabilities& p, const Probabilities& q) {
  EXPECT_EQ(p.size(), q.size());
  double sum = 0;
  for (size_t i = 0; i < std::min(p.size(), q.size()); ++i) {
    for (size_t k = 0; k < p[i].size(); ++k) {
      const double other = k < q[i].size() ? q[i][k] : 0;
      sum += p[i][k] * std::log(std::max(p[i][k], 1e-12) / std::max(other, 1e-12));
    }
  }
  return sum / static_cast<double>(p.size());
}

void* LlamaCppSymbol(const char* name) {
#if defined(__x86_64__)
  const std::string platform = "linux-x64";
#else
  const std::string platform = "linux-arm64";
#endif
  static void* const library = ::dlopen(
      (Folder() + "/node_modules/@node-llama-cpp/" + platform + "/bins/" + platform + "/libggml-base.so").c_str(),
      RTLD_NOW);
  return library == nullptr ? nullptr : ::dlsym(library, name);
}

}  // namespace embergate::engine
