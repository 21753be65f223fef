"""run: what it prints of its jobs, what it keeps, when it stops, and how it is continued."""
from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal

import pytest
from conftest import ROOT, linux_only, posix_only, wait_until
from screen import screens  # noqa: F401 (a fixture)

pytestmark = pytest.mark.core


def gates(queue, *texts):
    """Jobs that each print a text when a file of that name is there."""
    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\nprint('out', sys.argv[1])"
    return [*queue.script(code), "{}", ":::", *texts]


# ---- what is printed ---------------------------------------------------------------------------------

def test_a_run_prints_what_its_jobs_print_when_each_ends(queue):
    process = queue.beside("run", "--count", 2, *gates(queue, "a", "b"))
    for name in "ba":
        (queue.dir / name).write_text("")
        wait_until(lambda: "out %s\n" % name in process.text(), message="the output of " + name)
    assert process.ends() == 0
    assert [line for line in process.text().splitlines() if line.startswith("out")] == ["out b", "out a"]


def test_output_in_the_order_of_the_input(queue):
    process = queue.beside("run", "--count", 2, "-k", *gates(queue, "a", "b"))
    (queue.dir / "b").write_text("")
    queue.wait_for(2, "completed")
    (queue.dir / "a").write_text("")
    assert process.ends() == 0
    assert [line for line in process.text().splitlines() if line.startswith("out")] == ["out a", "out b"]


def test_live_output_comes_in_whole_lines_with_a_tag(queue):
    code = ("import os, sys, time\nprint('begin', flush=True)\nsys.stdout.write('half ')\nsys.stdout.flush()\n"
            "while not os.path.exists('go'): time.sleep(0.02)\nprint('whole')")
    process = queue.beside("run", "--count", 2, "--output", "live", "--tag", *queue.script(code), ":::", "a", "b")
    wait_until(lambda: "1 | begin\n" in process.text() and "2 | begin\n" in process.text(), message="live output")
    assert "half" not in process.text()
    (queue.dir / "go").write_text("")
    assert process.ends() == 0 and "1 | half whole\n" in process.text() and "2 | half whole\n" in process.text()


def test_one_job_alone_streams_its_bytes(queue):
    code = ("import os, sys, time\nsys.stdout.buffer.write(b'no line \\xff')\nsys.stdout.flush()\n"
            "while not os.path.exists('go'): time.sleep(0.02)")
    process = queue.beside("run", *queue.script(code))
    wait_until(lambda: process.path.read_bytes() == b"no line \xff", message="what it has printed so far")
    (queue.dir / "go").write_text("")
    assert process.ends() == 0
    done = queue.cli("run", *queue.script("print('out'); raise SystemExit(3)"), check=False)
    assert done.returncode == 1 and done.stdout == "out\n" and "exit 3" in done.stderr


def test_the_tries_of_one_job_alone_are_all_printed(queue):
    code = "import os, sys; print(os.environ['QUEUECTL_ATTEMPT']); sys.exit(os.environ['QUEUECTL_ATTEMPT'] < '3')"
    done = queue.cli("run", "--max-retries", 5, "--backoff-base", 0, *queue.script(code))
    assert done.stdout.split() == ["1", "2", "3"]
    assert "1 job needed more than one try: 1 (3)\n" in done.stderr


@posix_only("sh")
@pytest.mark.parametrize("options, values", [([], []), (["--output", "live"], [":::", "a", "b"])], ids=["alone", "live"])
def test_jobs_that_write_on_and_on_end_when_their_reader_has_gone(queue, options, values):
    """As `yes | head -1` does."""
    words = queue.command("run", *options, *queue.script("while True: print('y' * 99)"), *values)
    done = queue.run(["sh", "-c", shlex.join(words) + " | head -1"])
    assert done.stdout == "y" * 99 + "\n" and "nothing reads the output any more: the rest is cancelled" in done.stderr
    assert {job["state"] for job in queue.json("list")} == {"cancelled"}


@posix_only("sh")
def test_a_job_does_its_work_though_the_reader_of_its_last_lines_has_gone(queue):
    code = ("import os, sys, time\nprint('a', flush=True)\nwhile not os.path.exists('gone'): time.sleep(0.01)\n"
            "for _ in range(100): print('b', flush=True)\ntime.sleep(0.5)\nopen('done', 'w').close()")
    line = shlex.join(queue.command("run", *queue.script(code))) + " | { head -1; exec <&-; touch gone; }"
    assert queue.run(["sh", "-c", line]).stdout == "a\n"
    assert queue.job(1).state == "completed" and (queue.dir / "done").exists()


