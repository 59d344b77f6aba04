"""gRPC server of the embedded upstream: Qdrant's services in plaintext, by the table in `grpc_methods`.

There is no authentication. The gRPC library answers UNIMPLEMENTED for a method without a row.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import grpc
import grpc.aio
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2, points_service_pb2, qdrant_pb2

from tlsproxy.demo.engine import TITLE, VERSION, Engine, EngineError, refusals
from tlsproxy.demo.grpc_methods import COLLECTIONS, POINTS, Method

# The gateway limits messages; gRPC's own default is 4 MiB.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0))

_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
}

_Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


def server(engine: Engine) -> grpc.aio.Server:
    """A server, to which the caller adds a port."""
    made: grpc.aio.Server = grpc.aio.server(options=_OPTIONS)
    services = (
        (qdrant_pb2, "Qdrant", {"HealthCheck": _healthy}),
        (collections_service_pb2, "Collections", _handlers(engine, COLLECTIONS)),
        (points_service_pb2, "Points", _handlers(engine, POINTS)),
    )
    made.add_generic_rpc_handlers(
        [_service(module.DESCRIPTOR.services_by_name[name], handlers) for module, name, handlers in services]
    )
    return made


def _service(descriptor: Any, handlers: Mapping[str, _Handler]) -> grpc.GenericRpcHandler:
    """Handlers of a service; its descriptor has the message types."""
    methods = {}
    for name, handler in handlers.items():
        method = descriptor.methods_by_name[name]
        methods[name] = grpc.unary_unary_rpc_method_handler(  # type: ignore[no-untyped-call]  # grpcio has no types
            handler,
            request_deserializer=getattr(pb, method.input_type.name).FromString,
            response_serializer=getattr(pb, method.output_type.name).SerializeToString,
        )
    made: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(  # type: ignore[no-untyped-call]  # as above
        descriptor.full_name, methods
    )
    return made


def _handlers(engine: Engine, methods: Mapping[str, Method]) -> dict[str, _Handler]:
    return {name: _handler(engine, method) for name, method in methods.items()}


def _handler(engine: Engine, method: Method) -> _Handler:
    async def handle(message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        try:
            with refusals():
                arguments = method.arguments(message)
                if "collection_name" in message.DESCRIPTOR.fields_by_name:
                    arguments["collection_name"] = message.collection_name
                reply = method.reply(await engine.call(method.call, **arguments))
        except EngineError as error:
            return await context.abort(_CODES[error.status], str(error))
        reply.time = time.perf_counter() - started
        return reply

    return handle


async def _healthy(_: Any, __: grpc.aio.ServicerContext[Any, Any]) -> Any:
    return pb.HealthCheckReply(title=TITLE, version=VERSION)
