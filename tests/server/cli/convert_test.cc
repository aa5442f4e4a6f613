// `embergate convert` and `embergate eval` through the binary.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using test::RunBinary;
using test::RunResult;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

const std::string kCheckpoint = EMBERGATE_GOLDEN_DIR "/gemma4-tiny-e2b";

class ConvertCommandTest : public ::testing::Test {
 protected:
  RunResult Convert(const std::string& name, std::vector<std::string> flags) {
    std::vector<std::string> args = {"convert", kCheckpoint, folder_.File(name)};
    args.insert(args.end(), flags.begin(), flags.end());
    return RunBinary(EMBERGATE_BINARY, args);
  }
  test::TempFolder folder_;
};

TEST_F(ConvertCommandTest, CheckPrintsWhatTheConversionCost) {
  const RunResult result = Convert("q4.gguf", {"--weights", "q4_0", "--check"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("check against the checkpoint's own values"), HasSubstr("prompts of text"),
                    ContainsRegex("KL divergence +mean [0-9.]+"), ContainsRegex("top-1 agreement +[0-9.]+")));
}

TEST_F(ConvertCommandTest, EvalComparesTwoFilesOnAText) {
  ASSERT_EQ(Convert("f32.gguf", {"--weights", "f32"}).code, 0);
  ASSERT_EQ(Convert("q8.gguf", {"--weights", "q8_0"}).code, 0);
  ASSERT_EQ(Convert("q4.gguf", {"--weights", "q4_0"}).code, 0);
  const std::string text = folder_.Write("text.txt", std::string(40, 'a') + " text of several words, to be scored\n");
  const auto kl = [&](const std::string& name) {
    const RunResult result = RunBinary(EMBERGATE_BINARY, {"eval", folder_.File(name), "--against",
                                                          folder_.File("f32.gguf"), "--text", text, "--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  };
  const nlohmann::json same = kl("f32.gguf");
  EXPECT_EQ(same["kl_mean"], 0.0);
  EXPECT_EQ(same["top1_agreement"], 1.0);
  EXPECT_EQ(same["perplexity"], same["reference_perplexity"]);
  EXPECT_GT(same["positions"], 20);
  const double q8 = kl("q8.gguf")["kl_mean"];
  const double q4 = kl("q4.gguf")["kl_mean"];
  EXPECT_GT(q8, 0);
  EXPECT_GT(q4, q8);

  const RunResult missing = RunBinary(EMBERGATE_BINARY, {"eval", folder_.File("q8.gguf"), "--text", "/no/such/file"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("/no/such/file"));
}

TEST_F(ConvertCommandTest, SaysWhatIsWrongWithTheFolder) {
  const RunResult result = RunBinary(EMBERGATE_BINARY, {"convert", folder_.path(), folder_.File("out.gguf")});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("embergate convert: "), HasSubstr("config.json")));
  EXPECT_EQ(Convert("x.gguf", {"--weights", "q9_9"}).code, 2) << "a flag's own check";
}

}  // namespace
}  // namespace embergate
