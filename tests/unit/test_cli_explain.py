"""`tlsproxy explain`: the listener's own verdict on a client, and the request of an audit line again."""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from snapshot_site import OTHER, ROOT, SnapshotSite, client_context, handshake, hour, site

from tlsproxy.cli import main
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.transport.tls import handshake_failure
from tlsproxy.snapshot import files
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.peer import peer_of
from tlsproxy.tls.pki import Authority, Issued

MIDDLE = ROOT.intermediate("middle")
NOW = datetime.now(UTC)
ALICE: dict[str, Any] = {"common_name": "alice", "organizational_unit": "platform"}
GOOD, REVOKED = (ROOT.issue(**ALICE, client=True) for _ in range(2))
BELOW = MIDDLE.issue(**ALICE, client=True)
CLIENTS: dict[str, Issued] = {
    "good": GOOD,
    "with its intermediate": BELOW,
    "without its intermediate": replace(BELOW, chain_pem=BELOW.certificate_pem),
    "of a foreign CA": OTHER.issue(**ALICE, client=True),
    "of a CA of the same name": Authority.create("test root").issue(**ALICE, client=True),
    "expired": ROOT.issue(**ALICE, client=True, not_before=NOW - hour(3), lifetime=hour(1)),
    "of tomorrow": ROOT.issue(**ALICE, client=True, not_before=NOW + hour(24)),
    "of a server": ROOT.issue(**ALICE, server=True),
    "revoked": REVOKED,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SnapshotSite:
    """A site of which this user may not read the server's key, nor the clients' keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PAUSE", 0.0)
        made = site(
            tmp_path_factory.mktemp("site"),
            service={"grpc_port": 0, "api_key_file": "key"},
            tls={"crl": ["crl.pem"], "crl_policy": "where_present"},
            upstream={"grpc": "http://127.0.0.1:16334"},
            keys=[{"name": "nightly", "sha256": "a" * 64, "role": "reader"}],
            roles={"reader": {"access": [{"collection": "docs", "access": "r"}]}},
        )
        made.write("crl.pem", ROOT.crl_pem([REVOKED.serial]))
        made.write("key", b"a key of clients, of some length")
    for name, issued in CLIENTS.items():
        made.write(f"{name}.pem", issued.chain_pem)
    return made


@pytest.fixture(scope="module")
def generation(made: SnapshotSite) -> Generation:
    generation = made.build()
    (made.directory / "server.key").unlink()
    (made.directory / "key").unlink()
    return generation


pytestmark = pytest.mark.usefixtures("hasty")


def explain(made: SnapshotSite, *arguments: str | Path, stdin: str | None = None) -> Result:
    words = ["explain", "--config", str(made.config), *map(str, arguments)]
    return CliRunner().invoke(main, words, input=stdin)


def outcome(generation: Generation, issued: Issued | None, directory: Path) -> str:
    """The reason for which a real handshake, or the first look at its chain, ends the connection; "" for none."""
    try:
        server_side, _ = handshake(generation.contexts["rest",], client_context(issued, directory))
    except ssl.SSLError as error:
        return handshake_failure(error)[0]
    refusal = Standing(generation, peer_of(server_side), time.time()).refusal
    return "" if refusal is None else refusal.reason


@pytest.mark.parametrize("name", [*CLIENTS, "none"])
def test_there_is_a_connection_exactly_where_a_handshake_succeeds(
    made: SnapshotSite, generation: Generation, tmp_path: Path, name: str
) -> None:
    reason = outcome(generation, CLIENTS.get(name), tmp_path)
    client = "none" if name == "none" else made.directory / f"{name}.pem"
    result = explain(made, client, "GET", "/collections")
    assert (result.exit_code, "no connection: " in result.stdout) == ((1, True) if reason else (0, False))
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f" ({reason})") if reason else last == "decision   allowed"
    assert "subject    CN=alice,OU=platform\n" in result.stdout or name == "none"


@pytest.mark.usefixtures("generation")
@pytest.mark.parametrize(
    ("words", "operation"),
    [
        (["qdrant.Collections/List"], "list_collections"),
        (["/qdrant.Collections/List"], "list_collections"),
        (["gRPC", "qdrant.Points/Upsert"], "upsert_points"),
        (["put", "/collections/docs/points"], "upsert_points"),
        (["PUT", "collections/docs/points"], "upsert_points"),
        (["put", "https://localhost:6333/collections/docs/points?wait=true"], "upsert_points"),
        (["GET", "HTTPS://localhost"], "index"),
        (["https://localhost:6334/qdrant.Points/Upsert"], "upsert_points"),
    ],
)
def test_requests_as_people_write_them(made: SnapshotSite, words: list[str], operation: str) -> None:
    result = explain(made, made.directory / "good.pem", *words)
    assert f"operation  {operation}: " in result.stdout
    assert result.stdout.endswith("decision   allowed\n")


@pytest.mark.usefixtures("generation")
def test_a_ca_made_anew_under_its_name_is_told_from_one_that_is_missing(made: SnapshotSite) -> None:
    hint = "; the CA of this name in tls.ca_cert has another key (unknown_ca)\n"
    for name, hinted in (
        ("of a CA of the same name", True),
        ("of a foreign CA", False),
        ("without its intermediate", False),
    ):
        result = explain(made, made.directory / f"{name}.pem", "GET", "/collections")
        assert result.stdout.endswith(hint) == hinted, result.stdout


def test_a_revoked_intermediate_is_no_way_in_either(made: SnapshotSite, tmp_path: Path) -> None:
    """OpenSSL is not asked about it: the rule that ends live connections says so."""
    own = site(tmp_path, tls={"crl": ["crl.pem"], "crl_policy": "where_present"})
    middle = MIDDLE._certificate().serial_number
    own.write("crl.pem", ROOT.crl_pem([middle]))
    result = explain(own, made.directory / "with its intermediate.pem", "GET", "/collections")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("no connection: the client certificate, or one ")
    assert "(certificate_revoked)" in result.stdout


@pytest.mark.parametrize("required", [True, False])
def test_no_certificate(tmp_path: Path, *, required: bool) -> None:
    own = site(tmp_path, service={"verify_https_client_certificate": required})
    result = explain(own, "none", "GET", "/collections")
    assert result.exit_code == 1
    says = (
        "no connection: a client certificate is required (no_certificate)"
        if required
        else "decision   refused: 401 Must provide an API key"
    )
    assert says in result.stdout.splitlines()[-1]
    assert ("no connection: " in result.stdout) == required


def test_a_certificate_that_nobody_asks_for(made: SnapshotSite, tmp_path: Path) -> None:
    own = site(tmp_path, service={"verify_https_client_certificate": False, "api_key": "k" * 32})
    text = "service: {verify_https_client_certificate: false, api_key: " + "k" * 32 + ", grpc_port: null}\n"
    own.config.write_text(f"{text}tls: {{cert: server.pem, key: server.key}}\n")
    result = explain(own, made.directory / "of a foreign CA.pem", "GET", "/collections")
    assert "not judged the certificate: without tls.ca_cert none is asked for" in result.stdout
    assert "401" in result.stdout.splitlines()[-1]


def test_a_protocol_that_nothing_listens_for(tmp_path: Path) -> None:
    own = site(tmp_path, service={"grpc_port": None})
    result = explain(own, "none", "grpc", "/qdrant.Points/Search")
    assert (result.exit_code, result.stdout) == (1, "no connection: nothing listens for gRPC (no_listener)\n")


@pytest.mark.usefixtures("generation")
@pytest.mark.parametrize(
    "text",
    [
        "CN=alice,OU=platform",
        "CN = alice, OU = platform",
        "subject=CN = alice, OU = platform",
        "cn=alice,ou=platform",
    ],
)
def test_a_subject_in_place_of_a_file(made: SnapshotSite, text: str) -> None:
    result = explain(made, text, "put", "collections/docs")
    assert result.exit_code == 0
    assert "subject    CN=alice,OU=platform\n" in result.stdout
    assert "not judged the connection: dates, CA, purpose and CRLs" in result.stdout
    assert "operation  create_collection: " in result.stdout


def test_rules_that_ask_for_more_than_a_subject_tells_are_named(tmp_path: Path) -> None:
    rules = [{"name": "web", "match": {"uri": "spiffe://a/b"}, "role": "admin"}]
    own = site(tmp_path, identities=rules)
    result = explain(own, "CN=alice", "GET", "/collections")
    assert "not judged rules that ask for more than is told here: web\n" in result.stdout
    assert result.exit_code == 1
    # One behind the rule that matches does not matter.
    own.configure(identities=[{"name": "people", "match": {"cn": "alice"}, "role": "admin"}, *rules])
    result = explain(own, "CN=alice", "GET", "/collections")
    assert "not judged rules" not in result.stdout
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("client", "says"),
    [
        ("missing.pem", "error: missing.pem: does not exist\n"),
        ("alice", "error: alice: is no file, and no subject: a subject is written as CN=alice,OU=search "),
        ("CN", "error: CN: is no file, and no subject: "),
        ("=alice", "error: =alice: is no file, and no subject: "),
        (".", "error: .: is a directory; a regular file is needed\n"),
    ],
)
@pytest.mark.usefixtures("generation")
def test_an_argument_that_is_no_client(made: SnapshotSite, client: str, says: str) -> None:
    result = explain(made, client, "GET", "/collections")
    assert result.exit_code == 2
    assert result.stderr.startswith(says)
    assert "configuration" not in result.stderr


@pytest.mark.usefixtures("generation")
def test_an_argument_that_is_no_request(made: SnapshotSite) -> None:
    for words in (["none"], ["none", "GET"], ["none", "/collections/docs"], [], ["--line", "-", "none", "GET", "/"]):
        assert "Usage: " in explain(made, *words, stdin="").stderr


# Audit lines


def line(generation: Generation, **changes: Any) -> str:
    (ca,) = generation.material.anchors.trusted
    fields = {
        "timestamp": "2026-11-28T19:34:13.326491Z",
        "method": "upsert_points",
        "api": "/collections/docs/points",
        "auth_type": "Certificate",
        "remote": "127.0.0.1",
        "result": "denied",
        "error": "Forbidden: no role",
        "certificate_subject": "CN=alice,OU=platform",
        "certificate_sha256": "18277d",
        "ca_sha256": ca,
        "status": 403,
        "reason": "no_role",
    }
    return json.dumps({name: value for name, value in (fields | changes).items() if value is not None})


ALLOWED, LIMITED = "decision   allowed", "decision   refused: 403 Forbidden: "
LINES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a request": ({}, 0, ALLOWED),
    "a name without a subject": ({"certificate_subject": "spiffe://a/b"}, 1, LIMITED),
    "a call": ({"api": "/qdrant.Points/Upsert", "grpc_status": 7}, 0, ALLOWED),
    "an operation of GET": ({"api": "/collections/docs", "method": "get_collection"}, 0, ALLOWED),
    "an upload, which is audited under its route": (
        {
            "api": "/collections/docs/snapshots/upload",
            "method": "/collections/{collection_name}/snapshots/upload",
            "auth_type": "ApiKey",
            "key": "nightly",
        },
        1,
        "decision   refused: 403 Forbidden: Global access is required",
    ),
    "an unknown operation": ({"api": "/nothing", "method": None}, 1, "decision   refused: 404 "),
    "another CA": ({"ca_sha256": "ab" * 32}, 1, "no connection: its CA (SHA-256 abab"),
    "a key": ({"auth_type": "ApiKey", "key": "nightly"}, 1, LIMITED),
    "a key that is gone": ({"auth_type": "ApiKey", "key": "gone"}, 1, "decision   refused: 401 "),
    "a token": ({"auth_type": "Jwt", "key_rights": "docs rw"}, 0, ALLOWED),
    "nobody": ({"auth_type": "None", "certificate_subject": None}, 1, "no connection: "),
    "an ended connection": (
        {"event": "connection", "reason": "certificate_revoked"},
        1,
        "no connection: at that time: ",
    ),
    "a handshake": ({"event": "handshake", "reason": "unknown_ca", "error": "self\x1bsigned"}, 1, "no connection: at "),
}


@pytest.mark.parametrize("name", LINES)
def test_the_request_of_an_audit_line(made: SnapshotSite, generation: Generation, name: str) -> None:
    changes, status, says = LINES[name]
    result = explain(made, "--line", "-", stdin=line(generation, **changes))
    assert (result.exit_code, result.stderr) == (status, "")
    assert result.stdout.startswith("recorded   2026-11-28T19:34:13.326491Z denied (")
    assert result.stdout.splitlines()[-1].startswith(says)
    assert "\x1b" not in result.stdout
    assert ("subject    CN=alice,OU=platform\n" in result.stdout) == ("certificate_subject" not in changes)
    assert ("its token, which no log has; recorded rights: docs rw" in result.stdout) == (name == "a token")


@pytest.mark.usefixtures("generation")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds 0 lines"),
        ('{"result":"ok"}\n{"result":"ok"}\n', "holds 2 lines"),
        ("[]", "is not a line of the audit log"),
        ("{", "is not a line of the audit log"),
        ("[" * 60000, "is not a line of the audit log"),
        ('{"result":"ok","event":"reload"}', "is of an event (reload)"),
        ('{"result":"ok"}', "has no path (audit.log_api: false)"),
    ],
)
def test_what_is_no_audit_line_of_a_request(made: SnapshotSite, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "line").write_text(text)
    result = explain(made, "--line", tmp_path / "line")
    assert result.exit_code == 2
    assert says in result.stderr
