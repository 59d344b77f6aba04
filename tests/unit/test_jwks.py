"""What a fetch of a key set takes, and what is kept of one that fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from support.token_issuer import TokenIssuer

from tlsproxy.audit.line import Caller, Prepared
from tlsproxy.authz.access import Decision
from tlsproxy.authz.tokens import UNKNOWN_KEY
from tlsproxy.config.loader import parse
from tlsproxy.config.model import Config
from tlsproxy.config.tokens import KeySource, key_sources, resolve_tokens
from tlsproxy.errors import MaterialError
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.snapshot import jwks
from tlsproxy.snapshot.jwks import KeySets, fetch, fetch_changed, fetch_faults, fetched
from tlsproxy.threads import in_thread
from tlsproxy.tls.pki import Authority

JWK = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
GOOD = json.dumps({"keys": [JWK]}).encode()
NEWER = json.dumps({"keys": [JWK | {"kid": "new"}]}).encode()


def config(url: str) -> Config:
    issuer = {"name": "login", "issuer": "i", "audience": "a", "algorithm": "ES256", "jwks": url}
    tree = {"tls": {"cert": "c", "key": "k", "ca_cert": "a"}, "service": {"api_key": "k"}, "jwt_issuers": [issuer]}
    return parse(json.dumps(tree).encode(), Path("f.yaml"), {}).config


async def serving(answers: list[web.Response], asked: Callable[[], None] = lambda: None) -> tuple[web.AppRunner, str]:
    """Each answer once; the last for ever."""

    async def answer(_request: web.Request) -> web.Response:
        asked()
        given = answers.pop(0) if len(answers) > 1 else answers[0]
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    app = web.Application()
    app.router.add_get("/keys", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/keys"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (web.Response(status=404), "the answer was 404"),
        (web.Response(status=302, headers={"Location": "/keys"}), "the answer was 302"),
        (web.Response(body=b" " * (jwks.SIZE_LIMIT + 1)), "has more than"),
    ],
)
def test_what_is_no_document(answer: web.Response, text: str) -> None:
    async def run() -> None:
        runner, url = await serving([answer])
        with pytest.raises(MaterialError, match=text):
            await fetch(url)
        await runner.cleanup()

    asyncio.run(run())


def test_a_document_is_judged_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer may have thousands of keys."""
    judges: list[int] = []
    judge = jwks.key_set
    monkeypatch.setattr(jwks, "key_set", lambda *args: (judges.append(threading.get_ident()), judge(*args))[1])

    async def run() -> None:
        runner, url = await serving([web.Response(body=GOOD)])
        (source,) = key_sources(config(url))
        assert (await fetched(source)).document == GOOD
        await runner.cleanup()

    asyncio.run(run())
    assert judges
    assert threading.get_ident() not in judges


def test_a_document_that_the_server_still_has_is_not_sent_again() -> None:
    async def run() -> None:
        runner, url = await serving([web.Response(body=b"one", headers={"ETag": '"1"'}), web.Response(status=304)])
        document, etag = await fetch_changed(url, None, 3, b"")
        assert (document, etag) == (b"one", '"1"')
        assert await fetch_changed(url, None, 3, document, etag) == (b"one", '"1"')
        with pytest.raises(MaterialError, match="the answer was 304"):
            await fetch_changed(url, None, 3, b"")
        await runner.cleanup()

    asyncio.run(run())


def test_a_server_that_says_nothing_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "DEADLINE", 0.05)

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(MaterialError, match="no answer within"):
        asyncio.run(fetch(f"http://127.0.0.1:{server.getsockname()[1]}/"))


