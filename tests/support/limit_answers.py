"""What a client sees of limits: answers counted by status, and how long it is told to wait."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from support.raw_request import Response

SLOW = {"requests_per_second": 0.01}
"""One request, and the next in a hundred seconds: a test's own time makes no difference."""


def named_key(value: str, role: str = "search", name: str = "ci") -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(value.encode()).hexdigest(), "role": role}


def role(access: object = "r", **limits: Any) -> dict[str, Any]:
    return {"access": access, "limits": limits}


def wait_as_told(response: Response) -> None:
    """What a client does with a Retry-After."""
    time.sleep(int(response.fields["retry-after"]))
