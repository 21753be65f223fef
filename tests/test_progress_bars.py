"""A progress bar that redraws itself looks in `logs` on a terminal, in run's summary and in JUnit as it does in the end."""
from __future__ import annotations

import os
import re
import subprocess

import pytest
from conftest import posix_only

import queuectl

BAR = r"""printf 'begin\n'; for i in 10 50 100; do printf '\rcopy %d%%' $i; done; printf '\nend\n'; exit 3"""


@pytest.mark.parametrize("written, shown", [
    ("\rcopy 10%\rcopy 50%", "copy 50%"),
    ("abcdef\rxy", "xycdef"),
    ("plain", "plain"),
    ("dos\r", "dos"),
    ("12345\b\bX", "123X5"),
    ("[####    ] 50%\r\x1b[Kdone", "done"),
    ("\x1b[2K\x1b[1Gdownloaded", "downloaded"),
    ("left\x1b[3D\x1b[1Kxx", " xxt"),
    ("\x1b[32m 10%\x1b[0m\r\x1b[33m 50%\x1b[0m", "\x1b[33m 50%\x1b[0m"),
    ("\u65e5\u672c\rab", "ab\u672c"),
    ("\u65e5\u672c\ra", "a \u672c"),
    ("e\u0301x\rz", "zx"),
    ("a\tb\rc", "c       b"),
    ("\r\r\r", ""),
    ("\b\b\b", ""),
])
def test_a_line_as_a_terminal_shows_it_in_the_end(written, shown):
    assert queuectl.as_shown(written) == shown


def test_a_line_that_moves_far_costs_little():
    assert len(queuectl.as_shown("\x1b[9999C" * 20000 + "x")) <= 10000
    assert len(queuectl.as_shown("\x1b[31mx\r" * 20000)) < 200
    assert queuectl.as_shown("\r" * 2**20 + "x") == "x"


def test_the_summary_and_junit_show_the_end_of_a_progress_bar(queue):
    done = queue.cli("run", "--output", "none", "--junit", "out.xml", BAR, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1:4] == ["    begin", "    copy 100%", "    end"]
    text = (queue.dir / "out.xml").read_text("utf-8")
    assert ">begin\ncopy 100%\nend</failure>" in text
    assert queue.cli("logs", "1", binary=True).stdout == b"begin\n\rcopy 10%\rcopy 50%\rcopy 100%\nend\n"


def test_a_progress_bar_longer_than_what_is_read_of_a_log_hides_no_line_before_it(queue):
    script = "import sys; print('first'); [sys.stdout.write('\\r%6d' % n) for n in range(30000)]; print('\\nlast'); sys.exit(1)"
    done = queue.cli("run", "--output", "none", *queue.script(script), check=False)
    assert done.stderr.splitlines()[1:4] == ["    first", "     29999", "    last"]


def on_terminal(queue, *words, until=None):
    """What a command prints on a terminal, and how the terminal looks then."""
    import fcntl
    import pty
    import struct
    import termios
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(queue.command(*words), stdin=its, stdout=its, stderr=its, env=dict(queue.environment(), TERM="xterm"))
    os.close(its)
    data = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        data += part
        if until is not None:
            until(data)
    os.close(ours)
    assert process.wait() == 0
    return data.decode()


@posix_only("a terminal")
def test_logs_on_a_terminal_shows_the_end_of_a_progress_bar(queue):
    queue.enqueue(BAR)
    queue.cli("enqueue", "printf '\\rone\\rtwo'")
    queue.cli("worker", "start", "--foreground", "--max-jobs", "2", "--drain")
    assert on_terminal(queue, "logs", "1") == "begin\r\ncopy 100%\r\nend\r\n"
    assert on_terminal(queue, "logs", "2") == "two"
    both = on_terminal(queue, "logs", "1", "2")
    assert both.split("\r\n") == ["1 | begin", "1 | copy 100%", "1 | end", "2 | two", ""]


@posix_only("a terminal")
def test_a_progress_bar_that_is_followed_moves_on_the_terminal(queue):
    """Each part is written when the one before has been shown: what is on the line is erased, and drawn again."""
    script = ("import os, sys, time\n"
              "for i in range(4):\n"
              "    while not os.path.exists('go%d' % i): time.sleep(0.01)\n"
              "    sys.stdout.write('\\rcopy %d%%' % (i * 30)); sys.stdout.flush()\n"
              "print()")
    queue.enqueue(*queue.script(script))
    queue.start()
    (queue.dir / "go0").touch()

    def until(data):
        for i in range(4):
            if b"copy %d%%" % (i * 30) in data:
                (queue.dir / ("go%d" % (i + 1))).touch()
    printed = on_terminal(queue, "logs", "-f", "1", until=until)
    queue.stop()
    assert re.findall(r"copy \d+%", printed) == ["copy 0%", "copy 30%", "copy 60%", "copy 90%"]
    assert printed.count("\r\033[J") == 3 and "copy 90%\r\n" in printed
