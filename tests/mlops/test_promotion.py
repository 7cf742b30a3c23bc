import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops import bundle as bundles
from mlops import log_schema, promotion
from mlops.attestations import attest, require_approval
from mlops.bundle import Bundle, canonical
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Mode, Release
from monitoring.history import observed
from tests import synthetic
from tests.ids import new_id
from tests.synthetic import contract_yaml

MODEL = synthetic.MODEL


@pytest.fixture
def model(environment: Environment) -> RegisteredModel:
    return environment.model(MODEL)


def answered(
    model: RegisteredModel, release: Release, at: float | None = None, rows: int = 3, name: str = "replica"
) -> None:
    """Write a segment of the prediction log, as the app does under that release."""
    at = at or time.time()
    scored = [
        log_schema.PredictionRecord(new_id(), at, release.revision, release.champion, 0.5, 1.0, {}) for _ in range(rows)
    ]
    key = log_schema.segment_key("predictions", MODEL, at, release.revision, name)
    model.store.put(key, b"".join(map(log_schema.line, scored)))


def released(environment: Environment, bundle: Bundle, why: str = "test", **how: Any) -> Release:
    return promotion.release(environment.model(MODEL), synthetic.publish(environment, bundle), why, **how)


def placed(environment: Environment, bundle: Bundle) -> Release:
    """Approved and released without the sandbox: for tests of what comes later."""
    digest, model = synthetic.publish(environment, bundle), environment.model(MODEL)
    attest(model, "approved", digest, environment=environment.name)
    return model.releases.append(digest, "test")


def test_a_release_is_checked_approved_and_written(environment: Environment, first_bundle: Bundle) -> None:
    done = released(environment, first_bundle, "first")
    assert (done.revision, done.champion, done.why, done.mode) == (1, first_bundle.digest, "first", "full")
    assert environment.model(MODEL).releases.read() == [done]
    assert require_approval(environment.model(MODEL), first_bundle.digest).details["why"] == "first"


def test_a_released_model_is_released_again_under_the_same_approval(
    environment: Environment, first_bundle: Bundle
) -> None:
    released(environment, first_bundle)
    before = environment.store.keys(f"models/{MODEL}/attestations")
    assert promotion.release(environment.model(MODEL), first_bundle.digest[:10], "again").revision == 2
    assert environment.store.keys(f"models/{MODEL}/attestations") == before


def _refused_by_the_gate(environment: Environment, bundle: Bundle) -> None:
    synthetic.publish(environment, bundle, "refused")


def _passed_then_refused(environment: Environment, bundle: Bundle) -> None:
    digest, details = synthetic.publish(environment, bundle), {"reasons": ["loss: planted"]}
    attest(environment.model(MODEL), "gate", digest, verdict="refused", details=details)


def _without_gate(environment: Environment, bundle: Bundle) -> None:
    model = environment.model(MODEL)
    attest(model, "built", bundles.write(model, bundle))


def _without_origin(environment: Environment, bundle: Bundle) -> None:
    model = environment.model(MODEL)
    attest(model, "gate", bundles.write(model, bundle), verdict="passed")


def _tampered(environment: Environment, bundle: Bundle) -> None:
    digest = synthetic.publish(environment, bundle)
    environment.store.put(f"{bundles.folder(environment.model(MODEL), digest)}/card.md", b"x")


def _by_a_revoked_key(environment: Environment, bundle: Bundle) -> None:
    synthetic.publish(environment, bundle)
    environment.keys.set_state(next(key.id for key in environment.keys.all() if key.role == "build"), "revoked")


