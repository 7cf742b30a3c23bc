"""Signed claims about a bundle, or about a record of the release log: in-toto statements in DSSE envelopes, one object
each, never changed."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as EnvelopeError
from securesystemslib.exceptions import UnverifiedSignatureError

from mlops.errors import VerificationError
from mlops.keys import Keyring, Role
from mlops.registered_model import RegisteredModel

_MAX_BYTES = 1024 * 1024
_MAX_ATTESTATIONS = 1000
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "urn:mlops:{}:v1"
_SIGNER: dict[str, Role] = {
    "built": "build", "gate": "build", "approved": "approve", "released": "approve", "judged": "approve"
}  # fmt: skip
Kind = Literal["built", "gate", "approved", "released", "judged"]


class Claim(Protocol):
    @property
    def kind(self) -> str: ...


Found = TypeVar("Found", bound=Claim)


class Attestation(BaseModel):
    """`built`: by this training; `gate`: its verdict and report; `approved`: may be served in `environment`. `released`: a
    record of the release log, word for word; `judged`: the judge's verdict on the challenger that led to a record."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    model: str
    digest: str
    verdict: Literal["passed", "refused"] | None = None
    environment: str | None = None
    at: AwareDatetime
    details: dict[str, Any] = {}

    def payload(self) -> bytes:
        predicate = self.model_dump(mode="json", exclude_none=True, exclude={"kind", "model", "digest"})
        return payload({self.model: self.digest}, _PREDICATE_TYPE.format(self.kind), predicate)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Raises ValueError, KeyError or TypeError if it is not one of ours."""
        statement = json.loads(payload)
        [subject] = statement["subject"]
        kind = next(kind for kind in _SIGNER if _PREDICATE_TYPE.format(kind) == statement["predicateType"])
        about = {"kind": kind, "model": subject["name"], "digest": subject["digest"]["sha256"]}
        if statement["_type"] != _STATEMENT_TYPE or about.keys() & statement["predicate"].keys():
            raise ValueError("not a statement about a bundle")
        return cls.model_validate(about | statement["predicate"])


def attest(model: RegisteredModel, kind: Kind, digest: str, **more: Any) -> Attestation:
    """Sign an attestation and put it beside the bundle, or with those about the record that `details` names."""
    attestation = Attestation(kind=kind, model=model.name, digest=digest, at=datetime.now(UTC), **more)
    signed = seal(attestation.payload(), model.keyring, _SIGNER[kind], attestation.environment)
    about = attestation.details["revision"] if kind in ("released", "judged") else digest
    model.store.put_new(f"{_folder(model, about)}/{kind}-{signed.name}", signed.envelope)
    return attestation


def payload(subjects: dict[str, str], kind: str, predicate: dict[str, Any]) -> bytes:
    """An in-toto statement about `subjects`: name → SHA-256."""
    about = [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()]
    return json.dumps(
        {"_type": _STATEMENT_TYPE, "subject": about, "predicateType": kind, "predicate": predicate}
    ).encode()


class Signed(NamedTuple):
    name: str  # of the object that holds it, by its content
    envelope: bytes


def seal(payload: bytes, keyring: Keyring, role: Role, environment: str | None) -> Signed:
    """A payload in a DSSE envelope."""
    envelope = Envelope(payload, _PAYLOAD_TYPE, {})
    envelope.sign(keyring.signer(role, environment))
    return Signed(f"{hashlib.sha256(payload).hexdigest()[:16]}.json", json.dumps(envelope.to_dict()).encode())


def _folder(model: RegisteredModel, about: str | int) -> str:
    """Records have one of their own: a champion has any number of them, and an app reads all about its bundle."""
    return f"{model.folder}/" + (f"attestations/{about}" if isinstance(about, str) else f"signed/{about:08d}")


def _verify(raw: bytes, model: RegisteredModel) -> Attestation:
    def parse(payload: bytes) -> Attestation:
        found = Attestation.from_payload(payload)
        if found.environment not in (None, model.environment):  # its key need not be known here
            raise VerificationError("environment", "environment", found.environment, f"is not {model.environment!r}")
        return found

    return unseal(raw, model.keyring, parse, lambda found: (_SIGNER[found.kind], found.environment))


def unseal(
    raw: bytes, keyring: Keyring, parse: Callable[[bytes], Found], signer: Callable[[Found], tuple[Role, str | None]]
) -> Found:
    """What is in an envelope, once the key that signed it is found to be one of the `signer`: its role and environment."""
    try:
        envelope = Envelope.from_dict(json.loads(raw))
        found = parse(envelope.payload)
        if envelope.payload_type != _PAYLOAD_TYPE or not envelope.signatures:
            raise ValueError("wrong payload type or no signature")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError, EnvelopeError) as error:
        value = f"{type(error).__name__} {error}"[:80]
        raise VerificationError("attestation", "attestation", value, "is not a signed attestation") from None
    keys = keyring.trusted()
    for key_id, signature in envelope.signatures.items():
        key = keys.get(key_id)
        if key is None:
            raise VerificationError("signature", "signature", key_id, "was made by a key that is not in the keyring")
        if key.state == "revoked":
            raise VerificationError("revoked", "signature", key_id, "was made by a revoked key")
        if (key.role, key.environment) != signer(found):
            hint = f"was made by a key that may not sign {found.kind!r} here"
            raise VerificationError("signature", "signature", key_id, hint)
        try:
            key.verifier.verify_signature(signature, envelope.pae())
        except UnverifiedSignatureError:
            hint = "does not match the attestation and the key's entry in the keyring"
            raise VerificationError("signature", "signature", key_id, hint) from None
    return found


def read(model: RegisteredModel, about: str | int) -> tuple[list[Attestation], list[VerificationError]]:
    """The valid attestations about a bundle (its digest) or a record of the release log (its revision) that count in the
    model's environment, oldest first, and why the others do not."""
    good, bad = [], []
    keys = model.store.keys(_folder(model, about))
    if len(keys) > _MAX_ATTESTATIONS:
        hint = f"are too many to read about one bundle: {_MAX_ATTESTATIONS} are allowed"
        return [], [VerificationError("attestation", "attestations", len(keys), hint)]
    for key in keys:
        try:
            attestation = _verify(model.store.get(key, _MAX_BYTES) or b"", model)
            subject = attestation.digest if isinstance(about, str) else attestation.details.get("revision")
            if (attestation.model, subject) != (model.name, about):
                hint = f"is about {attestation.model} {attestation.digest[:12]}"
                raise VerificationError("attestation", "attestation", key, hint)
            good.append(attestation)
        except VerificationError as error:
            bad.append(error)
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
    """The newest gate verdict must be `passed`, and the bundle be built by a trusted training."""
    good, bad = read(model, digest)
    gates = [attestation for attestation in good if attestation.kind == "gate"]
    if not gates or not any(attestation.kind == "built" for attestation in good):
        hint = "has no signed 'built' and gate attestation; train it: mlops train"
        missing = VerificationError("attestation", "digest", digest[:12], hint)
        raise next((error for error in bad if error.reason != "environment"), missing)
    if gates[-1].verdict != "passed":
        reasons = "; ".join(gates[-1].details.get("reasons", []))
        raise VerificationError("gate", "digest", digest[:12], f"was refused by the gate ({reasons})")
    return gates[-1]
