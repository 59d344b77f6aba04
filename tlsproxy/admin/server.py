"""The operators' HTTP server on loopback or a unix socket: page, health, metrics, status, reload.

It defends against the one stranger that reaches loopback: a hostile page in a browser on this machine. A `Host` that is
not this machine's is refused (DNS rebinding). So is a reload from any page, and a cut from another page than ours
(CSRF): browsers send the origin of each POST, so no token is needed. Answers come from an :class:`AdminState`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tlsproxy.admin import page
from tlsproxy.admin.socket import listening_socket
from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tlsproxy.admin.readiness import Readiness
    from tlsproxy.admin.socket import AdminSocket

_log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")

RELOAD_DEADLINE: Final = 60.0
"""Seconds that a client waits for a reload's result; the reload itself goes on."""

_SHUTDOWN: Final = 2.0
_KEEP_ALIVE: Final = 15.0
_RESULT_STATUS: Final = {"ok": 200, "unchanged": 200, "partial": 409, "held": 409, "failed": 409}
"""409: some files are not in force. 500: there is no such result."""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether an error is the server's, and not a stray client's that speaks no HTTP/1.1, e.g. a probe of gRPC."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


class AdminState(Protocol):
    """State of the service, and the operators' actions on it."""

    async def ready(self) -> Readiness:
        """The verdict at this moment."""

    async def status(self, subject: str) -> Mapping[str, Any]:
        """The status as JSON values, without secrets. Lists connections of clients with ``subject`` in their names."""

    async def reload(self, trigger: str, *, force: bool) -> Mapping[str, Any]:
        """Reload. `result` is `ok`, `unchanged`, `partial`, `held` or `failed`; also changes, consequences, `error`.

        Cancelling ends the wait, never the reload. ``force`` overrides `limits.mass_cut`.
        """

    async def rehearse(self) -> Mapping[str, Any]:
        """The result that a reload would have now. Changes nothing."""

    async def cut(self, number: int) -> bool:
        """End a live connection at once; False where there is none of this number."""

    async def metrics(self) -> tuple[bytes, str]:
        """Prometheus exposition and its content type."""


class AdminServer:
    """``listen`` is `unix:/path` or `host:port` on loopback; port 0 lets the system choose."""

    def __init__(self, listen: str, state: AdminState, reload_deadline: float = RELOAD_DEADLINE) -> None:
        self._listen = listen
        self._state = state
        self._reload_deadline = reload_deadline
        self._runner: web.AppRunner | None = None
        self._socket: AdminSocket | None = None

    async def start(self) -> str:
        """Start, and return the bound address in the form of ``listen``. Raises AdminAddressError."""
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
            app,
            logger=_http_log,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN,
            keepalive_timeout=_KEEP_ALIVE,
        )
        _http_log.addFilter(_is_ours)
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
        readiness = await self._state.ready()
        return _json(readiness.as_json(), 200 if readiness.ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        body, content_type = await self._state.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.Request) -> web.Response:
        return await in_thread(_json, await self._state.status(request.query.get("subject", "")))

    async def _page(self, request: web.Request) -> web.Response:
        status = await self._state.status("")
        text = await in_thread(page.page, status, time.time(), paused="paused" in request.query)
        return web.Response(text=text, content_type="text/html", headers=page.HEADERS)

    async def _reload(self, request: web.Request) -> web.Response:
        if _from_a_page(request):
            return _json({"error": "a reload is not accepted from a web page"}, 403)
        if set(request.query) - {"force", "dry_run"} or set(request.query.values()) - {"1"} or len(request.query) > 1:
            return _json({"error": "a reload takes force=1, dry_run=1 or neither"}, 400)
        rehearsal = "dry_run" in request.query
        try:
            async with asyncio.timeout(self._reload_deadline):
                if rehearsal:
                    result = await self._state.rehearse()
                else:
                    result = await self._state.reload("admin", force="force" in request.query)
        except TimeoutError:
            effect = "nothing has changed" if rehearsal else "the reload goes on, and /status will tell"
            text = f"no verdict within {self._reload_deadline:g} s; {effect}"
            return _json({"result": "pending", "error": text}, 500)
        return await in_thread(_json, result, _RESULT_STATUS.get(str(result.get("result")), 500))

    async def _cut(self, request: web.Request) -> web.Response:
        own_page = _from_our_page(request)
        if _from_a_page(request) and not own_page:
            return _json({"error": "a connection is not cut from another web page"}, 403)
        number = int(request.match_info["number"])
        was_live = await self._state.cut(number)
        if own_page:  # a redirect to GET, so that reloading the page does not repeat the cut
            raise web.HTTPSeeOther("/#connections")
        if was_live:
            return _json({"cut": number})
        return _json({"cut": None, "error": f"there is no connection {number}; /status lists the live ones"}, 404)


def _from_a_page(request: web.Request) -> bool:
    """Whether a browser sent it: each POST of one has Origin or Sec-Fetch-Site (Fetch standard), of curl neither."""
    return "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none"


def _from_our_page(request: web.Request) -> bool:
    """Whether both headers name this very server. No page can set them (Fetch standard, forbidden request headers).

    The `Host` has been checked before; another port of this machine is another origin.
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
        except Exception:  # noqa: BLE001 - for the log alone: the text may hold a secret
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
