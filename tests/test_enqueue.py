"""enqueue: what is stored, how a command reaches its program, bulk loads."""
from __future__ import annotations

import json
import os
import re
import sys

import pytest
from conftest import SCRIPT, WINDOWS, not_on_wine, posix_only

pytestmark = pytest.mark.core

SHOW_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"


def run_all(queue, status=0):
    """Works everything that waits, and returns when it is done."""
    queue.cli("worker", "start", "--foreground", "--drain", "--count", 2, status=status)


def one_error_line(done):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("queuectl: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- what is printed ---------------------------------------------------------------------------

def test_enqueue_prints_the_bare_id_when_stdout_is_no_terminal(queue):
    done = queue.cli("enqueue", "echo", "x")
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert queue.cli("enqueue", "echo", "x").stdout == "2\n"


@posix_only("pseudo-terminals")
def test_enqueue_on_a_terminal_says_it_in_words_and_with_q_not(queue):
    queue.start(1)  # without a worker it also warns that nothing will run the job
    plain = re.sub(r"\x1b\[[0-9;]*m", "", queue.terminal("enqueue", "echo", "x")[1])
    assert plain == "\u2714 Enqueued job 1\n"
    assert queue.terminal("enqueue", "-q", "echo", "x")[1] == "2\n"


def test_ids_are_never_used_again(queue):
    queue.start(1)
    first = queue.enqueue("--max-retries", 0, "exit 1")
    queue.wait_for(first, "dead")
    queue.cli("dlq", "purge", first)
    assert queue.enqueue("exit 0") == first + 1


# ---- how a command reaches its program -----------------------------------------------------------

ARGUMENTS = ["Hello   Queue", "", "it's", 'say "hi"', "$HOME", "*", "a;b", "back\\slash", "-l", "--name", "--", "\u00e9\u20ac",
             "100%", "a&b|c>d", "~", "#x", "!x", "trailing\\", "two\\\\", "(x)", "^"]


def test_several_words_are_an_argument_list_that_reaches_the_program_unchanged(queue):
    arguments = ARGUMENTS + ([] if WINDOWS else ["new\nline", "tab\there", "\x01"])
    job = queue.enqueue(*queue.script(SHOW_ARGUMENTS, *arguments))
    run_all(queue)
    assert json.loads(queue.out("logs", job)) == arguments


def test_a_json_command_may_be_an_array_of_arguments(queue):
    line = json.dumps({"command": queue.script(SHOW_ARGUMENTS, *ARGUMENTS), "id": "array"})
    queue.cli("enqueue", "--file", "-", stdin=line)
    run_all(queue)
    assert json.loads(queue.out("logs", "array")) == ARGUMENTS


@not_on_wine("its cmd.exe expands %NAME% after it has taken the carets away, the real one before")
def test_an_argument_between_percent_signs_names_no_variable(queue):
    job = queue.enqueue(*queue.script(SHOW_ARGUMENTS, "%PATH%", "%PATH:a=b%"))
    run_all(queue)
    assert json.loads(queue.out("logs", job)) == ["%PATH%", "%PATH:a=b%"]


@posix_only("written for sh")
def test_one_argument_is_a_line_of_the_shell(queue):
    job = queue.enqueue("printf 'b\\na\\n' | sort > sorted.txt; cat sorted.txt && exit 0")
    run_all(queue)
    assert queue.out("logs", job) == "a\nb"
    assert (queue.dir / "sorted.txt").exists()


def test_options_after_the_command_are_the_commands(queue):
    first = queue.enqueue("ls", "-l", "--name", "x")
    second = queue.enqueue("--name", "mine", "--", "ls", "-l")
    assert queue.json("show", first)["command"] == "ls -l --name x"
    assert queue.json("show", first)["name"] is None
    assert queue.json("show", second)["command"] == "ls -l"
    assert queue.json("show", "mine")["id"] == second


@posix_only("written for sh")
def test_a_command_of_a_megabyte_runs(queue):
    command = "echo " + "x" * (1 << 20) + " | wc -c"
    job = int(queue.cli("enqueue", "--file", "-", "-q", stdin=json.dumps({"command": command})).stdout.split()[-1])
    run_all(queue)
    assert queue.out("logs", job) == str((1 << 20) + 1)


# ---- names ---------------------------------------------------------------------------------------

def test_a_name_is_usable_wherever_an_id_is(queue):
    queue.cli("enqueue", "--name", "by-name", "--max-retries", 0, "echo out& exit 1" if WINDOWS else "echo out; exit 1")
    job = queue.enqueue("--id", "by-id", "exit 0")
    assert queue.json("show", "by-id")["id"] == job
    assert queue.json("show", job)["name"] == "by-id"
    run_all(queue, status=1)
    assert queue.out("logs", "by-name") == "out"
    queue.cli("dlq", "retry", "by-name")
    run_all(queue, status=1)
    queue.cli("dlq", "purge", "by-name")
    one_error_line(queue.cli("show", "by-name", check=False))
    queue.enqueue("--name", "by-name", "exit 0")  # the name is free again


def test_a_name_that_exists_and_a_name_of_digits_are_refused(queue):
    queue.enqueue("--name", "taken", "exit 0")
    assert "taken" in one_error_line(queue.cli("enqueue", "--name", "taken", "exit 0", check=False))
    assert "12" in one_error_line(queue.cli("enqueue", "--name", "12", "exit 0", check=False))
    error = one_error_line(queue.cli("enqueue", "--file", "-", check=False, stdin="exit 0\n" + json.dumps(
        {"command": "exit 0", "id": "taken"})))
    assert "line 2" in error and "taken" in error
    twice = "\n".join(json.dumps({"command": "exit 0", "id": "same"}) for _ in range(2))
    assert "line 2" in one_error_line(queue.cli("enqueue", "--file", "-", stdin=twice, check=False))
    assert len(queue.json("list")) == 1


# ---- surroundings ----------------------------------------------------------------------------------

def test_a_job_keeps_the_directory_and_environment_of_whoever_enqueued_it(queue):
    place = queue.dir / "some where"
    place.mkdir()
    show = queue.script("import os; print(os.path.realpath(os.getcwd())); print(os.environ.get('COLOR'))")
    here = queue.enqueue(*show, cwd=place, env={"COLOR": "blue"})
    told = queue.enqueue("--cwd", place, "--env", "COLOR=red", *show)
    relative = queue.enqueue("--cwd", "some where", *show)
    queue.cli("worker", "start", "--foreground", "--drain", cwd=queue.home, env={"COLOR": "of the worker"})
    real = os.path.realpath(str(place))
    assert queue.out("logs", here).splitlines() == [real, "blue"]
    assert queue.out("logs", told).splitlines() == [real, "red"]
    assert queue.out("logs", relative).splitlines() == [real, "None"]
    assert queue.json("show", here)["cwd"] == str(place)


def test_a_job_sees_its_id_attempt_and_database(queue):
    code = "import os, sys; print(*(os.environ['QUEUECTL_' + n] for n in ('JOB_ID', 'ATTEMPT', 'DB'))); sys.exit(1)"
    job = queue.enqueue("--max-retries", 1, "--backoff-base", 0.01, *queue.script(code))
    run_all(queue, status=1)
    assert queue.out("logs", job, "--attempt", 1) == "%d 1 %s" % (job, queue.db)
    assert queue.out("logs", job, "--attempt", 2) == "%d 2 %s" % (job, queue.db)


def test_a_job_can_enqueue_into_its_own_queue(queue):
    queue.enqueue(*queue.script("import subprocess, sys; subprocess.run([sys.executable, %r, 'enqueue', 'echo child'], "
                                "check=True)" % str(SCRIPT)))
    run_all(queue)
    assert [job["state"] for job in queue.json("list")] == ["completed", "completed"]
    assert queue.json("list")[0]["command"] == "echo child"


def test_the_stdin_of_a_job_is_empty(queue):
    job = queue.enqueue(*queue.script("import sys; print(repr(sys.stdin.read()))"))
    run_all(queue)
    assert queue.out("logs", job) == "''"


def test_each_distinct_environment_is_stored_once_and_goes_with_its_last_job(queue):
    def environments():
        return queue.sql("SELECT count(*) FROM env")[0][0]

    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 50)
    queue.enqueue("exit 0")
    assert environments() == 1
    odd = queue.enqueue("--max-retries", 0, "exit 1", env={"ONE": "more"})
    queue.enqueue("--max-retries", 0, "exit 1", env={"ONE": "more"})
    assert environments() == 2
    queue.cli("worker", "start", "--foreground", "--drain", status=1)
    queue.cli("dlq", "purge", odd)
    assert environments() == 2
    queue.cli("dlq", "purge", "--all")
    assert environments() == 1


