"""Bad input, fuzzed: no traceback, nothing half written, and no control character of a job's reaches a reader.

Most of it runs in this process through queuectl.main, which is what makes thousands of tries possible.
FUZZ=N tries N times as many, at random; without it the tries are the same each time.
"""
from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from conftest import wait_until

import queuectl

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings, strategies as st  # noqa: E402

POSIX = os.name != "nt"
MORE = int(os.environ.get("FUZZ", "0"))


def tries(count):
    return settings(max_examples=count * MORE if MORE else max(10, count // 4), deadline=None, derandomize=not MORE, database=None,
                    suppress_health_check=list(HealthCheck))


# ---- what goes in ----------------------------------------------------------------------------------

NASTY = ["", " ", "\0", "a\0b", "\x1b[2J\x1b[31m", "\x07", "\r\n", "a\nb", "\x7f", "\x9b1m", "\u202e", "\u2028", "\ufeff", "\udcff",
         "\ud800", "\udfff\ud800", "\U0010ffff", "é", "e\u0301", "日本語", "'", '"', "$(id)", "`id`", "%s%d%n", "{}", "{", "-", "--", "-1",
         "--json", "0", "007", "1e308", "1e309", "-1e309", "nan", "inf", "-inf", "NaN", "Infinity", "1_000", "٣", "½", "0x10",
         "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" * 400, "9" * 30, ".5", "5.", "+5", "1e", "1.5.5",
         "last", "all", "1-2", "1-", "null", "true", "none", "../../etc/passwd", "~", "a" * 300, "0d", "1w", "1ms", "1 s", "1y", "1S", "-1s",
         "1/0", "0/s", "10/m", "*", "* * * * *", "2024-02-30", "9999-12-31", "0001-01-01", "2026-12-01T09:00:00Z", "24:00"]
anything = st.one_of(st.sampled_from(NASTY), st.text(max_size=40),
                     st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF) | st.characters(max_codepoint=0x9F), max_size=20),
                     st.text(st.characters(), max_size=10))
arguments = anything.filter(lambda text: "\0" not in text and sendable(text))  # what a process can be started with
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -0.0, 1e308, 5e-324, 2**63, 2**63 - 1, -2**63, 10**400, 0.1]))
values = st.recursive(st.one_of(st.none(), st.booleans(), numbers, anything),
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4), max_leaves=8)


def sendable(text):
    try:
        os.fsencode(text)
        return True
    except UnicodeEncodeError:
        return False


# ---- what comes out --------------------------------------------------------------------------------

class Answer:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        return json.loads(self.out.decode("ascii"), parse_constant=refuse)


def refuse(word):
    raise AssertionError("%s is not JSON" % word)


class Here:
    """The program in this process, on a queue of its own."""

    def __init__(self):
        base = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = tempfile.mkdtemp(prefix="fuzz-", dir=base)
        self.db = os.path.join(self.folder, "queue.db")

    def call(self, *args, stdin=b"", clean=True, partial=False):
        """Runs a command line; whatever it was, the answer must be a decent one.  partial: it may fail half-way through its output."""
        streams = sys.stdin, sys.stdout, sys.stderr
        out, err = io.BytesIO(), io.BytesIO()
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
        sys.stdout, sys.stderr = (io.TextIOWrapper(end, "utf-8", newline="\n", write_through=True) for end in (out, err))
        try:
            code = queuectl.main(["--db", self.db, *args])
        except SystemExit as error:
            code = error.code
        finally:
            keep = sys.stdout, sys.stderr
            sys.stdin, sys.stdout, sys.stderr = streams
            for stream in keep:
                stream.flush()
                stream.detach()
        answer = Answer(code or 0, out.getvalue(), err.getvalue())
        assert answer.code in (0, 1, 2), (args, answer.code)
        assert_clean(answer.err, args)
        if clean:
            assert_clean(answer.out, args)
        if answer.code == 2:
            found = args[0] in ("doctor", "health") and answer.err == b""  # a fault that was found is no error
            assert found or answer.err.startswith(b"queuectl: error: ") and answer.err.count(b"\n") == 1, (args, answer.err)
            assert found or partial or answer.out == b"", (args, answer.out)
        return answer

    def rows(self, table="job"):
        connection = sqlite3.connect(self.db)
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            return connection.execute("SELECT * FROM " + table).fetchall()
        except sqlite3.OperationalError:  # there is no queue yet
            return []
        finally:
            connection.close()

    def content(self):
        return [self.rows(table) for table in ("job", "env", "queue", "dep", "batch", "keylock", "schedule", "config", "history")]

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def assert_clean(data, about):
    """Valid UTF-8 without any character that a terminal obeys."""
    text = data.decode("utf-8")
    bad = [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))]
    assert not bad, (about, bad, text[:500])


