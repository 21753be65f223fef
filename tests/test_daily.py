"""What one does with a queue all day: wait, retry, edit, rm, prune, logs, list, stats, events, and the workers' options."""
from __future__ import annotations

import contextlib
import io
import json
import os
import plistlib
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import WINDOWS, LiveQueue, linux_only, posix_only, wait_until
from screen import cells, screens  # noqa: F401 (a fixture)

FINAL = ("completed", "dead", "cancelled")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# ---- helpers ---------------------------------------------------------------------------------------

def call(queue, *words):
    """A command in this process, through the real parser: (status, stdout, stderr). For what starts nothing."""
    import queuectl
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        status = queuectl.main([str(word) for word in words] + ["--db", str(queue.db)])
    return (status,) + tuple(stream.buffer.getvalue().decode() for stream in streams if not stream.flush())


def api(queue):
    import queuectl
    return queuectl.Store(str(queue.db))


def change(queue, statement, *values):
    """Puts the database into a shape that would take days to come by."""
    connection = sqlite3.connect(str(queue.db), timeout=10)
    with connection:
        connection.execute(statement, values)
    connection.close()


def contents(path):
    """{table: its rows} of a database, without what belongs to the workers of the moment."""
    connection = sqlite3.connect(str(path))
    try:
        tables = {name for name, in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        return {table: sorted(connection.execute("SELECT * FROM " + table), key=repr) for table in tables - {"worker", "supervisor"}}
    finally:
        connection.close()


def states(queue):
    return dict(queue.sql("SELECT id, state FROM job"))


def work_off(queue, *jobs):
    """Runs jobs (commands or dicts) to their end and returns their ids; each fails at most once."""
    lines = [json.dumps(dict({"max_retries": 0}, **(job if isinstance(job, dict) else {"command": job}))) for job in jobs]
    before = max([0] + list(states(queue))) if queue.db.exists() else 0
    done = queue.cli("run", "--count", 2, "--file", "-", stdin="\n".join(lines), check=False)
    assert done.returncode in (0, 1), done.stderr
    return [before + 1 + n for n in range(len(jobs))]


def cpu_of(process):
    """Seconds of processor time that a child used, waited for here."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def nine_jobs(tmp_path_factory):
    """A queue made once, which each test that wants it gets a copy of."""
    queue = LiveQueue(tmp_path_factory.mktemp("nine"))
    work_off(queue, {"command": "exit 0", "name": "nightly-1"}, "exit 0", "exit 0", {"command": "exit 1", "queue": "mail"},
             {"command": "exit 2", "name": "nightly-2"})
    with api(queue) as store:
        store.life.cancel([store.enqueue("exit 0")])
        store.enqueue_many([{"command": "exit 0", "name": "nightly-3"}, {"command": "exit 0", "queue": "mail"}, "exit 0"], label="later")
    assert list(states(queue).values()) == ["completed"] * 3 + ["dead"] * 2 + ["cancelled"] + ["pending"] * 3
    return queue


@pytest.fixture
def mixed(queue, nine_jobs):
    """Jobs 1-3 completed (one named), 4-5 dead (one in queue mail), 6 cancelled, 7-9 pending (one named, one in mail), in batches."""
    shutil.copytree(str(nine_jobs.files), str(queue.files))
    shutil.copy(str(nine_jobs.db), str(queue.db))
    return queue


# ---- wait ------------------------------------------------------------------------------------------

def test_wait_for_one_job_ends_with_the_jobs_own_exit_code(queue):
    good, bad = work_off(queue, "exit 0", {"command": "exit 7", "name": "seven"})
    assert call(queue, "wait", good)[0] == 0
    assert call(queue, "wait", bad)[0] == call(queue, "wait", "seven")[0] == call(queue, "wait", "last")[0] == 7


@posix_only("signals")
def test_wait_for_a_job_that_a_signal_ended_gives_the_status_a_shell_gives(queue):
    killed, timed = work_off(queue, "kill -9 $$", {"command": "sleep 30", "timeout": 0.2})
    assert call(queue, "wait", killed)[0] == 137
    assert call(queue, "wait", timed)[0] not in (0, 124)  # 124 says that the wait itself took too long


def test_wait_for_several_is_0_when_all_completed_and_1_when_one_failed(queue):
    work_off(queue, "exit 0", "exit 7", "exit 0")
    assert call(queue, "wait", 1, 3) == (0, "", "")
    status, _, told = call(queue, "wait", "1-3")
    assert status == 1 and "job 2" in told and "exit 7" in told and "job 1 " not in told


def test_wait_waits_for_the_end_and_not_for_the_first_failure(queue):
    code = "import os, sys; sys.exit(os.environ['QUEUECTL_ATTEMPT'] == '1')"
    job = queue.enqueue("--backoff-base", 0.3, *queue.script(code))
    other = queue.enqueue("--max-retries", 0, "exit 1")
    queue.start(1)
    assert queue.cli("wait", job).returncode == 0
    assert queue.cli("wait", job, other, check=False).returncode == 1
    assert [a["outcome"] for a in queue.json("show", job)["history"]] == ["failed", "completed"]


def test_wait_gives_up_at_its_timeout_with_status_124(queue):
    job = queue.enqueue("exit 0")
    begun = time.monotonic()
    done = queue.cli("wait", job, "--timeout", "0.5s", check=False)
    assert done.returncode == 124 and done.stdout == ""
    assert 0.5 <= time.monotonic() - begun < 10
    assert call(queue, "wait", job, "--timeout", 0)[0] == 124
    assert states(queue) == {job: "pending"}


def test_wait_takes_all_that_is_unfinished_or_a_batch(mixed):
    batch = mixed.sql("SELECT max(id) FROM batch")[0][0]
    everything = mixed.beside("wait", "--all")
    later = mixed.beside("wait", "--batch", batch)
    mixed.start(1)
    assert everything.ends() == later.ends() == 0  # the dead ones of before are not waited for
    assert set(states(mixed).values()) == {"completed", "dead", "cancelled"}
    assert call(mixed, "wait", "--batch", 1)[0] == 1  # a batch with failures in it, ended long ago


def test_wait_tells_of_failures_of_before_it_looked_where_jobs_are_named(mixed):
    assert call(mixed, "wait", "--name", "nightly-2")[0] == call(mixed, "wait", "--batch", 1)[0] == 1
    assert call(mixed, "wait", "--name", "nightly-[12]")[0] == 1
    assert call(mixed, "wait", "--name", "nightly-1")[0] == 0


def test_wait_for_nothing_that_exists_is_a_mistake(queue):
    queue.enqueue("exit 0")
    for words in ([99], ["nobody"], ["5-8"], [], ["--batch", 9], ["--timeout", "soon", 1]):
        assert call(queue, "wait", *words)[0] == 2, words


def test_wait_for_a_cancelled_job_is_not_0(queue):
    with api(queue) as store:
        job = store.enqueue("exit 0")
        store.life.cancel([job])
    status, _, told = call(queue, "wait", job)
    assert status == 1 and "cancelled" in told


@posix_only("stops the waiting process")
def test_wait_for_a_job_that_is_removed_meanwhile_is_not_told_as_a_success(queue):
    job = queue.enqueue("exit 0")
    waiting = queue.beside("wait", job)
    wait_until(lambda: "no worker" in waiting.text(), message="wait says that nothing serves the job")
    os.kill(waiting.pid, signal.SIGSTOP)
    with api(queue) as store:
        store.life.cancel([job])
        store.keep.purge([job])
    os.kill(waiting.pid, signal.SIGCONT)
    assert waiting.ends() == 1


def test_wait_wakes_within_a_moment_of_the_end(queue):
    """About as fast as another command takes from its start: of three tries the best, measured side by side."""
    queue.start(1)
    late, starts = [], []
    for _ in range(3):
        job = queue.enqueue(*queue.sleeper(1))
        waiting = queue.beside("wait", job)
        assert waiting.ends() == 0
        late.append(time.time() - queue.job(job).finished_at)
        begun = time.monotonic()
        queue.cli("wait", job)
        starts.append(time.monotonic() - begun)
    assert min(late) < 4 * min(starts), (late, starts)


@linux_only("processor time of a child")
def test_wait_uses_next_to_no_processor_time_while_it_waits(queue):
    job = queue.enqueue("exit 0")
    short, long = (queue.beside("wait", job, "--timeout", seconds) for seconds in (0, 4))
    start_up, whole = cpu_of(short), cpu_of(long)
    assert short.returncode == long.returncode == 124
    assert whole - start_up < 4 * 0.03, "%.3f s of processor time in 4 s" % (whole - start_up)


@posix_only("pseudo-terminals")
def test_wait_shows_a_bar_on_a_terminal_that_keeps_up_with_the_end_of_jobs(queue):
    lines = [queue.script("import time; time.sleep(%s)" % seconds) for seconds in (0.6, 0.62, 2.5)]
    ids = [queue.enqueue(*line) for line in lines]
    queue.start(3)
    status, text = queue.terminal("wait", *ids, columns=60)
    assert status == 0
    assert re.search(r"\[[#-]+\]", text)
    assert "2/3" in text, text  # the second ended 20 ms after the first, with the bar just drawn
    assert max(cells(COLOUR.sub("", part)) for part in re.split(r"\r\x1b\[K|\n", text)) < 60
    assert queue.cli("wait", *ids).stderr == ""


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


def test_a_job_that_comes_after_a_schedule_comes_after_its_newest_job(queue):
    queue.cli("cron", "add", "nightly", "30 2 * * *", "echo backup")
    queue.cli("cron", "add", "cleanup", "30 2 * * *", "--after", "nightly", "echo cleanup")
    assert queue.cli("cron", "add", "typo", "30 2 * * *", "--after", "nightl", "echo", check=False).returncode == 2
    change(queue, "UPDATE schedule SET next_at=next_at-86400*3")
    queue.start(1)
    wait_until(lambda: set(states(queue).values()) == {"completed"} and len(states(queue)) == 2, message="both ran")
    assert [queue.out("logs", job) for job, in queue.sql("SELECT job FROM history ORDER BY seq")] == ["backup", "cleanup"]
    [[parent, child]] = queue.sql("SELECT parent, child FROM dep")
    assert (queue.job(parent).schedule, queue.job(child).schedule) == ("nightly", "cleanup")


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


# ---- logs ------------------------------------------------------------------------------------------

def test_logs_f_follows_a_job_across_its_retries(queue):
    code = ("import os, sys, time; n = os.environ['QUEUECTL_ATTEMPT']; print('begin', n, flush=True); time.sleep(0.3); "
            "print('end', n); sys.exit(n != '3')")
    job = queue.enqueue("--backoff-base", 0.3, *queue.script(code))
    follower = queue.beside("logs", "-f", job)
    queue.start(1)
    assert follower.ends() == 0
    assert follower.text().split("\n") == ["begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3", ""]
    assert queue.job(job).state == "completed"


def test_logs_n_gives_the_last_lines(queue):
    work_off(queue, {"command": queue.script("print('\\n'.join(map(str, range(20000))), end='')")}, "exit 0")
    for count, expected in ((0, []), (1, [19999]), (3, range(19997, 20000)), (20000, range(20000)), (99999, range(20000))):
        assert call(queue, "logs", 1, "-n", count)[1] == "\n".join(map(str, expected)), count
    assert call(queue, "logs", 2, "-n", 5)[1] == ""
    for count in (-1, "x", 1.5):
        assert call(queue, "logs", 1, "-n", count)[0] == 2


def test_logs_n_with_f_begins_with_the_last_lines_and_goes_on(queue):
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("import os, sys, time\nprint(*range(100), sep='\\n', flush=True)\n"
                                      "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\nprint('more')", go))
    queue.start(1)
    wait_until(lambda: "99" in queue.out("logs", job))
    follower = queue.beside("logs", "-f", "-n", 2, job)
    wait_until(lambda: follower.text() == "98\n99\n", message="the last two lines")
    go.touch()
    follower.ends()
    assert follower.text() == "98\n99\nmore\n"


def test_logs_of_several_jobs_have_prefixes_and_whole_lines(queue):
    code = ("import sys, time\nfor n in range(40):\n print('job', sys.argv[1], end=' ', flush=True); time.sleep(0.003); print('line', n)\n"
            "print('no end', sys.argv[1], end='')")
    ids = [queue.enqueue(*queue.script(code, n)) for n in range(3)]
    follower = queue.beside("logs", "-f", "%d-%d" % (ids[0], ids[-1]))
    queue.start(3)
    assert follower.ends() == 0
    for text in (follower.text(), queue.out("logs", *ids) + "\n"):
        lines = [line.partition(" | ") for line in text.splitlines()]
        for n, job in enumerate(ids):
            mine = [text for prefix, _, text in lines if prefix == str(job)]
            assert mine == ["job %d line %d" % (n, k) for k in range(40)] + ["no end %d" % n]
        assert len(lines) == 3 * 41


def test_logs_of_an_attempt_and_of_all_attempts(queue):
    job = queue.enqueue("--backoff-base", 0.1, *queue.script("import os, sys; n = os.environ['QUEUECTL_ATTEMPT']; print('try', n); sys.exit(n != '3')"))
    queue.start(1, "--drain")
    queue.wait_for(job, "completed")
    assert queue.out("logs", job) == "try 3"
    assert queue.out("logs", job, "--attempt", 2) == "try 2"
    assert queue.out("logs", job, "--all-attempts") == "try 1\ntry 2\ntry 3"
    assert queue.out("logs", job, "--all-attempts", "-f") == "try 1\ntry 2\ntry 3"
    assert call(queue, "logs", job, "--attempt", 4)[0] == 2


def test_logs_of_a_running_job_are_whole_however_long(queue):
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("import os, sys, time\nprint('x' * 3000000)\nprint('end', flush=True)\n"
                                      "while not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    queue.start(1)
    wait_until(lambda: call(queue, "logs", job, "-n", 1)[1] == "end\n", message="the job has written")
    assert len(queue.cli("logs", job).stdout) == 3000005
    go.touch()


def test_logs_of_a_job_without_output_say_so_beside_the_data(queue):
    work_off(queue, "exit 0")
    queue.enqueue("echo never")
    for job in (1, 2):
        status, shown, told = call(queue, "logs", job)
        assert (status, shown) == (0, "") and "job %d" % job in told


def test_a_long_log_keeps_head_and_tail_and_says_exactly_how_much_was_dropped(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    line = "%07d " + "x" * 90 + "\n"
    size = len(line % 0) * 30000
    work_off(queue, {"command": queue.script("[print('%07d ' % n + 'x' * 90) for n in range(30000)]")})
    kept = queue.cli("logs", 1).stdout
    head, dropped, tail = re.fullmatch(r"(?s)(.*)\n\[queuectl: (\d+) bytes of output dropped here[^\n]*\]\n(.*)", kept).groups()
    whole = "".join(line % n for n in range(30000))
    assert whole.startswith(head) and whole.endswith(tail) and min(len(head), len(tail)) > 16 * 1024
    assert len(head) + int(dropped) + len(tail) == size and len(kept) < 70 * 1024
    assert call(queue, "logs", 1, "-n", 1)[1] == line % 29999


@posix_only("a stop that waits for the end of a write")
def test_what_is_dropped_is_counted_though_the_job_is_stopped_in_the_middle_of_a_write(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    work_off(queue, {"command": queue.script("import os\npart = (b'x' * 99 + b'\\n') * 80000\nfor _ in range(20):\n"
                                             "    left = part\n    while left: left = left[os.write(1, left):]")})
    kept = queue.cli("logs", 1).stdout
    head, dropped, tail = re.fullmatch(r"(?s)(.*)\n\[queuectl: (\d+) bytes of output dropped here[^\n]*\]\n(.*)", kept).groups()
    assert len(head) + int(dropped) + len(tail) == 20 * 80000 * 100


@pytest.mark.slow
def test_logs_f_of_a_job_that_floods_its_output_says_what_is_missing_and_ends_with_its_end(queue):
    queue.cli("config", "set", "log_limit", "64KiB")
    code = ("import time\nfor part in range(4):\n [print('%d %06d' % (part, n) + 'x' * 90) for n in range(3000)]\n print(end='', flush=True); time.sleep(0.7)\nprint('the very end')")
    job = queue.enqueue(*queue.script(code))
    queue.start(1)
    follower = queue.beside("logs", "-f", job)
    assert follower.ends() == 0
    shown = follower.text()
    assert shown.startswith("0 000000x") and shown.endswith("the very end\n")
    assert "dropped" in shown
    for part in re.split(r"(?m)^\[queuectl: .*\]$", shown):  # after a notice it may go back to where the tail begins
        got = re.findall(r"(?m)^\d \d{6}x{90}$", part)
        assert got == sorted(set(got)), "lines twice or out of order, without a notice"


@posix_only("pseudo-terminals")
def test_logs_on_a_terminal_do_not_break_a_character_that_arrives_in_two_parts(queue):
    code = "import os, time; os.write(1, b'caf\\xc3'); time.sleep(0.5); os.write(1, b'\\xa9 \\xe6\\x97'); time.sleep(0.5); os.write(1, b'\\xa5\\n')"
    job = queue.enqueue(*queue.script(code))
    queue.start(1)
    status, text = queue.terminal("logs", "-f", job)
    assert (status, text) == (0, "caf\u00e9 \u65e5\n")


def test_logs_pass_bytes_on_unchanged_into_a_pipe_and_harmless_to_a_terminal(queue):
    work_off(queue, {"command": queue.script("import os; os.write(1, b'\\x1b]0;title\\x07\\x1b[2J\\xff\\x1b[31mred\\x1b[0m\\r\\n')")})
    raw = queue.cli("logs", 1, binary=True).stdout
    assert raw == b"\x1b]0;title\x07\x1b[2J\xff\x1b[31mred\x1b[0m\r\n"
    if os.name == "posix":
        text = queue.terminal("logs", 1)[1]
        assert "\x1b[31mred\x1b[0m" in text and "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text


# ---- list ------------------------------------------------------------------------------------------

def listed(queue, *words):
    return json.loads(call(queue, "list", "--json", *words)[1])


def test_list_sorts_by_any_column(mixed):
    change(mixed, "UPDATE job SET duration=(id*7)%11, priority=id%3, attempts=(id*5)%7 WHERE id<7")
    keys = {"id": lambda j: j["id"], "created": lambda j: j["created_at"], "state": lambda j: j["state"], "queue": lambda j: j["queue"],
            "command": lambda j: j["command"], "priority": lambda j: -j["priority"], "tries": lambda j: -j["attempts"],
            "duration": lambda j: -(j["duration"] or 0)}
    for name, key in keys.items():
        jobs = listed(mixed, "--sort", name)
        assert len(jobs) == 9 and [key(j) for j in jobs] == sorted(key(j) for j in jobs), name
    for name in ("started", "finished"):
        times = [job[name + "_at"] or "" for job in listed(mixed, "--sort", name, "--state", "completed")]
        assert times == sorted(times)
    assert [job["id"] for job in listed(mixed, "--sort", "priority", "--limit", 2)] == [2, 5]
    assert call(mixed, "list", "--sort", "colour")[0] == 2


def test_list_since_takes_the_jobs_created_so_long_ago_at_most(queue):
    with api(queue) as store:
        store.enqueue_many(["exit 0"] * 4)
    change(queue, "UPDATE job SET created_at=created_at-3600*id")
    assert [job["id"] for job in listed(queue, "--since", "2.5h")] == [2, 1]
    assert [job["id"] for job in listed(queue, "--since", "7d", "--sort", "created")] == [4, 3, 2, 1]
    assert call(queue, "list", "--since", "yesterday")[0] == 2


def test_list_filters_and_shows_the_columns_chosen_in_their_order(mixed):
    assert [job["id"] for job in listed(mixed, "--queue", "mail", "--state", "dead,pending")] == [8, 4]
    assert [job["id"] for job in listed(mixed, "--name", "nightly-*", "--batch", 1)] == [5, 1]
    status, shown, _ = call(mixed, "list", "--columns", "id,state,duration,exit,command", "--state", "dead")
    head, *rows = [line.split() for line in shown.splitlines()]
    assert head == ["ID", "STATE", "DURATION", "EXIT", "COMMAND"]
    assert [(row[0], row[1], row[3]) for row in rows] == [("5", "dead", "2"), ("4", "dead", "1")]
    import queuectl
    everything = ",".join(queuectl.COLUMNS)
    assert call(mixed, "list", "--columns", everything)[0] == 0
    assert call(mixed, "list", "--columns", "id,colour")[0] == call(mixed, "list", "--columns", "")[0] == 2


def test_list_prints_one_heading_however_many_rows(queue):
    with api(queue) as store:
        store.enqueue_many(["exit 0"] * 2500)
    lines = call(queue, "list", "--limit", 0)[1].splitlines()
    assert len(lines) == 2501 and sum("STATE" in line for line in lines) == 1
    assert [line.split()[0] for line in lines[1:]] == [str(n) for n in range(2500, 0, -1)]
    assert len({line.index("pending") for line in lines[1:]}) == 1
    assert len(call(queue, "list", "--limit", 0, "--sort", "id")[1].splitlines()) == 2501


WIDE = ["echo \u65e5\u672c\u8a9e\u306e\u9577\u3044\u30b3\u30de\u30f3\u30c9", "echo plain", "echo e\u0301e\u0301 combining", "echo \U0001f600\U0001f600 faces",
        "echo \ud55c\uad6d\uc5b4 " * 12]


@posix_only("pseudo-terminals")
@pytest.mark.parametrize("columns", [20, 40, 52, 80, 200])
def test_no_row_of_a_table_is_wider_than_the_terminal(queue, columns):
    with api(queue) as store:
        store.enqueue_many([{"command": command, "name": "name-%d" % n, "max_retries": 10} for n, command in enumerate(WIDE)])
    for words in (["list"], ["status"], ["queue", "list"], ["batch", "list"], ["stats"], ["config", "list"], ["cron", "list"]):
        status, text = queue.terminal(*words, columns=columns)
        # What is said on stderr names this program's path, which is as long as it is.
        lines = [line for line in COLOUR.sub("", text).splitlines() if not line.startswith(("queuectl: ", "No "))]
        assert status == 0
        if words == ["list"] or columns >= 80:
            assert max(map(cells, lines), default=0) <= columns, (words, text)
    ids = [line.split()[0] for line in COLOUR.sub("", queue.terminal("list", columns=columns)[1]).splitlines()[1:]]
    assert ids == ["5", "4", "3", "2", "1"]


@posix_only("pseudo-terminals")
def test_columns_stand_under_one_another_whatever_the_width_of_their_characters(queue):
    with api(queue) as store:
        store.life.cancel(store.enqueue_many(WIDE))
    lines = COLOUR.sub("", queue.terminal("list", "--columns", "id,command,state", columns=50)[1]).splitlines()
    assert {cells(line[:re.search("STATE|cancelled", line).start()]) for line in lines} == {50 - len("cancelled")}


def views(queue):
    queue.cli("cron", "add", "nightly", "0 3 * * *", "exit 0")
    queue.cli("worker", "start")
    return (["list"], ["status"], ["show", 4], ["stats"], ["worker", "list"], ["queue", "list"], ["batch", "list"], ["batch", "show", 1],
            ["cron", "list"], ["config", "list"], ["dlq", "list"], ["explain", 4], ["doctor"], ["top", "--once"], ["logs", 4],
            ["list", "--tree"], ["events"], ["retry", 4, "--dry-run"])


@posix_only("pseudo-terminals")
def test_no_view_has_colour_with_no_color_or_in_a_pipe(mixed):
    for words in views(mixed):
        assert "\x1b" not in mixed.terminal(*words, env={"NO_COLOR": "1"})[1], words
        assert "\x1b" not in call(mixed, *words)[1], words
    for words in (["list"], ["status"], ["worker", "list"], ["top", "--once"]):
        assert "\x1b[" in mixed.terminal(*words)[1], words


@posix_only("a pipe without a reader")
def test_a_pipe_that_is_closed_early_is_no_error_for_any_view(mixed):
    for words in (*views(mixed), ["export"], ["completion", "bash"], ["service", "systemd"], ["--help"], ["list", "--help"], ["list", "--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(mixed.command(*words), stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
                              env=mixed.env, cwd=str(mixed.dir), timeout=30)
        os.close(write)
        assert (done.returncode, b"rror" in done.stderr) == (0, False), (words, done.stderr)


@posix_only("a pipe without a reader")
@pytest.mark.parametrize("words", [["events", "-f"], ["logs", "-f", "last"]])
def test_a_follower_ends_when_its_reader_has_gone_though_nothing_happens(queue, words):
    queue.enqueue("exit 0")
    reader = subprocess.Popen(queue.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=queue.env, cwd=str(queue.dir))
    queue.background.append(reader)
    if words[0] == "events":
        wait_until(lambda: b'"cancel"' in (queue.cli("cancel", queue.enqueue("exit 0")) and os.read(reader.stdout.fileno(), 65536)))
    reader.stdout.close()
    wait_until(lambda: reader.poll() is not None, 10, "the end of %s, whose reader has gone" % words)
    assert (reader.returncode, reader.stderr.read()) == (0, b"")
    reader.stderr.close()


def test_every_view_has_json_that_is_one_value(mixed):
    for words in (["list"], ["status"], ["show", 4], ["stats"], ["worker", "list"], ["queue", "list"], ["batch", "list"], ["batch", "show", 1],
                  ["cron", "list"], ["config", "list"], ["dlq", "list"], ["explain", 4], ["doctor"]):
        status, shown, told = call(mixed, *words, "--json")
        assert (status, told) == (0, ""), words
        json.loads(shown)


@posix_only("tmux")
def test_list_watch_draws_the_list_again_until_it_is_interrupted(queue, screens):  # noqa: F811
    job = queue.enqueue("exit 0")
    screen = screens(queue.command("list", "--watch"), columns=60, lines=8)
    screen.until(r"1 +pending")
    with api(queue) as store:
        store.life.cancel([job])
        store.enqueue_many(["exit 0"] * 30)
    screen.until(r"^ *31 +pending")
    seen = screen.steady()
    assert seen.splitlines()[0].split()[:2] == ["ID", "STATE"] and "31" in seen.splitlines()[1], seen  # the newest stay in sight
    screen.keys("C-c")
    wait_until(lambda: screen.fact("pane_dead") == "1", message="the end of the watch")
    assert screen.fact("pane_dead_status") in ("", "0", "130")  # tmux does not always get to know it


# ---- stats -----------------------------------------------------------------------------------------

def test_stats_count_attempts_rates_retries_and_durations_by_queue_and_program(queue):
    flaky = queue.script("import os, sys; sys.exit(os.environ['QUEUECTL_ATTEMPT'] == '1')")
    lines = ["exit 0"] * 19 + [json.dumps({"command": "exit 3", "max_retries": 0}),
                               json.dumps({"command": flaky, "queue": "mail", "backoff_base": 0.1, "max_retries": 1})]
    queue.cli("run", "--count", 2, "--file", "-", stdin="\n".join(lines), check=False)
    change(queue, "UPDATE history SET duration=job*0.5 WHERE job<21")
    facts = queue.json("stats")
    default, mail = facts["queues"]["default"], facts["queues"]["mail"]
    assert (default["count"], default["success_rate"], default["retries"]) == (20, 0.95, 0)
    assert (mail["count"], mail["success_rate"], mail["retries"]) == (2, 0.5, 1)
    assert (default["p50"], default["max"]) == (pytest.approx(5, abs=0.51), 10) and 9 <= default["p95"] <= 10
    assert facts["commands"]["exit"]["count"] == 20
    program = os.path.basename(sys.executable)
    assert facts["commands"][program]["retries"] == 1


def test_stats_know_the_program_of_a_command_whose_path_has_blanks():
    import queuectl
    for command, program in (("'/opt/my tools/tool' -x", "tool"), ("A='b c' make -C site", "make"), ("(cd site && make)", "cd"),
                             ("'/opt/it'\"'\"'s/tool' 'a b'", "tool"), (b"/bin/\xff x", "\\xff"), ("A=b", "A=b"), ("'", ""), (" ", "")):
        assert queuectl.command_name(command) == program, command


def test_stats_tell_how_long_jobs_waited_for_their_first_run(queue):
    with api(queue) as store:
        store.enqueue("exit 0", delay=0.5)  # from the time it is due, not from the time it was stored
        store.enqueue("exit 1", max_retries=1, backoff_base=0.5)
    change(queue, "UPDATE job SET run_at=run_at-100, created_at=created_at-100 WHERE id=2")
    queue.start(1, "--drain")
    queue.cli("wait", "--all", check=False)
    queue.wait_for(2, "dead")
    waited = {name: facts["waited_p50"] for name, facts in queue.json("stats")["commands"].items()}
    assert all(value is None or value >= 0 for value in waited.values())
    change(queue, "DELETE FROM history WHERE job=2")
    assert 0 <= queue.json("stats")["queues"]["default"]["waited_p50"] < 3


def test_stats_give_the_throughput_of_the_last_minute_hour_and_day_whatever_since_says(queue):
    work_off(queue, *["exit 0"] * 10)
    for job, age in ((1, 90), (2, 100), (3, 3000), (4, 4000), (5, 86000), (6, 90000), (7, 10**6)):
        change(queue, "UPDATE history SET finished_at=finished_at-?, started_at=started_at-? WHERE job=?", age, age, job)
    for since in ("1d", "1m", "30d"):
        assert queue.json("stats", "--since", since)["throughput"] == {"minute": 3, "hour": 6, "day": 8}, since
    assert queue.json("stats", "--since", "1m")["queues"]["default"]["count"] == 3
    assert queue.json("stats", "--since", "30d")["queues"]["default"]["count"] == 10


@posix_only("pseudo-terminals")
def test_stats_draw_sparklines_in_a_terminal(queue):
    work_off(queue, "exit 0", "exit 0")
    change(queue, "UPDATE history SET finished_at=finished_at-40 WHERE job=1")
    text = queue.terminal("stats")[1]
    minute = next(line for line in text.splitlines() if "minute" in line)
    assert len(re.findall("[\u2581-\u2588]", minute)) == 2 and "  2 " in minute


def test_stats_of_an_empty_queue_are_empty(queue):
    status, shown, _ = call(queue, "stats")
    assert status == 0 and "0" in shown
    assert queue.json("stats")["queues"] == {}


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


# ---- export and import -----------------------------------------------------------------------------

def rich(queue):
    """A queue that has something of everything."""
    work_off(queue, {"command": "echo done", "name": "first"}, {"command": "exit 3", "env": {"SECRET": "\u00e9=\n1"}})
    queue.cli("config", "set", "max_retries", 9)
    queue.cli("enqueue", "--file", "-", binary=True, stdin=b"echo %s bytes\n" % (b"no" if WINDOWS else b"\xff\xfe") + "echo \u65e5\u672c \u2028\n".encode() + b'''{"command": "echo child", "after": "p"}
{"command": "sleep 1", "id": "p", "queue": "mail", "priority": -3, "timeout": "90m", "key": "k", "retry_on": "1,3-5", "at": "2040-01-01"}
{"command": "echo kept back", "hold": true, "unique": "u", "key": "k", "slots": 3, "ttl": "400d", "backoff": "linear"}''')
    queue.cli("cron", "add", "nightly", "30 2 * * *", "--tz", "Europe/Berlin" if sys.version_info >= (3, 9) else "UTC", "--no-overlap",
              "echo night")
    queue.cli("queue", "limit", "mail", 2), queue.cli("queue", "rate", "mail", "10/m"), queue.cli("queue", "pause", "mail")
    queue.cli("cancel", queue.enqueue("exit 0"))
    queue.cli("rm", queue.enqueue("exit 0"), check=False)
    queue.cli("rm", "last", check=False)
    return queue


def test_export_and_import_are_a_round_trip_without_loss(queue):
    rich(queue)
    newest = queue.enqueue("exit 0")
    queue.cli("cancel", newest), queue.cli("rm", newest)
    exported = queue.cli("export", binary=True).stdout
    assert all(isinstance(json.loads(line), dict) for line in exported.splitlines())
    other = queue.dir / "other.db"
    assert "jobs" in queue.run([*queue.program, "--db", str(other), "import", "-"], stdin=exported, binary=True).stdout.decode()
    before, after = contents(queue.db), contents(other)
    for table in before:
        assert after[table] == before[table], table
    assert queue.run([*queue.program, "--db", str(other), "export"], binary=True).stdout == exported
    ids = [int(queue.run([*queue.program, "--db", str(path), "enqueue", "exit 0"]).stdout) for path in (queue.db, other)]
    assert ids[0] == ids[1] > newest, "an id that was given before is given again"
    assert queue.run([*queue.program, "--db", str(other), "doctor"]).returncode == 0


def test_an_imported_queue_is_worked_on_and_what_ran_is_pending_again(queue):
    go = queue.dir / "go"
    running = queue.enqueue(*queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    child = queue.enqueue("--after", running, "echo child")
    queue.start(1)
    queue.wait_for(running, "processing")
    exported = queue.cli("export").stdout
    queue.stop("--now")
    go.touch()
    other = str(queue.dir / "other.db")
    queue.run([*queue.program, "--db", other, "import", "-"], stdin=exported)
    jobs = json.loads(queue.run([*queue.program, "--db", other, "list", "--json"]).stdout)
    assert [(job["id"], job["state"], job["attempts"]) for job in jobs] == [(child, "pending", 0), (running, "pending", 0)]
    queue.run([*queue.program, "--db", other, "worker", "start", "--foreground", "--drain"])
    assert queue.run([*queue.program, "--db", other, "logs", str(child)]).stdout == "child\n"


@pytest.mark.slow
def test_export_is_of_one_moment_though_workers_go_on(queue):
    with api(queue) as store:
        store.enqueue_many(["exit 0"] * 400)
    worker = queue.beside("worker", "start", "--count", 2, "--foreground", "--drain")
    wait_until(lambda: queue.sql("SELECT count(*) FROM history")[0][0] > 5)
    exported = queue.cli("export").stdout
    assert worker.ends(60) == 0
    rows = [json.loads(line) for line in exported.splitlines()]
    done = {row["row"]["id"] for row in rows if row["table"] == "job" and row["row"]["state"] == "completed"}
    assert done == {row["row"]["job"] for row in rows if row["table"] == "history"} and 0 < len(done) < 400
    other = str(queue.dir / "other.db")
    queue.run([*queue.program, "--db", other, "import", "-"], stdin=exported)
    assert queue.run([*queue.program, "--db", other, "doctor"]).returncode == 0


@pytest.mark.slow
def test_import_refuses_what_is_no_whole_export_and_leaves_the_queue_as_it_was(queue):
    rich(queue)
    lines = queue.cli("export").stdout.splitlines(keepends=True)
    other = str(queue.dir / "other.db")

    def imported(text):
        return queue.run([*queue.program, "--db", other, "import", "-"], stdin=text, check=False)

    for text, word in (("".join(lines[:-1]), "cut short|end"), ("".join(lines[:5] + ["{}\n"] + lines[5:]), "line 6"),
                       ("".join(lines)[:-9], "line"), ("".join(lines).replace('"state": "completed"', '"state": "banana"'), "banana|line"),
                       ("".join(lines).replace('"table": "config"', '"table": "sqlite_master"'), "line"), ("", "export|empty|cut"),
                       ("hello\n", "line 1"), ("".join(lines).replace('"created_at"', '"created_at) --"'), "line"),
                       ("".join(lines[:3] + lines[4:]), "cut short|rows|missing|end")):
        done = imported(text)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and re.search(word, done.stderr), (text[-200:], done)
        assert json.loads(queue.run([*queue.program, "--db", other, "list", "--json"]).stdout) == []
    assert imported("".join(lines)).returncode == 0
    assert imported("".join(lines)).returncode == 2  # it holds jobs already


# ---- workers ---------------------------------------------------------------------------------------

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
    boss = queue.beside("worker", "start", "--foreground", "--count", 1)
    wait_until(lambda: "started" in boss.text())
    done = queue.cli("worker", "restart", check=False)
    if done.returncode == 2:  # refused: restart the service instead
        assert "foreground" in done.stderr and boss.poll() is None
    else:
        wait_until(lambda: len(queue.json("worker", "list")) == 1)
        assert boss.poll() is None, "the process that systemd watches has ended; its successor is in the background"
    queue.cli("wait", queue.enqueue("exit 0"))


def test_the_first_commands_on_a_fresh_queue_may_come_all_at_once(queue):
    for n in range(8):
        path = str(queue.dir / ("fresh-%d.db" % n))
        program = [*queue.program, "--db", path]
        several = [subprocess.Popen([*program, *words], cwd=str(queue.dir), env=queue.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT) for words in (["enqueue", "exit 0"], ["enqueue", "exit 0"], ["status"], ["enqueue", "exit 0"])]
        told = [process.communicate(timeout=30)[0] for process in several]
        assert [process.returncode for process in several] == [0] * 4, told
        assert len(json.loads(queue.run([*program, "list", "--json"]).stdout)) == 3


# ---- service ---------------------------------------------------------------------------------------

def awkward(queue):
    """The command of `service` with a database whose name no format likes."""
    path = queue.dir / "100% $HOME \"q\" <&> \u00e9.db"
    return str(path), lambda *words: queue.run([*queue.program, "--db", str(path), "service", *words]).stdout


@linux_only("systemd")
@pytest.mark.parametrize("kind,scope", [("systemd", "--user"), ("systemd-system", "--system")])
def test_the_systemd_unit_satisfies_systemd_analyze_verify(queue, kind, scope):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for text in (queue.cli("service", kind, "--count", 3).stdout, awkward(queue)[1](kind)):
        unit = queue.dir / "queuectl.service"
        unit.write_text(text)
        with tempfile.TemporaryDirectory() as short:  # a socket's path has room for 107 bytes
            done = queue.run(["systemd-analyze", "verify", scope, str(unit)], check=False, env={"XDG_RUNTIME_DIR": short})
        about_us = [line for line in (done.stdout + done.stderr).splitlines() if "queuectl" in line]  # not the machine's other units
        assert (done.returncode, about_us) == (0, [])
        assert re.search(r"(?m)^WantedBy=", text) and re.search(r"(?m)^Restart=", text)


def systemd_words(text):
    """The words of ExecStart as systemd reads them (systemd.service(5): quotes, backslashes, %%, $$)."""
    line = re.search(r"(?m)^ExecStart=(.*)$", text).group(1)
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def launchd_words(text):
    plist = plistlib.loads(text.encode())
    assert plist["Label"] and plist["RunAtLoad"] is True and plist["KeepAlive"]
    return plist["ProgramArguments"]


@pytest.mark.slow
@posix_only("signals")
@pytest.mark.parametrize("kind,words_of_service", [("systemd", systemd_words), ("systemd-system", systemd_words), ("launchd", launchd_words)])
def test_a_service_starts_the_workers_and_a_term_lets_them_finish_their_job(queue, kind, words_of_service):
    path, service = awkward(queue)
    words = words_of_service(service(kind, "--count", "2"))
    assert words[-1] == path or path in words
    boss = subprocess.Popen(words, cwd="/", env={"QUEUECTL_TEST": queue.env["QUEUECTL_TEST"]}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    cli = lambda *args: queue.run([*queue.program, "--db", path, *map(str, args)]).stdout  # noqa: E731
    try:
        started = queue.dir / "started"
        job = cli("enqueue", *queue.script("import sys, time; open(sys.argv[1], 'w'); time.sleep(0.5)", started)).strip()
        wait_until(lambda: started.exists() or boss.poll() is not None, message="the job runs")
        assert started.exists(), boss.stderr.read()
        assert len(json.loads(cli("worker", "list", "--json"))) == 2
        boss.terminate()
        assert boss.wait(20) == 0, boss.stderr.read()
        assert json.loads(cli("show", job, "--json"))["state"] == "completed"
        assert json.loads(cli("worker", "list", "--json")) == []
    finally:
        boss.kill()
        boss.wait()
        boss.stderr.close()


def test_the_windows_task_is_xml_that_starts_at_boot_and_runs_without_end(queue):
    path, service = awkward(queue)
    task = ElementTree.fromstring(service("windows", "--count", "2"))
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.tag == space + "Task"
    assert task.find(".//%sBootTrigger" % space) is not None
    assert task.find(".//%sExecutionTimeLimit" % space).text == "PT0S"
    assert task.find(".//%sDisallowStartIfOnBatteries" % space).text == task.find(".//%sStopIfGoingOnBatteries" % space).text == "false"
    command, arguments = (task.find(".//%sExec/%s%s" % (space, space, name)).text for name in ("Command", "Arguments"))
    assert command == sys.executable or os.path.exists(command)
    assert subprocess.list2cmdline([path]) in arguments and "--count 2" in arguments and "--foreground" in arguments


def test_service_names_the_kinds_it_knows(queue):
    status, _, told = call(queue, "service", "upstart")
    assert status == 2 and "launchd" in told


@posix_only("an argument that is no UTF-8")
@pytest.mark.parametrize("words", [["list", "--queue"], ["list", "--name"], ["rm", "--dry-run", "--name"], ["retry", "--queue"]])
def test_a_filter_that_is_no_utf8_is_an_error_and_no_traceback(queue, words):
    queue.enqueue("true")
    status, _, error = call(queue, *words, "\udcff")
    assert status == 2 and error.startswith("queuectl: error: ") and error.count("\n") == 1


def test_restart_asks_for_all_that_the_start_asked_for(queue):
    queue.start(1, "--queue", "a b,mail", "--max-jobs", "7", "--idle-timeout", "1h", "--nice", "3", "--load", "1000")
    [(before, asked)] = queue.sql("SELECT id, arguments FROM supervisor")
    queue.cli("worker", "scale", 2)
    queue.cli("worker", "restart")
    [(after, again, queues, left, slots)] = queue.sql("SELECT id, arguments, queues, jobs_left, slots FROM supervisor")
    assert after != before and again == asked and (queues, left, slots) == ("/a b/mail/", 7, 2)
    assert json.loads(asked) == {"queues": "/a b/mail/", "max_jobs": 7, "idle_timeout": 3600.0, "nice": 3, "load": 1000.0, "drain": False,
                                 "foreground": False}


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
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr
