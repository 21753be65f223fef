"""Values that somebody else wrote: a database in which every text is hostile, rows of wrong types, triggers and views."""
from __future__ import annotations

import json
import os
import re
import select
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROOT, posix_only

queuectl = pytest.importorskip("queuectl")

# A title, a cleared screen, a colour, C1's CSI, bidi, a line of its own, DEL, bytes that are not UTF-8 once in a name.
POISON = "\x1b]0;pwned\x07\x1b[2J\x1b[31mRED\x9b31m\u202egnp\u2066\r\n\x0bFAKE line\u2028FAKE\x7f\t\u200b"
NOT_TEXT = {"state", "backoff", "misfire", "kind", "spec", "options", "hook"}  # words that a program reads; wrong ones are refused


def poisoned(path):
    """Makes a queue with a row in each table, and puts POISON into every column of text; returns the columns that have it."""
    with queuectl.Queue(str(path)) as queue:
        queue.enqueue_many([{"command": "exit %d" % n, "name": "n%d" % n, "queue": "q%d" % n, "key": "k%d" % n, "unique": "u%d" % n,
                             "retry_on": "1", "dead_on": "2", "snooze_on": "3", "cwd": str(path.parent)} for n in range(1, 8)], label="batch")
        queue.add_schedule("nightly", "* * * * *", None, {"command": "x"})
        queue.set_queue("q1", rate="1/h", every=3600, paused=1)
        queue.set_config("on_dead", "true")
        queue.set_config("on_idle", "true")
    db = sqlite3.connect(str(path))
    states = ("pending", "processing", "completed", "failed", "dead", "cancelled")
    for number, state in enumerate(states, 1):
        db.execute("UPDATE job SET state=?, gate=?, worker=?, error='why', schedule='s', attempt=1, attempts=1, started_at=1, finished_at=2, "
                   "duration=1 WHERE id=?", (state, {"pending": 2, "failed": 1}.get(state), 1 if state == "processing" else None, number))
        db.execute("INSERT INTO history(job, attempt, state, worker, pid, started_at, finished_at, duration, outcome, error) "
                   "VALUES(?, 1, ?, 1, 1, 1, 2, 1, 'failed', 'why')", (number, state))
    db.execute("INSERT INTO supervisor(id, pid, port, token, slots, queues, kind, started_at, arguments) "
               "VALUES(1, 1, 9, 't', 1, '/q/', 'start', 1, 'a')")
    db.execute("INSERT INTO worker(id, supervisor, pid, machine, started_at, note) VALUES(1, 1, 1, 'm', 1, 'n')")
    db.execute("UPDATE schedule SET tz=NULL, error='why', options=?", (json.dumps(
        {"command": POISON}),))
    done = []
    for table, in db.execute("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'").fetchall():
        for column in db.execute("PRAGMA table_info(%s)" % table).fetchall():
            if column[2] == "TEXT" and column[1] not in NOT_TEXT and (table, column[1]) not in (("config", "key"), ("schedule", "tz")):
                for rowid, in db.execute("SELECT %s FROM %s WHERE %s IS NOT NULL" % (
                        "rowid" if table not in ("keylock", "tally", "config") else column[1], table, column[1])).fetchall():
                    where = "rowid=?" if table not in ("keylock", "tally", "config") else column[1] + "=?"
                    unique = POISON if table == "config" or column[1] == "queue" else "%s%s" % (POISON, rowid)
                    db.execute("UPDATE OR IGNORE %s SET %s=? WHERE %s" % (table, column[1], where), (unique, rowid))
                done.append((table, column[1]))
    db.commit()
    db.close()
    return done


