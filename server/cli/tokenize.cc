// embergate tokenize: text to ids and back with a model file's vocabulary; no server, no weights.
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/json_util.h"
#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/standard_input.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

using ::nlohmann::json;

struct Options {
  std::string model;
  bool parse_special = false;
  bool add_bos = false;
  bool detokenize = false;
};

absl::StatusOr<std::unique_ptr<engine::Tokenizer>> LoadTokenizer(const std::string& path) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<storage::GgufFile> file, storage::GgufFile::Open(path));
  EMBERGATE_ASSIGN_OR_RETURN(engine::Vocabulary vocabulary, engine::VocabularyFromGguf(*file));
  return engine::Tokenizer::Create(std::move(vocabulary));
}

absl::StatusOr<json> Tokenize(const engine::Tokenizer& tokenizer, const Options& options, const json& texts) {
  engine::EncodeOptions encode;
  encode.parse_special = options.parse_special;
  encode.add_bos = options.add_bos;
  json out = json::array();
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!texts[i].is_string()) {
      return absl::InvalidArgumentError("element " + std::to_string(i) + " is no string");
    }
    out.push_back(tokenizer.Encode(texts[i].get_ref<const std::string&>(), encode));
  }
  return out;
}

absl::StatusOr<json> Detokenize(const engine::Tokenizer& tokenizer, const Options& options, const json& lists) {
  json out = json::array();
  for (size_t i = 0; i < lists.size(); ++i) {
    const auto bad = [i] {
      return absl::InvalidArgumentError("element " + std::to_string(i) + " is no array of token ids");
    };
    if (!lists[i].is_array()) {
      return bad();
    }
    std::vector<int32_t> ids;
    for (const json& value : lists[i]) {
      if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= tokenizer.size()) {
        return value.is_number_integer()
                   ? absl::InvalidArgumentError("element " + std::to_string(i) + " holds the id " + value.dump() +
                                                "; ids are 0 to " + std::to_string(tokenizer.size() - 1))
                   : bad();
      }
      ids.push_back(value.get<int32_t>());
    }
    out.push_back(tokenizer.Decode(ids, options.parse_special));
  }
  return out;
}

absl::Status Run(const Options& options) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Tokenizer> tokenizer, LoadTokenizer(options.model));
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadStandardInput());
  absl::StatusOr<json> input = engine::ParseBoundedJson(text, /*depth_max=*/2);
  if (!input.ok() || !input->is_array()) {
    return absl::InvalidArgumentError(std::string("standard input must be a JSON array of ") +
                                      (options.detokenize ? "arrays of token ids" : "strings") +
                                      (input.ok() ? "" : ": " + std::string(input.status().message())));
  }
  EMBERGATE_ASSIGN_OR_RETURN(const json output, options.detokenize ? Detokenize(*tokenizer, options, *input)
                                                                   : Tokenize(*tokenizer, options, *input));
  const std::string line = output.dump() + "\n";
  if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size() || std::fflush(stdout) != 0) {
    return absl::UnavailableError("cannot write to standard output");
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app) {
  auto* command =
      app.add_subcommand("tokenize", "Turns texts into token ids, or ids into texts, with a model's vocabulary");
  const auto options = std::make_shared<Options>();
  command->add_option("model", options->model, "GGUF file (its tensors are not read)")->required();
  command->add_flag("--parse-special", options->parse_special,
                    "Recognise control tokens such as <|turn> in the texts; with --detokenize, show them");
  command->add_flag("--add-bos", options->add_bos, "Put the begin-of-sequence token in front");
  command->add_flag("--detokenize", options->detokenize, "The other way: an array of id arrays in, texts out");
  command->footer(
      "Reads a JSON array of strings from standard input and writes an array of id arrays:\n"
      "  echo '[\"Hello\"]' | embergate tokenize model.gguf");
  command->callback([options] {
    const absl::Status status = Run(*options);
    if (!status.ok()) {
      std::fprintf(stderr, "embergate tokenize: %s\n", std::string(status.message()).c_str());
      throw CLI::RuntimeError(2);
    }
  });
}

}  // namespace embergate::server
