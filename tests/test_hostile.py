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
from conftest import LiveQueue, ROOT, posix_only, wait_until
from life import add_schedule

queuectl = pytest.importorskip("queuectl")

# A title, a cleared screen, a colour, C1's CSI, bidi, a line of its own, DEL, bytes that are not UTF-8 once in a name.
POISON = "\x1b]0;pwned\x07\x1b[2J\x1b[31mRED\x9b31m\u202egnp\u2066\r\n\x0bFAKE line\u2028FAKE\x7f\t\u200b"
NOT_TEXT = {"state", "backoff", "misfire", "kind", "spec", "options", "hook"}  # words that a program reads; wrong ones are refused


def poisoned(path):
    """Makes a queue with a row in each table, and puts POISON into every column of text; returns the columns that have it."""
    with queuectl.Store(str(path)) as queue:
        queue.enqueue_many([{"command": "exit %d" % n, "name": "n%d" % n, "queue": "q%d" % n, "key": "k%d" % n, "unique": "u%d" % n,
                             "retry_on": "1", "dead_on": "2", "snooze_on": "3", "cwd": str(path.parent)} for n in range(1, 8)], label="batch")
        add_schedule(queue, "nightly", "* * * * *", None, {"command": "x"})
        queue.queues.set("q1", rate="1/h", every=3600, paused=1)
        queue.settings.set("on_dead", "true")
        queue.settings.set("on_idle", "true")
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
    for table, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'").fetchall():
        for column in db.execute("PRAGMA table_info(%s)" % table).fetchall():
            if column[2] == "TEXT" and column[1] not in NOT_TEXT and (table, column[1]) not in (("config", "key"), ("schedule", "tz"), ("schedule", "rule")):
                rowid = "rowid" if "WITHOUT ROWID" not in sql else column[1]
                for number, in db.execute("SELECT %s FROM %s WHERE %s IS NOT NULL" % (rowid, table, column[1])).fetchall():
                    text = POISON if table == "config" or column[1] == "queue" else "%s%s" % (POISON, number)
                    db.execute("UPDATE OR IGNORE %s SET %s=? WHERE %s=?" % (table, column[1], rowid), (text, number))
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
    "metrics": [[], ["--alerts"]],
    "cancel": JOBS + [["1", "--dry-run"]], "hold": JOBS, "release": JOBS, "edit": [["1", "--command", POISON], ["3", "--priority", "2"]],
    "retry": JOBS + [["5", "--dry-run"]], "rm": JOBS + [["3", "--dry-run"], ["--all", "--dry-run"], ["--all"]],
    "dlq list": [[], ["--json"]], "dlq retry": [["--all", "--dry-run"], ["--all"], ["3"]], "dlq purge": [["--all", "--dry-run"], ["--all"]],
    "worker list": [[], ["--json"]], "worker scale": [["2"]], "worker restart": [[]], "worker stop": [["--now"]],
    "service": [["systemd"], ["launchd"], ["windows"], [POISON]],
    "queue list": [[], ["--json"]], "queue pause": [["--all"], [POISON]], "queue resume": [["--all"]], "queue limit": [[POISON, "1"], ["q", POISON]],
    "queue rate": [[POISON, "1/m"], ["q", POISON]], "queue set": [[POISON, "--engine-options", "x"], ["q", "--engine-options", POISON]],
    "engine test": [["slurm", POISON], [POISON]], "batch list": [[], ["--json"]], "batch show": [["1"], ["1", "--json"], [POISON]],
    "cron add": [["n", POISON, "x"], [POISON, "* * * * *", "x"], ["n", "* * * * *", POISON], ["--tz", POISON, "n", "* * * * *", "x"]],
    "cron edit": [["--cron", POISON, "n"], ["--timeout", "3s", POISON], ["--timeout", "3s", "SCHEDULE"]],
    "cron list": [[], ["--json"], ["--crontab"]], "cron load": [[POISON]], "cron pause": [[POISON], ["SCHEDULE"]], "cron resume": [["SCHEDULE"]], "cron rm": [["SCHEDULE"]],
    "cron run": [["SCHEDULE"]], "config list": [[], ["--json"]], "config get": [["on_dead"], [POISON]],
    "config set": [["on_dead", POISON], ["timeout", POISON]], "config unset": [["on_dead"], [POISON]],
    "backup": [[POISON], ["queue.db"]], "doctor": [[], ["--json"], ["--fix"]], "health": [[], ["--json"], ["--queue", POISON]], "export": [[]], "import": [[POISON], ["queue.db"]],
    "install": [[], ["--uninstall"]], "completion": [["bash"], [POISON]],
    "_complete": [["show", ""], ["batch", "show", ""], ["queue", "pause", ""], ["cron", "rm", ""], ["list", "--queue", ""]],
}
WAITING = {"worker start", "run", "web", "_worker", "_node"}  # tried below, or started by no person

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


