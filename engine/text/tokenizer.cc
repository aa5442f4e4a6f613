#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/merger.h"
#include "engine/text/pair_list.h"
#include "engine/text/piece_table.h"
#include "engine/text/piece_trie.h"
#include "engine/text/utf8.h"
#include "engine/text/vocabulary_internal.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr uint32_t kSpaceCodePoint = 0x2581;
constexpr int64_t kNoSymbol = -1;
constexpr int32_t kNotLookedUp = -2;

bool IsHidden(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kUnused;
}

// Tells where a text surely falls apart: between two letters that no merge ever brings together. A hashed set in 128
// KB: a collision only makes a run longer. With Gemma's pieces nearly every word, digit and change of script is a run
// of its own, which keeps the merging short and in cache.
class LetterPairs {
 public:
  LetterPairs() : bits_(kBits / 64, 0) {}
  void Add(uint32_t left, uint32_t right) {
    const uint32_t bit = Bit(left, right);
    bits_[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  bool MayMerge(uint32_t left, uint32_t right) const {
    const uint32_t bit = Bit(left, right);
    return (bits_[bit / 64] >> (bit % 64)) & 1;
  }
  size_t resident_bytes() const { return bits_.capacity() * sizeof(uint64_t); }

 private:
  static constexpr uint32_t kBits = 1u << 20;
  static uint32_t Bit(uint32_t left, uint32_t right) {
    const uint64_t key = (uint64_t{left} << 21) | right;
    return static_cast<uint32_t>((key * 0x9E3779B97F4A7C15u) >> 44);
  }
  std::vector<uint64_t> bits_;
};

}  // namespace

struct Tokenizer::Impl {
  Vocabulary vocabulary;  // without its lists
  PieceTable pieces;
  PieceTrie literals;  // pieces that are found before any merging: user-defined ones and, as special ones, control
  MergeRules rules;
  LetterPairs letter_pairs;
  bool merges_by_score = false;
  std::vector<uint32_t> extra_letters;  // code points of the symbols past the last token id
  std::map<uint32_t, uint32_t> extra_symbols;
  std::array<int32_t, 0x800> symbol_of_letter;  // of code points below; others go through `pieces`
  int32_t space_symbol = -1;
  std::array<int32_t, 256> byte_ids;