def test_no_output_on_demand(queue):
    done = queue.cli("run", "--output", "none", "echo {}", ":::", "a", "b")
    assert done.stdout == "" and "2 of 2 completed" in done.stderr


@posix_only("a line for sh")
def test_output_is_folded_in_the_logs_of_ci_servers(queue):
    done = queue.cli("run", "--count", 1, "--group", "github", "echo {}; exit {#}", ":::", "a", check=False)
    assert done.stdout == "::group::✘ job 1, exit 1: echo a; exit 1\na\n::endgroup::\n"
    done = queue.cli("run", "--count", 1, "--group", "gitlab", "echo", ":::", "a", binary=True)
    text = done.stdout.decode().replace("\r\n", "\n")
    assert re.match("\x1b\\[0Ksection_start:\\d+:job_2\\[collapsed=true\\]\r\x1b\\[0K✔ job 2: echo a\na\n"
                    "\x1b\\[0Ksection_end:\\d+:job_2\r\x1b\\[0K\n$", text), text


@posix_only("pseudo-terminals")
def test_on_a_terminal_the_bar_stays_below_what_jobs_print(queue):
    status, text = queue.terminal("run", "--count", 1, "printf out-%s {}; sleep 0.3", ":::", "a", "b", "c")
    assert status == 0
    shown = [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]
    assert shown[:3] == ["out-a", "out-b", "out-c"] and "3 of 3 completed" in shown[3], text
    assert "/3" in text


def run_in(screens, queue, *args, **options):
    """A screen in which a run goes on; it stays after the end, since tmux scrolls when a window's program has ended."""
    return screens(" ".join(map(shlex.quote, queue.command("run", *args))) + "; exec sleep 60", **options)


@pytest.mark.broad
@posix_only("tmux")
def test_a_run_in_tmux_keeps_its_bar_below_the_output(queue, screens):  # noqa: F811
    screen = run_in(screens, queue, "-j", 2, *gates(queue, "a", "b", "wide" * 20), columns=60, lines=12)
    screen.until(r"^\[-+\] 0/3  2 running")
    (queue.dir / "a").touch()
    lines = screen.until(r"^\[#+-+\] 1/3  2 running").split("\n")
    assert lines[0] == "out a" and lines[1].startswith("[#"), lines
    screen.resize(100, 12)
    screen.until(r"^\[#+-+\] 1/3  2 running")
    (queue.dir / ("wide" * 20)).touch()
    screen.until("^out wide")
    (queue.dir / "b").touch()
    screen.until("3 of 3 completed")
    shown = screen.steady()
    assert "running" not in shown and "[" not in shown, shown
    assert re.sub(r"completed in .*", "", shown.replace("\n", "")).strip() == "out a" + "out " + "wide" * 20 + "out b✔ 3 of 3"


@pytest.mark.broad
@posix_only("tmux")
def test_ctrl_c_in_tmux_says_what_it_does_and_how_to_go_on(queue, screens):  # noqa: F811
    screen = run_in(screens, queue, "-j", 2, *gates(queue, "a", "b", "c", "d"), columns=110)
    screen.until(r"^\[-+\] 0/4  2 running")
    screen.keys("C-c")
    screen.until("^finishing 2 jobs; press again to end them")
    (queue.dir / "a").touch()
    screen.until("^out a")
    screen.keys("C-c")
    text = screen.until("1 of 4 completed in .*, 3 left in the queue")
    text = screen.until("drops them")
    told = re.sub(r"\s", "", text)  # the path of the queue may fill the line
    assert re.search(r"run--resume1`goesonwiththem,`.*cancel--batch1`dropsthem", told), text
    for name in "bcd":
        (queue.dir / name).touch()
    again = run_in(screens, queue, "--resume", columns=110)
    again.until("✔ 4 of 4 completed")
    assert sorted(re.findall("^out .", again.text(), re.M)) == ["out b", "out c", "out d"], again.text()


# ---- what is kept ------------------------------------------------------------------------------------