@pytest.fixture(scope="module")
def here():
    made = Here()
    yield made
    made.close()


@pytest.fixture
def fresh():
    made = Here()
    yield made
    made.close()


def everything_shows(here, job):
    """Every view that has something of the job in it works, and is clean."""
    for args in (["list", "--limit", "5"], ["show", str(job)], ["explain", str(job)], ["logs", str(job)]):
        assert here.call(*args).code == 0
    here.call("list", "--limit", "5", "--json").json()
    return here.call("show", str(job), "--json").json()


# ---- commands ----------------------------------------------------------------------------------------

@pytest.mark.broad
@tries(50)
@given(words=st.lists(arguments, min_size=1, max_size=4))
@example(words=["{"])
@example(words=['{"command": "x"}'])
@example(words=["--", "-x"])
@example(words=["a\nb"])
@example(words=["\x1b]0;owned\x07"])
@example(words=["\udcff\udcfe"])
def test_any_words_as_a_command_are_stored_unchanged_or_refused_in_one_line(here, words):
    before = here.content()
    answer = here.call("enqueue", "--", *words)
    if answer.code:
        assert here.content() == before
        return
    shown = everything_shows(here, int(answer.out))
    if len(words) > 1 and POSIX:
        with queuectl.Store(here.db) as queue:
            stored = queue.look.job(int(answer.out)).command
        assert [os.fsencode(word) for word in shlex.split(stored)] == [os.fsencode(word) for word in words]
        assert shown["command"] == stored.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@tries(50)
@given(command=st.one_of(anything, values), name=anything)
def test_any_command_through_the_api_is_stored_or_a_user_error(here, command, name):
    with queuectl.Store(here.db) as queue:
        before = here.content()
        try:
            job = queue.enqueue(command)
        except queuectl.UserError as error:
            assert_clean((str(error) + "\n").encode(), command)
            assert here.content() == before
            return
        json.dumps(queue.look.job(job).to_dict(), allow_nan=False)
    everything_shows(here, job)


# ---- names --------------------------------------------------------------------------------------------

@tries(50)
@given(name=arguments)
def test_any_name_finds_its_job_or_is_refused(here, name):
    before = here.content()
    answer = here.call("enqueue", "--name=" + name, "exit 0")
    if answer.code:
        assert here.content() == before
        return
    job = int(answer.out)
    assert here.call("show", name, "--json").json()["id"] == job
    assert here.call("enqueue", "--name=" + name, "exit 0").code == 2  # taken
    assert here.call("cancel", name).code == 0
    everything_shows(here, job)


@tries(60)
@given(ref=arguments, verb=st.sampled_from(["show", "explain", "logs", "cancel", "hold", "release", "dlq retry", "dlq purge", "batch show"]))
def test_any_word_as_an_id_is_found_or_refused(here, ref, verb):
    answer = here.call(*verb.split(), "--", ref)
    assert answer.code in (0, 1, 2)


# ---- bulk files ------------------------------------------------------------------------------------------

OPTIONS = sorted(queuectl.JOB_OPTIONS) + ["id", "command", "p", "state", "attempts", "nonsense", "max-retries"]
objects = st.dictionaries(st.sampled_from(OPTIONS), values, max_size=4).map(lambda job: dict({"command": "exit 0"}, **job))


@tries(120)
@given(job=objects)
@example(job={"command": "exit 0", "priority": float("nan")})
@example(job={"command": "exit 0", "delay": float("inf")})
@example(job={"command": "exit 0", "delay": 1e300})
@example(job={"command": "exit 0", "env": {"A\0": "b"}})
@example(job={"command": "exit 0", "env": {"": "b"}})
@example(job={"command": "exit 0", "cwd": "\0"})
@example(job={"command": "exit 0", "at": "9999-12-31T23:59:59"})
@example(job={"command": "exit 0", "name": "\ud800"})
@example(job={"command": ["\ud800"]})
@example(job={"command": "exit 0", "after": [10**400]})
@example(job={"command": "exit 0", "after": "-5"})
@example(job={"command": "exit 0", "retry_on": "9" * 5000})
@example(job={"command": "exit 0", "retry_on": [1, 2]})
@example(job={"command": "exit 0", "timeout": True})
def test_any_values_of_a_json_job_are_taken_or_refused_as_a_whole(here, job):
    text = json.dumps(job)
    before = here.content()
    answer = here.call("enqueue", "--file", "-", stdin=b"exit 0\n" + text.encode() + b"\n")
    if answer.code:
        assert here.content() == before
        assert b"line 2" in answer.err, answer.err
        return
    [_, job] = [int(word) for word in answer.out.split()]
    shown = everything_shows(here, job)
    assert shown["max_retries"] >= 0


