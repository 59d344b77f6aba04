"""The time that OpenSSL verifies certificates for, set for one context.

The `ssl` module has no way to say it, so this goes to the library that it is linked with.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import re
import ssl
from pathlib import Path


@functools.cache
def _library() -> ctypes.CDLL:
    """The very libssl that `ssl` has loaded."""
    mapped = re.findall(r"\S*/libssl[\w.-]*so\S*", Path("/proc/self/maps").read_text())
    library = ctypes.CDLL(mapped[0] if mapped else _ssl.__file__)
    library.SSL_CTX_get0_param.argtypes = [ctypes.c_void_p]
    library.SSL_CTX_get0_param.restype = ctypes.c_void_p
    library.X509_VERIFY_PARAM_set_time.argtypes = [ctypes.c_void_p, ctypes.c_long]
    library.X509_VERIFY_PARAM_set_time.restype = None
    return library


def set_time(context: ssl.SSLContext, now: float) -> None:
    """``now`` is in seconds since the epoch."""
    library = _library()
    # The first field behind the object's head is the SSL_CTX.
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    library.X509_VERIFY_PARAM_set_time(library.SSL_CTX_get0_param(pointer), int(now))
