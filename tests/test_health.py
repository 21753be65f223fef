"""health and doctor: what they find, and how their exit status tells it; a database that is not there; what nothing will run."""
from __future__ import annotations

import os
import re
import signal
import sqlite3

import pytest
from conftest import posix_only, wait_until


def health(queue, *options):
    """(exit status, the line)"""
    done = queue.cli("health", *options, check=False)
    assert done.stderr == "" and done.stdout.count("\n") == 1, done
    return done.returncode, done.stdout


def finish(queue, *commands):
    queue.cli("run", "--count", 1, "--max-retries", 0, "--file", "-", stdin="\n".join(commands), check=False)


# ---- health ---------------------------------------------------------------------------------------

def test_a_queue_that_is_worked_is_healthy_and_its_figures_stand_behind_the_bar(queue):
    queue.start(2)
    queue.wait_for(queue.enqueue("exit 0"), "completed")
    status, line = health(queue)
    assert (status, line) == (0, "OK: 0 waiting, 0 running, 2 workers | waiting=0 running=0 dead=0 workers=2\n")
    assert queue.json("health")["status"] == "ok"


def test_jobs_that_no_worker_serves_are_critical(queue):
    queue.enqueue("--queue", "mail", "exit 0")
    status, line = health(queue)
    assert status == 2 and line.startswith("CRITICAL: ") and "no worker serves queue mail" in line, line
    queue.start(1, "--queue", "other")
    assert health(queue)[0] == 2
    queue.stop()


def test_jobs_that_may_not_run_yet_need_no_worker(queue):
    queue.enqueue("--delay", "1h", "exit 0"), queue.enqueue("--hold", "exit 0"), queue.enqueue("--queue", "idle", "exit 0")
    queue.cli("queue", "pause", "idle")
    assert health(queue)[0] == 0


@pytest.mark.broad
def test_a_retry_that_is_due_and_that_nobody_makes_ready_is_critical(queue):
    job = queue.enqueue("--backoff-base", "2", "exit 1")
    queue.start(1)
    queue.wait_for(job, "failed")
    queue.stop()
    wait_until(lambda: health(queue)[0] == 2, message="the retry is due")


def test_dead_jobs_are_a_warning_above_the_number_given(queue):
    finish(queue, "exit 3", "exit 4")
    assert health(queue)[0] == 1 and "2 dead" in health(queue)[1]
    assert health(queue, "--max-dead", "1")[0] == 1
    assert health(queue, "--max-dead", "2")[0] == 0


def test_a_job_that_has_waited_too_long_for_a_worker_is_a_warning(queue):
    queue.start(1)
    queue.wait_for(queue.enqueue(*queue.sleeper(60)), "processing")
    queue.enqueue("exit 0")
    assert health(queue, "--max-wait", "1h")[0] == 0
    wait_until(lambda: health(queue, "--max-wait", "0.1s")[0] == 1, message="the second job has waited")
    assert "longer than 100ms" in health(queue, "--max-wait", "0.1s")[1]
    queue.stop("--now")


def test_a_queue_may_be_looked_at_alone(queue):
    finish(queue, "exit 3")
    queue.enqueue("--queue", "mail", "exit 0")
    queue.cli("queue", "limit", "other", "2")
    assert health(queue, "--queue", "other")[0] == 0
    assert health(queue, "--queue", "default")[0] == 1
    assert health(queue, "--queue", "other", "--queue", "mail")[0] == 2


def test_a_queue_that_no_job_was_ever_put_into_is_a_warning(queue):
    """A name with a slip would otherwise be healthy for ever."""
    queue.enqueue("--hold", "true")
    done = queue.cli("health", "--queue", "default", "--queue", "mial", check=False)
    assert done.returncode == 1 and done.stdout.startswith("WARNING: there is no queue mial")
    assert queue.cli("health", "--queue", "default").returncode == 0


def test_a_schedule_that_is_due_without_a_supervisor_is_critical(queue):
    queue.cli("cron", "add", "often", "--every", "1s", "exit 0")
    wait_until(lambda: "schedule often was due" in health(queue)[1], message="it is due")
    assert health(queue)[0] == 2
    queue.start(1)
    wait_until(lambda: health(queue)[0] == 0, message="it fires")


def test_a_nearly_full_disk_is_critical(queue, monkeypatch, capsys):
    import queuectl
    queue.cli("config", "set", "timeout", "9")
    monkeypatch.setattr(queuectl, "FREE_BYTES", 2**60)
    status = queuectl.main(["--db", str(queue.db), "health"])
    assert status == 2 and "MiB are free" in capsys.readouterr().out


