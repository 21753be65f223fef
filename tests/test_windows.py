"""What is Windows' own: Job Objects, locks that are open files, cmd.exe, code pages.  tests/matrix runs it under Wine."""
from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import SCRIPT, started, wait_until, windows_only

pytestmark = [pytest.mark.core, windows_only("tells of what Windows alone has")]

NAMES = "gr\u00fc\u00df \u20ac"
WAITS = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)"
# Tells its pid and that of a child, which both live until they are ended.
FAMILY = """import os, subprocess, sys, time
if len(sys.argv) == 2:
    child = subprocess.Popen([sys.executable, "-IS", sys.argv[0], sys.argv[1], "child"])
    with open(sys.argv[1] + ".new", "w") as file:
        file.write("%d %d" % (os.getpid(), child.pid))
    os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(100)"""


def alive(pid):
    """Whether a process runs; os.kill(pid, 0) would end it."""
    kernel = ctypes.WinDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(0x100000, False, pid))  # SYNCHRONIZE
    if not handle.value:
        return False
    try:
        return kernel.WaitForSingleObject(handle, 0) == 0x102  # WAIT_TIMEOUT
    finally:
        kernel.CloseHandle(handle)


def family(queue, name, *options):
    """A job with a child, and the pids of both."""
    job = queue.enqueue(*options, *queue.script(FAMILY, queue.dir / name))
    wait_until((queue.dir / name).exists, 30)
    pids = [int(pid) for pid in (queue.dir / name).read_text().split()]
    assert all(alive(pid) for pid in pids)
    return job, pids


def gone(*pids):
    wait_until(lambda: not any(alive(pid) for pid in pids), message="processes %s have ended" % (pids,))


# ---- Job Objects ---------------------------------------------------------------------------------------

def test_a_killed_worker_takes_its_job_and_the_children_of_it_along(queue):
    queue.start()
    job, first = family(queue, "family")
    [worker] = queue.json("worker", "list")
    (queue.dir / "family").unlink()
    os.kill(worker["pid"], signal.SIGTERM)  # TerminateProcess: no handler runs
    gone(*first)
    wait_until((queue.dir / "family").exists, 30, "another worker has begun the job again")
    second = [int(pid) for pid in (queue.dir / "family").read_text().split()]
    queue.cli("cancel", job)
    gone(*second)
    assert [attempt["outcome"] for attempt in queue.json("show", job)["history"]][:1] == ["crashed"]


def test_a_killed_supervisor_leaves_no_worker_and_no_job(queue):
    queue.start()
    job, pids = family(queue, "family")
    [worker] = queue.json("worker", "list")
    [supervisor] = [pid for pid, in queue.sql("SELECT pid FROM supervisor")]
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not alive(supervisor))
    queue.stop("--now")
    gone(worker["pid"], *pids)
    assert queue.job(job).state == "pending"


def test_a_timeout_and_a_cancel_end_the_whole_family(queue):
    queue.start(2)
    timed, one = family(queue, "one", "--timeout", "3s", "--max-retries", 0)
    cancelled, two = family(queue, "two")
    queue.cli("cancel", cancelled)
    gone(*two)
    queue.wait_for(cancelled, "cancelled")
    gone(*one)
    queue.wait_for(timed, "dead")


def test_what_a_completed_job_leaves_in_the_background_lives_on(queue):
    queue.start()
    code = ("import subprocess, sys\nnowhere = subprocess.DEVNULL\n"
            "print(subprocess.Popen(sys.argv[1:], stdin=nowhere, stdout=nowhere, stderr=nowhere).pid)")
    job = queue.enqueue(*queue.script(code, *queue.sleeper(100)))
    queue.wait_for(job, "completed")
    left = int(queue.out("logs", job))
    queue.stop()
    try:
        assert alive(left)
    finally:
        os.kill(left, signal.SIGTERM)
        gone(left)


# ---- in the background -----------------------------------------------------------------------------------

