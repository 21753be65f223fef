"""logs: the output of jobs, whole, followed, or its last lines."""
from __future__ import annotations

import os
import re

import pytest
from conftest import posix_only, wait_until
from jobs import call, work_off


def output(text):
    """What the jobs printed, without the lines in which `logs -f` says how attempts and jobs ended."""
    return re.sub(r"(?m)^(\x1b\[\d*m)?-- job .* --(\x1b\[\d*m)?\n", "", text)


def test_logs_f_follows_a_job_across_its_retries(queue):
    code = ("import os, sys, time; n = os.environ['QUEUECTL_ATTEMPT']; print('begin', n, flush=True); time.sleep(0.3); "
            "print('end', n); sys.exit(n != '3')")
    job = queue.enqueue("--backoff-base", 0.3, *queue.script(code))
    follower = queue.beside("logs", "-f", job)
    queue.start(1)
    assert follower.ends() == 0
    assert output(follower.text()) == "begin 1\nend 1\nbegin 2\nend 2\nbegin 3\nend 3\n"
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
    assert output(follower.text()) == "98\n99\nmore\n"


def test_logs_of_several_jobs_have_prefixes_and_whole_lines(queue):
    code = ("import sys, time\nfor n in range(40):\n print('job', sys.argv[1], end=' ', flush=True); time.sleep(0.003); print('line', n)\n"
            "print('no end', sys.argv[1], end='')")
    ids = [queue.enqueue(*queue.script(code, n)) for n in range(3)]
    follower = queue.beside("logs", "-f", "%d-%d" % (ids[0], ids[-1]))
    queue.start(3)
    assert follower.ends() == 0
    for text in (follower.text(), queue.out("logs", *ids) + "\n"):
        lines = [line.partition(" | ") for line in output(text).splitlines()]
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


@pytest.mark.broad
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
    assert shown.startswith("0 000000x") and "the very end\n" in shown[-60:]  # then how the job ended
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
    assert (status, output(text)) == (0, "caf\u00e9 \u65e5\n")


def test_logs_pass_bytes_on_unchanged_into_a_pipe_and_harmless_to_a_terminal(queue):
    work_off(queue, {"command": queue.script("import os; os.write(1, b'\\x1b]0;title\\x07\\x1b[2J\\xff\\x1b[31mred\\x1b[0m\\r\\n')")})
    raw = queue.cli("logs", 1, binary=True).stdout
    assert raw == b"\x1b]0;title\x07\x1b[2J\xff\x1b[31mred\x1b[0m\r\n"
    if os.name == "posix":
        text = queue.terminal("logs", 1)[1]
        assert "\x1b[31mred\x1b[0m" in text and "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text
