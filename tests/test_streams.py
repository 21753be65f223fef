"""What is done is done, whatever became of stdin, stdout and stderr: each command with each stream broken in each way."""
from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import SCRIPT, linux_only, posix_only, wait_until

import queuectl

pytestmark = posix_only("descriptors, and terminals of a POSIX system")

# How each command is called on the queue that `filled` makes; what it changed is told by the state of the queue.
CALLS = {
    "run": ["true"], "enqueue": ["true"], "worker start": [], "worker stop": [], "status": [], "list": [], "show": ["1"],
    "logs": ["2"], "explain": ["1"], "wait": ["2"], "top": [], "stats": [], "events": [], "metrics": [], "cancel": ["1"], "hold": ["1"],
    "release": ["1"], "edit": ["1", "--priority", "3"], "retry": ["2"], "rm": ["2"], "dlq list": [],
    "dlq retry": ["3"], "dlq purge": ["3"], "worker list": [], "worker scale": None, "worker restart": None,
    "service": ["systemd"], "queue list": [], "queue pause": ["default", "mail"], "queue resume": ["mail", "default"],
    "queue limit": ["mail", "3"], "queue rate": ["mail", "3/m"], "queue set": ["mail", "--engine-options", "--gpus 1"],
    "engine test": None, "batch list": [], "batch show": ["1"],
    "cron add": ["hourly", "@hourly", "true"], "cron edit": ["--timeout", "3s", "nightly"], "cron list": [], "cron load": ["crontab"], "cron pause": ["nightly", "daily"], "cron resume": ["nightly", "daily"],
    "cron rm": ["nightly", "daily"], "cron run": ["nightly", "daily"], "config list": [], "config get": ["timeout"],
    "config set": ["timeout", "9"], "config unset": ["timeout"], "backup": ["copy.db"], "doctor": [], "health": ["--max-dead", "9"], "export": [],
    "web": None, "import": None, "install": [], "completion": ["bash"]}
BREAKS = ("closed", "full", "pipe", "socket", "terminal")
READER_LEFT = ("pipe", "socket", "terminal")
SHOWS = {" ".join(command.words) for command in queuectl.COMMANDS if command.shows}


def broken(how, number):
    """A descriptor that stands for a broken stream; None: none at all."""
    if how == "full":
        return os.open("/dev/full", os.O_RDWR)
    if how == "pipe":
        reader, writer = os.pipe()
        os.close(reader if number else writer)
        return writer if number else reader
    if how == "socket":
        ours, its = socket.socketpair()
        ours.close()
        return its.detach()
    if how == "terminal":
        import pty
        ours, its = pty.openpty()
        os.close(ours)
        return its
    return None


def call(queue, words, number, how, cwd):
    """Runs a command with one stream broken; (status, stdout, stderr), empty for the broken one."""
    files = [open(os.devnull), open(os.path.join(cwd, "stdout"), "w+b"), open(os.path.join(cwd, "stderr"), "w+b")]
    ends = [file.fileno() for file in files]
    ends[number] = broken(how, number)
    command = queue.command(*words)
    if ends[number] is None:
        command = ["sh", "-c", 'exec "$@" %d%s&-' % (number, ">" if number else "<"), "sh"] + command
    done = subprocess.run(command, stdin=ends[0], stdout=ends[1], stderr=ends[2], cwd=cwd, env=queue.environment(), timeout=60)
    if ends[number] is not None:
        os.close(ends[number])
    texts = []
    for file in files[1:]:
        file.seek(0)
        texts.append(file.read().decode() if file.fileno() != ends[number] else "")
        file.close()
    files[0].close()
    return done.returncode, texts[0], texts[1]


