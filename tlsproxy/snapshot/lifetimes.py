"""Lifetimes of all that ends: certificates, CRLs, keys, the bundle of the configuration; and when to warn of each.

This is the one list of them: page, terminal, status, metrics and log read it. A warning is due once the remaining share
of a lifetime falls to 15 %, to 5 % and to nothing, and daily in between. So a certificate for 90 days is warned of for
the last 13 days, one for an hour for the last 9 minutes, and neither where it is renewed in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tlsproxy.authz.keys import NEVER
from tlsproxy.config.endpoints import shown_url
from tlsproxy.text import span, utc_time
from tlsproxy.tls.certinfo import CertificateFacts, facts_of

if TYPE_CHECKING:
    from tlsproxy.authz.tokens import VerificationKey
    from tlsproxy.config.bundle import Bundle, BundleConfig
    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.snapshot.server_tls import TlsStates

Kind: TypeAlias = Literal["server", "intermediate", "ca", "crl", "client", "server_ca", "key", "issuer", "bundle"]
State: TypeAlias = Literal["ok", "soon", "over"]

SOON: Final = 0.15
"""Remaining share of a lifetime from which it is warned of: automatic renewal comes long before."""
URGENT: Final = 0.05
"""Remaining share at which it is warned of once more."""
DAY: Final = 86400.0
KEY_LIFETIME: Final = 90 * DAY
"""Lifetime of a key whose beginning is not known, in seconds."""

KINDS: Final[Mapping[Kind, str]] = {
    "server": "server certificate",
    "intermediate": "intermediate",
    "ca": "client CA",
    "crl": "CRL",
    "client": "upstream client",
    "server_ca": "upstream CA",
    "key": "API key",
    "issuer": "token issuer",
    "bundle": "configuration bundle",
}
_NAMES: Final[Mapping[Kind, str]] = {
    "server": "{}",
    "intermediate": "{}",
    "ca": "{}",
    "crl": "the CRL of {}",
    "client": "the client certificate {}",
    "server_ca": "the upstream's CA {}",
    "key": "API key {}",
    "issuer": "the last key of token issuer {}",
    "bundle": "the bundle of {}",
}


@dataclass(frozen=True, slots=True)
class Lifetime:
    """``start`` and ``end`` are seconds since the epoch, ``source`` is the file or configuration key.

    ``edition`` tells a renewed certificate, CRL or key from the former one.
    """

    kind: Kind
    name: str
    source: str
    detail: str
    start: float
    end: float
    edition: str

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name} {self.edition}"

    def remaining(self, now: float) -> float:
        return remaining(self.start, self.end, now)

    def at(self, share: float) -> float:
        """The moment at which this share remains."""
        return self.end - share * max(self.end - self.start, 0.0)


def remaining(start: float, end: float, now: float) -> float:
    """The remaining share of a lifetime, 0 to 1."""
    return min(max((end - now) / (end - start), 0.0), 1.0) if end > start else 0.0


def state(start: float, end: float, now: float) -> State:
    if now >= end:
        return "over"
    return "soon" if remaining(start, end, now) <= SOON else "ok"


def lifetimes_of(generation: Generation, bundle: Bundle | None = None) -> tuple[Lifetime, ...]:
    """All lifetimes of a generation, the server's certificate first.

    ``bundle`` is its configuration's: one that is signed anew, with the same content, makes no other generation.
    """
    return (*_all(generation), *_of_bundle(generation.config.bundle, bundle))


def _all(generation: Generation) -> Iterator[Lifetime]:
    material = generation.material
    names = ", ".join([*material.leaf.dns_names, *material.leaf.ips])
    yield _certificate("server", material.leaf, material.cert_path, f", for {names}" if names else "")
    for facts in map(facts_of, material.server.chain[1:]):
        if facts != material.needless or facts.not_after > generation.built_at:
            yield _certificate("intermediate", facts, material.cert_path)
    for facts in material.authorities:
        yield _certificate("ca", facts, material.trust.path)
    for crl in material.crls:
        detail, edition = f"{crl.count} revoked", f"{crl.scope} {crl.number} {crl.this_update}"
        yield Lifetime("crl", crl.issuer, crl.path, detail, crl.this_update, crl.next_update, edition)
    yield from tls_lifetimes(generation.states)
    for key in generation.config.keys:
        if key.expires is not None:
            end = key.expires.timestamp()
            yield Lifetime("key", key.name, f"keys.{key.name}", f"role {key.role}", end - KEY_LIFETIME, end, f"{end}")
    for verifier in generation.policy.tokens.verifiers:
        if (last := _last_key(verifier.keys)) is not None:
            end = last.ends
            start = end - KEY_LIFETIME if last.begins is None else last.begins
            source = f"jwt_issuers.{verifier.name}"
            yield Lifetime("issuer", verifier.name, source, f"key {last.kid}", start, end, f"{last.kid} {end}")


def tls_lifetimes(states: TlsStates) -> Iterator[Lifetime]:
    """Lifetimes of our client certificates, and of the CAs that verify servers."""
    for path, certificate in states.client_certificates.items():
        for facts in map(facts_of, certificate.value.chain):
            yield _certificate("client", facts, str(path))
    for path, authorities in states.server_authorities.items():
        for facts in map(facts_of, authorities.value):
            yield _certificate("server_ca", facts, str(path))


def _of_bundle(settings: BundleConfig | None, bundle: Bundle | None) -> Iterator[Lifetime]:
    if settings is not None and bundle is not None and bundle.expires is not None:
        version, name = f"version {bundle.version}", shown_url(settings.url)
        yield Lifetime("bundle", name, "bundle.url", version, bundle.created, bundle.expires, version)


def _certificate(kind: Kind, facts: CertificateFacts, path: str, names: str = "") -> Lifetime:
    name = facts.subject or ", ".join([*facts.dns_names, *facts.ips]) or facts.serial
    detail = f"serial {facts.serial}{names}"
    return Lifetime(kind, name, path, detail, facts.not_before, facts.not_after, facts.sha256)


def _last_key(keys: Iterable[VerificationKey]) -> VerificationKey | None:
    """The key that ends last; None if one has no end: a new key is beside an old one for a while."""
    found = list(keys)
    return max(found, key=lambda key: key.ends) if found and all(key.ends < NEVER for key in found) else None


def ends_by_name(lifetimes: Iterable[Lifetime]) -> dict[tuple[Kind, str], tuple[float, float]]:
    """Start and end by kind and name. Of several of one name, such as a CA with its next key, those of the first to
    end.
    """
    latest_first = sorted(lifetimes, key=lambda one: one.end, reverse=True)
    return {(one.kind, one.name): (one.start, one.end) for one in latest_first}


def due(
    lifetimes: Iterable[Lifetime], now: float, warned: Mapping[str, float]
) -> tuple[tuple[Lifetime, ...], Mapping[str, float]]:
    """Lifetimes to warn of at ``now``, and the moments of the last warnings, for the next call.

    ``warned`` has those of before, by :attr:`Lifetime.key`. Lifetimes that are gone are forgotten.
    """
    ending = [one for one in lifetimes if now >= one.at(SOON)]
    found = tuple(one for one in ending if _is_due(one, now, warned.get(one.key)))
    latest = dict.fromkeys((one.key for one in found), now)
    return found, {one.key: latest.get(one.key, warned.get(one.key, now)) for one in ending}


def _is_due(one: Lifetime, now: float, last: float | None) -> bool:
    """After a clock that was set back by a day it is due again."""
    return last is None or abs(now - last) >= DAY or any(last < moment <= now for moment in (one.at(URGENT), one.end))


def next_due(lifetimes: Iterable[Lifetime], now: float, warned: Mapping[str, float]) -> float:
    """The moment at which :func:`due` finds something again; infinity for never."""
    moments = [NEVER]
    for one in lifetimes:
        last = warned.get(one.key)
        later = (one.at(SOON), one.at(URGENT), one.end) if last is None else (last + DAY, one.at(URGENT), one.end)
        moments += [moment for moment in later if moment > now]
    return min(moments)


def text(one: Lifetime, now: float) -> str:
    """A warning: `certs/server.pem: CN=a is valid only until 2026-12-11 12:00:00 UTC: 12 days left, 14 % of …`."""
    named = f"{one.source}: {_NAMES[one.kind].format(one.name)}"
    if now >= one.end:
        return f"{named} expired at {utc_time(one.end)}"
    share = f"{100 * one.remaining(now):.0f} % of its lifetime"
    return f"{named} is valid only until {utc_time(one.end)}: {span(one.end - now)} left, {share}"


def warnings(lifetimes: Iterable[Lifetime], now: float) -> Iterator[str]:
    """Warnings for a status. :meth:`tlsproxy.tls.trust.Trust.warnings` has those on CAs and CRLs that are over."""
    for one in lifetimes:
        found = state(one.start, one.end, now)
        if found == "soon" or (found == "over" and one.kind not in {"ca", "crl"}):
            yield text(one, now)
