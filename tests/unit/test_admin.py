from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from support import sample_status as example
from support.rows import rows

from tlsproxy.admin import page, server
from tlsproxy.admin.page import HEADERS
from tlsproxy.admin.readiness import OK, Readiness, degraded, not_ready
from tlsproxy.admin.server import AdminServer, _is_this_machine
from tlsproxy.admin.socket import AdminAddressError, listening_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path


class State:
    def __init__(self) -> None:
        self.parts = {"upstream_rest": OK, "reload": OK}
        self.verdict: Mapping[str, Any] = {"result": "ok", "generation": 2, "changed": ["tls.cert"]}
        self.reload_gate = asyncio.Event()
        self.reload_gate.set()
        self.triggers: list[str] = []

    async def ready(self) -> Readiness:
        return Readiness(self.parts)

    async def status(self, subject: str) -> Mapping[str, Any]:  # noqa: ARG002
        return {"version": "1", "generation": {"number": 1}}

    async def reload(self, trigger: str, *, force: bool) -> Mapping[str, Any]:
        self.triggers.append(f"{trigger} by force" if force else trigger)
        await self.reload_gate.wait()
        return self.verdict

    async def rehearse(self) -> Mapping[str, Any]:
        self.triggers.append("rehearsal")
        await self.reload_gate.wait()
        return self.verdict

    async def cut(self, number: int) -> bool:
        self.triggers.append(f"cut {number}")
        return number == 1

    async def metrics(self) -> tuple[bytes, str]:
        return b"tlsproxy_generation 1.0\n", "text/plain; version=0.0.4; charset=utf-8"


class Client:
    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def __call__(self, method: str, path: str, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(method, self._base + path, headers=named, allow_redirects=False) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text()), dict(response.headers)


@asynccontextmanager
async def serving(state: State, listen: str = "127.0.0.1:0", deadline: float = 5.0) -> AsyncIterator[Client]:
    server = AdminServer(listen, state, deadline)
    address = await server.start()
    try:
        if address.startswith("unix:"):
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(address.removeprefix("unix:"))
            base = "http://localhost"
        else:
            connector, base = aiohttp.TCPConnector(), f"http://{address}"
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(10)) as session:
            yield Client(session, base)
    finally:
        await server.stop()


def over_both(scenario: Callable[[State, Client], Coroutine[Any, Any, None]], directory: Path) -> None:
    async def run() -> None:
        for listen in ("127.0.0.1:0", f"unix:{directory / 'admin.sock'}"):
            state = State()
            async with serving(state, listen) as client:
                await scenario(state, client)

    asyncio.run(run())


def test_alive(tmp_path: Path) -> None:
    async def scenario(_state: State, client: Client) -> None:
        status, body, headers = await client("GET", "/livez")
        assert (status, body) == (200, {"alive": True})
        assert headers["Cache-Control"] == "no-store"

    over_both(scenario, tmp_path)


def test_ready_names_each_part_and_is_503_while_one_is_not(tmp_path: Path) -> None:
    async def scenario(state: State, client: Client) -> None:
        status, body, _ = await client("GET", "/readyz")
        told = {"ready": True, "state": "serving", "headline": "serving"}
        assert (status, body) == (200, {**told, "parts": {"upstream_rest": "ok", "reload": "ok"}})
        state.parts = {"upstream_rest": OK, "reload": degraded("ca.pem: empty")}
        status, body, _ = await client("GET", "/readyz")
        assert (status, body["ready"], body["headline"]) == (200, True, "DEGRADED: reload: ca.pem: empty")
        state.parts = {"upstream_rest": not_ready("Connection refused"), "reload": degraded("ca.pem: empty")}
        status, body, _ = await client("GET", "/readyz")
        assert (status, body["ready"], body["state"]) == (503, False, "not_ready")
        assert body["headline"] == "NOT READY: upstream_rest: Connection refused"
        assert body["parts"] == {"upstream_rest": "Connection refused", "reload": "degraded: ca.pem: empty"}

    over_both(scenario, tmp_path)