def test_the_environment_is_never_shown_by_default(queue):
    job = queue.enqueue("exit 0", env={"SECRET_TOKEN": "hunter2"})
    for words in (["list"], ["show", job], ["show", job, "--json"], ["list", "--json"], ["status"]):
        assert "hunter2" not in queue.cli(*words).stdout


@posix_only("bytes in an environment")
def test_an_environment_that_is_no_utf_8_is_kept_as_it_is(queue):
    environment = {os.fsencode(k): os.fsencode(v) for k, v in queue.env.items()}
    environment[b"ODD"] = b"\xff\xfe"
    import subprocess
    subprocess.run(queue.command("enqueue", "printf %s \"$ODD\" | od -An -tx1"), env=environment, check=True,
                   cwd=str(queue.dir), stdout=subprocess.DEVNULL)
    run_all(queue)
    assert queue.out("logs", 1).split() == ["ff", "fe"]


# ---- bulk ------------------------------------------------------------------------------------------

def test_a_file_holds_a_command_a_line_or_json_lines(queue):
    lines = ["echo plain", "", json.dumps({"command": "echo named", "id": "job1", "max_retries": 5}),
             json.dumps({"command": "echo all", "name": "job2", "timeout": "90s", "backoff_base": 1.5, "cwd": str(queue.home),
                         "env": {"A": "b"}})]
    path = queue.dir / "jobs.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    queue.cli("enqueue", "--file", path)
    jobs = queue.json("list")
    assert [job["command"] for job in jobs] == ["echo all", "echo named", "echo plain"]
    assert [job["name"] for job in jobs] == ["job2", "job1", None]
    assert jobs[1]["max_retries"] == 5 and jobs[2]["max_retries"] == 3
    assert jobs[0]["cwd"] == str(queue.home)


