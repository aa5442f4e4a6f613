"""An image that tests/image.sh has built, as buildah runs it: configuration, health check, drain, and how rows are read
with the seccomp profile and with the engine's own."""
import json
import os
import signal
import subprocess
import unittest

import harness

STORAGE = os.environ["EMBERGATE_IMAGE_STORAGE"]
BUILDAH = ["buildah", "--storage-driver", "vfs", "--root", os.path.join(STORAGE, "storage"), "--runroot",
           os.path.join(STORAGE, "run")]
PATIENCE = 120  # seconds, for an emulated server too
with open(os.environ["EMBERGATE_IMAGE_INSPECT"]) as inspected:
    IMAGE = json.load(inspected)["Docker"]


class Container:
    """A server in a container; `profile` is a seccomp profile, None the engine's own."""

    def __init__(self, profile):
        more = ["--security-opt", "seccomp=" + profile] if profile else []
        self.name = harness.run(*BUILDAH, "from", "--pull=never", *more, os.environ["EMBERGATE_IMAGE"]).stdout.strip()
        self.port, self.metrics_port = harness.free_port(), harness.free_port()
        self.folder = harness.Folder(prefix="embergate-container-")
        os.chmod(os.path.dirname(harness.model()), 0o755)
        self.command = [*BUILDAH, "run", "--isolation", "chroot", "--network", "host",
                        "--volume", os.path.dirname(harness.model()) + ":/models:ro"]
        for name, value in {"MODEL": "/models/" + os.path.basename(harness.model()), "CONTEXT": "160", "DRAM_BUDGET": "256MiB",
                            "LISTEN": "127.0.0.1:%d" % self.port, "METRICS": "127.0.0.1:%d" % self.metrics_port,
                            "ADDRESS": "127.0.0.1:%d" % self.port}.items():
            self.command += ["--env", "EMBERGATE_%s=%s" % (name, value)]
        self.command += [self.name, "--"]

    def __enter__(self):
        config = IMAGE["config"]
        with open(self.folder.file("log"), "w") as log:
            self.process = subprocess.Popen([*self.command, *config["Entrypoint"], *config["Cmd"]], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        try:
            # The image's own check, in the container.
            check = config["Healthcheck"]["Test"]
            assert check[0] == "CMD", check
            harness.wait_for("health", lambda: self.ended() or harness.run(*self.command, *check[1:], check=False,
                                                                           timeout=PATIENCE).returncode == 0, PATIENCE, 0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def ended(self):
        if self.process.poll() is not None:
            raise AssertionError("the container ended with %d\n%s" % (self.process.returncode, self.log()))
        return False

    def __exit__(self, *exception):
        for pid in self.servers():
            os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        subprocess.run([*BUILDAH, "rm", self.name], stdout=subprocess.DEVNULL)
        if exception and exception[0] is not None:
            print(self.log())
        self.folder.cleanup()

    def log(self):
        with open(self.folder.file("log")) as log:
            return log.read()

    def servers(self):
        """Its processes that serve, emulated or not."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/environ" % pid) as variables:
                    if ":%d\0" % self.port in variables.read() and harness.command_of(pid) == ["/usr/bin/embergate", "serve"]:
                        found.append(int(pid))
            except OSError:
                pass
        return found

    def status(self):
        [pid] = self.servers()
        with open("/proc/%d/status" % pid) as file:
            return pid, dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    def reader(self):
        text = harness.http_get("http://127.0.0.1:%d/metrics" % self.metrics_port)
        [(labels, _)] = harness.parse_metrics(text)["embergate_flash_reader_info"]
        return labels["backend"]

    def answer(self):
        answer = json.loads(harness.run(harness.BINARY, "generate", "--address", "127.0.0.1:%d" % self.port, "--prompt", "Hello",
                                        "--max-tokens", "12", "--ignore-eos", "--seed", "1", "--json", timeout=PATIENCE).stdout)
        return answer["text"], answer["ids"]


class BuiltImageTest(unittest.TestCase):
    def test_configuration(self):
        config = IMAGE["config"]
        self.assertEqual((config["User"], config["StopSignal"]), ("65532:65532", "SIGTERM"))
        self.assertEqual((config["Entrypoint"], config["Cmd"]), (["/usr/bin/embergate"], ["serve"]))
        self.assertIn("org.opencontainers.image.version", config["Labels"])
        self.assertEqual(config["Labels"]["dev.embergate.sbom"], "/usr/share/embergate/sbom.spdx.json")
        self.assertEqual(set(config["ExposedPorts"]), {"50051/tcp", "9464/tcp"})

    def test_serves_and_drains_with_the_profile_and_without(self):
        answers = {}
        for name, profile in (("with the profile", os.path.join(harness.DEPLOY, "seccomp", "embergate.json")), ("without", None)):
            with Container(profile) as container:
                pid, status = container.status()
                self.assertEqual(status["Uid"].split()[0], "65532")
                self.assertEqual(status["Seccomp"], "2", "no filter")
                reader = container.reader()
                answers[name] = container.answer()
                print("%s: %s" % (name, reader))
                if IMAGE["architecture"] == harness.run("dpkg", "--print-architecture").stdout.strip():
                    self.assertEqual(reader, "io_uring" if profile else "pread")
                os.kill(pid, signal.SIGTERM)
                self.assertEqual(container.process.wait(PATIENCE), 0)
                self.assertRegex(container.log(), r"draining[\s\S]*ended")
        self.assertEqual(answers["with the profile"], answers["without"])

    def test_keygen(self):
        container = harness.run(*BUILDAH, "from", "--pull=never", os.environ["EMBERGATE_IMAGE"]).stdout.strip()
        self.addCleanup(subprocess.run, [*BUILDAH, "rm", container], stdout=subprocess.DEVNULL)
        made = harness.run(*BUILDAH, "run", "--isolation", "chroot", container, "--", *IMAGE["config"]["Entrypoint"], "keygen",
                           "alice", timeout=PATIENCE)
        self.assertRegex(made.stdout + made.stderr, r"alice sha256:[0-9a-f]{64}")


if __name__ == "__main__":
    harness.main()
