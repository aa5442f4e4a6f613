"""deploy/install_packages.sh with a dpkg and an apt that say what they are told to."""
import os
import unittest

import harness


class PackagesTest(unittest.TestCase):
    def install(self, apt, sudo=False, what="build"):
        folder = harness.Folder(prefix="embergate-packages-")
        self.addCleanup(folder.cleanup)
        for name, text in {"dpkg-query": "exit 1", "dpkg": 'echo "dpkg $*" >"$0.log"', "apt-get": apt,
                           "id": "echo %d" % (1000 if sudo else 0),
                           "sudo": 'exec "$@"', "tee": "cat >/dev/null", "chmod": "exit 0", "rm": "exit 0"}.items():
            path = folder.file(name)
            with open(path, "w") as file:
                file.write("#!/bin/sh\n" + text + "\n")
            os.chmod(path, 0o755)
        return harness.run(os.path.join(harness.DEPLOY, "install_packages.sh"), what, check=False,
                           env={**os.environ, "PATH": folder.name + ":" + os.environ["PATH"]})

    def test_what_apt_cannot_find_is_named(self):
        result = self.install('case "$1" in install) echo "E: Unable to locate package liburing-dev"; exit 100;; esac')
        self.assertEqual(result.returncode, 1)
        self.assertIn("Unable to locate package liburing-dev", result.stderr)
        self.assertIn("is this Debian 12 or 13?", result.stderr)

    def test_cross_wants_the_tools_of_one_architecture_and_the_libraries_of_the_other(self):
        apt = 'case "$1" in install) cat "$(dirname "$0")/dpkg.log"; echo "$*"; exit 100;; esac'
        said = self.install(apt, what="cross").stderr
        self.assertIn("dpkg --add-architecture arm64", said)
        for word in "--no-remove", "g++-aarch64-linux-gnu", "protobuf-compiler", "libssl-dev:arm64", "nlohmann-json3-dev":
            self.assertIn(word, said.split())

    def test_progress_is_told(self):
        apt = ('case "$1" in install) echo Reading; echo dlstatus:1:12.5:Retrieving; '
               'echo pmstatus:cmake:50.0:Unpacking; exit 0;; esac')
        for sudo in False, True:
            result = self.install(apt, sudo)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("  downloading\n  installing\n", result.stdout)
            self.assertNotIn("status:", result.stdout)


if __name__ == "__main__":
    harness.main()
