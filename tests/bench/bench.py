#!/usr/bin/env python3
"""Measures queuectl beside its peers, side by side, in one run.

    make bench                                       every row, under 6 minutes
    python3 tests/bench/bench.py --quick             a few seconds a row: does it work?
    python3 tests/bench/bench.py --only idle depth   some rows (see --list)

A row is one function; ROWS names them all. In a row, peer and tool are
measured in turn, round by round, the order reversed every other round. A
figure is the median of its rounds; a ratio is the median of the rounds' own
ratios, so that a machine that grows slower in the middle of a run does not
change it. The last lines compare the ratios with those of the recorded run
(last.json); --quick and --only never overwrite that one.

Three invariants:
- Every process that is started carries TOKEN in its environment. Whatever
  happens, the end of main() kills what still carries it and removes all files.
- Files lie on a real disk, never on tmpfs: the syncs are part of the price.
- A peer that is missing is named in the result, never passed over in silence.

Contents: settings, helpers, the queue under test, peers, children, rows,
comparison, main.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import namedtuple

# ---------------------------------------------------------------- settings ---

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SCRIPT = os.path.join(ROOT, "queuectl.py")
RECORDED = os.path.join(HERE, "last.json")
TOKEN = "QUEUECTL_BENCH_TOKEN"
PYTHON = sys.executable
DEADLINE_S = 120            # nothing that is waited for takes longer
LIMIT_S = 360
WORSE = 0.10                # a ratio that differs by less is noise on a shared machine

sys.path.insert(0, ROOT)

# What is measured, in full and with --quick: sizes, not thresholds.
FULL = dict(rounds=5, jobs=3000, parallel_jobs=1000, tsp_jobs=900, nq_jobs=200, deep=1_000_000,
            delayed=500_000, blocked=100_000, shallow=1000, calls=12, picks=200, peer_picks=10,
            idle_windows=6, idle_window_s=10, bulk_rounds=3, exchanges=1000, depth_rounds=9,
            storm_s=2.0, growth=100_000, growth_rounds=2, looks=3, sync_rounds=3)
QUICK = dict(FULL, rounds=2, jobs=300, parallel_jobs=100, tsp_jobs=100, nq_jobs=50, deep=20_000,
             delayed=10_000, blocked=5_000, calls=4, picks=40, peer_picks=8, idle_windows=2,
             idle_window_s=2, bulk_rounds=1, exchanges=200, depth_rounds=3, storm_s=1.0,
             growth=10_000, growth_rounds=1, looks=2, sync_rounds=1)

Figure = namedtuple("Figure", [
    "name",         # what was measured, the key of the comparison with the last run
    "mine",         # queuectl's number of each round
    "unit",
    "peer",         # whom it is compared with, or None
    "theirs",       # the peer's number of each round
    "target",       # e.g. (">=", 0.85), on the ratio if there is a peer, else on the number
    "note",
])


def figure(name, mine, unit, peer=None, theirs=(), target=None, note="") -> Figure:
    return Figure(name, list(mine), unit, peer, list(theirs), target, note)


# ----------------------------------------------------------------- helpers ---

def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median(values) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(values, part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:                      # macOS, Windows
        return os.cpu_count() or 1


def in_turn(rounds: int, measures: dict) -> dict:
    """Calls each measure once a round, every other round in reverse: name -> numbers."""
    results = {name: [] for name in measures}
    for number in range(rounds):
        for name in reversed(list(measures)) if number % 2 else list(measures):
            results[name].append(measures[name]())
    return results


def wait_until(condition, pause_s: float = 0.02) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited %d s in vain" % DEADLINE_S)
        time.sleep(pause_s)


def run_s(argv, **kwargs) -> float:
    """Seconds that one whole process takes; it must succeed."""
    kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **kwargs}
    begin = time.perf_counter()
    status = subprocess.Popen(argv, **kwargs).wait()
    seconds = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError("exit %s: %s" % (status, " ".join(argv)))
    return seconds


MEASURED = ("import resource, subprocess, sys\n"
            "status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(used.ru_utime + used.ru_stime, used.ru_maxrss)\n"
            "sys.exit(status)")


def run_usage(argv) -> tuple:
    """Processor time in s, and the largest size in memory in MiB, of one whole process; it must succeed.

    A small process starts it: Linux counts the memory of whoever starts a process as the process's own.
    """
    seconds, size = subprocess.run([PYTHON, "-ISc", MEASURED, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, check=True).stdout.split()
    return float(seconds), int(size) / (2**20 if sys.platform == "darwin" else 2**10)


def marked_pids() -> set:
    """The processes that carry our token, without this one (Linux; elsewhere none)."""
    mark = ("%s=%s" % (TOKEN, os.environ[TOKEN])).encode()
    found = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
                with open("/proc/%s/environ" % name, "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.add(int(name))
    return found


def kill_marked() -> None:
    """Again and again: a supervisor replaces its workers until it is gone itself."""
    for _ in range(200):
        pids = marked_pids()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    say("bench: these would not die: %s" % sorted(marked_pids()))


def file_system(path: str) -> str:
    """The type of the file system that holds path (Linux), by its longest mount point."""
    best = ("", "unknown")
    with contextlib.suppress(OSError):
        with open("/proc/self/mounts") as file:
            for line in file:
                _, point, kind = line.split()[:3]
                prefix = point.rstrip("/") + "/"
                if (os.path.realpath(path) + "/").startswith(prefix) and len(prefix) >= len(best[0]):
                    best = (prefix, kind)
    return best[1]


def disk_directory() -> str:
    """A new directory on a real disk; the repository's own one where /var/tmp is memory."""
    for base in ("/var/tmp", tempfile.gettempdir(), HERE):
        if os.path.isdir(base) and file_system(base) not in ("tmpfs", "ramfs"):
            return tempfile.mkdtemp(prefix="queuectl-bench-", dir=base)
    raise SystemExit("bench: found no directory that is on a disk")


