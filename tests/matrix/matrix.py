#!/usr/bin/env python3
"""The tests on everything that queuectl promises to run on: the program behind `make test-all`.

Each row of the table ROWS is one run of pytest on one platform, Python and SQLite. What a row
needs (interpreters, a virtual environment, an old SQLite, Wine with a Windows Python) is
installed or built first: on Debian, as root, by itself; elsewhere the rows and tests that
lack something are skipped, loudly. With CI=true a skip is a failure, but for a test whose
reason says that it is not for the row's platform (see `excused`).

Every row runs in a copy of the project of its own, so editing meanwhile disturbs nothing.
What is built stays in .venv/matrix (or QUEUECTL_MATRIX_CACHE), each row's output in `logs`
there. Rows run two at a time, the ones under Wine one after another on one core.
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REQUIREMENTS = HERE.parent / "requirements.txt"
CACHE = Path(os.environ.get("QUEUECTL_MATRIX_CACHE") or ROOT / ".venv" / "matrix").absolute()
CI = os.environ.get("CI") == "true"
SYSTEM = {"Darwin": "macOS"}.get(platform.system(), platform.system())

# ---- what is run -------------------------------------------------------------

ALL = "not slow"                # every quick test
CORE = "core and not slow"      # the part that a platform, Python or SQLite may break
THIS = "%d.%d" % sys.version_info[:2]
BUDGET_S = 35 * 60              # for the whole table, second tries included; --full has no such limit

# kind: "host" (this machine), "fallbacks" (it, without what only Linux has), "pypy", "wine".
# sqlite: None is the Python's own. tests: the expression for pytest -m. when: "full" rows run
# only with --full or when --only names them.
Row = namedtuple("Row", "name kind python sqlite tests limit_s when")
ROWS = [
    Row("main",         "host",      THIS,   None,     CORE, 700, "default"),  # all of them: `make test`
    Row("windows3.13",  "wine",      "3.13", None,     CORE, 1200, "default"),
    Row("windows3.8",   "wine",      "3.8",  None,     CORE, 1200, "default"),
    Row("pypy",         "pypy",      "PyPy", None,     CORE, 1000, "default"),
    Row("fallbacks",    "fallbacks", THIS,   None,     CORE, 700, "default"),
    Row("python3.8",    "host",      "3.8",  None,     CORE, 700, "default"),
    # Each old SQLite on a Python of its own, so that a row tries both.
    Row("sqlite3.24.0", "host",      "3.10", "3.24.0", CORE, 700, "default"),
    Row("sqlite3.26.0", "host",      "3.12", "3.26.0", CORE, 700, "default"),  # RHEL 8's SQLite
    Row("sqlite3.31.1", "host",      "3.8",  "3.31.1", CORE, 700, "default"),  # Ubuntu 20.04
    Row("sqlite3.34.0", "host",      "3.9",  "3.34.0", CORE, 700, "default"),  # Debian 11, RHEL 9
    Row("python3.13",   "host",      "3.13", None,     CORE, 700, "default"),
    Row("python3.9",    "host",      "3.9",  None,     CORE, 700, "full"),
    Row("python3.10",   "host",      "3.10", None,     CORE, 700, "full"),
    Row("python3.11",   "host",      "3.11", None,     CORE, 700, "full"),
    Row("python3.12",   "host",      "3.12", None,     CORE, 700, "full"),
    Row("windows3.11",  "wine",      "3.11", None,     CORE, 1200, "full"),
]

# Debian package, the shell command that shows it is there, the rows that cannot do without it
# ("tests": single tests of any row want it, and skip without it).
PACKAGES = [
    ("python3-venv",               "python3 -c 'import ensurepip, venv'", "tests"),
    ("strace",                     "command -v strace",                   "tests"),
    ("tmux",                       "command -v tmux",                     "tests"),
    ("zsh",                        "command -v zsh",                      "tests"),
    ("fish",                       "command -v fish",                     "tests"),
    ("faketime",                   "command -v faketime",                 "tests"),
    ("util-linux",                 "command -v unshare setpriv taskset",  "tests"),
    ("shellcheck",                 "command -v shellcheck",               "tests"),
    ("lsof",                       "command -v lsof",                     "tests"),
    ("procps",                     "command -v ps sysctl",                "tests"),
    ("pypy3",                      "command -v pypy3",                    "pypy"),
    ("pypy3-venv",                 "pypy3 -c 'import ensurepip, venv'",   "pypy"),
    ("gcc",                        "command -v gcc",                      "sqlite"),
    ("libc6-dev",                  "test -e /usr/include/stdio.h",        "sqlite"),
    ("npm",                        "command -v npm",                      "sqlite"),
    ("wine",                       "command -v wine wineserver",          "wine"),
    ("wine64",                     "test -e /usr/lib/wine/wine64",        "wine"),
    ("gcc-mingw-w64-x86-64-win32", "command -v x86_64-w64-mingw32-gcc",   "wine"),
]

RUN = "MATRIX_ROW=" + uuid.uuid4().hex  # see mark()

# Packages of tests/requirements.txt that cannot be had for the Windows Pythons of this kit:
# tree-sitter's grammar is compiled for the stable ABI. colorama is what pip on Windows would add.
NOT_ON_WINDOWS = ("tree-sitter",)
ONLY_ON_WINDOWS = ("colorama",)


# ---- what this machine has ---------------------------------------------------

ASK = """if 1:
    import importlib.util, json, platform, sqlite3, sys
    print(json.dumps([platform.python_implementation(), "%d.%d" % sys.version_info[:2], platform.python_version(),
                      sqlite3.sqlite_version, importlib.util.find_spec("ensurepip") is not None]))"""

Interpreter = namedtuple("Interpreter", "path implementation minor version sqlite has_ensurepip")


def ask(command, env=None, timeout=60):
    """What the Python that `command` starts is, or None where it does not run or lacks sqlite3."""
    try:
        answer = subprocess.run([*command, "-c", ASK], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=env, timeout=timeout, check=True).stdout
        return Interpreter(command[-1], *json.loads(answer.decode()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def candidates():
    """Paths that may be a Python: the one running this first, then pyenv's, then those on PATH."""
    yield getattr(sys, "_base_executable", None) or sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob("versions/[3p]*/bin/python3"), reverse=True))
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        if Path(directory) == pyenv / "shims":  # they stand for the ones above
            continue
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(directory))
            yield from (os.path.join(directory, name) for name in names
                        if re.match(r"(python3\.\d+|pypy3?)$", name))


