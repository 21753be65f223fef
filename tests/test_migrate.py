"""A queue that an earlier release made: it opens, is migrated in one transaction, and goes on where it was."""
from __future__ import annotations

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
    facts = ("SELECT id, state, gate, queue, priority, command, name, key, unique_key, attempts, max_retries, batch, error FROM job",
             "SELECT * FROM history", "SELECT * FROM env", "SELECT * FROM dep", "SELECT * FROM keylock", "SELECT * FROM batch",
             "SELECT * FROM config", "SELECT name, max_running, rate FROM queue", "SELECT * FROM tally",
             "SELECT name, spec, every, options FROM schedule")
    before = [rows(old, sql) for sql in facts]
    assert {row[1] for row in before[0]} == {"pending", "processing", "completed", "dead", "cancelled"}
    queuectl.Store(old).close()
    assert [rows(old, sql) for sql in facts] == before


def test_jobs_of_on_dead_are_marked_as_such_and_no_longer_as_a_schedules(old):
    queuectl.Store(old).close()
    assert rows(old, "SELECT id, schedule, hook FROM job WHERE id IN (4, 5) OR hook IS NOT NULL") == [
        (4, None, "on_dead"), (5, None, "on_dead")]
