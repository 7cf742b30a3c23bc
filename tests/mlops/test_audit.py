"""Records of the release log are signed with what led to them, and an audit verifies all of it again."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from mlops import promotion, rollout
from mlops.attestations import attest, read
from mlops.audit import Audited, Evidence, audit
from mlops.bundle import Bundle
from mlops.envelope import Attestation, seal
from mlops.environment import Environment
from mlops.errors import ConflictError, UserError
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from mlops.verdict import Verdict
from tests.control import Control
from tests.rollout_log import Log, Rows
from tests.service import environment as make_environment
from tests.synthetic import MODEL, publish

START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2199, 1, 1, tzinfo=UTC)


@pytest.fixture
def released(environment: Environment, first_bundle: Bundle) -> RegisteredModel:
    model = environment.model(MODEL)
    promotion.release(model, publish(environment, first_bundle), "first")
    return model


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle, second_bundle: Bundle) -> Environment:
    """Four records: a champion, a challenger beside it, a step by the judge, an abort by the judge."""
    environment = make_environment(tmp_path_factory.mktemp("history"))
    model = environment.model(MODEL)
    promotion.release(model, publish(environment, first_bundle), "first")
    promotion.release(model, publish(environment, second_bundle), "better", mode="shadow")
    for bad in (False, True):
        current, rows = model.releases.read()[-1], Rows(days=9, seed=bad)
        rows.challenger = 1 - rows.challenger if bad else rows.challenger
        Log(environment.store).write(current, rows)
        Control(environment, MODEL).judge()
    return environment


@pytest.fixture
def judged(environment: Environment, history: Environment) -> RegisteredModel:
    """Its records, in a bucket and with a keyring of this test."""
    shutil.copytree(history.home, environment.home, dirs_exist_ok=True)
    return environment.model(MODEL)


def records(model: RegisteredModel) -> list[Audited]:
    return list(audit(model, START, END))


def of(audited: Audited, kind: str) -> list[Evidence]:
    return [each for each in audited.evidence if each.kind == kind]


def faults(model: RegisteredModel) -> list[tuple[int, str, str]]:
    return [
        (each.revision, one.kind, one.state)
        for each in records(model)
        for one in each.evidence
        if one.state != "verified"
    ]


def test_each_record_is_signed_with_the_evidence_that_it_rests_on(judged: RegisteredModel) -> None:
    first, shadow, advance, abort = records(judged)
    assert faults(judged) == []
    assert [each.release for each in (first, shadow, advance, abort)] == judged.releases.read()
    assert [(one.kind, one.digest) for one in first.evidence] == [
        (kind, judged.releases.read()[0].champion) for kind in ("released", "built", "gate", "approved")
    ]
    assert len(of(shadow, "gate")) == 2, "of the champion and of the challenger"
    assert of(first, "judged") == of(shadow, "judged") == []
    for record, verdict, decision in ((advance, "passed", "advance"), (abort, "refused", "abort")):
        [said] = of(record, "judged")
        assert said.attestation
        assert record.release
        assert said.digest == judged.releases.read()[1].challenger
        assert (said.attestation.verdict, said.attestation.environment) == (verdict, judged.environment)
        details = said.attestation.details
        assert (details["decision"], details["revision"]) == (decision, record.revision)
        assert details["rollout"] == judged.releases.read()[1].rollout
        assert details["checks"]
        assert "; ".join(details["reasons"]) in record.release.why


def test_signed_records_are_not_what_an_app_reads_before_it_serves(judged: RegisteredModel) -> None:
    champion = judged.releases.read()[0].champion
    good, bad = read(judged, champion)
    assert ([each.kind for each in good], bad) == (["built", "gate", "approved"], [])


def edit(model: RegisteredModel, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    envelope = json.loads(model.store.get(key) or b"")
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change(payload)
    envelope.pop("sha256", None)
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    model.store.put(key, json.dumps(envelope).encode())


def key_of(model: RegisteredModel, kind: str, revision: int = 4) -> str:
    [key] = [key for key in model.store.keys(f"{model.folder}/signed/{revision:08d}") if f"/{kind}-" in key]
    return key


def rewrite(model: RegisteredModel, **changes: Any) -> None:
    """The fourth record as somebody else would have it."""
    edit(model, model.releases.log.key(4), lambda said: said["predicate"]["details"].update(changes))


def copy(model: RegisteredModel) -> None:
    """The verdict that led to the third record, to the fourth."""
    model.store.delete(key_of(model, "judged"))
    source = key_of(model, "judged", 3)
    model.store.put(source.replace("/00000003/", "/00000004/"), model.store.get(source) or b"")


def write_unsigned(model: RegisteredModel, revision: int, **changes: Any) -> None:
    record = model.releases.read()[revision - 1].model_dump(mode="json", exclude_defaults=True)
    model.store.put(model.releases.log.key(revision), json.dumps(record | changes).encode())


def sign_by_another(model: RegisteredModel) -> None:
    keyring = Keyring(Path(model.keyring.path.parent, "foreign.json"), model.keyring.path.parent / "foreign")
    keyring.new("approve", "local")
    details = model.releases.read()[3].model_dump(mode="json", exclude_defaults=True)
    about: dict[str, Any] = {
        "digest": details["champion"],
        "environment": "local",
        "at": datetime.now(UTC),
        "details": details,
    }
    payload = Attestation(kind="released", model=model.name, **about).payload()
    model.store.put(model.releases.log.key(4), seal(payload, keyring, "approve", "local").envelope)


def put(model: RegisteredModel, content: bytes) -> None:
    model.store.put(model.releases.log.key(4), content)


def edit_verdict(model: RegisteredModel) -> None:
    edit(model, key_of(model, "judged"), lambda said: said["predicate"].update(verdict="passed"))


FORGED: dict[str, tuple[Callable[[RegisteredModel], object], list[tuple[int, str, str]]]] = {
    "another reason": (lambda m: rewrite(m, why="it was fine"), [(4, "record", "invalid")]),
    "another author": (lambda m: rewrite(m, by="nobody"), [(4, "record", "invalid")]),
    "another champion": (lambda m: rewrite(m, champion=m.releases.read()[1].challenger), [(4, "record", "invalid")]),
    "a pause that nobody wrote": (lambda m: rewrite(m, paused=True), [(4, "record", "invalid")]),
    "a record that is none": (lambda m: put(m, b"{"), [(4, "record", "invalid")]),
    "another record": (lambda m: put(m, m.store.get(m.releases.log.key(3)) or b""), [(4, "record", "invalid")]),
    "a changed verdict": (edit_verdict, [(4, "judged", "missing"), (4, "attestation", "invalid")]),
    "no verdict": (lambda m: m.store.delete(key_of(m, "judged")), [(4, "judged", "missing")]),
    "the verdict of another record": (copy, [(4, "judged", "missing"), (4, "attestation", "invalid")]),
    "a key that nobody knows": (sign_by_another, [(4, "record", "invalid")]),
    "no signature": (lambda m: write_unsigned(m, 3), [(3, "record", "invalid")]),
    "no signature of an abort": (lambda m: write_unsigned(m, 4, why="?"), [(4, "released", "not signed")]),
}  # fmt: skip


@pytest.mark.parametrize("how", FORGED)
def test_what_was_changed_later_is_found(judged: RegisteredModel, environment: Environment, how: str) -> None:
    change, expected = FORGED[how]
    change(judged)
    again = environment.model(MODEL)
    assert faults(again) == expected
    [(changed, _, state)] = expected[:1]
    assert [each.holds for each in records(again)] == [
        number != changed or state == "not signed" for number in range(1, 5)
    ]
    assert [each.signed for each in records(again)] == [
        number != changed or state != "not signed" for number in range(1, 5)
    ]


def bundle_keys(model: RegisteredModel, kind: str) -> list[str]:
    champion = model.releases.read()[0].champion
    return [key for key in model.store.keys(f"{model.folder}/attestations/{champion}") if f"/{kind}-" in key]


def remove(model: RegisteredModel, kind: str) -> None:
    for key in bundle_keys(model, kind):
        model.store.delete(key)


def revoke(model: RegisteredModel, role: str) -> None:
    for key in model.keyring.all():
        if key.role == role:
            model.keyring.set_state(key.id, "revoked")


def junk(model: RegisteredModel) -> None:
    [key] = bundle_keys(model, "gate")
    model.store.put(f"{key}.json", b"{}")


def approve_elsewhere(model: RegisteredModel) -> None:
    """As a bundle that came from there has it: that key need not be known here."""
    keyring = Keyring(Path(model.keyring.path.parent, "dev.json"), model.keyring.path.parent / "dev")
    keyring.new("approve", "dev")
    dev = RegisteredModel(model.name, "dev", model.store, keyring)
    attest(dev, "approved", model.releases.read()[0].champion, environment="dev")


def refuse_later(model: RegisteredModel) -> None:
    details = {"reasons": ["loss: planted"]}
    attest(model, "gate", model.releases.read()[0].champion, verdict="refused", details=details)


CHAIN: dict[str, tuple[Callable[[RegisteredModel], object], list[tuple[int, str, str]]]] = {
    "no gate": (lambda m: remove(m, "gate"), [(1, "gate", "missing")]),
    "no origin": (lambda m: remove(m, "built"), [(1, "built", "missing")]),
    "no approval": (lambda m: remove(m, "approved"), [(1, "approved", "missing")]),
    "a stolen build key": (lambda m: revoke(m, "build"), [(1, "built", "invalid"), (1, "gate", "invalid")]),
    "a stolen approval key": (lambda m: revoke(m, "approve"), [(1, "record", "invalid")]),
    "junk beside it": (junk, [(1, "attestation", "invalid")]),
    "an approval for another environment": (approve_elsewhere, []),
    "a refusal that came later": (refuse_later, []),
}  # fmt: skip


@pytest.mark.parametrize("how", CHAIN)
def test_what_stands_behind_a_model_is_verified_again(released: RegisteredModel, how: str) -> None:
    change, expected = CHAIN[how]
    change(released)
    assert faults(released) == expected


def test_what_a_stolen_key_signed_does_no_harm_once_it_is_signed_again(released: RegisteredModel) -> None:
    champion = released.releases.read()[0].champion
    revoke(released, "build")
    released.keyring.new("build")
    attest(released, "built", champion)
    attest(released, "gate", champion, verdict="passed")
    rollout.write(released, champion, "signed again")
    assert faults(released) == [(1, "built", "invalid"), (1, "gate", "invalid")]


def test_a_record_after_a_refusal_rests_on_nothing(released: RegisteredModel) -> None:
    refuse_later(released)
    rollout.write(released, released.releases.read()[0].champion, "anyway")
    assert faults(released) == [(2, "gate", "invalid")]
    assert of(records(released)[1], "gate")[0].why == "loss: planted"


def test_without_the_key_a_rollout_can_be_ended_and_nothing_else(
    environment: Environment, judged: RegisteredModel, second_bundle: Bundle
) -> None:
    rollout.begin(judged, judged.releases.read()[0].champion, second_bundle.digest, "again", mode="shadow")
    for private in environment.keyring.parent.glob("approve-*.pem"):
        private.unlink()
    before = judged.store.keys(judged.releases.log.prefix)
    with pytest.raises(UserError, match="no active private key"):
        rollout.set_paused(judged, True, "a holiday")
    assert judged.store.keys(judged.releases.log.prefix) == before
    assert promotion.rollback(judged, "bad").mode == "full"
    assert faults(judged) == [(6, "released", "not signed")]
    assert all(each.holds for each in records(judged))


def test_an_abort_is_written_whether_or_not_it_can_be_signed(
    environment: Environment, released: RegisteredModel, second_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    promotion.release(released, publish(environment, second_bundle), "better", mode="shadow")

    def unreachable(*_: object) -> None:
        raise ConnectionError("the KMS does not answer")

    monkeypatch.setattr(Keyring, "signer", unreachable)
    verdict = Verdict("abort", ["it fails"], [], [])
    written = rollout.abort(released, released.releases.read()[1], "aborted", verdict)
    assert (written.mode, environment.model(MODEL).releases.current()) == ("full", written)
    assert "revision 3 is not signed: the KMS does not answer" in caplog.text
    assert faults(released) == [(3, "released", "not signed")]


def test_a_writer_that_was_too_late_signs_nothing(released: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would sign is not in the log."""
    put_new = Store.put_new

    def another_first(self: Store, key: str, data: bytes) -> bool:
        put_new(self, key, b"{}")
        return put_new(self, key, data)

    monkeypatch.setattr(Store, "put_new", another_first)
    with pytest.raises(ConflictError):
        rollout.abort(released, released.releases.read()[0], "late", Verdict("abort", [], [], []))
    assert released.store.keys(f"{released.folder}/signed") == []


