"""README.md: what it shows works."""
from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT, SCRIPT, linux_only, posix_only, wait_until

README = ROOT / "README.md"
TEXT = README.read_text("utf-8") if README.exists() else ""
pytestmark = pytest.mark.skipif(not TEXT, reason="no README.md")


def blocks(language):
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S) if name == language]


def commands():
    """Each command line of the README that starts queuectl, as the words after its name."""
    found = []
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)) + TEXT.splitlines():
        for line in re.findall(r"(?:^|[$(;&] *|python3 |\s)queuectl(?:\.py)? +([a-z-][^`;#]*)", span):
            line = re.split(r" [>|\\] ?| ;|\s{3,}|\)\"?$", line)[0]
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
    known = [*PLACES, "systemd", "cron"]
    assert [recipe(about) for about in known] == re.findall(r"^```\w+\n(.*?)^```$", RECIPES, re.M | re.S)


def of_ours(queue):
    """The environment and directory that the recipes suppose: a python3, queuectl.py beside the jobs."""
    bin_ = queue.dir / "bin"
    bin_.mkdir()
    (bin_ / "python3").symlink_to(sys.executable)  # a link in a venv would not find its pyvenv.cfg; queuectl needs none
    shutil.copy(str(SCRIPT), str(queue.dir))
    return {"PATH": "%s:/usr/bin:/bin" % bin_}


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
        queue.run(["sh", "-e", "-c", recipe("systemd")], env=dict(env, XDG_RUNTIME_DIR=short))
    assert len((queue.dir / "called").read_text().splitlines()) == 2
    ours = ["python3", "queuectl.py"]
    try:
        wait_until(lambda: len(workers(queue, ours, env)) == 4, message="four workers")
    finally:
        queue.run([*ours, "worker", "stop"], env=env)
    assert workers(queue, ours, env) == []


def workers(queue, program, env):
    import json
    return json.loads(queue.run([*program, "worker", "list", "--json"], env=env).stdout)


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


# ---- coming from other tools: each line, beside its original ------------------------------------------

def beside(language):
    return [re.split(r"\s{2,}", line, maxsplit=1) for text in blocks(language) for line in text.splitlines()]


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


@posix_only("GNU parallel and xargs")
@pytest.mark.parametrize("there, here", beside("parallel") + beside("xargs"))
def test_a_line_does_what_its_original_does(queue, there, here):
    theirs, ours = in_folder(queue, queue.dir / "there", there), in_folder(queue, queue.dir / "here", here)
    if "--tag" in here:  # a tag is the job's name or id here, its values there
        theirs, ours = [([line.split()[-1] for line in lines], files) for lines, files in (theirs, ours)]
    assert ours == theirs


@posix_only("written for sh")
def test_lines_for_those_who_come_from_other_queues(queue):
    (queue.dir / "Makefile").write_text("all other:\n\t@echo made $@\n")
    queue.start(1)
    rows = beside("queues")
    assert len(rows) > 10
    for _, here in rows:
        if "cancel" in here:
            queue.enqueue("--hold", "exit 0")
        if "edit" in here:
            queue.enqueue("--hold", "exit 0")
        queue.run(["sh", "-c", "queuectl() { %s \"$@\"; }\n%s" % (" ".join(map(shlex.quote, queue.command())), here)])
    assert "made all" in queue.out("logs", 1)