class Bench:
    """What all rows share: the sizes, a directory, what is missing, and big databases made once."""

    def __init__(self, sizes: dict):
        self.sizes = argparse.Namespace(**sizes)
        self.directory = disk_directory()
        self.missing = []           # peers that are not installed
        self.failed = []            # rows that ended in an error
        self.count = 0
        self._deep = None
        self._finished = None
        self._launcher = None

    def path(self, name: str) -> str:
        """A name that nobody has used yet, in a directory of its own."""
        self.count += 1
        directory = os.path.join(self.directory, str(self.count))
        os.mkdir(directory)
        return os.path.join(directory, name)

    def has(self, program: str) -> bool:
        if shutil.which(program):
            return True
        if program not in self.missing:
            self.missing.append(program)
        return False

    def lines(self, count: int, line: str = "true") -> str:
        path = self.path("lines")
        with open(path, "w") as file:
            file.writelines(line + "\n" for _ in range(count))
        return path

    def launcher(self) -> str:
        """The command that `queuectl.py install` makes, in a home directory of ours."""
        if self._launcher is None:
            home = os.path.dirname(self.path(""))
            run_s([PYTHON, SCRIPT, "install"], env=dict(os.environ, HOME=home))
            self._launcher = os.path.join(home, ".local", "bin", "queuectl")
        return self._launcher

    def deep(self) -> str:
        """A database with a million pending jobs, made once for all rows that only read it."""
        if self._deep is None:
            self._deep = self.path("deep.db")
            fill(self._deep, ("true" for _ in range(self.sizes.deep)))
        return self._deep

    def finished(self) -> str:
        """A database with a million finished jobs, made once; the rows that use it add a few."""
        if self._finished is None:
            self._finished = self.path("finished.db")
            with contextlib.closing(open_queue(self._finished)) as queue:
                job = queue.enqueue("true")
                list(exchanges(queue))
            multiply(self._finished, job, self.sizes.deep)
        return self._finished

    def close(self) -> None:
        kill_marked()
        shutil.rmtree(self.directory, ignore_errors=True)


# ---------------------------------------------------- the queue under test ---

def open_queue(path: str, sync: bool = True):
    import queuectl
    store = queuectl.Store(path)
    store.db.sync = sync
    return store


def fill(path: str, jobs) -> None:
    with contextlib.closing(open_queue(path)) as queue:
        queue.enqueue_many(jobs)


def cli(path: str, *words: str) -> str:
    done = subprocess.run([PYTHON, SCRIPT, "--db", path, *words], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise RuntimeError("exit %d: queuectl %s: %s" % (
            done.returncode, " ".join(words), done.stderr.decode(errors="replace").strip()))
    return done.stdout.decode()


@contextlib.contextmanager
def workers(path: str, count: int):
    """`worker start` for the time of the block; `worker stop` also when it fails."""
    cli(path, "worker", "start", "--count", str(count))
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):    # the sweep in Bench.close() is behind it
            cli(path, "worker", "stop", "--now")
        raise
    cli(path, "worker", "stop")


def wait_completed(queue, count: int) -> None:
    wait_until(lambda: queue.queues.counts()["completed"] >= count)


def worked_rate(bench: Bench, count: int, path: str | None = None) -> float:
    """Jobs/s from the first claim to the last commit, of pending no-ops."""
    path, jobs = path or bench.path("queue.db"), bench.sizes.jobs
    fill(path, ["true"] * jobs)
    with workers(path, count), contextlib.closing(open_queue(path)) as queue:
        wait_completed(queue, jobs)
    with contextlib.closing(sqlite3.connect(path)) as database:
        first, last = database.execute("SELECT min(started_at), max(finished_at) FROM job").fetchone()
    return jobs / (last - first)


def exchanges(queue, most=None):
    """Claims and finishes jobs as a worker does, without running them: one transaction an item."""
    import queuectl
    worker, outcome, done = os.getpid(), None, 0
    while most is None or done < most:
        taken = queue.claims.finish_and_claim(worker, outcome)
        if taken is None:
            return
        outcome = queuectl.Outcome(taken[0], "completed", 0, None, worker, time.time(), 0.001)
        done += 1
        yield done
    queue.claims.finish(worker, outcome)


def columns(database, table: str, *without: str) -> str:
    names = [row[1] for row in database.execute("PRAGMA table_info(%s)" % table)]
    return ", ".join(name for name in names if name not in without)


def multiply(path: str, job: int, count: int) -> None:
    """`count` copies of a job, with its dependencies and history, by SQL: that takes seconds, not minutes."""
    names = {"job": job, "count": count}
    with contextlib.closing(sqlite3.connect(path)) as database:
        own, past = columns(database, "job", "id", "name"), columns(database, "history", "seq", "job")
        database.execute("BEGIN")
        [names["last"]] = database.execute("SELECT max(id) FROM job").fetchone()
        database.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<:count) "
                         "INSERT INTO job(" + own + ") SELECT " + own + " FROM n CROSS JOIN job WHERE id=:job", names)
        database.execute("INSERT INTO history(job, " + past + ") SELECT new.id, old.* FROM job new, "
                         "(SELECT " + past + " FROM history WHERE job=:job) old WHERE new.id>:last", names)
        database.execute("INSERT INTO dep(parent, child, any, done) SELECT old.parent, new.id, old.any, old.done "
                         "FROM dep old, job new WHERE old.child=:job AND new.id>:last", names)
        database.execute("UPDATE tally SET n=n+:count WHERE queue=(SELECT queue FROM job WHERE id=:job) "
                         "AND state=(SELECT state FROM job WHERE id=:job)", names)
        database.commit()


