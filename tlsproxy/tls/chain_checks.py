"""Checks of the chain that the server sends: whether a client that knows the root alone can verify it.

Roots are known here only as far as they are CAs of `tls.ca_cert`; any other issuer of an intermediate passes for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tlsproxy.tls.owncert import issued_by, self_signed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography import x509

_CROSS_SIGNED: Final = 3
"""Fewest certificates of a chain whose last one passes for a cross-signed root: leaf, intermediate, root."""


def gaps(path: str, sent: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> Iterator[str]:
    """Warnings on intermediates that are missing. ``sent`` is the chain as clients get it, leaf first."""
    last = sent[-1]
    if self_signed(last):
        return
    issuers = [one for one in authorities if issued_by(last, one)]
    if any(map(self_signed, issuers)):
        return
    issuer = last.issuer.rfc4514_string()
    whole = "put the whole chain there (of certbot fullchain.pem, not cert.pem)"
    effect = f"clients that know the root alone refuse it; {whole}"
    if issuers:
        yield f"{path}: the intermediate {issuer} is not in the chain: {effect}"
    elif len(sent) == 1:
        yield f"{path}: the certificate comes alone: if its issuer {issuer} is an intermediate, {effect}"


def needless_last(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """The last certificate of a chain if clients verify the chain without it: a root by another name or signature.

    For example, a root that an older root has cross-signed: who knows the root needs no older one. It is one if
    the CAs have a self-signed certificate of its name and key, or if an intermediate stands before it.
    """
    last = chain[-1]
    if len(chain) == 1:
        return None
    twin = any(
        one != last and one.subject == last.subject and one.public_key() == last.public_key() and self_signed(one)
        for one in authorities
    )
    return last if twin or (len(chain) >= _CROSS_SIGNED and not self_signed(last)) else None
