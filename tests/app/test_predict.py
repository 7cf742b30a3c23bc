from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mlops import access, promotion
from mlops.bundle import Bundle
from mlops.environment import ROOT
from tests import synthetic
from tests.proofs import fuzz, weight
from tests.service import BODY, Service, environment

FOREIGN = ("mlflow", "sklearn", "pandas", "polars", "pyarrow", "scipy", "training", "matplotlib")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    made = environment(tmp_path_factory.mktemp("predict"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        yield service


def post(service: Service, body: bytes, **headers: str) -> httpx.Response:
    return service.http.post(
        "/predict", content=body, headers={"content-type": "application/json", **headers}, timeout=60
    )


def rows(*found: dict[str, Any]) -> bytes:
    return json.dumps({"rows": found}).encode()


@pytest.mark.parametrize(
    ("field", "raw"),
    [
        ("size", "null"),
        ("size", '"1"'),
        ("size", "true"),
        ("size", "[1]"),
        ("size", "50.001"),
        ("size", "-50.001"),
        ("size", "NaN"),
        ("size", "Infinity"),
        ("size", "-Infinity"),
        ("size", "1e999"),
        ("size", "-1e999"),
        ("size", "1" * 400),
        ("heat", "NaN"),
        ("heat", "3.5e38"),
        ("color", "null"),
        ("color", "1"),
        ("color", json.dumps("x" * 201)),
        ("region", '"west"'),
        ("region", '""'),
        ("region", "null"),
        ("group", "false"),
        ("member", "1"),
        ("member", '"true"'),
        ("member", "null"),
        ("customer", "{}"),
        ("nobody", "1"),
        ("settled", "1"),
        ("y", "1"),
        ("²", "1"),
        ("a`b", "1"),
    ],
)
def test_a_wrong_field_is_refused_and_named_with_its_row(service: Service, field: str, raw: str) -> None:
    wrong = fuzz.with_value(field, raw)
    second = wrong.replace(b'{"rows":[', b'{"rows":[' + json.dumps(synthetic.request()).encode() + b",")
    for position, body in enumerate((wrong, second)):
        answer = post(service, body)
        assert answer.status_code == 422, answer.text
        assert [fault["loc"] for fault in answer.json()["detail"]] == [["body", "rows", position, field]]


@pytest.mark.parametrize("field", ["size", "color", "region", "group", "member"])
def test_a_missing_field_is_refused_and_named(service: Service, field: str) -> None:
    row = synthetic.request()
    del row[field]
    answer = post(service, rows(synthetic.request(), row))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "rows", 1, field]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b'{"rows":[]}', ["body", "rows"]),
        (b"{}", ["body", "rows"]),
        (b'{"rows":{}}', ["body", "rows"]),
        (b'{"rows":[1]}', ["body", "rows", 0]),
        (rows(synthetic.request())[:-1] + b',"why":1}', ["body", "why"]),
        (rows(synthetic.request())[:-1] + b',"key":1}', ["body", "key"]),
        (rows(*[synthetic.request()] * 10_001), ["body", "rows"]),
    ],
    ids=["no rows", "no field", "no list", "no object", "unknown", "key", "too many"],
)
def test_a_wrong_request_is_refused_and_its_part_named(service: Service, body: bytes, loc: list[Any]) -> None:
    answer = post(service, body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == loc


def test_what_the_contract_allows_is_answered(service: Service) -> None:
    allowed = [
        {"heat": None},
        {"color": "never seen"},
        {"color": ""},
        {"customer": None},
        {"customer": 7},
        {"size": -50},
        {"size": 50},
    ]
    answer = service.predict(*[synthetic.request(**change) for change in allowed])
    assert len({each["id"] for each in answer["predictions"]}) == len(allowed)
    assert all(
        0 <= each["score"] <= 1 and each["prediction"] == (each["score"] >= 0.5) for each in answer["predictions"]
    )
    row = synthetic.request()
    del row["heat"], row["customer"]  # may be missing: the same as null
    assert service.predict(row)["predictions"][0]["score"] == answer["predictions"][0]["score"]


def test_rows_are_answered_alike_alone_and_among_many(service: Service) -> None:
    sent = [synthetic.request(size=number / 100, member=number % 2 == 0) for number in range(200)]
    together = [each["score"] for each in service.predict(*sent)["predictions"]]
    alone = [service.predict(row)["predictions"][0]["score"] for row in sent[:20]]
    assert together[:20] == alone
    assert len(set(together)) > 5


def test_nothing_generated_or_nasty_makes_a_server_error_or_goes_unnamed_or_stays_in_memory(service: Service) -> None:
    found = fuzz.attack(service, 150, derandomize=True)
    assert found["wrong"] == []
    assert found["same_answer"]
    assert found["server_errors"] == 0
    assert found["memory_growth"] <= fuzz.MEMORY_GROWTH


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused_while_it_arrives(service: Service, chunked: bool) -> None:
    piece = b"x" * 2**20
    body = (piece for _ in range(50)) if chunked else piece * 50
    answer = service.http.post("/predict", content=body)
    assert answer.status_code == 413
    assert f"{BODY} bytes" in answer.json()["detail"]
    assert service.predict(synthetic.request())["revision"] == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_told_which_one_there_is(service: Service, method: str) -> None:
    answer = service.http.request(method, "/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/predict", "/healthz", "/model", "/nowhere"])
