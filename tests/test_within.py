"""Commands that a job runs on the queue that it is in: they ask, and never wait for the job's own end, by whatever way round."""
from __future__ import annotations

import json
import shlex
import signal

import pytest
from conftest import posix_only, wait_until

pytestmark = posix_only("jobs are lines for sh")


def line(queue, *words):
    """A command of queuectl as a line for a job."""
    return " ".join(map(shlex.quote, queue.command(*words)))


def log(queue, number):
    return queue.cli("logs", number).stdout


def work_until_done(queue, count=1, timeout=30):
    queue.cli("worker", "start", "--foreground", "--drain", "--count", count, timeout=timeout, check=False)  # 1 if a job died


def test_a_job_that_restarts_the_workers_completes_and_others_take_over(queue):
    queue.start(2)
    before = {worker["id"] for worker in queue.json("worker", "list")}
    number = queue.enqueue(line(queue, "worker", "restart") + " && echo asked")
    assert queue.wait_for(number, "completed", "failed", "dead").state == "completed"
    assert "does not wait" in log(queue, number) and log(queue, number).endswith("asked\n")
    wait_until(lambda: len(queue.json("worker", "list")) == 2 and not before & {w["id"] for w in queue.json("worker", "list")},
               message="only new workers are left")
    assert queue.wait_for(queue.enqueue("exit 0"), "completed").worker is None


@pytest.mark.slow
def test_two_restarts_one_after_the_other_leave_as_many_workers_as_there_were(queue):
    queue.start(2)
    slow = queue.enqueue("until [ -f go ]; do sleep 0.02; done")
    queue.wait_for(slow, "processing")
    for _ in range(2):
        queue.wait_for(queue.enqueue(line(queue, "worker", "restart")), "completed")
    (queue.dir / "go").write_text("")
    queue.wait_for(slow, "completed")
    wait_until(lambda: len(queue.json("worker", "list")) == 2, message="the old ones are gone")


@pytest.mark.parametrize("words", [["worker", "stop"], ["worker", "scale", "1"]], ids=" ".join)
def test_a_job_that_stops_or_scales_its_own_workers_completes(queue, words):
    queue.start(2)
    other = queue.enqueue(*queue.sleeper(0.5))
    queue.wait_for(other, "processing")
    number = queue.enqueue(line(queue, *words) + " && echo asked")
    assert queue.wait_for(number, "completed", "failed", "dead").state == "completed"
    left = 0 if "stop" in words else 1
    wait_until(lambda: len(queue.json("worker", "list")) == left, message="the others have ended")
    queue.wait_for(other, "completed")
    assert log(queue, number).endswith("asked\n")


def test_a_job_of_a_run_may_stop_the_workers(queue):
    queue.start(1)
    done = queue.cli("run", line(queue, "worker", "stop"), timeout=20)
    assert done.returncode == 0
    wait_until(lambda: queue.json("worker", "list") == [], message="the workers have ended")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", [
    ["--all"], ["--state", "processing"], ["--queue", "default"], ["1"], ["last"], ["1-9"], ["--name", "me"]], ids=" ".join)
def test_a_job_that_waits_leaves_itself_out_and_says_so(queue, words):
    queue.enqueue("--name", "me", line(queue, "wait", *words) + " && echo done")
    work_until_done(queue)
    assert queue.job(1).state == "completed"
    assert "job 1 runs this command: it is not waited for" in log(queue, 1) and log(queue, 1).endswith("done\n")


def test_a_job_waits_for_a_job_that_waits_for_all(queue):
    second = "; ".join(["until [ -f begun ]; do sleep 0.02; done", "sleep 0.3", line(queue, "wait", "--all"), "echo two"])
    first = queue.enqueue("touch begun; " + line(queue, "wait", 2) + "; echo one")
    queue.enqueue(second)
    work_until_done(queue, 2)
    assert [queue.job(n).state for n in (1, 2)] == ["completed"] * 2
    assert "job %d can't end before job 2" % first in log(queue, 2) and queue.sql("SELECT * FROM waiting") == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("turn", range(3))
