"""What a commit became: artifacts by digest, built once, attested, and the same in every environment."""

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from cli.delivery.road import Road
from infra.images import released
from mlops.bundle import canonical
from mlops.envelope import payload, seal, unseal
from mlops.environment import ROOT
from mlops.errors import UserError, VerificationError, explain
from mlops.keys import Role
from mlops.releases import author

SBOM = "-sbom"  # how the names of what only describes others end
Kind = Literal["built", "passed", "withdrawn"]
_SIGNER: dict[str, Role] = {"built": "build", "passed": "approve", "withdrawn": "approve"}
_BUILDS, _WITHDRAWN = "attestations/builds", "attestations/withdrawn"
_MAX_BYTES, _MAX = 64 * 1024, 1000


def _exact(reference: str) -> str:
    if not re.fullmatch(r"([\w.:/-]+@)?sha256:[0-9a-f]{64}", reference):
        raise ValueError("must end in @sha256:… or be sha256:…")
    return reference


class Build(BaseModel):
    """`artifacts`: name → image by digest, or SHA-256 of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40}(-changed)?|unknown)$")]
    artifacts: Annotated[dict[str, Annotated[str, AfterValidator(_exact)]], Field(min_length=1)]
    run: str = ""  # address of what built it

    @property
    def digest(self) -> str:
        """The same artifacts, the same digest, whatever the commit."""
        return hashlib.sha256(canonical(self.artifacts)).hexdigest()

    @property
    def short(self) -> str:
        return f"{self.digest[:12]} of commit {self.commit[:12]}"

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError("build", source, "; ".join(explain(error))[:500]) from None

    @classmethod
    def released(cls, environment: str) -> Self:
        file = released(environment)
        if not file.exists():
            raise UserError("released", str(file), "is missing: nothing was promoted yet")
        return cls.parse(file.read_text("utf-8"), str(file))

    def release(self, environment: str, root: Path = ROOT) -> None:
        """What the platform's program deploys next from `root`."""
        file = released(environment, root)
        file.parent.mkdir(exist_ok=True)
        file.write_text(self.text, "utf-8")

    @property
    def text(self) -> str:
        """As `environments/released` has it."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n"


class Attestation(BaseModel):
    """`built`: from this commit of this repository; `passed`: deployed and proven in `environment`; `withdrawn`: taken out
    of `environment` by a rollback."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    repository: str
    build: Build
    environment: str | None = None
    at: AwareDatetime
    by: str
    why: str = ""

    def payload(self) -> bytes:
        subjects = {name: _sha256(each) for name, each in self.build.artifacts.items()}
        return payload(subjects, f"urn:mlops:delivery:{self.kind}:v1", self.model_dump(mode="json", exclude={"kind"}))

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        found = json.loads(payload)
        kind = found["predicateType"].split(":")[3]
        attestation = cls.model_validate(found["predicate"] | {"kind": kind})
        if json.loads(attestation.payload()) != found:
            raise ValueError("subjects are not the build's")
        return attestation


def attest(
    road: Road, kind: Kind, build: Build, environment: str | None = None, why: str = "", names: Any = ()
) -> None:
    """Sign, and put where `require` looks; of what is `withdrawn` beside each artifact of `names`."""
    about = {"kind": kind, "repository": road.repository, "build": build, "environment": environment}
    attestation = Attestation(**about, at=datetime.now(UTC), by=author(), why=why)
    signed = seal(attestation.payload(), road.keyring, _SIGNER[kind], environment)
    folders = [f"{_WITHDRAWN}/{_sha256(build.artifacts[name])}" for name in names] or [_folder(build)]
    for folder in folders:
        road.bucket.put_new(f"{folder}/{kind}-{signed.name}", signed.envelope)


def require(road: Road, build: Build, environment: str, back: bool = False) -> None:
    """What must hold before anything is deployed. `back`: it ran here before, so only what was withdrawn here counts. Raises
    VerificationError with the reason: missing, foreign, stale, withdrawn."""
    before = road.before(environment)
    for name, reference in build.artifacts.items():
        for each in _read(road, f"{_WITHDRAWN}/{_sha256(reference)}")[0]:
            if each.kind == "withdrawn" and (not back or each.environment == environment):
                hint = f"was withdrawn from {each.environment} by {each.by} ({each.why}); change the code, or revert it"
                raise VerificationError("withdrawn", name, reference[-12:], hint)
    good, odd = _read(road, _folder(build))
    good = [each for each in good if (each.build.commit, each.build.artifacts) == (build.commit, build.artifacts)]
    if not any(each.kind == "built" for each in good):
        missing = f"has no attestation that {road.repository} built it"
        elsewhere = [
            each for each in _read(road, f"{_BUILDS}/{build.digest}")[0] if each.build.artifacts == build.artifacts
        ]
        if others := [each.build.commit for each in elsewhere if each.kind == "built"]:
            hint = f"was built from commit {others[-1][:12]}, not {build.commit[:12]}"
            raise VerificationError("stale", "build", build.digest[:12], hint)
        raise next(iter(odd), VerificationError("missing", "build", build.digest[:12], missing))
    if before and not any((each.kind, each.environment) == ("passed", before) for each in good):
        hint = f"has not passed {before}, which comes before {environment}"
        raise VerificationError("missing", "build", build.digest[:12], hint)


def _read(road: Road, folder: str) -> tuple[list[Attestation], list[VerificationError]]:
    """Oldest first, of at most the newest _MAX; and why others do not count."""
    good, bad = list[Attestation](), list[VerificationError]()
    for key in road.bucket.keys(folder)[-_MAX:]:
        try:
            raw = road.bucket.get(key, _MAX_BYTES) or b""
            found = unseal(
                raw, road.keyring, Attestation.from_payload, lambda each: (_SIGNER[each.kind], each.environment)
            )
            if found.repository != road.repository:
                raise VerificationError(
                    "foreign", key, found.repository, f"is another repository than {road.repository}"
                )
            good.append(found)
        except VerificationError as error:
            bad.append(error)
    return sorted(good, key=lambda each: each.at), bad


def _folder(build: Build) -> str:
    return f"{_BUILDS}/{build.digest}/{build.commit}"


def _sha256(reference: str) -> str:
    return reference.rpartition("sha256:")[2]
