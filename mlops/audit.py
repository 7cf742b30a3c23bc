"""Who released what, when, why, and on which evidence: the records of a period, with every signature verified again."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from mlops.attestations import Attestation, read
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release, parse

Found = tuple[list[Attestation], list[VerificationError]]


class Evidence(BaseModel):
    """An attestation as it verifies now, or what is in its place and `why` it does not count. `not signed`: a record from
    before records were signed, or by a process without the key."""

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
    at, known = start, dict[str, Found]()
    for revision, raw in model.releases.log.tail():
        release, evidence = None, []
        try:
            release = parse(revision, raw)
            at = release.at
        except VerificationError as error:
            evidence = [_invalid("record", "", error)]
        if release and start <= at < end:
            evidence = list(_of_record(release, *read(model, revision)))
            for digest in filter(None, (release.champion, release.challenger)):
                known[digest] = known.get(digest) or read(model, digest)
                evidence += _of_bundle(digest, at, *known[digest])
        if start <= at < end:
            yield Audited(revision=revision, release=release, evidence=evidence)


def _of_record(release: Release, good: list[Attestation], bad: list[VerificationError]) -> Iterator[Evidence]:
    says = release.champion, release.model_dump(mode="json", exclude_defaults=True)
    for each in good:
        signed = each.digest, {key: value for key, value in each.details.items() if key != "judged"}
        why = "" if each.kind == "judged" or signed == says else "the record is not what was signed"
        state = "invalid" if why else "verified"
        yield Evidence(kind=each.kind, digest=each.digest, state=state, why=why, attestation=each)
    kinds = {each.kind for each in good}
    if "released" not in kinds and not bad:
        yield Evidence(kind="released", digest=release.champion, state="not signed")
    if "judged" not in kinds and any("judged" in each.details for each in good):
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
