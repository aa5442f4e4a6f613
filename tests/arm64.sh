#!/usr/bin/env bash
# Cross-builds for 64-bit Arm on an x86-64 Debian 12 or 13, and runs the tests under emulation. Needs root or sudo for
# packages, no container and no Arm machine.
#
#   tests/arm64.sh                     all targets and all tests, for the night: sysroot, build, test, stream
#   tests/arm64.sh ci                  what continuous integration does: the server, the programs of ci_tests below, stream
#   tests/arm64.sh sysroot             Debian's arm64 libraries and headers, unpacked into build-arm64/sysroot
#   tests/arm64.sh build [TARGET...]   with the preset arm64; all targets by default
#   tests/arm64.sh test ['PROGRAM [FILTER]'...]
#                                      test programs under qemu, all that are built by default; kernels_test on a Cortex-A72
#                                      (plain NEON), a Cortex-A76 (dotprod) and a CPU with everything (i8mm)
#   tests/arm64.sh program CPU PROGRAM [FILTER]
#                                      one test program on one of qemu's models of a CPU
#   tests/arm64.sh stream              `embergate serve` and `generate` on these three, end to end
#   tests/arm64.sh package             the Debian package for arm64, its contents and dependencies checked
#
# Ends with 77 where packages cannot be installed or fetched from this machine's mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
build=$source/build-arm64
sysroot=$build/sysroot
export EMBERGATE_ARM64_SYSROOT=$sysroot
export PKG_CONFIG_SYSROOT_DIR=$sysroot PKG_CONFIG_LIBDIR=$sysroot/usr/lib/aarch64-linux-gnu/pkgconfig

# What continuous integration has time for, `PROGRAM [FILTER]`; those that take longest first.
ci_tests=(kernels_test 'model_test *GoldenTest*' variants_test row_store_test gguf_mutants_test loop_test text_test
  storage_test loop_allocations_test row_store_allocation_test file_report_test)
ci_minutes=25  # a machine that is slower skips it
cpus=(cortex-a72 cortex-a76 max)

# Runs a command of apt's. Ends with 77 if it fails, except where it does not know a package, which is our mistake.
apt_or_skip() {
  local log=$build/apt.log
  mkdir -p "$build"
  ! "$@" >"$log" 2>&1 || return 0
  tail -n 10 "$log" >&2
  if grep -qE 'Unable to locate package|no installation candidate' "$log"; then
    exit 1
  fi
  skip "apt cannot fetch or install packages here (above)"
}

skip() {
  echo "SKIPPED: arm64: $*"
  exit 77
}

