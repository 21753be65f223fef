"""A database that was copied, restored, moved or left without its directory: its workers are not here, and nothing waits for them."""
from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROOT, LiveQueue, linux_only, not_on_fallbacks, posix_only, wait_until
from faults import within

queuectl = pytest.importorskip("queuectl")
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = posix_only("signals, and files that are copied while they are open")


def another(queue, path):
    """A LiveQueue on a database elsewhere, whose processes the fixture ends with those of the first."""
    copy = LiveQueue(os.path.join(str(path.parent), "home of the copy"))
    copy.db, copy.files, copy.env, copy.background = path, path.parent / (path.name + ".d"), queue.env, queue.background
    return copy


def runs_until(queue, name, *options):
    """A job that adds a line at its start and its end to `name`, and goes on until there is a file `name`.go in its own directory."""
    job = queue.enqueue(*options, "--", *queue.script(
        "import os, sys, time\nnotes = open(sys.argv[1], 'a')\nnotes.write('begin %s\\n' % os.environ['QUEUECTL_DB'])\nnotes.flush()\n"
        "while not os.path.exists(sys.argv[1] + '.go'): time.sleep(0.02)\nnotes.write('end %s\\n' % os.environ['QUEUECTL_DB'])",
        queue.dir / name))
    wait_until(lambda: (queue.dir / name).exists() and "begin" in (queue.dir / name).read_text(), message="the job runs")
    return job


def kill_all(queue):
    for pid in queue.processes():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not queue.processes(), message="all are gone")


def by_backup(queue, target):
    queue.cli("backup", target)


def by_files(queue, target):
    shutil.copy(str(queue.db), str(target))
    shutil.copy(str(queue.db) + "-wal", str(target) + "-wal")


def by_files_with_the_directory(queue, target):
    by_files(queue, target)
    shutil.copytree(str(queue.files), str(target) + ".d")


def by_sqlite(queue, target):
    source, copy = sqlite3.connect(str(queue.db)), sqlite3.connect(str(target))
    source.backup(copy)
    source.close()
    copy.close()


COPIES = [by_backup, by_files, by_files_with_the_directory, by_sqlite]


@pytest.fixture(params=COPIES, ids=lambda way: way.__name__)
def copied(request, queue, tmp_path):
    """(copy, job) of a queue whose one job, under a limit of 1 and with a key, runs on in the original."""
    queue.cli("queue", "limit", "default", 1)
    queue.start(1)
    job = runs_until(queue, "notes", "--key", "k", "--max-retries", "0")
    (tmp_path / "elsewhere").mkdir()
    request.param(queue, tmp_path / "elsewhere" / "copy.db")
    yield another(queue, tmp_path / "elsewhere" / "copy.db"), job
    (queue.dir / "notes.go").touch()


@pytest.mark.sampled(4)
def test_a_copy_is_worked_from_its_own_workers_and_the_original_goes_on_untouched(queue, copied):
    copy, job = copied
    before = queue.processes()
    began = time.monotonic()
    copy.start(1)
    wait_until(lambda: (queue.dir / "notes").read_text().count("begin") == 2, 15, "the job begins in the copy")
    assert time.monotonic() - began < within(8)
    assert set(before) <= set(queue.processes()), "a process of the original was ended"
    (queue.dir / "notes.go").touch()
    copy.wait_for(job, "completed")
    queue.wait_for(job, "completed")
    lines = sorted((queue.dir / "notes").read_text().splitlines())
    assert lines == sorted("%s %s" % (word, db) for word in ("begin", "end") for db in (queue.db, copy.db))
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]
    assert copy.json("show", job)["attempts"] == 1
    copy.stop()
    queue.wait_for(queue.enqueue("true"), "completed")  # the original's workers are at work as before


