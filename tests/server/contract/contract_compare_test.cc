// The comparer itself: each kind of breaking change is found, and what breaks nothing is not.
#include "tests/server/contract/contract_compare.h"

#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/contract/proto_source.h"

namespace embergate::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kFile[] = "shop/v1/shop.proto";
constexpr char kReleased[] = R"(syntax = "proto3";
package shop.v1;
option java_package = "dev.shop.v1";
message Order {
  enum State { STATE_UNSPECIFIED = 0; STATE_OPEN = 1; STATE_OLD = 2 [deprecated = true]; reserved 9; }
  message Line { int32 count = 1; }
  string name = 1;
  optional int32 limit = 2;
  repeated Line lines = 3;
  oneof payment { string card = 4; Voucher voucher = 5; }
  State state = 6;
  map<string, int32> notes = 7;
  string old = 8 [deprecated = true];
  reserved 10, 20 to 22;
  reserved "gone";
}
message Voucher { string code = 1; }
message Answer { bool good = 1; }
service Shop {
  rpc Buy(Order) returns (Answer);
  rpc Watch(Order) returns (stream Answer);
}
)";

std::vector<std::string> After(const std::vector<std::pair<absl::string_view, absl::string_view>>& edits) {
  std::string changed = kReleased;
  for (const auto& [from, to] : edits) {
    EXPECT_THAT(changed, HasSubstr(std::string(from)));
    changed = absl::StrReplaceAll(changed, {{from, to}});
  }
  return BreakingChanges(CompileProtos({{kFile, kReleased}}), CompileProtos({{kFile, changed}}), "shop");
}

TEST(BreakingChangesTest, NothingAndAdditionsBreakNothing) {
  EXPECT_THAT(After({}), IsEmpty());
  EXPECT_THAT(After({{"STATE_OPEN = 1;", "STATE_OPEN = 1; STATE_NEW = 3;"},
                     {"int32 count = 1;", "int32 count = 1; int32 price = 2;"},
                     {"Voucher voucher = 5;", "Voucher voucher = 5; bool cash = 11;"},
                     {"reserved 10,", "reserved 10, 12,"},
                     {"message Voucher", "message Coupon {} message Voucher"},
                     {"rpc Buy", "rpc Sell(Order) returns (Coupon); rpc Buy"}}),
              IsEmpty());
}

TEST(BreakingChangesTest, WhatWasDeprecatedMayGoIfItIsReserved) {
  EXPECT_THAT(After({{"string old = 8 [deprecated = true];", "reserved 8; reserved \"old\";"}}), IsEmpty());
  EXPECT_THAT(After({{"STATE_OLD = 2 [deprecated = true];", "reserved 2; reserved \"STATE_OLD\";"}}), IsEmpty());
  EXPECT_THAT(After({{"string old = 8 [deprecated = true];", ""}}),
              ElementsAre(HasSubstr("Order.old: removed, and its")));
  EXPECT_THAT(After({{"string old = 8 [deprecated = true];", "reserved 8;"}}), ElementsAre(HasSubstr("Order.old")));
  EXPECT_THAT(After({{"STATE_OLD = 2 [deprecated = true];", ""}}),
              ElementsAre(HasSubstr("STATE_OLD: removed, and its")));
  EXPECT_THAT(After({{"string name = 1;", "reserved 1; reserved \"name\";"}}),
              ElementsAre("shop.v1.Order.name: removed, and was not deprecated in the released contract"));
}

struct Change {
  const char* from;
  const char* to;
  const char* report;
};

