"""What a claim costs: every hot statement is a seek, and what may not run now costs nothing."""
from __future__ import annotations

import re

import pytest
from life import Clock, bury, claim, finish, invariants, open_store, outcome, plan, pool, rows, statements, steps

import queuectl

pytestmark = pytest.mark.core
BIG_TABLES = r"SCAN (TABLE )?(job|history|env|dep|keylock|batch)\b"
FIRST_OF_INDEX = r"SCAN (TABLE )?job USING (COVERING )?INDEX job_(due|expiry|own|keyed|running|big)$"  # partial ones


@pytest.fixture
def store(bare_store):
    return bare_store


def fill(store, clock):
    """A queue in which every kind of job waits, runs and has ended."""
    store.enqueue_many([{"command": "old", "max_retries": n % 2} for n in range(40)], label="old")
    for n in range(40):
        job = claim(store)
        finish(store, job, *(("failed", 1, "exit 1") if n % 4 == 0 else ()))
    store.enqueue_many(["plain"] * 20)
    store.enqueue_many([{"command": "a", "priority": n % 3, "queue": "abc"[n % 3], "key": "k%d" % (n % 7)} for n in range(30)],
                       label="mixed")
    store.enqueue_many([{"command": "late", "delay": 60 + n, "ttl": 3600} for n in range(20)])
    store.enqueue_many([{"command": "p", "name": "p"}] + [{"command": "c", "after": "p"}] * 10 + [{"command": "e", "after_any": "p"}] * 10
                       + [{"command": "b", "after_batch": "2"}] * 10)
    store.enqueue_many([{"command": "u", "unique": "u%d" % n, "hold": True} for n in range(10)])
    store.queues.set("c", max_running=1)
    store.queues.set("b", rate="10/m", every=6.0)


# ---- plans -------------------------------------------------------------------------------------------

def events(store, clock):
    """Everything that workers and supervisors do all day, by name."""
    supervisor, workers = pool(store, 3)

    def run(number):
        """Has the job with this number running, whatever is in front of it."""
        if store.look.job(number).state == "processing":
            return store.look.job(number)
        with queuectl.Transaction(store.db) as now:
            return store.claims._take((store.look.job(number), None, False), workers[0], now)

    def ends(kind, code=0, **options):
        def act():
            job = run(store.enqueue("x", **options))
            store.claims.finish_and_claim(job.worker, outcome(job, kind, code, None if kind == "completed" else kind))
        return act

    def parent_ends(kind):
        def act():
            number = store.enqueue("p", max_retries=0)
            store.enqueue_many([{"command": "c", "after": str(number)}, {"command": "c", "after_any": str(number)}])
            finish(store, run(number), kind, 1)
        return act

    def dead():
        number = store.enqueue("x", max_retries=0)
        store.enqueue("c", after=str(number))
        finish(store, run(number), "failed", 1, "exit 1")
        return number
    waiting = store.enqueue("w", key="k1", queue="a")
    return {
        "claim": lambda: claim(store, workers[0]),
        "claim of some queues": lambda: claim(store, workers[1], queues="/a/b/"),
        "claim of a big job": lambda: (store.enqueue("x", slots=2, priority=99), claim(store, workers[2])),
        "claim of its own": lambda: (store.enqueue_many(["own"], reserved_for=supervisor), claim(store, workers[0], reserved_for=supervisor)),
        "claim of an expired one": lambda: (store.enqueue("x", ttl=0.001, priority=99), clock.pass_by(1), claim(store)),
        "complete": ends("completed"), "complete with a key": ends("completed", key="k2"),
        "fail": ends("failed", 1), "die": ends("failed", 1, max_retries=0), "timeout": ends("timeout", None),
        "snooze": ends("failed", 75, snooze_on="75"), "release": ends("released", None), "crash": ends("crashed", None),
        "complete the parent": parent_ends("completed"), "kill the parent": parent_ends("failed"),
        "promote and expire": lambda: (clock.pass_by(70), store.schedules.tick()),
        "ready": lambda: store.claims.ready(4), "ready of its own": lambda: store.claims.ready(4, reserved_for=supervisor), "next time": store.claims.next_time,
        "next time of its own": lambda: store.claims.next_time(supervisor), "stalled": lambda: store.claims.stalled_job(supervisor),
        "orders": lambda: (store.workers.orders(supervisor), store.workers.to_cancel(supervisor)),
        "drained": lambda: store.claims.unfinished(), "drained of its own": lambda: store.claims.unfinished(reserved_for=supervisor),
        "enqueue": lambda: store.enqueue("x"), "enqueue unique": lambda: store.enqueue("x", unique="u3"),
        "enqueue with all": lambda: store.enqueue("x", key="k", after="p", after_any=[str(waiting)], after_batch="1", ttl=5),
        "hold": lambda: store.life.release([waiting]), "let go": lambda: store.life.hold([waiting]),
        "cancel": lambda: store.life.cancel([waiting]), "cancel what runs": lambda: store.life.cancel([run(store.enqueue("x")).id]),
        "retry": lambda: store.life.retry([dead()]),
        "explain": lambda: store.look.why_waiting(store.look.job(store.enqueue("x", key="k1"))),
        "purge": lambda: store.keep.purge([dead()]), "tidy": lambda: store.keep.tidy(0),
        "the run's end": lambda: store.workers.remove_supervisor(supervisor),
    }


