import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops.attestations import attest, attestations, require_approval, require_gate
from mlops.environment import Environment
from mlops.errors import UserError, VerificationError
from mlops.keys import Keyring
from tests.service import environment as make_environment

MODEL, DIGEST = "m", "a" * 64


@pytest.fixture(params=["ed25519", "ecdsa-p256"])
def signed(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """An environment whose keys are of one algorithm, with a bundle that was built, gated and approved."""
    made = make_environment(tmp_path)
    made.keyring.unlink()
    made.keys.new("build", None, request.param)
    made.keys.new("approve", "local", request.param)
    for kind, more in {"built": {}, "gate": {"verdict": "passed"}, "approved": {"environment": "local"}}.items():
        attest(made.model(MODEL), kind, DIGEST, **more)
    return made


def approve(environment: Environment) -> None:
    require_approval(environment.model(MODEL), DIGEST)


def key_of(environment: Environment, role: str) -> str:
    return next(key.id for key in environment.keys.all() if key.role == role)


def edit(environment: Environment, kind: str, change: Callable[[dict[str, Any]], Any], payload: bool = True) -> None:
    """Rewrite a attestation of that kind, or its envelope, in the bucket."""
    [where] = [key for key in environment.store.keys(f"models/{MODEL}/attestations") if f"/{kind}-" in key]
    envelope = json.loads(environment.store.get(where) or b"")
    if payload:
        inside = json.loads(base64.b64decode(envelope["payload"]))
        change(inside)
        envelope["payload"] = base64.b64encode(json.dumps(inside).encode()).decode()
    else:
        change(envelope)
    environment.store.put(where, json.dumps(envelope).encode())


def test_what_is_signed_holds(signed: Environment) -> None:
    approve(signed)
    assert require_gate(signed.model(MODEL), DIGEST).verdict == "passed"
    good, bad = attestations(signed.store, signed.keys, MODEL, DIGEST, "local")
    assert ([attestation.kind for attestation in good], bad) == (["built", "gate", "approved"], [])


@pytest.mark.parametrize("change", [
    {"digest": "b" * 64}, {"model": "other"}, {"environment": "prod"}, {"verdict": "refused"}, {"at": "2020-01-01T00:00:00Z"},
])  # fmt: skip
def test_no_word_of_a_attestation_can_be_changed(signed: Environment, change: dict[str, str]) -> None:
    edit(signed, "approved", lambda payload: payload.update(change))
    with pytest.raises(VerificationError) as refused:
        approve(signed)
    assert refused.value.reason == "signature"


@pytest.mark.parametrize(("change", "reason"), [
    (lambda e: e.update(payloadType="text/plain"), "attestation"),
    (lambda e: e.update(signatures=[]), "attestation"),
    (lambda e: e["signatures"][0].update(sig="not base64"), "attestation"),
    (lambda e: e["signatures"][0].update(sig=base64.b64encode(b"x" * 64).decode()), "signature"),
    (lambda e: e["signatures"][0].update(keyid="approve-unknown"), "signature"),
    (lambda e: e["signatures"][0].update(alg="none"), "signature"),
    (lambda e: e["signatures"].append(e["signatures"][0] | {"keyid": "approve-unknown"}), "signature"),
    (lambda e: e.pop("payload"), "attestation"),
    (lambda e: e.update(signatures=["x"]), "attestation"),
])  # fmt: skip
def test_no_word_of_an_envelope_can_be_changed(
    signed: Environment, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    edit(signed, "approved", change, payload=False)
    with pytest.raises(VerificationError) as refused:
        approve(signed)
    assert refused.value.reason == reason


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[]", b"null", b"[" * 100_000, b" " * (2**20 + 1)])
def test_junk_beside_a_good_attestation_takes_nothing_from_it(signed: Environment, junk: bytes) -> None:
    for name in ("approved-0.json", "gate-0.json", "zzz"):
        signed.store.put(f"models/{MODEL}/attestations/{DIGEST}/{name}", junk)
    approve(signed)
    require_gate(signed.model(MODEL), DIGEST)


def test_more_attestations_than_anybody_writes_are_not_read(signed: Environment) -> None:
    for number in range(1000):
        signed.store.put(f"models/{MODEL}/attestations/{DIGEST}/junk-{number}", b"")
    with pytest.raises(VerificationError, match="too many"):
        approve(signed)


def test_a_key_of_another_keyring_signs_nothing_here(signed: Environment, tmp_path: Path) -> None:
    foreign = Keyring(tmp_path / "foreign" / "keyring.json")
    foreign.new("approve", "local")
    attest(signed.store, foreign, "approved", MODEL, "c" * 64, environment="local")
    with pytest.raises(VerificationError, match="the keyring does not know"):
        require_approval(signed.model(MODEL), "c" * 64)


def test_an_approval_is_worth_something_in_its_environment_only(signed: Environment) -> None:
    with pytest.raises(VerificationError) as refused:
        require_approval(signed.store, signed.keys, MODEL, DIGEST, "prod")
    assert refused.value.reason == "environment"


def test_without_the_key_of_an_environment_nobody_approves_for_it(signed: Environment) -> None:
    with pytest.raises(UserError, match="no active private key"):
        attest(signed.model(MODEL), "approved", DIGEST, environment="prod")


def test_a_role_cannot_be_taken_by_another_key(signed: Environment) -> None:
    """Whoever holds the build key renames it in what it signs, or has the approve key state a verdict."""
    build, approval = key_of(signed, "build"), key_of(signed, "approve")
    edit(signed, "gate", lambda e: e["signatures"][0].update(keyid=approval), payload=False)
    edit(signed, "approved", lambda e: e["signatures"][0].update(keyid=build), payload=False)
    for step in (lambda: approve(signed), lambda: require_gate(signed.model(MODEL), DIGEST)):
        with pytest.raises(VerificationError) as refused:
            step()
        assert refused.value.reason == "signature"


def test_a_revoked_key_is_refused_without_restart(signed: Environment) -> None:
    keyring = signed.keys
    approve(signed)
    signed.keys.set_state(key_of(signed, "approve"), "revoked")
    with pytest.raises(VerificationError, match="revoked") as refused:
        require_approval(signed.store, keyring, MODEL, DIGEST, "local")
    assert refused.value.reason == "revoked"
    with pytest.raises(UserError, match="no active private key"):
        attest(signed.store, keyring, "approved", MODEL, DIGEST, environment="local")


def test_what_a_verify_only_key_signed_stays_good_and_it_signs_nothing_new(signed: Environment) -> None:
    signed.keys.set_state(key_of(signed, "approve"), "verify-only")
    approve(signed)
    with pytest.raises(UserError, match="no active private key"):
        attest(signed.model(MODEL), "approved", DIGEST, environment="local")


def test_the_newest_verdict_counts(signed: Environment) -> None:
    attest(signed.model(MODEL), "gate", DIGEST, verdict="refused", details={"reasons": ["loss: too high"]})
    with pytest.raises(VerificationError, match="loss: too high"):
        require_gate(signed.model(MODEL), DIGEST)


def test_a_attestation_of_another_bundle_says_nothing_here(signed: Environment) -> None:
    for key in signed.store.keys(f"models/{MODEL}/attestations/{DIGEST}"):
        signed.store.put(key.replace(DIGEST, "d" * 64), signed.store.get(key) or b"")
    for step in (require_gate, lambda *about: require_approval(*about, "local")):
        with pytest.raises(VerificationError, match="speaks of"):
            step(signed.store, signed.keys, MODEL, "d" * 64)


def test_private_keys_are_for_their_owner_alone_and_in_no_keyring(signed: Environment) -> None:
    private = list(signed.keyring.parent.glob("*.pem"))
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert "PRIVATE" not in signed.keyring.read_text()


def test_an_entry_that_cannot_be_read_takes_no_other_with_it(signed: Environment) -> None:
    entries = json.loads(signed.keyring.read_text())
    entries["keys"] += [{"id": "half"}, "nonsense", entries["keys"][0] | {"id": "other", "alg": "rsa"}]
    signed.keyring.write_text(json.dumps(entries))
    approve(signed)
    with pytest.raises(UserError, match="restore it from its backup"):
        signed.keys.all()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_keyring_that_is_none_trusts_nobody(signed: Environment, text: str) -> None:
    signed.keyring.write_text(text)
    with pytest.raises(VerificationError, match="restore it from its backup"):
        approve(signed)


def test_a_public_key_of_another_kind_than_its_entry_says_is_refused(tmp_path: Path) -> None:
    made = make_environment(tmp_path)
    attest(made.model(MODEL), "approved", DIGEST, environment="local")
    entries = json.loads(made.keyring.read_text())
    for entry in entries["keys"]:
        entry["alg"] = "ecdsa-p256"
    made.keyring.write_text(json.dumps(entries))
    edit(made, "approved", lambda e: e["signatures"][0].update(alg="ecdsa-p256"), payload=False)
    with pytest.raises(VerificationError) as refused:
        approve(made)
    assert refused.value.reason == "keyring"
