"""`embergate plan` against the server: what it says fits is served inside that budget, and what it suggests works."""
import json
import os
import re
import unittest

import harness

MIB = 1 << 20


def plan(ram, *args, check=True):
    return harness.run(harness.BINARY, "plan", harness.model(), "--board-ram", str(ram), "--system", "0", *args, check=check)


class PlanTest(unittest.TestCase):
    def test_what_fits_is_served(self):
        found = json.loads(plan(512 * MIB, "--json", "--board", "pi5").stdout)
        self.assertEqual([fit["slots"] for fit in found["fits"]], [1, 2, 4, 8])
        for fit in found["fits"][-1:]:
            budget = fit["dram_bytes"]
            tight = next(entry for entry in json.loads(plan(budget, "--json").stdout)["fits"]
                         if entry["slots"] == fit["slots"])
            self.assertEqual(tight["context"], fit["context"])
            with harness.Server("--dram-budget", str(budget), "--slots", str(fit["slots"]), "--context",
                                str(fit["context"])) as server:
                held = sum(value for _, value in server.metrics()["embergate_dram_bytes"])
                self.assertLessEqual(held, budget)
                self.assertGreater(held, 0.8 * budget, "the plan asks for far more than is held")
                server.generate()

    def test_its_suggestion_works(self):
        shown = plan(256 * MIB).stdout
        command = re.search(r"^  embergate serve (.*)$", shown, re.M).group(1).split()
        with harness.Server(*command) as server:
            server.generate()

    def test_too_small_a_board(self):
        result = plan(20 * MIB, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("does not fit", result.stdout)
        self.assertRegex(result.stderr, "needs .* more than there is")

    def test_bad_input(self):
        for args in (["--board", "pi3"], ["--kv-type", "f64"], ["--row-cache", "lots"]):
            result = plan(512 * MIB, *args, check=False)
            self.assertNotIn(result.returncode, (0, 1), args)
        self.assertEqual(harness.run(harness.BINARY, "plan", "/nowhere.gguf", check=False).returncode, 2)
        self.assertEqual(harness.run(harness.BINARY, "plan", harness.model(), "--board-ram", "100MiB", check=False)
                         .returncode, 2, "nothing left beside --system")

    def test_measured_rates_are_kept_and_used(self):
        with harness.Folder() as folder:
            state = os.path.join(folder, "new", "machine.json")
            self.assertIn("not known", plan(512 * MIB, "--state", state).stdout)
            measured = json.loads(harness.run(harness.BINARY, "bench", "--machine", "--json", "--threads", "1", "--state",
                                              state).stdout)
            used = json.loads(plan(512 * MIB, "--state", state, "--json").stdout)
            self.assertEqual(used["read_bytes_per_second"], measured["machine_read_bytes_per_second"])
            self.assertIn("measured here", used["rates_from"])
            self.assertGreater(used["fits"][0]["decode_tokens_per_second"], 0)


if __name__ == "__main__":
    harness.main()
