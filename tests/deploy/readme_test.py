"""What the documentation tells people to type works: every command of its pages, in `sh` blocks and in the text, is run
here in the order of the page, on the demo model, or named below with the reason why it is not. What is not run is
listed."""
import json
import os
import re
import shlex
import shutil
import unittest

import harness

DEMO = os.path.join(harness.SOURCE, "tests", "demo_model")

# Beginnings of commands that are not run here, and why.
NOT_HERE = {
    "deploy/quickstart.sh": "quickstart_test runs it",
    "tests/run.sh": "it runs this test",
    "tests/arm64.sh": "cross-builds; some minutes",
    "tests/image.sh": "builds an image; some minutes",
    "tests/board.sh": "boots two emulated boards; some minutes",
    "proto/pin_released.sh": "it makes a release",
    "cmake -S tests/clients/cpp": "cpp_test builds it",
    "cmake --build build --target demo_model_test": "the suite has that test",
    "cmake --preset tsan": "builds everything anew, with a sanitizer",
    "cmake --build --preset tsan": "half an hour",
    "ctest --preset tsan": "minutes, after the lines before",
    "cmake --preset fuzz": "builds everything anew, with clang",
    "cmake --build --preset fuzz": "ten minutes",
    "build-fuzz/": "minutes; the suite runs the same targets with fewer inputs",
    "python3 -m grpc_tools.protoc": "python_test makes the same stubs with Debian's protoc",
    "python3 tests/demo_model/": "needs PyTorch; recipe_test runs it where that is installed",
    "build/embergate convert tests/demo_model/checkpoint": "recipe_test does, and compares",
    "grpcurl": "python_test sends what it would, and runs it where it is installed",
    "hf download": "needs the network",
    "docker": "needs Docker; image_test makes the image's file system",
    "DOCKER_BUILDKIT=1 docker build": "a build of the server; tests/image.sh arm64 has that file's",
    "MODELS=": "needs Docker; files_test reads the compose file",
    "(cd build && cpack": "package_test makes the package",
    "cpack": "package_test makes the package",
    "sudo": "changes the machine",
    "build/embergate synth e2b.gguf": "writes 3.8 GB",
    "build/embergate bench e2b.gguf": "needs the file of the line before",
    "build/embergate serve --model models/": "needs a released model",
    "build/embergate keygen": "operator_test and access_test do",
    "build/embergate serve --model MODEL.gguf --listen 0.0.0.0": "needs a certificate; operator_test has one",
    "embergate keygen alice": "operator_test and access_test do",
    "embergate serve --model MODEL.gguf --listen 0.0.0.0": "needs a certificate; operator_test has one",
    "EMBERGATE_API_KEY=": "needs a key; access_test has one",
    "build/kernels_bench": "minutes; the suite has its --smoke",
    "OMP_NUM_THREADS=1 build/kernels_bench": "needs a build with oneDNN",
    "build/row_store_bench": "minutes; the suite has its --smoke",
    "CGROUP=": "needs llama.cpp, and root",
    "EMBERGATE_SOAK_READS=": "an hour; the suite has the test with fewer reads",
    "EMBERGATE_SOAK_SECONDS=": "an hour; the suite has the test with fewer seconds",
    "EMBERGATE_CHAOS_SECONDS=": "half an hour; the suite has the test with fewer seconds",
    "EMBERGATE_NETWORK_REQUESTS=": "the suite has the test with fewer requests",
    "EMBERGATE_LOAD_REQUESTS=": "the suite has the test with fewer requests",
    "EMBERGATE_RANDOM_REQUESTS=": "the suite has the test with fewer requests",
    "build/latency_bench": "the suite has its --smoke",
    "python3 tests/deploy/cold_start.py": "needs a model whose weights take time to read",
    "build/prefix_bench": "prefix_cache_test looks at the same",
    "tests/bench/": "needs a cgroup of its own; load_test has the load",
}
# Names in the pages that stand for a file of the reader's, and those that the commands write.
FILES = {"MODEL.gguf": "demo.gguf", "model.gguf": "demo.gguf", "tools.json": "tools.json",
         "tests/demo_model/tools.json": "tools.json", "gemma-4-E2B-it": "checkpoint", "talk.json": "talk.json"}
WRITTEN = ("finished.gguf", "gemma-4-e2b-it.gguf", "OUT.gguf", "trip.json")
# Stands for a model where a device is measured: that takes a file of some size, and no content.
LARGE, LARGE_BYTES = "large", 128 << 20
TALK = {"messages": [{"role": "user", "content": "What is 4 + 3?"}], "tools": []}
INPUT = {"chat": "Hello\n/quit\n"}
# What ends a command that goes on until it is stopped, or makes a long one short.
MORE = {"top": ["--once", "--interval", "0.1"], "storage-test": ["--seconds", "0.1"],
        "bench": ["--no-machine", "--repeat", "1", "--prefill", "64", "--tokens", "2"]}
# Commands that ask a server.
CLIENTS = ("chat", "generate", "health", "info", "load", "score", "top")
EMBERGATE = ("build/embergate", "embergate")


