#!/usr/bin/env bash
# Boots an emulated 64-bit Arm board, Debian's kernel and systemd included, and looks at what emulation of single programs
# (tests/arm64.sh) cannot show: io_uring on NVMe and on an SD card, pages of 16 KiB, the package installed by apt, and the
# service under systemd. Needs root, and what `tests/arm64.sh build` and `tests/arm64.sh package` have made before; some
# minutes for each board.
#
#   tests/board.sh                                both boards; with README's `docker run`, too, where
#                                                 `tests/image.sh arm64 --keep` has left the image
#   tests/board.sh pi5|pi4 ['PROGRAM [FILTER]'...]
#                                                 pi5: Cortex-A76, pages of 16 KiB, Linux of Debian 13;
#                                                 pi4: Cortex-A72, pages of 4 KiB, Linux of Debian 12;
#                                                 and the test programs that run on it: those of `programs` by default
#
# What was fetched and unpacked stays in build-board for the next time. Ends with 77 where packages cannot be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() {
  echo "SKIPPED: board: $*" >&2
  exit 77
}
. tests/support/foreign_debian.sh
source=$PWD
build=$source/build-arm64
work=$source/build-board
image=$source/build-image/embergate-arm64.tar
programs=(row_store_test storage_test row_store_allocation_test 'model_test *GoldenTest*' flash_trouble_test serve_test)
memory=2G  # of the smallest board
patience=1800  # seconds for a board

packages() {
  local missing=() package
  for package in qemu-system-arm qemu-user-static debootstrap e2fsprogs kmod cpio xz-utils; do
    [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "Installing ${missing[*]}"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } \
    >"$work/apt.log" 2>&1 || skip "apt cannot fetch or install ${missing[*]}"
}

# apt_of SUITE TOOL ARGUMENT...: an apt for an empty arm64 system, with lists and state of its own. It has this machine's
# sources, or those of another release.
apt_of() {
  local state=$work/apt-$1 tool=$2
  local own=(-q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$state" -o "Dir::State::lists=$state/lists"
    -o "Dir::State::status=$state/status" -o "Dir::Cache=$state" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
  [ "$1" = "$release" ] || own+=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null)
  if [ ! -e "$state/status" ]; then
    mkdir -p "$state"/{lists/partial,archives/partial}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$state/sources.list"
    : >"$state/status"
    apt-get "${own[@]}" update >"$work/apt.log" 2>&1 || {
      rm -r "$state"
      return 1
    }
  fi
  shift 2
  "$tool" "${own[@]}" "$@"
}

# kernel SUITE METAPACKAGE: the kernel and its modules, unpacked into a folder of the metapackage's name.
kernel() {
  local suite=$1 package=$2 folder=$work/$2 name
  [ ! -e "$folder/.complete" ] || return 0
  echo "==> $package of $suite"
  rm -rf "$folder"
  mkdir -p "$folder/debs" "$folder/initrd"/{bin,dev,modules,proc,root,sys}
  name=$(apt_of "$suite" apt-cache depends "$package" | sed -n 's/.*Depends: \(linux-image.*\)/\1/p') && [ -n "$name" ] ||
    skip "the package mirror has no $package of $suite"
  (cd "$folder/debs" && apt_of "$suite" apt-get download "$name" busybox-static >>"$work/apt.log" 2>&1) ||
    skip "the package mirror does not give $name"
  dpkg-deb -x "$folder"/debs/linux-image-*.deb "$folder"
  dpkg-deb --fsys-tarfile "$folder"/debs/busybox-static_*.deb | tar -x --to-stdout --wildcards '*bin/busybox' >"$folder/initrd/bin/busybox"
  rm -rf "$folder/debs"
  # Newer releases have the modules in /usr/lib only.
  [ -d "$folder/lib" ] || ln -s usr/lib "$folder/lib"
  initial_system "$folder"
  touch "$folder/.complete"
}

