"""A short form of `make prove environments`: many of them at once."""

from pathlib import Path

import pytest

from tests import synthetic
from tests.proofs import crashes, environments
from tests.service import Service


@pytest.mark.timeout(600)
def test_what_the_shell_says_to_other_programs_changes_nothing(tmp_path: Path) -> None:
    with crashes.place(tmp_path) as at, Service(at.environment, synthetic.MODEL) as service:
        made = environments.caller(at, service)
        assert [made.ends(told) for told in environments.HARMLESS] == ["as without"] * len(environments.HARMLESS)