@pytest.mark.broad
@tries(80)
@given(data=st.one_of(st.binary(max_size=200), anything.map(lambda text: text.encode("utf-8", "surrogatepass")),
                      st.lists(anything, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))))
@example(data=b"\xff\xfe{\x00}\x00")
@example(data=b"exit 0\r\nexit 1\r\n")
@example(data=b'{"command": "a", "command": "b"}')
@example(data=b'{"command"')
@example(data=b"{'command': 'x'}")
@example(data=b'{"command": "\\u0000"}')
@example(data=b'{"command": "\\ud800"}')
def test_any_bytes_as_a_bulk_file_are_taken_or_refused_as_a_whole(here, data):
    before = here.content()
    answer = here.call("enqueue", "--file", "-", stdin=data)
    if answer.code:
        assert here.content() == before
    else:
        for job in answer.out.split():
            everything_shows(here, int(job))


@pytest.mark.parametrize("text", ["[" * 100000, '{"command":' * 50000, '{"command": "x", "env": ' + '{"a":' * 20000 + "1" + "}" * 20001,
                                  '{"command": %s}' % ("[" * 20000 + "]" * 20000), '{"command": "x", "priority": %s}' % ("9" * 10000),
                                  '{"command": "x", "timeout": 1e999}', '{"command": "x", "timeout": -1e999}',
                                  '{"command": "x", "timeout": NaN}', "{" * 1000000], ids=lambda text: text[:25])
def test_deep_json_and_endless_numbers_are_refused_in_one_line(here, text):
    before = here.content()
    answer = here.call("enqueue", "--file", "-", stdin=b"exit 0\n" + text.encode())
    if text[0] == "{" and text[1] == '"':
        assert answer.code == 2 and len(answer.err) < 500 and here.content() == before
        if text[-1] == "}":  # elsewhere it may be a command of the shell
            assert here.call("enqueue", text).code == 2 and here.content() == before


# ---- numbers, durations, settings -------------------------------------------------------------------------

PARSERS = [queuectl.parse_duration, queuectl.parse_optional_duration, queuectl.parse_size, queuectl.parse_when, queuectl.parse_codes,
           queuectl.parse_name, queuectl.parse_text, queuectl.parse_refs, queuectl.parse_env, queuectl.parse_rate, queuectl.parse_flag,
           lambda raw, what: queuectl.parse_number(raw, what, -5, 10**6), lambda raw, what: queuectl.parse_number(raw, what, 0, 9, int),
           lambda raw, what: queuectl.parse_choice(raw, what, ("a", "b")), *[option.parse for option in queuectl.JOB_OPTIONS.values()],
           *[setting.parse for setting in queuectl.SETTINGS.values()]]


@tries(400)
@given(raw=st.one_of(values, anything), parser=st.sampled_from(PARSERS))
def test_every_parser_takes_anything_and_knows_only_one_kind_of_mistake(raw, parser):
    try:
        parser(raw, "it")
    except queuectl.UserError as error:
        assert_clean(str(error).encode(), raw)
        assert len(str(error)) < 1000


@tries(300)
@given(raw=st.one_of(anything, numbers, st.builds("{}{}".format, st.one_of(st.integers(), st.floats()),
                                                 st.sampled_from(["", "ms", "s", "m", "h", "d", "w", "y", " s", "S"]))))
def test_a_duration_is_finite_not_negative_and_reads_back_as_it_is_written(raw):
    try:
        seconds = queuectl.parse_duration(raw)
    except queuectl.UserError:
        return
    assert math.isfinite(seconds) and 0 <= seconds <= queuectl.FOREVER_S
    assert queuectl.parse_duration(queuectl.duration_text(seconds)) == pytest.approx(seconds, rel=1e-9, abs=1e-12)
    assert len(queuectl.span(seconds)) <= 8


