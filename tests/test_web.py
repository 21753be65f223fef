"""`queuectl web`: who is let in, what is refused, and that no client stops another; by raw sockets, as no browser would ask."""
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import tempfile
import threading
import time

import pytest
from conftest import SCRIPT, linux_only, posix_only, wait_until
from prometheus_client.parser import text_string_to_metric_families

queuectl = pytest.importorskip("queuectl") if SCRIPT.exists() else None
pytestmark = [pytest.mark.skipif(queuectl is None, reason="no queuectl.py")]
PAGES = ["status", "overview", "jobs", "dlq", "queues", "batches", "schedules", "stats", "events", "config", "options"]


class Server:
    """The web server of a queue, as a process beside the test."""

    def __init__(self, queue, *options):
        if not queue.db.exists():
            queue.cli("queue", "limit", "default", "none")  # a queue without a job
        self.process = queue.beside("web", "--port", "0", *options)
        self.url = wait_until(lambda: re.search(r"https?://\S+", self.process.text()), 30, "the address is printed").group()
        self.host, self.token = re.match(r"https?://([^/]+).*token=(\w+)", self.url).groups()
        self.port = int(self.host.rpartition(":")[2])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def raw(self, data, connection=None):
        """What the server answers to these bytes."""
        with connection or self.connect() as link:
            link.sendall(data)
            parts = []
            while True:
                part = link.recv(65536)
                if not part:
                    return b"".join(parts)
                parts.append(part)

    def ask(self, path, method="GET", body=None, token=True, host=None, **headers):
        """(status, headers as text, body) of a request; headers come with _ for -."""
        lines = {"Host": host or self.host}
        if token:
            lines["Authorization"] = "Bearer " + self.token
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            lines.update({"Content-Type": "application/json", "Content-Length": str(len(data))})
        lines.update({name.replace("_", "-"): value for name, value in headers.items()})
        head = "".join("%s: %s\r\n" % pair for pair in lines.items())
        answer = self.raw(("%s %s HTTP/1.1\r\n%s\r\n" % (method, path, head)).encode() + data)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode("latin-1"), rest

    def json(self, path, **options):
        status, _, body = self.ask("/api/" + path, **options)
        assert status == 200, body
        return json.loads(body.decode())

    def post(self, name, body):
        return self.json(name, method="POST", body=body)


@pytest.fixture
def server(queue):
    queue.enqueue("--hold", "a job")
    return Server(queue)


def cookie_of(server):
    head = server.ask("/?token=" + server.token, token=False)[1]
    return re.search(r"(?i)set-cookie: (\S+?);", head).group(1)


def mark_of(server):
    return re.search(rb'name="csrf" content="(\w+)"', server.ask("/?token=" + server.token, token=False)[2]).group(1).decode()


# ---- who is let in -------------------------------------------------------------------------------

@pytest.mark.sampled(6)
@pytest.mark.parametrize("path", ["/", "/metrics", "/health", "/api/live", "/api/log?id=1&download=1"] + ["/api/" + page for page in PAGES])
def test_without_the_token_nothing_is_told(server, path):
    for options in ({}, {"Cookie": "queuectl_%d=wrong" % server.port}, {"Authorization": "Bearer wrong"}, {"Cookie": "\xff=;;=\"", }):
        status, _, body = server.ask(path, token=False, **options)
        assert status == 401 and b"a job" not in body
    assert server.ask(path + ("&" if "?" in path else "?") + "token=wrong", token=False)[0] == 401


def test_the_address_that_was_printed_lets_in_and_its_cookie_is_no_scripts_and_no_other_sites(server):
    status, head, body = server.ask("/?token=" + server.token, token=False)
    assert status == 200 and b"<main" in body
    cookie = re.search("(?i)set-cookie: (.*)", head).group(1)
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and server.token not in cookie
    assert server.ask("/api/status", token=False, Cookie=cookie_of(server))[0] == 200
    assert server.token.encode() not in body


def test_the_token_in_an_address_opens_nothing_but_the_page(server):
    assert server.ask("/api/status?token=" + server.token, token=False)[0] == 401


def test_a_database_that_was_restored_alone_is_served(queue):
    queue.enqueue("--hold", "a job")
    shutil.rmtree(str(queue.files), ignore_errors=True)
    assert len(Server(queue).token) == 64


@posix_only("Windows has no such modes")
def test_the_token_is_in_a_file_of_its_owner_alone_and_stays(queue):
    first = Server(queue)
    path = queue.files / "web.token"
    assert path.read_text() == first.token and path.stat().st_mode & 0o777 == 0o600
    assert Server(queue).token == first.token


