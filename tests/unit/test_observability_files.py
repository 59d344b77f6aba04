"""observability/: each file is taken by its program, and names nothing that the gateway does not have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from support.documented import described
from support.gateway import DEADLINE
from support.operator_tools import tool

from tlsproxy.metrics.families import FAMILIES
from tlsproxy.snapshot.lifetimes import SOON, URGENT

FILES = Path(__file__).parents[2] / "observability"
ALERTS = (FILES / "alerts.yml").read_text()
NAMES = {family.name for family in FAMILIES}


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
