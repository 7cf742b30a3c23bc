"""Two models over one stream of requests: who answers whom, and what the second may cost."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
import pytest

from app import assignment
from mlops import log_schema, promotion, releases, replicas, rollout
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.releases import Release
from tests import synthetic
from tests.proofs import modes
from tests.service import Service


@pytest.fixture
def digests(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> list[str]:
    found = [synthetic.publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    promotion.release(environment.model(synthetic.MODEL), found[0], "first")
    return found


def logged(environment: Environment) -> list[log_schema.PredictionRecord]:
    decode = msgspec.json.Decoder(log_schema.PredictionRecord).decode
    store = environment.store
    return [decode(raw) for key in store.keys("predictions") for raw in log_schema.lines(store.get(key) or b"")]


def test_in_shadow_the_champion_answers_and_both_scores_are_logged(
    environment: Environment, digests: list[str]
) -> None:
    release = promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="shadow")
    with Service(environment, synthetic.MODEL) as service:
        service.serves(release.revision)
        answers = [service.predict(synthetic.request(size=i / 10, at="2024-03-01T12:00:00Z")) for i in range(20)]
        assert {answer["model_version"] for answer in answers} == {digests[0]}
        service.until(lambda: service.metric("mlops_challenger_rows_total", result="scored") == 20)
    rows = logged(environment)
    assert len(rows) == 20
    assert any(row.challenger_seconds for row in rows)  # some are timed
    for row in rows:
        assert (row.arm, row.fault, row.score) == (0, None, row.champion_score)
        assert row.challenger_score is not None
        assert row.challenger_score != row.champion_score
        assert row.event == 1709294400.0


def test_in_a_canary_an_entity_keeps_its_model_and_without_one_the_champion_answers(
    environment: Environment, digests: list[str]
) -> None:
    release = promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="canary", weight=0.3)
    with Service(environment, synthetic.MODEL) as service:
        service.serves(release.revision)
        first = {f"c{i}": service.predict(synthetic.request(customer=f"c{i}"))["model_version"] for i in range(200)}
        again = {name: service.predict(synthetic.request(customer=name, size=0.1))["model_version"] for name in first}
        assert first == again
        assert 35 < Counter(first.values())[digests[1]] < 85
        nobody = synthetic.request()
        del nobody["customer"]
        assert {service.predict(nobody)["model_version"] for _ in range(20)} == {digests[0]}
        wider = rollout.begin(
            environment.model(synthetic.MODEL), digests[0], digests[1], "more", mode="canary", weight=0.6
        )
        assert wider.rollout == release.rollout
        service.serves(wider.revision)
        after = {name: service.predict(synthetic.request(customer=name))["model_version"] for name in first}
    assert {after[name] for name, model in first.items() if model == digests[1]} == {digests[1]}
    assert Counter(after.values())[digests[1]] > Counter(first.values())[digests[1]]


def test_a_request_of_many_rows_says_which_model_answered_each(environment: Environment, digests: list[str]) -> None:
    release = promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="canary", weight=0.5)
    rows = [synthetic.request(customer=f"c{i}", size=i / 50) for i in range(100)]
    with Service(environment, synthetic.MODEL) as service:
        service.serves(release.revision)
        answer = service.predict(*rows)
        models = [each.get("model_version", answer["model_version"]) for each in answer["predictions"]]
        expected = [digests[int(assignment.gets_challenger(release, None, f"c{i}"))] for i in range(100)]
        assert models == expected
        one_by_one = [service.predict(row) for row in rows]
    assert [each["score"] for each in answer["predictions"]] == pytest.approx(
        [one["predictions"][0]["score"] for one in one_by_one], abs=1e-6
    )


def test_each_row_of_a_request_that_both_models_answer_is_logged_once_as_it_was_answered(
    environment: Environment, digests: list[str]
) -> None:
    release = promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="canary", weight=0.5)
    sent = [synthetic.request(customer=f"c{i}", size=i / 50) for i in range(60)]
    with Service(environment, synthetic.MODEL) as service:
        service.serves(release.revision)
        answer = service.predict(*sent)
        service.until(lambda: service.metric("mlops_challenger_rows_total", result="scored") == len(sent))
    rows = {row.id: row for row in logged(environment)}
    assert len(logged(environment)) == len(rows) == len(sent)
    assert len({row.model_version for row in rows.values()}) == 2
    for asked, said in zip(sent, answer["predictions"], strict=True):
        row, arm = rows[said["id"]], int(assignment.gets_challenger(release, None, asked["customer"]))
        assert (row.entity, row.arm, row.fault) == (asked["customer"], arm, None)
        assert row.model_version == digests[arm] == said.get("model_version", answer["model_version"])
        assert row.score == said["score"] == (row.champion_score, row.challenger_score)[arm]
        assert row.prediction == said["prediction"]


def test_a_cohort_gets_the_challenger_and_nobody_else(environment: Environment, digests: list[str]) -> None:
    release = promotion.release(
        environment.model(synthetic.MODEL), digests[1], "north first", mode="canary", cohort={"region": "north"}
    )
    with Service(environment, synthetic.MODEL) as service:
        service.serves(release.revision)
        for region, model in (("north", digests[1]), ("south", digests[0])):
            found = {
                service.predict(synthetic.request(region=region, customer=f"c{i}"))["model_version"] for i in range(20)
            }
            assert found == {model}


def test_blue_green_waits_for_every_replica_and_switches_at_the_instant(
    environment: Environment, digests: list[str]
) -> None:
    with Service(environment, synthetic.MODEL, replica="a") as service:
        service.serves(1)
        activated = promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="blue-green")
        assert service.predict(synthetic.request())["model_version"] == digests[0]
        service.serves(activated.revision)
        assert releases.now() >= activated.activate_at  # ty: ignore[unsupported-operator]
        assert service.predict(synthetic.request())["model_version"] == digests[1]
        [replica] = replicas.alive(environment.model(synthetic.MODEL))
        assert (replica.name, replica.loaded) == ("a", sorted(digests))


def test_replicas_under_load_switch_at_the_instant_and_roll_back(environment: Environment) -> None:
    found = modes.blue_green(environment, 1, replicas=2)
    assert found["failed"] == 0
    assert found["first_green_ms"][0] >= 0


def test_rows_that_find_no_place_beside_the_challenger_are_counted_and_logged(environment: Environment) -> None:
    found = modes.overflow(environment, 1.5)
    assert found["failed"] == 0
    assert found["dropped"] == found["dropped_in_log"] > 0
    assert found["logged"] == found["rows"]


def test_an_entity_keeps_its_model_under_load(environment: Environment) -> None:
    found = modes.stickiness(environment, 2_000, (0.25,))
    assert (found["moved"], found["failed"]) == (0, 0)
    assert abs(found["split"]["0.25"] - 0.25) < 0.05


def test_a_replica_that_does_not_confirm_blocks_blue_green_with_its_name(
    environment: Environment, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "_CONFIRM_SECONDS", 2.0)
    with Service(environment, synthetic.MODEL, replica="good") as service:
        service.serves(1)
        replicas.report(environment.model(synthetic.MODEL), "stuck", serving=1, ready=True, loaded=[digests[0]])
        with pytest.raises(Exception, match="stuck"):
            promotion.release(environment.model(synthetic.MODEL), digests[1], "try", mode="blue-green")
    last = environment.model(synthetic.MODEL).releases.read()[-1]
    assert (last.mode, last.champion) == ("full", digests[0])
    assert "stuck" in last.why


def test_the_split_is_even_over_entities_and_a_weight_moves_only_the_ones_it_must() -> None:
    def record(weight: float, salt: str = "s") -> Release:
        return Release(
            revision=1, at=releases.now(), by="me", why="", nonce="0", mode="canary", champion="a" * 64, challenger="b" * 64,
            weight=weight, rollout=salt,
        )  # fmt: skip

    keys = [f"UA|{i}|EWR|2013-06-{i % 28 + 1:02d}" for i in range(20_000)]
    for weight in (0.01, 0.05, 0.25, 0.5):
        share = sum(assignment.gets_challenger(record(weight), None, key) for key in keys) / len(keys)
        assert abs(share - weight) < 0.01
    small, large = (
        {key for key in keys if assignment.gets_challenger(record(weight), None, key)} for weight in (0.05, 0.25)
    )
    assert small < large
    other = {key for key in keys if assignment.gets_challenger(record(0.05, "t"), None, key)}
    assert len(small & other) < 0.2 * len(small)  # another rollout picks others


def test_a_silent_replica_does_not_count_and_is_removed_in_the_end(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, now = environment.model(synthetic.MODEL), time.time()
    for name, ago in (("here", 5), ("silent", 60), ("gone", 7200)):
        monkeypatch.setattr(time, "time", lambda ago=ago: now - ago)
        replicas.report(model, name, serving=1, ready=True, loaded=[])
    monkeypatch.setattr(time, "time", lambda: now)
    model.store.put(f"replicas/{synthetic.MODEL}/garbage.json", b"garbage")
    assert [each.name for each in replicas.alive(model)] == ["here"]
    replicas.remove_gone(model)
    assert sorted(key.rpartition("/")[2] for key in model.store.keys("replicas")) == [
        "garbage.json",
        "here.json",
        "silent.json",
    ]
