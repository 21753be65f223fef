"""Faults: real ones, injected into real processes; after each the same checker (faults.check).

The promise: nothing lost, nothing run twice at once, whatever is killed.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from conftest import SCRIPT, not_on_fallbacks, remove_stale_clocks, wait_until
from faults import Bench, Tmpfs, alive, check, database_faults, kill, limit_process, process_state, within

CI = bool(os.environ.get("CI"))
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: faults are injected through its ways")


def needs(condition, what):
    """Skips where the machine lacks something; in CI nothing is skipped."""
    if not condition:
        (pytest.fail if CI else pytest.skip)("needs " + what)


@pytest.fixture
def bench(queue):
    made = Bench(queue)
    queue.cli("config", "set", "backoff_base", "0.1")
    queue.cli("config", "set", "kill_grace", "0.3")
    yield made
    kill(*[pid for pid in queue.processes() if process_state(pid) == "T"], number=signal.SIGCONT)


@pytest.fixture
def tmpfs():
    """Makes small file systems: tmpfs(path, size, files=0)."""
    needs(ROOT_USER, "root, to mount a small file system")
    mounted = []

    def mount(path, size, files=0):
        mounted.append(Tmpfs(path, size, files))
        return mounted[-1]

    yield mount
    for made in reversed(mounted):
        made.close()


def released_at(bench, job):
    """Seconds (CLOCK_MONOTONIC) at which the second attempt of a job began."""
    return wait_until(lambda: bench.started(job, 2), 20, "the second attempt of job %d" % job).at


def outcomes(bench, job):
    return [outcome for outcome, in bench.queue.sql(
        "SELECT outcome FROM history WHERE job=? AND attempt IS NOT NULL ORDER BY seq", job)]


def one_error_line(done, *words):
    """The one clear line of a command that failed."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("queuectl: error: "), done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


# ---- killed workers and supervisors --------------------------------------------------------------

def test_the_tree_of_a_killed_workers_job_is_gone_before_the_next_attempt_begins(bench):
    bench.queue.start(1)
    job = bench.enqueue("deaf", "child", "child", "hang=2", options=["--max-retries", 0])
    wait_until(lambda: len(bench.journal("child")) == 2, message="the children of the job")
    first = {entry.pid for entry in bench.journal()}
    [(worker, pid)] = bench.workers().items()
    killed = time.monotonic()
    kill(pid)
    assert released_at(bench, job) - killed < within(2)
    bench.queue.wait_for(job, "completed")
    wait_until(lambda: len(bench.workers()) == 1 and worker not in bench.workers(), message="the worker is replaced")
    assert not any(alive(pid) for pid in first)
    shown = bench.queue.json("show", job)
    assert [(a["outcome"], a["error"]) for a in shown["history"]] == [("crashed", "worker died"), ("completed", None)]
    assert shown["crashes"] == 1 and shown["attempts"] == 1
    strays = [entry.pid for entry in bench.journal("child") if entry.attempt == 2]
    check(bench, strays=strays)  # a completed job may leave children: they are its own affair
    kill(*strays)


def test_workers_of_a_killed_supervisor_finish_their_job_and_end(bench):
    bench.queue.start(2)
    job = bench.enqueue("until=go")
    wait_until(lambda: bench.started(job), message="the job runs")
    busy = bench.worker_of(job)
    [idle] = set(bench.workers().values()) - {busy}
    kill(*bench.supervisors().values())
    wait_until(lambda: not alive(idle), within(3), "the idle worker ends")
    assert alive(busy)
    late = bench.enqueue("exit=0")
    bench.go("go")
    wait_until(lambda: not alive(busy), within(3), "the busy worker ends after its job")
    assert outcomes(bench, job) == ["completed"]
    assert bench.queue.job(late).state == "pending", "a worker without a supervisor takes no new job"
    bench.queue.start(1)
    bench.queue.wait_for(late, "completed")
    assert len(bench.supervisors()) == 1
    check(bench)


def test_a_worker_whose_supervisor_was_killed_still_hears_of_a_cancel(bench):
    bench.queue.start(1)
    job = bench.enqueue("until=never")
    wait_until(lambda: bench.started(job), message="the job runs")
    kill(*bench.supervisors().values())
    bench.queue.cli("cancel", job)
    bench.queue.wait_for(job, "cancelled", timeout=within(3))
    wait_until(lambda: not bench.workers(), within(3), "the worker ends after its job")
    check(bench, {job: "cancelled"})


def test_a_cancel_whose_hint_was_lost_is_heard_all_the_same(bench):
    bench.queue.start(1)
    job = bench.enqueue("until=never")
    wait_until(lambda: bench.started(job), message="the job runs")
    bench.queue.sql("UPDATE job SET cancel=1 WHERE id=?", job)  # as by a client that died before its hint
    bench.queue.wait_for(job, "cancelled", timeout=within(4))
    bench.queue.cli("worker", "stop")
    check(bench, {job: "cancelled"})


@pytest.mark.broad
def test_another_supervisor_releases_the_jobs_of_one_that_was_killed_with_its_workers(bench):
    bench.queue.start(2)
    jobs = [bench.enqueue("deaf", "child", "hang=2", options=["--max-retries", 0]) for _ in range(2)]
    wait_until(lambda: len(bench.journal("child")) == 2, message="both jobs run")
    victims = [*bench.supervisors().values(), *bench.workers().values()]
    bench.queue.start(1)
    killed = time.monotonic()
    kill(*victims)
    for job in jobs:
        assert released_at(bench, job) - killed < within(2) + 1  # it looks once a second
        assert outcomes(bench, job)[0] == "crashed"
        bench.queue.wait_for(job, "completed")
    assert len(bench.supervisors()) == 1 and len(bench.workers()) == 1
    strays = [entry.pid for entry in bench.journal("child") if entry.attempt == 2]
    check(bench, strays=strays)
    kill(*strays)


def test_the_next_start_releases_all_after_supervisor_and_workers_were_killed(bench):
    bench.queue.start(2)
    jobs = [bench.enqueue("deaf", "hang=2", options=["--max-retries", 0]) for _ in range(2)]
    wait_until(lambda: len(bench.journal("start")) == 2, message="both jobs run")
    kill(*bench.supervisors().values(), *bench.workers().values())
    began = time.monotonic()
    bench.queue.start(2)
    for job in jobs:
        assert released_at(bench, job) - began < within(2)
        bench.queue.wait_for(job, "completed")
        assert outcomes(bench, job) == ["crashed", "completed"]
    check(bench)


def test_everything_killed_the_jobs_too_and_the_next_start_goes_on(bench):
    bench.queue.start(2)
    jobs = [bench.enqueue("hang=2", options=["--max-retries", 0]) for _ in range(4)]
    wait_until(lambda: len(bench.journal("start")) == 2, message="two jobs run")
    kill(*bench.queue.processes())
    wait_until(lambda: not bench.queue.processes(), message="all are gone")
    began = time.monotonic()
    bench.queue.start(2)
    for job in jobs[:2]:
        assert released_at(bench, job) - began < within(2)
        bench.queue.wait_for(job, "completed")
    bench.go("go")
    kill(*[entry.pid for entry in bench.journal("start") if entry.job in jobs[2:]])  # they hang in their first attempt
    for job in jobs[2:]:
        wait_until(lambda: bench.queue.job(job).state != "pending", message="the others' turn")
        wait_until(lambda: bench.started(job) or bench.queue.job(job).state == "dead")
        kill(*[entry.pid for entry in bench.journal("start", job=job)])
        bench.queue.wait_for(job, "dead")
    check(bench, {**dict.fromkeys(jobs[:2], "completed"), **dict.fromkeys(jobs[2:], "dead")})


def test_worker_stop_releases_what_killed_processes_left(bench):
    bench.queue.start(2)
    job = bench.enqueue("hang=2")
    wait_until(lambda: bench.started(job), message="the job runs")
    kill(*bench.queue.processes())
    bench.queue.stop()
    assert bench.queue.job(job).state == "pending"
    check(bench, "pending", stop=False)


@pytest.mark.broad
def test_the_jobs_of_a_killed_run_are_released_by_the_next_start(bench):
    lines = "".join(bench.line("hang=2") + "\n" for _ in range(3))
    (bench.folder / "jobs.txt").write_text(lines)
    bench.queue.beside("run", "--count", 2, "--file", bench.folder / "jobs.txt")
    wait_until(lambda: len(bench.journal("start")) == 2, message="two jobs run")
    kill(*bench.queue.processes())
    first, second, third = [job for job, in bench.queue.sql("SELECT id FROM job ORDER BY id")]
    bench.queue.start(2)
    for job in (first, second):
        bench.queue.wait_for(job, "completed")
    wait_until(lambda: bench.started(third), message="the job that was kept for the run is anyone's now")
    bench.queue.stop("--now")
    check(bench, {first: "completed", second: "completed", third: "pending"}, stop=False)


# ---- what an attempt leaves behind ----------------------------------------------------------------

def test_a_setsid_child_of_a_killed_workers_job_is_found_by_its_lock_and_ended(bench):
    bench.queue.start(1)
    job = bench.enqueue("stray=never", "hang=2", options=["--max-retries", 0])
    wait_until(lambda: bench.journal("child"), message="the child that has left its group")
    [stray] = bench.journal("child")
    killed = time.monotonic()
    kill(*bench.workers().values())
    assert released_at(bench, job) - killed < within(2)
    assert not alive(stray.pid)
    bench.queue.wait_for(job, "completed")
    assert b"stray of" in bench.queue.cli("logs", job, "--attempt", 1, binary=True).stdout
    assert b"stray of" not in bench.queue.cli("logs", job, "--attempt", 2, binary=True).stdout
    check(bench)