  absl::Status Build();
  int64_t SymbolOf(uint32_t code_point, absl::string_view letter) const;
  void AppendPlain(absl::string_view text, std::vector<int32_t>& ids) const;
  void AppendUncovered(absl::string_view bytes, bool& after_unknown, std::vector<int32_t>& ids) const;
  absl::string_view BytesOf(int32_t id, bool special) const;
  uint32_t LastLetter(uint32_t symbol) const;
  uint32_t FirstLetter(uint32_t symbol) const;
};

uint32_t Tokenizer::Impl::FirstLetter(uint32_t symbol) const {
  const uint32_t count = static_cast<uint32_t>(pieces.size());
  return symbol >= count ? extra_letters[symbol - count]
                         : NextUtf8(pieces.piece(static_cast<int32_t>(symbol))).code_point;
}

uint32_t Tokenizer::Impl::LastLetter(uint32_t symbol) const {
  const uint32_t count = static_cast<uint32_t>(pieces.size());
  if (symbol >= count) {
    return extra_letters[symbol - count];
  }
  const absl::string_view piece = pieces.piece(static_cast<int32_t>(symbol));
  size_t begin = piece.size() - 1;
  while (begin > 0 && piece.size() - begin < 4 && (static_cast<uint8_t>(piece[begin]) & 0xC0) == 0x80) {
    --begin;
  }
  return NextUtf8(piece.substr(begin)).code_point;
}

absl::Status Tokenizer::Impl::Build() {
  merges_by_score = vocabulary.model == "llama";
  pieces = PieceTable(vocabulary.tokens, vocabulary.types);

  std::vector<PairList::Pair> pairs;
  if (merges_by_score) {
    PairList list = PairsFromSplits(pieces, /*with_user_defined=*/false);
    pairs = std::move(list.pairs);
    extra_letters = std::move(list.letters);
    for (size_t i = 0; i < extra_letters.size(); ++i) {
      extra_symbols.emplace(extra_letters[i], static_cast<uint32_t>(pieces.size()) + static_cast<uint32_t>(i));
    }
    if (static_cast<size_t>(pieces.size()) + extra_letters.size() >= MergeTable::kSymbolsMax) {
      return absl::InvalidArgumentError("tokenizer: too many pieces with letters that are no pieces themselves");
    }
    // Places by score; equal scores share one, so that among them the leftmost merges first.
    const auto score = [this](uint32_t id) {
      const float value = vocabulary.scores[id];
      return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
    };
    std::vector<uint32_t> order(static_cast<size_t>(pieces.size()));
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return score(a) > score(b); });
    rules.priority.resize(order.size());
    uint32_t place = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      place += i > 0 && score(order[i]) < score(order[i - 1]) ? 1 : 0;
      rules.priority[order[i]] = place;
    }
  } else {
    EMBERGATE_ASSIGN_OR_RETURN(pairs, PairsFromMerges(vocabulary, pieces));
    rules.result.reserve(pairs.size());
    for (const PairList::Pair& pair : pairs) {
      rules.result.push_back(pair.result);
    }
  }
  std::vector<MergeTable::Entry> entries;
  entries.reserve(pairs.size());
  for (size_t i = 0; i < pairs.size(); ++i) {
    entries.push_back({pairs[i].left, pairs[i].right, merges_by_score ? pairs[i].result : static_cast<uint32_t>(i)});
    letter_pairs.Add(LastLetter(pairs[i].left), FirstLetter(pairs[i].right));
  }
  rules.table = MergeTable(entries);

  // SentencePiece looks for user-defined pieces in the text with "▁" for spaces, Hugging Face in the text as it came.
  std::vector<PieceTrie::Entry> entries_of_trie;
  byte_ids.fill(-1);
  for (int32_t id = 0; id < pieces.size(); ++id) {
    const TokenType type = pieces.type(id);
    const absl::string_view piece = pieces.piece(id);
    if (type == TokenType::kUserDefined || type == TokenType::kControl || type == TokenType::kUnknown) {
      entries_of_trie.push_back(
          {merges_by_score ? SpacesToLetters(piece) : std::string(piece), id, type != TokenType::kUserDefined});
    } else if (type == TokenType::kByte) {
      int32_t& byte_id = byte_ids[static_cast<size_t>(ByteTokenValue(piece))];
      byte_id = byte_id < 0 ? id : byte_id;
    }
  }
  literals = PieceTrie(std::move(entries_of_trie));

  for (uint32_t code_point = 0; code_point < symbol_of_letter.size(); ++code_point) {
    std::string letter;
    AppendCodePoint(code_point, letter);
    symbol_of_letter[code_point] = kNotLookedUp;
    symbol_of_letter[code_point] = static_cast<int32_t>(SymbolOf(code_point, letter));
  }
  space_symbol = static_cast<int32_t>(SymbolOf(kSpaceCodePoint, kSpaceLetter));

  vocabulary.tokens = {};
  vocabulary.scores = {};
  vocabulary.types = {};
  vocabulary.merges = {};
  return absl::OkStatus();
}

int64_t Tokenizer::Impl::SymbolOf(uint32_t code_point, absl::string_view letter) const {
  if (code_point < symbol_of_letter.size() && symbol_of_letter[code_point] != kNotLookedUp) {
    return symbol_of_letter[code_point];
  }
  const int32_t id = pieces.Find(letter);
  if (id >= 0) {
    const TokenType type = pieces.type(id);
    return type == TokenType::kNormal || type == TokenType::kUserDefined || type == TokenType::kUnused ? id : kNoSymbol;
  }
  if (!extra_symbols.empty()) {
    const auto it = extra_symbols.find(code_point);
    return it == extra_symbols.end() ? kNoSymbol : it->second;
  }
  return kNoSymbol;
}

// What no piece covers: byte tokens, or one unknown token for a row of such letters.
void Tokenizer::Impl::AppendUncovered(absl::string_view bytes, bool& after_unknown, std::vector<int32_t>& ids) const {
  const bool covered =
      std::all_of(bytes.begin(), bytes.end(), [this](char c) { return byte_ids[static_cast<uint8_t>(c)] >= 0; });
  if (covered) {
    for (const char c : bytes) {
      ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
    }
    after_unknown = false;
  } else if (!after_unknown) {
    ids.push_back(vocabulary.unknown_id);
    after_unknown = true;
  }
}

