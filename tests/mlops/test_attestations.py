import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mlops import attestations
from mlops.attestations import attest, require_approval, require_gate
from mlops.envelope import Attestation, seal
from mlops.environment import Environment
from mlops.errors import UserError, VerificationError
from mlops.keys import Keyring
from tests.service import environment as make_environment

MODEL, DIGEST = "m", "a" * 64
FOLDER = f"models/{MODEL}/attestations/{DIGEST}"


@pytest.fixture(params=["ed25519", "ecdsa-sha2-nistp256"])
def signed(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """An environment whose keys have one scheme, with a bundle that was built, gated and approved."""
    made = make_environment(tmp_path)
    made.keyring.unlink()
    made.keys.new("build", None, request.param)
    made.keys.new("approve", "local", request.param)
    attest(made.model(MODEL), "built", DIGEST)
    attest(made.model(MODEL), "gate", DIGEST, verdict="passed")
    attest(made.model(MODEL), "approved", DIGEST, environment="local")
    return made


def approval_of(environment: Environment) -> None:
    require_approval(environment.model(MODEL), DIGEST)


def key_of(environment: Environment, role: str) -> str:
    return next(key.id for key in environment.keys.all() if key.role == role)


def stored(environment: Environment, kind: str) -> tuple[str, dict[str, Any]]:
    """The bucket's key of the one attestation of that kind, and its envelope."""
    [where] = [key for key in environment.store.keys(FOLDER) if f"/{kind}-" in key]
    return where, json.loads(environment.store.get(where) or b"")


def edit_envelope(environment: Environment, kind: str, change: Callable[[dict[str, Any]], object]) -> None:
    where, envelope = stored(environment, kind)
    change(envelope)
    environment.store.put(where, json.dumps(envelope).encode())


def edit_payload(environment: Environment, kind: str, change: Callable[[dict[str, Any]], object]) -> None:
    def rewrite(envelope: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(envelope["payload"]))
        change(payload)
        envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    edit_envelope(environment, kind, rewrite)


def test_what_is_signed_verifies(signed: Environment) -> None:
    approval_of(signed)
    assert require_gate(signed.model(MODEL), DIGEST).verdict == "passed"
    good, bad = attestations.read(signed.model(MODEL), DIGEST)
    assert ([attestation.kind for attestation in good], bad) == (["built", "gate", "approved"], [])


def test_other_tools_can_read_and_verify_it(signed: Environment) -> None:
    """By the specifications of in-toto and DSSE alone, without the library that signs."""
    _, envelope = stored(signed, "approved")
    payload = base64.b64decode(envelope["payload"], validate=True)
    statement = json.loads(payload)
    assert (envelope["payloadType"], statement["_type"]) == (
        "application/vnd.in-toto+json",
        "https://in-toto.io/Statement/v1",
    )
    assert statement["subject"] == [{"name": MODEL, "digest": {"sha256": DIGEST}}]
    assert statement["predicateType"] == "urn:mlops:approved:v1"
    assert (statement["predicate"]["environment"], set(statement["predicate"])) == (
        "local",
        {"at", "environment", "details"},
    )
    kind = envelope["payloadType"].encode()
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    [signature] = envelope["signatures"]
    made, key = base64.b64decode(signature["sig"]), signed.keys.trusted()[signature["keyid"]]
    if key.scheme == "ed25519":
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public)).verify(made, encoded)
    else:
        public = load_pem_public_key(key.public.encode())
        assert isinstance(public, EllipticCurvePublicKey)
        public.verify(made, encoded, ECDSA(SHA256()))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda s: s["subject"][0]["digest"].update(sha256="b" * 64), "signature"),
    (lambda s: s["subject"][0].update(name="other"), "signature"),
    (lambda s: s["predicate"].update(environment="prod"), "environment"),
    (lambda s: s["predicate"].update(verdict="refused"), "signature"),
    (lambda s: s["predicate"].update(at="2020-01-01T00:00:00Z"), "signature"),
    (lambda s: s["predicate"].update(details={"why": "other"}), "signature"),
    (lambda s: s.update(predicateType="urn:mlops:gate:v1"), "signature"),
    (lambda s: s.update(predicateType="urn:mlops:other:v1"), "attestation"),
    (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "attestation"),
    (lambda s: s["subject"].append(s["subject"][0]), "attestation"),
    (lambda s: s["subject"].clear(), "attestation"),
    (lambda s: s["predicate"].update(digest="b" * 64), "attestation"),
    (lambda s: s["predicate"].update(at="2020-01-01T00:00:00"), "attestation"),
    (lambda s: s["predicate"].update(more=1), "attestation"),
])  # fmt: skip
def test_no_word_of_an_attestation_can_be_changed(
    signed: Environment, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit_payload(signed, "approved", change)
    with pytest.raises(VerificationError) as refused:
        approval_of(signed)
    assert refused.value.reason == reason


@pytest.mark.parametrize(("change", "reason"), [
    (lambda e: e.update(payloadType="text/plain"), "attestation"),
    (lambda e: e.update(signatures=[]), "attestation"),
    (lambda e: e["signatures"][0].update(sig="not base64"), "attestation"),
    (lambda e: e["signatures"][0].update(sig=base64.b64encode(b"x" * 64).decode()), "signature"),
    (lambda e: e["signatures"][0].update(keyid="approve-unknown"), "signature"),
    (lambda e: e["signatures"][0].update(alg="none", scheme="none", sig=""), "signature"),
    (lambda e: e["signatures"].append(e["signatures"][0] | {"keyid": "approve-unknown"}), "signature"),
    (lambda e: e["signatures"].append(e["signatures"][0]), "attestation"),
    (lambda e: e["signatures"][0].update(keyid=[]), "attestation"),
    (lambda e: e["signatures"][0].pop("keyid"), "attestation"),
    (lambda e: e.pop("payload"), "attestation"),
    (lambda e: e.update(signatures=["x"]), "attestation"),
])  # fmt: skip
def test_no_word_of_an_envelope_can_be_changed(
    signed: Environment, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit_envelope(signed, "approved", change)
    with pytest.raises(VerificationError) as refused:
        approval_of(signed)
    assert refused.value.reason == reason


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[]", b"null", b"[" * 100_000, b" " * (2**20 + 1)])
def test_junk_beside_a_valid_attestation_does_not_affect_it(signed: Environment, junk: bytes) -> None:
    for name in ("approved-0.json", "built-0.json", "zzz"):
        signed.store.put(f"{FOLDER}/{name}", junk)
    approval_of(signed)
    require_gate(signed.model(MODEL), DIGEST)


def _copy_of_the_passed(signed: Environment) -> bytes:
    """The verdict that stands there already."""
    return json.dumps(stored(signed, "gate")[1]).encode()


def _of_another_environment(signed: Environment) -> bytes:
    """As if its key need not be known here."""
    envelope = stored(signed, "approved")[1]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["predicate"]["environment"] = "prod"
    return json.dumps(envelope | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}).encode()


def _by_a_revoked_key(signed: Environment) -> bytes:
    key = signed.keys.new("build")
    body = Attestation(kind="gate", model=MODEL, digest=DIGEST, verdict="passed", at=datetime.now(UTC)).payload()
    envelope = seal(body, signed.keys, "build", None).envelope
    signed.keys.set_state(key.id, "revoked")
    return envelope


@pytest.mark.parametrize("content", [
    lambda _: b"{}", lambda _: b"", _copy_of_the_passed, _of_another_environment, _by_a_revoked_key,
])  # fmt: skip
def test_no_object_in_the_place_of_a_refusal_makes_an_older_verdict_count(
    signed: Environment, content: Callable[[Environment], bytes]
) -> None:
    passed, own = stored(signed, "gate")[0], content(signed)
    attest(signed.model(MODEL), "gate", DIGEST, verdict="refused", details={"reasons": ["worse"]})
    [refusal] = [key for key in signed.store.keys(FOLDER) if "/gate-" in key and key != passed]
    signed.store.put(refusal, own)
    with pytest.raises(VerificationError):
        require_gate(signed.model(MODEL), DIGEST)


def test_more_attestations_than_anybody_writes_are_not_read(signed: Environment) -> None:
    for number in range(1000):
        signed.store.put(f"{FOLDER}/junk-{number}", b"")
    with pytest.raises(VerificationError, match="too many"):
        approval_of(signed)


def test_a_key_of_another_keyring_signs_nothing_here(signed: Environment, tmp_path: Path) -> None:
    foreign = Keyring(tmp_path / "foreign" / "keyring.json")
    foreign.new("approve", "local")
    attest(replace(signed.model(MODEL), keyring=foreign), "approved", "c" * 64, environment="local")
    with pytest.raises(VerificationError, match="not in the keyring"):
        require_approval(signed.model(MODEL), "c" * 64)


def test_an_approval_counts_in_its_environment_only(signed: Environment) -> None:
    with pytest.raises(VerificationError) as refused:
        require_approval(replace(signed.model(MODEL), environment="prod"), DIGEST)
    assert refused.value.reason == "environment"


def test_nobody_approves_for_an_environment_without_its_key(signed: Environment) -> None:
    with pytest.raises(UserError, match="no active private key"):
        attest(signed.model(MODEL), "approved", DIGEST, environment="prod")


def test_a_key_cannot_sign_for_another_role(signed: Environment) -> None:
    """Whoever holds the build key renames it in what it signs, or has the approval key sign a verdict."""
    build, approval = key_of(signed, "build"), key_of(signed, "approve")
    edit_envelope(signed, "gate", lambda e: e["signatures"][0].update(keyid=approval))
    edit_envelope(signed, "approved", lambda e: e["signatures"][0].update(keyid=build))
    for require in (require_approval, require_gate):
        with pytest.raises(VerificationError) as refused:
            require(signed.model(MODEL), DIGEST)
        assert refused.value.reason == "signature"


def test_a_revoked_key_is_refused_without_restart(signed: Environment) -> None:
    model = signed.model(MODEL)
    require_approval(model, DIGEST)
    signed.keys.set_state(key_of(signed, "approve"), "revoked")
    with pytest.raises(VerificationError, match="revoked") as refused:
        require_approval(model, DIGEST)
    assert refused.value.reason == "revoked"
    with pytest.raises(UserError, match="no active private key"):
        attest(model, "approved", DIGEST, environment="local")


def test_signatures_of_a_verify_only_key_stay_valid_and_it_signs_nothing_new(signed: Environment) -> None:
    signed.keys.set_state(key_of(signed, "approve"), "verify-only")
    approval_of(signed)
    with pytest.raises(UserError, match="no active private key"):
        attest(signed.model(MODEL), "approved", DIGEST, environment="local")


def test_the_newest_verdict_counts(signed: Environment) -> None:
    attest(signed.model(MODEL), "gate", DIGEST, verdict="refused", details={"reasons": ["loss: too high"]})
    with pytest.raises(VerificationError, match="loss: too high"):
        require_gate(signed.model(MODEL), DIGEST)


def test_an_attestation_of_another_bundle_proves_nothing_here(signed: Environment) -> None:
    for key in signed.store.keys(FOLDER):
        signed.store.put(key.replace(DIGEST, "d" * 64), signed.store.get(key) or b"")
    for require in (require_gate, require_approval):
        with pytest.raises(VerificationError, match="about m aaaaaaaaaaaa"):
            require(signed.model(MODEL), "d" * 64)


def test_private_keys_are_readable_by_their_owner_alone_and_in_no_keyring(signed: Environment) -> None:
    private = list(signed.keyring.parent.glob("*.pem"))
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert "PRIVATE" not in signed.keyring.read_text()


def test_a_private_key_of_another_scheme_than_its_entry_is_named(signed: Environment) -> None:
    other = "ed25519" if signed.keys.all()[0].scheme != "ed25519" else "ecdsa-sha2-nistp256"
    elsewhere = Keyring(signed.home / "elsewhere" / "keyring.json")
    made, mine = elsewhere.new("approve", "local", other), signed.keyring.parent / f"{key_of(signed, 'approve')}.pem"
    mine.write_bytes((elsewhere.path.parent / f"{made.id}.pem").read_bytes())
    with pytest.raises(UserError, match="is not the private half of approve-"):
        attest(signed.model(MODEL), "approved", DIGEST, environment="local")


def test_an_unreadable_entry_of_the_keyring_does_not_affect_the_others(signed: Environment) -> None:
    entries = json.loads(signed.keyring.read_text())
    entries["keys"] += [{"id": "half"}, "nonsense", entries["keys"][0] | {"id": "other", "scheme": "rsa"}]
    signed.keyring.write_text(json.dumps(entries))
    approval_of(signed)
    with pytest.raises(UserError, match="restore it from its backup"):
        signed.keys.all()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_broken_keyring_trusts_nobody(signed: Environment, text: str) -> None:
    signed.keyring.write_text(text)
    with pytest.raises(VerificationError, match="restore it from its backup"):
        approval_of(signed)


def test_a_public_key_of_another_scheme_than_its_entry_is_refused(signed: Environment) -> None:
    entries = json.loads(signed.keyring.read_text())
    for entry in entries["keys"]:
        entry["scheme"] = "ecdsa-sha2-nistp256" if entry["scheme"] == "ed25519" else "ed25519"
    signed.keyring.write_text(json.dumps(entries))
    with pytest.raises(VerificationError, match="the key's entry in the keyring") as refused:
        approval_of(signed)
    assert refused.value.reason == "signature"
