from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn import datasets

from mlops import environment, promotion
from mlops.environment import Environment
from mlops.errors import UserError
from tests import synthetic
from tests.service import Service
from training import pipeline
from training.definition import ModelDefinition, load_definition
from training.scaffold import Scaffold

STRONG = "measured before the question is asked"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "MODELS", tmp_path / "models")
    return tmp_path / "models"


def churn(rows: int = 900) -> pl.DataFrame:
    """Customers of a phone company: other names and types than ours, gaps, an answer in words, no time."""
    random = np.random.default_rng(4)
    months, charge = random.integers(1, 72, rows), random.gamma(4, 18, rows).round(2)
    contract = random.choice(["Month-to-month", "One year", "Two year"], rows, p=[0.55, 0.25, 0.2])
    leaves = random.random(rows) < 1 / (
        1 + np.exp(1.2 + months / 24 - charge / 60 - 1.3 * (contract == "Month-to-month"))
    )
    return pl.DataFrame({
        "CustomerID": random.permutation(np.arange(10_000, 10_000 + 7 * rows, 7)),
        "Customer Key": [f"{n:04d}-XYZ" for n in random.permutation(rows)],
        "TenureMonths": months,
        "MonthlyCharges ($)": pl.Series(charge).scatter(random.choice(rows, rows // 12, replace=False), None),
        "PaperlessBilling": random.random(rows) < 0.5,
        "Contract": contract,
        "Payment Method": pl.Series(random.choice(["card", "cheque", "transfer"], rows)).scatter(random.choice(rows, 30, replace=False), None),
        "Country": ["here"] * rows,
        "Score": random.normal(size=rows).round(2),
        "Churned?": pl.Series(np.where(leaves, "yes", "no")).scatter([5, 17, *range(40, 60)], None),
    })  # fmt: skip


def houses(rows: int = 700) -> pl.DataFrame:
    random = np.random.default_rng(5)
    area, age = random.normal(120, 40, rows).clip(25).round(), random.integers(0, 90, rows)
    return pl.DataFrame({
        "Row": np.arange(rows),
        "LivingArea": area,
        "Age": age,
        "Quarter": random.choice(["Nord", "Süd", "Ost"], rows),
        "SalePrice": (2500 * area - 900 * age + random.gamma(2, 15_000, rows)).round(-2),
    })  # fmt: skip


def table(name: str) -> tuple[pl.DataFrame, str]:
    if name in ("breast_cancer", "diabetes"):
        bundled = getattr(datasets, f"load_{name}")(as_frame=True).frame
        return pl.DataFrame({str(column): bundled[column].to_numpy() for column in bundled.columns}), "target"
    return {"churn": (churn(), "Churned?"), "houses": (houses(), "SalePrice")}[name]


def scaffolded(folder: Path, name: str) -> ModelDefinition:
    rows, target = table(name)
    rows.write_csv(folder / f"{name}.csv")
    Scaffold(target, strong=STRONG).write(folder / f"{name}.csv")
    return load_definition(name.replace("_", "-"))


def ruff(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", "ruff", *words], capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["churn", "houses", "breast_cancer"])
def test_a_scaffold_reads_as_if_a_person_had_written_it(tmp_path: Path, models: Path, name: str) -> None:
    made = scaffolded(tmp_path, name)
    assert sorted(path.name for path in made.folder.iterdir() if path.is_file()) == [
        "contract.yaml",
        "data.py",
        "parameters.yaml",
    ]
    code = (made.folder / "data.py").read_text()
    assert ast.get_docstring(ast.parse(code).body[-1])  # ty: ignore[invalid-argument-type]
    assert "would reformat" not in ruff("format", "--check", "--line-length", "120", str(models)).lower()
    assert "All checks passed" in ruff("check", "--select", "E,F,I,RET,W,RUF", "--ignore", "E501", str(models))
    contract = (made.folder / "contract.yaml").read_text()
    assert contract.startswith("# ")
    assert all(len(line) <= 120 or line.startswith("#") for line in contract.splitlines())
    assert len([line for line in contract.splitlines() if line.startswith("  ") and "{type: " in line]) == len(
        made.contract.features
    )
    assert yaml.safe_load((made.folder / "parameters.yaml").read_text())["estimator"] in ("boosting", "linear")


def test_a_scaffold_gives_each_column_a_type_or_says_why_it_is_left_out(tmp_path: Path) -> None:
    made = scaffolded(tmp_path, "churn")
    kinds = {name: (feature.type, feature.missing) for name, feature in made.contract.features.items()}
    assert kinds == {
        "tenure_months": ("number", False), "monthly_charges": ("number", True), "paperless_billing": ("boolean", False),
        "contract": ("category", False), "payment_method": ("category", True), "score_value": ("number", False),
    }  # fmt: skip
    text = (made.folder / "contract.yaml").read_text()
    assert "churned is 1 where the table says 'yes'" in text
    for name, why in {
        "customer_id": "row number",
        "customer_key": "almost unique",
        "country": "only one value",
    }.items():
        assert f"{name} ({why})" in text
    loaded = made.load()
    assert loaded["churned"].to_list() == [answer == "yes" for answer in churn()["Churned?"].drop_nulls()], (
        "a row without an answer teaches nothing"
    )
    assert "regression" in (scaffolded(tmp_path, "houses").folder / "contract.yaml").read_text()


@pytest.mark.parametrize("name", ["churn", "diabetes", "breast_cancer"])
def test_a_scaffolded_model_trains_unchanged_and_answers(tracked: Environment, tmp_path: Path, name: str) -> None:
    made = scaffolded(tmp_path, name)
    trained = pipeline.train(tracked, made, say=lambda _: None)
    assert trained.verdict.decision == "passed", trained.verdict.reasons
    if name != "churn":
        return
    promotion.release(tracked.model(made.contract.model), trained.digest, "first")
    again = pipeline.train(tracked, made, seed=1, say=lambda _: None)
    assert all(len(reason) > 30 for reason in again.verdict.reasons), "a small table may decide nothing, and says so"
    with Service(tracked, made.contract.model) as service:
        service.serves(1)
        row = {"tenure_months": 3, "paperless_billing": True, "contract": "Month-to-month", "score_value": 0.1}
        likely, unlikely = service.predict(row | {"monthly_charges": 150.0}, row | {"tenure_months": 70})["predictions"]
        assert likely["score"] > unlikely["score"]


def test_a_table_with_time_is_cut_by_it(tmp_path: Path) -> None:
    synthetic.frame(30, 20).select("at", "size", "color", "y").write_parquet(tmp_path / "Things 2024.parquet")
    files = Scaffold("y", time="at").write(tmp_path / "Things 2024.parquet")
    assert "at:" not in files[0].read_text().partition("features:")[2]
    made = load_definition("things-2024")
    assert files[0].parent == made.folder
    assert made.contract.time is not None
    assert made.contract.time.column == "at"
    assert list(made.contract.features) == ["size", "color"]
    pipeline.smoke(made, made.load(), 0)


def test_missing_numbers_of_a_parquet_file_are_missing(tmp_path: Path) -> None:
    pl.DataFrame({"size": [*map(float, range(199)), float("nan")], "y": [0, 1] * 100}).write_parquet(
        tmp_path / "things.parquet"
    )
    Scaffold("y").write(tmp_path / "things.parquet")
    assert load_definition("things").contract.features["size"].missing


@pytest.mark.parametrize(
    ("rows", "target", "options", "key", "hint"),
    [
        ({"a": [1, 2], "y": [0, 1]}, "z", {}, "target", "is not a column; there are a, y"),
        ({"a": [1, 2], "y": [0, 1]}, "y", {"time": "when"}, "time", "is not a column"),
        ({"a": [1, 2], "y": [0, 0]}, "y", {}, "target", "nothing to learn"),
        ({"a": [1, 2, 3], "y": ["red", "green", "blue"]}, "y", {}, "target", "3 classes.*--positive"),
        ({"a": [1, 2], "y": [0, 1]}, "y", {"drop": ["b"]}, "drop", "is not a column"),
        ({"a": [1, 2], "y": ["n", "y"]}, "y", {"positive": "yes"}, "positive", "no value of y; there are n, y"),
        ({"a": [*range(30)] * 2, "y": [0] * 57 + [1] * 3}, "y", {}, "train", "rows with y = 1, at least 5"),
        (
            {"a": [*range(100)] * 2, "y": [0] * 100 + [1] * 100, "told": [*"no"] * 0 + ["x"] * 100 + ["z"] * 100},
            "y",
            {},
            "columns",
            "told .1.00.*--strong",
        ),
        ({"a": [1, 1], "y": [0, 1]}, "y", {}, "data", "no column to predict from"),
        ({"a": [1, 2], "y": [0, 1]}, "y", {"name": "2024"}, "name", "begins with a letter"),
    ],
)
def test_a_table_that_cannot_be_scaffolded_is_explained(
    tmp_path: Path, models: Path, rows: dict[str, list], target: str, options: dict[str, Any], key: str, hint: str
) -> None:
    pl.DataFrame(rows).write_csv(tmp_path / "things.csv")
    with pytest.raises(UserError, match=hint) as caught:
        Scaffold(target, **options).write(tmp_path / "things.csv")
    assert caught.value.key == key
    assert not models.exists(), "nothing is left behind"


def test_an_existing_model_is_left_alone(tmp_path: Path, models: Path) -> None:
    scaffolded(tmp_path, "houses")
    (models / "houses" / "contract.yaml").write_text("mine")
    with pytest.raises(UserError, match="choose another with --name"):
        Scaffold("SalePrice").write(tmp_path / "houses.csv")
    assert (models / "houses" / "contract.yaml").read_text() == "mine"


def written(folder: Path, **columns: list[Any]) -> Path:
    pl.DataFrame(columns).write_csv(folder / "things.csv")
    return folder / "things.csv"


SIZES, ANSWERS = [*map(float, range(40))] * 5, [0, 1] * 100


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([f"${n},234.00" for n in range(1, 9)] * 25, r"numbers written as '\$1,234.00': read them in load"),
        ([f"{n} %" for n in range(1, 9)] * 25, "numbers written as '1 %'"),
        ([f"{n},5" for n in range(1, 9)] * 25, "numbers written as '1,5'"),
        ([f"1.{n}00,25" for n in range(1, 9)] * 25, "numbers written as '1.100,25'"),
        ([f"{n:02d}/12/2024" for n in range(1, 26)] * 8, "dates written as '01/12/2024'"),
        (["yes", "no", "maybe", None, "often"] * 40, ""),
    ],
)
def test_what_looks_like_numbers_or_dates_but_is_not_is_said(tmp_path: Path, cells: list[str], said: str) -> None:
    scaffold = Scaffold("y")
    scaffold.write(written(tmp_path, a=SIZES, b=cells, y=ANSWERS))
    assert bool(re.search(said, " ".join(scaffold.notes))) == bool(said) or not said
    assert ("b" in load_definition("things").contract.features) == (not said)


def test_a_category_of_very_many_values_is_left_out(tmp_path: Path) -> None:
    """Each would be an input of the model: more than its sandbox takes."""
    scaffold = Scaffold("y")
    customers = [f"c{n}" for n in range(1200)] * 3
    scaffold.write(written(tmp_path, a=SIZES * 18, customer=customers, y=ANSWERS * 18))
    assert "1200 values; if it names who or what a row is about: entity: [customer]" in " ".join(scaffold.notes)
    assert "customer" not in load_definition("things").contract.features


def test_a_time_in_another_form_is_named_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    file = written(tmp_path, a=SIZES, day=[f"{1 + n % 28:02d}/12/2024" for n in range(200)], y=ANSWERS)
    with pytest.raises(UserError, match=r"200 of 200 rows.*Expected a time in ISO 8601, got `01/12/2024`"):
        Scaffold("y", time="day").write(file)
    assert not models.exists()


def test_the_positive_class_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    file = written(tmp_path, a=SIZES, y=["low", "high"] * 100)
    scaffold = Scaffold("y", name="default")
    scaffold.write(file)
    assert "y is 1 where the table says 'low' (another with --positive)" in scaffold.notes
    Scaffold("y", name="chosen", positive="high").write(file)
    assert load_definition("chosen").load()["y"].to_list() == [False, True] * 100


def test_of_several_classes_one_is_named_and_few_numbers_may_be_classes(tmp_path: Path) -> None:
    Scaffold("y", name="one", positive="b").write(written(tmp_path, a=SIZES, y=[*"abcd"] * 50))
    assert load_definition("one").contract.task == "binary"
    scaffold = Scaffold("y", name="numbers")
    scaffold.write(written(tmp_path, a=SIZES, y=[0, 1, 2, 2] * 50))
    assert "3 different numbers, so the task is regression; if they are classes" in " ".join(scaffold.notes)


def test_a_strong_column_is_asked_for_and_its_reason_is_in_the_contract(tmp_path: Path) -> None:
    file = written(tmp_path, a=SIZES, told=[n % 2 + n / 1000 for n in range(200)], y=ANSWERS)
    with pytest.raises(UserError, match=r"told \(1.00\).*--drop COLUMN.*--strong"):
        Scaffold("y").write(file)
    Scaffold("y", name="kept", strong="measured before").write(file)
    assert load_definition("kept").contract.features["told"].strong == "measured before"
    Scaffold("y", name="left", drop=["told"]).write(file)
    assert "told" not in load_definition("left").contract.features


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    models.mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        Scaffold("y").write(written(tmp_path, a=SIZES, y=ANSWERS))
    assert list(models.iterdir()) == []
