from __future__ import annotations

import pytest

from monitoring.metrics_api import GROUP, METRIC, InFlight, answer


def test_requests_in_flight_are_those_a_second_times_the_seconds_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now, found = [100.0], {"a": (1000.0, 0.01), "b": (500.0, 0.02)}
    monkeypatch.setattr("monitoring.metrics_api.time.monotonic", lambda: now[0])
    in_flight = InFlight(lambda: dict(found))
    in_flight.sample()
    assert in_flight.value is None
    now[0], found["a"], found["b"] = 105.0, (2000.0, 0.01), (1000.0, 0.03)  # 2 and 3 at a time
    in_flight.sample()
    assert in_flight.value == pytest.approx(5)
    now[0], found["c"], found["b"] = 110.0, (100.0, 0.05), (0.0, 0.0)  # one is new, another started again, the third is idle
    in_flight.sample()
    assert in_flight.value == pytest.approx((5 + 1) / 2)


def test_the_metrics_api_answers_as_its_clients_expect() -> None:
    assert answer(f"/apis/{GROUP}", "ns", "serving", 1.5)[1]["kind"] == "APIResourceList"
    status, body = answer(f"/apis/{GROUP}/namespaces/ns/services/serving/{METRIC}", "ns", "serving", 1.5)
    assert (status, body["items"][0]["value"]) == (200, "1500m")
    for path, held in (
        (f"/apis/{GROUP}/namespaces/other/services/serving/{METRIC}", 1.5),
        (f"/apis/{GROUP}/namespaces/ns/services/serving/{METRIC}", None),
    ):
        assert answer(path, "ns", "serving", held)[0] == 404
