"""The Store through the Python API: claims, fences, counts, plans, schema, processes side by side."""
from __future__ import annotations

import os
import random
import re
import sqlite3
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, SCRIPT, posix_only
from life import steps

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]


def outcome(job, kind="completed", code=0, error=None):
    return queuectl.Outcome(job, kind, code, error, 4711, job.started_at, 0.1)


def claim(store, worker=1):
    """The next job for a worker, or None."""
    got = store.claims.finish_and_claim(worker)
    return got and got[0]


def finish(store, job, *how):
    return store.claims.finish(job.worker, outcome(job, *how))


# ---- the API that the README shows -----------------------------------------------------------------

def test_a_job_goes_in_and_comes_out(store):
    number = store.enqueue("echo hello", name="greeting", max_retries=2, priority=5)
    job = store.look.job(number)
    assert job == store.look.job("greeting")
    assert (job.id, job.command, job.name, job.state, job.max_retries, job.priority) == (
        number, "echo hello", "greeting", "pending", 2, 5)
    assert job.to_dict()["command"] == "echo hello"
    assert store.queues.counts()["pending"] == 1 and store.look.history(number) == []


def test_many_go_in_at_once_and_all_or_none(store):
    ids = list(store.enqueue_many(["true", {"command": "false", "name": "f"}, {"command": ["echo", "a b"]}]))
    assert [store.look.job(i).command for i in ids] == ["true", "false", store.look.job(ids[2]).command]
    with pytest.raises(queuectl.UserError, match="max_retries"):
        store.enqueue_many(["true", {"command": "true", "max_retries": -1}])
    assert store.queues.counts()["pending"] == 3


def test_an_unknown_job_is_a_users_mistake(store):
    for ref in (99, "99", "nobody", "", "9" * 40, -1):
        with pytest.raises(queuectl.UserError):
            store.look.job(ref)


def test_a_queue_is_a_context_manager(tmp_path):
    with queuectl.Store(str(tmp_path / "q.db")) as opened:
        opened.enqueue("true")
    with queuectl.Store(str(tmp_path / "q.db")) as opened:
        assert opened.queues.counts()["pending"] == 1


# ---- claims ----------------------------------------------------------------------------------------

def test_claims_go_by_priority_then_first_in_first_out(store):
    store.enqueue_many([{"command": "c%d" % n, "priority": n % 3} for n in range(9)])
    order = []
    while True:
        job = claim(store)
        if job is None:
            break
        order.append(job.id)
        finish(store, job)
    assert order == [3, 6, 9, 2, 5, 8, 1, 4, 7]


def test_a_claim_marks_the_job_and_charges_the_attempt(store):
    store.enqueue("true")
    job = claim(store, 7)
    assert (job.state, job.worker, job.attempt, job.attempts) == ("processing", 7, 1, 1)
    assert store.look.job(job.id) == job
    assert claim(store, 8) is None
    [running] = store.look.history(job.id)
    assert running.attempt == 1 and running.finished_at is None


def test_finish_and_claim_are_one_transaction(store):
    store.enqueue_many(["a", "b"])
    first = claim(store)
    commits = []
    store.db.connection.set_trace_callback(lambda sql: commits.append(sql) if sql.startswith(("BEGIN", "COMMIT")) else None)
    second, _ = store.claims.finish_and_claim(1, outcome(first))
    store.db.connection.set_trace_callback(None)
    assert commits == ["BEGIN IMMEDIATE", "COMMIT"]
    assert store.look.job(first.id).state == "completed" and second.id == 2


def test_a_job_that_is_not_due_is_not_claimed_and_not_in_the_way(tmp_path):
    now = [1000.0]
    store = queuectl.Store(str(tmp_path / "q.db"), clock=lambda: now[0])
    late = store.enqueue("late", delay=60, priority=9)
    soon = store.enqueue("soon")
    assert claim(store).id == soon
    assert claim(store) is None
    now[0] += 61
    assert claim(store).id == late
    store.close()


