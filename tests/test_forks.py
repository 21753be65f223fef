"""A command that tests/forks.py forks is what a command that is started by itself is."""
from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import linux_only, posix_only

pytestmark = posix_only("fork")

# What a process is given, seen from a job's worker: it inherits from the command that started it all that is not set again.
SHOW = "grep '^Sig[BIC]' /proc/self/status; ulimit -a; umask; " \
       "env -0 | sort -z | grep -zv ^QUEUECTL_ATTEMPT= | tr '\\0' '\\n'; pwd; ls -l /proc/self/fd | wc -l"


def both(queue, *words, **options):
    """The same command, started by itself and forked."""
    options.setdefault("check", False)
    forked = queue.forked([str(word) for word in words], **options)
    return queue.process(*words, **options), forked


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words, stdin", [
    (["--version"], None), (["list", "--json"], None), (["enqueue", "--umask", "8", "x"], None), (["show", "99"], None), ([], None),
    (["enqueue", "--help"], None), (["nonsense"], None), (["enqueue", "--file", "-"], "{"), (["export"], None)],
    ids=str)
def test_a_forked_command_prints_the_same_and_ends_with_the_same_status(queue, words, stdin):
    queue.enqueue("--hold", "exit 0")
    started, forked = both(queue, *words, stdin=stdin)
    assert (started.returncode, started.stdout, started.stderr) == (forked.returncode, forked.stdout, forked.stderr)


def test_a_job_of_a_forked_enqueue_has_the_same_environment_directory_umask_and_input(queue):
    folder = queue.dir / "folder"
    folder.mkdir()
    umask = os.umask(0o26)
    try:
        started, forked = both(queue, "enqueue", "--stdin", "-", "cat", cwd=folder, stdin="words\n" * 50000)
    finally:
        os.umask(umask)
    assert (started.stdout, forked.stdout) in (("1\n", "2\n"), ("2\n", "1\n"))
    rows = [queue.json("show", job) for job in (1, 2)]
    for row in rows:
        del row["id"], row["created_at"], row["run_at"]
    assert rows[0] == rows[1] and rows[0]["cwd"] == str(folder)
    assert len(queue.sql("SELECT id FROM env")) == 2, "one environment, and one input"


@linux_only("/proc")
def test_workers_and_jobs_of_a_forked_start_inherit_the_same(queue):
    job = queue.enqueue(SHOW)
    shown = []
    for start in (queue.process, lambda *words: queue.forked(list(words))):
        start("worker", "start")
        queue.wait_for(job, "completed")
        shown.append(queue.out("logs", job))
        signals = {re.search(r"SigBlk.*\n.*\n.*", Path("/proc/%d/status" % pid).read_text()).group() for pid in queue.processes()}
        queue.stop()
        queue.cli("retry", job)
        shown.append(signals)
    assert len(shown[0].splitlines()) > 20
    assert shown[1] == shown[3] and shown[0] == shown[2]
