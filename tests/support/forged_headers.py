"""Headers that claim who somebody is, in the guises in which they might get through."""

from __future__ import annotations

FORGED = "f0rged"
IDENTITY = [
    "api-key",
    "authorization",
    "proxy-authorization",
    "proxy-authenticate",
    "forwarded",
    "x-forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-user",
    "x-forwarded-client-cert",
    "x-real-ip",
    "x-client-cert",
    "x-client-cert-subject",
    "x-ssl-client-verify",
    "x-tlsproxy-role",
]
GUISES = (str, str.upper, str.title, lambda name: name.replace("-", "_"), lambda name: name.replace("-", "."))
