#!/usr/bin/env bash
# Cross-builds for 64-bit Arm on an x86-64 Debian 12 or 13, and runs the tests under emulation. Needs root or sudo for
# packages, no container and no Arm machine.
#
#   tests/arm64.sh                     everything below, in this order
#   tests/arm64.sh sysroot             Debian's arm64 libraries and headers, unpacked into build-arm64/sysroot
#   tests/arm64.sh build [TARGET...]   with the preset arm64; all targets by default
#   tests/arm64.sh test [REGEX]        ctest under qemu, all tests or those that match
#   tests/arm64.sh kernels             the kernels' tests on a Cortex-A72 (plain NEON), a Cortex-A76 (dotprod) and a CPU
#                                      with everything (i8mm), each as qemu models it
#   tests/arm64.sh package             the Debian package for arm64
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
build=$source/build-arm64
sysroot=$build/sysroot
export EMBERGATE_ARM64_SYSROOT=$sysroot
export PKG_CONFIG_SYSROOT_DIR=$sysroot PKG_CONFIG_LIBDIR=$sysroot/usr/lib/aarch64-linux-gnu/pkgconfig

packages() {
  local missing=() package as_root=()
  for package in crossbuild-essential-arm64 qemu-user-static cmake ninja-build pkg-config protobuf-compiler \
    protobuf-compiler-grpc; do
    [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  echo "Installing ${missing[*]}"
  "${as_root[@]}" apt-get update -q >/dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null
}

# apt resolves and fetches the packages for a system of its own that is empty; dpkg unpacks them without running
# anything of theirs. Installed beside the amd64 ones, some would conflict.
make_sysroot() {
  [ ! -e "$sysroot/.complete" ] || return 0
  echo "Unpacking arm64 libraries into $sysroot"
  rm -rf "$sysroot"
  mkdir -p "$sysroot"/usr/{bin,sbin,lib,include} "$sysroot"/apt/{lists/partial,archives/partial}
  : >"$sysroot/apt/status"
  # Lists, packages and state of its own; sources and keys are this machine's.
  local apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$sysroot/apt"
    -o "Dir::State::lists=$sysroot/apt/lists" -o "Dir::State::status=$sysroot/apt/status" -o "Dir::Cache=$sysroot/apt"
    -o "Dir::Cache::archives=$sysroot/apt/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
  "${apt[@]}" update >/dev/null
  "${apt[@]}" install -y --no-install-recommends --download-only libc6-dev libstdc++-12-dev libgrpc++-dev libprotobuf-dev \
    protobuf-compiler protobuf-compiler-grpc libabsl-dev libdnnl-dev ocl-icd-opencl-dev libspdlog-dev prometheus-cpp-dev \
    liburing-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev libc-bin >/dev/null
  local deb
  for deb in "$sysroot"/apt/archives/*.deb; do
    dpkg-deb -x "$deb" "$sysroot"
    # For the package's Depends: "libfoo.so.1 libfoo1 1.2-3".
    dpkg-deb -c "$deb" | sed -n 's#.*/\([^/ ]*\.so\.[^/ ]*\)\( -> .*\)\{0,1\}$#\1#p' | sort -u |
      sed "s#\$# $(dpkg-deb -W --showformat='${Package} ${Version}' "$deb")#" >>"$sysroot/libraries"
  done
  rm -rf "$sysroot/apt"
  # Some packages bring /lib, some /usr/lib: one place, as on an installed system.
  local folder
  for folder in bin sbin lib; do
    if [ -d "$sysroot/$folder" ]; then
      cp -a "$sysroot/$folder/." "$sysroot/usr/$folder/"
      rm -rf "${sysroot:?}/$folder"
    fi
    ln -s "usr/$folder" "$sysroot/$folder"
  done
  # Links to /... would lead out of it.
  find "$sysroot" -type l -lname '/*' -print0 | while IFS= read -r -d '' link; do
    ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$sysroot$(readlink "$link")")" "$link"
  done
  # Run while building: this machine's own.
  for tool in protoc grpc_cpp_plugin; do
    ln -sf "$(command -v "$tool")" "$sysroot/usr/bin/$tool"
  done
  touch "$sysroot/.complete"
}

# The loader is named outright: with qemu's -L, threads of a multiarch libc hang.
libraries=$sysroot/usr/lib/aarch64-linux-gnu
emulator=(qemu-aarch64-static "$libraries/ld-linux-aarch64.so.1" --library-path "$libraries")

configure() {
  cmake --preset arm64 -DEMBERGATE_BUILD_TESTS=ON \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=$(command -v "${emulator[0]}");$(IFS=';'; echo "${emulator[*]:1}")" >/dev/null
}

build() {
  configure
  if [ $# -eq 0 ]; then cmake --build --preset arm64; else cmake --build --preset arm64 --target "$@"; fi
}

test_kernels() {
  local cpu
  for cpu in cortex-a72 cortex-a76 max; do
    echo "==> $cpu"
    QEMU_CPU=$cpu "${emulator[@]}" "$build/kernels_test" --gtest_brief=1
  done
}

# dpkg-shlibdeps looks into this machine's own packages, which are not the sysroot's.
package() {
  local depends
  depends=$(aarch64-linux-gnu-readelf -d "$build/embergate" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    while read -r library; do awk -v l="$library" '$1 == l { sub(/-[^-]*$/, "", $3); print $2 " (>= " $3 ")"; exit }' \
      "$sysroot/libraries"; done | sort -u | paste -sd, | sed 's/,/, /g')
  [ -n "$depends" ]
  (cd "$build" && cpack -G DEB -D CPACK_DEBIAN_PACKAGE_SHLIBDEPS=OFF -D "CPACK_DEBIAN_PACKAGE_DEPENDS=$depends")
}

step=${1:-all}
[ $# -eq 0 ] || shift
case "$step" in
  all)
    packages
    make_sysroot
    build
    test_kernels
    ctest --test-dir "$build" --output-on-failure -j "$(nproc)"
    ;;
  sysroot) packages && make_sysroot ;;
  build) build "$@" ;;
  test) ctest --test-dir "$build" --output-on-failure -j "$(nproc)" ${1:+-R "$1"} ;;
  kernels) test_kernels ;;
  package) package ;;
  *)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
    [ "$step" = --help ] || [ "$step" = -h ] || exit 2
    ;;
esac
