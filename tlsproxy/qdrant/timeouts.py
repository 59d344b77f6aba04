"""Seconds that a request may take in Qdrant: its query parameter `timeout`, or a snapshot's own time."""

from __future__ import annotations

import math
import re
from typing import Final
from urllib.parse import parse_qsl

from tlsproxy.qdrant.operations import Operation

SNAPSHOT: Final = math.inf
"""In place of a client's seconds: snapshots have a limit of their own."""

_SECONDS: Final = re.compile(r"\+?[0-9]{1,20}", re.ASCII)
_MOST_PARAMETERS: Final = 100


def timeout_of(operation: Operation | None, query: str) -> float:
    """Seconds that a request gives Qdrant: 0 where it says none, :data:`SNAPSHOT` for a snapshot."""
    return SNAPSHOT if operation is not None and operation.snapshot else timeout_in(query)


def timeout_in(query: str) -> float:
    """Seconds that the query asks for. 0 where there are none, or none that Qdrant takes: it wants one whole number
    of 64 bits, for example `wait=true&timeout=600`.
    """
    if "timeout" not in query and "%" not in query:  # most queries say something else, like wait=true
        return 0.0
    try:
        parameters = parse_qsl(query, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        return 0.0
    values = [value for name, value in parameters if name == "timeout"]
    return float(values[0]) if len(values) == 1 and _SECONDS.fullmatch(values[0]) is not None else 0.0
