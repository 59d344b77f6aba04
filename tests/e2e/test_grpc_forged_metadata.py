"""Who a client is, its connection says, over gRPC too: no metadata that claims it gets through, in any guise."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame
from support.forged_headers import FORGED, IDENTITY
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.h2_raw_client import Fields, H2Client, fields, h2, message
from support.h2_upstream import H2Upstream, Seen
from support.site import Site
from support.upstream import ScriptedUpstream

LIST = "/qdrant.Collections/List"
UPSTREAM_KEY = "upstr3am-key"
GUISES = (str, lambda name: name.replace("-", "_"), lambda name: name.replace("-", "."))


@pytest.fixture(scope="module")
def frames_of() -> Iterator[H2Upstream]:
    with H2Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, frames_of: H2Upstream) -> Iterator[Gateway]:
    keys = {"upstream": {"api_key": UPSTREAM_KEY}, "service": {"api_key": FORGED}}
    with Gateway(site.write_config(shared_upstream.url, grpc=frames_of.url, **keys)) as running:
        yield running


@pytest.fixture
def client(site: Site, gateway: Gateway, frames_of: H2Upstream) -> Iterator[H2Client]:
    frames_of.streams.clear()
    with h2(gateway, site) as connected:
        yield connected


def asked(client: H2Client, *metadata: tuple[str, str]) -> int:
    return client.status(client.call(b"", fields(LIST, *metadata)))


def arrived(frames_of: H2Upstream) -> Seen:
    """The one call that did: what is ours in it must be as it should."""
    (seen,) = frames_of.streams
    assert FORGED not in str(seen.fields)
    found: dict[str, list[str]] = {}
    for name, value in seen.fields:
        found.setdefault(name, []).append(value)
    assert found["api-key"] == [UPSTREAM_KEY]
    assert found["x-forwarded-for"] == ["127.0.0.1"]
    assert found["x-forwarded-proto"] == ["https"]
    assert [host.partition(":")[0] for host in found["x-forwarded-host"]] == ["localhost"]
    assert found[":authority"] == [frames_of.url.removeprefix("http://")]
    assert "authorization" not in found
    return seen


@pytest.mark.parametrize("name", IDENTITY)
def test_in_every_alias(client: H2Client, frames_of: H2Upstream, name: str) -> None:
    for guise in GUISES:
        frames_of.streams.clear()
        assert asked(client, (guise(name), FORGED), ("x-harmless", "kept")) == 0
        assert ("x-harmless", "kept") in arrived(frames_of).fields


def test_all_of_them_at_once(client: H2Client, frames_of: H2Upstream) -> None:
    names = {guise(name) for name in IDENTITY for guise in GUISES[1:]}
    assert asked(client, *((name, FORGED) for name in sorted(names))) == 0
    arrived(frames_of)


@pytest.mark.parametrize("name", IDENTITY)
def test_given_twice(client: H2Client, frames_of: H2Upstream, name: str) -> None:
    """Where a gateway and a server could each take another one, neither is passed on."""
    status = asked(client, (name, "first"), (name, FORGED))
    if name in {"api-key", "authorization"}:
        assert status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert not frames_of.streams
    else:
        assert status == 0
        arrived(frames_of)


@pytest.mark.parametrize("name", ["Api-Key", "API-KEY", "X-Forwarded-For", "api-key ", "api\0-key", "x-tlsproxy-Role"])
def test_in_another_case_or_worse(client: H2Client, frames_of: H2Upstream, name: str) -> None:
    """HTTP/2 has lower-case names only (RFC 9113 §8.2.1): what has others is malformed."""
    stream = client.open(fields(LIST, (name, FORGED)))
    assert client.reset(stream) == 1
    client.lives()
    assert not frames_of.streams


@pytest.mark.parametrize("name", IDENTITY)
def test_as_binary_metadata(site: Site, gateway: Gateway, frames_of: H2Upstream, name: str) -> None:
    """`-bin` is gRPC's for bytes in base64: another name, and nobody's identity either."""
    frames_of.streams.clear()
    with channel(gateway, site) as opened:
        assert call(opened, LIST, b"", (f"{name}-bin", FORGED.encode())).code is grpc.StatusCode.OK
    found = dict(arrived(frames_of).fields)
    for taken in ("api-key-bin", "authorization-bin", f"{name}-bin"):
        assert taken not in found, found


@pytest.mark.parametrize("name", [*IDENTITY, "x-harmless", ":path", "grpc-timeout"])
def test_in_trailers(client: H2Client, frames_of: H2Upstream, name: str) -> None:
    """gRPC's clients send none: one that does has its call ended, and nothing of them is passed on."""
    assert asked(client) == 0  # the upstream is connected, so it hears of the next call
    first = arrived(frames_of)
    stream = client.open(fields(LIST))
    client.send(DataFrame(stream, message()))
    trailers: Fields = [(name, FORGED)]
    client.send(HeadersFrame(stream, client.block(trailers), flags=["END_HEADERS", "END_STREAM"]))
    assert client.reset(stream) == 1
    client.lives()
    seen = frames_of.wait(lambda seen: seen is not first)
    assert FORGED not in str(seen.fields)
    assert not seen.ended


def test_what_qdrant_is_meant_to_see_passes(client: H2Client, frames_of: H2Upstream) -> None:
    """The keys of inference providers end in `-api-key`, and are none of ours."""
    kept = [
        ("openai-api-key", "sk-1"),
        ("x-qdrant-route-affinity", "r"),
        ("user-agent", "test"),
        ("x-bytes-bin", "AAECAw"),
        ("grpc-accept-encoding", "gzip"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("grpc-timeout", "20S"),
        ("x-tracing-id", "id-1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    assert asked(client, *kept) == 0
    assert [one for one in arrived(frames_of).fields if one in kept] == kept


def test_no_key_is_sent_where_none_is_configured(
    site: Site, shared_upstream: ScriptedUpstream, frames_of: H2Upstream
) -> None:
    frames_of.streams.clear()
    with Gateway(site.write_config(shared_upstream.url, grpc=frames_of.url)) as plain, h2(plain, site) as client:
        assert asked(client, ("api_key", FORGED)) == 0
    assert "api-key" not in dict(frames_of.streams[0].fields)


def test_another_host_is_nobodys(client: H2Client, frames_of: H2Upstream) -> None:
    """The upstream hears its own name; what the client called us is told beside it."""
    assert client.status(client.call(b"", fields(LIST, authority="evil.example:6334"))) == 0
    (seen,) = frames_of.streams
    assert dict(seen.fields)[":authority"] == frames_of.url.removeprefix("http://")
    assert dict(seen.fields)["x-forwarded-host"] == "evil.example:6334"
