"""A real Slurm of three nodes on this machine: what runs there is never lost, and never runs twice at once."""
from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, wait_until
from faults import Bench, check, kill

SLURM = ROOT / "tests" / "slurm.sh"
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("slurmctld"),
                                 reason="needs Linux, root, and the packages slurm-wlm and munge"),
              pytest.mark.skipif(bool(os.environ.get("QUEUECTL_FALLBACKS")), reason="--on is refused on the fallbacks")]


class Cluster:
    """The cluster, and the hand that breaks it."""

    def __init__(self, folder, lines):
        self.folder = folder
        self.conf = str(folder / "slurm.conf")
        self.script("up", 3, folder, *lines)

    def script(self, *words):
        done = subprocess.run(["bash", str(SLURM), *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60)
        assert done.returncode == 0, done.stdout.decode()

    def ask(self, *words):
        env = dict(os.environ, SLURM_CONF=self.conf)
        return subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30).stdout.decode()

    def tasks(self, states="PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED"):
        """What the engine still has of queuectl's."""
        return [line for line in self.ask("squeue", "-h", "-r", "-t", states, "-o", "%j %F %K %T").splitlines()
                if line.startswith("queuectl-")]

    def pid(self, name):
        return int((self.folder / (name + ".pid")).read_text())

    def stop_control(self):
        pid = self.pid("slurmctld")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists("/proc/%d" % pid), 20, "slurmctld has ended")


@pytest.fixture
def lines():
    return []


@pytest.fixture
def cluster(tmp_path, lines):
    """One per machine at a time: it has fixed ports."""
    import fcntl
    with open("/tmp/queuectl-test-slurm.lock", "a") as lock:
        wait_until(lambda: not _locked(fcntl, lock), 550, "the cluster of another test has ended", interval=0.2)
        made = Cluster(tmp_path / "slurm", lines)
        try:
            yield made
        finally:
            made.script("down", made.folder)


