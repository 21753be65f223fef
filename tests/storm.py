"""A storm: supervisors and workers under a killer that never rests, thousands of jobs of all kinds; then drain and check.

    python tests/storm.py --seconds 60 [--seed N]

The seed decides what is enqueued, and what is done to which process in what order; the machine decides the
moments.  Ends with 0 when all that was promised holds, and keeps the queue's directory when it does not.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import faults
from conftest import LiveQueue
from faults import Bench, check, kill

# kind: (weight, states that it may end in, options of its JSON line, steps of the test job or a plain command)
KINDS = {
    "quick": (40, ("completed",), {}, "exit 0"),
    "recorded": (14, ("completed",), {"max_retries": 0}, ["exit=0"]),
    "slow": (6, ("completed",), {"max_retries": 0}, ["sleep=0.4", "print=slow", "exit=0"]),
    "stubborn": (4, ("completed",), {"max_retries": 0}, ["deaf", "sleep=0.3", "exit=0"]),
    "flaky": (6, ("completed",), {"max_retries": 3}, ["fail=3", "exit=0"]),
    "failing": (8, ("dead",), {"max_retries": 1}, ["exit=3"]),
    "hopeless": (6, ("dead",), {"max_retries": 2}, "exit 4"),
    "endless": (4, ("dead",), {"max_retries": 0, "timeout": 0.4}, ["deaf", "child", "until=never"]),
    "group": (4, ("dead",), {"max_retries": 0}, ["child", "kill-group"]),
    "murderous": (2, ("completed",), {"max_retries": 0}, ["kill-worker=2", "exit=0"]),
    "cancelled": (6, ("cancelled",), {}, ["until=never"]),
    "late": (4, ("completed", "cancelled"), {}, ["sleep=0.1", "exit=0"]),
    "keyed": (6, ("completed",), {"key": "k", "max_retries": 0}, ["sleep=0.01", "exit=0"]),
}


class Storm:
    def __init__(self, seed, seconds, supervisors, workers):
        self.chance = random.Random(seed)
        self.seconds = seconds
        self.supervisors = supervisors
        self.workers = workers
        self.folder = tempfile.mkdtemp(prefix="storm-")
        self.queue = LiveQueue(self.folder)
        self.bench = Bench(self.queue)
        self.done = Counter()       # what was injected
        self.troubles = []          # what no user may ever see
        self.acknowledged = []      # ids that `enqueue` has printed
        self.to_cancel = []         # (not before, id)
        self.stopped = {}           # pid: when it may go on
        self.running = []           # commands under way: (name, process, output)
        self.slowest = 0.0

    def work(self):
        for key, value in (("backoff_base", "0.05"), ("backoff_max", "0.5"), ("kill_grace", "0.2"), ("max_crashes", "100000")):
            self.queue.cli("config", "set", key, value)
        begun = time.monotonic()
        enqueue_at = kill_at = begun
        while time.monotonic() - begun < self.seconds:
            now = time.monotonic()
            self.let_go(now)
            self.collect()
            self.keep_supervisors()
            if now >= enqueue_at:
                self.enqueue()
                self.cancel(now)
                enqueue_at = now + self.chance.uniform(0.1, 0.6)
            if now >= kill_at and now - begun > 2:
                self.harm()
                kill_at = now + self.chance.uniform(0.03, 0.25)
            time.sleep(0.01)
        self.let_go(float("inf"))
        self.finish()

    # -- the users --

    def start(self, name, *args, stdin=None):
        """Starts a command beside; what it says is looked at when it has ended."""
        output = tempfile.TemporaryFile()
        source = tempfile.TemporaryFile()
        source.write((stdin or "").encode())
        source.seek(0)
        process = subprocess.Popen(self.queue.command(*args), stdin=source, stdout=output, stderr=subprocess.STDOUT,
                                   env=self.queue.environment(), cwd=str(self.queue.dir), start_new_session=True)
        source.close()
        self.running.append((name, process, output, time.monotonic(), []))
        return self.running[-1]

    def enqueue(self):
        names = list(KINDS)
        kinds = self.chance.choices(names, [KINDS[name][0] for name in names], k=self.chance.randint(1, 60))
        lines = []
        for kind in kinds:
            _, _, options, what = KINDS[kind]
            command = what if isinstance(what, str) else self.bench.line(*what)
            lines.append(json.dumps(dict(options, command="%s # %s" % (command, kind))))
        if self.chance.random() < 0.15:  # one that is killed on its way, or just after
            entry = self.start("enqueue that is killed", "enqueue", "--file", "-", stdin="\n".join(
                line for line, kind in zip(lines, kinds) if kind != "cancelled") or "exit 0 # quick")
            entry[4].append(time.monotonic() + self.chance.uniform(0.0, 0.25))
            return
        entry = self.start("enqueue", "enqueue", "--file", "-", stdin="\n".join(lines))
        entry[4].append(kinds)

    def cancel(self, now):
        ids = [job for at, job in self.to_cancel if at <= now]
        self.to_cancel = [(at, job) for at, job in self.to_cancel if at > now]
        if ids:
            self.start("cancel", "cancel", *ids)

    def collect(self):
        """Looks at the commands that have ended."""
        for entry in list(self.running):
            name, process, output, began, more = entry
            if name == "enqueue that is killed" and process.poll() is None and time.monotonic() >= more[0]:
                process.kill()
                self.done["KILL of a command"] += 1
            if process.poll() is None:
                continue
            self.running.remove(entry)
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
            output.close()
            if "Traceback" in text or "locked" in text or name == "enqueue" and process.returncode:
                self.troubles.append("%s ended with %s: %s" % (name, process.returncode, text[-2000:]))
            if name == "enqueue":
                self.slowest = max(self.slowest, time.monotonic() - began)
                ids = [int(word) for word in text.split() if word.isdigit()]
                self.acknowledged += ids
                for job, kind in zip(ids, more[0]):
                    if kind in ("cancelled", "late"):
                        self.to_cancel.append((time.monotonic() + self.chance.uniform(0.0, 1.5), job))
                self.done["jobs enqueued"] += len(ids)

    def keep_supervisors(self):
        if sum(entry[0] == "worker start" for entry in self.running):
            return
        if len(self.tool("supervisor")) < self.supervisors:
            self.start("worker start", "worker", "start", "--count", self.workers)
            self.done["worker start"] += 1

    # -- the killer --

    def tool(self, table):
        """Pids of living supervisors or workers of this queue, and of no one else."""
        listed = [pid for pid, in self.queue.sql("SELECT pid FROM %s ORDER BY id" % table)]
        return [pid for pid in listed if self.is_ours(pid)]

    def is_ours(self, pid):
        try:
            environment = Path("/proc/%d/environ" % pid).read_bytes()
            line = Path("/proc/%d/cmdline" % pid).read_bytes()
        except OSError:
            return False
        return self.queue.marker.encode() in environment and b"--foreground" in line and faults.alive(pid)

    def harm(self):
        table = "supervisor" if self.chance.random() < 0.12 else "worker"
        act = self.chance.choices(["KILL", "STOP", "TERM", "KILL all of one"], [50, 25, 22, 3])[0]
        pick = self.chance.random()
        length = self.chance.uniform(0.05, 2.0)
        pids = self.tool(table)
        if not pids:
            return
        pid = pids[int(pick * len(pids))]
        if act == "STOP":
            kill(pid, number=signal.SIGSTOP)
            self.stopped[pid] = time.monotonic() + length
        elif act == "KILL all of one":
            table = "supervisor and its workers"
            workers = [worker for worker, in self.queue.sql(
                "SELECT worker.pid FROM worker JOIN supervisor ON supervisor.id=worker.supervisor WHERE supervisor.pid=?", pid)]
            kill(pid, *[worker for worker in workers if self.is_ours(worker)])
        else:
            kill(pid, number=signal.SIGKILL if act == "KILL" else signal.SIGTERM)
        self.done["%s of a %s" % (act.replace(" all of one", ""), table)] += 1

    def let_go(self, now):
        for pid, at in list(self.stopped.items()):
            if at <= now:
                del self.stopped[pid]
                if faults.process_state(pid) == "T":
                    kill(pid, number=signal.SIGCONT)

    # -- the end --

    def finish(self):
        limit = time.monotonic() + 60
        while self.running and time.monotonic() < limit:
            self.collect()
            time.sleep(0.02)
        self.cancel(float("inf"))
        while self.running and time.monotonic() < limit:
            self.collect()
            time.sleep(0.02)
        self.troubles += ["a command that does not end: %s" % entry[0] for entry in self.running]
        self.queue.cli("worker", "start", "--count", self.workers, check=False)
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            left = self.queue.sql("SELECT state, count(*) FROM job WHERE state NOT IN ('completed','dead','cancelled') GROUP BY state")
            if not left:
                return
            time.sleep(0.2)
        self.troubles.append("not drained after 120 s: %s" % left)

    def verdict(self):
        """Everything that does not hold, as sentences."""
        expected = {job: KINDS[command.rpartition("# ")[2]][1] for job, command in self.queue.sql("SELECT id, command FROM job")}
        found = list(self.troubles)
        lost = [job for job in self.acknowledged if job not in expected]
        if lost:
            found.append("acknowledged but gone: %s" % lost)
        try:
            check(self.bench, expected)
        except AssertionError as error:
            found.append(str(error).partition("\nthe workers' log:")[0])
        if "Traceback" in self.bench.log():
            found.append("a traceback in the workers' log: %s" % self.bench.log().partition("Traceback")[2][:3000])
        return found

    def report(self):
        print("injected:")
        for what, count in sorted(self.done.items()):
            print("  %6d  %s" % (count, what))
        kinds = Counter((command.rpartition("# ")[2], state) for command, state in self.queue.sql("SELECT command, state FROM job"))
        print("jobs at the end:")
        for (kind, state), count in sorted(kinds.items()):
            print("  %6d  %s: %s" % (count, kind, state))
        outcomes = self.queue.sql("SELECT outcome, count(*) FROM history WHERE attempt IS NOT NULL GROUP BY outcome ORDER BY 1")
        print("attempts: " + ", ".join("%d %s" % (count, outcome) for outcome, count in outcomes))
        print("slowest enqueue: %.2f s" % self.slowest)
        print("checked: every acknowledged job is there; each is in a state that its kind allows; no two attempts of a job "
              "overlapped;\n  every attempt is in the history, once; retries and crashes are counted as the history says; counters agree "
              "with the rows;\n  PRAGMA integrity_check; no process, lock file or row is left; no traceback, no `locked`")


def main():
    parser = argparse.ArgumentParser(description="workers under a killer, then drain and check")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--supervisors", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4, help="workers of each supervisor")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    print("storm: seed %d, %g s, %d supervisors of %d workers (again: python tests/storm.py --seconds %g --seed %d)" % (
        seed, args.seconds, args.supervisors, args.workers, args.seconds, seed), flush=True)
    storm = Storm(seed, args.seconds, args.supervisors, args.workers)
    try:
        storm.work()
        storm.report()
        found = storm.verdict()
    finally:
        storm.let_go(float("inf"))
        left = storm.queue.close()
        kill(*storm.queue.processes())
    if left:
        found.append("left behind: %s" % (left,))
    if found:
        print("\n".join(["FAILED, seed %d:" % seed] + found + ["the queue is kept in %s" % storm.folder]))
        return 1
    shutil.rmtree(storm.folder, ignore_errors=True)
    print("ok: all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