@pytest.fixture
def filled(queue):
    queue.enqueue("--delay", "1h", "true")
    queue.enqueue("echo hello")
    queue.enqueue("--max-retries", "0", "exit 1")
    queue.cli("queue", "limit", "mail", "2")
    for name in ("nightly", "daily"):
        queue.cli("cron", "add", name, "@yearly", "true")
    queue.cli("enqueue", "--file", "-", stdin="sleep 0\n", check=True)
    queue.cli("worker", "start", "--foreground", "--drain", "--max-jobs", "3", check=False)  # one of them dies
    return queue


def state(queue):
    """What commands change, as far as it is the same each time."""
    with queuectl.Store(str(queue.db)) as opened:
        return {"jobs": [(job.id, job.state, job.command, job.priority, job.held) for job in opened.look.jobs()],
                "queues": [row[:4] for row in opened.queues.list()], "config": opened.settings.values(),
                "schedules": [(row.name, row.paused, row.last_job) for row in opened.schedules.list()]}


@pytest.mark.parametrize("name", [name if name == "enqueue" else pytest.param(name, marks=pytest.mark.slow)
                                  for name, words in CALLS.items() if words is not None])
def test_a_command_with_a_broken_stream_does_its_work_once_and_says_so(name, filled, tmp_path):
    words = name.split() + CALLS[name]
    keep = tmp_path / "keep.db"
    filled.cli("backup", str(keep))
    answers = {}
    for turn, (number, how) in enumerate([(1, None)] + [(number, how) for number in (0, 1, 2) for how in BREAKS]):
        folder = tmp_path / str(turn)
        folder.mkdir()
        (folder / "crontab").write_text("5 4 * * * true\n")
        wait_until(lambda: not filled.processes(), message="nobody has the database open that is replaced")
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(str(filled.db) + suffix):
                os.unlink(str(filled.db) + suffix)
        with open(str(keep), "rb") as source, open(str(filled.db), "wb") as target:
            target.write(source.read())
        if how is None:
            done = filled.cli(*words, check=False, cwd=folder)
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        else:
            status, stdout, stderr = call(filled, words, number, how, str(folder))
        assert "Traceback" not in stderr and "Exception ignored" not in stderr, (number, how, stderr)
        if name == "worker start":
            filled.stop()
        answers[number, how] = status, state(filled), stdout, stderr
    status, changed, stdout, stderr = answers.pop((1, None))
    assert status == 0 or name in ("doctor", "health"), stderr  # whose status is what they found
    for (number, how), (got, left, printed, said) in answers.items():
        assert left == changed, (number, how)
        if number == 1 and name in SHOWS and how not in READER_LEFT and stdout:
            assert got == 1 and said.count("queuectl: error: can't write to standard output") == 1, (number, how, got, said)
        else:
            left = number == 1 and how in READER_LEFT and name in SHOWS and stdout
            assert got == (0 if left else status), (number, how, got, said)
        if number == 1 and how in READER_LEFT:
            waits = re.compile(r".* trouble \(can't write to the database yet: .*\)\n")  # on a busy machine
            timeless = [re.sub(r"\d+(\.\d+)?m?s\b", "TIME", waits.sub("", text)) for text in ("", stderr, said)]
            assert timeless[2] in timeless[:2], (number, how, said)  # a reader that has gone is nobody's fault
        if number == 1 and how not in READER_LEFT and name not in SHOWS and stdout:
            assert "the work is done" in said, (number, how, said)


def test_every_command_is_tried_here():
    assert set(CALLS) == {" ".join(command.words) for command in queuectl.COMMANDS if not command.words[0].startswith("_")}


def test_the_id_that_could_not_be_printed_is_told_on_stderr(queue, tmp_path):
    for count, how in enumerate(("closed", "full"), 1):
        status, _, stderr = call(queue, ["enqueue", "true"], 1, how, str(tmp_path))
        assert status == 0 and stderr.count("\n") == 1
        assert stderr.strip().endswith("It was to print: %d" % count)
        assert [job["id"] for job in queue.json("list")] == list(range(count, 0, -1))


