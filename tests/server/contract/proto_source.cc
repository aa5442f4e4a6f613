#include "tests/server/contract/proto_source.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {

namespace pb = google::protobuf;

pb::FileDescriptorSet CompileProtos(const std::string& folder, const std::vector<std::string>& files) {
  const test::TempFolder out;
  std::vector<std::string> arguments = {"-I", folder, "--include_imports", "--include_source_info",
                                        absl::StrCat("--descriptor_set_out=", out.File("set"))};
  arguments.insert(arguments.end(), files.begin(), files.end());
  const test::RunResult result = test::RunBinary(EMBERGATE_PROTOC, arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  pb::FileDescriptorSet set;
  EXPECT_TRUE(set.ParseFromString(test::ReadFile(out.File("set"))));
  return set;
}

pb::FileDescriptorSet CompileProtos(const std::map<std::string, std::string>& files) {
  const test::TempFolder folder;
  std::vector<std::string> names;
  for (const auto& [name, text] : files) {
    std::filesystem::create_directories(std::filesystem::path(folder.File(name)).parent_path());
    folder.Write(name, text);
    names.push_back(name);
  }
  return CompileProtos(folder.path(), names);
}

void BuildAll(const pb::FileDescriptorSet& set, pb::DescriptorPool* pool) {
  for (const pb::FileDescriptorProto& file : set.file()) {
    EXPECT_NE(pool->BuildFile(file), nullptr) << file.name() << " does not fit to the files before it";
  }
}

}  // namespace embergate::server
