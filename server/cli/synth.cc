// `embergate synth`: a model file of a real shape with random weights.
#include "engine/convert/synth.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/random_blocks.h"
#include "engine/convert/shapes.h"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "server/cli/progress.h"
#include "storage/tensor_type.h"

namespace embergate::server {
namespace {

using engine::ModelShape;
using engine::SynthOptions;

struct SynthFlags {
  std::string out;
  std::string shape;
  std::string weights = "q4_0";
  std::string ple = "q8_0";
  std::vector<std::string> types;  // PATTERN=TYPE
  std::string tokenizer;
  uint64_t seed = 1;
};

[[noreturn]] void Fail(const std::string& message, int exit_code) {
  std::fprintf(stderr, "embergate synth: %s\n", message.c_str());
  throw CLI::RuntimeError(exit_code);
}

storage::TensorType ParseType(const std::string& option, const std::string& name) {
  const storage::TensorTypeTraits* const traits = storage::FindTensorTypeByName(name);
  if (traits == nullptr || !engine::RandomBlocks::Supports(traits->type)) {
    Fail(absl::StrCat(option, ": '", name,
                      "' is no type that can be made; possible types: ", engine::RandomBlocks::SupportedNames()),
         2);
  }
  return traits->type;
}

std::string ShapeNames() {
  std::string names;
  for (const ModelShape& shape : engine::ModelShapes()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", shape.name);
  }
  return names;
}

void RunSynth(const SynthFlags& flags) {
  const ModelShape* const shape = engine::FindModelShape(flags.shape);
  if (shape == nullptr) {
    Fail(absl::StrCat("--shape: there is no shape '", flags.shape, "'; possible shapes: ", ShapeNames()), 2);
  }
  SynthOptions options;
  options.weights = ParseType("--weights", flags.weights);
  options.ple = ParseType("--ple", flags.ple);
  for (const std::string& change : flags.types) {
    const size_t equals = change.rfind('=');
    if (equals == std::string::npos || equals == 0) {
      Fail(absl::StrCat("--type: '", change, "' is not PATTERN=TYPE, such as 'blk.*.ffn_down.weight=q6_k'"), 2);
    }
    options.overrides.push_back({change.substr(0, equals), ParseType("--type", change.substr(equals + 1))});
  }
  options.tokenizer_folder = flags.tokenizer;
  options.seed = flags.seed;
  options.note = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  std::optional<ProgressBar> bar(std::in_place, "writing");
  options.progress = [&bar](uint64_t done, uint64_t total) { bar->Update(done, total); };
  const absl::StatusOr<engine::SynthSummary> summary = engine::SynthesiseModel(*shape, flags.out, options);
  if (!summary.ok()) {
    bar.reset();
    Fail(std::string(summary.status().message()), absl::IsInvalidArgument(summary.status()) ? 2 : 1);
  }
  bar->Finish();
  std::printf("%s: %s, %s parameters in %d tensors, %s of it the per-layer table; random weights, no meaning\n",
              flags.out.c_str(), HumanBytes(summary->file_bytes).c_str(), HumanCount(summary->parameters).c_str(),
              summary->tensors, HumanBytes(summary->table_bytes).c_str());
}

}  // namespace

void AddSynth(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("synth", "Write a model file of a real shape with random weights, for benchmarks and tests");
  const auto flags = std::make_shared<SynthFlags>();
  command->add_option("out", flags->out, "The GGUF file to write")->required();
  command->add_option("--shape", flags->shape, absl::StrCat("One of ", ShapeNames()))->required();
  command->add_option("--weights", flags->weights, "Type of the matrices and the token embedding")
      ->capture_default_str();
  command->add_option("--ple", flags->ple, "Type of the per-layer table")->capture_default_str();
  command->add_option("--type", flags->types,
                      "PATTERN=TYPE: type of the matrices whose names match, such as 'blk.*.ffn_down.weight=q6_k'; "
                      "may be repeated, later ones win");
  command->add_option("--tokenizer", flags->tokenizer,
                      "Folder with a tokenizer.json or tokenizer.model; without it the file takes token ids only");
  command->add_option("--seed", flags->seed, "Same seed, same file")->capture_default_str();
  command->callback([flags] { RunSynth(*flags); });
}

}  // namespace embergate::server
