"""Order, time and limits: priorities, keys, queues, slots, dependencies, schedules, batches, explain.

The first half plays them on the Store with a clock of its own, the second with the real program and real workers.
"""
from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from datetime import datetime, timezone

import pytest
from conftest import posix_only, wait_until
from life import (READY, Clock, add_schedule, bury, claim, fail, finish, invariants, open_store, order, outcome, pool, rows)

import queuectl

HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def store(bare_store):
    """The Store on a clock of the test's own; at the end everything in it must agree."""
    yield bare_store
    invariants(bare_store)


def states(store, *ids):
    return [store.look.job(number).state for number in ids]


def at_once(history):
    """The most attempts that ran at the same time, of (start, end, weight)."""
    edges = sorted((moment, change) for start, end, weight in history for moment, change in ((start, weight), (end, -weight)))
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


# ==== on the Store ======================================================================================
# ---- priority and turns ------------------------------------------------------------------------------

def test_higher_priority_goes_first_and_first_in_first_out_within_one(store):
    dice = random.Random(3)
    priorities = [dice.randrange(-3, 4) for _ in range(60)]
    ids = store.enqueue_many([{"command": "x", "priority": p} for p in priorities])
    assert order(store) == [n for _, n in sorted(zip((-p for p in priorities), ids))]


def test_a_job_given_back_keeps_its_place(store):
    first, second, third = store.enqueue_many(["a", "b", "c"])
    finish(store, claim(store), "released", None)
    assert order(store) == [first, second, third]


def test_a_flood_in_one_queue_does_not_starve_another(store, clock):
    store.enqueue_many([{"command": "x", "queue": "flood"}] * 500)
    for _ in range(20):
        clock.pass_by(0.01)
        finish(store, claim(store))
    few = store.enqueue_many([{"command": "x", "queue": "few"}] * 5)
    taken = []
    for _ in range(12):
        clock.pass_by(0.01)
        job = claim(store)
        taken.append(job.id)
        finish(store, job)
    assert set(few) <= set(taken), "five jobs of another queue had not run after twelve claims"