@pytest.mark.broad
def test_help_that_cannot_be_printed_is_a_failure_in_one_line(queue, tmp_path):
    for words in (["--help"], ["--version"], ["enqueue", "--help"], ["cancel", "--all", "--dry-run"]):
        queue.enqueue("true")
        status, _, stderr = call(queue, words, 1, "full", str(tmp_path))
        assert (status, stderr.count("\n")) == (1, 1), (words, stderr)
        assert call(queue, words, 1, "pipe", str(tmp_path))[0] == 0
        assert call(queue, words, 2, "closed", str(tmp_path))[0] == 0


@pytest.mark.broad
def test_a_mistake_is_exit_status_2_whatever_the_streams(queue, tmp_path):
    for number in (0, 1, 2):
        for how in BREAKS:
            status, _, stderr = call(queue, ["enqueue", "--max-retries", "x", "true"], number, how, str(tmp_path))
            assert status == 2, (number, how)
            assert number == 2 or stderr.count("\n") == 1, (number, how, stderr)
    assert not queue.db.exists()


@pytest.mark.broad
def test_input_that_cannot_be_read_stores_nothing(queue, tmp_path):
    for words in (["enqueue", "--file", "-"], ["run", "--file", "-"], ["enqueue", "--stdin", "-", "cat"], ["import", "-"]):
        for how in ("closed",) + READER_LEFT:  # /dev/full gives zeros without end
            status, stdout, stderr = call(queue, words, 0, how, str(tmp_path))
            if "--stdin" in words and how != "closed":
                assert (status, stderr) == (0, ""), (words, how)  # an input of nothing
                continue
            if "run" in words and how != "closed":
                assert (status, stderr) == (0, "nothing to run\n"), (words, how)
                continue
            assert (status, stderr.count("\n"), stdout) == (2, 1, ""), (words, how, stderr)
    assert queue.json("status")["jobs"]["pending"] == 3


