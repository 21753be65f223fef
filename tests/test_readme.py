"""README.md: what it shows works."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT, SCRIPT, LiveQueue, linux_only, posix_only, wait_until

README = ROOT / "README.md"
TEXT = README.read_text("utf-8") if README.exists() else ""
PAGE = TEXT.partition("\n## Coming from another tool\n")[2].partition("\n## ")[0]
pytestmark = pytest.mark.skipif(not TEXT, reason="no README.md")


def blocks(language):
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S) if name == language]


def commands():
    """Each command line of the README that starts queuectl, as the words after its name."""
    found, text = [], TEXT.replace(PAGE, "")  # each line of that page is run by a test of its own
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)) + text.splitlines():
        for line in re.findall(r"(?:^|[$(;&] *|python3 |\s)queuectl(?:\.py)? +([a-z-][^`;#]*)", span):
            line = re.split(r" [>|\\] ?| ;|\s{2,}|\)\"?$", line)[0]
            if re.match(r"--db|[a-z]+\b", line) and span.lstrip("$ `").startswith(("queuectl", "python3", "id=", "eval", "sh ", "0 *")):
                found.append(line.rstrip("'") if line.count("'") % 2 else line.strip())
    return sorted(set(found))


def test_the_readme_holds_many_examples():
    assert len(commands()) > 30


@pytest.mark.parametrize("line", commands())
def test_each_example_of_the_readme_is_a_command(line):
    import queuectl
    if line.split()[0] == "COMMAND":
        return
    args = queuectl.parse_words(shlex.split(line.replace("ID", "1")))
    assert args is None or callable(args.run)


@pytest.mark.parametrize("example", [command.example for command in __import__("queuectl").COMMANDS if command.example]
                         if (ROOT / "queuectl.py").exists() else [])
def test_each_example_of_the_help_is_a_command(example):
    import queuectl
    assert callable(queuectl.parse_words(shlex.split(re.split(r" [>|] ", example)[0])).run)


def test_the_python_example_runs(queue):
    [code] = blocks("python")
    code = code.replace("/srv/jobs.db", queue.db.as_posix())
    done = queue.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "pending 1002\n" and done.stderr == ""


def test_the_bulk_file_example_loads(queue):
    [text] = [block for block in blocks("") if '"command": [' in block]
    queue.cli("enqueue", "--file", "-", stdin=text)
    assert len(queue.json("list")) == 3


def test_every_key_of_the_json_is_documented(queue):
    job = queue.enqueue("--name", "documented", "exit 0")
    queue.start(1)
    queue.wait_for(job, "completed")
    section = re.search(r"^## JSON\n(.*?)^## ", TEXT, re.M | re.S).group(1)
    words = set(re.findall(r"\w+", section))
    shown, [worker] = queue.json("show", job), queue.json("worker", "list")
    queue.stop()
    for record in (shown, shown["history"][0], worker, queue.json("status")):
        assert set(record) <= words, set(record) - words


def test_every_setting_and_every_option_of_a_job_is_named():
    import queuectl
    for key in queuectl.SETTINGS:
        assert "`%s`" % key in TEXT, key
    table = re.search(r"^### Options of a job\n\n(.*?)\n\n", TEXT, re.M | re.S).group(1)
    named = set(re.findall(r"(?<=[` \[(])-{1,2}[a-z][a-z-]*", "\n".join(row.split(" | ")[0] for row in table.splitlines()[2:])))
    flags = [set(option.flags) for option in queuectl.JOB_OPTIONS.values()]
    assert named <= set().union(*flags), "no job has %s" % (named - set().union(*flags))
    assert [some for some in flags if not some & named] == []


@pytest.mark.slow
@posix_only("written for sh")
def test_the_first_session_of_the_readme_goes_as_it_looks(queue):
    [session] = blocks("console")
    lines = [line[2:] for line in session.splitlines() if line.startswith("$ ")]
    first = [line for line in lines if "run --file" in line or "commands.txt" in line][:2]
    assert len(first) == 2
    script = "\n".join(first).replace("python3 queuectl.py", " ".join(map(shlex.quote, queue.command())))
    done = queue.run(["sh", "-c", script])
    assert re.search(r"40 of 40 completed in [\d.]+ ?m?s", done.stderr)


# ---- in CI and as a service: every command of every recipe is run ------------------------------

RECIPES = re.search(r"^## In CI and as a service\n(.*?)^## ", TEXT, re.M | re.S).group(1) if TEXT else ""
PLACES = {"GitHub Actions": r"^- run: (.*)$", "GitLab CI": r"^    - (.*)$", "Jenkins": r"\bsh '(.*)'"}


def recipe(about):
    """The block of the section whose first line, a comment, names its place."""
    [text] = [block for block in re.findall(r"^```\w+\n(.*?)^```$", RECIPES, re.M | re.S) if about in block.splitlines()[0]]
    return text


def test_the_recipes_are_those_that_are_run_here():
    known = [*PLACES, "systemd,", "ssh", "docker", "systemd-run", "cron"]
    assert [recipe(about) for about in known] == re.findall(r"^```\w+\n(.*?)^```$", RECIPES, re.M | re.S)


def of_ours(queue):
    """The environment and directory that the recipes suppose: a python3, queuectl.py beside the jobs."""
    bin_ = queue.dir / "bin"
    bin_.mkdir()
    (bin_ / "python3").symlink_to(sys.executable)  # a link in a venv would not find its pyvenv.cfg; queuectl needs none
    shutil.copy(str(SCRIPT), str(queue.dir))
    return {"PATH": "%s:/usr/bin:/bin" % bin_}


@pytest.mark.sampled(6)
@posix_only("recipes for sh")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("jobs, status", [
    ("true\necho fine\n", 0), ('{"command": "true"}\n{"command": "exit 3", "max_retries": 0}\n', 1)], ids=["good", "bad"])
def test_the_commands_of_a_ci_recipe_run_jobs_and_leave_a_junit_file(queue, place, jobs, status):
    env = of_ours(queue)
    text = recipe(place)
    [command] = re.findall(PLACES[place], text, re.M)
    (queue.dir / "jobs.txt").write_text(jobs)
    done = queue.run(["sh", "-e", "-c", command], env=dict(env, CI="true"), check=False)
    assert done.returncode == status, done.stderr
    [report] = set(re.findall(r"[\w.]+\.xml", text))  # what is shown is what was written
    suite = ElementTree.parse(str(queue.dir / report)).getroot()
    assert len(list(suite.iter("testcase"))) == 2 and len(list(suite.iter("failure"))) == status


@pytest.mark.slow
@linux_only("systemd")
def test_the_commands_of_the_systemd_recipe_start_workers_that_a_stop_ends(queue):
    """systemctl and loginctl, which need a running systemd, are stand-ins: the one checks and starts the unit."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    env = of_ours(queue)
    stand_in = "#!/bin/sh\necho \"$0 $*\" >>called\n%s\n"
    start = """case "$*" in "--user enable --now queuectl") ;; *) exit 1 ;; esac
unit=$HOME/.config/systemd/user/queuectl.service
systemd-analyze verify --user "$unit" || exit 1
command=$(sed -n 's/^ExecStart=//p' "$unit")
{ eval "exec $command"; } >log 2>&1 &"""
    for name, script in (("systemctl", start), ("loginctl", '[ "$*" = enable-linger ]')):
        (queue.dir / "bin" / name).write_text(stand_in % script)
        (queue.dir / "bin" / name).chmod(0o755)
    with tempfile.TemporaryDirectory() as short:  # a socket's path has room for 107 bytes
        queue.run(["sh", "-e", "-c", recipe("systemd,")], env=dict(env, XDG_RUNTIME_DIR=short))
    assert len((queue.dir / "called").read_text().splitlines()) == 2
    ours = ["python3", "queuectl.py"]
    try:
        wait_until(lambda: len(workers(queue, ours, env)) == 4, message="four workers")
    finally:
        queue.run([*ours, "worker", "stop"], env=env)
    assert workers(queue, ours, env) == []


