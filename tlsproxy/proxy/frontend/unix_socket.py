"""Listening sockets of the unix domain: bound with a mode, and removed when they are closed.

A file that a crash has left is replaced; one behind which somebody listens is not, nor is anything but a socket. At the
end only our own file is removed: another process may have replaced it meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tlsproxy.config.endpoints import LONGEST_UNIX_PATH, UnixSocket

_NO_SOCKET: Final = "exists and is not a socket; remove it, or choose another path"
_TAKEN: Final = "another process is listening there"


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a socket that we have bound."""

    path: Path
    created: os.stat_result

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(path, path.lstat())

    def remove(self) -> None:
        """Remove it, unless another process has replaced it."""
        try:
            if os.path.samestat(self.path.lstat(), self.created):
                self.path.unlink()
        except FileNotFoundError:
            return


def bind_unix(where: UnixSocket, mode: int, backlog: int) -> tuple[socket.socket, SocketFile | None]:
    """A non-blocking listening socket, and its file if it is no abstract one. Raises OSError, with a sentence."""
    if where.abstract:
        return _bind_abstract(where, backlog), None
    path = Path(where.name)
    check_unix(where)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(where.sockaddr)
        # No client can connect before `listen`, so the mode is in place in time.
        path.chmod(mode)
        file = SocketFile.of(path)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock, file


def _bind_abstract(where: UnixSocket, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(where.sockaddr)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(errno.EADDRINUSE, _TAKEN) from error
        raise
    return sock


def check_unix(where: UnixSocket) -> None:
    """Check that the socket can be made, if its name is free. Raises OSError, with a sentence."""
    if len(os.fsencode(where.name.removeprefix("@"))) > LONGEST_UNIX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"a path of a unix socket has at most {LONGEST_UNIX_PATH} bytes")
    if where.abstract:
        return
    path = Path(where.name)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {path.parent}")
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, _NO_SOCKET)
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        text = f"{os.strerror(errno.EACCES)}: user {os.geteuid()} may not write to the directory {path.parent}"
        raise PermissionError(errno.EACCES, text)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a crash has left: one without a listener."""
    if not os.path.lexists(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog raises BlockingIOError: there is a listener.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, _TAKEN)
