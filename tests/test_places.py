"""Small and odd places: homes, terminals and locales that aren't there, other users, containers, little memory,
storage without locks.  What else is odd and stands elsewhere: the umask in test_cli.py, descriptors in
test_workers.py, jumping clocks and single pid namespaces in test_faults.py."""
from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import Background, SCRIPT, linux_only, not_on_fallbacks, posix_only, remove_stale_clocks, unprivileged, wait_until
from test_cli import one_error_line

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = posix_only("homes, users and containers of a POSIX system")


def needs(*tools):
    """Skips a test that root and these programs alone can play."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or not ROOT_USER:
        pytest.skip("needs root and %s" % " ".join(tools))


def beside(queue, command, **options):
    """Starts a program that the test goes on beside; the fixture ends it."""
    path = queue.dir / ("output-%d.txt" % len(queue.background))
    process = Background(command, path, cwd=str(queue.dir), env=queue.environment(options.pop("env", None)), **options)
    queue.background.append(process)
    return process


# ---- homes -------------------------------------------------------------------------------------

def read_only_by_mode(queue):
    queue.home.chmod(0o555)
    return unprivileged()


def read_only_by_mount(queue):
    needs("unshare", "mount")
    return ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none "$HOME" && exec "$@"', "sh"]


@pytest.mark.sampled(2)
@linux_only("mounts and capabilities")
@pytest.mark.parametrize("kind", [read_only_by_mode, read_only_by_mount])
def test_a_read_only_home_is_one_line_of_advice_and_no_obstacle_with_a_database_elsewhere(queue, kind):
    prefix = kind(queue)
    try:
        for words in (["enqueue", "true"], ["worker", "start"], ["run", "true"], []):
            line = one_error_line(queue.run([*prefix, *queue.program, *words], check=False))
            assert "--db" in line, line
        one_error_line(queue.run([*prefix, *queue.program, "install"], check=False))
        queue.run([*prefix, *queue.command("enqueue", "echo fine")])
        queue.run([*prefix, *queue.command("worker", "start", "--foreground", "--drain")])
        assert queue.run([*prefix, *queue.command("logs", 1)]).stdout == "fine\n"
        assert list(queue.home.iterdir()) == []
    finally:
        queue.home.chmod(0o755)


@pytest.mark.broad
@linux_only("setpriv")
@pytest.mark.parametrize("home", [None] + [pytest.param(home, marks=pytest.mark.slow) for home in ("/nonexistent/home", "", "relative")])
def test_without_a_home_the_line_says_what_to_give_and_with_it_all_works(public, home):
    """A number without a name, as containers are often started with."""
    place = public.home("place", 4242)
    for words in (["enqueue", "true"], ["list"], ["worker", "start"], ["run", "true"], []):
        line = one_error_line(public.call("ann", home, *words, check=False, cwd=place))
        assert "--db" in line, line
    one_error_line(public.call("ann", home, "install", check=False, cwd=place))
    assert list(place.iterdir()) == []
    db = ["--db", str(place / "q.db")]
    assert public.call("ann", home, *db, "enqueue", "echo fine").stdout == "1\n"
    public.call("ann", home, *db, "worker", "start")
    public.call("ann", home, *db, "wait", "1", "--timeout", "20")
    public.call("ann", home, *db, "worker", "stop")
    assert public.call("ann", home, *db, "logs", "1").stdout == "fine\n"


def test_a_home_with_spaces_serves_the_queue_the_command_and_the_service(queue):
    home = queue.dir / "my  home's $HOME"
    home.mkdir()
    env = {"HOME": str(home), "PATH": "%s:%s" % (home / ".local/bin", os.environ["PATH"])}
    queue.run([*queue.program, "install"], env=env)
    assert queue.run(["queuectl", "enqueue", "pwd"], env=env, cwd=home).stdout == "1\n"
    queue.run(["queuectl", "worker", "start"], env=env)
    try:
        done = queue.run(["queuectl", "wait", "1", "--timeout", "20"], env=env)
        assert queue.run(["queuectl", "logs", "1"], env=env).stdout == "%s\n" % home, done
    finally:
        queue.run(["queuectl", "worker", "stop"], env=env)
    unit = queue.run(["queuectl", "service", "systemd"], env=env).stdout
    assert str(home).replace("$", "$$") in unit or "my  home" in unit, unit


# ---- terminals and languages -------------------------------------------------------------------

BARE = {"LANG": "C", "LC_ALL": None, "LC_CTYPE": None, "TERM": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("words", [["list"], ["status"], ["show", "1"], ["explain", "1"], ["stats"], ["logs", "1"], ["run", "true"],
                                   ["--help"], ["worker", "list"], ["top"], ["list", "--watch"]], ids=" ".join)
def test_a_terminal_without_a_name_and_with_lang_c_gets_plain_lines(queue, words):
    queue.enqueue("--name", "gr\u00fc\u00dfe", "echo \u20ac")
    queue.start(1)
    queue.wait_for(1, "completed")
    queue.stop()
    status, shown = queue.terminal(*words, env=BARE)
    assert status == 0 and "Traceback" not in shown, shown
    assert "\033" not in shown and "\r" not in shown


def test_a_job_in_utf_8_is_run_where_python_knows_ascii_alone(queue):
    """Python is told by PYTHONUTF8=0 (-I does not listen); PyPy needs no telling."""
    (queue.dir / "gr\u00fc\u00dfe").mkdir()
    queue.enqueue("--cwd", "gr\u00fc\u00dfe", "--env", "NAME=\u20ac", "echo \u20ac $NAME; pwd")
    bare = dict(BARE, LC_ALL="C")
    program = [sys.executable, str(SCRIPT), "--db", str(queue.db)]
    queue.run([*program, "worker", "start", "--foreground", "--drain"], env=bare)
    assert queue.cli("logs", 1, binary=True).stdout.decode() == "\u20ac \u20ac\n%s\n" % (queue.dir / "gr\u00fc\u00dfe")


# ---- users -------------------------------------------------------------------------------------

class PublicPlace:
    """A directory that every user can reach, and a Python that every user may run."""

    def __init__(self, queue, folder, program):
        self.queue = queue
        self.folder = Path(folder)
        self.folder.chmod(0o755)
        python = next((path for path in (sys.executable, "/usr/bin/python3") if self._runs(path)), None)
        if python is None:
            pytest.skip("no Python that a plain user may run")
        self.program = program(python)

    def _runs(self, python):
        again = "import os, sys; os.execv(sys.executable, [sys.executable, '-IS', '-c', 'import sqlite3'])"
        return self.queue.run([*self.user(), python, "-c", again], check=False, cwd="/").returncode == 0

    def user(self):
        return ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]

    def home(self, name, owner):
        path = self.folder / name
        path.mkdir()
        os.chown(str(path), owner, owner)
        return path

    def call(self, who, home, *words, check=True, cwd="/", prefix=()):
        prefix = self.user() if who == "ann" else prefix
        return self.queue.run([*prefix, *self.program, *words], check=check,
                              cwd=cwd, env={"HOME": home if home is None else str(home)})


@pytest.fixture
def public(queue, public_program):
    needs("setpriv")
    with tempfile.TemporaryDirectory(prefix="queuectl-", dir="/tmp") as folder:  # TMPDIR may be root's alone
        yield PublicPlace(queue, folder, public_program)


def test_a_path_that_sqlite_does_not_open_is_refused_and_nothing_made(queue):
    def below(length):
        path = str(queue.dir / "deep")
        while len(path) < length - 2:
            path += "/a"
        return path + "b" * (length - len(path))
    queue.run([*queue.program, "--db", below(504), "enqueue", "true"])
    shutil.rmtree(str(queue.dir / "deep"))
    for path in (below(505), below(3900)):
        one_error_line(queue.run([*queue.program, "--db", path, "enqueue", "true"], check=False))
    assert not (queue.dir / "deep").exists()
    queue.enqueue("true")
    one_error_line(queue.run([*queue.program, "--db", str(queue.db / "x"), "enqueue", "true"], check=False))


@linux_only("RLIMIT_FSIZE by prlimit")
def test_a_limit_of_file_sizes_is_not_told_as_damage(queue):
    queue.cli("config", "set", "timeout", "1h")
    done = queue.run(["prlimit", "--fsize=1000", *queue.command("enqueue", "true")], check=False)
    assert "ulimit" in one_error_line(done) and "damaged" not in done.stderr, done.stderr


@linux_only("setpriv")
def test_root_in_a_plain_users_home_uses_its_own_queue(public):
    """sudo often leaves HOME as it was: root's jobs must not land in the user's queue, or the user's in root's hands."""
    needs("unshare", "mount")
    throwaway = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none ~root && exec "$@"', "sh"]  # its real home is no test's
    ann = public.home("ann", 4242)
    assert public.call("ann", ann, "enqueue", "true").stdout == "1\n"
    line = one_error_line(public.call("root", ann, "status", prefix=throwaway, check=False))
    assert "there is no queue at " in line and str(ann) not in line
    strange = [path for path in ann.rglob("*") if path.stat().st_uid != 4242]
    assert strange == []
    assert public.call("ann", ann, "enqueue", "true").stdout == "2\n"


@linux_only("setpriv")
def test_a_plain_user_cannot_see_or_touch_the_queue_of_root(public):
    home = public.home("root", 0)
    public.call("root", home, "enqueue", "true")
    for words in (["list"], ["enqueue", "true"], ["run", "true"], ["worker", "start"]):
        line = one_error_line(public.call("ann", home, *words, check=False))
        assert "--db" in line or "denied" in line, line


@linux_only("setpriv")
def test_a_look_by_root_at_a_plain_users_queue_leaves_it_usable_for_the_user(public):
    ann = public.home("ann", 4242)
    db = str(ann / "q.db")
    public.call("ann", ann, "--db", db, "enqueue", "true")
    for words in (["list"], ["status"], ["enqueue", "true"], ["doctor"]):
        public.call("root", ann, "--as-root", "--db", db, *words, check=words != ["doctor"])  # it says that no worker serves the jobs
    public.call("ann", ann, "--db", db, "worker", "start", "--foreground", "--drain")
    shown = json.loads(public.call("ann", ann, "--db", db, "list", "--json").stdout)
    assert [job["state"] for job in shown] == ["completed", "completed"]


# ---- containers --------------------------------------------------------------------------------

def container(queue, *command, options="-pfn", proc=True):
    """Runs a command as process 1 of a container with its own pids and network, on the tests' disk."""
    needs("unshare")
    not_on_fallbacks("they know no pid namespaces, which only Linux has")
    return ["unshare", options, *(["--mount-proc"] if proc else []), *map(str, command)]


