"""A job that the kernel ends because memory is short: a real OOM kill, in a memory cgroup of its own."""
from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from conftest import linux_only, wait_until

pytestmark = [pytest.mark.slow, linux_only("control groups")]
MIB = 2**20


@pytest.fixture
def memory_group():
    """A memory cgroup with 200 MiB, and the file into which a pid is written to be in it; version 1 or 2."""
    name = "queuectl-test-" + uuid.uuid4().hex[:8]
    for root, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = root / name
        try:
            group.mkdir()
            (group / limit).write_text(str(200 * MIB))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            try:
                (group / swap).write_text(str(200 * MIB) if "memsw" in swap else "0")
            except OSError:
                continue  # this kernel counts no swap
        yield group
        wait_until(lambda: not (group / "cgroup.procs").read_text().split(), message="the group is empty")
        group.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


GREEDY = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); b = [bytearray(%d) for _ in range(100)]; print(len(b))" % (16 * MIB)


def test_a_job_that_the_kernel_kills_for_its_memory_fails_alone_and_is_tried_again(memory_group, queue):
    """It does what it likes with 1.6 GiB in a group of 200 MiB; worker and supervisor are outside."""
    job = queue.enqueue("--max-retries", "1", "--backoff-base", "0.1", *queue.script(GREEDY, memory_group))
    other = queue.enqueue("exit 0")
    queue.start(1)
    worker = queue.json("worker", "list")[0]["pid"]
    found = queue.wait_for(job, "dead", timeout=60)
    assert found.signal == 9 and found.attempts == 2 and found.crashes == 0
    assert queue.wait_for(other, "completed")
    assert queue.json("worker", "list")[0]["pid"] == worker
    assert "signal 9 (SIGKILL)" in queue.out("explain", job)


def test_a_worker_that_the_kernel_kills_for_memory_loses_no_job(memory_group, queue):
    """All of it is in the group: the kernel takes the biggest, which is the job, or any; the job ends dead, not lost or stuck."""
    job = queue.enqueue("--max-retries", "0", *queue.script(GREEDY, memory_group))
    queue.cli("config", "set", "max_crashes", "2")
    supervisor = queue.beside("worker", "start", "--foreground")
    (memory_group / "cgroup.procs").write_text(str(supervisor.pid))
    found = queue.wait_for(job, "dead", timeout=60)
    assert found.signal == 9 or found.error.startswith("worker died")
    assert os.path.exists("/proc/%d" % supervisor.pid)
    assert queue.cli("doctor", check=False).returncode == 1  # a job died
