"""events, and the commands that on_dead and on_idle run."""
from __future__ import annotations

import json
import os
import time

import pytest
from conftest import wait_until
from jobs import api, states, work_off


# ---- events ----------------------------------------------------------------------------------------

def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_the_changes_of_state_in_order_without_a_row_more_per_job(queue):
    code = "import os, sys; sys.exit(os.environ['QUEUECTL_ATTEMPT'] == '1')"
    queue.cli("run", "--file", "-", "--count", 1, stdin="\n".join([
        "exit 0", "exit 0", json.dumps({"command": queue.script(code), "backoff_base": 0.1, "max_retries": 1}), "exit 4"]),
        check=False)
    with api(queue) as store:
        store.life.retry([4])
        store.life.cancel([4])
    found = events(queue.cli("events").stdout)
    assert [e["seq"] for e in found] == sorted({e["seq"] for e in found})
    by_job = {job: [e["state"] for e in found if e["job"] == job] for job in (1, 2, 3, 4)}
    assert by_job == {1: ["completed"], 2: ["completed"], 3: ["failed", "completed"], 4: ["dead", "pending", "cancelled"]}
    assert [(e["event"], e["exit_code"], e["error"]) for e in found if e["job"] == 4][0] == ("failed", 4, "exit 4")
    assert queue.sql("SELECT count(*) FROM history") == [(7,)]
    middle = found[2]["seq"]
    assert events(queue.cli("events", "--after", middle).stdout) == found[3:]


@pytest.mark.broad
def test_events_f_is_prompt_and_goes_on_where_a_reader_was_cut_off(queue):
    queue.start(2)
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 150)
    seen, after, cuts = [], 0, 0
    while len(seen) < 150:
        reader = queue.beside("events", "-f", "--after", after)
        wait_until(lambda: reader.text().count("\n") > min(20, 149 - len(seen)), message="more events after %d" % after)
        reader.kill()
        reader.wait()
        whole = reader.text()[:reader.text().rfind("\n") + 1]  # a line that was cut short is read again
        seen += events(whole)
        after, cuts = seen[-1]["seq"], cuts + 1
    assert [e["seq"] for e in seen] == list(range(1, 151)) and {e["job"] for e in seen} == set(range(1, 151))
    follower = queue.beside("events", "-f")
    wait_until(lambda: queue.cli("cancel", queue.enqueue("--hold", "exit 0")) and follower.text(), message="an event")
    assert time.time() - queue.sql("SELECT max(finished_at) FROM history")[0][0] < 5
    assert events(follower.text())[0]["seq"] > after  # without --after it tells what happens from now on


def test_no_event_number_is_given_twice_though_the_newest_jobs_are_removed(queue):
    work_off(queue, "exit 0", "exit 0")
    after = events(queue.cli("events").stdout)[-1]["seq"]
    queue.cli("rm", "--all")
    work_off(queue, "exit 0")
    assert [e["job"] for e in events(queue.cli("events", "--after", after).stdout)] == [3]


# ---- notifications ---------------------------------------------------------------------------------

def hook(queue, name):
    """A command that appends the facts it was given to a file, and where they are."""
    path = queue.dir / (name + ".jsonl")
    code = ("import json, os, sys; open(sys.argv[1], 'a').write(json.dumps({k: v for k, v in os.environ.items() if k.startswith('QUEUECTL_')}) + '\\n')")
    import queuectl
    queue.cli("config", "set", name, queuectl.OS.quote(queue.script(code, path)))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_on_dead_runs_a_command_of_the_users_that_knows_the_job(queue):
    told = hook(queue, "on_dead")
    job = queue.enqueue("--name", "backup", "--queue", "mail", "--max-retries", 1, "--backoff-base", 0.1, "exit 9")
    queue.enqueue("exit 0")
    queue.start(1, "--queue", "mail")  # which serves no other queue
    queue.wait_for(job, "dead")
    [facts] = wait_until(told, message="the notification")
    assert (facts["QUEUECTL_JOB"], facts["QUEUECTL_NAME"], facts["QUEUECTL_COMMAND"]) == (str(job), "backup", "exit 9")
    assert facts["QUEUECTL_EXIT_CODE"] == "9" and "exit 9" in facts["QUEUECTL_ERROR"] and facts["QUEUECTL_EVENT"] == "on_dead"


def test_an_on_dead_command_that_fails_or_hangs_is_bounded_and_changes_no_other_job(queue):
    queue.cli("config", "set", "on_dead", "exit 5")
    queue.cli("run", "--max-retries", 0, "exit 1", check=False)
    jobs = queue.json("list")
    assert [job["id"] for job in jobs] == [2, 1]  # and a notification that dies is not notified of
    assert jobs[1]["state"] == "dead" and jobs[1]["exit_code"] == 1
    assert jobs[0]["timeout"] is not None and jobs[0]["timeout"] <= 60 and jobs[0]["max_retries"] == 0


def test_a_schedule_that_is_called_on_idle_has_its_notifications_too(queue):
    told = hook(queue, "on_dead")
    queue.cli("cron", "add", "on_idle", "--every", "1d", "--max-retries", "0", "--", "exit 9")
    queue.start(1)
    queue.cli("cron", "run", "on_idle")
    [facts] = wait_until(told, message="the notification")
    assert facts["QUEUECTL_EXIT_CODE"] == "9"


def test_on_idle_runs_once_each_time_the_queue_has_run_empty(queue):
    told = hook(queue, "on_idle")
    queue.cli("config", "set", "on_dead", "exit 0")
    queue.enqueue("exit 0"), queue.enqueue("--max-retries", 0, "exit 1")
    queue.start(1)
    wait_until(told, message="the notification, though the last job to end was one of on_dead")
    queue.cli("wait", "--all", check=False)
    assert len(told()) == 1
    queue.cli("wait", queue.enqueue("exit 0"))
    wait_until(lambda: len(told()) == 2, message="the second time")
    queue.cli("wait", "--all")
    assert len(told()) == 2 and not any(state in ("pending", "processing") for state in states(queue).values())


def test_on_idle_runs_too_when_a_worker_that_stops_or_dies_ends_the_last_job(queue):
    told = hook(queue, "on_idle")
    queue.cli("config", "set", "max_crashes", 1)
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    queue.start(1)
    queue.wait_for(job, "processing")
    stop = queue.beside("worker", "stop")
    wait_until(lambda: "aiting" in stop.text() or queue.sql("SELECT 1 FROM supervisor WHERE stop>0"), message="the stop was asked for")
    go.touch()
    assert stop.ends() == 0
    queue.start(1)
    wait_until(told, message="the notification, which waited for workers")
    queue.cli("wait", "--all")
    job = queue.enqueue(*queue.sleeper(60))
    queue.wait_for(job, "processing")
    [[pid]] = queue.sql("SELECT pid FROM worker")
    os.kill(pid, 9 if hasattr(os, "killpg") else 15)
    queue.wait_for(job, "dead")
    wait_until(lambda: len(told()) == 2, message="the notification after a crash")