def _locked(fcntl, lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True


@pytest.fixture
def bench(cluster, queue):
    queue.env["SLURM_CONF"] = cluster.conf
    queue.cli("config", "set", "backoff_base", "0.1")
    queue.cli("config", "set", "kill_grace", "0.5")
    made = Bench(queue)
    made.cluster = cluster
    return made


def start(bench, count=6, *options):
    return bench.queue.start(count, "--on", "slurm", *options)


def spool(bench):
    """What is left in the spool, beside the program itself."""
    return sorted(path.name for path in bench.queue.files.glob("spool/queuectl-*") if path.is_dir())


def ended(bench, timeout=90, left=()):
    wait_until(lambda: not bench.queue.sql("SELECT id FROM job WHERE state IN ('pending','processing','failed')"), timeout,
               "all jobs have ended; the log:\n" + bench.log()[-3000:], interval=0.1)


def check_all(bench, expected="completed"):
    """The checker of the fault tests; and nothing is left in the engine or the spool."""
    wait_until(lambda: not bench.queue.sql("SELECT id FROM sent") and not bench.cluster.tasks(), 20,
               "Slurm and the spool are empty: %s" % bench.log()[-2000:])
    bench.queue.stop()
    check(bench, expected)
    assert spool(bench) == []
    assert bench.queue.sql("SELECT * FROM packed") == []


# ---- the plain case ----------------------------------------------------------------------------

def test_jobs_of_mixed_lengths_and_failures_run_on_every_node(bench):
    lines, expected = [], {}
    for number in range(1, 2001):
        if number % 20:
            lines.append("true" if number % 7 else "echo $SLURMD_NODENAME >> nodes")
            expected[number] = "completed"
        elif number % 100:
            lines.append(bench.line("sleep=%.2f" % (number % 60 / 50), "fail=2"))
            expected[number] = "completed"
        else:
            lines.append({"command": bench.line("exit=3"), "max_retries": 1})
            expected[number] = "dead"
    assert len(bench.enqueue_many(lines)) == 2000
    bench.queue.cli("config", "set", "max_retries", 3)
    start(bench, 9, "--drain", "--pack", 40, "--", "--cpus-per-task", 2)
    ended(bench)
    check_all(bench, expected)
    assert set((bench.folder / "nodes").read_text().split()) == {"n1", "n2", "n3"}


def test_what_a_job_is_given_reaches_it_on_a_node(bench, tmp_path):
    queue = bench.queue
    awkward = "a  b 'c' \"d\" $HOME `e` \\ * ? ; & | > < \t ü €"
    show = queue.script("import sys, os; print(ascii(sys.argv[1:]), os.environ.get('X'), os.getcwd(), oct(os.umask(0)), "
                        "os.environb[b'QUEUECTL_DB'].decode())")
    odd = tmp_path / "with 'odd' $name %d \\ x"
    odd.mkdir()
    job = queue.enqueue("--cwd", odd, "--env", "X=y z\n%", *show, awkward, "", "-n", env={"QUEUECTL_TEST": queue.env["QUEUECTL_TEST"]})
    raw = queue.enqueue(b"printf 'caf\xe9\\n'".decode("utf-8", "surrogateescape"))
    data = bytes(range(256)) * 10
    fed = int(queue.cli("enqueue", "--stdin", "-", "cksum", stdin=data, binary=True).stdout)
    silent = queue.enqueue("true")
    killed = queue.enqueue("--max-retries", 0, "kill -9 $$")
    late = queue.enqueue("--max-retries", 0, "--timeout", 1, "echo begun; sleep 60")
    spaced = tmp_path / "a spool of 100% 'quotes'"
    queue.cli("config", "set", "spool", spaced)
    start(bench, 3)
    ended(bench)
    lines = queue.out("logs", job)
    assert lines == "%s y z\n%% %s %s %s" % (ascii([awkward, "", "-n"]), odd, oct(0o022), queue.db)
    assert queue.cli("logs", raw, binary=True).stdout == b"caf\xe9\n"
    assert queue.out("logs", fed).split()[:2] == subprocess.run(
        ["cksum"], input=data, stdout=subprocess.PIPE).stdout.decode().split()[:2]
    assert queue.job(silent).state == "completed"
    assert (queue.job(killed).state, queue.job(killed).signal) == ("dead", 9)
    assert (queue.job(late).state, queue.job(late).error) == ("dead", "timeout after 1 s")
    assert queue.out("logs", late) == "begun"
    queue.stop()
    assert [path for path in spaced.glob("*") if path.name.startswith("queuectl-") and path.is_dir()] == []


def test_keys_limits_and_dependencies_hold_across_packs(bench):
    queue = bench.queue
    queue.cli("queue", "limit", "few", 2)
    first = bench.enqueue("sleep=0.5")
    child = bench.enqueue("exit=0", options=["--after", first])
    orphan_of = bench.enqueue("exit=1", options=["--max-retries", 0])
    orphan = bench.enqueue("exit=0", options=["--after", orphan_of])
    keyed = [bench.enqueue("sleep=0.2", options=["--key", "one"]) for _ in range(4)]
    few = [bench.enqueue("sleep=0.4", options=["--queue", "few"]) for _ in range(5)]
    start(bench, 6, "--pack", 3)
    ended(bench)
    expected = dict.fromkeys([first, child, *keyed, *few], "completed")
    expected.update({orphan_of: "dead", orphan: "cancelled"})
    at = {(entry.event, entry.job): entry.at for entry in bench.journal()}
    assert at["start", child] > at["end", first]
    spans = sorted((at["start", job], at["end", job]) for job in keyed)
    assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:]))
    for job in few:
        assert sum(at["start", other] <= at["start", job] < at["end", other] for other in few) <= 2
    check_all(bench, expected)


def test_a_pack_runs_as_many_at_once_as_its_task_has_cores_and_slots_are_cores(bench):
    jobs = [bench.enqueue("sleep=1") for _ in range(4)] + [bench.enqueue("sleep=1", options=["--slots", 4])]
    start(bench, 2, "--pack", 4, "--", "--cpus-per-task", 4)
    ended(bench)
    at = {(entry.event, entry.job): entry.at for entry in bench.journal()}
    assert max(at["start", job] for job in jobs[:4]) < min(at["end", job] for job in jobs[:4])
    check_all(bench)


# ---- cancel, stop ------------------------------------------------------------------------------

