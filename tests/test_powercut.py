"""Power cuts: every state of the disk that one could leave is a sound queue with all that was acknowledged.

A session is recorded by strace: each write, sync and acknowledgement.  The disk after a cut at some moment holds, of each
file, what its last sync saved, and of the writes since then any part: sectors of 512 bytes that came through or not, in
whatever order, and where the file grew, zeros in place of what did not."""
from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest
from conftest import ROOT, linux_only

queuectl = pytest.importorskip("queuectl")
pytestmark = linux_only("strace")
SECTOR = 512

# A session of one process: jobs of all kinds, one who works them, many checkpoints in the middle of it.
SESSION = """
import os, sys
sys.path.insert(0, %r)
import queuectl
path, full = sys.argv[1], sys.argv[2] == "full"
people, worker = queuectl.Store(path), queuectl.Store(path)
worker.db.sync = full
for queue in (people, worker):
    queue.db.connection.execute("PRAGMA wal_autocheckpoint=%%s" %% sys.argv[3])
number, job = 0, None
def tell(*facts):
    os.write(1, (" ".join(map(str, facts)) + "\\n").encode())
outcome = None
for number in range(int(sys.argv[4])):
    if number %% 9 == 4:
        for job in people.enqueue_many([{"command": "exit 0", "name": "n%%d-%%d" %% (number, n)} for n in range(12)], label="some"):
            tell("job", job)
    elif number %% 9 == 7:
        old = [job.id for job in people.look.jobs(states=["completed"], limit=5)]
        tell("gone", *old)  # from here on, or a moment later
        people.keep.purge(old)
    elif number %% 9 == 8:
        people.enqueue("exit 0 # " + "x" * 9000)
    else:
        tell("job", people.enqueue("exit 0", key="k%%d" %% (number %% 3), env={"N": str(number)}))
    for _ in range(2):
        done = outcome
        taken = worker.claims.finish_and_claim(1, outcome)
        if done is not None and full:
            tell("done", done.job.id)
        outcome = taken and queuectl.Outcome(taken[0], "completed", 0, None, 4711, taken[0].started_at, 0.1)
os._exit(0)  # nothing is closed: the last of it stays in the WAL
"""


