"""Trains the demo model on the CPU. Seeded; goes on from its checkpoint when it is started again.

  python3 train.py --out FOLDER [--steps N] [--workers 2] [--no-ple]

A step takes the gradients of two microbatches of conversations, which the worker processes share out; matrices are trained with Muon (momentum whose
update is orthogonalised by Newton-Schulz iterations, five of them), all else with Adam. The learning rate is constant
and falls to zero over the last part of the steps. --steps may differ when going on.
"""

import os

import sys

# Before torch comes: its BLAS, OpenBLAS, takes slow kernels on CPUs that it does not know, and large buffers would be
# taken from and given back to the system in every operation.
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    os.environ.update(MALLOC_MMAP_THRESHOLD_="4000000000", MALLOC_TRIM_THRESHOLD_="4000000000",
                      OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    with open("/proc/cpuinfo") as cpus:
        if "avx512vl" in cpus.read():
            os.environ.setdefault("OPENBLAS_CORETYPE", "SKYLAKEX")
    os.execv(sys.executable, [sys.executable] + sys.argv)

import argparse
import collections
import math
import random
import time

import torch
import torch.multiprocessing as processes

import chat
import model as models
import tokenizer as tokenizers
import world

MICROBATCH_TOKENS = 1024
MICROBATCHES = 2  # in a step, whatever the number of workers
SAVE_EVERY = 25  # steps
POOL = 192  # conversations that are sorted by length before they are cut into microbatches


class Batches:
    """A row of microbatches, whose order depends on the seed and the number of the row alone."""

    def __init__(self, tokenizer, number, seed, skip):
        self.tokenizer = tokenizer
        self.name = "train %d %d" % (seed, number)
        self.pool = 0
        self.ready = []
        self.taken = 0
        while self.taken < skip:
            self.next(build=False)

    def next(self, build=True):
        if not self.ready:
            examples = []
            for i in range(POOL):
                examples.append(chat.tokens(world.make("%s %d %d" % (self.name, self.pool, i)), self.tokenizer))
            examples.sort(key=lambda example: len(example[0]))
            while examples:
                part = [examples.pop()]  # the longest of those left
                while examples and (len(part) + 1) * len(part[0][0]) <= MICROBATCH_TOKENS:
                    part.append(examples.pop())
                self.ready.append(part)
            random.Random("%s %d" % (self.name, self.pool)).shuffle(self.ready)
            self.pool += 1
        self.taken += 1
        part = self.ready.pop()
        return pack(part) if build else None


def pack(examples):
    """-> ids [B, T], rows [B, M], targets [B, M] (-100 where there is none), answer index [B, M]."""
    longest = max(len(ids) for ids, _ in examples)
    most = max(sum(a >= 0 for a in answers) for _, answers in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    rows = torch.zeros(len(examples), most, dtype=torch.long)
    targets = torch.full((len(examples), most), -100)
    index = torch.full((len(examples), most), -1)
    for b, (tokens, answers) in enumerate(examples):
        ids[b, :len(tokens)] = torch.tensor(tokens)
        at = [t for t in range(1, len(tokens)) if answers[t] >= 0]
        rows[b, :len(at)] = torch.tensor(at) - 1
        targets[b, :len(at)] = torch.tensor([tokens[t] for t in at])
        index[b, :len(at)] = torch.tensor([answers[t] for t in at])
    return ids, rows, targets, index


def is_matrix(name):
    return name.startswith("layers.") and name.endswith("proj.weight") or "per_layer_input_gate" in name or (
        name.endswith("per_layer_projection.weight")) or name == "per_layer_model_projection.weight"


def orthogonalise(g):
    """Newton-Schulz: [n, r, c] to nearly orthogonal matrices."""
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.transpose(1, 2) if tall else x


class Optimiser:
    """State lives in flat tensors beside the weights; `step` treats every `workers`-th group of matrices."""

    def __init__(self, model, state):
        self.model = model
        self.state = state  # {"first": flat, "second": flat}
        self.first = model.views(state["first"])
        self.second = model.views(state["second"])
        groups = collections.defaultdict(list)
        for name in model.spec:
            if is_matrix(name):
                groups[model.w[name].shape].append(name)
        # Largest first, dealt out in turns, so that workers have about the same to do.
        self.groups = []
        for names in sorted(groups.values(), key=lambda n: -len(n) * model.w[n[0]].numel()):
            for i in range(0, len(names), 4):
                self.groups.append(names[i:i + 4])
        self.others = [name for name in model.spec if not is_matrix(name)]

    def step(self, grad, number, rate, worker, workers):
        grads = self.model.views(grad)
        with torch.no_grad():
            for names in self.groups[worker::workers]:
                momentum = []
                for name in names:
                    self.first[name].lerp_(grads[name], 0.05)
                    momentum.append(torch.lerp(grads[name], self.first[name], 0.95))
                update = orthogonalise(torch.stack(momentum))
                scale = 0.02 * rate * max(1.0, update.shape[1] / update.shape[2]) ** 0.5
                for name, u in zip(names, update):
                    self.model.w[name].mul_(1 - 0.02 * rate * 0.1).add_(u, alpha=-scale)
            for name in self.others[worker::workers]:
                g, m, v, w = grads[name], self.first[name], self.second[name], self.model.w[name]
                m.lerp_(g, 0.1)
                v.mul_(0.98).addcmul_(g, g, value=0.02)
                size = 0.003 * rate
                correction = math.sqrt(1 - 0.98 ** (number + 1)) / (1 - 0.9 ** (number + 1))
                w.addcdiv_(m, v.sqrt().add_(1e-8), value=-size * correction)


def loss_of(model, batch):
    ids, rows, targets, _ = batch
    logits = model.forward(ids, rows)
    keep = targets >= 0
    return torch.nn.functional.cross_entropy(logits[keep], targets[keep], reduction="sum"), int(keep.sum())


def accuracy(model, examples):
    """Share of conversations whose last answer is right in every token, by category. (An answer is chosen greedily, so
    it comes out right exactly if each of its tokens is the likeliest one after the right ones before it.)"""
    right, all_of = collections.Counter(), collections.Counter()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0][0]))
    with torch.no_grad():
        for start in range(0, len(order), 16):
            part = [examples[i] for i in order[start:start + 16]]
            ids, rows, targets, index = pack([example for example, _ in part])
            best = model.forward(ids, rows).argmax(-1)
            for b, (_, category) in enumerate(part):
                last = index[b] == index[b].max()
                all_of[category] += 1
                right[category] += bool((best[b][last] == targets[b][last]).all())
    by = {category: right[category] / all_of[category] for category in sorted(all_of)}
    return sum(right.values()) / len(examples), by