@pytest.mark.broad
def test_a_setsid_child_that_cannot_be_found_is_waited_for_and_show_says_so(bench):
    bench.queue.env["QUEUECTL_FALLBACKS"] = "1"  # as on a system that does not tell who holds a lock, nor has lsof
    (bench.folder / "bin").mkdir()
    (bench.folder / "bin" / "lsof").write_text("#!/bin/sh\nexit 1\n")
    (bench.folder / "bin" / "lsof").chmod(0o755)
    bench.queue.env["PATH"] = "%s:%s" % (bench.folder / "bin", bench.queue.env["PATH"])
    bench.queue.start(1)
    job = bench.enqueue("stray=go", "hang=2", options=["--max-retries", 0])
    wait_until(lambda: bench.journal("child"), message="the child that has left its group")
    [worker] = bench.workers()
    kill(*bench.workers().values())
    shown = wait_until(lambda: (lambda s: s if s["note"] else None)(bench.queue.json("show", job)), 10,
                       "show says what is waited for", 0.1)
    assert shown["note"].startswith("died, and what its attempt left behind must end first") and shown["state"] == "processing"
    assert "worker %d died, and what" % worker in bench.queue.out("show", job)
    other = bench.enqueue("exit=0")
    bench.queue.wait_for(other, "completed")  # the others go on meanwhile
    assert not bench.started(job, 2)
    bench.go("go")
    let_go = time.monotonic()
    assert released_at(bench, job) - let_go < within(2)
    bench.queue.wait_for(job, "completed")
    check(bench)


def test_a_job_whose_child_keeps_the_output_open_ends_with_its_main_process(bench):
    bench.queue.start(1)
    first = bench.enqueue("print=first", "stray=go", "exit=0")
    second = bench.enqueue("print=second", "exit=0")
    third = bench.enqueue("exit=0")
    for job in (first, second, third):
        bench.queue.wait_for(job, "completed", timeout=within(5))
    [stray] = bench.journal("child")
    assert alive(stray.pid)
    assert bench.queue.cli("logs", second).stdout == "second\n"  # not the stray's
    assert bench.queue.cli("logs", third).stdout == ""
    bench.go("go")
    wait_until(lambda: not alive(stray.pid), message="the stray ends")
    check(bench)


def test_a_job_sees_the_end_of_its_input_and_may_close_its_output(bench):
    bench.queue.start(1)
    reads = bench.enqueue("read-input")
    closes = bench.enqueue("close-output", "sleep=0.2", "exit=0")
    shell = bench.queue.enqueue("exec >&- 2>&- <&-; exit 0")
    for job in (reads, closes, shell):
        bench.queue.wait_for(job, "completed", timeout=within(5))
    check(bench)


@pytest.mark.broad
def test_a_job_that_closed_its_output_is_still_known_to_live_when_its_worker_dies(bench):
    bench.queue.start(1)
    job = bench.queue.enqueue("--max-retries", 0, "exec >/dev/null 2>&1; exec " + bench.line("deaf", "hang=2"))
    wait_until(lambda: bench.started(job), message="the job runs")
    kill(*bench.workers().values())
    bench.queue.wait_for(job, "completed", timeout=within(5))
    assert outcomes(bench, job) == ["crashed", "completed"]
    check(bench)


# ---- crash points: a child that patches the one method -------------------------------------------