def recorded(folder, sync, checkpoint, rounds):
    """(files at the beginning, events): each ("write", file, offset, data), ("sync", file), ("cut", file, size) or ("told", words)."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    path = os.path.join(str(folder), "queue.db")
    with queuectl.Store(path) as queue:
        queue.settings.set("sync", sync)
        queue.enqueue_many(["exit 0"] * 20)
    before = {name: open(os.path.join(str(folder), name), "rb").read() for name in ("queue.db",)}
    trace = os.path.join(str(folder), "trace")
    subprocess.run(["strace", "-f", "-qq", "-y", "-xx", "-s", "100000", "-o", trace, "-e",
                    "trace=write,pwrite64,pwritev,fsync,fdatasync,ftruncate,unlink", sys.executable, "-IS", "-c", SESSION % str(ROOT),
                    path, sync, str(checkpoint), str(rounds)], check=True, stdout=subprocess.DEVNULL)
    events = []
    with open(trace) as file:
        for line in file:
            match = re.match(r'\d+ +(\w+)\((\d+)<([^>]*)>(.*)', line)
            if not match:
                continue
            call, number, where, rest = match.groups()
            name = os.path.basename(bytes.fromhex(where.replace("\\x", "")).decode() if "\\x" in where else where)
            text = re.match(r', "((?:\\x[0-9a-f]{2})*)"(.*)', rest)
            data = bytes.fromhex(text.group(1).replace("\\x", "")) if text else b""
            if call == "write" and number == "1":
                events.append(("told", data.decode().split()))
            elif name not in ("queue.db", "queue.db-wal"):
                continue
            elif call == "pwrite64":
                length, offset = re.match(r", (\d+), (\d+)\)", text.group(2)).groups()
                assert len(data) == int(length), "strace has cut it short"
                events.append(("write", name, int(offset), data))
            elif call in ("fsync", "fdatasync"):
                events.append(("sync", name))
            elif call == "ftruncate":
                events.append(("cut", name, int(re.match(r", (\d+)\)", rest).group(1))))
            else:
                raise AssertionError("not foreseen: %s" % line[:200])
    return before, events


def put(content, offset, data):
    """Writes into a bytearray, which grows by zeros where need be."""
    content.extend(bytes(max(0, offset + len(data) - len(content))))
    content[offset:offset + len(data)] = data


def sectors(offset, data):
    """(offset, data) of the parts of a write that each lie in one sector."""
    end = offset + len(data)
    while offset < end:
        part = min(end, (offset // SECTOR + 1) * SECTOR)
        yield offset, data[:part - offset]
        data, offset = data[part - offset:], part


class Disk:
    """What the disk may hold, event after event."""

    def __init__(self, before):
        self.safe = {name: bytearray(content) for name, content in before.items()}  # as of the last sync
        self.since = {}                                                             # what was done to each file since
        self.told = []

    def do(self, event):
        if event[0] == "told":
            self.told.append(event[1])
        elif event[0] == "sync":
            content = self.safe.setdefault(event[1], bytearray())
            for done in self.since.pop(event[1], ()):
                self.apply(content, done)
        else:
            self.since.setdefault(event[1], []).append(event)

    @staticmethod
    def apply(content, event):
        if event[0] == "cut":
            del content[event[2]:]
        else:
            put(content, event[2], event[3])

    def after_a_cut(self, chance):
        """One of the states that the files may be in when the power comes back."""
        files = {}
        how = chance.choice(("in order", "in order", "sectors", "sectors", "sectors", "nothing", "all"))
        share = chance.choice((0.1, 0.5, 0.5, 0.9))
        for name in set(self.safe) | set(self.since):
            content = bytearray(self.safe.get(name, b""))
            events = self.since.get(name, [])
            if how == "in order":  # each write but the last came through, that one in part
                events = events[:chance.randint(0, len(events))]
                for event in events[:-1]:
                    self.apply(content, event)
                for event in events[-1:]:
                    self.apply(content, event if event[0] == "cut" else (*event[:3], event[3][:chance.randint(0, len(event[3]))]))
            elif how != "nothing":
                parts = [("write", name, *part) for event in events if event[0] == "write" for part in sectors(*event[2:])]
                for part in parts:
                    if how == "all" or chance.random() < share:
                        self.apply(content, part)
                    elif chance.random() < 0.3:  # only its size got there
                        content.extend(bytes(max(0, part[2] + len(part[3]) - len(content))))
            files[name] = content
        return files


def faults_of(folder, files, told, full):
    """What is wrong with a queue in these files after a power cut, in words."""
    path = os.path.join(str(folder), "queue.db")
    for name in os.listdir(str(folder)):
        if name.startswith("queue.db") and not name.endswith(".d"):
            os.unlink(os.path.join(str(folder), name))
    for name, content in files.items():
        with open(os.path.join(str(folder), name), "wb") as file:
            file.write(content)
    try:
        queuectl.refuse_foreign_wal(path)
        with queuectl.Store(path) as queue:
            faults = [fault for fault in queue.keep.check() if "not listed" not in fault]
            states = dict(queue.db.read("SELECT id, state FROM job"))
    except (queuectl.UserError, sqlite3.Error) as error:
        return ["refused: %s" % error]
    gone = {number for words in told if words[0] == "gone" for number in words[1:]}
    lost = [words[1] for words in told if words[0] == "job" and words[1] not in gone and int(words[1]) not in states]
    undone = [words[1] for words in told if full and words[0] == "done" and words[1] not in gone and states[int(words[1])] != "completed"]
    return faults + ["lost job %s" % number for number in lost] + ["job %s is not done" % number for number in undone]


@pytest.mark.parametrize("sync", ["normal", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpoint, rounds, states", [
    (60, 40, 60), pytest.param(25, 120, 400, marks=pytest.mark.slow), pytest.param(200, 120, 400, marks=pytest.mark.slow)])
def test_after_a_power_cut_at_any_moment_the_queue_opens_with_all_that_was_acknowledged(tmp_path, sync, checkpoint, rounds, states):
    (tmp_path / "record").mkdir()
    (tmp_path / "after").mkdir()
    before, events = recorded(tmp_path / "record", sync, checkpoint, rounds)
    assert sum(event[:2] == ("sync", "queue.db") for event in events) > 5, "checkpoints in the middle"
    assert sum(event[0] == "write" and event[1:3] == ("queue.db-wal", 0) for event in events) > 3, "the WAL is used again"
    chance = random.Random(20261125 + checkpoint)
    moments = sorted(chance.randrange(len(events)) for _ in range(states))
    disk, wrong = Disk(before), []
    for at, event in enumerate(events):
        disk.do(event)
        while moments and moments[0] == at:
            moments.pop(0)
            faults = faults_of(tmp_path / "after", disk.after_a_cut(chance), disk.told, sync == "full")
            if faults:
                wrong.append((at, faults[:3]))
    assert wrong == [], "%d of %d states, such as %s" % (len(wrong), states, json.dumps(wrong[:5]))


# ---- the one judge by itself ---------------------------------------------------------------------

def used_again(folder):
    """(database, log, size of a frame) of a queue whose log is being used again: behind its new frames are those of before."""
    path = os.path.join(str(folder), "queue.db")
    with queuectl.Store(path) as queue:
        queue.enqueue_many(["exit 0 # " + "x" * 900] * 60)
        queue.keep.purge([])
        queue.life.cancel(range(1, 50))
        queue.keep.purge(range(1, 50))  # pages are freed, and page 1 is written for that
        assert queue.db.connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0
        queue.enqueue("exit 0 # " + "y" * 3000)
        database = open(path, "rb").read()
        log = open(path + "-wal", "rb").read()
    return database, log, 24 + 1024


def refused(folder, database, log):
    path = os.path.join(str(folder), "judged.db")
    for suffix, data in (("", database), ("-wal", log)):
        with open(path + suffix, "wb") as file:
            file.write(data)
    return queuectl.has_foreign_wal(path)


def test_no_frame_beyond_the_end_of_the_log_says_anything_of_whose_log_it_is(tmp_path):
    database, log, size = used_again(tmp_path)
    salts = log[16:24]
    frames = range((len(log) - 32) // size)
    new = [n for n in frames if log[32 + n * size + 8:32 + n * size + 16] == salts]
    old = [n for n in frames if n not in new]
    assert new and old
    strange = b"\0\0\0\1" + bytes(4)
    for n in old:  # a write of a frame is two writes: its header came through, and the page is still the old one
        at = 32 + n * size
        torn = log[:at] + strange + salts + log[at + 16:]
        assert not refused(tmp_path, database, torn), n
    for n in (0, new[-1]):  # the very first frame, and the last that counts
        at = 32 + n * size
        assert not refused(tmp_path, database, log[:at] + strange + salts + bytes(8) + bytes(1024) + log[at + size:])
    assert not refused(tmp_path, database, bytes(len(log)))
    assert not refused(tmp_path, database, log[:24] + bytes(8) + log[32:])
    assert not refused(tmp_path, database, log[:32 + 30])


def test_a_log_of_a_later_time_of_the_same_queue_is_refused_and_the_advice_loses_nothing(tmp_path):
    """A backup was put in the place of a database whose log is still there."""
    older, _, _ = used_again(tmp_path)
    path, old = str(tmp_path / "queue.db"), str(tmp_path / "old.db")
    for low in (51, 53, 55):  # a connection by itself does not count on
        with queuectl.Store(path) as queue:
            queue.enqueue_many(["exit 0 # " + "x" * 3000] * 20)
            queue.life.cancel(range(low, low + 2))
            queue.keep.purge(range(low, low + 2))
            log = open(path + "-wal", "rb").read()
    for suffix, data in (("", older), ("-wal", log)):
        with open(old + suffix, "wb") as file:
            file.write(data)
    with pytest.raises(queuectl.UserError) as refusal:
        queuectl.refuse_foreign_wal(old)
    assert "copy" in str(refusal.value) and "keep both" in str(refusal.value)
    assert not re.search("move|remove|delete", str(refusal.value))
    assert open(old, "rb").read() == older and open(old + "-wal", "rb").read() == log
    shutil.copy(old, str(tmp_path / "copy.db"))  # as the advice says
    with queuectl.Store(str(tmp_path / "copy.db")) as queue:
        assert queue.keep.check() == [] and len(queue.look.jobs()) == 11
