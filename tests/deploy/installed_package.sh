#!/bin/sh
# Looks at the Debian package as apt has installed it: its files, and its program, which makes a small model and reads it.
# Runs inside the system that has the package.
set -eu
fail() {
  echo "installed package: $*" >&2
  exit 1
}

[ "$(dpkg-query -W -f '${Status}' embergate)" = "install ok installed" ] || fail "not installed"
for file in /usr/bin/embergate /usr/lib/systemd/system/embergate.service /etc/embergate/embergate.toml \
  /usr/share/man/man1/embergate.1.gz /usr/share/bash-completion/completions/embergate /usr/share/doc/embergate/copyright; do
  [ -s "$file" ] || fail "$file is missing"
  dpkg-query -S "$file" >/dev/null || fail "$file is not the package's"
done
[ -d /var/lib/embergate-models ] || fail "postinst has not run"
[ "$(embergate --version)" = "embergate $(dpkg-query -W -f '${Version}' embergate)" ] || fail "another version"
bash -c 'source /usr/share/bash-completion/completions/embergate; COMP_WORDS=(embergate gen); COMP_CWORD=1; _embergate
  [ "${COMPREPLY[*]}" = generate ]' || fail "completion"

model=$(mktemp -d)/model.gguf
embergate synth "$model" --shape gemma4-tiny
embergate inspect "$model" | grep -q '^  gemma4: ' || fail "inspect"
embergate plan "$model" --board pi5 --board-ram 4GB | grep -q 'Raspberry Pi 5' || fail "plan"
rm -r "${model%/*}"
echo "installed package: $(dpkg --print-architecture), passed"
