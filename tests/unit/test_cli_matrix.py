"""`tlsproxy explain --matrix`: the rights of a role as a table, against the independent access data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.access_table import FINER, ROWS

from tlsproxy.cli import main
from tlsproxy.cli.matrix import WORDS, Matrix, matrix_of
from tlsproxy.cli.terminal import MATRIX_WIDTH
from tlsproxy.config.model import Role
from tlsproxy.qdrant.operations import OPERATIONS

LONG = "a" * 200
CONFIG = f"""\
tls: {{cert: a, key: b, ca_cert: c}}
service: {{grpc_port: null}}
identities: [{{name: a, match: {{cn: b}}, role: viewer}}]
roles:
  viewer: {{access: pr}}
  nobody: {{access: []}}
  builder:
    access:
      - {{collection: "docs-*", access: m, operations: {{deny: [delete_points]}}}}
      - {{collection: docs-1, access: r}}
      - {{collection: {LONG}, access: prw}}
      - {{collection: "**", access: pr}}
      - {{collection: labels, access: rw}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tlsproxy.yaml"
    path.write_text(CONFIG)
    return path


def explain(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", "--config", str(config), *arguments])


def matrix(**role: Any) -> Matrix:
    return matrix_of("x", Role.model_validate(role))


def outcomes(made: Matrix, column: int = 0) -> dict[str, str]:
    """Cells by route, of both protocols."""
    return {route: row.cells[column] for _, rows in made.groups for row in rows for route in row.routes}


def route_of(row: dict[str, str]) -> str:
    path = row["path"].replace("{collection_name}", "{c}").replace("{shard}", "{s}")
    return path if row["surface"] == "grpc" else f"{row['method']} {path}"


@pytest.mark.parametrize("mode", ["r", "rw", "prw", "pr", "m"])
def test_it_says_yes_where_the_access_data_does(mode: str) -> None:
    """Of a grant, and of a whole role."""
    granted = outcomes(matrix(access=[{"collection": "docs", "access": mode}]))
    whole = outcomes(matrix(access=mode)) if mode in {"r", "m", "pr"} else {}
    for row in ROWS:
        passes, own = row["passes"].split(), FINER[row["surface"], row["method"], row["path"]]
        expected = f"c{mode}" in (passes if mode in {"r", "rw", "prw"} else own)
        assert granted[route_of(row)].startswith("no") is not (expected or "none" in passes), row
        if whole:
            expected = mode in (own if mode == "pr" else passes)
            assert whole[route_of(row)].startswith("no") is not (expected or "none" in passes), row


def test_every_route_is_there_once() -> None:
    made = matrix(access=[{"collection": "docs", "access": "rw"}], filter={"tenant": "{cn}"}, queries={"max_limit": 9})
    routes = [route for _, rows in made.groups for row in rows for route in row.routes]
    assert len(routes) == len(set(routes))
    assert len({row.operation for _, rows in made.groups for row in rows}) == len(OPERATIONS)


def test_words() -> None:
    made = matrix(
        access=[{"collection": "docs", "access": "rw"}],
        filter={"tenant": "{cn}"},
        queries={"max_limit": 9, "payload": {"hide": ["salary"]}},
        operations={"deny": ["facet", "delete_points"]},
    )
    found = outcomes(made)
    assert found["POST /collections/{c}/points/count"] == "confined, bounded"
    assert found["POST /collections/{c}/points/query"] == "confined, reduced"
    assert found["POST /collections/{c}/shards/{s}/points/count"] == "no: tenant"
    assert found["/qdrant.Points/Facet"] == found["POST /collections/{c}/facet"] == "no: denied"
    assert found["GET /collections/{c}/snapshots/{snapshot_name}"].startswith("no")
    assert found["POST /collections/{c}/points/batch"].startswith("confined, partly")
    assert found["GET /collections"] == "reduced"
    assert found["PUT /collections/{c}"] == "no: managing"
    assert found["GET /metrics"] == "no: global"
    assert found["/qdrant.StorageRead/ReadWhole"] in {"no: policy", "no: tenant"}
    assert set(made.words()) <= WORDS.keys()


def test_a_reader_is_told_of_writing_before_the_policy() -> None:
    found = outcomes(matrix(access=[{"collection": "docs", "access": "pr"}], queries={"payload": {"hide": ["salary"]}}))
    assert found["/qdrant.Points/ClearPayload"] == found["POST /collections/{c}/points/payload/clear"] == "no: writing"
    assert found["/qdrant.StorageRead/ReadWhole"] == found["GET /collections/{c}/snapshots/{snapshot_name}"]
    tenant = outcomes(matrix(access=[{"collection": "docs", "access": "rw"}], filter={"tenant": "{cn}"}))
    assert tenant["GET /collections/{c}"] == tenant["/qdrant.Collections/Get"] == "reduced"


def test_a_pattern_has_what_each_grant_for_it_gives(config: Path) -> None:
    told = json.loads(explain(config, "--matrix", "builder", "--json").stdout)
    on = {one["operation"]: one["on"] for one in told["operations"]}
    assert on["create_collection"] == {
        "docs-*": "yes",
        "docs-1": "yes",
        LONG: "no: managing",
        "**": "no: managing",
        "labels": "no: managing",
    }
    assert on["delete_points"]["docs-1"] == on["delete_points"]["docs-*"] == "no: denied"
    assert on["upsert_points"] == dict.fromkeys(on["upsert_points"], "yes") | {"**": "no: writing"}
    assert on["update_batch"]["docs-1"] == "partly"
    assert on["get_snapshot"][LONG] == "no: extras"
    assert told["rights"].startswith("docs-* m (except delete_points), docs-1 r, ")


def test_it_is_plain_text_of_a_hundred_columns(config: Path) -> None:
    done = explain(config, "--matrix", "builder")
    head, *lines = done.stdout.splitlines()
    assert (done.exit_code, head.startswith("role builder: docs-* m")) == (0, True)
    assert max(map(len, lines)) <= MATRIX_WIDTH
    assert "\x1b" not in done.stdout
    assert sum(line.startswith("  scroll ") for line in lines) == 2  # five columns do not fit beside each other
    assert "no: denied    left out by `operations`" in lines
    assert "all of Qdrant" in explain(config, "--matrix", "viewer").stdout
    assert "It may do nothing" in explain(config, "--matrix", "nobody").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--matrix", "biulder"), "no role is called 'biulder' (did you mean 'builder'?)"),
        (("--matrix", "viewer", "CN=alice"), "--matrix is about a role"),
        (("--matrix", "viewer", "--line", "-"), "--matrix is about a role"),
        (("--json", "CN=alice", "GET", "/"), "--json is for --matrix"),
    ],
)
def test_questions_that_do_not_go_together(config: Path, arguments: tuple[str, ...], says: str) -> None:
    done = explain(config, *arguments)
    assert (done.exit_code, says in done.stderr) == (2, True), done.stderr