def test_many_jobs_that_all_wait_for_all_end(queue, turn):
    queue.cli("enqueue", "--file", "-", stdin=(line(queue, "wait", "--all") + "\n") * 4)
    work_until_done(queue, 4)
    assert {job["state"] for job in queue.json("list")} == {"completed"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", ["--after", "--after-any", "--key", "batch"])
def test_a_wait_leaves_out_jobs_that_start_only_after_its_own(queue, how):
    waits = line(queue, "wait", "--all")
    if how == "batch":
        queue.cli("enqueue", "--file", "-", stdin=waits)
        later = queue.enqueue("--after-batch", 1, "exit 0")
    else:
        queue.enqueue(*(["--key", "k"] if how == "--key" else []), waits)
        later = queue.enqueue(how, "k" if how == "--key" else 1, "exit 0")
    grandchild = queue.enqueue("--after", later, "exit 0")
    work_until_done(queue, 2)
    assert [queue.job(n).state for n in (1, later, grandchild)] == ["completed"] * 3
    assert "job %d can't end before job 1" % grandchild in log(queue, 1)


def test_a_wait_that_no_worker_is_left_for_is_refused_and_its_retry_succeeds(queue):
    queue.enqueue("--backoff-base", 0.1, line(queue, "wait", "--all"))
    other = queue.enqueue("exit 0")
    work_until_done(queue, 1)
    assert [queue.job(n).state for n in (1, other)] == ["completed"] * 2
    assert [attempt["outcome"] for attempt in queue.json("show", 1)["history"]] == ["failed", "completed"]
    first = queue.cli("logs", 1, "--attempt", 1).stdout
    assert "queuectl: error: job %d can't start before job 1" % other in first and first.count("error") == 1


def test_a_wait_for_a_job_behind_the_limit_that_its_own_job_takes_up_is_refused(queue):
    queue.cli("queue", "limit", "default", 1)
    queue.enqueue("--backoff-base", 0.1, line(queue, "wait", "2"))
    queue.enqueue("exit 0")
    work_until_done(queue, 3)
    assert [queue.job(n).state for n in (1, 2)] == ["completed"] * 2
    assert queue.json("show", 1)["history"][0]["outcome"] == "failed"


def test_a_stop_does_not_wait_for_ever_for_a_job_that_waits_for_one_that_no_worker_takes_any_more(queue):
    queue.enqueue("--backoff-base", 0.1, line(queue, "wait", 2))
    queue.enqueue("--queue", "slow", "exit 0")
    queue.start(2, "--queue", "default")
    wait_until(lambda: queue.sql("SELECT 1 FROM waiting"), message="it waits")
    queue.stop(timeout=30)
    assert queue.job(1).state == "failed" and "the workers are stopping" in log(queue, 1)
    work_until_done(queue, 2)
    assert [queue.job(n).state for n in (1, 2)] == ["completed"] * 2


def test_a_wait_is_not_refused_while_another_worker_may_become_free(queue):
    other = queue.enqueue("--priority", 9, *queue.sleeper(3))
    queue.enqueue("--max-retries", 0, "--priority", 5, line(queue, "wait", "3"))
    queue.enqueue("exit 0")
    work_until_done(queue, 2)
    assert [queue.job(n).state for n in (other, 2, 3)] == ["completed"] * 3


def test_a_run_inside_a_job_works_its_jobs_and_they_leave_the_outer_one_out(queue):
    inner = line(queue, "run", line(queue, "wait", "--all"))
    queue.enqueue(inner)
    work_until_done(queue)
    assert [queue.job(n).state for n in (1, 2)] == ["completed"] * 2
    assert "job 1 can't end before job 2" in log(queue, 2)


def test_a_run_inside_a_job_whose_queue_has_no_room_for_both_ends_and_says_why(queue):
    queue.cli("queue", "limit", "default", 1)
    queue.enqueue("--max-retries", 0, line(queue, "run", "exit 0"))
    work_until_done(queue)
    assert queue.job(1).state == "dead" and queue.job(2).state == "completed"
    assert "job 2 can't start before job 1" in log(queue, 1) and "1 left in the queue" in log(queue, 1)


def test_a_job_that_drains_its_own_queue_does_not_wait_for_itself(queue):
    queue.enqueue(line(queue, "worker", "start", "--foreground", "--drain"))
    queue.enqueue("exit 0")
    work_until_done(queue)
    assert [queue.job(n).state for n in (1, 2)] == ["completed"] * 2


def test_a_job_that_follows_its_own_log_ends(queue):
    queue.enqueue("echo mine; " + line(queue, "logs", "-f", "1"))
    queue.enqueue("echo mine; " + line(queue, "logs", "-f", "--all"))
    work_until_done(queue)
    assert queue.job(1).state == queue.job(2).state == "completed"
    assert log(queue, 1) == "mine\njob 1 runs this command: it is not waited for\n"


def test_a_job_of_another_database_waits_and_stops_as_anyone_does(queue):
    other = str(queue.dir / "other.db")
    here = [*queue.program, "--db", other]
    slow = int(queue.cli("enqueue", *queue.sleeper(0.5)).stdout)
    queue.start(1)
    words = " ".join(map(shlex.quote, queue.command("wait", slow))) + " && " + line(queue, "worker", "stop") + " && echo waited"
    queue.run([*here, "enqueue", words])
    queue.run([*here, "worker", "start", "--foreground", "--drain"])
    assert queue.job(slow).state == "completed" and queue.json("worker", "list") == []
    assert queue.run([*here, "logs", "1"]).stdout.splitlines()[-2:] == ["✔ Stopped 1 worker", "waited"]


def test_what_a_job_left_behind_waits_as_anyone_does(queue):
    """Its environment still names the job, which has ended."""
    queue.enqueue(*queue.sleeper(0.5))
    done = queue.enqueue("exit 0")
    queue.start(2)
    queue.wait_for(done, "completed")
    told = {"QUEUECTL_JOB_ID": str(done), "QUEUECTL_ATTEMPT": "1", "QUEUECTL_DB": str(queue.db)}
    assert queue.cli("wait", "--all", env=told).stderr == "" and queue.job(1).state == "completed"
    assert "Stopped 2 workers" in queue.cli("worker", "stop", env=told).stdout
    for odd in ({"QUEUECTL_JOB_ID": "x' --"}, {"QUEUECTL_DB": "/dev/null"}, {"QUEUECTL_ATTEMPT": "-1"}, {"QUEUECTL_DB": ""}):
        queue.cli("wait", 1, env=dict(told, **odd))


def test_the_wait_of_a_job_that_was_killed_is_forgotten(queue):
    queue.start(2)
    waited = queue.enqueue("until [ -f go ]; do sleep 0.02; done")
    killed = queue.enqueue("--max-retries", 0, line(queue, "wait", waited))
    wait_until(lambda: queue.sql("SELECT 1 FROM waiting"), message="it waits")
    queue.cli("cancel", killed)
    number = queue.enqueue("--max-retries", 0, line(queue, "wait", waited))
    (queue.dir / "go").write_text("")
    assert queue.wait_for(number, "completed", "dead").state == "completed"
    assert queue.sql("SELECT * FROM waiting") == []


# ---- cancel waits ------------------------------------------------------------------------------------

def test_cancel_says_what_became_of_a_job_that_runs(queue):
    queue.start(2)
    ended = queue.enqueue("exec sleep 60")
    stubborn = queue.enqueue("trap 'exit 0' TERM; touch begun; while :; do sleep 0.05; done")
    wait_until(lambda: (queue.dir / "begun").exists() and queue.job(ended).state == "processing")
    done = queue.cli("cancel", ended, stubborn)
    assert done.stdout == "✔ Cancelled 2 jobs\n" and [queue.job(n).state for n in (ended, stubborn)] == ["cancelled"] * 2


def test_cancel_asks_and_does_not_wait_with_no_wait(queue):
    queue.start(1)
    number = queue.enqueue("trap '' TERM; touch begun; while :; do sleep 0.05; done")
    wait_until(lambda: (queue.dir / "begun").exists())
    done = queue.cli("cancel", "--no-wait", number)
    assert "Asked" in done.stdout and queue.job(number).state == "processing"
    queue.wait_for(number, "cancelled")


def test_cancel_of_a_job_that_completes_first_says_so(queue):
    queue.start(1)
    number = queue.enqueue("touch begun; until [ -f go ]; do sleep 0.02; done")
    wait_until(lambda: (queue.dir / "begun").exists())
    worker = queue.json("worker", "list")[0]["pid"]
    process = stopped(queue, worker, number)
    assert process.ends() == 1 and "job %d was not cancelled: it is completed" % number in process.text()


def stopped(queue, worker, number):
    """Cancels a job whose worker is stopped and hears of it only when the job has ended."""
    import os
    os.kill(worker, signal.SIGSTOP)
    process = queue.beside("cancel", number)
    wait_until(lambda: queue.sql("SELECT cancel FROM job WHERE id=?", number) == [(1,)])
    (queue.dir / "go").write_text("")
    wait_until(lambda: not [text for text in queue.processes().values() if "begun" in text], message="the job has ended")
    os.kill(worker, signal.SIGCONT)
    return process


@pytest.mark.slow
def test_cancel_ends_with_a_word_where_the_worker_does_not_hear_it(queue):
    import os
    queue.cli("config", "set", "kill_grace", "100ms")
    queue.start(1)
    number = queue.enqueue("exec sleep 60")
    queue.wait_for(number, "processing")
    worker = queue.json("worker", "list")[0]["pid"]
    os.kill(worker, signal.SIGSTOP)
    try:
        done = queue.cli("cancel", number, check=False, timeout=30)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert done.returncode == 1 and "is still running, and was asked to end" in done.stderr


def test_a_job_that_cancels_itself_is_cancelled(queue):
    queue.start(1)
    number = queue.enqueue(line(queue, "cancel", "1") + "; exec sleep 60")
    assert queue.wait_for(number, "cancelled", "completed").state == "cancelled"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3)])
