"""No single object that is there and cannot be read stops what reads the bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from obstore.exceptions import BaseError

from mlops import access, promotion, releases, replicas, rollout
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.errors import VerificationError
from monitoring.compaction import compact, waiting
from monitoring.controller import Controller
from monitoring.retention import forget
from tests import synthetic
from tests.refusing import ANSWERS, Refusing
from tests.rollout_log import Log, Rows
from tests.service import Service
from tests.service import environment as make_environment
from tests.synthetic import MODEL


@pytest.fixture(params=ANSWERS)
def refusing(
    request: pytest.FixtureRequest, s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Refusing]:
    made = Refusing(s3_endpoint, ANSWERS[request.param])
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


@pytest.fixture
def remote(
    refusing: Refusing, s3_bucket: str, tmp_path: Path, first_bundle: Bundle, second_bundle: Bundle
) -> Environment:
    """Two models were released."""
    made = make_environment(tmp_path, s3_bucket)
    for bundle in (first_bundle, second_bundle):
        promotion.release(made.model(MODEL), synthetic.publish(made, bundle), "now")
    return made


def record(revision: int) -> str:
    return f"/releases/{revision:08d}.json"


def test_absent_unreadable_and_unreachable_are_told_apart(refusing: Refusing, remote: Environment) -> None:
    store, key = remote.store, remote.model(MODEL).releases.log.key(1)
    assert store.get(f"{key}.none") is None
    refusing.keys.add(record(1))
    with pytest.raises(VerificationError) as unreadable:
        store.get(key)
    assert (unreadable.value.reason, unreadable.value.key) == ("unreadable", key)
    refusing.everything = True
    with pytest.raises(BaseError):
        store.get(key)
    refusing.close()
    with pytest.raises(BaseError):
        store.get(key)


def test_an_app_starts_beside_an_unreadable_record_release_access_or_state(
    refusing: Refusing, remote: Environment
) -> None:
    model = remote.model(MODEL)
    first, second = (release.champion for release in model.releases.read())
    third = model.releases.append(first, "third")
    refusing.keys |= {record(1), record(2)}
    with Service(remote, MODEL) as service:
        service.serves(third.revision)
        assert service.http.get("/readyz").status_code == 200
        service.predict(synthetic.request())
        service.until(lambda: any("/00000003-" in key for key in remote.store.keys(f"predictions/{MODEL}")))
        refusing.keys.add(record(4))
        model.releases.append(second, "nobody can read it")
        fifth = promotion.release(remote.model(MODEL), second, "fifth")
        service.serves(fifth.revision)
        assert service.metric("mlops_release_refused_total") >= 3
        access.new(remote.store, "another", ["predict"], 10)
        refusing.keys.add(f"/access/{access.access_log(remote.store).last():08d}.json")
        access.new(remote.store, "one more", ["predict"], 10)
        assert replicas.alive(remote.model(MODEL))
        refusing.keys.add(f"/replicas/{MODEL}/other.json")
        remote.store.put(f"replicas/{MODEL}/other.json", b"{}")
        assert replicas.alive(remote.model(MODEL))
        back = promotion.rollback(remote.model(MODEL), "bad")
        assert (back.champion, back.revision) == (first, 6)
        service.serves(back.revision)


@pytest.mark.parametrize("name", ["built", "gate"])
def test_an_unreadable_attestation_is_one_that_does_not_verify(
    refusing: Refusing, remote: Environment, name: str
) -> None:
    model = remote.model(MODEL)
    digest = model.releases.read()[-1].champion
    [key] = [key for key in model.store.keys(f"{model.folder}/attestations/{digest}") if f"/{name}-" in key]
    refusing.keys.add(key)
    with pytest.raises(VerificationError):
        promotion.release(model, digest, "again")


def _rollout(remote: Environment) -> tuple[releases.Release, Log]:
    model = remote.model(MODEL)
    log = model.releases.read()
    release = rollout.begin(model, log[0].champion, log[1].champion, "try", mode="shadow")
    return release, Log(remote.store)


def test_the_judge_advances_nothing_over_a_log_that_it_cannot_read_and_stays_at_work(
    refusing: Refusing, remote: Environment
) -> None:
    release, log = _rollout(remote)
    hidden, shown = log.write(release, Rows(days=9), outcomes=False)[0], log.write(release, Rows(days=9, seed=1))[0]
    assert hidden != shown
    refusing.keys.add(hidden)
    controller = Controller(remote, MODEL)
    controller.steps.tick(["judge"])
    failures = controller.metrics.registry.get_sample_value("mlops_controller_failures_total", {"step": "judge"})
    decided = controller.metrics.registry.get_sample_value("mlops_judge_decision", {"decision": "inconclusive"})
    assert (failures, decided) == (0, 1)
    assert remote.model(MODEL).releases.current() == release


def test_compaction_passes_over_a_segment_that_it_cannot_read(refusing: Refusing, remote: Environment) -> None:
    release, log = _rollout(remote)
    later = releases.now().replace(year=releases.now().year + 1)
    keys = [log.write(release, Rows(days=1, a_day=20, seed=seed), outcomes=False)[0] for seed in range(3)]
    refusing.keys.add(keys[1])
    compact(remote.model(MODEL), "predictions", later)
    assert waiting(remote.model(MODEL), "predictions", later) == [keys[1]]
    refusing.keys.clear()
    compact(remote.model(MODEL), "predictions", later)
    assert waiting(remote.model(MODEL), "predictions", later) == []


def test_nobody_is_forgotten_as_long_as_a_file_cannot_be_read(refusing: Refusing, remote: Environment) -> None:
    release, log = _rollout(remote)
    [key] = log.write(release, Rows(days=1, a_day=20), outcomes=False)
    refusing.keys.add(key)
    attempt: Callable[[], object] = lambda: forget(remote.model(MODEL), None, "c1", "asked")  # noqa: E731
    try:
        done = attempt()
    except VerificationError:
        return
    assert not getattr(done, "complete", True)
