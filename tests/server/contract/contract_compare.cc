#include "tests/server/contract/contract_compare.h"

#include <google/protobuf/descriptor.h>

#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/contract/proto_source.h"

namespace embergate::server {
namespace {

namespace pb = google::protobuf;

std::string TypeOf(const pb::FieldDescriptor& field) {
  if (field.message_type() != nullptr) {
    return field.message_type()->full_name();
  }
  return field.enum_type() != nullptr ? field.enum_type()->full_name() : field.type_name();
}

// Proto3's `optional` is a oneof of its own in descriptors; here only those that were written count.
std::string OneofOf(const pb::FieldDescriptor& field) {
  return field.real_containing_oneof() != nullptr ? field.real_containing_oneof()->name() : "";
}

class Comparer {
 public:
  explicit Comparer(const pb::DescriptorPool& current) : current_(current) {}

  void CompareFile(const pb::FileDescriptor& old) {
    const pb::FileDescriptor* now = current_.FindFileByName(old.name());
    if (now == nullptr) {
      Report(old.name(), "the file was removed");
      return;
    }
    if (now->package() != old.package()) {
      Report(old.name(), "the package changed");
    }
    CompareOptions(old.name(), old.options(), now->options());
    for (int i = 0; i < old.message_type_count(); ++i) {
      CompareMessage(*old.message_type(i));
    }
    for (int i = 0; i < old.enum_type_count(); ++i) {
      CompareEnum(*old.enum_type(i));
    }
    for (int i = 0; i < old.service_count(); ++i) {
      CompareService(*old.service(i));
    }
  }

  std::vector<std::string> TakeChanges() { return std::move(changes_); }

 private:
  void Report(const std::string& where, const std::string& what) {
    changes_.push_back(absl::StrCat(where, ": ", what));
  }

  // Those that say where generated code lies.
  void CompareOptions(const std::string& name, const pb::FileOptions& old, const pb::FileOptions& now) {
    if (old.java_package() != now.java_package() || old.java_multiple_files() != now.java_multiple_files() ||
        old.go_package() != now.go_package() || old.csharp_namespace() != now.csharp_namespace()) {
      Report(name, "an option that places generated code changed");
    }
  }

  // The counterpart of a message, an enum or a service, in the same file.
  template <typename T>
  const T* SamePlace(const T& old, const T* now, const char* kind) {
    if (now == nullptr) {
      Report(old.full_name(), absl::StrCat("the ", kind, " was removed"));
    } else if (now->file()->name() != old.file()->name()) {
      Report(old.full_name(), absl::StrCat("the ", kind, " moved to another file"));
    }
    return now;
  }

  template <typename T>
  void CompareReserved(const T& old, const T& now) {
    for (int i = 0; i < old.reserved_range_count(); ++i) {
      // The end is exclusive in messages and inclusive in enums.
      const int last = old.reserved_range(i)->end - (std::is_same_v<T, pb::Descriptor> ? 1 : 0);
      for (int number = old.reserved_range(i)->start; number <= last; ++number) {
        if (!now.IsReservedNumber(number)) {
          Report(old.full_name(), absl::StrCat("the number ", number, " is not reserved any more"));
        }
      }
    }
    for (int i = 0; i < old.reserved_name_count(); ++i) {
      if (!now.IsReservedName(old.reserved_name(i))) {
        Report(old.full_name(), absl::StrCat("the name ", old.reserved_name(i), " is not reserved any more"));
      }
    }
  }

  // A field or an enum value that is not there any more: whether it went as the rule has it.
  template <typename Container, typename Part>
  void CheckRemoval(const Container& now, const Part& old) {
    if (!old.options().deprecated()) {
      Report(old.full_name(), "removed, and was not deprecated in the released contract");
    } else if (!now.IsReservedNumber(old.number()) || !now.IsReservedName(old.name())) {
      Report(old.full_name(), "removed, and its number and name are not reserved");
    }
  }

  void CompareMessage(const pb::Descriptor& old) {
    const pb::Descriptor* now = SamePlace(old, current_.FindMessageTypeByName(old.full_name()), "message");
    if (now == nullptr) {
      return;
    }
    for (int i = 0; i < old.field_count(); ++i) {
      CompareField(*old.field(i), *now);
    }
    CompareReserved(old, *now);
    for (int i = 0; i < old.nested_type_count(); ++i) {
      CompareMessage(*old.nested_type(i));
    }
    for (int i = 0; i < old.enum_type_count(); ++i) {
      CompareEnum(*old.enum_type(i));
    }
  }