def test_the_period_begins_with_its_first_moment_and_ends_before_its_last(judged: RegisteredModel) -> None:
    at = [release.at for release in judged.releases.read()]
    assert [each.revision for each in audit(judged, at[1], at[3])] == [2, 3]
    assert list(audit(judged, at[3] + timedelta(seconds=1), END)) == []


def test_the_command_shows_it_and_ends_with_2_if_something_does_not_verify(
    environment: Environment, judged: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    monkeypatch.setenv("MLOPS_MODEL", MODEL)
    monkeypatch.setattr("cli.terminal.out.width", 400)
    period = ("audit", "2020-01-01", "2199-01-01")
    shown = CliRunner().invoke(app, period)
    assert shown.exit_code == 0
    assert "4 records; not signed: none; with evidence that does not verify: none" in shown.output
    assert f"judged {judged.releases.read()[1].challenger[:12]} abort verified: " in shown.output  # ty: ignore[not-subscriptable]
    write_unsigned(judged, 4, why="[/red]")
    judged.store.put(judged.releases.log.key(2), b"{}")
    shown = CliRunner().invoke(app, period)
    assert (shown.exit_code, "[/red]" in shown.output) == (2, True)
    found = json.loads(CliRunner().invoke(app, ("--json", *period)).output)
    assert (found["not_signed"], found["invalid"]) == ([4], [2])
    record = found["records"][2]
    assert (record["revision"], record["release"]["mode"]) == (3, "canary")
    gate = next(each for each in record["evidence"] if each["kind"] == "gate")
    assert (gate["state"], gate["attestation"]["verdict"]) == ("verified", "passed")