@tries(120)
@given(key=st.sampled_from(sorted(queuectl.SETTINGS)), raw=arguments)
def test_any_value_of_a_setting_is_refused_or_reads_back(fresh_config, key, raw):
    here = fresh_config
    before = here.rows("config")
    answer = here.call("config", "set", key, "--", raw) if raw.startswith("-") else here.call("config", "set", key, raw)
    if answer.code:
        assert here.rows("config") == before
        return
    text = here.call("config", "get", key, clean=False).out.decode()[:-1]  # as it is, for scripts
    assert here.call("config", "set", key, text).code == 0
    assert here.call("config", "get", key, clean=False).out.decode()[:-1] == text
    here.call("config", "list", "--json").json()
    assert here.call("config", "list").code == 0
    job = here.call("enqueue", "exit 0")  # whatever was taken must not be in the way of a job
    assert job.code == 0
    everything_shows(here, int(job.out))


@pytest.fixture(scope="module")
def fresh_config():
    made = Here()
    yield made
    made.close()


# ---- whole command lines -----------------------------------------------------------------------------------

BLOCKING = {"worker start", "run", "top", "wait", "install", "_worker", "backup", "worker stop", "export", "import", "purge", "log", "attach"}


@tries(150)
@given(data=st.data())
def test_any_command_line_is_answered_decently(here, data):
    """Any command with any of its options and any words; those that would go on for ever are left out."""
    found = data.draw(st.sampled_from([c for c in queuectl.COMMANDS if " ".join(c.words) not in BLOCKING]))
    flags = [flag for action in queuectl.build_parser(found)._actions for flag in action.option_strings
             if flag not in ("-f", "--follow", "--db", "--file", "--watch", "-w", "--output", "-o", "--wait")]
    words = data.draw(st.lists(st.one_of(st.sampled_from(flags or ["--json"]), arguments.filter(lambda a: not a.startswith(("/", "~", "..", "-"))),
                                         st.sampled_from(["1", "2", "3", "--all"])), max_size=5))
    here.call(*found.words, *words, clean="export" not in found.words and "logs" not in found.words)


@tries(60)
@given(words=st.lists(arguments.filter(lambda text: not text.startswith("--db")), min_size=1, max_size=3))
@example(words=["workerr", "start"])
@example(words=["\x1b[31m"])
def test_any_words_that_are_no_command_are_refused_with_a_hint(here, words):
    if words[0] not in {c.words[0] for c in queuectl.COMMANDS} | {"-h", "--help", "help", "-V", "--version"}:
        assert here.call(*words).code == 2


# ---- what stands in the database ---------------------------------------------------------------------------

stored = st.one_of(st.none(), st.integers(-2**63, 2**63 - 1), st.floats(), st.binary(max_size=30),
                   anything.map(lambda text: text.encode("utf-8", "replace").decode()))


@pytest.fixture(scope="module")
def two_jobs():
    made = Here()
    assert made.call("enqueue", "--file", "-", stdin=b"exit 0\nexit 1\n").code == 0
    yield made
    made.close()


@pytest.mark.broad
@tries(150)
@given(column=st.sampled_from([c for c in queuectl.JOB_COLUMNS if c != "id"]), value=stored)
def test_any_value_in_any_column_of_a_job_is_shown_or_refused_but_never_a_traceback(two_jobs, column, value):
    here = two_jobs
    connection = sqlite3.connect(here.db)
    [before] = connection.execute("SELECT %s FROM job WHERE id=1" % column).fetchone()
    try:
        try:
            connection.execute("UPDATE job SET %s=? WHERE id=1" % column, (value,))
        except (sqlite3.IntegrityError, OverflowError):
            return
        connection.commit()
        for args in (["list"], ["list", "--json"], ["list", "--state", "pending"], ["show", "1"], ["show", "1", "--json"], ["explain", "1"],
                     ["status"], ["status", "--json"], ["dlq", "list"], ["logs", "1"], ["doctor"], ["batch", "list"], ["batch", "show", "1"]):
            answer = here.call(*args, partial=True)
            if "--json" in args and answer.code == 0:
                answer.json()
    finally:
        connection.rollback()
        connection.execute("UPDATE job SET %s=? WHERE id=1" % column, (before,))
        connection.commit()
        connection.close()


