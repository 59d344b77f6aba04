"""A tenant learns nothing of others from the numbers of an answer, and changes nothing by a mark that it shares.

Two upstreams stand behind the gateway: one that keeps what it is sent, and an embedded Qdrant that counts and scores.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
from support.tenant_roles import IDENTITIES, ROLES
from support.upstream import Connection, Received, ScriptedUpstream

MINE = {"key": "tenant", "match": {"value": "acme"}}
ONLY_MINE = {"must": [MINE]}
CORPUS = {"corpus": ONLY_MINE}
RESCORED = {"quantization": {"rescore": True}}
ONLY_MINE_BY_GRPC = pb.Filter(
    must=[pb.Condition(field=pb.FieldCondition(key="tenant", match=pb.Match(keyword="acme")))]
)


# What goes upstream


class Qdrants:
    """The two APIs of a Qdrant that keeps what it is sent. ``words`` and ``splade`` are its sparse vectors, the first
    with IDF, and ``bytes``, whose weights are coded; ``coded`` is a dense one that is quantized.
    """

    def __init__(self, site: Site, release: str) -> None:
        self.site = site
        self.release = release
        self.scripted = b""
        self.rest = ScriptedUpstream(answer=self._answer)
        self.grpc = GrpcUpstream()

    def _answer(self, connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        if self.scripted and not request.line.startswith("GET "):
            connection.sock.sendall(self.scripted)
            return
        answer: dict[str, Any] = {"result": {}, "status": "ok", "time": 0.0}
        if request.line.startswith("GET / "):
            answer = {"title": "qdrant - vector search engine", "version": self.release}
        elif request.line.startswith("GET /collections/docs "):
            sparse = {"words": {"modifier": "idf"}, "splade": {"index": {"on_disk": False}}}
            sparse["bytes"] = {"index": {"datatype": "uint8"}}
            coded = {"size": 2, "quantization_config": {"scalar": {"type": "int8"}}}
            vectors = {"": {"size": 2}, "coded": coded}
            answer["result"] = {"config": {"params": {"vectors": vectors, "sparse_vectors": sparse}}}
        body = json.dumps(answer).encode()
        connection.sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    @contextmanager
    def behind(self) -> Iterator[Qdrants]:
        with self.rest, self.grpc:
            config = self.site.write_config(self.rest.url, grpc=self.grpc.url, roles=ROLES, identities=IDENTITIES)
            with (
                Gateway(config) as self.gateway,
                Client(self.gateway, self.site.client("acme")) as self.client,
                channel(self.gateway, self.site, "acme") as self.channel,
            ):
                yield self

    def sent(self, path: str, body: Any, *fields: tuple[str, str]) -> Any:
        """What came of this request upstream; or the status and text of its refusal."""
        before = len(self.rest.requests)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.client.ask("POST", f"/collections/docs/{path}", list(fields), content)
        if answer.status != 200:
            assert all(one.line.startswith("GET ") for one in self.rest.requests[before:])
            return answer.status, answer.json["status"]["error"]
        return json.loads(self.rest.requests[-1].body)

    def called(self, method: str, message: Any) -> Any:
        """The same of a call, of which the message's kind is given back."""
        message.collection_name = "docs"
        before = len(self.grpc.calls)
        answer = call(self.channel, f"/qdrant.Points/{method}", message.SerializeToString())
        if answer.code is not grpc.StatusCode.OK:
            assert not [one for sent in self.grpc.calls[before:] for one in sent.messages]
            return answer
        (came,) = self.grpc.calls[-1].messages
        return type(message).FromString(came)


def qdrants(site: Site, release: str) -> Iterator[Qdrants]:
    site.issue("acme", client=True, common_name="tenant-acme", organizational_unit="acme")
    with Qdrants(site, release).behind() as running:
        yield running


@pytest.fixture(scope="module")
def latest(site: Site) -> Iterator[Qdrants]:
    yield from qdrants(site, "1.20.0")


@pytest.fixture(scope="module")
def old(site: Site) -> Iterator[Qdrants]:
    yield from qdrants(site, "1.18.3")


COPIES = {"should": [{"key": "email", "match": {"value": "ceo@other.example"}}] * 2000}


