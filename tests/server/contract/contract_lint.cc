#include "tests/server/contract/contract_lint.h"

#include <google/protobuf/descriptor.pb.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace embergate::server {
namespace {

namespace pb = google::protobuf;

bool IsSnake(absl::string_view name, bool upper) {
  const auto letter = [upper](char c) { return upper ? absl::ascii_isupper(c) : absl::ascii_islower(c); };
  return !name.empty() && letter(name.front()) && name.back() != '_' && !absl::StrContains(name, "__") &&
         std::all_of(name.begin(), name.end(), [&](char c) { return letter(c) || absl::ascii_isdigit(c) || c == '_'; });
}

bool IsPascal(absl::string_view name) {
  return !name.empty() && absl::ascii_isupper(name.front()) &&
         std::all_of(name.begin(), name.end(), absl::ascii_isalnum);
}

// "FinishReason" -> "FINISH_REASON_"
std::string ValuePrefix(absl::string_view enum_name) {
  std::string prefix;
  for (const char c : enum_name) {
    if (absl::ascii_isupper(c) && !prefix.empty()) {
      prefix += '_';
    }
    prefix += absl::ascii_toupper(c);
  }
  return prefix + "_";
}

bool IsVersion(absl::string_view part) {
  return part.size() >= 2 && part.front() == 'v' && std::all_of(part.begin() + 1, part.end(), absl::ascii_isdigit);
}

class Linter {
 public:
  void Lint(const pb::FileDescriptor& file) {
    const size_t slash = file.name().rfind('/');
    const std::string folder = slash == std::string::npos ? "" : file.name().substr(0, slash);
    const std::string base = file.name().substr(slash + 1);
    Expect(IsVersion(file.package().substr(file.package().rfind('.') + 1)), file.name(),
           "its package does not end in a version");
    Expect(absl::StrReplaceAll(file.package(), {{".", "/"}}) == folder, file.name(), "its package is not its folder");
    Expect(IsSnake(base.substr(0, base.rfind('.')), false), file.name(), "is not lower_snake_case");
    for (int i = 0; i < file.message_type_count(); ++i) {
      Message(*file.message_type(i));
    }
    for (int i = 0; i < file.enum_type_count(); ++i) {
      Enum(*file.enum_type(i));
    }
    for (int i = 0; i < file.service_count(); ++i) {
      const pb::ServiceDescriptor& service = *file.service(i);
      Named(service, IsPascal(service.name()), "is not PascalCase");
      for (int m = 0; m < service.method_count(); ++m) {
        Named(*service.method(m), IsPascal(service.method(m)->name()), "is not PascalCase");
      }
    }
  }

  std::vector<std::string> offences;

 private:
  void Expect(bool good, const std::string& where, const std::string& what) {
    if (!good) {
      offences.push_back(absl::StrCat(where, ": ", what));
    }
  }

  template <typename T>
  static std::string CommentOf(const T& element) {
    pb::SourceLocation location;
    return element.GetSourceLocation(&location)
               ? absl::StrCat(location.leading_comments, "\n", location.trailing_comments)
               : "";
  }

  template <typename T>
  void Named(const T& element, bool good_name, const char* what) {
    Expect(good_name, element.full_name(), what);
    const std::string comment = CommentOf(element);
    Expect(!absl::StripAsciiWhitespace(comment).empty(), element.full_name(), "has no comment");
  }

  void Message(const pb::Descriptor& message) {
    if (message.options().map_entry()) {
      return;
    }
    Named(message, IsPascal(message.name()), "is not PascalCase");
    for (int i = 0; i < message.field_count(); ++i) {
      const pb::FieldDescriptor& field = *message.field(i);
      Named(field, IsSnake(field.name(), false), "is not lower_snake_case");
      const std::string comment = absl::AsciiStrToLower(CommentOf(field));
      Expect(!field.has_optional_keyword() || absl::StrContains(comment, "default") ||
                 absl::StrContains(comment, "not set") || absl::StrContains(comment, "only"),
             field.full_name(), "is optional, and its comment does not say what \"not set\" means");
    }
    for (int i = 0; i < message.real_oneof_decl_count(); ++i) {
      Named(*message.oneof_decl(i), IsSnake(message.oneof_decl(i)->name(), false), "is not lower_snake_case");
    }
    for (int i = 0; i < message.nested_type_count(); ++i) {
      Message(*message.nested_type(i));
    }
    for (int i = 0; i < message.enum_type_count(); ++i) {
      Enum(*message.enum_type(i));
    }
  }

  void Enum(const pb::EnumDescriptor& type) {
    Named(type, IsPascal(type.name()), "is not PascalCase");
    const std::string prefix = ValuePrefix(type.name());
    for (int i = 0; i < type.value_count(); ++i) {
      const pb::EnumValueDescriptor& value = *type.value(i);
      Named(value, IsSnake(value.name(), true), "is not UPPER_SNAKE_CASE");
      Expect(absl::StartsWith(value.name(), prefix), value.full_name(), absl::StrCat("does not begin with ", prefix));
    }
    Expect(type.value(0)->number() == 0 && type.value(0)->name() == prefix + "UNSPECIFIED", type.full_name(),
           absl::StrCat("does not begin with ", prefix, "UNSPECIFIED = 0"));
  }
};

}  // namespace

std::vector<std::string> StyleOffences(const pb::FileDescriptor& file) {
  Linter linter;
  linter.Lint(file);
  return linter.offences;
}

}  // namespace embergate::server
