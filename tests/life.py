"""A job's life without processes, for the tests of the Store: a clock of the test's own, outcomes, invariants."""
from __future__ import annotations

import re

import conftest  # noqa: F401  puts the program on the path
import queuectl

FINAL = queuectl.FINAL
READY, DUE, HELD, PARENTS, KEYED, RESERVED = range(6)


class Clock:
    """A time that stands still until the test moves it."""

    def __init__(self, now=1700000000.0):
        self.now = now

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def open_store(directory, clock=None, name="life.db"):
    store = queuectl.Store(str(directory / name), clock=clock or Clock())
    store.db.sync = False
    store.db.connection.execute("PRAGMA synchronous=OFF")  # no test of these cuts the power
    return store


def outcome(job, kind="completed", code=0, error=None):
    return queuectl.Outcome(job, kind, code, error, 4711, job.started_at, 0.1)


def claim(store, worker=1, queues=None, reserved_for=None):
    """The next job for a worker, or None."""
    got = store.claims.finish_and_claim(worker, queues=queues, reserved_for=reserved_for)
    return got and got[0]


def finish(store, job, kind="completed", code=0, error=None):
    store.claims.finish(job.worker, outcome(job, kind, code, error))
    return store.look.job(job.id)


def fail(store, job, code=1):
    return finish(store, job, "failed", code, "exit %d" % code)


def bury(store, number):
    """Has a job die: it must be the next in line and have no retries."""
    job = claim(store)
    assert job.id == number, "job %s is first in line" % job.id
    assert fail(store, job).state == "dead"


def order(store, **options):
    """The ids in the order in which one worker takes them, each completed before the next."""
    ids = []
    while True:
        job = claim(store, **options)
        if job is None:
            return ids
        ids.append(job.id)
        finish(store, job)


def add_schedule(store, name, spec, every, job, tz=None, misfire="once", overlap="allow", replace=False):
    times = {"spec": spec, "every": every, "tz": tz, "misfire": misfire, "overlap": overlap}
    (store.schedules.put if replace else store.schedules.add)([store.schedules.plan(name, job, times)])


def pool(store, slots=1, kind="start", queues=None):
    """A registered supervisor's id and the ids of its workers."""
    import os
    supervisor, lock = store.workers.add_supervisor(queuectl.SupervisorSpec("", kind, slots, {"queues": queues}), 9, "token")
    workers = []
    os.close(lock)
    for _ in range(slots):
        worker, lock = store.workers.add_worker(supervisor)
        os.close(lock)
        workers.append(worker)
    return supervisor, workers


def rows(store, sql, *values):
    return store.db.connection.execute(sql, values).fetchall()


# ---- plans and costs ---------------------------------------------------------------------------------

def statements(store, action):
    """The distinct statements that an action runs, with their values, as SQLite got them."""
    seen = []
    store.db.connection.set_trace_callback(seen.append)
    try:
        action()
    finally:
        store.db.connection.set_trace_callback(None)
    return [sql for sql in dict.fromkeys(seen) if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH|REPLACE)\b", sql)]


def plan(store, sql):
    return [row[-1] for row in store.db.connection.execute("EXPLAIN QUERY PLAN " + sql).fetchall()]


def steps(store, action):
    """How many instructions SQLite's machine takes for an action: its cost, whatever else the computer does."""
    count = [0]

    def tick():
        count[0] += 1
        return 0
    store.db.connection.set_progress_handler(tick, 1)
    try:
        action()
    finally:
        store.db.connection.set_progress_handler(None, 1)
    return count[0]


def guard_states(store):
    """From now on a change of state that the table does not know is an error of the statement that made it."""
    pairs = sorted({(old, new) for moves in queuectl.TRANSITIONS.values() for old, new in moves.items()})
    store.db.connection.execute("CREATE TEMP TABLE allowed(old TEXT, new TEXT)")
    store.db.connection.executemany("INSERT INTO allowed VALUES(?, ?)", pairs)
    store.db.connection.execute("CREATE TEMP TRIGGER guard AFTER UPDATE OF state ON job WHEN old.state<>new.state AND NOT EXISTS("
                      "SELECT 1 FROM allowed WHERE allowed.old=old.state AND allowed.new=new.state) BEGIN "
                      "SELECT RAISE(ABORT, 'a change of state that is not in TRANSITIONS'); END")


