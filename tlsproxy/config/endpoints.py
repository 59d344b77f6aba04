"""Addresses and URLs of a configuration, parsed and checked. No name is resolved."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_HOST: Final = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]+")
_LABEL: Final = r"[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\.?")
"""A host name (RFC 1123 section 2.1), with underscores."""
_NO_HOST: Final = "an IP address or a host name is expected before the port"
UNIX: Final = "unix:"
LONGEST_UNIX_PATH: Final = 107
"""Bytes of a unix socket's path on Linux, without the final NUL (unix(7))."""
WEB_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host name or address without brackets, and a port."""

    host: str
    port: int

    @property
    def bound(self) -> str:
        """The host to listen on: `localhost` is loopback, whatever a hosts file says (RFC 6761 section 6.3)."""
        return "127.0.0.1" if self.host == "localhost" else self.host

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or (is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def wildcard(self) -> bool:
        return is_address(self.host) and ipaddress.ip_address(self.host).is_unspecified

    def overlaps(self, other: Endpoint | UnixSocket) -> bool:
        """Whether both cannot be bound together. Port 0 never overlaps."""
        if isinstance(other, UnixSocket):
            return False
        return self.port == other.port != 0 and (self.host == other.host or self.wildcard or other.wildcard)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """Path of a unix socket, or `@` and its name in the abstract namespace."""

    name: str

    @property
    def loopback(self) -> bool:
        return True

    @property
    def abstract(self) -> bool:
        return self.name.startswith("@")

    @property
    def sockaddr(self) -> str:
        """As `connect` and `bind` take it: an abstract name begins with NUL (unix(7))."""
        return f"\0{self.name[1:]}" if self.abstract else self.name

    def overlaps(self, other: Endpoint | UnixSocket) -> bool:
        """Whether both cannot be bound together."""
        return self == other

    def __str__(self) -> str:
        return f"{UNIX}{self.name}"


def unix_socket(url: str) -> UnixSocket:
    """Parse `unix:/path` or `unix:@name`. Raises ValueError."""
    text = "an absolute path or an abstract name is expected: unix:/run/qdrant/rest.sock, unix:@qdrant"
    return named_socket(url.removeprefix(UNIX), text)


def named_socket(name: str, expected: str) -> UnixSocket:
    """The socket of a `/path` or `@name`. Raises ValueError; ``expected`` is the text for neither of both."""
    if not name.startswith(("/", "@")) or name in {"/", "@"}:
        raise ValueError(expected)
    if not name.isprintable():
        raise ValueError("the path or name of a unix socket must be printable")
    if len(name.removeprefix("@").encode()) > LONGEST_UNIX_PATH:
        raise ValueError(f"the path or name of a unix socket has at most {LONGEST_UNIX_PATH} bytes")
    return UnixSocket(name)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_host(host: str) -> None:
    """Check an address to listen on: an IP address, or a name that can be resolved. Raises ValueError."""
    if host.startswith("unix:"):
        raise ValueError(
            "clients connect over TCP here: an address or host name is expected (listeners take `unix: /path`)"
        )
    if host.startswith("[") or host.endswith("]"):
        raise ValueError("an IPv6 address stands without brackets here: ::1")
    if not _is_host(host):
        raise ValueError("an IP address or a host name is expected, without port or scheme")


def _is_host(host: str) -> bool:
    return is_address(host) or _NAME.fullmatch(host) is not None


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """A parsed URL of an upstream. ``authority``: the host and port as they were written. ``tls``: it is `https://`."""

    endpoint: Endpoint | UnixSocket
    authority: str
    tls: bool = False


def upstream_url(url: str) -> UpstreamUrl:
    """Parse `http://host:port`, `https://host:port`, `unix:/path` or `unix:@name`.

    Raises ValueError, whose text never has the URL: it may hold a password.
    """
    if url.startswith(UNIX):
        return UpstreamUrl(unix_socket(url), "localhost")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a URL: http://host:port or https://host:port is expected") from None
    if parts.scheme not in WEB_PORTS or not host:
        raise ValueError("http://host:port or https://host:port is expected")
    if "@" in parts.netloc:
        raise ValueError("a user or password in the URL is not supported: see upstream.api_key_file")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"only {parts.scheme}://host:port is expected, without a path")
    if not port:
        raise ValueError("the port is missing: Qdrant's own default is 6333 for REST and 6334 for gRPC")
    if parts.netloc not in url or not _is_host(host):  # it goes into `Host`, and into the handshake (SNI)
        raise ValueError(_NO_HOST)
    return UpstreamUrl(Endpoint(host, port), parts.netloc, parts.scheme == "https")


def tcp_endpoint(address: str) -> Endpoint | UnixSocket:
    """`host:port`, `unix:/path` or `unix:@name`. Raises ValueError."""
    if address.startswith(UNIX):
        return unix_socket(address)
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or not port or parts.netloc != address or "@" in address:
        raise ValueError("host:port is expected")
    if not _is_host(host):
        raise ValueError(_NO_HOST)
    return Endpoint(host, port)


def check_key_set_url(url: str) -> None:
    """Check a key set's URL: https, or http on loopback. Raises ValueError, whose text never has the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a URL: https://host/path is expected") from None
    if parts.scheme not in {"https", "http"} or not host or not (url.isascii() and url.isprintable()):
        raise ValueError("https://host/path is expected")
    if "@" in parts.netloc:
        raise ValueError("a user or password in the URL is not supported")
    if parts.scheme == "http" and not Endpoint(host, port or 80).loopback:
        raise ValueError("keys over plain http can be anybody's: use https://, or http:// on loopback")


def check_origin(origin: str) -> None:
    """Checks a web page's origin, exactly as a browser writes it: `https://host[:port]`. Raises ValueError."""
    if origin in {"*", "null"}:
        raise ValueError(f"{origin!r} is any page: list each origin whose pages may use a visitor's certificate")
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in WEB_PORTS or not host or _HOST.fullmatch(host) is None or "@" in parts.netloc:
        raise ValueError("https://host or https://host:port is expected, an international name as xn--…")
    if ":" in host and is_address(host):
        host = f"[{ipaddress.ip_address(host).compressed}]"
    written = f"{parts.scheme}://{host}" + ("" if port in {None, WEB_PORTS[parts.scheme]} else f":{port}")
    if origin != written:
        raise ValueError(f"is compared to the byte: a browser writes {written!r}")


def shown_url(url: str) -> str:
    """A URL without its secrets: user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def listen_endpoint(listen: str) -> Endpoint | UnixSocket:
    """`host:port`, `unix:/path` or `unix:@name` to listen on; port 0 is for one of the system's choice.

    Raises ValueError.
    """
    if listen.startswith(UNIX):
        text = "the path of a unix socket must be absolute: unix:/run/tlsproxy/admin.sock, or unix:@name"
        return named_socket(listen.removeprefix(UNIX), text)
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if port is None or parts.netloc != listen or "@" in listen or not _is_host(host or ""):
        raise ValueError("host:port is expected")
    return Endpoint(host or "", port)


def admin_endpoint(listen: str) -> Endpoint | UnixSocket:
    """A unix socket, or a loopback endpoint. Raises ValueError."""
    try:
        endpoint = listen_endpoint(listen)
    except ValueError as error:
        raise ValueError(f"unix:/path or {error}" if not listen.startswith(UNIX) else str(error)) from None
    if not endpoint.loopback:
        raise ValueError("the admin server has no authentication: listen on 127.0.0.1, [::1] or a unix socket")
    return endpoint
