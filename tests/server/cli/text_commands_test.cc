// `embergate tokenize` and `embergate render` through the binary, against all golden texts and conversations.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using nlohmann::json;
using test::RunBinary;
using test::RunResult;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kGolden = EMBERGATE_GOLDEN_DIR;

json ReadJson(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return json::parse(file);
}

RunResult RunEmbergate(const std::vector<std::string>& args, const std::string& input) {
  return RunBinary(EMBERGATE_BINARY, args, input);
}

json Parsed(const RunResult& result) {
  EXPECT_EQ(result.code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

// ---- tokenize -----------------------------------------------------------------------------------

class TokenizeTest : public ::testing::Test {
 protected:
  // A file with the golden tokenizer `name` and nothing of a model's to speak of.
  void MakeModel(const std::string& name, const std::string& suffix) {
    const bool gemma4 = name.rfind("gemma4", 0) == 0;
    const std::string folder = folder_.File(name + suffix);
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(absl::StrCat(kGolden, "/tokenizer/", name, suffix),
                               folder + (suffix == ".model" ? "/tokenizer.model" : "/tokenizer.json"));
    path_ = folder_.File(name + suffix + ".gguf");
    const RunResult made = RunBinary(
        EMBERGATE_BINARY, {"synth", path_, "--shape", gemma4 ? "gemma4-tiny" : "gemma3n-tiny", "--tokenizer", folder});
    ASSERT_EQ(made.code, 0) << made.err;
  }

  test::TempFolder folder_;
  std::string path_;
};

TEST_F(TokenizeTest, GivesTheGoldenIdsAndTexts) {
  for (const char* name : {"gemma4-tiny", "gemma3n-tiny"}) {
    for (const char* suffix : {".tokenizer.json", ".model"}) {
      MakeModel(name, suffix);
      const json golden = ReadJson(absl::StrCat(kGolden, "/tokenizer/", name, ".golden.json"));
      json texts = json::array(), plain = json::array(), special = json::array(), decoded = json::array();
      for (const json& item : golden["cases"]) {
        texts.push_back(item["text"]);
        plain.push_back(item["ids"]);
        special.push_back(item["tokenizer_json_ids"]);
        decoded.push_back(item["decoded"]);
      }
      ASSERT_EQ(texts.size(), 50u);
      EXPECT_EQ(Parsed(RunEmbergate({"tokenize", path_, "--parse-special"}, texts.dump())), special) << path_;

      // SentencePiece's own column finds the chat format's pieces in any text; here that takes --parse-special.
      const json ids = Parsed(RunEmbergate({"tokenize", path_}, texts.dump()));
      ASSERT_EQ(ids.size(), 50u);
      int equal = 0;
      for (size_t i = 0; i < ids.size(); ++i) {
        const std::string text = texts[i];
        const bool marker = text.find("turn") != std::string::npos || text.find("<unused") != std::string::npos;
        if (!marker) {
          EXPECT_EQ(ids[i], plain[i]) << text;
        }
        equal += ids[i] == plain[i];
      }
      EXPECT_GE(equal, 48);
      EXPECT_EQ(Parsed(RunEmbergate({"tokenize", path_, "--detokenize", "--parse-special"}, plain.dump())), decoded);
      EXPECT_EQ(Parsed(RunEmbergate({"tokenize", path_, "--add-bos"}, R"(["a"])"))[0][0], 2);
    }
  }
}

TEST_F(TokenizeTest, SaysWhatIsWrongWithTheInput) {
  MakeModel("gemma4-tiny", ".tokenizer.json");
  struct Row {
    const char* input;
    bool back;
    const char* says;
  };
  for (const Row& row : {Row{"Hello", false, "must be a JSON array of strings"},
                         Row{R"({"a":1})", false, "must be a JSON array of strings"},
                         Row{R"(["a", 7])", false, "element 1 is no string"},
                         Row{R"(["a"])", true, "element 0 is no array of token ids"},
                         Row{R"([[1, 2, 999999]])", true, "element 0 holds the id 999999; ids are 0 to 511"},
                         Row{R"([[-1]])", true, "holds the id -1"}, Row{"", false, "must be a JSON array"}}) {
    std::vector<std::string> args = {"tokenize", path_};
    if (row.back) {
      args.push_back("--detokenize");
    }
    const RunResult result = RunEmbergate(args, row.input);
    EXPECT_EQ(result.code, 2) << row.input;
    EXPECT_EQ(result.out, "") << row.input;
    EXPECT_THAT(result.err, AllOf(HasSubstr("embergate tokenize: "), HasSubstr(row.says)));
  }
  EXPECT_EQ(Parsed(RunEmbergate({"tokenize", path_}, "[]")), json::array());
  const RunResult missing = RunEmbergate({"tokenize", folder_.File("none.gguf")}, "[]");
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("none.gguf"));
}

TEST_F(TokenizeTest, AFileWithoutATokenizerIsRefused) {
  path_ = folder_.File("plain.gguf");
  ASSERT_EQ(RunBinary(EMBERGATE_BINARY, {"synth", path_, "--shape", "gemma4-tiny"}).code, 0);
  const RunResult result = RunEmbergate({"tokenize", path_}, R"(["a"])");
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("no tokenizer"));
}

