"""What a job is given besides its command: the shell of its line, its input, the umask of whoever enqueued it."""
from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest
from conftest import SCRIPT, WINDOWS, linux_only, not_on_fallbacks, posix_only, wait_until

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]
READ = "import sys; data = sys.stdin.buffer.read(); print(len(data), sum(data) % 65521, sys.stdin.buffer.raw.seekable())"
needs_bash = pytest.mark.skipif(WINDOWS or not shutil.which("bash"), reason="POSIX only: bash")


def drained(queue, **options):
    queue.start(1, "--foreground", "--drain", **options)


def read_text(data):
    return "%d %d True" % (len(data), sum(data) % 65521)


# ---- --shell -------------------------------------------------------------------------------------

@needs_bash
def test_a_line_is_run_by_the_shell_that_the_job_names(queue):
    job = queue.enqueue("--shell", "bash", "[[ a == a ]] && x=(1 2 3) && echo ${#x[@]} $'a\\tb'")
    plain = queue.enqueue("echo $0")
    drained(queue)
    assert queue.out("logs", job).split() == ["3", "a", "b"]
    assert queue.out("logs", plain) == "sh"
    assert (queue.json("show", job)["shell"], queue.json("show", plain)["shell"]) == ("bash", "sh")


@needs_bash
def test_a_shell_may_have_options_or_a_path_with_a_space(queue, tmp_path):
    (tmp_path / "my shell").symlink_to(shutil.which("bash"))
    strict = queue.enqueue("--max-retries", "0", "--shell", "bash -eo pipefail", "false | true; echo on")
    spaced = queue.enqueue("--shell", str(tmp_path / "my shell"), "echo ${BASH_VERSION:+bash}")
    drained(queue, status=1)
    assert queue.job(strict).state == "dead"
    assert queue.out("logs", spaced) == "bash"


@needs_bash
def test_the_setting_holds_for_lines_enqueued_from_then_on_unless_a_job_says_otherwise(queue):
    before = queue.enqueue("echo ${BASH_VERSION:-no}")
    assert queue.out("config", "get", "shell") == "sh"
    queue.cli("config", "set", "shell", "bash")
    after = queue.enqueue("echo ${BASH_VERSION:+bash}")
    own = queue.enqueue("--shell", "sh", "echo ${BASH_VERSION:-no}")
    words = queue.enqueue("printf", "%s", "a  b")
    queue.cli("enqueue", "--file", "-", stdin="echo ${BASH_VERSION:+bash}\n# no job\n" + json.dumps({"command": "echo $0", "shell": "sh"}))
    queue.cli("config", "unset", "shell")
    drained(queue)
    shown = [queue.out("logs", job) for job in (before, after, own, words, 5, 6)]
    assert shown == ["no", "bash", "no", "a  b", "bash", "sh"]
    assert [queue.json("show", job)["shell"] for job in (before, after, own, words)] == ["sh", "bash", "sh", "sh"]


@needs_bash
def test_run_schedules_and_edit_take_a_shell_too(queue):
    done = queue.cli("run", "--max-retries", 0, "--shell", "bash", "[[ x == x ]] && echo yes; exit 4", check=False)
    assert "exit 4" in done.stderr
    queue.cli("cron", "add", "nightly", "--shell", "bash", "0 0 * * *", "[[ x == x ]] && echo scheduled")
    job = int(queue.out("cron", "run", "nightly"))
    edited = queue.enqueue("[[ x == x ]] && echo edited")
    queue.cli("edit", "--shell", "bash", edited)
    drained(queue)
    assert queue.out("logs", job) == "scheduled"
    assert queue.out("logs", edited) == "edited"


