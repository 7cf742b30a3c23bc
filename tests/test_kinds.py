"""Tables as a new user has them, from init to scores; nine kinds, with `mlops run`: `make prove kinds`."""

from pathlib import Path

import pytest

from mlops import environment, promotion
from mlops.environment import Environment
from tests.proofs import kinds
from tests.service import Service
from training import pipeline
from training.definition import load_definition
from training.scaffold import Scaffold
from training.scoring import score_file

TABLES = {"penguins": (kinds.penguins(500), None), "sales": (kinds.sales(120), "Date")}


@pytest.mark.parametrize("name", TABLES)
def test_a_users_own_file_gets_the_answers_of_the_api(
    tracked: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(environment, "MODELS", tmp_path / "models")
    table, time = TABLES[name]
    file = kinds.write(table, tmp_path / f"{name}.csv")
    kind = kinds.KINDS[name]
    Scaffold(kind.target, time=time, strong=kind.known["--strong"]).write(file)
    trained = pipeline.train(tracked, made := load_definition(name), say=lambda _: None)
    assert trained.verdict.decision == "passed", trained.verdict.reasons
    promotion.release(tracked.model(name), trained.digest, "first")
    scored = score_file(tracked, name, file, tmp_path / "scores", None, lambda _: None)
    assert (scored["scored"], scored["refused"]) == (table.height, 0), scored["reason"]
    with Service(tracked, name) as service:
        service.serves(1)

        def ask(row: dict[str, object]) -> float:
            return service.predict(row)["predictions"][0]["score"]

        found = kinds.difference(ask, made.contract, file, tmp_path / "scores")
    assert found["compared"] == kinds.SAMPLE
    assert found["largest_difference"] <= kinds.EQUAL