@pytest.mark.sampled(4)
def test_a_copy_tells_the_truth_about_jobs_that_run_elsewhere(queue, copied):
    copy, job = copied
    if not (copy.files / "workers").exists():  # with the lock files, the next start or stop releases them
        assert "runs on worker" not in copy.out("explain", job)
        assert copy.json("worker", "list") == []
        assert copy.json("status")["jobs"]["processing"] == 0
        assert copy.job(job).state == "pending" and copy.job(job).attempts == 0 and copy.job(job).crashes == 0
    began = time.monotonic()
    copy.cli("worker", "stop", "--now")
    assert time.monotonic() - began < within(8)
    assert copy.sql("SELECT count(*) FROM worker UNION ALL SELECT count(*) FROM supervisor") == [(0,), (0,)]
    copy.cli("doctor", "--fix", check=False)
    copy.cli("cancel", job)
    assert copy.job(job).state == "cancelled"
    assert queue.job(job).state == "processing" and queue.json("worker", "list")[0]["state"] == "busy"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", ["the same place", "a copy with the directory"])
def test_a_job_of_a_dead_worker_is_cancelled_at_once_and_explain_says_that_it_does_not_run(queue, tmp_path, way):
    job = left_by_a_crash(queue)
    there = queue
    if way == "a copy with the directory":
        by_files_with_the_directory(queue, tmp_path / "copy.db")
        there = another(queue, tmp_path / "copy.db")
    assert "dead" in there.out("explain", job) and "worker start" in there.out("explain", job)
    began = time.monotonic()
    assert there.cli("cancel", job).stdout.startswith("\u2714 Cancelled")
    assert time.monotonic() - began < within(5) and there.job(job).state == "cancelled"
    assert there.json("worker", "list") == []


def test_a_backup_holds_no_workers_and_no_running_jobs(queue, tmp_path):
    queue.start(2)
    job = runs_until(queue, "notes", "--max-retries", "5")
    waiting = queue.enqueue("--delay", "1h", "true")
    queue.cli("backup", tmp_path / "copy.db")
    (queue.dir / "notes.go").touch()
    rows = sqlite3.connect(str(tmp_path / "copy.db"))
    assert rows.execute("SELECT * FROM worker").fetchall() == rows.execute("SELECT * FROM supervisor").fetchall() == []
    assert rows.execute("SELECT id, state, worker, attempts FROM job ORDER BY id").fetchall() == [
        (job, "pending", None, 0), (waiting, "pending", None, 0)]
    assert rows.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert rows.execute("SELECT n FROM tally WHERE state='processing'").fetchall() == [(0,)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("copy")) == ["copy.db"]
    queue.wait_for(job, "completed")


@pytest.mark.parametrize("words", [("worker", "start", "--drain"), ("run", "exit 0")], ids=["worker start", "run"])
def test_a_backup_is_one_file_until_workers_work_it_and_then_a_queue_like_any_other(queue, tmp_path, words):
    def mode():
        connection = sqlite3.connect(str(copy.db))
        try:
            return connection.execute("PRAGMA journal_mode").fetchone()[0]
        finally:
            connection.close()

    queue.enqueue("exit 0")
    queue.cli("backup", tmp_path / "copy.db")
    copy = another(queue, tmp_path / "copy.db")
    before = copy.db.read_bytes()
    copy.cli("list")
    assert copy.db.read_bytes() == before and mode() == "delete"
    copy.cli(*words)
    assert mode() == "wal"


def test_what_a_run_had_kept_for_itself_is_anyones_in_a_backup(queue, tmp_path):
    beside = queue.beside("run", "--count", "1", "--file", queue_file(queue))
    wait_until(lambda: queue.db.exists() and queue.json("status")["jobs"]["processing"] == 1, message="one of the jobs runs")
    queue.cli("backup", tmp_path / "copy.db")
    beside.send_signal(signal.SIGHUP)  # its job is given back
    beside.ends()
    copy = another(queue, tmp_path / "copy.db")
    assert {(job["state"], job["attempts"]) for job in copy.json("list")} == {("pending", 0)}
    assert copy.sql("SELECT count(*) FROM job WHERE pool IS NOT NULL OR gate<>0") == [(0,)]


