// Any bytes as a SentencePiece tokenizer.model: refused with a message, or a vocabulary that works.
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto vocabulary = embergate::engine::VocabularyFromSentencePiece(bytes, "");
  if (!vocabulary.ok()) {
    embergate::engine::FuzzRequire(!vocabulary.status().message().empty());
    return 0;
  }
  embergate::engine::ExerciseVocabulary(*vocabulary);
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  const auto field = [](char tag, const std::string& bytes) {
    return std::string(1, tag) + static_cast<char>(bytes.size()) + bytes;
  };
  std::string small;
  for (const char* piece : {"<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a"}) {
    // Piece 1, score 2 (float -1), type 3 where it is not normal.
    const std::string type = piece[0] == '<' ? std::string("\x18\x02", 2) : std::string();
    small += field('\x0A', field('\x0A', piece) + std::string("\x15\x00\x00\x80\xBF", 5) + type);
  }
  small += field('\x12', std::string("\x18\x02\xC0\x02\x00", 5));
  small += field('\x1A', std::string("\x18\x00\x20\x00\x28\x01", 6));
  return {small, embergate::engine::GoldenTokenizerFile("gemma4-tiny.model")};
}
