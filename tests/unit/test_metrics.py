from __future__ import annotations

import asyncio
import re
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import tlsproxy
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.roles import Policy
from tlsproxy.config.model import Config
from tlsproxy.errors import Overloaded, RequestError
from tlsproxy.form import form
from tlsproxy.metrics.families import FAMILIES, HANDSHAKE_BUCKETS, REQUEST_BUCKETS, WORKERS
from tlsproxy.metrics.metrics import Metrics
from tlsproxy.metrics.prometheus import CONTENT_TYPE, Family, Series, exposed, exposition
from tlsproxy.proxy.limits.fair_shares import Share, Shares
from tlsproxy.tls.certinfo import CertificateFacts, CrlFacts
from tlsproxy.tls.negotiated import Negotiated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.snapshot.generation import Generation

TLS = {"cert": "/server.pem", "key": "/server.key"}
Told = dict[tuple[str, frozenset[tuple[str, str]]], float]


def certificate(sha256: str, not_after: float) -> CertificateFacts:
    return CertificateFacts(f"CN={sha256[:2]}", "CN=CA", "1", sha256, 0.0, not_after)


def crl(issuer: str, next_update: float) -> CrlFacts:
    return CrlFacts(issuer, 0.0, next_update, 1, 0, "scope", "ca.crl")


def generation(
    number: int, leaf: str, authorities: tuple[str, ...] = (), crls: tuple[CrlFacts, ...] = ()
) -> Generation:
    material = SimpleNamespace(
        leaf=certificate(leaf, 100.0),
        server=SimpleNamespace(chain=("the leaf",)),
        cert_path="server.pem",
        authorities=tuple(certificate(sha256, 200.0) for sha256 in authorities),
        trust=SimpleNamespace(path="ca.pem"),
        crls=crls,
    )
    states = SimpleNamespace(client_certificates={}, server_authorities={})
    published = SimpleNamespace(
        number=number, material=material, states=states, config=Config.model_validate({"tls": TLS})
    )
    published.policy = Policy({}, (), Keys())
    return cast("Generation", published)