@pytest.mark.parametrize("exact", [{}, {"exact": False}, {"exact": None}, {"exact": True}, {"exact": 0}])
def test_no_count_is_an_estimate(latest: Qdrants, exact: dict[str, Any]) -> None:
    """An estimate is made over all points: 2,000 copies of a condition tell whether somebody else has an address."""
    for body in ({"filter": COPIES, **exact}, {**exact, "filter": {"must": [{"key": "n", "range": {"gte": 3}}]}}):
        assert latest.sent("points/count", body)["exact"] is True
        assert latest.sent("facet", {"key": "n", **body})["exact"] is True
    packed = gzip.compress(json.dumps({"filter": COPIES, **exact}).encode())
    assert latest.sent("points/count", packed, ("content-encoding", "gzip"))["exact"] is True


def test_no_count_is_an_estimate_by_grpc(latest: Qdrants) -> None:
    email = pb.FieldCondition(key="email", match=pb.Match(keyword="ceo@other.example"))
    copies = pb.Filter(should=[pb.Condition(field=email)] * 2000)
    for method, kind in (("Count", pb.CountPoints), ("Facet", pb.FacetCounts)):
        for exact in (None, False, True):
            assert latest.called(method, kind(filter=copies, exact=exact)).exact is True


def test_groups_are_exact_at_every_level(latest: Qdrants) -> None:
    below = {"query": [0.5], "params": {"exact": False, "hnsw_ef": 4}}
    sent = latest.sent("points/query/groups", {"group_by": "n", "query": [0.5], "prefetch": [below]})
    assert sent["params"] == {"exact": True, **RESCORED}
    assert sent["prefetch"][0]["params"] == {"exact": True, "hnsw_ef": 4, **RESCORED}
    assert (
        latest.sent("points/search/groups", {"group_by": "n", "vector": [0.5], "limit": 1})["params"]["exact"] is True
    )
    called = latest.called("QueryGroups", pb.QueryPointGroups(prefetch=[pb.PrefetchQuery()], group_by="n"))
    assert called.params.exact
    assert called.prefetch[0].params.exact
    assert latest.called("SearchGroups", pb.SearchPointGroups(vector=[0.5])).params.exact


def test_which_segments_are_indexed_cannot_be_told(latest: Qdrants) -> None:
    params = {"indexed_only": True, "hnsw_ef": 4}
    assert latest.sent("points/query", {"query": [0.5], "params": params})["params"] == {"hnsw_ef": 4, **RESCORED}
    called = latest.called("Search", pb.SearchPoints(params=pb.SearchParams(indexed_only=True, hnsw_ef=4)))
    assert called.params == pb.SearchParams(hnsw_ef=4)


# Words

SPARSE = {"indices": [1, 7], "values": [1.0, 0.5]}
DOCUMENT = {"text": "a word", "model": "qdrant/bm25"}
WORDY: dict[str, Any] = {
    "sparse": {"query": SPARSE, "using": "words"},
    "nearest": {"query": {"nearest": SPARSE}, "using": "words"},
    "diverse": {"query": {"nearest": SPARSE, "mmr": {"diversity": 0.5}}, "using": "words"},
    "a document": {"query": DOCUMENT, "using": "words"},
    "nearest document": {"query": {"nearest": DOCUMENT}, "using": "words"},
    "indices and values by position": {"query": [[1, 7], [1.0, 0.5]], "using": "words"},
    "text": {"query": {"text": "a word"}, "using": "title"},
    "text with scoring": {"query": {"text": {"query": "a word", "scoring": {"bm25": {"b": 0.5}}}}, "using": "title"},
}
CLAIMS: list[Any] = [
    {},
    {"params": None},
    {"params": {"idf": None}},
    {"params": {"idf": "global"}},
    {"params": {"idf": {}}},
    {"params": {"idf": {"corpus": None}}},
    {"params": {"idf": {"corpus": {}}}},
]


def levels(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield request
    below = request.get("prefetch") or []
    for one in below if isinstance(below, list) else [below]:
        yield from levels(one)


@pytest.mark.parametrize("kind", WORDY)
def test_words_are_counted_over_ones_own_points(latest: Qdrants, kind: str) -> None:
    """At the top, below it, in batches and groups, whatever the caller says of the points to count over."""
    asked = [WORDY[kind] | claim for claim in CLAIMS]
    for one in asked:
        assert latest.sent("points/query", one)["params"]["idf"] == CORPUS
    nested = {"query": {"fusion": "rrf"}, "prefetch": [*asked, {"prefetch": asked[0], "query": [0.5]}]}
    for path, body in (
        ("points/query", nested),
        ("points/query/groups", nested | {"group_by": "n"}),
        ("points/query/batch", {"searches": [nested, *asked]}),
    ):
        sent = latest.sent(path, body)
        found = [one for request in sent.get("searches", [sent]) for one in levels(request)]
        wordy = [one for one in found if one.get("query") == WORDY[kind]["query"]]
        assert len(wordy) >= len(asked) + 1
        assert all(one["params"]["idf"] == CORPUS for one in wordy)


def test_what_is_compressed_is_confined_alike(latest: Qdrants) -> None:
    body = gzip.compress(json.dumps(WORDY["sparse"] | {"params": {"idf": "global", "indexed_only": True}}).encode())
    sent = latest.sent("points/query", body, ("content-encoding", "gzip"))
    assert sent["params"] == {"idf": CORPUS}
    assert "content-encoding" not in latest.rest.requests[-1].fields
    sparse = pb.Query(nearest=pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0])))
    message = pb.QueryPoints(collection_name="docs", query=sparse, using="words").SerializeToString()
    answer = call(latest.channel, "/qdrant.Points/Query", message, compression=grpc.Compression.Gzip)
    assert answer.code is grpc.StatusCode.OK
    (came,) = latest.grpc.calls[-1].messages
    assert pb.QueryPoints.FromString(came).params.idf.corpus == ONLY_MINE_BY_GRPC


def test_a_callers_own_corpus_is_narrowed(latest: Qdrants) -> None:
    recent = {"must": [{"key": "year", "range": {"gte": 2024}}]}
    body = WORDY["sparse"] | {"params": {"idf": {"corpus": recent}, "exact": True}}
    narrowed = {"corpus": {"must": [MINE, recent]}}
    assert latest.sent("points/query", body)["params"] == {"idf": narrowed, "exact": True}


def test_the_older_searches_count_words_alike(latest: Qdrants) -> None:
    search = {"vector": {"name": "words", "vector": SPARSE}, "limit": 3}
    assert latest.sent("points/search", search)["params"]["idf"] == CORPUS
    assert latest.sent("points/search/groups", search | {"group_by": "n"})["params"]["idf"] == CORPUS
    batch = latest.sent("points/search/batch", {"searches": [search, search | {"params": {"idf": "global"}}]})
    assert [one["params"]["idf"] for one in batch["searches"]] == [CORPUS, CORPUS]


def test_words_are_counted_over_ones_own_points_by_grpc(latest: Qdrants) -> None:
    sparse = pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0]))
    corpus = pb.IdfParams(corpus=ONLY_MINE_BY_GRPC)
    for query, using in (
        (pb.Query(nearest=sparse), "words"),
        (pb.Query(nearest=pb.VectorInput(document=pb.Document(text="a", model="b"))), "words"),
        (pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=sparse, mmr=pb.Mmr())), "words"),
        (pb.Query(text=pb.TextQuery(query="a")), "title"),
    ):
        below = pb.PrefetchQuery(query=query, using=using, params=pb.SearchParams(idf=pb.IdfParams()))
        request = pb.QueryPoints(query=query, using=using, prefetch=[pb.PrefetchQuery(prefetch=[below])])
        sent = latest.called("Query", request)
        (batched,) = latest.called("QueryBatch", pb.QueryBatchPoints(query_points=[request])).query_points
        grouped = latest.called("QueryGroups", pb.QueryPointGroups(query=query, using=using, prefetch=[below]))
        for found in (sent.params, sent.prefetch[0].prefetch[0].params, batched.params, grouped.params):
            assert found.idf == corpus
        assert grouped.prefetch[0].params.idf == corpus
    indices = pb.SparseIndices(data=[1])
    search = pb.SearchPoints(vector=[1.0], vector_name="words", sparse_indices=indices)
    assert latest.called("Search", search).params.idf == corpus
    assert (
        latest.called("SearchBatch", pb.SearchBatchPoints(search_points=[search])).search_points[0].params.idf == corpus
    )
    groups = pb.SearchPointGroups(vector=[1.0], vector_name="words", sparse_indices=indices, group_by="n")
    assert latest.called("SearchGroups", groups).params.idf == corpus


def test_vectors_without_idf_are_asked_as_they_are(latest: Qdrants, old: Qdrants) -> None:
    """To name a corpus for one is an error in Qdrant."""
    for upstream in (latest, old):
        assert "params" not in upstream.sent("points/query", {"query": SPARSE, "using": "splade"})
        for body in ({"query": DOCUMENT}, {"query": [0.5, 0.5]}):
            assert upstream.sent("points/query", body)["params"] == RESCORED
        sparse = pb.Query(nearest=pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0])))
        assert not upstream.called("Query", pb.QueryPoints(query=sparse, using="splade")).HasField("params")


@pytest.mark.parametrize("kind", WORDY)
def test_an_upstream_that_would_count_everybodys_words_is_not_asked(old: Qdrants, kind: str) -> None:
    for body in (WORDY[kind], {"query": [0.5], "prefetch": {"prefetch": [WORDY[kind]]}}):
        status, text = old.sent("points/query", body)
        assert status == 403
        assert "Qdrant 1." in text
    assert old.gateway.audited(role="tenant", status=403)["reason"] == "not_confined"
    text_query = pb.Query(text=pb.TextQuery(query="a"))
    sparse = pb.Query(nearest=pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0])))
    for query in (text_query, sparse):
        assert old.called("Query", pb.QueryPoints(query=query, using="words")).code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("release", "sparse", "text"),
    [("1.19.0", 200, 403), ("1.20.1-dev", 200, 200), ("latest", 403, 403)],
)
def test_each_release_is_taken_at_its_word(site: Site, release: str, sparse: int, text: int) -> None:
    for upstream in qdrants(site, release):
        for kind, expected in (("sparse", sparse), ("text", text)):
            body = json.dumps(WORDY[kind]).encode()
            assert upstream.client.ask("POST", "/collections/docs/points/query", (), body).status == expected


def test_no_matrix_is_over_words_or_codes(latest: Qdrants) -> None:
    """A matrix has no parameters that could say whose words are counted, or that vectors themselves are compared."""
    for path in ("pairs", "offsets"):
        for using in ("words", "coded"):
            assert latest.sent(f"points/search/matrix/{path}", {"using": using})[0] == 403
        assert latest.sent(f"points/search/matrix/{path}", {"using": "splade"})["filter"] == ONLY_MINE
        assert latest.sent(f"points/search/matrix/{path}", {})["filter"] == ONLY_MINE
        method = f"SearchMatrix{path.capitalize()}"
        refused = latest.called(method, pb.SearchMatrixPoints(using="words"))
        assert isinstance(refused, Answered)
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        assert latest.called(method, pb.SearchMatrixPoints()).filter == ONLY_MINE_BY_GRPC


# Codes

SAID: list[Any] = [None, {}, {"rescore": False}, {"rescore": None, "oversampling": 2.0}, {"ignore": True}]


def test_no_score_is_by_codes(latest: Qdrants) -> None:
    """Codes are made by the range, or the clusters, of everybody's vectors: a score by that of one's own would tell."""
    for query in ([0.5, 0.5], [[0.5, 0.5]], {"nearest": [1, 2]}, {"nearest": [1, 2], "mmr": {}}, DOCUMENT):
        for said in SAID:
            asked = {"query": query, "params": {"quantization": said}}
            expected = {"quantization": (said or {}) | {"rescore": True}}
            sent = latest.sent("points/query", asked | {"prefetch": {"prefetch": [asked]}})
            assert [one["params"] for one in levels(sent) if "query" in one] == [expected, expected]
            search = {"vector": [0.5], "params": {"quantization": said}}
            assert latest.sent("points/search", search)["params"] == expected
        assert latest.sent("points/query/batch", {"searches": [{"query": query}]})["searches"][0]["params"] == RESCORED
    named = {"vector": {"name": "coded", "vector": [0.5, 0.5]}}
    assert latest.sent("points/search/batch", {"searches": [named]})["searches"][0]["params"] == RESCORED


def test_no_score_is_by_codes_by_grpc(latest: Qdrants) -> None:
    dense = pb.Query(nearest=pb.VectorInput(dense=pb.DenseVector(data=[0.5])))
    said = pb.SearchParams(quantization=pb.QuantizationSearchParams(rescore=False, oversampling=2.0))
    for params in (None, said):
        expected = pb.QuantizationSearchParams(rescore=True, oversampling=None if params is None else 2.0)
        below = pb.PrefetchQuery(query=dense, params=params)
        sent = latest.called("Query", pb.QueryPoints(query=dense, params=params, prefetch=[below]))
        assert sent.params.quantization == sent.prefetch[0].params.quantization == expected
        assert latest.called("Search", pb.SearchPoints(vector=[0.5], params=params)).params.quantization == expected


