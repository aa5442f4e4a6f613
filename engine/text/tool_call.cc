// Gemma 4's notation of a tool call, call:NAME{key:value,...}, to JSON. Strings stand between quote tokens and know no
// escapes; numbers, true, false, null, lists and objects are as in JSON; keys are bare (or between quote tokens). White
// space between the parts is allowed.
#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/text/answer_parser.h"

namespace embergate::engine {
namespace {

constexpr size_t kNameBytesMax = 256;

void AppendJsonString(absl::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

// One pass from left to right; every method returns false where the text is none of the notation.
class Reader {
 public:
  Reader(absl::string_view text, int depth_max) : rest_(text), depth_left_(depth_max) {}

  bool AtEnd() {
    SkipSpace();
    return rest_.empty();
  }

  bool Object(std::string& out) {
    if (!Enter('{')) {
      return false;
    }
    out += '{';
    std::set<std::string> keys;
    for (bool first = true; !Eat('}'); first = false) {
      if (!first && !Eat(',')) {
        return false;
      }
      std::string key;
      if (!Key(key) || !Eat(':')) {
        return false;
      }
      out += first ? "" : ",";
      AppendJsonString(key, out);
      out += ':';
      if (!keys.insert(std::move(key)).second || !Value(out)) {
        return false;  // the same key twice: no reader could tell which one counts
      }
    }
    out += '}';
    ++depth_left_;
    return true;
  }

 private:
  void SkipSpace() { rest_ = absl::StripLeadingAsciiWhitespace(rest_); }
  bool Eat(char c) {
    SkipSpace();
    if (rest_.empty() || rest_[0] != c) {
      return false;
    }
    rest_.remove_prefix(1);
    return true;
  }
  bool Enter(char c) { return depth_left_-- > 0 && Eat(c); }

  // After its opening quote.
  bool Quoted(std::string& text) {
    const size_t end = rest_.find(kCallQuote);
    if (end == absl::string_view::npos) {
      return false;
    }
    text = std::string(rest_.substr(0, end));
    rest_.remove_prefix(end + 1);
    return true;
  }

  bool Key(std::string& key) {
    if (Eat(kCallQuote)) {
      return Quoted(key);
    }
    const absl::string_view stop(":,{}[]\xFF", 7);
    const size_t end = rest_.find_first_of(stop);
    if (end == absl::string_view::npos) {
      return false;
    }
    key = std::string(absl::StripTrailingAsciiWhitespace(rest_.substr(0, end)));
    rest_.remove_prefix(end);
    return !key.empty();
  }

  bool List(std::string& out) {
    if (!Enter('[')) {
      return false;
    }
    out += '[';
    for (bool first = true; !Eat(']'); first = false) {
      if (!first && !Eat(',')) {
        return false;
      }
      out += first ? "" : ",";
      if (!Value(out)) {
        return false;
      }
    }
    out += ']';
    ++depth_left_;
    return true;
  }

  bool Value(std::string& out) {
    SkipSpace();
    if (rest_.empty()) {
      return false;
    }
    if (rest_[0] == '{') {
      return Object(out);
    }
    if (rest_[0] == '[') {
      return List(out);
    }
    if (Eat(kCallQuote)) {
      std::string text;
      if (!Quoted(text)) {
        return false;
      }
      AppendJsonString(text, out);
      return true;
    }
    const size_t end = rest_.find_first_of(",}] \t\r\n");
    const absl::string_view word = rest_.substr(0, end);
    if (word != "true" && word != "false" && word != "null" && !IsNumber(word)) {
      return false;
    }
    out.append(word.data(), word.size());
    rest_.remove_prefix(word.size());
    return true;
  }

  // By JSON's grammar, and within the range of a double: readers of JSON refuse 1e999.
  static bool IsNumber(absl::string_view text) {
    const absl::string_view word = text;
    const auto digits = [&text] {
      size_t count = 0;
      while (count < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[count]))) {
        ++count;
      }
      text.remove_prefix(count);
      return count;
    };
    const auto eat = [&text](absl::string_view any) {
      const bool found = !text.empty() && any.find(text[0]) != absl::string_view::npos;
      text.remove_prefix(found ? 1 : 0);
      return found;
    };
    eat("-");
    const bool zero = !text.empty() && text[0] == '0';
    const size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) {
      return false;
    }
    if (eat(".") && digits() == 0) {
      return false;
    }
    if (eat("eE")) {
      eat("+-");
      if (digits() == 0) {
        return false;
      }
    }
    double value = 0;
    return text.empty() && absl::SimpleAtod(word, &value) && std::isfinite(value);
  }

  absl::string_view rest_;
  int depth_left_;
};

}  // namespace

bool ParseToolCall(absl::string_view text, int depth_max, std::string& name, std::string& arguments) {
  text = absl::StripAsciiWhitespace(text);
  if (!absl::StartsWith(text, "call:")) {
    return false;
  }
  text.remove_prefix(5);
  const size_t brace = text.find('{');
  if (brace == absl::string_view::npos) {
    return false;
  }
  const absl::string_view called = absl::StripAsciiWhitespace(text.substr(0, brace));
  if (called.empty() || called.size() > kNameBytesMax ||
      called.find_first_of(absl::string_view("}[],\n\xFF", 6)) != absl::string_view::npos) {
    return false;
  }
  name = std::string(called);
  arguments.clear();
  Reader reader(text.substr(brace), depth_max);
  return reader.Object(arguments) && reader.AtEnd();
}

}  // namespace embergate::engine