CRASH_POINTS = {
    "between claim and spawn": """
real = queuectl.Runner._spawn
queuectl.Runner._spawn = lambda *args, **more: die() if once("died") else real(*args, **more)""",
    "between spawn and the record of its group": """
spawn = queuectl.OS.spawn
def spawn_and_die(*args):
    process = spawn(*args)
    if once("died"):
        time.sleep(0.2)  # the job has begun
        die()
    return process
queuectl.OS.spawn = spawn_and_die""",
    "between the job's end and the keeping of its output": """
real = queuectl.Runner._keep_output
queuectl.Runner._keep_output = lambda *args, **more: die() if once("died") else real(*args, **more)""",
    "between the keeping of its output and the commit of its outcome": """
real = queuectl.Claims.record
queuectl.Claims.record = lambda *args, **more: die() if once("died") else real(*args, **more)""",
    "in the commit of its outcome": """
real = queuectl.Claims.record
def record_and_die(*args, **more):
    done = real(*args, **more)
    if once("died"):
        die()
    return done
queuectl.Claims.record = record_and_die""",
    "just after the commit of its outcome": """
real = queuectl.Worker._report
queuectl.Worker._report = lambda *args, **more: die() if once("died") else real(*args, **more)""",
    "while another rescues": """
real = queuectl.Claims.record
queuectl.Claims.record = lambda *args, **more: die() if once("died") else real(*args, **more)
release = queuectl.Workers.release_dead
queuectl.Workers.release_dead = lambda *args, **more: die() if once("died too") else release(*args, **more)""",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_worker_killed_at_a_crash_point(bench, point):
    jobs = [bench.enqueue("print=out", "sleep=0.1", "exit=0", options=["--max-retries", 0]) for _ in range(2)]
    supervisor = bench.patched_beside(CRASH_POINTS[point], "worker", "start", "--foreground", "--count", 1)
    if point == "while another rescues":
        supervisor.ends()
        bench.queue.start(1)
    for job in jobs:
        bench.queue.wait_for(job, "completed")
        assert bench.queue.cli("logs", job).stdout == "out\n"
    assert (bench.folder / "died").exists()
    recorded = point == "just after the commit of its outcome"  # and the next job claimed with it
    assert outcomes(bench, jobs[0]) == (["completed"] if recorded else ["crashed", "completed"])
    assert outcomes(bench, jobs[1]) == (["crashed", "completed"] if recorded else ["completed"])
    check(bench)


ENQUEUE_POINTS = {
    "before the lock": ("queuectl.Plan.store = lambda *args, **more: die()", 0),
    "in the middle": ("queuectl.Plan._link = lambda *args, **more: die()", 0),
    "at its end": ("""
real = queuectl.Plan._finish
def finish(*args, **more):
    real(*args, **more)
    die()
queuectl.Plan._finish = finish""", 0),
    "between commit and the hint": ("queuectl.Database.send = lambda *args, **more: die()", 1),
    "before its id is printed": ("queuectl.out = lambda text='': die()", 1),
}


def test_an_enqueue_killed_at_any_crash_point_stores_all_or_nothing(bench):
    bench.queue.start(1)
    for number, (point, (patch, stored)) in enumerate(ENQUEUE_POINTS.items()):
        before = len(bench.queue.sql("SELECT id FROM job"))
        done = bench.patched(patch, "enqueue", "--env", "A=%d" % number, "--name", "one-%d" % number, *bench.words("exit=0"))
        assert done.returncode == -signal.SIGKILL and done.stdout == "", point
        assert len(bench.queue.sql("SELECT id FROM job")) == before + stored, point
        assert database_faults(bench.queue.db) == [], point
        job = bench.enqueue("exit=0")  # the lock is free, nothing is in the way
        bench.queue.wait_for(job, "completed")
        if stored:
            bench.queue.wait_for("one-%d" % number, "completed")
    check(bench)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("point", ["queuectl.Progress.show = lambda self, done, *more, **k: die() if done >= 20000 else None",
                                   "queuectl.Plan._finish = lambda *args, **more: die()"])
def test_a_bulk_load_killed_in_the_middle_stores_nothing(bench, point):
    bench.queue.start(1)
    text = "exit 0\n" * 60000
    done = bench.patched(point, "enqueue", "--file", "-", stdin=text)
    assert done.returncode == -signal.SIGKILL
    assert bench.queue.sql("SELECT id FROM job") == [] and bench.queue.sql("SELECT id FROM batch") == []
    job = bench.enqueue("exit=0")
    bench.queue.wait_for(job, "completed")
    check(bench)


UPGRADE = """
queuectl.SCHEMA_VERSION = 3
queuectl.SCHEMA = queuectl.SCHEMA.replace("\\n  schedule TEXT,", "\\n  schedule TEXT, colour TEXT,")
queuectl.MIGRATIONS = ((2, ("ALTER TABLE job ADD COLUMN colour TEXT", "CREATE TABLE extra(x)", "INSERT INTO extra VALUES(1)",
                            "UPDATE job SET colour='red'")),)
"""
DIE_IN_UPGRADE = UPGRADE + """
class Steps(tuple):
    def __iter__(self):
        yield self[0]
        yield self[1]
        die()
queuectl.MIGRATIONS = ((2, Steps(queuectl.MIGRATIONS[0][1])),)
"""


def test_a_migration_killed_in_the_middle_changes_nothing(bench):
    job = bench.enqueue("exit=0")
    assert bench.patched(DIE_IN_UPGRADE, "status").returncode == -signal.SIGKILL
    assert bench.queue.sql("PRAGMA user_version")[0][0] & 255 == 2
    assert "colour" not in [row[1] for row in bench.queue.sql("PRAGMA table_info(job)")]
    bench.queue.start(1)  # the old program goes on
    bench.queue.wait_for(job, "completed")
    check(bench)
    assert bench.patched(UPGRADE, "status").returncode == 0
    assert bench.queue.sql("PRAGMA user_version")[0][0] & 255 == 3 and bench.queue.sql("SELECT colour FROM job") == [("red",)]
    one_error_line(bench.queue.cli("status", check=False), "newer")


def test_a_migration_killed_just_after_its_commit_is_done(bench):
    bench.enqueue("exit=0")
    dies = UPGRADE + """
leave = queuectl.Transaction.__exit__
def leave_and_die(*args):
    leave(*args)
    die()
queuectl.Transaction.__exit__ = leave_and_die
"""
    assert bench.patched(dies, "status").returncode == -signal.SIGKILL
    assert bench.patched(UPGRADE, "list").returncode == 0  # its pages stand in the -wal alone
    assert bench.queue.sql("SELECT x FROM extra") == [(1,)] and bench.queue.sql("SELECT colour FROM job") == [("red",)]
    assert database_faults(bench.queue.db) == []


def test_two_upgrades_of_an_old_schema_at_once_do_it_once(bench):
    job = bench.enqueue("exit=0")
    running = [bench.patched_beside(UPGRADE, "status") for _ in range(4)]
    assert [process.ends() for process in running] == [0] * 4, [process.text() for process in running]
    assert bench.queue.sql("SELECT x FROM extra") == [(1,)]
    assert bench.queue.sql("SELECT state FROM job WHERE id=?", job) == [("pending",)]
    assert database_faults(bench.queue.db) == []


def test_the_first_use_killed_while_it_makes_the_tables_leaves_an_empty_database(bench):
    bench.queue.cli("config", "list")
    for path in bench.folder.glob("queue.db*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    done = bench.patched("queuectl.Database.mark = lambda *args, **more: die()", "enqueue", "exit 0")
    assert done.returncode == -signal.SIGKILL
    bench.queue.start(1)
    bench.queue.wait_for(bench.enqueue("exit=0"), "completed")
    check(bench)


BETWEEN_STEPS = """
queuectl.FOLLOWUPS, queuectl.AT_ONCE = 2, 3
real = queuectl.Followups.follow
def follow(part, *args):
    if part._store.db.read("SELECT 1 FROM followup LIMIT 1"):
        step = next(n for n in range(1, 99) if once("step%%d" %% n))  # counted by all processes together
        if step == %d and once("died"):
            die()
    return real(part, *args)
queuectl.Followups.follow = follow"""


@pytest.mark.sampled(4)
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("event, verb, steps, end", [
    ("completes", None, ["exit=0"], "completed"), ("dies", None, ["exit=1"], "cancelled"),
    ("is cancelled", "cancel", ["exit=0"], "cancelled"), ("is retried", "retry", ["fail=2"], "completed")])
def test_the_children_of_a_parent_hear_of_it_though_who_tells_them_is_killed_between_two(bench, step, event, verb, steps, end):
    parent = bench.enqueue(*steps, options=["--max-retries", 0])
    children = bench.enqueue_many([{"command": bench.line("exit=0"), "after": [str(parent)]}] * 9)
    drain = ("worker", "start", "--foreground", "--drain")
    if event == "is retried":
        bench.queue.cli(*drain, check=False)  # 1: a job has died
        assert {bench.queue.job(child).state for child in children} == {"cancelled"}
    done = bench.patched(BETWEEN_STEPS % step, *((verb, parent) if verb else drain))
    assert (bench.folder / "died").exists() and done.returncode in ((-signal.SIGKILL,) if verb else (-signal.SIGKILL, 0, 1)), done.stderr
    wait_until(lambda: not bench.queue.processes(), message="workers whose supervisor was killed end")
    assert database_faults(bench.queue.db) == []
    bench.queue.cli(*drain, check=False)  # 1: a job has died
    assert {bench.queue.job(child).state for child in children} == {end}
    assert bench.queue.sql("SELECT * FROM followup") == []
    check(bench, {parent: "dead" if event == "dies" else end, **dict.fromkeys(children, end)}, revived=[parent, *children])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("point", ["queuectl.Files.remove_logs = lambda *args, **more: die()", """
real = queuectl.Files.remove_logs
def remove_logs(*args, **more):
    real(*args, **more)
    die()
queuectl.Files.remove_logs = remove_logs"""])
def test_retention_killed_in_the_middle_is_done_by_the_next(bench, point):
    bench.queue.start(1)
    old = bench.enqueue("print=old", "exit=0")
    bench.queue.wait_for(old, "completed")
    bench.queue.stop()
    bench.queue.cli("config", "set", "keep_finished", "0.01")
    supervisor = bench.patched_beside(point, "worker", "start", "--foreground")
    assert supervisor.ends() == -signal.SIGKILL
    assert database_faults(bench.queue.db) == []
    wait_until(lambda: not bench.queue.processes(), message="its worker ends")
    bench.queue.start(1)
    wait_until(lambda: bench.queue.sql("SELECT id FROM job") == [], 10, "the old job is gone")
    wait_until(lambda: list(bench.queue.files.glob("logs/*/*")) == [], message="its log too")
    check(bench)


# ---- stopped and continued -------------------------------------------------------------------------

@pytest.mark.parametrize("seconds", [2.5, pytest.param(10, marks=pytest.mark.slow)])
def test_nobody_takes_the_job_of_a_worker_that_is_stopped_and_it_is_recorded_once(bench, seconds):
    bench.queue.start(1)
    job = bench.enqueue("until=go", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    bench.queue.start(1)  # another supervisor, with an idle worker
    worker = bench.worker_of(job)
    kill(worker, number=signal.SIGSTOP)
    bench.go("go")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = bench.queue.job(job)
        assert (now.state, now.attempt) == ("processing", 1)
        time.sleep(0.1)
    wait_until(lambda: bench.journal("end", job=job), message="the job has ended meanwhile")
    kill(worker, number=signal.SIGCONT)
    bench.queue.wait_for(job, "completed")
    assert outcomes(bench, job) == ["completed"]
    check(bench)


@pytest.mark.broad
def test_workers_go_on_while_their_supervisor_is_stopped(bench):
    bench.queue.start(1)
    jobs = [bench.enqueue("until=go")]
    wait_until(lambda: bench.started(jobs[0]), message="the job runs")
    kill(*bench.supervisors().values(), number=signal.SIGSTOP)
    jobs += [bench.enqueue("exit=0") for _ in range(3)]
    bench.go("go")
    for job in jobs:
        bench.queue.wait_for(job, "completed")
    late = bench.enqueue("exit=0")
    kill(*bench.supervisors().values(), number=signal.SIGCONT)
    bench.queue.wait_for(late, "completed", timeout=within(3))
    check(bench)


def test_a_worker_that_is_stopped_and_then_killed_loses_its_claim_and_nothing_else(bench):
    bench.queue.start(1)
    job = bench.enqueue("sleep=0.3", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: bench.started(job), message="the job runs")
    worker = bench.worker_of(job)
    kill(worker, number=signal.SIGSTOP)
    wait_until(lambda: bench.journal("end", job=job), message="the job ends unseen")
    kill(worker)
    bench.queue.wait_for(job, "completed")
    assert outcomes(bench, job) == ["crashed", "completed"]
    check(bench)


@pytest.mark.broad
# ---- jobs that do harm -----------------------------------------------------------------------------

def test_a_job_that_kills_its_worker_is_dead_after_max_crashes_though_all_is_restarted_between(bench):
    job = bench.enqueue("kill-worker", options=["--max-retries", 5])
    for crashes in (1, 2, 3):
        bench.queue.start(1)
        wait_until(lambda: bench.queue.job(job).crashes >= crashes, message="crash %d" % crashes)
        bench.queue.stop("--now")
        if bench.queue.job(job).state == "dead":
            break
    shown = bench.queue.json("show", job)
    assert (shown["state"], shown["error"], shown["crashes"]) == ("dead", "worker died 3 times", 3)
    assert "crashed" == {attempt["outcome"] for attempt in shown["history"] if attempt["outcome"] != "released"}.pop()
    check(bench, "dead")


def test_a_job_that_kills_its_worker_once_is_completed_without_retries(bench):
    bench.queue.start(1)
    job = bench.enqueue("kill-worker=2", "exit=0", options=["--max-retries", 0])
    shell = bench.queue.enqueue("--max-retries", 0, 'if [ "$QUEUECTL_ATTEMPT" = 1 ]; then kill -9 $PPID; sleep 60; fi')
    for one in (job, shell):
        bench.queue.wait_for(one, "completed")
        assert outcomes(bench, one) == ["crashed", "completed"]
    check(bench)


@pytest.mark.broad
def test_workers_that_die_at_once_are_not_replaced_in_a_hot_loop(bench):
    bench.queue.cli("config", "set", "max_crashes", 1000)
    job = bench.enqueue("kill-worker", options=["--backoff-base", 0])
    bench.queue.start(1)
    wait_until(lambda: bench.queue.job(job).crashes >= 2, message="it has killed two")
    before = bench.queue.job(job).crashes
    end = time.monotonic() + 2
    wait_until(lambda: time.monotonic() > end, message="two seconds", interval=0.1)
    assert bench.queue.job(job).crashes - before <= 5
    bench.queue.stop("--now")
    assert bench.queue.job(job).state == "pending"
    check(bench, "pending")


def test_a_job_that_kills_its_own_group_fails_and_harms_nobody(bench):
    bench.queue.start(1)
    workers = bench.workers()
    job = bench.enqueue("child", "kill-group", options=["--max-retries", 1])
    bench.queue.wait_for(job, "dead")
    assert bench.queue.job(job).signal == 9
    assert outcomes(bench, job) == ["failed", "failed"] and bench.workers() == workers
    check(bench, "dead")


@pytest.mark.broad
def test_a_job_that_ignores_term_past_its_timeout_is_gone_after_the_grace(bench):
    bench.queue.start(1)
    job = bench.enqueue("deaf", "child", "child", "hang=9", options=["--max-retries", 0, "--timeout", 1])
    wait_until(lambda: len(bench.journal("child")) == 2, message="the children of the job")
    begun = bench.started(job).at
    bench.queue.wait_for(job, "dead")
    assert time.monotonic() - begun < within(1 + 0.3 + 1.5)
    assert not any(alive(entry.pid) for entry in bench.journal())
    assert outcomes(bench, job) == ["timeout"]
    check(bench, "dead")


# ---- no processes, no descriptors, no memory ---------------------------------------------------------

class Nobody:
    """A user of its own, under which limits on processes count; it may read and write as root may."""

    UID = 61234

    def prefix(self):
        return ["setpriv", "--reuid=%d" % self.UID, "--clear-groups", "--bounding-set=-all,+dac_override",
                "--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override"]

    def free(self):
        import resource
        return "--nproc=%d:" % resource.getrlimit(resource.RLIMIT_NPROC)[1]

    def limit(self, pid, *limits):
        subprocess.run([*self.prefix(), "prlimit", "--pid", str(pid), *limits], check=True)


@pytest.fixture
def nobody(bench):
    needs(ROOT_USER and shutil.which("setpriv") and shutil.which("prlimit"), "root, setpriv and prlimit")
    bench.queue.program = Nobody().prefix() + bench.queue.program
    return Nobody()


@pytest.mark.broad
def test_no_process_to_be_had_is_waited_out_told_once_and_not_charged(bench, nobody):
    bench.queue.start(1)
    [worker] = bench.workers().values()
    nobody.limit(worker, "--nproc=1:")
    job = bench.enqueue("exit=0", options=["--max-retries", 0])
    wait_until(lambda: "start job" in bench.log(), message="it says so")
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end, message="a second", interval=0.1)
    assert bench.queue.job(job).state == "processing" and bench.log().count("start job") == 1
    nobody.limit(worker, nobody.free())
    bench.queue.wait_for(job, "completed", timeout=within(7))
    assert outcomes(bench, job) == ["completed"] and list(bench.workers().values()) == [worker]
    check(bench)


@pytest.fixture
def no_forks(bench, nobody, monkeypatch):
    """A supervisor that can start no process, its only worker just killed: (its pid, what lets it again)."""
    monkeypatch.setenv("QUEUECTL_AS_ROOT", "1")  # the queue is another user's, and the test looks into it
    subprocess.run(["chown", "-R", str(nobody.UID), str(bench.queue.dir)], check=True)
    bench.queue.start(1)
    [supervisor] = bench.supervisors().values()
    nobody.limit(supervisor, "--nproc=1:")
    holder = subprocess.Popen([*nobody.prefix(), "sleep", "60"])  # so that the worker's death makes no room
    kill(*bench.workers().values())
    yield supervisor, lambda: nobody.limit(supervisor, nobody.free())
    if alive(supervisor):
        nobody.limit(supervisor, nobody.free())
    holder.kill()
    holder.wait()


@pytest.mark.slow
def test_a_supervisor_that_cannot_replace_a_worker_waits_says_so_once_and_goes_on(bench, no_forks):
    supervisor, let = no_forks
    job = bench.enqueue("exit=0")
    wait_until(lambda: "unavailable" in bench.log(), message="it says so")
    end = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > end, message="some seconds", interval=0.1)
    assert alive(supervisor) and bench.log().count("unavailable") == 1
    assert bench.log().count("one more worker") <= 1, bench.log()
    let()
    bench.queue.wait_for(job, "completed", timeout=within(8))
    check(bench)


def test_a_supervisor_that_can_start_no_worker_can_be_stopped(bench, no_forks):
    wait_until(lambda: "unavailable" in bench.log(), message="it says so")
    bench.queue.stop(timeout=within(10))
    check(bench, stop=False)


@pytest.mark.broad
def test_no_descriptor_to_be_had_is_waited_out_told_once_and_not_charged(bench):
    bench.queue.start(1)
    [worker] = bench.workers().values()
    bench.queue.wait_for(bench.enqueue("print=out", "exit=0"), "completed")
    before = limit_process(worker, "RLIMIT_NOFILE", 3)
    job = bench.enqueue("print=out", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: re.search("(?i)too many open files|unable to open", bench.log()), 10, "it says so")
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end, message="a second", interval=0.1)
    assert alive(worker)
    assert len(re.findall("(?i)too many open files|unable to open", bench.log())) <= 2, bench.log()
    limit_process(worker, "RLIMIT_NOFILE", before)
    bench.queue.wait_for(job, "completed", timeout=within(7))
    assert outcomes(bench, job) == ["completed"]
    check(bench)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("limit", [4, 6, 9])
