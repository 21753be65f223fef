"""Schedules as people keep them: the zone is their own, one that is broken harms no other, they need not overlap."""
from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time

import pytest
from conftest import ROOT, WINDOWS, posix_only, wait_until
from jobs import change, states
from life import Clock, add_schedule, claim, finish, open_store

import queuectl

ZONEINFO = "/usr/share/zoneinfo"
needs_zones = pytest.mark.skipif(WINDOWS or queuectl.zone_data("Asia/Tokyo") is None, reason="POSIX only: time zone data of the system")


def schedules(queue):
    return {row["name"]: row for row in queue.json("cron", "list")} if queue.db.exists() else {}


# ---- the zone of a schedule ---------------------------------------------------------------------------------------

@needs_zones
def test_a_schedule_keeps_the_zone_it_was_added_in_whoever_fires_pauses_and_looks(queue):
    queue.cli("cron", "add", "nightly", "30 0 * * *", "exit 0", env={"TZ": "Asia/Tokyo"})

    def time_of_day():
        return schedules(queue)["nightly"]["next_at"][11:19]
    assert time_of_day() == "15:30:00" and schedules(queue)["nightly"]["tz"] == "Asia/Tokyo"
    queue.cli("cron", "pause", "nightly", env={"TZ": "America/New_York"})
    queue.cli("cron", "resume", "nightly", env={"TZ": "America/New_York"})
    assert time_of_day() == "15:30:00"
    change(queue, "UPDATE schedule SET next_at=?", time.time() - 5)
    queue.beside("worker", "start", "--foreground", env={"TZ": "UTC"})
    wait_until(lambda: schedules(queue)["nightly"]["last_at"], message="it fired")
    assert time_of_day() == "15:30:00"
    assert "30 0 * * * Asia/Tokyo" in queue.out("cron", "list", env={"TZ": "UTC", "COLUMNS": "200"})
    assert "Asia/Tokyo" not in queue.out("cron", "list", env={"TZ": "Asia/Tokyo", "COLUMNS": "200"})


@pytest.mark.sampled(4)
@posix_only("TZ, as the C library reads it")
@needs_zones
@pytest.mark.parametrize("value, zone, utc", [
    ("Asia/Tokyo", "Asia/Tokyo", "15:30"), (":Asia/Tokyo", "Asia/Tokyo", "15:30"), ("JST-9", "JST-9", "15:30"),
    (ZONEINFO + "/Asia/Tokyo", "Asia/Tokyo", "15:30"), ("<+0530>-5:30", "<+0530>-5:30", "19:00"), ("", "UTC", "00:30"),
    ("UTC", "UTC", "00:30"), (":/nowhere", "UTC", "00:30")])
def test_whatever_tz_holds_is_resolved_when_the_schedule_is_added(queue, value, zone, utc):
    queue.cli("cron", "add", "s", "30 0 * * *", "exit 0", env={"TZ": value})
    found = schedules(queue)["s"]
    assert (found["tz"], found["next_at"][11:16]) == (zone, utc)


