"""What the fault tests and the storm share: the jobs that they run, ways to break things, one checker.

Every test job holds a lock of its own number while it runs, and so does every child that it leaves
behind; it writes its start and its end into one journal.  A start that finds the lock taken is an
overlap: two attempts of one job at the same time.  `check` compares the journal with the database.
"""
from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRASHED = "crashed"
CHARGED = ("completed", "failed", "timeout", "cancelled")
FINAL = ("completed", "dead", "cancelled")

# job.py DIRECTORY STEP...: does the steps in order, then ends with status 0.
JOB = r'''
import fcntl, os, signal, sys, time
folder, steps = sys.argv[1], sys.argv[2:]
job, attempt = os.environ["QUEUECTL_JOB_ID"], int(os.environ["QUEUECTL_ATTEMPT"])
journal = os.open(os.path.join(folder, "journal"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

def note(event, detail=0):
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    os.write(journal, ("%s %s %d %d %.6f %s\n" % (event, job, attempt, os.getpid(), now, detail)).encode())

def end(code):
    note("end", code)
    os._exit(code)

def deaf():
    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)

def child(life):
    here, there = os.pipe()
    if os.fork():
        os.close(there)
        os.read(here, 1)  # returns when the child has written where it is
        return os.close(here)
    note("child")
    os.close(there)
    life()
    os._exit(0)

def until(path):
    while not os.path.exists(os.path.join(folder, path)):
        time.sleep(0.01)

def forever():
    deaf()
    while True:
        time.sleep(60)

def stray(path):
    """Leaves the process group, and goes on writing to the output until `path` is there."""
    os.setsid()
    deaf()
    while not os.path.exists(os.path.join(folder, path)):
        try:
            os.write(1, b"stray of %s.%d\n" % (job.encode(), attempt))
        except OSError:
            pass
        time.sleep(0.01)

def worker():
    """The parent of the job's main process, which is this one or the shell that started it."""
    with open("/proc/%d/stat" % os.getsid(0)) as file:
        return int(file.read().rpartition(")")[2].split()[1])

own = os.open(os.path.join(folder, "lock.%s" % job), os.O_WRONLY | os.O_CREAT, 0o666)
try:
    fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("overlap")
note("start")
for step in steps:
    word, _, value = step.partition("=")
    if word == "sleep":
        time.sleep(float(value))
    elif word == "until":
        until(value)
    elif word == "hang":                 # in the attempts before this one
        while attempt < int(value):
            time.sleep(60)
    elif word == "fail":                 # in the attempts before this one
        if attempt < int(value):
            end(1)
    elif word == "exit":
        end(int(value))
    elif word == "print":
        try:
            os.write(1, value.encode() + b"\n")
        except OSError:                  # no space left: not what these jobs are about
            pass
    elif word == "fill":                 # that many bytes of output, as far as there is room
        try:
            left = int(value)
            while left > 0:
                left -= os.write(1, b"x" * min(left, 65536))
        except OSError:
            pass
    elif word == "deaf":
        deaf()
    elif word == "child":
        child(forever)
    elif word == "stray":
        if attempt == 1:
            child(lambda: stray(value))
    elif word == "kill-worker":          # in the attempts before this one; all of them without a number
        if not value or attempt < int(value):
            note("kill")
            os.kill(worker(), signal.SIGKILL)
            time.sleep(60)
    elif word == "kill-group":
        note("kill")
        os.kill(0, signal.SIGKILL)
    elif word == "close-output":
        os.closerange(0, 3)
    elif word == "read-input":
        end(0 if os.read(0, 1) == b"" else 9)
    else:
        raise SystemExit("no step " + step)
end(0)
'''

Entry = namedtuple("Entry", "event job attempt pid at detail")
Row = namedtuple("Row", "id state gate attempt attempts crashes worker batch error")
Past = namedtuple("Past", "job attempt worker started_at finished_at outcome error")


