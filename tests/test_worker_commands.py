"""The options of worker start, and scale and restart."""
from __future__ import annotations

import json
import os
import shlex
import sqlite3
import sys
import time

import pytest
from conftest import linux_only, posix_only, wait_until
from jobs import call, states


def test_max_jobs_ends_the_workers_after_so_many_jobs_over_all_of_them(queue):
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 20)
    assert queue.beside("worker", "start", "--foreground", "--count", 2, "--max-jobs", 7).ends() == 0
    assert sorted(states(queue).values()).count("completed") == 7
    assert sorted(states(queue).values()).count("pending") == 13


def test_idle_timeout_ends_workers_without_a_job_but_not_during_one(queue):
    job = queue.enqueue(*queue.script("import time; time.sleep(1.5)"))
    begun = time.monotonic()
    assert queue.beside("worker", "start", "--foreground", "--idle-timeout", "0.3s").ends() == 0
    assert time.monotonic() - begun >= 1.5
    assert queue.job(job).state == "completed"


@posix_only("niceness")
def test_nice_runs_jobs_at_that_niceness(queue):
    here = os.nice(0)
    queue.start(1, "--nice", 7)
    queue.cli("wait", queue.enqueue("nice"))
    assert int(queue.out("logs", 1)) == min(19, here + 7)
    assert call(queue, "worker", "start", "--nice", 30)[0] == 2


@pytest.mark.sampled(3)
@linux_only("scheduling policies")
@pytest.mark.parametrize("policy", ["SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE"])
def test_a_job_is_scheduled_as_whoever_started_its_worker(queue, policy):
    """Workers choose another policy for themselves."""
    start = "import os, sys; os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(0)); os.execv(sys.argv[2], sys.argv[2:])"
    wanted = str(getattr(os, policy))
    queue.run([sys.executable, "-c", start, wanted, *queue.command("worker", "start")])
    queue.cli("wait", queue.enqueue(*queue.script("import os; print(os.sched_getscheduler(0))")))
    assert queue.out("logs", 1).strip() == wanted


@linux_only("the load can be told")
def test_load_takes_no_new_job_while_the_machine_is_busier_and_says_why(queue):
    if os.getloadavg()[0] == 0:
        pytest.skip("a machine without any load at all")
    job = queue.enqueue("exit 0")
    queue.start(1, "--load", 0)
    wait_until(lambda: "load" in queue.out("worker", "list"), message="a note about the load in worker list")
    assert "load" in queue.out("explain", job)
    assert queue.job(job).state == "pending"
    queue.stop()
    queue.start(1, "--load", 100000)
    queue.wait_for(job, "completed")
    assert call(queue, "worker", "start", "--load", "high")[0] == 2


def test_scale_has_more_workers_or_fewer_without_ending_a_job(queue):
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    queue.start(1)
    queue.wait_for(job, "processing")
    queue.cli("worker", "scale", 4)
    workers = wait_until(lambda: (lambda found: found if len(found) == 4 else None)(queue.json("worker", "list")))
    assert {w["job"] for w in workers} == {job, None}
    queue.cli("worker", "scale", 1)
    wait_until(lambda: [w["job"] for w in queue.json("worker", "list")] == [job], message="only the busy worker is left")
    go.touch()
    queue.wait_for(job, "completed")
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]
    queue.cli("wait", queue.enqueue("exit 0"))
    for count in (0, -1, "x", 1.5):
        assert call(queue, "worker", "scale", count)[0] == 2


def test_scale_down_of_busy_workers_takes_effect_after_their_jobs(queue):
    go = queue.dir / "go"
    wait_for_go = queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go)
    ids = [queue.enqueue(*wait_for_go) for _ in range(3)]
    queue.start(3)
    for job in ids:
        queue.wait_for(job, "processing")
    scaling = queue.beside("worker", "scale", 1)
    go.touch()
    assert scaling.ends() == 0
    wait_until(lambda: len(queue.json("worker", "list")) == 1)
    assert set(states(queue).values()) == {"completed"}
    assert queue.sql("SELECT outcome, count(*) FROM history GROUP BY outcome") == [("completed", 3)]


def test_scale_and_restart_need_workers_that_they_can_tell_apart(queue):
    queue.enqueue("exit 0")
    for words in (["worker", "scale", 2], ["worker", "restart"]):
        assert call(queue, *words)[0] == 2
    queue.start(1, "--queue", "a"), queue.start(1, "--queue", "b")
    assert call(queue, "worker", "scale", 2)[0] == 2
    assert len(queue.json("worker", "list")) == 2


@posix_only("pseudo-terminals")
def test_a_stop_that_takes_long_says_on_a_terminal_what_it_waits_for(queue):
    job = queue.enqueue(*queue.script("import time; time.sleep(2.5)"))
    queue.start(1)
    queue.wait_for(job, "processing")
    status, text = queue.terminal("worker", "stop")
    assert status == 0 and str(job) in text.split("Stopped")[0] and "--now" in text
    assert queue.job(job).state == "completed"


