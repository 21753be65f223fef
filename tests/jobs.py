"""Queues with jobs that have ended, and commands in the test's own process."""
from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from conftest import LiveQueue


def call(queue, *words):
    """A command in this process: (status, stdout, stderr). For what starts nothing."""
    done = queue.look([str(word) for word in words])
    return done.returncode, done.stdout, done.stderr


def api(queue):
    import queuectl
    return queuectl.Store(str(queue.db))


def change(queue, statement, *values):
    """Puts the database into a shape that would take days to come by."""
    connection = sqlite3.connect(str(queue.db), timeout=10)
    with connection:
        connection.execute(statement, values)
    connection.close()


def contents(path):
    """{table: its rows} of a database, without what belongs to the workers of the moment."""
    connection = sqlite3.connect(str(path))
    try:
        tables = {name for name, in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        return {table: sorted(connection.execute("SELECT * FROM " + table), key=repr) for table in tables - {"worker", "supervisor"}}
    finally:
        connection.close()


def states(queue):
    return dict(queue.sql("SELECT id, state FROM job"))


def work_off(queue, *jobs):
    """Runs jobs (commands or dicts) to their end and returns their ids; each fails at most once."""
    lines = [json.dumps(dict({"max_retries": 0}, **(job if isinstance(job, dict) else {"command": job}))) for job in jobs]
    before = max([0] + list(states(queue))) if queue.db.exists() else 0
    done = queue.cli("run", "--count", 2, "--file", "-", stdin="\n".join(lines), check=False)
    assert done.returncode in (0, 1), done.stderr
    return [before + 1 + n for n in range(len(jobs))]


@pytest.fixture(scope="module")
def nine_jobs(tmp_path_factory):
    """A queue made once, which each test that wants it gets a copy of."""
    queue = LiveQueue(tmp_path_factory.mktemp("nine"))
    work_off(queue, {"command": "exit 0", "name": "nightly-1"}, "exit 0", "exit 0", {"command": "exit 1", "queue": "mail"},
             {"command": "exit 2", "name": "nightly-2"})
    with api(queue) as store:
        store.life.cancel([store.enqueue("exit 0")])
        store.enqueue_many([{"command": "exit 0", "name": "nightly-3"}, {"command": "exit 0", "queue": "mail"}, "exit 0"], label="later")
    assert list(states(queue).values()) == ["completed"] * 3 + ["dead"] * 2 + ["cancelled"] + ["pending"] * 3
    return queue


@pytest.fixture
def mixed(queue, nine_jobs):
    """Jobs 1-3 completed (one named), 4-5 dead (one in queue mail), 6 cancelled, 7-9 pending (one named, one in mail), in batches."""
    shutil.copytree(str(nine_jobs.files), str(queue.files))
    shutil.copy(str(nine_jobs.db), str(queue.db))
    return queue
