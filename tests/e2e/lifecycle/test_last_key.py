"""The last key is removed: who goes on sending it does not have what the certificate alone may."""

from __future__ import annotations

from hyperframe.frame import DataFrame
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import fields, h2, message
from support.raw_connection import GET, UPSERT, RawClient, connected
from support.site import Site
from support.upstream import ScriptedUpstream

KEY = "a narrow key, long enough to be one"
SENT = b"api-key: " + KEY.encode() + b"\r\n"
READ = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n" + SENT + b"\r\n"
DELETE = b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n" + SENT + b"\r\n"
BEARER = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
UNAUTHENTICATED, DENIED = 16, 7


def status(client: RawClient, request: bytes) -> int:
    client.send(request)
    return client.response().status


def test_it_narrows_what_its_holder_may_until_the_end(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    own_site.write("narrow.key", KEY.encode())
    narrow = {"name": "narrow", "file": "narrow.key", "role": "ingest"}
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, keys=[narrow])
    key = ("api-key", KEY)
    with (
        Gateway(config) as gateway,
        connected(gateway, own_site.client()) as client,
        connected(gateway, own_site.client()) as upload,
        h2(gateway, own_site) as calls,
    ):
        assert (status(client, READ), status(client, DELETE)) == (200, 403)
        assert calls.status(calls.call(b"\x0a\x04docs", fields("/qdrant.Collections/Delete", key))) == DENIED
        upload.send(UPSERT, SENT, b"content-length: 1000000\r\n\r\n", bytes(1000))
        uploading = calls.open(fields("/qdrant.Points/Upsert", key))
        calls.send(DataFrame(uploading, message(b"\x0a\x04docs")[:7]))

        own_site.edit_config(config, keys=[])
        gateway.reloaded()
        assert upload.response().status == 403
        assert calls.status(uploading) == UNAUTHENTICATED
        assert [status(client, one) for one in (READ, DELETE, BEARER)] == [401, 401, 401]
        refused = calls.call(b"\x0a\x04docs", fields("/qdrant.Collections/Delete", key))
        assert calls.status(refused) == UNAUTHENTICATED
        assert gateway.audited(method="delete_collection", result="denied")["reason"]
        assert status(client, GET) == 200  # without it the certificate counts alone, as ever
        assert calls.status(calls.call(b"", fields("/qdrant.Collections/List"))) == 0
    assert not any(request.line.startswith("DELETE") for request in upstream.requests)
