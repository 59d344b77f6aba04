"""REST server of the embedded upstream: Qdrant's envelope, statuses and routing, by the table in `rest_routes`.

It stands for the plaintext Qdrant behind the gateway, so it has neither TLS nor authentication.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from pydantic import BaseModel, TypeAdapter

from tlsproxy.demo.engine import TITLE, VERSION, Engine, EngineError, refusals
from tlsproxy.demo.rest_routes import ROUTES, UNSUPPORTED, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

# Far above the gateway's default; Qdrant's own limit is 32 MiB of JSON.
MAX_BODY_SIZE = 256 << 20

_JSON = "application/json"


def application(engine: Engine) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_SIZE, middlewares=[_as_qdrant_routes])
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(engine, route))
    for method, path in UNSUPPORTED:
        app.router.add_route(method, path, _unsupported)
    app.router.add_route("GET", "/", _version)
    app.router.add_route("GET", "/metrics", _metrics(engine))
    for probe in ("/healthz", "/livez", "/readyz"):
        app.router.add_route("GET", probe, _healthy)
    return app


@web.middleware
async def _as_qdrant_routes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """404 without a body for a wrong method: to Qdrant it is an unknown route."""
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return web.Response(status=404)


def _handler(engine: Engine, route: Route) -> Handler:
    body_type = TypeAdapter[Any](route.body) if route.body is not None else None

    async def handle(request: web.Request) -> web.Response:
        started = time.perf_counter()
        try:
            with refusals():
                body = body_type.validate_json(await request.read()) if body_type is not None else None
                arguments = {**request.match_info, **route.arguments(body)}
                result = plain(route.result(await engine.call(route.call, **arguments)))
        except EngineError as error:
            return _error(error.status, str(error), started)
        return _json({"result": result, "status": "ok", "time": time.perf_counter() - started})

    return handle


def plain(value: Any) -> Any:
    """``value`` as JSON values.

    Nulls of models are left out, since older clients reject unknown configuration fields. The null at the end of a
    scroll stays.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type=_JSON)


def _error(status: int, text: str, started: float) -> web.Response:
    return _json({"status": {"error": text}, "time": time.perf_counter() - started}, status)


async def _unsupported(request: web.Request) -> web.Response:
    return _error(
        501, f"{request.method} {request.path} is not supported by the embedded upstream", time.perf_counter()
    )


async def _version(_: web.Request) -> web.Response:
    return _json({"title": TITLE, "version": VERSION})


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="healthz check passed")


def _metrics(engine: Engine) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        collections = (await engine.call("get_collections")).collections
        return web.Response(text=f"# TYPE collections_total gauge\ncollections_total {len(collections)}\n")

    return handle
