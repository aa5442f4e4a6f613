// .proto files, compiled by protoc: descriptors with their comments.
#ifndef EMBERGATE_TESTS_SERVER_CONTRACT_PROTO_SOURCE_H_
#define EMBERGATE_TESTS_SERVER_CONTRACT_PROTO_SOURCE_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <map>
#include <string>
#include <vector>

namespace embergate::server {

// These files and what they import, in an order in which they can be built, with source info. `folder` is what imports
// are relative to. Fails the test where they do not compile.
google::protobuf::FileDescriptorSet CompileProtos(const std::string& folder, const std::vector<std::string>& files);
// The same for file names and their text.
google::protobuf::FileDescriptorSet CompileProtos(const std::map<std::string, std::string>& files);

// Fails the test for files that do not fit together.
void BuildAll(const google::protobuf::FileDescriptorSet& set, google::protobuf::DescriptorPool* pool);

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_CONTRACT_PROTO_SOURCE_H_
