"""A server that is killed in the middle of everything, as by power that fails.

Longer: EMBERGATE_CHAOS_SECONDS=1800 (killed and started again for that long; a few times otherwise)."""
import os
import random
import signal
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


if __name__ == "__main__":
    harness.main()
