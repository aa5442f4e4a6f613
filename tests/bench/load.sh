#!/usr/bin/env bash
# A served model under load: throughput, gaps, refusals, and the same within little memory.
#
#   tests/bench/load.sh MODEL.gguf [PART...]     parts: streams, crowd, prompt, cgroup (default: all)
set -euo pipefail
if [ $# -lt 1 ]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit 2
fi
model=$1
shift
parts=${*:-streams crowd prompt cgroup}
here=$(cd "$(dirname "$0")" && pwd)
binary=$here/../../build/embergate
log=$(mktemp)
server=
address=127.0.0.1:50371

# start [--in BYTES] FLAGS...
start() {
  local wrap=()
  if [ "$1" = --in ]; then
    wrap=("$here/in_cgroup.sh" "$2")
    shift 2
  fi
  "${wrap[@]}" "$binary" serve --model "$model" --listen "$address" --metrics off "$@" > "$log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    if grep -q ' ready$' "$log"; then return; fi
    kill -0 "$server" 2> /dev/null || { cat "$log"; exit 1; }
    sleep 0.2
  done
}
stop() {
  kill "$server"
  wait "$server" || true
  server=
  grep '^cgroup:' "$log" || true
}
trap '[ -z "$server" ] || kill "$server"; rm -f "$log"' EXIT
load() { "$binary" load --address "$address" "$@" || echo "EXIT $?"; }
# Resident memory of the server itself, which may be the child of in_cgroup.sh.
memory() {
  local pid
  pid=$(pgrep -P "$server" -x embergate || echo "$server")
  grep -E '^Pss:' "/proc/$pid/smaps_rollup" | sed 's/^/server /'
  echo "major faults $(cut -d' ' -f12 "/proc/$pid/stat")"
}

for part in $parts; do
  case $part in
    streams)
      start --slots 8 --dram-budget 0
      load --clients 1 --tokens 8 > /dev/null
      for clients in 1 2 4 8; do
        echo "== $clients streams"
        load --clients "$clients" --tokens 64 --seed "$clients" | grep -E 'every stream|gap'
      done
      stop
      ;;
    crowd)
      start --slots 8 --queue 16
      load --clients 1 --tokens 8 > /dev/null
      echo "== 64 clients at once, 8 slots, a queue of 16"
      load --clients 64 --tokens 32 --seed 3
      memory
      grep -A20 'DRAM by part' "$log" | grep total
      stop
      ;;
    prompt)
      start --slots 8 --dram-budget 0 --itl-target 200
      load --clients 7 --tokens 16 --long-prompt 300 > /dev/null
      echo "== a prompt of 2,000 tokens beside 7 streams, --itl-target 200"
      load --clients 7 --tokens 90 --long-prompt 2000 --seed 4 | grep -E 'beside|meanwhile|every stream'
      stop
      ;;
    cgroup)
      start --slots 4 --prefix-cache 32MiB --dram-budget 0
      weights=$("$binary" info --address "$address" --json | grep -o '"name":"weights","bytes":"[0-9]*' | grep -o '[0-9]*$')
      bytes=$((weights + (350 << 20)))
      load --clients 4 --tokens 8 > /dev/null
      echo "== 4 streams, unlimited"
      load --clients 4 --tokens 64 --seed 5 | grep -E 'every stream|gap'
      memory
      stop
      start --in "$bytes" --slots 4 --prefix-cache 32MiB --dram-budget "$bytes"
      load --clients 4 --tokens 8 > /dev/null
      echo "== 4 streams in a cgroup of $bytes bytes (weights and 350 MiB)"
      load --clients 4 --tokens 64 --seed 5 | grep -E 'every stream|gap'
      memory
      stop
      ;;
  esac
done
