"""Signed statements about a bundle: DSSE envelopes (github.com/secure-systems-lab/dsse), one object each, never changed."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from mlops.errors import Refused
from mlops.keys import Keyring, Role
from mlops.store import Store

_MAX_BYTES = 1024 * 1024
_MAX_STATEMENTS = 1000
PAYLOAD_TYPE = "application/vnd.mlops.statement+json"
_SIGNER: dict[str, Role] = {"built": "build", "gate": "build", "approved": "approve"}


class Statement(BaseModel):
    """`built`: by this training; `gate`: its verdict and report; `approved`: may be served in `environment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["built", "gate", "approved"]
    model: str
    digest: str
    verdict: Literal["passed", "refused"] | None = None
    environment: str | None = None
    at: AwareDatetime
    details: dict[str, Any] = {}


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _folder(model: str, digest: str) -> str:
    return f"models/{model}/statements/{digest}"


def state(store: Store, keyring: Keyring, kind: Literal["built", "gate", "approved"], model: str, digest: str, **more: Any) -> Statement:
    """Sign a statement and put it beside the bundle."""
    statement = Statement(kind=kind, model=model, digest=digest, at=datetime.now(UTC), **more)
    payload = statement.model_dump_json(exclude_none=True).encode()
    key, signature = keyring.sign(_SIGNER[kind], statement.environment, _pae(payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key.id, "alg": key.alg, "sig": signature}],
    }
    name = f"{kind}-{hashlib.sha256(payload).hexdigest()[:16]}.json"
    store.put_new(f"{_folder(model, digest)}/{name}", json.dumps(envelope).encode())
    return statement


def _open(raw: bytes, keyring: Keyring, environment: str | None) -> Statement:
    try:
        envelope = json.loads(raw)
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [(str(s["keyid"]), str(s["alg"]), base64.b64decode(s["sig"], validate=True)) for s in envelope["signatures"]]
        statement = Statement.model_validate_json(payload)
        if envelope["payloadType"] != PAYLOAD_TYPE or not signatures:
            raise ValueError("wrong payload type or no signature")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("statement", "statement", f"{type(error).__name__} {error}"[:80], "is not a signed statement") from None
    keys = {key.id: key for key in keyring.readable()}
    for key_id, alg, signature in signatures:
        key = keys.get(key_id)
        if key is None:
            raise Refused("signature", "signature", key_id, "is of a key that the keyring does not know")
        if key.state == "revoked":
            raise Refused("revoked", "signature", key_id, "is of a revoked key")
        if key.role != _SIGNER[statement.kind] or key.alg != alg or key.environment != statement.environment:
            raise Refused("signature", "signature", key_id, f"is of a key that may not sign {statement.kind!r} here")
        key.check(_pae(payload), signature)
    if statement.environment not in (None, environment):
        raise Refused("environment", "environment", statement.environment, f"is not {environment!r}")
    return statement


def statements(store: Store, keyring: Keyring, model: str, digest: str, environment: str | None) -> tuple[list[Statement], list[Refused]]:
    """The statements about a bundle that hold, oldest first, and why the others do not."""
    good, bad = [], []
    keys = store.keys(_folder(model, digest))
    if len(keys) > _MAX_STATEMENTS:
        raise Refused("statement", "statements", len(keys), f"are too many to read about one bundle: {_MAX_STATEMENTS} are allowed")
    for key in keys:
        try:
            statement = _open(store.get(key, _MAX_BYTES) or b"", keyring, environment)
            if (statement.model, statement.digest) != (model, digest):
                raise Refused("statement", "statement", key, f"speaks of {statement.model} {statement.digest[:12]}")
            good.append(statement)
        except Refused as refused:
            bad.append(refused)
    return sorted(good, key=lambda s: s.at), bad


def require_approval(store: Store, keyring: Keyring, model: str, digest: str, environment: str) -> Statement:
    good, bad = statements(store, keyring, model, digest, environment)
    for statement in reversed(good):
        if statement.kind == "approved" and statement.environment == environment:
            return statement
    # An approval that was there and does not hold explains more than its absence.
    refused = next((r for r in bad), None)
    raise refused or Refused(
        "approval", "digest", digest[:12], f"is not approved for {environment!r}; release it: mlops release {digest[:12]}"
    )


def require_gate(store: Store, keyring: Keyring, model: str, digest: str) -> Statement:
    """The newest gate verdict must be `passed`, and the bundle be built by a training that we trust."""
    good, bad = statements(store, keyring, model, digest, None)
    gates = [s for s in good if s.kind == "gate"]
    if not any(s.kind == "built" for s in good) or not gates:
        raise next((r for r in bad if r.reason != "environment"), None) or Refused(
            "statement", "digest", digest[:12], "has no signed 'built' and gate statement; train it: mlops train"
        )
    if gates[-1].verdict != "passed":
        reasons = "; ".join(gates[-1].details.get("reasons", []))
        raise Refused("gate", "digest", digest[:12], f"was refused by the gate ({reasons})")
    return gates[-1]
