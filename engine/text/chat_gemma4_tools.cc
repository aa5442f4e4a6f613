// Gemma 4's notation for the declaration of a tool. It follows the template's quirks to the byte: what an absent
// description, a missing type or a schema without properties gives is what the model was trained on.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/text/chat_internal.h"
#include "engine/text/python_text.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

// The member, or null: of what is no object, too.
const json& At(const json& value, const char* key) {
  static const json* const null = new json();
  if (!value.is_object()) {
    return *null;
  }
  const auto it = value.find(key);
  return it == value.end() ? *null : *it;
}

bool Has(const json& value, const char* key) { return value.is_object() && value.contains(key); }

// What `{{ value[key] }}` prints: nothing for an absent member.
std::string Printed(const json& value, const char* key) { return Has(value, key) ? PythonStr(At(value, key)) : ""; }

void AppendQuoted(absl::string_view text, PromptBuilder& out) {
  out.Special(kQuote);
  out.Text(text);
  out.Special(kQuote);
}

// ["a","b"] between brackets. The template also walks through the letters of a string; nobody means that.
absl::Status AppendRequired(const json& required, PromptBuilder& out) {
  if (!required.is_array()) {
    return absl::InvalidArgumentError("'required' in a tool's parameters must be a list of names");
  }
  out.Text("required:[");
  for (size_t i = 0; i < required.size(); ++i) {
    out.Text(i == 0 ? "" : ",");
    AppendQuoted(PythonStr(required[i]), out);
  }
  out.Text("]");
  return absl::OkStatus();
}

absl::Status AppendProperties(const json& properties, bool skip_keywords, PromptBuilder& out);

// The schema of an array's elements.
absl::Status AppendItems(const json& items, PromptBuilder& out) {
  out.Text("items:{");
  bool first = true;
  for (const auto& [key, value] : DictSort(items)) {
    if (value->is_null()) {
      continue;
    }
    out.Text(first ? "" : ",");
    first = false;
    if (key == "properties") {
      out.Text("properties:{");
      if (value->is_object()) {
        EMBERGATE_RETURN_IF_ERROR(AppendProperties(*value, /*skip_keywords=*/false, out));
      }
      out.Text("}");
    } else if (key == "required") {
      EMBERGATE_RETURN_IF_ERROR(AppendRequired(*value, out));
    } else if (key == "type") {
      out.Text("type:");
      if (value->is_string()) {
        AppendArgument(PythonUpper(value->get<std::string>()), /*quote_keys=*/true, out);
      } else if (value->is_array()) {
        json upper = json::array();
        for (const json& type : *value) {
          upper.push_back(PythonUpper(PythonStr(type)));
        }
        AppendArgument(upper, /*quote_keys=*/true, out);
      } else {
        return absl::InvalidArgumentError("'type' of a tool parameter's items must be a string or a list");
      }
    } else {
      out.Text(key);
      out.Text(":");
      AppendArgument(*value, /*quote_keys=*/true, out);
    }
  }
  out.Text("}");
  return absl::OkStatus();
}

// KEY:{description:..,...,type:..}, comma by comma.
absl::Status AppendProperty(const std::string& key, const json& schema, PromptBuilder& out) {
  bool comma = false;
  const auto separate = [&] {
    out.Text(comma ? "," : "");
    comma = true;
  };
  const std::string type = PythonUpper(Printed(schema, "type"));
  out.Text(key);
  out.Text(":{");
  if (PythonTrue(At(schema, "description"))) {
    separate();
    out.Text("description:");
    AppendQuoted(Printed(schema, "description"), out);
  }
  if (type == "STRING" && PythonTrue(At(schema, "enum"))) {
    separate();
    out.Text("enum:");
    AppendArgument(At(schema, "enum"), /*quote_keys=*/true, out);
  }
  if (type == "ARRAY" && At(schema, "items").is_object() && !At(schema, "items").empty()) {
    separate();
    EMBERGATE_RETURN_IF_ERROR(AppendItems(At(schema, "items"), out));
  }
  if (PythonTrue(At(schema, "nullable"))) {
    separate();
    out.Text("nullable:true");
  }
  if (type == "OBJECT") {
    separate();
    out.Text("properties:{");
    if (At(schema, "properties").is_object()) {
      EMBERGATE_RETURN_IF_ERROR(AppendProperties(At(schema, "properties"), /*skip_keywords=*/false, out));
    } else {
      // An object without properties: the schema's own other members stand for them.
      EMBERGATE_RETURN_IF_ERROR(AppendProperties(schema, /*skip_keywords=*/true, out));
    }
    out.Text("}");
    if (PythonTrue(At(schema, "required"))) {
      separate();
      EMBERGATE_RETURN_IF_ERROR(AppendRequired(At(schema, "required"), out));
    }
  }
  separate();
  out.Text("type:");
  AppendQuoted(type, out);
  out.Text("}");
  return absl::OkStatus();
}

absl::Status AppendProperties(const json& properties, bool skip_keywords, PromptBuilder& out) {
  bool first = true;
  for (const auto& [key, schema] : DictSort(properties)) {
    if (skip_keywords &&
        (key == "description" || key == "type" || key == "properties" || key == "required" || key == "nullable")) {
      continue;
    }
    out.Text(first ? "" : ",");
    first = false;
    EMBERGATE_RETURN_IF_ERROR(AppendProperty(key, *schema, out));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AppendToolDeclaration(const json& tool, PromptBuilder& out) {
  const json& function = At(tool, "function");
  if (!function.is_object() || !At(function, "name").is_string()) {
    return absl::InvalidArgumentError("every tool must be {\"type\":\"function\",\"function\":{\"name\":...}}");
  }
  out.Text(absl::StrCat("declaration:", At(function, "name").get<std::string>(), "{description:"));
  AppendQuoted(Printed(function, "description"), out);
  const json& parameters = At(function, "parameters");
  if (PythonTrue(parameters)) {
    out.Text(",parameters:{");
    const json& properties = At(parameters, "properties");
    if (PythonTrue(properties)) {
      if (!properties.is_object()) {
        return absl::InvalidArgumentError("'properties' of a tool's parameters must be an object");
      }
      out.Text("properties:{");
      EMBERGATE_RETURN_IF_ERROR(AppendProperties(properties, /*skip_keywords=*/false, out));
      out.Text("},");
    }
    if (PythonTrue(At(parameters, "required"))) {
      EMBERGATE_RETURN_IF_ERROR(AppendRequired(At(parameters, "required"), out));
      out.Text(",");
    }
    if (PythonTrue(At(parameters, "type"))) {  // without a type the brace stays open: so does the template
      out.Text("type:");
      AppendQuoted(PythonUpper(Printed(parameters, "type")), out);
      out.Text("}");
    }
  }
  if (Has(function, "response")) {
    const json& response = At(function, "response");
    out.Text(",response:{");
    if (PythonTrue(At(response, "description"))) {
      out.Text("description:");
      AppendQuoted(Printed(response, "description"), out);
      out.Text(",");
    }
    if (PythonUpper(Printed(response, "type")) == "OBJECT") {
      out.Text("type:");
      AppendQuoted("OBJECT", out);
      out.Text("}");
    }
  }
  out.Text("}");
  return absl::OkStatus();
}

}  // namespace embergate::engine
