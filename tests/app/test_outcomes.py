from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mlops import access, log_schema, promotion
from mlops.bundle import Bundle
from mlops.log_key import LogKey
from mlops.log_schema import OutcomeRecord
from monitoring.outcomes import join_outcomes
from tests import synthetic
from tests.ids import id_at, new_id
from tests.service import Service, environment


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    made = environment(tmp_path_factory.mktemp("outcomes"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        yield service


def send(service: Service, *outcomes: tuple[str, float]) -> dict[str, Any]:
    answer = service.http.post(
        "/outcomes", json={"outcomes": [{"id": which, "value": value} for which, value in outcomes]}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def predicted(service: Service) -> str:
    return service.predict(synthetic.request())["predictions"][0]["id"]


def made(seconds_ago: float) -> str:
    """The id that a prediction of that time has."""
    return id_at(time.time() - seconds_ago)


def test_an_outcome_of_a_prediction_is_accepted(service: Service) -> None:
    assert send(service, (predicted(service), 1)) == {"results": {"accepted": 1}, "unknown": []}


def test_an_outcome_of_long_ago_is_late_and_kept(service: Service) -> None:
    late = made(40 * 24 * 3600)
    assert send(service, (late, 1))["results"] == {"late": 1}
    assert arrives(service, late) == [1.0]


def test_the_same_outcome_again_is_a_duplicate_and_passed_over(service: Service) -> None:
    which = predicted(service)
    assert send(service, (which, 1), (which, 1))["results"] == {"accepted": 1, "duplicate": 1}
    assert send(service, (which, 1))["results"] == {"duplicate": 1}
    assert arrives(service, which) == [1.0]


def test_another_value_is_contradictory_and_the_last_one_counts(service: Service) -> None:
    which = predicted(service)
    assert send(service, (which, 1))["results"] == {"accepted": 1}
    assert send(service, (which, 0))["results"] == {"contradictory": 1}
    assert arrives(service, which) == [1.0, 0.0]
    found = join_outcomes(service.environment.model(synthetic.MODEL))
    assert dict(found.rows.select("id", "value").iter_rows())[which] == 0


@pytest.mark.parametrize(
    "which",
    ["", "x", "0" * 36, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz", made(-3600)],
    ids=["empty", "short", "zeros", "another version", "no hex", "of the future"],
)
def test_what_no_prediction_ever_had_as_its_id_is_unknown_and_named(service: Service, which: str) -> None:
    assert send(service, (which, 1)) == {"results": {"unknown": 1}, "unknown": [which]}


def test_each_kind_is_counted_by_a_metric_as_often_as_it_was_answered(service: Service) -> None:
    kinds = ("accepted", "late", "duplicate", "contradictory", "unknown")

    def counts() -> dict[str, float]:
        return {kind: service.metric("mlops_outcomes_total", result=kind) for kind in kinds}

    before, which = counts(), predicted(service)
    sent = send(service, (which, 1), (which, 1), (which, 0), ("nobody", 1), (made(40 * 24 * 3600), 0))["results"]
    assert sent == dict.fromkeys(kinds, 1)
    assert counts() == {kind: before[kind] + 1 for kind in kinds}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"outcomes":[{"value":1}]}', ["outcomes", 0, "id"]),
        (b'{"outcomes":[{"id":"x"}]}', ["outcomes", 0, "value"]),
        (b'{"outcomes":[{"id":"x","value":"late"}]}', ["outcomes", 0, "value"]),
        (b'{"outcomes":[{"id":"x","value":1e999}]}', ["outcomes"]),
        (b'{"outcomes":[{"id":"x","value":1e39}]}', ["outcomes", 0, "value"]),
        (b'{"outcomes":[{"id":"x","value":null}]}', ["outcomes", 0, "value"]),
        (b'{"outcomes":[{"id":"x","value":1,"why":""}]}', ["outcomes", 0, "why"]),
        (b'{"outcomes":[{"id":"' + b"x" * 65 + b'","value":1}]}', ["outcomes", 0, "id"]),
        (b'{"outcomes":[]}', ["outcomes"]),
        (b"{}", ["outcomes"]),
    ],
)
def test_a_wrong_outcome_is_refused_and_its_field_named(service: Service, body: bytes, named: list[Any]) -> None:
    answer = service.http.post("/outcomes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert any(fault["loc"][1 : 1 + len(named)] == named for fault in answer.json()["detail"])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[" * 200_000, b"\xff\xfe\x00", b'{"outcomes":[{"id":"x","value":1' + b"0" * 6000 + b"}]}",
        b'{"outcomes":[{"id":"\\ud800","value":1}]}', b'{"outcomes":[{"\\ud800":1,"id":"x","value":1}]}',
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(service: Service, body: bytes) -> None:
    assert service.http.post("/outcomes", content=body, headers={"content-type": "application/json"}).status_code in (
        400,
        422,
    )


def test_a_value_that_json_has_not_is_refused_and_the_answer_says_so(service: Service) -> None:
    answer = service.http.post("/outcomes", content=b'{"outcomes":[{"id":"x","value":NaN}]}')
    assert answer.status_code == 422
    assert "JSON has no NaN" in answer.json()["detail"][0]["msg"]


def test_nobody_makes_the_service_read_outcomes_without_a_key_or_without_end(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=20) as stranger:
        assert stranger.post("/outcomes", content=b"{not JSON").status_code == 401
    huge = service.http.post(
        "/outcomes", content=b"[" + b"1," * (10 * 2**20), headers={"content-type": "application/json"}
    )
    assert huge.status_code == 413


def test_only_the_key_that_reported_an_outcome_corrects_it(service: Service) -> None:
    which, (_, other) = predicted(service), access.new(service.environment.store, "other", ["outcomes"], per_second=100)
    assert send(service, (which, 1))["results"] == {"accepted": 1}
    body, headers = {"outcomes": [{"id": which, "value": 0}]}, {"authorization": f"Bearer {other}"}
    service.until(lambda: service.http.post("/outcomes", json=body, headers=headers).status_code == 200)
    assert service.http.post("/outcomes", json=body, headers=headers).json()["results"] == {"foreign": 1}
    assert send(service, (which, 0))["results"] == {"contradictory": 1}
    assert arrives(service, which) == [1.0, 0.0]


def test_an_outcome_is_corrected_a_few_times_not_for_ever(service: Service) -> None:
    which = predicted(service)
    results = send(service, *((which, number % 2) for number in range(1000)))["results"]
    assert results == {"accepted": 1, "contradictory": 10, "excess": 495, "duplicate": 494}
    assert len(arrives(service, which)) == 11


def test_an_id_that_another_environment_issued_is_unknown(service: Service) -> None:
    which = LogKey("of another environment, 32 characters", synthetic.MODEL).new_id()
    assert send(service, (which, 1)) == {"results": {"unknown": 1}, "unknown": [which]}


def test_without_a_model_nobody_knows_what_an_outcome_can_be(tmp_path: Path) -> None:
    with Service(environment(tmp_path), synthetic.MODEL) as waiting:
        waiting.until(lambda: waiting.http.get("/model").status_code == 503)
        answer = waiting.http.post("/outcomes", json={"outcomes": [{"id": new_id(), "value": 7}]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def arrives(service: Service, which: str) -> list[float]:
    """The values of that id in the bucket, oldest first, once they no longer change."""
    service.until(lambda: not any(service.spool.glob("*outcomes*")))
    store, decode = service.environment.store, msgspec.json.Decoder(OutcomeRecord).decode
    time.sleep(0.6)  # the queue is written twice a second
    service.until(lambda: not any(service.spool.glob("*outcomes*")))
    keys = store.keys(f"outcomes/{synthetic.MODEL}")
    found = [decode(raw) for key in keys for raw in log_schema.lines(store.get(key) or b"")]
    return [outcome.value for outcome in sorted(found, key=lambda outcome: outcome.at) if outcome.id == which]


def test_outcomes_survive_in_the_bucket_of_a_replica_that_was_terminated(tmp_path: Path, first_bundle: Bundle) -> None:
    home = environment(tmp_path)
    promotion.release(home.model(synthetic.MODEL), synthetic.publish(home, first_bundle), "test")
    with Service(home, synthetic.MODEL, segment_seconds=60) as service:
        service.serves(1)
        which = predicted(service)
        send(service, (which, 1))
    assert join_outcomes(home.model(synthetic.MODEL)).counts == {
        "predictions": 1, "matched": 1, "waiting": 0, "duplicate": 0, "contradictory": 0, "unknown": 0,
        "unreadable": 0,
    }  # fmt: skip
