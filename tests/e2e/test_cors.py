"""Web pages: preflights are answered before authentication and refusals can be read, as in Qdrant."""

from __future__ import annotations

from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

ORIGIN = ("origin", "https://page.example.org")
PREFLIGHT = [ORIGIN, ("access-control-request-method", "PUT"), ("access-control-request-headers", "api-key,x-a")]
OPTIONAL = {"verify_https_client_certificate": False, "api_key": "manage-k3y"}


def test_a_preflight_is_answered_here(site: Site, upstream: ScriptedUpstream) -> None:
    config = site.write_config(upstream.url, service=OPTIONAL)
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as connection:
        for path in ("/collections/docs/points", "/no/such/route"):
            response = connection.ask("OPTIONS", path, PREFLIGHT)
            assert (response.status, response.body) == (200, b"")
            assert response.fields["access-control-allow-origin"] == ORIGIN[1]
            assert response.fields["access-control-allow-methods"] == "PUT"
            assert response.fields["access-control-allow-headers"] == "api-key,x-a"
            assert "access-control-allow-credentials" not in response.fields
            assert gateway.audited(method="cors_preflight")["result"] == "ok"
        for fields in ([ORIGIN], PREFLIGHT[1:], []):
            assert connection.ask("OPTIONS", "/collections", fields).status == 401
    assert not upstream.requests


def test_a_page_can_read_why_it_was_refused(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, service=OPTIONAL)) as gateway:
        with Client(gateway, site.client(None)) as connection:
            refused = connection.ask("GET", "/collections", [ORIGIN])
            assert (refused.status, refused.fields["access-control-allow-origin"]) == (401, ORIGIN[1])
            assert "access-control-allow-origin" not in connection.ask("GET", "/collections").fields
        with Client(gateway, site.client("search")) as connection:
            refused = connection.ask("DELETE", "/collections/docs", [ORIGIN])
            assert (refused.status, refused.fields["access-control-allow-origin"]) == (403, ORIGIN[1])


def test_it_can_be_turned_off(site: Site, upstream: ScriptedUpstream) -> None:
    service = OPTIONAL | {"enable_cors": False}
    config = site.write_config(upstream.url, service=service)
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as connection:
        refused = connection.ask("OPTIONS", "/collections", PREFLIGHT)
        assert refused.status == 401
        assert "access-control-allow-origin" not in refused.fields
