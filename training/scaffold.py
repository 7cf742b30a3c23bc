import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from polars import selectors
from sklearn.model_selection import KFold, StratifiedKFold

from mlops import environment
from mlops.contract import Contract
from mlops.errors import UserError
from mlops.report import render
from training import estimator, evaluation, features, source

_MANY_LEVELS = 0.5
_SMALL = 20_000
_LINE = 120
_LONGEST, _LONGEST_MODEL = 63, 41
_TAKEN = {"score", "numbers", "categories"}  # names that the bundle and its graph use
_FOLDS = 5
_DATA_PY = Path(__file__).parent / "templates" / "data.py.j2"


def scaffold_model(path: Path, target: str, name: str | None, time: str | None) -> list[Path]:
    """Write a first contract.yaml, data.py and parameters.yaml for a table."""
    table = source.read(str(path)).with_columns(selectors.float().fill_nan(None))
    renamed = {column: _name(column) for column in table.columns}
    if len(set(renamed.values())) < len(renamed):
        raise UserError("data", str(path), "two columns have the same name in snake_case; rename one")
    table = table.rename(renamed)
    target, time = _name(target), _name(time) if time else None
    for what, column in (("target", target), ("time", time)):
        if column and column not in table.columns:
            raise UserError(what, column, f"is not a column; there are {', '.join(table.columns)}")
    model = re.sub(r"[^a-z0-9-]+", "-", (name or path.stem).lower()).strip("-")[:_LONGEST_MODEL]
    if not model[:1].isalpha():
        raise UserError("name", model, "a model's name begins with a letter; choose one with --name")
    folder = environment.MODELS / model
    if folder.exists():
        raise UserError("name", model, f"{folder} exists; choose another with --name")
    table, positive = _target(table, target)
    contract = _contract(model, table, target, time, binary=positive is not None)
    if not contract["features"]:
        raise UserError("data", str(path), "has no column to predict from")
    parsed = Contract.model_validate(contract)
    choice = f"# boosting or linear: the better one in cross-validation of {path.name}\nestimator: "
    files = {
        "contract.yaml": _contract_yaml(contract, table, positive),
        "data.py": _data_py(path, renamed, table, target, positive, time),
        "parameters.yaml": f"{choice}{_better(parsed, table)}\n",
    }
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(content)
    return [folder / file for file in files]