@pytest.mark.sampled(4)
@posix_only("where programs are found")
@pytest.mark.parametrize("shell", ["no-such-shell", "./sh", "bin/sh", "/nowhere/sh", "", "a\nb", "/etc/passwd", "/"])
def test_a_shell_that_is_not_there_is_refused_where_it_is_named(queue, shell):
    for words in (["enqueue", "--shell", shell, "true"], ["config", "set", "shell", shell], ["run", "--shell", shell, "true"],
                  ["cron", "add", "x", "--shell", shell, "0 0 * * *", "true"]):
        done = queue.cli(*words, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.count("\n") == 1 and "shell" in done.stderr
    assert not queue.db.exists() or queue.sql("SELECT count(*) FROM job") == [(0,)]


@posix_only("a shell on the job's own PATH")
def test_a_shell_is_looked_up_on_the_jobs_own_path(queue, tmp_path):
    shell = tmp_path / "mine"
    shell.write_text("#!/bin/sh\necho mine \"$@\"\n")
    shell.chmod(0o755)
    path = "%s:%s" % (tmp_path, os.environ["PATH"])
    job = queue.enqueue("--shell", "mine", "a 'b", env={"PATH": path})
    given = queue.enqueue("--shell", "mine", "--env", "PATH=" + path, "--max-retries", "0", "x")
    gone = queue.enqueue("--shell", str(shell), "--max-retries", "0", "x")
    long = queue.enqueue("--file", "-", "--shell", "mine", "-q", env={"PATH": path}, stdin="x" * 200000)
    queue.cli("hold", gone)
    drained(queue)
    assert queue.out("logs", job) == "mine -c a 'b"
    assert queue.out("logs", given) == "mine -c x"
    assert re.fullmatch(r"mine /.*\.cmd", queue.out("logs", long))
    shell.unlink()
    queue.cli("release", gone)
    drained(queue, status=1)
    assert queue.job(gone).error == "can't be started: the shell %s no longer exists" % shell


@needs_bash
def test_an_argument_list_reaches_the_program_unchanged_whatever_the_shell(queue):
    words = ["a  b", "'", "$HOME", "!", "*", "x\\y", ""]
    given = queue.enqueue("--shell", "bash", "printf", "<%s>", *words)
    queue.cli("config", "set", "shell", "bash")
    default = queue.enqueue("printf", "<%s>", *words)
    drained(queue)
    assert queue.out("logs", given) == queue.out("logs", default) == "".join("<%s>" % word for word in words)


@posix_only("a stand-in for PowerShell")
def test_powershell_gets_its_own_options_and_quotes(queue, tmp_path):
    shell = tmp_path / "pwsh"
    shell.write_text("#!/bin/sh\nprintf '[%s]' \"$@\"\n")
    shell.chmod(0o755)
    line = queue.enqueue("--shell", str(shell), "Get-Item $x | Out-String")
    words = queue.enqueue("--shell", str(shell), "git", "it's", "$x")
    drained(queue)
    assert queue.out("logs", line).startswith("[-NoProfile][-NonInteractive][-Command][Get-Item $x | Out-String\n")
    assert "[& 'git' 'it''s' '$x'\n" in queue.out("logs", words)


# ---- --stdin -------------------------------------------------------------------------------------

def test_a_job_reads_what_it_was_given_to_its_end_and_the_next_one_nothing(queue):
    data = bytes(range(256)) * 300
    (queue.dir / "data").write_bytes(data)
    by_file = queue.enqueue("--stdin", "data", *queue.script(READ))
    piped = queue.json("show", int(queue.cli("enqueue", "--stdin", "-", *queue.script(READ), stdin=data, binary=True).stdout))["id"]
    none = queue.enqueue(*queue.script("import sys; print(len(sys.stdin.buffer.read()))"))
    (queue.dir / "data").unlink()  # it is kept with the job
    drained(queue)
    assert queue.out("logs", by_file) == queue.out("logs", piped) == read_text(data)
    assert queue.out("logs", none) == "0"
    assert [queue.json("show", job)["stdin"] for job in (by_file, piped, none)] == [True, True, False]
    assert not list(queue.files.glob("workers/*.in"))


def test_every_attempt_reads_all_of_it(queue):
    job = queue.enqueue("--max-retries", "2", "--backoff-base", "0", "--stdin", "-", *queue.script(READ + "; sys.exit(1)"), stdin="hello")
    drained(queue, status=1)
    assert [(row["attempt"], row["outcome"]) for row in queue.json("show", job)["history"]] == [(n, "failed") for n in (1, 2, 3)]
    for attempt in (1, 2, 3):
        assert (queue.files / "logs" / "0" / ("%d.%d.log" % (job, attempt))).read_text().strip() == read_text(b"hello")
    queue.cli("retry", job)
    drained(queue, status=1)
    assert (queue.files / "logs" / "0" / ("%d.4.log" % job)).read_text().strip() == read_text(b"hello")


def test_json_takes_the_text_itself(queue):
    text = "zwei\nZeilen ä\U0001f600"
    lines = [json.dumps({"command": queue.script(READ), "stdin": text}), json.dumps({"command": queue.script(READ), "stdin": ""})]
    queue.cli("enqueue", "--file", "-", stdin="\n".join(lines))
    drained(queue)
    assert queue.out("logs", "1") == read_text(text.encode())
    assert queue.out("logs", "2") == "0 0 True"


def test_an_input_is_kept_once_and_goes_with_the_last_job_that_reads_it(queue):
    (queue.dir / "data").write_bytes(b"x" * 2**20)
    queue.cli("enqueue", "--stdin", "data", "--file", "-", stdin="exit 0\n" * 50)
    other = queue.enqueue("--stdin", "data", "exit 0")
    kept = "SELECT count(*), sum(uses) FROM env WHERE length(data)=1048576"
    assert queue.sql(kept) == [(1, 51)]
    drained(queue)
    queue.cli("rm", "1-50")
    assert queue.sql(kept) == [(1, 1)]
    queue.cli("rm", other)
    assert queue.sql(kept) == [(0, None)]
    assert queue.sql("SELECT count(*) FROM env") == [(0,)]


def test_retention_removes_it_too(queue):
    queue.enqueue("--stdin", "-", "exit 0", stdin="secret")
    drained(queue)
    queue.cli("config", "set", "keep_finished", "0.01s")
    queue.start(1)
    wait_until(lambda: queue.sql("SELECT count(*) FROM job") == [(0,)], message="retention takes the job")
    assert queue.sql("SELECT count(*) FROM env") == [(0,)]


def test_it_is_exported_and_imported(queue, tmp_path):
    job = queue.enqueue("--stdin", "-", *queue.script(READ), stdin="from afar")
    text = queue.cli("export").stdout
    first, queue.db = queue.db, tmp_path / "other.db"
    queue.files = tmp_path / "other.db.d"
    queue.cli("import", "-", stdin=text)
    drained(queue)
    assert queue.out("logs", job) == read_text(b"from afar")
    queue.db, queue.files = first, first.parent / (first.name + ".d")


def test_run_and_schedules_take_an_input(queue):
    data = b"\xff\x00 bytes"
    (queue.dir / "data").write_bytes(data)
    queue.cli("run", "--stdin", "data", *queue.script(READ))
    assert queue.out("logs", "last") == read_text(data)
    queue.cli("cron", "add", "nightly", "--stdin", "data", "0 0 * * *", *queue.script(READ))
    job = int(queue.out("cron", "run", "nightly"))
    assert queue.json("cron", "list")[0]["name"] == "nightly"
    drained(queue)
    assert queue.out("logs", job) == read_text(data)


def test_an_input_that_can_not_be_kept_is_refused(queue):
    (queue.dir / "big").write_bytes(b"x" * (2**20 + 1))
    (queue.dir / "jobs").write_text("exit 0\n")
    cases = (["--stdin", "big", "exit 0"], ["--stdin", "missing", "exit 0"], ["--stdin", ".", "exit 0"], ["--stdin", "-", "--file", "-"],
             ["--stdin", "", "exit 0"], [json.dumps({"command": "exit 0", "stdin": 5})], [json.dumps({"command": "exit 0", "stdin": "\ud800"})],
             [json.dumps({"command": "exit 0", "stdin": "x" * (2**20 + 1)})], ["--stdin", "big", "--file", "jobs"])
    for words in cases:
        if len(words[0]) > 100000:
            words, text = ["--file", "-"], words[0]
        else:
            text = "exit 0"
        done = queue.cli("enqueue", *words, check=False, stdin=text)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.count("\n") == 1, done.stderr
    if not WINDOWS:
        done = queue.cli("enqueue", "--stdin", "/dev/zero", "exit 0", check=False)
        assert done.returncode == 2 and "1 MiB" in done.stderr
    assert not queue.db.exists() or queue.sql("SELECT count(*) FROM job") == [(0,)]


@posix_only("a closed descriptor")
@pytest.mark.parametrize("option", ["--stdin", "--file"])
def test_a_standard_input_that_is_closed_is_told(queue, option):
    words = queue.command("enqueue", option, "-", *(["exit 0"] if option == "--stdin" else []))
    done = queue.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "queuectl: error: standard input is closed\n")


