"""What the deploy tests share: the binary, a tiny model, servers, Prometheus' text format, skipping."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

SOURCE = os.environ.get("EMBERGATE_SOURCE_DIR") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("EMBERGATE_BUILD_DIR") or os.path.join(SOURCE, "build")
# What is linked in to find mistakes has an allocator of its own: memory is not what a release takes.
SANITIZED = bool(os.environ.get("EMBERGATE_SANITIZE"))
BINARY = os.environ.get("EMBERGATE_BINARY") or os.path.join(BUILD, "embergate")
DEPLOY = os.path.join(SOURCE, "deploy")
# Local addresses are asked directly, whatever proxy the machine has.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def skip(reason):
    """Ends the program as skipped; ctest shows the reason."""
    print("SKIPPED:", reason)
    sys.exit(77)


def find(*names):
    """The path of the first of `names` that is installed, also in the folders that are not in a user's PATH."""
    for name in names:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
        if path:
            return path
    return None


def need(*names, package=None):
    path = find(*names)
    if not path:
        skip("%s is not installed (Debian package %s)" % (names[0], package or names[0]))
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def http_get(url, timeout=10):
    with OPENER.open(url, timeout=timeout) as response:
        return response.read().decode()


def wait_for(what, condition, timeout=30, interval=0.05):
    """Calls `condition` until it gives something true, which is returned."""
    end = time.monotonic() + timeout
    while True:
        try:
            value = condition()
        except (OSError, ValueError):
            value = None
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %g s in vain for %s" % (timeout, what))
        time.sleep(interval)


def run(*args, check=True, timeout=60, **more):
    result = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, **more)
    if check and result.returncode != 0:
        raise AssertionError("%s ended with %d\n%s%s" % (" ".join(args), result.returncode, result.stdout, result.stderr))
    return result


def command_of(pid):
    """The words of a running command; where it is emulated, without the emulator."""
    with open("/proc/%s/cmdline" % pid) as file:
        words = file.read().split("\0")[:-1]
    return words[1:] if words and "/qemu-" in words[0] else words


class Folder(tempfile.TemporaryDirectory):
    def file(self, *names):
        return os.path.join(self.name, *names)


_models = None  # a folder from the first use on: a test that goes on in another interpreter leaves none behind


def model():
    """A tiny Gemma 4 with a tokenizer and random weights; made on first use."""
    global _models
    _models = _models or Folder(prefix="embergate-deploy-")
    path = _models.file("tiny.gguf")
    if not os.path.exists(path):
        run(BINARY, "synth", path, "--shape", "gemma4-tiny", "--tokenizer",
            os.path.join(SOURCE, "tests", "golden", "gemma4-tiny-e2b"))
    return path


SMALL = {"--context": "160", "--slots": "2", "--threads": "1", "--dram-budget": "256MiB"}


class Server:
    """`embergate serve` on free ports, with a tiny model and small limits where `args` say nothing else and `usual` is true;
    `prefix` is put before the command, such as another program that runs it."""

    def __init__(self, *args, prefix=(), env=None, usual=True, host="127.0.0.1", port=0, metrics_port=0):
        self.folder = Folder(prefix="embergate-server-")
        self.log_path = self.folder.file("log")
        command = [*prefix, BINARY, "serve", *args]
        more = {"--listen": "%s:%d" % (host, port), "--metrics": "%s:%d" % (host, metrics_port)}
        if usual:
            more.update(SMALL)
        for flag, value in more.items():
            if flag not in args:
                command += [flag, value]
        if usual and "--model" not in args:
            command += ["--model", model()]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=None if env is None else {**os.environ, **env})

    def log(self):
        with open(self.log_path) as log:
            return log.read()

    def wait_ready(self, timeout=30):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError("the server ended with %d\n%s" % (self.process.returncode, self.log()))
            return " ready\n" in self.log()
        wait_for("the server", ready, timeout)
        text = self.log()
        self.address = re.search(r"listening on (\S+)", text).group(1)
        self.metrics_port = int(re.search(r"metrics on port (\d+)", text).group(1))
        return self

    def metrics(self):
        return parse_metrics(http_get("http://127.0.0.1:%d/metrics" % self.metrics_port))

    def generate(self, *args, check=True, tokens=12):
        return run(BINARY, "generate", "--address", self.address, "--prompt", "Hello, board!", "--max-tokens", str(tokens),
                   "--seed", "1", "--ignore-eos", *args, check=check)

    def stop(self, timeout=20):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def end_well(self):
        """Stops it and removes what it wrote; shows its log if it did not end as it should."""
        try:
            if self.stop() != 0:
                print(self.log())
                raise AssertionError("the server did not end well")
        finally:
            self.__exit__()

    def __enter__(self):
        try:
            return self.wait_ready()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if exception and exception[0] is not None:
            print("---- log of the server ----\n%s---- end ----" % self.log())
        self.folder.cleanup()


def parse_metrics(text):
    """{name: [(labels, value), ...]} of Prometheus' text format, as far as this server writes it."""
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
        if not match:
            raise AssertionError("not a metric: " + line)
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""))
        found.setdefault(match.group(1), []).append((labels, float(match.group(3))))
    return found


def load_json(*names):
    with open(os.path.join(DEPLOY, *names)) as file:
        return json.load(file)


def main():
    if not os.access(BINARY, os.X_OK):
        raise SystemExit("there is no binary at %s; build it, or set EMBERGATE_BINARY" % BINARY)
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    if result.testsRun > 0 and len(result.skipped) == result.testsRun:
        skip("; ".join(sorted({reason for _, reason in result.skipped})))
    sys.exit(0 if result.wasSuccessful() else 1)
