#!/usr/bin/env bash
# Lays out the root file system of the container image: the binary, the shared libraries that it needs and the loader,
# their licences, and a list of all of it (SPDX 2.3). Runs where the binary was built, on Debian, and runs nothing of the
# binary's: it may be for another architecture.
#
#   deploy/image_root.sh build/embergate FOLDER
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d' >&2; exit 2; }
export LC_ALL=C
top=$(dirname "$0")/..
binary=$1
root=$2
# Debian keeps an architecture's libraries, and the file that the loader's name leads to, in one folder.
loader=$(readelf -l "$binary" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
libraries=$(dirname "$(readlink -e "$loader")")

mkdir -p "$root"/{etc,models,proc,state,tmp,usr/bin,usr/share/embergate,usr/share/doc/embergate}
chmod 1777 "$root/tmp"
chown 65532:65532 "$root/state" 2>/dev/null || echo "not root: $root/state keeps its owner" >&2
# The user of the image, for programs that want a name; numeric everywhere else.
echo 'embergate:x:65532:65532:embergate:/state:/nonexistent' >"$root/etc/passwd"
echo 'embergate:x:65532:' >"$root/etc/group"
"${libraries##*/}-strip" -o "$root/usr/bin/embergate" "$binary"
cp "$top/LICENSE" "$root/usr/share/doc/embergate/copyright"

# Debian's /lib is a link to /usr/lib; the loader's path in the binary goes through it.
for link in lib "$(cut -d/ -f2 <<<"$loader")"; do
  mkdir -p "$root/usr/$link"
  ln -sfn "usr/$link" "$root/$link"
done
files=()
add_library() {
  local path=$1 file name
  file=$(readlink -f "$path")
  # Under the name that the program asks for, too.
  name=$(sed 's#^/lib#/usr/lib#' <<<"$path")
  mkdir -p "$root$(dirname "$file")" "$root$(dirname "$name")"
  cp -n "$file" "$root$file"
  [ "$name" = "$file" ] || ln -sfn "$file" "$root$name"
  files+=("$file")
}
# What the binary names, what that names, and so on.
add_libraries() {
  local name names
  names=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
  for name in $names; do
    [ ! -e "$root$libraries/$name" ] || continue
    add_library "$libraries/$name"
    add_libraries "$libraries/$name"
  done
}
add_library "$loader"
add_libraries "$binary"

# Packages name some of their files below /lib, some below /usr/lib; one of the two is not found.
owners=$(dpkg-query -S "${files[@]}" "${files[@]#/usr}" 2>/dev/null || true)
for file in "${files[@]}"; do
  grep -qF -e ": $file" -e ": ${file#/usr}" <<<"$owners" || { echo "no package owns $file" >&2; exit 1; }
done
mapfile -t packages < <(sed 's/: .*//' <<<"$owners" | sort -u)
for package in "${packages[@]}"; do
  name=${package%%:*}
  mkdir -p "$root/usr/share/doc/$name"
  cp -L "/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/" 2>/dev/null || true
done

. /etc/os-release
version=$(sed -n 's/^project(embergate VERSION \([^ ]*\).*/\1/p' "$top/CMakeLists.txt")
[ -n "$version" ]
{
  printf '{\n  "spdxVersion": "SPDX-2.3",\n  "dataLicense": "CC0-1.0",\n  "SPDXID": "SPDXRef-DOCUMENT",\n'
  printf '  "name": "embergate",\n  "documentNamespace": "urn:embergate:sbom:%s",\n' \
    "$(sha256sum "$root/usr/bin/embergate" | cut -d' ' -f1)"
  printf '  "creationInfo": {"created": "%s", "creators": ["Tool: deploy/image_root.sh"]},\n' \
    "$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%dT%H:%M:%SZ)"
  printf '  "packages": [\n    {"SPDXID": "SPDXRef-embergate", "name": "embergate", "versionInfo": "%s", ' "$version"
  printf '"downloadLocation": "NOASSERTION", "licenseConcluded": "Apache-2.0"}'
  for package in "${packages[@]}"; do
    read -r name architecture version source < <(dpkg-query -W -f='${Package} ${Architecture} ${Version} ${source:Package}\n' "$package")
    printf ',\n    {"SPDXID": "SPDXRef-%s", "name": "%s", "versionInfo": "%s", "downloadLocation": "NOASSERTION", ' \
      "$(tr -c 'A-Za-z0-9.\n-' '-' <<<"$name")" "$name" "$version"
    printf '"licenseConcluded": "NOASSERTION", "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", '
    printf '"referenceType": "purl", "referenceLocator": "pkg:deb/%s/%s@%s?arch=%s&upstream=%s"}]}' \
      "${ID:-debian}" "$name" "$version" "$architecture" "$source"
  done
  printf '\n  ],\n  "relationships": [\n'
  printf '    {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-embergate"}'
  for package in "${packages[@]}"; do
    printf ',\n    {"spdxElementId": "SPDXRef-embergate", "relationshipType": "DEPENDS_ON", "relatedSpdxElement": "SPDXRef-%s"}' \
      "$(tr -c 'A-Za-z0-9.\n-' '-' <<<"${package%%:*}")"
  done
  printf '\n  ]\n}\n'
} >"$root/usr/share/embergate/sbom.spdx.json"
du -sm "$root" | awk '{ print $1 " MiB in " $2 }'
