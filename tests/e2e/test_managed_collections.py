"""Grants beyond Qdrant's, by the real qdrant-client over REST and gRPC: `m` on a glob, `pr`, and operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.grpc_channels import channel
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.site import Site

from tlsproxy.wire.protobuf import delimited

ROLES: dict[str, Any] = {
    "admin": {"access": "m"},
    "builder": {"access": [{"collection": "docs-*", "access": "m"}, {"collection": "labels", "access": "r"}]},
    "careful": {
        "access": [
            {"collection": "docs-*", "access": "m", "operations": {"deny": ["delete_collection", "delete_points"]}},
            {"collection": "labels", "access": "rw", "operations": {"allow": ["scroll", "upsert_points"]}},
        ],
        "operations": {"deny": ["create_payload_index"]},
    },
    "viewer": {"access": "pr"},
    "watcher": {"access": [{"collection": "docs-*", "access": "pr"}]},
    "reader": {"access": "m", "operations": {"allow": ["scroll", "count", "update_batch", "upsert_points"]}},
}
SPACE = m.VectorParams(size=2, distance=m.Distance.DOT)
POINT = m.PointStruct(id=1, vector=[1.0, 0.0], payload={"n": 1})
Make = Callable[[str], QdrantClient]
Use = Callable[[QdrantClient], object]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One of its own, whose certificates it issues anew."""
    return Site(tmp_path_factory.mktemp("managed"))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in ROLES:
        site.issue(name, client=True, common_name=name)
    identities = [{"name": name, "match": {"cn": name}, "role": name} for name in ROLES]
    with EmbeddedUpstream() as embedded:
        config = site.write_config(embedded.url, grpc=embedded.grpc_url, roles=ROLES, identities=identities)
        with Gateway(config) as running:
            yield running


@pytest.fixture(scope="module", params=["rest", "grpc"])
def clients(request: pytest.FixtureRequest, site: Site, gateway: Gateway) -> Iterator[Make]:
    """Makes the client of a role, once."""
    made: dict[str, QdrantClient] = {}

    def make(role: str) -> QdrantClient:
        if role not in made:
            by_rest = request.param == "rest"
            made[role] = (
                qdrant(gateway, site.client(role)) if by_rest else qdrant_by_grpc(QdrantClient, gateway, site, role)
            )
        return made[role]

    yield make
    for client in made.values():
        client.close()


@pytest.fixture
def client_of(clients: Make) -> Make:
    """The same; collections and aliases of a test before are gone."""
    admin = clients("admin")
    for one in admin.get_collections().collections:
        admin.delete_collection(one.name)
    for name in ("secret", "labels"):
        admin.create_collection(name, vectors_config=SPACE)
        admin.upsert(name, [POINT])
    admin.update_collection_aliases([aliased("secret", "public")])
    return clients


def aliased(collection: str, alias: str) -> m.CreateAliasOperation:
    return m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=collection, alias_name=alias))


def renamed(old: str, new: str) -> m.RenameAliasOperation:
    return m.RenameAliasOperation(rename_alias=m.RenameAlias(old_alias_name=old, new_alias_name=new))


def dropped(alias: str) -> m.DeleteAliasOperation:
    return m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=alias))


def changing(*actions: Any) -> Use:
    return lambda client: client.update_collection_aliases(list(actions))


def refusal(client: QdrantClient, use: Use) -> str:
    """The text of a refusal, which there must be."""
    with pytest.raises((UnexpectedResponse, grpc.RpcError)) as raised:
        use(client)
    error = raised.value
    if isinstance(error, UnexpectedResponse):
        assert error.status_code == 403, error
        return error.content.decode()
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED, error  # type: ignore[attr-defined]
    return str(error.details())  # type: ignore[attr-defined]


def is_unsupported(client: QdrantClient, use: Use) -> bool:
    """Whether the embedded upstream got it, which has no snapshots."""
    with pytest.raises((UnexpectedResponse, grpc.RpcError)) as raised:
        use(client)
    error = raised.value
    if isinstance(error, UnexpectedResponse):
        return error.status_code == 501
    return error.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def named(client: QdrantClient) -> tuple[set[str], set[str]]:
    """(collections, aliases) that a client sees."""
    return (
        {one.name for one in client.get_collections().collections},
        {one.alias_name for one in client.get_aliases().aliases},
    )


def test_an_ingest_job_has_collections_of_its_own(client_of: Make) -> None:
    job = client_of("builder")
    assert job.create_collection("docs-1", vectors_config=SPACE)
    job.create_payload_index("docs-1", "n", m.PayloadSchemaType.INTEGER)
    job.upsert("docs-1", [POINT])
    assert job.update_collection("docs-1", metadata={"made": "today"})
    assert job.update_collection_aliases([aliased("docs-1", "docs-now")])
    assert job.count("docs-now").count == 1
    assert named(job) == ({"docs-1", "labels"}, {"docs-now"})
    assert job.create_collection("docs-2", vectors_config=SPACE)
    assert job.update_collection_aliases([dropped("docs-now"), aliased("docs-2", "docs-now")])
    assert job.update_collection_aliases([renamed("docs-now", "docs-today")])
    assert job.count("docs-today").count == 0
    assert is_unsupported(job, lambda client: client.create_snapshot("docs-1"))
    assert job.update_collection_aliases([dropped("docs-today")])
    for name in ("docs-1", "docs-2"):
        assert job.delete_collection(name)
    assert named(job) == ({"labels"}, set())
    assert named(client_of("admin")) == ({"secret", "labels"}, {"public"})