def find_interpreters():
    """{"3.8": Interpreter, ..., "PyPy": Interpreter}: the first found of each, 3.8 and later."""
    found, asked = {}, set()
    for path in candidates():
        real = os.path.realpath(path)
        interpreter = None if real in asked else ask([path])
        asked.add(real)
        if interpreter and tuple(map(int, interpreter.minor.split("."))) >= (3, 8):
            found.setdefault("PyPy" if interpreter.implementation == "PyPy" else interpreter.minor, interpreter)
    return found


def missing_packages():
    """{package: what wants it} of PACKAGES that are not there."""
    return {package: wants for package, test, wants in PACKAGES if run_quietly(["sh", "-c", test]) != 0}


def install_packages(rows):
    """Installs what the rows want, where that can be done; returns what is missing after all."""
    kinds = {"tests"}.union(row.kind for row in rows).union("sqlite" for row in rows if row.sqlite)
    missing = [package for package, wants in missing_packages().items() if wants in kinds]
    if not missing:
        return missing_packages()
    if SYSTEM != "Linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
        say("NOT INSTALLED, and only root on Debian can: %s" % " ".join(missing))
    else:
        say("installing %s" % " ".join(missing))
        apt_get("update")
        if apt_get("install", *missing) != 0:  # one that this Debian lacks must not cost the others
            for package in missing:
                apt_get("install", package)
        failed = set(missing) & set(missing_packages())
        if failed:
            say("COULD NOT INSTALL: %s" % " ".join(sorted(failed)))
    return missing_packages()


