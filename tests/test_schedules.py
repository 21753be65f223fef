"""Schedules as people keep them: the zone is their own, one that is broken harms no other, they need not overlap."""
from __future__ import annotations

import shutil
import sqlite3
import time

import pytest
from conftest import ROOT, posix_only, wait_until
from life import Clock, open_store

import queuectl

ZONEINFO = "/usr/share/zoneinfo"
needs_zones = pytest.mark.skipif(queuectl.zone_data("Asia/Tokyo") is None, reason="this machine has no time zone data")


def schedules(queue):
    return {row["name"]: row for row in queue.json("cron", "list")}


def change(queue, statement, *values):
    connection = sqlite3.connect(str(queue.db), timeout=10, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


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
    store.add_schedule("s", "30 8 * * *", None, {"command": "x"}, "Europe/Berlin")
    monkeypatch.setattr(queuectl, "zone_folders", list)
    seen = []
    for _ in range(3):
        clock.now = store.schedules()[0].next_at
        store.tick()
        seen.append(time.strftime("%d %H:%M", time.gmtime(clock())))
    assert seen == ["28 07:30", "29 06:30", "30 06:30"]
    store.close()


@needs_zones
def test_a_time_of_day_in_a_schedules_options_is_in_the_schedules_zone(tmp_path, clock):
    store = open_store(tmp_path, clock)
    store.add_schedule("s", "0 0 * * *", None, {"command": "x", "at": "09:00"}, "Asia/Tokyo")
    store.add_schedule("e", None, 3600.0, {"command": "x", "at": "09:00"}, "Asia/Tokyo")
    for name in ("s", "e"):
        assert time.gmtime(store.job(store.run_schedule(name)).run_at)[3:5] == (0, 0)
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
    with queuectl.Queue(str(old)) as store:
        assert store.schedule("old").tz == "Asia/Tokyo" and store.schedule("old").rule == "JST-9"
        assert store.schedule("bare").tz == queuectl.OS.zone()
    with queuectl.Queue(str(tmp_path / "b.db")) as store:
        assert (store.schedule("a").tz, store.schedule("a").rule) == ("Asia/Tokyo", "JST-9")


# ---- names and the command line -------------------------------------------------------------------------------------

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
    assert done.returncode == 2 and "not both" in done.stderr and schedules(queue) == {}


def test_a_word_is_refused_as_a_name_only_where_it_would_be_looked_up_as_something_else(queue):
    for name in ("all", "Last", "none", "batch", "7-7a", "ALL"):
        assert queue.job(queue.enqueue("--id", name, "exit 0")).name == name
        queue.cli("cron", "add", name, "@daily", "exit 0")
    queue.cli("enqueue", "--after", "all", "exit 0")
    for name in ("last", "7", "5-8", "05"):
        for words in (["enqueue", "--id", name, "exit 0"], ["cron", "add", name, "@daily", "exit 0"]):
            done = queue.cli(*words, check=False)
            assert done.returncode == 2 and "would read as an id" in done.stderr
    for name in ("last", "all", "7", "5-8", "\u00b2-\u00b3"):
        queue.cli("enqueue", "--queue", name, "exit 0")
        queue.cli("queue", "pause", name)
    assert "\u00b2-\u00b3" in queue.cli("show", "\u00b2-\u00b3", check=False).stderr
    assert queue.cli("cancel", "all").stdout
    assert queue.job("all").state == "cancelled" and queue.job("Last").state == "pending"
