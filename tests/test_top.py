"""top, driven in a real terminal: what it shows, its keys, its sizes, and the terminal as it was afterwards."""
from __future__ import annotations

import os
import re
import shlex
import signal

import pytest
from conftest import posix_only, wait_until
from screen import cells, screens  # noqa: F401 (a fixture)

pytestmark = posix_only("tmux")

WAIT_FOR = "import os, sys, time\nprint('a line of the log', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)"


def api(queue):
    import queuectl
    return queuectl.Store(str(queue.db))


def change(queue, action):
    with api(queue) as store:
        return action(store)


@pytest.fixture
def top(queue, screens):  # noqa: F811
    """Opens top in a terminal of its own and waits for its first picture."""
    def open_top(columns=100, lines=30, env=None):
        screen = screens(queue.command("top"), columns, lines, env)
        screen.until("queuectl top")
        return screen
    return open_top


def marked(screen):
    """The id in the row that the keys act on."""
    found = re.search(r"^> *(\d+) ", screen.text(), re.M)
    return int(found.group(1)) if found else None


def is_marked(screen, job):
    screen.until(r"^> *%d " % job)


def settle(queue, *commands):
    """Jobs that have ended, each with a single attempt."""
    queue.cli("run", "--count", 1, "--max-retries", 0, "--file", "-", stdin="\n".join(commands), check=False)


# ---- what it shows ---------------------------------------------------------------------------------

def test_top_shows_queues_workers_with_their_jobs_counts_and_the_latest_failures(queue, top):
    settle(queue, "exit 0", "exit 7")
    go = queue.dir / "go"
    job = queue.enqueue("--queue", "mail", *queue.script(WAIT_FOR, go))
    change(queue, lambda store: store.enqueue_many(["echo waits"] * 3))
    queue.cli("queue", "limit", "mail", 2), queue.cli("queue", "pause", "default")
    queue.start(2)
    queue.wait_for(job, "processing")
    screen = top()
    text = screen.until(r"job %d for \d" % job)
    assert re.search(r"pending 3 +processing 1 +completed 1 +failed 0 +dead 1", text)
    assert re.search(r"^queue default +paused +3 waiting", text, re.M) and re.search(r"^queue mail +open +0 waiting, 1 running, limit 2", text, re.M)
    assert len(re.findall(r"^worker \d+ +(busy|idle)", text, re.M)) == 2
    failure = next(line for line in text.splitlines() if line.startswith("failed "))
    assert "exit 7" in failure and "ago" in failure and " 2 " in failure
    assert text.splitlines()[-1].endswith("q quit")
    elapsed = re.search(r"job %d for (\S+):" % job, text).group(1)
    screen.until(r"job %d for (?!%s)" % (job, re.escape(elapsed)))
    go.touch()
    screen.until(r"completed 2")


@pytest.mark.broad
def test_the_throughput_is_a_chart_that_moves(queue, top):
    queue.start(1)
    screen = top()
    for _ in range(2):
        queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 8)
        screen.until("ended/s +[1-9]")
        screen.until("ended/s +0 ")
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 8)
    text = screen.until("ended/s +[1-9]")
    chart = re.search(r"ended/s +\d+  (.*)", text).group(1)
    assert len(re.findall("[\u2581-\u2588]+", chart)) >= 3, text


@pytest.mark.slow
def test_keys_do_not_hurry_the_chart(queue, top):
    settle(queue, "exit 0")
    queue.start(1)
    screen = top()
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 20)
    change(queue, lambda store: store.queues.counts())
    screen.until("completed 21")
    screen.until("ended/s +[1-9]")
    for _ in range(10):
        screen.keys("j", "k")
    text = screen.until("ended/s +0 ")
    bars = re.findall("[\u2581-\u2588]", re.search(r"ended/s.*", text).group(0))
    assert 1 <= len(bars) <= 2, text


@pytest.mark.broad
def test_removed_jobs_do_not_break_the_chart(queue, top):
    settle(queue, *["exit 0"] * 5)
    screen = top()
    screen.until("ended/s +0")
    queue.cli("rm", "--all")
    screen.until("completed 0")
    text = screen.until("ended/s +0")
    assert not re.search("[\u2581-\u2588]", text)


def test_in_a_pipe_top_is_one_picture_without_escapes(queue):
    settle(queue, "exit 0", "exit 7")
    text = queue.cli("top").stdout
    assert "queuectl top" in text and "exit 7" in text and "\x1b" not in text
    assert queue.cli("top", "--once").stdout.splitlines()[1:] and len(text.splitlines()) <= 24


