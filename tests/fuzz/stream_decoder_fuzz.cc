// Any ids, as pairs of bytes: what a stream gives bit by bit must be whole characters and together equal Decode; and
// any bytes as a text must come back from their ids.
#include <string>
#include <vector>

#include "engine/text/stream_decoder.h"
#include "engine/text/utf8.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

using embergate::engine::FuzzRequire;
using embergate::engine::FuzzTokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i + 1 < size; i += 2) {
    ids.push_back(data[i] | (data[i + 1] & 1) << 8);
  }
  embergate::engine::StreamDecoder decoder(FuzzTokenizer(), size % 2 == 1);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.Push(id);
    for (absl::string_view rest = part; !rest.empty();) {
      const embergate::engine::Utf8Step step = embergate::engine::NextUtf8(rest);
      FuzzRequire(step.status == embergate::engine::Utf8Status::kValid);
      rest.remove_prefix(step.bytes);
    }
    text += part;
  }
  text += decoder.Finish();
  FuzzRequire(text == FuzzTokenizer().Decode(ids, size % 2 == 1));

  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  std::string pending, expected;
  embergate::engine::AppendUtf8Lossy(bytes, pending, expected);
  embergate::engine::FinishUtf8Lossy(pending, expected);
  const std::vector<int32_t> encoded = FuzzTokenizer().Encode(bytes, embergate::engine::EncodeOptions());
  FuzzRequire(FuzzTokenizer().Decode(encoded) == embergate::engine::LettersToSpaces(expected));
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  return {std::string("\xEE\x00\xDE\x01\x69\x00\x6A\x00", 8), "Hello, world \xE2\x82\xAC \xF0\x9F\x99\x82",
          "<|turn>user\n\xFF\xC3\xE2\x96\x81\xE2\x96", std::string(64, '\xE2')};
}
