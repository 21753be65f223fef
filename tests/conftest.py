"""What the tests stand on: a fresh queue per test (`queue`), and `wait_until` instead of sleeps.

A LiveQueue drives the real program in real processes. In quick tests most commands that end
by themselves are forked by a process that has imported the program (forks.py says what that
leaves out); workers, jobs, what runs beside a test or has an environment of its own, slow
tests and tests/matrix start as a user starts them (NO_FORKS=1: all). Every process that a test causes
carries the queue's marker in its environment (a job keeps the environment of whoever
enqueued it), so the fixture can tell afterwards that nothing was left behind.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from pathlib import Path

import pytest
from forks import Forks

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "queuectl.py"
LAUNCH = ROOT / "tests" / "launch.py"
WINDOWS = os.name == "nt"
WINE = WINDOWS and hasattr(__import__("ctypes").WinDLL("ntdll"), "wine_get_version")
sys.path.insert(0, str(ROOT))
# A shell starts what it puts into the background with these ignored, and the programs under test would obey that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGQUIT", None), signal.SIG_DFL)):
    if number and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_sessionfinish(session, exitstatus):
    """NO_SKIPS=1 makes a skipped test a failure: .ci/run installs what they need, and Windows' own run in tests/matrix."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NO_SKIPS") and not hasattr(session.config, "workerinput") and any(
            "Windows only: " not in str(report.longrepr) for report in reporter.stats.get("skipped", ())):
        reporter.write_line("FAILED: tests were skipped, and with NO_SKIPS none may be", red=True)
        session.exitstatus = 1


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    """A test with the marker sampled(n) is quick with one in n of its cases, in their order; the others are broad."""
    cases = {}
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled:
            name = item.nodeid.split("[")[0]
            cases[name] = cases.get(name, -1) + 1
            if cases[name] % sampled.args[0]:
                item.add_marker("broad")


def posix_only(reason):
    """Marks a test that has no meaning on Windows; the reason is shown in the report."""
    return pytest.mark.skipif(WINDOWS, reason="POSIX only: " + reason)


def linux_only(reason):
    return pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: " + reason)


def windows_only(reason):
    return pytest.mark.skipif(not WINDOWS, reason="Windows only: " + reason)


def not_on_wine(reason):
    return pytest.mark.skipif(WINE, reason="not on Wine: " + reason)


def started(start):
    """What start() returns. Wine now and then fails to make a process with an internal error, and not when asked again."""
    for _ in range(5):
        try:
            return start()
        except OSError as error:
            if not WINE or error.winerror != 1359:
                raise
    return start()


def wait_until(predicate, timeout=15, message="", interval=0.02):
    """Polls until predicate() is true and returns its value; fails the test at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail("not so after %g s: %s (last value: %r)" % (timeout, message or predicate, value))
        time.sleep(interval)


def remove_stale_clocks():
    """Removes what libfaketime left in shared memory for processes that were killed: a new one with such a number fails."""
    for path in Path("/dev/shm").glob("*faketime_s*_*"):
        if not os.path.exists("/proc/" + path.name.rpartition("_")[2]):
            path.unlink()


def not_on_fallbacks(reason):
    """Skips a test of what only Linux has where tests/matrix tries what there is without it."""
    if os.environ.get("QUEUECTL_FALLBACKS"):
        pytest.skip("not on the fallbacks: " + reason)


def unprivileged():
    """A command prefix under which file permissions count, for root too (Linux)."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root without setpriv: file permissions do not bind")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def locked(path):
    """Whether any process holds the lock on this file (Windows: holds it open)."""
    try:
        if WINDOWS:
            os.close(os.open(path, os.O_RDWR))
        else:
            import fcntl
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


LOOKS = {"status", "list", "show", "explain", "logs", "stats", "events", "dlq list", "worker list", "queue list", "batch list", "batch show",
         "cron list", "config list", "config get", "health"}
ONE_LOOK = threading.RLock()

