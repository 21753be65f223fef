"""`queuectl metrics`: read by Prometheus's own parser; counters that only grow; a scrape that costs the same whatever the queue holds."""
from __future__ import annotations

import json
import os
import re
import signal

import pytest
from conftest import SCRIPT, posix_only, wait_until
from prometheus_client.parser import text_string_to_metric_families

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.core, pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]


def parsed(text):
    """{(name of the sample, its labels): value}, as Prometheus's parser reads the text."""
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def value(samples, name, **labels):
    return samples["queuectl_" + name, tuple(sorted(labels.items()))]


def scrape(queue):
    return parsed(queue.cli("metrics").stdout)


def counters(samples):
    return {key: number for key, number in samples.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}


def test_every_family_is_named_typed_and_read_by_prometheus(queue):
    queue.enqueue("--hold", "x")
    families = list(text_string_to_metric_families(queue.cli("metrics").stdout))
    assert len(families) == len(queuectl.METRICS.splitlines())
    for family in families:
        assert re.match(r"queuectl_[a-z_]+$", family.name) and family.documentation and family.samples, family.name
        assert family.type in ("gauge", "counter", "histogram")
        assert all(sample.name.endswith("_total") for sample in family.samples if family.type == "counter")


def test_the_numbers_are_those_of_the_queue(queue):
    queue.enqueue(*queue.script("pass"))
    queue.enqueue("--max-retries", "1", "--backoff-base", "0", "--backoff", "constant", *queue.script("raise SystemExit(3)"))
    queue.enqueue("--queue", "mail", "--hold", "never")
    queue.start(1, "--drain", "--foreground", check=False, timeout=120)
    samples = scrape(queue)
    assert value(samples, "jobs", queue="default", state="completed") == 1
    assert value(samples, "jobs", queue="default", state="dead") == 1
    assert value(samples, "jobs", queue="mail", state="pending") == 1
    assert value(samples, "enqueued_total", queue="default") == 2
    assert value(samples, "attempts_total", queue="default") == 3
    assert value(samples, "completed_total", queue="default") == 1
    assert value(samples, "failures_total", queue="default") == 2
    assert value(samples, "retries_total", queue="default") == value(samples, "deaths_total", queue="default") == 1
    assert value(samples, "attempt_duration_seconds_count", queue="default", outcome="failed") == 2
    assert value(samples, "attempt_duration_seconds_bucket", queue="default", outcome="failed", le="+Inf") == 2
    took = queue.sql("SELECT sum(duration) FROM history WHERE attempt IS NOT NULL")[0][0]
    assert sum(value(samples, "attempt_duration_seconds_sum", queue="default", outcome=outcome)
               for outcome in ("completed", "failed")) == pytest.approx(took)
    assert value(samples, "wait_seconds_count", queue="default") == 3
    assert value(samples, "build_info", version=queuectl.__version__) == 1


def test_counters_only_grow_when_jobs_are_removed_retried_and_edited(queue):
    for _ in range(3):
        queue.enqueue("--max-retries", "0", *queue.script("raise SystemExit(1)"))
    queue.start(1, "--drain", "--foreground", check=False, timeout=120)
    before = counters(scrape(queue))
    assert value(before, "deaths_total", queue="default") == 3
    queue.cli("retry", "1")
    queue.cli("cancel", "1")
    queue.cli("rm", "--all")
    after = counters(scrape(queue))
    assert all(after[key] >= number for key, number in before.items())
    assert value(after, "deaths_total", queue="default") == 3
    assert value(after, "manual_retries_total", queue="default") == value(after, "cancellations_total", queue="default") == 1
    assert queue.json("list") == []


@posix_only("a worker is killed")
def test_a_crash_is_counted(queue):
    queue.enqueue(*queue.sleeper(60))
    queue.start(1)
    queue.wait_for(1, "processing")
    [worker] = queue.json("worker", "list")
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: value(scrape(queue), "crashes_total", queue="default") == 1, 30, "the crash is counted")
    queue.wait_for(1, "processing")  # again: only an attempt that runs can be given back
    queue.stop("--now")
    assert value(scrape(queue), "releases_total", queue="default") == 1


def test_the_buckets_of_a_histogram_hold_what_took_at_most_so_long(store):
    for waited, took in ((0.05, 0.1), (3, 5), (100, 70000)):
        job_id = store.enqueue("x")
        with store.db.undo, queuectl.Transaction(store.db) as now:
            job = store.look.row(job_id)
            store.db.execute("UPDATE job SET run_at=? WHERE id=?", (now - waited, job_id))
            store.life.move(job, "claim", started_at=now, worker=1, attempt=1, attempts=1)
            store.life.end(store.look.row(job_id), "complete", now, duration=float(took))
    samples = parsed(queuectl.metrics_text(queuectl.metrics_report(store)))

    def buckets(name, **labels):
        return [value(samples, name + "_bucket", queue="default", le="%g" % le, **labels) for le in queuectl.BUCKETS]

    assert buckets("wait_seconds") == [1, 1, 1, 2, 2, 3, 3, 3]
    assert buckets("attempt_duration_seconds", outcome="completed") == [1, 1, 1, 2, 2, 2, 2, 2]
    assert value(samples, "attempt_duration_seconds_count", queue="default", outcome="completed") == 3
    assert value(samples, "attempt_duration_seconds_sum", queue="default", outcome="completed") == pytest.approx(70005.1)
    assert value(samples, "wait_seconds_sum", queue="default") == pytest.approx(103.05)


