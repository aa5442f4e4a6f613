// From merges to scores and back.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/text/pair_list.h"
#include "engine/text/piece_table.h"
#include "engine/text/vocabulary.h"
#include "engine/text/vocabulary_internal.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

size_t Characters(absl::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

// The score of a piece is minus the number of pieces that are made before it, so that merging by score takes pairs
// in the order of the merges. Pieces that no merge makes come last; their scores never matter.
absl::Status ScoresFromMerges(Vocabulary& vocabulary) {
  const PieceTable pieces(vocabulary.tokens, vocabulary.types);
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<PairList::Pair> pairs, PairsFromMerges(vocabulary, pieces));
  const float unset = std::numeric_limits<float>::infinity();
  vocabulary.scores.assign(vocabulary.tokens.size(), unset);
  float rank = 0;
  for (const PairList::Pair& pair : pairs) {
    float& score = vocabulary.scores[pair.result];
    if (score == unset) {
      score = -rank;
      rank += 1;
    }
  }
  for (size_t id = 0; id < vocabulary.scores.size(); ++id) {
    float& score = vocabulary.scores[id];
    if (score == unset) {
      score = vocabulary.types[id] == TokenType::kNormal ? -rank : 0.0f;
      rank += vocabulary.types[id] == TokenType::kNormal ? 1.0f : 0.0f;
    }
  }
  vocabulary.merges.clear();
  return absl::OkStatus();
}

absl::Status MergesFromScores(Vocabulary& vocabulary) {
  const PieceTable pieces(vocabulary.tokens, vocabulary.types);
  const PairList list = PairsFromSplits(pieces, /*with_user_defined=*/true);
  struct Merge {
    float score;
    uint32_t left_characters, right_characters;
    uint32_t left, right;
  };
  std::vector<Merge> merges;
  merges.reserve(list.pairs.size());
  const uint32_t size = static_cast<uint32_t>(pieces.size());
  for (const PairList::Pair& pair : list.pairs) {
    if (pair.left >= size || pair.right >= size) {
      continue;  // a letter that is no piece: merges can't say that
    }
    const float score = vocabulary.scores[pair.result];
    merges.push_back({std::isnan(score) ? -std::numeric_limits<float>::infinity() : score,
                      static_cast<uint32_t>(Characters(pieces.piece(static_cast<int32_t>(pair.left)))),
                      static_cast<uint32_t>(Characters(pieces.piece(static_cast<int32_t>(pair.right)))), pair.left,
                      pair.right});
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::make_tuple(-a.score, b.left_characters, b.right_characters, a.left, a.right) <
           std::make_tuple(-b.score, a.left_characters, a.right_characters, b.left, b.right);
  });
  if (merges.size() > kMergesMax) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer: ", merges.size(), " merges come of the pieces; at most ",
                                                   kMergesMax, " are possible"));
  }
  vocabulary.merges.clear();
  vocabulary.merges.reserve(merges.size());
  for (const Merge& merge : merges) {
    vocabulary.merges.push_back(absl::StrCat(pieces.piece(static_cast<int32_t>(merge.left)), " ",
                                             pieces.piece(static_cast<int32_t>(merge.right))));
  }
  vocabulary.scores.clear();
  return absl::OkStatus();
}

}  // namespace

absl::Status ConvertVocabularyKind(absl::string_view kind, Vocabulary& vocabulary) {
  EMBERGATE_RETURN_IF_ERROR(CheckVocabulary(vocabulary));
  if (vocabulary.model == kind) {
    return absl::OkStatus();
  }
  if (kind == "llama") {
    EMBERGATE_RETURN_IF_ERROR(ScoresFromMerges(vocabulary));
  } else if (kind == "gemma4") {
    EMBERGATE_RETURN_IF_ERROR(MergesFromScores(vocabulary));
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("no vocabulary kind '", std::string(kind), "'; there are gemma4 and llama"));
  }
  vocabulary.model = std::string(kind);
  return CheckVocabulary(vocabulary);
}

}  // namespace embergate::engine
