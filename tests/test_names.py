"""Names that can be used again, labels, names of schedules, and all that `edit` and `retry` change."""
from __future__ import annotations

import json

import pytest
from conftest import SCRIPT, posix_only
from life import add_schedule, bury, claim, finish

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]
Refused = queuectl.Refused


# ---- names ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("end", ["completed", "dead", "cancelled"])
def test_a_name_is_free_again_when_its_job_has_ended_and_names_the_newest(store, end):
    first = store.enqueue("x", name="nightly", max_retries=0)
    with pytest.raises(queuectl.UserError, match="job %d is pending" % first):
        store.enqueue("y", name="nightly")
    if end == "cancelled":
        store.life.cancel([first])
    else:
        finish(store, claim(store), "completed" if end == "completed" else "failed", 1)
    second = store.enqueue("y", name="nightly")
    assert store.look.find("nightly").id == second
    finish(store, claim(store))
    assert store.look.find("nightly").id == second


def test_an_old_dead_job_is_not_retried_beside_a_living_one_of_its_name(store):
    old = store.enqueue("x", name="nightly", max_retries=0)
    bury(store, old)
    new = store.enqueue("y", name="nightly")
    assert store.life.retry([old]) == [(old, Refused("dead", "name", new))]
    finish(store, claim(store))
    assert store.life.retry([old]) == [(old, "pending")]
    assert store.look.find("nightly").id == old, "the unfinished one goes before the newest"


def test_the_command_says_which_living_job_has_the_name(queue):
    old = queue.enqueue("--name", "nightly", "--max-retries", 0, "exit 3")
    queue.start(1, "--foreground", "--drain", check=False)
    new = queue.enqueue("--name", "nightly", "--hold", "exit 0")
    done = queue.cli("retry", old, check=False)
    assert done.returncode == 1
    assert "job %d was not retried: job %d, which is unfinished, has that name" % (old, new) in done.stderr


def test_the_same_file_runs_again_and_again_on_a_kept_database(queue):
    text = "\n".join(json.dumps(job) for job in (
        {"id": "build", "command": "exit 0"}, {"id": "test", "command": "exit 0", "after": "build"}))
    for _ in range(3):
        assert queue.cli("run", "--file", "-", stdin=text).returncode == 0
    assert [queue.json("show", name)["id"] for name in ("build", "test")] == [5, 6]


def test_a_name_twice_in_one_file_is_refused_whole(queue):
    text = '{"id": "a", "command": "exit 0"}\n{"id": "a", "command": "exit 1"}'
    done = queue.cli("enqueue", "--file", "-", stdin=text, check=False)
    assert done.returncode == 2 and "line 2" in done.stderr and "'a'" in done.stderr
    assert queue.json("list") == []


# ---- labels --------------------------------------------------------------------------------------

def test_jobs_are_found_by_their_labels(queue):
    one = queue.enqueue("--label", "web", "--label", "slow", "exit 0")
    two = queue.enqueue("--label", "web,fast", "exit 0")
    queue.enqueue("exit 0")
    queue.enqueue("--label", "webs", "exit 0")
    assert queue.json("show", one)["labels"] == ["web", "slow"]
    assert [job["id"] for job in queue.json("list", "--label", "web")] == [two, one]
    assert queue.out("cancel", "--label", "web", "--dry-run").splitlines() == [
        "would cancel job %d: exit 0" % job for job in (one, two)]
    assert queue.out("_complete", "list", "--label", "").split() == ["fast", "slow", "web", "webs"]
    assert queue.json("list", "--label", "we") == []


