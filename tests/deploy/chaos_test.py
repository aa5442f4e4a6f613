"""A server that is killed in the middle of everything, as by power that fails, and one whose clock is set.

Longer: EMBERGATE_CHAOS_SECONDS=1800 (killed and started again for that long; a few times otherwise)."""
import glob
import os
import random
import signal
import socket
import subprocess
import threading
import time
import unittest

import harness


class Client:
    """Streams one answer after another until it is told to stop. Each call has to end with the right text, or as one does
    whose server is gone."""
    GONE = ("UNAVAILABLE",)

    def __init__(self, address, seed, expected):
        self.address, self.seed, self.expected = address, seed, expected
        self.whole = self.cut = 0
        self.wrong = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopped.is_set():
            result = generate(self.address, self.seed, check=False)
            if result.returncode == 0 and result.stdout == self.expected:
                self.whole += 1
            elif result.returncode != 0 and any(code in result.stderr for code in self.GONE):
                self.cut += 1
                time.sleep(0.02)  # nobody listens
            else:
                self.wrong.append((result.returncode, result.stderr[-500:], len(result.stdout)))
                return

    def stop(self):
        self.stopped.set()
        self.thread.join()


def generate(address, seed, tokens=100, check=True):
    # A call that never ended would fail by its timeout, with another code.
    return harness.run(harness.BINARY, "generate", "--address", address, "--prompt", "number %d" % seed, "--temperature",
                       "0", "--max-tokens", str(tokens), "--ignore-eos", "--timeout", "3600", check=check, timeout=200)


class KillTest(unittest.TestCase):
    CLIENTS = 4

    def test_killed_at_any_moment_it_is_ready_at_once(self):
        seconds = float(os.environ.get("EMBERGATE_CHAOS_SECONDS", "0"))
        pick = random.Random(5)
        with harness.Folder() as folder:
            socket = "unix:" + os.path.join(folder, "socket")
            hot_list = os.path.join(folder, "hot")

            def start():
                return harness.Server("--hot-list", hot_list, "--slots", "2", "--queue", "8", "--listen", socket)

            with start() as server:
                expected = [generate(socket, seed).stdout for seed in range(self.CLIENTS)]
                self.assertEqual(server.stop(), 0)
            clients = [Client(socket, seed, text) for seed, text in enumerate(expected)]
            rounds, slowest, end = 0, 0.0, time.monotonic() + seconds
            try:
                while rounds < 5 or time.monotonic() < end:
                    begin = time.monotonic()
                    with start() as server:
                        slowest = max(slowest, time.monotonic() - begin)
                        # Now and then in the middle of its start, else with calls under way.
                        if rounds % 4 != 3:
                            time.sleep(pick.uniform(0.05, 0.6))
                        server.process.send_signal(signal.SIGKILL)
                        self.assertEqual(server.process.wait(), -signal.SIGKILL)
                    with start() as server:  # killed before it can be ready
                        time.sleep(pick.uniform(0, 0.05))
                    rounds += 1
                with start() as server:
                    before = [client.whole for client in clients]
                    harness.wait_for("answers for everybody", lambda: all(
                        client.whole > count or client.wrong for client, count in zip(clients, before)), 60)
                    for client in clients:
                        client.stop()
                    self.assertEqual(server.stop(), 0)
            finally:
                for client in clients:
                    client.stop()
            for client in clients:
                self.assertEqual(client.wrong, [])
            print("killed %d times; %d answers, %d calls cut off or refused; ready after %.2f s at the slowest" % (
                2 * rounds, sum(c.whole for c in clients), sum(c.cut for c in clients), slowest))
            self.assertGreater(sum(client.cut for client in clients), 0)


class ClockTest(unittest.TestCase):
    """The wall clock is set back and forth, as by a board without one that hears of the time later. libfaketime answers
    for it, not the kernel: a wait until a time of the wall clock lasts as much too long as one of a clock set back."""
    LONG = 6000  # tokens
    WATCHDOG = 0.4  # seconds

    @unittest.skipIf(harness.SANITIZED, "a sanitizer's library has to be the first")
    def test_no_answer_and_no_time_limit_depends_on_the_wall_clock(self):
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            self.skipTest("libfaketime is not installed (Debian package faketime)")
        with harness.Folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            clock = os.path.join(folder, "clock")
            notices.bind(os.path.join(folder, "notices"))

            def set_clock(offset):
                with open(clock + ".new", "w") as file:
                    file.write(offset)
                os.rename(clock + ".new", clock)

            def read_notices(count):
                """Those of the watchdog that come from now on."""
                notices.setblocking(False)
                try:
                    while notices.recv(4096):
                        pass
                except BlockingIOError:
                    notices.settimeout(20)
                while count > 0:
                    count -= b"WATCHDOG=1" in notices.recv(4096)

            set_clock("+0")
            environment = {
                "LD_PRELOAD": libraries[0], "FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NOTIFY_SOCKET": os.path.join(folder, "notices"),
                "WATCHDOG_USEC": str(int(self.WATCHDOG * 1e6))}
            with harness.Server("--context", str(self.LONG + 100), "--slots", "4", "--drain-timeout", "1",
                                env=environment) as server:
                command = [harness.BINARY, "generate", "--address", server.address, "--prompt", "Hello", "--temperature",
                           "0", "--max-tokens", str(self.LONG), "--ignore-eos"]
                whole = harness.run(*command).stdout
                stream = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for offset in ("+3600", "-3600", "+0", "-20000d", "+300d", "+0", "+3600"):
                    set_clock(offset)
                    read_notices(3)
                    # A deadline is neither over at once nor forgotten.
                    answer = server.generate("--timeout", "60", check=False)
                    self.assertEqual(answer.returncode, 0, offset + ": " + answer.stderr)
                    begin = time.monotonic()
                    hurried = harness.run(*command, "--timeout", "0.3", check=False)
                    self.assertRegex(hurried.stderr, "DEADLINE_EXCEEDED|the deadline cannot be met")
                    self.assertLess(time.monotonic() - begin, 20, offset)
                out, err = stream.communicate(timeout=120)
                self.assertEqual((stream.returncode, out), (0, whole), err)
                # An hour ahead, and with a stream under way, it ends when it is to.
                stream = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.addCleanup(stream.wait)
                stream.stdout.read(1)
                self.assertEqual(server.stop(timeout=20), 0)
                stream.communicate(timeout=20)


if __name__ == "__main__":
    harness.main()
