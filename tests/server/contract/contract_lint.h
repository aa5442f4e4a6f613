// The style that the public .proto files keep.
#ifndef EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_LINT_H_
#define EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_LINT_H_

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace embergate::server {

// One line per offence:
// * the package ends in a version (.v1) and is the file's folder; file names are lower_snake_case
// * messages, enums, services and rpcs are PascalCase; fields and oneofs lower_snake_case
// * enum values are UPPER_SNAKE_CASE, begin with the enum's name, and the first is ..._UNSPECIFIED = 0
// * all of these have a comment, on the lines before or on the same line
// * an `optional` scalar is told what "not set" means: its comment names a default, or when it is not set
// `file` has to come with its source info.
std::vector<std::string> StyleOffences(const google::protobuf::FileDescriptor& file);

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_LINT_H_
