"""A queue is one user's: what other users have made or may write to is refused, what is made is for its owner alone."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import linux_only, posix_only, wait_until
from test_cli import one_error_line
from test_places import needs

pytestmark = [posix_only("users and modes"), linux_only("setpriv")]
ANN, BOB = 4242, 4243


class Town:
    """A folder that each user may write to, as /tmp, and three users: root, ann and bob."""

    def __init__(self, queue, folder, program):
        self.queue = queue
        self.folder = Path(folder)
        self.folder.chmod(0o1777)
        self.program = program("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)

    def user(self, uid):
        return ["setpriv", "--reuid=%d" % uid, "--regid=%d" % uid, "--clear-groups"] if uid else []

    def home(self, name, uid, mode=0o700):
        path = self.folder / name
        path.mkdir()
        path.chmod(mode)
        os.chown(str(path), uid, uid)
        return path

    def shell(self, uid, text, **env):
        return self.queue.run([*self.user(uid), "sh", "-c", text], cwd=str(self.folder), env=env).stdout

    def call(self, uid, db, *words, check=True, prefix=(), **env):
        return self.queue.run([*prefix, *self.user(uid), *self.program, "--db", str(db), *words],
                              check=check, cwd="/", env=dict({"HOME": str(self.folder)}, **env))

    def refused(self, uid, db, *words, **env):
        return one_error_line(self.call(uid, db, *words, check=False, **env))


@pytest.fixture
def town(queue, public_program):
    needs("setpriv")
    with tempfile.TemporaryDirectory(prefix="queuectl-", dir="/tmp") as folder:
        yield Town(queue, folder, public_program)


def mode(path):
    return stat.S_IMODE(os.lstat(str(path)).st_mode)


def snapshot(folder):
    """All that lies in a folder, with its owner, mode and content."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        info = path.lstat()
        found[str(path)] = (info.st_uid, info.st_mode, path.read_bytes() if stat.S_ISREG(info.st_mode) else b"")
    return found


WORDS = (["enqueue", "true"], ["list"], ["run", "true"], ["worker", "start"], ["worker", "start", "--foreground", "--drain"], ["export"])


# ---- what another user has made -----------------------------------------------------------------

@pytest.mark.sampled(6)
@pytest.mark.parametrize("victim", [0, ANN], ids=["root", "ann"])
@pytest.mark.parametrize("planted", [
    "mkdir -m 777 q.db.d", "mkdir -m 700 q.db.d", "mkdir -p -m 777 q.db.d/workers q.db.d/logs", "ln -s /etc q.db.d",
    ": > q.db; chmod 666 q.db", ": > q.db-wal; chmod 666 q.db-wal", ": > q.db-journal; chmod 666 q.db-journal",
    ": > q.db-shm; chmod 666 q.db-shm", "mkfifo -m 666 q.db-wal"])
def test_what_another_user_has_put_where_a_queue_will_be_is_refused(town, victim, planted):
    town.shell(BOB, planted)
    before = snapshot(town.folder)
    for words in WORDS:
        done = town.call(victim, town.folder / "q.db", *words, check=False)
        text = done.stderr if "--foreground" not in words else done.stdout
        assert done.returncode == 2 and "4243" in text and text.count("\n") == 1, (words, done)
    assert snapshot(town.folder) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("victim", [0, ANN], ids=["root", "ann"])
def test_a_queue_of_ones_own_in_a_sticky_folder_works_and_nobody_else_can_use_it(town, victim):
    db = town.folder / "q.db"
    assert town.call(victim, db, "enqueue", "echo secret").stdout == "1\n"
    town.call(victim, db, "worker", "start", "--foreground", "--drain")
    for words in WORDS:
        done = town.call(BOB, db, *words, check=False)
        assert done.returncode == 2 and "secret" not in done.stdout + done.stderr, (words, done)
    assert town.call(victim, db, "logs", "1").stdout == "secret\n"
    for path in [db, *Path(str(db) + ".d").rglob("*")]:
        assert mode(path) & 0o077 == 0 and path.lstat().st_uid == victim, path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("victim", [0, ANN], ids=["root", "ann"])
