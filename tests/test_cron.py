"""Schedules: what a specification means, and when it runs next, daylight saving included."""
import os
import random
import re
import struct
import sys
import time
from datetime import datetime, timezone

import pytest
from conftest import not_on_wine
from croniter import CroniterBadDateError, croniter

import queuectl
from queuectl import UserError, next_run, parse_cron

DAY_S = 86400
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
WEEKDAYS = "sun mon tue wed thu fri sat".split()
FIELDS = ((0, 59, ()), (0, 23, ()), (1, 31, ()), (1, 12, MONTHS), (0, 6, WEEKDAYS))


def unix(text):
    """'2026-03-29 01:00' in UTC as unix time."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def utc(moment):
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M")


def runs(spec, after, count, tz="UTC"):
    cron, found = parse_cron(spec), []
    for _ in range(count):
        after = next_run(cron, after, tz)
        found.append(after)
    return found


# Two ways to the same zone: by name (zoneinfo), and as the machine's own.

@pytest.fixture(params=["by name", "as the machine's own"])
def in_zone(request, monkeypatch):
    """A function from a zone's name to the tz that makes next_run use it."""
    if request.param == "by name":
        yield lambda zone: zone
        return
    if not hasattr(time, "tzset"):
        pytest.skip("this machine's zone cannot be set for one process")

    def set_zone(zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


# What a specification means

@pytest.mark.parametrize("spec, same", [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * sun"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 jan *"),
    (" @Annually ", "@yearly"),
    ("  0  9\t* * 1 ", "0 9 * * 1"),
    ("0 9 * * MON,wEd", "0 9 * * 1,3"),
    ("0 9 1 jan-MAR,Dec *", "0 9 1 1-3,12 *"),
    ("05 09 * * *", "5 9 * * *"),
    ("5/15 * * * *", "5,20,35,50 * * * *"),
    ("10-50/10 0 * * *", "10,20,30,40,50 0 * * *"),
    ("59/15 0 * * *", "59 0 * * *"),
    ("7-7 0 * * *", "7 0 * * *"),
    ("0 0 * * 7", "0 0 * * 0"),
    ("0 0 * * 0-7", "0 0 * * 0-6"),
    ("0 0 * * fri-sun", "0 0 * * 0,5,6"),
    ("0 0 * * 5-7", "0 0 * * 0,5,6"),
    ("0 0 * * sun-tue", "0 0 * * 7-2"),
    ("0 0 * * 1/2", "0 0 * * 1,3,5"),
    ("0 0 * * 7-7", "0 0 * * sun"),
    ("0 0 * * 7-sun", "0 0 * * sun"),
    ("0 0 * * sun-7", "0 0 * * 0-6"),
    ("0 0 * * 07", "0 0 * * sun"),
    ("0 0 * * 6-07/1", "0 0 * * sat,sun"),
    ("0 0 * * 7,7-7/2", "0 0 * * sun"),
    ("0 0 * * 7#2", "0 0 * * sun#2"),
    ("0 0 * * 7L,SAT#4", "0 0 * * 0l,6#4"),
    ("0 0 15,L * *", "0 0 l,15 * *"),
])
def test_two_spellings_of_one_schedule_are_equal(spec, same):
    assert parse_cron(spec) == parse_cron(same)


def test_either_day_field_will_do_when_both_are_restricted():
    found = runs("0 0 13 * fri", unix("2026-02-01 00:00"), 5)
    assert list(map(utc, found)) == ["2026-02-06 00:00", "2026-02-13 00:00", "2026-02-20 00:00",
                                     "2026-02-27 00:00", "2026-03-06 00:00"]


@pytest.mark.parametrize("spec", ["0 0 */2 * mon", "0 0 1-31/2 * */1"])
def test_both_day_fields_must_match_when_one_starts_with_a_star(spec):
    for moment in runs(spec, unix("2026-01-01 00:00"), 50):
        date = datetime.fromtimestamp(moment, timezone.utc)
        assert date.day % 2 == 1
        assert date.weekday() == 0 or "mon" not in spec


@pytest.mark.parametrize("after, expected", [
    ("2026-01-01 08:59:59.999", "2026-01-01 09:00"),
    ("2026-01-01 09:00", "2026-01-02 09:00"),
    ("2026-01-01 09:00:00.001", "2026-01-02 09:00"),
    ("2026-12-31 23:59:59", "2027-01-01 09:00"),
])
def test_the_next_run_is_later_than_the_time_given(after, expected):
    assert utc(runs("0 9 * * *", unix(after), 1)[0]) == expected