def test_queues_of_one_priority_take_turns(store, clock):
    store.enqueue_many([{"command": "x", "queue": "abc"[n // 30]} for n in range(90)])
    turns = []
    for _ in range(60):
        clock.pass_by(0.01)
        job = claim(store)
        turns.append(job.queue)
        finish(store, job)
    for start in range(0, 60, 3):
        assert set(turns[start:start + 3]) == set("abc"), turns


def test_a_queue_served_while_the_clock_was_ahead_is_not_starved_when_it_is_set_back(store, clock):
    store.enqueue_many([{"command": "x", "queue": "ab"[n % 2]} for n in range(40)])
    for _ in range(10):
        clock.pass_by(1)
        finish(store, claim(store))
    clock.pass_by(-5000)
    store.enqueue_many([{"command": "x", "queue": "new"}] * 40)
    seen = []
    for _ in range(30):
        clock.pass_by(0.01)
        job = claim(store)
        seen.append(job.queue)
        finish(store, job)
    assert {"a", "b"} <= set(seen), "after the clock was set back only the new queue is served: %s" % seen
    clock.pass_by(5000)


def test_workers_take_only_from_their_queues(store):
    ids = store.enqueue_many([{"command": "x", "queue": queue} for queue in ("a", "b", "ab", "default")])
    assert order(store, queues="/a/b/") == ids[:2]
    assert order(store, queues="/ab/") == [ids[2]]
    assert order(store, queues="/c/") == []
    assert order(store) == [ids[3]]


# ---- time ----------------------------------------------------------------------------------------------

def test_a_delayed_job_starts_when_its_time_has_come_and_not_before(store, clock):
    late = store.enqueue("x", delay="10m")
    clock.pass_by(599)
    assert claim(store) is None
    clock.pass_by(2)
    assert claim(store).id == late


@pytest.mark.parametrize("text, moment", [
    ("2026-12-01T09:00:00Z", datetime(2026, 12, 1, 9, tzinfo=timezone.utc).timestamp()),
    ("2026-12-01T09:00:00+02:00", datetime(2026, 12, 1, 7, tzinfo=timezone.utc).timestamp()),
    ("2026-12-01 09:00", datetime(2026, 12, 1, 9).timestamp()),
    ("2026-12-01 09:00:30", datetime(2026, 12, 1, 9, 0, 30).timestamp()),
    ("2026-12-01", datetime(2026, 12, 1).timestamp()),
    ("2020-01-01T00:00:00Z", datetime(2020, 1, 1, tzinfo=timezone.utc).timestamp())])
def test_at_takes_iso_8601_local_unless_it_names_a_zone(store, text, moment):
    assert store.look.job(store.enqueue("x", at=text)).run_at == moment


def test_a_time_in_the_past_and_no_delay_mean_now(store):
    ids = store.enqueue_many([{"command": "x", "at": "2020-01-01T00:00:00Z"}, {"command": "x", "delay": 0}])
    assert order(store) == ids


@pytest.mark.parametrize("options", [{"at": "tomorrow"}, {"at": "25:00"}, {"at": ""}, {"at": 5}, {"delay": "-1"}, {"delay": "soon"},
                                     {"ttl": 0}, {"ttl": "-5s"}, {"delay": "1m", "at": "2026-12-01"}], ids=str)
def test_a_time_that_is_none_is_refused(store, options):
    with pytest.raises(queuectl.UserError):
        store.enqueue("x", **options)
    assert store.queues.counts()["pending"] == 0


def test_a_job_not_started_by_its_ttl_is_cancelled_as_expired(store, clock):
    number = store.enqueue("x", ttl="1h")
    clock.pass_by(HOUR + 1)
    assert claim(store) is None
    job = store.look.job(number)
    assert (job.state, job.error, job.attempt) == ("cancelled", "expired", 0)
    assert store.look.events()[-1]["event"] == "expire"


@pytest.mark.parametrize("block", [{}, {"hold": True}, {"delay": "2h"}, {"after": "p"}, {"key": "k"}, {"queue": "paused"}], ids=str)
def test_a_job_expires_by_itself_whatever_keeps_it_back(store, clock, block):
    store.enqueue("x", name="p", key="k", hold="after" not in block and "key" not in block)
    store.queues.set("paused", paused=1)
    number = store.enqueue("x", ttl="1h", **block)
    assert store.claims.next_time() <= clock() + HOUR
    clock.pass_by(HOUR + 1)
    store.schedules.tick()
    assert (store.look.job(number).state, store.look.job(number).error) == ("cancelled", "expired")


def test_the_ttl_is_for_the_start_a_retry_may_be_later(store, clock):
    number = store.enqueue("x", ttl="1m", backoff_base=100, backoff="constant")
    fail(store, claim(store))
    clock.pass_by(200)
    store.schedules.tick()
    assert claim(store).id == number


def test_an_expired_parent_cancels_its_children_and_says_why(store, clock):
    parent = store.enqueue("x", ttl=5)
    child = store.enqueue("x", after=str(parent))
    clock.pass_by(6)
    store.schedules.tick()
    assert states(store, parent, child) == ["cancelled", "cancelled"]
    assert "job %d" % parent in store.look.job(child).error


# ---- cancel, hold, release -------------------------------------------------------------------------------

def test_a_job_is_cancelled_in_any_state_but_when_it_has_completed(store, clock):
    waits, held, late, failed, dead, done = store.enqueue_many([
        "x", {"command": "x", "hold": True}, {"command": "x", "delay": 60}, {"command": "x", "priority": 9},
        {"command": "x", "priority": 8, "max_retries": 0}, {"command": "x", "priority": 7}])
    fail(store, claim(store))
    bury(store, dead)
    finish(store, claim(store))
    child = store.enqueue("x", after=str(late))
    assert store.life.cancel([child, waits, held, late, failed, dead]) == [(n, "cancelled") for n in (child, waits, held, late, failed, dead)]
    assert store.life.cancel([done]) == [(done, "completed")]
    clock.pass_by(DAY)
    store.schedules.tick()
    assert claim(store) is None, "a cancelled job is never retried by itself"
    assert store.queues.counts()["cancelled"] == 6


def test_a_running_job_that_is_cancelled_is_not_retried(store, clock):
    number = store.enqueue("x", max_retries=9)
    job = claim(store)
    assert not store.claims.cancel_asked(job)
    assert store.life.cancel([number]) == [(number, "asked")]
    assert store.claims.cancel_asked(job)
    assert finish(store, job, "cancelled", None).state == "cancelled"
    clock.pass_by(DAY)
    assert claim(store) is None
    assert store.look.history(number)[-1].outcome == "cancelled"


def test_a_job_that_completed_before_the_term_got_it_is_completed(store):
    number = store.enqueue("x")
    job = claim(store)
    store.life.cancel([number])
    assert finish(store, job).state == "completed"


def test_a_cancelled_job_whose_worker_dies_stays_cancelled(store):
    number = store.enqueue("x")
    job = claim(store)
    store.life.cancel([number])
    assert finish(store, job, "crashed", None, "worker died").state == "cancelled"


def test_a_held_job_waits_for_its_release_and_keeps_its_place(store):
    first, second = store.enqueue_many(["x", "x"])
    assert store.life.hold([first]) == [(first, "held")]
    assert claim(store).id == second
    assert claim(store) is None
    third = store.enqueue("x")
    assert store.life.release([first]) == [(first, "released")]
    assert order(store) == [first, third]


def test_a_job_that_awaits_its_retry_or_a_parent_can_be_held(store, clock):
    failed = store.enqueue("x", backoff_base=1)
    fail(store, claim(store))
    parent = store.enqueue("x")
    child = store.enqueue("x", after=str(parent))
    store.life.hold([failed, child])
    clock.pass_by(60)
    finish(store, claim(store))
    assert claim(store) is None
    store.life.release([failed, child])
    assert set(order(store)) == {failed, child}


def test_what_runs_or_has_ended_cannot_be_held(store):
    running, ended = store.enqueue_many(["x", "x"])
    finish(store, claim(store), "completed")
    claim(store)
    assert store.life.hold([running, ended]) == [(running, "completed"), (ended, "processing")]


# ---- queues: pause, limit, rate ----------------------------------------------------------------------------

def test_a_paused_queue_starts_nothing_and_its_running_jobs_go_on(store):
    first, second = store.enqueue_many([{"command": "x", "queue": "q"}] * 2)
    job = claim(store)
    store.queues.set("q", paused=1)
    assert claim(store) is None
    assert finish(store, job).state == "completed"
    other = store.enqueue("x")
    assert order(store) == [other]
    store.queues.set("q", paused=0)
    assert order(store) == [second]


def test_a_limit_holds_over_all_workers_and_changes_live(store):
    store.enqueue_many([{"command": "x", "queue": "q"}] * 9)
    store.queues.set("q", max_running=2)
    running = [claim(store, worker) for worker in (1, 2)]
    assert claim(store, 3) is None and store.claims.ready(9) == 0
    store.queues.set("q", max_running=3)
    assert store.claims.ready(9) == 1
    running.append(claim(store, 3))
    store.queues.set("q", max_running=1)
    for job in running[:2]:
        finish(store, job)
        assert claim(store, job.worker) is None
    finish(store, running[2])
    assert claim(store, 3) is not None
    store.queues.set("q", max_running=0)
    assert claim(store, 4) is None
    store.queues.set("q", max_running=None)
    assert claim(store, 4) is not None


@pytest.mark.parametrize("kind", ["completed", "failed", "released", "crashed", "cancelled"])
def test_no_end_of_a_job_keeps_the_room_under_the_limit(store, clock, kind):
    store.queues.set("default", max_running=1)
    store.enqueue_many(["x"] * 2)
    finish(store, claim(store), kind, 1)
    clock.pass_by(100)
    assert claim(store) is not None


def test_a_rate_spaces_the_starts_and_changes_live(store, clock):
    store.enqueue_many(["x"] * 50)
    text, every = queuectl.parse_rate("10/m")
    assert every == 6.0
    store.queues.set("default", rate=text, every=every, next_at=0)
    starts = []
    for _ in range(300):
        clock.pass_by(0.1)
        if claim(store, 1) is not None:
            starts.append(clock())
    assert len(starts) == 5  # 30 seconds
    assert all(later - sooner >= 6.0 for sooner, later in zip(starts, starts[1:]))
    assert store.claims.next_time() <= starts[-1] + 6.0
    store.queues.set("default", rate=None, every=None, next_at=0)
    assert claim(store) is not None and claim(store) is not None


def test_a_slow_rate_that_is_made_fast_does_not_wait_for_the_old_time(store, clock):
    store.enqueue_many(["x"] * 3)
    store.queues.set("default", rate="1/h", every=3600.0, next_at=0)
    claim(store)
    clock.pass_by(5)
    assert claim(store) is None
    store.queues.set("default", rate="1/s", every=1.0, next_at=0)
    assert claim(store) is not None


def test_a_rate_survives_a_clock_that_is_set_back(store, clock):
    store.enqueue_many(["x"] * 3)
    store.queues.set("default", rate="1/m", every=60.0, next_at=0)
    claim(store)
    clock.pass_by(-5 * HOUR)
    assert claim(store) is not None, "the queue would wait for five hours"
    clock.pass_by(5 * HOUR)


def test_a_held_up_queue_does_not_stop_another(store):
    store.enqueue_many([{"command": "x", "queue": queue, "priority": 5} for queue in ("paused", "full", "slow") for _ in range(3)])
    store.queues.set("paused", paused=1)
    store.queues.set("full", max_running=0)
    store.queues.set("slow", rate="1/h", every=3600.0)
    assert claim(store).queue == "slow"
    free = store.enqueue("x")
    assert claim(store).id == free


# ---- slots ---------------------------------------------------------------------------------------------

def test_running_jobs_never_take_more_slots_than_the_pool_has(store, clock):
    dice = random.Random(11)
    _, workers = pool(store, 8)
    sizes = [dice.choice((1, 1, 1, 2, 3, 8, 20)) for _ in range(120)]
    store.enqueue_many([{"command": "x", "slots": n} for n in sizes])
    running, begun = {}, []
    while True:
        for worker in workers:
            if worker not in running:
                job = claim(store, worker)
                if job is not None:
                    running[worker] = job
                    begun.append(job.id)
        assert sum(min(job.slots, 8) for job in running.values()) <= 8
        if not running:
            break
        finish(store, running.pop(dice.choice(sorted(running))))
    assert begun == list(range(1, 121)), "big jobs wait for their turn, and nobody passes them"


def test_a_big_job_is_not_starved_by_small_ones(store):
    _, workers = pool(store, 4)
    store.enqueue_many(["x"] * 3)
    running = [claim(store, worker) for worker in workers[:3]]
    big = store.enqueue("x", slots=4)
    store.enqueue_many(["x"] * 50)
    for job in running:
        assert claim(store, workers[3]) is None
        finish(store, job)
    assert claim(store, workers[3]).id == big
    assert claim(store, workers[0]) is None


def test_a_job_bigger_than_its_pool_takes_all_of_it(store):
    _, workers = pool(store, 2)
    big, small = store.enqueue_many([{"command": "x", "slots": 99}, "x"])
    job = claim(store, workers[0])
    assert job.id == big and claim(store, workers[1]) is None
    finish(store, job)
    assert claim(store, workers[1]).id == small


def test_each_pool_has_its_own_slots(store):
    _, first = pool(store, 2)
    _, second = pool(store, 2)
    store.enqueue_many([{"command": "x", "slots": 2}] * 2)
    assert claim(store, first[0]) is not None and claim(store, first[1]) is None
    assert claim(store, second[0]) is not None and claim(store, second[1]) is None


def test_pause_limit_and_rate_of_a_queue_hold_for_the_jobs_of_a_run(store, clock):
    supervisor, workers = pool(store, 4, kind="run")
    store.queues.set("paused", paused=1)
    store.queues.set("narrow", max_running=1)
    store.queues.set("slow", every=60.0, rate="1/m")
    names = ("paused", "narrow", "narrow", "slow", "slow", "default")
    ids = store.enqueue_many([{"command": "x", "queue": name} for name in names], reserved_for=supervisor)
    assert store.claims.ready(9, reserved_for=supervisor) == 1 + 2 + 1, "a queue with a rate counts whole, one with a limit up to it"
    taken = [claim(store, workers[n], reserved_for=supervisor) for n in range(4)]
    assert sorted(job.id for job in taken if job) == [ids[1], ids[3], ids[5]] and store.claims.ready(9, reserved_for=supervisor) == 0
    assert store.claims.next_time(supervisor) == clock() + 60 and store.claims.next_time() is None
    assert store.claims.unfinished(reserved_for=supervisor), "a run waits for its jobs, whatever keeps them back"
    for job in taken:
        job and finish(store, job)
    assert claim(store, workers[0], reserved_for=supervisor).id == ids[2]
    clock.pass_by(61)
    assert claim(store, workers[1], reserved_for=supervisor).id == ids[4]
    assert claim(store, workers[2], reserved_for=supervisor) is None and store.claims.stalled_job(supervisor) is None
    store.queues.set("paused", paused=0)
    assert claim(store, workers[2], reserved_for=supervisor).id == ids[0]


def test_a_run_and_the_workers_share_the_limit_of_a_queue(store):
    supervisor, workers = pool(store, 2, kind="run")
    store.queues.set("default", max_running=2)
    mine = store.enqueue_many(["x"] * 3, reserved_for=supervisor)
    other = store.enqueue("x", priority=5)
    assert claim(store, 1).id == other and claim(store, workers[0], reserved_for=supervisor).id == mine[0]
    assert claim(store, workers[1], reserved_for=supervisor) is None and claim(store, 2) is None
    finish(store, store.look.job(other))
    assert claim(store, workers[1], reserved_for=supervisor).id == mine[1]


def test_a_run_says_which_of_its_jobs_waits_only_while_none_of_them_runs(store):
    supervisor, workers = pool(store, 2, kind="run")
    store.queues.set("shut", max_running=0)
    shut, done = store.enqueue_many([{"command": "x", "queue": "shut"}, "x"], reserved_for=supervisor)
    job = claim(store, workers[0], reserved_for=supervisor)
    assert job.id == done and store.claims.stalled_job(supervisor) is None
    finish(store, job)
    assert store.claims.stalled_job(supervisor).id == shut and store.look.why_waiting(store.look.job(shut)) == [("limit", 0)]


def test_slots_hold_in_a_run_too(store):
    supervisor, workers = pool(store, 2, kind="run")
    big, small = store.enqueue_many([{"command": "x", "slots": 2}, "x"], reserved_for=supervisor)
    job = claim(store, workers[0], reserved_for=supervisor)
    assert job.id == big and claim(store, workers[1], reserved_for=supervisor) is None
    finish(store, job)
    assert claim(store, workers[1], reserved_for=supervisor).id == small


@pytest.fixture
def hints(store):
    """A supervisor's port: returns a function that gives the sum of the hints since it was last asked."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind(("127.0.0.1", 0))
    ear.setblocking(False)
    store.db.connection.execute("INSERT INTO supervisor(pid, port, token, slots, kind, started_at) VALUES(1, ?, 'ear', 9, 'start', 0)",
                      (ear.getsockname()[1],))

    def told():
        got = []
        while True:
            try:
                got.append(int(ear.recv(100).split()[1]))
            except BlockingIOError:
                return got
    yield told
    ear.close()


def test_what_edit_and_schedules_do_not_take_is_refused_from_python_too(store):
    import queuectl
    job = store.enqueue("exit 0")
    with pytest.raises(queuectl.UserError, match="`edit` can't change"):
        store.life.edit([job], {"unique": "u", "for": 60})
    for name in ("name", "id"):
        with pytest.raises(queuectl.UserError, match="every job of a schedule"):
            add_schedule(store, "s", None, 60.0, {"command": "x", name: "y"})
    assert store.schedules.list() == []
    assert store.look.job(job).name is None


def test_an_edit_of_the_time_keeps_the_command_and_the_later_of_two_edits_counts(store):
    job = store.enqueue("exit 0", delay="1h")
    store.life.edit([job], {"at": "2100-01-01T00:00:00Z"})
    assert (store.look.job(job).delay, store.look.job(job).run_at, store.look.job(job).command) == (None, 4102444800.0, "exit 0")
    store.life.edit([job], {"delay": "2h", "command": "exit 1"})
    assert (store.look.job(job).delay, store.look.job(job).command) == (7200.0, "exit 1")



def test_whatever_makes_a_job_ready_wakes_workers_at_once(store, clock, hints):
    """Not a second later, when supervisors look by themselves."""
    def woken(action):
        hints()
        result = action()
        assert sum(hints()) >= 1, "nobody was woken"
        return result
    first = woken(lambda: store.enqueue("x", key="k"))
    second = store.enqueue("x", key="k")
    child = store.enqueue("x", after=str(second), hold=True)
    job = claim(store)
    assert job.id == first
    woken(lambda: finish(store, job))
    job = claim(store)
    store.life.release([child])
    woken(lambda: finish(store, job))
    store.life.hold([child])
    woken(lambda: store.life.release([child]))
    store.life.edit([child], {"delay": 60})
    woken(lambda: store.life.edit([child], {"delay": 0}))
    job = claim(store)
    woken(lambda: finish(store, job, "released", None))
    woken(lambda: (store.life.cancel([child]), store.life.retry([child])))


def test_the_end_of_a_big_job_wakes_those_that_it_kept_waiting(store, hints):
    _, workers = pool(store, 3)
    store.enqueue_many([{"command": "x", "slots": 3}, "x", "x", "x"])
    job = claim(store, workers[0])
    assert claim(store, workers[1]) is None
    hints()
    store.claims.finish_and_claim(workers[0], outcome(job))
    assert sum(hints()) >= 1, "the two others sleep until the supervisor looks"


def test_a_limit_that_is_raised_and_a_queue_that_is_resumed_are_told(store, hints):
    for change in ({"max_running": 5}, {"paused": 0}, {"rate": None, "every": None}):
        hints()
        store.queues.set("default", **change)
        assert hints()


# ---- keys ----------------------------------------------------------------------------------------------

def test_jobs_of_one_key_run_one_at_a_time_in_order_beside_others(store):
    ids = store.enqueue_many([{"command": "x", "key": "ab"[n % 2]} for n in range(10)] + ["x", "x"])
    running = {worker: claim(store, worker) for worker in range(1, 5)}
    assert [job.id for job in running.values()] == [ids[0], ids[1], ids[10], ids[11]]
    assert claim(store, 5) is None
    seen = {"a": [ids[0]], "b": [ids[1]]}
    del running[3], running[4]
    dice = random.Random(2)
    while running:
        worker = dice.choice(sorted(running))
        job = running.pop(worker)
        finish(store, job)
        follower = claim(store, worker)
        if follower is not None:
            assert follower.key == job.key
            running[worker] = follower
            seen[follower.key].append(follower.id)
    assert seen == {"a": ids[0:10:2], "b": ids[1:10:2]}


def test_higher_priority_goes_first_among_those_that_wait_for_a_key(store):
    first, low, high = store.enqueue_many([{"command": "x", "key": "k", "priority": p} for p in (0, 0, 5)])
    assert order(store) == [first, high, low]


def test_a_failed_job_keeps_its_key_until_its_retries_are_over(store, clock):
    first, second = store.enqueue_many([{"command": "x", "key": "k", "max_retries": 1, "backoff_base": 1}] * 2)
    fail(store, claim(store))
    assert claim(store) is None, "the second would overtake the first"
    clock.pass_by(60)
    job = claim(store)
    assert job.id == first
    fail(store, job)
    assert claim(store).id == second


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
def test_the_end_of_a_job_hands_its_key_on(store, kind):
    first, second = store.enqueue_many([{"command": "x", "key": "k", "max_retries": 0}] * 2)
    finish(store, claim(store), kind, 1)
    assert claim(store).id == second


def test_a_key_is_handed_on_by_cancel_expiry_and_by_what_is_put_off(store, clock):
    ids = store.enqueue_many([{"command": "x", "key": "k"}, {"command": "x", "key": "k", "ttl": 5}] + [{"command": "x", "key": "k"}] * 3)
    store.life.cancel([ids[0]])
    clock.pass_by(6)
    store.schedules.tick()
    store.life.hold([ids[2]])
    store.life.edit([ids[3]], {"delay": 60})
    assert claim(store).id == ids[4]


def test_a_key_holds_across_queues(store):
    first, second = store.enqueue_many([{"command": "x", "key": "k", "queue": queue} for queue in ("a", "b")])
    job = claim(store)
    assert claim(store) is None
    finish(store, job)
    assert claim(store).id == second


def test_a_delayed_job_takes_its_key_only_when_it_is_due(store, clock):
    late, soon = store.enqueue_many([{"command": "x", "key": "k", "delay": 60}, {"command": "x", "key": "k"}])
    job = claim(store)
    assert job.id == soon
    clock.pass_by(61)
    assert claim(store) is None
    finish(store, job)
    assert claim(store).id == late


def test_a_crashed_or_released_job_keeps_its_turn_under_its_key(store):
    first, second = store.enqueue_many([{"command": "x", "key": "k"}] * 2)
    for kind in ("released", "crashed"):
        job = claim(store)
        assert job.id == first
        finish(store, job, kind, None)
    assert claim(store).id == first


# ---- unique ---------------------------------------------------------------------------------------------

def test_a_unique_job_is_not_doubled_while_it_waits_runs_or_awaits_its_retry(store, clock):
    number = store.enqueue("x", unique="u", backoff_base=1)
    duplicate = [store.enqueue("x", unique="u")]
    job = claim(store)
    duplicate.append(store.enqueue("y", unique="u", priority=9))
    fail(store, job)
    duplicate.append(store.enqueue("x", unique="u"))
    store.life.hold([number])
    duplicate.append(store.enqueue("x", unique="u", delay=60))
    store.life.release([number])
    assert set(duplicate) == {number}
    clock.pass_by(60)
    finish(store, claim(store))
    assert store.enqueue("x", unique="u") != number


@pytest.mark.parametrize("end", ["completed", "dead", "cancelled"])
def test_a_unique_job_may_come_again_after_its_end_and_the_time_asked_for(store, clock, end):
    number = store.enqueue("x", unique="u", max_retries=0)
    if end == "cancelled":
        store.life.cancel([number])
    else:
        finish(store, claim(store), "completed" if end == "completed" else "failed", 1)
    clock.pass_by(HOUR - 1)
    assert store.enqueue("x", unique="u", **{"for": "1h"}) == number
    clock.pass_by(2)
    again = store.enqueue("x", unique="u", **{"for": "1h"})
    assert again != number
    assert store.enqueue("x", unique="u", **{"for": "1h"}) == again


def test_unique_keys_hold_within_a_file_and_only_new_jobs_count_in_its_batch(store):
    old = store.enqueue("x", unique="c")
    plan = queuectl.Plan([{"command": "x", "unique": key} for key in "aabc"])
    ids = [job for some in store.enqueue_plan(plan, "f").ids for job in some]
    assert ids[0] == ids[1] != ids[2] and ids[3] == old and plan.duplicates == [("", ids[0]), ("", old)]
    assert [(b.total, b.unfinished) for b in store.queues.batches()] == [(2, 2)]


def test_a_retry_makes_no_second_unfinished_job_of_a_unique_key(store):
    number = store.enqueue("x", unique="u", max_retries=0)
    bury(store, number)
    newer = store.enqueue("x", unique="u")
    assert newer != number
    [(_, result)] = store.life.retry([number])
    assert result == queuectl.Refused("dead", "unique", newer)
    assert order(store) == [newer]
    assert store.life.retry([number, newer])[0] == (number, "pending")
    assert states(store, number, newer) == ["pending", "completed"]


def test_an_old_job_that_was_retried_is_seen_behind_hundreds_of_newer_ones_with_its_unique_key(store):
    first = store.enqueue("x", unique="u")
    finish(store, claim(store))
    for _ in range(150):
        assert store.enqueue("x", unique="u") != first
        finish(store, claim(store))
    assert store.life.retry([first]) == [(first, "pending")]
    assert store.enqueue("x", unique="u") == first
    job = claim(store)
    assert job.id == first and store.enqueue("x", unique="u") == first
    fail(store, job)
    assert store.enqueue("x", unique="u") == first


@pytest.mark.parametrize("end", ["completed", "dead", "cancelled"])
def test_of_two_finished_jobs_with_a_unique_key_one_call_retries_one(store, end):
    ids = []
    for _ in range(2):
        ids.append(store.enqueue("x", unique="u", max_retries=0))
        if end == "cancelled":
            store.life.cancel([ids[-1]])
        else:
            finish(store, claim(store), "completed" if end == "completed" else "failed", 1)
    assert [result for _, result in store.life.retry(ids)] == ["pending", queuectl.Refused(end, "unique", ids[0])]
    assert states(store, *ids) == ["pending", end]


def test_a_child_comes_back_with_its_parent_but_not_beside_an_unfinished_job_of_its_unique_key(store):
    parent = store.enqueue("p", max_retries=0)
    child = store.enqueue("c", after=str(parent), unique="u")
    grandchild = store.enqueue("g", after=str(child))
    bury(store, parent)
    newer = store.enqueue("c", unique="u")
    store.life.retry([parent])
    assert states(store, parent, child, grandchild, newer) == ["pending", "cancelled", "cancelled", "pending"]
    assert str(newer) in store.look.job(child).error
    assert sorted(order(store)) == [parent, newer]
    assert store.life.retry([child]) == [(child, "pending")]
    assert states(store, grandchild) == ["pending"]


def test_a_clock_that_was_set_back_does_not_make_an_ended_job_a_duplicate(store, clock):
    number = store.enqueue("x", unique="u")
    finish(store, claim(store))
    clock.pass_by(-HOUR)
    assert store.enqueue("x", unique="u") != number


# ---- dependencies ---------------------------------------------------------------------------------------

def test_a_job_starts_after_all_its_parents_have_completed(store):
    parents = store.enqueue_many(["x"] * 3)
    child = store.enqueue("x", after=[str(n) for n in parents], priority=9)
    assert order(store) == parents + [child]


@pytest.mark.parametrize("end", ["completed", "dead", "cancelled", "expired"])
def test_after_any_starts_however_the_parent_ended(store, clock, end):
    parent = store.enqueue("x", max_retries=0, ttl=5)
    alarm = store.enqueue("alarm", after_any=str(parent))
    assert store.look.job(alarm).gate != READY
    if end == "cancelled":
        store.life.cancel([parent])
    elif end == "expired":
        clock.pass_by(6)
        store.schedules.tick()
    else:
        finish(store, claim(store), "completed" if end == "completed" else "failed", 1)
    assert claim(store).id == alarm


def test_a_failing_parent_is_waited_for_until_its_retries_are_over(store, clock):
    parent = store.enqueue("x", max_retries=1, backoff_base=1)
    child, alarm = store.enqueue_many([{"command": "x", "after": str(parent)}, {"command": "x", "after_any": str(parent)}])
    fail(store, claim(store))
    assert states(store, child, alarm) == ["pending", "pending"] and claim(store) is None
    clock.pass_by(60)
    finish(store, claim(store))
    assert order(store) == [child, alarm]


@pytest.mark.parametrize("end, word", [("dead", "died"), ("cancelled", "was cancelled")])
def test_a_parent_that_dies_or_is_cancelled_cancels_its_line_of_children_saying_why(store, end, word):
    parent = store.enqueue("x", max_retries=0)
    child = store.enqueue("x", after=str(parent))
    grandchild = store.enqueue("x", after=str(child))
    if end == "dead":
        bury(store, parent)
    else:
        store.life.cancel([parent])
    assert states(store, parent, child, grandchild) == [end, "cancelled", "cancelled"]
    assert "job %d" % parent in store.look.job(child).error and word in store.look.job(child).error
    assert "job %d" % child in store.look.job(grandchild).error
    assert claim(store) is None


def test_retrying_the_parent_brings_its_line_of_children_back(store):
    parent = store.enqueue("x", max_retries=0)
    child = store.enqueue("x", after=str(parent))
    grandchild = store.enqueue("x", after=str(child))
    bystander = store.enqueue("x", after=str(parent))
    store.life.cancel([bystander])  # by a user's will, before: it stays
    bury(store, parent)
    assert store.life.retry([parent]) == [(parent, "pending")]
    assert states(store, parent, child, grandchild, bystander) == ["pending", "pending", "pending", "cancelled"]
    assert store.look.job(child).error is None
    assert order(store) == [parent, child, grandchild]


def test_a_child_of_two_dead_parents_comes_back_when_both_were_retried(store):
    first, second = store.enqueue_many([{"command": "x", "max_retries": 0}] * 2)
    child = store.enqueue("x", after=[str(first), str(second)])
    bury(store, first)
    bury(store, second)
    store.life.retry([first])
    assert store.look.job(child).state == "cancelled", "it would wait for ever for the other, which is dead"
    assert "job %d" % second in store.look.job(child).error
    finish(store, claim(store))
    store.life.retry([second])
    assert order(store) == [second, child]


def test_a_child_cannot_come_back_before_its_dead_parent(store):
    parent = store.enqueue("x", max_retries=0)
    child = store.enqueue("x", after=str(parent))
    bury(store, parent)
    store.life.retry([child])
    assert store.look.job(child).state == "cancelled"
    store.life.retry([parent])
    assert states(store, parent, child) == ["pending", "pending"]


def test_a_dead_letter_queue_that_is_retried_whole_comes_back_whole(store):
    parents = store.enqueue_many([{"command": "x", "max_retries": 0}] * 3)
    children = store.enqueue_many([{"command": "x", "after": [str(n) for n in parents]}] * 3)
    for parent in parents:
        bury(store, parent)
    store.life.retry(parents)
    assert states(store, *children) == ["pending"] * 3
    assert order(store) == parents + children


def test_a_parent_that_has_ended_already_counts(store):
    done, dead, cancelled = store.enqueue_many([{"command": "x", "max_retries": 0}] * 3)
    finish(store, claim(store))
    bury(store, dead)
    store.life.cancel([cancelled])
    fine = store.enqueue("x", after=str(done))
    alarm = store.enqueue("x", after_any=[str(dead), str(cancelled)])
    late, gone = store.enqueue("x", after=str(dead)), store.enqueue("x", after=str(cancelled))
    assert states(store, late, gone) == ["cancelled"] * 2
    assert order(store) == [fine, alarm]
    store.life.retry([dead, cancelled])
    assert order(store) == [dead, cancelled, late, gone]


def test_removing_a_parent_does_not_release_its_children(store):
    parent = store.enqueue("x", max_retries=0)
    child = store.enqueue("x", after=str(parent))
    store.keep.purge([parent])
    assert store.look.job(parent).state == "pending", "only what has ended can be removed"
    bury(store, parent)
    store.keep.purge([parent])
    assert store.look.job(child).state == "cancelled" and claim(store) is None


def test_of_after_and_after_any_of_one_job_the_stricter_holds(store):
    for options in ({"after": "p", "after_any": "p"}, {"after_any": "p", "after": "p"}):
        parent = store.enqueue("x", name="p", max_retries=0)
        child = store.enqueue("x", **options)
        bury(store, parent)
        assert store.look.job(child).state == "cancelled"
        store.keep.purge([parent])


def test_lines_of_a_file_refer_to_each_other_in_any_order(store):
    dice = random.Random(5)
    lines = [{"command": "x", "name": "n%d" % n, "after": ["n%d" % p for p in dice.sample(range(n), min(n, 2))] or None} for n in range(40)]
    shuffled = list(enumerate(lines, 1))
    dice.shuffle(shuffled)
    store.enqueue_many(shuffled, label="f")
    ended = []
    for number in order(store):
        job = store.look.job(number)
        parents = next(line["after"] for line in lines if line["name"] == job.name) or ()
        assert set(parents) <= set(ended), job.name
        ended.append(job.name)
    assert len(ended) == 40


@pytest.mark.parametrize("lines, why", [
    ([{"id": "a", "after": "a"}], "itself"),
    ([{"id": "a", "after": "b"}, {"id": "b", "after": "a"}], "itself"),
    ([{"id": "a", "after": "c"}, {"id": "b", "after_any": "a"}, {"id": "c", "after": "b"}, {"id": "d"}], "itself"),
    ([{"id": "a"}, {"id": "b", "after": "nobody"}], "nobody"),
    ([{"id": "a"}, {"id": "b", "after": 99}], "99"),
    ([{"id": "a"}, {"id": "b", "after_batch": 99}], "99"),
    ([{"id": "a"}, {"id": "b", "after_batch": 1}], "batch"),
    ([{"id": "a"}, {"id": "b", "after": []}], "after"),
    ([{"id": "a"}, {"id": "a"}], "named")], ids=str)
def test_a_cycle_or_an_unknown_job_refuses_the_whole_file(store, lines, why):
    with pytest.raises(queuectl.UserError, match=why):
        store.enqueue_many([(n, dict(line, command="x")) for n, line in enumerate(lines, 1)], label="f")
    assert sum(store.queues.counts().values()) == 0 and store.queues.batches() == []
    assert rows(store, "SELECT count(*) FROM dep") == [(0,)]


def parent_with_log(store):
    """The id of a job with more children than one step tells of its end, and the path of its log."""
    parent = store.enqueue("x", max_retries=0)
    store.enqueue_many([{"command": "x", "after": str(parent)}] * (queuectl.FOLLOWUPS + 50))
    log = store.db.files.log(parent, 1)
    os.makedirs(os.path.dirname(log))
    open(log, "w").close()
    return parent, log


def test_tidy_leaves_a_job_and_its_log_until_all_its_children_know_of_its_end(bare_store, clock):
    store = bare_store
    parent, log = parent_with_log(store)
    store.settings.set("keep_finished", "1")
    finish(store, claim(store))
    clock.pass_by(10)
    after, pause = store.keep.tidy(0)
    assert pause and store.look.find(parent) and os.path.exists(log)
    store.followups.catch_up()
    store.keep.tidy(after)
    assert store.look.find(parent) is None and not os.path.exists(log)


def test_a_purge_waits_until_the_children_of_a_job_know_of_its_end(store):
    parent, log = parent_with_log(store)
    told = store.followups.catch_up

    def bury_later():  # as another process may, right after the purge has told all children so far
        told()
        store.followups.catch_up = told
        bury(store, parent)

    store.followups.catch_up = bury_later
    assert store.keep.purge([parent, 9999]) == [(parent, "removed")]
    assert store.look.find(parent) is None and not os.path.exists(log)
    assert store.queues.counts()["cancelled"] == queuectl.FOLLOWUPS + 50


@pytest.mark.slow
def test_a_chain_of_5000_goes_in_backwards_dies_comes_back_and_ends(store):
    count = 5000
    lines = [{"command": "x", "name": "n%d" % n, "after": "n%d" % (n - 1) if n else None, "max_retries": 0} for n in range(count)]
    ids = store.enqueue_many(lines[::-1], label="chain")
    first, last = ids[-1], ids[0]
    bury(store, first)
    store.followups.catch_up()
    assert store.queues.counts()["cancelled"] == count - 1
    assert store.queues.batches()[0].unfinished == 0
    store.life.retry([first])
    store.followups.catch_up()
    assert store.queues.counts()["pending"] == count and store.queues.batches()[0].unfinished == count
    for number in ids[:-41:-1]:
        job = claim(store)
        assert job.id == number
        finish(store, job)
    store.life.cancel([ids[-41]])
    store.followups.catch_up()
    assert states(store, last) == ["cancelled"] and store.queues.counts()["completed"] == 40


@pytest.mark.broad
def test_a_chain_of_5000_that_would_be_a_ring_is_refused(store):
    lines = [{"command": "x", "name": "n%d" % n, "after": "n%d" % ((n - 1) % 5000)} for n in range(5000)]
    with pytest.raises(queuectl.UserError, match="itself"):
        store.enqueue_many(lines)
    assert store.queues.counts()["pending"] == 0


# ---- exit codes and backoff -------------------------------------------------------------------------------

@pytest.mark.parametrize("options, code, state", [
    ({}, 1, "failed"), ({}, 75, "failed"), ({}, 2, "failed"),
    ({"retry_on": "1,75,128-159"}, 1, "failed"), ({"retry_on": "1,75,128-159"}, 75, "failed"),
    ({"retry_on": "1,75,128-159"}, 137, "failed"), ({"retry_on": "1,75,128-159"}, 159, "failed"),
    ({"retry_on": "1,75,128-159"}, 3, "dead"), ({"retry_on": "1,75,128-159"}, 127, "dead"), ({"retry_on": "1,75,128-159"}, 160, "dead"),
    ({"dead_on": "2"}, 2, "dead"), ({"dead_on": "2"}, 3, "failed"), ({"dead_on": "2,10-20"}, 15, "dead"),
    ({"dead_on": "2", "retry_on": "1-3"}, 2, "dead"), ({"dead_on": "2", "retry_on": "1-3"}, 3, "failed"),
    ({"snooze_on": "75"}, 75, "pending"), ({"snooze_on": "75"}, 74, "failed"),
    ({"snooze_on": "75", "dead_on": "75"}, 76, "failed")], ids=str)
def test_the_exit_code_decides_what_follows(store, options, code, state):
    number = store.enqueue("x", **options)
    fail(store, claim(store), code)
    assert store.look.job(number).state == state


@posix_only("signals")
@pytest.mark.parametrize("options, state", [
    ({"retry_on": "128-159"}, "failed"), ({"dead_on": "137"}, "dead"), ({"dead_on": "143"}, "failed")], ids=str)
def test_a_signal_counts_as_128_and_its_number_as_in_a_shell(queue, options, state):
    words = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]
    number = queue.enqueue("--backoff-base", "1000", *words, "kill -9 $$")
    queue.cli("worker", "start", "--foreground", "--max-jobs", "1")
    assert queue.job(number).state == state


@pytest.mark.parametrize("codes", ["", "x", "1-", "-1", "5-3", "1,,2", "1 2", "1.5"])
def test_exit_codes_that_are_none_are_refused(store, codes):
    for option in ("retry_on", "dead_on", "snooze_on"):
        with pytest.raises(queuectl.UserError):
            store.enqueue("x", **{option: codes})


def test_a_snooze_is_tried_again_later_and_not_charged(store, clock):
    number = store.enqueue("x", snooze_on="75", snooze="30s", max_retries=0)
    for count in (1, 2, 3):
        job = claim(store)
        assert (job.attempt, job.attempts) == (count, 1)
        fail(store, job, 75)
        job = store.look.job(number)
        assert (job.state, job.attempts, job.snoozes, job.run_at) == ("pending", 0, count, clock() + 30)
        clock.pass_by(29)
        assert claim(store) is None
        clock.pass_by(2)
    assert finish(store, claim(store)).state == "completed"
    assert [a.outcome for a in store.look.history(number)] == ["snoozed"] * 3 + ["completed"]


def test_snoozes_are_bounded_by_max_snoozes_and_30_seconds_by_default(store, clock):
    store.settings.set("max_snoozes", 2)
    number = store.enqueue("x", snooze_on="75", max_retries=1, backoff_base=0)
    for state in ("pending", "pending", "failed", "dead"):
        fail(store, claim(store), 75)
        assert store.look.job(number).state == state
        clock.pass_by(31)
    assert [a.outcome for a in store.look.history(number)] == ["snoozed", "snoozed", "failed", "failed"]


@pytest.mark.parametrize("kind, waits", [
    ("exponential", [3, 9, 27, 81, 100]), ("linear", [3, 6, 9, 12, 15]), ("constant", [3] * 5), (None, [3, 9, 27, 81, 100])])
def test_the_kinds_of_backoff(store, clock, kind, waits):
    number = store.enqueue("x", max_retries=9, backoff_base=3, backoff_max=100, **({"backoff": kind} if kind else {}))
    for seconds in waits:
        fail(store, claim(store))
        assert seconds <= store.look.job(number).run_at - clock() <= seconds * 1.1
        clock.now = store.look.job(number).run_at
    with pytest.raises(queuectl.UserError, match="exponential"):
        store.enqueue("x", backoff="quadratic")


# ---- schedules --------------------------------------------------------------------------------------------

def fired(store, name):
    return rows(store, "SELECT count(*) FROM job WHERE schedule=?", name)[0][0]


def test_a_schedule_fires_at_its_times_each_once_whoever_looks(store, clock, tmp_path):
    others = [open_store(tmp_path, clock) for _ in range(3)]
    add_schedule(store, "s", None, 90.0, {"command": "x"})
    start = clock()
    times = []
    while clock() < start + HOUR:
        clock.pass_by(7)
        for supervisor in [store] + others:
            before = fired(store, "s")
            supervisor.schedules.tick()
            times += [clock()] * (fired(store, "s") - before)
    assert len(times) == 40
    for n, moment in enumerate(times, 1):
        assert 0 <= moment - (start + 90 * n) < 7
    for other in others:
        other.close()


@pytest.mark.parametrize("spec, every", [("*/5 * * * *", None), (None, 300.0)])
@pytest.mark.parametrize("misfire, expected", [("once", 1), ("skip", 0)])
def test_times_missed_while_nothing_ran_fire_once_or_not_at_all(store, clock, spec, every, misfire, expected):
    add_schedule(store, "s", spec, every, {"command": "x"}, "UTC", misfire)
    clock.pass_by(7 * HOUR + 123)
    store.schedules.tick()
    store.schedules.tick()
    assert fired(store, "s") == expected
    [schedule] = store.schedules.list()
    assert clock() < schedule.next_at <= clock() + 300
    if every:  # it keeps its beat
        assert (schedule.next_at - 1700000000) % 300 == 0
    clock.now = schedule.next_at + 1
    store.schedules.tick()
    assert fired(store, "s") == expected + 1


def test_a_moments_delay_is_no_misfire(store, clock):
    add_schedule(store, "s", "* * * * *", None, {"command": "x"}, "UTC", "skip")
    clock.now = store.schedules.list()[0].next_at + 5
    store.schedules.tick()
    assert fired(store, "s") == 1


def test_no_overlap_skips_while_the_last_one_waits_runs_or_awaits_its_retry(store, clock):
    add_schedule(store, "s", None, 60.0, {"command": "x", "backoff_base": 500, "backoff": "constant"}, overlap="skip")

    def next_time():
        clock.pass_by(61)
        store.schedules.tick()
        return fired(store, "s")
    assert [next_time(), next_time()] == [1, 1]
    job = claim(store)
    assert next_time() == 1
    fail(store, job)
    assert next_time() == 1
    store.life.cancel([job.id])
    assert next_time() == 2
    assert store.schedules.list()[0].last_job == 2


def test_a_paused_schedule_does_not_fire_and_resuming_does_not_make_up_for_it(store, clock):
    add_schedule(store, "s", None, 60.0, {"command": "x"})
    store.schedules.pause("s")
    assert store.claims.next_time() is None
    clock.pass_by(DAY)
    store.schedules.tick()
    assert fired(store, "s") == 0
    store.schedules.resume("s")
    store.schedules.tick()
    assert fired(store, "s") == 0
    clock.pass_by(61)
    store.schedules.tick()
    assert fired(store, "s") == 1


def test_a_schedule_that_is_run_by_hand_keeps_its_times(store, clock):
    add_schedule(store, "s", None, 60.0, {"command": "echo hi", "priority": 4, "queue": "q"})
    before = store.schedules.list()[0].next_at
    job = store.look.job(store.schedules.run("s"))
    assert (job.command, job.priority, job.queue, job.schedule) == ("echo hi", 4, "q", "s")
    assert store.schedules.list()[0].next_at == before


def test_a_schedule_that_is_removed_leaves_its_jobs_and_its_name(store, clock):
    add_schedule(store, "s", None, 60.0, {"command": "x"})
    with pytest.raises(queuectl.UserError, match="already"):
        add_schedule(store, "s", None, 60.0, {"command": "x"})
    store.schedules.run("s")
    store.schedules.remove("s")
    assert store.queues.counts()["pending"] == 1 and store.schedules.list() == []
    add_schedule(store, "s", None, 60.0, {"command": "x"})
    for action in (store.schedules.remove, store.schedules.run, store.schedules.pause, store.schedules.resume):
        with pytest.raises(queuectl.UserError, match="nobody"):
            action("nobody")


def test_a_schedule_keeps_to_its_time_zone_through_the_change_of_the_clocks(tmp_path):
    pytest.importorskip("zoneinfo")
    clock = Clock(datetime(2026, 3, 27, 12, tzinfo=timezone.utc).timestamp())
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", "30 8 * * *", None, {"command": "x"}, "Europe/Berlin")
    seen = []
    for _ in range(4):
        clock.now = store.schedules.list()[0].next_at
        store.schedules.tick()
        seen.append(datetime.fromtimestamp(clock(), timezone.utc).strftime("%d %H:%M"))
    assert seen == ["28 07:30", "29 06:30", "30 06:30", "31 06:30"]
    assert fired(store, "s") == 4
    store.close()


def test_a_schedule_with_a_unique_key_or_a_key_obeys_it(store, clock):
    add_schedule(store, "u", None, 60.0, {"command": "x", "unique": "u"})
    add_schedule(store, "k", None, 60.0, {"command": "x", "key": "k"})
    for _ in range(3):
        clock.pass_by(60)
        store.schedules.tick()
    assert (fired(store, "u"), fired(store, "k")) == (1, 3)
    assert claim(store) and claim(store) and claim(store) is None


def test_a_schedule_that_can_no_longer_enqueue_harms_nothing_else(store, clock):
    """Its parent was pruned after a week, say.  A supervisor that fell over it would fall again at each start."""
    parent = store.enqueue("x")
    add_schedule(store, "broken", None, 60.0, {"command": "x", "after": str(parent)})
    add_schedule(store, "fine", None, 60.0, {"command": "x"})
    late = store.enqueue("x", delay=30, ttl=50)
    finish(store, claim(store))
    store.keep.purge([parent])
    for _ in range(3):
        clock.pass_by(61)
        store.schedules.tick()
    assert (fired(store, "broken"), fired(store, "fine")) == (0, 3)
    assert store.look.job(late).state == "cancelled"
    assert store.claims.next_time() > clock()


# ---- batches ------------------------------------------------------------------------------------------------

def test_after_batch_starts_when_all_of_it_have_ended_however(store):
    ids = store.enqueue_many([{"command": "x", "max_retries": 0}] * 3, label="f")
    after = store.enqueue("x", after_batch="1", priority=9)
    finish(store, claim(store))
    bury(store, ids[1])
    assert claim(store).id == ids[2]
    assert claim(store) is None
    store.life.cancel([ids[2]])
    store.claims.finish(1, outcome(store.look.job(ids[2]), "cancelled", None))
    assert claim(store).id == after


def test_after_a_batch_that_has_ended_is_now_and_of_none_is_refused(store):
    store.enqueue_many(["x"], label="f")
    finish(store, claim(store))
    after = store.enqueue("x", after_batch="1")
    assert claim(store).id == after
    for ref in ("2", "x", "-1", "0", "9" * 30):
        with pytest.raises(queuectl.UserError, match="batch"):
            store.enqueue("x", after_batch=ref)


def test_a_retry_opens_its_batch_again(store):
    ids = store.enqueue_many([{"command": "x", "max_retries": 0}, {"command": "x"}], label="f")
    bury(store, ids[0])
    finish(store, claim(store))
    assert store.queues.batch(1).unfinished == 0
    store.life.retry([ids[0]])
    assert store.queues.batch(1).unfinished == 1
    waits = store.enqueue("x", after_batch="1")
    assert order(store) == [ids[0], waits]


def test_explain_bears_a_key_that_was_given_back_meanwhile(store):
    first, second = store.enqueue_many([{"command": "x", "key": "k"}] * 2)
    read = store.look.job(second)
    finish(store, claim(store))
    finish(store, claim(store))
    assert isinstance(store.look.why_waiting(read), list)


# ==== with the real program ====================================================================================
# ---- cancel ---------------------------------------------------------------------------------------------------

NOTES_TERM = """
import signal, sys, time
def on_term(*_):
    open(sys.argv[1], "w").write(repr(time.time()))
    sys.exit(1)
signal.signal(signal.SIGTERM, on_term)
open(sys.argv[1] + ".ready", "w").close()
signal.pause()
"""


@posix_only("signals")
def test_a_running_job_gets_the_term_when_it_is_cancelled_and_not_when_someone_looks(queue):
    queue.start_blind()
    stamp = queue.dir / "term"
    number = queue.enqueue(*queue.script(NOTES_TERM, stamp))
    wait_until((queue.dir / "term.ready").exists)
    with queuectl.Store(str(queue.db)) as store:
        assert store.life.cancel([number]) == [(number, "asked")]
    queue.wait_for(number, "cancelled")
    assert stamp.exists()


STUBBORN = "trap '' TERM; (trap '' TERM; exec sleep 613) & (trap '' TERM; setsid sleep 614) & echo here; sleep 615; sleep 616"


@posix_only("signals and process groups")
def test_a_cancelled_job_whose_children_ignore_term_is_killed_whole(queue):
    queue.cli("config", "set", "kill_grace", "300ms")
    queue.start()
    number = queue.enqueue(STUBBORN.replace("(trap '' TERM; setsid sleep 614) & ", ""))
    wait_until(lambda: sum("sleep 61" in line for line in queue.processes().values()) >= 2)
    assert queue.out("cancel", number) == "✔ Cancelled 1 job"
    job = queue.wait_for(number, "cancelled")
    wait_until(lambda: not any("sleep 61" in line for line in queue.processes().values()), message="the whole group has ended")
    assert job.error == "cancelled" and job.finished_at - job.started_at < 10
    assert [a["outcome"] for a in queue.json("show", number)["history"]] == ["cancelled"]
    other = queue.enqueue("exit 0")
    queue.wait_for(other, "completed")


def test_the_job_of_a_run_is_cancelled_from_another_terminal(queue):
    run = queue.beside("run", *queue.sleeper(617))
    queue.wait_for(1, "processing")
    queue.cli("cancel", 1)
    assert run.ends() == 1
    assert "cancelled" in run.text()
    assert queue.job(1).state == "cancelled"


def test_cancel_tells_what_became_of_each(queue):
    done, waits, held = queue.enqueue("exit 0"), queue.enqueue("--delay", "1h", "exit 0"), queue.enqueue("--hold", "exit 0")
    queue.cli("worker", "start", "--foreground", "--drain", "--max-jobs", "1")
    result = queue.cli("cancel", done, waits, held, check=False)
    assert (result.returncode, result.stdout) == (1, "✔ Cancelled 2 jobs\n")
    assert result.stderr == "job %d was not cancelled: it is completed\n" % done
    assert queue.cli("cancel", 99, check=False).returncode == 2
    assert queue.cli("cancel", check=False).returncode == 2, "all needs --all"
    queue.enqueue("exit 0")
    assert queue.out("cancel", "--all") == "✔ Cancelled 1 job"


# ---- hold, queues, slots, keys, live ----------------------------------------------------------------------------

def spans(queue, where="1"):
    """(start, end, slots) of every attempt of the jobs chosen."""
    return queue.sql("SELECT history.started_at, history.finished_at, job.slots FROM history JOIN job ON job.id=history.job "
                     "WHERE history.attempt IS NOT NULL AND " + where)


def all_ended(queue, count):
    wait_until(lambda: queue.sql("SELECT count(*) FROM job WHERE state='completed'") == [(count,)], 30, "%d jobs completed" % count)


def test_hold_and_release_with_a_worker_at_work(queue):
    queue.start()
    number = queue.enqueue("--hold", "exit 0")
    other = queue.enqueue("exit 0")
    queue.wait_for(other, "completed")
    assert queue.job(number).state == "pending"
    assert queue.out("release", number) == "✔ Released 1 job"
    queue.wait_for(number, "completed", timeout=5)
    assert queue.cli("hold", number, check=False).returncode == 1


def test_a_queue_is_paused_and_resumed_while_workers_run(queue):
    queue.start(2)
    gate = queue.dir / "gate"
    number = queue.enqueue(*queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)", gate))
    queue.wait_for(number, "processing")
    assert "running jobs go on" in queue.out("queue", "pause", "default")
    second = queue.enqueue("exit 0")
    beside = queue.enqueue("--queue", "beside", "exit 0")
    queue.wait_for(beside, "completed")
    gate.touch()
    queue.wait_for(number, "completed")
    assert queue.job(second).state == "pending"
    assert [row["paused"] for row in queue.json("queue", "list")] == [False, True]
    queue.cli("queue", "resume", "--all")
    queue.wait_for(second, "completed", timeout=5)


@pytest.mark.broad
def test_a_limit_holds_over_two_supervisors_and_is_lifted_live(queue):
    queue.cli("queue", "limit", "default", 1)
    queue.start(2)
    queue.start(2)
    (queue.dir / "jobs").write_text((json.dumps({"command": queue.sleeper(0.05)}) + "\n") * 12)
    queue.cli("enqueue", "--file", queue.dir / "jobs")
    all_ended(queue, 12)
    assert at_once(spans(queue)) == 1
    queue.cli("queue", "limit", "default", "none")
    meet = queue.script("import glob, os, sys, time\nopen('meet%s' % os.environ['QUEUECTL_JOB_ID'], 'w').close()\n"
                        "while len(glob.glob('meet*')) < 3: time.sleep(0.01)")
    for _ in range(3):  # they end only when all three run at once
        queue.enqueue(*meet)
    all_ended(queue, 15)


def test_a_rate_spaces_the_starts_of_all_workers(queue):
    queue.cli("queue", "rate", "default", "10/s")
    queue.start(3)
    (queue.dir / "jobs").write_text("exit 0\n" * 8)
    queue.cli("enqueue", "--file", queue.dir / "jobs")
    all_ended(queue, 8)
    starts = sorted(start for start, in queue.sql("SELECT started_at FROM job"))
    assert all(later - sooner > 0.099 for sooner, later in zip(starts, starts[1:])), starts
    assert starts[-1] - starts[0] < 7 * 0.5, "a rate is no reason to wait for the look of each second: %s" % starts


def test_slots_are_kept_by_live_workers(queue):
    lines = [json.dumps({"command": queue.sleeper(0.03), "slots": n}) for n in (1, 1, 3, 1, 2, 2, 4, 1, 1, 9)]
    (queue.dir / "jobs").write_text("\n".join(lines))
    queue.cli("enqueue", "--file", queue.dir / "jobs")
    queue.start(4)
    all_ended(queue, 10)
    assert at_once([(start, end, min(slots, 4)) for start, end, slots in spans(queue)]) <= 4
    starts = [start for start, in queue.sql("SELECT started_at FROM job ORDER BY id")]
    assert starts == sorted(starts), "nobody passes a big one"


def test_jobs_of_one_key_are_run_one_at_a_time_in_order_by_many_workers(queue):
    queue.start(3)
    for n in range(8):
        queue.enqueue("--key", "customer 7", *queue.script(
            "import sys, time\nfor word in ('begin', 'end'):\n    with open('trace', 'a') as trace:\n"
            "        print(word, sys.argv[1], file=trace)\n    time.sleep(0.02)", n))
    all_ended(queue, 8)
    assert (queue.dir / "trace").read_text().split("\n")[:-1] == [
        "%s %d" % (word, n) for n in range(8) for word in ("begin", "end")]


def test_a_worker_start_serves_the_queues_it_is_told(queue):
    queue.start(1, "--queue", "a,b")
    first, other, second = queue.enqueue("--queue", "a", "exit 0"), queue.enqueue("exit 0"), queue.enqueue("--queue", "b", "exit 0")
    queue.wait_for(first, "completed")
    queue.wait_for(second, "completed")
    assert queue.job(other).state == "pending"
    assert "no worker serves queue default" in queue.out("explain", other)


def test_a_unique_job_is_named_on_stderr_and_its_id_given_with_status_0(queue):
    first = queue.enqueue("--unique", "nightly", "exit 0")
    again = queue.cli("enqueue", "--unique", "nightly", "exit 0")
    assert (again.returncode, int(again.stdout)) == (0, first)
    assert again.stderr.count("\n") == 1 and "unique" in again.stderr and str(first) in again.stderr
    queue.cli("worker", "start", "--foreground", "--drain")
    assert int(queue.out("enqueue", "--unique", "nightly", "--for", "1h", "exit 0")) == first
    assert int(queue.out("enqueue", "--unique", "nightly", "exit 0")) == first + 1
    assert queue.cli("enqueue", "--for", "1h", "exit 0", check=False).returncode == 2


# ---- dependencies, live ---------------------------------------------------------------------------------------

def test_a_pipeline_runs_in_order_and_its_alarm_when_it_breaks(queue):
    def note(word):  # two at once: cmd.exe's >> would refuse the second
        return json.dumps(queue.script("import sys\nwith open('trace', 'a') as trace: print(sys.argv[1], file=trace)", word))

    (queue.dir / "jobs").write_text("\n".join((
        '{"id": "report", "command": ' + note("report") + ', "after": ["clean", "load"]}',
        '{"id": "load", "command": ' + note("load") + '}',
        '{"id": "publish", "command": ' + note("publish") + ', "after": "check"}',
        '{"id": "check", "command": "exit 9", "after": "report", "max_retries": 0}',
        '{"id": "alarm", "command": ' + note("alarm") + ', "after_any": ["check", "publish"]}',
        '{"id": "clean", "command": ' + note("clean") + '}')))
    queue.cli("enqueue", "--file", queue.dir / "jobs")
    queue.cli("worker", "start", "--foreground", "--drain", "--count", "2", status=1)
    trace = (queue.dir / "trace").read_text().split()
    assert sorted(trace[:2]) == ["clean", "load"] and trace[2:] == ["report", "alarm"]
    assert (queue.job("check").state, queue.job("publish").state) == ("dead", "cancelled")
    assert "job %d" % queue.job("check").id in queue.json("show", "publish")["error"]
    assert "died" in queue.out("explain", "publish")
    assert "its parent, job" in queue.out("list", "--state", "cancelled")
    queue.cli("edit", "check", "--command", "exit 0", check=False)
    queue.cli("dlq", "retry", "check")
    assert queue.job("publish").state == "pending"


def test_after_takes_ids_names_lists_and_several_options(queue):
    queue.enqueue("--name", "a", "exit 0")
    queue.enqueue("exit 0")
    queue.enqueue("exit 0")
    child = queue.enqueue("--after", "a,2", "--after", "3", "exit 0")
    assert sorted(p for p, in queue.sql("SELECT parent FROM dep WHERE child=?", child)) == [1, 2, 3]
    assert queue.cli("enqueue", "--after", "nobody", "exit 0", check=False).stderr == "queuectl: error: no job 'nobody' to come after\n"
    assert queue.sql("SELECT count(*) FROM job") == [(4,)]


def test_after_takes_a_range_and_last_as_every_command_does(queue):
    for _ in range(3):
        queue.enqueue("exit 0")
    child = queue.enqueue("--after", "1-2", "--after-any", "last", "exit 0")
    assert sorted(queue.sql("SELECT parent, any FROM dep WHERE child=?", child)) == [(1, 0), (2, 0), (3, 1)]


@pytest.mark.parametrize("line", ['{"id": "b", "command": "exit 0", "after": "a"}', '{"id": "b", "command": "exit 0", "after": "zzz"}'])
def test_a_file_with_a_cycle_or_an_unknown_id_is_refused_whole_in_one_line(queue, line):
    (queue.dir / "jobs").write_text('exit 0\n{"id": "a", "command": "exit 0", "after": "b"}\n%s\n' % line)
    result = queue.cli("enqueue", "--file", queue.dir / "jobs", check=False)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert queue.sql("SELECT count(*) FROM job") == [(0,)]


def test_list_tree_draws_what_comes_after_what(queue):
    queue.cli("enqueue", "--file", "-", stdin='{"id": "top", "command": "echo 1"}\n{"id": "left", "command": "echo 2", "after": "top"}\n'
              '{"command": "echo 3", "after": "left"}\n{"command": "echo 4", "after": ["top"]}\necho 5\n'
              '{"command": "echo 6", "after": ["top", "left"]}\n')
    assert queue.out("list", "--tree").split("\n") == [
        "1 pending  top: echo 1", "├─ 2 pending  left: echo 2", "│  ├─ 3 pending  echo 3", "│  └─ 6 pending  echo 6  (also after 1)",
        "└─ 4 pending  echo 4", "5 pending  echo 5"]


@pytest.mark.slow
def test_a_tree_may_be_5000_deep(queue):
    lines = ['{"id": "n0", "command": "true"}'] + ['{"id": "n%d", "command": "true", "after": "n%d"}' % (n, n - 1) for n in range(1, 5000)]
    queue.cli("enqueue", "--file", "-", stdin="\n".join(lines[::-1]))
    result = queue.cli("list", "--tree", "--limit", "0", binary=True)
    assert result.stdout.count(b"\n") == 5000 and result.stderr == b""


# ---- exit codes, time, live --------------------------------------------------------------------------------------

def test_exit_codes_decide_with_real_jobs(queue):
    often = ("--max-retries", "2", "--backoff-base", "0")
    once = queue.script("import os, sys\nif not os.path.exists('flag'): open('flag', 'w').close(); sys.exit(75)")
    ids = [queue.enqueue(*often, "--retry-on", "3", "exit 3"), queue.enqueue(*often, "--retry-on", "3", "exit 4"),
           queue.enqueue(*often, "--dead-on", "2", "exit 2"),
           queue.enqueue("--max-retries", "0", "--snooze-on", "75", "--snooze", "50ms", *once)]
    queue.cli("worker", "start", "--foreground", "--drain", status=1)
    told = [[a["outcome"] for a in queue.json("show", number)["history"]] for number in ids]
    assert told == [["failed"] * 3, ["failed"], ["failed"], ["snoozed", "completed"]]
    assert [queue.job(number).state for number in ids] == ["dead"] * 3 + ["completed"]
    assert queue.job(ids[3]).attempts == 1


def test_delay_at_and_ttl_with_a_worker_at_work(queue):
    """When they are due, and not when someone looks: nobody does."""
    queue.start_blind()
    delayed = queue.enqueue("--delay", "600ms", "exit 0")
    timed = queue.enqueue("--at", datetime.fromtimestamp(time.time() + 1.2).isoformat(), "exit 0")
    for number in (delayed, timed):
        job = queue.wait_for(number, "completed")
        assert job.started_at >= job.run_at
    expires = queue.enqueue("--ttl", "300ms", "--hold", "exit 0")  # with nothing else due that would wake the supervisor
    job = queue.wait_for(expires, "cancelled")
    assert job.error == "expired" and job.finished_at >= job.created_at + 0.3
    assert "expired" in queue.out("explain", expires)


@pytest.mark.broad
# ---- schedules, live ------------------------------------------------------------------------------------------------

def test_three_supervisors_fire_each_schedule_once(queue):
    with queuectl.Store(str(queue.db)) as store:
        for n in range(25):
            add_schedule(store, "s%d" % n, None, 3600.0, {"command": "exit 0"})
    for _ in range(3):
        queue.start()
    import sqlite3
    connection = sqlite3.connect(str(queue.db), timeout=10, isolation_level=None)
    connection.execute("UPDATE schedule SET next_at=?", (time.time() + 1.5,))
    connection.close()
    all_ended(queue, 25)
    assert queue.sql("SELECT schedule, count(*) FROM job GROUP BY schedule HAVING count(*)<>1") == []
    assert queue.sql("SELECT count(*) FROM schedule WHERE next_at<?", time.time() + 3000) == [(0,)]


def test_cron_from_the_command_line(queue):
    said = queue.out("cron", "add", "nightly", "30 2 * * *", "--tz", "UTC", "--queue", "q", "-p", "3", "echo", "good  night")
    assert "nightly" in said and "next" in said
    queue.cli("cron", "add", "tick", "--every", "90s", "--no-overlap", "--misfire", "skip", "exit 0")
    queue.cli("cron", "add", "hourly", "@hourly", "exit 0")
    nightly = {row["name"]: row for row in queue.json("cron", "list")}["nightly"]
    assert nightly["next_at"].endswith("T02:30:00.000Z") and nightly["spec"] == "30 2 * * *" and not nightly["paused"]
    table = queue.out("cron", "list")
    assert "every 90s" in table and "30 2 * * *" in table and "NEXT" in table
    number = int(queue.out("cron", "run", "nightly"))
    job = queue.job(number)
    assert (job.queue, job.priority, job.schedule) == ("q", 3, "nightly")
    queue.cli("worker", "start", "--foreground", "--drain")
    assert queue.out("logs", number) == "good  night"
    queue.cli("cron", "pause", "tick")
    assert {row["name"]: row["next_at"] for row in queue.json("cron", "list")}["tick"] is None
    assert "next" in queue.out("cron", "resume", "tick")
    queue.cli("cron", "rm", "tick")
    assert [row["name"] for row in queue.json("cron", "list")] == ["hourly", "nightly"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", [
    ["add"], ["add", "x"], ["add", "x", "* * * *", "true"], ["add", "x", "61 * * * *", "true"], ["add", "x", "* * * * *"],
    ["add", "x", "--every", "0s", "true"], ["add", "x", "--every", "soon", "true"], ["add", "x", "* * * * *", "--tz", "Mars/North", "true"],
    ["add", "x", "* * * * *", "--misfire", "burst", "true"], ["add", "x", "* * * * *", "--name", "n", "true"],
    ["add", "x", "* * * * *", '{"command": "true", "id": "n"}'], ["add", "x", "* * * * *", "--after", "99", "true"],
    ["add", "x", "* * * * *", "--priority", "high", "true"], ["pause", "x"], ["resume", "x"], ["rm", "x"], ["run", "x"]], ids=" ".join)
def test_a_schedule_that_is_none_is_refused_in_one_line(queue, words):
    result = queue.cli("cron", *words, check=False)
    assert result.returncode == 2 and result.stderr.startswith("queuectl: error: ") and result.stderr.count("\n") == 1, result.stderr
    assert not queue.db.exists() or queue.json("cron", "list") == []


def test_a_supervisor_survives_a_schedule_that_cannot_enqueue(queue):
    parent = queue.enqueue("exit 0")
    queue.cli("cron", "add", "broken", "--every", "1s", "--after", parent, "exit 0")
    queue.cli("cancel", parent)
    queue.cli("rm", parent)
    worker = queue.beside("worker", "start", "--foreground")
    wait_until(lambda: queue.sql("SELECT 1 FROM schedule WHERE last_at IS NOT NULL"), message="the schedule was tried")
    number = queue.enqueue("exit 0")
    queue.wait_for(number, "completed")
    assert worker.poll() is None, worker.text()


# ---- batches, explain, warnings -------------------------------------------------------------------------------------

def test_a_batch_is_listed_shown_cancelled_and_come_after(queue):
    (queue.dir / "jobs.txt").write_text("exit 0\nexit 1\n" + (json.dumps({"command": queue.sleeper(618)}) + "\n") * 2)
    queue.cli("enqueue", "--file", queue.dir / "jobs.txt", "--max-retries", "0")
    after = queue.enqueue("--after-batch", "1", "echo all ended")
    [batch] = queue.json("batch", "list")
    assert (batch["id"], batch["label"], batch["total"], batch["unfinished"]) == (1, "jobs.txt", 4, 4)
    queue.start()
    queue.wait_for(3, "processing")
    shown = queue.json("batch", "show", 1)
    assert (shown["unfinished"], shown["jobs"]["completed"], shown["jobs"]["dead"], shown["jobs"]["processing"]) == (2, 1, 1, 1)
    assert "2 of 4" in queue.out("batch", "show", 1)
    assert "exit 1" in queue.out("batch", "show", 1), "what went wrong is named"
    assert queue.job(after).state == "pending"
    assert "Cancelled 2 jobs" in queue.out("cancel", "--batch", 1)
    queue.wait_for(after, "completed")
    assert queue.out("logs", after) == "all ended"
    assert queue.json("batch", "show", 1)["unfinished"] == 0
    for words in (["batch", "show", "9"], ["batch", "show", "x"], ["cancel", "--batch", "9"], ["enqueue", "--after-batch", "9", "exit 0"]):
        assert "no batch" in queue.cli(*words, check=False).stderr


def test_a_run_whose_first_line_is_a_twin_tells_of_its_own_batch(queue):
    queue.enqueue("--unique", "u", "--hold", "exit 0")
    lines = '{"command": "exit 0", "unique": "u"}\n{"command": "exit 3", "max_retries": 0}\n'
    result = queue.cli("run", "--file", "-", stdin=lines, check=False)
    assert result.returncode == 1 and "exit 3" in result.stderr, result.stderr


def test_a_run_ends_when_what_is_left_waits_for_a_held_job(queue):
    lines = '{"command": "exit 0", "id": "h", "hold": true}\n{"command": "exit 0", "after": "h"}\n{"command": "exit 0"}\n'
    (queue.dir / "jobs").write_text(lines)
    run = queue.beside("run", "--file", queue.dir / "jobs")
    assert run.ends(timeout=8) != 0
    assert queue.job(3).state == "completed" and queue.job(2).state == "pending"


def test_a_run_is_a_batch(queue):
    queue.cli("run", "--file", "-", stdin="exit 0\nexit 0\n")
    assert [(b["total"], b["unfinished"]) for b in queue.json("batch", "list")] == [(2, 0)]


def reasons(queue, number):
    """What explain says, as text and as JSON."""
    return queue.out("explain", number), [row["reason"] for row in queue.json("explain", number)["reasons"]]


def test_explain_names_each_reason_why_a_job_does_not_run(queue):
    seven = queue.enqueue("--hold", "--name", "seven", "exit 0")
    held = queue.enqueue("--hold", "exit 0")
    late = queue.enqueue("--delay", "10m", "exit 0")
    child = queue.enqueue("--after", "seven", "exit 0")
    holder = queue.enqueue("--key", "k", "--queue", "q", "exit 0")
    keyed = queue.enqueue("--key", "k", "--queue", "q", "exit 0")
    behind = [queue.enqueue("exit 0") for _ in range(3)][-1]
    queue.cli("queue", "pause", "q")
    for number, word, text in (
            (held, "held", "release %d" % held), (late, "time", "not due until"), (child, "parents", "for %d" % seven),
            (keyed, "key", "held by job %d" % holder), (holder, "paused", "queue q is paused"), (behind, "behind", "behind 2 others"),
            (behind, "no worker", "no worker")):
        told = reasons(queue, number)
        assert word in told[1], (number, told)
        assert text in told[0] and told[0].startswith("job %d waits: " % number), told
    queue.cli("queue", "limit", "default", 0)
    assert "limit" in reasons(queue, behind)[1] and "limit of queue default" in reasons(queue, behind)[0]
    queue.cli("queue", "limit", "default", "none")
    queue.start(1, "--queue", "nothing")
    assert "no worker" in reasons(queue, behind)[1], "one that serves other queues does not count"
    queue.stop()
    queue.cli("queue", "pause", "default")
    queue.start(1)
    assert reasons(queue, behind)[1] == ["paused", "behind"]


def test_explain_of_what_runs_or_has_ended(queue):
    queue.start()
    runs = queue.enqueue(*queue.sleeper(619))
    queue.wait_for(runs, "processing")
    assert "runs on worker" in queue.out("explain", runs)
    queue.cli("queue", "limit", "default", 1)
    waits = queue.enqueue("exit 0")
    assert "limit" in reasons(queue, waits)[1]
    queue.cli("cancel", runs)
    queue.wait_for(waits, "completed")
    assert queue.out("explain", waits) == "job %d is completed" % waits
    assert "cancelled" in queue.out("explain", runs)
    assert queue.cli("explain", 99, check=False).returncode == 2


def test_explain_says_that_a_rate_or_a_batch_is_waited_for(queue):
    queue.cli("enqueue", "--file", "-", stdin="exit 0\nexit 0\n")
    after = queue.enqueue("--after-batch", "1", "exit 0")
    assert "batch 1" in reasons(queue, after)[0]
    queue.cli("queue", "rate", "default", "1/h")
    queue.start()
    queue.wait_for(1, "completed")
    assert "rate" in reasons(queue, 2)[1] and "rate of queue default" in reasons(queue, 2)[0]


@posix_only("pseudo-terminals")
def test_an_enqueue_warns_on_a_terminal_when_nothing_will_pick_it_up(queue):
    status, text = queue.terminal("enqueue", "exit 0")
    assert status == 0 and "no worker" in text and "worker start" in text
    queue.start(1, "--queue", "other")
    assert "no worker" in queue.terminal("enqueue", "exit 0")[1], "the worker serves another queue"
    assert "no worker" not in queue.terminal("enqueue", "--queue", "other", "exit 0")[1]
    queue.cli("queue", "pause", "other")
    text = queue.terminal("enqueue", "--queue", "other", "exit 0")[1]
    assert "paused" in text and "queue resume other" in text
    assert queue.cli("enqueue", "--queue", "other", "exit 0").stderr == "", "talk is for people"


@posix_only("pseudo-terminals")
def test_a_bulk_enqueue_warns_too(queue):
    (queue.dir / "jobs").write_text("exit 0\nexit 0\n")
    assert "no worker" in queue.terminal("enqueue", "--file", queue.dir / "jobs")[1]