# What the kernel starts: it loads the modules of the board's disks and goes on to the board's own init.
initial_system() {
  local folder=$1 version module path
  version=$(ls "$folder/lib/modules")
  depmod -b "$folder" "$version"
  for module in virtio_pci virtio_blk nvme sdhci_pci mmc_block ext4 crc32c_generic; do
    modprobe -d "$folder" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
    module=$(basename "${path%.xz}")
    case "$path" in *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac >"$folder/initrd/modules/$module"
    echo "$module" >>"$folder/initrd/modules/order"
  done
  cat >"$folder/initrd/init" <<'INIT'
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
for try in $(seq 600); do
  [ -b /dev/vda ] && break
  sleep 0.1
done
mount -t ext4 /dev/vda /root || poweroff -f
cat >/root/etc/systemd/system/board-test.service <<'UNIT'
[Unit]
Requires=systemd-tmpfiles-setup.service
After=multi-user.target
[Service]
Type=oneshot
ExecStartPre=/bin/mount /dev/nvme0n1 /mnt
ExecStart=/bin/bash /mnt/on_board.sh
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=file:/dev/ttyAMA0
StandardError=inherit
UNIT
mkdir -p /root/etc/systemd/system/default.target.wants
ln -sf ../board-test.service /root/etc/systemd/system/default.target.wants/
ln -sf /dev/null /root/etc/systemd/system/serial-getty@.service
exec switch_root /root /sbin/init
INIT
  chmod 755 "$folder/initrd/init" "$folder/initrd/bin/busybox"
  (cd "$folder/initrd" && find . | cpio --quiet -o -H newc | gzip -1) >"$folder/initrd.gz"
}

# boot CPU KERNEL LOG QEMU-OPTION...
boot() {
  local cpu=$1 folder=$work/$2 log=$3
  shift 3
  timeout --foreground "$patience" qemu-system-aarch64 -machine virt,gic-version=3 -cpu "$cpu" -smp 2 -m "$memory" -nodefaults \
    -display none -no-reboot -serial stdio -kernel "$(echo "$folder"/boot/vmlinuz-*)" -initrd "$folder/initrd.gz" \
    -append "console=ttyAMA0 quiet panic=-1 systemd.show_status=0" "$@" </dev/null >"$log" 2>&1
}

# This machine's release, with systemd.
base_system() {
  [ ! -e "$work/base.status" ] || return 0
  echo "==> Debian $release for the board"
  emulate_arm64
  rm -rf "$work/base" "$work/base.img"
  debootstrap --arch=arm64 --variant=minbase --include=systemd,systemd-sysv,dbus,udev "$release" "$work/base" "$mirror" \
    >"$work/debootstrap.log" 2>&1 || skip "debootstrap: $(tail -n 1 "$work/debootstrap.log")"
  truncate -s 4G "$work/base.img"
  mke2fs -q -t ext4 -F -d "$work/base" "$work/base.img"
  cp "$work/base/var/lib/dpkg/status" "$work/base.status"
  rm -rf "$work/base"
}

# with_dependencies FOLDER PACKAGE...: fetches what they need beyond the base system, as the board has no network.
with_dependencies() {
  local folder=$1
  shift
  mkdir -p "$folder/partial"
  apt_of "$release" apt-get -o "Dir::State::status=$work/base.status" -o "Dir::Cache::archives=$folder" install --yes \
    --no-install-recommends --download-only "$@" >"$work/apt.log" 2>&1 || {
    tail -n 10 "$work/apt.log" >&2
    skip "the package mirror does not give what $* depends on"
  }
  rm -r "$folder/partial"
}