def apt_get(command, *packages):
    """Its exit status. The packages of the tests ask nothing and start nothing."""
    options = ["-y", "-qq", "--no-install-recommends"] if packages else ["-qq"]
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    return run_quietly(["apt-get", command, *options, *packages], env, limit_s=600)


def lacks(row, interpreters, missing):
    """Why the row cannot run on this machine, or None."""
    kind = "sqlite" if row.sqlite else row.kind
    wanted = [package for package, wants in missing.items() if wants == kind]
    if SYSTEM != "Linux" and kind in ("sqlite", "wine"):
        return "runs on Linux alone"
    if wanted:
        return "not installed: " + ", ".join(wanted)
    python = python_for(row, interpreters)
    if python is None:
        return "no %s found" % ("PyPy" if row.kind == "pypy" else "Python " + row.python)
    if not python.has_ensurepip:
        return "%s cannot make virtual environments (Debian: python3-venv)" % python.path
    return None


def python_for(row, interpreters):
    """The row's interpreter (for a Windows Python: the Linux one that lends its library)."""
    if row.sqlite:  # which Python an old SQLite meets matters little
        return interpreters.get(row.python) or interpreters.get(THIS)
    return interpreters.get(row.python)


# ---- what a row needs, built once --------------------------------------------

BUILDING = {}
BUILDING_GUARD = threading.Lock()


def built(name, inputs, build):
    """The directory CACHE/name-HASH of what `build(directory)` makes from the inputs; made if it is not there."""
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:8]
    directory = CACHE / ("%s-%s" % (name, digest))
    with BUILDING_GUARD:
        lock = BUILDING.setdefault(directory, threading.Lock())
    with lock:
        if not (directory / "complete").exists():
            for old in CACHE.glob(name + "-????????"):
                shutil.rmtree(old, ignore_errors=True)
            build(directory)
            (directory / "complete").touch()
    return directory


def step(command, limit_s=300, env=None):
    """A step of a build: what it printed is shown when it fails."""
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=limit_s, env=env)
    if done.returncode:
        raise NotReady("%s: exit status %d\n%s" % (" ".join(map(str, command)), done.returncode,
                                                   done.stdout.decode("utf-8", "replace")[-3000:]))


class NotReady(Exception):
    """A row could not be prepared: that fails the row, not the whole run."""


def virtual_environment(interpreter):
    """The path of the Python in a virtual environment with tests/requirements.txt installed."""
    def build(directory):
        step([interpreter.path, "-m", "venv", "--clear", directory])
        step([directory / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check",
              "-r", REQUIREMENTS])
    inputs = (interpreter.path, interpreter.version, REQUIREMENTS.read_text())
    name = "%s%s" % (interpreter.implementation.lower(), interpreter.minor)
    return built(name, inputs, build) / "bin" / "python"


def old_sqlite(version):
    script = HERE / "build_old_sqlite.sh"
    return built("sqlite" + version, script.read_text(), lambda directory: step(["bash", script, version, directory]))


def windows_python(version, python):
    """The path of python.exe with the requirements; `python` is a Linux Python of that version, with pip."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith(NOT_ON_WINDOWS)] + list(ONLY_ON_WINDOWS)
    script = HERE / "build_windows_python.sh"
    sources = [path.read_text() for path in (script, HERE / "stub.c", HERE / "stub.manifest")]

    def build(directory):
        step(["bash", script, version, directory, python, *wanted])
    return built("windows" + version, (sources, wanted), build) / "python.exe"


NOT_COPIED = (".git", ".venv", "venv", "__pycache__", ".pytest_cache", ".hypothesis", "*.db-wal", "*.db-shm", "*.db.d")


def snapshot(row):
    """A fresh copy of the project for this row."""
    copy = CACHE / "rows" / row.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


# ---- Wine --------------------------------------------------------------------

WINE = {"WINEPREFIX": str(CACHE / "wine"), "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "winedbg.exe=d",  # a crash would wait in the debugger
        "LC_ALL": "C.UTF-8"}                  # or names that are not ASCII cannot be reached


def on_one_core():
    """Wine starts programs in 0.1 s on one core, in up to 0.3 s on two."""
    return ["taskset", "-c", str(max(os.sched_getaffinity(0)))]


def run_quietly(command, env=None, limit_s=120):
    """Runs a command without any of our stdio, which a service that it starts might keep; returns its status."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=env, timeout=limit_s).returncode