class Bench:
    """A LiveQueue with test jobs, and the hand that breaks it."""

    def __init__(self, queue):
        self.queue = queue
        self.folder = queue.dir
        (self.folder / "job.py").write_text(JOB)

    # -- jobs --

    def words(self, *steps):
        return [sys.executable, "-IS", str(self.folder / "job.py"), str(self.folder), *steps]

    def line(self, *steps):
        """A test job as one line of a bulk file."""
        return " ".join(map(shlex.quote, self.words(*steps)))

    def enqueue(self, *steps, options=(), **more):
        return self.queue.enqueue(*options, *self.words(*steps), **more)

    def enqueue_many(self, lines):
        """Jobs from bulk lines (strings or dicts for JSON); returns their ids."""
        import json
        text = "".join((json.dumps(line) if isinstance(line, dict) else line) + "\n" for line in lines)
        done = self.queue.cli("enqueue", "--file", "-", stdin=text)
        return [int(number) for number in done.stdout.split()]

    def go(self, name):
        (self.folder / name).touch()

    def journal(self, *events, job=None):
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            event, number, attempt, pid, at, detail = line.split()
            entries.append(Entry(event, int(number), int(attempt), int(pid), float(at), detail))
        return [e for e in entries if (not events or e.event in events) and (job is None or e.job == job)]

    def started(self, job, attempt=1):
        """The entry of this attempt's start, once it is there."""
        for entry in self.journal("start", job=job):
            if entry.attempt == attempt:
                return entry
        return None

    # -- processes --

    def workers(self):
        """{worker id: pid} as the database lists them."""
        return dict(self.queue.sql("SELECT id, pid FROM worker ORDER BY id"))

    def worker_of(self, job):
        [(pid,)] = self.queue.sql("SELECT worker.pid FROM worker JOIN job ON job.worker=worker.id WHERE job.id=?", job)
        return pid

    def supervisors(self):
        return dict(self.queue.sql("SELECT id, pid FROM supervisor ORDER BY id"))

    def log(self):
        """What the background workers have said."""
        try:
            return (self.queue.files / "workers.log").read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def patched(self, patch, *args, **options):
        """Runs a command of queuectl in a child that `patch` (Python, sees `queuectl`) has changed."""
        return self.queue.run(self.patched_command(patch, *args), **dict({"check": False}, **options))

    def patched_command(self, patch, *args):
        program = ("import os, signal, sys, time\nsys.path.insert(0, %r)\nimport queuectl\n"
                   "def once(name):\n"
                   "    try:\n"
                   "        os.close(os.open(os.path.join(%r, name), os.O_CREAT | os.O_EXCL))\n"
                   "        return True\n"
                   "    except FileExistsError:\n"
                   "        return False\n"
                   "def die():\n"
                   "    os.kill(os.getpid(), signal.SIGKILL)\n"
                   # Workers that are not forked must be changed too.
                   "queuectl.worker_argv = lambda database: [sys.executable, __file__, '_worker', '--db', database]\n"
                   "%s\n"
                   "sys.exit(queuectl.main(sys.argv[1:]))\n") % (str(ROOT), str(self.folder), patch)
        path = self.folder / ("patched-%08x.py" % zlib.crc32(program.encode()))
        path.write_text(program)
        return [sys.executable, str(path), "--db", str(self.queue.db), *map(str, args)]

    def patched_beside(self, patch, *args, **options):
        """As `patched`, in the background (the fixture ends it)."""
        from conftest import Background
        queue = self.queue
        path = queue.dir / ("output-%d.txt" % len(queue.background))
        env = queue.environment(options.pop("env", None))
        process = Background(self.patched_command(patch, *args), path, cwd=str(queue.dir), env=env, **options)
        queue.background.append(process)
        return process


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    return process_state(pid) not in ("Z", "X", "")


