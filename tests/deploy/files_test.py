"""What can be seen in the files of deploy/ without running what they are for: they parse, name each other rightly, and
use only metrics and settings that the server has."""
import glob
import json
import os
import re
import unittest

import harness

try:
    import yaml
except ImportError:
    yaml = None


def read(*names):
    with open(os.path.join(harness.DEPLOY, *names)) as file:
        return file.read()


def documents(*names):
    if yaml is None:
        raise unittest.SkipTest("PyYAML is not installed (Debian package python3-yaml)")
    return [document for document in yaml.safe_load_all(read(*names)) if document]


class FilesTest(unittest.TestCase):
    def test_scripts_parse(self):
        for path in glob.glob(os.path.join(harness.DEPLOY, "*.sh")):
            harness.run("bash", "-n", path)
            self.assertTrue(os.access(path, os.X_OK), path)

    def test_every_yaml_and_json_parses(self):
        for path in glob.glob(os.path.join(harness.DEPLOY, "**"), recursive=True):
            if path.endswith(".json"):
                with open(path) as file:
                    json.load(file)
            elif path.endswith((".yaml", ".yml")):
                self.assertTrue(documents(os.path.relpath(path, harness.DEPLOY)), path)

    def test_every_metric_that_is_asked_for_exists(self):
        with harness.Folder() as sysfs:  # a board's sensors, which this machine may not have
            for path, text in {"class/thermal/thermal_zone0/type": "cpu", "class/thermal/thermal_zone0/temp": "50000",
                               "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1",
                               "devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1",
                               "devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1"}.items():
                os.makedirs(os.path.dirname(os.path.join(sysfs, path)), exist_ok=True)
                with open(os.path.join(sysfs, path), "w") as file:
                    file.write(text)
            with harness.Server("--sysfs", sysfs) as server:
                there = set(server.metrics())
        recorded = set(re.findall(r"record: (\S+)", read("prometheus", "recording.yml")))
        expressions = [target["expr"] for panel in harness.load_json("grafana", "embergate.json")["panels"]
                       for target in panel.get("targets", [])]
        expressions += re.findall(r"expr: (.+)", read("prometheus", "alerts.yml"))
        expressions += [read("prometheus", "recording.yml"), read("kubernetes", "autoscaling.yaml")]
        asked = set()
        for expression in expressions:
            expression = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
            asked |= set(re.findall(r"(?<![:\w])((?:embergate|process)_\w+)(?![:\w])", expression))
            for name in re.findall(r"instance:\w+:\w+", expression):
                self.assertIn(name, recorded)
        self.assertGreater(len(asked), 40)
        self.assertEqual(asked - there, set())
        # The other way round: what the server counts, an operator sees.
        hidden = {re.sub("_(bucket|sum|count)$", "", name) for name in there} - {
            re.sub("_(bucket|sum|count)$", "", name) for name in asked} - {
            # not for a graph of their own
            "embergate_build_info", "embergate_rows_requested_total", "embergate_rows_deduplicated_total",
            "embergate_rows_joined_total", "embergate_flash_wait_seconds_total"}
        if hidden:
            print("on no panel:", " ".join(sorted(name for name in hidden if name.startswith("embergate_"))))

    def test_dashboard_is_laid_out(self):
        dashboard = harness.load_json("grafana", "embergate.json")
        taken = set()
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"] + " lies over another panel")
                    taken.add((x, y))
                    self.assertLess(x, 24)

    def test_compose_refers_to_what_is_there(self):
        [compose] = documents("compose.yaml")
        services = compose["services"]
        server = services["embergate"]
        self.assertTrue(server["read_only"])
        self.assertEqual(server["cap_drop"], ["ALL"])
        [profile] = [option.split(":", 1)[1] for option in server["security_opt"] if option.startswith("seccomp:")]
        self.assertTrue(os.path.exists(os.path.join(harness.DEPLOY, profile)))
        for service in services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("./"):
                    self.assertTrue(os.path.exists(os.path.join(harness.DEPLOY, source)), source)
                elif not source.startswith("$"):
                    self.assertIn(source, compose["volumes"])
        [source] = documents("grafana", "provisioning", "datasources", "prometheus.yaml")
        self.assertEqual(source["datasources"][0]["url"], "http://prometheus:9090")
        [config] = documents("prometheus", "prometheus.yml")
        self.assertEqual(config["scrape_configs"][0]["static_configs"][0]["targets"], ["embergate:9464"])
        self.check_arguments(server["command"])

    def check_arguments(self, command):
        shown = harness.run(harness.BINARY, "serve", "--help").stdout
        self.assertEqual(command[0], "serve")
        for word in command[1:]:
            if word.startswith("--"):
                self.assertIn(word + " ", shown)

    def test_manifests_agree(self):
        objects = {document["kind"]: document for document in documents("kubernetes", "embergate.yaml")}
        self.assertEqual(set(objects), {"Namespace", "StorageClass", "PersistentVolume", "PersistentVolumeClaim",
                                        "Deployment", "Service", "PodDisruptionBudget"})
        pod = objects["Deployment"]["spec"]["template"]
        [container] = pod["spec"]["containers"]
        self.assertEqual(objects["Service"]["spec"]["selector"], pod["metadata"]["labels"])
        self.assertEqual(objects["Deployment"]["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        self.assertEqual(objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        self.assertEqual(ports, {"grpc": 50051, "metrics": 9464})
        self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
        profile = pod["spec"]["securityContext"]["seccompProfile"]["localhostProfile"]
        self.assertTrue(os.path.exists(os.path.join(harness.DEPLOY, "seccomp", profile)))
        self.check_arguments(container.get("args", ["serve"]))
        shown = harness.run(harness.BINARY, "serve", "--help").stdout
        for variable in container["env"]:
            self.assertIn("Env:" + variable["name"], shown)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        self.assertEqual(mounted, {volume["name"] for volume in pod["spec"]["volumes"]})
        for probe in "startupProbe", "readinessProbe":
            grpc = container[probe]["grpc"]
            with harness.Server() as server:
                harness.run(harness.BINARY, "health", "--address", server.address, "--service", grpc["service"])
        for name in "monitoring.yaml", "autoscaling.yaml":
            [extra] = documents("kubernetes", name)
            self.assertEqual(extra["metadata"]["namespace"], "embergate")

    def test_clients_retry_as_the_command_line_does(self):
        with open(os.path.join(harness.SOURCE, "server", "cli", "client.cc")) as file:
            ours = json.loads(re.search(r'kSpreadConfig\[\] = R"\((.*?)\)"', file.read(), re.S).group(1))
        theirs = harness.load_json("gateway", "service_config.json")
        self.assertEqual(theirs.pop("loadBalancingConfig"), [{"round_robin": {}}])
        self.assertEqual(theirs, ours)

    def test_everything_outlasts_the_drain(self):
        drain = float(re.search(r"--drain-timeout .*=(\d+)", harness.run(harness.BINARY, "serve", "--help").stdout).group(1))
        self.assertGreater(int(re.search(r"TimeoutStopSec=(\d+)", read("systemd", "embergate.service")).group(1)), drain)
        self.assertGreater(int(re.search(r"stop_grace_period: (\d+)s", read("compose.yaml")).group(1)), drain)
        self.assertGreater(int(re.search(r"terminationGracePeriodSeconds: (\d+)", read("kubernetes", "embergate.yaml"))
                               .group(1)), drain)


if __name__ == "__main__":
    harness.main()