def test_neither_supervisor_nor_worker_nor_job_shows_a_window(queue):
    """Each process's own console, where it has one, and every window on the screen."""
    code = ("import ctypes, json, os\nuser, found = ctypes.WinDLL('user32'), []\n"
            "@ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)\n"
            "def look(window, _):\n    pid = ctypes.c_uint32()\n"
            "    user.GetWindowThreadProcessId(ctypes.c_void_p(window), ctypes.byref(pid))\n"
            "    if user.IsWindowVisible(ctypes.c_void_p(window)): found.append(pid.value)\n    return 1\n"
            "user.EnumWindows(look, None)\nwindow = ctypes.WinDLL('kernel32').GetConsoleWindow()\n"
            "print(json.dumps([bool(window and user.IsWindowVisible(window)), os.getpid(), found]))")
    queue.start()
    job = queue.enqueue(*queue.script(code))
    queue.wait_for(job, "completed")
    visible, pid, windows = json.loads(queue.out("logs", job))
    ours = {pid, queue.json("worker", "list")[0]["pid"]} | {supervisor for supervisor, in queue.sql("SELECT pid FROM supervisor")}
    assert not visible and not ours & set(windows)


def test_workers_outlive_the_console_that_started_them(queue):
    done = queue.run(subprocess.list2cmdline(queue.command("worker", "start")))
    assert "worker stop" in done.stdout + done.stderr
    queue.wait_for(queue.enqueue("exit 0"), "completed")


# ---- files that are open -----------------------------------------------------------------------------------

def test_a_lock_is_an_open_file_that_others_may_read_and_nobody_may_delete(tmp_path):
    import queuectl
    path = str(tmp_path / "1.lock")
    held = queuectl.OS.hold(path)
    queuectl.OS.write_lock_line(held, 0, "a record")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import queuectl; "
            "print(queuectl.OS.is_held(sys.argv[2]), queuectl.OS.seize(sys.argv[2]))")

    def other():
        command = [sys.executable, "-IS", "-c", code, str(SCRIPT.parent), path]
        return started(lambda: subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)).stdout.split()

    assert other() == [b"True", b"None"]
    assert open(path).read().split("\n")[0].strip() == "a record"
    with pytest.raises(OSError):
        os.unlink(path)
    with pytest.raises(BlockingIOError):
        queuectl.OS.hold(path)
    os.close(held)
    assert other()[0] == b"False"
    os.unlink(path)


def test_a_log_that_is_open_is_no_error_and_goes_with_the_next_tidying(queue):
    queue.start()
    job = queue.enqueue("echo here")
    queue.wait_for(job, "completed")
    log = queue.files / "logs" / "0" / ("%d.1.log" % job)
    with open(str(log)):  # as another program opens it: nobody may delete it now
        done = queue.cli("rm", job)
        assert (done.returncode, done.stderr) == (0, "") and queue.job(job) is None
        assert log.exists()
    assert "log" in queue.out("doctor", check=False)
    queue.cli("doctor", "--fix", check=False)
    assert not log.exists()


def test_a_running_job_s_output_can_be_read_and_its_end_is_no_error_while_it_is_read(queue):
    queue.start()
    go = queue.dir / "go"
    job = queue.enqueue(*queue.script("print('begun', flush=True)\n" + WAITS + "\nprint('ended')", go))
    wait_until(lambda: "begun" in queue.out("logs", job, check=False))
    [output] = queue.files.glob("workers/*.out")
    with open(str(output)) as reader:
        assert reader.read() == "begun\n"
        go.touch()
        queue.wait_for(job, "completed")
    assert queue.out("logs", job) == "begun\nended"
    queue.wait_for(queue.enqueue("exit 0"), "completed")


# ---- words and letters ---------------------------------------------------------------------------------------