REFUSED = {
    "the gate refused it": (_refused_by_the_gate, "refused by the gate .loss: planted"),
    "the gate refused it at last": (_passed_then_refused, "refused by the gate"),
    "no gate": (_without_gate, "no signed 'built' and gate attestation"),
    "no origin": (_without_origin, "no signed 'built' and gate attestation"),
    "tampered with": (_tampered, "SHA-256|allowed"),
    "built by a revoked key": (_by_a_revoked_key, "revoked"),
    "not there": (lambda *_: None, "matches no bundle"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_what_fails_a_check_is_neither_approved_nor_released(
    environment: Environment, first_bundle: Bundle, make: Callable[[Environment, Bundle], None], why: str
) -> None:
    make(environment, first_bundle)
    with pytest.raises(UserError, match=why):
        promotion.release(environment.model(MODEL), first_bundle.digest, "test")
    assert environment.model(MODEL).releases.read() == []
    with pytest.raises(VerificationError):
        require_approval(environment.model(MODEL), first_bundle.digest)


def test_a_model_that_the_app_could_not_load_is_not_approved(environment: Environment, first_bundle: Bundle) -> None:
    broken = Bundle(first_bundle.files | {"model.onnx": b"not a model"})
    with pytest.raises(VerificationError) as refused:
        released(environment, broken)
    assert refused.value.reason in ("onnx", "contract")
    assert not [key for key in environment.store.keys(f"models/{MODEL}/attestations") if "approved" in key]


def test_nobody_releases_without_the_approval_key(environment: Environment, first_bundle: Bundle) -> None:
    for pem in environment.keyring.parent.glob("approve-*.pem"):
        pem.unlink()
    with pytest.raises(UserError, match="no active private key"):
        released(environment, first_bundle)
    assert environment.model(MODEL).releases.read() == []


@pytest.mark.parametrize("mode", ["shadow", "canary", "ab", "blue-green"])
def test_a_challenger_needs_a_champion_that_is_another_model(
    environment: Environment, first_bundle: Bundle, mode: Mode
) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="--mode full"):
            released(environment, first_bundle, mode=mode)
        released(environment, first_bundle)


@pytest.mark.parametrize(
    ("cohort", "says"), [({"size": "1"}, "size"), ({"shape": "x"}, "shape"), ({"color": "red"}, "")]
)
def test_a_cohort_is_defined_by_columns_of_the_request(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle, cohort: dict[str, str], says: str
) -> None:
    placed(environment, first_bundle)
    if says:
        with pytest.raises(UserError, match=says):
            released(environment, second_bundle, mode="canary", cohort=cohort)
    else:
        release = released(environment, second_bundle, mode="canary", cohort=cohort)
        assert (release.cohort, release.weight) == (cohort, 1.0)


NARROWER: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a column is gone": (lambda f: f.pop("size"), "size is gone"),
    "a column is new and required": (lambda f: f.update(extra={"type": "number"}), "extra is new and required"),
    "a column has another type": (lambda f: f.update(member={"type": "number"}), "member was boolean, is number"),
    "a column may not be missing any more": (
        lambda f: f["heat"].update(missing=False),
        "heat may no longer be missing",
    ),
    "unknown values are rejected": (lambda f: f["color"].update(unknown="reject"), "color now rejects unknown values"),
    "a range is narrower": (lambda f: f["size"].update(range=[-50, 49]), "size has the narrower range"),
    "a range is new": (lambda f: f["heat"].update(range=[-99, 99]), "heat has the narrower range"),
}
WIDER: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda f: None,
    "a column is new and may be missing": lambda f: f.update(extra={"type": "number", "missing": True}),
    "a column may be missing": lambda f: f["size"].update(missing=True),
    "unknown values are taken": lambda f: f["region"].update(unknown="other"),
    "a range is wider": lambda f: f["size"].update(range=[-60, 60]),
    "a range is gone": lambda f: f["size"].pop("range"),
}


def _changed(change: Callable[[dict[str, Any]], object]) -> Contract:
    raw = contract_yaml(slices=[])
    change(raw["features"])
    return Contract.model_validate(raw)


