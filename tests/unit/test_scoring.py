"""Which queries count words, on which facts, and what Qdrant's answers say of these."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows
from support.tenant_roles import confinement

from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant.rest_tenancy import confine
from tlsproxy.qdrant.router import Recognised, recognise
from tlsproxy.qdrant.scoring import (
    CODED,
    MATRIX,
    Facts,
    FactsNeeded,
    Scored,
    check_matrix,
    described,
    needs_corpus,
    release_in,
)
from tlsproxy.wire.cooperative import at_once

ACME = confinement(tenant="acme", team="a")
OURS = [{"key": "tenant", "match": {"value": "acme"}}, {"key": "team", "match": {"value": "a"}}]
WORDS = frozenset({"words", ""})
LATEST = Facts((1, 20), WORDS, frozenset({"coded"}))


def again(body: Any) -> Any:
    """As it would be read: no part of it is another's."""
    return json.loads(json.dumps(body))


def operation(path: str) -> Recognised:
    return recognise("POST", f"/collections/docs/points/{path}")


def test_what_no_word_has_a_say_in_needs_no_facts() -> None:
    assert not needs_corpus(Scored.NOTHING, "words", None)
    assert not needs_corpus(Scored.DENSE, "words", None)
    for scored in (Scored.SPARSE, Scored.INFERRED, Scored.TEXT):
        with pytest.raises(FactsNeeded):
            needs_corpus(scored, "words", None)


@rows(
    ("release", "allowed"),
    [
        ((1, 18), ()),
        ((1, 19), (Scored.SPARSE, Scored.INFERRED)),
        ((1, 20), (Scored.SPARSE, Scored.INFERRED, Scored.TEXT)),
        (None, ()),
    ],
)
@rows("vectors", [WORDS, None])
def test_releases(release: tuple[int, int] | None, vectors: frozenset[str] | None, allowed: tuple[Scored, ...]) -> None:
    """Not to know which vectors have IDF is as if all had."""
    facts = Facts(release, vectors)
    for scored in (Scored.SPARSE, Scored.INFERRED, Scored.TEXT):
        if scored in allowed:
            assert needs_corpus(scored, "words", facts)
        else:
            with pytest.raises(Unconfined):
                needs_corpus(scored, "words", facts)


@pytest.mark.parametrize(
    ("scored", "text"),
    [
        (Scored.SPARSE, "Sparse and inferred queries cannot be confined to a tenant by this upstream: Qdrant 1.19"),
        (Scored.TEXT, "Text queries need Qdrant 1.20"),
    ],
)
def test_a_refusal_names_the_release_that_is_needed(scored: Scored, text: str) -> None:
    with pytest.raises(Unconfined, match=text):
        needs_corpus(scored, "words", Facts((1, 18), WORDS))


def test_only_what_errs_on_the_safe_side_is_remembered() -> None:
    remembered = LATEST.remembered()
    assert needs_corpus(Scored.SPARSE, "words", remembered)
    assert not needs_corpus(Scored.SPARSE, "splade", LATEST)
    with pytest.raises(FactsNeeded):
        needs_corpus(Scored.SPARSE, "splade", remembered)
    with pytest.raises(FactsNeeded):
        check_matrix("splade", remembered)
    check_matrix("splade", LATEST)
    for using in (*WORDS, "coded"):
        with pytest.raises(Unconfined, match=MATRIX):
            check_matrix(using, LATEST)
    for unknown in (Facts((1, 20), None, NONE), Facts((1, 20), NONE, None)):
        with pytest.raises(Unconfined):
            check_matrix("splade", unknown)


@rows(
    ("version", "release"),
    [
        ("1.18.3", (1, 18)),
        ("1.20.0-dev", (1, 20)),
        ("1.20", (1, 20)),
        ("10.0.0", (10, 0)),
        ("1", None),
        ("v1.20.0", None),
        ("1.x", None),
        ("1.-20", None),
        ("", None),
        (1.2, None),
        (None, None),
        ("1." + "9" * 100, None),
        ("1.20." + "0" * 59, (1, 20)),
        ("1.20." + "0" * 60, None),
    ],
)
def test_the_release(version: object, release: tuple[int, int] | None) -> None:
    assert release_in(json.dumps({"title": "qdrant", "version": version}).encode()) == release


def test_what_is_no_release() -> None:
    for answer in (b"", b"{", b"[]", b"1", b'{"version": {"major": 1}}', b"\xff"):
        assert release_in(answer) is None


def facts_of(params: Any, **config: Any) -> Facts:
    answer = {"result": {"status": "green", "config": {"params": params, **config}}, "status": "ok"}
    return described((1, 20), json.dumps(answer).encode())


NONE: frozenset[str] = frozenset()


def test_the_vectors_with_idf() -> None:
    sparse = {
        "bm25": {"modifier": "idf"},
        "splade": {"index": {"on_disk": True}},
        "none": {"modifier": "none"},
        "null": {"modifier": None},
        "newer": {"modifier": "bm26"},
        "odd": None,
    }
    assert facts_of({"vectors": {}, "sparse_vectors": sparse}) == Facts(
        (1, 20), frozenset({"bm25", "newer", "odd"}), NONE
    )
    for without in ({}, {"sparse_vectors": None}, {"sparse_vectors": {}}):
        assert facts_of(without).weighted == NONE
    assert facts_of({"sparse_vectors": []}).weighted is None


def test_the_vectors_whose_weights_are_coded() -> None:
    sparse = {
        "a": {"index": {"datatype": "uint8"}, "modifier": "idf"},
        "b": {"index": {"datatype": "float16"}},
        "c": {"index": {"datatype": None}},
        "f": {"index": {"datatype": "float32"}},
        "d": {"index": None},
        "e": {"index": {"datatype": "turbo1"}},
    }
    facts = facts_of({"vectors": {}, "sparse_vectors": sparse})
    assert facts.coded == {"a", "e"}
    for using in facts.coded:
        for scored in (Scored.SPARSE, Scored.INFERRED):
            with pytest.raises(Unconfined, match=CODED):
                needs_corpus(scored, using, facts)
        with pytest.raises(Unconfined, match=MATRIX):
            check_matrix(using, facts)
    assert not needs_corpus(Scored.SPARSE, "b", facts)
    check_matrix("b", facts)


def test_the_vectors_that_are_quantized() -> None:
    plain, coded = {"size": 2, "distance": "Dot"}, {"size": 2, "quantization_config": {"scalar": {"type": "int8"}}}
    named = {"a": plain, "b": coded, "size": plain, "odd": None}
    for params, everywhere, expected in (
        ({"vectors": plain}, None, NONE),
        ({"vectors": coded}, None, {""}),
        ({"vectors": plain}, {"scalar": {}}, {""}),
        ({"vectors": named}, None, {"b", "odd"}),
        ({"vectors": named}, {"unheard of": {}}, {"a", "b", "size", "odd"}),
        ({}, {"scalar": {}}, NONE),
        ({"vectors": []}, None, None),
    ):
        assert facts_of(params, quantization_config=everywhere).quantized == expected
    assert facts_of({"vectors": plain}).quantized == NONE


def test_what_is_no_description() -> None:
    for answer in (b"", b"{}", b"[]", b'{"result":null}', b'{"status":{"error":"Not found"}}'):
        assert described((1, 20), answer) == Facts((1, 20))
    assert facts_of(None) == Facts((1, 20))


# Of random queries, a twin that knows them when it makes them

sparse: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"indices": [1], "values": [0.5]},
    ]
)
inferred: st.SearchStrategy[Any] = st.sampled_from(
    [
        [[1, 2], [0.5, 1]],
        [[], []],
        {"text": "x", "model": "m"},
        {"image": "x", "model": "m"},
        {"object": {}, "model": "m"},
    ]
)
dense: st.SearchStrategy[Any] = st.sampled_from([[0.5], [1, 2], [[0.5, 1], [1, 2]], [[1]], [[1], [2], [3]]])
text: st.SearchStrategy[Any] = st.sampled_from([{"text": "x"}, {"text": {"query": "x"}}])
rest: st.SearchStrategy[Any] = st.sampled_from([None, {"fusion": "rrf"}, {"sample": "random"}, {"order_by": "n"}])


def query_of(vector: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        vector
        | vector.map(lambda value: {"nearest": value})
        | vector.map(lambda value: {"nearest": value, "mmr": {"diversity": 0.5}})
    )


own = {"must": [{"key": "a", "match": {"value": 1}}]}
params = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "exact": st.sampled_from([False, True, None, 0]),
        "indexed_only": st.booleans(),
        "hnsw_ef": st.just(4),
        "quantization": st.sampled_from([None, {}, {"rescore": False}, {"ignore": True, "rescore": None}]),
        "idf": st.sampled_from([None, "global", {}, {"corpus": None}, {"corpus": {}}, {"corpus": own}]),
    },
)
queries = st.one_of(
    query_of(sparse).map(lambda value: (value, Scored.SPARSE)),
    query_of(inferred).map(lambda value: (value, Scored.INFERRED)),
    query_of(dense).map(lambda value: (value, Scored.DENSE)),
    text.map(lambda value: (value, Scored.TEXT)),
    rest.map(lambda value: (value, Scored.NOTHING)),
)
using = st.sampled_from([None, "", "words", "splade"])


