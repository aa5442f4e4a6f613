#include "tests/engine/text/text_test_util.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <utility>

#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

nlohmann::json ReadGoldenJson(const std::string& path) {
  return nlohmann::json::parse(ReadFile(std::string(EMBERGATE_GOLDEN_DIR) + "/" + path));
}

Vocabulary ThroughGguf(const Vocabulary& vocabulary) {
  static int counter = 0;
  const std::string path =
      ::testing::TempDir() + "vocabulary_" + std::to_string(getpid()) + "_" + std::to_string(counter++) + ".gguf";
  auto writer = storage::GgufWriter::Create(path);
  EXPECT_TRUE(writer.ok()) << writer.status();
  AddVocabularyToGguf(vocabulary, **writer);
  EXPECT_TRUE((*writer)->BeginData().ok());
  EXPECT_TRUE((*writer)->Finish().ok());
  auto file = storage::GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  auto read = VocabularyFromGguf(**file);
  EXPECT_TRUE(read.ok()) << read.status();
  std::remove(path.c_str());
  return std::move(read).value();
}

Vocabulary GoldenVocabulary(const std::string& name, const std::string& source, const std::string& kind,
                            bool through_gguf) {
  const std::string stem = std::string(EMBERGATE_GOLDEN_DIR) + "/tokenizer/" + name;
  auto vocabulary = source == "json" ? VocabularyFromTokenizerJson(ReadFile(stem + ".tokenizer.json"), "")
                                     : VocabularyFromSentencePiece(ReadFile(stem + ".model"), "");
  EXPECT_TRUE(vocabulary.ok()) << vocabulary.status();
  const absl::Status converted = ConvertVocabularyKind(kind, *vocabulary);
  EXPECT_TRUE(converted.ok()) << converted;
  return through_gguf ? ThroughGguf(*vocabulary) : std::move(vocabulary).value();
}

std::unique_ptr<Tokenizer> MakeTokenizer(Vocabulary vocabulary) {
  auto tokenizer = Tokenizer::Create(std::move(vocabulary));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return std::move(tokenizer).value();
}

std::unique_ptr<Tokenizer> GoldenTokenizer(const std::string& name, const std::string& source, const std::string& kind,
                                           bool through_gguf) {
  return MakeTokenizer(GoldenVocabulary(name, source, kind, through_gguf));
}

}  // namespace embergate::engine
