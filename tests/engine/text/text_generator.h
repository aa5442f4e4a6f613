// Random texts of many kinds for the tests of tokenizers: scripts, code, numbers, emoji, control characters, runs of
// white space, pieces of markup and literal special tokens.
#ifndef EMBERGATE_TESTS_ENGINE_TEXT_TEXT_GENERATOR_H_
#define EMBERGATE_TESTS_ENGINE_TEXT_TEXT_GENERATOR_H_

#include <cstdint>
#include <random>
#include <string>

namespace embergate::engine {

class TextGenerator {
 public:
  explicit TextGenerator(uint32_t seed) : random_(seed) {}

  // Well-formed UTF-8 of up to about 200 characters; may be empty.
  std::string Text(bool with_specials);
  // Any bytes at all.
  std::string Bytes(size_t size);
  uint32_t Below(uint32_t limit) { return static_cast<uint32_t>(random_() % limit); }

 private:
  std::string Chunk(bool with_specials);

  std::mt19937 random_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_TEXT_TEXT_GENERATOR_H_