def test_retry_delays_grow_are_capped_and_never_overflow(tmp_path):
    now = [1000.0]
    store = queuectl.Store(str(tmp_path / "q.db"), clock=lambda: now[0])
    store.db.sync = False
    store.enqueue("false", max_retries=2000, backoff_base=30, backoff_max=3600)
    waits = []
    for _ in range(300):  # 30.0 ** 209 is no float any more
        job = claim(store)
        finish(store, job, "failed", 1, "exit 1")
        waits.append(store.look.job(1).run_at - now[0])
        assert store.look.job(1).state == "failed" and claim(store) is None
        now[0] = store.look.job(1).run_at + 0.001
    for number, seconds in enumerate(waits, 1):
        exact = min(3600, 30.0 ** min(number, 9))
        assert exact <= seconds <= exact * 1.25, (number, seconds)
    assert len(set(waits[20:40])) > 1  # the jitter
    store.close()


def test_max_retries_counts_the_runs_after_the_first(store):
    store.enqueue("false", max_retries=2, backoff_base=0)
    for _ in range(3):
        finish(store, claim(store), "failed", 1, "exit 1")
    job = store.look.job(1)
    assert (job.state, job.attempts, job.exit_code, job.error) == ("dead", 3, 1, "exit 1")
    assert claim(store) is None
    assert [a.outcome for a in store.look.history(1)] == ["failed"] * 3


# ---- what does not charge an attempt -----------------------------------------------------------------

def test_a_released_attempt_is_given_back(store):
    store.enqueue("true", max_retries=0)
    for number in (1, 2, 3):
        job = claim(store)
        assert (job.attempt, job.attempts) == (number, 1)
        finish(store, job, "released", None, None)
    assert (store.look.job(1).state, store.look.job(1).attempts) == ("pending", 0)
    assert [a.outcome for a in store.look.history(1)] == ["released"] * 3


def test_a_crash_uses_up_no_retry_and_the_third_is_the_last(store):
    store.enqueue("true", max_retries=0, backoff_base=0)
    for number in (1, 2):
        finish(store, claim(store), "crashed", None, "worker died")
        job = store.look.job(1)
        assert (job.state, job.crashes, job.attempts) == ("pending", number, 0)
    finish(store, claim(store), "crashed", None, "worker died")
    job = store.look.job(1)
    assert (job.state, job.crashes, job.error) == ("dead", 3, "worker died 3 times")


def test_the_first_crash_is_run_again_at_once_and_later_ones_after_a_delay(store):
    store.enqueue("true", backoff_base=30)
    finish(store, claim(store), "crashed", None, "worker died")
    finish(store, claim(store), "crashed", None, "worker died")
    assert claim(store) is None
    assert store.look.job(1).run_at - store.db.clock() > 20


# ---- fences ----------------------------------------------------------------------------------------

def test_a_late_writer_that_lost_its_claim_changes_nothing(store):
    store.enqueue("true")
    late = claim(store, 1)
    finish(store, late, "crashed", None, "worker died")
    current = claim(store, 2)
    before = store.look.job(1)
    assert current.attempt == 2
    for kind in ("completed", "failed", "released", "crashed", "timeout"):
        store.claims.finish(1, outcome(late, kind))
        assert store.look.job(1) == before
    assert [a.outcome for a in store.look.history(1)] == ["crashed", "running"]
    finish(store, current)
    finish(store, current, "failed", 1, "exit 1")
    assert store.look.job(1).state == "completed" and len(store.look.history(1)) == 2


def test_the_same_worker_cannot_finish_an_older_attempt_of_its_own(store):
    store.enqueue("true")
    first = claim(store, 1)
    finish(store, first, "released", None, None)
    claim(store, 1)
    finish(store, first)
    assert store.look.job(1).state == "processing"


def test_the_table_of_states_is_the_one_that_is_used(store):
    """Each event on a job of each state moves it as the table says, or changes nothing."""
    for event, moves in queuectl.TRANSITIONS.items():
        assert set(moves) <= set(queuectl.STATES) and set(moves.values()) <= set(queuectl.STATES)
        for state in queuectl.STATES:
            number = store.enqueue("true")
            store.db.connection.execute("UPDATE job SET state=?, gate=NULL, worker=NULL WHERE id=?", (state, number))
            with queuectl.Transaction(store.db):
                moved = store.life.move(store.look.job(number), event)
            assert moved == moves.get(state)
            assert store.look.job(number).state == moves.get(state, state)