TEST(BreakingChangesTest, EachKindIsReportedAlone) {
  for (const Change& change : std::vector<Change>{
           {"string name = 1;", "", "shop.v1.Order.name: removed"},
           {"string name = 1;", "string name = 11;", "shop.v1.Order.name: renumbered from 1 to 11"},
           {"string name = 1;", "string title = 1;", "shop.v1.Order.name: renamed to title"},
           {"string name = 1;", "string name = 1 [json_name = \"n\"];", "shop.v1.Order.name: its JSON name"},
           {"string name = 1;", "bytes name = 1;", "shop.v1.Order.name: its type changed from string to bytes"},
           {"State state = 6;", "int32 state = 6;", "shop.v1.Order.state: its type changed from shop.v1.Order.State"},
           {"repeated Line lines", "repeated Voucher lines", "shop.v1.Order.lines: its type changed"},
           {"optional int32 limit", "int32 limit", "shop.v1.Order.limit: lost its presence"},
           {"string name = 1;", "optional string name = 1;", "shop.v1.Order.name: got presence"},
           {"optional int32 limit", "repeated int32 limit", "shop.v1.Order.limit: became repeated"},
           {"repeated Line lines", "Line lines", "shop.v1.Order.lines: repeated no longer"},
           {"map<string, int32>", "map<string, int64>", "shop.v1.Order.NotesEntry.value: its type changed"},
           {"Voucher voucher = 5; }", "} Voucher voucher = 5;", "shop.v1.Order.voucher: moved from oneof \"payment\""},
           {"oneof payment {", "oneof means {", "shop.v1.Order.card: moved from oneof \"payment\" to \"means\""},
           {"STATE_OPEN = 1;", "", "shop.v1.Order.STATE_OPEN: removed"},
           {"STATE_OPEN = 1;", "STATE_OPEN = 3;", "shop.v1.Order.STATE_OPEN: renumbered from 1 to 3"},
           {"STATE_OPEN = 1;", "STATE_BEGUN = 1;", "shop.v1.Order.STATE_OPEN: renamed to STATE_BEGUN"},
           {"reserved 9;", "", "shop.v1.Order.State: the number 9"},
           {"20 to 22", "20, 22", "shop.v1.Order: the number 21 is not reserved any more"},
           {"reserved \"gone\";", "", "shop.v1.Order: the name gone is not reserved any more"},
           {"rpc Buy(Order) returns (Answer);", "", "shop.v1.Shop.Buy: the rpc was removed"},
           {"rpc Buy(Order)", "rpc Buy(Voucher)", "shop.v1.Shop.Buy: takes another message"},
           {"rpc Buy(Order) returns (Answer)", "rpc Buy(Order) returns (Voucher)", "shop.v1.Shop.Buy: returns another"},
           {"rpc Buy(Order) returns (Answer)", "rpc Buy(Order) returns (stream Answer)", "Buy: its streaming changed"},
           {"rpc Watch(Order)", "rpc Watch(stream Order)", "shop.v1.Shop.Watch: its streaming changed"},
           {"dev.shop.v1", "com.shop.v1", "shop/v1/shop.proto: an option that places generated code changed"},
       }) {
    const std::vector<std::string> changes = After({{change.from, change.to}});
    EXPECT_FALSE(changes.empty()) << change.from << " -> " << change.to;
    for (const std::string& line : changes) {
      // Both fields of a renamed oneof are reported.
      EXPECT_THAT(line, ::testing::AnyOf(HasSubstr(change.report), HasSubstr("voucher: moved"))) << change.to;
    }
  }
}

TEST(BreakingChangesTest, RemovedTypesAndFilesAreReported) {
  EXPECT_THAT(After({{"message Voucher {", "message Coupon {"}, {"Voucher voucher = 5;", "Coupon voucher = 5;"}}),
              ::testing::Contains("shop.v1.Voucher: the message was removed"));
  EXPECT_THAT(After({{"enum State {", "enum Status {"}, {"State state = 6;", "Status state = 6;"}}),
              ::testing::Contains("shop.v1.Order.State: the enum was removed"));
  EXPECT_THAT(After({{"service Shop {", "service Store {"}}), ElementsAre("shop.v1.Shop: the service was removed"));
  const auto released = CompileProtos({{kFile, kReleased}});
  EXPECT_THAT(BreakingChanges(released, {}, "shop"), ElementsAre("shop/v1/shop.proto: the file was removed"));
  EXPECT_THAT(BreakingChanges(released, {}, "other"), IsEmpty());
  // The same message, elsewhere: imports and generated code break.
  const std::string rest =
      absl::StrReplaceAll(kReleased, {{"message Voucher { string code = 1; }", ""},
                                      {"package shop.v1;", "package shop.v1; import \"shop/v1/voucher.proto\";"}});
  const std::string voucher = "syntax = \"proto3\"; package shop.v1; message Voucher { string code = 1; }";
  EXPECT_THAT(BreakingChanges(released, CompileProtos({{kFile, rest}, {"shop/v1/voucher.proto", voucher}}), "shop"),
              ElementsAre("shop.v1.Voucher: the message moved to another file"));
}

}  // namespace
}  // namespace embergate::server
