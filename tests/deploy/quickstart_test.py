"""deploy/quickstart.sh in a copy of the tree whose packages are there and whose build is this one: the story that it tells
is true, a second run tells it again, and what goes wrong is named."""
import os
import re
import shutil
import unittest

import harness

DEMO = os.path.join(harness.SOURCE, "tests", "demo_model")


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-quickstart-")
        self.addCleanup(self.folder.cleanup)
        os.makedirs(self.folder.file("deploy"))
        os.makedirs(self.folder.file("bin"))
        os.makedirs(self.folder.file("tests"))
        os.symlink(DEMO, self.folder.file("tests", "demo_model"))
        shutil.copy(os.path.join(harness.DEPLOY, "quickstart.sh"), self.folder.file("deploy"))
        self.script("deploy/install_packages.sh", "exit 0")
        self.script("bin/cmake", 'mkdir -p build; ln -sf "%s" build/embergate' % harness.BINARY)

    def script(self, name, text):
        path = self.folder.file(*name.split("/"))
        with open(path, "w") as file:
            file.write("#!/bin/sh\n" + text + "\n")
        os.chmod(path, 0o755)

    def quickstart(self, *arguments):
        self.port = harness.free_port()
        env = {**os.environ, "PATH": self.folder.file("bin") + ":" + os.environ["PATH"],
               "XDG_STATE_HOME": self.folder.name, "EMBERGATE_LISTEN": "127.0.0.1:%d" % self.port,
               "EMBERGATE_METRICS": "127.0.0.1:%d" % harness.free_port()}
        return harness.run(self.folder.file("deploy", "quickstart.sh"), *arguments, check=False, env=env, timeout=100)

    def health(self):
        return harness.run(harness.BINARY, "health", "--address", "127.0.0.1:%d" % self.port, check=False).returncode

    def test_twice(self):
        for _ in range(2):
            result = self.quickstart()
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            self.assertIn("My per-layer embeddings stay on flash and are read row by row.\n", result.stdout)
            self.assertIn("The roof power is 640 W.\n", result.stdout)
            self.assertIn('[tool call] set_switch {"device":"kitchen light","state":"on"}\n', result.stdout)
            self.assertRegex(result.stdout, r"embergate_flash_read_bytes_total +0 -> [1-9]")
            self.assertRegex(result.stdout, r"(?m)^ +total ")
            self.assertIn("flash", result.stderr, "the receipt")
            self.assertNotEqual(self.health(), 0, "the server goes on")

    def test_keep_leaves_a_server_and_says_how_to_stop_it(self):
        result = self.quickstart("--keep")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        pid = int(re.search(r"^  kill (\d+)$", result.stdout, re.M).group(1))
        self.addCleanup(lambda: os.path.exists("/proc/%d" % pid) and os.kill(pid, 9))
        self.assertEqual(self.health(), 0)
        self.assertIn("  export EMBERGATE_ADDRESS=127.0.0.1:%d EMBERGATE_METRICS=127.0.0.1:" % self.port, result.stdout)
        os.kill(pid, 15)
        harness.wait_for("the server's end", lambda: self.health() != 0, 20)

    def test_trouble_is_named(self):
        self.script("deploy/install_packages.sh", "echo cmake is missing >&2; exit 1")
        result = self.quickstart()
        self.assertEqual(result.returncode, 1)
        self.assertIn("cmake is missing", result.stderr)
        self.script("deploy/install_packages.sh", "exit 0")
        self.script("bin/cmake", "echo no compiler; exit 1")
        result = self.quickstart()
        self.assertEqual(result.returncode, 1)
        self.assertIn("no compiler", result.stderr)
        self.assertEqual(self.quickstart("--no-such-thing").returncode, 2)


if __name__ == "__main__":
    harness.main()
