"""The table of states, walked whole: each event in each state does what TRANSITIONS says, or nothing at all."""
from __future__ import annotations

import pytest
from life import (READY, bury, claim, dump, fail, finish, guard_states, invariants, outcome, rows)

import queuectl
from queuectl import FINAL, STATES, TRANSITIONS, WAITING

pytestmark = pytest.mark.core
EVENTS = tuple(TRANSITIONS)
EVERY_PAIR = [(state, event) for state in STATES for event in EVENTS]


@pytest.fixture
def store(bare_store):
    guard_states(bare_store)
    return bare_store


def bring(store, clock, state):
    """A job in this state, got there by what commands and workers do; with all that hangs on a job.

    Returns its id and its record as of its last claim, which is what a late worker would still hold.
    """
    [number] = store.enqueue_many([{"command": "x", "key": "k", "unique": "u", "snooze_on": "75", "dead_on": "2"}], label="b")
    store.enqueue("after", after=str(number), queue="aside")
    store.enqueue("duplicate", key="k", queue="aside", hold=True)
    store.queues.set("aside", paused=1)
    if state == "pending":
        # claimed once and given back: even then a late worker holds a record of it
        claimed = claim(store)
        finish(store, claimed, "released", None)
    elif state == "cancelled":
        claimed = claim(store)
        finish(store, claimed, "released", None)
        assert store.life.cancel([number]) == [(number, "cancelled")]
    else:
        claimed = claim(store)
        if state != "processing":
            finish(store, claimed, *{"completed": ("completed",), "failed": ("failed", 1), "dead": ("failed", 2)}[state])
    assert store.look.job(number).state == state and claimed.id == number
    invariants(store)
    return number, claimed


def happen(store, clock, event, number, claimed):
    """The event, by the way in which it reaches the Store; True where it took effect."""
    job, last = store.look.job(number), store.look.last_event()
    if event == "claim":
        clock.pass_by(5000)
        got = claim(store, 2)
        return got is not None and got.id == number
    if event == "cancel":
        [(_, result)] = store.life.cancel([number])
        if result == "asked":
            finish(store, claimed, "failed", None)  # the TERM ended it
        assert result in ("cancelled", "asked", "cancelled already") or result == job.state
        return store.look.last_event() > last
    if event == "retry":
        wanted = {"pending": "pending already", "failed": "due now"}.get(job.state, "pending" if job.state in FINAL else job.state)
        assert store.life.retry([number]) == [(number, wanted)]
        return store.look.last_event() > last
    if event == "expire":
        if job.state not in WAITING:
            # No such job has an expiry; even if it had, nothing may happen.
            return expire_anyway(store, clock, number)
        store.db.connection.execute("UPDATE job SET expires_at=? WHERE id=?", (clock() - 1, number))
        store.schedules.tick()
        return store.look.job(number).state == "cancelled"
    how = {"complete": ("completed", 0), "fail": ("failed", 1), "bury": ("failed", 2), "release": ("released", None),
           "crash": ("crashed", None), "snooze": ("failed", 75)}[event]
    with queuectl.Transaction(store.db) as now:
        return store.claims.record(claimed.worker, outcome(claimed, *how), now)


def expire_anyway(store, clock, number):
    with queuectl.Transaction(store.db) as now:
        return store.life.end(store.look.job(number), "expire", now, error="expired")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("state, event", EVERY_PAIR)
def test_an_event_does_what_the_table_says_or_nothing(store, clock, state, event):
    number, claimed = bring(store, clock, state)
    with store.db.undo, queuectl.Transaction(store.db):
        store.queues.recount()  # a claim may correct which job comes first in its queue
    before = dump(store)
    happened = happen(store, clock, event, number, claimed)
    target = TRANSITIONS[event].get(state)
    if (state, event) == ("failed", "retry"):  # no event: it is due at once
        assert not happened and (store.look.job(number).state, store.look.job(number).gate) == ("failed", queuectl.READY)
        return
    if target is None:
        assert not happened
        assert dump(store) == before
        return
    assert happened
    job = store.look.job(number)
    assert job.state == target
    assert (job.worker is not None) == (target == "processing")
    assert (job.gate is None) == (target not in WAITING)
    assert (job.finished_at is not None) == (target in FINAL + ("failed",))
    assert job.expires_at is None or target in WAITING
    assert store.queues.counts()[target] >= 1
    invariants(store)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("state, event", EVERY_PAIR)