@pytest.mark.sampled(2)
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


@pytest.mark.broad
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
    done = queue.run([*queue.program, "--db", db, "worker", "start", "--foreground", "--drain"], check=False)
    assert done.returncode == 1 and "dead" in done.stdout and raw_in(done.stdout + done.stderr) == []


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
    for name in ("executable", "_base_executable"):  # the second is what a virtual environment was made from
        monkeypatch.setattr(sys, name, path, raising=False)
    with pytest.raises(queuectl.UserError, match="launcher"):
        queuectl.OS.launcher("/folder")


# ---- rows of wrong types ---------------------------------------------------------------------------

def columns_of(path):
    """(table, column, declared type, key) of every column of a database, as SQLite tells it."""
    with sqlite3.connect(str(path)) as db:
        found = []
        for table, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'").fetchall():
            columns = db.execute("PRAGMA table_info(%s)" % table).fetchall()
            key = next(column[1] for column in columns if column[5] == 1) if "WITHOUT ROWID" in sql else "rowid"
            found += [(table, column[1], column[2], key) for column in columns]
    db.close()
    return found


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A queue with a row in every table, as its own commands make them; its workers are dead."""
    folder = tmp_path_factory.mktemp("sound")
    poisoned(folder / "poisoned.db")
    path = folder / "queue.db"
    with queuectl.Store(str(path)) as queue:
        queue.enqueue_many([{"command": "exit 0", "name": "n%d" % n, "key": "k%d" % n, "unique": "u%d" % n, "retry_on": "1", "dead_on": "2",
                             "snooze_on": "3", "snooze": 1, "ttl": 10**6, "timeout": 9} for n in range(1, 8)], label="batch")
        queue.enqueue_many([{"command": "exit 0", "after": ["n1"]}, {"command": "exit 0", "delay": 9}])
        add_schedule(queue, "nightly", "* * * * *", None, {"command": "x"})
        add_schedule(queue, "hourly", None, 3600.0, {"command": "x"})
        queue.queues.set("default", rate="9/s", every=1 / 9, max_running=5)
        queue.settings.set("max_retries", 4)
    with sqlite3.connect(str(path)) as db:
        with sqlite3.connect(str(folder / "poisoned.db")) as other:
            history = other.execute("SELECT * FROM history").fetchall()
        other.close()
        db.executemany("INSERT INTO history VALUES(%s)" % ", ".join("?" * len(history[0])), history)
        db.execute("UPDATE history SET worker=1, error='why'")
        for number, state in ((2, "processing"), (3, "completed"), (4, "failed"), (5, "dead"), (6, "cancelled")):
            db.execute("UPDATE job SET state=?, gate=?, worker=?, error='why', attempt=1, attempts=1, started_at=1, finished_at=2, duration=1, exit_code=1 "
                       "WHERE id=?", (state, 1 if state == "failed" else None, 1 if state == "processing" else None, number))
        db.execute("INSERT INTO supervisor(id, pid, port, token, slots, queues, kind, started_at, arguments) VALUES(1, 1, 9, 't', 1, '/q/', 'start', 1, '')")
        db.execute("INSERT INTO worker(id, supervisor, pid, machine, started_at, note) VALUES(1, 1, 1, 'm', 1, 'n')")
        db.execute("INSERT OR IGNORE INTO keylock VALUES('k1', 1)")
        db.execute("INSERT INTO followup(parent, state, child, last) VALUES(1, 'pending', 0, 0)")
        db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    return path


WRONG = {"text": "no number", "blob": b"\xff\x00", "huge": 2**63 - 1, "infinite": float("inf"), "negative": -10**15, "many": 10**15, "empty": "", "zero": 0,
         "odd": None}  # TEXT whose bytes are not valid, which only SQL can make
# One call of each way in which rows are read; each must end by itself, with an exit status of ours.
READERS = [["enqueue", "exit 0"], ["enqueue", "--unique", "u1", "--key", "k1", "x"], ["status"], ["list"], ["list", "--json"], ["list", "--tree"], ["show", "2"],
           ["show", "4"], ["explain", "1"], ["explain", "8"], ["logs", "--all-attempts", "3"], ["wait", "3", "5"], ["top", "--once"], ["stats"], ["events"],
           ["queue", "list"], ["batch", "list"], ["batch", "show", "1"], ["cron", "list"], ["config", "list"], ["worker", "list"], ["retry", "5"],
           ["cancel", "1"], ["edit", "1", "--priority", "3"], ["hold", "4"], ["rm", "3"], ["cron", "pause", "nightly"], ["config", "set", "timeout", "3"],
           ["queue", "pause", "default"], ["backup", "copy.db"], ["export"], ["doctor", "--json"]]


def command(words, capsys, db):
    status = queuectl.main(["--db", str(db)] + words)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return status, told.out, told.err


def spoil(sound, db, table, column, key, value):
    """A copy of the sound queue with one wrong value in each row of one column; None where SQLite itself refuses it."""
    for suffix in ("-wal", "-shm"):
        if os.path.exists(str(db) + suffix):
            os.unlink(str(db) + suffix)
    shutil.copyfile(str(sound), str(db))
    change = "UPDATE %s SET %s=%s WHERE %s=(SELECT %s FROM %s LIMIT 1)" % (
        table, column, "CAST(x'66ff' AS TEXT)" if value is None else "?", key, key, table)
    spoiled = sqlite3.connect(str(db), isolation_level=None)
    try:
        spoiled.execute(change, () if value is None else (value,))
    except sqlite3.Error:
        return False
    finally:
        spoiled.close()  # a connection that stays open keeps the -wal that the next copy takes away
    return True


def try_columns(sound, tmp_path, monkeypatch, capsys, most, chosen):
    """Tries `most` of READERS, which go round, on each chosen wrong value in each column; returns how many calls that were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    db, tried = tmp_path / "queue.db", 0
    for table, column, kind, key in columns_of(sound):
        for name, value in WRONG.items():
            for place in range(most if chosen(table, column, name) else 0):
                words = READERS[(tried + place) % len(READERS)] if most < len(READERS) else READERS[place]
                if not spoil(sound, db, table, column, key, value):
                    break
                begun = time.monotonic()
                status, out, err = command(words, capsys, db)
                where = (table, column, name, words, status, out[-300:], err)
                assert status in (0, 1, 2), where
                assert time.monotonic() - begun < 5, where
                assert "no space" not in err, where
                spent = (table, column, name) == ("history", "seq", "huge")  # no number is left for a change
                if words[0] == "enqueue" and not spent and table in ("supervisor", "worker", "config", "history", "batch", "schedule", "dep"):
                    assert status == 0, where  # a row of another table does not keep a job out
                if os.path.exists("copy.db"):
                    os.unlink("copy.db")
                tried += 1
    return tried