def test_a_cancel_reaches_waiting_and_running_jobs_of_a_pack(bench):
    queue = bench.queue
    block = bench.enqueue("until=go")
    for _ in range(2):
        bench.enqueue("hang=9", "until=go")
    start(bench, 3, "--pack", 2, "--", "--nodelist", "n1", "--cpus-per-task", "8")
    wait_until(lambda: bench.started(block) and bench.started(2), 30, "the first task runs")
    waiting = bench.enqueue_many([bench.line("exit=0")] * 2)  # the node is full: Slurm lets them wait, in one pack
    wait_until(lambda: queue.job(waiting[-1]).state == "processing", 90, "they are handed over")
    queue.cli("cancel", waiting[0], 2, timeout=60)
    assert queue.job(waiting[0]).state == queue.job(2).state == "cancelled"
    assert not bench.journal("start", job=waiting[0])
    assert "Slurm: task" in queue.out("explain", waiting[1])
    queue.cli("cancel", waiting[1], 3)
    bench.go("go")
    ended(bench)
    check_all(bench, {1: "completed", 2: "cancelled", 3: "cancelled", waiting[0]: "cancelled", waiting[1]: "cancelled"})


def test_what_runs_goes_on_after_a_stop_and_the_next_start_takes_it_over(bench):
    jobs = [bench.enqueue("until=go", "print=hello") for _ in range(3)] + [bench.enqueue("sleep=0.1") for _ in range(3)]
    start(bench, 3, "--pack", 2)
    wait_until(lambda: all(bench.started(job) for job in jobs[:1]), 30, "they run")
    done = bench.queue.stop()
    assert "Slurm" in done.stdout + done.stderr or "slurm" in done.stdout + done.stderr
    assert bench.cluster.tasks()
    assert bench.queue.job(jobs[0]).state == "processing"
    bench.queue.start(1, "--queue", "other")  # workers of this machine leave them alone
    time.sleep(1.5)
    assert bench.queue.job(jobs[0]).state == "processing"
    bench.queue.stop()
    bench.go("go")
    bench.queue.cli("worker", "start", "--on", "slurm", "--count", 3, cwd="/")
    ended(bench)
    assert bench.queue.out("logs", jobs[0]) == "hello"
    assert all(bench.queue.job(job).attempt == 1 for job in jobs[:1])
    check_all(bench)


def test_stop_now_cancels_what_runs_and_gives_it_back_uncharged(bench):
    jobs = [bench.enqueue("hang=2") for _ in range(4)]
    start(bench, 2, "--pack", 2)
    wait_until(lambda: len(bench.journal("start")) >= 2, 30, "they run")
    bench.queue.stop("--now")
    assert not bench.cluster.tasks("PENDING,RUNNING,COMPLETING") and spool(bench) == []
    assert [(bench.queue.job(job).state, bench.queue.job(job).attempts) for job in jobs] == [("pending", 0)] * 4
    start(bench, 2)
    ended(bench)
    check_all(bench)


# ---- a dispatcher that is killed ---------------------------------------------------------------

POINTS = {
    "after the claim, before the spool": ("Dispatcher", "_send", "before"),
    "in the spool": ("Slurm", "submit", "before"),
    "after sbatch, before its id is stored": ("Slurm", "submit", "after"),
    "after its id is stored": ("Handed", "name", "after"),
    "after a look": ("Slurm", "look", "after"),
    "before an end is recorded": ("Handed", "record", "before"),
    "after an end is recorded": ("Handed", "record", "after"),
    "before an array is forgotten": ("Handed", "forget", "before"),
    "after an array is forgotten": ("Handed", "forget", "after"),
}


def test_a_dispatcher_killed_at_any_point_loses_and_doubles_nothing(bench):
    patch = "\n".join(
        "def _{n}(own=queuectl.{c}.{m}):\n"
        "    def call(*args):\n"
        "        if {w!r} == 'before' and once('point-{n}'): die()\n"
        "        result = own(*args)\n"
        "        if {w!r} == 'after' and once('point-{n}'): die()\n"
        "        return result\n"
        "    queuectl.{c}.{m} = call\n"
        "_{n}()".format(n=number, c=owner, m=method, w=when) for number, (owner, method, when) in enumerate(POINTS.values()))
    for number in range(30):
        bench.enqueue("print=%d" % number, "sleep=%.1f" % (number % 3 / 2), "fail=%d" % (1 + (number % 5 == 0)))
    bench.patched_beside(patch, "worker", "start", "--foreground", "--count", 4, "--on", "slurm", "--pack", 3)
    ended(bench)
    wait_until(lambda: not bench.queue.sql("SELECT id FROM sent"), 20, "the spool is cleaned")
    assert {name for name in os.listdir(bench.folder) if name.startswith("point-")} == {
        "point-%d" % number for number in range(len(POINTS))}
    check_all(bench)


