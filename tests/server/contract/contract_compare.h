// What of a released API a newer one breaks.
#ifndef EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_COMPARE_H_
#define EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_COMPARE_H_

#include <google/protobuf/descriptor.pb.h>

#include <string>
#include <vector>

namespace embergate::server {

// One line per change that breaks a client: on the wire, in JSON, or in code that was generated from the released
// files. Both sets hold what their files import. Additions break nothing. What the released contract marks `deprecated`
// may go if its number and name are reserved. Looks at the files of packages below `package` only.
std::vector<std::string> BreakingChanges(const google::protobuf::FileDescriptorSet& released,
                                         const google::protobuf::FileDescriptorSet& current,
                                         const std::string& package);

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_CONTRACT_CONTRACT_COMPARE_H_
