"""OpenSSL's errors of certificate verification (X509_V_ERR_*, openssl/x509_vfy.h, 3.0 to 4.0): reason and sentence.

Reasons are few, since they are labels of metrics; the sentence says which error it was and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_LONGEST: Final = 256
"""Most characters of a CA's name: a client may send it."""
_CA: Final = "the certificate of a CA above the client's"

VERIFY_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    1: ("verification_failed", "OpenSSL failed to verify the client certificate, for a reason of its own"),
    2: ("unknown_ca", "the issuer of an intermediate is not in tls.ca_cert, and was not sent"),
    3: ("crl_missing", "no CRL of the certificate's issuer is configured"),
    4: ("certificate_signature", "the certificate's signature cannot be read"),
    5: ("crl_invalid", "the CRL's signature cannot be read"),
    6: ("certificate_chain", "the public key of the issuer cannot be read"),
    7: ("certificate_signature", "the certificate was not signed by the CA that it names: another CA of that name?"),
    8: ("crl_invalid", "the CRL was not signed by the CA that it names"),
    9: ("certificate_not_yet_valid", "the client certificate, or one above it, is not valid yet; compare the clocks"),
    10: ("certificate_expired", "the client certificate, or one above it, has expired; renew it"),
    11: ("crl_not_yet_valid", "the CRL is not valid yet; compare the clocks"),
    12: ("crl_expired", "the CRL is past its next update; publish a new one"),
    13: ("certificate_invalid", "the certificate's notBefore is not a date"),
    14: ("certificate_invalid", "the certificate's notAfter is not a date"),
    15: ("crl_invalid", "the CRL's lastUpdate is not a date"),
    16: ("crl_invalid", "the CRL's nextUpdate is not a date"),
    17: ("verification_failed", "out of memory while the client certificate was verified"),
    18: ("unknown_ca", "the client certificate is self-signed, and no CA of tls.ca_cert issued it"),
    19: ("unknown_ca", "the root of the client's chain is not in tls.ca_cert"),
    20: ("unknown_ca", "the certificate's issuer is not in tls.ca_cert, or the client did not send its intermediate"),
    21: ("unknown_ca", "only the client's own certificate is there, and its issuer is not in tls.ca_cert"),
    22: ("certificate_chain", "the chain has too many certificates"),
    23: ("certificate_revoked", "the client certificate, or one above it, was revoked"),
    24: ("certificate_chain", "the issuer's certificate has no public key"),
    25: ("certificate_chain", "more CAs are below a CA than its path length allows"),
    26: (
        "certificate_purpose",
        "the certificate, or one above it, is not for TLS clients (extended key usage clientAuth)",
    ),
    27: ("unknown_ca", f"{_CA} is not trusted for TLS clients"),
    28: ("certificate_purpose", f"{_CA} is marked as rejected for TLS clients"),
    29: ("certificate_chain", "a certificate names another issuer than the one above it"),
    30: ("certificate_chain", "a certificate names another issuer's key (authority key identifier)"),
    31: ("certificate_chain", "a certificate names another issuer's serial number (authority key identifier)"),
    32: ("certificate_chain", f"{_CA} may not sign certificates (key usage keyCertSign)"),
    33: ("crl_invalid", "the certificate of the CRL's issuer is not there"),
    34: ("certificate_invalid", "a certificate has a critical extension that OpenSSL does not know"),
    35: ("crl_invalid", "the CRL's issuer may not sign CRLs (key usage cRLSign)"),
    36: ("crl_invalid", "the CRL has a critical extension that OpenSSL does not know"),
    37: ("certificate_chain", "a certificate above the client's is not a CA"),
    38: ("certificate_chain", "more proxy certificates are in the chain than it allows"),
    39: ("certificate_purpose", "the certificate may not sign (key usage digitalSignature)"),
    40: ("certificate_chain", "proxy certificates (RFC 3820) are not accepted"),
    41: ("certificate_invalid", "an extension of a certificate is invalid or inconsistent"),
    42: ("certificate_invalid", "the policy extension of a certificate is invalid or inconsistent"),
    43: ("certificate_constraint", "the chain has no policy, and a certificate requires one"),
    44: ("crl_invalid", "no CRL covers the certificate: those of its issuer are of another scope (distribution point)"),
    45: ("certificate_invalid", "a certificate uses a feature that OpenSSL does not support"),
    46: ("certificate_constraint", "a certificate has addresses or AS numbers that are not its issuer's (RFC 3779)"),
    47: ("certificate_constraint", "a name is outside of those that a CA above may give (name constraints)"),
    48: ("certificate_constraint", "a name is among those that a CA above may not give (name constraints)"),
    49: ("certificate_constraint", "a name constraint has a minimum or maximum, which is not supported"),
    50: ("verification_failed", "the application refused the certificate"),
    51: ("certificate_constraint", "a name constraint is of a type that OpenSSL does not support"),
    52: ("certificate_constraint", "a name constraint cannot be read"),
    53: ("certificate_constraint", "a name that is under a constraint cannot be read"),
    54: ("crl_invalid", "the path of the CRL's issuer cannot be verified"),
    55: ("certificate_chain", "the chain runs in a circle"),
    56: ("certificate_weak", "Suite B: the version of a certificate is not 3"),
    57: ("certificate_weak", "Suite B: the algorithm of a public key is not allowed"),
    58: ("certificate_weak", "Suite B: the curve is not allowed"),
    59: ("certificate_weak", "Suite B: the algorithm of a signature is not allowed"),
    60: ("certificate_weak", "Suite B: the curve is not allowed at this level of security"),
    61: ("certificate_weak", "Suite B: a P-384 key is signed with a P-256 key"),
    62: ("certificate_invalid", "the certificate is not for that host name"),
    63: ("certificate_invalid", "the certificate is not for that mail address"),
    64: ("certificate_invalid", "the certificate is not for that IP address"),
    65: ("unknown_ca", "no DANE TLSA record matches the certificate"),
    66: ("certificate_weak", "the client's key is too short: RSA needs 2048 bits, ECDSA 224"),
    67: (
        "certificate_weak",
        "the key of a CA above the client's certificate is too short: RSA needs 2048 bits, ECDSA 224",
    ),
    68: ("certificate_weak", "the chain has a signature with SHA-1 or MD5; issue the certificate anew with SHA-256"),
    69: ("verification_failed", "OpenSSL's verification was called wrongly"),
    70: ("verification_failed", "OpenSSL could not look up the issuer"),
    71: ("certificate_invalid", "no valid timestamp of a certificate transparency log came with the certificate"),
    72: ("certificate_constraint", "the subject of a proxy certificate does not begin with its issuer's"),
    73: ("verification_failed", "an OCSP answer is needed"),
    74: ("verification_failed", "OCSP verification failed"),
    75: ("verification_failed", "the OCSP responder does not know the certificate"),
    76: ("certificate_signature", "the algorithm of a certificate's signature is not supported"),
    77: ("certificate_signature", "a signature does not fit the type of its issuer's key"),
    78: ("certificate_signature", "a certificate names two algorithms for its signature"),
    79: ("certificate_chain", f"{_CA} is not that of a CA (basic constraints, version 3)"),
    80: ("certificate_chain", "a certificate has a path length and is no CA"),
    81: ("certificate_chain", "a certificate has a path length and may not sign certificates (key usage keyCertSign)"),
    82: ("certificate_chain", "a certificate may sign certificates (key usage keyCertSign) and is no CA"),
    83: ("certificate_invalid", "the name of a certificate's issuer is empty"),
    84: ("certificate_invalid", "the name of a CA is empty"),
    85: ("certificate_chain", "a certificate lacks its authority key identifier"),
    86: ("certificate_chain", "the certificate of a CA lacks its subject key identifier"),
    87: ("certificate_invalid", "a certificate has an empty list of alternative names"),
    88: ("certificate_invalid", "a certificate has alternative names alone, and they are not critical"),
    89: ("certificate_chain", "the basic constraints of a CA are not critical"),
    90: ("certificate_invalid", "an authority key identifier is critical"),
    91: ("certificate_invalid", "a subject key identifier is critical"),
    92: ("certificate_chain", "the certificate of a CA lacks its key usage"),
    93: ("certificate_invalid", "a certificate has extensions and is not of version 3"),
    94: ("certificate_weak", "an EC key has explicit parameters in place of a named curve"),
    95: ("unknown_ca", "a raw public key was presented, which is not trusted"),
    96: ("verification_failed", "the OCSP answer is invalid"),
    97: ("verification_failed", "the OCSP answer's signature is wrong"),
    98: ("verification_failed", "the OCSP answer is not valid yet"),
    99: ("verification_failed", "the OCSP answer has expired"),
    100: ("verification_failed", "no OCSP answer came"),
    101: ("crl_invalid", "the CRL cannot be verified"),
    102: ("certificate_chain", "a certificate has an empty authority key identifier"),
    103: ("certificate_chain", "an authority key identifier has one of issuer and serial number without the other"),
    104: ("certificate_invalid", "a certificate has an extension twice"),
}


def described(code: int, message: str, authority: str = "") -> tuple[str, str]:
    """(reason, sentence) of a failed verification; ``message`` is OpenSSL's, by which others know it.

    ``authority`` is the name of the CA whose certificate is at fault, "" for the client's own.
    """
    reason, sentence = VERIFY_ERRORS.get(code, ("certificate_invalid", "OpenSSL refuses the client certificate"))
    fault = f": that of {authority[:_LONGEST]}" if authority else ""
    return reason, f"{sentence}{fault} (OpenSSL error {code}: {message})"
