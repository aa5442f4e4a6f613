"""nginx and HAProxy with the configurations of deploy/gateway, in front of a test's servers."""
import os
import subprocess

import harness


def read(name):
    with open(os.path.join(harness.DEPLOY, "gateway", name)) as file:
        return file.read()


def placed(text, hosts, port):
    """A gateway's configuration with the boards of this test in place of board1 to board3."""
    for i, host in enumerate(hosts):
        assert "board%d:50051" % (i + 1) in text
        text = text.replace("board%d:50051" % (i + 1), "%s:%d" % (host, port))
    return text


class Gateway:
    """A running gateway; `address` is where it listens."""

    def __init__(self, command, folder, address):
        self.log = folder.file("log")
        self.folder = folder
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.address = address

    def __enter__(self):
        def serves():
            if self.process.poll() is not None:
                with open(self.log) as log:
                    raise AssertionError("the gateway ended:\n" + log.read())
            return harness.run(harness.BINARY, "health", "--address", self.address, check=False).returncode == 0
        try:
            harness.wait_for("the gateway", serves, 60, 0.2)
        except BaseException:
            with open(self.log) as log:
                print("---- log of the gateway ----\n%s---- end ----" % log.read())
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


def write(folder, name, text):
    path = folder.file(name)
    with open(path, "w") as file:
        file.write(text)
    return path


def nginx(hosts, port, address):
    """None where nginx is not installed. The servers listen on `port` of each of `hosts`."""
    program = harness.find("nginx")
    if not program:
        return None
    folder = harness.Folder(prefix="embergate-nginx-")
    text = placed(read("nginx.conf"), hosts, port).replace("listen 50051", "listen " + address)
    temp = "".join("%s_temp_path %s;\n" % (what, folder.file(what))
                   for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    path = write(folder, "nginx.conf", "daemon off; pid %s; error_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n%s%s}\n" % (
        folder.file("pid"), temp, text))
    harness.run(program, "-t", "-c", path, "-e", "stderr")
    return Gateway([program, "-c", path, "-e", "stderr"], folder, address)


def haproxy(hosts, port, address):
    """None where HAProxy is not installed."""
    program = harness.find("haproxy")
    if not program:
        return None
    folder = harness.Folder(prefix="embergate-haproxy-")
    path = write(folder, "haproxy.cfg", placed(read("haproxy.cfg"), hosts, port).replace("bind :50051", "bind " + address))
    harness.run(program, "-c", "-f", path)
    return Gateway([program, "-db", "-f", path], folder, address)
