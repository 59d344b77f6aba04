"""The operators' page as text, and what it lets a browser do. tests/e2e/test_admin_page.py has it in a real one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sample_status import HOSTILE, NOW, connection, refusal, status

from tlsproxy.admin.page import HEADERS, MAX_CONNECTIONS, page, stylesheet

VOID = {"meta", "link"}
"""The elements without an end that the page may have."""
EXPECTED = {
    "html", "head", "meta", "title", "link", "body", "header", "h1", "h2", "small", "ul", "li", "strong", "code", "p",
    "a", "main", "section", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "meter", "svg",
    "path", "form", "button", "footer",
}  # fmt: skip


class Document(HTMLParser):
    """Elements must nest as they are written: what a name smuggled in would break that, or be no element of ours."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def checked(told: dict[str, Any], **options: Any) -> Document:
    """The document, which has nothing in it that runs or comes from elsewhere."""
    document = Document(page(told, NOW, **options))
    for tag, attributes in document.elements:
        assert tag in EXPECTED
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("href", "src", "action"):
            assert re.fullmatch(r"/[a-z.?]*|/connections/\d+/cut|data:,|None", str(attributes.get(name)))
    return document


def test_it_tells_what_an_operator_asks_first() -> None:
    text = re.sub(r"\s+", " ", checked(status()).text)
    for told in (
        "serving", "rest on 0.0.0.0:6333", "Generation 4", "Last reload: ok", "role search: access r → rw on docs",
        "Restart needed: service.http_port", "qdrant.example.org", "30 days left", "expired 3 days ago", "12 revoked",
        "spiffe://example.org/search/web", "needs_write", "unknown_ca", "unidentified", "key nightly",
        "unverified CN=b", "CN=Partner root", "collection docs", "2027-01-15 08:00:05 UTC. Refreshes",
        "3: 1 TLSv1.2 and 2 TLSv1.3", "rest, TLSv1.2",
    ):  # fmt: skip
        assert told in text
    document = checked(status())
    assert {row["action"] for row in document.all("form")} == {"/connections/1/cut", "/connections/7/cut"}
    shares = [float(str(meter["value"])) for meter in document.all("meter")]
    assert shares == pytest.approx([30 / 90, 1000 / 1060, 650 / 3650, 5 / 365, 0, 6 / 7, 5 / 90], abs=1e-3)
    assert len(document.all("svg")) == 3


def test_what_strangers_chose_is_text_and_nothing_else() -> None:
    document = checked(status())
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert document.text.count(shown) == 5  # the warning, a change, a CA, a connection, a refusal
    assert "{{ 7*7 }}" in document.text
    assert not any(not each.isprintable() and each != "\n" for each in document.text)


