"""Processes that the program starts run from cached bytecode, unless another user could have written that, or the user wants none."""
from __future__ import annotations

import importlib._bootstrap_external as bootstrap
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import SCRIPT, linux_only, posix_only, unprivileged

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
NO_WISH = {"PYTHONDONTWRITEBYTECODE": None, "PYTHONPYCACHEPREFIX": None}

cpython_only = pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython only: PyPy does not run planted bytecode")

PLANTED = """import sys
from _frozen_importlib_external import SourceFileLoader
open(%r, "a").write(%r + "\\n")
SourceFileLoader(__name__, %r).exec_module(sys.modules[__name__])
"""


class Program:
    """A copy of the program, and bytecode beside it that says when it runs."""

    def __init__(self, queue, folder, name="queuectl.py"):
        self.queue, self.path, self.witness = queue, Path(folder) / name, queue.dir / "witness"
        shutil.copy(str(SCRIPT), str(self.path))
        self.bytecode = Path(importlib.util.cache_from_source(str(self.path)))

    def plant(self, text="cached"):
        """Puts bytecode there that fits the file, and says `text` when it runs."""
        self.bytecode.parent.mkdir(mode=0o755, exist_ok=True)
        info = self.path.stat()
        code = compile(PLANTED % (str(self.witness), text, str(SCRIPT)), str(self.path), "exec")
        self.bytecode.write_bytes(bootstrap._code_to_timestamp_pyc(code, int(info.st_mtime), info.st_size))
        self.bytecode.chmod(0o644)

    def call(self, *words, **env):
        return self.queue.run([sys.executable, str(self.path), "--db", str(self.queue.db), *words], env=dict(NO_WISH, **env))

    def said_at_start(self, **env):
        """Starts two workers and stops them; returns what planted bytecode said meanwhile."""
        self.witness.write_text("")
        self.call("worker", "start", "--count", "2", **env)
        self.queue.stop()
        return self.witness.read_text().split()

    def argv(self, **env):
        """The arguments by which it starts itself again."""
        text = "import json, sys; sys.path.insert(0, %r); import queuectl; queuectl.__file__ = %r; print(json.dumps(queuectl.program_argv()))"
        command = [sys.executable, "-c", text % (str(SCRIPT.parent), str(self.path))]
        return json.loads(self.queue.run(command, env=dict(NO_WISH, **env)).stdout)

    def is_started_as_a_script(self, **env):
        return self.argv(**env) == [sys.executable, "-IS", str(self.path)]


@pytest.fixture
def program(queue):
    folder = queue.dir / "program"
    folder.mkdir(mode=0o755)
    return Program(queue, folder)


@pytest.mark.broad
@pytest.mark.core
@cpython_only
def test_a_background_supervisor_leaves_bytecode_beside_the_program_and_runs_from_it(program):
    program.call("worker", "start")
    job = program.queue.enqueue("echo fine")
    program.queue.wait_for(job, "completed")
    program.queue.stop()
    assert program.bytecode.exists() and not program.is_started_as_a_script()
    program.plant()
    assert set(program.said_at_start()) == {"cached"}


@posix_only("elsewhere workers are new programs by themselves")
@cpython_only
def test_workers_that_are_new_programs_run_from_bytecode(program):
    program.plant()
    assert program.said_at_start(QUEUECTL_FALLBACKS="1") == ["cached"] * 3, "the supervisor and its two workers"


@cpython_only
def test_bytecode_of_an_earlier_version_is_not_run(program):
    program.plant("old")
    new = program.path.with_name("new")
    new.write_text(SCRIPT.read_text("utf-8") + "# the next version\n", encoding="utf-8")
    os.replace(str(new), str(program.path))
    assert program.said_at_start() == []
    program.plant("new")
    assert set(program.said_at_start()) == {"new"}


@pytest.mark.broad
@linux_only("the process table")
def test_the_process_table_names_the_program_and_then_its_words(program):
    program.call("worker", "start")
    shown = list(program.queue.processes().values())
    program.queue.stop()
    assert shown and all("%s worker start --db %s" % (program.path, program.queue.db) in line for line in shown), shown


@posix_only("modes")
def test_the_directory_of_bytecode_is_the_users_alone_whatever_the_umask(program):
    umask = os.umask(0)
    try:
        program.argv()
    finally:
        os.umask(umask)
    assert program.bytecode.parent.stat().st_mode & 0o777 == 0o755


def directory_that_all_may_write_to(program):
    program.bytecode.parent.chmod(0o777)


def bytecode_that_all_may_write_to(program):
    program.bytecode.chmod(0o666)


def directory_by_a_link(program):
    program.bytecode.parent.rename(program.queue.dir / "elsewhere")
    program.bytecode.parent.symlink_to(program.queue.dir / "elsewhere")


def directory_of_another_user(program):
    os.chown(str(program.bytecode.parent), 4242, 4242)


def bytecode_of_another_user(program):
    os.chown(str(program.bytecode), 4242, 4242)


def program_in_a_shared_directory(program):
    program.path.parent.chmod(0o1777)


def program_of_another_user(program):
    os.chown(str(program.path), 4242, 4242)


needs_root = pytest.mark.skipif(not ROOT_USER, reason="only root can give files away")


@pytest.mark.sampled(4)
@posix_only("modes and owners")
@pytest.mark.parametrize("spoil", [directory_that_all_may_write_to, bytecode_that_all_may_write_to, directory_by_a_link,
                                   program_in_a_shared_directory, *(pytest.param(spoil, marks=needs_root) for spoil in (
                                       directory_of_another_user, bytecode_of_another_user, program_of_another_user))],
                         ids=lambda spoil: spoil.__name__)
def test_bytecode_that_another_user_may_have_written_is_not_run(program, spoil):
    program.plant("planted")
    assert not program.is_started_as_a_script()
    spoil(program)
    assert program.is_started_as_a_script()


@pytest.mark.broad
@posix_only("modes")
def test_neither_workers_nor_the_installed_command_run_bytecode_from_a_directory_that_others_may_write_to(program):
    program.plant("planted")
    program_in_a_shared_directory(program)
    assert program.said_at_start() == []
    assert "starts slowly" in program.call("install").stderr
    launcher = str(program.queue.home / ".local" / "bin" / "queuectl")
    assert program.queue.run([launcher, "--version"]).stdout.startswith("queuectl ")
    assert program.witness.read_text() == ""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("env", [{"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONPYCACHEPREFIX": "elsewhere"}], ids=lambda env: list(env)[0])
def test_whoever_wants_no_bytecode_there_gets_none(program, env):
    assert program.is_started_as_a_script(**env)
    assert not program.bytecode.parent.exists()


@pytest.mark.broad
@linux_only("setpriv")
def test_from_a_directory_that_one_may_only_read_the_program_starts_all_the_same(program):
    prefix = unprivileged()
    program.path.parent.chmod(0o555)
    for words in (["worker", "start"], ["worker", "stop"]):
        program.queue.run([*prefix, sys.executable, str(program.path), "--db", str(program.queue.db), *words], env=NO_WISH)
    assert not program.bytecode.parent.exists()


def test_a_program_by_another_name_starts_as_a_script(queue):
    folder = queue.dir / "program"
    folder.mkdir()
    program = Program(queue, folder, "my-queue")
    program.plant()
    assert program.is_started_as_a_script()