def zombies(parent):
    """How many children of a process have ended and were not waited for."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += words[0] == "Z" and int(words[1]) == parent
    return found


@pytest.mark.broad
@linux_only("namespaces")
def test_as_process_1_of_a_container_workers_run_jobs_leave_no_zombies_and_end_at_a_term(queue):
    inside = beside(queue, container(queue, *queue.command("worker", "start", "--foreground", "--count", 2)))
    # Each leaves a child behind, which becomes process 1's when the shell has ended.
    jobs = [queue.enqueue("(sleep 0.2) & (sleep 0.1) & exit 0") for _ in range(10)]
    for job in jobs:
        queue.wait_for(job, "completed")
    [pid] = [pid for pid, line in queue.processes().items() if "--foreground" in line and process_1(pid)]
    wait_until(lambda: "sleep" not in " ".join(queue.processes().values()), message="the children end")
    wait_until(lambda: zombies(pid) == 0, message="no zombie is left", timeout=5)
    queue.stop()
    assert inside.ends() == 0


def process_1(pid):
    """Whether a process is number 1 in its own namespace."""
    try:
        [line] = [line for line in Path("/proc/%d/status" % pid).read_text().splitlines() if line.startswith("NSpid:")]
        return line.split()[1:][1:] == ["1"]
    except (OSError, ValueError):
        return False


@linux_only("namespaces")
def test_a_container_is_stopped_by_a_term_to_its_process_1(queue):
    inside = beside(queue, container(queue, *queue.command("worker", "start", "--foreground", "--count", 2)))
    job = queue.enqueue("sleep 0.5; echo whole")
    queue.wait_for(job, "processing")
    [pid] = [pid for pid in queue.processes() if process_1(pid)]
    os.kill(pid, 15)
    assert inside.ends() == 0
    assert queue.job(job).state == "completed"


@linux_only("namespaces")
def test_where_process_1_never_waits_dead_workers_are_told_from_zombies(queue):
    """A container whose process 1 is no init keeps every orphan as a zombie for ever."""
    queue.cli("config", "set", "timeout", "none")  # makes the queue
    careless = container(queue, "sh", "-c", '"$@" & exec sleep 100', "sh", *queue.command("worker", "start", "--foreground"))
    beside(queue, careless)
    job = queue.enqueue("[ $QUEUECTL_ATTEMPT = 2 ] || sleep 77")
    queue.wait_for(job, "processing")
    wait_until(lambda: [line for line in queue.processes().values() if line.startswith("sleep 77")], message="it runs")
    victims = [pid for pid, line in queue.processes().items() if "--foreground" in line and "unshare" not in line and "sh -c" not in line]
    for pid in victims:
        os.kill(pid, 9)
    # The next start of that container's.
    queue.run(["nsenter", "-t", str(sleeper(queue)), "-p", "-n", "-m", *queue.command("worker", "start", "--foreground", "--drain")])
    assert queue.job(job).state == "completed" and queue.job(job).crashes == 1
    assert queue.json("worker", "list") == []
    os.kill(sleeper(queue), 9)


def sleeper(queue):
    [pid] = [pid for pid, line in queue.processes().items() if line.startswith("sleep 100")]
    return pid


@pytest.mark.slow
@linux_only("namespaces")
@pytest.mark.parametrize("proc", [True, pytest.param(False, marks=pytest.mark.slow)],
                         ids=["with its own proc", "with the proc of the host"])
def test_two_containers_on_one_volume_share_the_work_and_trust_no_pid_and_no_port(queue, proc):
    queue.cli("config", "set", "timeout", "600")
    first, second = [beside(queue, container(queue, *queue.command("worker", "start", "--foreground", "--count", 2), proc=proc))
                     for _ in range(2)]
    wait_until(lambda: len(queue.sql("SELECT 1 FROM worker")) == 4, message="four workers")
    pids = queue.sql("SELECT pid FROM supervisor") + queue.sql("SELECT pid FROM worker")
    assert len(set(pids)) < len(pids), "the same numbers in both: the test is one"
    out = queue.dir / "out"
    queue.cli("enqueue", "--file", "-", stdin="".join("sleep 0.1; echo %d >> '%s'\n" % (n, out) for n in range(40)))
    wait_until(lambda: queue.json("status")["jobs"]["completed"] == 40, 30, "all done", 0.1)
    assert sorted(map(int, out.read_text().split())) == list(range(40))
    supervisors = dict(queue.sql("SELECT worker.id, supervisor FROM worker"))
    done = queue.sql("SELECT worker, count(*) FROM history WHERE attempt IS NOT NULL GROUP BY worker")
    assert len({supervisors[worker] for worker, _ in done}) == 2, "both took part though no hint reaches them"
    # One dies whole, with a job of each at work: the other takes its job, and nothing of its own is hurt.
    jobs = [queue.enqueue("until [ -e go ]; do sleep 0.05; done") for _ in range(4)]
    for job in jobs:
        queue.wait_for(job, "processing")
    [victim] = [pid for pid in queue.processes() if process_1(pid) and parent(pid) == first.pid]
    os.kill(victim, 9)
    wait_until(lambda: sorted(queue.job(job).state for job in jobs) == ["pending"] * 2 + ["processing"] * 2,
               message="the dead one's jobs are given back")
    (queue.dir / "go").touch()
    for job in jobs:
        queue.wait_for(job, "completed")
    assert sorted(queue.job(job).attempt for job in jobs) == [1, 1, 2, 2] and second.poll() is None
    long = queue.enqueue("sleep 60")
    queue.wait_for(long, "processing")
    queue.cli("cancel", long)
    queue.wait_for(long, "cancelled")
    queue.stop()
    assert second.ends() == 0


def parent(pid):
    return int(Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[1])


@pytest.mark.broad
@linux_only("mounts")
def test_without_proc_all_works(queue):
    needs("unshare", "mount")
    bare = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    fails = queue.enqueue("--max-retries", "0", "(sleep 30; :) & exit 3")
    slow = queue.enqueue("--max-retries", "0", "--timeout", "0.3", "sleep 30; :")
    fine = queue.enqueue("echo fine")
    done = queue.run([*bare, *queue.command("worker", "start", "--foreground", "--drain", "--count", 2)], check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert [queue.job(job).state for job in (fails, slow, fine)] == ["dead", "dead", "completed"]
    queue.run([*bare, *queue.command("worker", "start")])
    queue.wait_for(queue.enqueue("true"), "completed")
    queue.run([*bare, *queue.command("worker", "stop", "--now")])
    for words in (["doctor"], ["worker", "list"], ["explain", fine], ["show", fine]):
        queue.run([*bare, *queue.command(*words)], check=words != ["doctor"])  # which names the dead jobs


# ---- little memory, few descriptors ------------------------------------------------------------

@pytest.mark.slow
@linux_only("the size that a process has at its start differs")
def test_64_mib_of_memory_are_enough(queue):
    small = ["sh", "-c", 'ulimit -v 65536; exec "$@"', "sh"]
    lines = "".join("echo %d\n" % n for n in range(20000))
    queue.run([*small, *queue.command("enqueue", "--hold", "--file", "-")], stdin=lines)
    queue.run([*small, *queue.command("enqueue", "head -c 20000000 /dev/zero")])
    queue.run([*small, *queue.command("enqueue", "exit 0")])
    queue.run([*small, *queue.command("run", "--count", 4, "--file", "-")], stdin="true\n" * 20)
    queue.run([*small, *queue.command("worker", "start", "--count", 4)])
    for job in (20001, 20002):
        queue.wait_for(job, "completed")
    queue.run([*small, *queue.command("worker", "stop")])
    for words in (["list"], ["list", "--limit", 0, "--json"], ["status"], ["stats"], ["logs", 20001], ["export"], ["doctor"],
                  ["cancel", "--all"], ["prune", "--older-than", "0"]):
        done = queue.run([*small, *queue.command(*words)], binary=True)
        assert b"Traceback" not in done.stderr, done.stderr[-500:]


@pytest.mark.slow
def test_64_descriptors_are_enough_for_workers_in_the_background_and_every_view(queue):
    few = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    queue.run([*few, *queue.command("worker", "start", "--count", 40)])
    queue.run([*few, *queue.command("enqueue", "--file", "-")], stdin="true\n" * 100)
    wait_until(lambda: queue.json("status")["jobs"]["completed"] == 100, 30, "all done", 0.1)
    for words in (["list"], ["stats"], ["logs", "1-100"], ["doctor"], ["worker", "stop"]):
        queue.run([*few, *queue.command(*words)])


# ---- clocks ------------------------------------------------------------------------------------

@pytest.mark.broad
@linux_only("faketime")
def test_after_the_clock_was_set_back_a_year_new_commands_work_on_the_old_queue(queue):
    if not shutil.which("faketime"):
        pytest.skip("no faketime (apt-get install faketime)")
    remove_stale_clocks()
    queue.enqueue("true")
    queue.cli("cron", "add", "hourly", "%d * * * *" % ((time.localtime().tm_min + 30) % 60), "true")  # not in the next minutes
    queue.cli("worker", "start", "--foreground", "--drain")
    past = ["faketime", "-f", "-365d"]
    assert queue.run([*past, *queue.command("enqueue", "echo new")]).stdout == "2\n"
    queue.run([*past, *queue.command("worker", "start", "--foreground", "--drain")])
    assert queue.job(2).state == "completed"
    [schedule] = json.loads(queue.run([*past, *queue.command("cron", "list", "--json")]).stdout)
    year = int(schedule["next_at"][:4])
    assert year < int(queue.json("show", 1)["created_at"][:4]), "the schedule does not wait a year for its next time"
    for words in (["list"], ["show", 1], ["stats"], ["explain", 1], ["cron", "list"], ["events"], ["doctor"], ["status"]):
        done = queue.run([*past, *queue.command(*words)], check=words != ["doctor"])  # which misses a supervisor
        assert "Traceback" not in done.stderr and not re.search(r"(^| )-[\d.]", done.stdout), done.stdout
    queue.run([*past, *queue.command("prune", "--older-than", "1d")])
    assert len(queue.json("list")) == 2, "what seems to come from the future is not old"


# ---- storage without locks ---------------------------------------------------------------------

def without_locks(queue, call, error):
    """A command prefix under which the queue's directory is storage where a lock call fails, as on some network disks."""
    needs("strace")
    db, files = str(queue.db), str(queue.files)
    paths = [db, db + "-wal", db + "-shm", files + "/gate", *("%s/workers/%s1.lock" % (files, kind) for kind in ("", "s"))]
    return ["strace", "-f", "-qq", "-o", str(queue.dir / "strace.txt"), "-e", "trace=" + call, "-e", "inject=%s:error=%s" % (call, error),
            *(word for path in paths for word in ("-P", path))]


