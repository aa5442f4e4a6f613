// The file of API keys: what it may say, and what is refused.
#include "server/api_keys.h"

#include <sys/stat.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Hex(const std::string& key) {
  const KeyDigest digest = DigestOf(key);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

TEST(ApiKeysTest, DigestIsSha256) {
  // FIPS 180-2, appendix B.1.
  EXPECT_EQ(Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ApiKeysTest, KeysAreLongAndNeverTheSame) {
  const std::string key = NewApiKey();
  EXPECT_EQ(key.size(), 3u + 43u) << "256 bits in base64";
  EXPECT_NE(key, NewApiKey());
}

TEST(ApiKeysTest, ALineComesBackAsItWasWritten) {
  ApiClient client;
  client.name = "team-a@example.org";
  client.keys = {DigestOf("one"), DigestOf("two")};
  client.limits = {60, 20000, 4, true, 2.5};
  const auto clients = ParseApiKeys(ApiClientLine(client));
  ASSERT_TRUE(clients.ok()) << clients.status();
  ASSERT_EQ(clients->size(), 1u);
  EXPECT_TRUE(clients->front() == client);
  EXPECT_THAT(ApiClientLine(client), Not(HasSubstr("one")));
}

TEST(ApiKeysTest, CommentsAndEmptyLinesArePassedOver) {
  const auto clients = ParseApiKeys(absl::StrCat("# all of us\n\n  alice\tsha256:", Hex("a"),
                                                 "  # until May\r\nbob sha256:", Hex("b"), " weight=0.5"));
  ASSERT_TRUE(clients.ok()) << clients.status();
  ASSERT_EQ(clients->size(), 2u);
  EXPECT_EQ((*clients)[0].name, "alice");
  EXPECT_EQ((*clients)[0].limits, ClientLimits());
  EXPECT_EQ((*clients)[1].limits.weight, 0.5);
}

TEST(ApiKeysTest, WhatIsWrongIsNamedByLineAndNotQuoted) {
  const std::string good = absl::StrCat("alice sha256:", Hex("a"), "\n");
  const struct {
    std::string line;
    const char* says;
  } rows[] = {
      {"bob", "no sha256"},
      {"bob sha256:abc", "64 hexadecimal"},
      {"bob SECRET", "sha256:HEX"},
      {absl::StrCat("bob sha256:", Hex("b"), " streams=0"), "streams=N"},
      {absl::StrCat("bob sha256:", Hex("b"), " weight=1000"), "weight="},
      {absl::StrCat("bob sha256:", Hex("b"), " priority=root"), "priority="},
      {absl::StrCat("bob sha256:", Hex("b"), " colour=red"), "with settings of these"},
      {absl::StrCat("b/ob sha256:", Hex("b")), "a name is"},
      {absl::StrCat("alice sha256:", Hex("b")), "repeats a name"},
      {absl::StrCat("bob sha256:", Hex("a")), "repeats a key"},
  };
  for (const auto& row : rows) {
    const auto clients = ParseApiKeys(good + row.line);
    EXPECT_EQ(clients.status().code(), absl::StatusCode::kInvalidArgument) << row.line;
    EXPECT_THAT(clients.status().message(), HasSubstr("line 2")) << row.line;
    EXPECT_THAT(clients.status().message(), HasSubstr(row.says)) << row.line;
    EXPECT_THAT(clients.status().message(), Not(HasSubstr("SECRET")));
  }
}

TEST(ApiKeysTest, AFileWithoutKeysOrOpenToAllIsRefused) {
  const test::TempFolder folder;
  EXPECT_EQ(ReadApiKeys(folder.File("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ReadApiKeys(folder.Write("empty", "# nobody\n")).status().message(), HasSubstr("keygen"));
  const std::string path = folder.Write("keys", absl::StrCat("alice sha256:", Hex("a"), "\n"));
  ASSERT_EQ(chmod(path.c_str(), 0666), 0);
  EXPECT_THAT(ReadApiKeys(path).status().message(), HasSubstr("written by everybody"));
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  EXPECT_TRUE(ReadApiKeys(path).ok());
}

}  // namespace
}  // namespace embergate::server