def test_cancelling_a_parent_and_its_children_in_one_call_succeeds(queue, order):
    parent = queue.enqueue("--hold", "exit 0")
    queue.enqueue("--after", parent, "exit 0")
    queue.enqueue("--after", 2, "exit 0")
    done = queue.cli("cancel", *order)
    assert done.stdout == "✔ Cancelled 3 jobs\n" and done.stderr == ""
    assert {job["state"] for job in queue.json("list")} == {"cancelled"}
    again = queue.cli("cancel", *order, check=False)
    assert again.returncode == 1 and again.stderr.count("cancelled already") == 3


def test_cancelling_by_filter_a_running_parent_with_its_children_succeeds(queue):
    queue.start(1)
    queue.cli("enqueue", "--file", "-", stdin="\n".join(json.dumps(job) for job in (
        {"id": "p", "command": "exec sleep 60"}, {"id": "c", "command": "true", "after": "p"})))
    queue.wait_for("p", "processing")
    assert queue.cli("cancel", "--batch", "last").stdout == "✔ Cancelled 2 jobs\n"


# -- what became of each job, in words --

def failed_family(queue):
    """A dead parent and a child that this cancelled."""
    parent = queue.enqueue("--max-retries", "0", "exit 3")
    child = queue.enqueue("--after", parent, "exit 0")
    work_until_done(queue)
    return parent, child


