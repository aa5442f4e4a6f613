"""Boards that are machines of their own as far as the network can tell: network namespaces at a bridge."""
import os
import subprocess
import sys

import harness

HERE = "10.88.0.1"  # this program's end of the bridge
ENTERED = "EMBERGATE_TEST_NETWORK"
# Names of namespaces lie in /run; with one of its own, all of this goes when the program ends, however it ends.
PREPARE = """
set -e
mount -t tmpfs tmpfs /run
ip link set lo up
"""
BRIDGE = """
ip link add boards type bridge
ip address add %s/24 dev boards
ip link set boards up
""" % HERE
PROBE = "ip netns add probe; ip link add probe type veth peer name eth0 netns probe"


def enter(processes=False):
    """Goes on in a network of this program's own, with a bridge for boards; with `processes`, what it starts ends with
    it, too. Ends the test as skipped where that cannot be made. To be called before anything else."""
    if ENTERED in os.environ:
        return
    ip, unshare = harness.need("ip", package="iproute2"), harness.need("unshare", package="util-linux")
    command = [unshare, "--net", "--mount"]
    if processes:
        command += ["--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command += ["--map-root-user"]
    command += ["bash", "-c"]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:" + os.path.dirname(ip)
    env = {**os.environ, "PATH": path, ENTERED: "yes"}
    probe = subprocess.run([*command, PREPARE + BRIDGE + PROBE], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    if probe.returncode != 0:
        harness.skip("network namespaces cannot be made here: " + " ".join(probe.stdout.split()))
    os.execvpe(unshare, [*command, PREPARE + BRIDGE + 'exec "$@"', "enter", sys.executable, *sys.argv], env)


class Board:
    """A namespace with one cable to the bridge. Each with its own address, all with the same ports."""

    def __init__(self, number):
        self.name = "board%d" % number
        self.host = "10.88.0.%d" % (10 + number)
        harness.run("ip", "netns", "add", self.name)
        harness.run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        harness.run("ip", "link", "set", self.name, "master", "boards", "up")
        for command in (["address", "add", self.host + "/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                        ["link", "set", "lo", "up"]):
            harness.run("ip", "-n", self.name, *command)

    def enter(self):
        """What is put before a command that is to run on the board."""
        return ["nsenter", "--net=/run/netns/" + self.name]
