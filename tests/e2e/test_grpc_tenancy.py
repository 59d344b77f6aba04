"""Two tenants in one collection, over gRPC: each sees and changes its own points, by whichever way it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import grpc as pb
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_upstream import GrpcUpstream, replying
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.qdrant_messages import messages_in
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint
from tlsproxy.wire.protobuf import delimited

KEY = "the-s1gning-key"
DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {
    "admin": {"access": "m"},
    "tenant": {"access": DOCS, "filter": {"tenant": "{ou}"}},
    "reading": {"access": [{"collection": "docs", "access": "r"}], "filter": {"tenant": "{ou}"}},
    "service": {"access": DOCS, "filter": {"tenant": "{claim:tenant}"}},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "tenants", "match": {"cn": "tenant-*"}, "role": "tenant"},
    {"name": "readers", "match": {"cn": "reader-*"}, "role": "reading"},
    {"name": "service", "match": {"cn": "service"}, "role": "service"},
]
SERVICE = {"api_key": KEY, "jwt_rbac": True}
ALL = m.Filter()
GET = "/qdrant.Points/Get"
Use = Callable[[QdrantClient], object]


def issue(site: Site) -> None:
    for name in ("acme", "umbrella"):
        site.issue(name, client=True, common_name=f"tenant-{name}", organizational_unit=name)
    site.issue("reader", client=True, common_name="reader-acme", organizational_unit="acme")
    site.issue("homeless", client=True, common_name="tenant-of-nobody")
    site.issue("service", client=True, common_name="service")


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    issue(site)
    with EmbeddedUpstream() as embedded:
        config = site.write_config(
            embedded.url, grpc=embedded.grpc_url, service=SERVICE, roles=ROLES, identities=IDENTITIES
        )
        with Gateway(config) as running:
            yield running


@pytest.fixture
def admin(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    """Who also makes the collection anew: points 1 to 3 are acme's, 4 to 6 umbrella's, 7 nobody's."""
    with closing(qdrant_by_grpc(QdrantClient, gateway, site)) as client:
        client.delete_collection("docs")
        client.create_collection("docs", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        tenants = {1: "acme", 2: "acme", 3: "acme", 4: "umbrella", 5: "umbrella", 6: "umbrella"}
        marks = {n: {"tenant": tenant} for n, tenant in tenants.items()}
        client.upsert(
            "docs",
            [m.PointStruct(id=n, vector=[1.0, n / 10], payload={"n": n, **marks.get(n, {})}) for n in range(1, 8)],
        )
        yield client


@pytest.fixture
def acme(site: Site, gateway: Gateway, admin: QdrantClient) -> Iterator[QdrantClient]:
    assert admin.count("docs").count == 7
    with closing(qdrant_by_grpc(QdrantClient, gateway, site, "acme")) as client:
        yield client


def ids(points: list[m.ScoredPoint] | list[m.Record]) -> set[object]:
    return {point.id for point in points}


def state(admin: QdrantClient, *numbers: int) -> list[tuple[object, object, object]]:
    found = admin.retrieve("docs", list(numbers), with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in found]


def test_reads(acme: QdrantClient, gateway: Gateway) -> None:
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
    assert [point.id for point in acme.retrieve("docs", [5, 3, 99, 1, 3])] == [3, 1]
    assert acme.retrieve("docs", [4, 7, 99]) == acme.retrieve("docs", []) == []
    assert acme.collection_exists("docs")
    assert [one.name for one in acme.get_collections().collections] == ["docs"]
    record = gateway.audited(api="/qdrant.Points/Facet")
    assert (record["role"], record["collection"], record["grpc_status"]) == ("tenant", "docs", 0)


REFUSED: dict[str, Use] = {
    "with_lookup": lambda client: client.query_points_groups("docs", "n", query=[1.0, 0.0], with_lookup="docs"),
    "another tenant's": lambda client: client.upsert(
        "docs", [m.PointStruct(id=9, vector=[1.0, 0.0], payload={"tenant": "umbrella"})]
    ),
    "give away": lambda client: client.set_payload("docs", {"tenant": "umbrella"}, ALL),
    "below the mark": lambda client: client.set_payload("docs", {"a": 1}, ALL, key="tenant"),
    "unmark": lambda client: client.delete_payload("docs", ["tenant"], ALL),
    "index": lambda client: client.create_payload_index("docs", "n", m.PayloadSchemaType.INTEGER),
    "snapshot": lambda client: client.create_snapshot("docs"),
    "drop": lambda client: client.delete_collection("docs"),
}


def test_a_message_that_cannot_be_read(site: Site, gateway: Gateway) -> None:
    """Two entries of one payload key: a refusal as over REST, with its text."""
    entry = delimited(3, delimited(1, b"a"))
    message = pb.UpsertPoints(collection_name="docs").SerializeToString() + delimited(3, entry + entry)
    with channel(gateway, site, "acme") as opened:
        answered = call(opened, "/qdrant.Points/Upsert", message)
    assert answered.code is grpc.StatusCode.INVALID_ARGUMENT
    record = gateway.audited(grpc_status=3)
    assert (record["result"], record["reason"], record["error"]) == ("denied", "bad_request", answered.text)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_confined(acme: QdrantClient, admin: QdrantClient, gateway: Gateway, name: str) -> None:
    before = state(admin, *range(1, 10))
    with pytest.raises(grpc.RpcError) as caught:
        REFUSED[name](acme)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert str(caught.value.details()).startswith("Forbidden: ")
    assert state(admin, *range(1, 10)) == before
    record = gateway.audited(role="tenant", grpc_status=7)
    assert record["reason"] in {"not_confined", "needs_global"}
    assert (record["result"], record["error"]) == ("denied", caught.value.details())


def test_changes(acme: QdrantClient, admin: QdrantClient) -> None:
    others = state(admin, 4, 5, 6, 7)
    acme.upsert("docs", [m.PointStruct(id=n, vector=[0.0, 9.0], payload={"n": "new"}) for n in (1, 4, 7, 9)])
    acme.upsert("docs", m.Batch(ids=[2, 5, 10], vectors=[[0.0, 8.0]] * 3))
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


def test_changes_by_ids(acme: QdrantClient, admin: QdrantClient) -> None:
    """Of another tenant's points as of missing ones: nothing happens, and nothing is said."""
    others = state(admin, 4, 5, 6, 7)
    every = [1, 4, 7, 99]
    acme.set_payload("docs", {"seen": True}, every)
    assert state(admin, 1)[0][1] == {"n": 1, "tenant": "acme", "seen": True}
    acme.overwrite_payload("docs", {"over": True}, every)
    assert state(admin, 1)[0][1] == {"over": True, "tenant": "acme"}
    acme.delete_payload("docs", ["over"], every)
    acme.clear_payload("docs", [2, 5])
    assert [payload for _, payload, _ in state(admin, 1, 2)] == [{"tenant": "acme"}] * 2
    acme.delete_vectors("docs", [""], every)
    assert state(admin, 1)[0][2] in (None, {}, [])
    acme.batch_update_points(
        "docs",
        [
            m.SetPayloadOperation(set_payload=m.SetPayload(payload={"n": 0}, points=every)),
            m.ClearPayloadOperation(clear_payload=m.PointIdsList(points=[3, 6])),
            m.DeleteOperation(delete=m.PointIdsList(points=[1, 4])),
        ],
    )
    assert [payload for _, payload, _ in state(admin, 1, 3)] == [{"tenant": "acme"}]
    acme.delete("docs", [2, 5, 7, 99])
    assert [point.id for point in admin.scroll("docs", limit=100)[0]] == [3, 4, 5, 6, 7]
    assert state(admin, 4, 5, 6, 7) == others


PAIR = m.ContextPair(positive=1, negative=2)
LOOKUP = m.LookupLocation(collection="docs")


def recommended(*positive: m.ExtendedPointId) -> m.RecommendQuery:
    return m.RecommendQuery(recommend=m.RecommendInput(positive=list(positive)))


def queried(client: QdrantClient, query: m.Query | int | str, **more: object) -> list[tuple[object, float]]:
    answer = client.query_points("docs", query=query, limit=100, **more)
    return [(point.id, round(point.score, 4)) for point in answer.points]


def by_examples(example: int | str) -> dict[str, Use]:
    """Each way to query by a point's vector."""
    discover = m.DiscoverInput(target=example, context=[PAIR])
    return {
        "nearest": lambda client: queried(client, example),
        "mmr": lambda client: queried(client, m.NearestQuery(nearest=example, mmr=m.Mmr(diversity=0.5))),
        "recommend": lambda client: queried(client, recommended(1, example)),
        "discover": lambda client: queried(client, m.DiscoverQuery(discover=discover)),
        "context": lambda client: queried(
            client, m.ContextQuery(context=[PAIR, m.ContextPair(positive=example, negative=1)])
        ),
        "prefetch": lambda client: queried(client, [1.0, 0.0], prefetch=m.Prefetch(query=example, limit=100)),
        "lookup": lambda client: queried(client, example, lookup_from=LOOKUP),
        "batch": lambda client: [
            [point.id for point in answer.points]
            for answer in client.query_batch_points("docs", [m.QueryRequest(query=1), m.QueryRequest(query=example)])
        ],
        "groups": lambda client: [
            group.id for group in client.query_points_groups("docs", "n", query=example, limit=100).groups
        ],
    }


def outcome(client: QdrantClient, use: Use) -> object:
    """The result, or the kind and text of the refusal."""
    try:
        return use(client)
    except grpc.RpcError as error:
        return error.code(), error.details()
    except UnexpectedResponse as error:
        return OF_STATUS[error.status_code or 0], error.structured()["status"]["error"]


OF_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
}
MISSING = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"