def test_colours_are_left_out_with_no_color(queue, top):
    settle(queue, "exit 0", "exit 7")
    assert "\x1b[3" in top().coloured()
    plain = top(env={"NO_COLOR": "1"})
    assert "\x1b[3" not in plain.coloured() and marked(plain) == 2


# ---- keys ------------------------------------------------------------------------------------------

def test_arrows_and_letters_move_the_mark_and_a_held_key_loses_nothing(queue, top):
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 12))
    screen = top()
    is_marked(screen, 12)
    screen.keys("Down", "Down", "Down", "Down")  # all at once, as a held key comes
    is_marked(screen, 8)
    screen.keys("j", "j", "k", "Up", "Down")
    is_marked(screen, 7)
    screen.keys(*["Down"] * 20)
    is_marked(screen, 1)
    screen.keys(*["Up"] * 30)
    is_marked(screen, 12)


@pytest.mark.broad
def test_every_job_can_be_reached_however_many_rows_there_are(queue, top):
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 80))
    screen = top(lines=20)
    screen.keys(*["Down"] * 79)
    is_marked(screen, 1)
    assert " 2 pending" in screen.text() and " 80 pending" not in screen.text()
    screen.keys("PageUp")
    wait_until(lambda: (marked(screen) or 0) > 5)
    screen.keys(*["PageUp"] * 20)
    is_marked(screen, 80)


@pytest.mark.broad
def test_the_mark_stays_on_its_job_when_others_arrive_and_go(queue, top):
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 5))
    screen = top()
    screen.keys("Down", "Down")
    is_marked(screen, 3)
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 60))
    screen.until(" 65 pending|pending 65")
    is_marked(screen, 3)
    screen.keys("c", "y")
    wait_until(lambda: queue.job(3).state == "cancelled")
    assert queue.sql("SELECT id FROM job WHERE state='cancelled'") == [(3,)]
    queue.cli("cancel", 5), queue.cli("rm", 5)
    screen.until("pending 63")
    is_marked(screen, 3)


@pytest.mark.broad
def test_f_filters_by_state(queue, top):
    settle(queue, "exit 0", "exit 7")
    queue.enqueue("echo waits")
    screen = top()
    seen = set()
    for _ in range(8):
        screen.keys("f")
        head = screen.steady(0.15).split("COMMAND")[1]
        word = re.match(r" +\(([^)]*)\)", head).group(1)
        rows = {int(number): state for number, state in re.findall(r"^[> ] +(\d+) (\w+)", head, re.M)}
        for job, state in {1: "completed", 2: "dead", 3: "pending"}.items():
            assert (job in rows) == (word == "all" or state in word), (word, rows)
        seen.add(word)
    assert {"all", "dead", "processing"} <= seen


@pytest.mark.broad
def test_enter_shows_the_jobs_log_and_any_key_goes_back(queue, top):
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script(WAIT_FOR + "\nprint('the last line \\x1b[2J \\x07')", go))
    queue.start(1)
    queue.wait_for(job, "processing")
    screen = top()
    screen.keys("Enter")
    text = screen.until("^a line of the log")
    assert "log of job %d" % job in text and "COMMAND" not in text
    go.touch()
    screen.until(r"the last line")  # it goes on while one looks at it
    assert "log of job" in screen.text()
    screen.keys("Down")
    screen.until("COMMAND")


def test_c_cancels_the_marked_job_once_one_has_said_yes(queue, top):
    job = queue.enqueue(*queue.script(WAIT_FOR, queue.dir / "never"))
    waiting = queue.enqueue("exit 0")
    queue.start(1)
    queue.wait_for(job, "processing")
    screen = top()
    is_marked(screen, job)  # what runs comes first
    screen.keys("Down")
    is_marked(screen, waiting)
    screen.keys("c")
    screen.until(r"cancel job %d\?" % waiting)
    screen.keys("n")
    screen.until(r"cancel job", gone=True)
    assert queue.job(waiting).state == "pending"
    screen.keys("Up")
    is_marked(screen, job)
    screen.keys("c", "y")
    queue.wait_for(job, "cancelled")
    queue.wait_for(waiting, "completed")
    screen.until("cancelled 1")