def test_a_label_with_a_slash_is_refused_and_an_export_carries_labels(queue, tmp_path):
    assert "slash" in queue.cli("enqueue", "--label", "a/b", "exit 0", check=False).stderr
    queue.enqueue("--label", "kept", "exit 0")
    text = queue.out("export")
    other = [*queue.program, "--db", str(tmp_path / "other.db")]
    queue.run([*other, "import", "-"], stdin=text)
    assert json.loads(queue.run([*other, "show", "1", "--json"]).stdout)["labels"] == ["kept"]
    bad = text.replace("/kept/", "/a\\nb/")
    assert bad != text
    refused = queue.run([*queue.program, "--db", str(tmp_path / "third.db"), "import", "-"], stdin=bad, check=False)
    assert refused.returncode == 2 and "labels" in refused.stderr


# ---- schedules -----------------------------------------------------------------------------------

def test_the_name_of_a_schedule_stands_for_its_latest_job_wherever_a_job_is_named(queue):
    queue.cli("cron", "add", "nightly", "0 0 1 1 *", "echo night")
    assert queue.cli("show", "nightly", check=False).returncode == 2
    queue.cli("cron", "run", "nightly")
    last = int(queue.out("cron", "run", "nightly"))
    queue.start(1, "--foreground", "--drain")
    queue.enqueue("exit 0")
    assert queue.out("logs", "nightly") == "night"
    assert queue.json("show", "nightly")["id"] == queue.json("explain", "nightly")["id"] == last
    queue.cli("wait", "nightly")
    assert [job["id"] for job in queue.json("list", "--schedule", "nightly")] == [last, last - 1]
    queue.cli("rm", "nightly")
    assert queue.json("show", "nightly")["id"] == last - 1, "the newest that is left"
    queue.cli("cron", "rm", "nightly")
    assert queue.json("show", "nightly")["id"] == last - 1, "its jobs stay"


def test_a_schedule_that_has_no_job_yet_is_told_where_a_job_is_named(queue):
    queue.cli("cron", "add", "nightly", "@daily", "true")
    for command in ("logs", "show", "wait", "explain"):
        done = queue.cli(command, "nightly", check=False)
        assert done.returncode == 2 and "schedule 'nightly' has enqueued no job yet" in done.stderr


def test_an_old_job_of_a_schedule_that_does_not_overlap_is_not_retried_beside_an_unfinished_one(store):
    for name, overlap in (("alone", "skip"), ("many", "allow")):
        add_schedule(store, name, None, 3600.0, {"command": "x", "max_retries": 0}, overlap=overlap)
        old = store.schedules.run(name)
        bury(store, old)
        new = store.schedules.run(name)
        wanted = Refused("dead", "schedule", new) if overlap == "skip" else "pending"
        assert store.life.retry([old]) == [(old, wanted)]
        store.life.cancel([old, new])


@posix_only("sh")
def test_on_dead_learns_the_name_and_the_schedule(queue):
    queue.cli("config", "set", "on_dead", 'echo "[$QUEUECTL_NAME] [$QUEUECTL_SCHEDULE]"')
    queue.cli("cron", "add", "nightly", "--max-retries", 0, "0 0 1 1 *", "exit 1")
    queue.cli("cron", "run", "nightly")
    queue.enqueue("--name", "mine", "--max-retries", 0, "exit 1")
    queue.start(1, "--foreground", "--drain", check=False)
    told = sorted(queue.out("logs", job["id"]) for job in queue.json("list") if job["hook"])
    assert told == ["[mine] []", "[nightly] [nightly]"]


# ---- edit ----------------------------------------------------------------------------------------

