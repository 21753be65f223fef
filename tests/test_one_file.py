"""One file, two names: whichever way a path leads to a database, it is one queue, with one place for its locks and logs."""
from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from conftest import LAUNCH, LiveQueue, linux_only, posix_only, wait_until
from test_cli import one_error_line

queuectl = pytest.importorskip("queuectl")
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = posix_only("links and mounts of a POSIX system")

# A job that says so when another attempt of it runs at the same time.
ALONE = """import fcntl, sys, time
lock = open(sys.argv[1], "w")
with open(sys.argv[2], "a") as notes:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        notes.write("two at once\\n")
    notes.write("begin\\n")
    notes.flush()
    time.sleep(float(sys.argv[3]))
    notes.write("end\\n")"""


def link_to_the_file(queue, other):
    other.mkdir()
    (other / "link.db").symlink_to(queue.db)
    return [], str(other / "link.db"), None


def chain_of_links(queue, other):
    other.mkdir()
    (other / "one").symlink_to(queue.dir)
    (other / "two.db").symlink_to("one/queue.db")
    (other / "three.db").symlink_to("two.db")
    return [], str(other / "three.db"), None


def link_to_the_folder(queue, other):
    other.symlink_to(queue.dir)
    return [], str(other / "queue.db"), None


def relative(queue, other):
    other.mkdir()
    return [], os.path.join("..", queue.dir.name, ".", "queue.db"), other


def this_process_directory(queue, other):
    return [], "/proc/self/cwd/queue.db", queue.dir


def bind_mount(queue, other):
    if not ROOT_USER or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    other.mkdir()
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", str(queue.dir), str(other)], str(other / "queue.db"), None


NAMES = [link_to_the_file, pytest.param(bind_mount, marks=linux_only("mounts")),
         *(pytest.param(name, marks=pytest.mark.slow) for name in (chain_of_links, link_to_the_folder, relative)),
         pytest.param(this_process_directory, marks=[pytest.mark.slow, linux_only("/proc")])]


@pytest.fixture(params=NAMES, ids=lambda name: name.__name__)
def by_name(request, queue, tmp_path):
    """A function that runs a command on the queue by another name of its file."""
    prefix, path, folder = request.param(queue, tmp_path / "another")

    def call(*words, **options):
        options.setdefault("cwd", folder)
        return queue.run([*prefix, *queue.program, "--db", path, *map(str, words)], **options)
    return call


@pytest.mark.sampled(2)
def test_a_queue_by_another_name_is_the_same_queue_with_the_same_files(queue, by_name):
    assert by_name("enqueue", "echo hello").stdout == "1\n"
    queue.start(1)
    assert '"state": "idle"' in (by_name("worker", "list", "--json").stdout) or queue.job(1).state != "completed"
    queue.wait_for(1, "completed")
    assert by_name("logs", 1).stdout == "hello\n"
    assert "dead" not in by_name("doctor").stdout + by_name("worker", "list").stdout
    assert "no worker" not in by_name("explain", queue.enqueue("--delay", "1h", "true")).stdout
    by_name("worker", "stop")
    assert queue.json("worker", "list") == []
    places = [path for path in queue.dir.parent.rglob("*.db.d") if path.resolve() != queue.files.resolve()]
    assert places == [], "files of a second queue"


@pytest.mark.sampled(2)
def test_workers_by_two_names_never_run_one_job_twice_at_once(queue, by_name):
    notes = queue.dir / "notes"
    job = queue.enqueue("--", *queue.script(ALONE, queue.dir / "alone", notes, 1.5))
    queue.start(1)
    wait_until(lambda: notes.exists() and "begin" in notes.read_text(), message="the job runs")
    ours = [os.getpgid(pid) for pid, line in queue.processes().items() if "job-" in line]
    for pid, line in queue.processes().items():
        if "job-" not in line:
            os.kill(pid, signal.SIGKILL)
    assert ours
    by_name("worker", "start")
    queue.wait_for(job, "completed")
    by_name("worker", "stop")
    assert "two at once" not in notes.read_text(), notes.read_text()