def test_options_beside_a_file_hold_for_its_lines_or_are_refused(queue):
    done = queue.cli("enqueue", "--max-retries", 7, "--file", "-", check=False, stdin="exit 0\n" + json.dumps(
        {"command": "exit 0", "max_retries": 1}))
    if done.returncode:
        one_error_line(done)
        assert queue.json("list") == []
    else:
        assert [job["max_retries"] for job in queue.json("list")] == [1, 7]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_file_may_come_from_windows(queue, encoding, end):
    path = queue.dir / "jobs.txt"
    path.write_bytes(("echo \u20ac" + end + '{"command": "echo two"}' + end).encode(encoding))
    queue.cli("enqueue", "--file", path)
    assert [job["command"] for job in queue.json("list")] == ["echo two", "echo \u20ac"]


BAD_LINES = {
    "bad JSON": '{"command": "true"',
    "no command": '{"id": "x"}',
    "unknown name": '{"command": "true", "max_retires": 5}',
    "bad value": '{"command": "true", "max_retries": "many"}',
    "negative": '{"command": "true", "max_retries": -1}',
    "a boolean": '{"command": "true", "max_retries": true}',
    "bad duration": '{"command": "true", "timeout": "soon"}',
    "NaN": '{"command": "true", "backoff_base": NaN}',
    "name of digits": '{"command": "true", "id": "12"}',
    "empty array": '{"command": []}',
    "array of numbers": '{"command": ["echo", 1]}',
    "NUL": "echo a\0b",
}


def test_a_bulk_load_is_all_or_nothing_and_names_the_bad_line(queue):
    for name, line in BAD_LINES.items():
        text = "true\n\n" + line + "\ntrue\n"
        error = one_error_line(queue.cli("enqueue", "--file", "-", stdin=text, check=False))
        assert re.search(r"line 3\b", error), (name, error)
    done = queue.run(queue.command("enqueue", "--file", "-"), stdin=b"true\n\xff\xfe\ntrue\n" , binary=True, check=False)
    assert done.returncode == (2 if WINDOWS else 0) and b"Traceback" not in done.stderr  # there a command is text


def test_an_empty_file_is_no_error_or_a_clear_one(queue):
    done = queue.cli("enqueue", "--file", "-", stdin="\n\n", check=False)
    if done.returncode:
        one_error_line(done)
    assert queue.json("list") == []


@posix_only("pseudo-terminals")
def test_a_bulk_load_shows_a_progress_bar_on_a_terminal_only(queue):
    path = queue.dir / "jobs.txt"
    path.write_text("true\n" * 30000)
    shown = queue.terminal("enqueue", "--file", path)[1]
    assert "\r" in shown and re.search(r"30,?000", shown)
    assert "\r" not in queue.cli("enqueue", "--file", path).stderr


