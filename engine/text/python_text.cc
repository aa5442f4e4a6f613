#include "engine/text/python_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/text/utf8.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

uint32_t LowerOf(uint32_t c) {
  if ((c >= 'A' && c <= 'Z') || (c >= 0xC0 && c <= 0xDE && c != 0xD7) || (c >= 0x391 && c <= 0x3A9 && c != 0x3A2) ||
      (c >= 0x410 && c <= 0x42F)) {
    return c + 0x20;
  }
  if (c >= 0x400 && c <= 0x40F) return c + 0x50;
  if (c >= 0x531 && c <= 0x556) return c + 0x30;
  // Latin Extended-A: pairs, upper case at even code points up to U+0137 and from U+014A, at odd ones between.
  if ((c >= 0x100 && c <= 0x137 && c != 0x130) || (c >= 0x14A && c <= 0x177) || (c >= 0x460 && c <= 0x481) ||
      (c >= 0x48A && c <= 0x4BF) || (c >= 0x4D0 && c <= 0x52F) || (c >= 0x1E00 && c <= 0x1E95) ||
      (c >= 0x1EA0 && c <= 0x1EFF)) {
    return c % 2 == 0 ? c + 1 : c;
  }
  if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E)) {
    return c % 2 == 1 ? c + 1 : c;
  }
  return c;
}

uint32_t UpperOf(uint32_t c) {
  for (const uint32_t distance : {0x20u, 0x50u, 0x30u, 1u}) {
    if (c > distance && LowerOf(c - distance) == c && LowerOf(c) == c) {
      return c - distance;
    }
  }
  return c;
}

template <typename Map>
std::string MapLetters(absl::string_view text, const Map& map) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    const size_t bytes = step.status == Utf8Status::kValid ? step.bytes : 1;
    if (step.status == Utf8Status::kValid) {
      AppendCodePoint(map(step.code_point), out);
    } else {
      out += text[0];
    }
    text.remove_prefix(bytes);
  }
  return out;
}

// repr(float): the shortest digits that read back; an exponent below 1e-4 and from 1e16 on.
std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);  // d.ddde[+-]dd
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) {
    return text;  // Python too writes two digits of exponent at least, and no ".0"
  }
  const std::string sign = text[0] == '-' ? "-" : "";
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < 0) {
    return absl::StrCat(sign, "0.", std::string(static_cast<size_t>(-exponent - 1), '0'), digits);
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() < whole) {
    digits.append(whole - digits.size(), '0');
  }
  const std::string fraction = digits.substr(whole);
  return absl::StrCat(sign, digits.substr(0, whole), ".", fraction.empty() ? "0" : fraction);
}

std::string StringRepr(absl::string_view text) {
  const bool has_single = text.find('\'') != absl::string_view::npos;
  const bool has_double = text.find('"') != absl::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\x%02x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string Repr(const json& value) {
  if (value.is_string()) {
    return StringRepr(value.get_ref<const std::string&>());
  }
  if (value.is_array()) {
    std::vector<std::string> elements;
    for (const json& element : value) {
      elements.push_back(Repr(element));
    }
    return absl::StrCat("[", absl::StrJoin(elements, ", "), "]");
  }
  if (value.is_object()) {
    std::vector<std::string> elements;
    for (const auto& [key, element] : value.items()) {
      elements.push_back(absl::StrCat(StringRepr(key), ": ", Repr(element)));
    }
    return absl::StrCat("{", absl::StrJoin(elements, ", "), "}");
  }
  return PythonStr(value);
}

}  // namespace

absl::string_view PythonStrip(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.status != Utf8Status::kValid || !IsSpace(step.code_point)) {
      break;
    }
    text.remove_prefix(step.bytes);
  }
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && text.size() - begin < 4 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) {
      --begin;
    }
    const Utf8Step step = NextUtf8(text.substr(begin));
    if (step.status != Utf8Status::kValid || step.bytes != text.size() - begin || !IsSpace(step.code_point)) {
      break;
    }
    text.remove_suffix(step.bytes);
  }
  return text;
}

std::string PythonStr(const json& value) {
  switch (value.type()) {
    case json::value_t::string:
      return value.get<std::string>();
    case json::value_t::boolean:
      return value.get<bool>() ? "True" : "False";
    case json::value_t::number_integer:
      return absl::StrCat(value.get<int64_t>());
    case json::value_t::number_unsigned:
      return absl::StrCat(value.get<uint64_t>());
    case json::value_t::number_float:
      return FloatRepr(value.get<double>());
    case json::value_t::array:
    case json::value_t::object:
      return Repr(value);
    default:
      return "None";
  }
}

std::string PythonUpper(absl::string_view text) { return MapLetters(text, UpperOf); }
std::string PythonLower(absl::string_view text) { return MapLetters(text, LowerOf); }

bool PythonTrue(const json& value) {
  switch (value.type()) {
    case json::value_t::string:
      return !value.get_ref<const std::string&>().empty();
    case json::value_t::boolean:
      return value.get<bool>();
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      return value.get<double>() != 0;
    case json::value_t::array:
    case json::value_t::object:
      return !value.empty();
    default:
      return false;
  }
}

std::vector<std::pair<std::string, const json*>> DictSort(const json& object) {
  struct Entry {
    std::string lower, key;
    const json* value;
  };
  std::vector<Entry> entries;
  for (const auto& [key, value] : object.items()) {
    entries.push_back({PythonLower(key), key, &value});
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.lower < b.lower; });
  std::vector<std::pair<std::string, const json*>> sorted;
  sorted.reserve(entries.size());
  for (Entry& entry : entries) {
    sorted.emplace_back(std::move(entry.key), entry.value);
  }
  return sorted;
}

}  // namespace embergate::engine
