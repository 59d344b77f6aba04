"""Bytes of files → the states that may take the place of those that serve, as far as their dates and age allow.

Each gives a state and what of the file is not in it yet, or raises MaterialError where nothing of it can serve.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot.states import InputState
from tlsproxy.text import utc_time
from tlsproxy.tls.chains import defect_of
from tlsproxy.tls.crls import crl_age, load_crls, older_than
from tlsproxy.tls.renewal_checks import suspicions
from tlsproxy.tls.servercert import SKEW, as_sent, check_dates, load_server_certificate, passphrase_of
from tlsproxy.tls.trust import issuer_of, load_authorities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.config.model import Tls
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.servercert import ServerCertificate
    from tlsproxy.tls.trust import Trust

T = TypeVar("T")

Data: TypeAlias = tuple[bytes, ...]
Made: TypeAlias = tuple[InputState[T], MaterialError | None]
Crls: TypeAlias = "InputState[tuple[Crl, ...]]"
Place: TypeAlias = tuple[str, str]
"""A CRL's scope (its ``digest``) and its issuer's key: of two with the same place one counts."""
Places: TypeAlias = "Callable[[Crl], Place]"


def authorities_in(
    path: Path, data: Data, former: InputState[tuple[x509.Certificate, ...]] | None, now: float
) -> Made[tuple[x509.Certificate, ...]]:
    """Those that are not valid now are there, and of no use yet, or any more. One must be."""
    found = load_authorities(str(path), data[0])
    sound = [one for one in found if not defect_of(one)]
    if not sound:
        name = found[0].subject.rfc4514_string()
        raise MaterialError(str(path), f"{name} {defect_of(found[0])}; add a CA that can")
    later = [one for one in sound if _begins(one) > now]
    current = {issuer_of(one) for one in sound if _is_valid(one, now)}
    if not current:
        if later:
            raise _not_yet(path, later)
        text = "every CA in it has expired; add the CA that issues today's client certificates"
        raise MaterialError(str(path), text, FailureKind.AGE)
    # Clients of a CA whose new certificate is not valid yet go on with the one that serves.
    soon = {issuer_of(one) for one in later} - current
    stay = [
        one for one in (former.value if former is not None else ()) if issuer_of(one) in soon and _is_valid(one, now)
    ]
    if not stay:
        return InputState.of(found, data), None
    kept = {issuer_of(one) for one in stay}
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in stay)
    wrong = _not_yet(path, [one for one in later if issuer_of(one) in kept])
    return InputState.of((*found, *stay), (data[0] + b"\n" + pem,), whole=False), wrong


@dataclass(frozen=True, slots=True)
class ServerPair:
    """``sent`` is the chain that clients are sent so far, empty at the start; ``trial`` raises MaterialError."""

    tls: Tls
    authorities: Sequence[x509.Certificate]
    sent: Sequence[x509.Certificate]
    trial: Callable[[ServerCertificate], None]

    def made(self, data: Data, now: float) -> Made[ServerCertificate]:
        """A certificate that starts a little later has to do where there is no other."""
        tls = self.tls
        secret = tls.key_passphrase_file
        server = load_server_certificate(
            (str(tls.cert), data[0]),
            (str(tls.key), data[1]),
            None if secret is None else passphrase_of(str(secret), data[2]),
        )
        check_dates(str(tls.cert), server.chain, now, 0.0 if self.sent else SKEW)
        self.trial(server)
        found = suspicions(self.sent, as_sent(server.chain, self.authorities))
        if found and tls.on_suspicious == "refuse":
            raise MaterialError(str(tls.cert), f"{'; '.join(found)} (refused by tls.on_suspicious)")
        warnings = (*server.warnings, *(f"{tls.cert}: {one}" for one in found))
        return InputState.of(replace(server, warnings=warnings), data), None


def places_among(authorities: Sequence[x509.Certificate]) -> Places:
    """Where none of these CAs signed a CRL, the issuer's key is the one that it names."""

    @functools.cache  # of 500,000 entries one signature takes 50 ms
    def place(crl: Crl) -> Place:
        signer = next((authority for authority in authorities if crl.signed_by(authority)), None)
        return crl.digest, crl.key_id if signer is None else issuer_of(signer)[1]

    return place


