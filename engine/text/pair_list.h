// The pairs of symbols that may merge, from either kind of vocabulary.
#ifndef EMBERGATE_ENGINE_TEXT_PAIR_LIST_H_
#define EMBERGATE_ENGINE_TEXT_PAIR_LIST_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/piece_table.h"
#include "engine/text/vocabulary.h"

namespace embergate::engine {

struct PairList {
  struct Pair {
    uint32_t left = 0;  // a token id, or size + i for letters[i]
    uint32_t right = 0;
    uint32_t result = 0;  // a token id, always
  };
  std::vector<Pair> pairs;
  std::vector<uint32_t> letters;  // code points that are part of pieces but no pieces themselves
};

// The merges of a "gemma4" vocabulary, in its order, without those that would make a control, unknown or byte token
// out of plain text. INVALID_ARGUMENT for a merge of what is no piece.
absl::StatusOr<std::vector<PairList::Pair>> PairsFromMerges(const Vocabulary& vocabulary, const PieceTable& pieces);

// Every split of a normal piece into two symbols, by id of the piece. SentencePiece merges by looking at the joined
// text, so a single letter takes part even if it is no piece. User-defined pieces are found before any merging and
// never merge; `with_user_defined` lists their splits all the same, as the merges of a "gemma4" vocabulary need them.
PairList PairsFromSplits(const PieceTable& pieces, bool with_user_defined);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_PAIR_LIST_H_