@posix_only("a line for sh, and a value of two lines")
def test_results_and_a_job_log_are_written(queue):
    queue.cli("run", "--count", 1, "--results", "out", "--joblog", "log", "echo {}; exit {#}", ":::", "a", "b\nc", check=False)
    assert [(queue.dir / "out" / name).read_text() for name in ("1.log", "2.log")] == ["a\n", "b\nc\n"]
    with open(queue.dir / "out" / "results.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["number"], row["job"], row["state"], row["exit_code"], row["tries"]) for row in rows] == [
        ("1", "1", "dead", "1", "1"), ("2", "2", "dead", "2", "1")]
    head, *lines = (queue.dir / "log").read_text().split("\n")[:-1]
    assert head.split("\t") == ["Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command"]
    fields = [line.split("\t") for line in lines]
    assert [(row[0], row[1], row[5], row[6], row[7]) for row in fields] == [("1", ":", "2", "1", "0"), ("2", ":", "4", "2", "0")]
    assert fields[1][8] == "echo 'b\0c'; exit 2"


def test_a_summary_in_json_is_all_of_stdout(queue):
    done = queue.cli("run", "--json", "--max-retries", 1, "--backoff-base", 0, "exit {}", ":::", "0", "3", check=False)
    summary = json.loads(done.stdout)
    assert done.returncode == summary["status"] == 1
    assert {name: summary[name] for name in ("batch", "total", "completed", "dead", "cancelled", "left", "removed", "flaky", "ok")} == {
        "batch": 1, "total": 2, "completed": 1, "dead": 1, "cancelled": 0, "left": 0, "removed": 0, "flaky": [], "ok": False}
    assert json.loads(queue.cli("run", "--json", "echo", ":::").stdout)["total"] == 0


@pytest.mark.sampled(5)
@pytest.mark.parametrize("args", [["--json", "--output", "live"], ["--json", "-k"], ["-k", "--output", "live"], ["--tag", "--output", "none"],
                                  ["--group", "github", "--output", "live"], ["--group", "travis"], ["--output", "loud"],
                                  ["--fail-fast=later"], ["--results", "a file/x"], ["--joblog", "missing/x"], ["--resume", "--retry-failed"],
                                  ["--resume", "--priority", "3"], ["--resume"], ["--retry-failed", "9"]], ids=" ".join)
