"""A queue that an earlier release made: it opens, is migrated in one transaction, and goes on where it was."""
from __future__ import annotations

import os
import re
import shutil
import sqlite3

import pytest
from conftest import ROOT, SCRIPT

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]
OLD = sorted((ROOT / "tests" / "data").glob("queue-*.db"))


@pytest.fixture(params=OLD, ids=lambda path: path.stem)
def old(request, tmp_path):
    """A copy of a database as that release left it: jobs in every state and behind every gate, one whose worker was killed."""
    return str(shutil.copy(request.param, tmp_path / "queue.db"))


def schema(path):
    """Every table's columns, and the text of every index and trigger, as values that two databases can be compared by."""
    database = sqlite3.connect(str(path))
    tables = [name for name, in database.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
    columns = {table: sorted(row[1:] for row in database.execute("PRAGMA table_info(%s)" % table)) for table in tables}
    texts = {name: re.sub(r"\s+", " ", re.sub("--.*", "", text)) for name, text in database.execute(
        "SELECT name, sql FROM sqlite_master WHERE type IN ('index', 'trigger', 'view') AND sql IS NOT NULL")}
    database.close()
    return columns, texts


def rows(path, sql):
    database = sqlite3.connect(str(path))
    found = database.execute(sql).fetchall()
    database.close()
    return found


def test_a_migrated_database_has_the_schema_of_a_fresh_one(old, tmp_path):
    queuectl.Store(old).close()
    queuectl.Store(str(tmp_path / "fresh.db")).close()
    assert schema(old) == schema(tmp_path / "fresh.db")
    assert rows(old, "PRAGMA user_version")[0][0] & 255 == queuectl.SCHEMA_VERSION


def test_a_migration_keeps_every_job_its_state_and_its_history(old):
    facts = ("SELECT id, state, gate, queue, priority, command, name, key, unique_key, attempts, max_retries, batch FROM job",
             "SELECT seq, job, attempt, state, worker, pid, started_at, finished_at, duration, outcome, exit_code FROM history", "SELECT * FROM env", "SELECT * FROM dep", "SELECT * FROM keylock", "SELECT * FROM batch",
             "SELECT * FROM config", "SELECT name, max_running, rate FROM queue", "SELECT queue, state, n FROM tally",
             "SELECT name, spec, every, options FROM schedule")
    before = [rows(old, sql) for sql in facts]
    assert {row[1] for row in before[0]} == {"pending", "processing", "completed", "dead", "cancelled"}
    queuectl.Store(old).close()
    assert [rows(old, sql) for sql in facts] == before


def test_a_signal_that_stood_in_words_is_a_number_afterwards_and_every_other_error_stays(old):
    ends = "SELECT exit_code, error FROM job WHERE error IS NOT NULL", "SELECT exit_code, error FROM history WHERE error IS NOT NULL"
    before = [rows(old, sql) for sql in ends]
    assert all((None, "signal 9 (SIGKILL)") in found for found in before)
    with queuectl.Store(old) as store:
        job = store.look.job(3)
        assert (job.signal, job.error) == (9, None)
        told = "signal 9 (SIGKILL)" if os.name == "posix" else "signal 9"  # Windows has no names of signals
        assert (job.to_dict()["exit_code"], job.to_dict()["error"]) == (None, told)
        assert [(attempt.signal, attempt.error) for attempt in store.look.history(3)] == [(9, None)] * 2
        assert {event["error"] for event in store.look.events() if event["job"] == 3} == {told}
    for sql, found in zip(ends, before):
        assert rows(old, sql) == [end for end in found if end[1] != "signal 9 (SIGKILL)"]


def test_an_export_of_an_earlier_release_is_read_as_a_migration_reads_it(old, tmp_path):
    database = sqlite3.connect(old)
    database.row_factory = sqlite3.Row
    found = [(table, dict(row)) for table in ("env", "queue", "batch", "job", "history")
             for row in database.execute("SELECT * FROM " + table)]
    database.close()
    with queuectl.Store(str(tmp_path / "new.db")) as store:
        store.keep.restore([(1, table, row) for table, row in found] + [(1, "end", {"rows": len(found)})])
        assert (store.look.job(3).signal, store.look.job(3).error) == (9, None)


def test_jobs_of_on_dead_are_marked_as_such_and_no_longer_as_a_schedules(old):
    queuectl.Store(old).close()
    assert rows(old, "SELECT id, schedule, hook FROM job WHERE id IN (4, 5) OR hook IS NOT NULL") == [
        (4, None, "on_dead"), (5, None, "on_dead")]
