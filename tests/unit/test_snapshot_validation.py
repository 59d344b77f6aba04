"""Inputs judged each for itself: the best state of each, whatever is wrong with another."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot_site import OTHER, ROOT, SERVER, SnapshotSite, hour
from test_config_tokens import EC_384, EC_KEY, pem

from tlsproxy.config.listeners import TCP
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import name_resolution
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls import context
from tlsproxy.tls.chains import chain_of, kept_of
from tlsproxy.tls.pki import Authority

NOW = time.time() + 1200
"""Later than whatever is issued in a run, however long the tests before these take."""
GONE = Authority.create("gone root")
BOB = ROOT.issue(common_name="bob", client=True)
BOBS_DER, ROOT_DER = (ssl.PEM_cert_to_DER_cert(one.certificate_pem.decode()) for one in (BOB, ROOT))
BOBS = chain_of([BOBS_DER, ROOT_DER], kept_of([BOBS_DER]))
SHORT = ROOT.issue(dns=["localhost"], server=True, lifetime=timedelta(hours=1))
LATER = NOW + 2 * 3600


pytestmark = pytest.mark.usefixtures("hasty")


def sections() -> dict[str, Any]:
    return {
        "service": {"host": "127.0.0.1", "http_port": 0, "grpc_port": None},
        "tls": {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem", "crl": ["root.crl", "gone.crl"]},
        "upstream": {"rest": "http://localhost:16333"},
        "roles": {"search": {"access": "r"}, "admin": {"access": "m"}},
        "identities": [
            {"name": "alice", "match": {"cn": "alice"}, "role": "admin"},
            {"name": "bob", "match": {"cn": "bob"}, "role": "search"},
        ],
        "keys": [
            {"name": "one", "file": "one.key", "role": "admin"},
            {"name": "two", "file": "two.key", "role": "admin"},
        ],
        "jwt_issuers": [
            {"name": "idp", "issuer": "i", "audience": "a", "algorithm": "ES256", "pem": "idp.pem"},
        ],
        "listeners": [{"port": 7000, "mode": "tcp", "upstream": "localhost:7001", "allow": ["admin", "search"]}],
    }


class Made(SnapshotSite):
    """A site with every kind of input, all good, and the generation that serves."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.sections = sections()
        self.edit()
        self.serve(SHORT)
        self.write("ca.pem", ROOT.certificate_pem + OTHER.certificate_pem + GONE.certificate_pem)
        self.write("root.crl", ROOT.crl_pem())
        self.write("gone.crl", GONE.crl_pem(next_update=datetime.now(UTC) + hour(1)))
        self.write("one.key", b"first-key\n")
        self.write("two.key", b"second-key\n")
        self.write("idp.pem", pem(EC_KEY))
        self.first = self.build(now=NOW)

    def edit(self, **changed: Any) -> None:
        self.sections |= changed
        self.config.write_text(yaml.dump(self.sections, Dumper=yaml.CSafeDumper))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, dict[str, bytes]]:
    """A site, and its files as they are at the beginning of each test."""
    shared = Made(tmp_path_factory.mktemp("made"))
    return shared, {path.name: path.read_bytes() for path in shared.directory.iterdir()}


@pytest.fixture
def made(template: tuple[Made, dict[str, bytes]]) -> Made:
    """The one site of this module, as it was made: neither files nor states of an earlier test are left."""
    shared, files = template
    for path in shared.directory.iterdir():
        path.unlink()
    for name, data in files.items():
        shared.write(name, data)
    fresh = copy(shared)
    fresh.sections = sections()
    return fresh


def crl_of(authority: Authority, *revoked: int, **more: Any) -> bytes:
    return authority.crl_pem(revoked, **({"number": 2} | more))


# What only takes away, and how it shows in the generation


@dataclass(frozen=True)
class Taking:
    do: Callable[[Made], None]
    done: Callable[[Generation], bool]


