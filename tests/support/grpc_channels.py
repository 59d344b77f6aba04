"""gRPC channels to a gateway, with the certificate of one of the site's clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from support.gateway import DEADLINE, Gateway
from support.site import Site

_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0))


def certificates(site: Site, client: str | None = "admin") -> dict[str, bytes | None]:
    """As `grpc.ssl_channel_credentials`, and qdrant-client's `grpc_options`, take them."""
    files = {"root_certificates": "ca.pem"}
    if client is not None:
        files |= {"private_key": f"{client}.key", "certificate_chain": f"{client}.pem"}
    return {name: (site.directory / file).read_bytes() for name, file in files.items()}


def channel(gateway: Gateway, site: Site, client: str | None = "admin", **options: Any) -> grpc.Channel:
    """``options`` are gRPC's, with `_` for `.`: ``grpc_max_metadata_size=1``. Each channel has its own connection."""
    credentials = grpc.ssl_channel_credentials(**certificates(site, client))
    return grpc.secure_channel(f"localhost:{gateway.grpc_port}", credentials, _with(options))


def aio_channel(gateway: Gateway, site: Site, client: str | None = "admin", **options: Any) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(**certificates(site, client))
    return grpc.aio.secure_channel(f"localhost:{gateway.grpc_port}", credentials, _with(options))


@dataclass(frozen=True, slots=True)
class Answered:
    """``message`` is the first of an answer that is OK."""

    code: grpc.StatusCode
    text: str = ""
    message: bytes = b""

    @classmethod
    def by(cls, error: grpc.RpcError) -> Answered:
        return cls(error.code(), error.details() or "")


def call(
    opened: grpc.Channel, method: str, message: bytes = b"", *metadata: tuple[str, str | bytes], **options: Any
) -> Answered:
    """One message there, one back. ``options`` are those of grpc's unary call."""
    try:
        answer = opened.unary_unary(method)(message, metadata=metadata, timeout=DEADLINE, **options)
    except grpc.RpcError as error:
        return Answered.by(error)
    return Answered(grpc.StatusCode.OK, message=answer)


def _with(options: dict[str, Any]) -> list[tuple[str, Any]]:
    given = {name.replace("grpc_", "grpc.", 1): value for name, value in options.items()}
    return list({**dict(_OPTIONS), "grpc.use_local_subchannel_pool": 1, **given}.items())
