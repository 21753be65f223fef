"""An exception between any two lines of a transaction (Ctrl-C, an alarm of the caller's) leaves no lock behind."""
from __future__ import annotations

import linecache
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, SCRIPT, posix_only, wait_until
from life import add_schedule

# Tells, for each line that it reads, whether the database and its gate are free: a process of its own, since the
# locks of a process are never in its own way.
PROBE = r"""
import fcntl, os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
gate = os.open(sys.argv[1] + ".d/gate", os.O_RDWR | os.O_CREAT, 0o600)
for line in sys.stdin:
    answer = "free"
    try:
        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(gate, fcntl.LOCK_UN)
        fcntl.flock(gate, fcntl.LOCK_UN)
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        answer = repr(error)
    print(answer, flush=True)
"""


def current_umask():
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


class Interrupt(BaseException):
    """What the tracer raises."""


class Probe:
    def __init__(self, path):
        self._process = subprocess.Popen([sys.executable, "-c", PROBE, str(path)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, universal_newlines=True)

    def ask(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def probe(store):
    store.enqueue("true")  # makes the gate
    asked = Probe(store.db.path)
    yield asked
    asked.close()


# What a tracer raises in one of these skips every `with` and `except` in Python 3.12 and 3.13, whose comprehensions are
# no functions any more; what a signal's handler raises does not.
COMPREHENSION = re.compile(r"[\[({].* for .* in ")


# Where a lock is taken or released; `repair` reads for thousands of lines before it takes one.
LOCKING = {"__enter__", "__exit__", "end", "enter", "leave", "_leave", "_draw", "_may_enter", "_listen"}


def interrupted_at(count, action, inside=None):
    """Calls action() with an exception at the count-th line of queuectl.py; the line, or None if there are fewer.

    With `inside`, a Queue, those lines count that take its lock, hold it, or release it.
    """
    left, place = count, None

    def trace(frame, event, _):
        nonlocal left, place
        if frame.f_code.co_filename != str(SCRIPT):
            return None
        if event == "line" and place is None and not (sys.version_info >= (3, 12) and COMPREHENSION.search(
                linecache.getline(str(SCRIPT), frame.f_lineno))) and (
                inside is None or inside.db.connection.in_transaction or frame.f_code.co_name in LOCKING):
            left -= 1
            if not left:
                place = "%s, line %d" % (frame.f_code.co_name, frame.f_lineno)
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return place


def work(store):
    import queuectl
    job = store.claims.job_of_worker(1)
    if job is None:
        store.enqueue("true")
        job, _ = store.claims.finish_and_claim(1)
    store.claims.finish(1, queuectl.Outcome(job, "failed", 1, "exit 1", 1, 0.0, 0.1))


def schedule(store):
    for one in store.schedules.list():
        store.schedules.remove(one.name)
    add_schedule(store, "nightly", None, 60.0, {"command": "true"})
    store.schedules.pause("nightly")
    store.schedules.run("nightly")


def remove(store):
    store.keep.purge(store.look.select(("cancelled",)))
    store.life.cancel([store.enqueue("true", key="k")])


def refused(store):
    try:
        store.enqueue_many(["true", {"command": "true", "after": ["nothing"]}])
    except Exception as error:
        raise ValueError from error


ACTIONS = {
    "enqueue": lambda store: store.enqueue("true", priority=1, env={"A": "b"}),
    "enqueue what is refused": lambda store: pytest.raises(ValueError, refused, store),
    "enqueue a batch": lambda store: store.enqueue_many(["true", {"command": "false", "name": None, "key": "k"}],
                                                          label="x"),
    "claim and finish": work,
    "cancel and retry": lambda store: (store.life.cancel([1]), store.life.retry([1])),
    "hold": lambda store: (store.life.release([1]), store.life.hold([1])),
    "edit": lambda store: store.life.edit([1], {"priority": 3}),
    "settings": lambda store: (store.settings.set("on_idle", "true"), store.settings.unset("on_idle")),
    "queues": lambda store: store.queues.set("mail", paused=1),
    "schedules": schedule,
    "a tick": lambda store: store.schedules.tick(),
    "rm": remove,
    "export": lambda store: (list(store.keep.export()), next(store.keep.export())),
    "repair": lambda store: store.keep.repair(),
    "tidy": lambda store: (store.schedules.repair_clock(), store.workers.sweep(), store.keep.tidy(0)),
}


@pytest.mark.sampled(3)
@posix_only("Windows has no gate, and its probe would need another")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is raised while a generator is closed
@pytest.mark.parametrize("name", ["enqueue", "enqueue what is refused", "export"] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ACTIONS if name not in ("enqueue", "enqueue what is refused", "export")])
def test_an_interrupt_at_any_line_of_a_transaction_leaves_no_lock(name, store, probe):
    action, count, mask = ACTIONS[name], 1, current_umask()
    while True:
        place = interrupted_at(count, lambda: action(store), store if name == "repair" else None)
        assert probe.ask() == "free", place
        assert not store.db.connection.in_transaction, place
        assert current_umask() == mask, place
        if place is None:
            break
        count += 1
    assert count > 20
    assert store.keep.check() == []
    store.enqueue("true")


@pytest.mark.sampled(2)
@posix_only("Windows has no gate, and its probe would need another")
@pytest.mark.parametrize("in_the_way", ["the gate", "the database"])
def test_an_interrupt_at_any_line_of_a_wait_leaves_no_lock(in_the_way, store, probe, tmp_path):
    import fcntl
    import sqlite3
    gate = os.open(store.db.files.writer_lock, os.O_RDWR)
    other = sqlite3.connect(store.db.path, isolation_level=None, check_same_thread=False)

    def block():
        fcntl.flock(gate, fcntl.LOCK_EX) if in_the_way == "the gate" else other.execute("BEGIN IMMEDIATE")

    def release():
        fcntl.flock(gate, fcntl.LOCK_UN) if in_the_way == "the gate" else other.execute("ROLLBACK")

    for count in range(1, 400):
        block()
        timer = threading.Timer(0.005, release)
        timer.start()
        place = interrupted_at(count, lambda: store.enqueue("true"))
        timer.join()
        assert probe.ask() == "free", place
        if place is None:
            break
    assert 60 < count
    os.close(gate)
    other.close()


@posix_only("Windows has no alarm")
def test_an_alarm_of_the_callers_at_any_moment_leaves_no_lock_and_is_the_only_thing_that_comes_out(store, probe):
    random.seed(1)
    import fcntl
    gate = os.open(store.db.files.writer_lock, os.O_RDWR)

    def ring(*_):
        raise Interrupt

    before, came = signal.signal(signal.SIGALRM, ring), 0
    try:
        for turn in range(300):
            if turn % 3 == 0:
                fcntl.flock(gate, fcntl.LOCK_EX)
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.003))
                store.enqueue("true", name=None, env={"A": str(turn % 5)})
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                came += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                fcntl.flock(gate, fcntl.LOCK_UN)
            assert probe.ask() == "free", turn
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(gate)
    assert came > 20
    assert store.keep.check() == []


