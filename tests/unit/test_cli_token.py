"""`tlsproxy token` and `explain --token`: the gateway's own reading of a token, and never a secret on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWS

from tlsproxy.authz import tokens
from tlsproxy.cli import main
from tlsproxy.tls.pki import Authority

KEY = "the-api-k3y"
CONFIG = f"""\
service: {{grpc_port: null, jwt_rbac: true, api_key: {KEY}, verify_https_client_certificate: false}}
tls: {{cert: certs/server.pem, key: certs/server.key, ca_cert: certs/ca.pem}}
roles:
  ingest: {{access: [{{collection: docs, access: rw}}]}}
identities:
  - {{name: jobs, match: {{cn: "ingest-*"}}, role: ingest}}
"""


def call(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    certs = directory / "certs"
    assert call("certs", "init", "--dir", certs).exit_code == 0
    for name in ("ingest-1", "stranger"):
        assert call("certs", "issue", "--dir", certs, "--name", name, "--client").exit_code == 0
    (directory / "tlsproxy.yaml").write_text(CONFIG)
    return directory


def mint(site: Path, *options: str | Path) -> str:
    result = call("token", "mint", "--config", site / "tlsproxy.yaml", *options)
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    return result.stdout


def verify(site: Path, token: str, *options: str | Path) -> Result:
    return call("token", "verify", "--config", site / "tlsproxy.yaml", *options, "-", stdin=token)


def test_what_is_minted_is_accepted(site: Path) -> None:
    accepted = verify(site, mint(site, "--collection", "docs:rw", "--collection", "logs.*:r"))
    assert (accepted.exit_code, accepted.stdout) == (0, "accepted: signed by api_key, gives docs rw, logs.* r\n")
    assert verify(site, mint(site, "--access", "r", "--no-expiry")).exit_code == 0


def test_what_is_refused_is_explained(site: Path) -> None:
    token = mint(site, "--access", "m").strip()
    assert verify(site, token[:-6]).stdout.startswith("refused: 4")
    refused = verify(site, "wrong")
    assert (refused.exit_code, refused.stdout) == (1, "refused: 401 Invalid API key or JWT (invalid_key)\n")


def test_a_token_for_one_certificate(site: Path) -> None:
    certificate = site / "certs" / "ingest-1.pem"
    token = mint(site, "--access", "r", "--certificate", certificate)
    assert verify(site, token).exit_code == 1
    assert verify(site, token, "--certificate", site / "certs" / "stranger.pem").exit_code == 1
    assert verify(site, token, "--certificate", certificate).exit_code == 0


def test_show_verifies_nothing_and_says_so(site: Path) -> None:
    token = mint(site, "--access", "m", "--subject", "alice").strip()
    shown = call("token", "show", "-", stdin=token)
    assert shown.exit_code == 0
    assert '"subject": "alice"' in shown.stdout
    assert "rights     m\n" in shown.stdout
    assert shown.stdout.endswith("the signature was not verified\n")
    assert token.rsplit(".", 1)[1] not in shown.stdout
    for text in ("x", "a.b", "e30.e30x.x", "."):
        assert call("token", "show", "-", stdin=text).exit_code == 1
    assert call("token", "show", "-", stdin="").exit_code == 2


@pytest.mark.parametrize(
    "options",
    [(), ("--access", "r", "--collection", "a:r"), ("--collection", "a:x"), ("--collection", "a"), ("--access", "rw")],
)
def test_what_it_may_do_must_be_said(site: Path, options: tuple[str, ...]) -> None:
    assert call("token", "mint", "--config", site / "tlsproxy.yaml", *options).exit_code == 2


def test_a_token_that_would_be_refused_is_not_minted(site: Path) -> None:
    twice = ("--collection", "a:r", "--collection", "a:rw")
    result = call("token", "mint", "--config", site / "tlsproxy.yaml", *twice)
    assert result.exit_code == 2
    assert "Collection name should be unique" in result.stderr


def test_without_the_key_there_is_no_token(site: Path) -> None:
    result = call("token", "mint", "--config", site / "tlsproxy.yaml", "--access", "r", "--alt")
    assert result.exit_code == 2
    assert "service.alt_api_key is not set" in result.stderr


def test_explain_with_a_token(site: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(mint(site, "--access", "r"))

    def explain(certificate: str, method: str, path: str, source: str | Path = token, stdin: str = "") -> Result:
        cert = certificate if certificate == "none" else site / "certs" / f"{certificate}.pem"
        config = site / "tlsproxy.yaml"
        return call("explain", "--config", config, "--token", source, cert, method, path, stdin=stdin)

    both = explain("ingest-1", "GET", "/collections/docs")
    assert both.exit_code == 0
    assert "role       ingest (docs rw)\ntoken of   api_key (r)\nuntil      " in both.stdout
    assert explain("ingest-1", "PUT", "/collections/docs/points").exit_code == 1
    assert explain("stranger", "GET", "/collections/docs").exit_code == 1
    alone = explain("none", "GET", "/collections/other")
    assert (alone.exit_code, alone.stdout.endswith("decision   allowed\n")) == (0, True)
    key = explain("none", "PUT", "/collections/other", "-", KEY)
    assert key.exit_code == 0
    assert "key        api_key (m)\n" in key.stdout
    assert KEY not in key.output


def test_a_token_within_its_issuers_role(site: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (site / "login.pem").write_bytes(pem)
    issuer = "{name: login, issuer: i, audience: a, algorithm: ES256, pem: login.pem, role: tenant}"
    role = '  tenant: {access: r, filter: {tenant: "{claim:org}"}}\nidentities:'
    config = site / "issuer.yaml"
    config.write_text(CONFIG.replace("identities:", role) + f"jwt_issuers: [{issuer}]\n")

    def token(**claims: str) -> str:
        return PyJWS().encode(json.dumps({"iss": "i", "aud": "a", "access": "m"} | claims).encode(), key, "ES256")

    accepted = call("token", "verify", "--config", config, "-", stdin=token(org="acme"))
    gives = 'm & r where tenant = "acme"'
    assert accepted.stdout == f"accepted: signed by login (role tenant), gives {gives}\n"
    refused = call("token", "verify", "--config", config, "-", stdin=token())
    assert refused.exit_code == 1
    assert refused.stdout.endswith("(no_tenant)\n")

    def explain(sent: str, *asked: str) -> Result:
        return call("explain", "--config", config, "--token", "-", "none", *asked, stdin=sent)

    explained = explain(token(org="acme"), "POST", "/collections/docs/points/count")
    assert explained.exit_code == 0
    assert f"token of   login ({gives}), role tenant\n" in explained.stdout
    assert 'confined to tenant = "acme"' in explained.stdout
    assert explain(token(), "POST", "/collections/docs/points/count").exit_code == 1
    assert explain(token(org="acme"), "PUT", "/collections/docs").exit_code == 1


@pytest.mark.parametrize("exp", [4102444800000, 1 << 60])
def test_an_end_in_milliseconds_is_told(site: Path, exp: int) -> None:
    token = tokens.mint(KEY, {"access": "m", "exp": exp})
    explained = ("explain", "--config", site / "tlsproxy.yaml", "--token", "-", "none", "GET", "/collections")
    for result in (verify(site, token), call("token", "show", "-", stdin=token), call(*explained, stdin=token)):
        assert result.exit_code == 0
        assert "warning: it ends in the year 9999: exp is in seconds (RFC 7519 section 2)" in result.stderr
    soon = mint(site, "--access", "r")
    assert "warning" not in verify(site, soon).stderr


def test_beside_a_certificate_without_a_connection_no_token_is_accepted(site: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(Authority.create().issue(common_name="ingest-1", client=True).certificate_pem)
    result = verify(site, mint(site, "--access", "r"), "--certificate", foreign)
    assert (result.exit_code, result.stdout.startswith("no connection: ")) == (1, True)
    assert "(unknown_ca)" in result.stdout
