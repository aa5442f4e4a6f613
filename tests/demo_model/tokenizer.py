"""The demo model's tokenizer: BPE in Gemma's form, with Gemma 4's special tokens at Gemma 4's ids.

Trained on the generated text. Merges stay inside a word (with its leading space), a run of punctuation, a single digit:
so the whole-text BPE of Gemma's form and the word-by-word one here give the same ids. Needs only the standard library.
"""

import collections
import json
import re

SPECIALS = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>",
            48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>',
            98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>"}
NEWLINE = 107
FIRST_BYTE = 238
FIRST_PIECE = FIRST_BYTE + 256
SPACE = "\u2581"
WORD = re.compile(r"\n|[0-9]|%s?[A-Za-z°_]+|%s?[^A-Za-z0-9°_\n%s]+|%s" % (SPACE, SPACE, SPACE, SPACE))
SPECIAL = re.compile("(" + "|".join(re.escape(text) for text in SPECIALS.values()) + ")")


def words(text):
    return WORD.findall(text.replace(" ", SPACE))


class Tokenizer:
    def __init__(self, pieces, merges):
        self.pieces = pieces  # id -> piece; None where an id is unused
        self.ids = {piece: i for i, piece in enumerate(pieces) if piece is not None}
        self.merges = merges
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {}

    def __len__(self):
        return len(self.pieces)

    def word(self, word):
        known = self.cache.get(word)
        if known is not None:
            return known
        parts = list(word)
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 30:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        ids = []
        for part in parts:
            if part in self.ids:
                ids.append(self.ids[part])
            else:
                ids += [FIRST_BYTE + byte for byte in part.encode()]
        self.cache[word] = ids
        return ids

    def encode(self, text):
        """Special tokens in the text are recognised: it comes from the generator, never from a user."""
        ids = []
        for part in SPECIAL.split(text):
            if part in self.ids and SPECIAL.fullmatch(part):
                ids.append(self.ids[part])
            else:
                for word in words(part):
                    ids += self.word(word)
        return ids

    def decode(self, ids):
        data = b""
        for i in ids:
            if FIRST_BYTE <= i < FIRST_PIECE:
                data += bytes([i - FIRST_BYTE])
            else:
                data += (self.pieces[i] or "").encode()
        return data.decode(errors="replace").replace(SPACE, " ")

    def save(self, path):
        added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                  "normalized": False, "special": True} for i, text in sorted(SPECIALS.items())]
        vocab = {piece if piece is not None else "<unused%d>" % i: i for i, piece in enumerate(self.pieces)}
        with open(path, "w") as out:
            json.dump({
                "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
                "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                  "invert": False},
                "post_processor": None,
                "decoder": {"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                    {"type": "Fuse"}]},
                "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                          "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                          "vocab": vocab, "merges": [list(pair) for pair in self.merges]},
            }, out, ensure_ascii=False, indent=0)

    @staticmethod
    def load(path):
        with open(path) as source:
            model = json.load(source)["model"]
        pieces = [None] * (max(model["vocab"].values()) + 1)
        for piece, i in model["vocab"].items():
            pieces[i] = None if re.fullmatch(r"<unused\d+>", piece) else piece
        return Tokenizer(pieces, [tuple(pair) for pair in model["merges"]])


def train(texts, size):
    """Byte-pair encoding: the most frequent pair of neighbours in the words becomes a piece, until `size` ids are used
    or no pair occurs twice. Ties are broken by the text of the pair, so that the result depends on the texts alone."""
    counts = collections.Counter()
    for text in texts:
        for part in SPECIAL.split(text):
            if not SPECIAL.fullmatch(part):
                counts.update(words(part))
    pieces = [None] * FIRST_PIECE
    for i, text in SPECIALS.items():
        pieces[i] = text
    pieces[NEWLINE] = "\n"
    for byte in range(256):
        pieces[FIRST_BYTE + byte] = "<0x%02X>" % byte
    letters = {chr(c) for c in range(33, 127)} | {SPACE} | {letter for word in counts for letter in word}
    pieces += sorted(letters - {"\n"})
    merges = []
    split = {word: list(word) for word in counts}
    while len(pieces) < size:
        pairs = collections.Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        if not pairs:
            break
        pair, count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if count < 2:
            break
        merges.append(pair)
        if pair[0] + pair[1] not in pieces:
            pieces.append(pair[0] + pair[1])
        for word, parts in split.items():
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == pair:
                    parts[i:i + 2] = [pair[0] + pair[1]]
                i += 1
    return Tokenizer(pieces, merges)
