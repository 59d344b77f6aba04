"""Server reflection goes through, for any caller who has shown who they are: command-line clients live on it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from qdrant_client.grpc import points_service_pb2
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream, echoing
from support.site import Site
from support.upstream import ScriptedUpstream

METHOD = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
SERVICE = points_service_pb2.DESCRIPTOR.services_by_name["Points"].full_name


@pytest.fixture(scope="module")
def reflecting() -> Iterator[str]:
    """The address of a server that reflects, and does nothing else."""
    with ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers, options=[("grpc.so_reuseport", 0)])
        reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}"
        server.stop(None).wait(DEADLINE)


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, reflecting: str) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, grpc=reflecting)) as running:
        yield running


@pytest.mark.parametrize("client", ["admin", "search", "ingest"])
def test_a_client_learns_the_services(site: Site, gateway: Gateway, client: str) -> None:
    with channel(gateway, site, client) as opened:
        found = ProtoReflectionDescriptorDatabase(opened)
        assert SERVICE in found.get_services()
        described = found.FindFileContainingSymbol(SERVICE)
        methods = {method.name for service in described.service for method in service.method}
        assert {"Search", "Upsert"} <= methods
    assert gateway.audited(method="server_reflection")["result"] == "ok"


def test_nobody_else_does(site: Site, gateway: Gateway) -> None:
    with channel(gateway, site, "stranger") as opened, pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(opened).get_services()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_questions_and_answers_take_turns(
    site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream, version: str
) -> None:
    """The one stream of both directions that Qdrant has: each answer comes before the next question is asked."""
    grpc_upstream.answer = echoing
    sent = [b"", b"first", b"x" * 100_000]
    questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    questions.put(sent[0])
    with channel(grpc_gateway, site, "ingest") as opened:
        answers = opened.stream_stream(METHOD.format(version))(iter(questions.get, None), timeout=DEADLINE)
        for number, expected in enumerate(sent):
            assert next(answers) == expected
            questions.put(sent[number + 1] if number + 1 < len(sent) else None)
        assert next(answers, None) is None