def queue_file(queue):
    path = queue.dir / "jobs.txt"
    path.write_text("sleep 20\nsleep 20\n")
    return str(path)


def in_namespace(queue, *command, status=0):
    """Runs a command as process 1 of a pid namespace of its own."""
    if not ROOT_USER or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    not_on_fallbacks("they know no pid namespaces, which only Linux has")
    return queue.run(["unshare", "-fp", "--mount-proc", *command], timeout=60, status=status)


@linux_only("pid namespaces")
@pytest.mark.parametrize("way", [by_sqlite, *(pytest.param(way, marks=pytest.mark.slow) for way in COPIES[:3])], ids=lambda way: way.__name__)
def test_a_copy_is_worked_in_another_pid_namespace_too(queue, tmp_path, way):
    queue.start(1)
    job = runs_until(queue, "notes")
    target = tmp_path / "copy.db"
    way(queue, target)
    queue.cli("worker", "stop", "--now")
    queue.stop()
    (queue.dir / "notes.go").touch()
    copy = another(queue, target)
    in_namespace(queue, *copy.command("worker", "start", "--foreground", "--drain"))
    assert copy.job(job).state == "completed"


def left_by_a_crash(queue):
    """The job of a worker that was killed with its supervisor and everything else."""
    queue.start(1)
    job = runs_until(queue, "notes", "--max-retries", "0")
    kill_all(queue)
    (queue.dir / "notes.go").touch()
    return job


