"""Storage of the embedded upstream: qdrant-client's local mode in memory, called on one worker thread.

It maps failures to Qdrant's errors. HTTP and gRPC are in the modules beside it.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from qdrant_client.http import models
from qdrant_client.local.qdrant_local import QdrantLocal

from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE = "qdrant - vector search engine (embedded in tlsproxy)"
VERSION = version("qdrant-client")

_NO_COLLECTION = re.compile(r"Collection (.+) not found", re.DOTALL)
_NO_POINT = re.compile(r"Point (.+) is not found in the collection", re.DOTALL)
_SHOWN_VALIDATION_ERRORS = 3


class EngineError(TlsproxyError):
    """An error of Qdrant: ``status`` is the REST status, ``str(error)`` the text."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Local(QdrantLocal):
    """Local mode with two more calls of the REST API."""

    def point(self, collection_name: str, point_id: str) -> models.Record:
        # Qdrant reads a path segment of digits as a number and anything else as a UUID.
        key: int | str = int(point_id) if point_id.isdecimal() else point_id
        found = self.retrieve(collection_name, ids=[key], with_payload=True, with_vectors=True)
        if not found:
            raise EngineError(HTTPStatus.NOT_FOUND, f"Not found: Point with id {point_id} does not exists!")
        return found[0]

    def collection_aliases(self, collection_name: str) -> models.CollectionsAliasesResponse:
        """Aliases of a collection; as in Qdrant, a missing collection is an error."""
        self._get_collection(collection_name)
        return self.get_collection_aliases(collection_name)


class Engine:
    """Owner of the data. Calls run one after the other, since QdrantLocal is not thread-safe."""

    def __init__(self) -> None:
        self._local = Local(":memory:")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Call the local client's ``method``; :func:`refusals` maps its exceptions."""
        function = getattr(self._local, method)
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: function(**arguments))

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self._local.close()


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the client library's exceptions for bad input into the :class:`EngineError` of Qdrant.

    Any other exception is a defect: the server logs it and answers 500.
    """
    try:
        yield
    except NotImplementedError as error:
        raise EngineError(HTTPStatus.NOT_IMPLEMENTED, str(error)) from error
    except ValidationError as error:
        raise EngineError(HTTPStatus.BAD_REQUEST, f"Format error in JSON body: {_first_errors(error)}") from error
    except KeyError as error:  # unknown point ids of a payload operation
        raise EngineError(HTTPStatus.NOT_FOUND, f"Not found: No point with id {error} found") from error
    except (ValueError, TypeError, AssertionError) as error:
        raise _bad_input(str(error)) from error


def _first_errors(error: ValidationError) -> str:
    shown = error.errors(include_url=False, include_context=False, include_input=False)[:_SHOWN_VALIDATION_ERRORS]
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in shown)


def _bad_input(text: str) -> EngineError:
    """Qdrant's status by the text: local mode raises ValueError for all of them."""
    if missing := _NO_COLLECTION.fullmatch(text):
        return EngineError(HTTPStatus.NOT_FOUND, f"Not found: Collection `{missing[1]}` doesn't exist!")
    if missing := _NO_POINT.fullmatch(text):
        return EngineError(HTTPStatus.NOT_FOUND, f"Not found: No point with id {missing[1]} found")
    if text.startswith("Alias ") and text.endswith(" does not exist"):
        return EngineError(HTTPStatus.NOT_FOUND, f"Not found: {text}")
    if text.startswith(("Collection ", "Alias ")) and text.endswith(" already exists"):
        return EngineError(HTTPStatus.CONFLICT, f"Wrong input: {text}")
    return EngineError(HTTPStatus.BAD_REQUEST, text if text.startswith("Wrong input: ") else f"Wrong input: {text}")