def meant(first, last, low, high, step):
    """What N-M/step says, in the plainest form: both ends are in it, and 7 is Sunday again."""
    return tuple(sorted({0 if last == 6 and n == 7 else n for n in range(low, high + 1, step)}))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("index", range(5), ids=["minute", "hour", "day", "month", "weekday"])
def test_every_range_of_a_field_holds_both_its_ends_with_names_and_steps_too(index):
    first, last, names = FIELDS[index]
    spell = {first + n: name for n, name in enumerate(names)}
    top = 7 if last == 6 else last
    for low in range(first, top + 1):
        for high in range(low, top + 1):
            for step in sorted({1, 2, 5, last - first + 1}):
                for ends in {("%d" % low, "%02d" % high), (spell.get(low, "%d" % low), spell.get(high, "%d" % high))}:
                    fields = ["*"] * 5
                    fields[index] = "-".join(ends) + ("/%d" % step if step > 1 else "")
                    if index == 2:
                        fields[4] = "0-6"  # either will do, so that a 31st alone is no mistake
                    assert parse_cron(" ".join(fields))[index] == meant(first, last, low, high, step), fields


@pytest.mark.parametrize("spec, expected", [
    ("0 0 L * *", "2027-12-31, 2028-01-31, 2028-02-29, 2028-03-31, 2028-04-30"),
    ("0 0 15,L feb *", "2028-02-15, 2028-02-29, 2029-02-15, 2029-02-28"),
    ("0 0 LW * *", "2027-12-31, 2028-01-31, 2028-02-29, 2028-03-31, 2028-04-28"),   # 30 April 2028 is a Sunday
    ("0 0 LW 6,9 *", "2028-06-30, 2028-09-29, 2029-06-29, 2029-09-28"),             # 30 September is a Saturday, 2029 a Sunday
    ("0 0 * * 6#4", "2027-12-25, 2028-01-22, 2028-02-26, 2028-03-25"),
    ("0 0 * * fri#5", "2027-12-31, 2028-03-31, 2028-06-30"),
    ("0 0 * * 6L", "2027-12-25, 2028-01-29, 2028-02-26"),
    ("0 0 * * mon#1,7L", "2027-12-26, 2028-01-03, 2028-01-30"),
    ("0 0 L * 6L", "2027-12-25, 2027-12-31, 2028-01-29, 2028-01-31"),               # either day field will do
    ("0 0 */31 * mon#1", "2028-05-01, 2029-01-01"),                                  # both: one starts with a star
    ("0 0 * 2 2#5", "2028-02-29, 2056-02-29"),
])
def test_last_days_and_nth_weekdays_of_a_month(spec, expected):
    expected = expected.split(", ")
    found = runs(spec, unix("2027-12-25") - 1, len(expected))
    assert [utc(moment) for moment in found] == [day + " 00:00" for day in expected]


# Compared with croniter

def random_item(rng, first, last, names):
    """N or N-M, with a step or not; never N-N, which croniter reads as the whole cycle."""

    def write(value):
        if names and rng.random() < 0.4:
            return rng.choice([str.lower, str.upper, str.title])(names[value - first])
        return rng.choice(["%d", "%02d"]) % value

    low, high = sorted(rng.sample(range(first, last + 1), 2))
    if names is WEEKDAYS and rng.random() < 0.2 and low > 0:
        high = 0 if rng.random() < 0.5 else 7
    word = rng.choice([write(low), write(low), "%d-%d" % (low, high) if high in (0, 7)
                       else "%s-%s" % (write(low), write(high))])
    return word + ("/%d" % rng.randint(1, last - first + 1) if rng.random() < 0.3 else "")


def random_field(rng, first, last, names):
    """A star stands first or not at all: croniter reads 1,* as *, Vixie cron does not.

    croniter mixes no nth weekdays with plain ones, and knows no LW.
    """
    if last == 6 and rng.random() < 0.15:
        return ",".join(rng.choice(["%s#%d" % (day, rng.randint(1, 5)), "%sL" % day])
                        for day in rng.sample(range(8), rng.choice([1, 1, 2])))
    star = rng.choice(["*", "*/%d" % rng.randint(2, last - first + 1)])
    if rng.random() < 0.4:
        return star
    items = [random_item(rng, first, last, names) for _ in range(rng.choice([1, 1, 2, 3]))]
    if last == 31 and rng.random() < 0.15:
        items = items[1:] + [rng.choice("lL")]
    return ",".join([star] * (rng.random() < 0.1) + items)