def test_c_cancels_the_job_of_a_dead_worker(queue, top):
    job = queue.enqueue(*queue.sleeper(600))
    queue.start(1)
    queue.wait_for(job, "processing")
    for (pid,) in queue.sql("SELECT pid FROM supervisor UNION ALL SELECT pid FROM worker"):
        os.kill(pid, signal.SIGKILL)
    screen = top()
    is_marked(screen, job)
    screen.keys("c", "y")
    queue.wait_for(job, "cancelled")


def test_what_runs_comes_first_however_many_jobs_came_after_it(queue):
    job = queue.enqueue(*queue.script(WAIT_FOR, queue.dir / "go"))
    queue.start(1)
    queue.wait_for(job, "processing")
    change(queue, lambda store: store.enqueue_many(["echo later"] * 1001))
    rows = queue.out("top").split("COMMAND")[1].splitlines()
    assert "processing" in rows[1] and rows[1].split()[0] == str(job) and "later" in rows[2]
    (queue.dir / "go").write_text("")


@pytest.mark.broad
def test_r_runs_a_finished_job_again(queue, top):
    settle(queue, "exit 7")
    screen = top()
    screen.keys("r")
    wait_until(lambda: queue.job(1).state == "pending")
    screen.until("pending 1 ")
    queue.start(1)
    screen.until("dead 1 ")
    assert queue.job(1).attempt == 2


def test_p_pauses_the_queue_of_the_marked_job_and_lets_it_go_on(queue, top):
    queue.enqueue("--queue", "mail", "exit 0")
    screen = top()
    screen.keys("p")
    screen.until("^queue mail +paused")
    assert queue.sql("SELECT name FROM queue WHERE paused") == [("mail",)]
    screen.keys("p")
    screen.until("^queue mail +open")
    assert queue.sql("SELECT name FROM queue WHERE paused") == []


def test_e_says_why_a_job_waits(queue, top):
    job = queue.enqueue("--hold", "exit 0")
    screen = top()
    screen.keys("e")
    screen.until("job %d: held" % job)


@pytest.mark.slow
def test_keys_without_a_job_to_act_on_do_no_harm(queue, top):
    queue.cli("queue", "pause", "other")
    screen = top()
    screen.keys("c", "y", "r", "e", "Enter", "Down", "Up", "f", "x", "\u00e9", "F5", "Left", "M-x", "PageDown", "Home", "End", "Tab")
    screen.until("COMMAND")
    assert screen.fact("pane_dead") == "0"
    queue.enqueue("echo still alive")
    for _ in range(6):  # whatever filter is on now
        if re.search("echo still alive", screen.steady(0.15)):
            break
        screen.keys("f")
    screen.until("echo still alive")


# ---- sizes -----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_every_size_of_the_window_is_filled_and_nothing_wraps(queue, top):
    settle(queue, "exit 7")
    change(queue, lambda store: store.enqueue_many(
        [{"command": "echo \u65e5\u672c\u8a9e\u306e\u9577\u3044\u30b3\u30de\u30f3\u30c9 " * 8, "queue": "q%d" % n} for n in range(3)]
        + ["echo %d %s" % (n, "long " * 60) for n in range(60)]))
    queue.cli("queue", "pause", "--all")
    queue.start(3)
    job = max(number for number, in queue.sql("SELECT id FROM job"))
    screen = top()
    for columns, lines in ((60, 12), (140, 40), (40, 10), (25, 24), (200, 50), (80, 24)):
        screen.resize(columns, lines)
        screen.until(r"\Aqueuectl top[^\n]*(\n[^\n]*){%d}\n[^\n]*move[^\n]*\n?\Z" % (lines - 2), 5)
        text = screen.steady(0.1)
        rows = text.splitlines()
        assert max(map(cells, rows)) <= columns
        assert sum(row.startswith("queuectl top") for row in rows) == 1 and rows[0].startswith("queuectl top"), text
        assert re.search(r"^> *%d pending" % job, text, re.M), "the marked job is not in sight at %dx%d:\n%s" % (columns, lines, text)
        assert max(map(cells, rows)) > columns * 0.8, "the width is not used"


@pytest.mark.broad
def test_a_window_of_next_to_no_size_is_survived(queue, top):
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 9))
    screen = top()
    for columns, lines in ((10, 3), (1, 1), (5, 60), (300, 2)):
        screen.resize(columns, lines)
        screen.keys("j", "k", "e")
    screen.resize(100, 30)
    screen.until("^> +9 pending")
    screen.until("move .* quit")