def test_a_json_object_is_taken_as_the_argument_too(queue):
    queue.cli("enqueue", '{"id":"job1","command":"sleep 2","max_retries":1,"state":"pending"}')
    job = queue.json("show", "job1")
    assert (job["command"], job["max_retries"], job["state"]) == ("sleep 2", 1, "pending")


def test_a_shell_group_is_no_json_object(queue):
    assert queue.json("show", queue.enqueue("{ echo x; }"))["command"] == "{ echo x; }"


JOBS = [{"id": "job1", "command": "echo 1", "max_retries": 1}, {"id": "job2", "command": ["echo", "a  b"], "env": {"A": "{\n[\""}}]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", [
    json.dumps(JOBS, indent=2), json.dumps(JOBS), "\ufeff" + json.dumps(JOBS, indent=4), "\n\n \t\n" + json.dumps(JOBS, indent=1),
    "\n".join(map(json.dumps, JOBS)), "\r\n".join("\ufeff" + json.dumps(job) for job in JOBS) + "\r\n",
    "\n".join(json.dumps(job, indent=2) for job in JOBS), "# a comment\n" + json.dumps(JOBS, indent="\t").replace("\n", "\r\n"),
    "\ufeff\n%s\n\n%s\n" % tuple(json.dumps(job, indent=2) for job in JOBS),
    "".join("\x1e%s\n" % json.dumps(job) for job in JOBS), "\xa0%s\n\u200b%s" % tuple(map(json.dumps, JOBS)),
    "[\n" + ",\n".join(map(json.dumps, JOBS)) + "\n]", "{\n\n" + json.dumps(JOBS[0])[1:] + "\n" + json.dumps(JOBS[1])])
def test_a_file_of_json_is_json_however_it_is_laid_out(queue, text):
    assert len(queue.cli("enqueue", "--file", "-", stdin=text).stdout.split()) == 2
    one, two = queue.json("list")[::-1]
    assert (one["name"], one["command"], one["max_retries"]) == ("job1", "echo 1", 1)
    assert two["name"] == "job2" and two["command"].startswith("echo ") and "a  b" in two["command"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("piped", [False, True])
def test_a_large_file_is_one_batch_whose_lines_may_refer_to_later_ones(queue, piped):
    lines = ["true # %d" % n for n in range(1, 12001)]
    lines[0] = '{"command": "first", "after": "last-one", "key": "k"}'
    lines[1] = '{"command": "second", "key": "k"}'
    lines[6999] = json.dumps([{"command": "item %d" % n} for n in range(4000)], indent=1)
    lines[-1] = '{"command": "end", "id": "last-one"}'
    text = "\n".join(lines)

    def enqueue(text, check=True):
        (queue.dir / "jobs").write_text(text)
        return queue.cli("enqueue", "--file", "-" if piped else "jobs", stdin=text if piped else None, check=check)
    refused = enqueue(text + '\n{\n"command": "x",\n"prio": }', check=False)
    assert refused.returncode == 2 and "(line 24004, column " in refused.stderr, refused.stderr
    refused = enqueue(text + '\n{"command": "x", "priority": "high"}', check=False)
    assert refused.returncode == 2 and "line 24002: " in refused.stderr, refused.stderr
    assert not queue.db.exists() or queue.json("list") == []
    assert [int(number) for number in enqueue(text).stdout.split()] == list(range(1, 16000))
    jobs = {command: (number, gate) for number, command, gate in queue.sql("SELECT id, command, gate FROM job")}
    assert jobs["first"] == (1, 3) and jobs["second"] == (2, 0) and jobs["end"] == (15999, 0)
    assert jobs["item 3999"] == (10999, 0) and jobs["true # 7001"] == (11000, 0)
    assert queue.sql("SELECT parent, child FROM dep") == [(15999, 1)]
    assert queue.sql("SELECT total, unfinished FROM batch") == [(15999, 15999)]


def test_json_and_commands_may_share_a_file_and_each_fault_is_told_by_its_line(queue):
    text = "echo first\n" + json.dumps(JOBS[0], indent=2) + "\n[ -f x ] && echo y\n[[ -f x ]] && echo z\n{ echo group; }\n"
    queue.cli("enqueue", "--file", "-", stdin=text)
    assert [job["command"] for job in queue.json("list")][::-1] == ["echo first", "echo 1", "[ -f x ] && echo y",
                                                                    "[[ -f x ]] && echo z", "{ echo group; }"]
    error = one_error_line(queue.cli("enqueue", "--file", "-", stdin=text.replace("job1", "job2") + '{"command": "x", "slots": 0}', check=False))
    assert "line 10: slots" in error and len(queue.json("list")) == 5


BAD_JSON = {  # -> what the message must name
    '{\n  "id": "job1",\n  "command": "echo 1"\n': "line 4",  # cut short
    '{\n  "id": "job1",\n  "command": "echo 1",\n}\n': "line 3" if sys.version_info >= (3, 13) else "line 4",  # a comma too many
    '[\n  {"command": "a"}\n  {"command": "b"}\n]': "line 3",
    '[{"command": "a"},\n {"command": "b", "slots": 0}]': "line 1, item 2",
    '[{"command": "a"},\n {"id": "b"}]': "line 1, item 2", '[\n  "make a",\n  "make b"\n]': "line 1, item 1",
    '["make", "test"]': "line 1, item 1", "[\n[]\n]": "line 1, item 1", "true\n[1,2]": "line 2, item 1", '[["true"]]': "line 1, item 1",
    "[-1]": "line 1, item 1", "[[\n]]": "line 1, item 1", "[\n]": "no job", "[]": "no job", "{}": "line 1",
    '{"command":': "line 1", '{"command": "a"} {"command": "b"}': "line 1", '{"command": "a"},\n{"command": "b"}': "line 1",
    '\ufeff\n{ "command": "a" ': "line 2", "{'command': 'a'}": "line 1", "{command: a}": "line 1", "{\necho a\n}": "line 1",
    "true\n[null]": "line 2, item 1", "['make', 'test']": "line 1", "{'id': 'x', 'command': 'a'}": "line 1", "{ id: x, command: a }": "line 1",
    "{\u201ccommand\u201d: \u201ca\u201d}": "line 1", '{"command": "a", "env": {"\\ud800": ""}}': "line 1: env",
    '{"command": "a", "env": {"A": "\\ud800"}}': "line 1: env", "true\n{\n": "line 2", "[\n" * 20000: "line 1", '{"a":' * 20000: "line 1"}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_what_begins_as_json_and_is_none_is_refused_whole_with_its_place(queue, text):
    for command in ("enqueue", "run") if BAD_JSON[text] != "no job" else ("enqueue",):  # `run` may have nothing to do
        error = one_error_line(queue.cli(command, "--file", "-", stdin=text, check=False))
        assert BAD_JSON[text] in error, error
    assert not queue.db.exists() or queue.json("list") == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", [
    '{"command":', '{"command": "true"', '{"command": "true"} extra', ' {\n"command":\n', '["true"]', '[{"command": "true"}]', "[]", "{}",
    '\ufeff{"command": 1', "{command:true}", "{'command': 'true'}", '{"command": "true"}\n{"command": "true"}'])
