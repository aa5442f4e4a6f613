#!/bin/bash
# What tests/board.sh looks at on its emulated board: this runs there, started by systemd, from the disk with everything.
set -uo pipefail
say() { echo "board: $*"; }
fail() {
  say "FAILED: $*"
  exit 1
}
trap 'journalctl --no-pager -u embergate -n 40 -o cat; systemctl --no-pager status embergate | head -n 20' EXIT

here=/mnt
card=/media
failed=  # test programs; the others get their turn
bars_of_time='*FullVocabularyOpensQuickly*:*WorstText*InTime*'  # mean nothing here
answer="My per-layer embeddings stay on flash and are read row by row."
ask() { embergate generate --chat --prompt "Where do your per-layer embeddings live?"; }
metric() {
  exec 3<>/dev/tcp/127.0.0.1/9464 || return 1
  printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
  tr -d '\r' <&3 | grep "^embergate_$1[{ ]"
  exec 3>&-
}
# until_ok SECONDS COMMAND...: tries it until it succeeds, for so long at most.
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.5
  done
}
property() { systemctl show -P "$1" embergate; }
serves() {
  until_ok 120 embergate health || fail "not healthy: $*"
  [ "$(ask)" = "$answer" ] || fail "another answer: $*"
}
reads_with() { metric flash_reader_info | grep -q "backend=\"$1\"" || fail "not $1 but $(metric flash_reader_info): $2"; }
run_programs() {
  local folder=$1 program filter log
  while read -r program filter; do
    log=/root/$program.log
    TEST_TMPDIR=$folder TMPDIR=$folder timeout 900 "$here/programs/$program" --gtest_brief=1 "--gtest_filter=${filter:-*}-$bars_of_time" \
      >"$log" 2>&1 </dev/null && grep -q '^\[  PASSED  \] [1-9]' "$log" || { cat "$log"; failed+=" $program"; }
    say "$program in $folder: $(grep -E '^\[  (PASSED|SKIPPED|FAILED) .*tests?' "$log" | paste -sd' ')"
  done
}

say "Linux $(uname -r), pages of $(getconf PAGESIZE) bytes, $(nproc) CPUs, $(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
mount /dev/mmcblk0 $card || fail "no card"
source=$(cat $here/source_path)
mkdir -p "$(dirname "$source")" $here/source/build-arm64
ln -s $here/source "$source"
ln -s /usr/bin/embergate $here/source/build-arm64/embergate-emulated  # here it needs no emulator
for disk in nvme0n1 mmcblk0; do
  say "$disk: sectors of $(cat /sys/block/$disk/queue/logical_block_size) bytes"
done

# As README says.
apt-get install -y --no-install-recommends $here/debs/*.deb >/root/apt.log 2>&1 || { cat /root/apt.log; fail "apt"; }
sh $here/installed_package.sh 2>/dev/null || fail "the installed package"

run_programs $here/tmp <$here/programs/list
run_programs $card/tmp < <(grep '^row_store_test' $here/programs/list)

sed -i "s#^model = .*#model = \"$here/demo.gguf\"#; s/^#context = .*/context = 512/" /etc/embergate/embergate.toml
systemctl enable --now embergate || fail "the service does not start"
serves "after the first start"
reads_with io_uring "NVMe"
[ "$(metric rows_read_total | cut -d' ' -f2)" -gt 0 ] || fail "no rows were read"
systemctl is-enabled --quiet embergate || fail "not enabled"
pid=$(property MainPID)
grep -qx 'CapEff:[[:space:]]*0*' "/proc/$pid/status" || fail "has capabilities"
grep -qE '^Uid:[[:space:]]+0' "/proc/$pid/status" && fail "runs as root"
limit=$(cat "/sys/fs/cgroup$(property ControlGroup)/memory.max")
budget=$(metric dram_budget_bytes | awk '{ printf "%.0f", $2 }')
[ "$budget" -le "$limit" ] && [ "$budget" -gt $((limit / 2)) ] || fail "budget $budget, limit $limit"
say "service: started by systemd $(systemctl --version | awk 'NR == 1 { print $2 }'), io_uring, budget $((budget >> 20)) of $((limit >> 20)) MiB, peak $(($(cat "/sys/fs/cgroup$(property ControlGroup)/memory.peak" 2>/dev/null || echo 0) >> 20)) MiB"

# Another model file, on the card, without an end of the process.
sed -i "s#^model = .*#model = \"$card/demo.gguf\"#" /etc/embergate/embergate.toml
systemctl reload embergate || fail "reload"
until_ok 120 bash -c 'journalctl -u embergate -o cat | grep -q "'$card'/demo.gguf"' || fail "the journal does not tell of the other model"
serves "after the reload"
reads_with io_uring "SD card"
[ "$(property MainPID)" = "$pid" ] || fail "reload has restarted the service"
say "reload: the model on the card, io_uring"

# Who hangs is ended by the watchdog, and started again.
mkdir -p /run/systemd/system/embergate.service.d
printf '[Service]\nWatchdogSec=6\n' >/run/systemd/system/embergate.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart embergate || fail "restart"
serves "after the restart"
pid=$(property MainPID)
kill -STOP "$pid"
until_ok 60 bash -c '[ "$(systemctl show -P NRestarts embergate)" = 1 ]' || fail "the watchdog has not restarted it"
serves "after the watchdog"
journalctl -u embergate -o cat | grep -qi watchdog || fail "no word of the watchdog in the journal"
rm -r /run/systemd/system/embergate.service.d
systemctl daemon-reload
say "watchdog: ended who hung, and started it again"

