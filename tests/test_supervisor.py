"""The supervisor as a process: signals, its log, hints, what it learnt before something failed, waits that can be seen."""
from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Background, linux_only, posix_only, wait_until
from faults import Bench, Tmpfs, alive, check, kill, limit_process, within

queuectl = pytest.importorskip("queuectl")
pytestmark = posix_only("signals")

DISPOSITIONS = ("import signal; print(*sorted(int(n) for n in signal.valid_signals() "
                "if n not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(n) == signal.SIG_IGN))")


def ignoring(names, command):
    """A command as it is when started by a shell that ignores these signals, as by `nohup`."""
    return ["sh", "-c", "trap '' %s; exec \"$@\"" % names, "sh", *command]


def beside(queue, command):
    process = Background(command, queue.dir / ("output-%d.txt" % len(queue.background)), cwd=str(queue.dir), env=queue.environment())
    queue.background.append(process)
    return process


def supervisor_pid(queue):
    return wait_until(lambda: queue.db.exists() and queue.sql("SELECT pid FROM supervisor"), message="a supervisor")[0][0]


def held_job(queue, *options):
    """A job that runs until the file that is returned with it is removed."""
    hold = queue.dir / ("hold-%d" % len(list(queue.dir.glob("hold-*"))))
    job = queue.enqueue(*options, *queue.script("import os, sys, time\nopen(sys.argv[1], 'w').close()\n"
                                                "while os.path.exists(sys.argv[1]): time.sleep(0.01)", hold))
    return job, hold


# ---- signals ---------------------------------------------------------------------------------------

@pytest.mark.sampled(4)
@pytest.mark.parametrize("names, number", [("HUP", "SIGHUP"), ("HUP INT", "SIGINT"), ("TERM", "SIGTERM"), ("INT QUIT", "SIGQUIT")])
def test_a_signal_that_was_ignored_when_we_were_started_stays_ignored(queue, names, number):
    go = queue.dir / "go"
    wait = queue.script("import os, sys, time\nprint('begun', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)", go)
    before = queue.enqueue("exit 0")
    run = beside(queue, ignoring(names, queue.command("run", *wait)))
    queue.wait_for(before + 1, "processing")
    run.send_signal(getattr(signal, number))
    queue.cli("cancel", before)  # a turn of the supervisor
    assert run.poll() is None and queue.job(before + 1).state == "processing"
    go.touch()
    assert run.ends() == 0, run.text()
    assert queue.job(before + 1).state == "completed"


def test_jobs_of_workers_that_ignore_signals_have_the_defaults(queue):
    job = queue.enqueue(*queue.script(DISPOSITIONS))
    queue.run(ignoring("HUP INT QUIT TERM CHLD USR2", queue.command("worker", "start", "--foreground", "--drain")))
    assert queue.job(job).state == "completed" and queue.out("logs", job) == ""


def test_workers_in_the_foreground_under_nohup_survive_the_terminal(queue):
    foreground = beside(queue, ignoring("HUP", queue.command("worker", "start", "--foreground")))
    job, hold = held_job(queue)
    queue.wait_for(job, "processing")
    foreground.send_signal(signal.SIGHUP)
    os.killpg(foreground.pid, signal.SIGHUP)
    queue.wait_for(queue.enqueue("--priority", 1, "exit 0"), "pending")
    hold.unlink()
    queue.wait_for(job, "completed")
    queue.wait_for(2, "completed")
    assert foreground.poll() is None
    foreground.send_signal(signal.SIGTERM)
    assert foreground.ends() == 0