def test_no_hot_statement_reads_a_table_through_or_sorts_jobs(store, clock):
    fill(store, clock)
    seen, faults = set(), []
    for name, act in events(store, clock).items():
        for sql in statements(store, act):
            seen.add(sql)
            for detail in plan(store, sql):
                few = re.search("job_running|job_big", detail)  # which hold a row a worker at most
                first = re.search(FIRST_OF_INDEX, detail) and ("LIMIT" in sql or few)
                if re.search(BIG_TABLES, detail) and not first:
                    faults.append((name, detail, sql))
                # The one sort is of the first job of each queue of a `run`: a row per queue.
                if "TEMP B-TREE" in detail and "FROM queue JOIN job" not in sql:
                    faults.append((name, detail, sql))
    assert not faults, "\n".join(map(str, faults))
    assert len(seen) > 100
    invariants(store)


def test_the_statements_of_triggers_are_seeks_too(store):
    """EXPLAIN does not show what a trigger does."""
    count = 0
    for body, in rows(store, "SELECT sql FROM sqlite_master WHERE type='trigger'"):
        for sql in body[body.index("BEGIN") + 5:body.rindex("END")].split(";"):
            sql = re.sub(r"--.*", "", re.sub(r"\b(old|new)\.\w+", "1", sql)).strip()
            if sql:
                count += 1
                for detail in plan(store, sql):
                    assert not re.search(BIG_TABLES, detail), (detail, sql)
    assert count >= 9


def test_the_claim_takes_each_queue_by_the_ready_index(store):
    store.enqueue_many(["x"] * 30)
    [sql] = [sql for sql in statements(store, lambda: claim(store)) if "LEFT JOIN job" in sql]
    details = plan(store, sql)
    assert any(re.search(r"SEARCH .*job.* USING (COVERING )?INDEX job_ready \(queue=\?\)", d) for d in details), details
    assert any(re.search(r"SEARCH .*job.* USING INTEGER PRIMARY KEY", d) for d in details), details


def test_a_claim_is_one_transaction_of_few_statements(store):
    store.enqueue_many(["x"] * 10)
    job = claim(store)
    seen = []
    store.db.connection.set_trace_callback(seen.append)
    store.claims.finish_and_claim(1, outcome(job))
    store.db.connection.set_trace_callback(None)
    assert seen[0] == "BEGIN IMMEDIATE" and seen[-1] == "COMMIT" and seen.count("COMMIT") == 1
    assert len(seen) < 25, seen


# ---- costs -------------------------------------------------------------------------------------------

def by_dependency(store, n):
    store.enqueue("parent", name="parent", queue="elsewhere", hold=True)
    store.enqueue_many({"command": "x", "after": "parent", "priority": 5} for _ in range(n))


def by_limit(store, n):
    store.enqueue_many({"command": "x", "queue": "limited", "priority": 5} for _ in range(n))
    store.queues.set("limited", max_running=0)


def by_key(store, n):
    store.enqueue_many({"command": "x", "key": "k", "priority": 5} for _ in range(n))
    assert claim(store, 99).key == "k"


def by_delay(store, n):
    store.enqueue_many({"command": "x", "delay": 3600, "priority": 5} for _ in range(n))


def by_pause(store, n):
    store.enqueue_many({"command": "x", "queue": "paused", "priority": 5} for _ in range(n))
    store.queues.set("paused", paused=1)


def by_rate(store, n):
    store.enqueue_many({"command": "x", "queue": "slow", "priority": 5} for _ in range(n))
    store.queues.set("slow", rate="1/h", every=3600.0, next_at=0)
    assert claim(store, 99).queue == "slow"