@posix_only("/etc/localtime")
@pytest.mark.skipif(not os.path.exists(ZONEINFO + "/localtime"), reason="only some systems have such a file among the zones")
def test_localtime_is_no_name_of_a_zone(queue):
    queue.cli("cron", "add", "given", "30 0 * * *", "--tz", "localtime", "exit 0", env={"TZ": "Asia/Tokyo"})
    queue.cli("cron", "add", "set", "30 0 * * *", "exit 0", env={"TZ": ":localtime"})
    assert {row["tz"] for row in schedules(queue).values()} == {queuectl.OS.zone(None)} != {"localtime"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("zone", ["Mars/North", "Europe/Berln", "CET-1CEST,M3.5.0"])
def test_a_tz_that_is_no_zone_is_refused_and_nothing_is_stored(queue, zone):
    done = queue.cli("cron", "add", "s", "30 0 * * *", "exit 0", env={"TZ": zone}, check=False)
    assert done.returncode == 2 and zone in done.stderr and done.stderr.count("\n") == 1
    assert schedules(queue) == {}
    queue.cli("cron", "add", "s", "30 0 * * *", "--tz", "UTC", "exit 0", env={"TZ": zone})
    queue.cli("cron", "add", "every", "--every", "1h", "exit 0", env={"TZ": zone})


@posix_only("/etc/localtime")
@needs_zones
def test_a_link_or_a_copy_for_localtime_is_told_by_its_name_or_by_its_rule(tmp_path):
    link, copy, other = tmp_path / "link", tmp_path / "copy", tmp_path / "other"
    link.symlink_to(ZONEINFO + "/Europe/Berlin")
    shutil.copy(ZONEINFO + "/Europe/Berlin", copy)
    other.write_text("no zone at all\n")
    assert queuectl.OS.zone(str(link)).startswith("Europe/") or queuectl.OS.zone(str(link)) == "Arctic/Longyearbyen"
    assert queuectl.OS.zone(str(copy)) == "CET-1CEST,M3.5.0,M10.5.0/3"
    assert queuectl.OS.zone(str(other)) == "UTC"
    assert queuectl.zone_data(queuectl.OS.zone()) is not None or queuectl.posix_offset(queuectl.OS.zone()) is not None


@needs_zones
def test_a_schedule_is_fired_by_its_zone_on_a_machine_without_time_zone_data(tmp_path, monkeypatch):
    clock = Clock(1774620000.0)  # 2026-03-27 14:00 UTC; Berlin's clocks change on the 29th
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", "30 8 * * *", None, {"command": "x"}, "Europe/Berlin")
    monkeypatch.setattr(queuectl, "zone_folders", list)
    seen = []
    for _ in range(3):
        clock.now = store.schedules.list()[0].next_at
        store.schedules.tick()
        seen.append(time.strftime("%d %H:%M", time.gmtime(clock())))
    assert seen == ["28 07:30", "29 06:30", "30 06:30"]
    store.close()


@needs_zones
def test_a_time_of_day_in_a_schedules_options_is_in_the_schedules_zone(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", "0 0 * * *", None, {"command": "x", "at": "09:00"}, "Asia/Tokyo")
    add_schedule(store, "e", None, 3600.0, {"command": "x", "at": "09:00"}, "Asia/Tokyo")
    for name in ("s", "e"):
        assert time.gmtime(store.look.job(store.schedules.run(name)).run_at)[3:5] == (0, 0)
    store.close()


@needs_zones
def test_an_export_carries_the_zone_and_a_queue_of_1_0_gets_the_one_its_adder_had(queue, tmp_path):
    queue.cli("cron", "add", "a", "30 0 * * *", "exit 0", env={"TZ": "Asia/Tokyo"})
    dump = queue.out("export")
    queue.cli("--db", str(tmp_path / "b.db"), "import", "-", stdin=dump, env={"TZ": "UTC"})
    queue.cli("--db", str(tmp_path / "b.db"), "cron", "pause", "a", env={"TZ": "UTC"})
    old = tmp_path / "old.db"
    shutil.copy(ROOT / "tests" / "data" / "queue-1.0.db", old)
    connection = sqlite3.connect(str(old))
    number = connection.execute("INSERT INTO env(hash, uses, data) VALUES(0, 1, ?)", (b"HOME=/\0TZ=Asia/Tokyo",)).lastrowid
    connection.execute("INSERT INTO schedule(name, spec, misfire, no_overlap, next_at, options, cwd, env, created_at) "
                       "VALUES('old', '30 0 * * *', 'once', 0, 1e10, '{\"command\": \"x\"}', '/', ?, 0)", (number,))
    connection.execute("INSERT INTO schedule(name, spec, misfire, no_overlap, next_at, options, cwd, env, created_at) "
                       "VALUES('bare', '30 0 * * *', 'once', 0, 1e10, '{\"command\": \"x\"}', '/', 99, 0)")
    connection.commit()
    connection.close()
    with queuectl.Store(str(old)) as store:
        assert store.schedules.get("old").tz == "Asia/Tokyo" and store.schedules.get("old").rule == "JST-9"
        assert store.schedules.get("bare").tz == queuectl.OS.zone()
    with queuectl.Store(str(tmp_path / "b.db")) as store:
        assert (store.schedules.get("a").tz, store.schedules.get("a").rule) == ("Asia/Tokyo", "JST-9")


@needs_zones
def test_what_replaces_a_schedule_keeps_its_zone_unless_it_is_told_another(queue):
    queue.cli("cron", "add", "s", "30 0 * * *", "exit 0", env={"TZ": "Asia/Tokyo"})
    queue.cli("cron", "add", "s", "45 0 * * *", "--replace", "exit 0", env={"TZ": "America/New_York"})
    assert (schedules(queue)["s"]["tz"], schedules(queue)["s"]["next_at"][11:16]) == ("Asia/Tokyo", "15:45")
    queue.cli("cron", "load", "-", "--replace", stdin="# name: s\n50 0 * * * exit 0\n", env={"TZ": "UTC"})
    assert (schedules(queue)["s"]["tz"], schedules(queue)["s"]["next_at"][11:16]) == ("Asia/Tokyo", "15:50")
    queue.cli("cron", "add", "s", "45 0 * * *", "--replace", "--tz", "UTC", "exit 0", env={"TZ": "Asia/Tokyo"})
    assert schedules(queue)["s"]["tz"] == "UTC"


# ---- names and the command line -------------------------------------------------------------------------------------

@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", [
    ["--no-overlap", "n", "*/5 * * * *", "ls", "-l"], ["n", "--no-overlap", "*/5 * * * *", "ls", "-l"],
    ["n", "*/5 * * * *", "--no-overlap", "ls", "-l"], ["--no-overlap", "--", "n", "*/5 * * * *", "ls", "-l"],
    ["--no-overlap", "n", "--", "*/5 * * * *", "ls", "-l"], ["-p", "3", "n", "--no-overlap", "*/5 * * * *", "--", "ls", "-l"],
    ["--priority=3", "--no-overlap", "n", "*/5 * * * *", "ls", "-l"]], ids=" ".join)