def none_early(files: Mapping[Path, Crls], place: Places, now: float) -> dict[Path, Crls]:
    """Without the CRLs that wait for their date, as far as another file has one in their place that is valid now."""
    early = {crl.digest for state in files.values() if not state.read for crl in state.value if crl.this_update > now}
    begun = {
        place(crl) for state in files.values() for crl in state.value if crl.digest in early and crl.this_update <= now
    }
    found = {}
    for path, state in files.items():
        rest = tuple(crl for crl in state.value if state.read or crl.this_update <= now or place(crl) not in begun)
        if rest == state.value:
            found[path] = state
        elif rest:
            found[path] = InputState.of(rest, tuple(crl.der for crl in rest), whole=False)
    return found


@dataclass(frozen=True, slots=True)
class CrlFile:
    """``trust`` is the one in use, None at the start; ``authorities`` are the CAs that will be.

    ``deny_expired``: one past its next update is of no use.
    """

    path: Path
    former: Crls | None
    trust: Trust | None
    authorities: Sequence[x509.Certificate]
    place: Places
    deny_expired: bool

    def made(self, data: Data, now: float) -> Made[tuple[Crl, ...]]:
        """Where a CRL does not take the place of its predecessor, the file keeps that, and all else that it had.

        One that is overdue, and revokes more than its current predecessor, revokes beside it. So does one whose CA's
        others, which are of another scope, do not replace it. At the start one that is dated ahead is there, and counts
        as missing until its date.
        """
        trust, former = self.trust, self.former.value if self.former is not None else ()
        known = {crl.der: crl for crl in former}
        found = [known.get(crl.der, crl) for crl in load_crls(str(self.path), data[0])]
        place = self.place
        held = {} if trust is None else self._held(trust, {crl.digest for crl in found})
        foreign = self._foreign(found, former)
        used: list[Crl] = []
        wrong: list[tuple[Crl, MaterialError]] = []
        for crl in (one for one in found if one not in foreign):
            error = _against(crl, held.get(place(crl), ()), now, deny_expired=self.deny_expired)
            if error is None:
                used.append(crl)
            else:
                wrong.append((crl, error))
        # A file may have an old CRL beside the one that took its place.
        taken = set(map(place, used))
        wrong = [(crl, error) for crl, error in wrong if error.kind is FailureKind.TIME or place(crl) not in taken]
        left = self._left(found, used, former)
        told = [error for _, error in wrong] + [_foreign(crl) for crl in foreign] + list(map(_beside, left))
        if not told:
            return InputState.of(tuple(found), data), None
        if wrong or foreign:
            used += [one for one in self._stay(wrong, held, former, now) if place(one) not in taken]
        used += [crl for crl in left if crl not in used]
        if not used:
            raise _told(told)
        return InputState.of(tuple(used), tuple(crl.der for crl in used), whole=False), _told(told)

    def _stay(
        self,
        wrong: Sequence[tuple[Crl, MaterialError]],
        held: Mapping[Place, Sequence[Crl]],
        former: Sequence[Crl],
        now: float,
    ) -> list[Crl]:
        """In the order of before: what counts in the places of those that are wrong, and all else that the file had."""
        if self.trust is None:
            return [crl for crl, _ in wrong]
        place = self.place
        places = {place(crl) for crl, _ in wrong}
        stay = [crl for crl in former if place(crl) not in places]
        stay += [one for crl, error in wrong for one in _instead(crl, error, held.get(place(crl), ()), now)]
        return sorted(dict.fromkeys(stay), key=lambda one: former.index(one) if one in former else len(former))

    def _left(self, found: Sequence[Crl], used: Sequence[Crl], former: Sequence[Crl]) -> list[Crl]:
        """Those that count, and revoke more than all of the same CA that the file has now, none of their scope."""
        places, counting = set(map(self.place, found)), set() if self.trust is None else set(self.trust.in_use)
        left = []
        for crl in former:
            if crl not in counting or self.place(crl) in places:
                continue
            others = [one for one in used if one.name == crl.name and self.place(one)[1] == self.place(crl)[1]]
            replaced = any(one.scope.holds(crl.scope) and not older_than(one, crl) for one in others)
            if others and not replaced and _revokes_more(crl, others):
                left.append(crl)
        return left

    def _foreign(self, found: Sequence[Crl], former: Sequence[Crl]) -> list[Crl]:
        """Those of CAs that are not known, in the place of one that counts: they would give back what that took."""
        place = self.place
        places, before = set(map(place, found)), set(map(place, former))
        if not any(place(crl) not in places and self._signed(crl) for crl in former):
            return []
        return [crl for crl in found if place(crl) not in before and not self._signed(crl)]

    def _held(self, trust: Trust, digests: set[str]) -> dict[Place, tuple[Crl, ...]]:
        """By place the CRLs in use."""
        place = self.place
        held: dict[Place, tuple[Crl, ...]] = {}
        for crl in trust.in_use:
            if crl.digest in digests:
                held[place(crl)] = (*held.get(place(crl), ()), crl)
        return held

    def _signed(self, crl: Crl) -> bool:
        return any(crl.signed_by(authority) for authority in self.authorities)


