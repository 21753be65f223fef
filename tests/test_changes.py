"""Commands that change jobs: retry, edit, rm, prune, and which jobs a selection takes."""
from __future__ import annotations

import json
import re

import pytest
from conftest import posix_only
from jobs import call, change, contents, mixed, nine_jobs, states, work_off  # noqa: F401 (fixtures)


# ---- retry -----------------------------------------------------------------------------------------

def test_retry_runs_any_finished_job_again_counted_anew_with_its_history(mixed):
    mixed.start(1)
    assert mixed.cli("wait", "--all").returncode == 0
    assert "3 jobs" in mixed.out("retry", 1, 4, 6)
    assert mixed.cli("wait", 1, 4, 6, check=False).returncode == 1
    assert {job: state for job, state in states(mixed).items() if job in (1, 4, 6)} == {1: "completed", 4: "dead", 6: "completed"}
    for job, attempts in ((1, 2), (4, 2), (6, 1)):
        shown = mixed.json("show", job)
        assert (shown["attempts"], shown["attempt"], len(shown["history"])) == (1, attempts, attempts)


def test_retry_of_a_job_that_is_not_finished_changes_nothing(mixed):
    before = contents(mixed.db)
    status, shown, told = call(mixed, "retry", 7)
    assert status == 1 and "pending" in told and "job 7" in told
    assert contents(mixed.db) == before


# ---- edit ------------------------------------------------------------------------------------------

def test_edit_changes_what_it_is_told_and_nothing_else(queue):
    job = queue.enqueue("--name", "mine", "--max-retries", 7, "--timeout", 9, "-p", 2, "--key", "k", "--env", "A=b", "echo before")
    before = queue.json("show", job)
    for words, changed in ((["--command", "echo after"], {"command": "echo after"}),
                           (["--priority", "5"], {"priority": 5}), (["-p", "-5"], {"priority": -5}),
                           (["--max-retries", 0], {"max_retries": 0}), (["--timeout", "none"], {"timeout": None})):
        assert call(queue, "edit", "mine", *words)[0] == 0
        before.update(changed)
        assert queue.json("show", job) == before
    assert call(queue, "edit", job, "--at", "2040-01-01T00:00:00Z")[0] == 0
    assert queue.json("show", job) == dict(before, run_at="2040-01-01T00:00:00.000Z")


def test_an_edited_job_runs_with_its_new_command_at_its_new_time_and_place(queue):
    late = queue.enqueue("--delay", "1h", "echo before")
    first, second = queue.enqueue("echo first"), queue.enqueue("echo second")
    queue.cli("edit", late, "--command", "echo after", "--delay", 0)
    queue.cli("edit", second, "--priority", 9)
    queue.start(1)
    queue.cli("wait", "--all")
    assert queue.out("logs", late) == "after"
    assert queue.sql("SELECT job FROM history ORDER BY seq") == [(second,), (late,), (first,)]


def test_edit_delay_0_lets_a_job_that_waits_for_its_retry_go_at_once(queue):
    job = queue.enqueue("--backoff", "constant", "--backoff-base", 3000, "--max-retries", 1, "exit 1")
    queue.start(1)
    queue.wait_for(job, "failed")
    queue.cli("edit", job, "--delay", 0)
    queue.wait_for(job, "dead")


def test_edit_of_a_job_that_does_not_wait_or_with_nonsense_changes_nothing(mixed):
    before = contents(mixed.db)
    assert call(mixed, "edit", 1, "--priority", 5)[0] == 1
    for words in ([7], ["--priority", 5], [7, "--priority", "high"], [7, "--command", ""], [99, "--priority", 5],
                  [7, "--delay", "1h", "--at", "2040-01-01"]):
        assert call(mixed, "edit", *words)[0] == 2, words
    assert contents(mixed.db) == before


# ---- rm and prune ----------------------------------------------------------------------------------

def test_rm_takes_finished_jobs_with_their_logs_and_history_and_no_others(queue):
    work_off(queue, "echo one", "echo two", "echo three")
    logs = sorted(queue.files.glob("logs/**/*.log"))
    assert len(logs) == 3
    assert "2 jobs" in queue.out("rm", 1, 3)
    assert list(states(queue)) == [2] and sorted(queue.files.glob("logs/**/*.log")) == logs[1:2]
    history = [job for job, in queue.sql("SELECT job FROM history")]
    assert 2 in history and len(history) <= 2  # the newest row of all stays, whose ever it is: no number is given twice
    assert queue.enqueue("true") == 4
    assert call(queue, "show", 1)[0] == 2


def test_rm_of_an_unfinished_job_is_refused_and_then_takes_none(mixed):
    before = contents(mixed.db)
    status, _, told = call(mixed, "rm", 1, 7)
    assert status == 2 and "job 7 is pending" in told
    assert contents(mixed.db) == before


def test_prune_takes_what_ended_long_enough_ago_in_the_states_given(mixed):
    change(mixed, "UPDATE job SET finished_at=finished_at-8*86400 WHERE id IN (1, 4, 6)")
    assert call(mixed, "prune", "--older-than", "9d")[0] == 0 and len(states(mixed)) == 9
    assert call(mixed, "prune", "--older-than", "7d", "--state", "completed")[0] == 0
    assert sorted(states(mixed)) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert call(mixed, "prune", "--older-than", "7d")[0] == 0
    assert sorted(states(mixed)) == [2, 3, 5, 7, 8, 9]


def test_prune_without_a_filter_takes_nothing(mixed):
    assert call(mixed, "prune")[0] == call(mixed, "prune", "--older-than", "ages")[0] == 2
    assert len(states(mixed)) == 9