def test_no_score_is_by_coded_weights(latest: Qdrants) -> None:
    """An index of bytes codes weights by the range of everybody's, and nothing has the scores made anew."""
    asked = {"query": SPARSE, "using": "bytes"}
    for body in (asked, {"query": [0.5], "prefetch": asked}, asked | {"params": {"exact": True}}):
        assert latest.sent("points/query", body)[0] == 403
    assert latest.sent("points/search", {"vector": {"name": "bytes", "vector": SPARSE}})[0] == 403
    assert latest.sent("points/search/matrix/pairs", {"using": "bytes"})[0] == 403
    sparse = pb.Query(nearest=pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0])))
    refused = latest.called("Query", pb.QueryPoints(query=sparse, using="bytes"))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED


# What Qdrant says of the work that it had

HARDWARE = {"cpu": 160, "payload_io_read": 130, "payload_index_io_read": 7, "vector_io_read": 0}
USAGE = {"hardware": HARDWARE, "inference": {"models": {"a/b": {"tokens": 3}}}}
POINTS = [{"id": n, "score": 0.5, "payload": {"usage": {"hardware": HARDWARE}, "text": '"usage":{}'}} for n in range(3)]
OWN_ANSWER = {"result": {"points": POINTS}, "status": "ok", "time": 0.001}
ASKED: list[tuple[str, str, Any]] = [
    ("POST", "points/count", {}),
    ("POST", "facet", {"key": "n"}),
    ("POST", "points/query", {"query": [0.5]}),
    ("POST", "points/query/batch", {"searches": [{}]}),
    ("POST", "points/query/groups", {"group_by": "n"}),
    ("POST", "points/scroll", {}),
    ("POST", "points/search", {"vector": [0.5]}),
    ("POST", "points/search/batch", {"searches": [{"vector": [0.5]}]}),
    ("POST", "points/search/groups", {"vector": [0.5]}),
    ("POST", "points/search/matrix/pairs", {}),
    ("POST", "points/search/matrix/offsets", {}),
    ("PUT", "points", {"points": []}),
    ("POST", "points/delete", {"filter": {}}),
    ("PUT", "points/vectors", {"points": []}),
    ("POST", "points/vectors/delete", {"filter": {}, "vector": [""]}),
    ("POST", "points/payload", {"payload": {}, "filter": {}}),
    ("PUT", "points/payload", {"payload": {}, "filter": {}}),
    ("POST", "points/payload/delete", {"keys": ["a"], "filter": {}}),
    ("POST", "points/batch", {"operations": []}),
]


def response(answer: Any, status: bytes = b"200 OK", *, chunk: int = 0, space: bool = False) -> bytes:
    body = json.dumps(answer, indent=1 if space else None).encode()
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n" % status
    if not chunk:
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    pieces = [body[begin : begin + chunk] for begin in range(0, len(body), chunk)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces)
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
def test_no_answer_has_usage(latest: Qdrants, method: str, path: str, body: Any) -> None:
    """I/O counters tell whether a filter has met points of others."""
    failed = {"status": {"error": 'Not found: "usage":{} of 999'}, "time": 0.0}
    for scripted, status, expected in (
        (response(OWN_ANSWER | {"usage": USAGE}), 200, OWN_ANSWER),
        (response({"usage": USAGE} | OWN_ANSWER, chunk=7), 200, OWN_ANSWER),
        (response(failed | {"usage": USAGE}, b"404 Not Found", space=True), 404, failed),
    ):
        latest.scripted = scripted
        answer = latest.client.ask(
            method, f"/collections/docs/{path}", [("accept-encoding", "gzip")], json.dumps(body).encode()
        )
        latest.scripted = b""
        assert (answer.status, answer.json) == (status, expected)
        assert "accept-encoding" not in latest.rest.requests[-1].fields


def test_large_answers_stream_without_usage(latest: Qdrants) -> None:
    """Of megabytes nothing is kept but the ends, and nothing is changed."""
    large = OWN_ANSWER | {"result": {"points": POINTS * 1500}}
    for order in (large | {"usage": USAGE}, {"usage": USAGE} | large, {"time": 1, "usage": USAGE} | large):
        for chunk in (0, 100_000):
            latest.scripted = response(order, chunk=chunk)
            answer = latest.client.ask("POST", "/collections/docs/points/scroll", (), b"{}")
            assert answer.json == {name: order[name] for name in order if name != "usage"}
    latest.scripted = b""
    for _ in range(2):  # the connection is as good as before
        assert latest.sent("points/scroll", {})["filter"] == ONLY_MINE


