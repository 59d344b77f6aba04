"""Reload as a specification: names, numbers and hours, no bytes and no cryptography.

:class:`Oracle` is told what the files hold at which hour, keeps of each input its best state, and says who may enter;
who may stay is the same question. It is written from the rules of docs/certificates.md, not from the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cert:
    """``key`` is what it certifies for ``subject``; ``issuer`` and ``signer`` are the name and the key that did so."""

    subject: str
    key: str
    issuer: str
    signer: str
    serial: int
    begins: int
    ends: int

    def __repr__(self) -> str:
        return f"{self.subject}#{self.serial} of {self.issuer} [{self.begins}, {self.ends}]"

    def valid(self, now: int) -> bool:
        return self.begins <= now < self.ends


@dataclass(frozen=True, slots=True)
class Revocations:
    """A CRL."""

    issuer: str
    signer: str
    number: int
    begins: int
    ends: int
    serials: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"CRL {self.number} of {self.signer} {sorted(self.serials)} [{self.begins}, {self.ends}]"


@dataclass(frozen=True, slots=True)
class Pair:
    """The server's certificate and key; they may belong to different ones."""

    certificate: Cert
    belongs: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The configuration. ``crls`` are the files that it names, ``mapped`` the subjects that have a role."""

    mapped: frozenset[str]
    crls: tuple[str, ...] = ()
    required: bool = True
    deny_expired: bool = True


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that cannot be read, or not understood."""

    how: str


Content: TypeAlias = Policy | Pair | tuple[Cert, ...] | tuple[Revocations, ...] | Unusable
Disk: TypeAlias = Mapping[str, Content]
CONFIG, SERVER, CAS = "config", "server", "authorities"


@dataclass(frozen=True, slots=True)
class Client:
    """A leaf, and the certificates that it sends along."""

    leaf: Cert
    sent: tuple[Cert, ...] = ()