def test_a_supervisor_killed_with_its_dispatcher_leaves_jobs_that_the_next_start_takes_over(bench):
    jobs = [bench.enqueue("until=go") for _ in range(4)]
    start(bench, 2, "--pack", 2)
    wait_until(lambda: len(bench.journal("start")) >= 2, 30, "they run")
    kill(*bench.supervisors().values(), *bench.workers().values())
    bench.queue.start(1, "--queue", "other")
    bench.queue.cli("doctor", "--fix", check=False)
    bench.queue.stop()
    assert {bench.queue.job(job).state for job in jobs} == {"processing"}
    bench.go("go")
    bench.queue.cli("worker", "start", "--on", "slurm", "--count", 2, cwd="/tmp")
    ended(bench)
    assert {bench.queue.job(job).attempt for job in jobs} == {1}
    check_all(bench)


def wrapper(bench, text):
    """Puts a script in the place of sbatch, which calls the real one as $real."""
    folder = bench.folder / "bin"
    folder.mkdir()
    path = folder / "sbatch"
    path.write_text("#!/bin/bash\nreal=%s\n%s\n" % (shlex.quote(shutil.which("sbatch")), text))
    path.chmod(0o755)
    bench.queue.env["PATH"] = "%s:%s" % (folder, bench.queue.env["PATH"])


def test_an_sbatch_that_submits_and_then_fails_is_found_by_its_name(bench):
    wrapper(bench, 'if mkdir "%s/once" 2>/dev/null; then "$real" "$@" >/dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1; fi\n'
                   'exec "$real" "$@"' % bench.folder)
    for _ in range(4):
        bench.enqueue("sleep=2")
    start(bench, 2, "--pack", 2)
    ended(bench)
    assert {row[0] for row in bench.queue.sql("SELECT attempt FROM job")} == {1}
    check_all(bench)


def test_an_sbatch_that_comes_after_all_finds_the_claim_gone(bench):
    wrapper(bench, 'if mkdir "%s/once" 2>/dev/null; then cat >"%s/script"; while [ ! -e "%s/late" ]; do sleep 0.1; done\n'
                   '"$real" "$@" <"%s/script" >"%s/said" 2>&1; exit; fi\nexec "$real" "$@"' % ((bench.folder,) * 5))
    jobs = [bench.enqueue("sleep=0.1") for _ in range(3)]
    start(bench, 1, "--pack", 3)
    wait_until(lambda: (bench.folder / "script").exists(), 20, "sbatch was called")
    kill(*bench.workers().values())
    ended(bench)
    (bench.folder / "late").touch()
    wait_until(lambda: (bench.folder / "said").exists() and (bench.folder / "said").read_text(), 20, "it was submitted late")
    wait_until(lambda: not bench.cluster.tasks(), 20, "it has ended")
    assert [len(bench.journal("start", job=job)) for job in jobs] == [1, 1, 1]
    check_all(bench)


# ---- the engine in trouble ---------------------------------------------------------------------

@pytest.mark.parametrize("lines", [["SlurmdTimeout=5"]])
def test_a_node_that_dies_gives_its_jobs_back_when_slurm_says_so(bench, lines):
    jobs = [bench.enqueue("hang=2", options=["--max-retries", 0]) for _ in range(2)]
    after = bench.enqueue("exit=0")
    bench.patched_beside("queuectl.ENGINE_LOOK_S = 2.0", "worker", "start", "--foreground", "--on", "slurm", "--pack", 3, "--", "--nodelist", "n2")
    wait_until(lambda: bench.started(jobs[0]), 30, "it runs")
    slurmd = bench.cluster.pid("slurmd-n2")
    steps = [int(pid) for pid in subprocess.run(["pgrep", "-x", "slurmstepd"], stdout=subprocess.PIPE).stdout.split()
             if bench.cluster.conf.encode() in Path("/proc/%s/environ" % pid.decode()).read_bytes()]
    families = [int(pid) for pid in bench.queue.processes() if b"\0_node\0" in Path("/proc/%d/cmdline" % pid).read_bytes()]
    kill(slurmd, *steps, *families)
    kill(*[pid for pid, line in bench.queue.processes().items() if "job.py" in line])
    wait_until(lambda: bench.queue.job(jobs[0]).state != "processing" or bench.queue.job(jobs[0]).attempt > 1, 60, "Slurm says so")
    bench.cluster.script("node", "n2", bench.cluster.folder)
    bench.cluster.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
    ended(bench)
    shown = bench.queue.json("show", jobs[0])
    assert [(entry["outcome"], entry["error"]) for entry in shown["history"]][:1] == [("crashed", "Slurm: NODE_FAIL")]
    released = bench.queue.json("show", after)["history"]
    assert released[0]["outcome"] == "released"
    check_all(bench)


