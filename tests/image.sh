#!/usr/bin/env bash
# Builds the Dockerfile without a Docker engine and runs the image: with Debian's buildah (vfs, chroot isolation) on a
# base image made by debootstrap. Root only; takes as long as a build of the server.
#
#   tests/image.sh            build, measure, run
#   tests/image.sh --keep     leaves storage and base in build-image for the next time
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "needs root, for chroot and mounts" >&2; exit 2; }
for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || { echo "SKIPPED: $tool is not installed (Debian package $tool)"; exit 77; }
done
work=$PWD/build-image
mkdir -p "$work"
[ "${1:-}" = --keep ] || trap 'rm -rf "$work"' EXIT
image() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=debian:$suite-slim
if ! image inspect --type image "$base" >/dev/null 2>&1; then
  echo "==> Base image $base"
  # From where this machine gets its packages.
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Release: $suite" | grep -m 1 -v -e security)
  debootstrap --variant=minbase "$suite" "$work/base" "$mirror" >/dev/null
  cp /etc/apt/sources.list "$work/base/etc/apt/" 2>/dev/null || true
  cp -r /etc/apt/sources.list.d /etc/apt/apt.conf.d "$work/base/etc/apt/" 2>/dev/null || true
  rm -rf "$work"/base/var/cache/apt/archives/*.deb
  container=$(image from scratch)
  image add -q "$container" "$work/base" / >/dev/null
  image commit -q "$container" "docker.io/library/$base" >/dev/null
  image rm "$container" >/dev/null
  rm -rf "$work/base"
fi

echo "==> Build"
image build --isolation chroot --network host --pull=never --build-arg "DEBIAN=$suite-slim" -t embergate . |
  grep -E '^STEP|Linking CXX executable' || true

echo "==> Run"
container=$(image from --pull=never embergate)
root=$(image mount "$container")
size=$(du -sm "$root" | cut -f1)
echo "image: $size MiB"
[ "$size" -lt 60 ]
image inspect --type image embergate | python3 -c '
import json, sys
config = json.load(sys.stdin)["OCIv1"]["config"]
assert config["User"] == "65532:65532", config
assert config["Entrypoint"] == ["/usr/bin/embergate"] and config["Cmd"] == ["serve"], config
assert config["StopSignal"] == "SIGTERM" and "org.opencontainers.image.version" in config["Labels"], config
'
# As docker run would: the image's user, the binary itself as the command.
image run --isolation chroot "$container" -- /usr/bin/embergate --version
chroot --userspec 65532:65532 "$root" /usr/bin/embergate serve --help >/dev/null
test -z "$(find "$root" -name 'sh' -o -name 'bash' -o -name 'busybox')"
echo "passed"
