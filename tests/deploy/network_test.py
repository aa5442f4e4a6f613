"""A network that delays, loses, repeats and reorders packets, cuts connections, and falls silent: every call ends with a
status, nobody's answer suffers from another's trouble, and the server has soon forgotten who is gone.

Longer: EMBERGATE_NETWORK_REQUESTS=1000 (calls through a line that loses 5 %; 100 otherwise)."""
import json
import os
import subprocess
import time
import unittest

import bad_network
import harness

LONG = 800 if harness.SANITIZED else 4000  # tokens; seconds of a stream


class NetworkTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.network = bad_network.BadNetwork()
        except OSError as error:
            raise unittest.SkipTest("no network namespaces with TUN devices can be made here: %s" % error)
        try:
            # It is told to find out soon who is gone.
            cls.server = cls.start("--keepalive-time", "1", "--keepalive-timeout", "2")
        except BaseException:
            cls.network.close()
            raise
        cls.kv_free = cls.metric("embergate_kv_tokens_free")

    @classmethod
    def start(cls, *args):
        server = cls.network.server_side.call(
            harness.Server, "--allow-unauthenticated", "--context", str(LONG + 100), "--slots", "8", "--queue", "64",
            "--metrics", "127.0.0.1:0", *args, host="10.77.0.1")
        return server.__enter__()

    @classmethod
    def tearDownClass(cls):
        try:
            cls.server.end_well()
        finally:
            cls.network.close()

    def setUp(self):
        line = self.network.line
        line.delay = line.jitter = line.loss = line.repeat = 0.0
        line.bytes_per_second = None

    @classmethod
    def metric(cls, name, server=None, **labels):
        metrics = cls.network.server_side.call((server or cls.server).metrics)
        return sum(value for found, value in metrics.get(name, [])
                   if labels.items() <= found.items())

    def expect_idle(self):
        harness.wait_for("an idle server", lambda: self.metric("embergate_num_requests_running") == 0 and
                         self.metric("embergate_num_requests_waiting") == 0, timeout=60)
        self.assertEqual(self.metric("embergate_kv_tokens_free"), self.kv_free, "attention cache is lost")

    def load(self, *args):
        result = self.network.client_side.call(
            harness.run, harness.BINARY, "load", "--address", self.server.address, "--json", *args, timeout=600)
        return json.loads(result.stdout)

    def generate(self, tokens, server):
        """A client that streams, and the connection that it has opened."""
        line = self.network.line
        before = len(line.seen)
        client = self.network.client_side.call(
            subprocess.Popen, [harness.BINARY, "generate", "--address", server.address, "--prompt", "Hello!",
                               "--temperature", "0", "--max-tokens", str(tokens), "--ignore-eos", "--timeout", "86400"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(client.communicate)
        self.addCleanup(client.kill)  # before that
        harness.wait_for("a connection", lambda: len(line.seen) > before)
        return client, line.seen[before]

    def streaming(self, tokens, server=None):
        client, connection = self.generate(tokens, server or self.server)
        client.first = client.stdout.read(1)
        return client, connection

    def finish(self, client):
        out, err = client.stdout.read(), client.stderr.read()
        return client.wait(), client.first + out, err.decode()

    def test_answers_are_whole_through_a_lossy_line(self):
        line = self.network.line
        line.delay, line.jitter, line.loss, line.repeat = 0.05, 0.02, 0.05, 0.02
        requests = os.environ.get("EMBERGATE_NETWORK_REQUESTS", "100")
        report = self.load("--clients", "16", "--requests", requests, "--prompts", "8", "--tokens", "40", "--verify")
        print("through 50 ms with 20 ms of jitter, 5 %% loss: %s; packets %s" % (report, line.counts))
        self.assertEqual((report["ok"], report["lost"], report["wrong"]), (int(requests), 0, 0))
        self.assertGreater(line.counts["lost"], 0)
        self.expect_idle()

    def test_answers_are_whole_through_a_narrow_line(self):
        self.network.line.bytes_per_second = 100000
        report = self.load("--clients", "8", "--tokens", "40", "--verify")
        self.assertEqual((report["ok"], report["lost"], report["wrong"]), (8, 0, 0))
        self.expect_idle()

    def test_a_reset_ends_that_stream_alone(self):
        line = self.network.line
        line.delay = 0.01
        alone, _ = self.streaming(LONG)
        code, expected, _ = self.finish(alone)
        self.assertEqual(code, 0)
        # gRPC's own name for a call whose client is gone.
        cancelled = self.metric("embergate_requests_total", method="Generate", code="CANCELLED")
        streams = []
        for i in range(4):
            streams.append(self.streaming(LONG))
            if i % 2 == 0:
                line.reset.add(streams[i][1])
        for client, connection in streams:
            code, text, error = self.finish(client)
            if connection in line.reset:
                self.assertNotEqual(code, 0)
                self.assertIn("UNAVAILABLE", error)
                self.assertTrue(expected.startswith(text.removesuffix(b"\n")), "what came before is right")
            else:
                self.assertEqual(code, 0, error)
                self.assertEqual(text, expected)
        self.assertGreaterEqual(line.counts["reset"], 2)
        self.expect_idle()
        harness.wait_for("the count", lambda: self.metric(
            "embergate_requests_total", method="Generate", code="CANCELLED") > cancelled)

    def test_a_client_that_falls_silent_is_given_up(self):
        line = self.network.line
        ended = self.metric("embergate_requests_total", method="Generate")
        for _ in range(2):
            _, connection = self.streaming(LONG)
            line.silent.add(connection)
        start = time.monotonic()
        # 3 s in theory: a ping after 1 s, an answer within 2 s.
        harness.wait_for("the end of the silent clients", lambda: self.metric("embergate_connections") == 0, timeout=60)
        print("given up after %.1f s" % (time.monotonic() - start))
        self.expect_idle()
        # CANCELLED, or OK where the kernel had taken all of an answer.
        harness.wait_for("the count", lambda: self.metric("embergate_requests_total", method="Generate") == ended + 2)

    def test_a_silent_client_holds_up_no_shutdown(self):
        # What was written to it last waits in the kernel, which takes no more; that call could not end.
        server = self.start("--keepalive-time", "300", "--keepalive-timeout", "300")
        try:
            _, connection = self.streaming(LONG, server)
            self.network.line.silent.add(connection)
            finished = lambda: self.metric("embergate_requests_finished_total", server, reason="length")
            harness.wait_for("the end of the generation", lambda: finished() == 1, timeout=60)
            start = time.monotonic()
            self.assertEqual(server.stop(60), 0)
            print("shut down after %.1f s" % (time.monotonic() - start))
        finally:
            server.__exit__()


if __name__ == "__main__":
    harness.main()