def croniter_says(spec, after, count):
    """The next runs, or None for never.  Where both day fields are restricted, croniter wants an nth weekday to match
    beside the day of the month; Vixie cron takes either, so ask for each alone."""
    minute, hour, day, month, weekday = re.sub(r"\b(\d)L", r"L\1", spec).split()
    either = re.search("[#L]", weekday) and not day.startswith("*")
    found = set()
    for day, weekday in ((day, "*"), ("*", weekday)) if either else ((day, weekday),):
        theirs = croniter(" ".join((minute, hour, day, month, weekday)), after, implement_cron_bug=True)
        try:
            found.update([theirs.get_next(float) for _ in range(count)])
        except CroniterBadDateError:
            continue
    return sorted(found)[:count] or None


def random_spec(rng):
    return " ".join(random_field(rng, *field) for field in FIELDS)


@pytest.mark.sampled(3)
@pytest.mark.skipif(sys.version_info < (3, 9), reason="needs croniter 7, and that Python 3.9: "
                    "croniter 6 forgets the 1st of a month after a month without the 30th")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 10))])
def test_random_expressions_run_when_croniter_says(seed):
    rng = random.Random(seed)
    for _ in range(500):
        spec, after = random_spec(rng), rng.uniform(unix("2000-01-01"), unix("2040-01-01"))
        expected = croniter_says(spec, after, 4)
        if expected is None:
            with pytest.raises(UserError, match="never runs"):
                runs(spec, after, 1)
        else:
            assert runs(spec, after, 4) == expected, (spec, after)


