"""Candidate states of certificates, CAs and CRLs, made of their files' bytes as far as dates and editions allow.

Each is a state and the fault of the part of the file that it leaves out, or MaterialError if no part can serve.
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
from tlsproxy.tls.chain_checks import needless_last
from tlsproxy.tls.chains import defect_of
from tlsproxy.tls.client_context import try_certificate
from tlsproxy.tls.crls import crl_age, load_crls, older_than
from tlsproxy.tls.owncert import CLIENT, SKEW, as_sent, check_dates, load_certificate, passphrase_of
from tlsproxy.tls.renewal_checks import suspicions
from tlsproxy.tls.trust import issuer_of, load_authorities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.config.model import Tls
    from tlsproxy.tls.chains import Peers
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.owncert import OwnCertificate
    from tlsproxy.tls.trust import Trust

T = TypeVar("T")

Data: TypeAlias = tuple[bytes, ...]
Candidate: TypeAlias = tuple[InputState[T], MaterialError | None]
Crls: TypeAlias = "InputState[tuple[Crl, ...]]"
Series: TypeAlias = tuple[str, str]
"""Successive editions of one CRL, known by scope (``Crl.digest``) and issuer key: a new one replaces the former."""
SeriesOf: TypeAlias = "Callable[[Crl], Series]"


def authorities_in(
    path: Path, data: Data, former: InputState[tuple[x509.Certificate, ...]] | None, now: float, peers: Peers
) -> Candidate[tuple[x509.Certificate, ...]]:
    """CAs of a file, of which one must be valid now. The others are kept, and verify nobody yet, or any more.

    ``peers``: those whose certificates they are for.

    A CA that is in the file with its next certificate only keeps the one in force until that is valid.
    """
    found = load_authorities(str(path), data[0])
    usable = [each for each in found if not defect_of(each, peers)]
    if not usable:
        name = found[0].subject.rfc4514_string()
        raise MaterialError(str(path), f"{name} {defect_of(found[0], peers)}; add a CA that can")
    later = [each for each in usable if _begins(each) > now]
    current = {issuer_of(each) for each in usable if _is_valid(each, now)}
    if not current:
        if later:
            raise _not_yet(path, later)
        text = f"every CA in it has expired; add the CA that issues today's certificates of {peers}"
        raise MaterialError(str(path), text, FailureKind.AGE)
    # Clients of a CA whose new certificate is not valid yet go on with the one that serves.
    starting = {issuer_of(each) for each in later} - current
    retained = [
        each
        for each in (former.value if former is not None else ())
        if issuer_of(each) in starting and _is_valid(each, now)
    ]
    if not retained:
        return InputState.of(found, data), None
    retained_issuers = {issuer_of(each) for each in retained}
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in retained)
    refused = _not_yet(path, [each for each in later if issuer_of(each) in retained_issuers])
    return InputState.of((*found, *retained), (data[0] + b"\n" + pem,), whole=False), refused


@dataclass(frozen=True, slots=True)
class ServerPair:
    """``sent`` is the chain that clients are sent now, empty at the start; ``trial`` raises MaterialError."""

    tls: Tls
    authorities: Sequence[x509.Certificate]
    sent: Sequence[x509.Certificate]
    trial: Callable[[OwnCertificate], None]

    def candidate(self, data: Data, now: float) -> Candidate[OwnCertificate]:
        """Without one in force, a certificate that is not valid for up to :data:`SKEW` seconds more is accepted."""
        tls = self.tls
        secret = tls.key_passphrase_file
        server = load_certificate(
            (str(tls.cert), data[0]),
            (str(tls.key), data[1]),
            None if secret is None else passphrase_of(str(secret), data[2]),
        )
        last = needless_last(server.chain, self.authorities)
        expired = last is not None and last.not_valid_after_utc.timestamp() <= now
        check_dates(str(tls.cert), server.chain[:-1] if expired else server.chain, now, 0.0 if self.sent else SKEW)
        self.trial(server)
        found = suspicions(self.sent, as_sent(server.chain, self.authorities))
        if found and tls.on_suspicious == "refuse":
            raise MaterialError(str(tls.cert), f"{'; '.join(found)} (refused by tls.on_suspicious)")
        warnings = (*server.warnings, *(f"{tls.cert}: {each}" for each in found))
        return InputState.of(replace(server, warnings=warnings), data), None


def client_certificate(paths: Sequence[Path], data: Data, former: object, now: float) -> Candidate[OwnCertificate]:
    """A client certificate for upstreams, of ``paths`` and ``data`` of certificate, key and perhaps passphrase.

    Without a ``former`` one, it may begin up to :data:`SKEW` seconds later.
    """
    cert, key, *secret = map(str, paths)
    passphrase = passphrase_of(secret[0], data[2]) if secret else None
    certificate = load_certificate((cert, data[0]), (key, data[1]), passphrase, CLIENT)
    check_dates(cert, certificate.chain, now, SKEW if former is None else 0.0)
    try_certificate(certificate, key)
    return InputState.of(certificate, data), None


def series_among(authorities: Sequence[x509.Certificate]) -> SeriesOf:
    """Series of CRLs by signer among these CAs; if none signed one, by the issuer key that it names."""

    @functools.cache  # of 500,000 entries one signature takes 50 ms
    def series(crl: Crl) -> Series:
        signer = next((authority for authority in authorities if crl.signed_by(authority)), None)
        return crl.digest, crl.key_id if signer is None else issuer_of(signer)[1]

    return series


def without_early(files: Mapping[Path, Crls], series: SeriesOf, now: float) -> dict[Path, Crls]:
    """Drop CRLs that wait for their date if another file has a current edition of the same series."""
    early = {crl.digest for state in files.values() if not state.read for crl in state.value if crl.this_update > now}
    begun = {
        series(crl) for state in files.values() for crl in state.value if crl.digest in early and crl.this_update <= now
    }
    found = {}
    for path, state in files.items():
        rest = tuple(crl for crl in state.value if state.read or crl.this_update <= now or series(crl) not in begun)
        if rest == state.value:
            found[path] = state
        elif rest:
            found[path] = InputState.of(rest, tuple(crl.der for crl in rest), whole=False)
    return found


@dataclass(frozen=True, slots=True)
class CrlFile:
    """``trust`` is the one in force, None at the start; ``authorities`` are the CAs of the next generation.

    ``deny_expired``: `tls.crl_expired` is `deny`.
    """

    path: Path
    former: Crls | None
    trust: Trust | None
    authorities: Sequence[x509.Certificate]
    series: SeriesOf
    deny_expired: bool

    def candidate(self, data: Data, now: float) -> Candidate[tuple[Crl, ...]]:
        """A refused CRL leaves its former edition in force, and all other CRLs that the file had.

        An overdue CRL that revokes more than the current edition counts beside it. So does a former one of which the
        file now has CRLs of other scopes only. At the start a CRL dated ahead is accepted, and counts as missing until
        then.
        """
        trust, former = self.trust, self.former.value if self.former is not None else ()
        known = {crl.der: crl for crl in former}
        found = [known.get(crl.der, crl) for crl in load_crls(str(self.path), data[0])]
        series = self.series
        in_use = {} if trust is None else self._in_use(trust, {crl.digest for crl in found})
        foreign = self._foreign(found, former)
        accepted: list[Crl] = []
        refused: list[tuple[Crl, MaterialError]] = []
        for crl in (each for each in found if each not in foreign):
            error = _refusal(crl, in_use.get(series(crl), ()), now, deny_expired=self.deny_expired)
            if error is None:
                accepted.append(crl)
            else:
                refused.append((crl, error))
        # A file may hold an old edition beside the one that replaces it.
        replaced = set(map(series, accepted))
        refused = [
            (crl, error) for crl, error in refused if error.kind is FailureKind.TIME or series(crl) not in replaced
        ]
        beside = self._without_successor(found, accepted, former)
        errors = (
            [error for _, error in refused] + [_foreign(crl) for crl in foreign] + list(map(_revokes_beside, beside))
        )
        if not errors:
            return InputState.of(tuple(found), data), None
        if refused or foreign:
            accepted += [each for each in self._retained(refused, in_use, former, now) if series(each) not in replaced]
        accepted += [crl for crl in beside if crl not in accepted]
        if not accepted:
            raise _merged(errors)
        return InputState.of(tuple(accepted), tuple(crl.der for crl in accepted), whole=False), _merged(errors)

    def _retained(
        self,
        refused: Sequence[tuple[Crl, MaterialError]],
        in_use: Mapping[Series, Sequence[Crl]],
        former: Sequence[Crl],
        now: float,
    ) -> list[Crl]:
        """CRLs that count in place of the refused, and the file's other former ones, in their former order."""
        if self.trust is None:
            return [crl for crl, _ in refused]
        series = self.series
        series_found = {series(crl) for crl, _ in refused}
        retained = [crl for crl in former if series(crl) not in series_found]
        retained += [
            each for crl, error in refused for each in _in_place_of(crl, error, in_use.get(series(crl), ()), now)
        ]
        return sorted(dict.fromkeys(retained), key=lambda each: former.index(each) if each in former else len(former))

    def _without_successor(self, found: Sequence[Crl], accepted: Sequence[Crl], former: Sequence[Crl]) -> list[Crl]:
        """Former CRLs in force that revoke more than the same CA's present ones, none of which has their scope."""
        series_found, counting = set(map(self.series, found)), set() if self.trust is None else set(self.trust.in_use)
        beside = []
        for crl in former:
            if crl not in counting or self.series(crl) in series_found:
                continue
            others = [
                each for each in accepted if each.name == crl.name and self.series(each)[1] == self.series(crl)[1]
            ]
            covered = any(each.scope.holds(crl.scope) and not older_than(each, crl) for each in others)
            if others and not covered and _revokes_more(crl, others):
                beside.append(crl)
        return beside

    def _foreign(self, found: Sequence[Crl], former: Sequence[Crl]) -> list[Crl]:
        """New CRLs of unknown CAs, if one of a known CA is missing: accepted, they would undo its revocations."""
        series = self.series
        series_found, before = set(map(series, found)), set(map(series, former))
        if not any(series(crl) not in series_found and self._signed(crl) for crl in former):
            return []
        return [crl for crl in found if series(crl) not in before and not self._signed(crl)]

    def _in_use(self, trust: Trust, digests: set[str]) -> dict[Series, tuple[Crl, ...]]:
        """CRLs in force by series, of these scopes."""
        series = self.series
        in_use: dict[Series, tuple[Crl, ...]] = {}
        for crl in trust.in_use:
            if crl.digest in digests:
                in_use[series(crl)] = (*in_use.get(series(crl), ()), crl)
        return in_use

    def _signed(self, crl: Crl) -> bool:
        return any(crl.signed_by(authority) for authority in self.authorities)


