"""Three servers behind nginx, behind HAProxy, and behind a client that balances itself: one board is killed and one
drains while clients ask; every request is answered, in the end, and always alike. And a board that loads its model, or
whose flash fails, gets nothing from an nginx that knows nothing of health."""
import json
import os
import shutil
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


class Boards(unittest.TestCase):
    def setUp(self):
        self.port = harness.free_port()
        self.metrics_port = harness.free_port()

    def start(self, host, *args):
        server = harness.Server("--context", "2048", *args, host=host, port=self.port, metrics_port=self.metrics_port)
        self.addCleanup(server.__exit__)
        server.metrics = lambda: harness.parse_metrics(
            harness.http_get("http://%s:%d/metrics" % (host, self.metrics_port)))
        return server

    def front(self, name, make):
        front = make(BOARDS, self.port, "127.0.0.1:%d" % harness.free_port())
        if front is None:
            self.skipTest("%s is not installed (Debian package %s)" % (name, name))
        return front


class GatewayTest(Boards):
    def setUp(self):
        super().setUp()
        self.servers = [self.start(host) for host in BOARDS]
        for server in self.servers:
            server.wait_ready()

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
        with self.front(name, make) as front:
            self.one_dies_one_drains(front.address)

    def test_nginx(self):
        self.behind("nginx", gateway.nginx)

    def test_haproxy(self):
        self.behind("haproxy", gateway.haproxy)


class NotReadyTest(Boards):
    """Each call is made once: with the boards' setting, none may be refused because a board is not ready."""

    def setUp(self):
        super().setUp()
        self.folder = harness.Folder(prefix="embergate-not-ready-")
        self.addCleanup(self.folder.cleanup)
        self.others = [self.start(host, "--listen-when", "ready") for host in BOARDS[1:]]

    def ask(self, address):
        return harness.run(harness.BINARY, "generate", "--address", address, "--prompt", "Hello", "--seed", "7",
                           "--max-tokens", "20", "--ignore-eos", check=False)

    def ask_once(self, front):
        result = self.ask(front.address)
        self.assertEqual(result.returncode, 0, result.stderr)

    def nginx_passes_by(self, front):
        """The first board is not ready, and the others answer all calls."""
        def refuses():
            health = harness.run(harness.BINARY, "health", "--address", "%s:%d" % (BOARDS[0], self.port), check=False)
            self.assertEqual(health.returncode, 1)
            return "Connection refused" in health.stderr
        harness.wait_for("the port to be closed", refuses)
        before = [accepted(server) for server in self.others]
        for _ in range(REQUESTS):
            self.ask_once(front)
        more = [accepted(server) - count for server, count in zip(self.others, before)]
        self.assertEqual(sum(more), REQUESTS)
        self.assertGreater(min(more), 0, "both have work: %s" % more)

    def nginx_comes_back_to(self, board, front):
        before = accepted(board)

        def asked():
            self.ask_once(front)
            return accepted(board) > before
        harness.wait_for("work for the board that is ready", asked)

    def test_a_board_that_loads(self):
        hot_list = self.folder.file("hot-list")
        settings = BOARDS[0], "--listen-when", "ready", "--hot-list", hot_list
        board = self.start(*settings)
        for server in board, *self.others:
            server.wait_ready()
        with self.front("nginx", gateway.nginx) as front:
            self.nginx_comes_back_to(board, front)
            self.assertEqual(board.stop(), 0)
            # With a pipe in its place, the load comes to its end when somebody writes there.
            os.remove(hot_list)
            os.mkfifo(hot_list)
            board = self.start(*settings)
            harness.wait_for("the load", lambda: board.metrics()["embergate_load_progress_ratio"][0][1] == 1)
            self.assertEqual(board.metrics()["embergate_ready"][0][1], 0)
            self.nginx_passes_by(front)
            with open(hot_list, "w"):
                pass
            board.wait_ready()
            self.nginx_comes_back_to(board, front)

    def test_a_board_whose_flash_fails(self):
        model = self.folder.file("model.gguf")
        shutil.copy(harness.model(), model)
        with open(model, "rb") as file:
            whole = file.read()
        board = self.start(BOARDS[0], "--listen-when", "ready", "--model", model, "--row-cache", "0")
        for server in board, *self.others:
            server.wait_ready()
        with self.front("nginx", gateway.nginx) as front:
            self.nginx_comes_back_to(board, front)
            os.truncate(model, 4096)

            def ready():
                return board.metrics()["embergate_ready"][0][1]

            def failed():
                self.ask("%s:%d" % (BOARDS[0], self.port))
                return ready() == 0
            harness.wait_for("the end of its health", failed)
            self.nginx_passes_by(front)
            with open(model, "r+b") as file:
                file.write(whole)
            harness.wait_for("its health", lambda: ready() == 1)
            self.nginx_comes_back_to(board, front)


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
