"""Whatever table is brought, init and the first fit either work or say in one sentence what is in the way."""

import keyword
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

from mlops.bundle import Bundle
from mlops.contract import load_contract
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.model import Model
from tests.proofs import tables
from training import data, estimator, export, features, package, pipeline
from training.definition import load_definition
from training.scaffold import Scaffold

WORDS = [
    *keyword.kwlist, *keyword.softkwlist, "yes", "No", "on", "off", "null", "~", "y", "n", "label", "probabilities", "variable",
    "output", "input", "Split", "Scaler", "Concat", "TreeEnsembleClassifier", "numbers", "categories", "score", "count", "len",
    "index", "column_0", "literal", "values", "level", "row", "reasons", "quarantine_row", "day", "id", "at", "arm", "self", "mro",
    "Unnamed: 0", "0", "", "重量", "größe", "площадь", "حجم", "लंबाई", "크기", "x" * 100, "name", "key", "rows", "model", "dtype",
    "label1", "variable1", "merged_columns", "mean radius", "Mean Radius", "1st", "$ price", "a.b", "a-b", "__init__",
]  # fmt: skip
GROUP = 12


@pytest.fixture(autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("models")
    monkeypatch.setattr("mlops.environment.MODELS", folder)
    return folder


@pytest.mark.parametrize("start", range(0, len(WORDS), GROUP))
def test_a_column_may_have_any_name(environment: Environment, tmp_path: Path, start: int) -> None:
    random, names = np.random.default_rng(0), WORDS[start : start + GROUP]
    columns = [
        random.choice(["a", "b", "c"], 300) if i % 2 else random.normal(size=300).round(3) for i in range(len(names))
    ]
    size = random.normal(size=300).round(3)
    answer = np.where(size + random.normal(size=300) > 0, "yes", "no")
    rows = zip(*columns, size, answer, strict=True)
    lines = [",".join(f'"{name}"' for name in [*names, "size", "Answer?"]), *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    made = load_definition(Scaffold("Answer?", strong="it is a test").write(tmp_path / "table.csv")[0].parent.name)
    assert len(made.contract.features) == len(names) + 1
    rows = data.prepare(environment, made)
    for kind in ("linear", "boosting"):
        pipeline.smoke(replace(made, parameters={"estimator": kind}), rows, 0)
    fitted = estimator.fit(estimator.baseline(made.contract), rows, made.contract)
    bundle = package.unmeasured(made.contract, fitted, export.export(fitted, made.contract), rows)
    assert load_contract(bundle.files["contract.json"]) == made.contract
    model = Model(Bundle(bundle.files), "")
    requests = [model.schema.row(row) for row in rows.select(list(made.contract.features))[:20].to_dicts()]
    expected = model.score_arrays(features.arrays(rows[:20], made.contract))
    assert model.score(requests) == pytest.approx(expected.tolist(), abs=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables.tables())
def test_any_table_is_taken_or_explained(tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame) -> None:
    assert tables.outcome(table, tmp_path_factory.mktemp("table")) in ("fitted", "explained")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("y\n", "only one value"),
        ("weight,y\n1,0\n2,1\n3,0\n4,1\n", "only 4 values"),
        (
            "weight,size,y\n" + "\n".join(f"{i % 37},{'ab'[i % 2]},{int(i == 7)}" for i in range(300)),
            r"rows with y = 1, at least 5",
        ),
        (
            "weight,y\n" + "\n".join(f"{i % 37},{'abc'[i % 3]}" for i in range(90)),
            r"3 classes \(a, b, c, …\).*--positive",
        ),
        ("a,b\n1,2\n", "is not a column; there are a, b"),
    ],
)
def test_what_stops_a_table_is_said_before_anything_is_fitted(
    tmp_path: Path, models: Path, rows: str, why: str
) -> None:
    (tmp_path / "table.csv").write_text(rows)
    with pytest.raises(UserError, match=why):
        Scaffold("y").write(tmp_path / "table.csv")
    assert list(models.iterdir()) == []
