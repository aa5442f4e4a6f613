"""deploy/gateway/http_rules.yaml: each rule names an rpc that exists and fields that its request has, each rpc has a rule,
and grpc-gateway's own generator, where it is installed, takes the file."""
import glob
import os
import re
import unittest

import stubs

harness = stubs.harness
try:
    import yaml
except ImportError:
    yaml = None
stubs.need_grpc()
from google.protobuf import descriptor_pb2, descriptor_pool  # noqa: E402

RULES = os.path.join(harness.DEPLOY, "gateway", "http_rules.yaml")
FILES = ["embergate/v1/" + os.path.basename(path) for path in sorted(glob.glob(os.path.join(stubs.PROTOS, "embergate/v1/*.proto")))]
VERBS = ("get", "put", "post", "delete", "patch")


def load_pool():
    with harness.Folder() as folder:
        path = os.path.join(folder, "set")
        harness.run(harness.need("protoc", package="protobuf-compiler"), "-I", stubs.PROTOS, "--include_imports", "-o", path, *FILES)
        with open(path, "rb") as file:
            files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def has_field(message, path):
    for name in path.split("."):
        if message is None or name not in message.fields_by_name:
            return False
        message = message.fields_by_name[name].message_type
    return True


def faults(rules, pool, service):
    """What is wrong with the rules for one service, a line each."""
    found = []
    methods = pool.FindServiceByName(service).methods_by_name
    routes = set()
    for rule in rules:
        selector = rule.get("selector", "")
        owner, _, name = selector.rpartition(".")
        if owner != service or name not in methods:
            found.append("%s is no rpc of %s" % (selector, service))
            continue
        request = methods[name].input_type
        verbs = [verb for verb in VERBS if verb in rule]
        if len(verbs) != 1:
            found.append("%s: one of %s is needed" % (selector, ", ".join(VERBS)))
            continue
        path = rule[verbs[0]]
        if not re.fullmatch(r"/v1(/([\w-]+|\{[\w.]+\}))+(:\w+)?", path):
            found.append("%s: %s is no path" % (selector, path))
        if (verbs[0], path) in routes:
            found.append("%s: %s is there already" % (selector, path))
        routes.add((verbs[0], path))
        for field in re.findall(r"\{([^}=]+)", path):
            if not has_field(request, field):
                found.append("%s: the request has no field %s" % (selector, field))
        body = rule.get("body", "")
        if verbs[0] == "get" and body:
            found.append("%s: a GET has no body" % selector)
        if body not in ("", "*") and not has_field(request, body):
            found.append("%s: the request has no field %s" % (selector, body))
        # Query parameters hold scalars and strings only: all of a request that has more goes into the body.
        if verbs[0] != "get" and body != "*" and any(field.message_type for field in request.fields):
            found.append("%s: its messages would have no place" % selector)
    missing = set(methods) - {rule.get("selector", "").rpartition(".")[2] for rule in rules}
    return found + ["%s has no rule" % name for name in sorted(missing)]


class HttpRulesTest(unittest.TestCase):
    def setUp(self):
        if yaml is None:
            self.skipTest("PyYAML is not installed (Debian package python3-yaml)")
        with open(RULES) as file:
            self.config = yaml.safe_load(file)

    def test_the_rules_fit_the_api(self):
        self.assertEqual((self.config["type"], self.config["config_version"]), ("google.api.Service", 3))
        self.assertEqual(faults(self.config["http"]["rules"], load_pool(), "embergate.v1.Inference"), [])

    def test_each_fault_is_found(self):
        pool = load_pool()

        def faults_after(rpc, **changes):
            rules = [dict(rule) for rule in self.config["http"]["rules"]]
            for rule in rules:
                if rule["selector"].endswith("." + rpc):
                    rule.update(changes)
                    for key in [key for key, value in changes.items() if value is None]:
                        del rule[key]
            return faults(rules, pool, "embergate.v1.Inference")
        for rpc, changes, said in (
                ("Score", {"selector": "embergate.v1.Inference.Scores"}, "is no rpc"),
                ("Score", {"selector": "embergate.v2.Inference.Score"}, "is no rpc"),
                ("Score", {"post": "/v1/tokenize"}, "is there already"),
                ("Score", {"post": "v1/score"}, "is no path"),
                ("Score", {"post": "/v1/score/{request_name}"}, "no field request_name"),
                ("Score", {"post": "/v1/score/{text.words}"}, "no field text.words"),
                ("Score", {"body": "txt"}, "no field txt"),
                ("Score", {"body": None}, "no place"),
                ("Score", {"get": "/v1/score"}, "one of"),
                ("GetModelInfo", {"body": "*"}, "GET has no body")):
            self.assertIn(said, "\n".join(faults_after(rpc, **changes)), changes)
        self.assertEqual(faults_after("Score", post="/v1/score/{text.text}"), [])
        self.assertEqual(faults(self.config["http"]["rules"][1:], pool, "embergate.v1.Inference"), ["GenerateOnce has no rule"])

    def test_grpc_gateway_takes_them(self):
        plugin = harness.find("protoc-gen-grpc-gateway")
        if plugin is None:
            self.skipTest("protoc-gen-grpc-gateway is not installed (Debian package golang-grpc-gateway)")
        with harness.Folder() as folder:
            # Debian's version is older than proto3's `optional`, which changes nothing about paths.
            for name in FILES:
                os.makedirs(os.path.dirname(os.path.join(folder, "proto", name)), exist_ok=True)
                with open(os.path.join(stubs.PROTOS, name)) as file, open(os.path.join(folder, "proto", name), "w") as copy:
                    copy.write(re.sub(r"^(\s+)optional ", r"\1", file.read(), flags=re.MULTILINE))
            os.mkdir(os.path.join(folder, "out"))
            harness.run(harness.need("protoc", package="protobuf-compiler"), "-I", os.path.join(folder, "proto"),
                        "--plugin=protoc-gen-grpc-gateway=" + plugin,
                        "--grpc-gateway_out=grpc_api_configuration=%s:%s" % (RULES, os.path.join(folder, "out")), *FILES)
            [made] = glob.glob(os.path.join(folder, "out", "**", "*.gw.go"), recursive=True)
            with open(made) as file:
                source = file.read()
        for rule in self.config["http"]["rules"]:
            self.assertIn('mux.Handle("%s", pattern_Inference_%s_0' % (
                "GET" if "get" in rule else "POST", rule["selector"].rpartition(".")[2]), source)


if __name__ == "__main__":
    harness.main()
