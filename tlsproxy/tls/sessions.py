"""The switch for a context's TLS sessions, which the ssl module does not have.

A session that is resumed skips the verification of the client's certificate, also what only a later moment would show:
an intermediate that has expired, a CRL that was to be replaced. Without tickets TLS 1.3 has none, but a server of TLS
1.2 keeps sessions by their id unless OpenSSL is told not to. That takes one call of the C library, by the pointer that
CPython keeps right behind the head of its object.
"""

from __future__ import annotations

import _ssl
import ctypes
import sys
import sysconfig
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl

_SET_SESS_CACHE_MODE: Final = 44
"""SSL_CTRL_SET_SESS_CACHE_MODE (openssl/ssl.h)."""
_SESS_CACHE_OFF: Final = 0


def _call() -> Any:
    """SSL_CTX_ctrl of the library that the ssl module uses; None where objects are not laid out as expected."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    function = getattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), "SSL_CTX_ctrl", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        function.restype = ctypes.c_long
    return function


_ctrl: Final = _call()
CAN_SWITCH_OFF: Final = _ctrl is not None
"""Where it is false only the refusal of resumed sessions after their handshake is left."""


def keep_no_sessions(context: ssl.SSLContext) -> None:
    """Sessions of this context cannot be resumed, where :data:`CAN_SWITCH_OFF`."""
    if _ctrl is not None:
        pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
        _ctrl(pointer, _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
