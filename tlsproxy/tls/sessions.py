"""Session caching of an SSLContext, switched off: the ssl module has no function for it.

A resumed session skips the verification of the client's certificate, so that an intermediate or CRL that has expired
meanwhile would go unnoticed. Without tickets TLS 1.3 has no sessions, but TLS 1.2 keeps them by id unless
SSL_CTX_set_session_cache_mode is called. The pointer for that call follows the head of CPython's object.
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
    """SSL_CTX_ctrl of the ssl module's own library; None where the object layout is unknown."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    function = getattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), "SSL_CTX_ctrl", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        function.restype = ctypes.c_long
    return function


_ctrl: Final = _call()
CAN_SWITCH_OFF: Final = _ctrl is not None
"""Otherwise resumed sessions are refused after their handshake, and nothing else protects from them."""


def keep_no_sessions(context: ssl.SSLContext) -> None:
    """Switch off the context's session cache, if :data:`CAN_SWITCH_OFF`."""
    if _ctrl is not None:
        pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
        _ctrl(pointer, _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
