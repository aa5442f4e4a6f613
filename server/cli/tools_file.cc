#include "server/cli/tools_file.h"

#include "absl/strings/str_cat.h"
#include "engine/text/json_util.h"
#include "nlohmann/json.hpp"
#include "server/cli/client.h"
#include "storage/base/status_macros.h"

namespace embergate::server {

using nlohmann::json;

absl::Status AddTool(const json& element, const std::string& where, v1::ChatInput& chat) {
  const bool inner = element.is_object() && element.contains("function");
  const json& function = inner ? element.at("function") : element;
  if (!function.is_object() || !function.contains("name") || !function.at("name").is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has no name"));
  }
  v1::Tool& tool = *chat.add_tools();
  tool.set_name(function.at("name").get<std::string>());
  if (const auto description = function.find("description"); description != function.end() && !description->is_null()) {
    if (!description->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".description is no string"));
    }
    tool.set_description(description->get<std::string>());
  }
  if (const auto parameters = function.find("parameters"); parameters != function.end() && !parameters->is_null()) {
    if (!parameters->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".parameters is no object"));
    }
    tool.set_parameters_json(parameters->dump(-1, ' ', false, json::error_handler_t::replace));
  }
  return absl::OkStatus();
}

absl::Status AddTools(absl::string_view text, v1::ChatInput& chat) {
  EMBERGATE_ASSIGN_OR_RETURN(const json parsed, engine::ParseBoundedJson(std::string(text)));
  const bool wrapped = parsed.is_object() && parsed.contains("tools");
  const json& list = wrapped ? parsed.at("tools") : parsed;
  if (!list.is_array() || list.empty()) {
    return absl::InvalidArgumentError("no list of tools: write [{\"name\": .., \"parameters\": {..}}, ..]");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(AddTool(list[i], absl::StrCat("tools[", i, "]"), chat));
  }
  return absl::OkStatus();
}

absl::Status AddToolsFile(const std::string& path, v1::ChatInput& chat) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  const absl::Status status = AddTools(text, chat);
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace embergate::server
