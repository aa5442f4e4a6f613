"""The seccomp profiles: with them the server reads through io_uring, with the same profile less the three added calls
(which is Docker's default) through pread; the answers are the same."""
import json
import os
import sys
import unittest

import harness
import under_seccomp

ADDED = ["io_uring_enter", "io_uring_register", "io_uring_setup"]
RUNNER = [sys.executable, os.path.join(harness.SOURCE, "tests", "deploy", "under_seccomp.py")]


def reader_and_answer(prefix):
    """How the server read, by its metric, and what it answered."""
    with harness.Server(prefix=prefix) as server:
        answer = server.generate("--json").stdout
        [(labels, value)] = server.metrics()["embergate_flash_reader_info"]
        assert value == 1
        rows = server.metrics()["embergate_rows_read_total"][0][1]
        assert rows > 0, "nothing was read from flash"
        assert server.stop() == 0, "drain"
        return labels, answer


def text(answer):
    """What was said, without the receipt's times."""
    found = json.loads(answer)
    return found["text"], found["ids"]


class ProfileTest(unittest.TestCase):
    def setUp(self):
        self.docker = harness.load_json("seccomp", "embergate.json")
        self.oci = harness.load_json("seccomp", "embergate-oci.json")

    def test_the_added_calls_are_in_one_rule(self):
        self.assertEqual(self.docker["syscalls"][0]["names"], ADDED)
        elsewhere = [name for rule in self.docker["syscalls"][1:] for name in rule["names"] if "uring" in name]
        self.assertEqual(elsewhere, [])
        self.assertEqual(self.docker["defaultAction"], "SCMP_ACT_ERRNO")
        for rule in self.docker["syscalls"]:
            self.assertEqual(len(rule["names"]), len(set(rule["names"])), "a call is named twice")

    def test_kubernetes_gets_the_same_less_what_needs_capabilities(self):
        # containerd knows no conditions: whatever is in that file counts for everybody.
        for architecture in "amd64", "arm64":
            expected = {(name, rule["action"], str(rule.get("args")))
                        for rule in self.docker["syscalls"] if under_seccomp.applies(rule, architecture)
                        for name in rule["names"]}
            actual = {(name, rule["action"], str(rule.get("args")))
                      for rule in self.oci["syscalls"] for name in rule["names"]}
            self.assertLessEqual(expected, actual)
            more = {name for name, _, _ in actual - expected}
            self.assertLessEqual(more, {"arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls",
                                        "sync_file_range2", "arch_prctl", "modify_ldt"}, "calls of the other architecture")
        self.assertFalse([rule for rule in self.oci["syscalls"] if "includes" in rule or "excludes" in rule])
        self.assertIn("SCMP_ARCH_AARCH64", self.oci["architectures"])

    def test_podmans_default_agrees(self):
        # Debian's golang-github-containers-common has another list of the same origin: what it lets every container do,
        # ours does too, apart from calls that it has been given since.
        path = "/usr/share/containers/seccomp.json"
        if not os.path.exists(path):
            self.skipTest("no " + path)
        with open(path) as file:
            theirs = {name for rule in json.load(file)["syscalls"]
                      if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("includes") and not rule.get("excludes")
                      for name in rule["names"]}
        ours = {name for rule in self.docker["syscalls"] for name in rule["names"]} - set(ADDED)
        self.assertLess(len(theirs - ours), 30)


class RunTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.free, cls.free_answer = reader_and_answer([])
        if cls.free["backend"] != "io_uring":
            raise unittest.SkipTest("io_uring is not available here: " + cls.free["reason"])
        try:
            under_seccomp.load_libseccomp()
        except OSError:
            raise unittest.SkipTest("libseccomp.so.2 is not installed (Debian package libseccomp2)")

    def check(self, profile, without, backend):
        prefix = [*RUNNER, os.path.join(harness.DEPLOY, "seccomp", profile)]
        if without:
            prefix += ["--without", ",".join(without)]
        labels, answer = reader_and_answer([*prefix, "--"])
        self.assertEqual(labels["backend"], backend, labels)
        self.assertEqual(labels["direct_io"], "true")
        self.assertEqual(text(answer), text(self.free_answer))
        return labels

    def test_docker_profile_has_io_uring(self):
        self.check("embergate.json", [], "io_uring")

    def test_oci_profile_has_io_uring(self):
        self.check("embergate-oci.json", [], "io_uring")

    def test_without_the_three_calls_it_is_pread_and_says_why(self):
        labels = self.check("embergate.json", ADDED, "pread")
        self.assertRegex(labels["reason"], "seccomp|permitted")


if __name__ == "__main__":
    harness.main()
