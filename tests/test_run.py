"""run: the one-shot for CI, and real loads with every output compared."""
from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import WINDOWS, posix_only, wait_until

pytestmark = pytest.mark.core


# ---- the outcome -----------------------------------------------------------------------------------

def test_run_ends_with_0_when_all_completed(queue):
    done = queue.cli("run", "--count", 2, "--file", "-", stdin="echo a\necho b\nexit 0\n")
    assert re.search(r"\b3\b", done.stderr) and sorted(done.stdout.splitlines()) == ["a", "b"]
    assert queue.json("status")["jobs"]["completed"] == 3
    assert queue.json("worker", "list") == []


def test_run_ends_with_1_and_shows_the_last_lines_of_each_job_that_failed(queue):
    code = "[print('line', n) for n in range(500)]; raise SystemExit(4)"
    lines = [json.dumps({"command": queue.script(code), "name": "bad", "max_retries": 0}), "echo quiet success"]
    done = queue.cli("run", "--output", "none", "--file", "-", stdin="\n".join(lines), check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "line 499" in done.stderr and "exit 4" in done.stderr
    assert "line 100\n" not in done.stderr and "quiet success" not in done.stderr


def test_run_takes_one_command_as_words_or_as_a_line(queue):
    assert queue.cli("run", "echo", "Hello   Queue").returncode == 0
    assert queue.out("logs", 1).strip('"') == "Hello   Queue"
    assert queue.cli("run", "--max-retries", 0, "exit 3", check=False).returncode == 1


def test_run_uses_the_cores_that_it_may_use(queue):
    import queuectl
    cores = queuectl.OS.cores()
    lines = "\n".join([json.dumps({"command": queue.script("import time; time.sleep(0.3)")})] * cores * 3)
    queue.cli("run", "--file", "-", stdin=lines)
    assert queue.sql("SELECT count(DISTINCT worker) FROM history") == [(cores,)]


def test_run_does_once_what_it_is_told_unless_it_is_told_to_retry(queue):
    queue.cli("config", "set", "max_retries", 2)
    queue.cli("config", "set", "backoff_base", "0")
    lines = ["exit 3", json.dumps({"command": "exit 4", "max_retries": 1})]
    assert queue.cli("run", "exit 2", check=False).returncode == 1
    assert queue.cli("run", "--file", "-", stdin="\n".join(lines), check=False).returncode == 1
    assert queue.cli("run", "--max-retries", 3, "exit 5", check=False).returncode == 1
    assert queue.sql("SELECT exit_code, attempts FROM job ORDER BY id") == [(2, 1), (3, 1), (4, 2), (5, 4)]


def test_run_waits_for_retries(queue):
    code = "import os, sys; sys.exit(os.environ['QUEUECTL_ATTEMPT'] == '1')"
    queue.cli("run", "--max-retries", 1, "--backoff-base", 0.2, *queue.script(code))
    assert [a["outcome"] for a in queue.json("show", 1)["history"]] == ["failed", "completed"]


def test_run_works_its_own_jobs_only(queue):
    other = queue.enqueue("exit 0")
    queue.cli("run", "exit 0")
    assert queue.job(other).state == "pending"


def test_the_workers_of_others_do_not_take_the_jobs_of_run(queue):
    queue.start(2)
    done = queue.cli("run", "--count", 1, "--file", "-", stdin="exit 0\n" * 10)
    assert done.returncode == 0
    workers = {attempt["worker"] for n in range(1, 11) for attempt in queue.json("show", n)["history"]}
    assert len(workers) == 1 and not workers & {worker["id"] for worker in queue.json("worker", "list")}


def test_run_shows_plain_lines_where_there_is_no_terminal(queue):
    done = queue.cli("run", "--count", 2, "--file", "-", stdin="exit 0\n" * 20)
    assert "\r" not in done.stderr + done.stdout and "\x1b" not in done.stderr + done.stdout


@posix_only("pseudo-terminals")
def test_run_shows_a_progress_bar_on_a_terminal(queue):
    path = queue.dir / "jobs.txt"
    path.write_text("sleep 0.1\n" * 12)
    status, text = queue.terminal("run", "--count", 2, "--file", path, columns=70)
    assert status == 0 and "\r" in text
    assert re.search(r"\d+/12|12/12|\b12\b", text)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert all(len(part) <= 70 for line in plain.split("\n") for part in line.split("\r"))


@posix_only("signals")
def test_an_interrupted_run_ends_with_130_and_the_next_worker_goes_on(queue):
    path = queue.dir / "jobs.txt"
    path.write_text("sleep 0.3\n" * 8)
    process = queue.beside("run", "--count", 1, "--file", path)
    queue.wait_for(2, "processing")
    process.send_signal(signal.SIGINT)
    assert process.ends(10) == 130
    jobs = queue.json("status")["jobs"]
    assert jobs["processing"] == 0 and jobs["pending"] >= 4 and jobs["dead"] == 0 and sum(jobs.values()) == 8
    queue.cli("worker", "start", "--foreground", "--drain", "--count", 4)
    assert queue.json("status")["jobs"]["completed"] == 8
    assert all(job["attempts"] == 1 for job in queue.json("list"))


@posix_only("signals")
def test_the_jobs_of_a_killed_run_go_on_with_the_next_worker(queue):
    path = queue.dir / "jobs.txt"
    path.write_text("sleep 0.2\n" * 6)
    process = queue.beside("run", "--count", 1, "--file", path)
    queue.wait_for(2, "processing")
    for pid in queue.processes():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # its parent was first
            pass
    process.ends(10)
    queue.cli("worker", "start", "--foreground", "--drain", "--count", 4, timeout=30)
    assert queue.json("status")["jobs"]["completed"] == 6


def test_a_name_that_is_taken_stops_run_before_it_begins(queue):
    queue.enqueue("--name", "taken", "exit 0")
    done = queue.cli("run", "--file", "-", stdin='exit 0\n{"command": "exit 0", "id": "taken"}', check=False)
    assert done.returncode == 2 and "line 2" in done.stderr
    assert len(queue.json("list")) == 1


# ---- bounds of a queue, and what became of each line -------------------------------------------------

def test_a_run_waits_for_a_paused_queue_and_says_so(queue):
    queue.cli("queue", "pause", "default")
    process = queue.beside("run", "echo ran")
    wait_until(lambda: "queue default is paused" in process.text(), message="why nothing runs")
    assert queue.job(1).state == "pending" and process.poll() is None
    queue.cli("queue", "resume", "default")
    assert process.ends() == 0 and process.text().count("paused") == 1


def test_two_runs_at_once_keep_to_the_limit_of_their_queue_between_them(queue):
    queue.cli("queue", "limit", "default", 1)
    lines = "\n".join([json.dumps({"command": queue.sleeper(0.2)})] * 4)
    for name in ("a", "b"):
        (queue.dir / name).write_text(lines)
    processes = [queue.beside("run", "--count", 3, "--file", queue.dir / name) for name in ("a", "b")]
    assert [process.ends(40) for process in processes] == [0, 0]
    spans = queue.sql("SELECT started_at, finished_at FROM history WHERE attempt IS NOT NULL ORDER BY started_at")
    assert len(spans) == 8 and all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))


