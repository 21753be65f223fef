"""What a job keeps of its enqueuer's environment, what leaves with an export or a backup, and `cron edit`."""
from __future__ import annotations

import json

import pytest
from conftest import SCRIPT, posix_only

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]
SECRET = {"API_TOKEN": "geheim-7391", "LC_TIME": "C"}


def names_of(queue, job):
    """The names of the variables that a job keeps."""
    [(data,)] = queue.sql("SELECT data FROM env JOIN job ON job.env=env.id WHERE job.id=?", job)
    return {entry.partition(b"=")[0].decode() for entry in data.split(b"\0")}


def told(queue):
    """Everything that the database holds."""
    return b"".join(path.read_bytes() for path in queue.dir.glob("queue.db*") if path.is_file())


def test_env_keep_says_which_variables_jobs_and_schedules_keep(queue):
    queue.cli("config", "set", "env_keep", "PATH  HOME LC_* QUEUECTL_TEST SYSTEMROOT")
    assert queue.out("config", "get", "env_keep") == "PATH HOME LC_* QUEUECTL_TEST SYSTEMROOT"
    one = queue.enqueue("exit 0", env=SECRET)
    two = queue.enqueue("--env", "GIVEN=yes", "exit 0", env=SECRET)
    queue.cli("enqueue", "--file", "-", stdin="exit 0\nexit 1", env=SECRET)
    queue.cli("cron", "add", "n", "0 0 1 1 *", "exit 0", env=SECRET)
    scheduled = int(queue.out("cron", "run", "n"))
    always = {"SYSTEMROOT", "LC_ALL"}  # Windows has the one, and some machines the other
    assert names_of(queue, one) - always == {"PATH", "HOME", "LC_TIME", "QUEUECTL_TEST"} == names_of(queue, 3) - always
    assert names_of(queue, two) - names_of(queue, one) == {"GIVEN"} and names_of(queue, scheduled) == names_of(queue, one)
    assert b"geheim" not in told(queue)
    queue.cli("config", "unset", "env_keep")
    assert "API_TOKEN" in names_of(queue, queue.enqueue("exit 0", env=SECRET))


def test_a_clean_env_keeps_what_programs_need_and_what_the_job_was_given(queue):
    job = queue.enqueue("--clean-env", "--env", "GIVEN=yes", "exit 0", env=SECRET)
    assert queue.sql("SELECT env FROM job") == [(1,)]  # the whole environment was never a row, not even for a moment
    queue.cli("cron", "add", "n", "--clean-env", "0 0 1 1 *", "exit 0", env=SECRET)
    assert {"PATH", "LC_TIME", "GIVEN"} <= names_of(queue, job) and "API_TOKEN" not in names_of(queue, job)
    assert b"geheim" not in told(queue)
    edited = queue.enqueue("exit 0", env=SECRET)
    queue.cli("edit", edited, "--clean-env")
    assert "API_TOKEN" not in names_of(queue, edited) and "PATH" in names_of(queue, edited)


@posix_only("sh")
def test_a_job_with_a_clean_env_runs(queue):
    job = queue.enqueue("--clean-env", 'echo "[$API_TOKEN]"; command -v sh >&2', env=SECRET)
    queue.start(1, "--foreground", "--drain")
    assert queue.out("logs", job).splitlines()[0] == "[]" and queue.job(job).state == "completed"


@pytest.mark.parametrize("wrong", ["", "A=b", "a\nb"])
def test_patterns_that_name_no_variable_are_refused(queue, wrong):
    assert queue.cli("config", "set", "env_keep", wrong, check=False).returncode == 2
    assert not queue.db.exists()