def test_the_options_of_cron_add_may_stand_before_between_and_after_its_words(queue, words):
    queue.cli("cron", "add", *words)
    found = schedules(queue)["n"]
    assert (found["spec"], found["command"], found["no_overlap"]) == ("*/5 * * * *", ["ls", "-l"], True)
    assert found.get("priority") == ("3" if "3" in " ".join(words) else None)


@pytest.mark.parametrize("words", [
    ["--every", "90s", "n", "ls", "-l"], ["n", "--every", "90s", "ls", "-l"], ["n", "--every=90s", "--", "ls", "-l"],
    ["--every=90s", "-p", "1", "n", "-p", "2", "ls", "-l"]], ids=" ".join)
def test_with_every_the_first_word_is_the_name_and_the_rest_is_the_command(queue, words):
    queue.cli("cron", "add", *words)
    found = schedules(queue)["n"]
    assert (found["spec"], found["every"], found["command"]) == (None, 90.0, ["ls", "-l"])


def test_a_cron_line_and_every_are_refused_together(queue):
    done = queue.cli("cron", "add", "n", "* * * * *", "--every", "90s", "ls", check=False)
    assert done.returncode == 2 and "not both" in done.stderr and not queue.db.exists()


@pytest.mark.slow
def test_a_word_is_refused_as_a_name_only_where_it_would_be_looked_up_as_something_else(queue):
    for name in ("all", "Last", "none", "batch", "7-7a", "ALL"):
        assert queue.job(queue.enqueue("--id", name, "exit 0")).name == name
        queue.cli("cron", "add", name, "@daily", "exit 0")
    queue.cli("enqueue", "--after", "all", "exit 0")
    for name in ("last", "7", "5-8", "05"):
        for words in (["enqueue", "--id", name, "exit 0"], ["cron", "add", name, "@daily", "exit 0"]):
            done = queue.cli(*words, check=False)
            assert done.returncode == 2 and "would read as %s: choose another" % (
                "the newest job" if name == "last" else "an id") in done.stderr
    for name in ("last", "all", "7", "5-8", "\u00b2-\u00b3"):
        queue.cli("enqueue", "--queue", name, "exit 0")
        queue.cli("queue", "pause", name)
    assert "\u00b2-\u00b3" in queue.cli("show", "\u00b2-\u00b3", check=False).stderr
    assert queue.cli("cancel", "all").stdout
    assert queue.job("all").state == "cancelled" and queue.job("Last").state == "pending"


# ---- one that is broken harms no other ------------------------------------------------------------------------------

BROKEN = {  # columns that somebody wrote: words that `cron list` and `doctor` must say
    "zone": ("tz='Mars/North', rule=NULL", "Mars/North"), "spec": ("spec='61 * * * *'", "61"), "no spec": ("spec=NULL", "can't be read"),
    "options": ("options='no JSON'", "JSON"), "a list": ("options='[1]'", "JSON"), "a number": ("options='5'", "JSON"),
    "command": ("options='{\"command\": 5}'", "command"), "an option": ("options='{\"command\": \"x\", \"slots\": \"many\"}'", "slots"),
    "another": ("options='{\"command\": \"x\", \"no-such\": 1}'", "no-such"), "deep": ("options='%s'" % ("[" * 100000), "JSON"),
    "no interval": ("spec=NULL, every=0", "too short"), "backwards": ("spec=NULL, every=-5", "too short"),
    "instant": ("spec=NULL, every=1e-9", "too short"), "overlap": ("no_overlap=7", "can't be read"),
    "at": ("options='{\"command\": \"x\", \"at\": \"9:x00\"}'", ""), "parent": ("options='{\"command\": \"x\", \"after\": \"77\"}'", "77"),
    "bytes": ("options=CAST(x'7b22ff22' AS TEXT)", "JSON"), "odd": ("tz=CAST(x'ff41' AS TEXT), rule=CAST(x'fe' AS TEXT)", "time zone"),
    "folder": ("cwd=CAST(x'2fff' AS TEXT), spec=CAST(x'ff' AS TEXT)", "five fields"),
    "types": ("next_at='x', last_at=x'ff', last_job='odd', paused=0.5, no_overlap='x', tz=x'00', created_at='z'", "wrong value in tz, no_overlap"),
    "texts": ("spec=x'00', every='x', options=x'7b', cwd=5, misfire=x'ff', error=x'ff'", "wrong value in spec, every"),
    "big": ("options='{\"command\": \"x\", \"priority\": 1e300}'", "priority")}


