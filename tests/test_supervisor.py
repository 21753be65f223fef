"""The supervisor as a process: signals, its log, hints, what it learnt before something failed, waits that can be seen."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import Background, linux_only, posix_only, wait_until
from faults import Bench, kill

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
listen = queuectl.Supervisor._listen
def flooded(self):
    listen(self)
    self._hints = Endless(self._hints, self._token, 0)
queuectl.Supervisor._listen = flooded
"""


def test_more_hints_than_can_be_read_keep_no_supervisor_from_its_work(queue):
    bench = Bench(queue)
    job = queue.enqueue("exit 0")
    foreground = bench.patched_beside(ENDLESS, "worker", "start", "--foreground")
    queue.wait_for(job, "completed")
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    queue.stop()
    assert foreground.ends() == 0