@pytest.mark.parametrize("folder_mode, group", [(0o777, 0), (0o775, 4243), (0o2770, 4243)])
def test_a_folder_in_which_others_may_replace_the_database_is_refused(town, victim, folder_mode, group):
    folder = town.home("shared", victim)
    os.chown(str(folder), victim, group)
    folder.chmod(folder_mode)
    for there in (False, True):
        for words in (["enqueue", "true"], ["run", "true"]):
            line = town.refused(victim, folder / "q.db", *words)
            assert "chmod go-w %s" % folder in line, line
        assert there or not list(folder.iterdir())
        folder.chmod(0o700)  # as the line said, and back, now with a queue in it
        town.call(victim, folder / "q.db", "enqueue", "true")
        folder.chmod(folder_mode)


def test_a_folder_of_another_user_is_refused_and_one_of_roots_is_not(town):
    assert "belongs to" in town.refused(ANN, town.home("bob", BOB, 0o1777) / "q.db", "enqueue", "true")
    assert town.call(ANN, town.home("var", 0, 0o1777) / "q.db", "enqueue", "true").stdout == "1\n"
    assert os.listdir(str(town.folder / "bob")) == []


def test_a_group_with_one_member_is_no_other_user(town):
    """Many systems give each user a group and the umask 002; in a namespace of our own we may say who is there."""
    needs("unshare", "mount")
    folder = town.home("ann", ANN, 0o2770)
    passwd, group = town.folder / "passwd", town.folder / "group"
    names = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"', "sh",
             str(passwd), str(group)]
    passwd.write_text("root:x:0:0::/:/bin/sh\nann:x:4242:4242::/:/bin/sh\n")
    group.write_text("root:x:0:\nann:x:4242:\n")
    assert town.call(ANN, folder / "q.db", "enqueue", "true", prefix=names).stdout == "1\n"
    os.setxattr(str(folder), "system.posix_acl_access", struct.pack("<I" + "HHI" * 5, 2, 1, 7, 2**32 - 1, 2, 7, BOB, 4, 0, 2**32 - 1,
                                                                    16, 7, 2**32 - 1, 32, 0, 2**32 - 1))  # setfacl -m u:bob:rwx
    assert "others may write" in one_error_line(town.call(ANN, folder / "q.db", "list", prefix=names, check=False))
    os.removexattr(str(folder), "system.posix_acl_access")
    folder.chmod(0o2770)
    group.write_text("root:x:0:\nann:x:4242:ann,bob\n")
    assert "others may write" in one_error_line(town.call(ANN, folder / "q.db", "list", prefix=names, check=False))
    group.write_text("root:x:0:\nann:x:4242:\n")
    passwd.write_text("root:x:0:0::/:/bin/sh\nann:x:4242:4242::/:/bin/sh\nbob:x:4243:4242::/:/bin/sh\n")
    assert "others may write" in one_error_line(town.call(ANN, folder / "q.db", "list", prefix=names, check=False))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("loosen", ["chmod 666 q.db", "chmod 777 q.db.d", "chmod 777 q.db.d/workers", "chmod 757 q.db.d/logs"])
def test_a_queue_that_others_may_write_to_is_refused_and_doctor_mends_it(town, loosen):
    home = town.home("ann", ANN, 0o755)
    town.call(ANN, home / "q.db", "enqueue", "true")
    town.shell(ANN, "cd ann; " + loosen)
    assert "chmod go-w" in town.refused(ANN, home / "q.db", "list")
    assert town.call(ANN, home / "q.db", "doctor", check=False).returncode == 2
    assert "fixed" in town.call(ANN, home / "q.db", "doctor", "--fix", check=False).stdout
    assert json.loads(town.call(ANN, home / "q.db", "list", "--json").stdout)[0]["state"] == "pending"
    assert {mode(path) & 0o077 for path in home.rglob("*")} == {0}