  void CompareField(const pb::FieldDescriptor& old, const pb::Descriptor& message) {
    const pb::FieldDescriptor* now = message.FindFieldByNumber(old.number());
    if (const pb::FieldDescriptor* same = message.FindFieldByName(old.name());
        same != nullptr && same->number() != old.number()) {
      Report(old.full_name(), absl::StrCat("renumbered from ", old.number(), " to ", same->number()));
      return;
    }
    if (now == nullptr) {
      CheckRemoval(message, old);
      return;
    }
    if (now->name() != old.name()) {
      Report(old.full_name(), absl::StrCat("renamed to ", now->name()));
    } else if (now->json_name() != old.json_name()) {
      Report(old.full_name(), "its JSON name changed");
    }
    if (now->is_repeated() != old.is_repeated()) {
      Report(old.full_name(), old.is_repeated() ? "repeated no longer" : "became repeated");
    } else if (now->type() != old.type() || TypeOf(*now) != TypeOf(old)) {
      Report(old.full_name(), absl::StrCat("its type changed from ", TypeOf(old), " to ", TypeOf(*now)));
    } else if (now->has_presence() != old.has_presence()) {
      Report(old.full_name(), old.has_presence() ? "lost its presence" : "got presence");
    }
    if (OneofOf(*now) != OneofOf(old)) {
      Report(old.full_name(), absl::StrCat("moved from oneof \"", OneofOf(old), "\" to \"", OneofOf(*now), "\""));
    }
  }

  void CompareEnum(const pb::EnumDescriptor& old) {
    const pb::EnumDescriptor* now = SamePlace(old, current_.FindEnumTypeByName(old.full_name()), "enum");
    if (now == nullptr) {
      return;
    }
    for (int i = 0; i < old.value_count(); ++i) {
      const pb::EnumValueDescriptor& value = *old.value(i);
      const pb::EnumValueDescriptor* same = now->FindValueByName(value.name());
      if (same != nullptr && same->number() != value.number()) {
        Report(value.full_name(), absl::StrCat("renumbered from ", value.number(), " to ", same->number()));
      } else if (same == nullptr && now->FindValueByNumber(value.number()) != nullptr) {
        Report(value.full_name(), absl::StrCat("renamed to ", now->FindValueByNumber(value.number())->name()));
      } else if (same == nullptr) {
        CheckRemoval(*now, value);
      }
    }
    CompareReserved(old, *now);
  }

  void CompareService(const pb::ServiceDescriptor& old) {
    const pb::ServiceDescriptor* now = SamePlace(old, current_.FindServiceByName(old.full_name()), "service");
    if (now == nullptr) {
      return;
    }
    for (int i = 0; i < old.method_count(); ++i) {
      const pb::MethodDescriptor& method = *old.method(i);
      const pb::MethodDescriptor* same = now->FindMethodByName(method.name());
      if (same == nullptr) {
        Report(method.full_name(), "the rpc was removed");
        continue;
      }
      if (same->input_type()->full_name() != method.input_type()->full_name()) {
        Report(method.full_name(), "takes another message");
      }
      if (same->output_type()->full_name() != method.output_type()->full_name()) {
        Report(method.full_name(), "returns another message");
      }
      if (same->client_streaming() != method.client_streaming() ||
          same->server_streaming() != method.server_streaming()) {
        Report(method.full_name(), "its streaming changed");
      }
    }
  }

  const pb::DescriptorPool& current_;
  std::vector<std::string> changes_;
};

}  // namespace

std::vector<std::string> BreakingChanges(const pb::FileDescriptorSet& released, const pb::FileDescriptorSet& current,
                                         const std::string& package) {
  pb::DescriptorPool old_pool, pool;
  BuildAll(released, &old_pool);
  BuildAll(current, &pool);
  Comparer comparer(pool);
  for (const pb::FileDescriptorProto& file : released.file()) {
    if (file.package() == package || absl::StartsWith(file.package(), absl::StrCat(package, "."))) {
      comparer.CompareFile(*old_pool.FindFileByName(file.name()));
    }
  }
  return comparer.TakeChanges();
}

}  // namespace embergate::server