def checkpoint(queue):
    assert queue.sql("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0


def another_boot(queue):
    connection = sqlite3.connect(str(queue.db))
    connection.execute("UPDATE worker SET machine='b007b007-0000-4000-8000-000000000000/pid:[4026531836]'")
    connection.commit()
    connection.close()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("boot", ["this boot", pytest.param("another boot", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["without its directory", "moved away from its directory", "moved to another disk", "put back into the same file"])
def test_whatever_way_the_file_came_its_jobs_run_again_and_no_command_waits(queue, tmp_path, way, boot):
    job = left_by_a_crash(queue)
    if boot == "another boot":
        another_boot(queue)
    there, target = queue, tmp_path / "moved.db"
    if way == "moved away from its directory":
        checkpoint(queue)
        os.rename(str(queue.db), str(target))
    elif way == "moved to another disk":
        by_sqlite(queue, target)
        shutil.rmtree(str(queue.dir / "queue.db.d"))
        queue.db.unlink()
    else:
        shutil.rmtree(str(queue.files))
    if way.startswith("moved"):
        there = another(queue, target)
    if way.startswith("put back"):  # cp BACKUP queue.db keeps the file, and so its number
        by_sqlite(queue, target)
        for suffix in ("-wal", "-shm"):
            if os.path.exists(str(queue.db) + suffix):
                os.unlink(str(queue.db) + suffix)
        queue.db.write_bytes(target.read_bytes())
    began = time.monotonic()
    there.cli("worker", "stop", "--now")
    assert time.monotonic() - began < within(8)
    assert there.job(job).state == "pending" and there.json("worker", "list") == []
    there.start(1)
    there.wait_for(job, "completed")
    there.stop()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("verb", ["start", "stop --now", "doctor --fix"])
def test_a_stranger_with_the_pid_of_a_dead_worker_keeps_nobody_waiting(queue, verb):
    job = left_by_a_crash(queue)
    shutil.rmtree(str(queue.files))
    foreign = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        connection = sqlite3.connect(str(queue.db))
        connection.execute("UPDATE worker SET pid=?, born=born-5", (foreign.pid,))
        connection.commit()
        connection.close()
        queue.cli(*(verb.split() if "doctor" in verb else ["worker", *verb.split()]), check="doctor" not in verb)  # it misses workers
        if verb == "start":
            queue.wait_for(job, "completed")
        assert queue.job(job).state in ("pending", "completed") and foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()
    queue.stop()


@pytest.mark.broad
def test_a_database_that_is_renamed_under_a_worker_waits_for_its_last_attempt(queue, tmp_path):
    queue.start(1)
    job = runs_until(queue, "notes")
    moved = tmp_path / "moved.db"
    checkpoint(queue)
    for suffix in ("", "-wal"):
        os.rename(str(queue.db) + suffix, str(moved) + suffix)
    there = another(queue, moved)
    there.start(1)
    end = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > end, message="it has looked twice", interval=0.1)
    assert (queue.dir / "notes").read_text().count("begin") == 1, "its attempt is not over"
    (queue.dir / "notes.go").touch()
    there.wait_for(job, "completed")
    lines = [line.split()[0] for line in (queue.dir / "notes").read_text().splitlines()]
    assert lines == ["begin", "end", "begin", "end"]
    there.stop()


@pytest.mark.broad
def test_a_folder_that_is_renamed_under_a_worker_is_not_made_again_and_its_attempt_goes_on(queue):
    here, moved = queue.dir / "here", queue.dir / "moved"
    here.mkdir(0o700)
    there = another(queue, here / "q.db")
    there.dir = queue.dir
    there.start(1)
    job = runs_until(there, "notes")
    here.rename(moved)
    there.db, there.files = moved / "q.db", moved / "q.db.d"
    there.start(1)
    end = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > end, message="it has looked twice", interval=0.1)
    assert (queue.dir / "notes").read_text().count("begin") == 1 and not here.exists()
    (queue.dir / "notes.go").touch()
    there.wait_for(job, "completed")
    lines = [line.split()[0] for line in (queue.dir / "notes").read_text().splitlines()]
    assert lines == ["begin", "end", "begin", "end"]
    assert not here.exists()
    there.stop()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("directory", [False, True], ids=["alone", "with its directory"])
def test_a_database_that_is_moved_to_another_disk_under_a_worker_waits_for_its_last_attempt(queue, tmp_path, directory):
    queue.start(1)
    job = runs_until(queue, "notes")
    by_sqlite(queue, tmp_path / "moved.db")
    queue.db.unlink()
    if directory:
        shutil.copytree(str(queue.files), str(tmp_path / "moved.db") + ".d")
        shutil.rmtree(str(queue.files), ignore_errors=True)
    there = another(queue, tmp_path / "moved.db")
    there.start(1)
    end = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > end, message="it has looked twice", interval=0.1)
    assert (queue.dir / "notes").read_text().count("begin") == 1, "its attempt is not over"
    (queue.dir / "notes.go").touch()
    there.wait_for(job, "completed")
    lines = [line.split()[0] for line in (queue.dir / "notes").read_text().splitlines()]
    assert lines == ["begin", "end", "begin", "end"]
    there.stop()


@pytest.mark.broad
def test_what_a_dead_worker_left_at_the_old_place_of_a_moved_database_must_end_first(queue, tmp_path):
    queue.start(1)
    job = runs_until(queue, "notes")
    for pid, line in queue.processes().items():
        if "job-" not in line:
            os.kill(pid, signal.SIGKILL)
    checkpoint(queue)
    os.rename(str(queue.db), str(tmp_path / "moved.db"))
    there = another(queue, tmp_path / "moved.db")
    there.start(1)
    wait_until(lambda: (queue.dir / "notes").read_text().count("begin") == 2, message="it runs again")
    assert len([line for line in queue.processes().values() if "job-" in line and " sh -c" not in line]) <= 2, queue.processes()
    (queue.dir / "notes.go").touch()
    there.wait_for(job, "completed")
    assert (queue.dir / "notes").read_text().count("end") == 1, "the first attempt was ended before the second began"
    there.stop()


