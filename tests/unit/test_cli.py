from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tlsproxy import __version__
from tlsproxy.cli import main
from tlsproxy.form import form

CONFIG = """\
service: {grpc_port: null, max_workers: 2}
listeners: [{host: "::1", port: 443, protocols: [grpc, rest]}]
tls: {cert: certs/server.pem, key: certs/server.key, ca_cert: certs/ca.pem}
roles:
  search: {access: r}
  ingest: {access: [{collection: docs, access: rw}]}
  spare: {access: m}
identities:
  - {name: jobs, match: {cn: "ingest-*"}, role: ingest}
  - {name: searchers, match: {ou: search}, role: search}
"""


MANAGED = "names only collections and aliases that the caller may manage"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and its certificates, made by the very commands under test. Not to be written to."""
    directory = tmp_path_factory.mktemp("site")
    certs = directory / "certs"
    done("certs", "init", "--dir", certs)
    issue = ("certs", "issue", "--dir", certs, "--name")
    done(*issue, "server", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
    done(
        *issue, "searcher", "--client", "--ou", "search", "--uri", "spiffe://example.org/a", "--email", "a@example.org"
    )
    done(*issue, "ingest-1", "--client")
    done(*issue, "stranger", "--client", "--days", "3")
    (directory / "tlsproxy.yaml").write_text(CONFIG)
    return directory


def test_version() -> None:
    assert done("--version") == f"tlsproxy, version {__version__} ({form()})\n"


def test_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "tlsproxy", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"tlsproxy, version {__version__} ({form()})\n"


@pytest.mark.parametrize(
    "command", [(), ("run",), ("check",), ("explain",), ("certs", "issue"), ("config",), ("demo",)]
)
def test_help(command: tuple[str, ...]) -> None:
    assert "Usage: " in done(*command, "--help")


def test_schema_is_json() -> None:
    assert json.loads(done("config", "schema"))["title"] == "Config"


class TestCheck:
    def test_says_what_run_would_use(self, site: Path) -> None:
        result = call("check", "--config", site / "tlsproxy.yaml")
        assert result.exit_code == 0
        assert "certificate: CN=server" in result.stdout
        assert "names      DNS:localhost, IP:127.0.0.1" in result.stdout
        assert "client CA: CN=tlsproxy development CA" in result.stdout
        assert "listens on 0.0.0.0:6333 for REST\nlistens on [::1]:443 for REST and gRPC\n" in result.stdout
        assert "role ingest: docs (rw); given by jobs" in result.stdout
        assert "role spare: everything (m); given by nobody" in result.stdout
        assert "unused: " in result.stdout
        assert "service.max_workers" in result.stdout
        assert "warning: " in result.stderr
        assert "roles.spare: no identity, key or issuer has this role" in result.stderr
        assert result.stdout.endswith(": ok\n")

    def test_says_who_has_a_role(self, site: Path, tmp_path: Path) -> None:
        issuer = "{name: login, issuer: i, audience: a, algorithm: ES256, jwks: 'https://h/', role: ROLE}"
        issuers = [issuer.replace("ROLE", role).replace("login", f"login-{role}") for role in ("spare", "search")]
        key = f"{{name: nightly, sha256: {'a' * 64}, role: ingest}}"
        config = tmp_path / "config.yaml"
        more = f"keys: [{key}]\njwt_issuers: [{', '.join(issuers)}]\n"
        config.write_text(CONFIG.replace("certs/", f"{site}/certs/") + more)
        lines = done("check", "--config", config).splitlines()
        assert [line.partition("; ")[2] for line in lines if line.startswith("role ")] == [
            "given by searchers, confines tokens of login-search",
            "given by jobs, key nightly",
            "given by nobody, confines tokens of login-spare",
        ]

    def test_says_what_is_served_how_and_to_whom(self, site: Path, tmp_path: Path) -> None:
        secret, named, audit = "s" * 40, "n" * 31, tmp_path / "audit"
        (tmp_path / "key").write_text(secret)
        (tmp_path / "named").write_text(named)
        more = f"""\
