"""The face of the program: options, help, wrong input, JSON, where things lie, install."""
from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys

import pytest
from conftest import SCRIPT, WINDOWS, posix_only, unprivileged, wait_until

import queuectl  # noqa: E402 (conftest puts it on the path)

pytestmark = pytest.mark.core

STATES = {"pending", "processing", "completed", "failed", "dead", "cancelled"}
ISO_UTC = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")


def one_error_line(done):
    """The text of the one line that a user's mistake gives."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("queuectl: error: "), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert done.stdout == ""
    return done.stderr


def contents(queue):
    """Everything that a command could have written: the rows, and the names of the files."""
    connection = sqlite3.connect(str(queue.db))
    rows = list(connection.iterdump())
    connection.close()
    files = {str(path) for path in queue.dir.rglob("*") if not path.name.endswith(("-wal", "-shm"))}
    return rows, files


# ---- where the queue is ----------------------------------------------------------------------

def test_db_option_stands_before_or_after_the_command_words(queue):
    queue.enqueue("true")
    after = queue.run([*queue.program, "list", "--json", "--db", str(queue.db)])
    joined = queue.run([*queue.program, "--db=" + str(queue.db), "list", "--json"])
    assert len(json.loads(after.stdout)) == len(json.loads(joined.stdout)) == 1


def test_the_environment_names_the_database_and_the_option_beats_it(queue):
    other = str(queue.dir / "other.db")
    queue.run([*queue.program, "enqueue", "true"], env={"QUEUECTL_DB": str(queue.db)})
    queue.cli("enqueue", "true", env={"QUEUECTL_DB": other})
    assert len(queue.json("list")) == 2
    assert not os.path.exists(other)


@posix_only("Windows uses LOCALAPPDATA")
def test_without_option_and_environment_there_is_one_queue_per_user(queue):
    state = queue.dir / "state"
    queue.run([*queue.program, "enqueue", "true"], env={"XDG_STATE_HOME": str(state)})
    assert (state / "queuectl" / "queue.db").exists()
    queue.run([*queue.program, "enqueue", "true"])
    assert (queue.home / ".local" / "state" / "queuectl" / "queue.db").exists()


@posix_only("Windows has no such mode bits")
def test_files_are_private_whatever_the_umask(queue):
    old = os.umask(0)
    try:
        queue.start(1)
        job = queue.enqueue("echo x")
        queue.run([*queue.program, "enqueue", "true"])  # the default place, its directories made again
    finally:
        os.umask(old)
    queue.wait_for(job, "completed")
    made = [queue.db, queue.files, *queue.files.rglob("*"), *(queue.home / ".local/state/queuectl").rglob("*")]
    made += [path for path in queue.dir.iterdir() if path.name.startswith("queue.db-")]
    assert any(path.suffix == ".log" for path in made)
    for path in made + [queue.home / ".local/state/queuectl"]:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        assert mode == (0o700 if path.is_dir() else 0o600), "%s has mode %o" % (path, mode)


# ---- help ------------------------------------------------------------------------------------

def test_version_is_one_line(queue):
    assert re.match(r"^queuectl \d+\.\d+(\.\d+)?$", queue.out("--version"))


def test_a_bare_call_shows_the_status(queue):
    queue.enqueue("true")
    bare, status = (re.sub(r"[\d.]+ ?m?s\b", "", queue.cli(*words).stdout) for words in ([], ["status"]))
    assert bare == status and "pending" in bare


@pytest.mark.parametrize("words, meant", [
    (["enqeue", "true"], "enqueue"), (["wroker", "list"], "worker"), (["worker", "strat"], "start"),
    (["list", "--stat", "dead"], "--state"), (["run", "--dryrun", "x"], "--dry-run"),
    (["dlq", "lst"], "list"), (["list", "--state", "pendng"], "pending"), (["config", "get", "max_retrys"], "max_retries")], ids=lambda v: "-".join(v) if isinstance(v, list) else "")
def test_a_mistyped_word_suggests_the_nearest(queue, words, meant):
    assert meant in one_error_line(queue.cli(*words, check=False))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words, meant", [
    (["run", "-P", "4", "echo"], "-j"), (["run", "-P4", "echo"], "-j"), (["run", "--jobs=4", "echo"], "-j"), (["run", "-L1", "echo"], "-n"),
    (["run", "--retries", "3", "echo"], "--max-retries"), (["run", "--halt=now,fail=1", "echo"], "--fail-fast"),
    (["run", "--lb", "echo"], "--output live"), (["run", "--link", "echo"], ":::+"), (["run", "-I{}", "echo"], "{}"),
    (["run", "--ungroup", "echo"], "--output live"), (["enqueue", "--stashed", "echo"], "--hold"), (["worker", "start", "--jobs", "2"], "-j"),
    (["serve"], "web"), (["at", "09:00"], "enqueue"), (["atq"], "list"), (["tsp", "make"], "enqueue"), (["restore", "x"], "import"),
    (["kill", "1"], "cancel"), (["crontab", "-l"], "cron list")], ids=lambda v: "-".join(v) if isinstance(v, list) else "")
def test_an_option_of_another_tool_names_ours(queue, words, meant):
    assert "(did you mean %s?)" % meant in one_error_line(queue.cli(*words, check=False))


def test_no_other_option_is_named_where_none_is_alike(queue):
    for words in (["run", "--progress", "x"], ["list", "-P", "4"], ["list", "--jobs"], ["run", "--eta", "x"], ["run", "--wait", "x"],
                  ["run", "--bg", "x"], ["run", "--profile", "x"], ["run", "--basefile", "x"], ["run", "--max-chars", "3", "x"],
                  ["nice", "make"], ["attach", "1"], ["switch", "1", "2"], ["send"]):
        assert "did you mean" not in one_error_line(queue.cli(*words, check=False))


# ---- wrong input: one line on stderr, exit status 2, nothing written ---------------------------

WRONG = {
    "no command": ["enqueue"],
    "an empty command": ["enqueue", ""],
    "options but no command": ["enqueue", "--name", "x"],
    "unknown command": ["frobnicate"],
    "unknown option": ["list", "--frobnicate"],
    "a word too many": ["status", "now"],
    "group without its command": ["dlq"],
    "unknown state": ["list", "--state", "bogus"],
    "bad limit": ["list", "--limit", "-1"],
    "show of an unknown id": ["show", "999"],
    "show of an unknown name": ["show", "nobody"],
    "show of nothing": ["show"],
    "logs of an unknown id": ["logs", "999"],
    "logs of an unknown attempt": ["logs", "taken", "--attempt", "7"],
    "dlq retry of an unknown id": ["dlq", "retry", "999"],
    "dlq retry of a job that is not dead": ["dlq", "retry", "taken"],
    "dlq retry of nothing": ["dlq", "retry"],
    "dlq purge of an unknown id": ["dlq", "purge", "999"],
    "dlq purge of nothing": ["dlq", "purge"],
    "count 0": ["worker", "start", "--count", "0"],
    "count -1": ["worker", "start", "--count", "-1"],
    "count abc": ["worker", "start", "--count", "abc"],
    "count 1.5": ["worker", "start", "--count", "1.5"],
    "run with count 0": ["run", "--count", "0", "true"],
    "run of nothing": ["run"],
    "bad timeout": ["enqueue", "--timeout", "soon", "true"],
    "negative timeout": ["enqueue", "--timeout", "-5", "true"],
    "timeout nan": ["enqueue", "--timeout", "nan", "true"],
    "timeout inf": ["enqueue", "--timeout", "inf", "true"],
    "negative retries": ["enqueue", "--max-retries", "-1", "true"],
    "retries abc": ["enqueue", "--max-retries", "abc", "true"],
    "backoff abc": ["enqueue", "--backoff-base", "abc", "true"],
    "env without =": ["enqueue", "--env", "NOTHING", "true"],
    "name of digits": ["enqueue", "--name", "12", "true"],
    "name that is taken": ["enqueue", "--name", "taken", "true"],
    "empty name": ["enqueue", "--name", "", "true"],
    "bad JSON": ["enqueue", '{"command": }'],
    "JSON without command": ["enqueue", '{"id": "x"}'],
    "JSON with an unknown name": ["enqueue", '{"command": "true", "max_retires": 5}'],
    "JSON with a value of a wrong kind": ["enqueue", '{"command": "true", "max_retries": "many"}'],
    "JSON with a command of a wrong kind": ["enqueue", '{"command": 7}'],
    "get of an unknown key": ["config", "get", "banana"],
    "set of an unknown key": ["config", "set", "banana", "1"],
    "unset of an unknown key": ["config", "unset", "banana"],
    "bad config value": ["config", "set", "max_retries", "banana"],
    "negative config value": ["config", "set", "max_retries", "-1"],
    "bad config duration": ["config", "set", "timeout", "2x"],
    "bad config size": ["config", "set", "log_limit", "much"],
    "a missing file": ["enqueue", "--file", "missing.txt"],
    "a directory as file": ["enqueue", "--file", "."],
    "run of a missing file": ["run", "--file", "missing.txt"],
    "file and command": ["enqueue", "--file", "missing.txt", "true"],
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_and_status_2_and_writes_nothing(queue, words):
    import queuectl
    store = queuectl.Store(str(queue.db))
    store.enqueue("true", name="taken")
    store.close()
    before = contents(queue)
    one_error_line(queue.cli(*words, check=False))
    assert contents(queue) == before


@pytest.mark.parametrize("words, told", [
    (["metrics", "--output", "no/where"], "can't write 'no/where'"), (["metrics", "--output", "."], "can't write '.'"),
    (["backup", "no/where"], "can't write"), (["export", "--output", "no/where"], "can't write 'no/where'"),
    (["cron", "add", "0 9 * * *", "true"], "cron add NAME %s COMMAND" % ('"0 9 * * *"' if WINDOWS else "'0 9 * * *'")),
    (["cron", "add", "@daily", "true"], "a schedule's name stands before"),
    (["cron", "add", "n", "0", "9", "*", "*", "*", "true"], "put the five fields into quotes")])
def test_a_mistake_is_answered_by_what_to_do(queue, words, told):
    queue.enqueue("--hold", "true")
    before = contents(queue)
    assert told in one_error_line(queue.cli(*words, check=False))
    assert contents(queue) == before


@pytest.mark.parametrize("text", [None, "", "true\n"])
def test_an_import_of_what_is_no_export_makes_no_database(queue, text):
    if text is not None:
        (queue.dir / "file").write_text(text)
    one_error_line(queue.cli("import", "file", check=False))
    assert not queue.db.exists() and not queue.files.exists()


def test_an_option_that_a_variable_has_left_empty_is_refused():
    """It would count as no option: `cancel --state pending --batch "$B"` would cancel every job."""
    optional = {"edit": "CLEARED", "cron edit": "CLEARED"}
    tried = 0
    for found in queuectl.COMMANDS:
        for action in queuectl.build_parser(found)._actions if found.purpose else ():
            if not action.option_strings or action.nargs == 0 or action.metavar == "PREFIX" or " ".join(found.words) in optional:
                continue
            words = [*found.words, action.option_strings[-1] + "="] + [""] * ((action.nargs or 1) == 2)
            with pytest.raises(queuectl.UserError):
                args = queuectl.parse_words(words)
                queuectl.parse_job(queuectl.job_options(args))
                assert action.dest == "db" and queuectl.find_database(args.db), words
            tried += 1
    assert tried > 150
    for options in ({"after": ""}, {"after": [""]}, {"after": ["1", ""]}, {"after_any": ","}, {"after_batch": ""}, {"label": ""}, {"label": ["a", ""]}):
        with pytest.raises(queuectl.UserError):
            queuectl.parse_job(options)


def test_an_empty_filter_or_place_changes_nothing(queue):
    job = queue.enqueue("--hold", "true")
    before = contents(queue)
    for words in (["cancel", "--state", "pending", "--batch", ""], ["cancel", "--queue", "", job], ["enqueue", "--after", "", "true"],
                  ["run", "--junit", "", "true"], ["run", "--retry-failed=", "true"], ["rm", "--state", "completed", "--queue="]):
        one_error_line(queue.cli(*words, check=False))
        assert contents(queue) == before


def test_a_negative_number_is_a_value_and_a_sign_that_means_more_elsewhere_is_refused(queue):
    """-0 is an option of `enqueue` and `run`: argparse would then take -5 for one too."""
    job = queue.enqueue("--priority", "-5", "--hold", "true")
    assert queue.job(queue.enqueue("-p", -7, "--hold", "true")).priority == -7
    queue.cli("edit", job, "--priority", "-6")
    assert queue.job(job).priority == -6
    queue.cli("cron", "add", "n", "-p", "-3", "@daily", "true")
    assert "from 1 to" in one_error_line(queue.cli("run", "-j", "-1", "true", check=False))
    for words in (["run", "-j", "+2", "true"], ["edit", job, "--priority", "+1"]):
        assert "not '+" in one_error_line(queue.cli(*words, check=False))


def test_a_bad_500th_line_is_named_and_nothing_of_the_file_is_written(queue):
    lines = ["true"] * 499 + ['{"command": "true", "max_retries": -5}'] + ["true"] * 100
    queue.enqueue("true")
    before = contents(queue)
    for words in (["enqueue", "--file", "-"], ["run", "--file", "-"]):
        error = one_error_line(queue.cli(*words, stdin="\n".join(lines), check=False))
        assert re.search(r"line 500\b", error)
        assert contents(queue) == before


def test_wrong_words_do_not_create_a_database(queue):
    for words in (["list", "--state", "bogus"], ["worker", "start", "--count", "0"], ["enqueue"], ["frobnicate"]):
        one_error_line(queue.cli(*words, check=False))
    assert sorted(path.name for path in queue.dir.iterdir()) == ["home"]


@pytest.mark.parametrize("words", [["list"], ["enqueue", "true"], ["worker", "start"], ["run", "true"], ["status"]],
                         ids=" ".join)
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(queue, words):
    content = b"This is a letter to my aunt, and no database.\n" * 200
    queue.db.write_bytes(content)
    one_error_line(queue.cli(*words, check=False))
    assert queue.db.read_bytes() == content
    assert not queue.files.exists()


@posix_only("permissions are another thing on Windows")
@pytest.mark.parametrize("words", [["enqueue", "true"], ["worker", "start"], ["run", "true"]], ids=" ".join)
def test_a_directory_without_rights_is_refused(queue, words):
    closed = queue.dir / "closed"
    closed.mkdir(0o500)
    command = [*unprivileged(), *queue.program, "--db", str(closed / "queue.db"), *words]
    error = one_error_line(queue.run(command, check=False))
    assert "closed" in error and "keep the queue elsewhere with --db" in error
    assert list(closed.iterdir()) == []


@posix_only("permissions are another thing on Windows")
def test_a_read_only_database_is_refused(queue):
    queue.enqueue("true")
    before = contents(queue)
    queue.db.chmod(0o400)
    try:
        for words in (["enqueue", "true"], ["config", "set", "max_retries", "5"], ["worker", "start"]):
            one_error_line(queue.run([*unprivileged(), *queue.command(*words)], check=False))
    finally:
        queue.db.chmod(0o600)
    assert contents(queue)[0] == before[0]


@posix_only("permissions are another thing on Windows")
def test_an_unreadable_file_is_refused(queue):
    secret = queue.dir / "secret.txt"
    secret.write_text("true\n")
    secret.chmod(0)
    done = queue.run([*unprivileged(), *queue.command("enqueue", "--file", str(secret))], check=False)
    assert "Permission denied" in one_error_line(done)


def test_a_database_in_a_missing_directory_is_made_or_refused_in_one_line(queue):
    done = queue.run([*queue.program, "--db", str(queue.dir / "no" / "queue.db"), "enqueue", "true"], check=False)
    if done.returncode:
        one_error_line(done)


# ---- the JSON that scripts rely on -------------------------------------------------------------

JOB_KEYS = {"id": int, "name": (str, type(None)), "state": str, "command": str, "attempts": int, "crashes": int,
            "max_retries": int, "exit_code": (int, type(None)), "error": (str, type(None)), "created_at": "time",
            "run_at": "time", "started_at": "time", "finished_at": "time", "duration": (int, float, type(None)),
            "cwd": (str, type(None))}
ATTEMPT_KEYS = {"attempt": int, "worker": (int, str), "pid": (int, type(None)), "started_at": "time",
                "finished_at": "time", "outcome": (str, type(None)), "exit_code": (int, type(None)),
                "error": (str, type(None))}


def follows(record, promise):
    for key, kind in promise.items():
        assert key in record, key
        if kind == "time":
            assert record[key] is None or ISO_UTC.match(record[key]), (key, record[key])
        else:
            assert isinstance(record[key], kind) and not isinstance(record[key], bool), (key, record[key])


def test_the_json_of_every_view_is_what_the_readme_promises(queue):
    queue.start(1)
    good = queue.enqueue("--name", "good", *queue.script("print('x')"))
    bad = queue.enqueue("--max-retries", 0, "exit 3")
    queue.wait_for(bad, "dead")
    queue.wait_for(good, "completed")
    queue.stop()
    waiting = queue.enqueue("true")

    jobs = queue.json("list")
    assert [job["id"] for job in jobs] == [waiting, bad, good]
    for job in jobs:
        follows(job, JOB_KEYS)
        assert job["state"] in STATES
    by_id = {job["id"]: job for job in jobs}
    assert by_id[good]["name"] == "good" and by_id[good]["exit_code"] == 0 and by_id[good]["error"] is None
    assert by_id[good]["duration"] >= 0 and by_id[good]["attempts"] == 1 and by_id[good]["finished_at"]
    assert by_id[bad]["exit_code"] == 3 and "exit 3" in by_id[bad]["error"] and by_id[bad]["max_retries"] == 0
    assert by_id[waiting]["started_at"] is by_id[waiting]["finished_at"] is by_id[waiting]["exit_code"] is None
    assert by_id[waiting]["attempts"] == 0 and by_id[waiting]["command"] == "true"

    shown = queue.json("show", "good")
    follows(shown, JOB_KEYS)
    assert len(shown["history"]) == 1
    follows(shown["history"][0], ATTEMPT_KEYS)
    assert shown["history"][0]["outcome"] == "completed" and shown["history"][0]["attempt"] == 1

    assert [job["id"] for job in queue.json("dlq", "list")] == [bad]
    follows(queue.json("dlq", "list")[0], JOB_KEYS)

    status = queue.json("status")
    assert STATES <= set(status["jobs"])
    assert (status["jobs"]["pending"], status["jobs"]["completed"], status["jobs"]["dead"]) == (1, 1, 1)
    assert status["workers"] == [] == queue.json("worker", "list")
    assert "max_retries" in json.dumps(queue.json("config", "list"))


def test_json_lists_are_empty_arrays_when_there_is_nothing(queue):
    queue.cli("config", "set", "timeout", "9")
    assert queue.json("list") == queue.json("dlq", "list") == queue.json("worker", "list") == []
    assert set(queue.json("status")["jobs"].values()) == {0}


# ---- what is shown -----------------------------------------------------------------------------

def test_list_shows_the_newest_fifty_and_says_on_stderr_how_many_more(queue):
    queue.cli("enqueue", "--file", "-", stdin="true\n" * 60)
    done = queue.cli("list")
    rows = [line for line in done.stdout.splitlines() if re.match(r"\s*\d+\s", line)]
    assert [int(line.split()[0]) for line in rows] == list(range(60, 10, -1))
    assert "10 more" in done.stderr
    assert len(queue.json("list")) == 50 and len(queue.json("list", "--limit", 3)) == 3
    everything = queue.cli("list", "--limit", "0", "--json")
    assert len(json.loads(everything.stdout)) == 60 and everything.stderr == ""


def test_list_takes_several_states(queue):
    queue.start(1)
    good, bad = queue.enqueue("exit 0"), queue.enqueue("--max-retries", 0, "exit 1")
    queue.wait_for(good, "completed")
    queue.wait_for(bad, "dead")
    queue.stop()
    last = queue.enqueue("exit 0")
    assert [j["id"] for j in queue.json("list", "--state", "completed", "--state", "dead")] == [bad, good]
    assert [j["id"] for j in queue.json("list", "--state", "pending")] == [last]


def test_show_tells_everything_about_a_job(queue):
    code = "import os, sys; sys.exit(int(os.environ['QUEUECTL_ATTEMPT']) - 3)"
    job = queue.enqueue("--name", "shown", "--timeout", "90s", "--backoff-base", 0.01, *queue.script(code))
    queue.cli("worker", "start", "--foreground", "--drain")
    text = queue.out("show", job)
    for word in ("shown", "completed", str(queue.dir), "90s", "exit 254" if os.name != "nt" else "exit", "1m30s"):
        assert word in text or word in ("90s", "1m30s"), word
    assert len(re.findall(r"\b(failed|completed)\b", text)) >= 3  # the state and each attempt
    assert queue.out("show", "shown") == text


def test_status_tells_counts_workers_and_the_oldest_waiting_job(queue):
    queue.cli("enqueue", "--file", "-", stdin="echo oldest\n" + "exit 0\n" * 41)
    text = queue.out("status")
    assert re.search(r"pending\s+42\b|\b42\s+pending", text)
    assert "echo oldest" in text and re.search(r"(?i)worker", text)


def test_a_newer_database_is_refused_in_one_line(queue):
    queue.enqueue("exit 0")
    connection = sqlite3.connect(str(queue.db))
    connection.execute("PRAGMA user_version=9999")
    connection.close()
    for words in (["list"], ["enqueue", "exit 0"], ["worker", "start"], ["run", "exit 0"]):
        assert "newer" in one_error_line(queue.cli(*words, check=False))


@posix_only("pseudo-terminals")
def test_an_enqueue_that_nothing_will_pick_up_says_so_on_a_terminal_only(queue):
    assert "worker start" in queue.terminal("enqueue", "true")[1]
    assert queue.cli("enqueue", "true").stderr == ""


@posix_only("pseudo-terminals")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_is_as_wide_as_the_terminal(queue, columns):
    queue.enqueue("echo " + "long " * 60 + "end")
    status, text = queue.terminal("list", columns=columns)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert status == 0
    assert max(map(len, plain.splitlines())) <= columns
    assert ("long " * (columns // 20)).strip() in plain


@posix_only("pseudo-terminals")
def test_colour_is_for_terminals_without_no_color(queue):
    queue.enqueue("true")
    assert "\x1b[" in queue.terminal("list")[1]
    assert "\x1b[" not in queue.terminal("list", env={"NO_COLOR": "1"})[1]
    assert "\x1b" not in queue.cli("list").stdout


def test_a_control_character_of_a_command_reaches_no_table_and_no_json_raw(queue):
    job = queue.enqueue("echo \x1b[31mred\x07")
    for words in (["list"], ["show", job], ["list", "--json"], ["show", job, "--json"]):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", queue.cli(*words).stdout), words
    assert queue.json("show", job)["command"] == "echo \x1b[31mred\x07"


@posix_only("no sh to make the pipe with")
def test_a_closed_pipe_is_no_error(queue):
    queue.cli("enqueue", "--file", "-", stdin="true\n" * 3000)
    done = queue.run(["sh", "-c", '"$@" | head -n 1', "sh", *queue.command("list", "--limit", "0")])
    assert done.stderr == "" and done.stdout


@pytest.mark.broad
@posix_only("the locale of a POSIX system")
def test_everything_works_with_a_c_locale_and_no_home(queue):
    bare = {"LANG": None, "LC_ALL": "C", "HOME": None, "TERM": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = [sys.executable, str(SCRIPT), "--db", str(queue.db)]
    job = int(queue.run([*program, "enqueue", "echo", "\u20ac"], env=bare).stdout)
    queue.run([*program, "list"], env=bare)
    queue.run([*program, "worker", "start"], env=bare)
    queue.wait_for(job, "completed")
    assert queue.cli("logs", job, binary=True).stdout == "\u20ac\n".encode()


# ---- the quick start, as printed, from another directory ---------------------------------------

@pytest.mark.slow
@posix_only("written for sh")
def test_the_quick_start_works_as_printed_from_another_directory(queue):
    elsewhere = queue.dir / "else where"
    elsewhere.mkdir()

    def shell(line):
        call = 'queuectl() { "%s" "%s" "$@"; }\n' % (sys.executable, SCRIPT)
        return queue.run(["sh", "-c", call + line], cwd=elsewhere)

    shell("queuectl config set backoff_base 0.2")  # not in the quick start: 14 s of waiting for its retries
    started = shell("queuectl worker start --count 1")
    assert "worker stop" in started.stdout + started.stderr
    assert shell('queuectl enqueue echo "Hello Queue"').stdout == "1\n"
    assert shell('queuectl enqueue "exit 1"').stdout == "2\n"
    wait_until(lambda: "exit 1" in shell("queuectl dlq list").stdout, message="exit 1 in the DLQ", interval=0.3)
    listed = shell("queuectl list ; queuectl list --state completed ; queuectl list --state dead").stdout
    assert listed.count("Hello Queue") == 2 and "dead" in listed
    assert shell("queuectl config set max_retries 5 ; queuectl config get max_retries").stdout.endswith("5\n")
    assert "exit 1" in shell("queuectl dlq list ; queuectl dlq retry 2").stdout
    assert shell("queuectl logs 1").stdout == "Hello Queue\n"
    shell("queuectl worker stop")
    assert shell("queuectl worker list --json").stdout.strip() == "[]"
    assert list(elsewhere.iterdir()) == []


# ---- install -----------------------------------------------------------------------------------

def installed(home):
    """The command that `install` makes."""
    return home / ".local" / "bin" / ("queuectl.cmd" if WINDOWS else "queuectl")


def test_install_puts_a_command_on_the_path_and_uninstall_takes_it_away(queue):
    home = queue.dir / "my h\u00f6me"
    home.mkdir()
    environment = {"HOME": str(home), "USERPROFILE": str(home)}
    done = queue.run([sys.executable, str(SCRIPT), "install"], env=environment)
    command = installed(home)
    assert command.exists() and os.access(str(command), os.X_OK)
    assert str(command) in done.stdout + done.stderr
    assert queue.run([str(command), "--version"], env=environment).stdout == queue.cli("--version").stdout
    assert queue.run([str(command), "enqueue", "echo", "a  b"], env=environment).stdout == "1\n"
    listed = json.loads(queue.run([str(command), "list", "--json"], env=environment).stdout)
    assert "a  b" in listed[0]["command"]
    queue.run([sys.executable, str(SCRIPT), "install"], env=environment)  # again: an upgrade
    queue.run([str(command), "worker", "start"], env=environment)
    queue.run([str(command), "worker", "stop"], env=environment)
    queue.run([sys.executable, str(SCRIPT), "install", "--uninstall"], env=environment)
    assert not command.exists()


def test_the_installed_command_runs_isolated_from_cached_bytecode(queue):
    queue.run([sys.executable, str(SCRIPT), "install"])
    command = installed(queue.home)
    assert "-IS" in command.read_text()
    probe = "import os, sys; open(os.environ['PROBE'], 'w').write('planted')"
    planted = queue.dir / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(probe)
    (planted / "sqlite3.py").write_text(probe)
    witness = queue.dir / "witness"
    queue.run([str(command), "--version"], cwd=planted, env={"PYTHONPATH": str(planted), "PROBE": str(witness)})
    assert not witness.exists()


@pytest.mark.broad
def test_install_says_when_the_directory_is_not_on_the_path(queue):
    bin_dir = queue.home / ".local" / "bin"
    path = os.environ["PATH"]
    off = queue.run([sys.executable, str(SCRIPT), "install"], env={"PATH": path})
    on = queue.run([sys.executable, str(SCRIPT), "install"], env={"PATH": str(bin_dir) + os.pathsep + path})
    assert "PATH" in off.stdout + off.stderr and "PATH" not in on.stdout + on.stderr


@pytest.mark.broad
def test_install_does_not_overwrite_a_command_of_somebody_else(queue):
    command = installed(queue.home)
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\necho mine\n")
    one_error_line(queue.run([sys.executable, str(SCRIPT), "install"], check=False))
    one_error_line(queue.run([sys.executable, str(SCRIPT), "install", "--uninstall"], check=False))
    assert command.read_text() == "#!/bin/sh\necho mine\n"


# ---- options that a command cannot honour -----------------------------------------------------------

NOT_TOGETHER = [
    ["dlq", "list", "--state", "completed"], ["dlq", "list", "--state", "dead,completed"], ["dlq", "list", "--state", "dead", "--state", "failed"],
    ["dlq", "retry", "--state", "completed"], ["dlq", "purge", "--state", "dead,completed"], ["retry", "--state", "completed,pending"],
    ["rm", "--state", "completed", "--state", "processing"], ["prune", "--older-than", "0s", "--state", "pending"],
    ["cancel", "--state", "pending,completed"], ["hold", "--state", "processing"], ["release", "--state", "dead"],
    ["edit", "--state", "failed,dead", "--priority", "1"], ["hold", "1", "--state", "completed"],
    ["list", "--json", "--columns", "id"], ["list", "--json", "--tree"], ["list", "--json", "--watch"], ["list", "--tree", "--columns", "id"],
    ["list", "--tree", "--sort", "id"], ["dlq", "list", "--json", "--tree"], ["logs", "1", "--attempt", "1", "--all-attempts"],
    ["cron", "add", "t", "--every", "1h", "--tz", "UTC", "true"]]


def test_an_option_that_a_command_cannot_honour_is_refused_and_nothing_done(queue):
    queue.enqueue("true")
    for end in ("0", "9"):
        queue.cli("run", "--max-retries", 0, "exit " + end, check=False)
    before = queue.json("list")
    for words in NOT_TOGETHER:
        done = queue.cli(*words, check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, (words, done.stdout, done.stderr)
        assert queue.json("list") == before and queue.json("cron", "list") == [], words


def test_options_that_a_command_can_honour_together_are(queue):
    queue.cli("run", "--max-retries", 0, "exit 9", check=False)
    for words in (["dlq", "list", "--state", "dead"], ["list", "--json", "--sort", "id"], ["list", "--tree", "--state", "dead,pending"],
                  ["logs", "1", "--attempt", "1", "-n", "5"], ["retry", "--state", "dead,completed", "--dry-run"],
                  ["cron", "add", "t", "--every", "1h", "--tz", "UTC", "--at", "09:00", "true"]):
        queue.cli(*words)
    queue.run([*queue.program, "list", "--db", str(queue.db)])


# ---- help ---------------------------------------------------------------------------------------------

@pytest.mark.sampled(4)
@posix_only("a terminal")
@pytest.mark.parametrize("columns", [44, 60, 80, 200])
def test_help_is_as_wide_as_the_terminal_and_breaks_between_words(queue, columns):
    for words in (["logs", "--help"], ["enqueue", "--help"], ["--help"], ["worker", "--help"]):
        text = queue.terminal(*words, columns=columns)[1]
        wide = queue.out(*words)
        broken = [word for word in text.split() if word.strip("[].,|") not in wide]
        assert broken == [], (words, broken)
        if words != ["--help"]:  # its lines with commands to paste stay whole
            assert max(map(len, text.splitlines())) <= min(columns, 100), words


@pytest.mark.parametrize("word", sorted({command.words[0] for command in queuectl.COMMANDS if len(command.words) == 2}))
def test_the_help_of_a_group_lists_its_commands(queue, word):
    text = queue.out(word, "--help")
    for command in queuectl.COMMANDS:
        if command.words[0] == word and len(command.words) == 2:
            assert re.search(r"^  %s +%s" % (" ".join(command.words), re.escape(command.purpose.split()[0])), text, re.M)
    assert queue.out("help", word) == text and "SUPPRESS" not in text


def test_a_command_without_options_gets_what_the_parser_would_give_it():
    """argparse is not even imported then: each default must be the same without it."""
    tried = 0
    for found in queuectl.COMMANDS:
        args = queuectl.default_args(found, ["echo", "-x"] if found.rest else [])
        if args is not None:
            tried += 1
            expected = vars(queuectl.build_parser(found).parse_args([]))
            assert dict(expected, lead=[], rest=["echo", "-x"] if found.rest else []) == vars(args), found.words
    assert tried > 10


def test_a_python_that_was_built_without_sqlite_is_told_in_one_line(tmp_path):
    without = "import runpy, sys; sys.modules['_sqlite3'] = None; runpy.run_path(%r, run_name='__main__')" % str(SCRIPT)
    done = subprocess.run([sys.executable, "-c", without, "list"], cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (2, "") and os.listdir(str(tmp_path)) == []
    assert done.stderr == "queuectl: error: this Python has no sqlite3: use another one, such as the system's python3\n"