@pytest.mark.sampled(3)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8383", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", ""])
def test_a_name_that_is_not_ours_is_refused(server, host):
    status, _, body = server.ask("/api/status", Host=host)
    assert status == (400 if host == "[::1" else 403) and b"pending" not in body


@pytest.mark.sampled(5)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9000", "[::1]:9000", "127.0.0.1:9000"])
def test_a_tunnel_may_have_another_port(server, host):
    assert server.ask("/api/status", Host=host)[0] == 200


def test_a_page_of_another_origin_may_not_ask(server):
    cookie = cookie_of(server)
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "http://[",
                   "http://%s.evil.example" % server.host):
        for method, path, body in (("GET", "/api/status", None), ("POST", "/api/act", {"verb": "release", "ids": [1]})):
            assert server.ask(path, method, body, token=False, Cookie=cookie, Origin=origin)[0] in (400, 403), origin
    for site in ("cross-site", "same-site"):  # same-site: a server of another user, on another port of this machine
        assert server.ask("/api/status", token=False, Cookie=cookie, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert server.ask("/", token=False, Cookie=cookie, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200  # a link
    assert server.ask("/api/status", token=False, Cookie=cookie, Origin="http://" + server.host)[0] == 200


def test_a_change_needs_post_json_and_the_mark_of_our_page(server, queue):
    cookie, mark = cookie_of(server), mark_of(server)
    asked = {"verb": "release", "ids": [1]}
    assert server.ask("/api/act?verb=release&ids=1", token=False, Cookie=cookie)[0] == 404
    assert server.ask("/api/act", "POST", asked, token=False, Cookie=cookie)[0] == 403
    assert server.ask("/api/act", "POST", asked, token=False, Cookie=cookie, X_CSRF_Token="wrong")[0] == 403
    assert server.ask("/api/act", "POST", asked, token=False, Cookie=cookie, X_CSRF_Token=mark, Content_Type="text/plain")[0] == 415
    assert server.ask("/api/act", "HEAD", asked, token=False, Cookie=cookie, X_CSRF_Token=mark)[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert server.ask("/api/act", method, asked, token=False, Cookie=cookie, X_CSRF_Token=mark)[0] == 501
    assert queue.job(1).held
    assert server.ask("/api/act", "POST", asked, token=False, Cookie=cookie, X_CSRF_Token=mark)[0] == 200
    assert not queue.job(1).held


def test_read_only_has_no_route_that_writes(queue):
    queue.enqueue("--hold", "a job")
    server = Server(queue, "--read-only")
    bodies = {"act": {"verb": "release", "ids": [1]}, "enqueue": {"command": "x"}, "queue": {"name": "default", "paused": True},
              "schedule": {"verb": "run", "name": "x"}, "config": {"key": "max_retries", "value": "1"}}
    assert set(bodies) == set(queuectl.WEB_WRITES)
    before = list(sqlite3.connect(str(queue.db)).iterdump())
    for name, body in bodies.items():
        assert server.ask("/api/" + name, "POST", body)[0] == 404
    assert list(sqlite3.connect(str(queue.db)).iterdump()) == before
    assert b'name="read-only" content="yes"' in server.ask("/")[2]
    writing = Server(queue)
    assert writing.token != server.token  # who may read may not write with it
    writing.token = server.token
    assert writing.ask("/api/status")[0] == 401


def test_every_answer_forbids_scripts_frames_and_caches(server):
    for path, method in (("/", "GET"), ("/api/status", "GET"), ("/api/nothing", "GET"), ("/metrics", "GET"), ("/health", "GET"),
                         ("/", "TRACE"), ("/x" * 40000, "GET")):
        _, head, body = server.ask(path, method)
        policy = re.search("(?i)content-security-policy: (.*)", head).group(1)
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        for line in ("X-Content-Type-Options: nosniff", "Referrer-Policy: no-referrer", "Cache-Control: no-store"):
            assert line in head
    text = server.ask("/")[2]
    for tag in (b"script", b"style"):
        source = re.search(b"<%s>(.*)</%s>" % (tag, tag), text, re.S).group(1)
        assert "'%s'" % queuectl.source_hash(source.decode("utf-8")) in policy
    assert len(text) < 60000


def test_another_address_needs_a_word_for_it(queue):
    done = queue.cli("web", "--address", "0.0.0.0", "--port", "0", check=False)
    assert done.returncode == 2 and "--allow-remote" in done.stderr and done.stderr.count("\n") == 1
    server = Server(queue, "--address", "0.0.0.0", "--allow-remote", "--name", "Queue.example")
    assert server.ask("/api/status", Host="queue.example")[0] == 200
    assert server.ask("/api/status", Host="evil.example")[0] == 403
    assert "can run any command as you" in server.process.text()


def test_behind_a_path_of_a_proxy(queue):
    server = Server(queue, "--base-path", "/my/queue/")
    status, head, body = server.ask("/my/queue/?token=" + server.token, token=False)
    assert status == 200 and b'name="base" content="/my/queue"' in body and "Path=/my/queue/" in head
    assert server.ask("/my/queue/api/status")[0] == 200
    assert server.ask("/api/status")[0] == server.ask("/my/queuey/api/status")[0] == 404


class Proxy(socketserver.ThreadingTCPServer):
    """A reverse proxy that passes on what is below a path of its own, with the Host that the client asked for."""
    daemon_threads = True

    def __init__(self, server):
        self.server = server

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with server.connect() as behind:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += self.request.recv(65536)
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    missing = int(length.group(1)) - len(head.split(b"\r\n\r\n", 1)[1]) if length else 0
                    while missing > 0:
                        part = self.request.recv(missing)
                        head, missing = head + part, missing - len(part)
                    if head.split()[1].startswith(b"/ops/queue/"):
                        behind.sendall(head)
                    else:
                        self.request.sendall(b"HTTP/1.0 404 Not below the prefix\r\n\r\n")
                        return
                    for part in iter(lambda: behind.recv(65536), b""):
                        self.request.sendall(part)

            def finish(self):
                self.request.close()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@posix_only("modes and users")
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
def test_another_user_of_the_machine_is_refused(server, queue):
    code = ("import socket, sys, urllib.request\n"
            "for path in ('/', '/api/status', '/metrics'):\n"
            "    try: print(urllib.request.urlopen('http://%s' % sys.argv[1] + path).status)\n"
            "    except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n"
            "try: print(open(sys.argv[2]).read())\n"
            "except OSError as error: print(error.errno)\n")
    for parent in [queue.dir, *queue.dir.parents]:
        if str(parent).startswith(tempfile.gettempdir() + os.sep):
            parent.chmod(0o755)  # what keeps the other user out is the token, not a directory of pytest
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code, server.host,
                           str(queue.files / "web.token")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == ["401", "401", "401", "13"], done.stdout


@posix_only("a browser is a script")
def test_open_hands_the_browser_a_file_without_the_token_in_its_arguments(queue):
    page, script = queue.dir / "opened.txt", queue.dir / "browser.sh"
    script.write_text('#!/bin/sh\necho "$@" > %s.part && mv %s.part %s\n' % ((shlex.quote(str(page)),) * 3))
    script.chmod(0o755)
    queue.env["BROWSER"] = shlex.quote(str(script)) + " %s"
    server = Server(queue, "--open", "--base-path", "/ops/queue")
    wait_until(page.exists, 30, "the browser was started")
    shown = page.read_text().strip()
    assert shown.startswith("file://") and server.token not in shown
    file = queue.files / "web.html"
    assert server.url in file.read_text() and file.stat().st_mode & 0o777 == 0o600


@pytest.mark.sampled(4)
@pytest.mark.parametrize("options", [["--base-path", "queue"], ["--base-path", "/a b"], ["--base-path", "//evil"], ["--base-path", "/a\nX: b"], ["--port", "70000"], ["--port", "x"],
                                     ["--tls", "missing", "missing"], ["--address", "no.such.host.invalid", "--allow-remote"],
                                     ["--db", "no-such-queue.db"]])
def test_a_wrong_option_is_one_line(queue, options):
    queue.enqueue("--hold", "a job")
    done = queue.cli("web", *options, check=False)
    assert done.returncode == 2 and done.stderr.startswith("queuectl: error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_port_that_is_taken_is_one_line(server, queue):
    done = queue.cli("web", "--port", server.port, check=False)
    assert done.returncode == 2 and "--port" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.broad
@linux_only("openssl makes the certificate")
def test_over_tls(queue):
    key, certificate = str(queue.dir / "key.pem"), str(queue.dir / "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
    server = Server(queue, "--tls", certificate, key)
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=certificate)
    silent = server.connect()  # does not shake hands, and stops nobody
    link = context.wrap_socket(server.connect(), server_hostname="127.0.0.1")
    answer = server.raw(b"GET /?token=%s HTTP/1.1\r\nHost: %s\r\n\r\n" % (server.token.encode(), server.host.encode()), link)
    assert answer.split()[1] == b"200" and b"; Secure" in answer
    silent.close()


# ---- what it answers -----------------------------------------------------------------------------

def test_what_the_page_reads_is_what_json_prints(server, queue):
    queue.cli("cron", "add", "night", "0 3 * * *", "true")
    assert server.json("queues") == queue.json("queue", "list")
    assert server.json("schedules") == queue.json("cron", "list")
    assert set(server.json("status")) == set(queue.json("status"))
    shown, told = server.json("job?id=1"), queue.json("show", "1")
    assert {key: shown[key] for key in told} == told
    assert server.json("jobs")["jobs"] == queue.json("list")


def test_health_is_that_of_the_command(server, queue):
    assert json.loads(server.ask("/health")[2].decode()) == json.loads(queue.cli("health", "--json", check=False).stdout)


def test_metrics_are_served(server):
    families = list(text_string_to_metric_families(server.ask("/metrics")[2].decode()))
    assert len(families) == len(queuectl.METRICS.splitlines())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("path", ["job?id=99", "job", "jobs?state=odd", "jobs?batch=x", "jobs?limit=-1", "jobs?before=1e9", "jobs?order=odd",
                                  "jobs?order=next&before=1", "jobs?order=next&before=a,b", "jobs?limit=0", "jobs?status=dead", "jobs?" + "a&" * 60,
                                  "log?id=nobody", "log?id=1&attempt=../../x", "stats?since=never", "nothing", "log?id=99&download=1",
                                  "log?id=1&download=1"])
def test_a_wrong_question_is_one_line(server, path):
    status, head, body = server.ask("/api/" + path)
    assert status == (404 if path in ("nothing", "log?id=1&download=1") or "no job" in body.decode() else 400) and body.count(b"\n") == 1 and b"Traceback" not in body and b"internal" not in body, body


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name, body", [
    ("act", {}), ("act", {"verb": "explode", "ids": [1]}), ("act", {"verb": "retry"}), ("act", {"verb": "retry", "ids": {}}),
    ("act", {"verb": "retry", "filter": [1]}), ("act", {"verb": "retry", "filter": "state"}), ("act", {"verb": ["retry"], "ids": [1]}),
    ("act", {"verb": "retry", "ids": [{}]}), ("act", {"verb": "cancel", "filter": {"status": "dead"}}), ("act", {"verb": "cancel", "filter": {"limit": 1}}),
    ("act", {"verb": "cancel", "ids": [1], "filter": {}}), ("act", {"verb": "cancel", "ids": [1], "dyr": True}),
    ("queue", {"name": "default", "pause": True}), ("queue", {"name": "default", "paused": "no"}), ("schedule", {"name": "x", "verb": "run", "odd": 1}),
    ("config", {"key": "max_retries"}), ("config", {"key": "max_retries", "vaule": 5}),
    ("enqueue", {"command": {"a": 1}}), ("enqueue", {"command": "x", "like": []}), ("queue", {"name": ["default"], "paused": True}),
    ("queue", {"name": "default", "rate": [1]}), ("queue", {"name": "default", "max_running": {}}), ("schedule", {"verb": {}, "name": "x"}),
    ("config", {"key": ["x"], "value": "1"}), ("config", {"key": "max_retries", "value": [1]}),
    ("act", {"verb": "retry", "filter": {"state": "odd"}}), ("enqueue", {}), ("enqueue", {"command": ""}), ("enqueue", {"command": "x\0"}),
    ("enqueue", {"command": "x", "odd": 1}),
    ("queue", {"name": "default", "rate": "often"}), ("queue", {"name": "default", "max_running": -1}),
    ("schedule", {"verb": "odd"}), ("config", {"key": "odd"}), ("config", {"key": "max_retries", "value": "many"})])
def test_a_wrong_change_is_one_line_and_changes_nothing(server, queue, name, body):
    before = list(sqlite3.connect(str(queue.db)).iterdump())
    status, _, text = server.ask("/api/" + name, "POST", body)
    assert status == (404 if b"no job '" in text else 400) and text.count(b"\n") == 1 and b"internal" not in text, text
    assert list(sqlite3.connect(str(queue.db)).iterdump()) == before


def test_a_change_of_a_queue_that_changes_nothing_is_fine(server, queue):
    assert server.post("queue", {"name": "default"}) == {}


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/api/jobs", "/api/live", "/api/log?id=1&download=1", "/nothing"])
def test_head_is_get_without_the_body(server, queue, path):
    """Services that watch a site ask so."""
    queue.cli("run", "echo", "x")
    number = queue.json("list")[0]["id"]
    path = path.replace("id=1", "id=%d" % number)
    status, head, body = server.ask(path, "HEAD")
    assert body == b"" and status == (404 if path == "/nothing" else 200)
    if path != "/api/live":
        size = re.search(r"Content-Length: \d+", head).group()
        assert path == "/metrics" or size in server.ask(path)[1]


@pytest.mark.parametrize("more", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 2", "Content-Length: -1", "X: y"])
def test_a_body_of_unknown_length_is_refused_with_the_reason(server, more):
    text = "POST /api/act HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n\r\n{}" % (
        server.port, server.token, more)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(text.encode())
        assert b" 411 " in connection.recv(2000).partition(b"\r\n")[0]


def test_jobs_are_paged_by_key_and_filtered(server, queue):
    for i in range(5):
        queue.enqueue("--queue", "mail", "--label", "l%d" % (i % 2), "--hold", "send 100%% to %d_x" % i)
    first = server.json("jobs?queue=mail&limit=2")
    second = server.json("jobs?queue=mail&limit=2&before=%d" % first["next"])
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == [6, 5, 4, 3]
    assert [job["id"] for job in server.json("jobs?order=oldest&limit=2")["jobs"]] == [1, 2]
    assert [job["id"] for job in server.json("jobs?text=%25%20to%203_")["jobs"]] == [5]
    assert [job["id"] for job in server.json("jobs?label=l1")["jobs"]] == [5, 3]
    assert server.json("jobs?text=nowhere")["jobs"] == []
    assert server.post("act", {"verb": "release", "filter": {"queue": "mail"}, "dry": True}) == {"count": 5, "next": None}
    assert server.post("act", {"verb": "release", "filter": {"queue": "mail"}})["done"] == 5
    assert queue.job(1).held and not queue.job(4).held


def test_jobs_are_sorted_by_when_they_came_ended_or_will_run_and_paged_by_key(store):
    ids = store.enqueue_many([{"command": "echo %d" % i, "priority": i % 3, "queue": "ab"[i % 2]} for i in range(12)])
    for job_id in (ids[7], ids[2], ids[4]):
        with store.db.undo, queuectl.Transaction(store.db) as now:
            job = store.look.row(job_id)
            store.life.move(job, "claim", started_at=now, worker=1, attempt=job.attempt + 1, attempts=1)
            store.life.end(store.look.row(job_id), "complete", now, duration=1.0, finished_at=now)
            store.db.execute("INSERT INTO history(job, attempt, state, outcome) VALUES(?, 1, 'completed', 'completed')", (job_id,))
    store.life.retry([ids[2]])
    waiting = [job_id for job_id in ids if job_id not in (ids[7], ids[4])]
    wanted = {"newest": ids[::-1], "oldest": ids, "ended": [ids[4], ids[7]],
              "next": sorted(waiting, key=lambda job_id: (-(ids.index(job_id) % 3), job_id))}
    assert set(wanted) == set(store.browse.ORDERS)
    for order, expected in wanted.items():
        for filters, keep in (({}, lambda job_id: True), ({"queue": "b"}, lambda job_id: ids.index(job_id) % 2 == 1),
                              ({"text": "o 1"}, lambda job_id: ids.index(job_id) in (1, 10, 11))):
            found, query = [], dict(filters, order=order, limit="2")
            while True:
                page = queuectl.web_jobs(store, query)
                found += [job["id"] for job in page["jobs"]]
                if page["next"] is None:
                    break
                query["before"] = str(page["next"])
            assert found == list(filter(keep, expected)), (order, filters)


def test_held_jobs_are_a_filter_as_in_list(server, queue):
    queue.enqueue("free")
    assert [job["id"] for job in server.json("jobs?state=held")["jobs"]] == [1] == [job["id"] for job in queue.json("list", "--state", "held")]
    assert server.post("act", {"verb": "release", "filter": {"state": "held"}})["done"] == 1
    assert not queue.job(1).held


def test_the_states_for_each_change_are_those_of_the_command(server, queue):
    job = queue.enqueue("--backoff-base", "3600", "--backoff", "constant", "exit 1")
    queue.start(1)
    queue.wait_for(job, "failed")
    queue.stop()
    assert server.post("act", {"verb": "retry", "ids": [job], "dry": True})["count"] == 1
    assert server.post("act", {"verb": "retry", "ids": [job]})["done"] == 1
    verbs = dict(verb.split(":") for verb in re.search(r'name="verbs" content="(.*?)"', server.ask("/")[2].decode()).group(1).split())
    assert {verb: tuple(states.split(",")) for verb, states in verbs.items()} == {verb: row[0] for verb, row in queuectl.CHANGES.items()}


def test_the_family_has_those_that_come_after_the_batch(server, queue):
    (queue.dir / "jobs.txt").write_text("one\ntwo\n")
    queue.cli("enqueue", "--file", queue.dir / "jobs.txt", "--hold")
    first = queue.json("list")[-2]["id"]
    after = queue.enqueue("--after-batch", queue.json("batch", "list")[0]["id"], "last")
    job = server.json("job?id=%d" % first)
    assert [child["id"] for child in job["children"]] == [after] and "job" not in job
    assert server.json("job?id=%d" % after)["parents"] == [{"batch": 1}]


def test_the_overview_finds_what_health_finds(server, queue):
    queue.enqueue("waits for a worker")
    queue.cli("cron", "add", "night", "0 3 * * *", "true")
    health = json.loads(queue.cli("health", "--json", check=False).stdout)["findings"]
    shown = server.json("overview")["findings"]
    assert [(found["level"], found["kind"]) for found in shown] == [(found["level"], found["kind"]) for found in health] != []
    assert server.ask("/health")[0] == 503  # it is critical
    queue.cli("cancel", "--all"), queue.cli("cron", "rm", "night")
    assert server.ask("/health")[0] == 200
    wait_until(lambda: server.json("overview")["findings"] == [], 20, "the shared answer is a new one")


def test_a_job_is_enqueued_again_with_its_directory_and_variables(server, queue):
    folder = queue.dir / "elsewhere"
    folder.mkdir()
    code = "import os; print(os.environ['COLOUR'], os.path.basename(os.getcwd()))"
    first = queue.enqueue("--env", "COLOUR=red", "--cwd", folder, *queue.script(code))
    job = server.json("job?id=%d" % first)
    assert job["variables"]["COLOUR"] == queuectl.SECRET and "red" not in job["variables"].values()
    again = server.post("enqueue", {"command": job["command"], "like": first})["id"]
    queue.start(1, "--drain", "--foreground", timeout=120)
    assert server.json("log?id=%d" % again)["text"] == "red elsewhere\n"


def test_a_log_is_read_from_where_the_last_part_ended_and_a_long_one_from_its_end(server, queue):
    job = queue.enqueue(*queue.script("import sys; sys.stdout.write('x' * 400000 + 'end\\n'); sys.stdout.buffer.write(b'\\xff\\n')"))
    queue.start(1, "--drain", "--foreground", timeout=120)
    part = server.json("log?id=%d" % job)
    assert part["start"] == part["size"] - queuectl.WEB_LOG and part["text"].endswith("xend\n\ufffd\n") and part["next"] == part["size"]
    assert server.json("log?id=%d&offset=%d" % (job, part["next"]))["text"] == ""
    status, head, body = server.ask("/api/log?id=%d&download=1" % job)
    assert status == 200 and "attachment" in head and body.startswith(b"xxx") and len(body) == part["size"]


def test_a_search_goes_on_until_all_jobs_are_seen_however_short_each_step_is(store):
    ids = store.enqueue_many([{"command": "echo %d" % i, "hold": True, "label": "even" if i % 2 == 0 else "odd"} for i in range(30)])
    store.enqueue_many(["other"] * 9000)
    store.browse.LOOK_S = -1.0  # each call looks at the first steps alone
    for filters, wanted in (({"text": "ECHO"}, ids), ({"label": "even"}, ids[::2]), ({"text": "nowhere"}, [])):
        found, before = [], None
        while True:
            jobs, before = store.browse.page(7, before, **filters)
            assert len(jobs) <= 7
            found += [job.id for job in jobs]
            if before is None:
                break
        assert found == wanted[::-1]


def test_dead_jobs_are_grouped_by_command_and_end(store):
    ids = store.enqueue_many(["send mail"] * 3 + ["send mail", "other"])
    with store.db.undo, queuectl.Transaction(store.db) as now:
        for job_id in ids:
            job = store.look.row(job_id)
            store.life.move(job, "claim", started_at=now, worker=1, attempt=1, attempts=1)
            store.life.end(store.look.row(job_id), "bury", now, exit_code=75 if job_id == ids[3] else 1)
    groups = store.browse.dead_groups()
    assert [(group["count"], group["job"].id) for group in groups] == [(3, ids[2]), (1, ids[4]), (1, ids[3])]
    jobs, _ = store.browse.page(50, states=["dead"], like=ids[0])
    assert store.browse.page(50, like=999) == ([], None), "none is like a job that has gone"
    assert [job.id for job in jobs] == ids[2::-1]


# ---- no client stops another ---------------------------------------------------------------------

def test_slow_and_many_connections_stop_nobody(server):
    links = []
    for number in range(queuectl.WEB_CONNECTIONS * 2):
        link = server.connect()
        link.sendall(b"GET / HTTP/1.1\r\nHost: "[:number % 20])
        links.append(link)
    assert server.json("status")["jobs"]["pending"] == 1
    for link in links:
        link.close()


def ended_when_it_trickles(server, data):
    link = server.connect()
    link.sendall(data)

    def ended():
        try:
            link.sendall(b"x")
            link.settimeout(0.01)
            return link.recv(10) == b""
        except socket.timeout:
            return False
        except OSError:
            return True
    wait_until(ended, 30, "a request that trickles is cut off", 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["GET /api/status HTTP/1.1\r\nHost: x\r\nX: ", "POST /api/act HTTP/1.1\r\nHost: localhost\r\n"
                                  "Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 500000\r\n\r\n{"])
def test_a_request_that_never_ends_is_ended(server, line):
    ended_when_it_trickles(server, (line.replace("%s", server.token)).encode())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\r\n" * 100,
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
    b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /\xff\x00 HTTP/1.1\r\nHost: localhost\r\nX: \xff\r\n\r\n"], ids=range(8))
def test_nonsense_is_refused_and_harms_nobody(server, data):
    link = server.connect()
    try:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        answer = server.raw(b"", link)
    except OSError:
        answer = b""
    assert b"a job" not in answer and b"internal" not in answer
    assert server.json("status")["jobs"]["pending"] == 1


def test_the_head_of_a_request_is_bounded(server):
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 60000) for number in range(90))
    try:
        answer = server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
    except OSError:
        answer = b" 431 "  # it has hung up before all was sent
    assert answer.split()[:2][-1] in (b"431",), answer[:200]
    assert server.json("status")["jobs"]["pending"] == 1


def test_a_body_that_is_too_large_or_not_json_is_refused(server):
    assert server.ask("/api/act", "POST", {}, Content_Length=str(10**9))[0] == 413
    assert server.ask("/api/act", "POST", {}, Content_Length="-1")[0] == 411
    assert server.ask("/api/act", "POST", [1])[0] == 400
    head = ("POST /api/act HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
            "Content-Length: %d\r\n\r\n")
    for text in (b"{", b"\xff", b"[" * 100000, b"NaN"):
        assert server.raw((head % (server.token, len(text))).encode() + text).split()[1] == b"400"


# ---- it lives through what happens to the queue ---------------------------------------------------

def stream(server, link=None):
    link = link or server.connect()
    link.sendall(("GET /api/live HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n" % (server.host, server.token)).encode())
    return link.makefile("rb")


def told(lines):
    """The next thing that the server tells a page."""
    for line in lines:
        if line.startswith(b"data: "):
            return json.loads(line[6:].decode())


def test_a_page_is_told_of_a_change(server, queue):
    lines = stream(server)
    before = told(lines)
    queue.cli("release", "1")
    wait_until(lambda: told(lines)["version"] > before["version"], 20, "the change is told")


def test_it_says_that_the_queue_is_gone_and_goes_on_when_it_is_back(server, queue):
    lines = stream(server)
    assert told(lines)["trouble"] is None
    for end in ("", "-wal", "-shm"):
        if os.path.exists(str(queue.db) + end):
            os.rename(str(queue.db) + end, str(queue.db) + ".away" + end)
    wait_until(lambda: told(lines)["trouble"], 20, "the trouble is told")
    status, _, body = server.ask("/api/status")
    assert status == 503 and body.count(b"\n") == 1 and b"deleted" in body
    for end in ("", "-wal", "-shm"):
        if os.path.exists(str(queue.db) + ".away" + end):
            os.rename(str(queue.db) + ".away" + end, str(queue.db) + end)
    wait_until(lambda: told(lines)["trouble"] is None, 20, "it goes on")
    assert server.json("status")["jobs"]["pending"] == 1


def test_a_locked_queue_can_be_read_and_a_change_says_that_it_must_wait(server, queue):
    other = sqlite3.connect(str(queue.db), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert server.json("status")["jobs"]["pending"] == 1
    status, _, body = server.ask("/api/act", "POST", {"verb": "release", "ids": [1]})
    assert status == 503 and b"locked" in body
    other.execute("ROLLBACK")
    assert server.post("act", {"verb": "release", "ids": [1]})["done"] == 1


def test_a_damaged_or_newer_queue_is_told_in_one_line(server, queue):
    connection = sqlite3.connect(str(queue.db))
    mark = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("PRAGMA user_version=%d" % (mark | 0xFF))
    connection.close()
    status, _, body = server.ask("/api/queues")
    assert status == 400 and b"newer" in body and body.count(b"\n") == 1


@posix_only("signals")
def test_ctrl_c_ends_it_at_once_whoever_is_connected(server):
    lines, slow = stream(server), server.connect()
    assert told(lines)
    server.process.send_signal(signal.SIGINT)
    assert server.process.ends(10) == 130
    assert "Traceback" not in server.process.text()
    slow.close()


def processor(server):
    """The seconds of processor time that the server has used."""
    fields = open("/proc/%d/stat" % server.process.pid).read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@linux_only("/proc")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_pages_for_a_while_cost_little_and_leave_nothing_open(server, queue):
    def threads():
        return len(os.listdir("/proc/%d/task" % server.process.pid))

    def descriptors():
        return len(os.listdir("/proc/%d/fd" % server.process.pid))

    server.json("overview")
    before = threads(), descriptors()
    links = [server.connect() for _ in range(20)]
    pages = [stream(server, link) for link in links]
    wait_until(lambda: threads() > 20, 20, "each page has its thread")  # beside the main one; that of the request before may still end
    asked, heard = [0], [0] * 20

    def show(number):  # as the page does: an answer at most every 0.7 s, when it is told of a change
        for line in pages[number]:
            if line.startswith(b"data: "):
                heard[number] += 1
                server.json("overview")
                asked[0] += 1
                time.sleep(0.7)

    for number in range(20):
        threading.Thread(target=show, args=(number,), daemon=True).start()
    until, cost = time.monotonic() + 60, processor(server)
    while time.monotonic() < until:
        queue.enqueue("--hold", "x")
        time.sleep(1)  # one change per second; nothing is waited for
    used = processor(server) - cost
    print("%d answers, %.1f %% of a core" % (asked[0], used / 0.6))
    # 1.2 % of a core where nothing else runs, and up to 6 % where fifteen others want the processor and its caches.
    assert used < 0.1 * 60 and min(heard) > 15, (used, heard)
    for link in links:
        link.shutdown(socket.SHUT_RDWR)
        link.close()
    wait_until(lambda: (threads(), descriptors()) <= before, 30, "nothing is left open: %s" % (before,))


# ---- what is asked for does not exist, or makes no sense -----------------------------------------

@pytest.mark.parametrize("path", ["job?id=99", "job?id=nobody", "log?id=99", "log?id=99&download=1"])
def test_what_does_not_exist_is_answered_by_404(server, path):
    status, _, body = server.ask("/api/" + path)
    assert status == 404 and b"no job" in body


@pytest.mark.parametrize("name, body", [("enqueue", {"command": "x", "like": 99}), ("schedule", {"verb": "run", "name": "x"}),
                                        ("queue", {"name": "nowhere", "paused": True})])
def test_a_change_to_what_does_not_exist_is_answered_by_404(server, queue, name, body):
    assert server.ask("/api/" + name, "POST", body)[0] == 404
    assert len(queue.json("list")) == 1


@pytest.mark.parametrize("path", ["jobs?limit=0", "jobs?limit=501", "log?id=1&attempt=7"])
def test_numbers_out_of_their_range_are_answered_by_400(server, path):
    assert server.ask("/api/" + path)[0] == 400


def test_a_change_of_a_queue_that_says_nothing_changes_nothing(server, queue):
    assert server.post("queue", {"name": "default"}) == {}
    for paused in ("no", 2, [], "true"):
        assert server.ask("/api/queue", "POST", {"name": "default", "paused": paused})[0] == 400, paused
    assert not queue.json("queue", "list")[0]["paused"]


def test_a_length_in_odd_digits_is_no_internal_error(server):
    head = "POST /api/act HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n" % (
        server.host, server.token)
    answer = server.raw(head.encode() + b"Content-Length: \xb2\r\n\r\n{}")
    assert answer.split()[1] == b"411" and b"internal" not in answer