def test_a_wrong_value_in_any_column_is_told_in_one_line_and_blocks_no_enqueue(sound, tmp_path, monkeypatch, capsys):
    """A sample: the values and the commands go round with the columns.  The next test has many more."""
    names = sorted(WRONG)
    assert try_columns(sound, tmp_path, monkeypatch, capsys, 1,
                       lambda table, column, name: name == names[(len(table) + len(column)) % len(names)]) > 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_wrong_values_in_every_column_are_told_in_one_line(sound, tmp_path, monkeypatch, capsys):
    assert try_columns(sound, tmp_path, monkeypatch, capsys, 8, lambda *_: True) > 3000


@pytest.mark.sampled(2)
@pytest.mark.parametrize("value", [value if value in ("text", "huge") else pytest.param(value, marks=pytest.mark.slow) for value in sorted(WRONG)])
def test_doctor_names_and_mends_a_wrong_value_in_any_column(sound, tmp_path, monkeypatch, capsys, value):
    monkeypatch.chdir(tmp_path)
    db, repaired = tmp_path / "queue.db", 0
    for table, column, kind, key in columns_of(sound):
        if (hash_of(table + column) + len(value)) % 8 or not spoil(sound, db, table, column, key, WRONG[value]):
            continue  # an eighth of the columns with each of the values
        status, out, err = command(["doctor", "--fix"], capsys, db)
        where = (table, column, value, status, out, err)
        if table == "schedule" and re.search("schedule|nightly|hourly", "".join(faults(out))):
            continue  # what a schedule can't do is told beside it, and left to its owner
        assert faults(out) == [], where
        if value in ("huge", "blob") and column not in ("command", "cwd", "data") and "BLOB" not in kind and "TEXT" not in kind:
            assert "fixed" in out and column in out, where
            repaired += 1
        status, out, err = command(["doctor"], capsys, db)
        assert faults(out) == [] and not re.search("wrong value|can't be read", out), where + (out,)
        for words in (["list"], ["enqueue", "exit 0"], ["worker", "list"], ["cron", "list"], ["queue", "list"], ["batch", "list"]):
            status, out, err = command(words, capsys, db)
            assert status == 0, where + (words, out, err)
    assert repaired or value not in ("huge", "blob")


