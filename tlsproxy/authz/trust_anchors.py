"""Trust anchors: the CA of `tls.ca_cert` at which a verified chain ends, and the names that it may certify.

The anchor is the first trusted certificate above the leaf, as OpenSSL builds chains (trusted certificates first,
partial chains). An issuer's name alone proves nothing: any CA may give its own intermediate the name of another CA. So
it is believed only if it is the anchor's own name, or if a single CA could have issued it. A constrained CA is believed
only within its constraint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tlsproxy.authz.identity import Anchor, Identity

_SPIFFE: Final = "spiffe://"
_SUBJECT: Final = frozenset({"cn", "o", "ou", "subject"})
_ISSUER: Final = frozenset({"issuer"})


@dataclass(frozen=True, slots=True)
class Confinement:
    """A name constraint: SPIFFE IDs of one trust domain, and DNS names at or below some suffixes.

    It applies to the CA with the subject ``ca``, or with the digest ``ca_sha256``; empty fields are absent. An email
    address is within a suffix if its domain is. IP addresses and other types of names are never within.
    """

    ca: str = ""
    ca_sha256: str = ""
    trust_domain: str = ""
    dns: tuple[str, ...] = ()

    def names(self, anchor: Anchor) -> bool:
        if self.ca_sha256:
            return anchor.sha256 == self.ca_sha256
        return folded(anchor.subject) == folded(self.ca)

    def __str__(self) -> str:
        return ", ".join([f"{_SPIFFE}{self.trust_domain}"] * bool(self.trust_domain) + [f"*.{one}" for one in self.dns])

    def outside(self, identity: Identity) -> str:
        """The first name outside of the constraint, or "". A certificate without any name is outside."""
        alternatives = [
            *(("URI", uri, self._spiffe(uri)) for uri in identity.uris),
            *(("DNS", name, self.within(name)) for name in identity.dns_names),
            *(("email", email, self.within(email.rpartition("@")[2])) for email in identity.emails),
            *(("IP", ip, False) for ip in identity.ips),
            *((kind, "", False) for kind in identity.other_names),
        ]
        if not alternatives and not self.within(identity.common_name):
            return "no alternative name"
        return next((f"{kind} {name}".rstrip() for kind, name, within in alternatives if not within), "")

    def within(self, name: str) -> bool:
        """Whether a DNS name is at or below a suffix: `a.x.org` is below `x.org`, `ax.org` is not."""
        return any(f".{name.lower()}".endswith(f".{suffix}") for suffix in self.dns)

    def _spiffe(self, uri: str) -> bool:
        own = f"{_SPIFFE}{self.trust_domain}"
        return bool(self.trust_domain) and (uri == own or uri.startswith(f"{own}/"))


class Anchors:
    """All trusted CAs. ``issued_by`` maps the digest of each to the digests of its issuers."""

    __slots__ = ("_above", "_confined", "_names", "_only", "_tops", "trusted")

    def __init__(
        self,
        trusted: Sequence[Anchor] = (),
        issued_by: Mapping[str, Collection[str]] | None = None,
        confinements: Iterable[Confinement] = (),
    ) -> None:
        above = {} if issued_by is None else issued_by
        self.trusted = {anchor.sha256: anchor for anchor in trusted}
        authorities = {_authority(anchor) for anchor in trusted}
        self._names = Counter(name for name, _ in authorities)
        self._tops = {
            _authority(anchor)
            for anchor in trusted
            if not any(_authority(self.trusted[one]) != _authority(anchor) for one in above.get(anchor.sha256, ()))
        }
        self._only = next(iter(self._tops)) if len(self._tops) == 1 else None
        self._above = above
        self._confined: dict[str, list[Confinement]] = {}
        for confinement in confinements:
            for key in self._below({anchor.key for anchor in trusted if confinement.names(anchor)}):
                self._confined.setdefault(key, []).append(confinement)

    def _below(self, keys: set[str]) -> set[str]:
        """These keys and those of all CAs below them: an intermediate does not escape the constraint."""
        while True:
            issued = {
                anchor.key
                for anchor in self.trusted.values()
                if any(self.trusted[one].key in keys for one in self._above.get(anchor.sha256, ()))
            }
            if issued <= keys:
                return keys
            keys |= issued

    def _vouching(self, anchor: Anchor) -> tuple[Anchor, ...]:
        """The CA with all its certificates, and the CAs above it up to an independent one."""
        found = {anchor.sha256: anchor}
        waiting = [anchor]
        while waiting:
            lower = waiting.pop()
            issuers = () if _authority(lower) in self._tops else self._above.get(lower.sha256, ())
            for one in self.trusted.values():
                if one.sha256 not in found and (one.sha256 in issuers or _authority(one) == _authority(lower)):
                    found[one.sha256] = one
                    waiting.append(one)
        return tuple(found.values())

    @property
    def several(self) -> bool:
        """Whether there are several independent CAs: no single one that all others were issued by."""
        return bool(self.trusted) and self._only is None

    @property
    def unconfined(self) -> tuple[Anchor, ...]:
        """The independent CAs without a constraint."""
        return tuple(
            one for one in self.trusted.values() if _authority(one) in self._tops and one.key not in self._confined
        )

    def shared_names(self) -> Iterator[str]:
        """Names that several CAs with different keys have."""
        shown = {folded(one.subject): one.subject for one in self.trusted.values()}
        yield from (shown[name] for name, count in self._names.items() if count > 1)

    def confinements(self, anchor: Anchor) -> Sequence[Confinement]:
        return self._confined.get(anchor.key, ())

    def identified(self, identity: Identity, issuers: Sequence[Anchor]) -> Identity:
        """The identity with its anchor. ``issuers``: the chain above the leaf; if none is trusted, its end counts."""
        place = next((at for at, one in enumerate(issuers) if one.sha256 in self.trusted), len(issuers) - 1)
        if place < 0:
            return replace(identity, doubted=_ISSUER)
        anchor = issuers[place]
        own = identity.issuer == anchor.subject and (place == 0 or self._names[folded(anchor.subject)] == 1)
        believed = anchor.sha256 in self.trusted and (own or _authority(anchor) == self._only)
        doubted = frozenset() if believed else _ISSUER
        if confined := self.confinements(anchor):
            doubted |= _SUBJECT
            if all(one.within(identity.common_name) for one in confined):
                doubted -= {"cn"}
        return replace(
            identity,
            anchors=self._vouching(anchor),
            doubted=doubted,
            foreign=next((name for one in confined if (name := one.outside(identity))), ""),
        )


def folded(name: str) -> str:
    """A name for comparison, as OpenSSL compares them (RFC 5280 §7.1): without case and runs of spaces."""
    return " ".join(name.casefold().split())


def _authority(anchor: Anchor) -> tuple[str, str]:
    return folded(anchor.subject), anchor.key