def test_a_command_that_may_open_next_to_no_files_fails_in_one_line(bench, limit):
    done = bench.queue.run(["sh", "-c", 'ulimit -n %d; exec "$@"' % limit, "sh", *bench.queue.command("enqueue", "exit 0")], check=False)
    if done.returncode == 0:
        assert done.stdout.strip().isdigit()
    else:
        assert "Traceback" not in done.stderr or "site-packages" in done.stderr or "encodings" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 or "queuectl" not in done.stderr, done.stderr
    check(bench, "pending")


NO_MEMORY = """
import errno
spawn = queuectl.OS.spawn
def no_memory(*args):
    if once("first") or once("second") or once("third"):
        raise %s
    return spawn(*args)
queuectl.OS.spawn = no_memory
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("error", ['OSError(errno.ENOMEM, "Cannot allocate memory")', "MemoryError()"])
def test_no_memory_to_start_a_process_is_waited_out_told_once_and_not_charged(bench, error):
    job = bench.enqueue("exit=0", options=["--max-retries", 0])
    supervisor = bench.patched_beside(NO_MEMORY % error, "worker", "start", "--foreground")
    bench.queue.wait_for(job, "completed")
    assert (bench.folder / "third").exists() and outcomes(bench, job) == ["completed"]
    assert supervisor.text().count("start job") == 1 and "Traceback" not in supervisor.text()
    check(bench)


# ---- a full disk -------------------------------------------------------------------------------------

def on_small_disk(bench, tmpfs, which):
    """Puts the database, or all that lies beside it, or both, on a small file system of its own."""
    queue = bench.queue
    disk = bench.folder / "disk"
    if which == "logs":
        queue.files.mkdir(exist_ok=True)
        return tmpfs(queue.files, "256k")
    small = tmpfs(disk, "1m")
    queue.db = disk / "queue.db"
    queue.files = Path(str(queue.db) + ".d")
    if which == "database":
        tmpfs(queue.files, "16m")
    queue.cli("config", "set", "backoff_base", "0.1")
    return small


@pytest.mark.parametrize("which", [pytest.param("database", marks=pytest.mark.slow), pytest.param("logs", marks=pytest.mark.slow), "both"])
def test_a_full_disk_loses_nothing_and_kills_no_worker(bench, tmpfs, which):
    small = on_small_disk(bench, tmpfs, which)
    queue = bench.queue
    queue.start(2)
    running = [bench.enqueue("until=go", "print=out", "exit=0", options=["--max-retries", 0]),
               bench.enqueue("until=go", "print=out", "fill=400000", "exit=0", options=["--max-retries", 0])]
    behind = bench.enqueue("print=out", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: len(bench.journal("start")) == 2, message="both jobs run")
    workers = bench.workers()
    queue.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    small.fill()
    bench.go("go")
    wait_until(lambda: len(bench.journal("end")) >= 2, message="both jobs have ended")
    jobs = queue.sql("SELECT count(*) FROM job")
    if which == "logs":
        extra = bench.enqueue_many(["exit 0 # %s" % ("x" * 200)] * 40)  # more than the workers' log has room for
    else:
        done = queue.cli("enqueue", "exit 0 # " + "x" * 100000, check=False)
        one_error_line(done, "space")
        assert done.stdout == "" and queue.sql("SELECT count(*) FROM job") == jobs
        extra = []
    end = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > end, message="a while", interval=0.1)
    assert bench.workers() == workers and all(alive(pid) for pid in workers.values())
    small.free()
    for job in [*running, behind, *extra]:
        queue.wait_for(job, "completed", timeout=within(10))
        assert outcomes(bench, job) == ["completed"]
    if which != "logs":  # else it ran on the full disk, which is between it and the disk
        assert queue.cli("logs", behind).stdout == "out\n"
    assert bench.workers() == workers
    if which != "logs":
        assert bench.log().count("can't write to the database yet") <= len(workers) + 1, bench.log()
        queue.wait_for(bench.queue.enqueue("exit 0 # " + "x" * 100000), "completed")
    check(bench)


@pytest.mark.broad
def test_where_no_file_can_be_made_a_workers_job_waits_and_no_output_gets_into_anothers_log(bench, tmpfs):
    queue = bench.queue
    queue.files.mkdir(exist_ok=True)
    small = tmpfs(queue.files, "8m", files=60)
    queue.start(1)
    queue.wait_for(bench.enqueue("exit=0"), "completed")  # its output file is there, a log's directory is not
    jobs = [bench.enqueue("until=go", "print=%d" % n, "exit=0", options=["--max-retries", 0]) for n in range(3)]
    wait_until(lambda: bench.started(jobs[0]), message="the first runs")
    small.fill_files()
    bench.go("go")
    wait_until(lambda: "keep its output" in bench.log() or "can't" in bench.log(), message="it says so")
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end, message="a while", interval=0.1)
    small.free()
    for number, job in enumerate(jobs):
        queue.wait_for(job, "completed", timeout=within(10))
        assert queue.cli("logs", job).stdout == "%d\n" % number
        assert outcomes(bench, job) == ["completed"]
    assert len(bench.workers()) == 1
    check(bench)


# ---- another program holds the database ----------------------------------------------------------------

class Holder:
    """Another program that has the database locked."""

    def __init__(self, path, everything=False):
        self._db = sqlite3.connect(str(path), isolation_level=None, timeout=20)
        if everything:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("BEGIN EXCLUSIVE")
        self._db.execute("UPDATE queue SET served=served")

    def release(self):
        self._db.execute("ROLLBACK")
        self._db.close()


@pytest.mark.parametrize("seconds", [1, pytest.param(6.5, marks=pytest.mark.slow)])  # past the 5 s of a worker's patience
def test_commands_wait_for_a_locked_database_and_then_say_one_clear_line(bench, seconds):
    bench.queue.start(1)
    job = bench.enqueue("until=go", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: bench.started(job), message="the job runs")
    workers = bench.workers()
    holder = Holder(bench.queue.db)
    short = "queuectl.Store.__init__.__defaults__ = tuple(1.0 if d == queuectl.PATIENCE_S else d for d in queuectl.Store.__init__.__defaults__)"
    begun = time.monotonic()
    one_error_line(bench.patched(short, "enqueue", "exit 0"), "locked")
    assert 0.9 < time.monotonic() - begun < within(5)
    waiting = bench.queue.beside("enqueue", "exit 0")
    bench.go("go")
    wait_until(lambda: bench.journal("end", job=job), message="the job ends")
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, message="a while", interval=0.1)
    assert bench.queue.job(job).state == "processing" and bench.workers() == workers
    holder.release()
    bench.queue.wait_for(job, "completed", timeout=within(5))
    assert waiting.ends() == 0 and outcomes(bench, job) == ["completed"]
    bench.queue.wait_for(int(waiting.text()), "completed")
    assert bench.workers() == workers
    check(bench)


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_a_database_locked_for_forty_seconds_loses_nothing(bench, everything):
    bench.queue.start(2)
    jobs = [bench.enqueue("until=go", "exit=0", options=["--max-retries", 0]) for _ in range(2)]
    wait_until(lambda: len(bench.journal("start")) == 2, message="both run")
    if everything:  # an exclusive locking mode needs the database for itself for a moment
        kill(*bench.queue.processes(), number=signal.SIGSTOP)
        bench.go("go")
    pids = list(bench.queue.processes())
    workers = bench.workers()
    if everything:
        kill(*pids, number=signal.SIGCONT)
    holder = Holder(bench.queue.db)
    begun = time.monotonic()
    bench.go("go")
    done = bench.queue.cli("enqueue", "exit 0", check=False)
    one_error_line(done, "locked")
    assert 25 < time.monotonic() - begun < within(40)
    wait_until(lambda: time.monotonic() - begun > 40, 45, "forty seconds", 0.1)
    holder.release()
    for job in jobs:
        bench.queue.wait_for(job, "completed", timeout=within(5))
        assert outcomes(bench, job) == ["completed"]
    assert bench.workers() == workers and all(alive(pid) for pid in workers.values())
    assert bench.log().count("can't") <= 5, bench.log()
    check(bench)


# ---- files deleted, replaced, damaged ------------------------------------------------------------------

def all_end(bench, seconds=8):
    """A process lets go of its memory, by which it is found, a moment before its locks."""
    wait_until(lambda: not bench.queue.leftovers(), within(seconds), "all workers end by themselves", 0.05)


@pytest.mark.broad
def test_files_that_a_killed_rescuer_left_go_when_workers_start_and_those_in_use_stay(bench):
    bench.queue.start(1)
    job = bench.enqueue("until=go", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    in_use = {path.name for path in bench.queue.files.glob("workers/*")}
    for name in ("900.lock", "900.out", "900.cmd", "s900.lock"):
        (bench.queue.files / "workers" / name).touch()
    bench.queue.start(1)
    names = {path.name for path in bench.queue.files.glob("workers/*")}
    assert in_use < names and not {name for name in names if "900" in name}
    bench.go("go")
    bench.queue.wait_for(job, "completed")


def test_workers_of_a_deleted_database_end_with_a_message_and_make_no_new_one(bench):
    bench.queue.start(2)
    job = bench.enqueue("until=go", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    for path in bench.folder.glob("queue.db*"):
        if path.is_file():
            path.unlink()
    bench.go("go")
    all_end(bench)
    assert "deleted" in bench.log(), bench.log()
    assert not bench.queue.db.exists(), "a database that was deleted must not come back"
    wait_until(lambda: bench.queue.held_locks() == [], message="the locks are free")
    (bench.folder / "journal").unlink()
    bench.queue.start(2)  # a fresh queue in its place, in which nothing is left of the old
    bench.queue.wait_for(bench.enqueue("print=new", "exit=0"), "completed")
    check(bench)


@pytest.mark.broad
def test_workers_of_a_replaced_database_end_with_a_message_and_write_nothing_into_the_new_one(bench, tmp_path):
    queue = bench.queue
    other = tmp_path / "other.db"
    queue.run([*queue.program, "--db", str(other), "enqueue", "exit 7"])
    connection = sqlite3.connect(str(other))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    before = dump(other)
    queue.start(2)
    job = bench.enqueue("until=go", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    for suffix in ("-wal", "-shm"):
        os.unlink(str(queue.db) + suffix)
    os.replace(other, queue.db)
    bench.go("go")
    all_end(bench)
    assert "replaced" in bench.log(), bench.log()
    assert dump(queue.db) == before
    wait_until(lambda: queue.held_locks() == [], message="the locks are free")


def dump(path):
    connection = sqlite3.connect(str(path))
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_workers_make_a_deleted_log_directory_again(bench):
    bench.queue.start(1)
    first = bench.enqueue("print=one", "exit=0")
    bench.queue.wait_for(first, "completed")
    shutil.rmtree(bench.queue.files / "logs")
    second = bench.enqueue("print=two", "exit=0")
    bench.queue.wait_for(second, "completed")
    assert bench.queue.cli("logs", second).stdout == "two\n"
    assert bench.queue.cli("logs", first).stdout == ""
    check(bench)


@pytest.mark.broad
def test_workers_make_their_whole_directory_again_and_are_not_taken_for_dead(bench):
    bench.queue.start(2)
    running = bench.enqueue("until=go", "print=lost", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: bench.started(running), message="a job runs")
    shutil.rmtree(bench.queue.files)
    bench.queue.start(1)  # a second supervisor looks at the first
    end = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > end, message="it has looked", interval=0.1)
    assert len(bench.supervisors()) == 2
    bench.go("go")
    jobs = bench.enqueue_many([bench.line("print=new", "sleep=0.1", "exit=0")] * 6)
    for job in [running, *jobs]:
        bench.queue.wait_for(job, "completed")
        assert outcomes(bench, job) == ["completed"]
    assert {bench.queue.cli("logs", job).stdout for job in jobs} == {"new\n"}
    check(bench)


def damaged(bench, name):
    """Damages the (closed) database in a known way."""
    path = bench.queue.db
    size = path.stat().st_size
    assert not Path(str(path) + "-wal").exists(), "the last one to close has emptied the WAL"
    with open(path, "r+b") as file:
        if name == "header":
            file.write(b"no database at all")
        elif name == "all pages but the first":
            file.seek(4096)
            file.write(b"\xa5" * (size - 4096))
        elif name == "first page":
            file.seek(100)
            file.write(b"\xa5" * 3996)
        elif name == "truncated to half":
            file.truncate(size // 2 // 4096 * 4096)
        elif name == "truncated within the first page":
            file.truncate(1000)
        elif name == "truncated within a page":
            file.truncate(size - 5000)
    return path.read_bytes()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["header", "all pages but the first", "truncated to half", *[
    pytest.param(name, marks=pytest.mark.slow) for name in ("first page", "truncated within the first page", "truncated within a page")]])
def test_a_damaged_database_is_one_clear_line_and_is_made_no_worse(bench, name):
    jobs = bench.enqueue_many(["exit %d # %s" % (n, "x" * 500) for n in range(400)])
    before = damaged(bench, name)
    for args in (["list"], ["status"], ["show", str(jobs[0])], ["enqueue", "exit 0"], ["worker", "start"], ["run", "exit 0"],
                 ["dlq", "list"], ["config", "get", "timeout"], ["worker", "stop"]):
        done = bench.queue.cli(*args, check=False)
        assert "Traceback" not in done.stdout + done.stderr, (args, done.stderr)
        if done.returncode not in (0, 1):  # a command that met no damaged page may well succeed
            one_error_line(done)
        else:
            assert args[0] not in ("enqueue", "worker", "run") or name.startswith("truncated within a page") \
                or args == ["worker", "stop"], "%s went well on a damaged database (%s)" % (args, name)
    done = bench.queue.cli("doctor", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "backup" in done.stdout + done.stderr, "doctor says what to do: %s" % done
    if name != "truncated within a page":
        assert bench.queue.db.read_bytes() == before, "it was made worse"
    all_end(bench)


def test_workers_of_a_database_that_is_damaged_under_them_end_with_a_message(bench):
    bench.queue.start(2)
    bench.queue.wait_for(bench.enqueue("exit=0"), "completed")
    with open(bench.queue.db, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(b"\xa5" * size)
    done = bench.queue.cli("enqueue", "exit 0", check=False)
    if done.returncode:
        one_error_line(done)
    try:
        with open(str(bench.queue.db) + "-wal", "r+b") as file:  # not cut off: that reads as an I/O error, which is waited out
            file.write(b"\xa5" * os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        pass  # the workers had met the damage and ended already: the last to close takes the -wal away
    bench.queue.cli("enqueue", "exit 0", check=False)
    wait_until(lambda: not bench.queue.processes(), within(15), "all workers end by themselves", 0.1)
    assert "Traceback" not in bench.log(), bench.log()
    assert bench.log().count("\n") < 40, "one message, not a flood: %s" % bench.log()[-3000:]
    wait_until(lambda: bench.queue.held_locks() == [], message="the locks are free")


def leave_wal(queue, path, count):
    """Jobs whose commits stay in the -wal of a database at `path`, as after a power cut."""
    text = ("import os, sys; sys.path.insert(0, %r); import queuectl\n"
            "q = queuectl.Store(%r)\nfor n in range(%d): q.enqueue('exit 0 # foreign %%d' %% n)\nos._exit(0)") % (
        str(faults.ROOT), str(path), count)
    queue.run([sys.executable, "-c", text])
    wal = Path(str(path) + "-wal")
    assert wal.stat().st_size
    return wal


@pytest.mark.parametrize("origin", [pytest.param("a queue with more pages", marks=pytest.mark.slow), "a queue with fewer pages",
                                    pytest.param("no queue", marks=pytest.mark.slow)])
def test_the_wal_of_another_database_beside_it_is_refused_and_nothing_made_worse(bench, tmp_path, origin):
    queue = bench.queue
    bench.enqueue_many(["exit 0 # own %d" % n for n in range(300)])
    rows = queue.sql("SELECT id, command FROM job")
    queue.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    other = tmp_path / "other.db"
    if origin == "no queue":
        connection = sqlite3.connect(str(other))
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE strange(x)")
        connection.execute("INSERT INTO strange VALUES(1)")
        connection.commit()
        wal = Path(str(other) + "-wal").read_bytes()
        connection.close()
    elif origin == "an older backup of this one":
        shutil.copy(queue.db, other)
        bench.enqueue_many(["exit 0 # later %d" % n for n in range(300)])
        rows = queue.sql("SELECT id, command FROM job")
        wal = leave_wal(queue, other, 3).read_bytes()
    else:
        wal = leave_wal(queue, other, 3 if "fewer" in origin else 2000).read_bytes()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(str(queue.db) + suffix):
            os.unlink(str(queue.db) + suffix)
    before = queue.db.read_bytes()
    Path(str(queue.db) + "-wal").write_bytes(wal)
    done = queue.cli("list", "--limit", "0", "--json", check=False)
    one_error_line(done)
    one_error_line(queue.cli("enqueue", "exit 0", check=False))
    doctor = queue.cli("doctor", check=False)
    assert doctor.returncode == 2 and "-wal" in doctor.stdout + doctor.stderr
    assert queue.db.read_bytes() == before, "the foreign pages were written into the database"
    for suffix in ("-wal", "-shm"):
        if os.path.exists(str(queue.db) + suffix):
            os.unlink(str(queue.db) + suffix)
    assert queue.sql("SELECT id, command FROM job") == rows


# ---- clocks, boots, namespaces ---------------------------------------------------------------------------

class FakeClock:
    """A clock that processes started under it see jump (libfaketime); the monotonic one goes on."""

    def __init__(self, bench):
        found = sorted(Path("/usr").glob("lib*/**/faketime/libfaketime.so.1"))
        needs(found, "libfaketime (apt-get install faketime)")
        remove_stale_clocks()
        self._bench = bench
        self._file = bench.folder / "clock"
        self.jump(0)
        self.env = {"LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
                    "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def start(self, count):
        """Workers under this clock.  time.sleep of Python 3.11 sleeps until a time, with which libfaketime can't cope."""
        self._bench.patched_beside("import select\ntime.sleep = lambda s: select.select([], [], [], s)",
                                   "worker", "start", "--foreground", "--count", count, env=self.env)
        wait_until(lambda: len(self._bench.workers()) == count, message="the workers are there")

    def jump(self, seconds):
        self._file.with_suffix(".new").write_text("%+d\n" % seconds)
        os.replace(self._file.with_suffix(".new"), self._file)


