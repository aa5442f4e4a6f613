"""The example for Node, with @grpc/grpc-js. No Debian package has that: the test runs where EMBERGATE_NODE_MODULES names a
node_modules folder that holds it, or `npm install` was run in tests/clients/node; else it is skipped."""
import os
import shutil
import unittest

import stubs

harness = stubs.harness
MODULES = os.environ.get("EMBERGATE_NODE_MODULES") or os.path.join(stubs.HERE, "node", "node_modules")


class NodeClientTest(unittest.TestCase):
    def test_the_example_streams_an_answer(self):
        prompt = "Why is the sea salty?"
        with harness.Folder(prefix="embergate-node-") as folder, harness.Server("--context", "512") as server:
            # Modules are looked for beside the program.
            shutil.copy(os.path.join(stubs.HERE, "node", "generate.mjs"), folder)
            os.symlink(os.path.abspath(MODULES), os.path.join(folder, "node_modules"))
            result = harness.run(NODE, os.path.join(folder, "generate.mjs"), server.address, prompt, stubs.PROTOS)
            self.assertTrue(result.stdout.startswith(stubs.answer_of(server, prompt)), result.stdout)
            self.assertIn("prefill_seconds", result.stdout)

    def test_readme_shows_it(self):
        stubs.check_readme(self, "js", "node", "generate.mjs")


if __name__ == "__main__":
    NODE = harness.need("node", package="nodejs")
    for module in "grpc-js", "proto-loader":
        if not os.path.isdir(os.path.join(MODULES, "@grpc", module)):
            harness.skip("@grpc/%s is not in %s (npm; set EMBERGATE_NODE_MODULES)" % (module, MODULES))
    harness.main()