@pytest.mark.parametrize("status", ["", "404 Not Found", "200 OK"])
def test_a_fetch_that_ends_early_leaves_no_connection(tmp_path: Path, runner: asyncio.Runner, status: str) -> None:
    """Given up, or with an answer that is refused: a loop whose connection waits for its end cannot be closed."""
    issued = (authority := Authority.create()).issue(ips=["127.0.0.1"], server=True)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "both.pem").write_bytes(issued.certificate_pem + issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    source = KeySource("https://127.0.0.1/", "ES256", ca_cert=tmp_path / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        server.settimeout(10)

        def answer() -> None:
            """And read no more, so that nothing answers the connection's end."""
            connection = stack.enter_context(context.wrap_socket(server.accept()[0], server_side=True))
            assert connection.recv(1 << 14)
            if status:
                connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\nsome".encode())

        async def run() -> None:
            url = f"https://127.0.0.1:{server.getsockname()[1]}/"
            fetching = asyncio.create_task(fetch_changed(url, source, 3, b""))
            await in_thread(answer)
            if status:
                with pytest.raises(MaterialError, match=r"was 404|has more than"):
                    await fetching
            else:
                fetching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await fetching

        runner.run(run())
        runner.close()


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca_cert": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca_cert": "missing.pem"}, "missing.pem: does not exist"),
        ({"ca_cert": "server.pem"}, "is not a CA"),
        ({"ca_cert": "ca.pem", "bearer_token_file": "missing"}, "missing: does not exist"),
        ({"ca_cert": "ca.pem", "bearer_token_file": "two-lines"}, "two-lines: a key must be printable ASCII on one"),
        ({"ca_cert": "ca.pem"}, "the answer was 404"),
    ],
)
def test_files_of_a_fetch_that_do_not_do(tmp_path: Path, files: dict[str, str], text: str) -> None:
    """They are told as the reason why there are no keys, and by `check`."""
    authority = Authority.create()
    issued = authority.issue(ips=["127.0.0.1"], server=True)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "other.pem").write_bytes(Authority.create().certificate_pem)
    (tmp_path / "server.pem").write_bytes(issued.certificate_pem)
    (tmp_path / "both.pem").write_bytes(issued.certificate_pem + issued.key_pem)
    (tmp_path / "two-lines").write_text("a\nb\n")
    paths = {name: tmp_path / file for name, file in files.items()}
    with TokenIssuer(tmp_path / "both.pem") as issuer:
        source = KeySource(f"{issuer.url}/keys", "ES256", **paths)
        assert text in asyncio.run(fetched(source)).error
        assert all(text in each for each in fetch_faults(source))
        assert bool([*fetch_faults(source)]) == (text not in {"CERTIFICATE_VERIFY_FAILED", "the answer was 404"})


def test_what_cannot_be_had_is_left_out_and_verifies_nothing() -> None:
    async def run() -> None:
        runner, url = await serving([web.Response(body=b'{"keys": []}'), web.Response(body=GOOD)])
        made, key_sets = config(url), KeySets()
        assert await key_sets.of(made) == {}
        assert resolve_tokens(made, Path.read_bytes, {}).verifiers[0].keys == ()
        assert "holds no public key" in key_sets.status(made)[0]["error"]
        key_sets.published(config("http://127.0.0.1:1/other"))  # it is forgotten, and so tried again when it is back
        documents = await key_sets.of(made)
        assert documents == {KeySource(url, "ES256"): GOOD}
        assert len(resolve_tokens(made, Path.read_bytes, documents).verifiers[0].keys) == 1
        await runner.cleanup()

    asyncio.run(run())


def test_a_missing_key_brings_the_next_fetch_forward_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens name one: a fetch does not follow the one before it by less than EARLY_REFRESH."""
    early = 0.3
    monkeypatch.setattr(jwks, "EARLY_REFRESH", early)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        fetched: asyncio.Queue[float] = asyncio.Queue()
        reloads: asyncio.Queue[str] = asyncio.Queue()
        answers = [web.Response(body=body) for body in (GOOD, NEWER, NEWER)]
        runner, url = await serving(answers, lambda: fetched.put_nowait(loop.time()))
        made, key_sets = config(url), KeySets()
        await key_sets.of(made)
        times = [await fetched.get()]
        async with asyncio.timeout(10):
            running = asyncio.create_task(key_sets.run(lambda: made, reloads.put))
            for _ in range(2):
                key_sets.key_missing()
                while fetched.empty():  # a flood of such tokens
                    key_sets.key_missing()
                    await asyncio.sleep(0)
                times.append(await fetched.get())
            assert await reloads.get() == "jwks"
            assert (await key_sets.of(made)).popitem()[1] == NEWER
            running.cancel()
        assert all(later - sooner >= early for sooner, later in itertools.pairwise(times))
        assert reloads.empty()
        await runner.cleanup()

    asyncio.run(run())


@pytest.mark.plain  # stand-ins for compiled classes
@pytest.mark.parametrize(("reason", "told"), [(UNKNOWN_KEY, 1), ("token_signature", 0), ("allowed", 0)])
def test_who_is_told_of_a_missing_key(reason: str, told: int) -> None:
    calls: list[str] = []
    gateway: Any = SimpleNamespace(
        audit=SimpleNamespace(write=lambda _line: None),
        metrics=SimpleNamespace(**dict.fromkeys(("request", "refused"), lambda *_arguments: None)),
        notice=calls.append,
    )
    decision = Decision(allowed=False, reason=reason, status=403)
    line = Prepared("", "", "", "", "", "", Caller("None"))
    Record(Plan("retrieve", "", decision, line), 0.0).finish(gateway, '""', "")
    assert calls == ["key_missing"] * told