def test_a_queue_that_an_earlier_release_made_counts_from_now_on(tmp_path):
    import shutil
    from conftest import ROOT
    for old in sorted((ROOT / "tests" / "data").glob("queue-*.db")):
        path = shutil.copy(str(old), str(tmp_path / "queue.db"))
        with queuectl.Store(path) as store:
            store.enqueue("x")
            samples = parsed(queuectl.metrics_text(queuectl.metrics_report(store)))
            assert value(samples, "enqueued_total", queue="default") == 1


def test_a_scrape_costs_no_more_if_the_queue_is_full(store):
    def steps():
        count = [0]
        store.db.connection.set_progress_handler(lambda: count.__setitem__(0, count[0] + 1), 10)
        queuectl.metrics_report(store)
        store.db.connection.set_progress_handler(None, 0)
        return count[0]

    store.enqueue_many(["x"] * 3)
    few = steps()
    store.enqueue_many(["x"] * 20000)
    with store.db.undo, queuectl.Transaction(store.db):
        store.db.execute("UPDATE job SET state='completed', gate=NULL WHERE id%2=0")
    assert steps() < few * 1.5


def test_labels_are_bounded_and_any_name_of_a_queue_is_one(queue):
    name = 'quo"te\\back {x="y"}'
    queue.enqueue("--queue", name, "secret-command")
    text = queue.cli("metrics").stdout
    assert "secret" not in text
    assert value(parsed(text), "jobs", queue=name, state="pending") == 1
    assert {label for _, labels in parsed(text) for label, _ in labels} == {"queue", "state", "version", "le", "outcome"}


def test_the_size_of_the_logs_is_exact_or_estimated(tmp_path):
    files = queuectl.Files(str(tmp_path / "queue.db"))
    files.make()
    for job in (1, 1001, 2001, 3001):
        path = files.log(job, 1)
        os.makedirs(os.path.dirname(path))
        with open(path, "w") as file:
            file.write("x" * 100)
    assert files.log_bytes(60) == 400
    assert files.log_bytes(-1) == 400  # the first directory is read, and stands for all four


def test_output_replaces_the_file_at_once(queue):
    path = queue.dir / "queuectl.prom"
    path.write_text("old")
    queue.enqueue("--hold", "x")
    queue.cli("metrics", "--output", path)
    assert value(parsed(path.read_text("utf-8")), "jobs", queue="default", state="dead") == 0
    assert [name for name in os.listdir(str(queue.dir)) if "prom" in name] == ["queuectl.prom"]


@posix_only("/dev/stdout")
def test_an_output_that_is_a_link_or_no_file_stays_what_it_is(queue):
    queue.enqueue("--hold", "x")
    (queue.dir / "out").symlink_to("/dev/stdout")
    (queue.dir / "link").symlink_to("real")
    (queue.dir / "real").write_text("old")
    assert "queuectl_jobs" in queue.cli("metrics", "--output", queue.dir / "out").stdout
    queue.cli("metrics", "--output", queue.dir / "link")
    assert (queue.dir / "out").is_symlink() and (queue.dir / "link").is_symlink()
    assert "queuectl_jobs" in (queue.dir / "real").read_text("utf-8")


def test_an_output_that_cannot_be_written_is_one_line(queue):
    done = queue.cli("metrics", "--output", queue.dir / "missing" / "x.prom", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("queuectl: error: "), done.stderr


def test_dashboard_and_alerts_use_only_metrics_that_exist(queue):
    known = {"queuectl_" + line.split()[0] for line in queuectl.METRICS.splitlines()}
    board = json.loads(queue.cli("metrics", "--grafana").stdout)
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    alerts = queue.cli("metrics", "--alerts").stdout
    used = set(re.findall(r"queuectl_\w+", " ".join(expressions) + alerts))
    assert len(expressions) >= 10 and alerts.count("- alert:") == alerts.count("expr:") == alerts.count("summary:") >= 8
    assert {re.sub("_bucket$", "", name) for name in used} <= known
    assert not queue.db.exists()
    assert queue.cli("metrics", "--alerts", "--grafana", check=False).returncode == 2


def test_workers_are_counted_in_each_of_their_states(queue):
    queue.enqueue("--hold", "x")
    states = {dict(labels)["state"] for name, labels in scrape(queue) if name == "queuectl_workers"}
    assert states == {"busy", "idle", "stopping", "away", "dead"}