def test_a_signal_without_a_meaning_ends_neither_supervisor_nor_worker(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    pids = [supervisor_pid(queue)] + [worker["pid"] for worker in queue.json("worker", "list")]
    job, hold = held_job(queue)
    queue.wait_for(job, "processing")
    wait_until(hold.exists)
    for name in ("SIGUSR2", "SIGALRM", "SIGPROF", "SIGIO", "SIGXCPU", "SIGPIPE", "SIGRTMIN", "SIGRTMAX", "SIGUSR1"):
        for pid in pids if hasattr(signal, name) else ():
            os.kill(pid, getattr(signal, name))
    hold.unlink()
    queue.wait_for(job, "completed")
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    assert [supervisor_pid(queue)] + [worker["pid"] for worker in queue.json("worker", "list")] == pids


def test_quit_gives_the_jobs_back(queue):
    foreground = queue.beside("worker", "start", "--foreground")
    job, _ = held_job(queue)
    queue.wait_for(job, "processing")
    os.killpg(foreground.pid, signal.SIGQUIT)  # as Ctrl-\ does
    foreground.ends()
    assert (queue.job(job).state, queue.job(job).attempts) == ("pending", 0)


@pytest.mark.sampled(4)
@linux_only("strace")
@pytest.mark.parametrize("name", ["SIGQUIT", "SIGINT", "SIGHUP", "SIGTERM"])
def test_a_signal_to_the_whole_group_is_no_fault_of_a_job_that_is_just_starting(queue, name):
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    job = queue.enqueue(*queue.sleeper(20), "--max-retries", "0")
    foreground = queue.background_process([shutil.which("strace"), "-f", "-qq", "-o", os.devnull, "-e", "trace=setsid",
                                           "-e", "inject=setsid:delay_enter=1500000",  # us; before it is in a session of its own
                                           *queue.command("worker", "start", "--foreground")])
    queue.wait_for(job, "processing")
    worker = queue.sql("SELECT pid FROM worker")[0][0]
    started = wait_until(lambda: Path("/proc/%d/task/%d/children" % (worker, worker)).read_text())
    assert os.getpgid(int(started)) == foreground.pid, "the job was too fast for this test"
    os.killpg(foreground.pid, getattr(signal, name))
    foreground.ends()
    assert (queue.job(job).state, queue.job(job).attempts) == ("pending", 0)


# ---- the log ---------------------------------------------------------------------------------------

def logs_of(pid):
    """The files that are the standard output of a process."""
    return os.readlink("/proc/%d/fd/1" % pid)


@linux_only("/proc shows which file is open")
def test_the_log_is_opened_again_at_usr1(queue):
    queue.start(2)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    log, moved = queue.files / "workers.log", queue.files / "workers.log-2026"
    pids = [supervisor_pid(queue)] + [worker["pid"] for worker in queue.json("worker", "list")]
    log.rename(moved)
    os.kill(pids[0], signal.SIGUSR1)
    wait_until(log.exists, message="a new log")
    wait_until(lambda: {logs_of(pid) for pid in pids} == {str(log)}, message="idle workers let go of the old one, too")
    job = queue.enqueue("exit 0")
    queue.wait_for(job, "completed")
    wait_until(lambda: "completed job %d" % job in log.read_text(), message="the job's line")
    assert "job %d" % job not in moved.read_text()


def test_the_log_is_opened_again_when_it_was_moved_away(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    log = queue.files / "workers.log"
    for moved in (log.with_name("first"), log.with_name("second")):
        log.rename(moved)
        job = queue.enqueue("exit 0")
        queue.wait_for(job, "completed")
        wait_until(lambda: log.exists() and "completed job %d" % job in log.read_text(), message="the job's line")
    assert oct(log.stat().st_mode & 0o777) == "0o600"


@pytest.mark.slow
def test_the_log_is_rotated_by_size_while_workers_run(queue):
    queue.start(2)
    queue.start(1)
    log, old = queue.files / "workers.log", queue.files / "workers.log.1"
    for number in range(2):
        with open(log, "ab") as file:
            file.write(b"%d filler\n" % number * (2**21))
        jobs = [queue.enqueue("exit 0") for _ in range(6)]
        for job in jobs:
            queue.wait_for(job, "completed")
        wait_until(lambda: log.stat().st_size < 2**20 and "completed job %d" % jobs[-1] in log.read_text(), message="a new log")
        assert old.stat().st_size > 2**24 and old.read_bytes().count(b"%d filler\n" % number) == 2**21, "once, not twice"
    queue.stop()
    assert "ended" in log.read_text()


# ---- hints -----------------------------------------------------------------------------------------

FLOOD = """import socket, sys
ports, token = [int(port) for port in sys.argv[1].split(",")], sys.argv[2].encode()
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("flooding", flush=True)
while True:
    for port in ports:
        try:
            sender.sendto(token, ("127.0.0.1", port))
        except OSError:
            pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{token} 1", "{token} 0", "{token} " + "9" * 40, "wrong 1", "x" * 500])
def test_a_flood_of_hints_keeps_no_supervisor_from_its_work(queue, text):
    queue.start(1)
    [(port, token)] = queue.sql("SELECT port, token FROM supervisor")
    floods = [subprocess.Popen([sys.executable, "-IS", "-c", FLOOD, str(port), text.format(token=token)], env=queue.environment(),
                               stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for flood in floods:
            flood.stdout.readline()
        [worker] = queue.json("worker", "list")
        kill(worker["pid"])
        job = queue.enqueue("exit 0")
        queue.wait_for(job, "completed")  # by a worker that had to be started
        queue.stop(timeout=30)
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()
            flood.stdout.close()


# With each hint that is read two more come: more than anybody can read.
ENDLESS = """
class Endless:
    def __init__(self, hints, token, family):
        self._hints, self._text = hints, b"%s 0" % token.encode()
        self.fileno, self.close = hints.fileno, hints.close
        import socket
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    def recv(self, size):
        for _ in range(2):
            self._sender.sendto(self._text, self._hints.getsockname())
        return self._hints.recv(size)
listen = queuectl.Inbox.__init__
def flooded(self, handlers):
    listen(self, handlers)
    self._hints = Endless(self._hints, self.token, 0)
queuectl.Inbox.__init__ = flooded
"""


def test_more_hints_than_can_be_read_keep_no_supervisor_from_its_work(queue):
    bench = Bench(queue)
    job = queue.enqueue("exit 0")
    foreground = bench.patched_beside(ENDLESS, "worker", "start", "--foreground")
    queue.wait_for(job, "completed")
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    queue.stop()
    assert foreground.ends() == 0


# ---- what was learnt once survives a failure of what was to follow -----------------------------------

# In the supervisor each place that comes to the database fails when it is first reached after `arm` is there.
# FAULT: where the call of Transaction fails, at its "begin" or at its "commit"; "read": the SELECTs outside of one.
FAULTY = """
FAULT = %r
supervisor, failed = os.getpid(), set()
def fails():
    if os.getpid() != supervisor or not os.path.exists(%r):
        return False
    frame, place = sys._getframe(2), []
    while frame is not None and frame.f_code.co_name not in ("run", "close", "start"):
        place.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    if frame is None or tuple(place) in failed:
        return False
    failed.add(tuple(place))
    with open(%r, "a") as file:
        file.write("%%s\\n" %% " < ".join("%%s:%%d" %% step for step in place[:6]))
    return True
full = queuectl.sqlite3.OperationalError("database or disk is full")
enter, leave, read = queuectl.Transaction.__enter__, queuectl.Transaction.__exit__, queuectl.Database.read
def faulty_enter(self):
    if FAULT == "begin" and fails():
        raise full
    return enter(self)
def faulty_exit(self, kind, *rest):
    if FAULT == "commit" and kind is None and fails():
        leave(self, ValueError, None, None)
        raise full
    return leave(self, kind, *rest)
def faulty_read(self, *rest):
    if FAULT == "read" and not self.connection.in_transaction and fails():
        raise full
    return read(self, *rest)
queuectl.Transaction.__enter__, queuectl.Transaction.__exit__, queuectl.Database.read = faulty_enter, faulty_exit, faulty_read
"""


@pytest.mark.broad
@pytest.mark.parametrize("fault", ["begin"] + [pytest.param(fault, marks=pytest.mark.slow) for fault in ("commit", "read")])
def test_no_failure_at_any_database_call_of_the_supervisor_makes_it_forget(queue, fault):
    bench = Bench(queue)
    queue.cli("config", "set", "kill_grace", "0.3")
    arm, places = queue.dir / "arm", queue.dir / "places"
    foreground = bench.patched_beside(FAULTY % (fault, str(arm), str(places)), "worker", "start", "--foreground", "--count", 2)
    killed = bench.enqueue("hang=2", options=["--max-retries", 0])
    cancelled = bench.enqueue("until=never")
    wait_until(lambda: bench.started(killed) and bench.started(cancelled), message="both jobs run")
    due = bench.enqueue("exit=0", options=["--delay", "1.5s"])
    expired = bench.enqueue("exit=0", options=["--ttl", "1.5s", "--delay", "1h"])
    queue.cli("cron", "add", "each", "--every", "2s", "exit 0")
    arm.touch()
    kill(bench.worker_of(killed))
    queue.cli("worker", "scale", 3)
    queue.wait_for(killed, "completed", timeout=30)
    queue.cli("cancel", cancelled)
    queue.wait_for(cancelled, "cancelled")
    queue.wait_for(due, "completed")
    queue.wait_for(expired, "cancelled")
    wait_until(lambda: queue.sql("SELECT 1 FROM job WHERE schedule='each' AND state='completed'"), message="the schedule's job")
    wait_until(lambda: len(bench.workers()) == 3, message="three workers")
    queue.cli("cron", "rm", "each")
    wait_until(lambda: not queue.sql("SELECT 1 FROM job WHERE schedule='each' AND state IN ('pending','processing')"))
    wanted = ({"supervisors", "workers", "changes", "orders", "to_cancel", "next_time", "ready", "job_of_worker"}
              if fault == "read" else {"release_dead", "tick"})

    def failed():
        queue.cli("queue", "resume", "default")  # one more thing to look at
        return {step.split(":")[0] for line in places.read_text().splitlines() for step in line.split(" < ")[:4]}

    wait_until(lambda: failed() >= wanted, message="each call has failed once", interval=0.2)
    queue.stop(timeout=30)
    assert foreground.ends() == 0, foreground.text()
    assert "remove_supervisor" in failed() or fault == "read"
    jobs = {job: "completed" for job, in queue.sql("SELECT id FROM job")}
    check(bench, {**jobs, cancelled: "cancelled", expired: "cancelled"})


# ---- an end that can't be written, and waits that can be seen ----------------------------------------

def only(rows):
    [row] = rows
    return row


@pytest.fixture
def stuck(queue):
    """A job that has ended while its worker can't write to the database: stuck(count) gives (job, worker's pid)."""
    bench, limited = Bench(queue), []
    queue.cli("config", "set", "kill_grace", "0.3")

    def make(text="the output", count=1, code=0):
        go = queue.dir / "go"
        queue.start(count)
        job = queue.enqueue("--max-retries", 0, *queue.script(
            "import os, sys, time\nprint(sys.argv[2], flush=True)\nopen(sys.argv[1] + '.runs', 'a').write('x')\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\nsys.exit(int(sys.argv[3]))", go, text, code))
        wait_until(go.with_name("go.runs").exists, message="the job runs")
        pid = bench.worker_of(job)
        limited.append((pid, limit_process(pid, "RLIMIT_FSIZE", 2048)))
        go.touch()
        wait_until(lambda: queue.json("show", job)["note"], message="the wait is noted")
        return job, pid

    yield make
    for pid, before in limited:
        if alive(pid):
            limit_process(pid, "RLIMIT_FSIZE", before)


@linux_only("prlimit")
def test_a_worker_that_cannot_record_an_end_says_so_everywhere(queue, stuck):
    job, pid = stuck()
    worker = only(queue.json("worker", "list"))
    assert "job %d has ended (completed)" % job in worker["note"] and "can't write to the database" in worker["note"]
    assert worker["since"].endswith("Z")
    assert "has ended (completed)" in queue.json("status")["workers"][0]["note"]
    for words in (["status"], ["worker", "list"], ["explain", job], ["show", job]):
        text = queue.out(*words)
        assert "worker 1 can't write to the database yet that job %d has ended (completed): " % job in text or words[0] == "worker"
        assert "has ended (completed)" in text and "since 20" in text and "Z" not in text.split("since ")[1][:25], (words, text)
    reason = only(queue.json("explain", job)["reasons"])
    assert reason["reason"] == "worker" and "has ended (completed)" in reason["detail"]
    assert queue.out("logs", job) == "the output" and queue.out("logs", "-n", 1, job) == "the output"
    limit_process(pid, "RLIMIT_FSIZE", -1)
    queue.wait_for(job, "completed")
    wait_until(lambda: only(queue.json("worker", "list"))["note"] is None, message="the wait is over")
    assert queue.job(job).attempt == 1


@linux_only("prlimit")
@pytest.mark.parametrize("code", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_stop_now_ends_while_a_worker_cannot_write_and_a_rescuer_records_the_end(queue, stuck, code):
    job, _ = stuck(code=code)
    before = time.monotonic()
    done = queue.stop("--now")
    assert time.monotonic() - before < within(12) and "stop --now" not in done.stderr
    assert queue.json("worker", "list") == [] and queue.processes() == {}
    shown = queue.json("show", job)
    assert (shown["state"], shown["attempt"], shown["exit_code"]) == ("dead" if code else "completed", 1, code)
    assert [(a["outcome"], a["exit_code"]) for a in shown["history"]] == [("failed" if code else "completed", code)]
    assert (queue.dir / "go.runs").read_text() == "x" and queue.out("logs", job) == "the output"


@linux_only("prlimit")
def test_a_worker_killed_with_an_end_in_hand_does_not_run_its_job_again(queue, stuck):
    job, pid = stuck(count=2)
    kill(pid)
    queue.wait_for(job, "completed")
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]
    assert (queue.dir / "go.runs").read_text() == "x"
    assert "recorded for a dead worker" in (queue.files / "workers.log").read_text()


@linux_only("prlimit")
def test_an_end_of_another_attempt_in_a_lock_file_is_not_taken(queue, stuck):
    job, pid = stuck()
    lock = queue.files / "workers" / ("%d.lock" % only(queue.json("worker", "list"))["id"])
    text = lock.read_bytes()
    assert b"%d 1 completed" % job in text
    lock.write_bytes(text.replace(b"%d 1 completed" % job, b"%d 7 completed" % job))
    kill(pid)
    queue.wait_for(job, "completed")
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["crashed", "completed"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_stop_now_ends_on_it(queue, tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("needs root on Linux, to mount a small file system")
    disk = Tmpfs(tmp_path / "disk", "4m")
    try:
        queue.db, queue.files = disk.path / "queue.db", disk.path / "queue.db.d"
        queue.cli("config", "set", "kill_grace", "0.3")
        queue.start(1)
        go, runs = queue.dir / "go", queue.dir / "runs"
        job = queue.enqueue(*queue.script("import os, sys, time\nopen(sys.argv[2], 'a').write('x')\n"
                                          "while not os.path.exists(sys.argv[1]): time.sleep(0.01)", go, runs))
        wait_until(runs.exists, message="the job runs")
        disk.fill()
        go.touch()
        text = wait_until(lambda: (lambda t: t if "since" in t else None)(queue.out("worker", "list")), message="the wait")
        assert "has ended (completed)" in text and "full" in text, text
        before = time.monotonic()
        done = queue.stop("--now", check=False)
        assert time.monotonic() - before < within(20), done
        assert done.returncode == 1 and "the next `worker start`" in done.stdout, done
        assert queue.processes() == {}
        disk.free()
        queue.start(1)
        queue.wait_for(job, "completed")
        assert runs.read_text() == "x"
        queue.stop()
    finally:
        disk.close()


def test_a_worker_that_ends_a_job_says_so(queue):
    queue.cli("config", "set", "kill_grace", "1m")
    queue.start(1)
    job = queue.enqueue("trap '' TERM; echo begun; while :; do sleep 0.05; done")
    queue.wait_for(job, "processing")
    wait_until(lambda: queue.out("logs", job) == "begun")
    queue.cli("cancel", "--no-wait", job)
    wait_until(lambda: "ends job %d (cancelled)" % job in (queue.json("show", job)["note"] or ""), message="the wait")
    queue.cli("config", "set", "kill_grace", "0s")
    os.killpg(only(queue.json("show", job)["history"])["pid"], signal.SIGKILL)
    queue.wait_for(job, "cancelled")


@pytest.mark.slow
def test_a_locked_database_is_told_by_those_who_wait_for_it(queue):
    import sqlite3
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    job, hold = held_job(queue)
    queue.wait_for(job, "processing")
    wait_until(hold.exists)
    other = sqlite3.connect(str(queue.db), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    hold.unlink()
    wait_until(lambda: "locked" in (only(queue.json("worker", "list"))["note"] or ""), message="the worker's wait")
    other.execute("ROLLBACK")
    queue.wait_for(job, "completed")
    wait_until(lambda: only(queue.json("worker", "list"))["note"] is None, message="it goes on")
    other.close()


# ---- stopped processes -----------------------------------------------------------------------------

@pytest.mark.slow
def test_a_supervisor_that_is_stopped_is_told_and_another_takes_over(queue):
    queue.start(2)
    first = supervisor_pid(queue)
    job, hold = held_job(queue)
    queue.wait_for(job, "processing")
    os.kill(first, signal.SIGSTOP)
    try:
        waiting = queue.enqueue("exit 0")
        supervisor = only(queue.json("status")["supervisors"])
        assert supervisor["state"] == "silent" and supervisor["since"].endswith("Z") and supervisor["pid"] == first
        for words in (["status"], ["worker", "list"], ["explain", waiting], ["doctor"]):
            assert "has not answered" in queue.out(*words, status=1 if words == ["doctor"] else 0), words
        assert only(queue.json("explain", waiting)["reasons"])["reason"] == "worker"
        busy = next(worker["pid"] for worker in queue.json("worker", "list") if worker["job"] == job)
        queue.start(1)
        queue.wait_for(waiting, "completed")
        assert "has not answered" not in queue.out("explain", queue.enqueue("--delay", "1h", "exit 0"))
        kill(busy)  # whose supervisor does not hear of it
        hold.unlink()
        wait_until(lambda: queue.job(job).attempt == 2, message="it was rescued")
        wait_until(lambda: hold.exists() and hold.unlink() is None, message="it runs again")
        queue.wait_for(job, "completed")
        assert queue.job(job).crashes == 1
    finally:
        os.kill(first, signal.SIGCONT)
    wait_until(lambda: {s["state"] for s in queue.json("status")["supervisors"]} == {"working"}, message="it answers again")
    queue.stop()


def test_an_idle_supervisor_answers_and_writes_nothing_while_nobody_asks(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    lock = queue.files / "workers" / "s1.lock"
    for _ in range(3):
        assert only(queue.json("status")["supervisors"])["state"] == "working"
    seen, since = [lock.stat().st_mtime_ns], [time.monotonic()]

    def settled():
        if lock.stat().st_mtime_ns != seen[0]:
            seen[0], since[0] = lock.stat().st_mtime_ns, time.monotonic()
        return time.monotonic() - since[0] > 3  # three looks at the database

    wait_until(settled, message="nothing is written any more", interval=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["supervisor", "worker", "both"])
def test_stop_now_ends_what_is_stopped(queue, who):
    queue.cli("config", "set", "kill_grace", "0.3")
    queue.start(1)
    job, _ = held_job(queue)
    queue.wait_for(job, "processing")
    pids = {"supervisor": [supervisor_pid(queue)], "worker": [only(queue.json("worker", "list"))["pid"]]}
    for pid in pids.get(who, sum(pids.values(), [])):
        os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    done = queue.stop("--now")
    assert time.monotonic() - before < within(25)
    assert "waiting: " in done.stderr or "waiting for" in done.stderr
    assert queue.json("worker", "list") == [] and queue.job(job).state == "pending"
    wait_until(lambda: queue.processes() == {}, message="nothing is left")


# ---- a job that stops its own workers ----------------------------------------------------------------

@pytest.mark.parametrize("options", [[], pytest.param(["--now"], marks=pytest.mark.slow)])
def test_a_job_may_stop_its_own_workers_and_ends_once(queue, options):
    queue.cli("config", "set", "kill_grace", "1s")
    queue.start(2)
    other, hold = held_job(queue)
    queue.wait_for(other, "processing")
    wait_until(hold.exists)
    stop = queue.script("import subprocess, sys\nsubprocess.run(['sh', '-c', sys.argv[1]], check=True)\nprint('after')",
                        shlex.join(queue.command("worker", "stop", *options)))
    job = queue.enqueue("--max-retries", 0, *stop)
    if not options:
        wait_until(lambda: queue.sql("SELECT 1 FROM supervisor WHERE stop=1"), message="the stop is asked for")
        hold.unlink()
    queue.wait_for(job, "completed")
    assert "job %d runs this command" % job in queue.out("logs", job) and "after" in queue.out("logs", job)
    wait_until(lambda: queue.json("worker", "list") == [] and not queue.processes(), message="the workers end")
    assert (queue.job(other).state, queue.job(other).attempts) == (("pending", 0) if options else ("completed", 1))
    if options:
        queue.cli("cancel", other)
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    assert len(queue.json("worker", "list")) == 1, "a later start is not stopped again"
    assert queue.job(job).attempt == 1


@pytest.mark.broad
def test_a_job_that_stops_its_own_workers_now_and_goes_on_is_given_back_and_not_charged(queue):
    queue.cli("config", "set", "kill_grace", "0.2s")
    queue.start(1)
    stop = queue.script("import subprocess, sys, time\nsubprocess.run(['sh', '-c', sys.argv[1]], check=True)\ntime.sleep(60)",
                        shlex.join(queue.command("worker", "stop", "--now")))
    job = queue.enqueue("--max-retries", 0, *stop)
    wait_until(lambda: queue.job(job).attempt == 1 and queue.json("worker", "list") == [], timeout=30, message="the workers end")
    assert [attempt["outcome"] for attempt in queue.json("show", job)["history"]] == ["released"]
    found = queue.job(job)
    assert (found.state, found.attempts, found.crashes) == ("pending", 0, 0)


def test_a_job_of_another_queue_stops_workers_and_waits(queue, tmp_path):
    other = tmp_path / "other.db"
    queue.start(1)
    elsewhere = [*queue.program, "--db", str(other)]
    queue.run([*elsewhere, "worker", "start"])
    job = queue.enqueue(*elsewhere, "worker", "stop", "--now")
    queue.wait_for(job, "completed")
    assert "Stopped 1 worker" in queue.out("logs", job)


def test_a_job_may_restart_its_own_workers(queue):
    queue.start(1)
    before = supervisor_pid(queue)
    job = queue.enqueue(*queue.command("worker", "restart"))
    queue.wait_for(job, "completed")
    assert queue.job(job).attempt == 1
    wait_until(lambda: len(queue.sql("SELECT pid FROM supervisor")) == 1 and supervisor_pid(queue) != before, message="the old ones end")
    queue.wait_for(queue.enqueue("exit 0"), "completed")


# ---- settings reach running workers ------------------------------------------------------------------

SYNCS = """
sync = queuectl.Database.sync_wal
def told(self):
    open(%r, "a").write("%%d\\n" %% os.getpid())
    return sync(self)
queuectl.Database.sync_wal = told
"""


def test_sync_full_reaches_workers_that_are_running(queue):
    bench, syncs = Bench(queue), queue.dir / "syncs"
    bench.patched_beside(SYNCS % str(syncs), "worker", "start", "--foreground")
    [pid] = wait_until(lambda: queue.count_of_workers() and list(bench.workers().values()))

    def synced():
        queue.wait_for(queue.enqueue("exit 0"), "completed")
        return syncs.exists() and str(pid) in syncs.read_text().split()

    assert not synced() and not synced()
    queue.cli("config", "set", "sync", "full")
    wait_until(synced, message="the worker syncs its results")
    queue.cli("config", "set", "sync", "normal")

    def quiet():
        before = syncs.read_text().split().count(str(pid))
        synced()
        return syncs.read_text().split().count(str(pid)) == before

    wait_until(quiet, message="the worker no longer does so")


@pytest.mark.slow
def test_settings_that_are_read_when_used_reach_running_workers(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    queue.cli("config", "set", "max_crashes", "1")
    queue.cli("config", "set", "kill_grace", "0s")
    deaf = queue.enqueue("trap '' TERM; echo begun; while :; do sleep 0.05; done")
    wait_until(lambda: queue.out("logs", deaf) == "begun")
    before = time.monotonic()
    queue.cli("cancel", deaf)
    queue.wait_for(deaf, "cancelled")
    assert time.monotonic() - before < within(4), "kill_grace was 5s"
    queue.cli("config", "set", "log_limit", "10k")
    loud = queue.enqueue(*queue.script("import sys, time\nfor _ in range(30): sys.stdout.write('x' * 4096); sys.stdout.flush(); time.sleep(0.02)"))
    queue.wait_for(loud, "completed")
    assert len(queue.out("logs", loud)) < 12000
    queue.cli("config", "set", "on_dead", "echo told")
    queue.cli("config", "set", "max_snoozes", "0")
    snoozer = queue.enqueue("--max-retries", 0, "--snooze-on", 75, "exit 75")
    queue.wait_for(snoozer, "dead")
    wait_until(lambda: queue.sql("SELECT 1 FROM job WHERE hook='on_dead' AND state='completed'"), message="on_dead")
    crasher = queue.enqueue("kill -9 $PPID; sleep 9")
    queue.wait_for(crasher, "dead")
    queue.cli("config", "set", "keep_finished", "0.5s")
    wait_until(lambda: not queue.sql("SELECT 1 FROM job WHERE state='completed'"), 45, "retention")


def test_config_list_says_when_a_setting_holds(queue):
    import queuectl
    queue.enqueue("exit 0")
    rows = [line.split() for line in queue.out("config", "list").splitlines()]
    assert len(rows) == 1 + len(queuectl.SETTINGS)
    fixed = {row[0] for row in rows if "from enqueue" in " ".join(row)}
    assert fixed == {"max_retries", "timeout", "backoff", "backoff_base", "backoff_max", "shell", "env_keep"}


@linux_only("the state of a process")
def test_a_worker_that_is_stopped_with_a_job_is_named_wherever_its_job_is(queue):
    queue.start(1)
    job = queue.enqueue("until [ -e go ]; do sleep 0.05; done")
    worker = wait_until(lambda: next((row for row in queue.json("worker", "list") if row["job"] == job), None), message="it is claimed")
    lock = str(queue.files / "workers" / ("%d.lock" % worker["id"]))
    wait_until(lambda: queuectl.read_lock(lock).job == job, message="its process has been started")  # a claim comes before
    pid = worker["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: queuectl.OS.is_suspended(pid), message="it is stopped, which takes it a moment")
        for words in (["explain", job], ["worker", "list"], ["status"], ["show", job]):
            assert "is stopped (SIGSTOP)" in queue.out(*words), words
    finally:
        os.kill(pid, signal.SIGCONT)
    (queue.dir / "go").touch()
    queue.wait_for(job, "completed")


def test_an_idle_worker_that_is_stopped_is_named_by_explain(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue("exit 0"), "completed")  # and rests: it is not stopped in a transaction
    pid = only(queue.json("worker", "list"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        job = queue.enqueue("exit 0")
        assert queue.out("explain", job) == "job %d waits: worker 1 is idle and does not take it (its process may be stopped)" % job
        assert only(queue.json("explain", job)["reasons"])["reason"] == "worker"
    finally:
        os.kill(pid, signal.SIGCONT)
    queue.wait_for(job, "completed")