def rule(made: Made) -> None:
    made.edit(identities=made.sections["identities"][:1])


def role(made: Made) -> None:
    made.edit(roles={**made.sections["roles"], "search": {"access": [{"collection": "docs", "access": "r"}]}})


def tenant(made: Made) -> None:
    made.edit(roles={**made.sections["roles"], "search": {"access": "r", "filter": {"tenant": "{cn}"}}})


def key(made: Made) -> None:
    made.edit(keys=made.sections["keys"][:1])


def rights(made: Made) -> None:
    made.edit(keys=[sections()["keys"][0], {**sections()["keys"][1], "role": "search"}])


def allow(made: Made) -> None:
    made.edit(listeners=[{**made.sections["listeners"][0], "allow": ["admin"]}])


def authority(made: Made) -> None:
    made.write("ca.pem", ROOT.certificate_pem + GONE.certificate_pem)


def serial(made: Made) -> None:
    made.write("root.crl", crl_of(ROOT, BOB.serial))


def found(generation: Generation, secret: str) -> str | None:
    key = generation.policy.keys.find(secret, None, 0.0)
    return None if key is None else key.role


def revoked(generation: Generation) -> bool:
    """Whether Bob's certificate is."""
    return generation.material.trust.verdict_of(BOBS, NOW).refusal == "certificate_revoked"


TAKINGS = {
    "rule": Taking(rule, lambda new: [one.name for one in new.policy.rules] == ["alice"]),
    "role": Taking(role, lambda new: new.policy.roles["search"].everywhere is None),
    "tenant": Taking(tenant, lambda new: "search" in new.policy.filters),
    "key": Taking(key, lambda new: found(new, "second-key") is None),
    "rights": Taking(rights, lambda new: found(new, "second-key") == "search"),
    "allow": Taking(allow, lambda new: new.tunnels["127.0.0.1:7000"].allow == {"admin"}),
    "CA": Taking(authority, lambda new: "CN=other root" not in str(new.material.authorities)),
    "serial": Taking(serial, revoked),
}


# What may be wrong beside it


def expired(_made: Made) -> None:
    """The certificate that serves has, by LATER, and so has the CRL of the gone CA passed its next update."""


def mismatched(made: Made) -> None:
    made.write("server.key", SERVER.key_pem)


def broken(made: Made) -> None:
    made.write("server.pem", SHORT.chain_pem[:300])


