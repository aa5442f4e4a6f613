"""How many of COUNT held-out questions, other than those of held_out.jsonl, a checkpoint answers right, by category.

  python3 evaluate.py --run FOLDER [--checkpoint last.pt] [--count 1000]
"""

import argparse
import os

import export
import tokenizer as tokenizers
import train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="what train.py wrote")
    parser.add_argument("--checkpoint", default="last.pt")
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    model, content = export.load(os.path.join(args.run, args.checkpoint))
    tokenizer = tokenizers.Tokenizer.load(os.path.join(args.run, "tokenizer.json"))
    share, by = train.accuracy(model, train.held_out_examples(tokenizer, args.count, "further"))
    print("step %d: %d of %d right; %s" % (content["step"], round(share * args.count), args.count,
                                           ", ".join("%s %.3f" % item for item in by.items())))


if __name__ == "__main__":
    main()
