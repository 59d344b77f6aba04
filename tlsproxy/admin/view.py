"""View of a status for the admin page and the terminal: rows of short texts.

Text that strangers chose (certificate names, paths) has its invisible characters spelled out: control characters, and
marks that reverse the order of a line. HTML escaping is up to the renderer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.metrics.recent import OTHERS
from tlsproxy.snapshot.lifetimes import KINDS, State, remaining, state
from tlsproxy.text import printable, span, utc_time

OUTCOMES: Final = ("allowed", "denied", "failed")
MAX_ROLES: Final = 24
"""Roles with a row of their own: the busiest."""
NO_ROLE: Final = "(no role)"

_BY_FIELD: Final = frozenset({"role", "rule", "key", "issuer", "listener"})
"""Kinds of changes whose detail names the changed fields."""
_NODE_FIGURES: Final = {
    "in_flight": "requests and calls under way",
    "connections": "connections in use",
    "ejections": "ejections",
}
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_KIBI: Final = 1024
_SMALL: Final = 10
_COLOURS: Final[Mapping[str, State]] = {"serving": "ok", "draining": "soon", "degraded": "soon"}


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Lifetime of a certificate, CRL or key; ``share`` is the remaining part, 0 to 1."""

    kind: str
    name: str
    detail: str
    until: str
    left: str
    share: float
    state: State


@dataclass(frozen=True, slots=True)
class Traffic:
    """A role's decisions by outcome: ``totals``, and ``slots`` from the oldest to the current one."""

    role: str
    totals: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(self.totals)

    @property
    def peak(self) -> int:
        return max(map(sum, self.slots), default=0)


@dataclass(frozen=True, slots=True)
class Connection:
    number: int
    protocol: str
    address: str
    client: str
    ca: str
    role: str
    rule: str
    key: str
    age: str
    requests: int
    transferred: str
    ending: str
    tls: str
    cipher: str
    group: str

    @property
    def older_tls(self) -> str:
        """The TLS version where it is not the newest, as in a table: the rest need no word."""
        return "" if self.tls == "TLSv1.3" else self.tls


@dataclass(frozen=True, slots=True)
class Refused:
    when: str
    remote: str
    client: str
    role: str
    rule: str
    operation: str
    collection: str
    reason: str