@pytest.mark.parametrize("lines", [["SlurmdTimeout=5"]])
def test_a_node_that_slurm_has_given_up_ends_its_jobs_before_they_run_again(bench, lines):
    bench.queue.cli("config", "set", "kill_grace", "4")
    job = bench.enqueue("deaf", "hang=2")
    bench.patched_beside("queuectl.ENGINE_LOOK_S = 2.0", "worker", "start", "--foreground", "--on", "slurm")
    wait_until(lambda: bench.started(job), 30, "it runs")
    kill(bench.cluster.pid("slurmd-" + bench.cluster.ask("squeue", "-h", "-o", "%N").strip()))
    wait_until(lambda: bench.started(job, 2), 90, "Slurm says NODE_FAIL, so it runs again: " + bench.log())
    assert not os.path.exists("/proc/%d" % bench.started(job).pid)
    ended(bench)
    assert [(entry["outcome"], entry["error"]) for entry in bench.queue.json("show", job)["history"]] == [
        ("crashed", "Slurm: NODE_FAIL"), ("completed", None)]
    check_all(bench)


def test_slurmctld_that_is_away_is_no_jobs_failure(bench):
    queue = bench.queue
    long = [bench.enqueue("until=go") for _ in range(2)]
    start(bench, 4)
    wait_until(lambda: len(bench.journal("start")) == 2, 30, "they run")
    bench.cluster.stop_control()
    late = bench.enqueue("exit=0")
    bench.go("go")
    wait_until(lambda: all(queue.job(job).state == "completed" for job in long), 20, "their ends come by the spool")
    wait_until(lambda: "Slurm: " in queue.out("status"), 60, "status says so")
    wait_until(lambda: "Slurm: " in queue.out("explain", late), 30, "explain says so")
    wait_until(lambda: "Slurm: " in queue.cli("health", check=False).stdout, 30, "health says so")
    bench.cluster.script("control", bench.cluster.folder)
    ended(bench)
    wait_until(lambda: "Slurm: " not in queue.out("status"), 60, "status no longer says so")
    assert queue.job(late).attempts == 1
    check_all(bench)


def test_a_bad_partition_and_a_task_that_cannot_begin_are_told_and_charge_nothing(bench):
    queue = bench.queue
    job = bench.enqueue("exit=0")
    start(bench, 2, "--", "--partition", "nope")
    wait_until(lambda: "invalid partition" in queue.out("explain", job).lower() or "invalid partition" in queue.out("status").lower(), 30,
               "it is told")
    queue.stop()
    wrapper(bench, 'if mkdir "%s/once" 2>/dev/null; then printf "#!/bin/sh\\necho no python here >&2; exit 1\\n" | "$real" "$@"; exit; fi\n'
                   'exec "$real" "$@"' % bench.folder)
    start(bench, 2)
    wait_until(lambda: "ended before it began a job (FAILED): no python here" in bench.log(), 30, "it is told")
    ended(bench)
    assert queue.job(job).attempts == 1
    check_all(bench)


def test_engine_test_says_step_by_step_what_is_wrong_and_a_queue_has_options_of_its_own(bench):
    queue = bench.queue
    assert queue.out("engine", "test", "slurm").count("\u2714") == 3
    done = queue.cli("engine", "test", "slurm", "--", "--partition", "nope", check=False)
    assert done.returncode == 1 and "invalid partition" in done.stdout.lower()
    assert [step["ok"] for step in queue.json("engine", "test", "slurm")] == [True] * 3
    done = queue.cli("queue", "set", "gpu", "--engine-options", "--comment 'a", check=False)
    assert done.returncode == 2 and "no closing quotation" in done.stderr
    queue.cli("queue", "set", "gpu", "--engine-options", "--nodelist 'n3'")
    job = queue.enqueue("--queue", "gpu", "echo $SLURMD_NODENAME")
    start(bench, 2, "--", "--nodelist", "n1")
    other = queue.enqueue("echo $SLURMD_NODENAME")
    ended(bench)
    assert (queue.out("logs", job), queue.out("logs", other)) == ("n3", "n1")
    check_all(bench)


