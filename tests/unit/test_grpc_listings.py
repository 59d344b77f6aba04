"""What a collection-limited caller is shown of a listing by gRPC."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support.rows import rows

from tlsproxy.authz.access import GlobalMode, Grant, Grants, Rights
from tlsproxy.qdrant.grpc_listings import ENTRIES, STEP, MessageListing, listing_of_call
from tlsproxy.qdrant.operations import GRPC
from tlsproxy.qdrant.rest_listings import Listing
from tlsproxy.wire.cooperative import at_once

DOCS = Grants(Grant("docs", write=False, extras=True), Grant("team.*", write=True, extras=False))
ALIASES = ["list_aliases", "list_collection_aliases"]


def reduced(operation: str, answer: bytes, *grants: Grants) -> bytes:
    return at_once(MessageListing(operation, grants or (DOCS,)).reducing(answer))


def collections(*names: str) -> Any:
    return pb.ListCollectionsResponse(collections=[pb.CollectionDescription(name=name) for name in names], time=0.5)


def aliases(*pairs: tuple[str, str]) -> Any:
    found = [pb.AliasDescription(alias_name=alias, collection_name=collection) for alias, collection in pairs]
    return pb.ListAliasesResponse(aliases=found, time=0.5)


def test_which_methods_are_listings() -> None:
    found = {row.path: listing_of_call(row, (Rights(grants=DOCS), Rights(everywhere=GlobalMode.R))) for row in GRPC}
    assert {path for path, listing in found.items() if listing is not None} == {
        "/qdrant.Collections/List",
        "/qdrant.Collections/ListAliases",
        "/qdrant.Collections/ListCollectionAliases",
    }
    assert all(
        listing in (None, MessageListing(row.name, (DOCS,))) for row, listing in zip(GRPC, found.values(), strict=True)
    )
    assert all(listing_of_call(row, (Rights(everywhere=GlobalMode.R),)) is None for row in GRPC)


def test_collections() -> None:
    answer = collections("docs", "Docs", "docs2", "team.a", "team.a.b", "team", "secret", "").SerializeToString()
    assert pb.ListCollectionsResponse.FromString(reduced("list_collections", answer)) == collections("docs", "team.a")
    only_team = (Grants(*list(DOCS)[1:]),)
    both = pb.ListCollectionsResponse.FromString(reduced("list_collections", answer, DOCS, *only_team))
    assert both == collections("team.a")


@pytest.mark.parametrize("operation", ALIASES)
def test_aliases_show_when_both_names_may_be_known(operation: str) -> None:
    pairs = [("docs", "team.a"), ("docs", "secret"), ("secret", "docs"), ("secret", "hidden"), ("docs", ""), ("", "")]
    answer = aliases(*pairs).SerializeToString()
    assert pb.ListAliasesResponse.FromString(reduced(operation, answer)) == aliases(*pairs[:1])


def test_a_long_listing_is_reduced_in_steps() -> None:
    answer = collections(*["docs"] * 3 * STEP).SerializeToString()
    assert list(MessageListing("list_collections", (DOCS,)).reducing(answer)) == [None] * 3


def test_what_is_not_known_is_left_out() -> None:
    entry = b"\x0a\x04docs"
    answer = b"\x0a\x0e" + entry + b"\x12\x06secret" + b"\x1a\x06secret" + b"\x20\x01" + b"\x10\x01"
    assert reduced("list_collections", answer) == b"\x0a\x06" + entry
    twice = b"\x0a\x0c" + entry + entry
    assert reduced("list_collections", twice) == b""


@rows("operation", ENTRIES)
@rows("answer", [b"\x0a", b"\x0a\x05docs", b"\x08\x01", b"\x0a\x02\x0a\x01", b"\x0a\x02\x08\x01", b"\0"])
def test_what_is_not_qdrants_is_not_passed(operation: str, answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        reduced(operation, answer)


def test_a_name_that_is_no_text_is_not_qdrants() -> None:
    with pytest.raises(ValueError, match=r"."):
        reduced("list_collections", b"\x0a\x03\x0a\x01\xff")


names = st.sampled_from(["docs", "team.a", "secret", "team.a.b"])


@pytest.mark.fuzz
@given(st.lists(st.tuples(names, names), max_size=6))
def test_both_apis_show_the_same(pairs: list[tuple[str, str]]) -> None:
    entries = [{"alias_name": alias, "collection_name": collection} for alias, collection in pairs]
    answer = json.dumps({"result": {"aliases": entries}}).encode()
    shown = json.loads(at_once(Listing("list_aliases", (DOCS,)).reducing(answer)))["result"]["aliases"]
    message = pb.ListAliasesResponse.FromString(reduced("list_aliases", aliases(*pairs).SerializeToString()))
    assert [(one.alias_name, one.collection_name) for one in message.aliases] == [
        (one["alias_name"], one["collection_name"]) for one in shown
    ]


@pytest.mark.fuzz
@given(st.sampled_from(sorted(ENTRIES)), st.binary(max_size=30))
def test_whatever_is_answered_nobody_without_grants_sees_an_entry(operation: str, answer: bytes) -> None:
    try:
        shown = reduced(operation, answer, Grants(Grant("nothing-here", write=True, extras=True)))
    except ValueError:
        return
    assert shown[:1] in (b"", b"\x11")
