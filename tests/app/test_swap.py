from __future__ import annotations

import httpx
import pytest

from mlops import promotion
from mlops.bundle import Bundle
from mlops.environment import Environment
from tests import synthetic
from tests.load import Answer
from tests.proofs import swap
from tests.service import Service


@pytest.fixture
def digests(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> list[str]:
    return [synthetic.publish(environment, bundle) for bundle in (first_bundle, second_bundle)]


def test_swaps_under_load_fail_no_request_and_each_answer_is_of_the_release_in_force(
    environment: Environment, digests: list[str]
) -> None:
    with Service(environment, synthetic.MODEL) as service:
        swap.two_releases(environment, service, digests)
        found = swap.swaps(service, digests, 6, 40)
    assert found["swaps"] == 6
    assert found["revisions_seen"] >= 6
    assert {found[name] for name in ("failed", "foreign", "ahead", "backwards")} == {0}


def test_rollback_under_load_ends_the_old_model_and_fails_no_request(
    environment: Environment, digests: list[str]
) -> None:
    with Service(environment, synthetic.MODEL, poll_seconds=2.0) as service:
        swap.two_releases(environment, service, digests)
        found = swap.rollback(service, 40)
    assert found["answers_after"] > 0
    assert {found[name] for name in ("failed", "foreign", "ahead", "backwards")} == {0}


def test_a_release_that_only_names_the_served_model_again_moves_the_revision(
    environment: Environment, digests: list[str]
) -> None:
    with Service(environment, synthetic.MODEL) as service:
        swap.two_releases(environment, service, digests)
        again = environment.model(synthetic.MODEL).releases.append(digests[1], "again")
        service.serves(again.revision)
        answer = service.predict(synthetic.request())
    assert (answer["revision"], answer["model_version"]) == (3, digests[1])


def test_a_restarted_replica_serves_the_newest_release(environment: Environment, digests: list[str]) -> None:
    with Service(environment, synthetic.MODEL) as service:
        swap.two_releases(environment, service, digests)
        service.stop()
        service.start()
        service.until(lambda: service.http.get("/readyz").json()["ready"])
        assert service.predict(synthetic.request())["revision"] == 2
        shown = service.http.get("/model").json()
    assert shown["release"]["champion"] == digests[1]
    assert shown["contract"]["model"] == synthetic.MODEL


@pytest.mark.parametrize(
    ("revision", "model", "thread_before", "fault"),
    [(2, "first", 1, "foreign"), (9, "first", 1, "foreign"), (3, "first", 1, "ahead"), (1, "first", 2, "backwards")],
)
def test_the_comparison_with_the_log_sees_each_fault(
    environment: Environment, digests: list[str], revision: int, model: str, thread_before: int, fault: str
) -> None:
    releases = environment.model(synthetic.MODEL).releases
    for digest in (*digests, digests[0]):
        releases.append(digest, "test")
    log = releases.read()
    moment = log[-1].at.timestamp() - (0.001 if fault == "ahead" else -1)
    good = Answer(0, moment, moment, 200, {}, thread_before, digests[thread_before - 1])
    bad = Answer(0, moment, moment, 200, {}, revision, digests[0] if model == "first" else digests[1])
    found = swap.against_the_log([good, bad], log)
    assert {name for name in ("foreign", "ahead", "backwards") if found[name]} == {fault}


def test_a_caller_that_waits_between_requests_is_answered_by_the_new_model(
    environment: Environment, digests: list[str]
) -> None:
    with (
        Service(environment, synthetic.MODEL) as service,
        httpx.Client(base_url=service.url, headers=service.http.headers) as caller,
    ):
        service.serves(promotion.release(environment.model(synthetic.MODEL), digests[0], "test").revision)
        before = caller.post("/predict", json={"rows": [synthetic.request()]}).json()
        service.serves(promotion.release(environment.model(synthetic.MODEL), digests[1], "test").revision)
        after = caller.post("/predict", json={"rows": [synthetic.request()]}).json()
    assert [before["model_version"], after["model_version"]] == digests
    assert before["predictions"][0]["score"] != after["predictions"][0]["score"]