@pytest.mark.sampled(2)
@linux_only("strace")
@pytest.mark.parametrize("name", [link_to_the_file, link_to_the_folder], ids=lambda name: name.__name__)
def test_an_enqueue_by_a_link_is_synced_before_the_id_is_printed(queue, tmp_path, name):
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    _, path, _ = name(queue, tmp_path / "another")
    queue.start(1, "--queue", "none")  # somebody has it open: no checkpoint at the end
    trace = tmp_path / "trace"
    queue.run(["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=write,pwrite64,fsync,fdatasync",
               *queue.program, "--db", path, "enqueue", "true"])
    lines = trace.read_text("utf-8", "replace").splitlines()
    wal = os.path.realpath(str(queue.db)) + "-wal>"
    told = next(i for i, line in enumerate(lines) if re.search(r'write\(1<.*"1\\n"', line))
    synced = [i for i, line in enumerate(lines) if re.search(r"(fsync|fdatasync)\(", line) and wal in line]
    written = [i for i, line in enumerate(lines) if "pwrite64(" in line and wal in line and i < told]
    assert written and synced and any(max(written) < i < told for i in synced), lines


def test_a_link_that_leads_nowhere_yet_makes_the_queue_where_it_leads(queue, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "there" / "real.db")
    assert queue.run([*queue.program, "--db", str(link), "enqueue", "true"]).stdout == "1\n"
    assert (tmp_path / "there" / "real.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "there" / "real.db.d").is_dir() and not (tmp_path / "link.db.d").exists()


def test_links_in_a_circle_are_one_line(queue, tmp_path):
    (tmp_path / "a.db").symlink_to("b.db")
    (tmp_path / "b.db").symlink_to("a.db")
    for words in (["enqueue", "true"], ["list"], ["doctor"]):
        one_error_line(queue.run([*queue.program, "--db", str(tmp_path / "a.db"), *words], check=False))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("words", [["enqueue", "true"], ["list"], ["run", "true"], ["worker", "start"], ["doctor"], ["backup", "copy.db"]],
                         ids=" ".join)
def test_a_database_with_a_hard_link_is_refused_by_either_name(queue, tmp_path, words):
    """SQLite keeps a -wal per name, and each would be written into the one file."""
    queue.enqueue("true")
    other = tmp_path / "other.db"
    os.link(str(queue.db), str(other))
    before = queue.db.read_bytes()
    for path in (queue.db, other):
        done = queue.run([*queue.program, "--db", str(path), *words], check=False)
        assert done.returncode == 2 and "hard link" in done.stdout + done.stderr and "Traceback" not in done.stderr, done
    assert queue.db.read_bytes() == before and not os.path.exists(str(other) + "-wal") and not os.path.exists(str(other) + ".d")
    other.unlink()
    assert queue.enqueue("true") == 2


def test_workers_of_a_queue_that_a_snapshot_links_go_on(queue, tmp_path):
    queue.start(2)
    os.link(str(queue.db), str(tmp_path / "snapshot.db"))
    pids = sorted(pid for pid in queue.processes())
    victim = pids[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in queue.processes() and len(queue.processes()) == len(pids), message="the worker is replaced")
    os.unlink(str(tmp_path / "snapshot.db"))
    queue.wait_for(queue.enqueue("true"), "completed")


@linux_only("mounts")
def test_a_database_that_is_mounted_as_a_single_file_is_refused(queue, tmp_path):
    """Its -wal would be elsewhere than the file, and lost with the container."""
    if not ROOT_USER or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    queue.enqueue("true")
    (tmp_path / "inside").mkdir()
    target = tmp_path / "inside" / "q.db"
    target.touch()
    mounted = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", str(queue.db), str(target)]
    for words in (["enqueue", "true"], ["list"], ["worker", "start", "--foreground", "--drain"]):
        done = queue.run([*mounted, *queue.program, "--db", str(target), *words], check=False)
        assert done.returncode == 2 and "mount" in done.stdout + done.stderr, done
    assert sorted(path.name for path in (tmp_path / "inside").iterdir()) == ["q.db"]


def test_a_second_queue_in_one_program_takes_no_lock_from_the_first(tmp_path):
    """Closing any descriptor of a file drops the locks of the whole process (fcntl(2)), and then others delete the -wal."""
    db = str(tmp_path / "q.db")
    call = [sys.executable, "-IS", str(LAUNCH), "--db", db, "enqueue", "true"]
    with queuectl.Queue(db) as first:
        first.enqueue("true")
        with queuectl.Queue(db):
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            assert os.path.exists(db + "-wal"), "the program has it open"
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            last = first.enqueue("true")
    with queuectl.Queue(db) as again:
        assert [job.id for job in again.jobs()] == [last, 3, 2, 1] == [4, 3, 2, 1]


@pytest.mark.broad
def test_threads_that_open_and_close_queues_lose_and_damage_nothing(tmp_path):
    db, stored, faults, end = str(tmp_path / "q.db"), [], [], time.monotonic() + 6

    def work():
        while time.monotonic() < end and not faults:
            try:
                with queuectl.Queue(db) as queue:
                    stored.append(queue.enqueue("true"))
                queuectl.health_report(db)  # as a thread of `web` does
            except Exception as error:
                faults.append(error)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        done = subprocess.run([sys.executable, "-IS", str(LAUNCH), "--db", db, "enqueue", "true"], check=True, stdout=subprocess.PIPE)
        stored.append(int(done.stdout))
    for thread in threads:
        thread.join()
    assert faults == []
    with contextlib.closing(sqlite3.connect(db)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert sorted(stored) == [number for number, in connection.execute("SELECT id FROM job ORDER BY id")]


def test_workers_whose_wal_was_deleted_end_and_take_no_job_from_the_new_one(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("true"), "completed")
    with contextlib.closing(sqlite3.connect(str(queue.db))) as connection:
        connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
    for end in ("-wal", "-shm"):
        os.unlink(str(queue.db) + end)
    job = queue.enqueue("true")
    wait_until(lambda: not queue.processes(), 20, "the workers end")
    assert "-wal was deleted" in (queue.files / "workers.log").read_text()
    assert queue.job(job).state == "pending", "it was acknowledged"
    queue.start(1)
    queue.wait_for(job, "completed")


def test_a_commit_whose_wal_was_deleted_is_not_called_safe(store):
    store.enqueue("true")
    os.unlink(store.db.path + "-wal")
    with pytest.raises(queuectl.QueueGone, match="-wal was deleted"):
        store.enqueue("true")


@pytest.mark.slow
def test_a_queue_that_is_moved_while_workers_are_idle_goes_on_at_its_new_place(queue, tmp_path):
    queue.start(1)
    queue.wait_for(queue.enqueue("echo one"), "completed")
    moved = tmp_path / "moved"
    queue.dir.rename(moved)
    wait_until(lambda: not queue.processes(), message="the workers notice, and end")
    queue.dir.mkdir()
    there = LiveQueue(tmp_path / "new")
    there.db, there.files = moved / "queue.db", moved / "queue.db.d"
    there.start(1)
    there.wait_for(there.enqueue("echo two"), "completed")
    assert there.cli("logs", 1).stdout == "one\n" and len(there.json("worker", "list")) == 1
    there.stop()


@linux_only("strace")
def test_what_is_handed_to_a_cluster_is_on_the_disk_before_the_cluster_hears_of_it(queue):
    """A power cut of this machine ends no task of the cluster: a claim that it took back would run beside that."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    tools, trace = queue.dir / "tools", queue.dir / "trace.txt"
    tools.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
        (tools / name).write_text("#!/bin/sh\necho %s\n" % (7 if name == "sbatch" else ""))
        (tools / name).chmod(0o755)
    queue.enqueue("exit 0")
    queue.background_process(
        ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=pwrite64,fdatasync,execve",
         *queue.command("worker", "start", "--foreground", "--on", "slurm")], env={"PATH": "%s:%s" % (tools, os.environ["PATH"])})

    def calls():
        return trace.read_text().splitlines() if trace.exists() else []
    wait_until(lambda: any("tools/sbatch" in line for line in calls()), 30, "the array was submitted")
    submit = next(at for at, line in enumerate(calls()) if "tools/sbatch" in line)
    wal = [line for line in calls()[:submit] if "queue.db-wal>" in line]
    assert "fdatasync" in wal[-1], wal[-3:]