DAY = 86400


@pytest.fixture
def clock(bench):
    return FakeClock(bench)


@pytest.mark.slow
def test_a_clock_that_jumps_a_day_touches_no_timeout_and_no_running_job(bench, clock):
    clock.start(2)
    survives = bench.enqueue("sleep=2", "exit=0", options=["--timeout", 30, "--max-retries", 0])
    wait_until(lambda: bench.started(survives), message="it runs")
    clock.jump(DAY)
    ends = bench.enqueue("hang=9", options=["--timeout", 1.5, "--max-retries", 0])
    begun = wait_until(lambda: bench.started(ends), message="the other runs").at
    clock.jump(-DAY)
    bench.queue.wait_for(ends, "dead")
    assert time.monotonic() - begun < within(4)
    bench.queue.wait_for(survives, "completed")
    assert outcomes(bench, survives) == ["completed"] and outcomes(bench, ends) == ["timeout"]
    clock.jump(0)
    check_with_jumps(bench, {survives: "completed", ends: "dead"})


@pytest.mark.broad
@pytest.mark.parametrize("first, then", [(0, -DAY), pytest.param(0, DAY, marks=pytest.mark.slow), pytest.param(DAY, 0, marks=pytest.mark.slow),
                                         pytest.param(DAY, -DAY, marks=pytest.mark.slow)])
