"""Signed claims: in-toto statements in DSSE envelopes."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as EnvelopeError
from securesystemslib.exceptions import UnverifiedSignatureError

from mlops.errors import VerificationError
from mlops.keys import Keyring, Role

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "urn:mlops:{}:v1"
SIGNER: dict[str, Role] = {
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
        kind = next(kind for kind in SIGNER if _PREDICATE_TYPE.format(kind) == statement["predicateType"])
        about = {"kind": kind, "model": subject["name"], "digest": subject["digest"]["sha256"]}
        if statement["_type"] != _STATEMENT_TYPE or about.keys() & statement["predicate"].keys():
            raise ValueError("not a statement about a bundle")
        return cls.model_validate(about | statement["predicate"])


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
    return Signed(_name(payload), json.dumps(envelope.to_dict()).encode())


def name_of(envelope: bytes) -> str:
    """As `seal` names it. Raises ValueError, KeyError or TypeError if it is no envelope."""
    return _name(base64.b64decode(json.loads(envelope)["payload"]))


def _name(payload: bytes) -> str:
    return f"{hashlib.sha256(payload).hexdigest()[:16]}.json"


def verify(raw: bytes, keyring: Keyring, environment: str) -> Attestation:
    """One that counts in this environment. Raises VerificationError."""

    def parse(payload: bytes) -> Attestation:
        found = Attestation.from_payload(payload)
        if found.environment not in (None, environment):  # its key need not be known here
            raise VerificationError("environment", "environment", found.environment, f"is not {environment!r}")
        return found

    return unseal(raw, keyring, parse, lambda found: (SIGNER[found.kind], found.environment))


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
        if (key.role, key.environment) != signer(found):
            hint = f"was made by a key that may not sign {found.kind!r} here"
            raise VerificationError("signature", "signature", key_id, hint)
        try:
            key.verifier.verify_signature(signature, envelope.pae())
        except UnverifiedSignatureError:
            hint = "does not match the attestation and the key's entry in the keyring"
            raise VerificationError("signature", "signature", key_id, hint) from None
        if key.state == "revoked":
            raise VerificationError("revoked", "signature", key_id, "was made by a revoked key")
    return found
