#!/usr/bin/env bash
# llama_bench.sh MODEL.gguf [threads] [prompt] [repeat] [sequences...]: llama.cpp on a GGUF file, in each of its ways to
# hold the weights (llama_bench.cc), one JSON line each. Installs the prebuilt library of an npm package into build/llama
# the first time. With MODES="lazy:repack none:repack" only these. With CGROUP=1593MiB each in a memory cgroup of its own
# (in_cgroup.sh), with none of the file in the page cache when it begins.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
model=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
folder=build/llama
tests/integration/npm_fixtures.sh "$folder" node-llama-cpp@3.22.1
case $(uname -m) in
  x86_64) machine=linux-x64 ;;
  aarch64) machine=linux-arm64 ;;
  *) echo "no prebuilt library for $(uname -m)" >&2; exit 1 ;;
esac
library=$folder/node_modules/@node-llama-cpp/$machine/bins/$machine
# Its headers are in the package, as a git bundle of the sources.
[ -d "$folder/source" ] || git clone -q "$folder/node_modules/node-llama-cpp/llama/gitRelease.bundle" "$folder/source"
g++ -std=c++20 -O2 -I"$folder/source/include" -I"$folder/source/ggml/include" tests/bench/llama_bench.cc \
  "$library"/libllama.*so "$library"/libggml.*so "$library"/libggml-base.so -Wl,-rpath,"$PWD/$library" -o "$folder/llama_bench"
for mode in ${MODES:-none:repack mmap:repack mmap:as-stored lazy:repack lazy:as-stored}; do
  run=("$folder/llama_bench" "$model" "$library" "${mode%:*}" "${mode#*:}" "$@")
  if [ -n "${CGROUP:-}" ]; then
    dd if="$model" iflag=nocache count=0 status=none
    tests/bench/in_cgroup.sh "$CGROUP" "${run[@]}" || echo "$mode in $CGROUP: ended with $?"
  else
    "${run[@]}"
  fi
done
