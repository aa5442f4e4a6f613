#!/usr/bin/env python3
"""Cycles that the inner loops of the NEON products take, as llvm-mca predicts them. There is no board to measure on.

  tests/bench/arm_cycles.py [FOLDER]

FOLDER holds the kernels' objects of a cross build: build-arm64/engine/CMakeFiles/embergate_engine.dir/kernels by default.
Needs aarch64-linux-gnu-objdump and llvm-mca of LLVM 17 or newer (16 takes Neoverse N1 for a Cortex-A57; N1 is the
Cortex-A76's twin). A pass of each loop is one unit of 8 rows (32 columns, 256 weights) for all of its tokens, with all
data in the first-level cache.
"""
import os
import re
import shutil
import subprocess
import sys

# What is measured: object, function, tokens, multiplication, and the fewest cycles of 256 weights and one token: the
# multiplications alone, at the rate of the core (sdot: 16 products, two a cycle; smmla: 32, two; smlal and smull: 8, one).
Q4, BYTES = "KindELi4ELi0ELb0ELb0ELi32ELb1EEE", "KindELi8ELi0ELb0ELb0ELi32ELb1EEE"
KERNELS = [
    ("Cortex-A76, sdot, 1 token", "neon_dotprod_matmul", Q4, 1, "sdot", 16, "neoverse-n1", 8),
    ("Cortex-A76, sdot, 4 tokens", "neon_dotprod_matmul", Q4, 4, "sdot", 16, "neoverse-n1", 8),
    ("Cortex-A76, sdot, many tokens", "neon_dotprod_matmul", BYTES, 4, "sdot", 16, "neoverse-n1", 8),
    ("Cortex-A72, plain, 1 token", "neon_matmul", Q4, 1, "smull|smlal", 32, "cortex-a72", 32),
    ("Cortex-A72, plain, 4 tokens", "neon_matmul", Q4, 4, "smull|smlal", 32, "cortex-a72", 32),
    ("Cortex-A72, plain, many tokens", "neon_matmul", BYTES, 4, "smull|smlal", 32, "cortex-a72", 32),
    ("Neoverse N2, smmla, many tokens", "neon_i8mm_matmul", BYTES, 4, "smmla", 8, "neoverse-n2", 4),
]


def functions(path):
    """Name to list of (address, instruction)."""
    text = subprocess.run(["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", path], check=True,
                          capture_output=True, text=True).stdout
    found, name = {}, None
    for line in text.splitlines():
        if match := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            name = match[1]
            found[name] = []
        elif match := re.match(r"^\s+([0-9a-f]+):\s+(.*)$", line):
            found[name].append((int(match[1], 16), match[2].split("//")[0].strip()))
    return found


def find_loop(body, multiplication, count):
    """The shortest run of instructions from a backward branch's target to the branch with `count` multiplications."""
    best = None
    for i, (address, instruction) in enumerate(body):
        match = re.match(r"(?:b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s*([0-9a-f]+) <", instruction)
        if not match or int(match[1], 16) >= address:
            continue
        loop = [text for at, text in body[: i + 1] if at >= int(match[1], 16)]
        found = sum(bool(re.match(rf"({multiplication})2?\b", text)) for text in loop)
        if found == count and (best is None or len(loop) < len(best)):
            best = loop
    return best


def whole_loads(match):
    second = f", q{match[3]}" if match[3] else ""
    return f"{match[1]}\tq{match[2]}{second}, [{match[4]}]"


def cycles(loop, cpu, mca):
    text = "\n".join(re.sub(r"([0-9a-f]+) <.*>", ".Lloop", line) if re.match(r"(b\.|cb|tb)", line) else line for line in loop)
    # Loads of part of a vector register clear the rest, but llvm-mca lets them wait for the register's old value: whole
    # ones cost the same.
    text = re.sub(r"^(ldu?r|ldp)\t[sd](\d+), (?:[sd](\d+), )?\[(\w+).*$", whole_loads, text, flags=re.M)
    out = subprocess.run([mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm", "-iterations=200"],
                         input=".Lloop:\n" + text + "\n", check=True, capture_output=True, text=True).stdout
    return float(re.search(r"Total Cycles:\s+(\d+)", out)[1]) / 200


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "build-arm64/engine/CMakeFiles/embergate_engine.dir/kernels"
    mca = next((name for name in ("llvm-mca-19", "llvm-mca-18", "llvm-mca-17", "llvm-mca-16", "llvm-mca")
                if shutil.which(name)), None)
    if mca is None:
        sys.exit("llvm-mca is missing: install llvm-16 or newer")
    print(f"{'kernel':34} {'instructions':>12} {'cycles':>8} {'least':>6} {'of least':>9}   per 256 weights and token")
    for label, object_name, kind, tokens, multiplication, per_token, cpu, least in KERNELS:
        path = next((p for p in (f"{folder}/{object_name}.cc.o", f"{folder}/{object_name}.o") if os.path.exists(p)), None)
        if path is None:
            sys.exit(f"no {object_name} in {folder}: cross-build first")
        loops = [find_loop(body, multiplication, tokens * per_token) for name, body in functions(path).items()
                 if kind in name]
        loop = min((found for found in loops if found), key=len, default=None)
        if loop is None:
            print(f"{label:34} not found: has the compiler not inlined it?")
            continue
        taken = cycles(loop, cpu, mca) / tokens
        print(f"{label:34} {len(loop) / tokens:12.0f} {taken:8.1f} {least:6} {least / taken:8.0%}")


if __name__ == "__main__":
    main()
