"""What a job is run by: simple lines without a shell, all others by sh, and what arrives of the enqueuer's environment."""
from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from conftest import SCRIPT, posix_only, wait_until

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [posix_only("cmd.exe runs every job on Windows"), pytest.mark.core]

NAMES = ["spring.db", "BASH_FUNC_f%%", "BASH_FUNC_old()", "a b", "a-b", "1st", "%PATH%", "ä", "x\ny", "x\ty", "$HOME", "`id`", "'", '"', "\\", "*",
         "-n", "--", "#", "\x01", "\x7f", "\udcff\udcfe", "é.ü", "a/b", ":", "[0]", "x[0]", "{}", "~", "!", ";", "(", "PWD.x", "IFS.", "npm_config_@a:b"]
VALUES = ["", "=", "a=b", "two\nlines", "\udcff", "$HOME `id` $(id)", "() {  echo f\n}", "' \"", "\\", "-", " ", "ä" * 50, "x" * 5000, "\t", "\x1b[0m"]


def odd_variables():
    chance = random.Random(8)
    letters = "abcXYZ019_.-%+@:/ äé\udc80\n\t~!$*?'\"\\"
    found = {name: chance.choice(VALUES) for name in NAMES}
    while len(found) < 200:
        found["odd" + "".join(chance.choice(letters) for _ in range(chance.randint(1, 12)))] = chance.choice(VALUES)
    return found


def environment_of(queue, job):
    """{name: value} that `env -0` printed in a job."""
    text = (queue.files / "logs" / "0" / ("%d.1.log" % job)).read_bytes().decode("utf-8", "surrogateescape")
    return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


def drained(queue, **options):
    queue.start(1, "--foreground", "--drain", check=False, **options)  # 1 if a job died


def test_variables_whose_names_are_no_identifiers_arrive_as_they_were(queue):
    odd = odd_variables()
    job = queue.enqueue("env", "-0", env=odd)
    drained(queue)
    assert queue.job(job).state == "completed"
    arrived = environment_of(queue, job)
    assert {name: arrived.get(name) for name in odd} == odd
    had = queue.environment(odd)
    mine = {"QUEUECTL_JOB_ID", "QUEUECTL_ATTEMPT", "QUEUECTL_DB", "PWD", "_", "LC_CTYPE"}
    assert {k: v for k, v in arrived.items() if k not in mine} == {k: v for k, v in had.items() if k not in mine}


@pytest.mark.broad
@pytest.mark.skipif(not shutil.which("bash"), reason="POSIX only: bash")
def test_odd_names_arrive_where_a_shell_must_run_too_and_the_shell_stays_what_it_is(queue):
    odd = dict(odd_variables(), **{"BASH_FUNC_greet%%": "() {  echo hello $1\n}"})
    lines = ["env -0 | cat", "true && exec env -0", "bash -c 'greet you' | cat", "greet you; echo $?", "echo 'a\\tb' | cat", "kill -9 $$ | cat"]
    jobs = [queue.enqueue("--max-retries", 0, line, env=odd) for line in lines]
    plain = [queue.enqueue("--max-retries", 0, line) for line in lines]  # with no odd name: sh itself
    drained(queue)
    for job in jobs[:2]:
        arrived = environment_of(queue, job)
        assert {name: arrived.get(name) for name in odd} == odd
    assert queue.out("logs", jobs[2]) == "hello you"
    assert queue.out("logs", jobs[3]).splitlines()[-1] == "127", "sh knows no such function"
    assert queue.out("logs", jobs[4]) == queue.out("logs", plain[4])
    assert queue.job(jobs[5]).error == queue.job(plain[5]).error


@pytest.mark.broad
@pytest.mark.skipif(not shutil.which("bash"), reason="POSIX only: bash")
def test_odd_names_pass_through_the_installed_command_of_a_python_that_the_kernel_cannot_name(queue):
    odd = dict(odd_variables(), **{"BASH_FUNC_greet%%": "() {  echo hello $1\n}"})
    base = getattr(sys, "_base_executable", sys.executable)
    for name in ("a python", "long" * 40):
        python = queue.dir / name
        python.symlink_to(base)
        launcher = "import sys; sys.executable = sys._base_executable = %r; sys.path.insert(0, %r); import queuectl; sys.exit(queuectl.main())"
        queue.run([sys.executable, "-c", launcher % (str(python), str(SCRIPT.parent)), "install"])
        command = queue.home / ".local" / "bin" / "queuectl"
        assert '"%s"' % python in command.read_text()
        job = int(queue.run([str(command), "--db", str(queue.db), "enqueue", "env", "-0"], env=odd).stdout)
        drained(queue)
        arrived = environment_of(queue, job)
        assert {name: arrived.get(name) for name in odd} == odd