@pytest.mark.parametrize("example", [3, 4, 7, 99, MISSING])
def test_queries_by_examples_over_both_apis(
    site: Site, gateway: Gateway, acme: QdrantClient, example: int | str
) -> None:
    """The example is one of its own; another tenant's is a missing one."""
    with closing(qdrant(gateway, site.client("acme"))) as by_rest:
        for name, use in by_examples(example).items():
            by_grpc = outcome(acme, use)
            assert by_grpc == outcome(by_rest, use), name
            if example == 3:
                assert isinstance(by_grpc, list), name
            else:
                assert by_grpc == (grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {example} found"), name
    if example != 3:
        record = gateway.audited(role="tenant", grpc_status=5)
        assert (record["result"], record["reason"]) == ("denied", "point_missing")


@pytest.mark.usefixtures("admin")
def test_older_methods_by_examples(site: Site, gateway: Gateway) -> None:
    def messages(number: int) -> dict[str, Any]:
        asked = pb.PointId(num=number)
        inner = pb.RecommendPoints(collection_name="docs", positive=[asked], limit=100)
        target = pb.TargetVector(single=pb.VectorExample(id=asked))
        discover = pb.DiscoverPoints(collection_name="docs", target=target, limit=100)
        groups = pb.RecommendPointGroups(
            collection_name="docs", positive=[asked], group_by="n", limit=100, group_size=1
        )
        return {
            "Recommend": inner,
            "RecommendBatch": pb.RecommendBatchPoints(collection_name="docs", recommend_points=[inner]),
            "RecommendGroups": groups,
            "Discover": discover,
            "DiscoverBatch": pb.DiscoverBatchPoints(collection_name="docs", discover_points=[discover]),
        }

    missing = {
        number: Answered(grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {number} found") for number in (4, 99)
    }
    with channel(gateway, site, "acme") as opened:
        for name, message in messages(1).items():
            answered = call(opened, f"/qdrant.Points/{name}", message.SerializeToString())
            assert answered.code is grpc.StatusCode.OK, answered
            found = getattr(pb, f"{name}Response").FromString(answered.message)
            assert set(numbers_in(found)) == {2, 3}, name
        for number, refused in missing.items():
            for name, message in messages(number).items():
                assert call(opened, f"/qdrant.Points/{name}", message.SerializeToString()) == refused


def numbers_in(message: Any) -> list[int]:
    if message.DESCRIPTOR.name == "PointId":
        return [message.num]
    return [number for one in messages_in(message) for number in numbers_in(one)]


def test_an_example_of_a_collection_without_a_grant(acme: QdrantClient, gateway: Gateway) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        acme.query_points("docs", query=1, lookup_from=m.LookupLocation(collection="dogs"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert gateway.audited(role="tenant", grpc_status=7)["reason"] == "collection"


def test_a_tenant_that_only_reads(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    with closing(qdrant_by_grpc(QdrantClient, gateway, site, "reader")) as reader:
        assert ids(reader.scroll("docs")[0]) == {1, 2, 3}
        with pytest.raises(grpc.RpcError) as caught:
            reader.delete("docs", ALL)
    assert caught.value.details() == "Forbidden: Write access to collection docs is required"
    assert admin.count("docs").count == 7


def test_the_token_says_whose_points(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    """One certificate and one connection for all tenants: the token beside each call counts, and no earlier one."""
    message = pb.CountPoints(collection_name="docs").SerializeToString()

    def counted(opened: grpc.Channel, *metadata: tuple[str, str]) -> int:
        answered = call(opened, "/qdrant.Points/Count", message, *metadata)
        assert answered.code is grpc.StatusCode.OK, answered
        return int(pb.CountResponse.FromString(answered.message).result.count)

    def token(**claims: object) -> tuple[str, str]:
        return "api-key", mint(KEY, {"access": "m", **claims})

    with channel(gateway, site, "service") as opened:
        for tenant, count in (("acme", 3), ("umbrella", 3), ("nobody", 0), ("acme", 3)):
            assert counted(opened, token(tenant=tenant)) == count
        for nobody in ([], [token()], [token(tenant="")], [token(tenant=1.5)], [("api-key", KEY)]):
            assert call(opened, "/qdrant.Points/Count", message, *nobody).code is grpc.StatusCode.PERMISSION_DENIED
        assert counted(opened, token(tenant="acme")) == 3
    _, key = token(tenant="umbrella")
    with closing(qdrant_by_grpc(QdrantClient, gateway, site, "service", api_key=key)) as umbrella:
        umbrella.upsert("docs", [m.PointStruct(id=n, vector=[0.0, 9.0]) for n in (1, 9)])
        umbrella.delete("docs", m.Filter(must_not=[m.HasIdCondition(has_id=[9])]))
    left = {point.id: (point.payload or {}).get("tenant") for point in admin.scroll("docs", limit=100)[0]}
    assert left == {1: "acme", 2: "acme", 3: "acme", 7: None, 9: "umbrella"}


def test_a_certificate_without_the_field(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    with channel(gateway, site, "homeless") as opened:
        assert call(opened, "/qdrant.Collections/List") == Answered(
            grpc.StatusCode.PERMISSION_DENIED,
            'Forbidden: role "tenant" is for certificates with exactly one ou',
        )
    assert gateway.audited(reason="no_tenant")["result"] == "denied"
    assert admin.count("docs").count == 7


def test_what_is_sent_is_the_confined_message(
    site: Site, shared_upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    issue(site)
    config = site.write_config(
        shared_upstream.url, grpc=grpc_upstream.url, service=SERVICE, roles=ROLES, identities=IDENTITIES
    )
    asked = pb.ScrollPoints(collection_name="docs", limit=5)
    with Gateway(config) as gateway, channel(gateway, site, "acme") as opened:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            message = asked.SerializeToString()
            answered = call(opened, "/qdrant.Points/Scroll", message, compression=compression)
            assert answered.code is grpc.StatusCode.OK
        twice = asked.SerializeToString() + b"\x12\x00\x12\x00"
        assert call(opened, "/qdrant.Points/Scroll", twice).code is grpc.StatusCode.INVALID_ARGUMENT
    keyword = pb.FieldCondition(key="tenant", match=pb.Match(keyword="acme"))
    confined = pb.ScrollPoints(collection_name="docs", limit=5, filter=pb.Filter(must=[pb.Condition(field=keyword)]))
    arrived = [one for sent in grpc_upstream.calls for one in sent.messages]
    assert [pb.ScrollPoints.FromString(one) for one in arrived] == [confined, confined]
    assert "grpc-encoding" not in grpc_upstream.calls[-1].metadata


def test_a_retrieval_goes_up_as_a_scroll(
    site: Site, shared_upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    issue(site)
    config = site.write_config(
        shared_upstream.url, grpc=grpc_upstream.url, service=SERVICE, roles=ROLES, identities=IDENTITIES
    )
    three, one, nine = (pb.PointId(num=number) for number in (3, 1, 9))
    found = [pb.RetrievedPoint(id=pb.PointId(num=number)) for number in (1, 3)]
    grpc_upstream.answer = replying(pb.ScrollResponse(result=found, time=0.5).SerializeToString())
    asked = pb.GetPoints(collection_name="docs", ids=[three, one, three, nine], timeout=7)
    with Gateway(config) as gateway, channel(gateway, site, "acme") as opened:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            answered = call(opened, GET, asked.SerializeToString(), compression=compression)
            assert answered.code is grpc.StatusCode.OK, answered
            retrieved = pb.GetResponse.FromString(answered.message)
            assert retrieved == pb.GetResponse(result=reversed(found), time=0.5)
        with channel(gateway, site) as everybodys:
            call(everybodys, GET, asked.SerializeToString())
        assert gateway.audited(api=GET, role="tenant")["method"] == "retrieve"
    assert [sent.method for sent in grpc_upstream.calls] == ["/qdrant.Points/Scroll"] * 2 + [GET]
    has_id = pb.Condition(has_id=pb.HasIdCondition(has_id=[three, one, nine]))
    keyword = pb.Condition(field=pb.FieldCondition(key="tenant", match=pb.Match(keyword="acme")))
    without = pb.WithPayloadSelector(enable=False)
    scroll = pb.ScrollPoints.FromString(grpc_upstream.calls[0].messages[0])
    assert scroll == pb.ScrollPoints(
        collection_name="docs", filter=pb.Filter(must=[has_id, keyword]), limit=3, with_payload=without, timeout=7
    )


# Large and many


async def work(client: AsyncQdrantClient, tenant: str, first: int) -> None:
    """Uploads of a megabyte among small calls, all on one connection."""

    async def upload(number: int) -> None:
        text = tenant * (1_000_000 // len(tenant))
        await client.upsert("docs", [m.PointStruct(id=first + number, vector=[1.0, 0.0], payload={"text": text})])

    async def look() -> None:
        points, _ = await client.scroll("docs", limit=100, with_payload=["tenant"])
        assert {(point.payload or {}).get("tenant") for point in points} == {tenant}

    await asyncio.gather(*(upload(number) if number % 3 == 0 else look() for number in range(30)))
    assert (await client.count("docs")).count == 3 + 10
    points, _ = await client.scroll("docs", limit=100)
    assert {(point.payload or {})["tenant"] for point in points} == {tenant}
    texts = [(point.payload or {}).get("text", "") for point in points]
    assert sorted(map(len, texts)) == [0] * 3 + [1_000_000 // len(tenant) * len(tenant)] * 10


def test_many_large_calls_of_two_tenants_at_once(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    async def both() -> None:
        acme = qdrant_by_grpc(AsyncQdrantClient, gateway, site, "acme")
        umbrella = qdrant_by_grpc(AsyncQdrantClient, gateway, site, "umbrella")
        try:
            await asyncio.gather(work(acme, "acme", 100), work(umbrella, "umbrella", 200))
        finally:
            await acme.close()
            await umbrella.close()

    asyncio.run(asyncio.wait_for(both(), 50))
    assert admin.count("docs").count == 7 + 20
