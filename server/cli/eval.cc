// embergate eval: perplexity of a model on a text, and its distance from another model.
#include <cstdio>
#include <memory>
#include <string>

#include "engine/convert/evaluate.h"
#include "engine/cpus.h"
#include "engine/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "server/bounded_file.h"
#include "server/cli/cli.h"
#include "server/cli/divergence_report.h"
#include "server/cli/progress.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

constexpr uint64_t kTextBytesMax = 256u << 20;

struct State {
  std::string model;
  std::string against;
  std::string text;
  int context = 512;
  uint64_t tokens_max = 0;
  int threads = engine::ThreadsOrAll(0);
  bool json = false;
};

absl::StatusOr<std::unique_ptr<engine::DecoderModel>> Load(const storage::GgufFile& file, int context,
                                                           engine::ThreadPool& pool) {
  ProgressBar bar("loading");
  auto model =
      engine::LoadForEvaluation(file, context, pool, [&](uint64_t done, uint64_t total) { bar.Update(done, total); });
  if (model.ok()) {
    bar.Finish();
  }
  return model;
}

absl::Status Run(const State& state) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadBoundedFile(state.text, kTextBytesMax));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<storage::GgufFile> file, storage::GgufFile::Open(state.model));
  EMBERGATE_ASSIGN_OR_RETURN(engine::Vocabulary vocabulary, engine::VocabularyFromGguf(*file));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Tokenizer> tokenizer,
                             engine::Tokenizer::Create(std::move(vocabulary)));
  const auto windows = engine::CutIntoWindows(*tokenizer, text, state.context, state.tokens_max);
  if (windows.empty()) {
    return absl::InvalidArgumentError(state.text + " has no text to score");
  }
  engine::ThreadPool pool(state.threads);
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::DecoderModel> model, Load(*file, state.context, pool));
  std::unique_ptr<storage::GgufFile> reference_file;
  std::unique_ptr<engine::DecoderModel> reference;
  if (!state.against.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(reference_file, storage::GgufFile::Open(state.against));
    EMBERGATE_ASSIGN_OR_RETURN(reference, Load(*reference_file, state.context, pool));
  }
  ProgressBar bar("scoring", ProgressBar::Unit::kItems);
  EMBERGATE_ASSIGN_OR_RETURN(const engine::Evaluation result,
                             engine::Evaluate(*model, reference.get(), windows, pool,
                                              [&](uint64_t done, uint64_t total) { bar.Update(done, total); }));
  bar.Finish();
  if (state.json) {
    nlohmann::json json = EvaluationToJson(result);
    json["model"] = state.model;
    json["context"] = state.context;
    if (!state.against.empty()) {
      json["against"] = state.against;
    }
    std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    PrintEvaluation(result, state.model, state.against);
  }
  return absl::OkStatus();
}

}  // namespace

void AddEval(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Perplexity of a model on a text, and its distance from another model");
  auto state = std::make_shared<State>();
  eval->add_option("model", state->model, "Model to judge")->required()->type_name("A.gguf");
  eval->add_option("--text", state->text, "Text to predict, UTF-8")->required()->type_name("FILE");
  eval->add_option("--against", state->against,
                   "Reference, usually the same model less quantised: adds KL divergence and top-1 agreement")
      ->type_name("B.gguf");
  eval->add_option("--context", state->context, "Tokens of a window; each starts afresh with <bos>")
      ->check(CLI::Range(2, 131072))
      ->capture_default_str();
  eval->add_option("--max-tokens", state->tokens_max, "Score only the text's first tokens; 0 = all");
  eval->add_option("--threads", state->threads, "Threads that compute")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  eval->add_flag("--json", state->json, "Print one JSON line");
  eval->footer(
      "Every token of a window but <bos> is scored. Perplexities compare only between models of one vocabulary, on\n"
      "the same text and context. With --against both models are in memory at once.");
  eval->callback([state] {
    if (const absl::Status status = Run(*state); !status.ok()) {
      std::fprintf(stderr, "embergate eval: %s\n", std::string(status.message()).c_str());
      throw CLI::RuntimeError(
          status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kResourceExhausted ? 1
                                                                                                                   : 2);
    }
  });
}

}  // namespace embergate::server
