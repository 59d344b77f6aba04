"""The states of a generation on their way to a worker: the very bytes that the supervisor has judged.

No worker reads a file, asks a resolver or judges anything. So all of them have the same generation or none, and one
that is started later has what serves, whatever the files have become meanwhile. What a worker has already it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
from cryptography import x509

from tlsproxy.config import loader
from tlsproxy.config.model import Config, Tls
from tlsproxy.config.tokens import KeySource
from tlsproxy.snapshot.generation import Generation, Tunnel, assemble
from tlsproxy.snapshot.name_resolution import Address, Resolved
from tlsproxy.snapshot.states import InputState, PublicKeys, States
from tlsproxy.tls.crls import Crl, load_crls
from tlsproxy.tls.servercert import ServerCertificate, load_server_certificate, passphrase_of
from tlsproxy.tls.trust import load_authorities

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """``encoded`` is for the control channel: a line of JSON, then the bytes of states and key sets. It is secret."""

    number: int
    digest: str
    encoded: bytes = field(repr=False)


def order_of(generation: Generation) -> Order:
    states = generation.states
    pieces: list[bytes] = []

    def told(state: InputState[Any]) -> list[int]:
        pieces.extend(state.data)
        return [len(data) for data in state.data]

    head = {
        "number": generation.number,
        "built_at": generation.built_at,
        "configuration": told(states.configuration),
        "server": [told(states.server), states.server.value.warnings],
        "authorities": [] if states.authorities is None else told(states.authorities),
        "crls": [[str(path), told(state)] for path, state in states.crls.items()],
        "secrets": [[str(path), told(state)] for path, state in states.secrets.items()],
        "public_keys": [[str(path), told(state)] for path, state in states.public_keys.items()],
        "documents": [[source.url, source.algorithm, len(data)] for source, data in states.documents.items()],
        "names": [[name, one.url, one.addresses] for name, one in states.names.items()],
        "tunnels": [[where, one.addresses, sorted(one.allow)] for where, one in generation.tunnels.items()],
    }
    pieces.extend(states.documents.values())
    return Order(generation.number, generation.digest, b"".join([orjson.dumps(head), b"\n", *pieces]))


def built(
    encoded: bytes, config_path: Path, environ: Mapping[str, str], started: Config, former: Generation | None
) -> Generation:
    """The same generation in this process; ``former`` is what serves here so far. Blocks. Raises MaterialError."""
    line, _, rest = encoded.partition(b"\n")
    head, pieces = orjson.loads(line), _Pieces(rest)
    before = former.states if former is not None else None
    configuration = pieces.state(
        head["configuration"],
        None if before is None else before.configuration,
        lambda data: loader.parse(data[0], config_path, environ),
    )
    tls = configuration.value.config.tls
    sizes, warnings = head["server"]
    server = pieces.state(
        sizes, None if before is None else before.server, lambda data: _server(tls, data, tuple(warnings))
    )
    authorities = None
    if head["authorities"]:
        known = None if before is None else before.authorities
        authorities = pieces.state(head["authorities"], known, lambda data: _authorities(tls, data))
    revoked = {} if before is None else before.crls
    states = States(
        configuration=configuration,
        server=server,
        authorities=authorities,
        crls={
            Path(path): pieces.state(sizes, revoked.get(Path(path)), partial(_crls, path))
            for path, sizes in head["crls"]
        },
        secrets={Path(path): pieces.state(sizes, None, _unread) for path, sizes in head["secrets"]},
        public_keys={Path(path): pieces.state(sizes, None, _unused) for path, sizes in head["public_keys"]},
        names={name: Resolved(url, _addresses(addresses)) for name, url, addresses in head["names"]},
        documents={KeySource(url, algorithm): pieces.take(size) for url, algorithm, size in head["documents"]},
    )
    return assemble(
        states,
        number=head["number"],
        config_path=config_path,
        environ=environ,
        started=started,
        former=former,
        tunnels={where: Tunnel(_addresses(addresses), frozenset(allow)) for where, addresses, allow in head["tunnels"]},
        now=head["built_at"],
    )


def _addresses(told: list[Any]) -> tuple[Address, ...]:
    return tuple((family, tuple(address)) for family, address in told)


class _Pieces:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, size: int) -> bytes:
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def state(
        self, sizes: list[int], former: InputState[T] | None, made: Callable[[tuple[bytes, ...]], T]
    ) -> InputState[T]:
        """That of before where it is the same."""
        data = tuple(map(self.take, sizes))
        if former is not None and former.data == data:
            return former
        return InputState.of(made(data), data)


def _server(tls: Tls, data: tuple[bytes, ...], warnings: tuple[str, ...]) -> ServerCertificate:
    passphrase = passphrase_of(str(tls.key_passphrase_file), data[2]) if len(data) > 2 else None  # noqa: PLR2004
    return replace(
        load_server_certificate((str(tls.cert), data[0]), (str(tls.key), data[1]), passphrase), warnings=warnings
    )


def _authorities(tls: Tls, data: tuple[bytes, ...]) -> tuple[x509.Certificate, ...]:
    return load_authorities(str(tls.ca_cert), data[0])


def _crls(path: str, data: tuple[bytes, ...]) -> tuple[Crl, ...]:
    return tuple(crl for one in data for crl in load_crls(path, one))


def _unread(_data: tuple[bytes, ...]) -> str:
    """What a secret or public key is, is read from its bytes where it is used."""
    return ""


def _unused(_data: tuple[bytes, ...]) -> PublicKeys:
    return {}
