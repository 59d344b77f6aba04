"""A path is about the same names to the gateway and to Qdrant, however it is spelled; a second reading is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from support.actix_paths import names_of
from support.gateway import Gateway
from support.raw_request import Client, request
from support.site import Site
from support.upstream import ScriptedUpstream, plain

ROUTES = (
    ("GET", "/collections/docs"),
    ("DELETE", "/collections/docs"),
    ("PUT", "/collections/docs/points"),
    ("GET", "/collections/docs/points/1"),
    ("POST", "/collections/docs/points/scroll"),
    ("GET", "/collections/docs/snapshots/x"),
    ("GET", "/collections/other"),
    ("POST", "/collections/other/points/count"),
    ("GET", "/collections"),
    ("GET", "/metrics"),
)


def insert(text: str, before: str) -> Callable[[str], str]:
    return lambda path: path.replace(before, text + before, 1)


def name(change: Callable[[str], str]) -> Callable[[str], str]:
    """Changes the collection's name; a route without one has its last segment changed."""

    def changed(path: str) -> str:
        parts = path.split("/")
        index = 2 if len(parts) > 2 else -1
        parts[index] = change(parts[index])
        return "/".join(parts)

    return changed


def encoded(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


OTHERS = ("..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..%2f", "..%5c", "..;", "..%00", "..%c0%af", "。。", "%ff")
MUTATIONS: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "// at the start": lambda path: "/" + path,
    "/// inside": lambda path: path.replace("/", "///"),
    "trailing /": lambda path: path + "/",
    "trailing //": lambda path: path + "//",
    "trailing %2f": lambda path: path + "%2f",
    "/./": insert("/.", "/"),
    "/%2e/": insert("/%2e", "/"),
    "trailing /.": lambda path: path + "/.",
    "trailing /..": lambda path: path + "/..",
    "?": lambda path: path + "?",
    "?x=/../other": lambda path: path + "?x=/../other",
    "%3F": lambda path: path + "%3Fx",
    "#": lambda path: path + "#x",
    "%23": lambda path: path + "%23x",
    ";param": lambda path: path + ";x=y",
    "%3b": lambda path: path + "%3bx",
    "%00 at the end": lambda path: path + "%00",
    "%0a at the end": lambda path: path + "%0a",
    "%0d%0a": lambda path: path + "%0d%0aapi-key:%20x",
    "%7f": lambda path: path + "%7f",
    "upper case": str.upper,
    "encoded first letter": lambda path: "/%" + f"{ord(path[1]):x}" + path[2:],
    "all encoded": lambda path: "/".join(encoded(part) for part in path.split("/")),
    "all encoded, upper case": lambda path: "/".join(encoded(part).upper() for part in path.split("/")),
    "/ encoded": lambda path: path[0] + path[1:].replace("/", "%2f"),
    "/ encoded, upper case": lambda path: path[0] + path[1:].replace("/", "%2F"),
    "/ encoded twice": lambda path: path[0] + path[1:].replace("/", "%252f"),
    "/ as a backslash": lambda path: path[0] + path[1:].replace("/", "\\"),
    "/ as %5c": lambda path: path[0] + path[1:].replace("/", "%5c"),
    "/ as a division slash": lambda path: path[0] + path[1:].replace("/", "%e2%81%84"),
    "/ as a full-width solidus": lambda path: path[0] + path[1:].replace("/", "%ef%bc%8f"),
    "/ as overlong UTF-8": lambda path: path[0] + path[1:].replace("/", "%c0%af"),
    "by way of the dashboard": lambda path: "/dashboard/.." + path,
    "by way of the dashboard, encoded": lambda path: "/dashboard%2f.." + path,
    "by way of the dashboard, all encoded": lambda path: "/dashboard%2f..%2f" + path[1:].replace("/", "%2f"),
    "by way of health": lambda path: "/healthz/.." + path,
    "by way of health, a parameter": lambda path: "/healthz;" + path,
    "by way of the root": lambda path: "/.." + path,
    "absolute": lambda path: "http://localhost" + path,
    "authority": lambda path: "//localhost" + path,
    "name encoded": name(encoded),
    "name encoded twice": name(lambda text: encoded(text).replace("%", "%25")),
    "name encoded three times": name(lambda text: encoded(text).replace("%", "%2525")),
    "name half encoded": name(lambda text: text[:1] + encoded(text[1:])),
    "name with its % encoded": name(lambda text: f"%25{ord(text[0]):x}" + text[1:]),
    "name in upper case": name(str.upper),
    "name with a space": name(lambda text: text + "%20"),
    "name with a +": name(lambda text: text + "+"),
    "name with %2b": name(lambda text: text + "%2b"),
    "name with a tab": name(lambda text: text + "%09"),
    "name with NUL": name(lambda text: text + "%00x"),
    "name with a lone %": name(lambda text: text + "%"),
    "name with half an escape": name(lambda text: text + "%4"),
    "name with no escape": name(lambda text: text + "%zz"),
    "name in full width": name(lambda text: "".join(encoded(chr(ord(letter) + 0xFEE0)) for letter in text)),
    "name with a combining mark": name(lambda text: text + "%cc%81"),
    "name with a zero-width space": name(lambda text: text + "%e2%80%8b"),
    "name with a %": name(lambda text: text + "%25"),
    "name with a / inside": name(lambda text: text + "%2Fv1"),
    "name with a \\": name(lambda text: text + "%5Cx"),
    "name with [] and |": name(lambda text: text + "[]|^"),
    "name with its tail elsewhere": lambda path: path + "%2f..%2f..%2fother%2fx",
    "name that is absolute": lambda path: path[: path.rindex("/") + 1] + "%2fetc%2fpasswd",
    "name that is a glob": name(lambda _: "*"),
    "name that is empty": name(lambda _: ""),
    "name that is long": name(lambda text: text * 100),
    "name with a ,": name(lambda text: text + ",other"),
    "name with a parameter": name(lambda text: text + ";other"),
    **{f"name with {text} and another": name(lambda old, text=text: f"{old}/{text}/other") for text in OTHERS},  # type: ignore[misc]
    **{f"name that is {text}": name(lambda _, text=text: text) for text in OTHERS},  # type: ignore[misc]
}
CLIENTS = ("admin", "search", "ingest")