@posix_only("Windows has no alarm")
def test_a_wait_for_other_writers_leaves_the_callers_alarm_handlers_and_directory_alone(store, tmp_path):
    """13.1.2: a call that had to wait set SIGALRM's handler and timer, and cleared them."""
    import fcntl
    store.enqueue("true")
    gate = os.open(store.db.files.writer_lock, os.O_RDWR)
    rings = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    before = signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    handlers[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    here, mask = os.getcwd(), os.umask(0o27)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        begun = time.monotonic()
        store.enqueue("true")  # the gate is not free: this takes half a second, and goes on without it
        assert 0.4 < time.monotonic() - begun < 5
        assert len(rings) == 1 and rings[0] - begun < 0.4, "the caller's own alarm rang when it was due"
        signal.alarm(60)
        store.enqueue("true")
        assert signal.alarm(0) in (59, 60)
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
        assert os.getcwd() == here
        assert os.umask(0o27) == 0o27
    finally:
        signal.signal(signal.SIGALRM, before)
        os.umask(mask)
        os.close(gate)


@posix_only("Windows has no gate")
def test_threads_wait_at_the_gate_like_processes(store):
    import queuectl
    store.enqueue("true")
    failures = []

    def enqueue():
        try:
            with queuectl.Store(store.db.path) as queue:
                for _ in range(20):
                    queue.enqueue("true")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=enqueue) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.queues.counts()["pending"] == 161


WRITER = r"""
import sys, time
sys.path.insert(0, %r)
import queuectl
queue = queuectl.Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
queue.enqueue("true", key=sys.argv[2])
""" % str(ROOT)


@posix_only("Windows has no gate")
def test_waiters_at_the_gate_are_served_first_in_first_out_and_one_that_dies_is_passed_over(store):
    import fcntl
    store.enqueue("true")
    gate = os.open(store.db.files.writer_lock, os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)
    writers = []
    try:
        for number in range(6):
            writers.append(subprocess.Popen([sys.executable, "-c", WRITER, store.db.path, str(number)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, universal_newlines=True))
            writers[-1].stdout.readline()
        drawn = int.from_bytes(os.pread(gate, 6, 0), "little")
        for number, writer in enumerate(writers, 1):
            writer.stdin.write("\n")
            writer.stdin.flush()
            wait_until(lambda: int.from_bytes(os.pread(gate, 6, 0), "little") == drawn + number, interval=0.0005)
        writers[2].kill()
        fcntl.flock(gate, fcntl.LOCK_UN)
        for writer in writers:
            writer.wait()
    finally:
        os.close(gate)
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdin.close()
            writer.stdout.close()
    keys = [job.key for job in store.look.jobs()][::-1][1:]
    assert keys == ["0", "1", "3", "4", "5"]
