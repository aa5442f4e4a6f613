// The hot list: what is kept, what is refused, and a start that begins warm.
#include "server/hot_list.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/tiny_model.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

engine::ModelInfo Info() {
  engine::ModelInfo info;
  info.name = "a \xff name";
  info.architecture = "gemma4";
  info.vocab_size = 100;
  info.layers = 3;
  info.ple_width = 8;
  return info;
}

TEST(HotListTest, ComesBackAsItWasSaved) {
  const test::TempFolder folder;
  const std::string path = folder.File("hot.json");
  const std::vector<int32_t> tokens = {99, 0, 7};
  ASSERT_TRUE(SaveHotList(path, Info(), {1}).ok());
  ASSERT_TRUE(SaveHotList(path, Info(), tokens).ok());
  const auto loaded = LoadHotList(path, Info());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*loaded, tokens);
}

TEST(HotListTest, AnotherModelsListIsRefused) {
  const test::TempFolder folder;
  const std::string path = folder.File("hot.json");
  ASSERT_TRUE(SaveHotList(path, Info(), {1, 2}).ok());
  engine::ModelInfo other = Info();
  other.vocab_size = 101;
  EXPECT_EQ(LoadHotList(path, other).status().code(), absl::StatusCode::kFailedPrecondition);
  other = Info();
  other.name = "another";
  EXPECT_THAT(std::string(LoadHotList(path, other).status().message()), HasSubstr("another model"));
}

TEST(HotListTest, WhatIsNoHotListIsRefused) {
  const test::TempFolder folder;
  EXPECT_EQ(LoadHotList(folder.File("none"), Info()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadHotList(folder.path(), Info()).status().code(), absl::StatusCode::kInvalidArgument);
  const std::string path = folder.File("hot.json");
  ASSERT_TRUE(SaveHotList(path, Info(), {1, 2}).ok());
  const std::string good = test::ReadFile(path);
  std::vector<std::string> bad = {"",
                                  "{",
                                  "[]",
                                  "{\"version\":1}",
                                  good.substr(0, good.size() / 2),
                                  std::string(100000, '['),
                                  std::string(17u << 20, ' ')};
  for (const char* tokens : {"[1,100]", "[-1]", "[1.5]", "[\"1\"]", "[[1]]", "7", "[99999999999999999999]"}) {
    std::string edited = good;
    edited.replace(edited.find("[1,2]"), 5, tokens);
    bad.push_back(edited);
  }
  for (const std::string& text : bad) {
    const auto loaded = LoadHotList(folder.Write("bad.json", text), Info());
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 200);
  }
}

TEST(HotListTest, AFolderThatIsNotThereIsAnError) {
  EXPECT_EQ(SaveHotList("/no/such/folder/hot.json", Info(), {}).code(), absl::StatusCode::kUnavailable);
}

TEST(HotListTest, AServerStartsWithTheRowsOfTheLastOne) {
  const test::TempFolder folder;
  const std::string model = TinyModel(folder);
  const std::string path = folder.File("hot.json");
  const v1::GenerateRequest request = IdsRequest({2, 100, 200, 300, 400}, 1);
  {
    TinyServer server(TinyOptions(model));
    EXPECT_EQ(server.host().WarmHotRows(path).status().code(), absl::StatusCode::kNotFound);
    ASSERT_TRUE(Generate(server.stub(), request).status.ok());
    ASSERT_TRUE(server.host().SaveHotRows(path).ok());
  }
  TinyServer server(TinyOptions(model));
  const auto warm = server.host().WarmHotRows(path);
  ASSERT_TRUE(warm.ok()) << warm.status();
  EXPECT_EQ(*warm, 5);
  EXPECT_EQ(server.host().served().row_stats().rows_read, 5u);
  ASSERT_TRUE(Generate(server.stub(), request).status.ok());
  EXPECT_EQ(server.host().served().row_stats().rows_read, 5u) << "all were there";
}

}  // namespace
}  // namespace embergate::server
