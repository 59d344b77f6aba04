"""Workers of forked gateways, without the half second that importing takes: each is forked from a process that has
imported all of it.

That process is the supervisor's child, from before it had a thread or a loop. A worker becomes a child of the
supervisor as one that it starts itself: its parent ends at once, and the supervisor adopts orphans.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

_COMMAND = ["-P", "-m", "tlsproxy.service.workers.worker"]
_PR_SET_CHILD_SUBREAPER = 36
_ERROR_PIPE = 9
"""Index of the error pipe among the arguments of ``subprocess``, after the descriptors to keep."""
_SUPERVISORS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def is_worker() -> bool:
    """Returns False in this process, which starts its workers so from then on, and True in each of them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS)
        _serve(theirs)
        return True
    theirs.close()
    started = subprocess._fork_exec  # type: ignore[attr-defined]

    def fork_exec(command: list[str], programs: Any, close: Any, keep: tuple[int, ...], *rest: Any) -> int:
        if command[1:4] != _COMMAND:
            return int(started(command, programs, close, keep, *rest))
        kept = [one for one in keep if one != rest[_ERROR_PIPE]]
        socket.send_fds(ours, [json.dumps({"argv": command[3:], "kept": kept}).encode()], kept)
        return int(ours.recv(64))

    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
    return False


def _serve(sock: socket.socket) -> None:
    """Returns in each worker, with its arguments and descriptors in place."""
    while True:
        data, received, _, _ = socket.recv_fds(sock, 1 << 16, 253)
        if not data:
            os._exit(0)
        asked = json.loads(data)
        told, telling = os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)
            sock.send(os.read(told, 64))
            for descriptor in (told, telling, *received):
                os.close(descriptor)
            continue
        if pid := os.fork():
            os.write(telling, b"%d" % pid)
            os._exit(0)
        sock.close()
        sys.argv[:] = asked["argv"]
        sys.orig_argv[:] = [sys.executable, *_COMMAND, *sys.argv[1:]]
        _place(received, asked["kept"])
        return


def _place(received: list[int], kept: list[int]) -> None:
    """Gives descriptors the numbers that they have in the supervisor, and closes all others but the usual three."""
    apart = [fcntl.fcntl(one, fcntl.F_DUPFD, max(kept) + 1) for one in received]
    for one, number in zip(apart, kept, strict=True):
        os.dup2(one, number)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
        if int(entry) > 2 and int(entry) not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(int(entry))