def end_wine(env):
    run_quietly(["wineserver", "-k"], env)


@contextlib.contextmanager
def wine_server(env):
    """Keeps Wine's server up, or each start would take 2.5 s; ends all that is left in Wine afterwards."""
    prefix = Path(WINE["WINEPREFIX"])
    prefix.mkdir(parents=True, exist_ok=True)
    end_wine(env)  # of a run that was killed
    try:
        run_quietly([*on_one_core(), "wineserver", "-p600"], env)
        run_quietly([*on_one_core(), "wine", "wineboot"], env)
        yield
    finally:
        end_wine(env)
        for temporary in prefix.glob("drive_c/users/*/Temp/pytest-of-*"):
            shutil.rmtree(temporary, ignore_errors=True)


# ---- one row -----------------------------------------------------------------

# counts: {"passed": n, "failed": n, "skipped": n}; skips: {reason: number}; failures: [(test, text)];
# problem: why the row failed or was skipped as a whole.
Result = namedtuple("Result", "row state version sqlite counts skips failures problem seconds log")
NO_COUNTS = {"passed": 0, "failed": 0, "skipped": 0}


def skipped(row, reason):
    return Result(row, "failed" if CI else "skipped", row.python, row.sqlite or "", NO_COUNTS, {}, [], reason, 0, None)


def mark(row):
    """A line for the environment of all that the row starts: it tells what the row leaves behind."""
    return "%s %s" % (RUN, row.name)


def row_environment(row, temporary):
    dropped = "PYTHON|PYTEST_|VIRTUAL_ENV|QUEUECTL_"
    env = {name: value for name, value in os.environ.items() if not re.match(dropped, name)}
    env.update([("TMPDIR", temporary), ("NO_FORKS", "1"), mark(row).split("=")])
    if row.kind == "fallbacks":
        env["QUEUECTL_FALLBACKS"] = "1"
    if row.kind == "wine":
        env.update(WINE)
    return env


def prepare(row, interpreter, env):
    """Builds what the row needs, and returns the command that starts its Python; may add to env."""
    python = virtual_environment(interpreter)
    if row.kind == "wine":
        return [*on_one_core(), "wine", str(windows_python(row.python, python))]
    if row.sqlite:
        env["LD_LIBRARY_PATH"] = str(old_sqlite(row.sqlite))
    return [str(python)]


def run_row(row, interpreter, deadline, pytest_args):
    """Prepares and runs one row; every way to fail ends in its Result."""
    log = CACHE / "logs" / (row.name + ".txt")
    began = time.monotonic()
    temporary = tempfile.mkdtemp(prefix="qm-")
    env = row_environment(row, temporary)
    try:
        command = prepare(row, interpreter, env)
        directory = snapshot(row)
        with wine_server(env) if row.kind == "wine" else contextlib.nullcontext():
            actual = ask(command, env)
            if actual is None or row.sqlite not in (None, actual.sqlite):
                raise NotReady("its Python does not run on this SQLite: %s" % (actual,))
            limit_s = min(row.limit_s, deadline - time.monotonic())
            problem = run_tests(row, command, directory, env, log, limit_s, pytest_args)
        return judge(row, actual, directory / "result.xml", problem, time.monotonic() - began, log)
    except (NotReady, OSError, subprocess.SubprocessError) as error:
        return Result(row, "failed", row.python, row.sqlite or "", NO_COUNTS, {}, [],
                      "could not be prepared: %s" % error, time.monotonic() - began, None)
    finally:
        end_strays(mark(row))
        shutil.rmtree(temporary, ignore_errors=True)


