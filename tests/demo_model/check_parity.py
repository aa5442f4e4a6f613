"""Compares the server's engine with the torch model: rendered prompts, token ids and logits.

  python3 check_parity.py --run FOLDER --checkpoint last.pt --gguf F32.gguf --embergate build/embergate
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy
import torch

import chat
import export
import safetensors_file
import tokenizer as tokenizers
import world


def render(args, conversation):
    """What the server makes of the conversation, the last answer included; the model's turn is closed."""
    messages = []
    for message in conversation["messages"]:
        if message["role"] == "tool":  # its result, and the answer after it, belong to the calling message
            name = messages[-1]["tool_calls"][0]["function"]["name"]
            messages[-1]["tool_responses"] = [{"name": name, "response": message["content"]}]
        elif messages and messages[-1].get("tool_responses") and message["role"] == "assistant":
            messages[-1]["content"] = message["content"]
        else:
            messages.append(dict(message))
    request = {"messages": messages, "tools": conversation.get("tools"), "add_generation_prompt": False}
    result = subprocess.run([args.embergate, "render", args.gguf], input=json.dumps(request), text=True,
                            capture_output=True)
    if result.returncode != 0:
        sys.exit(result.stderr)
    return result.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--checkpoint", default="last.pt")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--embergate", required=True)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    model, _ = export.load(os.path.join(args.run, args.checkpoint))
    tokenizer = tokenizers.Tokenizer.load(os.path.join(args.run, "tokenizer.json"))

    conversations = [world.make("parity %d" % i, i % 2 == 0) for i in range(args.count)]
    sequences = {}
    for i, conversation in enumerate(conversations):
        text = "".join(part for part, _ in chat.segments(conversation))
        rendered = render(args, conversation)
        if text != rendered:
            sys.exit("conversation %d is rendered differently:\n%r\n%r" % (i, text, rendered))
        sequences["s%d" % i] = tokenizer.encode(text)
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "ids.safetensors"), os.path.join(folder, "logits.safetensors")
        safetensors_file.write(source, {name + ".input_ids": numpy.array(ids, dtype=numpy.int32)
                                        for name, ids in sequences.items()})
        subprocess.run([args.embergate, "logits", args.gguf, "--tokens", source, "--out", target], check=True,
                       stderr=subprocess.DEVNULL)
        logits = safetensors_file.read(target)
    texts = [part for conversation in conversations for part, _ in chat.segments(conversation)]
    got = subprocess.run([args.embergate, "tokenize", args.gguf, "--parse-special"], input=json.dumps(texts), text=True,
                         capture_output=True, check=True)
    for text, ids in zip(texts, json.loads(got.stdout)):
        if ids != tokenizer.encode(text):
            sys.exit("%r is tokenised differently: %s, here %s" % (text, ids, tokenizer.encode(text)))
    worst = 0.0
    with torch.no_grad():
        for name, ids in sequences.items():
            mine = model.forward(torch.tensor([ids]), torch.arange(len(ids))[None])[0].numpy()
            worst = max(worst, float(numpy.abs(mine - logits[name + ".logits"]).max()))
    print("%d conversations, %d tokens: rendered and tokenised alike, largest difference of a logit %.2e" % (
        args.count, sum(len(ids) for ids in sequences.values()), worst))
    if worst > 1e-3:
        sys.exit("above 1e-3")


if __name__ == "__main__":
    main()