// ---- render -------------------------------------------------------------------------------------

TEST(RenderTest, GivesEveryGoldenPromptByteForByte) {
  const test::TempFolder folder;
  for (const char* family : {"gemma3n", "gemma4"}) {
    const std::string path = folder.File(absl::StrCat(family, ".gguf"));
    ASSERT_EQ(RunBinary(EMBERGATE_BINARY, {"synth", path, "--shape", absl::StrCat(family, "-tiny")}).code, 0);
    const json golden = ReadJson(absl::StrCat(kGolden, "/chat/", family, ".json"));
    int rendered = 0;
    int refused = 0;
    for (const json& item : golden["cases"]) {
      const RunResult result = RunEmbergate({"render", path}, item.dump());
      if (item.contains("error")) {
        EXPECT_EQ(result.code, 2) << item;
        EXPECT_EQ(result.out, "") << item;
        EXPECT_EQ(result.err, absl::StrCat("embergate render: ", item["error"].get<std::string>(), "\n"));
        ++refused;
      } else {
        EXPECT_EQ(result.code, 0) << result.err;
        EXPECT_EQ(result.out, item["rendered"].get<std::string>()) << item;
        ++rendered;
      }
    }
    EXPECT_GE(rendered + refused, 9) << family;
    EXPECT_GE(rendered, 7) << family;
  }
}

TEST(RenderTest, SaysWhatIsWrongWithTheInput) {
  const test::TempFolder folder;
  const std::string path = folder.File("model.gguf");
  ASSERT_EQ(RunBinary(EMBERGATE_BINARY, {"synth", path, "--shape", "gemma4-tiny"}).code, 0);
  struct Row {
    const char* input;
    const char* says;
  };
  for (const Row& row :
       {Row{"Hello", "JSON"}, Row{"[]", "must be a JSON object with 'messages'"},
        Row{R"({"messages":{}})", "'messages' must be an array"},
        Row{R"({"messages":[{"role":"king","content":"x"}]})", "messages[0].role"},
        Row{R"({"messages":[{"role":"user","content":7}]})", "messages[0].content"},
        Row{R"({"messages":[{"role":"user","content":"x"}],"tools":1})", "'tools' must be an array"}}) {
    const RunResult result = RunEmbergate({"render", path}, row.input);
    EXPECT_EQ(result.code, 2) << row.input;
    EXPECT_EQ(result.out, "") << row.input;
    EXPECT_THAT(result.err, AllOf(HasSubstr("embergate render: "), HasSubstr(row.says)));
  }
}

}  // namespace
}  // namespace embergate