# How the environment of a queue differs from that of the tests: what could change what a command does is left out.
DROPPED = r"QUEUECTL_(?!FALLBACKS)|XDG_|NO_COLOR|COLUMNS|PYTEST_|CI$|PYTHON(DONTWRITEBYTECODE|PYCACHEPREFIX)$"
OF_ONE_QUEUE = {"QUEUECTL_TEST", "HOME", "USERPROFILE", "LOCALAPPDATA"}
FORKS = Forks({k: v for k, v in os.environ.items() if not re.match(DROPPED, k)}) if hasattr(os, "fork") else None

# These have workers of their own, or last: they and what they fork are found by the marker in the environment that they started with.
LONG_LIVED = {"run", "web", "top", "_worker"}
LASTING = {"--foreground", "-f", "--follow", "--watch"}
FORKED = {"check", "stdin", "cwd", "timeout", "binary"}


def looks(words):
    """Whether this command shows what is there, changes nothing, and ends at once."""
    return (bool({" ".join(words[:1]), " ".join(words[:2])} & LOOKS)
            and not {"-f", "--follow", "--watch", "-h", "--help"} & set(words))


def set_environment(values):
    for name in set(os.environ) - set(values):
        del os.environ[name]
    os.environ.update((name, value) for name, value in values.items() if os.environ.get(name) != value)


def completed(done, check=True, status=0):
    """The CompletedProcess, whose exit status must be this one unless check=False."""
    if check and done.returncode != status:
        pytest.fail("exit status %d from %s\nstdout: %s\nstderr: %s" % (done.returncode, done.args, done.stdout, done.stderr))
    return done


class Background(subprocess.Popen):
    """A command that runs beside the test. What it prints collects in a file."""

    def __init__(self, command, path, **options):
        self.path = path
        with open(path, "wb") as output:
            begin = super().__init__
            started(lambda: begin(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                  start_new_session=True, **options))

    def text(self):
        return self.path.read_text("utf-8", "replace")

    def ends(self, timeout=20):
        """Waits for the end and returns the exit status."""
        wait_until(lambda: self.poll() is not None, timeout, "the end of %s; it printed:\n%s" % (self.args, self.text()))
        return self.returncode


