"""A browser with a client certificate, from its NSS database and by its policy: the gateway knows who it is."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
from support.browser import POLICIES, Page, browsing, certificate_selected_for, home_with_certificate
from support.gateway import Gateway
from support.site import Site


@pytest.fixture
def home(site: Site, tmp_path: Path) -> Path:
    return home_with_certificate(tmp_path, site.directory, "search")


def test_whoami_tells_a_browser_who_it_is(site: Site, home: Path, shared_gateway: Gateway) -> None:
    seen: list[str] = []

    async def scenario(page: Page) -> None:
        seen.append(await page.open(shared_gateway.url("/_tlsproxy/whoami")))
        await page.screenshot("whoami.png")
        # Browsers ask for an icon by themselves, which is no route of Qdrant's.
        assert [each for each in page.complaints if "favicon.ico" not in each and "404" not in each] == []

    with certificate_selected_for(f"https://localhost:{shared_gateway.port}"):
        browsing(home, scenario)
    told = json.loads(unescape(re.sub(r"<[^>]*>", "", seen[0])))
    assert told["identity"]["uri"] == ["spiffe://example.org/search/web"]
    assert told["identity"]["serial"] == f"{site.serial('search'):x}"
    assert (told["rule"], told["role"], told["rights"]) == ("search-svc", "search", ["r"])
    record = shared_gateway.audited(method="whoami")
    assert (record["role"], record["status"]) == ("search", 200)
    assert not list(POLICIES.glob(f"tlsproxy-test-{os.getpid()}*"))