def test_an_answer_that_cannot_be_read_is_not_shown(latest: Qdrants) -> None:
    packed = gzip.compress(json.dumps(OWN_ANSWER | {"usage": USAGE}).encode())
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    latest.scripted = head + packed
    answer = latest.client.ask("POST", "/collections/docs/points/scroll", (), b"{}")
    latest.scripted = b""
    assert answer.status == 502


BY_GRPC: dict[str, tuple[Any, Any]] = {
    "Count": (pb.CountPoints(), pb.CountResponse(result=pb.CountResult(count=3), time=0.5)),
    "Facet": (pb.FacetCounts(key="n"), pb.FacetResponse(hits=[pb.FacetHit(count=1)], time=0.5)),
    "Query": (pb.QueryPoints(), pb.QueryResponse(result=[pb.ScoredPoint(score=0.5)] * 3, time=0.5)),
    "QueryBatch": (pb.QueryBatchPoints(), pb.QueryBatchResponse(result=[pb.BatchResult()], time=0.5)),
    "QueryGroups": (pb.QueryPointGroups(), pb.QueryGroupsResponse(result=pb.GroupsResult(), time=0.5)),
    "Scroll": (
        pb.ScrollPoints(),
        pb.ScrollResponse(next_page_offset=pb.PointId(num=1), result=[pb.RetrievedPoint()] * 3, time=0.5),
    ),
    "Search": (pb.SearchPoints(), pb.SearchResponse(result=[pb.ScoredPoint(score=0.5)], time=0.5)),
    "SearchBatch": (pb.SearchBatchPoints(), pb.SearchBatchResponse(result=[pb.BatchResult()], time=0.5)),
    "SearchGroups": (pb.SearchPointGroups(), pb.SearchGroupsResponse(result=pb.GroupsResult(), time=0.5)),
    "SearchMatrixPairs": (pb.SearchMatrixPoints(), pb.SearchMatrixPairsResponse(time=0.5)),
    "SearchMatrixOffsets": (pb.SearchMatrixPoints(), pb.SearchMatrixOffsetsResponse(time=0.5)),
    "Upsert": (pb.UpsertPoints(), pb.PointsOperationResponse(result=pb.UpdateResult(operation_id=1), time=0.5)),
    "UpdateVectors": (pb.UpdatePointVectors(), pb.PointsOperationResponse(result=pb.UpdateResult(status=2))),
    "UpdateBatch": (pb.UpdateBatchPoints(), pb.UpdateBatchResponse(result=[pb.UpdateResult(operation_id=1)] * 2)),
}


@pytest.mark.parametrize("method", BY_GRPC)
def test_no_answer_has_usage_by_grpc(latest: Qdrants, method: str) -> None:
    request, own = BY_GRPC[method]
    request.collection_name = "docs"
    inference = pb.InferenceUsage(models={"a/b": pb.ModelUsage(tokens=3)})
    reported = type(own).FromString(own.SerializeToString())
    reported.usage.CopyFrom(pb.Usage(hardware=pb.HardwareUsage(cpu=160, payload_io_read=130), inference=inference))
    latest.grpc.answer = replying(reported.SerializeToString())
    answer = call(latest.channel, f"/qdrant.Points/{method}", request.SerializeToString())
    assert answer == Answered(grpc.StatusCode.OK, message=own.SerializeToString())
    assert "gzip" not in str(latest.grpc.calls[-1].metadata.get("grpc-accept-encoding", ""))
    latest.grpc.answer = failing(grpc.StatusCode.NOT_FOUND, "Not found: Collection `docs` doesn't exist!")
    answer = call(latest.channel, f"/qdrant.Points/{method}", request.SerializeToString())
    latest.grpc.answer = replying(b"")
    assert answer == Answered(grpc.StatusCode.NOT_FOUND, "Not found: Collection `docs` doesn't exist!")


