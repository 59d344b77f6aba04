"""Limits of an address before its client is identified: connections, new connections a second, failed
authentications, and requests without any credential.

An IPv6 client can choose any address of its /64, so a /64 is one account.

With a certificate, failures block the identity at that address: its keys and tokens get 429, valid or not. Without one,
they block the address: new connections are closed, and so are those of others there, who get a turn of :data:`TURN`
after each delay. A success makes up for nothing, else the holder of one good key could guess at others in between.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.config.limits import LimitsConfig as Settings
from tlsproxy.config.networks import is_unix
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Penalty, Rate
from tlsproxy.proxy.limits.quotas import rate_of, too_many
from tlsproxy.proxy.limits.table import LimitTable

CONNECTION_LIMIT: Final = "limit"
ADDRESS_LIMIT: Final = "address_limit"
HANDSHAKE_RATE: Final = "handshake_rate"
TOO_MANY_FAILURES: Final = "too_many_failures"

FAILURES: Final = frozenset(
    {
        "no_certificate",
        "unknown_ca",
        "certificate_chain",
        "certificate_constraint",
        "certificate_expired",
        "certificate_invalid",
        "certificate_purpose",
        "certificate_revoked",
        "certificate_signature",
        "certificate_weak",
    }
)
"""Refusals of a certificate by its client's fault. A missing CRL is our fault, and would block everybody; a certificate
that is not valid yet was signed by a trusted CA, and two clocks differ."""
AMBIGUOUS: Final = FAILURES - {"no_certificate", "unknown_ca", "certificate_revoked"}
"""Refusals that OpenSSL reports for a CA's certificate too, without saying which certificate it was."""


TURN: Final = 2 * SECOND
"""Nanoseconds after each delay in which everybody at an address may connect."""


def turn_of(*, identified: bool) -> int:
    return 0 if identified else TURN


def network_of(address: str) -> str:
    """Network that counts as one client, e.g. ``2001:db8:1:2::/64`` for ``2001:db8:1:2::7``. Zones do not count."""
    if ":" not in address or is_unix(address):
        return address
    return str(ipaddress.IPv6Network((address, 64), strict=False))


@dataclass(frozen=True, slots=True)
class Failing:
    """Failed authentications of one account at all gateways: nanoseconds until all are forgotten, and until the end of
    the delay with the time after it.
    """

    account: bytes
    owed: int
    delay: int


class Addresses:
    """Limits by address, counted in ``table``, by the settings adopted last. ``penalty`` is that of failed
    authentications, None without one.
    """

    def __init__(self, table: LimitTable) -> None:
        self._table = table
        self._all_key = table.key("connections")

    def adopt(self, settings: Settings) -> None:
        own = settings.per_address
        self._all_connections = Charge(self._all_key, CONNECTION_LIMIT, None, settings.connections)
        self._per_address = settings.connections_per_address
        self._requests, self._concurrent_requests = rate_of(own.unidentified), own.unidentified.concurrent_requests or 0
        rate, failures = own.handshakes_per_second, own.failed_authentications
        self._rate = None if rate is None else Rate.of(rate, own.burst)
        self.penalty = None if failures is None else Penalty.of(failures, own.max_delay)

    def enter(self) -> tuple[int, ...] | str:
        """The same as :meth:`connect` for a connection whose client is not known yet: the rows of all connections."""
        outcome = self._table.take((self._all_connections,))
        return CONNECTION_LIMIT if isinstance(outcome, Excess) else outcome

    def connect(self, address: str, entered: tuple[int, ...] = ()) -> tuple[int, ...] | str:
        """Rows to :meth:`release` when the connection has ended, or the reason for which it is closed.

        ``entered`` are the rows of :meth:`enter`, in which it is counted already.
        """
        if self.delay(address, ()):
            return TOO_MANY_FAILURES
        one = Charge(self._table.key("address", address), ADDRESS_LIMIT, self._rate, self._per_address)
        outcome = self._table.take((one,) if entered else (self._all_connections, one))
        if isinstance(outcome, Excess):
            return HANDSHAKE_RATE if outcome.wait else outcome.charge.whose
        return entered + outcome

    def request(self, address: str) -> Charge:
        """Charge of a request by an unidentified client."""
        names = ("unidentified", address)
        key, account = (self._table.key(*names), b"") if is_unix(address) else self._table.account(*names)
        whose = "each address of unidentified clients"
        return Charge(key, whose, self._requests, self._concurrent_requests, account)

    def release(self, rows: tuple[int, ...]) -> None:
        self._table.release(rows)

    # Failed authentications, of an address or of an identity there

    def delay(self, address: str, identity: tuple[str, ...]) -> int:
        """Nanoseconds left of the delay. ``identity`` is an account, empty for the address itself."""
        if self.penalty is None:
            return 0
        now = self._table.clock()
        names, _ = self._failing(address, identity)
        until = self._table.arrival(self._table.key("delay", *names), now)
        return self.penalty.left(until, now, turn_of(identified=bool(identity)))

    def refusal(self, address: str, identity: tuple[str, ...]) -> Decision | None:
        """Refusal of a request during a delay, else None."""
        delay = self.delay(address, identity)
        if not delay:
            return None
        return too_many(TOO_MANY_FAILURES, "too many failed authentications", max(1, -(-delay // SECOND)))

    def failed(self, address: str, identity: tuple[str, ...]) -> None:
        """Counts a failed authentication."""
        table, penalty = self._table, self.penalty
        if penalty is None:
            return
        names, account = self._failing(address, identity)
        failures, delay = table.key("failures", *names), table.key("delay", *names)
        with table.lock:
            now = table.clock()
            owed = penalty.after(table.arrival(failures, now), now)
            row = table.put(failures, owed, now)
            if table.arrival(delay, now) <= now and (
                until := penalty.until(owed, now, turn_of(identified=bool(identity)))
            ):
                table.put(delay, until, now)
            if table.leases is not None and account:
                table.leases.failed(row, failures, account, identified=bool(identity))

    def learn(self, failing: Failing) -> None:
        """Take over what all gateways know together of an account, where that is more than is known here."""
        table = self._table
        with table.lock:
            now = table.clock()
            for kind, left in (("failures", failing.owed), ("delay", failing.delay)):
                key = table.key(kind, failing.account.hex())
                if now + left > table.arrival(key, now) and left > 0:
                    table.put(key, now + left, now)

    def _failing(self, address: str, identity: tuple[str, ...]) -> tuple[tuple[str, ...], bytes]:
        """Names that rows of failures have keys by, and the account's name in the store.

        A user of this machine has none there: the same number is somebody else at another gateway.
        """
        if self._table.leases is None or is_unix(address):
            return (address, *identity), b""
        _, account = self._table.account("failed", address, *identity)
        return (account.hex(),), account