def test_a_run_starts_its_jobs_at_the_rate_of_their_queue(queue):
    queue.cli("queue", "rate", "default", "2/s")
    done = queue.cli("run", "--count", 4, "--file", "-", stdin="exit 0\n" * 4)
    starts = [at for at, in queue.sql("SELECT started_at FROM job ORDER BY started_at")]
    assert done.returncode == 0 and all(later - earlier >= 0.499 for earlier, later in zip(starts, starts[1:]))


@posix_only("signals")
def test_a_run_that_waits_for_its_queue_ends_at_an_interrupt_and_leaves_the_jobs(queue):
    queue.cli("queue", "limit", "default", 0)
    process = queue.beside("run", "exit 0")
    wait_until(lambda: "limit of queue default" in process.text(), message="why nothing runs")
    process.send_signal(signal.SIGINT)
    assert process.ends() == 130 and "1 left in the queue" in process.text()


def test_a_run_of_duplicates_tells_how_those_stand_and_does_not_succeed_while_they_are_unfinished(queue):
    number = queue.enqueue("--unique", "u", "--hold", "exit 0")
    line = json.dumps({"command": "exit 0", "unique": "u"})
    done = queue.cli("run", "--file", "-", stdin="exit 0\n%s\n" % line, check=False)
    assert done.returncode == 1
    assert "line 2: job %d already has this unique key and is pending" % number in done.stderr
    assert "1 of 2 completed" in done.stderr and "1 there already (1 pending)" in done.stderr