def test_a_list_stops_when_its_reader_has_gone(queue):
    queue.cli("enqueue", "--file", "-", stdin="true\n" * 5000)
    process = subprocess.Popen(queue.command("list", "--limit", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=queue.environment())
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_stream_that_does_not_block_loses_nothing(queue):
    """As a socket of another program is: Python's own write raises BlockingIOError, and its read ends before the end."""
    ours, its = socket.socketpair()
    its.setblocking(False)
    process = subprocess.Popen(queue.command("enqueue", "--file", "-"), stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=queue.environment())
    its.close()
    for _ in range(3):
        ours.sendall(b"true\n" * 100 + b"tr")
        wait_until(lambda: unread(ours) == 0)
        time.sleep(0.02)  # nothing more comes for a while: that must not be taken for the end
        ours.sendall(b"ue\n")
    ours.close()
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")
    assert stdout.split() == [b"%d" % number for number in range(1, 304)]
    assert {job["command"] for job in queue.json("list", "--limit", "0")} == {"true"}

    ours, its = socket.socketpair()
    its.setblocking(False)
    its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    process = subprocess.Popen(queue.command("export"), stdout=its, stderr=subprocess.PIPE, env=queue.environment())
    its.close()
    time.sleep(0.5)
    received = b""
    while True:
        part = ours.recv(65536)
        if not part:
            break
        received += part
    ours.close()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")
    assert received.splitlines()[-1].startswith(b'{"table": "end"') and received.count(b"\n") > 300


def unread(end):
    import array
    import fcntl
    import termios
    left = array.array("i", [0])
    fcntl.ioctl(end, termios.TIOCOUTQ, left)
    return left[0]


def test_a_terminal_that_hangs_up_ends_what_watches_and_no_more(queue):
    queue.enqueue("true")
    queue.cli("cancel", "1")
    import pty
    for words in (["list", "--watch"], ["events", "--follow", "--after", "0"], ["top"]):
        ours, its = pty.openpty()
        environment = dict(queue.environment(), TERM="xterm")
        process = subprocess.Popen(queue.command(*words), stdin=its, stdout=its, stderr=subprocess.PIPE, env=environment,
                                   preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        os.close(its)
        assert os.read(ours, 10)
        os.close(ours)
        queue.enqueue("true")
        queue.cli("cancel", "last")
        wait_until(lambda: process.poll() is not None, message=words)
        stderr = process.stderr.read().decode()
        process.stderr.close()
        assert (process.returncode, stderr) == (0, ""), words


def test_a_closed_stream_gives_its_number_to_no_file_of_ours(queue, tmp_path):
    """Else the job's output, or a line of ours, goes into the database."""
    queue.enqueue("echo output; echo trouble >&2; cat")
    command = queue.command("worker", "start", "--foreground", "--drain")
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"] + command, env=queue.environment(), timeout=60)
    assert done.returncode == 0
    assert queue.out("logs", "1") == "output\ntrouble"
    assert queue.json("doctor")[0]["level"] == "ok"


def test_a_worker_log_goes_on_when_the_disk_has_space_again(queue, tmp_path):
    """What can't be written is dropped, not all that follows."""
    out = queuectl.Output(Full())
    assert out.write(b"one") == 3 and out.write(b"two") == 3 and out.write(b"three") == 5
    assert (out.error.errno, out.lost, out._raw.written) == (errno.ENOSPC, b"one", b"three")
    assert out.has_reader()


class Full:
    written = b""
    left = 2

    def fileno(self):
        return 2

    def write(self, data):
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written += bytes(data)
        return len(data)


def test_a_junit_file_that_cannot_be_written_is_told_after_the_outcome(queue):
    done = queue.cli("run", "--junit", "/dev/full", "true", check=False)
    assert done.returncode == 2 and "1 of 1 completed" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("queuectl: error: the jobs have ended, but '/dev/full' can't be written: No space")


# ---- the last resort (13.1.8) --------------------------------------------------------------------

BREAKING = """
import sys
sys.path.insert(0, %r)
import queuectl
def fault(*_): raise ValueError("line one\\nline \\033[31mtwo")
part, method = sys.argv.pop(1).split(".")
setattr(getattr(queuectl, part), method, fault)
sys.exit(queuectl.main())
""" % str(SCRIPT.parent)


def test_a_fault_of_ours_is_one_line_and_exit_status_70(queue):
    queue.enqueue("true")
    for method, words in (("Queues.counts", ["status"]), ("Life.cancel", ["cancel", "1"]), ("Store.enqueue_plan", ["enqueue", "true"])):
        command = [sys.executable, "-c", BREAKING, method, "--db", str(queue.db), *words]
        done = queue.run(command, check=False)
        assert done.returncode == 70
        assert done.stderr.count("\n") == 1 and "\033" not in done.stderr
        assert done.stderr.startswith("queuectl: error: internal error: ValueError: line one")
        done = queue.run(command, check=False, env={"QUEUECTL_DEBUG": "1"})
        assert done.returncode == 70
        assert "Traceback" in done.stderr and "in fault" in done.stderr


def test_a_fault_in_a_worker_is_a_line_of_the_log(queue):
    queue.enqueue("true")
    command = [sys.executable, "-c", BREAKING, "Claims.finish_and_claim", "--db", str(queue.db), "worker", "start", "--foreground", "--max-jobs", "1",
               "--idle-timeout", "2s"]
    done = queue.run(command, check=False)
    assert "internal error: ValueError" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@linux_only("mount namespaces")
def test_a_system_without_a_null_device_is_no_traceback(queue):
    """As in a chroot without /dev: a command needs the device only in the place of a stream that is closed."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("only root may mount")
    line = "mount -t tmpfs none /dev && exec " + " ".join(map(shlex.quote, queue.command("list")))
    queue.enqueue("true")
    done = queue.run(["unshare", "-m", "sh", "-c", line], check=False)
    assert (done.returncode, done.stderr) == (0, "") and "true" in done.stdout
