"""Recognition of files that hold no PEM block, or another than is needed: what they are, and the command that converts.

Commands write a new file beside the old one. They are for a person to run: nothing is converted here.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

_KEYS: Final = "it belongs in tls.key, and in no other file"
_REQUEST: Final = "It is a request for a certificate: use the certificate that the CA answered it with"

_BLOCKS: Final[Mapping[str, str]] = {
    "CERTIFICATE": "A certificate belongs in tls.cert or tls.ca_cert",
    "X509 CRL": "A CRL belongs in tls.crl",
    "PRIVATE KEY": f"It is a private key: {_KEYS}",
    "ENCRYPTED PRIVATE KEY": f"It is a private key: {_KEYS}",
    "RSA PRIVATE KEY": f"It is a private key: {_KEYS}",
    "EC PRIVATE KEY": f"It is a private key: {_KEYS}",
    "OPENSSH PRIVATE KEY": f"It is a private key: {_KEYS}",
    "DSA PRIVATE KEY": "A DSA key is not used in TLS any more: make an ECDSA one",
    "PUBLIC KEY": "It is a public key alone",
    "RSA PUBLIC KEY": "It is a public key alone",
    "CERTIFICATE REQUEST": _REQUEST,
    "NEW CERTIFICATE REQUEST": _REQUEST,
    "TRUSTED CERTIFICATE": "Convert it: `openssl x509 -in {file} -out {new}`",
    "PKCS7": "Convert it: `openssl pkcs7 -print_certs -in {file} -out {new}`",
    "CMS": "Convert it: `openssl pkcs7 -print_certs -in {file} -out {new}`",
}
"""Label of a block → hint where it does not belong."""
_FOR_PUBLIC: Final[Mapping[str, str]] = {
    "CERTIFICATE": "Take the key out of the certificate: `openssl x509 -in {file} -noout -pubkey > {new}`",
    **dict.fromkeys(
        ("PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"),
        "It is the private key, which only the issuer should have: `openssl pkey -in {file} -pubout -out {new}`",
    ),
}
"""The same where a public key is needed."""

_CONTAINERS: Final = (
    (
        re.compile(rb"\x30(?:\x80|[\x81-\x84].{1,4}?|[\x00-\x7f])\x02\x01\x03\x30", re.DOTALL),
        "it is PKCS#12. Convert it: `openssl pkcs12 -in {file} -nodes -out {new}` (with `-legacy` if it is old)",
    ),
    (
        re.compile(
            rb"\x30(?:\x80|[\x81-\x84].{1,4}?|[\x00-\x7f])\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", re.DOTALL
        ),
        "it is PKCS#7. Convert it: `openssl pkcs7 -inform DER -print_certs -in {file} -out {new}`",
    ),
    (
        re.compile(rb"\xfe\xed\xfe\xed|\xce\xce\xce\xce"),
        (
            "it is a Java keystore. Convert it: `keytool -importkeystore -srckeystore {file} -destkeystore {file}.p12`"
            ", then `openssl pkcs12 -in {file}.p12 -nodes -out {new}`"
        ),
    ),
    (
        re.compile(rb"(?:ssh-|ecdsa-sha2-|sk-)[\w@.-]+ AAAA"),
        "it is an OpenSSH public key. Convert it: `ssh-keygen -e -m PKCS8 -f {file} > {new}`",
    ),
    (
        re.compile(rb"---- BEGIN SSH2"),
        "it is a public key of SSH2. Convert it: `ssh-keygen -i -f {file}`, then as OpenSSH's",
    ),
    (
        re.compile(rb"PuTTY-User-Key-File"),
        "it is a key of PuTTY. Convert it: `puttygen {file} -O private-openssh -o {new}`",
    ),
    (
        re.compile(rb"\s*<(?:!|\?|html)", re.IGNORECASE),
        "it is a web page: the server that it was fetched from did not send the file",
    ),
    (
        re.compile(rb"\s*\{"),
        "it is JSON: a set of keys is named by `jwks`; a field is taken out by `jq -r .certificate {file} > {new}`",
    ),
    (
        re.compile(rb"\s*apiVersion:"),
        r"it is a manifest of Kubernetes. Take a field out: `sed -n 's/^ *tls\.crt: *//p' {file} | base64 -d > {new}`",
    ),
)
"""Beginning of a file → hint."""

_ANYTHING: Final = "convert it to PEM with the tool that wrote it"


def _private(data: bytes) -> Any:
    try:
        return serialization.load_der_private_key(data, None)
    except TypeError:  # encrypted
        return None


_CONVERTED: Final = "in DER form. Convert it: `openssl {command} -inform DER -in {file} -out {new}`"
_DER: Final[tuple[tuple[Callable[[bytes], Any], str, str], ...]] = (
    (x509.load_der_x509_certificate, f"it is a certificate {_CONVERTED}", "x509"),
    (x509.load_der_x509_crl, "it is a CRL in DER form, which tls.crl takes as it is", "crl"),
    (
        x509.load_der_x509_csr,
        "it is a request for a certificate: use the certificate that the CA answered it with",
        "req",
    ),
    (_private, f"it is a private key {_CONVERTED}", "pkey"),
    (serialization.load_der_public_key, f"it is a public key {_CONVERTED}", "pkey -pubin"),
)
"""Parser, hint, and command of OpenSSL."""


def foreign(path: str, data: bytes) -> str:
    """Hint on a file that holds no PEM block."""
    for beginning, hint in _CONTAINERS:
        if beginning.match(data):
            return _filled(hint, path)
    if b"-----BEGIN " in data:
        return own_lines(path)
    if kind := _der(data):
        hint, command = kind
        return _filled(hint, path, command)
    return _of_base64(path, data) or _ANYTHING


def misplaced(path: str, label: str, *, public: bool = False) -> str:
    """Hint on a block that does not belong into a file, or into one of a ``public`` key; "" for an unknown one."""
    hint = _FOR_PUBLIC.get(label) if public else None
    return _filled(hint or _BLOCKS.get(label, ""), path)


def own_lines(path: str) -> str:
    """Hint on boundaries that are not lines of their own, as in a variable that lost its line ends."""
    if_escaped = "`printf '%b' \"$(cat {file})\" > {new}` where line ends are written as \\n"
    separated = "`sed -E 's/-----BEGIN [^-]+-----/&\\n/g; s/-----END /\\n&/g' {file} > {new}`"
    return _filled(f"write the file anew, or put its boundaries on lines of their own: {separated}; {if_escaped}", path)


def _of_base64(path: str, data: bytes) -> str:
    try:
        decoded = base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return ""
    if decoded.startswith(b"-----BEGIN "):
        return _filled("it is base64 of PEM. Convert it: `base64 -d {file} > {new}`", path)
    if kind := _der(decoded):
        text = "it is base64 without PEM's boundaries. Convert it: "
        return _filled(f"{text}`base64 -d {{file}} | openssl {{command}} -inform DER -out {{new}}`", path, kind[1])
    return ""


def _der(data: bytes) -> tuple[str, str] | None:
    for load, hint, command in _DER:
        try:
            load(data)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
            continue
        return hint, command
    return None


def _filled(hint: str, path: str, command: str = "") -> str:
    names = {"{command}": command, "{file}": shlex.quote(path), "{new}": shlex.quote(f"{path}.pem")}
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], hint)
