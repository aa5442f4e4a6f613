// Any bytes as a tokenizer.json or tokenizer_config.json: refused with a message, or a vocabulary that works.
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  // As a tokenizer_config.json beside a good tokenizer.json.
  static const std::string good = FuzzSeeds()[0];
  const auto configured = embergate::engine::VocabularyFromTokenizerJson(good, text);
  embergate::engine::FuzzRequire(configured.ok() || !configured.status().message().empty());
  const auto vocabulary = embergate::engine::VocabularyFromTokenizerJson(text, "");
  if (!vocabulary.ok()) {
    embergate::engine::FuzzRequire(!vocabulary.status().message().empty());
    return 0;
  }
  embergate::engine::ExerciseVocabulary(*vocabulary);
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":7,"content":"<|turn>","special":false},)"
      R"({"id":5,"content":"\n\n","special":false,"lstrip":false}],"normalizer":{"type":"Sequence","normalizers":[)"
      R"({"type":"Replace","pattern":{"String":" "},"content":"▁"},{"type":"Prepend","prepend":"▁"}]},"pre_tokenizer":)"
      R"({"type":"Split","pattern":{"String":" "}},"model":{"type":"BPE","unk_token":"<unk>","ignore_merges":false,)"
      R"("vocab":{"<unk>":0,"a":1,"b":2,"ab":3,"<0x0A>":4},"merges":["a b"]}})",
      R"({"model":{"unk_token":"u","vocab":{"u":0,"a":1,"aa":2,"aaa":3},"merges":[["a","a"],["aa","a"],["a","aa"]]}})",
      R"({"bos_token":"<bos>","eos_token":{"content":"<eos>"},"add_bos_token":true,"chat_template":[{"name":"default",)"
      R"("template":"x"}],"added_tokens_decoder":{"1":{"content":"a","special":true}}})",
  };
}