def workers(queue, program, env):
    import json
    done = queue.run([*program, "worker", "list", "--json"], env=env, check=False)
    if "there is no queue" in done.stderr:  # the service has not made it yet
        assert done.returncode == 2
        return []
    return json.loads(done.stdout)


@pytest.mark.slow
@posix_only("cron")
def test_the_line_of_the_cron_recipe_works_off_what_has_gathered_without_a_mail(queue):
    import queuectl
    env = of_ours(queue)
    line = recipe("cron").splitlines()[1].replace("/srv/", "./")
    assert "%" not in line, "cron takes it for the end of the line"
    queuectl.parse_cron(" ".join(line.split()[:5]))
    ours = ["python3", "./queuectl.py", "--db", "./q.db"]
    for _ in range(3):
        queue.run([*ours, "enqueue", "true"], env=env)
    bare = {name: None for name in queue.env if name not in (queue.marker.split("=")[0], "QUEUECTL_FALLBACKS", "LD_LIBRARY_PATH")}
    cron = dict(bare, HOME=str(queue.home), LOGNAME="ann", SHELL="/bin/sh", PATH=env["PATH"])
    done = queue.run(["/bin/sh", "-c", line.split(None, 5)[5]], env=cron)
    assert done.stdout == done.stderr == "", "cron mails what is printed"
    queue.run([*ours, "wait", "1-3", "--timeout", "20"], env=env)
    wait_until(lambda: workers(queue, ours, env) == [], message="the workers end")


