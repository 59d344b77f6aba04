"""Trust anchors from the CAs of `tls.ca_cert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlsproxy.authz.identity import anchor_of
from tlsproxy.authz.trust_anchors import Anchors, folded
from tlsproxy.config.ca_checks import confinement_of
from tlsproxy.tls.owncert import issued_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from tlsproxy.config.model import Tls


def anchors_of(tls: Tls, authorities: Sequence[x509.Certificate]) -> Anchors:
    """Anchors of the CAs in force, confined by `tls.ca_constraints`."""
    anchors = [anchor_of(certificate) for certificate in authorities]
    by_name: dict[str, list[int]] = {}
    for place, anchor in enumerate(anchors):
        by_name.setdefault(folded(anchor.subject), []).append(place)
    issuers = {
        anchor.sha256: [
            anchors[place].sha256
            for place in by_name.get(folded(certificate.issuer.rfc4514_string()), ())
            if issued_by(certificate, authorities[place])
        ]
        for anchor, certificate in zip(anchors, authorities, strict=True)
    }
    return Anchors(anchors, issuers, map(confinement_of, tls.ca_constraints))