JOBS = [[], ["3"], ["1-9"]]
# Every command, as its words are given; `run`, workers and what never ends have tests of their own.
WALK = {
    "enqueue": [["echo", POISON], ["--queue", POISON, "x"], ["--after", POISON, "x"], ["--name", POISON, "x"], ["--batch"]],
    "status": [[], ["--json"]], "list": [[], ["--json"], ["--tree"], ["--columns", ",".join(queuectl.COLUMNS)], ["--name", POISON]],
    "show": [[str(n)] for n in range(1, 8)] + [["3", "--json"], [POISON]], "logs": [["3"], [POISON], ["1-6"]],
    "explain": [[str(n)] for n in range(1, 8)] + [["1", "--json"]], "wait": [["3-6"], ["--state", POISON], ["1", "--timeout", "0.01"]],
    "top": [[], ["--once"]], "stats": [[], ["--json"], ["--since", POISON]], "events": [[]],
    "cancel": JOBS + [["1", "--dry-run"]], "hold": JOBS, "release": JOBS, "edit": [["1", "--command", POISON], ["3", "--priority", "2"]],
    "retry": JOBS + [["5", "--dry-run"]], "rm": JOBS + [["3", "--dry-run"]], "prune": [["--all", "--dry-run"], ["--all"]],
    "dlq list": [[], ["--json"]], "dlq retry": [["--all", "--dry-run"], ["--all"], ["3"]], "dlq purge": [["--all", "--dry-run"], ["--all"]],
    "worker list": [[], ["--json"]], "worker scale": [["2"]], "worker restart": [[]], "worker stop": [["--now"]],
    "service": [["systemd"], ["launchd"], ["windows"], [POISON]],
    "queue list": [[], ["--json"]], "queue pause": [["--all"], [POISON]], "queue resume": [["--all"]], "queue limit": [[POISON, "1"], ["q", POISON]],
    "queue rate": [[POISON, "1/m"], ["q", POISON]], "batch list": [[], ["--json"]], "batch show": [["1"], ["1", "--json"], [POISON]],
    "cron add": [["n", POISON, "x"], [POISON, "* * * * *", "x"], ["n", "* * * * *", POISON], ["--tz", POISON, "n", "* * * * *", "x"]],
    "cron list": [[], ["--json"]], "cron pause": [[POISON], ["SCHEDULE"]], "cron resume": [["SCHEDULE"]], "cron rm": [["SCHEDULE"]],
    "cron run": [["SCHEDULE"]], "config list": [[], ["--json"]], "config get": [["on_dead"], [POISON]],
    "config set": [["on_dead", POISON], ["timeout", POISON]], "config unset": [["on_dead"], [POISON]],
    "backup": [[POISON], ["queue.db"]], "doctor": [[], ["--json"], ["--fix"]], "export": [[]], "import": [[POISON], ["queue.db"]],
    "install": [[], ["--uninstall"]], "completion": [["bash"], [POISON]],
    "_complete": [["show", ""], ["batch", "show", ""], ["queue", "pause", ""], ["cron", "rm", ""], ["list", "--queue", ""]],
}
WAITING = {"worker start", "run", "_worker"}  # tried below, or started by no person

# Runs every call in one process, which writes a line before each: stdout and stderr are what the test gave it.
WALKER = """
import os, shutil, signal, sys
sys.path.insert(0, sys.argv[1])
import queuectl
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, end)
for words in eval(sys.stdin.readline()):
    for suffix in ("-wal", "-shm"):
        if os.path.exists("queue.db" + suffix): os.unlink("queue.db" + suffix)
    shutil.copyfile("master.db", "queue.db")
    sys.argv[0] = os.path.abspath("queuectl.py")
    signal.setitimer(signal.ITIMER_REAL, 0.5 if words[0] == "wait" or words[:2] == ["worker", "stop"] else 20)
    status = queuectl.main(["--db", os.path.abspath("queue.db")] + words)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.flush()
    os.write(1, b"=== status %d\\n" % status)
"""


def calls(schedule):
    for command in queuectl.COMMANDS:
        name = " ".join(command.words)
        assert name in WALK or name in WAITING, "%s has no row in WALK: add how it is called" % name
        for arguments in WALK.get(name, ()):
            yield [*command.words, *(schedule if word == "SCHEDULE" else word for word in arguments)]


def walk(queue, on_terminal, **env):
    """(words, status, what was printed) of each call, in a folder whose name is as hostile as the database."""
    folder = queue.dir / (POISON.replace("/", "") + "folder")
    folder.mkdir()
    columns = poisoned(folder / "master.db")
    assert {("batch", "label"), ("worker", "note"), ("job", "error"), ("config", "value"), ("queue", "name"), ("history", "error")} <= set(columns)
    with sqlite3.connect(str(folder / "master.db")) as db:
        [[schedule]] = db.execute("SELECT name FROM schedule").fetchall()
        db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    shutil.rmtree(str(folder / "master.db.d"), ignore_errors=True)
    asked = list(calls(schedule))
    parent, child = os.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen([sys.executable, "-c", WALKER, str(ROOT)], cwd=str(folder), stdin=subprocess.PIPE, stdout=child, stderr=child,
                               env=queue.environment(dict({"TERM": "xterm", "COLUMNS": "300"}, **env)))
    os.close(child)
    process.stdin.write(repr(asked).encode() + b"\n")
    process.stdin.close()
    data, limit = b"", time.monotonic() + 120
    while time.monotonic() < limit:
        if select.select([parent], [], [], 1)[0]:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # the terminal has no holder any more
                break
            if not chunk:
                break
            data += chunk
    os.close(parent)
    process.wait(10)
    pieces = re.split(r"=== status (\d+)\r?\n", data.decode("utf-8", "surrogateescape"))
    assert len(pieces) // 2 == len(asked), pieces[-1][-3000:]
    return list(zip(asked, map(int, pieces[1::2]), pieces[::2]))