def by_hold(store, n):
    store.enqueue_many({"command": "x", "hold": True, "priority": 5} for _ in range(n))


def by_a_run(store, n):
    store.enqueue_many((["x"] * n), reserved_for=77)


BLOCKS = [by_dependency, by_limit, by_key, by_delay, by_pause, by_rate, by_hold, by_a_run]
MANY, FEW_MORE = 20000, 3000  # the five of the issue, and those beside them


def cost_behind(tmp_path, block, n):
    """{what: instructions} with n blocked jobs in front."""
    store = open_store(tmp_path, Clock(), "%s-%d.db" % (block.__name__, n))
    block(store, n)
    store.enqueue_many(["free"] * 20)
    jobs = [claim(store) for _ in range(3)]  # the plans are made, the caches warm
    assert [job.command for job in jobs] == ["free"] * 3
    costs = {
        "claim": steps(store, lambda: claim(store)),
        "finish and claim": steps(store, lambda: store.claims.finish_and_claim(1, outcome(jobs[0]))),
        "fail and claim": steps(store, lambda: store.claims.finish_and_claim(1, outcome(jobs[1], "failed", 1, "exit 1"))),
        "look": steps(store, lambda: (store.claims.ready(4), store.claims.next_time(), store.schedules.tick())),
    }
    store.close()
    return costs


@pytest.mark.broad
@pytest.mark.parametrize("block", [block if n == 0 else pytest.param(block, marks=pytest.mark.slow)
                                   for n, block in enumerate(BLOCKS)], ids=lambda block: block.__name__)
def test_a_claim_costs_the_same_behind_many_blocked_jobs(tmp_path, block):
    count = MANY if block in BLOCKS[:5] else FEW_MORE
    few, many = cost_behind(tmp_path, block, 100), cost_behind(tmp_path, block, count)
    for what, cost in few.items():
        assert many[what] <= cost * 1.05 + 20, "%s: %d instructions behind 100 jobs, %d behind %d" % (what, cost, many[what], count)


def test_all_kinds_of_block_together_cost_no_more_than_their_queues(tmp_path):
    def cost(n):
        store = open_store(tmp_path, Clock(), "all-%d.db" % n)
        for block in BLOCKS[:2] + BLOCKS[3:]:  # by_key claims the first in line
            block(store, n)
        store.enqueue_many(["free"] * 5)
        assert claim(store).command == "free"
        cost = steps(store, lambda: claim(store))
        store.close()
        return cost
    assert cost(2000) <= cost(20) * 1.05 + 20


@pytest.mark.broad
def test_the_end_of_a_keys_holder_moves_one_job_however_many_wait(tmp_path):
    def cost(n):
        store = open_store(tmp_path, Clock(), "key-%d.db" % n)
        store.enqueue_many({"command": "x", "key": "k"} for _ in range(n))
        job = claim(store)
        cost = steps(store, lambda: store.claims.finish_and_claim(1, outcome(job)))
        assert rows(store, "SELECT count(*) FROM job WHERE gate=0 OR state='processing'") == [(1,)]
        store.close()
        return cost
    assert cost(10000) <= cost(100) * 1.05 + 20


def test_drain_looks_at_no_finished_job(tmp_path):
    def cost(n):
        store = open_store(tmp_path, Clock(), "drain-%d.db" % n)
        store.enqueue_many(["x"] * n)
        store.life.cancel(range(1, n + 1))
        cost = steps(store, lambda: store.claims.unfinished()) + steps(store, lambda: store.claims.unfinished(queues="/default/"))
        assert not store.claims.unfinished()
        store.close()
        return cost
    assert cost(3000) <= cost(100) * 1.05 + 20


def in_queues(store, queues, jobs):
    store.enqueue_many([{"command": "x", "queue": "q%d" % (n % queues)} for n in range(jobs)])


def test_a_claim_costs_the_same_among_a_thousand_queues(tmp_path):
    def costs(n):
        store = open_store(tmp_path, Clock(), "queues-%d.db" % n)
        in_queues(store, n, 3 * n)
        jobs = [claim(store) for _ in range(2)]
        found = [steps(store, lambda: claim(store)), steps(store, lambda: store.claims.ready(4)),
                 steps(store, lambda: store.claims.finish_and_claim(1, outcome(jobs[0])))]
        store.close()
        return found
    for many, few in zip(costs(1000), costs(10)):
        assert many <= few * 1.2 + 20, (many, few)


