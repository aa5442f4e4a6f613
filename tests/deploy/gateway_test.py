"""Three servers behind nginx, behind HAProxy, and behind a client that balances itself: one board is killed and one
drains while clients ask; every request is answered, in the end, and always alike."""
import json
import signal
import socket
import threading
import unittest

import gateway
import harness

BOARDS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]  # each a machine of its own, as far as sockets can tell
REQUESTS = 10  # of each client
CLIENTS = 3
TRIES = 8


def accepted(server):
    return server.metrics()["embergate_requests_accepted_total"][0][1]


class GatewayTest(unittest.TestCase):
    def setUp(self):
        self.port = harness.free_port()
        self.metrics_port = harness.free_port()
        self.servers = []
        for host in BOARDS:
            server = harness.Server("--context", "2048", host=host, port=self.port, metrics_port=self.metrics_port)
            self.servers.append(server)
            self.addCleanup(server.__exit__)
        for server, host in zip(self.servers, BOARDS):
            server.wait_ready()
            server.metrics = lambda host=host: harness.parse_metrics(
                harness.http_get("http://%s:%d/metrics" % (host, self.metrics_port)))

    def clients(self, address, then):
        """Clients that try again what failed; `then` runs once each of them has had its first answer."""
        answers, failures, begun, lock = [], [], threading.Event(), threading.Lock()
        first = set()

        def ask(number):
            for _ in range(REQUESTS):
                for attempt in range(TRIES):
                    result = harness.run(harness.BINARY, "generate", "--address", address, "--prompt", "Hello", "--seed",
                                         "7", "--max-tokens", "300", "--ignore-eos", "--json", check=False)
                    if result.returncode == 0:
                        break
                    threading.Event().wait(0.2)
                with lock:
                    if result.returncode == 0:
                        answers.append(json.loads(result.stdout)["text"])
                        first.add(number)
                    else:
                        failures.append(result.stderr)
                    if len(first) == CLIENTS or failures:
                        begun.set()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        then()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(answers), REQUESTS * CLIENTS, "requests were lost")
        self.assertEqual(len(set(answers)), 1, "the same seed gave different texts")

    def one_dies_one_drains(self, address):
        seen = []

        def trouble():
            # Each call is a client of its own, and begins with whichever board answers it first.
            harness.wait_for("work for all three boards", lambda: min(map(accepted, self.servers)) > 0)
            seen.extend(accepted(server) for server in self.servers)
            self.servers[0].process.send_signal(signal.SIGKILL)
            self.servers[1].process.send_signal(signal.SIGTERM)

        self.clients(address, trouble)
        self.assertGreater(min(seen), 0, "all three boards had work: %s" % seen)
        self.assertEqual(self.servers[1].process.wait(10), 0, "drained")
        self.assertGreater(accepted(self.servers[2]), seen[2], "the third one takes over")

    def test_client_side_balancing(self):
        self.one_dies_one_drains(",".join("%s:%d" % (host, self.port) for host in BOARDS))

    def behind(self, name, make):
        front = make(BOARDS, self.port, "127.0.0.1:%d" % harness.free_port())
        if front is None:
            self.skipTest("%s is not installed (Debian package %s)" % (name, name))
        with front:
            self.one_dies_one_drains(front.address)

    def test_nginx(self):
        self.behind("nginx", gateway.nginx)

    def test_haproxy(self):
        self.behind("haproxy", gateway.haproxy)


class DrainTest(unittest.TestCase):
    def test_who_drains_listens_no_more_and_finishes_its_streams(self):
        """Else a gateway that goes by the number of calls would send all it gets to the board that refuses them at once."""
        with harness.Server("--context", "8192", "--drain-timeout", "300") as server:
            host, port = server.address.rsplit(":", 1)
            answers = []
            client = threading.Thread(target=lambda: answers.append(server.generate("--json", tokens=5000, check=False)))
            client.start()
            harness.wait_for("the stream", lambda: server.metrics()["embergate_requests_accepted_total"][0][1] > 0)
            server.process.send_signal(signal.SIGTERM)

            def refused():
                try:
                    socket.create_connection((host, int(port)), 5).close()
                except ConnectionRefusedError:
                    return True
                return False
            harness.wait_for("the port to be closed", refused)
            finished = server.metrics().get("embergate_requests_finished_total", ())
            self.assertEqual(sum(value for _, value in finished), 0, "the port was open until the stream had ended")
            client.join()
            self.assertEqual(answers[0].returncode, 0, answers[0].stderr)
            self.assertEqual(json.loads(answers[0].stdout)["usage"]["output_tokens"], 5000)
            self.assertEqual(server.process.wait(20), 0)


if __name__ == "__main__":
    harness.main()
