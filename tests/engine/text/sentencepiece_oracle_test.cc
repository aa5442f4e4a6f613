// SentencePiece's own program, spm_encode, as the oracle: random texts, id by id. Skips where it is not installed.
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/engine/text/text_generator.h"
#include "tests/engine/text/text_test_util.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

TEST(SentencePieceOracleTest, RandomTextsGiveItsIds) {
  if (std::system("command -v spm_encode >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "spm_encode (package sentencepiece) is not installed";
  }
  for (const char* name : {"gemma4-like-16k", "gemma3n-tiny"}) {
    const test::TempFolder folder;
    TextGenerator generator(99);
    std::vector<std::string> texts;
    while (texts.size() < 2000) {
      std::string text = generator.Text(/*with_specials=*/true);
      // The program reads lines and knows no NUL.
      for (char& c : text) {
        if (c == '\n' || c == '\r' || c == '\0') c = ' ';
      }
      texts.push_back(text);
    }
    {
      std::ofstream in(folder.File("in.txt"), std::ios::binary);
      for (const std::string& text : texts) in << text << '\n';
    }
    const std::string model = std::string(EMBERGATE_GOLDEN_DIR) + "/tokenizer/" + name + ".model";
    const std::string command = "spm_encode --model=" + model + " --output_format=id <" + folder.File("in.txt") + " >" +
                                folder.File("out.txt") + " 2>/dev/null";
    ASSERT_EQ(std::system(command.c_str()), 0);

    // Its model types the chat format's markers as user-defined; ours are control tokens. Here they are as stored.
    Vocabulary vocabulary = GoldenVocabulary(name, "model", "llama");
    for (size_t id = 4; id < vocabulary.types.size(); ++id) {
      if (vocabulary.types[id] == TokenType::kControl) vocabulary.types[id] = TokenType::kUserDefined;
    }
    const auto tokenizer = MakeTokenizer(std::move(vocabulary));
    std::ifstream out(folder.File("out.txt"));
    std::string line;
    size_t count = 0;
    for (; std::getline(out, line); ++count) {
      ASSERT_LT(count, texts.size());
      std::istringstream fields(line);
      std::vector<int32_t> expected;
      for (int32_t id = 0; fields >> id;) expected.push_back(id);
      EXPECT_EQ(tokenizer->Encode(texts[count], EncodeOptions()), expected) << texts[count];
    }
    EXPECT_EQ(count, texts.size());
  }
}

}  // namespace
}  // namespace embergate::engine
