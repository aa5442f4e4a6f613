#!/usr/bin/env bash
# Builds the container image without a Docker engine and runs it: with Debian's buildah (vfs, chroot isolation, the host's
# network) on a base image made by debootstrap. Root only; takes as long as a build of the server.
#
#   tests/image.sh             the Dockerfile, for this machine: build, measure, run
#   tests/image.sh arm64       deploy/arm64.Dockerfile, which an x86-64 machine builds for 64-bit Arm; run under qemu
#   tests/image.sh ... --keep  leaves storage and base image in build-image for the next time, and the image itself as
#                              build-image/embergate-ARCHITECTURE.tar, for `docker load`
set -euo pipefail
cd "$(dirname "$0")/.."
skip() {
  echo "SKIPPED: image: $*" >&2
  exit 77
}
. tests/support/foreign_debian.sh
machine=$(dpkg --print-architecture)
architecture=$machine
keep=
for argument in "$@"; do
  case "$argument" in
    arm64) architecture=arm64 ;;
    --keep) keep=yes ;;
    *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; exit 2 ;;
  esac
done
[ "$(id -u)" -eq 0 ] || { echo "needs root, for chroot and mounts" >&2; exit 2; }
for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || skip "$tool is not installed (Debian package $tool)"
done
file=Dockerfile
if [ "$architecture" != "$machine" ]; then
  file=deploy/$architecture.Dockerfile
  command -v qemu-aarch64-static >/dev/null || skip "qemu-user-static is not installed"
fi
work=$PWD/build-image
mkdir -p "$work"
[ -n "$keep" ] || cleanup+=('rm -rf "$work"')
image() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

base=debian:$release-slim
if ! image inspect --type image "$base" >/dev/null 2>&1; then
  echo "==> Base image $base"
  mirror=$(debian_mirror)
  debootstrap --variant=minbase "$release" "$work/base" "$mirror" >/dev/null
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
image build --format docker --platform "linux/$architecture" --isolation chroot --network host --pull=never \
  --build-arg "DEBIAN=${base#debian:}" -f "$file" -t embergate . >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; exit 1; }
grep -E '^(\[[0-9]+/[0-9]+\] )?STEP ' "$work/build.log"

echo "==> Run"
[ "$architecture" = "$machine" ] || emulate_arm64  # not before: nothing in the build may need it
container=$(image from --pull=never --platform "linux/$architecture" embergate)
root=$(image mount "$container")
image inspect --type image embergate >"$work/image.json"
# What a container does with this file system, on a read-only root and without capabilities ...
EMBERGATE_IMAGE_ROOT=$root EMBERGATE_BINARY=${EMBERGATE_BINARY:-$PWD/build/embergate} python3 tests/deploy/image_test.py
# ... and with buildah as the engine.
EMBERGATE_IMAGE=embergate EMBERGATE_IMAGE_INSPECT=$work/image.json EMBERGATE_IMAGE_STORAGE=$work \
  EMBERGATE_BINARY=${EMBERGATE_BINARY:-$PWD/build/embergate} python3 tests/deploy/built_image.py
if [ -n "$keep" ]; then
  rm -f "$work/embergate-$architecture.tar"
  image push -q embergate "docker-archive:$work/embergate-$architecture.tar:embergate:latest"
fi
echo "passed"