def test_edit_changes_everything_that_a_waiting_job_was_told(queue):
    parent = queue.enqueue("--hold", "exit 0")
    job = queue.enqueue("--name", "old", "--env", "A=1", "--env", "B=1", "--label", "x", "exit 0")
    queue.cli("edit", job, "--queue", "other", "--name", "new", "--key", "k", "--env", "A=2", "--after", parent, "--label", "y",
              "--label", "z", "--unique", "u", "--priority", 3, "--ttl", "1h", "--umask", "077")
    shown = queue.json("show", job)
    assert [shown[key] for key in ("queue", "name", "key", "labels", "unique", "priority", "umask")] == [
        "other", "new", "k", ["y", "z"], "u", 3, "0077"]
    assert shown["expires_at"] is not None
    assert queue.json("explain", job)["reasons"][0] == {"reason": "parents", "detail": [parent]}
    entries = queue.sql("SELECT data FROM env JOIN job ON job.env=env.id WHERE job.id=?", job)[0][0].split(b"\0")
    assert {b"A=2", b"B=1"} <= set(entries) and b"A=1" not in entries
    assert queue.sql("SELECT sum(uses) FROM env") == [(2,)] and queue.sql("SELECT count(*) FROM env WHERE uses<1") == [(0,)]
    assert queue.sql("SELECT n FROM tally WHERE queue='other' AND state='pending'") == [(1,)]
    queue.cli("edit", job, "--key", "", "--label", "", "--name", "", "--after", "", "--unique", "")
    shown = queue.json("show", job)
    assert [shown[key] for key in ("name", "key", "labels", "unique")] == [None, None, [], None]
    assert [reason["reason"] for reason in queue.json("explain", job)["reasons"]] == ["no worker"]


def test_edit_takes_no_change_for_a_filter(queue):
    queue.enqueue("exit 0")
    done = queue.cli("edit", "--queue", "default", "--priority", 3, check=False)
    assert done.returncode == 2 and "which jobs?" in done.stderr
    queue.cli("edit", "--in-queue", "default", "--queue", "other", "--priority", 3)
    assert [(job["queue"], job["priority"]) for job in queue.json("list")] == [("other", 3)]


def test_an_edited_key_is_passed_on_and_taken(store):
    first, second = (store.enqueue("x", key="a") for _ in range(2))
    third = store.enqueue("x", key="b")
    assert store.look.job(second).gate == queuectl.KEYED
    store.life.edit([first], {"key": "b"})
    assert [store.look.job(job).gate for job in (first, second, third)] == [queuectl.KEYED, queuectl.READY, queuectl.READY]
    assert claim(store).id == second and claim(store, 2).id == third and claim(store, 3) is None


def test_edit_makes_no_cycle_and_no_second_name(store):
    first = store.enqueue("x", name="a")
    second = store.enqueue("x", after=[first])
    third = store.enqueue("x", after=[second])
    assert store.life.edit([first], {"after": [third]}) == [(first, Refused("pending", "cycle", first))]
    assert store.life.edit([first], {"after": [first]}) == [(first, Refused("pending", "cycle", first))]
    assert store.life.edit([second], {"name": "a"}) == [(second, Refused("pending", "name", first))]
    store.enqueue_many(["x", "y"], label="batch")
    inside = store.look.last_job().id
    assert store.life.edit([inside], {"after_batch": [1]}) == [(inside, Refused("pending", "cycle", inside))]
    assert claim(store).id == first


# ---- retry ---------------------------------------------------------------------------------------

def test_retry_of_a_job_that_waits_for_its_backoff_runs_it_now(queue):
    job = queue.enqueue("--backoff-base", 3000, "--max-retries", 1, "exit 1")
    queue.start(1)
    queue.wait_for(job, "failed")
    assert "Due now: 1 job" in queue.out("retry", job)
    assert queue.wait_for(job, "dead").attempts == 2, "the retries count on"
    later = queue.enqueue("--delay", "1h", "exit 0")
    assert queue.cli("retry", later, check=False).returncode == 1, "it waits for no backoff"


def test_a_job_that_edit_puts_into_a_queue_with_workers_starts_at_once(queue):
    """The supervisor looks once an hour by itself, so only the hint of the edit can start the job."""
    queue.cli("queue", "pause", "closed")
    job = queue.enqueue("--queue", "closed", "exit 0")
    queue.start_blind()
    queue.cli("edit", job, "--queue", "open")
    queue.wait_for(job, "completed")