def test_retries_and_delays_in_progress_are_not_stuck_when_the_clock_jumps(bench, clock, first, then):
    clock.jump(first)
    clock.start(1)
    retried = bench.enqueue("fail=2", "exit=0", options=["--backoff-base", 2])
    delayed = bench.enqueue("exit=0", options=["--delay", 2], env=clock.env)
    bench.queue.wait_for(retried, "failed")
    jumped = time.monotonic()
    clock.jump(then)
    for job in (retried, delayed):
        bench.queue.wait_for(job, "completed", timeout=within(8))
    assert time.monotonic() - jumped < within(8)
    check_with_jumps(bench, "completed")


@pytest.mark.broad
def test_a_rescue_finds_the_children_of_a_killed_worker_though_the_clock_has_jumped(bench, clock):
    clock.start(1)
    job = bench.enqueue("deaf", "child", "stray=never", "hang=2", options=["--max-retries", 0])
    wait_until(lambda: len(bench.journal("child")) == 2, message="the children of the job")
    clock.jump(DAY)
    kill(*bench.workers().values())
    released_at(bench, job)
    bench.queue.wait_for(job, "completed")
    strays = [entry.pid for entry in bench.journal("child") if entry.attempt == 2]
    check_with_jumps(bench, "completed", strays=strays)
    kill(*strays)


def check_with_jumps(bench, expected, **options):
    """As check; times in the history may be out of order where the clock was set."""
    rows = bench.queue.sql("SELECT seq FROM history WHERE finished_at<started_at")
    connection = sqlite3.connect(str(bench.queue.db))
    connection.executemany("UPDATE history SET started_at=finished_at WHERE seq=?", rows)
    connection.commit()
    connection.close()
    check(bench, expected, **options)


def rewrite_record(path, **changes):
    """Makes a dead worker's lock file say something else: pid, job, attempt, group, born, done, machine."""
    names = ("pid", "job", "attempt", "group", "born", "done", "machine")
    words = dict(zip(names, path.read_text().split()))
    words.update({name: str(value) for name, value in changes.items()})
    path.write_text(" ".join(words[name] for name in names).ljust(200) + "\n")


def kill_all_and_wait(bench):
    kill(*bench.queue.processes())
    wait_until(lambda: not bench.queue.processes(), message="all are gone")


@pytest.mark.broad
def test_after_a_reboot_the_next_start_releases_the_jobs_and_signals_no_stranger(bench):
    bench.queue.start(2)
    jobs = [bench.enqueue("hang=2", options=["--max-retries", 0]) for _ in range(2)]
    wait_until(lambda: len(bench.journal("start")) == 2, message="both jobs run")
    kill_all_and_wait(bench)
    foreign = subprocess.Popen(["sleep", "60"], start_new_session=True)  # has the group's number, in the new boot
    try:
        for lock in bench.queue.files.glob("workers/[0-9]*.lock"):
            rewrite_record(lock, machine="b007b007-0000-4000-8000-000000000000/pid:[4026531836]", group=foreign.pid,
                           pid=foreign.pid, born=0)
        for table in ("worker", "supervisor"):
            write(bench, "UPDATE %s SET pid=%d" % (table, foreign.pid))
        write(bench, "UPDATE worker SET machine='b007b007-0000-4000-8000-000000000000/pid:[4026531836]'")
        began = time.monotonic()
        bench.queue.start(2)
        for job in jobs:
            assert released_at(bench, job) - began < within(2)
            bench.queue.wait_for(job, "completed")
        assert foreign.poll() is None
        check(bench)
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def write(bench, sql, *values):
    connection = sqlite3.connect(str(bench.queue.db), timeout=10)
    connection.execute(sql, values)
    connection.commit()
    connection.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("verb", ["start", "stop --now"])
def test_a_stranger_that_got_the_number_of_a_dead_attempts_group_is_not_signalled(bench, verb):
    bench.queue.start(1)
    job = bench.enqueue("hang=2", options=["--max-retries", 0])
    wait_until(lambda: bench.started(job), message="the job runs")
    kill_all_and_wait(bench)
    foreign = subprocess.Popen(["sleep", "60"], start_new_session=True)  # younger than the attempt, same boot
    try:
        for lock in bench.queue.files.glob("workers/[0-9]*.lock"):
            rewrite_record(lock, group=foreign.pid)
        bench.queue.cli("worker", *verb.split())
        if verb == "start":
            bench.queue.wait_for(job, "completed")
        assert foreign.poll() is None, "a process that is not the queue's was killed"
        check(bench, "completed" if verb == "start" else "pending")
    finally:
        foreign.kill()
        foreign.wait()


@pytest.mark.slow
def test_lock_files_that_say_nonsense_make_nobody_signal_anything(bench):
    contents = ["", "garbage\n", "1 2 3\n", "-1 -1 -1 -1 nan 0 x\n", "1 {job} 1 1 0 0 {machine}\n", "1 {job} 1 0 0 0 {machine}\n"]
    bench.queue.start(len(contents))
    jobs = [bench.enqueue("hang=2", options=["--max-retries", 0]) for _ in contents]
    wait_until(lambda: len(bench.journal("start")) == len(jobs), message="all jobs run")
    kill_all_and_wait(bench)
    for content, (worker, job) in zip(contents, bench.queue.sql("SELECT worker, id FROM job")):
        lock = bench.queue.files / "workers" / ("%d.lock" % worker)
        lock.write_text(content.format(job=job, machine=lock.read_text().split()[6]))
    bench.queue.start(2)
    for job in jobs:
        bench.queue.wait_for(job, "completed")
    check(bench)


def in_namespace(bench, *args):
    """Starts a shell that is process 1 of a pid namespace and runs queuectl as its child."""
    needs(ROOT_USER and shutil.which("unshare"), "root and unshare")
    not_on_fallbacks("they know no pid namespaces, which only Linux has")
    from conftest import Background
    queue = bench.queue
    path = queue.dir / ("output-%d.txt" % len(queue.background))
    command = ["unshare", "-pf", "--mount-proc", "sh", "-c", '"$@"; sleep 60; :', "sh", *queue.command(*args)]
    process = Background(command, path, cwd=str(queue.dir), env=queue.environment())
    queue.background.append(process)
    return process


@pytest.mark.slow
def test_two_pid_namespaces_on_one_volume_see_each_other_alive_and_signal_no_stranger(bench):
    queue = bench.queue
    queue.start(1)
    outside = [*bench.supervisors().values(), *bench.workers().values()]
    job = bench.enqueue("until=go", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: bench.started(job), message="a job runs outside")
    inside = in_namespace(bench, "worker", "start", "--foreground")
    wait_until(lambda: len(bench.workers()) == 2, message="a worker in the namespace")
    other = bench.enqueue("deaf", "until=ns", "exit=0", options=["--max-retries", 0])
    wait_until(lambda: bench.started(other), message="a job runs inside")
    facts = queue.json("worker", "list")
    assert [w["state"] for w in facts] == ["busy", "busy"], facts
    end = time.monotonic() + 2.2
    wait_until(lambda: time.monotonic() > end, message="each has looked twice", interval=0.1)
    assert len(bench.supervisors()) == 2 and queue.job(job).attempt == 1 and queue.job(other).attempt == 1
    # The supervisor and the worker inside die; their job lives on in the namespace.
    victims = [pid for pid, line in queue.processes().items() if "--foreground" in line and "unshare" not in line
               and pid not in outside and not line.startswith("sh -c")]
    assert len(victims) == 2, (victims, queue.processes())
    kill(*victims)
    shown = wait_until(lambda: (lambda s: s if s["note"] else None)(queue.json("show", other)), 10, "the outside waits for it", 0.1)
    assert shown["state"] == "processing" and shown["attempt"] == 1, "it runs: nobody may take it"
    bench.go("go")
    queue.wait_for(job, "completed")
    kill(*[pid for pid, line in queue.processes().items() if "until=ns" in line])
    released_at(bench, other)
    bench.go("ns")
    queue.wait_for(other, "completed")
    assert all(alive(pid) for pid in outside)
    assert outcomes(bench, other) == ["crashed", "completed"]
    end_namespace(bench, inside)
    check(bench)


def end_namespace(bench, inside):
    """Kills process 1 of the namespace, and with it all that is in it."""
    kill(*[pid for pid, line in bench.queue.processes().items() if line.startswith("sh -c \"$@\"")])
    wait_until(lambda: inside.poll() is not None, message="the namespace ends")


@pytest.mark.broad
def test_a_pid_namespace_that_ends_as_a_whole_leaves_its_job_to_the_others(bench):
    inside = in_namespace(bench, "worker", "start", "--foreground")
    wait_until(lambda: len(bench.workers()) == 1, message="a worker in the namespace")
    job = bench.enqueue("deaf", "child", "hang=2", options=["--max-retries", 0])
    wait_until(lambda: bench.journal("child"), message="its job runs")
    bench.queue.start(1)
    killed = time.monotonic()
    end_namespace(bench, inside)
    assert released_at(bench, job) - killed < within(2) + 1
    bench.queue.wait_for(job, "completed")
    strays = [entry.pid for entry in bench.journal("child") if entry.attempt == 2]
    check(bench, strays=strays)
    kill(*strays)


@pytest.mark.broad
# ---- starting and stopping in a hurry ---------------------------------------------------------------------