def pages():
    found = []
    for folder, folders, files in os.walk(harness.SOURCE):
        folders[:] = [name for name in folders if name != "node_modules" and not name.startswith(("build", "."))]
        found += [os.path.relpath(os.path.join(folder, name), harness.SOURCE) for name in files if name.endswith(".md")]
    return sorted(found)


def commands(page):
    """Each command of the page in its order: of `sh` blocks, whose continued lines are joined and comments left out, and
    of spans of code in the text that have arguments (without any it is a name)."""
    with open(os.path.join(harness.SOURCE, page)) as file:
        text = file.read()
    for language, block, span in re.findall(r"^```(\w*)\n(.*?)^```|`([^`]+)`", text, re.M | re.S):
        if re.match(r"((build/)?embergate [\w-]+|cmake|cpack|docker|node|python3|sudo|(deploy|tests)/\S+\.sh)\s", span):
            yield " ".join(span.split())
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            line = re.sub(r"\s+#( .*)?$", "", line).strip()
            if line and not line.startswith("#"):
                yield line


def reason_not_to(command):
    return next((reason for beginning, reason in NOT_HERE.items() if command.startswith(beginning)), None)


class ReadmeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pages = {page: list(commands(page)) for page in pages()}

    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-readme-")
        self.addCleanup(self.folder.cleanup)
        self.server = None

    def test_the_pages_have_commands_and_each_reason_is_needed(self):
        self.assertGreater(len(self.pages["README.md"]), 20)
        self.assertGreater(len(self.pages["deploy/operations.md"]), 2, "commands in the text")
        everything = [command for page in self.pages.values() for command in page]
        for beginning in NOT_HERE:
            self.assertTrue(any(command.startswith(beginning) for command in everything), beginning + " is nowhere")

    def test_no_command_hides_in_another_block(self):
        for page in self.pages:
            with open(os.path.join(harness.SOURCE, page)) as file:
                text = file.read()
            blocks = [block for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language != "sh"]
            blocks.append("\n".join(re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)))
            for block in blocks:
                self.assertNotRegex(block, r"(?m)^((build|deploy|tests)/|(embergate|python3|docker|cmake|sudo) )", page)

    def test_commands_do_what_the_pages_say(self):
        ran, left = set(), []
        for page, of_page in self.pages.items():
            self.bring_files()
            for command in of_page:
                reason = reason_not_to(command)
                if reason:
                    left.append("%s: %s (%s)" % (page, command, reason))
                    continue
                if command in ran:
                    continue
                for part in command.split(" && "):
                    with self.subTest(page=page, command=part):
                        self.run_command(shlex.split(part))
                ran.add(command)
            self.stop_server()
        print("%d commands run; not run here:\n  %s" % (len(ran), "\n  ".join(left)))
        self.assertGreater(len(ran), 25)

    def bring_files(self):
        for name in "demo.gguf", "tools.json":
            shutil.copy(os.path.join(DEMO, name), self.folder.file(name))
        if not os.path.exists(self.folder.file("checkpoint")):
            os.symlink(os.path.join(DEMO, "checkpoint"), self.folder.file("checkpoint"))
        with open(self.folder.file("talk.json"), "w") as file:
            json.dump(TALK, file)
        with open(self.folder.file(LARGE), "w") as file:
            file.truncate(LARGE_BYTES)

    def file_of(self, word):
        return self.folder.file(FILES.get(word, word)) if word in FILES or word in WRITTEN else word

    def run_command(self, words):
        self.assertIn(words[0], EMBERGATE, "neither run nor named in NOT_HERE")
        name, arguments = words[1], [self.file_of(word) for word in words[2:]]
        if name == "storage-test":
            arguments = [self.folder.file(LARGE) if path == self.folder.file("demo.gguf") else path for path in arguments]
        if name == "serve":
            self.serve(*arguments)
            return
        env = {**os.environ, "XDG_STATE_HOME": self.folder.name, "HOME": self.folder.name}
        if "--machine" not in arguments:
            arguments += MORE.get(name, [])
        if name in CLIENTS:
            if self.server is None:
                self.serve("--model", self.folder.file("demo.gguf"))  # as deploy/quickstart.sh --keep leaves one
            env["EMBERGATE_ADDRESS"] = self.server.address
            if name == "top":
                arguments += ["--metrics", "127.0.0.1:%d" % self.server.metrics_port]
        result = harness.run(harness.BINARY, name, *arguments, check=False, env=env, input=INPUT.get(name, ""), timeout=100)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertTrue(result.stdout.strip() or result.stderr.strip(), "it says nothing")

    def serve(self, *arguments):
        self.stop_server()  # one after the other, as the page's reader would have them
        self.server = harness.Server(*arguments, "--context", "4096", "--slots", "8", "--threads", "2")
        self.addCleanup(self.server.__exit__)
        self.server.wait_ready()

    def stop_server(self):
        if self.server is not None:
            self.server.stop()
            self.server = None


if __name__ == "__main__":
    harness.main()
