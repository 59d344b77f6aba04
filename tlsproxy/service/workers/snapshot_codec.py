"""A generation as bytes for the control channel: the input bytes that the supervisor has validated.

No worker reads a file, resolves a name or validates anything. So all workers have the same generation or none, and one
that starts later gets the generation in force, whatever has become of the files. Inputs that a worker has already are
shared with its former generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
from cryptography import x509

from tlsproxy.config import loader
from tlsproxy.config.endpoints import upstream_url
from tlsproxy.config.loader import Loaded
from tlsproxy.config.locks import read_lock_file
from tlsproxy.config.model import Config, Tls
from tlsproxy.config.pieces import unpacked
from tlsproxy.config.tokens import key_sources
from tlsproxy.config.upstream_tls_checks import client_pairs
from tlsproxy.service.workers.channel import Body
from tlsproxy.snapshot.generation import Generation, Tunnel, assemble
from tlsproxy.snapshot.name_resolution import Address, Resolved
from tlsproxy.snapshot.nodes import Upstream
from tlsproxy.snapshot.states import InputState, PublicKeys, States
from tlsproxy.tls.crls import Crl, load_crls
from tlsproxy.tls.owncert import CLIENT, OwnCertificate, load_certificate, passphrase_of
from tlsproxy.tls.trust import load_authorities

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EncodedGeneration:
    """``data`` is a line of JSON, and the bytes of input states and key sets, which are not copied. It holds private
    keys.
    """

    number: int
    digest: str
    data: tuple[bytes, ...] = field(repr=False)


def encode(generation: Generation) -> EncodedGeneration:
    states = generation.states
    pieces: list[bytes] = []

    def stored(state: InputState[Any]) -> list[int]:
        pieces.extend(state.data)
        return [len(data) for data in state.data]

    head = {
        "number": generation.number,
        "built_at": generation.built_at,
        "configuration": stored(states.configuration),
        "server": [stored(states.server), states.server.value.warnings],
        "authorities": [] if states.authorities is None else stored(states.authorities),
        "crls": [[str(path), stored(state)] for path, state in states.crls.items()],
        "client_certificates": [[str(path), stored(state)] for path, state in states.client_certificates.items()],
        "server_authorities": [[str(path), stored(state)] for path, state in states.server_authorities.items()],
        "secrets": [[str(path), stored(state)] for path, state in states.secrets.items()],
        "public_keys": [[str(path), stored(state)] for path, state in states.public_keys.items()],
        "locks": stored(states.locks),
        "documents": [len(states.documents.get(source, b"")) for source in key_sources(generation.config)],
        "names": [[name, entry.url, entry.addresses] for name, entry in states.names.items()],
        "tunnels": [
            [where, one.upstream.url, one.upstream.addresses, sorted(one.allow), one.announced]
            for where, one in generation.tunnels.items()
        ],
    }
    pieces.extend(states.documents.get(source, b"") for source in key_sources(generation.config))
    return EncodedGeneration(generation.number, generation.digest, (orjson.dumps(head) + b"\n", *pieces))


def decode(
    encoded: Body,
    config_path: Path,
    environ: Mapping[str, str],
    started: Config,
    former: Generation | None,
) -> Generation:
    """The same generation in this process; ``former`` is the one in force here. Blocks. Raises MaterialError."""
    end = encoded.index(b"\n")
    head, pieces = orjson.loads(encoded[:end]), _Pieces(memoryview(encoded)[end + 1 :])
    before = former.states if former is not None else None
    configuration = pieces.state(
        head["configuration"],
        None if before is None else before.configuration,
        lambda data: configuration_of(data, config_path, environ),
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
    certified = {} if before is None else before.client_certificates
    trusted = {} if before is None else before.server_authorities
    pairs = client_pairs(configuration.value.config)
    states = States(
        configuration=configuration,
        server=server,
        authorities=authorities,
        crls={
            Path(path): pieces.state(sizes, revoked.get(Path(path)), partial(_crls, path))
            for path, sizes in head["crls"]
        },
        client_certificates={
            Path(path): pieces.state(sizes, certified.get(Path(path)), partial(_client_certificate, pairs[Path(path)]))
            for path, sizes in head["client_certificates"]
        },
        server_authorities={
            Path(path): pieces.state(sizes, trusted.get(Path(path)), partial(_server_authorities, path))
            for path, sizes in head["server_authorities"]
        },
        secrets={Path(path): pieces.state(sizes, None, _no_value) for path, sizes in head["secrets"]},
        public_keys={Path(path): pieces.state(sizes, None, _no_keys) for path, sizes in head["public_keys"]},
        locks=pieces.state(
            head["locks"], None if before is None else before.locks, lambda data: read_lock_file(config_path, data[0])
        ),
        names={name: Resolved(url, _addresses(addresses)) for name, url, addresses in head["names"]},
        documents={
            source: pieces.take(size)
            for source, size in zip(key_sources(configuration.value.config), head["documents"], strict=True)
            if size
        },
    )
    return assemble(
        states,
        number=head["number"],
        config_path=config_path,
        environ=environ,
        started=started,
        former=former,
        tunnels={
            where: Tunnel(_lost_upstream(where, url, _addresses(addresses), former), frozenset(allow), announced)
            for where, url, addresses, allow, announced in head["tunnels"]
        },
        now=head["built_at"],
    )


def configuration_of(data: Sequence[bytes], config_path: Path, environ: Mapping[str, str]) -> Loaded:
    """The configuration of a state's bytes."""
    main, pieces = unpacked(data)
    return loader.parse(main, config_path, environ, pieces)