def test_a_run_whose_duplicates_have_all_completed_succeeds(queue):
    assert "1 of 1 completed" in queue.cli("run", json.dumps({"command": "exit 0", "unique": "u"})).stderr
    line = json.dumps({"command": "exit 0", "unique": "u", "for": "1h"})
    assert "0 of 2 completed" in queue.cli("run", "--file", "-", stdin=(line + "\n") * 2).stderr
    assert queue.json("status")["jobs"]["completed"] == 1


@pytest.mark.parametrize("how, told", [({"max_retries": 0}, "dead"), ({"ttl": "1ms", "delay": 9}, "cancelled")])
def test_a_line_that_doubles_another_of_its_file_shares_its_fate(queue, how, told):
    line = json.dumps(dict(how, command="exit 3", unique="u"))
    done = queue.cli("run", "--file", "-", stdin=(line + "\n") * 2, check=False)
    assert done.returncode == 1 and "0 of 2 completed" in done.stderr and "1 there already (1 %s)" % told in done.stderr
    assert ("1 failed" if told == "dead" else "1 cancelled") in done.stderr


def test_a_run_tells_of_lines_whose_jobs_were_removed_before_the_end(queue):
    waits = queue.script("import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)")
    (queue.dir / "jobs").write_text("exit 0\n%s\n" % json.dumps({"command": waits}))
    process = queue.beside("run", "--count", 1, "--file", queue.dir / "jobs")
    queue.wait_for(2, "processing")
    queue.cli("rm", 1)
    (queue.dir / "go").write_text("")
    assert process.ends() == 1 and "1 of 2 completed" in process.text() and "1 removed" in process.text()


def test_a_junit_report_has_a_case_for_each_line_of_the_input(queue):
    queue.enqueue("--unique", "u", "--hold", "exit 0")
    report = queue.dir / "report.xml"
    queue.cli("run", "--junit", report, "--file", "-", stdin="exit 0\n" + json.dumps({"command": "exit 0", "unique": "u"}), check=False)
    suite = ElementTree.parse(str(report)).getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")


def test_a_file_of_duplicates_is_enqueued_with_a_word_about_them(queue):
    line = json.dumps({"command": "exit 0", "unique": "u"})
    done = queue.cli("enqueue", "--file", "-", stdin=(line + "\n") * 3)
    assert done.stdout.split() == ["1"] * 3 and done.stderr == "2 jobs with a unique key that an earlier job has: not stored again\n"


# ---- JUnit -----------------------------------------------------------------------------------------

def test_junit_tells_ci_what_happened(queue):
    report = queue.dir / "report.xml"
    odd = "import sys; sys.stdout.buffer.write(b'<&>\\x00\\x1b[31m\\xff ]]> end\\n'); sys.exit(5)"
    lines = [json.dumps({"command": "exit 0", "name": "good"}),
             json.dumps({"command": queue.script(odd), "name": "bad <&> one", "max_retries": 0})]
    done = queue.cli("run", "--junit", report, "--file", "-", stdin="\n".join(lines), check=False)
    assert done.returncode == 1
    root = ElementTree.parse(str(report)).getroot()
    suite = root if root.tag == "testsuite" else root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "0")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert len(cases) == 2
    assert cases["good"].find("failure") is None and float(cases["good"].get("time")) >= 0
    failure = cases["bad <&> one"].find("failure")
    assert "exit 5" in failure.get("message")
    assert "end" in "".join(cases["bad <&> one"].itertext())