def test_control_characters_of_a_command_do_not_reach_the_terminal(queue, top):
    queue.enqueue("echo \x1b[2J\x1b]0;owned\x07 \x9b31m end")
    screen = top()
    text = screen.until(r"echo .*end")
    assert text.startswith("queuectl top") and "x1b" in text
    assert screen.fact("pane_title") != "owned"


# ---- the terminal as it was ------------------------------------------------------------------------

def quit_by_key(key):
    return lambda queue, screen: screen.keys(key)


def quit_by_signal(name):
    def send(queue, screen):
        for pid, words in queue.processes().items():
            if words.rstrip().endswith(" top"):
                os.kill(pid, getattr(signal, name))
    return send


@pytest.mark.sampled(4)
@pytest.mark.parametrize("leave", [quit_by_key("q"), quit_by_key("Escape"), quit_by_key("C-c"), quit_by_signal("SIGTERM"),
                                   quit_by_signal("SIGHUP"), quit_by_signal("SIGINT")],
                         ids=["q", "Escape", "Ctrl-C", "TERM", "HUP", "INT"])
def test_the_terminal_is_left_as_it_was_however_top_ends(queue, screens, leave):  # noqa: F811
    queue.enqueue("exit 0")
    screen = screens("sh")
    program = shlex.join(queue.command("top"))
    screen.type("PS1='% '; clear; echo text of before; stty -g > before; " + program + " 2> err; echo status $? > status; stty -g > after; echo rea''dy")  # in two parts: the line as typed may wrap there
    screen.keys("Enter")
    screen.until("queuectl top")
    wait_until(lambda: (screen.fact("alternate_on"), screen.fact("cursor_flag")) == ("1", "0"))
    assert "text of before" not in screen.text()
    leave(queue, screen)
    text = screen.until("^ready")
    assert (queue.dir / "before").read_text() == (queue.dir / "after").read_text() != ""
    assert (screen.fact("alternate_on"), screen.fact("cursor_flag")) == ("0", "1")
    assert "text of before" in text and "queuectl top" not in text
    assert (queue.dir / "err").read_text() == ""
    screen.type("echo typed; read line; echo \"[$line]\"")
    screen.keys("Enter")
    screen.until("^typed")
    screen.type("seen")
    screen.until("^seen")  # echo is on
    screen.keys("Enter")
    screen.until(r"^\[seen\]")


@pytest.mark.slow
def test_a_signal_that_comes_while_top_draws_leaves_no_traceback(queue, screens):  # noqa: F811
    change(queue, lambda store: store.enqueue_many(["exit 0"] * 1000))
    for _ in range(4):
        screen = screens("sh")
        screen.type(shlex.join(queue.command("top")) + " 2> err; stty -a | grep -o '.icanon'; echo rea''dy")  # in two parts: the line as typed may wrap there
        screen.keys("Enter")
        screen.until("queuectl top")
        [pid] = wait_until(lambda: [pid for pid, words in queue.processes().items() if words.rstrip().endswith(" top")])
        screen.keys(*["j"] * 200)  # so that it draws without pause
        os.kill(pid, signal.SIGTERM)
        text = screen.until("^ready")
        assert (queue.dir / "err").read_text() == "" and "-icanon" not in text
        screen.close()


def test_ctrl_z_does_not_leave_the_terminal_half_changed(queue, screens):  # noqa: F811
    queue.enqueue("exit 0")
    screen = screens("sh")
    screen.type(shlex.join(queue.command("top")) + "; echo rea''dy")  # in two parts: the line as typed may wrap there
    screen.keys("Enter")
    screen.until("queuectl top")
    screen.keys("C-z")
    screen.keys("q")
    screen.until("^ready")
    assert (screen.fact("alternate_on"), screen.fact("cursor_flag")) == ("0", "1")


def test_top_says_what_is_wrong_when_the_queue_is_gone_and_restores_the_terminal(queue, screens):  # noqa: F811
    queue.enqueue("exit 0")
    screen = screens("sh")
    screen.type("stty -g > before; " + shlex.join(queue.command("top")) + "; stty -g > after; echo rea''dy")  # in two parts: the line as typed may wrap there
    screen.keys("Enter")
    screen.until("queuectl top")
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        if (queue.dir / name).exists():
            (queue.dir / name).write_bytes(b"no database any more" * 500)
    screen.keys("j")
    text = screen.until("^ready")
    assert "queuectl: error:" in text and "Traceback" not in text
    assert (queue.dir / "before").read_text() == (queue.dir / "after").read_text()
    (queue.dir / "queue.db").unlink()