# Daylight saving

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
TRANSITIONS = [  # zone, schedule, after, the next runs; all times in UTC
    # Berlin skips 02:00-03:00 at 01:00 UTC on 29 March 2026, repeats it from 01:00 on 25 October.
    (BERLIN, "30 1 * * *", "2026-03-28 12:00", "2026-03-29 00:30, 2026-03-29 23:30"),
    (BERLIN, "30 2 * * *", "2026-03-28 12:00", "2026-03-29 01:00, 2026-03-30 00:30"),
    (BERLIN, "30 2 29 3 *", "2026-01-01 00:00", "2026-03-29 01:00, 2027-03-29 00:30"),
    (BERLIN, "0,30 2,3 * * *", "2026-03-28 12:00",
     "2026-03-29 01:00, 2026-03-29 01:30, 2026-03-30 00:00"),
    (BERLIN, "30 2 * * *", "2026-03-29 01:00", "2026-03-30 00:30"),
    (BERLIN, "*/15 2 * * *", "2026-03-28 12:00", "2026-03-30 00:00"),
    (BERLIN, "30 * * * *", "2026-03-29 00:00", "2026-03-29 00:30, 2026-03-29 01:30"),
    (BERLIN, "*/30 * * * *", "2026-03-29 00:15", "2026-03-29 00:30, 2026-03-29 01:00"),
    (BERLIN, "30 2 * * *", "2026-10-24 12:00", "2026-10-25 00:30, 2026-10-26 01:30"),
    (BERLIN, "30 2 * * *", "2026-10-25 01:10", "2026-10-26 01:30"),
    (BERLIN, "0 3 * * *", "2026-10-24 12:00", "2026-10-25 02:00, 2026-10-26 02:00"),
    (BERLIN, "0 0-23 * * *", "2026-10-24 23:30", "2026-10-25 00:00, 2026-10-25 02:00"),
    (BERLIN, "@hourly", "2026-10-24 23:30", "2026-10-25 00:00, 2026-10-25 01:00, 2026-10-25 02:00"),
    (BERLIN, "*/30 2 * * *", "2026-10-24 12:00", "2026-10-25 00:00, 2026-10-25 00:30, "
     "2026-10-25 01:00, 2026-10-25 01:30, 2026-10-26 01:00"),
    (BERLIN, "*/20 2 25 10 *", "2026-10-25 00:50", "2026-10-25 01:00, 2026-10-25 01:20, "
     "2026-10-25 01:40, 2027-10-25 00:00"),
    # New York skips 02:00-03:00 at 07:00 UTC on 8 March; repeats 01:00-02:00 from 06:00 UTC on
    # 1 November.
    (NEW_YORK, "30 2 * * *", "2026-03-07 18:00", "2026-03-08 07:00, 2026-03-09 06:30"),
    (NEW_YORK, "30 2 * * sun", "2026-03-02 00:00", "2026-03-08 07:00, 2026-03-15 06:30"),
    (NEW_YORK, "30 1 * * *", "2026-10-31 18:00", "2026-11-01 05:30, 2026-11-02 06:30"),
    (NEW_YORK, "@daily", "2026-10-31 18:00", "2026-11-01 04:00, 2026-11-02 05:00"),
    (NEW_YORK, "*/30 * * * *", "2026-11-01 05:15", "2026-11-01 05:30, 2026-11-01 06:00, "
     "2026-11-01 06:30, 2026-11-01 07:00"),
    # Lord Howe skips 02:00-02:30 at 15:30 UTC on 3 October; repeats 01:30-02:00 from 15:00 UTC on
    # 4 April.
    (LORD_HOWE, "15 2 * * *", "2026-10-03 00:00", "2026-10-03 15:30, 2026-10-04 15:15"),
    (LORD_HOWE, "0 * * * *", "2026-10-03 14:00", "2026-10-03 14:30, 2026-10-03 16:00"),
    (LORD_HOWE, "45 1 * * *", "2026-04-04 00:00", "2026-04-04 14:45, 2026-04-05 15:15"),
    (LORD_HOWE, "*/20 * * * *", "2026-04-04 14:05", "2026-04-04 14:20, 2026-04-04 14:40, "
     "2026-04-04 15:10, 2026-04-04 15:30"),
    # Beirut skips midnight itself; Samoa skipped the whole of 30 December 2011 (at 10:00 UTC).
    ("Asia/Beirut", "@daily", "2026-03-27 23:00", "2026-03-28 22:00, 2026-03-29 21:00"),
    ("Pacific/Apia", "0 12 * * *", "2011-12-29 23:00", "2011-12-30 10:00, 2011-12-30 22:00"),
    ("Pacific/Apia", "0 */12 * * *", "2011-12-29 23:00", "2011-12-30 10:00, 2011-12-30 22:00"),
    ("UTC", "30 2 * * *", "2026-03-28 12:00", "2026-03-29 02:30, 2026-03-30 02:30"),
    ("UTC", "*/30 2 25 10 *", "2026-10-25 01:00",
     "2026-10-25 02:00, 2026-10-25 02:30, 2027-10-25 02:00"),
]


@pytest.mark.parametrize("zone, spec, after, expected", TRANSITIONS)
def test_schedules_follow_debian_cron_where_the_clock_jumps(in_zone, zone, spec, after, expected):
    expected = expected.split(", ")
    found = runs(spec, unix(after), len(expected), in_zone(zone))
    assert list(map(utc, found)) == expected


def watch(cron, clock):
    """The runs of `cron` by watching the clock, a list of (unix time, local time as if in UTC)
    by the minute: the rule of next_run in its plainest form."""
    found, shown = [], clock[0][1]
    for moment, wall in clock:
        minutes = [wall] if cron.by_clock else range(shown + 60, wall + 60, 60)
        if any(matches(cron, minute) for minute in minutes):
            found.append(moment)
        shown = max(shown, wall)
    return found


