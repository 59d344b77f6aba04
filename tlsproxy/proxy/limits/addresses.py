"""Limits of an address before its client is identified: connections, new connections a second, failed
authentications, and requests without any credential.

An IPv6 client has a whole /64 to choose from, so a /64 is one account. Failures of a client with a certificate count
against that identity at this address, and not against others there: only the identity's keys and tokens are delayed.
Failures of a client without one count against the address: others there are delayed too, but get a turn after each
delay. Only time makes up for a failure: otherwise the holder of one good key could guess at others in between.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.config.limits import LimitsConfig as Settings
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Penalty, Rate
from tlsproxy.proxy.limits.quotas import rate_of, too_many
from tlsproxy.proxy.limits.table import LimitTable

IN_ALL: Final = "limit"
AT_A_TIME: Final = "address_limit"
TOO_FAST: Final = "handshake_rate"
FAILING: Final = "too_many_failures"

FAILURES: Final = frozenset(
    {
        "no_certificate",
        "unknown_ca",
        "certificate_expired",
        "certificate_invalid",
        "certificate_purpose",
        "certificate_revoked",
    }
)
"""Refusals of a certificate by its client's fault. A CRL that is missing is ours, and would shut out everybody; what is
not valid yet is signed by a CA of ours, and a matter of two clocks."""
OURS: Final = frozenset({"certificate_expired", "certificate_invalid", "certificate_purpose"})
"""Those that OpenSSL finds for a CA's certificate too, and does not tell whose it was."""


HEARD: Final = 2 * SECOND
"""In which everybody at an address is heard, after each delay."""


def _heard(identity: tuple[str, ...]) -> int:
    return 0 if identity else HEARD


def account(address: str) -> str:
    """The network that counts as one client."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))


class Addresses:
    """Over the table that limits are counted in, for the settings that are adopted last."""

    def __init__(self, table: LimitTable) -> None:
        self._table = table
        self._everybody = table.key("connections")
        self._rate: Rate | None = None
        self._requests: Rate | None = None
        self._penalty: Penalty | None = None

    def adopt(self, settings: Settings) -> None:
        own = settings.per_address
        self._in_all = Charge(self._everybody, IN_ALL, None, settings.connections)
        self._at_a_time = settings.connections_per_address
        self._requests, self._requests_at_a_time = rate_of(own.unidentified), own.unidentified.concurrent_requests or 0
        self._rate = self._penalty = None
        if own.handshakes_per_second is not None:
            self._rate = Rate.of(own.handshakes_per_second, own.burst)
        if own.failed_authentications is not None:
            self._penalty = Penalty.of(own.failed_authentications, own.max_delay)

    def connect(self, address: str) -> tuple[int, ...] | str:
        """What to :meth:`release` when the connection has ended, or why there may be none."""
        if self.delay(address, ()):
            return FAILING
        one = Charge(self._table.key("address", address), AT_A_TIME, self._rate, self._at_a_time)
        outcome = self._table.take((self._in_all, one))
        if isinstance(outcome, Excess):
            return TOO_FAST if outcome.wait else outcome.charge.whose
        return outcome

    def request(self, address: str) -> Charge:
        """Charge of a request by an unidentified client."""
        key = self._table.key("unidentified", address)
        return Charge(key, "each address of unidentified clients", self._requests, self._requests_at_a_time)

    def release(self, held: tuple[int, ...]) -> None:
        self._table.release(held)

    # Failures of whoever this is: an address, or an identity there

    def delay(self, address: str, identity: tuple[str, ...]) -> int:
        """Nanoseconds for which this one is not heard. ``identity`` is an account, empty for the address itself."""
        if self._penalty is None:
            return 0
        now = self._table.clock()
        until = self._table.arrival(self._table.key("delay", address, *identity), now)
        return self._penalty.left(until, now, _heard(identity))

    def refusal(self, address: str, identity: tuple[str, ...]) -> Decision | None:
        """Of a request that is not heard."""
        delay = self.delay(address, identity)
        if not delay:
            return None
        return too_many(FAILING, "too many failed authentications", max(1, -(-delay // SECOND)))

    def failed(self, address: str, identity: tuple[str, ...]) -> None:
        """One more has failed."""
        table, penalty = self._table, self._penalty
        if penalty is None:
            return
        failures, delay = table.key("failures", address, *identity), table.key("delay", address, *identity)
        with table.lock:
            now = table.clock()
            owed = penalty.after(table.arrival(failures, now), now)
            table.put(failures, owed, now)
            if table.arrival(delay, now) <= now and (until := penalty.until(owed, now, _heard(identity))):
                table.put(delay, until, now)