# ---- umask ---------------------------------------------------------------------------------------

MAKE = "import os; os.close(os.open('made-%s' % os.environ['QUEUECTL_JOB_ID'], os.O_CREAT | os.O_WRONLY, 0o777))"


def under(queue, umask, *words):
    """A command under another umask, in a process of its own."""
    return queue.run(["sh", "-c", 'umask %s; exec "$@"' % umask, "sh", *queue.command(*words)])


def modes(queue):
    return ["%04o" % (path.stat().st_mode & 0o777) for path in sorted(queue.dir.glob("made-*"), key=lambda path: int(path.name[5:]))]


@posix_only("umask")
def test_a_job_has_the_umask_of_whoever_enqueued_it(queue):
    for umask in ("077", "002", "000", "777"):
        under(queue, umask, "enqueue", *queue.script(MAKE))
    under(queue, "077", "enqueue", "--umask", "027", *queue.script(MAKE))
    under(queue, "077", "enqueue", "touch made-$QUEUECTL_JOB_ID; chmod +x made-$QUEUECTL_JOB_ID")
    under(queue, "077", "cron", "add", "nightly", "0 0 * * *", *queue.script(MAKE))
    queue.cli("cron", "run", "nightly")
    under(queue, "022", "worker", "start", "--foreground", "--drain")
    assert {job["state"] for job in queue.json("list")} == {"completed"}
    assert modes(queue) == ["0700", "0775", "0777", "0000", "0750", "0700", "0700"]
    assert [queue.json("show", job)["umask"] for job in (1, 2, 5, 7)] == ["0077", "0002", "0027", "0077"]
    for path in queue.files.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 and path.stat().st_mode & 0o600 == 0o600, path


