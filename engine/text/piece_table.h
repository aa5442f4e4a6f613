// The pieces of a vocabulary in a few flat arrays: id to piece, type and text, and piece to id.
#ifndef EMBERGATE_ENGINE_TEXT_PIECE_TABLE_H_
#define EMBERGATE_ENGINE_TEXT_PIECE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/text/vocabulary.h"

namespace embergate::engine {

// About 18 bytes per token beside the pieces themselves. Immutable after construction; ids are dense from 0.
class PieceTable {
 public:
  PieceTable() = default;
  // Lengths must agree and no piece may exceed kPieceBytesMax (vocabulary.h); the caller has checked.
  PieceTable(const std::vector<std::string>& pieces, const std::vector<TokenType>& types);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  bool Contains(int32_t id) const { return id >= 0 && id < size(); }
  TokenType type(int32_t id) const { return static_cast<TokenType>(types_[id]); }
  // As stored.
  absl::string_view piece(int32_t id) const { return {blob_.data() + begin_[id], lengths_[id]}; }
  // What it adds to a text: the piece with spaces for "▁", the one byte of a byte token.
  absl::string_view text(int32_t id) const {
    const uint32_t end = begin_[id + 1];
    const uint32_t begin = begin_[id] + lengths_[id];
    return begin == end ? piece(id) : absl::string_view(blob_.data() + begin, end - begin);
  }
  // -1: there is none. Of equal pieces the smallest id is found.
  int32_t Find(absl::string_view piece) const;
  size_t resident_bytes() const;

 private:
  std::string blob_;               // piece, then its text where that differs, for each id
  std::vector<uint32_t> begin_;    // [size + 1]
  std::vector<uint16_t> lengths_;  // of the pieces
  std::vector<uint8_t> types_;
  std::vector<int32_t> slots_;  // open addressing, a power of two, at most half full; -1 = empty
};

// The value of "<0x0A>"; -1 if `piece` is not of that form.
int ByteTokenValue(absl::string_view piece);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_PIECE_TABLE_H_
