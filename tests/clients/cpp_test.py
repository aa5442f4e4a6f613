"""The stand-alone C++ example: builds with CMake against the .proto files alone, and streams an answer."""
import os
import unittest

import stubs

harness = stubs.harness


class CppClientTest(unittest.TestCase):
    def test_the_example_builds_and_streams_an_answer(self):
        cmake = harness.need("cmake")
        build = os.path.join(harness.BUILD, "tests", "clients", "cpp-example")  # kept, so that a second run is quick
        harness.run(cmake, "-S", os.path.join(stubs.HERE, "cpp"), "-B", build, timeout=120)
        harness.run(cmake, "--build", build, timeout=400)
        prompt = "Why is the sea salty?"
        with harness.Server("--context", "512") as server:
            result = harness.run(os.path.join(build, "generate"), server.address, prompt)
            self.assertTrue(result.stdout.startswith(stubs.answer_of(server, prompt)), result.stdout)
            self.assertIn("prefill_seconds", result.stdout)
            refused = harness.run(os.path.join(build, "generate"), server.address, "far too long " * 200, check=False)
            self.assertEqual(refused.returncode, 1)
            self.assertIn("context", refused.stderr)

    def test_readme_shows_it(self):
        stubs.check_readme(self, "cpp", "cpp", "generate.cc")


if __name__ == "__main__":
    harness.main()
