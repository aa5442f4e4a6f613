#include "tests/engine/text/text_generator.h"

#include <iterator>

#include "engine/text/utf8.h"

namespace embergate::engine {
namespace {

constexpr const char* kWords[] = {
    "the",      "Temperature",
    "sensor",   "don't",
    "HTTP/2",   "naïve",
    "Straße",   "привет",
    "мир",      "Ελλάδα",
    "שלום",     "مرحبا",
    "नमस्ते",     "বাংলা",
    "ไทย",      "日本語",
    "漢字かな", "한국어",
    "你好",     "việt",
    "ಕನ್ನಡ",     "தமிழ்",
    "ქართული",  "Հայ",
    "e\u0301",  "ﬁ",
    "①②",       "½",
    "…",        "—",
    "🙂",     "👩‍👩‍👧‍👦",
    "🇩🇪",       "🏳️‍🌈",
    "𝔘𝔫𝔦",      "𐍈",
    "\u200b",   "\u00a0",
    "\ufeff",   "▁",
};
constexpr const char* kCode[] = {
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n\t}",
    "#include <vector>\r\n",
    "SELECT * FROM t WHERE id=42;",
    "{\"key\": [1, 2.5e-3, null]}",
    "x->y.z != 0x1F && !done",
    "$ curl -s http://10.0.0.1:8080/?q=a%20b",
    "==========",
    "|---|---|",
    "<table><tr><td>1</td></tr></table>",
    "<h1>Title</h1>\n<p>text</p>",
    "```python\n```",
};
constexpr const char* kSpecials[] = {
    "<bos>",          "<eos>",
    "<pad>",          "<unk>",
    "<mask>",         "[multimodal]",
    "<unused0>",      "<unused98>",
    "<unused6241>",   "<start_of_turn>",
    "<end_of_turn>",  "<start_of_image>",
    "<end_of_image>", "<image_soft_token>",
    "<|turn>",        "<turn|>",
    "<|\"|>",         "<0x0A>",
    "<start_of_turn", "<unused>",
    "<bos",           "<<bos>>",
};

template <size_t N>
const char* Pick(std::mt19937& random, const char* const (&list)[N]) {
  return list[random() % N];
}

}  // namespace

std::string TextGenerator::Chunk(bool with_specials) {
  std::string out;
  switch (Below(with_specials ? 12 : 11)) {
    case 0:
    case 1:
    case 2:
      out.assign(Below(2), ' ');
      out += Pick(random_, kWords);
      return out;
    case 3:
      return Pick(random_, kCode);
    case 4:  // numbers
      for (uint32_t i = 0, n = 1 + Below(8); i < n; ++i) {
        out += static_cast<char>("0123456789.,-"[Below(13)]);
      }
      return out;
    case 5:  // a run of one kind of white space, longer than any piece now and then
      return std::string(1 + Below(Below(8) == 0 ? 80 : 6), " \n\t\r "[Below(5)]);
    case 6:  // letters
      for (uint32_t i = 0, n = 1 + Below(12); i < n; ++i) {
        out += static_cast<char>('a' + Below(26));
      }
      return out;
    case 7:  // one character, repeated
      out = std::string(1 + Below(40), static_cast<char>(0x21 + Below(94)));
      return out;
    case 8:  // any characters of one block of Unicode
    {
      const uint32_t base = Below(4) == 0 ? 0x10000 + Below(0x100) * 0x100 : Below(0x100) * 0x100;
      for (uint32_t i = 0, n = 1 + Below(8); i < n; ++i) {
        const uint32_t code_point = base + Below(0x100);
        if (code_point < 0xD800 || code_point > 0xDFFF) {
          AppendCodePoint(code_point, out);
        }
      }
      return out;
    }
    case 9:  // control characters
      for (uint32_t i = 0, n = 1 + Below(4); i < n; ++i) {
        AppendCodePoint(Below(3) == 0 ? 0x7F + Below(0x21) : Below(0x20), out);
      }
      return out;
    case 10:  // punctuation
      for (uint32_t i = 0, n = 1 + Below(5); i < n; ++i) {
        out += static_cast<char>("!?.,;:'\"()[]{}<>/\\|@#$%^&*-_=+~`"[Below(32)]);
      }
      return out;
    default:
      return Pick(random_, kSpecials);
  }
}

std::string TextGenerator::Text(bool with_specials) {
  std::string out;
  for (uint32_t i = 0, n = Below(12); i < n; ++i) {
    out += Chunk(with_specials);
  }
  return out;
}

std::string TextGenerator::Bytes(size_t size) {
  std::string out(size, '\0');
  for (char& byte : out) {
    byte = static_cast<char>(random_());
  }
  return out;
}

}  // namespace embergate::engine
