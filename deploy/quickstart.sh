#!/usr/bin/env bash
# From a bare Debian 12 or 13 machine to streamed text: installs packages, builds, starts the server on the demo
# model, streams an answer, and shows what was read from flash and what is held in DRAM. Can be run again at will.
#
#   deploy/quickstart.sh           everything, then stops the server
#   deploy/quickstart.sh --keep    leaves the server running and says how to talk to it
set -euo pipefail
cd "$(dirname "$0")/.."

keep=false
case "${1:-}" in
  "") ;;
  --keep) keep=true ;;
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
    exit 0
    ;;
  *)
    echo "unknown argument: $1 (see --help)" >&2
    exit 2
    ;;
esac

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold= plain=; fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }

step "1/5 Packages"
deploy/install_packages.sh build
echo "All there."

step "2/5 Build"
cmake --preset release -DEMBERGATE_BUILD_TESTS=OFF >build-quickstart.log 2>&1 ||
  { tail -n 30 build-quickstart.log >&2; echo "Configuring failed; the whole output is in build-quickstart.log" >&2; exit 1; }
cmake --build --preset release --target embergate
rm -f build-quickstart.log
embergate=build/embergate

step "3/5 Model"
model=build/demo.gguf
if [ ! -f "$model" ]; then
  "$embergate" synth "$model" --shape gemma4-tiny --tokenizer tests/golden/gemma4-tiny-e2b
fi
cat <<'TXT'
This is a tiny model of Gemma 4's shape with RANDOM weights: it shows the machinery at work, and its text is noise.
For answers, give the server a Gemma 3n or Gemma 4 GGUF file (see README.md).
TXT
"$embergate" inspect "$model"

step "4/5 Server"
work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill "$server"
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
address=127.0.0.1:50051
metrics=127.0.0.1:9464
"$embergate" serve --model "$model" --listen "$address" --metrics "$metrics" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 1 150); do
  if ! kill -0 "$server" 2>/dev/null; then
    cat "$work/server.log" >&2
    echo "The server did not start (is another one on $address or $metrics?)." >&2
    exit 1
  fi
  "$embergate" health --address "$address" >/dev/null 2>&1 && break
  sleep 0.2
done
"$embergate" health --address "$address"
cat "$work/server.log"

# The metrics endpoint without curl, which a bare machine lacks.
scrape() {
  exec 3<>"/dev/tcp/${metrics%:*}/${metrics#*:}"
  printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
  cat <&3
  exec 3>&-
}
scrape >"$work/before"

step "5/5 An answer, streamed over gRPC"
"$embergate" generate --address "$address" --prompt "Hello, board!" --max-tokens 48 --seed 1 --ignore-eos --stats

step "Flash and DRAM"
scrape >"$work/after"
echo "What the request read from flash (before -> after):"
for name in embergate_rows_requested_total embergate_row_cache_hits_total embergate_rows_read_total \
  embergate_flash_reads_total embergate_flash_read_bytes_total; do
  printf '  %-40s %12s -> %s\n' "$name" \
    "$(awk -v n="$name" '$1 == n { print $2 }' "$work/before")" \
    "$(awk -v n="$name" '$1 == n { print $2 }' "$work/after")"
done
echo "How it was read, and what is held in DRAM:"
grep -E '^embergate_(flash_reader_info|dram_bytes|dram_budget_bytes)' "$work/after" | sed 's/^/  /'

if $keep; then
  trap - EXIT
  rm -rf "$work"
  cat <<TXT

The server goes on (process $server) at $address, metrics at http://$metrics/metrics. Talk to it:
  $embergate chat --address $address
Stop it with: kill $server
TXT
else
  echo
  echo "Done; the server is stopped. To keep one running: deploy/quickstart.sh --keep"
fi
