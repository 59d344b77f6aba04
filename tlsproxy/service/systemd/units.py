"""Socket units that hold a configuration's addresses: read from systemd's directories, for `check`.

A unit that listens elsewhere than the configuration says lets the next start fail
(:mod:`tlsproxy.service.systemd.sockets`), so `check` names it. Only enabled units count, of a service that runs this
very configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tlsproxy.config.endpoints import Endpoint, UnixSocket, is_address, named_socket
from tlsproxy.config.listeners import Listening

_SEARCHED: Final = "/etc/systemd/system:/run/systemd/system:/usr/local/lib/systemd/system:/usr/lib/systemd/system"
"""The first part of systemd's search path (systemd.unit(5))."""
_LARGEST: Final = 1 << 16

Settings = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class SocketUnit:
    """``streams`` are the addresses of its `ListenStream=`, ``label`` its `FileDescriptorName=`, "" without one."""

    name: str
    streams: tuple[Endpoint | UnixSocket, ...]
    label: str

    def problems(self, listening: Sequence[Listening]) -> Iterator[str]:
        """Reasons why a start behind this unit fails."""
        for stream in self.streams:
            where = next((one for one in listening if same_address(one.endpoint, stream)), None)
            if where is None:
                known = ", ".join(str(one.endpoint) for one in listening)
                yield (
                    f"{self.name} listens on {stream}, where no listener of the configuration is ({known}): a start "
                    "fails until its ListenStream= says the same address, or the unit is disabled"
                )
            elif self.label and self.label not in where.protocols:
                names = " or ".join(f"FileDescriptorName={protocol}" for protocol in where.protocols)
                yield f"{self.name} on {stream} is named {self.label!r}: a start fails until it has {names}"

    def holds(self, where: Listening) -> bool:
        return any(same_address(where.endpoint, stream) for stream in self.streams)


def same_address(one: Endpoint | UnixSocket, other: Endpoint | UnixSocket) -> bool:
    if isinstance(one, UnixSocket) or isinstance(other, UnixSocket):
        return one == other
    return one.port == other.port and (one.host == other.host or (one.wildcard and other.wildcard))


def socket_units(config_path: Path, environ: Mapping[str, str]) -> tuple[SocketUnit, ...]:
    """Enabled socket units of services that run this configuration. Files that cannot be read do not count."""
    directories = [Path(each) for each in environ.get("SYSTEMD_UNIT_PATH", _SEARCHED).split(":") if each]
    wanted = config_path.resolve()
    found = {}
    for entry in (entry for directory in directories for entry in sorted(directory.glob("*.wants/*.socket"))):
        settings = _settings(directories, entry.name)
        service = (*settings.get("Service", ()), f"{entry.name.removesuffix('.socket')}.service")[0]
        words = [word for line in _settings(directories, service).get("ExecStart", ()) for word in line.split()]
        if any(word.startswith("/") and Path(word).resolve() == wanted for word in words):
            streams = map(_stream, settings.get("ListenStream", ()))
            label = (*settings.get("FileDescriptorName", ()), "")[0]
            found[entry.name] = SocketUnit(entry.name, tuple(one for one in streams if one is not None), label)
    return tuple(found.values())


def _settings(directories: Sequence[Path], name: str) -> Settings:
    """Settings of a unit and its drop-ins; an empty value forgets the earlier ones (systemd.unit(5))."""
    unit = next((path for directory in directories if (path := directory / name).is_file()), None)
    dropped = {path.name: path for directory in reversed(directories) for path in directory.glob(f"{name}.d/*.conf")}
    settings: dict[str, list[str]] = {}
    for path in filter(None, (unit, *(dropped[each] for each in sorted(dropped)))):
        for line in _text(path).splitlines():
            key, equals, value = line.partition("=")
            if not equals or key.lstrip().startswith(("#", ";")):
                continue
            if value.strip():
                settings.setdefault(key.strip(), []).append(value.strip())
            else:
                settings.pop(key.strip(), None)
    return settings


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def _stream(listen: str) -> Endpoint | UnixSocket | None:
    """The address of a `ListenStream=` (systemd.socket(5)): a port alone is every address; None for other kinds."""
    if listen.startswith(("/", "@")):
        try:
            return named_socket(listen, "")
        except ValueError:
            return None
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "::"
    return Endpoint(host, int(port)) if port.isdecimal() and is_address(host) else None