def spoil(queue, name, columns):
    change(queue, "UPDATE schedule SET %s WHERE name='%s'" % (columns, name))


def test_schedules_that_cannot_run_are_told_and_harm_nothing_else(queue):
    with queuectl.Store(str(queue.db)) as store:
        for name in [*BROKEN, "fine"]:
            add_schedule(store, name, "* * * * *", None, {"command": "exit 0"})
    for name in BROKEN:
        spoil(queue, name, BROKEN[name][0])
    change(queue, "UPDATE schedule SET next_at=?", time.time() - 5)
    for _ in range(2):
        worker = queue.beside("worker", "start", "--foreground")
        wait_until(lambda: not queue.sql("SELECT 1 FROM schedule WHERE paused=0 AND next_at<=?", time.time()), message="all were tried")
        queue.wait_for(queue.enqueue("exit 0"), "completed")
        assert worker.poll() is None, worker.text()
        worker.terminate()
        worker.ends()
    assert queue.sql("SELECT count(*) FROM job WHERE schedule='fine'")[0][0] >= 1
    assert queue.sql("SELECT count(*) FROM job WHERE schedule<>'fine'")[0][0] <= 2 * 5, "those whose next time alone can't be told"
    found, table = schedules(queue), queue.out("cron", "list", env={"COLUMNS": "5000"})
    doctor = queue.cli("doctor", "--json", check=False)
    assert doctor.returncode == 2
    for name, (_, words) in BROKEN.items():
        assert found[name]["error"] and words in found[name]["error"], (name, found[name])
        assert any(line.startswith(name + " ") and found[name]["error"][:30] in line for line in table.splitlines()), (name, table)
        assert "%s: %s" % (name, found[name]["error"]) in " ".join(row["text"] for row in __import__("json").loads(doctor.stdout)), name
    with queuectl.Store(str(queue.db)) as store:
        for name in BROKEN:
            try:
                store.schedules.run(name)
            except queuectl.UserError as error:
                assert "can't run" in str(error)
            else:
                assert found[name]["next_at"] is None, "its time alone can't be told"
    done = queue.cli("cron", "run", "options", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert queue.cli("cron", "list", "--crontab").stdout.count("# name: ") == len(BROKEN) + 1
    queue.cli("cron", "pause", *BROKEN)
    assert queue.cli("cron", "resume", "zone", check=False).returncode == 2
    assert found["fine"]["error"] is None
    change(queue, "UPDATE schedule SET name=CAST(x'66ff' AS TEXT), next_at=1, paused=0 WHERE name='spec'")
    worker = queue.beside("worker", "start", "--foreground")
    wait_until(lambda: not queue.sql("SELECT 1 FROM schedule WHERE paused=0 AND next_at<=?", time.time()), message="it is not tried without end")
    assert worker.poll() is None, worker.text()
    assert "f\\xff" in queue.out("cron", "list") and len(schedules(queue)) == len(BROKEN) + 1
    queue.run([*queue.command("cron", "rm"), *(name for name in BROKEN if name != "spec"), b"f\xff"])
    assert "bad" not in queue.cli("doctor", check=False).stdout


def test_a_schedule_whose_zone_becomes_known_goes_on_when_workers_start_and_fires_at_its_time_only(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", "0 12 * * *", None, {"command": "x"}, "UTC")
    store.db.connection.execute("UPDATE schedule SET tz='Mars/North', next_at=?", (clock(),))
    store.schedules.tick()
    clock.pass_by(86400)
    store.schedules.tick()
    assert store.queues.counts()["pending"] == 1, "it was due once; when it would be due again, nobody knows"
    assert "Mars/North" in store.schedules.get("s").error and store.claims.next_time() > clock() + 10**9
    store.db.connection.execute("UPDATE schedule SET tz='UTC'")
    store.schedules.repair_clock()
    schedule = store.schedules.get("s")
    assert schedule.error is None and time.gmtime(schedule.next_at)[3:5] == (12, 0)
    store.schedules.tick()
    assert store.queues.counts()["pending"] == 1
    clock.now = schedule.next_at
    store.schedules.tick()
    assert store.queues.counts()["pending"] == 2
    store.close()


def test_a_full_disk_is_not_noted_as_a_schedules_fault(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", None, 60.0, {"command": "x" * 50000})
    clock.pass_by(61)
    [pages] = store.db.connection.execute("PRAGMA page_count").fetchone()
    store.db.connection.execute("PRAGMA max_page_count=%d" % pages)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.schedules.tick()
    assert store.schedules.get("s").error is None and store.schedules.get("s").next_at <= clock()
    store.db.connection.execute("PRAGMA max_page_count=100000")
    store.schedules.tick()
    assert store.queues.counts()["pending"] == 1
    store.close()


@posix_only("bash")
def test_a_schedule_with_a_shell_an_input_and_a_umask_has_no_trouble(queue):
    queue.cli("cron", "add", "s", "@daily", "--shell", "sh -e", "--stdin", "-", "--umask", "027", "cat", stdin="50%\n")
    assert schedules(queue)["s"]["error"] is None and "bad" not in queue.cli("doctor", check=False).stdout
    queue.cli("cron", "run", "s")
    queue.cli("worker", "start", "--foreground", "--drain")
    assert queue.out("logs", 1) == "50%"


# ---- overlap --------------------------------------------------------------------------------------------------------

def unfinished(store):
    return [job.id for job in store.look.jobs(("pending", "processing", "failed"))][::-1]


def test_no_overlap_looks_at_every_unfinished_job_of_the_schedule_whoever_enqueued_it(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", None, 60.0, {"command": "x"}, overlap="skip")

    def at_its_time():
        clock.pass_by(61)
        store.schedules.tick()
        return unfinished(store)
    assert at_its_time() == [1]
    first = claim(store)
    with pytest.raises(queuectl.UserError, match="job that is unfinished, 1"):
        store.schedules.run("s")
    assert at_its_time() == [1]
    finish(store, first)
    assert store.schedules.run("s") == 2
    assert at_its_time() == [2]
    finish(store, claim(store))
    store.life.retry([1])
    assert at_its_time() == [1], "one that was retried is unfinished again"
    store.life.cancel([1])
    assert at_its_time() == [3]
    store.schedules.remove("s")
    add_schedule(store, "s", None, 60.0, {"command": "x"}, overlap="skip")
    assert at_its_time() == [3], "added again, it is the same schedule"
    store.close()


def test_a_schedule_that_queues_runs_one_job_after_the_other(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", None, 60.0, {"command": "x"}, overlap="queue")
    add_schedule(store, "k", None, 3600.0, {"command": "x", "key": "mine"}, overlap="queue")
    for _ in range(3):
        clock.pass_by(61)
        store.schedules.tick()
    store.schedules.run("s")
    assert unfinished(store) == [1, 2, 3, 4]
    first = claim(store)
    assert claim(store, 2) is None
    finish(store, first)
    assert claim(store, 2).id == 2
    assert store.look.job(store.schedules.run("k")).key == "mine"
    store.close()


def test_a_schedule_that_replaces_cancels_what_is_unfinished_and_starts_when_that_has_ended(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", None, 60.0, {"command": "x"}, overlap="replace")
    for _ in range(2):
        clock.pass_by(61)
        store.schedules.tick()
    assert unfinished(store) == [2] and store.look.job(1).state == "cancelled"
    running = claim(store)
    clock.pass_by(61)
    store.schedules.tick()
    assert store.claims.cancel_asked(running) and claim(store, 2) is None, "the new one waits until the old one has ended"
    assert finish(store, running, "cancelled", None).state == "cancelled"
    assert claim(store, 2).id == 3
    assert store.schedules.run("s") == 4 and unfinished(store) == [3, 4]
    store.close()


def test_a_running_job_is_replaced_live(queue):
    queue.cli("cron", "add", "s", "@yearly", "--overlap", "replace", "--", *queue.sleeper(600))
    queue.start(2)
    queue.cli("cron", "run", "s")
    queue.wait_for(1, "processing")
    queue.cli("cron", "run", "s")
    queue.wait_for(1, "cancelled")
    queue.wait_for(2, "processing")
    assert schedules(queue)["s"]["overlap"] == "replace" and schedules(queue)["s"]["no_overlap"] is False
    queue.stop("--now")


@pytest.mark.parametrize("words, overlap", [([], "allow"), (["--no-overlap"], "skip"), (["--overlap", "skip"], "skip"),
                                            (["--overlap=queue"], "queue"), (["--no-overlap", "--overlap", "allow"], "allow")])
def test_the_overlap_of_a_schedule_is_what_was_said_last(queue, words, overlap):
    queue.cli("cron", "add", "s", "@daily", *words, "exit 0")
    found = schedules(queue)["s"]
    assert (found["overlap"], found["no_overlap"]) == (overlap, overlap == "skip")


def test_an_unknown_overlap_is_refused(queue):
    done = queue.cli("cron", "add", "s", "@daily", "--overlap", "replac", "exit 0", check=False)
    assert done.returncode == 2 and "did you mean replace?" in done.stderr and not queue.db.exists()


# ---- at boot, and in the place of another ---------------------------------------------------------------------------

@pytest.mark.slow
def test_reboot_runs_once_each_time_workers_start_after_a_boot(queue):
    assert "after the next boot" in queue.out("cron", "add", "s", "@reboot", "exit 0")
    queue.cli("cron", "add", "p", "@Reboot", "exit 0")
    queue.cli("cron", "pause", "p")
    assert schedules(queue)["s"]["next_at"] is None and schedules(queue)["s"]["error"] is None

    def enqueued():
        return queue.sql("SELECT schedule, count(*) FROM job GROUP BY schedule")
    queue.start()
    queue.stop()
    assert enqueued() == [], "added in this boot, it waits for the next"
    for times in (1, 2):
        change(queue, "UPDATE schedule SET boot='another'")
        queue.cli("run", "exit 0")
        for _ in range(3):
            queue.start()
        assert [row for row in enqueued() if row[0]] == [("s", times)]
        queue.stop()
    queue.cli("cron", "resume", "p")
    queue.start()
    queue.stop()
    assert [row for row in enqueued() if row[0]] == [("s", 2)], "resumed in this boot, it waits for the next"
    assert queue.cli("cron", "run", "s").stdout


def test_a_schedule_is_replaced_in_its_place(queue):
    queue.cli("cron", "add", "s", "0 3 * * *", "--tz", "UTC", "exit 1")
    done = queue.cli("cron", "add", "s", "0 4 * * *", "exit 0", check=False)
    assert done.returncode == 2 and "--replace" in done.stderr
    queue.cli("cron", "run", "s")
    queue.cli("cron", "add", "s", "0 4 * * *", "--tz", "UTC", "--replace", "exit 0")
    found = schedules(queue)["s"]
    assert (found["spec"], found["command"], found["last_job"]) == ("0 4 * * *", "exit 0", 1) and found["next_at"][11:16] == "04:00"
    change(queue, "UPDATE schedule SET next_at=?", time.time() - 1000)
    queue.cli("cron", "add", "s", "0 4 * * *", "--tz", "UTC", "--replace", "exit 2")
    assert queue.sql("SELECT count(*) FROM schedule WHERE next_at<?", time.time()) == [(1,)], "a time that is due is not lost"
    queue.cli("cron", "pause", "s")
    assert "stays paused" in queue.out("cron", "add", "s", "0 5 * * *", "--replace", "exit 2")
    assert schedules(queue)["s"]["paused"] is True
    queue.cli("cron", "add", "new", "@daily", "--replace", "exit 2")
    assert queue.sql("SELECT sum(uses) FROM env") == [(3,)], "two schedules and the job"


def test_what_replaces_an_interval_keeps_its_beat(tmp_path, clock):
    store = open_store(tmp_path, clock)
    add_schedule(store, "s", None, 3600.0, {"command": "x"})
    for _ in range(10):  # deployed again and again, more often than it runs
        clock.pass_by(1800)
        store.schedules.tick()
        add_schedule(store, "s", None, 3600.0, {"command": "x"}, replace=True)
    assert store.queues.counts()["pending"] == 5
    store.close()


# ---- crontabs -------------------------------------------------------------------------------------------------------

CRONTAB = r"""# what ran here for years
SHELL=/bin/sh
  GREETING = "hello  there"
MAILTO=root

30 2 * * *   ./backup.sh --all  >> backup.log 2>&1
# name: greet
@daily cat; printf '\%s\n' "100\%" '\a'%Hello%world \% done
CRON_TZ=Asia/Tokyo
GREETING='later'
0 9	*  * mon-fri cd / && WHERE=x pwd; echo "$WHERE $GREETING"
@reboot /usr/bin/env sh -c 'echo up'
SHELL=sh -e
0 0 1,L * 5L ./backup.sh
"""


@posix_only("a shell, and the commands of POSIX")
@needs_zones
def test_a_crontab_is_loaded_as_it_stands(queue):
    home = queue.dir / "at home"
    home.mkdir()
    done = queue.cli("cron", "load", "-", stdin="HOME=%s\n" % home + CRONTAB)
    assert done.stderr.count("\n") == 1 and "line 5: MAILTO" in done.stderr and done.stdout.count("\n") == 5
    found = schedules(queue)
    assert {name: (row["spec"], row["tz"]) for name, row in found.items()} == {
        "backup.sh": ("30 2 * * *", queuectl.OS.zone()), "greet": ("@daily", queuectl.OS.zone()),
        "pwd": ("0 9 * * mon-fri", "Asia/Tokyo"), "echo": ("@reboot", "Asia/Tokyo"), "backup.sh-2": ("0 0 1,L * 5L", "Asia/Tokyo")}
    assert found["backup.sh"]["command"] == "./backup.sh --all  >> backup.log 2>&1"
    (home / "backup.sh").write_text("#!/bin/sh\npwd; echo \"$GREETING, $1\"\n")
    (home / "backup.sh").chmod(0o755)
    for name in ("greet", "pwd", "backup.sh"):
        queue.cli("cron", "run", name)
    queue.cli("worker", "start", "--foreground", "--drain")
    assert queue.out("logs", 1) == "Hello\nworld % done\n100%\n\\a"
    assert queue.out("logs", 2) == "/\nx later" or queue.out("logs", 2) == "/\n later"
    assert (home / "backup.log").read_text() == "%s\nhello  there, --all\n" % home


@pytest.mark.sampled(5)
@pytest.mark.parametrize("line, words", [
    ("61 * * * * x", "minute '61'"), ("* * * * *", "no command"), ("* * * x", "five fields"), ("@often x", "@often"), ("@daily", "no command"),
    ("hello world", "five fields"), ("CRON_TZ=Mars/North", "Mars/North"), ("# name: 7\n* * * * * x", "would read as an id"),
    ("# name: a\n* * * * * x\n# name: a\n* * * * * y", "given twice"), ("* * * * * %stdin only", "no command"), ("A B=c", "five fields"), ("SHELL=/no/shell\n* * * * * x", "/no/shell"),
    ("-*/5 * * * * x", "minute '-*/5'"), ("* * 0 * * x", "day of month '0'")])
def test_a_line_that_is_none_of_a_crontabs_is_named_and_nothing_is_stored(queue, line, words):
    done = queue.cli("cron", "load", "-", stdin="@daily fine\n\n" + line + "\n", check=False)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "line %d: " % (2 + len(line.split("\n"))) in done.stderr and done.stderr.count("\n") == 1
    assert not queue.db.exists()


def test_every_bad_line_of_a_crontab_is_named(queue):
    text = "0 25 * * * a\n@daily fine\nCRON_TZ=Mars/North\n\n61 * * * * b\n"
    done = queue.cli("cron", "load", "-", stdin=text, check=False)
    assert done.returncode == 2 and not queue.db.exists()
    assert re.findall(r"line (\d+): ", done.stderr) == ["1", "3", "5"] and done.stderr.count("\n") == 1
    many = queue.cli("cron", "load", "-", stdin="x\n" * 50, check=False).stderr
    assert many.count("line ") == 20 and "and 30 more" in many
    queue.cli("cron", "load", "-", stdin="@daily one\n@daily fine\n@daily two\n")  # names that are taken
    done = queue.cli("cron", "load", "-", stdin="@daily two\n@daily three\n@daily one\n", check=False)
    assert "there are schedules 'two', 'one' already" in done.stderr and len(schedules(queue)) == 3


def test_a_crontab_without_entries_and_one_of_the_system_are_refused(queue):
    for words, stdin, said in ((["-"], "# nothing\nA=b\n", "no line that runs"), (["/etc/crontab"], "", "a user on each line"),
                               (["/etc/cron.d/x"], "", "a user on each line"), ([queue.dir / "none"], "", "can't read")):
        done = queue.cli("cron", "load", *words, stdin=stdin, check=False)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_crontab_is_loaded_again_only_in_the_place_of_its_schedules(queue):
    text = "\ufeff@daily echo 1\r\n@hourly echo 2\r\n"
    queue.cli("cron", "load", "-", stdin=text)
    assert [(row["spec"], row["command"]) for row in queue.json("cron", "list")] == [("@daily", "echo 1"), ("@hourly", "echo 2")]
    done = queue.cli("cron", "load", "-", stdin="@daily other\n" + text, check=False)
    assert done.returncode == 2 and "'echo'" in done.stderr and len(schedules(queue)) == 2
    queue.cli("cron", "load", "-", "--replace", stdin="@daily other\n" + text.replace("echo 2", "echo 3"))
    assert {name: row["command"] for name, row in schedules(queue).items()} == {"echo": "echo 1", "echo-2": "echo 3", "other": "other"}


def vixie_percent(text):
    """The command and the standard input of a crontab's line: the two loops of do_command.c, Vixie cron 4.1."""
    command, escaped, i = "", False, 0
    while i < len(text):
        char = text[i]
        i += 1
        if escaped:
            command = command[:-1] + char if char == "%" else command + char
            escaped = False
            continue
        if char == "%":
            break
        escaped = char == "\\"
        command += char
    given, escaped = "", False
    for char in text[i:]:
        if escaped and char != "%":
            given += "\\"
        elif not escaped and char == "%":
            char = "\n"
        escaped = char == "\\"
        if not escaped:
            given += char
    given += "\\" * escaped
    return command, given if not given or given.endswith("\n") else given + "\n"


def test_percent_signs_mean_what_vixie_cron_takes_them_for():
    rng = __import__("random").Random(7)
    for _ in range(3000):
        text = "x" + "".join(rng.choice("ab %%\\\\'") for _ in range(rng.randint(0, 12)))
        command, given = vixie_percent(text)
        found = queuectl.crontab_job(text, {})
        assert (found["command"], found.get("stdin", "")) == (command, given), text


@pytest.mark.broad
@posix_only("a shell, and the commands of POSIX")
@needs_zones
def test_what_is_printed_as_a_crontab_can_be_loaded_and_runs_the_same(queue, tmp_path):
    env = {"TZ": "UTC"}
    queue.cli("cron", "load", "-", stdin=CRONTAB, env=env)
    queue.cli("cron", "add", "percent", "@daily", "--cwd", str(tmp_path), "--env", "A=b c", "date +%Y >/dev/null; pwd; echo $A", env=env)
    queue.cli("cron", "add", "tokyo", "1 2 3 jul *", "--tz", "Asia/Tokyo", "-p", "5", "--no-overlap", "echo", "a  b", env=env)
    for words in (["every", "--every", "90s", "x"], ["nth", "0 0 * * 1#2", "x"], ["lines", "@daily", "echo 1\necho 2"],
                  ["backslash", "@daily", r"printf '\\%'"]):
        queue.cli("cron", "add", *words, env=env)
    queue.cli("cron", "pause", "greet")
    text = queue.out("cron", "list", "--crontab", env=env)
    lines = text.split("\n")
    assert "# paused: @daily" in text and "# every 90s: " in text and text.count("# not for cron: ") == 3 and "# more than a line: " in text
    assert "# left out: priority=5 overlap=skip" in lines and "CRON_TZ=Asia/Tokyo" in lines
    assert all(line[:1] in "#@0123456789C" for line in lines)
    other = str(tmp_path / "other.db")
    queue.cli("--db", other, "cron", "load", "-", stdin=text, env=env)
    again = queue.out("--db", other, "cron", "list", "--crontab", env=env)
    plain = [line for line in lines if line[:1] != "#"]
    assert [line for line in again.split("\n") if line[:1] != "#"] == plain and len(plain) >= 5
    queue.cli("--db", other, "cron", "run", "percent", "tokyo")
    queue.cli("--db", other, "worker", "start", "--foreground", "--drain")
    assert queue.out("--db", other, "logs", 1) == "%s\nb c" % tmp_path
    assert queue.out("--db", other, "logs", 2) == "a  b"


def test_a_job_that_comes_after_a_schedule_comes_after_its_newest_job(queue):
    queue.cli("cron", "add", "nightly", "30 2 * * *", "echo backup")
    queue.cli("cron", "add", "cleanup", "30 2 * * *", "--after", "nightly", "echo cleanup")
    assert queue.cli("cron", "add", "typo", "30 2 * * *", "--after", "nightl", "echo", check=False).returncode == 2
    change(queue, "UPDATE schedule SET next_at=next_at-86400*3")
    queue.start(1)
    wait_until(lambda: set(states(queue).values()) == {"completed"} and len(states(queue)) == 2, message="both ran")
    assert [queue.out("logs", job) for job, in queue.sql("SELECT job FROM history ORDER BY seq")] == ["backup", "cleanup"]
    [[parent, child]] = queue.sql("SELECT parent, child FROM dep")
    assert (queue.job(parent).schedule, queue.job(child).schedule) == ("nightly", "cleanup")


# ---- many at once -------------------------------------------------------------------------------------------------

def test_many_schedules_that_are_due_at_once_fire_in_portions_and_each_once(tmp_path):
    clock = Clock()
    store = open_store(tmp_path, clock)
    add_schedule(store, "z-parent", None, 1000.0, {"command": "true"})
    rows = [store.schedules.plan("a%03d" % n, {"command": "true", "after": "z-parent"}, {"every": 1000.0}) for n in range(150)]
    store.schedules.add(rows + [store.schedules.plan("m%03d" % n, {"command": "true"}, {"every": 1000.0}) for n in range(100)])
    clock.pass_by(1001)
    counts = []
    while store.claims.next_time() <= clock():
        store.schedules.tick()
        counts.append(store.queues.counts()["pending"])
    assert counts == [100, 200, 251]
    fired = store.look.jobs(limit=1000)
    assert len({job.schedule for job in fired}) == 251
    [parent] = [job.id for job in fired if job.schedule == "z-parent"]
    assert {parents for parents in map(tuple, store.look.parents([job.id for job in fired]).values())} == {(parent,)}
    store.close()


def test_after_the_clock_was_set_back_every_delay_and_every_schedule_is_corrected(tmp_path):
    clock = Clock()
    store = open_store(tmp_path, clock)
    store.schedules.add([store.schedules.plan("s%03d" % n, {"command": "true"}, {"every": 1000.0}) for n in range(250)])
    store.enqueue_many([{"command": "true", "delay": "60s"}] * 1100)
    clock.pass_by(-86400)
    store.schedules.repair_clock()
    assert {schedule.next_at for schedule in store.schedules.list()} == {clock() + 1000}
    assert {job.run_at for job in store.look.jobs(limit=2000)} == {clock() + 60}
    store.close()
