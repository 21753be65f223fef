#!/usr/bin/env python3
"""queuectl: a persistent background job queue for shell commands, in one file.

    python3 queuectl.py run --file commands.txt     work a list of commands now
    python3 queuectl.py worker start --count 4      start workers in the background
    python3 queuectl.py enqueue "make -C site"      and give them something to do

It needs only Python 3.8 or later and the standard library.  Three things always hold:
  1. once `enqueue` has returned, the job survives the death of every process;
  2. two attempts of one job never run at the same time;
  3. a result is recorded once, by the worker that holds the claim, or not at all.

The file reads from top to bottom.  Each section calls only sections above it:
  Constants and schema   limits, states and events, the tables
  Errors                 what the user did wrong, what the machine refused
  Small helpers          text, numbers, settings, options of jobs, templates, cron times, time zones
  Files                  the files beside a database, safe from other users
  Platform differences   locks, processes, wake-up and paths of each system
  Store                  all SQL: Database, and one class per subject
  Runner                 one attempt: its process, output, timeout and end
  Worker                 the loop: claim, run, record
  Engines                hands jobs to a cluster; a node's part of that
  Supervisor             starts, wakes, replaces and stops workers; rescues jobs and cleans up
  Reports                what is shown, as plain data
  Views                  tables, colours, progress, JSON
  Metrics                numbers for Prometheus, a dashboard, alert rules
  Python API             Queue, for programs that import this file
  Commands               one function per command
  Page                   HTML, style and script of the web page
  Web                    the server of that page
  Command table          the options and the commands, one per line
  Parser                 argparse for the given command only
  Main                   the one place that turns errors into a line and an exit status

Where a new thing goes (design.md follows a job through the sections):
  an option of jobs   a line of JOB_OPTIONS; if it has a column: SCHEMA, MIGRATIONS, JOB_COLUMNS; the code that obeys it
  a setting           a line of SETTINGS; the code that obeys it
  a state, an event   STATES and the groups below it, TRANSITIONS, STATE_COLOURS; then test_house.py names what still lacks it
  a question          a method of Look that returns data; a report; a view that prints it; a reader of WEB_READS
  a command           a line of COMMAND_GROUPS, its options in OPTIONS, its function in Commands
  a web page          a function and a line of PAGES in PAGE_SCRIPT; what it asks in WEB_READS, what it changes in WEB_WRITES
  a cluster           a class with the methods of Slurm, in ENGINES
  a way to run a job  a class with the methods of PosixProcess, which OS.spawn returns
  a system            a class with the methods of Posix, chosen where OS is assigned
"""
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("queuectl: error: Python 3.8 or later is needed, this is %d.%d\n" % sys.version_info[:2])
    sys.exit(2)
if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # this file's folder, or with -m the current one: import nothing from it

import io
import os
import time
from _thread import allocate_lock, get_ident
from collections import _tuplegetter as field_getter  # namedtuple's: twice as fast as property(itemgetter(place))
from functools import lru_cache, partial
from itertools import chain, islice
from operator import itemgetter
from stat import S_ISDIR, S_ISFIFO, S_ISREG, S_ISSOCK, S_ISVTX

try:
    import _sqlite3 as sqlite3  # without sqlite3's adapters for dates: with datetime, they are a twentieth of an enqueue
except ImportError:
    sys.stderr.write("queuectl: error: this Python has no sqlite3: use another one, such as the system's python3\n")
    sys.exit(2)

__version__ = "1.0.0"
__all__ = ["Queue", "Error", "UserError", "TimedOut", "QueueGone"]  # the Python API; README.md describes it

# == Constants and schema ==============================================================
# Fixed values: limits, the states of a job and the events between them, the tables.
# This section calls nothing.

PROGRAM = "queuectl"
AS_ROOT = "QUEUECTL_AS_ROOT"  # --as-root sets this variable, which child processes inherit
STATES = ("pending", "processing", "completed", "failed", "dead", "cancelled")
WAITING = ("pending", "failed")
UNFINISHED = WAITING + ("processing",)
FINAL = ("completed", "dead", "cancelled")
LISTED_STATES = STATES + ("held",)  # what --state takes: `held` are the waiting jobs that wait for `release`

# Each event, and the states that it moves a job from and to.  Life applies them; only an import and a repair set a state directly.
TRANSITIONS = {
    "claim": {"pending": "processing", "failed": "processing"},
    "complete": {"processing": "completed"},
    "fail": {"processing": "failed"},
    "bury": {"processing": "dead"},
    "release": {"processing": "pending"},
    "crash": {"processing": "pending"},
    "snooze": {"processing": "pending"},
    "cancel": {"pending": "cancelled", "failed": "cancelled", "processing": "cancelled", "dead": "cancelled"},
    "expire": {"pending": "cancelled", "failed": "cancelled"},
    "retry": {"dead": "pending", "cancelled": "pending", "completed": "pending"},
}

# A job's gate: what keeps a waiting job from being claimed.  If several things do, Life._gate_of chooses one.
# A claim reads only READY (or, for `run`, RESERVED), so a blocked job costs it nothing.
READY, DUE, HELD, PARENTS, KEYED, RESERVED = range(6)
GRACEFUL, IMMEDIATE = 1, 2  # how a worker is told to stop: after its job; now, and the job is given back
CANCEL, SPARE = 1, 2  # requests for a running job: see the column cancel

SCHEMA_VERSION = 2
APPLICATION_ID = 0x71756575  # "queu": marks a SQLite database as a queue
CLAIM_LIMIT = 100            # the most jobs that one claim promotes or sets aside
AT_ONCE = 500                # the most jobs that one transaction of a command changes: others wait for it some 20 ms
FOLLOWUPS = 200              # the most jobs that one transaction changes one by one, such as the children of one that ended
TIDY_S = 0.1                 # how long a supervisor removes old jobs before it looks after the rest, for three times as long
TIDY_IDLE_S = 30.0           # how often it looks for old jobs if none is known to come of age
PATIENCE_S = 30.0            # how long a command waits for a locked database
WORKER_PATIENCE_S = 5.0      # how long a worker or supervisor does: it tries again, and looks after the rest in between
LOOK_S = 1.0                 # how often a supervisor checks for lost hints
MISSING_S = 10.0             # how long a worker's lock file may be missing, if nothing else tells whether the worker lives
GIVE_UP_S = 2.0              # how long a worker told to end now retries to record its job's outcome
END_NOW_S = 8.0              # a worker told to end now is killed this long after kill_grace
SPARE_S = 4.0                # how long a job that stopped its own worker may go on; kill_grace and the record of its end follow
MISFIRE_S = 60.0             # a schedule that fires later than this has misfired
NEVER = 10.0**11              # next_at of a schedule without a next time: @reboot, or a broken one
MISFIRES = ("once", "skip")   # what becomes of a time that a schedule missed
OVERLAPS = ("allow", "skip", "queue", "replace")  # what a due schedule does if its earlier job is unfinished
CLOCK_REPAIRED_S = 3 * 3600.0  # if the clock is set back by more, it was wrong: schedules follow the new time
NOTIFY_S = 60.0              # timeout of an on_dead or on_idle command
LOCK_LINE = 300              # bytes per line of a lock file: the running job, what its process waits for, an end not yet recorded
JOURNAL_LIMIT = 16 * 2**20   # bytes of workers.log before it is rotated
JUNIT_LIMIT = 16 * 2**10     # characters of a job's output in a JUnit file
TERMINAL_ROWS = 50           # rows that `list` shows by default
GLANCE_BYTES = 32 * 2**20    # a larger database is checked by `doctor` only: `health` should be quick (60 MB: a second)
STDIN_LIMIT = 2**20          # the most bytes of input that are stored with a job
SCRIPT_FROM = 120000         # a command of more bytes runs from a file; Linux refuses one argument of 131,072 (MAX_ARG_STRLEN)

SCHEMA = """
CREATE TABLE job(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  state TEXT NOT NULL DEFAULT 'pending',
  gate INTEGER,                              -- READY...RESERVED while it waits, else NULL
  queue TEXT NOT NULL DEFAULT 'default',
  priority INTEGER NOT NULL DEFAULT 0,
  run_at REAL NOT NULL,                      -- not before
  delay REAL,                                -- the seconds that gave run_at, to correct it if the clock jumps
  command TEXT NOT NULL,                     -- a BLOB if it is not valid UTF-8
  name TEXT,
  labels TEXT,                               -- between slashes, as in /nightly/web/
  cwd TEXT NOT NULL,
  env INTEGER NOT NULL,
  shell TEXT, stdin INTEGER, umask INTEGER,  -- stdin: a row of env; NULL: sh, no input, the worker's umask
  attempt INTEGER NOT NULL DEFAULT 0,        -- attempts ever begun
  attempts INTEGER NOT NULL DEFAULT 0,       -- those charged since a user last retried it
  crashes INTEGER NOT NULL DEFAULT 0,
  snoozes INTEGER NOT NULL DEFAULT 0,
  max_retries INTEGER NOT NULL,
  timeout REAL,
  backoff TEXT NOT NULL,
  backoff_base REAL NOT NULL,
  backoff_max REAL NOT NULL,
  retry_on TEXT, dead_on TEXT, snooze_on TEXT, snooze REAL,
  slots INTEGER NOT NULL DEFAULT 1,
  key TEXT, unique_key TEXT, expires_at REAL,
  held INTEGER NOT NULL DEFAULT 0,
  cause INTEGER,                             -- the parent whose end cancelled it
  batch INTEGER,
  pool INTEGER,                              -- reserved for: the supervisor of a `run`
  schedule TEXT,
  hook TEXT,                                 -- on_dead or on_idle: the setting whose command it is
  worker INTEGER,
  cancel INTEGER NOT NULL DEFAULT 0,         -- a request for a running job: CANCEL, or SPARE to let it end though its worker is stopped
  exit_code INTEGER, signal INTEGER,         -- how the last attempt ended; signal: the one that ended it
  error TEXT,                                -- why it ended so, in words, unless `signal` says it
  created_at REAL NOT NULL, started_at REAL, finished_at REAL, duration REAL);
CREATE INDEX job_ready ON job(queue, priority DESC, id) WHERE gate=0;
CREATE INDEX job_due ON job(run_at) WHERE gate=1;
CREATE INDEX job_keyed ON job(key, priority DESC, id) WHERE gate=4;
CREATE INDEX job_own ON job(pool, queue, priority DESC, id) WHERE gate=5;
CREATE INDEX job_pool ON job(pool) WHERE pool IS NOT NULL;
CREATE INDEX job_running ON job(worker) WHERE state='processing';
CREATE INDEX job_settled ON job(state) WHERE state IN ('completed','failed','dead','cancelled');
CREATE UNIQUE INDEX job_name ON job(name) WHERE name IS NOT NULL AND state IN ('pending','processing','failed');
CREATE INDEX job_named ON job(name) WHERE name IS NOT NULL;
CREATE INDEX job_label ON job(labels) WHERE labels IS NOT NULL;
CREATE INDEX job_unique ON job(unique_key, state, finished_at) WHERE unique_key IS NOT NULL;
CREATE INDEX job_expiry ON job(expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX job_big ON job(worker, slots) WHERE state='processing' AND slots>1;
CREATE INDEX job_batch ON job(batch) WHERE batch IS NOT NULL;
CREATE INDEX job_schedule ON job(schedule, state) WHERE schedule IS NOT NULL;
CREATE TABLE history(                        -- one row per attempt that has ended, and per change without an attempt
  seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, attempt INTEGER, state TEXT NOT NULL,
  worker INTEGER, pid INTEGER, started_at REAL, finished_at REAL, duration REAL,
  outcome TEXT NOT NULL, exit_code INTEGER, signal INTEGER, error TEXT,
  output INTEGER);                           -- bytes that the attempt wrote, NULL: unknown
CREATE INDEX history_job ON history(job);
CREATE TABLE env(                            -- environments, and inputs of jobs
  id INTEGER PRIMARY KEY AUTOINCREMENT, hash INTEGER NOT NULL, uses INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX env_hash ON env(hash);
CREATE TABLE dep(                            -- child waits for parent; a negative parent is a batch
  parent INTEGER NOT NULL, child INTEGER NOT NULL, any INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(parent, child)) WITHOUT ROWID;
CREATE INDEX dep_child ON dep(child, done);
CREATE TABLE followup(                       -- parents whose end or retry has not reached all children yet, in order
  seq INTEGER PRIMARY KEY, parent INTEGER NOT NULL, state TEXT NOT NULL, -- state: the parent's then; pending after a retry
  child INTEGER NOT NULL, last INTEGER NOT NULL);  -- children up to `child` know, those after `last` were added later
CREATE TABLE keylock(key TEXT PRIMARY KEY, job INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE waiting(                        -- a job whose command waits for the end of the job `target`
  target INTEGER NOT NULL, job INTEGER NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY(target, job)) WITHOUT ROWID;
CREATE TABLE batch(
  id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT, total INTEGER NOT NULL, unfinished INTEGER NOT NULL, created_at REAL NOT NULL);
CREATE TABLE queue(
  name TEXT PRIMARY KEY, paused INTEGER NOT NULL DEFAULT 0, max_running INTEGER,
  rate TEXT, every REAL, next_at REAL NOT NULL DEFAULT 0, served REAL NOT NULL DEFAULT 0,
  top INTEGER, head INTEGER,                 -- priority and id of its first READY job, or of one before it that is gone; NULL: none
  engine_options TEXT);                      -- what an engine is told beside the options of `worker start`, as a shell would split it
CREATE INDEX queue_order ON queue(top DESC, served, head) WHERE top IS NOT NULL AND paused=0;
CREATE INDEX queue_served ON queue(served);
CREATE TABLE tally(
  queue TEXT, state TEXT, n INTEGER NOT NULL,
  -- Counters, which only grow: jobs that came into the state (pending: that were enqueued); the seconds that they had
  -- waited before they came into processing, or that the attempt took which brought them into the state; and how many of
  -- these times were at most each of BUCKETS.  The write that counts n counts them too.
  entered INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
  le1 INTEGER NOT NULL DEFAULT 0, le2 INTEGER NOT NULL DEFAULT 0, le3 INTEGER NOT NULL DEFAULT 0, le4 INTEGER NOT NULL DEFAULT 0,
  le5 INTEGER NOT NULL DEFAULT 0, le6 INTEGER NOT NULL DEFAULT 0, le7 INTEGER NOT NULL DEFAULT 0, le8 INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(queue, state)) WITHOUT ROWID;
CREATE TABLE mishap(queue TEXT, outcome TEXT, n INTEGER NOT NULL, PRIMARY KEY(queue, outcome)) WITHOUT ROWID;  -- a counter for rare ends
CREATE TABLE supervisor(
  id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, port INTEGER NOT NULL, token TEXT NOT NULL,
  slots INTEGER NOT NULL, queues TEXT, stop INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL, started_at REAL NOT NULL,
  jobs_left INTEGER, arguments TEXT NOT NULL DEFAULT '',
  failures_left INTEGER);                    -- how many jobs of a `run` may still die before no other starts, NULL: any number
CREATE TABLE worker(
  id INTEGER PRIMARY KEY AUTOINCREMENT, supervisor INTEGER NOT NULL, pid INTEGER NOT NULL, machine TEXT,
  started_at REAL NOT NULL, note TEXT,                -- unused: the lock file says what it waits for
  born REAL,                                 -- when it registered, on the clock of OS.born
  place TEXT,                                -- device:inode:path of the database as it saw it; a copy differs
  engine TEXT);                              -- where its jobs run, if not on this machine: they outlive it, see `sent`
CREATE TABLE sent(                           -- an array of packs: committed before the engine is told, gone once the engine has ended it
  id INTEGER PRIMARY KEY AUTOINCREMENT, worker INTEGER NOT NULL, folder TEXT NOT NULL, handle TEXT,  -- handle: the engine's own id
  options TEXT NOT NULL, slots INTEGER NOT NULL, created_at REAL NOT NULL);
CREATE TABLE packed(                         -- an attempt that is in a pack of it, and has not ended yet
  job INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, sent INTEGER NOT NULL, pack INTEGER NOT NULL);
CREATE INDEX packed_sent ON packed(sent, pack);
CREATE TABLE config(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE schedule(
  name TEXT PRIMARY KEY, spec TEXT, every REAL, tz TEXT, misfire TEXT NOT NULL,
  no_overlap INTEGER NOT NULL,               -- an index into OVERLAPS
  paused INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL, last_at REAL, last_job INTEGER,
  options TEXT NOT NULL, cwd TEXT NOT NULL, env INTEGER NOT NULL, created_at REAL NOT NULL, error TEXT,
  rule TEXT,                                 -- what tz means as a POSIX rule, for a machine without a file of that name
  boot TEXT);                                -- the boot after which @reboot has fired
CREATE INDEX schedule_due ON schedule(next_at) WHERE paused=0;
CREATE TRIGGER job_moved AFTER UPDATE OF state, queue ON job WHEN old.state<>new.state OR old.queue<>new.queue BEGIN
  UPDATE tally SET n=n-1 WHERE queue=old.queue AND state=old.state;
  UPDATE tally SET n=n+1, entered=entered+1, seconds=seconds+max(0, ifnull(new.started_at-new.run_at, 0)),
    le1=le1+ifnull(new.started_at-new.run_at<=0.1, 0), le2=le2+ifnull(new.started_at-new.run_at<=0.5, 0),
    le3=le3+ifnull(new.started_at-new.run_at<=2, 0), le4=le4+ifnull(new.started_at-new.run_at<=10, 0),
    le5=le5+ifnull(new.started_at-new.run_at<=60, 0), le6=le6+ifnull(new.started_at-new.run_at<=600, 0),
    le7=le7+ifnull(new.started_at-new.run_at<=3600, 0), le8=le8+ifnull(new.started_at-new.run_at<=21600, 0)
    WHERE queue=new.queue AND state=new.state AND new.state='processing';
  UPDATE tally SET n=n+1, entered=entered+(old.state<>new.state AND new.state<>'pending'), seconds=seconds+max(0, ifnull(new.duration, 0)),
    le1=le1+ifnull(new.duration<=0.1, 0), le2=le2+ifnull(new.duration<=0.5, 0), le3=le3+ifnull(new.duration<=2, 0),
    le4=le4+ifnull(new.duration<=10, 0), le5=le5+ifnull(new.duration<=60, 0), le6=le6+ifnull(new.duration<=600, 0),
    le7=le7+ifnull(new.duration<=3600, 0), le8=le8+ifnull(new.duration<=21600, 0)
    WHERE queue=new.queue AND state=new.state AND new.state<>'processing';
END;
CREATE TRIGGER job_readied AFTER UPDATE OF gate, priority, queue ON job WHEN new.gate=0 BEGIN
  UPDATE queue SET top=new.priority, head=new.id
    WHERE name=new.queue AND (top IS NULL OR top<new.priority OR top=new.priority AND head>new.id);
END;
CREATE TRIGGER history_counted AFTER INSERT ON history
  WHEN new.outcome IN ('crashed', 'timeout', 'snoozed', 'released', 'retry', 'expire') BEGIN
  INSERT INTO mishap(queue, outcome, n) SELECT queue, new.outcome, 0 FROM job WHERE id=new.job AND NOT EXISTS(
    SELECT 1 FROM mishap WHERE mishap.queue=job.queue AND outcome=new.outcome);
  UPDATE mishap SET n=n+1 WHERE queue=(SELECT queue FROM job WHERE id=new.job) AND outcome=new.outcome;
END;
CREATE TRIGGER job_deleted AFTER DELETE ON job BEGIN
  UPDATE tally SET n=n-1 WHERE queue=old.queue AND state=old.state;
  UPDATE env SET uses=uses-1 WHERE id=old.env;
  DELETE FROM env WHERE id=old.env AND uses<=0;
  DELETE FROM history WHERE job=old.id AND seq<(SELECT max(seq) FROM history);  -- so that no seq is used twice
  DELETE FROM dep WHERE parent=old.id AND (done=1 OR NOT EXISTS(SELECT 1 FROM job WHERE id=dep.child AND gate IS NOT NULL));
  DELETE FROM dep WHERE child=old.id;
END;
CREATE TRIGGER job_stdin AFTER DELETE ON job WHEN old.stdin IS NOT NULL BEGIN
  UPDATE env SET uses=uses-1 WHERE id=old.stdin;
  DELETE FROM env WHERE id=old.stdin AND uses<=0;
END;
CREATE TRIGGER schedule_deleted AFTER DELETE ON schedule BEGIN
  UPDATE env SET uses=uses-1 WHERE id=old.env;
  DELETE FROM env WHERE id=old.env AND uses<=0;
END;
"""

# Version 1 and its exports hold a signal in words, "signal 9 (SIGKILL)": CAST reads the number at their beginning.
SIGNALS_FROM_WORDS = tuple(
    "UPDATE %s SET signal=CAST(substr(error, 8) AS INTEGER), error=NULL WHERE exit_code IS NULL AND error GLOB 'signal [1-9]*'" % table
    for table in ("job", "history"))

# What a claim knows of a queue's first job.  Whatever makes a job READY raises it; only a claim that finds another job lowers it.
FIND_HEADS = ("UPDATE queue SET (top, head)=(SELECT priority, id FROM job INDEXED BY job_ready "
              "WHERE queue=queue.name AND gate=0 ORDER BY priority DESC, id LIMIT 1)")

# The limits of a histogram's buckets, in seconds: the columns le1 to le8 of `tally`.
BUCKETS = (0.1, 0.5, 2, 10, 60, 600, 3600, 21600)

# Steps from each version to the next, as (version, statements).  A fresh database gets SCHEMA directly.  A name alone
# stands for the statement of SCHEMA that makes the table, index or trigger of that name.
# tests/data holds one database per release; the tests migrate each and compare it with a fresh one.
MIGRATIONS = (
    (1, (
        "ALTER TABLE job ADD COLUMN hook TEXT",
        "ALTER TABLE job ADD COLUMN shell TEXT",
        "ALTER TABLE job ADD COLUMN stdin INTEGER",
        "ALTER TABLE job ADD COLUMN umask INTEGER",
        "ALTER TABLE job ADD COLUMN signal INTEGER",
        "ALTER TABLE history ADD COLUMN signal INTEGER",
        *SIGNALS_FROM_WORDS,
        "job_stdin",
        "ALTER TABLE supervisor ADD COLUMN failures_left INTEGER",
        "ALTER TABLE worker ADD COLUMN born REAL",
        "ALTER TABLE worker ADD COLUMN place TEXT",
        "ALTER TABLE schedule ADD COLUMN rule TEXT",
        "ALTER TABLE schedule ADD COLUMN boot TEXT",
        "DROP INDEX job_schedule", "job_schedule",
        "UPDATE job SET hook=schedule, schedule=NULL WHERE schedule IN ('on_dead', 'on_idle') "
        "AND NOT EXISTS(SELECT 1 FROM schedule WHERE name=job.schedule)",
        "waiting", "followup", "schedule_due",
        "DROP INDEX job_own", "job_own",
        "DROP INDEX job_unique", "job_unique",
        "ALTER TABLE tally ADD COLUMN entered INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN seconds REAL NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le1 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le2 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le3 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le4 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le5 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le6 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le7 INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tally ADD COLUMN le8 INTEGER NOT NULL DEFAULT 0",
        "DROP TRIGGER job_moved", "job_moved", "mishap", "history_counted",
        "ALTER TABLE job ADD COLUMN labels TEXT",
        "ALTER TABLE history ADD COLUMN output INTEGER",
        "DROP INDEX job_name", "job_name", "job_named", "job_label",
        "ALTER TABLE queue ADD COLUMN top INTEGER",
        "ALTER TABLE queue ADD COLUMN head INTEGER",
        "queue_order", "queue_served", "job_readied", FIND_HEADS,
        "ALTER TABLE queue ADD COLUMN engine_options TEXT",
        "ALTER TABLE worker ADD COLUMN engine TEXT",
        "sent", "packed", "packed_sent",
    )),
)

JOB_COLUMNS = (
    "id", "state", "gate", "queue", "priority", "run_at", "delay", "command", "name", "labels", "cwd", "env",
    "shell", "stdin", "umask", "attempt", "attempts", "crashes", "snoozes", "max_retries", "timeout", "backoff", "backoff_base",
    "backoff_max", "retry_on", "dead_on", "snooze_on", "snooze", "slots", "key", "unique_key",
    "expires_at", "held", "cause", "batch", "pool", "schedule", "hook", "worker", "cancel", "exit_code",
    "signal", "error", "created_at", "started_at", "finished_at", "duration")
JOB_SELECT = ", ".join("job." + column for column in JOB_COLUMNS)
BACKOFFS = ("exponential", "linear", "constant")
# The columns that hold one of a fixed set of words.
WORDS = {"job.state": STATES, "followup.state": STATES, "job.backoff": BACKOFFS, "schedule.misfire": MISFIRES}
LARGEST = 2 ** 53            # the largest number accepted in a row; real times, ids and counts stay far below it
MOST_WORKERS = 10000         # per `worker start`


# == Errors ============================================================================
# What the user did wrong, and what the machine refused.  Only `main` turns errors into text.
# This section calls nothing.

class Error(Exception):
    """The base of every error that Queue, the Python API, raises."""


class UserError(Error):
    """The user's mistake, in one line that says what to do instead."""


class NotFound(UserError):
    """The user named a job, batch, queue or schedule that does not exist."""


class EngineError(Error):
    """What an engine has said, or that it does not answer: no job's fault."""

    def is_limit(self) -> bool:
        return any(words in str(self).lower() for words in ("limit", "unable to accept job", "job queue full"))


class TimedOut(Error):
    """The jobs that Queue.wait waits for have not all ended in time."""


class QueueGone(Error):
    """The database file was deleted or replaced while it was in use."""


class OutputLost(Exception):
    """stdout accepts no more data, and the command's only purpose is to print."""


class WrongValue(Error, sqlite3.DatabaseError):
    """A row holds a value that queuectl never writes: another program wrote it."""


class WaitInterrupted(Exception):
    """A signal handler raises this to end a blocking wait; it never leaves the platform section."""


# What SQLite reports: (kind, primary result code, words in the message); see sqlite.org/rescode.html.
BUSY, FULL, READ_ONLY, NOT_OPENED, FOREIGN_FILE, DAMAGED, IO_FAILURE, NO_TABLE = range(1, 9)
SQLITE_FAULTS = (
    (BUSY, 5, "busy"), (BUSY, 6, "locked"), (FULL, 13, "full"), (READ_ONLY, 8, "readonly"), (NOT_OPENED, 14, "unable to open"),
    (FOREIGN_FILE, 26, "not a database"), (DAMAGED, 11, "malformed"), (IO_FAILURE, 10, "I/O"), (NO_TABLE, 1, "no such table"))


def sqlite_fault(error) -> int:
    """Return which of SQLITE_FAULTS an error is, 0 if none: by its code, which Python has from 3.11 on, else by its words."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, WrongValue):
        return 0
    text, code = str(error), getattr(error, "sqlite_errorcode", None)
    for kind, known, words in SQLITE_FAULTS:
        if words in text if code is None or known == code == 1 else known == code & 0xFF:  # 1: an error of no particular kind
            return kind
    return 0


def is_busy(error) -> bool:
    return sqlite_fault(error) == BUSY


def is_damage(error) -> bool:
    """Whether the file is damaged, or not a database any more: waiting would not help."""
    return sqlite_fault(error) in (DAMAGED, FOREIGN_FILE, NO_TABLE)


# == Small helpers =====================================================================
# Text, numbers, durations, exit codes, job options, times: values in, values out.
# This section calls only Errors.

class Record(tuple):
    """A tuple whose items have names, as namedtuple makes it; that compiles code for each class, which takes 50 us at start-up."""

    __slots__ = ()
    _fields = ()
    _defaults = {}
    _make = classmethod(tuple.__new__)

    def __new__(cls, *values, **named):
        if named or len(values) != len(cls._fields):
            left, known = cls._fields[len(values):], {**cls._defaults, **named}
            values += tuple(known[field] for field in left if field in known)
            if len(values) != len(cls._fields) or not named.keys() <= set(left):
                raise TypeError("%s has the fields %s" % (cls.__name__, ", ".join(cls._fields)))
        return tuple.__new__(cls, values)

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, ", ".join(map("%s=%r".__mod__, self._asdict().items())))

    def _asdict(self) -> dict:
        return dict(zip(self._fields, self))

    def _replace(self, **changes):
        """Return a copy with other values in some fields."""
        copy = self._make(map(changes.pop, self._fields, self))
        if changes:
            raise TypeError("no field %s" % ", ".join(changes))
        return copy


def record(name: str, fields, defaults=()):
    """Return a class of Records with these fields, of which the last have defaults."""
    fields = tuple(fields.split() if isinstance(fields, str) else fields)
    getters = {field: field_getter(place, "") for place, field in enumerate(fields)}
    return type(name, (Record,), dict(getters, __slots__=(), _fields=fields,
                                      _defaults=dict(zip(fields[len(fields) - len(defaults):], defaults))))


def plain(text) -> str:
    """Return untrusted text as one printable line: control, bidi and invalid characters are shown as escapes."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not valid UTF-8 (PEP 383)
        return "\\x%02x" % (code - 0xDC00)
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    return known or ("\\x%02x" % code if code < 256 else "\\u%04x" % code)


def encodable(text: str, what: str):
    """Return `text` as SQLite stores it: TEXT, or a BLOB if it has bytes that are not valid UTF-8."""
    if "\0" in text:
        raise UserError("%s holds a NUL character, which no program can receive" % what)
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass  # it has surrogates, which may stand for bytes that are not valid UTF-8
    try:
        data = text.encode("utf-8", "surrogateescape")
        text_of(data)  # Windows refuses such bytes: its names consist of characters
        return data
    except UnicodeError:
        raise UserError("%s is not valid text" % what) from None


# Commands, arguments, variables and directories are bytes.  queuectl decodes them as UTF-8 (PEP 383) in every locale.
# Python decodes the command line by the locale, and a worker may have another locale.
BYTE_ERRORS = sys.getfilesystemencodeerrors()


def raw(text: str) -> bytes:
    """Return a job's text as the bytes that system calls take."""
    return text.encode("utf-8", BYTE_ERRORS)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", BYTE_ERRORS)


def given(word: str) -> str:
    """Return as UTF-8 text a command-line word, or a path, that Python decoded by this locale."""
    return text_of(os.fsencode(word))


def given_name(word: str) -> str:
    """Return `given(word)` if the word's bytes are valid UTF-8, else the word as this locale decodes it."""
    text = given(word)
    return word if any("\udc80" <= char <= "\udcff" for char in text) else text


def internal_error(error) -> str:
    """Return a bug in queuectl as one line; with QUEUECTL_DEBUG=1, print its traceback to stderr first."""
    if os.environ.get("QUEUECTL_DEBUG"):
        sys.excepthook(type(error), error, error.__traceback__)
    return "internal error: %s: %s (QUEUECTL_DEBUG=1 shows where; please report it)" % (type(error).__name__, plain(str(error))[:200])


@lru_cache(maxsize=None)
def program_version() -> str:
    """Return the version and a checksum of this file, by which a process finds that another runs the file as it was."""
    import binascii
    try:
        with open(__file__, "rb") as file:
            return "%s-%08x" % (__version__, binascii.crc32(file.read()))
    except OSError:
        return __version__


@lru_cache(maxsize=100)
def utc_second(seconds: float) -> str:
    """Return whole Unix seconds as ISO 8601 in UTC, with a place for the milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%%03dZ", time.gmtime(seconds))


def utc(seconds):
    """Return Unix seconds as ISO 8601 in UTC with milliseconds; None for None and for a time that has no such form."""
    if seconds is None:
        return None
    try:
        whole = seconds // 1
        return utc_second(whole) % ((seconds - whole) * 1000)  # in a list, many times are of the same second
    except (ValueError, OverflowError, OSError):
        return None


UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
UNITS_B = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
FOREVER_S = 10.0**10  # about 300 years: the longest duration accepted


def parse_number(raw, what: str, low: float, high: float, kind=float):
    """Return a number that the user gave, on the command line or in JSON, within [low, high]; `kind`: float or int."""
    text = raw.strip() if isinstance(raw, str) else raw
    try:
        if isinstance(text, bool) or not isinstance(text, (int, float, str)):
            raise ValueError
        if isinstance(text, str) and not (text.isascii() and "_" not in text and text[:1] != "+" and len(text) < 40):
            raise ValueError  # to other tools, +2 means two more
        value = kind(text)
        if isinstance(text, float) and value != text or not low <= value <= high:  # int() cuts a float
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError("%s must be a %s from %s to %s, not %s" % (
            what, "whole number" if kind is int else "number", "{:,}".format(low), "{:,}".format(high), quoted(raw))) from None
    return value


def quoted(raw) -> str:
    """Return any value that the user gave, shortened and made printable, for an error message."""
    text = plain(raw) if isinstance(raw, (str, bytes)) else plain(repr(raw))
    return "'%s'" % (text if len(text) <= 80 else text[:37] + "..." + text[-40:])


def unwritable(path: str, error) -> UserError:
    """Return the error for a file of the user's that can't be written."""
    return UserError("can't write %s: %s" % (quoted(path), error.strerror or error))


def parse_duration(raw, what: str = "a duration", least: float = 0.0) -> float:
    """Return seconds from `90`, `90s`, `1.5m`, `2h`, `7d`, `250ms` or a JSON number."""
    text = raw.strip().lower() if isinstance(raw, str) else raw
    factor = 1
    if isinstance(text, str):
        unit = text.lstrip("0123456789.+-")
        text, factor = text[:len(text) - len(unit)], UNITS_S.get(unit.strip() or "s")
    try:
        seconds = parse_number(text, what, -FOREVER_S, FOREVER_S) * factor
    except (UserError, TypeError):
        seconds = -1.0
    if not least <= seconds <= FOREVER_S:
        raise UserError("%s must be a duration such as 90, 90s, 1.5m, 2h or 7d%s, not %s" % (
            what, "" if not least else " above 0", quoted(raw)))
    return round(seconds, 6)


def parse_optional_duration(raw, what: str = "a duration"):
    """Return what parse_duration returns, or None for `none`, `never` and `off`."""
    if raw is None or isinstance(raw, str) and raw.strip().lower() in ("none", "never", "off"):
        return None
    return parse_duration(raw, what, 0.001)


def duration_text(seconds) -> str:
    """Return seconds in the shortest exact form that parse_duration reads; `none` for None."""
    if seconds is None:
        return "none"
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % UNITS_S[unit] == 0:
            return "%d%s" % (seconds // UNITS_S[unit], unit)
    return "%ss" % number_text(seconds)


def number_text(value: float) -> str:
    return "%d" % value if value == int(value) else ("%.6f" % value).rstrip("0")


def span(seconds) -> str:
    """Return seconds for people to read: about two digits, at most 6 characters."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return "%dms" % round(seconds * 1000)
    if seconds < 10:
        return "%.1fs" % seconds
    for limit, unit, small in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h"), (FOREVER_S * 100, 86400, "d")):
        if seconds < limit:
            return "%d%s" % (seconds // unit, small)
    return "ever"


def parse_size(raw, what: str = "a size") -> int:
    """Return bytes from `65536`, `64KiB`, `64M`, `1.5GiB`; K, M, G, T are powers of 1024."""
    text = str(raw).strip().lower() if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    number = text.rstrip("kmgtib ")
    unit = text[len(number):].strip()
    unit = {"": "", "b": ""}.get(unit, unit[:1] if unit[1:] in ("", "b", "ib") else "?")
    try:
        size = int(float(number) * UNITS_B[unit]) if number.isascii() else -1
    except (ValueError, KeyError, OverflowError):
        size = -1
    if not 4096 <= size <= 2**50:
        raise UserError("%s must be a size of at least 4KiB such as 65536, 64KiB or 64MiB, not %s" % (what, quoted(raw)))
    return size


def size_text(size: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = UNITS_B[unit[0].lower()]
        if size >= factor and size % factor == 0:
            return "%d%s" % (size // factor, unit)
    return str(size)


def parse_when(raw, what: str = "a time") -> float:
    """Return Unix seconds from an ISO 8601 time or `HH:MM`, which is local unless it names a zone."""
    from datetime import datetime
    try:
        text = raw.strip()
        if len(text) == 5 and text[2] == ":":  # HH:MM: today, or tomorrow if that has passed
            now = time.localtime()
            hour, minute = int(text[:2]), int(text[3:])
            tomorrow = (hour, minute) <= (now.tm_hour, now.tm_min)
            datetime(2000, 1, 1, hour, minute)
            return time.mktime((now.tm_year, now.tm_mon, now.tm_mday + tomorrow, hour, minute, 0, 0, 0, -1))
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "zZ" else text)
        return moment.timestamp()
    except (ValueError, AttributeError, OverflowError, OSError):
        raise UserError("%s must be a time such as 09:00, '2026-12-01 09:00' or 2026-12-01T09:00:00Z, not %s" % (
            what, quoted(raw))) from None


def parse_codes(raw, what: str = "exit codes") -> str:
    """Return a set of exit codes such as `1,75,128-159`, normalised; see code_in."""
    parts = []
    for part in map(str, raw) if isinstance(raw, (list, tuple)) and raw else str(raw).split(","):
        low, dash, high = part.strip().partition("-")
        low = parse_number(low, what, 0, 4294967295, int)
        high = parse_number(high, what, low, 4294967295, int) if dash else low
        parts.append("%d-%d" % (low, high) if high > low else "%d" % low)
    return ",".join(parts)


def code_in(code, codes) -> bool:
    """Whether an exit code is in a set that parse_codes made; False if either is missing."""
    if code is None or not codes:
        return False
    for part in codes.split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and int(low) <= code <= int(high if high.isdigit() else low):
            return True
    return False


def shell_status(exit_code, signal):
    """Return the exit status that a shell tells of a process: 128 + n if signal n ended it; None if neither is known."""
    return exit_code if signal is None else 128 + signal


def parse_name(raw, what: str = "a name") -> str:
    """Return a name for a job or schedule: one printable line that `Look.ids` does not read as an id or a range."""
    name = listable(raw, what)
    if name.isascii() and (name.isdigit() or name == "last" or all(map(str.isdigit, name.split("-", 1)))):
        raise UserError("%s can't be %s, which would read as %s: choose another" % (
            what, quoted(name), "the newest job" if name == "last" else "an id"))
    return name


def parse_queue(raw, what: str = "a queue") -> str:
    """Return the name of a queue.  It may look like an id: no queue is looked up where an id could stand."""
    name = listable(raw, what)
    if "/" in name:  # see `slashed`
        raise UserError("%s can't hold a slash: %s" % (what, quoted(name)))
    return name


def listable(raw, what: str) -> str:
    """Return a name that may stand in a list of names: one printable line without commas."""
    if not isinstance(raw, str) or not raw or len(raw) > 200 or not raw.isprintable() or raw != raw.strip():
        raise UserError("%s must be 1 to 200 printable characters, not %s" % (what, quoted(raw)))
    if raw[0] == "-" or "," in raw:
        raise UserError("%s can't start with - or hold a comma: %s" % (what, quoted(raw)))
    return raw


def parse_text(raw, what: str) -> str:
    """Return a text that the user chose, such as a key: one printable line."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    if not isinstance(raw, str) or not raw or len(raw) > 500 or not raw.isprintable():
        raise UserError("%s must be 1 to 500 printable characters, not %s" % (what, quoted(raw)))
    return raw


def parse_filled(raw: str, what: str) -> str:
    """Return the value of an option; refuse an empty one, as a variable that is not set gives it: it would count as no option."""
    if not raw:
        raise UserError("%s is empty: give a value, or leave it out" % what)
    return raw


def either(choices) -> str:
    """Return words as `a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def parse_choice(raw, what: str, choices) -> str:
    if raw not in choices:
        raise UserError("%s must be %s, not %s%s" % (what, either(choices), quoted(raw), nearest(raw, choices)))
    return raw


def nearest(word, choices, alike=0.6) -> str:
    """Return ` (did you mean X?)`, or an empty string if no choice is similar."""
    import difflib
    near = difflib.get_close_matches(str(word)[:100], list(choices), 1, alike)
    return " (did you mean %s?)" % near[0] if near else ""


def parse_refs(raw, what: str) -> list:
    """Return ids and names from a JSON value or the words of a command line."""
    refs = raw if isinstance(raw, (list, tuple)) else [raw]
    # A text without any comes from a variable that is not set: the job would start at once.
    if not refs or not all(isinstance(ref, (str, int)) and not isinstance(ref, bool) and str(ref).strip(", ") for ref in refs):
        raise UserError("%s must be ids or names of jobs, not %s" % (what, quoted(raw)))
    return [part for ref in refs for part in str(ref).split(",") if part]


def slashed(words):
    """Return words joined by slashes, the form in which Store compares a list; None, which means all, if there are none."""
    return "/%s/" % "/".join(words) if words else None


def parse_labels(raw, what: str):
    """Return labels as they are stored, from a JSON value or the words of a command line; None if there are none."""
    words = [parse_text(word, what) for given in (raw if isinstance(raw, (list, tuple)) else [raw])
             for word in (given.split(",") if isinstance(given, str) else [given])]
    for word in words:
        if "/" in word:
            raise UserError("%s can't hold a slash: %s" % (what, quoted(word)))
    return slashed(dict.fromkeys(words))


def parse_env(raw, what: str = "env") -> dict:
    """Return environment variables from JSON's {"K": "V"} or from words K=V."""
    if isinstance(raw, dict):
        pairs = list(raw.items())
    else:
        pairs = [str(word).partition("=")[::2] if "=" in str(word) else (word, None)
                 for word in (raw if isinstance(raw, (list, tuple)) else [raw])]
    for key, value in pairs:
        if not isinstance(value, str) or not key or "=" in key or "\0" in key + value:
            raise UserError("%s must be KEY=VALUE, not %s" % (what, quoted(key)))
        encodable(key + value, what)
    return dict(pairs)


def parse_rate(raw, what: str = "a rate"):
    """Return (text, seconds between two starts) from `10/m`; (None, None) for `none`."""
    if isinstance(raw, str) and raw.strip().lower() == "none":
        return None, None
    count, slash, unit = str(raw).strip().partition("/")
    if not slash or unit not in ("s", "m", "h", "d"):
        raise UserError("%s must be N/s, N/m, N/h, N/d or none, not %s" % (what, quoted(raw)))
    number = parse_number(count, what, 0.001, 10**6)
    return "%s/%s" % (number_text(number), unit), UNITS_S[unit] / number


def backoff_delay(job, jitter: float) -> float:
    """Return the seconds to wait after a failed attempt; `jitter` in [0, 1) adds up to a tenth, even to backoff_max.

    If the power overflows, the delay is backoff_max (river#698).
    """
    try:
        delay = {"exponential": lambda: job.backoff_base ** job.attempts,
                 "linear": lambda: job.backoff_base * job.attempts,
                 "constant": lambda: job.backoff_base}[job.backoff]()
    except ArithmeticError:
        delay = job.backoff_max
    return min(delay, job.backoff_max) * (1 + 0.1 * jitter)


def within(low: float, high: float, kind=int):
    """Return a parser of numbers from low to high."""
    return lambda raw, what: parse_number(raw, what, low, high, kind)


def one_of(*choices):
    """Return a parser that accepts one of these words."""
    def parse(raw, what):
        return parse_choice(raw, what, choices)
    parse.choices = choices
    return parse


def parse_command(raw, what: str):
    text = (text_of(raw) if isinstance(raw, bytes) else str(raw)).strip()
    encodable(text, what)
    return text


def parse_stdin(raw, what: str) -> bytes:
    """Return a job's input as bytes; `raw` is bytes, or text that may hold any bytes as surrogate escapes."""
    try:
        data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")
    except (AttributeError, UnicodeError):
        raise UserError("%s must be text, not %s" % (what, quoted(raw))) from None
    if len(data) > STDIN_LIMIT:
        raise UserError("%s is more than 1 MiB, the most that is stored with a job: have the command read a file (< FILE)" % what)
    return data


def parse_umask(raw, what: str) -> int:
    text = str(raw)
    if not text or len(text) > 4 or text.strip("01234567") or int(text, 8) > 0o777:
        raise UserError("%s must be an octal number from 000 to 777, not %s" % (what, quoted(raw)))
    return int(text, 8)


def parse_spool(path, what: str) -> str:
    return path and parse_directory(path, what)


def parse_patterns(raw, what: str) -> str:
    """Return patterns of names, as in `PATH HOME LC_*`, separated by single blanks; `none` keeps nothing."""
    words = parse_text(raw, what).split()
    if not words or any("=" in word for word in words):
        raise UserError("%s must be names of environment variables, as in 'PATH HOME LC_*', not %s" % (what, quoted(raw)))
    return " ".join(words)


def kept(env: bytes, patterns: str) -> bytes:
    """Return the entries of an environment (K=V between NULs) whose names match one of the patterns."""
    if patterns == "*":
        return env
    from fnmatch import fnmatch
    names = patterns.split()
    return b"\0".join(entry for entry in env.split(b"\0")
                      if any(fnmatch(entry[:entry.find(b"=", 1)].decode("utf-8", "replace"), name) for name in names))


# What --clean-env keeps: what programs need to find each other, their user, language and files for a while.
CLEAN_ENV = ("PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_* TZ TMPDIR TEMP TMP SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT "
             "USERPROFILE APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES*")


def quote_for_sh(words) -> str:
    """Return the line with which a POSIX shell runs exactly this argument list."""
    return " ".join(word if word and not word.strip(PLAIN) else "'" + word.replace("'", "'\"'\"'") + "'" for word in words)


def is_powershell(path: str) -> bool:
    return os.path.basename(path).lower().startswith(("pwsh", "powershell"))


def shell_arguments(words: list, command: str) -> list:
    """Return the arguments with which a shell runs a command line; `words` are its program and options."""
    if not is_powershell(words[0]):
        return words + ["-c", command]
    # By default PowerShell exits with 0 or 1 for the last statement, not with the exit status of that statement's program.
    status = "\nif (-not $?) { if ($LASTEXITCODE) { exit $LASTEXITCODE } exit 1 }"
    return words + ["-NoProfile", "-NonInteractive", "-Command", command + status]


SHELL = "sh" if os.sep == "/" else "cmd"  # runs a command line unless the job names another shell
PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_"  # characters that a POSIX shell takes literally

# A setting: its default, how to parse a value and write it as text, and its meaning.
Setting = record("Setting", "default parse text meaning")
SETTINGS = {
    "max_retries": Setting(3, within(0, 10**6), str,
                           "runs after the first, before a job is dead"),
    "timeout": Setting(None, parse_optional_duration, duration_text, "how long an attempt may run"),
    "backoff": Setting("exponential", one_of(*BACKOFFS),
                       str, "how the delay grows: base ** n, base * n or base seconds after the n-th failure"),
    "backoff_base": Setting(2.0, within(0, 10**6, float), number_text,
                            "base of that delay, in seconds"),
    "backoff_max": Setting(3600.0, parse_duration, duration_text, "longest delay between two attempts"),
    "kill_grace": Setting(5.0, parse_duration, duration_text, "how long a job has from TERM to KILL"),
    "keep_finished": Setting(604800.0, parse_optional_duration, duration_text,
                             "how long completed and cancelled jobs are kept"),
    "log_limit": Setting(64 * 2**20, parse_size, size_text, "the most output kept per attempt: its head and its tail"),
    "max_crashes": Setting(3, within(1, 10**6), str,
                           "how often a job's worker may die before the job is dead"),
    "max_snoozes": Setting(100, within(0, 10**6), str,
                           "how often a job may snooze before a snooze counts as a failure"),
    "on_dead": Setting("", parse_command, str, "command to enqueue when a job has died"),
    "on_idle": Setting("", parse_command, str, "command to enqueue when nothing is left to do"),
    "shell": Setting(SHELL, parse_text, str, "the shell of jobs enqueued afterwards: bash, pwsh, ..."),
    "env_keep": Setting("*", parse_patterns, str, "which environment variables are stored with a job, as in 'PATH HOME LC_*' (*: all)"),
    "spool": Setting("", parse_spool, str, "a directory on a disk that the nodes of a cluster share (default: beside the database)"),
    "sync": Setting("normal", one_of("normal", "full"), str,
                    "`full`: workers too wait for the disk after each result"),
}
# A job copies these when it is enqueued.  The others are read at each use, so a change reaches running workers.
FIXED_SETTINGS = ("max_retries", "timeout", "backoff", "backoff_base", "backoff_max", "shell", "env_keep")


def setting_key(raw) -> str:
    key = str(raw).replace("-", "_")
    if key not in SETTINGS:
        raise UserError("no setting is called %s%s: see `%s config list`" % (quoted(raw), nearest(key, SETTINGS), PROGRAM))
    return key


def parse_setting(key: str, raw):
    return SETTINGS[key].parse(raw, key)


def parse_flag(raw, what: str) -> bool:
    if not isinstance(raw, bool):
        raise UserError("%s must be true or false, not %s" % (what, quoted(raw)))
    return raw


def parse_directory(path, what: str) -> str:
    if not isinstance(path, str) or not path:
        raise UserError("%s must name a directory, not %s" % (what, quoted(path)))
    encodable(path, what)
    return text_of(os.path.abspath(os.path.expanduser(raw(path))))


# The parsers of job options.  The kind `setting` is not here: it uses the parser of the setting of that name.
OPTION_PARSERS = {
    "name": parse_name, "queue": parse_queue, "text": parse_text, "duration": parse_duration, "when": parse_when, "codes": parse_codes,
    "refs": parse_refs, "labels": parse_labels, "dir": parse_directory, "env": parse_env, "stdin": parse_stdin, "umask": parse_umask,
    "flag": parse_flag, "priority": within(-10**9, 10**9), "slots": within(1, 10**6),
    "ttl": lambda raw, what: parse_duration(raw, what, 0.001)}


class Option(record("Option", "name flags parse metavar column takers meaning")):
    """An option of a job.  column: of the job table, if the parsed value is stored unchanged.  metavar: None for a flag."""

    __slots__ = ()

    @classmethod
    def of(cls, line: str):
        name, alias, kind, metavar, column, takers, meaning = [None if word == "." else word for word in line.split(None, 6)]
        return cls(name, ["--" + name.replace("_", "-")] + ([alias] if alias else []),
                   OPTION_PARSERS.get(kind) or SETTINGS[name].parse, metavar, column, takers or "", meaning)


# All options of a job, given as an option, a JSON key or a Python keyword.  `enqueue` takes all; `takers` names the other commands.
JOB_OPTIONS = {option.name: option for option in map(Option.of, ("""\
name         --id name     NAME     name         edit          a name, usable wherever an id is; it is free again when the job has ended
label        .    labels   LABEL    labels       edit,cron     a label to find it by (may be repeated)
queue        .    queue    NAME     queue        edit,cron     the queue to put it in (default)
priority     -p   priority N        priority     edit,cron     higher goes first (0)
delay        .    duration DURATION .            edit,cron     start no sooner than this from now
at           .    when     TIME     .            edit,cron     start no sooner than this time, local unless it names a zone
ttl          .    ttl      DURATION .            edit,cron     cancel the job if it has not started within this time
max_retries  .    setting  N        max_retries  edit,cron     runs after the first; 0: one run, the default of `run`
timeout      .    setting  DURATION timeout      edit,cron     end an attempt that takes longer
backoff      .    setting  KIND     backoff      edit,cron     exponential, linear or constant
backoff_base .    setting  SECONDS  backoff_base edit,cron     base of the delay before a retry
backoff_max  .    setting  DURATION backoff_max  edit,cron     longest delay before a retry
retry_on     .    codes    CODES    retry_on     edit,cron     retry only after these exit codes, as in 1,75,128-159
dead_on      .    codes    CODES    dead_on      edit,cron     no retry after these exit codes
snooze_on    .    codes    CODES    snooze_on    edit,cron     after these exit codes try again later, without charging the attempt
snooze       .    duration DURATION snooze       edit,cron     delay before that (30s)
slots        .    slots    N        slots        edit,cron     slots of its workers that it takes up (1)
key          .    text     KEY      key          edit,cron     jobs of one key run one at a time, in order
unique       .    text     KEY      unique_key   edit,cron     if a job with this key is unfinished, print its id instead
for          .    duration DURATION .            cron          with --unique: also for this long after its end
after        .    refs     ID       .            edit,cron     start when these have completed (repeat, or separate by commas)
after_any    .    refs     ID       .            edit,cron     start when these have ended in any way
after_batch  .    refs     BATCH    .            edit,cron     start when all jobs of this batch have ended
cwd          .    dir      DIR      cwd          edit,cron     directory to run in (the current one)
env          .    env      K=V      .            edit,cron     one more environment variable (may be repeated)
clean_env    .    flag     .        .            edit,cron,run store only PATH, HOME, LANG and the like of the environment
shell        .    text     SHELL    shell        edit,cron     what runs the command line: bash, pwsh, a path (%s)
stdin        .    stdin    FILE     .            edit,cron     its input, stored with it: a file of up to 1 MiB (-: standard input)
umask        .    umask    MASK     umask        edit,cron     umask of the job, as in 027 (the current one)
hold         .    flag     .        held         edit,cron     keep it until `release`""" % SHELL).split("\n"))}
CLEARED = ("name", "label", "key", "unique", "ttl", "retry_on", "dead_on", "snooze_on", "snooze", "umask",
           "after", "after_any", "after_batch")  # `edit --key ''` takes it away
NOT_TAKEN = {"edit": "`edit` can't change %s", "cron": "%s can't be given to every job of a schedule"}
# Fields that other tools write; ignored.
IGNORED_KEYS = ("state", "attempts", "created_at", "updated_at")


class ParsedJob(dict):
    """The options of a job, as parse_job returns them."""


def parse_job(raw: dict, common=(), taker="") -> ParsedJob:
    """Return the checked options of one job, by the names of JOB_OPTIONS plus `command`.

    They override those of `common`, which are already parsed.
    """
    if isinstance(raw, ParsedJob):
        return raw
    job = ParsedJob()
    for key, value in raw.items():
        name = {"id": "name", "p": "priority", "labels": "label"}.get(key, str(key).replace("-", "_"))
        if name in job:
            raise UserError("%s is given twice" % quoted(key))
        if name == "command":
            job[name] = value
        elif name in JOB_OPTIONS:
            if value in ("", [""]) and taker == "edit" and name in CLEARED:
                job[name] = [] if name.startswith("after") else None
            elif value is not None:
                job[name] = JOB_OPTIONS[name].parse(value, str(key))
                if taker not in JOB_OPTIONS[name].takers:
                    raise UserError(NOT_TAKEN[taker] % quoted(key))
        elif name not in IGNORED_KEYS:
            raise UserError("no job has %s%s" % (quoted(key), nearest(name, JOB_OPTIONS)))
    job = ParsedJob(common, **job)
    if "for" in job and "unique" not in job:
        raise UserError("`for` needs `unique`")
    if "delay" in job and "at" in job:
        raise UserError("`delay` and `at` exclude each other: give one")
    return job


# A byte order mark starts a file, and each part of one that was joined from several; "\x1e" each JSON text of a sequence (RFC 7464).
BLANK = "\ufeff \t\r\n\f\v\x1e\x85\xa0\u200b\u2028\u2029\u3000"
QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019"  # JSON has only the first; word processors and Python write the others


def begins_json(text: str) -> bool:
    """Whether stripped text begins like a JSON job, and not like a shell command such as `{ group; }` or `[ -f test ]`.

    A brace or bracket alone is JSON too: the first line of an object or array that continues.
    """
    rest = text[1:].lstrip(BLANK)
    if text[:1] == "{":
        key, colon, _ = rest.partition(":")
        return rest[:1] in ("", '"', "}") or colon == ":" and key.strip(BLANK + QUOTES).isidentifier()  # missing or wrong quotes
    gap = text[1:len(text) - len(rest)]  # sh needs a blank after `[` and `[[`
    return text[:1] == "[" and (rest[:1] in ("", "{", "]") or (not gap or "\n" in gap) and (
        rest[0] in QUOTES + "-0123456789" or rest.startswith(("null", "true", "false")) or rest[0] == "[" and not rest[1:2].isspace()))


def line_end(text: str, pos: int) -> int:
    end = text.find("\n", pos)
    return len(text) if end < 0 else end


def parse_json(text: str, start: int = 0, first: int = 1) -> tuple:
    """Return (value, end) of the JSON that begins at `start`; nothing else may follow it on its last line.

    `first`: the number of the first line of the text, for an error.
    """
    import json
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except RecursionError:
        raise UserError("not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        place = " (line %d, column %d)" % (error.lineno + first - 1, error.colno) if isinstance(error, json.JSONDecodeError) else ""
        raise UserError("not valid JSON: %s%s" % (plain(str(error).split(": line ")[0])[:200], place)) from None
    if text[end:line_end(text, end)].strip(BLANK):
        raise UserError("not valid JSON: more follows its end (line %d)" % (text.count("\n", 0, end) + first))
    return value, end


def check_object(value) -> dict:
    if not isinstance(value, dict) or not value.get("command"):
        raise UserError('a JSON object with a "command" is needed, such as {"command": "sleep 2"}')
    return value


def stored_job(text) -> dict:
    """Return the options of a schedule's job from the JSON in its row."""
    if not isinstance(text, str):
        raise UserError("not valid JSON: %s" % quoted(text))
    return check_object(parse_json(text)[0])


PART_BYTES = 2**16  # of a bulk file that are read in one step


def parse_items(parts):
    """Yield (place, command or dict) for each job of a bulk file: one command per line, or JSON on any number of lines.

    `parts` are its text in parts of whole lines.  A JSON value may go on in the next parts.
    """
    parts = iter(parts)
    text, pos, number, first = next(parts, ""), 0, 1, 1  # first: the number of the first line of `text`
    while text:
        if pos >= len(text):
            text, pos, first = next(parts, ""), 0, number
            continue
        end = line_end(text, pos)
        line, lines = text[pos:end].strip(BLANK), 1
        if line[:1] in ("{", "[") and begins_json(line):
            place = number
            try:
                value, end = parse_json(text, text.index(line[0], pos), first)
            except UserError as error:
                more = "".join(islice(parts, 1 + (len(text) - pos) // PART_BYTES))  # twice as much each time
                if not more:
                    raise UserError("line %s: %s" % (place, error)) from None
                text, pos, first = text[pos:] + more, 0, number
                continue
            try:
                for i, item in enumerate(value if isinstance(value, list) else [value], 1):
                    place = "%d, item %d" % (number, i) if value is not item else number
                    yield place, check_object(item)
            except UserError as error:
                raise UserError("line %s: %s" % (place, error)) from None
            end = line_end(text, end)
            lines += text.count("\n", pos, end)
        elif "\0" in line:
            raise UserError("line %d: a NUL character, which no program can receive" % number)
        elif line and line[0] != "#":
            yield number, line
        pos, number = end + 1, number + lines


# -- templates: a command per value, as in GNU parallel --

SOURCES = (":::", ":::+", "::::", "::::+")
PLACE = r"(\{#\}|\{(?:[1-9][0-9]{0,5})?(?://|/\.|/|\.)?\})"
Place = record("Place", "position change quotes")  # position 0: all values, -1: the command's number; quotes: those open around it


def split_sources(words: list) -> tuple:
    """Return (the words of the command, [(marker, values)]) from words such as `gzip {} ::: a b`."""
    at = next((i for i, word in enumerate(words) if word in SOURCES), len(words))
    sources = []
    for word in words[at:]:
        if word in SOURCES:
            sources.append((word, []))
        else:
            sources[-1][1].append(word)
    return words[:at], sources


def combined(groups: list):
    """Yield each combination of values as a tuple, the last group's changing first.  The sources of one group are linked."""
    for values in zip(*groups[0]):
        if len(groups) == 1:
            yield values
        else:
            for rest in combined(groups[1:]):
                yield values + rest


def in_groups(values, most: int):
    """Yield tuples of `most` values; the last one may be shorter."""
    values = iter(values)
    group = tuple(islice(values, most))
    while group:
        yield group
        group = tuple(islice(values, most))


def changed(value: str, change: str) -> str:
    """Return a value without its extension (.), its base name (/), that without its extension (/.), or its directory (//)."""
    path = value if os.sep == "/" else value.replace(os.sep, "/")
    at = path.rfind("/") + 1
    if change == "//":
        if at == len(path):  # a slash at the end
            at = (path.rstrip("/") or "/").rfind("/") + 1
        return value[:len(path[:at].rstrip("/"))] or value[:min(at, 1)] or "."
    dot = path.rfind(".", at) if "." in change else -1
    return value[at if "/" in change else 0:dot if dot >= 0 else None]


def read_quotes(text: str, quotes: list) -> None:
    """Bring `quotes`, the quotes and parentheses that are open, to the end of a part of a POSIX shell's line."""
    import re
    for token in re.findall(r"(?s)\\.|\$\(|[\"'()`]", text):
        last = quotes[-1]
        if last == "'" or token == last != "(":
            if token[-1] == last:
                quotes.pop()
        elif token in ("$(", "`") or last != '"' and token in ("(", '"', "'"):
            quotes.append(token[-1])
        elif token == ")" and last == "(":
            quotes.pop()


def quote_within(quotes: str, text: str) -> str:
    """Return a value as a POSIX shell reads it unchanged where these quotes are open."""
    import re
    if quotes[-1:] == "'":
        text = text.replace("'", "'\"'\"'")
    elif quotes[-1:] == '"':
        text = re.sub(r'([\\"$`])', r"\\\1", text)
    else:
        text = quote_for_sh([text])
    return re.sub(r"([\\$`])", r"\\\1", text) if "`" in quotes else text


def has_places(words: list) -> bool:
    """Whether there is a place for a value in any of the words."""
    if not any("{" in word for word in words):
        return False
    import re
    return any(re.search(PLACE, word) for word in words)


def foreign_place(line: str) -> str:
    """Return the first place that GNU parallel would fill and Template would not; "" if there is none."""
    import re
    found = re.search(r"\{(?:%|##|-[1-9]\d*[./]*|=.*?=)\}", line) if "{" in line else None
    return found.group() if found else ""


class Template:
    """A command with places for values.

    `words` are an argument list, or one line for a shell; if there are none, each value is a command.  `quote(text)`
    quotes a value for a shell that is not a POSIX shell.
    """

    def __init__(self, words: list, quote=None):
        import re
        self._quote = quote
        self._is_line = len(words) < 2
        if self._is_line and quote is not None:  # other shells know no quotes that a value could not end
            words = [re.sub("([\"'])" + PLACE + "\\1", r"\2", word) for word in words]
        self._words = [re.split(PLACE, word) for word in words]
        if words and not has_places(words):
            if self._is_line:
                self._words[0][0] += " "
            self._words[len(words) - self._is_line:] = [(self._words[0] if self._is_line else [""]) + ["{}", ""]]
        quotes = [""]
        for parts in self._words:
            for i, part in enumerate(parts):
                if i % 2:
                    position = part[1:-1].rstrip("/.")
                    parts[i] = Place(-1 if position == "#" else int(position or 0), part[1 + len(position):-1], "".join(quotes))
                elif self._is_line:
                    self._open_quotes(part, quotes)
        self.last = max([place.position for parts in self._words for place in parts[1::2]], default=0)

    def _open_quotes(self, part: str, quotes: list) -> None:
        if self._quote is None:
            read_quotes(part, quotes)
        elif part.count('"') % 2:
            quotes[:] = [""] if quotes[-1] else ["", '"']

    def command(self, values: tuple, number: int):
        """Return the command for these values: a line, or a list of words."""
        if not self._words:
            return " ".join(values)
        words = []
        for parts in self._words:
            words.append("")
            for part in parts:
                if isinstance(part, str):
                    words[-1] += part
                    continue
                texts = [str(number)] if part.position < 0 else [
                    changed(value, part.change) for value in (values[part.position - 1:part.position] if part.position else values)]
                if self._is_line:
                    words[-1] += " ".join(self._quoted(text, part.quotes) for text in texts)
                elif texts:
                    words[-1] += texts[0]
                    words += texts[1:]
        return words[0] if self._is_line else words

    def _quoted(self, text: str, quotes: str) -> str:
        if self._quote is None:
            return quote_within(quotes, text)
        if quotes:
            raise UserError("only sh can take a value within longer quotes: let the quotes hold a place such as {} alone, or nothing")
        return self._quote(text)


# -- cron: five-field schedules and their next run --

DAY_S = 86400
CRON_NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}
CRON_FIELDS = (  # name, first and last value, names of the values in order
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec".split()),
    ("day of week", 0, 6, "sun mon tue wed thu fri sat".split()),  # 7 is Sunday too
)
LAST_DAY, LAST_WORKDAY = 32, 33  # L and LW, among the days of a month
LAST_OF_MONTH = 6                # 6L among the weekdays is 6 + 7 * this; 6#4 is 6 + 7 * 4


class Cron(record("Cron", "minutes hours days months weekdays either_day by_clock")):
    """A parsed schedule: the sorted values of its five fields, and two flags that depend on leading asterisks.

    either_day: neither day field starts with *, so a day needs to match only one of them.
    by_clock: minute or hour starts with *, so it runs whenever the clock shows a match; see next_run.
    """
    __slots__ = ()

    def runs_on(self, date: time.struct_time) -> bool:
        day, weekday = date.tm_mday, (date.tm_wday + 1) % 7
        left = month_length(date.tm_year, date.tm_mon) - day
        by_month = (day in self.days or left == 0 and LAST_DAY in self.days or LAST_WORKDAY in self.days
                    and 0 < weekday < 6 and left <= (2 if weekday == 5 else 0))
        by_week = (weekday in self.weekdays or weekday + (day + 6) // 7 * 7 in self.weekdays
                   or left < 7 and weekday + LAST_OF_MONTH * 7 in self.weekdays)
        return by_month or by_week if self.either_day else by_month and by_week


def month_length(year: int, month: int) -> int:
    if month == 2:
        return 28 + (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))
    return 30 if month in (4, 6, 9, 11) else 31


def parse_cron(spec: str):
    """Return the Cron of `minute hour day-of-month month day-of-week`, or of a nickname such as @daily; None for @reboot.

    If a day field starts with *, even */2, both day fields must match, as in Vixie cron (croniter does so
    only with implement_cron_bug=True).  Ranges that wrap around (22-6) are refused, except those that end
    on Sunday (fri-sun).  Beyond Vixie cron, a day may be L (the last of the month) or LW (its last from
    Monday to Friday).  A weekday may be 6#4 (the fourth Saturday) or 6L (the last one).
    """
    fields = CRON_NICKNAMES.get(spec.strip().lower(), spec).split()
    if spec.strip().lower() == "@reboot":
        return None
    if len(fields) != 5:
        raise UserError("schedule %s: give five fields (minute hour day-of-month month day-of-week)"
                        " or one of %s @reboot" % (quoted(spec), " ".join(CRON_NICKNAMES)))
    minute, hour, day, _, weekday = (text.startswith("*") for text in fields)
    cron = Cron(*(parse_cron_field(text, *field) for text, field in zip(fields, CRON_FIELDS)),
                either_day=not (day or weekday), by_clock=minute or hour)
    longest = 29 if cron.months == (2,) else 30 if {2, 4, 6, 9, 11}.issuperset(cron.months) else 31
    if all(longest < day < LAST_DAY for day in cron.days) and not cron.either_day:
        raise UserError("schedule %r never runs: its months have at most %d days" % (spec, longest))
    return cron


def parse_cron_field(text: str, name: str, first: int, last: int, names: list) -> tuple:
    """Return the sorted values of one field: a list of N, N-M or *, each with an optional /step."""
    monthly, weekly = last == 31, last == 6

    def refuse(why: str):
        by_name = " or %s-%s" % (names[0], names[-1]) if names else ""
        raise UserError("%s %r: %s; allowed: %d-%d%s, *, lists 1,2, ranges 1-5, steps */2 or 1-5/2%s" % (
            name, text, why, first, last, by_name, ", L, LW" if monthly else ", 6#4, 6L" if weekly else ""))

    def number(what: str, word: str, low: int, high: int) -> int:
        # int() alone also accepts '+1', '1_0' and the digits of other scripts.
        if word.isascii() and word.isdigit() and len(word) < 4 and low <= int(word) <= high:
            return int(word)
        return refuse("%s %r is not a number from %d to %d" % (what, word, low, high))

    def value(word: str) -> int:
        return first + names.index(word) if word in names else number("value", word, first, 7 if weekly else last)

    values = set()
    for item in text.lower().split(","):
        if monthly and item in ("l", "lw"):
            values.add(LAST_DAY if item == "l" else LAST_WORKDAY)
        elif weekly and ("#" in item or item.endswith("l")):
            day, mark, which = item.partition("#") if "#" in item else (item[:-1], "", "")
            values.add(value(day) % 7 + 7 * (number("the week", which, 1, 5) if mark else LAST_OF_MONTH))
        else:
            span, slash, step = item.partition("/")
            low, dash, high = span.partition("-") if span != "*" else (str(first), "-", str(last))
            low = value(low)
            high = value(high) if dash else last if slash else low
            if weekly and high == 0 < low:  # fri-sun
                high = 7
            if weekly and low == 7 > high:  # 7-2
                low = 0
            if low > high:
                refuse("%s runs backwards, write %d-%d,%d-%d" % (span, low, last, first, high))
            # A step beyond the cycle is refused: */90 would mean hourly, not every 90 minutes.
            step = number("step", step, 1, last - first + 1) if slash else 1
            values.update(0 if weekly and n == 7 else n for n in range(low, high + 1, step))
    return tuple(sorted(values))


def next_run(cron, after: float, tz=None, rule=None) -> float:
    """Return the Unix time of the first run after `after`, NEVER for @reboot; for tz and rule see zone_offset.

    When the local clock jumps, the rule is that of Debian's Vixie cron (man 8 cron):
    - by the clock (*/15 * * * *, @hourly): skipped minutes do not run, repeated ones run twice;
    - fixed times (no * at the start of minute or hour): minutes skipped in spring run once, together,
      at the moment of the jump; minutes repeated in autumn run the first time only.
    """
    if cron is None:
        return NEVER
    offset = zone_offset(tz, rule)
    now = int(after // 1)
    if cron.by_clock:
        return float(next_by_clock(cron, now, offset))
    moment, wall = now, now + offset(now)
    while moment <= now:
        wall = next_match(cron, wall)
        moment = first_shown(wall, offset)
    return float(moment)


def next_by_clock(cron: Cron, now: int, offset) -> int:
    """Return the first moment after `now` when the local clock shows a matching minute."""
    while True:  # each turn reaches a match or a change of offset, or advances by a day or more
        current = offset(now + 1)
        match = next_match(cron, now + current) - current
        horizon = min(match, now + DAY_S)
        if offset(horizon) != current:
            now = offset_change(offset, now + 1, horizon) - 1
        elif horizon == match:
            return match
        else:  # skip to the day before `match`: the offset may change within it
            now = max(horizon, match - DAY_S)


def next_match(cron: Cron, wall: int) -> int:
    """Return the first matching minute after `wall`; both are local times counted as if in UTC."""
    today, minute = divmod(wall // 60 + 1, 1440)
    day = today
    while day < today + 50 * 366:  # a 29 February on a given weekday comes within 40 years
        date = time.gmtime(day * DAY_S)
        if date.tm_mon not in cron.months:
            day, minute = day + max(1, 29 - date.tm_mday), 0  # never past the next month's 1st
            continue
        if cron.runs_on(date):
            for h in (h for h in cron.hours if h >= minute // 60):
                for m in (m for m in cron.minutes if h * 60 + m >= minute):
                    return day * DAY_S + h * 3600 + m * 60
        day, minute = day + 1, 0
    raise UserError("schedule never runs: nothing matches within 50 years")


def first_shown(wall: int, offset) -> int:
    """Return the moment when the local clock first shows `wall`, or jumps past it."""
    old, new = offset(wall - DAY_S), offset(wall + DAY_S)
    for current in (old, new):
        if offset(wall - current) == current:
            return wall - current
    return offset_change(offset, wall - new, wall - old)


def offset_change(offset, low: int, high: int) -> int:
    """Return the first second of (low, high] whose offset differs from that at `low`; that at `high` must differ."""
    old = offset(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == old else (low, middle)
    return high


# -- time zones: an IANA name, whose file the system has, or a POSIX rule; Python 3.8 has no zoneinfo, and its import is slow --

UTC_NAMES = ("UTC", "UTC0", "UCT", "GMT", "GMT0", "ZULU", "ETC/UTC", "ETC/GMT")
EPOCH_DAY = 719163  # 1970-01-01 as datetime counts days


def zone_offset(tz, rule=None):
    """Return a function from Unix time to the zone's offset from UTC at that time, in seconds.

    tz: an IANA name, a POSIX rule such as CET-1CEST,M3.5.0,M10.5.0/3, or None for this machine's own zone.
    rule: the POSIX rule to follow if this machine has no file for the name.
    """
    if tz is None:
        return lambda moment: time.localtime(moment).tm_gmtoff
    if tz.upper() in UTC_NAMES:
        return lambda moment: 0
    data = zone_data(tz)
    if data:
        return zone_file_offset(data)
    offset = posix_offset(tz) or posix_offset(rule or "")
    if offset is None:
        raise UserError("time zone %s is not known; %s, or a rule such as CET-1CEST,M3.5.0,M10.5.0/3, or UTC" % (
            quoted(tz), "give an IANA name such as Europe/Berlin" if zone_data("Europe/Berlin") else
            "this machine has no time zone data: install tzdata"))
    return offset


def zone_and_rule(tz: str) -> tuple:
    """Return `tz` and the POSIX rule of its file, "" without one; UserError if zone_offset does not know `tz`."""
    zone_offset(tz)
    data = None if tz.upper() in UTC_NAMES else zone_data(tz)
    return tz, zone_rule(data) if data else ""


def zone_data(tz: str):
    """Return the content of the file (RFC 8536) of the time zone with this IANA name, or None."""
    if not 0 < len(tz) <= 100 or not tz.isascii() or tz[0] == "/" or not tz.translate(dict.fromkeys(map(ord, "/_+-"), "x")).isalnum():
        return None
    for folder in zone_folders():
        try:
            with open(os.path.join(folder, tz), "rb") as file:
                data = file.read(2**20)
        except OSError:
            continue
        if data[:4] == b"TZif":
            return data
    return None


def zone_folders() -> list:
    """Return the folders to search for zone files: the system's, then those of `pip install tzdata` (Windows has only those)."""
    return ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo",
            *(os.path.join(folder, "tzdata", "zoneinfo") for folder in sys.path)]


def zone_rule(data: bytes) -> str:
    """Return the POSIX rule in a zone's file for all later years; "" if the file has none."""
    return data.rsplit(b"\n", 2)[-2].decode("ascii", "replace") if data[4] >= 0x32 and data.count(b"\n") > 1 else ""


def zone_file_offset(data: bytes):
    """Return a function as zone_offset does, from the content of a zone's file."""
    from bisect import bisect_right
    from struct import unpack_from
    at, size = 0, 4
    isut, isstd, leaps, times, types, chars = unpack_from(">6l", data, 20)
    if data[4] >= 0x32:  # the same data follows, with 64-bit times
        at, size = 44 + times * 5 + types * 6 + chars + leaps * 8 + isstd + isut, 8
        times, types = unpack_from(">6l", data, at + 20)[3:5]
    moments = unpack_from(">%d%s" % (times, "q" if size == 8 else "l"), data, at + 44)
    at += 44 + times * size
    offsets = [unpack_from(">l", data, at + times + 6 * kind)[0] for kind in (0, *data[at:at + times])]
    later = posix_offset(zone_rule(data))

    def offset(moment: float) -> int:
        if later is not None and (not moments or moment >= moments[-1]):
            return later(moment)
        return offsets[bisect_right(moments, moment)]
    return offset


def posix_offset(rule: str):
    """Return a function as zone_offset does, from a POSIX rule for TZ; None if it is not valid."""
    import re
    name, clock = r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]+>)", r"([+-]?\d{1,3}(?::\d\d?){0,2})"
    when = r",(M(?:1[0-2]|0?[1-9])\.[1-5]\.[0-6]|J?\d{1,3})(?:/%s)?" % clock
    found = re.fullmatch("%s%s(?:(%s)%s?(?:%s%s)?)?" % (name, clock, name, clock, when, when), rule, re.ASCII)
    if not found:
        return None
    standard, summer_name, summer, *days = found.groups()
    standard = -clock_seconds(standard)
    summer = -clock_seconds(summer) if summer else standard + 3600
    if max(abs(standard), abs(summer)) > 25 * 3600:
        return None
    if summer_name is None:
        return lambda moment: standard
    begin, begin_at, end, end_at = days if days[0] else ("M3.2.0", None, "M11.1.0", None)

    @lru_cache(maxsize=8)
    def summer_of(year: int) -> tuple:
        return (rule_day(begin, year) * DAY_S + clock_seconds(begin_at or "2") - standard,
                rule_day(end, year) * DAY_S + clock_seconds(end_at or "2") - summer)

    def offset(moment: float) -> int:
        first, last = summer_of(time.gmtime(moment + standard).tm_year)
        inside = first <= moment < last if first < last else not last <= moment < first
        return summer if inside else standard
    return offset


def clock_seconds(text: str) -> int:
    parts = [int(part) for part in text.lstrip("+-").split(":")] + [0, 0]
    return (parts[0] * 3600 + parts[1] * 60 + parts[2]) * (-1 if text[0] == "-" else 1)


def rule_day(text: str, year: int) -> int:
    """Return the day that Mm.w.d, Jn or n of a POSIX rule means in this year, counted from 1970."""
    from datetime import date
    day = date(year, 1, 1).toordinal() - EPOCH_DAY
    if text[0] == "J":
        return day + int(text[1:]) - 1 + (int(text[1:]) > 59 and month_length(year, 2) == 29)
    if text[0] != "M":
        return day + int(text)
    month, week, weekday = map(int, text[1:].split("."))
    first = date(year, month, 1).toordinal()  # the ordinal of a Sunday is divisible by 7
    days = (weekday - first) % 7 + 7 * (week - 1)
    return first - EPOCH_DAY + days - (7 if days >= month_length(year, month) else 0)


# == Files =============================================================================
# The files beside a database, and how files are made, moved and removed so that no other user can interfere.
# This section calls Errors and Small helpers.

# If the system has user ids (Windows has none), a queue belongs to one user.  Its files are created for that user only,
# and no link is followed.  No file that another user owns or may write to is trusted, except root's: root may do anything.

NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def acts_as_root() -> bool:
    """Whether this process is root and asked, with --as-root, to work another user's queue."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and bool(os.environ.get(AS_ROOT))


def is_foreign(uid: int) -> bool:
    """Whether this process should not trust the files of user `uid`."""
    return uid not in (0, os.geteuid()) and not acts_as_root()


def give_away(fd: int, like: str) -> None:
    """Give a file that root created in another user's queue to that user, the owner of `like`."""
    if acts_as_root():
        info = os.stat(like)
        if info.st_uid and not info.st_mode & S_ISVTX:
            os.fchown(fd, info.st_uid, info.st_gid)


def is_alone(info) -> bool:
    """Whether this is a plain file with one name, owned by a user whom we trust."""
    return S_ISREG(info.st_mode) and info.st_nlink <= 1 and not is_foreign(info.st_uid)


def open_own(path: str, flags: int) -> int:
    """Open or make a file of a queue.  Anything else than a plain file of this user alone is replaced by one."""
    for _ in range(3):
        try:
            fd = os.open(path, flags | os.O_CREAT | NO_LINK, 0o600)
            if is_alone(os.fstat(fd)):
                give_away(fd, os.path.dirname(path))
                return fd
            os.close(fd)
        except OSError:
            if not os.path.lexists(path) or os.path.isdir(path) or os.path.isfile(path) and not os.path.islink(path):
                raise
        os.unlink(path)  # a link, a FIFO, a second name of another file: its directory is this user's alone
    raise OSError(0, "is not a plain file, again and again", path)


def make_directory(path: str, like=None) -> None:
    """Create a directory and its missing parents, for this user only (os.makedirs leaves the parents to the umask)."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
            continue  # another process was first
        if acts_as_root():
            fd = os.open(path, os.O_RDONLY | NO_LINK)
            give_away(fd, like if like and path == missing[0] and os.path.exists(like) else os.path.dirname(path))
            os.close(fd)


def create(path: str):
    """Open a new file, for this user only; it replaces whatever is at `path`."""
    remove(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    give_away(fd, os.path.dirname(path))
    return open(fd, "wb")


def no_link(path: str, flags: int) -> int:
    """Open `path` as an opener of `open` does, but neither follow a link nor wait for a FIFO."""
    return os.open(path, flags | NO_LINK | getattr(os, "O_NONBLOCK", 0), 0o600)


def copy_bytes(source, target, most: int) -> int:
    """Copy at most `most` bytes; return how many there were."""
    copied = 0
    while copied < most:
        chunk = source.read(min(most - copied, 2 ** 16))
        if not chunk:
            break
        target.write(chunk)
        copied += len(chunk)
    return copied


def copy_file(path: str, target: str) -> None:
    with open(path, "rb", opener=no_link) as source, create(target) as copy:
        copy_bytes(source, copy, 2 ** 50)


def file_identity(path: str):
    """Return what tells a file from every other one, whatever their paths; None if there is no such file."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # there is no such file


def flush_file(path: str, flush) -> None:
    """Call `flush` with a descriptor of a file that should be on the disk."""
    fd = os.open(path, os.O_RDWR)
    try:
        flush(fd)
    finally:
        os.close(fd)


def move(path: str, target: str) -> None:
    """Rename a file; if another program has it open, which prevents that on Windows, move its content."""
    try:
        os.replace(path, target)
    except PermissionError:  # on other systems the next line fails too
        copy_file(path, target)
        os.truncate(path, 0)


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # removed already, or still open on Windows: the next cleanup removes it


class Files:
    """The paths of the files beside a database: all data that is not in it."""

    def __init__(self, database: str):
        self.database = database
        self.root = self.database + ".d"
        self.workers = os.path.join(self.root, "workers")
        self.logs = os.path.join(self.root, "logs")
        self.writer_lock = os.path.join(self.root, "gate")
        self.journal = os.path.join(self.root, "workers.log")

    def lock(self, worker) -> str:
        return os.path.join(self.workers, "%s.lock" % worker)

    def supervisor_lock(self, supervisor) -> str:
        return self.lock("s%d" % supervisor)

    def output(self, worker) -> str:
        """Return the path that a worker's attempt writes its output to, until it ends."""
        return os.path.join(self.workers, "%s.out" % worker)

    def log(self, job: int, attempt: int) -> str:
        return os.path.join(self.logs, str(job // 1000), "%d.%d.log" % (job, attempt))

    def log_bytes(self, budget: float) -> int:
        """Return the size of all logs; after `budget` seconds, an estimate from the newest directories."""
        names = os.listdir(self.logs) if os.path.isdir(self.logs) else []
        folders = sorted((name for name in names if name.isdigit()), key=int, reverse=True)
        limit, total = time.monotonic() + budget, 0
        for seen, name in enumerate(folders):
            if seen and time.monotonic() > limit:
                return total * len(folders) // seen
            try:
                with os.scandir(os.path.join(self.logs, name)) as entries:
                    total += sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
            except FileNotFoundError:
                pass  # its jobs were removed meanwhile
        return total

    def make(self) -> None:
        make_directory(self.root, like=self.database)
        for path in (self.workers, self.logs):
            make_directory(path)

    def keep(self, worker, job: int, attempt: int) -> None:
        """Move the output of an ended attempt to its log."""
        path, log = self.output(worker), self.log(job, attempt)
        try:
            if S_ISREG(os.lstat(path).st_mode):
                make_directory(os.path.dirname(log))
                move(path, log)
            else:
                remove(path)  # not the file that the attempt wrote
        except FileNotFoundError:
            pass  # moved already, before a crash

    def copy_logs(self, target) -> None:
        """Copy all logs to the directory of another database, whose Files `target` has."""
        if os.path.lexists(target.root):
            raise UserError("%s exists: give another name" % plain(target.root))
        target.make()
        for folder, _, names in os.walk(self.logs):
            there = os.path.join(target.logs, os.path.relpath(folder, self.logs))
            make_directory(there)
            for name in names:
                try:
                    copy_file(os.path.join(folder, name), os.path.join(there, name))
                except FileNotFoundError:
                    pass  # its job has just been removed

    def remove_logs(self, jobs) -> None:
        """Remove the logs of these jobs, and each directory that is then empty."""
        folders = {}
        for job in jobs:
            folders.setdefault(os.path.dirname(self.log(job, 1)), set()).add(str(job))
        for folder, numbers in folders.items():
            try:
                for name in os.listdir(folder):
                    if name.partition(".")[0] in numbers:
                        remove(os.path.join(folder, name))
                os.rmdir(folder)
            except OSError:
                pass  # it holds other jobs' logs, or does not exist


# == Platform differences ==============================================================
# Locks, processes, wake-up, places: one class per system with the same methods; `OS` is the one for this machine.
# This section calls Errors, Small helpers and Files.  References: flock(2), setsid(2), proc(5), posix_spawn(3).

def signal_text(number: int) -> str:
    """Return a signal in words."""
    import signal
    try:
        return "signal %d (%s)" % (number, signal.Signals(number).name)
    except ValueError:
        return "signal %d" % number


def lock_line(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:LOCK_LINE - 1].ljust(LOCK_LINE - 1) + b"\n"


# Signals that a supervisor or worker leaves alone: faults, and those by which shells stop and continue a program.
KEPT_SIGNALS = "KILL STOP CHLD CONT TSTP TTIN TTOU SEGV BUS ILL FPE ABRT TRAP SYS EMT".split()


def heed(handlers: dict) -> None:
    """Set handlers of signals by name.  A signal that was ignored when we started stays ignored (nohup, `&` in a script)."""
    import signal
    for name, handler in handlers.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_other_signals() -> None:
    """Ignore the signals that have no meaning here, so that none ends this process.  Jobs start with the defaults."""
    import signal
    kept = {getattr(signal, "SIG" + name, None) for name in KEPT_SIGNALS}
    for number in signal.valid_signals() - kept:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


# Python code that runs the program named by its first argument as a script, but from cached bytecode.  Service units keep it, so it
# relies on nothing in the program.
RUN_CACHED = ("import sys; from _frozen_importlib_external import SourceFileLoader; del sys.argv[0]; __file__ = sys.argv[0]; "
              "SourceFileLoader('__main__', __file__).exec_module(sys.modules['__main__'])")


ProcessEntry = record("ProcessEntry", "pid group born")  # a line of the process table; born: on the clock of `OS.born`

# What `OS.spawn` starts.  script: where a long command may be written; shell: None for the system's own; stdin: a descriptor,
# or None for nothing to read; umask: None for ours; scheduling: what `OS.defer_to_jobs` returned.
ProcessSpec = record("ProcessSpec", "command env output script shell stdin umask scheduling", defaults=(None, None, None, {}))


class System:
    """What a system has unless its class says otherwise."""

    forks = False            # whether workers are forked from the supervisor; if not, they are new programs
    job_faults = (7,)        # each errno of `spawn` that is the job's own fault: E2BIG

    def is_mount(self, path: str) -> bool:
        """Whether a single file is mounted at `path`, as containers do; False if the system does not tell."""
        return False

    def is_suspended(self, pid: int) -> bool:
        """Whether a process is stopped, as SIGSTOP does; False if the system does not tell."""
        return False

    def born(self) -> float:
        """Return the time, on the clock that `processes` uses."""
        return time.time()

    def before_forks(self) -> None:
        """Do nothing: workers are not forked."""

    def trusts_cache(self, path: str) -> bool:
        """Whether nobody else can put bytecode beside a program.  Here the access list of its directory decides, as for the program."""
        return True

    def launching(self, path: str, literal: str) -> list:
        """Return statements that load this file by its path, from cached bytecode if it may be, and run it; `literal` is the path too.

        Python looks for garbage again from `prepare` on: among the 100,000 objects that loading makes, a search takes 2 ms.
        """
        load = ("SourceFileLoader('queuectl', queuectl.__file__).exec_module(queuectl)" if self.trusts_cache(path) else
                "exec(compile(open(queuectl.__file__, 'rb').read(), queuectl.__file__, 'exec'), vars(queuectl))")
        return ["import gc", "gc.disable()", "from _frozen_importlib_external import SourceFileLoader",
                "queuectl = sys.modules['queuectl'] = type(sys)('queuectl')",
                "queuectl.__file__ = " + literal, load, "queuectl.leave(queuectl.main())"]

    def defer_to_jobs(self) -> dict:
        """Give jobs preference over this worker, if the system can; return the `scheduling` of a ProcessSpec."""
        return {}

    def umask(self):
        """Return this process's umask; None if there is none, or asking would change it for other threads."""

    def find_shell(self, shell: str, env: dict) -> list:
        """Return the program of `shell` and its options; [] if there is no such program."""
        for words in ([shell], shell.split() or [""]):
            path = self.find_program(words[0], env)
            if path:
                return [path] + words[1:]
        return []

    def owner_of_refused(self, error, root: str) -> str:
        """Return how to give back another user's file in the queue's `root` if the system refused that; "" if it is none."""
        return ""

    def is_piped_to(self) -> bool:
        """Whether data on standard input was surely meant for this command; False if the system does not tell."""
        return False


class PosixOwners(System):
    """The owners of a queue's files, on systems where users have numbers."""

    def user_name(self, uid: int) -> str:
        import pwd
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return "user %d" % uid

    def other_owner(self, database: str) -> str:
        """Return the name of the user whose queue root is about to work; "" if the queue is root's own."""
        place = database if os.path.exists(database) else os.path.dirname(database)
        return self.user_name(os.stat(place).st_uid) if acts_as_root() and os.path.exists(place) and os.stat(place).st_uid else ""

    def distrust(self, files) -> str:
        """Return why another user may change or replace a queue or its files; "" if none may.

        The directories above the queue's own are not checked.
        """
        path, folder = files.database, os.path.dirname(files.database)
        try:
            info = os.stat(folder)
        except FileNotFoundError:
            return ""
        if is_foreign(info.st_uid):
            return self._foreign_text(folder, info.st_uid)
        if self._others_may_write(folder, info) and not info.st_mode & S_ISVTX:  # in /tmp users may replace their own files only
            return "others may write to the directory %s: `chmod go-w %s`, or keep the queue in one of its own with --db PATH" % (
                plain(folder), self.quote([plain(folder)]))
        trusted = {0, os.geteuid()} | ({info.st_uid} if acts_as_root() and not info.st_mode & S_ISVTX else set())
        database = None
        for path in (*self._database_files(files), files.root, files.workers, files.logs):
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                continue
            if path == files.database:
                if S_ISDIR(info.st_mode):
                    return "%s is not a plain file but a directory: give another --db" % plain(path)
                if is_foreign(info.st_uid):
                    return self._foreign_text(path, info.st_uid)
                if info.st_uid != os.geteuid() and not self._may_write(path):  # root made it
                    return (self.owner_advice(path, info.st_uid, os.geteuid()) if os.stat(folder).st_uid == os.geteuid() else
                            self._foreign_text(path, info.st_uid))
                trusted.add(info.st_uid)  # with --as-root: the owner of the queue, and nobody else
            database = database or info
            fault = self._distrust_one(path, info, database, trusted, path in (files.root, files.workers, files.logs))
            if fault:
                return fault
        return ""

    def _distrust_one(self, path: str, info, database, trusted: set, directory: bool) -> str:
        if info.st_uid not in trusted:
            return "%s belongs to %s, who could read and change your jobs: keep your queue elsewhere with --db PATH or QUEUECTL_DB" % (
                plain(path), self.user_name(info.st_uid))
        if not (S_ISDIR if directory else S_ISREG)(info.st_mode) or not directory and info.st_nlink > 1 == database.st_nlink:
            return "%s is not a plain %s, and another user may have put it there: put a copy in its place, or give another --db" % (
                plain(path), "directory" if directory else "file")
        if info.st_uid != database.st_uid and not self._may_write(path):
            return self.owner_advice(path[:path.rindex(".d") + 2] if directory else path, info.st_uid, database.st_uid)
        if self._others_may_write(path, info):
            return "others may write to %s, and may have: `chmod go-w %s` if you trust what is in it, or give another --db" % (
                plain(path), self.quote([plain(path)]))
        return ""

    def close_to_others(self, files) -> None:
        """Take from other users the right to read a queue's database, and what SQLite keeps beside it."""
        for path in self._database_files(files):
            try:
                info = os.lstat(path)
                if info.st_mode & 0o077 and os.geteuid() in (0, info.st_uid):
                    os.chmod(path, 0o600)
            except FileNotFoundError:
                continue

    def _database_files(self, files) -> list:
        return [files.database + end for end in ("", "-wal", "-shm", "-journal")]

    def _foreign_text(self, path: str, uid: int) -> str:
        name = self.user_name(uid)
        if os.geteuid() == 0:
            return ("%s belongs to %s, and you are root: be that user (`sudo -u`; a container's `--user %d`), give --as-root (%s=1), "
                    "or keep a queue of your own elsewhere with --db" % (plain(path), name, uid, AS_ROOT))
        return "%s belongs to %s, who could read and change your jobs: keep your queue elsewhere with --db PATH or QUEUECTL_DB" % (
            plain(path), name)

    def owner_advice(self, path: str, uid: int, owner: int) -> str:
        """Return how to give back what root has left in another user's queue."""
        return "%s%s belongs to %s: `sudo chown -R %d %s` gives it back to %s" % (
            plain(path), ", or something in it," if os.path.isdir(path) else "", self.user_name(uid), owner, self.quote([plain(path)]),
            self.user_name(owner))

    def _beside(self, files, counts):
        """Yield (path, its state) of a queue's database, its directories, and the files in those of them that `counts(directory)` names."""
        found = self._database_files(files) + [files.root]
        for folder, folders, names in os.walk(files.root):
            found += [os.path.join(folder, name) for name in folders + (names if counts(folder) else [])]
        for path in found:
            try:
                yield path, os.lstat(path)
            except OSError:
                continue  # it has gone

    def oddities(self, files):
        """Yield (path, kind, repair) of each file beside a queue that is not its owner's alone; repair() or None if we can't.

        Kinds: "owner": another user's; "kind": not a plain file; "mode": others may read or write it.
        """
        owner = os.stat(files.database).st_uid
        for path, info in self._beside(files, lambda folder: True):
            mine = info.st_uid == os.geteuid()
            if not S_ISDIR(info.st_mode) and not S_ISREG(info.st_mode):
                yield path, "kind", lambda path=path: os.unlink(path)
            elif info.st_uid != owner:
                yield path, "owner", None
            elif info.st_mode & 0o077:
                yield path, "mode", (lambda path=path, mode=info.st_mode & 0o700: os.chmod(path, mode)) if mine else None

    def foreign_files(self, files) -> str:
        """Return what to do about files that root left in this user's queue and that stop its work; "" if there are none."""
        owner = os.stat(files.database).st_uid
        for path, info in self._beside(files, (files.root, files.workers).__contains__):
            if info.st_uid != owner and (S_ISDIR(info.st_mode) or S_ISREG(info.st_mode)) and not self._may_write(path):
                return self.owner_advice(files.root if path.startswith(files.root) else path, info.st_uid, owner)
        return ""

    def owner_of_refused(self, error, root: str) -> str:
        path = error.filename
        if isinstance(error, PermissionError) and isinstance(path, str) and path.startswith(root + os.sep):
            for place in (path, os.path.dirname(path)):
                if os.path.lexists(place) and os.lstat(place).st_uid != os.geteuid():
                    return "%s: %s" % (error.strerror, self.owner_advice(root, os.lstat(place).st_uid, os.geteuid()))
        return ""

    def trusts_cache(self, path: str) -> bool:
        """Whether only root and this user can put bytecode beside a program.  Python would run whatever lies there."""
        folder, name = os.path.split(path)
        cache = os.path.join(folder, "__pycache__")
        bytecode = os.path.join(cache, "%s.%s.pyc" % (name[:-3], sys.implementation.cache_tag))
        try:
            if not self._is_ours_alone(path) or not self._is_ours_alone(folder):
                return False
            if not os.path.lexists(cache):
                os.mkdir(cache, 0o755)  # Python would make it as the umask says
            return not os.path.islink(cache) and self._is_ours_alone(cache) and (
                not os.path.exists(bytecode) or self._is_ours_alone(bytecode))
        except OSError:
            return False

    def _is_ours_alone(self, path: str) -> bool:
        info = os.stat(path)
        return info.st_uid in (0, os.geteuid()) and not self._others_may_write(path, info)

    def _may_write(self, path: str) -> bool:
        return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)

    def _others_may_write(self, path: str, info) -> bool:
        """Whether another user may write to a file.  Many systems give each user a group of one: that is not another user."""
        if info.st_mode & 0o002:
            return True
        if not info.st_mode & 0o020 or info.st_gid == 0:
            return False
        import grp
        import pwd
        try:
            owner = pwd.getpwuid(info.st_uid)
            others = set(grp.getgrgid(info.st_gid).gr_mem) - {owner.pw_name} or [
                user for user in pwd.getpwall() if user.pw_gid == info.st_gid and user.pw_uid != info.st_uid]
            return bool(others) or owner.pw_gid != info.st_gid or self._has_access_list(path)
        except KeyError:
            return True

    def _has_access_list(self, path: str) -> bool:
        try:
            return "system.posix_acl_access" in os.listxattr(path)
        except (AttributeError, OSError):
            return False  # not on this system, or on this disk


def find_on_path(name: bytes, env: dict):
    """Return the path of the program that sh finds by a name, or None."""
    path = env.get(b"PATH", b"")
    for folder in path.split(b":") if path and b"%" not in path else ():  # dash obeys %builtin and %func in it
        found = folder + b"/" + name if folder else name
        if can_be_run(found):
            return found
    return None


def can_be_run(path: bytes) -> bool:
    return os.access(path, os.X_OK) and os.path.isfile(path)  # in this order: most don't exist


def sh_words(line: str):
    """Return the words of a line that sh would only split; None if sh would do more."""
    words, word, line = [], None, line.strip(" \t\n")
    while line:
        rest, part = line.lstrip(PLAIN), None
        if len(rest) < len(line):
            part = line[:len(line) - len(rest)]
        elif line[0] in " \t":
            rest = line.lstrip(" \t")
        elif line[0] in "'\"":
            part, end, rest = line[1:].partition(line[0])
            if not end or line[0] == '"' and not set(part).isdisjoint('$`\\'):
                return None
        elif line[0] == "\\" and line[1:2] not in ("", "\n"):
            part, rest = line[1], line[2:]
        else:
            return None
        if part is not None:
            word = (word or "") + part
        if word is not None and (part is None or not rest):
            words.append(word)
            word = None
        line = rest
    return words


@lru_cache(maxsize=None)
def default_signals():
    """Return the signals that a job should have the default actions for."""
    import signal
    return signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}  # for each other signal glibc asks the kernel first


def zone_of_file(path: str) -> str:
    """Return the zone of a time zone file, or of a link to one: an IANA name or a POSIX rule."""
    name = os.path.realpath(path).rpartition("zoneinfo/")[2]
    name = name[6:] if name.startswith(("posix/", "right/")) else name
    if zone_data(name):
        return name
    try:
        with open(path, "rb") as file:
            data = file.read(2**20)
        if data[:4] != b"TZif":
            return "UTC"
    except OSError:
        return "UTC"  # as the C library does
    try:  # it is a copy: use the name beside it, which may be stale, or the copy's own rule for later years
        with open("/etc/timezone", encoding="ascii") as file:
            name = file.read(200).strip()
    except (OSError, ValueError):
        name = ""
    return name if zone_data(name) == data else zone_rule(data)


def output_of_tool(*command) -> str:
    """Return what a tool of the system prints; "" if there is no such tool."""
    import subprocess
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                              env=dict(os.environ, LC_ALL="C", PATH=path), timeout=10)
        return done.stdout.decode("ascii", "replace")
    except (OSError, subprocess.SubprocessError):
        return ""


class Posix(PosixOwners):
    """Any POSIX system: macOS, the BSDs, and the base of Linux."""

    longest_wait = 3600.0    # seconds that a supervisor may wait without looking for signals or ended children
    stream_options = {}

    # -- places and words --

    def state_dir(self) -> str:
        base = os.environ.get("XDG_STATE_HOME", "")
        if os.path.isabs(base) and not self._is_foreign(base):
            return os.path.join(base, PROGRAM)
        home = self._home()
        if not os.path.isabs(home):
            raise UserError("no home directory to keep the queue in: give --db PATH or set QUEUECTL_DB")
        return os.path.join(home, ".local", "state", PROGRAM)

    def _home(self) -> str:
        """Return this user's home.  sudo may leave root the HOME of the caller, where none of root's files belong."""
        home = os.path.expanduser("~")
        if self._is_foreign(home):
            import pwd
            home = pwd.getpwuid(0).pw_dir
        return home

    def _is_foreign(self, folder: str) -> bool:
        try:
            return os.geteuid() == 0 and os.stat(folder).st_uid != 0
        except OSError:
            return False

    def quote(self, words) -> str:
        """Return the shell command that runs an argument list unchanged."""
        return quote_for_sh(words)

    def environment(self) -> bytes:
        """Return this process's environment, as sorted K=V entries between NULs."""
        added = b"LC_CTYPE" if self._locale_is_pythons() else b"_"
        return b"\0".join(sorted(b"%s=%s" % pair for pair in os.environb.items() if pair[0] not in (b"_", added)))

    def _locale_is_pythons(self) -> bool:
        """Whether LC_CTYPE has the value that Python sets if the locale is C (PEP 538)."""
        return bool(sys.flags.utf8_mode) and sys.version_info < (3, 15) and os.environ.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8")

    def merge(self, data: bytes, more: dict) -> bytes:
        return b"\0".join(sorted(b"%s=%s" % pair for pair in self.job_environment(data, more).items()))

    def job_environment(self, data: bytes, more: dict) -> dict:
        """Return what `environment` stored, and `more`, in the form that spawn takes."""
        found = [(entry, entry.find(b"=", 1)) for entry in data.split(b"\0")]  # posix_spawn refuses an empty name
        return self.with_variables({entry[:end]: entry[end + 1:] for entry, end in found if end > 0}, more)

    def with_variables(self, env: dict, more: dict) -> dict:
        return {**env, **{raw(key): raw(value) for key, value in more.items()}}

    def umask(self):
        threading = sys.modules.get("threading")
        if threading is not None and threading.active_count() > 1:
            return None
        mask = os.umask(0o077); os.umask(mask)  # in one line: an interrupt must not come between
        return mask

    def cores(self) -> int:
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:
            return os.cpu_count() or 1

    def loads(self):
        """Yield the load of the machine, each time: how many processes run or wait for a core."""
        while True:
            yield os.getloadavg()[0]

    def be_nice(self, niceness: int) -> None:
        os.nice(niceness)

    def network_disk(self, path: str) -> str:
        """Return the kind of network file system that `path` is on; "" if it is on none, or the system does not tell."""
        return ""

    # -- locks that the kernel drops with their last holder --

    def hold(self, path: str) -> int:
        """Make `path` and lock it for as long as the descriptor, or one inherited from it, is open."""
        return self._hold(path, os.O_RDWR)

    def _hold(self, path: str, flags: int) -> int:
        fd = open_own(path, flags)
        if not self.try_lock(fd):
            os.close(fd)
            raise BlockingIOError(0, "is locked by another process", path)
        return fd

    def try_lock(self, fd: int) -> bool:
        import fcntl
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:  # for example NFS without its lock daemon
            raise OSError(error.errno, "file locks fail on this disk (%s): keep the queue on a local one with --db PATH or QUEUECTL_DB"
                          % error.strerror) from None

    def lock_trouble(self, path: str) -> str:
        """Return why locks are unreliable on the disk of `path`, a lock file that is made if needed; "" if they work."""
        import fcntl
        try:
            first = open_own(path, os.O_RDWR)
        except OSError:
            return ""  # we can't tell
        second = os.open(path, os.O_RDWR | NO_LINK)
        try:
            fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)  # SQLite's kind
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "two had one lock"
        except (BlockingIOError, PermissionError):
            return ""  # held, by us or by another: they work
        except OSError as error:
            return error.strerror
        finally:
            os.close(first)
            os.close(second)

    def open_writer_lock(self, path: str):
        """Return a PosixWriterLock; None if it can't be opened."""
        try:
            return PosixWriterLock(open_own(path, os.O_RDWR), self.try_lock)
        except OSError:
            return None

    def sync(self, path: str) -> None:
        """Return when what was written to a file is on the disk."""
        import fcntl
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS's fsync leaves data in the drive
            flush_file(path, lambda fd: fcntl.fcntl(fd, fcntl.F_FULLFSYNC))
        else:
            flush_file(path, getattr(os, "fdatasync", os.fsync))

    def seize(self, path: str):
        """Return a descriptor that holds the lock of an existing file; None if another process holds it.

        We make plain files only, so anything else counts as missing.
        """
        if not S_ISREG(os.lstat(path).st_mode):
            raise FileNotFoundError(2, "is not a plain file", path)
        fd = os.open(path, os.O_RDWR | NO_LINK)
        if self.try_lock(fd):
            return fd
        os.close(fd)
        return None

    def drop(self, path: str, fd: int) -> None:
        """Remove the lock file of a descriptor, then release the lock: a process that has opened the file sees that it is lost."""
        remove(path)
        os.close(fd)

    def is_lost(self, path: str, fd: int) -> bool:
        """Whether a path no longer leads to the locked file of a descriptor."""
        try:
            return not os.path.samestat(os.stat(path), os.fstat(fd))
        except FileNotFoundError:
            return True

    def is_held(self, path: str) -> bool:
        try:
            fd = self.seize(path)
        except FileNotFoundError:
            return False
        if fd is not None:
            os.close(fd)
        return fd is None

    def write_lock_line(self, fd: int, line: int, text: str) -> None:
        """Write one line of a lock file.  Each line has a fixed place, so it can be overwritten even if the disk is full."""
        os.pwrite(fd, lock_line(text), line * LOCK_LINE)

    # -- which machine, boot and process this is --

    def machine(self) -> str:
        """Return a name of this boot of this machine and of this pid namespace; "" if the system does not tell."""
        for name in ("kern.bootsessionuuid", "kern.boottime", "kernel.random.boot_id"):  # macOS, the BSDs, Linux
            text = output_of_tool("sysctl", "-n", name).strip()
            if text:
                return text.replace(" ", "_")
        return ""

    def birth_slack(self) -> float:
        return 2.0

    def is_running(self, pid: int, born):
        """Whether the process that had this pid at that time (None: at any time) still runs; None if we can't tell."""
        alive, latest = self.processes(), float("inf") if born is None else born + self.birth_slack()
        return any(process.pid == pid and process.born <= latest for process in alive) if alive else None

    def processes(self) -> list:
        rows = []
        for line in output_of_tool("ps", "-A", "-o", "pid=", "-o", "pgid=", "-o", "stat=", "-o", "lstart=").splitlines():
            words = line.split()
            try:
                born = time.mktime(time.strptime(" ".join(words[3:8]), "%a %b %d %H:%M:%S %Y"))
                if words[2][:1] != "Z":
                    rows.append(ProcessEntry(int(words[0]), int(words[1]), born))
            except (ValueError, IndexError):
                continue
        return rows

    def has_stopped(self, group: int) -> bool:
        """Whether no process of a group runs any more; True if nothing tells."""
        lines = map(str.split, output_of_tool("ps", "-A", "-o", "pgid=", "-o", "stat=").splitlines())
        return not any(words[0] == str(group) and words[1][0] not in "TZ" for words in lines if len(words) == 2)

    def holders(self, path: str) -> list:
        """Return the pids of this user's processes that may hold the lock of `path`: here, those that can write to it."""
        pid, found = 0, set()
        for line in output_of_tool("lsof", "-w", "-F", "pa", "--", path).splitlines():
            if line[:1] == "p":
                pid = int(line[1:])
            elif line in ("aw", "au"):
                found.add(pid)
        return sorted(found)

    def end_orphans(self, group: int, born: float, path: str, marks=()) -> list:
        """Kill what is certainly left of a dead worker's attempt; return the pids that still live.

        These are ours: each process that holds the lock of the attempt's output.  The group, if its leader has `marks`
        (entries K=V) in its environment; if we can't read that, the leader must have begun when the attempt did.
        If the leader is gone, the group may be another's by now, so only its processes with those marks.
        """
        import signal
        left = []
        for _ in range(50):
            alive = self.processes()
            members = [p.pid for p in alive if p.group == group and group > 1]
            leader = [p for p in alive if p.pid == group]
            if leader:
                marked = self.has_marks(group, marks)
                same = abs(leader[0].born - born) <= self.birth_slack() if marked is None else marked
                ours = set(members) if same else set()
            else:
                ours = {pid for pid in members if self.has_marks(pid, marks)}
            left = sorted((ours | set(self.holders(path) if self._is_alone(path) else ())) - {os.getpid()})
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass  # gone, or another user's: the caller waits for its lock
            if not left:
                break
            time.sleep(0.01)
        return left

    def _is_alone(self, path: str) -> bool:
        """Whether a file's lock is held by an attempt only: not if the file has a second name."""
        try:
            return is_alone(os.lstat(path))
        except OSError:
            return False

    def has_marks(self, pid: int, marks):
        """Whether a process has these entries in its environment; None if we can't read that."""
        text = " %s " % output_of_tool("ps", "-Eww" if sys.platform == "darwin" else "eww", "-o", "command=", "-p", str(pid)).strip()
        if " PATH=" not in text and " QUEUECTL_JOB_ID=" not in text:
            return None  # gone, or one whose environment macOS shows to nobody
        return bool(marks) and all(" %s " % mark in text for mark in marks if mark.isascii())

    # -- running a job --

    def spawn(self, spec):
        """Start a ProcessSpec in a session and group of its own; return its PosixProcess."""
        start = PosixStart(spec)
        if spec.shell is None:
            return start.without_shell() or start.by_sh()
        words = self.find_shell(spec.shell, spec.env)
        if not words:
            raise OSError(self.job_faults[0], "the shell %s no longer exists" % plain(spec.shell))
        return start.by_shell(words, words[0])

    def find_program(self, name: str, env: dict):
        """Return the program by this path, or by this name on the PATH of `env`; None if there is none."""
        name = raw(name)
        found = find_on_path(name, env) if b"/" not in name else name if name[:1] == b"/" and can_be_run(name) else None
        return found and text_of(found)

    def open_output(self, path: str) -> int:
        """Open and lock the file that a job writes to; the descriptor is inheritable, and above those that shells redirect by digit."""
        import fcntl
        first = self._hold(path, os.O_RDWR | os.O_APPEND)
        fd = fcntl.fcntl(first, fcntl.F_DUPFD, 10)
        os.close(first)
        return fd

    # -- the supervisor's side --

    def detach(self, argv: list, log: str):
        """Start `argv` in the background; return its pid, and a pipe on which it says that it is ready."""
        import subprocess
        with open(open_own(log, os.O_RDWR | os.O_APPEND), "ab") as file:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file,
                                       start_new_session=True, cwd="/")
        process.returncode = 0  # we don't wait for it
        return process.pid, process.stdout

    def close_inherited(self) -> None:
        """Keep the descriptors that we inherited from our own children."""
        try:
            names = os.listdir("/dev/fd")
        except OSError:
            names = map(str, range(256))  # no /proc
        for name in names:
            try:
                if int(name) > 2:
                    os.set_inheritable(int(name), False)
            except OSError:
                pass  # the listing's own, or none

    def worker_processes(self, token: str):
        return PosixWorkers(self.forks)

    def signal_worker(self, pid: int, word: str) -> None:
        """Tell a worker to `look` at the database, `stop` after its job, or stop `now`; or `kill` it.  A supervisor heeds `now` too."""
        import signal
        try:
            os.kill(pid, getattr(signal, {"look": "SIGUSR1", "stop": "SIGTERM", "now": "SIGVTALRM", "kill": "SIGKILL"}[word]))
        except (ProcessLookupError, PermissionError):
            pass  # it has ended

    def worker_signals(self, where: str):
        return PosixSignals(int(where))

    def boot(self) -> str:
        """Name the last start of this machine; "" if that can't be told."""
        return self.machine()

    def zone(self, tz=None) -> str:
        """Return the zone that a value of TZ means, or this machine's own for None: an IANA name or a POSIX rule."""
        path = "/etc/localtime"
        if tz is not None:
            tz = tz[1:] if tz.startswith(":") else tz
            if not tz.startswith("/") and tz != "localtime":
                return tz or "UTC"
            path = os.path.join("/etc", tz)
        return zone_of_file(path)

    def install_dir(self) -> str:
        home = self._home()
        if not os.path.isabs(home):
            raise UserError("no home directory to install into: set HOME")
        return os.path.join(home, ".local", "bin")

    def launcher(self, path: str) -> tuple:
        """Return the file name and the text of the command that `install` makes."""
        known = [sys.executable, getattr(sys, "_base_executable", sys.executable)]  # with -IS, a virtual environment is its base
        short = [python for python in known if plain(python) == python and " " not in python and len(python) < 116]  # the kernel's limits
        if short:
            first = "#!%s -IS" % short[0]
        elif plain(known[0]) != known[0] or set(known[0]) & set("\"$`\\'"):
            raise UserError("no launcher can name %s: install with a Python whose path has no quotes, $ or \\" % quoted(known[0]))
        else:  # a shell starts it, by a line that Python reads as a string; not dash, which drops variables with odd names
            shell = next(filter(os.path.exists, ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash")), "/bin/sh")
            first = "#!%s%s\n'''exec' \"%s\" -IS \"$0\" \"$@\"\n' '''" % (shell, " -p" if shell != "/bin/sh" else "", known[0])
        alone = ("if not (sys.flags.isolated or getattr(sys.flags, 'safe_path', False)):\n"
                 "    del sys.path[0]  # it was started as `python queuectl`: nothing that lies beside it is to be imported")
        return PROGRAM, "%s\nimport sys\n%s\n%s\n" % (first, alone, "\n".join(self.launching(path, repr(path))))

    def blocks(self, stream) -> bool:
        """Whether a read waits for more input."""
        try:
            return os.get_blocking(stream.fileno())
        except (OSError, ValueError):
            return True  # not a file of the system

    def has_input(self, seconds: float) -> bool:
        """Wait so long, or until a pipe on standard input has data or has ended; return whether it has data."""
        import fcntl
        import select
        import termios
        return bool(select.select([0], [], [], seconds)[0]) and any(fcntl.ioctl(0, termios.FIONREAD, bytes(4)))

    def has_hung_up(self, error, fd: int) -> bool:
        """Whether a write failed because the terminal is gone: EIO from a character device."""
        return error.errno == 5 and os.fstat(fd).st_mode & 0o170000 == 0o020000

    def reader_left(self, seconds: float) -> bool:
        """Wait so long, or until nobody reads our stdout any more; return whether nobody does."""
        import select
        poll = select.poll()
        poll.register(1, 0)
        return bool(poll.poll(seconds * 1000))

    def terminal_draws(self) -> bool:
        return os.environ.get("TERM", "") not in ("dumb", "")

    def terminal_colours(self, stream) -> bool:
        return True

    def raw_terminal(self, on_end):
        return PosixKeys(on_end)


class Linux(Posix):
    """Linux: /proc says which processes are ours; workers are forked, which keeps them small."""

    forks = True

    def before_forks(self) -> None:
        """Keep the memory that forked workers share: 1.9 instead of 3.2 MiB per worker."""
        import gc
        if hasattr(gc, "freeze"):  # not on PyPy
            gc.freeze()

    def defer_to_jobs(self) -> dict:
        """A worker scheduled as a batch process does not preempt a job when it wakes: 3 % more short jobs get done."""
        try:
            if os.sched_getscheduler(0) == os.SCHED_OTHER and hasattr(os, "posix_spawn"):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
                return {"scheduler": (os.SCHED_OTHER, os.sched_param(0))}
        except OSError:
            pass  # musl has none of this
        return {}

    def umask(self):
        try:
            with open("/proc/self/status", "rb") as file:
                return int(file.read().partition(b"\nUmask:")[2].split(None, 1)[0], 8)
        except (OSError, IndexError, ValueError):
            return super().umask()  # no /proc, or Linux before 4.7

    def _proc_is_ours(self) -> bool:
        """Whether /proc exists and is of this pid namespace: another one's pids mean other processes here."""
        try:
            return os.readlink("/proc/self") == str(os.getpid())
        except OSError:
            return False

    def machine(self) -> str:
        if not self._proc_is_ours():
            return ""
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                return "%s/%s" % (file.read().strip(), os.readlink("/proc/self/ns/pid"))
        except OSError:
            return ""

    def _stat(self, path: str) -> list:
        """Return the fields of a /proc/PID/stat that follow the name: state, parent, group..."""
        with open(path, "rb") as file:
            return file.read().rpartition(b")")[2].split()

    def boot(self) -> str:
        try:  # a container's start counts too: its first process is younger than the machine's boot
            with open("/proc/sys/kernel/random/boot_id") as file:
                return "%s/%d" % (file.read().strip(), int(self._stat("/proc/1/stat")[19]))
        except (OSError, IndexError):
            return ""

    def born(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def processes(self) -> list:
        tick = os.sysconf("SC_CLK_TCK")
        rows = []
        for name in os.listdir("/proc") if self._proc_is_ours() else ():
            if name.isdigit():
                try:
                    words = self._stat("/proc/%s/stat" % name)
                except OSError:
                    continue
                if words[0] not in (b"Z", b"X"):
                    rows.append(ProcessEntry(int(name), int(words[2]), int(words[19]) / tick))
        return rows

    def has_stopped(self, group: int) -> bool:
        for process in self.processes():
            folder = "/proc/%d/task" % process.pid
            try:
                for name in os.listdir(folder) if process.group == group else ():
                    if self._stat("%s/%s/stat" % (folder, name))[0] not in b"TtZX":  # each thread: a process has its first one's state
                        return False
            except OSError:
                continue
        return True

    def is_suspended(self, pid: int) -> bool:
        try:
            return self._stat("/proc/%d/stat" % pid)[0] == b"T"
        except OSError:
            return False

    def has_marks(self, pid: int, marks):
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                return bool(marks) and set(file.read().split(b"\0")).issuperset(map(raw, marks))
        except OSError:
            return False

    def holders(self, path: str) -> list:
        try:
            wanted = os.lstat(path)
        except OSError:
            return []
        found = []
        for process in self.processes():
            folder = "/proc/%d/fd" % process.pid
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            if any(self._holds(process.pid, name, wanted) for name in names):
                found.append(process.pid)
        return found

    def _holds(self, pid: int, name: str, wanted) -> bool:
        try:
            if not os.path.samestat(os.stat("/proc/%d/fd/%s" % (pid, name)), wanted):
                return False
            with open("/proc/%d/fdinfo/%s" % (pid, name)) as file:
                return any(line.startswith("lock:") for line in file)  # a reader has none
        except OSError:
            return False

    def is_piped_to(self) -> bool:
        """Whether standard input is a pipe with data that our parent does not read too, as it does within a script or a loop."""
        try:
            pipe = os.fstat(0)
            if not S_ISFIFO(pipe.st_mode) or os.path.samestat(pipe, os.stat("/proc/%d/fd/0" % os.getppid())):
                return False
            while not self.has_input(0.05):
                if not self._has_writer(pipe):
                    return self.has_input(0)  # it may have written its first data and ended just now
        except OSError:
            return False  # it is closed, or the parent is another user's
        return True

    def _has_writer(self, pipe) -> bool:
        """Whether a process in our pipeline has the other end; an ancestor, such as sshd, may keep it open for nothing."""
        ours, pid = set(), os.getpid()
        while pid > 0:
            ours.add(pid)
            pid = int(self._stat("/proc/%d/stat" % pid)[1])
        return any(process.group == os.getpgrp() and process.pid not in ours and self._has_open(process.pid, pipe)
                   for process in self.processes())

    def _has_open(self, pid: int, wanted) -> bool:
        folder = "/proc/%d/fd/" % pid
        try:
            return any(os.path.samestat(os.stat(folder + name), wanted) for name in os.listdir(folder))
        except OSError:
            return False

    def is_mount(self, path: str) -> bool:
        wanted = os.fsencode(path)
        for char in b"\\", b" ", b"\t", b"\n":  # proc(5) has these in octal
            wanted = wanted.replace(char, b"\\%03o" % ord(char))
        try:
            with open("/proc/self/mountinfo", "rb") as file:
                return any(line.split(b" ", 5)[4] == wanted for line in file if wanted in line)
        except OSError:
            return False

    def network_disk(self, path: str) -> str:
        best, kind = "", ""
        path = os.path.realpath(path)
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    left, _, right = line.partition(" - ")
                    mount = left.split()[4].replace("\\040", " ")
                    if (path + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
                        best, kind = mount, right.split()[0]
        except (OSError, IndexError):
            return ""
        return kind if kind.startswith(("nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs", "lustre")) else ""


@lru_cache(maxsize=16)
def has_odd_name(names: frozenset) -> bool:
    """Whether one of these names of variables is not an identifier.  Most jobs of a worker have the same ones."""
    return not all(name.decode("ascii", "replace").isidentifier() for name in names)


class PosixStart:
    """The start of one job.

    A line that sh would only split into words is run without sh, as GNU make does: nearly twice as many short jobs,
    and sh (dash) cannot drop variables whose names are not identifiers.  If that fails, sh says why.
    """

    # Words that sh (dash, bash, ksh, busybox) runs without a program, or reads as syntax.
    SHELL_WORDS = frozenset(
        ". : [ [[ ]] alias autoload bg bind break builtin caller case cd chdir command compgen complete compopt continue coproc declare "
        "dirs disown do done echo elif else enable esac eval exec exit export false fc fg fi float for function functions getopts hash "
        "help history if in integer jobs kill let local logout mapfile nameref popd print printf pushd pwd read readarray readonly "
        "return select set shift shopt source stop suspend test then time times trap true type typeset ulimit umask unalias unset until "
        "wait whence while".split())

    def __init__(self, spec):
        self._spec = spec

    def without_shell(self):
        """Start a line that sh would only split into words; return None if sh would do more, or should say what is wrong."""
        words = sh_words(self._spec.command)
        program = self._program(words[0]) if words else None
        try:
            return program and self._start(program, words, {**self._spec.env, b"PWD": self._directory()})
        except OSError:
            return None  # no program, no #!, no permission, no memory...

    def by_sh(self):
        """Start it by sh; if that is dash, which drops variables whose names are not identifiers, by a bash that does as dash does.

        bash passes them on.  -p keeps it from running functions that the environment holds, xpg_echo has its echo read escapes.
        """
        if has_odd_name(frozenset(self._spec.env)) and os.path.realpath("/bin/sh").endswith("dash"):
            bash = find_on_path(b"bash", {b"PATH": b"/bin:/usr/bin:/usr/local/bin"})
            if bash:
                return self.by_shell([text_of(bash), "-p", "-O", "xpg_echo"], "sh")
        return self.by_shell(["/bin/sh"], "sh")

    def by_shell(self, words: list, called: str):
        """Start it by a shell and its options, which is told that it was called so."""
        command = self._spec.command
        argv = shell_arguments(words, command)
        if len(raw(command)) > SCRIPT_FROM and argv[-2] == "-c":
            with create(self._spec.script) as file:
                file.write(raw(command) + b"\n")
            argv[-2:] = [given(self._spec.script)]
        return self._start(raw(words[0]), [called] + argv[1:], self._spec.env)

    def _program(self, name: str):
        """Return the file that sh would run by this name; None if sh would run a builtin, or should say what is wrong."""
        if name in self.SHELL_WORDS or "=" in name or name[:1] in ("", "%"):
            return None
        name, env = raw(name), self._spec.env
        functions = (b"BASH_FUNC_%s%%%%", b"BASH_FUNC_%s()", b"__BASH_FUNC<%s>()")  # as bash exports them; other shells run none
        if any(form % name in env for form in functions) and not os.path.realpath("/bin/sh").endswith(("dash", "busybox")):
            return None
        return name if b"/" in name else find_on_path(name, env)

    def _directory(self) -> bytes:
        """Return PWD as sh sets it: unchanged if it leads to this directory, also by a symbolic link."""
        path = self._spec.env.get(b"PWD", b"")
        try:
            if path[:1] == b"/" and os.path.samestat(os.stat(path), os.stat(b".")):
                return path
        except OSError:
            pass  # it leads nowhere
        return os.getcwdb()

    def _start(self, program: bytes, argv: list, env: dict):
        """Start a program as a job.

        posix_spawn does one fork (or vfork) and exec on every Python and system.  exec closes Python's descriptors
        (PEP 446), except `output`: the job keeps it, as one more holder of its lock.
        """
        spec, argv = self._spec, list(map(raw, argv))
        before = os.umask(spec.umask & 0o777) if spec.umask is not None else None
        try:
            if not hasattr(os, "posix_spawn"):
                return PosixProcess(self._popen(program, argv, env))
            actions = [(os.POSIX_SPAWN_DUP2, spec.output, 1), (os.POSIX_SPAWN_DUP2, spec.output, 2)]
            if spec.stdin is not None:
                actions.append((os.POSIX_SPAWN_DUP2, spec.stdin, 0))
            return PosixProcess(os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigmask=(),
                                               setsigdef=default_signals(), **spec.scheduling))
        finally:
            if before is not None:
                os.umask(before)

    def _popen(self, program: bytes, argv: list, env: dict) -> int:
        """Return the pid of a job; used on PyPy, which has no posix_spawn."""
        import signal
        import subprocess
        spec = self._spec

        def restore():
            for number in default_signals():
                signal.signal(number, signal.SIG_DFL)

        env = {name: value for name, value in env.items() if b"=" not in name}  # Popen refuses such a name
        process = subprocess.Popen(argv, executable=program, env=env, stdin=spec.stdin, stdout=spec.output, stderr=spec.output,
                                   pass_fds=(spec.output,), start_new_session=True, preexec_fn=restore)
        process.returncode = 0  # reaped by PosixProcess.wait
        return process.pid


class PosixProcess:
    """One attempt of a job: a process, and the group that it leads."""

    def __init__(self, pid: int):
        self.pid = pid

    def wait(self, signals, timeout: float):
        """Return the exit code (negative: the signal), or None at the timeout or when `signals` brings something to do."""
        stopping, limit = signals.stopping, time.monotonic() + timeout
        while not signals.look and signals.stopping == stopping:
            woken = signals.pause(limit - time.monotonic())  # at once if SIGCHLD came before
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if not woken:
                break
        return None

    def failure(self, code: int) -> tuple:
        """Return (exit code, signal, error in words) for a code that `wait` returned, each None if it says nothing."""
        return (None, -code, None) if code < 0 else (code, None, "exit %d" % code)

    def terminate(self) -> bool:
        """Ask the whole group to end; False if nothing of it is left."""
        return self._signal("SIGTERM")

    def kill(self) -> bool:
        """Kill the whole group; False if nothing of it is left."""
        return self._signal("SIGKILL")

    def suspend(self) -> None:
        """Stop the whole group for a moment, and wait for it: a write that has begun goes on to its end."""
        limit, pause = time.monotonic() + 2.0, 0.001
        self._signal("SIGSTOP")
        while not OS.has_stopped(self.pid) and time.monotonic() < limit:
            time.sleep(pause)
            pause *= 2

    def resume(self) -> None:
        self._signal("SIGCONT")

    def alive(self) -> bool:
        """Whether a process of the group lives.  Zombies do not count: a container without an init never reaps them."""
        if not self._signal(None):
            return False
        alive = OS.processes()
        return not alive or any(process.group == self.pid for process in alive)  # none at all: there is no ps, no /proc

    def _signal(self, name) -> bool:
        """Send a signal to the group (None: only look for it); False if nothing of it is left."""
        import signal
        try:
            os.killpg(self.pid, getattr(signal, name) if name else 0)
            return True
        except (ProcessLookupError, PermissionError):  # PermissionError: only zombies are left, on macOS
            return False

    def close(self) -> None:
        """Do nothing: a pid takes no descriptor."""


class PosixWriterLock:
    """The lock that writers take before BEGIN.  Waiters are served first in, first out.

    A waiter draws a number, locks its byte, and enters when no process holds the byte of a lower number.  The kernel
    releases a process's locks when it ends.  A process that leaves sends a datagram to the next, so one process wakes
    per turn.  With 64 writers, one wait in 100 is longer than 80 ms; with flock alone, which wakes all waiters and
    prefers newcomers, 230 ms.  (A blocking lock would need no datagram, but only a signal could end it; signals, and
    threads, belong to the caller.)  The file: the last number drawn, the last that entered, the waiters' ports.
    """

    LOOK_S = 0.01  # how often a waiter checks whether a datagram was lost, or a predecessor died

    def __init__(self, fd: int, try_lock):
        self._fd = fd
        self._try_lock = try_lock
        self._socket = None
        self._drawn = False  # whether there are byte locks to release

    def enter_in_turn(self, seconds: float) -> bool:
        """Take the lock after everyone who waits; return False if another process still holds it after so many seconds."""
        return self._enter(self._draw(), seconds)

    def enter(self, seconds: float) -> bool:
        """Take the lock as enter_in_turn does, but at once if it is free: a turn that is handed over waits until its process runs."""
        return self._enter(None, seconds)

    def _enter(self, turn, seconds: float) -> bool:
        if self._may_enter(turn):
            return True
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if turn is None:
                turn = self._draw()
            self._listen(turn)
            if self._may_enter(turn):
                return True
            try:
                self._socket.recv(8)
            except OSError:
                pass  # it is time to look
        self.leave()
        return False

    def _draw(self):
        """Return our number, with its byte locked; None if another process holds the counter (it may be stopped)."""
        import fcntl
        self._drawn = True
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            turn = int.from_bytes(os.pread(self._fd, 6, 0), "little") + 1
            os.pwrite(self._fd, turn.to_bytes(7, "little")[:6], 0)
            fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, turn + 2**16)
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)
            return turn
        except OSError:
            return None

    def _listen(self, turn) -> None:
        if self._socket is None:
            import _socket
            ours = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
            ours.bind(("127.0.0.1", 0))
            ours.settimeout(self.LOOK_S)
            self._port = ours.getsockname()[1].to_bytes(2, "little")
            self._socket = ours  # last: a signal handler of the caller's may raise before
        if turn is not None:
            os.pwrite(self._fd, self._port, self._place(turn))

    def _place(self, turn: int) -> int:
        return 12 + 2 * (turn % 1024)

    def _may_enter(self, turn) -> bool:
        """Take the lock if no process is before this number (None: no number); return whether we have it."""
        import fcntl
        try:
            if turn is not None:
                entered = int.from_bytes(os.pread(self._fd, 6, 6), "little")
                if entered < turn - 1:  # each of these has died, has given up, or waits
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, turn - 1 - entered, entered + 1 + 2**16)
        except OSError:
            return False
        if not self._try_lock(self._fd):
            return False
        if turn is not None:
            os.pwrite(self._fd, turn.to_bytes(7, "little")[:6], 6)
        return True

    def leave(self) -> None:
        import fcntl
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # no child ever inherits this one
            if self._drawn:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
                self._drawn = False
        except OSError:
            return  # a disk without locks: `enter` has reported it
        numbers = os.pread(self._fd, 12, 0)
        if numbers[:6] != numbers[6:]:
            port = os.pread(self._fd, 2, self._place(int.from_bytes(numbers[6:], "little") + 1))
            try:
                self._listen(None)
                self._socket.sendto(b"", ("127.0.0.1", int.from_bytes(port, "little")))
            except OSError:
                pass  # nobody there

    def close(self) -> None:
        os.close(self._fd)
        if self._socket is not None:
            self._socket.close()


class PosixKeys:
    """A context in which the terminal gives its keys one by one; afterwards the terminal is as before."""

    NAMES = {"\033[A": "up", "\033OA": "up", "\033[B": "down", "\033OB": "down", "\033[5~": "page up", "\033[6~": "page down"}

    def __init__(self, on_end):
        self._on_end = on_end  # called by TERM and HUP, after which read returns
        self._typed = []       # keys that were read and not yet returned

    def __enter__(self):
        import signal
        import termios
        import tty
        self._wakeup, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        heed({"SIGTERM": self._on_end, "SIGHUP": self._on_end})
        self._before = termios.tcgetattr(0)
        tty.setcbreak(0)
        mode = termios.tcgetattr(0)
        mode[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the terminal as it is now
        termios.tcsetattr(0, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_) -> None:
        import termios
        try:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        except termios.error:
            pass  # the terminal has gone

    def read(self, timeout: float) -> str:
        """Return the next key, by name if it has one; "" at the timeout."""
        import re
        import select
        if not self._typed and 0 in select.select([0, self._wakeup], [], [], timeout)[0]:
            try:
                text = os.read(0, 1024).decode("utf-8", "replace")
            except OSError:
                text = ""
            if not text:
                self._on_end()  # the terminal has gone
            self._typed = re.findall(r"\033[\[O][0-9;]*[A-Za-z~]|\033.|.", text, re.S)
        key = self._typed.pop(0) if self._typed else ""
        return self.NAMES.get(key, key)


class PosixWorkers:
    """The supervisor's end of its workers: a pipe that wakes one of them per byte, and signals."""

    def __init__(self, forks: bool):
        self._forks = forks
        self._wake, self._token = os.pipe()
        os.set_blocking(self._token, False)
        self._children = {}

    def start(self, work, argv: list) -> int:
        """Start one worker: fork it to call `work(where)`, or run `argv` and `where` as a new program."""
        if self._forks:
            pid = os.fork()
            if not pid:
                self._become(work)
        else:
            import subprocess
            child = subprocess.Popen(argv + [str(self._wake)], stdin=subprocess.DEVNULL, pass_fds=(self._wake,))
            pid, child.returncode = child.pid, 0  # reaped below, not by subprocess
        self._children[pid] = time.monotonic()
        return pid

    def _become(self, work) -> None:
        code = 1
        try:
            os.close(self._token)
            work(str(self._wake))
            code = 0
        except BaseException as error:  # log it: there is no caller to report it
            sys.stderr.write("%s: error: %s\n" % (PROGRAM, internal_error(error)))
            sys.stderr.flush()
        finally:
            os._exit(code)

    def wake(self, count: int) -> None:
        """Wake so many workers; those that are being woken already count."""
        import fcntl
        import termios
        waiting = int.from_bytes(fcntl.ioctl(self._wake, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        try:
            os.write(self._token, b"w" * max(0, min(count, len(self._children)) - waiting))
        except BlockingIOError:
            pass  # the pipe is full: there is a byte for each worker already

    def pids(self) -> list:
        return list(self._children)

    def reap(self) -> list:
        """Return how many seconds each worker process lived that has ended since the last call."""
        ended = []
        for pid in list(self._children):
            try:
                done, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done = pid
            if done:
                ended.append(time.monotonic() - self._children.pop(pid))
        if os.getpid() == 1:
            self._reap_all(ended)
        return ended

    def _reap_all(self, ended: list) -> None:
        """Reap what jobs left behind: process 1 of a container inherits it, and nobody else waits for it."""
        try:
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in self._children:
                    ended.append(time.monotonic() - self._children.pop(pid))
        except ChildProcessError:
            pass  # none is left


class PosixSignals:
    """What a worker waits for.

    stopping: 0, GRACEFUL (end after this job) or IMMEDIATE (end now); look: whether to look at the database.
    """

    def __init__(self, wake: int):
        import select
        import signal
        self.stopping = 0
        self.look = False
        self._idle = False
        self._caught = set()
        self._wake = wake
        os.set_inheritable(wake, False)  # a new program inherited it
        self._supervisor = os.getppid()
        self._wakeup, writer = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for name, handler in (("SIGTERM", self._on_stop), ("SIGVTALRM", self._on_now), ("SIGUSR1", self._on_look),
                              ("SIGCHLD", self._on_child), ("SIGINT", self._on_group), ("SIGHUP", self._on_group),
                              ("SIGQUIT", self._on_group)):
            signal.signal(getattr(signal, name), handler)
        ignore_other_signals()
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # what a job reads from
        os.close(null)

    def end_by_term(self) -> None:
        """From now on TERM means IMMEDIATE: an engine sends it to all processes of a task that should end."""
        import signal
        signal.signal(signal.SIGTERM, self._on_now)

    def _on_group(self, number, _) -> None:
        """Ignore a signal to the whole group, but remember it: it may have reached a process that was just started."""
        self._caught.add(number)

    def _on_stop(self, number, _) -> None:
        self._caught.add(number)
        self.stopping = max(self.stopping, GRACEFUL)
        self._interrupt()

    def _on_now(self, *_) -> None:
        self.stopping = IMMEDIATE
        self._interrupt()

    def _on_look(self, *_) -> None:
        self.look = True
        self._interrupt()

    def _on_child(self, *_) -> None:
        """Without a handler SIGCHLD would not reach the wake-up descriptor."""

    def _interrupt(self) -> None:
        # A handler that only sets a flag would leave os.read waiting (PEP 475).
        if self._idle:
            self._idle = False
            raise WaitInterrupted

    def take_caught(self) -> set:
        """Return the signals to the whole group that arrived since the last call."""
        caught, self._caught = self._caught, set()
        return caught

    def orphaned(self) -> bool:
        return os.getppid() != self._supervisor

    def wait_for_work(self) -> None:
        """Return when there may be a job, or something to look at, or the supervisor is gone."""
        try:
            try:
                self._idle = True
                if not self.stopping and not self.look and not os.read(self._wake, 1):
                    self.stopping = GRACEFUL
            finally:
                self._idle = False
        except WaitInterrupted:
            pass  # a signal ended the wait: its handler has set `stopping` or `look`

    def pause(self, seconds: float) -> bool:
        """Wait until a signal or the time; return whether it was a signal."""
        if not self._poll.poll(max(0, seconds) * 1000 + 0.999):
            return False
        try:
            while len(os.read(self._wakeup, 512)) == 512:
                pass
        except BlockingIOError:
            pass  # it is empty
        return True


def windows_rule(facts: bytes) -> str:
    """Return a TIME_ZONE_INFORMATION as a POSIX rule: both count minutes, or hours, to the west."""
    from struct import unpack_from
    bias, standard, summer = (unpack_from("<l", facts, at)[0] for at in (0, 84, 168))
    rule = "<STD>%s" % minutes_text(bias + standard)
    dates = [unpack_from("<8H", facts, at) for at in (152, 68)]  # when summer begins and ends: year, month, weekday, week, hour, minute
    if all(date[1] and not date[0] for date in dates):
        rule += "<DST>%s" % minutes_text(bias + summer)
        rule += "".join(",M%d.%d.%d/%s" % (date[1], date[3], date[2], minutes_text(date[4] * 60 + date[5])) for date in dates)
    return rule


def minutes_text(minutes: int) -> str:
    return "%s%d:%02d" % ("-" if minutes < 0 else "", *divmod(abs(minutes), 60))


# The functions of kernel32 that we call: the result, then the arguments.  h: handle or pointer, t: text, n: number,
# b: true or false.  A false or invalid result is raised; a number may be anything.
KERNEL32 = {
    "CreateFileW": "htnnhnnh", "GetDriveTypeW": "nt", "GetConsoleMode": "bhh", "SetConsoleMode": "bhn",
    "CreateEventW": "hhnnt", "SetEvent": "bh", "CreateSemaphoreW": "hhnnt", "ReleaseSemaphore": "bhnh",
    "CreateJobObjectW": "hht", "SetInformationJobObject": "bhnhn", "QueryInformationJobObject": "bhnhnh",
    "AssignProcessToJobObject": "bhh", "TerminateJobObject": "bhn", "ResumeThread": "nh", "SetErrorMode": "nn",
    "GetProcessAffinityMask": "bhhh", "GetSystemTimes": "bhhh", "SetPriorityClass": "bhn",
    "GetTimeZoneInformation": "nh"}


@lru_cache(maxsize=None)
def kernel32(name: str):
    """Return a function of kernel32 (see KERNEL32) with its types set."""
    import ctypes
    types = {"h": ctypes.c_void_p, "t": ctypes.c_wchar_p, "n": ctypes.c_uint32, "b": ctypes.c_int}
    function = getattr(ctypes.WinDLL("kernel32", use_last_error=True), name)
    function.restype, *function.argtypes = [types[letter] for letter in KERNEL32[name]]
    return function


def call(name: str, *arguments):
    """Call a function of kernel32; raise OSError if it fails."""
    import ctypes
    result = kernel32(name)(*arguments)
    if KERNEL32[name][0] != "n" and result in (None, 0, ctypes.c_void_p(-1).value):
        raise ctypes.WinError(ctypes.get_last_error())
    return result


def without_venv(argv: list) -> list:
    """Return an argument list with the real Python: a venv's python.exe starts that, which then has another pid."""
    return [getattr(sys, "_base_executable", None) or argv[0]] + argv[1:]


def worker_event(pid: int, word: str):
    """Return the event that tells a worker this word; Global: it works from any of the user's sessions."""
    return call("CreateEventW", None, word != "look", False, "Global\\%s-%d-%s" % (PROGRAM, pid, word))


def hint_semaphore(token: str):
    """Return the semaphore that wakes one idle worker per count."""
    return call("CreateSemaphoreW", None, 0, 2**30, "Global\\%s-%s" % (PROGRAM, token))


class Windows(System):
    """Windows.  A lock is the open file itself: a process that opens it for writing lets others only read.

    Windows refuses a second such opening while any handle of the first exists, also an inherited one, so a job
    holds its output as on POSIX.  (The byte ranges that msvcrt locks are not inherited, and keep readers out.)
    A Job Object ends what a killed worker ran: its only handle is the worker's, and closes with it.
    """

    longest_wait = 0.2     # select waits for sockets only, not for the end of a process
    stream_options = {"encoding": "utf-8"}  # by default a pipe has the code page, which has no check mark
    SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@+:./\\-_"

    # -- places and words --

    def state_dir(self) -> str:
        base = os.environ.get("LOCALAPPDATA", "")
        if not os.path.isabs(base):
            raise UserError("LOCALAPPDATA names no directory to keep the queue in: give --db PATH or set QUEUECTL_DB")
        return os.path.join(base, PROGRAM)

    def quote(self, words) -> str:
        """Return the cmd.exe command that runs an argument list unchanged."""
        if any("\n" in word or "\r" in word for word in words):
            raise UserError("cmd.exe can't pass on an argument with a line break: put it into a file")
        if words[0].lower() == "echo":  # echo would print the quotes too
            return " ".join([words[0]] + [self._escaped(word) for word in words[1:]])
        return " ".join([self._quoted(words[0])] + [self._argument(word) for word in words[1:]])

    def _quoted(self, word: str) -> str:
        """Quote a word for how programs split their command line, if it has anything that cmd.exe could interpret."""
        import subprocess
        return word if word and not word.strip(self.SAFE) else '"' + subprocess.list2cmdline([" " + word])[2:]

    def _argument(self, word: str) -> str:
        """Quote a word, and escape \\", which cmd.exe takes for a closing quote, and %NAME%, which it expands in quotes."""
        return self._escaped(self._quoted(word)) if '"' in word or "%" in word else self._quoted(word)

    def _escaped(self, text: str) -> str:
        """Put a caret before special characters, and before any after a percent sign: then %NAME% and %NAME:a=b% name no variable."""
        return "".join("^" + char if char in '()%!^"<>&|' or before == "%" else char for before, char in zip(" " + text, text))

    def environment(self) -> bytes:
        """Return this process's environment, as sorted K=V entries between NULs."""
        return self.merge(b"", dict(os.environ))

    def merge(self, data: bytes, more: dict) -> bytes:
        entries = ["%s=%s" % pair for pair in sorted(self.job_environment(data, more).items())]
        return "\0".join(entries).encode("utf-8", "surrogatepass")

    def job_environment(self, data: bytes, more: dict) -> dict:
        """Return what `environment` stored, and `more`, in the form that spawn takes."""
        entries = data.decode("utf-8", "surrogatepass").split("\0")
        return self.with_variables(dict(entry.split("=", 1) for entry in entries if "=" in entry[1:]), more)

    def with_variables(self, env: dict, more: dict) -> dict:
        return {**env, **{key.upper(): value for key, value in more.items()}}  # Path is PATH

    def cores(self) -> int:
        import _winapi
        import ctypes
        mine, system = ctypes.c_size_t(), ctypes.c_size_t()
        call("GetProcessAffinityMask", _winapi.GetCurrentProcess(), ctypes.byref(mine), ctypes.byref(system))
        return bin(mine.value).count("1") or os.cpu_count() or 1  # 0: this process is in several groups of 64 cores

    def loads(self):
        """Yield how many cores were busy over the last second or more, each time: Windows keeps no average."""
        import ctypes
        at, busy, load = 0.0, 0, 0.0
        idle, kernel, user = times = [ctypes.c_uint64() for _ in range(3)]
        while True:
            now = time.monotonic()
            if now - at >= 1.0:
                before = busy
                call("GetSystemTimes", *map(ctypes.byref, times))
                busy = kernel.value + user.value - idle.value  # the kernel's time holds the idle time
                load = at and (busy - before) / 1e7 / (now - at)  # the times are in 100 ns, summed over the cores
                at = now
            yield load

    def be_nice(self, niceness: int) -> None:
        import _winapi
        if niceness:  # below normal or idle; jobs inherit it
            call("SetPriorityClass", _winapi.GetCurrentProcess(), 0x4000 if niceness < 10 else 0x40)

    def network_disk(self, path: str) -> str:
        drive = os.path.splitdrive(os.path.realpath(path))[0]
        share = drive.startswith("\\\\") and drive[:4] != "\\\\?\\"
        return "a share" if share or call("GetDriveTypeW", drive + "\\") == 4 else ""  # DRIVE_REMOTE

    # -- locks that the system drops with their last holder --

    def distrust(self, files) -> str:
        """Return "": Windows has access lists, which a file inherits from its directory."""
        return ""

    def close_to_others(self, files) -> None:
        """Do nothing, for the same reason."""

    def oddities(self, files):
        """Return nothing, for the same reason."""
        return ()

    def other_owner(self, database: str) -> str:
        return ""

    def foreign_files(self, files) -> str:
        return ""

    def _open(self, path: str, sharing: int, how: int, flags: int = 0) -> int:
        import msvcrt
        try:
            handle = call("CreateFileW", path, 0xC0000000, sharing, None, how, 0x80, None)  # to read and write
        except PermissionError as error:
            if error.winerror != 32:  # ERROR_SHARING_VIOLATION
                raise
            raise BlockingIOError(0, "is open in another process", path) from None
        return msvcrt.open_osfhandle(handle, flags)

    def hold(self, path: str) -> int:
        """Make `path` and lock it for as long as the descriptor is open; nobody can delete it meanwhile."""
        return self._open(path, 1, 4)  # FILE_SHARE_READ, OPEN_ALWAYS

    def seize(self, path: str):
        """Return a descriptor that holds the lock of an existing file; None if another process holds it."""
        try:
            return self._open(path, 1, 3)  # OPEN_EXISTING
        except BlockingIOError:
            return None

    def drop(self, path: str, fd: int) -> None:
        """Release a lock, then remove its file: nobody can delete an open file."""
        os.close(fd)
        remove(path)

    def is_lost(self, path: str, fd: int) -> bool:
        """Return False: nobody can delete an open file."""
        return False

    def is_held(self, path: str) -> bool:
        try:
            os.close(os.open(path, os.O_RDWR))  # this lets others write: two processes that only ask don't disturb each other
        except PermissionError:
            return True
        except FileNotFoundError:
            pass  # there is no lock without a file
        return False

    def lock_trouble(self, path: str) -> str:
        """Return "": each file system of Windows has locks."""
        return ""

    def sync(self, path: str) -> None:
        """Return when what was written to a file is on the disk."""
        flush_file(path, os.fsync)

    def open_writer_lock(self, path: str):
        """Return None: a fair lock would need ctypes in each command (6 ms), and on Windows few processes write at once."""
        return None

    def write_lock_line(self, fd: int, line: int, text: str) -> None:
        """Write one line of a lock file."""
        os.lseek(fd, line * LOCK_LINE, os.SEEK_SET)
        os.write(fd, lock_line(text))

    # -- which machine and process this is --

    def machine(self) -> str:
        """Return the computer's name.  Boots don't matter: no lock, event or Job Object outlives one, and pids alone mean nothing."""
        return "".join(os.environ.get("COMPUTERNAME", "windows").split())[:60]

    def is_running(self, pid: int, born) -> bool:
        """Return False: this is asked if a worker's lock file is gone, and nobody can delete that of a living worker."""
        return False

    def end_orphans(self, group: int, born: float, path: str, marks=()) -> list:
        """Wait a moment: the Job Object has ended them, or is about to."""
        for _ in range(50):
            if not self.is_held(path):
                break
            time.sleep(0.01)
        return []

    # -- running a job --

    def find_program(self, name: str, env: dict):
        """Return the program by this path, or by this name on the PATH of `env`; None if there is none."""
        import shutil
        return shutil.which(name, path=env.get("PATH")) if os.path.isabs(name) or not os.path.dirname(name) else None

    def _line(self, spec, home: str) -> tuple:
        """Return the program and the command line of a job."""
        import subprocess
        command, shell = spec.command, spec.shell
        if shell is None:
            if max(map(len, command.split("\n"))) > 8191:
                raise OSError(7, "cmd.exe accepts no command line of more than 8191 characters")
            return os.path.join(home, "cmd.exe"), 'cmd.exe /d /s /c "%s"' % (
                '"%s"' % self._script(command, spec.script) if "\n" in command else command)
        words = self.find_shell(shell, spec.env)
        line = subprocess.list2cmdline(shell_arguments(words, command)) if words else ""
        if not words:
            raise OSError(7, "the shell %s no longer exists" % plain(shell))
        if len(line) > 32766:
            raise OSError(7, "Windows accepts no command line of more than 32766 characters")
        return words[0], line

    def spawn(self, spec):
        """Start a ProcessSpec by cmd.exe, or another shell, in a hidden console of its own; return its WindowsProcess.

        The process starts suspended, so that nothing of it runs outside its Job Object.  Its handle of the output can
        only append, even after the file is cut.  Then we leave the directory, since nobody can delete the current one.
        """
        import _winapi
        import msvcrt
        import subprocess
        home = os.path.join(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32")
        program, line = self._line(spec, home)
        me, null = _winapi.GetCurrentProcess(), os.open(os.devnull, os.O_RDONLY)
        stdin = msvcrt.get_osfhandle(null if spec.stdin is None else spec.stdin)
        os.set_handle_inheritable(stdin, True)
        append = 0x120084  # FILE_APPEND_DATA, FILE_READ_ATTRIBUTES, READ_CONTROL, SYNCHRONIZE
        stdout = _winapi.DuplicateHandle(me, msvcrt.get_osfhandle(spec.output), me, append, True, 0)
        start = subprocess.STARTUPINFO(dwFlags=subprocess.STARTF_USESTDHANDLES, hStdInput=stdin, hStdOutput=stdout,
                                       hStdError=stdout, lpAttributeList={"handle_list": [stdin, stdout]})
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP | 0x4  # CREATE_SUSPENDED
        try:
            process, thread, pid, _ = _winapi.CreateProcess(
                program, line, None, None, True, flags, spec.env, None, start)
        finally:
            os.close(null)
            _winapi.CloseHandle(stdout)
            os.chdir(home)
        try:
            attempt = WindowsProcess(pid, process)
            call("ResumeThread", thread)
            return attempt
        except OSError:
            _winapi.TerminateProcess(process, 1)
            _winapi.CloseHandle(process)
            raise
        finally:
            _winapi.CloseHandle(thread)

    def _script(self, command: str, path: str) -> str:
        """Write a batch file for a command of several lines: on a command line cmd.exe would run only the first."""
        text = command.replace("\r\n", "\n").replace("\n", "\r\n") + "\r\n"
        try:
            data = ("@echo off\r\n" + text).encode("oem")  # a new console's code page
        except UnicodeEncodeError:
            data = ("@echo off\r\nchcp 65001 >nul\r\n" + text).encode("utf-8", "surrogatepass")
        with open(path, "wb") as file:
            file.write(data)
        return path

    def open_output(self, path: str) -> int:
        """Open and lock the file that a job writes to; others may still rename or delete it."""
        for _ in range(20):
            try:
                return self._open(path, 1 | 4, 4, os.O_APPEND)  # FILE_SHARE_READ and DELETE, OPEN_ALWAYS
            except BlockingIOError:
                time.sleep(0.005)  # a process may keep its handles for a moment after its end (seen on Wine)
        return self._open(path, 1 | 4, 4, os.O_APPEND)

    # -- the supervisor's side --

    def detach(self, argv: list, log: str):
        """Start `argv` in the background; return its pid, and a pipe on which it says that it is ready."""
        import subprocess
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        with open(log, "ab") as file:
            options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": file, "cwd": os.path.dirname(sys.executable)}
            try:  # leave the Job Object of a terminal or a CI runner, which ends with it
                process = subprocess.Popen(without_venv(argv), creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB, **options)
            except PermissionError:  # that Job Object does not allow it
                process = subprocess.Popen(without_venv(argv), creationflags=flags, **options)
        process.returncode = 0  # we don't wait for it
        return process.pid, process.stdout

    def close_inherited(self) -> None:
        """Do nothing: our children inherit only the handles that we name."""

    def worker_processes(self, token: str):
        return WindowsWorkers(token)

    def worker_signals(self, where: str):
        return WindowsSignals(where)

    def signal_worker(self, pid: int, word: str) -> None:
        """Tell a worker to `look` at the database, `stop` after its job, or stop `now`; or `kill` it."""
        import _winapi
        try:
            if word == "kill":
                return os.kill(pid, 15)  # TerminateProcess
            event = worker_event(pid, word)
            call("SetEvent", event)
            _winapi.CloseHandle(event)
        except OSError:
            pass  # it has ended, or is another user's

    def boot(self) -> str:
        """Name the last start of this machine; "" if that can't be told."""
        import winreg
        path = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                return str(winreg.QueryValueEx(key, "BootId")[0])  # counts the boots
        except OSError:
            return ""

    def zone(self, tz=None) -> str:
        """Return the zone that a value of TZ means, or this machine's own for None: an IANA name or a POSIX rule."""
        import ctypes
        if tz:
            return tz.lstrip(":")
        facts = ctypes.create_string_buffer(172)
        call("GetTimeZoneInformation", facts)
        return windows_rule(facts.raw)

    def install_dir(self) -> str:
        return os.path.join(os.path.expanduser("~"), ".local", "bin")

    def launcher(self, path: str) -> tuple:
        """Return the file name and the text of the command that `install` makes."""
        literal = "'%s'" % path.encode("unicode_escape").decode("ascii").replace("'", "\\x27")
        code = "import sys; sys.argv[0] = '%s'; %s" % (PROGRAM, "; ".join(self.launching(path, literal)))
        line = '@"%s" -IS -c "%s" ' % (without_venv([sys.executable])[0], code)
        page = "" if line.isascii() else "@chcp 65001 >nul\r\n"  # otherwise cmd.exe reads it in the console's code page
        return PROGRAM + ".cmd", page + line.replace("%", "%%") + "%*\r\n"

    def blocks(self, stream) -> bool:
        return True

    def has_input(self, seconds: float) -> bool:
        """Wait so long, or until a pipe on standard input has data or has ended; return whether it has data."""
        import _winapi
        import msvcrt
        limit = time.monotonic() + seconds
        try:
            while not _winapi.PeekNamedPipe(msvcrt.get_osfhandle(0), 0)[0] and time.monotonic() < limit:
                time.sleep(0.005)
            return _winapi.PeekNamedPipe(msvcrt.get_osfhandle(0), 0)[0] > 0
        except OSError:
            return False  # the pipe has ended

    def has_hung_up(self, error, fd: int) -> bool:
        """Whether a write failed because nobody reads any more: the C library says EINVAL."""
        return error.errno == 22

    def reader_left(self, seconds: float) -> bool:
        """Wait so long; return False: only the next write shows that nobody reads our stdout any more."""
        time.sleep(seconds)
        return False

    def raw_terminal(self, on_end):
        return WindowsKeys()

    def terminal_draws(self) -> bool:
        return os.environ.get("TERM") not in ("dumb", "")

    def terminal_colours(self, stream) -> bool:
        """Whether the stream is a console, and takes escape sequences (from Windows 10 on); switch them on."""
        import ctypes
        import msvcrt
        mode = ctypes.c_uint32()
        try:
            handle = msvcrt.get_osfhandle(stream.fileno())
            call("GetConsoleMode", handle, ctypes.byref(mode))
            return bool(mode.value & 4 or call("SetConsoleMode", handle, mode.value | 4))
        except (OSError, ValueError, AttributeError):
            return False  # a pipe, NUL, none at all, or an older console


class WindowsProcess:
    """One attempt of a job: a process, and the Job Object that holds all that it starts."""

    STOPPED = 0xC000013A   # STATUS_CONTROL_C_EXIT: what Ctrl-C and Ctrl-Break end with, and we
    CRASHES = {0xC0000005: "access violation", 0xC00000FD: "stack overflow", 0xC0000374: "heap corruption",
               0xC0000409: "aborted", 0xC0000135: "a DLL is missing", 0xC0000142: "a DLL failed to start"}

    def __init__(self, pid: int, process):
        self.pid = pid
        self._process = process
        self._job = call("CreateJobObjectW", None, None)
        self._limit(0x2400)  # KILL_ON_JOB_CLOSE, DIE_ON_UNHANDLED_EXCEPTION: nobody could answer its window
        call("AssignProcessToJobObject", self._job, process)

    def _limit(self, flags: int) -> None:
        import ctypes
        words = (ctypes.c_uint32 * (36 if sys.maxsize > 2**32 else 28))()  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
        words[4] = flags
        call("SetInformationJobObject", self._job, 9, words, ctypes.sizeof(words))

    def wait(self, signals, timeout: float):
        """Return the exit code (-1: stopped, by us or by Ctrl-C), or None at the timeout or when `signals` brings something to do.

        What a successful job leaves behind lives on, as on POSIX: closing its Job Object must not end it.
        """
        import _winapi
        if signals.look or not signals.wait_any([self._process], timeout):
            return None
        code = _winapi.GetExitCodeProcess(self._process)
        if not code:
            self._limit(0)
        return -1 if code == self.STOPPED else code

    def failure(self, code: int) -> tuple:
        """Return (exit code, signal, error in words) for a code that `wait` returned, each None if it says nothing."""
        if code < 0:
            return None, None, "stopped by Ctrl-C"
        return code, None, "exit %d" % code + (" (%s)" % self.CRASHES[code] if code in self.CRASHES else "")

    def kill(self) -> bool:
        """End the whole Job Object; False if nothing of it is left."""
        alive = self.alive()
        if alive:
            call("TerminateJobObject", self._job, self.STOPPED)
        return alive

    terminate = kill  # Windows has no TERM: Ctrl-Break reaches programs of the same console only, and few of them heed it

    def suspend(self) -> None:
        """Stop all processes of the Job Object for a moment."""
        self._each("NtSuspendProcess")

    def resume(self) -> None:
        self._each("NtResumeProcess")

    def _each(self, name: str) -> None:
        """Call a function of ntdll for each process of the Job Object."""
        import _winapi
        import ctypes
        words = (ctypes.c_size_t * 1025)()  # JOBOBJECT_BASIC_PROCESS_ID_LIST: two numbers of 32 bits, then the pids
        try:
            call("QueryInformationJobObject", self._job, 3, words, ctypes.sizeof(words), None)
        except OSError:
            pass  # the list is too long; those that fit are in it
        for pid in words[8 // ctypes.sizeof(ctypes.c_size_t):]:
            try:
                process = pid and _winapi.OpenProcess(0x800, False, pid)  # PROCESS_SUSPEND_RESUME
            except OSError:
                continue  # it has just ended
            if process:
                ctypes.WinDLL("ntdll")[name](ctypes.c_void_p(process))
                _winapi.CloseHandle(process)

    def alive(self) -> bool:
        """Whether a process of the Job Object lives."""
        import ctypes
        words = (ctypes.c_uint32 * 12)()  # JOBOBJECT_BASIC_ACCOUNTING_INFORMATION; 10: ActiveProcesses
        call("QueryInformationJobObject", self._job, 1, words, ctypes.sizeof(words), None)
        return words[10] > 0

    def close(self) -> None:
        """Close the handles; that ends what a job left behind, unless it succeeded."""
        import _winapi
        _winapi.CloseHandle(self._process)
        _winapi.CloseHandle(self._job)


class WindowsKeys:
    """A context in which the console gives its keys one by one."""

    NAMES = {"H": "up", "P": "down", "I": "page up", "Q": "page down"}

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        """Do nothing: the console's mode was not changed."""

    def read(self, timeout: float) -> str:
        """Return the next key, by name if it has one; "" at the timeout."""
        import msvcrt
        limit = time.monotonic() + timeout
        while not msvcrt.kbhit():  # waiting for the console's handle is no use: mouse events end that too
            if time.monotonic() > limit:
                return ""
            time.sleep(0.02)
        key = msvcrt.getwch()
        return self.NAMES.get(msvcrt.getwch(), "") if key in "\0\xe0" else key


class WindowsWorkers:
    """The supervisor's end of its workers: a semaphore that wakes one of them per count, and events for each."""

    def __init__(self, token: str):
        self._token = token
        self._wake = hint_semaphore(token)
        self._children = {}  # pid -> (process, when it was started, its events: kept until it has opened them too)

    def start(self, work, argv: list) -> int:
        """Start one worker, as a new program.  It shares the console, to write to it, but not its Ctrl-C."""
        import subprocess
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
        if not OS.terminal_colours(sys.stdout) and not OS.terminal_colours(sys.stderr):
            flags |= subprocess.DETACHED_PROCESS
        child = subprocess.Popen(without_venv(argv) + ["%s.%d" % (self._token, os.getpid())], stdin=subprocess.DEVNULL,
                                 stdout=sys.stdout, stderr=sys.stderr, creationflags=flags, cwd=os.path.dirname(sys.executable))
        events = [worker_event(child.pid, word) for word in ("now", "stop", "look")]
        self._children[child.pid] = child, time.monotonic(), events
        return child.pid

    def wake(self, count: int) -> None:
        """Wake so many workers; those that are being woken already count."""
        import _winapi
        waiting = 0
        while _winapi.WaitForSingleObject(self._wake, 0) == 0:
            waiting += 1
        count = max(waiting, min(count, len(self._children)))
        if count:
            call("ReleaseSemaphore", self._wake, count, None)

    def pids(self) -> list:
        return list(self._children)

    def reap(self) -> list:
        """Return how many seconds each worker process lived that has ended since the last call."""
        import _winapi
        ended = []
        for pid, (child, started, events) in list(self._children.items()):
            if child.poll() is not None:
                ended.append(time.monotonic() - started)
                del self._children[pid]
                for event in events:
                    _winapi.CloseHandle(event)
        return ended


class WindowsSignals:
    """What a worker waits for.

    stopping: 0, GRACEFUL (end after this job) or IMMEDIATE (end now); look: whether to look at the database.

    The next wait notices an order, at the latest the wait for the end of the job.
    """

    def __init__(self, where: str):
        import _winapi
        import signal
        token, _, supervisor = where.partition(".")
        self.stopping = 0
        self.look = False
        self._orders = {word: worker_event(os.getpid(), word) for word in ("now", "stop", "look")}
        self._wake = hint_semaphore(token)
        try:
            self._supervisor = _winapi.OpenProcess(0x100000, False, int(supervisor))  # SYNCHRONIZE
        except OSError:
            self._supervisor = None  # gone already
        for name in ("SIGINT", "SIGBREAK"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        call("SetErrorMode", 0x8003)  # for this process and its jobs: no window asks what to do about an error

    def end_by_term(self) -> None:
        """Do nothing: there is no TERM."""

    def take_caught(self) -> set:
        """Return an empty set: a job is in a group of its own from its start."""
        return set()

    def orphaned(self) -> bool:
        import _winapi
        return self._supervisor is None or _winapi.WaitForSingleObject(self._supervisor, 0) == 0

    def wait_any(self, handles: list, seconds) -> bool:
        """Wait for one of `handles`, an order, or the time (None: for ever); return whether it was one of `handles`."""
        import _winapi
        words = [word for word, least in (("now", IMMEDIATE), ("stop", GRACEFUL), ("look", 3)) if least > self.stopping]
        waited = [self._orders[word] for word in words] + handles
        limit = _winapi.INFINITE if seconds is None else min(int(max(0, seconds) * 1000 + 0.999), 2**31)
        found = _winapi.WaitForMultipleObjects(waited, False, limit)
        if found < len(words):
            self.look = self.look or words[found] == "look"
            self.stopping = max(self.stopping, {"now": IMMEDIATE, "stop": GRACEFUL, "look": 0}[words[found]])
        return len(words) <= found < len(waited)

    def wait_for_work(self) -> None:
        """Return when there may be a job, or something to look at, or the supervisor is gone."""
        if not self.stopping and not self.look and not self.orphaned():
            self.wait_any([self._supervisor, self._wake], None)

    def pause(self, seconds: float) -> None:
        """Wait until an order or the time."""
        self.wait_any([], seconds)


OS = Windows() if os.name == "nt" else Linux() if sys.platform.startswith("linux") and not os.environ.get("QUEUECTL_FALLBACKS") else Posix()


def program_argv() -> list:
    """Return the arguments that start this program again: from cached bytecode if Python may keep that and nobody else can write it."""
    path = os.path.abspath(__file__)
    if (os.environ.get("PYTHONDONTWRITEBYTECODE") or os.environ.get("PYTHONPYCACHEPREFIX")
            or os.path.basename(path) != PROGRAM + ".py" or not OS.trusts_cache(path)):
        return [sys.executable, "-IS", path]
    return [sys.executable, "-IS", "-c", RUN_CACHED, path]


def refusal(error, root: str) -> str:
    """Return why the system refused something; for another user's file in the queue's `root`, how to give it back."""
    return OS.owner_of_refused(error, root) or error.strerror or str(error)


def find_database(given) -> str:
    """Return the path of the database to use: what was given, else QUEUECTL_DB, else one for this user.

    This is the path without links, to which all names of a file lead: the -wal and the locks lie beside it.
    """
    path = given if given is not None else os.environ.get("QUEUECTL_DB", "")
    if given == "" or "\0" in (path or ""):
        raise UserError("--db must name a file")
    path = os.path.realpath(path or os.path.join(OS.state_dir(), "queue.db"))
    if os.path.islink(path):
        raise UserError("%s is a link that leads back to itself: give another --db" % plain(path))
    return path


def lock_advice(database: str) -> str:
    """Return what to do if locks are unreliable on the disk of a database; "" if they work."""
    why = OS.lock_trouble(Files(database).writer_lock)
    return why and "file locks fail on the disk of %s (%s): keep the queue on a local one with --db PATH or QUEUECTL_DB" % (
        plain(database), why)


# == Store =============================================================================
# All SQL; each statement stands in the method that runs it.  Order: rows, Transaction, Plan, Database, the parts of Store, Store.
# This section calls Small helpers, Files and Platform differences (locks, paths).  It starts no process and prints nothing.

# SQLite's TEXT may hold any bytes.  By default the sqlite3 module can't read a row that is not valid UTF-8, not even to repair it.
def as_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def is_valid(text: str) -> bool:
    """Whether the text is valid Unicode, without bytes that as_text had to escape."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def definitions(sql: str) -> list:
    """Return the parts of a CREATE statement between its outer commas, without comments and with single spaces."""
    text = " ".join(word for line in sql.split("\n") for word in line.partition("--")[0].split()).rstrip("; ")
    if not text.startswith(("TABLE ", "CREATE TABLE ")):
        return [text]
    head, _, body = text.partition("(")
    found = [head]
    for part in body.rpartition(")")[0].split(","):
        if found[-1].count("(") > found[-1].count(")"):
            found[-1] += "," + part
        else:
            found.append(part.strip())
    return found + [body.rpartition(")")[2].strip()]


@lru_cache(maxsize=None)
def schema_texts() -> dict:
    """Return the SQL of each table, index and trigger of SCHEMA by name."""
    texts = ["CREATE " + text.rpartition(";")[0] for text in SCHEMA.split("\nCREATE ")[1:]]
    return {text.partition(" ON ")[0].partition(" AFTER ")[0].partition("(")[0].split()[-1]: text for text in texts}


@lru_cache(maxsize=None)
def column_types(table: str) -> dict:
    """Return the Python types that SCHEMA allows for each column."""
    known = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str,), "BLOB": (bytes,)}
    types = {}
    for words in map(str.split, definitions(schema_texts()[table])[1:-1]):
        if words[1] in known:
            types[words[0]] = known[words[1]]
            if words[0] in ("command", "cwd", "place", "value"):
                types[words[0]] += (bytes,)  # if it is not valid UTF-8
            if "NULL" not in words and "PRIMARY" not in words:
                types[words[0]] += (type(None),)
    return types


@lru_cache(maxsize=512)
def examined(table: str, columns: str, types: tuple) -> tuple:
    """Return (the columns whose type SCHEMA does not allow, a getter for a row's numbers, a getter for its texts)."""
    wrong = []
    for column, kind in zip(columns.split(", "), types):
        where, _, name = column.rpartition(".")
        if column.replace(".", "").isidentifier() and not issubclass(kind, column_types(where or table)[name]):  # not an expression
            wrong.append(name)

    def picker(*kinds):
        places = [place for place, kind in enumerate(types) if kind in kinds]
        return itemgetter(places[0], *places) if places else lambda row: ()
    return wrong, picker(int, float), picker(str)


def too_large(columns: str, row) -> list:
    """Return the columns of a SELECT whose number is beyond LARGEST."""
    return [column.rpartition(".")[2] for column, value in zip(columns.split(", "), row)
            if isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST]


def checked(table: str, columns: str, row):
    """Return the row; raise WrongValue if a value is not of its column's type, not valid text, or beyond LARGEST."""
    wrong, numbers, texts = examined(table, columns, tuple(map(type, row)))
    found = numbers(row)
    if not is_valid("".join(texts(row))):
        raise WrongValue("%s %s holds text that is not valid" % (table, quoted(row[0])))
    if wrong or found and (max(found) > LARGEST or min(found) < -LARGEST):
        wrong = wrong + too_large(columns, row)
        if wrong:
            raise WrongValue("%s %s has a value of a wrong type or size in %s" % (table, quoted(row[0]), ", ".join(wrong)))
    return row


def all_right(table: str, columns: str, rows: list) -> bool:
    """Whether `checked` would surely accept each of these rows: column by column, this takes half its time."""
    for name, column in zip(columns.split(", "), zip(*rows)):
        kinds, values = set(map(type, column)), list(filter(None, column))
        if bytes in kinds or any(examined(table, name, (kind,))[0] for kind in kinds):
            return False
        if str in kinds:
            if int in kinds or float in kinds or not is_valid("".join(values)):
                return False
        elif min(values, default=0) < -LARGEST or max(values, default=0) > LARGEST:
            return False
    return True


def without_wrong(table: str, columns: str, row) -> list:
    """Return a row with a neutral value in place of each that its column can't have, so that a list can show the others."""
    wrong = examined(table, columns, tuple(map(type, row)))[0] + too_large(columns, row)
    kinds = {column: column_types(table)[column] for column in wrong}
    return [value if column not in wrong else None if type(None) in kinds[column] else kinds[column][0]()
            for column, value in zip((column.rpartition(".")[2] for column in columns.split(", ")), row)]


# What a job shows of itself, as name: column.  Its options come from their table: a new one is shown without another line.
SHOWN = {name: name for name in ("id", "name", "state", "queue", "priority", "command", "cwd", "attempts", "attempt", "crashes", "snoozes",
                                 "exit_code", "signal", "error", "duration", "batch", "schedule", "hook", "worker", "stdin", "held",
                                 "created_at", "run_at", "started_at", "finished_at", "expires_at")}
SHOWN.update({option.name: option.column for option in JOB_OPTIONS.values() if option.column not in (None, "held", "labels")})


class Job(record("Job", JOB_COLUMNS)):
    """A row of the job table, as it was when read."""

    __slots__ = ()

    @classmethod
    def of(cls, row):
        checked("job", JOB_SELECT, row)
        job = cls._make(row)
        if job.state not in STATES or job.backoff not in BACKOFFS:
            raise WrongValue("job %r has the unknown state %r or backoff %r" % (job.id, job.state, job.backoff))
        if job.command.__class__ is bytes or job.cwd.__class__ is bytes:
            job = cls._make(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in row)
        return job

    @classmethod
    def listed(cls, row):
        """Return a row for a list, which one wrong row must not hide: its error says what is wrong with it."""
        try:
            return cls.of(row)
        except WrongValue as error:
            job = cls._make(without_wrong("job", JOB_SELECT, row))
            return job._replace(state=job.state if job.state in STATES else "dead", error="%s: `doctor --fix` repairs it" % error)

    def running_s(self, now: float) -> float:
        """Return for how many seconds a running job has run; 0 if its row does not tell."""
        return max(0.0, now - (self.started_at or now))

    def to_dict(self) -> dict:
        """Return the job as `--json` shows it: times in ISO 8601 UTC, durations in seconds."""
        shown = {name: getattr(self, column) for name, column in SHOWN.items()}
        shown["error"] = error_text(self)
        shown["labels"] = self.labels.strip("/").split("/") if self.labels else []
        shown["shell"] = self.shell or SHELL
        shown["stdin"] = self.stdin is not None
        shown["umask"] = None if self.umask is None else "%04o" % (int(self.umask) & 0o777)
        shown["held"] = bool(self.held)
        if self.duration is not None and abs(self.duration) < FOREVER_S:
            shown["duration"] = round(self.duration, 6)
        for column in ("created_at", "run_at", "started_at", "finished_at", "expires_at"):
            shown[column] = utc(shown[column])
        for column in ("command", "cwd", "error"):
            if shown[column] is not None:
                shown[column] = shown[column].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return shown


# How an attempt ended.  kind: completed, failed, timeout, released, crashed, cancelled.
Outcome = record("Outcome", "job kind exit_code error pid started_at duration signal output", defaults=(None, None))
SupervisorRow = record("SupervisorRow", "id pid port token slots queues stop kind started_at jobs_left arguments")
WorkerRow = record("WorkerRow", "id supervisor pid machine started_at born place engine job")
Sent = record("Sent", "id worker folder handle options slots created_at")  # an array of packs that is meant for an engine
QueueRow = record("QueueRow", "name paused max_running rate jobs")
Ended = record("Ended", "at duration queue command completed retried waited")  # an attempt, as `stats` counts it
Batch = record("Batch", "id label total unfinished created_at")
JobEnd = record("JobEnd", "seq job attempt state started_at duration exit_code signal error command name attempts at")
Stored = record("Stored", "ids batch newest duplicates")  # ids: as ranges; newest: the last job before; duplicates: see Plan
EVENT = ("seq", "at", "job", "event", "state", "attempt", "worker", "exit_code", "signal", "error", "started_at", "duration")
Attempt = record("Attempt", "attempt worker pid started_at finished_at duration outcome exit_code signal error output",
                     defaults=(None,))


WAIT_FOR_LOCK = "waits for the database, which another program has locked"


@lru_cache(maxsize=None)
def assignments(columns: tuple) -> str:
    """Return the SET list of an UPDATE of these columns, for values in the same order."""
    return ", ".join(column + "=?" for column in columns)


def marks(values) -> str:
    """Return the SQL for a list of so many values."""
    return "(" + ",".join("?" * len(values)) + ")"


def startable(reserved_for) -> str:
    """Return the SQL for a queue's jobs that only the limits of the queue can keep back: those of a `run`, or reserved for none."""
    return ("job INDEXED BY job_own WHERE pool=:reserved_for AND queue=queue.name AND gate=5" if reserved_for else
            "job INDEXED BY job_ready WHERE queue=queue.name AND gate=0")


# The result of a change to a job: one of these words, the job's state if that does not allow the change, or Refused.
GONE, ASKED, CANCELLED_ALREADY, PENDING_ALREADY, DUE_NOW = "gone", "asked", "cancelled already", "pending already", "due now"
# state: the job's own.  why: "parent" (whose end, `other_state`, keeps it cancelled), or what an unfinished job has in common with
# it: "unique" (its key), "name", "schedule"; or "cycle".  other: the id of that job.
Refused = record("Refused", "state why other other_state", defaults=(None,))


def error_text(ended):
    """Return in words why a Job, an Attempt or an Outcome ended so; None if there is nothing to say."""
    return signal_text(ended.signal) if ended.error is None and ended.signal is not None else ended.error


def orphan_text(parent: int, state: str) -> str:
    return "its parent, job %d, %s" % (parent, "died" if state == "dead" else "was cancelled")


def duplicate_text(why: str, job: int) -> str:
    return {"unique": "job %d, which has the same unique key, is unfinished",
            "name": "job %d, which is unfinished, has that name",
            "schedule": "job %d of the same schedule, which does not overlap, is unfinished",
            "cycle": "job %d would wait for itself"}[why] % job


def searchable(text: str):
    """Return the text as a string that a query can take, whatever bytes it came from."""
    return text.encode("utf-8", "replace").decode()


def exclusively(lock, action):
    """Return the result of `action`, while no other thread holds the lock; in a forked process, that might be for ever."""
    alone = lock.acquire(timeout=5.0)
    try:
        return action()
    finally:
        if alone:
            lock.release()


def refuse_foreign_wal(path: str) -> None:
    """Refuse a -wal that belongs to another database: SQLite can't tell, and would apply it.

    Look again before refusing: while the queue is in use, the file and the WAL may change between two reads.
    If this process has a connection already, do nothing: closing the file would drop all its locks (fcntl(2)), and
    other processes would delete the WAL that it writes to.  Another thread may be about to make a connection.
    """
    for _ in range(5):
        if not exclusively(Database.opening, lambda: file_identity(path) not in Database.opened and has_foreign_wal(path)):
            return
        time.sleep(0.03)
    raise UserError("%s-wal is of another database, or of another time of this one, and would damage it: bring back the database that "
                    "it belongs to, or copy %s alone to a new name and give that by --db; keep both files until all is well" % (
                        plain(path), plain(path)))


def has_foreign_wal(path: str) -> bool:
    """Whether the WAL belongs to another database, judged by page 1 of the file and of the WAL (sqlite.org/fileformat2.html).

    In a WAL of the same file, the application id and the mark in user_version are the same.  The change counter
    of the first commit in it is at most one ahead of the file's.
    """
    def foreign(page) -> bool:
        ahead = int.from_bytes(page[24:28], "big") - int.from_bytes(head[24:28], "big")
        return page[60:63] != head[60:63] or page[68:72] != head[68:72] or ahead > 1

    try:
        with open(path + "-wal", "rb", buffering=0, opener=no_link) as wal, open(path, "rb", opener=no_link) as file:
            head, size = file.read(100), int.from_bytes(wal.read(32)[8:12], "big")
            if not any(head[60:64]):
                return False  # the queue is so new that its whole content is in the WAL
            page = first_page_logged(wal, size)
            if not page or not foreign(page):
                return False  # nearly always so, and at a thousandth of the cost of what follows
            wal.seek(0)
            page = first_page_in_force(wal, size)
            return page is not None and foreign(page)
    except OSError:
        return False


def first_page_logged(wal, size: int) -> bytes:
    """Return the beginning of page 1 in the first of 256 frames of a WAL that holds it, whether or not SQLite would read it."""
    for frame in range(256 if 512 <= size <= 65536 else 0):
        wal.seek(32 + frame * (24 + size))
        page = wal.read(24 + 100)
        if page[:4] == b"\0\0\0\1":
            return page[24:]
    return b""


def is_queue(path: str) -> bool:
    """Whether a file is a queue's database, judged by its application id; call this only without an open connection."""
    try:
        if not S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb", opener=no_link) as file:
            head = file.read(100)
        if not any(head[68:72]):  # a new queue, whose content is in the WAL
            with open(path + "-wal", "rb", opener=no_link) as wal:
                head = first_page_logged(wal, int.from_bytes(wal.read(32)[8:12], "big"))
        return int.from_bytes(head[68:72], "big") == APPLICATION_ID
    except OSError:
        return False


def first_page_in_force(wal, size: int):
    """Return page 1 of the first commit in a WAL that SQLite would read; None if there is no such commit.

    By the rules of the format, the log ends with the last commit before the first frame that is not valid.  A frame is
    not valid if its salts differ from the header's, or if its checksum, over everything so far, is wrong.
    Frames beyond that are of an earlier use of the file, or torn by a power cut.
    """
    import struct

    def add(data: bytes, first: int, second: int) -> tuple:
        words = struct.unpack(order % (len(data) // 4), data)
        for one, two in zip(words[::2], words[1::2]):
            first = first + one + second & 0xFFFFFFFF
            second = second + two + first & 0xFFFFFFFF
        return first, second

    head, found = wal.read(32), None
    order = {b"\x37\x7f\x06\x83": ">%dI", b"\x37\x7f\x06\x82": "<%dI"}.get(head[:4])
    if order is None or len(head) < 32:
        return None
    sums = add(head[:24], 0, 0)
    if struct.pack(">2I", *sums) != head[24:]:
        return None
    while True:
        frame = wal.read(24 + size)
        if len(frame) < 24 + size or frame[8:16] != head[16:24]:
            return None
        sums = add(frame[24:], *add(frame[:8], *sums))
        if struct.pack(">2I", *sums) != frame[16:24]:
            return None
        if frame[:4] == b"\0\0\0\1" and found is None:
            found = frame[24:124]
        if found is not None and any(frame[4:8]):
            return found


class Undo:
    """The outer half of every transaction: `with self._db.undo, Transaction(self._db) as now:`.

    An exception (Ctrl-C, the caller's alarm) may come between any two lines, also between BEGIN and the body,
    or in place of the inner __exit__.  Then this half ends the transaction.  Otherwise the inner half has ended it.
    """

    def __init__(self, database):
        self._database = database

    def __enter__(self) -> None:
        if self._database.connection.in_transaction:
            raise RuntimeError("transactions do not nest")

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Roll back an open transaction and release the writer lock; a second call does nothing."""
        database = self._database
        try:
            if database.connection.in_transaction:
                database.execute("ROLLBACK")
        finally:
            database.leave()


class Transaction:
    """One short BEGIN IMMEDIATE transaction of a Database; entering returns its time.

    Writers queue for a writer lock (`gate`): 64 workers that poll SQLite's lock instead get half as much done, and
    their snapshots keep the WAL from being reset.  The writer lock is only an optimisation: without it, BEGIN is
    retried after a random part of 2 to 10 ms.  (One process of 64 waited 8 s with SQLite's own busy handler, and
    0.7 s this way.)  After the commit the supervisors get their hints.  If `sync` is set, the WAL is synced then,
    outside the writer lock, so that the next writer does not wait for the disk.
    """

    WRITER_LOCK_S = 0.5  # if our turn has not come by then, a stopped or foreign process holds the lock

    def __init__(self, database):
        self._database = database

    def __enter__(self) -> float:
        database = self._database
        database.check_file()
        if database.writer_lock is None:
            database.writer_lock = OS.open_writer_lock(database.files.writer_lock)
        if database.writer_lock is not None:
            database.inside = True  # set first: an interrupt must not leave the lock held
            enter = database.writer_lock.enter_in_turn if database.sync else database.writer_lock.enter  # workers: see `enter`
            database.inside = enter(min(self.WRITER_LOCK_S, database.patience))
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            database.leave()  # a process without the writer lock holds the database
            database.patiently(lambda: database.execute("BEGIN IMMEDIATE"))
        database.hints = None
        self._before = database.connection.total_changes
        return database.clock()

    def __exit__(self, kind, *_) -> None:
        database, db = self._database, self._database.connection
        listeners = ()
        try:
            if kind is None:
                listeners = database.listeners() if database.hints is not None else ()
                db.execute("COMMIT")
        finally:
            database.undo.end()
        if listeners:
            database.send(listeners, database.hints)
        if kind is None and database.sync and db.total_changes > self._before:
            database.sync_wal()


def need_shell(shell: str, env: bytes) -> None:
    """Refuse a shell that a job with this environment would not find."""
    if not OS.find_shell(shell, OS.job_environment(env, {})):
        raise UserError("there is no shell %s on the PATH: give the name of a program that is there, or a full path" % quoted(shell))


PARENT_OPTIONS = ("after", "after_any", "after_batch")


def is_list(command) -> bool:
    return isinstance(command, list) or isinstance(command, tuple) and len(command) > 1


def quote_for_powershell(words) -> str:
    return "& " + " ".join("'%s'" % word.replace("'", "''") for word in words)


def quoter(shell):
    """Return the function that makes of an argument list a line for a shell (None: the default)."""
    if shell in (None, SHELL):
        return OS.quote
    return quote_for_powershell if is_powershell(shell.split()[0]) else quote_for_sh


def template(words: list, shell) -> Template:
    """Return the Template of an argument list, or of one line for this shell."""
    foreign = foreign_place(" ".join(words))
    if foreign:
        raise UserError("%s is a place of GNU parallel that there is not here: see the places for values in README.md" % quoted(foreign))
    quote = quoter(shell)
    if quote(["'"]) == quote_for_sh(["'"]):
        return Template(words)
    head = len(quote(["x"])) + 1
    return Template(words, lambda text: quote(["x", text])[head:])


def command_line(command, shell) -> str:
    """Return the line that a shell (None: the default) runs for a command, which is a string or a list of strings."""
    if isinstance(command, (list, tuple)) and command and all(isinstance(word, str) for word in command):
        command = quoter(shell)(command) if is_list(command) else command[0]
    if not isinstance(command, str) or not command.strip():
        raise UserError("a command must be a string, or a list of strings, that is not empty")
    return command


def job_columns(options: ParsedJob, base: bytes) -> tuple:
    """Return (columns of the job table, other options) for a job, or for a change to one, in the environment `base`."""
    columns, rest = {}, {}
    for name, value in options.items():
        column = JOB_OPTIONS[name].column if name != "command" else None
        if column is None:
            rest[name] = value
        else:
            columns[column] = value
    if "command" in rest:
        command = rest.pop("command")
        columns["command"] = encodable(command_line(command, columns.get("shell")), "the command")
        if is_list(command):  # the setting `shell` is for command lines
            columns.setdefault("shell", None)
    if "cwd" in columns:
        columns["cwd"] = encodable(columns["cwd"], "cwd")
    if columns.get("shell") == SHELL:
        columns["shell"] = None
    elif columns.get("shell"):
        need_shell(columns["shell"], OS.merge(base, rest.get("env", {})))
    return columns, rest


def add_to_ranges(ranges: list, ids: range, newest: int) -> None:
    """Add ids to a list of ranges, none of which holds both ids up to `newest` and later ones."""
    if ranges and ids.start == ranges[-1].stop != newest + 1:
        ranges[-1] = range(ranges[-1].start, ids.stop)
    else:
        ranges.append(ids)


def job_env(base: bytes, options: dict) -> bytes:
    """Return the environment of a job with these options, from that of the user who enqueues it."""
    base = kept(base, CLEAN_ENV) if options.get("clean_env") else base
    return OS.merge(base, options["env"]) if "env" in options else base


def time_columns(options: dict, now: float) -> dict:
    """Return the columns of the time options; `ttl` and `delay` count from `now`."""
    columns = {"expires_at": options["ttl"] and now + options["ttl"]} if "ttl" in options else {}
    if "delay" in options:
        columns.update(run_at=now + options["delay"], delay=options["delay"])
    if "at" in options:
        columns.update(run_at=options["at"], delay=None)
    return columns


class Plan:
    """Jobs to be stored.  Everything that can be validated before the lock is taken is validated here.

    `options` apply to all items; an item's own options override them.  `fixed` are columns that take the place of settings.
    `more` may be set to an iterator of further items, in lists that `read` has returned, so that memory does not grow with the jobs.
    `origin` says where jobs come from that no user enqueues: their `base` environment and `cwd`; `schedule` or `hook`.
    """

    def __init__(self, items, options=(), taker="", fixed=(), origin=()):
        self.given = items
        self._options = parse_job(dict(options), taker=taker)
        if self._options.get("queue") == "default":
            del self._options["queue"]
        self._taker = taker
        self._fixed = fixed
        self._origin = dict(origin)
        self.batch = None
        self._ours = not origin  # whether the jobs get the environment of this process
        self._base = self._origin["base"] if origin else OS.environment()
        self._umask = None if origin else OS.umask()
        self.items = self.read(items)
        self.more = ()
        self.apart = False     # whether no job refers to another of these, so that each part can be finished by itself
        if not self.items:
            raise UserError("there is no job to enqueue: give a command")

    def read(self, items) -> list:
        """Return the items in the form in which they are stored: a command, or (where, columns, options)."""
        found = []
        for item in items:
            label = ""
            if isinstance(item, tuple):
                label, item = "line %s: " % item[0], item[1]
            if not self._options and isinstance(item, str) and item.isascii() and "\0" not in item and not item.isspace() and item:
                found.append(item)
                continue
            try:
                job = parse_job(item if isinstance(item, dict) else {"command": item}, self._options, self._taker)
                job.setdefault("command", None)
                found.append((label,) + job_columns(job, self._base))
            except UserError as error:
                raise UserError(label + str(error)) from None
        return found

    def store(self, store, now: float, label=None, reserved_for=None, progress=None) -> list:
        """Write the jobs within a transaction of `store`; return their ids as ranges.  See Store.enqueue_plan."""
        self._store = store
        self._envs = {}        # environment -> its id
        self._uses = {}        # its id -> how many of these jobs use it
        self._late = []        # (item, id) of each stored job whose gate can only be known once all are stored
        self._late_keys = set()  # the keys of these, for which later jobs have to wait
        self._stored = 0       # how many are new
        self.duplicates = []    # (where, id of the duplicate) of each job that its unique key makes superfluous
        self.newest = store.db.execute("SELECT max(id) FROM job").fetchone()[0] or 0  # the last job before these
        store.keep.refuse_counters(("job", "env") if label is None else ("job", "env", "batch"))
        store.queues.need("default")
        if label is not None:
            self.batch = store.db.execute("INSERT INTO batch(label, total, unfinished, created_at) VALUES(?, 0, 0, ?)",
                                            (label, now)).lastrowid
        defaults = store.settings.values()
        common = {key: defaults[key] for key in ("max_retries", "timeout", "backoff", "backoff_base", "backoff_max")}
        common.update(shell=None if defaults["shell"] == SHELL else defaults["shell"], umask=self._umask)
        common.update(self._fixed)
        if self._ours:
            self._base = kept(self._base, defaults["env_keep"])
        common.update(cwd=self._here(), batch=self.batch, pool=reserved_for, schedule=self._origin.get("schedule"),
                      hook=self._origin.get("hook"), run_at=now, created_at=now, gate=READY if reserved_for is None else RESERVED)
        ids, count = [], 0
        for items in chain([self.items], self.more):
            self._store_items(items, ids, common, now)
            if self.apart:
                self._link(now)
            count += len(items)
            if progress is not None:
                progress(count)
        self._link(now)
        self._finish()
        return ids

    def _store_items(self, items: list, ids: list, common: dict, now: float) -> None:
        """Store jobs, and add their ids to the ranges `ids`."""
        start = 0
        while start < len(items):
            end = start + 1
            if isinstance(items[start], tuple):
                job_id = self._store_special(items[start], common, now)
                add_to_ranges(ids, range(job_id, job_id + 1), self.newest)
            else:
                while end < len(items) and end - start < 20000 and isinstance(items[end], str):
                    end += 1
                add_to_ranges(ids, self._store_plain(items[start:end], common), self.newest)
                self._stored += end - start
            start = end

    def _here(self):
        cwd = self._origin.get("cwd")
        if cwd is not None:
            return encodable(cwd, "the directory") if isinstance(cwd, str) else cwd
        try:
            return encodable(given(os.getcwd()), "this directory")
        except FileNotFoundError:
            raise UserError("this directory does not exist any more: give --cwd DIR") from None

    def _env(self, data: bytes) -> int:
        if data not in self._envs:
            self._envs[data] = self._store.queues.store_env(data, 0)
            self._uses[self._envs[data]] = 0
        return self._envs[data]

    def _store_plain(self, commands: list, common: dict) -> range:
        """Store jobs that differ only in their command, many per statement: each statement opens all indexes again."""
        db = self._store.db.connection
        common = {**common, "env": self._env(self._base)}  # here: a job with an environment of its own never writes this one
        same = db.execute("SELECT " + ", ".join(["quote(?)"] * len(common)), tuple(common.values())).fetchone()
        same = [str(value) for value in same]  # quote() of a number is a number in SQLite 3.35 and older
        for start in range(0, len(commands), 500):
            some = commands[start:start + 500]
            db.execute("INSERT INTO job(command, " + ", ".join(common) + ") SELECT column1, " + ", ".join(same) +
                       " FROM (VALUES" + ",".join(["(?)"] * len(some)) + ")", some)
        [last] = db.execute("SELECT seq FROM sqlite_sequence WHERE name='job'").fetchone()
        db.execute("UPDATE tally SET n=n+:n, entered=entered+:n WHERE queue='default' AND state='pending'", {"n": len(commands)})
        self._uses[common["env"]] += len(commands)
        ids = range(last - len(commands) + 1, last + 1)
        db.execute("UPDATE job SET gate=gate WHERE id=?", (ids[0],))  # for the trigger job_readied, which an INSERT does not fire
        self._store.db.hint(len(commands))
        return ids

    def _store_special(self, item: tuple, common: dict, now: float) -> int:
        """Store a job and return its id, or return the id of its duplicate by unique key."""
        where, columns, options = item
        store = self._store
        if "unique_key" in columns:
            duplicate = store.life.find_duplicate(columns["unique_key"], options.get("for", 0), now)
            if duplicate is not None:
                self.duplicates.append((where, duplicate))
                return duplicate
        columns = {**common, **columns, **time_columns(options, now)}
        columns["env"] = self._env(job_env(self._base, options))
        if "stdin" in options:
            columns["stdin"] = self._env(options["stdin"])
            self._uses[columns["stdin"]] += 1
        name = columns.setdefault("queue", "default")
        store.queues.need(name)
        columns["gate"] = HELD  # until its parents are known: see _link
        try:
            job_id = store.db.execute("INSERT INTO job(" + ", ".join(columns) + ") VALUES(:" + ", :".join(columns) + ")",
                                         columns).lastrowid
        except sqlite3.IntegrityError:
            other = store.look.find(columns["name"])
            raise UserError("%sthere is a job named %s already: job %d is %s; choose another name, or wait for its end" % (
                where, quoted(columns["name"]), other.id, other.state)) from None
        store.db.execute("UPDATE tally SET n=n+1, entered=entered+1 WHERE queue=? AND state='pending'", (name,))
        self._uses[columns["env"]] += 1
        if columns.get("expires_at") is not None:
            store.db.hint()  # also of a job that is kept back: a supervisor must know when it expires
        self._stored += 1
        key, parents = columns.get("key"), any(option in options for option in PARENT_OPTIONS)
        if parents or key in self._late_keys:
            self._late.append((item, job_id))
            self._late_keys.update([key] if key is not None else ())
        else:
            store.life.settle(store.look.row(job_id), now)
        return job_id

    def _link(self, now: float) -> None:
        """Store the dependencies and what keeps each of these jobs back: a second pass, when every name has its id."""
        store, late = self._store, self._late
        self._late, self._late_keys = [], set()
        for (where, _, options), job_id in late:
            try:
                store.life.add_parents(job_id, store.look.parents_named(options, self.newest, self.batch))
            except UserError as error:
                raise UserError(where + str(error)) from None
        if any("after" in item[2] or "after_any" in item[2] for item, _ in late):
            self._refuse_cycles([job_id for _, job_id in late])
        for _, job_id in late:
            store.life.settle(store.look.row(job_id), now)

    def _refuse_cycles(self, ids: list) -> None:
        """Refuse a cycle of dependencies, which a topological sort leaves over."""
        db, fresh = self._store.db.connection, set(ids)
        waits, children = {}, {}
        for child in ids:
            parents = [p for p, in db.execute("SELECT parent FROM dep WHERE child=?", (child,)) if p in fresh]
            waits[child] = len(parents)
            for parent in parents:
                children.setdefault(parent, []).append(child)
        free = [job for job in fresh if not waits.get(job)]
        while free:
            for child in children.get(free.pop(), ()):
                waits[child] -= 1
                if not waits[child]:
                    free.append(child)
        stuck = [job for job, count in waits.items() if count]
        if stuck:
            job = self._store.look.row(stuck[0])
            raise UserError("job %s waits for itself, through what it comes after: break the cycle" % quoted(job.name or job.command))

    def _finish(self) -> None:
        db = self._store.db.connection
        for env_id, uses in self._uses.items():
            db.execute("UPDATE env SET uses=uses+? WHERE id=?", (uses, env_id))
            db.execute("DELETE FROM env WHERE id=? AND uses<=0", (env_id,))
        if self.batch is not None:
            db.execute("UPDATE batch SET total=:n, unfinished=unfinished+:n WHERE id=:id", {"n": self._stored, "id": self.batch})


class Schedule(record("Schedule", "name spec every tz misfire no_overlap paused next_at last_at last_job options cwd env "
                          "error rule boot")):
    """A row of the schedule table."""

    __slots__ = ()

    @property
    def key(self) -> bytes:
        """Return its name as the stored bytes."""
        return str(self.name).encode("utf-8", "surrogateescape")

    @property
    def coming(self):
        """Return when it runs next, or None if it is paused, waits for a boot, or is broken."""
        return None if self.paused or self.next_at is None or self.next_at >= NEVER else self.next_at

    def following(self, now: float) -> float:
        """Return the first of its times after `now`, however many were missed: never a burst."""
        if self.every is None:
            return next_run(parse_cron(self.spec), now, self.tz, self.rule)
        if self.every < 1:
            raise UserError("an interval of %s s is too short" % number_text(self.every))  # it would fire without end
        missed = max(0, int((now - self.next_at) // self.every))
        return max(self.next_at + (missed + 1) * self.every, now) if self.next_at <= now else self.next_at

    def after_clock_change(self, now: float) -> float:
        """Return when to run next if the clock may have been set back; after a small step no time of day runs twice (as in cron)."""
        if self.every:
            return now + self.every if self.next_at > now + self.every + 1 else self.next_at
        due = self.following(now)
        return due if self.next_at > due + CLOCK_REPAIRED_S else self.next_at

    def job(self, now: float) -> dict:
        """Return the options of its job if it is enqueued now."""
        job = dict(stored_job(self.options))
        if len(job.get("at") or "") == 5:  # 09:00, in the schedule's own zone
            hour, minute = job["at"].split(":")
            job["at"] = utc(next_run(parse_cron("%s %s * * *" % (minute, hour)), now, self.tz, self.rule))
        if OVERLAPS[self.no_overlap] in ("queue", "replace"):
            job.setdefault("key", "schedule " + self.name)  # one at a time, in order, retries included
        return job

    def trouble(self, now: float):
        """Return why it can't run: the error of its last time, or the error that its row would cause now; None if it can."""
        try:
            self.following(now)
            Plan([dict(self.job(now), shell=None)], origin={"base": b""})  # finding the shell needs the environment, which isn't here
        except Exception as error:
            return self.error or row_fault(error)
        return self.error


def row_fault(error) -> str:
    """Return what is wrong with the row that raised `error`."""
    return plain(str(error) if isinstance(error, UserError) else "can't be read: %s: %s" % (type(error).__name__, error))[:300]


class Database:
    """The connection to one database file, its transactions, and the hints that follow them.

    `patience` is how long, in seconds, a call waits for another program's lock.  If `sync` is set, a commit is on the
    disk when it returns.  Otherwise a power cut may lose the commit, but never tear it (synchronous=NORMAL).
    """

    def __init__(self, path, patience: float, clock):
        self.path = find_database(path)
        self.files = Files(self.path)
        self.patience = patience
        self.sync = True        # workers of this machine set it to what the setting `sync` says
        self.clock = clock
        self.on_wait = None     # called with what a call waits for, once that takes a second, and with None when it goes on
        self.hints = None       # how many jobs became ready in this transaction; None: no hint to send
        self.writer_lock = None
        self.inside = False     # whether we hold the writer lock
        self.undo = Undo(self)
        self.connection = self.execute = None
        self._inode = None      # identifies the file
        self._wal = None        # identifies the -wal that SQLite has opened; None: it is not known yet, or there is none
        self._socket = None

    abandoned = []              # connections never to be closed: see _lost_wal
    opened = []                 # identifies the file of each open connection of this process
    opening = allocate_lock()   # held while that is changed or relied on

    def close(self) -> None:
        if self.connection is not None:
            if file_identity(self.path) == self._inode and self._lost_wal():
                self.abandoned.append(self.connection)
            else:
                self.connection.close()
            if self._inode in self.opened:
                self.opened.remove(self._inode)
            self.connection = self.execute = None
        if self.writer_lock is not None:
            self.writer_lock.close()
            self.writer_lock = None

    def open(self, settle) -> None:
        """Open the file, and make it if it is missing; for `settle` see _connect."""
        if not os.path.exists(self.path):
            self._make_file()
        self._refuse_second_name()
        self._connect(settle)

    def open_existing(self, settle) -> None:
        """Open a file that another process has made.  A snapshot that hard-links it meanwhile does not stop its workers."""
        if not os.path.exists(self.path):
            raise QueueGone("the database %s was deleted" % plain(self.path))
        self._connect(settle)

    def _connect(self, settle) -> None:
        """Open the connection; call `settle()` in the transaction that makes or migrates the tables."""
        self._check_owner()
        self.connection = sqlite3.connect(self.path, timeout=min(1.0, self.patience), isolation_level=None)  # patiently() waits on
        self.connection.text_factory = as_text
        self.execute = self.connection.execute
        self._inode = file_identity(self.path)
        exclusively(self.opening, lambda: self.opened.append(self._inode))  # before SQLite takes a lock: see refuse_foreign_wal
        self.check_file()
        version = self.patiently(self._version)
        OS.close_to_others(self.files)  # only now: before, it might have been any file that the user named by mistake
        self.execute("PRAGMA trusted_schema=OFF")  # no function with side effects runs from a schema (SQLite 3.31)
        if version != SCHEMA_VERSION:
            self._migrate(settle)
        if os.stat(os.path.dirname(self.path)).st_mode & S_ISVTX:
            self._check_owner()  # of the files that SQLite has opened beside it: in /tmp another user may have made them
        self.patiently(self._check_schema)
        self.execute("PRAGMA busy_timeout=0")  # patiently() waits instead, and fairly: SQLite's own handler starves some
        self.execute("PRAGMA synchronous=NORMAL")  # Transaction syncs if `sync` is set
        self.execute("PRAGMA fullfsync=1")  # macOS's fsync leaves data in the drive; no effect elsewhere
        self.execute("PRAGMA checkpoint_fullfsync=1")
        self.execute("PRAGMA journal_size_limit=16777216")
        self.execute("PRAGMA wal_autocheckpoint=16000")  # 16 MB: a page that changes often is copied back less often
        self._wal = file_identity(self.path + "-wal")

    def _lost_wal(self) -> bool:
        """Whether the -wal was deleted while this connection has it open.

        What is committed then is lost.  SQLite, closing the connection, would overwrite what others have stored since, and
        delete their -wal, by its name.
        """
        return self._wal is not None and file_identity(self.path + "-wal") != self._wal

    def place(self) -> str:
        return "%d:%d:" % self._inode

    def _refuse_second_name(self) -> None:
        """Refuse a file with a second name (hard link, mount): SQLite would keep a -wal, and we the locks, per name."""
        info = os.stat(self.path)
        if info.st_nlink > 1 and S_ISREG(info.st_mode):
            raise UserError("%s has %d names (hard links), and SQLite would keep a -wal for each: remove the names that were "
                            "added, and keep the one that has files beside it" % (plain(self.path), info.st_nlink))
        if OS.is_mount(self.path):
            raise UserError("%s is mounted as a single file, and what is written beside it would be lost: mount its directory" %
                            plain(self.path))

    def _make_file(self) -> None:
        folder = os.path.dirname(self.path)
        if os.sep == "/" and len(os.fsencode(self.path)) > 504:  # of 512 (MAX_PATHNAME in SQLite), "-journal" needs eight
            raise UserError("SQLite opens no path of more than 504 bytes: keep the queue elsewhere with --db PATH or QUEUECTL_DB")
        try:
            make_directory(folder)
            self._check_owner()
            kind = OS.network_disk(folder)
            if kind:
                raise UserError("%s is on a network file system (%s), where SQLite's locks can't be trusted: "
                                "keep the queue on a local disk with --db PATH or QUEUECTL_DB" % (plain(folder), kind))
            self.files.make()
        except OSError as error:
            raise UserError(OS.owner_of_refused(error, self.files.root) or "can't make the directory %s (%s): keep the queue elsewhere "
                            "with --db PATH or QUEUECTL_DB" % (plain(error.filename or folder), error.strerror)) from None
        self._check_locks()
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            give_away(fd, folder)
            os.close(fd)
        except FileExistsError:
            pass  # another process was first

    def _check_owner(self) -> None:
        fault = OS.distrust(self.files)
        if fault:
            raise UserError(fault)

    def _check_locks(self) -> None:
        advice = lock_advice(self.path)
        if advice:
            raise UserError(advice)

    def _version(self) -> int:
        """Return the schema version, 0 for an empty file; refuse a database that is not a queue or is of a newer release."""
        tables = self.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # asked first: another process may be making them
        [application] = self.execute("PRAGMA application_id").fetchone()
        version = self.execute("PRAGMA user_version").fetchone()[0] & 0xFF  # the rest is the queue's own mark
        if application != APPLICATION_ID and tables:
            raise UserError("%s is a database, but not one of %s: give another --db" % (plain(self.path), PROGRAM))
        if version > SCHEMA_VERSION:
            raise UserError("%s was written by a newer %s (schema %d, this one knows %d): use that one" % (
                plain(self.path), PROGRAM, version, SCHEMA_VERSION))
        return version

    def _migrate(self, settle) -> None:
        """Make the tables, or migrate an older schema, in one transaction and by one process."""
        self.execute("PRAGMA page_size=1024")  # a job changes a few rows in about eight pages: a quarter of the bytes per commit
        self.use_wal()
        with self.undo, Transaction(self):
            version = self._version()
            if version == 0:
                for statement in SCHEMA.split("\nCREATE ")[1:]:  # executescript would commit the transaction
                    self.execute("CREATE " + statement)
            for step, statements in MIGRATIONS:
                for statement in statements if 0 < version <= step else ():
                    self.execute(schema_texts().get(statement, statement))
            settle()
            self._check_schema()  # if it raises, whatever a trigger did meanwhile is rolled back
            self.execute("PRAGMA application_id=%d" % APPLICATION_ID)
            self.mark(self.execute("PRAGMA user_version").fetchone()[0] >> 8)

    def use_wal(self) -> None:
        """Write commits to a -wal from now on: a new database doesn't, nor does a backup, which is one file and stays one to look at."""
        if self.read("PRAGMA journal_mode") != [("wal",)]:
            self.read("PRAGMA journal_mode=WAL")  # this statement ignores SQLite's own timeout
            self._wal = file_identity(self.path + "-wal")

    def mark(self, mark: int = 0) -> None:
        """Write the schema version and the mark, by which a -wal of another database is recognised; 0 makes a new mark."""
        mark = mark or int.from_bytes(os.urandom(3), "big") >> 1
        self.execute("PRAGMA user_version=%d" % (mark << 8 | SCHEMA_VERSION))

    def _check_schema(self) -> None:
        """Refuse a database with foreign triggers, or without a table, index or trigger of SCHEMA as it stands there.

        A foreign trigger would change jobs within our own transactions.  Further tables, views and indexes
        do nothing by themselves.  The columns of a migrated table are in another order than in SCHEMA.
        """
        left = dict(schema_texts())
        for kind, name, text in self.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            ours = left.pop(name, None)
            if kind == "trigger" if ours is None else text != ours and sorted(definitions(text or "")) != sorted(definitions(ours)):
                raise UserError("%s has been changed by another program: its %s %s is not of %s. Look at it with sqlite3, and drop "
                                "what you did not make, or give another --db" % (plain(self.path), kind, quoted(name), PROGRAM))
        for name in left:
            raise UserError("%s has been changed by another program: it lacks %s. Restore it from a backup, or give another --db" % (
                plain(self.path), quoted(name)))

    def patiently(self, action):
        """Call `action` until the database is not busy; the waits are fair, random and growing (see Transaction).

        Give up after `patience` without a commit by anyone.  While others commit, our turn may still come: wait up to 20 times more.
        """
        limit = None  # like the variables below, set only once the database is busy
        while True:
            try:
                result = action()
                if limit is not None and check_at is None and self.on_wait is not None:
                    self.on_wait(None)
                return result
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                now = time.monotonic()
                if limit is None:
                    limit, pause, seen, turns = now + self.patience, 0.002, self._version_of_data(), 0
                    check_at = now + min(1.0, self.patience / 2)  # SQLite reports a disk without locks as busy
                elif check_at is not None and now > check_at:
                    check_at = None
                    self._check_locks()
                    if self.on_wait is not None:
                        self.on_wait(WAIT_FOR_LOCK)
                elif now > limit:
                    before, seen, turns = seen, self._version_of_data(), turns + 1
                    if seen == before or turns > 20:
                        raise
                    limit = now + self.patience
            time.sleep(pause * int.from_bytes(os.urandom(1), "big") / 256)
            pause = min(pause * 2, 0.01)

    def _version_of_data(self):
        try:
            return self.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.OperationalError:
            return None

    def read(self, sql: str, values=()) -> list:
        """Return all rows of one SELECT: while a SELECT is open, the WAL can only grow."""
        return self.patiently(lambda: self.execute(sql, values).fetchall())

    def rows(self, table: str, columns: str, rest: str, values=()) -> list:
        """Return rows of a table, each checked; `rest` is what follows FROM."""
        rows = self.read("SELECT %s FROM %s" % (columns, rest), values)
        return rows if len(rows) > 10 and all_right(table, columns, rows) else [checked(table, columns, row) for row in rows]

    def jobs(self, rest: str, values=()) -> list:
        """Return Jobs; `rest` is what follows FROM."""
        return [Job.of(row) for row in self.read("SELECT " + JOB_SELECT + " FROM " + rest, values)]

    def job(self, rest: str, values=()):
        """Return the first of these jobs, or None."""
        return next(iter(self.jobs(rest, values)), None)

    def rows_to_show(self, table: str, columns: str, rest: str, values=()) -> list:
        """Return rows of a table for a list: a wrong value is replaced, not refused."""
        return [without_wrong(table, columns, row) for row in self.read("SELECT %s FROM %s" % (columns, rest), values)]

    def check_file(self) -> None:
        """Raise QueueGone if the path no longer leads to the open database or its -wal: SQLite would not notice."""
        identity = file_identity(self.path)
        if identity is None or identity != self._inode:
            raise QueueGone("the database %s was %s" % (plain(self.path), "replaced by another" if identity else "deleted"))
        if self._lost_wal():
            self.abandoned.append(self.connection)  # also if nobody closes it
            raise QueueGone("%s-wal was deleted while it was in use: what was written last may be lost" % plain(self.path))

    def sync_wal(self) -> None:
        """Return when all commits are on the disk; raise QueueGone if the -wal that holds them is not where it belongs."""
        try:
            OS.sync(self.path + "-wal")
        except FileNotFoundError:
            if self.read("PRAGMA journal_mode") == [("wal",)]:  # a disk that can't have a WAL has another mode
                raise QueueGone("%s-wal was deleted while it was in use: what was written last may be lost" % plain(self.path)) from None

    def changes(self) -> int:
        """Return a number that differs once others have committed."""
        return self.read("PRAGMA data_version")[0][0]

    def leave(self) -> None:
        if self.inside:
            self.writer_lock.leave()
            self.inside = False

    def hint(self, count: int = 0) -> None:
        """After the commit, send the supervisors a hint that `count` jobs became ready, or that something changed."""
        self.hints = (self.hints or 0) + count

    def listeners(self) -> list:
        return [(port, token) for port, token in self.execute("SELECT port, token FROM supervisor")
                if port.__class__ is int and token.__class__ is str and 0 < port < 65536]

    def send(self, listeners, count: int) -> None:
        """Send each supervisor a hint.  A hint may be lost: supervisors also look once a second."""
        if self._socket is None:
            import _socket
            self._socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        for port, token in listeners:
            try:
                self._socket.sendto(b"%s %d" % (token.encode("utf-8", "surrogateescape"), count), ("127.0.0.1", port))
            except OSError:
                pass  # the supervisor looks by itself within a second


class Part:
    """One subject of the Store.  Parts share its database, and reach each other through the Store."""

    def __init__(self, store):
        self._store = store
        self._db = store.db


class Settings(Part):
    """The settings: values in force, set and unset."""

    def values(self) -> dict:
        """Return every setting's value in force."""
        values = {key: setting.default for key, setting in SETTINGS.items()}
        for key, text in self._db.read("SELECT key, value FROM config"):
            if key in values:
                values[key] = self._setting(key, text)
        return values

    def value(self, key: str):
        rows = self._db.read("SELECT value FROM config WHERE key=?", (key,))
        return self._setting(key, rows[0][0]) if rows else SETTINGS[key].default

    def _setting(self, key: str, text):
        """Return a stored setting's value, or its default if it can't be read, which `doctor` reports."""
        try:
            return parse_setting(key, text)
        except UserError:
            return SETTINGS[key].default

    def set(self, key: str, raw) -> None:
        key = setting_key(key)
        text = encodable(SETTINGS[key].text(parse_setting(key, raw)), key)
        if key == "shell" and text != SHELL:
            need_shell(text, OS.environment())
        with self._db.undo, Transaction(self._db):
            self._db.execute("INSERT INTO config(key, value) VALUES(:key, :text) "
                             "ON CONFLICT(key) DO UPDATE SET value=:text", {"key": key, "text": text})
            self._db.hint()

    def unset(self, key: str) -> None:
        with self._db.undo, Transaction(self._db):
            self._db.execute("DELETE FROM config WHERE key=?", (setting_key(key),))
            self._db.hint()


class Queues(Part):
    """Queues with their limits and counts, batches, and the environments that jobs share."""

    def store_env(self, data: bytes, uses: int) -> int:
        """Return the id of an environment, after counting `uses` more uses; each distinct one is stored once."""
        import binascii
        crc = binascii.crc32(data)
        row = self._db.execute("SELECT id FROM env WHERE hash=? AND data=?", (crc, data)).fetchone()
        if row:
            self._db.execute("UPDATE env SET uses=uses+? WHERE id=?", (uses, row[0]))
            return row[0]
        return self._db.execute("INSERT INTO env(hash, uses, data) VALUES(?, ?, ?)", (crc, uses, data)).lastrowid

    def env(self, env_id) -> bytes:
        """Return the data of an environment, or of an input; b"" if there is none."""
        rows = self._db.read("SELECT CAST(data AS BLOB) FROM env WHERE id=?", (env_id,))
        return rows[0][0] if rows else b""

    def swap_env(self, old, change):
        """Return the id of `change(data)` of an environment, or of an input, that one job less uses then; `old` is its id or None."""
        new = self.store_env(change(self.env(old)), 1)
        self._db.execute("UPDATE env SET uses=uses-1 WHERE id=?", (old,))
        self._db.execute("DELETE FROM env WHERE id=? AND uses<=0", (old,))
        return new

    def need(self, name: str) -> None:
        if self._db.execute("INSERT OR IGNORE INTO queue(name) VALUES(?)", (name,)).rowcount:
            self.open_tally(name)

    def open_tally(self, queue: str) -> None:
        self._db.connection.executemany("INSERT OR IGNORE INTO tally(queue, state, n) VALUES(?, ?, 0)", [(queue, s) for s in STATES])

    def recount(self) -> None:
        """Count the jobs of each queue, and find its first one."""
        self._db.execute(FIND_HEADS)
        self._db.execute("UPDATE tally SET n=(SELECT count(*) FROM job WHERE job.queue=tally.queue AND job.state=tally.state)")

    def counts(self, queue=None) -> dict:
        """Return how many jobs are in each state."""
        counts = dict.fromkeys(STATES, 0)
        counts.update(self._db.read("SELECT state, CAST(sum(n) AS INTEGER) FROM tally WHERE :queue IS NULL OR queue=:queue GROUP BY state",
                                 {"queue": queue}))
        return counts

    def counters(self) -> dict:
        """Return {(queue, state): (jobs in it now, jobs that ever came into it, seconds, counts of BUCKETS...)}; see SCHEMA."""
        columns = "queue, state, n, entered, seconds, le1, le2, le3, le4, le5, le6, le7, le8"
        return {row[:2]: row[2:] for row in self._db.rows("tally", columns, "tally ORDER BY queue, state")}

    def mishaps(self) -> dict:
        """Return {(queue, outcome): how often an attempt or job ended so, ever}."""
        return {row[:2]: row[2] for row in self._db.rows("mishap", "queue, outcome, n", "mishap")}

    def batch_counts(self, batch: int) -> dict:
        counts = dict.fromkeys(STATES, 0)
        counts.update(self._db.read("SELECT state, count(*) FROM job INDEXED BY job_batch WHERE batch=? GROUP BY state", (batch,)))
        return counts

    def reserve_batch(self, batch: int, supervisor: int) -> tuple:
        """Keep the unfinished jobs of a batch for a `run`; raise UserError if another one works it.

        Return (last event before, their ids): each of these jobs ends after that event.
        """
        with self._db.undo, Transaction(self._db) as now:
            for other, in self._db.execute("SELECT pool FROM job INDEXED BY job_batch WHERE batch=? AND pool<>?", (batch, supervisor)):
                raise UserError("another `run` (supervisor %s) works batch %d: wait for its end" % (other, batch))
            rows = self._db.execute("SELECT " + JOB_SELECT + " FROM job INDEXED BY job_batch WHERE batch=? "
                                    "AND state IN ('pending', 'failed', 'processing')", (batch,)).fetchall()
            self._db.execute("UPDATE job SET pool=? WHERE batch=? AND state IN ('pending', 'failed', 'processing')", (supervisor, batch))
            for job in map(Job.of, rows):
                if job.state != "processing":
                    self._store.life.regate(job._replace(pool=supervisor), now)
            return self._store.look.last_event(), [row[0] for row in rows]

    def is_paused(self, name: str) -> bool:
        return bool(self._db.read("SELECT 1 FROM queue WHERE name=? AND paused", (name,)))

    def list(self) -> list:
        """Return every queue, with its limits and a count for each state."""
        counts = {}
        for queue, state, n in self._db.read("SELECT queue, state, CAST(sum(n) AS INTEGER) FROM tally GROUP BY queue, state"):
            counts.setdefault(queue, dict.fromkeys(STATES, 0))[state] = n
        return [QueueRow(*row, counts.get(row[0]) or dict.fromkeys(STATES, 0))
                for row in self._db.rows_to_show("queue", "name, paused, max_running, rate", "queue ORDER BY name")]

    def set(self, name: str, **changes) -> None:
        """Change paused, max_running, or rate with every (seconds between two starts) of a queue; create it if it is missing."""
        with self._db.undo, Transaction(self._db):
            self.need(name)
            self._db.execute("UPDATE queue SET " + assignments(tuple(changes)) + " WHERE name=?", (*changes.values(), name))
            self._db.hint()

    def batches(self, limit: int = 50) -> list:
        return [Batch._make(row) for row in self._db.rows_to_show("batch", ", ".join(Batch._fields), "batch ORDER BY id DESC LIMIT ?",
                                                                  (limit or -1,))]

    def batch(self, ref, but=None):
        """Return the batch with this id, or the `last` one, ignoring the id `but`; raise UserError if there is none."""
        text = str(ref)
        if text == "last":
            [number] = self._db.read("SELECT max(id) FROM batch WHERE id IS NOT ?", (but,))[0]
        else:
            number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
        rows = self._db.rows("batch", ", ".join(Batch._fields), "batch WHERE id=? AND id IS NOT ?", (number, but))
        if not rows:
            raise NotFound("no batch %s: see `%s batch list`" % (quoted(str(ref)), PROGRAM))
        return Batch._make(rows[0])


# What a retry resets in a job.
AS_NEW = dict(dict.fromkeys(("attempts", "crashes", "snoozes", "cancel"), 0),
              **dict.fromkeys(("delay", "exit_code", "signal", "error", "finished_at", "duration", "cause")))


class Life(Part):
    """The life of a job: gates, the events that move it (TRANSITIONS), what follows from them, and what users ask for."""

    def find_duplicate(self, key: str, window: float, now: float):
        """Return the id of a job with this unique key that is unfinished or ended within `window` seconds, or None."""
        return self._db.execute(
            "SELECT coalesce((SELECT max(id) FROM job INDEXED BY job_unique WHERE unique_key=:key"
            " AND state IN ('pending','processing','failed')), (SELECT max(id) FROM job INDEXED BY job_unique WHERE unique_key=:key"
            " AND state IN ('completed','dead','cancelled') AND finished_at>:since))",
            {"key": key, "since": now - window if window else None}).fetchone()[0]

    def add_parents(self, job_id: int, parents: list) -> None:
        """Let a job come after these (id, whether any end will do)."""
        self._db.connection.executemany("INSERT INTO dep(parent, child, any) VALUES(?, ?, ?) "
                                        "ON CONFLICT(parent, child) DO UPDATE SET any=min(any, excluded.any)",
                                        [(parent, job_id, any_end) for parent, any_end in parents])

    def settle(self, job, now: float) -> None:
        """Set the gate of a job whose parents have just been stored; cancel the job if a parent has failed already."""
        if job is None or job.state not in WAITING:
            return
        failed = None
        for parent, any_end in self._db.execute("SELECT parent, any FROM dep WHERE child=? AND done=0", (job.id,)).fetchall():
            state = self.state_of_parent(parent)
            if state in FINAL and (any_end or state == "completed"):
                self._db.execute("UPDATE dep SET done=1 WHERE parent=? AND child=?", (parent, job.id))
            elif state in FINAL:
                failed = (parent, state)
        if failed:
            self.end(job, "cancel", now, cause=failed[0], error=orphan_text(*failed))
        else:
            self.regate(job, now)

    def _gate_of(self, job, now: float) -> int:
        if job.held:
            return HELD
        if self._db.execute("SELECT 1 FROM dep WHERE child=? AND done=0 LIMIT 1", (job.id,)).fetchone():
            return PARENTS
        if job.run_at > now:
            return DUE
        if job.key is not None and not self._take_key(job):
            return KEYED
        return READY if job.pool is None else RESERVED

    def regate(self, job, now: float) -> None:
        """Write what keeps a waiting job back now, after something about it has changed."""
        gate = self._gate_of(job, now)
        if gate not in (READY, RESERVED, KEYED):
            self.pass_key(job, now)
        if gate != job.gate:
            self._db.execute("UPDATE job SET gate=? WHERE id=?", (gate, job.id))
            self._db.hint(1 if gate in (READY, RESERVED) else 0)

    def _take_key(self, job) -> bool:
        self._db.execute("INSERT OR IGNORE INTO keylock(key, job) VALUES(?, ?)", (job.key, job.id))
        return self._db.execute("SELECT job FROM keylock WHERE key=?", (job.key,)).fetchone()[0] == job.id

    def pass_key(self, job, now: float) -> None:
        """Give the key that `job` holds to the next job that waits for it.  A job keeps its key through its retries."""
        if job.key is None or job.state == "failed":
            return
        if not self._db.execute("DELETE FROM keylock WHERE key=? AND job=?", (job.key, job.id)).rowcount:
            return
        follower = self._db.job("job INDEXED BY job_keyed WHERE key=? AND gate=4 AND id<>? ORDER BY priority DESC, id LIMIT 1",
                                (job.key, job.id))
        if follower:
            self.regate(follower, now)

    def promote(self, now: float) -> None:
        """Make due jobs ready."""
        rows = self._db.execute("SELECT id FROM job INDEXED BY job_due WHERE gate=1 AND run_at<=? "
                                "ORDER BY run_at LIMIT %d" % CLAIM_LIMIT, (now,)).fetchall()
        for job_id, in rows:
            self.regate(self._store.look.row(job_id), now)

    def expire(self, now: float) -> None:
        """Cancel jobs that have not started by their expiry time."""
        rows = self._db.execute("SELECT id FROM job INDEXED BY job_expiry WHERE expires_at<=? LIMIT %d" % CLAIM_LIMIT, (now,)).fetchall()
        for job_id, in rows:
            self.end(self._store.look.row(job_id), "expire", now, error="expired")

    def state_of_parent(self, parent: int):
        if parent < 0:
            row = self._db.execute("SELECT unfinished FROM batch WHERE id=?", (-parent,)).fetchone()
            return "completed" if row is None or row[0] <= 0 else "pending"
        row = self._db.execute("SELECT state FROM job WHERE id=?", (parent,)).fetchone()
        return row[0] if row else "completed"

    def move(self, job, event: str, gate=None, **changes):
        """Apply an event to a job that is still as `job` says; return its new state, or None if nothing was changed.

        The fence of state, worker and attempt keeps a late writer, whose claim was taken back, from changing anything.
        """
        state = TRANSITIONS[event].get(job.state)
        if state is None:
            return None
        changes.update(state=state, gate=gate)
        changes = {column: value for column, value in changes.items()  # others may have set these two meanwhile
                   if value != getattr(job, column) or column in ("cancel", "pool")}
        moved = self._db.execute(
            "UPDATE job SET " + assignments(tuple(changes)) + " WHERE id=? AND state=? AND attempt=? AND worker IS ?",
            (*changes.values(), job.id, job.state, job.attempt, job.worker)).rowcount
        return state if moved else None

    def _move_all(self, rows: list, event: str, now: float, **changes) -> None:
        """Apply an event of a user to many jobs, given as rows of _alone: as `move` and all that follows, in a few statements."""
        batches = {}
        for before in {row[1] for row in rows}:
            ids, state = [row[0] for row in rows if row[1] == before], TRANSITIONS[event][before]
            changes.update(state=state)
            self._db.execute("UPDATE job SET " + assignments(tuple(changes)) + " WHERE state=? AND id IN " + marks(ids),
                             (*changes.values(), before, *ids))
            self._db.execute("INSERT INTO history(job, outcome, state, finished_at, error) "
                             "SELECT id, ?, state, ?, error FROM job WHERE id IN " + marks(ids), (event, now, *ids))
        for _, state, batch, _ in rows:
            if batch is not None:
                batches[batch] = batches.get(batch, 0) + (1 if state in FINAL else -1)
        for batch, change in batches.items():
            self._store.followups.count_batch(batch, change)

    def release_running(self, where: str, values: list, now: float) -> int:
        """Put running jobs back to wait, uncharged, in one statement; return how many."""
        count = self._db.execute("UPDATE job SET state='pending', gate=CASE WHEN pool IS NULL THEN 0 ELSE 5 END, worker=NULL, run_at=?, "
                                 "delay=0, attempts=attempts-1 WHERE state='processing' AND " + where, [now] + values).rowcount
        self._db.hint(count)
        return count

    def _alone(self, ids: list, states) -> list:
        """Return (id, state, batch, may be retried) of the jobs in these states whose change concerns no other: no key, no relatives."""
        retried = "held=0 AND name IS NULL AND schedule IS NULL"  # otherwise other jobs or the user's hold decide
        return [row for row in self._db.rows(
            "job", "id, state, batch, " + retried, "job WHERE key IS NULL AND unique_key IS NULL AND "
            "NOT EXISTS(SELECT 1 FROM dep WHERE parent=job.id AND done=0) AND "
            "NOT EXISTS(SELECT 1 FROM dep WHERE child=job.id AND done=0) AND id IN " + marks(ids), ids) if row[1] in states]

    def add_history(self, job, outcome: str, state: str, now: float, error=None) -> None:
        """Record in the history a change that no attempt made."""
        self._db.execute("INSERT INTO history(job, outcome, state, finished_at, error) VALUES(?, ?, ?, ?, ?)",
                         (job.id, outcome, state, now, error))

    def end(self, job, event: str, now: float, **changes):
        """Apply an event that ends a job for good, and all that follows from its end; return as `move` does."""
        changes.setdefault("finished_at", now)
        state = self.move(job, event, worker=None, pool=None, cancel=0, expires_at=None, **changes)
        if state is None:
            return None
        if job.state != "processing":
            self.add_history(job, event, state, now, changes.get("error"))
        if job.state not in FINAL:
            self._store.followups.settle(job, state, now)
        if event == "bury":
            self.notify("on_dead", job, now, job._replace(**{name: changes.get(name) for name in ("exit_code", "signal", "error")}))
        return state

    def notify(self, key: str, job, now: float, ended=None) -> None:
        """Enqueue the user's command for an event as a job of its own: it is bounded and logged, and harms no other job.

        `ended` says how the job ended, if the event is its end.
        """
        command = self._store.settings.value(key)
        if not command or job.hook in ("on_idle", key):
            return
        facts = {"QUEUECTL_EVENT": key, "QUEUECTL_JOB": job.id, "QUEUECTL_NAME": job.name or job.schedule or "",
                 "QUEUECTL_SCHEDULE": job.schedule or "", "QUEUECTL_COMMAND": job.command,
                 "QUEUECTL_ERROR": ended and error_text(ended) or "",
                 "QUEUECTL_EXIT_CODE": "" if ended is None or ended.exit_code is None else ended.exit_code}
        plan = Plan([{"command": command, "queue": job.queue, "priority": 10**9, "timeout": NOTIFY_S, "max_retries": 0,
                      "env": {key: str(value) for key, value in facts.items()}, "umask": job.to_dict()["umask"]}],
                    origin={"hook": key, "cwd": job.cwd, "base": self._store.queues.env(job.env)})
        plan.store(self._store, now, reserved_for=job.pool)

    def revive(self, job, now: float) -> bool:
        """Retry a job, and note the children that its failure cancelled; return False if a parent or a duplicate prevents it."""
        if job.state not in TRANSITIONS["retry"] or self.failed_parent(job) or self.duplicate(job):
            return False
        if not self.move(job, "retry", gate=HELD, run_at=now, **AS_NEW):
            return False
        self.add_history(job, "retry", "pending", now)
        if job.batch is not None:
            self._store.followups.count_batch(job.batch, 1)
        self.regate(job._replace(state="pending", gate=HELD, run_at=now), now)
        self._store.followups.add(job.id, "pending")
        return True

    def duplicate(self, job):
        """Return (why, id) of another unfinished job beside which `job`, which has ended, may not go on, or None."""
        others = [("unique", self.find_duplicate(job.unique_key, 0, 0) if job.unique_key is not None else None)]
        if job.name is not None:
            others += [("name", other) for other, in self._db.execute(
                "SELECT id FROM job INDEXED BY job_name WHERE name=? AND state IN ('pending','processing','failed')", (job.name,))]
        if job.schedule is not None:
            others += [("schedule", other) for other in self._store.schedules.beside(job.schedule)]
        return next(((why, other) for why, other in others if other not in (None, job.id)), None)

    def failed_parent(self, job):
        """Return (id, state) of a parent whose end keeps a job cancelled, or None."""
        return self._db.execute("SELECT parent, state FROM dep JOIN job ON job.id=dep.parent WHERE child=? AND done=0 AND any=0 "
                                "AND state IN ('dead','cancelled') LIMIT 1", (job.id,)).fetchone()

    def _each(self, ids, action, together=None) -> list:
        """Return (id, result) of `action(job, now)` for each job, in short transactions, and do what follows from it.

        `together(ids, now)` changes AT_ONCE jobs whose change concerns no other job, and returns {id: result}.
        """
        results, ids = {}, list(ids)
        self._store.followups.catch_up()
        for start in range(0, len(ids), AT_ONCE):
            left, fresh = ids[start:start + AT_ONCE][::-1], True
            while left:
                with self._db.undo, Transaction(self._db) as now:
                    if together is not None and fresh and len(left) > 1:
                        done = together(left, now)
                        results.update(done)
                        left = [job_id for job_id in left if job_id not in done]
                    fresh = False
                    most = FOLLOWUPS
                    while left and most > 0:
                        job_id = left.pop()
                        job = self._store.look.row(job_id)
                        results[job_id] = GONE if job is None else action(job, now)
                        most = self._store.followups.follow_added(now, most - 1)
                self._store.followups.catch_up()
        return [(job_id, results[job_id]) for job_id in ids]

    def _each_family(self, ids, action, together, state: str) -> list:
        """Do as _each does; a job that a parent, changed by the same command, brought into `state` is a success too."""
        fresh = self._store.followups.keep_moved()
        try:
            return self._store.followups.with_moved(self._each(ids, action, together), state)
        finally:
            if fresh:
                self._store.followups.forget_moved()

    def cancel(self, ids) -> list:
        """Cancel jobs; return (id, result): `cancelled`, ASKED (its worker ends it at once), CANCELLED_ALREADY, or its final state."""
        def together(ids, now):
            rows = self._alone(ids, WAITING)
            self._move_all(rows, "cancel", now, gate=None, pool=None, cancel=0, expires_at=None, finished_at=now, error="cancelled")
            return dict.fromkeys([row[0] for row in rows], "cancelled")
        return self._each_family(ids, self.cancel_one, together, "cancelled")

    def cancel_one(self, job, now: float) -> str:
        if job.state == "processing":
            self._db.execute("UPDATE job SET cancel=1 WHERE id=?", (job.id,))
            self._db.hint()
            return ASKED
        if self.end(job, "cancel", now, error="cancelled"):
            return "cancelled"
        return CANCELLED_ALREADY if job.state == "cancelled" else job.state

    def retry(self, ids) -> list:
        """Retry jobs; return (id, result): `pending`, DUE_NOW, or why not: PENDING_ALREADY, its state, or Refused.

        Retries count from 0 again, and the history is kept.  A job that waits for its backoff is due now; its retries count on.
        """
        def change(job, now):
            if job.state == "failed" or job.state == "pending" and job.attempt and job.run_at > now:
                self._db.execute("UPDATE job SET run_at=?, delay=NULL WHERE id=?", (now, job.id))
                self.regate(job._replace(run_at=now), now)
                return DUE_NOW
            if self.revive(job, now):
                return "pending"
            if job.state not in FINAL:
                return PENDING_ALREADY if job.state == "pending" else job.state
            failed = self.failed_parent(job)
            return Refused(job.state, "parent", *failed) if failed else Refused(job.state, *self.duplicate(job))

        def together(ids, now):
            rows = [row for row in self._alone(ids, TRANSITIONS["retry"]) if row[3]]
            self._move_all(rows, "retry", now, gate=READY, run_at=now, **AS_NEW)
            self._db.hint(len(rows))
            return dict.fromkeys([row[0] for row in rows], "pending")
        return self._each_family(ids, change, together, "pending")

    def hold(self, ids) -> list:
        """Keep waiting jobs from starting; return (id, result): `held`, or the state of a job that does not wait."""
        return self._set_held(ids, 1, "held")

    def release(self, ids) -> list:
        """Let held jobs start; return (id, result): `released`, or the state of a job that does not wait."""
        return self._set_held(ids, 0, "released")

    def _set_held(self, ids, held: int, result: str) -> list:
        def change(job, now):
            if job.state not in WAITING:
                return job.state
            self._db.execute("UPDATE job SET held=? WHERE id=?", (held, job.id))
            self.regate(job._replace(held=held), now)
            return result

        def together(ids, now):
            ids = [row[0] for row in self._alone(ids, WAITING)]
            self._db.execute("UPDATE job SET held=?, gate=CASE WHEN ? THEN 2 WHEN run_at>? THEN 1 WHEN pool IS NULL THEN 0 ELSE 5 END "
                             "WHERE id IN " + marks(ids), (held, held, now, *ids))
            self._db.hint(0 if held else len(ids))
            return dict.fromkeys(ids, result)
        return self._each(ids, change, together)

    def edit(self, ids, options: dict) -> list:
        """Change jobs; return (id, result): `edited`, or the state of a job that does not wait.

        `options` are those that `edit` takes, and `command`.
        """
        columns, options = job_columns(parse_job(options, taker="edit"), OS.environment())
        parents = None
        if any(key in options for key in PARENT_OPTIONS):
            parents = self._store.look.parents_named(options, 0, None)
        return self._each(ids, lambda job, now: self._edit_one(job, columns, options, parents, now))

    def _edit_one(self, job, columns: dict, options: dict, parents, now: float):
        if job.state not in WAITING:
            return job.state
        changed = {column: columns.get(column) for column in ("name", "unique_key")
                   if columns.get(column) not in (None, getattr(job, column))}
        duplicate = self.duplicate(job._replace(**{"name": None, "unique_key": None, "schedule": None, **changed}))
        if duplicate:
            return Refused(job.state, *duplicate)
        if parents and self._leads_to(job.id, [parent for parent, _ in parents]):
            return Refused(job.state, "cycle", job.id)
        columns = {**columns, **time_columns(options, now)}
        if "key" in columns and columns["key"] != job.key:
            self.pass_key(job._replace(state="pending"), now)
        if "queue" in columns:
            self._store.queues.need(columns["queue"])
        if "env" in options or "clean_env" in options:
            columns["env"] = self._store.queues.swap_env(job.env, lambda data: job_env(data, options))
        if "stdin" in options:
            columns["stdin"] = self._store.queues.swap_env(job.stdin, lambda data: options["stdin"])
        if columns:
            self._db.execute("UPDATE job SET " + assignments(tuple(columns)) + " WHERE id=?", (*columns.values(), job.id))
        if parents is not None:
            self._db.execute("DELETE FROM dep WHERE child=?", (job.id,))
            self.add_parents(job.id, parents)
        self.settle(self._store.look.row(job.id), now)
        self._db.hint(1)  # another queue, priority or expiry makes no new gate
        return "edited"

    def _leads_to(self, job_id: int, parents: list) -> bool:
        """Whether a job is among these parents, or comes before one of them."""
        seen, left = set(), list(parents)
        while left:
            parent = left.pop()
            if parent == job_id:
                return True
            if parent not in seen:
                seen.add(parent)
                left += [row[0] for row in self._db.execute(
                    "SELECT parent FROM dep INDEXED BY dep_child WHERE child=:parent AND done=0 UNION ALL SELECT id FROM job "
                    "INDEXED BY job_batch WHERE batch=-:parent AND state IN ('pending','processing','failed')", {"parent": parent})]
        return False


class Followups(Part):
    """What follows for others from a job's end or retry: for its key, its batch, and step by step for its children."""

    def __init__(self, store):
        super().__init__(store)
        self._moved = None   # while a command changes jobs: the ids of those that a parent's change has changed
        self._added = False  # whether `add` has added a row since the last step

    def settle(self, job, state: str, now: float) -> None:
        """Do what follows at once from a job's end: pass its key on, count its batch, and note its children."""
        if job.key is not None:
            self._store.life.pass_key(job._replace(state=state), now)
        self.add(job.id, state)
        if job.batch is not None:
            self.count_batch(job.batch, -1)

    def count_batch(self, batch: int, change: int) -> None:
        """Change the number of a batch's unfinished jobs; if it becomes 0, note the children of the batch."""
        self._db.execute("UPDATE batch SET unfinished=unfinished+? WHERE id=?", (change, batch))
        row = self._db.execute("SELECT 1 FROM batch WHERE id=? AND unfinished<=0", (batch,)).fetchone()
        if row and change < 0:
            self.add(-batch, "completed")
            self._db.hint()

    def add(self, parent: int, state: str) -> None:
        """Note that the children of a parent must be told of its end or retry: in steps, for they may be many."""
        if self._db.execute("SELECT 1 FROM dep WHERE parent=? AND done=0 LIMIT 1", (parent,)).fetchone():
            self._db.execute("INSERT INTO followup(parent, state, child, last) VALUES(?, ?, 0, (SELECT max(id) FROM job))", (parent, state))
            self._db.hint()
            self._added = True

    def follow(self, now: float, most=None) -> int:
        """Take a step of what follows from ends and retries: change at most so many children; return how many more it might have changed.

        The rows are done in order, so that each child learns of its parents' changes in the order in which they came.
        """
        self._added, most = False, FOLLOWUPS if most is None else most
        while most > 0:
            rows = self._db.rows("followup", "seq, parent, state, child, last", "followup ORDER BY seq LIMIT 1")
            if not rows:
                break
            seq, parent, state, after, last = rows[0]
            children = self._db.execute("SELECT child, any FROM dep WHERE parent=? AND child>? AND child<=? AND done=0 "
                                        "ORDER BY child LIMIT ?", (parent, after, last, most)).fetchall()
            for child, any_end in children:
                job = self._store.look.row(child)
                if job is not None and state == "pending":
                    self._retry_child(job, parent, now)
                elif job is not None:
                    self._release_child(job, parent, state, any_end, now)
            if len(children) < most:
                self._db.execute("DELETE FROM followup WHERE seq=?", (seq,))
            else:
                self._db.execute("UPDATE followup SET child=? WHERE seq=?", (children[-1][0], seq))
            most -= len(children) + 1
        return most

    def catch_up(self) -> None:
        """Take all steps of what follows, each in its own transaction."""
        while self._db.read("SELECT 1 FROM followup LIMIT 1"):
            with self._db.undo, Transaction(self._db) as now:
                self.follow(now)

    def follow_added(self, now: float, most=None) -> int:
        """Do as `follow` does, if anything was added since the last step."""
        return self.follow(now, most) if self._added else FOLLOWUPS if most is None else most

    def _release_child(self, job, parent: int, state: str, any_end: int, now: float) -> None:
        """Free a child whose parent has ended, or cancel it."""
        if state == "completed" or any_end:
            self._db.execute("UPDATE dep SET done=1 WHERE parent=? AND child=?", (parent, job.id))
        if job.state not in WAITING:
            return
        if state == "completed" or any_end:
            self._store.life.regate(job, now)
            return
        if self._store.life.end(job, "cancel", now, cause=parent, error=orphan_text(parent, state)):
            self._add_moved(job)

    def _retry_child(self, job, parent: int, now: float) -> None:
        """Retry a child that this parent's failure cancelled, unless another parent or an unfinished duplicate (`unique`) forbids it."""
        if job.state != "cancelled" or job.cause != parent:
            return
        duplicate, failed = self._store.life.duplicate(job), self._store.life.failed_parent(job)
        if duplicate:
            self._db.execute("UPDATE job SET error=? WHERE id=?", (duplicate_text(*duplicate), job.id))
        elif failed:
            self._db.execute("UPDATE job SET cause=?, error=? WHERE id=?", (failed[0], orphan_text(*failed), job.id))
        elif self._store.life.revive(job, now):
            self._add_moved(job)

    def keep_moved(self) -> bool:
        """From now on remember which jobs a parent's change has changed; return False if this was so already."""
        fresh = self._moved is None
        self._moved = set() if fresh else self._moved
        return fresh

    def forget_moved(self) -> None:
        self._moved = None

    def with_moved(self, results: list, state: str) -> list:
        """Return the results with a success for each job that a parent brought into `state`."""
        return [(job_id, state if result != ASKED and job_id in self._moved else result) for job_id, result in results]

    def _add_moved(self, job) -> None:
        if self._moved is not None:
            self._moved.add(job.id)


class Claims(Part):
    """What workers write in one transaction per job, the last outcome and the next claim; and which jobs can be claimed."""

    def __init__(self, store):
        super().__init__(store)
        self._env = (None, b"")  # id and data of the environment read last

    def finish(self, worker: int, outcome) -> None:
        """Record a worker's last outcome."""
        with self._db.undo, Transaction(self._db) as now:
            self.record(worker, outcome, now)
            if outcome.job.pool is None:  # a `run` that is stopped has nobody left for another job
                self.notify_idle(outcome.job, now)

    def notify_idle(self, job, now: float, reserved_for=None) -> None:
        """Enqueue the command of on_idle if nothing is left to do after the end of `job`."""
        if self._store.settings.value("on_idle") and not self.unfinished(reserved_for=reserved_for):
            self._store.life.notify("on_idle", job, now)

    def claimed(self, worker: int, outcome):
        """Return what finish_and_claim has claimed although it failed, in its form, or None: the commit may have succeeded."""
        job = self.job_of_worker(worker)
        if job is None or outcome is not None and (job.id, job.attempt) == (outcome.job.id, outcome.job.attempt):
            return None
        self._env = self._env_of(job)
        return job, self._env[1]

    def _env_of(self, job) -> tuple:
        """Return (id, data) of a job's environment; most jobs share one, whose id is never reused."""
        return self._env if job.env == self._env[0] else (job.env, self._store.queues.env(job.env))

    def finish_and_claim(self, worker: int, outcome=None, queues=None, reserved_for=None):
        """Record a worker's last outcome and claim its next job, in one transaction.

        Return (job, env data), the claimed Job and the environment that it should run in, or None.
        `queues` is a list of names between slashes, None for all.  `reserved_for` is the supervisor id of a `run`, which takes
        only the jobs reserved for it.
        """
        with self._db.undo, Transaction(self._db) as now:
            if outcome is not None:
                self.record(worker, outcome, now)
            found = self._next_job(queues, reserved_for, now)
            job = self._take(found, worker, now) if found and self._may_take(found[0], worker) else None
            if job is None:
                if outcome is not None:
                    self.notify_idle(outcome.job, now, reserved_for)
                return None
            env = self._env_of(job)
        self._env = env  # only after the commit: the id of a rolled-back environment is reused
        return job, env[1]

    def record(self, worker: int, outcome, now: float):
        """Record how an attempt ended; return as `move` does.  A worker that has lost its claim changes nothing."""
        job = outcome.job
        end = {"exit_code": outcome.exit_code, "signal": outcome.signal, "error": outcome.error, "duration": outcome.duration}
        kind = outcome.kind
        if kind == "completed":
            state = self._store.life.end(job, "complete", now, **end)
        elif kind == "cancelled" or self._db.execute("SELECT 1 FROM job WHERE id=? AND cancel=1", (job.id,)).fetchone():
            kind, end["error"] = "cancelled", "cancelled"
            state = self._store.life.end(job, "cancel", now, **end)
        elif kind == "released":
            state = self._put_back(job, "release", now, now, {"attempts": job.attempts - 1})
        elif kind == "crashed":
            state = self._record_crash(job, now, end)
        else:
            kind, state = self._record_failure(job, kind, now, end)
        if state:
            self._db.execute(
                "INSERT INTO history(job, attempt, worker, pid, started_at, finished_at, duration, outcome, exit_code, signal, error, "
                "state, output) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (job.id, job.attempt, worker, outcome.pid, outcome.started_at, now, outcome.duration, kind,
                 outcome.exit_code, outcome.signal, end["error"], state, outcome.output))
            self._store.followups.follow_added(now)
            if job.slots > 1 or self._db.execute("SELECT 1 FROM queue WHERE name=? AND max_running IS NOT NULL", (job.queue,)).fetchone():
                self._db.hint(job.slots)  # others may have waited for its slots or its place in the queue's limit
        return state

    def _put_back(self, job, event: str, now: float, run_at: float, changes: dict):
        """Put a running job back to wait, with its key; return as `move` does."""
        pool = self._db.execute("SELECT pool FROM job WHERE id=?", (job.id,)).fetchone()  # a `run --resume` may have reserved it
        gate = DUE if run_at > now else READY if pool is None or pool[0] is None else RESERVED
        self._db.hint(0 if gate == DUE else 1)
        return self._store.life.move(job, event, gate=gate, worker=None, run_at=run_at, delay=run_at - now, cancel=0, **changes)

    def _record_failure(self, job, kind: str, now: float, end: dict):
        """Record a failed attempt as a snooze, a retry, or a dead job; return (outcome, state)."""
        code = shell_status(end["exit_code"], end["signal"])
        if code_in(code, job.snooze_on) and job.snoozes < self._store.settings.value("max_snoozes"):
            pause = job.snooze if job.snooze is not None else 30.0
            return "snoozed", self._put_back(job, "snooze", now, now + pause, dict(
                end, attempts=job.attempts - 1, snoozes=job.snoozes + 1))
        final = job.attempts > job.max_retries or code_in(code, job.dead_on)
        if final or job.retry_on is not None and not code_in(code, job.retry_on):
            return kind, self._bury(job, now, end)
        pause = backoff_delay(job, int.from_bytes(os.urandom(2), "big") / 65536)
        return kind, self._put_back(job, "fail", now, now + pause, dict(end, finished_at=now))

    def _record_crash(self, job, now: float, end: dict):
        """Record that the worker died: no retry is used up, but a job that kills its workers is stopped (sidekiq#4633, oban#328)."""
        crashes = job.crashes + 1
        end = dict(end, crashes=crashes, attempts=job.attempts - 1)
        if crashes >= self._store.settings.value("max_crashes"):
            return self._bury(job, now, dict(end, error="worker died %d times" % crashes))
        pause = 0.0 if crashes == 1 else backoff_delay(job._replace(attempts=crashes - 1), 0.0)
        return self._put_back(job, "crash", now, now + pause, end)

    def _bury(self, job, now: float, end: dict):
        """Record that a job has died; a `run` that ends after so many deaths starts no other job from here on (--fail-fast)."""
        if job.pool is not None:
            self._db.execute("UPDATE supervisor SET failures_left=failures_left-1 WHERE id=? AND failures_left>0", (job.pool,))
        return self._store.life.end(job, "bury", now, **end)

    def take(self, worker: int, queues, most: int, now: float) -> list:
        """Claim at most so many jobs for an engine, which has slots of its own, as a part of a transaction."""
        jobs = []
        while len(jobs) < most:
            found = self._next_job(queues, None, now)
            if found is None:
                break
            jobs.append(self._take(found, worker, now))
        return jobs

    def _next_job(self, queues, reserved_for, now: float):
        """Return the job that may start next, as _first_in_line does; if none may, after a step of what follows from ends."""
        found = self._first_unexpired(queues, reserved_for, now)
        if found is None and self._store.followups.follow(now) < FOLLOWUPS:
            found = self._first_unexpired(queues, reserved_for, now)
        return found

    def _first_unexpired(self, queues, reserved_for, now: float):
        """Return what _first_in_line returns, after cancelling jobs that have expired; None if no job may start."""
        self._store.life.promote(now)
        for _ in range(CLAIM_LIMIT):
            found = self._first_in_line(queues, reserved_for, now)
            if found is None:
                return None
            job, every, _ = found
            if every is not None and not isinstance(every, float):
                raise WrongValue("queue %s has a value of a wrong type in every" % quoted(job.queue))
            if job.expires_at is None or job.expires_at > now:
                return found
            self._store.life.end(job, "expire", now, error="expired")
        return None

    def _first_in_line(self, queues, reserved_for, now: float):
        """Return (the first job that may start, `every` of its queue, whether there are several queues), or None.

        The first queue of the index queue_order that may start a job has it, if its head is still the first of its jobs.
        Otherwise correct its head, and look again.  A single queue's head is not corrected: that would be a write per job.
        """
        rest = "JOIN job" if reserved_for else "INDEXED BY queue_order LEFT JOIN job"
        order = "ORDER BY job.priority DESC, queue.served, job.id" if reserved_for else (
            "AND top IS NOT NULL ORDER BY queue.top DESC, queue.served, queue.head")
        while True:
            row = self._db.execute(
                "SELECT " + JOB_SELECT + ", queue.every, queue.top, queue.head, queue.rowid, "
                "(SELECT count(*)>1 FROM (SELECT 1 FROM queue LIMIT 2)) FROM queue " + rest + " ON job.id=("
                " SELECT id FROM " + startable(reserved_for) + " ORDER BY priority DESC, id LIMIT 1) "
                "WHERE queue.paused=0 AND (queue.every IS NULL OR queue.next_at<=:now OR queue.next_at>:now+queue.every) "
                "AND (queue.max_running IS NULL OR queue.max_running>"
                " (SELECT n FROM tally WHERE tally.queue=queue.name AND state='processing')) "
                "AND (:queues IS NULL OR instr(:queues, '/'||queue.name||'/')) " + order + " LIMIT 1",
                {"now": now, "queues": queues, "reserved_for": reserved_for}).fetchone()
            if row is None:
                return None
            every, top, head, queue, several = row[-5:]
            if row[0] is not None:
                job = Job.of(row[:-5])
                if reserved_for or not several or (job.priority, job.id) == (top, head):
                    return job, every, several
            elif not several:
                return None
            self._db.execute(FIND_HEADS + " WHERE rowid=?", (queue,))

    def _take(self, found: tuple, worker: int, now: float):
        """Claim the job that _next_job has found, and return it as it is then."""
        job, every, several = found
        claim = {"worker": worker, "attempt": job.attempt + 1, "attempts": job.attempts + 1, "started_at": now,
                 "finished_at": None, "duration": None, "exit_code": None, "expires_at": None}
        if not self._store.life.move(job, "claim", **claim):
            raise WrongValue("job %d is %s, but is indexed as a waiting job" % (job.id, job.state))
        if several or every is not None:
            # Queues of the same priority take turns, so that a flood in one does not starve another.
            self._db.execute(FIND_HEADS + ", served=(SELECT max(served)+1 FROM queue), next_at=:next WHERE name=:name",
                             {"next": now + (every or 0), "name": job.queue})
        if every is not None:
            self._db.hint()  # a supervisor must know when the next job may start
        return job._replace(state="processing", gate=None, **claim)

    def _may_take(self, job, worker: int) -> bool:
        """Whether the worker's supervisor has enough free slots, and may still take jobs (--max-jobs, which this counts).

        Its workers wait for the job that is first in line, so that big jobs don't starve.  A job that asks for more slots
        than there are takes all of them.  (`+worker` makes SQLite examine each big job, of which there are few.)
        """
        supervisor, slots, left, stop, big = self._db.execute(
            "SELECT id, slots, jobs_left, stop OR failures_left IS 0,"
            " (SELECT sum(min(job.slots, supervisor.slots)-1) FROM job INDEXED BY job_big"
            " WHERE state='processing' AND job.slots>1 AND +worker IN (SELECT id FROM worker WHERE supervisor=supervisor.id)) "
            "FROM supervisor WHERE id=(SELECT supervisor FROM worker WHERE id=?)", (worker,)).fetchone() or (0, 1, None, 0, None)
        if not supervisor and worker == self._store.workers.registered:
            self._store.workers.refuse_unlisted(worker)
        if stop:
            return False  # a stop was requested, but the worker has not heard of it yet
        if job.slots > 1 or big:
            [running] = self._db.execute("SELECT count(*) FROM job INDEXED BY job_running WHERE state='processing' AND worker IN ("
                                         "SELECT id FROM worker WHERE supervisor=?)", (supervisor,)).fetchone()
            if running + (big or 0) + min(job.slots, slots) > slots:
                return False
        if left is not None:
            self._db.execute("UPDATE supervisor SET jobs_left=jobs_left-1 WHERE id=? AND jobs_left>0", (supervisor,))
            if left <= 1:
                self._db.hint()
        return left is None or left > 0

    def cancel_asked(self, job) -> int:
        """Return CANCEL or SPARE if that was requested while the job runs, otherwise 0."""
        rows = self._db.read("SELECT cancel FROM job WHERE id=? AND worker IS ?", (job.id, job.worker))
        return rows[0][0] if rows else 0

    def job_of_worker(self, worker: int):
        return self._db.job("job INDEXED BY job_running WHERE state='processing' AND worker=?", (worker,))

    def ready(self, most: int, queues=None, reserved_for=None) -> int:
        """Return how many jobs could be claimed now, counted up to `most`."""
        where = "" if reserved_for else "AND top IS NOT NULL "
        rows = self._db.read(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM " + startable(reserved_for) + " LIMIT :most)) AS jobs, "
            "max_running-(SELECT n FROM tally WHERE tally.queue=queue.name AND state='processing') AS free FROM queue "
            "WHERE paused=0 AND (every IS NULL OR next_at<=:now OR next_at>:now+every) " + where +
            "AND (:queues IS NULL OR instr(:queues, '/'||name||'/')) AND jobs>0 AND (free IS NULL OR free>0) LIMIT :most",
            {"most": most, "now": self._db.clock(), "queues": queues, "reserved_for": reserved_for})
        return min(most, sum(count if free is None else max(0, min(count, free)) for count, free in rows))

    def next_time(self, reserved_for=None):
        """Return when something next happens by itself: a job falls due or expires, a rate allows one, a schedule fires.

        Without LIMIT, here and below, SQLite 3.35 takes the EXISTS for an IN, and reads all of job_ready.
        """
        times = self._db.read(
            "SELECT (SELECT run_at FROM job INDEXED BY job_due WHERE gate=1 ORDER BY run_at LIMIT 1), "
            "(SELECT expires_at FROM job INDEXED BY job_expiry WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT 1), "
            "(SELECT min(next_at) FROM queue WHERE paused=0 AND next_at>:now AND next_at<=:now+every AND EXISTS("
            " SELECT 1 FROM " + startable(reserved_for) + " LIMIT 1)), "
            "(SELECT min(next_at) FROM schedule WHERE paused=0), (SELECT 0 FROM followup LIMIT 1)",
            {"now": self._db.clock(), "reserved_for": reserved_for})[0]
        if any(moment.__class__ is str or moment.__class__ is bytes for moment in times[:2]):
            raise WrongValue("a job has a value of a wrong type in run_at or expires_at")
        return min((t for t in times if isinstance(t, (int, float))), default=None)

    def unfinished(self, queues=None, reserved_for=None, but=None) -> bool:
        """Whether any job except `but` could still run by itself: any at all for --drain, its own jobs for a `run`."""
        if reserved_for:
            return bool(self._db.read("SELECT 1 FROM job WHERE pool=? AND (gate IS NULL OR gate IN (1, 4, 5)) UNION ALL "
                                      "SELECT 1 FROM followup LIMIT 1", (reserved_for,)))
        return bool(self._db.read(
            "WITH open AS (SELECT name FROM queue WHERE paused=0 AND (max_running IS NULL OR max_running>0) "
            " AND (:queues IS NULL OR instr(:queues, '/'||name||'/'))) "
            "SELECT 1 FROM job INDEXED BY job_running WHERE state='processing' AND id IS NOT :but UNION ALL "
            "SELECT 1 FROM followup UNION ALL "
            "SELECT 1 FROM open WHERE EXISTS(SELECT 1 FROM job INDEXED BY job_ready WHERE queue=open.name AND gate=0 LIMIT 1) UNION ALL "
            "SELECT 1 FROM job INDEXED BY job_due WHERE gate=1 AND queue IN open UNION ALL "
            "SELECT 1 FROM job INDEXED BY job_keyed WHERE gate=4 AND queue IN open "
            "AND (:but IS NULL OR key IS NOT (SELECT key FROM job WHERE id=:but)) LIMIT 1", {"queues": queues, "but": but}))

    def stalled_job(self, reserved_for: int):
        """Return the first waiting job of a `run` if none of its jobs is running, otherwise None."""
        [job, running] = self._db.read(
            "SELECT coalesce((SELECT id FROM job INDEXED BY job_own WHERE pool=:reserved_for AND gate=5 LIMIT 1),"
            " (SELECT id FROM job INDEXED BY job_pool WHERE pool=:reserved_for AND gate IN (1, 4) LIMIT 1)), "
            "(SELECT count(*) FROM job INDEXED BY job_running WHERE state='processing' AND pool=:reserved_for)",
            {"reserved_for": reserved_for})[0]
        return self._store.look.find(job) if job is not None and not running else None


class Workers(Part):
    """The rows of workers and supervisors: which are listed, which are alive, and what they are asked to do."""

    def __init__(self, store):
        super().__init__(store)
        self.registered = None   # the worker that this process has registered

    def leave_behind(self) -> None:
        """Release the workers of the original if this database is a copy, or of its old place if it was moved.

        A worker that has a job and whose lock file exists is left to `rescue`.
        """
        if not self._db.read("SELECT 1 FROM worker WHERE instr(place, ?)<>1 LIMIT 1", (self._db.place(),)):
            return
        try:
            self.release_workers([worker for worker in self.workers() if not self.is_at_home(worker) and not (
                worker.engine and self.is_moved(worker)) and (
                not OS.is_held(self.files_of(worker).lock(worker.id)) if worker.job is None else not (  # it takes no job from this file
                    os.path.exists(self.files_of(worker).lock(worker.id)) or OS.is_held(self._db.files.output(worker.id)) or
                    self.is_alive(worker)))])
        except (sqlite3.OperationalError, OSError):
            pass  # a user who may not write may still read

    def is_at_home(self, worker) -> bool:
        """Whether a worker registered in this very file, by whatever path; true if its release did not record this."""
        return worker.place is None or worker.place.startswith(self._db.place())

    def is_moved(self, worker) -> bool:
        """Whether the database was moved to another disk: the worker may be alive, and hold the locks that were deleted there."""
        return not self.is_at_home(worker) and not os.path.exists(self.home(worker))

    def home(self, worker) -> str:
        """Return the path of the database as a worker knew it."""
        return worker.place.split(":", 2)[-1] if worker.place else self._db.path

    def files_of(self, worker):
        """Return the Files with a worker's lock and output: those at the old path if the database was moved away from them."""
        home = self.home(worker)
        if home != self._db.path and not os.path.exists(self._db.files.lock(worker.id)) and not os.path.exists(home):
            left = Files(home)
            if os.path.exists(left.lock(worker.id)):
                return left
        return self._db.files

    def is_alive(self, worker):
        """Whether a worker is alive, by its lock, or without a lock file by other facts; None if those are not enough.

        The lock directory may have been deleted while the worker ran, or not have been copied with the database.
        """
        lock = self.files_of(worker).lock(worker.id)
        if OS.is_held(lock):
            return True
        away = not self.is_at_home(worker)
        moved = self.is_moved(worker)
        if away and not moved:
            return False  # this is a copy: the worker belongs to the original
        if not moved and os.path.isfile(lock) and not os.path.islink(lock) and size_of(lock):
            return False
        machine = OS.machine()
        if machine and worker.machine == machine:
            return OS.is_running(worker.pid, worker.born)
        if away or machine and worker.machine and machine.split("/")[0] != worker.machine.split("/")[0]:
            return False  # another boot, or another computer
        return None

    def _listed(self, table: str, columns: str, rest: str) -> list:
        """Return the rows without wrong values: one wrong row must not hide the others.  `doctor` reports it."""
        return [row for row in self._db.read("SELECT %s FROM %s" % (columns, rest))
                if not examined(table, columns, tuple(map(type, row)))[0]]

    def spare(self, job) -> None:
        """Let a running job end by itself although its worker is told to stop now: the job itself asked for the stop."""
        with self._db.undo, Transaction(self._db):
            self._db.execute("UPDATE job SET cancel=2 WHERE id=? AND attempt=? AND state='processing' AND cancel=0", (job.id, job.attempt))

    def add_supervisor(self, spec, port: int, token: str) -> tuple:
        """Register this process, with what it was asked for (SupervisorSpec); return (id, the descriptor that holds its lock).

        The lock is acquired before the row is visible to others, so that none takes this process for dead.
        """
        self._db.files.make()
        self._db.use_wal()
        with self._db.undo, Transaction(self._db) as now:
            self._store.keep.refuse_counters(("supervisor", "worker"))
            supervisor_id = self._db.execute(
                "INSERT INTO supervisor(pid, port, token, slots, queues, kind, started_at, jobs_left, arguments, failures_left) "
                "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (os.getpid(), port, token, spec.count, spec.asked.get("queues"), spec.kind, now, spec.asked.get("max_jobs"),
                 spec.arguments, spec.asked.get("max_failures"))).lastrowid
            return supervisor_id, OS.hold(self._db.files.supervisor_lock(supervisor_id))

    def add_worker(self, supervisor: int, engine=None) -> tuple:
        """Register a worker as add_supervisor does; raise QueueGone if its supervisor is not registered."""
        self._db.files.make()
        with self._db.undo, Transaction(self._db) as now:
            if not self._db.execute("SELECT 1 FROM supervisor WHERE id=?", (supervisor,)).fetchone():
                raise QueueGone("supervisor %d is not registered any more" % supervisor)
            place = os.fsencode(self._db.place() + self._db.path)
            worker_id = self.registered = self._db.execute(
                "INSERT INTO worker(supervisor, pid, machine, started_at, born, place, engine) VALUES(?, ?, ?, ?, ?, ?, ?)",
                (supervisor, os.getpid(), OS.machine(), now, OS.born(), place, engine)).lastrowid
            self._db.hint()
            return worker_id, OS.hold(self._db.files.lock(worker_id))

    def refuse_unlisted(self, worker: int) -> None:
        """Raise QueueGone if the row of a worker has been removed: its claims would be nobody's."""
        if not self._db.execute("SELECT 1 FROM worker WHERE id=?", (worker,)).fetchone():
            raise QueueGone("worker %d was considered dead and is no longer listed" % worker)

    def remove_worker(self, worker: int) -> bool:
        """Remove the row of a worker that exits normally; return whether its lock file may go, once it is closed."""
        with self._db.undo, Transaction(self._db):
            gone = self._db.execute("DELETE FROM worker WHERE id=?1 AND NOT EXISTS(SELECT 1 FROM job WHERE worker=?1) "
                                    "AND NOT EXISTS(SELECT 1 FROM sent WHERE worker=?1)", (worker,)).rowcount
        return bool(gone)  # otherwise it holds a job whose outcome could not be written: a rescuer's task

    def remove_supervisor(self, supervisor: int) -> None:
        """Remove the row of a supervisor; any worker may take the jobs that were reserved for its `run`."""
        while not self._drop_supervisor(supervisor):
            continue
        remove(self._db.files.supervisor_lock(supervisor))

    def _drop_supervisor(self, supervisor: int) -> bool:
        """Let any worker take AT_ONCE jobs that were reserved for a `run`; if none is left, remove the supervisor and return True."""
        with self._db.undo, Transaction(self._db) as now:
            jobs = self._db.jobs("job WHERE pool=? LIMIT ?", (supervisor, AT_ONCE))
            for job in jobs:
                self._db.execute("UPDATE job SET pool=NULL WHERE id=?", (job.id,))
                if job.gate is not None:
                    self._store.life.regate(job._replace(pool=None), now)
            if not jobs:
                self._db.execute("DELETE FROM supervisor WHERE id=?", (supervisor,))
            return not jobs

    def release_workers(self, workers) -> None:
        """Remove workers that are not this file's, and supervisors without workers, and give their jobs back."""
        with self._db.undo, Transaction(self._db) as now:
            self._db.connection.executemany("DELETE FROM worker WHERE id=?", [(worker.id,) for worker in workers])
            self.release_unlisted("released", "the database was copied or moved while it ran", now)
            self._db.hint()
        for supervisor, in self._db.read(
                "SELECT id FROM supervisor WHERE NOT EXISTS(SELECT 1 FROM worker WHERE supervisor=supervisor.id)"):
            while not OS.is_held(self._db.files.supervisor_lock(supervisor)) and not self._drop_supervisor(supervisor):
                continue

    def release_unlisted(self, kind: str, why: str, now: float) -> None:
        """Take running jobs from workers that are not listed, if nobody holds their lock or output file."""
        for job in self._db.jobs("job INDEXED BY job_running WHERE state='processing' "
                                 "AND NOT EXISTS(SELECT 1 FROM worker WHERE worker.id=job.worker)"):
            if not OS.is_held(self._db.files.lock(job.worker)) and not OS.is_held(self._db.files.output(job.worker)):
                self._store.claims.record(job.worker, Outcome(job, kind, None, why, None, job.started_at, job.running_s(now)), now)

    def supervisors(self) -> list:
        return [SupervisorRow._make(row) for row in self._listed(
            "supervisor", ", ".join(SupervisorRow._fields), "supervisor ORDER BY id")]

    def workers(self) -> list:
        rows = self._listed(
            "worker", "id, supervisor, pid, machine, started_at, born, place, engine, (SELECT job.id FROM job INDEXED BY job_running "
            "WHERE state='processing' AND job.worker=worker.id)", "worker ORDER BY id")
        return [WorkerRow._make(os.fsdecode(value) if isinstance(value, bytes) else value for value in row) for row in rows]

    def unanswered(self) -> dict:
        """Ask every supervisor that is alive for a sign of life; return, for each that gives none, when it last gave one.

        The access time of its lock file is the question and the modification time the answer: no question, no write.
        """
        asked = {}
        for supervisor in self.supervisors():
            path = self._db.files.supervisor_lock(supervisor.id)
            try:
                if OS.is_held(path) and os.stat(path).st_size:  # an empty file is an older version's, which can't answer
                    os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
                    asked[supervisor.id] = path, os.stat(path).st_atime_ns
            except OSError:
                pass  # another user's supervisor, or one that has just ended, can't be asked
        if asked:
            self._db.send(self._db.listeners(), 0)
        limit = time.monotonic() + LOOK_S + 0.5
        while True:
            silent = {}
            for number, (path, moment) in asked.items():
                try:
                    answered = os.stat(path).st_mtime_ns
                except OSError:
                    continue  # it has ended
                if answered < moment:
                    silent[number] = answered / 1e9
            if not silent or time.monotonic() > limit:
                return silent
            time.sleep(0.005)

    def ask_stop(self, supervisor: int, how: int) -> None:
        with self._db.undo, Transaction(self._db):
            self._db.execute("UPDATE supervisor SET stop=max(stop, ?) WHERE id=?", (how, supervisor))
            self._db.hint()

    def ask_scale(self, supervisor: int, slots: int) -> None:
        with self._db.undo, Transaction(self._db):
            self._db.execute("UPDATE supervisor SET slots=? WHERE id=?", (slots, supervisor))
            self._db.hint()

    def orders(self, supervisor: int) -> tuple:
        """Return (how to stop: 0 not, GRACEFUL or IMMEDIATE; workers wanted; whether jobs may still be taken)."""
        rows = self._db.read("SELECT stop, slots, jobs_left IS NULL OR jobs_left>0 FROM supervisor WHERE id=?", (supervisor,))
        if not rows:
            return IMMEDIATE, 0, False
        stop, wanted, may_take = checked("supervisor", "stop, slots, jobs_left", rows[0])
        return stop, min(wanted, MOST_WORKERS), may_take

    def to_cancel(self, supervisor: int) -> list:
        """Return the pids of its workers whose job should be cancelled."""
        return [pid for pid, in self._db.read(
            "SELECT worker.pid FROM job INDEXED BY job_running JOIN worker ON worker.id=job.worker "
            "WHERE state='processing' AND job.cancel=1 AND worker.supervisor=?", (supervisor,))]

    def release_dead(self, worker: int, outcome) -> None:
        """Take the job from a worker that is certainly dead, and remove the worker's row."""
        with self._db.undo, Transaction(self._db) as now:
            if outcome is not None:
                self._store.claims.record(worker, outcome, now)
                self._store.claims.notify_idle(outcome.job, now)
            self._db.execute("DELETE FROM worker WHERE id=?", (worker,))

    def stray_files(self) -> list:
        """Return the paths of files that belong to workers and supervisors that are not listed, and that none holds."""
        listed = {name for name, in self._db.execute("SELECT CAST(id AS TEXT) FROM worker UNION ALL SELECT 's'||id FROM supervisor")}
        folder = self._db.files.workers
        paths = [os.path.join(folder, name) for name in (sorted(os.listdir(folder)) if os.path.isdir(folder) else ())
                 if name.split(".")[0].lstrip("s").isdigit() and name.split(".")[0] not in listed]
        return [path for path in paths if not OS.is_held(path)]

    def sweep(self) -> None:
        """Release jobs and remove files of workers and supervisors that are not listed: a killed rescuer left them."""
        with self._db.undo, Transaction(self._db) as now:  # nobody registers meanwhile
            self.release_unlisted("crashed", "worker died", now)
            for path in self.stray_files():
                remove(path)

    def begin_wait(self, job: int, ids: list) -> set:
        """Record that a running job waits for others; return those that can't end before it, which it must not wait for."""
        with self._db.undo, Transaction(self._db):
            self._db.execute("DELETE FROM waiting WHERE NOT EXISTS("
                             "SELECT 1 FROM job WHERE id=waiting.job AND state='processing' AND attempt=waiting.attempt)")
            self._db.connection.executemany("INSERT OR REPLACE INTO waiting(target, job, attempt) "
                                            "SELECT ?, id, attempt FROM job WHERE id=?", [(target, job) for target in ids])
        # Only after the commit: if two jobs begin to wait for each other at once, at least one of them sees the other.
        later = self.later_than(job) | {job}
        self.end_wait(job, later.intersection(ids))
        return later

    def end_wait(self, job: int, ids) -> None:
        with self._db.undo, Transaction(self._db):
            self._db.connection.executemany("DELETE FROM waiting WHERE target=? AND job=?", [(target, job) for target in ids])

    def later_than(self, job: int) -> set:
        """Return the jobs that can't end before this one: they wait for it, come after it or its batch, or queue for its key."""
        found, left = set(), [job]
        while left:
            rows = self._db.read(
                "SELECT waiting.job FROM waiting JOIN job ON job.id=waiting.job AND state='processing' AND job.attempt=waiting.attempt "
                "WHERE target=:id UNION ALL SELECT child FROM dep WHERE parent=:id AND done=0 UNION ALL "
                "SELECT child FROM dep WHERE parent=-(SELECT batch FROM job WHERE id=:id) AND done=0 UNION ALL "
                "SELECT id FROM job INDEXED BY job_keyed WHERE gate=4 AND key=(SELECT key FROM job WHERE id=:id) "
                "AND (SELECT job FROM keylock WHERE keylock.key=job.key)=:id", {"id": left.pop()})
            fresh = {number for number, in rows} - found
            found |= fresh
            left.extend(fresh)
        return found - {job}


class Handed(Part):
    """What is handed to an engine: arrays of packs of attempts.  See the section Engines."""

    def hand(self, worker: int, spool: str, queues, packs: int, most: int) -> list:
        """Claim jobs for at most so many packs of `most` jobs, and commit what is to be sent; return (Sent, its packs of jobs) each.

        Jobs that need other options of the engine, or other slots, go into other arrays.
        """
        found, arrays = {}, []
        with self._db.undo, Transaction(self._db) as now:
            self._store.workers.refuse_unlisted(worker)
            jobs = self._store.claims.take(worker, queues, min(packs * most, AT_ONCE), now)
            options = dict(self._db.execute("SELECT name, CAST(engine_options AS TEXT) FROM queue WHERE engine_options IS NOT NULL"))
            for job in jobs:
                found.setdefault((options.get(job.queue, ""), job.slots), []).append(job)
            for (text, slots), some in found.items():
                folder = os.path.join(spool, "queuectl-" + os.urandom(8).hex())
                sent = self._db.execute("INSERT INTO sent(worker, folder, options, slots, created_at) VALUES(?, ?, ?, ?, ?)",
                                        (worker, folder, text, slots, now)).lastrowid
                parts = [some[start:start + most] for start in range(0, len(some), most)]
                self._db.connection.executemany(
                    "INSERT OR REPLACE INTO packed(job, attempt, sent, pack) VALUES(?, ?, ?, ?)",
                    [(job.id, job.attempt, sent, pack) for pack, part in enumerate(parts) for job in part])
                arrays.append((Sent(sent, worker, folder, None, text, slots, now), parts))
        return arrays

    def blobs(self, ids) -> dict:
        """Return environments and inputs by their ids."""
        ids = [number for number in ids if number is not None]
        return dict(self._db.read("SELECT id, CAST(data AS BLOB) FROM env WHERE id IN " + marks(ids), ids)) if ids else {}

    def sent(self, worker: int) -> list:
        return [Sent._make(row) for row in self._db.rows("sent", ", ".join(Sent._fields), "sent WHERE worker=? ORDER BY id", (worker,))]

    def packed(self, sent: int) -> list:
        """Return (pack, job, attempt) for each attempt of an array that has not ended."""
        return self._db.rows("packed", "pack, job, attempt", "packed WHERE sent=? ORDER BY pack, job", (sent,))

    def name(self, sent: int, handle: str) -> None:
        """Record the engine's own id of an array."""
        with self._db.undo, Transaction(self._db):
            self._db.execute("UPDATE sent SET handle=? WHERE id=?", (handle, sent))

    def record(self, worker: int, outcomes: list) -> None:
        """Record how attempts ended, as Claims.record does."""
        with self._db.undo, Transaction(self._db) as now:
            for outcome in outcomes:
                self._store.claims.record(worker, outcome, now)
                self._db.execute("DELETE FROM packed WHERE job=? AND attempt=?", (outcome.job.id, outcome.job.attempt))
            if outcomes:
                self._store.claims.notify_idle(outcomes[-1].job, now)

    def give_back(self, worker: int, sent: int, packs: list, why: str) -> int:
        """Release the attempts of packs of which nothing has begun, but not what should be cancelled; return how many those are."""
        where = "worker=? AND cancel=0 AND id IN (SELECT packed.job FROM packed WHERE sent=? AND pack IN " + marks(packs) + ")"
        values = [worker, sent] + packs
        with self._db.undo, Transaction(self._db) as now:
            self._db.execute("INSERT INTO history(job, attempt, worker, started_at, finished_at, duration, outcome, error, state) "
                             "SELECT id, attempt, worker, started_at, ?, 0.0, 'released', ?, 'pending' FROM job "
                             "WHERE state='processing' AND " + where, [now, why] + values)
            return self._store.life.release_running(where, values, now)

    def forget(self, sent: int) -> None:
        """Remove an array that the engine has ended, with whatever attempts in it have lost their claim."""
        with self._db.undo, Transaction(self._db):
            self._db.execute("DELETE FROM packed WHERE sent=?", (sent,))
            self._db.execute("DELETE FROM sent WHERE id=?", (sent,))

    def adopt(self, worker: int, dead: int) -> None:
        """Take over what a dead worker has handed over, and remove its row."""
        with self._db.undo, Transaction(self._db):
            self._db.execute("UPDATE job SET worker=? WHERE state='processing' AND worker=?", (worker, dead))
            self._db.execute("UPDATE sent SET worker=? WHERE worker=?", (worker, dead))
            self._db.execute("DELETE FROM worker WHERE id=?", (dead,))
            self._db.execute("DELETE FROM sent WHERE worker NOT IN (SELECT id FROM worker)")
            self._db.execute("DELETE FROM packed WHERE sent NOT IN (SELECT id FROM sent)")

    def to_cancel(self, worker: int) -> list:
        """Return (array, pack, job) for each attempt that should be cancelled."""
        return self._db.read("SELECT sent, pack, job.id FROM job INDEXED BY job_running JOIN packed ON packed.job=job.id "
                             "AND packed.attempt=job.attempt WHERE state='processing' AND cancel=1 AND job.worker=?", (worker,))

    def claimed(self, worker: int, attempts: dict) -> dict:
        """Return those of these attempts, given as {job id: attempt}, that a worker still has, as Jobs by their ids."""
        ids, found = sorted(attempts), {}
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start:start + AT_ONCE]
            found.update((job.id, job) for job in self._db.jobs("job WHERE state='processing' AND worker=? AND id IN " + marks(some),
                                                                [worker] + some) if job.attempt == attempts[job.id])
        return found

    def place(self, job):
        """Return (Sent, pack) of a running attempt; None if it runs on this machine."""
        rows = self._db.read("SELECT " + ", ".join("sent." + field for field in Sent._fields) + ", pack FROM packed JOIN sent "
                             "ON sent.id=packed.sent WHERE job=? AND attempt=?", (job.id, job.attempt))
        return (Sent._make(rows[0][:-1]), rows[0][-1]) if rows else None

    def has_sent(self, worker: int) -> bool:
        return bool(self._db.read("SELECT 1 FROM sent WHERE worker=? LIMIT 1", (worker,)))

    def mean_duration(self):
        """Return the mean duration of the latest attempts; None if none has ended."""
        return self._db.read("SELECT avg(duration) FROM (SELECT duration FROM history WHERE duration IS NOT NULL "
                             "ORDER BY seq DESC LIMIT 200)")[0][0]


class Schedules(Part):
    """Schedules, and the jobs that they enqueue."""

    def tick(self) -> None:
        """Expire jobs, make due jobs ready, and fire schedules: a supervisor's work when a time has come."""
        with self._db.undo, Transaction(self._db) as now:
            self._store.life.expire(now)
            self._store.life.promote(now)
            self._store.followups.follow(now)
        with self._db.undo, Transaction(self._db) as now:
            self.fire(now)
            self._store.followups.follow_added(now)

    def repair_clock(self) -> None:
        """Bring relative times back within their own delay, after the clock was set back."""
        while True:
            late = self._db.read("SELECT id FROM job INDEXED BY job_due WHERE gate=1 AND delay IS NOT NULL AND run_at>?+delay+1 LIMIT 500",
                                 (self._db.clock(),))
            with self._db.undo, Transaction(self._db) as now:
                self._db.connection.executemany("UPDATE job SET run_at=?1+delay WHERE id=?2 AND gate=1", [(now, job) for job, in late])
                self._db.hint()
            if len(late) < 500:
                break
        for start in range(0, len(self.list()), CLAIM_LIMIT):
            self._repair_times(start)

    def _repair_times(self, start: int) -> None:
        """Correct the next time of CLAIM_LIMIT schedules, in the order of their names."""
        with self._db.undo, Transaction(self._db) as now:
            for schedule in self._all("WHERE 1", (start,), "name LIMIT %d OFFSET ?" % CLAIM_LIMIT):
                due, error = self._alone(lambda schedule=schedule: schedule.after_clock_change(now))
                if error is None and due < schedule.next_at:  # also of a schedule that was broken and no longer is
                    self._set(schedule, next_at=due, error=None)
                elif error is not None:
                    self._set(schedule, error=error)
            self._db.hint()

    def fire_at_boot(self, boot: str) -> None:
        """Enqueue the jobs that run once when workers start after a boot; do nothing if the boot is not known."""
        if boot:
            with self._db.undo, Transaction(self._db) as now:
                for schedule in self._all("WHERE lower(trim(spec))='@reboot' AND paused=0 AND boot IS NOT ?", (boot,)):
                    error = self._alone(lambda schedule=schedule: self._run(schedule, now))[1]
                    self._set(schedule, boot=boot, last_at=now, error=error)

    def _alone(self, action) -> tuple:
        """Return (what `action` returns, None), or undo it and return (None, what is wrong): one row must not stop the others.

        Raise an error of the machine, such as a full disk: it is not the row's fault.
        """
        self._db.execute("SAVEPOINT alone")
        try:
            return action(), None
        except (sqlite3.OperationalError, sqlite3.InternalError, OSError, MemoryError):
            raise
        except Exception as error:
            if sqlite_fault(error) == DAMAGED:
                raise
            self._db.execute("ROLLBACK TO alone")
            return None, row_fault(error)
        finally:
            if self._db.connection.in_transaction:  # SQLite itself rolls back after some errors
                self._db.execute("RELEASE alone")

    def plan(self, name: str, job, times: dict) -> dict:
        """Return the row of a schedule for `add` or `put`; `job` is a dict, or a Plan of one job.

        `times` has `spec` (a cron line) or `every` (seconds), and may have `tz`, `misfire` and `overlap`.
        A schedule that is replaced keeps its zone unless another is given.
        """
        import json
        now, rule, spec, every, tz = self._db.clock(), None, times.get("spec"), times.get("every"), times.get("tz")
        if tz is None:
            tz = next((schedule.tz for schedule in self._all("WHERE name=?", (name,))), None)
        plan = job if isinstance(job, Plan) else Plan([job], taker="cron")
        options, (_, columns, parsed) = dict(plan.given[0]), plan.items[0]
        if "at" in parsed and len(str(options["at"]).strip()) != 5:
            options["at"] = utc(parsed["at"])
        if spec or "at" in parsed:
            if tz in (None, "localtime"):  # the latter is a file among the zones, and another zone on each machine
                tz = OS.zone(None if tz else os.environ.get("TZ"))
            tz, rule = zone_and_rule(tz)
        if "cwd" in columns:  # relative to this directory, not to that of the supervisor that fires it
            options["cwd"] = columns["cwd"] if isinstance(columns["cwd"], str) else text_of(columns["cwd"])
        umask = OS.umask()
        if umask is not None:
            options = {"umask": "%04o" % umask, **options}
        if "stdin" in parsed:
            options["stdin"] = parsed["stdin"].decode("utf-8", "surrogateescape")
        for ref in parsed.get("after", []) + parsed.get("after_any", []):
            if not self._all("WHERE name=?", (searchable(ref),)):
                self._store.look.ids(ref)
        return {"name": name, "spec": spec, "every": every, "tz": tz, "rule": rule, "misfire": times.get("misfire", "once"),
                "created_at": now, "no_overlap": OVERLAPS.index(parse_choice(times.get("overlap", "allow"), "overlap", OVERLAPS)),
                "next_at": now + every if every else next_run(parse_cron(spec), now, tz, rule), "boot": OS.boot(),
                "options": json.dumps(options), "env": job_env(OS.environment(), {"clean_env": parsed.get("clean_env")}),
                "cwd": encodable(given(os.getcwd()), "this directory")}

    def add(self, rows: list) -> None:
        """Store new schedules, rows of `plan`, all or none."""
        with self._db.undo, Transaction(self._db):
            known = {name for name, in self._db.execute("SELECT name FROM schedule")}
            taken = [quoted(row["name"]) for row in rows if row["name"] in known]
            if taken:
                raise UserError("there %s %s already: give --replace, or remove %s with `%s cron rm`" % (
                    "is a schedule" if taken[1:] == [] else "are schedules", ", ".join(taken), "them" if taken[1:] else "it", PROGRAM))
            self._put(rows)

    def put(self, rows: list) -> None:
        """Store schedules as `add` does, in place of those of the same names.

        A schedule that is replaced stays paused if it was.  If its times are the same, it keeps the next of them.
        """
        with self._db.undo, Transaction(self._db):
            self._put(rows)

    def _put(self, rows: list) -> None:
        for row in rows:
            before = self._db.execute("SELECT spec, every, tz, next_at, paused, last_at, last_job FROM schedule WHERE name=?",
                                      (row["name"],)).fetchone()
            row["env"] = self._store.queues.store_env(kept(row["env"], self._store.settings.value("env_keep")), 1)
            if before:
                if before[:3] == (row["spec"], row["every"], row["tz"]) and before[3] < NEVER:
                    row["next_at"] = before[3]
                row.update(zip(("paused", "last_at", "last_job"), before[4:]))
                self._db.execute("DELETE FROM schedule WHERE name=?", (row["name"],))
            self._db.execute("INSERT INTO schedule(" + ", ".join(row) + ") VALUES(" + ", ".join(":" + key for key in row) + ")", row)
        self._db.hint()

    def edit(self, name: str, options: dict, times: dict) -> None:
        """Change a schedule: its times (see `plan`), or options of its job and `command`; "" takes an option away.

        What is not given, or None, stays.
        """
        schedule = self.get(name)
        job = dict(stored_job(schedule.options))
        for key, value in options.items():
            if key == "env":
                value = {**parse_env(job.get("env", {})), **parse_env(value)}
            job.pop({"at": "delay", "delay": "at"}.get(key), None)
            job[key] = value
        job = {key: value for key, value in job.items() if value not in ("", [""])}
        given = {key: value for key, value in times.items() if value}
        before = {"tz": schedule.tz, "misfire": schedule.misfire, "overlap": OVERLAPS[schedule.no_overlap]}
        if "spec" not in given and "every" not in given:
            before.update(spec=schedule.spec, every=schedule.every)
        row = self.plan(name, job, {**before, **given})
        if (row["spec"], row["every"], row["tz"]) == (schedule.spec, schedule.every, schedule.tz) and (schedule.next_at or NEVER) < NEVER:
            del row["next_at"]
        for column in ("name", "created_at", "boot", "cwd", "env"):
            del row[column]
        with self._db.undo, Transaction(self._db):
            if options.get("clean_env"):
                row["env"] = self._store.queues.swap_env(schedule.env, lambda data: kept(data, CLEAN_ENV))
            self._set(schedule, error=None, **row)
            self._db.hint()

    def settle_zones(self) -> None:
        """Give schedules of an earlier release the zone that they were added in: their environment's, or otherwise this machine's."""
        for schedule in self._all("WHERE spec IS NOT NULL AND rule IS NULL"):
            tz = schedule.tz
            try:
                if tz is None:
                    env = self._store.queues.env(schedule.env)
                    found = [os.fsdecode(entry[3:]) for entry in env.split(b"\0") if entry.startswith(b"TZ=")]
                    tz = OS.zone(found[0] if found else None)
                self._set(schedule, **dict(zip(("tz", "rule"), zone_and_rule(tz))))
            except (UserError, ValueError, TypeError, AttributeError):
                continue  # the error is reported when the schedule is due

    def list(self) -> list:
        return self._all("")

    def _all(self, where: str, values=(), order: str = "name") -> list:
        """Return schedules.  A wrong value becomes None and is the schedule's error: one wrong row must not hide the others."""
        columns, found = ", ".join(Schedule._fields), []
        for row in self._db.read("SELECT " + columns + " FROM schedule " + where + " ORDER BY " + order, values):
            schedule = Schedule._make(row)
            wrong = examined("schedule", columns, tuple(map(type, row)))[0] + too_large(columns, row)
            wrong = [column for column in wrong if column != "name"]
            if wrong:
                schedule = schedule._replace(**dict(dict.fromkeys(wrong), error="has a wrong value in " + ", ".join(wrong)))
            if isinstance(schedule.name, bytes):
                schedule = schedule._replace(name=as_text(schedule.name))
            found.append(schedule)
        return found

    def _set(self, schedule, **changes) -> None:
        """Change the row of a schedule, whatever bytes its name has: a schedule that stayed due would be tried without end."""
        self._db.execute("UPDATE schedule SET " + assignments(tuple(changes)) + " WHERE name IN (CAST(? AS TEXT), ?)",
                         (*changes.values(), schedule.key, schedule.key))

    def get(self, name: str):
        found = [schedule for schedule in self.list() if schedule.name == name]
        if not found:
            raise NotFound("no schedule %s: see `%s cron list`" % (quoted(name), PROGRAM))
        return found[0]

    def pause(self, name: str) -> None:
        schedule = self.get(name)
        with self._db.undo, Transaction(self._db):
            self._set(schedule, paused=1)
            self._db.hint()

    def resume(self, name: str) -> None:
        """Resume a schedule with its next time from now."""
        schedule = self.get(name)
        with self._db.undo, Transaction(self._db) as now:
            next_at = self._or_refuse(name, lambda: schedule.following(now))
            self._set(schedule, paused=0, next_at=next_at, boot=OS.boot())
            self._db.hint()

    def _or_refuse(self, name: str, action):
        """Return what `action` returns; raise UserError if the schedule's row prevents it."""
        result, error = self._alone(action)
        if error is not None:
            raise UserError("schedule %s can't run: %s" % (quoted(name), error))
        return result

    def remove(self, name: str) -> None:
        schedule = self.get(name)
        with self._db.undo, Transaction(self._db):
            self._db.execute("DELETE FROM schedule WHERE name IN (CAST(? AS TEXT), ?)", (schedule.key, schedule.key))

    def run(self, name: str) -> int:
        """Enqueue a schedule's job now, in addition to its times; return the job's id."""
        schedule = self.get(name)
        with self._db.undo, Transaction(self._db) as now:
            job = self._or_refuse(name, lambda: self._run(schedule, now))
            if job is None:
                raise UserError("schedule %s has a job that is unfinished, %d, and does not overlap: wait for it, or cancel it" % (
                    quoted(name), self._unfinished_of(schedule)[0]))
            return job

    def fire(self, now: float) -> None:
        """Enqueue the jobs of due schedules: next_at moves in the same transaction, so each time fires once.

        A schedule's error is stored in its row.  A schedule whose next time can't be computed stands still until
        workers start again (repair_clock), or until it is resumed or replaced.  The next tick fires those beyond CLAIM_LIMIT.
        """
        due = self._all("WHERE paused=0 AND next_at<=?", (now,), "next_at LIMIT %d" % CLAIM_LIMIT)
        for schedule in sorted(due, key=lambda schedule: '"after' in str(schedule.options)):  # parents first
            late = schedule.misfire == "skip" and now - (schedule.next_at or 0) > MISFIRE_S
            error = None if late else self._alone(lambda schedule=schedule: self._run(schedule, now))[1]
            next_at, fault = self._alone(lambda schedule=schedule: schedule.following(now))
            self._set(schedule, next_at=NEVER if fault else next_at, last_at=schedule.next_at, error=fault or error)

    def _run(self, schedule, now: float):
        """Enqueue a schedule's job; return its id, or None if the schedule skips overlaps and has an unfinished job."""
        overlap = OVERLAPS[schedule.no_overlap]
        unfinished = self._unfinished_of(schedule) if overlap in ("skip", "replace") else []
        if overlap == "skip" and unfinished:
            return None
        for job_id in unfinished:
            self._store.life.cancel_one(self._store.look.row(job_id), now)
        plan = Plan([schedule.job(now)], origin={
            "schedule": schedule.name, "cwd": schedule.cwd, "base": self._store.queues.env(schedule.env)})
        [[job]] = plan.store(self._store, now)
        self._set(schedule, last_job=job)
        return job

    def _unfinished_of(self, schedule) -> list:
        """Return the ids of a schedule's unfinished jobs, whatever enqueued them: `cron run` and `retry` count too."""
        return [job for job, in self._db.execute(
            "SELECT id FROM job INDEXED BY job_schedule WHERE schedule=:name AND state IN ('pending','processing','failed') UNION "
            "SELECT id FROM job WHERE id=:last AND state IN ('pending','processing','failed') ORDER BY id",
            {"name": schedule.name, "last": schedule.last_job})]

    def beside(self, name: str) -> list:
        """Return the unfinished jobs of a schedule that lets no job begin beside them; [] of any other."""
        return [job for schedule in self._all("WHERE name=? AND no_overlap=1", (name,)) for job in self._unfinished_of(schedule)]

    def job_or_schedule(self, ref: str):
        """Return the id of the job with this id or name, otherwise of the last job of the schedule with this name, or None."""
        job = self._store.look.find(ref)
        if job is not None:
            return job.id
        rows = self._db.read("SELECT last_job FROM schedule WHERE name=?", (searchable(ref),))
        return rows[0][0] if rows else None


# The filters by which commands and the web page select jobs.
JOB_FILTER = ("(:states IS NULL OR instr(:states, '/'||state||'/') OR held=1 AND gate IS NOT NULL AND instr(:states, '/held/')) "
              "AND (:queue IS NULL OR queue=:queue) AND (:name IS NULL OR name GLOB :name) AND (:batch IS NULL OR batch=:batch) "
              "AND (:label IS NULL OR instr(labels, :label)) AND (:schedule IS NULL OR schedule=:schedule) "
              "AND (:text IS NULL OR command LIKE :text ESCAPE '!') AND (:like IS NULL OR command=:command "
              "AND error IS :error AND exit_code IS :exit_code AND signal IS :signal)")
NO_FILTER = dict.fromkeys(("queue", "name", "batch", "schedule", "like", "command", "error", "exit_code", "signal"))


def filter_values(states=(), label=None, text=None, like=None, **others) -> dict:
    """Return the values for JOB_FILTER, and `others`: further filters, and the other parameters of its statement.

    `name` is a glob, `text` stands in the command, and `like` is a job: those with its command and its end.
    """
    values = dict(NO_FILTER, **others, states=slashed(states), one=states[0] if len(states) == 1 else None,
                  label=label and slashed([label]), text=text and "%%%s%%" % text.replace("!", "!!").replace("%", "!%").replace("_", "!_"))
    if like is not None:
        values.update(like=like.id, command=encodable(like.command, "the command"), error=like.error, exit_code=like.exit_code,
                      signal=like.signal)
    return values


def narrowest(values: dict) -> str:
    """Return the index to use, as the beginning of a WHERE: for each of these filters one is worth using."""
    one = values["one"]
    return ("INDEXED BY job_batch WHERE batch=:batch" if values["batch"] is not None else
            "INDEXED BY job_schedule WHERE schedule=:schedule" if values["schedule"] is not None else
            "INDEXED BY job_named WHERE name IS NOT NULL" if values["name"] is not None else
            "INDEXED BY job_label WHERE labels IS NOT NULL" if values["label"] is not None else
            "INDEXED BY job_running WHERE state='processing'" if one == "processing" else
            "INDEXED BY job_settled WHERE state IN ('completed','failed','dead','cancelled') AND state=:one"
            if one in ("failed", *FINAL) else "WHERE 1")


class Look(Part):
    """Queries that change nothing: jobs, their history, why a job waits, what has happened."""

    def row(self, job_id: int):
        return self._db.job("job WHERE id=?", (job_id,))

    def find(self, ref):
        """Return the job with this id, or of this name the unfinished one, else the newest; or None."""
        text = str(ref)
        if text.isascii() and text.isdigit():
            return self.row(int(text)) if len(text) < 19 else None
        return None if "\0" in text else self._db.job(
            "job WHERE id=coalesce((SELECT id FROM job INDEXED BY job_name WHERE name=:name "
            "AND state IN ('pending','processing','failed')), (SELECT max(id) FROM job INDEXED BY job_named WHERE name=:name))",
            {"name": searchable(text)})

    def ids_between(self, low: int, high: int) -> list:
        return [job for job, in self._db.read("SELECT id FROM job WHERE id BETWEEN ? AND ? ORDER BY id", (low, min(high, 2**62)))]

    def select(self, states=(), ids=None, before=None, **filters):
        """Return an array of the ids of the jobs that match every filter given (see JOB_FILTER), oldest first.

        `before` is a limit to their end time.  A million ids take 8 MB, and a tenth of that while they are read.
        """
        from array import array
        found, wanted, last = array("q"), None if ids is None else set(ids), 0
        while True:
            rows = self._db.read(
                "SELECT id FROM job WHERE " + JOB_FILTER + " AND (:before IS NULL OR finished_at<:before) AND id>:last "
                "ORDER BY id LIMIT 10000", filter_values(states, before=before, last=last, **filters))
            if not rows:
                return found
            last = rows[-1][0]
            found.extend(job for job, in rows if wanted is None or job in wanted)

    def ids(self, ref: str) -> list:
        """Return the ids that an id, a name, a range (5-8) or `last` stands for; raise UserError if there is no matching job."""
        low, dash, high = ref.partition("-")
        if dash and ref.isascii() and low.isdigit() and high.isdigit() and len(ref) < 30:
            found = self.ids_between(int(low), int(high))
            if not found:
                raise NotFound("no job from %s to %s: see `%s list`" % (low, high, PROGRAM))
            return found
        return [self.last_job().id if ref == "last" else self.job(ref).id]

    def last_job(self):
        """Return the newest job; raise UserError if there is none."""
        jobs = self.jobs(limit=1)
        if not jobs:
            raise UserError("the queue is empty: enqueue a job first")
        return jobs[0]

    def job(self, ref):
        """Return the job with this id or name, else the latest job of the schedule with this name; raise UserError if there is none."""
        job = self.find(ref)
        if job is None:
            job = self.latest_of(str(ref))
        if job is None and self._db.read("SELECT 1 FROM schedule WHERE name=?", (str(ref),)):
            raise NotFound("schedule %s has enqueued no job yet: see `%s cron list`" % (quoted(ref), PROGRAM))
        if job is None:
            raise NotFound("no job %s: see `%s list`" % (quoted(str(ref)), PROGRAM))
        return job

    def latest_of(self, schedule: str):
        """Return the latest job of a schedule, or None; of a schedule that was removed too."""
        return self._db.job(
            "job WHERE id=coalesce((SELECT job.id FROM schedule JOIN job ON job.id=last_job "
            "WHERE schedule.name=:name), (SELECT max(id) FROM job INDEXED BY job_schedule WHERE schedule=:name))",
            {"name": searchable(schedule.replace("\0", " "))})

    def named(self, prefix: str, states=(), most: int = 500) -> list:
        """Return the newest job of each name with this prefix, at most so many, by name."""
        beyond = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix and ord(prefix[-1]) < 0xD7FF else None
        return [self.find(job) for job, in self._db.read(
            "SELECT max(id) FROM job INDEXED BY job_named WHERE name IS NOT NULL AND name>=:prefix AND (:beyond IS NULL OR name<:beyond) "
            "AND (:states IS NULL OR instr(:states, '/'||state||'/')) GROUP BY name ORDER BY name LIMIT :most",
            {"prefix": searchable(prefix), "beyond": beyond, "states": slashed(states), "most": most})]

    def labels(self) -> list:
        """Return the labels that jobs have."""
        return sorted({label for row in self._db.read("SELECT DISTINCT labels FROM job INDEXED BY job_label WHERE labels IS NOT NULL")
                       for label in row[0].strip("/").split("/")})

    def parents_named(self, options: dict, newest: int, batch) -> list:
        """Return (id, whether any end will do) of the parents that the options `after`, `after_any` and `after_batch` name.

        A batch is a negative number.  `newest`: the id that `last` stands for; `batch`: the one that is being stored, which no
        job of it can come after.
        """
        found = []
        for option in PARENT_OPTIONS:
            for ref in options.get(option, ()):
                if option != "after_batch":
                    found += [(parent, int(option == "after_any")) for parent in self._parents_of(ref, newest)]
                elif ref == str(batch):
                    raise UserError("a job can't come after the batch that it is part of")
                else:
                    found.append((-self._store.queues.batch(ref, but=batch).id, 1))
        return found

    def _parents_of(self, ref: str, newest: int) -> list:
        if ref == "last" and newest:
            return [newest]
        number = self._store.schedules.job_or_schedule(ref)
        if number is not None:
            return [number]
        try:
            return self.ids(ref)
        except UserError:
            raise UserError("no job %s to come after" % quoted(ref)) from None

    def jobs(self, states=(), limit: int = 0, before=None, since=None, sort=None, **filters) -> list:
        """Return the jobs that match every filter given (see JOB_FILTER), newest first, at most `limit` (0: 1,000).

        `before`: with lower ids than this.  `since`: the earliest time of creation.  `sort`: a column to order by instead.
        """
        values = filter_values(states, limit=limit or 1000, before=2**62 if before is None else before, since=since, **filters)
        order = sort + ", id" if sort else "id DESC"
        return [Job.listed(row) for row in self._db.read(
            "SELECT " + JOB_SELECT + " FROM job " + narrowest(values) + " AND id<:before AND (:since IS NULL OR created_at>=:since) "
            "AND " + JOB_FILTER + " ORDER BY " + order + " LIMIT :limit", values)]

    def parents(self, ids: list) -> dict:
        """Return, for each job that comes after others, the ids of those; a negative id is a batch."""
        found = {}
        for job_id in ids:
            for parent, in self._db.read("SELECT parent FROM dep INDEXED BY dep_child WHERE child=?", (job_id,)):
                found.setdefault(job_id, []).append(parent)
        return found

    def children(self, job) -> list:
        """Return the ids of the jobs that come after a job, or after its batch."""
        return [child for child, in self._db.read(
            "SELECT child FROM dep WHERE parent=:id UNION SELECT child FROM dep WHERE parent=-:batch ORDER BY 1",
            {"id": job.id, "batch": job.batch})]

    def oldest_waiting(self, queue=None):
        """Return the job, of one queue or of all, that could run and has waited longest, or None."""
        ids = [job_id for job_id, _ in self.first_ready(queue)]
        ids += [job_id for job_id, in self._db.read(  # these are due, and no supervisor has made them ready
            "SELECT id FROM job INDEXED BY job_due WHERE gate=1 AND run_at<=:due AND (:queue IS NULL OR queue=:queue) "
            "ORDER BY run_at LIMIT 1", {"queue": queue, "due": self._db.clock() - LOOK_S})]
        return self.find(min(ids)) if ids else None

    def first_ready(self, queue=None) -> list:
        """Return (id, queue) of the first ready job of each priority, of one queue or of all."""
        ids, places = [], [(name, 2**62) for name, in self._db.read(
            "SELECT name FROM queue WHERE :queue IS NULL OR name=:queue", {"queue": queue})]
        while places:  # in each queue and priority the first job has waited longest
            name, above = places.pop()
            rows = self._db.read("SELECT id, priority FROM job INDEXED BY job_ready WHERE queue=? AND gate=0 AND priority<? "
                              "ORDER BY priority DESC, id LIMIT 1", (name, above))
            for job_id, priority in rows:
                ids.append((job_id, name))
                places.append((name, priority))
        return ids

    def ready_since(self) -> dict:
        """Return, per queue that has ready jobs, since when the first of them could have run."""
        since = {}
        for job_id, name in self.first_ready():
            for _, run_at in self._db.rows("job", "id, run_at", "job WHERE id=?", (job_id,)):
                since[name] = min(run_at, since.get(name, run_at))
        return since

    def history(self, job_id: int) -> list:
        """Return every attempt ever begun, oldest first; the one that runs has no end and the outcome `running`."""
        attempts = [Attempt._make(row) for row in self._db.rows(
            "history", ", ".join(Attempt._fields), "history WHERE job=? AND attempt IS NOT NULL ORDER BY seq", (job_id,))]
        job = self.find(job_id)
        if job is not None and job.state == "processing":
            attempts.append(Attempt(job.attempt, job.worker, None, job.started_at, None, None, "running", None, None, None))
        return attempts

    def why_waiting(self, job) -> list:
        """Return (reason, detail) for everything that keeps a waiting job from running now, from the facts that claims use."""
        reasons = []
        now, job = self._db.clock(), job._replace(queue=searchable(job.queue))
        if job.held:
            reasons.append(("held", None))
        parents = [p for _, p in self._db.rows("dep", "child, parent", "dep WHERE child=? AND done=0 LIMIT 6", (job.id,))]
        if parents:
            reasons.append(("parents", parents))
        if job.run_at > now:
            reasons.append(("time", job.run_at))
        if job.gate == KEYED:
            reasons.extend(("key", holder) for _, holder in self._db.rows("keylock", "key, job", "keylock WHERE key=?", (job.key,)))
        rows = self._db.rows("queue", "name, paused, max_running, next_at, every", "queue WHERE name=?", (job.queue,))
        _, paused, limit, next_at, every = rows[0] if rows else (None, 0, None, 0, None)
        if paused:
            reasons.append(("paused", job.queue))
        if limit is not None and self._store.queues.counts(job.queue)["processing"] >= limit:
            reasons.append(("limit", limit))
        if every is not None and now < next_at <= now + every:
            reasons.append(("rate", next_at))
        if job.gate in (READY, RESERVED):
            ahead = self._db.read("SELECT count(*) FROM job INDEXED BY job_ready WHERE queue=:queue AND gate=0 AND "
                               "(priority>:priority OR priority=:priority AND id<:id)", job._asdict())[0][0]
            if ahead and job.gate == READY:
                reasons.append(("behind", ahead))
        return reasons

    def event_columns(self, after: int) -> list:
        """Return the first 1,000 changes of state with a number above `after`, as the columns EVENT; [] if there is none."""
        rows = self._db.rows("history", "seq, finished_at, job, outcome, state, attempt, worker, exit_code, signal, error, started_at, "
                             "duration", "history WHERE seq>? ORDER BY seq LIMIT 1000", (after,))
        columns = dict(zip(EVENT, zip(*rows)))
        if rows:
            columns.update(at=list(map(utc, columns["at"])), started_at=list(map(utc, columns["started_at"])),
                           error=[signal_text(number) if text is None and number is not None else text
                                  for number, text in zip(columns["signal"], columns["error"])])
        return list(columns.values())

    def events(self, after: int = 0) -> list:
        """Return the same as dicts."""
        return [dict(zip(EVENT, row)) for row in zip(*self.event_columns(after))]

    def deaths_since(self, after: int, queues=None) -> int:
        """Return how many jobs died after an event, in these queues (see startable)."""
        return self._db.read(
            "SELECT count(*) FROM history JOIN job ON job.id=history.job WHERE seq>:after AND history.state='dead' "
            "AND (:queues IS NULL OR instr(:queues, '/'||queue||'/'))", {"after": after, "queues": queues})[0][0]

    def count_ended(self, after: int) -> int:
        """Return how many attempts ended after an event."""
        return self._db.read("SELECT count(*) FROM history WHERE seq>? AND attempt IS NOT NULL", (after,))[0][0]

    def last_event(self) -> int:
        return self._db.read("SELECT coalesce(max(seq), 0) FROM history")[0][0]

    def states(self, ids: list) -> dict:
        """Return {id: state} of jobs; one that was removed is missing."""
        states = {}
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start:start + AT_ONCE]
            states.update(self._db.rows("job", "id, state", "job WHERE id IN " + marks(some), some))
        return states

    def counts_since(self, moments) -> list:
        """Return how many attempts ended at each of these moments, of which the last is the earliest, or later."""
        return list(self._db.read(
            "SELECT " + ", ".join(["count(CASE WHEN finished_at>=? THEN 1 END)"] * (len(moments) - 1) + ["count(*)"]) +
            " FROM history WHERE finished_at>=? AND attempt IS NOT NULL", moments)[0])

    def finished_since(self, since: float, most: int = 50000) -> list:
        """Return the attempts (Ended) that ended at `since` or later, newest first, from the last `most` rows."""
        return [Ended._make(row) for row in self._db.rows(
            "history", "history.finished_at, history.duration, job.queue, job.command, outcome='completed', history.state='failed', "
            "CASE WHEN job.attempt=1 THEN max(0, history.started_at-job.run_at) END", "history JOIN job ON job.id=history.job "
            "WHERE seq>(SELECT max(seq)-:most FROM history) AND history.attempt IS NOT NULL "
            "AND history.finished_at>=:since ORDER BY seq DESC", {"since": since, "most": most})]

    def ended_since(self, after: int, batch: int) -> list:
        """Return what ended 1,000 jobs of a batch (JobEnd) in the rows of the history above `after`, oldest first."""
        return [JobEnd._make(row) for row in self._db.rows(
            "history", "history.seq, history.job, history.attempt, history.state, history.started_at, history.duration, history.exit_code, "
            "history.signal, history.error, job.command, job.name, job.attempts, history.finished_at",
            "history JOIN job ON job.id=history.job WHERE seq>:after AND job.batch=:batch AND job.state=history.state "
            "AND history.state IN ('completed', 'dead', 'cancelled') ORDER BY seq LIMIT 1000",
            {"after": after, "batch": batch})]

    def flaky(self, batch: int) -> list:
        """Return (id, name, tries) of each completed job of a batch, up to 1,000, that needed more than one."""
        return self._db.rows("job", "id, name, attempts", "job INDEXED BY job_batch WHERE batch=? AND state='completed' AND attempts>1 "
                             "ORDER BY id LIMIT 1000", (batch,))


NO_ENV = b"\0"  # in an export without environments: the importing user's takes its place


def without_env(options) -> str:
    """Return the options of a schedule's job, JSON, without the environment variables among them."""
    import json
    job = stored_job(options)
    job.pop("env", None)
    return json.dumps(job)


class Browse(Part):
    """What the web page asks.  The cost of each question is bounded, whatever the queue holds."""

    LOOK_S = 0.1             # how long one call of `page` looks for jobs
    ORDERS = ("newest", "oldest", "ended", "next")

    def page(self, limit: int, before=None, order="newest", like=None, **filters):
        """Return (jobs that match every filter given, where to go on: the `before` of the next call, or None at the end).

        The orders are: the newest first; the oldest first; what ended last, by the history; and `next`, the ready jobs as they will be
        claimed.  `before` is an id, a row of the history, or for `next` "PRIORITY.ID".  If few jobs match, the caller goes on several
        times.
        """
        model = None if like is None else self._store.look.find(like)
        if model is None and like is not None:
            return [], None
        values = filter_values(like=model, **{
            name: searchable(value) if isinstance(value, str) else value for name, value in filters.items()})
        look = {"oldest": self._by_id_upwards, "ended": self._by_end, "next": self._by_turn}.get(order, self._by_id)
        found, step, until = [], 2000, time.monotonic() + self.LOOK_S
        while True:
            jobs, before = look(values, before, step, limit - len(found))
            found += jobs
            if before is None or len(found) >= limit or time.monotonic() > until:
                return found, before
            step *= 2

    def _by_id(self, values: dict, before, step: int, limit: int) -> tuple:
        start = before if before is not None else self._newest() + 1
        low = max(0, start - 1 - step)
        jobs = self._between(values, low, start - 1, "id DESC", limit)
        onward = jobs[-1].id if len(jobs) >= limit else low + 1
        return jobs, onward if onward > 1 else None

    def _by_id_upwards(self, values: dict, before, step: int, limit: int) -> tuple:
        low = before or 0
        jobs = self._between(values, low, low + step, "id", limit)
        onward = jobs[-1].id if len(jobs) >= limit else low + step
        return jobs, onward if onward < self._newest() else None

    def _newest(self) -> int:
        return self._db.read("SELECT max(id) FROM job")[0][0] or 0

    def _between(self, values: dict, low: int, high: int, order: str, limit: int) -> list:
        return [Job.of(row) for row in self._db.read(
            "SELECT " + JOB_SELECT + " FROM job " + narrowest(values) + " AND id>:low AND id<=:high AND " + JOB_FILTER + " ORDER BY " +
            order + " LIMIT :limit", dict(values, low=low, high=high, limit=limit))]

    def _by_end(self, values: dict, before, step: int, limit: int) -> tuple:
        """Look at rows of the history: the newest of a job tells when it ended."""
        start = before if before is not None else self._store.look.last_event() + 1
        low = max(0, start - 1 - step)
        rows = self._db.read(
            "SELECT place, " + JOB_SELECT + " FROM (SELECT seq AS place, job AS ended FROM history WHERE seq>:low AND seq<:start) "
            "CROSS JOIN job ON job.id=ended WHERE finished_at IS NOT NULL AND NOT EXISTS(SELECT 1 FROM history INDEXED BY history_job "
            "WHERE history.job=ended AND seq>place) AND " + JOB_FILTER + " ORDER BY place DESC LIMIT :limit",
            dict(values, low=low, start=start, limit=limit))
        onward = rows[-1][0] if len(rows) >= limit else low + 1
        return [Job.of(row[1:]) for row in rows], onward if onward > 1 else None

    def _by_turn(self, values: dict, before, step: int, limit: int) -> tuple:
        """Look at ready jobs: the highest priority first, then the lowest id."""
        priority, last = before or (2**62, 0)
        queues, turns = [values["queue"]] if values["queue"] else [row.name for row in self._store.queues.list()], []
        for name in queues:
            place = {"queue": name, "priority": priority, "last": last, "step": step}
            turns += self._db.read("SELECT -priority, id FROM job INDEXED BY job_ready WHERE queue=:queue AND gate=0 "
                                   "AND priority=:priority AND id>:last ORDER BY id LIMIT :step", place)
            turns += self._db.read("SELECT -priority, id FROM job INDEXED BY job_ready WHERE queue=:queue AND gate=0 "
                                   "AND priority<:priority ORDER BY priority DESC, id LIMIT :step", place)
        jobs, turns = [], sorted(turns)[:step]
        for minus, job_id in turns:
            jobs += [Job.of(row) for row in self._db.read("SELECT " + JOB_SELECT + " FROM job WHERE id=:id AND " + JOB_FILTER,
                                                          dict(values, id=job_id))]
            if len(jobs) >= limit:
                return jobs, (-minus, job_id)
        return jobs, (-turns[-1][0], turns[-1][1]) if len(turns) == step else None

    def dead_groups(self) -> list:
        """Return the newest 50,000 dead jobs grouped by their command and end, the largest groups first."""
        rows = self._db.read(
            "SELECT count(*), max(id), min(finished_at), max(finished_at) FROM (SELECT id, command, error, exit_code, signal, finished_at "
            "FROM job INDEXED BY job_settled WHERE state IN ('completed','failed','dead','cancelled') AND state='dead' "
            "ORDER BY id DESC LIMIT 50000) GROUP BY command, error, exit_code, signal ORDER BY 1 DESC, 2 DESC LIMIT 100")
        return [{"count": count, "job": self._store.look.find(job), "first_at": first, "last_at": last} for count, job, first, last in rows]

    def failures(self, limit: int) -> list:
        """Return (job, attempt) of the latest attempts that failed, one per job."""
        rows = self._db.read("SELECT job, attempt FROM history WHERE seq>(SELECT max(seq)-5000 FROM history) AND attempt IS NOT NULL "
                             "AND state IN ('failed','dead') ORDER BY seq DESC LIMIT 100")
        latest = {}
        for job, attempt in rows:
            latest.setdefault(job, attempt)
        found = [(self._store.look.find(job), attempt) for job, attempt in list(latest.items())[:limit]]
        return [(job, attempt) for job, attempt in found if job is not None]

    def ends(self, after: int) -> tuple:
        """Return ([(second, whether they failed, number of attempts)] of the attempts that ended after an event, the newest event)."""
        last = self._store.look.last_event()
        return self._db.read(
            "SELECT CAST(finished_at AS INTEGER), state<>'completed', count(*) FROM history WHERE seq>? AND seq<=? AND finished_at>0 "
            "AND attempt IS NOT NULL AND state IN ('completed','failed','dead') GROUP BY 1, 2", (after, last)), last

    def family(self, job) -> tuple:
        """Return (parents, children) of a job and its batch, at most 20 of each, as dicts; a batch is {"batch": its id}."""
        def members(rows) -> list:
            jobs = [(number, self._store.look.find(number)) for number, in rows]
            return [{"batch": -number} if number < 0 else {"id": number, "state": job.state, "name": job.name, "command": job.command[:80]}
                    for number, job in jobs if number < 0 or job is not None]
        return (members(self._db.read("SELECT parent FROM dep INDEXED BY dep_child WHERE child=? LIMIT 20", (job.id,))),
                members(self._db.read("SELECT child FROM dep WHERE parent=:id OR parent=-:batch ORDER BY parent<0, child LIMIT 20",
                                      {"id": job.id, "batch": job.batch})))


# A job that may be removed if it is one of those that follow.
REMOVABLE = "state IN ('completed','dead','cancelled') AND NOT EXISTS(SELECT 1 FROM followup WHERE parent=job.id) AND id IN "


class Keep(Part):
    """Retention, removal, export and import, backup, check and repair."""

    TABLES = ("config", "env", "queue", "batch", "job", "dep", "followup", "keylock", "history", "schedule", "tally", "mishap",
              "sqlite_sequence")

    def tidy(self, after: int, most: int = 500) -> tuple:
        """Remove finished jobs that are older than keep_finished, logs first, going by the next `most` rows of the history.

        Every job that ended has its row there, in order of the ends; `after` is the last row examined.
        Return (the row to go on from, in how many seconds there is more to do; 0: at once).
        """
        keep = self._store.settings.value("keep_finished")
        if keep is None:
            return after, TIDY_IDLE_S
        rows = self._db.read("SELECT seq, history.finished_at, job.id, job.state, job.finished_at FROM history "
                          "LEFT JOIN job ON job.id=history.job WHERE seq>? ORDER BY seq LIMIT ?", (after, most))
        untold = {parent for parent, in self._db.read("SELECT parent FROM followup")}  # after the ends: others' children know
        now = self._db.clock()
        old, stray, limit, pause = set(), [], now - keep, 0.0 if len(rows) == most else min(keep, TIDY_IDLE_S)
        for seq, ended_at, job, state, finished_at in rows:
            if not all(isinstance(moment, (float, int, type(None))) for moment in (ended_at, finished_at)):
                raise WrongValue("history %s has a value of a wrong type" % quoted(seq))
            if ended_at is not None and limit <= ended_at <= now:  # a row from the future (a wrong clock) does not stop here
                pause = min(ended_at - limit, TIDY_IDLE_S)
                break
            if job in untold:
                pause = LOOK_S
                break
            after = seq
            if state in ("completed", "cancelled") and finished_at is not None and finished_at < limit:
                old.add(job)
            elif job is None:
                stray.append((seq,))
        self._delete(sorted(old))
        if stray:  # each was the newest row when its job was removed, and the trigger spares that
            with self._db.undo, Transaction(self._db):
                self._db.connection.executemany("DELETE FROM history WHERE seq=? AND seq<(SELECT max(seq) FROM history)", stray)
        return after, pause

    def _delete(self, ids: list) -> None:
        """Remove jobs that have ended, with their logs, but none whose children have yet to be told of its end."""
        ids = [job for job, in self._db.read("SELECT id FROM job WHERE " + REMOVABLE + marks(ids), ids)] if ids else []
        if ids:
            self._db.files.remove_logs(ids)
            with self._db.undo, Transaction(self._db):
                batches = set(self._db.execute("SELECT batch FROM job WHERE batch IS NOT NULL AND id IN " + marks(ids), ids))
                self._db.execute("DELETE FROM job WHERE " + REMOVABLE + marks(ids), ids)
                self._db.execute("DELETE FROM history WHERE seq<(SELECT max(seq) FROM history) AND "
                                 "seq>(SELECT max(seq)-1000 FROM history) AND NOT EXISTS(SELECT 1 FROM job WHERE id=history.job)")
                self._db.connection.executemany("DELETE FROM batch WHERE id=?1 AND unfinished<=0 AND NOT EXISTS("
                                     "SELECT 1 FROM job INDEXED BY job_batch WHERE job.batch=?1)", batches)

    def purge(self, ids) -> list:
        """Remove finished jobs and their logs; return (id, result): `removed`, or the state of a job that is not finished."""
        ids, results = list(ids), []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start:start + AT_ONCE]
            self._store.followups.catch_up()
            found = left = self._store.look.states(some)
            while any(state in FINAL for state in left.values()):
                self._delete(some)
                self._store.followups.catch_up()
                left = self._store.look.states(some)
            results += [(job, left.get(job, "removed")) for job in some if job in found]
        return results

    def export(self, env: bool = True):
        """Yield every row of every table that makes up the queue, as (table, row as a dict), from one snapshot.

        Without `env`, leave out the environments of jobs, and the variables that schedules were given.
        """
        with self._db.undo, self._db.undo:  # twice, as with Transaction: an interrupt may come in place of one __exit__
            self._db.patiently(lambda: self._db.execute("BEGIN"))
            count, inputs = 0, {row[0] for row in self._db.execute("SELECT DISTINCT stdin FROM job WHERE stdin IS NOT NULL")}
            for table in self.TABLES:
                cursor = self._db.execute("SELECT * FROM " + table)
                names = next(zip(*cursor.description))
                for row in map(lambda row: dict(zip(names, row)), cursor):
                    count += 1
                    if not env and table == "env" and row["id"] not in inputs:
                        row["data"] = NO_ENV
                    elif not env and table == "schedule":
                        row["options"] = without_env(row["options"])
                    yield table, row
            yield "end", {"rows": count}  # without this row the file was cut short

    def restore(self, rows) -> int:
        """Write the rows of an export into this queue, which must be empty; return the number of jobs.

        A job that ran when it was exported is pending again, as after a shutdown.
        """
        with self._db.undo, Transaction(self._db):
            if self._db.execute("SELECT 1 FROM job UNION ALL SELECT 1 FROM schedule LIMIT 1").fetchone():
                raise UserError("the queue holds jobs already: import into a fresh one, with --db")
            self._restore_rows(rows)
            for statement in SIGNALS_FROM_WORDS:
                self._db.execute(statement)
            for fault in [fault for fault, _, _ in self.wrong_values()] or self._lost():
                raise UserError("%s: not from `%s export`" % (fault, PROGRAM))
            self._store.schedules.settle_zones()
            for name, in self._db.execute("SELECT DISTINCT queue FROM job UNION SELECT name FROM queue").fetchall():
                self._store.queues.need(name)
                self._store.queues.open_tally(name)  # also for a queue that came with the rows
            self._db.execute("UPDATE job SET pool=NULL, gate=CASE gate WHEN 5 THEN 0 ELSE gate END WHERE pool IS NOT NULL")
            self._db.execute("UPDATE job SET state='pending', gate=0, worker=NULL, cancel=0, attempts=max(0, attempts-1) "
                             "WHERE state='processing'")
            self._db.execute("UPDATE env SET data=? WHERE data=?", (kept(
                OS.environment(), self._store.settings.value("env_keep")), NO_ENV))
            self._store.queues.recount()
            self._db.hint(1)
            return self._db.execute("SELECT count(*) FROM job").fetchone()[0]

    def _restore_rows(self, rows) -> None:
        columns = {table: {row[1] for row in self._db.execute("PRAGMA table_info(%s)" % table)} for table in self.TABLES}
        count = end = 0
        for where, table, row in rows:
            if table == "end":
                end = row.get("rows")
                continue
            if table not in self.TABLES or not row or not columns[table].issuperset(row):
                raise UserError("line %d: not from `%s export` of this version" % (where, PROGRAM))
            count += 1
            try:
                self._refuse_row(table, row)
                if table == "sqlite_sequence":  # earlier inserts have made a row
                    self._db.execute("DELETE FROM sqlite_sequence WHERE name=:name", row)
                self._db.execute("INSERT OR REPLACE INTO " + table + "(" + ", ".join(row) + ") VALUES(" +
                                 ", ".join(":" + name for name in row) + ")", row)
            except (sqlite3.Error, OverflowError, UserError) as error:
                raise UserError("line %d: %s" % (where, error)) from None
        if end != count or not count:
            raise UserError("the file is cut short: it has %d rows, and no end that says so" % count)

    def _refuse_row(self, table: str, row: dict) -> None:
        """Refuse an imported row with a value that `enqueue`, `config set`, `queue` or `cron add` refuses."""
        number = within(0, LARGEST)
        parsers = {
            "job": dict({option.column: option.parse for option in JOB_OPTIONS.values() if option.column}, held=within(0, 1),
                        attempt=within(0, 10**9), attempts=within(0, 10**9), crashes=within(0, 10**9), snoozes=within(0, 10**9),
                        umask=within(0, 0o777), labels=lambda raw, what: parse_labels(str(raw).strip("/").split("/"), what),
                        cwd=lambda raw, what: isinstance(raw, bytes) or parse_directory(raw, what),
                        command=lambda raw, what: Plan([{"command": os.fsdecode(raw) if isinstance(raw, bytes) else raw}])),
            "queue": {"name": parse_queue, "max_running": within(0, 10**6), "rate": parse_rate, "every": within(1e-6, LARGEST, float)},
            "batch": {"total": number, "unfinished": within(-LARGEST, LARGEST)},
            "schedule": {"name": parse_name, "spec": lambda raw, what: parse_cron(raw), "every": parse_duration,
                         "options": lambda raw, what: Plan([stored_job(raw)])},
            "sqlite_sequence": {"seq": number}}.get(table, {})
        for column, value in row.items():
            parse = parsers.get(column, number if column in ("id", "seq") else None)
            if value is not None and parse is not None:
                parse(value, "%s.%s" % (table, column))
        if table == "config":
            parse_setting(setting_key(row.get("key")), row.get("value"))

    def backup(self, path: str, logs: bool = False) -> None:
        """Make a consistent copy of the database while it is in use, and with `logs` one of the logs; `path` must not exist."""
        part = path + ".part"
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise UserError("%s exists: another backup is under way, or was cut short; remove it" % plain(part)) from None
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            if any(os.path.lexists(part + end) for end in ("-wal", "-journal")):  # SQLite would apply it to the copy
                raise UserError("there is a file beside %s that SQLite would read: give another name" % plain(part))
            copy = sqlite3.connect(part)
            self._db.patiently(lambda: self._db.connection.backup(copy))
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()  # one file, with nothing beside it
            copy.close()
            with Store.existing(part) as mine:
                mine.workers.release_workers(mine.workers.workers())  # what runs belongs to the original
                mine.db.mark()  # if the copy is put back beside a -wal of the original, that is recognised as foreign
            if os.path.exists(path):
                raise UserError("%s exists: give another name" % plain(path))
            if logs:  # after the database: each attempt that it knows has its log by now
                self._db.files.copy_logs(Files(path))
            os.replace(part, path)
        finally:
            remove(part)

    def free_bytes(self) -> tuple:
        """Return how many bytes of the database file are free for new rows, and how many there are in all."""
        size, pages, free = [self._db.read(pragma)[0][0] for pragma in ("PRAGMA page_size", "PRAGMA page_count", "PRAGMA freelist_count")]
        return size * free, size * pages

    def compact(self) -> bool:
        """Give free pages back to the file system; return whether that was done.

        It holds SQLite's lock for some seconds per 100 MB, so it is not done while a supervisor or worker is listed.
        """
        if self._store.workers.supervisors() or self._store.workers.workers():
            return False
        try:
            self._db.patiently(lambda: self._db.execute("VACUUM"))
        except sqlite3.OperationalError as error:
            if sqlite_fault(error) not in (BUSY, FULL):
                raise
            return False
        self._db.read("PRAGMA wal_checkpoint(TRUNCATE)")  # the file shrinks only then
        return True

    def damage(self) -> list:
        """Return what SQLite finds wrong with the file itself, as its lines; [] if nothing is.  Nothing of ours repairs it."""
        return [line for line, in self._db.read("PRAGMA integrity_check(20)") if line != "ok"]

    def damage_at_a_glance(self) -> list:
        """Return what SQLite finds wrong with the file, its indexes aside; [] too for a file that takes longer than a second or so."""
        if os.stat(self._db.path).st_size > GLANCE_BYTES:
            return []
        return [line for line, in self._db.read("PRAGMA quick_check(1)") if line != "ok"]

    def check(self) -> list:
        """Return what is wrong inside a sound file, as lines of text; [] if nothing is."""
        faults = [fault for fault, _, _ in self.wrong_values()]
        if faults:
            return faults
        wrong = self._db.read("SELECT queue, state FROM tally WHERE n<>(SELECT count(*) FROM job WHERE job.queue=tally.queue "
                           "AND job.state=tally.state)")
        if wrong:
            faults.append("the counts of queue %s are wrong" % ", ".join(sorted({plain(queue) for queue, _ in wrong})))
        faults.extend("job %d of queue %s is ready, but no claim would find it" % (job, plain(queue)) for job, queue in self._db.read(
            "SELECT job.id, queue.name FROM queue JOIN job ON job.id=("
            " SELECT id FROM " + startable(None) + " ORDER BY priority DESC, id LIMIT 1) "
            "WHERE top IS NULL OR head IS NULL OR top<job.priority OR top=job.priority AND head>job.id"))
        stray = self._db.read("SELECT id FROM job WHERE state='processing' AND NOT EXISTS("
                           "SELECT 1 FROM worker WHERE worker.id=job.worker)")
        faults.extend("job %d is processing, but its worker is not listed" % job for job, in stray)
        return faults + self._lost()

    def _lost(self) -> list:
        return ["job %d waits without a gate" % job for job, in self._db.read(
            "SELECT id FROM job WHERE state IN ('pending','failed') AND gate IS NULL")]

    def wrong_values(self) -> list:
        """Return (what is wrong, statement that repairs it, its values) for each value that its column can't have.

        In a job, queue, batch or schedule a neutral value replaces it, and a waiting job is held.  Any other row is deleted.
        """
        found = [fault for table, text in schema_texts().items() if text.startswith("CREATE TABLE")
                 for fault in self._wrong_in(table, text)]
        found += [("setting %s can't be read: %s" % (plain(str(key)), quoted(value)), "DELETE FROM config WHERE key=?", (key,))
                  for key, value in self._db.read("SELECT key, value FROM config")
                  if key in SETTINGS and is_valid(str(value)) and not self._readable(key, value)]
        found += [("the counter of %s ids stands at %d, and leaves none" % row, "UPDATE sqlite_sequence SET seq=("
                   "SELECT coalesce(max(id), 0) FROM %s) WHERE name='%s'" % (row[0], row[0]), ()) for row in self._counters()]
        found += [("job %d is %s but has a gate" % row, "UPDATE job SET gate=NULL WHERE id=?", row[:1]) for row in self._db.read(
            "SELECT id, state FROM job WHERE gate IS NOT NULL AND "
            "(state NOT IN ('pending','failed') OR gate NOT BETWEEN 0 AND 5) LIMIT 1000")]
        return found

    def _wrong_in(self, table: str, text: str) -> list:
        """Return what wrong_values returns, for one table; `text` is its CREATE statement."""
        names = {int: "integer", float: "real", str: "text", bytes: "blob", type(None): "null"}
        found = []
        parts = [part.partition("PRIMARY KEY")[::2] for part in definitions(text) if "PRIMARY KEY" in part]
        keys = [column for before, after in parts for column in before.split()[:1] or after.strip("()").split(", ")]
        quoted_key = "||' '||".join("quote(%s)" % column for column in keys)
        key = "CAST(%s AS BLOB)" % quoted_key if "WITHOUT ROWID" in text else "rowid"
        label = "CAST(name AS BLOB)" if keys == ["name"] else key  # a schedule or queue is known by its name
        for column, kinds in column_types(table).items():
            wrong = "typeof(%s) NOT IN (%s)" % (column, ", ".join("'%s'" % names[kind] for kind in kinds))
            if int in kinds:
                wrong += " OR %s NOT BETWEEN %d AND %d" % (column, -LARGEST, LARGEST)
            words = WORDS.get("%s.%s" % (table, column))
            if words:
                wrong += " OR %s NOT IN ('%s')" % (column, "', '".join(words))
            rows = self._db.read("SELECT %s, %s, %s FROM %s WHERE %s LIMIT 1000" % (key, column, label, table, wrong))
            if str in kinds:  # only texts with more than printable ASCII can be not valid
                rows += [row for row in self._db.read("SELECT %s, %s, %s FROM %s WHERE typeof(%s)='text' AND %s GLOB '*[^ -~]*'" % (
                    key, column, label, table, column, column)) if not is_valid(row[1])]
            for where, value, name in rows:
                found.append(("%s %s has a wrong value in %s: %s" % (
                    table, plain(name if isinstance(name, bytes) else str(name)), column, quoted(value)),
                    *self._repairs(table, column, kinds, key, where)))
        return found

    def _counters(self) -> list:
        """Return (table, last id given) of the tables whose ids have passed LARGEST, so that none is left."""
        parts = ["SELECT name, seq FROM sqlite_sequence WHERE seq>%d" % LARGEST]  # each enqueue runs this: index lookups, no sort
        parts += ["SELECT '%s', max(id) FROM %s WHERE id>%d" % (table, table, LARGEST)
                  for table in ("job", "env", "batch", "supervisor", "worker")]
        return list(dict.fromkeys(row for row in self._db.read(" UNION ALL ".join(parts)) if row[1] and row[0] in schema_texts()))

    def refuse_counters(self, tables: tuple) -> None:
        """Refuse to add a row to one of `tables` that has no id left: SQLite would report that the disk is full."""
        for table, last in [row for row in self._counters() if row[0] in tables]:
            raise WrongValue("no id is left for a new %s after %d" % (table, last))

    def _readable(self, key: str, value) -> bool:
        try:
            parse_setting(key, value)
            return True
        except UserError:
            return False

    def _repairs(self, table: str, column: str, kinds: tuple, key: str, where) -> tuple:
        """Return the statement, with its values, that removes a wrong value."""
        if table not in ("job", "queue", "batch", "schedule") or column in ("id", "name") and type(None) not in kinds:
            return "DELETE FROM %s WHERE %s IS ?" % (table, key), (where,)
        words, held = WORDS.get("%s.%s" % (table, column)), ""
        neutral = words[0] if words else None if type(None) in kinds else kinds[0]()
        if (table, column) == ("job", "state"):
            neutral, held = "dead", ", gate=NULL, worker=NULL"
        elif table == "job":  # if a column is assigned twice, the last assignment counts
            held = ", gate=CASE WHEN state IN ('pending','failed') THEN 2 END, held=1, error='had a wrong value in %s'" % column
        return "UPDATE %s SET %s=?%s WHERE %s=?" % (table, column, held, key), (neutral, where)

    def repair_values(self) -> list:
        """Remove every value that its column can't have; return what was wrong, as lines of text."""
        with self._db.undo, Transaction(self._db):
            wrong = self.wrong_values()
            for _, sql, values in wrong:
                self._db.execute(sql, values)
            for name, in self._db.execute("SELECT name FROM queue").fetchall():
                self._store.queues.open_tally(name)
            self._store.queues.recount()
            self._db.hint()
        return [fault for fault, _, _ in wrong]

    def repair(self) -> None:
        """Repair everything that `check` can find, except damage to the file itself."""
        self.repair_values()
        with self._db.undo, Transaction(self._db) as now:
            self._store.queues.recount()
            self._store.workers.release_unlisted("crashed", "worker died", now)
            for job in self._db.jobs("job WHERE state IN ('pending','failed') AND gate IS NULL"):
                self._store.life.regate(job, now)
            self._db.execute("INSERT INTO followup(parent, state, child, last) SELECT DISTINCT parent, parents.state, 0, ("
                             "SELECT max(id) FROM job) FROM dep JOIN job parents ON parents.id=parent JOIN job ON job.id=child "
                             "WHERE done=0 AND job.gate=3 AND parents.state IN ('completed','dead','cancelled')")

    def orphaned_logs(self) -> list:
        """Return the paths of logs whose job no longer exists."""
        found = []
        for folder, _, names in os.walk(self._db.files.logs):
            for name in names:
                job_id = name.split(".")[0]
                if job_id.isdigit() and self._store.look.find(job_id) is None:
                    found.append(os.path.join(folder, name))
        return found


class Store:
    """One database and all that is asked of it, in one part per subject; safe to use from any number of processes.

    A missing database is made.  See Database for `patience`.
    """

    def __init__(self, path=None, patience: float = PATIENCE_S, clock=time.time, open_file=Database.open):
        self.db = Database(path, patience, clock)
        self.settings = Settings(self)
        self.queues = Queues(self)
        self.life = Life(self)
        self.followups = Followups(self)
        self.claims = Claims(self)
        self.workers = Workers(self)
        self.handed = Handed(self)
        self.schedules = Schedules(self)
        self.look = Look(self)
        self.browse = Browse(self)
        self.keep = Keep(self)
        try:
            open_file(self.db, self._settle)
            self.workers.leave_behind()
        except BaseException:
            self.close()
            raise

    def _settle(self) -> None:
        """Add the rows that tables which were just made or migrated lack."""
        self.queues.need("default")
        self.schedules.settle_zones()

    @classmethod
    def existing(cls, path: str, patience: float = PATIENCE_S):
        """Return the Store of a database that another process has made; raise QueueGone if it is missing."""
        return cls(path, patience, open_file=Database.open_existing)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self.db.close()

    def enqueue(self, command, **options) -> int:
        """Store one job and return its id; see Queue.enqueue."""
        return self.enqueue_many([dict(options, command=command)])[0]

    def enqueue_many(self, items, label=None, reserved_for=None) -> list:
        """Store many jobs, all or none; return their ids in order.  An item is a command, a dict, or (line number, either).

        See enqueue_plan for the rest.
        """
        return list(chain(*self.enqueue_plan(Plan(items), label, reserved_for).ids))

    def enqueue_plan(self, plan, label=None, reserved_for=None, progress=None):
        """Store the jobs of a Plan, all or none, and return what was Stored.

        With `label` the jobs form a batch; `reserved_for` is the supervisor of the `run` that takes them.
        `progress(n)` is called now and then with the number stored so far.
        """
        with self.db.undo, Transaction(self.db) as now:
            ids = plan.store(self, now, label, reserved_for, progress)
            more = self.followups.follow_added(now) <= 0
        if more:
            self.followups.catch_up()
        return Stored(ids, plan.batch, plan.newest, plan.duplicates)


# == Runner ============================================================================
# Runs the attempts of one worker, one after another: output file, process, timeout, and the end of what is left.
# Calls Platform differences and small helpers; knows nothing of SQL or the command line.

class JobFailure(Exception):
    """An attempt that could not begin, through the job's own fault."""


def job_variables(job, database: str) -> dict:
    """Return what the environment tells an attempt."""
    return {"QUEUECTL_JOB_ID": str(job.id), "QUEUECTL_ATTEMPT": str(job.attempt), "QUEUECTL_DB": given(database)}


def seconds_text(seconds: float) -> str:
    return "%s s" % number_text(seconds)


# Functions of a worker.  asked(job): whether to cancel a job; setting(key): a setting in force; read(job): its input;
# log(event, **facts): reports; record(job, pid, born): notes which process group runs, and since when; keep(): takes the
# worker's lock again if its file was deleted.
RunnerLinks = record("RunnerLinks", "asked setting read log record keep")


class Runner:
    """Run attempts.  `links`: what the worker does for it."""

    CHECK_S = 0.25  # how often a running job's output is measured; at first, and while it floods, eight times as often

    def __init__(self, files, worker: int, signals, links):
        self._files = files
        self._worker = worker
        self._signals = signals
        self._asked, self._setting, self._read, self._log, self._record, self._keep = links
        self._output = None
        self._env = (None, {})   # the environment that was parsed last: most jobs share one
        self._path = files.output(worker)
        self._scheduling = OS.defer_to_jobs()
        self._dropped = 0
        self._written = None     # how many bytes the last attempt wrote
        self._spared_at = 0.0    # when the worker was told to end now
        self._strays = set()     # signals that may have reached the last process before it had a session of its own
        self.kept = True         # whether the last output is where its log should be

    def run(self, job, env: bytes):
        """Run one attempt to its end; return its Outcome.  If the machine has trouble, wait until it is over."""
        started = time.time()
        begun = time.monotonic()
        self._dropped = 0
        try:
            process = self._start(job, env)
        except JobFailure as failure:
            return Outcome(job, "failed", None, str(failure), None, started, time.monotonic() - begun)
        if process is None:
            return Outcome(job, "released", None, "stopped before it could start", None, started, 0.0)
        code, ending = self._watch(job, process, begun)
        duration = time.monotonic() - begun
        if code or ending:
            self._clear(process)
        process.close()
        self._keep_output(job, spare=not (code or ending))
        exit_code, signal, error = process.failure(code) if code else (0, None, None)
        kind = ending or ("failed" if code else "completed")
        if ending:
            signal, error = None, {"timeout": "timeout after %s" % seconds_text(job.timeout or 0), "cancelled": "cancelled",
                                   "released": "stopped by a shutdown"}[ending]
        elif signal in self._strays:
            kind, signal, error = "released", None, "a signal to the workers reached it as it started"
        return Outcome(job, kind, exit_code, error, process.pid, started, duration, signal, self._written)

    # -- start --

    def _start(self, job, env: bytes):
        """Return the job's process; None if the worker should end now.

        If the machine is out of processes, memory, descriptors or disk, wait: the job has not failed.
        """
        pause = 0.05
        while self._signals.stopping < IMMEDIATE:
            try:
                self._ready_output()
                return self._spawn(job, env)
            except (OSError, MemoryError) as error:
                self._log_trouble("can't start job %d yet" % job.id, error)
                self._make_directories()
            self._signals.pause(pause)
            if self._signals.look:
                self._signals.look = False
                if self._asked(job) == CANCEL:
                    return None
            pause = min(pause * 2, 5.0)
        return None

    def _log_trouble(self, what: str, error) -> None:
        why = refusal(error, self._files.root) if isinstance(error, OSError) else "no memory"
        self._log("trouble", why="%s: %s" % (what, why))

    def _make_directories(self) -> None:
        try:
            self._files.make()
        except OSError:
            pass  # the next try says what is wrong

    def _ready_output(self) -> None:
        """Open the output file, unless it is open; open it again if it was deleted."""
        if self._output is not None and not os.path.exists(self._path):
            os.close(self._output)
            self._output = None
        if self._output is None:
            self._output = OS.open_output(self._path)

    def _spawn(self, job, env: bytes):
        try:
            os.chdir(raw(job.cwd))
        except OSError as error:
            raise JobFailure("can't enter the directory %s: %s" % (plain(job.cwd), error.strerror)) from None
        more = job_variables(job, self._files.database)
        if env != self._env[0]:
            self._env = (env, OS.job_environment(env, {}))
        stdin = self._open_input(job) if job.stdin is not None else None
        born = OS.born()
        self._signals.take_caught()
        try:
            process = OS.spawn(ProcessSpec(job.command, OS.with_variables(self._env[1], more), self._output, self._path + ".cmd",
                                           job.shell, stdin, job.umask, self._scheduling))
        except OSError as error:
            if error.errno in OS.job_faults:
                raise JobFailure("can't be started: %s" % error.strerror) from None
            raise
        finally:
            if stdin is not None:
                os.close(stdin)
        self._strays = self._signals.take_caught()
        self._record(job, process.pid, born)
        return process

    def _open_input(self, job) -> int:
        """Return a descriptor of a file with the job's input; the file goes with the last process that has it open."""
        path = "%s.%d.%d.in" % (self._path, job.id, job.attempt)
        flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_TEMPORARY", 0)  # Windows; it deletes no open file
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            remove(path)
            with open(fd, "wb", closefd=False) as file:
                file.write(self._read(job))
            os.lseek(fd, 0, os.SEEK_SET)
            return fd
        except BaseException:
            os.close(fd)
            raise

    # -- watch --

    def _watch(self, job, process, begun: float) -> tuple:
        """Wait for the end of an attempt, or end it; return (exit code, why it was ended or None)."""
        never = float("inf")
        deadline = begun + job.timeout if job.timeout is not None else never
        ending, kill_at, pause = None, never, self.CHECK_S / 8
        check_at = begun + pause
        while True:
            code = process.wait(self._signals, min(deadline, kill_at, check_at) - time.monotonic())
            if code is not None:
                return code, ending
            now = time.monotonic()
            look, self._signals.look = self._signals.look, False  # else the next wait would return at once
            if ending is None:
                ending = self._reason(job, deadline, now, look)
                if ending:
                    grace = self._setting("kill_grace")
                    self._log("waits", why="ends job %d (%s); KILL follows TERM after %s" % (job.id, ending, seconds_text(grace)))
                    process.terminate()
                    deadline, kill_at = never, now + grace
            elif now >= kill_at:
                process.kill()
                kill_at = never
            if now >= check_at:
                before, kept = self._dropped, self._limit_output(process)
                self._keep()
                pause = self.CHECK_S / 8 if self._dropped - before > 4 * kept else min(2 * pause, self.CHECK_S)
                check_at = now + pause

    def _reason(self, job, deadline: float, now: float, look: bool):
        """Return why a running attempt should end now, or None."""
        now_asked = self._signals.stopping >= IMMEDIATE
        asked = self._asked(job) if look or now_asked or self._signals.orphaned() else 0  # nobody signals an orphan
        if asked == CANCEL:
            return "cancelled"
        if now_asked:
            self._spared_at = self._spared_at or now
            if asked != SPARE or now >= self._spared_at + SPARE_S:
                return "released"
        return "timeout" if now >= deadline else None

    def _clear(self, process) -> None:
        """End what is left of the group of an attempt that did not succeed: nothing of it may meet the next attempt."""
        if not process.terminate():
            return
        limit = time.monotonic() + self._setting("kill_grace")
        while process.alive() and time.monotonic() < limit and self._signals.stopping < IMMEDIATE:
            self._signals.pause(0.01)
        limit = time.monotonic() + 2.0
        while process.alive() and time.monotonic() < limit:
            process.kill()
            time.sleep(0.01)

    # -- output --

    def _limit_output(self, process=None) -> int:
        """Keep a growing output under log_limit: its first half, and a copy of the newest of the rest; return its size.

        A job that runs is suspended meanwhile, so that it writes nothing between the copy and the cut.
        """
        size = os.fstat(self._output).st_size
        try:
            if size <= 4096 or size <= self._setting("log_limit"):
                return size
            half = self._setting("log_limit") // 2
            if process:
                process.suspend()
            try:
                with open(self._path, "rb", opener=no_link) as source, create(self._path + ".tail") as tail:
                    source.seek(-half, os.SEEK_END)
                    while copy_bytes(source, tail, half):
                        pass
                    size = source.tell()
                os.ftruncate(self._output, half)
                self._dropped += size - half
                size = half
            finally:
                if process:
                    process.resume()
        except OSError as error:
            self._log_trouble("can't shorten the output", error)
        return size

    def _keep_output(self, job, spare: bool) -> None:
        """Make an ended attempt's output its log, and prepare a fresh file for the next attempt.

        An empty file is used again, unless a process that the job left behind still holds it: its later output must
        not get into another job's log.  If the attempt succeeded, such a process may live on (`spare`); otherwise it
        must end before the next attempt, even if it left the group.
        """
        pause, self.kept = 0.05, False
        while True:
            try:
                self._try_to_keep(job, spare)
                self.kept = True
                return
            except OSError as error:
                self._log_trouble("can't keep the output of job %d yet" % job.id, error)
            if self._signals.stopping >= IMMEDIATE:
                return  # a rescuer keeps it, and records the end
            self._signals.pause(pause)
            pause = min(pause * 2, 5.0)

    def _try_to_keep(self, job, spare: bool) -> None:
        if self._output is not None:
            size = self._limit_output()
            self._written = size + self._dropped
            if self._dropped:
                self._join_tail()
            os.close(self._output)
            self._output = None
            if not spare and OS.is_held(self._path):
                OS.end_orphans(0, 0.0, self._path)
            if not size:
                try:
                    self._output = OS.open_output(self._path)
                    return
                except BlockingIOError:
                    pass  # a process that was left behind writes to it: it becomes this attempt's log
        self._files.keep(self._worker, job.id, job.attempt)

    def _join_tail(self) -> None:
        """Join the head, a line that says what is missing, and the tail."""
        half = self._setting("log_limit") // 2
        with open(self._path, "rb", opener=no_link) as source, open(self._path + ".tail", "rb", opener=no_link) as saved, \
                create(self._path + ".new") as new:
            copy_bytes(source, new, half)
            fresh = os.fstat(self._output).st_size - half
            old = max(0, min(os.fstat(saved.fileno()).st_size, half - fresh))
            missing = self._dropped - old
            new.write(b"\n[queuectl: %d bytes of output dropped here: log_limit]\n" % missing)
            saved.seek(-old, os.SEEK_END)
            copy_bytes(saved, new, old)
            copy_bytes(source, new, fresh)
        os.ftruncate(self._output, 0)
        with open(self._path + ".new", "rb", opener=no_link) as new, open(self._output, "ab", closefd=False) as output:
            copy_bytes(new, output, 2 ** 50)
        remove(self._path + ".new")
        remove(self._path + ".tail")
        self._dropped = 0

    def close(self) -> None:
        if self._output is not None:
            os.close(self._output)
            self._output = None
        for suffix in ("", ".cmd", ".tail", ".new") if self.kept else (".cmd", ".new"):
            remove(self._path + suffix)


# == Worker ============================================================================
# A process that claims, runs and records, one job after another.
# Calls Runner, Store, Platform differences and small helpers; knows nothing of the command line or of printing.

# What a worker is started with.  reserved: it belongs to a `run` and takes only that run's jobs.
# load: it takes no new job while the machine's load is above this; None: no limit.
# on: the EngineSpec of a worker that hands jobs to an engine.
class WorkerSpec(record("WorkerSpec", "database supervisor queues reserved load on", defaults=(None,))):
    __slots__ = ()

    def words(self) -> list:
        """Return the fields that a worker of this machine needs, but not the database, as arguments of a program."""
        return [str(self.supervisor), self.queues or "-", "1" if self.reserved else "0", "-" if self.load is None else str(self.load)]


# What a worker or supervisor wrote into its lock file.  status, since: what it waits for, and since when; end: see end_text.
# version: its program_version; "" if it is of 1.0.
LockContent = record("LockContent", "pid job attempt group born done machine version since status end")


def read_lock(path: str):
    """Return what a worker or supervisor wrote into its lock file; None if it can't be read."""
    try:
        with open(path, "rb", opener=no_link) as file:
            runs, wait, end = [file.read(LOCK_LINE).decode("utf-8", "replace").strip("\0 \n") for _ in range(3)]
        since, _, status = wait.partition(" ")
        words = runs.split() or ["0"] * 6  # a rescuer made the file again, and wrote only its wait into it
        machine, version = (words[6:] + ["", ""])[:2]
        return LockContent(*[int(word) for word in words[:4]], float(words[4]), int(words[5]), machine, version,
                           float(since or 0), status, end)
    except (OSError, ValueError, IndexError):
        return None


def write_status(lock: int, why) -> None:
    """Write into a lock file what its process waits for from now on; None: for nothing."""
    try:
        OS.write_lock_line(lock, 1, "%.3f %s" % (time.time(), plain(why)) if why else "")
    except OSError:
        pass  # not even this file can be written, so nobody learns of it


def end_text(outcome) -> str:
    """Return an Outcome as a line of a lock file; a rescuer records it from there if the worker can't."""
    job = outcome.job
    code = outcome.exit_code if outcome.signal is None else -outcome.signal
    return "%d %d %s %s %s %.6f %.6f %s" % (job.id, job.attempt, outcome.kind, optional(code), optional(outcome.pid),
                                            outcome.started_at, outcome.duration, plain(outcome.error or ""))


def optional(number) -> str:
    return "-" if number is None else "%d" % number


def recorded_end(content, job):
    """Return the Outcome of a job that its dead worker could write only to the lock file, or None."""
    words = (content.end if content else "").split(" ", 7)
    try:
        if (int(words[0]), int(words[1])) != (job.id, job.attempt) or words[2] not in ENDS:
            return None
        code, pid = [None if word == "-" else int(word) for word in words[3:5]]
        signal = -code if code is not None and code < 0 else None
        return Outcome(job, words[2], code if signal is None else None, "".join(words[7:]) or None, pid, float(words[5]),
                       float(words[6]), signal)
    except (ValueError, IndexError):
        return None


LEFT_TO_RESCUER = ()  # what Worker._finish_and_claim returns when it gives up: the outcome is in the lock file
ENDS = ("completed", "failed", "timeout", "released", "cancelled")


class LockFile:
    """The lock file of this worker or supervisor: it holds the lock, and tells others what this process runs and waits for."""

    def __init__(self, path: str, lock: int):
        self.path = path
        self._lock = lock
        self._status = None
        self._machine = "%s %s" % (OS.machine() or "-", program_version())
        self.write()

    def write(self, job: int = 0, attempt: int = 0, group: int = 0, born: float = 0.0, done: int = 0) -> None:
        """Write what a rescuer needs: the process group to end, and when it began: a later group may have its number."""
        self._runs = "%d %d %d %d %.2f %d %s" % (os.getpid(), job, attempt, group, born, done, self._machine)
        self._write_line(0, self._runs)

    def _write_line(self, line: int, text: str) -> None:
        try:
            OS.write_lock_line(self._lock, line, text)
        except OSError:
            pass  # a rescuer knows no group, and waits for the attempt's lock; or an outcome is kept in memory only

    def set_status(self, why) -> None:
        """Write what this process waits for; None: for nothing but work."""
        if why != self._status:
            self._status = why
            write_status(self._lock, why)

    def on_wait(self, why) -> None:
        """Write that a call waits for the database (None: no longer), unless that is part of another wait."""
        if self._status in (None, WAIT_FOR_LOCK):
            self.set_status(why)

    def write_end(self, outcome) -> None:
        """Write an outcome that the database does not take: a rescuer records it if this process can't."""
        self._write_line(2, end_text(outcome))

    def keep(self) -> bool:
        """Take the lock again if its file was deleted, or made again by another process; return whether it was."""
        if not OS.is_lost(self.path, self._lock):
            return False
        make_directory(os.path.dirname(self.path))
        fresh = OS.hold(self.path)
        os.close(self._lock)
        self._lock = fresh
        self._write_line(0, self._runs)
        write_status(fresh, self._status)
        return True

    def close(self) -> None:
        os.close(self._lock)

    def drop(self) -> None:
        """Remove the file, and release the lock."""
        OS.drop(self.path, self._lock)


def enlist(spec, engine=None) -> tuple:
    """Register this process as a worker; return its Store, its id and its LockFile."""
    store = Store.existing(spec.database, WORKER_PATIENCE_S)
    store.db.sync = engine is not None or store.settings.value("sync") == "full"  # a power cut ends jobs of this machine too, but no task
    worker, lock = store.workers.add_worker(spec.supervisor, engine)
    file = LockFile(store.db.files.lock(worker), lock)
    store.db.on_wait = file.on_wait
    return store, worker, file


def sign_off(store, worker: int, lock) -> None:
    """Remove the row and the lock file of this worker; if it still has a claim, leave both to a rescuer."""
    gone = False
    try:
        gone = store.workers.remove_worker(worker)
    except (sqlite3.Error, OSError, QueueGone):
        pass  # the lock becomes free, so the next supervisor or dispatcher finds the row
    store.close()
    if gone:
        lock.drop()
    else:
        lock.close()


class Worker:
    """One worker process; it reports through `log(event, **facts)`."""

    def __init__(self, spec, signals, log):
        self._spec = spec
        self._signals = signals
        self._log = log
        self._store, self.id, self._lock = enlist(spec)
        self._done = 0
        self._trouble = None
        self._unsure = False  # whether a claim that failed may have been committed
        self._kept_at = 0.0  # when the lock file was last checked
        self._loads = OS.loads()
        links = RunnerLinks(self._asked, self._setting, self._read, self._log_event, self._record, self._keep_lock)
        self._runner = Runner(self._store.db.files, self.id, signals, links)

    def work(self) -> None:
        """Run jobs until told to stop: one commit per job records the last outcome and claims the next job."""
        job = outcome = None
        while True:
            taken = self._finish_and_claim(outcome)
            if outcome is not None and taken is not LEFT_TO_RESCUER:
                self._report(outcome, more=taken is not None)
            outcome = None
            if taken:
                job, env = taken
                self._keep_lock()
                self._log_event("running", job=job)
                outcome = self._runner.run(job, env)
                self._done += 1
            elif self._stopping():
                break
            else:
                self._rest()
        self.close()

    def close(self) -> None:
        self._log_event("stopped")
        self._runner.close()
        sign_off(self._store, self.id, self._lock)

    def _stopping(self) -> bool:
        return bool(self._signals.stopping) or self._signals.orphaned()

    def _overloaded(self) -> bool:
        return self._spec.load is not None and next(self._loads) > self._spec.load

    def _rest(self) -> None:
        """Wait for work, or for the machine's load to fall."""
        self._lock.write(done=self._done)
        self._kept_at = 0.0  # check the file now: the wait may be long
        self._keep_lock()
        if self._overloaded():
            self._lock.set_status("takes no job while the load is above %g" % self._spec.load)
            self._signals.pause(LOOK_S)
            return
        self._lock.set_status(None)
        self._signals.wait_for_work()
        if self._signals.look:
            self._log("reopen")
        self._signals.look = False

    def _try_finish_and_claim(self, outcome):
        """Record an outcome and claim the next job, unless this worker should take none; return as Claims.finish_and_claim does."""
        claims, spec = self._store.claims, self._spec
        taken = claims.claimed(self.id, outcome) if self._unsure else None
        if taken is None and (self._stopping() or self._overloaded()):
            if outcome is not None:
                claims.finish(self.id, outcome)
        elif taken is None:
            taken = claims.finish_and_claim(self.id, outcome, spec.queues, spec.supervisor if spec.reserved else None)
        self._unsure = False
        return taken

    def _finish_and_claim(self, outcome):
        """Repeat _try_finish_and_claim until it succeeds: a locked database or a full disk is not the job's failure.

        An outcome that can't be written is kept in the lock file: a rescuer records it if this worker can't.
        A worker that should end now gives up after GIVE_UP_S and returns LEFT_TO_RESCUER.
        """
        pause, limit = 0.05, None
        while True:
            try:
                if outcome is not None and not self._runner.kept:
                    raise OSError("the job's output has no place")
                return self._try_finish_and_claim(outcome)
            except WrongValue:
                self._unsure = True
                self._repair()
            except (sqlite3.OperationalError, OSError) as error:
                if is_damage(error):
                    raise
                self._unsure = True
                self._log_event("trouble", why="can't write to the database yet%s: %s" % (self._keep_end(outcome), error))
                if self._signals.stopping >= IMMEDIATE:
                    self._store.db.patience = 1.0
                    limit = limit or time.monotonic() + GIVE_UP_S
                if self._signals.stopping and outcome is None:
                    return None
                if limit and (time.monotonic() > limit or not self._runner.kept):
                    return LEFT_TO_RESCUER
            self._signals.pause(pause)
            pause = min(pause * 2, 2.0)

    def _repair(self) -> None:
        """Remove invalid values that another program wrote into the database: one row must not stop the others."""
        try:
            for fault in self._store.keep.repair_values():
                self._log_event("trouble", why=fault)
        except (sqlite3.Error, OSError) as error:
            self._log_event("trouble", why="can't write to the database yet: %s" % error)

    def _keep_end(self, outcome) -> str:
        """Write an outcome into the lock file; return the words that report it."""
        if outcome is None:
            return ""
        self._lock.write_end(outcome)
        return " that job %d has ended (%s)" % (outcome.job.id, error_text(outcome) or outcome.kind)

    def _keep_lock(self) -> None:
        """Take the lock again if its file was deleted, and check whether `sync` was changed; at most once per second."""
        now = time.monotonic()
        if now < self._kept_at + LOOK_S:
            return
        self._kept_at = now
        self._store.db.sync = self._setting("sync") == "full"
        try:
            self._store.db.check_file()
            self._lock.keep()
        except QueueGone:
            pass  # moved with its lock, or deleted: a directory made here would be in the way
        except OSError as error:
            self._log_event("trouble", why="can't make its lock file again: %s" % refusal(error, self._store.db.files.root))

    def _asked(self, job) -> int:
        try:
            return self._store.claims.cancel_asked(job)
        except sqlite3.Error:
            return 0  # the worker asks again when the supervisor repeats its signal

    def _read(self, job) -> bytes:
        try:
            return self._store.queues.env(job.stdin)
        except sqlite3.OperationalError as error:
            raise OSError(0, str(error)) from None  # the Runner tries again

    def _setting(self, key: str):
        try:
            return self._store.settings.value(key)
        except sqlite3.Error:
            return SETTINGS[key].default

    def _record(self, job, pid: int, born: float) -> None:
        self._lock.write(job.id, job.attempt, pid, born, self._done)
        self._lock.set_status(None)

    def _report(self, outcome, more: bool) -> None:
        """Report how an attempt ended; `more`: the next report follows at once."""
        job, why = outcome.job, error_text(outcome)
        if outcome.kind in ("failed", "timeout"):
            after = self._find(job.id)
            if after is not None and after.attempt == job.attempt and after.state == "failed":
                self._log_event("retry", job=job, why=why, wait=max(0.0, after.delay or 0.0))
            elif after is not None and after.state == "pending":
                self._log_event("snoozed", job=job, why=why, wait=after.delay or 0.0)
            else:
                self._log_event("dead", job=job, why=why)
        else:
            self._log_event(outcome.kind, job=job, duration=outcome.duration, why=None if outcome.kind == "cancelled" else why, more=more)

    def _find(self, job_id: int):
        try:
            return self._store.look.find(job_id)
        except sqlite3.Error:
            return None  # only the log line says less

    def _log_event(self, event: str, **facts) -> None:
        """Report an event; the same trouble only once, however long it lasts.  A mere wait is noted, not reported."""
        why = facts["why"] if event in ("trouble", "waits") else None
        self._lock.set_status(why)
        if event == "waits":
            return
        if why is None or why != self._trouble:
            self._log(event, worker=self.id, **facts)
        self._trouble = why


def take_from_dead(store, worker, path: str):
    """Return a descriptor that holds the lock of a dead worker; None while the worker lives.

    A living worker whose lock file was deleted makes it again within about two seconds.  In another pid namespace nothing
    else tells whether a worker lives.  Then put an empty file there: if it stays empty, the worker is dead.
    """
    alive = store.workers.is_alive(worker)
    if alive is None:
        try:
            alive = abs(time.time() - os.stat(path).st_mtime) < MISSING_S
        except FileNotFoundError:
            alive = True
            make_directory(os.path.dirname(path))
            os.close(OS.hold(path))
    if alive:
        return None
    make_directory(os.path.dirname(path))
    try:
        lock = OS.hold(path)
    except BlockingIOError:
        return None  # another process is about to release it
    if OS.is_lost(path, lock):
        os.close(lock)  # another process has just released it
        return None
    return lock


# == Engines ===========================================================================
# Places to run attempts other than this machine.  An engine is a class with three verbs: submit packs of attempts, look at what
# became of them, cancel them.  A dispatcher hands packs over and records what comes back; on the nodes, a Node runs one pack.
# Calls Worker's lock files, Runner, Store, Platform differences and small helpers; knows nothing of the command line or of printing.

# How the engine's word about a task that is over counts for an attempt in it that had begun and has no outcome of its own.  failed
# and timeout are charged.  released is not.  Neither is crashed, but max_crashes of them bury the job.  An attempt that had not
# begun is always released.
TASK_ENDS = {"TIMEOUT": "timeout", "DEADLINE": "timeout", "OUT_OF_MEMORY": "failed", "CANCELLED": "failed", "PREEMPTED": "released",
             "REVOKED": "released", "NODE_FAIL": "crashed", "BOOT_FAIL": "crashed", "COMPLETED": "crashed", "FAILED": "crashed"}
ENGINE_FAULTS = ("NODE_FAIL", "PREEMPTED", "REVOKED")  # a task that ends so before it begins says nothing against the next one
SPOOL_LOOK_S = 1.0           # how often a dispatcher reads what the nodes have written; less often if that takes long
ENGINE_LOOK_S = 30.0         # how often it asks the engine at least
TROUBLE_S = 300.0            # how long it waits at most before it tries an engine in trouble again
STOPPED = "stopped"          # the name of a file in the folder of an array that `worker stop --now` has cancelled
TASK_S = 300.0               # how long the jobs of one pack should take with `--pack auto`
# What dispatchers hand over.  engine: of ENGINES; options: its own options; pack: jobs per task, None for auto.
EngineSpec = record("EngineSpec", "engine options pack")
# What an engine says of one task.  state: the engine's word; starts: when it expects to start it, in Unix seconds, or None.
Task = record("Task", "state reason starts")
# An attempt as its node needs it.  env, stdin: keys of the pack's `blobs`.
NodeJob = record("NodeJob", "id attempt command cwd shell stdin umask timeout env")


def answer_of(words: list, text: str = "", seconds: float = 30.0) -> str:
    """Return what a command of an engine prints; raise EngineError if it fails."""
    import subprocess
    env = dict(os.environ, LC_ALL="C", SLURM_BITSTR_LEN="0", SLURM_TIME_FORMAT="%s")  # ranges of any length, times in Unix seconds
    try:
        done = subprocess.run(words, input=text.encode("utf-8", "surrogateescape"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=env, timeout=seconds)
        code, said = done.returncode, done.stderr
    except FileNotFoundError:
        raise EngineError("there is no command %s" % words[0]) from None
    except subprocess.TimeoutExpired as late:  # sbatch says why it waits
        code, said = 1, late.stderr or b"%s does not answer" % words[0].encode()
    if code:
        raise EngineError("; ".join(said.decode("utf-8", "replace").strip().splitlines()[-2:]) or "exit %d" % code)
    return done.stdout.decode("utf-8", "replace")


def numbers_of(text: str):
    """Yield the numbers of `0,4-6%2`, as Slurm writes the tasks of an array that wait."""
    for part in text.partition("%")[0].split(","):
        first, _, last = part.strip("[]").partition("-")
        if first.isdigit():
            yield from range(int(first), int(last if last.isdigit() else first) + 1)


class Slurm:
    """Slurm by its commands: an array of tasks, one task per pack, found by its name or its job id."""

    title = "Slurm"
    RESERVED = ("-a --array -D --chdir -J --job-name -o --output --parsable --requeue --wrap -W --wait -Q --quiet -h --help -V --version "
                "--test-only -H --hold -M --clusters --cluster").split()
    cores = "${SLURM_CPUS_ON_NODE:-1}"
    number = "$SLURM_ARRAY_TASK_ID"
    passed_on = "SLURM CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES ZE_AFFINITY_MASK GPU_DEVICE_ORDINAL".split()

    def room(self, options: list) -> int:
        """Return how many tasks another array may have, by the limits that Slurm tells: MaxArraySize, and those of the default account."""
        import re
        sizes = [int(size) - 1 for size in re.findall(r"MaxArraySize *= (\d+)", answer_of(["scontrol", "show", "config"]))]
        if not any(word.startswith(("-A", "--account")) for word in options):
            try:
                known = answer_of(["scontrol", "-o", "show", "assoc_mgr", "flags=assoc", "users=" + answer_of(["id", "-un"]).strip()])
            except EngineError:
                known = ""  # a user need not see it
            sizes += [int(limit) - int(used) for line in known.splitlines() if " DefAssoc=Yes " in line
                      for limit, used in re.findall(r"SubmitJobs=(\d+)\((\d+)\)", line)]
        return min(sizes, default=1000)

    def submit(self, folder: str, script: str, packs: int, slots: int, options: list) -> str:
        """Hand an array over, by a name that finds it again; return the engine's own id of it."""
        words = ["sbatch", "--parsable", "--no-requeue", "--job-name", os.path.basename(folder), "--array", "0-%d" % (packs - 1),
                 "--chdir", folder, "--output", "%a.task"] + (["--cpus-per-task", str(slots)] if slots > 1 else []) + options
        return answer_of(words, script, 10.0).strip().partition(";")[0]  # it would repeat itself for two minutes

    def look(self, folders: list) -> dict:
        """Return {folder: (id, {number of a pack: Task})} for those arrays that the engine knows, in one question."""
        names, found = {os.path.basename(folder): folder for folder in folders}, {}
        if not folders:
            return found
        text = answer_of(["squeue", "--noheader", "--states", "all", "--name", ",".join(names), "--format", "%j|%F|%K|%T|%S|%r"])
        for line in text.splitlines():
            name, handle, numbers, state, starts, reason = (line.split("|", 5) + [""] * 6)[:6]
            if name in names:
                task = Task(state, reason, float(starts) if starts.isdigit() else None)
                tasks = found.setdefault(names[name], (handle, {}))[1]
                tasks.update(dict.fromkeys(numbers_of(numbers), task))
        return found

    def past(self, handle: str) -> dict:
        """Return {number: state} of an array that `look` no longer shows, as far as the accounting knows it, if there is one."""
        try:
            lines = answer_of(["sacct", "-nXP", "-S", "1970-01-01", "-j", handle, "-o", "JobID,State"]).splitlines()
        except EngineError:
            return {}
        words = [line.partition("|") for line in lines]
        return {number: state.split()[0] for task, _, state in words if state for number in numbers_of(task.partition("_")[2])}

    def cancel(self, tasks: dict) -> None:
        """Cancel tasks, given as {id of the array: numbers}."""
        words = ["%s_[%s]" % (handle, ",".join(map(str, numbers))) for handle, numbers in tasks.items() if handle and numbers]
        for start in range(0, len(words), 100):
            answer_of(["scancel"] + words[start:start + 100])


ENGINES = {"slurm": Slurm}


def engine_options(engine, words: list) -> list:
    """Return options for an engine; raise UserError for those that the dispatcher itself needs."""
    for word in words:
        name = word.partition("=")[0]
        if name in engine.RESERVED or name[:1] == "-" and name[1:2] != "-" and name[:2] in engine.RESERVED:
            raise UserError("the option %s of %s is queuectl's own: leave it out" % (quoted(name), engine.title))
    return words


def rename(path: str, target: str) -> bool:
    """Rename a file of a spool, and return whether it was there: of two processes on any machines, one succeeds."""
    try:
        os.rename(path, target)
        return True
    except FileNotFoundError:
        return False


def read_events(path: str, start: int) -> tuple:
    """Return (the events that a node has written to a file after `start`, where to go on)."""
    import json
    events = []
    try:
        with open(path, "rb", opener=no_link) as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return [], start
    whole, end, _ = text.rpartition(b"\n")  # the last line may be half written
    for line in whole.split(b"\n"):
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # an empty line, or one that a full disk has cut short: it was written again
    return events, start + len(whole + end)


class Node:
    """Runs the attempts of one pack, on a node of an engine: it knows the spool, and no database.

    PATH.ready becomes PATH.taken, which only one process can do.  The dispatcher does the same to take the pack back, and takes
    PATH.taken away when the engine says that the task is over: then nothing of the pack begins any more, and what runs is ended.
    """

    def __init__(self, path: str, cores: int):
        self._path = path
        self._files = Files(path)
        self._cores = cores
        self._pack = {}
        self._queue = []
        self._running = {}       # pid of the process that runs an attempt -> NodeJob
        self._last = {}          # job id -> its last event
        self._seen = 0
        self._signals = None

    def work(self) -> None:
        """Run the pack to its end, or until this process is told to end."""
        if not rename(self._path + ".ready", self._path + ".taken"):
            return
        import json
        reader, _ = os.pipe()
        self._signals = OS.worker_signals(str(reader))
        self._signals.end_by_term()
        with open(self._path + ".json", opener=no_link, encoding="ascii") as file:
            pack = json.load(file)
        self._pack = pack
        self.write("taken", host=os.uname().nodename, python="%d.%d" % sys.version_info[:2], at=time.time())
        self._files.make()
        self._files.database = pack["database"]
        self._queue = [NodeJob(**job) for job in reversed(pack["jobs"])]
        workers, told = OS.worker_processes(""), False
        while self._running or self._queue:
            if self._signals.stopping or not os.path.exists(self._path + ".taken"):
                self._queue.clear()
                if not told:
                    told = True
                    for pid in self._running:
                        OS.signal_worker(pid, "now")
            self._begin(workers)
            if self._running:
                self._signals.pause(LOOK_S)
            self._reap(workers)
        self.write("done")

    def _cancelled(self) -> set:
        try:
            with open(self._path + ".cancel", opener=no_link) as file:
                return set(file.read().split())
        except FileNotFoundError:
            return set()

    def _begin(self, workers) -> None:
        """Begin as many attempts as there are cores, and pass on what should be cancelled."""
        cancelled = self._cancelled()
        for pid, job in self._running.items():
            if str(job.id) in cancelled:
                OS.signal_worker(pid, "look")
        while self._queue and len(self._running) < max(1, self._cores // self._pack["slots"]):
            job = self._queue.pop()
            if str(job.id) in cancelled:
                self._write_end(Outcome(job, "cancelled", None, "cancelled", None, time.time(), 0.0))
            else:
                self._running[workers.start(lambda where: self._attempt(job, where), [])] = job

    def _reap(self, workers) -> None:
        """Take note of attempts that have ended; end what a process has left behind that was killed."""
        workers.reap()
        events, self._seen = read_events(self._path + ".outcomes", self._seen)
        self._last.update((event["job"], event) for event in events if "job" in event)
        for pid in set(self._running) - set(workers.pids()):
            job = self._running.pop(pid)
            event = self._last.pop(job.id, {"event": "begun", "pid": 0, "born": 0.0, "at": time.time()})
            if event["event"] == "begun":
                marks = ["%s=%s" % pair for pair in job_variables(job, self._files.database).items()]
                OS.end_orphans(event["pid"], event["born"], self._files.output("%d.%d" % (job.id, job.attempt)), marks)
                self._write_end(Outcome(job, "crashed", None, "its runner died", event["pid"] or None, event["at"], 0.0))

    def _attempt(self, job, where: str) -> None:
        """Run one attempt, in a process of its own."""
        signals = OS.worker_signals(where)
        signals.end_by_term()
        blobs = self._pack["blobs"]

        def asked(_) -> int:
            return CANCEL if signals.orphaned() or str(job.id) in self._cancelled() else 0

        def setting(key: str):
            return 0.0 if key == "kill_grace" and signals.orphaned() else self._pack[key]

        def log(event: str, why=None, **_) -> None:
            if event == "trouble":
                self.write("trouble", why=why)

        def record(_, pid: int, born: float) -> None:
            self.write("begun", job=job.id, attempt=job.attempt, pid=pid, born=born, at=time.time())

        links = RunnerLinks(asked, setting, lambda _: blobs[str(job.stdin)].encode("latin-1"), log, record, lambda: None)
        runner = Runner(self._files, "%d.%d" % (job.id, job.attempt), signals, links)
        more = {name: value for name, value in os.environ.items() if name.startswith(tuple(self._pack["passed_on"]))}
        outcome = runner.run(job, OS.merge(blobs[str(job.env)].encode("latin-1"), more))
        runner.close()
        if shell_status(outcome.exit_code, outcome.signal) in (137, 143):
            signals.pause(0.5)  # the signal may have been for all processes of the task
        if signals.stopping or signals.orphaned() or outcome.kind == "released":
            self.write("stopped", job=job.id, attempt=job.attempt)  # the engine says why
        else:
            self._write_end(outcome)

    def _write_end(self, outcome) -> None:
        facts = dict(outcome._asdict(), job=outcome.job.id, attempt=outcome.job.attempt)
        self.write("ended", **facts)

    def write(self, event: str, **facts) -> None:
        """Append an event to the file that the dispatcher reads; repeat it until it is written, its folder is gone, or we should end."""
        import json
        line, pause = json.dumps(dict(facts, event=event)).encode() + b"\n", 0.05
        while True:
            try:
                with open(self._path + ".outcomes", "ab", buffering=0, opener=no_link) as file:
                    if file.write(line) == len(line):
                        return
            except FileNotFoundError:
                return
            except OSError:
                pass  # the disk is full, or away
            if self._signals is None or self._signals.stopping and pause > GIVE_UP_S:
                return
            line = line if line[:1] == b"\n" else b"\n" + line  # what was cut short stays a line of its own
            self._signals.pause(pause)
            pause = min(pause * 2, 5.0)


class Pack:
    """What a dispatcher knows of a task: the attempts in it that have not ended, and how far its node's events were read."""

    __slots__ = "path number jobs seen begun absent state ours over moved until".split()

    def __init__(self, folder: str, number: int, jobs: dict):
        self.path = os.path.join(folder, str(number))
        self.number = number
        self.jobs = jobs         # id -> attempt
        self.seen = 0            # the bytes that were read of its events
        self.begun = {}          # job id -> (pid, at) of an attempt that has not ended
        self.absent = 0          # the looks in a row in which the engine had ended it
        self.state = ""          # what the engine said last
        self.ours = False        # whether we have cancelled it
        self.over = False
        self.moved = False       # whether any attempt has begun or ended
        self.until = None        # if it was fenced or its node is done: the time up to which something of it may run


class Trouble:
    """What is wrong with an engine, which step of the dispatcher met it, and when the engine gets more."""

    def __init__(self, worker: int, lock, log):
        self._worker, self._lock, self._log = worker, lock, log
        self._step = None        # the step that failed
        self._logged = None      # what was logged last
        self.full = False        # whether it is a limit of the engine: then the jobs sent are not what is wrong
        self.pause = 0.0         # the current delay between two tries
        self.until = 0.0

    def note(self, step, why: str, full: bool = False) -> None:
        """Say what is wrong, and wait before the engine gets more: twice as long each time."""
        if why != self._logged:
            self._log("trouble", worker=self._worker, why=why)
        self._logged, self._step, self.full = why, step, full
        self.pause = min(TROUBLE_S, self.pause * 2 or 2.0)
        self.until = time.monotonic() + self.pause
        self._lock.set_status("%s (trying again in %s)" % (why, seconds_text(self.pause)))

    def well(self, step) -> None:
        """Note that a step, which may have been in trouble, has worked."""
        if self._step == step:
            self._logged = self._logged if self.full else None  # a limit is reached again and again
            self._step, self.full, self.pause, self.until = None, False, 0.0, 0.0
            self._lock.set_status(None)

    def ended(self) -> None:
        """Note that a task is over: if a limit keeps others from being handed over, there may be room soon."""
        if self.full:
            self.pause, self.until = 0.0, time.monotonic() + SPOOL_LOOK_S


class Dispatcher:
    """The worker of an engine: hands packs over, reads what the nodes write, and asks the engine what became of the rest.

    What it knows it can read again: the rows of `sent` and `packed`, the spool, the engine.  So any step may fail or be cut short.
    """

    def __init__(self, spec, signals, log):
        self._spec, self._signals, self._log = spec, signals, log
        self._store, self.id, self._lock = enlist(spec, spec.on.engine)
        self._handed, self._engine = self._store.handed, ENGINES[spec.on.engine]()
        self._arrays = {}        # id of an array -> (Sent, its Packs)
        self._look_at = self._scan_at = self._adopt_at = 0.0
        self._look_pause = 1.0
        self._changes = None
        self._asked = set()      # (id of an array, pack, job) of cancels that were passed on
        self._trouble = Trouble(self.id, self._lock, log)
        self._probe = []         # ids of the arrays that were sent last: in trouble, no other before their fate is known
        self._cap, self._cap_until = 0, 0.0  # how many tasks it may take at once, since it refused more, and until when that counts
        self._most = AT_ONCE     # how many tasks an array has: half as many after a refusal, then twice as many again

    def work(self) -> None:
        while not self._signals.stopping and not self._signals.orphaned():
            for step in (self._adopt, self._cancel, self._scan, self._look, self._hand_over, self._keep_lock):
                self._try(step)
            self._signals.pause(min(LOOK_S, max(0.05, self._scan_at - time.monotonic())))
            self._signals.look = False
        if self._signals.stopping == IMMEDIATE:
            self._try(self._give_back)
        self._scan_at = 0.0  # now
        self._try(self._scan)
        self.close()

    def close(self) -> None:
        self._log("stopped", worker=self.id)
        sign_off(self._store, self.id, self._lock)

    def _try(self, step, *values) -> None:
        """Take a step; what fails is tried again, later each time.  A step returns True if it did what may have failed before."""
        try:
            if step(*values):
                self._trouble.well(step)
        except EngineError as error:
            self._trouble.note(step, "%s: %s" % (self._engine.title, plain(str(error))), error.is_limit())
        except (sqlite3.OperationalError, WrongValue, OSError) as error:
            if is_damage(error):
                raise
            self._trouble.note(step, str(error))
            self._adopt_at = 0.0  # it is not known what was committed

    def _keep_lock(self) -> None:
        self._lock.keep()
        self._store.db.check_file()

    # -- taking over --

    def _adopt(self) -> None:
        """Take over what dead dispatchers of this engine have handed over."""
        if time.monotonic() < self._adopt_at:
            return
        for worker in self._store.workers.workers():
            if worker.engine == self._spec.on.engine and worker.id != self.id and is_ours(self._store, worker):
                path = self._store.workers.files_of(worker).lock(worker.id)
                lock = take_from_dead(self._store, worker, path)
                if lock is not None:
                    try:
                        self._handed.adopt(self.id, worker.id)
                    except BaseException:
                        os.close(lock)
                        raise
                    OS.drop(path, lock)
        self._load()

    def _load(self) -> None:
        """Read which arrays are ours, where memory differs: after a failure it is not known what was committed."""
        before, self._adopt_at = self._arrays, 0.0  # if this fails, it is repeated then
        arrays = {}
        for sent in self._handed.sent(self.id):
            if sent.id not in before:
                packs = {}
                for pack, job, attempt in self._handed.packed(sent.id):
                    packs.setdefault(pack, {})[job] = attempt
                self._look_pause, self._look_at = 1.0, time.monotonic() + 1.0
                before[sent.id] = sent, [Pack(sent.folder, pack, jobs) for pack, jobs in packs.items()]
            arrays[sent.id] = before[sent.id]
        self._arrays, self._adopt_at = arrays, time.monotonic() + LOOK_S

    def _packs(self) -> list:
        return [pack for _, packs in self._arrays.values() for pack in packs if not pack.over]

    # -- what the nodes write --

    def _scan(self):
        """Read the events of all packs; the pause grows with what that costs."""
        begun = time.monotonic()
        if begun < self._scan_at:
            return False
        try:
            self._read(self._packs())
            self._clean()
        finally:
            cost = time.monotonic() - begun
            self._scan_at = begun + min(ENGINE_LOOK_S, max(SPOOL_LOOK_S, 50 * cost))
        return True

    def _read(self, packs: list) -> None:
        """Record the ends of attempts that these packs' nodes have written, then take note of how far they were read."""
        news, wanted = [], {}
        for pack in packs:
            events, seen = read_events(pack.path + ".outcomes", pack.seen)
            if events:
                news.append((pack, events, seen))
                wanted.update((event["job"], event["attempt"]) for event in events if event["event"] == "ended")
            if len(wanted) > FOLLOWUPS:
                self._record_news(news, wanted)
                news, wanted = [], {}
        self._record_news(news, wanted)

    def _record_news(self, news: list, wanted: dict) -> None:
        jobs, outcomes = self._handed.claimed(self.id, wanted), []
        for pack, events, _ in news:
            for event in events:
                job = jobs.get(event.get("job"))
                if event["event"] == "ended" and job is not None:
                    facts = {key: event.get(key) for key in Outcome._fields}
                    facts.update(job=job, error=event.get("error") and plain(event["error"]))
                    outcomes.append(Outcome(**facts))
                    self._bring_log(pack, job)
        self._record(outcomes)
        for pack, events, seen in news:
            pack.seen = seen
            for event in events:
                kind, job = event["event"], event.get("job")
                pack.moved |= kind in ("begun", "ended")
                if kind == "begun":
                    pack.begun[job] = event["pid"], event["at"]
                    self._trouble.well(self._conclude)
                elif kind == "ended":
                    pack.begun.pop(job, None)
                    pack.jobs.pop(job, None)
                elif kind == "trouble":
                    self._log("trouble", worker=self.id, why="%s: %s" % (self._engine.title, plain(str(event.get("why")))))
                elif kind == "done":
                    pack.until = 0.0
                    if not pack.jobs:
                        pack.over = True
                        self._trouble.ended()
            self._look_pause, self._look_at = 1.0, min(self._look_at, time.monotonic() + 1.0)

    def _record(self, outcomes: list) -> None:
        if outcomes:
            self._handed.record(self.id, outcomes)
            for outcome in outcomes:
                self._log(outcome.kind, worker=self.id, job=outcome.job, duration=outcome.duration, why=error_text(outcome),
                          more=outcome is not outcomes[-1])

    def _bring_log(self, pack, job) -> None:
        """Move an attempt's output from the spool to the queue's logs."""
        there, log = Files(pack.path), self._store.db.files.log(job.id, job.attempt)
        for path in (there.log(job.id, job.attempt), there.output("%d.%d" % (job.id, job.attempt))):
            if size_of(path) and not os.path.exists(log):
                make_directory(os.path.dirname(log))
                copy_file(path, log + ".new")
                os.replace(log + ".new", log)
                remove(path)

    def _clean(self) -> None:
        """Remove arrays that are over from the spool, then from the database."""
        import shutil
        for number, (sent, packs) in list(self._arrays.items()):
            if all(pack.over for pack in packs):
                shutil.rmtree(sent.folder, ignore_errors=True)
                if os.path.exists(sent.folder):
                    continue  # a node still writes to it
                self._handed.forget(number)
                del self._arrays[number]

    # -- what the engine says --

    def _look(self):
        """Ask the engine about all arrays at once; between two questions is fifty times what one costs, 1 to 30 seconds."""
        begun = time.monotonic()
        if begun < self._look_at or not self._arrays:
            return not self._arrays
        self._look_pause = min(ENGINE_LOOK_S, self._look_pause * 1.5)
        self._look_at = begun + self._look_pause  # if this fails
        found = self._engine.look([sent.folder for sent, _ in self._arrays.values()])
        self._look_pause = max(self._look_pause, min(ENGINE_LOOK_S, 50 * (time.monotonic() - begun)))
        self._look_at = time.monotonic() + self._look_pause
        ended = []
        for number, (sent, packs) in list(self._arrays.items()):
            handle, tasks = found.get(sent.folder, (sent.handle, {}))
            if handle != sent.handle:
                self._handed.name(number, handle)
                self._arrays[number] = sent._replace(handle=handle), packs
            ended += [(handle, pack) for pack in packs if not pack.over and self._is_ended(pack, tasks.get(pack.number))]
        for _, pack in ended:
            self._fence(pack)
        self._read([pack for _, pack in ended])
        self._conclude([(handle, pack) for handle, pack in ended if time.monotonic() >= pack.until])
        self._cancel_empty()
        self._clean()
        return True

    def _is_ended(self, pack, task) -> bool:
        """Whether the engine has twice said, or not twice mentioned, that a task is over: the first time its node may still write."""
        if task is not None:
            if task.state != pack.state:
                self._look_pause = 1.0
            pack.state = task.state
        pack.absent = pack.absent + 1 if task is None or task.state in TASK_ENDS else 0
        if pack.absent == 1:
            self._look_pause, self._look_at = 1.0, time.monotonic() + 1.0
        return pack.absent > 1

    def _fence(self, pack) -> None:
        """Let nothing of a pack begin from now on.

        The engine may have lost a node on which the task still runs.  Its node then ends what runs, and says when it is done.
        """
        if pack.until is None:
            taken = not rename(pack.path + ".ready", pack.path + ".back") and (
                rename(pack.path + ".taken", pack.path + ".over") or os.path.exists(pack.path + ".over"))
            pack.until = time.monotonic() + self._store.settings.value("kill_grace") + END_NOW_S if taken else 0.0

    def _conclude(self, ended: list) -> None:
        """Take the claims from tasks, given as (id of the array, Pack), that are over and of which nothing runs any more."""
        past, packs, outcomes = {}, [], []
        for number, (handle, pack) in enumerate(ended, 1):
            state = pack.state
            if state not in TASK_ENDS and pack.begun and handle and handle not in past:
                past[handle] = self._engine.past(handle)
            if state not in TASK_ENDS:
                state = past.get(handle, {}).get(pack.number, "")
            ours = pack.ours or os.path.exists(os.path.join(os.path.dirname(pack.path), STOPPED))
            found = self._outcomes_of(pack, "released" if ours else TASK_ENDS.get(state, "crashed"), state or "the task is gone")
            packs.append(pack)
            outcomes += found
            if len(outcomes) >= FOLLOWUPS or number == len(ended):
                self._record(outcomes)
                for each in packs:
                    each.over = True
                packs, outcomes = [], []
            if handle and found and not pack.moved and not ours and state not in ENGINE_FAULTS:
                self._trouble.note(self._conclude, "%s: a task ended before it began a job (%s)%s" % (
                    self._engine.title, state or "unknown to it", last_line(pack.path + ".task")))

    def _outcomes_of(self, pack, kind: str, word: str) -> list:
        """Return the Outcomes of the attempts of a task that is over: what had begun counts as `kind`."""
        word, outcomes, now = "%s: %s" % (self._engine.title, word), [], time.time()
        for job in self._handed.claimed(self.id, pack.jobs).values():
            pid, began = pack.begun.get(job.id, (None, now))
            if pid is not None:
                self._bring_log(pack, job)
            outcomes.append(Outcome(job, "released" if pid is None else kind, None, word, pid, began, max(0.0, now - began)))
        return outcomes

    # -- cancelling --

    def _cancel(self):
        """Pass on what should be cancelled: at once if no node has taken the pack, else by a file that its node reads."""
        changes = self._store.db.changes()
        if changes == self._changes:
            return False
        rows, wanted = set(self._handed.to_cancel(self.id)), {}
        for number, pack, job in rows - self._asked:
            wanted.setdefault((number, pack), []).append(job)
        for number, (_, packs) in self._arrays.items() if wanted else ():
            for pack in packs:
                self._cancel_in(pack, wanted.get((number, pack.number), ()))
        self._changes, self._asked = changes, rows
        if wanted:
            self._cancel_empty()
        return True

    def _cancel_in(self, pack, jobs) -> None:
        if jobs and os.path.exists(pack.path + ".json"):  # else it was never written to the spool: the engine does not know it either
            with open(pack.path + ".cancel", "ab", opener=no_link) as file:
                file.write("".join("%d\n" % job for job in jobs).encode())
            if os.path.exists(pack.path + ".ready"):  # whoever takes it from now on reads the file first
                self._record([outcome for outcome in self._outcomes_of(pack, "released", "") if outcome.job.id in jobs])
                for job in jobs:
                    pack.jobs.pop(job, None)

    def _cancel_empty(self) -> None:
        """Cancel tasks that have no jobs left and have not begun."""
        empty = {}
        for sent, packs in self._arrays.values():
            for pack in packs:
                if not pack.jobs and not pack.over and (pack.ours or rename(pack.path + ".ready", pack.path + ".back")):
                    pack.ours = True
                    empty.setdefault(sent.handle, []).append(pack.number)
        if empty:
            self._engine.cancel(empty)
            self._look_pause, self._look_at = 1.0, min(self._look_at, time.monotonic() + 1.0)

    def _give_back(self) -> None:
        """Cancel all tasks, and give the jobs back, as far as the engine answers in time."""
        limit, waiting = time.monotonic() + self._store.settings.value("kill_grace") + END_NOW_S - 3.0, []
        for number, (sent, packs) in self._arrays.items():
            if os.path.isdir(sent.folder):
                create(os.path.join(sent.folder, STOPPED)).close()
            back = [pack for pack in packs if not pack.over and rename(pack.path + ".ready", pack.path + ".back")]
            if back:
                count = self._handed.give_back(self.id, number, [pack.number for pack in back], "stopped by a shutdown")
                self._log("released", worker=self.id, text="%d jobs that had not begun" % count)
            for pack in packs:
                pack.ours = True
            waiting += [(None, pack) for pack in back]
        self._engine.cancel({sent.handle: [pack.number for pack in packs if not pack.over] for sent, packs in self._arrays.values()})
        self._conclude(waiting)
        while self._arrays and time.monotonic() < limit:
            self._look_at = 0.0
            self._try(self._look)
            time.sleep(0.2)

    # -- handing over --

    def _hand_over(self) -> bool:
        """Claim jobs while there are free tasks, and send them; an engine in trouble gets one job to try."""
        stop, count, _ = self._store.workers.orders(self._spec.supervisor)
        limit, sent = time.monotonic() + LOOK_S, False
        while not stop and self._trouble.until <= time.monotonic() < limit:
            probing = self._trouble.pause and not self._trouble.full
            if probing and any(number in self._arrays for number in self._probe):
                break
            flying = len(self._packs())
            ready = self._store.claims.ready(AT_ONCE, self._spec.queues) if flying < count else 0
            if not ready:
                return sent or self._trouble.full
            free = min(count - flying, self._room(flying))
            packs, most = (1, 1) if probing else (min(free, self._most), self._pack_size(ready, free))
            arrays = self._handed.hand(self.id, spool_of(self._store), self._spec.queues, packs, most)
            self._load()
            self._probe = [each.id for each, _ in arrays]
            for each, parts in arrays:
                self._send(each, parts)
            if not arrays:
                break
            sent, self._most = True, min(AT_ONCE, 2 * self._most)
            if self._trouble.full:
                self._trouble.pause = 0.0
        return sent

    def _room(self, flying: int) -> int:
        """Return how many tasks the engine takes beside those that are handed over; raise EngineError if none."""
        room = self._engine.room(self._spec.on.options)
        if time.monotonic() < self._cap_until:
            room = min(room, self._cap - flying)
        if room < 1:
            raise EngineError("it takes no more tasks: a limit on submitted jobs is reached")
        return room

    def _pack_size(self, ready: int, free: int) -> int:
        if self._spec.on.pack:
            return self._spec.on.pack
        mean = self._handed.mean_duration()
        most = min(1000, max(1, int(TASK_S / max(mean, 0.01)))) if mean is not None else 10
        return min(most, -(-ready // free))

    def _send(self, sent, parts: list) -> None:
        """Write an array to the spool, and submit it."""
        import shlex
        write_array(self._store, self._engine, sent, parts)
        try:
            options = list(self._spec.on.options) + engine_options(self._engine, shlex.split(sent.options))
            handle = self._engine.submit(sent.folder, task_script(self._engine, sent.folder), len(parts), sent.slots, options)
        except (ValueError, UserError) as error:
            raise EngineError("the options %s of a queue: %s" % (quoted(sent.options), error)) from None
        except EngineError as error:
            if error.is_limit():
                self._most, self._cap = max(1, len(parts) // 2), max(1, len(self._packs()) - 1)
                self._cap_until = time.monotonic() + TROUBLE_S
            raise
        self._handed.name(sent.id, handle)
        self._arrays[sent.id] = sent._replace(handle=handle), self._arrays[sent.id][1]
        self._log("handed over", worker=self.id, text="%d jobs in %d tasks, %s %s" % (
            sum(map(len, parts)), len(parts), self._engine.title, plain(handle)))


def spool_of(store) -> str:
    return store.settings.value("spool") or os.path.join(store.db.files.root, "spool")


def write_array(store, engine, sent, parts: list) -> None:
    """Write packs to the spool, with all that a node needs to run them; PATH.ready comes last."""
    import json
    make_directory(os.path.dirname(sent.folder))
    os.mkdir(sent.folder, 0o700)
    settings = {key: store.settings.value(key) for key in ("kill_grace", "log_limit")}
    for number, part in enumerate(parts):
        blobs = store.handed.blobs({job.env for job in part} | {job.stdin for job in part})
        pack = dict(settings, database=store.db.path, slots=sent.slots, passed_on=engine.passed_on,
                    blobs={key: data.decode("latin-1") for key, data in blobs.items()},
                    jobs=[{name: getattr(job, name) for name in NodeJob._fields} for job in part])
        path = os.path.join(sent.folder, str(number))
        for name, text in (".json", json.dumps(pack)), (".ready", ""):
            with create(path + name) as file:
                file.write(text.encode())


def task_script(engine, folder: str) -> str:
    """Return the script of a task: this very file, as it is now, by this Python or else by any."""
    program = os.path.join(os.path.dirname(folder), "queuectl-%s.py" % program_version())
    if not os.path.exists(program):
        copy_file(os.path.realpath(__file__), program + ".new")
        os.replace(program + ".new", program)
    code = "; ".join(["import sys"] + OS.launching(program, repr(program)))
    return "#!/bin/sh\np=%s\n[ -x \"$p\" ] || p=python3\nexec \"$p\" -IS -c %s _node %s/\"%s\" \"%s\"\n" % (
        quote_for_sh([sys.executable]), quote_for_sh([code]), quote_for_sh([folder]), engine.number, engine.cores)


def is_ours(store, worker) -> bool:
    """Whether a dead dispatcher's worker has handed over jobs of this database, not of one that this is a copy of."""
    return store.handed.has_sent(worker.id) and (store.workers.is_at_home(worker) or store.workers.is_moved(worker))


def last_line(path: str) -> str:
    """Return the last line that a task printed, after a colon; "" if there is none."""
    try:
        with open(path, "rb", opener=no_link) as file:
            lines = file.read(2 ** 16).decode("utf-8", "replace").strip().splitlines()
        return ": " + plain(lines[-1]) if lines else ""
    except OSError:
        return ""


# == Supervisor ========================================================================
# The one process of a `worker start` or `run` that starts, wakes, replaces and stops workers.
# Calls Worker, Store, Platform differences and small helpers; knows nothing of the command line or of printing.

def work(spec, signals, log) -> None:
    """Run a worker process to its end; an error that ends it early is reported, not raised."""
    try:
        (Dispatcher if spec.on else Worker)(spec, signals, log).work()
    except (QueueGone, UserError, sqlite3.Error, OSError) as error:
        log("trouble", why=str(error))
    except Exception as error:
        log("trouble", why=internal_error(error))


# A process that acquires a worker's lock knows that the worker is dead, and one that finds the lock of its attempt's output
# free knows that nothing of the attempt lives.  Supervisors, `worker stop` and `doctor` release the dead by the next five functions.

def dead_supervisors(store) -> set:
    """Return the ids of the supervisors that are listed, but dead.  Ask this before for workers: a worker registers with a listed one."""
    return {supervisor.id for supervisor in store.workers.supervisors() if not OS.is_held(store.db.files.supervisor_lock(supervisor.id))}


def release_dead(store, supervisors: set, workers: list, release) -> list:
    """Call `release(worker)` for each of these workers; return those for which it is false: alive, or not to be released yet.

    Remove those of these dead supervisors that have none of them.
    """
    left = [worker for worker in workers if not release(worker)]
    for supervisor in sorted(supervisors - {worker.supervisor for worker in left if not worker.engine}):
        store.workers.remove_supervisor(supervisor)
    return left


def rescue(store, worker, log=lambda event, **facts: None) -> bool:
    """Release a dead worker and its job once nothing is left of the attempt; return False if either still lives: try again later."""
    if worker.engine and is_ours(store, worker):
        return False  # its jobs may still run: only a dispatcher, which asks the engine, takes them over
    files = store.workers.files_of(worker)
    path = files.lock(worker.id)
    done, made = False, not os.path.exists(path)
    lock = take_from_dead(store, worker, path)
    if lock is None:
        return False
    try:
        job = store.claims.job_of_worker(worker.id)
        outcome = last_outcome(store, files, worker, job, lock) if job is not None else None
        if job is not None and outcome is None:
            made = False  # what is waited for stands in the file
            return False
        if outcome is not None and size_of(files.output(worker.id)):
            files.keep(worker.id, job.id, job.attempt)
        store.workers.release_dead(worker.id, outcome)
        done = True
        remove(files.output(worker.id))
        if outcome is not None:
            crashed = outcome.kind == "crashed"
            log("crashed" if crashed else "recorded", job=job, worker=worker.id, why=None if crashed else error_text(outcome))
        return True
    finally:
        if done or made:  # a file made here must not outlive a failure: if others have released the worker, nobody comes for it
            OS.drop(path, lock)
        else:
            os.close(lock)


def last_outcome(store, files, worker, job, lock: int):
    """Return the Outcome of a dead worker's job: what the worker wrote into its lock file, or a crash.

    Return None while something of the attempt lives; then the lock file says so.
    """
    content = read_lock(files.lock(worker.id))
    outcome = recorded_end(content, job)
    if outcome is not None:
        return outcome
    group = content.group if content and (content.job, content.attempt) == (job.id, job.attempt) else 0
    left = end_attempt(store, files, worker, job, content, group)
    if left is not None:
        write_status(lock, "died, and what its attempt left behind must end first%s" % (
            ": process %s" % ", ".join(map(str, left)) if left else ""))
        return None
    return Outcome(job, "crashed", None, "worker died", group or None, job.started_at, job.running_s(time.time()))


def end_attempt(store, files, worker, job, content, group: int):
    """End what is left of a dead worker's attempt; return the known pids of what still lives, None if nothing does."""
    marks = ["%s=%s" % pair for pair in job_variables(job, store.workers.home(worker)).items()]
    here = content is not None and content.machine == OS.machine() and content.machine != "" and (
        store.workers.is_at_home(worker) or store.workers.is_moved(worker))
    for path in (files.output(worker.id), files.log(job.id, job.attempt)):
        left = OS.end_orphans(group, content.born, path, marks) if here else []
        if OS.is_held(path):
            return left
    return None


class Inbox:
    """What reaches a supervisor between its turns: hints at a UDP port, and signals, which end a wait through a socket pair."""

    MOST = 1000  # hints read per turn: a flood must not stop the other work

    def __init__(self, handlers: dict):
        import select
        import signal
        import socket
        self._select = select.select
        self._hints = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._hints.bind(("127.0.0.1", 0))
        self._hints.setblocking(False)
        self.port = self._hints.getsockname()[1]
        self.token = os.urandom(6).hex()
        self._wakeup, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        heed(handlers)
        if hasattr(signal, "SIGCHLD"):  # set it even if it was ignored at the start: waitpid needs that
            signal.signal(signal.SIGCHLD, self._on_child)
        ignore_other_signals()

    def _on_child(self, *_) -> None:
        """Do nothing: without a handler SIGCHLD would not reach the wake-up descriptor."""

    def wait(self, seconds: float) -> None:
        """Wait for a signal, a hint or the time."""
        self._select([self._hints, self._wakeup], [], [], min(seconds, OS.longest_wait))

    def drain_signals(self) -> None:
        """Empty the wake-up descriptor, or read MOST times in a flood; the handlers have noted what came."""
        for _ in range(self.MOST):
            try:
                self._wakeup.recv(512)
            except (BlockingIOError, InterruptedError):
                break

    def take_hints(self) -> list:
        """Return the hints that came, at most MOST: how many jobs became ready, or 0 if something else is new."""
        found = []
        for _ in range(self.MOST):
            try:
                token, _, count = self._hints.recv(64).partition(b" ")
            except BlockingIOError:
                break
            except OSError:
                continue  # on Windows: a datagram was too long, or a port that is gone has answered
            if token == self.token.encode() and count.isdigit():
                found.append(int(count))
        return found

    def close(self) -> None:
        """Close the descriptors, in a forked child."""
        for end in (self._hints, self._wakeup, self._wakeup_writer):
            end.close()


# What a supervisor is started with.  kind: start or run; asked: the options of `worker start`, arguments: the same as JSON.
SupervisorSpec = record("SupervisorSpec", "database kind count asked arguments", defaults=("",))


class Supervisor:
    """Keep `spec.count` workers running; report through `log(event, **facts)`."""

    def __init__(self, spec, log, argv):
        self.kind = spec.kind
        on = spec.asked.get("on")  # where the jobs run, if not on this machine: then one worker, the dispatcher, has all slots
        self._on = EngineSpec(**on) if on else None
        self.count = 1 if on else spec.count
        self.stopping = 0         # 0, GRACEFUL or IMMEDIATE
        self._reopen = False      # whether USR1 asked to open the log again
        self.within = None        # the job that runs this supervisor: --drain does not wait for it
        self.interrupted = None   # the signal that raised `stopping`: the user's, or a closed terminal's
        self._queues, self._drain, self._load, self._idle_timeout = map(spec.asked.get, ("queues", "drain", "load", "idle_timeout"))
        self._log = log
        self._argv = list(argv)   # starts a worker as a new program on systems where we don't fork
        self.database = spec.database
        self._store = Store(self.database, WORKER_PATIENCE_S)
        fault = OS.foreign_files(self.store.db.files)
        if fault:
            raise UserError(fault)
        self._inbox = Inbox({"SIGTERM": self._on_stop, "SIGINT": self._on_stop, "SIGBREAK": self._on_stop, "SIGHUP": self._on_now,
                             "SIGQUIT": self._on_now, "SIGVTALRM": self._on_now, "SIGUSR1": self._on_reopen})
        self._busy_at = self._last_event = None  # when one of the workers was last seen with a job
        self._retiring = set()    # pids of workers told to end because fewer are wanted
        self.id, lock = self._repairing(lambda: self.store.workers.add_supervisor(spec, self._inbox.port, self._inbox.token))
        self._lock = LockFile(self.store.db.files.supervisor_lock(self.id), lock)
        self._store.db.on_wait = self._lock.on_wait
        self._workers = OS.worker_processes(self._inbox.token)
        self._trouble = ""
        self._wrong = None        # what failed in this turn
        self._locked = False      # whether that is a locked database: one wait per turn is enough
        self._news = False        # whether a hint came that has not been acted on
        self._signed = None       # the value of `_seen` at our last sign of life
        self._rescue_at = 0.0     # when to look for dead workers: at once if one of ours has ended
        self._kill_at = 0.0       # when to kill workers that were told to end now
        self._begun = False       # whether the first workers have been started
        self._passed_on = self._relayed = 0
        self._delay, self._start_at = 0.0, 0.0     # the delay between starts of workers that die young
        self._seen = self._look_at = self._tidy_at = 0.0
        self._tidied = 0          # the history row up to which old jobs have been removed
        self._skew = time.time() - time.monotonic()
        self._next = None
        self._dead = set()        # ids of our dead workers while something of their attempt lives

    # -- setting up --

    @property
    def store(self):
        """Return the Store, opened again after a fork."""
        if self._store is None:
            try:
                self._store = Store.existing(self.database, WORKER_PATIENCE_S)
            except UserError as error:  # for example because other users may write to it now
                raise OSError("can't open the database yet: %s" % error) from None
            self._store.db.on_wait = self._lock.on_wait
            self._seen = None  # a new connection starts its own count of changes
        return self._store

    def _on_stop(self, number, _) -> None:
        self.stopping, self.interrupted = min(IMMEDIATE, self.stopping + 1), number

    def _on_now(self, number, _) -> None:
        self.stopping, self.interrupted = IMMEDIATE, number  # after HUP nobody is left to watch, so the jobs are given back

    def _on_reopen(self, *_) -> None:
        self._reopen = True

    # -- the loop --

    def start(self) -> None:
        """Release what dead workers left, start our workers, and return when they are ready to take jobs."""
        self._repairing(self.store.schedules.repair_clock)
        self._repairing(self._rescue)
        self.store.workers.sweep()
        if self.kind != "run":
            self.store.schedules.fire_at_boot(OS.boot())
        OS.before_forks()
        limit = time.monotonic() + 30
        while self._ready_workers() < self.count and time.monotonic() < limit and not self.stopping:
            self._reap()
            self._replace()
            self._lock.set_status("waits for its workers to start (%d)" % self.count)
            self._inbox.wait(0.05)
            self._inbox.drain_signals()
            self._inbox.take_hints()
        self._begun = True

    def _ready_workers(self) -> int:
        return sum(worker.supervisor == self.id for worker in self.store.workers.workers())

    def run(self, each=None) -> None:
        """Work until told to stop or, with --drain, until all jobs are done.  Call `each()` every turn, at least 10 times per second."""
        while True:
            self._turn()
            if each is not None:
                self._try(each)
            if self.stopping and not self._workers.pids():
                break
            self._inbox.wait(self._pause(each))

    def _repairing(self, action):
        """Return the result of `action`; if a row holds an invalid value, remove that value and repeat the action."""
        try:
            return action()
        except WrongValue:
            for fault in self.store.keep.repair_values():
                self._log("trouble", why=fault)
            return action()

    def _try(self, step, *values):
        """Take a step of a turn and return its result; None if the database or the machine refused.

        A step that failed is still due, and the other steps are taken anyway: nothing that was learnt once may be
        forgotten because something else failed.  Only a locked database ends the turn: one wait per turn is enough.
        """
        if self._locked:
            return None
        try:
            return self._repairing(lambda: step(*values))
        except (sqlite3.OperationalError, OSError, WrongValue) as error:
            if is_damage(error):
                raise
            self._locked = is_busy(error)
            self._wrong = self._wrong or "%s; trying again" % error
            self._log_once(self._wrong)
            return None

    def _log_once(self, why: str) -> None:
        """Report a trouble, but not the same one repeatedly."""
        if why != self._trouble:
            self._trouble = why
            self._log("trouble", why=why)

    def _pause(self, each) -> float:
        now = time.monotonic()
        pause = min(self._look_at, self._rescue_at, self._tidy_at) - now
        if self._next is not None:
            pause = min(pause, self._next - time.time())
        if self._news:
            pause = 0.0
        if self._wrong:
            pause = 1.0
        if each is not None:
            pause = min(pause, 0.1)
        return max(0.0, pause)

    def _turn(self) -> None:
        """Do what is due.  Steps that only read come first: a locked database or a full disk may refuse a write."""
        self._wrong, self._locked = None, False
        self._inbox.drain_signals()
        hints = self._inbox.take_hints()
        self._news = self._news or (bool(hints) if self._drain else 0 in hints)
        self._open_log()
        self._reap()
        self._relay()
        now = time.monotonic()
        if sum(hints) and not self.stopping:
            self._workers.wake(sum(hints))
        if now >= self._look_at:
            self._look_at = now + (0.1 if self._drain else LOOK_S)
            self._relayed = 0  # repeat it: a worker that was just starting may have missed it
            self._try(lambda: self.store.db.check_file())  # `store` may have to be opened: that is part of the step
            self._try(self._keep_lock)
            self._try(self._cancel)  # again, in case a worker missed it
            self._heed(now)
            self._answer()
            self._try(self._check_clock)
        elif self._news:
            self._heed(now)
            self._answer()
        if now >= self._rescue_at:
            self._try(self._rescue)
        if now >= self._tidy_at:
            self._try(self._tidy, now)
        self._replace()
        if self._next is not None and time.time() >= self._next:
            self._news = True
            self._try(lambda: self.store.schedules.tick())
        if self._wrong is None and now >= self._start_at:
            self._trouble = ""  # report the trouble again if it comes back
        self._lock.set_status(self._waits())

    def _answer(self) -> None:
        """Give a sign of life if asked (see Workers.unanswered) or if there was work; an idle supervisor writes nothing."""
        try:
            stat = os.stat(self._lock.path)
            if stat.st_atime_ns > stat.st_mtime_ns or self._seen != self._signed:
                now = max(time.time_ns(), stat.st_atime_ns)
                os.utime(self._lock.path, ns=(now, now))
                self._signed = self._seen
        except OSError:
            pass  # its directory was deleted: nobody can ask there

    def _waits(self):
        """Return what this supervisor waits for, in words; None if only for work."""
        if self._wrong:
            return self._wrong
        if self.stopping and self._workers.pids():
            now = " now" if self.stopping == IMMEDIATE else ""
            return "is stopping%s: waits for its workers to end (%d)" % (now, len(self._workers.pids()))
        if self._dead:
            return "waits for what dead workers left behind to end: worker %s" % ", ".join(map(str, sorted(self._dead)))
        if time.monotonic() < self._start_at:
            return "waits before it starts another worker: the last one died at once"
        return None

    def _open_log(self) -> None:
        """Have the log opened again, here and by the workers, if USR1 asked for that."""
        if self._reopen:
            self._reopen = False
            self._log("reopen")
            self._signal_workers("look")

    def _signal_workers(self, word: str) -> None:
        for pid in self._workers.pids():
            OS.signal_worker(pid, word)

    def _heed(self, now: float) -> None:
        """Act on what is new in the database, if anything is; what fails is still new."""
        if self._try(self._act, now):
            self._news = False

    def _act(self, now: float) -> bool:
        changes = self.store.db.changes()
        self._check_idle(now)
        if not self._news and changes == self._seen and not self._drain:
            return True
        stop, wanted, may_take = self.store.workers.orders(self.id)
        self.stopping = max(self.stopping, stop, 0 if may_take else GRACEFUL)
        self._scale(1 if self._on else wanted)
        self._cancel()
        self._next = self.store.claims.next_time(self._own())
        if not self.stopping:
            self._workers.wake(self.store.claims.ready(self.count, self._queues, self._own()))
            if self._drain and not self.store.claims.unfinished(self._queues, self._own(), self.within):
                self.stopping = GRACEFUL
        self._relay()
        self._seen = changes
        return True

    def _keep_lock(self) -> None:
        """Take the lock again if its file was deleted, and signal the workers to do so."""
        try:
            if self._lock.keep():
                self._signal_workers("look")
        except OSError as error:
            self._log_once("can't make its lock file again: %s" % (error.strerror or error))

    def _cancel(self) -> None:
        for pid in set(self.store.workers.to_cancel(self.id)).intersection(self._workers.pids()):  # a row may name any process
            OS.signal_worker(pid, "look")

    def _check_idle(self, now: float) -> None:
        """Apply --idle-timeout: end if no worker has had a job for that long."""
        if self._idle_timeout is not None and not self.stopping:
            last = self.store.look.last_event()
            if last != self._last_event or any(worker.job for worker in self.store.workers.workers() if worker.supervisor == self.id):
                self._busy_at, self._last_event = now, last
            elif now - self._busy_at > self._idle_timeout:
                self.stopping = GRACEFUL

    def _scale(self, wanted: int) -> None:
        """Change the number of workers; if there are too many, idle ones go first."""
        if self.stopping or wanted == self.count:
            return
        surplus = self.count - wanted
        if surplus > 0:
            pids = set(self._workers.pids()) - self._retiring
            mine = sorted((w for w in self.store.workers.workers() if w.supervisor == self.id and w.pid in pids),
                          key=lambda worker: worker.job is not None)
            for worker in mine[:surplus]:
                self._retiring.add(worker.pid)
                OS.signal_worker(worker.pid, "stop")
        self._log("scaled", text="from %d to %d workers" % (self.count, wanted))
        self.count = wanted

    def _own(self):
        return self.id if self.kind == "run" else None

    def _check_clock(self) -> None:
        """Correct due times if the clock was set back: otherwise retries would wait that much longer."""
        skew = time.time() - time.monotonic()
        if skew < self._skew - 2:
            self.store.schedules.repair_clock()
        self._skew = skew

    def _tidy(self, now: float) -> None:
        """Remove old jobs for a quarter of the time at most: more than workers can end in it, so that the queue does not grow."""
        pause = 0.0
        while not pause and time.monotonic() < now + TIDY_S:
            self._tidied, pause = self.store.keep.tidy(self._tidied)
        self._tidy_at = time.monotonic() + max(pause, 3 * TIDY_S)

    # -- workers --

    def _start_worker(self) -> None:
        self.store.db.check_file()
        self._store.close()  # a connection must not cross a fork
        self._store = None
        spec = WorkerSpec(self.database, self.id, self._queues, self.kind == "run", self._load, self._on)
        self._workers.start(lambda where: self._become_worker(spec, where), self._argv + spec.words())

    def _become_worker(self, spec, where: str) -> None:
        """Close what is the supervisor's in the forked child, and work."""
        self._lock.close()
        self._inbox.close()
        work(spec, OS.worker_signals(where), self._log)

    def _reap(self) -> None:
        """Note which workers have ended.  A rescue is due at once, and stays due until one succeeds."""
        now = time.monotonic()
        for lived in self._workers.reap():  # avoid a hot loop of workers that die as soon as they start
            self._rescue_at = 0.0
            self._delay = 0.0 if lived > 5 else min(5.0, self._delay * 2 + 0.05)
            self._start_at = now + (self._delay if lived < 1 else 0.0)

    def _replace(self) -> None:
        """Start workers until there are as many as wanted."""
        self._retiring.intersection_update(self._workers.pids())
        while not self.stopping and len(self._workers.pids()) - len(self._retiring) < self.count and time.monotonic() >= self._start_at:
            try:
                self._start_worker()
                if self._begun:
                    self._log("replaced")
            except (sqlite3.OperationalError, OSError, MemoryError) as error:
                if is_damage(error):
                    raise
                self._wrong = "can't start a worker yet: %s" % error
                self._log_once(self._wrong)
                self._start_at = time.monotonic() + 1.0

    def _relay(self) -> None:
        """Pass on to the workers what this process was told: stop after the job, or now."""
        if self.stopping > self._passed_on:
            self._log("stopping" if self.stopping == GRACEFUL else "stopping now")
            self._passed_on = self.stopping
            self._kill_at = time.monotonic() + (self._try(lambda: self.store.settings.value("kill_grace")) or 0.0) + END_NOW_S
        if self._passed_on == IMMEDIATE and time.monotonic() >= self._kill_at:
            self._signal_workers("kill")  # a worker is suspended, or stuck in the kernel: its job is rescued
        if self.stopping > self._relayed:
            self._signal_workers("stop" if self.stopping == GRACEFUL else "now")
            self._relayed = self.stopping

    # -- rescue --

    def _rescue(self) -> None:
        """Release what any dead worker left, and remove the rows of dead supervisors once their workers are gone.

        At least once per second the locks tell which are dead.  So none is forgotten because an earlier try failed,
        or because the supervisor that should have done it is suspended.
        """
        pids = self._workers.pids()
        dead = dead_supervisors(self.store) - {self.id}  # our own lock file may have been deleted just now
        left = release_dead(self.store, dead, self.store.workers.workers(),
                            lambda worker: self._try(rescue, self.store, worker, self._log))
        self._dead = {worker.id for worker in left if worker.supervisor == self.id and worker.pid not in pids}
        self._rescue_at = time.monotonic() + (0.25 if self._dead else LOOK_S)

    def close(self) -> None:
        """Release what the workers left, then remove this supervisor's row; if that fails, leave it to the next supervisor."""
        for _ in range(3):
            self._wrong, self._locked = None, False
            self._try(self._rescue)
            if self._wrong is None and self._try(self._leave):
                break
            self._inbox.wait(1.0)
        if self._store is not None:
            self._store.close()
        self._lock.drop()
        self._log("ended")

    def _leave(self) -> bool:
        self.store.workers.remove_supervisor(self.id)
        return True


# == Reports ===========================================================================
# What is shown, as plain data: `--json`, the terminal, `top` and whatever else shows a queue take it from here.
# Facts are values: a moment is Unix seconds, a reason or finding is its kind and what belongs to it.  Views find the words.
# Calls Supervisor, Worker's lock files, Store, Platform differences and small helpers; prints nothing, changes nothing.

# kind: see REASONS.  detail: what is waited for; of a worker or supervisor, what its report says.
Reason = record("Reason", "kind detail")


def wait_report(content) -> dict:
    """Return what a process waits for (`note`), and since when, as its lock file says; or that it is stopped while a job runs."""
    note = content.status or None if content else None
    if content and content.job and not note and content.machine == OS.machine() and OS.is_suspended(content.pid):
        return {"note": "is stopped (SIGSTOP): `kill -CONT %d` lets it go on" % content.pid, "since": None}
    return {"note": note, "since": content.since if note and 0 < content.since < FOREVER_S else None}


def worker_report(store) -> list:
    """Return every listed worker with what its lock file adds: whether it lives, jobs done, and what it waits for.

    `queues` is None for all; `place` is here or elsewhere (another container or boot); `outdated`: its file is not as this one.
    """
    now = store.db.clock()
    supervisors = {supervisor.id: supervisor for supervisor in store.workers.supervisors()}
    facts = []
    for worker in store.workers.workers():
        content = read_lock(store.db.files.lock(worker.id))
        supervisor = supervisors.get(worker.supervisor)
        state = "busy" if worker.job else "idle"
        if store.workers.is_alive(worker) is False:
            state = "away" if worker.engine and is_ours(store, worker) else "dead"
        elif supervisor is None or supervisor.stop:
            state = "stopping"
        version = content.version or None if content else None
        facts.append({"id": worker.id, "pid": worker.pid, "supervisor": worker.supervisor, "state": state, "job": worker.job,
                      "done": content.done if content else 0, "started_at": worker.started_at, "engine": worker.engine,
                      "uptime": round(max(0.0, now - worker.started_at), 3), **wait_report(content),
                      "queues": supervisor and supervisor.queues and supervisor.queues.strip("/").split("/"),
                      "place": "here" if worker.machine == OS.machine() else "elsewhere",
                      "version": version and version.partition("-")[0], "outdated": version and version != program_version()})
    return facts


def supervisor_report(store) -> list:
    """Return every listed supervisor; its state is working, stopping, silent (alive, but it does not answer) or dead."""
    facts, silent = [], store.workers.unanswered()
    for supervisor in store.workers.supervisors():
        path = store.db.files.supervisor_lock(supervisor.id)
        state, wait = "stopping" if supervisor.stop else "working", wait_report(read_lock(path))
        if supervisor.id in silent:
            state, wait = "silent", {"note": None, "since": silent[supervisor.id]}
        elif not OS.is_held(path):
            state, wait = "dead", {"note": None, "since": None}
        facts.append({"id": supervisor.id, "pid": supervisor.pid, "kind": supervisor.kind, "state": state, "count": supervisor.slots,
                      "started_at": supervisor.started_at, **wait})
    return facts


def waiting(facts: list) -> list:
    """Return those workers or supervisors of a report that wait for something other than work."""
    return [fact for fact in facts if fact["note"] or fact["state"] in ("silent", "dead") and "kind" in fact]


def status_report(store) -> dict:
    """Return counts of jobs, workers and supervisors, and as `warnings` the findings about what nothing will run."""
    return {"jobs": store.queues.counts(), "workers": worker_report(store), "supervisors": supervisor_report(store),
            "oldest_waiting": store.look.oldest_waiting(), "database": store.db.path,
            "warnings": [found for found in [oldest_stuck(store, row, None) for row in store.queues.list()] +
                         [unfired(store, store.schedules.list())] if found]}


def job_pages(store, states, limit: int, filters=None):
    """Yield jobs in pages, newest first: no cursor stays open while a slow reader takes them."""
    before, left, filters = None, limit or 2**62, filters or {}
    while left > 0:
        page = store.look.jobs(states, min(left, 2**40 if filters.get("sort") else 1000), before, **filters)
        if not page:
            return
        yield page
        if filters.get("sort"):
            return  # a custom order has no id to continue from
        before, left = page[-1].id, left - len(page)


def job_report(store, job, children=None) -> dict:
    """Return everything about one job: the row, its attempts, its relatives, its log, and what its worker waits for.

    children: those to show, if not all.
    """
    content = read_lock(store.db.files.lock(job.worker)) if job.state == "processing" else None
    parents, log = store.look.parents([job.id]).get(job.id, []), output_of(store, job, job.attempt)
    return {"job": job, "parents": [parent for parent in parents if parent > 0],
            "after_batches": [-parent for parent in parents if parent < 0],
            "children": store.look.children(job) if children is None else children,
            "log": log if os.path.exists(log) else None,
            "history": history_report(store, job), **wait_report(content)}


def history_report(store, job) -> list:
    """Return every attempt of a job; the pid of a running attempt is in its worker's lock file."""
    found = []
    for attempt in store.look.history(job.id):
        content = read_lock(store.db.files.lock(attempt.worker)) if attempt.outcome == "running" else None
        if content and (content.job, content.attempt) == (job.id, attempt.attempt):
            attempt = attempt._replace(pid=content.group)
        found.append(dict(attempt._asdict(), error=error_text(attempt), duration=attempt.duration and round(attempt.duration, 6)))
    return found


def running(store, job, attempt: int) -> bool:
    """Whether an attempt still writes; if its end can't be recorded yet, it already has its log."""
    return job.state == "processing" and job.attempt == attempt and not os.path.exists(store.db.files.log(job.id, attempt))


def wrote(store, job, attempt: int) -> bool:
    """Whether the history says that an attempt wrote something: then a log that is missing was not copied with the queue."""
    return any(found.attempt == attempt and found.output for found in store.look.history(job.id))


def output_of(store, job, attempt: int) -> str:
    """Return the path of the file that holds the output of an attempt."""
    if not running(store, job, attempt):
        return store.db.files.log(job.id, attempt)
    place = store.handed.place(job)
    if place is None:
        return store.db.files.output(job.worker)
    there = Files(os.path.join(place[0].folder, str(place[1])))
    log = there.log(job.id, attempt)
    return log if os.path.exists(log) else there.output("%d.%d" % (job.id, attempt))


# -- why a job is not running --

def explain_report(store, job) -> dict:
    """Return why a job is not running, or what keeps its worker; `lost`: the worker that had it is dead."""
    reasons = why_waiting(store, job) + why_workers_wait(store, job)
    if job.state in WAITING and not reasons:
        reasons = why_not_taken(store, job)
    reasons += [found for found in [why_engine_waits(store, job)] if found]
    lost = any(worker.id == job.worker and store.workers.is_alive(worker) is False for worker in store.workers.workers())
    return {"job": job, "reasons": reasons, "lost": lost}


def why_waiting(store, job) -> list:
    """Return the Reasons in the database that keep a job from running."""
    return [Reason(*found) for found in store.look.why_waiting(job)] if job.state in WAITING else []


def why_engine_waits(store, job):
    """Return what an engine says of a job that was handed to it, as a Reason; None if it runs on this machine."""
    place = store.handed.place(job) if job.state == "processing" else None
    if place is None:
        return None
    sent, number = place
    worker = next((worker for worker in store.workers.workers() if worker.id == job.worker and worker.engine in ENGINES), None)
    if worker is None:
        return None
    engine = ENGINES[worker.engine]()
    try:
        task = engine.look([sent.folder]).get(sent.folder, (None, {}))[1].get(number)
    except EngineError as error:
        task = Task("", str(error), None)
    away = store.workers.is_alive(worker) is False
    return Reason("engine", {"engine": worker.engine, "title": engine.title, "handle": sent.handle, "task": number, "away": away,
                             "state": task and task.state, "why": task and task.reason, "starts_at": task and task.starts})


def why_workers_wait(store, job) -> list:
    """Return what blocks the workers that run a job or could take it."""
    if job.state in FINAL:
        return []
    serve = serving(store, job) if job.state in WAITING else []
    if job.state in WAITING and not serve:
        return [Reason("no worker", job.queue)]
    workers = [fact for fact in worker_report(store) if fact["id"] == job.worker or fact["supervisor"] in serve]
    supervisors = [fact for fact in supervisor_report(store) if fact["id"] in serve] if serve else []
    answering = [fact for fact in supervisors if fact["state"] != "silent"]  # if one answers, its workers take the job
    return [Reason("supervisor", fact) for fact in waiting(answering or supervisors)] + [
        Reason("worker", fact) for fact in waiting(workers)]


def why_not_taken(store, job) -> list:
    """Return the idle workers that don't take a job for a second though nothing blocks it."""
    serve, limit = serving(store, job), time.monotonic() + LOOK_S
    idle = [fact for fact in worker_report(store) if fact["job"] is None and fact["supervisor"] in serve]
    while idle and time.monotonic() < limit:
        if store.look.find(job.id) != job:
            return []
        time.sleep(0.02)
    return [Reason("idle", fact) for fact in idle[:5]]


def serving(store, job) -> list:
    """Return the ids of the living supervisors whose workers may take a job."""
    return [supervisor.id for supervisor in store.workers.supervisors() if serves(store, supervisor, job)]


def serves(store, supervisor, job) -> bool:
    """Whether a supervisor is alive and its workers may take a job."""
    return (is_serving(store, supervisor, job.queue)
            and (supervisor.id == job.pool or supervisor.kind == "start" and job.pool is None))


def is_serving(store, supervisor, queue: str) -> bool:
    """Whether a supervisor is alive, is not stopping, and has workers for a queue."""
    return ((supervisor.queues is None or slashed([queue]) in supervisor.queues) and not supervisor.stop
            and OS.is_held(store.db.files.supervisor_lock(supervisor.id)))


def deadlocked(store, job_id: int, seen=frozenset()) -> bool:
    """Whether a job can't start because jobs that wait for it, and so can't end before it, take up what it needs.

    Stopping workers claim no job.  If only such workers are left, a job that they still run waits in vain.
    """
    job = store.look.find(job_id)
    if job is None or job.state not in WAITING or job_id in seen:
        return False
    reasons = store.look.why_waiting(job)
    before = [parent for reason, detail in reasons for parent in (
        detail if reason == "parents" else [detail] if reason == "key" else []) if parent > 0]
    if before or job.gate not in (READY, RESERVED):
        return any(deadlocked(store, parent, seen | {job_id}) for parent in before)
    later, running = store.workers.later_than(job_id), store.look.jobs(("processing",))
    if any(reason == "limit" for reason, _ in reasons):
        return later.issuperset(other.id for other in running if other.queue == job.queue)
    homes = {worker.id: worker.supervisor for worker in store.workers.workers()}
    listed = store.workers.supervisors()
    serving = [supervisor for supervisor in listed if serves(store, supervisor, job)]
    if not serving:
        stopping = {supervisor.id for supervisor in listed if supervisor.stop}
        return any(other.id in later and homes.get(other.worker) in stopping for other in running)
    for supervisor in serving:
        busy = [other for other in running if homes.get(other.worker) == supervisor.id]
        used = sum(min(other.slots, supervisor.slots) for other in busy)
        if used + min(job.slots, supervisor.slots) <= supervisor.slots or not later.issuperset(other.id for other in busy):
            return False
    return True


# -- queues, batches, schedules --

def queue_report(store) -> list:
    return [dict(row._asdict(), paused=bool(row.paused)) for row in store.queues.list()]


def batch_report(store, batch) -> dict:
    """Return one batch, with a count of its jobs for each state."""
    return dict(batch._asdict(), jobs=store.queues.batch_counts(batch.id))


def schedule_report(store, rows) -> list:
    """Return these schedules: the options of its job as they were given, then its own fields; `error` says why it can't run."""
    now, facts = store.db.clock(), []
    for row in rows:
        overlap = OVERLAPS[row.no_overlap] if row.no_overlap in range(len(OVERLAPS)) else ""
        facts.append(dict(job_of_schedule(row), name=row.name, spec=row.spec, every=row.every, tz=row.tz, misfire=row.misfire,
                          no_overlap=overlap == "skip", overlap=overlap, paused=bool(row.paused), next_at=row.coming,
                          last_at=row.last_at, last_job=row.last_job, error=row.trouble(now)))
    return facts


def job_of_schedule(schedule) -> dict:
    """Return a schedule's job options as they were given; if they can't be read (the caller shows why), an empty command."""
    try:
        return stored_job(schedule.options)
    except UserError:
        return {"command": ""}


# -- the outcome of a run --

def run_report(store, batch: int, total: int, duplicates, took: float) -> dict:
    """Return what became of the `total` jobs of a run.  duplicates: ids of the jobs that were there already."""
    counts = store.queues.batch_counts(batch)
    jobs = [store.look.find(job_id) for job_id in duplicates]
    stand = [job.state if job is not None else "removed" for job in jobs]
    return {"batch": batch, "total": total, "completed": counts["completed"], "dead": counts["dead"], "cancelled": counts["cancelled"],
            "left": counts["pending"] + counts["failed"] + counts["processing"],
            "removed": total - sum(counts.values()) - len(duplicates),
            "duplicates": {state: stand.count(state) for state in dict.fromkeys(stand)},
            "flaky": [{"id": job, "name": name, "tries": tries} for job, name, tries in store.look.flaky(batch)],
            "duration": round(took, 3), "ok": counts["completed"] + stand.count("completed") == total}


# -- stats --

def stats_report(store, window: float) -> tuple:
    """Return what the attempts of the last `window` seconds came to, by queue and by program; the time, and when a day's ended."""
    now = store.db.clock()
    rows = store.look.finished_since(now - max(window, 86400))
    recent = [ended for ended in rows if ended.at >= now - window]
    return {"since": now - window, "throughput": throughput(store, now),
            "queues": group_stats(recent, lambda ended: ended.queue),
            "commands": group_stats(recent, lambda ended: command_name(ended.command))}, now, [ended.at for ended in rows]


def throughput(store, now: float) -> dict:
    return dict(zip(("minute", "hour", "day"), store.look.counts_since((now - 60, now - 3600, now - 86400))))


@lru_cache(maxsize=1000)
def command_name(command) -> str:
    """Return the program of a shell command, as far as its first word tells."""
    text = text_of(command) if isinstance(command, bytes) else command
    words = text.split()
    if "'" in text or '"' in text:  # a path in quotes may hold blanks
        import re
        words = re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", text)
    word = next((word for word in words if "=" not in word), "".join(words[:1]))
    return plain(os.path.basename(word.replace("'", "").replace('"', "").strip("()")))


def group_stats(rows, key) -> dict:
    """Return count, success rate, retries, durations and waiting time of attempts by a key, the most frequent first."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: attempt_stats(group) for name, group in sorted(groups.items(), key=lambda item: -len(item[1]))[:50]}


def attempt_stats(group) -> dict:
    durations = sorted(ended.duration or 0.0 for ended in group)
    waited = sorted(ended.waited for ended in group if ended.waited is not None)
    good = sum(ended.completed for ended in group)
    return {"count": len(group), "success_rate": round(good / len(group), 4),
            "retries": sum(ended.retried for ended in group),
            "p50": percentile(durations, 0.5), "p95": percentile(durations, 0.95), "max": round(durations[-1], 6),
            "waited_p50": percentile(waited, 0.5) if waited else None}


def percentile(ordered, share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 6)


# -- what is wrong --

# level: ok, warn or bad.  kind: see FINDINGS, with the values that its words need.  repair: a function that repairs it and returns
# whether it did, or None.  The caller may repair a finding before the next one is looked for.
Finding = record("Finding", "level about kind values repair")
FREE_BYTES = 64 * 2**20  # a disk with less is nearly full
FREE_PAGES_BYTES = 16 * 2**20  # fewer in a database are not worth a word


def finding(level: str, about: str, kind: str, repair=None, **values):
    return Finding(level, about, kind, values, repair)


def examine(path: str):
    """Yield a Finding for each thing that `doctor` checks."""
    yield from once(examine_all(path, (
        examine_database, examine_workers, examine_locks, examine_schedules, examine_jobs, examine_logs)))


def examine_all(path: str, parts):
    if is_queue(path):  # nothing of another program's is repaired
        yield from examine_files(Files(path))
    yield from examine_queue(path, parts)


def once(findings):
    """Yield findings, but not one that says the same again: the files and the database may be refused for one reason."""
    told = set()
    for found in findings:
        same = "damaged" if found.kind == "damaged" else found.values.get("text")
        if same is None or same not in told:
            yield found
        told.add(same)


def examine_queue(path: str, parts):
    """Yield what the parts, functions of a Store, find in one database, and its disk; a part that fails is a finding."""
    if not os.path.exists(path):
        yield finding("bad", "database", "no queue", path=path)
        return
    try:
        refuse_foreign_wal(path)
        with Store(path) as store:  # which refuses what commands refuse, such as a file with two names
            for part in parts:
                try:
                    yield from part(store)
                except WrongValue as error:
                    yield finding("bad", "database", "wrong value", path=path, text=str(error))
    except UserError as error:
        yield finding("bad", "database", "refused", text=str(error))
        return
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        yield finding("bad", "database", "damaged", path=path, why=str(error))
    yield from examine_disk(path)


def examine_files(files):
    """Yield findings about files of the queue, or beside it, that are not its owner's alone."""
    found = {}
    for path, kind, repair in OS.oddities(files):
        found.setdefault((kind, repair is not None), []).append((path, repair))
    for (kind, can_repair), rows in sorted(found.items()):
        text = OS.distrust(files) or OS.foreign_files(files) if kind == "owner" else ""
        level, values = "bad" if kind == "owner" else "warn", {"text": text} if text else {"path": rows[0][0]}
        repair = partial(repair_all, [repair for _, repair in rows]) if can_repair else None
        yield finding(level, "files", "foreign" if text else kind, repair, others=len(rows) - 1, **values)
    if not found:
        yield finding("ok", "files", "own files")


def repair_all(repairs) -> bool:
    for repair in repairs:
        repair()
    return True


def examine_database(store):
    damage = store.keep.damage()
    if damage:
        yield finding("bad", "database", "damaged", path=store.db.path, why=damage[0].split("\n")[-1])
        return
    faults = store.keep.check()
    left = lru_cache(maxsize=None)(lambda: (store.keep.repair(), store.keep.check())[1])  # one repair is for all of them
    for fault in faults:
        yield finding("bad", "database", "fault", lambda fault=fault: fault not in left(), text=fault)
    if not faults:
        yield finding("ok", "database", "sound", path=store.db.path)
    free, size = store.keep.free_bytes()
    if free > max(FREE_PAGES_BYTES, size / 2):
        yield finding("ok", "database", "free pages", store.keep.compact, free=free)


def glance_at_database(store):
    for line in store.keep.damage_at_a_glance():
        yield finding("bad", "database", "damaged", path=store.db.path, why=line.split("\n")[-1])


def examine_workers(store):
    sound = True
    for worker in store.workers.workers():
        if worker.engine and is_ours(store, worker) and not store.workers.is_alive(worker):
            sound = False
            yield finding("warn", "workers", "left with", engine=worker.engine, title=ENGINES[worker.engine].title)
        elif not store.workers.is_alive(worker):
            sound = False
            yield finding("warn", "workers", "dead worker", partial(rescue_in_time, store, worker), id=worker.id, job=worker.job,
                          wait=wait_report(read_lock(store.db.files.lock(worker.id))))
    for fact in worker_report(store):
        if fact["engine"] and fact["note"] and fact["state"] != "away":
            sound = False
            yield finding("warn", "workers", "engine", text=fact["note"])
    for fact in supervisor_report(store):
        if fact["state"] in ("dead", "silent"):
            sound = False
            yield finding("warn", "workers", fact["state"] + " supervisor", fact["state"] == "dead" and partial(
                forget_supervisor, store, fact["id"]), id=fact["id"], since=fact["since"],
                          workers=[worker.id for worker in store.workers.workers() if worker.supervisor == fact["id"]])
    if sound:
        yield finding("ok", "workers", "workers", count=len(store.workers.workers()))


def rescue_in_time(store, worker) -> bool:
    """Rescue a worker's job, but first wait until it is known whether the worker is dead; return whether it was rescued."""
    limit = time.monotonic() + MISSING_S + 2
    while not rescue(store, worker):
        if store.workers.is_alive(worker) is not None or time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def forget_supervisor(store, supervisor: int) -> bool:
    """Remove a dead supervisor, unless workers of it still live; return whether it was removed."""
    workers = [worker for worker in store.workers.workers() if worker.supervisor == supervisor]
    return not release_dead(store, {supervisor}, workers, partial(rescue, store))


def examine_locks(store):
    for path in store.workers.stray_files():
        yield finding("warn", "workers", "stray lock", partial(repair_all, [partial(remove, path)]), path=path)


def examine_schedules(store):
    """Yield findings about schedules that can't run, or that no supervisor fires."""
    now, rows = store.db.clock(), store.schedules.list()
    faults = [(row.name, row.trouble(now)) for row in rows]
    for name, why in faults:
        if why:
            yield finding("bad", "schedules", "broken schedule", name=name, why=why)
    stuck = unfired(store, rows)
    if stuck:
        yield stuck
    elif not any(why for _, why in faults):
        yield finding("ok", "schedules", "schedules", count=len(rows))


def unfired(store, rows):
    """Return the finding that no supervisor lives to fire these schedules, or None."""
    coming = [row for row in rows if row.coming is not None]
    if not coming or any(not supervisor.stop and OS.is_held(store.db.files.supervisor_lock(supervisor.id))
                         for supervisor in store.workers.supervisors()):
        return None
    due = [row for row in coming if row.coming <= store.db.clock() - LOOK_S]
    return (finding("bad", "schedules", "due schedule", name=due[0].name, others=len(due) - 1, since=due[0].coming) if due else
            finding("warn", "schedules", "no supervisor", count=len(coming)))


def examine_jobs(store, queues=(), max_wait=None, max_dead: int = 0):
    """Yield findings about jobs that no worker serves, jobs that have waited longer than `max_wait`, and more than `max_dead` dead jobs."""
    rows = [row for row in store.queues.list() if not queues or row.name in queues]
    found = [stuck for stuck in (oldest_stuck(store, row, max_wait) for row in rows) if stuck]
    dead = sum(row.jobs["dead"] for row in rows)
    if dead > max_dead:
        found.append(finding("warn", "jobs", "dead jobs", count=dead))
    found += [finding("warn", "jobs", "unknown queue", queue=name) for name in queues if name not in [row.name for row in rows]]
    yield from found or [finding("ok", "jobs", "jobs", count=sum(row.jobs[state] for row in rows for state in WAITING))]


def ready_since(job) -> float:
    """Return when a waiting job could have run first, if nothing but its time kept it back."""
    return max(job.created_at, job.run_at)


def oldest_stuck(store, row, max_wait):
    """Return the finding that the jobs of an open queue wait for workers, or that one has waited for too long; or None."""
    job = None if row.paused else store.look.oldest_waiting(row.name)
    if job is None:
        return None
    since = ready_since(job)
    if not serving(store, job):
        return finding("bad", "jobs", "unserved", queue=row.name, job=job.id, since=since)
    if max_wait is not None and store.db.clock() - since > max_wait:
        return finding("warn", "jobs", "overdue", queue=row.name, job=job.id, since=since, most=max_wait)
    return None


def examine_logs(store):
    orphans = store.keep.orphaned_logs()
    if orphans:
        yield finding("warn", "logs", "stray logs", partial(repair_all, [partial(remove, path) for path in orphans]),
                      count=len(orphans), path=orphans[0])
    else:
        yield finding("ok", "logs", "logs")


def examine_disk(path: str):
    import shutil
    kind, free = OS.network_disk(os.path.dirname(path)), shutil.disk_usage(os.path.dirname(path)).free
    if kind:
        yield finding("bad", "disk", "network disk", type=kind)
    if free < FREE_BYTES:
        yield finding("bad", "disk", "full disk", free=free)
    elif not kind:
        yield finding("ok", "disk", "disk", free=free)


def worst_first(findings) -> list:
    """Return the findings that are not ok, each once, the worst first."""
    return sorted((found for found in once(findings) if found.level != "ok"), key=lambda found: found.level != "bad")


def health_report(path: str, queues=(), max_wait=None, max_dead: int = 0) -> dict:
    """Return how a queue is: the worst level, the findings that are not ok, worst first, and counts of jobs and workers."""
    def count(store):
        for row in store.queues.list():
            for state in STATES if not queues or row.name in queues else ():
                counts[state] += row.jobs[state]
        workers.extend(fact for fact in worker_report(store) if fact["state"] in ("idle", "busy"))
        return ()

    counts, workers = dict.fromkeys(STATES, 0), []
    parts = (glance_at_database, partial(examine_jobs, queues=queues, max_wait=max_wait, max_dead=max_dead), examine_schedules,
             examine_workers, count)
    findings = worst_first(examine_queue(path, parts))
    return {"level": findings[0].level if findings else "ok", "findings": findings, "jobs": counts, "workers": len(workers)}


# == Views =============================================================================
# How things look: tables, colours, progress, log lines, JSON, JUnit.  Text of jobs passes through `plain`.
# Calls Reports, Store, Platform differences and small helpers; changes nothing in the database.

COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "dim": "2", "bold": "1"}
STATE_COLOURS = {"pending": "cyan", "held": "dim", "processing": "blue", "completed": "green", "failed": "yellow", "dead": "red",
                 "cancelled": "dim"}


def is_terminal(stream) -> bool:
    try:
        return stream.isatty()
    except (ValueError, AttributeError):
        return False


@lru_cache(maxsize=None)
def can_draw(stream) -> bool:
    """Whether `stream` is a terminal with colours and a movable cursor; False if TERM is `dumb` or empty."""
    return is_terminal(stream) and OS.terminal_draws()


def invoked() -> str:
    """Return how the user called us, for advice that can be pasted: many machines have a python3, but no python."""
    script = sys.argv[0] or PROGRAM
    if os.path.basename(script).split(".")[0] == PROGRAM and not script.endswith(".py") or __name__ != "__main__":
        return PROGRAM  # installed, or imported by a program of the user's
    name = os.path.basename(sys.executable or "python3")
    return OS.quote([name[:-4] if name.endswith(".exe") else name, script])


def invoked_at(args) -> str:
    """Return the same with the options by which the user named the queue."""
    return invoked() + ("" if args.db is None else " --db " + OS.quote([plain(args.db)])) + (" --as-root" if acts_as_root() else "")


FAULT_TEXTS = {
    BUSY: "%s is locked by another program: try again when that is done",
    FULL: "no space is left on the disk of %s: nothing was written",
    READ_ONLY: "%s is read-only for you: get the right to write, or give another --db",
    IO_FAILURE: "the system refuses to read or write %s (disk I/O error): look at its log, at the disk and at `ulimit -f`",
    NOT_OPENED: "can't open %s: check that its directory exists and that you may write there",
    FOREIGN_FILE: "%s is not a database: give another --db, or restore it from a backup"}


def explain_error(error, database=None) -> str:
    """Return what went wrong with the machine or the database, in one line."""
    if isinstance(error, UnicodeEncodeError):  # from a filter in SQL; only commands and directories may be any bytes
        return "%s is not valid UTF-8, so no job, queue or batch has this name: give it as `list` shows it" % quoted(error.object)
    text = plain(str(error))
    where = plain(database) if database else "the database"
    if isinstance(error, sqlite3.Error):
        fault = sqlite_fault(error)
        if fault in FAULT_TEXTS and fault != IO_FAILURE:
            return FAULT_TEXTS[fault] % where
        if isinstance(error, WrongValue):
            return "%s was changed by another program (%s): `%s doctor --fix` repairs it" % (where, text, invoked())
        if fault == IO_FAILURE:
            return lock_advice(find_database(database)) or FAULT_TEXTS[fault] % where
        return "%s is damaged (%s): `%s doctor` says what can be done" % (where, text, invoked())
    if isinstance(error, OSError) and error.strerror:
        try:
            advice = OS.owner_of_refused(error, Files(find_database(database)).root)
        except UserError:
            advice = ""  # there is no home directory, so there is no queue
        return advice or ("%s: %s" % (error.strerror, plain(error.filename)) if error.filename else error.strerror)
    return text


class Output(io.RawIOBase):
    """stdout or stderr, below its buffer.  Text that can't be written is dropped: a command still makes all its changes, and
    its exit status tells of these.  If the command has no other purpose than to print (`needed`), raise OutputLost.
    """

    def __init__(self, raw):
        self.needed = False
        self.error = None    # the first OSError
        self.lost = b""      # the beginning of the text that it lost
        self.dropped = 0     # how many bytes it lost
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data) -> int:
        try:
            written = self._raw.write(data)
            while written is None:  # another program made it non-blocking
                import select
                select.select([], [self._raw], [])
                written = self._raw.write(data)
            return written
        except OSError as error:
            if self.error is None:
                self.error, self.lost = error, bytes(data[:200])
            self.dropped += len(data)
        if self.needed:
            self.needed = False  # raise only once: Python flushes again when it ends
            raise OutputLost
        return len(data)

    def has_reader(self) -> bool:
        """Whether the output still has a reader.  A pipe, a socket or a terminal may be closed at any time: that is not a failure."""
        return not isinstance(self.error, ConnectionError) and not (self.error and OS.has_hung_up(self.error, self.fileno()))

    def trouble(self) -> str:
        why = "it is closed" if self.error.errno == 9 else self.error.strerror  # EBADF
        return "can't write to standard output: %s" % why


def prepare_streams() -> Output:
    """Put an Output below stdout and stderr; return stdout's, which is `needed` until the command is known.

    Open a closed stream on the null device first: a file of ours must not get its descriptor.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    for number, name in ((2, "stderr"), (1, "stdout")):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = io.FileIO(number, "w", closefd=False) if stream is None else getattr(buffer, "raw", buffer)
        output = raw if isinstance(raw, Output) else Output(raw)
        if isinstance(raw, io.RawIOBase) and output is not raw:
            options = {"encoding": stream.encoding, "line_buffering": stream.line_buffering or raw is buffer} if stream else {}
            stream = io.TextIOWrapper(io.BufferedWriter(output), **options)
            setattr(sys, name, stream)
        stream.reconfigure(errors="backslashreplace", **OS.stream_options)
    output.needed = True
    return output


def complain(text: str, status: int = 2) -> int:
    try:
        sys.stdout.flush()
    except OutputLost:
        pass  # the first error is reported, not this one
    sys.stderr.write("%s: error: %s\n" % (PROGRAM, harmless(" ".join(text.split()))))
    sys.stderr.flush()
    return status


def finish(output, status: int) -> int:
    """Return the exit status of a command that has done its work, even if it could not print that."""
    sys.stdout.flush()
    if output.error and output.has_reader():
        talk("%s: %s; the work is done. It was to print: %s" % (
            PROGRAM, output.trouble(), plain(output.lost.decode("utf-8", "replace").strip())))
    return status


def paint(text: str, colour, stream) -> str:
    """Return `text` in a colour if `stream` is a terminal that may have colours (no-color.org)."""
    if not colour or not can_draw(stream) or os.environ.get("NO_COLOR"):
        return text
    return "%s%sm%s%s0m" % (MARK, COLOURS[colour], text, MARK) if OS.terminal_colours(stream) else text


MARK = "\033[" + os.urandom(8).hex()  # how paint marks a colour for `harmless`; random, so no job's text has it


def harmless(text: str) -> str:
    """Return a line that is safe to print: colours of `paint` become escapes, any other control or bidi character is shown.

    All text that is printed for people comes through here, whether it is from the database, a path or a message.
    """
    first, *painted = text.split(MARK)
    return plain(first) + "".join("\033[%sm%s" % (colour, plain(rest)) for colour, _, rest in (part.partition("m") for part in painted))


def terminal_size(stream):
    try:
        return os.get_terminal_size(stream.fileno())
    except (ValueError, OSError):
        return os.terminal_size((80, 24))  # the terminal is gone: the next write reports it


def terminal_width(stream) -> int:
    """Return the columns of a terminal; 0 (no limit) for any other stream."""
    columns = os.environ.get("COLUMNS", "")
    return 0 if not is_terminal(stream) else int(columns) if columns.isdecimal() and int(columns) else terminal_size(stream).columns


def out(text: str = "") -> None:
    """Print one line of data."""
    sys.stdout.write(harmless(text) + "\n")


def talk(text: str) -> None:
    """Print one line for people on stderr, apart from the data."""
    sys.stdout.flush()
    sys.stderr.write(harmless(text) + "\n")
    sys.stderr.flush()


GOOD, BAD = ("✔", "green"), ("✘", "red")


def verdict(text: str, mark=GOOD) -> None:
    """Print one line that says what was done (GOOD), or was not (BAD)."""
    out("%s %s" % (paint(*mark, sys.stdout), text))


def plural(count: int, noun: str) -> str:
    return "%d %s%s" % (count, noun, "" if count == 1 else "s")


def few(items, most: int = 10) -> str:
    """Return the first of many items as text, and how many more there are."""
    more = " and %s" % plural(len(items) - most, "other") if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def out_json(value) -> None:
    """Print JSON in ASCII: whatever a job is called, no control character gets through."""
    import json
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def json_lines(names, columns: list) -> str:
    """Return columns of texts and numbers as JSON Lines, one per row: that takes half the time of json.dumps."""
    from json.encoder import encode_basestring_ascii as encode

    def encoded(column):
        kinds = set(map(type, column))
        if kinds == {str}:
            return map(encode, column)
        if kinds <= {int, float}:
            return column
        return ["null" if value is None else encode(value) if isinstance(value, str) else value for value in column]

    line = "{" + ", ".join('"%s": %%s' % name for name in names) + "}\n"
    return "".join(map(line.__mod__, zip(*map(encoded, columns))))


def cell_width(text: str) -> int:
    """Return the terminal columns of printable text: an East Asian wide character takes two, a combining mark none."""
    if text.isascii():
        return len(text)
    import unicodedata
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int) -> str:
    """Return text cut to `width` columns; if it is longer, … replaces its end."""
    if cell_width(text) <= width:
        return text
    while text and cell_width(text) > width - 1:
        text = text[:max(0, min(len(text) - 1, width - 1))]
    return text + "…" if width > 0 else ""


def print_table(titles, rows, flexible=(), colours=(), widths=None) -> list:
    """Print aligned columns as wide as the terminal: the columns named in `flexible` shrink if it is narrow.

    `colours` has the colour of cells that hold a word such as a state; numbers are right-aligned.
    Return the widths: with them the next page of the same table continues without titles.
    """
    rows = [[plain(str(cell)) for cell in row] for row in rows]
    onward = widths is not None
    widths = widths or [max([cell_width(title)] + [cell_width(row[i]) for row in rows]) for i, title in enumerate(titles)]
    limit = terminal_width(sys.stdout)
    soft = [i for i, title in enumerate(titles) if title in flexible]
    while limit and sum(widths) + 2 * (len(widths) - 1) > limit:
        widest = max(soft or range(len(widths)), key=lambda i: widths[i])
        if soft and widths[widest] <= 8:
            soft = []  # on a very narrow terminal all columns shrink
        elif widths[widest] <= 1:
            break
        else:
            widths[widest] -= 1
    right = {i for i in range(len(titles)) if rows and all(row[i].replace("/", "").isdigit() for row in rows)}
    if not onward:
        out(paint(_line(titles, widths, right).rstrip(), "dim", sys.stdout))
    for row in rows:
        out(_line(row, widths, right, colours).rstrip())
    return widths


def _line(cells, widths, right, colours=()) -> str:
    parts = []
    for i, cell in enumerate(cells):
        shown = fit(cell, widths[i])
        space = " " * (widths[i] - cell_width(shown))
        shown = paint(shown, colours[cell], sys.stdout) if cell in colours and i < 3 else shown
        parts.append(space + shown if i in right else shown + space)
    return "  ".join(parts)


@lru_cache(maxsize=128)
def local(seconds) -> str:
    """Return Unix seconds as text for people, in the machine's own zone."""
    try:
        return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "never"  # there is no such year


def when_text(job, now: float) -> str:
    """Return the time that matters for a job: when it runs next, how long it has run, or how long ago it ended."""
    if job.state in WAITING and job.run_at > now:
        return "in " + span(job.run_at - now)
    if job.state == "processing":
        return "for " + span(job.running_s(now))
    return span(now - (job.finished_at or job.created_at)) + " ago"


def titled(job) -> str:
    """Return the command of a job, after its name if it has one."""
    return job.command if job.name is None else "%s: %s" % (job.name, job.command)


def state_word(job) -> str:
    """Return the state of a job as lists show it: a waiting job that is held is `held`."""
    return "held" if job.held and job.state in WAITING else job.state


# Columns of `list`: the title, and the function that returns the cell of a job at the time `now`.
COLUMNS = {
    "id": ("ID", lambda job, now: job.id),
    "name": ("NAME", lambda job, now: job.name or ""),
    "state": ("STATE", lambda job, now: state_word(job)),
    "tries": ("TRIES", lambda job, now: "%d/%d" % (job.attempts, job.max_retries + 1)),
    "when": ("WHEN", lambda job, now: when_text(job, now)),
    "queue": ("QUEUE", lambda job, now: job.queue),
    "priority": ("PRIO", lambda job, now: job.priority),
    "duration": ("DURATION", lambda job, now: "-" if job.duration is None else span(job.duration)),
    "exit": ("EXIT", lambda job, now: "-" if job.exit_code is None else job.exit_code),
    "batch": ("BATCH", lambda job, now: job.batch or "-"),
    "created": ("CREATED", lambda job, now: utc(job.created_at)),
    "started": ("STARTED", lambda job, now: utc(job.started_at) or "-"),
    "finished": ("FINISHED", lambda job, now: utc(job.finished_at) or "-"),
    "cwd": ("CWD", lambda job, now: job.cwd),
    "command": ("COMMAND", lambda job, now: titled(job)),
    "error": ("ERROR", lambda job, now: error_text(job) or ""),
}
USUAL_COLUMNS = ("id", "state", "tries", "when", "command", "error")


def print_jobs(jobs, columns=USUAL_COLUMNS, widths=None) -> list:
    now = time.time()
    return print_table([COLUMNS[c][0] for c in columns], [[COLUMNS[c][1](job, now) for c in columns] for job in jobs],
                       ("COMMAND", "ERROR", "CWD"), STATE_COLOURS, widths)


def print_tree(jobs: list, parents: dict) -> None:
    """Print each job below the last of the jobs that it comes after; name the others beside it."""
    known = {job.id for job in jobs}
    children = {}
    for job in jobs:
        over = [parent for parent in parents.get(job.id, ()) if parent in known]
        children.setdefault(max(over) if over else None, []).append(job)
    stack = [(job, "", "") for job in reversed(children.get(None, ()))]
    while stack:
        job, first, more = stack.pop()
        other = [str(parent) if parent > 0 else "batch %d" % -parent for parent in parents.get(job.id, ())
                 if parent != max([p for p in parents[job.id] if p in known], default=None)]
        state = state_word(job)
        out("%s%d %s  %s%s" % (first, job.id, paint(state, STATE_COLOURS[state], sys.stdout), plain(titled(job)),
                              "  (also after %s)" % few(other, 5) if other else ""))
        below = children.get(job.id, ())
        for child in reversed(below):
            last = child is below[-1]
            stack.append((child, more + ("└─ " if last else "├─ "), more + ("   " if last else "│  ")))


LOG_WORDS = {  # event -> colour and text
    "started": ("bold", "started"), "scaled": ("bold", "scaled"), "running": ("blue", "running"), "completed": ("green", "completed"),
    "retry": ("yellow", "failed"), "dead": ("red", "dead"), "cancelled": ("yellow", "cancelled"),
    "released": ("yellow", "given back"), "crashed": ("red", "died while it ran"),
    "failed": ("yellow", "failed"), "timeout": ("yellow", "failed"), "handed over": ("blue", "handed over"),
    "recorded": ("yellow", "recorded for a dead worker the end of"), "snoozed": ("yellow", "snoozed"),
    "stopping": ("bold", "stopping: each worker finishes its job"), "stopping now": ("bold", "stopping now: jobs are given back"),
    "stopped": ("dim", "stopped"), "replaced": ("dim", "starting one more worker"),
    "ended": ("bold", "ended"), "trouble": ("red", "trouble")}


# What a worker or supervisor may say of an event.  worker: its id; wait, duration: in seconds.
LOG_FACTS = ("worker", "job", "why", "wait", "duration", "text")


def log_line(event: str, stream, facts: dict) -> str:
    """Return one line of a supervisor's log for a stream, as in `2026-11-24 21:55:23 worker 1  completed job 12 in 0.1s`."""
    colour, word = LOG_WORDS[event]
    worker, job, why, wait, duration, text = map(facts.get, LOG_FACTS)
    line = "%s  %s" % (local(int(time.time())), ("worker %d" % worker if worker else "supervisor").ljust(10))
    line = "%s  %s" % (paint(line, "dim", stream), paint(word, colour, stream))
    if job is not None:
        line += " job %d" % job.id
    if duration is not None:
        line += " in %s" % span(duration)
    if wait is not None:
        line += ", %s in %s" % ("retry" if event == "retry" else "again", span(wait))
    if why:
        line += " (%s)" % plain(why)
    if text:
        line += " " + text
    return line + (": " + fit(plain(job.command), 200) if job is not None and event in ("running", "dead") else "")


class Log:
    """Print what workers and supervisors report; if the reader of stdout is gone, they go on.

    In the background stdout and stderr are the file `path`.  That file is moved aside when it is too big.  When it
    has been moved, by us or by another program, the next line (or USR1) starts a new file.
    """

    def __init__(self, path: str):
        self._path = path if self._is_ours(path) else None

    def __call__(self, event: str, more: bool = False, **facts) -> None:
        """Print an event; `more`: the line is written with the next one."""
        try:
            if not more and self._path:
                self._follow()
            if event != "reopen":
                out(log_line(event, sys.stdout, facts))
            if not more:
                sys.stdout.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more

    def _is_ours(self, path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(1), os.stat(path))
        except OSError:
            return False

    def _follow(self) -> None:
        if os.fstat(1).st_size > JOURNAL_LIMIT:
            rotate(self._path)
        if not self._is_ours(self._path):
            new = no_link(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            give_away(new, os.path.dirname(self._path))
            sys.stdout.flush()
            os.dup2(new, 1)
            os.dup2(new, 2)
            os.close(new)


def rotate(log: str) -> None:
    """Move the workers' log aside if it is too big: one process does so, and the others find it moved."""
    try:
        lock = OS.hold(log + ".lock")
    except OSError:
        return  # another process moves it
    try:
        if os.stat(log).st_size > JOURNAL_LIMIT:
            move(log, log + ".1")
    except OSError:
        pass  # there is no log yet
    finally:
        os.close(lock)


def print_trouble(event: str, **facts) -> None:
    """Print the troubles of a `run`'s workers on stderr, apart from the data."""
    if event == "trouble":
        talk(log_line(event, sys.stderr, facts))


STILL_RUNNING = "still running"
RESULTS = {  # command: its participle, and per good result how the line that reports it begins
    "retry": ("retried", {"pending": "Back to pending:", DUE_NOW: "Due now:"}), "remove": ("removed", {"removed": "Removed"}),
    "cancel": ("cancelled", {"cancelled": "Cancelled", ASKED: "Asked to end:"}), "edit": ("edited", {"edited": "Edited"}),
    "hold": ("held", {"held": "Held"}), "release": ("released", {"released": "Released"})}


def result_text(verb: str, job_id: int, result) -> str:
    """Return in words what became of a job that a command should change."""
    past, good = RESULTS[verb]
    if result in good:
        return "job %d was %s" % (job_id, "asked to end" if result == ASKED else past)
    if result == STILL_RUNNING:
        return "job %d is still running, and was asked to end" % job_id
    if not isinstance(result, Refused):
        why = {GONE: "it has been removed", CANCELLED_ALREADY: "it was cancelled already",
               PENDING_ALREADY: "it is pending already"}.get(result) or "it is %s" % result
    elif result.why != "parent":
        why = duplicate_text(result.why, result.other)
    else:
        why = "%s; retry job %d first" % (orphan_text(result.other, result.other_state), result.other)
    return "job %d was not %s: %s" % (job_id, past, why)


def ending_text(job) -> str:
    """Return the state of a job, and its error unless that says the same."""
    error = error_text(job)
    return job.state if error in (None, "", job.state) else "%s (%s)" % (job.state, plain(error))


class Progress:
    """Show a bar if stderr is a terminal; otherwise print a plain line every `line_s` seconds (None: no line)."""

    def __init__(self, total: int, line_s=None):
        self._total = total
        self._bar = can_draw(sys.stderr)
        self._begun = time.monotonic()
        self._every = 0.1 if self._bar else line_s
        self._due_at = 0.0 if self._bar else self._begun + (line_s or 0.0)

    def due(self) -> bool:
        """Whether there is something to show again."""
        return self._every is not None and time.monotonic() >= self._due_at

    def show(self, done: int, suffix: str = "", cost: float = 0.0) -> None:
        """Show the progress if that is due.  `cost`: how many seconds the count took; counting may take at most a twentieth of the time."""
        now = time.monotonic()
        if not self.due():
            return
        self._due_at = now + max(self._every, 20 * cost)
        rate = done / max(now - self._begun, 0.001)
        left = (self._total - done) / rate if rate else 0
        text = "%d/%d%s  %.*f/s%s" % (done, self._total, suffix, 1 if rate < 10 else 0, rate,
                                      "  %s left" % span(left) if done else "")
        if self._bar:
            share = done / max(1, self._total)
            bar = "[" + ("#" * int(24 * share)).ljust(24, "-") + "] "
            text = "\r\033[K" + fit(bar + text, terminal_width(sys.stderr) - 1)
        else:
            text += "\n"
        self._write(text)

    def clear(self) -> None:
        if self._bar and self._due_at:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def as_shown(line: str) -> str:
    """Return a line of output as a terminal shows it in the end: text after a carriage return or a backspace overwrites.

    Obey only the escapes that a progress bar uses within its line: K (erase), G, C and D (move), m (colour).
    """
    import re
    if not re.search("[\r\b]|\x1b\\[[0-9]{0,4}[KGCD]", line):
        return line
    cells, at, pen = [], 0, []  # a cell: (colour, characters); a wide character has an empty cell beside it
    for argument, move, char in re.findall("\x1b\\[([0-9;]{0,40})([mKGCD])|(.)", line[-2**16:], re.S):
        count = int(argument) if argument.isdigit() and len(argument) < 5 else 0
        if move == "m":
            pen = pen[-7:] + ["\x1b[%sm" % argument] if argument.strip("0;") else []
        elif move == "K":
            cells[at if count == 0 else 0:at + 1 if count == 1 else None] = [("", " ")] * (0 if count == 0 else at + (count == 1))
        elif char == "\r" or move:
            at = {"G": max(1, count) - 1, "C": max(at, min(at + max(1, count), 9999)), "D": max(0, at - max(1, count))}.get(move, 0)
        elif char == "\b":
            at = max(0, at - 1)
        elif char == "\t":
            at += 8 - at % 8
        elif cell_width(char) or not cells[:at]:
            cells += [("", " ")] * (at - len(cells))
            new = [("".join(pen), char)] + [("", "")] * (cell_width(char) - 1)
            if at < len(cells) and not cells[at][1]:
                cells[at - 1] = ("", " ")  # half of a wide character is left
            cells[at:at + len(new)] = new
            at += len(new)
            if at < len(cells) and not cells[at][1]:
                cells[at] = ("", " ")
        else:  # a combining mark on the character before
            before = at - 1 if at <= len(cells) and cells[at - 1][1] else at - 2
            if 0 <= before < len(cells):
                cells[before] = (cells[before][0], cells[before][1] + char)
    return in_colours(cells, "".join(pen))


def in_colours(cells: list, pen: str) -> str:
    """Return cells (colour, characters) as text with escapes, which leaves the terminal with the colour `pen`."""
    shown, last = [], ""
    for colour, text in cells + [(pen, "")]:
        if colour != last and (text or colour == pen):
            shown.append(("\x1b[0m" if last else "") + colour)
            last = colour
        shown.append(text)
    return "".join(shown)


def last_lines(path: str, count: int) -> list:
    """Return the last lines of a log as a terminal shows them, without colours: text that is safe to print."""
    try:
        with open(path, "rb", opener=no_link) as file:
            size = file.seek(0, os.SEEK_END)
            for part in (8192, 2**20):  # the second size if a progress bar fills the first
                file.seek(max(0, size - part))
                lines = file.read().rstrip(b"\n").split(b"\n")[-count:]
                if len(lines) == count or size <= part:
                    break
            return [safe_for_terminal(as_shown(line.decode("utf-8", "surrogateescape")), colour=False).rstrip().expandtabs()
                    for line in lines if size]
    except OSError:
        return []


def xml_text(text: str) -> str:
    """Return printable text, escaped for XML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def junit(jobs, store, took: float) -> str:
    """Return the outcome of a run as JUnit XML, which CI servers show: one test case per job.

    A job that never ran is skipped; one that passed after failures has a flakyFailure for each, as Maven's Surefire writes it.
    """
    bad = [job for job in jobs if job.state != "completed"]
    skipped = sum(job.attempt == 0 for job in bad)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>',
             '<testsuites><testsuite name="%s" tests="%d" failures="%d" errors="0" skipped="%d" time="%.3f">' % (
                 PROGRAM, len(jobs), len(bad) - skipped, skipped, took)]
    for job in jobs:
        lines.append('<testcase classname="%s" name="%s" time="%.3f">' % (
            PROGRAM, xml_text(plain(job.name or job.command)), job.duration or 0.0))
        lines += junit_result(job, store) + ["</testcase>"]
    return "\n".join(lines) + "\n</testsuite></testsuites>\n"


def junit_output(store, job_id: int, attempt: int) -> str:
    return xml_text("\n".join(last_lines(store.db.files.log(job_id, attempt), 50))[-JUNIT_LIMIT:])


def junit_result(job, store) -> list:
    """Return the elements that say how a job ended, and what it printed."""
    tail = junit_output(store, job.id, job.attempt)
    why = xml_text(plain(error_text(job) or job.state))
    if job.state != "completed":
        return ['<skipped message="%s"/>' % why if job.attempt == 0 else '<failure message="%s">%s</failure>' % (why, tail)]
    failed = [attempt for attempt in (store.look.history(job.id) if job.attempt > 1 else ()) if attempt.outcome in ("failed", "timeout")]
    return ['<flakyFailure message="%s">%s</flakyFailure>' % (
        xml_text(plain(error_text(attempt) or attempt.outcome)),
        junit_output(store, job.id, attempt.attempt)) for attempt in failed] + (
            ["<system-out>%s</system-out>" % tail] if tail else [])


def safe_for_terminal(text: str, colour: bool) -> str:
    """Return a job's output for a terminal: colours may pass, any other escape or control is shown, not obeyed."""
    import re
    parts = re.split(r"(\x1b\[[0-9;]{0,40}m|\r?\n|\t)", text)
    return "".join((part if colour or part[:1] != "\x1b" else "") if i % 2 else plain(part).replace("\r", "")
                   for i, part in enumerate(parts))


def who_text(fact) -> str:
    return "%s %d" % ("supervisor" if "kind" in fact else "worker", fact["id"])


SUPERVISOR_NOTES = {"silent": "has not answered (its process may be stopped)",
                    "dead": "is dead: the next `worker start` releases what it left"}


def note_text(fact) -> str:
    """Return what a process waits for, as the end of a sentence that begins with its name; "" if only for work."""
    note = (SUPERVISOR_NOTES.get(fact["state"]) if "kind" in fact else None) or fact["note"] or ""
    return note + (", since %s" % local(fact["since"]) if fact["since"] else "")


def worker_note(fact) -> str:
    return note_text(fact) or ("another version of the file: restart to use the new one" if fact["outdated"] else "")


def as_json(value):
    """Return a report as `--json` prints it: moments in ISO 8601 UTC, jobs as their to_dict."""
    if isinstance(value, Job):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: utc(item) if isinstance(item, (int, float)) and (key.endswith("_at") or key == "since") else as_json(item)
                for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def supervisors_json(facts) -> list:
    return [dict(as_json(fact), note=SUPERVISOR_NOTES.get(fact["state"], fact["note"])) for fact in facts]


# The words for each kind of Finding.
FINDINGS = {
    "no queue": "there is no queue at %(path)s: `%(me)s enqueue` makes one",
    "foreign": "%(text)s%(more)s",
    "owner": "%(path)s, or something in it, belongs to another user than the database does: `sudo chown -R` repairs that%(more)s",
    "kind": "%(path)s is not a plain file, and queuectl did not make it: remove it%(more)s",
    "mode": "others may read or write %(path)s%(more)s",
    "own files": "only the owner of this queue can use its files",
    "wrong value": "%(path)s was changed by another program (%(text)s): `%(me)s doctor --fix` repairs it",
    "refused": "%(text)s", "fault": "%(text)s", "sound": "%(path)s is sound",
    "damaged": "%(path)s is damaged (%(why)s). Stop all workers, copy the file and its -wal away, then restore a backup, or try "
               "`umask 077; sqlite3 OLD .recover | sqlite3 NEW`",
    "dead worker": "worker %(id)d is dead%(held)s%(wait)s",
    "left with": "jobs are with %(title)s, and nobody looks after them: `%(me)s worker start --on %(engine)s` takes them over",
    "engine": "%(text)s",
    "dead supervisor": "supervisor %(id)d is dead: %(rest)s",
    "silent supervisor": "supervisor %(id)d has not answered since %(time)s: is its process stopped?",
    "stray lock": "%(path)s belongs to no worker", "workers": "%(count)d listed",
    "broken schedule": "schedule %(name)s: %(why)s; replace it with `%(me)s cron add --replace`, or remove it",
    "due schedule": "schedule %(name)s%(more)s was due at %(time)s, and no supervisor runs: `%(me)s worker start`",
    "no supervisor": "no supervisor runs, so no schedule fires: `%(me)s worker start`",
    "schedules": "%(count)d can run",
    "unserved": "job %(job)d has waited %(for)s, and no worker serves queue %(queue)s: `%(me)s worker start`",
    "unknown queue": "there is no queue %(queue)s: no job was ever put into it",
    "overdue": "job %(job)d in queue %(queue)s has waited %(for)s, longer than %(limit)s",
    "dead jobs": "%(count)d dead: `%(me)s dlq list` shows why; then `dlq retry` or `dlq purge` them", "jobs": "%(count)d waiting",
    "free pages": "%(mib)d MiB of the file are free, for new jobs; `doctor --fix` gives them back while no worker runs",
    "stray logs": "%(count)d without a job, such as %(path)s", "logs": "every log belongs to a job",
    "network disk": "a network file system (%(type)s), where SQLite's locks can't be trusted: move the queue to a local disk",
    "full disk": "only %(mib)d MiB are free", "disk": "%(mib)d MiB are free, on a local file system",
}


def finding_json(found) -> dict:
    return {"level": found.level, "about": found.about, "kind": found.kind, "text": finding_text(found)}


def status_json(report: dict) -> dict:
    return dict(as_json(report), supervisors=supervisors_json(report["supervisors"]),
                warnings=[finding_json(found) for found in report["warnings"]])


IN_SHORT = dict(FINDINGS, damaged="%(path)s is damaged (%(why)s): `%(me)s doctor` says what can be done")


def finding_text(found, words=FINDINGS) -> str:
    """Return in words what a Finding says."""
    values, others = dict(found.values, me=invoked()), found.values.get("others")
    since, wait = values.get("since"), values.get("wait")
    values["more"] = " (and %s)" % plural(others, "other") if others else ""
    values["held"] = ", its job %d is not released yet" % values["job"] if found.kind == "dead worker" and values["job"] else ""
    values["wait"] = "; " + note_text(wait) if wait and wait["note"] else ""
    values["rest"] = ("worker %s of it still runs, and ends after its job" % ", ".join(map(str, values["workers"])) if values.get("workers")
                      else "`%s doctor --fix` or the next `worker start` releases what it left" % invoked())
    values["time"], values["mib"] = local(since), values.get("free", 0) // 2**20
    values["for"] = span(time.time() - since) if since else ""
    values["limit"] = span(values.get("most") or 0)
    return plain(words[found.kind] % values)


# The lists of queues, batches, schedules, workers and settings: the title of each column, and its cell for one dict of the report:
# a key of the dict, or a function.
QUEUE_LIST = (
    ("QUEUE", "name"), ("STATE", lambda row: "paused" if row["paused"] else "open"),
    ("LIMIT", lambda row: "-" if row["max_running"] is None else row["max_running"]), ("RATE", lambda row: row["rate"] or "-"),
    ("PENDING", lambda row: row["jobs"]["pending"]), ("RUNNING", lambda row: row["jobs"]["processing"]),
    ("COMPLETED", lambda row: row["jobs"]["completed"]), ("FAILED", lambda row: row["jobs"]["failed"]),
    ("DEAD", lambda row: row["jobs"]["dead"]))
BATCH_LIST = (
    ("ID", "id"), ("LABEL", lambda row: row["label"] or ""), ("DONE", lambda row: row["total"] - row["unfinished"]),
    ("TOTAL", "total"), ("AGE", lambda row: span(time.time() - row["created_at"])))
SCHEDULE_LIST = (
    ("NAME", "name"), ("STATE", lambda row: "paused" if row["paused"] else "open"), ("WHEN", lambda row: when_of(row)),
    ("NEXT", lambda row: local(row["next_at"])), ("LAST JOB", lambda row: row["last_job"] or "-"),
    ("COMMAND", lambda row: command_text(row["command"])), ("ERROR", lambda row: row["error"] or ""))
WORKER_LIST = (
    ("ID", "id"), ("STATE", "state"), ("PID", "pid"),
    ("JOB", lambda row: row["job"] or "-"), ("DONE", "done"), ("UPTIME", lambda row: span(row["uptime"])),
    ("QUEUES", lambda row: ",".join(row["queues"] or ["all"])), ("PLACE", "place"),
    ("VERSION", lambda row: row["version"] or "-"), ("NOTE", worker_note))
SETTING_LIST = (
    ("KEY", "key"), ("VALUE", "value"), ("DEFAULT", "default"), ("HOLDS", "holds"), ("MEANING", "meaning"))
LIST_COLOURS = {"paused": "yellow", "open": "green", "busy": "blue", "idle": "green", "dead": "red", "stopping": "yellow"}


def print_list(rows, columns, none: str) -> None:
    """Print a report's dicts as a table of these columns, or on stderr the line for an empty list."""
    if rows:
        print_table([title for title, _ in columns],
                    [[row[cell] if cell.__class__ is str else cell(row) for _, cell in columns] for row in rows], (
                        "QUEUE", "QUEUES", "LABEL", "COMMAND", "NAME", "ERROR", "NOTE", "MEANING"), LIST_COLOURS)
    elif none:
        talk(none)


def when_of(schedule) -> str:
    """Return the times of a schedule, with its zone if it differs from the reader's."""
    if schedule["spec"] is None:
        return "every " + duration_text(schedule["every"])
    here = schedule["tz"] in (None, OS.zone(os.environ.get("TZ"))) or schedule["spec"].strip().lower() == "@reboot"
    return schedule["spec"] if here else "%s %s" % (schedule["spec"], schedule["tz"])


def command_text(command) -> str:
    return OS.quote(command) if isinstance(command, list) and all(isinstance(word, str) for word in command) else str(command)


def reason_text(job, reason) -> str:
    """Return in words what a job waits for."""
    kind, detail = reason
    if kind == "parents":
        names = ["batch %d" % -parent if parent < 0 else str(parent) for parent in detail[:5]]
        return "for %s%s to end" % (", ".join(names), " and others" if len(detail) > 5 else "")
    if kind == "behind":
        return "behind %s" % plural(detail, "other")
    if kind == "engine":
        found = ("%(title)s: task %(task)d of %(handle)s" % detail, detail["state"] and detail["state"].lower(),
                 detail["why"] not in (None, "None") and plain(detail["why"]),
                 detail["state"] == "PENDING" and detail["starts_at"] and "estimated start %s" % local(detail["starts_at"]),
                 detail["away"] and "`%s worker start --on %s` looks after it again" % (invoked(), detail["engine"]))
        return ", ".join(filter(None, found))
    if kind in ("worker", "supervisor", "idle"):
        return "%s %s" % (who_text(detail), IDLE_NOTE if kind == "idle" else note_text(detail))
    return REASONS[kind] % {
        "id": job.id, "queue": job.queue, "pasted": OS.quote([job.queue]), "key": job.key, "me": invoked(), "detail": detail,
        "time": local(detail) if kind in ("time", "rate") else "", "left": span(detail - time.time()) if kind == "time" else ""}


def reason_json(job, reason) -> dict:
    if reason.kind in ("worker", "supervisor", "idle"):
        return {"reason": "worker", "detail": reason_text(job, reason)}
    if reason.kind == "engine":
        return {"reason": "engine", "detail": as_json(reason.detail)}
    return {"reason": reason.kind, "detail": reason.detail}


IDLE_NOTE = "is idle and does not take it (its process may be stopped)"
REASONS = {
    "held": "held: `%(me)s release %(id)d` lets it go",
    "time": "not due until %(time)s, in %(left)s",
    "key": "its key %(key)s is held by job %(detail)d",
    "paused": "queue %(queue)s is paused: `%(me)s queue resume %(pasted)s`",
    "limit": "the limit of queue %(queue)s (%(detail)d at once) is reached",
    "rate": "the rate of queue %(queue)s allows the next at %(time)s",
    "no worker": "no worker serves queue %(queue)s: `%(me)s worker start`",
}


# == Metrics ===========================================================================
# What monitoring asks for: the numbers as plain data, their text for Prometheus, a dashboard and alert rules.
# Calls Views, Store and small helpers.

# The families of metrics, one per line: name, type, meaning.  A name's unit and `_total` follow Prometheus's naming rules.
METRICS = """\
build_info                gauge     version of queuectl that answered, always 1
jobs                      gauge     jobs by queue and state
queue_paused              gauge     1 if the queue is paused
oldest_ready_seconds      gauge     how long the first ready job of the queue could have run already; 0 if none is ready
enqueued_total            counter   jobs enqueued
attempts_total            counter   attempts begun
completed_total           counter   jobs that completed
failures_total            counter   attempts that failed
retries_total             counter   failed attempts after which queuectl tries again
deaths_total              counter   jobs that became dead
cancellations_total       counter   jobs that were cancelled, or whose parent died
crashes_total             counter   attempts that ended because their worker died
timeouts_total            counter   attempts that were ended by their timeout
snoozes_total             counter   attempts that put themselves off
releases_total            counter   attempts given back because their worker was stopped
manual_retries_total      counter   jobs that a user sent back to pending
expirations_total         counter   jobs that were cancelled because they had not started in time
attempt_duration_seconds  histogram duration of attempts that completed or failed
wait_seconds              histogram how long attempts waited from the moment when they could have run
workers                   gauge     workers by state
supervisors               gauge     supervisors by state
schedules                 gauge     schedules by state
schedule_lag_seconds      gauge     how long the schedule that is most overdue has been due; 0 if none is
database_bytes            gauge     size of the database with its WAL
log_bytes                 gauge     size of all logs of jobs; an estimate if reading it takes too long
"""
MISHAPS = {"crashed": "crashes_total", "timeout": "timeouts_total", "snoozed": "snoozes_total", "released": "releases_total",
           "retry": "manual_retries_total", "expire": "expirations_total"}
LOG_SCAN_S = 0.02  # how long the size of the logs may take


def metrics_report(store) -> dict:
    """Return every metric, without the program's name, as a list of (labels, value); a histogram's value is (counts, seconds, total)."""
    now, counters, mishaps, ready = time.time(), store.queues.counters(), store.queues.mishaps(), store.look.ready_since()
    found = {line.split()[0]: [] for line in METRICS.splitlines()}
    found["build_info"].append(({"version": __version__}, 1))
    for row in store.queues.list():
        queue, counts = {"queue": row.name}, {state: counters.get((row.name, state), (0,) * 11) for state in STATES}
        found["jobs"] += [(dict(queue, state=state), counts[state][0]) for state in STATES]
        found["queue_paused"].append((queue, int(bool(row.paused))))
        found["oldest_ready_seconds"].append((queue, max(0, now - ready.get(row.name, now))))
        entered = {state: counts[state][1] for state in STATES}
        for name, count in (("enqueued", entered["pending"]), ("attempts", entered["processing"]), ("completed", entered["completed"]),
                            ("failures", entered["failed"] + entered["dead"]), ("retries", entered["failed"]),
                            ("deaths", entered["dead"]), ("cancellations", entered["cancelled"])):
            found[name + "_total"].append((queue, count))
        for outcome, name in MISHAPS.items():
            found[name].append((queue, mishaps.get((row.name, outcome), 0)))
        for outcome, states in (("completed", ("completed",)), ("failed", ("failed", "dead"))):
            found["attempt_duration_seconds"].append((dict(queue, outcome=outcome), histogram([counts[state] for state in states])))
        found["wait_seconds"].append((queue, histogram([counts["processing"]])))
    found.update(metrics_of_system(store, now))
    return found


def histogram(rows) -> tuple:
    """Return (counts of BUCKETS, seconds, total) of rows of Queues.counters, added up."""
    _, entered, seconds, *counts = map(sum, zip(*rows))
    return counts, seconds, entered


def metrics_of_system(store, now: float) -> dict:
    """Return the metrics of workers, schedules and files."""
    schedules = store.schedules.list()
    states = ["paused" if row.paused else "broken" if row.trouble(now) else "open" for row in schedules]
    lag = max([now - row.next_at for row, state in zip(schedules, states) if state == "open"], default=0)
    return {"workers": by_state(worker_report(store), ("busy", "idle", "stopping", "away", "dead")),
            "supervisors": by_state(supervisor_report(store), ("working", "stopping", "silent", "dead")),
            "schedules": [({"state": state}, states.count(state)) for state in ("open", "paused", "broken")],
            "schedule_lag_seconds": [({}, max(0, lag))],
            "database_bytes": [({}, sum(size_of(store.db.path + end) for end in ("", "-wal")))],
            "log_bytes": [({}, store.db.files.log_bytes(LOG_SCAN_S))]}


def by_state(facts: list, states: tuple) -> list:
    return [({"state": state}, sum(fact["state"] == state for fact in facts)) for state in states]


def metrics_text(report: dict) -> str:
    """Return metrics in Prometheus's text format (prometheus.io/docs/instrumenting/exposition_formats)."""
    lines = []
    for line in METRICS.splitlines():
        name, kind, meaning = line.split(None, 2)
        lines += ["# HELP %s_%s %s" % (PROGRAM, name, meaning), "# TYPE %s_%s %s" % (PROGRAM, name, kind)]
        for labels, value in report[name]:
            lines += samples(name, labels, value) if kind == "histogram" else [sample(name, labels, value)]
    return "\n".join(lines) + "\n"


def samples(name: str, labels: dict, value: tuple) -> list:
    counts, seconds, total = value
    return [sample(name + "_bucket", dict(labels, le="%g" % limit), count) for limit, count in zip(BUCKETS, counts)] + [
        sample(name + "_bucket", dict(labels, le="+Inf"), total), sample(name + "_sum", labels, seconds),
        sample(name + "_count", labels, total)]


def sample(name: str, labels: dict, value) -> str:
    shown = ",".join('%s="%s"' % (key, plain(text).replace("\\", "\\\\").replace('"', '\\"')) for key, text in labels.items())
    return "%s_%s%s %s" % (PROGRAM, name, "{%s}" % shown if shown else "", repr(float(value)) if value % 1 else "%d" % value)


# The panels of the dashboard: title, unit, and below them, for each line that is drawn, its name and expression.
PANELS = """\
Ends per second | ops
  {{queue}} completed | sum by (queue) (rate(queuectl_completed_total[5m]))
  {{queue}} failed | sum by (queue) (rate(queuectl_failures_total[5m]))
Jobs that wait | short
  {{queue}} | sum by (queue) (queuectl_jobs{state=~"pending|failed"})
Oldest ready job | s
  {{queue}} | max by (queue) (queuectl_oldest_ready_seconds)
Dead jobs | short
  {{queue}} | sum by (queue) (queuectl_jobs{state="dead"})
Workers | short
  {{state}} | sum by (state) (queuectl_workers)
Duration of attempts | s
  median | histogram_quantile(0.5, sum by (le) (rate(queuectl_attempt_duration_seconds_bucket[5m])))
  95 % | histogram_quantile(0.95, sum by (le) (rate(queuectl_attempt_duration_seconds_bucket[5m])))
Waiting time | s
  median | histogram_quantile(0.5, sum by (le) (rate(queuectl_wait_seconds_bucket[5m])))
  95 % | histogram_quantile(0.95, sum by (le) (rate(queuectl_wait_seconds_bucket[5m])))
Crashes and timeouts in 5 minutes | short
  crashes | sum(increase(queuectl_crashes_total[5m]))
  timeouts | sum(increase(queuectl_timeouts_total[5m]))
Lag of schedules | s
  most overdue | max(queuectl_schedule_lag_seconds)
Disk | bytes
  database | sum(queuectl_database_bytes)
  logs | sum(queuectl_log_bytes)
"""

ALERTS = """\
groups:
- name: queuectl
  rules:
  - alert: QueuectlNotKeepingUp
    expr: max by (queue) (queuectl_oldest_ready_seconds) > 600 and max by (queue) (queuectl_queue_paused) == 0
    for: 5m
    labels: {severity: warning}
    annotations: {summary: 'The first ready job of queue {{ $labels.queue }} has waited {{ $value | humanizeDuration }}.'}
  - alert: QueuectlNoWorker
    expr: >-
      max by (instance) (queuectl_oldest_ready_seconds > 0 and on (instance, queue) queuectl_queue_paused == 0)
      unless sum by (instance) (queuectl_workers{state=~"busy|idle"}) > 0
    for: 5m
    labels: {severity: critical}
    annotations: {summary: 'Jobs are ready, and no worker runs.'}
  - alert: QueuectlJobsDie
    expr: sum by (queue) (increase(queuectl_deaths_total[15m])) > 0
    labels: {severity: warning}
    annotations: {summary: '{{ $value | humanize }} jobs of queue {{ $labels.queue }} died in 15 minutes.'}
  - alert: QueuectlFailureRate
    expr: sum by (queue) (rate(queuectl_failures_total[15m])) / sum by (queue) (rate(queuectl_attempts_total[15m])) > 0.5
    for: 15m
    labels: {severity: warning}
    annotations: {summary: '{{ $value | humanizePercentage }} of the attempts of queue {{ $labels.queue }} fail.'}
  - alert: QueuectlWorkersCrash
    expr: sum(increase(queuectl_crashes_total[15m])) > 0
    labels: {severity: warning}
    annotations: {summary: '{{ $value | humanize }} attempts ended because their worker died.'}
  - alert: QueuectlDeadSupervisor
    expr: sum(queuectl_supervisors{state=~"dead|silent"}) > 0
    for: 5m
    labels: {severity: critical}
    annotations: {summary: 'A supervisor is dead or does not answer.'}
  - alert: QueuectlScheduleLate
    expr: max(queuectl_schedule_lag_seconds) > 300
    for: 5m
    labels: {severity: critical}
    annotations: {summary: 'A schedule is overdue by {{ $value | humanizeDuration }}.'}
  - alert: QueuectlScheduleBroken
    expr: sum(queuectl_schedules{state="broken"}) > 0
    labels: {severity: warning}
    annotations: {summary: 'A schedule cannot run: see queuectl cron list.'}
"""


def dashboard() -> dict:
    """Return a dashboard as Grafana imports it (grafana.com/docs: Dashboard JSON model)."""
    source, panels = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}, []
    for line in PANELS.splitlines():
        name, value = line.strip().split(" | ")
        if line[0] == " ":
            targets = panels[-1]["targets"]
            targets.append({"refId": "AB"[len(targets)], "datasource": source, "expr": value, "legendFormat": name})
            continue
        place = len(panels)
        panels.append({"id": place + 1, "type": "timeseries", "title": name, "datasource": source, "targets": [],
                       "gridPos": {"h": 8, "w": 12, "x": place % 2 * 12, "y": place // 2 * 8},
                       "fieldConfig": {"defaults": {"unit": value, "min": 0}, "overrides": []}})
    return {"title": PROGRAM, "uid": PROGRAM, "tags": [PROGRAM], "schemaVersion": 36, "refresh": "30s", "panels": panels,
            "time": {"from": "now-6h", "to": "now"}, "__requires": [], "__inputs": [
                {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}]}


# == Python API ========================================================================
# Queue, for programs that import this file.
# Calls Views, Reports, Store.

class Guard:
    """What every call of a Queue goes through: an open queue, its own thread and process, and an Error for whatever goes wrong."""

    def __init__(self, path):
        self._owner = (get_ident(), os.getpid())
        self._store = None
        self.path = path

    def open(self) -> None:
        if not isinstance(self.path, (str, type(None))):
            raise UserError("the path of a queue must be text or a Path, not %s" % quoted(self.path))
        try:
            refuse_foreign_wal(find_database(self.path))
            self._store = Store(self.path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def close(self) -> None:
        if self._store is not None:
            with self as store:
                self._store = None
                store.close()

    def __enter__(self):
        if self._store is None:
            raise Error("this Queue is closed: open another one")
        if self._owner != (get_ident(), os.getpid()):
            raise Error("a Queue belongs to the thread and process that opened it: open another one here")
        return self._store

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, (sqlite3.Error, OSError, MemoryError, UnicodeEncodeError)):
            raise Error(explain_error(error, self.path)) from error


def aware(seconds):
    """Return Unix seconds as an aware datetime in UTC; None for None and for a time that has no such form."""
    from datetime import datetime, timezone
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def from_python(value):
    """Return an option, or a command, as text and numbers: paths, times, jobs and lists of these are values in Python."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
        return text_of(value) if isinstance(value, bytes) else value
    if isinstance(value, JobInfo):
        return value.id
    if hasattr(value, "keys"):  # os.environ is no dict
        return {key: "%o" % item if key == "umask" and type(item) is int else from_python(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [from_python(item) for item in value]
    name = type(value).__name__
    return value.isoformat() if name == "datetime" else value.total_seconds() if name == "timedelta" else value


def several(values, what: str):
    """Return several values of a caller's; refuse a single one."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        raise UserError("%s must be a list, not %s" % (what, quoted(values)))
    return values


def json_text(value) -> str:
    """Return what JSON has no form for: bytes as the text that a bulk file would have for them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    raise UserError("a job can't have %s" % quoted(value))


class JobInfo:
    """A job as it was when it was read.  Its attributes are the fields of `--json`; times are aware datetimes."""

    id: int
    name: "str | None"
    labels: "list[str]"
    state: str
    queue: str
    priority: int
    command: str
    cwd: str
    attempt: int
    attempts: int
    crashes: int
    snoozes: int
    exit_code: "int | None"
    signal: "int | None"
    error: "str | None"
    duration: "float | None"
    batch: "int | None"
    schedule: "str | None"
    hook: "str | None"
    worker: "int | None"
    held: bool
    stdin: bool
    created_at: "datetime"
    run_at: "datetime"
    started_at: "datetime | None"
    finished_at: "datetime | None"
    expires_at: "datetime | None"
    max_retries: int
    timeout: "float | None"
    backoff: str
    backoff_base: float
    backoff_max: float
    retry_on: "str | None"
    dead_on: "str | None"
    snooze_on: "str | None"
    snooze: "float | None"
    slots: int
    key: "str | None"
    unique: "str | None"
    shell: str
    umask: "str | None"

    def __init__(self, job):
        self._shown = job.to_dict()
        self.__dict__.update(self._shown)
        for name in ("created_at", "run_at", "started_at", "finished_at", "expires_at"):
            setattr(self, name, aware(getattr(job, name)))

    def __repr__(self) -> str:
        return "<job %d, %s: %s>" % (self.id, self.state, plain(self.command))

    def to_dict(self) -> dict:
        """Return the job as `--json` shows it: times in ISO 8601 UTC, durations in seconds."""
        return dict(self._shown)


class Queue:
    """A queue in one database file, for Python programs.

        with queuectl.Queue("/srv/jobs.db") as queue:
            job = queue.enqueue(["convert", "a b.png", "out.jpg"], max_retries=5, timeout="2m")
            print(queue.wait(job, timeout=60).state, queue.output(job))

    `path` is the database; without it, QUEUECTL_DB or the user's own queue.  Any number of processes may use one database.
    A Queue belongs to the thread that opened it.  A method that changes something returns when the change is on the disk.
    Every error is a queuectl.Error: UserError says what the caller did wrong, any other what the machine refused.
    Workers run the jobs: `queuectl worker start`, or `run`.
    """

    def __init__(self, path: "str | os.PathLike | None" = None):
        self._guard = Guard(from_python(path))
        self._guard.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the database.  Another call does nothing."""
        self._guard.close()

    def enqueue(self, command: "str | list", *, name: "str | None" = None, label: "str | list[str] | None" = None,
                queue: "str | None" = None, priority: "int | None" = None, delay: "float | str | timedelta | None" = None,
                at: "str | datetime | None" = None, ttl: "float | str | timedelta | None" = None, max_retries: "int | None" = None,
                timeout: "float | str | timedelta | None" = None, backoff: "str | None" = None, backoff_base: "float | None" = None,
                backoff_max: "float | str | timedelta | None" = None, retry_on: "int | str | None" = None,
                dead_on: "int | str | None" = None, snooze_on: "int | str | None" = None,
                snooze: "float | str | timedelta | None" = None, slots: "int | None" = None, key: "str | None" = None,
                unique: "str | None" = None, for_: "float | str | timedelta | None" = None, after: "int | str | list | None" = None,
                after_any: "int | str | list | None" = None, after_batch: "int | str | list | None" = None,
                cwd: "str | os.PathLike | None" = None, env: "Mapping[str, str] | None" = None,
                clean_env: "bool | None" = None, shell: "str | None" = None,
                stdin: "str | bytes | None" = None, umask: "int | str | None" = None, hold: "bool | None" = None) -> int:
        """Store one job and return its id, or with `unique` the id of the duplicate that is there already.

        `command` is a shell string or a list of arguments.  The options are those of `queuectl enqueue`, with _ for -; a
        duration may be a timedelta, a time a datetime, a directory a Path, a umask a number such as 0o027.  `for` is a word of
        Python: use `for_`.
        """
        given = {name.rstrip("_"): value for name, value in locals().items() if value is not None and name != "self"}
        with self._guard as store:
            return store.enqueue(**from_python({"command": "", **given}))

    def enqueue_many(self, jobs) -> "list[int]":
        """Store many jobs, all or none; return their ids in order.

        `jobs` is any iterable.  A job is a command as `enqueue` takes it, or a dict with a `command` and options of `enqueue`.
        """
        with self._guard as store:
            return store.enqueue_many([job if job.__class__ is str else from_python(job) for job in several(jobs, "several jobs")])

    def run(self, commands, count: "int | None" = None) -> "list[JobInfo]":
        """Run jobs now, `count` at a time (default: the available cores), as `queuectl run` does; return them when all have ended.

        `commands` is what `enqueue_many` takes.  The jobs run in workers of their own, and their output is kept: see `output`.
        """
        import json
        jobs = [job if isinstance(job, dict) else {"command": job} for job in map(from_python, several(commands, "several jobs"))]
        if not jobs:
            return []
        with self._guard as store:
            return [JobInfo(job) for job in jobs_of_run(store, "\n".join(json.dumps(job, default=json_text) for job in jobs), count)]

    def job(self, ref) -> JobInfo:
        """Return the job with this id or name, or raise UserError."""
        with self._guard as store:
            return JobInfo(store.look.job(from_python(ref)))

    def jobs(self, states=(), limit: int = 0) -> "list[JobInfo]":
        """Return jobs in these states (default: all), newest first, at most `limit` (0: 1,000)."""
        states = [parse_choice(state, "a state", STATES) for state in several(states, "states")]
        with self._guard as store:
            return [JobInfo(job) for job in store.look.jobs(states, parse_number(limit, "limit", 0, 10**12, int))]

    def history(self, ref) -> list:
        """Return every attempt of a job ever begun, oldest first; the one that runs has no end and the outcome `running`."""
        with self._guard as store:
            return [attempt._replace(started_at=aware(attempt.started_at), finished_at=aware(attempt.finished_at),
                                     error=error_text(attempt)) for attempt in store.look.history(store.look.job(from_python(ref)).id)]

    def counts(self, queue: "str | None" = None) -> "dict[str, int]":
        """Return how many jobs are in each state."""
        with self._guard as store:
            return store.queues.counts(None if queue is None else parse_queue(queue))

    def output(self, ref, attempt: "int | None" = None) -> str:
        """Return what a job has printed so far in an attempt (default: the latest); "" if it printed nothing.

        Bytes that are not valid UTF-8 become U+FFFD.
        """
        with self._guard as store:
            job = store.look.job(from_python(ref))
            attempt = job.attempt if attempt is None else parse_number(attempt, "attempt", 1, max(1, job.attempt), int)
            try:
                with open(output_of(store, job, attempt), "rb", opener=no_link) as file:
                    return file.read().decode("utf-8", "replace")
            except FileNotFoundError:
                return ""

    def wait(self, ids, timeout: "float | str | None" = None):
        """Wait until jobs have ended; return them, or raise TimedOut after `timeout`.

        `ids` is an id or name, which gives one job, or several, which give a list.
        """
        limit = None if timeout is None else time.monotonic() + parse_duration(from_python(timeout), "timeout")
        with self._guard as store:
            left, seen, look_at = self._ids(store, ids), None, 0.0
            found = dict.fromkeys(left)
            while left:
                changes, now = store.db.changes(), time.monotonic()
                if changes != seen and now >= look_at:
                    seen, states = changes, store.look.states(left)
                    found.update((job_id, store.look.job(job_id)) for job_id in left if states.get(job_id) not in UNFINISHED)
                    left = [job_id for job_id in left if found[job_id] is None or found[job_id].state not in FINAL]
                    look_at = now + 4 * (time.monotonic() - now)  # many jobs, which change often, should not take a whole core
                elif limit is not None and time.monotonic() >= limit:
                    raise TimedOut("%s still unfinished after %s: %s" % (plural(len(left), "job"), timeout, ", ".join(map(str, left[:5]))))
                else:
                    time.sleep(0.01)
        jobs = [JobInfo(job) for job in found.values()]
        return jobs[0] if self._is_one(ids) else jobs

    def cancel(self, ids) -> "list[tuple[int, str]]":
        """Cancel jobs; return (id, result): `cancelled`, `asked` (its worker ends it at once), `cancelled already`, or its state."""
        with self._guard as store:
            return store.life.cancel(self._ids(store, ids))

    def retry(self, ids) -> "list[tuple[int, str]]":
        """Run finished jobs again; return (id, result).

        The result is `pending`; `due now` for a job that waited for its backoff; `pending already`; or the state of a job that
        was left as it is.
        """
        with self._guard as store:
            return [(job_id, result.state if isinstance(result, Refused) else result)
                    for job_id, result in store.life.retry(self._ids(store, ids))]

    def _is_one(self, ids) -> bool:
        return isinstance(ids, (int, str, JobInfo))

    def _ids(self, store, ids) -> list:
        """Return the ids of jobs that the caller named, one or several, by id or name; a number that no job has stays."""
        found = []
        for ref in map(from_python, [ids] if self._is_one(ids) else several(ids, "ids")):
            found.append(ref if isinstance(ref, int) and not isinstance(ref, bool) else store.look.job(ref).id)
        return found


def jobs_of_run(store, text: str, count) -> list:
    """Return the jobs that a `run` of these lines has worked, in order."""
    import json
    import subprocess
    import tempfile
    fd, path = tempfile.mkstemp(prefix="python-")
    words = [] if count is None else ["--count", str(parse_number(count, "count", 1, MOST_WORKERS, int))]
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        done = subprocess.run([*program_argv(), "--db", store.db.path, "run", "--json", *words, "--file", path],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        remove(path)
    if done.returncode not in (0, 1):
        raise UserError(done.stderr.decode("utf-8", "replace").strip().rpartition("error: ")[2] or "`run` was interrupted")
    return [store.look.job(job_id) for job_id in store.look.select(batch=json.loads(done.stdout)["batch"])]


# == Commands ==========================================================================
# One function per command; the tables of their options and of the commands are at the end.  A command that takes (store, args)
# gets the open queue.  Each command returns its exit status, None for 0.
# Calls Views, Reports, Supervisor, Store; only the parser calls a command.

# The commands that store something, and so make a database that does not exist.
CREATORS = ("run", "enqueue", "worker start", "cron add", "cron load", "config set", "queue pause", "queue limit", "queue rate", "import")


def refuse_missing(path: str) -> None:
    """Refuse a database that does not exist: a command that only looks must not make one at a mistyped path."""
    try:
        os.stat(path)
    except FileNotFoundError:
        raise UserError(OS.distrust(Files(path)) or "there is no queue at %s: `%s enqueue` makes one, or give another --db" % (
            plain(path), invoked())) from None
    except PermissionError as error:
        raise UserError(OS.owner_of_refused(error, Files(path).root) or "can't reach %s (%s): keep the queue elsewhere with --db PATH or "
                        "QUEUECTL_DB" % (plain(path), error.strerror)) from None


def open_queue(args):
    if not args.creates:
        refuse_missing(find_database(args.db))
    refuse_foreign_wal(find_database(args.db))
    store = Store(args.db)
    if is_terminal(sys.stderr):
        store.db.on_wait = print_wait
    return store


def print_wait(why) -> None:
    if why:
        talk("%s: %s (Ctrl-C ends this)" % (PROGRAM, why))


# -- selection: which jobs a command acts on, and what became of each --

def states_asked(args) -> list:
    return sum(args.state or (), [])


def usable_states(args, states) -> list:
    """Return the states asked for, else all of `states`; refuse a state that the command does not accept."""
    asked = states_asked(args)
    for state in asked:
        if state not in states and not (state == "held" and "pending" in states):
            raise UserError("this command takes jobs that are %s, not %s: leave out --state %s" % (either(states), state, state))
    return asked or list(states)


def ids_named(store, refs) -> list:
    """Return the ids of jobs given by id, name, range (5-8) or `last`; look all up before anything is done."""
    return list(dict.fromkeys(job_id for ref in refs for job_id in store.look.ids(ref)))


def filters_of(store, args) -> dict:
    """Return the filters other than --state, as Look.jobs and Look.select take them."""
    return {"queue": args.queue, "name": args.name, "label": args.label, "schedule": args.schedule,
            "batch": store.queues.batch(args.batch).id if args.batch else None}


def select_ids(store, args, states) -> list:
    """Return the ids of the jobs that a command should act on; a filter or --all selects only jobs in `states`."""
    wanted, older_than, filters = usable_states(args, states), getattr(args, "older_than", None), filters_of(store, args)
    filtered = bool(args.state or any(filters.values())) or older_than is not None
    if args.all and (args.ids or filtered) or not (args.all or args.ids or filtered):
        raise UserError("which jobs? Give ids or names, or a filter such as --state, or --all alone")
    ids = ids_named(store, args.ids) if args.ids else None
    if filtered or ids is None:
        ids = store.look.select(wanted, ids, time.time() - older_than if older_than is not None else None, **filters)
    return ids


def select_or_refuse(store, args, states) -> list:
    """Return the same ids as select_ids; raise UserError if a job that the user names is not in `states`."""
    ids = select_ids(store, args, states)
    for job in map(store.look.job, ids if args.ids else ()):
        if job.state not in states:
            raise UserError("job %d is %s: this command takes jobs that are %s" % (job.id, job.state, either(states)))
    return ids


# What a command or the web page does to jobs.  states: those of the jobs that it is for; verb: its name in RESULTS, which has the
# words for its results; apply(store, ids): does it, and returns (id, result) pairs.
Change = record("Change", "states verb apply")


def act(store, args, change, select=select_ids, at_last=None):
    """Select jobs, change them (or with --dry-run only list them), and report: for each command that changes several jobs."""
    ids = select(store, args, change.states)
    if not args.dry_run:
        return change_all(store, change, ids, at_last)
    for job in map(store.look.job, ids):
        if job.state in change.states:
            out("would %s job %d: %s" % (change.verb, job.id, plain(job.command)))


def change_all(store, change, ids, at_last) -> int:
    """Change jobs, AT_ONCE at a time, print what became of them, and return 1 if some job was not changed.

    Another process may have been faster.  `at_last(results)` returns the final results of those that were no plain success.
    """
    past, good = RESULTS[change.verb]
    counts, rest, done, progress = dict.fromkeys(good, 0), [], 0, Progress(len(ids))
    store.followups.keep_moved()
    try:
        while done < len(ids):
            for job_id, result in change.apply(store, list(ids[done:done + AT_ONCE])):
                if result in good and result != ASKED:
                    counts[result] += 1
                else:
                    rest.append((job_id, result))
            done += AT_ONCE
            if done < len(ids):
                progress.show(done)
    except KeyboardInterrupt:
        progress.clear()
        talk("interrupted: %s of %d had their turn, and the others are as they were" % (plural(done, "job"), len(ids)))
        raise
    progress.clear()
    rest = store.followups.with_moved(rest, next(iter(good)))
    if at_last is not None:
        rest = at_last(rest)
    for job_id, result in rest:
        if result in good:
            counts[result] += 1
        else:
            talk(result_text(change.verb, job_id, result))
    for result, count in counts.items():
        if count:
            verdict("%s %s" % (good[result], plural(count, "job")))
    if not any(counts.values()):
        talk("No job was %s." % past)
    return 0 if all(result in good for _, result in rest) else 1


# -- enqueue --

def job_options(args) -> dict:
    """Return the job options that the command line gives."""
    options = {dest[4:]: value for dest, value in vars(args).items() if dest.startswith("job_") and value is not None}
    if "stdin" in options:
        if options["stdin"] == getattr(args, "file", None) == "-":
            raise UserError("--file and --stdin can't both be standard input: give one of them by name")
        options["stdin"] = read_bytes(options["stdin"], STDIN_LIMIT + 1)
    return options


def plan_enqueue(args) -> bool:
    """Set args.plan; return whether nothing is left to do."""
    args.plan = plan_of(args, job_options(args))
    if args.plan is None and not args.dry_run:
        talk("nothing to enqueue")
    return args.plan is None


def cmd_enqueue(store, args) -> None:
    if args.file is not None:
        return enqueue_file(store, args)
    if args.values:
        return print_stored(args, store, store.enqueue_plan(args.plan, words_label(args.rest)))
    [[job]] = store.enqueue_plan(args.plan).ids
    if args.plan.duplicates:
        talk("job %d already has this unique key" % job)
    if args.quiet or not is_terminal(sys.stdout):
        out(str(job))
    else:
        verdict("Enqueued job %d" % job)
    if not args.quiet and is_terminal(sys.stderr):
        warn_if_stuck(store, job)


def plan_of(args, options: dict, fixed=()):
    """Return the Plan of the jobs that a command line describes, or None if there are none.

    Set `args.values`: whether they are made of values, and `args.reads_stdin`: whether standard input was of use.
    With --dry-run print their commands and return None.
    """
    if fixed and not (args.rest or args.file is not None or args.arg_file or args.null or args.max_args) and "stdin" not in options:
        args.file = "-" if reads_stdin() else None  # `run < commands.txt`
    args.values, args.reads_stdin = False, "-" in (args.file, args.job_stdin)
    if args.file is not None:
        if args.rest or args.arg_file or args.null or args.max_args:
            raise UserError("give --file, whose lines are commands, or a command with its values: not both")
        items = read_items(args.file)
    else:
        items = commands_of(args, options, bool(fixed))
        if items is not None:
            args.values = True
        elif args.rest:
            items = [job_of_words(args.rest, options)]
            options = {}
        else:
            raise UserError("no command was given: %s %s echo hello" % (invoked(), "run" if fixed else "enqueue"))
    if fixed and not args.reads_stdin:
        refuse_unread_input()
    groups = in_groups(items if not args.dry_run or args.values else list(items), PART)
    first = next(groups, None)
    if first is None and args.file is not None and not fixed:
        raise UserError("%s holds no job: write one command per line, or JSON objects" % quoted(args.file))
    if args.dry_run:
        parsed = parse_job(dict(options))
        for item in chain(first or (), *groups):
            print_command(item, parsed)
    elif first:
        plan = Plan(first, options, fixed=fixed)
        plan.apart, plan.more = args.values, map(plan.read, groups) if args.values else kept_parts(args, plan, groups)
        return plan
    return None


def kept_parts(args, plan, groups):
    """Read all parts of a Plan, so that a bad line is refused before anything is stored; return an iterator of them.

    They wait in a file: memory does not grow with the jobs.  `args.total` is the number of jobs.
    """
    args.total, sizes, file = len(plan.items), [], None
    for group in groups:
        import marshal
        import tempfile
        file = file or tempfile.TemporaryFile()
        marshal.dump(plan.read(group), file)
        sizes.append(len(group))
        args.total += len(group)
    if file is not None:
        file.seek(0)
    return (marshal.load(file) for _ in sizes)


def print_command(item, options) -> None:
    item = item[1] if isinstance(item, tuple) else item
    job = parse_job(dict(item if isinstance(item, dict) else {"command": item}), options)
    line = command_line(job["command"], job.get("shell"))
    if is_terminal(sys.stdout):
        out(plain(line))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(raw(line + "\n"))


PART = 5000  # jobs made of values that are stored in one step


def commands_of(args, options: dict, runs: bool):
    """Return an iterator of the commands that a template and its values make; None if the words are one command.

    With `runs`, a command without a place gets each line of a pipe at its end, as with xargs.  `enqueue` does not: it may
    stand where standard input is something else, such as a mail in an alias.
    """
    words, sources = split_sources(args.rest)
    if len(words) == 2 and words[1] == "-" and has_places(words[:1]):
        sources.insert(0, ("::::", [words.pop()]))
    end = b"\0" if args.null else b"\n"
    groups = [[FileValues(path, end)] for path in args.arg_file or ()]
    for marker, values in sources:
        if marker[:4] == "::::" and not values or marker[-1] == "+" and not groups:
            raise UserError("%s needs %s" % (marker, "values before it, which it is linked to" if values else "a file of values"))
        new = [FileValues(path, end) for path in values] if marker[:4] == "::::" else [values]
        if marker[-1] == "+":
            groups[-1].extend(new)
        else:
            groups.extend([source] for source in new)
    if not groups and words and "stdin" not in options and (
            reads_stdin() if args.null or args.max_args or has_places(words) else runs and takes_list(words)):
        groups = [[FileValues("-", end)]]
    if args.null and not any(isinstance(source, FileValues) for group in groups for source in group):
        raise UserError("-0 says how values end in a file or pipe, and there is none: give -a FILE, or - for standard input")
    if not groups:
        if args.max_args:
            raise UserError("-n takes values, and there are none: give them after :::, or -a FILE")
        return None
    made = template(words, options.get("shell") or default_shell(args))
    args.reads_stdin = settle_stdin(args, [source for group in groups for source in group])
    count = sum(map(len, groups))
    if args.max_args and count > 1:
        raise UserError("-n takes one list of values")
    if made.last > (args.max_args or count):
        raise UserError("{%d} names a value that there is not: each command gets %d" % (made.last, args.max_args or count))
    return made_commands(made, groups, args.max_args)


def made_commands(made: Template, groups: list, most):
    values = in_groups(groups[0][0], most) if most else combined(groups)
    for number, some in enumerate(values, 1):
        command = made.command(some, number)
        if not isinstance(command, str) or command.strip():  # without a command, an empty line of a file is none
            yield command


def default_shell(args):
    """Return the setting `shell` of the queue, if there is one."""
    if not os.path.exists(find_database(args.db)):
        return None
    with open_queue(args) as store:
        return store.settings.value("shell")


def reads_stdin() -> bool:
    """Whether standard input is a pipe or a file from which a template may take its values."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False  # it is closed
    return S_ISFIFO(mode) or S_ISREG(mode) or S_ISSOCK(mode)


def takes_list(words: list) -> bool:
    """Whether each line of a pipe on standard input goes to the end of these words: an argument list, not a line for a shell."""
    return (len(words) > 1 or OS.quote(words) == words[0]) and OS.is_piped_to()


def settle_stdin(args, sources: list) -> bool:
    """Return whether a source of values is standard input."""
    used = sum(isinstance(source, FileValues) and source.path == "-" for source in sources)
    if used > 1 or used and args.job_stdin == "-":
        raise UserError("standard input can be read once only: give one of its two uses a file by name")
    return used > 0


class FileValues:
    """The values in a file or pipe, which end with `end`.  They can be read again and again, and memory stays flat."""

    def __init__(self, path: str, end: bytes):
        self.path = path
        self._end = end
        try:
            self._file = None if path == "-" else open(path, "rb")
            if self._file is None or not S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._keep()
        except (OSError, ValueError) as error:
            raise UserError("can't read %s: %s" % (source_name(path), getattr(error, "strerror", None) or error)) from None

    def _keep(self) -> None:
        """Copy to a file of our own what can be read only once."""
        import tempfile
        source, self._file = self._file, tempfile.TemporaryFile()
        while True:
            part = source.read(2**18) if source is not None else read_stdin(2**18)
            if not part:
                return
            self._file.write(part)

    def __iter__(self):
        self._file.seek(0)
        rest, part = b"", b"start"
        while part:
            part = self._file.read(2**16)
            *values, rest = (rest + part).split(self._end)
            yield from map(self._text, values)
        if rest:
            yield self._text(rest)

    def parts(self):
        """Yield the text in parts of whole lines, whatever bytes it holds."""
        self._file.seek(0)
        while True:
            lines = self._file.readlines(PART_BYTES)
            if not lines:
                return
            yield b"".join(lines).decode("utf-8", "surrogateescape")

    def _text(self, value: bytes) -> str:
        if os.sep != "/" and value[-1:] == b"\r" and self._end == b"\n":
            value = value[:-1]
        try:
            if b"\0" not in value:
                return text_of(value)
        except UnicodeError:
            raise UserError("%s holds a value that is not UTF-8: %s" % (source_name(self.path), quoted(value))) from None
        raise UserError("%s holds a NUL character: give -0 if its values end with one" % source_name(self.path))


def job_of_words(words: list, options: dict) -> dict:
    """Return the job that a command line describes: words, one shell string, or one JSON object."""
    text = words[0].strip(BLANK)
    if len(words) > 1 and text[:1] == "{" and begins_json(text):
        raise UserError("a JSON object must be one argument: put it into single quotes, or into a file for `enqueue --file`")
    if len(words) > 1 and " " in words[0] and not OS.find_program(words[0], OS.job_environment(OS.environment(), {})):
        raise UserError("no program is called %s: one argument is a shell line; %s" % (quoted(words[0]), (
            "options stand before it" if words[1][:1] == "-" else "several are each a job, and values, after `:::`")))
    if len(words) > 1 or not begins_json(text):
        return dict(options, command=words[0] if len(words) == 1 else list(words))
    value, end = parse_json(text)
    if isinstance(value, list) or text[end:].strip(BLANK):
        raise UserError("one JSON object describes one job: give several to `enqueue --file` or `run --file`")
    return dict(check_object(value), **options)


def shell_command(text: str) -> str:
    """Return `text`, a command in a place that takes no JSON; raise UserError if it is JSON."""
    if begins_json(text.strip(BLANK)):
        raise UserError("a shell command is needed here, not JSON: %s" % quoted(text))
    return text


def this_job(store):
    """Return the running job of this queue in which this command runs, or None; the environment names it."""
    variable = os.environ.get
    try:
        if not os.path.samefile(variable("QUEUECTL_DB", ""), store.db.path):
            return None
    except OSError:
        return None
    job = store.look.find(variable("QUEUECTL_JOB_ID", ""))
    return job if job is not None and job.state == "processing" and str(job.attempt) == variable("QUEUECTL_ATTEMPT") else None


def begin_wait(store, ids: list) -> tuple:
    """Return (the job in which this command runs or None, the ids that it may wait for).

    Those ids include neither that job nor any job that can't end before it.
    """
    within = this_job(store)
    if within is None or not ids:
        return within, ids
    later = store.workers.begin_wait(within.id, ids)
    left_out = [job_id for job_id in ids if job_id in later]
    if within.id in left_out:
        talk("job %d runs this command: it is not waited for" % within.id)
        left_out.remove(within.id)
    for job_id in left_out[:5]:
        talk("job %d can't end before job %d, which runs this command: it is not waited for" % (job_id, within.id))
    if left_out[5:]:
        talk("nor are %d more" % len(left_out[5:]))
    return within, [job_id for job_id in ids if job_id not in later]


def deadlock_text(job_id: int, within) -> str:
    return ("job %d can't start before job %d, which runs this command, has ended: the workers are stopping, or jobs that wait "
            "for it take up its workers or the limit of its queue" % (job_id, within.id))


def warn_if_stuck(store, job_id: int) -> None:
    """Warn the user if no worker will take a job."""
    job = store.look.job(job_id)
    if not serving(store, job):
        talk("no worker serves its queue: start some with `%s worker start`" % invoked())
    elif job.state in WAITING and store.queues.is_paused(job.queue):
        talk("queue %s is paused: `%s queue resume %s` lets it go on" % (job.queue, invoked(), OS.quote([job.queue])))


def warn_if_unserved(store, queue: str) -> None:
    """Warn the user if no worker will take the jobs that a schedule puts into a queue."""
    if not any(supervisor.kind == "start" and is_serving(store, supervisor, queue) for supervisor in store.workers.supervisors()):
        talk("no worker serves queue %s, so nothing will run it: start some with `%s worker start`; `%s service` brings them back after a "
             "reboot" % (plain(queue), invoked(), invoked()))


def enqueue_file(store, args) -> None:
    progress = Progress(args.total)
    stored = store.enqueue_plan(args.plan, batch_label(args.file), progress=progress.show)
    progress.clear()
    print_stored(args, store, stored)


def print_stored(args, store, stored) -> None:
    total, new = sum(map(len, stored.ids)), [job for ids in stored.ids for job in (min(ids), max(ids)) if job > stored.newest]
    if args.quiet or not is_terminal(sys.stdout):
        for ids in stored.ids:
            sys.stdout.writelines("%d\n" % job for job in ids)
    elif new:
        verdict("Enqueued %s, %d to %d (batch %d)" % (plural(total - len(stored.duplicates), "job"), min(new), max(new), stored.batch))
    if new and not args.quiet and is_terminal(sys.stderr):
        warn_if_stuck(store, max(new))
    if stored.duplicates:
        talk("%s with a unique key that an earlier job has: not stored again" % plural(len(stored.duplicates), "job"))


def words_label(words: list) -> str:
    """Return the label of a batch that is made of values: its template."""
    return plain(" ".join(split_sources(words)[0]))[:100] or "values"


def batch_label(path: str) -> str:
    return "stdin" if path == "-" else plain(os.path.basename(path))


def read_stdin(most: int) -> bytes:
    """Return standard input to its end.  If another program has made it non-blocking, a single read may end early."""
    if sys.stdin is None:
        raise UserError("standard input is closed")
    data = sys.stdin.buffer.read(most) or b""
    while not OS.blocks(sys.stdin) and not 0 <= most <= len(data):
        import select
        select.select([sys.stdin], [], [])
        part = sys.stdin.buffer.read(most - len(data) if most >= 0 else -1)
        if part == b"":
            break
        data += part or b""
    return data


def source_name(path: str) -> str:
    return "standard input" if path == "-" else quoted(path)


def read_bytes(path: str, most: int = -1) -> bytes:
    """Return the bytes of a user's file (-: standard input); raise UserError if it can't be read."""
    try:
        if path == "-":
            return read_stdin(most)
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        raise UserError("can't read %s: %s" % (source_name(path), getattr(error, "strerror", None) or error)) from None


def read_text(path: str) -> str:
    """Return the text of a user's file, whatever bytes it holds."""
    return read_bytes(path).decode("utf-8", "surrogateescape")


def read_items(path: str):
    """Return an iterator of (place, command or dict) of each job in a bulk file."""
    parts = FileValues(path, b"\n").parts()
    text = next(parts, "")
    if text.startswith("#!"):
        raise UserError("%s is a script: each of its lines would run by itself; %s" % (
            source_name(path), "pipe it into sh" if path == "-" else "give its path as the command"))
    return parse_items(chain([text], parts))


# -- run --

OUTPUTS = ("grouped", "live", "none")  # when `run` prints what its jobs print
GROUPS = ("github", "gitlab")
UNREAD_MOST = 2**16  # bytes that jobs shown live may write after the reader has gone, as into a pipe: short ones do their work
JOBLOG = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
RESULTS_HEAD = "number\tjob\tstate\texit_code\tsignal\ttries\tstarted_at\tduration\tcommand\n"


def cmd_run(args) -> int:
    refuse_run_options(args)
    database = find_database(args.db)
    if args.resume or args.retry_failed:
        return resume(args, database)
    plan = plan_of(args, job_options(args), {"max_retries": 0})  # bad jobs are refused before anything starts
    if plan is None:
        return None if args.dry_run else nothing_to_run(args)
    prepare_places(args)
    refuse_foreign_wal(database)
    warn_root(database)
    label = batch_label(args.file) if args.file is not None else words_label(args.rest) if args.values else "run"
    run = Run(args, database, min(args.count or OS.cores(), len(plan.items)))
    return run.work(lambda: run.enqueue(plan, label))


def nothing_to_run(args) -> None:
    talk("nothing to run")
    if args.json:
        none = dict.fromkeys(("total", "completed", "dead", "cancelled", "left", "removed", "duration", "status"), 0)
        out_json(dict(none, batch=None, duplicates={}, flaky=[], ok=True))


def refuse_run_options(args) -> None:
    """Refuse options of `run` that exclude each other."""
    for option, asked, against in (("--keep-order", args.keep_order, ("live", "none")), ("--group", args.group, ("live", "none")),
                                   ("--tag", args.tag, ("none",))):
        if asked and args.output in against:
            raise UserError("%s and --output %s exclude each other" % (option, args.output))
    if args.json and (args.output or args.group or args.tag or args.keep_order):
        raise UserError("--json prints a summary in the place of what the jobs print: give --results DIR to keep that")


def prepare_places(args) -> None:
    """Refuse places for the outcome that can't be written."""
    for path in (args.junit, args.joblog):
        if path:
            check_writable(path)
    if args.results:
        try:
            os.makedirs(args.results, exist_ok=True)
        except OSError as error:
            raise UserError("can't make the directory %s: %s" % (quoted(args.results), error.strerror)) from None
        check_writable(os.path.join(args.results, "results.tsv"))


def resume(args, database: str) -> int:
    """Work what is left of a batch: `run --resume` and `run --retry-failed`."""
    batch = args.resume or args.retry_failed
    words = args.rest + [batch] if batch != "-" else args.rest
    if len(words) > 1 or args.file is not None or args.arg_file or job_options(args):
        raise UserError("--resume and --retry-failed take a batch, and its jobs as they are")
    refuse_missing(database)
    with open_queue(args) as store:
        states = UNFINISHED + (("dead", "cancelled") if args.retry_failed else ())
        ref = words[0] if words else None
        batches = [store.queues.batch(ref)] if ref else store.queues.batches()
        lefts = ((batch, sum(map(store.queues.batch_counts(batch.id).get, states))) for batch in batches)
        found, left = next((pair for pair in lefts if pair[1]), (None, 0))
        if found is None or args.dry_run:
            return nothing_to_run(args) if found is None else talk("batch %d: %s" % (found.id, plain(found.label or "")))
    prepare_places(args)
    warn_root(database)
    run = Run(args, database, min(args.count or OS.cores(), left))
    return run.work(lambda: run.reserve(found.id))


def refuse_unread_input() -> None:
    try:
        if not S_ISFIFO(os.fstat(0).st_mode) or not OS.has_input(0.05):
            return
    except OSError:
        return  # it is closed
    raise UserError("nothing reads the data on standard input: write {} where its lines belong, --file - if they are commands, "
                    "--stdin - if the job reads it, or < /dev/null if it is not meant")


def check_writable(path: str) -> None:
    try:
        open(path, "ab").close()
    except OSError as error:
        raise unwritable(path, error) from None


class Results:
    """What becomes of the output of a run's jobs: printed as they end, in their order or as it comes, and kept in files."""

    def __init__(self, args, batch: int, first: int, order, alone: bool):
        self.alone = alone and not (args.json or args.tag or args.group or args.output)
        self._how = "none" if args.json else "live" if self.alone else args.output or "grouped"
        self.shows, self.live = self._how != "none", self._how == "live"
        self._tag, self._group, self._folder = args.tag, args.group, args.results
        self._batch, self._first, self._since = batch, first, time.time()
        self._order = iter(order) if args.keep_order else None
        self._next = next(self._order, None) if args.keep_order else None
        self._ended = {}        # with --keep-order: the ends whose turn has not come yet
        self._readers = {}      # live: of each job that has begun and is not known to have ended
        self._write = output_writer(args.tag) if self.shows else None
        again = args.resume or args.retry_failed
        self._joblog = self._table(args.joblog, JOBLOG, again) if args.joblog else None
        self._table_file = self._table(os.path.join(args.results, "results.tsv"), RESULTS_HEAD, again) if args.results else None
        self.unwritten = ""     # why the tables or files are not complete

    def _table(self, path: str, head: str, again):
        try:
            file = open(path, "a" if again else "w", encoding="utf-8", errors="surrogateescape", newline="\n")
        except OSError as error:
            raise unwritable(path, error) from None
        if not file.tell():
            file.write(head)
        return file

    def is_unread(self) -> bool:
        """Whether jobs whose output is shown live go on writing though its reader has gone: by themselves they would get SIGPIPE."""
        output = sys.stdout.buffer.raw if self.live and sys.stdout is not None else None
        return isinstance(output, Output) and output.dropped > UNREAD_MOST and not output.has_reader()

    def follow(self, store) -> None:
        """Print what running jobs have written since the last call, if it is shown live."""
        if self._how != "live":
            return
        for job in store.look.jobs(("processing",)):
            if job.batch == self._batch and job.id not in self._readers:
                self._readers[job.id] = self._reader(store, job)
        for reader in self._readers.values():
            reader.store = store
            reader.read(self._write, follow=True)

    def take(self, store, ends: list) -> None:
        """Take jobs that have ended (JobEnd)."""
        for end in ends:
            self._save(partial(self._keep, store, end))
            if self._order is None:
                self._print(store, end)
            else:
                self._ended[end.job] = end
        while self._next in self._ended:
            self._print(store, self._ended.pop(self._next))
            self._next = next(self._order, None)
        for file in filter(None, (self._joblog, self._table_file)):
            self._save(file.flush)

    def close(self, store) -> None:
        """Print what waits for jobs that have not ended, and close the tables."""
        for job in sorted(self._ended):
            self._print(store, self._ended[job])
        for file in filter(None, (self._joblog, self._table_file)):
            self._save(file.close)

    def _save(self, write) -> None:
        """Write something of the outcome.  If that fails, as on a full disk, the run goes on and says so at its end."""
        try:
            write()
        except OSError as error:
            places = " or ".join(quoted(place) for place in (self._folder, self._joblog and self._joblog.name) if place)
            self.unwritten = "%s can't be written: %s" % (places, error.strerror)

    def _prefix(self, name, job: int) -> str:
        return "%s | " % plain(name or str(job)) if self._tag else ""

    def _reader(self, store, job):
        prefix = self._prefix(job.name, job.id)
        first = next((attempt.attempt for attempt in store.look.history(job.id)
                      if (attempt.finished_at or self._since) >= self._since), job.attempt)  # it may have been tried again already
        return LogReader(store, job.id, first, prefix, onward=True, whole_lines=not self.alone)

    def _print(self, store, end) -> None:
        if self._how == "live":
            reader = self._readers.pop(end.job, None)
            job = store.look.find(end.job)
            if reader is None and end.attempt and job is not None:
                reader = self._reader(store, job)
            if reader is not None:
                reader.store = store
            while reader is not None and reader.read(self._write, follow=False):
                pass
        elif self._how == "grouped" and (end.attempt or self._group):
            self._begin_group(end)
            ends_line = pass_log(store.db.files.log(end.job, end.attempt or 0), self._write,
                                 raw(self._prefix(end.name, end.job)))
            if not ends_line and (self._group or is_terminal(sys.stdout)):
                self._write(b"\n")
            if self._group:
                sys.stdout.write("::endgroup::\n" if self._group == "github" else
                                 "\033[0Ksection_end:%d:job_%d\r\033[0K\n" % (end.at, end.job))

    def _begin_group(self, end) -> None:
        if self._group:
            title = "%s job %d%s: %s" % ("✔" if end.state == "completed" else "✘", end.job, "" if end.state == "completed" else
                                         ", %s" % plain(error_text(end) or end.state), plain(end.name or end.command)[:200])
            sys.stdout.write("::group::%s\n" % title if self._group == "github" else
                             "\033[0Ksection_start:%d:job_%d[collapsed=true]\r\033[0K%s\n" % (end.at - (end.duration or 0), end.job, title))
            sys.stdout.flush()

    def _keep(self, store, end) -> None:
        number, log = end.job - self._first + 1, store.db.files.log(end.job, end.attempt or 0)
        command = text_of(end.command) if isinstance(end.command, bytes) else end.command
        if self._joblog is not None and end.attempt:
            code = -1 if end.exit_code is None and end.signal is None else end.exit_code or 0
            size = size_of(log)
            self._joblog.write("%d\t:\t%.3f\t%10.3f\t0\t%d\t%d\t%d\t%s\n" % (
                number, end.started_at or 0, end.duration or 0, size, code, end.signal or 0, command.replace("\n", "\0")))
        if self._table_file is not None:
            self._table_file.write("\t".join("" if value is None else str(value) for value in (
                number, end.job, end.state, end.exit_code, end.signal, end.attempts, utc(end.started_at), end.duration,
                plain(command))) + "\n")
            with open(os.path.join(self._folder, "%d.log" % number), "wb") as file:
                pass_log(log, file.write)


def pass_log(path: str, write, prefix: bytes = b"") -> bool:
    """Pass on an attempt's output; return whether it ends with a whole line, or is empty."""
    part = b"\n"
    try:
        with open(path, "rb", opener=no_link) as file:
            for part in file if prefix else iter(partial(file.read, 2**20), b""):
                write(prefix + part)
    except FileNotFoundError:
        pass  # it wrote nothing
    return part[-1:] == b"\n"


class Run:
    """A one-shot run: its jobs, a foreground supervisor that takes no other jobs, what they print, a summary."""

    def __init__(self, args, database: str, count: int):
        self._args = args
        self._begun = time.monotonic()
        self._look_at = self._begun + 1.0
        self._stalled = self._explained = None  # why nothing ran at the last look, and which reason was last printed
        self._batch, self._duplicates = None, []
        self._within, self._awaited = None, []
        self._died = 0             # how many jobs have died
        self._why_ended = None     # why the rest was cancelled
        self._told = 0             # the stop of which the user has been told
        self._most_failures = args.max_failures or (1 if args.fail_fast else None)
        asked = {"drain": True, "max_failures": self._most_failures}
        self._supervisor = Supervisor(SupervisorSpec(database, "run", count, asked), print_trouble, worker_argv(database))

    def enqueue(self, plan, label: str) -> None:
        """Store the jobs, and keep them for this run."""
        with Store(self._supervisor.database) as store:
            seq = store.look.last_event()
            stored = store.enqueue_plan(plan, label, self._supervisor.id)
            self._total, self._duplicates = sum(map(len, stored.ids)), stored.duplicates  # the total counts duplicates too
            fresh = [ids for ids in stored.ids if ids[0] > stored.newest]
            if this_job(store):
                self._within, self._awaited = begin_wait(store, list(chain(*fresh)))
            self._begin(store, stored.batch, fresh[0][0] if fresh else 0, chain(*fresh), seq)

    def reserve(self, batch: int) -> None:
        """Keep the unfinished jobs of a batch for this run; with --retry-failed, those too that it retries."""
        with Store(self._supervisor.database) as store:
            seq, ids = store.queues.reserve_batch(batch, self._supervisor.id)  # it may refuse: nothing is retried before
            if self._args.retry_failed:
                bad = store.look.select(("dead", "cancelled"), batch=batch)
                ids += [job for job, result in store.life.retry(bad) if result == "pending"]
                store.queues.reserve_batch(batch, self._supervisor.id)
            self._total = sum(store.queues.batch_counts(batch).values())
            if this_job(store):
                self._within, self._awaited = begin_wait(store, ids)
            self._begin(store, batch, min(store.look.select((), batch=batch)), sorted(ids), seq)

    def _begin(self, store, batch: int, first: int, order, seq: int) -> None:
        self._batch, self._seq = batch, seq
        self._results = Results(self._args, batch, first, order, self._total == 1)
        self._progress = Progress(self._total, 5.0)

    def work(self, take_jobs) -> int:
        """Run the jobs that `take_jobs()` stores or reserves; return the exit status."""
        try:
            if self._args.resume or self._args.retry_failed:
                self._supervisor.start()  # it gives back what a run that was killed had kept for itself
                take_jobs()
            else:
                take_jobs()
                self._supervisor.start()
            self._supervisor.run(self._turn)
        finally:
            self._supervisor.close()
        self._progress.clear()
        with Store(self._supervisor.database) as store:
            if self._within is not None:
                store.workers.end_wait(self._within.id, self._awaited)
            self._print_output(store)
            self._results.close(store)
            return self._sum_up(store)

    def _turn(self) -> None:
        begun, store = time.monotonic(), self._supervisor.store
        self._print_output(store)
        self._print_stop(store)
        self._cancel_rest(store)
        if begun >= self._look_at:
            self._look_at = begun + 1.0
            self._print_why_stalled(store)
        if self._results.alone or not self._progress.due():
            return
        counts = store.queues.batch_counts(self._batch)
        done = sum(counts[state] for state in FINAL) + len(self._duplicates)
        failed = counts["dead"]
        suffix = "  %d failed" % failed if failed else ""
        if counts["failed"]:
            suffix += "  %d to retry" % counts["failed"]
        self._progress.show(done, "%s  %d running" % (suffix, counts["processing"]), time.monotonic() - begun)

    def _print_output(self, store) -> None:
        """Print what the jobs print, as asked, and note which have ended."""
        ends = [None]
        while ends:
            ends = store.look.ended_since(self._seq, self._batch)
            if ends:
                self._seq = ends[-1].seq
                self._died += sum(end.state == "dead" for end in ends)
                self._progress.clear()
                self._results.take(store, ends)
        if self._results.live:
            self._progress.clear()
            self._results.follow(store)

    def _print_stop(self, store) -> None:
        """Say what an interrupt does, once for each."""
        if self._supervisor.interrupted and self._supervisor.stopping > self._told:
            self._told = self._supervisor.stopping
            running = store.queues.batch_counts(self._batch)["processing"]
            self._progress.clear()
            if running and self._told == GRACEFUL:
                talk("finishing %s; press again to end %s" % (plural(running, "job"), "it" if running == 1 else "them"))

    def _cancel_rest(self, store) -> None:
        """Cancel the rest once enough jobs have died, or the time is up."""
        args = self._args
        if self._why_ended is not None:
            return
        most = self._most_failures
        if most and self._died >= most:
            self._why_ended = "%s failed" % plural(self._died, "job")
        elif self._results.is_unread():
            self._why_ended = "nothing reads the output any more"
        elif args.total_timeout is not None and time.monotonic() - self._begun >= args.total_timeout:
            self._why_ended = "the time of %s is up" % span(args.total_timeout)
        else:
            return
        soon = args.fail_fast == "soon" and most
        ids = store.look.select(WAITING + (() if soon else ("processing",)), batch=self._batch)
        store.life.cancel(ids)
        if ids:
            self._progress.clear()
            talk("%s: the rest is cancelled (%s)" % (self._why_ended, plural(len(ids), "job")))

    def _print_why_stalled(self, store) -> None:
        """Print what keeps all jobs of the run waiting, if it lasts for a second; the progress shows a wait for a retry."""
        job, before = store.claims.stalled_job(self._supervisor.id), self._stalled
        reasons = [reason for reason in why_waiting(store, job) if job.state != "failed" or reason.kind != "time"] if job else []
        self._stalled = [reason for reason, _ in reasons]
        if reasons and self._stalled == before and self._within is not None and deadlocked(store, job.id):
            self._progress.clear()
            talk(deadlock_text(job.id, self._within))
            self._supervisor.stopping = IMMEDIATE
        elif reasons and self._stalled == before != self._explained:
            self._explained = before
            self._progress.clear()
            for reason in reasons:
                talk("job %d waits: %s" % (job.id, reason_text(job, reason)))

    def _sum_up(self, store) -> int:
        took = time.monotonic() - self._begun
        report = run_report(store, self._batch, self._total, [job_id for _, job_id in self._duplicates], took)
        left, number = report["left"], self._supervisor.interrupted
        status = 0 if report["ok"] else 128 + number if left and number else 124 if (
            self._why_ended and not self._died and self._args.total_timeout is not None) else 1
        if self._args.json:
            out_json(dict(report, status=status))
        self._print_bad(store, report)
        if report["flaky"]:
            talk("%s needed more than one try: %s" % (plural(len(report["flaky"]), "job"), ", ".join(
                "%s (%d)" % (plain(job["name"] or str(job["id"])), job["tries"]) for job in report["flaky"][:10])))
        parts = [(report["dead"], "failed"), (report["cancelled"], "cancelled"), (len(self._duplicates), "there already (%s)" % ", ".join(
            "%d %s" % (count, state) for state, count in report["duplicates"].items())),
            (left, "left in the queue"), (report["removed"], "removed before its end was known")]
        talk("%s %d of %d completed in %s%s" % (
            paint("✔", "green", sys.stderr) if report["ok"] else paint("✘", "red", sys.stderr), report["completed"], self._total,
            span(took), "".join(", %d %s" % part for part in parts if part[0])))
        if left and not number:
            self._print_why_left(store)
        elif left:
            talk("`{0} run --resume {1}` goes on with them, `{0} cancel --batch {1}` drops them".format(
                invoked_at(self._args), self._batch))
        elif is_terminal(sys.stderr) and self._total > 1 and report["dead"] + report["cancelled"]:
            talk("`%s run --retry-failed %d` runs them again" % (invoked_at(self._args), self._batch))
        if self._args.junit:
            jobs = [job for page in job_pages(store, (), 0, {"batch": self._batch}) for job in page][::-1]
            duplicates = [store.look.find(job_id) for _, job_id in self._duplicates]
            self._write_junit(junit(jobs + [job for job in duplicates if job is not None], store, took))
        if self._results.unwritten:
            raise UserError("the jobs have ended, but " + self._results.unwritten)
        return status

    def _print_why_left(self, store) -> None:
        job = next(iter(store.look.jobs(("pending",), 1, batch=self._batch)), None)
        for reason in why_waiting(store, job) if job is not None else []:
            talk("job %d waits: %s" % (job.id, reason_text(job, reason)))

    def _print_bad(self, store, report: dict) -> None:
        """Print which jobs did not complete; their last lines too, unless those have been printed."""
        bad = store.look.jobs(("dead", "cancelled"), 20, batch=self._batch)[::-1]
        cross = paint("✘", "red", sys.stderr)
        for job in bad:
            talk("%s job %d%s%s: %s" % (
                cross, job.id, " (%s)" % job.name if job.name else "",
                ", %s, attempt %d" % (plain(error_text(job) or job.state), job.attempt) if job.attempt else
                " did not run, " + ending_text(job),
                fit(plain(job.command), 200)))
            for line in [] if self._results.shows else last_lines(store.db.files.log(job.id, job.attempt), 10):
                talk("    " + line)
        failed = report["dead"] + report["cancelled"]
        if failed > len(bad):
            talk("  and %d more: %s batch show %d" % (failed - len(bad), invoked_at(self._args), self._batch))
        for where, job_id in self._duplicates[:20]:
            job = store.look.find(job_id)
            if job is not None and job.state != "completed":
                talk("%s %sjob %d already has this unique key and is %s" % (cross, where, job.id, job.state))

    def _write_junit(self, text: str) -> None:
        try:
            with open(self._args.junit, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UserError("the jobs have ended, but %s can't be written: %s" % (quoted(self._args.junit), error.strerror)) from None


# -- worker --

def worker_argv(database: str) -> list:
    return program_argv() + ["_worker", "--db", database]


def queue_list(names):
    """Return `a,b` as `/a/b/`, the form in which Store compares queue names; None for all."""
    if names is None:
        return None
    return slashed([parse_queue(name.strip()) for name in names.split(",")])


def cmd_worker_start(args) -> int:
    import json
    database = find_database(args.db)
    announced = args.announce is not None
    asked = asked_again(json.loads(args.announce or "{}"))  # all options but --count, which `worker scale` changes
    if not asked:
        asked = {name: getattr(args, name) for name in START_VALUES if name not in ("queues", "on")}
        asked.update(queues=queue_list(args.queue), **engine_asked(args))
    text = json.dumps(asked)
    if not announced:
        warn_root(database)
        if not args.foreground:
            return start_in_background(args, database, text)
    OS.close_inherited()
    if asked["nice"] is not None:
        OS.be_nice(asked["nice"])
    answer = take_answer_pipe() if announced else None
    log = Log(Files(database).journal)
    try:
        refuse_foreign_wal(database)
        supervisor = Supervisor(SupervisorSpec(database, "start", args.count, asked, text), log, worker_argv(database))
        within = this_job(supervisor.store)
        supervisor.within = within and within.id
        if not announced:
            tell_others(supervisor.store, supervisor.id)
        first = supervisor.store.look.last_event()
        supervisor.start()
        log("started", text="%s, queue %s" % (plural(args.count, "worker"), plain(database)))
        announce(answer, "ready %d" % supervisor.id)
        supervisor.run()
        died = supervisor.store.look.deaths_since(first, asked["queues"]) if asked["drain"] else 0
        supervisor.close()
        return 1 if died else 0
    except (QueueGone, UserError, OSError, sqlite3.Error) as error:
        announce(answer, "error %s" % plain(explain_error(error, database)))
        log("trouble", why=explain_error(error, database))
        return 2


# What `worker start` may be asked for, and the types that its values have in a supervisor's row.
START_VALUES = {"drain": bool, "foreground": bool, "max_jobs": int, "idle_timeout": (int, float), "nice": int, "load": (int, float),
         "queues": str, "on": dict}


def asked_again(asked) -> dict:
    """Return what a supervisor's row says that its `worker start` was asked for; refuse what another program has put there."""
    if asked:
        for name, value in asked.items():
            if name not in START_VALUES or value is not None and not isinstance(value, START_VALUES[name]):
                raise UserError("these workers can't be restarted: their row is damaged. Stop them, and start new ones")
        asked = {**dict.fromkeys(START_VALUES), **asked}
    return asked


def engine_asked(args):
    """Return what `worker start --on` was told, as {"on": the fields of an EngineSpec}; {} for workers on this machine."""
    if args.on is None:
        if args.rest or args.pack is not None:
            raise UserError("%s: only `worker start --on ENGINE` takes it" % (
                "--pack" if args.pack is not None else "unrecognized arguments: " + plain(" ".join(args.rest))))
        return {}
    for name in ("max_jobs", "nice", "load"):
        if getattr(args, name) is not None:
            raise UserError("--%s is for workers on this machine: leave it out with --on" % name.replace("_", "-"))
    if not OS.forks:
        raise UserError("--on needs Linux, here and on the nodes")
    return {"on": {"engine": args.on, "options": engine_options(ENGINES[args.on], args.rest), "pack": args.pack}}


def warn_root(database: str) -> None:
    """Tell root whose jobs are about to run as root."""
    name = OS.other_owner(database)
    if name:
        talk("you are root: the jobs of this queue, which is %s's, run as root" % name)


def take_answer_pipe() -> int:
    """Return the pipe to the `worker start` that waits for us; from here on our stdout is the log, as stderr is."""
    answer = os.dup(1)
    os.dup2(2, 1)
    return answer


def announce(answer, line: str) -> None:
    """Tell the `worker start` that waits for us how the start went; only the first word counts."""
    if answer is not None:
        try:
            os.write(answer, line.encode("utf-8", "replace") + b"\n")
        except OSError:
            pass  # that `worker start` did not wait


def tell_others(store, but=None) -> None:
    """Tell the user how many workers run already, beside those of one supervisor."""
    others = [fact for fact in worker_report(store) if fact["state"] in ("idle", "busy") and fact["supervisor"] != but]
    if others:
        talk("%s already: `%s worker list` shows them, `%s worker stop` stops them all" % (
            "1 other worker runs" if len(others) == 1 else "%d other workers run" % len(others), invoked(), invoked()))


def start_in_background(args, database: str, asked: str) -> None:
    with Store(database) as store:
        tell_others(store)
    pid, log = launch(database, args.count, asked)
    verdict("Started %s (supervisor pid %d)" % (plural(args.count, "worker"), pid))
    out("  stop:  %s worker stop" % invoked_at(args))
    out("  log:   %s" % plain(log))


def launch(database: str, count: int, asked: str) -> tuple:
    """Start a supervisor in the background; return (its pid, its log) when its workers are ready.

    `asked` is the JSON of cmd_worker_start, or the words that 1.0 wrote, one per line.
    """
    words = [asked] if asked[:1] == "{" else ["{}", *asked.splitlines()]
    with Store(database) as store:
        store.db.files.make()
        log = store.db.files.journal
        rotate(log)
    pid, answer = OS.detach(program_argv() + ["worker", "start", "--db", database, "--count", str(count), "--announce", *words], log)
    with answer:
        word, _, text = answer.readline().decode("utf-8", "replace").strip().partition(" ")
    if word != "ready":
        raise UserError(text or "the workers did not start (%s): see %s" % ("".join(last_lines(log, 1)), plain(log)))
    return pid, log


def cmd_worker_stop(store, args) -> int:
    wanted = {s.id for s in store.workers.supervisors() if s.kind == "start"}
    workers = [w.id for w in store.workers.workers() if w.supervisor in wanted]
    gone = stop_supervisors(store, wanted, IMMEDIATE if args.now else GRACEFUL)
    if not wanted:
        out("No workers are running")
    elif gone is False:
        verdict("The jobs of dead workers can't be released yet: the next `worker start` releases them", BAD)
    else:
        verdict("%s%s" % ("Stopped " if gone else "Asked ", plural(len(workers), "worker") + ("" if gone else " to stop")))
    report = worker_report(store)
    for engine in sorted({fact["engine"] for fact in report if fact["state"] == "away"}):
        talk("jobs go on with %s: the next `%s worker start --on %s` takes them over, or after it `worker stop --now` gives them back" % (
            ENGINES[engine].title, invoked(), engine))
    kept = [fact["id"] for fact in report if fact["supervisor"] not in wanted and fact["state"] in ("idle", "busy")]
    if kept:
        talk("worker %s: not stopped, since a `run` has its own workers; they end with it" % ", ".join(map(str, kept)))
    return 1 if gone is False else 0


def stop_supervisors(store, wanted: set, how: int):
    """Stop these supervisors and return True when they have ended.

    Return None if they were only asked to stop, False if something could not be released.  Supervisors that should stop
    now (IMMEDIATE) have kill_grace and some seconds; then they are killed.
    """
    within = this_job(store)
    ours = {worker.supervisor for worker in store.workers.workers() if within is not None and worker.id == within.worker}
    if how == IMMEDIATE:
        store.db.patience = 2.0
        if ours & wanted:
            store.workers.spare(within)
    for supervisor in sorted(wanted, key=lambda number: (number in ours, number)):  # ours last: it may kill us at once
        ask_stop(store, supervisor, how)
    if within is not None:
        talk("job %d runs this command, which therefore does not wait until the workers have stopped" % within.id)
        return None
    explain_at = time.monotonic() + 1.0
    kill_at = explain_at + store.settings.value("kill_grace") + END_NOW_S + 3.0 if how == IMMEDIATE else float("inf")
    end_at = kill_at + 4.0
    while True:
        try:
            if not wanted_left(store, wanted, how):
                return True
        except (sqlite3.OperationalError, OSError) as error:  # the database can't be written: what dead workers held stays
            if is_damage(error):
                raise
            end_at = min(end_at, time.monotonic() + 4.0)
        now = time.monotonic()
        if now >= end_at:
            return False
        if now >= kill_at:
            kill_at = float("inf")
            kill_supervisors(store, wanted)
        if now >= explain_at:
            explain_at = float("inf")
            print_why_not_stopped(store, wanted, how)
        time.sleep(0.01)


def ask_stop(store, supervisor: int, how: int) -> None:
    """Ask for a stop in the database; if it can't be written, send `now` by a signal."""
    try:
        store.workers.ask_stop(supervisor, how)
    except (sqlite3.OperationalError, OSError) as error:
        content = read_lock(store.db.files.supervisor_lock(supervisor))
        if how < IMMEDIATE or not is_here(content):
            raise
        talk("can't write to the database (%s): the supervisor gets a signal instead" % plain(str(error)))
        OS.signal_worker(content.pid, "now")


def is_here(content) -> bool:
    """Whether the process that wrote a lock file belongs to this machine, so that a signal may be sent to it."""
    return content is not None and content.machine == OS.machine() != "" and content.pid > 1


def kill_supervisors(store, wanted: set) -> None:
    """Kill the processes that did not end in time: they are stopped or stuck.  Their jobs are rescued."""
    names = [w.id for w in store.workers.workers() if w.supervisor in wanted] + ["s%d" % number for number in wanted]
    for path in map(store.db.files.lock, names):
        content = read_lock(path)
        if is_here(content) and OS.is_held(path):
            OS.signal_worker(content.pid, "kill")


def print_why_not_stopped(store, wanted: set, how: int) -> None:
    """Print what a stop waits for: running jobs, and what their workers and supervisors wait for."""
    workers = [fact for fact in worker_report(store) if fact["supervisor"] in wanted]
    supervisors = [fact for fact in supervisor_report(store) if fact["id"] in wanted]
    busy = [str(fact["job"]) for fact in workers if fact["job"] and not fact["note"]]
    if busy:
        talk("waiting for job %s to end%s" % (", ".join(busy[:5]), (
            "; `%s worker stop --now` gives it back" % invoked() if how < IMMEDIATE else "")))
    for fact in waiting(supervisors + workers)[:10]:
        talk("waiting: %s %s" % (who_text(fact), note_text(fact)))


def wanted_left(store, wanted: set, how: int) -> bool:
    """Whether any of these supervisors is left.  Stop the workers of a dead one and release their jobs."""
    dead = wanted & dead_supervisors(store)
    workers = [worker for worker in store.workers.workers() if worker.supervisor in dead]
    for worker in release_dead(store, dead, workers, partial(rescue, store)):
        alive = OS.is_held(store.db.files.lock(worker.id)) or (  # else the row may be a copy's, or name any process
            worker.place and store.workers.is_at_home(worker) and store.workers.is_alive(worker))
        if alive and worker.machine == OS.machine() != "":
            OS.signal_worker(worker.pid, "now" if how == IMMEDIATE else "stop")
    return any(supervisor.id in wanted for supervisor in store.workers.supervisors())


def cmd_worker_scale(store, args) -> None:
    started = [s for s in store.workers.supervisors() if s.kind == "start" and OS.is_held(store.db.files.supervisor_lock(s.id))]
    if len(started) != 1:
        raise UserError("%s: start workers with `%s worker start --count %d`" % (
            "no workers are running" if not started else "there are %d groups of workers; stop them all and start one" % len(started),
            invoked(), args.count))
    store.workers.ask_scale(started[0].id, args.count)
    limit = time.monotonic() + (10 if this_job(store) is None else 0)  # surplus workers that are busy finish their jobs first
    while time.monotonic() < limit and sum(w.supervisor == started[0].id for w in store.workers.workers()) != args.count:
        time.sleep(0.01)
    verdict("Scaled from %d to %s" % (started[0].slots, plural(args.count, "worker")))


def cmd_worker_restart(store, args) -> None:
    """Start new workers first, from the file as it is now; then stop the old ones, each after its job."""
    old = [s for s in store.workers.supervisors() if s.kind == "start" and not s.stop]  # another restart replaces the stopping ones
    if not old:
        raise UserError("no workers are running: start some with `%s worker start`" % invoked())
    if any("--foreground" in s.arguments.splitlines() or
           s.arguments[:1] == "{" and parse_json(s.arguments)[0].get("foreground") for s in old):
        raise UserError("these workers run in the foreground: restart the service or terminal that they run in")
    for supervisor in old:
        launch(store.db.path, supervisor.slots, supervisor.arguments)
    gone = stop_supervisors(store, {supervisor.id for supervisor in old}, GRACEFUL)
    verdict("%s %s" % ("Restarted" if gone is not None else "Started new ones in place of",
                       plural(sum(supervisor.slots for supervisor in old), "worker")))


def cmd_worker_list(store, args) -> None:
    facts = worker_report(store)
    if args.json:
        return out_json(as_json(facts))
    supervisors = supervisor_report(store)
    print_list(facts, WORKER_LIST, "" if supervisors else "No workers are running: start some with `%s worker start`" % invoked())
    for fact in waiting(supervisors):
        out("%s %s" % (who_text(fact), note_text(fact)))


def cmd_engine_test(store, args) -> int:
    """Submit a pack without jobs, and print a line per thing that could be wrong."""
    import shutil
    engine, steps = ENGINES[args.lead[0]](), []
    folder = os.path.join(spool_of(store), "queuectl-" + os.urandom(8).hex())

    def say(text: str, mark=GOOD) -> None:
        steps.append({"ok": mark is GOOD, "text": text})
        if not args.json:
            verdict(text, mark)

    try:
        try_engine(store, engine, Sent(0, 0, folder, None, "", 1, time.time()), args, say)
    except (EngineError, OSError) as error:
        say("%s: %s" % (engine.title, plain(str(error))), BAD)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        out_json(steps)
    return 0 if steps[-1]["ok"] else 1


def try_engine(store, engine, sent, args, say) -> None:
    """Submit one task, and say of each thing that works that it does; raise EngineError or OSError at the first that does not."""
    say("%s answers: another array may have %d tasks" % (engine.title, engine.room(args.rest)))
    write_array(store, engine, sent, [[]])
    handle = engine.submit(sent.folder, task_script(engine, sent.folder), 1, 1, args.rest)
    task, over, events, path = None, 0, [], os.path.join(sent.folder, "0")
    try:
        say("a task was submitted: %s" % plain(handle))
        while len(events) < 2 and over < 3 and time.time() < sent.created_at + args.timeout:
            time.sleep(0.5)
            task = engine.look([sent.folder]).get(sent.folder, (None, {}))[1].get(0)
            over = over + 1 if task is None or task.state in TASK_ENDS else 0
            events = read_events(path + ".outcomes", 0)[0]
        if not events:
            raise EngineError("the task ended (%s), but wrote nothing to %s: do the nodes share it (`config set spool DIR`)?%s" % (
                task and task.state, os.path.dirname(sent.folder), last_line(path + ".task")) if over else "the task waits: %s, %s" % (
                task and task.state, task and task.reason))
    finally:
        if not events:
            engine.cancel({handle: [0]})
    where = events[0]
    say("it ran on %s, which shares the spool %s, with Python %s" % (
        plain(where["host"]), plain(os.path.dirname(sent.folder)), plain(where["python"])))
    apart = max(sent.created_at - where["at"], where["at"] - time.time())
    if apart > 2.0:
        raise EngineError("the clocks are %s apart" % span(apart))


def check_engine(args) -> None:
    if len(args.lead) != 1 or args.lead[0] not in ENGINES:
        raise UserError("name one engine: %s" % ", ".join(ENGINES))
    engine_options(ENGINES[args.lead[0]], args.rest)


def cmd__node(args) -> None:
    """Run a pack of jobs on a node of an engine: the path of its files, and how many cores there are."""
    Node(os.path.abspath(args.folder), int(args.cores)).work()


def cmd__worker(args) -> None:
    """Run a worker as a separate program, for systems without fork; its arguments are a WorkerSpec and its wake-up."""
    spec = WorkerSpec(find_database(args.db), int(args.supervisor), None if args.queues == "-" else args.queues,
                      args.reserved == "1", None if args.load == "-" else float(args.load))
    work(spec, OS.worker_signals(args.where), print_trouble if spec.reserved else Log(Files(spec.database).journal))


# -- looking --

SORTS = {"id": "id", "priority": "priority DESC", "created": "created_at", "started": "started_at", "finished": "finished_at",
         "duration": "duration DESC", "state": "state", "queue": "queue", "tries": "attempts DESC", "command": "command"}


def only_dead(args) -> None:
    args.state = [usable_states(args, ("dead",))]


def cmd_list(store, args) -> None:
    if not args.watch or args.json or not can_draw(sys.stdout):
        return list_once(store, args)
    while True:
        height = terminal_size(sys.stdout).lines
        args.limit = min(args.limit or 10**6, max(1, height - 3))
        sys.stdout.write("\033[2J\033[H")
        list_once(store, args)
        sys.stdout.flush()
        time.sleep(1)


def list_once(store, args) -> None:
    states, limit = states_asked(args), args.limit
    columns = args.columns or (USUAL_COLUMNS if not 0 < terminal_width(sys.stdout) < 60 else ("id", "state", "command"))
    filters = dict(filters_of(store, args), since=time.time() - args.since if args.since is not None else None)
    narrowed = "held" in states or any(value is not None for value in filters.values())
    filters["sort"] = SORTS.get(args.sort)
    total = None if narrowed else sum(n for state, n in store.queues.counts().items() if not states or state in states)
    pages = job_pages(store, states, limit, filters)
    if args.json:
        return print_json_pages(pages, limit, total)
    if args.tree:
        jobs = [job for page in pages for job in page][::-1]
        print_tree(jobs, store.look.parents([job.id for job in jobs]))
        return
    shown, widths = 0, None
    for page in pages:
        widths = print_jobs(page, columns, widths)
        shown += len(page)
    if not shown:
        talk("No jobs%s" % (" in state %s" % ", ".join(states) if states else " that match" if narrowed else ""))
    print_more(limit, total, shown)


def print_more(limit: int, total, shown: int) -> None:
    if limit and (total or 0) > shown:
        talk("%d more: --limit 0 shows all" % (total - shown))
    elif limit and total is None and shown == limit:
        talk("there may be more: --limit 0 shows all")


def print_json_pages(pages, limit: int, total) -> None:
    import json
    shown = 0
    sys.stdout.write("[")
    for page in pages:
        for job in page:
            sys.stdout.write(("," if shown else "") + "\n  " + json.dumps(job.to_dict()))
            shown += 1
    sys.stdout.write("\n]\n" if shown else "]\n")
    print_more(limit, total, shown)


def cmd_status(store, args) -> None:
    facts = status_report(store)
    counts, workers, oldest = facts["jobs"], facts["workers"], facts["oldest_waiting"]
    if args.json:
        return out_json(status_json(facts))
    width = max(len(str(n)) for n in counts.values())
    for state in STATES:
        out("%s  %s" % (paint(state.ljust(10), STATE_COLOURS[state] if counts[state] else "dim", sys.stdout),
                        str(counts[state]).rjust(width)))
    busy = sum(worker["state"] == "busy" for worker in workers)
    out("workers     %s" % ("%d, %d busy" % (len(workers), busy) if workers else "none"))
    for fact in waiting(facts["supervisors"] + workers)[:20]:
        out("waits       %s %s" % (who_text(fact), note_text(fact)))
    if oldest:
        line = "oldest      job %d has waited %s: %s" % (oldest.id, span(time.time() - ready_since(oldest)), plain(oldest.command))
        out(fit(line, terminal_width(sys.stdout) or 100))
    for found in facts["warnings"][:5]:
        talk("%s: %s" % (PROGRAM, finding_text(found)))


def one_job(store, ref: str):
    return store.look.job(store.look.ids(ref)[0])


def cmd_show(store, args) -> None:
    job = one_job(store, args.id)
    report = job_report(store, job)
    if args.json:
        return out_json(dict(job.to_dict(), **{key: as_json(value) for key, value in report.items() if key != "job"}))
    facts = job.to_dict()
    facts.update((key, local(getattr(job, key))) for key in facts if key.endswith("_at") and facts[key])
    facts["labels"] = ", ".join(facts["labels"]) or None
    for key, value in facts.items():
        if value not in (None, False) and key != "attempt":
            out("%-13s %s" % (key, plain(str(value))))
    for key in ("parents", "after_batches", "children"):
        if report[key]:
            out("%-13s %s" % (key.replace("_", " "), few(report[key])))
    if report["log"]:
        out("%-13s %s" % ("log", plain(report["log"])))
    if report["note"]:
        out("%-13s %s" % ("waits", "worker %d %s" % (job.worker, note_text(report))))
    if report["history"]:
        out("")
        print_table(("ATTEMPT", "OUTCOME", "WORKER", "PID", "STARTED", "DURATION", "ERROR"),
                    [(row["attempt"], row["outcome"], row["worker"] or "-", row["pid"] or "-", local(row["started_at"]),
                      "-" if row["duration"] is None else span(row["duration"]), row["error"] or "")
                     for row in report["history"]], ("ERROR",))


def cmd_logs(store, args) -> None:
    ids = select_ids(store, args, STATES)
    if args.path:
        return print_log_paths(store, ids, args)
    if args.follow:
        _, ids = begin_wait(store, ids)
    readers = []
    for job in [store.look.job(job_id) for job_id in ids]:
        last, prefix = max(1, job.attempt), "%d | " % job.id if len(ids) > 1 else ""
        for attempt in attempts_asked(store, job, args):
            readers.append(LogReader(store, job.id, attempt, prefix, onward=args.follow and args.attempt is None and attempt == last))
            readers[-1].tells = args.follow
            readers[-1].skip_to_last(args.lines)
        if args.follow or len(ids) > 1:
            continue
        if job.attempt == 0:
            talk("job %d has not run yet" % job.id)
        elif job.state != "processing" and not os.path.exists(store.db.files.log(job.id, readers[-1].attempt)):
            talk(no_output_text(store, job, readers[-1].attempt))
    write = output_writer(len(ids) > 1)
    while readers:
        readers = [reader for reader in readers if reader.read(write, args.follow)]
        if readers and OS.reader_left(0.05):
            break


def attempts_asked(store, job, args) -> list:
    """Return the attempts of a job whose output `logs` should print."""
    if args.all_attempts:
        return [attempt.attempt for attempt in store.look.history(job.id)] or [1]
    most = max(1, job.attempt)
    return [most if args.attempt is None else parse_number(args.attempt, "--attempt", 1, most, int)]


def print_log_paths(store, ids: list, args) -> None:
    for job in map(store.look.job, ids):
        for attempt in attempts_asked(store, job, args):
            path = output_of(store, job, attempt)
            if os.path.exists(path):
                out(path)
            else:
                talk(no_output_text(store, job, attempt) if job.attempt else "job %d has not run yet" % job.id)


def no_output_text(store, job, attempt: int) -> str:
    return ("job %d, attempt %d: its log was not copied, or is removed" if wrote(store, job, attempt) else
            "job %d wrote nothing in attempt %d") % (job.id, attempt)


def output_writer(prefixed: bool):
    """Return a function that prints output of jobs: unchanged to a pipe or file, harmless on a terminal."""
    if is_terminal(sys.stdout):
        return TerminalWriter(prefixed)

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    return write


class TerminalWriter:
    """Print output of jobs on a terminal: harmless, and each line as it finally looks (see as_shown)."""

    def __init__(self, prefixed: bool):
        import codecs
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # a character may come in two parts
        self._prefixed = prefixed  # whether each line begins with `12 | `
        self._line = ""            # the line that is not complete yet
        self._printed = ""         # how the terminal shows it now

    def __call__(self, data: bytes) -> None:
        lines = (self._line + self._decoder.decode(data)).split("\n")
        parts = []
        for line in lines:
            shown = self._shown(line)
            if shown.startswith(self._printed):
                parts.append(shown[len(self._printed):])
            else:
                parts.append(self._back() + shown)
            self._printed = ""
        self._line, self._printed = lines[-1], shown
        if len(self._line) > 2**16 and "\r" in self._line:
            self._line = self._line[max(0, self._line.rfind("\r", 0, -2**12)):]
        sys.stdout.write("\n".join(parts))
        sys.stdout.flush()

    def _shown(self, line: str) -> str:
        head, bar, tail = line.partition(" | ") if self._prefixed else ("", "", line)
        return safe_for_terminal(head + bar + as_shown(tail), not os.environ.get("NO_COLOR"))

    def _back(self) -> str:
        """Return the escapes that erase the unfinished line, which may have taken several rows."""
        if not can_draw(sys.stdout):
            return "\n"
        rows = (cell_width(safe_for_terminal(self._printed, colour=False)) - 1) // (terminal_width(sys.stdout) or 2**16)
        return "\r%s\033[J" % ("\033[%dA" % rows if rows > 0 else "")


class LogReader:
    """Read the output of one attempt, running or ended; with `onward`, continue with the next attempts.

    With a prefix, or `whole_lines`, it passes on whole lines, so that lines of several jobs don't mix.
    """

    def __init__(self, store, job: int, attempt: int, prefix: str = "", onward: bool = False, whole_lines: bool = False):
        self.store = store       # a run opens its database again after each fork
        self._job = job
        self.attempt = attempt
        self._prefix = prefix.encode()
        self._whole_lines = whole_lines or bool(prefix)
        self._onward = onward
        self._offset = 0
        self._rest = b""
        self.tells = False       # whether it says on stderr how attempts and the job ended
        self._open_line = False  # whether the last output did not end its line
        self._cut = False        # whether the output passed log_limit while it was followed

    def read(self, write, follow: bool) -> bool:
        """Pass on new output; return whether to call again: more may follow, or not all was read."""
        job = self.store.look.find(self._job)
        if job is None:
            return False
        log = self.store.db.files.log(self._job, self.attempt)
        if running(self.store, job, self.attempt):
            place = self._offset, self._cut
            data = self._part(self.store.db.files.output(job.worker))
            again = self.store.look.find(self._job)
            if os.path.exists(log):
                self._offset, self._cut = place  # the attempt ended meanwhile
            elif again is not None and (again.state, again.attempt, again.worker) == (job.state, job.attempt, job.worker):
                self._pass(data, write)  # the file was this attempt's, before and after it was read
                if not data and not follow:
                    self._flush(write)
                return follow or bool(data)
        if self._cut:  # offsets in the log differ from those in the output that was followed: only its tail is new
            self._offset, self._cut = self._tail_of(log), False
        data = self._part(log)
        while data:
            self._pass(data, write)
            data = self._part(log)
        if job.attempt < self.attempt:
            return follow and job.state not in FINAL
        self._flush(write)
        if self._onward and (job.state not in FINAL or job.attempt > self.attempt):
            self._say(write, "job %d, %s" % (job.id, self._end_of_attempt()))
            self.attempt, self._offset = self.attempt + 1, 0
            return True
        if self._onward:
            self._say(write, "job %d is %s" % (job.id, ending_text(job)))
        return False

    def _end_of_attempt(self) -> str:
        """Return in words how the attempt ended; a released or crashed one too is followed by another."""
        ended = next((attempt for attempt in self.store.look.history(self._job) if attempt.attempt == self.attempt), None)
        outcome, why = (ended.outcome, error_text(ended)) if ended else ("ended", None)
        return "attempt %d %s%s; attempt %d follows" % (self.attempt, outcome, " (%s)" % plain(why) if why else "", self.attempt + 1)

    def _say(self, write, text: str) -> None:
        """Print a line between the outputs of attempts: on stderr, apart from the jobs' bytes."""
        if not self.tells:
            return
        if self._open_line and write.__class__ is TerminalWriter:
            write(b"\n")
        self._open_line = False
        talk(paint("-- %s --" % text, "dim", sys.stderr))

    def skip_to_last(self, lines) -> None:
        """Start at the last `lines` lines of the present output; None: at the beginning."""
        job = self.store.look.find(self._job)
        if lines is None or job is None:
            return
        path = output_of(self.store, job, self.attempt)
        try:
            with open(path, "rb", opener=no_link) as file:
                place, found = file.seek(0, os.SEEK_END), 0
                while place > 0 and found <= lines:
                    step = min(place, 2**16)
                    place -= step
                    file.seek(place)
                    block = file.read(step)
                    found += block.count(b"\n")
                file.seek(place)
                tail = file.read()
        except FileNotFoundError:
            return
        ends = tail[:-1] if tail.endswith(b"\n") else tail
        kept = ends.split(b"\n")[-lines:] if lines else []
        self._offset = place + len(tail) - (len(b"\n".join(kept)) + len(tail) - len(ends) if kept else 0)

    def _tail_of(self, path: str) -> int:
        """Return the offset of the line in a log that says what was dropped."""
        try:
            with open(path, "rb", opener=no_link) as file:
                return max(0, file.read().rfind(b"\n[queuectl: "))
        except FileNotFoundError:
            return 0

    def _part(self, path: str) -> bytes:
        try:
            with open(path, "rb", opener=no_link) as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._offset:  # the output passed log_limit, and was cut to its head
                    self._offset, self._cut = size, True
                file.seek(self._offset)
                return file.read(2**20)
        except FileNotFoundError:
            return b""

    def _pass(self, data: bytes, write) -> None:
        self._offset += len(data)
        if self._whole_lines and data:
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()
            data = b"".join(self._prefix + line + b"\n" for line in lines)
        if data:
            self._open_line = not data.endswith(b"\n")
            write(data)

    def _flush(self, write) -> None:
        if self._rest:
            write(self._prefix + self._rest + b"\n")
            self._rest = b""


# -- stats --

def cmd_stats(store, args) -> None:
    facts, now, ends = stats_report(store, args.since)
    if args.json:
        return out_json(as_json(facts))
    for title, seconds in (("minute", 60), ("hour", 3600), ("day", 86400)):
        out("last %-7s %6d ended  %s" % (title, facts["throughput"][title], sparkline(ends, now, seconds)))
    for title, key in (("QUEUE", "queues"), ("PROGRAM", "commands")):
        out("")
        print_table((title, "COUNT", "OK", "RETRIES", "P50", "P95", "MAX", "WAITED"), [
            (name, f["count"], "%.0f%%" % (100 * f["success_rate"]), f["retries"], span(f["p50"]), span(f["p95"]), span(f["max"]),
             "-" if f["waited_p50"] is None else span(f["waited_p50"])) for name, f in facts[key].items()], (title,))


def sparkline(times, now: float, window: float) -> str:
    """Return a line of 30 bars: how many of `times` fall into each part of the window up to now."""
    counts = [0] * 30
    for moment in times:
        place = int((moment - now + window) / window * 30)
        if 0 <= place < 30:
            counts[place] += 1
    return bars(counts)


def bars(counts) -> str:
    most = max(counts, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // most) if most else 0] for count in counts)


# -- metrics --

def print_setup(args) -> bool:
    """Print a dashboard or the alert rules, which need no queue; return whether one of them was asked for."""
    if args.grafana:
        import json
        print_or_replace(args.output, json.dumps(dashboard(), indent=2) + "\n")
    elif args.alerts:
        print_or_replace(args.output, ALERTS)
    return args.grafana or args.alerts


def cmd_metrics(store, args) -> None:
    print_or_replace(args.output, metrics_text(metrics_report(store)))


def print_or_replace(path, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
    else:
        replace_file(path, text)


def replace_file(path: str, text: str, mode=None) -> None:
    """Write a file so that a reader sees the old content or the new, also if this process is killed.

    What is not a file, such as /dev/null or /dev/stdout, is written to: a file must not take its place.
    """
    is_file = os.path.isfile(path) or not os.path.exists(path)
    place = os.path.realpath(path) if is_file else path
    part = "%s.%d.part" % (place, os.getpid()) if is_file else path
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if mode is not None:
            os.chmod(part, mode)
        if is_file:
            os.replace(part, place)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        if is_file:
            remove(part)


# -- events --

def cmd_events(store, args) -> None:
    after = args.after if args.after is not None else store.look.last_event() if args.follow else 0
    seen = None
    while True:
        events = store.look.event_columns(after)
        if events:
            after = events[0][-1]
            sys.stdout.write(json_lines(EVENT, events))
        sys.stdout.flush()
        if not events and not args.follow:
            return
        while not events and seen == store.db.changes():
            if OS.reader_left(0.02):
                return
        seen = store.db.changes()


# -- top --

def cmd_top(store, args) -> None:
    screen = Top(store)
    if args.once or not can_draw(sys.stdout) or not is_terminal(sys.stdin):
        for line in screen.page(terminal_width(sys.stdout) or 80, 24):
            out(line)
        return
    with OS.raw_terminal(screen.end) as keys:
        sys.stdout.write("\033[?1049h\033[?25l")  # the alternate screen, no cursor
        try:
            while screen.alive:
                screen.draw()
                screen.press(keys.read(1.0))
        finally:
            sys.stdout.write("\033[?25h\033[?1049l")
            sys.stdout.flush()


class Top:
    """The live view: what it shows, and what its keys do."""

    KEYS = "↑↓ move  f filter  enter log  e explain  c cancel  r retry  p pause  q quit"
    MESSAGE_S = 6.0  # how long a message stays
    MOVES = {"k": -1, "up": -1, "j": 1, "down": 1, "page up": -1, "page down": 1}
    FILTERS = ((), ("processing",), ("pending", "failed"), ("dead",), ("completed",))

    def __init__(self, store):
        self.alive = True
        self._store = store
        self._filter = 0
        self._marked = None      # the id of the job that the keys act on
        self._place = 0          # the row of that job
        self._jobs = []
        self._page = 1
        self._asked = None       # the job for which `c` was pressed, until the next key
        self._message, self._said_at = "", 0.0
        self._log = None         # the job whose log is shown instead of the list
        self._ends = []          # the chart: how many attempts ended in each second
        self._last = None
        self._sampled = 0.0

    def end(self, *_) -> None:
        self.alive = False

    def draw(self) -> None:
        size = terminal_size(sys.stdout)
        lines = [harmless(line) for line in self.lines(size.columns, size.lines)]
        sys.stdout.write("\033[H" + "\033[K\r\n".join(lines[:size.lines]) + "\033[K\033[J")
        sys.stdout.flush()

    def lines(self, width: int, height: int) -> list:
        if self._log is not None:
            return self._log_lines(width, height)
        head = self._head(width, height)[:max(2, min(height - 7, height // 2))]
        states = self.FILTERS[self._filter]
        rows = max(3, height - len(head) - 3)
        running = [] if states else self._store.look.jobs(("processing",), 1000)  # what runs comes first, however old it is
        ids = {job.id for job in running}
        self._jobs = running + [job for job in self._store.look.jobs(states, 1000) if job.id not in ids]
        ids = [job.id for job in self._jobs]
        self._place = ids.index(self._marked) if self._marked in ids else max(0, min(self._place, len(ids) - 1))
        self._marked = ids[self._place] if ids else None
        self._page = rows
        top = max(0, min(self._place - rows // 2, len(ids) - rows))
        body = [fit("  %6s %-10s %-6s %-9s %s" % ("ID", "STATE", "TRIES", "WHEN", "COMMAND   (%s)" % (", ".join(states) or "all")), width)]
        now = time.time()
        for i, job in list(enumerate(self._jobs))[top:top + rows]:
            line = fit("%s %6d %-10s %-6s %-9s %s" % (">" if i == self._place else " ", job.id, state_word(job), "%d/%d" % (
                job.attempts, job.max_retries + 1), when_text(job, now), plain(titled(job)) + (
                "   (%s)" % plain(error_text(job)) if error_text(job) else "")), width)
            body.append(paint(line, "bold" if i == self._place else STATE_COLOURS[job.state], sys.stdout))
        body += [""] * (rows + 1 - len(body))
        if self._asked is None and time.monotonic() > self._said_at + self.MESSAGE_S:
            self._message = ""
        return head + body + [fit(plain(self._message), width), paint(fit(self.KEYS, width), "dim", sys.stdout)]

    def page(self, width: int, height: int) -> list:
        """Return what fits on a page of a pipe or file: without the mark, the keys and the chart, which need a second look."""
        lines = [line.rstrip() for line in self.lines(width, height + 3)[:-2]]
        del lines[2]
        while not lines[-1]:
            lines.pop()
        return [" " + line[1:] if line[:2] == "> " else line for line in lines]

    def _head(self, width: int, height: int) -> list:
        counts = self._store.queues.counts()
        if time.monotonic() - self._sampled >= 0.95:
            self._sampled, last = time.monotonic(), self._store.look.last_event()
            ended = 0 if self._last is None else self._store.look.count_ended(self._last)
            self._ends = (self._ends + [ended])[-max(10, width - 30):] if self._last is not None else []
            self._last = last
        lines = [fit("queuectl top  %s   %s" % (time.strftime("%H:%M:%S"), plain(self._store.db.path)), width),
                 fit("  ".join("%s %d" % (state, counts[state]) for state in STATES), width),
                 fit("ended/s %7d  %s" % (self._ends[-1] if self._ends else 0, bars(self._ends)), width)]
        for row in self._store.queues.list()[:4]:
            lines.append(fit("queue %-12s %s  %d waiting, %d running%s" % (
                row.name, "paused" if row.paused else "open  ", row.jobs["pending"] + row.jobs["failed"], row.jobs["processing"],
                ", limit %d" % row.max_running if row.max_running is not None else ""), width))
        for worker in worker_report(self._store)[:8]:
            job = self._store.look.find(worker["job"]) if worker["job"] else None
            lines.append(fit("worker %-4d %-8s %6d done  %s" % (worker["id"], worker["state"], worker["done"], "" if job is None else
                             "job %d for %s: %s" % (job.id, span(job.running_s(time.time())), plain(titled(job)))), width))
        for job in self._store.look.jobs(("dead",), 2) if height > 20 else ():
            lines.append(paint(fit("failed %-4d %-8s %s: %s" % (job.id, when_text(job, time.time()), plain(error_text(job) or ""),
                                                               plain(job.command)), width), "red", sys.stdout))
        return lines

    def _log_lines(self, width: int, height: int) -> list:
        job = self._store.look.find(self._log)
        if job is None:
            return ["the job is gone"]
        path = output_of(self._store, job, job.attempt)
        lines = [fit("log of job %d, attempt %d, %s   (any key: back)" % (job.id, job.attempt, job.state), width)]
        return lines + [fit(line, width) for line in last_lines(path, height - 2)]

    def _say(self, text: str) -> None:
        self._message, self._said_at = text, time.monotonic()

    def press(self, key: str) -> None:
        """Do what a key stands for; "" is no key."""
        if self._log is not None and key:
            self._log = None
            return
        job = self._jobs[self._place] if self._jobs else None
        if self._asked is not None:
            self._answer(key)
        elif key in ("q", "\x03", "\x1b"):
            self.alive = False
        elif key in self.MOVES:
            place = self._place + self.MOVES[key] * (self._page if "page" in key else 1)
            self._marked = self._jobs[max(0, min(place, len(self._jobs) - 1))].id if self._jobs else None
        elif key == "f":
            self._filter, self._place, self._marked = (self._filter + 1) % len(self.FILTERS), 0, None
        elif key == "p":
            self._pause(job.queue if job else "default")
        elif job is not None and key in ("\r", "\n"):
            self._log = job.id
        elif job is not None and key == "c":
            self._asked = job.id
            self._say("cancel job %d? y cancels it, any other key does not" % job.id)
        elif job is not None and key == "r":
            self._say(result_text("retry", *self._store.life.retry([job.id])[0]))
        elif job is not None and key == "e":
            why = why_waiting(self._store, job)
            self._say("job %d: %s" % (job.id, "; ".join(reason_text(job, reason) for reason in why) or error_text(job) or job.state))

    def _answer(self, key: str) -> None:
        if key:
            self._say(result_text("cancel", *cancel(self._store, [self._asked])[0]) if key == "y" else "")
            self._asked = None

    def _pause(self, name: str) -> None:
        paused = not self._store.queues.is_paused(name)
        self._store.queues.set(name, paused=int(paused))
        self._say("queue %s is %s" % (name, "paused" if paused else "open"))


# -- retry, rm, edit --

def cmd_retry(store, args):
    return act(store, args, CHANGES["retry"])


def cmd_dlq_retry(store, args):
    return act(store, args, CHANGES["retry"]._replace(states=("dead",)), select_or_refuse)


def cmd_dlq_purge(store, args):
    return act(store, args, CHANGES["remove"]._replace(states=("dead",)), select_or_refuse)


def cmd_rm(store, args):
    return act(store, args, CHANGES["remove"], select_or_refuse)


def parse_edit(args) -> None:
    args.queue, args.name, args.label = args.in_queue, args.named, args.labelled
    options = job_options(args)
    if args.command is not None:
        options["command"] = shell_command(args.command)
    if not options:
        raise UserError("nothing to change: give an option such as --command or --priority")
    args.changes = parse_job(options, taker="edit")


def cmd_edit(store, args):
    return act(store, args, Change(WAITING, "edit", lambda store, ids: store.life.edit(ids, args.changes)))


# -- wait --

def cmd_wait(store, args) -> int:
    ids = select_ids(store, args, STATES if args.ids or args.batch or args.name else UNFINISHED)
    within, ids = begin_wait(store, ids)
    waiting = [job for job in map(store.look.find, ids[:1]) if job is not None and job.state in WAITING]
    if waiting:
        warn_if_stuck(store, waiting[0].id)
    try:
        if not wait_for(store, ids, args.timeout, within):
            talk("still unfinished after %s" % span(args.timeout))
            return 124
    finally:
        if within is not None:
            store.workers.end_wait(within.id, ids)
    jobs = [store.look.find(job_id) for job_id in ids]
    gone = [job_id for job_id, job in zip(ids, jobs) if job is None]
    bad = [job for job in jobs if job is not None and job.state != "completed"]
    for job in bad[:20]:
        talk("job %d is %s" % (job.id, ending_text(job)))
    for job_id in gone[:20]:
        talk("job %d has been removed: its end is not known" % job_id)
    if len(args.ids) == len(ids) == 1 and bad:
        return shell_status(bad[0].exit_code, bad[0].signal) or 1
    return 1 if bad or gone else 0


def wait_for(store, ids: list, timeout, within=None) -> bool:
    """Wait until all jobs are final; return False at the timeout.  Read the jobs only when others have written to the database.

    Inside a job (`within`), raise UserError if the wait can never end and this has lasted for a second.
    """
    left, progress = list(reversed(ids)), Progress(len(ids))
    limit = None if timeout is None else time.monotonic() + timeout
    seen = None
    look_at, stuck = time.monotonic() + 1.0, None
    while left:
        changes = store.db.changes()
        if changes != seen:
            seen = changes
            while left:
                job = store.look.find(left[-1])
                if job is not None and job.state not in FINAL:
                    break
                left.pop()
            continue
        progress.show(len(ids) - len(left))
        if limit is not None and time.monotonic() >= limit:
            break
        if within is not None and time.monotonic() >= look_at:
            look_at = time.monotonic() + 1.0
            before, stuck = stuck, left[-1] if deadlocked(store, left[-1]) else None
            if stuck is not None and stuck == before:
                raise UserError(deadlock_text(stuck, within))
        time.sleep(0.01)
    progress.clear()
    return not left


# -- cancel, hold, release --

def cmd_cancel(store, args):
    return act(store, args, CHANGES["cancel"], at_last=None if args.no_wait else partial(wait_for_asked, store))


def cancel(store, ids: list) -> list:
    """Cancel jobs as Life.cancel does, but first release the jobs of dead workers, which nobody would end."""
    for worker in store.workers.workers():
        if worker.job in ids and store.workers.is_alive(worker) is False:
            rescue(store, worker, lambda event, **facts: None)
    return store.life.cancel(ids)


def wait_for_asked(store, results: list) -> list:
    """Return the results of `cancel` with the final ones of running jobs: they have kill_grace and some seconds to end."""
    within = this_job(store)
    if within is not None and (within.id, ASKED) in results:
        talk("job %d runs this command: it is asked to end, and not waited for" % within.id)
    asked = [job_id for job_id, result in results if result == ASKED and (within is None or job_id != within.id)]
    wait_for(store, asked, store.settings.value("kill_grace") + 10)
    after = {job_id: store.look.find(job_id) for job_id in asked}
    return [(job_id, result if job_id not in after else GONE if after[job_id] is None else
             after[job_id].state if after[job_id].state in FINAL else STILL_RUNNING) for job_id, result in results]


def cmd_hold(store, args):
    return act(store, args, CHANGES["hold"])


def cmd_release(store, args):
    return act(store, args, CHANGES["release"])


CHANGES = {change.verb: change for change in map(Change._make, (
    (FINAL + ("failed",), "retry", lambda store, ids: store.life.retry(ids)),
    (UNFINISHED, "cancel", cancel),
    (WAITING, "hold", lambda store, ids: store.life.hold(ids)),
    (WAITING, "release", lambda store, ids: store.life.release(ids)),
    (FINAL, "remove", lambda store, ids: store.keep.purge(ids))))}


# -- explain --

def cmd_explain(store, args) -> None:
    job = one_job(store, args.id)
    report = explain_report(store, job)
    words = [reason_text(job, reason) for reason in report["reasons"]]
    if args.json:
        out_json({"id": job.id, "state": job.state, "reasons": [reason_json(job, reason) for reason in report["reasons"]],
                  "lost": report["lost"]})
    elif report["lost"] and not words:
        out("job %d no longer runs: worker %d is dead, and the next `%s worker start` gives it back" % (job.id, job.worker, invoked()))
    elif job.state == "processing":
        out("job %d runs on worker %d, for %s%s" % (
            job.id, job.worker, span(job.running_s(time.time())), "".join("; " + text for text in words)))
    elif job.state in FINAL:
        out("job %d is %s" % (job.id, ending_text(job)))
    else:
        for text in words or ["nothing: the next free worker takes it"]:
            out("job %d waits: %s" % (job.id, text))


# -- queues and batches --

def cmd_queue_list(store, args) -> None:
    show_list(args, queue_report(store), QUEUE_LIST, "")


def show_list(args, rows: list, columns, none: str) -> None:
    """Print a report that is a list of dicts: for each command that lists something other than jobs."""
    if args.json:
        out_json(as_json(rows))
    else:
        print_list(rows, columns, none)


def check_queue_names(args) -> None:
    if bool(args.all) == bool(args.names):
        raise UserError("which queue? Give a name or --all")
    args.names = [parse_queue(name) for name in args.names]


def pause_queues(store, args, paused: int) -> None:
    for name in args.names or [row.name for row in store.queues.list()]:
        store.queues.set(name, paused=paused)
        out("queue %s is %s" % (name, "paused: running jobs go on" if paused else "open"))


def cmd_queue_pause(store, args) -> None:
    pause_queues(store, args, 1)


def cmd_queue_resume(store, args) -> None:
    pause_queues(store, args, 0)


def check_queue_limit(args) -> None:
    args.name = parse_queue(args.name)
    args.limit = None if args.limit == "none" else parse_number(args.limit, "the limit", 0, 10**6, int)


def cmd_queue_limit(store, args) -> None:
    store.queues.set(args.name, max_running=args.limit)
    out("queue %s: %s" % (args.name, "no limit" if args.limit is None else "at most %d at once" % args.limit))


def check_queue_rate(args) -> None:
    args.name = parse_queue(args.name)
    args.rate, args.every = parse_rate(args.rate)


def cmd_queue_rate(store, args) -> None:
    store.queues.set(args.name, rate=args.rate, every=args.every, next_at=0)
    out("queue %s: %s" % (args.name, "no rate" if args.rate is None else
                          "at most %s, a start each %s" % (args.rate, seconds_text(args.every))))


def check_queue_set(args) -> None:
    import shlex
    args.name = parse_queue(args.name)
    try:
        shlex.split(args.engine_options or "")  # which options there are depends on the engine
    except ValueError as error:
        raise UserError("--engine-options %s: %s" % (quoted(args.engine_options), str(error).lower())) from None


def cmd_queue_set(store, args) -> None:
    store.queues.set(args.name, engine_options=args.engine_options or None)
    out("queue %s: %s" % (args.name, "engine options " + plain(args.engine_options) if args.engine_options else "no engine options"))


def cmd_batch_list(store, args) -> None:
    show_list(args, [batch._asdict() for batch in store.queues.batches(args.limit)], BATCH_LIST,
              "No batches: `%s enqueue --file` makes one" % invoked())


def cmd_batch_show(store, args) -> None:
    batch = batch_report(store, store.queues.batch(args.id))
    counts, done = batch["jobs"], batch["total"] - batch["unfinished"]
    if args.json:
        return out_json(as_json(batch))
    out("batch %d, %s: %d of %d ended  [%s]" % (batch["id"], batch["label"] or "", done, batch["total"],
                                               ("#" * min(24, int(24 * done / max(1, batch["total"])))).ljust(24, "-")))
    out(", ".join("%d %s" % (counts[state], state) for state in STATES if counts[state]) or "its jobs are gone")
    bad = store.look.jobs(("dead", "cancelled", "failed"), 20, batch=batch["id"])
    if bad:
        print_jobs(bad)


# -- schedules --

def plan_schedule(args) -> None:
    """Set args.name, args.spec (None with --every) and args.plan from the words of `cron add`."""
    words = args.lead + args.rest
    if not words:
        raise UserError("a schedule needs a name: cron add NAME '*/5 * * * *' COMMAND")
    if len(words[0].split()) > 4 or words[0][:1] == "@":
        raise UserError("a schedule's name stands before its time: cron add NAME %s COMMAND" % OS.quote(words[:1]))
    args.name, args.spec = parse_name(words.pop(0), "a schedule"), None
    if args.every is not None:
        if len(args.lead) > 1:
            raise UserError("a schedule has a cron line or --every, not both: put the command after the options")
        if args.tz is not None and args.job_at is None:
            raise UserError("--tz is the zone of a cron line or of --at, and --every has none: leave it out")
    elif not words:
        raise UserError("a schedule needs a time: cron add NAME '*/5 * * * *' COMMAND, or --every 90s")
    else:
        args.spec = words.pop(0)
        if len(words) > 4 and args.spec.strip("0123456789*,-/") == "":
            raise UserError("put the five fields into quotes, as one word: cron add %s '*/5 * * * *' COMMAND" % plain(args.name))
        parse_cron(args.spec)
    if not words:
        raise UserError("a schedule needs a command: give it after the options")
    args.plan = Plan([job_of_words(words, job_options(args))], taker="cron")


def cmd_cron_add(store, args) -> None:
    times = {"spec": args.spec, "every": args.every, "tz": args.tz, "misfire": args.misfire, "overlap": args.overlap}
    (store.schedules.put if args.replace else store.schedules.add)([store.schedules.plan(args.name, args.plan, times)])
    schedule = store.schedules.get(args.name)
    verdict(next_text(schedule))
    warn_if_unserved(store, job_of_schedule(schedule).get("queue") or "default")


def plan_schedule_edit(args) -> None:
    args.options = job_options(args)
    if args.command is not None:
        args.options["command"] = shell_command(args.command)
    args.times = {"spec": args.cron, "every": args.every, "tz": args.tz, "misfire": args.misfire, "overlap": args.overlap}
    if not args.options and not any(args.times.values()):
        raise UserError("nothing to change: give an option such as --cron, --command or --timeout")
    if args.cron is not None:
        parse_cron(args.cron)


def cmd_cron_edit(store, args) -> None:
    store.schedules.edit(args.name, args.options, args.times)
    verdict(next_text(store.schedules.get(args.name)))


def next_text(schedule) -> str:
    """Return the line for a user who has added or resumed a schedule: when it runs next."""
    if schedule.paused:
        return "Schedule %s stays paused" % plain(schedule.name)
    if schedule.coming is None:
        return "Schedule %s runs when workers start after the next boot" % plain(schedule.name)
    return "Schedule %s runs next at %s" % (plain(schedule.name), local(schedule.next_at))


def read_crontab(args) -> None:
    args.entries = parse_crontab(args.file)


def cmd_cron_load(store, args) -> None:
    rows, faults = [], []
    for number, name, spec, tz, job in args.entries:
        try:
            rows.append(store.schedules.plan(name, job, {"spec": spec, "tz": tz}))
        except UserError as error:
            faults.append("line %d: %s" % (number, error))
    refuse_lines(faults)
    (store.schedules.put if args.replace else store.schedules.add)(rows)
    for row in rows:
        out(next_text(store.schedules.get(row["name"])))


def refuse_lines(faults: list) -> None:
    """Raise a UserError that names each bad line of a file, if there are any."""
    if faults:
        more = faults[20:]
        raise UserError("; ".join(faults[:20]) + ("; and %d more" % len(more) if more else ""))


def parse_crontab(path: str) -> list:
    """Return (line number, name, cron line, zone or None, Plan) of each entry of a crontab (man 5 crontab); a UserError names bad lines.

    As in cron, a variable applies to the lines below it, a job starts in HOME, and a % ends the command: what follows is
    its standard input.  The name comes from a comment `# name: NAME` above the entry, else from the command.
    """
    import re
    if os.path.realpath(path) == "/etc/crontab" or os.path.realpath(path).startswith("/etc/cron.d/"):
        raise UserError("%s names a user on each line: load the crontab of one user, as `crontab -l` prints it" % quoted(path))
    variables, found, wanted, names, faults = {}, [], None, set(), []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip(BLANK)
        name_line = re.fullmatch(r"#\s*name:\s*(.*)", line)
        if name_line:
            wanted = name_line.group(1)
        elif line and line[0] != "#":
            variable = re.fullmatch(r"""(["']?)([A-Za-z_]\w*)\1\s*=\s*(.*)""", line, re.ASCII)
            try:
                if variable:
                    set_crontab_variable(variables, variable.group(2), variable.group(3), number)
                    continue
                count = 1 if line[0] == "@" else 5
                words = line.split(None, count)
                spec = " ".join(words[:count])
                parse_cron(spec)
                if len(words) == count or words[count][0] == "%":
                    raise UserError("no command follows the times")
                name = parse_name(wanted, "a schedule") if wanted else name_for(words[count], names, number)
                if name in names:
                    raise UserError("the name %s is given twice" % quoted(name))
                names.add(name)
                plan = Plan([crontab_job(words[count], variables)], taker="cron")
                found.append((number, name, spec, variables.get("CRON_TZ"), plan))
            except UserError as error:
                faults.append("line %d: %s" % (number, error))
            wanted = None
    refuse_lines(faults)
    if not found:
        raise UserError("%s has no line that runs a command" % source_name(path))
    return found


def set_crontab_variable(variables: dict, name: str, value: str, number: int) -> None:
    if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1:
        value = value[1:-1]
    if name in ("MAILTO", "MAILFROM", "CONTENT_TYPE", "CONTENT_TRANSFER_ENCODING"):
        talk("line %d: %s is left out: output is kept, see `%s logs`" % (number, name, invoked()))
    elif name in ("LOGNAME", "USER", "RANDOM_DELAY"):
        talk("line %d: %s is left out" % (number, name))
    else:
        if name == "CRON_TZ":
            zone_offset(value)
        variables[name] = value


def crontab_job(text: str, variables: dict) -> dict:
    """Return the job of a crontab entry: the first % ends the command, each later % ends a line of its input, \\% is a %."""
    import re
    parts = re.findall(r"\\.|[^%]|%", text)  # a backslash and the character after it stay together
    end = parts.index("%") if "%" in parts else len(parts)
    command = "".join("%" if part == "\\%" else part for part in parts[:end])
    stdin = re.sub(r"\\?%", lambda found: "%" if found.group()[0] == "\\" else "\n", "".join(parts[end + 1:]))
    env = {name: value for name, value in variables.items() if name != "CRON_TZ"}
    shell = env.get("SHELL", "/bin/sh")
    job = {"command": command, "cwd": env.get("HOME") or os.path.expanduser("~"), "shell": SHELL if shell == "/bin/sh" else shell}
    if stdin:
        job["stdin"] = stdin if stdin[-1] == "\n" else stdin + "\n"
    if env:
        job["env"] = env
    return job


RUNNERS = ("", "cd", "env", "nice", "ionice", "test", "[", "sh", "bash", "python3", "exec", "sudo")  # words that don't name a job


def name_for(command: str, names: set, number: int) -> str:
    """Return a name for a crontab entry: the program that it runs, and a number if that name is taken."""
    import shlex
    try:
        words = shlex.split(command.split("%")[0])
    except ValueError:  # a quote that is not closed
        words = command.split()
    words = [word.strip("();{}|&<>").partition(" ")[0] for word in words]
    while words and (words[0].rpartition("/")[2] in RUNNERS or "=" in words[0] or words[0][0] == "-"):
        words = words[2 if words[0] == "cd" else 1:]
    base = "".join(filter(str.isprintable, (words or [""])[0].rpartition("/")[2].replace(",", "")))[:100]
    try:
        base = parse_name(base, "a schedule")
    except UserError:
        base = "line-%d" % number
    name, count = base, 1
    while name in names:
        count += 1
        name = "%s-%d" % (base, count)
    return name


def print_crontab(store) -> None:
    """Print schedules as `cron load` and cron(8) read them; those in this machine's zone come first."""
    here = zone = OS.zone(os.environ.get("TZ"))
    rows = store.schedules.list()
    for row, fact in sorted(zip(rows, schedule_report(store, rows)), key=lambda pair: "" if pair[0].tz in (None, here) else pair[0].tz):
        job, trouble = job_of_schedule(row), fact["error"]
        left_out = ["%s=%s" % (key.replace("_", "-"), value) for key, value in job.items()
                    if key not in ("command", "cwd", "env", "shell", "stdin", "umask")]
        left_out += ["overlap=" + fact["overlap"]] if row.no_overlap else []
        line, why = crontab_line(row, job)
        why = why or trouble  # cron would run a line that has five fields and more
        if row.tz and row.tz != zone and not why:
            zone = row.tz
            out("CRON_TZ=%s" % zone)
        out("# name: %s" % row.name)
        if left_out:
            out("# left out: %s" % " ".join(left_out))
        out("# %s: %s" % (why, line) if why else line)


def crontab_line(schedule, job: dict) -> tuple:
    """Return (line of a crontab, None), or (the same line for people to read, the reason why cron can't run it)."""
    command, stdin = command_text(job["command"]), job.get("stdin") or ""
    if job.get("shell", SHELL) != SHELL:
        command = OS.quote(job["shell"].split() + ["-c", command])
    if stdin:
        stdin = "%" + (stdin[:-1] if stdin[-1] == "\n" else stdin).replace("%", "\\%").replace("\n", "%")
    env = parse_env(job.get("env", {}))
    command = "".join("export %s; " % OS.quote(["%s=%s" % pair]) for pair in sorted(env.items())) + command
    folder = job.get("cwd") or schedule.cwd or ""
    folder = folder.decode("utf-8", "surrogateescape") if isinstance(folder, bytes) else folder
    if folder != os.path.expanduser("~"):
        command = "cd %s && %s" % (OS.quote([folder]), command)
    why = ("paused" if schedule.paused else "every %s" % duration_text(schedule.every) if schedule.spec is None else
           "not for cron" if "\\%" in command + (job.get("stdin") or "") or "#" in schedule.spec or schedule.spec[:1] != "@" and "l" in
           schedule.spec.lower().replace("jul", "") else
           "more than a line" if not (command + stdin).isprintable() else None)
    return "%s %s" % (" ".join((schedule.spec or "").split()), command.replace("%", "\\%") + stdin), why


def cmd_cron_list(store, args) -> None:
    if args.crontab:
        print_crontab(store)
    else:
        rows = store.schedules.list()
        show_list(args, schedule_report(store, rows), SCHEDULE_LIST, "No schedules: `%s cron add` makes one" % invoked())
        stuck = unfired(store, rows)
        if stuck:
            talk(finding_text(stuck))


def names_of_schedules(store, args) -> list:
    """Return the names given; raise UserError, before anything is changed, if one is unknown."""
    for name in args.names:
        store.schedules.get(name)
    return args.names


def cmd_cron_pause(store, args) -> None:
    for name in names_of_schedules(store, args):
        store.schedules.pause(name)
        out("Schedule %s is paused" % plain(name))


def cmd_cron_resume(store, args) -> None:
    for name in names_of_schedules(store, args):
        store.schedules.resume(name)
        out(next_text(store.schedules.get(name)))


def cmd_cron_rm(store, args) -> None:
    for name in names_of_schedules(store, args):
        store.schedules.remove(name)
        out("Schedule %s is removed; jobs that it enqueued stay" % plain(name))


def cmd_cron_run(store, args) -> None:
    for name in names_of_schedules(store, args):
        out(str(store.schedules.run(name)))


# -- config --

def cmd_config_list(store, args) -> None:
    values = store.settings.values()
    if args.json:
        return out_json(values)
    print_list([{"key": key, "value": setting.text(values[key]), "default": setting.text(setting.default),
                 "holds": "from enqueue" if key in FIXED_SETTINGS else "at once", "meaning": setting.meaning}
                for key, setting in SETTINGS.items()], SETTING_LIST, "")


def cmd_config_get(store, args) -> None:
    value = store.settings.value(args.key)
    if args.json:
        out_json(value)
    else:
        out(SETTINGS[args.key].text(value))


def check_setting(args) -> None:
    parse_setting(args.key, shell_command(args.value))


def cmd_config_set(store, args) -> None:
    store.settings.set(args.key, args.value)
    print_setting(store, args.key)


def print_setting(store, key: str) -> None:
    out("%s = %s" % (key, plain(SETTINGS[key].text(store.settings.value(key)))))


def cmd_config_unset(store, args) -> None:
    store.settings.unset(args.key)
    print_setting(store, args.key)


# -- backup, doctor, health --

def check_new_file(args) -> None:
    args.file = os.path.abspath(args.file)
    if os.path.exists(args.file):
        raise UserError("%s exists: give another name" % plain(args.file))


def cmd_backup(store, args) -> None:
    store.keep.backup(args.file, args.logs)
    verdict("Copied the queue to %s (%s)" % (plain(args.file), "its logs are in %s.d" % plain(args.file) if args.logs else
                                             "without the logs of its jobs: --logs copies them too"))


def cmd_doctor(args) -> int:
    """Print what is wrong; with --fix repair it.  Exit 1 for a warning, 2 for a fault."""
    rows = []
    for found in examine(find_database(args.db)):
        row = finding_json(found)
        rows.append(dict(row, level="fixed") if args.fix and found.repair and found.repair() else row)
    if args.json:
        out_json(rows)
    else:
        for row in rows:
            colour = {"ok": "green", "fixed": "green", "warn": "yellow"}.get(row["level"], "red")
            out("%s  %s  %s" % (paint(row["level"].ljust(5), colour, sys.stdout), row["about"].ljust(10), row["text"]))
    return max(LEVEL_STATUS[row["level"]] for row in rows)


LEVEL_STATUS = {"ok": 0, "fixed": 0, "warn": 1, "bad": 2}
HEALTH_WORDS = {"ok": "OK", "warn": "WARNING", "bad": "CRITICAL"}


def health_json(report: dict) -> dict:
    return {"status": HEALTH_WORDS[report["level"]].lower(), "jobs": report["jobs"], "workers": report["workers"],
            "findings": [finding_json(found) for found in report["findings"]]}


def cmd_health(args) -> int:
    """Print one line for a monitoring system: what is wrong, then figures; exit 0, 1 for a warning, 2 if it is critical."""
    queues = [parse_queue(name) for name in args.queue or ()]
    report = health_report(find_database(args.db), queues, args.max_wait, args.max_dead)
    jobs = report["jobs"]
    waiting_now = jobs["pending"] + jobs["failed"]
    if args.json:
        out_json(health_json(report))
    else:
        text = "; ".join(finding_text(found, IN_SHORT) for found in report["findings"]) or "%d waiting, %d running, %s" % (
            waiting_now, jobs["processing"], plural(report["workers"], "worker"))
        out("%s: %s | waiting=%d running=%d dead=%d workers=%d" % (
            HEALTH_WORDS[report["level"]], text.replace("|", "/"), waiting_now, jobs["processing"], jobs["dead"], report["workers"]))
    return LEVEL_STATUS[report["level"]]


# -- export, import --

def cmd_export(store, args) -> None:
    import tempfile
    if args.output is not None:
        return export_to(store, args)
    with tempfile.TemporaryFile("w+") as file:
        write_rows(store, file, not args.no_env)  # into a file first: a slow reader must not keep the transaction open
        file.seek(0)
        for line in file:
            sys.stdout.write(line)


def export_to(store, args) -> None:
    """Write a whole export or none, readable by this user only: it holds the environment of every job."""
    path = args.output
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError("%s exists: give another name" % plain(path)) from None
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        with open(fd, "w") as file:
            write_rows(store, file, not args.no_env)
    except BaseException:
        remove(path)
        raise
    verdict("Exported the queue to %s" % plain(path))


def write_rows(store, file, env: bool) -> None:
    import json
    for table, row in store.keep.export(env):
        row = {key: {"hex": value.hex()} if isinstance(value, bytes) else value for key, value in row.items()}
        file.write(json.dumps({"table": table, "row": row}) + "\n")


def read_export(args) -> None:
    """Set args.rows; a file that can't be read, or is not an export, is refused before a database is made."""
    rows = import_rows(args.file)
    args.rows = chain([next(rows)], rows)


def cmd_import(store, args) -> None:
    count = store.keep.restore(args.rows)
    verdict("Imported %s" % plural(count, "job"))


def import_rows(path: str):
    """Yield (line number, table, row) from an exported file."""
    import json
    text = read_text(path)
    if not text.strip(BLANK):
        raise UserError("%s is empty: give the output of `%s export`" % (source_name(path), PROGRAM))
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(BLANK):
            try:
                value = json.loads(line.strip(BLANK))
                row = {key: bytes.fromhex(cell["hex"]) if isinstance(cell, dict) else cell for key, cell in value["row"].items()}
                if not all(key.isidentifier() for key in row):
                    raise ValueError
                yield number, value["table"], row
            except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
                raise UserError("line %d: not from `%s export`" % (number, PROGRAM)) from None


# -- completion --

COMPLETIONS = {
    "bash": """_queuectl() {
  local line=${COMP_LINE:0:COMP_POINT} last IFS=$'\\n'
  local -a words
  IFS=' ' read -ra words <<< "$line"
  [[ $line == *' ' ]] && words+=("")
  last=${words[${#words[@]}-1]}
  COMPREPLY=($(queuectl _complete "${words[@]:1}" 2>/dev/null | while read -r word; do
    printf -v word %q "$word"; printf '%s\\n' "${word//\\\\,/,}"; done))
  COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*[:=]}"}"}")  # bash takes what stands before : or = for a word of its own
}
complete -o default -F _queuectl queuectl
""",
    "zsh": """#compdef queuectl
_queuectl() {
  local -a found
  local -a shown
  found=("${(@f)$(QUEUECTL_DESCRIBE=1 queuectl _complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  found=(${found:#})
  shown=("${(@)found//$'\t'/  -- }")
  found=("${(@)found%%$'\t'*}")
  (( $#found )) && compadd -l -d shown -a found || _files
}
if [ "$funcstack[1]" = _queuectl ]; then _queuectl "$@"; else compdef _queuectl queuectl; fi
""",
    "fish": """function __queuectl_complete
  set -lx QUEUECTL_DESCRIBE 1
  set -l found (queuectl _complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
  if set -q found[1]
    printf '%s\\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c queuectl -f -a '(__queuectl_complete)'
""",
    "powershell": """Register-ArgumentCompleter -Native -CommandName queuectl -ScriptBlock {
  param($word, $ast, $position)
  $words = @($ast.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
  if (-not $word) { $words += '' }
  $env:QUEUECTL_DESCRIBE = '1'
  $lines = queuectl _complete @words
  Remove-Item Env:QUEUECTL_DESCRIBE
  $lines | ForEach-Object {
    $shown, $about = $_ -split "`t", 2
    if (-not $about) { $about = $shown }
    $text = $shown
    if ($text -notmatch '^[\\w.:/=+-]+$') {
      $text = "'" + [System.Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'"
    }
    [System.Management.Automation.CompletionResult]::new($text, $shown, 'ParameterValue', $about)
  }
}
""",
}


def cmd_completion(args) -> None:
    sys.stdout.write(COMPLETIONS[parse_choice(args.shell, "the shell", tuple(COMPLETIONS))])


# -- service --

SERVICES = ("systemd", "systemd-system", "launchd", "windows")


def cmd_service(args) -> None:
    kind = parse_choice(args.kind, "the kind", SERVICES)
    database = find_database(args.db)
    words = program_argv() + ["worker", "start", "--foreground", "--count", str(args.count), "--db", database]
    refuse_unwritable(kind, words)
    sys.stdout.write({"launchd": launchd_plist, "windows": windows_task}.get(kind, lambda w: systemd_unit(w, kind))(words))
    talk({"systemd": "into ~/.config/systemd/user/queuectl.service, then: systemctl --user enable --now queuectl; loginctl enable-linger",
          "systemd-system": "into /etc/systemd/system/queuectl.service, then: systemctl enable --now queuectl",
          "launchd": "into ~/Library/LaunchAgents/queuectl.plist, then: launchctl load -w ~/Library/LaunchAgents/queuectl.plist",
          "windows": "save it as queuectl.xml, then: schtasks /Create /TN queuectl /XML queuectl.xml"}[kind])


def refuse_unwritable(kind: str, words: list) -> None:
    """Refuse a path that a file of this kind can't hold, or that would look different in it.

    A line break would add lines, and bidi characters would show a different path.  XML has no control characters,
    and no format has bytes that are not UTF-8.  The Task Scheduler replaces %NAME% and $(NAME), which can't be
    escaped there.  systemd keeps $$ as it is in the path of the program.
    """
    for word in words:
        shown = word.replace("\u3000", " ").replace("\xa0", " ")  # spaces that Python does not consider printable
        active = kind == "windows" and (word.count("%") > 1 or "$(" in word) or kind.startswith("systemd") and "$" in words[0]
        if active or plain(shown) != shown:
            raise UserError("a service of %s can't hold %s as it is: use another path, with --db or QUEUECTL_DB" % (kind, quoted(word)))


def systemd_unit(words: list, kind: str) -> str:
    """Return a systemd unit.  KillMode=mixed: only the supervisor gets TERM and lets each job end; then the rest is killed."""
    quoted_words = " ".join('"%s"' % word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") for word in words)
    return ("[Unit]\nDescription=queuectl workers\nAfter=%s\n\n[Service]\nExecStart=%s\nKillMode=mixed\nTimeoutStopSec=infinity\n"
            "Restart=on-failure\n\n[Install]\nWantedBy=%s\n" % (("default.target", quoted_words, "default.target") if kind == "systemd"
                                                               else ("local-fs.target", quoted_words, "multi-user.target")))


def launchd_plist(words: list) -> str:
    log = xml_text(os.path.join(Files(words[words.index("--db") + 1]).root, "workers.log"))
    arguments = "".join("    <string>%s</string>\n" % xml_text(word) for word in words)
    return ('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" '
            '"http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n<plist version="1.0">\n<dict>\n'
            '  <key>Label</key><string>queuectl</string>\n'
            '  <key>ProgramArguments</key>\n  <array>\n%s  </array>\n  <key>RunAtLoad</key><true/>\n  <key>KeepAlive</key>'
            '<dict><key>SuccessfulExit</key><false/></dict>\n  <key>ExitTimeOut</key><integer>3600</integer>\n'
            '  <key>StandardOutPath</key><string>%s</string>\n'
            '  <key>StandardErrorPath</key><string>%s</string>\n</dict>\n</plist>\n' % (arguments, log, log))


def windows_task(words: list) -> str:
    import subprocess
    return ('<?xml version="1.0"?>\n<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">\n'
            '  <Triggers><BootTrigger/><LogonTrigger/></Triggers>\n  <Settings><ExecutionTimeLimit>PT0S</ExecutionTimeLimit>'
            '<DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>'
            '<StopIfGoingOnBatteries>false</StopIfGoingOnBatteries></Settings>\n  <Actions><Exec><Command>%s</Command>'
            '<Arguments>%s</Arguments></Exec></Actions>\n</Task>\n' % (xml_text(words[0]), xml_text(subprocess.list2cmdline(words[1:]))))


# -- install --

def cmd_install(args) -> None:
    source = os.path.abspath(__file__)
    folder = OS.install_dir()
    name, text = OS.launcher(source)
    path = os.path.join(folder, name)
    refuse_foreign_launcher(path, needed=args.uninstall)
    if args.uninstall:
        os.unlink(path)
        out("Removed %s" % plain(path))
        return
    if os.path.basename(source) != PROGRAM + ".py":
        raise UserError("the file must be called %s.py to be installed, not %s" % (PROGRAM, plain(os.path.basename(source))))
    os.makedirs(folder, exist_ok=True)
    replace_file(path, text, 0o755)
    if not OS.trusts_cache(source):
        talk("%s starts slowly, since others may put bytecode beside %s: move that file to a directory of yours and install it again" % (
            PROGRAM, plain(source)))
    out("Installed %s" % plain(path))
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        talk("%s is not on your PATH: add it to use `%s`" % (plain(folder), PROGRAM))


def refuse_foreign_launcher(path: str, needed: bool) -> None:
    """Refuse to replace or remove a launcher that `install` did not write."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if "queuectl.main" not in file.read(4096):
                raise UserError("%s is not from `install`: move it away first" % plain(path))
    except FileNotFoundError:
        if needed:
            raise UserError("%s is not there" % plain(path)) from None


# == Page ==============================================================================
# What `queuectl web` shows: HTML, style and script of one page, which reads all its data from the server below.
# This section calls nothing.

PAGE_HTML = r"""
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="base" content="{BASE}">
<meta name="csrf" content="{CSRF}">
<meta name="read-only" content="{READ_ONLY}">
<meta name="verbs" content="{VERBS}">
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16'
 rx='4' fill='%233b5bdb'/%3E%3Cpath d='M4 5h8M4 8h8M4 11h5' stroke='white' stroke-width='1.6' stroke-linecap='round'/%3E%3C/svg%3E">
<title>queuectl</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
  <a class="brand" href="#/"><svg viewBox="0 0 16 16" width="20" height="20" aria-hidden="true"><rect width="16" height="16" rx="4"/>
    <path d="M4 5h8M4 8h8M4 11h5"/></svg>queuectl</a>
  <nav aria-label="Pages"></nav>
  <span id="live" role="status">connecting</span>
</header>
<p id="trouble" role="alert" hidden></p>
<main id="main" tabindex="-1"></main>
<dialog id="dialog" aria-labelledby="dialog-title"></dialog>
<div id="toast" role="status" aria-live="polite"></div>
<script>{SCRIPT}</script>
</body>
</html>
"""

PAGE_STYLE = r"""
:root {
  color-scheme: light dark;
  --back: #f6f6f8; --card: #ffffff; --text: #1d1f24; --dim: #595d69; --line: #e2e3e8; --soft: #f0f1f4; --accent: #3553d0; --edge: #868a96;
  --pending: #595d69; --processing: #1a5fd0; --completed: #17743f; --failed: #8a5c00; --dead: #c02626; --cancelled: #676b77;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #121316; --card: #1a1c20; --text: #e7e8ec; --dim: #a3a7b3; --line: #2e3138; --soft: #24272d; --accent: #93a9ff; --edge: #70747f;
    --pending: #b3b7c2; --processing: #7fb6ff; --completed: #63d296; --failed: #e9b650; --dead: #ff8d84; --cancelled: #a0a4b0;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
main:focus { outline: none; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 8px; top: 8px; background: var(--card); padding: 8px 12px; z-index: 9; }
header { position: sticky; top: 0; z-index: 5; display: flex; align-items: center; gap: 20px; padding: 0 24px; height: 52px;
  background: var(--card); border-bottom: 1px solid var(--line); }
.brand { display: flex; align-items: center; gap: 8px; font-weight: 650; color: var(--text); }
.brand rect { fill: #3b5bdb; }
.brand path { stroke: #fff; stroke-width: 1.6; stroke-linecap: round; }
nav { display: flex; gap: 2px; flex: 1; overflow-x: auto; scrollbar-width: none; }
nav a { padding: 5px 11px; border-radius: 7px; color: var(--dim); white-space: nowrap; }
nav a:hover { background: var(--soft); text-decoration: none; }
nav a:focus-visible { outline-offset: -2px; }
nav a[aria-current] { color: var(--text); background: var(--soft); font-weight: 550; }
#live { color: var(--dim); font-size: 13px; white-space: nowrap; width: 84px; text-align: right; }
#live::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 6px; border-radius: 50%;
  background: var(--failed); }
#live.on::before { background: var(--completed); }
#trouble { margin: 0; padding: 10px 24px; background: var(--dead); color: var(--card); }
main { max-width: 1240px; margin: 0 auto; padding: 24px; min-height: calc(100vh - 60px); }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 16px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 0 0 10px; font-weight: 600; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; min-width: 0; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(2, minmax(0, 1fr)); margin-top: 16px; }
.wide { grid-column: 1 / -1; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
.spread { justify-content: space-between; margin-bottom: 14px; }
.spread h1, .spread h2 { margin: 0; }
li .spread { margin-bottom: 0; }
.dim { color: var(--dim); }
.small { font-size: 13px; }
.empty { color: var(--dim); padding: 26px 0; text-align: center; }
.health { margin-bottom: 18px; }
.health h1 { margin: 0; display: flex; align-items: center; gap: 12px; }
.health h1::before { content: ""; width: 13px; height: 13px; border-radius: 50%; background: var(--completed); }
.health.warn h1::before { background: var(--failed); }
.health.bad h1::before { background: var(--dead); }
.health ul, .health p { margin: 4px 0 0 25px; padding: 0; list-style: none; overflow-wrap: anywhere; }
.health li { padding: 1px 0; }
.health li::before { content: "●"; color: var(--failed); font-size: 9px; vertical-align: 2px; margin-right: 8px; }
.health li.bad::before { color: var(--dead); }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(6, minmax(0, 1fr)); }
.tile { display: block; padding: 12px 16px; color: var(--text); }
.tile:hover { border-color: var(--accent); text-decoration: none; }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile.zero b { color: var(--dim); font-weight: 450; }
.tile.zero .state::before { animation: none; }
.numbers { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 14px 0 0; }
.numbers dt { color: var(--dim); font-size: 13px; }
.numbers dd { margin: 0; font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.chart { display: block; width: 100%; height: 150px; }
.chart .ok { fill: var(--completed); }
.chart .bad { fill: var(--dead); }
.chart .base { stroke: var(--line); }
.axis { display: flex; justify-content: space-between; color: var(--dim); font-size: 12px; }
.state { display: inline-flex; align-items: center; gap: 6px; font-size: 13px; font-weight: 550; white-space: nowrap; }
.state::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: currentColor; }
.state.processing::before { animation: pulse 1.6s infinite; }
@keyframes pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .state.processing::before { animation: none; } }
.pending, .held, .idle, .paused { color: var(--pending); } .processing, .busy, .running { color: var(--processing); }
.completed, .open, .working { color: var(--completed); } .failed, .timeout, .stopping, .snoozed, .released { color: var(--failed); }
.dead, .crashed, .silent, .broken { color: var(--dead); } .cancelled { color: var(--cancelled); }
th:last-child, td:last-child { padding-right: 0; }
.scroll { overflow-x: auto; margin: 0 -18px; padding: 0 18px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; font-size: 13px; color: var(--dim); padding: 4px 16px 6px 0; white-space: nowrap; }
td { padding: 7px 16px 7px 0; border-top: 1px solid var(--line); vertical-align: middle; }
th.number, td.number { text-align: right; }
td.grow { width: 99%; max-width: 0; }
td.half { width: 50%; max-width: 0; }
td.buttons { text-align: right; }
.why { max-width: 17em; }
h2 .dim { font-weight: 400; }
tr[tabindex]:hover td, tr[tabindex]:focus td { background: var(--soft); }
tr[tabindex]:focus { outline: none; }
tr[tabindex]:focus td:first-child { box-shadow: inset 3px 0 var(--accent); }
.cut { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; display: block; }
code, pre, .mono { font-family: var(--mono); font-size: 13px; }
time, .nowrap { white-space: nowrap; }
button, .button, input, select, textarea { font: inherit; color: inherit; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); padding: 5px 12px; min-height: 34px; max-width: 100%; }
input, textarea, select { background: var(--back); border-color: var(--edge); }
input[type=checkbox] { min-height: 0; width: 16px; height: 16px; accent-color: var(--accent); vertical-align: middle; }
textarea { width: 100%; font-family: var(--mono); font-size: 13px; resize: vertical; }
button, .button { cursor: pointer; white-space: nowrap; font-weight: 500; }
button:hover, .button:hover { background: var(--soft); text-decoration: none; }
button.main, .button.main { background: var(--accent); border-color: var(--accent); color: var(--card); }
button.main:hover, .button.main:hover { filter: brightness(1.08); }
button.danger { color: var(--dead); }
button.danger.main { background: var(--dead); border-color: var(--dead); color: var(--card); }
button[aria-pressed=true] { background: var(--soft); border-color: var(--accent); }
button.slim { min-height: 28px; padding: 1px 10px; font-size: 13px; }
input.slim { min-height: 28px; padding: 1px 8px; width: 82px; font-size: 13px; }
.filters { margin-bottom: 12px; }
.filters input { flex: 1 1 200px; }
.filters input[type=search] { flex-grow: 4; }
.chips { gap: 6px; }
.bar { position: sticky; bottom: 12px; margin-top: 12px; box-shadow: 0 4px 18px rgb(0 0 0 / 14%); z-index: 4; }
.command { margin: 0 0 14px; padding: 12px 14px; background: var(--soft); border-radius: 9px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  max-height: 180px; overflow: auto; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; margin: 0; }
.facts dt { color: var(--dim); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.log { margin: 0; height: 300px; resize: vertical; overflow: auto; background: #15171b; color: #dfe1e6; border-radius: 9px;
  padding: 12px 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
.c1 { font-weight: 700; } .c2 { opacity: .7; } .c3 { font-style: italic; } .c4 { text-decoration: underline; }
.c30, .c90 { color: #9197a3; } .c31, .c91 { color: #ff8d84; } .c32, .c92 { color: #63d296; } .c33, .c93 { color: #e9b650; }
.c34, .c94 { color: #7fb6ff; } .c35, .c95 { color: #d6a1ff; } .c36, .c96 { color: #5fd4d6; } .c37, .c97 { color: #ffffff; }
.attempts { list-style: none; margin: 0; padding: 0; }
.attempts li { padding: 7px 0; border-top: 1px solid var(--line); }
.attempts li:first-child { border-top: 0; }
.track { height: 6px; margin-top: 5px; background: var(--soft); border-radius: 3px; }
.track div { height: 100%; min-width: 4px; border-radius: 3px; background: currentColor; }
.progress { display: flex; height: 9px; border-radius: 5px; overflow: hidden; background: var(--soft); min-width: 120px; }
.progress div { background: currentColor; }
.graph { display: block; }
.graph rect { fill: var(--soft); stroke: var(--line); }
.graph .self rect { stroke: var(--accent); stroke-width: 2; }
.graph path { fill: none; stroke: var(--cancelled); }
.graph text { fill: currentColor; font-size: 13px; }
.graph circle { fill: currentColor; }
.form { display: grid; grid-template-columns: 150px minmax(0, 1fr); gap: 10px 16px; align-items: start; }
.form label { padding-top: 6px; }
.form p { margin: 3px 0 0; }
.form input:not([type=checkbox]) { width: 100%; max-width: 420px; }
details summary { cursor: pointer; color: var(--dim); }
form details { margin-top: 14px; }
details[open] summary { margin-bottom: 10px; }
dialog { border: 1px solid var(--line); border-radius: 14px; background: var(--card); color: var(--text); padding: 22px 24px;
  max-width: min(560px, calc(100vw - 32px)); }
dialog::backdrop { background: rgb(0 0 0 / 45%); }
kbd { font: 12px var(--mono); border: 1px solid var(--cancelled); border-radius: 5px; padding: 1px 6px; }
#toast { position: fixed; right: 20px; bottom: 20px; z-index: 8; max-width: min(460px, calc(100vw - 40px)); }
#toast div { background: var(--text); color: var(--card); border-radius: 9px; padding: 10px 16px; margin-top: 8px;
  overflow-wrap: anywhere; }
@media (max-width: 760px) {
  header { flex-wrap: wrap; height: auto; padding: 10px 16px 8px; gap: 6px 12px; }
  .brand { flex: 1; }
  nav { order: 3; flex: 1 0 100%; margin: 0 -16px; padding: 0 12px; }
  main { padding: 16px; }
  .grid { grid-template-columns: minmax(0, 1fr); gap: 12px; margin-top: 12px; }
  .tiles { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 8px 10px; }
  .tile b { font-size: 21px; }
  .wider { display: none; }
  table.flow, .flow tbody { display: block; }
  .flow thead { position: absolute; left: -999px; }
  tr.flow { display: flex; flex-wrap: wrap; align-items: center; gap: 3px 10px; padding: 9px 0; border-top: 1px solid var(--line); }
  tr.flow:first-child { border-top: 0; }
  .flow td, .flow tr[tabindex]:focus td, .flow tr[tabindex]:hover td { border: 0; padding: 0; background: none; box-shadow: none; }
  .flow tr:focus { background: var(--soft); box-shadow: -3px 0 var(--accent); }
  .flow td:empty { display: none; }
  .flow td[data-title]::before { content: attr(data-title) " "; color: var(--dim); font-size: 13px; }
  .flow .end { margin-left: auto; }
  .flow .grow, .flow .half { order: 1; flex: 0 0 100%; max-width: 100%; }
  .flow .below, .flow .buttons { order: 2; }
  .flow .below { color: var(--dim); font-size: 13px; }
  .flow .buttons { margin-left: auto; }
  .form { grid-template-columns: minmax(0, 1fr); gap: 4px; }
  .log { height: 260px; }
  .card { padding: 12px; }
  .scroll { margin: 0 -12px; padding: 0 12px; }
  th, td { padding-right: 8px; }
  td time { font-size: 13px; }
  .bar { position: static; box-shadow: none; }
  .state { font-size: 12px; gap: 4px; }
}
"""

PAGE_SCRIPT = r"""
'use strict';
const meta = name => document.querySelector(`meta[name=${name}]`).content;
const $ = selector => document.querySelector(selector);
const BASE = meta('base'), READ_ONLY = meta('read-only') === 'yes';
const STATES = ['pending', 'processing', 'completed', 'failed', 'dead', 'cancelled'], WAITING = ['pending', 'failed'];
if (location.search) history.replaceState(null, '', location.pathname + location.hash);  // the token leaves the address bar

// -- text of jobs is text: controls, invalid characters and what reorders a line are shown as escapes --

const HARMFUL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]/gu;
const escaped = char => '\\u' + char.charCodeAt(0).toString(16).padStart(4, '0');
const clean = text => String(text).replace(HARMFUL, escaped);
const oneLine = text => clean(text).replace(/\s+/g, ' ');
const cut = (text, most) => text.length > most ? text.slice(0, most) + '…' : text;

// -- elements: h() makes them, sync() changes those on the page, so that focus, selection and scrolling stay --

const SVG = new Set(['svg', 'g', 'rect', 'circle', 'path', 'text', 'line', 'title', 'anchor']);  // anchor: a link within a picture
const EVENTS = ['onclick', 'onchange', 'oninput', 'onsubmit', 'onkeydown', 'onscroll'];

function h(kind, props, ...children) {
  const [tag, ...classes] = kind.split('.');
  const node = SVG.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag === 'anchor' ? 'a' : tag) :
    document.createElement(tag);
  if (classes.length) node.setAttribute('class', classes.join(' '));
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (EVENTS.includes(name) || name === 'value' || name === 'checked' || name === 'own') node[name] = value;
    else if (name === 'style') for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === 'class') node.setAttribute('class', (classes.join(' ') + ' ' + value).trim());
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(9)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
  return node;
}

function sync(from, to) {
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  for (const {name} of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
  for (const {name, value} of to.attributes) {
    if (from.getAttribute(name) === value) continue;
    if (name === 'style') from.style.cssText = value; else from.setAttribute(name, value);  // the policy allows styles by script alone
  }
  for (const name of EVENTS) from[name] = to[name];
  if (!to.own) fill(from, [...to.childNodes]);  // own: a script of its own looks after its content
  if (to.matches('input, textarea, select')) {
    if (from !== document.activeElement && !from.dirty) from.value = to.value;
    from.checked = to.checked;
  }
}

function fill(parent, fresh) {
  const keyed = new Map([...parent.childNodes].filter(node => node.dataset?.key).map(node => [node.dataset.key, node]));
  let place = parent.firstChild;
  for (const node of fresh) {
    const key = node.dataset?.key, known = key ? keyed.get(key) : place;
    if (known && known.nodeName === node.nodeName && (key || !known.dataset?.key)) {
      if (known === place) place = place.nextSibling; else parent.insertBefore(known, place);
      keyed.delete(key);
      sync(known, node);
    } else {
      parent.insertBefore(node, place);
      if (place && !key && !place.dataset?.key) { const old = place; place = place.nextSibling; old.remove(); }
    }
  }
  while (place) { const old = place; place = place.nextSibling; old.remove(); }
}

// -- the server --

async function ask(path, options) {
  let answer;
  try { answer = await fetch(BASE + '/' + path, options); } catch (error) { throw new Error('the server does not answer'); }
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), {status: answer.status});
  return answer.json();
}
const parameters = query => new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== undefined &&
  value !== ''));
const get = (path, query = {}) => ask('api/' + path + '?' + parameters(query));
const post = (path, body) => ask('api/' + path, {method: 'POST', body: JSON.stringify(body),
  headers: {'Content-Type': 'application/json', 'X-CSRF-Token': meta('csrf')}});

const troubles = {};  // of the connection, of the last answer
function trouble(of, text) {
  troubles[of] = text;
  const all = [...new Set(Object.values(troubles).filter(Boolean))].join(' · ');
  $('#trouble').hidden = !all;
  if ($('#trouble').textContent !== clean(all)) $('#trouble').textContent = clean(all);
  $('#live').className = all ? '' : 'on';
  $('#live').textContent = all ? 'trouble' : 'live';
}

function toast(text) {
  const note = h('div', null, text);
  $('#toast').append(note);
  setTimeout(() => note.remove(), 6000);
}

async function change(path, body, done) {
  try {
    const result = await post(path, body);
    if (done) toast(typeof done === 'function' ? done(result) : done);
    refresh();
    return result;
  } catch (error) { toast(error.message); }
}

let source = null, seen = null, server = null;
function connect() {
  if (source || document.hidden) return;
  source = new EventSource(BASE + '/api/live');
  source.onmessage = event => {
    const {version, trouble: why, page} = JSON.parse(event.data);
    if (server && server !== page && !shown.page.still) location.reload();  // queuectl was upgraded
    server = server || page;
    trouble('live', why);
    if (version !== seen) { seen = version; refresh(); }
  };
  source.onerror = () => {
    trouble('live', 'The server does not answer. This page goes on by itself when it does.');
    disconnect();
    setTimeout(connect, 2000);
  };
}
function disconnect() { if (source) source.close(); source = null; seen = null; }
document.addEventListener('visibilitychange', () => document.hidden ? disconnect() : connect());  // six connections are a browser's most

// -- times --

function span(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 0.9995) return Math.round(seconds * 1000) + ' ms';
  if (seconds < 9.95) return seconds.toFixed(1) + ' s';
  for (const [limit, unit, word] of [[120, 1, 's'], [7200, 60, 'min'], [172800, 3600, 'h']]) {
    if (seconds < limit) return Math.floor(seconds / unit) + ' ' + word;
  }
  return Math.floor(seconds / 86400) + ' d';
}
function relative(time, running) {
  const age = (Date.now() - Date.parse(time)) / 1000;
  return age < 0 ? 'in ' + span(-age) : running ? span(Math.max(1, age)) : age < 1 ? 'now' : span(age) + ' ago';
}
const when = (time, running) => time ? h('time', {datetime: time, title: new Date(time).toLocaleString(), 'data-running': running},
  relative(time, running)) : h('span.dim', null, '–');
setInterval(() => document.querySelectorAll('time[datetime]').forEach(node => {
  const text = relative(node.getAttribute('datetime'), node.hasAttribute('data-running'));
  if (node.textContent !== text) node.textContent = text;
}), 1000);
const number = count => count.toLocaleString('en');
const plural = (count, noun) => number(count) + ' ' + noun + (count === 1 ? '' : 's');

// -- parts of pages --

const stateOf = job => job.held && WAITING.includes(job.state) ? 'held' : job.state;
const state = word => h('span.state', {class: word}, word);
const link = (path, query, ...text) => h('a', {href: '#/' + path + (query ? '?' + parameters(query) : '')}, ...text);
const jobLink = id => link('job/' + id, null, id);
const button = (text, onclick, kind = '') => h('button' + kind, {type: 'button', onclick}, text);
const write = (...nodes) => READ_ONLY ? null : nodes;
const withCode = text => text.split('`').map((part, i) => i % 2 ? h('code', null, part) : part);
const nothing = text => h('p.empty', null, withCode(text));
const command = job => h('code.cut', {title: cut(job.command, 1000)}, cut(oneLine(job.name ? job.name + ': ' + job.command :
  job.command), 300));

const EXITS = {64: 'wrong usage', 65: 'wrong data', 69: 'unavailable', 75: 'temporary failure', 77: 'no permission', 78: 'wrong settings',
  126: 'can not be run', 127: 'command not found', 129: 'SIGHUP', 130: 'SIGINT', 131: 'SIGQUIT', 134: 'SIGABRT', 136: 'SIGFPE',
  137: 'SIGKILL', 139: 'SIGSEGV', 141: 'SIGPIPE', 143: 'SIGTERM'};
const exitText = code => `exit ${code}` + (EXITS[code] ? `: ${EXITS[code]}` : code > 128 ? `: signal ${code - 128}` : '');
const whyOf = ({error, state, exit_code: code}) =>
  error && error !== state && !/^exit \d+$/.test(error) ? error : code ? exitText(code) : '';

function timeOf(job) {
  if (WAITING.includes(job.state) && Date.parse(job.run_at) > Date.now()) return when(job.run_at);
  if (job.state === 'processing') return when(job.started_at, true);
  return when(job.finished_at || job.created_at);
}
function table(label, titles, rows, empty) {
  if (!rows.length) return nothing(empty);
  const side = title => 'th' + (/^~?#/.test(title) ? '.number' : '') + (title[0] === '~' ? '.wider' : '');
  return h('div.scroll', null, h('table', {'aria-label': label, class: rows[0].getAttribute('class') || ''},
    h('thead', null, h('tr', null, titles.map(title => h(side(title), {scope: 'col'}, title.replace(/^~?#?/, ''))))),
    h('tbody', null, rows)));
}
function field(row, key, label, save, hint) {
  const input = h('input.slim', {value: row[key] ?? '', placeholder: 'none', 'aria-label': label, title: hint, disabled: READ_ONLY});
  input.oninput = event => { event.target.dirty = true; };
  input.onchange = event => { event.target.dirty = false; save(event.target.value.trim()); };
  return input;
}

function dialog(title, content, buttons) {
  const box = $('#dialog');
  box.replaceChildren(h('h2', {id: 'dialog-title'}, title), ...[content].flat(), h('div.row', {style: {'margin-top': '18px'}},
    buttons.map(([text, kind, act]) => button(text, () => { box.close(); if (act) act(); }, kind)), button('Close', () => box.close())));
  box.showModal();
  (box.querySelector('button.main') || box.querySelector('button')).focus();
}

const VERBS = {
  retry: ['Retry', 'They run again: at once if they wait for a retry, else with their retries counted from 0.'],
  cancel: ['Cancel', 'What runs is ended; what waits does not start, and what comes after it does not either.'],
  hold: ['Hold', 'They do not start until they are released.'],
  release: ['Release', 'They start when it is their turn.'],
  remove: ['Delete', 'The jobs, their history and their logs are removed for good.']};
for (const verb of meta('verbs').split(' ')) {  // the states in which a job may be for each
  const [name, states] = verb.split(':');
  VERBS[name].push(states.split(','));
}

async function act(verb, asked, what) {
  const [word, meaning] = VERBS[verb], count = {sum: 0};
  try {
    await each({...asked, verb, dry: true}, result => { count.sum += result.count; });
  } catch (error) { return toast(error.message); }
  if (!count.sum) return toast(`${word}: none of ${what} is in a state for that.`);
  dialog(`${word} ${plural(count.sum, 'job')}?`, [h('p', null, `Of ${what}, this is for ${plural(count.sum, 'job')}. ${meaning}`)],
    [[`${word} ${plural(count.sum, 'job')}`, verb === 'remove' ? '.danger.main' : '.main', async () => {
      let done = 0;
      try {
        await each({...asked, verb}, result => { done += result.done; result.left.slice(0, 3).forEach(toast); });
      } catch (error) { toast(error.message); }
      toast(`${word}: ${plural(done, 'job')}`);
      chosen.clear();
      refresh();
    }]]);
}
async function each(asked, use) {  // the server does some hundred at a time, so that nobody else waits
  let before = null;
  do {
    const result = await post('act', {...asked, filter: asked.filter && {...asked.filter, ...(before && {before})}});
    use(result);
    before = result.next;
  } while (before);
}
const actions = job => write(Object.keys(VERBS).filter(verb => VERBS[verb][2].includes(job.state) &&
  (verb !== 'hold' || !job.held) && (verb !== 'release' || job.held)).map(verb =>
  button(VERBS[verb][0], () => act(verb, {ids: [job.id]}, 'job ' + job.id), verb === 'remove' ? '.danger' : '')));

function chart(ends, range) {
  const [width, bars, step] = {minute: [1, 60, 1], hour: [60, 60, 1], day: [60, 48, 30]}[range];
  const now = Math.floor(Date.now() / 1000 / width / step), good = Array(bars).fill(0), bad = Array(bars).fill(0);
  for (const [start, ok, failed] of ends[width === 1 ? 'seconds' : 'minutes']) {
    const place = bars - 1 - (now - Math.floor(start / width / step));
    if (place >= 0 && place < bars) { good[place] += ok; bad[place] += failed; }
  }
  const most = Math.max(1, ...good.map((count, i) => count + bad[i])), wide = 600 / bars;
  const sum = list => list.reduce((one, other) => one + other, 0);
  const label = `Last ${range}: ${plural(sum(good), 'completed attempt')}, ${number(sum(bad))} failed; at most ${most} per bar`;
  const bar = (kind, i, count, below) => count ? h('rect.' + kind, {x: (i * wide + 1).toFixed(1), width: (wide - 2).toFixed(1), rx: 1.5,
    y: (140 - 130 * (count + below) / most).toFixed(1), height: Math.max(1.5, 130 * count / most).toFixed(1)}) : null;
  const peak = sum(good) + sum(bad) ? `at most ${number(most)} per ${{minute: 'second', hour: 'minute', day: 'half hour'}[range]}` :
    'no attempt has ended';
  return {good: sum(good), bad: sum(bad), peak, node: h('svg.chart', {viewBox: '0 0 600 150', preserveAspectRatio: 'none', role: 'img',
    'aria-label': label},
    h('title', null, label), h('line.base', {x1: 0, x2: 600, y1: 141, y2: 141}),
    good.map((count, i) => [bar('ok', i, count, 0), bar('bad', i, bad[i], count)]))};
}

// -- pages: each loads its data, and draws it --

// What `queuectl health` finds.
function healthOf(data) {
  const worst = data.findings[0]?.level || 'ok', waiting = data.jobs.pending + data.jobs.failed;
  return h('div', {class: 'health ' + worst}, h('h1', null, {ok: 'All is well', warn: 'Something needs a look', bad: 'Something is wrong'}[
    worst]), data.findings.length ? h('ul', null, data.findings.slice(0, 5).map(({level, text}) => h('li', {class: level},
    withCode(text)))) :
    h('p.dim', null, `${number(waiting)} waiting, ${number(data.jobs.processing)} running, ${plural(data.count, 'worker')}`));
}

let range = 'hour';
function drawOverview(data) {
  const drawn = chart(data.ends, range), recent = data.recent;
  const fact = (name, value) => h('div', null, h('dt', null, name), h('dd', null, value));
  return [
    healthOf(data),
    h('div.tiles', null, STATES.map(word => h('a.card.tile', {href: '#/jobs?state=' + word, class: data.jobs[word] ? '' : 'zero'},
      h('b', null, number(data.jobs[word])), state(word)))),
    h('section.card.wide', {style: {'margin-top': '16px'}, 'aria-label': 'Throughput'},
      h('div.row.spread', null, h('h2', null, 'Throughput ', h('span.dim.small', null, drawn.peak)), h('div.row', {role: 'group',
        'aria-label': 'Range'},
        ['minute', 'hour', 'day'].map(name => h('button.slim', {type: 'button', 'aria-pressed': String(name === range),
          onclick: () => { range = name; draw(); }}, name)))),
      drawn.node,
      h('div.axis', null, h('span', null, {minute: '60 s', hour: '60 min', day: '24 h'}[range] + ' ago'), h('span', null, 'now')),
      h('dl.numbers', null, fact('completed', number(drawn.good)), fact('failed', number(drawn.bad)),
        fact('duration, median', recent ? span(recent.p50) : '–'), fact('duration, 95 %', recent ? span(recent.p95) : '–'),
        fact('waited, median', recent && recent.waited_p50 !== null ? span(recent.waited_p50) : '–'),
        fact('oldest ready job', data.oldest_waiting ? when([data.oldest_waiting.created_at,
          data.oldest_waiting.run_at].sort()[1], true) : 'none'))),
    h('div.grid', null,
      h('section.card.wide', null, h('h2', null, 'Queues'), table('Queues',
        ['Queue', '~State', '#Pending', '~#Running', '~#Failed', '#Dead', '~At once', '~Rate', ''],
        data.queues.slice(0, 200).map(queueRow), '')),
      h('section.card', null, h('h2', null, 'Workers'), table('Workers', ['Worker', '~State', 'Runs', 'Since', '~#Done'],
        data.workers.map(worker => h('tr', {'data-key': 'w' + worker.id}, h('td', null, worker.id),
          h('td.wider', null, state(worker.state)),
          h('td.grow', null, worker.job ? h('span.cut', null, jobLink(worker.job), ' ', h('code', null, oneLine(worker.command || ''))) :
            h('span.dim', null, worker.note || '–')),
          h('td', null, when(worker.running_since || worker.started_at, true)),
          h('td.number.wider', null, number(worker.done)))), 'No worker runs: `queuectl worker start` starts one'),
        data.count > data.workers.length ? h('p.dim', null, `and ${number(data.count - data.workers.length)} more`) : null),
      h('section.card', null, h('h2', null, 'Next schedules'), table('Next schedules', ['Schedule', 'Next', 'Last job'],
        data.schedules.map(row => h('tr', null, h('td.grow', null, h('span.cut', null, row.name)),
          h('td', null, row.error ? h('span.dead', null, row.error) : when(row.next_at)),
          h('td', null, row.last_job ? jobLink(row.last_job) : '–'))), 'No schedules')),
      h('section.card.wide', null, h('h2', null, 'Latest failures'), table('Latest failures', ['Job', 'State', 'Command',
        'Last line', 'Why', 'When'],
        data.failures.map(job => h('tr.flow', {'data-key': 'f' + job.id}, h('td', null, jobLink(job.id)),
          h('td', null, state(stateOf(job))),
          h('td.half', null, command(job)), h('td.half', null, job.last_line && h('code.cut.dim', null, oneLine(job.last_line))),
          h('td.nowrap', null, whyOf(job)), h('td.end', null, when(job.finished_at)))), 'No attempt has failed lately')))];
}

function queueRow(row) {
  const set = changes => change('queue', {name: row.name, ...changes}, `Queue ${row.name} is changed`);
  return h('tr', {'data-key': 'q' + row.name}, h('td.grow', null, h('span.cut', null, link('jobs', {queue: row.name}, row.name))),
    h('td.wider', null, state(row.paused ? 'paused' : 'open')), ['pending', 'processing', 'failed', 'dead'].map(word =>
      h('td.number', {class: word === 'processing' || word === 'failed' ? 'wider' : ''}, number(row.jobs[word]))),
    h('td.wider', null, field(row, 'max_running', 'Jobs at once of queue ' + row.name, value => set({max_running: value}),
      'jobs at once; empty: no limit')),
    h('td.wider', null, field(row, 'rate', 'Rate of queue ' + row.name, value => set({rate: value}),
      'starts per time, as in 10/m; empty: no limit')),
    h('td.number', null, write(h('button.slim', {type: 'button', 'aria-label': (row.paused ? 'Resume' : 'Pause') + ' queue ' + row.name,
      onclick: () => set({paused: !row.paused})}, row.paused ? 'Resume' : 'Pause'))));
}

const chosen = new Set();
const FILTERS = ['state', 'queue', 'name', 'text', 'label', 'batch', 'schedule', 'like'];

const ORDERS = {newest: 'Newest first', oldest: 'Oldest first', ended: 'Ended last first', next: 'Next to run first'};

async function loadJobs(query, id, show) {
  const queues = get('queues');
  let found = {jobs: [], next: query.before};
  do {  // the server looks for a tenth of a second at a time; what it has found is shown meanwhile
    const part = await get('jobs', {...query, before: found.next, limit: 50 - found.jobs.length});
    found = {...part, jobs: found.jobs.concat(part.jobs), queues: await queues};
    found.looking = found.next && found.jobs.length < 50;
  } while (found.looking && show(found));
  return found;
}

function drawJobs(data, query) {
  const filter = Object.fromEntries(FILTERS.filter(key => query[key]).map(key => [key, query[key]]));
  const order = ORDERS.hasOwnProperty(query.order) ? query.order : 'newest', sorted = order === 'newest' ? {} : {order};
  const go = changes => { location.hash = '#/jobs?' + parameters({...filter, ...sorted, ...changes}); };
  const chip = (word, count) => h('button.slim', {type: 'button', 'aria-pressed': String((filter.state || '') === word),
    onclick: () => go({state: word})}, word || 'all', count === null ? null : [' ', h('span.dim', null, number(count))]);
  const search = (key, label, kind) => h('input', {type: kind || 'text', 'data-filter': key, value: filter[key] || '', placeholder: label,
    'aria-label': label, onchange: event => go({[key]: event.target.value.trim()})});
  const ids = [...chosen], all = ids.length === 0;
  const asked = all ? {filter} : {ids}, what = all ? (Object.keys(filter).length ? 'all jobs that match' : 'all jobs') :
    plural(ids.length, 'chosen job');
  return [
    h('div.row.spread', null, h('h1', null, 'Jobs'), write(h('a.button.main', {href: '#/new'}, 'New job'))),
    h('div.row.chips.filters', {role: 'group', 'aria-label': 'State'}, chip('', STATES.reduce((sum, word) => sum + data.counts[word], 0)),
      STATES.map(word => chip(word, data.counts[word])), chip('held', null)),
    h('div.row.filters', {role: 'search'}, search('text', 'Text of the command', 'search'), search('name', 'Name, as in nightly-*'),
      h('select', {'aria-label': 'Queue', onchange: event => go({queue: event.target.value})}, h('option', {value: ''}, 'all queues'),
        data.queues.map(row => h('option', {value: row.name, selected: row.name === filter.queue}, row.name))),
      h('select', {'aria-label': 'Order', onchange: event => go({order: event.target.value})}, Object.entries(ORDERS).map(([key, words]) =>
        h('option', {value: key, selected: key === order}, words))),
      ['batch', 'schedule', 'label', 'like'].filter(key => filter[key]).map(key =>
        button(`${key === 'like' ? 'like job' : key} ${filter[key]} ✕`, () => go({[key]: ''})))),
    h('section.card', {'aria-label': 'Jobs'}, table('Jobs', READ_ONLY ? ['Job', 'State', 'Command', '~Queue', '~Tries', 'When', 'Why'] :
      ['', 'Job', 'State', 'Command', '~Queue', '~Tries', 'When', 'Why'], data.jobs.map(jobRow), data.looking ? 'None found yet' :
      Object.keys(filter).length ? 'No job matches' : 'No jobs yet'),
    h('div.row.spread', {style: {'margin-top': '12px'}}, query.before ? button('First page', () => go({})) :
      h('span'), data.looking ? h('span.dim', {role: 'status'}, 'Looking' + (order === 'newest' || order === 'oldest' ?
        `, now at job ${number(data.next)} …` : ' …')) :
      data.next ? h('a.button', {href: '#/jobs?' + parameters({...filter, ...sorted, before: data.next})}, 'Next page') : h('span'))),
    data.jobs.length && write(h('div.card.bar.row', {role: 'group', 'aria-label': 'Actions'}, h('span', null, 'With ' + what + ':'),
      Object.keys(VERBS).map(verb => button(VERBS[verb][0], () => act(verb, asked, what), verb === 'remove' ? '.slim.danger' : '.slim')),
      all ? null : button('Choose none', () => { chosen.clear(); draw(); }, '.slim')))];
}

function jobRow(job) {
  const flip = () => { chosen.has(job.id) ? chosen.delete(job.id) : chosen.add(job.id); draw(); };
  return h('tr.flow', {'data-key': 'j' + job.id, tabindex: 0, 'data-id': job.id, onkeydown: event => {
    if (event.target !== event.currentTarget) return;
    if (event.key === 'Enter') location.hash = '#/job/' + job.id;
    if (event.key === 'x' && !READ_ONLY) flip();
  }, onclick: event => { if (!event.target.closest('a, input') && !String(getSelection())) location.hash = '#/job/' + job.id; }},
    write(h('td', null, h('input', {type: 'checkbox', checked: chosen.has(job.id), 'aria-label': 'Choose job ' + job.id, onchange:
      flip}))),
    h('td', null, jobLink(job.id)), h('td', null, state(stateOf(job))), h('td.grow', null, command(job)), h('td.wider', null, job.queue),
    h('td.wider', null, `${job.attempts}/${job.max_retries + 1}`), h('td.end', null, timeOf(job)),
    h('td.below', null, whyOf(job) && h('span.cut.why', {title: whyOf(job)}, whyOf(job))));
}

function drawJob(job) {
  const facts = [['queue', link('jobs', {queue: job.queue}, job.queue)], ['priority', job.priority], ['directory', h('code', null,
    job.cwd)],
    ['created', when(job.created_at)], ['not before', Date.parse(job.run_at) > Date.now() && when(job.run_at)],
    ['started', job.started_at && when(job.started_at)], ['ended', job.finished_at && when(job.finished_at)],
    ['took', job.duration !== null && span(job.duration)],
    ['attempts', `${job.attempts} of ${job.max_retries + 1}`], ['timeout', job.timeout && span(job.timeout)],
    ['batch', job.batch && link('jobs', {batch: job.batch}, job.batch)], ['schedule', job.schedule && link('jobs', {schedule:
      job.schedule}, job.schedule)],
    ['labels', job.labels.join(', ')], ['key', job.key], ['unique', job.unique],
    ['slots', job.slots > 1 && job.slots], ['worker', job.worker], ['waits', job.note],
    ['why', whyOf(job)]];
  return [
    h('div.row.spread', null, h('h1', null, 'Job ' + job.id + (job.name ? ' · ' + job.name : '')), h('div.row', null,
      state(stateOf(job)), actions(job),
      write(h('a.button', {href: '#/new?like=' + job.id}, 'Enqueue again with changes')))),
    h('pre.command', {tabindex: 0, 'aria-label': 'Command'}, cut(job.command, 20000)),
    job.reasons.length ? h('section.card', {style: {'margin-bottom': '16px'}}, h('h2', null, 'Why it is not running'),
      job.reasons.map(reason => h('div', null, 'It waits: ', withCode(reason)))) : null,
    job.attempt === 0 ? null : h('section.card', {'aria-label': 'Log'}, h('div.row.spread', null, h('h2', null, 'Output'),
      h('div.row', null,
      job.history.length > 1 ? h('select', {'aria-label': 'Attempt', onchange: event => log.open(job.id, +event.target.value)},
        job.history.map(row => h('option', {value: row.attempt, selected: row.attempt === job.attempt}, 'attempt ' + row.attempt))) :
          null,
      h('a.button', {href: BASE + '/api/log?' + parameters({id: job.id, attempt: job.attempt, download: 1}), download: ''}, 'Download'))),
      h('pre.log', {own: true, tabindex: 0, 'aria-label': 'Output of the job', id: 'log'})),
    h('div.grid', null,
      h('section.card', null, h('h2', null, 'Attempts'), job.history.length ? attempts(job) : nothing('It has not run yet')),
      h('section.card', null, h('h2', null, 'Facts'), h('dl.facts', null, facts.filter(([, value]) => value || value === 0).map(([name,
        value]) =>
        [h('dt', null, name), h('dd', null, value)]))),
      job.parents.length + job.children.length ? h('section.card.wide', null, h('h2', null, 'Family'), family(job)) : null,
      h('section.card.wide', null, h('details', null, h('summary', null, plural(Object.keys(job.variables).length,
        'environment variable')),
        h('dl.facts.mono', null, Object.entries(job.variables).map(([name, value]) => [h('dt', null, name), h('dd', null, value)])))))];
}

function attempts(job) {
  const times = job.history.flatMap(row => [row.started_at, row.finished_at]).filter(Boolean).map(Date.parse);
  const first = Math.min(...times), last = Math.max(Date.now() * (job.state === 'processing'), ...times), whole = Math.max(1,
    last - first);
  return h('ol.attempts', null, job.history.slice(-50).map(row => {
    const start = Date.parse(row.started_at), end = row.finished_at ? Date.parse(row.finished_at) : Date.now();
    return h('li', {'data-key': 'a' + row.attempt}, h('div.row.spread', null, h('span', null, 'Attempt ' + row.attempt + ' ',
      state(row.outcome), ' ',
      h('span.dim', null, whyOf(row))), h('span.small.dim', null, row.duration === null ? when(row.started_at, true) : span(row.duration))),
      h('div.track', {class: row.outcome}, h('div', {style: {'margin-left': 100 * (start - first) / whole * 0.98 + '%',
        width: 100 * Math.max(0, end - start) / whole + '%'}})));
  }));
}

function family(job) {
  const tall = 36, rows = Math.max(job.parents.length, job.children.length, 1), height = rows * tall + 4, wide = 250;
  const middle = height / 2 - 14, start = job.parents.length ? 320 : 1, right = start + 320;
  const box = (x, y, other, self) => h('g', {class: self ? 'self' : ''}, h('anchor', {href: self ? null : '#/' +
    (other.batch ? 'jobs?batch=' + other.batch : 'job/' + other.id)}, h('rect', {x, y, width: wide, height: 28, rx: 8}),
    other.batch ? null : h('circle', {class: other.state, cx: x + 14, cy: y + 14, r: 4},
      h('title', null, other.state)), h('text', {x: x + 25, y: y + 18.5},
      cut(oneLine(other.batch ? 'batch ' + other.batch : other.id + ' ' + (other.name || other.command)), 30))));
  const at = (list, i) => (height - list.length * tall) / 2 + i * tall + 4;
  const curve = (x1, y1, x2, y2) => h('path', {d: `M${x1} ${y1 + 14} C${x1 + 35} ${y1 + 14} ${x2 - 35} ${y2 + 14} ${x2} ${y2 + 14}`});
  const width = job.children.length ? right + wide + 2 : start + wide + 2;
  return h('div.scroll', null, h('svg.graph', {viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label':
    `comes after ${plural(job.parents.length, 'job')}; ${plural(job.children.length, 'job')} come after it`},
    job.parents.map((other, i) => [curve(1 + wide, at(job.parents, i), start, middle), box(1, at(job.parents, i), other)]),
    job.children.map((other, i) => [curve(start + wide, middle, right, at(job.children, i)), box(right, at(job.children, i), other)]),
    box(start, middle, job, true)), Math.max(job.parents.length, job.children.length) >= 20 ? h('p.dim', null,
      'At most 20 of each are shown.') : null);
}

// The output of one attempt: read from where the last answer ended; colours become classes, other escapes are shown.
const log = {
  async open(id, attempt) {
    Object.assign(this, {id, attempt, place: null, live: true, styles: [], size: 0});
    $('#log')?.replaceChildren();
    await this.read();
  },
  async read() {
    if (this.busy || !this.live || !$('#log')) return;
    this.busy = true;
    const {id, attempt} = this;
    try {
      let part;
      do {
        part = await get('log', {id, attempt, offset: this.place});
        const box = $('#log');
        if (id !== this.id || attempt !== this.attempt || !box) return;
        if (this.place === null && part.start > 0) box.append(h('span.c2', null,
          `… ${number(part.start)} bytes before this: download them\n`));
        const end = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
        this.add(box, part.text);
        Object.assign(this, {place: part.next, live: part.running});
        if (end) box.scrollTop = box.scrollHeight;
      } while (part.next < part.size && part.text);
      if (!this.live && this.place === 0 && !$('#log').firstChild) $('#log').append(h('span.c2', null, 'It has written nothing.'));
    } catch (error) { trouble('load', error.message); } finally { this.busy = false; }
    if (id !== this.id || attempt !== this.attempt) this.read();
  },
  add(box, text) {  // of a line that was written over, as a progress bar does, the last state is shown
    for (const [i, piece] of text.replace(/\r+\n/g, '\n').split(/\x1b\[([0-9;]{0,40})m/).entries()) {
      if (i % 2) {
        for (const code of piece.split(';').map(Number)) this.styles = code === 0 ? [] : code === 39 ? this.styles.filter(c => c < 30) :
          this.styles.filter(c => code < 30 || c < 30).concat(code);
      } else if (piece) {
        const shown = piece.split('\n').map(line => line.slice(line.replace(/\r+$/, '').lastIndexOf('\r') + 1).replace(/\r/g,
          '')).join('\n');
        this.size += shown.length;
        box.append(h('span', {class: this.styles.slice(-6).map(code => 'c' + code).join(' ')}, shown));
      }
    }
    while (box.childNodes.length > 3000 || this.size > 2000000 && box.childNodes.length > 1) {
      this.size -= box.firstChild.textContent.length;
      box.firstChild.remove();
    }
  }};

const drawDead = groups => [
  h('div.row.spread', null, h('h1', null, 'Dead letter queue'), link('jobs', {state: 'dead'}, 'All dead jobs')),
  h('section.card', {'aria-label': 'Groups'}, table('Dead jobs by command and error', ['#Jobs', 'Command', 'Why', '~First', 'Last', ''],
    groups.map(({count, job, first_at, last_at}) => h('tr.flow', {'data-key': 'd' + job.id}, h('td.number', {'data-title': 'jobs'},
      link('jobs', {state: 'dead', like: job.id}, number(count))), h('td.grow', null, command(job)),
      h('td', null, h('span.cut.why', {title: whyOf(job)}, whyOf(job))), h('td.wider', null, when(first_at)),
      h('td.end', {'data-title': 'last'}, when(last_at)), h('td.buttons.nowrap', null, write([['retry', ''], ['remove',
        '.danger']].map(
        ([verb, kind]) => h('button.slim' + kind, {type: 'button', 'aria-label':
          `${verb === 'retry' ? 'Retry' : 'Purge'} group of job ${job.id}`,
          style: {'margin-left': '6px'}, onclick: () => act(verb, {filter: {state: 'dead', like: job.id}}, 'this group')},
        verb === 'retry' ? 'Retry' : 'Purge')))))), 'No job is dead'))];

const drawBatches = rows => [
  h('h1', null, 'Batches'),
  h('section.card', {'aria-label': 'Batches'}, table('Batches', ['Batch', 'Progress', '#Ended', '~Age'], rows.map(row => {
    const sum = STATES.reduce((total, word) => total + row.jobs[word], 0), gone = Math.max(0, row.total - sum),
      ended = row.total - row.unfinished;
    return h('tr.flow', {'data-key': 'b' + row.id}, h('td.nowrap', null, link('jobs', {batch: row.id}, row.id + (row.label ?
      ' · ' + cut(row.label, 40) : ''))),
      h('td.grow', null, h('div.progress', {role: 'progressbar', 'aria-valuemin': 0, 'aria-valuemax': row.total, 'aria-valuenow': ended,
        'aria-label': 'Batch ' + row.id}, [['completed', row.jobs.completed + gone], ['processing', row.jobs.processing], ['failed',
          row.jobs.failed],
        ['dead', row.jobs.dead], ['cancelled', row.jobs.cancelled]].map(([word, count]) => count ? h('div', {class: word, title:
          `${count} ${word}`,
          style: {width: 100 * count / Math.max(1, row.total) + '%'}}) : null))),
      h('td.number.end.nowrap', null, `${number(ended)} of ${number(row.total)}`), h('td.wider', null, when(row.created_at)));
  }), 'No batches: a file of jobs and each run is one'))];

const drawSchedules = rows => [
  h('h1', null, 'Schedules'),
  h('section.card', {'aria-label': 'Schedules'}, table('Schedules', ['Schedule', 'State', 'Times', 'Next', 'Last', 'Command', ''],
    rows.map(row => {
    const verb = (word, text, kind, done) => h('button.slim' + kind, {type: 'button', style: {'margin-left': '6px'}, 'aria-label':
      text + ' ' + row.name,
      onclick: () => change('schedule', {verb: word, name: row.name}, done || (() => `${row.name}: done`))}, text);
    return h('tr.flow', {'data-key': 's' + row.name}, h('td.nowrap', null, link('jobs', {schedule: row.name}, row.name)),
      h('td', null, state(row.error ? 'broken' : row.paused ? 'paused' : 'open')),
      h('td.nowrap', null, h('code', null, row.spec || 'every ' + span(row.every)),
        row.tz && row.spec !== '@reboot' ? h('span.dim.small', null, ' ' + row.tz) : null),
      h('td', {'data-title': 'next'}, row.error ? h('span.dead', null, row.error) : when(row.next_at)),
      h('td.nowrap', {'data-title': 'last'}, row.last_job ? ['job ', jobLink(row.last_job), row.last_at ? [', ', when(row.last_at)] : ''] :
        h('span.dim', null, '–')),
      h('td.grow', null, h('code.cut', null, oneLine([row.command].flat().join(' ')))),
      h('td.buttons.nowrap', null, write(verb('run', 'Run now', '', result => `${row.name}: job ${result.id}`),
        verb(row.paused ? 'resume' : 'pause', row.paused ? 'Resume' : 'Pause', ''))));
  }), 'No schedules: `queuectl cron add` makes one'))];

const drawConfig = rows => [
  h('h1', null, 'Settings'),
  h('section.card', {'aria-label': 'Settings'}, table('Settings', ['Setting', 'Value', '~Default', 'Meaning', ''], rows.map(row => {
    const input = field(row, 'value', row.key, value => change('config', {key: row.key, value}, row.key + ' is set'), row.meaning);
    input.style.setProperty('width', '150px');
    return h('tr.flow', {'data-key': row.key}, h('td', null, h('code', null, row.key)), h('td.end', null, input),
      h('td.wider', null, h('code.dim', null, row.default)), h('td.grow', null, h('span.small', null, withCode(row.meaning))),
      h('td.buttons', null, write(row.value !== row.default ? h('button.slim', {type: 'button', 'aria-label': 'Reset ' + row.key,
        onclick: () => change('config', {key: row.key, value: null}, row.key + ' is back at its default')}, 'Reset') : null)));
  }), ''))];

const drawGone = () => [h('h1', null, 'There is no such job'), h('p.dim', null, 'It was removed, or it never existed. ',
  link('jobs', null, 'All jobs'))];

async function loadNew(query) {
  return {options: await get('options'), like: query.like ? await get('job', {id: query.like}) : null};
}
const EXAMPLES = {DURATION: '90s, 5m, 2h, 7d', TIME: '09:00, 2030-01-31 18:00', CODES: '1,75,128-159', 'K=V': 'NAME=value'};
const COMMON = ['queue', 'name', 'priority', 'delay', 'max_retries', 'timeout', 'cwd'];
function drawNew({options, like}) {
  const known = like ? {...like, name: '', delay: '', unique: '', key: like.key} : {};
  const line = option => {
    const value = known[option.name], shown = value === null || value === undefined || typeof value === 'object' || value === false ?
      '' : String(value);
    const id = 'option-' + option.name, hint = h('p.dim.small', {id: id + '-hint'}, withCode(option.meaning));
    return [h('label', {for: id}, option.name.replace(/_/g, ' ')), h('div', null, option.metavar === null ?
      h('input', {type: 'checkbox', id, name: option.name, 'aria-describedby': id + '-hint'}) :
      h('input', {id, name: option.name, value: COMMON.includes(option.name) || like && ['backoff', 'slots', 'key',
        'shell'].includes(option.name) ?
        shown : '', placeholder: EXAMPLES[option.metavar], 'aria-describedby': id + '-hint'}), hint)];
  };
  const byName = Object.fromEntries(options.map(option => [option.name, option]));
  return [
    h('h1', null, like ? `Enqueue job ${like.id} again` : 'New job'),
    h('form.card', {onsubmit: event => { event.preventDefault(); enqueue(event.target, like); }},
      h('div.form', null, h('label', {for: 'command'}, 'command'), h('div', null, h('textarea', {id: 'command', name: 'command', rows:
        4, required: true,
        spellcheck: 'false', value: like ? like.command : ''}), h('p.dim.small', null, like ?
          'It runs where that job ran, with its variables.' :
        'A shell command. It runs where the server was started, with its variables.')), COMMON.map(name => line(byName[name]))),
      h('details', null, h('summary', null, 'More options'), h('div.form', null,
        options.filter(option => !COMMON.includes(option.name) && option.name !== 'stdin').map(line))),
      h('p', null, h('button.main', {type: 'submit'}, 'Enqueue')))];
}
async function enqueue(form, like) {
  const job = like ? {like: like.id} : {};
  for (const input of form.elements) {
    if (!input.name || input.name === 'cwd' && like && input.value === like.cwd) continue;
    const text = input.value.trim();
    if (input.type === 'checkbox' ? input.checked : text) {
      job[input.name] = input.type === 'checkbox' || (input.name === 'command' ? input.value : text);
    }
  }
  const result = await change('enqueue', job, ({id}) => 'Enqueued as job ' + id);
  if (result) location.hash = '#/job/' + result.id;
}

const PAGES = {
  '': {title: 'Overview', load: () => get('overview'), draw: drawOverview},
  jobs: {title: 'Jobs', load: loadJobs, draw: drawJobs},
  job: {load: (query, id) => get('job', {id}), draw: drawJob, after: (job, fresh) =>
    fresh || log.id !== job.id || job.attempt > log.newest ? (log.newest = job.attempt, log.open(job.id, job.attempt)) : log.read()},
  dead: {title: 'Dead', load: () => get('dlq'), draw: drawDead},
  batches: {title: 'Batches', load: () => get('batches'), draw: drawBatches},
  schedules: {title: 'Schedules', load: () => get('schedules'), draw: drawSchedules},
  new: {title: 'New job', load: loadNew, draw: drawNew, still: true, writes: true},
  config: {title: 'Settings', load: () => get('config'), draw: drawConfig}};
const pages = Object.entries(PAGES).filter(([, page]) => page.title && !(page.writes && READ_ONLY));

// -- what is shown: the address says it; it is drawn again when the queue has changed --

let shown = {}, busy = false, again = false, search = false;
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?'), [name, id] = path.split('/');
  return {name: PAGES.hasOwnProperty(name) ? name : '', id, query: Object.fromEntries(new URLSearchParams(query))};
}
function draw() {
  const {page, data, query, fresh} = shown;
  if (!data) return;
  fill($('#main'), page.draw(data, query).flat().filter(Boolean));
  if (page.after) page.after(data, fresh);
  if (search && document.querySelector('[data-filter=text]')) { document.querySelector('[data-filter=text]').focus(); search = false; }
  shown.fresh = false;
}
async function refresh() {
  if (busy) { again = true; return; }
  const wanted = shown, began = performance.now();
  if (wanted.page.still && wanted.data) return;
  busy = true;
  const show = data => {  // a part, the first time
    if (wanted !== shown) return false;
    if (!wanted.data || wanted.data.looking) { wanted.data = data; draw(); }
    return true;
  };
  try {
    const data = await wanted.page.load(wanted.query, wanted.id, show);
    if (wanted === shown) { shown.data = data; draw(); trouble('load', null); }
  } catch (error) {
    const gone = error.status === 404;
    if (wanted === shown) { trouble('load', gone ? null : error.message); again = !gone; }
    if (wanted === shown && gone) { shown.data = null; fill($('#main'), drawGone()); }
  }
  // at most so often, however much happens, and however long it takes
  if (wanted === shown) setTimeout(() => {
    if (wanted !== shown) return;
    busy = false;
    if (again) { again = false; refresh(); }
  }, Math.max(troubles.load ? 2000 : 700, 9 * (performance.now() - began)));
}
function navigate() {
  const {name, id, query} = place(), other = name !== shown.name;
  shown = {page: PAGES[name], name, id, query, fresh: true};
  document.title = (PAGES[name].title || 'Job ' + id) + ' · queuectl';
  fill($('nav'), pages.map(([key, page]) => h('a', {href: '#/' + key, 'aria-current': key === name ? 'page' :
    key === 'jobs' && name === 'job' ? 'true' : null}, page.title)));
  $('nav [aria-current]')?.scrollIntoView({block: 'nearest', inline: 'center'});
  if (other) {
    chosen.clear();
    $('#main').replaceChildren();
    $('#main').focus({preventScroll: true});
    scrollTo(0, 0);
  }
  busy = false;
  refresh();
}
addEventListener('hashchange', navigate);

// -- keys --

const KEYS = [['/', 'search jobs'], ['j k', 'next, previous row'], ['Enter', 'open the row'], ['x', 'choose the row'], ['r c l d',
  'retry, cancel, hold, delete: what is chosen, or the row'], ['g o, g j, g d', 'overview, jobs, dead letter queue'],
    ['g b, g s, g n, g c',
  'batches, schedules, new job, settings'], ['?', 'this help']];
const GO = {o: '', j: 'jobs', d: 'dead', b: 'batches', s: 'schedules', n: 'new', c: 'config'};
const DO = {r: 'retry', c: 'cancel', l: 'hold', d: 'remove'};
let before = null;
addEventListener('keydown', event => {
  const {key} = event, last = before;
  before = null;
  if (event.ctrlKey || event.metaKey || event.altKey || $('#dialog').open) return;
  if (event.target.matches('input:not([type=checkbox]), textarea, select')) {
    if (key !== 'Escape') return;
    event.preventDefault();  // the browser would empty the search
    event.target.blur();
    return;
  }
  const rows = [...document.querySelectorAll('tr[tabindex]')], at = rows.indexOf(document.activeElement);
  if (last === 'g' && key in GO) location.hash = '#/' + GO[key];
  else if (key === 'g') before = 'g';
  else if (key === '?') dialog('Keys', h('dl.facts', null, KEYS.map(([keys, meaning]) => [h('dt', null, keys.split(/( |, )/).map((one, i) =>
    i % 2 ? one : h('kbd', null, one))),
    h('dd', null, meaning)])), []);
  else if (key === '/') {
    const box = document.querySelector('[data-filter=text]');
    if (box) box.focus(); else { location.hash = '#/jobs'; search = true; }
  } else if ((key === 'j' || key === 'k') && rows.length) rows[Math.max(0, Math.min(rows.length - 1, at + (key === 'j' ? 1 :
    -1)))].focus();
  else if (key in DO && !READ_ONLY) {
    const ids = chosen.size ? [...chosen] : at >= 0 ? [+rows[at].dataset.id] : shown.name === 'job' && shown.data ? [shown.data.id] : [];
    if (!ids.length) return;
    act(DO[key], {ids}, ids.length === 1 ? 'job ' + ids[0] : plural(ids.length, 'chosen job'));
  } else return;
  event.preventDefault();
});

setInterval(() => { if (shown.name === 'job' && !document.hidden) log.read(); if (shown.name === '' && !document.hidden) draw(); }, 1000);
navigate();
connect();
"""


# == Web ===============================================================================
# `queuectl web`: a server for the page above and for the JSON that it reads.  The right to ask is checked before anything is read.
# Calls Page, Commands, Metrics, Views, Reports, Store.

WEB_CONNECTIONS = 100        # at once; each has a thread
WEB_STREAMS = 64             # of these, pages that wait for changes
WEB_REQUEST_S = 10.0         # how long a request may take to arrive
WEB_BODY = STDIN_LIMIT + 2**17
WEB_LOG = 2**18              # bytes of a log in one answer
WEB_PATIENCE_S = 2.0         # how long a request waits for a locked database
WEB_LOOK_S = 0.25            # how often the server looks for changes
WEB_GLANCE_S = 60.0          # how often it looks whether the database is damaged
WEB_OVERDUE_S = 600.0        # a ready job that has waited for longer is one of the overview's findings
WEB_ROWS = 50                # workers that the overview shows
WEB_HEAD = 2**17             # bytes of a request's head
WEB_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
               "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}
WEB_ERRORS = (UserError, QueueGone, sqlite3.Error, OSError)  # NotFound is answered by 404, any other UserError by 400, the rest by 503
SECRET = "••••••"            # in place of the value of each variable


class Refusal(Exception):
    """A request that is refused before the queue is asked: an HTTP status and why."""


WEB_TEXTS, WEB_NUMBERS = ("queue", "name", "text", "label", "schedule"), ("batch", "like")
WEB_FILTERS = WEB_TEXTS + WEB_NUMBERS + ("state",)


def refuse_unknown(asked: dict, *known) -> None:
    """Refuse a request with a field that does not exist: a misspelt filter would match every job."""
    odd = sorted(set(asked) - set(known))
    if odd:
        raise UserError("there is no %s here%s: it takes %s" % (quoted(odd[0]), nearest(odd[0], known), ", ".join(known)))


def web_states(query: dict) -> list:
    return [parse_choice(state, "state", LISTED_STATES) for state in query.get("state", "").split(",") if state]


def web_filters(query: dict) -> dict:
    """Return the filters of a request for jobs."""
    filters = {key: query[key] for key in WEB_TEXTS if query.get(key)}
    for key in WEB_NUMBERS:
        if query.get(key):
            filters[key] = parse_number(query[key], key, 0, LARGEST, int)
    return dict(filters, states=web_states(query))


def web_number(query: dict, key: str, high: int, default=None):
    return parse_number(query[key], key, 0, high, int) if query.get(key) else default


def web_place(query: dict, order: str):
    """Return where a page of jobs begins, as Browse.page takes it: an answer's `next` was that."""
    if order != "next" or not query.get("before"):
        return web_number(query, "before", LARGEST)
    priority, _, last = query["before"].partition(",")
    return parse_number(priority, "before", -LARGEST, LARGEST, int), parse_number(last, "before", 0, LARGEST, int)


def web_jobs(store, query: dict) -> dict:
    refuse_unknown(query, *WEB_FILTERS, "order", "before", "limit")
    order = parse_choice(query.get("order", "newest"), "order", store.browse.ORDERS)
    limit = parse_number(query.get("limit") or 50, "limit", 1, 500, int)
    jobs, onward = store.browse.page(limit, web_place(query, order), order, **web_filters(query))
    rows, onward = [job.to_dict() for job in jobs], "%d,%d" % onward if order == "next" and onward else onward
    return {"jobs": [dict(row, command=row["command"][:1000]) for row in rows], "next": onward,
            "counts": store.queues.counts(query.get("queue"))}


def web_job(store, query: dict) -> dict:
    """Return what the page of one job shows: `show --json`, `explain`, its family and the names of its variables."""
    job = store.look.job(query.get("id", ""))
    reasons = [reason_text(job, reason) for reason in why_waiting(store, job) + why_workers_wait(store, job)]
    parents, children = store.browse.family(job)
    report = job_report(store, job, children)
    names = sorted(entry.partition("=")[0] for entry in text_of(store.queues.env(job.env)).split("\0") if entry)
    return dict(report, **report.pop("job").to_dict(), reasons=reasons, parents=parents, variables=dict.fromkeys(names, SECRET))


def web_log(store, query: dict) -> dict:
    """Return a part of an attempt's output: from `offset` on, else its end."""
    import codecs
    job = store.look.job(query.get("id", ""))
    attempt = web_number(query, "attempt", job.attempt, job.attempt)
    live = running(store, job, attempt)
    try:
        with open(output_of(store, job, attempt), "rb", opener=no_link) as file:
            size = file.seek(0, os.SEEK_END)
            start = min(web_number(query, "offset", 2**62, max(0, size - WEB_LOG)), size)
            file.seek(start)
            data = file.read(WEB_LOG)
    except FileNotFoundError:
        start, size, data = 0, 0, b""
    text, used = codecs.utf_8_decode(data, "replace", not live or start + len(data) < size)  # a character may come in two parts
    return {"start": start, "next": start + used, "size": size, "running": live, "attempt": attempt, "text": text}


def web_failures(store) -> list:
    """Return the latest attempts that failed, each with the last line of its output."""
    found = []
    for job, attempt in store.browse.failures(6):
        lines = last_lines(store.db.files.log(job.id, attempt), 1)
        found.append(dict(job.to_dict(), last_line=lines[-1][:300] if lines else None, attempt=attempt))
    return found


def web_overview(store, ends, damage) -> dict:
    """Return what the first page shows.  damage: findings of glance_at_database, which takes too long for each answer."""
    findings = worst_first(chain(damage, examine_jobs(store, max_wait=WEB_OVERDUE_S), examine_schedules(store), examine_workers(store),
                                 examine_disk(store.db.path)))
    recent = store.look.finished_since(store.db.clock() - 3600, 1000)
    rows = [row for row in schedule_report(store, store.schedules.list()) if not row["paused"]]
    coming = sorted(rows, key=lambda row: row["next_at"] or NEVER)
    status = status_json(status_report(store))
    busy_first = sorted(status["workers"], key=lambda fact: (fact["job"] is None, fact["id"]))
    for fact in busy_first[:WEB_ROWS]:
        job = store.look.find(fact["job"]) if fact["job"] else None
        shown = job.to_dict() if job else {}
        fact.update(command=(shown.get("name") or shown.get("command", ""))[:200], running_since=shown.get("started_at"))
    return dict(status, workers=busy_first[:WEB_ROWS], count=len(busy_first), queues=queue_report(store), schedules=coming[:6],
                failures=web_failures(store), recent=attempt_stats(recent) if recent else None, ends=ends,
                findings=[finding_json(found) for found in findings])


def web_config(store) -> list:
    values = store.settings.values()
    return [{"key": key, "value": setting.text(values[key]), "default": setting.text(setting.default), "meaning": setting.meaning}
            for key, setting in SETTINGS.items()]


def web_options() -> list:
    return [{"name": option.name, "metavar": option.metavar, "meaning": option.meaning} for option in JOB_OPTIONS.values()]


# What may be read: the last part of the path, and the function that makes the answer of (store, query).
WEB_READS = {
    "status": lambda store, query: status_json(status_report(store)),
    "jobs": web_jobs, "job": web_job, "log": web_log,
    "dlq": lambda store, query: store.browse.dead_groups(),
    "queues": lambda store, query: queue_report(store),
    "batches": lambda store, query: [batch_report(store, batch) for batch in store.queues.batches(30)],
    "schedules": lambda store, query: schedule_report(store, store.schedules.list()),
    "stats": lambda store, query: stats_report(store, parse_duration(query.get("since", "1d"), "since", 1))[0],
    "events": lambda store, query: as_json(store.look.events(web_number(query, "after", LARGEST, 0))),
    "config": lambda store, query: web_config(store),
    "options": lambda store, query: web_options(),
}


def web_act(store, asked: dict) -> dict:
    """Do to at most 500 jobs what a page asks for, or with `dry` count them; `next`: where to go on among all that match."""
    refuse_unknown(asked, "verb", "ids", "filter", "dry")
    change = CHANGES[parse_choice(asked.get("verb"), "verb", tuple(CHANGES))]
    onward, query = None, asked.get("filter")
    if query is not None and asked.get("ids") is not None:
        raise UserError("ids and filter exclude each other: give one")
    if query is None:
        jobs = list(filter(None, map(store.look.find, parse_refs(asked.get("ids"), "ids")[:AT_ONCE])))
    elif not isinstance(query, dict):
        raise UserError("filter must be a JSON object")
    else:
        refuse_unknown(query, *WEB_FILTERS, "before")
        query = {key: str(value) for key, value in query.items()}
        filters = web_filters(query)
        filters["states"] = [
            state for state in (*change.states, "held") if state in (filters["states"] or change.states)] or ["none"]
        jobs, onward = store.browse.page(5000 if asked.get("dry") else AT_ONCE, web_number(query, "before", LARGEST), **filters)
    ids = [job.id for job in jobs if job.state in change.states]
    if asked.get("dry"):
        return {"count": len(ids), "next": onward}
    store.followups.keep_moved()
    good, results = RESULTS[change.verb][1], change.apply(store, ids)
    results = store.followups.with_moved(results, next(iter(good)))
    return {"done": sum(result in good for _, result in results), "next": onward,
            "left": [result_text(change.verb, job_id, result) for job_id, result in results if result not in good][:20]}


def web_enqueue(store, asked: dict) -> dict:
    """Store one job; with `like`, in the directory and with the variables of that job."""
    asked, place = dict(asked), {}
    if "like" in asked:
        job = store.look.job(asked.pop("like"))
        place = {"cwd": job.cwd, "base": store.queues.env(job.env)}
        asked = dict({"umask": job.to_dict()["umask"]}, **asked)
    return {"id": store.enqueue_plan(Plan([asked], origin=place)).ids[0][0]}


def web_queue(store, asked: dict) -> dict:
    """Pause or resume a queue, or set its limit or rate."""
    refuse_unknown(asked, "name", "paused", "max_running", "rate")
    name, changes = parse_queue(asked.get("name")), {}
    if name not in [row.name for row in store.queues.list()]:
        raise NotFound("no queue %s: see `%s queue list`" % (quoted(name), PROGRAM))
    if "paused" in asked:
        changes["paused"] = int(parse_flag(asked["paused"], "paused"))
    if "max_running" in asked:
        limit = asked["max_running"]
        changes["max_running"] = None if limit in (None, "", "none") else parse_number(limit, "the limit", 0, 10**6, int)
    if "rate" in asked:
        rate, every = parse_rate(asked["rate"] or "none")
        changes.update(rate=rate, every=every, next_at=0)
    if changes:
        store.queues.set(name, **changes)
    return {}


def web_schedule(store, asked: dict) -> dict:
    refuse_unknown(asked, "name", "verb")
    verb, name = parse_choice(asked.get("verb"), "verb", ("pause", "resume", "run", "remove")), str(asked.get("name"))
    job = {"pause": store.schedules.pause, "resume": store.schedules.resume, "run": store.schedules.run,
           "remove": store.schedules.remove}[verb](name)
    return {"id": job} if verb == "run" else {}


def web_set(store, asked: dict) -> dict:
    """Set a setting, or with a value of null put it back to its default."""
    refuse_unknown(asked, "key", "value")
    key = setting_key(asked.get("key"))
    if "value" not in asked:
        raise UserError("a value is needed: null puts the setting back to its default")
    store.settings.unset(key) if asked.get("value") is None else store.settings.set(key, str(asked["value"]))
    return {}


# What may be changed, as above; with --read-only there is none of it.
WEB_WRITES = {"act": web_act, "enqueue": web_enqueue, "queue": web_queue, "schedule": web_schedule, "config": web_set}


class Web:
    """The server of one queue.  Each request has a thread and opens the queue itself, so none depends on another or on the past."""

    def __init__(self, database: str, token: str, read_only: bool, base: str, hosts):
        import threading
        self.database = database
        self.base = base
        self.writes = {} if read_only else WEB_WRITES
        self._hosts = hosts            # names in a Host header; any address is allowed too, because only a name can be rebound
        self._token = token
        self._changed = threading.Condition()
        self._version = 0              # of the data, counted from the start of this server
        self._trouble = None           # why the queue can't be read
        self._answers = {}             # url -> (version, monotonic time, data)
        self._making = {}              # url -> the lock of the thread that makes its answer: others take what it has made
        self._open = {}                # connection -> when it must have sent its request; None: it has
        self._streams = 0
        self._damage = []              # findings of the last look at the database's structure
        self._ends = {}                # seconds of a bucket -> {number of the bucket: [attempts that ended well, that failed]}
        self._last_end = None
        page = PAGE_HTML.replace("{STYLE}", PAGE_STYLE).replace("{SCRIPT}", PAGE_SCRIPT).replace(
            "{VERBS}", " ".join("%s:%s" % (verb, ",".join(states)) for states, verb, _ in CHANGES.values()))
        self.page = page.replace("{CSRF}", derived(token, "csrf")).replace("{READ_ONLY}", "yes" if read_only else "no")
        self.policy = ("default-src 'none'; connect-src 'self'; img-src data:; style-src '%s'; script-src '%s'; base-uri 'none'; "
                       "form-action 'none'; frame-ancestors 'none'" % (source_hash(PAGE_STYLE), source_hash(PAGE_SCRIPT)))

    # -- connections --

    def enter(self, connection) -> bool:
        """Count a connection; if there are too many, end the oldest that has not sent its request yet."""
        with self._changed:
            if len(self._open) >= WEB_CONNECTIONS:
                slow = next((other for other, due in self._open.items() if due is not None), None)
                if slow is None:
                    return False
                self._cut(slow)
            self._open[connection] = time.monotonic() + WEB_REQUEST_S
        return True

    def leave(self, connection) -> None:
        with self._changed:
            self._open.pop(connection, None)

    def _cut(self, connection) -> None:
        self._open.pop(connection, None)
        try:
            connection.shutdown(2)  # SHUT_RDWR: its thread wakes up and ends
        except OSError:
            pass  # it is closed already

    def watch(self) -> None:
        """Look for changes, and for requests that take too long, until the process ends."""
        store = None
        while True:
            try:
                if store is None:
                    store, version, glanced_at = Store.existing(self.database, WEB_PATIENCE_S), None, 0.0
                    self._ends, self._last_end = {}, None
                store.db.check_file()
                before, version = version, store.db.changes()
                if version != before or self._trouble:
                    self._count_ends(store)
                    self.tell(None)
                if time.monotonic() > glanced_at + WEB_GLANCE_S:
                    self._damage, glanced_at = list(glance_at_database(store)), time.monotonic()
            except Exception as error:  # whatever it is, the pages must be told, and the next look may succeed
                known = isinstance(error, WEB_ERRORS)
                self.tell(explain_error(error, self.database) if known else internal_error(error))
                if store is not None:
                    store.close()
                store = None
            with self._changed:
                for late in [other for other, due in self._open.items() if due is not None and due < time.monotonic()]:
                    self._cut(late)
            time.sleep(WEB_LOOK_S)

    def tell(self, trouble) -> None:
        """Wake up the pages: something has changed, or the queue can't be read."""
        with self._changed:
            if trouble is None or trouble != self._trouble:
                self._version += 1
                self._trouble = trouble
                self._changed.notify_all()

    def _count_ends(self, store) -> None:
        """Add the attempts that ended since the last call to the counts of the last hour and day."""
        after = max(0, store.look.last_event() - 200000) if self._last_end is None else self._last_end
        rows, self._last_end = store.browse.ends(after)
        for width, kept in ((1, 3600), (60, 1440)):
            counts = dict(self._ends.get(width, {}))
            for second, failed, count in rows:
                bucket = counts.get(second // width, (0, 0))
                counts[second // width] = (bucket[0] + (0 if failed else count), bucket[1] + (count if failed else 0))
            oldest = int(store.db.clock()) // width - kept
            self._ends[width] = {bucket: count for bucket, count in counts.items() if bucket >= oldest}

    def ends(self) -> dict:
        """Return (start of the second or minute, ended well, failed) of the last hour and day."""
        return {name: [(bucket * width, *count) for bucket, count in sorted(self._ends.get(width, {}).items())]
                for name, width in (("seconds", 1), ("minutes", 60))}

    # -- requests --

    def answer(self, request) -> None:
        """Answer one request, whatever it holds."""
        import json
        try:
            path, query = self._admitted(request)
            if request.command != "POST":
                self._arrived(request)
            if request.command == "POST":
                self.send(request, 200, self._change(path, request), "application/json")
            elif path == "api/live":
                self._stream(request)
            elif path == "health":
                report = health_report(self.database)
                self.send(request, 503 if report["level"] == "bad" else 200, json.dumps(health_json(report)), "application/json")
            elif path == "":
                self.send(request, 200, self.page.replace("{BASE}", self.base), "text/html", {"Set-Cookie": self._cookie(request)})
            elif path == "api/log" and "download" in query:
                self._download(request, query)
            else:
                self.send(request, 200, *self._data(request.path, path, query))
        except Refusal as refusal:
            self.send(request, refusal.args[0], refusal.args[1] + "\n")
        except WEB_ERRORS as error:
            if not isinstance(error, (ConnectionError, TimeoutError)):
                status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, UserError) else 503
                self.send(request, status, explain_error(error, self.database) + "\n")
        except Exception as error:
            self.send(request, 500, internal_error(error) + "\n")

    def _arrived(self, request) -> None:
        with self._changed:
            self._open[request.connection] = None

    def _admitted(self, request) -> tuple:
        """Return (path below --base-path, query) of a request that may be answered; raise Refusal for any other."""
        from urllib.parse import parse_qsl, urlsplit
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        try:
            url, name, asking = urlsplit(request.path), urlsplit("//" + host).hostname or "", urlsplit(origin or "").netloc
            query = dict(parse_qsl(url.query, max_num_fields=50))
        except ValueError:
            raise Refusal(400, "this is not a valid address") from None
        if name not in self._hosts and not is_address(name):
            raise Refusal(403, "the Host %s is not one of this server: give it with --name" % quoted(host))
        foreign = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")  # same-site: another port of this machine too
        if origin is not None and asking != host or foreign and (
                request.headers.get("Sec-Fetch-Mode") != "navigate" or request.command != "GET"):
            raise Refusal(403, "a page of another site may not ask this server")
        if not (url.path + "/").startswith(self.base + "/"):
            raise Refusal(404, "there is no such page")
        path = url.path[len(self.base):].strip("/")
        self._check_token(request, path, query)
        return path, query

    def _check_token(self, request, path: str, query: dict) -> None:
        """Refuse a request without the token; a change also needs the mark of our own page, unless it comes with the token itself."""
        from hmac import compare_digest
        from http.cookies import CookieError, SimpleCookie
        try:
            cookie = SimpleCookie(request.headers.get("Cookie", "")).get(self._cookie_name(request))
        except CookieError:
            cookie = None
        bearer = "Bearer " + self._token
        direct = compare_digest(request.headers.get("Authorization", "").encode(), bearer.encode())
        if not (direct or cookie and compare_digest(cookie.value.encode(), derived(self._token, "cookie").encode())
                or path == "" and compare_digest(query.get("token", "").encode(), self._token.encode())):
            raise Refusal(401, "open the address that `%s web` printed: it holds the token that lets you in" % PROGRAM)
        mark = request.headers.get("X-CSRF-Token", "").encode()
        if request.command == "POST" and not direct and not compare_digest(mark, derived(self._token, "csrf").encode()):
            raise Refusal(403, "the mark of our page is missing: reload it")

    def _cookie_name(self, request) -> str:
        return "%s_%d" % (PROGRAM, request.server.server_address[1])

    def _cookie(self, request) -> str:
        return "%s=%s; Path=%s/; HttpOnly; SameSite=Strict%s" % (
            self._cookie_name(request), derived(self._token, "cookie"), self.base, "; Secure" if request.server.secure else "")

    def _change(self, path: str, request) -> str:
        """Make the change that a page asks for; return the answer."""
        import json
        change = self.writes.get(path[4:]) if path.startswith("api/") else None
        if change is None:
            raise Refusal(404, "there is nothing to change here")
        asked = self._body(request)
        self._arrived(request)
        with Store.existing(self.database, WEB_PATIENCE_S) as store:
            done = change(store, asked)
        self.tell(None)
        return json.dumps(done)

    def _data(self, url: str, path: str, query: dict) -> tuple:
        """Return (text, its type) of an answer from the queue.  Pages that show the same share one answer per change."""
        import json
        import threading
        reads = {"api/" + name: read for name, read in WEB_READS.items()}
        reads["api/overview"] = lambda store, query: web_overview(store, self.ends(), self._damage)
        reads["metrics"] = lambda store, query: metrics_text(metrics_report(store))
        kind = "text/plain; version=0.0.4" if path == "metrics" else "application/json"
        if path not in reads:
            raise Refusal(404, "there is no such page")
        with self._changed:
            if len(self._making) > 50:  # an answer that failed is among these alone
                self._answers, self._making = {}, {}
            lock = self._making.setdefault(url, threading.Lock())
        with lock:
            version, known = self._version, self._answers.get(url)
            if known and known[0] == version and time.monotonic() - known[1] < 1:
                return known[2], kind
            with Store.existing(self.database, WEB_PATIENCE_S) as store:
                data = reads[path](store, query)
            text = data if path == "metrics" else json.dumps(as_json(data))
            if path != "api/log" and len(text) < 2**20:
                self._answers[url] = version, time.monotonic(), text
        return text, kind

    def _body(self, request) -> dict:
        import json
        length = request.headers.get("Content-Length", "")
        if not request.headers.get("Content-Type", "").startswith("application/json"):
            raise Refusal(415, "JSON is needed")
        if not length.isdecimal() or "Transfer-Encoding" in request.headers:
            raise Refusal(411, "a body is read by its Content-Length: send that alone")
        if int(length) > WEB_BODY:
            raise Refusal(413, "at most %d bytes may be sent" % WEB_BODY)
        try:
            body = json.loads(request.rfile.read(int(length)).decode("utf-8"))
        except (ValueError, RecursionError):
            raise Refusal(400, "this is not valid JSON") from None
        if not isinstance(body, dict):
            raise Refusal(400, "a JSON object is needed")
        return body

    def _head(self, request, status: int, kind: str, more: dict) -> None:
        request.send_response(status)
        for name, value in dict(WEB_HEADERS, **{"Content-Type": kind, "Content-Security-Policy": self.policy}, **more).items():
            request.send_header(name, value)
        request.end_headers()

    def send(self, request, status: int, text: str, kind: str = "text/plain", more=()) -> None:
        data = text.encode("utf-8", "replace")
        kind += "" if kind == "application/json" else "; charset=utf-8"
        try:
            self._head(request, status, kind, dict(more, **{"Content-Length": str(len(data))}))
            if request.command != "HEAD":
                request.wfile.write(data)
        except (OSError, ValueError):
            pass  # the client has gone

    def _download(self, request, query: dict) -> None:
        with Store.existing(self.database, WEB_PATIENCE_S) as store:
            job = store.look.job(query.get("id", ""))
            path = output_of(store, job, web_number(query, "attempt", job.attempt, job.attempt))
        if not os.path.exists(path):
            raise Refusal(404, "job %d has written nothing" % job.id)
        with open(path, "rb", opener=no_link) as file:
            size = os.fstat(file.fileno()).st_size
            self._head(request, 200, "application/octet-stream", {
                "Content-Disposition": 'attachment; filename="job-%d.log"' % job.id, "Content-Length": str(size)})
            copy_bytes(file, request.wfile, size if request.command == "GET" else 0)

    def _stream(self, request) -> None:
        """Tell a page of each change, and every 5 seconds that the server lives (server-sent events)."""
        import json
        with self._changed:
            if self._streams >= WEB_STREAMS:
                raise Refusal(503, "%d pages are open already" % WEB_STREAMS)
            self._streams += 1
        try:
            self._head(request, 200, "text/event-stream", {"X-Accel-Buffering": "no"})
            seen, page = None, source_hash(self.page)[7:23]
            while request.command == "GET":
                with self._changed:
                    if seen == self._version:
                        self._changed.wait(5)
                    seen, trouble = self._version, self._trouble
                request.wfile.write(b"data: %s\n\n" % json.dumps({"version": seen, "trouble": trouble, "page": page}).encode())
        finally:
            with self._changed:
                self._streams -= 1


def derived(token: str, purpose: str) -> str:
    """Return what stands for the token where the token itself must not be."""
    import hmac
    return hmac.new(token.encode(), purpose.encode(), "sha256").hexdigest()


def source_hash(text: str) -> str:
    """Return a script or style as Content-Security-Policy names it."""
    import base64
    import hashlib
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def is_address(name: str) -> bool:
    import ipaddress
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


class Head:
    """What a client sends, up to WEB_HEAD bytes of lines: http.server alone takes a hundred lines of 64 KiB from anyone."""

    def __init__(self, file):
        self.read, self.close, self._readline = file.read, file.close, file.readline
        self.closed = False  # http.server asks a file for this
        self._left = WEB_HEAD

    def readline(self, most: int = -1) -> bytes:
        from http.client import LineTooLong
        line = self._readline(most)
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        return line


def web_handler(web):
    """Return the class of http.server that hands each request to `web`."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = WEB_REQUEST_S
        server_version, sys_version = PROGRAM, ""

        def setup(self):
            super().setup()
            self.rfile = Head(self.rfile)

        def do_GET(self):
            web.answer(self)

        do_HEAD = do_POST = do_GET

        def send_error(self, code, message=None, explain=None):
            web.send(self, code, "%s\n" % plain(message or "this is not a request"))  # with our headers, unlike http.server's page

        def log_message(self, *_):
            pass  # the addresses hold names of jobs: no log has them

    return Handler


def web_server(web, address: tuple, tls):
    """Return a server that gives each connection a thread."""
    import socket
    import socketserver

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads, request_queue_size, secure = True, 64, tls is not None
        allow_reuse_address = hasattr(os, "fork")  # elsewhere it lets another program take the port
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

        def verify_request(self, request, _):
            return web.enter(request)

        def get_request(self):
            connection, client = super().get_request()
            if tls:  # the thread of the connection shakes hands when it first reads
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, client

        def shutdown_request(self, request):
            web.leave(request)
            super().shutdown_request(request)

        def handle_error(self, *_):
            pass  # the client has gone, or did not speak TLS

    return Server(address, web_handler(web))


def web_token(path: str) -> str:
    """Return the token of a queue, from the file that only its owner may read; it is made when it is first needed."""
    try:
        with open(path, opener=no_link) as file:
            token = file.read(200).strip()
        if len(token) >= 40 and token.isalnum():
            return token
    except FileNotFoundError:
        pass  # this is the first time
    token = os.urandom(32).hex()
    with create(path) as file:
        file.write(token.encode())
    return token


def cmd_web(args) -> None:
    """Serve until Ctrl-C."""
    import threading
    base = args.base_path.rstrip("/") if args.base_path else ""
    if base and (base[0] != "/" or base[:2] == "//" or not base.isascii() or not base.isprintable()
                 or any(char in base for char in " \"'<>;?#%\\")):
        raise UserError("--base-path must be a path such as /queue, not %s" % quoted(args.base_path))
    local = args.address in ("127.0.0.1", "::1", "localhost")
    if not local and not args.allow_remote:
        raise UserError("%s is not this machine alone: anyone who reaches that address and has the token can run any command as you. "
                        "With --allow-remote it is served (give --tls too, or put a reverse proxy before it)" % quoted(args.address))
    with open_queue(args) as store:
        store.db.files.make()  # a database that was restored alone has no directory
        database, token = store.db.path, web_token(os.path.join(store.db.files.root, "web.token"))
    if args.read_only:
        token = derived(token, "read-only")  # no server that writes takes it
    web = Web(database, token, args.read_only, base, {"localhost", *(name.lower() for name in args.name or ())})
    try:
        server = web_server(web, (args.address, args.port), tls_context(args.tls))
    except (OSError, OverflowError) as error:
        raise UserError("can't serve on %s, port %d (%s): give another --port or --address" % (
            plain(args.address), args.port, plain(error.strerror or str(error)))) from None
    threading.Thread(target=web.watch, daemon=True).start()
    host = "[%s]" % args.address if ":" in args.address else args.address
    url = "%s://%s:%d%s/?token=%s" % ("https" if args.tls else "http", host, server.server_address[1], base, token)
    out(url)
    if not local:
        talk("%s: anyone who reaches %s and has this address can run any command as you%s" % (
            PROGRAM, host, "" if args.tls else "; what is sent can be read on the way: give --tls"))
    sys.stdout.flush()
    if args.open:
        page = os.path.join(store.db.files.root, "web.html")
        threading.Thread(target=open_browser, args=(page, url), daemon=True).start()  # a browser in a terminal takes until its end
    server.serve_forever()


def tls_context(files):
    if not files:
        return None
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files)
    except (OSError, ssl.SSLError) as error:
        raise UserError("can't use %s with %s for TLS: %s" % (*map(plain, files), plain(error.strerror or str(error)))) from None
    return context


def open_browser(path: str, url: str) -> None:
    """Open the page by a file that only its owner may read: every user can see the arguments of a process, and so an address in them."""
    import webbrowser
    with create(path) as file:
        file.write(b'<!DOCTYPE html><meta http-equiv="refresh" content="0;url=%s">' % url.encode())
    webbrowser.open("file://" + os.path.abspath(path))


# == Command table =====================================================================
# The options of all commands, and the commands.
# Calls Web, Commands, Views and small helpers.

# The options of all commands but those of a job (see JOB_OPTIONS), one per line: set, flags, metavar, kind, default, meaning.
# The set is one that several commands take, or the name of one command, with a hyphen in place of a blank, or several of these.
# Words without `--` are positional.  metavar: `.` for a flag; with * any number of values, with + at least one, A+B for two.
# kind: of OPTION_KINDS or OPTION_PARSERS, or a range of whole numbers.  default: for a flag, the option that it sets.
# A metavar with ? may be left out: then the default counts.
OPTIONS = """\
job-id         id             ID        .        .     id or name of a job, or `last`
ids            ids            ID*       .        .     ids, names, ranges such as 5-8, or `last`
ids            --all          .         .        .     every job that this command accepts
filters,edit   --state        S*        states   .     jobs in this state (may be repeated): %(states)s
filters        --queue        NAME      .        .     jobs of this queue
filters        --name         GLOB      .        .     jobs whose name matches, as in 'nightly-*'
filters        --label        LABEL     .        .     jobs with this label
filters,edit   --schedule     SCHEDULE  .        .     jobs that this schedule has enqueued
filters,edit   --batch        B         .        .     jobs of this batch, or `last`
limit          --limit        N         0-%(most)d %(rows)d at most N rows, newest first; 0: all (%(rows)d)
queues         names          NAME*     .        .     names of queues
queues         --all          .         .        .     all queues
schedules      names          NAME+     .        .     names of schedules
setting        key            KEY       setting  .     name of a setting, as in `config list`
run            -j,--count     N         1-%(workers)d . parallel jobs (default: the available cores)
run            --file         FILE      .        .     read jobs from FILE (-: standard input), as `enqueue --file` does
values         -a,--arg-file  FILE*     .        .     values, one per line, as after :::: (-: standard input)
values         -0,--null      .         .        .     values in files end with NUL, as `find -print0` writes them
values         -n,--max-args  N         1-%(most)d . put N values into one command
values         --dry-run      .         .        .     only print the commands
run            -k,--keep-order .        .        .     print what jobs print in the order of the input
run            --output       HOW       output   .     when to print what jobs print: grouped (when a job ends), live, or none
run            --tag          .         .        .     begin each line with the name or id of its job
run            --group        CI        group    .     fold the output of each job in the log of github or gitlab
run            --results      DIR       .        .     write the output of each job to DIR, and a table
run            --joblog       FILE      .        .     write a line for each job to FILE, with the columns of GNU parallel
run            --fail-fast    WHEN?     failfast now   cancel the rest when a job has died: running jobs too (now), or not (soon)
run            --max-failures N         1-%(most)d . the same when N jobs have died
run            --total-timeout DURATION duration .     cancel the rest after this time (exit 124)
run            --resume       BATCH?    .        -     continue with the jobs that an interrupted run has left (the newest)
run            --retry-failed BATCH?    .        -     run again the jobs of a batch that did not complete (the newest)
run            --junit        FILE      .        .     write the results as JUnit XML to FILE
enqueue        --file         FILE      .        .     read jobs from FILE (-: standard input): one command per line, or JSON objects
enqueue        -q,--quiet     .         .        .     print only the id, on a terminal too
worker-start   -j,--count     N         1-%(workers)d 1 worker processes, and slots (1)
worker-start   --queue        NAMES     .        .     serve only these queues, separated by commas (all)
worker-start   --foreground   .         .        .     stay in the terminal, and print a log line per event
worker-start   --drain        .         .        .     end when nothing is left that can still run
worker-start   --max-jobs     N         1-%(most)d . end after N jobs, counted over all workers
worker-start   --idle-timeout DURATION  duration .     end when there has been no job for this long
worker-start   --nice         N         0-19     .     run jobs at this niceness, 0 to 19
worker-start   --load         MAX       load     .     start no job while the machine's load is above MAX
worker-start   --on           ENGINE    engine   .     hand jobs to a cluster (slurm): --count is its tasks, options for it follow --
worker-start   --pack         N         pack     auto  jobs per task of a cluster, or auto: about 5 minutes' worth (auto)
worker-start   --announce     JSON      .        .     .
worker-stop    --now          .         .        .     end running jobs now and give them back; the attempt is not charged
worker-scale   count          N         1-%(workers)d . worker processes from now on
_node          folder         DIR       .        .     .
_node          cores          N         .        .     .
_worker        supervisor     ID        .        .     .
_worker        queues         NAMES     .        .     .
_worker        reserved       FLAG      .        .     .
_worker        load           MAX       .        .     .
_worker        where          FD        .        .     .
list           --since        DURATION  duration .     jobs created within this time up to now
list           --sort         SORT      sort     .     order by %(sorts)s
list           --columns      LIST      columns  .     columns to show, separated by commas: %(columns)s
list           --tree         .         .        .     draw which job runs after which
list           --watch        .         .        .     draw the list again each second, until Ctrl-C
logs           --path         .         .        .     print where the output lies, instead of the output
logs           --attempt      N         .        .     output of this attempt (the latest)
logs           --all-attempts .         .        .     output of every attempt, one after the other
logs           -n,--lines     N         0-%(most)d . only the last N lines
logs           -f,--follow    .         .        .     continue until the jobs end, across their retries
stats          --since        DURATION  since    1d    attempts that ended within this time up to now (1d)
metrics        --output       FILE      .        .     write to FILE, which is replaced at once: for node_exporter's textfile collector
metrics        --grafana      .         .        .     print a dashboard that Grafana imports
metrics        --alerts       .         .        .     print alert rules for Prometheus
events         -f,--follow    .         .        .     continue with new events as they happen
events         --after        SEQ       0-%(most)d . only events with a higher number (all; with -f: only new events)
top            --once         .         .        .     draw one screen and end
web            --port         N         0-65535  8383  port of the page (8383); 0: any that is free
web            --open         .         .        .     open the page in a browser
web            --read-only    .         .        .     let the page change nothing
web            --address      ADDR      .        127.0.0.1 address to serve on (127.0.0.1: this machine alone)
web            --allow-remote .         .        .     serve on an address that other machines reach
web            --name         HOST*     .        .     a name that browsers use for this server, beside localhost (may be repeated)
web            --tls          CERT+KEY  .        .     serve over TLS with this certificate and key
web            --base-path    PREFIX    prefix   .     path below which a reverse proxy serves the page, as in /queue
rm             --older-than   DURATION  duration .     jobs that ended longer ago than this
edit           --in-queue     NAME      .        .     jobs of this queue (--queue, --name and --label are changes here)
edit           --named        GLOB      .        .     jobs whose name matches, as in 'nightly-*'
edit           --labelled     LABEL     .        .     jobs with this label
edit           --command      COMMAND   .        .     the shell command to run
wait           --timeout      DURATION  duration .     give up after this time (exit 124); --all, --queue, --state: what is unfinished now
cancel         --no-wait      .         .        .     only ask running jobs to end
queue-limit    name           NAME      .        .     name of a queue
queue-limit    limit          N         .        .     jobs that run at once, over all workers; none: no limit
queue-rate     name           NAME      .        .     name of a queue
queue-rate     rate           N/UNIT    .        .     starts per s, m, h or d, evenly spaced, as in 10/m; none: no limit
queue-set      name           NAME      .        .     name of a queue
queue-set      --engine-options OPTIONS text     .     options of a cluster that jobs of this queue need, as in '--gpus 1' (none)
engine-test    --timeout      DURATION  duration 60    how long the task may wait (1m)
batch-show     id             B         .        .     number of a batch, or `last`
cron-edit      name           NAME      .        .     name of a schedule
cron-edit      --cron         LINE      .        .     when it runs, as in '30 2 * * *'
cron-edit      --command      COMMAND   .        .     the shell command to run
cron-add,cron-edit --every    DURATION  interval .     time between two runs, instead of a cron line
cron-add,cron-edit --tz       ZONE      .        .     time zone of the cron line, such as Europe/Berlin or UTC (the local one)
cron-add       --misfire      RULE      misfire  once  what becomes of a time missed while nothing ran: once or skip (once)
cron-add       --overlap      OVERLAP   overlap  allow while a job of it is unfinished: skip, queue, replace it, or allow both (allow)
cron-edit      --misfire      RULE      misfire  .     what becomes of a time missed while nothing ran: once or skip
cron-edit      --overlap      OVERLAP   overlap  .     while a job of it is unfinished: skip, queue, replace or allow
cron-add,cron-edit --no-overlap  .         .        overlap=skip the same as --overlap skip
cron-add       --replace      .         .        .     replace a schedule of this name
cron-load      file           FILE      .        .     a crontab (-: standard input)
cron-load      --replace      .         .        .     replace schedules of the same names
cron-list      --crontab      .         .        .     print a crontab; what a crontab can't express becomes a comment
config-set     value          VALUE     .        .     the new value
backup         file           FILE      .        .     path of the copy; must not exist
backup         --logs         .         .        .     copy the logs too, into FILE.d
doctor         --fix          .         .        .     repair what can be repaired
health         --max-wait     DURATION  duration .     warn if a job that could run has waited longer than this
health         --max-dead     N         0-%(most)d 0 warn if more than N jobs are dead (0)
health         --queue        NAME*     .        .     look only at jobs of this queue (may be repeated)
export         --output       FILE      .        .     write to FILE, which only you can read; it must not exist
export         --no-env       .         .        .     leave out the environments of the jobs: they get that of the importing user
import         file           FILE      .        .     the output of `export` (-: standard input)
completion     shell          SHELL     .        .     bash, zsh, fish or powershell
service        kind           SERVICE   .        .     systemd (of this user), systemd-system, launchd or windows
service        --count        N         1-%(workers)d 1 worker processes (1)
install        --uninstall    .         .        .     remove the command
dry            --dry-run      .         .        .     only show which jobs would be changed
json           --json         .         .        .     print JSON""" % {
    "states": ", ".join(LISTED_STATES), "sorts": ", ".join(SORTS), "columns": ", ".join(COLUMNS), "rows": TERMINAL_ROWS,
    "workers": MOST_WORKERS, "most": 10**12}
# The parsers that only commands use; those of job options are in OPTION_PARSERS.
OPTION_KINDS = {
    ".": parse_filled, "prefix": lambda raw, what: raw,
    "setting": lambda raw, what: setting_key(raw), "load": within(0, 10**6, float), "sort": one_of(*SORTS),
    "states": lambda raw, what: [parse_choice(state, what, LISTED_STATES) for state in raw.split(",")],
    "columns": lambda raw, what: [parse_choice(column.strip(), what, tuple(COLUMNS)) for column in raw.split(",")],
    "since": lambda raw, what: parse_duration(raw, what, 1), "interval": lambda raw, what: parse_duration(raw, what, 1),
    "engine": one_of(*ENGINES), "pack": lambda raw, what: None if raw == "auto" else parse_number(raw, what, 1, 10**6, int),
    "misfire": one_of(*MISFIRES), "overlap": one_of(*OVERLAPS),
    "output": one_of(*OUTPUTS), "group": one_of(*GROUPS), "failfast": one_of("now", "soon")}


# words: what the user types.  takes: the sets of OPTIONS that it takes, beside that of its own name.  rest: whether the words
# after the options are the user's own command, left as it is.  lead: how many of queuectl's own words may precede the options.
# shows: whether the command only prints.  check: what validates its words before the queue is opened, so that bad input
# creates no database; if it returns True, nothing is left to do.
Command = record("Command", "words run takes purpose example rest lead shows check", defaults=(False, 0, False, None))


def command(words, run, takes, purpose, example, **more):
    return Command(tuple(words.split()), run, takes.split() + [words.replace(" ", "-")], purpose, example, **more)


COMMAND_GROUPS = (
    ("run jobs", (
        command("run", cmd_run, "values job json", "run jobs here and now, exit 0 if all completed",
                "run --count 4 --file commands.txt", rest=True),
        command("enqueue", cmd_enqueue, "values job", "store a job and print its id", "enqueue --max-retries 2 make -C site", rest=True,
                check=plan_enqueue),
        command("worker start", cmd_worker_start, "", "start worker processes", "worker start --count 4", rest=True),
        command("worker stop", cmd_worker_stop, "", "stop all workers and wait until they are gone", "worker stop"),
    )),
    ("look", (
        command("status", cmd_status, "json", "count jobs by state, show workers", "status --json", shows=True),
        command("list", cmd_list, "filters limit json", "show jobs, newest first", "list --state dead --limit 10", shows=True),
        command("show", cmd_show, "job-id json", "show everything about one job, with its attempts", "show 12", shows=True),
        command("logs", cmd_logs, "ids filters", "print the output of jobs", "logs 12 -f", shows=True),
        command("explain", cmd_explain, "job-id json", "say why a job is not running", "explain 12", shows=True),
        command("wait", cmd_wait, "ids filters", "wait until jobs have ended; the exit status says how", "wait 12 --timeout 10m"),
        command("web", cmd_web, "", "serve a page that shows the queue live, and acts on it", "web --open"),
        command("top", cmd_top, "", "watch queues, workers and jobs live, and act on them", "top", shows=True),
        command("stats", cmd_stats, "json", "show rates, durations and waiting times, by queue and by program",
                "stats --since 1h", shows=True),
        command("metrics", cmd_metrics, "", "print metrics for Prometheus", "metrics --output /var/lib/node_exporter/queuectl.prom",
                shows=True, check=print_setup),
        command("events", cmd_events, "", "print changes of state as JSON Lines", "events -f", shows=True),
    )),
    ("change jobs", (
        command("cancel", cmd_cancel, "ids filters dry", "cancel jobs, running ones too", "cancel 12 15-18"),
        command("hold", cmd_hold, "ids filters dry", "keep waiting jobs from starting", "hold 12"),
        command("release", cmd_release, "ids filters dry", "let held jobs start", "release 12"),
        command("edit", cmd_edit, "ids dry job", "change waiting jobs", "edit 12 --priority 5", check=parse_edit),
        command("retry", cmd_retry, "ids filters dry", "run finished jobs again", "retry 12"),
        command("rm", cmd_rm, "ids filters dry", "remove finished jobs and their logs", "rm --older-than 7d --state completed"),
    )),
    ("the dead letter queue", (
        command("dlq list", cmd_list, "list filters limit json", "show the dead jobs", "dlq list", shows=True, check=only_dead),
        command("dlq retry", cmd_dlq_retry, "ids filters dry", "retry dead jobs", "dlq retry 12"),
        command("dlq purge", cmd_dlq_purge, "ids filters dry", "remove dead jobs and their logs", "dlq purge --all"),
    )),
    ("workers", (
        command("worker list", cmd_worker_list, "json", "show the workers", "worker list", shows=True),
        command("worker scale", cmd_worker_scale, "", "change the number of workers", "worker scale 8"),
        command("worker restart", cmd_worker_restart, "", "replace the workers, each after its job", "worker restart"),
        command("engine test", cmd_engine_test, "json", "submit a small task to a cluster, and say what is wrong", "engine test slurm",
                rest=True, lead=1, check=check_engine),
        command("service", cmd_service, "", "print a systemd, launchd or Windows service",
                "service systemd --count 4", shows=True),
    )),
    ("queues, batches, schedules", (
        command("queue list", cmd_queue_list, "json", "show the queues", "queue list", shows=True),
        command("queue pause", cmd_queue_pause, "queues", "start no more jobs of a queue", "queue pause mail", check=check_queue_names),
        command("queue resume", cmd_queue_resume, "queues", "resume a paused queue", "queue resume --all", check=check_queue_names),
        command("queue limit", cmd_queue_limit, "", "limit how many jobs of a queue run at once", "queue limit mail 2",
                check=check_queue_limit),
        command("queue rate", cmd_queue_rate, "", "limit how often jobs of a queue start", "queue rate mail 10/m", check=check_queue_rate),
        command("queue set", cmd_queue_set, "", "set what jobs of a queue need of a cluster", "queue set gpu --engine-options '--gpus 1'",
                check=check_queue_set),
        command("batch list", cmd_batch_list, "limit json", "show the batches: each bulk file and run is one", "batch list", shows=True),
        command("batch show", cmd_batch_show, "json", "show the progress of a batch", "batch show 3", shows=True),
        command("cron add", cmd_cron_add, "job", "enqueue a job repeatedly, by a cron line or an interval",
                "cron add nightly '30 2 * * *' ./backup.sh", rest=True, lead=2, check=plan_schedule),
        command("cron edit", cmd_cron_edit, "job", "change a schedule: its times, its command, options of its jobs",
                "cron edit nightly --cron '0 3 * * *' --timeout 1h", check=plan_schedule_edit),
        command("cron list", cmd_cron_list, "json", "show the schedules, with their next run", "cron list",
                shows=True),
        command("cron load", cmd_cron_load, "", "add the schedules of a crontab", "cron load crontab.txt", check=read_crontab),
        command("cron pause", cmd_cron_pause, "schedules", "pause a schedule", "cron pause nightly"),
        command("cron resume", cmd_cron_resume, "schedules", "resume a paused schedule", "cron resume nightly"),
        command("cron rm", cmd_cron_rm, "schedules", "remove a schedule", "cron rm nightly"),
        command("cron run", cmd_cron_run, "schedules", "enqueue a schedule's job now", "cron run nightly"),
    )),
    ("settings and keeping", (
        command("config list", cmd_config_list, "json", "show all settings", "config list", shows=True),
        command("config get", cmd_config_get, "setting json", "print one setting", "config get max_retries", shows=True),
        command("config set", cmd_config_set, "setting", "change a setting",
                "config set max_retries 5", check=check_setting),
        command("config unset", cmd_config_unset, "setting", "reset a setting to its default", "config unset max_retries"),
        command("backup", cmd_backup, "", "copy a queue that is in use", "backup /backup/queue.db", check=check_new_file),
        command("doctor", cmd_doctor, "json", "find problems, and repair them with --fix", "doctor --fix", shows=True),
        command("health", cmd_health, "json", "say in one line, and by the exit status, whether all is well", "health --max-wait 10m",
                shows=True),
        command("export", cmd_export, "", "print the whole queue as JSON Lines", "export > queue.jsonl", shows=True),
        command("import", cmd_import, "", "fill a new queue from an export", "--db new.db import queue.jsonl", check=read_export),
        command("install", cmd_install, "", "put a `queuectl` command on your PATH", "install"),
        command("completion", cmd_completion, "", "print completion for a shell",
                "completion bash > ~/.queuectl-completion", shows=True),
    )),
    ("", (
        command("_worker", cmd__worker, "", "", ""),
        command("_node", cmd__node, "", "", ""),
        command("_complete", None, "", "", "", rest=True, shows=True),
    )),
)
COMMANDS = tuple(found for _, group in COMMAND_GROUPS for found in group)


# == Parser ============================================================================
# Turn words into a command.  Only the parser of that command is built.
# Calls Commands.

def split_words(words: list) -> tuple:
    """Return (--db given before the command or None, command or None, the words after it)."""
    words, db = list(words), None
    while words and words[0].startswith(("--db", "--as-root")):
        if words[0] == "--as-root":
            os.environ[AS_ROOT] = words.pop(0)
            continue
        flag, equals, value = words.pop(0).partition("=")
        if flag != "--db" or not equals and not words:
            raise UserError("unknown option %s; --db needs a path" % quoted(flag))
        db = value if equals else words.pop(0)
    if not words:
        words = ["status"]
    words[0] = SYNONYMS.get(words[0], words[0])
    for found in COMMANDS:
        if tuple(words[:len(found.words)]) == found.words:
            return db, found, words[len(found.words):]
    if words[0] == "help" and len(words) > 1:
        return split_words(words[1:] + ["--help"])
    if words[0] in ("-h", "--help", "help", "-V", "--version") or words[1:] in (["-h"], ["--help"]) and is_group(words[0]):
        return db, None, words
    raise UserError(unknown_command(words))


def is_group(word: str) -> bool:
    """Whether commands of two words begin with this one."""
    return any(len(found.words) == 2 and found.words[0] == word for found in COMMANDS)


def unknown_command(words: list) -> str:
    if words[0].startswith("-"):
        return "unknown option %s: see `%s --help`" % (quoted(words[0]), invoked())
    group = [found.words[1] for found in COMMANDS if len(found.words) == 2 and found.words[0] == words[0]]
    if group:
        if len(words) == 1 or words[1].startswith("-"):
            return "%s what? Give one of: %s" % (plain(words[0]), ", ".join(group))
        return "no command %s%s" % (quoted(" ".join(words[:2])), nearest(words[1], group))
    names = {" ".join(found.words): found for found in COMMANDS if found.purpose}
    ends = [name for name in names if name.split()[-1] == words[0]]
    other = other_name(OTHER_WORDS, words[0]) or "".join(ends[:1])
    hint = " (did you mean %s?)" % other if other else nearest(words[0], set(names) | {name.split()[0] for name in names}, 0.74)
    return "no command %s%s: see `%s --help`" % (quoted(words[0]), hint, invoked())


SYNONYMS = {"prune": "rm"}  # names that still work; the help has only the other one

# What other tools call our commands and options: their words, a colon, ours (nothing: we have none, and none that is alike is meant).
OTHER_WORDS = """\
ls jobs atq done: list; ps: worker list; add submit push tsp ts nq pueue at: enqueue; kill signal atrm: cancel
delete remove clean flush: rm; requeue restart: retry; tail follow fq: logs -f; log output cat: logs; start daemon: worker start
stop shutdown: worker stop; scale: worker scale; pause: queue pause; resume: queue resume; group: queue list; stash: hold
parallel xargs exec do nohup: run; crontab: cron list; schedule every: cron add; init: enqueue; info inspect: show; priority: edit
dead failed: dlq list; watch monitor: top; serve server ui gui dashboard: web; prometheus: metrics; check ping: health; restore: import
version: --version"""
OTHER_OPTIONS = """\
-P --jobs --max-procs --parallel: -j; --workers --concurrency -c: --count; -N -L -l -X -m --xargs --max-lines --max-replace-args: -n
--max-chars:; --retries --retry: --max-retries; --halt --halt-on-error: --fail-fast; --wd --workdir --working-directory: --cwd
--arg-file: -a; --group -g: --queue; --stashed: --hold; --depends: --after; -u --ungroup --lb --line-buffer --linebuffer: --output live
--tagstring: --tag; --files --output-as-files: --results; --resume-failed: --retry-failed; -I -i --replace: {}; --link --xapply: :::+
--running: --state processing"""


def other_name(table: str, word: str):
    """Return what we call something that other tools call `word`; None if the table does not have it."""
    for line in table.replace("\n", ";").split(";"):
        theirs, _, ours = line.partition(":")
        if word in theirs.split():
            return ours.strip()
    return None


def option_hint(word: str, flags) -> str:
    """Return ` (did you mean X?)` for an option that a command does not have; "" if none is like it."""
    flag = word.partition("=")[0] if word[:2] == "--" else word[:2]
    other = other_name(OTHER_OPTIONS, flag)
    if other and (other[0] != "-" or other.split()[0] in flags):
        return " (did you mean %s?)" % other
    return nearest(flag[2:], [known[2:] for known in flags], 0.74).replace("mean ", "mean --") if other is None and len(flag) > 2 else ""


def help_width() -> int:
    """Return the columns for help: the terminal's, from 40 to 100; 100 for a pipe."""
    return min(100, max(40, terminal_width(sys.stdout) or 100))


def wrapped(text: str, width: int) -> list:
    import textwrap
    return textwrap.wrap(" ".join(text.split()), max(width, 10), break_on_hyphens=False, break_long_words=False)


def build_parser(found):
    import argparse
    argparse._ = str  # the search for translations (there are none) imports locale: 7 ms

    class Parser(argparse.ArgumentParser):
        """An argparse parser that reports a mistake as one line, with our name."""

        def error(self, message):
            before, unknown, words = message.partition("unrecognized arguments: ")
            hint = option_hint(words.split()[0], self._option_string_actions) if unknown and words[:1] == "-" else ""
            raise UserError("%s%s (see `%s %s --help`)" % (plain(message), hint, invoked(), " ".join(found.words)))

    class Help(argparse.HelpFormatter):
        """Help that breaks lines between words only: `--all-attempts` is one word."""

        def _split_lines(self, text, width):
            return wrapped(text, width)

        def _fill_text(self, text, width, indent):
            return "\n".join(indent + line for line in wrapped(text, width - len(indent)))

        def _format_usage(self, usage, *others):  # argparse itself breaks no usage that it is given
            text = super()._format_usage(usage, *others)
            return text if usage is None else "\n       ".join(wrapped(text.strip(), self._width - 7)) + "\n\n"

    parser = Parser(prog="%s %s" % (PROGRAM, " ".join(found.words)), description=found.purpose[:1].upper() + found.purpose[1:] + ".",
                    epilog="example: %s %s" % (PROGRAM, found.example), allow_abbrev=False,
                    formatter_class=lambda prog: Help(prog, width=help_width()),  # else it imports shutil, 5 ms
                    usage="%%(prog)s %s[options] %s%s" % (
                        "" if not found.lead else "ENGINE " if found.lead == 1 else "[options] NAME SPEC ",
                        "[-- ENGINE OPTION...]" if found.run in (cmd_worker_start, cmd_engine_test) else "COMMAND...",
                        " [::: VALUE...]" if "values" in found.takes else "") if found.rest else None)
    parser.add_argument("--db", metavar="PATH", help="database of the queue (QUEUECTL_DB, else one for each user)")
    parser.add_argument("--as-root", action="store_true", help="as root, work the queue of another user (%s=1)" % AS_ROOT)
    add_options(parser, found)
    parser._has_negative_number_optionals.clear()  # because of -0, argparse would take the value of `--priority -5` for an option
    return parser


class NoOptions:
    """A parser for a command line without options, in place of one of argparse: it collects their defaults.  argparse costs 10 ms."""

    def __init__(self):
        self.args = type(sys.implementation)(db=None, as_root=False)
        self.enough = True  # whether the command takes nothing but options

    def add_argument(self, *flags, **how) -> None:
        name = how.get("dest") or flags[-1].lstrip("-").replace("-", "_")
        default = how.get("default", False if how.get("action") == "store_true" else None)
        self.enough = self.enough and flags[0][0] == "-"
        if not hasattr(self.args, name):
            setattr(self.args, name, how["type"](default) if isinstance(default, str) and "type" in how else default)


def option_type(kind: str, what: str):
    """Return the function with which argparse converts the value of an option of OPTIONS."""
    parse = OPTION_KINDS.get(kind) or OPTION_PARSERS.get(kind) or within(*map(int, kind.split("-")))
    return lambda raw: parse(raw, what)


def add_option(parser, flags: str, metavar: str, kind: str, default: str, meaning: str) -> None:
    *short, name = flags.split(",")
    how = {"help": "==SUPPRESS==" if meaning == "." else meaning}
    if metavar == ".":
        dest, _, value = default.partition("=")
        how.update({"action": "store_const", "dest": dest, "const": value} if value else {"action": "store_true"})
    else:
        how["metavar"] = metavar.rstrip("*+?")
        if metavar[-1] == "?":
            how.update(nargs="?", const=default)
            default = "."
        elif metavar != how["metavar"]:
            how.update({"action": "append"} if name[0] == "-" else {"nargs": metavar[-1]})
        if "+" in how["metavar"]:
            how.update(nargs=2, metavar=tuple(how["metavar"].split("+")))
        if kind != "." or name[0] == "-":
            how["type"] = option_type(kind, name if name[0] == "-" else "the " + name)
        if default != ".":
            how["default"] = default
    parser.add_argument(*short, name, **how)


def add_options(parser, found) -> None:
    """Add the options that a command takes: its lines of OPTIONS, then options of jobs."""
    taken = set(found.takes)
    for line in OPTIONS.split("\n"):
        sets, rest = line.split(None, 1)
        if not taken.isdisjoint(sets.split(",")):
            add_option(parser, *rest.split(None, 4))
    if "job" in found.takes:
        for name, option in JOB_OPTIONS.items():
            if found.words[0] in ("enqueue", "run") or found.words[0] in option.takers:
                how = ({"action": "store_true", "default": None} if option.metavar is None else
                       {"action": "append" if option.parse in (parse_refs, parse_env, parse_labels) else "store",
                        "metavar": option.metavar})
                parser.add_argument(*option.flags, dest="job_" + name, help=option.meaning, **how)


def split_rest(parser, words: list) -> tuple:
    """Return (options, the user's own command) from words in which the options come first."""
    actions = {flag: action for action in parser._actions for flag in action.option_strings}
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] not in ("-", "--"):
        word = words[i]
        flag = word if word.startswith("--") or len(word) == 2 else word[:2]
        action = actions.get(flag)
        after = "".join(words[i + 1:i + 2])
        takes = action is not None and word == flag and (action.nargs is None or action.nargs == "?" and (
            after in ("now", "soon") if action.metavar == "WHEN" else after.isdigit() or after == "last"))
        i += 2 if takes else 1
    rest = words[i:]
    return words[:i], rest[1:] if rest[:1] == ["--"] else rest


def split_lead(parser, words: list, most: int) -> tuple:
    """Return (options, lead, the user's own command): as split_rest, but up to `most` words of ours may mix with the options."""
    options, lead = [], []
    while True:
        some, rest = split_rest(parser, words)
        options += some
        ended = words[len(some):] != rest  # `--` ended the options
        if ended or not rest or len(lead) == most or lead and "--every" in [option.partition("=")[0] for option in options]:
            return options, lead, rest
        lead.append(rest[0])
        words = rest[1:]


def place_of(found, actions, typed: list):
    """Return the argument that the next word is for, after the words `typed` of a command; None if it is for none."""
    options = {flag: action for action in actions for flag in action.option_strings}
    free, left = [action for action in actions if not action.option_strings], 0
    for i, word in enumerate(typed):
        if options.get(word) and options[word].nargs != 0 and i == len(typed) - 1:
            return options[word]
        if not word.startswith("-") and not (i and options.get(typed[i - 1]) and options[typed[i - 1]].nargs != 0):
            left += 1
    if found.rest or not free:
        return None
    return free[left] if left < len(free) else free[-1] if free[-1].nargs in ("*", "+") else None


def value_choices(args, found, place, typed: list, word: str) -> dict:
    """Return what may be given for an argument, with descriptions; nothing if the shell's own file names are better."""
    fixed = {"S": LISTED_STATES, "SHELL": COMPLETIONS, "SERVICE": SERVICES, "SORT": SORTS, "LIST": COLUMNS, "RULE": MISFIRES,
             "OVERLAP": OVERLAPS, "HOW": OUTPUTS, "CI": GROUPS, "ENGINE": ENGINES, "WHEN": ("now", "soon"), "KIND": BACKOFFS}
    if place.metavar == "KEY" and found.words[0] == "config":
        return {key: setting.meaning for key, setting in SETTINGS.items()}
    if place.metavar == "VALUE" and typed and typed[-1] in SETTINGS:
        setting = SETTINGS[typed[-1]]
        return dict.fromkeys(getattr(setting.parse, "choices", None) or [setting.text(setting.default)], "")
    if place.metavar in fixed:
        return dict.fromkeys(fixed[place.metavar], "")
    if not os.path.exists(find_database(args.db)):
        return {}  # completion must not create a queue
    with open_queue(args) as store:
        return live_choices(store, found, place, word)


def live_choices(store, found, place, word: str) -> dict:
    """Return the ids and names in a queue that may be given for an argument."""
    if place.metavar == "ID":
        states = ("dead",) if found.words[0] == "dlq" else ()
        jobs = [job for job in store.look.jobs(states, 200)]
        choices = {job.id: "%s  %s" % (state_word(job), titled(job)) for job in jobs}
        choices.update((job.name, "job %d, %s" % (job.id, state_word(job))) for job in store.look.named(word, states))
        return choices
    if place.metavar in ("B", "BATCH"):
        return {batch.id: batch.label or "" for batch in store.queues.batches()}
    if place.metavar == "LABEL":
        return dict.fromkeys(store.look.labels(), "")
    if place.dest in ("queue", "in_queue", "job_queue") or found.words[0] == "queue":
        return {row.name: "paused" if row.paused else "" for row in store.queues.list()}
    if found.words[0] == "cron" or place.metavar == "SCHEDULE":
        return {row.name: row.spec or "" for row in store.schedules.list()}
    return {}


def choices_after(args, before: list, word: str) -> dict:
    """Return what may follow the words typed, with descriptions."""
    found = next((c for c in COMMANDS if c.purpose and tuple(before[:len(c.words)]) == c.words), None)
    if found is None:
        left = [c for c in COMMANDS if c.purpose and list(c.words[:len(before)]) == before < list(c.words)]
        return {c.words[len(before)]: c.purpose if len(c.words) == len(before) + 1 else "" for c in left}
    actions, typed = build_parser(found)._actions, before[len(found.words):]
    if word.startswith("-"):
        return {flag: action.help or "" for action in actions for flag in action.option_strings if action.help != "==SUPPRESS=="}
    place = place_of(found, actions, typed)
    if place is None:
        return {}
    done, comma, last = word.rpartition(",")
    choices = value_choices(args, found, place, typed, last)
    if not comma or place.metavar not in ("LIST", "S", "NAMES"):
        return choices
    return {done + comma + str(choice): text for choice, text in choices.items() if str(choice) not in done.split(",")}


def complete(args) -> None:
    """Print the completions of the last word typed; with QUEUECTL_DESCRIBE each with a tab and what it means."""
    *before, word = args.rest or [""]
    for i, flag in enumerate(before[:-1]):
        if flag == "--db":
            args.db = before[i + 1]
    while before[:1] == ["--db"]:
        before = before[2:]
    describes = os.environ.get("QUEUECTL_DESCRIBE")
    for choice, text in sorted((str(choice), text) for choice, text in choices_after(args, before, word).items()):
        if choice.startswith(word) and plain(choice) == choice:  # else out() would change the choice
            sys.stdout.write(choice + ("\t" + fit(plain(text), 70) if describes and text else "") + "\n")


def settle_encoding(args, metavars: dict) -> None:
    """Convert words that Python has decoded from an encoding other than UTF-8.

    Words of jobs get back their bytes, names stay characters, and paths stay as they are.
    """
    for name, value in vars(args).items():
        kind = "COMMAND" if name == "rest" else metavars.get(name)
        read = given if kind in ("COMMAND", "DIR", "K=V", "VALUE") else given_name
        if kind not in ("FILE", "PATH") and isinstance(value, (str, list)):
            setattr(args, name, read(value) if isinstance(value, str) else list(map(read, value)))


# Options that no command takes together.
EXCLUSIVE = ("json-tree json-columns json-watch json-crontab tree-columns tree-sort attempt-all_attempts path-follow path-lines "
             "grafana-alerts cron-every resume-retry_failed")


def refuse_exclusive(args) -> None:
    for pair in EXCLUSIVE.split():
        if all(getattr(args, name, None) for name in pair.split("-")):
            raise UserError("--%s and --%s exclude each other: give one" % tuple(name.replace("_", "-") for name in pair.split("-")))


def default_args(found, words: list):
    """Return the namespace for a command that was given no options, or only the user's own command; otherwise None."""
    if words and (not found.rest or found.lead or words[0][:1] in ("", "-")) or found.run is None or sys.getfilesystemencoding() != "utf-8":
        return None
    parser = NoOptions()
    add_options(parser, found)
    parser.args.lead, parser.args.rest = [], words
    return parser.args if parser.enough else None


def parse_words(words: list):
    """Return the namespace for a command; None if help or the version was asked for, and printed."""
    db, found, words = split_words(words)
    if found is None:
        if is_group(words[0]):
            return print_group_help(words[0])
        return print_help() if "elp" in words[0] or words[0] == "-h" else out("%s %s" % (PROGRAM, __version__))
    args = default_args(found, words)
    if args is None:
        parser = build_parser(found)
        lead, rest = [], []
        if found.run is None:  # completion takes whatever has been typed so far
            words, rest = [], words
        elif found.rest:
            words, lead, rest = split_lead(parser, words, found.lead)
        try:
            args = parser.parse_args(words)
        except SystemExit:  # argparse has shown its help
            return None
        args.lead, args.rest = lead, rest
        if sys.getfilesystemencoding() != "utf-8":
            settle_encoding(args, {action.dest: action.metavar for action in parser._actions})
    refuse_exclusive(args)
    args.shows = found.shows or getattr(args, "dry_run", False)
    args.run, args.check = found.run or complete, found.check
    args.creates = " ".join(found.words) in CREATORS
    if args.as_root:
        os.environ[AS_ROOT] = "1"
    args.db = args.db if args.db is not None else db
    return args


def print_group_help(word: str) -> None:
    """Print the commands that begin with this word."""
    group = [found for found in COMMANDS if found.words[0] == word and found.purpose]
    out("usage: %s %s COMMAND [options]" % (PROGRAM, word))
    out()
    print_commands(group)
    out()
    out("%s %s COMMAND --help says more." % (PROGRAM, word))


def print_commands(group) -> None:
    """Print commands with their purposes."""
    for found in group:
        for number, line in enumerate(wrapped(found.purpose, help_width() - 17)):
            out("  %-14s %s" % (" ".join(found.words) if number == 0 else "", line))


def print_help() -> None:
    for line in ("%s %s: a persistent background job queue in one file" % (PROGRAM, __version__),
                 "usage: %s [--db PATH] COMMAND [options]" % PROGRAM,
                 "Start with: %(p)s run 'make test' | or: %(p)s worker start; %(p)s enqueue make test" % {"p": invoked()}):
        out(line)
        out()
    for title, group in COMMAND_GROUPS[:-1]:
        out(title)
        print_commands(group)
    out()
    out("%s COMMAND --help says more.  The queue: --db PATH, else QUEUECTL_DB, else one for each user." % PROGRAM)


# == Main ==============================================================================
# The only place where an error becomes a line and an exit status.
# Calls Parser.

def perform(args):
    """Run a command, with the open queue if it takes one; return its exit status, None for 0."""
    if args.check is not None and args.check(args):
        return None
    if args.run.__code__.co_argcount == 1:
        return args.run(args)
    with open_queue(args) as store:
        return args.run(store, args)


def leave(status: int) -> None:
    """End this process without the teardown of Python's objects: the system frees them sooner (5 ms of 28 from bytecode)."""
    import atexit
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, OutputLost):
            pass  # main has reported the lost output
    os._exit(status if status < 2**31 else -1)


def prepare():
    """Prepare this process for one command, and return the layer under its output."""
    import gc
    gc.enable()  # see System.launching
    if hasattr(gc, "set_threshold"):  # PyPy has none
        gc.set_threshold(50000)  # a short command then never looks for garbage, which takes 7 % of its time
    return prepare_streams()


def main(argv=None) -> int:
    """Run one command line; return its exit status.  A user sees a traceback only on request."""
    database, output = None, prepare()
    try:
        args = parse_words(list(sys.argv[1:] if argv is None else argv))
        if args is None:
            return finish(output, 0)
        database = args.db or os.environ.get("QUEUECTL_DB")
        output.needed = args.shows
        return finish(output, perform(args) or 0)
    except OutputLost:
        return complain(output.trouble(), 1) if output.has_reader() else 0
    except KeyboardInterrupt:
        return 130
    except (UserError, QueueGone, sqlite3.Error, OSError, MemoryError, ImportError, UnicodeEncodeError) as error:
        return complain(explain_error(error, database))
    except Exception as error:
        return complain(internal_error(error), 70)
    finally:
        output.needed = False


if __name__ == "__main__":
    leave(main())
