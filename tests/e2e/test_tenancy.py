"""Two tenants in one collection: each sees and changes its own points, by whichever way it asks."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator

import orjson
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_request import Client
from support.site import Site
from support.tenant_roles import IDENTITIES, ROLES
from support.upstream import ScriptedUpstream

Use = Callable[[QdrantClient], object]
VECTORS = m.VectorParams(size=2, distance=m.Distance.DOT)
ALL = m.Filter()


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in ("acme", "umbrella"):
        site.issue(name, client=True, common_name=f"tenant-{name}", organizational_unit=name)
    site.issue("homeless", client=True, common_name="tenant-of-nobody")
    with (
        EmbeddedUpstream() as embedded,
        Gateway(site.write_config(embedded.url, roles=ROLES, identities=IDENTITIES)) as running,
    ):
        yield running


@pytest.fixture
def admin(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    """Who also makes the collection anew: points 1 to 3 are acme's, 4 to 6 umbrella's, 7 nobody's."""
    client = qdrant(gateway, site.client("admin"))
    client.delete_collection("docs")
    client.create_collection("docs", vectors_config=VECTORS)
    tenants = {1: "acme", 2: "acme", 3: "acme", 4: "umbrella", 5: "umbrella", 6: "umbrella"}
    points = [
        m.PointStruct(id=n, vector=[1.0, n / 8], payload={"n": n, **({"tenant": tenants[n]} if n in tenants else {})})
        for n in range(1, 8)
    ]
    client.upsert("docs", points)
    yield client
    client.close()


@pytest.fixture
def acme(site: Site, gateway: Gateway, admin: QdrantClient) -> Iterator[QdrantClient]:
    assert admin.count("docs").count == 7
    client = qdrant(gateway, site.client("acme"))
    yield client
    client.close()


def ids(points: list[m.ScoredPoint] | list[m.Record]) -> set[object]:
    return {point.id for point in points}


def state(admin: QdrantClient, *numbers: int) -> list[tuple[object, object, object]]:
    found = admin.retrieve("docs", list(numbers), with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in found]


def test_reads(acme: QdrantClient) -> None:
    own = {1, 2, 3}
    everything = m.Filter(should=[m.FieldCondition(key="n", range=m.Range(gte=0)), m.HasIdCondition(has_id=[4, 7])])
    assert acme.count("docs").count == 3
    assert acme.count("docs", count_filter=everything).count == 3
    assert ids(acme.scroll("docs", limit=100)[0]) == own
    assert ids(acme.scroll("docs", scroll_filter=everything, limit=100)[0]) == own
    assert ids(acme.query_points("docs", query=[1.0, 1.0], limit=100).points) == own
    assert ids(acme.query_points("docs", limit=100).points) == own
    prefetch = m.Prefetch(query=[1.0, 1.0], limit=100, prefetch=[m.Prefetch(query=[0.0, 1.0], limit=100)])
    fusion = m.FusionQuery(fusion=m.Fusion.RRF)
    assert ids(acme.query_points("docs", prefetch=[prefetch, prefetch], query=fusion, limit=100).points) == own
    batch = acme.query_batch_points("docs", [m.QueryRequest(query=[1.0, 1.0], limit=100, filter=everything)] * 2)
    assert [ids(answer.points) for answer in batch] == [own, own]
    assert {group.id for group in acme.query_points_groups("docs", "n", query=[1.0, 1.0], limit=100).groups} == own
    assert {hit.value for hit in acme.facet("docs", "tenant").hits} == {"acme"}
    assert set(acme.search_matrix_offsets("docs", sample=100, limit=100).ids) == own
    mine = m.Filter(must=[m.FieldCondition(key="n", match=m.MatchValue(value=2))])
    assert ids(acme.scroll("docs", scroll_filter=mine)[0]) == {2}
    other = m.Filter(must=[m.FieldCondition(key="tenant", match=m.MatchValue(value="umbrella"))])
    assert acme.count("docs", count_filter=other).count == 0
    assert acme.collection_exists("docs")
    assert [one.name for one in acme.get_collections().collections] == ["docs"]


