"""Calls that hang in a process of the gateway's, as those of a file server or a resolver that does not answer do.

Python runs `sitecustomize` before anything else, in the gateway and in its workers.
"""

from __future__ import annotations

import os
from pathlib import Path

HOST = "hung.example"
"""A name that the resolver of such a process never answers for."""

_RESOLVER = f"""
import pathlib, socket, threading

def hang(host, *rest, _asked=socket.getaddrinfo, **named):
    if host == {HOST!r}:
        pathlib.Path(__file__).with_name("hangs").write_text("")  # a pipe, which somebody reads
        threading.Event().wait()
    return _asked(host, *rest, **named)

socket.getaddrinfo = hang
"""
_WORKERS = """
import pathlib, sys, threading

if "tlsproxy.service.workers.worker" in sys.orig_argv:
    pathlib.Path(__file__).with_name("hangs").write_text("")
    threading.Event().wait()
"""
_LOOPS = """
import signal, sys, threading

if "tlsproxy.service.workers.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR2, lambda *_: threading.Event().wait())
"""


class Hanging:
    """``environ`` is for the gateway."""

    def __init__(self, directory: Path, code: str) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(code)
        self._hangs = directory / "hangs"
        os.mkfifo(self._hangs)
        self.environ = {"PYTHONPATH": str(directory)}

    def wait(self) -> None:
        """Until something hangs."""
        self._hangs.read_text()


def resolver(directory: Path) -> Hanging:
    return Hanging(directory, _RESOLVER)


def loops(directory: Path) -> Hanging:
    """A worker's loop hangs from SIGUSR2 on."""
    return Hanging(directory, _LOOPS)


def workers(directory: Path) -> Hanging:
    """They hang before their first line."""
    return Hanging(directory, _WORKERS)