@pytest.mark.sampled(2)
@linux_only("strace")
@pytest.mark.parametrize("there", [False, True], ids=["a new queue", "a queue moved there"])
@pytest.mark.parametrize("call, error", [("fcntl", "ENOLCK")] + [
    pytest.param(*words, marks=pytest.mark.slow) for words in (("flock", "ENOLCK"), ("flock", "EOPNOTSUPP"), ("fcntl", "EINVAL"), ("flock", "ENOSYS"))])
def test_storage_where_locks_fail_is_refused_with_advice(queue, call, error, there):
    if there:
        queue.enqueue("true")
    for words in (["enqueue", "true"], ["run", "true"], ["worker", "start", "--foreground", "--drain"]):
        done = queue.run([*without_locks(queue, call, error), *queue.command(*words)], check=False, timeout=20)
        line = done.stdout.strip() if "--foreground" in words else one_error_line(done).strip()  # there it is a line of the log
        assert done.returncode == 2 and "--db" in line and "locks fail" in line and "\n" not in line, (done.stdout, done.stderr)
    assert there or not queue.db.exists()
    if there:
        assert queue.json("status")["jobs"]["processing"] == 0


@linux_only("strace")
def test_a_private_file_made_by_a_refused_start_is_no_obstacle_later(queue):
    queue.run([*without_locks(queue, "flock", "ENOLCK"), *queue.command("enqueue", "true")], check=False)
    assert queue.enqueue("true") == 1
    assert stat.S_IMODE(queue.db.stat().st_mode) == 0o600