@pytest.mark.parametrize("lines", [["MaxArraySize=4"]])
def test_arrays_are_no_larger_than_slurm_allows(bench, lines):
    for _ in range(10):
        bench.enqueue("sleep=0.1")
    start(bench, 10, "--pack", 1)
    ended(bench)
    assert {row[0] for row in bench.queue.sql("SELECT attempt FROM job")} == {1}
    check_all(bench)


def test_a_task_that_an_admin_cancels_is_charged_and_a_node_runner_that_dies_is_a_crash(bench):
    queue = bench.queue
    cancelled = bench.enqueue("hang=2")
    start(bench, 1)
    wait_until(lambda: bench.started(cancelled), 30, "it runs")
    bench.cluster.ask("scancel", bench.cluster.tasks()[0].split()[1])
    queue.wait_for(cancelled, "completed", timeout=60)
    assert [(entry["outcome"], entry["error"]) for entry in queue.json("show", cancelled)["history"]] == [
        ("failed", "Slurm: CANCELLED"), ("completed", None)]
    crashed = bench.enqueue("hang=2")
    wait_until(lambda: bench.started(crashed), 30, "it runs")
    with open("/proc/%d/stat" % bench.started(crashed).pid) as file:
        runner = int(file.read().rpartition(")")[2].split()[1])
    kill(runner)
    ended(bench)
    assert [entry["outcome"] for entry in queue.json("show", crashed)["history"]] == ["crashed", "completed"]
    check_all(bench)


# ---- what Slurm may say of a task: the table TASK_ENDS -----------------------------------------

ACCOUNTING = ["AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageEnforce=limits", "MinJobAge=2"]
accounting = pytest.mark.skipif(not shutil.which("slurmdbd") or not shutil.which("mariadbd"), reason="needs slurmdbd and mariadb-server")


def history(bench, job):
    return [(entry["outcome"], entry["error"]) for entry in bench.queue.json("show", job)["history"] if entry["outcome"] != "running"]


@pytest.mark.parametrize("lines", [["PreemptType=preempt/partition_prio", "PreemptMode=CANCEL",
                                    "PartitionName=high Nodes=n[1-3] PriorityTier=10 MaxTime=INFINITE State=UP"]])
def test_a_preempted_task_is_given_back_uncharged(bench, lines):
    job = bench.enqueue("hang=2", options=["--max-retries", 0])
    start(bench, 1)
    wait_until(lambda: bench.started(job), 30, "it runs")
    bench.cluster.ask("sbatch", "-p", "high", "-N", "3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    ended(bench)
    assert history(bench, job) == [("released", "Slurm: PREEMPTED"), ("completed", None)]
    assert bench.queue.job(job).attempts == 1
    check_all(bench)


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="needs memory control groups of version 1")
@pytest.mark.parametrize("lines", [["TaskPlugin=task/cgroup", "JobAcctGatherType=jobacct_gather/cgroup", "SelectTypeParameters=CR_CPU_Memory"]])
def test_a_task_that_takes_more_memory_than_it_asked_for_has_failed(bench, lines):
    """The kernel ends the largest process, mostly the job: then the attempt has a word of its own.  The second job ends the node's runner too."""
    queue = bench.queue
    greedy = [sys.executable, "-c", "held = b'x' * (400 << 20)"]
    plain = queue.enqueue("--max-retries", 0, *greedy)
    whole = queue.enqueue("--max-retries", 0, *queue.script(
        "import os, signal, subprocess; subprocess.run(%r); stat = open('/proc/%%d/stat' %% os.getppid()).read(); "
        "os.kill(int(stat.rpartition(')')[2].split()[1]), 9); signal.pause()" % greedy))
    start(bench, 2, "--pack", 1, "--", "--mem", "200")
    for job in (plain, whole):
        queue.wait_for(job, "dead", timeout=90)
    assert (queue.job(plain).signal, history(bench, plain)[0][0]) == (9, "failed")
    assert history(bench, whole) == [("failed", "Slurm: OUT_OF_MEMORY")]
    queue.stop()