def recommended(*positive: int | str) -> m.RecommendQuery:
    return m.RecommendQuery(recommend=m.RecommendInput(positive=list(positive)))


def test_retrieves_by_ids(site: Site, gateway: Gateway, acme: QdrantClient, admin: QdrantClient) -> None:
    found = acme.retrieve("docs", [3, 4, 1, 7, 99, 3], with_vectors=True)
    assert [(point.id, point.payload, point.vector) for point in found] == state(admin, 3, 1)
    assert acme.retrieve("docs", [4, 7]) == []
    assert acme.retrieve("docs", []) == []
    with Client(gateway, site.client("acme")) as client:
        own = client.ask("GET", "/collections/docs/points/2")
        foreign, missing = (client.ask("GET", f"/collections/docs/points/{number}") for number in (5, 98))
        bare = client.ask("POST", "/collections/docs/points", (), b'{"ids":[1,5]}')
        odd = client.ask("GET", "/collections/docs/points/0x2")
    assert own.json["result"] == {"id": 2, "payload": {"n": 2, "tenant": "acme"}, "vector": [1.0, 0.25]}
    for response, number in ((foreign, 5), (missing, 98)):
        assert response.status == 404
        assert response.json["status"]["error"] == f"Not found: Point with id {number} does not exists!"
    assert set(foreign.fields) == set(missing.fields)
    assert bare.json["result"] == [{"id": 1}]
    assert (odd.status, odd.json["status"]["error"]) == (400, 'Wrong input: Can not recognize "0x2" as point id')
    assert gateway.audited(method="retrieve", status=404)["reason"] == "point_missing"


def test_queries_by_examples(acme: QdrantClient) -> None:
    """The example is one of its own; it is no result, and neither is another's point."""
    pair = m.ContextPair(positive=1, negative=2)
    for query, found in (
        (1, {2, 3}),
        (recommended(1), {2, 3}),
        (recommended(1, 2), {3}),
        (m.DiscoverQuery(discover=m.DiscoverInput(target=3, context=[pair])), {1, 2, 3} - {1, 2, 3}),
        (m.ContextQuery(context=[pair]), {3}),
        (m.NearestQuery(nearest=1, mmr=m.Mmr(diversity=0.5)), {2, 3}),
    ):
        answer = acme.query_points("docs", query=query, limit=100).points
        assert ids(answer) == found, query
    lookup = m.LookupLocation(collection="docs")
    assert ids(acme.query_points("docs", query=2, lookup_from=lookup, limit=100).points) <= {1, 2, 3}
    nested = m.Prefetch(query=1, limit=100)
    assert ids(acme.query_points("docs", query=[1.0, 0.0], prefetch=nested, limit=100).points) == {2, 3}
    batch = acme.query_batch_points("docs", [m.QueryRequest(query=1), m.QueryRequest(query=recommended(2))])
    assert [ids(answer.points) for answer in batch] == [{2, 3}, {1, 3}]
    groups = acme.query_points_groups("docs", "n", query=1, limit=100).groups
    assert {group.id for group in groups} == {2, 3}


def test_the_older_routes_of_examples(site: Site, gateway: Gateway, acme: QdrantClient) -> None:
    assert acme.count("docs").count == 3
    recommend, discover = {"positive": [1], "limit": 9}, {"target": 2, "context": [], "limit": 9}
    with Client(gateway, site.client("acme")) as client:
        for path, body, found in (
            ("recommend", recommend, {2, 3}),
            ("discover", discover, {1, 3}),
            ("recommend", recommend | {"negative": [4]}, None),
            ("discover", discover | {"target": 7}, None),
            ("recommend/batch", {"searches": [recommend, recommend | {"positive": [99]}]}, None),
        ):
            answer = client.ask("POST", f"/collections/docs/points/{path}", (), orjson.dumps(body))
            if found is None:
                assert answer.status == 404
                assert answer.json["status"]["error"].startswith("Not found: No point with id ")
            else:
                assert {point["id"] for point in answer.json["result"]} == found