# Little memory, many clients: the budget follows the unit's limit, and holds.
mkdir -p /run/systemd/system/embergate.service.d
printf '[Service]\nMemoryMax=144M\n' >/run/systemd/system/embergate.service.d/memory.conf
systemctl daemon-reload
echo 'prefix-cache = "16MiB"' >>/etc/embergate/embergate.toml
systemctl restart embergate || fail "restart in 144 MiB"
serves "in 144 MiB"
budget=$(metric dram_budget_bytes | awk '{ printf "%.0f", $2 }')
[ "$budget" -le $((144 << 20)) ] || fail "budget $budget in 144 MiB"
embergate load --clients 8 --tokens 40 --verify >/root/load.log 2>&1 || { cat /root/load.log; fail "load in 144 MiB"; }
cgroup=/sys/fs/cgroup$(property ControlGroup)
grep -qx 'oom_kill 0' "$cgroup/memory.events" || fail "killed for memory: $(paste -sd' ' "$cgroup/memory.events")"
[ "$(property NRestarts)" = 0 ] || fail "has died in 144 MiB"
say "144 MiB: 8 clients, budget $((budget >> 20)) MiB, $(awk '$1 == "anon" { print int($2 / 1048576) }' "$cgroup/memory.stat") MiB of its own, $(paste -sd' ' "$cgroup/memory.events")"
rm -r /run/systemd/system/embergate.service.d
systemctl daemon-reload

# A stop drains: the stream ends in full.
embergate generate --prompt Hello --seed 1 --max-tokens 150 --ignore-eos --json >/root/stream.json 2>/root/stream.err &
stream=$!
until_ok 60 bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464; printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; grep -q "^embergate_num_requests_running 1" <&3' ||
  fail "the stream does not run"
systemctl stop embergate || fail "stop"
wait $stream || { cat /root/stream.err; fail "the stream was broken off"; }
grep -q '"output_tokens": *150' /root/stream.json || { cat /root/stream.json; fail "the stream is not whole"; }
[ "$(property Result)" = success ] || fail "stopped with $(property Result)"
say "stop: drained"

# Without io_uring, where this kernel can forbid it.
if [ -e /proc/sys/kernel/io_uring_disabled ]; then
  echo 2 >/proc/sys/kernel/io_uring_disabled
  systemctl start embergate || fail "start without io_uring"
  serves "without io_uring"
  reads_with pread "io_uring is forbidden"
  say "io_uring forbidden: $(metric flash_reader_info)"
  echo 0 >/proc/sys/kernel/io_uring_disabled
  systemctl stop embergate
fi

# README's `docker run`, on an image that was made elsewhere.
if [ -e $here/image.tar ]; then
  systemctl stop embergate
  ln -s $here/modules /lib/modules
  apt-get install -y --no-install-recommends $here/docker/*.deb >/root/apt.log 2>&1 || { cat /root/apt.log; fail "apt docker.io"; }
  until_ok 120 docker version || { journalctl --no-pager -u docker -n 30 -o cat; fail "Docker does not start"; }
  docker load --quiet <$here/image.tar || fail "docker load"
  mkdir -p /root/site/models /root/site/deploy
  cd /root/site
  cp -r $here/docker/seccomp deploy
  cp $here/demo.gguf models/gemma-4-e2b-it.gguf
  key=$(docker run --rm embergate keygen alice) || fail "docker run keygen: $key"
  grep '^alice sha256:' <<<"$key" >api-keys || fail "no line of a key: $key"
  sed 's/^docker run/docker run --detach --name board/' $here/docker/run >run
  PWD=/root/site bash run >/root/docker.log 2>&1 || { cat run /root/docker.log; fail "docker run"; }
  export EMBERGATE_API_KEY=${key%%[[:space:]]*}
  serves "in a container"
  reads_with io_uring "in a container"
  until_ok 120 bash -c '[ "$(docker inspect -f "{{.State.Health.Status}}" board)" = healthy ]' || fail "Docker does not find it healthy"
  docker stop board >/dev/null || fail "docker stop"
  [ "$(docker inspect -f '{{.State.ExitCode}}' board)" = 0 ] || { docker logs board; fail "the container ended with an error"; }
  say "Docker $(docker version -f '{{.Server.Version}}'): README's command, io_uring, healthy, drained"
  unset EMBERGATE_API_KEY
  cd /
else
  say "without Docker: tests/image.sh arm64 --keep leaves the image"
fi

# What does not become usable by trying again is not tried again.
sed -i 's#^model = .*#model = "/mnt/on_board.sh"#' /etc/embergate/embergate.toml
systemctl start embergate && fail "a script is no model"
sleep 5
[ "$(property Result) $(property ExecMainStatus) $(property NRestarts)" = "exit-code 2 0" ] ||
  fail "bad model: $(property Result) $(property ExecMainStatus) $(property NRestarts)"
say "a bad model: told once"

apt-get remove -y embergate >/root/apt.log 2>&1 || { cat /root/apt.log; fail "apt remove"; }
systemctl cat embergate >/dev/null 2>&1 && fail "the unit is still there"
trap - EXIT
[ -z "$failed" ] || fail "programs:$failed"
say "passed"
