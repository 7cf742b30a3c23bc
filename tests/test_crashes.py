"""The short form of `make prove crashes`."""

from pathlib import Path

import pytest

from mlops import bundle as bundles
from mlops.attestations import require_gate
from mlops.bundle import Bundle
from mlops.errors import VerificationError
from tests import synthetic
from tests.proofs import batch, crashes


@pytest.mark.timeout(600)
def test_a_training_killed_while_it_signs_leaves_nothing_to_release_and_the_next_one_converges(tmp_path: Path) -> None:
    with crashes.place(tmp_path) as at:
        model = at.environment.model(synthetic.MODEL)
        at.crash("manifest.json", "train")
        assert bundles.digests(model) == []
        at.crash("/gate-", "train")  # the verdict is written last; MLflow has a version by then
        [digest] = bundles.digests(model)
        assert not crashes.unsound(at)
        with pytest.raises(VerificationError, match="has no signed 'built' and gate attestation"):
            require_gate(model, digest)
        # The killed runs say so until then.
        assert any("RUNNING" in fault for fault in crashes.unregistered(at, digest))
        assert at.run("train")["digest"] == digest
        assert not crashes.unsound(at) + crashes.unregistered(at, digest)
        assert require_gate(model, digest).verdict == "passed"


@pytest.fixture
def published(tmp_path: Path, first_bundle: Bundle) -> tuple[crashes.Place, str]:
    with crashes.place(tmp_path, with_tracking=False) as at:
        return at, synthetic.publish(at.environment, first_bundle)


def test_a_release_killed_around_its_record_is_there_or_is_not(published: tuple[crashes.Place, str]) -> None:
    at, digest = published

    def revisions() -> list[int]:
        return [release.revision for release in at.environment.model(synthetic.MODEL).releases.read()]

    # Two changes, the approval and the record, each with a step before it and one after.
    at.crash(3, "release", digest)
    assert (revisions(), crashes.unsound(at)) == ([], [])
    at.crash(2, "release", digest)  # the approval is there: the record is the only change
    assert (revisions(), crashes.unsound(at)) == ([1], [])
    assert at.run("release", digest)["revision"] == 2


def test_scoring_killed_between_the_files_of_a_part_continues(
    published: tuple[crashes.Place, str], tmp_path: Path
) -> None:
    at, digest = published
    at.run("release", digest)
    source = batch.write(45_000, tmp_path / "rows.parquet")
    at.run("score", str(source), str(tmp_path / "whole"))
    # Changes: the job, then the refused rows and the scores of each part; killed before the scores of two of them.
    assert not crashes.score_faults(at, tmp_path, source, tmp_path / "whole", [5, 9])
