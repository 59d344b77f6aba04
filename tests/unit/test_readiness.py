from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.admin.readiness import (
    OK,
    Level,
    Part,
    Readiness,
    audit_part,
    bundle_part,
    certificate_part,
    crl_part,
    degraded,
    not_ready,
    reload_part,
)
from tlsproxy.tls.trust import CrlPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.snapshot.generation import Generation


class Trust:
    """CRLs by the moments of their next updates."""

    def __init__(self, next_updates: tuple[float, ...], *, deny: bool) -> None:
        self._next_updates = next_updates
        self.policy = CrlPolicy(deny_expired=deny)

    def outdated(self, now: float) -> Iterator[str]:
        return (f"the CRL of {update:g}" for update in self._next_updates if update <= now)


def generation(not_after: float, *next_updates: float, deny: bool = True, not_before: float = 0.0) -> Generation:
    leaf = SimpleNamespace(not_before=not_before, not_after=not_after)
    server = SimpleNamespace(chain=(leaf,))
    material = SimpleNamespace(leaf=leaf, server=server, needless=None, trust=Trust(next_updates, deny=deny))
    return cast("Generation", SimpleNamespace(material=material))


def test_a_certificate_is_as_good_as_its_dates() -> None:
    assert certificate_part(generation(100.0), 99.0) == OK
    assert str(certificate_part(generation(100.0), 100.0)) == "the server certificate has expired"
    assert (
        str(certificate_part(generation(200.0, not_before=101.0), 100.0)) == "the server certificate is not valid yet"
    )


def test_an_expired_crl_costs_readiness_where_its_clients_are_refused() -> None:
    assert crl_part(generation(200.0, 101.0), 100.0) == OK
    assert crl_part(generation(200.0, 150.0, 99.0, 98.0), 100.0) == not_ready("the CRL of 98; the CRL of 99")
    assert crl_part(generation(200.0, 100.0, deny=False), 100.0).level is Level.DEGRADED


def test_audit() -> None:
    assert audit_part(healthy=True, accepts=True, last_error="") == OK
    assert str(audit_part(healthy=True, accepts=False, last_error="")) == "the queue is full"
    assert (
        str(audit_part(healthy=False, accepts=False, last_error="No space left on device")) == "No space left on device"
    )
    assert str(audit_part(healthy=False, accepts=False, last_error="")) == "not writing"


def test_a_refused_reload_names_the_first_few_faults_on_one_line() -> None:
    assert reload_part(()) == OK
    assert str(reload_part(["a: is missing\nb", "c"])) == "degraded: a: is missing; b; c"
    assert str(reload_part(list("abcde"))) == "degraded: a; b; c; and 2 more"


def test_a_bundle_is_degraded_by_a_failed_fetch_and_by_its_end() -> None:
    good = {"version": 7, "error": "", "expires": 1000.0}
    assert bundle_part(good, 999.9) == bundle_part(good | {"expires": None}, 2e9) == OK
    assert str(bundle_part(good | {"error": "a\nb"}, 1000.0)) == (
        "degraded: a; b; version 7 expired at 1970-01-01 00:16:40 UTC, and serves on"
    )


PARTS = st.builds(Part, st.sampled_from(Level), st.text(max_size=9), st.sampled_from(["", "worker 2"]))


@given(st.dictionaries(st.sampled_from(["listeners", "crl", "audit", "reload"]), PARTS))
def test_the_verdict_is_that_of_the_worst_part(parts: dict[str, Part]) -> None:
    readiness = Readiness(parts, {"audit": 3})
    levels = [part.level for part in parts.values()]
    assert readiness.ready == (Level.NOT_READY not in levels)
    assert (readiness.headline == "serving") == (not any(levels))
    for name, part in parts.items():
        assert not part.good or readiness.as_json()["parts"][name] == "ok"
        if part.level is Level.NOT_READY:
            assert f"{name}: {part.reason}" in readiness.headline
    assert Readiness.decoded(orjson.loads(orjson.dumps(readiness.encoded()))) == readiness


def test_headlines() -> None:
    late = degraded("ca.pem: empty")
    assert Readiness({"crl": OK}).headline == "serving"
    assert Readiness({"crl": OK, "reload": late}).headline == "DEGRADED: reload: ca.pem: empty"
    bad = {"crl": not_ready("over"), "audit": Part(Level.NOT_READY, "full", "worker 2"), "reload": late}
    assert Readiness(bad).headline == "NOT READY: crl: over; audit: worker 2: full"
    assert Readiness({**bad, "listeners": not_ready("draining")}).headline == "draining"