def process_state(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def kill(*pids, number=getattr(signal, "SIGKILL", None)):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def within(seconds):
    """A time limit, stretched where the machine has more to do than it has cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


# ---- the checker -----------------------------------------------------------------------------------

def database_faults(path, full=True):
    """What is wrong with a database by itself, as a list of sentences; empty when it is sound."""
    connection = sqlite3.connect(str(path), timeout=20)
    try:
        rows = connection.execute("PRAGMA integrity_check" if full else "PRAGMA quick_check").fetchall()
        faults = ["integrity_check: %s" % text for text, in rows if text != "ok"]
        if faults:
            return faults
        connection.execute("BEGIN")  # one moment for all that follows
        faults += _counts(connection)
        faults += _shape(connection)
        return faults
    finally:
        connection.close()


def _counts(db):
    """Counters that are kept beside the rows must agree with them."""
    faults = []
    for name, kept, counted in (
            ("tally", "SELECT queue, state, n FROM tally WHERE n<>0",
             "SELECT queue, state, count(*) FROM job GROUP BY queue, state"),
            ("env.uses", "SELECT id, uses FROM env", "SELECT env, count(*) FROM (SELECT env FROM job UNION ALL "
             "SELECT env FROM schedule) GROUP BY env"),
            ("batch.unfinished", "SELECT id, unfinished FROM batch",
             "SELECT batch.id, count(job.id) FROM batch LEFT JOIN job ON job.batch=batch.id "
             "AND job.state IN ('pending','processing','failed') GROUP BY batch.id")):
        left, right = set(db.execute(kept).fetchall()), set(db.execute(counted).fetchall())
        if left != right:
            faults.append("%s says %s, the rows say %s" % (name, sorted(left - right)[:5], sorted(right - left)[:5]))
    return faults


def _shape(db):
    """What no row may look like, at any moment."""
    faults = []
    for sentence, sql in (
            ("a processing job without a worker, or with a gate",
             "SELECT id FROM job WHERE state='processing' AND (worker IS NULL OR gate IS NOT NULL)"),
            ("a job that does not run but has a worker", "SELECT id FROM job WHERE state<>'processing' AND worker IS NOT NULL"),
            ("a waiting job without a gate", "SELECT id FROM job WHERE state IN ('pending','failed') AND gate IS NULL"),
            ("a finished job with a gate", "SELECT id FROM job WHERE state IN ('completed','dead','cancelled') AND gate IS NOT NULL"),
            ("two jobs of one worker", "SELECT worker FROM job WHERE worker IS NOT NULL GROUP BY worker HAVING count(*)>1"),
            ("an attempt twice in the history", "SELECT job FROM history WHERE attempt IS NOT NULL GROUP BY job, attempt HAVING count(*)>1"),
            ("an attempt in the history that never began",
             "SELECT job.id FROM history JOIN job ON job.id=history.job WHERE history.attempt>job.attempt"),
            ("an attempt that is missing in the history",
             "SELECT id FROM job WHERE attempt-(state='processing')<>"
             "(SELECT count(*) FROM history WHERE job=job.id AND attempt IS NOT NULL)"),
            ("the history of a job that is gone",  # but one row, the newest of all when it was removed: no number is given twice
             "SELECT job FROM history WHERE job NOT IN (SELECT id FROM job) ORDER BY seq LIMIT -1 OFFSET 1"),
            ("more attempts charged than begun", "SELECT id FROM job WHERE attempts>attempt OR attempts<0 OR crashes<0"),
            ("a completed job without its completed attempt",
             "SELECT id FROM job WHERE state='completed' AND NOT EXISTS(SELECT 1 FROM history WHERE job=job.id "
             "AND outcome='completed' AND attempt=job.attempt)"),
            ("a job completed twice", "SELECT job FROM history WHERE outcome='completed' GROUP BY job HAVING count(*)>1"),
            ("a key held by a finished job", "SELECT key FROM keylock WHERE NOT EXISTS(SELECT 1 FROM job "
             "WHERE job.id=keylock.job AND state IN ('pending','processing','failed'))")):
        rows = db.execute(sql).fetchall()
        if rows:
            faults.append("%s: %s" % (sentence, [row[0] for row in rows][:10]))
    return faults


def journal_faults(bench, rows, past, revived=()):
    """Where the jobs' own journal contradicts the database."""
    jobs = {row.id: row for row in rows}
    known = {(p.job, p.attempt) for p in past} | {(row.id, row.attempt) for row in rows if row.state == "processing"}
    entries = bench.journal()
    faults = ["two attempts of job %d overlapped: %s" % (e.job, e) for e in entries if e.event == "overlap"]
    ends = {(e.job, e.attempt): e.detail for e in entries if e.event == "end"}
    starts = set()
    for entry in entries:
        if entry.event == "start":
            attempt = entry.job, entry.attempt
            if attempt in starts:
                faults.append("attempt %d of job %d was started twice" % (entry.attempt, entry.job))
            if entry.job in jobs and attempt not in known:
                faults.append("attempt %d of job %d ran but is not in the history" % (entry.attempt, entry.job))
            starts.add(attempt)
    for p in past:
        if p.outcome == "completed":
            if (p.job, p.attempt) in starts and ends.get((p.job, p.attempt)) != "0":
                faults.append("job %d is recorded as completed, but its attempt %d never ended well" % (p.job, p.attempt))
            if p.job in jobs and p.job not in revived and jobs[p.job].attempt != p.attempt:
                faults.append("job %d ran again after it was completed" % p.job)
        if p.job in jobs and p.started_at is not None and p.finished_at is not None and p.finished_at < p.started_at - 0.01:
            faults.append("attempt %d of job %d ended before it began" % (p.attempt, p.job))
    return faults


def charge_faults(rows, past, revived=()):
    """Retries used up and crashes counted must be what the history says."""
    faults, by_job = [], {}
    for p in past:
        by_job.setdefault(p.job, []).append(p)
    for row in rows:
        if row.id in revived:
            continue
        mine = by_job.get(row.id, ())
        crashes = sum(p.outcome == CRASHED for p in mine)
        charged = sum(p.outcome in CHARGED for p in mine) + (row.state == "processing")
        if row.crashes != crashes:
            faults.append("job %d counts %d crashes, its history %d" % (row.id, row.crashes, crashes))
        if row.attempts != charged:
            faults.append("job %d has %d attempts charged, by its history %d: %s" % (
                row.id, row.attempts, charged, [p.outcome for p in mine]))
        faults += ["a crash of job %d is told as %r" % (row.id, p.error) for p in mine
                   if p.outcome == CRASHED and p.error not in ("worker died", "Slurm: NODE_FAIL", "its runner died")]
    return faults


def read_rows(path):
    connection = sqlite3.connect(str(path), timeout=20)
    try:
        connection.execute("BEGIN")
        rows = [Row._make(row) for row in connection.execute(
            "SELECT id, state, gate, attempt, attempts, crashes, worker, batch, error FROM job ORDER BY id")]
        past = [Past._make(row) for row in connection.execute(
            "SELECT job, attempt, worker, started_at, finished_at, outcome, error FROM history "
            "WHERE attempt IS NOT NULL ORDER BY seq")]
        return rows, past
    finally:
        connection.close()


def check(bench, expected="completed", revived=(), strays=(), stop=True):
    """The one checker, at the end of every fault: stops the workers, then everything must be as it should.

    `expected`: the state of all jobs, or {id: state or states} of every job.  `revived`: jobs that a user
    sent to pending again.  `strays`: pids that the test itself still needs.  Raises AssertionError.
    """
    queue = bench.queue
    if stop:
        queue.stop("--now")
    faults = database_faults(queue.db)
    rows, past = read_rows(queue.db)
    for row in rows:
        wanted = expected if isinstance(expected, str) else expected.get(row.id, "none: it should not be there")
        if row.state not in ((wanted,) if isinstance(wanted, str) else wanted):
            faults.append("job %d is %s (%s), not %s" % (row.id, row.state, row.error, wanted))
    if not isinstance(expected, str):
        faults += ["job %d is gone" % job for job in sorted(set(expected) - {row.id for row in rows})]
    faults += journal_faults(bench, rows, past, revived)
    faults += charge_faults(rows, past, revived)
    faults += left_behind(queue, strays)
    assert not faults, "\n".join(["what does not hold:"] + faults + ["", "the workers' log:", bench.log()])


def left_behind(queue, strays=()):
    """Processes, rows and lock files that should be gone once the workers were stopped."""
    limit = time.monotonic() + within(3)
    while True:
        faults = ["left: process %d: %s" % item for item in queue.processes().items() if item[0] not in strays]
        faults += ["left: file %s" % path.name for path in queue.files.glob("workers/*")]
        faults += ["left: row %s %r" % (table, row) for table in ("worker", "supervisor")
                   for row in queue.sql("SELECT * FROM " + table)]
        if not faults or time.monotonic() > limit:
            return faults
        time.sleep(0.02)


def limit_process(pid, name, soft):
    """Sets a soft limit of a running process (RLIMIT_...); returns the one before."""
    import resource
    which = getattr(resource, name)
    before, hard = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (soft, hard))
    return before


class Tmpfs:
    """A small file system of its own; `fill` uses up its space, or its files."""

    def __init__(self, path, size, files=0):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        options = "size=%s,mode=0700%s" % (size, ",nr_inodes=%d" % files if files else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "queuectl-test", str(self.path)], check=True)
        self._fillers = []

    def fill(self):
        path = self.path / "filler"
        self._fillers.append(path)
        with open(path, "wb", buffering=0) as file:
            for size in (65536, 4096, 512):
                try:
                    while True:
                        file.write(b"f" * size)
                except OSError:
                    pass

    def fill_files(self):
        number = 0
        try:
            while True:
                path = self.path / ("filler-%d" % number)
                path.touch()
                self._fillers.append(path)
                number += 1
        except OSError:
            pass

    def free(self):
        for path in self._fillers:
            path.unlink()
        self._fillers = []

    def close(self):
        subprocess.run(["umount", "-l", str(self.path)], check=False)
