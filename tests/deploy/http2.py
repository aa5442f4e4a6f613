"""HTTP/2 by hand, for a client that does not behave: frames, and as much HPACK as sending needs."""
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 8, 7, 11


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(value, prefix_bits):
    top = (1 << prefix_bits) - 1
    if value < top:
        return bytes([value])
    out, value = [top], value - top
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes(out + [value])


def literal(name, value):
    """A header that is not to be indexed."""
    name, value = name.encode(), value.encode()
    return b"\0" + integer(len(name), 7) + name + integer(len(value), 7) + value


def request_headers(method="GetModelInfo", more=()):
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/embergate.v1.Inference/" + method),
               (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers"), *more]
    return b"".join(literal(name, value) for name, value in headers)


def message(payload=b""):
    return b"\0" + struct.pack(">I", len(payload)) + payload


class Connection:
    """A TCP connection to HOST:PORT that has sent its preface and settings, unless told not to."""

    def __init__(self, address, preface=True, timeout=20):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout)
        self.buffer = b""
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, data):
        self.socket.sendall(data)

    def _fill(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data

    def read_frame(self):
        """(kind, flags, stream, payload); EOFError or OSError when the server has closed."""
        self._fill(9)
        length = int.from_bytes(self.buffer[:3], "big")
        kind, flags = self.buffer[3], self.buffer[4]
        stream = int.from_bytes(self.buffer[5:9], "big") & 0x7fffffff
        self._fill(9 + length)
        payload, self.buffer = self.buffer[9:9 + length], self.buffer[9 + length:]
        return kind, flags, stream, payload

    def frames(self):
        """Until the server closes."""
        try:
            while True:
                yield self.read_frame()
        except (EOFError, ConnectionError):
            return

    def settle(self):
        """Reads the server's settings and acknowledges them."""
        while True:
            kind, flags, _, _ = self.read_frame()
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK))
                return self

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
