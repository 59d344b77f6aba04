"""`check --connect` names the release of the upstream, whether the tables are made for it, and what it lacks."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.cli import main


@pytest.mark.parametrize(
    ("version", "named", "warned", "lacks"),
    [
        ("1.20.1", ", Qdrant 1.20.1", "", ""),
        ("1.18.3", ", Qdrant 1.18.3", "", "Qdrant 1.18 does not have: get_quotas, update_quotas, get_consensus_lag"),
        ("1.15.0", ", Qdrant 1.15.0", "Qdrant 1.15 is older than 1.16 to 1.20", "create_named_vector"),
        ("1.21.0", ", Qdrant 1.21.0", "Qdrant 1.21 is newer than 1.16 to 1.20", ""),
        ("\\u001b[2J", ", Qdrant \\x1b[2J", "does not say which release", ""),
        ("", "", "does not say which release", ""),
    ],
)
def test_releases(
    site: Site,
    shared_upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    named: str,
    warned: str,
    lacks: str,
) -> None:
    body = b'{"title":"qdrant - vector search engine","version":"%b"}' % version.encode()
    response = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    monkeypatch.setattr(shared_upstream, "probe", plain(response))
    config = site.write_config(shared_upstream.url)
    done = CliRunner().invoke(main, ["check", "--connect", "--config", str(config)])
    assert done.exit_code == 0, done.stderr
    assert f"upstream.rest {shared_upstream.url}: ok{named}\n" in done.stdout
    assert warned in done.stderr
    assert ("is older" in done.stderr, "is newer" in done.stderr) == ("older" in warned, "newer" in warned)
    assert lacks in done.stdout
    assert ("does not have" in done.stdout) is bool(lacks)
