"""A real Prometheus with the real rules scrapes a real app: what the dashboards ask about the app has an answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from environments.local.platform import free_port
from mlops import door, releases
from mlops.bundle import Bundle
from tests import synthetic
from tests.load import Load
from tests.monitoring.test_rules import DASHBOARDS, PROMETHEUS, RECORDED, app_names, names, panels
from tests.service import Service, environment

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not on the PATH (Debian: prometheus)")


def sources(expr: str) -> set[str]:
    """The metrics that somebody exports, behind the recording rules that `expr` reads."""
    return {source for name in names(expr) for source in (sources(RECORDED[name]) if name in RECORDED else {name})}


PANEL = {
    query: f"{dashboard['title']}: {title}"
    for dashboard in DASHBOARDS.values()
    for title, queries in panels(dashboard).items()
    for query in queries
    if sources(query) <= app_names() | {"up"} and ":7d" not in query  # a week has not gone by
}


@pytest.fixture
def prometheus(tmp_path: Path, service: Service) -> Iterator[str]:
    rules = tmp_path / "rules"
    rules.mkdir()
    for file in (PROMETHEUS / "rules").glob("*.yaml"):
        (rules / file.name).write_text(re.sub(r"\n +interval: .*", "", file.read_text()))
    target = {"targets": [service.url.removeprefix("http://")], "labels": {"namespace": "test", "service": "serving"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [f"{rules}/*.yaml"],
        "scrape_configs": [{"job_name": "serving", "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port(19500 + os.getpid() % 97)}"
    words = [f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"]
    with (tmp_path / "prometheus.log").open("wb") as log, subprocess.Popen(["prometheus", *words], stdout=log, stderr=log) as process:
        yield f"http://{address}"
        process.terminate()


@pytest.fixture
def service(tmp_path: Path, first_bundle: Bundle) -> Iterator[Service]:
    made = environment(tmp_path)
    door.release(made, synthetic.MODEL, synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        releases.append(made.store, synthetic.MODEL, "0" * 64, "refused: nobody approved it")
        yield service


def has_data(prometheus: str, query: str) -> bool:
    query = query.replace("$namespace", "test").replace("$feature", "color").replace("$__rate_interval", "30s")
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5)
    except httpx.TransportError:  # it still starts
        return False
    found = answer.json()
    assert found["status"] == "success", f"{query}: {found['error']}"
    return any(sample["value"][1] != "NaN" for sample in found["data"]["result"])


def test_every_panel_about_the_app_shows_something(service: Service, prometheus: str) -> None:
    assert len(PANEL) > 20
    missing, deadline = PANEL, time.monotonic() + 20
    with Load(service, 60):
        while missing and time.monotonic() < deadline:
            prediction = service.predict(synthetic.request(color="violet", heat=None))["predictions"][0]
            service.http.post("/outcomes", json={"outcomes": [{"id": prediction["id"], "value": 1}]})
            httpx.post(f"{service.url}/predict", json={})  # without a key
            time.sleep(0.5)
            missing = {query: panel for query, panel in missing.items() if not has_data(prometheus, query)}
    assert missing == {}