# disks KERNEL PROGRAM...: what the board finds on its NVMe disk and on its SD card.
disks() {
  local files=$work/files kernel=$1 program
  shift
  rm -rf "$files" "$work"/{nvme,sd}.img
  mkdir -p "$files/programs" "$files/source/tests" "$files/tmp"
  chmod 1777 "$files/tmp"
  cp tests/deploy/on_board.sh tests/deploy/installed_package.sh tests/demo_model/demo.gguf "$files"
  with_dependencies "$files/debs" "$package"
  cp "$package" "$files/debs"
  cp -rL "$work/$kernel/lib/modules" "$files"
  if [ -e "$image" ]; then
    with_dependencies "$files/docker" docker.io apparmor
    cp "$image" "$files/image.tar"
    cp -r deploy/seccomp "$files/docker"
    # README's command, from the line that begins with `docker run` to the first that does not go on.
    sed -n '/^docker run -p/,/[^\\]$/p' README.md >"$files/docker/run"
  fi
  cp -r tests/golden tests/demo_model "$files/source/tests"
  echo "$source" >"$files/source_path"  # where the programs look for it
  for program in "$@"; do
    aarch64-linux-gnu-strip -o "$files/programs/${program%% *}" "$build/${program%% *}"
    echo "$program" >>"$files/programs/list"
  done
  truncate -s 2G "$work/nvme.img"
  mke2fs -q -t ext4 -b 4096 -F -d "$files" "$work/nvme.img"
  rm -rf "$files"
  mkdir -p "$files/tmp"
  cp tests/demo_model/demo.gguf "$files"
  truncate -s 512M "$work/sd.img"
  mke2fs -q -t ext4 -F -d "$files" "$work/sd.img"
  rm -rf "$files"
}

board() {
  local name=$1 cpu kernel suite start=$SECONDS log=$work/$1.log
  shift
  case "$name" in
    pi5) cpu=cortex-a76 suite=trixie kernel=linux-image-arm64-16k ;;
    pi4) cpu=cortex-a72 suite=bookworm kernel=linux-image-arm64 ;;
    *) sed -n '2,/^set /s/^# \{0,1\}//p' "$source/tests/board.sh" | sed '$d'; exit 2 ;;
  esac
  kernel "$suite" "$kernel"
  base_system
  [ $# -gt 0 ] || set -- "${programs[@]}"
  disks "$kernel" "$@"
  echo "==> $name: $cpu, $kernel"
  cp --sparse=always "$work/base.img" "$work/root.img"
  # The NVMe disk has sectors of 4096 bytes, the card such of 512.
  boot "$cpu" "$kernel" "$log" -drive "if=none,id=root,file=$work/root.img,format=raw,cache=unsafe" \
    -device virtio-blk-pci,drive=root,romfile= -drive "if=none,id=nvme,file=$work/nvme.img,format=raw,cache=unsafe" \
    -device nvme,serial=board,id=nvme0 -device nvme-ns,drive=nvme,bus=nvme0,logical_block_size=4096,physical_block_size=4096 \
    -drive "if=none,id=sd,file=$work/sd.img,format=raw,cache=unsafe" -device sdhci-pci -device sd-card,drive=sd || true
  rm -f "$work"/{root,nvme,sd}.img
  tr -d '\r' <"$log" | grep '^board: ' || true
  if ! tr -d '\r' <"$log" | grep -qx 'board: passed'; then
    tail -n 60 "$log" >&2
    echo "$name: FAILED, see $log" >&2
    exit 1
  fi
  echo "$name: passed, $((SECONDS - start)) s"
}

[ "${1:-}" != --help ] && [ "${1:-}" != -h ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; exit; }
[ "$(id -u)" -eq 0 ] || { echo "needs root, for debootstrap" >&2; exit 2; }
package=$(echo "$build"/embergate_*_arm64.deb)
[ -e "$package" ] || { echo "no package: tests/arm64.sh build, tests/arm64.sh package" >&2; exit 2; }
mkdir -p "$work"
mirror=$(debian_mirror)
packages
if [ $# -eq 0 ]; then
  board pi5
  board pi4
else
  board "$@"
fi
