"""show, logs, list and top: relatives, paths, held jobs, the lines between attempts."""
from __future__ import annotations

import os
import re
import signal
import sqlite3

from conftest import posix_only, wait_until


def test_show_has_parents_children_and_the_path_of_the_log(queue):
    first, second = queue.enqueue("--name", "build", "echo built"), queue.enqueue("--after", "build", "exit 0")
    third = queue.enqueue("--after", "build", "--after", str(second), "exit 0")
    shown = queue.json("show", first)
    assert (shown["parents"], shown["children"], shown["log"]) == ([], [second, third], None)
    assert queue.json("show", third)["parents"] == [first, second]
    assert re.search(r"^children +%d, %d$" % (second, third), queue.out("show", first), re.M)
    queue.start(1)
    queue.wait_for(third, "completed")
    path = queue.json("show", first)["log"]
    with open(path) as file:
        assert file.read() == "built\n"
    assert "log           " + path in queue.out("show", first)
    assert queue.out("logs", "--path", "build") == path


def test_show_names_the_batch_that_a_job_comes_after(queue):
    queue.cli("enqueue", "--file", "-", stdin="exit 0\nexit 0\n")
    job = queue.enqueue("--after-batch", "last", "exit 0")
    assert queue.json("show", job)["after_batches"] == [1] and queue.json("show", 1)["children"] == [job]


def test_logs_path_names_every_attempt_and_says_when_there_is_none(queue):
    job, quiet = queue.enqueue("--max-retries", "1", "--backoff-base", "0", "echo x; exit 1"), queue.enqueue("exit 0")
    assert "has not run yet" in queue.cli("logs", "--path", job).stderr
    queue.start(1)
    queue.wait_for(job, "dead"), queue.wait_for(quiet, "completed")
    assert len(queue.out("logs", "--path", "--all-attempts", job).splitlines()) == 2
    assert "wrote nothing" in queue.cli("logs", "--path", quiet).stderr
    done = queue.cli("logs", "--path", "-f", job, check=False)
    assert done.returncode == 2 and "exclude each other" in done.stderr


def test_held_is_a_state_wherever_states_are_given_or_shown(queue):
    held, free = queue.enqueue("--hold", "exit 0"), queue.enqueue("exit 0")
    assert [job["id"] for job in queue.json("list", "--state", "held")] == [held]
    assert {job["id"] for job in queue.json("list", "--state", "pending")} == {held, free}
    for words in (["list"], ["list", "--tree"], ["top", "--once"]):
        assert re.search(r"\b%d +held\b" % held, queue.out(*words)), words
    assert "Released 1 job" in queue.out("release", "--state", "held")
    assert queue.json("list", "--state", "held") == []
    assert queue.cli("retry", "--state", "held", check=False).returncode == 2


def test_a_tree_shows_names_and_at_most_five_other_parents(queue):
    names = ["n%d" % number for number in range(9)]
    for name in names:
        queue.enqueue("--name", name, "exit 0")
    queue.enqueue("--name", "last-of-all", *[word for name in names for word in ("--after", name)], "exit 0")
    line = queue.out("list", "--tree").splitlines()[-1]
    assert "last-of-all: exit 0" in line and "(also after 1, 2, 3, 4, 5 and 3 others)" in line, line


def test_logs_f_draws_a_line_between_attempts_and_says_how_the_job_ended(queue):
    go = queue.dir / "go"
    job = queue.enqueue("--max-retries", "1", "--backoff-base", "0.1", *queue.script(
        "import os, sys, time\nprint('attempt', os.environ['QUEUECTL_ATTEMPT'], flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\nsys.exit(3)", go))
    queue.start(1)
    follower = queue.beside("logs", "-f", job)
    wait_until(lambda: "attempt 1" in follower.text(), message="it follows the first attempt")
    go.touch()
    assert follower.ends() == 0
    lines = [line for line in follower.text().splitlines() if line]
    assert lines[-3:] == ["-- job %d, attempt 1 failed (exit 3); attempt 2 follows --" % job, "attempt 2", "-- job %d is dead (exit 3) --" % job], lines


def test_what_logs_f_says_is_not_in_the_output(queue):
    job = queue.enqueue("--max-retries", "0", "echo data; exit 1")
    queue.start(1)
    queue.wait_for(job, "dead")
    done = queue.cli("logs", "-f", job)
    assert done.stdout.splitlines() == ["data"] and "is dead (exit 1)" in done.stderr


def test_top_shows_running_jobs_first_with_their_names(queue):
    job = queue.enqueue("--name", "long-one", *queue.sleeper(60))
    queue.start(1)
    queue.wait_for(job, "processing")
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 60)
    rows = queue.out("top", "--once").splitlines()
    heading = next(place for place, row in enumerate(rows) if "STATE" in row)
    assert re.match(r" +%d processing .*long-one: " % job, rows[heading + 1]), rows
    assert len(rows) <= 24 and not [row for row in rows if row.startswith(">")] and max(map(len, rows)) <= 80
    queue.stop("--now")


def test_the_keys_of_top_fit_80_columns():
    import queuectl
    assert len(queuectl.Top.KEYS) < 80 and queuectl.Top.KEYS.endswith("q quit")


@posix_only("a terminal")
def test_a_page_of_top_goes_to_a_pipe_as_text(queue):
    queue.enqueue("exit 0")
    assert "\x1b" not in queue.cli("top").stdout and "q quit" not in queue.cli("top").stdout
    assert os.linesep == "\n"


def test_status_counts_a_wait_from_the_moment_when_the_job_could_run(queue):
    queue.enqueue("true")
    with sqlite3.connect(str(queue.db)) as connection:  # as after `enqueue --delay 1h`
        connection.execute("UPDATE job SET created_at=created_at-3600")
    connection.close()
    assert re.search(r"job 1 has waited [\d.]+m?s:", queue.out("status"))


@posix_only("SIGKILL")
def test_explain_says_of_a_job_whose_worker_is_dead_that_it_does_not_run(queue):
    job = queue.enqueue(*queue.script("import time; time.sleep(600)"))
    queue.start(1)
    queue.wait_for(job, "processing")
    assert queue.json("explain", job)["lost"] is False
    for fact in queue.json("status")["supervisors"] + queue.json("worker", "list"):
        os.kill(fact["pid"], signal.SIGKILL)
    found = wait_until(lambda: queue.json("explain", job)["lost"] and queue.out("explain", job), 20, "the worker is dead")
    assert re.match("job %d no longer runs: worker 1 is dead" % job, found)
    queue.cli("doctor", "--fix", check=False)  # which ends what is left of the job
    queue.cli("cancel", job)
