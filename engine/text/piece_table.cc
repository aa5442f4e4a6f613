#include "engine/text/piece_table.h"

#include "absl/hash/hash.h"
#include "absl/strings/ascii.h"
#include "engine/text/utf8.h"

namespace embergate::engine {
namespace {

size_t HashOf(absl::string_view piece) { return absl::Hash<absl::string_view>()(piece); }

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char upper = absl::ascii_toupper(static_cast<unsigned char>(c));
  return upper >= 'A' && upper <= 'F' ? upper - 'A' + 10 : -1;
}

}  // namespace

int ByteTokenValue(absl::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') {
    return -1;
  }
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

PieceTable::PieceTable(const std::vector<std::string>& pieces, const std::vector<TokenType>& types) {
  const size_t count = pieces.size();
  begin_.reserve(count + 1);
  lengths_.reserve(count);
  types_.reserve(count);
  size_t bytes = 0;
  for (const std::string& piece : pieces) {
    bytes += piece.size() + (piece.find(kSpaceLetter.data(), 0, kSpaceLetter.size()) == std::string::npos
                                 ? 0
                                 : LettersToSpaces(piece).size());
  }
  blob_.reserve(bytes + 256);
  for (size_t id = 0; id < count; ++id) {
    begin_.push_back(static_cast<uint32_t>(blob_.size()));
    lengths_.push_back(static_cast<uint16_t>(pieces[id].size()));
    types_.push_back(static_cast<uint8_t>(types[id]));
    blob_ += pieces[id];
    if (types[id] == TokenType::kByte) {
      blob_ += static_cast<char>(ByteTokenValue(pieces[id]));
    } else if (pieces[id].find(kSpaceLetter.data(), 0, kSpaceLetter.size()) != std::string::npos) {
      blob_ += LettersToSpaces(pieces[id]);
    }
  }
  begin_.push_back(static_cast<uint32_t>(blob_.size()));
  blob_.shrink_to_fit();

  size_t capacity = 16;
  while (capacity < 2 * count) {
    capacity *= 2;
  }
  slots_.assign(capacity, -1);
  for (size_t id = 0; id < count; ++id) {
    const absl::string_view key = piece(static_cast<int32_t>(id));
    size_t at = HashOf(key) & (capacity - 1);
    while (slots_[at] >= 0 && piece(slots_[at]) != key) {
      at = (at + 1) & (capacity - 1);
    }
    if (slots_[at] < 0) {
      slots_[at] = static_cast<int32_t>(id);
    }
  }
}

int32_t PieceTable::Find(absl::string_view key) const {
  if (slots_.empty()) {
    return -1;
  }
  size_t at = HashOf(key) & (slots_.size() - 1);
  while (slots_[at] >= 0 && piece(slots_[at]) != key) {
    at = (at + 1) & (slots_.size() - 1);
  }
  return slots_[at];
}

size_t PieceTable::resident_bytes() const {
  return blob_.capacity() + begin_.capacity() * sizeof(uint32_t) + lengths_.capacity() * sizeof(uint16_t) +
         types_.capacity() + slots_.capacity() * sizeof(int32_t);
}

}  // namespace embergate::engine
