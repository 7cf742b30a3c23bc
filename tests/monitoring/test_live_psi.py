"""What Prometheus records as PSI is that of the rows: over replicas that restart, come late and are gone, while inputs shift."""

import shutil
from pathlib import Path

import pytest

from tests.proofs import livepsi
from tests.proofs.livepsi import Life, Scenario

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="prometheus is not on the PATH (Debian: prometheus)"
)


def test_live_psi_is_that_of_the_rows(tmp_path: Path) -> None:
    lives = (Life("a", since=65), Life("b", since=65, restart=30), Life("c", since=20), Life("d", since=65, until=30))
    model = livepsi.model()
    assert len(model.profile["bins"]["c0"]["levels"]) == 19
    found = livepsi.measure(Scenario(lives, shift=30), [model], tmp_path / "prometheus")
    assert found["features"] == 21
    assert found["largest_psi"] > 0.1
    assert found["off_counts"] <= livepsi.OF_COUNTS
    assert found["off_rows"] <= livepsi.OF_ROWS
