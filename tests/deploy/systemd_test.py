"""The service as systemd would run it. There need not be a systemd here: the test takes its part, and listens to the
server on the notification socket; systemd-analyze checks the unit, and its system call filter is applied by libseccomp."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unittest

import harness

UNIT = os.path.join(harness.DEPLOY, "systemd", "embergate.service")


def unit():
    with open(UNIT) as file:
        return file.read()


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self):
        self.folder = harness.Folder(prefix="embergate-notify-")
        self.path = self.folder.file("notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)

    def next(self, timeout):
        self.socket.settimeout(timeout)
        try:
            return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())
        except socket.timeout:
            return None

    def until(self, key, timeout=20):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            message = self.next(end - time.monotonic())
            if message and key in message:
                return message
        raise AssertionError("no %s within %g s" % (key, timeout))

    def close(self):
        self.socket.close()
        self.folder.cleanup()


class UnitTest(unittest.TestCase):
    def test_is_valid_and_confined(self):
        analyze = harness.find("systemd-analyze")
        if not analyze:
            self.skipTest("systemd-analyze is not installed (Debian package systemd)")
        with harness.Folder() as folder:
            path = os.path.join(folder, "embergate.service")
            with open(path, "w") as file:  # as installed, but for where the binary and its manual are
                file.write(re.sub("Documentation=.*\n", "", unit().replace("/usr/bin/embergate", harness.BINARY)))
            result = harness.run(analyze, "verify", path, check=False)
            self.assertEqual((result.returncode, result.stdout + result.stderr), (0, ""))
            result = harness.run(analyze, "security", "--offline=yes", "--no-pager", path, check=False)
            if "offline" in result.stderr:
                self.skipTest("systemd-analyze is too old for --offline")
            exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", result.stdout).group(1))
            self.assertLess(exposure, 2.0)

    def test_the_server_works_under_its_call_filter(self):
        analyze = harness.find("systemd-analyze")
        if not analyze:
            self.skipTest("systemd-analyze is not installed (Debian package systemd)")

        def members(group):
            names = set()
            for word in re.findall(r"^ +([@\w-]+)$", harness.run(analyze, "syscall-filter", group).stdout, re.M):
                names |= members(word) if word.startswith("@") else {word}
            return names

        allowed = members("@default")  # always
        for sign, group in re.findall(r"^SystemCallFilter=(~?)(@[\w-]+)$", unit(), re.M):
            allowed = allowed - members(group) if sign else allowed | members(group)
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                   "syscalls": [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]}
        with harness.Folder() as folder:
            path = os.path.join(folder, "filter.json")
            with open(path, "w") as file:
                json.dump(profile, file)
            with harness.Server() as server:
                expected = server.metrics()["embergate_flash_reader_info"][0][0]["backend"]
            runner = os.path.join(harness.SOURCE, "tests", "deploy", "under_seccomp.py")
            # A sanitizer's look for leaks at the end would need calls that the unit does not.
            with harness.Server(prefix=[sys.executable, runner, path, "--"],
                                env={"ASAN_OPTIONS": "detect_leaks=0"}) as server:
                server.generate()
                self.assertEqual(server.metrics()["embergate_flash_reader_info"][0][0]["backend"], expected)
                self.assertEqual(server.stop(), 0)

    def test_the_shipped_settings_are_accepted(self):
        with open(os.path.join(harness.DEPLOY, "systemd", "embergate.toml")) as file:
            text = file.read()
        settings = re.findall(r"^#?([a-z-]+) = ", text, re.M)
        shown = harness.run(harness.BINARY, "serve", "--help").stdout
        for name in settings:
            self.assertIn("--%s " % name, shown)
        with harness.Folder() as folder:
            path = os.path.join(folder, "embergate.toml")
            text = re.sub(r"^#([a-z-]+ = )", r"\1", text, flags=re.M).replace(
                "/var/lib/embergate-models/model.gguf", harness.model())
            with open(path, "w") as file:
                file.write(text)
            with harness.Server("--config", path, "--context", "160", "--dram-budget", "auto") as server:
                self.assertEqual(server.stop(), 0)

    def test_a_bad_setting_is_not_tried_again(self):
        self.assertIn("\nRestartPreventExitStatus=2\n", unit())
        result = harness.run(harness.BINARY, "serve", "--model", "/nowhere.gguf", "--listen", "127.0.0.1:0", "--metrics",
                             "off", check=False)
        self.assertEqual(result.returncode, 2, result.stderr)


class NotifyTest(unittest.TestCase):
    def setUp(self):
        self.manager = Manager()
        self.addCleanup(self.manager.close)

    def server(self, *args, **more):
        return harness.Server(*args, env={"NOTIFY_SOCKET": self.manager.path, "WATCHDOG_USEC": "800000"}, **more)

    def test_ready_watchdog_stopping(self):
        with self.server() as server:
            self.assertEqual(self.manager.until("READY")["READY"], "1")
            self.manager.until("WATCHDOG")
            server.generate()
            self.manager.until("WATCHDOG")
            # A server that hangs says nothing, and systemd ends it after WatchdogSec.
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            while self.manager.next(0.05):
                pass
            self.assertIsNone(self.manager.next(1.0))
            server.process.send_signal(signal.SIGCONT)
            self.manager.until("WATCHDOG")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(self.manager.until("STOPPING")["STOPPING"], "1")
            self.assertEqual(server.process.wait(20), 0)

    def test_who_listens_when_ready_listens_when_it_says_so(self):
        port = harness.free_port()
        server = self.server("--listen-when", "ready", port=port)
        self.addCleanup(server.__exit__)
        self.manager.until("READY")
        socket.create_connection(("127.0.0.1", port), 5).close()

    def test_not_ready_when_the_model_cannot_be_used(self):
        with harness.Folder() as folder:
            path = os.path.join(folder, "bad.gguf")
            with open(path, "w") as file:
                file.write("GGUF, or not")
            process = subprocess.Popen([harness.BINARY, "serve", "--model", path, "--listen", "127.0.0.1:0", "--metrics",
                                        "off"], stderr=subprocess.DEVNULL,
                                       env={**os.environ, "NOTIFY_SOCKET": self.manager.path})
            self.assertEqual(process.wait(20), 2)
        while True:
            message = self.manager.next(0.1)
            if message is None:
                break
            self.assertNotIn("READY", message)


if __name__ == "__main__":
    harness.main()
