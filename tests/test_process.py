"""What `OS.spawn` returns: the same object on each system, which knows its own process and no other."""
from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import SCRIPT, WINDOWS, started

pytestmark = pytest.mark.core

# A worker's signals are those of a whole process, so this runs in one of its own.
CODE = """
import atexit, os, sys, time
sys.path.insert(0, sys.argv[1])
import queuectl
from queuectl import OS, ProcessSpec

os.chdir(sys.argv[2])
folder = os.getcwd()
TICKS = "import sys, time\\nwhile True:\\n    with open(sys.argv[1], 'a') as file: file.write('x')\\n    time.sleep(0.01)\\n"
with open("ticks.py", "w") as file:
    file.write(TICKS)
signals = OS.worker_signals("test.%d" % os.getppid() if os.name == "nt" else str(os.pipe()[0]))
ended = []
env = OS.job_environment(OS.environment(), {})

def spawn(name, command):
    output = OS.open_output(os.path.join(folder, name + ".out"))
    process = None
    while process is None:
        try:
            process = OS.spawn(ProcessSpec(command, env, output, os.path.join(folder, name + ".cmd")))
        except OSError as error:
            if getattr(error, "winerror", 0) != 1359:  # Wine now and then has an internal error; a Runner tries again, too
                raise
    os.close(output)
    atexit.register(lambda: process in ended or process.kill())
    return process

def ticking(name):
    return spawn(name, OS.quote([sys.executable, "-IS", os.path.join(folder, "ticks.py"), os.path.join(folder, name)]))

def ticks(name):
    try:
        return os.path.getsize(os.path.join(folder, name))
    except OSError:
        return 0

def go_on(name, more):
    size, limit = ticks(name), time.monotonic() + 60
    while ticks(name) < size + more:
        assert time.monotonic() < limit, name + " does not go on"
        time.sleep(0.01)

first, second = ticking("first"), ticking("second")
assert first.pid != second.pid
go_on("first", 2)
go_on("second", 2)
assert first.wait(signals, 0.01) is None and first.alive() and second.alive()

first.suspend()
go_on("second", 5)
size = ticks("first")
go_on("second", 20)
assert ticks("first") == size, "it goes on though it is suspended"
first.resume()
go_on("first", 2)

assert first.terminate()
code = first.wait(signals, 60)
assert code is not None and code < 0, code
print(first.failure(code))
assert not first.alive() and not first.terminate() and not first.kill()
first.close()
ended.append(first)

assert second.alive()
go_on("second", 2)
assert second.kill() and second.wait(signals, 60) < 0
second.close()
ended.append(second)

third = spawn("third", "exit 3")
code = third.wait(signals, 60)
print(third.failure(code))
third.close()
ended.append(third)
load = OS.loads()
assert 0 <= next(load) and 0 <= next(load)
if os.name == "nt":
    time.sleep(1.1)  # a load is measured over a second
    assert 0 <= next(load) <= os.cpu_count()
"""


def test_a_process_is_watched_suspended_and_ended_and_no_other_is(tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    command = [sys.executable, "-IS", str(tmp_path / "code.py"), str(SCRIPT.parent), str(tmp_path)]
    done = started(lambda: subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                          timeout=300, check=False))
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert done.stdout.decode().splitlines() == [
        "(None, None, 'stopped by Ctrl-C')" if WINDOWS else "(None, 15, None)", "(3, None, 'exit 3')"]
