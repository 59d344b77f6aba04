"""A browser with a client certificate, from its NSS database and by its policy: the gateway knows who it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import pytest
from support.browser import Page, browsing
from support.gateway import DEADLINE, Gateway
from support.site import Site
from support.tools import tool

POLICIES = Path("/etc/chromium/policies/managed")


@pytest.fixture
def home(site: Site, tmp_path: Path) -> Path:
    """A home directory whose NSS database trusts the site's CA, and holds the certificate of `search`."""
    database = tmp_path / ".pki" / "nssdb"
    database.mkdir(parents=True)
    files = site.directory
    bundle = tmp_path / "search.p12"
    run("openssl", "pkcs12", "-export", "-in", files / "search.pem", "-inkey", files / "search.key", "-out", bundle,
        "-passout", "pass:p12")  # fmt: skip
    run("certutil", "-d", f"sql:{database}", "-N", "--empty-password")
    run("certutil", "-d", f"sql:{database}", "-A", "-n", "site CA", "-t", "C,,", "-i", files / "ca.pem")
    run("pk12util", "-d", f"sql:{database}", "-i", bundle, "-W", "p12", "-K", "")
    return tmp_path


def run(program: str, *arguments: str | Path) -> None:
    done = subprocess.run([tool(program), *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def certificate_selected_for(origin: str) -> Iterator[None]:
    """By the policy AutoSelectCertificateForUrls: without one a browser would ask a person, who is not there.

    It is the whole machine's; so it names this one origin, in a file of its own that is gone afterwards.
    """
    if not os.access(next(each for each in (POLICIES, *POLICIES.parents) if each.exists()), os.W_OK):
        pytest.skip(f"{POLICIES} may not be written")
    made = [each for each in (POLICIES, *POLICIES.parents) if not each.exists()]
    POLICIES.mkdir(parents=True, exist_ok=True)
    policy = POLICIES / f"tlsproxy-test-{os.getpid()}.json"
    try:
        rule = json.dumps({"pattern": origin, "filter": {}})
        policy.write_text(json.dumps({"AutoSelectCertificateForUrls": [rule]}))
        yield
    finally:
        policy.unlink(missing_ok=True)
        for directory in made:
            directory.rmdir()


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
