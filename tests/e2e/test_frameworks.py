"""LangChain's and LlamaIndex's Qdrant stores run their whole flows as tenants of one collection, REST and gRPC."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.site import Site
from support.tenant_roles import IDENTITIES, ROLES

# Each test process imports this file, and one runs it: so the tests import the frameworks, which takes seconds.
if TYPE_CHECKING:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from llama_index.core.schema import TextNode

TENANTS = ("acme", "umbrella")
TEXTS = ("a red fox", "a blue whale", "a grey wolf")
KINDS = ("land", "sea", "land")
POINTS = UUID(int=0)


def ids_of(tenant: str) -> list[str]:
    return [str(uuid5(POINTS, f"{tenant}: {text}")) for text in TEXTS]


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in TENANTS:
        site.issue(name, client=True, common_name=f"tenant-{name}", organizational_unit=name)
    with EmbeddedUpstream() as embedded:
        config = site.write_config(embedded.url, grpc=embedded.grpc_url, roles=ROLES, identities=IDENTITIES)
        with Gateway(config) as running:
            yield running


@pytest.fixture
def admin(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    client = qdrant(gateway, site.client("admin"))
    client.delete_collection("docs")
    client.create_collection("docs", vectors_config=m.VectorParams(size=4, distance=m.Distance.COSINE))
    yield client
    client.close()


@pytest.fixture(params=["rest", "grpc"])
def tenants(
    request: pytest.FixtureRequest, site: Site, gateway: Gateway, admin: QdrantClient
) -> Iterator[list[QdrantClient]]:
    """Clients of both tenants, in one collection."""
    assert admin.count("docs").count == 0
    connect = {
        "rest": lambda name: qdrant(gateway, site.client(name)),
        "grpc": lambda name: qdrant_by_grpc(QdrantClient, gateway, site, name),
    }[request.param]
    clients = [connect(name) for name in TENANTS]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def model() -> DeterministicFakeEmbedding:
    from langchain_core.embeddings import DeterministicFakeEmbedding  # noqa: PLC0415

    return DeterministicFakeEmbedding(size=4)


def owners(admin: QdrantClient) -> dict[str, int]:
    """Number of points of each tenant, as they are upstream."""
    points = admin.scroll("docs", limit=100)[0]
    marks = [(point.payload or {})["tenant"] for point in points]
    return {name: marks.count(name) for name in TENANTS}


def test_langchain(tenants: list[QdrantClient], admin: QdrantClient, model: DeterministicFakeEmbedding) -> None:
    from langchain_qdrant import QdrantVectorStore  # noqa: PLC0415

    stores = [QdrantVectorStore(client, "docs", model) for client in tenants]
    for name, store in zip(TENANTS, stores, strict=True):
        metadata = [{"kind": kind, "of": name} for kind in KINDS]
        assert store.add_texts(list(TEXTS), metadata, ids=ids_of(name)) == ids_of(name)
    assert owners(admin) == {"acme": 3, "umbrella": 3}
    acme, umbrella = stores
    own, foreign = ids_of("acme"), ids_of("umbrella")
    land = m.Filter(must=[m.FieldCondition(key="metadata.kind", match=m.MatchValue(value="land"))])

    found = acme.similarity_search_with_score("a red fox", k=10)
    assert next(document.page_content for document, _ in found) == "a red fox"
    assert {document.metadata["of"] for document, _ in found} == {"acme"}
    assert len(found) == 3
    assert len(acme.similarity_search("a red fox", k=10, filter=land)) == 2
    diverse = acme.max_marginal_relevance_search("a red fox", k=3, fetch_k=10)
    assert {document.metadata["of"] for document in diverse} == {"acme"}
    assert len(diverse) == 3
    assert [document.metadata["_id"] for document in acme.get_by_ids([*own, *foreign])] == own
    assert acme.get_by_ids(foreign) == []

    assert acme.delete([own[0], *foreign])
    assert owners(admin) == {"acme": 2, "umbrella": 3}
    assert acme.add_texts(["not theirs"], ids=[foreign[0]])
    assert [document.page_content for document in umbrella.get_by_ids([foreign[0]])] == ["a red fox"]
    assert acme.delete(own)
    assert owners(admin) == {"acme": 0, "umbrella": 3}
    assert acme.similarity_search("a red fox", k=10) == []


def nodes_of(tenant: str, model: DeterministicFakeEmbedding) -> list[TextNode]:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode  # noqa: PLC0415

    embeddings = model.embed_documents(list(TEXTS))
    return [
        TextNode(
            id_=id_,
            text=text,
            embedding=embedding,
            metadata={"kind": kind, "of": tenant},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"book of {kind}")},
        )
        for id_, text, embedding, kind in zip(ids_of(tenant), TEXTS, embeddings, KINDS, strict=True)
    ]


# qdrant-client closes the connections of an upload only when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_llama_index(tenants: list[QdrantClient], admin: QdrantClient, model: DeterministicFakeEmbedding) -> None:
    from llama_index.core.vector_stores.types import (  # noqa: PLC0415
        ExactMatchFilter,
        MetadataFilters,
        VectorStoreQuery,
    )
    from llama_index.vector_stores.qdrant import QdrantVectorStore  # noqa: PLC0415

    stores = [QdrantVectorStore("docs", client=client) for client in tenants]
    for name, store in zip(TENANTS, stores, strict=True):
        assert store.add(nodes_of(name, model)) == ids_of(name)
    assert owners(admin) == {"acme": 3, "umbrella": 3}
    acme, umbrella = stores
    own, foreign = ids_of("acme"), ids_of("umbrella")
    question = partial(VectorStoreQuery, query_embedding=model.embed_query("a red fox"), similarity_top_k=10)
    sea = MetadataFilters(filters=[ExactMatchFilter(key="kind", value="sea")])

    answer = acme.query(question())
    assert answer.ids is not None
    assert answer.ids[0] == own[0]
    assert set(answer.ids) == set(own)
    assert acme.query(question(filters=sea)).ids == [own[1]]
    assert acme.query(question(node_ids=[own[2], *foreign])).ids == [own[2]]
    assert {node.node_id for node in acme.get_nodes([own[0], *foreign])} == {own[0]}
    assert len(acme.get_nodes(filters=sea)) == 1

    acme.delete_nodes([own[1], *foreign])
    assert owners(admin) == {"acme": 2, "umbrella": 3}
    acme.delete("book of land")
    assert owners(admin) == {"acme": 0, "umbrella": 3}
    assert acme.query(question()).ids == []
    assert {node.node_id for node in umbrella.get_nodes(foreign)} == set(foreign)
    gc.collect()


def test_a_description_counts_nobody_elses_points(tenants: list[QdrantClient], admin: QdrantClient) -> None:
    admin.create_payload_index("docs", "kind", m.PayloadSchemaType.KEYWORD)
    before = tenants[0].get_collection("docs")
    tenants[1].upsert("docs", [m.PointStruct(id=n, vector=[1.0] * 4, payload={"kind": "land"}) for n in range(9)])
    after = tenants[0].get_collection("docs")
    assert admin.get_collection("docs").points_count == 9
    assert after == before
    assert after.config.params.vectors == admin.get_collection("docs").config.params.vectors
    assert not after.points_count
    assert after.segments_count == 0
