"""The states of inputs: what an input's files have been made into, and why they hold something else by now.

An input is one thing that is judged for itself (:mod:`tlsproxy.snapshot.validation`). A good state outlives the file
that it came from; a generation is made of the best state of each input, and two generations share the states that are
the same.
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
    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.name_resolution import Resolved
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.servercert import ServerCertificate

T = TypeVar("T")

InputKind: TypeAlias = Literal[
    "configuration", "certificate", "authorities", "crl", "secret", "public_keys", "name", "publication"
]
"""``certificate`` is the server's, with its key and passphrase; ``public_keys`` are those of a token issuer.
``publication`` is what has been judged good and could not be built or published."""


PublicKeys: TypeAlias = "Mapping[str, tuple[VerificationKey, ...]]"
"""By the form and algorithm in which a file was read."""


@dataclass(frozen=True, slots=True)
class Input:
    """``name`` is a path, or what is to be resolved."""

    kind: InputKind
    name: str


@dataclass(frozen=True, slots=True)
class InputState(Generic[T]):
    """A good state, known by the ``digest`` of ``data``, from which it can be made anew.

    ``read`` is the digest of the bytes that were read for it; empty where they are not wholly in force.
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
    """Why what an input's files hold is not, or not wholly, what serves. ``moment`` is there for ``TIME``.

    ``read`` is the digest of what was judged at ``at`` (seconds since the epoch), empty where it is always judged anew.
    ``kept``: the last good state serves.
    """

    text: str
    kind: FailureKind
    moment: float | None
    read: str
    at: float
    kept: bool

    def stands(self, now: float) -> bool:
        """Whether judging the same again would have the same outcome. A clock that goes back may have been wrong."""
        if self.kind is FailureKind.ENVIRONMENT or now < self.at:
            return False
        return self.moment is None or now < self.moment


@dataclass(frozen=True, slots=True)
class States:
    """The best state of each input. ``names`` and ``documents`` are those that the configuration asks for."""

    configuration: InputState[Loaded]
    server: InputState[ServerCertificate]
    authorities: InputState[tuple[x509.Certificate, ...]] | None
    crls: Mapping[Path, InputState[tuple[Crl, ...]]]
    secrets: Mapping[Path, InputState[str]]
    public_keys: Mapping[Path, InputState[PublicKeys]]
    names: Mapping[str, Resolved]
    documents: Mapping[KeySource, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        """Equal for equal states."""
        found = [("configuration", self.configuration.digest), ("certificate", self.server.digest)]
        found.append(("authorities", "" if self.authorities is None else self.authorities.digest))
        for states in (self.crls, self.secrets, self.public_keys):
            found += [(str(path), state.digest) for path, state in states.items()]
        found += [(name, repr(one.addresses)) for name, one in self.names.items()]
        found += [(source.url, digest_of([document])) for source, document in self.documents.items()]
        return digest_of(text.encode("utf-8", "surrogateescape") for pair in found for text in pair)


def digest_of(data: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for one in data:
        digest.update(len(one).to_bytes(8, "big"))
        digest.update(one)
    return digest.hexdigest()
