"""Stand-in for systemd and its service with sockets: `python -m support.socket_activation NAMES FDS COMMAND…`.

It passes the descriptors from 3 on and says so in the environment (sd_listen_fds(3)), in the process that the command
then is.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

FIRST = 3
_ABOVE = 64


def passing(sockets: Sequence[tuple[str, socket.socket]], command: Sequence[str]) -> list[str]:
    """The command that becomes ``command`` with these sockets; they must be passed on to it."""
    names = ":".join(name for name, _ in sockets)
    numbers = ",".join(str(sock.fileno()) for _, sock in sockets)
    return [sys.executable, str(Path(__file__)), names, numbers, *command]


def _become(names: str, numbers: str, *command: str) -> None:
    kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, _ABOVE) for number in numbers.split(",")]
    for place, number in enumerate(kept):
        os.dup2(number, FIRST + place)
        os.close(number)
    told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept))} | ({"LISTEN_FDNAMES": names} if names else {})
    os.execvpe(command[0], command, {**os.environ, **told})  # noqa: S606


if __name__ == "__main__":
    _become(*sys.argv[1:])