def test_a_large_answer_by_grpc(latest: Qdrants) -> None:
    own = pb.QueryResponse(result=[pb.ScoredPoint(score=0.5, id=pb.PointId(uuid="x" * 1000))] * 5000, time=0.5)
    reported = (
        own.SerializeToString() + pb.QueryResponse(usage=pb.Usage(hardware=pb.HardwareUsage(cpu=1))).SerializeToString()
    )
    latest.grpc.answer = replying(reported)
    answer = call(latest.channel, "/qdrant.Points/Query", pb.QueryPoints(collection_name="docs").SerializeToString())
    latest.grpc.answer = replying(b"")
    assert answer == Answered(grpc.StatusCode.OK, message=own.SerializeToString())


# What comes back, of a Qdrant with two tenants

Opened = Callable[..., QdrantClient]


@pytest.fixture(scope="module")
def embedded(site: Site) -> Iterator[Gateway]:
    for name in ("acme", "umbrella"):
        site.issue(name, client=True, common_name=f"tenant-{name}", organizational_unit=name)
    with (
        EmbeddedUpstream() as upstream,
        Gateway(site.write_config(upstream.url, grpc=upstream.grpc_url, roles=ROLES, identities=IDENTITIES)) as running,
    ):
        yield running


@pytest.fixture
def admin(site: Site, embedded: Gateway) -> Iterator[QdrantClient]:
    """Who also makes the collection: 1 to 3 are acme's, 4 umbrella's, 5 is marked with both."""
    with closing(qdrant(embedded, site.client("admin"))) as client:
        client.delete_collection("docs")
        client.create_collection(
            "docs",
            vectors_config={"": m.VectorParams(size=2, distance=m.Distance.DOT)},
            sparse_vectors_config={"words": m.SparseVectorParams(modifier=m.Modifier.IDF)},
        )
        client.create_payload_index(
            "docs", "title", m.TextIndexParams(type=m.TextIndexType.TEXT, scoring=m.TextScoringParams(type="bm25"))
        )
        marks: dict[int, Any] = {1: "acme", 2: "acme", 3: "acme", 4: "umbrella", 5: ["acme", "umbrella"]}
        client.upsert(
            "docs", [point(n, [1, 10 + n], f"word {n}", kind=n % 2, tenant=mark) for n, mark in marks.items()]
        )
        yield client


def point(number: int, words: list[int], title: str, **payload: Any) -> m.PointStruct:
    vector: Any = {
        "": [1.0, float(number)],
        "words": m.SparseVector(indices=words, values=[1 + number / 10] * len(words)),
    }
    return m.PointStruct(id=number, vector=vector, payload={"title": title, **payload})


@pytest.fixture(params=["REST", "gRPC"])
def acme(request: pytest.FixtureRequest, site: Site, embedded: Gateway, admin: QdrantClient) -> Iterator[QdrantClient]:
    assert admin.count("docs").count == 5
    by_rest = request.param == "REST"
    opened = qdrant(embedded, site.client("acme")) if by_rest else qdrant_by_grpc(QdrantClient, embedded, site, "acme")
    with closing(opened) as client:
        yield client


WORD = m.SparseVector(indices=[1], values=[1.0])
RRF = m.FusionQuery(fusion=m.Fusion.RRF)
BELOW = [m.Prefetch(query=WORD, using="words"), m.Prefetch(query=[1.0, 0.0])]
READS: dict[str, Callable[[QdrantClient], object]] = {
    "count": lambda client: client.count("docs", exact=False),
    "facet": lambda client: sorted((hit.value, hit.count) for hit in client.facet("docs", "kind", exact=False).hits),
    "scroll": lambda client: client.scroll("docs"),
    "dense": lambda client: client.query_points("docs", [1.0, 0.0], with_vectors=True),
    "sparse": lambda client: client.query_points("docs", WORD, using="words"),
    "below": lambda client: client.query_points("docs", RRF, prefetch=BELOW),
    "twice": lambda client: client.query_points("docs", WORD, using="words", prefetch=BELOW[0]),
    "batch": lambda client: client.query_batch_points("docs", [m.QueryRequest(query=WORD, using="words")] * 2),
    "groups": lambda client: client.query_points_groups("docs", "kind", query=WORD, using="words"),
    "pairs": lambda client: sorted(
        (one.a, one.b, one.score) for one in client.search_matrix_pairs("docs", sample=9).pairs
    ),
}