def faults(told):
    """The lines of doctor about a fault, not about work that waits for workers or for its user."""
    return [line for line in told.splitlines() if line[:4] in ("bad ", "warn") and not re.search(r"^\w+ +jobs |no supervisor runs", line)]


def hash_of(text):
    return sum(map(ord, text))


def spoil_sql(queue, *statements):
    db = sqlite3.connect(str(queue.db), isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


HOSTILE_ROWS = [
    "UPDATE job SET timeout='soon' WHERE id=1", "UPDATE job SET attempt=9223372036854775807 WHERE id=1", "UPDATE job SET backoff='x' WHERE id=1",
    "UPDATE job SET run_at=9e999, gate=1 WHERE id=1", "UPDATE job SET gate=1, run_at='soon' WHERE id=1", "UPDATE job SET expires_at='x' WHERE id=1",
    "UPDATE job SET state='completed' WHERE id=1", "UPDATE job SET key=x'ff' WHERE id=1",
    "UPDATE job SET state='processing', gate=NULL, worker=1, started_at='x' WHERE id=1",
    "UPDATE queue SET every='often' WHERE name='default'", "UPDATE queue SET max_running=x'00' WHERE name='default'",
    "INSERT INTO supervisor(pid, port, token, slots, kind, started_at) VALUES('x', 'y', 'z', 'many', 'start', 'now')",
    "INSERT INTO worker(supervisor, pid, started_at) VALUES('x', 'y', 'now')",
    "INSERT INTO config VALUES('on_idle', x'00')", "INSERT INTO config VALUES('kill_grace', 'soon')", "INSERT INTO config VALUES('keep_finished', '-1')",
    "INSERT INTO history(job, state, outcome, finished_at) VALUES(1, 'dead', 'x', 'never')",
    "UPDATE sqlite_sequence SET seq=9223372036854775807 WHERE name='env'",
    "UPDATE job SET gate=1, run_at=1, name=CAST(x'66ff' AS TEXT) WHERE id=1", "UPDATE job SET error=CAST(x'ff' AS TEXT) WHERE id=1",
    "UPDATE job SET expires_at=1, queue=CAST(x'ff' AS TEXT) WHERE id=1", "UPDATE job SET command=CAST(x'ff' AS TEXT) WHERE id=1",
    "UPDATE env SET data='A=1'", "UPDATE env SET data=7, uses='x'",
    "INSERT INTO queue(name) VALUES(CAST(x'ff' AS TEXT))", "INSERT INTO config VALUES('on_idle', CAST(x'ff' AS TEXT))",
    "INSERT INTO worker(supervisor, pid, started_at, note) VALUES(1, 1, 1, CAST(x'ff' AS TEXT))",
    "INSERT INTO history(job, state, outcome, finished_at) VALUES(1, 'dead', CAST(x'ff' AS TEXT), 1)",
    "UPDATE job SET state='processing', gate=NULL, worker=1, attempt=1, started_at=NULL WHERE id=1",
    "UPDATE job SET state='completed', gate=NULL WHERE id=1; "
    "INSERT INTO history(job, state, outcome, finished_at) VALUES(1, 'completed', 'completed', 1)",
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("statement", [pytest.param(row, marks=pytest.mark.slow if n % 3 else ()) for n, row in enumerate(HOSTILE_ROWS)],
                         ids=lambda statement: re.sub(r"\W+", " ", statement)[:60])
def test_workers_go_on_with_the_other_jobs_whatever_a_row_holds(queue, statement):
    queue.enqueue("--priority", "9", "exit 0")
    queue.enqueue("exit 0")
    spoil_sql(queue, "INSERT INTO worker(id, supervisor, pid, machine, started_at) VALUES(1, 1, 1, 'elsewhere', 1)" if "processing" in statement else "SELECT 1",
              *statement.split("; "))
    supervisor = queue.beside("worker", "start", "--foreground")
    queue.wait_for(2, "completed")
    queue.cli("worker", "stop")
    assert supervisor.ends() == 0, supervisor.text()
    assert not re.search("Traceback|internal error", supervisor.text())


@pytest.mark.parametrize("order", ["cancel", pytest.param("scale", marks=pytest.mark.slow)])
@posix_only("signals")
def test_a_supervisor_signals_no_process_that_a_row_names_but_that_is_not_its_own(queue, order):
    """Of a row in a database that was handed over: the process is another's, and a signal would end it."""
    queue.start(2)
    other = subprocess.Popen(["sleep", "60"])
    spare = queue.enqueue("--delay", "1h", "true")
    jobs = [queue.enqueue(*queue.sleeper(30)) for _ in range(2)]
    for job in jobs:
        queue.wait_for(job, "processing")
    with sqlite3.connect(str(queue.db)) as db:
        db.execute("INSERT INTO worker(id, supervisor, pid, machine, started_at, place) SELECT 77, supervisor, ?, machine, 1, place "
                   "FROM worker WHERE id=1", (other.pid,))
        if order == "cancel":
            db.execute("UPDATE job SET state='processing', worker=77, cancel=1, gate=NULL, attempt=1, started_at=1 WHERE id=?", (spare,))
    db.close()
    if order == "cancel":
        queue.cli("cancel", jobs[0])  # it looks at once
        queue.wait_for(jobs[0], "cancelled")
    else:
        queue.cli("worker", "scale", 1, check=False)
        wait_until(lambda: "scaled from 2 to 1" in (queue.files / "workers.log").read_text(), message="it has scaled")
    assert other.poll() is None, "still there"
    other.kill()
    other.wait()
    queue.stop("--now")


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@posix_only("signals")
def test_stop_signals_no_process_that_a_row_of_a_database_from_elsewhere_names(queue, busy):
    other = subprocess.Popen(["sleep", "60"])
    job = queue.enqueue("--delay", "1h", "true")
    with sqlite3.connect(str(queue.db)) as db:
        db.execute("INSERT INTO supervisor(id, pid, port, token, slots, kind, started_at) VALUES(1, ?, 1, 't', 1, 'start', 1)", (other.pid,))
        db.execute("INSERT INTO worker(id, supervisor, pid, machine, started_at, place) VALUES(1, 1, ?, ?, 1, ?)",
                   (other.pid, queuectl.OS.machine(), "1:1:/no/such/place.db"))
        if busy:
            db.execute("UPDATE job SET state='processing', worker=1, gate=NULL, attempt=1, started_at=1 WHERE id=?", (job,))
    db.close()
    stop = queue.beside("worker", "stop", "--now")
    wait_until(lambda: "waiting for job" in stop.text() or stop.poll() is not None, message="it has looked")
    assert other.poll() is None, "still there"
    assert busy or stop.ends() == 0, "a worker of another file takes no job from this one"
    other.kill()
    other.wait()
    assert stop.ends() == 0


def test_a_supervisor_whose_row_asks_for_a_million_workers_starts_no_such_number(store):
    store.workers.add_supervisor(queuectl.SupervisorSpec("", "start", 1, {}), 9, "t")
    store.db.connection.execute("UPDATE supervisor SET slots=1000000")
    assert store.workers.orders(1)[1] == queuectl.MOST_WORKERS


def test_the_logs_of_a_job_with_a_quadrillion_attempts_are_removed_and_read_at_once(queue):
    job = queue.enqueue(*queue.script("print('hello')"))
    queue.cli("worker", "start", "--foreground", "--drain")
    spoil_sql(queue, "UPDATE job SET attempt=1000000000000000")
    assert queue.cli("logs", "--all-attempts", job, timeout=20).stdout == "hello\n"
    queue.cli("rm", job, timeout=20)
    assert list(queue.files.glob("logs/*/*")) == []


# ---- import ----------------------------------------------------------------------------------------

def exported(queue):
    queue.cli("enqueue", "--name", "a", "--timeout", "9", "exit 0")
    queue.cli("cron", "add", "nightly", "@daily", "exit 0")
    queue.cli("queue", "limit", "mail", "2")
    queue.cli("config", "set", "max_retries", "2")
    return [json.loads(line) for line in queue.cli("export").stdout.splitlines()]


REFUSED = [("job", "attempt", 10**15), ("job", "id", 2**63 - 1), ("job", "id", -1), ("job", "name", "a\nb"), ("job", "name", "12"), ("job", "queue", "a,b"),
           ("job", "priority", 10**12), ("job", "max_retries", -1), ("job", "timeout", -5), ("job", "timeout", "soon"), ("job", "backoff", "never"),
           ("job", "backoff_base", 10**9), ("job", "backoff_max", -1), ("job", "retry_on", "x"), ("job", "slots", 0), ("job", "state", "flying"),
           ("job", "gate", 9), ("job", "gate", None), ("job", "command", ""), ("job", "command", "a\0b"), ("job", "command", {"hex": ""}), ("job", "run_at", "x"),
           ("job", "run_at", 1e300), ("job", "created_at", None), ("job", "key", "a\x1bb"), ("job", "unique_key", ""), ("job", "held", "x"),
           ("job", "env", "x"), ("job", "cwd", 5), ("job", "state", "completed"),
           ("config", "value", "many"), ("config", "key", "nothing"), ("queue", "name", "a/b"), ("queue", "max_running", -3), ("queue", "rate", "often"),
           ("queue", "every", 0), ("queue", "paused", "x"), ("schedule", "spec", "* *"), ("schedule", "options", "{"), ("schedule", "options", "[]"),
           ("schedule", "options", '{"command": "x", "timeout": "soon"}'), ("schedule", "misfire", "maybe"), ("schedule", "name", "1"),
           ("schedule", "next_at", "x"), ("sqlite_sequence", "seq", 2**63 - 1), ("sqlite_sequence", "seq", "x"), ("env", "data", "text"),
           ("env", "id", 2**63 - 1)]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    live = LiveQueue(tmp_path_factory.mktemp("export"))
    return exported(live)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("table,column,value", REFUSED, ids=lambda value: str(value)[:30].encode("unicode_escape").decode())
def test_import_refuses_what_enqueue_refuses(export, tmp_path, capsys, table, column, value):
    rows = json.loads(json.dumps(export))
    for row in rows:
        if row["table"] == table and column in row["row"]:
            row["row"][column] = value
            break
    else:
        pytest.fail("no such row in the export")
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, rows)))
    status, out, err = command(["import", str(tmp_path / "rows")], capsys, tmp_path / "fresh.db")
    assert status == 2 and err.count("\n") == 1 and "damaged" not in err and "Traceback" not in err, err
    status, out, err = command(["list", "--json"], capsys, tmp_path / "fresh.db")
    assert (status, json.loads(out)) == (0, [])


