#include "engine/text/utf8.h"

#include "absl/strings/str_replace.h"

namespace embergate::engine {

Utf8Step NextUtf8(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) {
    return {Utf8Status::kValid, 1, lead};
  }
  // The range of the second byte keeps out overlong forms, surrogates and what lies past U+10FFFF.
  uint32_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  uint32_t code_point = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Status::kInvalid, 1, 0};
  }
  for (uint32_t i = 1; i < length; ++i) {
    if (i >= text.size()) {
      return {Utf8Status::kIncomplete, i, 0};
    }
    if (byte(i) < low || byte(i) > high) {
      return {Utf8Status::kInvalid, i, 0};
    }
    code_point = (code_point << 6) | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Status::kValid, length, code_point};
}

void AppendCodePoint(uint32_t code_point, std::string& out) {
  const auto put = [&out](uint32_t byte) { out += static_cast<char>(byte); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

void AppendUtf8Lossy(absl::string_view bytes, std::string& pending, std::string& out) {
  if (bytes.empty()) {
    return;
  }
  absl::string_view rest = bytes;
  if (!pending.empty()) {
    pending.append(bytes.data(), bytes.size());
    rest = pending;
  }
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.status == Utf8Status::kIncomplete) {
      break;
    }
    const absl::string_view character =
        step.status == Utf8Status::kValid ? rest.substr(0, step.bytes) : kReplacementCharacter;
    out.append(character.data(), character.size());
    rest.remove_prefix(step.bytes);
  }
  pending = std::string(rest);  // through a copy: `rest` may point into `pending`
}

void FinishUtf8Lossy(std::string& pending, std::string& out) {
  if (!pending.empty()) {
    out.append(kReplacementCharacter.data(), kReplacementCharacter.size());
    pending.clear();
  }
}

std::string SpacesToLetters(absl::string_view text) { return absl::StrReplaceAll(text, {{" ", kSpaceLetter}}); }

std::string LettersToSpaces(absl::string_view text) { return absl::StrReplaceAll(text, {{kSpaceLetter, " "}}); }

}  // namespace embergate::engine