@pytest.mark.parametrize("client", CLIENTS)
def test_decision_and_upstream_agree(site: Site, upstream: ScriptedUpstream, client: str) -> None:
    outcomes: list[tuple[str, str, int, list[str]]] = []
    upstream.answer = plain(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"result":{}}')
    config = site.write_config(upstream.url, audit={"probes": True})
    with Gateway(config) as gateway, Client(gateway, site.client(client)) as connection:
        for (label, mutate), (method, path) in itertools.product(MUTATIONS.items(), ROUTES):
            target = mutate(path)
            before = len(upstream.requests)
            status = connection.send(request(method, target.encode().decode("latin-1")), method).status
            arrived = [one.line for one in upstream.requests[before:]]
            outcomes.append((f"{label}: {method} {target}", method, status, arrived))
        records = [record for record in gateway.stop() if "event" not in record]
    assert len(records) == len(outcomes)
    passed = 0
    for (case, method, status, arrived), record in zip(outcomes, records, strict=True):
        assert record["status"] == status, case
        if status == 200:
            passed += 1
            assert record["result"] == "ok", case
            (line,) = arrived
            check(client, method, line, record, case)
        else:
            assert status in {400, 403, 404}, case
            assert record["result"] == "denied", case
            assert not arrived, case
    assert passed > 15
    assert len(outcomes) - passed > 200


def check(client: str, method: str, line: str, record: dict[str, Any], case: str) -> None:
    """What arrived upstream has one reading, it is the one that was audited, and the client may do that."""
    sent_method, target, _ = line.split(" ")
    segments = names_of(target)
    assert sent_method == method, case
    assert not {".", ".."} & set(segments), case
    assert not any("\0" in segment or "\ufffd" in segment for segment in segments), case
    if "snapshots" in segments or "dashboard" in segments:
        first, *rest = re.split(r"[/\\]", segments[-1])
        assert first not in {"", ".", ".."}, case
        assert not {".", ".."} & set(rest), case
    if segments[0] == "collections" and len(segments) > 1:
        assert record["collection"] == segments[1], case
        assert client != "ingest" or segments[1] == "docs", case
    else:
        assert "collection" not in record, case
        listing = segments == ["collections"] and method == "GET"
        assert client != "ingest" or listing or segments[0] in {"", "dashboard"}, case
    if client == "search":
        assert method == "GET" or segments[-1] in {"scroll", "count"}, case


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        ("/collections/docs/", "/collections/docs"),
        ("//collections///docs", "/collections/docs"),
        ("/%63ollections/d%6Fcs", "/collections/docs"),
        ("/collections/docs?", "/collections/docs"),
        ("/collections/docs?timeout=1&x=%2F", "/collections/docs?timeout=1&x=%2F"),
        ("/collections/a%20b+c", "/collections/a%20b%2Bc"),
        ("/collections/%C3%A9", "/collections/%C3%A9"),
        ("/collections/docs/points/1%2e5", "/collections/docs/points/1.5"),
        ("/collections/clip%2fv1", "/collections/clip%2Fv1"),
        ("/collections/100%25", "/collections/100%25"),
        ("/collections/a%2520b", "/collections/a%2520b"),
        ("/collections/docs/snapshots/a%2Fb%5C%09.snapshot", "/collections/docs/snapshots/a%2Fb%5C%09.snapshot"),
        ("/collections/docs/points/a[]|b", "/collections/docs/points/a%5B%5D%7Cb"),
    ],
)
def test_the_one_form_that_goes_upstream(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, target: str, arrives: str
) -> None:
    with Client(shared_gateway, site.client("admin")) as client:
        assert client.ask("GET", target).status == 200
    assert shared_upstream.requests[-1].line == f"GET {arrives} HTTP/1.1"


def test_a_long_path(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    before = len(shared_upstream.requests)
    with Client(shared_gateway, site.client("admin")) as client:
        assert client.ask("GET", "/collections/" + "a" * 256).status == 400
        assert client.ask("GET", "/collections/" + "%61" * 256).status == 400
        assert client.ask("GET", "/collections/docs/" + "a/" * 1000).status == 404
        assert client.ask("GET", "/collections/" + "a" * 65_536).status == 431
    assert len(shared_upstream.requests) == before


def test_the_oracle_sees_what_it_should() -> None:
    assert names_of("/collections/docs") == ["collections", "docs"]
    assert names_of("//collections//d%6fcs/?x=1") == ["collections", "docs"]
    assert names_of("/collections/%2564ocs") == ["collections", "%64ocs"]
    assert names_of("/collections/a%2520b") == ["collections", "a%20b"]
    assert names_of("/dashboard%2f..%2fcollections") == ["dashboard/../collections"]
    assert names_of("/collections/%C3%A9") == ["collections", "\u00e9"]
    assert names_of("/collections/%FF") == ["collections", "\ufffd"]