# ---- bytes and locales ---------------------------------------------------------------------------------

E_LATIN, E_UTF8 = b"caf\xe9", "caf\u00e9".encode()  # the same word in two encodings
UTF8 = {"LC_ALL": "C.UTF-8"}


@pytest.fixture
def latin(tmp_path):
    """The environment of a user whose locale is ISO-8859-1."""
    if not shutil.which("localedef"):
        pytest.skip("needs localedef")
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")], stderr=subprocess.PIPE)
    if not (tmp_path / "en_US.ISO-8859-1").exists():
        pytest.skip("needs the sources of locales: %s" % made.stderr[:200])
    return {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}


def drained(queue, env, status=0):
    done = queue.cli("worker", "start", "--foreground", "--drain", "--count", 2, env=env, binary=True, check=False)
    assert done.returncode == status, done


@pytest.mark.sampled(2)
@linux_only("locales that localedef makes")
@pytest.mark.parametrize("word", [E_LATIN, E_UTF8], ids=["ISO-8859-1", "UTF-8"])
@pytest.mark.parametrize("turned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands_arguments_directories_and_variables_arrive_byte_for_byte_in_another_locale(queue, latin, word, turned):
    mine, theirs = (latin, UTF8) if turned else (UTF8, latin)
    place = os.path.join(os.fsencode(str(queue.dir)), b"in " + word)
    os.mkdir(place)
    (queue.dir / "jobs").write_bytes(b"echo " + word + b"\n"
                                     + b'{"command": ["printf", "%s.", "' + word + b'"], "cwd": "' + place + b'"}\n')
    for words in ([b"echo " + word], [b"printf", b"%s|", word, b"x y"], [b"--cwd", b"in " + word, b"pwd; echo $PWD"],
                  [b"--env", b"V=" + word, b"echo $V"], [b'{"command": "echo ' + word + b'"}'], [b"--file", b"jobs"]):
        queue.run([*queue.command("enqueue"), *words], env=mine, binary=True)
    queue.run([*queue.command("enqueue"), b"echo $HERE; pwd"], env=dict(mine, HERE=os.fsdecode(word)), cwd=os.fsdecode(place), binary=True)
    queue.run([*queue.command("cron", "add", "n", "--every", "1h"), b"--cwd", b"in " + word, b"printf", b"%s", word], env=mine, binary=True)
    queue.cli("cron", "run", "n", env=theirs)
    drained(queue, theirs)
    logs = [queue.run(queue.command("logs", number), binary=True, env=theirs).stdout for number in range(1, 10)]
    assert logs == [word + b"\n", word + b"|x y|", place + b"\n" + place + b"\n", word + b"\n", word + b"\n", word + b"\n", word + b".",
                    word + b"\n" + place + b"\n", word]


@pytest.mark.slow
@linux_only("locales that localedef makes")
def test_a_name_is_found_in_each_locale_by_its_bytes_and_by_its_characters(queue, latin):
    for word, env in ((E_UTF8, UTF8), (E_UTF8, latin), (E_LATIN, latin)):
        queue.run([*queue.command("enqueue", "--queue"), word, b"--name", word, b"exit 0"], env=env, binary=True)
        for look, there in ((E_UTF8, UTF8), (E_UTF8, latin), (E_LATIN, latin)):
            queue.run([*queue.command("show"), look], env=there, binary=True)
        queue.run([*queue.command("cancel"), word], env=env, binary=True)
        queue.run([*queue.command("rm"), word], env=env, binary=True)
    assert [row["name"] for row in queue.json("queue", "list")] == ["caf\u00e9", "default"]
    assert queue.run([*queue.command("queue", "pause"), E_LATIN], env=latin, binary=True).stdout.startswith(b"queue caf\xe9 ")


@pytest.mark.broad
@linux_only("locales that localedef makes")
def test_a_queue_whose_path_is_not_ascii_is_one_queue_in_each_locale_and_known_to_its_jobs(queue, latin):
    (queue.dir / "caf\u00e9").mkdir()
    database = os.path.join(os.fsencode(str(queue.dir)), E_UTF8, b"q.db")
    command = [*queue.program, "--db", database]
    queue.run([*command, "enqueue", "echo $QUEUECTL_DB"], env=UTF8, binary=True)
    queue.run([*command, "worker", "start", "--foreground", "--drain"], env=latin, binary=True)
    assert queue.run([*command, "logs", "1"], env=UTF8, binary=True).stdout == database + b"\n"


@linux_only("directories of any bytes")
def test_commands_of_on_dead_are_bytes_too_and_run_in_a_directory_of_bytes(queue):
    place = os.path.join(os.fsencode(str(queue.dir)), E_LATIN)
    os.mkdir(place)
    queue.run([*queue.command("config", "set", "on_dead"), b"echo " + E_LATIN + b"; pwd; printf %s \"$QUEUECTL_COMMAND\""], binary=True)
    assert queue.cli("config", "get", "on_dead").stdout.startswith("echo caf\\xe9; ")
    queue.run([*queue.command("enqueue", "--max-retries", 0), b"exit 3 # " + E_LATIN], cwd=os.fsdecode(place), binary=True)
    drained(queue, UTF8, 1)
    assert queue.run(queue.command("logs", 2), binary=True).stdout == E_LATIN + b"\n" + place + b"\nexit 3 # " + E_LATIN
