// embergate convert
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/convert/check.h"
#include "engine/convert/converter.h"
#include "engine/convert/finish_rows.h"
#include "engine/cpus.h"
#include "server/cli/cli.h"
#include "server/cli/divergence_report.h"
#include "server/cli/human.h"
#include "server/cli/progress.h"
#include "storage/tensor_type.h"

namespace embergate::server {
namespace {

const std::vector<std::string> kTypes = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"};

struct State {
  std::string folder;
  std::string out;
  std::string weights = "q4_0";
  std::string embeddings;
  std::string ple;
  std::string name;
  bool keep_unused_kv = false;
  bool check = false;
  bool finish_rows = false;
  int threads = engine::ThreadsOrAll(0);
};

std::optional<storage::TensorType> TypeOf(const std::string& name) {
  const storage::TensorTypeTraits* traits = storage::FindTensorTypeByName(name);
  return traits == nullptr ? std::nullopt : std::make_optional(traits->type);
}

void PrintSummary(const engine::ConvertSummary& summary, const State& state) {
  std::printf("%-24s %11s %10s  %9s  %s\n", "part", "parameters", "bytes", "RMS error", "tensors");
  for (const engine::GroupSummary& group : summary.groups) {
    std::vector<std::string> types;
    for (const auto& [type, count] : group.types) {
      types.push_back(absl::StrCat(count, " ", type));
    }
    char percent[32];
    std::snprintf(percent, sizeof(percent), group.rms_error < 1e-3 ? "%.4f %%" : "%.2f %%", 100 * group.rms_error);
    std::printf("%-24s %11s %10s  %9s  %s\n", group.name.c_str(), HumanCount(group.elements).c_str(),
                HumanBytes(group.bytes).c_str(), group.rms_error == 0 ? "exact" : percent,
                absl::StrJoin(types, ", ").c_str());
  }
  std::printf("%s: %s, %s parameters, %s, %s\n", state.out.c_str(), summary.architecture.c_str(),
              HumanCount(summary.parameters).c_str(), HumanBytes(summary.file_bytes).c_str(),
              summary.has_tokenizer ? "with tokenizer" : "without tokenizer");
}

// What the files or flags are is exit code 2; what the machine did meanwhile is 1.
int Fail(const absl::Status& status) {
  std::fprintf(stderr, "embergate convert: %s\n", std::string(status.message()).c_str());
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) || absl::IsInternal(status) ? 1 : 2;
}

int Check(const State& state) {
  // One bar per stage, made when the stage begins.
  std::unique_ptr<ProgressBar> bar;
  std::string current;
  const auto progress = [&](const char* stage, uint64_t done, uint64_t total) {
    if (current != stage) {
      current = stage;
      bar =
          std::make_unique<ProgressBar>(absl::StrCat("check: ", stage),
                                        current == "comparing" ? ProgressBar::Unit::kItems : ProgressBar::Unit::kBytes);
    }
    bar->Update(done, total);
  };
  const absl::StatusOr<engine::CheckResult> result =
      engine::CheckConversion(state.folder, state.out, state.threads, progress);
  bar.reset();
  if (!result.ok()) {
    return Fail(result.status());
  }
  std::printf("\ncheck against the checkpoint's own values (%s), %d prompts of %s:\n", result->reference_type.c_str(),
              result->prompts, result->real_text ? "text" : "random ids, as there is no tokenizer");
  PrintEvaluation(result->evaluation, state.out, state.folder);
  return 0;
}

int FinishRows(const State& state) {
  engine::FinishRowsOptions options;
  options.ple = TypeOf(state.ple);
  options.threads = state.threads;
  ProgressBar bar("finishing rows");
  options.progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); };
  const absl::StatusOr<engine::FinishRowsSummary> summary = engine::FinishRows(state.folder, state.out, options);
  if (!summary.ok()) {
    return Fail(summary.status());
  }
  bar.Finish();
  std::printf("%s: %s, %s, %s finished rows in %s (RMS error %.2f %%); only Embergate serves it\n", state.out.c_str(),
              summary->architecture.c_str(), HumanBytes(summary->file_bytes).c_str(), HumanCount(summary->rows).c_str(),
              std::string(storage::TraitsOf(summary->type).name).c_str(), 100 * summary->rms_error);
  return 0;
}

