"""`embergate chat` and `embergate top` on a terminal (a pseudo-terminal of 24 lines): what is typed, shown, coloured, kept
for the next time, and how the terminal is left."""
import fcntl
import os
import pty
import re
import select
import signal
import stat
import struct
import termios
import time
import unittest

import harness

DEMO = os.path.join(harness.SOURCE, "tests", "demo_model", "demo.gguf")
ROWS, COLUMNS = 24, 80
PROMPT = "\033[1;36m>\033[0m "
UP, CTRL_C, CTRL_D = "\033[A", "\003", "\004"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments, **more):
        self.seen = ""
        self.at = 0  # what is before was expected already
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.execve(harness.BINARY, [harness.BINARY, *arguments],
                      {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm", **more})
        self.settings = termios.tcgetattr(self.fd)

    def read(self, seconds):
        """False at the end of the command."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def expect(self, text):
        end = time.monotonic() + 60
        while text not in self.seen[self.at:]:
            if not self.read(1) or time.monotonic() > end:
                raise AssertionError("%r did not come; seen: %r" % (text, self.seen))
        self.at = self.seen.index(text, self.at) + len(text)

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect_prompt(self, text=PROMPT):
        """Until keys are read as keys: the editor shows its prompt a moment before."""
        self.expect(text)
        harness.wait_for("the editor", lambda: not termios.tcgetattr(self.fd)[3] & termios.ICANON, interval=0.01)

    def say(self, text, answer):
        self.expect_prompt()
        self.type(text + "\r")
        self.expect(answer)

    def end(self):
        """The exit code, once the command has ended; how it left the terminal is in `settings_after`."""
        end = time.monotonic() + 60
        while self.read(1):
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        self.pid = None
        self.settings_after = termios.tcgetattr(self.fd)
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


class TerminalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server("--model", DEMO, "--context", "4096").wait_ready()
        cls.addClassCleanup(cls.server.__exit__)

    def setUp(self):
        self.state = harness.Folder(prefix="embergate-terminal-")
        self.addCleanup(self.state.cleanup)

    def open(self, *arguments, **more):
        terminal = Terminal(*arguments, XDG_STATE_HOME=self.state.name, EMBERGATE_ADDRESS=self.server.address, **more)
        self.addCleanup(terminal.close)
        return terminal

    def test_chat_has_a_history_that_lasts(self):
        chat = self.open("chat", "--system", "You are a gateway assistant.")
        chat.say("What is 4 + 3?", "4 + 3 = 7")
        chat.say("/stats", "1 questions, 1 answers")
        chat.say("/system Readings: cellar humidity 67 %, roof power 640 W.", "starts over")
        chat.say("What is the roof power?", "The roof power is 640 W.")
        chat.expect_prompt()
        chat.type(CTRL_D)
        self.assertEqual(chat.end(), 0)
        history = self.state.file("embergate", "chat_history")
        self.assertEqual(stat.S_IMODE(os.stat(history).st_mode), 0o600)
        again = self.open("chat")
        again.expect_prompt()
        again.type(4 * UP + "\r")
        again.expect("4 + 3 = 7")
        again.say("/quit", "")
        self.assertEqual(again.end(), 0)

    def test_lines_that_belong_together(self):
        chat = self.open("chat", "--no-history", "--session", self.state.file("talk.json"))
        chat.expect_prompt()
        chat.type('"""\r')
        for line in "What is", "4 + 3?", '"""':
            chat.expect_prompt("\033[1;36m.\033[0m ")
            chat.type(line + "\r")
        chat.expect_prompt()
        chat.type("/quit\r")
        self.assertEqual(chat.end(), 0)
        with open(self.state.file("talk.json")) as file:
            self.assertIn(r"What is\n4 + 3?", file.read())
        self.assertFalse(os.path.exists(self.state.file("embergate", "chat_history")))

    def test_no_colours_where_none_are_wanted(self):
        chat = self.open("chat", NO_COLOR="1")
        chat.expect("> ")
        chat.type("/stats\r")
        chat.expect("No answer yet.")
        chat.type("/quit\r")
        self.assertEqual(chat.end(), 0)
        self.assertNotRegex(chat.seen, r"\033\[[0-9;]*m")

    def test_ctrl_c_stops_the_answer_and_then_leaves(self):
        chat = self.open("chat", "--ignore-eos", "--max-tokens", "4000")
        chat.say("Hello", "Hello! What can I do for you?")
        chat.type(CTRL_C)
        chat.expect("(stopped)")
        chat.expect_prompt()
        chat.type(CTRL_C)
        chat.expect("Ctrl-C again")
        chat.type(CTRL_C)
        self.assertEqual(chat.end(), 130)
        self.assertEqual(chat.settings_after, chat.settings, "it left the terminal in another mode")
        with open(self.state.file("embergate", "chat_history")) as history:
            self.assertIn("Hello", history.read())

    def test_top_fits_the_screen_and_leaves_it_as_it_was(self):
        for leave, code in ("q", 0), (CTRL_C, 0):
            top = self.open("top", "--interval", "0.1", "--metrics", "127.0.0.1:%d" % self.server.metrics_port)
            for _ in range(3):
                top.expect("processor")
            top.type(leave)
            self.assertEqual(top.end(), code)
            self.assertEqual(top.settings_after, top.settings, "it left the terminal in another mode")
            self.assertTrue(top.seen.startswith("\033[?1049h"))
            self.assertTrue(top.seen.endswith("\033[?1049l"))
            frames = top.seen.split("\033[H")[1:]
            self.assertGreaterEqual(len(frames), 3)
            for frame in frames:
                self.assertLess(frame.count("\n"), ROWS)
                for what in "requests", "/s generated", "DRAM", "weights", "flash", "row cache":
                    self.assertRegex(frame, re.escape(what))


if __name__ == "__main__":
    harness.main()
