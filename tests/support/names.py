"""Names that the resolver of a forked gateway knows, from a file that a test may change at any time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

_VARIABLE: Final = "TLSPROXY_TEST_NAMES"


class Names:
    """Addresses by name. ``environ`` is for the gateway. A name without addresses does not resolve."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "names.json"
        self._names: dict[str, list[str]] = {}
        self.environ = {_VARIABLE: str(self._path)}
        self.point("")

    def point(self, name: str, *addresses: str) -> None:
        self._names[name] = list(addresses)
        staged = self._path.with_suffix(".new")
        staged.write_text(json.dumps(self._names))
        staged.replace(self._path)


def install() -> None:
    """Put these names before those of the system."""
    path = os.environ.get(_VARIABLE)
    if path is None:
        return
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **named: Any) -> list[Any]:
        known = json.loads(Path(path).read_text())
        if host in known and not known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [entry for address in known.get(host, [host]) for entry in real(address, port, *rest, **named)]

    socket.getaddrinfo = resolve
