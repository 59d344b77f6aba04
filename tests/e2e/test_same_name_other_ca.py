"""Two CAs that may both issue a name: the issuer in the rule keeps them apart."""

from __future__ import annotations

from support.gateway import Gateway
from support.raw_request import ask
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

ROLES = {"admin": {"access": "m"}, "reader": {"access": "r"}}


def test_the_issuer_decides(own_site: Site, upstream: ScriptedUpstream) -> None:
    staff, partners = Authority.create("Staff CA"), Authority.create("Partner CA")
    authorities = own_site.authority.certificate_pem + staff.certificate_pem + partners.certificate_pem
    own_site.write("clients.pem", authorities)
    own_site.issue("staff", authority=staff, client=True, common_name="alice")
    own_site.issue("partner", authority=partners, client=True, common_name="alice")
    own_site.issue("home", client=True, common_name="alice")
    config = own_site.write_config(
        upstream.url,
        tls={"ca_cert": "clients.pem"},
        roles=ROLES,
        identities=[
            {"name": "staff", "match": {"cn": "alice", "issuer": "CN=Staff CA"}, "role": "admin"},
            {"name": "partners", "match": {"cn": "alice", "issuer": "CN=Partner CA"}, "role": "reader"},
        ],
    )
    with Gateway(config) as gateway:
        expected = {"staff": (200, "admin"), "partner": (403, "reader"), "home": (403, None)}
        for client, (status, role) in expected.items():
            with gateway.connect(own_site.client(client)) as sock:
                assert ask(sock, "DELETE", "/collections/docs").status == status, client
            record = gateway.audited(status=status)
            assert record.get("role") == role
        with gateway.connect(own_site.client("partner")) as sock:
            assert ask(sock, "GET", "/collections/docs").status == 200
    assert [request.line for request in upstream.requests] == [
        "DELETE /collections/docs HTTP/1.1",
        "GET /collections/docs HTTP/1.1",
    ]
