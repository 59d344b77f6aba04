"""Query policies: paths, the stricter of two, and a treatment of every operation under every part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import GlobalMode, Rights
from tlsproxy.authz.query_policy import NO_POLICY, KeyPath, QueryPolicy, hidden_keys, merged, parse_key_path, spelled
from tlsproxy.config.queries import Queries, query_findings, query_policy_of
from tlsproxy.qdrant.operations import GRPC, OWN, PREFLIGHT, REST, Operation
from tlsproxy.qdrant.query_policy import ROWS, Part, Treatment, concerning, parts_of, treatment

PAGE = Path(__file__).parents[2] / "docs" / "roles-and-rules.md"
KEYS = st.sampled_from(["a", "b", "c", "salary", "a key", "é", "a.b", ""])
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
BOUNDS = st.none() | st.integers(0, 50)
POLICIES = st.builds(
    QueryPolicy,
    max_limit=BOUNDS,
    max_offset=BOUNDS,
    max_prefetch=BOUNDS,
    forbids_exact=st.booleans(),
    timeout=BOUNDS,
    hides_vectors=st.booleans(),
    hidden=st.lists(PATHS, max_size=3).map(hidden_keys),
)
OPERATIONS = (*REST, *GRPC, *OWN, PREFLIGHT)


@rows(
    ("text", "path"),
    [
        ("salary", ("salary",)),
        ("contact.email", ("contact", "email")),
        ("people[].name", ("people", "name")),
        ("people[][0].name[]", ("people", "name")),
        ('"contact.email"', ("contact.email",)),
        ('a."b c".d', ("a", "b c", "d")),
        ('""', ("",)),
        ("größe", ("größe",)),
    ],
)
def test_paths_are_read_as_qdrant_reads_them(text: str, path: KeyPath) -> None:
    assert parse_key_path(text) == path


@rows("text", ["", ".", "a.", ".a", "a..b", "[]", "a[b]", "a[-1]", 'a"b"', '"a', '"a\\"b"', "a]", "a" * 1025])
def test_other_texts_are_no_paths(text: str) -> None:
    with pytest.raises(ValueError, match="a payload path is expected"):
        parse_key_path(text)


@given(PATHS)
def test_a_path_is_read_as_it_is_spelled(path: KeyPath) -> None:
    assert parse_key_path(spelled(path)) == path


@given(st.lists(PATHS, max_size=4), PATHS)
def test_a_path_touches_what_is_hidden_above_and_below_it(paths: list[KeyPath], path: KeyPath) -> None:
    hidden = hidden_keys(paths)
    covered = any(path[: len(one)] == one for one in paths)
    assert hidden.cover(path) is covered
    assert hidden.touch(path) is (covered or any(one[: len(path)] == path for one in paths))
    node: object = hidden.tree
    for key in path:
        node = node.get(key, 0) if isinstance(node, dict) else node
    assert (node is None) is covered


@given(POLICIES, POLICIES, POLICIES)
def test_the_stricter_of_each_part_counts(one: QueryPolicy, other: QueryPolicy, third: QueryPolicy) -> None:
    both = one.merged(other)
    assert both == other.merged(one)
    assert both.meets(one)
    assert both.meets(other)
    assert both.merged(third) == one.merged(other.merged(third)) == merged((third, other, one))
    assert set(parts_of(both)) == {*parts_of(one), *parts_of(other)}
    assert one.merged(NO_POLICY) == NO_POLICY.merged(one) == one
    for operation in OPERATIONS:
        concerned = concerning(both, operation)
        assert treatment(operation, concerned) is treatment(operation, both)
        assert both.meets(concerned)
        assert all(treatment(operation, both) for _ in parts_of(concerned))
        assert treatment(operation, both) == max(treatment(operation, one), treatment(operation, other))


@rows("operation", OPERATIONS, ids=lambda operation: operation.path)
def test_every_operation_has_a_treatment_under_every_part(operation: Operation) -> None:
    assert treatment(operation, NO_POLICY) is Treatment.FREE
    if operation.upload:
        assert operation.name not in ROWS
        assert treatment(operation, QueryPolicy(max_limit=1)) is Treatment.REFUSED
    else:
        assert ROWS[operation.name].keys() == set(Part)


def test_the_table_has_no_other_rows() -> None:
    assert ROWS.keys() == {operation.name for operation in OPERATIONS if not operation.upload}


def test_a_configuration_gives_its_policy() -> None:
    given = {
        "max_limit": 100,
        "max_offset": 1000,
        "max_prefetch": 3,
        "exact": "forbid",
        "timeout": 10,
        "vectors": "hide",
        "payload": {"hide": ["salary", "contact.email", "contact.email.domain"]},
    }
    policy = query_policy_of(Queries.model_validate(given))
    assert set(parts_of(policy)) == set(Part)
    assert str(Rights(everywhere=GlobalMode.R, queries=policy)) == (
        "r within max_limit 100, max_offset 1000, max_prefetch 3, exact forbid, timeout 10, vectors hide, "
        "payload hide contact.email, salary"
    )
    assert query_policy_of(Queries()) == NO_POLICY
    assert not NO_POLICY
    assert str(Rights(everywhere=GlobalMode.R)) == "r"


def test_paths_of_a_configuration_are_checked() -> None:
    queries = Queries.model_validate({"payload": {"hide": ["ok", "a..b", "people[0].name", '"a[0]"']}})
    found = list(query_findings(("roles", "r", "queries"), queries))
    assert [one.path[-1] for one in found] == [1, 2]


def test_the_page_has_every_operation_that_a_policy_concerns() -> None:
    """docs/roles-and-rules.md: one row for all operations of one treatment."""
    table = PAGE.read_text().partition("| operations | `max_limit` |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = {}
    for line in table:
        names, *treatments = [cell.strip() for cell in line.strip("|").split("|")]
        row = {part: Treatment[word.upper() or "FREE"] for part, word in zip(Part, treatments, strict=True)}
        shown.update(dict.fromkeys(re.findall(r"`(\w+)`", names), row))
    assert shown == {name: row for name, row in ROWS.items() if any(row.values())}


def test_only_parts_that_concern_an_operation_end_it() -> None:
    narrow, wide = QueryPolicy(max_limit=5), QueryPolicy(max_limit=5, max_prefetch=1, hides_vectors=True)
    named = {operation.name: operation for operation in OPERATIONS}
    assert concerning(narrow, named["facet"]).meets(concerning(wide, named["facet"]))
    assert concerning(NO_POLICY, named["upsert_points"]).meets(concerning(wide, named["upsert_points"]))
    assert not concerning(narrow, named["scroll"]).meets(concerning(wide, named["scroll"]))