def test_an_event_from_a_stale_record_changes_nothing(store, clock, state, event):
    """Whoever read the job before it moved on writes in vain: state, worker and attempt are the fence."""
    number, _ = bring(store, clock, state)
    job = store.look.job(number)
    stale = [job._replace(state=other) for other in STATES if other != state]
    stale += [job._replace(attempt=job.attempt + 1), job._replace(attempt=job.attempt - 1), job._replace(worker=99)]
    before = dump(store)
    for record in stale:
        with queuectl.Transaction(store.db):
            assert store.life.move(record, event) is None
    assert dump(store) == before


@pytest.mark.parametrize("kind", ["completed", "failed", "timeout", "released", "crashed", "cancelled"])
def test_an_outcome_comes_in_time_once_only(store, clock, kind):
    number, claimed = bring(store, clock, "processing")
    finish(store, claimed, kind, None)
    before = dump(store)
    for late in ("completed", "failed", "timeout", "released", "crashed", "cancelled"):
        finish(store, claimed, late, None)
    assert dump(store) == before


def test_the_table_names_only_states_and_reaches_each():
    named = {state for moves in TRANSITIONS.values() for pair in moves.items() for state in pair}
    assert named == set(STATES)
    reached, new = set(), {"pending"}
    while new:
        reached |= new
        new = {moves[state] for moves in TRANSITIONS.values() for state in reached if state in moves} - reached
    assert reached == set(STATES)
    for state in STATES:  # nothing is a trap but by a user's will
        out = [event for event, moves in TRANSITIONS.items() if state in moves]
        assert out and (state not in FINAL or set(out) <= {"retry", "cancel"})


def test_waiting_and_final_states_are_all_but_processing():
    assert set(WAITING) | set(FINAL) | {"processing"} == set(STATES) and not set(WAITING) & set(FINAL)


def test_the_history_tells_every_change_of_state_in_order(store, clock):
    number = store.enqueue("x", max_retries=1, snooze_on="75", snooze=5, backoff_base=0)
    for how in (("released", None), ("crashed", None), ("failed", 75), ("failed", 1), ("failed", 1)):
        clock.pass_by(10)
        finish(store, claim(store), *how)
    store.life.retry([number])
    finish(store, claim(store))
    store.life.retry([number])
    store.life.cancel([number])
    assert [(row["event"], row["state"]) for row in store.look.events()] == [
        ("released", "pending"), ("crashed", "pending"), ("snoozed", "pending"), ("failed", "failed"), ("failed", "dead"),
        ("retry", "pending"), ("completed", "completed"), ("retry", "pending"), ("cancel", "cancelled")]
    assert [a.attempt for a in store.look.history(number)] == [1, 2, 3, 4, 5, 6]


def test_a_job_cancelled_while_it_runs_is_cancelled_whatever_its_end_but_success(store, clock):
    for kind, state in (("failed", "cancelled"), ("timeout", "cancelled"), ("released", "cancelled"), ("crashed", "cancelled"),
                        ("cancelled", "cancelled"), ("completed", "completed")):
        number = store.enqueue("x", max_retries=5)
        job = claim(store)
        assert store.life.cancel([number]) == [(number, "asked")]
        assert store.claims.cancel_asked(job)
        assert finish(store, job, kind, None).state == state
        assert claim(store) is None
        assert store.look.job(number).cancel == 0
    invariants(store)


def test_a_dead_job_that_is_cancelled_leaves_the_dead_letter_queue_and_can_come_back(store):
    number = store.enqueue("x", max_retries=0)
    bury(store, number)
    assert store.life.cancel([number]) == [(number, "cancelled")]
    assert store.queues.counts()["dead"] == 0
    assert store.life.cancel([number]) == [(number, "cancelled")] or store.look.job(number).state == "cancelled"
    assert store.life.retry([number]) == [(number, "pending")]
    assert store.look.job(number).gate == READY


def test_a_retry_counts_anew_and_keeps_the_history(store, clock):
    number = store.enqueue("x", max_retries=1, backoff_base=0)
    for _ in range(2):
        clock.pass_by(1)
        fail(store, claim(store))
    assert store.life.retry([number]) == [(number, "pending")]
    job = store.look.job(number)
    assert (job.attempts, job.attempt, job.crashes, job.snoozes, job.error, job.exit_code, job.finished_at) == (0, 2, 0, 0, None, None, None)
    assert claim(store).attempt == 3
    assert len(store.look.history(number)) == 3


def test_every_state_of_a_real_life_is_one_of_the_table(store, clock):
    """The guard of the fixture is awake."""
    number = store.enqueue("x")
    with pytest.raises(Exception, match="not in TRANSITIONS"):
        store.db.connection.execute("UPDATE job SET state='dead' WHERE id=?", (number,))
    assert rows(store, "SELECT state FROM job") == [("pending",)]
