from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops import promotion
from mlops.bundle import Bundle
from tests import synthetic
from tests.load import Load
from tests.service import Service, environment


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    made = environment(tmp_path_factory.mktemp("metrics"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        yield service


def series(service: Service) -> set[str]:
    return {
        line.rpartition(" ")[0] for line in service.http.get("/metrics").text.splitlines() if not line.startswith("#")
    }


def oddly(service: Service, numbers: range) -> Counter[int]:
    """Requests of paths, methods, headers and keys that nobody foresaw."""
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    found: Counter[int] = Counter()
    with httpx.Client(base_url=service.url, timeout=10) as http:
        for number in numbers:
            headers = {
                "x-request-id": f"odd-{number}",
                "user-agent": f"agent-{number}",
                f"x-{number}": "1",
                "authorization": f"Bearer {number}",
            }
            path = (
                "/{0}",
                "/predict/{0}",
                "/metrics/{0}",
                "/predict?{0}=1",
                "/outcomes?x={0}",
                "/%{0:02x}x",
                "/docs/{0}/..",
            )[number % 7]
            method = methods[number // 7 % len(methods)]
            found[
                http.request(method, path.format(number % 100 if "%" in path else number), headers=headers).status_code
            ] += 1
    return found


def test_the_number_of_series_stays_whatever_is_asked(service: Service) -> None:
    oddly(service, range(98))  # each path with each method
    before = series(service)
    with ThreadPoolExecutor(2) as pool:
        found = sum(
            pool.map(lambda numbers: oddly(service, numbers), (range(98, 1_098), range(1_098, 2_098))), Counter()
        )
    assert found.total() == 2_000
    assert not any(status >= 500 for status in found)
    assert series(service) == before
    assert len(before) < 500
    assert not any("odd" in name or "agent" in name for name in before)


def test_totals_are_what_the_client_counted(service: Service) -> None:
    def totals() -> Counter[str]:
        found = Counter(
            {
                status: int(service.metric("http_requests_total", route="/predict", status=status))
                for status in ("200", "422", "401")
            }
        )
        found["all"] = int(service.metric("http_requests_total", route="/predict"))
        found["timed"] = int(service.metric("http_request_duration_seconds_count", route="/predict"))
        found["rows"] = int(service.metric("mlops_predictions_total"))
        found["logged"] = int(service.metric("mlops_log_rows_total", kind="predictions"))
        return found

    service.until(lambda: totals()["logged"] == totals()["rows"])
    before = totals()
    with Load(service, 300, count=300) as load:
        load.finish()
    service.predict(*[synthetic.request()] * 50)
    refused = sum(service.http.post("/predict", content=b"{}").status_code == 422 for _ in range(7))
    strangers = sum(httpx.post(f"{service.url}/predict", content=b"{}").status_code == 401 for _ in range(5))
    assert (len(load.good), refused, strangers) == (300, 7, 5)
    service.until(lambda: totals()["logged"] - before["logged"] >= 350)
    assert totals() - before == {"200": 301, "422": 7, "401": 5, "all": 313, "timed": 313, "rows": 350, "logged": 350}
    assert service.metric("mlops_log_dropped_rows_total") == 0
    assert service.metric("mlops_requests_in_flight") == 0
    assert service.metric("mlops_model_info", model=synthetic.MODEL, model_version=load.good[0].model_version) == 1


def test_bins_count_what_was_sent(service: Service, first_bundle: Bundle) -> None:
    sent = [
        synthetic.request(
            size=(number - 100) / 40,
            heat=None if number % 10 == 0 else number / 50,
            color=("red", "green", "blue", "grey", "violet")[number % 5],
            region=("north", "south")[number % 2],
            group=("a", "b", "z")[number % 3],
            member=number % 4 == 0,
        )
        for number in range(200)
    ]

    def counted() -> Counter[tuple[str, str]]:
        families = {family.name: family for family in text_string_to_metric_families(service.http.get("/metrics").text)}
        samples = families["mlops_feature_bin_rows"].samples
        return Counter({(s.labels["feature"], s.labels["bin"]): int(s.value) for s in samples if s.value})

    def rows() -> int:
        return sum(count for (name, _), count in counted().items() if name == "score")

    service.until(lambda: rows() == service.metric("mlops_predictions_total"))
    before, before_rows = counted(), rows()
    scores = [each["score"] for part in (sent[:150], sent[150:]) for each in service.predict(*part)["predictions"]]
    profile = first_bundle.json("profile.json")["bins"]
    expected: Counter[tuple[str, str]] = Counter()
    for feature, values in {
        **{name: [row[name] for row in sent] for name in sent[0] if name in profile},
        "score": scores,
    }.items():
        for value in values:
            if value is None:
                place = "missing"
            elif levels := profile[feature].get("levels"):
                place = str(levels.index(value)) if value in levels else "other"
            else:
                place = str(bisect_left(profile[feature]["edges"], value))
            expected[(feature, place)] += 1

    service.until(lambda: rows() == before_rows + len(sent))
    assert counted() - before == expected
    assert expected[("color", "other")] == expected[("heat", "missing")] * 2 == 40


def test_the_shares_of_the_training_are_there_for_each_bin(service: Service) -> None:
    service.predict(synthetic.request())
    service.until(lambda: service.metric("mlops_feature_bin_rows_total", feature="score") >= 1)
    families = {family.name: family for family in text_string_to_metric_families(service.http.get("/metrics").text)}
    rows, shares = families["mlops_feature_bin_rows"].samples, families["mlops_feature_bin_expected"].samples
    assert [sample.labels for sample in rows] == [sample.labels for sample in shares]
    totals = dict.fromkeys((sample.labels["feature"] for sample in shares), 0.0)
    for sample in shares:
        totals[sample.labels["feature"]] += sample.value
    assert totals == pytest.approx(dict.fromkeys((*synthetic.contract_yaml()["features"], "score"), 1.0))


def test_names_follow_the_conventions_of_prometheus(service: Service) -> None:
    service.predict(synthetic.request())
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        assert family.documentation, family.name
        assert family.name.startswith(("http_", "mlops_")), family.name
        assert not family.name.endswith("_created"), family.name
        assert all(sample.name.endswith("_total") for sample in family.samples if family.type == "counter"), family.name
        assert not any(word in family.name for word in ("millisecond", "_ms", "megabyte")), family.name
