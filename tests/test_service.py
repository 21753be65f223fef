"""service: units of systemd, launchd and Windows."""
from __future__ import annotations

import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import linux_only, posix_only, wait_until
from jobs import call


def awkward(queue):
    """The command of `service` with a database whose name no format likes."""
    path = queue.dir / "100% $HOME \"q\" <&> \u00e9.db"
    return str(path), lambda *words: queue.run([*queue.program, "--db", str(path), "service", *words]).stdout


@linux_only("systemd")
@pytest.mark.parametrize("kind,scope", [("systemd", "--user"), ("systemd-system", "--system")])
def test_the_systemd_unit_satisfies_systemd_analyze_verify(queue, kind, scope):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for text in (queue.cli("service", kind, "--count", 3).stdout, awkward(queue)[1](kind)):
        unit = queue.dir / "queuectl.service"
        unit.write_text(text)
        with tempfile.TemporaryDirectory() as short:  # a socket's path has room for 107 bytes
            done = queue.run(["systemd-analyze", "verify", scope, str(unit)], check=False, env={"XDG_RUNTIME_DIR": short})
        about_us = [line for line in (done.stdout + done.stderr).splitlines() if "queuectl" in line]  # not the machine's other units
        assert (done.returncode, about_us) == (0, [])
        assert re.search(r"(?m)^WantedBy=", text) and re.search(r"(?m)^Restart=", text)


def systemd_words(text):
    """The words of ExecStart as systemd reads them (systemd.service(5): quotes, backslashes, %%, $$)."""
    line = re.search(r"(?m)^ExecStart=(.*)$", text).group(1)
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def launchd_words(text):
    plist = plistlib.loads(text.encode())
    assert plist["Label"] and plist["RunAtLoad"] is True and plist["KeepAlive"]
    return plist["ProgramArguments"]


@pytest.mark.slow
@posix_only("signals")
@pytest.mark.parametrize("kind,words_of_service", [("systemd", systemd_words), ("systemd-system", systemd_words), ("launchd", launchd_words)])
def test_a_service_starts_the_workers_and_a_term_lets_them_finish_their_job(queue, kind, words_of_service):
    path, service = awkward(queue)
    words = words_of_service(service(kind, "--count", "2"))
    assert words[-1] == path or path in words
    supervisor = subprocess.Popen(words, cwd="/", env={"QUEUECTL_TEST": queue.env["QUEUECTL_TEST"]}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    cli = lambda *args: queue.run([*queue.program, "--db", path, *map(str, args)]).stdout  # noqa: E731
    try:
        started = queue.dir / "started"
        job = cli("enqueue", *queue.script("import sys, time; open(sys.argv[1], 'w'); time.sleep(0.5)", started)).strip()
        wait_until(lambda: started.exists() or supervisor.poll() is not None, message="the job runs")
        assert started.exists(), supervisor.stderr.read()
        assert len(json.loads(cli("worker", "list", "--json"))) == 2
        supervisor.terminate()
        assert supervisor.wait(20) == 0, supervisor.stderr.read()
        assert json.loads(cli("show", job, "--json"))["state"] == "completed"
        assert json.loads(cli("worker", "list", "--json")) == []
    finally:
        supervisor.kill()
        supervisor.wait()
        supervisor.stderr.close()


def test_the_windows_task_is_xml_that_starts_at_boot_and_runs_without_end(queue):
    path, service = awkward(queue)
    task = ElementTree.fromstring(service("windows", "--count", "2"))
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.tag == space + "Task"
    assert task.find(".//%sBootTrigger" % space) is not None
    assert task.find(".//%sExecutionTimeLimit" % space).text == "PT0S"
    assert task.find(".//%sDisallowStartIfOnBatteries" % space).text == task.find(".//%sStopIfGoingOnBatteries" % space).text == "false"
    command, arguments = (task.find(".//%sExec/%s%s" % (space, space, name)).text for name in ("Command", "Arguments"))
    assert command == sys.executable or os.path.exists(command)
    assert subprocess.list2cmdline([path]) in arguments and "--count 2" in arguments and "--foreground" in arguments


def test_service_names_the_kinds_it_knows(queue):
    status, _, told = call(queue, "service", "upstart")
    assert status == 2 and "launchd" in told