def test_restart_replaces_the_workers_with_the_same_options_and_ends_no_job(queue):
    go = queue.dir / "go"
    job = queue.enqueue("--queue", "mail", *queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    other = queue.enqueue("exit 0")
    queue.start(2, "--queue", "mail")
    queue.wait_for(job, "processing")
    before = {w["pid"] for w in queue.json("worker", "list")}
    restart = queue.beside("worker", "restart")
    wait_until(lambda: len({w["pid"] for w in queue.json("worker", "list")} - before) == 2, message="two new workers beside the busy one")
    queue.cli("wait", queue.enqueue("--queue", "mail", "exit 0"))  # the new ones take jobs while the old one still runs its own
    assert queue.job(job).state == "processing"
    go.touch()
    assert restart.ends() == 0
    now = queue.json("worker", "list")
    assert len(now) == 2 and not {w["pid"] for w in now} & before
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["completed"]
    assert queue.job(other).state == "pending"


@posix_only("signals")
def test_restart_of_workers_in_the_foreground_keeps_them_with_whoever_watches_them(queue):
    supervisor = queue.beside("worker", "start", "--foreground", "--count", 1)
    wait_until(lambda: "started" in supervisor.text())
    done = queue.cli("worker", "restart", check=False)
    if done.returncode == 2:  # refused: restart the service instead
        assert "foreground" in done.stderr and supervisor.poll() is None
    else:
        wait_until(lambda: len(queue.json("worker", "list")) == 1)
        assert supervisor.poll() is None, "the process that systemd watches has ended; its successor is in the background"
    queue.cli("wait", queue.enqueue("exit 0"))


def test_restart_asks_for_all_that_the_start_asked_for(queue):
    queue.start(1, "--queue", "a b,mail", "--max-jobs", "7", "--idle-timeout", "1h", "--nice", "3", "--load", "1000")
    [(before, asked)] = queue.sql("SELECT id, arguments FROM supervisor")
    queue.cli("worker", "scale", 2)
    queue.cli("worker", "restart")
    [(after, again, queues, left, slots)] = queue.sql("SELECT id, arguments, queues, jobs_left, slots FROM supervisor")
    assert after != before and again == asked and (queues, left, slots) == ("/a b/mail/", 7, 2)
    assert json.loads(asked) == {"queues": "/a b/mail/", "max_jobs": 7, "idle_timeout": 3600.0, "nice": 3, "load": 1000.0, "drain": False,
                                 "foreground": False, "on": None}


@pytest.mark.slow
def test_restart_understands_the_words_that_1_0_wrote_into_the_row_of_its_supervisor(queue):
    queue.start(1)
    queue.sql("UPDATE supervisor SET arguments=?", "--queue\nmail\n--nice\n2")
    queue.cli("worker", "restart")
    [(asked, queues)] = queue.sql("SELECT arguments, queues FROM supervisor")
    assert json.loads(asked)["nice"] == 2 and queues == "/mail/"
    queue.sql("UPDATE supervisor SET arguments=?", "--foreground")
    assert "foreground" in queue.cli("worker", "restart", check=False).stderr
    queue.sql("UPDATE supervisor SET arguments=?", "")
    queue.cli("worker", "restart")
    assert queue.sql("SELECT queues FROM supervisor") == [(None,)]
    for damaged in ("{", "{}", "[]", "nonsense"):
        queue.sql("UPDATE supervisor SET arguments=?", damaged)
        done = queue.cli("worker", "restart", check=False)
        assert done.returncode == (0 if damaged == "{}" else 2) and "Traceback" not in done.stderr


def told_by(queue, arguments):
    """What `worker restart` says of workers whose supervisor's row holds these arguments."""
    queue.cli("worker", "start")
    connection = sqlite3.connect(str(queue.db))
    connection.execute("UPDATE supervisor SET arguments=?", (arguments,))
    connection.commit()
    connection.close()
    done = queue.cli("worker", "restart", check=False)
    queue.cli("worker", "stop")
    return done


@pytest.mark.parametrize("words", ["", "--queue\nmail"])
def test_workers_that_an_earlier_version_started_are_restarted(queue, words):
    assert told_by(queue, words).stdout == "✔ Restarted 1 worker\n"


def test_workers_that_do_not_start_are_told_with_the_reason(queue):
    done = told_by(queue, "--queue\nmail\n--max-jobs\nmany")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "many" in done.stderr


@pytest.mark.parametrize("arguments", ['{"load": "high"}', '{"nice": [1]}', '{"queues": 3, "drain": false}', '{"speed": 1}', '{"on": "slurm"}'])
def test_workers_whose_row_another_program_has_changed_are_not_restarted(queue, arguments):
    done = told_by(queue, arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "damaged" in done.stderr, done.stderr


def test_the_advice_after_a_start_can_be_pasted(queue):
    path = queue.dir / "a b.db"
    line = next(line for line in queue.run([*queue.program, "--db", str(path), "worker", "start"]).stdout.splitlines() if "stop:" in line)
    assert shlex.split(line)[-4:] == ["--db", str(path), "worker", "stop"]
    queue.run([*queue.program, "--db", str(path), "worker", "stop"])