@st.composite
def requests(draw: st.DrawFn, depth: int = 2) -> tuple[dict[str, Any], list[tuple[Scored, str | None]]]:
    """A request, and of each level, in the order of :func:`levels`, what words have to say there."""
    query, words = draw(queries)
    name = draw(using)
    request: dict[str, Any] = {"query": query}
    if name is not None:
        request["using"] = name
    if draw(st.booleans()):
        request["params"] = draw(params)
    expected = [(words, name)]
    if depth and draw(st.booleans()):
        below = draw(st.lists(requests(depth - 1), min_size=1, max_size=2))
        request["prefetch"] = [one for one, _ in below]
        for _, more in below:
            expected += more
        if len(below) == 1 and draw(st.booleans()):
            (request["prefetch"],) = request["prefetch"]
    return request, expected


def levels(request: dict[str, Any]) -> list[dict[str, Any]]:
    below = request.get("prefetch", [])
    return [request, *(one for inner in (below if isinstance(below, list) else [below]) for one in levels(inner))]


@pytest.mark.fuzz
@given(requests(), st.sampled_from(["query", "query/groups", "query/batch"]))
def test_every_level_counts_its_words_over_ones_own_points(
    asked: tuple[dict[str, Any], list[tuple[Scored, str | None]]], path: str
) -> None:
    request, expected = asked
    body = {"searches": [request]} if path.endswith("batch") else request
    changed = at_once(confine(operation(path), again(body), ACME, LATEST)).body
    found = levels(changed["searches"][0] if path.endswith("batch") else changed)
    assert len(found) == len(expected)
    for before, after, (words, name) in zip(levels(request), found, expected, strict=True):
        given_params = before.get("params") or {}
        said = given_params.get("idf")
        after_params = after.get("params") or {}
        assert "indexed_only" not in after_params
        if path.endswith("groups"):
            assert after_params["exact"] is True
        elif "exact" in given_params:
            assert after_params["exact"] == given_params["exact"]
        counts = words is Scored.TEXT or (words in {Scored.SPARSE, Scored.INFERRED} and (name or "") in WORDS)
        if counts or said is not None:
            narrowed = [own] if isinstance(said, dict) and said.get("corpus") else []
            assert after_params["idf"] == {"corpus": {"must": OURS + narrowed}}
        else:
            assert after_params.get("idf") is None
        coded = given_params.get("quantization")
        if words in {Scored.DENSE, Scored.INFERRED} or coded is not None:
            assert after_params["quantization"] == (coded or {}) | {"rescore": True}
        assert after["filter"]["must"][: len(OURS)] == OURS


@pytest.mark.fuzz
@given(requests())
def test_no_level_is_asked_of_an_upstream_that_would_count_everybodys_words(
    asked: tuple[dict[str, Any], list[tuple[Scored, str | None]]],
) -> None:
    request, expected = asked
    counts = any(
        words is Scored.TEXT or (words in {Scored.SPARSE, Scored.INFERRED} and (name or "") in WORDS)
        for words, name in expected
    )
    for facts in (Facts((1, 18), WORDS), Facts(None, WORDS)):
        if counts:
            with pytest.raises(Unconfined):
                at_once(confine(operation("query"), again(request), ACME, facts))
        else:
            at_once(confine(operation("query"), again(request), ACME, facts))


@pytest.mark.parametrize(
    "vector",
    [
        {"name": "words", "vector": [[1], [0.5]]},
        {"name": "words"},
        {"name": ["words"], "vector": {"indices": [1], "values": [1]}},
        ["words", {"indices": [1], "values": [1]}],
        [[1], [0.5]],
        "words",
        1,
    ],
)
def test_the_older_search_takes_documented_vectors_only(vector: Any) -> None:
    for path, body in (("search", {"vector": vector}), ("search/batch", {"searches": [{"vector": vector}]})):
        with pytest.raises(BadRequest):
            at_once(confine(operation(path), again(body), ACME, LATEST))


def test_using_is_a_text() -> None:
    for odd in (1, ["words"], {"name": "words"}):
        with pytest.raises(BadRequest):
            at_once(confine(operation("query"), {"query": [0.5], "using": odd}, ACME, LATEST))