class LiveQueue:
    """A queue in a directory of its own (with a space in its name), used through the CLI."""

    def __init__(self, directory, python=sys.executable):
        self.dir = Path(directory) / "a queue"
        self.home = self.dir / "home"
        self.home.mkdir(parents=True)
        self.db = self.dir / "queue.db"
        self.files = Path(str(self.db) + ".d")
        # As the installed command runs it: a script's bytecode is not cached, and compiling takes most of a call.
        self.program = [python, "-IS", str(LAUNCH)]
        self.marker = "QUEUECTL_TEST=" + uuid.uuid4().hex
        self.env = {k: v for k, v in os.environ.items() if not re.match(DROPPED, k)}
        self.env.update([self.marker.split("=")], HOME=str(self.home), USERPROFILE=str(self.home), LOCALAPPDATA=str(self.home))
        self.here = python == sys.executable and (list(self.program), dict(self.env))  # what a look in this process stands for
        self.background = []
        self.forks = False

    def command(self, *args):
        return [*self.program, "--db", str(self.db), *map(str, args)]

    def run(self, command, check=True, stdin=None, cwd=None, env=None, timeout=60, binary=False, status=0):
        """Runs a command in the queue's environment; `env` adds to it (None removes a name).  `status`: see completed."""
        text = {} if binary else {"encoding": "utf-8", "errors": "surrogateescape"}
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = started(lambda: subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=str(cwd or self.dir),
                                              env=self.environment(env), timeout=timeout, **source, **text))
        return completed(done, check, status)

    def environment(self, changes=None):
        merged = dict(self.env, **(changes or {}))
        return {name: value for name, value in merged.items() if value is not None}

    def cli(self, *args, **options):
        """One command of queuectl on this queue: a CompletedProcess, with text unless binary=True.

        A command that only looks runs in this process: a tenth of what a new one costs, most of all in a wait_until.
        Others are processes of their own.  In quick tests most of these are forked by one that has started Python already.
        """
        words = [str(word) for word in args]
        if set(options) <= {"check", "status"} and self.here == (self.program, self.env) and looks(words):
            return completed(self.look(words), **options)
        if self.forks and self.here == (self.program, self.env) and set(options) <= FORKED and self.may_fork(words):
            return self.forked(words, **options)
        return self.process(*args, **options)

    def may_fork(self, words):
        here = {name: value for name, value in self.env.items() if name not in OF_ONE_QUEUE}
        there = {name: value for name, value in FORKS.environment.items() if name not in OF_ONE_QUEUE}
        return not LONG_LIVED & set(words[:1]) and not LASTING & set(words) and here == there

    def forked(self, words, check=True, stdin=None, cwd=None, timeout=60, binary=False):
        """As process, for a command that has ended when it returns."""
        data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        argv = [str(LAUNCH), "--db", str(self.db), *words]
        done = FORKS.run(self.command(*words), argv, str(cwd or self.dir), self.env, data, timeout)
        if not binary:
            done.stdout, done.stderr = (re.sub("\r\n?", "\n", text.decode("utf-8", "surrogateescape")) for text in (done.stdout, done.stderr))
        return completed(done, check)

    def process(self, *args, **options):
        """As cli, in a process of its own whatever the command is."""
        return self.run(self.command(*args), **options)

    def look(self, words):
        """A command in this process, with the queue's environment."""
        import queuectl
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2)]
        argv, environment = sys.argv, dict(os.environ)
        with ONE_LOOK, contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            sys.argv = [str(LAUNCH), "--db", str(self.db), *words]
            set_environment(self.env)
            try:
                status = queuectl.main()
            finally:
                sys.argv = argv
                set_environment(environment)
        texts = [stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams if not stream.flush()]
        return subprocess.CompletedProcess(self.command(*words), status, *texts)

    def out(self, *args, **options):
        return self.cli(*args, **options).stdout.strip()

    def json(self, *args, **options):
        if args[:1] == ("list",) and not self.db.exists():
            return []  # nothing was ever stored
        return json.loads(self.cli(*args, "--json", **options).stdout)

    def enqueue(self, *args, **options):
        return int(self.cli("enqueue", *args, **options).stdout)

    def script(self, text, *args):
        """Arguments that run a few lines of Python as a job, on any system; a line that it prints ends with \\n."""
        text = ("import sys; sys.stdout.reconfigure(newline='\\n')\n" if WINDOWS else "") + text
        path = self.dir / ("job-%08x.py" % zlib.crc32(text.encode()))
        if not path.exists():  # an earlier job of the same lines may be reading it
            path.write_text(text + "\n", encoding="utf-8")
        return [sys.executable, "-IS", str(path), *map(str, args)]

    def sleeper(self, seconds):
        """Arguments of a job that takes that long."""
        return self.script("import sys, time; time.sleep(float(sys.argv[1]))", seconds)

    def start(self, count=1, *options, **keywords):
        return self.cli("worker", "start", "--count", count, *options, **keywords)

    def stop(self, *options, **keywords):
        return self.cli("worker", "stop", *options, **keywords)

    def beside(self, *args, **options):
        """Starts a command that the test goes on beside; the fixture ends it."""
        return self.background_process(self.command(*args), **options)

    def background_process(self, command, **options):
        path = self.dir / ("output-%d.txt" % len(self.background))
        process = Background(command, path, cwd=str(self.dir), env=self.environment(options.pop("env", None)), **options)
        self.background.append(process)
        return process

    def start_blind(self, count=1):
        """Workers whose supervisor looks at the database once an hour by itself: what it does sooner, a hint or a due time caused.

        So a test of waking up needs no clock: on a busy machine it is late, and without the hint it never comes.
        """
        text = "import sys; sys.path.insert(0, %r); import queuectl; queuectl.LOOK_S = 3600.0; sys.exit(queuectl.main())" % str(ROOT)
        process = self.background_process([sys.executable, "-c", text, "--db", str(self.db), "worker", "start", "--foreground",
                                           "--count", str(count)])
        wait_until(lambda: self.count_of_workers() == count, 30, "the workers are there")
        return process

    def count_of_workers(self):
        """How many workers there are; 0 while there is no queue yet."""
        try:
            return len(self.sql("SELECT id FROM worker")) if self.db.exists() else 0
        except sqlite3.OperationalError:  # its tables are being made
            return 0

    def job(self, ref):
        """The job's record, read through the Python API: cheap enough to poll. None: no such job yet."""
        import queuectl
        with queuectl.Store(str(self.db)) as store:
            return store.look.find(ref)

    def wait_for(self, ref, *states, timeout=20):
        """Polls until the job is in one of the states and returns its record."""
        return wait_until(lambda: (lambda job: job if job and job.state in states else None)(self.job(ref)), timeout,
                          "job %s in state %s" % (ref, " or ".join(states)))

    def sql(self, statement, *values):
        """Rows straight from the database, for what no command shows."""
        connection = sqlite3.connect(str(self.db), timeout=10, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def terminal(self, *args, columns=80, lines=24, env=None, timeout=60):
        """Runs a command on a terminal of its own; returns (exit status, what the terminal got)."""
        import fcntl
        import struct
        import termios
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = subprocess.Popen(self.command(*args), stdin=slave, stdout=slave, stderr=slave, cwd=str(self.dir),
                                   env=self.environment(dict({"TERM": "xterm"}, **(env or {}))),
                                   start_new_session=True)
        os.close(slave)
        chunks = []
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # EIO: the last holder of the terminal has closed it
                break
            if not chunk:
                break
            chunks.append(chunk)
        os.close(master)
        return process.wait(timeout), b"".join(chunks).decode("utf-8", "replace").replace("\r\n", "\n")

    def processes(self):
        """{pid: command line} of everything alive that carries the marker (Linux; elsewhere empty)."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # it has ended, or is another user's
                continue
        return found

    def held_locks(self):
        return [str(path) for path in sorted(self.files.glob("workers/*")) if locked(path)]

    def leftovers(self):
        return self.processes() or self.held_locks()

    def close(self):
        """Ends everything; returns what a graceful end had left behind."""
        for process in self.background:
            if process.poll() is None:
                process.terminate()
        if self.leftovers():
            self.stop("--now", check=False)
        deadline = time.monotonic() + 5
        while self.leftovers() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = self.leftovers()
        for pid in self.processes():
            try:
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            except OSError:  # it ended by itself meanwhile
                pass
        for process in self.background:
            process.wait(10)
        return left


@pytest.fixture
def queue(tmp_path, request):
    live = LiveQueue(tmp_path)
    # Slow tests, and tests/matrix with its other Pythons and systems, start each command as a user does.
    live.forks = FORKS is not None and not os.environ.get("NO_FORKS") and request.node.get_closest_marker("slow") is None
    yield live
    left = live.close()
    if left:
        pytest.fail("left behind after the test: %s" % (left,))


@pytest.fixture(scope="session")
def public_program():
    """A copy of the program that every user may read, with its bytecode: public_program(python) is a command that starts it."""
    with tempfile.TemporaryDirectory(prefix="queuectl-program-", dir="/tmp") as folder:
        launch = Path(folder) / "tests" / LAUNCH.name
        launch.parent.mkdir()
        shutil.copy(str(SCRIPT), folder)
        shutil.copy(str(LAUNCH), str(launch))
        compiled = set()

        def program(python):
            command = [python, "-IS", str(launch)]
            if python not in compiled:
                subprocess.run([*command, "--version"], check=True, stdout=subprocess.DEVNULL)
                for path in [Path(folder), *Path(folder).rglob("*")]:
                    path.chmod(0o755 if path.is_dir() else 0o644)
                compiled.add(python)
            return command

        yield program


@pytest.fixture
def store(tmp_path):
    """The Python API on a fresh database, in this process."""
    import queuectl
    opened = queuectl.Store(str(tmp_path / "store.db"))
    yield opened
    opened.close()


@pytest.fixture
def clock():
    from life import Clock  # here: it imports us
    return Clock()


@pytest.fixture
def bare_store(tmp_path, clock):
    """The Store on that clock."""
    from life import open_store
    opened = open_store(tmp_path, clock)
    yield opened
    opened.close()