@posix_only("sh")
def test_an_export_without_environments_holds_none_and_its_jobs_run_with_the_importers(queue):
    job = queue.enqueue("--stdin", "-", 'cat; echo "[$API_TOKEN]"', env=SECRET, stdin="its input")
    queue.cli("cron", "add", "n", "--env", "GIVEN=geheim-7392", "0 0 1 1 *", "exit 0", env=SECRET)
    assert b"geheim".hex() in queue.out("export") and "geheim" in queue.out("export")
    text = queue.out("export", "--no-env")
    assert b"geheim".hex() not in text and "geheim" not in text
    other = queue.db.parent / "other.db"
    there = [*queue.program, "--db", str(other)]
    queue.run([*there, "import", "-"], stdin=text, env={"API_TOKEN": "mine"})
    queue.run([*there, "worker", "start", "--foreground", "--drain"])
    assert queue.run([*there, "logs", str(job)]).stdout == "its input[mine]\n"
    assert json.loads(queue.run([*there, "cron", "list", "--json"]).stdout)[0]["name"] == "n"


@posix_only("sh")
def test_a_backup_takes_the_logs_along_when_asked_and_otherwise_says_that_they_were_not_copied(queue):
    job, silent = queue.enqueue("echo words"), queue.enqueue("exit 0")
    queue.start(1, "--foreground", "--drain")
    for name, options in (("with.db", ["--logs"]), ("without.db", [])):
        queue.cli("backup", *options, queue.dir / name)
    there = [*queue.program, "--db", str(queue.dir / "with.db"), "logs"]
    assert queue.run([*there, str(job)]).stdout == "words\n"
    there = [*queue.program, "--db", str(queue.dir / "without.db"), "logs"]
    assert "its log was not copied" in queue.run([*there, str(job)]).stderr
    assert "wrote nothing" in queue.run([*there, str(silent)]).stderr
    assert [row["output"] for row in queue.json("show", job)["history"]] == [6]
    (queue.dir / "third.db.d").mkdir()
    assert queue.cli("backup", "--logs", queue.dir / "third.db", check=False).returncode == 2
    assert not (queue.dir / "third.db").exists()


@posix_only("modes")
def test_the_copied_logs_are_their_owners_alone(queue):
    queue.enqueue("echo words")
    queue.start(1, "--foreground", "--drain")
    queue.cli("backup", "--logs", queue.dir / "copy.db")
    paths = list((queue.dir / "copy.db.d").rglob("*")) + [queue.dir / "copy.db.d"]
    assert any(path.is_file() for path in paths) and all(path.stat().st_mode & 0o077 == 0 for path in paths)


# ---- cron edit -----------------------------------------------------------------------------------

def test_cron_edit_changes_what_it_is_told_and_nothing_else(queue):
    queue.cli("cron", "add", "n", "--tz", "Europe/Berlin", "--env", "A=1", "--key", "k", "--overlap", "skip", "0 2 * * *", "echo one")
    [before] = queue.json("cron", "list")
    queue.cli("cron", "edit", "n", "--timeout", "1h", "--env", "B=2")
    [after] = queue.json("cron", "list")
    assert after == dict(before, timeout="1h", env={"A": "1", "B": "2"})
    queue.cli("cron", "edit", "n", "--cron", "0 3 * * *", "--command", "echo two", "--key", "", "--overlap", "queue")
    [after] = queue.json("cron", "list")
    assert [after[name] for name in ("spec", "command", "overlap", "tz", "timeout")] == ["0 3 * * *", "echo two", "queue", "Europe/Berlin", "1h"]
    assert "key" not in after and after["next_at"] != before["next_at"]
    queue.cli("cron", "edit", "n", "--every", "90s")
    [after] = queue.json("cron", "list")
    assert (after["spec"], after["every"]) == (None, 90.0)
    job = int(queue.out("cron", "run", "n"))
    assert queue.json("show", job)["command"] == "echo two" and queue.json("show", job)["timeout"] == 3600.0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", [["n"], ["n", "--timeout", "soon"], ["x", "--timeout", "1h"], ["n", "--cron", "0 0 31 2 *"], ["n", "--name", "y"],
                                   ["n", "--cron", "0 0 * * *", "--every", "1h"], ["n", "--command", ""], ["n", "--after", "77"]])
def test_a_cron_edit_that_makes_no_sense_changes_nothing(queue, words):
    queue.cli("cron", "add", "n", "0 2 * * *", "echo one")
    before = queue.json("cron", "list")
    done = queue.cli("cron", "edit", *words, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert queue.json("cron", "list") == before
