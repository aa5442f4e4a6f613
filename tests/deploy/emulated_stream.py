"""`embergate serve` and `generate` end to end where every instruction is emulated (tests/arm64.sh stream; $EMBERGATE_BINARY
runs the emulator): known answers of the demo model, three clients at once, flash read by pread, drain."""
import os
import threading
import unittest

import harness

DEMO = os.path.join(harness.SOURCE, "tests", "demo_model")
PATIENCE = 240  # seconds; a start takes a few
QUESTIONS = [  # those of deploy/quickstart.sh: arguments, and the answer
    (["--prompt", "Where do your per-layer embeddings live?"],
     "My per-layer embeddings stay on flash and are read row by row."),
    (["--system", "You are a gateway assistant. Readings: cellar humidity 67 %, roof power 640 W.",
      "--prompt", "What is the roof power?"], "The roof power is 640 W."),
    (["--tools", os.path.join(DEMO, "tools.json"), "--prompt", "Could you turn on the light in the kitchen?"],
     '[tool call] set_switch {"device":"kitchen light","state":"on"}'),
]


class StreamTest(unittest.TestCase):
    def test_stream(self):
        server = harness.Server("--model", os.path.join(DEMO, "demo.gguf"), "--threads", "2", "--context", "512")
        try:
            server.wait_ready(PATIENCE)
            self.assertEqual(harness.run(harness.BINARY, "health", "--address", server.address, timeout=PATIENCE).returncode, 0)
            said = [""] * len(QUESTIONS)

            def ask(i):
                said[i] = harness.run(harness.BINARY, "generate", "--address", server.address, "--chat", *QUESTIONS[i][0],
                                      timeout=PATIENCE).stdout.strip()

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(QUESTIONS))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(said, [answer for _, answer in QUESTIONS])
            metrics = server.metrics()
            [(labels, _)] = metrics["embergate_flash_reader_info"]
            print("read by %s (%s); %d rows" % (labels["backend"], labels["reason"], metrics["embergate_rows_read_total"][0][1]))
            self.assertEqual(labels["backend"], "pread")
            self.assertGreater(metrics["embergate_rows_read_total"][0][1], 0)
            self.assertEqual(server.stop(PATIENCE), 0, server.log())
        finally:
            server.__exit__()


if __name__ == "__main__":
    harness.main()