def broken_authorities(made: Made) -> None:
    made.write("ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def broken_crl(made: Made) -> None:
    made.write("gone.crl", b"no CRL")


def expired_authorities(made: Made) -> None:
    made.write("ca.pem", Authority.create("old", lifetime=timedelta(seconds=-1)).certificate_pem)


def orphaned(made: Made) -> None:
    """The CRL of a CA that is taken away is still configured."""
    made.write("ca.pem", (made.directory / "ca.pem").read_bytes().replace(GONE.certificate_pem, b""))


def missing(made: Made) -> None:
    (made.directory / "server.key").unlink()


def bad_secret(made: Made) -> None:
    made.write("one.key", b"two\nlines\n")


def missing_secret(made: Made) -> None:
    (made.directory / "one.key").unlink()


def repeated_secret(made: Made) -> None:
    made.write("one.key", b"second-key\n")


def bad_key_set(made: Made) -> None:
    made.write("idp.pem", pem(EC_384))


def unresolvable(made: Made) -> None:
    made.edit(upstream={"rest": "http://nowhere.invalid:1"})


def new_files_missing(made: Made) -> None:
    tls = {"cert": "no.pem", "key": "no.key", "ca_cert": "ca.pem", "crl": ["root.crl", "no.crl"]}
    made.edit(tls=tls, jwt_issuers=[{**made.sections["jwt_issuers"][0], "pem": "no.pem"}])


BAD = (
    expired, mismatched, broken, broken_authorities, broken_crl, expired_authorities, orphaned, missing, bad_secret,
    missing_secret, repeated_secret, bad_key_set, unresolvable, new_files_missing,
)  # fmt: skip


@pytest.fixture
def _no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *rest, **more)

    monkeypatch.setattr(name_resolution.socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("_no_resolver")
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_takes_away_gets_through_whatever_else_is_wrong(made: Made, spoil: Callable[[Made], None]) -> None:
    same = {broken_authorities: "CA", expired_authorities: "CA", repeated_secret: "key"}.get(spoil)
    before = {path.name: path.read_bytes() for path in made.directory.iterdir()}
    for together in (("rule", "role", "rights", "allow", "CA", "serial"), ("tenant", "key")):
        made.sections = sections()
        # One that comes by the very input that is wrong is none.
        takings = [TAKINGS[name] for name in together if name != same]
        for taking in takings:
            taking.do(made)
        spoil(made)
        proposal = made.propose(made.first, now=LATER)
        new = proposal.generation
        assert new is not None
        assert [taking.done(new) for taking in takings] == [True] * len(takings)
        assert bool(proposal.faults) is (spoil not in {expired, orphaned}), proposal.faults
        assert new.material.leaf == made.first.material.leaf
        for file, data in before.items():
            made.write(file, data)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_or_judged_stays_and_is_tried_again(
    made: Made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    inputs = read_inputs(made.config, {}, earlier=made.read)
    path = made.directory / "root.crl"
    failure = MaterialError(str(path), "cannot be read", FailureKind.ENVIRONMENT)
    hung = replace(
        inputs, files={one: data for one, data in inputs.files.items() if one != path}, failures={path: failure}
    )
    proposal = made.propose(made.first, inputs=hung)
    assert proposal.generation is made.first
    (fault,) = proposal.faults.values()
    assert (fault.kind, fault.kept, fault.stands(LATER)) == (FailureKind.ENVIRONMENT, True, False)

    def none_left(*_: object) -> None:
        raise OSError(number, "none left")

    made.serve(SERVER)
    trusted = (made.directory / "ca.pem").read_bytes()
    made.write("ca.pem", ROOT.certificate_pem)
    with monkeypatch.context() as patched:
        patched.setattr(context.os, "memfd_create", none_left)
        with pytest.raises(OSError, match="none left"):  # other CAs need another context
            made.propose(made.first)
        made.write("ca.pem", trusted)
        proposal = made.propose(made.first)
    assert proposal.generation is made.first
    assert [(one.kind, one.kept) for one in proposal.faults.values()] == [(FailureKind.ENVIRONMENT, True)]
    assert made.build(made.first).material.leaf.serial == f"{SERVER.serial:x}"


def test_bytes_that_serve_are_never_judged_again(made: Made) -> None:
    for moment in (NOW, LATER, LATER + 10**10, NOW - 10**6):
        proposal = made.propose(made.first, now=moment)
        assert (proposal.generation, proposal.faults) == (made.first, {})


def test_what_is_not_valid_yet_waits_beside_the_old(made: Made) -> None:
    start = datetime.fromtimestamp(int(NOW) + 3600, UTC)
    made.serve(ROOT.issue(dns=["localhost"], server=True, not_before=start))
    made.write("root.crl", crl_of(ROOT, BOB.serial, this_update=start, next_update=start + hour(9)))
    twin = reissued(OTHER, start)
    made.write("ca.pem", ROOT.certificate_pem + twin + GONE.certificate_pem)
    proposal = made.propose(made.first)
    new = proposal.generation
    assert new is not None
    assert {(which.kind, fault.kind, fault.moment) for which, fault in proposal.faults.items()} == {
        ("certificate", FailureKind.TIME, start.timestamp()),
        ("crl", FailureKind.TIME, start.timestamp()),
        ("authorities", FailureKind.TIME, start.timestamp()),
    }
    assert new.material.leaf == made.first.material.leaf
    assert not revoked(new)
    others = [one for one in new.material.authorities if one.subject == "CN=other root"]
    assert len(others) == 2  # the one that clients have, and the one that they will have

    again = made.propose(new, now=start.timestamp() - 1, states=proposal.states, faults=proposal.faults)
    assert (again.generation, again.faults) == (new, proposal.faults)
    due = made.propose(new, now=start.timestamp(), states=proposal.states, faults=proposal.faults)
    assert due.generation is not None
    assert due.faults == {}
    assert due.generation.material.leaf != made.first.material.leaf
    assert revoked(due.generation)
    assert len([one for one in due.generation.material.authorities if one.subject == "CN=other root"]) == 1


def reissued(authority: Authority, start: datetime) -> bytes:
    """The same name and key, from another moment on."""
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415

    own = authority._certificate()
    certificate = x509.CertificateBuilder(
        own.subject, own.subject, own.public_key(), x509.random_serial_number(), start, start + hour(99),
        list(own.extensions),
    ).sign(authority._key(), hashes.SHA256())  # fmt: skip
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_cas_none_of_which_is_valid_yet_wait_together(made: Made) -> None:
    start = datetime.fromtimestamp(int(NOW) + 9000, UTC)
    made.write("ca.pem", reissued(Authority.create("next"), start))
    proposal = made.propose(made.first)
    assert proposal.generation is made.first
    (fault,) = proposal.faults.values()
    assert (fault.kind, fault.moment, fault.kept) == (FailureKind.TIME, start.timestamp(), True)
    due = made.propose(made.first, now=start.timestamp(), faults=proposal.faults)
    assert due.generation is not None
    assert [one.subject for one in due.generation.material.authorities] == ["CN=next"]


def test_a_crl_never_goes_back_and_an_expired_one_replaces_none_that_is_current(made: Made) -> None:
    made.write("root.crl", crl_of(ROOT, BOB.serial, number=9))
    second = made.build(made.first)
    hours = datetime.now(UTC)
    stale = crl_of(ROOT, number=10, this_update=hours - hour(0.001), next_update=hours - hour(0.0005))
    for crl, told in ((crl_of(ROOT, number=8), "is older than the one in use"), (stale, "was to be replaced by")):
        made.write("root.crl", crl)
        proposal = made.propose(second)
        assert proposal.generation is second
        assert told in str(proposal.faults)
    made.edit(tls={**made.sections["tls"], "crl_expired": "warn"})
    assert not revoked(made.build(second))


@pytest.mark.parametrize("authorities", [(ROOT, OTHER, GONE), (ROOT, OTHER)], ids=["", "and its CA goes"])
@pytest.mark.parametrize(
    "fields",
    [
        {"number": 8},
        {"this_update": datetime.fromtimestamp(NOW + 9000, UTC)},
        {"number": 10, "next_update": datetime.fromtimestamp(NOW - 1, UTC)},
    ],
    ids=["older", "dated ahead", "overdue"],
)
def test_a_crl_file_of_which_nothing_is_taken_keeps_its_last_good_state(
    made: Made, fields: dict[str, Any], authorities: tuple[Authority, ...]
) -> None:
    made.write("root.crl", crl_of(ROOT, BOB.serial))
    made.write("gone.crl", crl_of(GONE, number=9))
    second = made.build(made.first)
    made.write("root.crl", crl_of(GONE, **fields))
    made.write("ca.pem", b"".join(authority.certificate_pem for authority in authorities))
    proposal = made.propose(second, now=NOW)
    assert proposal.generation is not None
    assert revoked(proposal.generation)
    assert {which.name: fault.kept for which, fault in proposal.faults.items()} == {
        str(made.directory / "root.crl"): True
    }


@pytest.mark.parametrize("fields", [{"number": 8}, {"this_update": datetime.fromtimestamp(NOW + 9000, UTC)}])
def test_a_crl_of_an_intermediate_that_clients_send_never_goes_back(made: Made, fields: dict[str, Any]) -> None:
    """No CA of the file signed it, and it counts all the same."""
    below, namesake = Authority.create("below"), Authority.create("below")
    made.write("below.crl", crl_of(below, 7, number=9))
    made.write("namesake.crl", crl_of(namesake, 8, number=10))
    made.edit(tls={**made.sections["tls"], "crl": ["below.crl", "namesake.crl"]})
    second = made.build(made.first)
    made.write("below.crl", crl_of(below, **fields))
    proposal = made.propose(second)
    assert proposal.generation is second
    assert len(proposal.faults) == 1
    made.write("below.crl", crl_of(below, number=9))
    assert made.build(second).digest != second.digest


def scoped(point: x509.IssuingDistributionPoint | None, *revoked: int, number: int) -> bytes:
    """A CRL of ROOT; of everything without a point."""
    crl = x509.load_pem_x509_crl(crl_of(ROOT, *revoked, number=number))
    dates = crl.last_update_utc, crl.next_update_utc
    builder = x509.CertificateRevocationListBuilder(crl.issuer, *dates, list(crl.extensions), list(crl))
    if point is not None:
        builder = builder.add_extension(point, critical=True)
    return builder.sign(ROOT._key(), hashes.SHA256()).public_bytes(Encoding.PEM)


def scope(*points: str, **only: bool) -> x509.IssuingDistributionPoint:
    names = [x509.UniformResourceIdentifier(f"http://crl.example/{each}") for each in points]
    return x509.IssuingDistributionPoint(
        full_name=names or None,
        relative_name=None,
        only_contains_user_certs=only.get("users", False),
        only_contains_ca_certs=only.get("authorities", False),
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


@pytest.mark.parametrize(
    ("before", "after", "policy", "number"),
    [
        (None, scope("one"), "require", 8),
        (None, scope("one"), "require", 10),
        (None, scope("one"), "where_present", 8),
        (None, scope("one"), "where_present", 10),
        (None, scope(authorities=True), "require", 8),
        (None, scope(authorities=True), "where_present", 10),
        (scope("one"), scope("two"), "require", 10),
        (scope("one"), scope("two"), "where_present", 8),
        (scope("one", "two"), scope("one"), "require", 8),
        (scope("one", "two"), scope("one"), "where_present", 10),
        (scope(users=True), scope("one", authorities=True), "require", 10),
        (scope(users=True), scope("one", authorities=True), "where_present", 8),
    ],
)
def test_a_crl_of_another_scope_gives_back_nothing(
    made: Made,
    before: x509.IssuingDistributionPoint | None,
    after: x509.IssuingDistributionPoint,
    policy: str,
    number: int,
) -> None:
    """Neither an older one nor a newer one that is about less: what it does not speak for stays revoked."""
    carol = ROOT.issue(common_name="carol", client=True).serial
    made.edit(tls={**made.sections["tls"], "crl_policy": policy})
    made.write("root.crl", scoped(before, BOB.serial, number=9))
    second = made.build(made.first)
    made.write("root.crl", scoped(after, carol, number=number))
    proposal = made.propose(second, now=NOW)
    third = proposal.generation
    assert third is not None
    assert revoked(third)
    assert any(carol in crl.serials for crl in third.material.trust.in_use)
    assert "of another scope" in str(proposal.faults)
    assert made.propose(third, states=proposal.states, faults=proposal.faults).generation is third
    made.edit(keys=sections()["keys"][:1])  # judged anew
    fourth = made.propose(third, states=proposal.states, faults=proposal.faults).generation
    assert fourth is not None
    assert revoked(fourth)
    made.write("root.crl", scoped(before, number=11))
    last = made.propose(fourth)
    assert last.generation is not None
    assert not revoked(last.generation)


@pytest.mark.parametrize("after", [None, scope("one", "two")])
def test_a_newer_crl_of_a_wider_scope_takes_the_place(made: Made, after: x509.IssuingDistributionPoint | None) -> None:
    made.write("root.crl", scoped(scope("one"), BOB.serial, number=9))
    second = made.build(made.first)
    made.write("root.crl", scoped(after, number=8))
    assert revoked(made.propose(second).generation or made.first)
    made.write("root.crl", scoped(after, number=10))
    assert not revoked(made.build(second))


def test_the_same_crls_are_the_same_state_whatever_was_there_before(made: Made) -> None:
    """A worker makes it of the bytes."""
    path, last = made.directory / "root.crl", crl_of(ROOT, number=4)
    both = crl_of(ROOT, BOB.serial, number=3) + last
    made.write("root.crl", both)
    second = made.build(made.first)
    made.write("root.crl", last)
    third = made.build(second)
    made.write("root.crl", both)
    for generation in (second, made.build(third)):
        assert [crl.number for crl in generation.states.crls[path].value] == [3, 4]


def test_each_crl_of_a_file_that_waits_is_published_at_its_moment(made: Made) -> None:
    """Whatever is wrong with another one of the file, and however much longer that waits."""
    soon, late = (datetime.fromtimestamp(int(NOW) + seconds, UTC) for seconds in (600, 9000))
    made.write("gone.crl", crl_of(GONE, number=9))
    second = made.build(made.first)
    waiting = crl_of(OTHER, number=3, this_update=late) + crl_of(ROOT, BOB.serial, number=3, this_update=soon)
    made.write("root.crl", crl_of(GONE, number=8) + waiting)
    proposal = made.propose(second, now=NOW)
    (fault,) = proposal.faults.values()
    assert (fault.kind, fault.moment) == (FailureKind.TIME, soon.timestamp())
    assert "is older than the one in use" in fault.text
    due = made.propose(second, now=soon.timestamp(), states=proposal.states, faults=proposal.faults)
    assert due.generation is not None
    assert revoked(due.generation)


@pytest.mark.parametrize("crls", [["early.crl", "root.crl", "gone.crl"], ["root.crl", "early.crl", "gone.crl"]])
@pytest.mark.parametrize("together", [False, True], ids=["two files", "one file"])
@pytest.mark.parametrize("arrival", ["start", "reload", "current one later"])
def test_a_crl_dated_ahead_waits_beside_the_current_one_of_another_file(
    made: Made, crls: list[str], arrival: str, *, together: bool
) -> None:
    """Whichever came first: those of its CA are covered, and revoked, by the one that is valid now."""
    start = datetime.fromtimestamp(int(NOW) + 600, UTC)
    current, early = crl_of(ROOT, BOB.serial, number=2), crl_of(ROOT, number=3, this_update=start)
    files = {"early.crl": current + early} if together else {"early.crl": early, "root.crl": current}
    configured = {**made.sections["tls"], "crl": [each for each in crls if each in files or each == "gone.crl"]}
    former = made.build(None) if arrival == "reload" else None
    faults: Any = {}
    if arrival == "current one later":
        made.write("early.crl", early)
        made.edit(tls={**configured, "crl": ["early.crl", "gone.crl"]})
        alone = made.propose(None, now=NOW)
        former, faults = alone.generation, alone.faults
        assert former is not None
        assert former.material.trust.verdict_of(BOBS, NOW).refusal == "crl_missing"
    for name, data in files.items():
        made.write(name, data)
    made.edit(tls=configured)
    proposal = made.propose(former, now=NOW, faults=faults)
    new = proposal.generation
    assert new is not None
    assert revoked(new)
    assert [crl.number for crl in new.material.trust.facts if crl.issuer == "CN=test root"] == [2]
    (fault,) = proposal.faults.values()
    kept = together or arrival == "reload"
    assert (fault.kind, fault.moment, fault.kept) == (FailureKind.TIME, start.timestamp(), kept)
    again = made.propose(new, now=NOW + 1, states=proposal.states, faults=proposal.faults)
    assert (again.generation, again.faults) == (new, proposal.faults)
    due = made.propose(new, now=start.timestamp(), states=proposal.states, faults=proposal.faults)
    assert due.generation is not None
    assert not due.faults
    assert due.generation.material.trust.verdict_of(BOBS, start.timestamp()).refusal == ""


def test_a_crl_of_a_namesake_in_the_same_file_takes_no_place(made: Made) -> None:
    twin = Authority.create("test root")
    made.write("ca.pem", ROOT.certificate_pem + OTHER.certificate_pem + GONE.certificate_pem + twin.certificate_pem)
    made.write("root.crl", crl_of(ROOT, BOB.serial, number=9) + crl_of(twin))
    second = made.build(made.first)
    made.write("root.crl", crl_of(ROOT, number=8) + crl_of(twin, number=3))
    proposal = made.propose(second)
    assert proposal.generation is not None
    assert revoked(proposal.generation)
    assert "is older than the one in use" in str(proposal.faults)


def test_an_overdue_crl_revokes_beside_the_one_that_is_current(made: Made) -> None:
    """Nobody is refused for its age, and whom it revokes is revoked, until another one counts."""
    then = datetime.now(UTC)
    made.write("root.crl", crl_of(ROOT, number=9, this_update=then - hour(3)))
    second = made.build(made.propose(None).generation)
    dates = {"this_update": then - hour(2), "next_update": then - hour(1)}
    made.write("root.crl", crl_of(ROOT, BOB.serial, number=10, **dates))
    proposal = made.propose(second)
    assert proposal.generation is not None
    trust = proposal.generation.material.trust
    assert revoked(proposal.generation)
    assert [crl.number for crl in trust.facts if crl.issuer == "CN=test root"] == [9]
    assert not list(trust.outdated(NOW))
    assert made.propose(proposal.generation, states=proposal.states).generation is proposal.generation
    made.write("root.crl", crl_of(ROOT, number=9, this_update=then - hour(3)))
    assert made.propose(proposal.generation).generation is proposal.generation, "an older one takes nothing back"
    made.write("root.crl", crl_of(ROOT, number=11))
    last = made.build(proposal.generation)
    assert not revoked(last)
    assert [crl.number for crl in last.material.trust.facts if crl.issuer == "CN=test root"] == [11]


def test_the_cas_go_though_a_listener_that_needs_them_is_bound_until_the_restart(made: Made) -> None:
    tls = {name: file for name, file in made.sections["tls"].items() if name not in {"ca_cert", "crl"}}
    service = made.sections["service"] | {"verify_https_client_certificate": False}
    made.edit(tls=tls, service=service, identities=[], listeners=[])
    second = made.build(made.first)
    assert second.material.authorities == ()
    assert second.contexts[TCP].verify_mode is ssl.CERT_REQUIRED
    assert second.contexts[TCP].get_ca_certs() == []


def test_a_crl_whose_place_is_taken_by_a_missing_file_stays(made: Made) -> None:
    """What was revoked must not come back because a new path cannot be read."""
    made.write("root.crl", crl_of(ROOT, BOB.serial))
    second = made.build(made.first)
    made.edit(tls={**made.sections["tls"], "crl": ["gone.crl", "moved.crl"]})
    proposal = made.propose(second)
    assert proposal.generation is not None
    assert revoked(proposal.generation)
    made.edit(tls={**made.sections["tls"], "crl": ["gone.crl"]})
    gone = made.build(proposal.generation)
    assert not revoked(gone)
    assert "there is no CRL of CN=test root any more" in gone.warnings


def test_a_key_without_a_secret_is_nobodys_and_opens_nothing(made: Made) -> None:
    made.edit(
        service={**made.sections["service"], "api_key_file": "none", "verify_https_client_certificate": False}, keys=[]
    )
    proposal = made.propose(made.first)
    assert proposal.generation is not None
    assert proposal.generation.policy.keys
    assert proposal.generation.policy.keys.find("", None, 0.0) is None
    assert [(which.name[-4:], fault.kept) for which, fault in proposal.faults.items()] == [("none", False)]
    made.write("none", b"known-by-now\n")
    assert made.build(proposal.generation).policy.keys.find("known-by-now", None, 0.0) is not None


def test_two_names_of_one_key(made: Made) -> None:
    """The file that changed is at fault, and else the configuration."""
    made.write("one.key", b"second-key\n")
    proposal = made.propose(made.first)
    assert proposal.generation is made.first
    assert [which.name for which in proposal.faults] == [str(made.directory / "one.key")]
    made.write("one.key", b"first-key\n")
    made.edit(keys=[*made.sections["keys"], {"name": "three", "file": "two.key", "role": "search"}])
    proposal = made.propose(made.first)
    assert proposal.generation is made.first
    assert [which.kind for which in proposal.faults] == ["configuration"]
    assert "three is the same key as two" in str(proposal.faults)


def test_a_constraint_that_names_no_ca_is_at_fault_only_where_it_is_new(made: Made) -> None:
    constraint = {"ca": "CN=other root", "dns": ["other.example"]}
    made.edit(tls={**made.sections["tls"], "ca_constraints": [constraint]})
    second = made.build(made.first)
    made.write("ca.pem", ROOT.certificate_pem)
    rule(made)
    proposal = made.propose(second)
    assert proposal.generation is not None
    assert (proposal.faults, TAKINGS["rule"].done(proposal.generation)) == ({}, True)
    made.edit(tls={**made.sections["tls"], "ca_constraints": [constraint, {**constraint, "ca": "CN=nobody"}]}, keys=[])
    refused = made.propose(proposal.generation)
    assert refused.generation is proposal.generation
    assert [which.kind for which in refused.faults] == ["configuration"]


def test_what_is_the_same_is_shared(made: Made) -> None:
    rule(made)
    second = made.build(made.first)
    assert second.material is made.first.material
    assert second.contexts is made.first.contexts
    assert second.policy is not made.first.policy
    made.serve(SERVER)
    third = made.build(second)
    assert third.material.trust is made.first.material.trust
    assert (third.policy, third._principals) == (second.policy, second._principals)
    assert third.contexts is not second.contexts
    made.config.write_text(made.config.read_text() + "# a comment\n")
    assert made.build(third) is third


STEPS = st.lists(st.sampled_from([*BAD, *(one.do for one in TAKINGS.values()), None]), min_size=1, max_size=4)


@pytest.mark.usefixtures("_no_resolver")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.sampled_from([NOW, LATER]))
def test_judged_with_its_own_outcome_nothing_is_new(
    made: Made, steps: list[Callable[[Made], None] | None], now: float
) -> None:
    """Whatever the files went through: a second look finds the same, and good files again are the first states."""
    before = {path.name: path.read_bytes() for path in made.directory.iterdir()}
    made.sections = sections()
    generation: Generation | None = made.first
    states, faults = made.first.states, {}
    for step in steps:
        if step is not None:
            try:
                step(made)
            except FileNotFoundError:
                continue
        proposal = made.propose(generation, now=now, states=states, faults=faults)
        again = made.propose(proposal.generation, now=now, states=proposal.states, faults=proposal.faults)
        assert again.generation is proposal.generation
        assert {one: fault.text for one, fault in again.faults.items()} == {
            one: fault.text for one, fault in proposal.faults.items()
        }
        assert proposal.states is not None
        generation, states, faults = proposal.generation, proposal.states, dict(proposal.faults)
    for file, data in before.items():
        made.write(file, data)
    last = made.propose(generation, now=now, states=states, faults=faults)
    told = [fault.text for fault in last.faults.values()]
    assert all("expired" in one or "older" in one for one in told), told
