"""test.sh, test.ps1, the Makefile and .ci/run: what a person or CI starts first."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, linux_only, posix_only

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


def test_test_ps1_is_plain_powershell_5_1():
    source = PS1.read_bytes()
    source.decode("ascii")
    text = re.sub(rb"(?m)^\s*#.*$", b"", source).decode("ascii")
    for word in ("&&", "||", "??", "$IsWindows", "2>&1", "`\"", "\\\"", " > ", "Set-Content", "Out-File"):
        assert word not in text, word
    for line in text.splitlines():
        assert not re.search(r"Queue\b.*'[^']*\"", line), "an embedded double quote: " + line


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


def test_every_call_of_the_program_in_test_ps1_has_its_exit_status_checked():
    lines = [line.strip() for line in PS1.read_text("ascii").splitlines()]
    calls = [at for at, line in enumerate(lines) if re.match(r"(\$\w+ = )?Queue ", line)]
    assert len(calls) >= 12
    for at in calls:
        assert lines[at + 1].startswith("CheckStatus") or "--now" in lines[at], lines[at]


def test_the_commands_of_test_ps1_do_what_it_expects(queue):
    """A reading of test.ps1 that runs: its Queue and WaitFor lines, in order."""
    variables, texts = {}, {}

    def words(text):
        for quoted, name, plain in re.findall(r'"([^"]*)"|\$(\w+)|(\S+)', text):
            yield variables[name] if name else quoted or plain

    body = PS1.read_text("ascii").split("\ntry {", 1)[1].split("} catch", 1)[0]
    for line in body.splitlines():
        call = re.match(r"\s*(?:\$(\w+) = )?Queue (.*?)(?: \| Out-Null)?$", line)
        wait = re.match(r'\s*(?:\$Job = )?WaitFor "(\w+)" \$(\w+) (\d+)', line)
        if call:
            arguments = list(words(call.group(2)))
            done = queue.cli(*arguments)
            texts[" ".join(arguments[:2])] = done.stdout
            variables[call.group(1)] = done.stdout.strip()
        elif wait:
            queue.wait_for(int(variables[wait.group(2)]), wait.group(1), timeout=int(wait.group(3)))
        for pattern in re.findall(r'-notmatch "([^"]*)"', line):
            assert re.search(pattern, variables["Text"]), line
    history = queue.json("show", variables["Bad"])["history"]
    assert [attempt["exit_code"] for attempt in history] == [3, 3, 3]
    assert texts["dlq list"].strip() == texts["worker list"].strip() == "[]"


@linux_only("the Makefile is tried with GNU make")
def test_make_names_every_target_and_uses_one_stamp():
    if not shutil.which("make"):
        pytest.skip("no make here")
    for target in ("test", "test-slow", "test-all", "bench", "storm", "clean"):
        subprocess.run(["make", "-n", target], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL)


def test_the_top_level_holds_only_what_a_user_is_told_of():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git checkout")
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=str(ROOT),
                             stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    top = {path.split("/")[0] for path in tracked if path}
    assert top <= {"queuectl.py", "README.md", "design.md", "CHANGELOG.md", "LICENSE", "Makefile", "test.sh",
                   "test.ps1", "tests", ".ci", ".gitignore"}