def sql(path: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


# ------------------------------------------------------------------- peers ---

def xargs_s(path: str) -> float:
    with open(path) as lines:
        return run_s(["xargs", "-P4", "-I{}", "/bin/sh", "-c", "{}"], stdin=lines)


def parallel_s(path: str) -> float:
    with open(path) as lines:
        return run_s(["parallel", "-j4"], stdin=lines)


@contextlib.contextmanager
def task_spooler(bench: Bench):
    """A task-spooler of our own with 4 slots: yields the environment that reaches it."""
    directory = os.path.dirname(bench.path(""))
    env = dict(os.environ, TS_SOCKET=os.path.join(directory, "socket"), TMPDIR=directory)
    run_s(["tsp", "-S", "4"], env=env)
    try:
        yield env
    finally:
        run_s(["tsp", "-K"], env=env)


def tsp_rate(bench: Bench) -> float:
    """Its enqueueing counted; fewer than the 1000 jobs at which it blocks."""
    jobs = bench.sizes.tsp_jobs
    loop = "i=0; while [ $i -lt %d ]; do tsp -n true >/dev/null; i=$((i+1)); done; tsp -w" % jobs
    with task_spooler(bench) as env:
        return jobs / run_s(["/bin/sh", "-c", loop], env=env)


def nq_rate(bench: Bench) -> float:
    jobs = bench.sizes.nq_jobs
    env = dict(os.environ, NQDIR=os.path.dirname(bench.path("")))
    loop = "i=0; while [ $i -lt %d ]; do nq -c -q true; i=$((i+1)); done; nq -w" % jobs
    return jobs / run_s(["/bin/sh", "-c", loop], env=env)


# ---------------------------------------------------------------- children ---
# Parts that must run in processes of their own: `bench.py --child NAME ARG...`.
# A child says "ready", then answers each line that it reads with a line of JSON.

class Child:
    def __init__(self, name: str, *args):
        self.process = subprocess.Popen(
            [PYTHON, os.path.abspath(__file__), "--child", name, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)

    def ask(self, question) -> None:
        self.process.stdin.write("%s\n" % question)
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a child of the benchmark died")
        return json.loads(line)


@contextlib.contextmanager
def children(name: str, argument_lists):
    crew = [Child(name, *args) for args in argument_lists]
    try:
        for child in crew:
            child.answer()
        yield crew
    finally:
        for child in crew:
            child.process.stdin.close()
        for child in crew:
            child.process.wait()
            child.process.stdout.close()


def ask_all(crew, question) -> list:
    for child in crew:
        child.ask(question)
    return [child.answer() for child in crew]


def serve_child(name: str, args) -> None:
    reply = CHILDREN[name](*args)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(line.strip())), flush=True)


def child_popen():
    """Bare subprocess.Popen: the floor of any queue in Python that starts a process a job."""
    def reply(count):
        for _ in range(int(count)):
            subprocess.Popen(["/bin/sh", "-c", "true"], stdin=subprocess.DEVNULL,
                             start_new_session=True).wait()
    return reply


def child_enqueuer(path):
    """Enqueues for some seconds; the reply is what each call took."""
    queue = open_queue(path)

    def reply(seconds):
        took, end = [], time.monotonic() + float(seconds)
        while time.monotonic() < end:
            begin = time.perf_counter()
            queue.enqueue("true")
            took.append(time.perf_counter() - begin)
        return took
    return reply


def child_finisher(path):
    """Claims and finishes, no process started: the clock at each 100th job of its own."""
    queue = open_queue(path, sync=False)

    def reply(_):
        marks = []
        for done in exchanges(queue):
            if done % 100 == 0:
                marks.append(time.monotonic())
        return marks
    return reply


CHILDREN = {"popen": child_popen, "enqueuer": child_enqueuer, "finisher": child_finisher}

# -------------------------------------------------------------------- rows ---