def matches(cron, wall):
    minute = wall // 60 % 1440
    return (minute // 60 in cron.hours and minute % 60 in cron.minutes
            and cron.runs_on(time.gmtime(wall)) and time.gmtime(wall).tm_mon in cron.months)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("zone, jump", [
    (BERLIN, "2026-03-29 01:00"), (BERLIN, "2026-10-25 01:00"),
    (NEW_YORK, "2026-03-08 07:00"), (NEW_YORK, "2026-11-01 06:00"),
    (LORD_HOWE, "2026-10-03 15:30"), (LORD_HOWE, "2026-04-04 15:00")] + [pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("Asia/Beirut", "2026-03-28 22:00"), ("Antarctica/Troll", "2026-10-25 01:00"),
        ("Pacific/Apia", "2011-12-30 10:00"), ("Asia/Kolkata", "2026-01-01 00:00"))
])
def test_the_next_run_is_the_one_seen_by_watching_the_clock_through_a_jump(in_zone, zone, jump):
    tz, rng, jump = in_zone(zone), random.Random(jump), int(unix(jump))
    clock = []
    for moment in range(jump - DAY_S, jump + DAY_S, 60):
        date = time.localtime(moment) if tz is None else local_date(moment, tz)
        clock.append((moment, moment + date.tm_gmtoff))
    hours = {wall // 3600 % 24 for moment, wall in clock if abs(moment - jump) <= 7200}
    for _ in range(60):
        hour = rng.choice(["*", "*/2", "0-23", "%d" % rng.choice(sorted(hours)), "0-4", "1,2,3"])
        spec = "%s %s * * %s" % (random_field(rng, *FIELDS[0]), hour, rng.choice(["*", "fri-sun"]))
        cron = parse_cron(spec)
        after = rng.randint(jump - DAY_S // 2, jump + 3 * 3600)
        expected = [moment for moment in watch(cron, clock) if moment > after][:20]
        assert runs(spec, after, len(expected), tz) == expected, (spec, after)


def local_date(moment, zone):
    from zoneinfo import ZoneInfo
    offset = datetime.fromtimestamp(moment, ZoneInfo(zone)).utcoffset().total_seconds()
    return time.struct_time(time.gmtime(moment)[:9] + (zone, int(offset)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("zone", [BERLIN, LORD_HOWE, "UTC"])
def test_random_schedules_run_only_later_and_never_forget_a_run(in_zone, zone):
    """Asked from any time between two runs, the answer is the second of them."""
    tz, rng = in_zone(zone), random.Random(zone)
    for _ in range(200):
        spec = random_spec(rng)
        try:
            first, second = runs(spec, rng.uniform(unix("2026-01-01"), unix("2027-01-01")), 2, tz)
        except UserError:
            continue
        assert first < second
        for _ in range(3):
            assert runs(spec, rng.uniform(first, second), 1, tz) == [second], spec


# Never slow, never endless

@pytest.mark.parametrize("spec", [
    "0 0 29 2 *", "0 0 29 2 */7", "59 23 31 12 */6", "* * 29 2 */7", "0-59 0-23 1-31 1-12 0-7",
])
@pytest.mark.parametrize("after", [
    "2026-10-25 00:30", pytest.param("2096-03-01 00:00", marks=not_on_wine("its C library's UTC offset is wrong after 2038"))])
def test_a_rare_schedule_is_found_in_a_few_milliseconds(spec, after):
    cron, began = parse_cron(spec), time.process_time()
    for _ in range(10):
        next_run(cron, unix(after), None)
    assert time.process_time() - began < 0.5  # ten of them; about 0.005 on a slow machine


# Refused

ALLOWED_HOURS = "allowed: 0-23, *, lists 1,2, ranges 1-5, steps */2 or 1-5/2"


@pytest.mark.parametrize("spec, reason", [
    ("", "give five fields"),
    ("* * * *", "give five fields (minute hour day-of-month month day-of-week)"),
    ("* * * * * *", "give five fields"),
    ("@reboots", "or one of @hourly @daily"),
    ("@reboot x", "@reboot"),
    ("60 * * * *", "minute '60': value '60' is not a number from 0 to 59"),
    ("* 24 * * *", "hour '24': value '24' is not a number from 0 to 23; " + ALLOWED_HOURS),
    ("* * 0 * *", "day of month '0': value '0' is not a number from 1 to 31"),
    ("* * * 0 *", "month '0'"),
    ("* * * 13 *", "month '13'"),
    ("* * * * 8", "day of week '8'"),
    ("* * * * monday", "allowed: 0-6 or sun-sat"),
    ("* * * mon *", "allowed: 1-12 or jan-dec"),
    ("jan * * * *", "minute 'jan'"),
    ("* 22-6 * * *", "22-6 runs backwards, write 22-23,0-6"),
    ("* * * nov-feb *", "write 11-12,1-2"),
    ("* * * * fri-mon", "write 5-6,0-1"),
    ("50-0 * * * *", "runs backwards"),
    ("*/0 * * * *", "step '0' is not a number from 1 to 60"),
    ("*/90 * * * *", "step '90' is not a number from 1 to 60"),
    ("*/ * * * *", "step ''"),
    ("*/5/5 * * * *", "step '5/5'"),
    ("*/-5 * * * *", "step '-5'"),
    ("*5 * * * *", "'*5'"),
    ("1-* * * * *", "'*'"),
    ("-5 * * * *", "''"),
    ("1-2-3 * * * *", "'2-3'"),
    ("1,,2 * * * *", "''"),
    ("1, * * * *", "''"),
    ("+1 * * * *", "'+1'"),
    ("1_0 * * * *", "'1_0'"),
    ("1.5 * * * *", "'1.5'"),
    ("\u0663 * * * *", "is not a number"),
    ("1" * 5000 + " * * * *", "is not a number"),
    ("* * L-3 * *", "'l'"),
    ("* * 1-L * *", "value 'l' is not a number from 1 to 31; allowed: 1-31, *, lists 1,2, ranges 1-5, steps */2 or 1-5/2, L, LW"),
    ("* * L/2 * *", "'l'"),
    ("* * WL * *", "'wl'"),
    ("* L * * *", "'l'"),
    ("* * * L *", "'l'"),
    ("* * * * L", "day of week 'L': value ''"),
    ("* * * * 8L", "'8'"),
    ("* * * * 6LL", "'6l'"),
    ("* * * * 6#0", "the week '0' is not a number from 1 to 5"),
    ("* * * * 6#6", "'6'"),
    ("* * * * 6#", "''"),
    ("* * * * #1", "''"),
    ("* * * * 1#2L", "'2l'"),
    ("* * * * 1-5#2", "'1-5'"),
    ("* * * * */8", "step '8'"),
    ("0 0 */31 * 6#4", "never runs"),
    ("* * ? * *", "'?'"),
    ("H * * * *", "'h'"),
    ("0 0 30 2 *", "never runs: its months have at most 29 days"),
    ("0 0 30,31 feb */2", "never runs"),
    ("0 0 31 2,4,6,9,11 *", "never runs: its months have at most 30 days"),
])
def test_a_bad_schedule_is_refused_in_one_line_that_says_why(spec, reason):
    with pytest.raises(UserError) as refusal:
        runs(spec, unix("2026-01-01"), 1)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_impossible_day_of_month_is_accepted_when_a_day_of_week_will_do():
    assert utc(runs("0 0 30 2 mon", unix("2026-01-01"), 1)[0]) == "2026-02-02 00:00"


@pytest.mark.parametrize("zone", ["Mars/Base", "", "Europe", "../etc/passwd", "/etc/passwd", "/usr/share/zoneinfo/UTC",
                                  "zone.tab", "a\0b", "x" * 5000, "+1", "CET-1CEST,M3.5.0", "CET-99", "CET-1CEST,M13.5.0,M10.5.0", "CET-1CEST,M3.6.0,M10.5.0",
                                  "CET-1CEST,M3.5.7,M10.5.0", "\u0663ET-1", "CET-\u0661"])
def test_an_unknown_time_zone_is_refused_in_one_line(zone):
    with pytest.raises(UserError, match="is not known; give an IANA name") as refusal:
        next_run(parse_cron("@daily"), 0, zone)
    assert "\n" not in str(refusal.value)


# Time zones: compared with zoneinfo

def without_zone_files(monkeypatch):
    monkeypatch.setattr(queuectl, "zone_folders", list)


def test_a_machine_without_time_zone_data_says_how_to_get_it(monkeypatch):
    without_zone_files(monkeypatch)
    with pytest.raises(UserError, match="install tzdata"):
        next_run(parse_cron("@daily"), 0, "Asia/Tokyo")
    assert next_run(parse_cron("@daily"), 0, "UTC") == DAY_S
    assert next_run(parse_cron("@daily"), 0, "JST-9") == 15 * 3600
    assert next_run(parse_cron("@daily"), 0, "Asia/Tokyo", "JST-9") == 15 * 3600


def zones():
    zoneinfo = pytest.importorskip("zoneinfo", reason="not on Python 3.8: zoneinfo came with 3.9")
    names = sorted(zoneinfo.available_timezones() - {"localtime", "Factory", "build/etc/localtime"})
    assert len(names) > 400
    return [(name, zoneinfo.ZoneInfo(name)) for name in names if queuectl.zone_data(name)]


def theirs(zone, moment):
    return int(datetime.fromtimestamp(moment, zone).utcoffset().total_seconds())


def moments_of(rng, low, high, count):
    """Random times, and the hours around the changes of two years."""
    for _ in range(count):
        yield rng.randint(int(unix(low)), int(unix(high)))


def test_every_zone_has_the_offsets_that_zoneinfo_gives_it():
    rng = random.Random(1)
    for name, zone in zones():
        offset = queuectl.zone_offset(name)
        for moment in moments_of(rng, "1900-01-01", "2100-01-01", 60):
            assert offset(moment) == theirs(zone, moment), (name, moment)


def test_the_rule_of_a_zone_says_the_same_as_the_zone_for_years_to_come():
    rng, rules = random.Random(2), set()
    for name, zone in zones():
        rule = queuectl.zone_rule(queuectl.zone_data(name))
        offset = queuectl.posix_offset(rule)
        if rule in rules:
            continue
        rules.add(rule)
        for moment in moments_of(rng, "2088-01-01", "2200-01-01", 100):
            assert offset(moment) == theirs(zone, moment), (name, rule, moment)
        for year in (2090, 2091):  # to the second
            low, high = int(unix("%d-01-01" % year)), int(unix("%d-07-01" % year))
            if offset(low) != offset(high):
                change = queuectl.offset_change(offset, low, high)
                assert theirs(zone, change - 1) == offset(low) and theirs(zone, change) == offset(high), rule
    assert len(rules) > 40


@pytest.mark.parametrize("rule, winter, summer", [
    ("JST-9", 9, 9), ("<+0330>-3:30", 3.5, 3.5), ("EST5EDT", -5, -4), ("CET-1CEST,M3.5.0,M10.5.0/3", 1, 2), ("UTC0", 0, 0),
    ("AEST-10AEDT,M10.1.0,M4.1.0/3", 11, 10), ("<-02>2<-01>,M3.5.0/-1,M10.5.0/0", -2, -1), ("EST5EDT4,J60/2,J300/2", -5, -4),
    ("XXX-1YYY-3,59,300", 1, 3), ("XXX3EDT4,0/0,J365/23", -4, -4), ("NST3:30:15", -3.5 - 15 / 3600, -3.5 - 15 / 3600)])
def test_a_posix_rule_means_what_the_c_library_takes_it_for(rule, winter, summer, monkeypatch):
    moments = [int(unix(day)) for day in ("2026-01-15", "2026-07-15", "2028-02-29", "2028-12-31")]
    offset = queuectl.posix_offset(rule)
    assert [offset(moment) / 3600 for moment in moments[:2]] == [winter, summer]
    if not hasattr(time, "tzset"):
        return
    monkeypatch.setenv("TZ", rule)
    time.tzset()
    rng = random.Random(rule)
    moments += [rng.randint(int(unix("2026-01-01")), int(unix("2037-01-01"))) for _ in range(500)]
    try:
        assert [offset(moment) for moment in moments] == [time.localtime(moment).tm_gmtoff for moment in moments]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("bias, standard, summer, begin, end, rule", [
    (-60, 0, -60, (0, 3, 0, 5, 2, 0), (0, 10, 0, 5, 3, 0), "<STD>-1:00<DST>-2:00,M3.5.0/2:00,M10.5.0/3:00"),
    (300, 0, -60, (0, 3, 0, 2, 2, 0), (0, 11, 0, 1, 2, 0), "<STD>5:00<DST>4:00,M3.2.0/2:00,M11.1.0/2:00"),
    (-540, 0, -60, (0,) * 6, (0,) * 6, "<STD>-9:00"),
    (-330, 0, 0, (0,) * 6, (0,) * 6, "<STD>-5:30"),
    (210, 0, -60, (0, 3, 0, 2, 2, 0), (0, 11, 0, 1, 2, 0), "<STD>3:30<DST>2:30,M3.2.0/2:00,M11.1.0/2:00"),
    (-60, 0, -60, (2026, 3, 0, 29, 2, 0), (2026, 10, 0, 25, 3, 0), "<STD>-1:00")])
def test_what_windows_says_of_its_zone_is_read_as_a_rule(bias, standard, summer, begin, end, rule):
    facts = struct.pack("<l64x8Hl64x8Hl", bias, *end, 0, 0, standard, *begin, 0, 0, summer)
    assert len(facts) == 172
    assert queuectl.windows_rule(facts) == rule
    assert queuectl.posix_offset(rule)(unix("2026-01-15")) == -60 * (bias + standard)