def test_a_task_that_outlives_its_time_has_timed_out_and_one_past_its_deadline_is_given_back(bench):
    queue = bench.queue
    queue.cli("queue", "set", "short", "--engine-options", "--nodelist n1 --exclusive --time 1")
    queue.cli("queue", "set", "due", "--engine-options", "--nodelist n1 --deadline now+70 --time 1")
    short = bench.enqueue("hang=9", options=["--queue", "short", "--max-retries", 0])
    start(bench, 2)
    wait_until(lambda: bench.started(short), 30, "it runs")
    due = bench.enqueue("exit=0", options=["--queue", "due"])
    wait_until(lambda: history(bench, short) and history(bench, due), 200, "Slurm ends both: " + bench.log())
    assert history(bench, short) == [("timeout", "Slurm: TIMEOUT")]
    ended(bench)
    assert [entry for entry in history(bench, due) if entry[0] != "released"] == [("completed", None)]
    assert ("released", "Slurm: DEADLINE") in history(bench, due) and queue.job(due).attempts == 1
    check_all(bench, {short: "dead", due: "completed"})


@accounting
@pytest.mark.parametrize("lines", [ACCOUNTING])
def test_the_accounting_knows_a_task_that_squeue_has_forgotten(bench, lines):
    queue = bench.queue
    job = bench.enqueue("hang=2")
    start(bench, 1)
    wait_until(lambda: bench.started(job), 30, "it runs")
    queue.stop()
    bench.cluster.ask("scancel", bench.cluster.tasks()[0].split()[1])
    wait_until(lambda: not bench.cluster.tasks("all"), 180, "squeue has forgotten it", interval=0.5)
    start(bench, 1)
    ended(bench)
    assert history(bench, job) == [("failed", "Slurm: CANCELLED"), ("completed", None)]
    check_all(bench)


# ---- limits ------------------------------------------------------------------------------------

def waits_at_the_limit(bench, options):
    """Jobs of which Slurm takes five at a time: they all run, and meanwhile it is said why the others wait."""
    queue = bench.queue
    jobs = [bench.enqueue("until=go", "sleep=%.1f" % (number / 10)) for number in range(14)]
    start(bench, 14, "--pack", 1, *options)
    wait_until(lambda: len(bench.journal("start")) == 5, 90, "five run")
    for words in (["status"], ["health"], ["explain", jobs[-1]]):
        wait_until(lambda words=words: "a limit on submitted jobs is reached" in queue.cli(*words, check=False).stdout, 60, words[0] + " says so")
    assert len(bench.cluster.tasks()) == 5 and len(bench.journal("start")) == 5
    bench.go("go")
    ended(bench)
    wait_until(lambda: "limit" not in queue.out("status"), 30, "status no longer says so")
    assert {queue.job(job).attempts for job in jobs} == {1}
    return jobs


@accounting
@pytest.mark.parametrize("lines", [ACCOUNTING])
def test_a_submit_limit_is_read_and_kept(bench, lines):
    bench.cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=5")
    jobs = waits_at_the_limit(bench, [])
    assert "sbatch: error" not in bench.log()
    assert {bench.queue.job(job).attempt for job in jobs} == {1}
    check_all(bench)


@accounting
@pytest.mark.parametrize("lines", [ACCOUNTING])
def test_a_submit_limit_that_cannot_be_read_is_learned_from_refusals(bench, lines):
    bench.cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=5")
    waits_at_the_limit(bench, ["--", "--account", "all"])
    assert "AssocMaxSubmitJobLimit" in bench.log()
    check_all(bench)


@pytest.mark.parametrize("lines", [["MaxJobCount=6", "MinJobAge=2"]])
def test_a_full_slurm_is_waited_for(bench, lines):
    jobs = [bench.enqueue("sleep=0.1") for _ in range(8)]
    start(bench, 8, "--pack", 1)
    wait_until(lambda: "unable to accept job" in bench.queue.out("status"), 60, "status says so: " + bench.log())
    ended(bench, 400)
    assert {bench.queue.job(job).attempts for job in jobs} == {1}
    check_all(bench)