def test_an_exported_function_is_there_for_the_bash_that_a_job_runs(queue):
    job = queue.enqueue("bash", "-c", "greet you", env={"BASH_FUNC_greet%%": "() {  echo hello $1\n}"})
    drained(queue)
    assert queue.job(job).state == "completed"
    assert queue.out("logs", job) == "hello you"


def test_an_exported_function_of_a_programs_name_is_run_where_sh_would_run_it_and_arrives_where_not(queue):
    function = {"BASH_FUNC_env%%": "() {  echo the function\n}"}
    would = queue.run(["sh", "-c", "env"], env=function).stdout == "the function\n"
    job = queue.enqueue("env", env=function)
    drained(queue)
    assert queue.job(job).state == "completed"
    assert (queue.out("logs", job) == "the function") == would
    assert would or "BASH_FUNC_env%%=() {  echo the function" in queue.out("logs", job)


def test_odd_names_given_by_an_option_or_json_arrive_too(queue):
    by_option = queue.enqueue("--env", "spring.db=a=b", "--env", "x y=", "env", "-0")
    queue.cli("enqueue", "--file", "-", stdin='{"command": "env -0\\n", "env": {"a-b": "c\\nd", "ä": "ü"}}')
    drained(queue)
    found = environment_of(queue, by_option)
    assert (found["spring.db"], found["x y"]) == ("a=b", "")
    found = environment_of(queue, by_option + 1)
    assert (found["a-b"], found["ä"]) == ("c\nd", "ü")


def test_a_job_gets_no_locale_that_only_python_had(queue):
    bare = {name: None for name in ("LANG", "LC_ALL", "LC_CTYPE")}
    plain, own = queue.enqueue("env", "-0", env=bare), queue.enqueue("env", "-0", env=dict(bare, LC_CTYPE="C.UTF-8"))
    drained(queue)
    assert "LC_CTYPE" not in environment_of(queue, plain)
    assert environment_of(queue, own)["LC_CTYPE"] == "C.UTF-8"


def test_a_variable_without_a_name_does_no_harm(queue):
    job = queue.enqueue("env", "-0")
    queue.sql("UPDATE env SET data=CAST('=x' || char(0) || '=y=z' || char(0) || CAST(data AS TEXT) AS BLOB)")
    drained(queue, timeout=20)
    assert queue.job(job).state == "completed"


def test_a_job_sees_its_directory_in_pwd(queue, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    env = {"PWD": str(tmp_path / "link")}
    by_link = queue.enqueue("env", "-0", cwd=str(tmp_path / "link"), env=env)
    lied = queue.enqueue("env", "-0", cwd=str(tmp_path), env=env)
    moved = queue.enqueue("--cwd", str(tmp_path / "real"), "env", "-0", env={"PWD": None})
    drained(queue)
    assert environment_of(queue, by_link)["PWD"] == str(tmp_path / "link")
    assert environment_of(queue, lied)["PWD"] == str(tmp_path)
    assert environment_of(queue, moved)["PWD"] == str(tmp_path / "real")


# ---- simple lines: as sh runs them ---------------------------------------------------------------

def told(code, text):
    """Alike for a program that a signal ended, and for one of which an sh tells that, as dash does, which waits for it."""
    for signal, word in ((9, b"Killed\n"), (15, b"Terminated\n")):
        if code == 128 + signal and text.endswith(word):
            return -signal, text[:-len(word)]
    return code, text


class Folder:
    """A directory with programs of every kind, and the environment that finds them."""

    def __init__(self, path):
        self.path = path
        for name in ("bin", "sub", "dir prog", "bin/adir"):
            (path / name).mkdir()
        self.program("bin/hi", "#!/bin/sh\necho hi \"$0\" \"$#\" \"$@\"\n")
        self.program("sub/here", "#!/bin/sh\nprintf '<%s>' \"$0\" \"$@\"\nexit 3\n")
        self.program("local", "#!/bin/sh\necho local \"$0\"\n")
        self.program("bin/bare", "echo bare \"$0\" \"$@\"\nexit 5\n")
        self.program("bin/empty", "")
        self.program("bin/lost", "#!/nowhere/sh\n")
        self.program("bin/denied", "#!/bin/sh\necho never\n", 0o644)
        self.program("sub/denied", "#!/bin/sh\necho later\n")
        self.program("bin/killed", "#!/bin/sh\nkill -9 $$\n")
        self.program("bin/termed", "#!/bin/sh\nkill -15 $$\n")
        self.program("bin/binary", "\x7fELF no program")
        self.program("bin/echo", "#!/bin/sh\nexit 77\n")
        self.program("bin/if", "#!/bin/sh\necho if\n")
        self.program("bin/a=b", "#!/bin/sh\necho a=b\n")
        self.program("bin/environ", "#!/bin/cat /proc/self/environ\n")  # prints its environment, itself, and that its arguments are no files
        self.env = {"PATH": "%s/bin:sub::/usr/bin:/bin" % path, "HOME": str(path), "LC_ALL": "C"}

    def program(self, name, text, mode=0o755):
        (self.path / name).write_text(text)
        (self.path / name).chmod(mode)

    def by_sh(self, line, env):
        done = subprocess.run(["sh", "-c", line], executable="/bin/sh", cwd=str(self.path), env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return told(done.returncode, done.stdout)

    def by_us(self, line, env):
        path = self.path.parent / "output"
        output = queuectl.OS.open_output(str(path))
        here = os.getcwd()
        try:
            os.chdir(str(self.path))
            env = {os.fsencode(k): os.fsencode(v) for k, v in env.items()}
            process = queuectl.OS.spawn(queuectl.ProcessSpec(line, env, output, str(path) + ".cmd"))
            _, status = os.waitpid(process.pid, 0)
        finally:
            os.chdir(here)
            os.close(output)
        text = path.read_bytes()
        path.unlink()
        return told(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), text)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "jobs").mkdir()
    return Folder(tmp_path / "jobs")