// Text without literals in it.
void Tokenizer::Impl::AppendPlain(absl::string_view text, std::vector<int32_t>& ids) const {
  Merger merger(rules);
  std::vector<uint32_t> run;
  bool after_unknown = false;
  const uint32_t token_count = static_cast<uint32_t>(pieces.size());
  const auto flush = [&] {
    merger.Merge(run);
    for (const uint32_t symbol : run) {
      if (symbol < token_count) {
        ids.push_back(static_cast<int32_t>(symbol));
        after_unknown = false;
      } else {
        std::string letter;
        const uint32_t code_point = extra_letters[symbol - token_count];
        AppendCodePoint(code_point, letter);
        AppendUncovered(letter, after_unknown, ids);
      }
    }
    run.clear();
  };
  uint32_t previous = 0;
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    const bool valid = step.status == Utf8Status::kValid;
    const size_t bytes = valid ? step.bytes : 1;  // each byte of an ill-formed sequence stands for itself
    const bool space = valid && step.code_point == ' ';
    const uint32_t code_point = space ? kSpaceCodePoint : step.code_point;
    const int64_t symbol = !valid ? kNoSymbol : space ? space_symbol : SymbolOf(code_point, text.substr(0, bytes));
    if (symbol == kNoSymbol) {
      flush();
      AppendUncovered(text.substr(0, bytes), after_unknown, ids);  // a space itself, if "▁" is no piece
    } else {
      if (!run.empty() && !letter_pairs.MayMerge(previous, code_point)) {
        flush();
      }
      run.push_back(static_cast<uint32_t>(symbol));
      previous = code_point;
    }
    text.remove_prefix(bytes);
  }
  flush();
}

absl::string_view Tokenizer::Impl::BytesOf(int32_t id, bool special) const {
  if (!pieces.Contains(id)) {
    return "";
  }
  if (IsHidden(pieces.type(id))) {
    return special ? pieces.piece(id) : "";
  }
  return pieces.text(id);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(Vocabulary vocabulary) {
  EMBERGATE_RETURN_IF_ERROR(CheckVocabulary(vocabulary));
  auto impl = std::make_unique<Impl>();
  impl->vocabulary = std::move(vocabulary);
  EMBERGATE_RETURN_IF_ERROR(impl->Build());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view text, const EncodeOptions& options) const {
  const Impl& impl = *impl_;
  std::vector<int32_t> ids;
  if (options.add_bos && impl.vocabulary.bos_id >= 0) {
    ids.push_back(impl.vocabulary.bos_id);
  }
  const size_t begin = ids.size();
  std::string letters;  // the text with "▁" for spaces, where literals are looked for in that
  if (impl.merges_by_score && (impl.vocabulary.add_space_prefix || text.find(' ') != absl::string_view::npos)) {
    letters = SpacesToLetters(text);
    if (impl.vocabulary.add_space_prefix && !text.empty()) {
      letters.insert(0, kSpaceLetter.data(), kSpaceLetter.size());
    }
    text = letters;
  }
  size_t plain_begin = 0;
  for (size_t at = 0; at < text.size();) {
    const PieceTrie::Match match = impl.literals.LongestPrefix(text.substr(at), options.parse_special);
    if (match.id < 0) {
      ++at;
      continue;
    }
    impl.AppendPlain(text.substr(plain_begin, at - plain_begin), ids);
    ids.push_back(match.id);
    at += match.bytes;
    plain_begin = at;
  }
  impl.AppendPlain(text.substr(plain_begin), ids);
  if (begin == 1 && ids.size() > 1 && ids[1] == ids[0]) {
    ids.erase(ids.begin());
  }
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool special) const {
  std::string text;
  std::string pending;
  for (const int32_t id : ids) {
    AppendUtf8Lossy(impl_->BytesOf(id, special), pending, text);
  }
  FinishUtf8Lossy(pending, text);
  return text;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const { return impl_->BytesOf(id, /*special=*/false); }

absl::string_view Tokenizer::Piece(int32_t id) const {
  return impl_->pieces.Contains(id) ? impl_->pieces.piece(id) : "";
}

int32_t Tokenizer::FindPiece(absl::string_view piece) const { return impl_->pieces.Find(piece); }

bool Tokenizer::IsControl(int32_t id) const { return impl_->pieces.Contains(id) && IsHidden(impl_->pieces.type(id)); }

int32_t Tokenizer::size() const { return impl_->pieces.size(); }

const Vocabulary& Tokenizer::vocabulary() const { return impl_->vocabulary; }

size_t Tokenizer::resident_bytes() const {
  return sizeof(Impl) + impl_->pieces.resident_bytes() + impl_->literals.resident_bytes() +
         impl_->rules.resident_bytes() + impl_->letter_pairs.resident_bytes() + impl_->vocabulary.chat_template.size();
}

}  // namespace embergate::engine
