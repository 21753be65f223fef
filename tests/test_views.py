"""What is shown in tables: list and stats, at any width, in a pipe, on a terminal, as JSON."""
from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys

import pytest
from conftest import posix_only, wait_until
from jobs import api, call, change, mixed, nine_jobs, work_off  # noqa: F401 (fixtures)
from screen import cells, screens  # noqa: F401 (a fixture)

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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


@pytest.mark.sampled(5)
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


@pytest.mark.broad
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
        def follows():  # it tells what happens after its start, and nothing tells us when that was
            queue.cli("cancel", queue.enqueue("exit 0"))
            return select.select([reader.stdout], [], [], 1)[0] and b'"cancel"' in os.read(reader.stdout.fileno(), 65536)
        wait_until(follows)
    reader.stdout.close()
    wait_until(lambda: reader.poll() is not None, 10, "the end of %s, whose reader has gone" % words)
    assert (reader.returncode, reader.stderr.read()) == (0, b"")
    reader.stderr.close()


def test_every_view_has_json_that_is_one_value(mixed):
    for words in (["list"], ["status"], ["show", 4], ["stats"], ["worker", "list"], ["queue", "list"], ["batch", "list"], ["batch", "show", 1],
                  ["cron", "list"], ["config", "list"], ["dlq", "list"], ["explain", 4], ["doctor"]):
        status, shown, told = call(mixed, *words, "--json")
        assert status == (2 if words == ["doctor"] else 0) and told == "", words
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
    assert 0 <= queue.json("stats")["queues"]["default"]["waited_p50"] < 90


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
    queue.cli("config", "set", "timeout", "9")
    status, shown, _ = call(queue, "stats")
    assert status == 0 and "0" in shown
    assert queue.json("stats")["queues"] == {}