def test_metrics_and_status(tmp_path: Path) -> None:
    async def scenario(_state: State, client: Client) -> None:
        status, text, headers = await client("GET", "/metrics")
        assert (status, text) == (200, "tlsproxy_generation 1.0\n")
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        status, body, _ = await client("GET", "/status")
        assert (status, body) == (200, {"version": "1", "generation": {"number": 1}})

    over_both(scenario, tmp_path)


@pytest.mark.parametrize(
    ("result", "expected"),
    [("ok", 200), ("unchanged", 200), ("partial", 409), ("held", 409), ("failed", 409), ("odd", 500)],
)
def test_a_reload_answers_with_its_verdict(tmp_path: Path, result: str, expected: int) -> None:
    async def scenario(state: State, client: Client) -> None:
        state.verdict = {"result": result, "error": "tls.key: does not match"}
        for query, asked in (("", "admin"), ("?force=1", "admin by force"), ("?dry_run=1", "rehearsal")):
            status, body, _ = await client("POST", f"/reload{query}")
            assert (status, body, state.triggers.pop()) == (expected, state.verdict, asked)
        for query in ("?force", "?force=0", "?force=1&dry_run=1", "?dry-run=1", "?force=1&force=1"):
            status, body, _ = await client("POST", f"/reload{query}")
            assert (status, list(body), state.triggers) == (400, ["error"], [])

    over_both(scenario, tmp_path)


def test_a_reload_without_a_verdict_in_time_says_so() -> None:
    async def run() -> None:
        state = State()
        state.reload_gate.clear()
        async with serving(state, deadline=0.05) as client:
            for query, what in (("", "the reload goes on"), ("?dry_run=1", "nothing has changed")):
                status, body, _ = await client("POST", f"/reload{query}")
                assert status == 500
                assert body["error"].startswith(f"no verdict within 0.05 s; {what}")

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_web_page_cannot_reload(tmp_path: Path, headers: dict[str, str]) -> None:
    async def scenario(state: State, client: Client) -> None:
        for query in ("", "?force=1", "?dry_run=1"):
            status, _, _ = await client("POST", f"/reload{query}", **headers)
            assert (status, state.triggers) == (403, [])

    over_both(scenario, tmp_path)


def test_a_reload_is_a_post(tmp_path: Path) -> None:
    async def scenario(state: State, client: Client) -> None:
        status, _, headers = await client("GET", "/reload")
        assert (status, headers["Allow"], state.triggers) == (405, "POST", [])

    over_both(scenario, tmp_path)


def test_a_rebound_name_reaches_nothing(tmp_path: Path) -> None:
    async def scenario(state: State, client: Client) -> None:
        for method, path in (("GET", "/status"), ("GET", "/metrics"), ("GET", "/nowhere"), ("POST", "/reload")):
            status, body, _ = await client(method, path, Host="evil.example")
            assert (status, list(body)) == (403, ["error"])
        assert state.triggers == []

    over_both(scenario, tmp_path)


