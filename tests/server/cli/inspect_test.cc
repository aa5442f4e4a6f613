// `embergate synth` and `embergate inspect` through the binary, as a user runs them.
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/gguf_bytes.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int exit_code = -1;
  std::string out;  // stdout and stderr together
};

Outcome RunBinary(const std::string& arguments) {
  Outcome outcome;
  std::FILE* const pipe = ::popen(absl::StrCat(EMBERGATE_BINARY, " ", arguments, " 2>&1").c_str(), "r");
  if (pipe == nullptr) {
    return outcome;
  }
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    outcome.out.append(buffer, got);
  }
  const int status = ::pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

class InspectTest : public ::testing::Test {
 protected:
  void Synthesise(const std::string& options) {
    const Outcome outcome = RunBinary(absl::StrCat("synth ", path_, " ", options));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.out;
  }
  test::TempFolder folder_;
  std::string path_ = folder_.File("model.gguf");
};

TEST_F(InspectTest, SynthesisedModelIsDescribed) {
  Synthesise("--shape gemma4-tiny --weights q8_0 --ple q4_0");
  const Outcome outcome = RunBinary("inspect " + path_);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("gemma4"), HasSubstr("15 layers (3 full attention, 8 sharing"),
                                 HasSubstr("per-layer table"), HasSubstr("flash"), HasSubstr("one row of 270 bytes"),
                                 HasSubstr("token ids only"), Not(HasSubstr("NOT SERVED"))));
}

TEST_F(InspectTest, JsonHasTheSameNumbersInBytes) {
  Synthesise("--shape gemma3n-tiny");
  const Outcome outcome = RunBinary("inspect --json --tensors --metadata " + path_);
  EXPECT_EQ(outcome.exit_code, 0);
  const auto json = nlohmann::json::parse(outcome.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << outcome.out;
  EXPECT_EQ(json["architecture"], "gemma3n");
  EXPECT_EQ(json["served"], true);
  EXPECT_EQ(json["file_bytes"], std::filesystem::file_size(path_));
  EXPECT_EQ(
      json["dram_bytes"].get<uint64_t>() + json["flash_bytes"].get<uint64_t>() + json["unused_bytes"].get<uint64_t>(),
      json["total"]["bytes"].get<uint64_t>());
  EXPECT_EQ(json["table_row_bytes"], 510);
  EXPECT_EQ(json["tensors"].size(), json["total"]["tensors"].get<size_t>());
  EXPECT_EQ(json["tensors"].back()["name"], "per_layer_token_embd.weight");
  EXPECT_EQ(json["tensors"].back()["file_offset"].get<uint64_t>() % 4096, 0u);
  EXPECT_EQ(json["metadata"]["gemma3n.block_count"], 15);
  EXPECT_EQ(json["metadata"]["gemma3n.attention.sliding_window_pattern"]["count"], 15);
}

TEST_F(InspectTest, ListsOfTensorsAndKeys) {
  Synthesise("--shape gemma4-tiny --type 'blk.?.ffn_*.weight=q5_0'");
  const Outcome outcome = RunBinary("inspect --tensors --metadata " + path_);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("blk.9.ffn_down.weight"), HasSubstr("Q5_0"), HasSubstr("gemma4.feed_forward_length"),
                    HasSubstr("[128, 128, 128, 128, 128, 128, ...] (15)")));
}

TEST_F(InspectTest, ForeignArchitectureIsDescribedAndSaidNotToBeServed) {
  test::GgufBytes bytes = test::RichGguf();
  bytes.entries[0] = test::Entry("general.architecture", storage::GgufValueType::kString, test::Str("llama\x1b[2J"));
  folder_.Write("model.gguf", bytes.Build());
  const Outcome outcome = RunBinary("inspect --metadata " + path_);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("NOT SERVED"), HasSubstr("llama"), HasSubstr("a.nested")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b"))) << "a file must not control the terminal";
  const Outcome json = RunBinary("inspect --json --metadata " + path_);
  EXPECT_TRUE(nlohmann::json::accept(json.out)) << json.out;
}

TEST_F(InspectTest, UnreadableFilesGiveExitCodeTwo) {
  Outcome outcome = RunBinary("inspect " + path_);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("embergate inspect: "), HasSubstr("No such file")));
  folder_.Write("model.gguf", "not a model");
  outcome = RunBinary("inspect " + path_);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.out, HasSubstr("not a GGUF file"));
}

TEST_F(InspectTest, SynthExplainsBadOptions) {
  for (const auto& [options, text] : {std::pair("--shape gemma9", "possible shapes: gemma4-e2b"),
                                      std::pair("--shape gemma4-tiny --weights q9", "'q9'"),
                                      std::pair("--shape gemma4-tiny --ple iq1_s", "possible types: F32"),
                                      std::pair("--shape gemma4-tiny --type nonsense", "is not PATTERN=TYPE"),
                                      std::pair("--shape gemma4-tiny --type 'none*=q8_0'", "matches no matrix")}) {
    const Outcome outcome = RunBinary(absl::StrCat("synth ", path_, " ", options));
    EXPECT_EQ(outcome.exit_code, 2) << options;
    EXPECT_THAT(outcome.out, HasSubstr(text));
    EXPECT_FALSE(std::filesystem::exists(path_));
  }
}

}  // namespace
}  // namespace embergate
