"""A query policy means the same over REST and gRPC: one answer, or one refusal, for each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient
from qdrant_client import grpc as pb
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_upstream import GrpcUpstream, failing, replying
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.raw_request import Client
from support.site import Site

Use = Callable[[QdrantClient], Any]
QUERIES = {
    "max_limit": 5,
    "max_offset": 10,
    "max_prefetch": 2,
    "exact": "forbid",
    "timeout": 10,
    "vectors": "hide",
    "payload": {"hide": ["salary", "contact.email"]},
}
ROLES = {
    "admin": {"access": "m"},
    "analyst": {"access": [{"collection": "people", "access": "rw"}], "queries": QUERIES},
    "reader": {"access": "r", "queries": QUERIES},
    "looker": {"access": [{"collection": "people", "access": "r"}], "queries": QUERIES},
    "tenant": {
        "access": [{"collection": "people", "access": "rw"}],
        "filter": {"team": "a"},
        "queries": {"payload": {"hide": ["team", "salary"]}, "vectors": "hide"},
    },
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    *({"name": name, "match": {"cn": name}, "role": name} for name in ("analyst", "reader", "looker", "tenant")),
]
SECRETS = ("7777", "@example.org", "0.125")
"""Parts of every hidden value, and of every vector."""
NEAR = [1.0, 1.0]


def person(number: int) -> m.PointStruct:
    mail = {"email": f"p{number}@example.org", "phone": number}
    payload = {
        "n": number,
        "name": f"p{number}",
        "salary": 77770 + number,
        "team": "ab"[number % 2],
        "contact": mail if number % 2 else [mail, {"email": "second@example.org"}],
    }
    return m.PointStruct(id=number, vector=[0.125, number / 1024], payload=payload)


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in ("analyst", "reader", "looker", "tenant"):
        site.issue(name, client=True, common_name=name)
    with EmbeddedUpstream() as embedded:
        config = site.write_config(embedded.url, grpc=embedded.grpc_url, roles=ROLES, identities=IDENTITIES)
        with Gateway(config) as running, closing(qdrant(running, site.client("admin"))) as admin:
            admin.create_collection("people", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
            admin.upsert("people", [person(n) for n in range(1, 9)])
            yield running


Clients = dict[str, tuple[QdrantClient, QdrantClient]]


@pytest.fixture(scope="module")
def clients(site: Site, gateway: Gateway) -> Iterator[Clients]:
    """Of each role: over REST, over gRPC."""
    made = {
        name: (qdrant(gateway, site.client(name)), qdrant_by_grpc(QdrantClient, gateway, site, name))
        for name in ("analyst", "reader", "looker", "tenant")
    }
    yield made
    for one in (client for pair in made.values() for client in pair):
        one.close()


def outcome(use: Use, client: QdrantClient) -> Any:
    """The answer, or the text of a refusal."""
    try:
        return use(client)
    except UnexpectedResponse as error:
        return (error.status_code == 403, error.structured()["status"]["error"])
    except grpc.RpcError as error:
        refused = Answered.by(error)
        return (refused.code is grpc.StatusCode.PERMISSION_DENIED, refused.text)


def same(clients: Clients, role: str, use: Use, secrets: tuple[str, ...] = SECRETS) -> Any:
    by_rest, by_grpc = (outcome(use, client) for client in clients[role])
    assert by_rest == by_grpc
    assert not any(secret in str(by_grpc) for secret in secrets)
    return by_grpc


def by_key(key: str) -> m.Filter:
    return m.Filter(must=[m.FieldCondition(key=key, match=m.MatchValue(value=1))])


def query(**options: Any) -> Use:
    return lambda client: client.query_points("people", NEAR, **options).points


def scroll(*conditions: Any, **options: Any) -> Use:
    chosen = m.Filter(must=list(conditions))
    return lambda client: client.scroll("people", scroll_filter=chosen, limit=5, **options)[0]


READS: dict[str, Use] = {
    "retrieve": lambda client: client.retrieve("people", [1, 2], with_vectors=True),
    "retrieve hidden keys": lambda client: client.retrieve(
        "people", [1, 2], with_payload=["salary", "contact.email", "contact", "name"]
    ),
    "scroll": lambda client: client.scroll("people", limit=5, with_vectors=[""])[0],
    "scroll without": lambda client: client.scroll(
        "people", limit=5, with_payload=m.PayloadSelectorExclude(exclude=["name"])
    )[0],
    "scroll by key": scroll(m.FieldCondition(key="contact.phone", range=m.Range(gte=3))),
    "query": query(limit=5, with_vectors=True),
    "query of none": query(limit=5, with_payload=False),
    "batch": lambda client: client.query_batch_points(
        "people", [m.QueryRequest(query=NEAR, limit=2, with_payload=True, with_vector=True)] * 2
    ),
    "groups": lambda client: (
        client.query_points_groups(
            "people", "n", NEAR, limit=2, group_size=2, with_payload=True, with_vectors=True, with_lookup="people"
        ).groups
    ),
    "count": lambda client: client.count("people", exact=False).count,
    "facet": lambda client: client.facet("people", "team", limit=5).hits,
    "prefetch": query(prefetch=[m.Prefetch(query=NEAR, limit=3)] * 2, limit=3),
    "formula": lambda client: (
        client.query_points(
            "people",
            prefetch=m.Prefetch(query=NEAR, limit=5),
            query=m.FormulaQuery(formula=m.SumExpression(sum=["$score", "n"])),
            limit=5,
        ).points
    ),
}


@pytest.mark.parametrize("name", READS)
def test_answers_are_the_same(clients: Clients, name: str) -> None:
    for role in ("analyst", "reader"):
        answer = same(clients, role, READS[name])
        assert not isinstance(answer, tuple)
        assert answer


PATHS = ("salary", "salary.x", "contact", "contact.email", "contact[].email", '"contact"."email"')
NOT_IN_A_BATCH = "An operation of this batch is not available under your role's query policy"
REFUSED: dict[str, tuple[Use, str]] = {
    "limit": (query(limit=6), 'Limit exceeded 6 > 5 for "limit"'),
    "offset": (query(limit=1, offset=11), 'Limit exceeded 11 > 10 for "offset"'),
    "timeout": (query(limit=1, timeout=11), 'Limit exceeded 11 > 10 for "timeout"'),
    "prefetches": (query(prefetch=[m.Prefetch(query=NEAR, limit=1)] * 3, limit=1), '3 > 2 for "prefetch"'),
    "limit of a prefetch": (query(prefetch=m.Prefetch(query=NEAR, limit=6), limit=1), '6 > 5 for "limit"'),
    "ids": (lambda client: client.retrieve("people", [1, 2, 3, 4, 5, 6]), '6 > 5 for "ids"'),
    "groups": (
        lambda client: client.query_points_groups("people", "n", NEAR, limit=3, group_size=2),
        '6 > 5 for "limit"',
    ),
    "matrix": (lambda client: client.search_matrix_pairs("people", sample=3, limit=2), '6 > 5 for "limit"'),
    "candidates": (
        lambda client: client.query_points(
            "people", m.NearestQuery(nearest=NEAR, mmr=m.Mmr(diversity=0.5, candidates_limit=6)), limit=1
        ),
        '6 > 5 for "candidates_limit"',
    ),
    "exact": (query(limit=1, search_params=m.SearchParams(exact=True)), "Exact search disabled!"),
    "exact count": (lambda client: client.count("people", exact=True), "Exact search disabled!"),
    "in a batch": (
        lambda client: client.query_batch_points("people", [m.QueryRequest(query=NEAR, limit=n) for n in (5, 6)]),
        '6 > 5 for "limit"',
    ),
    **{path: (scroll(m.FieldCondition(key=path, match=m.MatchValue(value=1))), "is hidden") for path in PATHS},
    "is empty": (scroll(m.IsEmptyCondition(is_empty=m.PayloadField(key="salary"))), "is hidden"),
    "is null": (scroll(m.IsNullCondition(is_null=m.PayloadField(key="salary"))), "is hidden"),
    "nested": (scroll(m.NestedCondition(nested=m.Nested(key="contact", filter=by_key("email")))), "is hidden"),
    "at depth": (scroll(m.Filter(should=[m.Filter(must_not=by_key("salary").must)])), "is hidden"),
    "least": (
        scroll(m.Filter(min_should=m.MinShould(conditions=by_key("salary").must or [], min_count=1))),
        "is hidden",
    ),
    "filter of a prefetch": (
        query(prefetch=m.Prefetch(query=NEAR, limit=1, filter=by_key("salary")), limit=1),
        "is hidden",
    ),
    "order": (lambda client: client.scroll("people", limit=1, order_by="salary"), "is hidden"),
    "query by order": (
        lambda client: client.query_points("people", m.OrderByQuery(order_by="salary"), limit=1),
        "is hidden",
    ),
    "formula": (
        lambda client: client.query_points(
            "people",
            m.FormulaQuery(formula=m.MultExpression(mult=["$score", m.NegExpression(neg="salary")])),
            limit=1,
        ),
        "is hidden",
    ),
    "condition of a formula": (
        lambda client: client.query_points(
            "people", m.FormulaQuery(formula=m.SumExpression(sum=(by_key("salary").must or [])[:1])), limit=1
        ),
        "is hidden",
    ),
    "text": (lambda client: client.query_points("people", m.TextQuery(text="7"), using="salary", limit=1), "is hidden"),
    "facet": (lambda client: client.facet("people", "salary", limit=1), "is hidden"),
    "group by": (
        lambda client: client.query_points_groups("people", "contact.email", NEAR, limit=1, group_size=1),
        "is hidden",
    ),
    "set": (lambda client: client.set_payload("people", {"salary": 1}, [1]), "is hidden"),
    "set below": (lambda client: client.set_payload("people", {"email": 1}, [1], key="contact"), "is hidden"),
    "upsert": (
        lambda client: client.upsert(
            "people", [m.PointStruct(id=9, vector=NEAR, payload={"contact": [{"email": "x"}]})]
        ),
        "is hidden",
    ),
    "delete a key": (lambda client: client.delete_payload("people", ["salary"], [1]), "is hidden"),
    "delete": (lambda client: client.delete("people", by_key("salary")), "is hidden"),
    "batch of changes": (
        lambda client: client.batch_update_points(
            "people", [m.SetPayloadOperation(set_payload=m.SetPayload(payload={"salary": 1}, points=[1]))]
        ),
        "is hidden",
    ),
    "clear in a batch": (
        lambda client: client.batch_update_points(
            "people", [m.ClearPayloadOperation(clear_payload=m.PointIdsList(points=[1]))]
        ),
        NOT_IN_A_BATCH,
    ),
    "overwrite": (lambda client: client.overwrite_payload("people", {"n": 1}, [1]), "not available under your role's"),
    "clear": (lambda client: client.clear_payload("people", [1]), "not available under your role's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_same(clients: Clients, name: str) -> None:
    use, text = REFUSED[name]
    refused, told = same(clients, "analyst", use)
    assert refused
    assert told.startswith("Forbidden: ")
    assert text in told


def test_no_time_at_all_is_malformed(site: Site, gateway: Gateway) -> None:
    """As Qdrant has it over REST, where a number of seconds is at least one."""
    # qdrant-client itself would not wait for either answer.
    with Client(gateway, site.client("analyst")) as connection:
        refused = connection.ask("POST", "/collections/people/points/query?timeout=0", [], b'{"limit": 1}')
    assert refused.status == 400
    asked = pb.QueryPoints(collection_name="people", limit=1, timeout=0).SerializeToString()
    with channel(gateway, site, "analyst") as opened:
        assert call(opened, "/qdrant.Points/Query", asked).code is grpc.StatusCode.INVALID_ARGUMENT


def test_defaults_are_what_may_be_had(site: Site, gateway: Gateway, clients: Clients) -> None:
    """A count that does not say whether it is exact, and the number of points where no limit is given."""
    asked = {
        "Scroll": (pb.ScrollPoints(collection_name="people"), pb.ScrollResponse),
        "Query": (pb.QueryPoints(collection_name="people", query=by_vector()), pb.QueryResponse),
    }
    with channel(gateway, site, "analyst") as opened:
        for name, (message, response) in asked.items():
            answered = call(opened, f"/qdrant.Points/{name}", message.SerializeToString())
            found = response.FromString(answered.message)
            assert len(found.result) == 5
            assert not any(point.HasField("vectors") for point in found.result)
            assert all(("name" in point.payload) == (name == "Scroll") for point in found.result)
            assert not found.HasField("usage")
    record = gateway.audited(grpc_status=7, method="facet")
    assert (record["result"], record["reason"]) == ("denied", "query_policy")
    assert record["error"].startswith("Forbidden: ")
    assert same(clients, "reader", lambda client: client.get_collection("people").payload_schema) == {}
    (bare,) = clients["reader"][1].retrieve("people", [1], with_payload=False)
    assert bare.payload == {}


def by_vector() -> pb.Query:
    return pb.Query(nearest=pb.VectorInput(dense=pb.DenseVector(data=NEAR)))


def test_a_tenant_with_a_policy(clients: Clients) -> None:
    """Its condition is on a key that it does not see, and may not ask for."""
    hidden = ("team", "7777", "0.125")
    points = same(clients, "tenant", lambda client: client.scroll("people", limit=50, with_vectors=True)[0], hidden)
    assert [point.id for point in points] == [2, 4, 6, 8]
    others = scroll(m.FieldCondition(key="team", match=m.MatchValue(value="b")))
    assert "is hidden" in str(same(clients, "tenant", others, ()))
    near = same(clients, "tenant", lambda client: client.query_points("people", 2, limit=9).points, hidden)
    assert [point.id for point in near] == [8, 6, 4]
    found = same(clients, "tenant", lambda client: client.retrieve("people", [3, 4, 2], with_vectors=True), hidden)
    assert [point.id for point in found] == [4, 2]


def test_files_of_shards_are_not_read(site: Site, gateway: Gateway) -> None:
    for client in ("analyst", "reader"):
        with channel(gateway, site, client) as opened:
            answered = call(opened, "/qdrant.StorageRead/ListFiles", b"\x0a\x06people")
        assert answered.code is grpc.StatusCode.PERMISSION_DENIED
        assert gateway.audited(role=client, grpc_status=7)["reason"] == "query_policy"


POINT = pb.RetrievedPoint(
    id=pb.PointId(num=1),
    payload={"salary": pb.Value(integer_value=77771), "name": pb.Value(string_value="p1")},
    vectors=pb.VectorsOutput(vector=pb.VectorOutput(data=[0.125])),
)
ANSWER = pb.GetResponse(result=[POINT], time=0.5, usage=pb.Usage())


def test_what_is_sent_and_what_may_come_back(site: Site, shared_upstream: Any) -> None:
    """A new field is removed; an answer that cannot be read is none; an error is as it was."""
    asked = pb.GetPoints(collection_name="people", ids=[pb.PointId(num=1)]).SerializeToString()
    whole = ANSWER.SerializeToString()
    with GrpcUpstream() as upstream:
        config = site.write_config(shared_upstream.url, grpc=upstream.url, roles=ROLES, identities=IDENTITIES)
        with Gateway(config) as gateway, channel(gateway, site, "reader") as opened:
            upstream.answer = replying(whole + b"\x82\x01\x04\xff\xff\xff\xff")
            answered = call(opened, "/qdrant.Points/Get", asked, compression=grpc.Compression.Gzip)
            shown = pb.RetrievedPoint(id=pb.PointId(num=1), payload={"name": pb.Value(string_value="p1")})
            assert pb.GetResponse.FromString(answered.message) == pb.GetResponse(result=[shown], time=0.5)
            for answer in (replying(whole[:-3] + b"\x0a\x05"), replying(whole, whole), replying()):
                upstream.answer = answer
                assert call(opened, "/qdrant.Points/Get", asked).code is grpc.StatusCode.UNAVAILABLE
            upstream.answer = failing(grpc.StatusCode.NOT_FOUND, "Not found: Collection")
            assert call(opened, "/qdrant.Points/Get", asked) == Answered(
                grpc.StatusCode.NOT_FOUND, "Not found: Collection"
            )
    for one in upstream.calls:
        assert {"grpc-encoding", "grpc-accept-encoding"} & {*one.metadata} == set()
        sent = pb.GetPoints.FromString(one.messages[0])
        assert (sent.timeout, sent.with_vectors.enable) == (10, False)
        assert not sent.HasField("with_payload")


def other(client: QdrantClient) -> Any:
    prefetch = m.Prefetch(query=1, limit=9, lookup_from=m.LookupLocation(collection="other"))
    return client.query_points("people", prefetch=prefetch, limit=9)


BY_RIGHTS: dict[str, tuple[str, Use]] = {
    "clear elsewhere": ("analyst", lambda client: client.clear_payload("other", [1])),
    "overwrite as a reader": ("reader", lambda client: client.overwrite_payload("people", {"n": 1}, [1])),
    "change as a reader of one": ("looker", lambda client: client.clear_payload("people", [1])),
    "query elsewhere": ("analyst", lambda client: client.query_points("other", NEAR, limit=9)),
    "vectors of elsewhere": ("analyst", other),
    "delete the collection": ("analyst", lambda client: client.delete_collection("people")),
}


@pytest.mark.parametrize("name", BY_RIGHTS)
def test_rights_come_before_the_policy(gateway: Gateway, clients: Clients, name: str) -> None:
    role, use = BY_RIGHTS[name]
    assert same(clients, role, use)[0]
    by_rest = gateway.audited(role=role, status=403)
    by_grpc = gateway.audited(role=role, grpc_status=7, method=by_rest["method"])
    assert by_rest["reason"] == by_grpc["reason"]
    assert by_rest["reason"] in {"collection", "needs_global", "needs_manage", "needs_write"}
