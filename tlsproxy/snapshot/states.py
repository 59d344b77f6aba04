"""States of inputs, and faults of their files.

An input is validated for itself (:mod:`tlsproxy.snapshot.validation`). Its last good state outlives the file's content:
after a broken write of the key, the former pair of certificate and key is still there. A generation consists of the
best state of each input, and generations share equal states.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from tlsproxy.errors import FailureKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.authz.tokens import VerificationKey
    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.locks import LockFile
    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.name_resolution import Resolved
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.owncert import OwnCertificate

T = TypeVar("T")

InputKind: TypeAlias = Literal[
    "configuration",
    "certificate",
    "authorities",
    "crl",
    "client_certificate",
    "server_authorities",
    "secret",
    "public_keys",
    "locks",
    "name",
    "publication",
]
"""``certificate`` is the server's, with its key and passphrase, ``client_certificate`` one of ours for upstreams;
``authorities`` verify clients, ``server_authorities`` upstreams. ``public_keys`` are those of a token issuer.
``publication`` stands for a valid whole that could not be built or published."""


PublicKeys: TypeAlias = "Mapping[str, tuple[VerificationKey, ...]]"
"""By the format and algorithm that a file was parsed for: `"pem ES256"`."""


@dataclass(frozen=True, slots=True)
class Input:
    """``name`` is a path, or the key of a name to resolve (`upstream.rest`)."""

    kind: InputKind
    name: str


@dataclass(frozen=True, slots=True)
class InputState(Generic[T]):
    """A good state, identified by the ``digest`` of ``data``, from which it can be rebuilt.

    ``read`` is the digest of the file content; empty if the state leaves out a part of it.
    """

    value: T = field(repr=False, compare=False)
    data: tuple[bytes, ...] = field(repr=False, compare=False)
    digest: str
    read: str = field(compare=False)

    @classmethod
    def of(cls, value: T, data: tuple[bytes, ...], *, whole: bool = True) -> InputState[T]:
        digest = digest_of(data)
        return cls(value, data, digest, digest if whole else "")


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why an input's files are not, or not completely, in force. Kind ``TIME`` has a ``moment``.

    ``read`` is the digest of the content validated at ``at`` (seconds since the epoch); empty if it is validated again
    each time. ``kept``: the last good state is in force. ``due``: until then (seconds since the epoch) the files may be
    half replaced, which is no error yet. ``unmatched``: as :class:`tlsproxy.errors.MaterialError` has it.
    """

    text: str
    kind: FailureKind
    moment: float | None
    read: str
    at: float
    kept: bool
    due: float = 0.0
    unmatched: bool = False

    def settling(self, now: float) -> bool:
        """Whether the files may be half replaced. After a clock that was set back they count as faulty."""
        return self.at <= now < self.due

    def stands(self, now: float) -> bool:
        """Whether the same content would fail again. After a clock that was set back it is validated again."""
        if self.kind is FailureKind.ENVIRONMENT or now < self.at:
            return False
        return self.moment is None or now < self.moment


@dataclass(frozen=True, slots=True)
class States:
    """The best state of each input. ``names`` and ``documents`` are the configuration's.

    ``client_certificates`` are by the path of the certificate.
    """

    configuration: InputState[Loaded]
    server: InputState[OwnCertificate]
    authorities: InputState[tuple[x509.Certificate, ...]] | None
    crls: Mapping[Path, InputState[tuple[Crl, ...]]]
    client_certificates: Mapping[Path, InputState[OwnCertificate]]
    server_authorities: Mapping[Path, InputState[tuple[x509.Certificate, ...]]]
    secrets: Mapping[Path, InputState[str]]
    public_keys: Mapping[Path, InputState[PublicKeys]]
    locks: InputState[LockFile]
    names: Mapping[str, Resolved]
    documents: Mapping[KeySource, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        """Equal for equal states."""
        found = [("configuration", self.configuration.digest), ("certificate", self.server.digest)]
        found.append(("authorities", "" if self.authorities is None else self.authorities.digest))
        for states in (
            self.crls,
            self.client_certificates,
            self.server_authorities,
            self.secrets,
            self.public_keys,
        ):
            found += [(str(path), state.digest) for path, state in states.items()]
        found.append(("locks", self.locks.digest))
        found += [(name, repr(entry.addresses)) for name, entry in self.names.items()]
        found += [(source.url, digest_of([document])) for source, document in self.documents.items()]
        return digest_of(text.encode("utf-8", "surrogateescape") for pair in found for text in pair)


def digest_of(data: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for entry in data:
        digest.update(len(entry).to_bytes(8, "big"))
        digest.update(entry)
    return digest.hexdigest()