def test_import_takes_what_was_exported(export, tmp_path, capsys):
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, export)))
    assert command(["import", str(tmp_path / "rows")], capsys, tmp_path / "fresh.db")[0] == 0
    assert faults(command(["doctor"], capsys, tmp_path / "fresh.db")[1]) == []


# ---- triggers, views and other tables in a database that was handed over -----------------------------

EVIL = "UPDATE job SET command='echo pwned > pwned'"
SCHEMAS = {
    "a trigger on insert": ["CREATE TRIGGER evil AFTER INSERT ON job BEGIN %s; END" % EVIL],
    "a trigger on the claim": ["CREATE TRIGGER evil AFTER UPDATE OF state ON job BEGIN %s; END" % EVIL],
    "a trigger on a setting": ["CREATE TRIGGER evil AFTER INSERT ON config BEGIN %s; END" % EVIL],
    "a trigger on a worker": ["CREATE TRIGGER evil BEFORE DELETE ON worker BEGIN %s; END" % EVIL],
    "a trigger on a table of their own": ["CREATE TABLE x(a)", "CREATE TRIGGER evil AFTER INSERT ON x BEGIN %s; END" % EVIL],
    "a trigger of ours, changed": ["DROP TRIGGER job_moved", "CREATE TRIGGER job_moved AFTER UPDATE OF state, queue ON job BEGIN %s; END" % EVIL],
    "a trigger of ours, gone": ["DROP TRIGGER job_moved"],
    "a trigger with the name of a table's index": ["DROP INDEX job_due", "CREATE TRIGGER job_due AFTER INSERT ON job BEGIN %s; END" % EVIL],
    "a view in the place of a table": ["ALTER TABLE config RENAME TO config2", "CREATE VIEW config AS SELECT 'on_dead' AS key, 'echo pwned' AS value"],
    "a view with a trigger": ["ALTER TABLE batch RENAME TO batch2", "CREATE VIEW batch AS SELECT * FROM batch2",
                              "CREATE TRIGGER evil INSTEAD OF INSERT ON batch BEGIN %s; END" % EVIL],
    "a table with a default of theirs": ["DROP TABLE config", "CREATE TABLE config(key TEXT PRIMARY KEY, value TEXT NOT NULL DEFAULT 'x') WITHOUT ROWID"],
    "a table that replaces": ["DROP TABLE config", "CREATE TABLE config(key TEXT PRIMARY KEY ON CONFLICT IGNORE, value TEXT NOT NULL) WITHOUT ROWID"],
    "a virtual table": ["DROP TABLE keylock", "CREATE VIRTUAL TABLE keylock USING fts3(key, job)"],
    "a column more": ["ALTER TABLE job ADD COLUMN evil TEXT DEFAULT 'x'"],
    "an index that is unique": ["DROP INDEX job_unique", "CREATE UNIQUE INDEX job_unique ON job(id)"],
    "a table gone": ["DROP TABLE dep"],
}


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_a_database_with_other_triggers_or_tables_is_refused_and_left_as_it_is(sound, tmp_path, monkeypatch, capsys, statements):
    monkeypatch.chdir(tmp_path)
    db = tmp_path / "queue.db"
    shutil.copyfile(str(sound), str(db))
    with sqlite3.connect(str(db), isolation_level=None) as changed:
        for statement in statements:
            try:
                changed.execute(statement)
            except sqlite3.OperationalError as error:
                pytest.skip("this SQLite: %s" % error)
        before = list(changed.iterdump()) if "VIRTUAL" not in statements[-1] else None
    changed.close()
    (tmp_path / "x").write_text('{"table": "job", "row": {}}\n')
    for words in (["enqueue", "exit 0"], ["list"], ["status"], ["config", "set", "timeout", "9"], ["worker", "stop"], ["export"], ["import", "x"],
                  ["worker", "start", "--foreground", "--drain"], ["run", "exit 0"], ["cancel", "--all"], ["backup", "copy.db"], ["doctor", "--fix"]):
        status, out, err = command(words, capsys, db)
        told = out if words[0] in ("doctor", "worker") else err
        assert status == 2 and "changed by another program" in told + err, (words, status, out, err)
    with sqlite3.connect(str(db)) as changed:
        assert before is None or list(changed.iterdump()) == before
    changed.close()
    assert not os.path.exists("pwned") and not os.path.exists("copy.db")