def test_the_first_commands_on_a_fresh_queue_may_come_all_at_once(queue):
    for n in range(3):
        path = str(queue.dir / ("fresh-%d.db" % n))
        program = [*queue.program, "--db", path]
        several = [subprocess.Popen([*program, *words], cwd=str(queue.dir), env=queue.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT) for words in (["enqueue", "exit 0"], ["config", "set", "timeout", "9"], ["enqueue", "exit 0"], ["enqueue", "exit 0"])]
        told = [process.communicate(timeout=30)[0] for process in several]
        assert [process.returncode for process in several] == [0] * 4, told
        assert len(json.loads(queue.run([*program, "list", "--json"]).stdout)) == 3


@pytest.mark.broad
@pytest.mark.parametrize("many", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_many_starts_at_once_and_then_many_stops_at_once(bench, many):
    jobs = bench.enqueue_many([bench.line("sleep=0.05", "exit=0")] * many)
    starts = [bench.queue.beside("worker", "start") for _ in range(many)]
    assert [start.ends(60) for start in starts] == [0] * many, [start.text() for start in starts]
    assert len(bench.workers()) == len(bench.supervisors()) == many
    facts = bench.queue.json("worker", "list")
    assert len(facts) == many and not [w for w in facts if w["state"] == "dead"]
    for job in jobs:
        bench.queue.wait_for(job, "completed")
    stops = [bench.queue.beside("worker", "stop") for _ in range(many)]
    assert [stop.ends(60) for stop in stops] == [0] * many, [stop.text() for stop in stops]
    assert bench.workers() == {} and bench.supervisors() == {}
    check(bench, stop=False)


@pytest.mark.broad
@pytest.mark.parametrize("many", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_starts_and_stops_mixed_end_with_nothing_left_and_jobs_given_back(bench, many):
    jobs = bench.enqueue_many([bench.line("sleep=0.05", "exit=0")] * many)
    running = [bench.queue.beside("worker", *args) for _ in range(many)
               for args in (["start", "--count", "2"], ["stop", "--now"])]
    codes = [process.ends(60) for process in running]
    texts = [process.text() for process in running]
    for code, text in zip(codes, texts):  # a start that a stop overtook says so
        assert "Traceback" not in text and code == (2 if "queuectl: error:" in text else 0), text
    bench.queue.stop()
    assert bench.workers() == {} and bench.supervisors() == {}
    wait_until(lambda: not bench.queue.processes(), within(3), "the last process ends, whose row has gone")
    for row in bench.queue.sql("SELECT state FROM job"):
        assert row[0] in ("pending", "completed")
    bench.queue.start(2)
    for job in jobs:
        bench.queue.wait_for(job, "completed")
    check(bench)


def test_a_second_stop_waits_for_the_same_end_and_now_overtakes_a_graceful_one(bench):
    bench.queue.start(2)
    job = bench.enqueue("until=never", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    first = bench.queue.beside("worker", "stop")
    second = bench.queue.beside("worker", "stop")
    wait_until(lambda: len(bench.workers()) == 1, message="the idle worker has ended")
    assert first.poll() is None and second.poll() is None
    third = bench.queue.beside("worker", "stop", "--now")
    assert [process.ends() for process in (first, second, third)] == [0, 0, 0]
    assert (bench.queue.job(job).state, bench.queue.job(job).attempts) == ("pending", 0)
    check(bench, "pending", stop=False)


def test_term_twice_gives_the_jobs_back(bench):
    supervisor = bench.queue.beside("worker", "start", "--foreground", "--count", 2)
    jobs = [bench.enqueue("deaf", "child", "until=never") for _ in range(2)]
    wait_until(lambda: len(bench.journal("child")) == 2, message="both jobs run")
    supervisor.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in supervisor.text(), message="it says that it stops")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.ends() == 0
    assert {(bench.queue.job(job).state, bench.queue.job(job).attempts) for job in jobs} == {("pending", 0)}
    assert not any(alive(entry.pid) for entry in bench.journal())
    check(bench, "pending", stop=False)


def test_a_terminal_that_is_closed_gives_the_jobs_back(bench):
    import pty
    queue = bench.queue
    job = bench.enqueue("deaf", "child", "until=never")
    pid, master = pty.fork()
    if not pid:
        os.chdir(str(queue.dir))
        os.execvpe(sys.executable, queue.command("worker", "start", "--foreground", "--count", 2), queue.environment())
    wait_until(lambda: bench.journal("child"), message="the job runs")
    os.close(master)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], within(5), "the foreground ends")
    wait_until(lambda: not queue.processes(), within(5), "all end")
    assert (queue.job(job).state, queue.job(job).attempts) == ("pending", 0)
    check(bench, "pending", stop=False)


def test_workers_whose_log_nobody_reads_any_more_harm_no_job(bench):
    reader, writer = os.pipe()
    supervisor = subprocess.Popen(bench.queue.command("worker", "start", "--foreground"), stdout=writer, stderr=writer,
                            env=bench.queue.environment(), cwd=str(bench.folder), start_new_session=True)
    os.close(writer)
    bench.queue.background.append(supervisor)
    wait_until(lambda: bench.workers(), message="the worker is there")
    job = bench.enqueue("until=go", "exit=0")
    wait_until(lambda: bench.started(job), message="the job runs")
    os.close(reader)
    bench.go("go")
    bench.queue.wait_for(job, "completed")
    later = bench.enqueue_many([bench.line("exit=0")] * 3)
    end = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > end, message="a while", interval=0.1)
    assert len(bench.queue.sql("SELECT seq FROM history WHERE outcome='crashed'")) == 0
    bench.queue.stop()
    check(bench, {job: "completed", **dict.fromkeys(later, ("completed", "pending"))}, stop=False)


def test_the_terminal_of_a_run_is_closed_and_its_jobs_stay_in_the_queue(bench):
    import pty
    queue = bench.queue
    pid, master = pty.fork()
    if not pid:
        os.chdir(str(queue.dir))
        os.execvpe(sys.executable, queue.command("run", "--count", 2, *bench.words("deaf", "until=never")), queue.environment())
    wait_until(lambda: bench.journal("start"), message="the job runs")
    os.close(master)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], within(5), "the run ends")
    wait_until(lambda: not queue.processes(), within(5), "all end")
    check(bench, "pending", stop=False)


@pytest.mark.broad
# ---- races of people ----------------------------------------------------------------------------------

def test_of_ten_that_retry_one_dead_job_one_wins_and_the_others_say_so(bench):
    bench.queue.start(1)
    job = bench.enqueue("fail=2", "exit=0", options=["--max-retries", 0])
    bench.queue.wait_for(job, "dead")
    bench.queue.stop()
    racers = [bench.queue.beside("dlq", "retry", job) for _ in range(10)]
    codes = [racer.ends() for racer in racers]
    assert codes.count(0) == 1, [racer.text() for racer in racers]
    for code, racer in zip(codes, racers):
        assert code == 0 or "pending" in racer.text(), racer.text()
    bench.queue.start(1)
    bench.queue.wait_for(job, "completed")
    assert outcomes(bench, job) == ["failed", "completed"]
    check(bench, revived=[job])


def test_a_cancel_and_a_completion_that_race_agree_on_who_won(bench):
    queue = bench.queue
    queue.start(2)
    jobs = []
    for number in range(8):
        job = bench.enqueue("sleep=%.3f" % (0.02 + 0.02 * number), "exit=0", options=["--max-retries", 0])
        jobs.append(job)
        said = queue.cli("cancel", job, check=False)
        done = queue.wait_for(job, "completed", "cancelled")
        assert said.returncode == (0 if done.state == "cancelled" else 1) and "Traceback" not in said.stderr
        assert outcomes(bench, job) in (["completed"], ["cancelled"], [])
        if done.state == "cancelled":
            assert outcomes(bench, job) != ["completed"]
    check(bench, dict.fromkeys(jobs, ("completed", "cancelled")))


@pytest.mark.slow
def test_of_ten_that_cancel_one_running_job_none_fails_and_it_is_cancelled_once(bench):
    bench.queue.start(1)
    job = bench.enqueue("deaf", "child", "until=never")
    wait_until(lambda: bench.journal("child"), message="the job runs")
    racers = [bench.queue.beside("cancel", job) for _ in range(10)]
    for racer in racers:
        status = racer.ends()  # one that only began when the job had ended says so
        assert status == (1 if "cancelled already" in racer.text() else 0) and "Traceback" not in racer.text(), racer.text()
    bench.queue.wait_for(job, "cancelled")
    assert outcomes(bench, job) == ["cancelled"]
    assert not any(alive(entry.pid) for entry in bench.journal())
    check(bench, "cancelled")


@pytest.mark.slow
def test_retry_purge_and_cancel_of_one_dead_job_at_once_leave_it_whole_or_gone(bench):
    bench.queue.start(1)
    jobs = [bench.enqueue("print=out", "exit=1", options=["--max-retries", 0]) for _ in range(4)]
    for job in jobs:
        bench.queue.wait_for(job, "dead")
    racers = [bench.queue.beside(*verb, job) for job in jobs for verb in (("dlq", "retry"), ("dlq", "purge"), ("cancel",))]
    for racer in racers:
        assert racer.ends() in (0, 1, 2) and "Traceback" not in racer.text(), racer.text()
    wait_until(lambda: not bench.queue.sql("SELECT id FROM job WHERE state NOT IN ('dead', 'cancelled')"), message="all have ended")
    left = [job for job, in bench.queue.sql("SELECT id FROM job")]
    for path in bench.queue.files.glob("logs/*/*.log"):
        assert int(path.name.split(".")[0]) in left, "the log of a job that is gone"
    check(bench, dict.fromkeys(left, ("dead", "cancelled")), revived=left)


# ---- what reaches the disk ------------------------------------------------------------------------------

