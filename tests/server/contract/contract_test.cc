// The public .proto files as a contract: they keep one style, and break nothing that was released. proto/README.md says
// what to do when this fails.
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/contract/contract_compare.h"
#include "tests/server/contract/contract_lint.h"
#include "tests/server/contract/proto_source.h"

namespace embergate::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kProtoFolder[] = EMBERGATE_SOURCE_DIR "/proto";

std::vector<std::string> PublicFiles() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(std::string(kProtoFolder) + "/embergate")) {
    if (entry.path().extension() == ".proto") {
      files.push_back(std::filesystem::relative(entry.path(), kProtoFolder).string());
    }
  }
  return files;
}

TEST(ContractTest, KeepsItsStyle) {
  ASSERT_GE(PublicFiles().size(), 6u);
  google::protobuf::DescriptorPool pool;
  BuildAll(CompileProtos(kProtoFolder, PublicFiles()), &pool);
  for (const std::string& name : PublicFiles()) {
    for (const std::string& offence : StyleOffences(*pool.FindFileByName(name))) {
      ADD_FAILURE() << offence;
    }
  }
}

TEST(ContractTest, BreaksNothingThatWasReleased) {
  std::ifstream in(std::string(kProtoFolder) + "/embergate/v1/released.txtpb");
  std::stringstream text;
  text << in.rdbuf();
  google::protobuf::FileDescriptorSet released;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text.str(), &released));
  ASSERT_GE(released.file_size(), 6);
  const auto current = CompileProtos(kProtoFolder, PublicFiles());
  for (const std::string& change : BreakingChanges(released, current, "embergate")) {
    ADD_FAILURE() << change;
  }
}

std::vector<std::string> Offences(const std::string& body, const std::string& file = "shop/v1/shop.proto",
                                  const std::string& package = "shop.v1") {
  google::protobuf::DescriptorPool pool;
  BuildAll(CompileProtos({{file, "syntax = \"proto3\";\npackage " + package + ";\n" + body}}), &pool);
  return StyleOffences(*pool.FindFileByName(file));
}

TEST(StyleTest, EachOffenceIsReported) {
  EXPECT_THAT(
      Offences("// An order.\nmessage Order {\n  string name = 1;  // whose\n  // Not set: 5.\n"
               "  optional int32 limit = 2;\n}\n// A state.\nenum State {\n  STATE_UNSPECIFIED = 0;  // none\n}\n"
               "// Sells.\nservice Shop {\n  // Sells.\n  rpc Buy(Order) returns (Order);\n}\n"),
      IsEmpty());
  EXPECT_THAT(Offences("message Order {}"), ElementsAre("shop.v1.Order: has no comment"));
  EXPECT_THAT(Offences("// An order.\nmessage order {}"), ElementsAre("shop.v1.order: is not PascalCase"));
  EXPECT_THAT(Offences("// An order.\nmessage Order {\n  string name = 1;\n}"),
              ElementsAre("shop.v1.Order.name: has no comment"));
  EXPECT_THAT(Offences("// An order.\nmessage Order {\n  string orderName = 1;  // it\n}"),
              ElementsAre("shop.v1.Order.orderName: is not lower_snake_case"));
  EXPECT_THAT(Offences("// An order.\nmessage Order {\n  optional int32 limit = 1;  // how many\n}"),
              ElementsAre(HasSubstr("Order.limit: is optional")));
  EXPECT_THAT(Offences("// An order.\nmessage Order {\n  oneof payment {\n    string card = 1;  // its number\n  }\n}"),
              ElementsAre("shop.v1.Order.payment: has no comment"));
  EXPECT_THAT(Offences("// A state.\nenum State {\n  STATE_OPEN = 0;  // open\n}"),
              ElementsAre(HasSubstr("State: does not begin with STATE_UNSPECIFIED = 0")));
  EXPECT_THAT(Offences("// A state.\nenum State {\n  STATE_UNSPECIFIED = 0;  // none\n  OPEN = 1;  // open\n}"),
              ElementsAre("shop.v1.OPEN: does not begin with STATE_"));
  EXPECT_THAT(Offences("// A state.\nenum State {\n  STATE_UNSPECIFIED = 0;  // none\n  STATE_open = 1;  // open\n}"),
              ElementsAre("shop.v1.STATE_open: is not UPPER_SNAKE_CASE"));
  EXPECT_THAT(Offences("// A state.\nenum State {\n  STATE_UNSPECIFIED = 0;\n}"),
              ElementsAre("shop.v1.STATE_UNSPECIFIED: has no comment"));
  EXPECT_THAT(
      Offences("// An order.\nmessage Order {}\n// Sells.\nservice Shop {\n  rpc Buy(Order) returns (Order);\n}"),
      ElementsAre("shop.v1.Shop.Buy: has no comment"));
  EXPECT_THAT(Offences("", "shop/v2/shop.proto"), ElementsAre(HasSubstr("its package is not its folder")));
  EXPECT_THAT(Offences("", "shop/v1/Shop.proto"), ElementsAre(HasSubstr("is not lower_snake_case")));
  EXPECT_THAT(Offences("", "shop/a.proto", "shop"), ElementsAre(HasSubstr("does not end in a version")));
}

}  // namespace
}  // namespace embergate::server
