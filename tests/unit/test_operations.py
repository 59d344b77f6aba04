"""The operation table against Qdrant's own: every route is there, and asks what Qdrant asks."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import qdrant_client.http.api
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client.grpc import collections_service_pb2, points_service_pb2, qdrant_pb2, snapshots_service_pb2
from support.access_table import ROWS
from support.rows import rows

from tlsproxy.authz.access import BodyNames, Decision, GlobalMode, Grant, Grants, Rights, Scope
from tlsproxy.errors import BadRequest, Form
from tlsproxy.qdrant.operations import ALWAYS, ANY_CALLER, GRPC, REST, Operation
from tlsproxy.qdrant.releases import NEWEST, OLDEST, missing, outside, release_of, version_in
from tlsproxy.qdrant.rest_decision import decide_all
from tlsproxy.qdrant.router import recognise

CLASSES = {
    "m": Rights(everywhere=GlobalMode.M),
    "r": Rights(everywhere=GlobalMode.R),
    "cr": Rights(grants=Grants(Grant("docs", write=False, extras=True))),
    "crw": Rights(grants=Grants(Grant("docs", write=True, extras=True))),
    "cprw": Rights(grants=Grants(Grant("docs", write=True, extras=False))),
}


def row_of(operation: Operation, surface: str) -> dict[str, str] | None:
    method = "GET" if operation.path.startswith("/dashboard") else operation.method
    found = [row for row in ROWS if (row["surface"], row["method"], row["path"]) == (surface, method, operation.path)]
    return found[0] if found else None


def concrete(operation: Operation) -> str:
    """A path that the row matches."""
    path = operation.path.replace("{collection_name}", "docs").replace("{tail...}", "app/index.js")
    return re.sub(r"\{\w+\}", "7", path)


TABLE = [(operation, "rest") for operation in REST] + [(operation, "grpc") for operation in GRPC]


def test_every_row_of_qdrant_is_here_and_no_other() -> None:
    ours = {(surface, operation.method, operation.path) for operation, surface in TABLE}
    theirs = {(row["surface"], row["method"], row["path"]) for row in ROWS}
    assert theirs - ours == set()
    assert ours - theirs == {
        ("rest", "HEAD", "/dashboard/{tail...}"),  # served beside GET by Qdrant's file service
    }


@rows(
    ("operation", "surface"),
    TABLE,
    ids=[f"{surface} {operation.method} {operation.path}" for operation, surface in TABLE],
)
def test_who_passes_is_who_passes_in_qdrant(operation: Operation, surface: str) -> None:
    row = row_of(operation, surface)
    assert row is not None
    assert (operation.since, operation.until) == (release_of(row["since"]) or ALWAYS, release_of(row["until"]))
    before_1_16 = surface == "rest" and operation.name == "create_collection"  # `init_from`
    assert operation.names_others is (bool(row["body_names"]) or before_1_16)
    for name, rights in CLASSES.items():
        decision = decide_all((rights,), operation, "docs", reduced=True, confined=False)
        assert decision.allowed is (name in row["passes"].split()), name
        if operation.requirement.listing and rights.limited:  # the answer as it is would name others' collections
            assert not decide_all((rights,), operation, "docs", confined=False).allowed
        if not decision.allowed and row["refusal"]:
            assert (decision.status, decision.form) == (403, Form(row["refusal"]))
        if rights.limited:  # an alias of it is another name: names are compared before aliases are resolved
            alias = decide_all((rights,), operation, "docs-now", confined=False)
            assert alias.allowed is ("none" in row["passes"].split() or operation.requirement is ANY_CALLER), name
    assert (operation.requirement.scope is Scope.NONE) is ("none" in row["passes"].split())
    assert operation.requirement.listing is bool(row["listing"]) or ("Reflection" in operation.path)


@rows("operation", REST, ids=lambda operation: f"{operation.method} {operation.path}")
def test_each_route_is_recognised_as_itself(operation: Operation) -> None:
    asked = recognise(operation.method, concrete(operation) + "?wait=true")
    assert asked.operation is operation
    assert asked.collection == ("docs" if "{collection_name}" in operation.path else None)
    row = row_of(operation, "rest")
    assert row is not None
    assert not row["audit"] or operation.audit_method == row["audit"]


def test_the_routes_that_the_client_library_knows_are_all_here() -> None:
    spec = importlib.util.find_spec("qdrant_client")
    assert spec is not None
    assert spec.origin is not None
    sources = sorted((Path(spec.origin).parent / "http" / "api").glob("*.py"))
    found = {
        (method, re.sub(r"\{\w+\}", "7", path))
        for source in sources
        for method, path in re.findall(r'method="(\w+)",\s*url="([^"]+)"', source.read_text())
    }
    assert len(found) > 50
    assert [request for request in found if recognise(*request).operation is None] == []


def test_the_methods_that_the_client_library_knows_are_all_here() -> None:
    pytest.importorskip("grpc")
    import qdrant_client.grpc as proto  # noqa: PLC0415 - slow, and needed here only

    services = {
        service
        for module in vars(proto).values()
        if hasattr(module, "DESCRIPTOR") and hasattr(module.DESCRIPTOR, "services_by_name")
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    found = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert len(found) > 40
    assert found - {operation.path for operation in GRPC} == set()


@rows(
    ("method", "target", "name", "collection"),
    [
        ("POST", "/collections/aliases", "change_aliases", None),
        ("GET", "/collections/aliases", "get_collection", "aliases"),
        ("PUT", "/collections/aliases", "create_collection", "aliases"),
        ("POST", "/collections/aliases/points", "retrieve", "aliases"),
        ("POST", "/collections/c/shards/delete", "update_collection_cluster", "c"),
        ("POST", "/collections/c/shards/delete/points", "retrieve", "c"),
        ("GET", "/collections/c/points/count", "retrieve", "c"),
        ("GET", "/dashboard", "web_ui", None),
        ("GET", "/dashboard/a/b.js", "web_ui", None),
        ("GET", "//collections//c/", "get_collection", "c"),
        ("GET", "/%63ollections/c", "get_collection", "c"),
        ("GET", "/collections/%63", "get_collection", "c"),
        ("GET", "/", "index", None),
    ],
)
def test_routes_that_look_alike(method: str, target: str, name: str, collection: str | None) -> None:
    asked = recognise(method, target)
    assert asked.operation is not None
    assert (asked.operation.name, asked.collection) == (name, collection)


@rows(
    ("method", "target"),
    [
        ("HEAD", "/collections"),
        ("get", "/collections"),
        ("POST", "/collections"),
        ("OPTIONS", "/collections"),
        ("TRACE", "/"),
        ("GET", "/Collections"),
        ("GET", "/collections/c/unheard-of"),
        ("GET", "/collections/c/points/1/2"),
        ("GET", "/dashboards"),
        ("GET", "/healthz/x"),
        ("GET", "/readyz2"),
    ],
)
def test_what_has_no_row_is_nothing(method: str, target: str) -> None:
    assert recognise(method, target).operation is None


def test_a_name_that_qdrant_would_refuse() -> None:
    assert recognise("GET", "/collections/" + "a" * 255).collection == "a" * 255
    for name in ("a" * 256, "%C3%A9" * 128):
        with pytest.raises(BadRequest):
            recognise("GET", f"/collections/{name}")


segments = st.sampled_from(
    ["collections", "aliases", "docs", "points", "count", "delete", "shards", "7", "snapshots", "snapshot", "upload"]
)


@pytest.mark.fuzz
@given(st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"]), st.lists(segments, max_size=7))
def test_matching_agrees_with_trying_every_row(method: str, path: list[str]) -> None:
    """The slow twin: each row as a regex, the one with the fewest parameters wins."""
    target = "/" + "/".join(path)

    def matches(operation: Operation) -> bool:
        pattern = re.sub(r"/\{tail\.\.\.\}", r"(/.*)?", re.sub(r"\{\w+\}", "[^/]+", operation.path))
        return operation.method == method and re.fullmatch(pattern, target) is not None

    candidates = [operation for operation in REST if matches(operation)]
    expected = min(candidates, key=lambda operation: operation.path.count("{"), default=None)
    assert recognise(method, target).operation is expected


names = st.sampled_from(["docs", "other", "docs2"])
grants = st.builds(Grant, st.sampled_from(["docs", "doc*", "**", "other"]), st.booleans(), st.booleans())


@pytest.mark.fuzz
@given(
    st.lists(grants, max_size=4),
    st.sampled_from(REST),
    names,
    st.lists(names, max_size=3).map(tuple),
    st.booleans(),
)
def test_more_grants_never_allow_less(
    held: list[Grant],
    operation: Operation,
    name: str,
    named: tuple[str, ...],
    reduced: bool,  # noqa: FBT001
) -> None:
    def ask(rights: Rights) -> Decision:
        return decide_all((rights,), operation, name, names=BodyNames(read=named), reduced=reduced, confined=False)

    rights = Rights(grants=Grants(*held))
    for index in range(len(held)):
        without_one = Rights(grants=Grants(*held[:index] + held[index + 1 :]))
        assert ask(rights).allowed or not ask(without_one).allowed
    for index in range(len(named)):  # nor does naming a further collection ever help
        fewer = BodyNames(read=named[:index] + named[index + 1 :])
        without = decide_all((rights,), operation, name, names=fewer, reduced=reduced, confined=False)
        assert without.allowed or not ask(rights).allowed


@pytest.mark.parametrize(
    ("grant", "path", "method", "text"),
    [
        (
            Grant("docs", write=False, extras=True),
            "/collections/other",
            "GET",
            "Access to collection other is required",
        ),
        (
            Grant("docs", write=True, extras=False),
            "/collections/docs/index",
            "PUT",
            "Only points access is allowed for collection docs",
        ),
        (
            Grant("docs", write=False, extras=True),
            "/collections/docs/index",
            "PUT",
            "Write access to collection docs is required",
        ),
        (
            Grant("docs", write=True, extras=True),
            "/collections/docs/shards",
            "PUT",
            "Manage access for this operation is required",
        ),
        (Grant("docs", write=True, extras=True), "/collections/docs", "DELETE", "Global access is required"),
    ],
)
def test_the_texts_are_qdrants(grant: Grant, path: str, method: str, text: str) -> None:
    asked = recognise(method, path)
    assert asked.operation is not None
    decision = decide_all((Rights(grants=Grants(grant)),), asked.operation, asked.collection, confined=False)
    assert decision.text == f"Forbidden: {text}"


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/collections/docs", "Access to collection docs is required"),
        ("GET", "/collections/docs/aliases", "Access to collection docs is required"),
        ("PUT", "/collections/docs/points", "Access to collection docs is required"),
        ("PUT", "/collections/docs", "Global access is required"),
        ("GET", "/cluster", "Global access is required"),
        ("GET", "/collections", "Global access is required"),  # where Qdrant shows an empty list
    ],
)
def test_a_list_of_no_collections(method: str, path: str, text: str) -> None:
    asked = recognise(method, path)
    assert asked.operation is not None
    decision = decide_all((Rights(),), asked.operation, asked.collection, reduced=True, confined=False)
    assert (decision.allowed, decision.text) == (False, f"Forbidden: {text}")


def test_two_grants_do_not_add_up_to_what_neither_gives() -> None:
    both = Rights(grants=Grants(Grant("docs", write=True, extras=False), Grant("doc*", write=False, extras=True)))
    asked = recognise("PUT", "/collections/docs/index")
    assert asked.operation is not None
    assert not decide_all((both,), asked.operation, asked.collection, confined=False).allowed


def test_the_newest_release_is_that_of_the_client() -> None:
    """Of each method and route that its library has, there is a row, and it is of this release."""
    assert release_of(version("qdrant-client")) == NEWEST
    rows = {(row.method, re.sub(r"\{[^}]+\}", "{}", row.path)): row for row in REST}
    client = Path(qdrant_client.http.api.__path__[0])
    found = set()
    for module in client.glob("*_api.py"):
        found.update(re.findall(r'method="(\w+)",\s*url="([^"]+)"', module.read_text()))
    assert len(found) > 60
    for method, path in found:
        assert rows[method, re.sub(r"\{[^}]+\}", "{}", path)].served_by(NEWEST), (method, path)
    methods = {row.path: row for row in GRPC}
    for services in (collections_service_pb2, points_service_pb2, snapshots_service_pb2, qdrant_pb2):
        for service in services.DESCRIPTOR.services_by_name.values():
            for each in service.methods:
                assert methods[f"/{service.full_name}/{each.name}"].served_by(NEWEST), each.full_name


def test_operations_of_a_release() -> None:
    assert {row.name for row in missing(NEWEST)} == {"read_multi"}
    assert {row.name for row in missing((1, 18))} == {"get_quotas", "update_quotas", "get_consensus_lag"}
    assert {row.name for row in missing((1, 17))} - {row.name for row in missing((1, 18))} == {
        "get_collection_memory",
        "create_named_vector",
        "delete_named_vector",
    }
    assert {row.name for row in missing(OLDEST)} > {row.name for row in missing((1, 17))}


@rows(
    ("answer", "release", "words"),
    [
        (b'{"version":"1.20.0"}', (1, 20), ""),
        (b'{"version":"1.16.3-dev"}', (1, 16), ""),
        (b'{"version":"1.15.1"}', (1, 15), "1.15 is older than 1.16 to 1.20"),
        (b'{"version":"2.0.0"}', (2, 0), "2.0 is newer than 1.16 to 1.20"),
        (b'{"version":"latest"}', None, ""),
        (b'{"version":7}', None, ""),
        (b"[]", None, ""),
        (b"no JSON", None, ""),
    ],
)
def test_releases(answer: bytes, release: tuple[int, int] | None, words: str) -> None:
    assert release_of(version_in(answer)) == release
    assert release is None or outside(release).startswith(words)
    assert release is None or bool(outside(release)) is bool(words)