def syscalls(queue, *args):
    """(name, file, rest) of what a command wrote and synced, in order."""
    needs(shutil.which("strace"), "strace")
    trace = queue.dir / "trace"
    done = queue.run(["strace", "-f", "-y", "-s", "40", "-e", "trace=pwrite64,fsync,fdatasync,write", "-o", str(trace),
                      *queue.command(*args)])
    calls = []
    for line in trace.read_text("utf-8", "replace").splitlines():
        match = re.search(r"(pwrite64|fsync|fdatasync|write)\((\d+)<([^>]*)>(.*)", line)
        if match:
            calls.append((match.group(1), int(match.group(2)), match.group(3), match.group(4)))
    return done.stdout, calls


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", [True, False])
def test_the_wal_is_synced_before_the_id_is_written_to_stdout(bench, first):
    if first:
        for path in bench.folder.glob("queue.db*"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    else:
        keeper = bench.queue.start(1)  # somebody has it open: no checkpoint at the end
        assert keeper.returncode == 0
    printed, calls = syscalls(bench.queue, "enqueue", "exit 0")
    told = [i for i, (name, fd, _, rest) in enumerate(calls) if name == "write" and fd == 1 and printed.strip() in rest]
    wal = str(bench.queue.db) + "-wal"
    wrote = [i for i, (name, _, file, _) in enumerate(calls) if name == "pwrite64" and file == wal]
    synced = [i for i, (name, _, file, _) in enumerate(calls) if name in ("fsync", "fdatasync") and file == wal]
    assert len(told) == 1 and wrote and synced, calls
    before = [i for i in wrote if i < told[0]]
    assert before, "the job is in the WAL before the id is printed"
    assert any(max(before) < i < told[0] for i in synced), "synced after the last write, before the id: %s" % calls
    bench.queue.stop()
    check(bench, {int(printed): ("pending", "completed")})


# ---- crash consistency -------------------------------------------------------------------------------------

PRODUCER = """
import os, sys, time
sys.path.insert(0, %(root)r)
import queuectl
queue = queuectl.Store(%(db)r)
number = 0
while not os.path.exists(%(stop)r):
    kind = number %% 5
    if kind == 0:
        queue.enqueue_many(["exit 0", {"command": "exit 1", "max_retries": 1, "backoff_base": 0.05}, "exit 0"], label="some")
    elif kind == 1:
        parent = queue.enqueue("exit 0")
        queue.enqueue("exit 0", after=str(parent))
    elif kind == 2:
        queue.enqueue("exit 3", max_retries=0, key="k%%d" %% (number %% 3))
    else:
        job = queue.enqueue("exit 0", name="n-%(who)s-%%d" %% number)
        sys.stdout.write("%%d\\n" %% job)
        sys.stdout.flush()
    number += 1
    time.sleep(0.002)
"""


@pytest.mark.broad
@pytest.mark.parametrize("moments", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_at_random_moments_the_files_on_disk_are_a_sound_queue(bench, tmp_path, moments):
    import random
    chance = random.Random(20240817)
    queue = bench.queue
    queue.start(4)
    stop = bench.folder / "stop"
    producers, answers = [], []
    for who in range(2):
        answers.append(bench.folder / ("acknowledged-%d" % who))
        text = PRODUCER % {"root": str(faults.ROOT), "db": str(queue.db), "stop": str(stop), "who": who}
        with open(answers[-1], "wb") as output:
            producers.append(subprocess.Popen([sys.executable, "-c", text], stdout=output, env=queue.environment(), cwd=str(queue.dir)))
    wait_until(lambda: all(path.read_text().count("\n") > 5 for path in answers), message="a busy run")
    finished, names = {}, 0
    for moment in range(moments):
        time.sleep(chance.uniform(0.0, 0.06))
        copy = tmp_path / ("copy-%d.db" % moment)
        acknowledged, synced = stop_and_copy(queue, answers, copy)
        cut = tmp_path / "cut.db"
        shutil.copy(copy, cut)
        with open(str(copy) + "-wal", "rb") as file:
            wal = file.read()
        Path(str(cut) + "-wal").write_bytes(wal[:chance.randint(min(synced, len(wal)), len(wal))])  # as a power cut may leave it
        assert database_faults(cut) == [], "with a WAL cut short at moment %d" % moment
        assert database_faults(copy) == [], "at moment %d" % moment
        connection = sqlite3.connect(str(copy))
        states = dict(connection.execute("SELECT id, state FROM job").fetchall())
        connection.close()
        lost = [job for job in acknowledged if job not in states]
        assert not lost, "acknowledged, but not on the disk: %s" % lost
        for job, state in finished.items():
            assert states.get(job) == state, "job %d was %s, is %s" % (job, state, states.get(job))
        finished = {job: state for job, state in states.items() if state in faults.FINAL}
        names = len(states)
        for path in tmp_path.glob("c*.db*"):
            path.unlink()
    assert names > 20 and finished
    stop.touch()
    for producer in producers:
        assert producer.wait(20) == 0
    queue.stop("--now")
    check(bench, dict((job, ("pending", "failed", "completed", "dead")) for job, in queue.sql("SELECT id FROM job")), stop=False)


def stop_and_copy(queue, answers, target):
    """Stops every process, copies database and WAL, lets all go on.

    Returns the ids acknowledged before, and how much of the WAL is surely synced: a checkpoint syncs it before
    it writes the first of its pages into the database (nBackfill and nBackfillAttempted of the WAL's index,
    sqlite.org/walformat.html).
    """
    stopped = set()
    while True:  # until a whole round finds nobody new: forks go on while we stop
        new = set(queue.processes()) - stopped
        if not new:
            break
        kill(*new, number=signal.SIGSTOP)
        stopped |= new
    try:
        acknowledged = [int(line) for path in answers for line in path.read_text().split("\n")[:-1]]
        shutil.copy(queue.db, target)
        shutil.copy(str(queue.db) + "-wal", str(target) + "-wal")
        with open(str(queue.db) + "-shm", "rb") as file:
            index = file.read(136)
        frames = max(int.from_bytes(index[at:at + 4], sys.byteorder) for at in (96, 128))
        return acknowledged, 32 + frames * (24 + 4096)
    finally:
        kill(*stopped, number=signal.SIGCONT)


# ---- backup and doctor ---------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_backup_of_a_queue_in_use_is_sound_and_works(bench, tmp_path):
    queue = bench.queue
    bench.enqueue_many([bench.line("exit=0")] * 40)
    queue.start(2)
    copy = tmp_path / "backup.db"
    queue.cli("backup", copy)
    assert database_faults(copy) == [] and not Path(str(copy) + "-wal").exists()
    assert len(sqlite3.connect(str(copy)).execute("SELECT id FROM job").fetchall()) == 40
    done = queue.run([*queue.program, "--db", str(copy), "doctor"], check=False)
    assert "Traceback" not in done.stderr
    one_error_line(queue.cli("backup", copy, check=False), "exists")
    wait_until(lambda: not queue.sql("SELECT id FROM job WHERE state<>'completed'"), message="all are done")
    check(bench)
    # The backup was made while jobs ran: a start on it releases them, and completes what is left.
    started = time.monotonic()
    queue.run([*queue.program, "--db", str(copy), "worker", "start", "--foreground", "--drain", "--count", "2"], timeout=60)
    assert time.monotonic() - started < 30
    assert {s for s, in sqlite3.connect(str(copy)).execute("SELECT state FROM job")} == {"completed"}


@pytest.mark.broad
def test_doctor_finds_dead_workers_stale_locks_and_orphaned_logs_and_mends_them(bench):
    queue = bench.queue
    queue.start(1)
    printed = bench.enqueue("print=out", "exit=0")
    queue.wait_for(printed, "completed")
    job = bench.enqueue("hang=2")
    wait_until(lambda: bench.started(job), message="the job runs")
    healthy = queue.cli("doctor", check=False)
    assert healthy.returncode == 0, healthy.stdout
    kill_all_and_wait(bench)
    (queue.files / "workers" / "99.lock").touch()
    (queue.files / "logs" / "4").mkdir()
    (queue.files / "logs" / "4" / "4711.1.log").write_text("orphan")
    sick = queue.out("doctor", check=False)
    assert "dead" in sick and "99.lock" in sick and "4711.1.log" in sick, sick
    assert (queue.files / "logs" / "4" / "4711.1.log").exists(), "without --fix it only looks"
    assert queue.job(job).state == "processing"
    queue.cli("doctor", "--fix", check=False)
    assert queue.job(job).state == "pending"
    queue.cli("doctor", "--fix", check=False)
    well = queue.cli("doctor", check=False)
    assert "Traceback" not in well.stderr and "is dead" not in well.stdout and "4711" not in well.stdout, well.stdout
    check(bench, {printed: "completed", job: "pending"}, stop=False)


def test_a_network_file_system_is_refused(bench):
    patch = "queuectl.OS.network_disk = lambda path: 'nfs4'"
    done = bench.patched(patch, "doctor")
    assert done.returncode == 2 and "network file system" in done.stdout
    for path in bench.folder.glob("queue.db*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    one_error_line(bench.patched(patch, "enqueue", "exit 0"), "network file system")
    assert not bench.queue.db.exists()


def test_a_rescue_that_fails_leaves_no_lock_of_a_worker_that_another_has_released(tmp_path):
    """It goes by a list that was read before, and makes the worker's lock file again to look; nobody else would come for that file."""
    import queuectl
    code = ("import sys; sys.path.insert(0, %r); import queuectl; store = queuectl.Store(%r); "
            "print(store.workers.add_worker(store.workers.add_supervisor(queuectl.SupervisorSpec('', 'start', 1, {}), 1, 'x')[0])[0])" % (
                str(SCRIPT.parent), str(tmp_path / "q.db")))
    number = int(subprocess.run([sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, check=True).stdout)
    with queuectl.Store(str(tmp_path / "q.db")) as store:
        [worker] = store.workers.workers()
        lock = Path(store.db.files.lock(number))
        store.workers.remove_worker(number)  # as another rescuer, and the worker itself, do
        lock.unlink()
        store.db.patience = 0.05
        other = sqlite3.connect(str(tmp_path / "q.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError):
            queuectl.rescue(store, worker)
        assert not lock.exists()
        other.close()
        assert queuectl.rescue(store, worker) and not lock.exists()


UNSURE = """
claim = queuectl.Claims.finish_and_claim
def unsure(self, *args):
    taken = claim(self, *args)
    if taken and taken[0].id not in told:
        told.add(taken[0].id)
        raise queuectl.sqlite3.OperationalError("disk I/O error")
    return taken
told = set()
queuectl.Claims.finish_and_claim = unsure
"""


def test_a_claim_that_was_committed_although_it_failed_is_worked_once(bench):
    jobs = [bench.enqueue("exit=0", "exit=0") for _ in range(3)]
    supervisor = bench.patched_beside(UNSURE, "worker", "start", "--foreground", "--drain")
    assert supervisor.ends() == 0, supervisor.text()
    for job in jobs:
        assert outcomes(bench, job) == ["completed"] and bench.queue.job(job).attempt == 1
    check(bench)