def raw_in(text):
    """What a terminal would obey, or a reader be deceived by."""
    return sorted({c for c in text if not c.isprintable() and c not in "\n\u3000\xa0"})


@posix_only("names of files that hold control characters, and a pty")
@pytest.mark.parametrize("on_terminal", (False, True), ids=("pipe", "terminal"))
def test_no_command_prints_a_hostile_value_raw(queue, on_terminal):
    for words, status, text in walk(queue, on_terminal, NO_COLOR="1"):
        if on_terminal:
            text = text.replace("\r\n", "\n")
            text = re.sub(r"\r\x1b\[K|\x1b\[(\?1049[hl]|\?25[hl]|H|K|J)", "", text)  # what we draw progress and `top` with
        assert raw_in(text) == [], (words, text)
        assert not re.search(r"(?m)^FAKE", text), (words, text)
        assert "Traceback" not in text, (words, text)
        assert status in (0, 1, 2, 5, 124, 130), (words, status, text)


@posix_only("a pty")
def test_colours_on_a_terminal_are_ours_alone(queue):
    seen = set()
    for words, _, text in walk(queue, True):
        assert "\x1b[31mRED" not in text and "\x9b" not in text, (words, text)
        seen.update(re.findall(r"\x1b\[\d+m", text))
    assert "\x1b[31m" in seen and "\x1b[0m" in seen


@posix_only("names of files that hold control characters")
def test_run_and_workers_show_hostile_values_harmlessly(queue):
    folder = queue.dir / (POISON.replace("/", "") + "folder")
    folder.mkdir()
    db = str(folder / "queue.db")
    line = json.dumps({"command": "echo x; exit 1 # " + POISON, "max_retries": 0})
    done = queue.run([*queue.program, "--db", db, "run", "--file", "-", "--junit", "out.xml"], stdin=line, check=False)
    assert done.returncode == 1 and raw_in(done.stdout + done.stderr) == []
    xml = (queue.dir / "out.xml").read_text("utf-8")
    assert raw_in(xml) == [] and "FAKE" in xml
    queue.run([*queue.program, "--db", db, "enqueue", "--file", "-"], stdin=line)
    done = queue.run([*queue.program, "--db", db, "worker", "start", "--foreground", "--drain"])
    assert "dead" in done.stdout and raw_in(done.stdout + done.stderr) == []


@pytest.mark.parametrize("kind", queuectl.SERVICES)
@pytest.mark.parametrize("bad", ("a\nExecStartPre=touch pwned", "a\rb", "a\x1b[2J", "\u202egnp", "a\x85b", "\udcff", "a\u2028b"),
                         ids=("line", "return", "escape", "bidi", "C1", "bytes", "separator"))
def test_a_service_refuses_a_path_that_its_format_cannot_hold(kind, bad):
    with pytest.raises(queuectl.UserError, match="can't hold"):
        queuectl.refuse_unwritable(kind, ["/usr/bin/python3", "--db", "/tmp/%s.db" % bad])
    queuectl.refuse_unwritable(kind, ["/usr/bin/python3", "--db", "/tmp/é \u3000.db"])


@posix_only("names of files that hold line breaks")
def test_a_line_break_in_the_databases_path_adds_no_line_to_a_unit(queue):
    done = queue.run([*queue.program, "--db", str(queue.dir / "a\nExecStartPre=touch pwned"), "service", "systemd"], check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "--db" in done.stderr


def test_what_a_format_would_replace_is_refused_in_it():
    for kind, words in (("windows", ["python.exe", "--db", "C:\\%TEMP%\\q.db"]), ("windows", ["python.exe", "--db", "C:\\$(Arg0).db"]),
                        ("systemd", ["/opt/$x/python3", "--db", "/q.db"])):
        with pytest.raises(queuectl.UserError, match="can't hold"):
            queuectl.refuse_unwritable(kind, words)
    queuectl.refuse_unwritable("windows", ["python.exe", "--db", "C:\\100%.db"])


@posix_only("a launcher for sh")
@pytest.mark.parametrize("path", ("/opt/a\nb/python3", "/opt/a b/$(touch pwned)/python3", "/opt/a b/`x`/python3", "/opt/a \"b/python3"))
def test_install_refuses_a_python_whose_path_a_launcher_cannot_name(monkeypatch, path):
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(queuectl.UserError, match="launcher"):
        queuectl.OS.launcher("/folder")
