from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel

from mlops.errors import Fault, Refused

Role = Literal["build", "approve"]


class Key(BaseModel):
    """A signing key's public half. `verify-only` signs nothing new; what a `revoked` key signed counts no more."""

    id: str
    alg: Literal["ed25519", "ecdsa-p256"]
    role: Role
    environment: str | None = None  # an approval is worth something in one environment only
    state: Literal["active", "verify-only", "revoked"] = "active"
    public: str
    created: datetime

    def check(self, message: bytes, signature: bytes) -> None:
        try:
            public = serialization.load_pem_public_key(self.public.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise Refused("keyring", "keyring", self.id, "holds no public key that can be read") from None
        try:
            if self.alg == "ed25519" and isinstance(public, ed25519.Ed25519PublicKey):
                public.verify(signature, message)
            elif self.alg == "ecdsa-p256" and isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
                public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            else:
                raise Refused("keyring", "keyring", self.id, f"holds a public key that is not {self.alg}")
        except InvalidSignature:
            raise Refused("signature", "signature", self.id, "does not match what it signs") from None


class Keyring:
    """The trust root: `keyring.json` (public keys, read by everyone) and beside it the private keys one may use."""

    def __init__(self, path: Path):
        self.path = path

    def all(self) -> list[Key]:
        try:
            return [Key.model_validate(entry) for entry in self._entries()]
        except ValueError as error:
            raise self._broken(error) from None

    def readable(self) -> list[Key]:
        """To verify with: an entry that cannot be read is trusted by nobody, and takes no other with it."""
        keys = []
        for entry in self._entries():
            with suppress(ValueError):
                keys.append(Key.model_validate(entry))
        return keys

    def _entries(self) -> list[object]:
        try:
            return list(json.loads(self.path.read_text())["keys"])
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> Refused:
        return Refused("keyring", "keyring", str(self.path), f"is not a keyring ({error}); restore it from its backup")

    def key(self, key_id: str) -> Key:
        for key in self.all():
            if key.id == key_id:
                return key
        raise Fault("key", key_id, f"is not in {self.path}; see `mlops key list`")

    def new(self, role: Role, environment: str | None = None, alg: str = "ed25519") -> Key:
        private = ed25519.Ed25519PrivateKey.generate() if alg == "ed25519" else ec.generate_private_key(ec.SECP256R1())
        public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        key = Key(
            id=f"{role}-{hashlib.sha256(public).hexdigest()[:8]}",
            alg="ed25519" if alg == "ed25519" else "ecdsa-p256",
            role=role,
            environment=environment,
            public=public.decode(),
            created=datetime.now(UTC),
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with open(os.open(self._private(key.id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        self._write([*self.all(), key])
        return key

    def set_state(self, key_id: str, state: str) -> Key:
        self.key(key_id)
        keys = [Key.model_validate(k.model_dump() | ({"state": state} if k.id == key_id else {})) for k in self.all()]
        self._write(keys)
        return self.key(key_id)

    def sign(self, role: Role, environment: str | None, message: bytes) -> tuple[Key, str]:
        for key in reversed(self.all()):
            if key.role == role and key.environment == environment and key.state == "active" and self._private(key.id).exists():
                private = serialization.load_pem_private_key(self._private(key.id).read_bytes(), None)
                if isinstance(private, ed25519.Ed25519PrivateKey):
                    signature = private.sign(message)
                elif isinstance(private, ec.EllipticCurvePrivateKey):
                    signature = private.sign(message, ec.ECDSA(hashes.SHA256()))
                else:
                    raise Fault("key", key.id, "is neither Ed25519 nor ECDSA P-256")
                return key, base64.b64encode(signature).decode()
        scope = f" --for {environment}" if environment else ""
        raise Fault("key", role, f"no active private key for it in {self.path.parent}; make one: mlops key new --role {role}{scope}")

    def _private(self, key_id: str) -> Path:
        return self.path.parent / f"{key_id}.pem"

    def _write(self, keys: list[Key]) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"keys": [key.model_dump(mode="json") for key in keys]}, indent=1) + "\n")
        temporary.replace(self.path)
