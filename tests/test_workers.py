"""Workers: starting and stopping, retries, timeouts, crashes, logs, the dead letter queue, retention."""
from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from conftest import linux_only, posix_only, wait_until

pytestmark = pytest.mark.core


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def waits(history):
    """Seconds from the end of each attempt to the start of the next."""
    from datetime import datetime
    when = [(datetime.fromisoformat(a["started_at"].replace("Z", "+00:00")),
             datetime.fromisoformat(a["finished_at"].replace("Z", "+00:00"))) for a in history]
    return [(after[0] - before[1]).total_seconds() for before, after in zip(when, when[1:])]


def drain(queue, count=1, status=0):
    return queue.cli("worker", "start", "--foreground", "--drain", "--count", count, status=status)


# ---- starting and stopping -----------------------------------------------------------------------

def test_worker_start_returns_when_the_workers_are_ready_and_says_how_to_stop_them(queue):
    started = queue.start(3)
    workers = queue.json("worker", "list")
    assert len(workers) == 3
    assert len({worker["id"] for worker in workers}) == len({worker["pid"] for worker in workers}) == 3
    text = started.stdout + started.stderr
    assert "worker stop" in text and str(queue.files) in text
    job = queue.enqueue("exit 0")
    queue.wait_for(job, "completed", timeout=5)
    queue.stop()
    assert queue.json("worker", "list") == []
    assert queue.processes() == {}
    wait_until(lambda: queue.held_locks() == [], message="the locks are free")


def test_worker_list_shows_what_each_worker_does(queue):
    queue.start(1)
    for _ in range(3):
        done = queue.enqueue("exit 0")
    queue.wait_for(done, "completed")
    hold = queue.dir / "hold"
    job = queue.enqueue(*queue.script("import os, sys, time\nopen(sys.argv[1], 'w').close()\n"
                                      "while os.path.exists(sys.argv[1]): time.sleep(0.01)", hold))
    wait_until(hold.exists, message="the job runs")
    [worker] = queue.json("worker", "list")
    assert worker["job"] == job and worker["done"] == 3 and worker["uptime"] > 0
    assert worker["state"] not in ("idle", "")
    shown = queue.out("worker", "list")
    assert str(worker["pid"]) in shown
    assert queue.json("status")["workers"][0]["job"] == job
    hold.unlink()
    queue.wait_for(job, "completed")
    wait_until(lambda: queue.json("worker", "list")[0]["job"] is None, message="an idle worker", interval=0.1)


def test_stop_is_graceful_each_worker_finishes_its_job(queue):
    queue.start(1)
    begun, end = queue.dir / "begun", queue.dir / "end"
    code = ("import os, sys, time\nopen(sys.argv[1], 'w').close()\n"
            "while not os.path.exists(sys.argv[2]):\n    time.sleep(0.2)")
    job = queue.enqueue(*queue.script(code, begun, end))
    behind = queue.enqueue("exit 0")
    wait_until(begun.exists, message="the job runs")
    stop = queue.beside("worker", "stop")
    wait_until(lambda: "stopping" in (queue.files / "workers.log").read_text("utf-8"), message="the worker is being told")
    end.touch()
    assert stop.ends() == 0
    assert queue.json("worker", "list") == [] and queue.processes() == {}
    assert queue.json("show", job)["state"] == "completed"
    assert queue.json("show", behind)["state"] == "pending"


def test_stop_now_gives_the_job_back_without_charging_it(queue):
    queue.cli("config", "set", "kill_grace", "5m")
    queue.start(1)
    job = queue.enqueue("--max-retries", 0, *queue.script("import time; print('begun', flush=True); time.sleep(600)"))
    queue.wait_for(job, "processing")
    queue.stop("--now")  # times out long before kill_grace and the job are over
    shown = queue.json("show", job)
    assert (shown["state"], shown["attempts"], shown["crashes"]) == ("pending", 0, 0)
    assert [a["outcome"] for a in shown["history"]] == ["released"]
    assert queue.processes() == {}


def test_stop_without_workers_is_no_error(queue):
    queue.enqueue("exit 0")
    queue.stop()
    queue.stop()