@dataclass(slots=True)
class Oracle:
    policy: Policy
    server: Cert
    file: tuple[Cert, ...]
    """The CA file's content when it was good last."""
    former: tuple[Cert, ...] = ()
    """Certificates of CAs that stay until those that replace them are valid."""
    crls: dict[str, tuple[Revocations, ...]] = field(default_factory=dict)

    good: dict[str, Content] = field(default_factory=dict)
    """By CRL file the content that has come into force, and is not judged again."""
    refused: dict[str, tuple[Content, Policy, tuple[Cert, ...], int, float]] = field(default_factory=dict)
    """By CRL file the content that is not tried again before something changes, or a moment."""

    @classmethod
    def of(cls, disk: Disk, now: int) -> Oracle:
        """At the start, when everything is good."""
        policy, pair, file = disk[CONFIG], disk[SERVER], disk[CAS]
        assert isinstance(policy, Policy)
        assert isinstance(pair, Pair)
        oracle = cls(policy, pair.certificate, _of(Cert, file))
        oracle.judge(disk, now)
        return oracle

    # Inputs in force

    def judge(self, disk: Disk, now: int) -> None:
        """Each input's best state, whatever the others are."""
        before = self.crls
        in_use = [*self.used, *self._of_nobody]
        policy = disk[CONFIG]
        if isinstance(policy, Policy):
            self.policy = policy
        pair = disk[SERVER]
        if isinstance(pair, Pair) and pair.belongs and pair.certificate.valid(now):
            self.server = pair.certificate
        for path in [path for path, (content, *_) in self.refused.items() if disk[path] != content]:
            del self.refused[path]
        self.refused = {path: each for path, each in self.refused.items() if path in self.policy.crls}
        self.good = {path: each for path, each in self.good.items() if path in self.policy.crls}
        self._judge_authorities(disk[CAS], now)
        self.crls = {path: best for path in self.policy.crls if (best := self._best_crl(path, disk[path], in_use, now))}
        # It may be meant to take the place of those that are configured no more: what they revoked stays revoked.
        lacking = [path for path in self.policy.crls if path not in self.crls]
        gone = [crl for path, found in before.items() if path not in self.policy.crls for crl in found]
        if lacking and gone:
            self.crls[lacking[0]] = tuple(gone)
            self.good.pop(lacking[0], None)
        self._let_early_ones_wait(now)

    def _judge_authorities(self, content: Content, now: int) -> None:
        before = self.anchors
        certificates = _of(Cert, content)
        if certificates != self.file and any(each.valid(now) for each in certificates):
            self.file = certificates
        if content != self.file:
            return  # what cannot be read cannot be judged anew
        awaited = {(each.subject, each.key) for each in self.file if each.begins > now}
        awaited -= {(each.subject, each.key) for each in self.file if each.valid(now)}
        self.former = tuple(
            each for each in before if (each.subject, each.key) in awaited and each.valid(now) and each not in self.file
        )

    def _let_early_ones_wait(self, now: int) -> None:
        """A CRL dated ahead, in a file not wholly in force, waits while another file has a current one."""
        begun = [crl for found in self.crls.values() for crl in found if crl.begins <= now]
        for path, found in list(self.crls.items()):
            if path not in self.good:
                self.crls[path] = tuple(crl for crl in found if crl.begins <= now or not _any_replaces(begun, crl))
        self.crls = {path: found for path, found in self.crls.items() if found}

    def _best_crl(
        self, path: str, content: Content, in_use: Iterable[Revocations], now: int
    ) -> tuple[Revocations, ...]:
        """``in_use`` are those of all files that have counted so far. Empty where there is none."""
        best, found = self.crls.get(path, ()), _of(Revocations, content)
        if not found or self.good.get(path) == content:
            return best
        *refused, when, until = self.refused.get(path, (None, 0, 0))
        if refused == [content, self.policy, self.anchors] and when <= now < until:
            return best
        foreign = self._foreign(found, best)
        wrong: list[Revocations] = []
        instead: list[Revocations] = []
        for crl in found:
            if crl not in foreign and (others := self._objection_to(crl, in_use, now)) is not None:
                wrong.append(crl)
                instead += others
        used = [crl for crl in found if crl not in wrong and crl not in foreign]
        # A file may have an old one beside the one that took its place.
        wrong = [crl for crl in wrong if crl.begins > now or not _any_replaces(used, crl)]
        self.refused.pop(path, None)
        if not wrong and not foreign:
            self.good[path] = content
            return found
        until = min((float(crl.begins) for crl in wrong if crl.begins > now), default=float("inf"))
        self.refused[path] = content, self.policy, self.anchors, now, until
        # All that the file had stays, and what the wrong ones would have replaced.
        stay = [crl for crl in best if not _any_replaces(wrong, crl)]
        stay += [crl for crl in instead if _any_replaces(wrong, crl)]
        kept = (*used, *(crl for crl in dict.fromkeys(stay) if not _any_replaces(used, crl)))
        if kept:
            self.good.pop(path, None)
        return kept or best

    def _foreign(self, found: Iterable[Revocations], best: Iterable[Revocations]) -> list[Revocations]:
        """In the place of one that counts they are, for all that is known, of the wrong file."""
        if not any(self._signed(crl) and not _any_replaces(found, crl) for crl in best):
            return []
        return [crl for crl in found if not self._signed(crl) and not _any_replaces(best, crl)]

    def _objection_to(self, new: Revocations, in_use: Iterable[Revocations], now: int) -> list[Revocations] | None:
        """The CRLs that count instead; None where it is good."""
        held = [crl for crl in in_use if _replaces(crl, new)]
        begun = [crl for crl in held if crl != new and crl.begins <= now]
        if new.begins > now or any(new.number < crl.number or new.begins < crl.begins for crl in begun):
            return held
        current = [crl for crl in begun if now < crl.ends]
        if not (self.policy.deny_expired and new.ends <= now and current):
            return None
        return [*([new] if new.serials.difference(*(crl.serials for crl in current)) else []), *current]

    @property
    def used(self) -> list[Revocations]:
        """The newest CRL of each CA, and one that is current for longer where age matters."""
        found: dict[tuple[str, str], list[Revocations]] = {}
        for crl in (crl for each in self.crls.values() for crl in each if self._signed(crl)):
            found.setdefault((crl.issuer, crl.signer), []).append(crl)
        used = []
        for crls in found.values():
            newest, longest = max(crls, key=_age), max(crls, key=lambda crl: (crl.ends, *_age(crl)))
            used += [newest, *([longest] if self.policy.deny_expired and longest.ends > newest.ends else [])]
        return used

    @property
    def _of_nobody(self) -> list[Revocations]:
        """They count for intermediates that clients send."""
        return [crl for found in self.crls.values() for crl in found if not self._signed(crl)]

    def _signed(self, crl: Revocations) -> bool:
        return any((ca.subject, ca.key) == (crl.issuer, crl.signer) for ca in self.anchors)

    # Rights

    @property
    def anchors(self) -> tuple[Cert, ...]:
        return (*self.file, *self.former)

    def refusal(self, client: Client, now: int) -> str:
        """Why this client may neither enter nor stay; "" if it may."""
        reasons = [self._objection(path, now) for path in self._paths(client)]
        if not reasons:
            return "issuer_not_trusted"
        return "" if "" in reasons else reasons[0]

    def _paths(self, client: Client) -> Iterator[tuple[Cert, ...]]:
        """From the leaf to a trust anchor. Where the file has an issuer, one that the client sends does not count."""
        trusted = [each for each in self.anchors if not self._revoked(each)]

        def upwards(path: tuple[Cert, ...]) -> Iterator[tuple[Cert, ...]]:
            last = path[-1]
            for known in (trusted, client.sent):
                above = [each for each in known if (each.subject, each.key) == (last.issuer, last.signer)]
                for each in above:
                    if known is trusted:
                        yield (*path, each)
                    elif each not in path:
                        yield from upwards((*path, each))
                if above:
                    return

        return upwards((client.leaf,))

    def _revoked(self, cert: Cert) -> bool:
        return any(cert.serial in crl.serials for crl in _by_issuer(cert, self.used))

    def _about(self, cert: Cert) -> list[Revocations]:
        """CRLs of an intermediate that a client sends: any that it has signed."""
        return _by_issuer(cert, self.used) or _by_issuer(cert, self._of_nobody)

    def _objection(self, path: tuple[Cert, ...], now: int) -> str:
        for each in path:
            if not each.valid(now):
                return "certificate_expired" if each.ends <= now else "certificate_not_yet_valid"
        for place, each in enumerate(path[:-1]):
            about = self._about(each)
            if any(each.serial in crl.serials for crl in about):
                return "certificate_revoked"
            begun = [crl for crl in about if crl.begins <= now]
            if not begun:
                if self.policy.required and (about or (place == 0 and self.crls)):
                    return "crl_missing"
            elif self.policy.deny_expired and all(crl.ends <= now for crl in begun):
                return "crl_expired"
        return ""

    def may(self, client: Client, now: int) -> bool:
        return not self.refusal(client, now) and client.leaf.subject in self.policy.mapped


def _by_issuer(cert: Cert, crls: Iterable[Revocations]) -> list[Revocations]:
    return [crl for crl in crls if (crl.issuer, crl.signer) == (cert.issuer, cert.signer)]


def _replaces(one: Revocations, other: Revocations) -> bool:
    return (one.issuer, one.signer) == (other.issuer, other.signer)


def _age(crl: Revocations) -> tuple[int, int]:
    """The greater, the newer."""
    return crl.begins, crl.number


def _any_replaces(crls: Iterable[Revocations], other: Revocations) -> bool:
    return any(_replaces(crl, other) for crl in crls)


def _of(kind: type[T], content: Content) -> tuple[T, ...]:
    """Entries of this kind in a file: none where it holds others, or nothing."""
    found = content if isinstance(content, tuple) else ()
    return tuple(each for each in found if isinstance(each, kind))
