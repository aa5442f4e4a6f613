// What the tests of engine/text share: golden files and vocabularies from every source.
#ifndef EMBERGATE_TESTS_ENGINE_TEXT_TEXT_TEST_UTIL_H_
#define EMBERGATE_TESTS_ENGINE_TEXT_TEXT_TEST_UTIL_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"
#include "nlohmann/json.hpp"

namespace embergate::engine {

std::string ReadFile(const std::string& path);           // a test failure and "" if it can't be read
nlohmann::json ReadGoldenJson(const std::string& path);  // below tests/golden

// `source` is "json" (tokenizer.json) or "model" (tokenizer.model), `kind` the GGUF kind to end with; through a file
// on disk if `through_gguf`. `name` is "gemma4-tiny", "gemma3n-tiny" or "gemma4-like-16k".
Vocabulary GoldenVocabulary(const std::string& name, const std::string& source, const std::string& kind,
                            bool through_gguf = false);
std::unique_ptr<Tokenizer> GoldenTokenizer(const std::string& name, const std::string& source = "json",
                                           const std::string& kind = "gemma4", bool through_gguf = false);
// Writes to a temporary GGUF file and reads it back.
Vocabulary ThroughGguf(const Vocabulary& vocabulary);
std::unique_ptr<Tokenizer> MakeTokenizer(Vocabulary vocabulary);

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_TEXT_TEXT_TEST_UTIL_H_
