"""test.sh, test.ps1, the Makefile and .ci/run: what a user or CI starts first."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, linux_only, not_on_wine, posix_only, wait_until

PS1 = ROOT / "test.ps1"


@posix_only("test.sh is for sh")
@pytest.mark.slow
@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh", "sh"])
def test_test_sh_passes_under_each_shell(shell, queue):
    if not shutil.which(shell.split()[0]):
        pytest.skip("no %s here" % shell.split()[0])
    done = subprocess.run([*shell.split(), str(ROOT / "test.sh")], cwd=str(queue.dir), timeout=100,
                          env=dict(queue.env, PYTHON=sys.executable), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


@posix_only("test.sh is for sh")
def test_test_sh_fails_with_a_message_when_the_program_does_not_work(queue, tmp_path):
    shutil.copy(str(ROOT / "test.sh"), str(tmp_path))
    (tmp_path / "queuectl.py").write_text("import sys; sys.exit(2)")
    done = queue.run(["sh", str(tmp_path / "test.sh")], check=False, env={"PYTHON": sys.executable})
    assert done.returncode == 1
    assert "FAILED: worker start" in done.stderr


@posix_only("test.sh is for sh")
def test_test_sh_uses_no_tool_that_macos_lacks():
    source = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "test.sh").read_text("ascii"))
    for word in (r"timeout", r"setsid", r"flock", r"%N", r"\[\[", r"\blocal\b", r"function ", r"readlink -f", r"\bseq\b"):
        assert not re.search(word, source), word


@pytest.mark.core
def test_test_ps1_is_plain_powershell_5_1():
    source = PS1.read_bytes()
    source.decode("ascii")
    text = re.sub(rb"(?m)^\s*#.*$", b"", source).decode("ascii")
    for word in ("&&", "||", "??", "$IsWindows", "2>&1", "`\"", "\\\"", " > ", "Set-Content", "Out-File"):
        assert word not in text, word
    for line in text.splitlines():
        assert not re.search(r"Queue\b.*'[^']*\"", line), "an embedded double quote: " + line


@not_on_wine("its parser is a module for the stable ABI, which the Pythons of tests/matrix cannot load")
@pytest.mark.skipif(sys.version_info < (3, 10), reason="tree-sitter-powershell needs Python 3.10")
def test_test_ps1_has_no_syntax_error():
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_powershell")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))

    def errors(node):
        if node.type == "ERROR" or node.is_missing:
            yield node.start_point
        for child in node.children:
            yield from errors(child)

    assert list(errors(parser.parse(PS1.read_bytes()).root_node)) == []


@pytest.mark.core
def test_every_call_of_the_program_in_test_ps1_has_its_exit_status_checked():
    lines = [line.strip() for line in PS1.read_text("ascii").splitlines()]
    calls = [at for at, line in enumerate(lines) if re.match(r"(\$\w+ = )?Queue ", line)]
    assert len(calls) >= 12
    for at in calls:
        assert lines[at + 1].startswith("CheckStatus") or "--now" in lines[at], lines[at]


class Ps1:
    """A reading of test.ps1 that runs: each call in it, with its arguments and its exit status, and what it looks for in $Text."""

    CALL = re.compile(r"(?:\$(\w+) = )?Queue (.*?)(?: \| Out-Null)?$")

    def __init__(self, queue):
        self.queue = queue
        self.variables = {"Python": sys.executable, "Program": str(ROOT / "queuectl.py"), "Db": str(queue.db)}
        self.lines = [line.strip() for line in PS1.read_text("ascii").splitlines()]
        [self.native] = [line[2:] for line in self.lines if line.startswith("& $Python")]
        self.ran = set()

    def words(self, text):
        for quoted, name, plain in re.findall(r'"([^"]*)"|\$(\w+)|(\S+)', text):
            yield self.variables[name] if name else quoted or plain

    def call(self, line):
        """Runs one line with a call of Queue, as its function does; what it prints is as PowerShell would keep it."""
        name, arguments = self.CALL.match(line).groups()
        command = list(self.words(self.native.replace("@PythonOptions ", "").replace(" @args", "")))
        done = self.queue.run(command + list(self.words(arguments)), check=False)
        assert done.returncode == 0, (line, done.returncode, done.stdout, done.stderr)
        self.ran.add(line)
        self.variables[name] = done.stdout.strip()

    def job(self, number):
        self.variables["Id"] = number
        self.call("$Text = Queue show $Id --json")
        return json.loads(self.variables["Text"])

    def run(self, line):
        wait = re.match(r'(?:\$Job = )?WaitFor "(\w+)" \$(\w+) (\d+)', line)
        if wait:
            state, name, seconds = wait.groups()
            wait_until(lambda: self.job(self.variables[name])["state"] == state, int(seconds), line, 0.2)
        elif self.CALL.match(line):
            self.call(line)
        for how, text in re.findall(r'\$Text \| Out-String\)(?:\.Trim\(\))? -(ne|notmatch|match) "([^"]*)"', line):
            told = self.variables["Text"]
            assert {"ne": told == text, "notmatch": text in told, "match": text not in told}[how], (line, told)


@pytest.mark.broad
@pytest.mark.core
def test_every_command_of_test_ps1_does_what_it_expects_and_ends_with_status_0(queue):
    script = Ps1(queue)
    [probe] = re.findall(r'& python -c "([^"]*)"', PS1.read_text("ascii"))
    assert queue.run([sys.executable, "-c", probe], check=False).returncode == 0
    body = script.lines[script.lines.index("try {"):]
    for line in body:
        script.run(line)
        if line.startswith('$Job = WaitFor "dead"'):
            history = script.job(script.variables["Bad"])["history"]
            assert [attempt["exit_code"] for attempt in history] == [3, 3, 3]
    assert script.ran == {line for line in script.lines if script.CALL.match(line)}, "each of its calls was run"
    assert queue.job(script.variables["Bad"]).state == "pending"


@linux_only("the Makefile is tried with GNU make")
def test_make_names_every_target_and_uses_one_stamp():
    if not shutil.which("make"):
        pytest.skip("no make here")
    for target in ("test", "test-slow", "test-all", "bench", "storm", "clean"):
        subprocess.run(["make", "-n", target], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL)


def collected(expression):
    """The tests that pytest -m would run."""
    command = [sys.executable, "-m", "pytest", "tests", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", expression]
    listed = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, check=True).stdout.decode()
    return {line for line in listed.splitlines() if "::" in line}


@pytest.mark.slow
@posix_only("the Makefile is for GNU make")
def test_each_test_is_run_by_make_test_or_by_make_test_slow_and_a_sampled_one_by_both():
    everything = collected("slow or not slow")
    quick, long = (collected(re.search(r'(?m)^%s:.*\n.* -m "?([^"]+?)"? -' % target, (ROOT / "Makefile").read_text()).group(1))
                   for target in ("test", "test-slow"))
    assert quick | long == everything and not quick & long
    assert len(everything) > len(quick) > 1000
    sampled = {name.split("[")[0] for name in collected("sampled")}
    for part in (quick, long):
        assert sampled <= {name.split("[")[0] for name in part}


def test_the_top_level_holds_only_what_a_user_is_told_of():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git checkout")
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=str(ROOT),
                             stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    top = {path.split("/")[0] for path in tracked if path}
    assert top <= {"queuectl.py", "README.md", "design.md", "CHANGELOG.md", "LICENSE", "Makefile", "test.sh",
                   "test.ps1", "tests", ".ci", ".gitignore"}