def test_no_event_leads_out_of_a_final_state_but_a_persons():
    for event, moves in queuectl.TRANSITIONS.items():
        if event not in ("retry", "cancel"):
            assert not set(moves) & set(queuectl.FINAL), event
    assert "completed" not in queuectl.TRANSITIONS["cancel"]


# ---- counts ----------------------------------------------------------------------------------------

def test_the_tally_agrees_with_the_rows_after_a_random_life(store):
    dice = random.Random(7)
    store.enqueue_many([{"command": "true", "max_retries": 1, "backoff_base": 0} for _ in range(60)])
    for _ in range(250):
        job = claim(store, dice.randrange(5))
        if job is None:
            break
        finish(store, job, dice.choice(["completed", "failed", "released", "crashed", "timeout"]))
        if dice.random() < 0.1:
            dead = store.look.jobs(["dead"], 1)
            if dead:
                dice.choice([store.life.retry, store.keep.purge, store.life.cancel])([dead[0].id])
    counted = dict(store.db.connection.execute("SELECT state, count(*) FROM job GROUP BY state").fetchall())
    assert {state: n for state, n in store.queues.counts().items() if n} == counted
    assert store.db.connection.execute("SELECT uses FROM env").fetchall() == [(sum(counted.values()),)]


# ---- plans: an index seek, whatever the depth ----------------------------------------------------------

def statements(store, action):
    """Every distinct SELECT, UPDATE, DELETE that an action runs."""
    seen = []
    store.db.connection.set_trace_callback(seen.append)
    action()
    store.db.connection.set_trace_callback(None)
    return [sql for sql in dict.fromkeys(seen) if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT)", sql)]


def plans(store, sqls):
    for sql in sqls:
        for row in store.db.connection.execute("EXPLAIN QUERY PLAN " + sql).fetchall():
            yield sql, row[-1]


def test_the_claim_is_an_index_seek_without_scan_or_sort(store):
    store.enqueue_many(["true"] * 50)
    store.enqueue_many([{"command": "true", "delay": 1000}] * 50)
    job = claim(store)
    sqls = statements(store, lambda: store.claims.finish_and_claim(1, outcome(job)))
    assert any("job_ready" in sql for sql in sqls)
    details = list(plans(store, sqls))
    assert any("USING INDEX job_ready" in detail or "USING COVERING INDEX job_ready" in detail for _, detail in details)
    for sql, detail in details:
        assert not re.search(r"SCAN (TABLE )?(job|history|env|dep|batch)\b(?! USING)", detail), (detail, sql)
        if "TEMP B-TREE" in detail:  # sorts the best job of each queue: a row per queue, not per job
            assert "FROM queue JOIN job" in sql


@pytest.mark.parametrize("kind", ["failed", "released", "crashed", "timeout"])
def test_every_outcome_is_index_seeks(store, kind):
    store.enqueue_many(["true"] * 20)
    job = claim(store)
    for sql, detail in plans(store, statements(store, lambda: store.claims.finish_and_claim(1, outcome(job, kind)))):
        assert not re.search(r"SCAN (TABLE )?(job|history|env|dep|batch)\b(?! USING)", detail), (detail, sql)


def test_looking_does_not_read_every_job(store):
    store.enqueue_many(["true"] * 20)
    looks = {"counts": store.queues.counts, "job": lambda: store.look.job(3), "history": lambda: store.look.history(3),
             "dead": lambda: store.look.jobs(["dead"], 50), "newest": lambda: store.look.jobs((), 50), "tidy": lambda: store.keep.tidy(0),
             "oldest": store.look.oldest_waiting, "next": store.claims.next_time, "ready": lambda: store.claims.ready(4)}
    for name, look in looks.items():
        for sql, detail in plans(store, statements(store, look)):
            bounded = "LIMIT" in sql and "ORDER BY id DESC" in sql  # walks the rowid from the end, stops at the limit
            assert bounded or not re.search(r"SCAN (TABLE )?(job|history)\b(?! USING)", detail), (name, detail, sql)
            assert "TEMP B-TREE" not in detail or "FROM tally" in sql, (name, detail, sql)