def held_out_examples(tokenizer, count, name):
    out = []
    for i in range(count):
        conversation = world.make("%s %d" % (name, i), True)
        out.append((chat.tokens(conversation, tokenizer), conversation["category"]))
    return out


def rate_at(step, steps, decay):
    warm = min(1.0, (step + 1) / 40)
    left = (steps - step) / max(1, int(steps * decay))
    return warm * min(1.0, left)


def save(path, content):
    torch.save(content, path + ".new")
    os.replace(path + ".new", path)


def work(worker, args, config, shared, barrier):
    torch.set_num_threads(1)
    tokenizer = tokenizers.Tokenizer.load(os.path.join(args.out, "tokenizer.json"))
    model = models.Model(config, shared["flat"])
    optimiser = Optimiser(model, shared)
    step = int(shared["step"])
    rows = [Batches(tokenizer, i, args.seed, step) for i in range(worker, MICROBATCHES, args.workers)]
    held_out = held_out_examples(tokenizer, 200, "validation")[worker::args.workers]
    began, first_step = time.time(), step
    log = open(os.path.join(args.out, "log.txt"), "a", buffering=1) if worker == 0 else None
    best = float(shared["best"])
    while step < args.steps:
        shared["losses"][worker] = 0
        for batches in rows:
            loss, count = loss_of(model, batches.next())
            loss.backward()
            shared["losses"][worker] += torch.tensor([float(loss), count])
        at = 0
        grad = shared["grads"][worker]
        for name, w in model.w.items():
            grad[at:at + w.numel()] = w.grad.view(-1)
            w.grad = None
            at += w.numel()
        barrier.wait()
        # Each worker adds up and scales its own part of the gradient, then updates its own part of the weights.
        total = float(shared["losses"][:, 1].sum())
        parts = shared["grads"].chunk(args.workers, 1)[worker]
        parts[0].copy_(parts.sum(0)).div_(total)
        barrier.wait()
        optimiser.step(shared["grads"][0], step, rate_at(step, args.steps, args.decay), worker, args.workers)
        mean = float(shared["losses"][:, 0].sum()) / total
        barrier.wait()
        step += 1
        if step % args.every == 0 or step == args.steps:
            share, by = accuracy(model, held_out)
            shared["shares"][worker] = share
            barrier.wait()
            if worker == 0:
                share = float(shared["shares"].mean())
                line = "step %d of %d, %.1f minutes (%.1f on the CPU), loss %.4f, held out %.4f; %s" % (
                    step, args.steps, (time.time() - began) / 60, time.process_time() / 60, mean, share,
                    ", ".join("%s %.2f" % item for item in by.items()))
                print(line, flush=True)
                log.write(line + "\n")
                if share >= best:
                    best = share
                    save(os.path.join(args.out, "best.pt"), {"flat": shared["flat"], "config": vars(config),
                                                             "step": step, "share": share})
            barrier.wait()
        if worker == 0 and (step % SAVE_EVERY == 0 or step == args.steps):
            print("step %d, %.2f s each, loss %.4f" % (step, (time.time() - began) / (step - first_step), mean),
                  flush=True)
            save(os.path.join(args.out, "last.pt"), {"step": step, "config": vars(config), "best": best,
                                                     **{key: shared[key] for key in ("flat", "first", "second")}})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--decay", type=float, default=0.35, help="part of the steps over which the rate falls")
    parser.add_argument("--every", type=int, default=125, help="steps between two looks at held-out questions")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-ple", action="store_true", help="the same model without per-layer embeddings")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "tokenizer.json")
    if not os.path.exists(path):
        conversations = [world.make("tokenizer %d" % i) for i in range(4000)]
        texts = ["".join(text for text, _ in chat.segments(c)) for c in conversations]
        tokenizers.train(texts, 2048).save(path)
    config = models.Config(vocab=len(tokenizers.Tokenizer.load(path)), ple=0 if args.no_ple else models.Config.ple)
    model = models.Model(config, seed=args.seed)
    shared = {"flat": model.flat.detach(), "first": torch.zeros(model.size), "second": torch.zeros(model.size),
              "step": torch.zeros(1), "best": torch.zeros(1)}
    last = os.path.join(args.out, "last.pt")
    if os.path.exists(last):
        loaded = torch.load(last)
        for key in ("flat", "first", "second"):
            shared[key].copy_(loaded[key])
        shared["step"][0], shared["best"][0] = loaded["step"], loaded["best"]
    shared.update(grads=torch.zeros(args.workers, model.size), losses=torch.zeros(args.workers, 2),
                  shares=torch.zeros(args.workers))
    for tensor in shared.values():
        tensor.share_memory_()
    table = math.prod(model.spec.get("embed_tokens_per_layer.weight", ((0,),))[0])
    print("%d parameters in the per-layer table, %d outside it" % (table, model.size - table), flush=True)
    context = processes.get_context("fork")
    barrier = context.Barrier(args.workers)
    others = [context.Process(target=work, args=(i, args, config, shared, barrier)) for i in range(1, args.workers)]
    for process in others:
        process.start()
    work(0, args, config, shared, barrier)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()
