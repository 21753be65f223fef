"""export and import: a round trip without loss, and no half of it."""
from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import WINDOWS, wait_until
from jobs import api, contents, work_off


def rich(queue):
    """A queue that has something of everything."""
    work_off(queue, {"command": "echo done", "name": "first"}, {"command": "exit 3", "env": {"SECRET": "\u00e9=\n1"}})
    queue.cli("config", "set", "max_retries", 9)
    queue.cli("enqueue", "--file", "-", binary=True, stdin=b"echo %s bytes\n" % (b"no" if WINDOWS else b"\xff\xfe") + "echo \u65e5\u672c \u2028\n".encode() + b'''{"command": "echo child", "after": "p"}
{"command": "sleep 1", "id": "p", "queue": "mail", "priority": -3, "timeout": "90m", "key": "k", "retry_on": "1,3-5", "at": "2040-01-01"}
{"command": "echo kept back", "hold": true, "unique": "u", "key": "k", "slots": 3, "ttl": "400d", "backoff": "linear"}''')
    queue.cli("cron", "add", "nightly", "30 2 * * *", "--tz", "Europe/Berlin" if sys.version_info >= (3, 9) else "UTC", "--no-overlap",
              "echo night")
    queue.cli("queue", "limit", "mail", 2), queue.cli("queue", "rate", "mail", "10/m"), queue.cli("queue", "pause", "mail")
    queue.cli("cancel", queue.enqueue("exit 0"))
    queue.cli("rm", queue.enqueue("exit 0"), check=False)
    queue.cli("rm", "last", check=False)
    return queue


def test_export_and_import_are_a_round_trip_without_loss(queue):
    rich(queue)
    newest = queue.enqueue("exit 0")
    queue.cli("cancel", newest), queue.cli("rm", newest)
    exported = queue.cli("export", binary=True).stdout
    assert all(isinstance(json.loads(line), dict) for line in exported.splitlines())
    other = queue.dir / "other.db"
    assert "jobs" in queue.run([*queue.program, "--db", str(other), "import", "-"], stdin=exported, binary=True).stdout.decode()
    before, after = contents(queue.db), contents(other)
    for table in before:
        assert after[table] == before[table], table
    assert queue.run([*queue.program, "--db", str(other), "export"], binary=True).stdout == exported
    ids = [int(queue.run([*queue.program, "--db", str(path), "enqueue", "exit 0"]).stdout) for path in (queue.db, other)]
    assert ids[0] == ids[1] > newest, "an id that was given before is given again"
    assert queue.run([*queue.program, "--db", str(other), "doctor"], check=False).stdout.count("is sound") == 1


def test_an_imported_queue_is_worked_on_and_what_ran_is_pending_again(queue):
    go = queue.dir / "go"
    running = queue.enqueue(*queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    child = queue.enqueue("--after", running, "echo child")
    queue.start(1)
    queue.wait_for(running, "processing")
    exported = queue.cli("export").stdout
    queue.stop("--now")
    go.touch()
    other = str(queue.dir / "other.db")
    queue.run([*queue.program, "--db", other, "import", "-"], stdin=exported)
    jobs = json.loads(queue.run([*queue.program, "--db", other, "list", "--json"]).stdout)
    assert [(job["id"], job["state"], job["attempts"]) for job in jobs] == [(child, "pending", 0), (running, "pending", 0)]
    queue.run([*queue.program, "--db", other, "worker", "start", "--foreground", "--drain"])
    assert queue.run([*queue.program, "--db", other, "logs", str(child)]).stdout == "child\n"


@pytest.mark.slow
def test_export_is_of_one_moment_though_workers_go_on(queue):
    with api(queue) as store:
        store.enqueue_many(["exit 0"] * 400)
    worker = queue.beside("worker", "start", "--count", 2, "--foreground", "--drain")
    wait_until(lambda: queue.sql("SELECT count(*) FROM history")[0][0] > 5)
    exported = queue.cli("export").stdout
    assert worker.ends(60) == 0
    rows = [json.loads(line) for line in exported.splitlines()]
    done = {row["row"]["id"] for row in rows if row["table"] == "job" and row["row"]["state"] == "completed"}
    assert done == {row["row"]["job"] for row in rows if row["table"] == "history"} and 0 < len(done) < 400
    other = str(queue.dir / "other.db")
    queue.run([*queue.program, "--db", other, "import", "-"], stdin=exported)
    assert queue.run([*queue.program, "--db", other, "doctor"], check=False).stdout.count("is sound") == 1


@pytest.mark.slow
def test_import_refuses_what_is_no_whole_export_and_leaves_the_queue_as_it_was(queue):
    rich(queue)
    lines = queue.cli("export").stdout.splitlines(keepends=True)
    other = str(queue.dir / "other.db")

    def imported(text):
        return queue.run([*queue.program, "--db", other, "import", "-"], stdin=text, check=False)

    for text, word in (("".join(lines[:-1]), "cut short|end"), ("".join(lines[:5] + ["{}\n"] + lines[5:]), "line 6"),
                       ("".join(lines)[:-9], "line"), ("".join(lines).replace('"state": "completed"', '"state": "banana"'), "banana|line"),
                       ("".join(lines).replace('"table": "config"', '"table": "sqlite_master"'), "line"), ("", "export|empty|cut"),
                       ("hello\n", "line 1"), ("".join(lines).replace('"created_at"', '"created_at) --"'), "line"),
                       ("".join(lines[:3] + lines[4:]), "cut short|rows|missing|end")):
        done = imported(text)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and re.search(word, done.stderr), (text[-200:], done)
        assert json.loads(queue.run([*queue.program, "--db", other, "list", "--json"]).stdout) == []
    assert imported("".join(lines)).returncode == 0
    assert imported("".join(lines)).returncode == 2  # it holds jobs already


def test_a_job_that_was_to_be_cancelled_when_it_was_exported_runs_as_any_other(queue):
    """What was asked of the running attempt is not asked of the next one."""
    queue.cli("config", "set", "max_retries", 0)
    job = queue.enqueue("exit 3")
    rows = [json.loads(line) for line in queue.cli("export").stdout.splitlines()]
    for row in rows:
        if row["table"] == "job":
            row["row"].update(state="processing", gate=None, worker=1, cancel=1, attempt=1, attempts=1, started_at=1.0)
    other = queue.dir / "other.db"
    program = [*queue.program, "--db", str(other)]
    queue.run([*program, "import", "-"], stdin="".join(json.dumps(row) + "\n" for row in rows))
    queue.run([*program, "worker", "start", "--foreground", "--drain"], check=False)
    assert json.loads(queue.run([*program, "show", str(job), "--json"]).stdout)["state"] == "dead"