upstream: {{api_key: {"u" * 8}, grpc: "http://127.0.0.1:16334"}}
audit: {{dir: {audit}, on_full: block}}
admin: {{listen: "unix:{tmp_path}/admin.sock"}}
limits: {{connections: 500, per_identity: {{requests_per_second: 20, burst: 40}}}}
workers: 3
keys: [{{name: nightly, file: named, role: ingest, expires: "2099-01-01T00:00:00Z"}}]
"""
        config = tmp_path / "config.yaml"
        text = CONFIG.replace("max_workers: 2", "api_key_file: key, read_only_api_key: short, jwt_rbac: true")
        text = text.replace("certs/", f"{site}/certs/").replace("spare: {", "spare: {limits: {max_body_mb: 2}, ")
        config.write_text(text + more)
        result = call("check", "--config", config)
        assert result.exit_code == 0, result.output
        for line in (
            "upstream for REST: http://127.0.0.1:16333, with upstream.api_key",
            "upstream for gRPC: http://127.0.0.1:16334, with upstream.api_key",
            f"audit log: {audit}, daily, 7 files kept; if it cannot be written, requests wait",
            f"admin server: unix:{tmp_path}/admin.sock",
            "workers: 3",
            "keys: api_key, read_only_api_key, nightly (role ingest, until 2099-01-01 00:00:00 UTC)",
            "tokens signed by: api_key",
            "limits: 500 connections, 1000 of one address; bodies of 32 MiB, uploads of any size",
            "limits of each identity: 20 requests per second, 40 at once",
            "limits of role spare: bodies of 2 MiB",
        ):
            assert line in result.stdout.splitlines()
        short = [line for line in result.stderr.splitlines() if "fewer than 32 characters" in line]
        assert ["service.read_only_api_key: " in short[0], "keys[0].file: " in short[1]] == [True, True]
        assert len(short) == 2
        for each in (secret, named, "u" * 8, "short\n"):
            assert each not in result.output

    def test_says_what_there_is_not(self, site: Path) -> None:
        lines = done("check", "--config", site / "tlsproxy.yaml").splitlines()
        assert {"keys: none", "tokens signed by: nobody", "admin server: none", "workers: 1"} <= set(lines)
        assert "upstream for REST: http://127.0.0.1:16333, without a key" in lines

    def test_tells_every_mistake_and_exits_with_2(self, site: Path, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(CONFIG.replace("role: search", "role: serach").replace("service:", "sevice:"))
        result = call("check", "--config", wrong)
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            f"error: {wrong}:1:1 sevice: unknown key (did you mean 'service'?)",
            f"error: {wrong}:10:44 identities[1].role: no role is called 'serach' (did you mean 'search'?)",
        ]
        assert site.exists()

    def test_finds_what_is_wrong_with_a_certificate(self, site: Path, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(CONFIG.replace("certs/server.key", "certs/ingest-1.key").replace("certs/", f"{site}/certs/"))
        result = call("check", "--config", wrong)
        assert result.exit_code == 2
        assert "ingest-1.key" in result.stderr

    def test_absent_file_is_explained(self, tmp_path: Path) -> None:
        result = call("check", "--config", tmp_path / "none.yaml")
        assert result.exit_code == 2
        assert "none.yaml" in result.stderr
        assert "does not exist" in result.stderr

    def test_environment_wins(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QDRANT__UPSTREAM__REST", "https://127.0.0.1:1")
        result = call("check", "--config", site / "tlsproxy.yaml")
        assert result.exit_code == 2
        assert "env QDRANT__UPSTREAM__REST upstream.rest: " in result.stderr


class TestExplain:
    def explain(self, site: Path, name: str, method: str, path: str) -> Result:
        return call("explain", "--config", site / "tlsproxy.yaml", site / "certs" / f"{name}.pem", method, path)

    def test_allowed(self, site: Path) -> None:
        result = self.explain(site, "searcher", "POST", "/collections/docs/points/search")
        assert result.exit_code == 0
        assert "subject    CN=searcher,OU=search" in result.stdout
        assert "uri        spiffe://example.org/a" in result.stdout
        assert 'rule "jobs" (role "ingest"): cn is "searcher", not "ingest-*"' in result.stdout
        assert "rule       searchers\nrole       search (r)\n" in result.stdout
        assert "operation  core_search_batch: scope collection" in result.stdout
        assert "collection docs\n" in result.stdout
        assert result.stdout.endswith("decision   allowed\n")

    @pytest.mark.parametrize(
        ("method", "path", "says"),
        [
            ("POST", "points/query", "if its body names only collections that the caller has"),
            ("GET", "aliases", "(the answer is reduced to what the caller may know)"),
        ],
    )
    def test_allowed_in_part(self, site: Path, method: str, path: str, says: str) -> None:
        result = self.explain(site, "ingest-1", method, f"/collections/docs/{path}")
        assert result.exit_code == 0
        assert result.stdout.endswith(f"decision   allowed {says}\n")

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            (
                ("POST", "/collections/aliases"),
                f"if its body {MANAGED}",
            ),
            (("POST", "/collections/docs/points/batch"), "if its body has no operation in it that is left out"),
            (("PUT", "/collections/docs"), "if its body names only collections that the caller has"),
            (
                ("qdrant.Collections/UpdateAliases",),
                f"if its body {MANAGED}",
            ),
            (("DELETE", "/collections/docs"), ""),
        ],
    )
    def test_who_manages_a_collection(self, site: Path, tmp_path: Path, asked: tuple[str, ...], says: str) -> None:
        config = tmp_path / "managed.yaml"
        access = "ingest: {access: [{collection: docs, access: rw}]"
        managed = "ingest: {access: [{collection: docs, access: m, operations: {deny: [delete_points]}}]"
        config.write_text(CONFIG.replace(access, managed).replace("certs/", f"{site}/certs/"))
        result = call("explain", "--config", config, site / "certs" / "ingest-1.pem", *asked)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.endswith(f"decision   allowed {says}".rstrip() + "\n")
        assert "role       ingest (docs m (except delete_points))" in result.stdout

    def test_a_tenant(self, site: Path, tmp_path: Path) -> None:
        config = tmp_path / "tenants.yaml"
        access = "ingest: {access: [{collection: docs, access: rw}]"
        assert access in CONFIG
        config.write_text(
            CONFIG.replace(access, f'{access}, filter: {{tenant: "{{cn}}"}}').replace("certs/", f"{site}/certs/")
        )
        asked = ("--config", config, site / "certs" / "ingest-1.pem", "POST", "/collections/docs/points/scroll")
        result = call("explain", *asked)
        assert result.stdout.endswith('decision   allowed if its body can be confined to tenant = "ingest-1"\n')
        by_id = call("explain", "--config", config, asked[2], "GET", "/collections/docs/points/5")
        assert by_id.stdout.endswith('decision   allowed if it can be confined to tenant = "ingest-1"\n')
        assert 'role ingest: docs (rw) where tenant = "{cn}"; given by jobs' in call("check", "--config", config).stdout

    def test_a_query_policy(self, site: Path, tmp_path: Path) -> None:
        config = tmp_path / "bounded.yaml"
        access = "ingest: {access: [{collection: docs, access: rw}]"
        bounded = f"{access}, queries: {{max_limit: 9, payload: {{hide: [a]}}}}"
        config.write_text(CONFIG.replace(access, bounded).replace("certs/", f"{site}/certs/"))
        said = call("check", "--config", config).stdout
        assert "role ingest: docs (rw) within max_limit 9, payload hide a; given by jobs" in said

    @pytest.mark.parametrize(
        ("name", "method", "path", "says"),
        [
            ("searcher", "PUT", "/collections/docs", "403 Forbidden: Global manage access is required"),
            ("ingest-1", "PUT", "/collections/docs", "403 Forbidden: "),
            ("ingest-1", "GET", "/collections/other", "403 Forbidden: Access to collection other is required"),
            ("stranger", "GET", "/collections", '403 Forbidden: no role for certificate "CN=stranger"'),
            ("searcher", "GET", "/nothing/here", "404 (empty body) (unknown_operation)"),
            ("searcher", "GET", "/collections/%00", "404 "),
        ],
    )
    def test_refused(self, site: Path, name: str, method: str, path: str, says: str) -> None:
        result = self.explain(site, name, method, path)
        assert result.exit_code == 1
        assert f"decision   refused: {says}" in result.stdout

    @pytest.mark.parametrize(
        ("name", "path", "says"),
        [
            ("searcher", "/qdrant.Points/Search", "allowed"),
            ("ingest-1", "/qdrant.Points/Upsert", "allowed if its body names only collections that the caller has"),
            ("ingest-1", "/qdrant.Collections/List", "allowed (the answer is reduced to what the caller may know)"),
            ("stranger", "/grpc.health.v1.Health/Check", "allowed"),
        ],
    )
    def test_a_call_that_is_allowed(self, site: Path, name: str, path: str, says: str) -> None:
        result = self.explain(site, name, "gRPC", path)
        assert result.exit_code == 0
        assert result.stdout.endswith(f"decision   {says}\n")

    @pytest.mark.parametrize(
        ("name", "path", "says"),
        [
            ("searcher", "/qdrant.Points/Upsert", "PERMISSION_DENIED Forbidden: "),
            ("stranger", "/qdrant.Points/Search", 'PERMISSION_DENIED Forbidden: no role for certificate "CN=stranger"'),
            ("searcher", "/qdrant.Points/Serach", "UNIMPLEMENTED (unknown_operation)"),
        ],
    )
    def test_a_call_that_is_refused(self, site: Path, name: str, path: str, says: str) -> None:
        result = self.explain(site, name, "grpc", path)
        assert result.exit_code == 1
        assert f"decision   refused: {says}" in result.stdout

    def test_whole_storage_is_open_to_nobody_without_a_role(self, site: Path) -> None:
        assert self.explain(site, "stranger", "GET", "/healthz").exit_code == 0

    def test_not_a_certificate(self, site: Path) -> None:
        result = call("explain", "--config", site / "tlsproxy.yaml", site / "tlsproxy.yaml", "GET", "/")
        assert result.exit_code == 2
        assert "is not a certificate" in result.stderr


class TestCerts:
    def test_what_is_issued_is_what_was_asked_for(self, site: Path) -> None:
        server = x509.load_pem_x509_certificate((site / "certs" / "server.pem").read_bytes())
        ca = x509.load_pem_x509_certificate((site / "certs" / "ca.pem").read_bytes())
        server.verify_directly_issued_by(ca)
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
        stranger = x509.load_pem_x509_certificate((site / "certs" / "stranger.pem").read_bytes())
        assert (stranger.not_valid_after_utc - stranger.not_valid_before_utc).days == 3

    def test_only_the_owner_may_read_a_key(self, site: Path) -> None:
        for path in (site / "certs").glob("*.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not list((site / "certs").glob(".*"))

    @pytest.mark.parametrize("command", [("init",), ("issue", "--name", "server", "--server")])
    def test_nothing_is_overwritten_unless_told(self, tmp_path: Path, command: tuple[str, ...]) -> None:
        done("certs", "init", "--dir", tmp_path)
        done("certs", "issue", "--dir", tmp_path, "--name", "server", "--server")
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        result = call("certs", *command, "--dir", tmp_path)
        assert result.exit_code == 2
        assert "--force overwrites it" in result.stderr
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        done("certs", *command, "--dir", tmp_path, "--force")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} != before

    def test_half_a_pair_is_not_overwritten_either(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("mine")
        assert call("certs", "init", "--dir", tmp_path).exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]

    def test_no_ca_says_how_to_make_one(self, tmp_path: Path) -> None:
        result = call("certs", "issue", "--dir", tmp_path, "--name", "a", "--client")
        assert result.exit_code == 2
        assert f"tlsproxy certs init --dir {tmp_path}" in result.stderr

    @pytest.mark.parametrize(
        "options",
        [
            ("--name", "a"),
            ("--name", "../a", "--client"),
            ("--name", "ca", "--client"),
            ("--name", "a", "--client", "--ip", "localhost"),
            ("--name", "a", "--client", "--days", "0"),
        ],
    )
    def test_refused_options(self, site: Path, options: tuple[str, ...]) -> None:
        before = sorted((site / "certs").iterdir())
        assert call("certs", "issue", "--dir", site / "certs", *options).exit_code == 2
        assert sorted((site / "certs").iterdir()) == before

    def test_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = call("certs", "init", "--dir", tmp_path / "file" / "certs")
        assert result.exit_code == 2
        assert isinstance(result.exception, SystemExit)

    def test_show(self, site: Path) -> None:
        shown = done("certs", "show", site / "certs" / "searcher.pem", site / "certs" / "ca.pem")
        assert "  email      a@example.org\n" in shown
        assert "defect     a CA certificate" in shown


class TestRun:
    def test_demo_without_its_libraries_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "qdrant_client", None)
        for name in [name for name in sys.modules if name.startswith("tlsproxy.demo.")]:
            monkeypatch.delitem(sys.modules, name)
        result = call("demo", "--once")
        assert result.exit_code == 2
        assert "pip install 'tlsproxy[demo]'" in result.stderr

    def test_run_without_a_configuration(self, tmp_path: Path) -> None:
        result = call("run", "--config", tmp_path / "none.yaml")
        assert result.exit_code == 2
        assert "none.yaml" in result.stderr
