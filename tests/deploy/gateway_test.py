"""Three servers behind nginx, behind HAProxy, and behind a client that balances itself: one board is killed and one
drains while clients ask; every request is answered, in the end, and always alike."""
import json
import os
import signal
import subprocess
import threading
import unittest

import harness

BOARDS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]  # each a machine of its own, as far as sockets can tell
REQUESTS = 10  # of each client
CLIENTS = 3
TRIES = 8


def read(name):
    with open(os.path.join(harness.DEPLOY, "gateway", name)) as file:
        return file.read()


def placed(text, ports, metrics_port):
    """A gateway's configuration with the boards of this test in place of board1 to board3."""
    for i, host in enumerate(BOARDS):
        assert "board%d:50051" % (i + 1) in text
        text = text.replace("board%d:50051" % (i + 1), "%s:%d" % (host, ports))
    return text.replace("port 9464", "port %d" % metrics_port)


class Gateway:
    def __init__(self, command, folder, port):
        self.log = os.path.join(folder, "log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.address = "127.0.0.1:%d" % port

    def __enter__(self):
        def serves():
            if self.process.poll() is not None:
                with open(self.log) as log:
                    raise AssertionError("the gateway ended:\n" + log.read())
            return harness.run(harness.BINARY, "health", "--address", self.address, check=False).returncode == 0
        harness.wait_for("the gateway", serves, 15, 0.2)
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def accepted(server):
    return server.metrics()["embergate_requests_accepted_total"][0][1]


class GatewayTest(unittest.TestCase):
    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-gateway-")
        self.addCleanup(self.folder.cleanup)
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

    def write(self, name, text):
        path = self.folder.file(name)
        with open(path, "w") as file:
            file.write(text)
        return path

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

    def test_nginx(self):
        nginx = harness.find("nginx")
        if not nginx:
            self.skipTest("nginx is not installed (Debian package nginx)")
        port = harness.free_port()
        text = placed(read("nginx.conf"), self.port, self.metrics_port).replace("listen 50051", "listen 127.0.0.1:%d" % port)
        temp = "".join("%s_temp_path %s;\n" % (what, self.folder.file(what))
                       for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        path = self.write("nginx.conf", "daemon off; pid %s; error_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n%s%s}\n" % (
            self.folder.file("pid"), temp, text))
        harness.run(nginx, "-t", "-c", path, "-e", "stderr")
        with Gateway([nginx, "-c", path, "-e", "stderr"], self.folder.name, port) as gateway:
            self.one_dies_one_drains(gateway.address)

    def test_haproxy(self):
        haproxy = harness.find("haproxy")
        if not haproxy:
            self.skipTest("haproxy is not installed (Debian package haproxy)")
        port = harness.free_port()
        text = placed(read("haproxy.cfg"), self.port, self.metrics_port).replace("bind :50051", "bind 127.0.0.1:%d" % port)
        path = self.write("haproxy.cfg", text)
        harness.run(haproxy, "-c", "-f", path)
        with Gateway([haproxy, "-db", "-f", path], self.folder.name, port) as gateway:
            self.one_dies_one_drains(gateway.address)


if __name__ == "__main__":
    harness.main()