@pytest.mark.parametrize("example", [4, 7, 99, "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"])
def test_anothers_example_is_a_missing_one(acme: QdrantClient, gateway: Gateway, example: int | str) -> None:
    lookup = m.LookupLocation(collection="docs")
    for use in (
        lambda: acme.query_points("docs", query=example),
        lambda: acme.query_points("docs", query=recommended(1, example)),
        lambda: acme.query_points("docs", query=[1.0, 0.0], prefetch=m.Prefetch(query=example)),
        lambda: acme.query_points("docs", query=example, lookup_from=lookup),
        lambda: acme.query_batch_points("docs", [m.QueryRequest(query=1), m.QueryRequest(query=example)]),
        lambda: acme.query_points_groups("docs", "n", query=example),
    ):
        with pytest.raises(UnexpectedResponse) as caught:
            use()
        assert caught.value.status_code == 404
        assert caught.value.structured()["status"]["error"] == f"Not found: No point with id {example} found"
    assert gateway.audited(role="tenant", status=404)["reason"] == "point_missing"


def test_an_example_of_a_collection_without_a_grant(acme: QdrantClient, gateway: Gateway) -> None:
    with pytest.raises(UnexpectedResponse):
        acme.query_points("docs", query=1, lookup_from=m.LookupLocation(collection="dogs"))
    assert gateway.audited(role="tenant", status=403)["reason"] == "collection"


def test_changes_by_ids(acme: QdrantClient, admin: QdrantClient) -> None:
    others = state(admin, 4, 5, 6, 7)
    acme.set_payload("docs", {"seen": True}, [1, 4, 7, 99])
    acme.set_payload("docs", {"inner": 1}, [1, 4], key="below")
    acme.overwrite_payload("docs", {"over": True}, [2, 5])
    assert state(admin, 1) == [(1, {"n": 1, "tenant": "acme", "seen": True, "below": {"inner": 1}}, [1.0, 0.125])]
    assert state(admin, 2) == [(2, {"over": True, "tenant": "acme"}, [1.0, 0.25])]
    acme.delete_payload("docs", ["seen", "n"], [1, 4])
    acme.clear_payload("docs", [2, 6])
    assert state(admin, 2) == [(2, {"tenant": "acme"}, [1.0, 0.25])]
    acme.clear_payload("docs", m.Filter(must=[m.HasIdCondition(has_id=[1])]))
    assert state(admin, 1) == [(1, {"tenant": "acme"}, [1.0, 0.125])]
    acme.delete_vectors("docs", [""], [3, 6])
    assert [point.vector for point in admin.retrieve("docs", [3], with_vectors=True)] in ([{}], [None])
    acme.batch_update_points(
        "docs",
        [
            m.SetPayloadOperation(set_payload=m.SetPayload(payload={"a": 1}, points=[1, 4])),
            m.ClearPayloadOperation(clear_payload=m.PointIdsList(points=[1, 5])),
            m.DeleteOperation(delete=m.PointIdsList(points=[2, 6, 7])),
        ],
    )
    assert state(admin, 1, 2) == [(1, {"tenant": "acme"}, [1.0, 0.125])]
    acme.delete("docs", [1, 3, 4, 5, 7])
    assert state(admin, 1, 2, 3) == []
    assert state(admin, 4, 5, 6, 7) == others


