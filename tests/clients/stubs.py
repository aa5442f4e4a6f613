"""What the tests of clients share: Python stubs made from the .proto files, the examples, and how README shows them."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "deploy"))
import harness  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
PROTOS = os.path.join(harness.SOURCE, "proto")


def need_grpc():
    """Goes on in Debian's interpreter where this one has no gRPC; ends the test as skipped where none has."""
    try:
        import google.protobuf  # noqa: F401
        import grpc  # noqa: F401
    except ImportError:
        system = "/usr/bin/python3"
        if os.path.exists(system) and not os.path.samefile(sys.executable, system) and "CLIENTS_TEST_AGAIN" not in os.environ:
            os.environ["CLIENTS_TEST_AGAIN"] = "1"
            os.execv(system, [system, *sys.argv])
        harness.skip("gRPC for Python is not installed (Debian packages python3-grpcio, python3-protobuf)")


def make_python(folder):
    """Stubs of embergate.v1, and of what lies beside it, into `folder`: health_pb2, reflection_pb2, status_pb2, ..."""
    protoc = harness.need("protoc", package="protobuf-compiler")
    plugin = harness.need("grpc_python_plugin", package="protobuf-compiler-grpc")
    ours = os.path.join(PROTOS, "embergate", "v1")
    names = ["embergate/v1/" + name for name in sorted(os.listdir(ours)) if name.endswith(".proto")]
    for root, files in ((PROTOS, names), (os.path.join(PROTOS, "grpc", "health", "v1"), ["health.proto"]),
                        (os.path.join(PROTOS, "google", "rpc"), ["status.proto", "error_details.proto"]),
                        (os.path.join(HERE, "python"), ["reflection.proto"])):
        harness.run(protoc, "-I", root, "--python_out=" + folder, "--grpc_out=" + folder,
                    "--plugin=protoc-gen-grpc=" + plugin, *files)


def read(*names):
    with open(os.path.join(HERE, *names)) as file:
        return file.read()


def answer_of(server, prompt):
    """What the examples have to print: the same request from the command line."""
    return harness.run(harness.BINARY, "generate", "--address", server.address, "--chat", "--prompt", prompt, "--seed", "1",
                       "--max-tokens", "100").stdout.rstrip("\n")


def readme_blocks(language):
    with open(os.path.join(harness.SOURCE, "README.md")) as file:
        return re.findall(r"```%s\n(.*?)```" % language, file.read(), re.DOTALL)


def unindented(text):
    return "\n".join(line.strip() for line in text.strip().splitlines())


def check_readme(test, language, *names):
    """That README shows the example, or a part of it, as it is tested."""
    blocks = readme_blocks(language)
    test.assertTrue(blocks and all(unindented(block) in unindented(read(*names)) for block in blocks),
                    "the %s blocks of README.md are not part of %s" % (language, "/".join(names)))