@posix_only("a line for sh")
def test_junit_tells_skipped_jobs_flaky_passes_and_the_output_of_a_pass(queue):
    report = queue.dir / "report.xml"
    flaky = 'test -e once && echo passed || { touch once; echo "not yet"; exit 3; }'
    lines = [json.dumps({"command": "exit 7", "name": "parent"}), json.dumps({"command": "exit 0", "name": "never", "after": "parent"}),
             json.dumps({"command": flaky, "name": "flaky", "max_retries": 1, "backoff_base": 0}),
             json.dumps({"command": "echo " + "x" * 50000, "name": "long"})]
    queue.cli("run", "--count", "1", "--junit", report, "--file", "-", stdin="\n".join(lines), check=False)
    suite = ElementTree.parse(str(report)).getroot()[0]
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    assert cases["never"].find("skipped").get("message") == "its parent, job 1, died" and cases["never"].find("failure") is None
    assert cases["parent"].find("failure").get("message") == "exit 7"
    [once] = cases["flaky"].findall("flakyFailure")
    assert once.get("message") == "exit 3" and once.text == "not yet" and cases["flaky"].find("system-out").text == "passed"
    assert 10000 < len(cases["long"].find("system-out").text) < 20000


def test_junit_to_a_place_that_cannot_be_written_is_refused_before_the_work(queue):
    done = queue.cli("run", "--junit", queue.dir / "no" / "report.xml", "exit 0", check=False)
    assert done.returncode == 2 and done.stderr.startswith("queuectl: error: ") and done.stderr.count("\n") == 1
    assert queue.json("list") == []


# ---- real loads ------------------------------------------------------------------------------------

