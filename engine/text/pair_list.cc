#include "engine/text/pair_list.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/text/utf8.h"

namespace embergate::engine {
namespace {

bool MadeOfText(TokenType type) {
  return type == TokenType::kNormal || type == TokenType::kUserDefined || type == TokenType::kUnused;
}

}  // namespace

absl::StatusOr<std::vector<PairList::Pair>> PairsFromMerges(const Vocabulary& vocabulary, const PieceTable& pieces) {
  std::vector<PairList::Pair> pairs;
  pairs.reserve(vocabulary.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const absl::string_view merge = vocabulary.merges[rank];
    // From the second byte on: a piece may itself begin with a space, none contains one elsewhere.
    const size_t space = merge.find(' ', 1);
    if (space == absl::string_view::npos || space + 1 == merge.size()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer: merge ", rank, " is not of the form 'left right'"));
    }
    const absl::string_view left = merge.substr(0, space);
    const absl::string_view right = merge.substr(space + 1);
    joined.assign(left.data(), left.size());
    joined.append(right.data(), right.size());
    const int32_t left_id = pieces.Find(left);
    const int32_t right_id = pieces.Find(right);
    const int32_t result = pieces.Find(joined);
    if (left_id < 0 || right_id < 0 || result < 0) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer: merge ", rank, " has a ",
                                                     left_id < 0    ? "left side"
                                                     : right_id < 0 ? "right side"
                                                                    : "result",
                                                     " that is no token of the vocabulary"));
    }
    if (MadeOfText(pieces.type(result)) && MadeOfText(pieces.type(left_id)) && MadeOfText(pieces.type(right_id))) {
      pairs.push_back({static_cast<uint32_t>(left_id), static_cast<uint32_t>(right_id), static_cast<uint32_t>(result)});
    }
  }
  return pairs;
}

PairList PairsFromSplits(const PieceTable& pieces, bool with_user_defined) {
  PairList list;
  std::map<uint32_t, uint32_t> letter_symbols;
  const auto takes_part = [&](TokenType type) {
    return type == TokenType::kNormal || (with_user_defined && type == TokenType::kUserDefined);
  };
  // The symbol of a part of a piece; -1 if it can't be one.
  const auto symbol_of = [&](absl::string_view part) -> int64_t {
    const int32_t id = pieces.Find(part);
    if (id >= 0) {
      return takes_part(pieces.type(id)) ? id : -1;
    }
    const Utf8Step step = NextUtf8(part);
    if (step.status != Utf8Status::kValid || step.bytes != part.size()) {
      return -1;
    }
    const auto [it, added] = letter_symbols.emplace(
        step.code_point, static_cast<uint32_t>(pieces.size()) + static_cast<uint32_t>(list.letters.size()));
    if (added) {
      list.letters.push_back(step.code_point);
    }
    return it->second;
  };
  for (int32_t id = 0; id < pieces.size(); ++id) {
    const absl::string_view piece = pieces.piece(id);
    if (!takes_part(pieces.type(id)) || pieces.Find(piece) != id) {
      continue;
    }
    for (size_t at = 0; at < piece.size();) {
      at += Utf8Advance(piece.substr(at));
      if (at == piece.size()) {
        break;
      }
      const int64_t left = symbol_of(piece.substr(0, at));
      const int64_t right = left < 0 ? -1 : symbol_of(piece.substr(at));
      if (right >= 0) {
        list.pairs.push_back({static_cast<uint32_t>(left), static_cast<uint32_t>(right), static_cast<uint32_t>(id)});
      }
    }
  }
  return list;
}

}  // namespace embergate::engine
