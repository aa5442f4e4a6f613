"""Draws deploy/grafana/embergate.json as an SVG from real data: a server under a minute of changing load, scraped by a
real Prometheus, every panel's own queries. Grafana itself is not needed.

  python3 tests/deploy/render_dashboard.py OUT.svg [--model MODEL.gguf] [--seconds 60]
"""
import argparse
import html
import threading
import time

import harness
import monitoring_test

UNIT = 40  # pixels of a grid row
WIDTH = 1200
COLOURS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300"]


def shown(value, unit):
    if unit == "bytes":
        for suffix in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or suffix == "GiB":
                return "%.3g %s" % (value, suffix)
            value /= 1024
    if unit == "percentunit":
        return "%.3g %%" % (value * 100)
    if unit == "s" and 0 < abs(value) < 1:
        return "%.3g ms" % (value * 1e3) if abs(value) >= 1e-3 else "%.3g us" % (value * 1e6)
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            value, unit = value / factor, suffix + {"hertz": "Hz", "Bps": "B/s"}.get(unit, "")
            return "%.3g %s" % (value, unit)
    return ("%.3g %s" % (value, {"s": "s", "hertz": "Hz", "Bps": "B/s", "iops": "/s", "reqps": "/s", "celsius": "°C"}.get(unit, ""))).strip()


def text(x, y, content, size=11, colour="#c7d0d9", anchor="start", weight="normal"):
    return '<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s" font-weight="%s">%s</text>' % (
        x, y, size, colour, anchor, weight, html.escape(content))


def label(target, metric):
    format = target.get("legendFormat") or ""
    for name, value in metric.items():
        format = format.replace("{{%s}}" % name, value)
    return format.replace("board ", "") or "value"


class Drawing:
    def __init__(self, prometheus, start, end):
        self.prometheus, self.start, self.end = prometheus, start, end
        self.parts = []

    def query(self, expression):
        return expression.replace("$__rate_interval", "4s").replace("$instance", ".+")

    def range(self, target):
        for found in self.prometheus.get("query_range", query=self.query(target["expr"]), start=self.start, end=self.end,
                                         step=max(0.5, (self.end - self.start) / 120))["result"]:
            points = [(float(at), float(value)) for at, value in found["values"] if value not in ("NaN", "+Inf", "-Inf")]
            if points:
                yield label(target, found["metric"]), points

    def panel(self, panel):
        place = panel["gridPos"]
        x, y = place["x"] * WIDTH / 24 + 3, place["y"] * UNIT + 3
        w, h = place["w"] * WIDTH / 24 - 6, place["h"] * UNIT - 6
        if panel["type"] == "row":
            self.parts.append(text(x + 4, y + 22, panel["title"], 15, "#ffffff", weight="bold"))
            return
        self.parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#181b1f" stroke="#2c3235" rx="3"/>' % (x, y, w, h))
        self.parts.append(text(x + 8, y + 17, panel["title"], 12, "#d8d9da", weight="bold"))
        unit = panel["fieldConfig"]["defaults"].get("unit", "none")
        if panel["type"] == "table":
            for i, (name, value) in enumerate(sorted(
                    (name, value) for name, value in
                    self.prometheus.get("query", query=self.query(panel["targets"][0]["expr"]))["result"][0]["metric"].items()
                    if name not in ("__name__", "job") and value)):
                self.parts.append(text(x + 8, y + 38 + i * 16, "%s: %s" % (name, value)))
        elif panel["type"] == "stat":
            value = float(self.prometheus.query(self.query(panel["targets"][0]["expr"]))[0]["value"][1])
            words = {entry: option["text"] for mapping in panel["fieldConfig"]["defaults"].get("mappings", [])
                     for entry, option in mapping["options"].items()}
            self.parts.append(text(x + w / 2, y + h / 2 + 18, words.get("%g" % value) or shown(value, unit), 28, "#73bf69", "middle", "bold"))
        else:
            self.graph(panel, x, y, w, h, unit)

    def graph(self, panel, x, y, w, h, unit):
        series = [line for target in panel["targets"] for line in self.range(target)]
        stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
        left, top, right, bottom = x + 52, y + 28, x + w - 10, y + h - 16 - 13 * min(3, (len(series) + 2) // 3)
        if stacked:
            times = sorted({at for _, points in series for at, _ in points})
            below, lines = {at: 0.0 for at in times}, []
            for name, points in series:
                for at, value in points:
                    below[at] += value
                lines.append((name, sorted((at, below[at]) for at, _ in points)))
            series = lines
        high = max((value for _, points in series for _, value in points), default=1) or 1
        for i in range(3):
            level = bottom - (bottom - top) * i / 2
            self.parts.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#2c3235"/>' % (left, level, right, level))
            self.parts.append(text(left - 4, level + 4, shown(high * i / 2, unit), 9, "#9fa7b3", "end"))
        for i, (name, points) in enumerate(series[:12]):
            colour = COLOURS[i % len(COLOURS)]
            path = " ".join("%.0f,%.1f" % (left + (right - left) * (at - self.start) / (self.end - self.start),
                                           bottom - (bottom - top) * min(1, max(0, value / high))) for at, value in points)
            self.parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.3"/>' % (path, colour))
            if i < 9:
                at_x, at_y = x + 10 + (i % 3) * (w / 3), bottom + 15 + 13 * (i // 3)
                self.parts.append('<rect x="%.1f" y="%.1f" width="8" height="3" fill="%s"/>' % (at_x, at_y - 4, colour))
                self.parts.append(text(at_x + 12, at_y, name[:int(w / 3 / 5.5)], 9, "#9fa7b3"))

    def svg(self, dashboard):
        for panel in dashboard["panels"]:
            self.panel(panel)
        height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"]) * UNIT
        return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif">\n'
                '<rect width="100%%" height="100%%" fill="#111217"/>\n%s\n</svg>\n' % (WIDTH, height, "\n".join(self.parts)))


def load(server, seconds, clients, tokens):
    """Clients that come one after another and go in the same way, now and then more than there are places for."""
    end = time.monotonic() + seconds

    def work(number):
        time.sleep(seconds * 0.08 * number)
        while time.monotonic() < end - seconds * 0.05 * number:
            harness.run(harness.BINARY, "generate", "--address", server.address, "--max-tokens", str(tokens), "--ignore-eos",
                        "--prompt", "The sea is %d times as large as the land. " % (number + 2) * 3, check=False, timeout=600)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--model", default=None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--budget", default="192MiB")
    parser.add_argument("--row-cache", default="32KiB")
    args = parser.parse_args()
    sysfs = monitoring_test.FakeSysfs()  # machines without sensors; a board's own would do
    prometheus = monitoring_test.Prometheus()
    try:
        model = args.model or harness.model()
        with harness.Server("--model", model, "--slots", "4", "--queue", "2", "--context", "4096", "--dram-budget",
                            args.budget, "--row-cache", args.row_cache, "--threads", "2", "--sysfs",
                            sysfs.folder.name) as server:
            prometheus.targets({"board": server.metrics_port})
            harness.wait_for("a scrape", lambda: prometheus.query("embergate_ready == 1"), 30)
            start = time.time()
            load(server, args.seconds, args.clients, args.tokens)
            svg = Drawing(prometheus, start, time.time()).svg(harness.load_json("grafana", "embergate.json"))
    finally:
        prometheus.close()
    with open(args.out, "w") as file:
        file.write(svg)


if __name__ == "__main__":
    main()
