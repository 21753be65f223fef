"""README.md: what it shows works."""
from __future__ import annotations

import re
import shlex
import sys
import sysconfig

import pytest
from conftest import ROOT, posix_only

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
    for name in queuectl.JOB_OPTIONS:
        assert "--" + name.replace("_", "-") in TEXT, name


@posix_only("written for sh")
def test_the_first_session_of_the_readme_goes_as_it_looks(queue):
    [session] = blocks("console")
    lines = [line[2:] for line in session.splitlines() if line.startswith("$ ")]
    first = [line for line in lines if "run --file" in line or "commands.txt" in line][:2]
    assert len(first) == 2
    script = "\n".join(first).replace("/usr/lib/python3.11", sysconfig.get_paths()["stdlib"])
    script = script.replace("python3 queuectl.py", " ".join(map(shlex.quote, queue.command())))
    done = queue.run(["sh", "-c", script])
    assert re.search(r"40 of 40 completed in [\d.]+ ?m?s", done.stdout)