def _merged(errors: Sequence[MaterialError]) -> MaterialError:
    """One error for a file, with the earliest moment of all."""
    soonest = min(errors, key=lambda error: math.inf if error.moment is None else error.moment)
    text = "; ".join(dict.fromkeys((soonest.text, errors[0].text)))
    return MaterialError(soonest.path, text, soonest.kind, soonest.moment)


def _foreign(crl: Crl) -> MaterialError:
    text = f"the CRL of {crl.issuer} is not signed by a CA of tls.ca_cert, and takes the place of one that is"
    return MaterialError(crl.path, text)


def _revokes_beside(crl: Crl) -> MaterialError:
    text = f"the CRL of {crl.issuer} in use ({_edition(crl)}) revokes more than those of another scope that replace it"
    return MaterialError(crl.path, f"{text}: it revokes beside them; add one of its scope, or restart")


def _revokes_more(crl: Crl, others: Sequence[Crl]) -> bool:
    return any(all(serial not in each.serials for each in others) for serial in crl.serials)


def _refusal(crl: Crl, in_use: Sequence[Crl], now: float, *, deny_expired: bool) -> MaterialError | None:
    """The reason why a CRL does not replace those in use of its series; None if it does."""
    named = f"the CRL of {crl.issuer}"
    if crl.this_update > now:
        text = f"{named} is dated {utc_time(crl.this_update)}, in the future; it waits for that"
        return MaterialError(crl.path, text, FailureKind.TIME, crl.this_update)
    others = [each for each in in_use if each is not crl and each.this_update <= now]
    newest = max(others, key=crl_age, default=None)
    if newest is not None and older_than(crl, newest):
        text = f"{named} ({_edition(crl)}) is older than the one in use ({_edition(newest)}); fetch it anew"
        return MaterialError(crl.path, text)
    if deny_expired and crl.next_update <= now and any(now < each.next_update for each in others):
        due = utc_time(crl.next_update)
        text = f"{named} was to be replaced by {due}: it revokes beside the one in use; fetch it anew"
        return MaterialError(crl.path, text, FailureKind.AGE)
    return None


def _in_place_of(crl: Crl, error: MaterialError, in_use: Sequence[Crl], now: float) -> Iterable[Crl]:
    """CRLs that count in place of one that :func:`_refusal` refused: an overdue one itself, if it revokes more."""
    if error.kind is not FailureKind.AGE:
        return in_use
    current = [each for each in in_use if each is not crl and each.this_update <= now < each.next_update]
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
