"""Locks: callers that are refused for a while, whatever roles, keys and tokens say.

A lock only takes away: it is asked besides all other rules, and where it does not apply nothing differs. Wider is safe,
so names are compared without case, and a serial number without an issuer is that of any. A lock ends at its moment:
the caller's clock decides, and no reload.

Example: `subject alice` holds a certificate with that common name, and each token whose `sub` or `subject` it is.
"""

from __future__ import annotations

import string
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from tlsproxy.authz.access import Decision, forbidden
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.subject_names import folded, folded_subject

LockKind = Literal["subject", "sha256", "serial", "key", "jti"]
KINDS: Final[tuple[LockKind, ...]] = get_args(LockKind)
MAX_VALUE: Final = 1024
"""Characters of a lock's name at most."""

_SHA256: Final = 64
_HEX: Final = frozenset(string.hexdigits)
_ACTORS: Final = 8
"""Depth of `act` (RFC 8693 §4.1) that is looked at."""

Selector = tuple[LockKind, str, str]
"""Kind, value and issuer in a form that is equal for all their spellings."""


def selector(kind: LockKind, value: str, issuer: str = "") -> Selector:
    """Raises ValueError for a value that nothing could have. ``issuer`` is that of a serial number."""
    if issuer and kind != "serial":
        raise ValueError("an issuer goes with a serial number only")
    if not value.strip() or len(value) > MAX_VALUE:
        raise ValueError(f"must have 1 to {MAX_VALUE} characters")
    if kind == "subject":
        return kind, folded_subject(value), ""
    if kind in {"sha256", "serial"}:
        digits = _digits(value)
        if kind == "sha256" and len(digits) != _SHA256:
            raise ValueError(f"is not a SHA-256 fingerprint: {_SHA256} hexadecimal digits, with or without colons")
        if kind == "serial":
            digits = digits.lstrip("0") or "0"
        return kind, digits, folded_subject(issuer) if issuer else ""
    return kind, value.strip(), ""


def _digits(text: str) -> str:
    """Hexadecimal digits out of `AB:CD`, `0xabcd`, `ab cd`, `serial=ABCD` and `SHA256 Fingerprint=AB:CD`."""
    bare = text.rpartition("=")[2].strip().lower().removeprefix("sha256:").removeprefix("0x")
    bare = bare.replace(":", "").replace(" ", "")
    if not bare or not _HEX.issuperset(bare):
        raise ValueError("is not hexadecimal: digits and a to f, with or without colons")
    return bare


@dataclass(frozen=True, slots=True)
class Lock:
    """``value`` as its author wrote it. ``until`` is exclusive, ``at`` its beginning, in seconds since the epoch.

    ``by`` and ``reason`` are for operators, never for clients. ``configured``: it stands in the configuration. Raises
    ValueError as :func:`selector` does.
    """

    kind: LockKind
    value: str
    issuer: str = ""
    until: float = NEVER
    by: str = ""
    at: float = 0.0
    reason: str = ""
    configured: bool = False
    selector: Selector = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "selector", selector(self.kind, self.value, self.issuer))

    @property
    def name(self) -> str:
        """`subject CN=alice`, `serial 0A:1B of CN=ca`."""
        return f"{self.kind} {self.value}{f' of {self.issuer}' if self.issuer else ''}"


class Locks:
    """Locks by what they hold. Those that are over are kept, and hold nobody."""

    __slots__ = ("_by_value", "_ends", "_locks", "_names_subjects")

    def __init__(self, locks: Iterable[Lock] = ()) -> None:
        self._locks = tuple(locks)
        self._ends = sorted(lock.until for lock in self._locks)
        self._names_subjects = any(lock.kind == "subject" for lock in self._locks)
        self._by_value: dict[tuple[str, str], list[Lock]] = {}
        for lock in self._locks:
            self._by_value.setdefault(lock.selector[:2], []).append(lock)

    def __iter__(self) -> Iterator[Lock]:
        return iter(self._locks)

    def parts(self) -> Iterable[object]:
        """Its objects, to be freed one by one."""
        return *self._locks, *self._by_value.items()

    def in_force(self, now: float) -> dict[tuple[Selector, bool], Lock]:
        """Locks that hold at ``now``; the configuration's and others of one selector are two."""
        return {(lock.selector, lock.configured): lock for lock in self._locks if now < lock.until}

    def differ(self, then: float, now: float) -> bool:
        """Whether other locks hold at one moment than at the other."""
        return bisect_right(self._ends, then) != bisect_right(self._ends, now)

    def of_identity(self, identity: Identity | None, now: float) -> Lock | None:
        """The lock that holds this certificate, if any."""
        if identity is None or not self._by_value:
            return None
        numbered = self._by_value.get(("serial", identity.serial), ())
        issuer = folded_subject(identity.issuer) if numbered else ""
        for lock in numbered:
            if now < lock.until and lock.selector[2] in {"", issuer}:
                return lock
        found = self._first("sha256", identity.sha256, now)
        if found is not None or not self._names_subjects:
            return found
        return next(filter(None, (self._first("subject", name, now) for name in _names(identity))), None)

    def of_key(self, name: str, now: float) -> Lock | None:
        """The lock that holds a key of this name, or the tokens of an issuer or signing key of this name."""
        return self._first("key", name, now)

    def of_token(self, verifier: str, claims: Mapping[str, Any], now: float) -> Lock | None:
        """The lock that holds a token: by its verifier, `jti`, `sub` or `subject`, or by who acts in it."""
        if not self._by_value:
            return None
        found = self._first("key", verifier, now) or self._first("jti", str(claims.get("jti", "")).strip(), now)
        names = [claims.get("subject"), *_subjects(claims)]
        texts = (name for name in names if isinstance(name, str))
        return found or next(filter(None, (self._first("subject", folded_subject(each), now) for each in texts)), None)

    def _first(self, kind: LockKind, value: str, now: float) -> Lock | None:
        return next((lock for lock in self._by_value.get((kind, value), ()) if now < lock.until), None)


def _names(identity: Identity) -> Iterator[str]:
    """All names that a lock of a subject may have of it."""
    yield folded_subject(identity.subject)
    names = (identity.name, identity.common_name, *identity.uris, *identity.dns_names, *identity.emails, *identity.ips)
    yield from map(folded, names)


def _subjects(claims: Mapping[str, Any]) -> Iterator[Any]:
    """`sub` of the token, and of those who act in it."""
    current: Any = claims
    for _ in range(_ACTORS):
        if not isinstance(current, Mapping):
            return
        yield current.get("sub")
        current = current.get("act")


def refusal(what: Literal["certificate", "key", "token"]) -> Decision:
    """The answer to its holder, who learns neither the reason nor the end."""
    return forbidden("locked", f"this {what} is locked: ask the gateway's operators")