@posix_only("umask")
def test_a_job_of_a_release_that_stored_none_has_the_workers(queue):
    job = under(queue, "077", "enqueue", *queue.script(MAKE)).stdout.strip()
    queue.sql("UPDATE job SET umask=NULL")
    assert queue.json("show", job)["umask"] is None
    under(queue, "007", "worker", "start", "--foreground", "--drain")
    assert modes(queue) == ["0770"]


@posix_only("umask")
@pytest.mark.parametrize("umask", ["8", "0o22", "1000", "-1", "", "u=rwx", "٢٢"])
def test_a_umask_that_is_none_is_refused(queue, umask):
    done = queue.cli("enqueue", "--umask", umask, "exit 0", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "umask" in done.stderr


@linux_only("/proc tells the umask without changing it")
def test_the_python_api_never_changes_its_callers_umask(queue):
    not_on_fallbacks("elsewhere a program without threads changes it for a moment")
    code = """
import os, sys, threading
sys.path.insert(0, %r)
import queuectl
os.umask(0o027)
seen = []
real = os.umask
os.umask = lambda mask: seen.append(mask) or real(mask)
with queuectl.Store(sys.argv[1]) as store:
    job = store.enqueue("exit 0")
    print(seen, store.look.job(job).umask)
""" % str(SCRIPT.parent)
    done = queue.run([sys.executable, "-IS", "-c", code, str(queue.db)])
    assert done.stdout.split() == ["[]", str(0o027)]


@posix_only("umask")
def test_where_there_is_no_proc_a_program_with_threads_keeps_its_umask_too(queue):
    code = """
import os, sys, threading
sys.path.insert(0, %r)
import queuectl
event = threading.Event()
other = threading.Thread(target=event.wait)
other.start()
seen = []
real = os.umask
os.umask = lambda mask: seen.append(mask) or real(mask)
with queuectl.Store(sys.argv[1]) as store:
    job = store.enqueue("exit 0")
    print(seen, store.look.job(job).umask)
event.set()
""" % str(SCRIPT.parent)
    done = queue.run([sys.executable, "-IS", "-c", code, str(queue.db)], env={"QUEUECTL_FALLBACKS": "1"})
    assert done.stdout.split() == ["[]", "None"]