@pytest.mark.parametrize("old", sorted((ROOT / "tests" / "data").glob("queue-*.db")), ids=lambda path: path.stem)
def test_a_trigger_in_a_queue_of_an_earlier_release_does_nothing_while_it_is_migrated(old, tmp_path, capsys):
    db = tmp_path / "queue.db"
    shutil.copyfile(str(old), str(db))
    with sqlite3.connect(str(db), isolation_level=None) as changed:
        changed.execute("CREATE TRIGGER evil AFTER UPDATE ON job BEGIN %s; END" % EVIL)
        version = changed.execute("PRAGMA user_version").fetchone()
        commands = changed.execute("SELECT command FROM job").fetchall()
    changed.close()
    status, out, err = command(["list"], capsys, db)
    assert status == 2 and "evil" in err
    with sqlite3.connect(str(db)) as changed:
        assert changed.execute("SELECT command FROM job").fetchall() == commands
        assert changed.execute("PRAGMA user_version").fetchone() == version
    changed.close()


def test_tables_views_and_indexes_of_somebody_elses_beside_ours_do_no_harm(queue):
    queue.enqueue("exit 0")
    spoil_sql(queue, "CREATE TABLE notes(job INTEGER, text TEXT)", "CREATE VIEW dead AS SELECT * FROM job WHERE state='dead'",
              "CREATE INDEX notes_job ON notes(job)", "CREATE INDEX by_state ON job(state)")
    queue.cli("worker", "start", "--foreground", "--drain")
    assert queue.job(1).state == "completed" and queue.cli("doctor").returncode == 0


