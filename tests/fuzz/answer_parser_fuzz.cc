// Any bytes as a generated stream: bytes from 0xF0 on are markers, the others byte tokens. The events must not depend
// on how the stream is cut, and the arguments of every call must be a JSON object.
#include <string>
#include <vector>

#include "engine/text/answer_parser.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

namespace {

using embergate::engine::AnswerEvent;
using embergate::engine::AnswerParser;
using embergate::engine::FuzzRequire;
using embergate::engine::FuzzTokenizer;

std::string Describe(const std::vector<AnswerEvent>& events) {
  std::string out;
  AnswerEvent::Kind last = AnswerEvent::Kind::kToolCall;
  for (const AnswerEvent& event : events) {
    if (event.kind != last || event.kind == AnswerEvent::Kind::kToolCall) {
      out += static_cast<char>('0' + static_cast<int>(event.kind));
    }
    out += event.text + event.name + event.arguments;
    last = event.kind;
    if (event.kind == AnswerEvent::Kind::kToolCall) {
      const nlohmann::json arguments =
          nlohmann::json::parse(event.arguments, /*cb=*/nullptr, /*allow_exceptions=*/false);
      FuzzRequire(arguments.is_object());
    }
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<int32_t> byte_ids = [] {
    std::vector<int32_t> ids;
    for (int byte = 0; byte < 256; ++byte) {
      constexpr char kHex[] = "0123456789ABCDEF";
      ids.push_back(FuzzTokenizer().FindPiece(std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">"));
    }
    return ids;
  }();
  constexpr int32_t kMarkers[] = {48, 49, 52, 100, 101, 105, 106, 50};
  std::vector<int32_t> ids;
  for (size_t i = 0; i < size; ++i) {
    ids.push_back(data[i] >= 0xF0 ? kMarkers[data[i] & 7] : byte_ids[data[i]]);
  }
  embergate::engine::AnswerParserOptions options;
  options.call_bytes_max = 200;
  options.starts_in_thinking = size % 2 == 1;
  std::vector<AnswerEvent> whole, cut;
  AnswerParser all_at_once(FuzzTokenizer(), options);
  all_at_once.Push(ids, whole);
  all_at_once.Finish(whole);
  AnswerParser one_by_one(FuzzTokenizer(), options);
  for (const int32_t id : ids) {
    one_by_one.Push({id}, cut);
  }
  one_by_one.Finish(cut);
  FuzzRequire(Describe(whole) == Describe(cut));

  // The notation itself, with any bytes between its parts.
  std::string name, arguments;
  (void)embergate::engine::ParseToolCall(absl::string_view(reinterpret_cast<const char*>(data), size), 64, name,
                                         arguments);
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  const std::string open = "\xF0", close = "\xF1", quote = "\xF2", channel = "\xF3", end = "\xF4";
  return {
      "Hello",
      channel + "thought\nlet me see\n" + end + "It is 4.",
      open + "call:f{a:1,b:-2.5e3,c:" + quote + "x" + quote + ",d:[true,null,{e:false}]}" + close,
      "x" + open + "call:g{}" + close + open + "call:h{a:" + quote + close + "\xF7",
      "call:f{a:[1,{b:\xFFx\xFF}]}",
      open + "call:f{a:8888977e7777778,b:-2.5}" + close,
  };
}
