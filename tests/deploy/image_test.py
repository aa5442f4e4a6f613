"""The container image's file system, laid out from the binary at hand or built by tests/image.sh, and run as a container
would: as another user, on a read-only root, without capabilities, with the model on a mount of its own."""
import json
import os
import re
import shutil
import subprocess
import unittest

import harness

# Mounts are those of the test's own namespace, and go with it.
ENTER = """
set -e
root=$1 model=$2
shift 2
mount --bind "$root" "$root"
mount --bind "$(dirname "$model")" "$root/models"
mount -o remount,bind,ro "$root/models"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot --userspec 65532:65532 "$root" "$@"
"""


# Machines of ELF files, and Debian's words for them.
ARCHITECTURES = {62: "amd64", 183: "arm64"}


def dockerfile(name="Dockerfile"):
    with open(os.path.join(harness.SOURCE, name)) as file:
        return file.read()


def version():
    with open(os.path.join(harness.SOURCE, "CMakeLists.txt")) as file:
        return re.search(r"project\(embergate VERSION ([\d.]+)", file.read()).group(1)


def environment():
    """ENV of the Dockerfile."""
    block = re.search(r"^ENV ((?:.*\\\n)*.*)$", dockerfile(), re.M).group(1)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.Folder(prefix="embergate-image-")
        cls.root = os.environ.get("EMBERGATE_IMAGE_ROOT")
        if not cls.root:
            cls.root = cls.folder.file("root")
            harness.run("bash", os.path.join(harness.DEPLOY, "image_root.sh"), harness.BINARY, cls.root)
        os.makedirs(os.path.join(cls.root, "proc"), exist_ok=True)
        os.chmod(cls.folder.name, 0o755)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def files(self):
        for folder, _, names in os.walk(self.root):
            for name in names:
                yield os.path.join(folder, name)

    def test_small_and_without_a_shell(self):
        programs = [path for path in self.files()
                    if os.access(path, os.X_OK) and not os.path.islink(path) and "/lib" not in path[len(self.root):]]
        self.assertEqual(programs, [os.path.join(self.root, "usr/bin/embergate")])
        # The Dockerfile leaves oneDNN out, which is most of it.
        self.assertIn("-DEMBERGATE_WITH_ONEDNN=OFF", dockerfile())
        total = sum(os.lstat(path).st_size for path in self.files() if "/libdnnl" not in path)
        print("image: %.1f MB without oneDNN" % (total / 1e6))
        if not harness.SANITIZED:
            self.assertLess(total, 60e6)

    def test_bill_of_materials(self):
        with open(os.path.join(self.root, "usr/share/embergate/sbom.spdx.json")) as file:
            document = json.load(file)
        self.assertEqual(document["spdxVersion"], "SPDX-2.3")
        names = {package["name"] for package in document["packages"]}
        for name in ("embergate", "libc6", "liburing2"):
            self.assertIn(name, names)
        self.assertTrue(any(name.startswith("libgrpc") for name in names), names)
        ids = {package["SPDXID"] for package in document["packages"]} | {"SPDXRef-DOCUMENT"}
        self.assertEqual(len(ids), len(names) + 1)
        for relation in document["relationships"]:
            self.assertIn(relation["spdxElementId"], ids)
            self.assertIn(relation["relatedSpdxElement"], ids)
        with open(os.path.join(self.root, "usr/bin/embergate"), "rb") as binary:
            architecture = ARCHITECTURES[int.from_bytes(binary.read(20)[18:], "little")]
        for package in document["packages"]:
            name = package["name"]
            self.assertTrue(os.path.exists(os.path.join(self.root, "usr/share/doc", name, "copyright")), name)
            if name == "embergate":
                self.assertEqual(package["versionInfo"], version())
                continue
            [reference] = package["externalRefs"]
            self.assertRegex(reference["referenceLocator"], r"\Apkg:deb/debian/%s@%s\?arch=%s&upstream=\S+\Z" % (
                re.escape(name), re.escape(package["versionInfo"]), architecture))
            self.assertRegex(package["versionInfo"], r"\A\d")

    def test_dockerfile_says_what_a_container_needs(self):
        final = dockerfile().rsplit("FROM ", 1)[1]
        self.assertRegex(final, r"\AAS|\Ascratch")
        for line in ('USER 65532:65532', 'STOPSIGNAL SIGTERM', 'ENTRYPOINT ["/usr/bin/embergate"]', 'CMD ["serve"]',
                     'CMD ["/usr/bin/embergate", "health"]'):
            self.assertIn(line, final)
        self.assertIn('org.opencontainers.image.version="%s"' % version(), final)

    def test_both_dockerfiles_make_the_same_image(self):
        here, cross = (re.split(r"^FROM ", dockerfile(name), flags=re.M)[1:]
                       for name in ("Dockerfile", "deploy/arm64.Dockerfile"))
        self.assertEqual((len(here), len(cross)), (2, 2))
        self.assertEqual(here[1], cross[1])
        copied = [set(re.findall(r"^COPY (.*) \S+$", stage, re.M)) for stage in (here[0], cross[0])]
        self.assertEqual(copied[1] ^ copied[0], {"CMakeLists.txt", "CMakeLists.txt CMakePresets.json"})
        flags = [set(re.findall(r"-DEMBERGATE_\w+=\w+", stage)) for stage in (here[0], cross[0])]
        self.assertEqual(*flags)

    def test_dockerfile_copies_what_the_build_needs(self):
        before, command = re.split(r"^RUN (?=cmake)", dockerfile(), flags=re.M)
        command = command.split("&&")[0].replace("\\\n", " ").strip()
        tree = self.folder.file("src")
        for source, target in re.findall(r"^COPY ([^-]\S*) (\S+)$", before, re.M):
            path, place = os.path.join(harness.SOURCE, source), os.path.join(tree, target)
            if os.path.isdir(path):
                shutil.copytree(path, place)
            else:
                os.makedirs(place, exist_ok=True)
                shutil.copy(path, place)
        self.assertIn("-DEMBERGATE_BUILD_TESTS=OFF", command)
        harness.run(*command.split(), cwd=tree, timeout=100)

    def test_runs_like_a_container(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to enter the image")
        port, metrics_port = harness.free_port(), harness.free_port()
        env = {**environment(), "EMBERGATE_MODEL": "/models/" + os.path.basename(harness.model()),
               "EMBERGATE_LISTEN": "127.0.0.1:%d" % port, "EMBERGATE_METRICS": "127.0.0.1:%d" % metrics_port,
               "EMBERGATE_CONTEXT": "160", "EMBERGATE_DRAM_BUDGET": "256MiB", "PATH": os.environ["PATH"]}
        os.chmod(os.path.dirname(harness.model()), 0o755)
        enter = ["unshare", "--mount", "--fork", "--kill-child", "bash", "-c", ENTER, "enter", self.root, harness.model()]
        if subprocess.run([*enter, "/usr/bin/embergate", "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=env).returncode != 0:
            self.skipTest("mounts are not allowed here")
        log_path = self.folder.file("log")
        with open(log_path, "w") as log:
            server = subprocess.Popen([*enter, "/usr/bin/embergate", "serve"], env=env, stdout=log, stderr=log)
        try:
            address = "127.0.0.1:%d" % port
            # As the HEALTHCHECK does it, inside.
            harness.wait_for("health", lambda: subprocess.run(
                [*enter, "/usr/bin/embergate", "health", "--address", address], env=env,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0, 20, 0.2)
            answer = harness.run(harness.BINARY, "generate", "--address", address, "--prompt", "Hello", "--max-tokens", "8",
                                 "--ignore-eos", "--json")
            self.assertEqual(len(json.loads(answer.stdout)["ids"]), 8)
            [pid] = self.servers(port)
            with open("/proc/%d/status" % pid) as file:
                status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
            self.assertEqual(status["Uid"].split()[0], "65532")
            self.assertEqual(int(status["CapEff"], 16), 0)
            os.kill(pid, 15)
            self.assertEqual(server.wait(20), 0)
        finally:
            for pid in self.servers(port):  # a change of user has undone --kill-child
                os.kill(pid, 9)
            server.kill()
            server.wait()
            with open(log_path) as log:
                text = log.read()
        self.assertIn("draining", text)
        self.assertIn("ended", text)

    def servers(self, port):
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and self.is_the_server(pid, port)]

    def is_the_server(self, pid, port):
        try:
            with open("/proc/%s/environ" % pid) as variables:
                return harness.command_of(pid) == ["/usr/bin/embergate", "serve"] and (":%d\0" % port) in variables.read()
        except OSError:
            return False


if __name__ == "__main__":
    harness.main()
