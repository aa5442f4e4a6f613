"""Dashboard, recording rules and alerts against a real Prometheus that scrapes real servers.

Every query of every panel has to return data. Every alert is fired and cleared: at its real thresholds by promtool on
made-up series (alerts_test.yml), and, where a fault can be made in seconds, in a real server: heat, throttling, a full
queue, refusals, a truncated model file, refused io_uring, a killed process, slow answers. For the latter, times are
shortened (5 minutes are 3 seconds) and the thresholds of the four alerts on slowness are lowered to what a tiny model
reaches.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import unittest
import urllib.parse

import harness

RULES = ("recording.yml", "alerts.yml")
LOWERED = {
    "instance:embergate_step_flash_wait:ratio > 0.2": "instance:embergate_step_flash_wait:ratio > 0",
    "instance:embergate_flash_read_latency_seconds:p99 > 0.05": "instance:embergate_flash_read_latency_seconds:p99 > 0",
    "instance:embergate_time_to_first_token_seconds:p95 > 10": "instance:embergate_time_to_first_token_seconds:p95 > 0",
    "instance:embergate_inter_token_latency_seconds:p95 > 1": "instance:embergate_inter_token_latency_seconds:p95 > 0",
}


def read(*names):
    with open(os.path.join(harness.DEPLOY, *names)) as file:
        return file.read()


def shortened(text):
    text = re.sub(r"for: \d+m", "for: 0s", text)
    text = re.sub(r"\[\d+m\]", "[3s]", text)
    for old, new in LOWERED.items():
        text = text.replace(old, new)
    return text


class Prometheus:
    def __init__(self):
        self.folder = harness.Folder(prefix="embergate-prometheus-")
        for name in RULES:
            self.write(name, shortened(read("prometheus", name)))
        self.targets({})
        self.write("prometheus.yml", """
global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}
rule_files: [recording.yml, alerts.yml]
scrape_configs:
  - job_name: embergate
    file_sd_configs: [{files: [targets.json], refresh_interval: 500ms}]