packages() {
  local missing=() package as_root=()
  [ "$(dpkg --print-architecture)" = amd64 ] || skip "this machine is not an x86-64 one"
  for package in crossbuild-essential-arm64 qemu-user-static cmake ninja-build pkg-config protobuf-compiler \
    protobuf-compiler-grpc libprotobuf-dev python3; do
    [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || skip "not root, no sudo, and these packages are missing: ${missing[*]}"
    as_root=(sudo)
  fi
  echo "Installing ${missing[*]}"
  apt_or_skip "${as_root[@]}" apt-get update -q
  for package in "${missing[@]}"; do
    apt-cache show "$package" >/dev/null 2>&1 || skip "the package mirror has no $package"
  done
  apt_or_skip "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

# apt resolves and fetches the packages for a system of its own that is empty; dpkg unpacks them without running
# anything of theirs. Installed beside the amd64 ones, some would conflict.
make_sysroot() {
  local wanted
  wanted=$(deploy/install_packages.sh list | grep -- '-dev$' | sort)
  [ "$wanted" != "$(cat "$sysroot/.complete" 2>/dev/null)" ] || return 0
  echo "Unpacking arm64 libraries into $sysroot"
  rm -rf "$sysroot"
  mkdir -p "$sysroot"/usr/{bin,sbin,lib,include} "$sysroot"/apt/{lists/partial,archives/partial}
  : >"$sysroot/apt/status"
  # Lists, packages and state of its own; sources and keys are this machine's.
  local own=(-q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$sysroot/apt"
    -o "Dir::State::lists=$sysroot/apt/lists" -o "Dir::State::status=$sysroot/apt/status" -o "Dir::Cache=$sysroot/apt"
    -o "Dir::Cache::archives=$sysroot/apt/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
  apt_or_skip apt-get "${own[@]}" update
  apt-cache "${own[@]}" show libc6-dev >/dev/null 2>&1 || skip "the package mirror has nothing for arm64"
  # The compilers come along for what their cmake files want to see.
  # shellcheck disable=SC2086
  apt_or_skip apt-get "${own[@]}" install -y --no-install-recommends --download-only libc6-dev libstdc++-12-dev libc-bin \
    protobuf-compiler protobuf-compiler-grpc $wanted
  local deb
  for deb in "$sysroot"/apt/archives/*.deb; do
    dpkg-deb -x "$deb" "$sysroot"
    # For the package's Depends: "libfoo 1 libfoo1 (>= 1.2)" for libfoo.so.1.
    dpkg-deb --ctrl-tarfile "$deb" | tar -xO ./shlibs 2>/dev/null | grep -v '^udeb:' >>"$sysroot/libraries" || true
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
  echo "$wanted" >"$sysroot/.complete"
}

# The loader is named outright: with qemu's -L, threads of a multiarch libc hang.
libraries=$sysroot/usr/lib/aarch64-linux-gnu
emulator=(qemu-aarch64-static "$libraries/ld-linux-aarch64.so.1" --library-path "$libraries")

# The package is made of what is built, be it the server alone.
configure() {
  cmake --preset arm64 -DEMBERGATE_BUILD_TESTS=ON -DCMAKE_SKIP_INSTALL_ALL_DEPENDENCY=ON \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=$(command -v "${emulator[0]}");$(IFS=';'; echo "${emulator[*]:1}")" >/dev/null
}

build() {
  configure
  if [ $# -eq 0 ]; then cmake --build --preset arm64; else cmake --build --preset arm64 --target "$@"; fi
}

# Not under emulation: qemu has no io_uring, its statx denies direct I/O that works, bars of time mean nothing, and the
# process that Linux sees, whose size the acceptor watches, is the emulator.
not_emulated='*/Uring*:*FullVocabularyOpensQuickly*:*WorstText*InTime:*ItsAlignmentIsTheSmallestThatWorks*'
not_emulated+=':*OfALargeHeapWhoSendsMost*'

# A program at a time and not, like ctest, a case: the start is emulated too, and takes seconds.
run_program() {
  local cpu=$1 program=$2 filter=${3:-*} log status=0
  log=$build/$program-$cpu.log
  QEMU_CPU=$cpu timeout --foreground 1800 "${emulator[@]}" "$build/$program" --gtest_brief=1 "--gtest_filter=$filter-$not_emulated" \
    >"$log" 2>&1 </dev/null || status=$?
  [ -z "${3:-}" ] || grep -q '^\[  PASSED  \] [1-9]' "$log" || status=1  # a filter that has come to match nothing
  [ $status -eq 0 ] || cat "$log"
  echo "$program on $cpu: $(grep -E '^\[  (PASSED|SKIPPED)' "$log" | paste -sd' '), status $status, $SECONDS s"
  return $status
}

# The kernels' tests on every CPU, other programs on the one that has everything; as many at once as there are processors.
run_tests() {
  local test cpu jobs=()
  echo "test programs under qemu, without $not_emulated"
  for test in "$@"; do
    if [ "${test%% *}" = kernels_test ]; then
      for cpu in "${cpus[@]}"; do jobs+=("$cpu $test"); done
    else
      jobs+=("max $test")
    fi
  done
  printf '%s\n' "${jobs[@]}" | xargs -P "$(nproc)" -L 1 "$source/tests/arm64.sh" program
}

# Those that are built. What starts this machine's own tools beside the server (deploy, clients) is tested on this machine.
# Of two programs a part has to do: demo_model_test asks the same 200 questions again and again, real_widths_test computes
# with the widths of E2B.
test_programs() {
  ctest --test-dir "$build" --print-labels | sed -n 's/^  //p' |
    sed 's/^demo_model_test$/& *OneByOne*/; s/^real_widths_test$/& *Chunks*gemma4*/'
}

test_stream() {
  local cpu
  for cpu in "${cpus[@]}"; do
    echo "==> serve and generate on $cpu"
    QEMU_CPU=$cpu EMBERGATE_BINARY=$build/embergate-emulated PYTHONDONTWRITEBYTECODE=1 \
      timeout --foreground --signal=INT 900 python3 tests/deploy/emulated_stream.py
  done
}

# dpkg-shlibdeps looks into this machine's own packages, which are not the sysroot's.
package() {
  local depends deb contents path header
  depends=$(aarch64-linux-gnu-readelf -d "$build/embergate" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    while read -r library; do
      awk -v l="$library" '$1 ".so." $2 == l { $1 = $2 = ""; print; found = 1; exit } END { exit !found }' \
        "$sysroot/libraries" || { echo "no package for $library" >&2; exit 1; }
    done | sort -u | paste -sd, | sed 's/^ *//; s/, */, /g')
  [ -n "$depends" ]
  rm -f "$build"/*.deb
  (cd "$build" && cpack -G DEB -D CPACK_DEBIAN_PACKAGE_SHLIBDEPS=OFF -D "CPACK_DEBIAN_PACKAGE_DEPENDS=$depends" >/dev/null)
  deb=$(echo "$build"/embergate_*_arm64.deb)
  [ "$(dpkg-deb -f "$deb" Architecture)" = arm64 ]
  contents=$(dpkg-deb -c "$deb")
  for path in usr/bin/embergate usr/lib/systemd/system/embergate.service etc/embergate/embergate.toml \
    usr/share/man/man1/embergate.1.gz usr/share/bash-completion/completions/embergate; do
    grep -q " \./$path\$" <<<"$contents" || { echo "$path is not in $deb" >&2; exit 1; }
  done
  dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/bin/embergate >"$build/packaged"
  header=$(aarch64-linux-gnu-readelf -h "$build/packaged")
  rm "$build/packaged"
  grep -q 'Machine: *AArch64' <<<"$header"
  echo "$deb"
  echo "Depends: $depends"
}

step=${1:-all}
[ $# -eq 0 ] || shift
case "$step" in
  all)
    packages
    make_sysroot
    build
    mapfile -t programs < <(test_programs)
    run_tests "${programs[@]}"
    test_stream
    ;;
  ci)
    status=0
    timeout --kill-after=10 $((ci_minutes * 60)) "$0" ci-untimed || status=$?
    [ $status -ne 124 ] && [ $status -ne 137 ] || skip "not done within $ci_minutes minutes"
    exit $status
    ;;
  ci-untimed)
    packages
    make_sysroot
    build embergate "${ci_tests[@]%% *}"
    run_tests "${ci_tests[@]}"
    test_stream
    ;;
  sysroot)
    packages
    make_sysroot
    ;;
  build) build "$@" ;;
  test)
    programs=("$@")
    [ $# -gt 0 ] || mapfile -t programs < <(test_programs)
    run_tests "${programs[@]}"
    ;;
  program) run_program "$@" ;;
  stream) test_stream ;;
  package) package ;;
  *)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
    [ "$step" = --help ] || [ "$step" = -h ] || exit 2
    ;;
esac