def test_a_database_that_sqlite_itself_has_vacuumed_dumped_and_read_again_still_opens(queue, tmp_path):
    queue.enqueue("exit 0")
    db = sqlite3.connect(str(queue.db), isolation_level=None)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("VACUUM")
    versions = [db.execute("PRAGMA " + name).fetchone()[0] for name in ("application_id", "user_version")]
    copy = sqlite3.connect(str(tmp_path / "copy.db"))
    copy.executescript("\n".join(db.iterdump()))
    copy.execute("PRAGMA application_id=%d" % versions[0])
    copy.execute("PRAGMA user_version=%d" % versions[1])
    copy.close()
    db.close()
    assert queue.cli("list").returncode == 0
    assert queue.run([*queue.program, "--db", str(tmp_path / "copy.db"), "list"]).returncode == 0


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 31), reason="needs SQLite 3.31: trusted_schema")
def test_a_schema_is_not_trusted(store):
    assert store.db.connection.execute("PRAGMA trusted_schema").fetchone() == (0,)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("change", ["every=9e999", "every=9e999, next_at=1", "next_at=-9e999", "next_at=-9e999, misfire='skip'", "last_at=9e999",
                                    "next_at=9e999", "last_at='x', last_job=9e999"])
def test_a_number_without_end_in_one_schedule_is_told_and_the_others_fire(queue, change):
    for name in ("odd", "good"):
        queue.cli("cron", "add", name, "--every", "1s", "exit 0")
    spoil_sql(queue, "UPDATE schedule SET %s WHERE name='odd'" % change, "UPDATE schedule SET next_at=1 WHERE name='good'")
    for words in (["cron", "list"], ["cron", "list", "--json"], ["cron", "list", "--crontab"]):
        queue.cli(*words)
    assert "wrong value in " + change.partition("=")[0] in queue.out("cron", "list")
    queue.beside("worker", "start", "--foreground")
    queue.wait_for(1, "completed")
    wait_until(lambda: len(queue.json("list", "--state", "completed")) > 1)
    assert "Traceback" not in queue.background[-1].text()


