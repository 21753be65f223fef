"""Random sequences of commands and outcomes, played on the Store and on a reference model of a page or two.

The model knows nothing of indexes, gates as numbers, tallies or locks in tables: jobs in a dict, and the rules of
the README said once each.  After every step each job of the Store must be what the model says, and the invariants
of life.py must hold.
"""
from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from life import Clock, add_schedule, claim, finish, guard_states, invariants, open_store, pool, rows

import queuectl

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, settings, strategies as st  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test  # noqa: E402

FOLLOWUPS = queuectl.FOLLOWUPS
STEP = 2  # how many children one transaction tells of their parent's end
QUEUES = ("default", "mail", "slow")
KEYS = ("k", "l")
UNIQUE = ("u", "v")
MAX_SNOOZES, SNOOZE_S, BACKOFF_S, MAX_CRASHES = 2, 30.0, 5.0, 3
FINAL = ("completed", "dead", "cancelled")
WAITING = ("pending", "failed")


class Model:
    """What a queue is, without a thought for speed."""

    def __init__(self, clock):
        self.clock = clock
        self.jobs = {}
        self.batches = {}                 # id -> ids of its jobs, gone or not
        self.holder = {}                  # key -> the job that has it
        self.paused, self.limit = set(), {}
        self.every, self.next_at = {}, {}  # queue -> seconds between two starts, and when the next may be
        self.schedule = None              # (seconds between two runs, time of the next), or no schedule
        self.turn = {}                    # queue -> its place in the order in which queues were last served
        self.last_id = self.last_batch = 0
        self.noted = False                # whether a followup was added since the last step
        self.followups = []               # [parent, its state then, the children up to this one know, the last job then]

    # -- what keeps a job back --

    def reason(self, job):
        """The gate of a waiting job, by name; None for others."""
        if job.state not in WAITING:
            return None
        return ("held" if job.held else "parents" if job.waits_for else "due" if not job.seen_due else
                "keyed" if job.key and self.holder.get(job.key) != job.id else "own" if job.pool else "ready")

    def settle(self, job):
        """Something of a waiting job has changed: it may take a key, or let go of one."""
        job.seen_due = job.run_at <= self.clock()
        if job.held or job.waits_for or not job.seen_due:
            if job.state == "pending":
                self.let_go(job)
        elif job.key:
            self.holder.setdefault(job.key, job.id)

    def let_go(self, job):
        if job.key and self.holder.get(job.key) == job.id:
            del self.holder[job.key]
            heirs = [j for j in self.jobs.values() if j is not job and j.key == job.key and j.state in WAITING
                     and not j.held and not j.waits_for and j.seen_due]
            if heirs:
                self.settle(min(heirs, key=lambda j: (-j.priority, j.id)))

    # -- the ends of jobs, and what follows --

    def end(self, job, state, error=None, cause=None):
        told = job.state in FINAL  # a dead job that is cancelled has told its children already
        self.mark(job, state, error, cause)
        if not told:
            self.follows(job)

    def follows(self, job):
        """What follows from an end at once; the children hear of it in steps."""
        self.let_go(job)
        self.note(job.id, job.state)
        if job.batch and self.unfinished(job.batch) == 0:
            self.note(-job.batch, "completed")

    def note(self, parent, state):
        if any(parent in j.waits_for for j in self.jobs.values()):
            self.followups.append([parent, state, 0, self.last_id])
            self.noted = True

    def step(self, most=STEP):
        """Tells at most so many children; returns how many more it might have told."""
        self.noted = False
        while most > 0 and self.followups:
            parent, state, after, last = self.followups[0]
            children = [j for j in sorted(self.jobs.values(), key=lambda j: j.id)
                        if parent in j.waits_for and after < j.id <= last][:most]
            for child in children:
                self.tell(child, parent, state)
            if len(children) < most:
                self.followups.pop(0)
            else:
                self.followups[0][2] = children[-1].id
            most -= len(children) + 1
        return most

    def step_if_noted(self):
        if self.noted:
            self.step()

    def catch_up(self):
        while self.followups:
            self.step()

    def change(self, numbers, action):
        """As a command does: those whose change concerns no other job come first, if there are several."""
        self.catch_up()
        left = list(numbers)
        while left:
            alone = [n for n in sorted(left) if len(left) > 1 and action.able(self, self.jobs[n])]
            for number in alone:
                action(self, number)
            left, most = [n for n in left if n not in alone], STEP
            while left and most > 0:
                action(self, left.pop(0))
                most = self.step(most - 1) if self.noted else most - 1
            self.catch_up()

    def mark(self, job, state, error, cause=None):
        job.state, job.error, job.cause, job.finished_at = state, error, cause, self.clock()
        job.expires_at = job.pool = None

    def tell(self, child, parent, state):
        """Frees or cancels a child of a parent that ended; retries it with a parent that was."""
        if state == "pending":
            if child.state == "cancelled" and child.cause == parent:
                stuck = self.failed_parent(child)
                if child.unique and self.duplicate(child.unique, 0):
                    pass
                elif stuck:
                    child.cause = stuck  # its turn comes when that one is retried
                else:
                    self.revive(child)
        elif state == "completed" or child.waits_for[parent]:
            del child.waits_for[parent]
            if child.state in WAITING:
                self.settle(child)
        elif child.state in WAITING:
            self.mark(child, "cancelled", "parent", parent)
            self.follows(child)

    def unfinished(self, batch):
        return sum(n in self.jobs and self.jobs[n].state not in FINAL for n in self.batches[batch])

    def failed_parent(self, job):
        """A parent that must complete and can't, as it has died or was cancelled."""
        return next((p for p in sorted(job.waits_for) if not job.waits_for[p] and p in self.jobs
                     and self.jobs[p].state in ("dead", "cancelled")), None)

    # -- commands --

    def duplicate(self, unique, window):
        same = [j for j in self.jobs.values() if j.unique == unique]
        return (max((j.id for j in same if j.state not in FINAL), default=None) or
                max((j.id for j in same if window and j.state in FINAL and j.finished_at > self.clock() - window), default=None))

    def add(self, specs, label, pool=None, scheduled=False):
        """The ids of new jobs; a parent is an id, a batch below zero, or a Place in the same file."""
        ids, new = [], []
        if label:
            self.last_batch += 1
            self.batches[self.last_batch] = []
        for spec in specs:
            duplicate = self.duplicate(spec.unique, spec.window) if spec.unique else None
            if duplicate:
                ids.append(duplicate)
                continue
            self.last_id += 1
            job = SimpleNamespace(
                id=self.last_id, state="pending", queue=spec.queue, priority=spec.priority, key=spec.key, unique=spec.unique,
                held=spec.hold, run_at=self.clock() + spec.delay, expires_at=self.clock() + spec.ttl if spec.ttl else None,
                max_retries=spec.max_retries, attempt=0, attempts=0, crashes=0, snoozes=0, asked=False, error=None, cause=None,
                finished_at=None, worker=None, waits_for={}, seen_due=False, pool=pool, batch=self.last_batch if label else None)
            self.jobs[job.id] = job
            self.turn.setdefault(job.queue, 0)
            ids.append(job.id)
            new.append((job, spec))
            if label:
                self.batches[self.last_batch].append(job.id)
        for job, spec in new:
            for parent, any_end in spec.parents:
                job.waits_for[ids[parent.place] if isinstance(parent, Place) else parent] = any_end
        for job, _ in new:  # in the order of the file, as the Store does
            self.arrive(job)
        if self.noted and not scheduled:
            self.catch_up()
        return ids

    def arrive(self, job):
        if job.state != "pending":
            return  # a parent in the same file was cancelled
        failed = None
        for parent in sorted(job.waits_for):
            any_end = job.waits_for[parent]
            state = ("completed" if self.unfinished(-parent) == 0 else "pending") if parent < 0 else self.jobs[parent].state
            if state == "completed" or any_end and state in FINAL:
                del job.waits_for[parent]
            elif state in FINAL:
                failed = parent
        if failed:
            self.end(job, "cancelled", "parent", failed)
        else:
            self.settle(job)

    def cancel(self, number):
        job = self.jobs[number]
        if job.state == "processing":
            job.asked = True
        elif job.state != "completed" and job.state != "cancelled":
            self.end(job, "cancelled", "cancelled")

    def hold(self, number, held=True):
        job = self.jobs[number]
        if job.state in WAITING:
            job.held = held
            self.settle(job)

    def release(self, number):
        self.hold(number, False)

    def retry(self, number):
        job = self.jobs[number]
        if job.state == "failed" or job.state == "pending" and job.attempt and job.run_at > self.clock():  # its wait is over
            job.run_at = self.clock()
            self.settle(job)
        if job.state not in FINAL or self.failed_parent(job) or job.unique and self.duplicate(job.unique, 0):
            return
        self.revive(job)

    def revive(self, job):
        job.state, job.attempts, job.crashes, job.snoozes, job.error, job.cause = "pending", 0, 0, 0, None, None
        job.run_at, job.finished_at, job.asked = self.clock(), None, False
        self.settle(job)
        self.note(job.id, "pending")

    def purge(self, number):
        self.catch_up()
        if self.jobs[number].state in FINAL:
            del self.jobs[number]
            for job in self.jobs.values():
                job.waits_for.pop(number, None)
            for batch in [b for b in self.batches if not any(n in self.jobs for n in self.batches[b])]:
                del self.batches[batch]

    def edit(self, number, priority, delay):
        job = self.jobs[number]
        if job.state in WAITING:
            job.priority = priority
            if delay is not None:
                job.run_at = self.clock() + delay
            self.settle(job)

    # -- workers --

    def promote(self):
        for job in sorted(self.jobs.values(), key=lambda j: (j.run_at, j.id)):
            if self.reason(job) == "due" and job.run_at <= self.clock():
                self.settle(job)

    def expire(self):
        for job in sorted(self.jobs.values(), key=lambda j: (j.expires_at or 0, j.id)):
            if job.state in WAITING and job.expires_at is not None and job.expires_at <= self.clock():
                self.end(job, "cancelled", "expired")

    def fire(self):
        every, next_at = self.schedule or (0, self.clock() + 1)
        if next_at <= self.clock():
            self.add([SimpleNamespace(**SCHEDULED)], None, scheduled=True)
            missed = (self.clock() - next_at) // every
            self.schedule = every, next_at + (missed + 1) * every

    def the_run_ends(self):
        """What is left of it is anyone's."""
        mine = [j for j in self.jobs.values() if j.pool]
        for job in mine:
            job.pool = None
        for job in mine:
            if job.state in WAITING:
                self.settle(job)

    def may_run(self, job, gate):
        running = sum(j.state == "processing" and j.queue == job.queue for j in self.jobs.values())
        return (self.reason(job) == gate and job.queue not in self.paused
                and (job.queue not in self.every or self.next_at[job.queue] <= self.clock())
                and (self.limit.get(job.queue) is None or running < self.limit[job.queue]))

    def claim(self, worker, queues, gate="ready"):
        job = self.claim_at_once(worker, queues, gate)
        return self.claim_at_once(worker, queues, gate) if job is None and self.step() < STEP else job

    def claim_at_once(self, worker, queues, gate):
        self.promote()
        while True:
            ready = [j for j in self.jobs.values() if (queues is None or j.queue in queues) and self.may_run(j, gate)]
            if not ready:
                return None
            top = max(j.priority for j in ready)
            firsts = {}  # of each queue that has one of the highest priority
            for job in sorted((j for j in ready if j.priority == top), key=lambda j: j.id):
                firsts.setdefault(job.queue, job)
            job = min(firsts.values(), key=lambda j: (self.turn[j.queue], j.id))
            if job.expires_at is None or job.expires_at > self.clock():
                break
            self.end(job, "cancelled", "expired")
        if len(self.turn) > 1 or job.queue in self.every:
            self.turn[job.queue] = max(self.turn.values()) + 1
        if job.queue in self.every:
            self.next_at[job.queue] = self.clock() + self.every[job.queue]
        return self.take(job, worker)

    def take(self, job, worker):
        job.state, job.worker, job.attempt, job.attempts = "processing", worker, job.attempt + 1, job.attempts + 1
        job.finished_at = job.expires_at = None
        return job.id

    def finish(self, number, kind, code):
        """Returns the least and the most run_at that the Store may have chosen, or None."""
        window = self.finish_at_once(number, kind, code)
        self.step_if_noted()
        return window

    def finish_at_once(self, number, kind, code):
        job = self.jobs[number]
        job.worker = None
        asked, job.asked = job.asked, False
        if kind == "completed":
            return self.end(job, "completed")
        if asked or kind == "cancelled":
            return self.end(job, "cancelled", "cancelled")
        if kind == "released":
            return self.put_back(job, "pending", 0, charge=False)
        if kind == "crashed":
            job.crashes += 1
            if job.crashes == MAX_CRASHES:
                job.attempts -= 1
                return self.end(job, "dead", "worker died 3 times")
            return self.put_back(job, "pending", 0 if job.crashes == 1 else BACKOFF_S, charge=False)
        if code == 75 and job.snoozes < MAX_SNOOZES:
            job.snoozes += 1
            return self.put_back(job, "pending", SNOOZE_S, charge=False)
        if code == 2 or job.attempts > job.max_retries:
            return self.end(job, "dead", "exit")
        job.finished_at = self.clock()
        return self.put_back(job, "failed", BACKOFF_S, jitter=0.1)

    def put_back(self, job, state, delay, charge=True, jitter=0.0):
        job.state, job.attempts = state, job.attempts - (not charge)
        job.run_at, job.seen_due = self.clock() + delay, not delay
        return self.clock() + delay, self.clock() + delay * (1 + jitter)


