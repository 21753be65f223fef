"""Nothing that lies beside queuectl.py is imported in place of the standard library."""
from __future__ import annotations

import json
import shutil
import sys

import pytest
from conftest import SCRIPT, posix_only

# What the program imports, in which the names of usual files of projects are: each as a module, some as a package or a library too.
NAMES = ("abc _socket _sqlite3 _strptime argparse ast base64 binascii bisect bz2 calendar codecs collections contextlib copy csv "
         "ctypes datetime difflib email encodings enum errno fcntl fnmatch functools gc getpass glob grp hashlib heapq html http "
         "importlib inspect io itertools json keyword linecache locale logging lzma math operator os pathlib pickle platform "
         "plistlib posixpath pty pwd queue random re readline reprlib select selectors shlex shutil signal socket sqlite3 stat "
         "statistics string struct subprocess sysconfig tempfile termios textwrap threading time token tokenize traceback tty types "
         "typing unicodedata urllib uuid warnings weakref xml zipfile zlib zoneinfo").split()
BAIT = "import os as _os\nopen(_os.environ['BAIT'], 'a').write(__name__ + '\\n')\nraise SystemExit('a neighbour was imported: ' + __name__)\n"


@pytest.fixture
def crowded(queue):
    """A folder with a copy of the program and a neighbour for each module that it could mean."""
    folder = queue.dir / "project"
    folder.mkdir()
    shutil.copy(str(SCRIPT), str(folder))
    for name in NAMES:
        (folder / (name + ".py")).write_text(BAIT)
    for name in ("json", "sqlite3", "encodings", "collections", "queuectl"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(BAIT)
    (folder / "_socket.so").write_bytes(b"no library")
    return folder


def caught(queue):
    bait = queue.dir / "bait"
    return bait.read_text().split() if bait.exists() else []


def try_all(queue, program, cwd, **env):
    """A life of a queue through one way to start the program."""
    env["BAIT"] = str(queue.dir / "bait")

    def call(*words):
        return queue.run([*program, *words, "--db", str(queue.db)], cwd=str(cwd), env=env).stdout

    queue.run([*program, "--version"], cwd=str(cwd), env=env)
    queue.run([*program, "--db", str(queue.db), "enqueue", '{"command": "echo fine"}'], cwd=str(cwd), env=env)
    call("worker", "start", "--count", "2")
    call("wait", "1", "--timeout", "20")
    for words in (["list", "--json"], ["stats"], ["status"], ["doctor"], ["service", "systemd"], ["explain", "1"], ["export"]):
        call(*words)
    assert call("logs", "1") == "fine\n"
    call("worker", "stop")
    assert caught(queue) == []


def before_ours(queue, folder):
    """What `python -m` itself has imported from a folder before any line of the module runs; nothing from 3.11 on."""
    (folder / "bare.py").write_text("import sys; print(*sys.modules)\n")
    for name in ("runpy", "pkgutil"):
        assert not (folder / (name + ".py")).exists()
    return set(queue.run([sys.executable, "-S", "-m", "bare"], cwd=str(folder), env={"PYTHONPATH": None}).stdout.split())


@pytest.mark.broad
@pytest.mark.core
@pytest.mark.parametrize("options", [[], pytest.param(["-S"], marks=pytest.mark.slow), pytest.param(["-E"], marks=pytest.mark.slow), pytest.param(["-IS"], marks=pytest.mark.slow)],
                         ids=["plain", "-S", "-E", "-IS"])
def test_neighbours_of_the_script_are_not_imported(queue, crowded, options):
    try_all(queue, [sys.executable, *options, str(crowded / "queuectl.py")], queue.dir)


@pytest.mark.slow
def test_neighbours_of_the_script_are_not_imported_from_within_their_folder_by_a_relative_name(queue, crowded):
    try_all(queue, [sys.executable, "queuectl.py"], crowded)


def test_neighbours_of_the_module_are_not_imported(queue, crowded):
    shutil.rmtree(str(crowded / "queuectl"))  # `-m` prefers a package of this name by itself
    for name in NAMES:
        (crowded / (name + ".py")).unlink()
    shutil.rmtree(str(crowded / "collections"))
    shutil.rmtree(str(crowded / "encodings"))
    loaded = before_ours(queue, crowded)
    for name in set(NAMES) - loaded:
        (crowded / (name + ".py")).write_text(BAIT)
    try_all(queue, [sys.executable, "-m", "queuectl"], crowded)


@pytest.mark.broad
@posix_only("the launcher of Windows is a batch file, tried in test_windows.py")
def test_neighbours_of_the_file_that_was_installed_are_not_imported(queue, crowded):
    env = {"HOME": str(queue.home), "BAIT": str(queue.dir / "bait")}
    queue.run([sys.executable, str(crowded / "queuectl.py"), "install"], env=env)
    launcher = queue.home / ".local" / "bin" / "queuectl"
    (launcher.parent / "json.py").write_text(BAIT)
    try_all(queue, [str(launcher)], crowded)
    for name in ("sqlite3", "argparse", "signal"):
        (launcher.parent / (name + ".py")).write_text(BAIT)
    try_all(queue, [sys.executable, str(launcher)], crowded)  # not by its first line, which says -IS
    cached = list((crowded / "__pycache__").glob("queuectl*.pyc"))
    assert cached, "it starts from cached bytecode"
    queue.run([str(launcher), "install", "--uninstall"], env=env)


@pytest.mark.slow
@posix_only("elsewhere workers are new programs by themselves")
def test_neighbours_are_not_imported_by_workers_that_are_new_programs(queue, crowded):
    try_all(queue, [sys.executable, str(crowded / "queuectl.py")], crowded, QUEUECTL_FALLBACKS="1")


def test_a_program_that_imports_us_keeps_its_path_and_its_own_modules(queue, crowded):
    for path in [*crowded.glob("*.py"), crowded / "_socket.so"]:
        if path.name != "queuectl.py":
            path.unlink()
    for name in ("json", "sqlite3", "encodings", "collections", "queuectl"):
        shutil.rmtree(str(crowded / name))
    (crowded / "helper.py").write_text("word = 'mine'\n")
    (crowded / "program.py").write_text(
        "import sys\nbefore = list(sys.path)\nimport queuectl\nassert sys.path == before, (sys.path, before)\nimport helper\n"
        "with queuectl.Store(sys.argv[1]) as queue:\n    print(queue.enqueue('true'), helper.word)\n")
    done = queue.run([sys.executable, str(crowded / "program.py"), str(queue.db)])
    assert done.stdout == "1 mine\n"
    (crowded / "package").mkdir()
    (crowded / "package" / "__main__.py").write_text("import queuectl, helper; print(queuectl.__version__ and helper.word)\n")
    assert queue.run([sys.executable, "-m", "package"], cwd=str(crowded)).stdout == "mine\n"


@pytest.mark.broad
def test_pythonpath_stays_the_users_own_for_the_program_and_for_jobs(queue, crowded):
    mine = queue.dir / "mine"
    mine.mkdir()
    (mine / "sitecustomize.py").write_text("import sys; sys.stderr.write('the users own\\n')\n")
    env = {"PYTHONPATH": str(mine), "BAIT": str(queue.dir / "bait")}
    program = [sys.executable, str(crowded / "queuectl.py"), "--db", str(queue.db)]
    done = queue.run([*program, "enqueue", sys.executable, "-c", "import sys, json; print(json.dumps(sys.path))"], env=env)
    assert done.stderr == "the users own\n"
    queue.run([*program, "worker", "start", "--foreground", "--drain"], env=env)
    shown = queue.run([*program, "logs", "1"], env=env).stdout
    assert str(mine) in json.loads(shown.splitlines()[-1])
    assert caught(queue) == []


@pytest.mark.broad
@posix_only("PYTHONSAFEPATH and links")
@pytest.mark.parametrize("env", [{"PYTHONSAFEPATH": "1"}, {"PYTHONSAFEPATH": None}], ids=["safe", "not safe"])
def test_without_a_folder_of_the_script_on_the_path_nothing_else_is_taken_off_it(queue, crowded, env):
    """From Python 3.11 on the user may keep the folder off the path; the first entry is then PYTHONPATH's."""
    mine = queue.dir / "mine"
    mine.mkdir()
    (mine / "tzdata").mkdir()
    text = (crowded / "queuectl.py").read_text("utf-8").replace("    leave(main())", "    print(sys.path)")
    (crowded / "queuectl.py").write_text(text, encoding="utf-8")
    shown = queue.run([sys.executable, str(crowded / "queuectl.py")],
                      env=dict(env, PYTHONPATH=str(mine), BAIT=str(queue.dir / "bait"))).stdout
    assert str(mine) in shown and str(crowded) + "'" not in shown, shown