@pytest.mark.broad
@tries(60)
@given(key=st.one_of(st.sampled_from(sorted(queuectl.SETTINGS)), anything.map(lambda t: t.encode("utf-8", "replace").decode())), value=stored)
def test_any_value_in_the_table_of_settings_is_taken_or_refused(value, key):
    here = Here()
    try:
        here.call("config", "set", "timeout", "5")
        connection = sqlite3.connect(here.db)
        try:
            connection.execute("INSERT OR REPLACE INTO config(key, value) VALUES(?, ?)", (key, value))
        except (sqlite3.IntegrityError, OverflowError):
            connection.close()
            return
        connection.commit()
        connection.close()
        for args in (["config", "list"], ["config", "list", "--json"], ["enqueue", "exit 0"], ["status"], ["doctor"], ["config", "get", "timeout"]):
            here.call(*args)
        if key in queuectl.SETTINGS:  # a user can put it right
            assert here.call("config", "unset", key).code == 0
            assert here.call("enqueue", "exit 0").code == 0
    finally:
        here.close()


@tries(60)
@given(content=st.binary(max_size=3000))
@example(content=b"SQLite format 3\0")
@example(content=b"SQLite format 3\0" + b"\x10\x00\x02\x02\x00\x40\x20\x20" + b"\0" * 4072)
@example(content=b"\0" * 4096)
@example(content=b"x" * 8192)
def test_any_bytes_as_the_database_are_refused_and_left_alone(content):
    here = Here()
    try:
        Path(here.db).write_bytes(content)
        for args in (["list"], ["enqueue", "exit 0"], ["status", "--json"], ["doctor"]):
            answer = here.call(*args)
            if len(content.strip(b"\0")) > 1 and args != ["doctor"]:
                assert answer.code == 2, (args, answer.out)
        if len(content.strip(b"\0")) > 1:  # zeros, and for SQLite a single byte, count as empty
            assert Path(here.db).read_bytes() == content
    finally:
        here.close()


# ---- what jobs print ------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@tries(300)
@given(data=st.one_of(st.binary(max_size=60), anything.map(lambda text: text.encode("utf-8", "surrogatepass")),
                      st.lists(st.sampled_from([b"\x1b", b"[", b"31", b";", b"m", b"J", b"]0;x\x07", b"\r", b"\n", b"\xff", b"\xc3", b"\x9b", b"8", b"P"]),
                               max_size=12).map(b"".join)))
def test_of_a_jobs_output_only_colours_pass_to_a_terminal(data):
    text = data.decode("utf-8", "surrogateescape")
    for colour in (True, False):
        shown = queuectl.safe_for_terminal(text, colour)
        rest = COLOUR.sub("", shown) if colour else shown
        assert_clean(rest.replace("\t", "").replace("\r\n", "\n").encode(), data)


EVIL = b"\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b[0m\xff\xfe\x00\x9b1J\rover\x08\x08\xc3\xa9\xe2\x80\xae.\n"


@pytest.mark.skipif(not POSIX, reason="POSIX only: a terminal of its own, and arguments that are bytes")
def test_evil_output_and_evil_commands_reach_no_terminal_and_no_json_raw(queue):
    (queue.dir / "evil").write_bytes(EVIL)
    command = "cat evil; : \x1b[2J\x07\u202e\udcff\nexit 1"
    queue.cli("config", "set", "max_retries", 0)
    done = queue.cli("run", command, check=False, binary=True)
    assert done.returncode == 1 and done.stdout == EVIL  # no terminal: the bytes as they are
    assert_clean(done.stderr, "run")
    assert queue.cli("logs", 1, binary=True).stdout == EVIL  # no terminal: the bytes as they are
    foreground = queue.cli("worker", "start", "--foreground", "--drain", binary=True)
    assert_clean(foreground.stdout + foreground.stderr, "worker start")
    for args in (["list"], ["show", "1"], ["dlq", "list"], ["status"], ["logs", "1"], ["explain", "1"], ["show", "1", "--json"]):
        code, text = queue.terminal(*args)
        assert code == 0, (args, text)
        assert_clean(COLOUR.sub("", text).replace("\t", "").encode("utf-8"), args)
    for args in (["list"], ["show", "1"], ["dlq", "list"], ["status"]):
        raw = queue.cli(*args, "--json", binary=True).stdout
        assert raw.isascii() and not re.search(rb"[\0-\x09\x0b-\x1f\x7f]", raw)
        json.loads(raw)
    code, text = queue.terminal("run", command)
    assert code == 1
    assert_clean(COLOUR.sub("", re.sub(r"\r\x1b\[K", "", text)).replace("\t", "").replace("\r", "").encode("utf-8"), "run on a terminal")