@dataclass(frozen=True, slots=True)
class Locked:
    """A lock in force; ``origin`` says by whom it was made, or that it is configured, and why."""

    name: str
    left: str
    origin: str


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node of the upstream: its state, what is under way there, and its URLs."""

    name: str
    state: str
    detail: str
    urls: str


@dataclass(frozen=True, slots=True)
class Reload:
    """The last reload. ``changes`` are sentences on the last publication, at ``changed``, maybe by an earlier one."""

    result: str
    trigger: str
    when: str
    error: str
    changed: str
    changes: tuple[str, ...]


def headline(status: Mapping[str, Any]) -> tuple[str, State]:
    """The verdict on readiness and its colour. A gateway older than this program reports none."""
    readiness = status.get("readiness")
    if readiness is None:
        return ("draining", "soon") if status["connections"]["draining"] else ("serving", "ok")
    return shown(readiness["headline"]), _COLOURS.get(readiness["state"], "over")


def lifetimes(status: Mapping[str, Any], now: float) -> list[Lifetime]:
    """Rows of the section ``lifetimes``, which a gateway older than this program does not report."""
    return [_lifetime(entry, now) for entry in status.get("lifetimes", ())]


def _lifetime(entry: Mapping[str, Any], now: float) -> Lifetime:
    start, end = entry["start"], entry["end"]
    left = f"{span(end - now)} left" if end > now else f"expired {span(now - end)} ago"
    kind, name, detail = KINDS[entry["kind"]], shown(entry["name"]), shown(entry["detail"])
    return Lifetime(kind, name, detail, utc_time(end), left, remaining(start, end, now), state(start, end, now))


def traffic(section: Mapping[str, Any], now: float) -> list[Traffic]:
    """Rows of the section ``decisions``: the busiest roles first, all others together in the last row."""
    seconds, kept = section["seconds"], section["kept"]
    first = int(now // seconds) * seconds - (kept - 1) * seconds
    counted: dict[str, list[list[int]]] = {}
    for slot in section["slots"]:
        index = (slot["start"] - first) // seconds
        if 0 <= index < kept:
            for role, outcomes in slot["roles"].items():
                cells = counted.setdefault(role, [[0] * len(OUTCOMES) for _ in range(kept)])[index]
                for position, outcome in enumerate(OUTCOMES):
                    cells[position] += outcomes.get(outcome, 0)
    others = [counted.pop(OTHERS)] if OTHERS in counted else []
    ranked = sorted(counted.items(), key=lambda each: (-sum(map(sum, each[1])), each[0]))
    others += [slots for _, slots in ranked[MAX_ROLES:]]
    rows = [_traffic(shown(role) or NO_ROLE, slots) for role, slots in ranked[:MAX_ROLES]]
    if others:
        rows.append(_traffic(OTHERS, [_summed(cells) for cells in zip(*others, strict=True)]))
    return rows


def _traffic(role: str, slots: Sequence[Sequence[int]]) -> Traffic:
    return Traffic(role, tuple(_summed(slots)), tuple(map(tuple, slots)))


def _summed(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def connections(section: Mapping[str, Any], *, with_ca: bool) -> list[Connection]:
    """Rows of the section ``connections``, newest first.

    ``with_ca`` adds the client's CA. A gateway older than this program reports none, no balancer, and nothing of TLS.
    """
    return [
        Connection(
            number=entry["number"],
            protocol=entry["protocol"],
            address=" via ".join(filter(None, (shown(entry["address"]), shown(entry.get("via"))))),
            client=shown(entry["identity"]) or "no certificate",
            ca=shown(entry.get("ca")) if with_ca else "",
            role=shown(entry["role"]) or NO_ROLE,
            rule=shown(entry["rule"]),
            key=shown(entry["key"]),
            age=span(entry["age"]),
            requests=entry["requests"],
            transferred=f"{size(entry['bytes_in'])} in, {size(entry['bytes_out'])} out",
            ending=shown(entry["ending"]),
            tls=shown(entry.get("tls_version")),
            cipher=shown(entry.get("tls_cipher")),
            group=shown(entry.get("tls_group")),
        )
        for entry in sorted(section["live"], key=lambda each: each["age"])
    ]


def tls_versions(status: Mapping[str, Any]) -> str:
    """Connections by TLS version, the lowest first: `3 TLSv1.2 and 40 TLSv1.3`. An older gateway reports none."""
    counted: Counter[str] = Counter()
    for row in status.get("tls", ()):
        counted[row["version"]] += row["connections"]
    return " and ".join(f"{count} {shown(version)}" for version, count in sorted(counted.items()))


def refusals(section: Sequence[Mapping[str, Any]]) -> list[Refused]:
    """Rows of the section ``refusals``, latest first."""
    return [
        Refused(
            when=utc_time(entry["when"]),
            remote=shown(entry["remote"]),
            client=" and ".join(presented(entry)) or "unidentified",
            role=shown(entry["role"]) or NO_ROLE,
            rule=shown(entry["rule"]),
            operation=shown(entry["operation"]),
            collection=shown(entry["collection"]),
            reason=shown(entry["reason"]),
        )
        for entry in section
    ]


def locks(status: Mapping[str, Any], now: float) -> list[Locked]:
    """Rows of the section ``locks``, which a gateway older than this program does not report."""
    return [_locked(entry, now) for entry in status.get("locks", {}).get("entries", ())]


def _locked(entry: Mapping[str, Any], now: float) -> Locked:
    until = entry["until"]
    left = "no end" if until is None else f"{span(until - now)} left"
    source = "revoked in the configuration" if entry["configured"] else "locked"
    by = f" by {shown(entry['by'])}" if entry["by"] else ""
    at = f" at {utc_time(entry['at'])}" if entry["at"] else ""
    reason = f": {shown(entry['reason'])}" if entry["reason"] else ""
    return Locked(shown(entry["lock"]), left, f"{source}{by}{at}{reason}")


def nodes(status: Mapping[str, Any]) -> list[NodeRow]:
    """Rows of the section ``nodes``, empty with a single upstream."""
    return [
        NodeRow(
            shown(row["name"]),
            row["state"],
            ", ".join(f"{row[key]} {text}" for key, text in _NODE_FIGURES.items() if key in row),
            " and ".join(shown(row[api]) for api in ("rest", "grpc") if row[api]),
        )
        for row in status.get("nodes", ())
    ]


def sharing(status: Mapping[str, Any]) -> str:
    """Sentence on the store of shared limits, empty where none are shared."""
    section = status.get("shared")
    if section is None:
        return ""
    store = f"limits shared by {section['gateways']} gateways over {shown(section['store'])}"
    return store if section["reached"] else f"{store}, which is away since {utc_time(section['since'])}"


def bundle(section: Mapping[str, Any] | None) -> str:
    """Sentence on the configuration's bundle, empty without one."""
    if section is None:
        return ""
    url, fetched = shown(section["url"]), section["fetched_at"]
    if section["version"] is None:
        return f"no configuration bundle of {url} yet"
    edition = f"configuration bundle of {url}: version {section['version']}, signed at {utc_time(section['created'])}"
    return f"{edition}, {'not fetched yet' if fetched is None else f'last fetched at {utc_time(fetched)}'}"


def presented(entry: Mapping[str, Any]) -> Iterator[str]:
    """The names of a refused or connected client."""
    if entry["identity"]:
        yield shown(entry["identity"])
    if entry["key"]:
        yield f"key {shown(entry['key'])}"
    if entry.get("presented"):
        yield f"unverified {shown(entry['presented'])}"


def last_reload(section: Mapping[str, Any]) -> Reload:
    return Reload(
        result=section["result"],
        trigger=section["trigger"],
        when=utc_time(section["when"]),
        error="; ".join(map(shown, (section["error"] or "").splitlines())),
        changed=utc_time(section["changed_at"]) if section["changed_at"] is not None else "",
        changes=tuple(sentence(change) for change in section["changes"]),
    )


def sentence(change: Mapping[str, str]) -> str:
    """One change of a reload: `role search: access r → m`, `rule staff removed`, `setting workers changed: 1 → 2`."""
    detail = f": {change['detail']}" if change["detail"] else ""
    how = "" if detail and change["how"] == "changed" and change["what"] in _BY_FIELD else change["how"]
    return shown(" ".join(filter(None, (change["what"], change["name"], how)))) + shown(detail)


def shown(text: str | None) -> str:
    """A field of a status that may be null, printable: `""` for None."""
    return printable(text or "")


def size(count: int) -> str:
    value, power = float(count), 0
    while value >= _KIBI and power < len(_SIZES) - 1:
        value, power = value / _KIBI, power + 1
    return f"{value:.{1 if power and value < _SMALL else 0}f} {_SIZES[power]}"
