// embergate render: chat messages to the exact prompt of a model's family; no server, no weights.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/text/chat.h"
#include "engine/text/json_util.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/standard_input.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

absl::Status Run(const std::string& model) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<storage::GgufFile> file, storage::GgufFile::Open(model));
  EMBERGATE_ASSIGN_OR_RETURN(const absl::string_view architecture, file->GetString("general.architecture"));
  const std::optional<engine::ChatFormat> format = engine::ChatFormatOf(architecture);
  if (!format.has_value()) {
    return absl::UnimplementedError("no chat format for the architecture '" + std::string(architecture) +
                                    "'; known are gemma4 and gemma3n");
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadStandardInput());
  EMBERGATE_ASSIGN_OR_RETURN(const nlohmann::json input, engine::ParseBoundedJson(text));
  engine::ChatParseOptions options;
  options.allow_media = true;
  options.lenient = false;  // what the reference's template refuses is refused
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ChatRequest request, engine::ParseChatRequest(input, options));
  EMBERGATE_ASSIGN_OR_RETURN(const std::string prompt, engine::RenderChat(*format, request));
  if (std::fwrite(prompt.data(), 1, prompt.size(), stdout) != prompt.size() || std::fflush(stdout) != 0) {
    return absl::UnavailableError("cannot write to standard output");
  }
  return absl::OkStatus();
}

}  // namespace

void AddRender(CLI::App& app) {
  auto* command = app.add_subcommand("render", "Renders chat messages to the exact prompt text of a model");
  const auto model = std::make_shared<std::string>();
  command->add_option("model", *model, "GGUF file: its architecture picks the format")->required();
  command->footer(
      "Reads JSON with \"messages\" and, if wanted, \"tools\", \"enable_thinking\", \"preserve_thinking\" and\n"
      "\"add_generation_prompt\" from standard input; writes the prompt without a newline of its own:\n"
      "  echo '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}' | embergate render model.gguf");
  command->callback([model] {
    const absl::Status status = Run(*model);
    if (!status.ok()) {
      std::fprintf(stderr, "embergate render: %s\n", std::string(status.message()).c_str());
      throw CLI::RuntimeError(2);
    }
  });
}

}  // namespace embergate::server
