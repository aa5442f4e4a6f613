#include "server/cli/tools_file.h"

#include "absl/strings/str_cat.h"
#include "engine/text/json_util.h"
#include "nlohmann/json.hpp"
#include "server/cli/client.h"
#include "storage/base/status_macros.h"

namespace embergate::server {

using nlohmann::json;

absl::Status AddTools(absl::string_view text, v1::ChatInput& chat) {
  EMBERGATE_ASSIGN_OR_RETURN(const json parsed, engine::ParseBoundedJson(std::string(text)));
  const bool wrapped = parsed.is_object() && parsed.contains("tools");
  const json& list = wrapped ? parsed.at("tools") : parsed;
  if (!list.is_array() || list.empty()) {
    return absl::InvalidArgumentError("no list of tools: write [{\"name\": .., \"parameters\": {..}}, ..]");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat("tools[", i, "]");
    const bool inner = list[i].is_object() && list[i].contains("function");
    const json& function = inner ? list[i].at("function") : list[i];
    if (!function.is_object() || !function.contains("name") || !function.at("name").is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(where, " has no name"));
    }
    v1::Tool& tool = *chat.add_tools();
    tool.set_name(function.at("name").get<std::string>());
    if (function.contains("description")) {
      if (!function.at("description").is_string()) {
        return absl::InvalidArgumentError(absl::StrCat(where, ".description is no string"));
      }
      tool.set_description(function.at("description").get<std::string>());
    }
    if (function.contains("parameters")) {
      if (!function.at("parameters").is_object()) {
        return absl::InvalidArgumentError(absl::StrCat(where, ".parameters is no object"));
      }
      tool.set_parameters_json(function.at("parameters").dump(-1, ' ', false, json::error_handler_t::replace));
    }
  }
  return absl::OkStatus();
}

absl::Status AddToolsFile(const std::string& path, v1::ChatInput& chat) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  const absl::Status status = AddTools(text, chat);
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace embergate::server