def dump(store):
    """Every row of every table."""
    tables = [name for name, in rows(store, "SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
    return {table: rows(store, "SELECT * FROM " + table) for table in tables}


# ---- what always holds -------------------------------------------------------------------------------

def invariants(store):
    """Everything that must hold between any two transactions; AssertionError says what does not."""
    now = store.db.clock()
    jobs = {row[0]: queuectl.Job.of(row) for row in rows(store, "SELECT " + queuectl.JOB_SELECT + " FROM job")}
    _check_counts(store, jobs)
    deps = rows(store, "SELECT parent, child, any, done FROM dep")
    unfinished = dict(rows(store, "SELECT id, unfinished FROM batch"))
    keys = dict(rows(store, "SELECT key, job FROM keylock"))
    open_deps = {}
    told_later = rows(store, "SELECT parent, child, last FROM followup")
    for parent, child, any_end, done in deps:
        assert child in jobs, "a dependency of job %d, which is gone" % child
        if not done:
            open_deps.setdefault(child, []).append((parent, any_end))
    for job in jobs.values():
        _check_gate(job, open_deps.get(job.id, ()), keys, now)
        _check_parents(job, [(parent, any_end) for parent, any_end in open_deps.get(job.id, ()) if not any(
            parent == row[0] and row[1] < job.id <= row[2] for row in told_later)], jobs, unfinished)
    _check_keys(jobs, keys)
    _check_heads(store, jobs)


def _check_counts(store, jobs):
    counted = {}
    for job in jobs.values():
        counted[job.queue, job.state] = counted.get((job.queue, job.state), 0) + 1
    tally = {(queue, state): n for queue, state, n in rows(store, "SELECT queue, state, n FROM tally") if n}
    assert tally == counted, "the tally says %s, the jobs %s" % (tally, counted)
    uses = {}
    for env in [job.env for job in jobs.values()] + [env for env, in rows(store, "SELECT env FROM schedule")]:
        uses[env] = uses.get(env, 0) + 1
    assert dict(rows(store, "SELECT id, uses FROM env")) == uses, "uses of environments"
    for batch, unfinished in rows(store, "SELECT id, unfinished FROM batch"):
        left = sum(job.batch == batch and job.state not in FINAL for job in jobs.values())
        assert unfinished == left, "batch %d says %d unfinished, there are %d" % (batch, unfinished, left)


def _check_gate(job, open_deps, keys, now):
    where = "job %d (%s, gate %s)" % (job.id, job.state, job.gate)
    if job.state not in queuectl.WAITING:
        assert job.gate is None, where
        assert (job.worker is not None) == (job.state == "processing"), where
        return
    assert job.worker is None and job.gate in range(6), where
    assert (job.gate == HELD) == bool(job.held), where
    if not job.held:
        assert (job.gate == PARENTS) == bool(open_deps), "%s, parents %s" % (where, open_deps)
    if job.gate in (READY, RESERVED, KEYED):  # DUE may be over: the next claim or tick lets it go
        assert job.run_at <= now, where
        assert (job.gate == RESERVED) <= (job.pool is not None), where
    if job.gate in (READY, RESERVED) and job.key is not None:
        assert keys.get(job.key) == job.id, "%s runs without its key, held by %s" % (where, keys.get(job.key))
    if job.gate == KEYED:
        assert keys.get(job.key) not in (None, job.id), "%s waits for a key that nobody holds" % where


def _check_parents(job, open_deps, jobs, unfinished):
    """No job waits for what can't come any more."""
    if job.state not in queuectl.WAITING:
        return
    for parent, any_end in open_deps:
        if parent < 0:
            assert unfinished.get(-parent, 0) > 0, "job %d waits for batch %d, which has ended" % (job.id, -parent)
        else:
            assert parent in jobs and jobs[parent].state not in FINAL, "job %d waits for %d, which is %s" % (
                job.id, parent, jobs[parent].state if parent in jobs else "gone")


def _check_heads(store, jobs):
    """A claim sees a queue with a ready job, and at its place or an earlier one."""
    heads = {name: (-top, head) for name, top, head in rows(store, "SELECT name, top, head FROM queue WHERE top IS NOT NULL")}
    for job in jobs.values():
        if job.gate == READY:
            assert job.queue in heads and heads[job.queue] <= (-job.priority, job.id), "queue %s: its head is %s, job %d is before" % (
                job.queue, heads.get(job.queue), job.id)


def _check_keys(jobs, keys):
    for key, number in keys.items():
        job = jobs.get(number)
        assert job is not None and job.key == key, "key %s is held by %s" % (key, number)
        assert job.state not in FINAL, "key %s is held by job %d, which is %s" % (key, number, job.state)
    for job in jobs.values():
        if job.key is not None and job.state in ("processing", "failed"):
            assert keys.get(job.key) == job.id, "job %d is %s without its key" % (job.id, job.state)