def test_a_retry_that_changed_nothing_says_so_and_why(queue):
    parent, child = failed_family(queue)
    done = queue.cli("retry", child, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("job %d was not retried: its parent, job %d, died; retry job %d first\nNo job was retried.\n"
                           % (child, parent, parent))
    waiting = queue.enqueue("--delay", "1h", "exit 0")
    done = queue.cli("retry", waiting, check=False)
    assert done.stderr == "job %d was not retried: it is pending already\nNo job was retried.\n" % waiting
    duplicate = [queue.enqueue("--unique", "k", "exit 0")]
    queue.cli("cancel", *duplicate)
    duplicate.append(queue.enqueue("--unique", "k", "exit 0"))
    done = queue.cli("retry", duplicate[0], check=False)
    assert done.stderr == ("job %d was not retried: job %d, which has the same unique key, is unfinished\nNo job was retried.\n"
                           % tuple(duplicate))


def test_what_was_changed_and_what_was_not_are_told_apart(queue):
    parent, child = failed_family(queue)
    waiting = queue.enqueue("--delay", "1h", "exit 0")
    for verb, past, refused in (("hold", "held", parent), ("release", "released", parent), ("cancel", "cancelled", child)):
        done = queue.cli(verb, waiting, refused, check=False)
        assert (done.returncode, done.stdout) == (1, "✔ %s 1 job\n" % past.capitalize()), verb
        assert done.stderr == "job %d was not %s: it %s\n" % (refused, past, "is dead" if refused == parent else "was cancelled already")
    done = queue.cli("edit", parent, "--priority", "1", check=False)
    assert (done.stdout, done.stderr) == ("", "job %d was not edited: it is dead\nNo job was edited.\n" % parent)
    assert queue.cli("hold", "--name", "no such job", check=False).stderr == "No job was held.\n"


@pytest.mark.parametrize("turned", [False, True])
def test_retrying_a_parent_and_its_child_in_one_call_succeeds(queue, turned):
    family = failed_family(queue)
    done = queue.cli("retry", *(family[::-1] if turned else family))
    assert (done.stdout, done.stderr) == ("✔ Back to pending: 2 jobs\n", "")


def test_a_state_and_an_error_that_say_the_same_are_told_once(queue):
    number = queue.enqueue("exit 0")
    queue.cli("cancel", number)
    assert queue.cli("wait", number, check=False).stderr == "job %d is cancelled\n" % number
    assert queue.out("explain", number).splitlines()[0] == "job %d is cancelled" % number


def test_a_run_says_of_a_job_that_never_ran_that_it_did_not(queue):
    jobs = {"name": "p", "command": "exit 3", "max_retries": 0}, {"command": "exit 0", "after": "p"}
    done = queue.cli("run", "--file", "-", stdin="\n".join(map(json.dumps, jobs)), check=False)
    assert "✘ job 1 (p), exit 3, attempt 1: exit 3\n" in done.stderr
    assert "✘ job 2 did not run, cancelled (its parent, job 1, died): exit 0\n" in done.stderr


def test_python_is_told_of_a_retry_in_one_word(queue):
    parent, child = failed_family(queue)
    import queuectl
    with queuectl.Queue(str(queue.db)) as python:
        assert python.retry([child, parent]) == [(child, "pending"), (parent, "pending")]
        assert python.retry([child]) == [(child, "pending already")]
        python.cancel([parent])
        assert python.retry([child]) == [(child, "cancelled")] and python.retry([99]) == [(99, "gone")]


def test_the_log_has_one_verb_in_each_line(queue):
    import os
    queue.start(1)
    queue.cli("worker", "scale", "2")
    number = queue.enqueue("exec sleep 60")
    queue.wait_for(number, "processing")
    [worker] = [w["pid"] for w in queue.json("worker", "list") if w["job"]]
    os.kill(worker, signal.SIGKILL)
    log_path = os.path.join(str(queue.db) + ".d", "workers.log")
    wait_until(lambda: "died while it ran job %d" % number in open(log_path).read())
    text = open(log_path).read()
    assert "supervisor  scaled from 1 to 2 workers" in text and "started scaled" not in text and "(worker died)" not in text