@pytest.mark.parametrize(
    ("sent", "echoed"), [("abc-123.X_9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("a\tb", False)]
)
def test_the_request_id_comes_back_or_is_made(service: Service, path: str, sent: str, echoed: bool) -> None:
    method = "POST" if path == "/predict" else "GET"
    answer = service.http.request(
        method, path, headers={"x-request-id": sent}, content=rows(synthetic.request()) if method == "POST" else b""
    )
    returned = answer.headers.get_list("x-request-id")
    assert len(returned) == 1
    assert (returned[0] == sent) is echoed
    assert 1 <= len(returned[0]) <= 64


def test_a_refused_request_is_in_the_log_of_the_service_with_its_id(service: Service) -> None:
    def logged() -> list[dict[str, Any]]:
        return [json.loads(line) for line in service.log.read_text().splitlines() if "find-me-422" in line]

    post(service, b"{}", **{"x-request-id": "find-me-422"})
    service.until(lambda: logged() != [])  # the line is written once the answer is out
    assert [(line["message"], line["path"], line["status"]) for line in logged()] == [
        ("request failed", "/predict", 422)
    ]


def test_the_openapi_page_describes_predict_as_the_contract_has_it(service: Service, first_bundle: Bundle) -> None:
    page = service.http.get("/openapi.json").json()
    operation, schemas = page["paths"]["/predict"]["post"], page["components"]["schemas"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    row = schemas[schemas[reference]["properties"]["rows"]["items"]["$ref"].rsplit("/", 1)[-1]]
    contract = first_bundle.contract
    assert set(row["properties"]) == {*contract.features, *contract.context}
    assert set(row["required"]) == {name for name, feature in contract.features.items() if not feature.missing}
    assert row["additionalProperties"] is False
    assert (row["properties"]["size"]["minimum"], row["properties"]["size"]["maximum"]) == (-50, 50)
    assert set(row["properties"]["region"]["enum"]) == {"north", "south"}
    assert {"200", "401", "403", "413", "422", "429", "503"} <= set(operation["responses"])
    assert page["security"] == [{"key": []}]
    assert service.http.get("/docs").status_code == 200


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[tuple[Service, httpx.Client]]:
    """A service with room for one request in flight and a body and a half, and somebody else with a key."""
    made = environment(tmp_path_factory.mktemp("tight"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    _, other = access.new(made.store, "other", ["predict", "outcomes"], per_second=1e6)
    limits = {"max_in_flight": 1, "max_body_bytes": 2**20, "max_bytes_in_flight": 3 * 2**19}
    with Service(made, synthetic.MODEL, **limits) as service:
        service.serves(1)
        with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {other}"}, timeout=20) as http:
            yield service, http


def half(service: Service, key: str, sent: bytes, size: int, path: str = "/predict") -> socket.socket:
    """A connection on which a request waits for the rest of its body."""
    method = "GET" if path == "/model" else "POST"
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {size}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    service.until(lambda: service.metric("mlops_bytes_in_flight") >= len(sent))
    return connection


@pytest.mark.parametrize("path", ["/predict", "/outcomes", "/model"])
def test_a_body_that_does_not_come_holds_up_nobody_but_its_own_key(
    tight: tuple[Service, httpx.Client], path: str
) -> None:
    service, other = tight
    body = rows(synthetic.request())
    with half(service, service.key, body[:10], len(body), path) as slow:
        service.until(lambda: post(service, body).status_code == 429)
        refused = post(service, body)
        assert "at once with this API key" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        assert other.post("/predict", content=body).status_code == 200
        slow.sendall(body[10:])
        assert slow.recv(100).startswith(b"HTTP/1.1 4" if path == "/outcomes" else b"HTTP/1.1 200")
    service.until(lambda: post(service, body).status_code == 200)


def test_a_body_beyond_the_bytes_in_flight_is_told_to_come_again_and_small_ones_are_answered(
    tight: tuple[Service, httpx.Client],
) -> None:
    service, other = tight
    with half(service, service.key, b" " * (2**20 - 10), 2**20):
        service.until(lambda: other.post("/predict", content=b" " * (2**20 - 1)).status_code == 503)
        refused = other.post("/predict", content=b" " * (2**20 - 1))
        assert refused.json()["detail"] == "too many bytes in flight"
        assert int(refused.headers["retry-after"]) >= 1
        assert other.post("/predict", content=rows(synthetic.request())).status_code == 200
    service.until(lambda: other.post("/predict", content=b" " * (2**20 - 1)).status_code == 422)


def test_beyond_the_predictions_in_flight_the_next_is_told_to_come_again(tight: tuple[Service, httpx.Client]) -> None:
    service, other = tight
    many, one = rows(*[synthetic.request()] * 5_000), rows(synthetic.request())
    with ThreadPoolExecutor(1) as pool:
        while not (large := pool.submit(post, service, many)).done():
            found = other.post("/predict", content=one)
            if found.status_code == 503:
                break
        assert found.status_code == 503
        assert found.json()["detail"] == "too many requests in flight"
        assert large.result().status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/outcomes", "/model", "/nowhere", "/docs", "/healthz"])
def test_no_body_is_read_without_a_key_nor_one_that_is_known_to_be_too_large(service: Service, path: str) -> None:
    for key, statuses in (("nobody's", b"401 404 405 200"), (service.key, b"413 404 405 200")):
        with half(service, key, b"", 2**40, path) as waiting:
            assert waiting.recv(100)[9:12] in statuses.split()


LARGE = rows(*[synthetic.request()] * 10_000)


def _is_asked(service: Service) -> bool:
    return service.metric("mlops_requests_in_flight") > 0


def test_small_requests_are_answered_while_a_large_one_is_worked_on_and_its_rows_are_logged(service: Service) -> None:
    service.until(lambda: not _is_asked(service))
    logged = service.metric("mlops_log_rows_total", kind="predictions")
    with ThreadPoolExecutor() as aside:
        large = aside.submit(post, service, LARGE)
        service.until(lambda: _is_asked(service))
        answered = 0
        while not large.done():
            service.predict(synthetic.request())
            answered += not large.done()
    assert answered > 5
    found = large.result().json()["predictions"]
    assert len({each["id"] for each in found}) == 10_000
    service.until(lambda: service.metric("mlops_log_rows_total", kind="predictions") >= logged + 10_000 + answered)


def test_large_requests_of_one_key_keep_another_key_waiting_for_one_of_them(service: Service) -> None:
    _, key = access.new(service.environment.store, "other", ["predict"], per_second=1e6)
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as other:
        service.until(lambda: other.get("/model").status_code == 200)
        with ThreadPoolExecutor(8) as aside:
            many = [aside.submit(post, service, LARGE) for _ in range(8)]
            service.until(lambda: service.metric("mlops_requests_in_flight") == len(many))
            assert other.post("/predict", content=LARGE).status_code == 200
            assert sum(each.done() for each in many) < len(many) / 2
        assert {each.result().status_code for each in many} == {200}


def test_an_answer_to_a_fault_is_small(service: Service) -> None:
    names = ["x - at `$" + ".a" * 500_000, "x" * 1_500_000, " - at `$.rows[0]" * 100_000]
    bodies = [json.dumps({"rows": [synthetic.request()], name: 1}).encode() for name in names]
    bodies += [rows(synthetic.request() | {name: 1}) for name in names]
    bodies += [b'{"rows":[' + b"NaN," * 400_000 + b"NaN]}", rows(synthetic.request() | {"region": "x" * 1_500_000})]
    for body in bodies:
        answer = post(service, body)
        assert answer.status_code == 422
        assert len(answer.content) < 1_000


def test_the_service_imports_nothing_that_only_training_and_monitoring_need() -> None:
    look = "import sys, app.main; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    imported = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    ).stdout
    assert "onnxruntime" in imported.split()
    assert not set(FOREIGN) & set(imported.split())


def test_a_replica_becomes_ready_and_stays_small(
    tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle
) -> None:
    made = environment(tmp_path_factory.mktemp("weight"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        found = weight.weigh(service)
    assert found["memory_mb"] <= weight.MEMORY_MB