def test_utf_8_goes_in_and_out_whatever_the_code_page(queue):
    job = queue.enqueue("--name", NAMES, "exit 0")
    line = "\ufeff" + json.dumps({"command": "exit 0", "id": "of " + NAMES}, ensure_ascii=False)
    queue.cli("enqueue", "--file", "-", stdin=line)  # a BOM, as PowerShell writes one
    listed = queue.cli("list", binary=True).stdout.decode("utf-8")
    assert NAMES in listed and "of " + NAMES in listed
    assert queue.json("show", NAMES)["id"] == job
    done = queue.cli("cancel", NAMES, binary=True)
    assert "\u2714" in (done.stdout + done.stderr).decode("utf-8")
    said = queue.cli("show", "no " + NAMES, check=False, binary=True).stderr.decode("utf-8")
    assert NAMES in said


def test_jobs_run_in_and_with_paths_of_spaces_and_other_letters(queue):
    folder = queue.dir / NAMES
    folder.mkdir()
    program = folder / "a program.py"
    program.write_text("import os, sys; print(ascii([os.path.basename(os.getcwd()), sys.argv[1:]]))")
    job = int(queue.cli("enqueue", sys.executable, "-IS", program, NAMES, "a  b", cwd=folder).stdout)
    line = queue.enqueue("--max-retries", 0, '"%s" -IS "%s" "%s" & exit 7' % (sys.executable, program, NAMES))
    queue.cli("worker", "start", "--foreground", "--drain", "--count", 1, status=1)  # the second job dies
    assert queue.out("logs", job) == ascii([NAMES, [NAMES, "a  b"]])
    assert ascii([NAMES]) in queue.out("logs", line)


def test_a_database_may_lie_under_other_letters(queue):
    folder = queue.dir / NAMES
    folder.mkdir()
    program = [*queue.program, "--db", str(folder / "a queue.db")]
    assert queue.run([*program, "run", "echo", "there"]).returncode == 0
    assert "there" in queue.run([*program, "logs", "1"]).stdout


@pytest.mark.parametrize("command, code", [("exit 3", 3), ("cmd /c exit 300", 300), ("exit -1", 4294967295)])
def test_exit_statuses_are_windows_own(queue, command, code):
    job = queue.enqueue("--max-retries", 0, command)
    queue.cli("worker", "start", "--foreground", "--drain", status=1)
    assert queue.json("show", job)["exit_code"] == code


def test_a_command_of_several_lines_is_a_batch_file(queue):
    job = queue.enqueue("set X=1\nif %X%==1 (\n  echo one\n  echo two\n)\nexit /b 5")
    queue.cli("worker", "start", "--foreground", "--drain", "--max-jobs", "1")
    assert queue.out("logs", job).split() == ["one", "two"]
    assert queue.json("show", job)["exit_code"] == 5


def test_percent_signs_and_quotes_are_escaped_for_cmd_exe():
    """The letters, since Wine's cmd.exe can't show it: see test_an_argument_between_percent_signs_names_no_variable."""
    import queuectl
    assert queuectl.OS.quote(["program", "%PATH%", 'say "hi"']) == 'program ^"^%^PATH^%^" ^"say \\^"hi\\^"^"'


# ---- queuectl.cmd ----------------------------------------------------------------------------------------------

def test_queuectl_cmd_works_from_a_directory_with_other_letters_and_gives_the_exit_status(queue):
    folder = queue.dir / ("programs " + NAMES)
    folder.mkdir()
    shutil.copy(str(SCRIPT), str(folder))
    queue.run([sys.executable, str(folder / "queuectl.py"), "install"])
    command = [str(queue.home / ".local" / "bin" / "queuectl.cmd"), "--db", str(queue.db)]
    assert queue.run([*command, "enqueue", "--name", NAMES, "echo", "a  b"]).stdout == "1\n"
    assert queue.json("show", NAMES)["command"] == "echo a  b"
    assert queue.run([*command, "show", "99"], check=False).returncode == 2
    assert queue.run([*command, "run", "--max-retries", "0", "exit 3"], check=False).returncode == 1
