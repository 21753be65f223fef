"""A real terminal for the tests: a shell, or any program, in a tmux of its own."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
import unicodedata
import uuid

import pytest
from conftest import wait_until


def cells(text):
    """How many columns a terminal needs for the text, reckoned without queuectl."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Screen:
    """One tmux window.  `text()` is what is seen in it; `until` polls for a pattern."""

    def __init__(self, command, env, cwd, columns=100, lines=30):
        if not shutil.which("tmux"):
            pytest.skip("tmux is not installed")
        self._tmux = ["tmux", "-L", "queuectl-" + uuid.uuid4().hex[:12], "-f", "/dev/null"]
        self._env = dict({name: value for name, value in env.items() if name not in ("TMUX", "TMUX_PANE")}, LC_ALL="C.UTF-8")
        line = command if isinstance(command, str) else " ".join(map(shlex.quote, command))
        self._do("new-session", "-d", "-x", columns, "-y", lines, "-c", cwd, line, ";",
                 "set", "-g", "escape-time", 0, ";", "set", "-g", "remain-on-exit", "on", ";", "set", "-g", "status", "off",
                 ";", "resize-window", "-x", columns, "-y", lines)

    def _do(self, *words):
        done = subprocess.run(self._tmux + [str(word) for word in words], env=self._env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        return done.stdout.decode("utf-8", "replace")

    def text(self):
        return self._do("capture-pane", "-p")

    def coloured(self):
        """The same with its colours, as escape sequences."""
        return self._do("capture-pane", "-p", "-e")

    def keys(self, *keys):
        """Types keys by their tmux names, all at once, as a held-down key or a paste does."""
        self._do("send-keys", *keys)

    def type(self, text):
        self._do("send-keys", "-l", text)

    def resize(self, columns, lines):
        self._do("resize-window", "-x", columns, "-y", lines)

    def fact(self, name):
        """A value that tmux knows of the window, such as cursor_flag or alternate_on."""
        return self._do("display-message", "-p", "#{%s}" % name).strip()

    def until(self, pattern, timeout=15, gone=False):
        """Waits until the pattern is seen (or gone) and returns the text."""
        found = []

        def look():
            found[:] = [self.text()]
            return bool(re.search(pattern, found[0], re.M)) != gone

        try:
            wait_until(look, timeout, pattern)
        except pytest.fail.Exception:
            pytest.fail("%s %r after %g s; the screen:\n%s" % ("still" if gone else "no", pattern, timeout, self.text()))
        return found[0]

    def steady(self, seconds=0.25, timeout=10):
        """The text once it has not changed for so long: a picture, not one half drawn."""
        last = [None, time.monotonic()]

        def unchanged():
            text = self.text()
            if text != last[0]:
                last[:] = [text, time.monotonic()]
            return time.monotonic() - last[1] >= seconds

        wait_until(unchanged, timeout, "a steady screen")
        return last[0]

    def close(self):
        self._do("kill-server")


@pytest.fixture
def screens(queue):
    """Opens terminals in the queue's environment and directory; closes them before the queue is looked over."""
    opened = []

    def open_screen(command, columns=100, lines=30, env=None):
        opened.append(Screen(command, queue.environment(env), str(queue.dir), columns, lines))
        return opened[-1]

    yield open_screen
    for screen in opened:
        screen.close()


def put_on_path(queue):
    """Makes `queuectl` a command in the queue's home and returns its directory (os.fspath)."""
    folder = queue.home / "bin"
    folder.mkdir(exist_ok=True)
    launcher = folder / "queuectl"
    launcher.write_text("#!/bin/sh\nexec %s \"$@\"\n" % " ".join(map(shlex.quote, queue.program)))
    launcher.chmod(0o755)
    return os.fspath(folder)