@pytest.mark.broad
@linux_only("sshd")
def test_the_ssh_recipe_waits_for_a_machine_that_is_down_and_then_runs_the_job_there(queue, tmp_path):
    """A real sshd of this user on a port of its own; `ssh` gets the configuration that finds it by the name in the recipe."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not sshd or not shutil.which("ssh"):
        pytest.skip("openssh-server is not installed")
    env, folder = of_ours(queue), tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd as root wants it
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        "Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PermitRootLogin yes\n" % (port, folder / "host", folder / "user.pub"))
    (folder / "config").write_text(
        "Host build.example.org\n HostName 127.0.0.1\n Port %d\n IdentityFile %s\n IdentitiesOnly yes\n StrictHostKeyChecking no\n"
        " UserKnownHostsFile /dev/null\n LogLevel ERROR\n" % (port, folder / "user"))
    script(queue.dir / "bin" / "ssh", 'exec %s -F %s "$@"' % (shutil.which("ssh"), folder / "config"))
    site = tmp_path / "site"
    site.mkdir()
    (site / "Makefile").write_text("all:\n\t@echo made in $(CURDIR)\n")
    line = recipe("ssh").splitlines()[1].replace("/srv/site", str(site)).replace("--snooze 30s", "--snooze 0.2s")
    job = int(run_line(queue, line, env).stdout)
    queue.start(1)
    wait_until(lambda: queue.job(job).snoozes > 0, 30, "a snooze while no sshd listens")
    assert queue.job(job).attempts <= 1
    server = queue.background_process([sshd, "-D", "-e", "-f", str(folder / "sshd_config")])
    try:
        assert queue.wait_for(job, "completed", "dead", timeout=60).state == "completed", queue.out("logs", job) + server.text()
    finally:
        server.terminate()
    assert "made in " + str(site) in queue.out("logs", job) and queue.job(job).attempts == 1
    queue.stop()


@pytest.mark.sampled(2)
@posix_only("recipes for sh")
@pytest.mark.parametrize("place", ["docker", "systemd-run"])
def test_the_docker_and_systemd_run_recipes_hand_on_their_arguments_and_exit_status(queue, place):
    """Stand-ins: neither a docker nor a running systemd is there.  Each prints its arguments and exits as its job would."""
    env = of_ours(queue)
    script(queue.dir / "bin" / place, 'printf "%s\\n" "$@"; exit 3')
    job = int(run_line(queue, recipe(place).splitlines()[1].replace("enqueue ", "enqueue --max-retries 0 "), env).stdout)
    queue.start(1, "--foreground", "--drain", check=False)
    words = shlex.split(recipe(place).splitlines()[1])
    assert queue.out("logs", job).splitlines() == words[words.index(place) + 1:]
    assert queue.job(job).exit_code == 3


def script(path, text):
    path.write_text("#!/bin/sh\n%s\n" % text)
    path.chmod(0o755)


def run_line(queue, line, env, **options):
    """Runs a line of the documents by sh, with `queuectl` on the PATH and this test's queue."""
    if not (queue.dir / "bin" / "queuectl").exists():
        script(queue.dir / "bin" / "queuectl", 'exec %s "$@"' % " ".join(map(shlex.quote, queue.program)))
    return queue.run(["sh", "-c", line], env=dict(env, QUEUECTL_DB=str(queue.db)), **options)


# ---- coming from another tool: every line of the page ----------------------------------------



def beside(language):
    return [re.split(r"\s{2,}", line, maxsplit=1) for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S) if name == language for line in text.splitlines()]


def in_folder(queue, folder, line):
    """What a line prints, sorted, and which files there are then, in a folder with a few files."""
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c d.txt", "x.log", "y.log"):
        (folder / name).write_text(name * 3)
    (folder / "c d.txt").rename(folder / "cd.txt")
    (folder / "commands.txt").write_text("echo one\necho two; echo three\n")
    program = "queuectl() { %s \"$@\"; }\n" % " ".join(map(shlex.quote, queue.command()))
    done = queue.run(["sh", "-c", program + line], cwd=folder)
    return sorted(done.stdout.splitlines()), sorted(path.name for path in folder.iterdir())


