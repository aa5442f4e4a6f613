"""Three boards, each in a network namespace of its own, behind nginx, behind HAProxy, and asked by gRPC clients that
balance themselves (deploy/gateway/service_config.json), all at once. One board is killed and comes back, another drains
and comes back: no request is lost, every answer is the same, and whoever comes back gets work again from all sides."""
import collections
import os
import signal
import sys
import threading
import unittest

import harness
import network

sys.path.insert(0, os.path.join(harness.SOURCE, "tests", "clients"))
import stubs  # noqa: E402

stubs.need_grpc()
network.enter()
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # programs are started while calls run
import gateway  # noqa: E402
import grpc  # noqa: E402

STUBS = harness.Folder(prefix="embergate-stubs-")
stubs.make_python(STUBS.name)
sys.path.insert(0, STUBS.name)
from embergate.v1 import generate_pb2, inference_pb2_grpc, input_pb2  # noqa: E402

PORT, METRICS_PORT = 50051, 9464
CLIENTS = 2  # of each front
TRIES = 12
PATIENCE = 90  # seconds that anything may take here; a few suffice
# How a stream ends whose board dies in the middle of an answer: UNAVAILABLE where the board itself was asked, else
# whatever gRPC makes of the gateway's RST_STREAM.
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}


class Client(threading.Thread):
    """Asks one request after another, and each again until it is answered whole."""

    def __init__(self, name, target, key):
        super().__init__(name=name)
        self.channel = grpc.insecure_channel(target, options=[
            ("grpc.service_config", gateway.read("service_config.json")), ("grpc.use_local_subchannel_pool", 1)])
        self.metadata = [("authorization", "Bearer " + key)]
        self.ended = threading.Event()
        self.texts, self.lost, self.broken = [], [], collections.Counter()

    def run(self):
        stub = inference_pb2_grpc.InferenceStub(self.channel)
        request = generate_pb2.GenerateRequest(
            text=input_pb2.TextInput(text="Hello, boards!"), sampling=generate_pb2.Sampling(seed=7),
            stopping=generate_pb2.Stopping(max_tokens=150, ignore_eos=True))
        while not self.ended.is_set() and not self.lost:
            for attempt in range(TRIES):
                try:
                    messages = list(stub.Generate(request, metadata=self.metadata, timeout=60))
                    assert messages[-1].HasField("finished")
                    self.texts.append("".join(message.delta.text for message in messages))
                    self.ended.wait(0.02)  # which leaves the machine something for others
                    break
                except grpc.RpcError as error:
                    self.broken["%s: %s" % (error.code().name, error.details())] += 1
                    if error.code() not in AGAIN or attempt == TRIES - 1:
                        self.lost.append("%s: %s" % (error.code().name, error.details()))
                        break
                    self.ended.wait(min(1, 0.05 * 2 ** attempt))
        self.channel.close()


class BoardsTest(unittest.TestCase):
    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-boards-")
        self.addCleanup(self.folder.cleanup)
        self.boards = [network.Board(number) for number in (1, 2, 3)]
        self.servers = [None] * 3
        self.fronts = {}  # name -> target
        self.gateways, self.clients = [], []
        self.keys = {}
        for name in "direct", "nginx", "haproxy":
            self.keys[name] = harness.run(harness.BINARY, "keygen", name, "--file", self.folder.file("keys")).stdout.split()[0]

    def start(self, number):
        server = harness.Server("--api-keys", self.folder.file("keys"), "--context", "256", "--slots", "4",
                                prefix=self.boards[number].enter(), host=self.boards[number].host, port=PORT,
                                metrics_port=METRICS_PORT)
        self.servers[number] = server
        self.addCleanup(server.__exit__)

    def calls(self, number):
        """Calls that the board has let in, by front."""
        found = harness.parse_metrics(harness.http_get("http://%s:%d/metrics" % (self.boards[number].host, METRICS_PORT)))
        return {labels["client"]: value for labels, value in found.get("embergate_client_requests_total", ())}

    def busy(self, number):
        """Whether calls of all fronts have reached the board since it started."""
        calls = self.calls(number)
        return all(calls.get(name, 0) > 0 for name in self.fronts)

    def go_on(self, what):
        """Waits until each client has been answered twice more."""
        before = [len(client.texts) for client in self.clients]
        harness.wait_for("more answers " + what, lambda: any(client.lost for client in self.clients) or all(
            len(client.texts) >= count + 2 for client, count in zip(self.clients, before)), PATIENCE)
        self.assertEqual([client.lost for client in self.clients if client.lost], [], what)

    def test_one_dies_one_drains_both_come_back(self):
        try:
            self.one_dies_one_drains_both_come_back()
        except BaseException:
            for client in self.clients:
                print("%s: %d answers, lost: %s, asked again after %s" % (
                    client.name, len(client.texts), client.lost or "nothing", dict(client.broken) or "nothing"))
            for number, server in enumerate(self.servers):
                print("---- log of board %d ----\n%s" % (number + 1, server.log() if server else ""))
            for front in self.gateways:
                with open(front.log) as log:
                    print("---- log of a gateway ----\n%s" % log.read())
            print("---- end ----")
            raise

    def one_dies_one_drains_both_come_back(self):
        for number in range(3):
            self.start(number)
        for server in self.servers:
            server.wait_ready(PATIENCE)
        hosts = [board.host for board in self.boards]
        self.fronts["direct"] = "ipv4:" + ",".join("%s:%d" % (host, PORT) for host in hosts)
        for port, (name, make) in enumerate((("nginx", gateway.nginx), ("haproxy", gateway.haproxy)), 50061):
            front = make(hosts, PORT, "%s:%d" % (network.HERE, port))
            if front is None:
                print("without %s, which is not installed (Debian package %s)" % (name, name))
                continue
            self.enter(front)
            self.gateways.append(front)
            self.fronts[name] = "ipv4:" + front.address
        self.clients = [Client(name, target, self.keys[name]) for name, target in self.fronts.items() for _ in range(CLIENTS)]
        for client in self.clients:
            client.start()
            self.addCleanup(client.join)
            self.addCleanup(client.ended.set)
        for number in range(3):
            harness.wait_for("calls at board %d" % (number + 1), lambda: self.busy(number), PATIENCE)

        self.servers[0].process.send_signal(signal.SIGKILL)
        self.servers[0].process.wait()
        self.go_on("after a board was killed")
        self.start(0)
        self.servers[0].wait_ready(PATIENCE)
        harness.wait_for("calls at the board that was killed", lambda: self.busy(0), PATIENCE)

        self.servers[1].process.send_signal(signal.SIGTERM)
        self.assertEqual(self.servers[1].process.wait(60), 0, "drained")
        self.go_on("after a board has drained")
        self.start(1)
        self.servers[1].wait_ready(PATIENCE)
        harness.wait_for("calls at the board that drained", lambda: self.busy(1), PATIENCE)

        for client in self.clients:
            client.ended.set()
        for client in self.clients:
            client.join()
        self.assertEqual([client.lost for client in self.clients if client.lost], [], "requests were lost")
        self.assertEqual(len({text for client in self.clients for text in client.texts}), 1, "the same seed gave different texts")
        for name, some in zip(self.fronts, zip(*[iter(self.clients)] * CLIENTS)):
            print("%s: %d answers; asked again after %s" % (name, sum(len(client.texts) for client in some), dict(
                sum((client.broken for client in some), collections.Counter())) or "nothing"))

    def enter(self, front):
        front.__enter__()
        self.addCleanup(front.__exit__)


if __name__ == "__main__":
    harness.main()
