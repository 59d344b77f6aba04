"""The benchmark's harness counts what happened: answers that are right, and nothing else. No timing is asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.bench import built

from bench.build import Programs, build
from bench.dimensions import SCALE
from bench.errors import AbsentError
from bench.figures import Sample
from bench.generator import Generator
from bench.idle import run_idle
from bench.journal import Journal
from bench.peers import OURS, PEERS
from bench.peers.peer import Peer, Program
from bench.process import Running, upstream
from bench.results import Results
from bench.rounds import Setting, run_rounds, takes
from bench.scale import run_scale
from bench.site import Site
from bench.workloads import BY_NAME, WORKLOADS, Workload

pytestmark = pytest.mark.timeout(180)  # it compiles
SECONDS = 0.1
DOWNLOAD = 1 << 20
OF_OTHERS = {"get", "upsert", "download", "handshake", "handshake-hybrid", "grpc-varying", "tcp"}
"""The workloads by which a peer shows that they are not made for tlsproxy alone: one of each kind."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build(built(tmp_path_factory))


@pytest.fixture(scope="module")
def setting(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    place = tmp_path_factory.mktemp("bench")
    place.chmod(0o755)
    place.parent.chmod(0o755)  # workers of peers drop to other users
    journal = Journal(place / "results.json", lambda _line: None)
    with upstream(programs, DOWNLOAD) as behind:
        site = Site.create(place / "site")
        generator = Generator(programs.load, site, SECONDS, warm_up=0)
        yield Setting(place, site, behind, generator, journal, programs, DOWNLOAD)


def located(name: str, tmp_path: Path) -> tuple[Peer, Program]:
    try:
        return PEERS[name], PEERS[name].locate(tmp_path)
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tlsproxy(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for the tests that look at single runs, in a directory of its own."""
    apart = replace(setting, directory=setting.directory / "shared")
    with ExitStack() as stack:
        yield apart.start(stack, *located(OURS, tmp_path_factory.getbasetemp()))


def short(workload: Workload) -> Workload:
    length = DOWNLOAD if workload.request == "download" else workload.length
    return replace(workload, length=length, connections=min(workload.connections, 4), seconds=0.5)


def under_way(workload: Workload) -> int:
    """Most requests that can be unanswered at a time: those at the beginning and at the end are not counted."""
    return workload.connections * (8 if workload.kind == "grpc" else workload.depth)


def good(results: Results, name: str) -> list[Sample]:
    return [sample for sample in results.workloads[name].samples[OURS] if sample is not None and sample.counts]


@pytest.mark.parametrize("name", [OURS, "nginx"])
def test_every_workload_is_done_without_an_error(setting: Setting, name: str, tmp_path: Path) -> None:
    peer, program = located(name, tmp_path)
    results = Results({})
    few = {workload.name for workload in WORKLOADS} if name == OURS else OF_OTHERS
    workloads = [short(workload) for workload in WORKLOADS if takes(peer, workload) and workload.name in few]
    run_rounds(setting, {peer: program}, workloads, 1, results)
    assert not results.absent
    for told in results.unable.values():  # OpenSSL before 3.5: nobody is able, since the load generator is not
        assert "has no group X25519MLKEM768" in told[name]
    workloads = [workload for workload in workloads if workload.name not in results.unable]
    assert len(workloads) >= len(few) - 1
    for workload in workloads:
        (sample,) = results.workloads[workload.name].samples[name]
        assert sample is not None
        assert (sample.errors, sample.error) == (0, ""), workload.name
        assert sample.requests > 0
        assert sample.cpu > 0
        # What began before the count did ends in it.
        assert sample.bytes_in > (sample.requests - under_way(workload)) * workload.length
    if name == OURS:
        decided = [workload for workload in workloads if workload.kind != "tcp"]
        counted = sum(sample.requests for workload in decided for sample in good(results, workload.name))
        uncounted = audited(setting) - counted
        assert 0 <= uncounted <= 2 * sum(map(under_way, decided))


def test_run_of_so_many_requests_ends_with_them(setting: Setting, tlsproxy: Running) -> None:
    workload = replace(BY_NAME["get"], connections=2)
    sample = setting.generator.send(tlsproxy, workload, 50)
    assert sample.counts
    assert 50 <= sample.requests < 50 + under_way(workload)


def audited(setting: Setting) -> int:
    """The requests and calls in the audit log of a gateway that has ended."""
    files = (setting.directory / OURS / "audit").glob("*.log")
    return sum("method" in json.loads(line) for path in files for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (replace(BY_NAME["get"], length=201), "a body of 200 bytes, not of 201"),
        (replace(BY_NAME["get"], client="limited", request="other"), "status 403"),
        (replace(BY_NAME["grpc"], length=204), "HTTP status 200, gRPC status 0, 205 bytes"),
        (replace(BY_NAME["grpc"], client="limited", request="grpc-other"), "gRPC status 7"),
    ],
)
def test_answers_that_are_wrong_are_errors_and_no_requests(
    setting: Setting, tlsproxy: Running, wrong: Workload, error: str
) -> None:
    site = setting.site
    site.request("other").write_bytes(site.request("get").read_bytes().replace(b"/items", b"/other"))
    site.request("grpc-other").write_bytes(site.request("grpc-search").read_bytes().replace(b"items", b"other"))
    sample = setting.generator.measure(tlsproxy, replace(wrong, connections=2))
    assert error in sample.error
    assert sample.errors > 0
    assert sample.requests == 0
    assert not sample.counts


@pytest.mark.parametrize("name", [OURS, "nghttpx"])
def test_idle_connections_are_all_there(setting: Setting, name: str, tmp_path: Path) -> None:
    """Of one that has just started: nghttpx ran a script for OCSP then, whose memory could not be read any more."""
    peer, program = located(name, tmp_path)
    results = Results({})
    run_idle(setting, {peer: program}, [50], results)
    idle = results.idle["50"][name]
    assert (idle.connections, idle.errors, idle.error) == (50, 0, "")
    assert idle.pss_kb > 0


def test_cost_of_connections_is_measured_while_they_rest(setting: Setting, tmp_path: Path) -> None:
    """A load generator of their own holds them."""
    (row,) = (row for row in SCALE if row.name == "connections")
    said: list[str] = []
    results = Results({})
    apart = replace(setting, journal=Journal(setting.directory / "scale.json", said.append))
    run_scale(apart, located(OURS, tmp_path)[1], 2, results, [replace(row, sizes=(60,))])
    measured = results.workloads["connections"]
    assert [sample is not None and sample.counts for sample in measured.rounds("60")] == [True, True]
    assert not [line for line in said if "only" in line or "errors" in line]


def test_nodes_and_tls_behind_the_gateway_are_measured(setting: Setting, tmp_path: Path) -> None:
    rows = {row.name: row for row in SCALE}
    chosen = [replace(rows["nodes-get"], sizes=(2,)), replace(rows["tls-grpc"], sizes=(1,))]
    results = Results({})
    run_scale(setting, located(OURS, tmp_path)[1], 1, results, chosen)
    for name, size in (("nodes-get", "2"), ("tls-grpc", "1")):
        (sample,) = results.workloads[name].rounds(size)
        assert sample is not None
        assert sample.counts
    nodes, tls = (
        yaml.safe_load((setting.directory / name / "tlsproxy.yaml").read_text())["upstream"]
        for name in ("nodes-get-2", "tls-grpc-1")
    )
    assert len({node["rest"] for node in nodes["nodes"]}) == 2
    assert tls["grpc"].startswith("https://")


def test_peer_that_does_not_start_is_absent_with_what_it_said(setting: Setting, tmp_path: Path) -> None:
    peer, program = located(OURS, tmp_path)
    broken = replace(peer, command=lambda _program, _place: ["sh", "-c", "echo no such option; exit 1"])
    results = Results({})
    run_rounds(setting, {broken: program}, [BY_NAME["get"]], 1, results)
    assert results.absent == {OURS: "it does not start: no such option"}