@pytest.mark.parametrize(("change", "said"), NARROWER.values(), ids=NARROWER)
def test_a_narrower_request_is_noticed(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert any(
        said in found for found in promotion.narrower(_changed(change), Contract.model_validate(contract_yaml()))
    )


@pytest.mark.parametrize("change", WIDER.values(), ids=WIDER)
def test_a_wider_request_passes(change: Callable[[dict[str, Any]], object]) -> None:
    assert promotion.narrower(_changed(change), Contract.model_validate(contract_yaml())) == []


def test_a_release_that_refuses_requests_of_callers_needs_breaking(
    environment: Environment, first_bundle: Bundle
) -> None:
    placed(environment, first_bundle)
    contract = Contract.model_validate(
        contract_yaml() | {"features": contract_yaml()["features"] | {"size": {"type": "number", "range": [-9, 9]}}}
    )
    narrow = Bundle(first_bundle.files | {"contract.json": contract.json_bytes()})
    with pytest.raises(UserError, match=r"narrower range.*--breaking"):
        released(environment, narrow)
    current = environment.model(MODEL).releases.current()
    assert current is not None
    assert current.champion == first_bundle.digest
    assert released(environment, narrow, breaking=True).revision == 2


def test_a_level_that_is_now_rejected_needs_breaking(environment: Environment, first_bundle: Bundle) -> None:
    profile = first_bundle.json("profile.json")
    profile["levels"]["region"].append("west")
    wide = Bundle(first_bundle.files | {"profile.json": canonical(profile)})
    placed(environment, wide)
    with pytest.raises(UserError, match=r"region rejects \['west'\]"):
        released(environment, first_bundle)
    assert released(environment, first_bundle, breaking=True).revision == 2


def test_a_record_written_by_hand_neither_blocks_a_release_nor_hides_the_champion(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    placed(environment, first_bundle)
    environment.model(MODEL).releases.append("f" * 64, "by hand")
    champion = promotion.champion(environment.model(MODEL))
    assert champion is not None
    assert champion.digest == first_bundle.digest
    assert released(environment, second_bundle).revision == 3


def test_rollback_returns_to_what_answered_not_to_what_was_only_released(
    environment: Environment, model: RegisteredModel, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    ran = placed(environment, first_bundle)
    answered(model, ran)
    never_ran = placed(environment, Bundle(first_bundle.files | {"card.md": b"never ran"}))
    current = placed(environment, second_bundle)
    answered(model, current)
    done = promotion.rollback(model, "bad")
    assert (done.revision, done.champion) == (4, ran.champion)
    assert done.champion != never_ran.champion
    assert done.why == "bad (back to revision 1)"


def test_without_a_model_that_answered_there_is_no_rollback(
    environment: Environment, model: RegisteredModel, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    with pytest.raises(UserError, match="nothing is released yet"):
        promotion.rollback(model, "bad")
    for bundle in (first_bundle, second_bundle):
        current = placed(environment, bundle)
    answered(model, current)
    with pytest.raises(UserError, match="observed serving"):
        promotion.rollback(model, "bad")


def test_rollback_skips_what_no_longer_verifies(
    environment: Environment, model: RegisteredModel, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    oldest = placed(environment, first_bundle)
    corrupt = placed(environment, Bundle(first_bundle.files | {"card.md": b"corrupt"}))
    for release in (oldest, corrupt, placed(environment, second_bundle)):
        answered(model, release)
    model.store.put(f"{bundles.folder(model, corrupt.champion)}/card.md", b"x")
    assert promotion.rollback(model, "bad").champion == oldest.champion


def test_rollback_from_a_record_written_by_hand_returns_to_what_answered(
    environment: Environment, model: RegisteredModel, first_bundle: Bundle
) -> None:
    answered(model, placed(environment, first_bundle))
    model.releases.append("f" * 64, "by hand")
    model.store.put(f"predictions/{MODEL}/nothing-of-ours.txt", b"")
    assert promotion.rollback(model, "bad").champion == first_bundle.digest


def test_the_prediction_log_says_which_model_answered_when(model: RegisteredModel) -> None:
    first, second = (model.releases.append(letter * 64, "") for letter in "ab")
    hour = datetime(2024, 5, 1, 12, tzinfo=UTC)
    answered(model, first, hour.timestamp() - 30, rows=2)
    answered(model, second, hour.timestamp() + 30, rows=5, name="one")
    answered(model, second, hour.timestamp() + 40, rows=1, name="two")
    junk = b"00000000 {}\n\xff" + log_schema.line(log_schema.OutcomeRecord("x", 1, 1))
    model.store.put(f"predictions/{MODEL}/2024-05-01/12/00000002-junk.log", junk)
    shifts = (-120, -60, -1, 31, 75, 200)
    seen = {shift: dict(observed(model, hour + timedelta(seconds=shift))) for shift in shifts}
    a, b = (first.champion, 1), (second.champion, 2)
    assert seen == {-120: {}, -60: {a: 2}, -1: {a: 2}, 31: {b: 5}, 75: {b: 1}, 200: {}}


def test_check_says_why_each_verification_fails(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    digest, model = placed(environment, first_bundle).champion, environment.model(MODEL)
    found = promotion.check(model, digest[:8])
    assert (found["digest"], found["valid"]) == (digest, True)
    assert set(found["checks"]) == {"bundle", "model", "gate", "approval"}
    refused = promotion.check(model, synthetic.publish(environment, second_bundle, "refused"))
    assert not refused["valid"]
    assert {name for name, why in refused["checks"].items() if why} == {"gate", "approval"}
    model.store.put(f"{bundles.folder(model, digest)}/golden.json", b"x")
    assert "golden.json" in promotion.check(model, digest)["checks"]["bundle"]
