"""observability/: each file is taken by its program, and names nothing that the gateway does not have."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import yaml
from support.documented import described
from support.gateway import DEADLINE
from support.operator_tools import tool

from tlsproxy.admin.readiness import (
    AUDIT,
    CERTIFICATE,
    CRL,
    DESCRIPTORS,
    LISTENERS,
    RELOAD,
    SHARED,
    UPSTREAM,
    WORKERS,
)
from tlsproxy.audit.files import AuditFiles
from tlsproxy.metrics.families import FAMILIES
from tlsproxy.snapshot.lifetimes import SOON, URGENT

FILES = Path(__file__).parents[2] / "observability"
ALERTS = (FILES / "alerts.yml").read_text()
NAMES = {family.name for family in FAMILIES}


DASHBOARD = json.loads((FILES / "grafana-dashboard.json").read_text())
UNITS = {"none", "percentunit", "s", "bytes", "reqps", "ops"}
"""Those of Grafana's that the dashboard uses."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> tuple[int, str]:
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, cwd=FILES, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return done.returncode, done.stdout + done.stderr


def unknown(queries: str) -> set[str]:
    """Metrics and reasons of queries that the gateway does not have."""
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\btlsproxy_\w+", queries)}
    found = re.findall(r'reason(?:=|=~|!=|!~)\\?"([^"\\]+)\\?"', queries)
    reasons = {each for one in found for each in one.split("|") if not each.endswith(".+")}
    return (metrics - NAMES) | (reasons - described("Reasons") - {"full", "gave_way"})


def test_the_alerts_are_of_what_there_is() -> None:
    assert unknown("\n".join(rule["expr"] for rule in rules())) == set()
    assert unknown('rate(tlsproxy_nothing_total{reason=~"collection|nothing"}[5m])') == {
        "tlsproxy_nothing_total",
        "nothing",
    }
    assert {rule["alert"] for rule in rules() if "alert" in rule} == described("Alerts")


def test_the_alerts_are_of_each_part_of_readiness() -> None:
    """But for `listeners`: a gateway that drains is meant to."""
    asked = [re.findall('part=~"([^"]+)"', rule["expr"]) for rule in rules()]
    parts = {LISTENERS, *UPSTREAM.values(), CERTIFICATE, CRL, AUDIT, DESCRIPTORS, RELOAD, SHARED, WORKERS}
    told = {part for part in parts for patterns in asked for each in patterns if re.fullmatch(each, part)}
    assert parts - told == {LISTENERS, RELOAD}
    assert "tlsproxy_reload_last_attempt_failed" in ALERTS


def test_lifetimes_are_near_their_end_where_the_log_says_so_too() -> None:
    near = [rule["expr"] for rule in rules() if rule.get("alert", "").endswith("Expires")]
    assert len(near) == 4
    assert all(f"< {SOON} >= {URGENT}" in expr or f"< {URGENT}" in expr for expr in near)