@pytest.mark.sampled(7)
@posix_only("GNU parallel and xargs")
@pytest.mark.parametrize("there, here", beside("parallel") + beside("xargs"))
def test_a_line_does_what_its_original_does(queue, there, here):
    theirs, ours = in_folder(queue, queue.dir / "there", there), in_folder(queue, queue.dir / "here", here)
    if "--tag" in here:  # a tag is the job's name or id here, its values there
        theirs, ours = [([line.split()[-1] for line in lines], files) for lines, files in (theirs, ours)]
    assert ours == theirs


def lines_of_page():
    """(section, what one types here) of each row; a cell may hold several commands, and \\| stands for |."""
    found = []
    for part in PAGE.split("\n### ")[1:]:
        for row in re.findall(r"^\| .* \|$", part, re.M)[1:]:
            ours = re.split(r"(?<!\\\\) \| ", row.strip("| "))[-1]
            found.append((part.partition("\n")[0], [line.replace("\\|", "|") for line in re.findall(r"`([^`]+)`", ours)]))
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A queue as the page supposes: job 1 is completed, 2 dead, 3 not due yet, 4 held, 5 the last one of the schedule `backup`."""
    queue = LiveQueue(tmp_path_factory.mktemp("page"))
    of_ours(queue)
    for name in ("make", "cc", "convert", "mail", "notify"):
        script(queue.dir / "bin" / name, "exit 0")
    for name in ("backup.sh", "report.sh", "script.sh"):
        script(queue.dir / name, "echo $0")
    (queue.dir / "crontab.txt").write_text("30 2 * * * ./other.sh\n")
    for name, text in re.findall(r"`([\w.]+)`[^\n]*\n\n```\n(.*?)^```$", PAGE, re.M | re.S):
        (queue.dir / name).write_text(text)
    for path in ("a.log", "b.log"):
        (queue.dir / path).write_text("words\n")
    queue.enqueue("echo words")
    queue.enqueue("--max-retries", 0, "exit 1")
    queue.cli("cron", "add", "backup", "0 2 * * *", "./backup.sh")
    for _ in range(2):
        queue.enqueue("--hold", "exit 0")
    queue.cli("cron", "run", "backup")
    queue.start(1, "--foreground", "--drain", check=False)
    queue.cli("edit", 3, "--delay", "1h")
    queue.cli("release", 3)
    queue.cli("queue", "limit", "mail", "3")
    yield queue
    queue.close()


@pytest.mark.sampled(8)
@posix_only("written for sh")
@pytest.mark.parametrize("section, lines", lines_of_page(), ids=lambda value: value if isinstance(value, str) else " ; ".join(value))
def test_each_line_of_the_page_for_users_of_other_tools_does_what_it_says(prepared, queue, section, lines):
    shutil.rmtree(str(queue.dir))
    shutil.copytree(str(prepared.dir), str(queue.dir), symlinks=True)
    env = {"PATH": "%s:%s" % (queue.dir / "bin", os.environ["PATH"])}
    assert lines, section
    if "scale" in lines[0] or "worker stop" in lines[0]:
        queue.start(1)
    for line in lines:
        done = run_line(queue, line, env)
        assert "error" not in done.stderr, done.stderr
        assert done.stdout or "config set" in line or "wait" in line or "--" in line, "nothing came of it"


# ---- exit statuses -----------------------------------------------------------------------------

@posix_only("sh and signals")
def test_the_exit_statuses_are_those_of_the_table(queue):
    table = re.search(r"^## Exit status\n(.*?)^## ", TEXT, re.M | re.S).group(1)
    named = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for number in row.split(",")}
    bad, late = queue.enqueue("--max-retries", 0, "exit 7"), queue.enqueue("--delay", "1h", "exit 0")
    shot = queue.enqueue("--max-retries", 0, "kill -9 $$")
    queue.start(1)
    tried = {
        0: queue.cli("list"), 1: queue.cli("wait", bad, shot, check=False),
        2: queue.cli("show", 99, check=False), 124: queue.cli("wait", late, "--timeout", "0.1", check=False)}
    for status, done in tried.items():
        assert done.returncode == status and status in named, (status, done)
    assert queue.cli("wait", bad, check=False).returncode == 7 and queue.cli("wait", shot, check=False).returncode == 137
    queue.stop()  # else its worker would take the job that a run leaves
    for name, status in (("INT", 130), ("TERM", 143)):
        running = queue.beside("run", "--count", "1", "--name", name, "sleep 60")
        queue.wait_for(name, "processing")
        running.send_signal(getattr(signal, "SIG" + name))
        wait_until(lambda: "press again" in running.text(), message="it says that it finishes its job first")
        running.send_signal(getattr(signal, "SIG" + name))
        assert running.ends(40) == status and status in named
