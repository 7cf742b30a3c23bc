"""The short form of `make prove retraining`."""

from pathlib import Path

import pytest

from mlops.environment import Environment
from tests.proofs.crashes import Place
from tests.proofs.retraining import Live, killed


@pytest.mark.timeout(600)
def test_a_retraining_killed_anywhere_harms_nothing_and_the_next_one_succeeds(
    tracked: Environment, tmp_path: Path
) -> None:
    found = killed(Live(Place(tracked, tmp_path / "models", tracked.tracking), days=140), 3)
    assert found["faults"] == []
    assert found["ended"] == {"not begun": 1, "killed": 2}
