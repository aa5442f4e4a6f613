#include "server/hot_list.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace embergate::server {
namespace {

constexpr size_t kFileBytesMax = 16u << 20;
constexpr size_t kTokensMax = 1u << 20;

// What makes a token id mean the same row.
nlohmann::json Identity(const engine::ModelInfo& model) {
  return {{"name", model.name},
          {"architecture", model.architecture},
          {"vocab_size", model.vocab_size},
          {"layers", model.layers},
          {"ple_width", model.ple_width}};
}

}  // namespace

absl::Status SaveHotList(const std::string& path, const engine::ModelInfo& model, const std::vector<int32_t>& tokens) {
  const nlohmann::json list = {{"version", 1}, {"model", Identity(model)}, {"tokens", tokens}};
  const std::string partial = path + ".partial";
  {
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    // A name of a model is bytes of a file: not always UTF-8.
    file << list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    file.flush();
    if (!file) {
      std::remove(partial.c_str());
      return absl::UnavailableError(absl::StrCat("cannot write ", partial));
    }
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  return error ? absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", error.message())) : absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> LoadHotList(const std::string& path, const engine::ModelInfo& model) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("there is no ", path));
  }
  file.seekg(0, std::ios::end);
  const std::streamoff size = file.tellg();
  if (size < 0 || static_cast<size_t>(size) > kFileBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a hot list"));
  }
  file.seekg(0);
  std::string text(static_cast<size_t>(size), '\0');
  file.read(text.data(), size);
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth <= 3; };
  const nlohmann::json list = nlohmann::json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!file || !list.is_object() || !list.contains("model") || !list.contains("tokens") || !list["tokens"].is_array() ||
      list["tokens"].size() > kTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a hot list; delete it"));
  }
  // Compared as text, since what was written may have been repaired to be UTF-8.
  const auto as_text = [](const nlohmann::json& json) {
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  if (as_text(list["model"]) != as_text(Identity(model))) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is the hot list of another model (", as_text(list["model"]), ")"));
  }
  std::vector<int32_t> tokens;
  tokens.reserve(list["tokens"].size());
  for (const nlohmann::json& token : list["tokens"]) {
    const int64_t id = token.is_number_integer() ? token.get<int64_t>() : -1;
    if (id < 0 || id >= model.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(path, " names a token that the model does not have; delete it"));
    }
    tokens.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

}  // namespace embergate::server