def spoil_pages(queue):
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 3000)
    connection = sqlite3.connect(str(queue.db))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with open(str(queue.db), "r+b") as file:
        file.seek(1024 * 200)
        file.write(b"x" * 1024 * 20)


def test_a_damaged_database_is_critical_and_doctor_gives_one_advice(queue):
    spoil_pages(queue)
    status, line = health(queue)
    assert status == 2 and "is damaged" in line and "doctor" in line
    told = queue.cli("doctor", check=False)
    damaged = [row for row in told.stdout.splitlines() if "damaged" in row]
    assert told.returncode == 2 and len(damaged) == 1 and "restore a backup" in damaged[0] and len(told.stdout.splitlines()) < 8, told.stdout
    assert queue.cli("doctor", "--fix", check=False).returncode == 2


@pytest.mark.parametrize("words", [["--max-wait", "soon"], ["--max-dead", "-1"], ["--queue", "a/b"]])
def test_a_bad_limit_is_refused_in_a_line(queue, words):
    done = queue.cli("health", *words, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not queue.db.exists()


# ---- doctor ---------------------------------------------------------------------------------------

def test_doctor_exits_1_for_a_warning_and_2_for_a_fault(queue):
    queue.cli("config", "set", "timeout", "9")
    assert queue.cli("doctor").returncode == 0
    finish(queue, "exit 3")
    done = queue.cli("doctor", check=False)
    assert done.returncode == 1 and re.search(r"^warn +jobs +1 dead", done.stdout, re.M)
    queue.enqueue("exit 0")
    done = queue.cli("doctor", check=False)
    assert done.returncode == 2 and re.search(r"^bad +jobs .*no worker serves queue default", done.stdout, re.M)
    rows = queue.json("doctor", check=False)
    assert {"level", "about", "text"} <= set(rows[0]) and "bad" in [row["level"] for row in rows]


@posix_only("kill -9")
def test_a_dead_supervisor_is_removed_by_fix(queue):
    queue.start(1)
    [supervisor] = queue.json("status")["supervisors"]
    os.kill(supervisor["pid"], signal.SIGKILL)
    wait_until(lambda: queue.json("worker", "list") == [], message="its worker ends")
    assert queue.cli("doctor", check=False).returncode == 1
    assert re.search(r"^fixed +workers +supervisor %d" % supervisor["id"], queue.cli("doctor", "--fix").stdout, re.M)
    assert queue.cli("doctor").returncode == 0 and queue.json("status")["supervisors"] == []


def test_a_schedule_is_named_in_what_is_wrong_with_its_row(queue):
    queue.cli("cron", "add", "nightly", "@daily", "exit 0")
    queue.sql("UPDATE schedule SET last_at='soon'")
    told = queue.cli("doctor", check=False).stdout
    assert "schedule nightly has a wrong value in last_at" in told, told


# ---- a database that is not there -----------------------------------------------------------------

LOOKS = [[], ["status"], ["list"], ["logs", "1"], ["show", "1"], ["explain", "last"], ["wait", "1"], ["top"], ["stats"], ["events"], ["cancel", "1"],
         ["retry", "1"], ["dlq", "list"], ["worker", "list"], ["worker", "stop"], ["queue", "list"], ["queue", "resume", "mail"], ["batch", "list"],
         ["cron", "list"], ["cron", "rm", "x"], ["config", "list"], ["config", "get", "timeout"], ["config", "unset", "timeout"], ["backup", "copy.db"],
         ["export"], ["metrics"]]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_a_command_that_stores_nothing_makes_no_database(queue, words):
    done = queue.cli(*words, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "there is no queue at" in done.stderr, done
    assert not queue.db.exists() and not queue.files.exists()


def test_health_and_doctor_say_that_there_is_no_queue(queue):
    for words in (["health"], ["doctor"]):
        done = queue.cli(*words, check=False)
        assert done.returncode == 2 and "there is no queue at" in done.stdout and not queue.db.exists()


@pytest.mark.parametrize("words", [["enqueue", "exit 0"], ["config", "set", "timeout", "9"], ["queue", "limit", "mail", "2"],
                                   ["cron", "add", "x", "@daily", "exit 0"], ["queue", "pause", "mail"]], ids=" ".join)
def test_a_command_that_stores_something_makes_the_database(queue, words):
    queue.cli(*words)
    assert queue.db.exists()


# ---- what nothing will run ------------------------------------------------------------------------

def test_cron_add_cron_list_and_status_say_that_nothing_fires_a_schedule(queue):
    assert "no worker serves queue mail" in queue.cli("cron", "add", "nightly", "@daily", "--queue", "mail", "exit 0").stderr
    assert "no supervisor runs" in queue.cli("cron", "list").stderr
    assert "no supervisor runs" in queue.cli("status").stderr
    assert [row["kind"] for row in queue.json("status")["warnings"]] == ["no supervisor"]
    queue.start(1)
    assert queue.cli("cron", "add", "daily", "@daily", "exit 0").stderr == queue.cli("cron", "list").stderr == queue.cli("status").stderr == ""


def test_status_names_each_queue_whose_jobs_no_worker_takes(queue):
    queue.start(1, "--queue", "mail")
    queue.enqueue("exit 0")
    assert "no worker serves queue default" in queue.cli("status").stderr


@posix_only("a terminal")
def test_enqueue_on_a_terminal_says_that_no_worker_serves_the_job(queue):
    assert "no worker serves it" in queue.terminal("enqueue", "exit 0")[1]
    assert "no worker" not in queue.terminal("enqueue", "-q", "exit 0")[1]
    assert queue.cli("enqueue", "exit 0").stderr == ""


# ---- workers --------------------------------------------------------------------------------------

def test_worker_list_has_queues_place_and_version_and_tells_of_another_file(queue):
    queue.start(1, "--queue", "mail,web"), queue.start(1)
    first, second = queue.json("worker", "list")
    assert (first["queues"], second["queues"]) == (["mail", "web"], None)
    assert {first["place"], second["place"]} == {"here"} and first["outdated"] is False
    assert re.search(r"mail,web +here +\d+\.\d+", queue.out("worker", "list"))
    text = "import sys; sys.path.insert(0, %r); import queuectl; queuectl.program_version = lambda: 'another'; sys.exit(queuectl.main())"
    from conftest import ROOT
    told = queue.run([queue.program[0], "-c", text % str(ROOT), "--db", str(queue.db), "worker", "list"]).stdout
    assert told.count("restart to use the new one") == 2


def test_a_second_worker_start_says_how_many_run_already(queue):
    assert queue.start(2).stderr == ""
    assert "2 other workers run already" in queue.start(1).stderr


def test_worker_stop_names_the_workers_of_a_run(queue):
    go = queue.dir / "go"
    run = queue.beside("run", *queue.script("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)", go))
    wait_until(lambda: queue.db.exists() and queue.json("status")["jobs"]["processing"], message="the run runs")
    queue.start(1)
    done = queue.stop()
    assert "Stopped 1 worker" in done.stdout and "a `run` has its own workers" in done.stderr, done
    go.touch()
    assert run.ends() == 0


def test_a_drain_exits_1_if_jobs_died_while_it_ran(queue):
    finish(queue, "exit 9")
    queue.enqueue("exit 0")
    assert queue.cli("worker", "start", "--drain", "--foreground").returncode == 0
    queue.enqueue("--max-retries", "0", "exit 3")
    assert queue.cli("worker", "start", "--drain", "--foreground", check=False).returncode == 1


# ---- a wrong row ----------------------------------------------------------------------------------

def test_a_wrong_row_does_not_hide_the_others_of_a_list(queue):
    queue.cli("enqueue", "--file", "-", stdin="exit 0\n" * 4)
    queue.sql("UPDATE job SET timeout='soon' WHERE id=2"), queue.sql("UPDATE job SET state='odd' WHERE id=3")
    queue.sql("UPDATE queue SET max_running='x'"), queue.sql("UPDATE batch SET total='x'")
    assert [job["id"] for job in queue.json("list")] == [4, 3, 2, 1]
    assert "job '2' has a value of a wrong type" in queue.out("list")
    for words in (["list", "--tree"], ["list", "--json"], ["queue", "list"], ["batch", "list"], ["top", "--once"], ["list", "--state", "pending"]):
        assert queue.cli(*words).returncode == 0


@pytest.mark.broad
def test_doctor_tells_of_free_pages_and_gives_them_back_while_no_worker_runs(queue):
    queue.enqueue("--queue", "mail", "exit 0")
    with sqlite3.connect(str(queue.db)) as database:
        for statement in ("CREATE TABLE big(x)", "INSERT INTO big VALUES(zeroblob(20000000))", "DROP TABLE big", "PRAGMA wal_checkpoint"):
            database.execute(statement)
            database.commit()
    database.close()

    def said(*options):
        return [row for row in queue.json("doctor", *options, check=False) if "of the file are free" in row["text"]]
    queue.start(1, "--queue", "other")
    assert [row["level"] for row in said()] == ["ok"]
    assert [row["level"] for row in said("--fix")] == ["ok"]
    queue.stop()
    assert queue.db.stat().st_size > 18000000
    assert [row["level"] for row in said("--fix")] == ["fixed"]
    assert queue.db.stat().st_size < 1000000 and said() == []
    assert [job["queue"] for job in queue.json("list")] == ["mail"]
    queue.start(1)
    queue.wait_for(1, "completed")
