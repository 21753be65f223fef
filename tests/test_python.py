"""Queue, the Python API, as a program uses it that imports the file."""
from __future__ import annotations

import datetime
import inspect
import pydoc
import threading
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPT, posix_only, sys

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]


@pytest.fixture
def python(tmp_path):
    with queuectl.Queue(tmp_path / "api.db") as opened:
        yield opened


def work(database):
    """Jobs are run by a drain in another process, as workers do."""
    import subprocess
    subprocess.run([sys.executable, "-IS", str(SCRIPT), "--db", str(database), "worker", "start", "--foreground", "--drain"],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def test_the_options_of_enqueue_are_those_of_a_job_and_an_editor_shows_them():
    shown = [parameter for parameter in inspect.signature(queuectl.Queue.enqueue).parameters.values()
             if parameter.kind is parameter.KEYWORD_ONLY]
    assert [parameter.name.rstrip("_") for parameter in shown] == list(queuectl.JOB_OPTIONS)
    assert all(parameter.annotation.endswith("| None") and parameter.default is None for parameter in shown)
    for method in ("job", "jobs", "wait", "run", "output"):
        assert getattr(queuectl.Queue, method).__doc__


def test_a_job_has_what_to_dict_says_as_attributes_with_aware_times(python):
    job = python.job(python.enqueue("exit 0", unique="u", label=["a", "b"], name="n"))
    shown = job.to_dict()
    assert set(shown) == set(queuectl.JobInfo.__annotations__)
    for name, value in shown.items():
        if not name.endswith("_at"):
            assert getattr(job, name) == value, name
    assert job.unique == "u" and job.labels == ["a", "b"] and python.job("n").id == job.id
    assert job.created_at.tzinfo is not None and job.finished_at is None
    assert shown["created_at"] == job.created_at.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (job.created_at.microsecond // 1000)
    assert "pending" in repr(job)


def test_paths_times_and_jobs_are_values(python, tmp_path):
    later = datetime.datetime(2040, 1, 1, tzinfo=datetime.timezone.utc)
    first = python.job(python.enqueue([sys.executable, "-c", "", Path("a b")], cwd=tmp_path, timeout=datetime.timedelta(minutes=2), at=later))
    assert first.cwd == str(tmp_path) and first.timeout == 120.0 and first.run_at == later and "a b" in first.command
    child = python.enqueue("exit 0", after=first)
    [many] = python.enqueue_many([{"command": ["x", Path("y")], "cwd": tmp_path}])
    assert python.job(many).cwd == str(tmp_path)
    python.cancel(first)
    assert python.job(child).state == "cancelled"


@pytest.mark.parametrize("wrong", [
    lambda q: q.jobs("pending"), lambda q: q.jobs(["foo"]), lambda q: q.jobs(limit=-1), lambda q: q.enqueue(""), lambda q: q.job(77),
    lambda q: q.job("no such"), lambda q: q.enqueue("x", cwd=5), lambda q: q.enqueue_many("one"), lambda q: q.enqueue_many([]),
    lambda q: q.run(["exit 0"], count=0), lambda q: q.run("exit 0"), lambda q: q.output(1), lambda q: q.wait("no such"),
    lambda q: q.enqueue(None), lambda q: q.enqueue_many(None), lambda q: q.enqueue_many(5), lambda q: q.run(None), lambda q: q.run([{"command": "x", "env": {"A": object()}}]),
    lambda q: q.cancel(None), lambda q: q.retry(1.0), lambda q: q.wait(None, 0), lambda q: q.jobs(None), lambda q: q.jobs(5), lambda q: q.counts([]),
    lambda q: queuectl.Queue(5), lambda q: queuectl.Queue([]), lambda q: queuectl.Queue(b"x"), lambda q: q.enqueue("x", after=""),
    lambda q: q.enqueue("x", umask=-1), lambda q: q.enqueue("x", umask=0o1000), lambda q: q.enqueue("x", retry_on=["a"]), lambda q: q.enqueue("x", retry_on=[]),
    lambda q: q.history(7), lambda q: q.enqueue("x", after=[12]), lambda q: q.enqueue("x", timeout="soon")])
def test_a_mistake_is_an_error_that_derives_from_queuectl_error(python, wrong):
    with pytest.raises(queuectl.Error):
        wrong(python)
    assert sum(python.counts().values()) == 0


def test_what_the_standard_library_has_for_an_option_is_taken(python):
    import os
    job = python.job(python.enqueue("exit 0", env=os.environ, umask=0o027, retry_on=[1, 75], dead_on=(2, "5-9")))
    assert (job.umask, job.retry_on, job.dead_on) == ("0027", "1,75", "2,5-9")
    [job] = python.run([{"command": [sys.executable, "-IS", "-c", "import sys; print(ascii(sys.stdin.buffer.read()))"], "stdin": b"\xff\0x"}])
    assert python.output(job).split() == ["b'\\xff\\x00x'"]


def test_an_error_names_our_commands_and_not_the_program_that_imports_us(python, tmp_path):
    with pytest.raises(queuectl.Error, match="see `queuectl batch list`"):
        python.enqueue("x", after_batch=7)
    assert queuectl.invoked() == "queuectl"
    with pytest.raises(queuectl.Error, match="directory"):
        queuectl.Queue(tmp_path)


def test_a_queue_may_have_a_number_for_its_name(python):
    python.enqueue("exit 0", queue="7")
    assert python.counts("7")["pending"] == 1


def test_ids_may_be_single(python):
    one, two = python.enqueue("exit 0", name="one"), python.enqueue("exit 0")
    assert python.cancel(one) == [(one, "cancelled")] == python.cancel("one")[:0] + [(one, "cancelled")]
    assert python.retry("one") == [(one, "pending")] and python.retry(python.job(two)) == [(two, "pending already")]
    assert python.cancel([one, two]) == [(one, "cancelled"), (two, "cancelled")]


@posix_only("sh")
def test_wait_output_and_history_tell_how_a_job_went(python, tmp_path):
    job, dead = python.enqueue("echo out; echo err >&2"), python.enqueue("printf '\\377'; exit 3", max_retries=0)
    with pytest.raises(queuectl.TimedOut, match="still unfinished after 0"):
        python.wait(job, timeout=0)
    work(tmp_path / "api.db")
    assert python.wait(job).state == "completed"
    assert [found.exit_code for found in python.wait([job, dead], timeout="10s")] == [0, 3]
    assert sorted(python.output(job).splitlines()) == ["err", "out"] and python.output(dead) == "\ufffd"
    [attempt] = python.history(dead)
    assert attempt.outcome == "failed" and attempt.finished_at >= attempt.started_at and attempt.started_at.tzinfo is not None


@posix_only("sh")
def test_run_works_commands_and_returns_their_jobs_in_order(python):
    jobs = python.run(["echo one", ["echo", "a  b"], {"command": "exit 3", "max_retries": 0}], count=2)
    assert [job.state for job in jobs] == ["completed", "completed", "dead"]
    assert [python.output(job) for job in jobs] == ["one\n", "a  b\n", ""]
    assert python.run([]) == []


def test_another_thread_and_a_closed_queue_give_a_clear_error(python):
    told = []

    def other():
        try:
            python.counts()
        except queuectl.Error as error:
            told.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(told) == 1 and "thread" in told[0]
    python.close()
    python.close()
    with pytest.raises(queuectl.Error, match="closed"):
        python.enqueue("exit 0")


def test_what_the_machine_refuses_is_an_error_of_ours(python, tmp_path):
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    with pytest.raises(queuectl.Error, match="not a database"):
        queuectl.Queue(tmp_path / "other.db")
    for error in (queuectl.UserError, queuectl.QueueGone, queuectl.WrongValue, queuectl.TimedOut):
        assert issubclass(error, queuectl.Error)


def test_help_tells_how_a_queue_is_used():
    text = pydoc.plain(pydoc.render_doc(queuectl.Queue))
    assert "with queuectl.Queue(" in text and "_guard" not in text and "timedelta" in text
    assert str(ROOT) not in text.split("FILE")[0]