# ---- which jobs: the same words for every command that takes several -------------------------------

BULK = {  # command -> what of the nine jobs it can be used on
    "cancel": {7, 8, 9}, "hold": {7, 8, 9}, "release": {7, 8, 9}, "edit": {7, 8, 9}, "retry": {1, 2, 3, 4, 5, 6},
    "rm": {1, 2, 3, 4, 5, 6}, "prune": {1, 2, 3, 4, 5, 6}, "dlq retry": {4, 5}, "dlq purge": {4, 5}}


CHOICES = [  # words -> the jobs that they name
    (["--all"], set(range(1, 10))), (["--queue", "mail"], {4, 8}), (["--name", "nightly-*"], {1, 5, 7}), (["--name", "*-[12]"], {1, 5}),
    (["--batch", "1"], {1, 2, 3, 4, 5}), (["--batch", "2"], {7, 8, 9}), (["--queue", "mail", "--name", "*"], set()),
    (["1-9", "--queue", "mail"], {4, 8}), (["1-3", "5", "--batch", "1", "--name", "nightly-?"], {1, 5}), (["--queue", "none"], set())]


def words_of(command):
    return command.split() + (["--priority", "3"] if command == "edit" else [])


def as_words_of(command, words):
    """A selection; in `edit`, --queue and --name are changes."""
    return [{"--queue": "--in-queue", "--name": "--named"}.get(word, word) for word in words] if command == "edit" else words


def named_in(text):
    return {int(number) for number in re.findall(r"job (\d+):", text)}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", BULK)
def test_a_dry_run_shows_which_jobs_a_selection_takes_and_changes_nothing(mixed, command):
    before = contents(mixed.db)
    able = BULK[command]
    for words, named in CHOICES:
        status, shown, told = call(mixed, *words_of(command), *as_words_of(command, words), "--dry-run")
        assert (status, named_in(shown)) == (0, named & able), (words, shown, told)
    for state, these in (("completed", {1, 2, 3}), ("dead", {4, 5}), ("cancelled", {6}), ("pending", {7, 8, 9})):
        status, shown, _ = call(mixed, *words_of(command), "--state", state, "--dry-run")
        assert named_in(shown) == these & able
        assert status == 0 or not these & able
    a, *_, b = sorted(able)
    for words in ([a, b], ["%d-%d" % (a, b)], [b, a, "%d-%d" % (a, b)]):
        expected = able if "-" in str(words[-1]) else {a, b}
        assert named_in(call(mixed, *words_of(command), *words, "--dry-run")[1]) == expected, words
    assert contents(mixed.db) == before


@pytest.mark.parametrize("command", BULK)
def test_what_a_dry_run_showed_is_what_is_changed(mixed, command):
    words = [*words_of(command), *as_words_of(command, ["--queue", "mail"])]
    chosen = named_in(call(mixed, *words, "--dry-run")[1])
    before = {row[0]: row for row in mixed.sql("SELECT * FROM job")}
    assert call(mixed, *words)[0] == 0
    after = {row[0]: row for row in mixed.sql("SELECT * FROM job")}
    changed = {job for job in before if before[job] != after.get(job)}
    assert changed == (chosen if command != "release" else set()) and len(chosen) == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", [*BULK, "wait"])
def test_a_selection_that_names_no_jobs_or_contradicts_itself_is_refused(mixed, command):
    before = contents(mixed.db)
    for words in ([], ["--all", "1"], ["--all", "--queue", "mail"], ["--state", "bad"], ["--batch", "77"], ["77"], ["last", "77"],
                  ["nobody"], ["20-30"], ["9-1"]):
        status, shown, told = call(mixed, *words_of(command), *as_words_of(command, words))
        assert (status, shown) == (2, "") and told.count("\n") == 1, (words, shown, told)
    assert contents(mixed.db) == before


@pytest.mark.parametrize("command,state", [("retry", "pending"), ("rm", "pending"), ("prune", "processing"), ("cancel", "completed"),
                                           ("hold", "dead"), ("release", "dead"), ("edit", "completed"), ("dlq purge", "completed")])
def test_a_state_that_a_command_cannot_be_used_on_selects_no_job(mixed, command, state):
    before = contents(mixed.db)
    call(mixed, *words_of(command), "--state", state)
    assert contents(mixed.db) == before


def test_every_command_for_one_job_knows_it_by_id_by_name_and_as_the_last(mixed):
    for word in ("show", "explain", "logs"):
        for ref in (7, "nightly-3", "last"):
            assert call(mixed, word, ref)[0] == 0, (word, ref)
    assert json.loads(call(mixed, "show", "last", "--json")[1])["id"] == 9
    assert (mixed.enqueue("--after", "last", "exit 0"), mixed.enqueue("--after-any", "last,1", "exit 0")) == (10, 11)
    assert mixed.sql("SELECT child, parent FROM dep ORDER BY child, parent") == [(10, 9), (11, 1), (11, 10)]


def test_dlq_commands_refuse_jobs_that_are_not_dead(mixed):
    for command in ("retry", "purge"):
        status, _, told = call(mixed, "dlq", command, 4, 1)
        assert status == 2 and "job 1 is completed" in told
    assert states(mixed)[4] == "dead"


@posix_only("an argument that is no UTF-8")
@pytest.mark.parametrize("words", [["list", "--queue"], ["list", "--name"], ["rm", "--dry-run", "--name"], ["retry", "--queue"]])
def test_a_filter_that_is_no_utf8_is_an_error_and_no_traceback(queue, words):
    queue.enqueue("true")
    status, _, error = call(queue, *words, "\udcff")
    assert status == 2 and error.startswith("queuectl: error: ") and error.count("\n") == 1