def test_a_claim_passes_queues_whose_jobs_went_without_being_claimed(store, clock):
    in_queues(store, 200, 400)
    store.enqueue("rare", queue="z", priority=-1)
    store.life.cancel(range(1, 150))
    store.life.hold(range(150, 300))
    store.life.edit(range(300, 401), {"priority": -2})
    invariants(store)
    assert claim(store).command == "rare"
    assert rows(store, "SELECT count(*) FROM queue WHERE top=0") == [(0,)]
    assert [claim(store).id for _ in range(101)] == sorted(range(300, 401))
    assert claim(store) is None
    invariants(store)


def test_a_lone_queue_costs_no_write_for_its_order(store):
    store.enqueue_many(["x"] * 5)
    before = rows(store, "SELECT * FROM queue")
    assert not [sql for sql in statements(store, lambda: finish(store, claim(store))) if "UPDATE queue" in sql]
    store.enqueue("x")
    assert rows(store, "SELECT * FROM queue") == before


def test_doctor_finds_a_job_that_no_claim_would_find_and_mends_it(store):
    in_queues(store, 3, 6)
    for wrong in ("top=NULL", "top=-1", "head=5"):
        store.db.execute("UPDATE queue SET %s WHERE name='q1'" % wrong)
        assert store.keep.check() == ["job 2 of queue q1 is ready, but no claim would find it"], wrong
        store.keep.repair()
        assert store.keep.check() == []
        invariants(store)
    assert [claim(store).id for _ in range(6)] == [1, 2, 3, 4, 5, 6]


# ---- bounded moves -------------------------------------------------------------------------------------

def gate_moves(store):
    """Counts from now on how often each job's gate is written."""
    store.db.connection.execute("CREATE TEMP TABLE move(job INTEGER)")
    store.db.connection.execute("CREATE TEMP TRIGGER moved AFTER UPDATE OF gate ON job WHEN old.gate IS NOT new.gate BEGIN "
                      "INSERT INTO move VALUES(new.id); END")


def most_moves(store):
    return rows(store, "SELECT max(n) FROM (SELECT count(*) n FROM move GROUP BY job)")[0][0]


def work_all(store, clock):
    count = 0
    while True:
        job = claim(store)
        if job is None:
            next_at = store.claims.next_time()
            if next_at is None or next_at == clock():
                return count
            clock.now = max(clock.now, next_at)
            store.schedules.tick()
            continue
        finish(store, job)
        count += 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [
    {"key": "k"}, {"delay": 5}, {"delay": 5, "key": "k"}, {"after": "first"}, {"after": "first", "key": "k", "delay": 5},
    {"after_batch": "1"}], ids=str)
def test_each_job_is_moved_a_bounded_number_of_times(store, clock, options):
    store.enqueue_many([{"command": "x", "name": "first"}], label="first")
    gate_moves(store)
    store.enqueue_many([dict(options, command="x")] * 200)
    assert work_all(store, clock) == 201
    # Once at its enqueueing, once for each thing that blocked it, once by its claim.
    assert most_moves(store) <= 2 + len(options) + 1
    invariants(store)


def test_a_claim_promotes_a_bounded_number_and_loses_none(store, clock):
    store.enqueue_many([{"command": "x", "delay": 1}] * 1000)
    clock.pass_by(2)
    gate_moves(store)
    assert claim(store) is not None
    assert 0 < rows(store, "SELECT count(*) FROM move")[0][0] <= 2 * queuectl.CLAIM_LIMIT
    assert work_all(store, clock) == 999
    assert store.queues.counts()["completed"] == 999


def test_expired_jobs_in_front_are_put_away_by_the_claim_and_counted_once(store, clock):
    store.enqueue_many([{"command": "x", "ttl": 1, "priority": 5}] * 250)
    free = store.enqueue("free")
    clock.pass_by(2)
    for _ in range(5):  # a claim puts a bounded number away
        job = claim(store)
        if job is not None:
            break
    assert job.id == free
    store.schedules.tick()
    store.schedules.tick()
    assert store.queues.counts()["cancelled"] == 250
    assert {row[0] for row in rows(store, "SELECT error FROM job WHERE state='cancelled'")} == {"expired"}
    invariants(store)


def test_a_dead_parent_of_many_costs_its_children_once(store, clock):
    parent = store.enqueue("x", max_retries=0)
    store.enqueue_many([{"command": "c", "after": str(parent)}] * 500)
    gate_moves(store)
    bury(store, parent)
    store.followups.catch_up()
    assert store.queues.counts()["cancelled"] == 500
    assert most_moves(store) == 1
    assert claim(store) is None
    invariants(store)