# ---- links, FIFOs and second names where our files are to be ---------------------------------------

@pytest.fixture
def daemon(tmp_path):
    """Another program with a locked file, as daemons have one; and what it holds."""
    path = tmp_path / "daemon.pid"
    path.write_text("precious\n")
    process = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX);"
                                "print(1, flush=True); time.sleep(100)", str(path)], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    process.path = path
    yield process
    alive = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive and path.read_text() == "precious\n", "a daemon that is not ours was hurt"


def put(kind, target, place):
    if kind == "link":
        place.symlink_to(target)
    elif kind == "hard link":
        os.link(str(target), str(place))
    else:
        os.mkfifo(str(place), 0o666)


KINDS = ["link", "hard link", "fifo"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["1.out", "../gate"] + [pytest.param(name, marks=pytest.mark.slow) for name in (
    "1.lock", "s1.lock", "../workers.log", "1.out.tail", "1.out.cmd", "1.out.new")])
def test_what_lies_where_a_file_of_the_queue_is_to_be_is_neither_followed_nor_waited_for(queue, daemon, kind, name):
    queue.enqueue("--timeout", "20", "yes | head -c 300000; echo end")
    queue.cli("config", "set", "log_limit", "64KiB")
    queue.enqueue(*queue.script("import sys; print(len(sys.argv[1]))", "x" * 125000))
    (queue.files / "workers").mkdir(exist_ok=True)
    place = queue.files / "workers" / name
    if place.exists():
        place.unlink()
    put(kind, daemon.path, place)
    queue.start(1)
    for job in (1, 2):
        queue.wait_for(job, "completed", "dead")
    assert queue.job(1).state == queue.job(2).state == "completed"
    assert "end" in queue.out("logs", 1) and queue.out("logs", 2) == "125000"
    queue.stop()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["%d.out", "%d.lock"])
def test_the_rescue_of_a_dead_worker_harms_no_program_whose_file_was_put_there(queue, daemon, kind, name):
    queue.start(1)
    job = queue.enqueue("--max-retries", "0", "[ $QUEUECTL_ATTEMPT = 2 ] || sleep 60")
    queue.wait_for(job, "processing")
    wait_until(lambda: sleepers(queue), message="its sleep runs")  # before, its process is a shell that the test would not find
    [(worker, pid)] = queue.sql("SELECT id, pid FROM worker")
    [(supervisor,)] = queue.sql("SELECT pid FROM supervisor")
    os.kill(supervisor, signal.SIGSTOP)  # so that no rescue comes before the place is taken
    os.kill(pid, signal.SIGKILL)
    place = queue.files / "workers" / (name % worker)
    place.unlink()
    put(kind, daemon.path, place)
    os.kill(supervisor, signal.SIGCONT)
    try:
        if (kind, name) == ("hard link", "%d.out"):  # its lock is held, by whomever: the job waits, and says so
            wait_until(lambda: "must end" in queue.out("explain", job), message="it says what it waits for")
            place.unlink()
        elif name == "%d.lock":  # with its record went the number of the job's process
            wait_until(lambda: kind == "hard link" or "must end" in queue.out("explain", job), message="it says what it waits for")
            for victim in sleepers(queue):
                os.kill(victim, signal.SIGKILL)
            if kind == "hard link":
                queue.out("explain", job)
                place.unlink()
        queue.wait_for(job, "completed", "dead", "pending", timeout=30)
        queue.stop("--now")
    finally:
        for victim in sleepers(queue):
            os.kill(victim, signal.SIGKILL)


def sleepers(queue):
    return [pid for pid, line in queue.processes().items() if line.startswith("sleep 60")]


# ---- modes ----------------------------------------------------------------------------------------

