"""A few of everything that :mod:`support.reload_model` speaks of: same names, same keys, same serial numbers, all
dates."""

from __future__ import annotations

from support.reload_model import CAS, CONFIG, SERVER, Cert, Client, Content, Pair, Policy, Revocations, Unusable

EVER = (-1000, 1000)


def ca(subject: str, key: str, issuer: str, signer: str, serial: int, begins: int, ends: int) -> Cert:
    return Cert(subject, key, issuer, signer, serial, begins, ends)


ROOT = ca("Root", "root", "Root", "root", 1, *EVER)
ROOT_UNTIL = ca("Root", "root", "Root", "root", 2, -1000, 12)
ROOT_FROM = ca("Root", "root", "Root", "root", 3, 6, 1000)
CROSSED = ca("Root", "root", "Parent", "parent", 4, *EVER)
NAMESAKE = ca("Root", "another root", "Root", "another root", 1, *EVER)
PARENT = ca("Parent", "parent", "Parent", "parent", 1, *EVER)
BELOW = ca("Below", "below", "Root", "root", 20, *EVER)
BELOW_UNTIL = ca("Below", "below", "Root", "root", 21, -1000, 9)
BELOW_MIDDLE = ca("Below", "below", "Middle", "middle", 22, *EVER)
MIDDLE = ca("Middle", "middle", "Root", "root", 23, *EVER)


def leaf(subject: str, issuer: Cert, serial: int, begins: int = -1000, ends: int = 1000) -> Cert:
    return Cert(subject, subject, issuer.subject, issuer.key, serial, begins, ends)


CLIENTS = (
    Client(leaf("alice", ROOT, 5)),
    Client(leaf("bob", NAMESAKE, 5)),
    Client(leaf("carol", BELOW, 7), (BELOW,)),
    Client(leaf("dora", ROOT, 9), (CROSSED,)),
    Client(leaf("eve", ROOT, 11, ends=8)),
    Client(leaf("fay", ROOT, 12, begins=5)),
    Client(leaf("ian", BELOW, 13), (BELOW_UNTIL,)),
    Client(leaf("jo", BELOW, 15), (BELOW_MIDDLE, MIDDLE)),
    Client(leaf("kim", BELOW, 17)),
)
NAMES = tuple(client.leaf.subject for client in CLIENTS)


def crl(of: Cert, number: int, *serials: int, begins: int = -50, ends: int = 1000) -> Revocations:
    return Revocations(of.subject, of.key, number, begins, ends, frozenset(serials))


def server(serial: int, begins: int = -1000, ends: int = 1000) -> Cert:
    return Cert("localhost", f"server {serial}", "Elsewhere", "elsewhere", serial, begins, ends)


UNUSABLE = tuple(map(Unusable, ("torn", "unreadable")))
PAIRS = (
    Pair(server(1)),
    Pair(server(2)),
    Pair(server(3, ends=10)),
    Pair(server(4, begins=10)),
    Pair(server(5, ends=-10)),
    Pair(server(6), belongs=False),
)
AUTHORITIES = (
    (ROOT,),
    (ROOT_UNTIL,),
    (ROOT_FROM,),
    (ROOT, ROOT_UNTIL),
    (ROOT_FROM, NAMESAKE),
    (ROOT, NAMESAKE),
    (NAMESAKE,),
    (CROSSED,),
    (PARENT, CROSSED),
    (PARENT,),
    (ROOT, BELOW),
    (BELOW,),
    (BELOW_UNTIL, ROOT),
    (MIDDLE, NAMESAKE),
    (ROOT, PARENT, BELOW, NAMESAKE),
)
ROOTS = {
    1: crl(ROOT, 1, begins=-60),
    2: crl(ROOT, 2, 5),
    3: crl(ROOT, 3, 5, 9, 11, 21, begins=-40),
    4: crl(ROOT, 4, 9, 12, begins=-30, ends=9),
    5: crl(ROOT, 5, 12, begins=-25, ends=-20),
    6: crl(ROOT, 6, begins=8),
}
NAMESAKES = {
    1: crl(NAMESAKE, 1),
    2: crl(NAMESAKE, 2, 5),
    3: crl(NAMESAKE, 3, begins=-20, ends=-10),
    4: crl(NAMESAKE, 4, 5, begins=3),
}
BELOWS = {1: crl(BELOW, 1), 2: crl(BELOW, 2, 7), 3: crl(BELOW, 3, 13, 17, begins=-20, ends=7)}
CRLS: dict[str, tuple[tuple[Revocations, ...], ...]] = {
    "root.crl": (
        *((each,) for each in ROOTS.values()),
        (crl(PARENT, 1),),
        (BELOWS[1],),
        (ROOTS[1], NAMESAKES[2]),
        (ROOTS[3], ROOTS[4]),
        (ROOTS[6], ROOTS[2], BELOWS[1]),
        (BELOWS[2], ROOTS[5]),
    ),
    "namesake.crl": (*((NAMESAKES[each],) for each in (1, 2, 3)), (NAMESAKES[1], NAMESAKES[4])),
    "below.crl": (*((each,) for each in BELOWS.values()), (BELOWS[1], NAMESAKES[3])),
}
POLICIES = tuple(
    Policy(frozenset(mapped), crls, required, deny)
    for mapped in (NAMES, NAMES[::2])
    for crls in (tuple(CRLS), ("root.crl",), ())
    for required, deny in ((True, True), (True, False), (False, True))
)
CONTENTS: dict[str, tuple[Content, ...]] = {
    CONFIG: (*POLICIES, *UNUSABLE),
    SERVER: (*PAIRS, *UNUSABLE),
    CAS: (*AUTHORITIES, *UNUSABLE),
    **{path: (*found, *UNUSABLE) for path, found in CRLS.items()},
}
FIRST: dict[str, Content] = {
    **{path: found[0] for path, found in CONTENTS.items()},
    CONFIG: Policy(frozenset(NAMES), tuple(CRLS)),
    CAS: (ROOT, PARENT, BELOW, NAMESAKE),
}
"""Everybody may enter who is valid by date."""
