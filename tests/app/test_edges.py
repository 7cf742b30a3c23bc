"""What clients send that is not quite what was meant."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from mlops import promotion
from mlops.bundle import Bundle
from tests import synthetic
from tests.service import Service, environment


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    made = environment(tmp_path_factory.mktemp("edges"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        yield service


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/model"])
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    answer = service.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/predict", "/outcomes"])
def test_a_compressed_body_is_named_as_such(service: Service, path: str) -> None:
    body = gzip.compress(json.dumps({"rows": [synthetic.request()]}).encode())
    answer = service.http.post(path, content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "'gzip' is not supported" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_read_whatever_the_client_calls_it(service: Service, kind: str) -> None:
    which = service.predict(synthetic.request())["predictions"][0]["id"]
    body = json.dumps({"outcomes": [{"id": which, "value": 1}]})
    answer = service.http.post("/outcomes", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["results"]) == (200, {"accepted": 1})


@pytest.mark.parametrize("value", [7, 0.5, -1, 1e308])
def test_an_outcome_that_the_model_cannot_have_is_refused(service: Service, value: float) -> None:
    which = service.predict(synthetic.request())["predictions"][0]["id"]
    answer = service.http.post(
        "/outcomes", json={"outcomes": [{"id": which, "value": 1}, {"id": which, "value": value}]}
    )
    assert answer.status_code == 422
    [fault] = answer.json()["detail"]
    assert fault["loc"] == ["body", "outcomes", 1, "value"]
    assert "Expected " in fault["msg"]
    again = service.http.post("/outcomes", json={"outcomes": [{"id": which, "value": 1}]})
    assert again.json()["results"] == {"accepted": 1}, "of a refused body nothing was taken"


@pytest.mark.parametrize("body", [synthetic.request(), [synthetic.request()]])
def test_a_row_without_its_list_is_told_where_it_belongs(service: Service, body: Any) -> None:
    answer = service.http.post("/predict", json=body)
    assert answer.status_code == 422
    assert 'send {"rows": [{…}]}' in answer.json()["detail"][0]["msg"]


def test_the_page_needs_no_other_host(service: Service) -> None:
    page = service.http.get("/docs", headers={"authorization": ""}).text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) >= 2
    for part in parts:
        assert part.startswith("/"), part
        assert service.http.get(part, headers={"authorization": ""}).status_code == 200


def test_a_route_that_is_not_named_open_asks_for_a_key(tmp_path: Path) -> None:
    made = environment(tmp_path)
    settings = {
        "env": made.name,
        "model": "m",
        "bucket": made.bucket,
        "keyring": made.keyring,
        "spool": tmp_path / "spool",
        "log_key": made.log_key,
    }
    app = create_app(Settings.model_validate(settings))
    app._pages.add_api_route("/ours", lambda: "secret")
    client = TestClient(app)
    assert client.get("/ours").status_code == 401
    assert client.get("/healthz").status_code == 200


def test_a_row_that_cannot_be_logged_is_lost_alone_and_counted(
    tmp_path: Path, first_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.batch import Batch, Live
    from app.bins import Bins
    from app.metrics import Metrics
    from app.prediction_log import PredictionLog
    from mlops.model import Model
    from mlops.releases import Release
    from tests.ids import new_id

    made, metrics = environment(tmp_path), Metrics()
    model = Model(first_bundle, first_bundle.digest)
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    release: Release = made.model(synthetic.MODEL).releases.read()[0]
    settings = {
        "env": made.name,
        "model": synthetic.MODEL,
        "bucket": made.bucket,
        "keyring": made.keyring,
        "spool": tmp_path / "spool",
        "log_key": made.log_key,
    }
    log = PredictionLog(Settings.model_validate(settings), made.model(synthetic.MODEL), metrics, Bins(metrics.registry))
    rows = [model.schema.row(synthetic.request(customer=f"c{i}")) for i in range(5)]
    broken = model.schema.row(synthetic.request(size=1.0))
    monkeypatch.setattr(type(model.contract), "entity_of", lambda _, row: f"{1 / (row is not broken)}")
    log.add(Batch(Live(release, model), 1.7e9, [new_id() for _ in range(6)], [*rows[:2], broken, *rows[2:]], [0.5] * 6))
    log.start()
    log.stop()
    assert metrics.registry.get_sample_value("mlops_log_dropped_rows_total", {"reason": "error"}) == 1
    assert metrics.registry.get_sample_value("mlops_log_rows_total", {"kind": "predictions"}) == 5
