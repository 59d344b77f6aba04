"""RSA keys that sign nothing, and so need no primes: to find those of one takes a quarter of a second."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass(frozen=True)
class RsaNumbers:
    bits: int

    def public_key(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers(65537, (1 << self.bits) - 1).public_key()