PROGRAMS = ["hi", "here", "local", "bare", "empty", "lost", "denied", "killed", "termed", "binary", "adir", "missing", "./local", "sub/here", "./sub",
            "/bin/echo", "/usr/bin/printf", "bin/bare", "./missing", "dir prog", "echo", "if", "a=b", "true", "false", "pwd", "printf", "test", "[",
            ":", "kill", "cat", "basename", "expr", "sub/here/x", "~/local", "bin/denied", "env", "printenv", "%1", "-x", "{", "!", "command hi"]
WORDS = ["a", "1", "-n", "--", "''", '""', "'a b'", '"a b"', "a\\ b", "'*'", "*", "?", "s*", "[l]ocal", "~", "$HOME", '"$HOME"', "\\$HOME", "'$HOME'",
         "`echo x`", "$(echo x)", "#c", "a#c", "'#'", "a=b", "{a,b}", "\\\\", '"\\""', '"\\a"', "'it'\"'\"'s'", "x\\'y", ";", "&&", "||", ">out", "<local",
         "2>&1", "(", ")", "!", "\\!", "'", '"', "\\", "a'b'\"c\"d", "%s", "'%s\\n'", "ä", "'\udcff'", "\t", "  ", "''''", "-e", "\\n", "^", "a\\\nb",
         "'a\nb'", "x=~", "a:~", "1+1", "@", ",", "\u00a0", "\x81"]
SUFFIXES = [""] * 9 + ["\n", " \n\n", "\\\n", "\\ ", "\nhi x", "\r"]
PREFIXES = [""] * 12 + ["X=1 ", "PATH=sub ", " ", "\t", "! ", "exec ", "#", "'X=1' ", "\n"]


def random_line(chance):
    program = chance.choice(PROGRAMS)
    program = "'%s'" % program if " " in program and "command" not in program or chance.random() < 0.05 else program
    words = [chance.choice(WORDS) if chance.random() < 0.7 else chance.choice(PROGRAMS) for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 5)))]
    return chance.choice(PREFIXES) + chance.choice((" ", " ", " ", "  ", "\t")).join([program] + words) + chance.choice(SUFFIXES)


def compare(folder, lines):
    """What is different from sh, as (line, by sh, by us); and for how many lines no shell was needed."""
    different, direct = [], 0
    for line in lines:
        want, got = folder.by_sh(line, folder.env), folder.by_us(line, folder.env)
        if sorted(want[1].splitlines()) != sorted(got[1].splitlines()) or want[0] != got[0]:
            different.append((line, want, got))
        direct += queuectl.sh_words(line) is not None
    return different, direct