def test_two_starts_add_up_and_one_stop_ends_all(queue):
    queue.start(2)
    queue.start(1)
    assert len(queue.json("worker", "list")) == 3
    queue.stop()
    assert queue.json("worker", "list") == []
    wait_until(lambda: queue.held_locks() == [], message="the locks are free")


@posix_only("signals")
@pytest.mark.parametrize("word", ["SIGINT", "SIGTERM"])
def test_a_signal_once_is_graceful_and_twice_is_now(queue, word):
    number = getattr(signal, word)
    foreground = queue.beside("worker", "start", "--foreground", "--count", 2)
    quick = queue.enqueue(*queue.script("import time; time.sleep(0.7)"))
    queue.wait_for(quick, "processing")
    foreground.send_signal(number)
    assert foreground.ends() == 0
    assert queue.job(quick).state == "completed"

    foreground = queue.beside("worker", "start", "--foreground", "--count", 2)
    slow = queue.enqueue(*queue.script("import time; time.sleep(60)"))
    queue.wait_for(slow, "processing")
    foreground.send_signal(number)
    wait_until(lambda: "stopping" in foreground.text(), message="it says that it stops")
    assert foreground.poll() is None
    foreground.send_signal(number)
    foreground.ends()
    assert (queue.job(slow).state, queue.job(slow).attempts) == ("pending", 0)


@posix_only("signals")
def test_a_closed_terminal_stops_now_and_gives_the_jobs_back(queue):
    foreground = queue.beside("worker", "start", "--foreground")
    slow = queue.enqueue(*queue.script("import time; time.sleep(60)"))
    queue.wait_for(slow, "processing")
    foreground.send_signal(signal.SIGHUP)
    foreground.ends()
    assert (queue.job(slow).state, queue.job(slow).attempts) == ("pending", 0)


def test_the_foreground_logs_one_line_per_event(queue):
    queue.cli("config", "set", "backoff_base", "0.1")
    good = queue.enqueue("exit 0")
    bad = queue.enqueue("--max-retries", 1, "exit 3")
    text = drain(queue, status=1).stdout
    events = [line for line in text.splitlines() if re.search(r"\d\d:\d\d:\d\d", line)]
    about_good = [line for line in events if re.search(r"\bjob %d\b" % good, line)]
    about_bad = [line for line in events if re.search(r"\bjob %d\b" % bad, line)]
    assert re.search(r"(?i)started", text)
    assert "running" in about_good[0] and "completed" in about_good[1] and len(about_good) == 2
    assert "running" in about_bad[0] and re.search(r"retry in [\d.]+ ?m?s", about_bad[1]), about_bad
    assert "running" in about_bad[2] and "dead" in about_bad[3] and "exit 3" in about_bad[3] and len(about_bad) == 4
    assert "\x1b" not in text


def test_drain_waits_for_retries_and_then_ends(queue):
    queue.cli("config", "set", "backoff_base", "0.5")
    job = queue.enqueue("--max-retries", 2, "exit 1")
    drain(queue, 2, status=1)
    assert queue.job(job).state == "dead" and queue.job(job).attempts == 3


def test_drain_in_the_background_ends_by_itself(queue):
    job = queue.enqueue(*queue.script("import time; time.sleep(0.3)"))
    queue.start(2, "--drain")
    wait_until(lambda: not queue.processes() and not queue.held_locks(), 10, "the workers end by themselves", 0.1)
    assert queue.job(job).state == "completed"
    assert queue.json("worker", "list") == []


# ---- wake-up ---------------------------------------------------------------------------------------

def test_an_idle_worker_takes_a_new_job_when_it_is_told_and_not_when_someone_looks(queue):
    queue.start_blind(2)
    for _ in range(5):
        queue.wait_for(queue.enqueue("exit 0"), "completed")


@linux_only("CPU time is read from /proc")
def test_idle_workers_use_next_to_no_cpu_time(queue):
    queue.start(4)
    queue.wait_for(queue.enqueue("exit 0"), "completed")

    def ticks():
        total = 0
        for pid in queue.processes():
            with open("/proc/%d/stat" % pid) as file:
                words = file.read().rpartition(")")[2].split()
            total += int(words[11]) + int(words[12])
        return total

    def is_idle():  # 3 ticks of 10 ms: 1.5 % of a core would be too much already
        before, end = ticks(), time.monotonic() + 2
        wait_until(lambda: time.monotonic() > end, message="two seconds", interval=0.1)
        return ticks() - before <= 3

    # The first seconds are not idle everywhere: PyPy compiles what has just run.
    wait_until(is_idle, timeout=30, message="five processes idle for two seconds")