@pytest.mark.broad
def test_what_a_dead_worker_left_is_ended_though_database_and_directory_were_moved_to_another_disk(queue, tmp_path):
    queue.start(1)
    job = runs_until(queue, "notes")
    for pid, line in queue.processes().items():
        if "job-" not in line:
            os.kill(pid, signal.SIGKILL)
    by_sqlite(queue, tmp_path / "moved.db")
    shutil.copytree(str(queue.files), str(tmp_path / "moved.db") + ".d")
    shutil.rmtree(str(queue.files))
    queue.db.unlink()
    there = another(queue, tmp_path / "moved.db")
    there.start(1)
    wait_until(lambda: (queue.dir / "notes").read_text().count("begin") == 2, message="it runs again")
    (queue.dir / "notes.go").touch()
    there.wait_for(job, "completed")
    assert (queue.dir / "notes").read_text().count("end") == 1, "the first attempt was ended before the second began"
    there.stop()


# ---- the directory of the locks is deleted under living workers --------------------------------------------

def test_the_locks_of_a_deleted_directory_are_made_again_by_the_busy_the_idle_and_the_supervisor(queue):
    queue.start(2)
    job = runs_until(queue, "notes")
    shutil.rmtree(str(queue.files))
    wait_until(lambda: len(list(queue.files.glob("workers/*.lock"))) == 3, 8, "two workers' and the supervisor's")
    wait_until(lambda: len([path for path in queue.held_locks() if path.endswith(".lock")]) == 3, 8, "they are held")
    busy = queue.sql("SELECT worker FROM job")[0][0]
    words = (queue.files / "workers" / ("%d.lock" % busy)).read_text().split()
    assert int(words[1]) == job and int(words[3]) in queue.processes(), "what a rescuer needs is in it: %s" % words
    assert {w["state"] for w in queue.json("worker", "list")} == {"busy", "idle"}
    assert "dead" not in queue.out("doctor")
    (queue.dir / "notes.go").touch()
    queue.wait_for(job, "completed")
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]


@pytest.mark.slow
@linux_only("pid namespaces")
def test_a_worker_of_another_pid_namespace_without_its_lock_is_given_time_and_not_for_ever(queue):
    queue.start(1)
    job = runs_until(queue, "notes", "--max-retries", "0")
    shutil.rmtree(str(queue.files))
    in_namespace(queue, *queue.command("worker", "start", "--foreground", "--idle-timeout", "13s"))
    assert queue.job(job).attempt == 1 and queue.job(job).state == "processing", "it lives, and has made its lock again"
    (queue.dir / "notes.go").touch()
    queue.wait_for(job, "completed")
    (queue.dir / "notes.go").unlink()
    queue.stop()
    (queue.dir / "notes").unlink()
    job = left_by_a_crash(queue)
    shutil.rmtree(str(queue.files))
    began = time.monotonic()
    in_namespace(queue, *queue.command("worker", "stop", "--now"))
    assert 8 < time.monotonic() - began < within(20)
    assert queue.job(job).state == "pending"


@linux_only("pid namespaces")
@pytest.mark.slow
def test_doctor_mends_what_a_container_left_whose_locks_are_gone(queue):
    job = left_by_a_crash(queue)
    shutil.rmtree(str(queue.files))
    in_namespace(queue, *queue.command("doctor", "--fix"), status=2)
    assert queue.job(job).state == "pending"


def test_a_worker_that_was_taken_for_dead_takes_no_more_jobs(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("true"), "completed")
    [(worker, pid)] = queue.sql("SELECT id, pid FROM worker")
    connection = sqlite3.connect(str(queue.db))
    connection.execute("DELETE FROM worker")
    connection.commit()
    connection.close()
    job = queue.wait_for(queue.enqueue("true"), "completed")
    [attempt] = queue.json("show", job.id)["history"]
    assert attempt["worker"] != worker and pid not in queue.processes()