async def _at(client: Client, path: str, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
    """A POST as the browser sends it from a page of the server itself."""
    host = client._base.removeprefix("http://")
    return await client(
        "POST", path, Host=host, **({"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"} | headers)
    )


def test_the_page_of_the_server_itself_cuts_and_comes_back_to_what_is_there_then(tmp_path: Path) -> None:
    async def scenario(state: State, client: Client) -> None:
        for number in (1, 2):
            status, _, headers = await _at(client, f"/connections/{number}/cut")
            assert (status, headers["Location"]) == (303, "/#connections")
        assert state.triggers == ["cut 1", "cut 2"]
        status, _, _ = await _at(client, "/reload")
        assert (status, len(state.triggers)) == (403, 2)

    over_both(scenario, tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": "https://127.0.0.1"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_another_web_page_cannot_cut(tmp_path: Path, headers: dict[str, str]) -> None:
    async def scenario(state: State, client: Client) -> None:
        if client._base.endswith(headers.get("Origin", "-").removeprefix("http")):
            return  # over a unix socket, this is the server's own
        status, body, _ = await _at(client, "/connections/1/cut", **headers)
        assert (status, list(body), state.triggers) == (403, ["error"], [])

    over_both(scenario, tmp_path)


def test_a_command_cuts_without_a_browsers_headers(tmp_path: Path) -> None:
    async def scenario(_state: State, client: Client) -> None:
        assert (await client("POST", "/connections/1/cut"))[:2] == (200, {"cut": 1})
        status, body, _ = await client("POST", "/connections/2/cut")
        assert (status, list(body), body["cut"]) == (404, ["cut", "error"], None)

    over_both(scenario, tmp_path)


def test_page_status_and_the_result_of_a_reload_are_made_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may have megabytes, of thousands of roles and connections."""
    makers: list[int] = []

    def noting(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **options: Any) -> Any:
            makers.append(threading.get_ident())
            return make(*args, **options)

        return made

    monkeypatch.setattr(page, "page", noting(lambda *_, **__: "<p>"))
    monkeypatch.setattr(server, "_json", noting(server._json))

    async def scenario(_state: State, client: Client) -> None:
        makers.clear()
        assert (await client("GET", "/"))[:2] == (200, "<p>")
        assert (await client("GET", "/status"))[0] == 200
        assert (await client("POST", "/reload"))[0] == 200
        assert len(makers) == 3
        assert threading.get_ident() not in makers

    over_both(scenario, tmp_path)


def test_the_page_and_its_stylesheet() -> None:
    class Telling(State):
        async def status(self, subject: str) -> Mapping[str, Any]:  # noqa: ARG002
            return example.status()

    async def run() -> None:
        async with serving(Telling()) as client:
            for path, kind in (("/", "text/html"), ("/?paused", "text/html"), ("/page.css", "text/css")):
                status, text, headers = await client("GET", path)
                assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
                assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert headers["X-Content-Type-Options"] == "nosniff"
                if kind == "text/html":
                    assert HEADERS.items() <= headers.items()
                    assert "tlsproxy" in text

    asyncio.run(run())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:9000"])
def test_names_of_this_machine(host: str) -> None:
    assert _is_this_machine(host)


@rows(
    "host",
    ["", ":", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[::2]", "[::1]x",
     "localhost:x", "0.0.0.1", "127.0.0.1:80:80", "user@localhost"],
)  # fmt: skip
def test_names_of_others(host: str) -> None:
    assert not _is_this_machine(host)


def test_an_error_of_ours_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(State):
        async def status(self, subject: str) -> Mapping[str, Any]:  # noqa: ARG002
            raise RuntimeError("holding a secret")

    async def run() -> None:
        async with serving(Broken()) as client:
            status, body, _ = await client("GET", "/status")
            assert (status, body) == (500, {"error": "internal error; see the log"})

    asyncio.run(run())
    assert "holding a secret" in caplog.text


def test_only_its_owner_opens_the_unix_socket_and_it_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    async def run() -> None:
        old = os.umask(0)
        try:
            async with serving(State(), f"unix:{path}"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(old)

    asyncio.run(run())
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    first = listening_socket(f"unix:{path}")
    first.close()
    assert not path.exists()


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = listening_socket(f"unix:{path}")
    with pytest.raises(AdminAddressError, match="another process is listening there"):
        listening_socket(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    first.close()


def test_closing_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = listening_socket(f"unix:{path}")
    path.rename(tmp_path / "moved.sock")
    second = listening_socket(f"unix:{path}")
    first.close()
    assert path.exists()
    second.close()
    second.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_a_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "admin.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdminAddressError, match="exists and is not a socket"):
        listening_socket(f"unix:{path}")
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:9000"])
def test_only_loopback_is_bound(listen: str) -> None:
    with pytest.raises(AdminAddressError, match="has no authentication"):
        listening_socket(listen)


@pytest.mark.parametrize("listen", ["", "9000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http"])
def test_an_address_that_cannot_be_read(listen: str) -> None:
    with pytest.raises(AdminAddressError, match="unix:/path or host:port is expected"):
        listening_socket(listen)


def test_an_address_in_use_says_so() -> None:
    first = listening_socket("localhost:0")
    with pytest.raises(AdminAddressError, match=r"admin\.listen 127\.0\.0\.1:\d+: .*in use"):
        listening_socket(first.address)
    first.close()


def test_a_unix_socket_where_there_is_no_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(AdminAddressError, match="there is no directory"):
        listening_socket(f"unix:{tmp_path / 'missing' / 'admin.sock'}")
