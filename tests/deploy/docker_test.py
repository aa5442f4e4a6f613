"""README's commands for Docker and Compose, run by a Docker engine of the test's own (Debian's docker.io) in a network and
among processes of its own. The image has the Dockerfile's last stage and this build's binary; tests/image.sh builds all of
it. Skipped where Docker is not installed or does not start."""
import json
import os
import re
import resource
import shutil
import subprocess
import time
import unittest

import harness
import network

if os.geteuid() != 0:
    harness.skip("needs root, to start Docker")
for program in "dockerd", "docker", "iptables":
    harness.need(program, package={"iptables": "iptables"}.get(program, "docker.io"))
network.enter(processes=True)

PATIENCE = 90  # seconds
SOCKET = "unix:///run/docker-test.sock"
ENV = {**os.environ, "DOCKER_HOST": SOCKET, "DOCKER_BUILDKIT": "0", "MODELS": "models", "MODEL": "gemma-4-e2b-it.gguf"}


def readme_commands(heading):
    """The commands of the first block under a bold heading, each on a line."""
    with open(os.path.join(harness.SOURCE, "README.md")) as file:
        text = file.read()
    block = re.search(r"```sh\n(.*?)```", text[text.index(heading):], re.S).group(1)
    return block.replace("\\\n", " ").strip().split("\n")


class DockerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.Folder(prefix="embergate-docker-")
        cls.addClassCleanup(shutil.rmtree, cls.folder.name, ignore_errors=True)
        cls.log_path = cls.folder.file("dockerd.log")
        with open(cls.log_path, "w") as log:
            cls.daemon = subprocess.Popen(
                ["dockerd", "--host", SOCKET, "--data-root", cls.folder.file("data"), "--exec-root", "/run/docker-test",
                 "--pidfile", "/run/docker-test.pid"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        cls.addClassCleanup(cls.stop_daemon)
        try:
            harness.wait_for("Docker", lambda: cls.daemon.poll() is not None or
                             cls.docker("version", check=False).returncode == 0, PATIENCE, 0.2)
        except AssertionError:
            pass
        if cls.docker("version", check=False).returncode != 0:
            with open(cls.log_path) as log:
                raise unittest.SkipTest("Docker does not start here: " + log.read().strip().split("\n")[-1])
        cls.build()
        probe = cls.docker("run", "--rm", "embergate", "--version", check=False)
        if probe.returncode != 0:
            raise unittest.SkipTest("Docker starts no container here: " + probe.stderr.strip().split("\n")[0])
        # What README's commands find where they are typed.
        os.symlink(harness.DEPLOY, cls.folder.file("deploy"))
        os.makedirs(cls.folder.file("models"))
        shutil.copy(harness.model(), cls.folder.file("models", ENV["MODEL"]))

    @classmethod
    def stop_daemon(cls):
        cls.daemon.terminate()
        try:
            cls.daemon.wait(20)
        except subprocess.TimeoutExpired:
            cls.daemon.kill()
            cls.daemon.wait()

    @classmethod
    def build(cls):
        context = cls.folder.file("context")
        harness.run("bash", os.path.join(harness.DEPLOY, "image_root.sh"), harness.BINARY, os.path.join(context, "image"))
        with open(os.path.join(harness.SOURCE, "Dockerfile")) as file:
            last = file.read().rsplit("\nFROM ", 1)[1]
        with open(os.path.join(context, "Dockerfile"), "w") as file:
            file.write("FROM " + last.replace("COPY --from=build /image/ /", "COPY image/ /"))
        cls.docker("build", "--tag", "embergate", context)

    @classmethod
    def docker(cls, *args, **more):
        return harness.run("docker", *args, env=ENV, cwd=cls.folder.name, timeout=PATIENCE, **more)

    def shell(self, command):
        return harness.run("bash", "-c", command, env=ENV, cwd=self.folder.name, timeout=PATIENCE).stdout

    def serves(self, port=50051):
        harness.wait_for("the server", lambda: harness.run(harness.BINARY, "health", "--address", "127.0.0.1:%d" % port,
                                                           check=False).returncode == 0, PATIENCE, 0.2)

    def healthy(self, name):
        """Waits until Docker's own check says so, which looks first after ten seconds."""
        def health():
            state = json.loads(self.docker("inspect", "--format", "{{json .State}}", name).stdout)
            self.assertTrue(state["Running"], self.docker("logs", name, check=False).stderr)
            return state["Health"]["Status"] == "healthy"
        harness.wait_for("Docker's health check of " + name, health, PATIENCE, 0.2)

    def ask(self, port, key=None):
        answer = json.loads(harness.run(
            harness.BINARY, "generate", "--address", "127.0.0.1:%d" % port, "--prompt", "Hello", "--max-tokens", "12", "--seed", "1",
            "--ignore-eos", "--json", env={**os.environ, **({"EMBERGATE_API_KEY": key} if key else {})}).stdout)
        return answer["text"], answer["ids"]

    def reader(self, port):
        [(labels, _)] = harness.parse_metrics(harness.http_get("http://127.0.0.1:%d/metrics" % port))["embergate_flash_reader_info"]
        return labels["backend"]

    def test_run_with_the_profile_and_without(self):
        made = self.shell("docker run --rm embergate keygen alice")
        key = made.split()[0]
        with open(self.folder.file("api-keys"), "w") as file:
            file.write(re.search(r"^alice sha256:.*$", made, re.M).group() + "\n")
        [command] = [line for line in readme_commands("**Docker.**") if line.startswith("docker run")]
        self.addCleanup(self.docker, "rm", "--force", "ours", "docker25", check=False)
        self.shell(command.replace("docker run", "docker run --detach --name ours"))
        # As with the profile that Docker has had since 25 (ours less what it adds), whichever this one has; other ports.
        profile = harness.load_json("seccomp", "embergate.json")
        self.assertIn("io_uring_setup", profile["syscalls"][0]["names"])
        del profile["syscalls"][0]
        with open(self.folder.file("docker25.json"), "w") as file:
            json.dump(profile, file)
        other, count = re.subn(r"seccomp=\S+", "seccomp=docker25.json", command)
        self.assertEqual(count, 1)
        for port in "50051", "9464":
            other = other.replace("-p %s:%s" % (port, port), "-p 1%s:%s" % (port[1:], port))
        self.shell(other.replace("docker run", "docker run --detach --name docker25"))
        self.serves()
        self.serves(10051)
        self.assertEqual((self.reader(9464), self.reader(1464)), ("io_uring", "pread"))
        self.assertEqual(self.ask(50051, key), self.ask(10051, key))
        self.assertNotEqual(harness.run(harness.BINARY, "generate", "--address", "127.0.0.1:50051", "--prompt", "x",
                                        check=False).returncode, 0, "without a key")
        state = json.loads(self.docker("inspect", "ours").stdout)[0]
        self.assertTrue(state["HostConfig"]["ReadonlyRootfs"])
        with open("/proc/%d/status" % state["State"]["Pid"]) as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertEqual((status["Uid"].split()[0], int(status["CapEff"], 16), status["NoNewPrivs"]), ("65532", 0, "1"))
        self.healthy("ours")
        for name in "ours", "docker25":
            start = time.monotonic()
            self.docker("stop", name)
            log = self.docker("logs", name).stderr
            self.assertEqual(self.docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip(), "0", log)
            self.assertRegex(log, r"draining[\s\S]*ended")
            print("%s: stopped after %.1f s" % (name, time.monotonic() - start))

    def compose(self):
        """Compose's command and a file that this version and machine can take."""
        command = ["docker", "compose"]
        if self.docker("compose", "version", check=False).returncode != 0:
            command = [harness.find("docker-compose")]
            if not command[0]:
                self.skipTest("Compose is not installed (Debian package docker-compose)")
        with open(os.path.join(harness.DEPLOY, "compose.yaml")) as file:
            text = file.read()
        if len(command) == 1:
            # Not known to Debian 12's 1.29, which also looks for this file where it is started, not beside its own.
            text = re.sub(r"(?m)^name: .*\n", "", text).replace("seccomp:seccomp/", "seccomp:deploy/seccomp/")
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            text = re.sub(r"(?m)^ +ulimits: .*\n", "", text)  # in some virtual machines root may not, nor Docker
        return command, text

    def test_compose(self):
        command, text = self.compose()
        deploy = self.folder.file("composed", "deploy")
        shutil.copytree(harness.DEPLOY, deploy)
        with open(os.path.join(deploy, "compose.yaml"), "w") as file:
            file.write(text)
        services = ["embergate"]
        if harness.find("prometheus"):
            self.prometheus_image(re.search(r"image: (prom/prometheus:\S+)", text).group(1))
            services.append("prometheus")
        else:
            print("without Prometheus, which is not installed (Debian package prometheus)")
        [line] = readme_commands("With Prometheus, Grafana, dashboard and alerts:")
        ours, count = re.subn(r"MODELS=\S+ MODEL=\S+ docker compose", " ".join(command), line)
        self.assertEqual(count, 1, line)
        env = {**ENV, "MODELS": self.folder.file("models"), "COMPOSE_PROJECT_NAME": "embergate"}

        def run(arguments):
            return harness.run("bash", "-c", arguments, env=env, cwd=self.folder.file("composed"), timeout=PATIENCE)

        base = ours.split(" up ")[0]
        self.addCleanup(run, base + " down --volumes")
        run("%s %s" % (ours, " ".join(services)))
        name = run(base + " ps --quiet embergate").stdout.strip()
        self.serves()
        self.assertEqual(self.reader_inside(name), "io_uring")
        self.ask(50051)
        if "prometheus" in services:
            def scraped():
                answer = json.loads(harness.http_get("http://127.0.0.1:9090/api/v1/query?query=embergate_ready"))
                return [result["value"][1] for result in answer["data"]["result"]] == ["1"]
            harness.wait_for("Prometheus to have asked the server", scraped, PATIENCE, 0.2)
            rules = json.loads(harness.http_get("http://127.0.0.1:9090/api/v1/rules"))["data"]["groups"]
            self.assertTrue(any(rule["name"] == "EmbergateHot" for group in rules for rule in group["rules"]))
        run(base + " stop")
        self.assertEqual(self.docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip(), "0")

    def reader_inside(self, name):
        """Compose publishes the metrics to its own network only."""
        networks = json.loads(self.docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", name).stdout)
        [address] = [network["IPAddress"] for network in networks.values()]
        text = harness.http_get("http://%s:9464/metrics" % address)
        [(labels, _)] = harness.parse_metrics(text)["embergate_flash_reader_info"]
        return labels["backend"]

    def prometheus_image(self, name):
        """Debian's Prometheus under the name of the image that cannot be fetched here."""
        program = os.path.realpath(harness.find("prometheus"))
        context = self.folder.file("prometheus")
        needed = re.findall(r"(/\S+) \(0x", harness.run("ldd", program).stdout)
        for path, place in [(program, "/bin/prometheus")] + [(path, path) for path in needed]:
            os.makedirs(os.path.dirname(context + "/root" + place), exist_ok=True)
            shutil.copy(path, context + "/root" + place)
        with open(os.path.join(context, "Dockerfile"), "w") as file:
            file.write('FROM scratch\nCOPY root/ /\nENTRYPOINT ["/bin/prometheus"]\n')
        self.docker("build", "--tag", name, context)


if __name__ == "__main__":
    harness.main()