def run_tests(row, command, directory, env, log, limit_s, pytest_args):
    """Runs pytest with its output in the log. Returns what went wrong, or None where tests passed or failed."""
    if limit_s < 10:
        return "not run: the time for the whole table was over"
    command = [*command, "-m", "pytest", "tests", "-v", "-p", "no:cacheprovider", "--junitxml=result.xml",
               "-m", row.tests, *pytest_args]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        # A pipe, which Wine insists on; read here, so that a process left behind cannot hold us up.
        process = subprocess.Popen(command, cwd=str(directory), env=env, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        reader = threading.Thread(target=copy, args=(process.stdout, output), daemon=True)
        reader.start()
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if row.kind == "wine":
            end_wine(env)
        end_strays(mark(row))
        reader.join(5)
    if status is None:
        return "ended after its time limit of %d s, at: %s" % (limit_s, last_line(log))
    if status == 5:
        return "no test was selected by -m '%s'" % row.tests
    return None if status in (0, 1) else "pytest ended with exit status %d: %s" % (status, last_line(log))


def copy(source, target):
    with contextlib.suppress(ValueError):  # the target was closed: the row is over
        for piece in iter(lambda: source.read1(65536), b""):
            target.write(piece)
            target.flush()


def last_line(log):
    lines = log.read_text("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(it printed nothing)")


def end_strays(beginning):
    """Kills every process with a mark that begins so: what a hung or failed test left (Linux)."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"\0" + beginning.encode() in b"\0" + entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except OSError:  # ended meanwhile, or another user's
            continue


def judge(row, actual, xml, problem, seconds, log):
    """The row's Result, from pytest's report and what else is known."""
    counts, skips, failures = dict(NO_COUNTS), {}, []
    if xml.exists():
        counts, skips, failures = read_report(xml)
    elif problem is None:
        problem = "pytest left no report: %s" % last_line(log)
    if CI and problem is None:
        unexcused = [reason for reason in skips if not excused(reason, row, actual)]
        if unexcused:
            problem = "skipped although CI=true: " + "; ".join(unexcused)
    state = "failed" if problem or counts["failed"] else "passed"
    version = "PyPy " + actual.minor if actual.implementation == "PyPy" else actual.version
    return Result(row, state, version, actual.sqlite, counts, skips, failures, problem, seconds, log)


def read_report(xml):
    """(counts, skips, failures) of a JUnit report."""
    counts, skips, failures = dict(NO_COUNTS), {}, []
    for case in ElementTree.parse(str(xml)).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            counts["failed"] += 1
            failures.append(("%s.%s" % (case.get("classname"), case.get("name")), bad.text or bad.get("message") or ""))
        elif skip is not None:
            counts["skipped"] += 1
            reason = (skip.get("message") or "no reason given").strip()
            skips[reason] = skips.get(reason, 0) + 1
        else:
            counts["passed"] += 1
    return counts, skips, failures


def excused(reason, row, actual):
    """Whether a skip is in the row's nature: "X only: why" where the row is no X, "not on X: why" where it is."""
    traits = {
        "wine": {"Windows", "Wine", "CPython"},
        "pypy": {"POSIX", SYSTEM, "PyPy"},
        "fallbacks": {"POSIX", "CPython", "the fallbacks"},
        "host": {"POSIX", SYSTEM, "CPython"},
    }[row.kind] | {"Python " + actual.minor, "SQLite " + actual.sqlite}
    only = re.match(r"(.+?) only: .", reason)
    without = re.match(r"not (?:on|under) (.+?): .", reason)
    return bool(only and only.group(1) not in traits or without and without.group(1) in traits)


# ---- all rows ----------------------------------------------------------------

def run_all(rows, jobs, deadline, interpreters, missing, pytest_args):
    """Runs the rows, `jobs` at a time but one at a time under Wine; returns their Results in order."""
    waiting, results, wine_busy = list(rows), {}, [False]
    turn = threading.Condition()

    def take():
        """The next row that may start, or None at the end."""
        while waiting:
            for row in waiting:
                if row.kind != "wine" or not wine_busy[0]:
                    waiting.remove(row)
                    wine_busy[0] |= row.kind == "wine"
                    return row
            turn.wait()
        return None

    def work():
        while True:
            with turn:
                row = take()
            if row is None:
                return
            reason = lacks(row, interpreters, missing)
            result = skipped(row, reason) if reason else \
                run_row(row, python_for(row, interpreters), deadline, pytest_args)
            with turn:
                results[row] = result
                if row.kind == "wine":
                    wine_busy[0] = False
                turn.notify_all()
                say("%2d/%d  %-13s %s" % (len(results), len(rows), row.name, in_a_line(result)))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(1)
    return [results[row] for row in rows if row in results]


def chosen(patterns, full, interpreters):
    """The rows asked for. Newer Pythons than the table knows join it; this Python's own row is `main`."""
    known = {row.python for row in ROWS}
    newer = [Row("python" + minor, "host", minor, None, CORE, 700, "default")
             for minor in sorted(interpreters) if minor not in known]
    rows = [row for row in ROWS + newer if row.name != "python" + THIS]
    if patterns:
        rows = [row for row in rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    elif not full:
        rows = [row for row in rows if row.when == "default"]
    if full:
        rows = [row._replace(tests=ALL, limit_s=4 * row.limit_s) for row in rows]
    return rows


# ---- what is printed ---------------------------------------------------------

def say(text):
    print("matrix: " + text, flush=True)


def in_a_line(result):
    if result.state == "skipped" or not any(result.counts.values()):
        return "%s: %s" % (result.state.upper(), first_line(result.problem))
    counts = "%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % result.counts
    return "%s: %s in %d s%s" % (result.state, counts, result.seconds,
                                 "; " + first_line(result.problem) if result.problem else "")


def first_line(text):
    return (text or "").split("\n")[0]


def table(results):
    """The results as a table that reads well as text and as Markdown."""
    platforms = {"host": SYSTEM, "pypy": SYSTEM, "fallbacks": SYSTEM + ", fallbacks", "wine": "Windows (Wine)"}
    rows = [("Platform", "Python", "SQLite", "Tests", "Passed", "Failed", "Skipped", "Time", "Result")]
    for result in results:
        counts = [str(result.counts[key]) for key in ("passed", "failed", "skipped")]
        ending = result.state + (": " + textwrap.shorten(first_line(result.problem), 100) if result.problem else "")
        rows.append((platforms[result.row.kind], result.version, result.sqlite,
                     {ALL: "all", CORE: "core"}.get(result.row.tests, result.row.tests),
                     *counts, "%d s" % result.seconds, ending.replace("|", "/")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows)


def reasons(results):
    """Why tests were skipped: each reason once, with the rows it concerns."""
    where = {}
    for result in results:
        for reason, number in result.skips.items():
            where.setdefault(reason, []).append("%s (%d)" % (result.row.name, number))
    return ["  %s: %s" % (reason, ", ".join(rows)) for reason, rows in sorted(where.items())]


def details(result):
    """What a failed row has to say: its first failures whole, the others by name."""
    lines = ["", "==== %s: %s" % (result.row.name, in_a_line(result))]
    if result.problem and "\n" in result.problem:
        lines.append(result.problem)
    for number, (test, text) in enumerate(result.failures):
        lines.append("---- " + test)
        lines += text.rstrip().split("\n")[-40:] if number < 5 else []
    if result.log and result.log.exists() and not result.failures:
        lines += result.log.read_text("utf-8", "replace").split("\n")[-20:]
    if result.log:
        lines.append("     its whole output: %s" % result.log)
    return "\n".join(lines)


def report(results, seconds):
    """Prints it all; returns the exit status."""
    failed = [result for result in results if result.state == "failed"]
    for result in failed:
        print(details(result))
    print()
    print(table(results))
    if any(result.skips for result in results):
        print("\nSkipped tests, by reason:")
        print("\n".join(reasons(results)))
    states = [result.state for result in results]
    print("\n%d rows passed, %d failed, %d skipped, in %d s. Tests in all rows together:"
          % (states.count("passed"), states.count("failed"), states.count("skipped"), seconds))
    print(", ".join("%d %s" % (sum(result.counts[key] for result in results), key) for key in NO_COUNTS), flush=True)
    return 1 if failed else 0


def write_json(results, path):
    rows = [dict(result._asdict(), row=result.row._asdict(), log=result.log and str(result.log),
                 failures=[{"test": test, "text": text} for test, text in result.failures],
                 seconds=round(result.seconds, 1)) for result in results]
    Path(path).write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


def print_list(rows):
    """The rows and whether they can run as this machine is, before anything is installed."""
    missing, interpreters = missing_packages(), find_interpreters()
    for row in rows:
        python = python_for(row, interpreters)
        note = lacks(row, interpreters, missing) or "with %s" % python.path
        print("%-13s %-10s Python %-6s SQLite %-7s -m %-20r at most %3d s; %s"
              % (row.name, row.kind, row.python, row.sqlite or "its own", row.tests, row.limit_s, note))


# ---- the command -------------------------------------------------------------

def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="After -- come arguments for pytest, as in: matrix.py --only 'windows*' -- -k quoting")
    parser.add_argument("--only", metavar="PATTERN", action="append", help="rows whose name matches (repeatable)")
    parser.add_argument("--list", action="store_true", help="show the rows, and run nothing")
    parser.add_argument("--full", action="store_true", help="every row runs every quick test, however long it takes")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    parser.add_argument("--jobs", metavar="N", type=int, default=min(2, os.cpu_count() or 1),
                        help="rows at a time (%(default)s)")
    parser.add_argument("pytest_args", nargs="*", metavar="-- ARGS", help="arguments for pytest")
    return parser.parse_args()


@contextlib.contextmanager
def cache_lock():
    """Two runs at once would build in the same places and end each other's Wine."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit("matrix: another run uses %s (QUEUECTL_MATRIX_CACHE names another place)" % CACHE)
        yield


def main():
    options = arguments()
    began = time.monotonic()
    rows = chosen(options.only, options.full, find_interpreters())
    if not rows:
        sys.exit("matrix: no row matches; --list shows them")
    if options.list:
        return print_list(rows)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cache_lock():
        missing = install_packages(rows)
        if options.pytest_args:
            say("pytest also gets: " + " ".join(options.pytest_args))
        deadline = began + (24 * 3600 if options.full else BUDGET_S)
        try:
            results = run_all(rows, max(1, options.jobs), deadline, find_interpreters(), missing, options.pytest_args)
            first_tries = [result for result in results if result.state == "failed"]
            if first_tries:
                say("once more, alone: " + ", ".join(result.row.name for result in first_tries))
                again = run_all([result.row for result in first_tries], 1, deadline, find_interpreters(), missing, options.pytest_args)
                results = [next((other for other in again if other.row == result.row), result) for result in results]
        except KeyboardInterrupt:
            end_strays(RUN)
            print("matrix: interrupted", file=sys.stderr)
            return 130
    if options.json:
        write_json(results, options.json)
    status = report(results, time.monotonic() - began)
    for result in first_tries:
        print("matrix: %s needed a second try, which is a fault to be mended: %s" % (result.row.name, ", ".join(
            test for test, _ in result.failures) or first_line(result.problem)))
    return status


if __name__ == "__main__":
    sys.exit(main())