def test_an_argument_that_begins_as_json_and_describes_no_job_is_refused_everywhere(queue, text):
    job = queue.enqueue("--hold", "true")
    for words in (["enqueue", text], ["run", text], ["cron", "add", "x", "@daily", text], ["edit", str(job), "--command", text],
                  ["config", "set", "on_dead", text]):
        one_error_line(queue.cli(*words, check=False))
    assert [job["command"] for job in queue.json("list")] == ["true"]
    assert queue.json("cron", "list") == [] and queue.out("config", "get", "on_dead") == ""


def test_json_whose_quotes_the_shell_took_apart_is_refused(queue):
    for words in (['{command:', 'sleep 2}'], ['{', 'command:', 'sleep', '}'], ['{"command":', '"sleep 2"}']):
        assert "quotes" in one_error_line(queue.cli("enqueue", *words, check=False))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", ["[ -f x ]", '[ "$x" = y ] && true', "[[ -f x ]]", "{ echo x; }", "{\necho x\n}", "[a-z]*.sh", '"{}"', "#{"])
def test_shell_that_looks_a_little_like_json_stays_shell(queue, text):
    assert queue.json("show", queue.enqueue(text))["command"] == text


@pytest.mark.broad
def test_a_hundred_thousand_lines_are_loaded_in_seconds(queue):
    done = queue.cli("enqueue", "--file", "-", stdin="true\n" * 100000, timeout=30)
    assert "100" in done.stdout + done.stderr
    assert queue.json("status")["jobs"]["pending"] == 100000


def test_a_failed_enqueue_prints_no_id(queue):
    done = queue.cli("enqueue", "--name", "-x", "true", check=False)
    assert done.returncode == 2 and done.stdout == ""