""")
        self.port = harness.free_port()
        with open(self.folder.file("log"), "w") as log:
            self.process = subprocess.Popen(
                [harness.find("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                 "--web.listen-address=127.0.0.1:%d" % self.port],
                cwd=self.folder.name, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        harness.wait_for("Prometheus", lambda: harness.http_get("http://127.0.0.1:%d/-/ready" % self.port), 30)

    def write(self, name, text):
        with open(self.folder.file(name + ".partial"), "w") as file:
            file.write(text)
        os.rename(self.folder.file(name + ".partial"), self.folder.file(name))

    def targets(self, ports):
        """{board: metrics port}"""
        self.write("targets.json", json.dumps([
            {"targets": ["127.0.0.1:%d" % port], "labels": {"instance": board}} for board, port in ports.items()]))

    def get(self, path, **query):
        answer = json.loads(harness.http_get("http://127.0.0.1:%d/api/v1/%s?%s" % (
            self.port, path, urllib.parse.urlencode(query))))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        """The samples of an instant query that are numbers."""
        return [sample for sample in self.get("query", query=expression)["result"]
                if sample["value"][1] not in ("NaN", "+Inf", "-Inf")]

    def firing(self, alert, board):
        return any(alert == found["labels"]["alertname"] and found["labels"].get("instance") == board and
                   found["state"] == "firing" for found in self.get("alerts")["alerts"])

    def close(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class Load:
    """Clients that ask one after another until stopped."""

    def __init__(self, server, clients=1, tokens=24):
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(server, tokens)) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def work(self, server, tokens):
        while not self.stopped.is_set():
            server.generate(tokens=tokens, check=False)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


class FakeSysfs:
    """A board with one thermal zone and one clock."""

    def __init__(self):
        self.folder = harness.Folder(prefix="embergate-sysfs-")
        self.set("class/thermal/thermal_zone0/type", "cpu-thermal")
        self.set("devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2400000")
        self.set("devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1500000")
        self.cool()

    def set(self, path, text):
        path = self.folder.file(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text + "\n")

    def cool(self):
        self.set("class/thermal/thermal_zone0/temp", "56000")
        self.set("devices/system/cpu/cpufreq/policy0/scaling_max_freq", "2400000")

    def heat(self):
        self.set("class/thermal/thermal_zone0/temp", "85000")
        self.set("devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1500000")


class RuleFilesTest(unittest.TestCase):
    def setUp(self):
        self.promtool = harness.find("promtool")
        if not self.promtool:
            self.skipTest("promtool is not installed (Debian package prometheus)")

    def test_files_are_valid(self):
        harness.run(self.promtool, "check", "rules", *[os.path.join(harness.DEPLOY, "prometheus", name) for name in RULES])
        harness.run(self.promtool, "check", "config", os.path.join(harness.DEPLOY, "prometheus", "prometheus.yml"))

    def test_every_alert_fires_and_clears_at_its_thresholds(self):
        with harness.Folder() as folder:
            for name in RULES:  # promtool would compare the annotations' texts, too
                with open(os.path.join(folder, name), "w") as file:
                    file.write(re.sub(r" +annotations:\n(?: {10}.*\n)+", "", read("prometheus", name)))
            tests = os.path.join(harness.SOURCE, "tests", "deploy", "alerts_test.yml")
            shutil.copy(tests, folder)
            harness.run(self.promtool, "test", "rules", "alerts_test.yml", cwd=folder)
            with open(tests) as file:
                tested = set(re.findall(r"- name: (\w+)", file.read()))
        self.assertEqual(tested, set(re.findall(r"- alert: (\w+)", read("prometheus", "alerts.yml"))))

    def test_recordings_have_the_values_that_others_look_for(self):
        with harness.Folder() as folder:
            shutil.copy(os.path.join(harness.DEPLOY, "prometheus", "recording.yml"), folder)
            shutil.copy(os.path.join(harness.SOURCE, "tests", "deploy", "recording_test.yml"), folder)
            harness.run(self.promtool, "test", "rules", "recording_test.yml", cwd=folder)

    def test_shortening_finds_its_places(self):
        text = "".join(read("prometheus", name) for name in RULES)
        for old in LOWERED:
            self.assertIn(old, text)


class LiveTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not harness.find("prometheus"):
            raise unittest.SkipTest("prometheus is not installed (Debian package prometheus)")
        cls.prometheus = Prometheus()
        cls.sysfs = FakeSysfs()

    @classmethod
    def tearDownClass(cls):
        cls.prometheus.close()

    def await_alert(self, alert, board):
        try:
            harness.wait_for(alert, lambda: self.prometheus.firing(alert, board), 20, 0.2)
        except AssertionError:
            rules = self.prometheus.get("rules")["groups"]
            shown = [rule for group in rules for rule in group["rules"] if rule["name"] == alert]
            raise AssertionError("%s does not fire for %s: %s" % (alert, board, shown))

    def await_silence(self, alert, board):
        harness.wait_for("the end of " + alert, lambda: not self.prometheus.firing(alert, board), 20, 0.2)

    def assert_silent(self, *alerts, board):
        for alert in alerts:
            self.assertFalse(self.prometheus.firing(alert, board), alert + " fires without a fault")

    def scraped(self, *boards):
        for board in boards:
            harness.wait_for("a scrape of " + board,
                             lambda: self.prometheus.query('embergate_ready{instance="%s"} == 1' % board), 20)

    def test_panels_show_data_and_slowness_alerts_fire_under_load(self):
        slowness = ["EmbergateFlashStalls", "EmbergateFlashSlow", "EmbergateSlowFirstToken", "EmbergateSlowTokens"]
        # Without a row cache every row is read, so that flash is always in use.
        with harness.Server("--sysfs", self.sysfs.folder.name, "--row-cache", "0") as server:
            self.prometheus.targets({"board": server.metrics_port})
            self.scraped("board")
            self.assert_silent(*slowness, "EmbergateDown", "EmbergateNotReady", "EmbergateHot", "EmbergateThrottled",
                               "EmbergateErrors", "EmbergateRefusing", "EmbergateNotIoUring", board="board")
            with Load(server, clients=2):
                # Time first: what a step waits may be nothing for a while when the device is quick.
                for alert in slowness:
                    self.await_alert(alert, "board")
                self.panels()
            for alert in slowness:
                self.await_silence(alert, "board")
            self.assertEqual(server.stop(), 0)

    def panels(self):
        dashboard = harness.load_json("grafana", "embergate.json")
        queries = [(panel["title"], target["expr"]) for panel in dashboard["panels"]
                   for target in panel.get("targets", [])]
        queries += [("recordings for balancers", name) for name in
                    re.findall(r"record: (vllm:\w+)", read("prometheus", "recording.yml"))]
        self.assertGreater(len(queries), 40)
        missing = dict((expression, title) for title, expression in queries)

        def all_have_data():
            for expression in list(missing):
                if self.prometheus.query(expression.replace("$__rate_interval", "3s").replace("$instance", ".+")):
                    del missing[expression]
            return not missing

        try:
            harness.wait_for("data in every panel", all_have_data, 15, 0.5)
        except AssertionError:
            self.fail("no data: %s" % missing)
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).group(1)
                self.assertTrue(self.prometheus.query(metric))
        for rule in re.findall(r"record: (\S+)", read("prometheus", "recording.yml")):
            self.assertTrue(self.prometheus.query(rule), rule)

    def test_heat_and_throttling(self):
        with harness.Server("--sysfs", self.sysfs.folder.name) as server:
            self.prometheus.targets({"warm": server.metrics_port})
            self.scraped("warm")
            self.assert_silent("EmbergateHot", "EmbergateThrottled", board="warm")
            self.sysfs.heat()
            self.await_alert("EmbergateHot", "warm")
            self.await_alert("EmbergateThrottled", "warm")
            self.sysfs.cool()
            self.await_silence("EmbergateHot", "warm")
            self.await_silence("EmbergateThrottled", "warm")

    def test_full_queue_and_refusals(self):
        with harness.Server("--slots", "1", "--queue", "2", "--context", "4096") as server:
            self.prometheus.targets({"busy": server.metrics_port})
            self.scraped("busy")
            with Load(server, clients=6, tokens=4000):
                self.await_alert("EmbergateQueueNearlyFull", "busy")
                self.await_alert("EmbergateRefusing", "busy")
            self.await_silence("EmbergateQueueNearlyFull", "busy")
            self.await_silence("EmbergateRefusing", "busy")

    def test_truncated_model_file(self):
        alerts = ["EmbergateFlashErrors", "EmbergateRowsFailed", "EmbergateErrors", "EmbergateFlashUnhealthy"]
        with harness.Folder() as folder:
            path = os.path.join(folder, "damaged.gguf")
            shutil.copy(harness.model(), path)
            with harness.Server("--model", path, "--row-cache", "0") as server:
                self.prometheus.targets({"damaged": server.metrics_port})
                self.scraped("damaged")
                self.assertEqual(server.generate().returncode, 0)
                self.assert_silent(*alerts, board="damaged")
                os.truncate(path, 4096)
                with Load(server):
                    for alert in alerts:
                        self.await_alert(alert, "damaged")
            # What the descriptions ask for: the file as it was, and a new start.
            shutil.copy(harness.model(), path)
            with harness.Server("--model", path) as server:
                self.prometheus.targets({"damaged": server.metrics_port})
                for alert in alerts:
                    self.await_silence(alert, "damaged")

    def test_io_uring_refused(self):
        prefix = [sys.executable, os.path.join(harness.SOURCE, "tests", "deploy", "under_seccomp.py"),
                  os.path.join(harness.DEPLOY, "seccomp", "embergate.json"), "--without",
                  "io_uring_enter,io_uring_register,io_uring_setup", "--"]
        with harness.Server(prefix=prefix) as server:
            self.prometheus.targets({"contained": server.metrics_port})
            self.scraped("contained")
            self.await_alert("EmbergateNotIoUring", "contained")
        with harness.Server() as server:
            if server.metrics()["embergate_flash_reader_info"][0][0]["backend"] != "io_uring":
                self.skipTest("io_uring is not available here")
            self.prometheus.targets({"contained": server.metrics_port})
            self.await_silence("EmbergateNotIoUring", "contained")

    def test_killed_server(self):
        port = harness.free_port()
        with harness.Server(metrics_port=port) as server:
            self.prometheus.targets({"mortal": port})
            self.scraped("mortal")
            self.assert_silent("EmbergateDown", board="mortal")
            server.process.send_signal(signal.SIGKILL)
            self.await_alert("EmbergateDown", "mortal")
        with harness.Server(metrics_port=port):
            self.await_silence("EmbergateDown", "mortal")


if __name__ == "__main__":
    harness.main()