def test_simple_lines_do_what_sh_would_do(folder):
    chance = random.Random(4)
    lines = [program for program in PROGRAMS] + ["hi " + word for word in WORDS] + [random_line(chance) for _ in range(250)]
    different, direct = compare(folder, lines)
    assert different == []
    assert direct > 80  # else this compares sh with itself


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_500_random_simple_lines_do_what_sh_would_do(folder, seed):
    chance = random.Random(seed)
    different, direct = compare(folder, [random_line(chance) for _ in range(500)])
    assert different == []
    assert direct > 100


def random_environment(chance, folder):
    """Variables that dash passes on too, in no order: names are identifiers, and not IFS, OPTIND or PPID, which it sets itself."""
    names = ["V%s" % name for name in "abcdef"] + ["PWD", "OLDPWD", "SHLVL", "PS1", "PS4", "ENV", "MAIL", "LANG", "TERM", "_"]
    found = {name: chance.choice(VALUES) for name in chance.sample(names, chance.randint(0, 9))}
    return dict(chance.sample(sorted({**found, **folder.env}.items()), len({**found, **folder.env})))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="POSIX only: /proc")
@pytest.mark.parametrize("seed", range(10))
def test_500_lines_that_need_no_shell_give_what_sh_gives_in_status_output_and_environment(folder, seed):
    chance, compared, different = random.Random(1000 + seed), 0, []
    while compared < 500:
        line = random_line(chance)
        if chance.random() < 0.5:
            line = " ".join([chance.choice(("environ", "bin/environ", "./bin/environ", "'environ'"))] + line.split(" ")[1:])
        if queuectl.sh_words(line) is None or "environ" in line and re.search(r"\s-[ne]\b", line):  # options of cat
            continue
        compared += 1
        env = random_environment(chance, folder)
        (want, by_sh), (got, by_us) = folder.by_sh(line, env), folder.by_us(line, env)
        kept = [sorted(entry for entry in re.split(b"[\0\n]", text) if not re.match(b"(_|SHLVL|OLDPWD)=", entry)) for text in (by_sh, by_us)]
        if want != got or kept[0] != kept[1]:
            different.append((line, env, want, got, by_sh, by_us))
    assert different == []


def test_the_path_is_that_of_the_jobs_own_environment(folder):
    for path in ("", ":", "sub", ".", "/nowhere", "bin/", "/nowhere:%builtin:bin", "bin/hi:bin", "bin%func:sub", None):
        env = {name: value for name, value in dict(folder.env, PATH=path).items() if value is not None}
        for line in ("hi", "local", "here x", "denied", "adir", "missing"):
            code, text = folder.by_us(line, env)
            want_code, want = folder.by_sh(line, env)
            assert (code, text.replace(b"//", b"/")) == (want_code, want.replace(b"//", b"/")), (path, line)


def test_a_program_that_is_being_written_is_told_as_sh_tells_it(folder):
    program = folder.path / "busy"
    program.write_bytes(open("/bin/true", "rb").read())
    program.chmod(0o755)
    with open(program, "ab"):
        assert folder.by_us("./busy", folder.env) == folder.by_sh("./busy", folder.env)


def test_arguments_past_what_the_system_takes_are_told_as_sh_tells_it(folder):
    line = "hi '%s'" % ("x" * 150000)
    assert folder.by_us(line, folder.env) == (126, b"%s: 1: hi: Argument list too long\n" % os.fsencode(folder.path.parent / "output.cmd"))
    several = "hi " + " ".join(["x" * 90000] * 5)  # each of them fits: this needs no script
    assert folder.by_us(several, folder.env)[0] == 0


def test_a_simple_job_is_ended_and_told_of_like_any_other(queue):
    killed = queue.enqueue("--max-retries", "0", "sleep", "61")
    queue.start(1)
    pid = wait_until(lambda: next((pid for pid, line in queue.processes().items() if line.split() == ["sleep", "61"]), None))
    assert os.getpgid(pid) == pid == queue.json("show", killed)["history"][0]["pid"]
    os.kill(pid, 9)
    assert queue.wait_for(killed, "dead").signal == 9
    late = queue.enqueue("--timeout", "0.2s", "--max-retries", "0", "sleep", "62")
    assert queue.wait_for(late, "dead").error == "timeout after 0.2 s"
    assert not [line for line in queue.processes().values() if line.startswith("sleep")]
    missing = queue.enqueue("--max-retries", "0", "no-such-program", "x")
    assert queue.wait_for(missing, "dead").error == "exit 127"
    assert "not found" in queue.out("logs", missing)
