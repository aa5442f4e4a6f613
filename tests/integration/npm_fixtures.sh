#!/usr/bin/env bash
# npm_fixtures.sh FOLDER PACKAGE@VERSION... : installs npm packages that optional tests compare with into
# FOLDER/node_modules (nothing outside it). Quick when they are there already; fails when npm is not reachable.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 FOLDER PACKAGE@VERSION..." >&2
  exit 2
fi
folder=$1
shift
command -v node >/dev/null && command -v npm >/dev/null || { echo "node and npm are not installed" >&2; exit 1; }

missing=()
for package in "$@"; do
  manifest="$folder/node_modules/${package%@*}/package.json"
  if ! grep -qs "\"version\": \"${package##*@}\"" "$manifest"; then
    missing+=("$package")
  fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

mkdir -p "$folder"
[ -f "$folder/package.json" ] || echo '{"private": true}' >"$folder/package.json"
# One installer at a time: ctest may run several tests that want the folder.
exec 9>"$folder/.lock"
flock 9
timeout 120 npm install --prefix "$folder" --no-audit --no-fund --ignore-scripts --loglevel=error \
  --fetch-retries=1 --fetch-timeout=20000 "${missing[@]}" >&2