def test_each_alert_has_a_case() -> None:
    cases = [
        case
        for test in yaml.safe_load((FILES / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_the_cases_hold() -> None:
    status, said = promtool("test", "rules", "alerts_test.yml")
    assert status == 0, said


def test_prometheus_takes_the_scrape_with_its_rules() -> None:
    status, said = promtool("check", "config", "scrape.yml")
    assert status == 0, said


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Queries of panels, variables and annotations, as Grafana sends them."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    asked += [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    return [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in asked]


def test_the_dashboard_asks_for_what_there_is(tmp_path: Path) -> None:
    """Prometheus parses each query."""
    assert len(queries()) > 40
    assert unknown(DASHBOARD["templating"]["list"][1]["definition"] + "".join(queries())) == set()
    assert "$" not in "".join(queries())
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    status, said = promtool("check", "rules", str(file))
    assert status == 0, said


def test_each_metric_is_on_the_dashboard_or_says_nothing_of_its_own() -> None:
    asked = set(re.findall(r"tlsproxy_\w+", "".join(queries()) + DASHBOARD["templating"]["list"][1]["definition"]))
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    # The same as lifetimes, as an age, and as readiness; those of client mode are another program's.
    assert {name for name in NAMES - shown if not name.startswith("tlsproxy_connect_")} == {
        "tlsproxy_bundle_created_timestamp_seconds",
        "tlsproxy_bundle_last_fetch_failed",
        "tlsproxy_bundle_last_success_timestamp_seconds",
        "tlsproxy_bundle_version",
        "tlsproxy_certificate_not_after_seconds",
        "tlsproxy_crl_next_update_seconds",
        "tlsproxy_reload_last_success_timestamp_seconds",
        "tlsproxy_worker_generation",
    }


def test_the_dashboard_is_whole() -> None:
    """Each panel has a number, a place, a unit, and its queries the data source that is chosen."""
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)
    taken = [place for panel in every for place in places(panel["gridPos"])]
    assert len(set(taken)) == len(taken)
    variables = DASHBOARD["templating"]["list"]
    assert [(each["name"], each["type"]) for each in variables] == [("datasource", "datasource"), ("instance", "query")]
    asking = [*panels(), *DASHBOARD["annotations"]["list"], variables[1]]
    asking += [target for panel in panels() for target in panel["targets"]]
    assert {(each["datasource"]["type"], each["datasource"]["uid"]) for each in asking} == {
        ("prometheus", "${datasource}")
    }
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in panels()} == UNITS
    for panel in panels():
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def places(grid: dict[str, int]) -> list[tuple[int, int]]:
    assert grid["x"] >= 0
    assert grid["x"] + grid["w"] <= 24
    return [(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])]


LOG = "/var/log/tlsproxy/audit.*.log"


def test_rsyslog_ships_each_line_once_over_days_and_restarts(tmp_path: Path) -> None:
    """Its file as it is, but for the places. Lines are of the real writer, and of several days."""
    rsyslogd = tool("rsyslogd")
    audit = AuditFiles(tmp_path / "audit", "daily", 3)
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(DEADLINE)
        text = (FILES / "rsyslog.conf").read_text()
        for ours, theirs in (
            (LOG, f"{tmp_path}/audit/audit.*.log"),
            ("logs.example.org", "127.0.0.1"),
            ("6514", str(collector.getsockname()[1])),
        ):
            assert ours in text
            text = text.replace(ours, theirs)
        file = tmp_path / "rsyslog.conf"
        file.write_text(f'global(workDirectory="{tmp_path}")\n{text}')
        command = [rsyslogd, "-n", "-f", str(file), "-i", str(tmp_path / "pid")]
        checked = subprocess.run([*command, "-N1"], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert checked.returncode == 0, checked.stderr
        for days in ((0, 0, 1), (1, 2)):
            sent = b""
            for number, day in enumerate(days):
                line = b'{"timestamp":"day %d","number":%d,"api":"/caf\xc3\xa9"}\n' % (day, number)
                audit.ready(86_400 * day)
                audit.append(memoryview(line))
                sent += line
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
                try:
                    arrived, _ = collector.accept()
                    with arrived, arrived.makefile("rb") as lines:
                        arrived.settimeout(DEADLINE)
                        assert sorted(lines.readline() for _ in days) == sorted(sent.splitlines(keepends=True))
                finally:
                    running.terminate()
    audit.close()


def test_vector_and_fluent_bit_read_the_same_files() -> None:
    """By their own words where they are installed; they are in no Debian package."""
    for name, command in (
        ("vector.yaml", ["vector", "validate", "--no-environment"]),
        ("fluent-bit.yaml", ["fluent-bit", "--dry-run", "-c"]),
    ):
        tree = yaml.safe_load((FILES / name).read_text())
        assert LOG in json.dumps(tree)
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(FILES / name)], capture_output=True, timeout=DEADLINE, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    vector = yaml.safe_load((FILES / "vector.yaml").read_text())
    made = vector["sources"].keys() | vector["transforms"].keys()
    assert {
        source for part in ("transforms", "sinks") for one in vector[part].values() for source in one["inputs"]
    } <= made
    fluent = yaml.safe_load((FILES / "fluent-bit.yaml").read_text())
    (tail,), (sink,), (parser,) = fluent["pipeline"]["inputs"], fluent["pipeline"]["outputs"], fluent["parsers"]
    assert (tail["parser"], sink["match"]) == (parser["name"], tail["tag"])
    assert parser["time_key"] in described("Audit log")