def alone(model, job):
    return not job.key and not job.unique and not job.waits_for and not any(job.id in other.waits_for for other in model.jobs.values())


Model.cancel.able = Model.hold.able = Model.release.able = lambda model, job: alone(model, job) and job.state in WAITING
Model.retry.able = lambda model, job: alone(model, job) and job.state in FINAL and not job.held and not job.batch  # those have names


class Place:
    """A parent that is another line of the same file."""

    def __init__(self, place):
        self.place = place


NEW_JOB = st.fixed_dictionaries({
    "queue": st.sampled_from(QUEUES), "priority": st.integers(-1, 2), "key": st.sampled_from((None, None, None) + KEYS),
    "unique": st.sampled_from((None,) * 4 + UNIQUE), "window": st.sampled_from((0, 60)), "hold": st.sampled_from((False,) * 5 + (True,)),
    "delay": st.sampled_from((0, 0, 0, 7, 40)), "ttl": st.sampled_from((None,) * 4 + (5, 50)), "max_retries": st.integers(0, 2),
    "env": st.integers(0, 2), "parents": st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=2),
    "after_batch": st.sampled_from((None, None, None, 0, 1))})
PICK = st.integers(0, 99)
PICKS = st.lists(PICK, min_size=1, max_size=4)
SCHEDULED = {"queue": "slow", "priority": 1, "key": "k", "unique": None, "window": 0, "hold": False, "delay": 0, "ttl": None,
             "max_retries": 1, "parents": ()}