@pytest.mark.parametrize(("state", "colour"), [("serving", "ok"), ("degraded", "soon"), ("not_ready", "over")])
def test_the_badge_is_the_verdict_on_readiness(state: str, colour: str) -> None:
    told = status(readiness={"ready": True, "state": state, "headline": f"NOT READY: crl: {HOSTILE}", "parts": {}})
    document = checked(told)
    assert {"class": f"badge {colour}"} in document.all("strong")
    assert "NOT READY: crl: CN=<script>" in document.text
    del told["readiness"]  # of a gateway that is older than this program
    assert "serving" in checked(told).text


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_makes_an_element(name: str, other: str) -> None:
    told = status(
        refusals=[
            refusal(1, name, collection=other, key=name, rule=other, reason=name, operation=other, presented=name)
        ],
        connections={"open": 1, "draining": True, "live": [connection(1, name, key=other, role=name, address=other)]},
        decisions={
            "seconds": 10,
            "kept": 90,
            "slots": [{"start": int(NOW) // 10 * 10, "roles": {name: {"denied": 1}}}],
        },
    )
    document = checked(told)
    plain = checked(status(refusals=[refusal(1, "a")], connections=told["connections"], decisions=told["decisions"]))
    assert len(document.all("tr")) == len(plain.all("tr"))


def test_a_failed_reload_says_why() -> None:
    failed = {"result": "failed", "trigger": "poll", "when": NOW, "generation": 4, "error": HOSTILE}
    text = checked(status(last_reload=failed | {"changed_at": None, "changes": []})).text
    assert "Last reload: failed" in text
    assert "The generation before it goes on serving." in text


def test_nothing_happened_yet() -> None:
    quiet = status(
        refusals=[],
        connections={"open": 0, "draining": False, "live": []},
        decisions={"seconds": 10, "kept": 90, "slots": []},
    )
    text = checked(quiet).text
    for told in ("Nobody is connected.", "Nobody was refused.", "Nobody has asked for anything."):
        assert told in text


def test_of_many_connections_the_youngest_are_listed_and_the_rest_counted() -> None:
    live = [connection(number, "CN=a") for number in range(1, 1001)]
    document = checked(status(connections={"open": 5000, "draining": False, "live": live}))
    assert len(document.all("form")) == MAX_CONNECTIONS
    assert "4800 more are open" in document.text


def test_workers_are_listed_where_there_are_any() -> None:
    workers = [{"number": 1, "pid": 4711, "started_at": NOW, "restarts": 3, "generation": 4, "silent": 0.0}]
    text = checked(status(workers=workers)).text
    assert "4711" in text
    assert "silent" not in text
    assert "silent for 4 s" in checked(status(workers=[workers[0] | {"silent": 4.2}])).text
    assert "Workers" not in checked(status()).text


@pytest.mark.parametrize("reached", [True, False])
def test_shared_limits_are_told_where_there_are_any(*, reached: bool) -> None:
    told = {"store": "rediss://store:6379", "gateways": 3, "reached": reached, "since": NOW - 60}
    text = page(status(shared=told), NOW)
    assert "limits shared by 3 gateways over rediss://store:6379" in text
    assert ("which is away since" in text) is not reached
    assert "limits shared" not in page(status(), NOW)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "version 7, signed at 2027-01-15 08:00:05 UTC, last fetched at 2027-01-15 08:00:05 UTC"),
        ({"fetched_at": None}, "version 7, signed at 2027-01-15 08:00:05 UTC, not fetched yet"),
        ({"version": None, "created": None}, "no configuration bundle of https://config.example/b yet"),
    ],
)
def test_the_bundle_of_the_configuration_is_told(more: dict[str, Any], text: str) -> None:
    told = {"url": "https://config.example/b", "version": 7, "created": NOW, "fetched_at": NOW, "error": ""}
    assert text in page(status(bundle=told | more), NOW)
    assert "bundle" not in page(status(bundle=None), NOW)


def test_it_is_made_anew_by_itself_until_it_is_paused() -> None:
    refresh = {"http-equiv": "refresh", "content": "10"}
    assert refresh in checked(status()).all("meta")
    assert refresh not in checked(status(), paused=True).all("meta")


def test_plots_stay_in_their_box_and_show_the_least() -> None:
    many = {"start": int(NOW) // 10 * 10, "roles": {"busy": {"allowed": 100_000, "denied": 1, "failed": 1}}}
    text = page(status(decisions={"seconds": 10, "kept": 90, "slots": [many]}), NOW)
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL)[0])  # type: ignore[index]  # noqa: S314 - ours
    steps = {path.get("class"): re.findall(r"M(\S+) (\S+)h3v(\S+)h-3z", str(path.get("d"))) for path in svg}
    assert steps == {
        "allowed": [("356", "0.0", "40.0")],
        "denied": [("356", "0.0", "2.0")],
        "failed": [("356", "0.0", "2.0")],
    }


def test_a_browser_is_allowed_one_stylesheet_and_forms_to_here() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "style-src": "'self'", "img-src": "data:", "form-action": "'self'",
        "base-uri": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert "url(" not in stylesheet()
    assert "@import" not in stylesheet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of 4.5; 3 for what is drawn (1.4.11)."""
    colours = {}
    for block in re.findall(r":root \{(.*?)\}", stylesheet(), re.DOTALL)[: 1 + (scheme == "dark")]:
        colours |= dict(re.findall(r"--(\w+): (#\w{6})", block))

    def light(name: str) -> float:
        parts = [int(colours[name][index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    texts = [(name, ground) for name in ("text", "soft", "link") for ground in ("ground", "card")]
    texts += [(name, "card") for name in ("ok", "soon", "over")]
    texts += [("ok", "okground"), ("soon", "soonground"), ("over", "overground")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    assert {
        name: contrast(name, "card") for name in ("allowed", "denied", "failed") if contrast(name, "card") < 3
    } == {}
