"""Trial of the start's last steps, for `check`: addresses, the admin server's too, and the audit log's place.

Nothing is left behind: no client is accepted, and no directory or file is made. An address that another process has
taken is no fault, for that may be the running gateway.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from tlsproxy.admin.socket import AdminAddressError
from tlsproxy.admin.socket import check_place as check_admin_place
from tlsproxy.audit.log import AuditGroupError, AuditNotWritable, check_place, place_warnings
from tlsproxy.config.endpoints import Endpoint, UnixSocket, admin_endpoint
from tlsproxy.config.health import health_endpoint
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config
from tlsproxy.config.positions import dotted
from tlsproxy.proxy.frontend.listener import bound_socket
from tlsproxy.proxy.frontend.unix_socket import check_unix
from tlsproxy.service.systemd.units import SocketUnit

MADE: Final = frozenset((Path("/run/tlsproxy"), Path("/var/log/tlsproxy")))
"""Directories that systemd makes when it starts our unit, by its `RuntimeDirectory=` and `LogsDirectory=`."""
PRIVILEGED: Final = 1024
"""The first port that every user may bind."""


def start_faults(config: Config, units: Sequence[SocketUnit], now: float) -> Iterator[str]:
    """Reasons why `run` could not serve this valid configuration now, but for the addresses that ``units`` hold.

    ``now`` is seconds since the epoch.
    """
    bound: dict[tuple[str, int], str] = {}
    for key, endpoint in _own(config, units):
        if isinstance(endpoint, UnixSocket):
            yield from _unix_faults(key, endpoint)
            continue
        try:
            with closing(bound_socket(endpoint.bound, 0)) as sock:
                address = sock.getsockname()[0]
        except OSError as error:
            yield f"{key}: cannot listen on {endpoint.host}: {error.strerror}"
            continue
        other = bound.setdefault((address, endpoint.port), key) if endpoint.port else key
        if other != key:
            yield f"{key}: {endpoint} is taken: {other} listens on the same address"
    admin = _admin(config)
    try:
        if not _made_at_start(config.audit.dir):
            check_place(config.audit, now)
        if isinstance(admin, UnixSocket) and not _made_at_start(Path(admin.name).parent):
            check_admin_place(admin)
    except (AuditNotWritable, AuditGroupError, AdminAddressError) as error:
        yield str(error)


def start_warnings(config: Config, units: Sequence[SocketUnit]) -> Iterator[str]:
    """Socket units that do not fit, ports that this user may not bind, though the service may, and a directory that
    `audit.group` may not read.
    """
    yield from place_warnings(config.audit)
    for unit in units:
        yield from unit.problems(tuple(listening(config)))
    for key, endpoint in _own(config, units):
        if isinstance(endpoint, Endpoint) and 0 < endpoint.port < PRIVILEGED:
            try:
                bound_socket(endpoint.bound, endpoint.port).close()
            except OSError as error:
                if error.errno == errno.EACCES:
                    yield f"{key}: port {endpoint.port} needs CAP_NET_BIND_SERVICE, or a socket unit"


def _unix_faults(key: str, endpoint: UnixSocket) -> Iterator[str]:
    if endpoint.abstract or not _made_at_start(Path(endpoint.name).parent):
        try:
            check_unix(endpoint)
        except OSError as error:
            yield f"{key}: cannot listen on {endpoint}: {error.strerror}"


def _made_at_start(directory: Path | str) -> bool:
    return directory in MADE and not Path(directory).exists()


def _own(config: Config, units: Sequence[SocketUnit]) -> Iterator[tuple[str, Endpoint | UnixSocket]]:
    """Keys and addresses of the listeners that `run` binds itself."""
    for where in listening(config):
        if not any(unit.holds(where) for unit in units):
            yield dotted(where.path), where.endpoint
    health = health_endpoint(config)
    if health is not None:
        yield "health.listen", health
    admin = _admin(config)
    if isinstance(admin, Endpoint):
        yield "admin.listen", admin


def _admin(config: Config) -> Endpoint | UnixSocket | None:
    return None if config.admin.listen is None else admin_endpoint(config.admin.listen)