REFUSED: dict[str, Use] = {
    "with_lookup": lambda client: client.query_points_groups("docs", "n", query=[1.0, 0.0], with_lookup="docs"),
    "another tenant's": lambda client: client.upsert(
        "docs", [m.PointStruct(id=9, vector=[1.0, 0.0], payload={"tenant": "umbrella"})]
    ),
    "give away": lambda client: client.set_payload("docs", {"tenant": "umbrella"}, ALL),
    "unmark": lambda client: client.delete_payload("docs", ["tenant"], ALL),
    "index": lambda client: client.create_payload_index("docs", "n", m.PayloadSchemaType.INTEGER),
    "snapshot": lambda client: client.create_snapshot("docs"),
    "drop": lambda client: client.delete_collection("docs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_confined(acme: QdrantClient, admin: QdrantClient, gateway: Gateway, name: str) -> None:
    before = state(admin, *range(1, 10))
    with pytest.raises(UnexpectedResponse) as caught:
        REFUSED[name](acme)
    assert caught.value.status_code == 403
    assert str(caught.value.structured()["status"]["error"]).startswith("Forbidden: ")
    assert state(admin, *range(1, 10)) == before
    assert gateway.audited(role="tenant", status=403)["reason"] in {"not_confined", "needs_global"}


def test_changes(acme: QdrantClient, admin: QdrantClient) -> None:
    others = state(admin, 4, 5, 6, 7)
    acme.upsert("docs", [m.PointStruct(id=n, vector=[0.0, 9.0], payload={"n": "new"}) for n in (1, 4, 7, 9)])
    ids_and_vectors = m.Batch(ids=[2, 5, 10], vectors=[[0.0, 8.0]] * 3)
    acme.upsert("docs", ids_and_vectors)
    new = {"n": "new", "tenant": "acme"}
    assert state(admin, 1, 9) == [(1, new, [0.0, 9.0]), (9, new, [0.0, 9.0])]
    assert state(admin, 2, 10) == [(2, {"tenant": "acme"}, [0.0, 8.0]), (10, {"tenant": "acme"}, [0.0, 8.0])]
    acme.update_vectors("docs", [m.PointVectors(id=n, vector=[5.0, 5.0]) for n in (3, 6)])
    acme.set_payload("docs", {"seen": True}, ALL)
    acme.overwrite_payload("docs", {"over": True}, m.Filter(must=[m.HasIdCondition(has_id=[3, 6])]))
    acme.delete_payload("docs", ["seen", "n"], m.Filter(must=[m.HasIdCondition(has_id=[1, 4])]))
    assert state(admin, 3) == [(3, {"over": True, "tenant": "acme"}, [5.0, 5.0])]
    assert state(admin, 1) == [(1, {"tenant": "acme"}, [0.0, 9.0])]
    acme.batch_update_points(
        "docs",
        [
            m.UpsertOperation(upsert=m.PointsList(points=[m.PointStruct(id=4, vector=[0.0, 0.0])])),
            m.DeleteOperation(delete=m.FilterSelector(filter=m.Filter(must=[m.HasIdCondition(has_id=[1, 5])]))),
        ],
    )
    assert state(admin, 1) == []
    assert state(admin, 4, 5, 6, 7) == others
    acme.delete("docs", ALL)
    assert admin.count("docs").count == 4
    assert state(admin, 4, 5, 6, 7) == others


def test_a_certificate_without_the_field(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    with Client(gateway, site.client("homeless")) as client:
        response = client.ask("GET", "/collections")
    assert response.status == 403
    assert response.json["status"]["error"] == 'Forbidden: role "tenant" is for certificates with exactly one ou'
    assert gateway.audited(reason="no_tenant")["result"] == "denied"
    assert admin.count("docs").count == 7


def test_what_is_sent_is_the_confined_body(site: Site, upstream: ScriptedUpstream) -> None:
    site.issue("acme", client=True, common_name="tenant-acme", organizational_unit="acme")
    config = site.write_config(upstream.url, roles=ROLES, identities=IDENTITIES)
    with Gateway(config) as gateway, Client(gateway, site.client("acme")) as client:
        path, fields = "/collections/docs/points/scroll", [("content-encoding", "gzip")]
        assert client.ask("POST", path, fields, gzip.compress(b'{"limit": 5}')).status == 200
        for body in (b'{"filter":null,"filter":{}}', b"[]", b"", b'{"filter":[]}'):
            assert client.ask("POST", path, (), body).status == 400
    (request,) = upstream.requests
    assert request.body == b'{"limit":5,"filter":{"must":[{"key":"tenant","match":{"value":"acme"}}]}}'
    assert "content-encoding" not in request.fields
