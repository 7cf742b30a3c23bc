"""A real Prometheus with the real rules scrapes a real app and a real controller during a rollout, itself, and recorded
metrics of the other programs of a cluster: each panel has an answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import start_http_server

from environments.local.platform import free_port
from mlops import promotion, releases, rollout
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.retraining import RetrainingLog
from tests import synthetic
from tests.control import Control
from tests.load import Load
from tests.monitoring.test_rules import DASHBOARDS, EXPOSITION, PROMETHEUS, panels
from tests.service import Service, environment

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="prometheus is not on the PATH (Debian: prometheus)"
)


PANEL = {
    query: f"{dashboard['title']}: {title}"
    for dashboard in DASHBOARDS.values()
    for title, queries in panels(dashboard).items()
    for query in queries
}


@pytest.fixture
def control(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Control, dict[str, str]]]:
    """With the addresses of its series."""
    monkeypatch.setenv("MLOPS_ANALYSIS_SECONDS", "0")
    made = Control(service.environment, synthetic.MODEL)
    registries = {"controller": made.controller.metrics.registry, "approver": made.approver.registry}
    with ExitStack() as running:
        addresses = {}
        for name, registry in registries.items():
            server, thread = start_http_server(port := free_port(19400 + os.getpid() % 97), "127.0.0.1", registry)
            for end in (server.server_close, thread.join, server.shutdown):
                running.callback(end)
            addresses[name] = f"127.0.0.1:{port}"
        yield made, addresses


@pytest.fixture
def others() -> Iterator[str]:
    """The other programs of a cluster: `/<job>` is a recorded answer, whose counters increase."""
    passed = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            more = next(passed)
            text = re.sub(
                r"(?m)^(\w+_total\{.*) (\S+)$", lambda m: f"{m[1]} {float(m[2]) + more}", EXPOSITION[self.path[1:]]
            )
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def prometheus(tmp_path: Path, service: Service, control: tuple[Control, dict[str, str]], others: str) -> Iterator[str]:
    """With the rules of the platform, but without their intervals and delays."""
    rules = tmp_path / "rules"
    rules.mkdir()
    for file in (PROMETHEUS / "rules").glob("*.yaml"):
        text = re.sub(r"\n +(interval|for): .*", "", file.read_text())
        (rules / file.name).write_text(text.replace("[7d:1h]", "[7d:1s]"))
    address = f"127.0.0.1:{free_port(19500 + os.getpid() % 97)}"
    jobs = {"serving": service.url.removeprefix("http://"), **control[1], "prometheus": address}
    jobs |= dict.fromkeys(EXPOSITION, others)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [f"{rules}/*.yaml"],
        "scrape_configs": [
            {
                "job_name": job,
                "metrics_path": f"/{job if job in EXPOSITION else 'metrics'}",
                "static_configs": [{"targets": [target], "labels": {"namespace": "test", "service": job}}],
            }
            for job, target in jobs.items()
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    words = [
        f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={address}",
    ]
    with (
        (tmp_path / "prometheus.log").open("wb") as log,
        subprocess.Popen(["prometheus", *words], stdout=log, stderr=log) as process,
    ):
        yield f"http://{address}"
        process.terminate()


@pytest.fixture
def service(tmp_path: Path, second_bundle: Bundle) -> Iterator[Service]:
    """A canary after a release without an approval, and a retraining that was refused. The canary is paused, and its budget
    is long enough for a busy machine, so that it stays."""
    made = environment(tmp_path)
    model = made.model(synthetic.MODEL)
    raw = synthetic.contract_yaml(judge={"budget_ms": 10_000}, retraining={"window_days": 7})
    contract = Contract.model_validate(raw)
    champion = synthetic.publish(made, synthetic.build(contract, seed=1))
    promotion.release(model, champion, "test")
    retrainings = RetrainingLog(model)
    run = retrainings.begin(contract.retraining, "recalibrate", "test", releases.now().date())
    retrainings.end(run, "refused", "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        model.releases.append("0" * 64, "refused: it is not approved")
        service.until(lambda: service.metric("mlops_release_refused_total") > 0)
        challenger = synthetic.publish(made, second_bundle)
        promotion.release(model, challenger, "test", mode="canary", weight=0.5)
        rollout.set_paused(model, True, "test")
        service.serves(4)
        yield service


def report_days(service: Service, days: int, rows: int) -> None:
    """Predictions for past days and their outcomes: enough for the judge to know the loss, and for the analysis to see that
    no row is like those of the training."""
    for day in range(2, days + 2):
        at = releases.now() - timedelta(days=day)
        asked = [
            synthetic.request(at=f"{at:%Y-%m-%dT12:%M:%SZ}", size=i / rows, customer=f"d{day}-{i}") for i in range(rows)
        ]
        answer = service.predict(*asked)["predictions"]
        outcomes = [
            {"id": each["id"], "value": day % 2} for each in answer
        ]  # each model is the better one on some days
        service.http.post("/outcomes", json={"outcomes": outcomes}).raise_for_status()


def has_data(prometheus: str, query: str) -> bool:
    query = query.replace("$namespace", "test").replace("$feature", "color").replace("$__rate_interval", "30s")
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5)
    except httpx.TransportError:  # it is starting
        return False
    found = answer.json()
    assert found["status"] == "success", f"{query}: {found['error']}"
    return any(sample["value"][1] != "NaN" for sample in found["data"]["result"])


def firing(prometheus: str) -> set[tuple[str, str | None]]:
    """Name and feature."""
    found = httpx.get(f"{prometheus}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
    return {(each["labels"]["alertname"], each["labels"].get("feature")) for each in found if each["state"] == "firing"}


def test_every_panel_shows_something(
    service: Service, control: tuple[Control, dict[str, str]], prometheus: str
) -> None:
    assert len(PANEL) > 60
    report_days(service, days=9, rows=60)
    missing, deadline = PANEL, time.monotonic() + 60
    wanted = {("DataDrift", "size"), ("RetrainingFailed", None)}
    with Load(service, 60):
        while (missing or not wanted <= firing(prometheus)) and time.monotonic() < deadline:
            prediction = service.predict(synthetic.request(color="violet", heat=None))["predictions"][0]
            service.http.post("/outcomes", json={"outcomes": [{"id": prediction["id"], "value": 1}]})
            httpx.post(f"{service.url}/predict", json={})  # without a key
            control[0].tick()
            time.sleep(0.5)
            missing = {query: panel for query, panel in missing.items() if not has_data(prometheus, query)}
    assert missing == {}
    assert wanted <= firing(prometheus)
    assert rollout.current(service.environment.model(synthetic.MODEL)).weight == 0.5
