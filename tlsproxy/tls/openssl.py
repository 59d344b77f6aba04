"""Calls into the C library behind the ssl module, for what that module has no function for.

Only libraries that the ssl module itself is linked with are used. Where their functions or the layout of CPython's
objects are not known, there is no call, and its callers do without.
"""

from __future__ import annotations

import _ssl
import ctypes
import sys
import sysconfig
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl


def _opened() -> ctypes.CDLL | None:
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    return ctypes.CDLL(getattr(_ssl, "__file__", None))


_library: Final = _opened()


def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the library, with its ctypes types; None where it is not known."""
    found = getattr(_library, name, None)
    if found is not None:
        found.restype, found.argtypes = result, arguments
    return found


def pointer_of(context: ssl.SSLContext) -> ctypes.c_void_p:
    """The context's SSL_CTX, which follows the head of CPython's object."""
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