def row_throughput(bench: Bench) -> list:
    """No-op jobs a second against bare Popen in as many processes as cores."""
    jobs, parts = bench.sizes.jobs, cores()
    counts = (2, 4, 16, 64)
    with children("popen", [()] * parts) as crew:
        def bare() -> float:
            begin = time.perf_counter()
            ask_all(crew, jobs // parts)
            return jobs / (time.perf_counter() - begin)

        measures = {"bare": bare}
        for count in counts:
            measures[count] = lambda count=count: worked_rate(bench, count)
        got = in_turn(bench.sizes.rounds, measures)
    targets = {4: (">=", 0.85), 64: (">=", 0.75)}
    return [figure("no-op jobs, %d workers" % count, got[count], "/s", "bare Popen", got["bare"],
                   targets.get(count)) for count in counts]


def row_peers(bench: Bench) -> list:
    """No-ops against the command-line peers, 4 workers: already listed (jobs/s), and by `run --file` (s)."""
    sizes = bench.sizes
    lines, few = bench.lines(sizes.jobs), bench.lines(sizes.parallel_jobs)
    measures = {
        "queuectl": lambda: worked_rate(bench, 4),
        "run": lambda: run_s([PYTHON, SCRIPT, "--db", bench.path("queue.db"), "run", "--count", "4", "--file", lines]),
        "xargs -P4": lambda: sizes.jobs / xargs_s(lines)}
    if bench.has("parallel"):
        measures["parallel -j4"] = lambda: sizes.parallel_jobs / parallel_s(few)
    if bench.has("tsp"):
        measures["tsp -S4"] = lambda: tsp_rate(bench)
    if bench.has("nq"):
        measures["nq"] = lambda: nq_rate(bench)
    got = in_turn(sizes.rounds, measures)
    return peer_figures(bench, got)


def peer_figures(bench: Bench, got: dict) -> list:
    sizes = bench.sizes
    rows = [("xargs -P4", (">=", 0.95), ""),
            ("parallel -j4", (">=", 4), "parallel: %d jobs, for time" % sizes.parallel_jobs),
            ("tsp -S4", (">", 2), "tsp: %d jobs (it blocks at 1000), their enqueueing counted" % sizes.tsp_jobs),
            ("nq", None, "nq: %d jobs, one after another" % sizes.nq_jobs)]
    figures = [figure("listed no-ops against %s" % peer, got["queuectl"], "/s", peer, got[peer], target, note)
               for peer, target, note in rows if peer in got]
    name = "run --file of %d no-ops" % sizes.jobs
    for peer, target, note in (("xargs -P4", ("<=", 1.3), ""),
                               ("parallel -j4", None, "parallel: reckoned from its rate with fewer")):
        if peer in got:
            figures.append(figure(name, got["run"], "s", peer, [sizes.jobs / rate for rate in got[peer]], target, note))
    return figures


def row_enqueue(bench: Bench) -> list:
    """One enqueue, the whole process, in ms (the median of some calls, each round)."""
    env = dict(os.environ, QUEUECTL_DB=bench.path("queue.db"), NQDIR=os.path.dirname(bench.path("")))
    import_both = "import argparse, sqlite3"
    commands = {"installed": [bench.launcher(), "enqueue", "true"],
                "python -IS": [PYTHON, "-IS", "-c", import_both],
                "script": [PYTHON, SCRIPT, "enqueue", "true"],
                "python": [PYTHON, "-c", import_both]}
    with contextlib.ExitStack() as stack:
        if bench.has("tsp"):
            env.update(stack.enter_context(task_spooler(bench)))
            commands["tsp"] = ["tsp", "-n", "true"]
        if bench.has("nq"):
            commands["nq"] = ["nq", "-c", "-q", "true"]
        measures = {name: lambda argv=argv: median(1000 * run_s(argv, env=env)
                                                   for _ in range(bench.sizes.calls))
                    for name, argv in commands.items()}
        got = in_turn(bench.sizes.rounds, measures)
    figures = [
        figure("enqueue, installed", got["installed"], "ms", "python3 -IS -c 'import argparse, sqlite3'",
               got["python -IS"], ("<=", 1.6)),
        figure("enqueue, python3 queuectl.py", got["script"], "ms", "python3 -c 'import argparse, sqlite3'",
               got["python"], ("<=", 2.5))]
    return figures + [figure("enqueue, installed", got["installed"], "ms", name, got[name])
                      for name in ("tsp", "nq") if name in got]


def row_bulk(bench: Bench) -> list:
    """A file of a million lines, from Python and by the CLI, in jobs/s."""
    count = bench.sizes.deep
    source = bench.lines(count)

    def from_python(path: str) -> None:
        with open(source) as lines:
            fill(path, (line.rstrip("\n") for line in lines))

    def by_cli(path: str) -> None:
        run_s([PYTHON, SCRIPT, "--db", path, "enqueue", "-q", "--file", source])

    def bare(path: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database, open(source) as lines:
            database.execute("PRAGMA journal_mode=wal")
            database.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, command, state)")
            database.execute("CREATE INDEX ready ON job (state, id)")
            database.executemany("INSERT INTO job (command, state) VALUES (?, 'pending')",
                                 ((line.rstrip("\n"),) for line in lines))
            database.commit()

    def rate(load) -> float:
        path = bench.path("queue.db")
        begin = time.perf_counter()
        load(path)
        seconds = time.perf_counter() - begin
        shutil.rmtree(os.path.dirname(path))
        return count / seconds

    got = in_turn(bench.sizes.bulk_rounds, {
        "Python": lambda: rate(from_python), "CLI": lambda: rate(by_cli), "bare": lambda: rate(bare)})
    figures = []
    for way in ("Python", "CLI"):
        note = "%d lines; %d rounds, for time" % (count, bench.sizes.bulk_rounds)
        figures.append(figure("bulk enqueue, %s" % way, got[way], "/s", target=(">=", 150_000), note=note))
        figures.append(figure("bulk enqueue, %s" % way, got[way], "/s", "bare sqlite3, one index", got["bare"]))
    if not hasattr(os, "wait4"):
        return figures
    _, peak = run_usage([PYTHON, SCRIPT, "--db", bench.path("queue.db"), "enqueue", "-q", "--file", source])
    return figures + [figure("bulk enqueue, CLI: memory at its highest", [peak], "MiB", target=("<=", 100))]


class Pipe:
    """A FIFO into which a job writes as its first act, and the moment at which that is read."""

    def __init__(self, bench: Bench):
        self.path = bench.path("fifo")
        os.mkfifo(self.path)
        self.command = "echo >%s" % self.path   # a builtin: sh itself, nothing is started
        self.descriptor = os.open(self.path, os.O_RDWR)

    def after_ms(self, start) -> float:
        """ms from the moment at which start() is called to the job's first instruction."""
        begin = time.perf_counter()
        started = start()                               # a process, or a job's id
        os.read(self.descriptor, 1)
        took = 1000 * (time.perf_counter() - begin)
        if isinstance(started, subprocess.Popen):
            started.wait()
        time.sleep(random.uniform(0.004, 0.012))        # the worker is idle again
        return took


def row_pickup(bench: Bench) -> list:
    """From an enqueue to its job's first instruction, workers idle, in ms."""
    pipe, path = Pipe(bench), bench.path("queue.db")
    env = dict(os.environ, QUEUECTL_DB=path, NQDIR=os.path.dirname(bench.path("")))

    def started(*argv):
        return lambda: subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    shell = ("/bin/sh", "-c", pipe.command)
    commands = {"installed": started(bench.launcher(), "enqueue", pipe.command)}
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(contextlib.closing(open_queue(path)))
        stack.enter_context(workers(path, 4))
        if bench.has("tsp"):
            env.update(stack.enter_context(task_spooler(bench)))
            commands["tsp"] = started("tsp", "-n", *shell)
        if bench.has("nq"):
            commands["nq"] = started("nq", "-c", "-q", *shell)

        def picks(start, count):
            return [pipe.after_ms(start) for _ in range(count)]

        measures = {"api": lambda: picks(lambda: queue.enqueue(pipe.command), bench.sizes.picks),
                    "popen": lambda: picks(started(*shell), bench.sizes.peer_picks)}
        for name, start in commands.items():
            measures[name] = lambda start=start: picks(start, bench.sizes.peer_picks)
        got = in_turn(bench.sizes.rounds, measures)
    return pickup_figures(bench, got, [name for name in ("tsp", "nq") if name in got])


def pickup_figures(bench: Bench, got: dict, peers) -> list:
    middle = {name: [median(numbers) for numbers in rounds] for name, rounds in got.items()}
    note = "%d times a round; the insert, its sync and the shell's start are within" % bench.sizes.picks
    p99 = [percentile(numbers, 0.99) for numbers in got["api"]]
    figures = [
        figure("pick-up, median", middle["api"], "ms", target=("<=", 5), note=note),
        figure("pick-up, p99", p99, "ms", target=("<=", 25), note="worst %.1f" % max(map(max, got["api"]))),
        figure("pick-up, median", middle["api"], "ms", "bare Popen of the same shell", middle["popen"])]
    return figures + [figure("pick-up after the installed command", middle["installed"], "ms", name, middle[name],
                             note="from the start of the enqueueing process") for name in peers]


def cpu_s(pids) -> float:
    """CPU seconds of all threads, to the nanosecond (stat counts in ticks of 10 ms)."""
    total = 0
    for pid in pids:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as file:
                total += int(file.read().split()[0])
    return total / 1e9


def share_of_core(pids, during) -> float:
    """The part of one core, in percent, that processes take while `during` runs."""
    before, begin = cpu_s(pids), time.monotonic()
    during()
    return 100 * (cpu_s(pids) - before) / (time.monotonic() - begin)


def has_open(pid: int, path: str) -> bool:
    folder = "/proc/%d/fd" % pid
    return any(os.path.realpath(os.path.join(folder, name)) == os.path.realpath(path) for name in os.listdir(folder))


def written(pids) -> int:
    """Bytes that the processes sent to a disk, dirtied maps included."""
    total = 0
    for pid in pids:
        with open("/proc/%d/io" % pid) as file:
            total += int(file.read().split("write_bytes:")[1].split()[0])
    return total


def pss_mib(pids) -> float:
    total = 0
    for pid in pids:
        with open("/proc/%d/smaps_rollup" % pid) as file:
            total += int(file.read().split("Pss:")[1].split()[0])
    return total / 1024


@contextlib.contextmanager
def used_pool(bench: Bench, settle_s: float):
    """16 workers that have worked and are idle now: the pids of all their processes."""
    path = bench.path("queue.db")
    before = marked_pids()
    with workers(path, 16), contextlib.closing(open_queue(path)) as queue:
        fill(path, ["true"] * 320)
        wait_completed(queue, 320)
        time.sleep(settle_s)
        yield marked_pids() - before


def row_idle(bench: Bench) -> list:
    """CPU and writes of 16 idle workers and whatever watches for them (Linux)."""
    windows, seconds = bench.sizes.idle_windows, bench.sizes.idle_window_s
    shares = []
    with used_pool(bench, 2) as pids:
        before, at = written(pids), cpu_s(pids)
        for _ in range(windows):
            time.sleep(seconds)
            at, last = cpu_s(pids), at
            shares.append(100 * (at - last) / seconds)
        bytes_written = written(pids) - before
    note = "%d processes, %d windows of %d s in a row: one round, for time" % (len(pids), windows, seconds)
    return [figure("idle, 16 workers: CPU of one core", [sum(shares) / windows], "%", target=("<=", 0.2),
                   note=note + "; windows %.2f to %.2f" % (min(shares), max(shares))),
            figure("idle, 16 workers: written to disk", [bytes_written], "B", target=("<=", 0), note=note)]


def row_memory(bench: Bench) -> list:
    """PSS of a supervisor and 16 idle workers that have worked, for each worker (Linux)."""
    numbers = []
    for _ in range(bench.sizes.rounds):
        with used_pool(bench, 0.5) as pids:
            numbers.append(pss_mib(pids) / 16)
    return [figure("memory: PSS for each of 16 idle workers", numbers, "MiB", target=("<=", 6),
                   note="supervisor included, after 20 jobs each")]


def with_delayed(bench: Bench, path: str) -> None:
    with contextlib.closing(open_queue(path)) as queue:
        job = queue.enqueue("true", delay=7 * 86400, priority=10)
    multiply(path, job, bench.sizes.delayed)


def with_blocked(bench: Bench, path: str) -> None:
    """As many again by each cause, of a higher priority than what is claimed, and one job that causes it."""
    with contextlib.closing(open_queue(path)) as queue:
        queue.enqueue("running", queue="limited")
        queue.enqueue("running", key="taken")
        for worker in (1, 2):                   # two workers that stay at their jobs
            queue.claims.finish_and_claim(worker)
        parent = queue.enqueue("parent", hold=True)
        blocked = [queue.enqueue("true", priority=10, **options) for options in (
            {"after": [str(parent)]}, {"key": "taken"}, {"queue": "limited"}, {"queue": "paused"})]
    sql(path, "UPDATE queue SET paused=1 WHERE name='paused'")
    sql(path, "UPDATE queue SET max_running=1 WHERE name='limited'")
    for job in blocked:
        multiply(path, job, bench.sizes.blocked)


def with_queues(bench: Bench, path: str) -> None:
    """As many jobs in each of 1,000 queues as are claimed in all, so that none of the queues is empty at any time."""
    count, queues = bench.sizes.exchanges * (bench.sizes.depth_rounds + 1), 1000
    fill(path, [{"command": "true", "queue": "q%d" % (n % queues)} for n in range(max(count, 3 * queues))])


def depth_databases(bench: Bench) -> dict:
    """What is measured -> its database, with the same few jobs that can be claimed at the end of each."""
    paths = {"shallow": bench.path("queue.db"), "%d pending" % bench.sizes.deep: bench.deep(),
             "%d finished behind" % bench.sizes.deep: bench.finished()}
    for name, build in (("%d delayed ahead" % bench.sizes.delayed, with_delayed),
                        ("1000 queues", with_queues),
                        ("%d each blocked by dependency, key, limit, pause" % bench.sizes.blocked, with_blocked)):
        paths[name] = bench.path("queue.db")
        build(bench, paths[name])
    for path in paths.values():
        fill(path, ["true"] * bench.sizes.shallow)
    return paths


def row_depth(bench: Bench) -> list:
    """Claim + finish in one transaction, in µs, with much before and behind."""
    queues = {name: open_queue(path, sync=False) for name, path in depth_databases(bench).items()}
    count = bench.sizes.exchanges

    def cost(queue) -> float:
        queue.enqueue_many(["true"] * count)    # so that the number pending stays what it is
        begin = time.perf_counter()
        done = sum(1 for _ in exchanges(queue, count))
        assert done == count, "only %d of %d jobs could be claimed" % (done, count)
        return 1e6 * (time.perf_counter() - begin) / count

    got = in_turn(bench.sizes.depth_rounds, {name: lambda queue=queue: cost(queue)
                                             for name, queue in queues.items()})
    for queue in queues.values():
        queue.close()
    return [figure("claim + finish, %s" % name, got[name], "µs", "%d pending" % bench.sizes.shallow,
                   got["shallow"], ("<=", 1.2)) for name in got if name != "shallow"]


def row_looking(bench: Bench) -> list:
    """`status`, `list`, `show`: the whole process, in ms, with 1,000,000 jobs and with 100."""
    deep, shallow = bench.deep(), bench.path("shallow.db")
    fill(shallow, ["true"] * 100)
    words = {"status": ["status"], "list": ["list"], "show": ["show", "50"]}
    measures = {(name, path): lambda argv=[PYTHON, SCRIPT, "--db", path] + tail: median(
                    1000 * run_s(argv) for _ in range(bench.sizes.looks))
                for name, tail in words.items() for path in (shallow, deep)}
    got = in_turn(bench.sizes.rounds, measures)
    figures = []
    for name in words:
        mine, theirs = got[name, deep], got[name, shallow]
        quick = median(mine) <= 100
        figures.append(figure("%s with %d jobs" % (name, bench.sizes.deep), mine, "ms", "with 100 jobs", theirs,
                              None if quick else ("<=", 1.3), "or <= 100 ms: ok" if quick else "or <= 100 ms"))
    return figures


def row_history(bench: Bench) -> list:
    """`events` and `stats` with 1,000,000 finished jobs: processor time and memory of the whole process."""
    path = bench.finished()
    got = in_turn(bench.sizes.growth_rounds, {
        name: lambda name=name: run_usage([PYTHON, SCRIPT, "--db", path, name]) for name in ("events", "stats")})
    figures = []
    for name, most in (("events", 5), ("stats", 0.5)):
        seconds, sizes = zip(*got[name])
        figures.append(figure("%s with %d finished jobs" % (name, bench.sizes.deep), seconds, "s", target=("<=", most)))
        figures.append(figure("%s with %d finished jobs: memory at its highest" % (name, bench.sizes.deep), sizes, "MiB",
                              target=("<=", 100)))
    return figures


def row_wait(bench: Bench) -> list:
    """What one more `wait` costs: processor time while nothing happens and while 4 workers are busy, and memory (Linux)."""
    path, jobs, count = bench.path("queue.db"), bench.sizes.jobs, 8
    with contextlib.closing(open_queue(path)) as queue:
        last = str(queue.enqueue("true", hold=True))
        waiting = [subprocess.Popen([bench.launcher(), "--db", path, "wait", last], stderr=subprocess.DEVNULL) for _ in range(count)]
        pids = [process.pid for process in waiting]
        try:
            wait_until(lambda: all(has_open(pid, path) for pid in pids))
            idle = share_of_core(pids, lambda: time.sleep(bench.sizes.idle_window_s / 2)) / count
            fill(path, ["true"] * jobs)
            with workers(path, 4):
                busy = share_of_core(pids, lambda: wait_completed(queue, jobs)) / count
            size = pss_mib(pids) / count
        finally:
            for process in waiting:
                process.kill()
                process.wait()
    note = "%d commands that wait for one job" % count
    return [figure("one more wait, idle: CPU of one core", [idle], "%", note=note),
            figure("one more wait, 4 workers busy: CPU of one core", [busy], "%", note=note),
            figure("one more wait: PSS", [size], "MiB", note=note)]


def row_contention(bench: Bench) -> list:
    """64 processes that enqueue without pause while 16 workers run: ms of one enqueue."""
    path, rounds = bench.path("queue.db"), []
    fill(path, ["true"] * 100)
    with workers(path, 16), children("enqueuer", [(path,)] * 64) as crew:
        for _ in range(bench.sizes.rounds):
            rounds.append([[1000 * took for took in answer] for answer in ask_all(crew, bench.sizes.storm_s)])
    calls = [sum(crew, []) for crew in rounds]          # of each round, whatever the process
    per_process = [len(process) for crew in rounds for process in crew]
    note = "%d calls in %g s, %d to %d by one process" % (
        median(map(len, calls)), bench.sizes.storm_s, min(per_process), max(per_process))
    name = "64 enqueuers, 16 workers"
    return [figure(name + ": median of one enqueue", map(median, calls), "ms", note=note),
            figure(name + ": p99", [percentile(one, 0.99) for one in calls], "ms", target=("<=", 100)),
            figure(name + ": longest of all", [max(map(max, calls))], "ms", target=("<=", 1000))]


def row_sync(bench: Bench) -> list:
    """What it costs when workers' commits are synced too (config set sync full); enqueue's always are."""
    queues = {name: open_queue(bench.path("queue.db"), sync=name == "full") for name in ("normal", "full")}

    def rate(queue) -> float:
        queue.enqueue_many(["true"] * bench.sizes.exchanges)
        begin = time.perf_counter()
        return sum(1 for _ in exchanges(queue)) / (time.perf_counter() - begin)

    def worked_in_full() -> float:
        path = bench.path("queue.db")
        cli(path, "config", "set", "sync", "full")
        return worked_rate(bench, 4, path)

    got = in_turn(bench.sizes.sync_rounds, {
        "normal": lambda: rate(queues["normal"]), "full": lambda: rate(queues["full"]),
        "workers, normal": lambda: worked_rate(bench, 4), "workers, full": worked_in_full})
    for queue in queues.values():
        queue.close()
    return [figure("claim + finish, sync=full", got["full"], "/s", "sync=normal", got["normal"]),
            figure("no-op jobs, 4 workers, sync=full", got["workers, full"], "/s", "sync=normal",
                   got["workers, normal"])]


def row_growth(bench: Bench) -> list:
    """100,000 claims and finishes by 4 processes: last tenth against first, and the largest WAL."""
    firsts, lasts, sizes = [], [], []
    for _ in range(bench.sizes.growth_rounds):
        first, last, size = grow(bench)
        firsts.append(first)
        lasts.append(last)
        sizes.append(size / 2**20)
    note = "%d jobs, 4 processes, nothing spawned; %d rounds, for time" % (
        bench.sizes.growth, bench.sizes.growth_rounds)
    return [figure("growth: last tenth", lasts, "/s", "first tenth", firsts, (">=", 0.95), note),
            figure("growth: WAL at its highest", sizes, "MiB", target=("<=", 64))]


def grow(bench: Bench):
    """Rates of the first and the last tenth, and the largest size of the WAL."""
    path, largest = bench.path("queue.db"), 0
    fill(path, ("true" for _ in range(bench.sizes.growth)))
    with children("finisher", [(path,)] * 4) as crew:
        for child in crew:
            child.ask("go")
        marks, watched = [], crew[0].process.stdout
        while not select.select([watched], [], [], 0.02)[0]:
            largest = max(largest, os.path.getsize(path + "-wal"))
        for child in crew:
            marks += child.answer()
    marks.sort()                                        # the clock at each 100th job of a process
    tenth = len(marks) // 10
    return (100 * tenth / (marks[tenth] - marks[0]), 100 * tenth / (marks[-1] - marks[-1 - tenth]), largest)


def row_changes(bench):
    """rm, cancel, retry and hold of many jobs: a job's share of the whole process, and the peak of its memory."""
    count, figures = bench.sizes.growth, []
    path = bench.path("queue.db")
    fill(path, ["true"] * count)
    for words in (("hold", "--all"), ("release", "--all"), ("cancel", "--all"), ("retry", "--all"), ("cancel", "--all")):
        seconds = run_s([PYTHON, SCRIPT, "--db", path, *words])
        figures.append(figure("%s of %d" % (" ".join(words), count), [seconds / count * 1e6], "us", target=("<=", 40)))
    begin = time.perf_counter()
    _, peak = run_usage([PYTHON, SCRIPT, "--db", path, "rm", "--all"])
    took = (time.perf_counter() - begin) / count * 1e6
    return figures + [figure("rm --all of %d" % count, [took], "us", target=("<=", 40)),
                      figure("rm --all of %d: memory at its highest" % count, [peak], "MiB", target=("<=", 100))]


def row_programs(bench):
    """Real short programs by 4 workers, from the first claim to the last commit, beside xargs as a whole."""
    figures, data = [], bench.path("data")
    with open(data, "wb") as file:
        file.write(os.urandom(100_000))
    for line, part in ("/bin/true", 1), ("sha256sum %s" % data, 1), ("%s -c pass" % PYTHON, 5):
        jobs = bench.sizes.parallel_jobs // part
        lines = bench.lines(jobs, line)

        def mine():
            path = bench.path("queue.db")
            fill(path, [line] * jobs)
            with workers(path, 4), contextlib.closing(open_queue(path)) as queue:
                wait_completed(queue, jobs)
            with contextlib.closing(sqlite3.connect(path)) as database:
                first, last = database.execute("SELECT min(started_at), max(finished_at) FROM job").fetchone()
            return jobs / (last - first)
        got = in_turn(bench.sizes.bulk_rounds, {"mine": mine, "xargs": lambda: jobs / xargs_s(lines)})
        figures.append(figure("%s by 4 workers" % os.path.basename(line.split()[0]), got["mine"], "/s", "xargs -P4", got["xargs"]))
    return figures


ROWS = [    # name, function, works on Linux only
    ("throughput", row_throughput, False),
    ("peers", row_peers, False),
    ("enqueue", row_enqueue, False),
    ("bulk", row_bulk, False),
    ("pickup", row_pickup, False),
    ("idle", row_idle, True),
    ("memory", row_memory, True),
    ("depth", row_depth, False),
    ("looking", row_looking, False),
    ("history", row_history, False),
    ("wait", row_wait, True),
    ("contention", row_contention, False),
    ("growth", row_growth, False),
    ("sync", row_sync, False),
    ("changes", row_changes, False),
    ("programs", row_programs, False),
]

# -------------------------------------------------------------- comparison ---

def summary(one: Figure) -> dict:
    """What is printed, judged, written as JSON and compared, of one figure."""
    ratios = [mine / theirs for mine, theirs in zip(one.mine, one.theirs)] if one.peer else []
    result = dict(name=one.name, unit=one.unit, median=median(one.mine), low=min(one.mine), high=max(one.mine),
                  rounds=len(one.mine), peer=one.peer, peer_median=median(one.theirs) if one.peer else None,
                  ratio=median(ratios) if ratios else None, ratio_low=min(ratios, default=None),
                  ratio_high=max(ratios, default=None), target=list(one.target) if one.target else None,
                  note=one.note)
    result["ok"] = judge(result)
    return result


def judge(result: dict):
    """True, False, or None where there is no target."""
    if result["target"] is None:
        return None
    sign, bound = result["target"]
    number = result["median"] if result["ratio"] is None else result["ratio"]
    return {">=": number >= bound, ">": number > bound, "<=": number <= bound}[sign]


def short(number, unit: str = "") -> str:
    if number is None:
        return ""
    text = "%.2f" % number if abs(number) < 100 else "{:,.0f}".format(number)
    return "%s %s" % (text, unit) if unit and unit[0] != "/" else text + unit


def table(results) -> str:
    """In Markdown, so that the README can show it as it is printed."""
    lines = ["| figure | queuectl | against | | ratio (lowest to highest) | must reach | |",
             "|---|---|---|---|---|---|---|"]
    for one in results:
        ratio = "" if one["ratio"] is None else "%.2f (%.2f to %.2f)" % (
            one["ratio"], one["ratio_low"], one["ratio_high"])
        target = "%s %s" % (one["target"][0], short(one["target"][1])) if one["target"] else ""
        lines.append("| %s | %s | %s | %s | %s | %s | %s |" % (
            one["name"], short(one["median"], one["unit"]), one["peer"] or "", short(one["peer_median"], one["unit"]),
            ratio, target, {True: "ok", False: "MISS", None: ""}[one["ok"]]))
    return "\n".join(lines)


def got_worse(results, recorded) -> list:
    """Sentences. Ratios only: the machine, and what else runs on it, may be another."""
    before = {(one["name"], one["peer"]): one for one in recorded}
    sentences = []
    for one in results:
        old = before.get((one["name"], one["peer"]))
        if old is None or one["ratio"] is None or old["ratio"] is None:
            continue
        change = one["ratio"] / old["ratio"]
        worse = change < 1 - WORSE if one["unit"].startswith("/") else change > 1 + WORSE
        if worse:
            sentences.append("%s against %s: ratio %.2f, was %.2f" % (
                one["name"], one["peer"], one["ratio"], old["ratio"]))
    return sentences


def compare(results) -> None:
    try:
        with open(RECORDED) as file:
            recorded = json.load(file)
    except FileNotFoundError:
        print("No recorded run to compare with (%s)." % RECORDED)
        return
    sentences = got_worse(results, recorded["figures"])
    print("Compared with the recorded run of %s (ratios only, more than %d %%): %s" % (
        recorded["date"], 100 * WORSE, "worse:" if sentences else "nothing got worse."))
    for sentence in sentences:
        print("- " + sentence)


# -------------------------------------------------------------------- main ---

def processor() -> str:
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def machine(bench: Bench) -> dict:
    return dict(processor=processor(), cores=cores(), system="%s %s" % (platform.system(), platform.release()),
                python=platform.python_version(), sqlite=sqlite3.sqlite_version,
                file_system=file_system(bench.directory), load=os.getloadavg()[0])


def measure(bench: Bench, names) -> list:
    results = []
    for name, function, linux_only in ROWS:
        if name not in names:
            continue
        if linux_only and not sys.platform.startswith("linux"):
            bench.missing.append("/proc (row %s)" % name)
            continue
        begin = time.monotonic()
        try:
            results += [summary(one) for one in function(bench)]
        except Exception:                       # the other rows are still worth having
            traceback.print_exc()
            bench.failed.append(name)
        say("bench: %s: %.0f s" % (name, time.monotonic() - begin))
    return results


def report(run: dict) -> None:
    print(table(run["figures"]))
    notes = dict.fromkeys("%s: %s" % (one["name"], one["note"]) for one in run["figures"] if one["note"])
    print("\n" + "\n".join("- " + note for note in notes))
    missing = ", ".join(run["missing"])
    print("\nMissing, so not compared: %s" % missing if missing else "\nNo peer is missing.")
    if run["failed"]:
        print("NOT MEASURED, the row ended in an error (above): %s" % ", ".join(run["failed"]))
    missed = [one["name"] for one in run["figures"] if one["ok"] is False]
    print("%s, %.0f s%s. %s" % (run["date"], run["seconds"], ", --quick: sizes too small to judge"
                                if run["quick"] else "", json.dumps(run["machine"])))
    if run["seconds"] > LIMIT_S:
        print("This took longer than the %d s that `make bench` may take." % LIMIT_S)
    print("Targets missed: %s" % (", ".join(missed) or "none"))
    compare(run["figures"])


def record(run: dict, path) -> None:
    """The recorded run is one of all rows in full; others go where --json says, or nowhere."""
    if path is None and (run["quick"] or run["partial"] or run["failed"]):
        print("Not recorded: with --quick, --only or an error JSON is written only with --json FILE.")
        return
    with open(path or RECORDED, "w") as file:
        json.dump(run, file, indent=1)
        file.write("\n")
    print("Written to %s" % (path or RECORDED))


def parse(argv):
    names = [name for name, _, _ in ROWS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="rows: " + " ".join(names))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: only to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write here instead of to tests/bench/last.json")
    parser.add_argument("--list", action="store_true", help="show the rows and what they measure")
    options = parser.parse_args(argv)
    options.names = options.only or names
    return options


def stop(number, _frame) -> None:
    raise KeyboardInterrupt("signal %d" % number)


def main(argv) -> int:
    if argv[:1] == ["--child"]:
        serve_child(argv[1], argv[2:])
        return 0
    options = parse(argv)
    if options.list:
        print("\n".join("%-11s %s" % (name, function.__doc__) for name, function, _ in ROWS))
        return 0
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, stop)
    os.environ[TOKEN] = "%d-%d" % (os.getpid(), time.time_ns())
    os.environ.pop("QUEUECTL_DB", None)
    bench, begin = Bench(QUICK if options.quick else FULL), time.monotonic()
    try:
        figures = measure(bench, options.names)
        run = dict(date=time.strftime("%Y-%m-%d %H:%M"), machine=machine(bench), quick=options.quick,
                   partial=options.only is not None, missing=bench.missing, failed=bench.failed, figures=figures,
                   seconds=round(time.monotonic() - begin))
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    finally:
        bench.close()
    report(run)
    record(run, options.json)
    return 1 if run["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
