"""What a worker builds a generation of: the very bytes that the supervisor has read, judged and built itself.

No worker reads a file of the configuration or asks a resolver. So all of them have the same generation or none, and one
that is started later has what serves, whatever the files have become meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tlsproxy.config import loader
from tlsproxy.config.model import Config
from tlsproxy.config.tokens import KeySource
from tlsproxy.tls.files import Inputs
from tlsproxy.tls.generation import Address, Generation, Resolved, Settled, Tunnel, build
from tlsproxy.tls.material import Material


@dataclass(frozen=True, slots=True)
class Order:
    """``encoded`` is for the control channel: a line of JSON, then the files' and the key sets' bytes. It is secret."""

    number: int
    digest: str
    encoded: bytes = field(repr=False)


def order_of(generation: Generation, inputs: Inputs) -> Order:
    """For a generation that was built of these inputs."""
    documents = generation.documents
    head = {
        "number": generation.number,
        "digest": generation.digest,
        "built_at": generation.built_at,
        "warnings": inputs.warnings,
        "files": [[str(path), str(inputs.targets.get(path, path)), len(data)] for path, data in inputs.files.items()],
        "documents": [[source.url, source.algorithm, len(data)] for source, data in documents.items()],
        "tunnels": [[address, one.addresses, sorted(one.allow)] for address, one in generation.tunnels.items()],
        "resolved": [[name, one.url, one.addresses, one.warning] for name, one in generation.resolved.items()],
    }
    return Order(
        generation.number,
        generation.digest,
        b"".join([orjson.dumps(head), b"\n", *inputs.files.values(), *documents.values()]),
    )


def built(
    encoded: bytes, config_path: Path, environ: Mapping[str, str], started: Config, former: Material | None
) -> Generation:
    """The same generation in this process. Blocks, and raises, as :func:`tlsproxy.tls.generation.build` does."""
    line, _, rest = encoded.partition(b"\n")
    head = orjson.loads(line)
    pieces = _pieces(rest, [entry[-1] for entry in (*head["files"], *head["documents"])])
    files = {Path(path): next(pieces) for path, _, _ in head["files"]}
    targets = {Path(path): Path(target) for path, target, _ in head["files"]}
    documents = {KeySource(url, algorithm): next(pieces) for url, algorithm, _ in head["documents"]}
    loaded = loader.parse(files[config_path], config_path, environ)
    resolved = {
        name: Resolved(url, _addresses(addresses), warning) for name, url, addresses, warning in head["resolved"]
    }
    tunnels = {
        address: Tunnel(_addresses(addresses), frozenset(allow)) for address, addresses, allow in head["tunnels"]
    }
    return build(
        number=head["number"],
        config_path=config_path,
        environ=environ,
        previous=Settled(started, resolved, former, tunnels),
        inputs=Inputs(loaded, files, head["digest"], targets, tuple(head["warnings"])),
        documents=documents,
        now=head["built_at"],
    )


def _addresses(told: list[Any]) -> tuple[Address, ...]:
    return tuple((family, tuple(address)) for family, address in told)


def _pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size