def series_of(metrics: Metrics) -> Told:
    found: Told = {}
    for family in text_string_to_metric_families(exposition(metrics.series()).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} stands twice, and a scrape would fail"
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return series_of(metrics).get((name, frozenset(labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(pool=lambda: (3, 2, 6), audit=lambda: (5, 7, 1, 9), limits=lambda: (4, 2))


def everything(metrics: Metrics) -> None:
    metrics.request("search_points", "search", "allowed", "allowed", 0.003)
    metrics.tcp("admin", "allowed", "allowed")
    metrics.handshake("ok", 0.002)
    metrics.negotiated("client", Negotiated("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    metrics.negotiated("upstream", None)
    metrics.connection("accepted")
    metrics.accept_error()
    metrics.upstream_connect("ok")
    metrics.upstream_retry()
    metrics.upstream_tls("name_mismatch")
    metrics.reload("ok", "sighup", 50.0)
    metrics.published(generation(4, "aa" * 32, ("bb" * 32,), (crl("CN=CA", 300.0),)))


def test_every_family_follows_the_conventions(metrics: Metrics) -> None:
    everything(metrics)
    families = list(text_string_to_metric_families(exposition(metrics.series()).decode()))
    for family in families:
        assert family.documentation
        assert family.documentation.endswith(".") or family.name.startswith("process_")
        assert family.name.startswith(("tlsproxy_", "process_"))
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", family.name)
    assert len({(family.name, family.type) for family in families}) == len(families)


def test_the_names_that_dashboards_rely_on(metrics: Metrics) -> None:
    everything(metrics)
    names = {name for name, _ in series_of(metrics) if name.startswith("tlsproxy_")}
    assert names == {
        "tlsproxy_accept_errors_total",
        "tlsproxy_audit_dropped_total",
        "tlsproxy_audit_lines_total",
        "tlsproxy_audit_queue_length",
        "tlsproxy_audit_queue_limit",
        "tlsproxy_build_info",
        "tlsproxy_certificate_not_after_seconds",
        "tlsproxy_clock_jumps_total",
        "tlsproxy_connections",
        "tlsproxy_connections_limit",
        "tlsproxy_connections_total",
        "tlsproxy_crl_next_update_seconds",
        "tlsproxy_expiry_start_timestamp_seconds",
        "tlsproxy_expiry_timestamp_seconds",
        "tlsproxy_decisions_total",
        "tlsproxy_generation",
        "tlsproxy_handshake_duration_seconds_bucket",
        "tlsproxy_handshake_duration_seconds_count",
        "tlsproxy_handshake_duration_seconds_sum",
        "tlsproxy_handshakes_negotiated_total",
        "tlsproxy_handshakes_total",
        "tlsproxy_locks",
        "tlsproxy_limit_overflows_total",
        "tlsproxy_limit_unlocked_total",
        "tlsproxy_reload_held",
        "tlsproxy_reload_last_attempt_failed",
        "tlsproxy_reload_last_success_timestamp_seconds",
        "tlsproxy_reloads_total",
        "tlsproxy_request_duration_seconds_bucket",
        "tlsproxy_request_duration_seconds_count",
        "tlsproxy_request_duration_seconds_sum",
        "tlsproxy_requests_total",
        "tlsproxy_upstream_connections",
        "tlsproxy_upstream_connects_total",
        "tlsproxy_upstream_retries_refused_total",
        "tlsproxy_upstream_retries_total",
        "tlsproxy_upstream_tls_failures_total",
        "tlsproxy_upstream_waiting",
    }


@given(st.lists(st.tuples(st.text(), st.text(), st.floats() | st.integers(-10, 10**18)), unique_by=lambda row: row[:2]))
def test_any_label_and_number_is_read_as_it_was(rows: list[tuple[str, str, float]]) -> None:
    family = Family("gauge", "tlsproxy_g", "", "A text.", ("one", "other"))
    text = exposition([family.of(((one, other), number) for one, other, number in rows)]).decode()
    (read,) = text_string_to_metric_families(text)
    told = {(sample.labels["one"], sample.labels["other"]): sample.value for sample in read.samples}
    assert told == pytest.approx({row[:2]: float(row[2]) for row in rows}, nan_ok=True, rel=0, abs=0)


def test_no_text_of_a_family_needs_to_be_escaped() -> None:
    assert not [family.name for family in FAMILIES if "\\" in family.text or "\n" in family.text]


def test_samples_are_those_of_their_moment_and_the_text_is_made_beside_the_loop(metrics: Metrics) -> None:
    everything(metrics)
    series = metrics.series()
    before = exposition(metrics.series())
    everything(metrics)
    readers: list[int] = []

    def noting() -> Iterator[tuple[tuple[()], float]]:
        readers.append(threading.get_ident())
        yield (), 1.0

    async def main() -> tuple[bytes, str]:
        return await exposed([*series, Series(WORKERS, noting())])

    text, content_type = asyncio.run(main())
    assert content_type == CONTENT_TYPE
    assert readers[0] != threading.get_ident()
    assert ours(text.decode())[: len(ours(before.decode()))] == ours(before.decode())
    assert ours(exposition(metrics.series()).decode()) != ours(before.decode())


def ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("tlsproxy_") and "build" not in line]


def test_requests_by_operation_role_and_outcome(metrics: Metrics) -> None:
    metrics.request("search_points", "search", "allowed", "allowed", 0.1)
    metrics.request("search_points", "search", "allowed", "allowed", 0.1)
    metrics.request("search_points", "search", "denied", "needs_write", 0.1)
    name = "tlsproxy_requests_total"
    assert value(metrics, name, operation="search_points", role="search", outcome="allowed") == 2
    assert value(metrics, name, operation="search_points", role="search", outcome="denied") == 1
    assert value(metrics, "tlsproxy_request_duration_seconds_count", operation="search_points") == 3
    metrics.tcp("search", "allowed", "allowed")
    assert value(metrics, "tlsproxy_decisions_total", reason="allowed") == 3
    assert value(metrics, "tlsproxy_decisions_total", reason="needs_write") == 1


def test_decisions_handshakes_and_upstream(metrics: Metrics) -> None:
    metrics.tcp("search", "denied", "needs_write")
    metrics.handshake("no_certificate", 0.2)
    metrics.upstream_connect("refused")
    metrics.upstream_retry()
    metrics.upstream_retry_refused()
    metrics.upstream_tls("name_mismatch")
    metrics.accept_error()
    assert value(metrics, "tlsproxy_decisions_total", reason="needs_write") == 1
    assert value(metrics, "tlsproxy_handshakes_total", outcome="no_certificate") == 1
    assert value(metrics, "tlsproxy_handshake_duration_seconds_sum") == 0.2
    assert value(metrics, "tlsproxy_upstream_connects_total", outcome="refused") == 1
    assert value(metrics, "tlsproxy_upstream_retries_total") == 1
    assert value(metrics, "tlsproxy_upstream_retries_refused_total") == 1
    assert value(metrics, "tlsproxy_upstream_tls_failures_total", reason="name_mismatch") == 1
    assert value(metrics, "tlsproxy_accept_errors_total") == 1
    assert value(metrics, "tlsproxy_limit_overflows_total") == 4
    assert value(metrics, "tlsproxy_limit_unlocked_total") == 2
    assert value(metrics, "tlsproxy_upstream_connections", state="idle") == 3
    assert value(metrics, "tlsproxy_upstream_connections", state="busy") == 2
    assert value(metrics, "tlsproxy_upstream_waiting") == 6


def test_open_connections_are_those_that_were_accepted_and_not_closed(metrics: Metrics) -> None:
    metrics.connection("accepted")
    metrics.connection("accepted")
    metrics.connection("address_limit")
    metrics.connection_closed()
    assert value(metrics, "tlsproxy_connections") == 1
    assert value(metrics, "tlsproxy_connections_total", outcome="accepted") == 2
    assert value(metrics, "tlsproxy_connections_total", outcome="address_limit") == 1


def test_a_failed_reload_shows_until_one_succeeds_and_keeps_the_last_success(metrics: Metrics) -> None:
    name = "tlsproxy_reload_last_success_timestamp_seconds"
    assert value(metrics, name) is None
    metrics.reload("ok", "start", 10.0)
    assert (value(metrics, name), value(metrics, "tlsproxy_reload_last_attempt_failed")) == (10, 0)
    metrics.reload("failed", "poll", 20.0)
    assert (value(metrics, name), value(metrics, "tlsproxy_reload_last_attempt_failed")) == (10, 1)
    assert value(metrics, "tlsproxy_reload_held") == 0
    metrics.reload("held", "watch", 25.0)
    assert (value(metrics, "tlsproxy_reload_held"), value(metrics, name)) == (1, 10)
    metrics.reload("unchanged", "sighup", 30.0)
    assert value(metrics, "tlsproxy_reload_held") == 0
    assert (value(metrics, name), value(metrics, "tlsproxy_reload_last_attempt_failed")) == (30, 0)
    assert value(metrics, "tlsproxy_reloads_total", result="failed", trigger="poll") == 1


def test_a_publication_replaces_all_that_was_told_of_the_one_before(metrics: Metrics) -> None:
    metrics.published(generation(1, "aa" * 32, ("bb" * 32,), (crl("CN=Old", 1.0),)))
    metrics.published(generation(2, "cc" * 32, ("dd" * 32,)))
    series = series_of(metrics)
    certificates = {labels: number for (name, labels), number in series.items() if "not_after" in name}
    assert certificates == {
        frozenset({("role", "server"), ("sha256", "cc" * 8)}): 100,
        frozenset({("role", "ca"), ("sha256", "dd" * 8)}): 200,
    }
    assert not [name for name, _ in series if "crl" in name]
    assert value(metrics, "tlsproxy_generation") == 2


def test_a_doubled_certificate_is_one_series_and_the_first_crl_to_expire_counts(metrics: Metrics) -> None:
    crls = (crl("CN=CA", 300.0), crl("CN=CA", 200.0), crl("CN=CA", 400.0))
    metrics.published(generation(1, "aa" * 32, ("bb" * 32, "bb" * 32), crls))
    assert value(metrics, "tlsproxy_crl_next_update_seconds", issuer="CN=CA") == 200
    assert value(metrics, "tlsproxy_certificate_not_after_seconds", role="ca", sha256="bb" * 8) == 200
    series = series_of(metrics)
    labels = frozenset({("kind", "crl"), ("name", "CN=CA")})
    assert series["tlsproxy_expiry_timestamp_seconds", labels] == 200
    assert series["tlsproxy_expiry_start_timestamp_seconds", labels] == 0


def test_the_configurations_bundle_has_series_where_there_is_one(metrics: Metrics) -> None:
    told = {"url": "https://c/b", "version": 7, "created": 100.0, "expires": 300.0, "fetched_at": None, "error": "404"}
    metrics.bundled(told)
    assert value(metrics, "tlsproxy_bundle_version") == 7
    assert value(metrics, "tlsproxy_bundle_created_timestamp_seconds") == 100
    assert value(metrics, "tlsproxy_bundle_last_fetch_failed") == 1
    series, labels = series_of(metrics), frozenset({("kind", "bundle"), ("name", "https://c/b")})
    assert series["tlsproxy_expiry_timestamp_seconds", labels] == 300
    assert series["tlsproxy_expiry_start_timestamp_seconds", labels] == 100
    assert "tlsproxy_bundle_last_success_timestamp_seconds" not in {name for name, _ in series_of(metrics)}
    metrics.bundled(told | {"version": None, "created": None, "expires": None, "fetched_at": 400.0, "error": ""})
    assert value(metrics, "tlsproxy_bundle_last_success_timestamp_seconds") == 400
    assert value(metrics, "tlsproxy_bundle_last_fetch_failed") == 0
    assert "tlsproxy_bundle_version" not in {name for name, _ in series_of(metrics)}
    metrics.bundled(None)
    assert not [name for name, _ in series_of(metrics) if "bundle" in name]


def test_audit_build_and_process(metrics: Metrics) -> None:
    assert value(metrics, "tlsproxy_audit_queue_length") == 5
    assert value(metrics, "tlsproxy_audit_queue_limit") == 9
    assert value(metrics, "tlsproxy_audit_lines_total") == 7
    assert value(metrics, "tlsproxy_audit_dropped_total") == 1
    assert value(metrics, "tlsproxy_build_info", version=tlsproxy.__version__, form=form()) == 1
    assert (value(metrics, "process_open_fds") or 0) > 0


@given(st.lists(st.floats(0, 200) | st.sampled_from(REQUEST_BUCKETS)))
def test_a_bucket_counts_what_is_not_above_its_bound(durations: list[float]) -> None:
    metrics = Metrics(pool=lambda: (0, 0, 0), audit=lambda: (0, 0, 0, 0), limits=lambda: (0, 0))
    for seconds in durations:
        metrics.request("scroll_points", "search", "allowed", "allowed", seconds)
        metrics.handshake("ok", seconds)
    series = series_of(metrics)
    for bound in (*map(str, HANDSHAKE_BUCKETS), "+Inf"):
        key = ("tlsproxy_handshake_duration_seconds_bucket", frozenset({("le", bound)}))
        assert series[key] == sum(seconds <= float(bound) for seconds in durations)
    for bound in (*map(str, REQUEST_BUCKETS), "+Inf") if durations else ():
        labels = frozenset({("le", bound), ("operation", "scroll_points")})
        counted = series["tlsproxy_request_duration_seconds_bucket", labels]
        assert counted == sum(seconds <= float(bound) for seconds in durations)


class _Holder:
    waits_for_client = False

    def give_way(self, error: RequestError) -> None:
        raise AssertionError(error)


def test_what_all_callers_share() -> None:
    memory, places = Shares(5 << 20, 1, Overloaded), Shares(1, 1, Overloaded)
    Share(memory, ("a",), _Holder()).take(5 << 20)
    one, two, three = (Share(places, ("a",), _Holder()) for _ in range(3))
    assert (one.take(1), two.take(1)) == (True, False)
    with pytest.raises(Overloaded):
        three.take(1)
    shares = {"memory": memory, "upstream": places}
    told = Metrics(pool=lambda: (0, 0, 0), audit=lambda: (0, 0, 0, 0), limits=lambda: (0, 0), shares=lambda: shares)
    assert value(told, "tlsproxy_inspection_memory_bytes") == 5 << 20
    assert value(told, "tlsproxy_inspection_memory_limit_bytes") == 5 << 20
    assert value(told, "tlsproxy_upstream_connections_limit") == 1
    assert value(told, "tlsproxy_inspection_waiting") == 0
    assert value(told, "tlsproxy_share_refusals_total", resource="upstream", reason="full") == 1
    assert value(told, "tlsproxy_share_refusals_total", resource="memory", reason="gave_way") == 0