def test_options_that_cannot_be_are_refused(queue, args):
    (queue.dir / "a file").write_text("")
    done = queue.cli("run", *args, *([] if args[-1] in ("9", "--resume") else ["exit 0"]), check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert not queue.db.exists()


# ---- when it stops -----------------------------------------------------------------------------------

def test_fail_fast_cancels_the_rest_running_jobs_too(queue):
    (queue.dir / "jobs").write_text("\n".join([json.dumps({"command": queue.sleeper(600)}), "exit 3", "exit 0"]))
    done = queue.cli("run", "--fail-fast", "--count", 2, "--file", "jobs", check=False)
    assert done.returncode == 1 and "1 job failed: the rest is cancelled" in done.stderr
    assert queue.job(1).state == "cancelled" and queue.job(2).state == "dead"


@pytest.mark.parametrize("words", [["--fail-fast", "soon"], ["--fail-fast", "now"], ["--fail-fast"], ["--fail-fast=soon"]], ids=" ".join)
def test_the_word_after_fail_fast_may_be_its_value(queue, words):
    done = queue.cli("run", *words, "--count", 1, "exit {}", ":::", "3", "0", check=False)
    assert done.returncode == 1 and "1 cancelled" in done.stderr and queue.job(1).exit_code == 3


def test_fail_fast_soon_lets_running_jobs_end(queue):
    waits = gates(queue)[:-2]
    (queue.dir / "jobs").write_text("\n".join(json.dumps({"command": command}) for command in (
        [*waits, "go"], "exit 3", [*waits, "never"], [*waits, "never"])))
    process = queue.beside("run", "--fail-fast=soon", "--max-failures", 1, "--count", 1, "--file", "jobs")
    queue.wait_for(1, "processing")
    (queue.dir / "go").write_text("")
    queue.wait_for(2, "dead")
    wait_until(lambda: "the rest is cancelled" in process.text(), message="the end")
    (queue.dir / "never").write_text("")
    assert process.ends() == 1
    assert queue.job(1).state == "completed" and queue.job(4).state == "cancelled"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("args, started", [(["--fail-fast"], 1), (["--fail-fast=soon"], 1), (["--max-failures", 3], 3)])
def test_no_job_starts_after_the_failure_that_ends_a_run(queue, args, started):
    """They take a millisecond each: whoever looks only now and then is too late."""
    done = queue.cli("run", "--count", 1, *args, "exit 1 {}", ":::", *range(40), check=False)
    assert done.returncode == 1 and "%d of" % 0 in done.stderr
    assert queue.sql("SELECT count(*) FROM job WHERE attempt>0") == [(started,)]
    assert queue.sql("SELECT count(*) FROM job WHERE state='cancelled'") == [(40 - started,)]
    again = queue.cli("run", "--count", 1, "--retry-failed", *args, check=False)
    assert again.returncode == 1 and queue.sql("SELECT count(*) FROM job WHERE attempt>1") == [(started,)]


def test_a_run_ends_after_so_many_failures(queue):
    done = queue.cli("run", "--max-failures", 2, "--count", 1, "--file", "-", stdin="exit 1\nexit 1\n" + "%s\n" % json.dumps(
        {"command": queue.sleeper(600)}), check=False)
    assert done.returncode == 1 and "2 jobs failed" in done.stderr and queue.job(3).state == "cancelled"


def test_a_run_ends_when_its_time_is_up(queue):
    done = queue.cli("run", "--total-timeout", "0.5", *queue.sleeper(600), check=False)
    assert done.returncode == 124 and "the time of 500ms is up" in done.stderr and queue.job(1).state == "cancelled"


@pytest.mark.sampled(2)
@posix_only("signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_what_it_does_and_how_to_go_on(queue, number, status):
    process = queue.beside("run", "--count", 2, *gates(queue, "a", "b", "c"))
    queue.wait_for(1, "processing")
    queue.wait_for(2, "processing")
    process.send_signal(number)
    wait_until(lambda: "finishing 2 jobs; press again to end them" in process.text(), message="what the interrupt does")
    (queue.dir / "a").write_text("")
    queue.wait_for(1, "completed")
    process.send_signal(number)
    assert process.ends() == status
    text = process.text()
    assert "1 of 3 completed" in text and "2 left in the queue" in text
    assert "run --resume 1` goes on with them" in text and "cancel --batch 1` drops them" in text
    assert [queue.job(job).attempts for job in (1, 2, 3)] == [1, 0, 0]


# ---- how it is continued -----------------------------------------------------------------------------

@posix_only("signals")
def test_resume_goes_on_with_what_an_interrupted_run_has_left(queue):
    process = queue.beside("run", "--count", 1, *gates(queue, "a", "b"))
    queue.wait_for(1, "processing")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "press again" in process.text(), message="the first signal has come: two at once come in any order")
    process.send_signal(signal.SIGTERM)
    assert process.ends() == 143
    queue.cli("run", "exit 0")
    for name in "ab":
        (queue.dir / name).write_text("")
    done = queue.cli("run", "--count", 1, "--resume")
    assert done.stdout == "out a\nout b\n" and "2 of 2 completed" in done.stderr
    assert queue.cli("run", "--resume", "last").stderr == queue.cli("run", "--resume").stderr == "nothing to run\n"


@posix_only("signals")
def test_resume_goes_on_after_a_run_that_was_killed_and_not_beside_one_that_lives(queue):
    process = queue.beside("run", "--count", 1, *gates(queue, "a", "b"))
    queue.wait_for(1, "processing")
    done = queue.cli("run", "--resume", 1, check=False)
    assert done.returncode == 2 and "another `run`" in done.stderr and done.stderr.count("\n") == 1
    process.kill()
    process.ends()
    for name in "ab":
        (queue.dir / name).write_text("")
    done = queue.cli("run", "--resume", 1)
    assert "2 of 2 completed" in done.stderr and sorted(queue.sql("SELECT state FROM job")) == [("completed",)] * 2


def test_retry_failed_runs_again_what_did_not_complete(queue):
    code = "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))"
    (queue.dir / "a").write_text("")
    assert queue.cli("run", "--fail-fast", "--count", 1, *queue.script(code), ":::", "a", "b", "c", check=False).returncode == 1
    (queue.dir / "b").write_text("")
    (queue.dir / "c").write_text("")
    done = queue.cli("run", "--retry-failed", 1, "--json")
    assert json.loads(done.stdout)["completed"] == 3
    assert queue.cli("run", "--retry-failed").stderr == "nothing to run\n"
    assert [queue.job(job).attempt for job in (1, 2)] == [1, 2]


def test_resume_prints_the_job_that_another_worker_ends_while_the_batch_is_reserved(queue):
    (queue.dir / "jobs").write_text("".join(json.dumps({"command": [*gates(queue)[:-2], name]}) + "\n" for name in "ab"))
    queue.cli("enqueue", "--file", "jobs")
    queue.start(1)
    queue.wait_for(1, "processing")
    text = ("import sys, time; sys.path.insert(0, %r); import queuectl\nreserve = queuectl.Queues.reserve_batch\n"
            "def reserve_late(self, batch, supervisor):\n"
            "    reserved = reserve(self, batch, supervisor)\n"
            "    open('a', 'w').close(); open('b', 'w').close()\n"
            "    limit = time.monotonic() + 20\n"
            "    while self._store.look.row(1).state != 'completed' and time.monotonic() < limit: time.sleep(0.01)\n"
            "    return reserved\n"
            "queuectl.Queues.reserve_batch = reserve_late; sys.exit(queuectl.main())" % str(ROOT))
    done = queue.run([queue.program[0], "-c", text, "--db", str(queue.db), "run", "--count", "1", "--resume", "1"])
    assert sorted(done.stdout.splitlines()) == ["out a", "out b"] and "2 of 2 completed" in done.stderr


def test_a_refused_retry_of_the_failed_changes_nothing(queue):
    queue.cli("run", "exit 3", check=False)
    before = queue.sql("SELECT * FROM job"), queue.sql("SELECT * FROM history")
    done = queue.cli("run", "--retry-failed", 1, "--joblog", "missing/x", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert before == (queue.sql("SELECT * FROM job"), queue.sql("SELECT * FROM history"))


def test_a_retry_of_the_failed_beside_a_run_of_the_batch_changes_nothing(queue):
    (queue.dir / "jobs").write_text("exit 3\n" + json.dumps({"command": [*gates(queue)[:-2], "go"]}))
    process = queue.beside("run", "--count", 1, "--file", "jobs")
    queue.wait_for(1, "dead")
    queue.wait_for(2, "processing")
    done = queue.cli("run", "--retry-failed", 1, check=False)
    assert done.returncode == 2 and "another `run`" in done.stderr and done.stderr.count("\n") == 1
    assert queue.job(1).state == "dead"
    (queue.dir / "go").write_text("")
    assert process.ends() == 1


@posix_only("signals")
def test_resume_takes_the_job_that_another_worker_gives_back(queue):
    (queue.dir / "jobs").write_text(json.dumps({"command": [*gates(queue)[:-2], "a"]}))
    queue.cli("enqueue", "--file", "jobs")
    queue.start(1)
    queue.wait_for(1, "processing")
    process = queue.beside("run", "--count", 1, "--resume", 1)
    wait_until(lambda: queue.sql("SELECT 1 FROM job WHERE pool IS NOT NULL"), message="the job is reserved")
    queue.stop("--now")
    wait_until(lambda: queue.job(1).attempt == 2, message="the run has taken it")
    (queue.dir / "a").write_text("")
    assert process.ends() == 0 and "out a\n" in process.text()


@linux_only("/dev/full")
@pytest.mark.parametrize("option", ["--joblog", "--results"])
def test_a_disk_that_is_full_takes_nothing_from_the_jobs_and_is_told_at_the_end(queue, option):
    place = "/dev/full"
    if option == "--results":
        place = queue.dir / "results"
        place.mkdir()
        for name in ("results.tsv", "2.log"):
            (place / name).symlink_to("/dev/full")
    done = queue.cli("run", "-k", option, place, "echo {}", ":::", "one", "two", "three", check=False)
    assert done.returncode == 2 and done.stdout.split() == ["one", "two", "three"]
    assert "3 of 3 completed" in done.stderr and "trying again" not in done.stderr
    assert re.search("(?m)^queuectl: error: the jobs have ended, but .*%s.* can't be written" % os.path.basename(str(place)), done.stderr)


@posix_only("signals")
def test_the_advice_after_an_interrupted_run_names_the_queue(queue):
    run = queue.beside("run", "--count", "1", "sleep {}", ":::", "60", "61")
    queue.wait_for(1, "processing")
    run.send_signal(signal.SIGHUP)
    run.ends(40)
    advice = re.search(r"`(.+?) run --resume \d+` goes on", run.text()).group(1)
    assert shlex.split(advice)[-2:] == ["--db", str(queue.db)]
