"""Client of a running gateway's admin server: over loopback or its unix socket, with deadlines."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import click

from tlsproxy.cli.common import config_option
from tlsproxy.config.endpoints import UNIX, UnixSocket
from tlsproxy.config.loader import admin_listen
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import TlsproxyError
from tlsproxy.snapshot.files import read_config_files

DEADLINE: Final = 10.0
"""Seconds to wait for an answer."""
RELOAD_DEADLINE: Final = 70.0
"""Seconds to wait for a reload: more than the server's own deadline."""

_SIZE_LIMIT: Final = 64 << 20
_OTHER_CONFIG: Final = "(if it was started with another configuration, --admin ADDRESS says where it listens)"
_UNREAD_CONFIG: Final = "a gateway that runs serves on without this file: --admin ADDRESS asks it"

F = TypeVar("F", bound=Callable[..., Any])


class AdminError(TlsproxyError):
    """The admin server is not there, or gives an unexpected answer."""


class NoAdminServer(AdminError):
    """The configuration has none."""


def admin_options(command: F) -> F:
    """Options by which a command finds the admin server, for :func:`admin_of`."""
    where = "Where it listens: HOST:PORT, its page's URL, or unix:/path.  [default: admin.listen of the configuration]"
    # Eager: the configuration need not be there then.
    return config_option(click.option("--admin", metavar="ADDRESS", is_eager=True, help=where)(command))


def admin_of(config_path: Path, admin: str | None) -> AdminClient:
    """The admin server's client. Raises AdminError or MaterialError."""
    if admin is not None:
        return AdminClient(_address(admin))
    # A mistake elsewhere in the file is the gateway's to tell, and the service's credentials are its own.
    try:
        files = read_config_files(config_path, os.environ)
        listen = admin_listen(files.main, config_path, os.environ, files.pieces)
    except ConfigError as error:
        raise AdminError(f"{error}\n{_UNREAD_CONFIG}") from None
    if listen is None:
        raise NoAdminServer(f"{config_path}: admin.listen is not set, so there is no admin server")
    if listen.endswith(":0"):
        raise AdminError(f"{config_path}: admin.listen leaves the port to the system; name it with --admin HOST:PORT")
    return AdminClient(listen)


def _address(text: str) -> str:
    """`127.0.0.1:9333` of `http://127.0.0.1:9333/`, or of a page there; any other text as it is."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    if scheme.lower() != "http":
        raise AdminError(f"{text}: the admin server speaks plain HTTP: http://HOST:PORT/, HOST:PORT or unix:/path")
    return re.split(r"[/?#]", rest, maxsplit=1)[0]


class AdminClient:
    """``address`` is in the form of `admin.listen`. Each call opens a connection of its own.

    ``silent``: the last call was answered too late, though somebody listens there.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.silent = False

    def status(self, subject: str = "", deadline: float = DEADLINE) -> dict[str, Any]:
        """The whole status, with the connections of clients whose name has ``subject``. Raises AdminError."""
        return self._request("GET", f"/status?subject={quote(subject)}", deadline, "generation")

    def reload(self, query: Literal["", "?force=1", "?dry_run=1"] = "") -> dict[str, Any]:
        """The result, whichever it is. Raises AdminError where there is none."""
        return self._request("POST", f"/reload{query}", RELOAD_DEADLINE, "result")

    def cut(self, number: int) -> bool:
        """End a live connection; False where there is none of this number. Raises AdminError."""
        return self._request("POST", f"/connections/{number}/cut", DEADLINE, "cut")["cut"] is not None

    def _request(self, method: str, path: str, deadline: float, expected: str) -> dict[str, Any]:
        """The answer, an object that has ``expected``."""
        connection, self.silent = self._connection(deadline), False
        try:
            connection.request(method, path)
            answer = json.loads(connection.getresponse().read(_SIZE_LIMIT))
        except TimeoutError:
            self.silent = True
            raise AdminError(f"{self.address}: no answer within {deadline:g} s") from None
        except PermissionError:
            text = "only its owner may open it: run this as the gateway's user or as root"
            raise AdminError(f"{self.address}: {text}") from None
        except OSError as error:
            raise AdminError(
                f"{self.address}: {error.strerror or error}: is the gateway running? {_OTHER_CONFIG}"
            ) from None
        except (http.client.HTTPException, ValueError):
            raise AdminError(f"{self.address}: what answers there is not the admin server of a gateway") from None
        finally:
            connection.close()
        if not isinstance(answer, dict) or expected not in answer:
            reported = answer.get("error") if isinstance(answer, dict) else None
            raise AdminError(f"{self.address}: {reported or 'what answers there is not the admin server of a gateway'}")
        return answer

    def _connection(self, deadline: float) -> http.client.HTTPConnection:
        if self.address.startswith(UNIX):
            name = self.address.removeprefix(UNIX)
            return _UnixConnection(UnixSocket(name).sockaddr, deadline)
        try:
            return http.client.HTTPConnection(self.address, timeout=deadline)
        except http.client.InvalidURL:
            raise AdminError(f"{self.address}: is neither HOST:PORT nor unix:/path") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, deadline: float) -> None:
        super().__init__("localhost", timeout=deadline)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
