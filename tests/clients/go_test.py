"""The example for Go, with Debian's packages of Go's gRPC where they are installed."""
import os
import unittest

import stubs

harness = stubs.harness
LIBRARIES = "/usr/share/gocode"


class GoClientTest(unittest.TestCase):
    def test_the_example_builds_and_streams_an_answer(self):
        prompt = "Why is the sea salty?"
        ours = os.path.join(stubs.PROTOS, "embergate", "v1")
        names = ["embergate/v1/" + name for name in sorted(os.listdir(ours)) if name.endswith(".proto")]
        with harness.Folder(prefix="embergate-go-") as folder, harness.Server("--context", "512") as server:
            source = os.path.join(folder, "src")
            os.mkdir(source)
            harness.run(PROTOC, "-I", stubs.PROTOS, "--go_out=" + source, "--go-grpc_out=" + source, *names)
            env = {**os.environ, "GOPATH": folder + ":" + LIBRARIES, "GO111MODULE": "off", "GOFLAGS": "",
                   "GOCACHE": os.path.join(harness.BUILD, "tests", "clients", "go-cache")}
            harness.run(GO, "build", "-o", os.path.join(folder, "generate"), os.path.join(stubs.HERE, "go", "generate.go"),
                        os.path.join(stubs.HERE, "go", "debian12_codec.go"), env=env, timeout=400)
            result = harness.run(os.path.join(folder, "generate"), server.address, prompt)
            self.assertTrue(result.stdout.startswith(stubs.answer_of(server, prompt)), result.stdout)
            self.assertIn("prefill_seconds", result.stdout)

    def test_readme_shows_it(self):
        stubs.check_readme(self, "go", "go", "generate.go")


if __name__ == "__main__":
    PROTOC = harness.need("protoc", package="protobuf-compiler")
    GO = harness.need("go", package="golang-go")
    for program in "protoc-gen-go", "protoc-gen-go-grpc":
        harness.need(program)
    for package in "google.golang.org/grpc", "google.golang.org/protobuf":
        if not os.path.isdir(os.path.join(LIBRARIES, "src", package)):
            harness.skip("%s is not installed (Debian packages golang-google-grpc-dev, golang-google-protobuf-dev)" % package)
    harness.main()