def sources(count):
    """Files of the Python standard library, the same ones in the same order every time."""
    files = sorted(path for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")
                   if path.stat().st_size and "site-packages" not in path.parts)
    assert len(files) >= 1000
    return (files * (count // len(files) + 1))[:count]


class Load:
    """Commands that each gzip or checksum one file into `out`, and the check of what came of them."""

    def __init__(self, queue, count, failing=0):
        self.out = queue.dir / "out put"
        self.out.mkdir()
        self.overlaps = queue.dir / "overlaps"
        self.runs = queue.dir / "runs"
        self.jobs = []  # (source, target, whether it is a gzip)
        self.lines = []
        for number, source in enumerate(sources(count)):
            target = self.out / ("%d.%s" % (number, "gz" if number % 2 else "sha256"))
            command = ("gzip -nc < {s} > {t}" if number % 2 else "sha256sum < {s} > {t}").format(
                s=shlex.quote(str(source)), t=shlex.quote(str(target)))
            # One flock per job: an attempt that finds it held overlaps another one.
            script = "flock -n 9 || { echo %d >> %s; exit 99; }; echo %d >> %s; " % (
                number, shlex.quote(str(self.overlaps)), number, shlex.quote(str(self.runs)))
            if failing and number % failing == 0:
                script += '[ "$QUEUECTL_ATTEMPT" -gt 2 ] || exit 1; '
            lock = "9> %s" % shlex.quote("%s.lock" % target)
            self.jobs.append((source, target, number % 2))
            self.lines.append("{ %s%s; } %s" % (script, command, lock))
        self.file = queue.dir / "load.txt"
        self.file.write_text("\n".join(self.lines) + "\n")

    def check(self):
        assert not self.overlaps.exists(), "run twice at once: " + self.overlaps.read_text()
        for source, target, zipped in self.jobs:
            data = source.read_bytes()
            if zipped:
                assert gzip.decompress(target.read_bytes()) == data, target
            else:
                assert target.read_text().split()[0] == hashlib.sha256(data).hexdigest(), target

    def times_run(self):
        numbers = self.runs.read_text().split()
        return [numbers.count(str(number)) for number in range(len(self.jobs))] if len(numbers) < 5000 else None


needs_flock = pytest.mark.skipif(not WINDOWS and not shutil.which("flock"), reason="needs util-linux's flock")


@pytest.mark.slow
@posix_only("gzip, sha256sum and sh")
@needs_flock
def test_a_thousand_real_commands_give_what_they_give_without_the_queue(queue):
    load = Load(queue, 1000)
    done = queue.cli("run", "--count", 4, "--file", load.file, timeout=110)
    assert done.returncode == 0
    load.check()
    assert load.times_run() == [1] * 1000
    assert queue.json("status")["jobs"]["completed"] == 1000
    assert queue.sql("SELECT count(*), count(DISTINCT job) FROM history") == [(1000, 1000)]


@posix_only("gzip, sha256sum and sh")
@needs_flock
@pytest.mark.slow
def test_a_real_load_in_which_one_in_ten_fails_twice(queue):
    load = Load(queue, 1500, failing=10)
    queue.cli("config", "set", "backoff_base", "0.5")
    queue.cli("run", "--max-retries", 3, "--count", 4, "--file", load.file, timeout=110)
    load.check()
    assert load.times_run() == [3 if number % 10 == 0 else 1 for number in range(1500)]
    assert queue.json("status")["jobs"]["completed"] == 1500


@posix_only("gzip, sha256sum and sh")
@needs_flock
@pytest.mark.slow
def test_a_real_load_while_the_workers_are_stopped_and_started(queue):
    load = Load(queue, 3000, failing=10)
    queue.cli("config", "set", "backoff_base", "0.5")
    queue.cli("enqueue", "--file", load.file)
    for turn, options in enumerate(([], ["--now"], [], ["--now"], [])):
        queue.start(4)
        wait_until(lambda: queue.json("status")["jobs"]["completed"] > 400 * (turn + 1), 60, "some are done", 0.1)
        queue.stop(*options)
        assert queue.json("status")["jobs"]["processing"] == 0
    queue.cli("worker", "start", "--foreground", "--drain", "--count", 4, timeout=110)
    load.check()
    assert queue.json("status")["jobs"]["completed"] == 3000
    released = queue.sql("SELECT count(*) FROM history WHERE outcome='released'")[0][0]
    runs = sum(1 for _ in load.runs.open())
    # A released attempt may have been ended before its first echo, so it counts once or not at all.
    assert 3000 + 600 <= runs <= 3000 + 600 + released
    assert {job.attempts for job in map(queue.job, range(2, 100, 10))} <= {1}


@posix_only("gzip, sha256sum and sh")
@needs_flock
@pytest.mark.slow
def test_a_real_load_while_workers_are_killed(queue):
    load = Load(queue, 2000)
    queue.cli("config", "set", "max_crashes", "50")
    queue.cli("enqueue", "--file", load.file)
    queue.start(4)
    for turn in range(10):
        wait_until(lambda: queue.json("status")["jobs"]["completed"] > 150 * turn, 60, "some are done", 0.05)
        victim = queue.json("worker", "list")[turn % 4]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: (lambda pids: len(pids) == 4 and victim not in pids)(
            [worker["pid"] for worker in queue.json("worker", "list")]), 10, "the worker is replaced", 0.05)
    wait_until(lambda: queue.json("status")["jobs"]["completed"] == 2000, 90, "all are done", 0.2)
    load.check()
    crashed = queue.sql("SELECT count(*) FROM history WHERE outcome='crashed'")[0][0]
    assert crashed <= 10
    assert queue.sql("SELECT count(*) FROM job WHERE crashes>0")[0][0] <= crashed


def test_the_summary_of_no_job_has_the_fields_of_any_other(queue):
    some, none = (json.loads(queue.cli("run", "--json", *words, stdin="").stdout) for words in (["exit 0"], ["--file", "-"]))
    assert set(none) == set(some) and none["total"] == none["dead"] == none["status"] == 0 and none["ok"]