HOW = {"backoff": "constant", "backoff_base": BACKOFF_S, "snooze_on": "75", "dead_on": "2"}


class Life(RuleBasedStateMachine):
    """One sequence, on both."""

    @initialize()
    def open(self):
        self.dir = Path(tempfile.mkdtemp(prefix="queuectl-model-"))
        self.clock = Clock()
        queuectl.FOLLOWUPS = STEP
        self.store = open_store(self.dir, self.clock)
        guard_states(self.store)
        self.store.settings.set("max_snoozes", MAX_SNOOZES)
        self.model = Model(self.clock)
        self.model.turn["default"] = 0
        self.supervisor, self.run_worker = None, None
        self.running = {}  # worker -> its Job as claimed
        self.stale = []    # records of attempts that have ended

    def teardown(self):
        if hasattr(self, "store"):
            queuectl.FOLLOWUPS = FOLLOWUPS
            self.store.close()
            shutil.rmtree(str(self.dir))

    # -- helpers --

    def some(self, numbers):
        return list(dict.fromkeys(map(self.pick, numbers)))

    def pick(self, number):
        ids = sorted(self.model.jobs)
        return ids[number % len(ids)]

    def spec(self, new, place, size):
        """A model's spec and the Store's item of one new job; in a file its parents are other lines as well."""
        ids, parents, after, after_any = sorted(self.model.jobs), [], [], []
        chosen = {}
        for number, any_end in new["parents"]:
            if size > 1 and number % 2 and number % size != place:
                chosen["line%d-%d" % (self.model.last_batch + 1, number % size)] = (Place(number % size), any_end)
            elif ids:
                chosen[str(ids[number % len(ids)])] = (ids[number % len(ids)], any_end)
        for ref, (parent, any_end) in chosen.items():
            parents.append((parent, any_end))
            (after_any if any_end else after).append(ref)
        item = {key: new[key] for key in ("queue", "priority", "key", "unique", "delay", "ttl", "max_retries")}
        item.update(HOW, command="x", env={"X": str(new["env"])})
        if new["unique"] and new["window"]:
            item["for"] = new["window"]
        if new["hold"]:
            item["hold"] = True
        if after:
            item["after"] = after
        if after_any:
            item["after_any"] = after_any
        batches = sorted(self.model.batches)
        if new["after_batch"] is not None and batches:
            batch = batches[new["after_batch"] % len(batches)]
            item["after_batch"] = str(batch)
            parents.append((-batch, True))
        return SimpleNamespace(**dict(new, parents=parents)), item

    # -- commands --

    @rule(new=NEW_JOB)
    def enqueue(self, new):
        spec, item = self.spec(new, 0, 1)
        assert self.store.enqueue_many([item]) == self.model.add([spec], None)

    @rule(news=st.lists(NEW_JOB, min_size=2, max_size=4), own=st.booleans())
    def enqueue_a_file(self, news, own):
        specs, items = [], []
        for place, new in enumerate(news):
            spec, item = self.spec(dict(new, unique=None), place, len(news))
            item["name"] = "line%d-%d" % (self.model.last_batch + 1, place)
            specs.append(spec)
            items.append(item)
        own = self.supervisor if own else None
        if circular(specs):
            before = rows(self.store, "SELECT count(*), max(id) FROM job")
            with pytest.raises(queuectl.UserError, match="waits for itself"):
                self.store.enqueue_many(items, label="file")
            assert rows(self.store, "SELECT count(*), max(id) FROM job") == before
        else:
            assert self.store.enqueue_many(items, label="file", reserved_for=own) == self.model.add(specs, "file", own)

    def some_jobs(self):
        return bool(self.model.jobs)

    @precondition(some_jobs)
    @rule(numbers=PICKS)
    def cancel(self, numbers):
        numbers = self.some(numbers)
        self.store.life.cancel(numbers)
        self.model.change(numbers, Model.cancel)

    @precondition(some_jobs)
    @rule(numbers=PICKS, held=st.booleans())
    def hold_or_release(self, numbers, held):
        numbers = self.some(numbers)
        (self.store.life.hold if held else self.store.life.release)(numbers)
        self.model.change(numbers, Model.hold if held else Model.release)

    @precondition(some_jobs)
    @rule(numbers=PICKS)
    def retry(self, numbers):
        numbers = self.some(numbers)
        self.store.life.retry(numbers)
        self.model.change(numbers, Model.retry)

    @precondition(lambda self: any(j.state in FINAL for j in self.model.jobs.values()))
    @rule(number=PICK)
    def retry_one_that_ended(self, number):
        ended = sorted(j.id for j in self.model.jobs.values() if j.state in FINAL)
        self.store.life.retry([ended[number % len(ended)]])
        self.model.change([ended[number % len(ended)]], Model.retry)

    @precondition(some_jobs)
    @rule(number=PICK)
    def purge(self, number):
        chosen = self.pick(number)
        self.store.keep.purge([chosen])
        self.model.purge(chosen)

    @precondition(some_jobs)
    @rule(number=PICK, priority=st.integers(-1, 2), delay=st.sampled_from((None, 0, 9)))
    def edit(self, number, priority, delay):
        self.store.life.edit([self.pick(number)], dict({"priority": priority}, **({} if delay is None else {"delay": delay})))
        self.model.catch_up()
        self.model.edit(self.pick(number), priority, delay)

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans())
    def pause_or_resume(self, queue, paused):
        self.store.queues.set(queue, paused=int(paused))
        (self.model.paused.add if paused else self.model.paused.discard)(queue)
        self.model.turn.setdefault(queue, 0)

    @rule(queue=st.sampled_from(QUEUES), limit=st.sampled_from((None, None, 0, 1, 2)))
    def limit(self, queue, limit):
        self.store.queues.set(queue, max_running=limit)
        self.model.limit[queue] = limit
        self.model.turn.setdefault(queue, 0)

    @rule(queue=st.sampled_from(QUEUES), every=st.sampled_from((None, None, 2.0, 20.0)))
    def rate(self, queue, every):
        self.store.queues.set(queue, rate=every and "some", every=every, next_at=0)
        self.model.turn.setdefault(queue, 0)
        self.model.every.pop(queue, None)
        if every:
            self.model.every[queue], self.model.next_at[queue] = every, 0

    @rule(add=st.booleans())
    def schedule(self, add):
        if add and not self.model.schedule:
            add_schedule(self.store, "s", None, 25.0, dict(HOW, command="x", queue="slow", priority=1, key="k", max_retries=1))
            self.model.schedule = 25.0, self.clock() + 25.0
        elif self.model.schedule and not add:
            self.store.schedules.remove("s")
            self.model.schedule = None

    @rule()
    def a_run_begins(self):
        if not self.supervisor:
            self.supervisor, [self.run_worker] = pool(self.store, kind="run")

    @precondition(lambda self: self.supervisor and self.run_worker not in self.running)
    @rule()
    def the_run_ends(self):
        self.store.workers.remove_worker(self.run_worker)
        self.store.workers.remove_supervisor(self.supervisor)
        self.supervisor = None
        self.model.the_run_ends()

    # -- time and workers --

    @rule(seconds=st.sampled_from((1, 6, 31, 61)))
    def time_goes_by(self, seconds):
        self.clock.pass_by(seconds)

    @rule()
    def tick(self):
        self.store.schedules.tick()
        self.model.expire()
        self.model.promote()
        self.model.step()
        self.model.fire()
        self.model.step_if_noted()

    def claim(self, worker, queues=None):
        job = claim(self.store, worker, "/%s/" % "/".join(queues) if queues else None)
        expected = self.model.claim(worker, queues)
        assert (job and job.id) == expected
        if job is not None:
            self.running[worker] = job

    @precondition(lambda self: self.supervisor and self.run_worker not in self.running)
    @rule()
    def the_run_claims(self):
        job = claim(self.store, self.run_worker, reserved_for=self.supervisor)
        assert (job and job.id) == self.model.claim(self.run_worker, None, "own")
        if job is not None:
            self.running[self.run_worker] = job

    @precondition(lambda self: len(self.running) < 3)
    @rule(queues=st.sampled_from((None, None, ("mail",), ("default", "slow"))))
    def a_worker_claims(self, queues):
        self.claim(min({101, 102, 103, 104} - set(self.running)), queues)

    @precondition(lambda self: self.running)
    @rule(number=PICK, how=st.sampled_from([("completed", 0)] * 4 + [("failed", 1)] * 3 + [
        ("failed", 2), ("failed", 75), ("timeout", None), ("released", None), ("crashed", None), ("cancelled", None)]), again=st.booleans())
    def a_job_ends(self, number, how, again):
        worker = sorted(self.running)[number % len(self.running)]
        job = self.running.pop(worker)
        after = finish(self.store, job, how[0], how[1], how[0])
        window = self.model.finish(job.id, *how)
        if window:
            assert window[0] <= after.run_at <= window[1] + 1e-6
            self.model.jobs[job.id].run_at = after.run_at
        self.stale = (self.stale + [job])[-5:]
        if again and worker != self.run_worker:
            self.claim(worker)

    @precondition(lambda self: self.stale)
    @rule(number=PICK, kind=st.sampled_from(["completed", "failed", "crashed", "released", "cancelled"]))
    def a_late_worker_reports(self, number, kind):
        finish_late(self.store, self.stale[number % len(self.stale)], kind)

    # -- what must hold --

    @invariant()
    def the_store_is_as_the_model(self):
        if not hasattr(self, "store"):
            return
        gates = ("ready", "due", "held", "parents", "keyed", "own")
        names = ("id", "state", "gate", "attempt", "attempts", "crashes", "snoozes", "priority", "held", "cause", "worker", "batch", "run_at")
        real = {row[0]: dict(zip(names, row)) for row in rows(self.store, "SELECT " + ", ".join(names) + " FROM job")}
        assert set(real) == set(self.model.jobs)
        for number, job in self.model.jobs.items():
            expected = dict(id=number, state=job.state, gate=self.model.reason(job), attempt=job.attempt, attempts=job.attempts,
                            crashes=job.crashes, snoozes=job.snoozes, priority=job.priority, held=int(job.held), cause=job.cause,
                            worker=job.worker if job.state == "processing" else None, batch=job.batch, run_at=job.run_at)
            got = dict(real[number], gate=None if real[number]["gate"] is None else gates[real[number]["gate"]])
            assert got == expected
        assert dict(rows(self.store, "SELECT id, unfinished FROM batch")) == {
            batch: self.model.unfinished(batch) for batch in self.model.batches}
        assert dict(rows(self.store, "SELECT key, job FROM keylock")) == self.model.holder
        invariants(self.store)


def finish_late(store, job, kind):
    before = rows(store, "SELECT * FROM job"), rows(store, "SELECT * FROM history"), rows(store, "SELECT * FROM keylock")
    store.claims.finish(job.worker, queuectl.Outcome(job, kind, None, kind, 4711, job.started_at, 0.1))
    assert before == (rows(store, "SELECT * FROM job"), rows(store, "SELECT * FROM history"), rows(store, "SELECT * FROM keylock"))


def circular(specs):
    """Whether lines of a file wait for each other in a ring."""
    waits = {n: {p.place for p, _ in spec.parents if isinstance(p, Place)} for n, spec in enumerate(specs)}
    while True:
        free = {n for n, parents in waits.items() if not parents}
        if not free:
            return bool(waits)
        waits = {n: parents - free for n, parents in waits.items() if n not in free}


def play(**options):
    run_state_machine_as_test(Life, settings=settings(
        deadline=None, database=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False, **options))


def test_the_store_does_what_the_model_says():
    """The same sequences each time: a run of the quick tests tells of the program, not of luck."""
    play(max_examples=30, stateful_step_count=40, derandomize=True, phases=(Phase.generate, Phase.shrink))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_store_does_what_the_model_says_for_long():
    play(max_examples=600, stateful_step_count=80)