def _name(column: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    snake = re.sub(r"[^a-z0-9]+", "_", snake.lower()).strip("_")
    snake = snake if snake[:1].isalpha() else f"c_{snake}"
    return f"{snake}_value" if snake in _TAKEN else snake[:_LONGEST]


def _target(table: pl.DataFrame, target: str) -> tuple[pl.DataFrame, str | None]:
    """The table with a numeric target, and for a binary one the value that counts as 1 ('' if it is 0/1 already)."""
    values = table[target].drop_nulls().unique().sort()
    if len(values) < 2:
        raise UserError("target", target, "has only one value: there is nothing to learn")
    if len(values) == 2:
        if values.dtype == pl.Boolean or (values.dtype.is_numeric() and values.to_list() == [0, 1]):
            return table.with_columns(pl.col(target).cast(pl.Float64)), ""
        positive = str(values[1])
        return table.with_columns((pl.col(target).cast(pl.String) == positive).cast(pl.Float64).alias(target)), positive
    if not values.dtype.is_numeric():
        hint = f"has {len(values)} classes; binary (two) and regression (a number) are supported: train a model a class"
        raise UserError("target", target, hint)
    return table, None


def _left_out(series: pl.Series) -> str:
    """Why a column is no feature, or ''."""
    distinct = series.drop_nulls().n_unique()
    if series.dtype.is_temporal():
        return "timestamp"
    if distinct < 2:
        return "only one value"
    if series.dtype == pl.String and distinct > _MANY_LEVELS * len(series):
        return "almost unique"
    numbered = series.dtype.is_integer() and distinct == len(series)
    if numbered and (re.search(r"(^|_)id$", series.name) or series.max() - series.min() == len(series) - 1):  # ty: ignore[unsupported-operator]
        return "row number"
    return ""


def _contract(model: str, table: pl.DataFrame, target: str, time: str | None, binary: bool) -> dict:
    columns = {}
    for series in table:
        if series.name not in (target, time) and not _left_out(series):
            kind = "boolean" if series.dtype == pl.Boolean else "number" if series.dtype.is_numeric() else "category"
            columns[series.name] = {"type": kind} | ({"missing": True} if series.null_count() else {})
    contract: dict = {"model": model, "task": "binary" if binary else "regression", "question": f"What is {target}?"}
    contract |= {"target": target} | ({"time": {"column": time}} if time else {})
    return contract | {"features": columns, "windows": {"train": "0.0..0.7", "holdout": "0.7..1.0"}}


def _contract_yaml(contract: dict, table: pl.DataFrame, positive: str | None) -> str:
    """A feature a line, below the decisions made."""
    target, time = contract["target"], contract.get("time", {}).get("column")
    left_out = [f"{s.name} ({why})" for s in table if s.name not in (target, time) and (why := _left_out(s))]
    notes = ["Read every line: the model's interface, and the bounds it must meet (docs/contract.md)."]
    if positive is None:
        notes.append(f"{target} has {table[target].n_unique()} different numbers, so the task is regression.")
    notes += [f"{target} is 1 where the table says {positive!r}."] if positive else []
    notes += [f"Left out: {', '.join(left_out)}."] if left_out else []
    parts = {name: value for name, value in contract.items() if name != "features"}
    lines = [f"# {note}\n" for note in notes]
    lines += [yaml.safe_dump(parts, sort_keys=False, width=120, allow_unicode=True), "features:\n"]
    for name, feature in contract["features"].items():
        flow = yaml.safe_dump(feature, sort_keys=False, default_flow_style=True, width=1000).strip()
        lines.append(f"  {name}: {flow}\n")
    return "".join(lines)


def _data_py(
    path: Path, renamed: dict[str, str], table: pl.DataFrame, target: str, positive: str | None, time: str | None
) -> str:
    names = {_quoted(old): _quoted(new) for old, new in renamed.items() if old != new}
    steps = ["read(DATA)"]
    steps += [".rename(NAMES)"] if names else []
    steps += [f'.with_columns({target}=pl.col("{target}").cast(pl.String) == {_quoted(positive)})'] if positive else []
    known = [column for column in (target, time) if column and table[column].null_count()]
    steps += [f".drop_nulls([{', '.join(map(_quoted, known))}])"] if known else []
    expression = "".join(steps)
    if len(expression) > _LINE - len("    return "):
        expression = "\n        ".join(["(", *steps]) + "\n    )"
    return render(_DATA_PY, path=_quoted(str(path.absolute())), names=names, expression=expression) + "\n"


def _quoted(text: str) -> str:
    """As a formatter would have it."""
    return repr(text) if '"' in text or not text.isprintable() else json.dumps(text, ensure_ascii=False)


def _better(contract: Contract, table: pl.DataFrame) -> str:
    """Small tables are often better served by a linear model: boosting must win by more than chance."""
    rows = table.drop_nulls(contract.target).with_columns(pl.col(contract.target).cast(pl.Float64))
    rows = rows.sample(min(rows.height, _SMALL), seed=0, shuffle=True)
    y, losses = rows[contract.target].to_numpy(), {}
    folds = StratifiedKFold(_FOLDS) if contract.task == "binary" else KFold(_FOLDS)
    for kind in ("boosting", "linear"):
        scores = np.empty(len(y))
        for most, rest in folds.split(y, y):
            unfitted = estimator.build(contract, {"estimator": kind}, 0, features.preprocess)
            pipeline = estimator.fit(unfitted, rows[most], contract)
            scores[rest] = estimator.score(pipeline, rows[rest], contract)
        losses[kind] = evaluation.loss(contract, y, scores)
    gain = losses["linear"] - losses["boosting"]
    return "boosting" if gain.mean() > gain.std() / len(gain) ** 0.5 else "linear"
