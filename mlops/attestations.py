"""Signed claims about a bundle, or about a record of the release log, one object each, never changed."""

from datetime import UTC, datetime
from typing import Any

from mlops.envelope import SIGNER, Attestation, Kind, name_of, seal, verify
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel

_MAX_BYTES = 1024 * 1024
_MAX_ATTESTATIONS = 1000


def attest(model: RegisteredModel, kind: Kind, digest: str, **more: Any) -> Attestation:
    """Sign an attestation and put it beside the bundle; a `judged` one with those about the record that `details` names."""
    attestation = Attestation(kind=kind, model=model.name, digest=digest, at=datetime.now(UTC), **more)
    signed = seal(attestation.payload(), model.keyring, SIGNER[kind], attestation.environment)
    about = attestation.details["revision"] if kind == "judged" else digest
    model.store.put_new(f"{_folder(model, about)}/{kind}-{signed.name}", signed.envelope)
    return attestation


def _folder(model: RegisteredModel, about: str | int) -> str:
    """Verdicts of the judge have one of their own: an app reads all that is about its bundle."""
    return f"{model.folder}/" + (f"attestations/{about}" if isinstance(about, str) else f"signed/{about:08d}")


def read(model: RegisteredModel, about: str | int) -> tuple[list[Attestation], list[VerificationError]]:
    """The valid attestations about a bundle (its digest) or a record of the release log (its revision) that count in the
    model's environment, oldest first, and why the others do not: the key of each such error is its object's name."""
    good, bad = [], []
    keys = model.store.keys(_folder(model, about))
    if len(keys) > _MAX_ATTESTATIONS:
        hint = f"are too many to read about one bundle: {_MAX_ATTESTATIONS} are allowed"
        return [], [VerificationError("attestation", "attestations", len(keys), hint)]
    for key in keys:
        name, raw = key.rsplit("/", 1)[-1], b""
        try:
            raw = model.store.get(key, _MAX_BYTES) or b""
            attestation = verify(raw, model.keyring, model.environment)
            subject = attestation.digest if isinstance(about, str) else attestation.details.get("revision")
            if (attestation.model, subject, f"{attestation.kind}-{name_of(raw)}") != (model.name, about, name):
                hint = f"is {attestation.kind} about {attestation.model} {attestation.digest[:12]}"
                raise VerificationError("attestation", name, key, hint)
            good.append(attestation)
        except VerificationError as error:
            # Whoever has a revoked key could put another one in the place of a refusal.
            moved = error.reason == "revoked" and not name.endswith(name_of(raw))
            bad.append(VerificationError("attestation" if moved else error.reason, name, error.value, error.hint))
    return sorted(good, key=lambda attestation: attestation.at), bad


def require_approval(model: RegisteredModel, digest: str) -> Attestation:
    good, bad = read(model, digest)
    for attestation in reversed(good):
        if attestation.kind == "approved" and attestation.environment == model.environment:
            return attestation
    hint = f"is not approved for {model.environment!r}; release it: mlops release {digest[:12]}"
    # An invalid approval is a better reason than a missing one.
    raise next(iter(bad), VerificationError("approval", "digest", digest[:12], hint))


def require_gate(model: RegisteredModel, digest: str) -> Attestation:
    """The newest gate verdict must be `passed`, and the bundle be built by a trusted training. A verdict that does not
    verify counts as refused: it may have been one."""
    good, bad = read(model, digest)
    if against := [error for error in bad if error.key.startswith("gate-") and error.reason != "revoked"]:
        raise against[0]
    gates = [attestation for attestation in good if attestation.kind == "gate"]
    if not gates or not any(attestation.kind == "built" for attestation in good):
        hint = "has no signed 'built' and gate attestation; train it: mlops train"
        missing = VerificationError("attestation", "digest", digest[:12], hint)
        raise next((error for error in bad if error.reason != "environment"), missing)
    if gates[-1].verdict != "passed":
        reasons = "; ".join(gates[-1].details.get("reasons", []))
        raise VerificationError("gate", "digest", digest[:12], f"was refused by the gate ({reasons})")
    return gates[-1]