def test_a_database_that_was_there_as_readable_by_all_is_closed(queue):
    queue.dir.chmod(0o755)
    queue.db.touch()
    queue.db.chmod(0o644)
    queue.enqueue("true")
    assert mode(queue.db) == 0o600
    queue.start(1)
    for path in queue.dir.glob("queue.db*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    queue.cli("list")  # a queue that was restored with the umask's mode, while it is in use
    assert {path.name: mode(path) for path in queue.dir.glob("queue.db*") if not path.is_dir() and mode(path) != 0o600} == {}
    queue.stop()


def test_a_database_made_through_a_dangling_link_is_private(queue):
    (queue.dir / "link.db").symlink_to(queue.dir / "real.db")
    queue.run([*queue.program, "--db", str(queue.dir / "link.db"), "enqueue", "true"])
    assert mode(queue.dir / "real.db") == 0o600


def test_whatever_the_umask_a_running_job_leaves_nothing_that_others_may_read(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    loose = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    queue.run([*loose, *queue.command("worker", "start", "--count", "2")])
    try:
        queue.enqueue("yes | head -c 300000; until [ -e go ]; do sleep 0.05; done")
        queue.enqueue("until [ -e go ]; do sleep 0.05; done; : " + "x" * 125000)
        wait_until(lambda: list(queue.files.glob("workers/*.tail")) and list(queue.files.glob("workers/*.cmd")), message="both are there")
        loose_ones = [str(path) for path in [queue.db, *queue.files.rglob("*")] if mode(path) & 0o077]
        assert loose_ones == []
    finally:
        (queue.dir / "go").touch()
        queue.stop()


def test_export_with_output_makes_a_private_file_and_never_half_a_one(queue):
    job = queue.enqueue("true", env={"SECRET": "hunter2"})
    path = queue.dir / "q.jsonl"
    loose = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    done = queue.run([*loose, *queue.command("export", "--output", path)])
    assert mode(path) == 0o600 and path.read_text() == queue.cli("export").stdout, done.stderr
    assert "exists" in one_error_line(queue.cli("export", "--output", path, check=False))
    (queue.dir / "trap").symlink_to(queue.dir / "elsewhere")
    assert "exists" in one_error_line(queue.cli("export", "--output", queue.dir / "trap", check=False))
    assert not (queue.dir / "elsewhere").exists()
    one_error_line(queue.cli("export", "--output", queue.dir / "none" / "q.jsonl", check=False))
    other = queue.dir / "other.db"
    queue.run([*queue.program, "--db", str(other), "import", str(path)])
    assert json.loads(queue.run([*queue.program, "--db", str(other), "show", str(job), "--json"]).stdout)["state"] == "pending"


def test_doctor_looks_at_modes_and_mends_them(queue):
    queue.enqueue("echo hello")
    queue.start(1, "--drain")
    queue.wait_for(1, "completed")
    wait_until(lambda: queue.json("worker", "list") == [], message="the workers have ended")
    log = queue.files / "logs" / "0" / "1.1.log"
    log.chmod(0o644)
    log.parent.chmod(0o755)
    found = [row for row in queue.json("doctor", check=False) if row["about"] == "files"]
    assert [row["level"] for row in found] == ["warn"] and "logs/0" in found[0]["text"], found
    assert mode(log) == 0o644
    [found] = [row for row in queue.json("doctor", "--fix") if row["about"] == "files"]
    assert found["level"] == "fixed"
    assert mode(log) == 0o600 and mode(log.parent) == 0o700
    [found] = [row for row in queue.json("doctor") if row["about"] == "files"]
    assert found["level"] == "ok"


def test_doctor_names_and_removes_links_among_the_files(queue):
    queue.enqueue("true")
    (queue.files / "workers").mkdir(exist_ok=True)
    (queue.files / "workers" / "9.lock").symlink_to("/etc/passwd")
    os.mkfifo(str(queue.files / "workers" / "9.out"))
    found = [row for row in queue.json("doctor", check=False) if row["about"] == "files"]
    assert found[0]["level"] == "warn" and "9." in found[0]["text"]
    queue.json("doctor", "--fix", check=False)
    assert list((queue.files / "workers").iterdir()) == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", [["status"], ["enqueue", "true"], ["worker", "start"], ["doctor"], ["doctor", "--fix"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["text", "database", "fifo", "null", "directory"])
def test_what_is_no_queue_is_left_as_it_is(queue, kind, words):
    queue.dir.chmod(0o755)
    folder = Path(str(queue.db) + ".d")
    folder.mkdir()
    (folder / "file").write_text("another program's")
    (folder / "link").symlink_to("file")
    if kind == "text":
        queue.db.write_text("root:x:0:0\n" * 1000)
    elif kind == "database":
        with contextlib.closing(sqlite3.connect(str(queue.db))) as db:
            db.execute("CREATE TABLE theirs(x)")
    elif kind == "fifo":
        os.mkfifo(str(queue.db))
    elif kind == "directory":
        (queue.db / "folder").mkdir(parents=True)
    else:
        queue.db.symlink_to("/dev/null" if os.geteuid() else queue.dir / "null")
        if os.geteuid() == 0:
            os.mknod(str(queue.dir / "null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for path in [folder, folder / "file"] + ([queue.db] if kind in ("text", "database") else []):
        path.chmod(path.stat().st_mode | 0o055)

    def state():
        return {path: (path.lstat().st_mode, path.lstat().st_nlink) for path in queue.dir.rglob("*") if queue.home not in path.parents}
    before = state()
    done = queue.cli(*words, check=False)
    what = {"text": "not a database" if words[0] != "doctor" else "damaged", "database": "not one of queuectl"}.get(kind, "not a plain file")
    assert done.returncode == 2 and what in done.stdout + done.stderr, done
    assert state() == before


def test_the_advice_for_a_damaged_database_makes_no_copy_that_others_can_read(queue):
    queue.cli("enqueue", "--file", "-", stdin="true\n" * 2000)
    with open(str(queue.db), "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 40000)
    text = queue.cli("doctor", check=False).stdout
    assert ".recover" not in text or "umask 077" in text, text


# ---- root and another user's queue -----------------------------------------------------------------

@pytest.mark.sampled(5)
@pytest.mark.parametrize("words", WORDS + (["doctor"], ["logs", "1"], ["top"], ["backup", "/nonexistent/x"]), ids=" ".join)
def test_root_is_told_that_a_queue_is_another_users_and_refused(town, words):
    home = town.home("ann", ANN)
    town.call(ANN, home / "q.db", "enqueue", "true")
    before = snapshot(home)
    done = town.call(0, home / "q.db", *words, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "--as-root" in text and "4242" in text, text
    assert {path: value for path, value in snapshot(home).items() if "-shm" not in path} == {
        path: value for path, value in before.items() if "-shm" not in path}


def test_root_in_a_container_whose_volume_is_another_users_is_told_what_to_give(town):
    volume = town.home("volume", 1000)
    line = town.refused(0, volume / "q.db", "enqueue", "true")
    assert "--as-root" in line and "QUEUECTL_AS_ROOT" in line and "1000" in line, line
    assert list(volume.iterdir()) == []
    assert town.call(0, volume / "q.db", "enqueue", "true", QUEUECTL_AS_ROOT="1").stdout == "1\n"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", ["option", pytest.param("option behind the command", marks=pytest.mark.slow), "variable"])
def test_with_as_root_all_that_is_made_is_the_users_who_goes_on_with_it(town, way):
    home = town.home("ann", ANN)
    db = home / "new" / "q.db" if way == "variable" else home / "q.db"
    if way != "variable":
        town.call(ANN, db, "enqueue", "echo one")

    def root(*words):
        if way == "option":
            return town.queue.run([*town.program, "--as-root", "--db", str(db), *words], cwd="/")
        if way == "variable":
            return town.call(0, db, *words, QUEUECTL_AS_ROOT="1")
        lead = 2 if words[0] in ("worker", "config") else 1
        return town.call(0, db, *words[:lead], "--as-root", *words[lead:])

    if way == "variable":
        assert root("enqueue", "echo one").stdout == "1\n"
    root("config", "set", "log_limit", "64KiB")
    assert root("enqueue", "id -u; yes | head -c 200000").stdout == "2\n"
    assert "4242" in root("worker", "start", "--count", "2").stderr, "root is told whose jobs it runs"
    root("wait", "1", "2", "--timeout", "20")
    assert root("logs", "2").stdout.startswith("0\n")
    assert "4242" in root("run", "echo three").stderr
    root("worker", "stop")
    root("doctor", "--fix")
    assert {path: path.lstat().st_uid for path in home.rglob("*") if path.lstat().st_uid != ANN} == {}
    assert town.call(ANN, db, "enqueue", "echo four").stdout == "4\n"
    town.call(ANN, db, "worker", "start", "--foreground", "--drain")
    for job, text in ((1, "one"), (3, "three"), (4, "four")):
        assert town.call(ANN, db, "logs", str(job)).stdout == text + "\n"
    town.call(ANN, db, "prune", "--older-than", "0")
    assert town.call(ANN, db, "doctor").returncode == 0


@pytest.mark.parametrize("there", [False, True], ids=["a new queue", "a queue that is there"])
def test_even_with_as_root_what_a_third_user_has_put_beside_a_queue_is_refused(town, there):
    db = town.folder / "q.db"
    if there:
        town.call(ANN, db, "enqueue", "true")
        shutil.rmtree(str(db) + ".d")
    town.shell(BOB, "mkdir -m 777 q.db.d")
    line = town.refused(0, db, "enqueue", "true", QUEUECTL_AS_ROOT="1")
    assert "4243" in line and "--as-root" not in line, line
    assert list(Path(str(db) + ".d").iterdir()) == []


def test_no_chown_is_advised_for_what_is_not_the_queues(town):
    """The directory of another program may be called like ours."""
    home, other = town.home("cron.d", ANN), town.home("other.d", 0, 0o755)
    (other / "workers").write_text("true\n")
    (other / "workers").chmod(0o600)
    assert town.call(ANN, home / "q.db", "enqueue", "true").stdout == "1\n"
    line = town.refused(ANN, home / "q.db", "enqueue", "--file", str(other / "workers"))
    assert "enied" in line and "chown" not in line, line
    (home / "q.db-wal").touch(0o600)
    assert town.refused(ANN, home / "q.db", "list").count("chown -R 4242 %s/q.db-wal" % home) == 1


def test_a_backup_into_a_shared_directory_reads_nothing_that_lies_there(town):
    home = town.home("ann", ANN)
    town.call(ANN, home / "q.db", "enqueue", "true")
    town.shell(BOB, "echo x > copy.part-journal; chmod 666 copy.part-journal; ln -s /etc/passwd other")
    assert "another name" in town.refused(ANN, home / "q.db", "backup", str(town.folder / "copy"))
    assert "exists" in town.refused(ANN, home / "q.db", "backup", str(town.folder / "other"))
    town.call(ANN, home / "q.db", "backup", str(town.folder / "fine"))
    assert mode(town.folder / "fine") == 0o600


def spoil(home, what):
    """What root's workers of 1.0 left in a user's queue."""
    for path in [home / "q.db.d", *(home / "q.db.d").rglob("*")]:
        if path.match(what):
            os.chown(str(path), 0, 0)


@pytest.mark.broad
@pytest.mark.parametrize("what", ["*/logs/0"] + [pytest.param(what, marks=pytest.mark.slow) for what in ("*/workers", "*/logs", "*/gate", "*.log")])
def test_files_of_roots_in_a_users_queue_are_named_with_the_chown_that_mends_them(town, what):
    home = town.home("ann", ANN)
    db = home / "q.db"
    town.call(ANN, db, "enqueue", "echo one")
    town.call(ANN, db, "worker", "start")
    town.call(ANN, db, "wait", "1", "--timeout", "20")
    town.call(ANN, db, "worker", "stop")
    spoil(home, what)
    chown = "sudo chown -R 4242 %s.d" % db
    for words in (["worker", "start"], ["run", "echo two"]):
        done = town.call(ANN, db, *words, check=False)
        assert done.returncode == 2 and chown in done.stderr and done.stderr.count("\n") == 1, (words, done)
    done = town.call(ANN, db, "doctor", check=False)
    assert done.returncode and chown in done.stdout, done.stdout
    town.shell(0, chown.replace("sudo ", ""))
    town.call(ANN, db, "run", "echo three")
    assert town.call(ANN, db, "doctor").returncode == 0


@pytest.mark.broad
def test_a_worker_that_meets_roots_files_says_so_in_explain_and_goes_on_when_they_are_given_back(town):
    home = town.home("ann", ANN)
    db = home / "q.db"
    town.call(ANN, db, "enqueue", "until [ -e %s/go ]; do sleep 0.05; done; echo done" % home)
    town.call(ANN, db, "worker", "start")
    try:
        wait_until(lambda: json.loads(town.call(ANN, db, "show", "1", "--json").stdout)["state"] == "processing", message="it runs")
        (home / "q.db.d" / "logs" / "0").mkdir(mode=0o700)  # as a worker of root's made it
        (home / "go").touch()
        chown = "sudo chown -R 4242 %s.d" % db
        wait_until(lambda: chown in town.call(ANN, db, "explain", "1").stdout, message="explain names the chown")
        assert chown in (home / "q.db.d" / "workers.log").read_text()
        town.shell(0, chown.replace("sudo ", ""))
        town.call(ANN, db, "wait", "1", "--timeout", "20")
        assert town.call(ANN, db, "logs", "1").stdout == "done\n"
        assert "chown" not in town.call(ANN, db, "explain", "1").stdout
        wait_until(lambda: "chown" not in town.call(ANN, db, "worker", "list").stdout, message="the worker has forgotten it")
    finally:
        town.call(ANN, db, "worker", "stop", "--now")


# ---- one user against another ------------------------------------------------------------------------

def test_another_user_can_neither_see_nor_change_nor_stop_a_users_queue(town):
    home = town.home("ann", ANN, 0o755)
    db = home / "q.db"
    town.call(ANN, db, "worker", "start")
    try:
        town.call(ANN, db, "enqueue", "--env", "TOKEN=hunter2", "sleep 60")
        wait_until(lambda: json.loads(town.call(ANN, db, "show", "1", "--json").stdout)["state"] == "processing", message="it runs")
        for words in (*WORDS, ["worker", "stop", "--now"], ["cancel", "1"], ["doctor", "--fix"], ["backup", str(town.folder / "b")]):
            done = town.call(BOB, db, *words, check=False)
            assert done.returncode == 2 and "hunter2" not in done.stdout + done.stderr, (words, done)
        for path in [db, Path(str(db) + "-wal"), Path(str(db) + "-shm"), Path(str(db) + ".d"), home / "q.db.d" / "gate"]:
            done = town.queue.run([*town.user(BOB), "cat", str(path)], check=False, binary=True)
            assert done.returncode and not done.stdout, path
        [row] = json.loads(town.call(ANN, db, "worker", "list", "--json").stdout)
        done = town.queue.run([*town.user(BOB), "sh", "-c", "kill -9 %d %d; cat /proc/%d/environ" % (row["pid"], row["supervisor"], row["pid"])],
                              check=False)
        assert "ermi" in done.stderr and not done.stdout
        assert json.loads(town.call(ANN, db, "show", "1", "--json").stdout)["state"] == "processing"
    finally:
        town.call(ANN, db, "worker", "stop", "--now")


@pytest.mark.broad
def test_a_limit_of_processes_is_waited_out(town):
    """RLIMIT_NPROC binds a plain user: bob's own other processes may use it up."""
    home = town.home("bob", BOB)
    db = home / "q.db"
    needs("prlimit")
    hog = subprocess.Popen([*town.user(BOB), "sh", "-c", "for i in 1 2 3 4 5 6 7; do sleep 100 & done; echo; wait"], stdout=subprocess.PIPE,
                           start_new_session=True)
    hog.stdout.readline()
    supervisor = None
    try:
        town.call(BOB, db, "enqueue", "echo fine; exit 0")
        supervisor = subprocess.Popen(["setpriv", "--reuid=%d" % BOB, "--regid=%d" % BOB, "--clear-groups", "prlimit", "--nproc=9",
                                 *town.program, "--db", str(db), "worker", "start", "--foreground", "--count", "3"],
                                stdout=open(str(home / "out"), "w"), stderr=subprocess.STDOUT, cwd="/", env=town.queue.environment())
        wait_until(lambda: "can't start" in (home / "out").read_text(), 20, "it says that it waits")
        os.killpg(hog.pid, signal.SIGKILL)
        wait_until(lambda: json.loads(town.call(BOB, db, "show", "1", "--json").stdout)["state"] == "completed", 20, "the job is done", 0.5)
        assert json.loads(town.call(BOB, db, "show", "1", "--json").stdout)["attempts"] == 1
    finally:
        if hog.poll() is None:
            os.killpg(hog.pid, signal.SIGKILL)
        hog.wait()
        hog.stdout.close()
        if supervisor is not None:
            town.call(BOB, db, "worker", "stop", "--now")
            supervisor.wait(20)


def test_a_disk_that_is_mounted_again_as_read_only_is_one_line_and_loses_nothing(town):
    """The kernel refuses that while workers have files open for writing, so it meets those that start later."""
    needs("unshare", "mount", "nsenter")
    home = town.home("disk", 0)
    inside = subprocess.Popen(["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$1" && echo && exec sleep 100', "sh", str(home)],
                              stdout=subprocess.PIPE)
    inside.stdout.readline()

    def call(*words, check=True):
        return town.queue.run(["nsenter", "-t", str(inside.pid), "-m", *words], check=check, cwd="/")

    program = [*town.program, "--db", str(home / "q.db")]
    try:
        call(*program, "run", "echo before")
        call(*program, "enqueue", "echo whole")
        call("mount", "-o", "remount,ro", str(home))
        for words in (["enqueue", "true"], ["run", "true"], ["worker", "start"], ["cancel", "2"]):
            one_error_line(call(*program, *words, check=False))
        done = call(*program, "worker", "start", "--foreground", check=False)
        assert done.returncode == 2 and done.stdout.count("\n") == 1 and "Traceback" not in done.stderr, done
        call("mount", "-o", "remount,rw", str(home))
        call(*program, "worker", "start", "--foreground", "--drain")
        assert call(*program, "logs", "2").stdout == "whole\n"
    finally:
        inside.kill()
        inside.wait()
        inside.stdout.close()


def test_a_database_that_root_made_in_a_users_folder_is_named_with_the_chown_that_mends_it(town):
    home = town.home("annsown", ANN)
    db = home / "q.db"
    town.call(0, db, "enqueue", "exit 0", QUEUECTL_AS_ROOT="1")
    os.chown(str(db), 0, 0)
    for words in (("list",), ("enqueue", "true"), ("worker", "start"), ("explain", "1")):
        line = town.refused(ANN, db, *words)
        assert "q.db belongs to root: `sudo chown -R 4242 %s` gives it back" % db in line and "or something in it" not in line
    shown = town.call(ANN, db, "doctor", check=False).stdout
    assert "sudo chown -R 4242 %s`" % db in shown and "recover" not in shown and "to its owner" not in shown
    os.chown(str(home), 0, 0)  # a queue of root's in a folder of root's is not to be given to ann
    home.chmod(0o755)
    assert "chown" not in town.refused(ANN, db, "list")