def _told(errors: Sequence[MaterialError]) -> MaterialError:
    """One error for a file, due when the first of them is."""
    soonest = min(errors, key=lambda error: math.inf if error.moment is None else error.moment)
    text = "; ".join(dict.fromkeys((soonest.text, errors[0].text)))
    return MaterialError(soonest.path, text, soonest.kind, soonest.moment)


def _foreign(crl: Crl) -> MaterialError:
    text = f"the CRL of {crl.issuer} is not signed by a CA of tls.ca_cert, and takes the place of one that is"
    return MaterialError(crl.path, text)


def _beside(crl: Crl) -> MaterialError:
    text = f"the CRL of {crl.issuer} in use ({_edition(crl)}) revokes more than those of another scope that replace it"
    return MaterialError(crl.path, f"{text}: it revokes beside them; add one of its scope, or restart")


def _revokes_more(crl: Crl, others: Sequence[Crl]) -> bool:
    return any(all(serial not in one.serials for one in others) for serial in crl.serials)


def _against(crl: Crl, held: Sequence[Crl], now: float, *, deny_expired: bool) -> MaterialError | None:
    """Why a CRL does not take the place of those in use."""
    named = f"the CRL of {crl.issuer}"
    if crl.this_update > now:
        text = f"{named} is dated {utc_time(crl.this_update)}, in the future; it waits for that"
        return MaterialError(crl.path, text, FailureKind.TIME, crl.this_update)
    others = [one for one in held if one is not crl and one.this_update <= now]
    newest = max(others, key=crl_age, default=None)
    if newest is not None and older_than(crl, newest):
        text = f"{named} ({_edition(crl)}) is older than the one in use ({_edition(newest)}); fetch it anew"
        return MaterialError(crl.path, text)
    if deny_expired and crl.next_update <= now and any(now < one.next_update for one in others):
        due = utc_time(crl.next_update)
        text = f"{named} was to be replaced by {due}: it revokes beside the one in use; fetch it anew"
        return MaterialError(crl.path, text, FailureKind.AGE)
    return None


def _instead(crl: Crl, error: MaterialError, held: Sequence[Crl], now: float) -> Iterable[Crl]:
    """The CRLs that count in the place of one which :func:`_against` refuses."""
    if error.kind is not FailureKind.AGE:
        return held
    current = [one for one in held if one is not crl and one.this_update <= now < one.next_update]
    return (crl, *current) if _revokes_more(crl, current) else current


def _begins(certificate: x509.Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp()


def _is_valid(certificate: x509.Certificate, now: float) -> bool:
    return _begins(certificate) <= now < certificate.not_valid_after_utc.timestamp()


def _not_yet(path: Path, later: Sequence[x509.Certificate]) -> MaterialError:
    first = min(later, key=_begins)
    text = f"{first.subject.rfc4514_string()} is not valid before {utc_time(_begins(first))}; it waits for that"
    return MaterialError(str(path), text, FailureKind.TIME, _begins(first))


def _edition(crl: Crl) -> str:
    return f"number {'none' if crl.number is None else crl.number} of {utc_time(crl.this_update)}"
