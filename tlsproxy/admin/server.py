"""The operators' server: page, health, metrics, status, reload. Plain HTTP on loopback or a unix socket, no more.

It guards against the one stranger who can reach loopback: a browser on this machine that was shown a hostile page. A
`Host` that is not this machine's is refused (DNS rebinding), and so is a reload that a page could have sent, and a cut
that another page than our own could have (CSRF): a browser says where a POST comes from, so that no token is needed.
What the answers say is the :class:`AdminState`'s; nothing is decided here, and the data path never passes through.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
from aiohttp import web

from tlsproxy.admin import page
from tlsproxy.admin.readiness import is_ready
from tlsproxy.admin.socket import listening_socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tlsproxy.admin.socket import AdminSocket

_log = logging.getLogger(__name__)

RELOAD_DEADLINE: Final = 60.0
"""Seconds that a client waits for a verdict; the reload itself goes on."""

_SHUTDOWN: Final = 2.0
_KEEP_ALIVE: Final = 15.0
_RESULT_STATUS: Final = {"ok": 200, "unchanged": 200, "partial": 409, "held": 409, "failed": 409}
"""What the files are to blame for is a conflict; any other verdict is our fault."""


class AdminState(Protocol):
    """What the service tells of itself."""

    async def ready(self) -> Mapping[str, str]:
        """For each part that serving needs: `ok`, or why it is not."""

    async def status(self) -> Mapping[str, Any]:
        """Everything worth knowing, as JSON values, and no secret."""

    async def reload(self, trigger: str, *, force: bool) -> Mapping[str, Any]:
        """The verdict: `result` (`ok`, `unchanged`, `partial`, `held` or `failed`), changes, consequences and `error`.

        Being cancelled ends the wait for the verdict and never the reload. ``force`` passes the guard that holds.
        """

    async def rehearse(self) -> Mapping[str, Any]:
        """The verdict that a reload would have now. It changes nothing."""

    async def cut(self, number: int) -> bool:
        """Ends a live connection at once; False where there is none of this number."""

    async def metrics(self) -> tuple[bytes, str]:
        """The exposition and its content type."""


class AdminServer:
    """`listen` is `unix:/path` or `host:port` on loopback, port 0 included."""

    def __init__(self, listen: str, state: AdminState, reload_deadline: float = RELOAD_DEADLINE) -> None:
        self._listen = listen
        self._state = state
        self._reload_deadline = reload_deadline
        self._runner: web.AppRunner | None = None
        self._socket: AdminSocket | None = None

    async def start(self) -> str:
        """The bound address, in the form of `listen`. Raises AdminAddressError."""
        self._socket = listening_socket(self._listen)
        app = web.Application(middlewares=[_only_this_machine])
        app.router.add_get("/", self._page)
        app.router.add_get("/page.css", _stylesheet)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
        app.router.add_post("/reload", self._reload)
        app.router.add_post("/connections/{number:[0-9]{1,18}}/cut", self._cut)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN, keepalive_timeout=_KEEP_ALIVE
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket.socket).start()
        return self._socket.address

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._socket is not None:
            self._socket.close()

    async def _livez(self, _request: web.Request) -> web.Response:
        return _json({"alive": True})

    async def _readyz(self, _request: web.Request) -> web.Response:
        parts = dict(await self._state.ready())
        ready = is_ready(parts)
        return _json({"ready": ready, "parts": parts}, 200 if ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        body, content_type = await self._state.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, _request: web.Request) -> web.Response:
        return _json(await self._state.status())

    async def _page(self, request: web.Request) -> web.Response:
        text = page.page(await self._state.status(), time.time(), paused="paused" in request.query)
        return web.Response(text=text, content_type="text/html", headers=page.HEADERS)

    async def _reload(self, request: web.Request) -> web.Response:
        if _from_a_page(request):
            return _json({"error": "a reload is not taken from a web page"}, 403)
        if set(request.query) - {"force", "dry_run"} or set(request.query.values()) - {"1"} or len(request.query) > 1:
            return _json({"error": "a reload takes force=1 or dry_run=1, or neither"}, 400)
        rehearsal = "dry_run" in request.query
        try:
            async with asyncio.timeout(self._reload_deadline):
                if rehearsal:
                    verdict = await self._state.rehearse()
                else:
                    verdict = await self._state.reload("admin", force="force" in request.query)
        except TimeoutError:
            what = "nothing has changed" if rehearsal else "the reload goes on, and /status will tell"
            text = f"no verdict within {self._reload_deadline:g} s; {what}"
            return _json({"result": "pending", "error": text}, 500)
        return _json(verdict, _RESULT_STATUS.get(str(verdict.get("result")), 500))

    async def _cut(self, request: web.Request) -> web.Response:
        of_ours = _from_our_page(request)
        if _from_a_page(request) and not of_ours:
            return _json({"error": "a connection is not cut from another web page"}, 403)
        number = int(request.match_info["number"])
        found = await self._state.cut(number)
        if of_ours:  # that shows what is there now; by GET, so that it can be asked for anew
            raise web.HTTPSeeOther("/#connections")
        if found:
            return _json({"cut": number})
        return _json({"error": f"there is no connection {number}: /status names those that are live"}, 404)


def _from_a_page(request: web.Request) -> bool:
    """Curl sends neither header; a browser sends at least one of them with every POST (Fetch standard)."""
    return "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none"


def _from_our_page(request: web.Request) -> bool:
    """Both headers are the browser's own words, which no page can change (Fetch standard, forbidden request headers).

    The `Host` has been found to be this machine's by then; what is at another port of it has another origin.
    """
    origin, site = request.headers.getall("Origin", []), request.headers.get("Sec-Fetch-Site", "same-origin")
    return origin == [f"http://{request.headers['Host']}"] and site == "same-origin"


async def _stylesheet(_request: web.Request) -> web.Response:
    return web.Response(text=page.stylesheet(), content_type="text/css")


@web.middleware
async def _only_this_machine(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not _is_this_machine(hosts[0]):
        response: web.StreamResponse = _json(
            {"error": "the Host header must name localhost or a loopback address"}, 403
        )
    else:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _json({"error": error.reason}, error.status)
            response.headers.update(
                {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
            )
        except Exception:  # noqa: BLE001 - told to our log alone: its text may say what an error of ours was holding
            _log.exception("admin: %s %s", request.method, request.path)
            response = _json({"error": "internal error; see the log"}, 500)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def _is_this_machine(host: str) -> bool:
    """Whether a Host header's value (RFC 9110 §7.2) names loopback, whatever its port."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _json(value: Mapping[str, Any], status: int = 200) -> web.Response:
    body = orjson.dumps(dict(value), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")
