"""Alerts are code: each is proved to fire, to stay quiet and to meet absent data, and says what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from app.bins import Bins
from app.metrics import Metrics
from mlops.environment import ROOT
from monitoring import controller, loop
from monitoring.approver import Approver
from monitoring.steps import Steps

MONITORING = ROOT / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
RULES = [
    rule
    for file in sorted((PROMETHEUS / "rules").glob("*.yaml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARDS = {
    file.name: json.loads(file.read_text()) for file in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
}
EXPOSITION = {
    file.stem: file.read_text() for file in (Path(__file__).parent / "exposition").glob("*.prom")
}  # of other programs
FOREIGN = re.compile(r"prometheus_\w+|up|ALERTS")

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not on the PATH (Debian: prometheus)"
)


def promtool(*words: str | Path) -> None:
    ran = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def names(expr: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expr)
    bare = re.sub(r"\{[^}]*\}|\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*(?!\s*\(|[\w:])", bare)
    return set(words) - {"and", "or", "unless", "offset"}


def exported(registry: CollectorRegistry) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}


def app_names() -> set[str]:
    metrics = Metrics()
    Bins(metrics.registry)
    return exported(metrics.registry)


def controller_names() -> set[str]:
    registry = controller.Metrics().registry
    loop.Metrics(registry)
    Steps([], registry)
    approving: Any = SimpleNamespace(store=None, folder="")
    return exported(registry) | exported(Approver(approving).registry)


def panels(dashboard: dict[str, Any]) -> dict[str, list[str]]:
    """Title → queries."""
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yaml")
    promtool("check", "rules", *(PROMETHEUS / "rules").glob("*.yaml"))


@needs_promtool
@pytest.mark.parametrize("file", sorted((PROMETHEUS / "tests").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_alerts_do_as_their_tests_say(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_alert_has_a_test_that_it_fires_one_that_it_is_quiet_and_one_without_data() -> None:
    tested = {
        test["name"]
        for file in (PROMETHEUS / "tests").glob("*.yaml")
        for test in yaml.safe_load(file.read_text())["tests"]
    }
    assert {f"{alert} {state}" for alert in ALERTS for state in ("fires", "quiet", "absent")} - tested == set()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["for"] != "0s" or alert == "Watchdog"
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in ("page", "ticket", "none")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"monitoring/runbooks/{alert}.md"
    lines = (ROOT / rule["annotations"]["runbook"]).read_text().splitlines()
    assert lines[0] == f"# {alert}"
    assert 10 <= len(lines) <= 25


def test_there_is_no_runbook_without_its_alert() -> None:
    assert {file.stem for file in (MONITORING / "runbooks").glob("*.md")} == set(ALERTS)


@pytest.mark.parametrize("file", DASHBOARDS)
def test_a_panel_asks_something_has_a_unit_and_explains_itself(file: str) -> None:
    dashboard = DASHBOARDS[file]
    assert dashboard["uid"] == f"mlops-{file.removesuffix('.json')}"
    assert dashboard["title"]
    assert 6 <= len(dashboard["panels"]) <= 10
    for panel in dashboard["panels"]:
        assert panel["description"], panel["title"]
        assert panel["type"] in ("table", "text") or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "prometheus", panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    assert all(all(queries) and queries for queries in panels(dashboard).values())


def test_rules_and_dashboards_read_only_what_somebody_writes() -> None:
    asked = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in RULES} | {
        f"{file}: {title}": query
        for file, dashboard in DASHBOARDS.items()
        for title, queries in panels(dashboard).items()
        for query in queries
    }
    known = app_names() | controller_names() | set(RECORDED)
    known |= {name for text in EXPOSITION.values() for name in re.findall(r"^\w+", text, re.MULTILINE)}
    unknown = {
        where: {name for name in names(expr) - known if not FOREIGN.fullmatch(name)} for where, expr in asked.items()
    }
    assert {where: found for where, found in unknown.items() if found} == {}


def test_the_cluster_mounts_the_files_where_they_look_for_each_other() -> None:
    components = ROOT / "infra" / "components"
    (rules,) = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["rule_files"]
    (provider,) = yaml.safe_load((MONITORING / "grafana" / "provider.yaml").read_text())["providers"]
    assert f'"{Path(rules).parent}"' in (components / "prometheus.py").read_text()
    assert f'"{provider["options"]["path"]}"' in (components / "grafana.py").read_text()