def test_a_copy_that_cannot_be_written_can_be_looked_at(queue, tmp_path):
    queue.start(1)
    job = runs_until(queue, "notes")
    by_sqlite(queue, tmp_path / "copy.db")
    (queue.dir / "notes.go").touch()
    queue.wait_for(job, "completed")
    code = ("import sys; sys.path.insert(0, %r); import queuectl\n"
            "def refuse(self, workers): raise queuectl.sqlite3.OperationalError('attempt to write a readonly database')\n"
            "queuectl.Workers.release_workers = refuse\nwith queuectl.Store(%r) as queue: print(queue.look.job(1).state)" % (
                str(ROOT), str(tmp_path / "copy.db")))
    assert queue.run([sys.executable, "-IS", "-c", code]).stdout == "processing\n"
    assert json.loads(queue.run([*queue.program, "--db", str(tmp_path / "copy.db"), "list", "--json"]).stdout)[0]["state"] == "pending"


def test_a_running_job_whose_worker_is_on_no_list_is_given_back_by_the_next_start(queue):
    job = left_by_a_crash(queue)
    queue.sql("DELETE FROM worker")
    queue.start(1)
    queue.wait_for(job, "completed")


def test_a_running_job_whose_worker_is_on_no_list_but_alive_is_left_alone(queue):
    queue.start(1)
    job = runs_until(queue, "notes")
    queue.sql("DELETE FROM worker")
    queue.start(1)
    queue.cli("doctor", "--fix", check=False)
    assert queue.job(job).state == "processing" and (queue.dir / "notes").read_text().count("begin") == 1
    (queue.dir / "notes.go").touch()
    queue.wait_for(job, "completed")
    assert (queue.dir / "notes").read_text().count("begin") == 1


def test_a_backup_that_is_put_back_beside_the_log_of_the_original_is_refused_and_loses_nothing(queue, tmp_path):
    with queuectl.Store(str(queue.db)) as store:
        store.enqueue_many(["exit 0"] * 30)
    queue.cli("backup", tmp_path / "backup.db")
    code = ("import os, sys; sys.path.insert(0, %r); import queuectl\nqueue = queuectl.Store(%r)\n"
            "for n in range(60): queue.enqueue('exit 0 # later %%d' %% n + 'x' * 500)\nos._exit(0)")
    queue.run([sys.executable, "-IS", "-c", code % (str(ROOT), str(queue.db))])  # as a power cut leaves it
    wal = queue.dir / "queue.db-wal"
    saved = wal.read_bytes()
    assert saved
    shutil.copy(str(tmp_path / "backup.db"), str(queue.db))
    done = queue.cli("list", check=False)
    assert done.returncode == 2 and "-wal is of another database" in done.stderr, done
    assert wal.read_bytes() == saved and queue.db.read_bytes() == (tmp_path / "backup.db").read_bytes()
    shutil.copy(str(queue.db), str(tmp_path / "new.db"))  # as the line says
    there = another(queue, tmp_path / "new.db")
    assert len(there.json("list", "--limit", "0")) == 30
    assert [row["about"] for row in there.json("doctor", check=False) if row["level"] != "ok"] in ([], ["jobs"])  # which no worker serves


@pytest.mark.broad
def test_a_copy_that_an_earlier_release_made_signals_no_worker_of_the_original(queue, tmp_path):
    """Its rows do not say where their worker saw the database: that may be the living one with this pid, in the original."""
    queue.start(1)
    job = runs_until(queue, "notes")
    by_sqlite(queue, tmp_path / "copy.db")
    connection = sqlite3.connect(str(tmp_path / "copy.db"))
    connection.execute("UPDATE worker SET place=NULL, born=NULL")
    connection.commit()
    connection.close()
    there = another(queue, tmp_path / "copy.db")
    stop = there.beside("worker", "stop", "--now")
    wait_until(lambda: "job %d" % job in stop.text(), message="it says what it waits for")
    assert queue.job(job).state == "processing" and queue.json("worker", "list")[0]["state"] == "busy"
    (queue.dir / "notes.go").touch()
    queue.wait_for(job, "completed")
    queue.stop()
    assert stop.ends() == 0 and there.job(job).state == "pending"
