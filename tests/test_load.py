"""Under load: many producers at once, a million jobs, readers that take their time.  Nothing is lost, nobody waits long."""
from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import faults
import pytest
from conftest import wait_until
from faults import Bench, check, within

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: the checker reads /proc")


@pytest.fixture
def bench(queue):
    return Bench(queue)


def produce(queue, count, answers):
    """One producer: `count` calls of the CLI, each timed."""
    for _ in range(count):
        begun = time.monotonic()
        done = queue.cli("enqueue", "exit 0", check=False, timeout=120)
        answers.append((time.monotonic() - begun, done.returncode, done.stdout, done.stderr))


@pytest.mark.parametrize("producers, each", [(4, 3), pytest.param(64, 50, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_many_producers_at_once_while_eight_workers_run_lose_nothing(bench, producers, each):
    queue = bench.queue
    queue.start(8)
    answers = []
    threads = [threading.Thread(target=produce, args=(queue, each, answers)) for _ in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer for answer in answers if answer[1] or answer[3]] == []
    ids = sorted(int(answer[2]) for answer in answers)
    assert ids == list(range(1, producers * each + 1))
    times = sorted(answer[0] for answer in answers)
    print("\n%d producers x %d calls: median %.3f s, p99 %.3f s, slowest %.3f s" % (
        producers, each, times[len(times) // 2], times[len(times) * 99 // 100], times[-1]))
    assert times[-1] < within(10)
    wait_until(lambda: not queue.sql("SELECT id FROM job WHERE state<>'completed' LIMIT 1"), within(20), "all are completed")
    assert "locked" not in bench.log() and "trouble" not in bench.log(), bench.log()
    check(bench)


WRITER = """
import sys, time
sys.path.insert(0, %r)
import queuectl
queue = queuectl.Store(%r)
longest = 0.0
end = time.monotonic() + float(sys.argv[1])
count = 0
while time.monotonic() < end:
    begun = time.monotonic()
    queue.enqueue_many(["exit 0 # " + "x" * 500] * 50)
    longest = max(longest, time.monotonic() - begun)
    count += 50
    time.sleep(0.002)
print(count, longest)
"""


@pytest.mark.slow
def test_a_long_reader_into_a_slow_pipe_neither_stops_writers_nor_grows_the_wal(bench):
    queue = bench.queue
    with open(bench.folder / "many.txt", "w") as file:
        file.write("exit 0\n" * 20000)
    queue.cli("enqueue", "--file", bench.folder / "many.txt")
    reader = subprocess.Popen(queue.command("list", "--limit", "0", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=queue.environment(), cwd=str(queue.dir))
    pieces = [os.read(reader.stdout.fileno(), 4096)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER % (str(faults.ROOT), str(queue.db)), "2.5"], stdout=subprocess.PIPE,
                              env=queue.environment(), cwd=str(queue.dir), universal_newlines=True)
    wal = Path(str(queue.db) + "-wal")
    largest = 0
    while writer.poll() is None:  # reads 4 KiB now and then: a pager that somebody looks at
        pieces.append(os.read(reader.stdout.fileno(), 4096))
        if wal.exists():
            largest = max(largest, wal.stat().st_size)
        time.sleep(0.05)
    count, longest = writer.stdout.read().split()
    writer.stdout.close()
    assert reader.poll() is None, "the reader is still at it"
    assert int(count) >= 1000 and float(longest) < within(1.0), (count, longest)
    assert largest < 24 * 2**20, "the WAL grew to %d MiB" % (largest // 2**20)
    pieces.append(reader.stdout.read())
    assert reader.wait(30) == 0, reader.stderr.read()
    reader.stdout.close()
    reader.stderr.close()
    ids = [job["id"] for job in json.loads(b"".join(pieces))]
    assert ids == sorted(set(ids), reverse=True) and set(range(1, 20001)) <= set(ids)
    check(bench, "pending")


def timed(limits, name, limit, action):
    """Runs and times an action; notes it when it took longer than it may."""
    begun = time.monotonic()
    result = action()
    took = time.monotonic() - begun
    limits.append((name, took, limit))
    return result


def finish_by_hand(path, count, state, when):
    """Makes the first `count` pending jobs look as though they had ended long ago: a history that takes hours to make."""
    db = sqlite3.connect(str(path), timeout=60)
    with db:
        [low] = db.execute("SELECT min(id) FROM job WHERE state='pending'").fetchone()
        db.execute("UPDATE job SET state=?, gate=NULL, attempt=1, attempts=1, started_at=?, finished_at=?, error=? "
                   "WHERE id>=? AND id<?", (state, when, when, None if state == "completed" else "exit 1", low, low + count))
        db.execute("INSERT INTO history(job, attempt, worker, started_at, finished_at, outcome, state, duration) "
                   "SELECT id, 1, 1, ?, ?, ?, ?, 0 FROM job WHERE id>=? AND id<?",
                   (when, when, "completed" if state == "completed" else "failed", state, low, low + count))
        db.execute("UPDATE batch SET unfinished=unfinished-?", (count,))
    db.close()


@pytest.mark.broad
def test_retention_catches_up_with_a_backlog(bench):
    queue = bench.queue
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 20000)
    finish_by_hand(queue.db, 20000, "completed", time.time() - 10)
    queue.cli("config", "set", "keep_finished", "1s")
    queue.start(1)
    wait_until(lambda: queue.sql("SELECT count(*) FROM job") == [(0,)], 30, "20,000 old jobs go: 500 a second would take 40 s")
    check(bench)


@pytest.mark.broad
def test_an_interrupted_change_of_many_says_how_far_it_came_and_leaves_the_rest(bench):
    queue = bench.queue
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 60000)
    command = queue.beside("cancel", "--all")
    wait_until(lambda: queue.sql("SELECT sum(n) FROM tally WHERE state='cancelled'")[0][0] > 1000, message="the first are cancelled")
    command.send_signal(signal.SIGINT)
    assert command.ends() == 130
    [said] = re.findall(r"interrupted: (\d+) jobs of 60000", command.text())
    counts = dict(queue.sql("SELECT state, count(*) FROM job GROUP BY state"))
    assert 0 < int(said) <= counts["cancelled"] <= int(said) + 500 and counts["pending"] == 60000 - counts["cancelled"]
    assert faults.database_faults(queue.db) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_million_pending_jobs_stay_responsive(bench):
    queue = bench.queue
    limits = []
    with open(bench.folder / "million.txt", "w") as file:
        file.write("exit 0\n" * 10**6)
    timed(limits, "bulk load", 60, lambda: queue.run(queue.command("enqueue", "--file", bench.folder / "million.txt"), timeout=200))
    for name, args in (("status", ["status"]), ("list", ["list"]), ("list one state", ["list", "--state", "dead"]),
                       ("list two states", ["list", "--state", "dead", "--state", "failed"]),
                       ("list json", ["list", "--json", "--limit", "1000"]), ("show", ["show", "500000"]),
                       ("explain", ["explain", "500000"]), ("enqueue", ["enqueue", "exit 0"]),
                       ("dlq list", ["dlq", "list"]), ("cancel", ["cancel", "999999"]), ("worker list", ["worker", "list"])):
        timed(limits, name, 1.0, lambda: queue.cli(*args, timeout=120))
    timed(limits, "worker start", 2.0, lambda: queue.start(2))
    timed(limits, "500 jobs by 2 workers", 10.0, lambda: wait_until(
        lambda: queue.sql("SELECT 1 FROM job WHERE id=500 AND state='completed'"), 60, "500 jobs done", 0.05))
    first = queue.enqueue("-p", 5, "exit 0")
    timed(limits, "a job of higher priority", 1.0, lambda: queue.wait_for(first, "completed"))
    timed(limits, "worker stop", 2.0, queue.stop)
    finish_by_hand(queue.db, 100000, "dead", time.time() - 10)
    for name, args in (("dlq list of 100,000", ["dlq", "list"]), ("status", ["status"])):
        timed(limits, name, 1.0, lambda: queue.cli(*args))
    purge = queue.beside("dlq", "purge", "--all")
    begun = time.monotonic()
    while purge.poll() is None:
        timed(limits, "enqueue during a purge", 1.0, lambda: queue.enqueue("exit 0"))
        time.sleep(0.5)
    limits.append(("dlq purge of 100,000", time.monotonic() - begun, 90.0))
    assert purge.returncode == 0, purge.text()
    finish_by_hand(queue.db, 200000, "completed", time.time() - 10)
    queue.cli("config", "set", "keep_finished", "1s")
    before = queue.sql("SELECT count(*) FROM job")[0][0]
    queue.start(1)
    for _ in range(20):  # while old jobs are removed
        timed(limits, "enqueue during retention", 1.0, lambda: queue.enqueue("exit 0"))
    wait_until(lambda: queue.sql("SELECT count(*) FROM job")[0][0] < before - 1000, 30, "old jobs go", 0.2)
    timed(limits, "worker stop", 2.0, queue.stop)
    print()
    for name, took, limit in limits:
        print("%-28s %7.3f s" % (name, took))
    late = [(name, took) for name, took, limit in limits if took > within(limit)]
    assert late == []
    assert faults.database_faults(queue.db) == []
