"""The times in the history never decrease with its numbers: each is taken under the lock."""
from __future__ import annotations

import sqlite3
import threading
import time

import pytest
from conftest import posix_only, wait_until


def give_up(store, job):
    import queuectl
    claimed, _ = store.claims.finish_and_claim(1)
    assert claimed.id == job
    outcome = queuectl.Outcome(claimed, "failed", 1, "exit 1", 1, time.time(), 0.1)
    return lambda queue: queue.claims.finish(1, outcome)


def crash(store, job):
    import queuectl
    claimed, _ = store.claims.finish_and_claim(1)
    outcome = queuectl.Outcome(claimed, "crashed", None, "worker died", None, time.time(), 0.1)
    return lambda queue: queue.workers.release_dead(1, outcome)


def lose(store, job):
    store.claims.finish_and_claim(1)
    return lambda queue: queue.keep.repair()


def cancelled(store, job):
    store.life.cancel([job])
    return lambda queue: queue.life.retry([job])


def never_in_time(store, job):
    store.db.connection.execute("UPDATE job SET expires_at=? WHERE id=?", (time.time() - 1, job))
    return lambda queue: queue.schedules.tick()


WRITERS = {"a failure": give_up, "a crash": crash, "a repaired claim": lose, "a retry": cancelled, "an expiry": never_in_time,
           "an expiry at a claim": lambda store, job: never_in_time(store, job) and (lambda queue: queue.claims.finish_and_claim(1)),
           "a cancel": lambda store, job: lambda queue: queue.life.cancel([job]),
           "a parent that has failed": lambda store, job: store.life.cancel([job]) and (
               lambda queue: queue.enqueue("true", after=[str(job)]))}


@posix_only("what is waited for is seen at the gate")
@pytest.mark.parametrize("name", WRITERS)
def test_a_time_is_taken_under_the_lock(name, store):
    """Another writer holds the lock, and writes down something that happened while this one waited."""
    import queuectl
    act = WRITERS[name](store, store.enqueue("true"))
    other = sqlite3.connect(store.db.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def write():
        with queuectl.Store(store.db.path) as queue:
            act(queue)

    waiting = threading.Event()
    patiently = queuectl.Database.patiently
    try:
        queuectl.Database.patiently = lambda self, action: (waiting.set(), patiently(self, action))[1]
        thread = threading.Thread(target=write)
        thread.start()
        assert waiting.wait(10)
        time.sleep(0.05)
        other.execute("INSERT INTO history(job, state, outcome, finished_at) VALUES(999, 'cancelled', 'cancel', ?)", (time.time(),))
        other.execute("COMMIT")
        thread.join()
    finally:
        queuectl.Database.patiently = patiently
        other.close()
    times = [event["at"] for event in store.look.events()]
    assert len(times) > 1 and times == sorted(times)


def test_events_of_a_busy_queue_go_forward_in_time(queue):
    queue.start(2)
    queue.cli("enqueue", "--file", "-", stdin="".join(
        '{"command": "exit 0", "ttl": 0.2, "delay": %g}\n' % (i % 7 / 10) for i in range(120)))
    for _ in range(5):
        number = queue.enqueue("--delay", "9", "exit 0")
        queue.cli("cancel", number)
    wait_until(lambda: not queue.json("list", "--state", "pending"))
    lines = [line.split('"at": "')[1][:24] for line in queue.out("events").splitlines()]
    assert len(lines) >= 125 and lines == sorted(lines)