# ---- by subprocess: what only a real process can be given ----------------------------------------------------------

@pytest.mark.skipif(not POSIX, reason="POSIX only: arguments that are bytes")
def test_arguments_reach_a_real_program_unchanged_whatever_bytes_they_are(queue):
    words = ["", " ", "a  b", "\n", "\t'\"$HOME`id`\\", "\udcff\udc80", "é", "\x1b[31m", "*", "-n", "--", "!!", "#", "a;b&c|d", "%s", "{", "\x7f"]
    job = queue.enqueue(sys.executable, "-c", "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))", *words)
    queue.cli("worker", "start", "--foreground", "--drain")
    assert queue.cli("logs", job, binary=True).stdout.split(b"\0") == [os.fsencode(word) for word in words]


@pytest.mark.broad
@pytest.mark.skipif(not POSIX, reason="POSIX only: a shell that takes them")
def test_a_command_of_a_mebibyte_and_one_of_ten_thousand_arguments_run(queue):
    big = "exit 3 # " + "x" * 2**20
    many = ["arg%d" % n for n in range(10000)]
    [first] = map(int, queue.cli("enqueue", "--file", "-", stdin=json.dumps({"command": big, "max_retries": 0}) + "\n").stdout.split())
    second = queue.enqueue(sys.executable, "-c", "import sys; print(len(sys.argv[1:]), sys.argv[-1])", *many)
    third = queue.enqueue("--max-retries", 0, "printf %s " + "y" * 100000 + " | wc -c")
    queue.cli("worker", "start", "--foreground", "--drain", status=1)
    assert queue.job(first).error == "exit 3"
    assert queue.cli("logs", second).stdout == "10000 arg9999\n"
    assert queue.cli("logs", third).stdout.strip() == "100000"
    for args in (["list"], ["list", "--json"], ["show", str(first)], ["show", str(first), "--json"]):
        queue.cli(*args)


@pytest.mark.broad
@pytest.mark.skipif(not POSIX, reason="POSIX only: names that are bytes")
def test_environments_directories_and_databases_of_any_bytes_work(queue):
    folder = os.path.join(os.fsencode(str(queue.dir)), b"d\xff\n\x1b[31m?#%20'")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    program = [*queue.program, "--db", os.fsdecode(os.path.join(folder, b"q\xff?#.db"))]
    env = dict(queue.env, STRANGE="a\nb\x1b\udcff", EMPTY="")
    job = queue.run([*program, "enqueue", "pwd; printf '%s|%s' \"$STRANGE\" \"$EMPTY\""], cwd=os.fsdecode(folder), env=env)
    done = queue.run([*program, "worker", "start", "--foreground", "--drain"], binary=True)
    assert_clean(done.stdout + done.stderr, "worker start")
    logs = queue.run([*program, "logs", job.stdout.strip()], binary=True).stdout
    assert logs == folder + b"\na\nb\x1b\xff|"
    for args in (["show", "1"], ["show", "1", "--json"], ["list"], ["status"], ["doctor"]):
        done = queue.run([*program, *args], binary=True)
        assert_clean(done.stdout + done.stderr, args)


def test_a_real_process_answers_the_worst_of_it_without_a_traceback(queue):
    worst = [["enqueue"], ["enqueue", ""], ["enqueue", "--name", "\x1b[31m", "x"], ["enqueue", '{"command": }'],
             ["list", "--state", "\x1b"], ["list", "--limit", "nan"], ["list", "--limit", "-1"], ["list", "--limit", "9" * 400],
             ["show", "9" * 400], ["show", ""], ["show", "-1"], ["worker", "start", "--count", "1e9"], ["worker", "start", "--count", "٣"],
             ["logs", "1", "--attempt", "-1"], ["config", "set", "timeout", "\udcff"], ["config", "get", "\x1b"], ["\x1b[2J"], ["--db"],
             ["--db="], ["dlq", "retry", "1" * 30], ["dlq", "purge"], ["cancel", "1-99999999999999999999"], ["run", ""], ["backup", ""]]
    for args in worst:
        done = queue.cli(*args, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (args, done.returncode, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and done.stdout == "", (args, done.stderr)
        assert_clean(done.stderr.encode("utf-8", "surrogateescape"), args)
    assert wait_until(lambda: queue.sql("SELECT count(*) FROM job") == [(0,)] if queue.db.exists() else True)
