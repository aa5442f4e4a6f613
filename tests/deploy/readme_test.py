"""What the documentation tells people to type works: every `build/embergate` of the README's `sh` blocks is run here, in
the order of the page, on the demo model, or named below with the reason why it cannot be. What is not run is listed."""
import json
import os
import re
import shlex
import unittest

import harness

DEMO = os.path.join(harness.SOURCE, "tests", "demo_model", "demo.gguf")
TOOLS = os.path.join(harness.SOURCE, "tests", "demo_model", "tools.json")
CHECKPOINT = os.path.join(harness.SOURCE, "tests", "demo_model", "checkpoint")

# Beginnings of commands that are not run here, and why.
NOT_HERE = {
    "deploy/quickstart.sh": "quickstart_test runs it",
    "tests/run.sh": "it runs this test",
    "hf download": "needs the network",
    "docker": "needs Docker; image_test makes the image's file system",
    "MODELS=": "needs Docker; files_test reads the compose file",
    "(cd build && cpack": "package_test makes the package",
    "sudo": "changes the machine",
    "node": "needs a package of npm",
    "build/embergate synth e2b.gguf": "writes 3.8 GB",
    "build/embergate bench e2b.gguf": "needs the file of the line before",
    "build/embergate serve --model models/": "needs a released model",
    "build/embergate keygen": "operator_test and access_test do",
    "build/embergate serve --model MODEL.gguf --listen 0.0.0.0": "needs a certificate; operator_test has one",
}
# Names in the README that stand for a file of the reader's.
FILES = {"MODEL.gguf": DEMO, "model.gguf": DEMO, "tools.json": TOOLS, "tests/demo_model/tools.json": TOOLS,
         "gemma-4-E2B-it": CHECKPOINT}
WRITTEN = ("finished.gguf", "gemma-4-e2b-it.gguf", "trip.json")  # what the commands make
TALK = {"messages": [{"role": "user", "content": "What is 4 + 3?"}], "tools": []}
INPUT = {"chat": "Hello\n/quit\n"}
# What ends a command that goes on until it is stopped.
MORE = {"top": ["--once", "--interval", "0.1"]}


def commands(path):
    """Each command of the page's `sh` blocks, continued lines joined, comments and output left out."""
    with open(path) as file:
        text = file.read()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#( .*)?$", "", line).strip()
            if line and not line.startswith("#"):
                yield line


def reason_not_to(command):
    for beginning, reason in NOT_HERE.items():
        if command.startswith(beginning):
            return reason
    return None if command.startswith("build/embergate ") else "another program"


class ReadmeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = list(commands(os.path.join(harness.SOURCE, "README.md")))

    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-readme-")
        self.addCleanup(self.folder.cleanup)
        with open(self.folder.file("talk.json"), "w") as file:
            json.dump(TALK, file)

    def arguments(self, command):
        words = shlex.split(command)
        out = []
        for word in words[1:]:
            if word in FILES:
                out.append(FILES[word])
            elif word in WRITTEN or word == "talk.json":
                out.append(self.folder.file(word))
            else:
                out.append(word)
        return out + MORE.get(words[1], [])

    def test_the_page_has_commands_and_each_reason_is_needed(self):
        self.assertGreater(len(self.all), 20)
        for beginning in NOT_HERE:
            self.assertTrue(any(command.startswith(beginning) for command in self.all), beginning + " is not in the README")

    def test_commands_do_what_the_page_says(self):
        ran, left = [], []
        server = self.serve("--model", DEMO)  # as deploy/quickstart.sh --keep leaves one
        for command in self.all:
            reason = reason_not_to(command)
            if reason:
                left.append("%s (%s)" % (command, reason))
                continue
            words = shlex.split(command)
            arguments = self.arguments(command)
            if words[1] == "serve":
                server.stop()  # one after the other, as the page's reader would have them
                server = self.serve(*arguments[1:])
            else:
                with self.subTest(command=command):
                    self.run_client(words[1], arguments, server)
            ran.append(command)
        print("%d commands run; not run here:\n  %s" % (len(ran), "\n  ".join(left)))
        self.assertGreater(len(ran), 15)

    def serve(self, *arguments):
        server = harness.Server(*arguments, "--context", "4096", "--slots", "8", "--threads", "2")
        self.addCleanup(server.__exit__)
        return server.wait_ready()

    def run_client(self, name, arguments, server):
        env = {**os.environ, "XDG_STATE_HOME": self.folder.name, "HOME": self.folder.name,
               "EMBERGATE_ADDRESS": server.address}
        if name == "top":
            arguments = [*arguments, "--metrics", "127.0.0.1:%d" % server.metrics_port]
        result = harness.run(harness.BINARY, *arguments, check=False, env=env, input=INPUT.get(name, ""), timeout=100)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertTrue(result.stdout.strip() or result.stderr.strip(), "it says nothing")


if __name__ == "__main__":
    harness.main()
