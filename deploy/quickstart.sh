#!/usr/bin/env bash
# From a bare Debian 12 or 13 machine to a first answer: installs packages, builds, starts the server on the demo model,
# asks a question and for a tool call, and shows what was read from flash and what is held in DRAM. Can be run again at
# will, as root or as a user with sudo; needs the network for packages only.
#
#   deploy/quickstart.sh           everything, then stops the server
#   deploy/quickstart.sh --keep    leaves the server running and says how to talk to it
#
# EMBERGATE_LISTEN and EMBERGATE_METRICS: where the server listens, in place of 127.0.0.1:50051 and 127.0.0.1:9464.
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
show() { printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"; }

step "1/5 Packages"
deploy/install_packages.sh build
echo "All there."

step "2/5 Build (some minutes the first time, seconds after that)"
log=$(mktemp)
work=
server=
finish() {
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill "$server"
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$log" "$work"
}
trap finish EXIT
cmake --preset release -DEMBERGATE_BUILD_TESTS=OFF >"$log" 2>&1 || {
  tail -n 30 "$log" >&2
  echo "Configuring failed, see above. After a change of compiler or Debian, remove the folder build and try again." >&2
  exit 1
}
cmake --build --preset release --target embergate
embergate=build/embergate

step "3/5 Model and server"
model=tests/demo_model/demo.gguf
cat <<'TXT'
The demo model: Gemma 4's architecture, small, trained from scratch on an edge gateway's small talk in twenty
minutes (tests/demo_model/README.md). It knows its own little world and nothing else.
TXT
show "$embergate inspect $model"
"$embergate" inspect "$model"
work=$(mktemp -d)
# What the commands below would take anyway, so that they can be typed as they are shown.
address=${EMBERGATE_LISTEN:-127.0.0.1:50051}
metrics=${EMBERGATE_METRICS:-127.0.0.1:9464}
export EMBERGATE_ADDRESS=$address
show "$embergate serve --model $model"
"$embergate" serve --model "$model" --listen "$address" --metrics "$metrics" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 1 150); do
  if ! kill -0 "$server" 2>/dev/null; then
    cat "$work/server.log" >&2
    echo "The server did not start (is another one on $address or $metrics?)." >&2
    exit 1
  fi
  "$embergate" health >/dev/null 2>&1 && break
  sleep 0.2
done
"$embergate" health >/dev/null || { cat "$work/server.log" >&2; exit 1; }
cat "$work/server.log"

# The metrics endpoint without curl, which a bare machine lacks.
scrape() {
  exec 3<>"/dev/tcp/${metrics%:*}/${metrics#*:}"
  printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
  cat <&3
  exec 3>&-
}
scrape >"$work/before"

step "4/5 Answers, streamed over gRPC"
tools=tests/demo_model/tools.json
ask() {
  local words=("$@") i
  for i in "${!words[@]}"; do
    case "${words[i]}" in *' '*) words[i]="\"${words[i]}\"" ;; esac
  done
  show "$embergate generate ${words[*]}"
  "$embergate" generate "$@"
}
ask --chat --prompt "Where do your per-layer embeddings live?"
ask --chat --system "You are a gateway assistant. Readings: cellar humidity 67 %, roof power 640 W." \
  --prompt "What is the roof power?"
ask --chat --tools "$tools" --prompt "Could you turn on the light in the kitchen?" --stats

step "5/5 Flash and DRAM"
scrape >"$work/after"
value() { awk -v n="$1" '$1 == n { print $2 }' "$2"; }
echo "The per-layer embedding rows of these three requests came from flash (before -> after):"
for name in embergate_rows_requested_total embergate_row_cache_hits_total embergate_rows_read_total \
  embergate_flash_reads_total embergate_flash_read_bytes_total; do
  printf '  %-40s %12s -> %s\n' "$name" "$(value "$name" "$work/before")" "$(value "$name" "$work/after")"
done
echo "Where the bytes are, with the settings of a server that was told nothing:"
"$embergate" info | sed -n '/^DRAM/,/^flash/s/^/  /p'

real=$(
  cat <<TXT
A real model: README.md, "Serve a model", says which files; then
  $embergate serve --model MODEL.gguf
TXT
)
if $keep; then
  trap - EXIT
  rm -rf "$log" "$work"
  printf '\nThe server goes on (process %s). Talk with it, watch it, look at its metrics, stop it:\n' "$server"
  if [ "$address $metrics" != "127.0.0.1:50051 127.0.0.1:9464" ]; then
    echo "  export EMBERGATE_ADDRESS=$address EMBERGATE_METRICS=$metrics"
  fi
  cat <<TXT
  $embergate chat --system "You are a gateway assistant."
  $embergate top
  http://$metrics/metrics
  kill $server
$real
TXT
else
  cat <<TXT

Done; the server is stopped. To keep it and talk with it: deploy/quickstart.sh --keep
$real
TXT
fi
