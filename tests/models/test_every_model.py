"""Whatever model a fork has: its contract and its code can be loaded. Its data need not be there."""

import pytest
from sklearn.pipeline import Pipeline

from mlops.environment import models
from training.definition import load_definition


@pytest.mark.parametrize("name", models())
def test_a_model_of_this_repository_can_be_loaded(name: str) -> None:
    made = load_definition(name)
    assert made.contract.model == name
    assert callable(made.load)
    assert isinstance(made.pipeline(made.contract, made.parameters, 0), Pipeline)
