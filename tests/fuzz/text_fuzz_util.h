// What the fuzz targets of engine/text share.
#ifndef EMBERGATE_TESTS_FUZZ_TEXT_FUZZ_UTIL_H_
#define EMBERGATE_TESTS_FUZZ_TEXT_FUZZ_UTIL_H_

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"

namespace embergate::engine {

inline void FuzzRequire(bool condition) {
  if (!condition) {
    std::abort();
  }
}

inline std::string GoldenTokenizerFile(const std::string& name) {
  std::ifstream file(std::string(EMBERGATE_GOLDEN_DIR) + "/tokenizer/" + name, std::ios::binary);
  FuzzRequire(file.good());
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The tiny Gemma 4 fixture, loaded once.
inline const Tokenizer& FuzzTokenizer() {
  static const Tokenizer* const tokenizer = [] {
    auto vocabulary = VocabularyFromTokenizerJson(GoldenTokenizerFile("gemma4-tiny.tokenizer.json"), "");
    FuzzRequire(vocabulary.ok());
    auto made = Tokenizer::Create(std::move(vocabulary).value());
    FuzzRequire(made.ok());
    return made->release();
  }();
  return *tokenizer;
}

// A vocabulary that a loader accepted must work, as either kind, or be refused with a message.
inline void ExerciseVocabulary(const Vocabulary& vocabulary) {
  for (const char* kind : {"gemma4", "llama"}) {
    Vocabulary converted = vocabulary;
    const absl::Status status = ConvertVocabularyKind(kind, converted);
    if (!status.ok()) {
      FuzzRequire(!status.message().empty());
      continue;
    }
    const auto tokenizer = Tokenizer::Create(std::move(converted));
    if (!tokenizer.ok()) {
      FuzzRequire(!tokenizer.status().message().empty());
      continue;
    }
    for (const char* text : {"", "a", "aabab ab  b\n\n<bos><|turn>", "\xFF\xE2\x96\x81 \xE2\x96", "ab<unk>é🙂 zz"}) {
      for (const bool special : {false, true}) {
        EncodeOptions options;
        options.parse_special = special;
        options.add_bos = special;
        for (const int32_t id : (*tokenizer)->Encode(text, options)) {
          FuzzRequire(id >= 0 && id < (*tokenizer)->size());
          const bool unknown = id == (*tokenizer)->vocabulary().unknown_id;
          FuzzRequire(special || unknown || !(*tokenizer)->IsControl(id));
        }
        (void)(*tokenizer)->Decode((*tokenizer)->Encode(text, options), special);
      }
    }
  }
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_FUZZ_TEXT_FUZZ_UTIL_H_
