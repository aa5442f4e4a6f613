#!/usr/bin/env bash
# Runs a command in a new memory cgroup (v2 or v1) without swap, then says what it took. As root, outside of containers.
#
#   tests/bench/in_cgroup.sh 1500MiB build/embergate serve --model MODEL.gguf
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit 2
fi
bytes=$(numfmt --from=auto --to=none "${1%B}")
shift
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  group=/sys/fs/cgroup/embergate_bench_$$ limit=memory.max swap=memory.swap.max peak=memory.peak
  events=memory.events
else
  group=/sys/fs/cgroup/memory/embergate_bench_$$ limit=memory.limit_in_bytes swap=memory.swappiness
  peak=memory.max_usage_in_bytes events=memory.oom_control
fi
mkdir "$group"
echo "$bytes" > "$group/$limit"
echo 0 > "$group/$swap" || true
forward() { kill -TERM "$child" 2> /dev/null || true; }
trap forward TERM INT
status=0
bash -c 'echo $$ > "$0/cgroup.procs"; exec "$@"' "$group" "$@" &
child=$!
wait "$child" || status=$?
while kill -0 "$child" 2> /dev/null; do wait "$child" || status=$?; done
echo "cgroup: limit $bytes, peak $(cat "$group/$peak" 2> /dev/null || echo unknown)," \
  "OOM kills $(sed -n 's/^oom_kill //p' "$group/$events"), exit $status" >&2
for _ in $(seq 50); do
  rmdir "$group" 2> /dev/null && break
  sleep 0.1
done
exit "$status"