def test_a_supervisor_whose_token_is_not_text_makes_no_enqueue_fail_that_was_stored(queue):
    queue.enqueue("exit 0")
    spoil_sql(queue, "INSERT INTO supervisor(pid, port, token, slots, kind, started_at) VALUES(1, 9, CAST(x'ff66' AS TEXT), 1, 'start', 1)")
    assert queue.enqueue("exit 0") == 2
    queue.cli("hold", "2")


def test_doctor_that_only_looks_names_a_wrong_value_and_each_other_thing_it_looks_at(queue):
    queue.enqueue("echo text")
    queue.cli("worker", "start", "--drain", "--foreground")
    spoil_sql(queue, "UPDATE job SET timeout='soon'")
    told = queue.cli("doctor", check=False)
    assert told.returncode == 2 and "job 1 has a wrong value in timeout: 'soon'" in told.stdout and "doctor --fix" in told.stdout
    assert "restore a backup" not in told.stdout
    assert {line.split()[1] for line in told.stdout.splitlines()} >= {"files", "database", "workers", "disk"}


@pytest.mark.parametrize("change", ["spec='* * * * * touch evil;'", "spec='@daily touch evil;'", "tz='UTC' || char(10) || '* * * * * touch evil'",
                                    "spec='*' || char(10) || '* * * *'", "spec=''"])
def test_a_crontab_that_is_printed_runs_nothing_but_the_commands_of_its_schedules(queue, change):
    queue.cli("cron", "add", "odd", "* * * * *", "exit 0")
    spoil_sql(queue, "UPDATE schedule SET " + change)
    lines = [line for line in queue.out("cron", "list", "--crontab").splitlines() if line[:1] != "#" and not line.startswith("CRON_TZ")]
    assert not [line for line in lines if "evil" in line or not line.startswith("* * * * * ")], lines


@pytest.mark.sampled(4)
@pytest.mark.parametrize("statement", ["UPDATE queue SET max_running='x'", "UPDATE queue SET paused=x'00'", "UPDATE queue SET next_at='x', every=1",
                                       "UPDATE queue SET every=x'ff'", "UPDATE keylock SET job=x'ff'", "UPDATE keylock SET job='x'",
                                       "UPDATE dep SET parent='x' WHERE child=3"])
def test_explain_says_in_one_line_which_row_holds_a_wrong_value(queue, statement):
    for words in (["--key", "k"], ["--key", "k"], ["--after", "1"]):
        queue.enqueue(*words, "exit 0")
    spoil_sql(queue, statement)
    found = [queue.cli("explain", job, check=False) for job in (2, 3)]
    assert all(done.returncode == (2 if "doctor --fix" in done.stderr else 0) for done in found), found
    assert any("doctor --fix" in done.stderr for done in found), found