def test_more_aliases_than_a_window_holds(client_of: Make) -> None:
    job = client_of("builder")
    client_of("admin").create_collection("docs-1", vectors_config=SPACE)
    names = {f"docs-{number}-{'a' * 230}" for number in range(400)}
    assert job.update_collection_aliases([aliased("docs-1", name) for name in names])
    assert named(job)[1] == names
    assert "collection out is" in refusal(job, changing(*map(dropped, (*names, "out"))))
    assert named(job)[1] == names


def test_and_nothing_else(client_of: Make) -> None:
    job, admin = client_of("builder"), client_of("admin")
    job.create_collection("docs-1", vectors_config=SPACE)
    before = named(admin)
    needs = "Manage access for this operation is required"
    attempts: list[tuple[Use, str]] = [
        (
            lambda client: client.create_collection("docs", vectors_config=SPACE),
            "Access to collection docs is required",
        ),
        (lambda client: client.create_collection("docs-1.a", vectors_config=SPACE), "collection docs-1.a is required"),
        (lambda client: client.delete_collection("secret"), "Access to collection secret is required"),
        (lambda client: client.update_collection("secret", metadata={}), "Access to collection secret is required"),
        (lambda client: client.delete_collection("public"), "Access to collection public is required"),
        (lambda client: client.delete_collection("labels"), needs),
        (lambda client: client.scroll("secret"), "Access to collection secret is required"),
        (changing(aliased("secret", "docs-now")), "Access to collection secret is required"),
        (changing(aliased("labels", "docs-now")), needs),
        (changing(aliased("docs-1", "now")), "Access to collection now is required"),
        (changing(aliased("docs-1", "secret")), "Access to collection secret is required"),
        (changing(aliased("docs-1", "labels")), needs),
        (changing(renamed("public", "docs-public")), "Access to collection public is required"),
        (changing(aliased("docs-1", "docs-a"), renamed("docs-a", "out")), "Access to collection out is required"),
        (changing(dropped("public")), "Access to collection public is required"),
        (changing(aliased("docs-1", "docs-a"), dropped("public")), "Access to collection public is required"),
    ]
    for use, text in attempts:
        assert text in refusal(job, use)
    assert named(admin) == before
    assert admin.count("public").count == 1


def test_operations_that_are_left_out(client_of: Make) -> None:
    careful, reader = client_of("careful"), client_of("reader")
    careful.create_collection("docs-1", vectors_config=SPACE)
    by_id = m.PointIdsList(points=[1])
    batches = {
        "upsert": [m.UpsertOperation(upsert=m.PointsList(points=[POINT]))],
        "delete": [
            m.UpsertOperation(upsert=m.PointsList(points=[POINT])),
            m.DeleteOperation(delete=by_id),
        ],
    }
    careful.batch_update_points("docs-1", batches["upsert"])
    reader.batch_update_points("docs-1", batches["upsert"])
    careful.upsert("labels", [POINT])
    attempts: list[tuple[QdrantClient, Use, str]] = [
        (careful, lambda client: client.delete_collection("docs-1"), "delete_collection is not allowed for collection"),
        (careful, lambda client: client.delete("docs-1", by_id), "delete_points is not allowed for collection docs-1"),
        (
            careful,
            lambda client: client.batch_update_points("docs-1", batches["delete"]),
            "delete_points is not allowed",
        ),
        (
            careful,
            lambda client: client.create_payload_index("docs-1", "n", m.PayloadSchemaType.KEYWORD),
            "not allowed",
        ),
        (careful, lambda client: client.count("labels"), "count is not allowed for collection labels"),
        (
            reader,
            lambda client: client.batch_update_points("docs-1", batches["delete"]),
            "delete_points is not allowed",
        ),
        (reader, lambda client: client.delete("docs-1", by_id), "Operation delete_points is not allowed"),
        (reader, lambda client: client.get_collections(), "Operation list_collections is not allowed"),
        (reader, lambda client: client.delete_collection("docs-1"), "Operation delete_collection is not allowed"),
    ]
    for client, use, text in attempts:
        assert text in refusal(client, use)
    assert reader.count("docs-1").count == reader.count("labels").count == 1
    assert named(careful)[0] == {"docs-1"}  # `labels` has no listing among its operations


def test_points_alone(client_of: Make, gateway: Gateway, site: Site) -> None:
    client_of("admin").create_collection("docs-1", vectors_config=SPACE)
    client_of("admin").upsert("docs-1", [POINT])
    for role, sees in (("viewer", {"docs-1", "secret", "labels"}), ("watcher", {"docs-1"})):
        client = client_of(role)
        assert client.query_points("docs-1", query=[1.0, 0.0]).points[0].id == 1
        assert client.count("docs-1").count == len(client.scroll("docs-1")[0]) == 1
        assert client.get_collection("docs-1").points_count == 1
        assert named(client)[0] == sees
        attempts: list[Use] = [
            lambda client: client.upsert("docs-1", [POINT]),
            lambda client: client.delete("docs-1", m.PointIdsList(points=[1])),
            lambda client: client.create_payload_index("docs-1", "n", m.PayloadSchemaType.INTEGER),
            lambda client: client.list_snapshots("docs-1"),
            lambda client: client.create_snapshot("docs-1"),
            lambda client: client.list_full_snapshots(),
            lambda client: client.create_collection("docs-2", vectors_config=SPACE),
            lambda client: client.delete_collection("docs-1"),
            changing(aliased("docs-1", "docs-now")),
            lambda client: client.http.snapshots_api.get_snapshot("docs-1", "x.snapshot"),
            lambda client: client.http.service_api.metrics(),
        ]
        for use in attempts:
            refusal(client, use)
        with channel(gateway, site, role) as calls:
            files = calls.unary_unary("/qdrant.StorageRead/ListFiles")
            with pytest.raises(grpc.RpcError) as raised:
                files(delimited(1, b"docs-1"))
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
