#!/usr/bin/env bash
# Installs what the tests need, builds, and runs all tests. From any folder, on a bare Debian 12 or 13 machine.
#
#   tests/run.sh                 release build, all tests
#   tests/run.sh --preset NAME   another preset of CMakePresets.json: debug, asan-ubsan, tsan
#   tests/run.sh ... -- ARGS     ARGS go to ctest, e.g. -- -R RowStore
set -euo pipefail
cd "$(dirname "$0")/.."

preset=release
while [ $# -gt 0 ]; do
  case "$1" in
    --preset)
      [ $# -ge 2 ] || { echo "--preset needs a name" >&2; exit 2; }
      preset=$2
      shift 2
      ;;
    --)
      shift
      break
      ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "unknown argument: $1 (see --help)" >&2
      exit 2
      ;;
  esac
done

deploy/install_packages.sh test
# The release run also cross-builds for 64-bit Arm and tests that under emulation (tests/arm64.sh ci).
arm64=OFF
[ "$preset" != release ] || arm64=ON
cmake --preset "$preset" -DEMBERGATE_BUILD_TESTS=ON -DEMBERGATE_TEST_ARM64=$arm64
cmake --build --preset "$preset"
exec ctest --preset "$preset" -j "$(nproc)" "$@"
