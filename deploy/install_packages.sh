#!/usr/bin/env bash
# Installs what Embergate needs from Debian's packages (12 or 13). The one list of packages in the project.
#
#   deploy/install_packages.sh build     what the server is built with
#   deploy/install_packages.sh cross     what it is built with on an x86-64 PC for 64-bit Arm; for a container, since some
#                                        libraries cannot be there for two architectures (nothing installed is removed)
#   deploy/install_packages.sh test      what `build` wants, and what the tests need besides
#   deploy/install_packages.sh list      what `test` wants, one package a line; installs nothing
#
# Works as root and as a user with sudo. Does nothing when everything is there already.
set -euo pipefail

# What runs while building, what is linked, and headers alone, which are the same for every architecture.
tools=(cmake ninja-build pkg-config protobuf-compiler protobuf-compiler-grpc)
libraries=(
  libgrpc++-dev libssl-dev libprotobuf-dev
  libabsl-dev libdnnl-dev ocl-icd-opencl-dev libspdlog-dev prometheus-cpp-dev
  liburing-dev libedit-dev
)
headers=(nlohmann-json3-dev libcli11-dev)
build_packages=(build-essential "${tools[@]}" "${libraries[@]}" "${headers[@]}")
cross_packages=(binutils g++-aarch64-linux-gnu "${tools[@]}" "${libraries[@]/%/:arm64}" "${headers[@]}")
test_packages=(libgtest-dev libgmock-dev python3 sentencepiece)
# The tests of deploy/ skip what is not there.
# docker_test would like docker.io, docker-compose and iptables, which are much for a machine that runs no containers.
test_packages+=(python3-yaml prometheus nginx haproxy iproute2 file faketime)
# Those of clients/ likewise; go_test would like golang-go, golang-google-grpc-dev, golang-google-protobuf-dev, protoc-gen-go
# and protoc-gen-go-grpc, and http_rules_test golang-grpc-gateway, which are too much for everybody.
test_packages+=(python3-grpcio python3-protobuf)

options=()
case "${1:-}" in
  build) packages=("${build_packages[@]}") ;;
  cross)
    packages=("${cross_packages[@]}")
    options=(--no-remove)
    ;;
  test) packages=("${build_packages[@]}" "${test_packages[@]}") ;;
  list)
    printf '%s\n' "${build_packages[@]}" "${test_packages[@]}"
    exit 0
    ;;
  *)
    echo "usage: $0 build|cross|test|list" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" != "install ok installed" ]; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These packages are missing and there is no sudo; install them as root, then run this again:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo "${as_root[@]}")
fi
echo "Installing ${#missing[@]} packages: ${missing[*]}"
log=$(mktemp)
policy=
trap 'rm -f "$log"; [ -z "$policy" ] || "${as_root[@]}" rm -f "$policy"' EXIT
# What the tests start themselves is not to be started now as a service of this machine.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  policy=/usr/sbin/policy-rc.d
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
# apt's status lines as one line that moves, or, where nobody looks, as a few; everything else goes to the log.
progress() {
  local line kind percent shown=
  while IFS= read -r line; do
    case "$line" in
      dlstatus:*) kind=downloading ;;
      pmstatus:*) kind=installing ;;
      *)
        printf '%s\n' "$line" >>"$log"
        continue
        ;;
    esac
    percent=${line#*:*:}
    percent=${percent%%[.:]*}
    if [ -t 1 ]; then
      printf '\r  %-11s %3d %%' "$kind" "$percent"
    elif [ "$shown" != "$kind" ]; then
      shown=$kind
      echo "  $kind"
    fi
  done
  if [ -t 1 ]; then printf '\r\033[K'; fi
}
install() {
  "${as_root[@]}" apt-get install -y --no-install-recommends "${options[@]}" -o APT::Status-Fd=1 "${missing[@]}" 2>&1 | progress
}
[ "$1" != cross ] || "${as_root[@]}" dpkg --add-architecture arm64
# The package lists may be absent (a fresh image) or stale (a package that has moved on): update, then install.
if ! { "${as_root[@]}" apt-get update >"$log" 2>&1 && install; }; then
  tail -n 20 "$log" >&2
  echo "Could not install the packages above. Is the package mirror reachable, and is this Debian 12 or 13?" >&2
  exit 1
fi
