"""Who released what, when, why, and on which evidence: the records of a period, with every signature verified again."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from mlops.attestations import read
from mlops.envelope import Attestation
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release

Found = tuple[list[Attestation], list[VerificationError]]


class Evidence(BaseModel):
    """An attestation as it verifies now, or what is in its place and `why` it does not count. `not signed`: a record
    that ends a rollout, by a process without the key."""

    kind: str  # the attestation's; or record, which cannot be read; or attestation, of which the kind is not known
    digest: str
    state: Literal["verified", "not signed", "missing", "invalid"]
    why: str = ""
    attestation: Attestation | None = None


class Audited(BaseModel):
    """`release` is None if the record cannot be read."""

    revision: int
    release: Release | None
    evidence: list[Evidence]

    @property
    def holds(self) -> bool:
        return all(each.state in ("verified", "not signed") for each in self.evidence)

    @property
    def signed(self) -> bool:
        return all(each.state != "not signed" for each in self.evidence)


def audit(model: RegisteredModel, start: datetime, end: datetime) -> Iterator[Audited]:
    """The records written from `start` to before `end`; one that cannot be read counts as of the moment of that before."""
    at, before, known = start, None, dict[str, Found]()
    for revision, raw in model.releases.log.tail():
        release, evidence = None, []
        try:
            release, signed = model.releases.open(revision, raw, before)
            at, before = release.at, release
        except VerificationError as error:
            evidence = [_invalid("record", "", error)]
        if release and start <= at < end:
            evidence = list(_of_record(release, signed, *read(model, revision)))
            for digest in filter(None, (release.champion, release.challenger)):
                known[digest] = known.get(digest) or read(model, digest)
                evidence += _of_bundle(digest, at, *known[digest])
        if start <= at < end:
            yield Audited(revision=revision, release=release, evidence=evidence)


def _of_record(
    release: Release, signed: Attestation | None, good: list[Attestation], bad: list[VerificationError]
) -> Iterator[Evidence]:
    state = "verified" if signed else "not signed"
    yield Evidence(kind="released", digest=release.champion, state=state, attestation=signed)
    verdicts = [each for each in good if each.kind == "judged"]
    yield from (Evidence(kind="judged", digest=each.digest, state="verified", attestation=each) for each in verdicts)
    if signed and "judged" in signed.details and not verdicts:
        yield Evidence(kind="judged", digest="", state="missing", why="the record was written because of it")
    yield from (_invalid("attestation", release.champion, error) for error in bad)


def _of_bundle(digest: str, at: datetime, good: list[Attestation], bad: list[VerificationError]) -> Iterator[Evidence]:
    """What there was when the record was written: later verdicts are about later releases."""
    newest = {each.kind: each for each in good if each.at <= at}
    here = [error for error in bad if error.reason != "environment"]
    for kind in ("built", "gate", "approved"):
        found = newest.get(kind)
        if found is None:
            why = str((here or bad)[0]) if bad else ""
            yield Evidence(kind=kind, digest=digest, state="invalid" if here else "missing", why=why)
        else:
            why = "; ".join(found.details.get("reasons", [])) if found.verdict == "refused" else ""
            yield Evidence(kind=kind, digest=digest, state="invalid" if why else "verified", why=why, attestation=found)
    # What a revoked key has signed may have been signed again: then it proves nothing, and does no harm.
    yield from (_invalid("attestation", digest, error) for error in here if error.reason != "revoked")


def _invalid(kind: str, digest: str, error: VerificationError) -> Evidence:
    return Evidence(kind=kind, digest=digest, state="invalid", why=str(error))
