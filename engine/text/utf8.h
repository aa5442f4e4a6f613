// UTF-8 by the Unicode standard's well-formedness table: steps through bytes that may be anything at all.
#ifndef EMBERGATE_ENGINE_TEXT_UTF8_H_
#define EMBERGATE_ENGINE_TEXT_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace embergate::engine {

// "▁", the letter that stands for a space inside pieces.
inline constexpr absl::string_view kSpaceLetter = "\xE2\x96\x81";
inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class Utf8Status { kValid, kInvalid, kIncomplete };

struct Utf8Step {
  Utf8Status status = Utf8Status::kInvalid;
  // kValid: bytes of the character. kInvalid: bytes of the longest prefix that some character could begin with,
  // at least 1; one U+FFFD stands for all of them. kIncomplete: the character goes on past the end.
  uint32_t bytes = 0;
  uint32_t code_point = 0;  // if kValid
};

// Looks at the start of `text`, which must not be empty.
Utf8Step NextUtf8(absl::string_view text);

// Bytes of the first character; 1 for a byte that begins none (so that a caller always gets on).
inline size_t Utf8Advance(absl::string_view text) {
  const Utf8Step step = NextUtf8(text);
  return step.status == Utf8Status::kValid ? step.bytes : 1;
}

// Appends the UTF-8 form of a code point (below 0x110000).
void AppendCodePoint(uint32_t code_point, std::string& out);

// Appends `bytes` to `pending`, moves every whole character from it to `out` and puts U+FFFD for what can't
// become one. `pending` keeps at most 3 bytes: the beginning of a character.
void AppendUtf8Lossy(absl::string_view bytes, std::string& pending, std::string& out);
// What is still pending can't be completed any more.
void FinishUtf8Lossy(std::string& pending, std::string& out);

// Every " " to "▁", and back.
std::string SpacesToLetters(absl::string_view text);
std::string LettersToSpaces(absl::string_view text);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_UTF8_H_
