import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key
from pydantic import BaseModel
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import AWSSigner, CryptoSigner, Signature, Signer, SSlibKey

from mlops.errors import UserError, VerificationError

Role = Literal["build", "approve"]
Scheme = Literal["ed25519", "ecdsa-sha2-nistp256"]
State = Literal["active", "verify-only", "revoked"]
_GENERATE = {"ed25519": CryptoSigner.generate_ed25519, "ecdsa-sha2-nistp256": CryptoSigner.generate_ecdsa}


class Key(BaseModel):
    """The public half of a signing key. A `verify-only` key signs nothing new; signatures of a `revoked` one are void."""

    id: str
    scheme: Scheme
    role: Role
    environment: str | None = None  # an approval counts in one environment only
    state: State = "active"
    public: str
    created: datetime
    kms: str | None = None  # the key of AWS KMS that is its private half

    @property
    def verifier(self) -> SSlibKey:
        return SSlibKey(self.id, self.scheme.partition("-")[0], self.scheme, {"public": self.public})


class Keyring:
    """The trust root: `keyring.json` (public keys, read by everyone), and the private keys one may use: beside it, or in
    the folder `private`."""

    def __init__(self, path: Path, private: Path | None = None):
        self.path, self.private = path, private or path.parent

    def all(self) -> list[Key]:
        try:
            return [Key.model_validate(entry) for entry in self._entries()]
        except ValueError as error:
            raise self._broken(error) from None

    def trusted(self) -> dict[str, Key]:
        """By id, to verify with: unreadable entries are skipped, not trusted."""
        keys = {}
        for entry in self._entries():
            with suppress(ValueError):
                key = Key.model_validate(entry)
                keys[key.id] = key
        return keys

    def new(self, role: Role, environment: str | None = None, scheme: Scheme = "ed25519") -> Key:
        made = _GENERATE[scheme]()
        key = _key(role, environment, made.public_key)
        self.private.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._private(key.id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made.private_bytes)
        self._write([*self.all(), key])
        return key

    def add_kms(self, role: Role, environment: str | None, kms: str) -> Key:
        """An asymmetric key of AWS KMS (ECC_NIST_P256, SIGN_VERIFY), whose private half nobody ever has."""
        key = kms_key(role, environment, kms)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write([*self.all(), key])
        return key

    def trust(self, key: Key) -> Key:
        """The public half of a key of another environment, to verify with."""
        others = [each for each in self.all() if each.id != key.id]
        trusted = next(
            (each for each in self.all() if each.id == key.id), key.model_copy(update={"state": "verify-only"})
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write([trusted, *others])
        return trusted

    def set_state(self, key_id: str, state: State) -> Key:
        keys = {key.id: key for key in self.all()}
        if key_id not in keys:
            raise UserError("key", key_id, f"is not in {self.path}; see `mlops signing-key list`")
        keys[key_id] = keys[key_id].model_copy(update={"state": state})
        self._write(list(keys.values()))
        return keys[key_id]

    def signer(self, role: Role, environment: str | None) -> Signer:
        """Of the newest active key for this role and environment whose private half is here, or in a KMS."""
        for key in reversed(self.all()):
            if (key.role, key.environment, key.state) != (role, environment, "active"):
                continue
            if key.kms:
                return _KmsSigner(key.kms, key.verifier)
            if (private := self._private(key.id)).exists():
                try:
                    return CryptoSigner(load_pem_private_key(private.read_bytes(), None), key.verifier)
                except (ValueError, SigningError) as error:
                    raise UserError("key", str(private), f"is not the private half of {key.id} ({error})") from None
        hint = f"has no active private key in {self.private}; create one: mlops signing-key new {role}"
        raise UserError("key", f"{role} for {environment}" if environment else role, hint)

    def _entries(self) -> list[object]:
        try:
            return list(json.loads(self.path.read_text("utf-8"))["keys"])
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> VerificationError:
        hint = f"is not a keyring ({error}); restore it from its backup"
        return VerificationError("keyring", "keyring", str(self.path), hint)

    def _private(self, key_id: str) -> Path:
        return self.private / f"{key_id}.pem"

    def _write(self, keys: list[Key]) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(
            json.dumps({"keys": [key.model_dump(mode="json") for key in keys]}, indent=1) + "\n", "utf-8"
        )
        temporary.replace(self.path)


class _KmsSigner(AWSSigner):
    def __init__(self, kms: str, public: SSlibKey):
        import boto3
        from botocore.config import Config

        with _asking(kms):
            super().__init__(kms, public)
            # By default boto3 tries for minutes, and the judge signs too.
            patience = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 2})
            self.client = boto3.client("kms", config=patience)

    def sign(self, payload: bytes) -> Signature:
        with _asking(self.aws_key_id, "; kms:Sign must be allowed"):
            return super().sign(payload)


def kms_key(role: Role, environment: str | None, kms: str) -> Key:
    """Raises UserError if AWS KMS does not give its public half, or it is of another kind."""
    import boto3

    kind = "it must be ECC_NIST_P256 for SIGN_VERIFY"
    with _asking(kms, f"; {kind}, and kms:GetPublicKey be allowed"):
        found = boto3.client("kms").get_public_key(KeyId=kms)
    usage, public = found["KeyUsage"], load_der_public_key(found["PublicKey"])
    if usage != "SIGN_VERIFY" or not isinstance(public, EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise UserError("kms", kms, f"is another kind of key, for {usage}: {kind}")
    return _key(role, environment, SSlibKey.from_crypto(public), kms)


@contextmanager
def _asking(kms: str, hint: str = "") -> Generator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise UserError("kms", kms, f"was of no use: {error}{hint}") from None


def _key(role: Role, environment: str | None, public: SSlibKey, kms: str | None = None) -> Key:
    text = public.keyval["public"]
    return Key(
        id=f"{role}-{hashlib.sha256(text.encode()).hexdigest()[:8]}", scheme=cast(Scheme, public.scheme), role=role,
        environment=environment, public=text, created=datetime.now(UTC), kms=kms,
    )  # fmt: skip