# ---- retries ---------------------------------------------------------------------------------------

def test_retries_happen_after_growing_delays_and_end_in_the_dead_letter_queue(queue):
    queue.start(1)
    job = queue.enqueue("--max-retries", 2, "--backoff-base", 1.4, "exit 7")
    queue.wait_for(job, "failed")
    waiting = queue.json("show", job)
    assert waiting["run_at"] > waiting["finished_at"] and waiting["error"] == "exit 7"
    assert [j["id"] for j in queue.json("list", "--state", "failed")] == [job]
    queue.wait_for(job, "dead", timeout=15)
    shown = queue.json("show", job)
    assert shown["attempts"] == 3 and shown["exit_code"] == 7 and shown["error"] == "exit 7"
    assert [a["attempt"] for a in shown["history"]] == [1, 2, 3]
    assert {a["outcome"] for a in shown["history"]} == {"failed"}
    for number, seconds in enumerate(waits(shown["history"]), 1):
        assert 1.4 ** number - 0.02 <= seconds <= 1.4 ** number * 1.25 + 0.5, (number, seconds)


def test_backoff_max_caps_the_delay(queue):
    queue.cli("config", "set", "backoff_max", "0.3s")
    job = queue.enqueue("--max-retries", 3, "--backoff-base", 1000, "exit 1")
    drain(queue, status=1)
    assert all(0.28 <= seconds < 1 for seconds in waits(queue.json("show", job)["history"]))


def test_max_retries_0_is_one_run(queue):
    job = queue.enqueue("--max-retries", 0, "exit 1")
    drain(queue, status=1)
    assert (queue.job(job).state, queue.job(job).attempts) == ("dead", 1)
    assert len(queue.json("show", job)["history"]) == 1


def test_a_job_that_succeeds_in_the_end_is_completed(queue):
    code = "import os, sys; sys.exit(os.environ['QUEUECTL_ATTEMPT'] != '3')"
    job = queue.enqueue("--backoff-base", 0.1, *queue.script(code))
    drain(queue)
    shown = queue.json("show", job)
    assert (shown["state"], shown["attempts"], shown["exit_code"], shown["error"]) == ("completed", 3, 0, None)
    assert [a["outcome"] for a in shown["history"]] == ["failed", "failed", "completed"]


@posix_only("signals")
def test_failures_are_told_for_what_they_are(queue):
    cases = {"exit 3": ("exit 3", 3), "kill -9 $$": ("signal 9 (SIGKILL)", None), "kill -15 $$": ("signal 15 (SIGTERM)", None),
             "no-such-program-anywhere": ("exit 127", 127), "/etc/passwd": ("exit 126", 126)}
    jobs = {queue.enqueue("--max-retries", 0, command): told for command, told in cases.items()}
    gone = queue.enqueue("--max-retries", 0, "--cwd", queue.dir / "nowhere", "true")
    drain(queue, status=1)
    for job, (error, code) in jobs.items():
        shown = queue.json("show", job)
        assert shown["state"] == "dead" and error in shown["error"], shown
        if code is not None:
            assert shown["exit_code"] == code
    shown = queue.json("show", gone)
    assert shown["state"] == "dead" and "nowhere" in shown["error"] and shown["attempts"] == 1


# ---- timeouts --------------------------------------------------------------------------------------

@posix_only("signals and process groups")
def test_a_timeout_ends_the_whole_group_children_that_ignore_term_too(queue):
    queue.cli("config", "set", "kill_grace", "0.5s")
    pids = queue.dir / "pids"
    command = ("trap '' TERM HUP; for i in 1 2 3; do sh -c 'trap \"\" TERM HUP; echo $$ >> \"%s\"; while :; do sleep 0.2; done' & "
               "done; echo $$ >> \"%s\"; wait; sleep 100" % (pids, pids))
    job = queue.enqueue("--max-retries", 0, "--timeout", "0.7s", command)
    drain(queue, status=1)
    shown = queue.json("show", job)
    assert shown["state"] == "dead" and re.match(r"timeout after 0\.7 ?s", shown["error"]), shown
    assert shown["history"][0]["outcome"] == "timeout"
    assert 1.1 <= shown["duration"] < 60  # of the 100 s that it wants
    family = [int(pid) for pid in pids.read_text().split()]
    assert len(family) == 4 and not any(map(alive, family))


