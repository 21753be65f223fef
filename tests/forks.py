"""Processes of the program that need not start Python: a process that has imported the program forks for each command.

A command by this way is a process of its own with its own streams, directory, umask and environment, and ends as one that was
started as the installed command does.  It has not started Python and loaded no bytecode, which is three quarters of a short command.
This file is both ends: the tests ask through `Forks`, and run as a program it is the process that forks.
"""
from __future__ import annotations

import array
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STREAMS = 3


# ---- the process that forks --------------------------------------------------------------------

def receive(control):
    """The next order and its descriptors; (None, []) when the tests have gone."""
    numbers = array.array("i")
    data, ancillary, _, _ = control.recvmsg(4, socket.CMSG_SPACE(numbers.itemsize * (STREAMS + 1)))
    for _, _, found in ancillary:
        numbers.frombytes(found)
    left = struct.unpack("=I", data)[0] if data else 0
    parts = []
    while left:
        parts.append(control.recv(left))
        left -= len(parts[-1])
    return (json.loads(b"".join(parts).decode("ascii")), list(numbers)) if data else (None, [])


def become(order, streams):
    """Runs one command in this process, which was forked for it."""
    import queuectl
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(STREAMS, max(streams) + 64)
    os.chdir(order["cwd"])
    os.umask(order["umask"])
    os.environ.clear()
    os.environ.update(order["env"])
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)
        stream = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False, buffering=1 if name == "stderr" else -1)
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)
    sys.argv = order["argv"]
    queuectl.leave(queuectl.main())


def serve(control):
    children = {}  # pid -> the descriptor by which the tests wait for its end
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        for place in (control, woken):
            selector.register(place, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                tell_ends(children)
            if control in ready:
                order, numbers = receive(control)
                if order is None:
                    return
                pid = os.fork()
                if not pid:
                    try:
                        become(order, numbers[:STREAMS])
                    finally:  # it ends itself, unless something is wrong in this file
                        sys.excepthook(*sys.exc_info())
                        sys.stderr.flush()
                        os._exit(70)
                children[pid] = numbers.pop()
                os.write(children[pid], struct.pack("=i", pid))
                for number in numbers:
                    os.close(number)


def tell_ends(children):
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        os.write(children[pid], struct.pack("=i", status))
        os.close(children.pop(pid))


# ---- the tests ---------------------------------------------------------------------------------

class Forks:
    """The process that forks, as its tests see it.  It is started with the first command, and ends with the tests."""

    def __init__(self, environment):
        self.environment = dict(environment)
        self.control = None
        self.lock = threading.Lock()

    def start(self):
        self.control, other = socket.socketpair()
        with other:
            subprocess.Popen([sys.executable, "-IS", __file__, str(other.fileno())], env=self.environment, pass_fds=[other.fileno()],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def order(self, order, numbers):
        data = json.dumps(order).encode("ascii")
        with self.lock:
            if self.control is None:
                self.start()
            self.control.sendmsg([struct.pack("=I", len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])
            self.control.sendall(data)

    def run(self, command, argv, cwd, env, data, timeout):
        """As subprocess.run, with pipes for all that it prints; data=None: nothing to read."""
        pipes = [os.pipe() for _ in range(STREAMS + 1)]
        stdin = os.open(os.devnull, os.O_RDONLY) if data is None else pipes[0][0]
        umask = os.umask(0o77)
        os.umask(umask)
        try:
            self.order({"argv": argv, "cwd": cwd, "env": env, "umask": umask}, [stdin] + [write for _, write in pipes[1:]])
        finally:
            for number in {stdin, pipes[0][0], *(write for _, write in pipes[1:])}:
                os.close(number)
        found = self.talk(pipes[0][1], [read for read, _ in pipes[1:]], data or b"", time.monotonic() + timeout)
        if found is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, struct.unpack("=ii", found[2])[1], *found[:2])

    def talk(self, feed, reads, data, deadline):
        """What comes out of each descriptor, up to its end, while data goes in; None if the time is over first."""
        found, open_ones = {read: [] for read in reads}, set(reads)
        os.set_blocking(feed, False)
        with selectors.DefaultSelector() as selector:
            for read in reads:
                selector.register(read, selectors.EVENT_READ)
            if data:
                selector.register(feed, selectors.EVENT_WRITE)
            else:
                os.close(feed)
            while open_ones and time.monotonic() < deadline:
                for key, _ in selector.select(max(0, deadline - time.monotonic())):
                    if key.fd in found:
                        part = os.read(key.fd, 65536)
                        found[key.fd].append(part)
                        ended = not part
                    else:
                        try:
                            data = data[os.write(feed, data):]
                        except BrokenPipeError:  # it reads no further
                            data = b""
                        ended = not data
                    if ended:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                        open_ones.discard(key.fd)
        if open_ones:
            self.kill(found[reads[-1]])
            return None
        return [b"".join(found[read]) for read in reads]

    def kill(self, told):
        """Ends a command that takes too long; `told` begins with its pid."""
        if told:
            os.kill(struct.unpack("=i", b"".join(told)[:4])[0], signal.SIGKILL)


if __name__ == "__main__":
    import argparse  # noqa: F401: what commands import
    import gc

    sys.path.insert(0, ROOT)
    import queuectl  # noqa: F401
    if hasattr(gc, "freeze"):  # not on PyPy
        gc.freeze()
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:
        pass  # the tests were interrupted
