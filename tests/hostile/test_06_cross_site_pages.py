"""Cross-site pages can do nothing with the client certificate of the browser that shows them.

A browser presents its client certificate whatever page asks. So where that certificate alone gives the rights of a
request, the browser's own word on where the request comes from decides.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from hyperframe.frame import DataFrame
from support.browser import Page, browsing, certificate_selected_for, home_with_certificate
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import Fields, fields, h2, message
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import ScriptedUpstream

KEY = "manage-k3y"
APP = "https://app.example.org"
ELSEWHERE = "https://evil.example.org"
OPEN = ["/", "/healthz", "/livez", "/readyz", "/dashboard/", "/dashboard/assets/index.js"]
GUARDED = [
    ("GET", "/collections", b""),
    ("GET", "/_tlsproxy/whoami", b""),
    ("GET", "/no/such/route", b""),
    ("POST", "/collections/docs/points/delete", b'{"points":[1]}'),
    ("POST", "/collections/docs/points/search", b'{"vector":[1],"limit":1}'),
    ("DELETE", "/collections/docs", b""),
    ("POST", "/collections/docs/snapshots/upload", b"--x\r\n\r\n--x--\r\n"),
    ("GET", "/collections/docs/snapshots/one", b""),
    ("POST", "/audit/logs", b"{}"),
    ("OPTIONS", "/collections", b""),
]


@dataclass(frozen=True, slots=True)
class Served:
    gateway: Gateway
    upstream: ScriptedUpstream
    grpc: GrpcUpstream
    site: Site

    def own(self, port: int | None = None) -> str:
        return f"localhost:{port or self.gateway.port}"

    def ask(
        self, method: str, target: str, *said: tuple[str, str], body: bytes = b"", client: str = "admin"
    ) -> Response:
        """With `host` as a browser writes it, unless ``said`` has one."""
        host = () if any(name == "host" for name, _ in said) else (("host", self.own()),)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (*host, *said))
        length = f"content-length: {len(body)}\r\n" if body else ""
        data = f"{method} {target} HTTP/1.1\r\n{lines}{length}\r\n".encode("latin-1") + body
        with Client(self.gateway, self.site.client(client)) as connection:
            return connection.send(data, method)


def serving(site: Site, **service: Any) -> Iterator[Served]:
    with ScriptedUpstream() as upstream, GrpcUpstream() as grpc:
        service = {"verify_https_client_certificate": False, "api_key": KEY} | service
        with Gateway(site.write_config(upstream.url, grpc=grpc.url, service=service | {"grpc_port": 0})) as gateway:
            yield Served(gateway, upstream, grpc, site)


@pytest.fixture(scope="module")
def usual(site: Site) -> Iterator[Served]:
    yield from serving(site)


@pytest.fixture(scope="module")
def with_app(site: Site) -> Iterator[Served]:
    """Its operator has a web application that uses the certificates of its visitors."""
    yield from serving(site, allowed_origins=[APP])


# What a browser says of a page of elsewhere

FOREIGN: list[list[tuple[str, str]]] = [
    [("sec-fetch-site", "cross-site")],
    [("sec-fetch-site", "same-site")],
    [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-user", "?1")],
    [("origin", ELSEWHERE)],
    [("origin", "null")],
    [("origin", "https://localhost")],
    [("origin", "https://localhost:1")],
    [("origin", "http://localhost:{port}")],
    [("origin", "https://localhost:{port}.evil.example.org")],
    [("origin", "https://evil@localhost:{port}")],
    [("origin", "https://localhost:{port}/")],
    [("origin", "https://127.0.0.1:{port}")],
    [("origin", "https://localhost:{port}"), ("sec-fetch-site", "cross-site")],
    [("origin", ELSEWHERE), ("sec-fetch-site", "same-origin")],
    [("origin", "https://localhost:{port}"), ("origin", ELSEWHERE)],
    [("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
    [("sec-fetch-site", "same-origin, cross-site")],
    [("sec-fetch-site", "")],
    [("sec-fetch-site", "?1")],
    [("origin", "")],
    [("origin", f"https://localhost:{{port}} {ELSEWHERE}")],
]
OWN: list[list[tuple[str, str]]] = [
    [],
    [("sec-fetch-site", "none")],
    [("sec-fetch-site", "same-origin")],
    [("origin", "https://localhost:{port}")],
    [("origin", "HTTPS://LocalHost:{port}")],
    [("origin", "https://localhost:{port}"), ("sec-fetch-site", "same-origin")],
    [("host", "[::1]:6333"), ("origin", "https://[::1]:6333")],
    [("host", "qdrant.example.org"), ("origin", "https://qdrant.example.org")],
    [("host", "qdrant.example.org:443"), ("origin", "https://qdrant.example.org")],
    [("host", "qdrant.example.org"), ("origin", "https://qdrant.example.org:443")],
]


def said(served: Served, words: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value.replace("{port}", str(served.gateway.port))) for name, value in words]


@pytest.mark.parametrize("words", FOREIGN, ids=str)
def test_the_certificate_alone_gives_it_nothing(usual: Served, words: list[tuple[str, str]]) -> None:
    seen = len(usual.upstream.requests)
    answer = usual.ask("POST", "/collections/docs/points/delete", *said(usual, words), body=b'{"points":[1]}')
    assert (answer.status, answer.fields["content-type"]) == (403, "application/json")
    assert answer.json["status"]["error"].startswith("Forbidden: a web page of another origin")
    assert len(usual.upstream.requests) == seen
    record = usual.gateway.audited(reason="cross_site")
    assert (record["result"], record["status"], record["role"], record["rule"]) == ("denied", 403, "admin", "platform")
    assert record["certificate_subject"] == "CN=alice,OU=platform"


@pytest.mark.parametrize("words", OWN, ids=str)
def test_its_own_pages_its_user_and_clients_that_are_no_browsers_notice_nothing(
    usual: Served, words: list[tuple[str, str]]
) -> None:
    answer = usual.ask("POST", "/collections/docs/points/delete", *said(usual, words), body=b'{"points":[1]}')
    assert (answer.status, usual.upstream.requests[-1].body) == (200, b'{"points":[1]}')


@pytest.mark.parametrize(("method", "target", "body"), GUARDED, ids=str)
def test_not_by_any_method_nor_on_any_route_that_the_certificate_opens(
    usual: Served, method: str, target: str, body: bytes
) -> None:
    seen = len(usual.upstream.requests)
    answer = usual.ask(method, target, ("origin", ELSEWHERE), ("sec-fetch-site", "cross-site"), body=body)
    assert answer.status == 403
    assert usual.gateway.audited(reason="cross_site")["status"] == 403
    assert len(usual.upstream.requests) == seen


def test_a_caller_limited_to_collections_is_asked_the_same_before_its_body_is_read(usual: Served) -> None:
    body = b'{"query":[1.0],"lookup_from":{"collection":"docs"}}'
    answer = usual.ask(
        "POST", "/collections/docs/points/query", ("sec-fetch-site", "cross-site"), body=body, client="ingest"
    )
    assert answer.status == 403
    assert usual.gateway.audited(reason="cross_site")["role"] == "ingest"


def test_a_refused_download_or_upload_has_its_own_form(usual: Served) -> None:
    for method, target, body in (GUARDED[6], GUARDED[7]):
        answer = usual.ask(method, target, ("origin", ELSEWHERE), body=body)
        assert (answer.status, answer.fields["content-type"]) == (403, "text/plain; charset=utf-8")
        assert answer.body.startswith(b"Forbidden: a web page of another origin")


@pytest.mark.parametrize("target", OPEN)
def test_what_is_open_to_anybody_is_open_to_its_pages(usual: Served, target: str) -> None:
    assert usual.ask("GET", target, ("origin", ELSEWHERE), ("sec-fetch-site", "cross-site")).status == 200


@pytest.mark.parametrize("credential", [("api-key", KEY), ("authorization", f"Bearer {KEY}")], ids=str)
@pytest.mark.parametrize("client", ["admin", "stranger", None])
def test_a_key_or_token_header_needed_a_preflight_and_counts_as_before(
    usual: Served, credential: tuple[str, str], client: str | None
) -> None:
    with Client(usual.gateway, usual.site.client(client)) as connection:
        answer = connection.ask(
            "GET", "/collections", [("origin", ELSEWHERE), ("sec-fetch-site", "cross-site"), credential]
        )
    assert answer.status == (403 if client == "stranger" else 200)
    assert client != "stranger" or usual.gateway.audited(reason="no_role")


def test_a_header_that_is_no_key_does_not_count_as_one(usual: Served) -> None:
    for name, value in (("authorization", "Basic YWxpY2U6eA=="), ("api-key", "\u00e9"), ("cookie", "api-key=x")):
        assert usual.ask("GET", "/collections", ("origin", ELSEWHERE), (name, value)).status == 403
        assert usual.gateway.audited(reason="cross_site")


def test_who_has_no_right_anyway_hears_that(usual: Served) -> None:
    assert usual.ask("GET", "/collections", ("origin", ELSEWHERE), client="stranger").status == 403
    assert usual.gateway.audited(reason="no_role")
    with Client(usual.gateway, usual.site.client(None)) as connection:
        assert connection.ask("GET", "/collections", [("origin", ELSEWHERE)]).status == 401


# gRPC: no page can make a call, and if one could, it would be refused

TEXT: Fields = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/qdrant.Points/Delete"),
    (":authority", "localhost"),
    ("content-type", "text/plain;charset=UTF-8"),
    ("origin", ELSEWHERE),
    ("sec-fetch-site", "cross-site"),
]


def test_what_a_page_can_send_without_a_preflight_is_no_call(usual: Served) -> None:
    with h2(usual.gateway, usual.site) as speaks:
        stream = speaks.open(TEXT)
        speaks.send(DataFrame(stream, message(), flags=["END_STREAM"]))
        assert speaks.fields(stream)[":status"] == "415"
        preflight = [
            (":method", "OPTIONS"),
            *TEXT[1:4],
            ("origin", ELSEWHERE),
            ("access-control-request-method", "POST"),
        ]
        speaks.send(speaks.headers(preflight, None, "END_STREAM"))
        assert "access-control-allow-origin" not in speaks.fields(speaks._stream)
    assert not usual.grpc.calls


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([("origin", ELSEWHERE)], 7),
        ([("sec-fetch-site", "cross-site")], 7),
        ([("sec-fetch-site", "same-site"), ("origin", "https://localhost")], 7),
        ([("origin", ELSEWHERE), ("api-key", KEY)], 0),
        ([("origin", "https://localhost"), ("sec-fetch-site", "same-origin")], 0),
    ],
    ids=str,
)
def test_a_call_from_elsewhere(usual: Served, words: Fields, status: int) -> None:
    with h2(usual.gateway, usual.site) as speaks:
        stream = speaks.call(of=fields("/qdrant.Collections/List", *words))
        assert speaks.status(stream) == status
    assert (usual.gateway.audited(api="/qdrant.Collections/List")["reason"] == "cross_site") == (status == 7)


def test_a_health_check_is_open(usual: Served) -> None:
    with h2(usual.gateway, usual.site) as speaks:
        assert speaks.status(speaks.call(of=fields("/grpc.health.v1.Health/Check", ("origin", ELSEWHERE)))) == 0


# A web application that uses the certificates of its visitors: service.allowed_origins

PREFLIGHT = [("access-control-request-method", "POST"), ("access-control-request-headers", "content-type")]


def test_a_listed_origin_may_ask_and_read(with_app: Served) -> None:
    for words in ([("origin", APP)], [("origin", APP), ("sec-fetch-site", "cross-site")]):
        answer = with_app.ask("POST", "/collections/docs/points/delete", *words, body=b'{"points":[1]}')
        assert answer.status == 200
        assert answer.fields["access-control-allow-origin"] == APP
        assert answer.fields["access-control-allow-credentials"] == "true"
        assert "origin" in answer.fields["vary"].lower()
        assert "origin" not in with_app.upstream.requests[-1].fields
    refused = with_app.ask("DELETE", "/collections/docs", ("origin", APP), client="search")
    assert (refused.status, refused.fields["access-control-allow-origin"]) == (403, APP)
    assert with_app.gateway.audited(status=403)["reason"] == "needs_manage"


def test_its_preflights_are_answered_with_and_without_a_certificate(with_app: Served) -> None:
    for client in ("admin", None):
        with Client(with_app.gateway, with_app.site.client(client)) as connection:
            answer = connection.ask("OPTIONS", "/collections/docs/points", [("origin", APP), *PREFLIGHT])
        assert (answer.status, answer.fields["access-control-allow-origin"]) == (200, APP)
        assert answer.fields["access-control-allow-credentials"] == "true"
        assert answer.fields["access-control-allow-headers"] == "content-type"


@pytest.mark.parametrize(
    "origin", [ELSEWHERE, "null", f"{APP}:443", f"{APP}.evil.example.org", "http://app.example.org", "*"]
)
def test_no_other_origin_may_ask_or_read(with_app: Served, origin: str) -> None:
    asked = with_app.ask("GET", "/collections", ("origin", origin))
    assert (asked.status, "access-control-allow-origin" in asked.fields) == (403, False)
    assert with_app.gateway.audited(reason="cross_site")
    for client, status in (("admin", 403), (None, 401)):
        with Client(with_app.gateway, with_app.site.client(client)) as connection:
            answer = connection.ask("OPTIONS", "/collections", [("origin", origin), *PREFLIGHT])
        assert (answer.status, "access-control-allow-origin" in answer.fields) == (status, False)
    with Client(with_app.gateway, with_app.site.client(None)) as connection:
        answer = connection.ask("GET", "/collections", [("origin", origin), ("api-key", KEY)])
    assert (answer.status, "access-control-allow-origin" in answer.fields) == (200, False)


def test_where_it_embeds_without_a_word_on_its_origin_it_is_elsewhere(with_app: Served) -> None:
    assert with_app.ask("GET", "/collections", ("sec-fetch-site", "cross-site")).status == 403


def test_without_a_list_a_preflight_is_answered_as_by_qdrant_and_allows_no_certificate(usual: Served) -> None:
    for client in ("admin", None):
        with Client(usual.gateway, usual.site.client(client)) as connection:
            answer = connection.ask("OPTIONS", "/collections", [("origin", ELSEWHERE), *PREFLIGHT])
        assert (answer.status, answer.fields["access-control-allow-origin"]) == (200, ELSEWHERE)
        assert "access-control-allow-credentials" not in answer.fields


# In a real browser, whose certificate is the admin's


@dataclass(slots=True)
class Pages:
    """An origin of elsewhere: whatever is asked of it, it has this page."""

    html: str = ""
    _server: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> Self:
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.html.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


FORM = """
<form method=post action="{url}/collections/docs/points/delete" enctype=text/plain target=one>
<input name='{{"points":[1],"x":"' value='"}}'><button id=text>.</button></form>
<form method=post action="{url}/collections/docs/snapshots/upload" enctype=multipart/form-data target=two>
<input name=snapshot value=planted><button id=multipart>.</button></form>
<iframe name=one></iframe><iframe name=two></iframe>
"""
DELETE = "/collections/docs/points/delete"
FETCH = """fetch("{url}", {{
    method: "POST", mode: "no-cors", credentials: "include", body: '{{"points":[1]}}',
    headers: {{"content-type": "text/plain"}}}}).then(answer => answer.type).catch(() => "failed")"""
READ = (
    """fetch("{url}/collections", {{credentials: "include"}}).then(answer => answer.text()).catch(() => "unreadable")"""
)


def test_no_page_acts_with_the_certificate_but_its_own_and_the_listed(site: Site, tmp_path: Path) -> None:
    """A `fetch` that needs no preflight, to the ports of REST and of gRPC, a form of plain text, a form with a planted
    snapshot, a link.
    """
    read: dict[str, Any] = {}
    with Pages() as evil, Pages() as app, ScriptedUpstream() as upstream, GrpcUpstream() as grpc:
        config = site.write_config(
            upstream.url, grpc=grpc.url, service={"allowed_origins": [app.origin], "grpc_port": 0}
        )
        with Gateway(config) as gateway:
            url, calls = gateway.url(""), f"https://localhost:{gateway.grpc_port}"
            evil.html = app.html = FORM.format(url=url)

            async def scenario(page: Page) -> None:
                await page.open(evil.origin)
                assert await page.run(FETCH.format(url=f"{url}{DELETE}")) == "opaque"
                gateway.audited(reason="cross_site", api=DELETE)
                read["elsewhere"] = await page.run(READ.format(url=url))
                gateway.audited(reason="cross_site", api="/collections")
                for button, api in (("#text", DELETE), ("#multipart", "/collections/docs/snapshots/upload")):
                    await page.run(f"document.querySelector('{button}').click()")
                    gateway.audited(reason="cross_site", api=api)
                await page.run(FETCH.format(url=f"{calls}/qdrant.Points/Delete"))
                gateway.audited(reason="not_grpc")
                assert not upstream.requests
                assert not grpc.calls
                await page.run(f"location = '{url}/_tlsproxy/whoami'")
                gateway.audited(method="whoami", reason="cross_site")

                await page.open(f"{url}/_tlsproxy/whoami")
                read["typed"] = await page.run("document.body.innerText")
                read["same origin"] = await page.run(READ.format(url=""))
                await page.open(app.origin)
                read["listed"] = await page.run(READ.format(url=url))

            with certificate_selected_for(url, calls):
                browsing(home_with_certificate(tmp_path, site.directory, "admin"), scenario)
    assert read["elsewhere"] == "unreadable"
    assert json.loads(read["typed"])["role"] == "admin"
    assert read["same origin"] == read["listed"] == '{"status":"ok"}'