@posix_only("signals and process groups")
def test_a_timeout_sends_term_first(queue):
    queue.cli("config", "set", "kill_grace", "5m")
    job = queue.enqueue("--max-retries", 0, "--timeout", "0.5", "trap 'echo asked; exit 0' TERM; sleep 600 & wait")
    drain(queue, status=1)  # times out long before kill_grace is over
    assert queue.out("logs", job) == "asked"
    assert queue.json("show", job)["history"][0]["outcome"] == "timeout"


def test_a_job_within_its_timeout_is_not_touched(queue):
    job = queue.enqueue("--timeout", "20s", *queue.script("import time; time.sleep(0.2)"))
    drain(queue)
    assert queue.job(job).state == "completed"


@posix_only("signals and process groups")
def test_a_job_whose_main_process_ends_is_over_though_a_child_holds_its_output(queue):
    queue.start(1)
    pid_file = queue.dir / "pid"
    job = queue.enqueue("sleep 600 & echo $! > pid; echo main")
    queue.wait_for(job, "completed")
    assert queue.out("logs", job) == "main"
    queue.wait_for(queue.enqueue("true"), "completed")
    pid = int(pid_file.read_text())
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


# ---- deaths ----------------------------------------------------------------------------------------

@linux_only("kill -9 of a worker found through /proc")
def test_a_worker_that_dies_is_replaced_and_its_job_released(queue):
    queue.start(1)  # which looks each second: what the attempt leaves may take a moment to end
    code = ("import os, sys, time; print(os.environ['QUEUECTL_ATTEMPT'], flush=True)\n"
            "if os.environ['QUEUECTL_ATTEMPT'] == '1': time.sleep(60)")
    job = queue.enqueue("--max-retries", 0, *queue.script(code))
    queue.wait_for(job, "processing")
    wait_until(lambda: queue.json("show", job)["history"] and queue.out("logs", job) == "1", message="attempt 1 runs", interval=0.1)
    [worker] = queue.json("worker", "list")
    os.kill(worker["pid"], signal.SIGKILL)
    queue.wait_for(job, "completed")
    shown = queue.json("show", job)
    assert (shown["attempts"], shown["crashes"]) == (1, 1)
    assert [a["outcome"] for a in shown["history"]] == ["crashed", "completed"]
    assert "worker died" in shown["history"][0]["error"]
    [replacement] = queue.json("worker", "list")
    assert replacement["pid"] != worker["pid"]


@linux_only("the parent of a job is its worker")
def test_a_job_that_kills_its_worker_is_dead_at_max_crashes(queue):
    queue.cli("config", "set", "backoff_base", "0.2")
    queue.start(1)
    job = queue.enqueue("kill -9 $PPID; sleep 3")
    queue.wait_for(job, "dead", timeout=30)
    shown = queue.json("show", job)
    assert shown["error"] == "worker died 3 times" and shown["crashes"] == 3 and shown["attempts"] == 0
    assert [a["outcome"] for a in shown["history"]] == ["crashed"] * 3
    assert [j["id"] for j in queue.json("dlq", "list")] == [job]
    queue.wait_for(queue.enqueue("true"), "completed", timeout=10)


def kill_all(queue):
    """Kills all that is there, and returns it; again, for what was being started just then is not in one listing."""
    found = queue.processes()
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            pass
    return found


@linux_only("kill -9 of everything found through /proc")
def test_when_all_died_the_next_start_releases_the_jobs(queue):
    queue.start(2)
    slow = "import os, sys, time; time.sleep(60 if os.environ['QUEUECTL_ATTEMPT'] == '1' else 0)"
    jobs = [queue.enqueue("--max-retries", 0, *queue.script(slow)) for _ in range(2)]
    for job in jobs:
        queue.wait_for(job, "processing")
    wait_until(lambda: not kill_all(queue), message="all are dead")
    queue.start(2)
    for job in jobs:
        queue.wait_for(job, "completed", timeout=5)
    assert len(queue.json("worker", "list")) == 2


