"""Session caching of an SSLContext, switched off: the ssl module has no function for it.

A resumed session skips the verification of the client's certificate, so that an intermediate or CRL that has expired
meanwhile would go unnoticed. Without tickets TLS 1.3 has no sessions, but TLS 1.2 keeps them by id unless
SSL_CTX_set_session_cache_mode is called.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from tlsproxy.tls import openssl

if TYPE_CHECKING:
    import ssl

_SET_SESS_CACHE_MODE: Final = 44
"""SSL_CTRL_SET_SESS_CACHE_MODE (openssl/ssl.h)."""
_SESS_CACHE_OFF: Final = 0

_ctrl: Final = openssl.function(
    "SSL_CTX_ctrl", ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p
)
CAN_SWITCH_OFF: Final = _ctrl is not None
"""Otherwise resumed sessions are refused after their handshake, and nothing else protects from them."""


def keep_no_sessions(context: ssl.SSLContext) -> None:
    """Switch off the context's session cache, if :data:`CAN_SWITCH_OFF`."""
    if _ctrl is not None:
        _ctrl(openssl.pointer_of(context), _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
