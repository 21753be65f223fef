"""wait: for one job, several, a batch or all, with the exit status that tells how they ended."""
from __future__ import annotations

import os
import re
import signal
import time

from conftest import linux_only, posix_only, wait_until
from jobs import api, call, mixed, nine_jobs, states, work_off  # noqa: F401 (fixtures)
from screen import cells

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def cpu_of(process):
    """Seconds of processor time that a child used, waited for here."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    return usage.ru_utime + usage.ru_stime


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
    assert whole < 2 * start_up + 4 * 0.02, "%.3f s of processor time in 4 s, and %.3f to start" % (whole - start_up, start_up)


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