# ---- logs ------------------------------------------------------------------------------------------

@posix_only("written for sh")
def test_logs_gives_the_bytes_as_they_were_written(queue):
    job = queue.enqueue("printf 'a\\377\\000\\033[31mb\\r\\n'; printf err >&2")
    silent = queue.enqueue("true")
    drain(queue)
    assert queue.cli("logs", job, binary=True).stdout == b"a\xff\x00\x1b[31mb\r\nerr"
    assert queue.cli("logs", silent).stdout == ""


def test_each_attempt_has_its_own_log(queue):
    job = queue.enqueue("--max-retries", 1, "--backoff-base", 0.05,
                        *queue.script("import os, sys; print('try', os.environ['QUEUECTL_ATTEMPT']); sys.exit(1)"))
    drain(queue, status=1)
    assert queue.out("logs", job) == "try 2"
    assert queue.out("logs", job, "--attempt", 1) == "try 1"
    assert queue.out("logs", "--attempt", 2, job) == "try 2"


def test_logs_f_follows_until_the_job_ends(queue):
    queue.start(1)
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("import os, sys, time\nprint('first', flush=True)\n"
                                      "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('last')", go))
    follower = queue.beside("logs", job, "-f")
    wait_until(lambda: follower.text().split() == ["first"], message="the first line is shown while the job runs")
    assert follower.poll() is None
    go.write_text("")
    assert follower.ends(10) == 0
    assert follower.text().splitlines() == ["first", "last", "-- job %d is completed --" % job]


def test_logs_f_of_a_waiting_job_waits_for_it(queue):
    job = queue.enqueue("echo late")
    follower = queue.beside("logs", "-f", job)
    queue.start(1)
    follower.ends(10)
    assert "late" in follower.text()


def test_a_log_is_limited_and_the_job_goes_on(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    code = "print('the head'); [print('x' * 99) for _ in range(50000)]; print('the tail')"  # 5 MB
    job = queue.enqueue(*queue.script(code))
    drain(queue)
    assert queue.job(job).state == "completed"
    kept = queue.cli("logs", job).stdout
    assert len(kept) < 200 * 1024
    assert kept.startswith("the head") and kept.endswith("the tail\n")


def size_on_disk(path):
    try:
        stat = path.stat()
    except OSError:
        return 0  # it has just gone
    return stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size


@pytest.mark.broad
def test_a_flood_does_not_fill_the_disk_while_it_runs(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    queue.start(1)
    job = queue.enqueue("--timeout", "2s", "--max-retries", 0, *queue.script("while True: print('x' * 999)"))
    largest = 0

    def ended():
        nonlocal largest
        used = sum(size_on_disk(path) for path in queue.files.rglob("*"))
        largest = max(largest, used)
        return queue.job(job).state == "dead"

    wait_until(ended, 15, "the flooding job times out", 0.05)
    assert largest < 300 * 2 ** 20, largest  # a second of a flood is a gigabyte


# ---- the dead letter queue ---------------------------------------------------------------------------

def test_dlq_retry_counts_the_retries_anew_and_keeps_the_history(queue):
    job = queue.enqueue("--max-retries", 1, "--backoff-base", 0.05, "exit 1")
    other = queue.enqueue("--max-retries", 0, "exit 2")
    drain(queue, status=1)
    assert [j["id"] for j in queue.json("dlq", "list")] == [other, job]
    queue.cli("dlq", "retry", job)
    shown = queue.json("show", job)
    assert (shown["state"], shown["attempts"], shown["crashes"], shown["error"]) == ("pending", 0, 0, None)
    assert len(shown["history"]) == 2
    drain(queue, status=1)
    shown = queue.json("show", job)
    assert (shown["state"], shown["attempts"]) == ("dead", 2)
    assert [a["attempt"] for a in shown["history"]] == [1, 2, 3, 4]
    queue.cli("dlq", "retry", job, other)
    assert queue.json("dlq", "list") == []


def test_dlq_retry_all_brings_back_all(queue):
    queue.cli("config", "set", "max_retries", "0")
    queue.cli("enqueue", "--file", "-", stdin="exit 1\n" * 5)
    drain(queue, 2, status=1)
    assert queue.json("status")["jobs"]["dead"] == 5
    queue.cli("dlq", "retry", "--all")
    assert queue.json("status")["jobs"]["pending"] == 5


def test_dlq_purge_removes_jobs_with_their_logs(queue):
    queue.cli("config", "set", "max_retries", "0")
    queue.cli("enqueue", "--file", "-", stdin="echo x && exit 1\n" * 3)
    drain(queue, status=1)
    assert len(list(queue.files.rglob("*.log"))) >= 3
    queue.cli("dlq", "purge", 1)
    assert [j["id"] for j in queue.json("dlq", "list")] == [3, 2]
    queue.cli("dlq", "purge", "--all")
    assert queue.json("list") == []
    assert list((queue.files / "logs").rglob("*.log")) == []
    assert queue.sql("SELECT count(*) FROM history")[0][0] <= 1  # the last row stays, so that no number is given twice


# ---- retention ---------------------------------------------------------------------------------------

def test_finished_jobs_go_with_their_logs_and_dead_ones_stay(queue):
    good = queue.enqueue("echo good")
    bad = queue.enqueue("--max-retries", 0, "echo bad && exit 1")
    drain(queue, status=1)
    queue.cli("config", "set", "keep_finished", "0.01s")
    queue.start(1)
    wait_until(lambda: [j["id"] for j in queue.json("list")] == [bad], 20, "the finished job goes", 0.3)
    logs = sorted(path.name for path in (queue.files / "logs").rglob("*.log"))
    assert logs == ["%d.1.log" % bad], (good, logs)
    assert queue.sql("SELECT DISTINCT job FROM history") == [(bad,)]


# ---- isolation of jobs -------------------------------------------------------------------------------

@posix_only("process groups")
def test_each_job_runs_in_a_session_of_its_own_without_a_terminal(queue):
    job = queue.enqueue("ps -o pid=,pgid=,sid=,tty= -p $$")
    drain(queue)
    pid, group, session, terminal = queue.out("logs", job).split()
    assert pid == group == session and terminal == "?"


@linux_only("/proc/self/fd")
def test_a_job_inherits_no_descriptor_of_the_worker_but_its_output(queue):
    job = queue.enqueue(*queue.script("import os; d = os.listdir('/proc/self/fd')\nfor fd in d:\n"
                                      "    if os.path.exists('/proc/self/fd/' + fd): print(fd, os.readlink('/proc/self/fd/' + fd))"))
    drain(queue)
    descriptors = dict(line.split(" ", 1) for line in queue.out("logs", job).splitlines())
    assert descriptors.pop("0") == "/dev/null"
    assert len(descriptors) == 3  # 1, 2, and the one more that keeps the lock when a job closes those
    assert all("/workers/" in target and target.endswith(".out") for target in descriptors.values()), descriptors


@linux_only("the signal mask in /proc")
def test_a_job_starts_with_no_signal_blocked_or_ignored(queue):
    job = queue.enqueue("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    drain(queue)
    fields = dict(line.split(":\t") for line in queue.out("logs", job).splitlines())
    internal = 1 << 31 | 1 << 32  # signals 32 and 33 are glibc's own: its posix_spawn sets them to ignored
    assert int(fields["SigBlk"], 16) == 0 and int(fields["SigIgn"], 16) & ~internal == 0, fields


@posix_only("ulimit")
def test_sixty_four_descriptors_are_enough(queue):
    queue.cli("enqueue", "--file", "-", stdin="true\n" * 30)
    queue.run(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *queue.command("worker", "start", "--foreground", "--drain", "--count", 8)])
    assert queue.json("status")["jobs"]["completed"] == 30


def test_many_workers_take_each_job_once(queue):
    out = queue.dir / "out.txt"
    code = "import os, sys; f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT); os.write(f, (os.environ['QUEUECTL_JOB_ID'] + chr(10)).encode())"
    lines = "\n".join(json.dumps({"command": queue.script(code, out)}) for _ in range(60))
    queue.cli("enqueue", "--file", "-", stdin=lines)
    drain(queue, 6)
    assert sorted(map(int, out.read_text().split())) == list(range(1, 61))
    assert queue.json("status")["jobs"]["completed"] == 60