@pytest.mark.slow
def test_a_claim_costs_the_same_behind_a_million_jobs(tmp_path):
    def cost(store):
        return steps(store, lambda: [finish(store, claim(store)) for _ in range(50)])

    shallow = queuectl.Store(str(tmp_path / "shallow.db"))
    shallow.enqueue_many(["true"] * 2000)
    deep = queuectl.Store(str(tmp_path / "deep.db"))
    deep.enqueue_many(["true"] * 1000000)
    assert 0 < cost(deep) <= 1.05 * cost(shallow)
    shallow.close()
    deep.close()


def test_what_another_process_has_just_retried_is_not_told_as_our_success(store, tmp_path):
    job = store.enqueue("true", max_retries=0)
    finish(store, claim(store), "failed", 1)
    real = store.life._each

    def late(*args):
        with queuectl.Store(store.db.path) as other:
            assert other.life.retry([job]) == [(job, "pending")]
        return real(*args)

    store.life._each = late
    assert store.life.retry([job]) == [(job, queuectl.PENDING_ALREADY)]


# ---- the file --------------------------------------------------------------------------------------

def test_a_newer_database_is_refused(tmp_path):
    path = tmp_path / "q.db"
    queuectl.Store(str(path)).close()
    connection = sqlite3.connect(str(path))
    connection.execute("PRAGMA user_version=%d" % (queuectl.SCHEMA_VERSION + 1))
    connection.close()
    with pytest.raises(queuectl.UserError, match="newer"):
        queuectl.Store(str(path))


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(str(path))
    connection.execute("CREATE TABLE mine(x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(queuectl.UserError):
        queuectl.Store(str(path))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.db"]


def test_an_empty_file_becomes_a_queue(tmp_path):
    path = tmp_path / "q.db"
    path.touch()
    with queuectl.Store(str(path)) as store:
        assert store.enqueue("true") == 1


def test_ids_are_autoincrement_and_integers(store):
    [sql] = store.db.connection.execute("SELECT sql FROM sqlite_master WHERE name='job'").fetchone()
    assert "id INTEGER PRIMARY KEY AUTOINCREMENT" in sql


def test_the_database_is_in_wal_mode(store):
    assert store.db.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_unknown_state_in_the_database_is_not_passed_on(store):
    store.enqueue("true")
    store.db.connection.execute("UPDATE job SET state='limbo'")
    with pytest.raises(sqlite3.DatabaseError):
        store.look.job(1)


# ---- side by side ------------------------------------------------------------------------------------

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import queuectl
store = queuectl.Store(sys.argv[2])
store.db.sync = False
me = int(sys.argv[3])
got = store.claims.finish_and_claim(me)
while got:
    job = got[0]
    print(job.id)
    got = store.claims.finish_and_claim(me, queuectl.Outcome(job, "completed", 0, None, None, job.started_at, 0.0))
"""


def test_processes_side_by_side_take_each_job_once(tmp_path):
    path = str(tmp_path / "q.db")
    with queuectl.Store(path) as store:
        store.enqueue_many(["true"] * 1500)
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(ROOT), path, str(n)], stdout=subprocess.PIPE)
               for n in range(1, 5)]
    taken = [int(number) for worker in workers for number in worker.communicate()[0].split()]
    assert sorted(taken) == list(range(1, 1501))
    assert [worker.returncode for worker in workers] == [0] * 4


@pytest.mark.broad
def test_sixteen_processes_may_create_one_database_at_once(tmp_path):
    path = str(tmp_path / "q.db")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import queuectl; q = queuectl.Store(sys.argv[2]); q.enqueue('true')"
    makers = [subprocess.Popen([sys.executable, "-S", "-c", code, str(ROOT), path], stderr=subprocess.PIPE) for _ in range(16)]
    assert [maker.communicate()[1] for maker in makers] == [b""] * 16
    with queuectl.Store(path) as store:
        assert store.queues.counts()["pending"] == 16


def test_a_database_locked_by_another_is_waited_for_and_then_told(tmp_path):
    path = str(tmp_path / "q.db")
    queuectl.Store(path).close()
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    with queuectl.Store(path, patience=0.3) as store:
        with pytest.raises((sqlite3.OperationalError, queuectl.UserError)):
            store.enqueue("true")
        timer = threading.Timer(0.5, lambda: holder.execute("COMMIT"))
        timer.start()
        store.db.patience = 10
        assert store.enqueue("true") == 1
        timer.join()
    holder.close()


def test_readers_do_not_stop_writers(tmp_path):
    path = str(tmp_path / "q.db")
    with queuectl.Store(path) as store:
        store.enqueue_many(["true"] * 10)
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM job").fetchone()
        store.db.patience = 0.5
        assert store.enqueue("true") == 11
        reader.close()


@posix_only("an open file cannot be replaced on Windows")
def test_a_database_that_was_replaced_is_not_written_to(tmp_path):
    path = str(tmp_path / "q.db")
    store = queuectl.Store(path)
    store.enqueue("true")
    os.rename(path, path + ".old")
    with pytest.raises((queuectl.QueueGone, queuectl.UserError)):
        store.enqueue("true")
    with queuectl.Store(path) as new:
        with pytest.raises((queuectl.QueueGone, queuectl.UserError, sqlite3.OperationalError)):
            store.enqueue("true")
        assert new.queues.counts()["pending"] == 0
    store.close()


def failure(database, sql):
    with pytest.raises(sqlite3.Error) as raised:
        database.execute(sql)
    return raised.value


def test_an_error_of_sqlite_means_the_same_by_its_code_and_by_its_words(tmp_path):
    one, other = (sqlite3.connect(str(tmp_path / "a.db"), timeout=0, isolation_level=None) for _ in range(2))
    one.execute("CREATE TABLE kept(a)")
    reader = sqlite3.connect("file:%s?mode=ro" % (tmp_path / "a.db").as_posix(), uri=True)
    one.execute("BEGIN IMMEDIATE")
    (tmp_path / "text.db").write_bytes(b"no database" * 400)
    text, small = sqlite3.connect(str(tmp_path / "text.db")), sqlite3.connect(":memory:")
    small.execute("PRAGMA max_page_count=2")
    small.execute("CREATE TABLE first(a)")
    errors = [(queuectl.BUSY, failure(other, "BEGIN IMMEDIATE")), (queuectl.NO_TABLE, failure(other, "SELECT * FROM missing")),
              (queuectl.FOREIGN_FILE, failure(text, "SELECT * FROM missing")), (queuectl.FULL, failure(small, "CREATE TABLE second(a)"))]
    one.execute("ROLLBACK")
    errors.append((queuectl.READ_ONLY, failure(reader, "INSERT INTO kept VALUES(1)")))
    for kind, error in errors:
        assert queuectl.sqlite_fault(error) == kind, error
        assert queuectl.sqlite_fault(type(error)(str(error))) == kind, error  # as before Python 3.11, without a code
    for error in (failure(other, "SELECT missing"), queuectl.WrongValue("a job is busy"), OSError(0, "is locked by another process")):
        assert queuectl.sqlite_fault(error) == 0, error
    for database in (one, other, reader, text, small):
        database.close()


def test_the_text_of_a_fresh_schema_needs_no_parsing(store):
    # It is compared at each start: what is not the same to the letter is taken apart.
    stored = dict(store.db.read("SELECT name, sql FROM sqlite_master"))
    assert {name: stored[name] for name in queuectl.schema_texts()} == queuectl.schema_texts()


def test_a_record_is_made_and_changed_like_a_namedtuple():
    Point = queuectl.record("Point", "x y z", defaults=(0, 0))
    assert Point(1) == Point(x=1) == Point(1, 0, z=0) == Point._make([1, 0, 0]) == (1, 0, 0)
    assert (Point(1, z=5).z, Point(1)._replace(y=7), Point(1)._asdict()) == (5, (1, 7, 0), {"x": 1, "y": 0, "z": 0})
    assert repr(Point(1, "a")) == "Point(x=1, y='a', z=0)" and not hasattr(Point(1), "__dict__")
    for wrong in (lambda: Point(), lambda: Point(1, 2, 3, 4), lambda: Point(1, x=1), lambda: Point(1, w=1),
                  lambda: Point(1)._replace(w=1)):
        with pytest.raises(TypeError):
            wrong()