def _addresses(stored: list[Any]) -> tuple[Address, ...]:
    return tuple((family, tuple(address)) for family, address in stored)


class _Pieces:
    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int) -> bytes:
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def state(
        self, sizes: list[int], former: InputState[T] | None, make: Callable[[tuple[bytes, ...]], T]
    ) -> InputState[T]:
        """The next state; the former object where the bytes are the same."""
        data = tuple(map(self.take, sizes))
        if former is not None and former.data == data:
            return former
        return InputState.of(make(data), data)


def _server(tls: Tls, data: tuple[bytes, ...], warnings: tuple[str, ...]) -> OwnCertificate:
    passphrase = passphrase_of(str(tls.key_passphrase_file), data[2]) if len(data) > 2 else None  # noqa: PLR2004
    return replace(load_certificate((str(tls.cert), data[0]), (str(tls.key), data[1]), passphrase), warnings=warnings)


def _client_certificate(paths: tuple[Path, ...], data: tuple[bytes, ...]) -> OwnCertificate:
    cert, key, *secret = map(str, paths)
    passphrase = passphrase_of(secret[0], data[2]) if secret else None
    return load_certificate((cert, data[0]), (key, data[1]), passphrase, CLIENT)


def _server_authorities(path: str, data: tuple[bytes, ...]) -> tuple[x509.Certificate, ...]:
    return load_authorities(path, data[0])


def _lost_upstream(where: str, url: str, addresses: tuple[Address, ...], former: Generation | None) -> Upstream:
    """The upstream of a listener that the configuration may have lost. Then its TLS is known to a process that had it;
    to another the upstream has no address, as it must not be spoken to in plaintext.
    """
    known = None if former is None else former.tunnels.get(where)
    tls = None if known is None else known.upstream.tls
    return Upstream.of(Resolved(url, () if upstream_url(url).tls and tls is None else addresses), tls)


def _authorities(tls: Tls, data: tuple[bytes, ...]) -> tuple[x509.Certificate, ...]:
    return load_authorities(str(tls.ca_cert), data[0])


def _crls(path: str, data: tuple[bytes, ...]) -> tuple[Crl, ...]:
    return tuple(crl for entry in data for crl in load_crls(path, entry))


def _no_value(_data: tuple[bytes, ...]) -> str:
    """No value: a secret is read from the state's bytes where it is used."""
    return ""


def _no_keys(_data: tuple[bytes, ...]) -> PublicKeys:
    return {}
