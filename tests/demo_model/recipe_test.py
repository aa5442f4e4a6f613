"""The model card's commands: what is checked in belongs together, and the recipe works from one end to the other, with one
step of training in place of all. PyTorch is needed for the latter only."""
import filecmp
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "deploy"))
import harness  # noqa: E402


def python_with_torch():
    for python in sys.executable, "/usr/bin/python3":
        if os.path.exists(python) and subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


class RecipeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(HERE, "README.md")) as file:
            [block] = re.findall(r"^```sh\n(.*?)^```", file.read(), re.M | re.S)
        cls.train, cls.export, cls.convert = [shlex.split(line) for line in block.splitlines()]

    def setUp(self):
        self.folder = harness.Folder(prefix="embergate-recipe-")
        self.addCleanup(self.folder.cleanup)

    def test_the_file_is_made_of_the_checkpoint(self):
        program, name, checkpoint, target, *options = self.convert
        self.assertEqual((program, checkpoint, target),
                         ("build/embergate", "tests/demo_model/checkpoint", "tests/demo_model/demo.gguf"))
        made = self.folder.file("made.gguf")
        harness.run(harness.BINARY, name, os.path.join(HERE, "checkpoint"), made, *options)
        self.assertTrue(filecmp.cmp(made, os.path.join(HERE, "demo.gguf"), shallow=False), "demo.gguf is of something else")
        self.assertLess(os.path.getsize(made), 20_000_000)

    def test_the_questions_are_those_of_the_world(self):
        made = harness.run(sys.executable, os.path.join(HERE, "questions.py"), "200", timeout=300)
        with open(os.path.join(HERE, "held_out.jsonl")) as file:
            self.assertEqual(made.stdout, file.read())

    def test_training_goes_on_and_ends_in_a_model_that_the_server_computes_alike(self):
        python = python_with_torch()
        if python is None:
            self.skipTest("PyTorch is not installed (Debian packages python3-torch, libopenblas0-pthread)")
        run, out = self.folder.file("run"), self.folder.file("checkpoint")
        shutil.copytree(HERE, self.folder.file("demo_model"), ignore=shutil.ignore_patterns("*.gguf", "checkpoint"))

        def script(words, *more):
            program, path, *arguments = words
            self.assertEqual((program, os.path.dirname(path)), ("python3", "tests/demo_model"))
            arguments = [{"RUN": run, "tests/demo_model/checkpoint": out}.get(word, word) for word in arguments]
            return harness.run(python, self.folder.file("demo_model", os.path.basename(path)), *arguments, *more, timeout=200)
        script(self.train, "--steps", "1")
        result = script(self.train, "--steps", "2", "--workers", "1")
        self.assertIn("step 2 of 2", result.stdout)
        with open(os.path.join(run, "log.txt")) as log:
            self.assertEqual(re.findall(r"^step (\d+)", log.read(), re.M), ["1", "2"], "it did not go on")
        script(self.export)
        made = self.folder.file("made.gguf")
        harness.run(harness.BINARY, "convert", out, made, "--weights", "f32")
        result = script(["python3", "tests/demo_model/check_parity.py", "--run", run], "--gguf", made, "--embergate",
                        harness.BINARY, "--count", "8")
        self.assertIn("rendered and tokenised alike", result.stdout)
        script(["python3", "tests/demo_model/evaluate.py", "--run", run], "--count", "8")


if __name__ == "__main__":
    harness.main()