def test_no_answer_depends_on_points_of_others(acme: QdrantClient, admin: QdrantClient) -> None:
    """Of two worlds that differ in others' points alone, a tenant sees the same."""
    before = {name: read(acme) for name, read in READS.items()}
    of_all = {name: read(admin) for name, read in READS.items()}
    more = [point(100 + n, [9] if n % 2 else [1], "a word " * n, kind=n % 3, tenant="umbrella") for n in range(1, 40)]
    admin.upsert("docs", more)
    admin.delete("docs", [4])
    assert all(of_all[name] != read(admin) for name, read in READS.items())
    assert {name: read(acme) for name, read in READS.items()} == before
    answer = acme.query_points("docs", WORD, using="words").points
    assert {one.id for one in answer} == {1, 2, 3, 5}  # what is marked with both is there to be read
    assert answer[0].score == pytest.approx(1.5 * math.log(1 + 0.5 / 4.5))


Use = Callable[[QdrantClient], object]
ALL = m.Filter()
FIVE = m.Filter(must=[m.HasIdCondition(has_id=[5])])
TAKEOVERS: dict[str, Use] = {
    "upsert": lambda client: client.upsert("docs", [m.PointStruct(id=5, vector=[0.0, 0.0], payload={"mine": 1})]),
    "upsert, marked": lambda client: client.upsert(
        "docs", [m.PointStruct(id=5, vector=[0.0, 0.0], payload={"tenant": "acme"})]
    ),
    "set payload": lambda client: client.set_payload("docs", {"mine": 1}, FIVE),
    "overwrite payload": lambda client: client.overwrite_payload("docs", {"mine": 1}, ALL),
    "delete payload": lambda client: client.delete_payload("docs", ["title"], FIVE),
    "vectors": lambda client: client.update_vectors("docs", [m.PointVectors(id=5, vector=[9.0, 9.0])]),
    "delete vectors": lambda client: client.delete_vectors("docs", [""], FIVE),
    "delete": lambda client: client.delete("docs", ALL),
    "batch": lambda client: client.batch_update_points(
        "docs",
        [
            m.UpsertOperation(upsert=m.PointsList(points=[m.PointStruct(id=5, vector=[0.0, 0.0])])),
            m.SetPayloadOperation(set_payload=m.SetPayload(payload={"mine": 1}, filter=ALL)),
            m.OverwritePayloadOperation(overwrite_payload=m.SetPayload(payload={"mine": 1}, filter=FIVE)),
            m.DeleteOperation(delete=m.FilterSelector(filter=FIVE)),
        ],
    ),
}


@pytest.mark.parametrize("name", TAKEOVERS)
def test_a_shared_point_is_nobodys_to_take(acme: QdrantClient, admin: QdrantClient, name: str) -> None:
    def others() -> list[m.Record]:
        return admin.retrieve("docs", [4, 5], with_payload=True, with_vectors=True)

    before = others()
    TAKEOVERS[name](acme)
    assert others() == before


MARKS: list[Any] = ["acme", "umbrella", ["acme"], ["acme", "umbrella"], None, 1, {"x": 1}]
SETS: dict[str, Callable[[QdrantClient, Any], object]] = {
    "set": lambda client, mark: client.set_payload("docs", {"a": 1, "tenant": mark}, ALL),
    "overwrite": lambda client, mark: client.overwrite_payload("docs", {"tenant": mark}, ALL),
    "set in a batch": lambda client, mark: client.batch_update_points(
        "docs", [m.SetPayloadOperation(set_payload=m.SetPayload(payload={"tenant": mark}, filter=ALL))]
    ),
    "overwrite in a batch": lambda client, mark: client.batch_update_points(
        "docs", [m.OverwritePayloadOperation(overwrite_payload=m.SetPayload(payload={"tenant": mark}, filter=ALL))]
    ),
    "below a key": lambda client, mark: client.set_payload("docs", {"0": mark}, ALL, key="tenant[0]"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_mark_cannot_be_set(acme: QdrantClient, admin: QdrantClient, name: str) -> None:
    """Not even to what it is."""
    before = admin.scroll("docs", limit=10)[0]
    for mark in MARKS:
        with pytest.raises((UnexpectedResponse, grpc.RpcError)) as caught:
            SETS[name](acme, mark)
        refused = caught.value
        status = refused.status_code if isinstance(refused, UnexpectedResponse) else refused.code()
        assert status in {403, grpc.StatusCode.PERMISSION_DENIED}
    for path in ("tenant", "tenant[]", "tenant[0]", "tenant.x", '"tenant"', "tenant[0].x"):
        with pytest.raises((UnexpectedResponse, grpc.RpcError)):
            acme.delete_payload("docs", [path], ALL)
    assert admin.scroll("docs", limit=10)[0] == before
