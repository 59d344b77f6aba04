"""Verification of the peer's certificate in a handshake: OpenSSL's, then a judge of ours, before an alert is chosen.

OpenSSL builds and verifies the path. The judge looks at the result, CRLs included, and its refusal becomes the alert
that fits. So a revoked client gets `certificate_revoked` whatever the size of the CRL; OpenSSL itself would verify the
CRL's signature in each handshake. Where the library cannot be called (:data:`CAN_JUDGE`), the judge is not asked: the
same rule is applied to the finished handshake, without an alert.
"""

from __future__ import annotations

import ctypes
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from tlsproxy.tls import openssl

Judge: TypeAlias = Callable[[tuple[bytes, ...], tuple[bytes, ...]], str]
"""(verified path, certificates as sent), both DER and leaf first → refusal, or "" to admit. Refusals of a client are
those of :data:`tlsproxy.tls.trust.REFUSALS`, of a server those of :data:`tlsproxy.tls.client_context.MISMATCHES`."""

_INTERNAL: Final = 1
"""X509_V_ERR_UNSPECIFIED (openssl/x509_vfy.h), for which OpenSSL sends `internal_error`."""
_CODES: Final[Mapping[str, int]] = {
    "certificate_revoked": 23,
    "certificate_expired": 10,
    "certificate_not_yet_valid": 9,
    "issuer_not_trusted": 20,
    "spiffe_mismatch": 62,
    "pin_mismatch": 62,
}
"""Refusal → X509_V_ERR_*, by which OpenSSL chooses the alert. A missing or expired CRL is our fault, and becomes
`internal_error` ("unrelated to the peer", RFC 8446 section 6.2) in place of `unknown_ca` or `certificate_expired`. A
server that is another than expected gets `bad_certificate`."""

_POINTER: Final = ctypes.c_void_p
_Callback: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER)

_set_callback: Final = openssl.function("SSL_CTX_set_cert_verify_callback", None, _POINTER, _Callback, _POINTER)
_verify: Final = openssl.function("X509_verify_cert", ctypes.c_int, _POINTER)
_set_error: Final = openssl.function("X509_STORE_CTX_set_error", None, _POINTER, ctypes.c_int)
_error: Final = openssl.function("X509_STORE_CTX_get_error", ctypes.c_int, _POINTER)
_faulty: Final = openssl.function("X509_STORE_CTX_get_current_cert", _POINTER, _POINTER)
_path: Final = openssl.function("X509_STORE_CTX_get0_chain", _POINTER, _POINTER)
_sent: Final = openssl.function("X509_STORE_CTX_get0_untrusted", _POINTER, _POINTER)
_length: Final = openssl.function("OPENSSL_sk_num", ctypes.c_int, _POINTER)
_item: Final = openssl.function("OPENSSL_sk_value", _POINTER, _POINTER, ctypes.c_int)
_text: Final = openssl.function("X509_verify_cert_error_string", ctypes.c_char_p, ctypes.c_long)
_encode: Final = openssl.function("i2d_X509", ctypes.c_int, _POINTER, ctypes.POINTER(_POINTER))

CAN_JUDGE: Final = None not in (
    *(_set_callback, _verify, _set_error, _error, _faulty, _text, _path, _sent, _length, _item, _encode),
)
_DATES: Final = frozenset({9, 10})
"""X509_V_ERR_* of a certificate that is not valid yet, and of one that has expired."""


class ChainRefused(ssl.SSLError):
    """A handshake in which OpenSSL verified the certificate, and the judge refused it."""

    def __init__(self, refusal: str) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class Unverified(ssl.SSLCertVerificationError):
    """OpenSSL's refusal of a certificate, with the certificate (DER) of a CA that is at fault; b"" for the client's."""

    def __init__(self, code: int, message: str, authority: bytes) -> None:
        super().__init__(message)
        self.verify_code = code
        self.verify_message = message
        self.authority = authority


class _Handshake(threading.local):
    """The thread's handshake: OpenSSL calls back before it returns."""

    judge: Judge | None = None
    refusal = ""
    code = 0
    authority = b""
    failure: BaseException | None = None


_now: Final = _Handshake()


def shake_hands(tls: ssl.SSLObject, judge: Judge) -> None:
    """One step of a handshake, as `do_handshake`. Raises ChainRefused, Unverified, or an error of the judge."""
    _now.judge, _now.refusal, _now.code, _now.failure = judge, "", 0, None
    try:
        tls.do_handshake()
    except ssl.SSLCertVerificationError as error:
        failure = _failure(error)
    else:
        return
    finally:
        _now.judge = _now.failure = None
    try:
        raise failure  # here it has no context
    finally:
        del failure  # its traceback has this frame: a reference cycle


def _failure(error: ssl.SSLCertVerificationError) -> BaseException:
    if _now.failure is not None:
        return _now.failure
    if _now.refusal:
        return ChainRefused(_now.refusal)
    if _now.code:
        return Unverified(_now.code, _text(_now.code).decode(), _now.authority)
    return Unverified(error.verify_code, error.verify_message, b"")


def judge_peers(context: ssl.SSLContext) -> None:
    """Have the context's handshakes ask their judge, if :data:`CAN_JUDGE`. For :func:`shake_hands`."""
    if CAN_JUDGE:
        _set_callback(openssl.pointer_of(context), _callback, None)


def _verified(store: Any, _: Any) -> int:
    """1 admits. Nothing may be raised into C: OpenSSL would read garbage as the result."""
    try:
        return _judged(store)
    except BaseException as error:  # noqa: BLE001 - shake_hands raises it
        _now.failure = error
        _set_error(store, _INTERNAL)
        return 0


def _judged(store: Any) -> int:
    admitted: int = _verify(store)
    if _now.judge is None:
        return admitted
    path, sent = _items(_path(store)), _items(_sent(store))
    if admitted != 1:
        _note_error(store, path, sent)
        return admitted
    ders = {certificate: _der(certificate) for certificate in {*path, *sent}}
    _now.refusal = refusal = _now.judge(tuple(map(ders.__getitem__, path)), tuple(map(ders.__getitem__, sent)))
    if not refusal:
        return 1
    _set_error(store, _CODES.get(refusal, _INTERNAL))
    return 0


def _note_error(store: Any, path: list[int], sent: list[int]) -> None:
    """Notes OpenSSL's error. A CA of ours that is outdated is our fault, like a CRL: the alert is `internal_error`."""
    _now.code, faulty = _error(store), _faulty(store)
    _now.authority = _der(faulty) if faulty and faulty not in path[:1] else b""
    if _now.code in _DATES and _now.authority and faulty not in sent:
        _set_error(store, _INTERNAL)


def _items(stack: Any) -> list[int]:
    """Addresses of certificates: those that were sent are in the path too, as the same ones."""
    return [_item(stack, place) for place in range(_length(stack))]


def _der(certificate: int) -> bytes:
    buffer = bytearray(_encode(certificate, None))
    _encode(certificate, ctypes.byref(_POINTER(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))))
    return bytes(buffer)


_callback: Final = _Callback(_verified)
"""One for all contexts, since it must outlive them."""
