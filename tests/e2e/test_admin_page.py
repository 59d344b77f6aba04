"""The operators' page in a real headless Chromium: what it shows, that it complains of nothing, and that it cuts."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.browser import Page, browsing
from support.certificates import CN, issue_odd, name
from support.gateway import Gateway
from support.raw_request import Client, ask
from support.site import Site
from support.upstream import ScriptedUpstream

HOSTILE = "</th><script>document.title='taken over'</script>"


@pytest.fixture
def gateway(own_site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(own_site.write_config(upstream.url)) as running:
        yield running


@contextmanager
def page_at_another_port(body: str) -> Iterator[str]:
    """The URL of a page that another program on this machine serves."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def numbers(gateway: Gateway) -> dict[str, int]:
    """Of the live connections, by who is at their other end."""
    live = json.loads(gateway.ask_admin("/status")[1])["connections"]["live"]
    return {entry["identity"]: entry["number"] for entry in live}


def test_it_shows_what_happens_and_its_button_cuts_a_connection(
    own_site: Site, gateway: Gateway, tmp_path: Path
) -> None:
    issue_odd(own_site, "odd", name((CN, HOSTILE)))
    with (
        Client(gateway, own_site.client("search")) as search,
        Client(gateway, own_site.client("odd")) as odd,
        gateway.connect(own_site.client()) as alice,
    ):
        assert [search.ask().status, search.ask("DELETE", "/collections/docs").status, odd.ask().status] == [
            200,
            403,
            403,
        ]
        assert ask(alice).status == 200
        number = numbers(gateway)["CN=alice,OU=platform"]

        async def scenario(page: Page) -> None:
            await page.without_scripts()
            shown = await page.open(f"http://{gateway.admin}/?paused")
            for text in (
                "CN=localhost",
                "spiffe://example.org/search/web",
                "needs_manage",
                "no_role",
                r"\&lt;/th\&gt;\&lt;script\&gt;",  # as RFC 4514 writes it
            ):
                assert text in shown
            assert "<script" not in shown
            assert await page.attributes("script, style, img, iframe, [style], [onclick]") == []
            labels = [each["aria-label"] for each in await page.attributes("svg")]
            assert sorted(labels) == [f"decisions for {role} over time" for role in ("(no role)", "admin", "search")]
            assert len(await page.attributes("path.denied")) == 2
            (left,) = [each for each in await page.attributes("meter") if "CN=localhost" in each["aria-label"]]
            assert 0.9 < float(left["value"]) <= 1
            image = await page.screenshot("admin-page.png")
            assert image.startswith(b"\x89PNG")
            assert len(image) > 30_000, "a page with plots and tables"
            await page.narrow(400)
            document, window = await page.widths()
            assert (document <= window, window) == (True, 400)
            await page.screenshot("admin-page-400.png")
            for selector, number_of in (
                (".badge", 2), (".lifetimes .name", 2), (".lifetimes .left", 2), (".lifetimes .until", 2),
                (".clients .name", 3), (".clients button", 3), (".refusals .when", 2), (".refusals .reason", 2),
            ):  # fmt: skip
                edges = await page.spans(selector)
                assert len(edges) == number_of, selector
                assert all(0 <= left < right <= 400 for left, right in edges), (selector, edges)
            after = await page.click(f'form[action="/connections/{number}/cut"] button')
            assert f"/connections/{number}/cut" not in after
            assert "cut_by_operator" in after
            assert page.complaints == []

        browsing(tmp_path, scenario)
        assert alice.recv(1) == b""
        assert search.ask().status == 200, "nobody else is touched"
    assert (
        gateway.audited(event="connection", reason="cut_by_operator")["certificate_subject"] == "CN=alice,OU=platform"
    )


def test_a_page_of_somebody_else_neither_cuts_nor_frames_it(own_site: Site, gateway: Gateway, tmp_path: Path) -> None:
    with Client(gateway, own_site.client()) as client:
        assert client.ask().status == 200
        (number,) = numbers(gateway).values()
        form = (
            f'<form method="post" action="http://{gateway.admin}/connections/{number}/cut"><button>win</button></form>'
        )
        frame = f'<iframe src="http://{gateway.admin}/"></iframe>'

        async def scenario(page: Page) -> None:
            with page_at_another_port(form) as url:
                await page.open(url)
                assert "not cut from another web page" in await page.click("button")
            with page_at_another_port(frame) as url:
                await page.open(url)
                assert any("frame-ancestors" in each or "BLOCKED_BY" in each for each in page.complaints)

        browsing(tmp_path, scenario)
        assert numbers(gateway) == {"CN=alice,OU=platform": number}
        assert client.ask().status == 200