int Run(const State& state) {
  if (state.finish_rows) {
    return FinishRows(state);
  }
  engine::ConvertOptions options;
  options.weights = *TypeOf(state.weights);
  options.embeddings = TypeOf(state.embeddings);
  options.ple = TypeOf(state.ple);
  options.keep_unused_kv = state.keep_unused_kv;
  options.name = state.name;
  options.threads = state.threads;
  options.note = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  ProgressBar bar("converting");
  options.progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); };
  const absl::StatusOr<engine::ConvertSummary> summary = engine::ConvertCheckpoint(state.folder, state.out, options);
  if (!summary.ok()) {
    return Fail(summary.status());
  }
  bar.Finish();
  PrintSummary(*summary, state);
  return state.check ? Check(state) : 0;
}

}  // namespace

void AddConvert(CLI::App& app) {
  CLI::App* convert = app.add_subcommand("convert", "Make a GGUF file of a Hugging Face folder");
  auto state = std::make_shared<State>();
  const auto type = CLI::IsMember(kTypes, CLI::ignore_case);
  convert
      ->add_option("folder", state->folder,
                   "Folder with config.json and model.safetensors (or its shards); with --finish-rows, a GGUF file")
      ->required()
      ->type_name("HF_FOLDER");
  convert->add_option("out", state->out, "File to write; appears under this name only when it is complete")
      ->required()
      ->type_name("OUT.gguf");
  convert->add_option("--weights", state->weights, "Type of the matrices")->check(type)->capture_default_str();
  convert
      ->add_option("--embeddings", state->embeddings,
                   "Type of the token embedding, which is the output head too (default: q6_k with 4-bit weights, "
                   "otherwise as --weights)")
      ->check(type);
  convert
      ->add_option("--ple", state->ple,
                   "Type of the per-layer embedding table, the part that stays on flash (default: q8_0 with quantised "
                   "weights, otherwise as --weights)")
      ->check(type);
  convert->add_option("--name", state->name, "general.name of the file (default: the folder's name)");
  convert->add_option("--threads", state->threads, "Threads that quantise")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  convert->add_flag("--keep-unused-kv", state->keep_unused_kv,
                    "Gemma 4: keep the key and value matrices of layers that read another layer's");
  convert->add_flag(
      "--finish-rows", state->finish_rows,
      "HF_FOLDER is a GGUF file; copy it with the per-layer table's rows finished, in the type of --ple or "
      "their own: every token is then spared the model's projection of per-layer inputs (13.8 million "
      "multiply-adds in Gemma 4 E2B). Only Embergate serves such a file");
  convert->add_flag("--check", state->check,
                    "Afterwards compare the result with the checkpoint on a set of prompts: KL divergence and top-1 "
                    "agreement (takes the checkpoint's size once more on disk, both models' weights in memory)");
  convert->footer(
      "Gemma 3n and Gemma 4 checkpoints in F32, F16 or BF16; multimodal ones lose their vision and audio parts.\n"
      "Norms, scales and AltUp's coefficients stay F32; per_layer_model_proj, altup and laurel matrices stay 16 bit\n"
      "beside quantised weights. A width that is no multiple of a type's block takes the next type that fits\n"
      "(q4_k: q4_0, q6_k: q8_0, then f16).\n"
      "Memory does not grow with the model. Exit codes: 0 done, 1 the disk failed, 2 the folder or a flag is at "
      "fault.\n"
      "Examples: embergate convert gemma-4-e2b-it-q4_0.gguf finished.gguf --finish-rows\n"
      "          embergate convert gemma-4-E2B-it gemma-4-e2b-it-q4_0.gguf --weights q4_0 --ple q8_0");
  convert->callback([state] {
    if (const int code = Run(*state); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
