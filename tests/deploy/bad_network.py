"""Two network namespaces joined by a line that this process plays: it delays, loses, repeats and reorders packets, forges
resets, and lets connections fall into silence. The kernel's own netem is not everywhere."""
import ctypes
import fcntl
import heapq
import os
import queue
import random
import select
import socket
import struct
import threading
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454ca
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891c
IFF_UP, IFF_RUNNING = 0x1, 0x40
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MTU = 1500


def _interface_request(name, rest):
    return struct.pack("16s", name.encode()) + rest.ljust(24, b"\0")


def _up(control, name, address=None):
    if address:
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(control, request, _interface_request(
                name, struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(value))))
    fcntl.ioctl(control, SIOCSIFFLAGS, _interface_request(name, struct.pack("H", IFF_UP | IFF_RUNNING)))


class Namespace:
    """A thread in a network namespace of its own, with a loopback and one interface, `line`, whose packets come out of
    `tun`. What `call` runs, and the programs started there, live in it."""

    def __init__(self, address):
        self.address = address
        self._calls = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.tun = self.call(self._enter)

    def _enter(self):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no network namespace can be made")
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, _interface_request("line", struct.pack("H", IFF_TUN | IFF_NO_PI)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _up(control, "lo")
            _up(control, "line", self.address)
        return tun

    def _run(self):
        while True:
            call = self._calls.get()
            if call is None:
                return
            function, answer = call
            try:
                answer.put((function(), None))
            except BaseException as error:  # the caller's
                answer.put((None, error))

    def call(self, function, *args, **more):
        answer = queue.Queue()
        self._calls.put((lambda: function(*args, **more), answer))
        value, error = answer.get()
        if error is not None:
            raise error
        return value

    def close(self):
        self._calls.put(None)
        self._thread.join()
        os.close(self.tun)


def _sum16(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def reset_in_place_of(packet):
    """The RST that its sender would have sent instead of this TCP packet."""
    header = (packet[0] & 15) * 4
    source, target = packet[12:16], packet[16:20]
    ports, sequence = packet[header:header + 4], packet[header + 4:header + 8]
    tcp = ports + sequence + bytes(4) + bytes([5 << 4, RST]) + bytes(6)
    checksum = _sum16(source + target + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", checksum) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + source + target
    return ip[:10] + struct.pack("!H", _sum16(ip)) + ip[12:] + tcp


class Line:
    """Joins two namespaces. What it does to packets may be set at any time; connections are named by the port of the side
    that opened them."""

    def __init__(self, one, other, seed=1):
        self.delay = 0.0        # seconds, one way
        self.jitter = 0.0       # more or less than that; packets overtake one another
        self.loss = 0.0         # parts of the packets
        self.repeat = 0.0
        self.bytes_per_second = None  # each way
        self.reset = set()      # connections whose packets become resets
        self.silent = set()     # ... are dropped
        self.seen = []          # connections in the order of their first packet
        self.counts = {"carried": 0, "lost": 0, "repeated": 0, "reset": 0, "dropped": 0}
        self._other = {one.tun: other.tun, other.tun: one.tun}
        self._random = random.Random(seed)
        self._due = []          # heap of (time, number, tun, packet)
        self._free_at = {one.tun: 0.0, other.tun: 0.0}  # when each way has sent what it was given
        self._number = 0
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        os.write(self._stop_write, b"x")
        self._thread.join()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _run(self):
        poll = select.poll()
        for fd in (*self._other, self._stop_read):
            poll.register(fd, select.POLLIN)
        while True:
            wait = None if not self._due else max(0.0, self._due[0][0] - time.monotonic())
            for fd, _ in poll.poll(None if wait is None else wait * 1000):
                if fd == self._stop_read:
                    return
                try:
                    for _ in range(64):
                        self._take(fd, os.read(fd, 65536))
                except BlockingIOError:
                    pass
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, tun, packet = heapq.heappop(self._due)
                try:
                    os.write(tun, packet)
                except OSError:
                    pass  # its queue is full: lost

    def _take(self, tun, packet):
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return  # such as IPv6's neighbour discovery
        header = (packet[0] & 15) * 4
        source, target = struct.unpack("!HH", packet[header:header + 4])
        flags = packet[header + 13]
        if flags & (SYN | ACK) == SYN and source not in self.seen:
            self.seen.append(source)
        if self.silent & {source, target}:
            self.counts["dropped"] += 1
            return
        if self.reset & {source, target} and not flags & RST:
            self.counts["reset"] += 1
            self._send(tun, reset_in_place_of(packet))
            return
        if self._random.random() < self.loss:
            self.counts["lost"] += 1
            return
        self._send(tun, packet)
        if self._random.random() < self.repeat:
            self.counts["repeated"] += 1
            self._send(tun, packet)

    def _send(self, tun, packet):
        self.counts["carried"] += 1
        begin = max(time.monotonic(), self._free_at[tun])
        if self.bytes_per_second:
            begin += len(packet) / self.bytes_per_second
        self._free_at[tun] = begin
        due = begin + self.delay + self._random.uniform(-self.jitter, self.jitter)
        self._number += 1
        heapq.heappush(self._due, (due, self._number, self._other[tun], packet))


class BadNetwork:
    """A server's side and a client's side, 10.77.0.1 and 10.77.0.2, and the line between them. OSError where the machine
    does not allow it."""

    def __init__(self):
        self.server_side = Namespace("10.77.0.1")
        try:
            self.client_side = Namespace("10.77.0.2")
        except OSError:
            self.server_side.close()
            raise
        self.line = Line(self.server_side, self.client_side)

    def close(self):
        self.line.close()
        self.client_side.close()
        self.server_side.close()
