"""Everything at once, for a while: clients of every kind, good and bad, models that are exchanged, scrapes. No call is
lost, no answer is wrong, nothing is left behind, and memory does not grow.

Longer: EMBERGATE_SOAK_SECONDS=1800 (6 otherwise)."""
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import unittest

import harness
import http2
from http2 import frame

SECONDS = float(os.environ.get("EMBERGATE_SOAK_SECONDS", "6"))


class SoakTest(unittest.TestCase):
    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-soak-")
        self.addCleanup(self.folder.cleanup)
        # The same model by two names: an exchange changes no answer.
        self.models = [self.folder.file("one.gguf"), self.folder.file("two.gguf")]
        for path in self.models:
            shutil.copy(harness.model(), path)
        self.config = self.folder.file("embergate.toml")
        self.configure(0)
        self.server = harness.Server("--config", self.config, "--handshake-timeout", "2", "--keepalive-time", "2",
                                     "--keepalive-timeout", "5", usual=False)
        self.exchanged = 0
        self.done = {}
        self.problems = []

    def configure(self, index):
        with open(self.config + ".new", "w") as file:
            file.write('model = "%s"\ncontext = 160\nslots = 4\nqueue = 16\nthreads = 1\ndram-budget = "512MiB"\n' %
                       self.models[index])
        os.rename(self.config + ".new", self.config)

    def metric(self, name, **labels):
        return sum(value for found, value in self.server.metrics().get(name, []) if labels.items() <= found.items())

    def rss(self):
        with open("/proc/%d/status" % self.server.process.pid) as file:
            return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) * 1024

    def load(self, seconds, seed):
        result = harness.run(
            harness.BINARY, "load", "--address", self.server.address, "--json", "--clients", "12", "--seconds",
            "%g" % seconds, "--prompts", "24", "--tokens", "60", "--prompt-tokens", "40", "--batch-clients", "3",
            "--cancelled", "0.2", "--hurried", "0.1", "--oversized", "0.05", "--malformed", "0.05", "--retries", "3",
            "--verify", "--seed", str(seed), check=False, timeout=seconds + 300)
        report = json.loads(result.stdout)
        if result.returncode != 0 or report["lost"] or report["wrong"]:
            self.problems.append(("load", report, result.stderr))
        for name in ("calls", "ok"):
            self.done[name] = self.done.get(name, 0) + report[name]

    def exchange(self):
        self.exchanged += 1
        self.configure(self.exchanged % 2)
        self.server.process.send_signal(signal.SIGHUP)
        harness.wait_for("the other model", lambda: self.metric("embergate_model_changes_total", outcome="beside") ==
                         self.exchanged, timeout=60)

    def scrape(self):
        self.metric("embergate_ready")

    def gibberish(self):
        with http2.Connection(self.server.address, preface=False) as other:
            other.send(random.randbytes(2000))
            for _ in other.frames():
                pass

    def pings(self):
        with http2.Connection(self.server.address).settle() as flood:
            for i in range(100):
                flood.send(frame(http2.PING, payload=i.to_bytes(8, "big")))

    def resets(self):
        with http2.Connection(self.server.address).settle() as flood:
            for stream in range(1, 400, 2):
                flood.send(frame(http2.HEADERS, http2.END_HEADERS, stream, http2.request_headers()) +
                           frame(http2.RST_STREAM, stream=stream, payload=http2.CANCEL.to_bytes(4, "big")))

    def half_a_call(self):
        with http2.Connection(self.server.address).settle() as gone:
            gone.send(frame(http2.HEADERS, http2.END_HEADERS, 1, http2.request_headers("Generate")) +
                      frame(http2.DATA, 0, 1, http2.message(b"xyz")[:6]))

    def vanish(self):
        client = subprocess.Popen([harness.BINARY, "generate", "--address", self.server.address, "--prompt", "Hello",
                                   "--max-tokens", "140", "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        client.stdout.read(1)
        client.kill()
        client.wait()
        client.stdout.close()

    def keep_doing(self, action, pause, end):
        while time.monotonic() < end and not self.problems:
            try:
                action()
            except (OSError, EOFError):
                pass  # the server has put an end to it
            except AssertionError as error:
                self.problems.append((action.__name__, str(error)))
            self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
            time.sleep(pause)

    def test_all_of_it_at_once(self):
        with self.server:
            self.load(min(SECONDS / 3, 20), seed=1)  # warms up
            for _ in range(4):
                self.exchange()
            idle = [http2.Connection(self.server.address).settle() for _ in range(50)]
            rss = self.rss()
            kv_free = self.metric("embergate_kv_tokens_free")
            end = time.monotonic() + SECONDS
            actions = ((self.exchange, 0.5), (self.scrape, 0.2), (self.gibberish, 0.5), (self.pings, 0.5),
                       (self.resets, 0.5), (self.half_a_call, 0.3), (self.vanish, 0.3))
            others = [threading.Thread(target=self.keep_doing, args=(action, pause, end)) for action, pause in actions]
            for other in others:
                other.start()
            seed = 2
            while time.monotonic() < end and not self.problems:
                self.load(min(SECONDS, 60), seed)
                seed += 1
            for other in others:
                other.join()
            for connection in idle:
                connection.close()
            harness.wait_for("an idle server", lambda: self.metric("embergate_num_requests_running") == 0 and
                             self.metric("embergate_num_requests_waiting") == 0 and
                             self.metric("embergate_former_model_requests") == 0 and
                             self.metric("embergate_connections") == 0, timeout=60)
            grown = self.rss() - rss
            print("%s; memory grew by %.1f MiB" % (self.done, grown / (1 << 20)))
            self.assertEqual(self.problems, [])
            self.assertEqual(self.metric("embergate_kv_tokens_free"), kv_free)
            self.assertEqual(self.metric("embergate_model_changes_total", outcome="failed"), 0)
            self.assertEqual(sum(value for found, value in self.server.metrics()["embergate_requests_total"]
                                 if found["code"] in ("INTERNAL", "UNKNOWN", "DATA_LOSS")), 0)
            if not harness.SANITIZED:
                self.assertLess(grown, 48 << 20)
            self.assertEqual(self.server.stop(), 0)


if __name__ == "__main__":
    harness.main()
