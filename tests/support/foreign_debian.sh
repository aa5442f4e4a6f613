# Sourced by scripts that make Debian systems of other architectures, and run them, as root. They have `skip MESSAGE`, which
# ends them.

# Commands to run at the end, the last one first.
cleanup=()
at_exit() {
  local i
  for ((i = ${#cleanup[@]} - 1; i >= 0; i--)); do eval "${cleanup[i]}"; done
}
trap at_exit EXIT

release=$(. /etc/os-release && echo "$VERSION_CODENAME")

# Where this machine gets its own packages.
debian_mirror() {
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Release: $release" | grep -m 1 -v -e security ||
    skip "this machine's apt has no mirror of Debian $release"
}

# From now on this machine's kernel starts arm64 programs through qemu, also in a chroot or container ("F": the emulator is
# opened now, here).
emulate_arm64() {
  local binfmt=/proc/sys/fs/binfmt_misc qemu
  qemu=$(command -v qemu-aarch64-static) || skip "qemu-user-static is not installed"
  if [ ! -e $binfmt/register ]; then
    mount -t binfmt_misc binfmt_misc $binfmt || skip "binfmt_misc cannot be mounted here"
    cleanup+=("umount $binfmt")
  fi
  ! grep -qs enabled $binfmt/*-aarch64 || return 0
  printf '%s' ":embergate-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:$qemu:F" >$binfmt/register
  cleanup+=("echo -1 >$binfmt/embergate-aarch64")
}
